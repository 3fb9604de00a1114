"""Manifest: the cases of a data set as a table that points at the files; a source itself.

``cases.parquet`` has a row a case, ``cases.schema.json`` says what its columns are (JSON Schema), and ``dataset.json``
holds what is true of all cases. Files are named below one root, which is found from the manifest's own place first, so
that manifest and data can move together. No pixels are copied, and nothing in a manifest names code: how an image is read
is a word of ``sagittal.read.sources``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.case import Case, ImageSource, Truth
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import ConfigError, DataError, ReadError, nearest
from sagittal.labels import PLACE_KINDS, ClassScores, LabelScheme
from sagittal.read.manifest_schema import COLUMN, TRUTH, json_schema, kind_of, parquet_schema, truth_columns
from sagittal.read.request import Request
from sagittal.read.sources import item_source, make_mask_source, make_source
from sagittal.read.truths import is_lateral, scheme_of
from sagittal.truth import Boxes, SegmentationSource

MANIFEST_FORMAT = 2
CASES, SCHEMA, ROW_SCHEMA = "cases.parquet", "dataset.json", "cases.schema.json"
_KEYS = {"format", "name", "layout", "scheme", "columns", "notes", "skipped", "root", "absolute_root", "cases"}
#: Cases that are turned into rows at a time.
_BATCH = 20_000


def is_manifest(folder: Path) -> bool:
    """Whether a folder holds a manifest."""
    return (folder / SCHEMA).is_file() and (folder / CASES).is_file()


def open_manifest(request: Request) -> Dataset:
    """The data set of a manifest; another column may be asked for as the target, or some of its structures or objects.

    With the kind ``objects``, structures answer where objects are.

    Raises
    ------
    ReadError
        If the manifest is damaged, of a newer format, or the files that it names have moved.
    DataError
        If the target is not a column.
    """
    dataset = read_manifest(Path(request.source))
    target, scheme = request.target, dataset.scheme
    if scheme is not None and (scheme.kind, request.kind) == ("structures", "objects"):
        scheme = replace(scheme, kind="objects")
        dataset = replace(dataset, scheme=scheme)
    if target is None or (scheme is not None and target == scheme.target):
        return dataset
    if target not in dataset.columns:
        wanted = [target] if scheme and target in scheme.classes else [part.strip() for part in target.split(",")]
        if scheme is not None and scheme.kind in PLACE_KINDS and set(wanted) <= set(scheme.classes):
            return _some(dataset, scheme, [name for name in scheme.classes if name in wanted])
        classes = list(scheme.classes) if scheme is not None and scheme.kind in PLACE_KINDS else []
        known = [*dataset.columns, *([scheme.target] if scheme else []), *classes]
        raise DataError(f"the manifest has no column '{target}'. {nearest(target, known)}")
    cells = ["" if case.table.get(target) is None else str(case.table[target]) for case in dataset]
    scheme, truths = scheme_of(cells, target, request.kind)
    cases = tuple(
        replace(case, table={key: value for key, value in case.table.items() if key != target}, truth=truth)
        for case, truth in zip(dataset, truths, strict=True)
    )
    columns = tuple(name for name in dataset.columns if name != target)
    return replace(dataset, cases=cases, scheme=scheme, columns=columns)


def _some(dataset: Dataset, scheme: LabelScheme, names: Sequence[str]) -> Dataset:
    """The data set with some of its structures or objects only."""
    meaning = {name: text for name, text in scheme.meaning.items() if name in names}
    chosen = replace(scheme, classes=tuple(names), meaning=meaning, lateral=is_lateral(names))
    number = {scheme.classes.index(name): n for n, name in enumerate(names)}

    def truth(given: Truth | None) -> Truth | None:
        if not isinstance(given, Boxes):
            return given
        kept = np.array([n in number for n in given.classes.tolist()], dtype=bool)
        classes = np.array([number[n] for n in given.classes[kept].tolist()], dtype=np.int64)
        return Boxes(given.corners[kept], classes, np.asarray(given.crowd)[kept], given.frame)

    return replace(dataset, scheme=chosen, cases=tuple(replace(case, truth=truth(case.truth)) for case in dataset))


def write_manifest(dataset: Dataset, folder: Path) -> None:
    """Write ``cases.parquet``, ``cases.schema.json`` and ``dataset.json`` into a folder.

    Raises
    ------
    DataError
        If an image or a segmentation is not read from files, so that nothing can point at it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    places = _Places(dataset)
    kinds = {name: kind_of(case.table.get(name) for case in dataset) for name in dataset.columns}
    types = parquet_schema(dataset.scheme, kinds)
    with pq.ParquetWriter(folder / CASES, types) as writer:
        for start in range(0, len(dataset), _BATCH):
            rows = [_row(case, dataset.scheme, kinds, places) for case in dataset.cases[start : start + _BATCH]]
            writer.write_table(pa.Table.from_pylist(rows, schema=types))
    schema = {
        "format": MANIFEST_FORMAT,
        "name": dataset.name,
        "layout": dataset.layout,
        "cases": len(dataset),
        "scheme": None if dataset.scheme is None else dataset.scheme.to_json(),
        "columns": list(dataset.columns),
        "notes": list(dataset.notes),
        "skipped": [{"case": one.case, "reason": one.reason, "code": one.code} for one in dataset.skipped],
        "root": _relative(places.root, folder),
        "absolute_root": str(places.root),
    }
    for name, values in ((ROW_SCHEMA, json_schema(dataset.scheme, kinds)), (SCHEMA, schema)):
        (folder / name).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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
        scheme = None if schema["scheme"] is None else LabelScheme.from_json(schema["scheme"])
        columns = tuple(schema["columns"])
        skipped = tuple(Skipped(one["case"], one["reason"], one.get("code", "")) for one in schema["skipped"])
        cases: list[Case] = []
        root: Path | None = None
        with pq.ParquetFile(folder / CASES) as file:
            for row in _rows(file):
                root = root or _find_root(folder, schema, _first_file(row))
                cases.append(_case(row, root or Path(), columns, scheme))
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, ReadError):
            raise
        raise ReadError(f"{CASES}: the manifest's table cannot be read; make it again with sagittal ingest") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ReadError(
            f"{SCHEMA} and {CASES} do not fit each other ({type(error).__name__}: {error}); make the manifest again with "
            "sagittal ingest"
        ) from error
    if len(cases) != schema["cases"]:
        raise ReadError(f"{CASES} holds {len(cases)} cases, {SCHEMA} names {schema['cases']}: one of them was changed")
    return Dataset(schema["name"], tuple(cases), scheme, columns, skipped, "manifest", tuple(schema["notes"]))


