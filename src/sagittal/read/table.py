"""A CSV, TSV or Parquet table with a row for each image: its path or name, its labels, clinical columns."""

from __future__ import annotations

import csv
import io
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagittal.case import Case, ImageSource
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import DataError, ReadError, SagittalError
from sagittal.labels import ClassScores, LabelScheme
from sagittal.read import columns
from sagittal.read.dicom import read_dicom
from sagittal.read.files import SPLIT_NAMES, group, image_files, index_file, is_image
from sagittal.read.limits import as_read_error, check_file
from sagittal.read.open_image import READERS, reader_of, stem
from sagittal.read.sources import file_source, patient_key, series_source
from sagittal.read.truths import UNKNOWN, scheme_of, scheme_of_columns

if TYPE_CHECKING:
    from sagittal.read.open_dataset import Request

Rows = dict[str, list[str]]
#: Cells that are looked at to find out which column names the images.
_SAMPLE = 400


def open_table(request: Request) -> Dataset:
    """Cases of a table's rows whose images are found on disk.

    The column of images holds paths (absolute, below the table's folder or below the data set's folder), file names
    with or without suffix, or names of folders with one image or DICOM series each; it is found by trying. Rows
    without image and images without row are reported as skipped.

    Raises
    ------
    DataError
        If no column names images, all are missing, a named column does not exist, or there are no labels.
    ReadError
        If the table cannot be read.
    """
    path, root = _places(request)
    table = read_table(path)
    places = ImageIndex(root, path.parent)
    column = _image_column(table, places, request)
    roles = find_roles(table, request, {column})
    found: list[tuple[int, str, tuple[Path, ...]]] = []
    skipped: list[Skipped] = []
    for row, name in enumerate(_names(table[column], roles.patient == column)):
        files = places.find(table[column][row])
        if files and all(file.stat().st_size == 0 for file in files):
            skipped.append(Skipped(name, "the file is empty (0 bytes)"))
        elif files:
            found.append((row, name, files))
        else:
            skipped.append(Skipped(name, "the table names an image that was not found"))
    if not found:
        raise DataError(
            f"none of the {len(table[column])} images that column '{column}' names was found below '{root.name}'. "
            "Give the folder of the images, or the right column with id_column=... or path_column=..."
        )
    used = {file for _, _, files in found for file in files}
    loose = [file for file in places.files if file not in used]
    skipped += [Skipped(_below(file, root), "an image without a row in the table") for file in loose]
    scheme, truths = roles.truths(table)
    cases = [
        make_row_case(
            name,
            _source(name, files),
            table,
            row,
            roles,
            truths,
            source=_below(files[0], root),
            patient=_patient_in(files[0]),
        )
        for row, name, files in found
    ]
    return Dataset(
        root.resolve().name,
        tuple(cases),
        scheme,
        columns=roles.clinical,
        skipped=tuple(skipped),
        layout="table",
        notes=(f"images by column '{column}'", *roles.notes()),
    )


def names_images(table: Rows, root: Path) -> bool:
    """Whether some column of a table names images below a folder."""
    places = ImageIndex(root, root)
    return any(places.find(cell) for cells in table.values() for cell in cells[:_SAMPLE])


class Roles:
    """What each column of a table is for.

    Attributes
    ----------
    targets : tuple of str
        The columns of labels, as the user or a guess has it.
    patient, split, text : str or None
    clinical : tuple of str
        The other columns.
    """

    def __init__(self, table: Rows, request: Request, taken: set[str]) -> None:
        self.kind = request.kind
        self.patient = (
            columns.named(table, request.patient_column, "patient")
            if request.patient_column
            else columns.guess_patient(table)
        )
        self.split = (
            columns.named(table, request.split_column, "split") if request.split_column else columns.guess_split(table)
        )
        self.text = columns.guess_text(table)
        self.taken = taken | {c for c in (self.patient, self.split, self.text) if c}
        self.targets = self._targets(table, request.target)
        self.clinical = tuple(c for c in table if c not in self.taken | set(self.targets) and not _is_key(table[c]))
        self.numbers = {c for c in self.clinical if _is_numeric(table[c])}
        self.guessed_patient = self.patient is not None and not request.patient_column

    def _targets(self, table: Rows, target: str | None) -> tuple[str, ...]:
        if target is None:
            guess = columns.guess_target(
                {c: table[c] for c in table}, self.taken | {c for c in table if _is_key(table[c])}
            )
            return () if guess is None else (guess,)
        if target in table or "," not in target:
            return (columns.named(table, target, "target"),)
        return tuple(columns.named(table, part.strip(), "target") for part in target.split(",") if part.strip())

    def truths(self, table: Rows) -> tuple[LabelScheme | None, list[ClassScores | None]]:
        """The scheme, and the truth of each row."""
        if not self.targets:
            return None, [None] * len(next(iter(table.values())))
        if len(self.targets) == 1:
            scheme, truths = scheme_of(table[self.targets[0]], self.targets[0], self.kind)
        else:
            scheme, truths = scheme_of_columns({c: table[c] for c in self.targets}, ",".join(self.targets))
        return scheme, list(truths)

    def notes(self) -> list[str]:
        """What was guessed, in words."""
        if self.patient is None:
            return ["no column of patients was found: each case counts as a patient of its own"]
        return [f"cases of one patient by column '{self.patient}'" + (" (guessed)" if self.guessed_patient else "")]


