"""From a study to the network's array and back: the one preprocessing of training and prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sagittal.case import Case
from sagittal.errors import DataError, ScopeError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.prepare.plan import ColumnPlan, InputPlan, Plan, PreparePlan
from sagittal.prepare.resample import overlap, place, resize
from sagittal.prepare.turn import inverse, turn_array, turn_image
from sagittal.types import Array, Floats

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Prepared:
    """A study as the network sees it, with the way back.

    Parameters
    ----------
    array : (C, rows, columns) or (C, slices, rows, columns), dtype of the plan's store
    table : (T,) float32
        Encoded clinical columns, empty where the plan has none.
    grid : Grid
        Of the study's first image, turned as the plan says.
    resampled : tuple of int
        Spatial size after resampling, before cropping or padding.
    start : tuple of int
        Where the resampled image begins in the array.
    """

    array: Array
    table: Floats
    grid: Grid
    resampled: tuple[int, ...]
    start: tuple[int, ...]

    def restore(self, heat: Floats) -> Floats:
        """A map on the array's lattice, brought back to the study's grid.

        Parameters
        ----------
        heat : (rows, columns) or (slices, rows, columns) float
            Any spatial size: it is taken to cover the array.

        Returns
        -------
        (I, J, K) float32
            Zero where the network did not look.
        """
        size = self.array.shape[1:]
        full = resize(np.asarray(heat, dtype=np.float32), size)
        inner = np.zeros(self.resampled, dtype=np.float32)
        into, out = overlap(self.resampled, size, self.start)
        inner[out] = full[into]
        i, j, k = self.grid.shape
        if len(size) == 2:
            return np.ascontiguousarray(resize(inner, (j, i)).T[:, :, None])
        found = resize(inner, (k, j, i)).T
        return np.ascontiguousarray(found if self.grid.turned is None else turn_array(found, inverse(self.grid.turned)))


def prepare_case(case: Case, plan: Plan) -> Prepared:
    """Read a case and bring it to the plan's size, in the plan's store type.

    Raises
    ------
    ReadError, GeometryError
        As the reader says.
    DataError
        If voxels are nan or infinite, or images are missing.
    ScopeError
        If the study has other dimensions or channels than the plan, or lacks a voxel size that the plan needs.
    """
    images = turned_images(planned_images(case, plan.input), plan, case.id)
    parts = [_prepare_image(image, plan, case.id) for image in images]
    array = np.concatenate([part[0] for part in parts])
    if array.shape[0] != plan.input.channels:
        raise ScopeError(
            f"case {case.id}: has {array.shape[0]} channels, the model was made for {plan.input.channels}. "
            "Convert the images, or train a model on such images."
        )
    return Prepared(
        array=store_type(array, plan.prepare),
        table=encode_table(case.table, plan.input.table),
        grid=images[0].grid,
        resampled=parts[0][1],
        start=parts[0][2],
    )


def planned_images(case: Case, plan: InputPlan) -> list[Image]:
    """The images of a case that a plan names, read.

    The only image of a plan may have any name in the case; where there are several, none stands in for another.

    Raises
    ------
    ReadError, GeometryError
        As the reader says.
    DataError
        If one is missing.
    """
    alone = len(plan.images) == 1
    return [case.image(None if alone and name not in case.images else name) for name in plan.images]


def turned_images(images: list[Image], plan: Plan, case_id: str) -> list[Image]:
    """Volumes with their axes along the patient's, where the plan says so.

    Raises
    ------
    ScopeError
        If one has no position.
    """
    if not plan.prepare.orient:
        return images
    try:
        return [turn_image(image) for image in images]
    except ScopeError as error:
        raise ScopeError(f"case {case_id}: {error}") from error


def network_axes(image: Image, dimensions: int) -> Floats:
    """The image's values with spatial axes in the network's order.

    Returns
    -------
    (C, rows, columns) or (C, slices, rows, columns) float32
    """
    if dimensions == 2:
        return image.data[..., 0].transpose(0, 2, 1)
    return image.data.transpose(0, 3, 2, 1)


def _prepare_image(image: Image, plan: Plan, case_id: str) -> tuple[Floats, tuple[int, ...], tuple[int, ...]]:
    if image.grid.dimensions != plan.input.dimensions and not (plan.input.dimensions == 3 and image.grid.shape[2] == 1):
        raise ScopeError(
            f"case {case_id}: is {image.grid.dimensions}-D with grid {image.grid.shape}, the model was made for "
            f"{plan.input.dimensions}-D images. Give it single planes, or train a model on such studies."
        )
    array = network_axes(image, plan.input.dimensions)
    check_finite(array, case_id)
    if array.shape[0] == 1 and plan.input.channels == 3 * len(plan.input.images):
        array = np.repeat(array, 3, axis=0)  # a grey picture among coloured ones
    prepare = plan.prepare
    if prepare.clip is not None:
        array = np.clip(array, *prepare.clip)
    if prepare.normalise == "image":
        array = (array - array.mean()) / max(float(array.std()), 1e-6)
    resampled = _resampled_size(array.shape[1:], image.grid, prepare, case_id)
    array = resize(array, resampled)
    placed, start = place(array, prepare.size, fill=float(array.min()))
    return placed, resampled, start


def check_finite(array: Floats, case_id: str) -> None:
    """Refuse voxels that are nan or infinite.

    Raises
    ------
    DataError
        With their number.
    """
    # The sum is finite unless a value is not, or the sum overflows: only then look at each.
    if not math.isfinite(float(array.sum(dtype=np.float64))):
        bad = int(array.size - np.isfinite(array).sum())
        if bad:
            raise DataError(
                f"case {case_id}: {bad} of {array.size} voxels are nan or infinite. Export the study again, or replace "
                "them by the background's value."
            )


def _resampled_size(old: Sequence[int], grid: Grid, plan: PreparePlan, case_id: str) -> tuple[int, ...]:
    """Spatial size, in network order, before cropping or padding to the plan's size."""
    if plan.spacing_mm is not None:
        spacing = None if grid.spacing is None else np.asarray(grid.spacing)[::-1][-len(old) :]
        if spacing is None or not np.all(np.isfinite(spacing)):
            raise ScopeError(
                f"case {case_id}: the file states no voxel size, and the model needs one "
                f"({', '.join(f'{s:g}' for s in plan.spacing_mm)} mm). Convert the study again with its geometry."
            )
        return tuple(max(1, round(n * s / t)) for n, s, t in zip(old, spacing, plan.spacing_mm, strict=True))
    if plan.keep_aspect:
        factor = min(new / n for new, n in zip(plan.size, old, strict=True))
        return tuple(min(new, max(1, round(n * factor))) for new, n in zip(plan.size, old, strict=True))
    return plan.size


