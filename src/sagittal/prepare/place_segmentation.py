"""Segmentations that lie on another grid than their image: placed by position, or refused."""

from __future__ import annotations

from itertools import product

import numpy as np

from sagittal.case import Case
from sagittal.errors import GeometryError
from sagittal.formats.label_map import stack_masks
from sagittal.grid import Grid
from sagittal.prepare.align import bring, describe_grid, same_lattice, voxel_map
from sagittal.truth import Segmentation
from sagittal.types import Bools

#: Grids cover the same region if their outer corners agree within this many of the larger voxels.
_CORNERS = 1.0


def place_segmentation(segmentation: Segmentation, case: Case, grid: Grid) -> tuple[Segmentation, str]:
    """A segmentation moved to a grid by its position in the patient, and what was done in words.

    That is done where both headers say so without contradiction: the segmentation covers the same region with other
    voxels, or is a part of the same lattice (as 3D Slicer cuts it; outside it is background), or has the grid of another
    image of the case (outside it is unknown). All else is refused, above all a header that puts as many voxels elsewhere:
    only a person can tell whether header or mask is wrong.

    Raises
    ------
    GeometryError
        With both grids and what to do.
    """
    own = segmentation.grid
    both = f"the segmentation has {describe_grid(own)}; the image has {describe_grid(grid)}"
    if own.dimensions == 2 and grid.dimensions == 3:
        raise GeometryError(
            f"case {case.id}: the segmentation is a single plane, but the image is a volume: {both}. Outline the volume, or "
            "give the plane that was outlined as the image."
        )
    if own.affine is None or grid.affine is None:
        raise GeometryError(
            f"case {case.id}: segmentation and image lie on different grids, and without both positions they cannot be "
            f"brought together: {both}. Resample the segmentation to the image (nearest neighbour), or export it with its "
            "position."
        )
    start = _crop_of(own, grid)
    if start is not None:
        layers = np.zeros((len(segmentation.layers), *grid.shape), dtype=segmentation.layers.dtype)
        box = tuple(slice(s, s + n) for s, n in zip(start, own.shape, strict=True))
        layers[(slice(None), *box)] = segmentation.layers
        return (
            Segmentation(layers, grid, segmentation.structures, segmentation.ignore),
            "the segmentation covers a part of the image and was placed by its position",
        )
    if not (_same_region(own, grid) or _grid_of_another(case, own)):
        raise GeometryError(
            f"case {case.id}: segmentation and image lie on different grids: {both}. If they are alike voxel by voxel, one "
            "header is wrong: copy the image's header to the mask. If the mask was drawn on another image, give that "
            "image, or resample the mask to this one (nearest neighbour)."
        )
    return (
        _resampled(segmentation, grid),
        f"the segmentation was brought to the image by position ({both})",
    )


def _crop_of(own: Grid, grid: Grid) -> tuple[int, ...] | None:
    """Where a grid begins in a larger one of the same lattice; ``None`` if it is no part of it."""
    if own.shape == grid.shape:
        return None
    matrix = voxel_map(grid, own)
    first = np.rint(matrix[:3, 3])
    last = np.array(own.shape) - 1
    off = matrix[:3, :3] @ last + matrix[:3, 3] - (first + last)
    straight = np.abs(matrix[:3, :3] - np.eye(3)).max() < 1e-2
    aligned = max(float(np.abs(off).max()), float(np.abs(matrix[:3, 3] - first).max())) < 0.1
    inside = (first >= 0).all() and (first + last < np.array(grid.shape)).all()
    return tuple(int(v) for v in first) if straight and aligned and inside else None


def _same_region(own: Grid, grid: Grid) -> bool:
    """Whether two grids cover the same box of the patient, within one of the larger voxels."""
    matrix = voxel_map(grid, own)
    ends = [np.array([-0.5, n - 0.5]) for n in own.shape]
    corners = np.array(list(product(*ends))) @ matrix[:3, :3].T + matrix[:3, 3]
    ideal = np.array(list(product(*[np.array([-0.5, n - 0.5]) for n in grid.shape])))
    allowed = _CORNERS * np.maximum(1.0, np.asarray(own.spacing)[None].max() / np.asarray(grid.spacing))
    apart = np.abs(corners[:, None] - ideal[None]) <= allowed
    return bool(apart.all(axis=2).any(axis=0).all() and apart.all(axis=2).any(axis=1).all())


def _grid_of_another(case: Case, own: Grid) -> bool:
    return len(case.images) > 1 and any(
        grid.has_position and same_lattice(grid, own)
        for grid in (source.load().grid for source in case.images.values())
    )


def _resampled(segmentation: Segmentation, grid: Grid) -> Segmentation:
    """Each structure sampled linearly at the voxels of another grid and kept where it has half of one or more."""

    def part(mask: Bools, fill: float) -> Bools:
        return np.asarray(bring(mask[np.newaxis].astype(np.float32), segmentation.grid, grid, fill=fill)[0] >= 0.5)

    masks = {s.name: part(segmentation.mask(s.name), 0) for s in segmentation.structures}
    unknown = ~part(np.ones(segmentation.grid.shape, dtype=bool), 0)
    if segmentation.ignore is not None:
        unknown |= part(segmentation.unknown, 1)
    return stack_masks(masks, grid, unknown if unknown.any() else None)
