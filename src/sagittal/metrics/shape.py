"""Size, shape and intensity of one outlined structure, in the units of its study.

The outline runs as everywhere in this room: it cuts the line between the centres of an inside and an outside voxel in its
middle (:mod:`sagittal.metrics.surfels`). All lengths are between points of that outline, so a single voxel is as long as
its longest edge, and a box as long as it is; the longest line through a rounded shape is up to a voxel too long, as it is the
largest of many. They are between neither voxel centres (one voxel too short) nor corners (up to a diagonal too long).

Nothing is invented: a picture without a pixel size is measured in pixels, and :attr:`Shape.unit` says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from sagittal.errors import MaskError
from sagittal.grid import Grid
from sagittal.metrics.lesions import components
from sagittal.metrics.surface import surface_area
from sagittal.types import Array, Bools, Floats

_NO_POINT = (math.nan, math.nan, math.nan)
#: Lengths that differ by less than this share are equal.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Axes:
    """The long and the short axis of a structure in one slice, as RECIST measures a lesion.

    Parameters
    ----------
    long, short : float
        In the unit of the shape.
    slice : int
        Its k; -1 where there is nothing.
    ends : ((3,), (3,)) float
        Ends of the long axis, voxel indices.
    short_ends : ((3,), (3,)) float
        Ends of the short one.
    """

    long: float = 0.0
    short: float = 0.0
    slice: int = -1
    ends: tuple[tuple[float, float, float], ...] = (_NO_POINT, _NO_POINT)
    short_ends: tuple[tuple[float, float, float], ...] = (_NO_POINT, _NO_POINT)


@dataclass(frozen=True)
class Shape:
    """Size and place of one structure.

    Parameters
    ----------
    voxels, components : int
        How many voxels it has, and in how many connected parts (26 neighbours, of a picture 8).
    unit : {"mm", "px"}
        Of all lengths.
    volume_ml : float
        nan of a picture and where there is no voxel size.
    surface_mm2 : float
        Area of the surface; nan as above. See :func:`sagittal.metrics.surface.surface_area` for its bias.
    area : float
        Of a picture the area of its pixels, in the unit squared; nan of a volume.
    axes : Axes
        RECIST long and short axis [1]_.
    diameter : float
        The largest distance between two points of one connected part, in any direction; of a picture the long axis.
    centroid : (3,) float
        Mean place of its voxels: LPS+ mm where the grid has a position, else voxel indices; nan where it is empty.
    corners : ((3,), (3,)) float
        The box around it in voxel indices, from the outer side of the first voxel to that of the last; nan likewise.

    References
    ----------
    .. [1] Eisenhauer et al., Eur J Cancer 45:228, 2009 (RECIST 1.1).
    """

    voxels: int
    components: int
    unit: Literal["mm", "px"]
    volume_ml: float
    surface_mm2: float
    area: float
    axes: Axes
    diameter: float
    centroid: tuple[float, float, float]
    corners: tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Intensity:
    """How bright a structure is, in the unit of its image; nan where it has no voxel with a finite value.

    Parameters
    ----------
    mean, std, low, median, high : float
        `std` is that of the voxels themselves (divided by their number).
    unit : str
        As :attr:`sagittal.image.Image.unit`.
    """

    mean: float
    std: float
    low: float
    median: float
    high: float
    unit: str = "1"


def measure_shape(mask: Bools, grid: Grid) -> Shape:
    """Size and place of a structure on its grid, tilted, sheared and anisotropic ones included.

    The long axis is the longest straight line between two points of the outline of one connected region of one slice
    (k), over all regions and slices; the short axis the longest line perpendicular to it across the convex hull of that
    region. Slices are those of the grid, as they were taken: of a study that was stored in another direction they are
    not axial.

    Parameters
    ----------
    mask : (I, J, K) bool
    grid : Grid

    Returns
    -------
    Shape
        Of an empty mask every size is 0 (nan where the grid says no size) and every place nan.

    Raises
    ------
    MaskError
        If the mask is not boolean or does not fit the grid.

    Examples
    --------
    >>> mask = np.zeros((30, 30, 9), dtype=bool)
    >>> mask[5:15, 6:26, 3:6] = True
    >>> found = measure_shape(mask, Grid(mask.shape, np.diag([0.5, 0.5, 3.0, 1.0])))
    >>> round(found.volume_ml, 3), round(found.axes.long, 2), round(found.axes.short, 2), found.centroid
    (0.45, 10.97, 5.48, (4.75, 7.75, 12.0))
    """
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise MaskError("a structure is measured by its bool mask: compare the label map first, as in labels == 1")
    if mask.shape != grid.shape:
        raise MaskError(f"mask {mask.shape} does not fit grid {grid.shape}")
    flat = grid.dimensions == 2
    edges, unit = _edges(grid)
    scaled = unit == "mm" and bool(np.isfinite(edges).all())
    box = _box(mask)
    if box is None:
        none = 0.0 if scaled and not flat else math.nan
        return Shape(0, 0, unit, none, none, 0.0 if flat else math.nan, Axes(), 0.0, _NO_POINT, (_NO_POINT, _NO_POINT))
    part = np.ascontiguousarray(mask[box])
    first = np.array([s.start for s in box], dtype=np.float64)
    voxels = int(np.count_nonzero(part))
    labels, count = components(part)
    axes = _in_plane(part, edges, first)
    volume = voxels * abs(float(np.linalg.det(edges))) / 1000 if scaled and not flat else math.nan
    return Shape(
        voxels,
        count,
        unit,
        volume,
        surface_area(part, edges) if scaled and not flat else math.nan,
        voxels * float(np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]))) if flat else math.nan,
        axes,
        axes.long if flat or not scaled else _in_space(labels, count, edges),
        _centroid(part, first, grid),
        (_point(first - 0.5), _point(first + part.shape - 0.5)),
    )


def measure_intensity(mask: Bools, values: Floats, unit: str = "1") -> Intensity:
    """How bright a structure is.

    Parameters
    ----------
    mask : (I, J, K) bool
    values : (I, J, K) float
        One channel of an image on the mask's grid.
    unit : str
        Of the values.

    Examples
    --------
    >>> values = np.arange(8.0).reshape(2, 2, 2)
    >>> found = measure_intensity(values >= 4, values, "HU")
    >>> found.mean, found.low, found.median, found.high, found.unit
    (5.5, 4.0, 5.5, 7.0, 'HU')
    """
    if mask.shape != values.shape:
        raise MaskError(f"mask {mask.shape} and image {values.shape} differ in shape")
    box = _box(mask)
    inside = values[:0].reshape(-1) if box is None else values[box][mask[box]]
    inside = inside[np.isfinite(inside)].astype(np.float64)
    if not len(inside):
        return Intensity(math.nan, math.nan, math.nan, math.nan, math.nan, unit)
    return Intensity(
        float(inside.mean()),
        float(inside.std()),
        float(inside.min()),
        float(np.median(inside)),
        float(inside.max()),
        unit,
    )


def _box(mask: Bools) -> tuple[slice, ...] | None:
    """Where the mask lies; ``None`` where it is empty. Each axis looks only at what the others left."""
    box = [slice(None)] * 3
    for axis in (2, 1, 0):  # slices first: most studies are stored slice by slice
        used = np.flatnonzero(mask[tuple(box)].any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(used):
            return None
        box[axis] = slice(int(used[0]), int(used[-1]) + 1)
    return tuple(box)


def _edges(grid: Grid) -> tuple[Floats, Literal["mm", "px"]]:
    """The voxel's edges as columns, and their unit; the third is nan of a picture without thickness."""
    if grid.affine is not None:
        return np.asarray(grid.affine)[:3, :3], "mm"
    if grid.spacing is None or not np.isfinite(np.asarray(grid.spacing)[:2]).all():
        return np.eye(3), "px"
    return np.diag(np.asarray(grid.spacing)), "mm"


