"""Masks of single slices, eight voxels to a byte, to the layers of a segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sagittal.errors import GeometryError
from sagittal.grid import Grid
from sagittal.guard.limits import check_memory, check_size
from sagittal.truth import Segmentation
from sagittal.types import Array

#: Slice index -> (J * I bits) packed with the first voxel in the lowest bit, as DICOM packs them.
Slices = Mapping[int, Array]
#: Lattices are the same where no corner lies further from a voxel of the other than this part of a voxel.
SAME_LATTICE = 0.05


def pack(mask: Array) -> Array:
    """The bits of a (J, I) bool mask, first voxel in the lowest bit."""
    return np.packbits(mask.reshape(-1), bitorder="little")


def stack_slices(
    shape: tuple[int, int, int], masks: Sequence[Slices], values: Sequence[int]
) -> tuple[Array, tuple[int, ...]]:
    """Layers of the masks of several structures, those that overlap in different ones.

    Parameters
    ----------
    shape : (I, J, K)
    masks : sequence of Slices
        The slices of each structure that hold something.
    values : sequence of int
        The voxel value that stands for each.

    Returns
    -------
    layers : (L, I, J, K) uint8 or uint16
    layer_of : tuple of int
        The layer of each structure.
    """
    columns, rows, slices = shape
    taken: list[dict[int, Array]] = [{}]
    layer_of = []
    for mask in masks:
        place = next((n for n, used in enumerate(taken) if not _meet(used, mask)), len(taken))
        if place == len(taken):
            taken.append({})
        used = taken[place]
        for k, bits in mask.items():
            used[k] = used[k] | bits if k in used else bits
        layer_of.append(place)
    kind = np.uint8 if max(values, default=0) < 256 else np.uint16
    size = check_size((len(taken), slices, rows, columns), "segmentation", limit=2**34)
    check_memory(size * np.dtype(kind).itemsize, "segmentation")
    layers = np.zeros((len(taken), slices, rows * columns), dtype=kind)
    for mask, value, place in zip(masks, values, layer_of, strict=True):
        for k, bits in mask.items():
            voxels: Array = np.unpackbits(bits, count=rows * columns, bitorder="little").astype(kind, copy=False)
            layers[place, k] |= voxels * layers.dtype.type(value)
    return layers.reshape(-1, slices, rows, columns).transpose(0, 3, 2, 1), tuple(layer_of)


def _meet(used: Slices, mask: Slices) -> bool:
    return any(k in used and bool((used[k] & bits).any()) for k, bits in mask.items())


def place_on(segmentation: Segmentation, grid: Grid) -> Segmentation:
    """The segmentation on the grid of its image, where both are the same lattice; nothing is resampled.

    The segmentation may cover a part of the image, and count its axes in another order or direction.

    Raises
    ------
    GeometryError
        If either has no position, the voxels do not coincide, or something outlined lies outside the image.
    """
    own = segmentation.grid
    if own.affine is None or grid.affine is None:
        if own.affine is None and grid.affine is None and own.shape == grid.shape:
            return segmentation
        raise GeometryError(
            "the segmentation or its image has no position in the patient, so neither tells where it lies"
        )
    if own.same_place(grid):
        return segmentation
    steps = np.linalg.inv(grid.affine) @ own.affine  # voxel of the segmentation -> voxel of the image
    whole = np.rint(steps)
    corners = np.array(
        [[i, j, k, 1] for i in (0, own.shape[0] - 1) for j in (0, own.shape[1] - 1) for k in (0, own.shape[2] - 1)]
    )
    away = float(np.abs(corners @ (steps - whole).T).max())
    turned = whole[:3, :3]
    if own.shape[2] == 1 and np.abs(steps[:3, 2] - turned[:, 2]).max() > SAME_LATTICE:
        turned[:, 2] = np.rint(steps[:3, 2] / np.linalg.norm(steps[:3, 2]))  # one slice: its thickness has no say
    if (
        away > SAME_LATTICE
        or not np.array_equal(np.abs(turned) @ np.ones(3), np.ones(3))
        or abs(np.linalg.det(turned)) != 1
    ):
        raise GeometryError(
            f"the segmentation and its image lie on different lattices: {own.shape} voxels of {_mm(own)} mm and "
            f"{grid.shape} of {_mm(grid)} mm, up to {away:.2g} voxels apart. Resample the segmentation onto the image "
            "first, with nearest-neighbour interpolation."
        )
    source = [int(np.flatnonzero(turned[axis])[0]) for axis in range(3)]  # image axis -> axis of the segmentation
    layers = segmentation.layers.transpose(0, *(axis + 1 for axis in source))
    into, out_of = [slice(None)], [slice(None)]
    for axis in range(3):
        start, count = int(whole[axis, 3]), own.shape[source[axis]]
        if turned[axis, source[axis]] < 0:
            layers = np.flip(layers, axis + 1)
            start -= count - 1
        low, high = max(start, 0), min(start + count, grid.shape[axis])
        into.append(slice(low, max(high, low)))
        out_of.append(slice(low - start, max(high, low) - start))
    inside = layers[tuple(out_of)]
    outside = int(np.count_nonzero(layers)) - int(np.count_nonzero(inside))
    if outside:
        raise GeometryError(
            f"{outside:,} outlined voxels lie outside the image of {grid.shape} voxels: the segmentation belongs to "
            "another image, or the image is cropped"
        )
    placed = np.zeros((len(layers), *grid.shape[::-1]), dtype=layers.dtype).transpose(0, 3, 2, 1)
    placed[tuple(into)] = inside
    return Segmentation(placed, grid, segmentation.structures, segmentation.ignore)


def _mm(grid: Grid) -> str:
    return " x ".join(f"{value:.4g}" for value in np.asarray(grid.spacing))
