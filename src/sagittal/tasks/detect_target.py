"""What a detecting network should say of a window: centre heat maps, and how far the sides of the object are.

A map has C + 2d + 2 channels, for cells of `stride` voxels:

``0 .. C - 1``
    For each class the closeness to the centre of one of its objects: 1 in the cell of the centre, falling off as a
    Gaussian whose width along each axis follows that edge of the box [1]_ [2]_.
``C .. C + 2d - 1``
    Where an object is to be measured: the distances from the cell's centre to the low sides along each axis, then to the
    high ones, in cells.
last but one
    How much those distances count: the object's Gaussian divided by its sum, 0 elsewhere, so that a small object counts
    as much as a large one. Of two objects the smaller one has the cell.
last
    1 where the heat map is known, 0 inside crowds and objects of which too little is seen.

References
----------
.. [1] Zhou, Wang and Kraehenbuehl, Objects as Points, arXiv:1904.07850: centre heat maps.
.. [2] Liu, Zheng, Xu, Yang, Liu and Cai, Training-Time-Friendly Network, AAAI 2020: a Gaussian along each axis, and
       distances learned all over it, weighted by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sagittal.types import Array, Floats

#: Edge of the box over six standard deviations of its Gaussian, as in [2].
SPREAD = 0.54
#: Least standard deviation, in cells: the cells beside the centre of the smallest object count a little.
LEAST_SIGMA = 0.4
#: Closeness at which the Gaussian ends.
LEAST_CLOSENESS = 0.02
#: Least part of an object that must be seen in a window for it to be learned; what shows less is not judged. High, because
#: annotators often leave out what an image's own edge cuts: windows that cut whole objects would teach the opposite.
SEEN = 0.9
#: Least distance to a side, in cells, so that its logarithm exists.
LEAST_DISTANCE = 0.05


def map_size(size: Sequence[int], stride: int) -> tuple[int, ...]:
    """Cells of the map of a window.

    >>> map_size((240, 321), 4)
    (60, 81)
    """
    return tuple(math.ceil(n / stride) for n in size)


def to_cells(points: Floats, stride: int) -> Floats:
    """Places in voxels as places in cells: the middle of the first cell is 0 and its outer edge that of the first voxel.

    >>> to_cells(np.array([1.5, 5.5]), 4).tolist()
    [0.0, 1.0]
    """
    return np.asarray((np.asarray(points, dtype=np.float64) + 0.5) / stride - 0.5)


def to_voxels(points: Floats, stride: int) -> Floats:
    """Places in cells as places in voxels: the inverse of :func:`to_cells`."""
    return np.asarray((np.asarray(points, dtype=np.float64) + 0.5) * stride - 0.5)


def render(boxes: Array, size: Sequence[int], *, classes: int, stride: int) -> Floats:
    """The map of one window.

    Parameters
    ----------
    boxes : (M, 2d + 2) float
        Objects in voxels of the window: low corner, high corner, class, crowd. Those that do not reach into the window,
        or have no volume, are left out. An object that reaches beyond the window is cut off at its edge, as annotators
        do at the edge of an image; one of which less than half is seen is neither learned nor judged, nor is a crowd.
    size : sequence of int
        Of the window, d voxels.
    classes : int
        C.
    stride : int

    Returns
    -------
    (C + 2d + 2, *map) float32
    """
    d = len(size)
    cells = map_size(size, stride)
    out = np.zeros((classes + 2 * d + 2, *cells), dtype=np.float32)
    heat, distance, weight, known = out[:classes], out[classes : classes + 2 * d], out[-2], out[-1]
    known[:] = 1
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 2 * d + 2)
    low, high = boxes[:, :d], boxes[:, d : 2 * d]
    seen_low = np.clip(low, -0.5, np.asarray(size) - 0.5)
    seen_high = np.clip(high, -0.5, np.asarray(size) - 0.5)
    real = ((high > low) & (seen_high > seen_low)).all(axis=1)
    share = np.zeros(len(boxes))
    share[real] = ((seen_high - seen_low)[real] / (high - low)[real]).prod(axis=1)
    learned = real & (share >= SEEN) & (boxes[:, -1] == 0)
    for n in np.flatnonzero(real & ~learned):
        known[_covered(to_cells(seen_low[n], stride), to_cells(seen_high[n], stride), cells)] = 0
    # The smallest last: of two objects it is the one that would be lost.
    order = np.flatnonzero(learned)
    order = order[np.argsort(-(seen_high - seen_low)[order].prod(axis=1), kind="stable")]
    centres = []
    for n in order:
        begin, end = to_cells(seen_low[n], stride), to_cells(seen_high[n], stride)
        label = int(boxes[n, -2])
        middle = np.clip(np.rint((begin + end) / 2), 0, np.asarray(cells) - 1).astype(int)
        where, gaussian = _gaussian(middle, end - begin, cells)
        heat[label][where] = np.maximum(heat[label][where], gaussian)
        distances = _distances(begin, end, where)
        ours = gaussian >= LEAST_CLOSENESS
        for axis in range(2 * d):
            distance[axis][where] = np.where(ours, distances[axis], distance[axis][where])
        share_of = gaussian / gaussian.sum()
        weight[where] = np.where(ours, share_of, weight[where])
        centres.append((tuple(middle), label, begin, end, share_of.max()))
    for cell, label, begin, end, counts in centres:  # a centre always speaks for its own object
        at = tuple(slice(m, m + 1) for m in cell)
        heat[label][cell], weight[cell], known[cell] = 1, counts, 1
        for axis, value in enumerate(_distances(begin, end, at)):
            distance[axis][at] = value
    return out


def centres_of(target: Floats, classes: int) -> tuple[Array, Array]:
    """Cells (M, d) that are the centre of an object in a map (C + 2d + 2, *map), and their classes (M,)."""
    found = np.argwhere(np.asarray(target[:classes]) == 1)
    return found[:, 1:], found[:, 0]


def _covered(begin: Floats, end: Floats, cells: Sequence[int]) -> tuple[slice, ...]:
    """The cells that a box touches."""
    return tuple(
        slice(max(0, math.floor(b + 0.5)), min(n, math.ceil(e + 0.5)))
        for b, e, n in zip(begin, end, cells, strict=True)
    )


def _gaussian(middle: Array, edge: Floats, cells: Sequence[int]) -> tuple[tuple[slice, ...], Floats]:
    """A Gaussian that is 1 in its middle cell, on the cells where it is not negligible."""
    sigma = np.maximum(edge * SPREAD / 6, LEAST_SIGMA)
    reach = np.ceil(sigma * math.sqrt(-2 * math.log(LEAST_CLOSENESS))).astype(int)
    where = tuple(slice(max(0, m - r), min(n, m + r + 1)) for m, r, n in zip(middle, reach, cells, strict=True))
    value = np.ones(())
    for m, s, part in zip(middle, sigma, where, strict=True):
        value = value[..., None] * np.exp(-((np.arange(part.start, part.stop) - m) ** 2) / (2 * s * s))
    return where, np.where(value >= LEAST_CLOSENESS, value, 0.0)


def _distances(begin: Floats, end: Floats, where: tuple[slice, ...]) -> Floats:
    """Distances of cells to the low and the high sides, (2d, *cells)."""
    lines = np.meshgrid(*(np.arange(part.start, part.stop, dtype=np.float64) for part in where), indexing="ij")
    low = [line - b for line, b in zip(lines, begin, strict=True)]
    high = [e - line for line, e in zip(lines, end, strict=True)]
    return np.asarray(np.maximum(np.stack([*low, *high]), LEAST_DISTANCE))
