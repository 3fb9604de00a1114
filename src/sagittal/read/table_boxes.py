"""Boxes in the rows of a table: corners, corner and size, or a centre in mm with a radius."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sagittal.errors import DataError
from sagittal.labels import LabelScheme
from sagittal.read import columns
from sagittal.read.table_file import Rows
from sagittal.read.truths import clean, is_lateral, sort_classes
from sagittal.truth import Boxes

#: What a box without a class encloses.
OBJECT = "object"
_CLASSES = (*columns.TARGET, "classname", "labelname", "objectclass", "name")
_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("x0", "y0", "x1", "y1"))
_DEPTHS = (("zmin", "zmax"), ("z1", "z2"), ("z0", "z1"))
_STARTS = (("x", "y"), ("xmin", "ymin"), ("left", "top"), ("bboxx", "bboxy"))
_SIZES = (("width", "height"), ("w", "h"), ("bboxwidth", "bboxheight"), ("bboxw", "bboxh"))
_CENTRES = (
    ("coordx", "coordy", "coordz"), ("worldx", "worldy", "worldz"), ("centerx", "centery", "centerz"),
    ("centrex", "centrey", "centrez"), ("x", "y", "z"),
    ("xmm", "ymm", "zmm"),
)  # fmt: skip
#: A cell without a number; -1 is a place like any other.
_EMPTY = frozenset({"", "nan", "na", "n/a", "none", "null", "#n/a", "<na>"})
_LENGTHS = {"diametermm": 0.5, "radiusmm": 1.0}


@dataclass(frozen=True)
class BoxColumns:
    """Which columns of a table are boxes, and how they are meant."""

    kind: Literal["corners", "size", "sphere"]
    names: tuple[str, ...]
    scale: float = 1.0

    @property
    def frame(self) -> Literal["voxel", "mm"]:
        """Whether the numbers count voxels or millimetres in the patient."""
        return "mm" if self.kind == "sphere" else "voxel"

    def note(self) -> str:
        """The convention, in words."""
        how = {
            "corners": "first and last pixel, counted from 0",
            "size": "left upper corner and size in pixels, as in COCO",
            "sphere": "centre in LPS+ mm and " + ("diameter" if self.scale == 0.5 else "radius"),
        }[self.kind]
        return f"boxes by the columns {', '.join(self.names)}: {how}"

    def box(self, cells: Sequence[str], row: int) -> list[list[float]] | None:
        """The corners that a row gives; ``None`` where all its cells are empty.

        Raises
        ------
        DataError
            If a cell is no number, or some are empty.
        """
        known = [cell.strip() for cell in cells if cell.strip().lower() not in _EMPTY]
        if not known:
            return None
        try:
            values = [float(cell) for cell in known]
        except ValueError:
            values = []
        if len(values) != len(cells) or not np.all(np.isfinite(values)):
            raise DataError(f"row {row} of the table: its box is not {len(cells)} numbers")
        if self.kind == "sphere":
            *centre, length = values
            return [[c - length * self.scale for c in centre], [c + length * self.scale for c in centre]]
        half = len(values) // 2
        low, high = values[:half], values[half:]
        if self.kind == "size":
            high = [a + b - 1 for a, b in zip(low, high, strict=True)]
        low, high = [v - 0.5 for v in low], [v + 0.5 for v in high]
        return [low, high] if half == 3 else [[*low, -0.5], [*high, 0.5]]


def find_box_columns(table: Rows) -> BoxColumns | None:
    """The columns of a table that are boxes, by their names; ``None`` where there are none."""
    keys = {columns.key(name): name for name in reversed(list(table))}

    def has(*wanted: str) -> bool:
        return all(name in keys for name in wanted)

    for length, scale in _LENGTHS.items():
        for centre in _CENTRES:
            if has(*centre, length):
                return BoxColumns("sphere", tuple(keys[name] for name in (*centre, length)), scale)
    for x0, y0, x1, y1 in _CORNERS:
        if has(x0, y0, x1, y1):
            deep = next(((z0, z1) for z0, z1 in _DEPTHS if has(z0, z1)), None)
            wanted = (x0, y0, x1, y1) if deep is None else (x0, y0, deep[0], x1, y1, deep[1])
            return BoxColumns("corners", tuple(keys[name] for name in wanted))
    for start in _STARTS:
        for size in _SIZES:
            if has(*start, *size):
                deep3 = has("z", "depth") and start == ("x", "y")
                wanted3 = (*start, "z", *size, "depth") if deep3 else (*start, *size)
                return BoxColumns("size", tuple(keys[name] for name in wanted3))
    return None


def guess_class(table: Rows, taken: Collection[str]) -> str | None:
    """The column of the classes of boxes; ``None`` where no column is called so.

    Raises
    ------
    DataError
        If several might be meant.
    """
    found = [name for name in table if name not in taken and columns.key(name) in _CLASSES]
    if len(found) > 1:
        raise DataError(f"which column holds the class of a box? Name it with --target, one of: {', '.join(found)}")
    return found[0] if found else None


#: What becomes of images that no row of a table of boxes names.
UNLISTED = ("skip", "empty")


def unlisted_note(count: int, unlisted: str | None) -> list[str]:
    """What became of images that no row of a table of boxes names, in words; nothing where there are none.

    >>> unlisted_note(0, None), unlisted_note(2, "empty")
    ([], ['2 images that no row names hold no object (as asked for)'])
    """
    if not count:
        return []
    if unlisted == "empty":
        return [f"{count:,} images that no row names hold no object (as asked for)"]
    return [
        f"{count:,} images that no row names are left out, as nothing says that they were looked at; if they were, and hold "
        "no object: --unlisted empty, or give a table of all images as the source and this one as --labels"
    ]


def boxes_of_rows(
    table: Rows, groups: Sequence[Sequence[int]], boxes: BoxColumns, target: str | None
) -> tuple[LabelScheme, list[Boxes | str]]:
    """The scheme of the classes, and for each group of rows its boxes, or why they cannot be used.

    A row whose box is empty says that nothing was found.

    A group without rows is an image in which nothing was found.

    Raises
    ------
    DataError
        If there is no box at all.
    """
    found: list[list[tuple[list[list[float]], str]] | str] = []
    for rows in groups:
        mine: list[tuple[list[list[float]], str]] = []
        try:
            for row in rows:
                box = boxes.box([table[name][row] for name in boxes.names], row + 2)
                name = OBJECT if target is None else clean(table[target][row])
                if box is not None and name is None:
                    raise DataError(f"row {row + 2} of the table: a box without a class in column '{target}'")
                if box is not None and name is not None:
                    mine.append((box, name))
            found.append(mine)
        except DataError as error:
            found.append(str(error))
    names = sort_classes({name for mine in found if not isinstance(mine, str) for _, name in mine})
    if not names:
        raise DataError(f"no row holds a box (columns {', '.join(boxes.names)})")
    scheme = LabelScheme("objects", tuple(names), target or OBJECT, lateral=is_lateral(names))
    number = {name: n for n, name in enumerate(names)}
    return scheme, [
        mine
        if isinstance(mine, str)
        else Boxes(
            np.array([box for box, _ in mine], dtype=np.float64),
            np.array([number[name] for _, name in mine], dtype=np.int64),
            frame=boxes.frame,
        )
        for mine in found
    ]
