"""How far two mask surfaces lie apart, in millimetres: HD, HD95, average distances, surface Dice, boundary IoU.

Two definitions of a surface are in use, and they give different numbers:

``"area"`` (the default)
    Surface elements between the voxels, each counted by its area [1]_, as in the package surface-distance: thin slices
    do not weigh more, and a percentile is one of area. See :mod:`sagittal.metrics.surfels`.
``"voxel"``
    The voxels of a mask that have a face on its outside, each counted once, as in MONAI and in most challenges. A
    percentile is interpolated between voxels.

Masks are (I, J, K) bool; one slice (K == 1) is a picture, measured in its plane. The border of the image counts as
outside. One empty mask gives ``inf`` (surface Dice 0), two give ``nan``.

References
----------
.. [1] Nikolov et al., J Med Internet Res 23(7):e26151, 2021.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sagittal.errors import ConfigError, MaskError, nearest
from sagittal.metrics.masks import check_masks, check_spacing, flat
from sagittal.metrics.surfels import contour_lengths, surfel_areas
from sagittal.types import Array, Bools, Floats

Elements = Literal["area", "voxel"]

#: One step of a distance transform of a voxel against one look-up in a tree, measured (benchmarks/surface.py): above
#: this share of surface elements among the voxels, the transform of all of them is faster than the tree.
_TREE_SHARE = 0.2

#: Distances are sums of squares of rounded numbers: equal within this share is equal.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Distances:
    """From each element of one surface to the nearest of the other.

    Parameters
    ----------
    mm : (n,) float
        ``inf`` where there is no other surface.
    size : (n,) float
        What each element counts: its area (mm^2, in a picture its length in mm), or 1 for voxels.
    elements : {"area", "voxel"}
    """

    mm: Floats
    size: Floats
    elements: Elements

    def mean(self) -> float:
        """Mean distance, mm; nan without elements."""
        return float(self.mm @ self.size / self.size.sum()) if len(self.mm) else math.nan

    def within(self, tolerance_mm: float) -> float:
        """How much of the surface lies within a tolerance, in the unit of ``size``."""
        return float(self.size[self.mm <= tolerance_mm * (1 + _ROUNDING)].sum())

    def percentile(self, q: float) -> float:
        """Distance below which q per cent of the surface lie, mm; nan without elements.

        By area: the smallest distance within which at least that share of the area lies. By voxels: interpolated.
        """
        if not len(self.mm):
            return math.nan
        if np.isinf(self.mm).any():
            return math.inf
        if self.elements == "voxel":
            return float(np.percentile(self.mm, q))
        # A share that misses by rounding alone is reached.
        return _weighted_quantile(self.mm, self.size, q / 100 * float(self.size.sum()) * (1 - 1e-12), q / 100)


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances between two surfaces, both ways; every measure of this file from one computation.

    Parameters
    ----------
    there : Distances
        From the prediction to the truth.
    back : Distances
        From the truth to the prediction.
    """

    there: Distances
    back: Distances

    def hd(self, percentile: float = 100.0) -> float:
        """The larger of the two directions' percentiles, mm; 100 is the Hausdorff distance itself."""
        if not 0 < percentile <= 100:
            raise ConfigError(f"a percentile lies above 0 and up to 100, not {percentile}")
        if len(self.there.mm) == 0 or len(self.back.mm) == 0:
            return math.nan if len(self.there.mm) == len(self.back.mm) else math.inf
        return max(self.there.percentile(percentile), self.back.percentile(percentile))

    def assd(self) -> float:
        """Mean distance over both surfaces together, mm."""
        both = Distances(
            np.append(self.there.mm, self.back.mm), np.append(self.there.size, self.back.size), self.there.elements
        )
        return both.mean()

    def surface_dice(self, tolerance_mm: float) -> float:
        """Share of both surfaces that lies within a tolerance of the other; 0 if one mask is empty, nan if both are."""
        if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
            raise ConfigError(f"a tolerance is a length in mm, 0 or more, not {tolerance_mm}")
        total = float(self.there.size.sum() + self.back.size.sum())
        near = self.there.within(tolerance_mm) + self.back.within(tolerance_mm)
        return near / total if total > 0 else math.nan


