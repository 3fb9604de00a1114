"""Masks of slices to polygons along the sides of their pixels, holes joined to their outline by a keyhole.

Whoever asks which pixel centres lie inside gets the same mask back, and the area of the polygons is that of the pixels to
a thousandth of a voxel along their sides. That thousandth is left out on purpose: programs that round corners to whole
pixels before they fill then round to the pixels of the mask, and parts that touch at a corner stay apart.
"""

from __future__ import annotations

import numpy as np

from sagittal.types import Bools, Floats

#: How far inside the pixels' sides the polygons run, voxels.
INSET = 0.001
#: Directions of sides: +i, +j, -i, -j; the mask lies to the left of each.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
#: Where along a side a keyhole leaves it, from its start: not at the middle, which is in line with pixel centres.
_KEYHOLE = 0.75

Corner = tuple[int, int]
Side = tuple[Corner, int]


def outline(mask: Bools) -> list[Floats]:
    """Closed polygons around a mask of one slice, one for each part.

    Parts that touch only at a corner are parts of their own. A hole is joined to the outline by a line to and fro
    (PS3.3 C.8.8.6.3), so that each polygon stands alone.

    Parameters
    ----------
    mask : (I, J) bool

    Returns
    -------
    list of (N, 2) float64
        Corners in voxel indices, centres at whole numbers; the last joins the first.

    Examples
    --------
    >>> (square,) = outline(np.array([[0, 0, 0], [0, 1, 0], [0, 1, 0]], dtype=bool))
    >>> np.round(square, 2).tolist()
    [[0.5, 0.5], [2.5, 0.5], [2.5, 1.5], [0.5, 1.5]]
    """
    loops = _loops(mask)
    if not loops:
        return []
    outer = [loop for loop in loops if _area(loop) > 0]
    doors: dict[Side, list[Side]] = {}
    for loop in loops:
        if _area(loop) < 0:
            # A hole begins at its side of lowest j; from there the mask reaches down to an outline or another hole.
            first = min((n for n, (_, way) in enumerate(loop) if way == 2), key=lambda n: loop[n][0][1])
            (i, j), _ = loop[first]
            at = j - 1
            while at > 0 and mask[i - 1, at - 1]:
                at -= 1
            doors[((i - 1, at), 0)] = loop[first:] + loop[:first]
    return [_polygon(loop, doors) for loop in outer]


def _loops(mask: Bools) -> list[list[Side]]:
    """Closed chains of pixel sides; corners are counted from the outer corner of pixel (0, 0)."""
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1]
    ways: dict[Corner, set[int]] = {}
    for way, (neighbour, shift) in enumerate(
        (
            (padded[1:-1, :-2], (0, 0)),
            (padded[2:, 1:-1], (1, 0)),
            (padded[1:-1, 2:], (1, 1)),
            (padded[:-2, 1:-1], (0, 1)),
        )
    ):
        for i, j in np.argwhere(inner & ~neighbour).tolist():
            ways.setdefault((i + shift[0], j + shift[1]), set()).add(way)
    loops = []
    while ways:
        start = next(iter(ways))
        at, way = start, next(iter(ways[start]))
        loop: list[Side] = []
        while at in ways and way in ways[at]:
            loop.append((at, way))
            ways[at].discard(way)
            if not ways[at]:
                del ways[at]
            at = (at[0] + _STEPS[way][0], at[1] + _STEPS[way][1])
            # Left first: stay at the same pixel where two touch at a corner.
            way = next((w for w in ((way + 1) % 4, way, (way + 3) % 4) if w in ways.get(at, ())), way)
        loops.append(loop)
    return loops


def _area(loop: list[Side]) -> int:
    """Pixels that a loop encloses; negative around a hole."""
    return sum(at[0] if way == 1 else -at[0] if way == 3 else 0 for at, way in loop)


def _polygon(loop: list[Side], doors: dict[Side, list[Side]]) -> Floats:
    """The corners of a loop and, by way of keyholes, of its holes."""
    points: list[tuple[float, float]] = []
    # Work still to be done, last first: a side to walk, with the direction in which it was reached, or a point.
    work: list[tuple[Side, int] | tuple[float, float]] = []

    def push(sides: list[Side], before: int) -> None:
        ways = [before, *(way for _, way in sides[:-1])]
        work.extend(reversed([(side, came) for side, came in zip(sides, ways, strict=True)]))

    push(loop, loop[-1][1])
    while work:
        item = work.pop()
        if isinstance(item[0], float):
            points.append(item)
            continue
        (at, way), came = item
        if way != came:
            inside = (_left(way)[0] + _left(came)[0], _left(way)[1] + _left(came)[1])
            points.append(_point(at, inside))
        hole = doors.get((at, way))
        if hole is None:
            continue
        (i, j), _ = hole[0]
        outside, door = (
            (at[0] + _KEYHOLE - 0.5, at[1] - 0.5 + INSET),
            (i - 1 + _KEYHOLE - 0.5, j - 0.5 - INSET),
        )
        points += [outside, door]
        work.append(outside)
        work.append(door)
        push([*hole[1:], hole[0]], hole[0][1])
    return np.array(points)


def _left(way: int) -> tuple[int, int]:
    return _STEPS[(way + 1) % 4]


def _point(corner: Corner, inside: tuple[int, int]) -> tuple[float, float]:
    return corner[0] - 0.5 + INSET * inside[0], corner[1] - 0.5 + INSET * inside[1]
