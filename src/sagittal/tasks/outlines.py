"""Structures of segmentations cut to their boxes, so that a small one in a large study costs little."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagittal.case import Case
from sagittal.errors import DataError
from sagittal.grid import Grid
from sagittal.labels import LabelScheme
from sagittal.prepare.truth_maps import structure_truth
from sagittal.truth import Segmentation, SegmentationSource
from sagittal.types import Array, Bools

Box = tuple[slice, slice, slice]


def find_boxes(segmentation: Segmentation) -> dict[str, Box]:
    """The box of each structure that has voxels, from one pass over each layer."""
    from scipy import ndimage

    out: dict[str, Box] = {}
    objects: dict[int, list[Any]] = {}
    for structure in segmentation.structures:
        if structure.layer not in objects:
            layer = segmentation.layers[structure.layer]
            most = max(
                (max(s.values, default=0) for s in segmentation.structures if s.layer == structure.layer), default=0
            )
            objects[structure.layer] = ndimage.find_objects(layer, max_label=most) if most else []
        parts = [objects[structure.layer][value - 1] for value in structure.values if value > 0]
        there = [part for part in parts if part is not None]
        if there:
            box = there[0]
            for part in there[1:]:
                box = union(box, part)
            out[structure.name] = box
    return out


def union(first: Box | None, second: Box | None) -> Box:
    """The box around two boxes; one voxel where there is none."""
    if first is None or second is None:
        return first or second or (slice(0, 1), slice(0, 1), slice(0, 1))
    i, j, k = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))
    return i, j, k


def thick(box: Box, grid: Grid) -> Box:
    """The box with two slices at least where the study has them: one alone would be measured as a picture."""
    i, j, k = box
    if k.stop - k.start > 1 or grid.shape[2] == 1:
        return box
    return i, j, slice(k.start, k.stop + 1) if k.stop < grid.shape[2] else slice(k.start - 1, k.stop)


def cut(segmentation: Segmentation, name: str, box: Box, hidden: Array | None = None) -> Bools:
    """The voxels of a structure in a box, without those that are hidden.

    Raises
    ------
    DataError
        If no structure has that name.
    """
    structure = next((s for s in segmentation.structures if s.name == name), None)
    if structure is None:
        return segmentation.mask(name)[box]  # which says what is there
    part = segmentation.layers[structure.layer][box]
    mask = part == structure.values[0] if len(structure.values) == 1 else np.isin(part, structure.values)
    if hidden is not None:
        mask &= ~hidden
    return np.ascontiguousarray(mask)


def true_segmentation(case: Case, scheme: LabelScheme, grid: Grid) -> Segmentation | None:
    """The truth on the study's grid; ``None`` where there is none.

    Raises
    ------
    DataError
        If the truth is of another kind.
    GeometryError, ReadError
        If it cannot be read or brought to the grid.
    """
    if case.truth is None:
        return None
    if not isinstance(case.truth, SegmentationSource):
        raise DataError(f"case {case.id}: its truth outlines no structures; a mask cannot be measured against it")
    return structure_truth(case, scheme, grid).segmentation