# Writing -------------------------------------------------------------------------------------------------------------


class _Places:
    """The files of a data set below their common root; each folder is resolved once."""

    def __init__(self, dataset: Dataset) -> None:
        self._resolved: dict[Path, Path] = {}
        folders: set[Path] = set()
        for case in dataset:
            for source in case.images.values():
                folders.update(self._folder(file) for file in source.files)
            if isinstance(case.truth, SegmentationSource):
                folders.update(self._folder(file) for file in case.truth.files)
        self.root = _common(sorted(folders))

    def _folder(self, file: Path) -> Path:
        if file.parent not in self._resolved:
            self._resolved[file.parent] = file.parent.resolve()
        return self._resolved[file.parent]

    def below(self, files: Sequence[Path]) -> list[str]:
        return [(self._folder(file) / file.name).relative_to(self.root).as_posix() for file in files]


def _row(case: Case, scheme: LabelScheme | None, kinds: Mapping[str, str], places: _Places) -> dict[str, Any]:
    row: dict[str, Any] = {
        "case": case.id,
        "patient": case.patient,
        "split": case.split,
        "text": case.text,
        "source": case.source,
        "images": [_point(name, source, places) for name, source in case.images.items()],
        "masks": _masks(case, places),
        "boxes": _boxes(case.truth),
    }
    for n, name in enumerate(truth_columns(scheme)):
        row[TRUTH + name] = None if case.scores is None else float(case.scores.values[n])
    for name, kind in kinds.items():
        value = case.table.get(name)
        row[COLUMN + name] = str(value) if kind == "text" and value is not None else value
    return row


