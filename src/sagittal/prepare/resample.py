"""Resampling of arrays on regular lattices, one axis at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from sagittal.types import Array, Floats

#: Outputs that are computed together along an axis.
_BLOCK = 32


def resize(array: Floats, size: Sequence[int]) -> Floats:
    """Resample the last axes to a new size, linearly, without aliasing.

    Each output sample is a triangle-weighted mean over its footprint, as wide as the shrink factor, so that thin
    structures are averaged and not skipped. Both lattices cover the same extent: voxel edges coincide, not centres.

    Parameters
    ----------
    array : (..., *old) float
    size : tuple of int
        New sizes of the last ``len(size)`` axes.

    Returns
    -------
    (..., *size) float32

    Examples
    --------
    >>> [round(v, 3) for v in resize(np.arange(8.0), [4]).tolist()]
    [0.714, 2.5, 4.5, 6.286]
    """
    result: Array = np.asarray(array, dtype=np.float32)
    first = result.ndim - len(size)
    # The axis that shrinks most comes first: every later product is then smaller.
    order = sorted(range(len(size)), key=lambda n: size[n] / result.shape[first + n])
    for n in order:
        axis, old, new = first + n, result.shape[first + n], int(size[n])
        if old != new:
            result = _product(_weights(old, new), result, axis)
    return np.ascontiguousarray(result)


def resize_part(
    part: Floats, start: Sequence[int], whole: Sequence[int], size: Sequence[int]
) -> tuple[Floats, tuple[int, ...]]:
    """What :func:`resize` makes of an array that is 0 outside a part of it, where that is not 0.

    Parameters
    ----------
    part : (*n) float
    start : tuple of int
        Where the part begins in the array.
    whole : tuple of int
        Size of the array.
    size : tuple of int
        New size of the array.

    Returns
    -------
    resized : (*m) float32
    start : tuple of int
        Where it begins in the resized array.

    Examples
    --------
    >>> whole = np.zeros(8)
    >>> whole[2:5] = 1
    >>> part, start = resize_part(whole[2:5], [2], [8], [4])
    >>> np.allclose(resize(whole, [4])[start[0] : start[0] + len(part)], part)
    True
    """
    result: Array = np.asarray(part, dtype=np.float32)
    first = []
    for axis, (low, old, new) in enumerate(zip(start, whole, size, strict=True)):
        n = result.shape[axis]
        if old == new:
            first.append(low)
            continue
        weights = _weights(old, int(new))[:, low : low + n]
        used = np.flatnonzero(weights.any(axis=1))
        first.append(int(used[0]))
        result = _product(weights[used[0] : used[-1] + 1], result, axis)
    return np.ascontiguousarray(result), tuple(first)


def _product(weights: Floats, array: Floats, axis: int) -> Floats:
    """Weights (new, old) applied along an axis; in blocks, because each output sees few inputs."""
    moved = np.moveaxis(array, axis, -1)
    result = np.empty((*moved.shape[:-1], len(weights)), dtype=np.float32)
    lines, made = moved.reshape(-1, moved.shape[-1]), result.reshape(-1, len(weights))
    for start in range(0, len(weights), _BLOCK):
        rows = weights[start : start + _BLOCK]
        used = np.flatnonzero(rows.any(axis=0))
        low, high = int(used[0]), int(used[-1]) + 1
        made[:, start : start + _BLOCK] = lines[:, low:high] @ rows[:, low:high].T
    return np.moveaxis(result, -1, axis)


@lru_cache(maxsize=64)
def _weights(old: int, new: int) -> Floats:
    """Rows of weights that sum to 1: (new, old) float32."""
    scale = old / new
    width = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(old)[None, :] - centres[:, None]) / width
    weights = np.clip(1 - distance, 0, None)
    # Enlarging reaches beyond the first and last centre: the edge value holds there.
    weights /= weights.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


def place(array: Floats, size: Sequence[int], fill: float) -> tuple[Floats, tuple[int, ...]]:
    """Crop or pad the last axes about their centre.

    Parameters
    ----------
    array : (..., *old) float
    size : tuple of int
    fill : float
        Value of the padding.

    Returns
    -------
    placed : (..., *size), same dtype
    start : tuple of int
        Index of the old first voxel in the new array; negative where the array was cropped.
    """
    first = array.ndim - len(size)
    placed = np.full((*array.shape[:first], *size), fill, dtype=array.dtype)
    start = tuple((new - old) // 2 for new, old in zip(size, array.shape[first:], strict=True))
    into, out = overlap(array.shape[first:], tuple(size), start)
    lead = (slice(None),) * first
    placed[lead + into] = array[lead + out]
    return placed, start


def overlap(
    old: Sequence[int], new: Sequence[int], start: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The common part of an array placed at `start` in another: slices of the new and of the old one."""
    into = tuple(slice(max(s, 0), min(s + o, n)) for s, o, n in zip(start, old, new, strict=True))
    out = tuple(slice(i.start - s, i.stop - s) for i, s in zip(into, start, strict=True))
    return into, out
