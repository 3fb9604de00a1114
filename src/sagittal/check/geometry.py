"""Do the grids of one case agree: of its images with each other, and of its mask with its image?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from sagittal.check.facts import CaseFacts
from sagittal.check.findings import Finding, number_of, some
from sagittal.grid import Grid

#: Corners of two grids that lie within this share of a voxel's shortest edge are at the same place: headers keep four to
#: seven digits, and tools that write 1e-8 mm of difference mean none.
SHARE_OF_VOXEL = 0.05
#: From half a voxel on, a mask names other voxels than its author meant.
_HALF = 0.5


def check_grids(facts: Mapping[str, CaseFacts]) -> Iterator[Finding]:
    """Findings about grids that should be one and are not.

    A mask is compared with the image of its case that it fits best. Shapes must be equal; positions within a twentieth
    of the shortest voxel edge. Where one of the two has no position, spacings are compared, and else nothing is said.
    """
    wrong: dict[str, str] = {}
    flat: dict[str, str] = {}
    slight: dict[str, str] = {}
    images: dict[str, str] = {}
    for case, found in facts.items():
        if found.mask is not None and found.images:
            told = [_difference(image.grid, found.mask.grid, "image", "mask") for image in found.images.values()]
            voxels, text = min(told)
            if found.mask.shape[2] == 1 and all(image.shape[2] > 1 for image in found.images.values()):
                flat[case] = text
            elif voxels >= _HALF:
                wrong[case] = text
            elif voxels > SHARE_OF_VOXEL:
                slight[case] = text
        first, *others = found.images.items() if found.images else [(None, None)]
        for name, image in others:
            if first[1] is not None and image is not None:
                voxels, text = _difference(first[1].grid, image.grid, f"'{first[0]}'", f"'{name}'")
                if voxels > SHARE_OF_VOXEL:
                    images[case] = text
    if wrong:
        yield Finding(
            "error",
            "mask-on-another-grid",
            f"{number_of(len(wrong), 'mask does', 'masks do')} not lie on the grid of the image: {_first(wrong)}. Draw them on the image again, or "
            "resample the mask onto the image's grid by nearest neighbour and look at it.",
            tuple(wrong),
            details=wrong,
        )
    if flat:
        yield Finding(
            "error",
            "mask-of-one-slice",
            f"{number_of(len(flat), 'mask is', 'masks are')} a single slice where the image is a volume: {_first(flat)}. Nothing says to "
            "which slice it belongs or what the others hold. Export the outlines as a volume on the image's grid, or use "
            "single slices as images.",
            tuple(flat),
            details=flat,
        )
    if slight:
        yield Finding(
            "warning",
            "mask-slightly-off",
            f"{number_of(len(slight), 'mask lies', 'masks lie')} less than half a voxel beside the image: {_first(slight)}. The voxels are taken as "
            "they are numbered; copy the image's header to the mask if that is meant.",
            tuple(slight),
            details=slight,
        )
    if images:
        yield Finding(
            "warning",
            "images-on-different-grids",
            f"the images of {number_of(len(images), 'case')} do not share a grid: {_first(images)}. They are resampled onto the first one "
            "where a model sees both; check that they are of one examination.",
            tuple(images),
            details=images,
        )


def corner_distance_mm(grid: Grid, other: Grid) -> float:
    """The largest distance between corresponding corners of two grids with position, in mm."""
    ends = np.array([[0, n - 1] for n in grid.shape]), np.array([[0, n - 1] for n in other.shape])
    places = []
    for g, end in zip((grid, other), ends, strict=True):
        corners = np.array([[i, j, k, 1] for i in end[0] for j in end[1] for k in end[2]])
        places.append((corners @ np.asarray(g.affine).T)[:, :3])
    return float(np.linalg.norm(places[0] - places[1], axis=1).max())


def _difference(grid: Grid, other: Grid, name: str, other_name: str) -> tuple[float, str]:
    """By how many voxels two grids differ, ``inf`` for another shape, and how in words."""
    positions = grid.has_position and other.has_position
    apart = corner_distance_mm(grid, other) if positions else 0.0
    if grid.shape != other.shape:
        far = f", corners up to {apart:.3g} mm apart" if positions else ""
        if positions and _spacing(grid) != _spacing(other):
            far += f", spacing {_spacing(grid)} and {_spacing(other)} mm"
        if sorted(grid.shape) == sorted(other.shape):
            far += ": the same numbers in another order, as if axes were exchanged"
        return np.inf, f"{name} has {_shape(grid)} voxels, {other_name} {_shape(other)}{far}"
    if positions:
        edge = float(np.nanmin(np.asarray(grid.spacing)))
        text = f"{name} and {other_name} have the same shape, but corners up to {apart:.3g} mm apart"
        if _spacing(grid) != _spacing(other):
            text += f" (spacing {_spacing(grid)} and {_spacing(other)} mm)"
        return apart / edge, text
    if grid.spacing is not None and other.spacing is not None:
        one, two = np.asarray(grid.spacing), np.asarray(other.spacing)
        with np.errstate(invalid="ignore"):
            # Over the whole axis, as corners would tell it.
            voxels = float(np.nanmax(np.abs(one - two) * (np.array(grid.shape) - 1) / one, initial=0))
        return voxels, f"spacing {_spacing(grid)} mm of {name} and {_spacing(other)} mm of {other_name}"
    return 0.0, ""


def _shape(grid: Grid) -> str:
    return " x ".join(map(str, grid.shape))


def _spacing(grid: Grid) -> str:
    return "unknown" if grid.spacing is None else " x ".join(f"{mm:.4g}" for mm in np.asarray(grid.spacing))


def _first(details: Mapping[str, str]) -> str:
    case, text = next(iter(details.items()))
    rest = [name for name in details if name != case]
    return f"case {case}: {text}" + (f"; also {some(rest, 4)}" if rest else "")