def _point(values: Floats) -> tuple[float, float, float]:
    i, j, k = (float(v) for v in values)
    return i, j, k


def _centroid(part: Bools, first: Floats, grid: Grid) -> tuple[float, float, float]:
    total = np.count_nonzero(part)
    middle = first.copy()
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        middle[axis] += float(np.count_nonzero(part, axis=others) @ np.arange(part.shape[axis])) / total
    if grid.affine is not None:
        middle = np.asarray(grid.affine[:3, :3] @ middle + grid.affine[:3, 3])
    return _point(middle)


def _in_plane(part: Bools, edges: Floats, first: Floats) -> Axes:
    """The long and the short axis over all regions of all slices."""
    plane = _flattened(edges)
    beside = np.zeros((3, 3, 3), dtype=bool)
    beside[:, :, 1] = True  # neighbours within a slice, corners included
    labels, _ = ndimage.label(part, structure=beside)
    boxes = ndimage.find_objects(labels)
    spans = np.array([[s[0].stop - s[0].start, s[1].stop - s[1].start] for s in boxes], dtype=np.float64)
    # No region is longer than the diagonal of its box; the largest first, so that most need no look.
    turned = np.linalg.norm(np.stack([spans * (1, 1), spans * (1, -1)]) @ plane.T, axis=2).max(axis=0)
    best = Axes()
    for n in np.argsort(-turned, kind="stable"):
        if turned[n] <= best.long * (1 + _ROUNDING):
            break
        rows, columns, depth = boxes[n]
        points = _outline(labels[rows, columns, depth.start] == n + 1)
        points = points[_hull(points)]
        mm = points @ plane.T
        apart = np.linalg.norm(mm[:, None] - mm[None], axis=2)
        a, b = np.unravel_index(int(apart.argmax()), apart.shape)
        if apart[a, b] > best.long * (1 + _ROUNDING):
            short, across = _across(mm, mm[a], mm[b])
            low = first + np.array([rows.start, columns.start, depth.start])
            back = np.linalg.inv(plane)
            ends = [_point(np.append(p, 0) + low) for p in (points[a], points[b])]
            short_ends = [_point(np.append(back @ p, 0) + low) for p in across]
            best = Axes(float(apart[a, b]), short, int(low[2]), tuple(ends), tuple(short_ends))
    return best


