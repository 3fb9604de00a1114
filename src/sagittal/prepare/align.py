"""Images of one study that lie on different grids, brought to one by their positions in the patient."""

from __future__ import annotations

import math

import numpy as np

from sagittal.errors import GeometryError
from sagittal.grid import Grid
from sagittal.prepare.resample import resize
from sagittal.types import Array, Floats

#: Grids whose corners agree within this part of the shortest voxel edge are one grid.
TOLERANCE = 0.05
#: Voxels of the target that are computed together.
_SLAB = 4_000_000
#: A step of this many source voxels is averaged before it is sampled.
_COARSER = 1.25


def same_lattice(one: Grid, other: Grid) -> bool:
    """Whether voxel (i, j, k) of one grid is that of the other.

    Grids of one shape of which at least one has no position are taken for the same, as a PNG mask beside a DICOM image;
    positions must agree within a twentieth of a voxel.
    """
    if one.shape != other.shape:
        return False
    if one.affine is None or other.affine is None:
        return True
    edge = float(np.nanmin([*np.asarray(one.spacing), *np.asarray(other.spacing)]))
    return one.same_place(other, TOLERANCE * edge)


def describe_grid(grid: Grid) -> str:
    """Size, spacing and first voxel's place of a grid in words; no identifier.

    >>> describe_grid(Grid((64, 48, 20), np.diag([0.5, 0.5, 2.0, 1])))
    '64 x 48 x 20 voxels of 0.5 x 0.5 x 2 mm, the first at (0, 0, 0) mm'
    """
    words = " x ".join(map(str, grid.shape)) + " voxels"
    if grid.spacing is None:
        return words + " of unknown size and position"
    words += " of " + " x ".join("?" if math.isnan(s) else f"{s:.4g}" for s in np.asarray(grid.spacing)) + " mm"
    if grid.affine is None:
        return words + ", position unknown"
    return words + ", the first at (" + ", ".join(f"{v:.4g}" for v in np.asarray(grid.affine)[:3, 3]) + ") mm"


def voxel_map(source: Grid, target: Grid) -> Floats:
    """What takes a voxel index of the target to the one of the source at the same place in the patient, (4, 4).

    Raises
    ------
    GeometryError
        If a grid has no position.
    """
    if source.affine is None or target.affine is None:
        raise GeometryError(
            f"grids can only be brought together by their positions: {describe_grid(source)}; {describe_grid(target)}"
        )
    return np.asarray(np.linalg.solve(np.asarray(source.affine), np.asarray(target.affine)))


def bring(data: Floats, source: Grid, target: Grid, *, fill: float | None = None) -> Floats:
    """Values on the source's grid, sampled at the voxels of the target, linearly.

    Where the target's voxels are larger than the source's, the source is averaged first, so that nothing is skipped.

    Parameters
    ----------
    data : (C, I, J, K) float32
    source, target : Grid
        With positions.
    fill : float, optional
        Value outside the source; its lowest, a channel at a time, where not given.

    Returns
    -------
    (C, *target.shape) float32

    Raises
    ------
    GeometryError
        If a grid has no position, or no voxel of the target lies in the source.
    """
    from scipy.ndimage import map_coordinates

    matrix = voxel_map(source, target)
    reach = np.linalg.norm(matrix[:3, :3], axis=1)  # source voxels between samples, along each of its axes
    low = data.min(axis=(1, 2, 3)) if fill is None else np.full(len(data), fill)
    shape = np.array(source.shape)
    fewer = np.where(reach > _COARSER, np.maximum(1, np.rint(shape / np.maximum(reach, 1))), shape).astype(int)
    if tuple(fewer) != source.shape:
        data = resize(data, tuple(int(n) for n in fewer))
        scale = fewer / shape  # edges coincide: new = (old + 1/2) * scale - 1/2
        matrix = np.vstack([np.c_[matrix[:3, :3] * scale[:, None], (matrix[:3, 3] + 0.5) * scale - 0.5], matrix[3:]])
    result = np.empty((len(data), *target.shape), dtype=np.float32)
    i, j, k = target.shape
    depth = max(1, _SLAB // (i * j))
    found = 0
    for first in range(0, k, depth):
        last = min(k, first + depth)
        index = np.ix_(np.arange(i), np.arange(j), np.arange(first, last))
        places = np.stack([sum(matrix[a, b] * index[b] for b in range(3)) + matrix[a, 3] for a in range(3)])
        inside = _inside(places, data.shape[1:])
        found += int(np.count_nonzero(inside))
        for channel, values in enumerate(data):
            sampled = map_coordinates(values, places, order=1, mode="nearest", output=np.float32)
            result[channel, :, :, first:last] = np.where(inside, sampled, np.float32(low[channel]))
    if not found:
        raise GeometryError(
            f"the grids do not overlap in the patient: {describe_grid(source)}; {describe_grid(target)}"
        )
    return result


def align(data: Floats, source: Grid, target: Grid, *, case: str, what: str) -> Floats:
    """An image of a case on the grid of its first image; as it is where it lies there already.

    Parameters
    ----------
    data : (C, I, J, K) float32
    source, target : Grid
    case, what : str
        The case's id and the name of the image, for messages.

    Returns
    -------
    (C, *target.shape) float32

    Raises
    ------
    GeometryError
        If positions are missing, or the images do not overlap.
    """
    if same_lattice(source, target):
        return data
    both = f"'{what}' has {describe_grid(source)}; the first image has {describe_grid(target)}"
    if source.affine is None or target.affine is None:
        raise GeometryError(
            f"case {case}: its images lie on different grids, and without both positions they cannot be brought "
            f"together. {both}. Export them with their positions, or resample them to one grid."
        )
    try:
        return bring(data, source, target)
    except GeometryError:
        raise GeometryError(
            f"case {case}: its images do not overlap in the patient. {both}. Choose images of one study and body part."
        ) from None


def _inside(places: Floats, shape: tuple[int, ...]) -> Array:
    """Which places (3, ...) lie in voxels of an array, their outer halves included."""
    edge = 0.5 + 1e-6
    inside = np.ones(places.shape[1:], dtype=bool)
    for place, n in zip(places, shape, strict=True):
        inside &= (place >= -edge) & (place <= n - 1 + edge)
    return inside
