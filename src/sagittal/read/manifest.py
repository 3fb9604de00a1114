"""Manifest: the cases of a data set as a table and a schema that point at the files; a source itself.

``cases.parquet`` has a row a case; ``dataset.json`` says what the columns mean. Files are named below one root, which is
found from the manifest's own place first, so that manifest and data can move together. No pixels are copied, and nothing
in a manifest names code: how an image is read is a word of ``sagittal.read.sources``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sagittal.case import Case, ImageSource
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import ConfigError, DataError, ReadError, nearest
from sagittal.labels import ClassScores, LabelScheme
from sagittal.read.sources import item_source, make_source
from sagittal.read.truths import scheme_of

if TYPE_CHECKING:
    from sagittal.read.open_dataset import Request

MANIFEST_FORMAT = 2
CASES, SCHEMA = "cases.parquet", "dataset.json"
_KEYS = {"format", "name", "layout", "scheme", "columns", "notes", "skipped", "root", "absolute_root", "cases"}
_TRUTH, _COLUMN = "truth:", "column:"


def is_manifest(folder: Path) -> bool:
    """Whether a folder holds a manifest."""
    return (folder / SCHEMA).is_file() and (folder / CASES).is_file()


def open_manifest(request: Request) -> Dataset:
    """The data set of a manifest; another column may be asked for as the target.

    Raises
    ------
    ReadError
        If the manifest is damaged, of a newer format, or the files that it names have moved.
    DataError
        If the target is not a column.
    """
    dataset = read_manifest(Path(request.source))
    target = request.target
    if target is None or (dataset.scheme is not None and target == dataset.scheme.target):
        return dataset
    if target not in dataset.columns:
        known = [*dataset.columns, *([dataset.scheme.target] if dataset.scheme else [])]
        raise DataError(f"the manifest has no column '{target}'. {nearest(target, known)}")
    cells = ["" if case.table.get(target) is None else str(case.table[target]) for case in dataset]
    scheme, truths = scheme_of(cells, target, request.kind)
    cases = tuple(
        Case(
            case.id,
            case.patient,
            case.images,
            {key: value for key, value in case.table.items() if key != target},
            case.text,
            truth,
            case.split,
            case.source,
        )
        for case, truth in zip(dataset, truths, strict=True)
    )
    columns = tuple(name for name in dataset.columns if name != target)
    return Dataset(dataset.name, cases, scheme, columns, dataset.skipped, "manifest", dataset.notes)


def write_manifest(dataset: Dataset, folder: Path) -> None:
    """Write ``cases.parquet`` and ``dataset.json`` into a folder.

    Raises
    ------
    DataError
        If an image is not read from files, so that nothing can point at it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    files = sorted({file.resolve() for case in dataset for source in case.images.values() for file in source.files})
    root = _root(files)
    columns: dict[str, Any] = {
        "case": pa.array([case.id for case in dataset], pa.string()),
        "patient": pa.array([case.patient for case in dataset], pa.string()),
        "split": pa.array([case.split for case in dataset], pa.string()),
        "text": pa.array([case.text for case in dataset], pa.string()),
        "source": pa.array([case.source for case in dataset], pa.string()),
        "images": pa.array([[_point(n, s, root) for n, s in case.images.items()] for case in dataset], _image_type()),
    }
    for n, name in enumerate(dataset.scheme.classes if dataset.scheme else ()):
        values = [None if case.scores is None else float(case.scores.values[n]) for case in dataset]
        columns[_TRUTH + name] = pa.array(values, pa.float64())
    for name in dataset.columns:
        columns[_COLUMN + name] = _plain_array([case.table.get(name) for case in dataset])
    schema = {
        "format": MANIFEST_FORMAT,
        "name": dataset.name,
        "layout": dataset.layout,
        "cases": len(dataset),
        "scheme": None if dataset.scheme is None else dataset.scheme.to_json(),
        "columns": list(dataset.columns),
        "notes": list(dataset.notes),
        "skipped": [{"case": one.case, "reason": one.reason} for one in dataset.skipped],
        "root": _relative(root, folder),
        "absolute_root": str(root),
    }
    pq.write_table(pa.table(columns), folder / CASES)
    (folder / SCHEMA).write_text(json.dumps(schema, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Dataset:
    """The data set that :func:`write_manifest` wrote.

    Raises
    ------
    ReadError
        If the manifest is damaged, of a newer format, or the files that it names have moved.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(folder / SCHEMA)
    try:
        rows = pq.read_table(folder / CASES).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ReadError(f"{CASES}: the manifest's table cannot be read; make it again with sagittal ingest") from error
    try:
        scheme = None if schema["scheme"] is None else LabelScheme.from_json(schema["scheme"])
        root = _find_root(folder, schema, next((f for row in rows for i in row["images"] for f in i["files"]), ""))
        columns = tuple(schema["columns"])
        cases = tuple(_case(row, root, columns, scheme) for row in rows)
        skipped = tuple(Skipped(one["case"], one["reason"]) for one in schema["skipped"])
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ReadError(
            f"{SCHEMA} and {CASES} do not fit each other ({type(error).__name__}: {error}); make the manifest again with "
            "sagittal ingest"
        ) from error
    if len(cases) != schema["cases"]:
        raise ReadError(f"{CASES} holds {len(cases)} cases, {SCHEMA} names {schema['cases']}: one of them was changed")
    return Dataset(schema["name"], cases, scheme, columns, skipped, "manifest", tuple(schema["notes"]))


def _schema(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReadError(f"{path.name}: is not the schema of a manifest") from error
    if not isinstance(values, dict) or not isinstance(values.get("format"), int):
        raise ReadError(f"{path.name}: is not the schema of a manifest")
    if values["format"] > MANIFEST_FORMAT:
        raise ReadError(
            f"{path.name}: the manifest has format {values['format']}, this version reads up to {MANIFEST_FORMAT}. "
            "Install a newer Sagittal."
        )
    for key in values:
        if key not in _KEYS:
            raise ConfigError(f"{path.name}: unknown key '{key}'. {nearest(key, _KEYS)}")
    return values


def _case(row: Mapping[str, Any], root: Path, columns: Sequence[str], scheme: LabelScheme | None) -> Case:
    truth = None
    if scheme is not None:
        values = [row[_TRUTH + name] for name in scheme.classes]
        truth = None if all(v is None for v in values) else ClassScores(np.array(values, dtype=np.float64))
    return Case(
        row["case"],
        row["patient"],
        {image["name"]: _image(row["case"], image, root) for image in row["images"]},
        {name: row[_COLUMN + name] for name in columns},
        row["text"],
        truth,
        row["split"],
        row["source"],
    )


def _point(name: str, source: ImageSource, root: Path) -> dict[str, Any]:
    """How an image is found again: its way of reading, and its files below the root."""
    if not source.way:
        raise DataError(f"the image '{name}' is not read from files; a manifest cannot point at it")
    files = [file.resolve().relative_to(root).as_posix() for file in source.files]
    return {
        "name": name,
        "read": source.way,
        "files": files,
        "member": source.member,
        "options": json.dumps(dict(source.options)),
    }


def _image(case: str, point: Mapping[str, Any], root: Path) -> ImageSource:
    files = tuple(root / file for file in point["files"])
    if "options" in point:
        return make_source(case, point["read"], files, json.loads(point["options"]), member=point["member"])
    # format 1 had three ways and no options
    if point["read"] == "item":
        return item_source(case, files[0], point["array"], point["index"], point["modality"])
    return make_source(case, point["read"], files)


def _image_type() -> Any:
    import pyarrow as pa

    text = pa.string()
    fields = {"name": text, "read": text, "files": pa.list_(text), "member": text, "options": text}
    return pa.list_(pa.struct(list(fields.items())))


def _plain_array(values: Sequence[Any]) -> Any:
    """Numbers stay numbers where all are; else text."""
    import pyarrow as pa

    present = [value for value in values if value is not None]
    for kind, type_ in ((bool, pa.bool_()), (int, pa.int64()), ((int, float), pa.float64())):
        if present and all(isinstance(v, kind) and isinstance(v, bool) == (kind is bool) for v in present):
            return pa.array(values, type_, from_pandas=False)
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _root(files: Sequence[Path]) -> Path:
    """The deepest folder above all files."""
    if not files:
        return Path.cwd()
    try:
        return Path(os.path.commonpath([file.parent for file in files]))
    except ValueError:  # several drives
        return Path(files[0].anchor)


def _relative(root: Path, folder: Path) -> str | None:
    try:
        return Path(os.path.relpath(root, folder.resolve())).as_posix()
    except ValueError:  # another drive
        return None


def _find_root(folder: Path, schema: Mapping[str, Any], first: str) -> Path:
    """Where the files are now, told by the first of them: as seen from the manifest, else where they were."""
    places: list[Path] = [folder.resolve() / schema["root"]] if schema["root"] is not None else []
    places.append(Path(schema["absolute_root"]))
    place: Path
    for place in places:
        if (place / first).exists():
            return place.resolve()
    raise ReadError(
        f"the files of the manifest '{folder.name}' are neither where they were nor beside it; put them back, or make the "
        "manifest again with sagittal ingest"
    )