def surface_distances(pred: Bools, truth: Bools, spacing: Any, *, elements: Elements = "area") -> SurfaceDistances:
    """Distances between the surfaces of two masks, from which every measure here follows.

    Parameters
    ----------
    pred, truth : (I, J, K) or (I, J) bool
    spacing : (3,) or (2,) float, mm
        Voxel edge lengths along the axes, as in ``image.grid.spacing``.
    elements : {"area", "voxel"}
        What a surface consists of; see the top of this file.

    Raises
    ------
    MaskError
        If the masks differ in shape or are not boolean.
    GeometryError
        If the spacing does not fit.

    Examples
    --------
    >>> pred, truth = np.zeros((2, 9, 9, 9), dtype=bool)
    >>> pred[2:5, 2:5, 2:5] = truth[2:5, 2:5, 2:7] = True
    >>> distances = surface_distances(pred, truth, (1, 1, 2.5))
    >>> distances.hd(), round(distances.surface_dice(1.0), 3)
    (5.0, 0.809)
    """
    if elements not in ("area", "voxel"):
        raise ConfigError(f"unknown surface elements '{elements}'. {nearest(str(elements), ['area', 'voxel'])}")
    pred, truth = (flat(mask) for mask in check_masks(pred, truth))
    lengths = check_spacing(spacing, pred.ndim)
    box = _bounding_box(pred, truth)
    if box is None:
        nothing = Distances(np.zeros(0), np.zeros(0), elements)
        return SurfaceDistances(nothing, nothing)
    padded = [_padded(mask[box]) for mask in (pred, truth)]
    shape = padded[0].shape
    first, second = (_elements(mask, lengths, elements) for mask in padded)
    there, back = _nearest(first[0], second[0], shape, lengths)
    return SurfaceDistances(Distances(there, first[1], elements), Distances(back, second[1], elements))


def hd(pred: Bools, truth: Bools, spacing: Any, *, elements: Elements = "area") -> float:
    """Hausdorff distance: the farthest that a point of one surface lies from the other, mm.

    One stray voxel decides it; :func:`hd95` is steadier. ``inf`` if one mask is empty, ``nan`` if both are.
    """
    return surface_distances(pred, truth, spacing, elements=elements).hd()


def hd95(pred: Bools, truth: Bools, spacing: Any, *, elements: Elements = "area") -> float:
    """95th percentile of the distances between two mask surfaces, mm: the larger of the two directions.

    ``inf`` if one mask is empty, ``nan`` if both are. Parameters and errors as in :func:`surface_distances`.

    Examples
    --------
    >>> pred, truth = np.zeros((2, 9, 9, 9), dtype=bool)
    >>> pred[2:5, 2:5, 2:5] = truth[3:6, 2:5, 2:5] = True
    >>> hd95(pred, truth, (0.7, 0.7, 5.0))
    0.7
    """
    return surface_distances(pred, truth, spacing, elements=elements).hd(95)


def asd(pred: Bools, truth: Bools, spacing: Any, *, elements: Elements = "area") -> float:
    """Mean distance from the surface of the prediction to that of the truth, mm; one direction only.

    ``inf`` if one mask is empty, ``nan`` if both are.
    """
    distances = surface_distances(pred, truth, spacing, elements=elements)
    return math.inf if len(distances.there.mm) == 0 < len(distances.back.mm) else distances.there.mean()


def assd(pred: Bools, truth: Bools, spacing: Any, *, elements: Elements = "area") -> float:
    """Mean distance over the elements of both surfaces, mm; ``inf`` if one mask is empty, ``nan`` if both are."""
    return surface_distances(pred, truth, spacing, elements=elements).assd()


def surface_dice(pred: Bools, truth: Bools, spacing: Any, tolerance_mm: float, *, elements: Elements = "area") -> float:
    """Share of both surfaces that lies within a tolerance of the other, 0..1 (normalised surface Dice).

    0 if one mask is empty, ``nan`` if both are. Parameters and errors as in :func:`surface_distances`.
    """
    return surface_distances(pred, truth, spacing, elements=elements).surface_dice(tolerance_mm)


def boundary_iou(pred: Bools, truth: Bools, spacing: Any, width_mm: float) -> float:
    """Overlap of the rims of two masks: voxels within a width of the outside, intersection over union [1]_.

    Cheng et al. count pixels by repeated erosion; here the rim reaches to a distance in mm of the nearest outside voxel's
    centre. 0 if one mask is empty, ``nan`` if both are.

    References
    ----------
    .. [1] Cheng et al., CVPR 2021.
    """
    from scipy import ndimage

    pred, truth = (flat(mask) for mask in check_masks(pred, truth))
    lengths = check_spacing(spacing, pred.ndim)
    if not width_mm >= lengths.min():
        raise MaskError(f"a rim of {width_mm} mm holds no voxel: the spacing is {lengths.tolist()} mm")
    box = _bounding_box(pred, truth)
    if box is None:
        return math.nan
    limit = width_mm * (1 + _ROUNDING)
    padded = [_padded(mask[box]).view(np.bool_) for mask in (pred, truth)]
    rims = [mask & (ndimage.distance_transform_edt(mask, sampling=lengths) <= limit) for mask in padded]
    return float(np.count_nonzero(rims[0] & rims[1]) / np.count_nonzero(rims[0] | rims[1]))


