"""From a study to an array of its own size, for questions whose answer has a place: one preprocessing for all uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sagittal.case import Case
from sagittal.errors import ScopeError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.prepare.align import align
from sagittal.prepare.arrays import check_finite, encode_table, network_axes, planned_images, turned_images
from sagittal.prepare.lattice import Lattice
from sagittal.prepare.plan import Plan, PreparePlan
from sagittal.prepare.resample import resize
from sagittal.types import Array, Floats

#: Voxels that are looked at together.
_AT_ONCE = 4_000_000


@dataclass(frozen=True, eq=False)
class PreparedVolume:
    """A study as windows are cut from it, with the way back.

    Parameters
    ----------
    array : (C, rows, columns) or (C, slices, rows, columns), dtype of the plan's store
    table : (T,) float32
        Encoded clinical columns, empty where the plan has none.
    lattice : Lattice
        Where the array lies in the study's first image.
    """

    array: Array
    table: Floats
    lattice: Lattice


def prepare_volume(case: Case, plan: Plan) -> PreparedVolume:
    """Read a case and bring it to the plan's voxel size and intensities; its size stays its own.

    Images on different grids are brought to the first one's by their positions. Then, a channel at a time: a border of
    nothing but the lowest value is cut off (where the plan says so), values are clipped, resampled without aliasing,
    normalised and narrowed. Mean and standard deviation of ``image`` and ``nonzero`` are those of each channel within
    the part that is kept, after clipping.

    Raises
    ------
    ReadError, GeometryError
        As the reader says, or if the images of the case cannot be brought to one grid.
    DataError
        If voxels are nan or infinite, or images are missing.
    ScopeError
        If the study has other dimensions or channels than the plan, or lacks a voxel size that the plan needs.
    """
    images = turned_images(planned_images(case, plan.input), plan, case.id)
    for image in images:
        _check_dimensions(image, plan, case.id)
        check_finite(image.data, case.id)
    grid = images[0].grid
    channels = _channels(images, plan, case.id)
    prepare = plan.prepare
    whole = channels[0].shape
    start, extent = (0,) * len(whole), whole
    if prepare.crop:
        start, extent = content_box(channels, -np.inf if prepare.clip is None else prepare.clip[0])
    size = _size(extent, grid, prepare, case.id)
    box = tuple(slice(s, s + e) for s, e in zip(start, extent, strict=True))
    array = np.empty((len(channels), *size), dtype=prepare.store)
    for into, channel in zip(array, channels, strict=True):
        _prepare_channel(channel[box], into, prepare)
    return PreparedVolume(array, encode_table(case.table, plan.input.table), Lattice(grid, size, start, extent))


def resampled_size(extent: Sequence[int], spacing: Sequence[float], plan: PreparePlan) -> tuple[int, ...]:
    """Size of the array of a box of voxels; both, and the spacing in mm, in network order.

    >>> resampled_size((100, 512, 512), (2.5, 0.7, 0.7), PreparePlan(spacing_mm=(2.5, 1.4, 1.4)))
    (100, 256, 256)
    """
    if plan.spacing_mm is not None:
        factor: Floats = np.asarray(spacing, dtype=np.float64) / np.asarray(plan.spacing_mm)
    else:
        factor = np.asarray(plan.zoom or (1.0,) * len(extent))
    return tuple(max(1, round(float(n * f))) for n, f in zip(extent, factor, strict=True))


def _check_dimensions(image: Image, plan: Plan, case: str) -> None:
    wanted = plan.input.dimensions
    if image.grid.dimensions != wanted and not (wanted == 3 and image.grid.shape[2] == 1):
        raise ScopeError(
            f"case {case}: is {image.grid.dimensions}-D with grid {image.grid.shape}, the model was made for {wanted}-D "
            "images. Give it single planes, or train a model on such studies."
        )


def _channels(images: list[Image], plan: Plan, case: str) -> list[Floats]:
    """Every channel in network order, on the first image's grid; views where nothing had to be moved."""
    found: list[Floats] = []
    names = plan.input.images
    for name, image in zip(names, images, strict=True):
        data = align(image.data, image.grid, images[0].grid, case=case, what=name)
        axes = list(network_axes(Image(data, images[0].grid), plan.input.dimensions))
        grey = len(axes) == 1 and plan.input.channels == 3 * len(names)
        found += axes * 3 if grey else axes  # a grey picture among coloured ones
    if len(found) != plan.input.channels:
        raise ScopeError(
            f"case {case}: has {len(found)} channels, the model was made for {plan.input.channels}. Convert the images, or "
            "train a model on such images."
        )
    return found


