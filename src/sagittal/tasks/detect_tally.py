"""Quick scores of validation windows while training: hits and false positives by score, which add up over batches."""

from __future__ import annotations

import numpy as np

from sagittal.tasks.detect_decode import find_peaks, iou_matrix, suppress
from sagittal.tasks.detect_settle import USUAL_IOU
from sagittal.tasks.detect_target import centres_of
from sagittal.types import Array, Floats

#: Steps of the score, so that the tally has a fixed size.
BINS = 50


def tally_windows(output: Floats, target: Floats, *, classes: int, iou: float) -> Floats:
    """Hits and false positives of each class by score, and objects.

    Parameters
    ----------
    output : (N, C + 2d, *map) float
    target : (N, C + 2d + 2, *map) float
    classes : int
    iou : float
        From which a box has found an object.

    Returns
    -------
    (C * (2 * BINS + 1),) float64
        For each class its objects, then hits by score, then false positives by score; tallies add up.
    """
    out = np.zeros((classes, 2 * BINS + 1))
    for answer, truth in zip(output, target, strict=True):
        cells, labels, scores, corners = find_peaks(answer, classes)
        corners = np.clip(corners, -0.5, np.asarray(answer.shape[1:]) - 0.5)
        judged = truth[-1][tuple(cells.T)] == 1
        kept = suppress(corners[judged], labels[judged], scores[judged], USUAL_IOU)
        labels, scores, corners = labels[judged][kept], scores[judged][kept], corners[judged][kept]
        where, true_labels = centres_of(truth, classes)
        sides = truth[classes:-2][(slice(None), *where.T)].T  # (M, 2d)
        d = where.shape[1]
        true = np.stack([where - sides[:, :d], where + sides[:, d:]], axis=1)
        out[:, 0] += np.bincount(true_labels, minlength=classes)
        bins = np.minimum((scores * BINS).astype(int), BINS - 1)
        for label in range(classes):
            ours = labels == label
            hit = _taken(iou_matrix(corners[ours], true[true_labels == label]), iou)
            out[label, 1 : BINS + 1] += np.bincount(bins[ours][hit], minlength=BINS)
            out[label, BINS + 1 :] += np.bincount(bins[ours][~hit], minlength=BINS)
    return out.ravel()


def _taken(overlap: Floats, iou: float) -> Array:
    """Which boxes, the surest first, take an object that none before them has."""
    free = np.ones(overlap.shape[1], dtype=bool)
    hit = np.zeros(len(overlap), dtype=bool)
    for n, row in enumerate(overlap):
        best = int(np.argmax(np.where(free, row, -1))) if free.any() else -1
        if best >= 0 and row[best] >= iou:
            hit[n], free[best] = True, False
    return hit


def monitor_tally(tally: Floats, *, classes: int, iou: float) -> dict[str, float]:
    """Average precision and highest F1 from a tally, means over the classes that have objects; nan without any.

    Scores within one of 50 steps count as equal, so that the precision is a little below that of COCO.
    """
    rows = np.asarray(tally, dtype=np.float64).reshape(classes, 2 * BINS + 1)
    precision, best = [], []
    for objects, *counts in rows:
        if not objects:
            continue
        true = np.cumsum(counts[:BINS][::-1])
        false = np.cumsum(counts[BINS:][::-1])
        share = true / np.maximum(true + false, 1)
        falling = np.maximum.accumulate(share[::-1])[::-1]
        precision.append(float((falling * np.diff(true, prepend=0)).sum() / objects))
        best.append(float((2 * true / (true + false + objects)).max()))
    name = f"ap{round(100 * iou):02d}"
    if not precision:
        return {name: float("nan"), "f1": float("nan")}
    return {name: float(np.mean(precision)), "f1": float(np.mean(best))}
