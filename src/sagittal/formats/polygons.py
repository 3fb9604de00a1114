"""Polygons to the voxels whose centres lie inside them, by the even-odd rule."""

from __future__ import annotations

import numpy as np

from sagittal.types import Array, Floats

#: Crossings of edges and rows that are held at once.
_CROSSINGS = 2**21


def fill_even_odd(points: Floats, size: tuple[int, int]) -> Array:
    """The voxels whose centres lie inside a closed polygon, (J, I) bool.

    Parameters
    ----------
    points : (N, 2) float
        Corners in voxel indices i, j, centres at whole numbers. The last joins the first.
    size : (I, J)

    Examples
    --------
    >>> fill_even_odd(np.array([[0.5, 0.5], [2.5, 0.5], [2.5, 1.5], [0.5, 1.5]]), (4, 3)).astype(int)
    array([[0, 0, 0, 0],
           [0, 1, 1, 0],
           [0, 0, 0, 0]])
    """
    columns, rows = size
    x0, y0 = np.asarray(points, dtype=np.float64).T
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    # An edge crosses the rows from its lower end on, up to its upper end without it, so that corners count once.
    first = np.clip(np.ceil(np.minimum(y0, y1)), 0, rows).astype(int)
    counts = np.maximum(np.clip(np.ceil(np.maximum(y0, y1)), 0, rows).astype(int) - first, 0)
    turns = np.zeros(rows * (columns + 1), dtype=np.int64)
    parts = -(-int(counts.sum()) // _CROSSINGS)
    for some in np.array_split(np.arange(len(x0)), max(parts, 1)):
        n = counts[some]
        edge = np.repeat(some, n)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(n) - n, n) + first[edge]
        across = x0[edge] + (row - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
        start = np.clip(np.ceil(across), 0, columns).astype(int)
        turns += np.bincount(row * (columns + 1) + start, minlength=len(turns))
    # Each crossing turns all voxels to its right over.
    return np.asarray(np.cumsum(turns.reshape(rows, columns + 1)[:, :columns], axis=1) % 2 == 1)