def surface_area(mask: Bools, edges: Any) -> float:
    """Area of a mask's surface, mm^2; 0 where it is empty. A single slice has two sides, and a rim.

    The sum of the surface elements of :mod:`sagittal.metrics.surfels`: a surface through voxels has steps, so that a
    curved one measures more than it is: a sphere of many cubic voxels 8 per cent, of thick slices up to 20.

    Parameters
    ----------
    mask : (I, J, K) bool
    edges : (3,) float, mm
        Voxel edge lengths; or (3, 3), the voxel's edges as columns, as in ``grid.affine[:3, :3]``.

    Raises
    ------
    MaskError, GeometryError
        As :func:`surface_distances`.

    Examples
    --------
    >>> plate = np.zeros((40, 40, 3), dtype=bool)
    >>> plate[1:-1, 1:-1, 1] = True
    >>> round(surface_area(plate, (1, 1, 0.001)))  # two sides of 38 x 38 mm without their corners
    2887
    """
    check_masks(mask, mask)
    if mask.ndim != 3:
        raise MaskError(f"a surface is that of a volume (I, J, K), not of the shape {mask.shape}")
    given = np.asarray(edges, dtype=np.float64)
    table: Floats = given if given.shape == (3, 3) else check_spacing(edges, 3)
    box = _bounding_box(mask, mask)
    return 0.0 if box is None else float(_elements(_padded(mask[box]), table, "area")[1].sum())


def _bounding_box(pred: Bools, truth: Bools) -> tuple[slice, ...] | None:
    """The box that holds both masks; None where both are empty."""
    box: list[slice] = []
    for axis in range(pred.ndim):
        # What earlier axes left out need not be looked at again.
        part = (*box, *(slice(None) for _ in range(pred.ndim - axis)))
        others = tuple(a for a in range(pred.ndim) if a != axis)
        used = np.flatnonzero(pred[part].any(axis=others) | truth[part].any(axis=others))
        if len(used) == 0:
            return None
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def _padded(mask: Bools) -> Array:
    """The mask as bytes with a rim of outside around it."""
    out = np.zeros([n + 2 for n in mask.shape], dtype=np.uint8)
    out[(slice(1, -1),) * mask.ndim] = mask.view(np.uint8) if mask.flags.c_contiguous else mask
    return out


