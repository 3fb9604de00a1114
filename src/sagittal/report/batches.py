"""Two pictures that show at a glance what a run learned from and what it says: a training batch and validation answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from sagittal.case import Case
from sagittal.errors import SagittalError
from sagittal.prediction import Prediction
from sagittal.prepare.arrays import prepare_case, to_input
from sagittal.prepare.augment import augment
from sagittal.prepare.plan import Plan
from sagittal.tasks.picture import SHORT_SIDE, window
from sagittal.tasks.task import Task
from sagittal.types import Array

T = TypeVar("T")

#: Pictures on one sheet, four in a row.
SHOWN, ROW = 16, 4


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


def answered_batch(answers: Sequence[tuple[Prediction, Case]], task: Task) -> Array | None:
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