def content_box(channels: Sequence[Floats], least: float = -np.inf) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Start and extent of the box outside which every channel has nothing but its lowest value.

    Parameters
    ----------
    channels : sequence of (*size) float
    least : float
        Values up to this count as the lowest too.

    Returns
    -------
    start, extent : tuple of int
        The whole where no voxel stands out.
    """
    whole = channels[0].shape
    used = [np.zeros(n, dtype=bool) for n in whole]
    for channel in channels:
        low = max(float(channel.min()), least)
        step = max(1, _AT_ONCE * len(channel) // channel.size)
        for first in range(0, len(channel), step):
            above = channel[first : first + step] > low
            for axis in range(channel.ndim):
                lines = above.any(axis=tuple(a for a in range(channel.ndim) if a != axis))
                if axis == 0:
                    used[0][first : first + step] |= lines
                else:
                    used[axis] |= lines
    if not used[0].any():
        return (0,) * len(whole), whole
    ends = [np.flatnonzero(u)[[0, -1]] for u in used]
    return tuple(int(a) for a, _ in ends), tuple(int(b - a + 1) for a, b in ends)


def content_part(channels: Sequence[Floats]) -> float:
    """What part of the voxels lies in :func:`content_box`.

    >>> content_part([np.pad(np.ones((2, 2, 2)), 1)])
    0.125
    """
    _, extent = content_box(channels)
    return float(np.prod(extent) / np.prod(channels[0].shape))


def _size(extent: tuple[int, ...], grid: Grid, plan: PreparePlan, case: str) -> tuple[int, ...]:
    if plan.spacing_mm is None:
        return resampled_size(extent, (), plan)
    spacing = None if grid.spacing is None else np.asarray(grid.spacing)[::-1][3 - len(extent) :]
    if spacing is None or not np.all(np.isfinite(spacing)):
        raise ScopeError(
            f"case {case}: the file states no voxel size, and the model needs one "
            f"({', '.join(f'{s:g}' for s in plan.spacing_mm)} mm). Convert the study again with its geometry."
        )
    return resampled_size(extent, [float(s) for s in spacing], plan)


def _prepare_channel(channel: Floats, into: Array, plan: PreparePlan) -> None:
    """Clip, resample, normalise and narrow one channel, without a copy where none is needed."""
    mean, scale = _statistics(channel, plan)
    if channel.shape != into.shape:
        channel = resize(channel if plan.clip is None else np.clip(channel, *plan.clip), into.shape)
    for plane, goal in zip(channel, into, strict=True):
        values = plane if plan.clip is None else np.clip(plane, *plan.clip)
        if plan.normalise != "fixed":
            values = (values - np.float32(mean)) * np.float32(scale)
        if plan.store == "uint8":
            goal[...] = np.clip(np.rint(values), 0, 255)
        elif plan.store == "float16":
            goal[...] = np.clip(values, -65504, 65504)
        else:
            goal[...] = values


def _statistics(channel: Floats, plan: PreparePlan) -> tuple[float, float]:
    """Mean, and 1 / standard deviation, of the clipped values that count; (0, 1) where the plan's numbers are fixed."""
    if plan.normalise == "fixed":
        return 0.0, 1.0
    count, total, squares = 0, 0.0, 0.0
    pivot = float(channel[len(channel) // 2].mean(dtype=np.float64))  # keeps the sum of squares exact
    for values in _counted(channel, plan):
        apart = values - pivot
        count, total, squares = count + apart.size, total + float(apart.sum()), squares + float((apart * apart).sum())
    if not count:
        return 0.0, 1.0
    variance = max(squares / count - (total / count) ** 2, 0.0)
    return pivot + total / count, 1 / max(variance**0.5, 1e-6)


def _counted(channel: Floats, plan: PreparePlan) -> Iterator[Floats]:
    for plane in channel:
        kept = plane[plane != 0] if plan.normalise == "nonzero" else plane
        yield (kept if plan.clip is None else np.clip(kept, *plan.clip)).astype(np.float64)
