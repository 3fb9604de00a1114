"""Turn: volumes with their axes along the patient's, whatever order a file keeps them in, and results turned back.

A network that learnt from NIfTI files must see a DICOM series the same way round: what is the back of the head in one may
be the first row in the other. Voxels are only exchanged and reversed, never resampled.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sagittal.errors import ScopeError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.prediction import Detections, Finding, Mask
from sagittal.truth import Boxes, Segmentation
from sagittal.types import Array

if TYPE_CHECKING:
    from collections.abc import Sequence

#: For each axis of a turned grid: which axis of the file it is, and 1, or -1 where it runs the other way.
Turn = tuple[tuple[int, int], ...]


def find_turn(grid: Grid) -> Turn | None:
    """How the axes of a volume come nearest to left, posterior and superior; ``None`` where they are so, or in 2-D.

    Raises
    ------
    ScopeError
        If the volume has no position.

    Examples
    --------
    >>> find_turn(Grid((40, 30, 20), np.array([[0.0, 0, 2, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])))
    ((2, 1), (0, -1), (1, 1))
    """
    if grid.dimensions == 2:
        return None
    if grid.affine is None:
        raise ScopeError(
            "the file does not say how the patient lies in it, and the model needs to know. Convert the study again with its "
            "geometry."
        )
    from nibabel.orientations import io_orientation

    found = np.asarray(io_orientation(grid.affine))  # type: ignore[no-untyped-call]  # for each axis of the file: along which of the patient, in which direction
    turn = tuple((axis, int(found[axis, 1])) for along in range(3) for axis in range(3) if int(found[axis, 0]) == along)
    return None if turn == ((0, 1), (1, 1), (2, 1)) else turn


def turn_image(image: Image) -> Image:
    """The image with its axes along the patient's; a view of its values.

    Raises
    ------
    ScopeError
        If a volume has no position.
    """
    turn = find_turn(image.grid)
    if turn is None:
        return image
    return replace(image, data=turn_array(image.data, turn), grid=turn_grid(image.grid, turn))


def turn_grid(grid: Grid, turn: Turn) -> Grid:
    """The same lattice with its axes in another order and direction."""
    assert grid.affine is not None
    affine = np.eye(4)
    origin = grid.affine[:3, 3].copy()
    for axis, (source, sign) in enumerate(turn):
        affine[:3, axis] = sign * grid.affine[:3, source]
        if sign < 0:
            origin += grid.affine[:3, source] * (grid.shape[source] - 1)
    affine[:3, 3] = origin
    i, j, k = (grid.shape[source] for source, _ in turn)
    return Grid((i, j, k), affine, turned=turn)


def file_grid(grid: Grid) -> Grid:
    """The grid with the axes of the file, from a turned one."""
    if grid.turned is None:
        return grid
    back = turn_grid(grid, inverse(grid.turned))
    return Grid(back.shape, back.affine)


def inverse(turn: Turn) -> Turn:
    """What undoes a turn.

    >>> inverse(((2, 1), (0, -1), (1, 1)))
    ((1, -1), (2, 1), (0, 1))
    """
    found = [(0, 1)] * len(turn)
    for axis, (source, sign) in enumerate(turn):
        found[source] = (axis, sign)
    return tuple(found)


def turn_array(array: Array, turn: Turn) -> Array:
    """A view of an array (..., I, J, K) with its last three axes turned."""
    lead = array.ndim - len(turn)
    moved = array.transpose(*range(lead), *(lead + source for source, _ in turn))
    i, j, k = (slice(None, None, sign) for _, sign in turn)
    return moved[..., i, j, k]


def turn_segmentation(segmentation: Segmentation, grid: Grid) -> Segmentation:
    """A segmentation on the file's grid, on the turned one."""
    if grid.turned is None:
        return segmentation
    return replace(segmentation, layers=turn_array(segmentation.layers, grid.turned), grid=grid)


def turn_boxes(boxes: Boxes, shape: Sequence[int], turn: Turn) -> Boxes:
    """Boxes in voxels of a grid of `shape`, in voxels of the turned one."""
    corners = np.empty_like(boxes.corners)
    for axis, (source, sign) in enumerate(turn):
        values = boxes.corners[:, :, source]
        corners[:, :, axis] = values if sign > 0 else (shape[source] - 1 - values)[:, ::-1]
    return Boxes(corners, boxes.classes, boxes.crowd)


def turn_back(finding: Finding) -> Finding:
    """What was found on a turned grid, on the grid of the file."""
    if not isinstance(finding, (Mask, Detections)) or finding.grid.turned is None:
        return finding
    grid, back = file_grid(finding.grid), inverse(finding.grid.turned)
    if isinstance(finding, Detections):
        boxes = turn_boxes(finding.boxes, finding.grid.shape, back)
        return replace(finding, boxes=boxes, grid=grid)
    segmentation = replace(finding.segmentation, layers=turn_array(finding.segmentation.layers, back), grid=grid)
    return replace(
        finding,
        segmentation=segmentation,
        probability={name: turn_array(values, back) for name, values in finding.probability.items()},
        doubt=None if finding.doubt is None else turn_array(finding.doubt, back),
    )
