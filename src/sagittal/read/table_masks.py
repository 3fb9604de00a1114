"""Masks in the columns of a table: paths of label maps, or of one mask for each structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sagittal.errors import DataError, SagittalError
from sagittal.labels import LabelScheme
from sagittal.read import columns
from sagittal.read.image_index import ImageIndex
from sagittal.read.mask_scheme import MaskScheme, named_values
from sagittal.read.sources import make_mask_source
from sagittal.read.table_file import Rows
from sagittal.read.truths import is_lateral
from sagittal.truth import SegmentationSource

if TYPE_CHECKING:
    from sagittal.read.open_dataset import Request

_MASKS = (
    "mask", "maskpath", "maskfile", "segmentation", "segmentationpath", "seg", "segpath", "labelmap", "labelpath",
    "roimaskfilepath",
)  # fmt: skip
_SAMPLE = 50


def find_mask_columns(table: Rows, places: ImageIndex, request: Request) -> dict[str, str]:
    """Column of masks -> name of the structure, or an empty name where its masks say which.

    Raises
    ------
    DataError
        If a named column does not exist, or it is not clear whether masks or labels are the question.
    """
    given = request.mask_column
    if given:
        if request.kind not in {None, "structures"}:
            raise DataError(f"masks hold structures, not '{request.kind}': leave --kind or --mask-column out")
        parts = [given] if given in table else [part.strip() for part in given.split(",") if part.strip()]
        names = [columns.named(table, part, "masks") for part in parts]
        return {names[0]: ""} if len(names) == 1 else {name: name for name in names}
    found = [name for name in table if columns.key(name) in _MASKS and _are_files(table[name], places)]
    if request.kind == "structures":
        if not found:
            raise DataError(
                f"no column of the table names masks ({', '.join(list(table)[:20])}). Name it with --mask-column"
            )
        return {found[0]: ""}
    if not found or request.kind is not None or (request.target is not None and named_values(request.target) is None):
        return {}
    labels = [name for name in table if columns.key(name) in columns.TARGET]
    if labels and request.target is None:
        raise DataError(
            f"the table holds masks ('{found[0]}') and labels ('{labels[0]}'). Say which is the question: --kind "
            f"structures, or --target {labels[0]}"
        )
    return {found[0]: ""}


def masks_of_rows(
    table: Rows,
    entries: Sequence[tuple[str, Sequence[int]]],
    masks: Mapping[str, str],
    places: ImageIndex,
    target: str | None,
) -> tuple[LabelScheme, list[SegmentationSource | str | None], set[Path], list[str]]:
    """The scheme; for each entry its masks, ``None`` where it has none, or why they cannot be used; files; notes.

    Parameters
    ----------
    table : Rows
    entries : sequence of (str, rows)
        Each case by name, with its rows: several masks of one image are joined.
    masks : mapping of str to str
        As :func:`find_mask_columns` gives it.
    places : ImageIndex
    target : str, optional
        Names of the values, ``liver=1,tumour=2``, or of the one structure.
    """
    chosen: list[list[tuple[str, Path]] | str] = []
    for _, rows in entries:
        mine: list[tuple[str, Path]] = []
        reason = ""
        for row in rows:
            for column, structure in masks.items():
                cell = table[column][row].strip()
                files = places.find(cell)
                if len(files) == 1 and files[0].stat().st_size:
                    mine.append((structure, files[0]))
                elif cell:
                    reason = "the table names a mask that " + ("is empty (0 bytes)" if files else "was not found")
        chosen.append(reason or mine)
    used = {file for mine in chosen if not isinstance(mine, str) for _, file in mine}
    if len(masks) > 1:
        scheme = LabelScheme("structures", tuple(masks.values()), "mask", lateral=is_lateral(masks.values()))
        made = [_each(name, mine) for (name, _), mine in zip(entries, chosen, strict=True)]
        return scheme, made, used, [f"masks by the columns {', '.join(masks)}, one structure each"]
    named = named_values(target)
    files_of = [[] if isinstance(mine, str) else [file for _, file in mine] for mine in chosen]
    if not any(files_of):
        raise DataError(f"none of the masks that column '{next(iter(masks))}' names was found")
    read = MaskScheme([files for files in files_of if files], named, *([target] if target and named is None else []))
    truths: list[SegmentationSource | str | None] = []
    for (name, _), given_or_why, paths in zip(entries, chosen, files_of, strict=True):
        if isinstance(given_or_why, str) or not paths:
            truths.append(given_or_why if isinstance(given_or_why, str) else None)
            continue
        try:
            truths.append(read.source(name, paths))
        except SagittalError as error:
            truths.append(str(error))
    return read.scheme, truths, used, [f"masks by column '{next(iter(masks))}'", *read.notes()]


def _each(name: str, mine: list[tuple[str, Path]] | str) -> SegmentationSource | str | None:
    """One file for each structure; a structure without a file is unknown in this case."""
    if isinstance(mine, str):
        return mine
    if not mine:
        return None
    structures = [structure for structure, _ in mine]
    return make_mask_source(
        name, "label_map", [f for _, f in mine], {"names": structures}, structures=list(dict.fromkeys(structures))
    )


def _are_files(cells: Sequence[str], places: ImageIndex) -> bool:
    sample = [cell for cell in cells if cell.strip()][:_SAMPLE]
    return bool(sample) and any(places.find(cell) for cell in sample)