def store_type(array: Floats, plan: PreparePlan) -> Array:
    """Values as the store keeps them: whole numbers 0..255 are rounded, floats are narrowed."""
    if plan.store == "uint8":
        return np.clip(np.rint(array), 0, 255).astype(np.uint8)
    return array.astype(plan.store)


def to_input(batch: Tensor, plan: PreparePlan) -> Tensor:
    """Stored arrays as the network's input: (value - offset) / scale, a channel at a time.

    Parameters
    ----------
    batch : (N, C, *size) uint8, float16 or float32

    Returns
    -------
    (N, C, *size) float32
    """
    import torch

    shape = (1, -1) + (1,) * (batch.ndim - 2)
    offset = torch.tensor(plan.offset, dtype=torch.float32, device=batch.device).reshape(shape)
    scale = torch.tensor(plan.scale, dtype=torch.float32, device=batch.device).reshape(shape)
    return (batch.float() - offset) / scale


def is_missing(value: Any) -> bool:
    """Whether a table cell says nothing."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or value == ""


def encode_table(table: Mapping[str, Any], columns: Sequence[ColumnPlan]) -> Floats:
    """Clinical columns as numbers, each with a flag for missing.

    Returns
    -------
    (T,) float32
        Missing numbers are the mean (0 after scaling) and missing categories all zero, with the flag 1.

    Examples
    --------
    >>> columns = [ColumnPlan("age", "number", mean=50, std=10), ColumnPlan("sex", "category", categories=("f", "m"))]
    >>> encode_table({"age": 60, "sex": None}, columns)
    array([1., 0., 0., 0., 1.], dtype=float32)
    """
    numbers: list[float] = []
    for column in columns:
        value = table.get(column.name)
        if column.kind == "number":
            known = number(value)
            numbers += [0.0, 1.0] if known is None else [(known - column.mean) / column.std, 0.0]
        else:
            hot = [float(not is_missing(value) and str(value) == name) for name in column.categories]
            numbers += [*hot, float(not any(hot))]
    return np.array(numbers, dtype=np.float32)


def number(value: Any) -> float | None:
    """A table cell as a finite number, or ``None``."""
    if is_missing(value):
        return None
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def table_width(plan: InputPlan) -> int:
    """Length of the encoded table."""
    return sum(column.width for column in plan.table)
