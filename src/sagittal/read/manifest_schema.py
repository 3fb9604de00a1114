"""What the columns of a manifest are: as types of Parquet, and as a JSON Schema for people and other programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sagittal.labels import CLASS_KINDS, LabelScheme

TRUTH, COLUMN = "truth:", "column:"
#: Name of a type of a clinical column -> type in JSON.
KINDS = {"bool": "boolean", "int": "integer", "float": "number", "text": "string"}


def kind_of(values: Iterable[Any]) -> str:
    """The type of a clinical column: numbers stay numbers where all are, else text.

    >>> kind_of([1, None, 2.5]), kind_of([True, None]), kind_of([1, "x"]), kind_of([None])
    ('float', 'bool', 'text', 'text')
    """
    kinds: set[str] = set()
    for value in values:
        if isinstance(value, bool):
            kinds.add("bool")
        elif isinstance(value, int) and -(2**63) <= value < 2**63:
            kinds.add("int")
        elif isinstance(value, float):
            kinds.add("float")
        elif value is not None:
            return "text"
    if kinds == {"int", "float"}:
        return "float"
    return kinds.pop() if len(kinds) == 1 else "text"


def truth_columns(scheme: LabelScheme | None) -> list[str]:
    """The classes that have a column of their own: those of questions about the case as a whole."""
    return list(scheme.classes) if scheme is not None and scheme.kind in CLASS_KINDS else []


def parquet_schema(scheme: LabelScheme | None, columns: Mapping[str, str]) -> Any:
    """The Parquet schema of a manifest whose clinical columns have these types."""
    import pyarrow as pa

    text, files = pa.string(), pa.list_(pa.string())
    image = pa.struct([("name", text), ("read", text), ("files", files), ("member", text), ("options", text)])
    masks = pa.struct([("read", text), ("files", files), ("structures", files), ("options", text)])
    boxes = pa.struct(
        [
            ("frame", text),
            ("corners", pa.list_(pa.float64())),
            ("classes", pa.list_(pa.int64())),
            ("crowd", pa.list_(pa.bool_())),
        ]
    )
    plain = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "text": text}
    return pa.schema(
        [
            *((name, text) for name in ("case", "patient", "split", "text", "source")),
            ("images", pa.list_(image)),
            ("masks", masks),
            ("boxes", boxes),
            *((TRUTH + name, pa.float64()) for name in truth_columns(scheme)),
            *((COLUMN + name, plain[kind]) for name, kind in columns.items()),
        ]
    )


def json_schema(scheme: LabelScheme | None, columns: Mapping[str, str]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one row of a manifest, each column with what it means."""
    text = {"type": "string"}
    files = {"type": "array", "items": text, "description": "Paths below the root that dataset.json names."}
    options = {"type": "string", "contentMediaType": "application/json", "description": "What the reader is told."}
    way = {"type": "string", "description": "How it is read: a word of sagittal.read.sources, never code."}
    properties: dict[str, Any] = {
        "case": {"type": "string", "minLength": 1, "description": "Name of the case; unique, and safe to show."},
        "patient": {"type": "string", "description": "Same for the cases of one person; not the person's identifier."},
        "split": {"enum": ["train", "val", "test", None], "description": "Where the source gives one."},
        "text": {"type": "string", "description": "Text of the report; empty where there is none."},
        "source": {"type": "string", "description": "Where the case came from, in words."},
        "images": {
            "type": "array",
            "minItems": 1,
            "description": "The images of the case; pixels stay in their files.",
            "items": _object(
                {
                    "name": {"type": "string", "description": "'image' where there is one, else 'T1', 'FLAIR' ..."},
                    "read": way,
                    "files": files,
                    "member": {"type": "string", "description": "Which part of a file with several images."},
                    "options": options,
                }
            ),
        },
        "masks": {
            "description": "What each voxel belongs to; null where the truth is of another kind or there is none.",
            "anyOf": [
                _object(
                    {
                        "read": way,
                        "files": files,
                        "structures": {
                            "type": "array",
                            "items": text,
                            "description": "What was outlined or looked for; others are unknown, not absent.",
                        },
                        "options": options,
                    }
                ),
                {"type": "null"},
            ],
        },
        "boxes": {
            "description": "Where the objects lie; an empty list says that none was found, null that nothing is known.",
            "anyOf": [
                _object(
                    {
                        "frame": {
                            "enum": ["voxel", "mm"],
                            "description": "voxel: indices along i, j, k, centres at whole numbers. mm: the middle in "
                            "LPS+, the edges along the image's own axes.",
                        },
                        "corners": {
                            "type": "array",
                            "items": {"type": "number"},
                            "description": "Six for each box: lower i, j, k, upper i, j, k.",
                        },
                        "classes": {
                            "type": "array",
                            "items": {"type": "integer", "minimum": 0},
                            "description": "Index into the classes of the scheme in dataset.json.",
                        },
                        "crowd": {
                            "type": "array",
                            "items": {"type": "boolean"},
                            "description": "True where a box counts neither as found nor as missed.",
                        },
                    }
                ),
                {"type": "null"},
            ],
        },
    }
    for name in truth_columns(scheme):
        told = "1 the class holds, 0 it does not, NaN not known; null where the source says nothing of the case."
        properties[TRUTH + name] = {"type": ["number", "null"], "description": told}
    for name, kind in columns.items():
        properties[COLUMN + name] = {"type": [KINDS[kind], "null"], "description": "Clinical column; null: missing."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A row of cases.parquet, a manifest of Sagittal",
        **_object(properties),
    }


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
