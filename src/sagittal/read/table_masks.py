"""Masks in the columns of a table: label maps, one mask a structure or a lesion, and crops placed by other columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sagittal.errors import DataError, SagittalError
from sagittal.labels import LabelScheme
from sagittal.read import columns
from sagittal.read.image_index import ImageIndex
from sagittal.read.mask_scheme import MaskScheme, files_of_structures, named_values, place_kind
from sagittal.read.pair_files import structure_of
from sagittal.read.request import Request
from sagittal.read.sources import make_mask_source
from sagittal.read.table_boxes import find_box_columns
from sagittal.read.table_file import Rows
from sagittal.read.truths import clean, is_lateral, sort_classes
from sagittal.truth import SegmentationSource

_MASKS = (
    "mask", "maskpath", "maskfile", "segmentation", "segmentationpath", "seg", "segpath", "labelmap", "labelpath",
    "roimaskfilepath",
)  # fmt: skip
#: Where the first voxel of a mask of a part lies in the image; in volumes with a third column.
_CORNERS = (
    ("xoffset", "yoffset", "zoffset"), ("offsetx", "offsety", "offsetz"), ("cropx", "cropy", "cropz"),
    ("cropleft", "croptop", "cropslice"), ("left", "top", "slice"), ("x", "y", "z"),
)  # fmt: skip
#: Which structures were looked for in a case.
_OUTLINED = ("structures", "outlined", "annotated", "annotatedstructures", "labelledstructures", "labeledstructures")
_SAMPLE = 50


@dataclass(frozen=True)
class MaskColumns:
    """Which columns of a table are masks, and how they are meant.

    Attributes
    ----------
    masks : dict of str to str
        Column -> the structure that its masks outline; empty where the masks, or another column, say which.
    corner : tuple of str
        Columns of the place of each mask in its image; empty where masks are of the image's size.
    outlined : str or None
        Column of the structures that were looked for.
    names : str or None
        Column of what the mask of each row outlines.
    """

    masks: Mapping[str, str]
    corner: tuple[str, ...] = ()
    outlined: str | None = None
    names: str | None = None

    def __bool__(self) -> bool:
        return bool(self.masks)

    @property
    def taken(self) -> set[str]:
        """All columns that have a part in it."""
        return {*self.masks, *self.corner, *(c for c in (self.outlined, self.names) if c)}


def find_mask_columns(table: Rows, places: ImageIndex, request: Request) -> MaskColumns:
    """The columns of masks; none where the question is another.

    Raises
    ------
    DataError
        If a named column does not exist, or it is not clear whether masks or labels are the question.
    """
    masks = _masks(table, places, request)
    if not masks:
        return MaskColumns({})
    keys = {columns.key(name): name for name in reversed(list(table))}
    corner: tuple[str, ...] = ()
    if not any(key in keys for key in ("width", "w", "xmax", "x2")):  # those are columns of boxes
        for x, y, z in _CORNERS:
            if x in keys and y in keys:
                corner = (keys[x], keys[y], *((keys[z],) if z in keys else ()))
                break
    alone = len(masks) == 1
    named = request.target if alone and request.target in table else None
    outlined = next((keys[key] for key in _OUTLINED if key in keys), None) if alone and named is None else None
    return MaskColumns(masks, corner, outlined, named)


def _masks(table: Rows, places: ImageIndex, request: Request) -> dict[str, str]:
    given = request.mask_column
    asked = request.kind in {"structures", "objects"}
    if given:
        if request.kind is not None and not asked:
            raise DataError(f"masks hold structures, not '{request.kind}': leave --kind or --mask-column out")
        parts = [given] if given in table else [part.strip() for part in given.split(",") if part.strip()]
        names = [columns.named(table, part, "masks") for part in parts]
        return {names[0]: ""} if len(names) == 1 else {name: structure_of(name) or name for name in names}
    if request.kind == "objects" and find_box_columns(table) is not None:
        return {}
    found = [name for name in table if columns.key(name) in _MASKS and _are_files(table[name], places)]
    several = _of_structures(table, places)
    if len(several) > 1 and not found:
        found = list(several)
    if request.kind == "structures" and not found:
        raise DataError(
            f"no column of the table names masks ({', '.join(list(table)[:20])}). Name it with --mask-column"
        )
    if asked and found:
        return several if found == list(several) else {found[0]: ""}
    by_value = request.target is None or named_values(request.target) is not None
    if not found or request.kind is not None or not by_value:
        return {}
    labels = [name for name in table if columns.key(name) in columns.TARGET]
    if labels and request.target is None:
        raise DataError(
            f"the table holds masks ('{found[0]}') and labels ('{labels[0]}'). Say which is the question: --kind "
            f"structures, or --target {labels[0]}"
        )
    return several if found == list(several) else {found[0]: ""}


def _of_structures(table: Rows, places: ImageIndex) -> dict[str, str]:
    """Columns such as ``liver_mask`` and ``mask_tumour`` that name files, with what they outline."""
    found = {}
    for name in table:
        words = re.split(r"[_\-. ]+", name.lower())
        structure = structure_of(name)
        if {"mask", "seg", "segmentation"} & {words[0], words[-1]} and structure and _are_files(table[name], places):
            found[name] = structure
    return found


def masks_of_rows(
    table: Rows,
    entries: Sequence[tuple[str, Sequence[int], Sequence[Path]]],
    found: MaskColumns,
    places: ImageIndex,
    request: Request,
) -> tuple[LabelScheme, list[SegmentationSource | str | None], set[Path], list[str]]:
    """The scheme; for each entry its masks, ``None`` where it has none, or why they cannot be used; files; notes.

    Parameters
    ----------
    table : Rows
    entries : sequence of (str, rows, files)
        Each case by name, with its rows, of which several masks are joined, and the files of its first image.
    found : MaskColumns
        As :func:`find_mask_columns` gives it.
    places : ImageIndex
    request : Request
        Its target may name values, ``liver=1,tumour=2``, the one structure, or a column that says it for each row.

    Raises
    ------
    DataError
        If none of the masks is there.
    """
    chosen = [_chosen(table, rows, found, places) for _, rows, _ in entries]
    used = {one.file for mine in chosen if not isinstance(mine, str) for one in mine}
    if not used:
        raise DataError(f"none of the masks that column '{next(iter(found.masks))}' names was found")
    kind = place_kind(request.kind)
    notes = []
    if found.corner:
        notes.append(
            f"masks of parts of the image placed by the columns {', '.join(found.corner)}: their first pixel, counted from 0"
        )
    if len(found.masks) > 1 or found.names:
        names = (
            list(dict.fromkeys(found.masks.values()))
            if found.names is None
            else sort_classes({one.name for mine in chosen if not isinstance(mine, str) for one in mine})
        )
        scheme = LabelScheme(kind, tuple(names), "mask", lateral=is_lateral(names))
        made = [_each(name, mine, found, files) for (name, _, files), mine in zip(entries, chosen, strict=True)]
        how = f"named by column '{found.names}'" if found.names else "one structure each; an empty cell is unknown"
        return scheme, made, used, [f"masks by the columns {', '.join(found.masks)}, {how}", *notes]
    named, target = named_values(request.target), request.target
    files_of = [[] if isinstance(mine, str) else [one.file for one in mine] for mine in chosen]
    structure = [target] if target and named is None else []
    read = MaskScheme([files for files in files_of if files], named, *structure, kind=kind)
    truths: list[SegmentationSource | str | None] = []
    for (name, rows, files), mine in zip(entries, chosen, strict=True):
        if isinstance(mine, str) or not mine:
            truths.append(mine if isinstance(mine, str) else None)
            continue
        try:
            outlined = None if found.outlined is None else _outlined(table[found.outlined], rows, read.scheme.classes)
            truths.append(
                read.source(name, [one.file for one in mine], outlined=outlined)
                if not found.corner
                else _placed(name, mine, files, read)
            )
        except SagittalError as error:
            truths.append(str(error))
    if found.outlined:
        notes.append(f"structures that were looked for by column '{found.outlined}'; others are unknown")
    return read.scheme, truths, used, [f"masks by column '{next(iter(found.masks))}'", *read.notes(), *notes]


@dataclass(frozen=True)
class _Mask:
    name: str
    file: Path
    at: tuple[int, ...] = ()


def _chosen(table: Rows, rows: Sequence[int], found: MaskColumns, places: ImageIndex) -> list[_Mask] | str:
    """The masks of the rows of one image, or why they cannot be used."""
    mine: list[_Mask] = []
    reason = ""
    for row in rows:
        for column, structure in found.masks.items():
            cell = table[column][row].strip()
            files = places.find(cell)
            if not cell:
                continue
            if len(files) != 1 or not files[0].stat().st_size:
                reason = "the table names a mask that " + ("is empty (0 bytes)" if files else "was not found")
                continue
            name = structure if found.names is None else clean(table[found.names][row])
            if name is None:
                reason = f"row {row + 2} of the table: a mask without a name in column '{found.names}'"
                continue
            at: tuple[int, ...] = ()
            if found.corner:
                try:
                    at = tuple(_whole(table[c][row]) for c in found.corner)
                except ValueError:
                    reason = (
                        f"row {row + 2} of the table: the place of its mask is not {len(found.corner)} whole numbers"
                    )
                    continue
            mine.append(_Mask(name, files[0], at))
    return reason or mine


def _whole(cell: str) -> int:
    value = float(cell)
    if value != round(value):
        raise ValueError
    return round(value)


def _each(
    name: str, mine: list[_Mask] | str, found: MaskColumns, image: Sequence[Path]
) -> SegmentationSource | str | None:
    """One file for each structure; a structure without a file is unknown in this case."""
    if isinstance(mine, str):
        return mine
    if not mine:
        return None
    if not found.corner:
        return files_of_structures(name, [(one.name, one.file) for one in mine])
    return _crops(name, mine, image, {})


def _placed(name: str, mine: list[_Mask], image: Sequence[Path], read: MaskScheme) -> SegmentationSource:
    if read.named is None:
        mine = [_Mask(read.structure, one.file, one.at) for one in mine]
        return _crops(name, mine, image, {} if read.ignore is None else {"ignore": read.ignore})
    return _crops(name, mine, image, read.options(name, 1))


def _crops(name: str, mine: list[_Mask], image: Sequence[Path], options: Mapping[str, object]) -> SegmentationSource:
    if len(image) != 1:
        raise DataError(f"case {name}: parts of masks are placed on an image in one file, not on {len(image)}")
    given: object = options.get("structures")
    structures = list(given) if isinstance(given, dict) else list(dict.fromkeys(one.name for one in mine))
    crops = [{"name": one.name, "at": list(one.at)} for one in mine]
    files = [*(one.file for one in mine), *image]
    return make_mask_source(name, "crops", files, {"crops": crops, **options}, structures=structures)


def _outlined(cells: Sequence[str], rows: Sequence[int], classes: Sequence[str]) -> list[str] | None:
    """The structures that were looked for; all where the cells are empty.

    Raises
    ------
    DataError
        If a cell names something else.
    """
    given = [part.strip() for row in rows for part in re.split(r"[|;,+]", cells[row]) if part.strip()]
    if not given:
        return None
    known = {name.lower(): name for name in classes}
    strange = [name for name in given if name.lower() not in known]
    if strange:
        raise DataError(f"the table says that '{strange[0]}' was outlined, which no mask holds: {', '.join(classes)}")
    return [known[name.lower()] for name in given]


def _are_files(cells: Sequence[str], places: ImageIndex) -> bool:
    sample = [cell for cell in cells if cell.strip()][:_SAMPLE]
    return bool(sample) and any(places.find(cell) for cell in sample)
