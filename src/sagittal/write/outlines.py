"""Masks of slices to polygons along the sides of their pixels, holes joined to their outline by a keyhole.

Whoever asks which pixel centres lie inside gets the same mask back, and the area of the polygons is that of the pixels to
a thousandth of a voxel along their sides. That thousandth is left out on purpose: programs that round corners to whole
pixels before they fill then round to the pixels of the mask, and parts that touch at a corner stay apart.
"""

from __future__ import annotations

import numpy as np

from sagittal.types import Array, Bools, Floats

#: How far inside the pixels' sides the polygons run, voxels.
INSET = 0.001
#: Directions of sides: +i, +j, -i, -j; the mask lies to the left of each.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
#: Where along a side a keyhole leaves it, from its start: not at the middle, which is in line with pixel centres.
_KEYHOLE = 0.75


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
    starts, ways, following = _sides(mask)
    loops = _loops(following)
    areas = [_area(starts[loop], ways[loop]) for loop in loops]
    holes = [loop for loop, area in zip(loops, areas, strict=True) if area < 0]
    doors: dict[int, Array] = {}
    if holes:
        place = {(int(i), int(j)): n for n, ((i, j), way) in enumerate(zip(starts, ways, strict=True)) if way == 0}
        for hole in holes:
            # A hole ends with its side of lowest j; from there the mask reaches down to an outline or another hole.
            down = np.where(ways[hole] == 2, starts[hole, 1], np.iinfo(np.intp).max)
            loop = np.roll(hole, -int(down.argmin()) - 1)
            i, j = (int(v) for v in starts[loop[-1]])
            column = mask[i - 1, : j - 1]
            at = len(column) - int(column[::-1].argmin()) if not column.all() else 0
            doors[place[i - 1, at]] = loop
    return [_polygon(loop, starts, ways, doors) for loop, area in zip(loops, areas, strict=True) if area > 0]


def _sides(mask: Bools) -> tuple[Array, Array, list[int]]:
    """The pixel sides between inside and outside: where each starts, its direction, and which one follows it.

    Corners are counted from the outer corner of pixel (0, 0).
    """
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1]
    beside = (padded[1:-1, :-2], padded[2:, 1:-1], padded[1:-1, 2:], padded[:-2, 1:-1])
    shifts = ((0, 0), (1, 0), (1, 1), (0, 1))
    found = [np.argwhere(inner & ~other) + shift for other, shift in zip(beside, shifts, strict=True)]
    starts = np.concatenate(found)
    ways = np.repeat(np.arange(4), [len(part) for part in found])
    index = np.full((mask.shape[0] + 1, mask.shape[1] + 1, 4), -1)
    index[starts[:, 0], starts[:, 1], ways] = np.arange(len(starts))
    ends = starts + np.array(_STEPS)[ways]
    following = np.full(len(starts), -1)
    # Left first: stay at the same pixel where two touch at a corner.
    for turn in (3, 0, 1):
        there = index[ends[:, 0], ends[:, 1], (ways + turn) % 4]
        following = np.where(there >= 0, there, following)
    return starts, ways, following.tolist()


def _loops(following: list[int]) -> list[Array]:
    """Closed chains of sides."""
    free = [True] * len(following)
    loops = []
    for start in range(len(following)):
        if free[start]:
            loop, at = [], start
            while free[at]:
                free[at] = False
                loop.append(at)
                at = following[at]
            loops.append(np.array(loop))
    return loops


def _area(starts: Array, ways: Array) -> int:
    """Pixels that a loop encloses; negative around a hole."""
    return int(starts[ways == 1, 0].sum() - starts[ways == 3, 0].sum())


def _polygon(loop: Array, starts: Array, ways: Array, doors: dict[int, Array]) -> Floats:
    """The corners of a loop and, by way of keyholes, of its holes.

    Where a side has a door, the way goes through it, around the hole and back before it goes on; one hole may lie behind
    another.
    """
    points: list[Floats] = []
    work: list[tuple[Array, int, int]] = [(loop, 0, -1)]  # a loop, the side to go on with, the door it was entered by
    while work:
        sides, first, door = work.pop()
        stop = (
            next((n for n in range(first, len(sides)) if int(sides[n]) in doors), len(sides)) if doors else len(sides)
        )
        points.append(_turns(sides, first, min(stop + 1, len(sides)), starts, ways))
        if stop < len(sides):
            at = int(sides[stop])
            hole = doors[at]
            points.append(np.array([_outside(starts[at]), _inside(starts[hole[-1]])]))
            work.append((sides, stop + 1, door))
            work.append((hole, 0, at))
        elif door >= 0:
            points.append(np.array([_inside(starts[sides[-1]]), _outside(starts[door])]))
    return np.concatenate(points)


def _turns(sides: Array, first: int, stop: int, starts: Array, ways: Array) -> Floats:
    """Corners at which some sides of a loop begin, where the direction changes."""
    own, before = ways[sides[first:stop]], ways[np.roll(sides, 1)[first:stop]]
    at = own != before
    steps = np.array(_STEPS)
    inwards = steps[(own[at] + 1) % 4] + steps[(before[at] + 1) % 4]
    return np.asarray(starts[sides[first:stop][at]] - 0.5 + INSET * inwards)


def _outside(start: Array) -> tuple[float, float]:
    """Where a keyhole leaves a side along +i."""
    return float(start[0]) + _KEYHOLE - 0.5, float(start[1]) - 0.5 + INSET


def _inside(start: Array) -> tuple[float, float]:
    """Where it meets the last side of a hole, along -i."""
    return float(start[0]) - 1 + _KEYHOLE - 0.5, float(start[1]) - 0.5 - INSET
