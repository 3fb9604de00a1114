"""Outlines to masks: polygons and run lengths, as COCO gives them, on the pixels of one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.errors import DataError
from sagittal.formats.label_map import stack_masks
from sagittal.formats.polygons import fill_even_odd
from sagittal.grid import Grid
from sagittal.guard.limits import MAX_FRAME_VALUES, check_size
from sagittal.truth import Segmentation
from sagittal.types import Array, Floats


def read_shapes(
    files: Sequence[Path], *, size: Sequence[int], names: Sequence[str], shapes: Sequence[Mapping[str, Any]]
) -> Segmentation:
    """The segmentation that outlines describe; nothing is read from disk.

    Parameters
    ----------
    files : sequence of Path
        Not used: the outlines stand in `shapes`.
    size : (2,) int
        Width and height of the picture, in pixels.
    names : sequence of str
        The structures that were looked for, in the order of the scheme.
    shapes : sequence of mapping
        Each with ``name`` and either ``polygons``, lists of x, y, x, y ... in pixels from the upper left corner of the
        picture, or ``counts``, run lengths in the order of columns (a list, or COCO's packed text).

    Raises
    ------
    DataError
        If an outline is malformed.
    """
    width, height = (int(n) for n in size)
    check_size((width, height), "outlines", limit=MAX_FRAME_VALUES)
    masks = {name: np.zeros((width, height), bool) for name in names}
    for shape in shapes:
        if "counts" in shape:
            masks[shape["name"]] |= decode_runs(shape["counts"], (width, height))
        else:
            for polygon in shape["polygons"]:
                masks[shape["name"]] |= fill_polygon(np.reshape(polygon, (-1, 2)), (width, height))
    return stack_masks({name: mask[:, :, np.newaxis] for name, mask in masks.items()}, Grid((width, height, 1)))


def fill_polygon(points: Floats, size: tuple[int, int]) -> Array:
    """The pixels whose centres lie inside a polygon, by the even-odd rule, (width, height) bool.

    Parameters
    ----------
    points : (N, 2) float, pixels
        Corners x, y from the upper left corner of the picture, so that the centre of the first pixel is (0.5, 0.5).
        The last corner joins the first.
    size : (width, height)

    Examples
    --------
    >>> fill_polygon(np.array([[1, 1], [3, 1], [3, 2], [1, 2]]), (4, 3)).T.astype(int)
    array([[0, 0, 0, 0],
           [0, 1, 1, 0],
           [0, 0, 0, 0]])
    """
    points = np.asarray(points, dtype=np.float64)
    if len(points) < 3 or not np.all(np.isfinite(points)):
        return np.zeros(size, dtype=bool)
    return fill_even_odd(points - 0.5, size).T


def decode_runs(counts: str | Sequence[int], size: tuple[int, int]) -> Array:
    """A mask from COCO's run lengths: alternately outside and inside, down the columns, (width, height) bool.

    Parameters
    ----------
    counts : sequence of int, or str
        The lengths, or their packed text: 5 bits a character from ``"0"`` on with a sixth for "more follows", each
        from the fourth length on as the difference from the one two before (pycocotools, maskApi).
    size : (width, height)

    Raises
    ------
    DataError
        If the lengths do not add up to the picture.

    Examples
    --------
    >>> decode_runs([1, 2, 3], (2, 3)).T.astype(int)
    array([[0, 0],
           [1, 0],
           [1, 0]])
    """
    width, height = size
    given = _unpack(counts) if isinstance(counts, str) else counts
    if any(not 0 <= run <= width * height for run in given):
        given = ()
    runs = np.array(given, dtype=np.int64)
    if runs.sum() != width * height:
        raise DataError(f"the run lengths of a mask do not add up to its {width} x {height} pixels")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height)


def _unpack(text: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise DataError("the packed run lengths of a mask are damaged")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise DataError("the packed run lengths of a mask are cut off")
    return runs