def _flattened(edges: Floats) -> Floats:
    """Voxel steps (i, j) -> mm in an orthonormal frame of the plane, (2, 2)."""
    _, upper = np.linalg.qr(edges[:, :2])
    return np.asarray(upper)


def _outline(region: Bools) -> Floats:
    """Points of the outline of a (I, J) region that can lie on its convex hull, (N, 2) voxel indices."""
    points = []
    for axis in (0, 1):
        turned = region if axis == 1 else region.T
        there = np.flatnonzero(turned.any(axis=1))
        low = turned[there].argmax(axis=1) - 0.5
        high = turned.shape[1] - 0.5 - turned[there, ::-1].argmax(axis=1)
        pairs = np.concatenate([np.stack([there, low], axis=1), np.stack([there, high], axis=1)])
        points.append(pairs if axis == 1 else pairs[:, ::-1])
    return np.concatenate(points)


def _hull(points: Floats) -> Array:
    """Which points lie on the convex hull, in order around it in a plane."""
    from scipy.spatial import ConvexHull

    return np.asarray(ConvexHull(points).vertices)


def _across(hull: Floats, a: Floats, b: Floats) -> tuple[float, tuple[Floats, Floats]]:
    """The longest line across a convex polygon, perpendicular to the line from a to b, and its ends.

    The width of a convex shape along a line is concave between corners, so that the widest place is at one of them.
    """
    along = (b - a) / np.linalg.norm(b - a)
    normal = np.array([-along[1], along[0]])
    t, s = (hull - a) @ along, (hull - a) @ normal
    after = np.roll(np.arange(len(hull)), -1)
    best, place = 0.0, (0.0, 0.0, 0.0)
    for at in np.unique(t):
        t0, t1, s0, s1 = t, t[after], s, s[after]
        crosses = (np.minimum(t0, t1) <= at) & (np.maximum(t0, t1) >= at)
        steps = np.where(t1 == t0, 1.0, t1 - t0)
        share = np.clip((at - t0) / steps, 0, 1)
        height = (s0 + share * (s1 - s0))[crosses]
        upright = crosses & (t1 == t0)
        height = np.concatenate([height, s0[upright], s1[upright]])
        if np.ptp(height) > best:
            best, place = float(np.ptp(height)), (float(at), float(height.min()), float(height.max()))
    at, low, high = place
    return best, (a + at * along + low * normal, a + at * along + high * normal)


def _in_space(labels: Array, count: int, edges: Floats) -> float:
    """The largest distance between two points of one connected part."""
    from scipy.spatial.distance import cdist

    boxes = ndimage.find_objects(labels)
    spans = np.array([[s.stop - s.start for s in box] for box in boxes], dtype=np.float64)
    signs = np.array([[1, y, z] for y in (1, -1) for z in (1, -1)])
    reach = np.linalg.norm((spans[:, None] * signs) @ edges.T, axis=2).max(axis=1)
    best = 0.0
    for n in np.argsort(-reach, kind="stable")[:count]:
        if reach[n] <= best * (1 + _ROUNDING):
            break
        points = _corners(labels[boxes[n]] == n + 1) @ edges.T
        points = points[_hull(points)]
        for start in range(0, len(points), 1024):
            best = max(best, float(cdist(points[start : start + 1024], points[start:]).max()))
    return best


def _corners(part: Bools) -> Floats:
    """Points of the surface of a (I, J, K) part that hold its convex hull, (N, 3) voxel indices.

    The hull of the outline is that of the voxel centres, each moved by half a voxel along each axis and back.
    """
    from scipy.spatial import ConvexHull

    flat = []
    for k in range(part.shape[2]):
        if not part[:, :, k].any():
            continue
        there = np.flatnonzero(part[:, :, k].any(axis=1))
        low = part[there, :, k].argmax(axis=1)
        high = part.shape[1] - 1 - part[there, ::-1, k].argmax(axis=1)
        pairs = np.unique(np.concatenate([np.stack([there, low], axis=1), np.stack([there, high], axis=1)]), axis=0)
        if len(pairs) > 8 and np.linalg.matrix_rank(pairs - pairs[0]) == 2:
            pairs = pairs[ConvexHull(pairs).vertices]
        flat.append(np.column_stack([pairs, np.full(len(pairs), k)]))
    centres = np.concatenate(flat).astype(np.float64)
    half = np.concatenate([np.eye(3), -np.eye(3)]) / 2
    return np.asarray((centres[:, None] + half).reshape(-1, 3))
