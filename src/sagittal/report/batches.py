"""Two pictures that show at a glance what a run learned from and what it says: a training batch and validation answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from sagittal.case import Case
from sagittal.errors import SagittalError
from sagittal.prediction import Prediction
from sagittal.prepare.arrays import prepare_case, to_input
from sagittal.prepare.augment import augment
from sagittal.prepare.plan import Plan
from sagittal.tasks.picture import SHORT_SIDE, window
from sagittal.tasks.task import PlaceTask, Question
from sagittal.types import Array

if TYPE_CHECKING:
    from sagittal.prepare.place_store import PlaceStore

T = TypeVar("T")

#: Pictures on one sheet, four in a row.
SHOWN, ROW = 16, 4
#: Of structures and objects, by their number (Okabe and Ito).
PAINT = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178))


def train_batch(cases: Sequence[Case], plan: Plan) -> Array | None:
    """Cases as the network sees them in training: prepared and randomly changed; of volumes the middle slice.

    Returns
    -------
    (H, W, 3) uint8, or ``None`` where no case can be read.
    """
    import torch

    arrays = []
    for case in spread(cases):
        try:
            arrays.append(prepare_case(case, plan).array)
        except SagittalError:  # counted where the cases are prepared
            continue
    if not arrays:
        return None
    inputs = to_input(torch.from_numpy(np.stack(arrays)), plan.prepare)
    changed = augment(inputs, plan.augment, np.random.default_rng([plan.seed, 3])).numpy()
    if changed.ndim == 5:
        changed = changed[:, :, changed.shape[2] // 2]  # (N, C, H, W)
    grey = window(changed, percentiles=(0.5, 99.5))
    colour = grey if grey.shape[1] == 3 else np.repeat(grey[:, :1], 3, axis=1)
    factor = max(1, round(SHORT_SIDE / max(grey.shape[2:])))
    pictures = [p.transpose(1, 2, 0).repeat(factor, axis=0).repeat(factor, axis=1) for p in colour]
    return sheet(pictures)


def window_batch(store: PlaceStore, rows: Array, plan: Plan, task: PlaceTask) -> Array | None:
    """Windows as the network sees them in training, with what it is told to say of them.

    Structures and the centres of objects are laid over in colour; of volumes the slice with the most of them.

    Parameters
    ----------
    store : PlaceStore
    rows : (n,) int
        The store's cases that teach.

    Returns
    -------
    (H, W, 3) uint8, or ``None`` without a case.
    """
    import torch

    from sagittal.train.windows import WindowBatches

    if not len(rows):
        return None
    shown = replace(plan, train=replace(plan.train, batch=SHOWN))
    batch = WindowBatches(store, shown, task, torch.device("cpu"), ahead=False).training(rows, plan.seed, 0, 0)
    images = batch.image.float().numpy()
    told = _told(task, batch.target.float().numpy(), images.shape[2:])
    pictures = []
    for image, masks in zip(images, told, strict=True):
        if image.ndim == 4:
            at = int(np.argmax(masks.sum(axis=(0, 2, 3)))) if masks.any() else image.shape[1] // 2
            image, masks = image[:, at], masks[:, at]  # noqa: PLW2901
        grey = window(image, percentiles=(0.5, 99.5)).transpose(1, 2, 0)
        colour = (grey if grey.shape[2] == 3 else np.repeat(grey[:, :, :1], 3, axis=2)).astype(np.float32)
        for number, mask in enumerate(masks):
            share = 0.45 * mask[..., None]
            colour = colour * (1 - share) + np.array(PAINT[number % len(PAINT)], dtype=np.float32) * share
        factor = max(1, round(SHORT_SIDE / max(colour.shape[:2])))
        pictures.append(np.round(colour).astype(np.uint8).repeat(factor, axis=0).repeat(factor, axis=1))
    return sheet(pictures)


def _told(task: PlaceTask, target: Array, size: tuple[int, ...]) -> Array:
    """What a batch of windows is told, (N, classes, *size) of 0 to 1: masks, or heat maps of centres."""
    classes = len(task.scheme.classes)
    if task.scheme.kind == "objects":
        heat = np.clip(np.nan_to_num(target[:, :classes]), 0, 1)
        for axis in range(2, heat.ndim):
            heat = heat.repeat(-(-size[axis - 2] // heat.shape[axis]), axis=axis)
        return np.asarray(heat[(slice(None), slice(None), *(slice(n) for n in size))])
    if target.ndim == len(size) + 2:  # structures that may overlap: 0, 1, or unknown
        return np.asarray(target == 1, dtype=np.float32)
    return np.stack([target == n + 1 for n in range(classes)], axis=1).astype(np.float32)


def answered_batch(answers: Sequence[tuple[Prediction, Case]], task: Question) -> Array | None:
    """Cases that the networks did not learn from, with truth and answer.

    Returns
    -------
    (H, W, 3) uint8, or ``None`` where no case can be drawn.
    """
    pictures = []
    for prediction, case in spread(answers):
        try:
            pictures.append(task.figure(prediction, case))
        except SagittalError:
            continue
    return sheet(pictures) if pictures else None


def spread(items: Sequence[T]) -> list[T]:
    """A few items from all over a sequence, the same each time.

    >>> spread(range(100))[:4], len(spread(range(100))), spread([1, 2])
    ([0, 7, 13, 20], 16, [1, 2])
    """
    if len(items) <= SHOWN:
        return list(items)
    return [items[round(n * (len(items) - 1) / (SHOWN - 1))] for n in range(SHOWN)]


def sheet(pictures: Sequence[Array]) -> Array:
    """Pictures in rows of four on white, each as large as it is."""
    height = max(p.shape[0] for p in pictures) + 4
    width = max(p.shape[1] for p in pictures) + 4
    rows = -(-len(pictures) // ROW)
    page = np.full((rows * height, min(ROW, len(pictures)) * width, 3), 255, dtype=np.uint8)
    for n, picture in enumerate(pictures):
        top, left = n // ROW * height, n % ROW * width
        page[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return page