def find_roles(table: Rows, request: Request, taken: set[str]) -> Roles:
    """What each column is for, those in `taken` being identifiers."""
    return Roles(table, request, taken)


def make_row_case(
    name: str,
    image: ImageSource,
    table: Rows,
    row: int,
    roles: Roles,
    truths: Sequence[ClassScores | None],
    *,
    source: str,
    patient: str | None = None,
) -> Case:
    """The case of one row."""
    cell = table[roles.patient][row].strip() if roles.patient else ""
    return Case(
        id=name,
        patient=patient_key(cell) if cell else patient or name,
        images={"image": image},
        table={c: _value(table[c][row], c in roles.numbers) for c in roles.clinical},
        text=table[roles.text][row] if roles.text else "",
        truth=truths[row],
        split=_split(table[roles.split][row], name) if roles.split else None,
        source=source,
    )


def _split(cell: str, case: str) -> str | None:
    text = cell.strip().lower()
    if text and text not in SPLIT_NAMES:
        raise DataError(f"case {case}: unknown split '{text[:20]}'; expected train, val or test")
    return SPLIT_NAMES[text] if text else None


def read_table(path: Path) -> Rows:
    """A table as columns of text, empty where nothing stands.

    Raises
    ------
    ReadError
        If the file is damaged, has no header or no rows.
    """
    check_file(path)
    with as_read_error("table"):
        rows = _parquet(path) if path.suffix.lower() == ".parquet" else _delimited(path)
    if not rows or not next(iter(rows.values())):
        raise ReadError(f"the table '{path.name}' has no rows below its header")
    return rows


def _parquet(path: Path) -> Rows:
    import pyarrow.parquet as pq

    columns_ = pq.read_table(path).to_pydict()
    return {str(name): [_text(v) for v in values] for name, values in columns_.items()}


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)


def _delimited(path: Path) -> Rows:
    raw = path.read_bytes()
    if b"\0" in raw[:4096] and raw[:2] not in {b"\xff\xfe", b"\xfe\xff"}:
        raise ReadError("table: holds binary data, not text. Expected CSV, TSV or Parquet.")
    text = _decoded(raw)
    header = text.split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=header.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        names = [name.strip() for name in next(lines)]
        body = [line for line in lines if any(cell.strip() for cell in line)]
    except csv.Error as error:
        raise ReadError(f"table: {error}") from error
    twice = [name for name, n in Counter(names).items() if n > 1 and name]
    if twice:
        raise ReadError(f"table: the column '{twice[0]}' occurs twice; rename one")
    for number, line in enumerate(body, start=2):
        if len(line) > len(names) and any(cell.strip() for cell in line[len(names) :]):
            raise ReadError(
                f"table: row {number} has {len(line)} cells, the header {len(names)}: a delimiter without quotes?"
            )
    return {
        name or f"column {n + 1}": [line[n] if n < len(line) else "" for line in body] for n, name in enumerate(names)
    }


