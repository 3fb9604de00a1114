"""Masks of parts of an image, each placed at the corner that a table gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.errors import DataError, GeometryError
from sagittal.formats.label_map import read_label_map, stack_masks
from sagittal.formats.open_image import read_image
from sagittal.grid import Grid
from sagittal.truth import Segmentation
from sagittal.types import Array


def read_crops(
    files: Sequence[Path],
    *,
    crops: Sequence[Mapping[str, Any]],
    structures: Mapping[str, Sequence[int]] | None = None,
    background: Sequence[int] = (),
    ignore: int | None = None,
) -> Segmentation:
    """The segmentation in masks of parts of an image, on the grid of the image.

    A mask of the image's own size is placed as it is, whatever its corner.

    Parameters
    ----------
    files : sequence of Path
        The masks, then the image.
    crops : sequence of mapping
        One a mask: ``at``, the column and row (and slice) of its first voxel in the image, counted from 0; and ``name``,
        what it outlines, where the masks are of one structure each.
    structures : mapping of str to sequence of int, optional
        Name -> values, for masks whose values tell structures apart.
    background : sequence of int
        Values beside 0 that count as background.
    ignore : int, optional
        Value of which nothing is known.

    Raises
    ------
    ReadError
        If a file cannot be read.
    GeometryError
        If a mask reaches out of the image.
    DataError
        As :func:`sagittal.formats.label_map.read_label_map`, or if two masks give one voxel different values.
    """
    grid = read_image(files[len(crops)]).grid
    parts = []
    for file, crop in zip(files, crops, strict=False):
        names = {"structures": structures} if structures is not None else {"names": [str(crop["name"])]}
        found = read_label_map([file], background=background, ignore=ignore, **names)
        parts.append((found, _place(found.grid.shape, grid, crop)))
    if structures is None:
        return _joined(parts, [str(crop["name"]) for crop in crops], grid, ignore is not None)
    kind = np.result_type(*(found.layers.dtype for found, _ in parts))
    layer = np.zeros(grid.shape, kind)
    for found, place in parts:
        here, values = layer[place], found.layers[0]
        if np.any((here != values) & (here != 0) & (values != 0)):
            raise DataError("two masks of parts of the image give a voxel different values; correct one of them")
        here[values != 0] = values[values != 0]
    return Segmentation(layer[np.newaxis], grid, parts[0][0].structures, parts[0][0].ignore)


def _joined(
    parts: Sequence[tuple[Segmentation, tuple[slice, ...]]], names: Sequence[str], grid: Grid, ignored: bool
) -> Segmentation:
    masks: dict[str, Array] = {name: np.zeros(grid.shape, bool) for name in names}
    unknown = np.zeros(grid.shape, bool)
    for (found, place), name in zip(parts, names, strict=True):
        masks[name][place] |= found.mask(name)
        unknown[place] |= found.unknown
    return stack_masks(masks, grid, unknown if ignored else None)


def _place(shape: tuple[int, int, int], grid: Grid, crop: Mapping[str, Any]) -> tuple[slice, ...]:
    if shape == grid.shape:
        return tuple(slice(0, n) for n in shape)
    corner = [int(n) for n in crop["at"]]
    corner += [0] * (3 - len(corner))
    ends = [start + n for start, n in zip(corner, shape, strict=True)]
    if min(corner) < 0 or any(end > n for end, n in zip(ends, grid.shape, strict=True)):
        raise GeometryError(
            f"a mask of {_size(shape)} voxels at ({', '.join(map(str, corner))}) reaches out of the image of "
            f"{_size(grid.shape)}: its place or the image is wrong. The place is the first voxel's column and row, counted "
            "from 0"
        )
    return tuple(slice(start, end) for start, end in zip(corner, ends, strict=True))


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape[:2] if len(shape) > 2 and shape[2] == 1 else shape))