def _point(name: str, source: ImageSource, places: _Places) -> dict[str, Any]:
    """How an image is found again: its way of reading, and its files below the root."""
    if not source.way:
        raise DataError(f"the image '{name}' is not read from files; a manifest cannot point at it")
    return {
        "name": name,
        "read": source.way,
        "files": places.below(source.files),
        "member": source.member,
        "options": json.dumps(dict(source.options)),
    }


def _masks(case: Case, places: _Places) -> dict[str, Any] | None:
    truth = case.truth
    if not isinstance(truth, SegmentationSource):
        return None
    if not truth.way:
        raise DataError(f"case {case.id}: its segmentation is not read from files; a manifest cannot point at it")
    return {
        "read": truth.way,
        "files": places.below(truth.files),
        "structures": list(truth.structures),
        "options": json.dumps(dict(truth.options)),
    }


def _boxes(truth: Truth | None) -> dict[str, Any] | None:
    if not isinstance(truth, Boxes):
        return None
    return {
        "frame": truth.frame,
        "corners": truth.corners.ravel().tolist(),
        "classes": truth.classes.tolist(),
        "crowd": np.asarray(truth.crowd).tolist(),
    }


def _common(folders: Sequence[Path]) -> Path:
    """The deepest folder above all."""
    if not folders:
        return Path.cwd()
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:  # several drives
        return Path(folders[0].anchor)


def _relative(root: Path, folder: Path) -> str | None:
    try:
        return Path(os.path.relpath(root, folder.resolve())).as_posix()
    except ValueError:  # another drive
        return None


# Reading -------------------------------------------------------------------------------------------------------------


def _schema(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
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


def _rows(file: Any) -> Iterator[dict[str, Any]]:
    """Row by row, so that the table and the cases never stand in memory as Python objects together."""
    for batch in file.iter_batches(batch_size=_BATCH):
        yield from batch.to_pylist()


def _first_file(row: Mapping[str, Any]) -> str | None:
    points = [*row["images"], *([row["masks"]] if row.get("masks") else [])]
    return next((file for point in points for file in point["files"]), None)


def _case(row: Mapping[str, Any], root: Path, columns: Sequence[str], scheme: LabelScheme | None) -> Case:
    return Case(
        row["case"],
        row["patient"],
        {image["name"]: _image(row["case"], image, root) for image in row["images"]},
        {name: row[COLUMN + name] for name in columns},
        row["text"],
        _truth(row, root, scheme),
        row["split"],
        row["source"],
    )


def _truth(row: Mapping[str, Any], root: Path, scheme: LabelScheme | None) -> Truth | None:
    if (masks := row.get("masks")) is not None:
        return make_mask_source(
            row["case"],
            masks["read"],
            [root / file for file in masks["files"]],
            _options(masks["options"]),
            structures=masks["structures"],
        )
    if (boxes := row.get("boxes")) is not None:
        most = len(scheme.classes) if scheme is not None else 0
        if any(not 0 <= n < most for n in boxes["classes"]) or len(boxes["corners"]) != 6 * len(boxes["classes"]):
            raise IndexError(f"boxes of case {row['case']}")
        corners = np.array(boxes["corners"], dtype=np.float64)
        return Boxes(corners, np.array(boxes["classes"], dtype=np.int64), boxes["crowd"], boxes["frame"])
    values = [row[TRUTH + name] for name in truth_columns(scheme)]
    return None if all(v is None for v in values) else ClassScores(np.array(values, dtype=np.float64))


def _image(case: str, point: Mapping[str, Any], root: Path) -> ImageSource:
    files = tuple(root / file for file in point["files"])
    if "options" in point:
        return make_source(case, point["read"], files, _options(point["options"]), member=point["member"])
    # format 1 had three ways and no options
    if point["read"] == "item":
        return item_source(case, files[0], point["array"], point["index"], point["modality"])
    return make_source(case, point["read"], files)


def _options(text: str) -> dict[str, Any]:
    if text == "{}":
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TypeError("options are no JSON") from error
    if not isinstance(values, dict):
        raise TypeError("options are no object")
    return values


def _find_root(folder: Path, schema: Mapping[str, Any], first: str | None) -> Path | None:
    """Where the files are now, told by the first of them: as seen from the manifest, else where they were."""
    if first is None:
        return None
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