def _words(flags: Array) -> Array:
    """Flags of all voxels in a row as bits of 64-bit words, the first in the lowest bit, and one word of zeros."""
    packed = np.packbits(flags.reshape(-1), bitorder="little")
    words = np.zeros(len(packed) // 8 + 2, dtype="<u8")
    words.view(np.uint8)[: len(packed)] = packed
    return words


def _shifted(words: Array, voxels: int) -> Array:
    """Words in which each voxel has the flag of the one so many places after it (before it, if negative)."""
    skip, bits = divmod(voxels, 64)
    out = np.zeros_like(words)
    n = len(words)
    for whole, by in ((skip, bits), (skip + 1, bits - 64)):
        start, stop = max(0, -whole), min(n, n - whole)
        if by > -64 and start < stop:
            source = words[start + whole : stop + whole]
            out[start:stop] |= source >> np.uint64(by) if by >= 0 else source << np.uint64(-by)
    return out


def _set_places(words: Array) -> Array:
    """Places of the flags that are set, ascending."""
    used = np.flatnonzero(words.view(np.uint8))
    bits = np.unpackbits(words.view(np.uint8)[used, None], axis=1, bitorder="little")
    row, bit = np.nonzero(bits)
    return used[row] * 8 + bit


def _elements(mask: Array, spacing: Floats, elements: Elements) -> tuple[Array, Floats]:
    """Places of a mask's surface elements in the padded box, and what each counts.

    The place of an element between voxels is that of the block's first voxel: half a voxel off, as all others are.
    """
    words = _words(mask)
    strides = [int(np.prod(mask.shape[axis + 1 :])) for axis in range(mask.ndim)]
    if elements == "voxel":
        inner = words.copy()
        for stride in strides:
            inner &= _shifted(words, stride) & _shifted(words, -stride)
        places = _set_places(words & ~inner)
        return places, np.ones(len(places))
    some, every = words, words
    for stride in strides:
        some, every = some | _shifted(some, stride), every & _shifted(every, stride)
    places = _set_places(some & ~every)
    values, code = mask.reshape(-1), np.zeros(len(places), dtype=np.intp)
    steps = np.array([0])
    for stride in strides:
        steps = (steps[:, None] + (0, stride)).reshape(-1)  # ends as bit 4 a + 2 b + c
    for bit, step in enumerate(steps):
        code |= values[places + step].astype(np.intp) << bit
    table = surfel_areas(spacing) if mask.ndim == 3 else contour_lengths(spacing)
    return places, table[code]


def _weighted_quantile(values: Floats, sizes: Floats, reach: float, share: float) -> float:
    """The smallest value up to which the sizes add up to `reach`, sorting only where it lies."""
    near = values == 0
    less = float(sizes[near].sum())
    if less >= reach:
        return 0.0
    values, sizes = values[~near], sizes[~near]
    # Most elements lie well below a high percentile; where their areas say otherwise, the other part is sorted.
    place = int(len(values) * max(0.0, share - 0.1))
    low = values <= np.partition(values, place)[place]
    below = less + float(sizes[low].sum())
    part, start = (~low, below) if below < reach and not low.all() else (low, less)
    order = np.argsort(values[part])
    at = int(np.searchsorted(start + np.cumsum(sizes[part][order]), reach))
    return float(values[part][order[min(at, len(order) - 1)]])


def _nearest(first: Array, second: Array, shape: tuple[int, ...], spacing: Floats) -> tuple[Floats, Floats]:
    """Distance from each place of one surface to the nearest of the other, both ways."""
    if len(first) == 0 or len(second) == 0:
        return np.full(len(first), np.inf), np.full(len(second), np.inf)
    flags = np.zeros((2, math.prod(shape)), dtype=bool)
    flags[0, first] = flags[1, second] = True
    find = _by_transform if len(first) + len(second) > _TREE_SHARE * math.prod(shape) else _by_tree
    beside = _neighbours(shape, spacing)
    out = []
    for places, others, other in ((first, second, flags[1]), (second, first, flags[0])):
        # Most elements of a good answer lie on the other surface or beside it.
        distances = np.zeros(len(places))
        rest = np.flatnonzero(~other[places])
        for step, length in beside:
            found = other[places[rest] + step]
            distances[rest[found]] = length
            rest = rest[~found]
        if len(rest):
            distances[rest] = find(places[rest], others, shape, spacing)
        out.append(distances)
    return out[0], out[1]


def _neighbours(shape: tuple[int, ...], spacing: Floats) -> list[tuple[int, float]]:
    """Steps in flat memory to the neighbours that are nearer than any voxel beyond them, with their distance, in order.

    No surface element lies at the upper rim of the padded box, so that a step that leaves the box at one side and comes in
    at the other, or before the first place, finds nothing.
    """
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    steps = [step for step in itertools.product((-1, 0, 1), repeat=len(shape)) if any(step)]
    lengths = [
        (float(np.linalg.norm(np.array(step) * spacing)), sum(a * b for a, b in zip(step, strides, strict=True)))
        for step in steps
    ]
    return [(place, length) for length, place in sorted(lengths) if length <= 2 * spacing.min()]


def _points(places: Array, shape: tuple[int, ...], spacing: Floats) -> Floats:
    return np.stack(np.unravel_index(places, shape), axis=1) * spacing


def _by_transform(places: Array, others: Array, shape: tuple[int, ...], spacing: Floats) -> Floats:
    from scipy import ndimage

    free = np.ones(shape, dtype=bool)
    free.reshape(-1)[others] = False
    # Only the indices of the nearest: the distances of all voxels would take as long again.
    nearest = ndimage.distance_transform_edt(free, sampling=spacing, return_distances=False, return_indices=True)
    steps = [row.reshape(-1)[places] for row in nearest]
    away = np.stack(steps, axis=1) - np.stack(np.unravel_index(places, shape), axis=1)
    return np.asarray(np.linalg.norm(away * spacing, axis=1))


def _by_tree(places: Array, others: Array, shape: tuple[int, ...], spacing: Floats) -> Floats:
    from scipy.spatial import cKDTree

    # Points on a lattice are spread evenly enough for cuts in the middle, which are fast to make.
    tree = cKDTree(_points(others, shape, spacing), leafsize=32, balanced_tree=False)
    return np.asarray(tree.query(_points(places, shape, spacing), workers=-1)[0])
