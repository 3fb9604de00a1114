"""A table with a row for each image, or for each object in one: paths, labels, masks, boxes, clinical columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sagittal.case import Case, ImageSource, Truth
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import DataError, SagittalError
from sagittal.formats.dicom import read_dicom
from sagittal.formats.open_image import reader_of, stem
from sagittal.labels import LabelScheme
from sagittal.read import columns
from sagittal.read.files import TABLES, index_file
from sagittal.read.image_index import ImageIndex
from sagittal.read.request import Request
from sagittal.read.sources import file_source, patient_key, series_source
from sagittal.read.studies import unique
from sagittal.read.table_boxes import BoxColumns, boxes_of_rows, find_box_columns, guess_class, unlisted_note
from sagittal.read.table_file import Rows, read_table
from sagittal.read.table_join import join_tables
from sagittal.read.table_masks import MaskColumns, find_mask_columns, masks_of_rows
from sagittal.read.table_roles import Roles, find_roles, make_row_case
from sagittal.truth import Boxes

#: Cells that are looked at to find out which column names the images.
_SAMPLE = 400


def open_table(request: Request) -> Dataset:
    """Cases of a table's rows whose images are found on disk.

    The column of images holds paths (absolute, below the table's folder or below the data set's folder), file names
    with or without suffix, or names of folders with one image or DICOM series each; it is found by trying. Several
    columns, named with commas between them, give several images a case. The truth stands in columns of labels, in a
    column with paths of masks, or in columns of boxes, where the rows of one image are one case. Rows without image and
    images without row are reported as skipped.

    Raises
    ------
    DataError
        If no column names images, all are missing, a named column does not exist, or there are no labels.
    ReadError
        If the table cannot be read.
    """
    path, root = _places(request)
    table = read_table(path, sheet=request.sheet)
    places = ImageIndex(root, path.parent)
    table, joined = _with_images(table, places, request)
    masks = find_mask_columns(table, places, request)
    named = _image_columns(table, places, request, set(masks.masks))
    boxes = _box_columns(table, request, masks)
    with_place = bool(masks) or boxes is not None
    taken = {*named, _called_by(table, request, named), *masks.taken, *(boxes.names if boxes else ())}
    if boxes is not None and request.target is None:
        request = replace(request, target=guess_class(table, taken))
    roles = find_roles(
        table, request, taken, labels=not with_place or (boxes is not None and request.target is not None)
    )
    called = _called_by(table, request, named)
    entries, skipped = _entries(table, named, places, called, hide=roles.patient == called, grouped=with_place)
    if not entries:
        raise DataError(
            f"none of the {len(table[named[0]])} images that column '{named[0]}' names was found below '{root.name}'. "
            "Give the folder of the images, or the right column with id_column=... or path_column=..."
        )
    used = {file for entry in entries for files in entry.files for file in files}
    truths: Sequence[Truth | str | None]
    scheme: LabelScheme | None
    notes = [f"images by column {' and '.join(repr(name) for name in named)}"]
    if masks:
        scheme, truths, outlines, told = masks_of_rows(
            table, [(e.name, e.rows, e.files[0]) for e in entries], masks, places, request
        )
        used |= outlines
        notes += told
    elif boxes is not None:
        if len(roles.targets) > 1:
            raise DataError(f"objects have one column of classes, not {', '.join(roles.targets)}")
        scheme, truths = boxes_of_rows(table, [e.rows for e in entries], boxes, next(iter(roles.targets), None))
        notes.append(boxes.note())
    else:
        scheme, of_rows = roles.truths(table)
        truths = [of_rows[entry.rows[0]] for entry in entries]
    loose = [file for file in places.files if file not in used]
    empty = boxes is not None and request.unlisted == "empty"
    if not empty:
        skipped += [Skipped(_below(file, root), "an image without a row in the table", "no-truth") for file in loose]
    notes += [*joined, *(unlisted_note(len(loose), request.unlisted) if boxes is not None else [])]
    cases = []
    for entry, truth in zip(entries, truths, strict=True):
        case = truth if isinstance(truth, str) else _entry_case(entry, table, roles, truth, named, root)
        if isinstance(case, str):
            skipped.append(Skipped(entry.name, case, "unreadable"))
        else:
            cases.append(case)
    if empty:
        cases += [_unlisted(file, roles, root) for file in loose]
    return Dataset(
        root.resolve().name,
        tuple(unique(cases)),
        scheme,
        columns=roles.clinical,
        skipped=tuple(skipped),
        layout="table",
        notes=(*notes, *_other_images(table, named, masks, places, request), *roles.notes()),
    )


def open_images(path: Path, images: Sequence[str] = ()) -> Dataset:
    """The cases of a table without truth, for prediction: each image once, with every other column as its table.

    Parameters
    ----------
    path : Path
    images : sequence of str
        What the images of a case are called; columns of these names hold them where there are such columns.

    Raises
    ------
    DataError
        If no column names images, or none of them is there.
    ReadError
        If the table cannot be read.
    """
    table = read_table(path)
    places = ImageIndex(path.parent, path.parent)
    columns_of = {columns.key(name): name for name in table}
    chosen = [columns_of[columns.key(name)] for name in images if columns.key(name) in columns_of]
    request = Request(str(path.parent), labels=path)
    named = chosen if images and len(chosen) == len(images) else _image_columns(table, places, request, set())
    roles = find_roles(table, request, set(named), labels=False)
    entries, skipped = _entries(table, named, places, named[0], hide=roles.patient in named, grouped=True)
    renamed = list(images) if named == chosen else named
    cases = []
    for entry in entries:
        case = _entry_case(entry, table, roles, None, renamed, path.parent)
        if isinstance(case, str):
            skipped.append(Skipped(entry.name, case, "unreadable"))
        else:
            cases.append(replace(case, split=None))
    return Dataset(path.stem, tuple(cases), columns=roles.clinical, skipped=tuple(skipped), layout="table")


@dataclass(frozen=True)
class _Entry:
    """The rows of one case, its name, and the files of each of its images."""

    rows: tuple[int, ...]
    name: str
    files: tuple[tuple[Path, ...], ...]


def _entries(
    table: Rows, named: Sequence[str], places: ImageIndex, called: str, *, hide: bool, grouped: bool
) -> tuple[list[_Entry], list[Skipped]]:
    """Rows with the files that they name, called by a column; rows of the same files together where that is meant."""
    cells = table[named[0]]
    skipped: list[Skipped] = []
    of_files: dict[object, list[int]] = {}
    files_of: dict[int, tuple[tuple[Path, ...], ...]] = {}
    found: dict[str, tuple[Path, ...]] = {}
    for row in range(len(cells)):
        files = []
        for column in named:
            cell = table[column][row]
            if cell not in found:
                found[cell] = places.find(cell)
            files.append(found[cell])
        files_of[row] = tuple(files)
        key: object = files_of[row] if grouped and all(files) else cells[row] if grouped else row
        of_files.setdefault(key, []).append(row)
    groups = list(of_files.values())
    names = _names([table[called][rows[0]] or cells[rows[0]] for rows in groups], hide)
    entries = []
    for rows, name in zip(groups, names, strict=True):
        files_here = files_of[rows[0]]
        missing = [column for column, files in zip(named, files_here, strict=True) if not files]
        if missing and len(named) > 1:
            skipped.append(
                Skipped(name, f"the image of column {', '.join(map(repr, missing))} was not found", "incomplete")
            )
        elif missing:
            skipped.append(Skipped(name, "the table names an image that was not found", "no-image"))
        elif any(all(file.stat().st_size == 0 for file in files) for files in files_here):
            skipped.append(Skipped(name, "the file is empty (0 bytes)", "empty-file"))
        else:
            entries.append(_Entry(tuple(rows), name, files_here))
    return entries, skipped


def _entry_case(
    entry: _Entry, table: Rows, roles: Roles, truth: Truth | None, named: Sequence[str], root: Path
) -> Case | str:
    """The case of an entry, or why it cannot be one."""
    for role, what in ((roles.patient, "patients"), (roles.split, "splits")):
        if role and len({table[role][row].strip() for row in entry.rows}) > 1:
            return f"the rows of one image name different {what}"
    names = ["image"] if len(named) == 1 else list(named)
    images = {key: _source(entry.name, files) for key, files in zip(names, entry.files, strict=True)}
    first = entry.files[0][0]
    made = make_row_case(
        entry.name,
        images,
        table,
        entry.rows[0],
        roles,
        {entry.rows[0]: truth},
        source=_below(first, root),
        patient=_patient_in(first),
    )
    if len(entry.rows) == 1:
        return made
    # What differs between the rows of one image belongs to its objects, not to the case.
    same = {c: v if len({table[c][row] for row in entry.rows}) == 1 else None for c, v in made.table.items()}
    return replace(made, table=same)


def _other_images(
    table: Rows, named: Sequence[str], masks: MaskColumns, places: ImageIndex, request: Request
) -> list[str]:
    """Columns that name other images and are not used, where the user named none."""
    if request.path_column or request.id_column:
        return []
    mine = {files for cell in table[named[0]][:_SAMPLE] if (files := places.find(cell))}
    others = []
    for column, cells in table.items():
        if column not in {*named, *masks.masks}:
            theirs = {files for cell in cells[:_SAMPLE] if "." in cell and (files := places.find(cell))}
            if len(theirs - mine) * 2 > len(mine):
                others.append(column)
    if not others:
        return []
    return [
        f"not used: the images of {', '.join(others)}; all together with --path-column {','.join([*named, *others])}"
    ]


def _with_images(table: Rows, places: ImageIndex, request: Request) -> tuple[Rows, list[str]]:
    """The table with a row for each image of a table of images, where the source is one."""
    source = Path(request.source)
    if source.suffix.lower() not in TABLES or request.labels is None or source.resolve() == request.labels.resolve():
        return table, []
    images = read_table(source)
    keys = [
        _image_columns(one, places, replace(request, path_column=None, id_column=None), set())[0]
        for one in (images, table)
    ]
    joined, added = join_tables(images, table, keys[0], keys[1], places)
    return joined, [
        f"{len(images[keys[0]]):,} images by column '{keys[0]}' of {source.name}, {added:,} of them without a row"
    ]


def _unlisted(file: Path, roles: Roles, root: Path) -> Case:
    """An image that no row names, in which nothing was found."""
    name = _below(file.with_name(stem(file)), root)
    none = Boxes(np.zeros((0, 2, 3)), np.zeros(0, int))
    patient = _patient_in(file) or name
    table = dict.fromkeys(roles.clinical)
    return Case(name, patient, {"image": file_source(name, file)}, table, truth=none, source=_below(file, root))


def _box_columns(table: Rows, request: Request, masks: MaskColumns) -> BoxColumns | None:
    if request.kind not in {None, "objects"} or masks:
        return None
    boxes = find_box_columns(table)
    if boxes is None and request.kind == "objects":
        raise DataError(
            f"the table has no columns of boxes ({', '.join(list(table)[:20])}). Expected xmin, ymin, xmax, ymax; or x, y, "
            "width, height; or coordX, coordY, coordZ and diameter_mm or radius_mm"
        )
    return boxes


def names_images(table: Rows, root: Path) -> bool:
    """Whether some column of a table names images below a folder."""
    places = ImageIndex(root, root)
    return any(places.find(cell) for cells in table.values() for cell in cells[:_SAMPLE])


def _places(request: Request) -> tuple[Path, Path]:
    """The table, and the folder of the images."""
    if request.labels is None:
        raise DataError(f"'{Path(request.source).name}' needs a table of labels: give it with labels=...")
    source = Path(request.source)
    return request.labels, source if source.is_dir() else source.parent


def _called_by(table: Rows, request: Request, named: Sequence[str]) -> str:
    """The column that cases are called by: that of the user's ids where another holds the paths, else that of the images."""
    if not (request.path_column and request.id_column):
        return named[0]
    return columns.named(table, request.id_column, "ids")


def _image_columns(table: Rows, places: ImageIndex, request: Request, masks: set[str]) -> list[str]:
    given = request.path_column or request.id_column
    if given and (given in table or "," not in given):
        return [columns.named(table, given, "images")]
    if given:
        names = [columns.named(table, part.strip(), "images") for part in given.split(",") if part.strip()]
        return list(dict.fromkeys(names))
    best, most = "", 0
    for name, cells in table.items():
        sample = [cell for cell in cells if cell.strip()][:_SAMPLE] if name not in masks else []
        fits = {files for files in map(places.find, sample) if files}
        if len(fits) > most:
            best, most = name, len(fits)
    if best:
        return [best]
    known = {"path", "file", "filename", "image", "imageid", "id", "filepath", "imagepath"}
    hints = [c for c in table if columns.key(c) in known]
    if hints:
        return hints[:1]
    raise DataError(
        f"no column of the table names images below '{places.roots[0].name}' "
        f"({len(places.files)} images there; columns: {', '.join(list(table)[:20])}). "
        "Give it with path_column=... or id_column=..."
    )


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
