"""Occlusion: how much the answer falls when a place is covered."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from sagittal.explain.subject import BATCH_NUMBERS, Subject
from sagittal.types import Floats

#: Places along an axis, by the number of dimensions: 169 and 343 windows.
PLACES = {2: 13, 3: 7}


def occlusion(subject: Subject) -> Floats:
    """Fall of the class's log-odds under a window of the blurred baseline (Zeiler and Fergus, ECCV 2014).

    Windows overlap by half; a voxel has the mean of the windows that cover it.

    Returns
    -------
    (rows, columns) or (slices, rows, columns) float32
        Positive where covering lowers the answer.
    """
    windows = _windows(subject.size)
    inside = np.zeros((len(windows), *subject.size), dtype=bool)
    for n, window in enumerate(windows):
        inside[n][window] = True
    cover = torch.from_numpy(inside).to(subject.image.device)
    odds = np.empty(len(windows))
    step = max(1, BATCH_NUMBERS // subject.image.numel())
    for start in range(0, len(windows), step):
        masks = cover[start : start + step][:, None]  # (N, 1, *size)
        covered = torch.where(masks, subject.baseline, subject.image)
        odds[start : start + step] = _odds(subject, covered)
    fall = _odds(subject, subject.image)[0] - odds
    hits = inside.sum(axis=0)
    heat = np.tensordot(fall, inside.astype(np.float64), axes=1) / np.maximum(hits, 1)
    return np.asarray(heat, dtype=np.float32)


def _windows(size: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Windows of twice the stride that cover every voxel."""
    places = PLACES[len(size)]
    axes = []
    for n in size:
        stride = max(1, -(-n // (places + 1)))
        length = min(n, 2 * stride)
        starts = sorted({min(start, n - length) for start in range(0, n, stride)})
        axes.append([slice(start, start + length) for start in starts])
    return list(itertools.product(*axes))


def _odds(subject: Subject, images: torch.Tensor) -> Floats:
    return np.asarray(subject.log_odds(torch.from_numpy(subject.logits(images))).numpy())