def _decoded(raw: bytes) -> str:
    if raw[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return raw.decode("utf-16")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("gb18030" if _is_gb(raw) else "latin-1")


def _is_gb(raw: bytes) -> bool:
    try:
        return any("\u4e00" <= c <= "\u9fff" for c in raw.decode("gb18030"))
    except UnicodeDecodeError:
        return False


class ImageIndex:
    """Where the images below some folders lie, by path, name, stem and folder."""

    def __init__(self, root: Path, beside: Path) -> None:
        self.roots = list(dict.fromkeys((root, beside)))
        self.files = image_files(root)
        self.names: dict[str, list[Path]] = defaultdict(list)
        self.folders: dict[str, list[Path]] = defaultdict(list)
        self._groups: dict[Path, tuple[Path, ...]] = {}
        for file in self.files:
            below = file.relative_to(root)
            for name in dict.fromkeys(
                (below.as_posix(), file.name, stem(file), below.with_name(stem(file)).as_posix())
            ):
                self.names[_same(name)].append(file)
            for parent in below.parents[:-1]:
                for name in dict.fromkeys((parent.as_posix(), parent.name)):
                    self.folders[_same(name)].append(file)

    def find(self, cell: str) -> tuple[Path, ...]:
        """The files that a cell names; empty where there are none, or it is not clear which."""
        name = cell.strip().replace("\\", "/").removeprefix("./").rstrip("/")
        if not name:
            return ()
        files = self.names.get(_same(name), [])
        if len(files) == 1:
            return (files[0],)
        if not files and _same(name) in self.folders:
            return self._one_image(self.folders[_same(name)])
        for root in self.roots:
            try:
                path = root / name
                if path.is_file() and is_image(path):
                    return (path,)
            except (OSError, ValueError):  # too long, or with a NUL
                return ()
        return ()

    def _one_image(self, files: list[Path]) -> tuple[Path, ...]:
        if len(files) == 1:
            return (files[0],)
        first = files[0]
        if first not in self._groups:
            groups = group(files)
            self._groups[first] = groups[0].files if len(groups) == 1 else ()
        return self._groups[first]


def _same(name: str) -> str:
    """A name as it compares: accents in one code point (files from a Mac have two), the suffix in lower case."""
    name = unicodedata.normalize("NFC", name)
    head, dot, suffix = name.rpartition(".")
    return f"{head}.{suffix.lower()}" if dot and f".{suffix.lower()}" in READERS else name


def _places(request: Request) -> tuple[Path, Path]:
    """The table, and the folder of the images."""
    if request.labels is None:
        raise DataError(f"'{Path(request.source).name}' needs a table of labels: give it with labels=...")
    source = Path(request.source)
    return request.labels, source if source.is_dir() else source.parent


def _image_column(table: Rows, places: ImageIndex, request: Request) -> str:
    given = request.path_column or request.id_column
    if given:
        return columns.named(table, given, "images")
    best, most = "", 0
    for name, cells in table.items():
        sample = [cell for cell in cells if cell.strip()][:_SAMPLE]
        fits = {files for files in map(places.find, sample) if files}
        if len(fits) > most:
            best, most = name, len(fits)
    if not best:
        hints = [
            c
            for c in table
            if columns.key(c) in {"path", "file", "filename", "image", "imageid", "id", "filepath", "imagepath"}
        ]
        if hints:
            return hints[0]
        raise DataError(
            f"no column of the table names images below '{places.roots[0].name}' "
            f"({len(places.files)} images there; columns: {', '.join(list(table)[:20])}). "
            "Give it with path_column=... or id_column=..."
        )
    return best


def _names(cells: list[str], hide: bool) -> list[str]:
    """A case's name for each row: what names its image, without folder marks; numbered where that is a patient."""
    if hide:
        return [f"case-{n:04d}" for n in range(1, len(cells) + 1)]
    plain = []
    for cell in cells:
        path = Path(cell.strip().replace("\\", "/") or "unnamed")
        plain.append(path.with_name(stem(path)).as_posix().lstrip("/"))
    total, seen = Counter(plain), Counter[str]()
    names = []
    for name in plain:
        seen[name] += 1
        names.append(name if total[name] == 1 else f"{name}#{seen[name]}")
    return names


def _patient_in(file: Path) -> str | None:
    """The patient that a DICOM file names; ``None`` for other files."""
    try:
        instance = index_file(file) if reader_of(file) is read_dicom else None
    except SagittalError:
        return None
    return patient_key(instance.patient) if instance and instance.patient else None


def _source(name: str, files: tuple[Path, ...]) -> ImageSource:
    return file_source(name, files[0]) if len(files) == 1 else series_source(name, files)


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _is_key(cells: list[str]) -> bool:
    """Whether a column of text names each row differently, as a second identifier does."""
    filled = [cell for cell in cells if cell.strip()]
    return len(filled) > 20 and len(set(filled)) == len(filled) and not _is_numeric(cells)


def _is_numeric(cells: list[str]) -> bool:
    filled = [c for c in (cell.strip() for cell in cells) if c.lower() not in UNKNOWN]
    return bool(filled) and all(_number(c) is not None for c in filled)


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _value(cell: str, numeric: bool) -> Any:
    text = cell.strip()
    if numeric:
        return _number(text)
    return None if text.lower() in UNKNOWN - {"-1"} else text
