"""From a detecting network's map to boxes: local maxima of the heat maps, their distances, and no box twice."""

from __future__ import annotations

import numpy as np

from sagittal.tasks.detect_loss import MOST, PRIOR, UNIT
from sagittal.types import Array, Floats

#: Centres below this score are not kept.
LEAST_SCORE = 0.01
#: Centres kept of an image, the surest first.
MOST_BOXES = 500


def sigmoid(logits: Floats) -> Floats:
    """Logistic function of the heat map's logits, that of :data:`~sagittal.tasks.detect_loss.PRIOR` included."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * (np.asarray(logits, dtype=np.float64) + PRIOR))))


def find_peaks(output: Floats, classes: int) -> tuple[Array, Array, Floats, Floats]:
    """Cells that are local maxima among their neighbours.

    Parameters
    ----------
    output : (C + 2d, *map) float
    classes : int

    Returns
    -------
    cells : (P, d) int
    labels : (P,) int
    scores : (P,) float64
        Of 0.01 and more.
    sides : (P, 2, d) float64
        Low and high corner, in cells.
    """
    from scipy.ndimage import maximum_filter

    d = output.ndim - 1
    least = np.log(LEAST_SCORE / (1 - LEAST_SCORE)) - PRIOR
    places, labels, logits = [], [], []
    for label in range(classes):
        heat = np.asarray(output[label])
        high = np.argwhere(heat >= least)
        if not len(high):
            continue
        top = maximum_filter(heat, size=3, mode="constant", cval=-np.inf)
        at = tuple(high.T)
        high = high[heat[at] == top[at]]
        places.append(high)
        labels.append(np.full(len(high), label))
        logits.append(heat[tuple(high.T)])
    if not places:
        return np.zeros((0, d), int), np.zeros(0, int), np.zeros(0), np.zeros((0, 2, d))
    cells, named = np.concatenate(places), np.concatenate(labels)
    scores = sigmoid(np.concatenate(logits))
    if len(cells) > MOST_BOXES:
        best = np.sort(np.argsort(-scores, kind="stable")[:MOST_BOXES])
        cells, named, scores = cells[best], named[best], scores[best]
    raw = np.asarray(output[classes:])[(slice(None), *cells.T)].T.astype(np.float64)  # (P, 2d)
    reach = UNIT * np.exp(np.clip(raw, -MOST, MOST))
    return cells, named, scores, np.stack([cells - reach[:, :d], cells + reach[:, d:]], axis=1)


def iou_matrix(first: Floats, second: Floats) -> Floats:
    """Intersection over union of all boxes (N, 2, d) with all (M, 2, d), (N, M); 0 for degenerate ones."""
    a, b = first[:, None], second[None]
    common = np.clip(np.minimum(a[..., 1, :], b[..., 1, :]) - np.maximum(a[..., 0, :], b[..., 0, :]), 0, None).prod(-1)
    union = _volume(a) + _volume(b) - common
    return np.where(common > 0, common / np.where(common > 0, union, 1), 0.0)


def _volume(corners: Floats) -> Floats:
    return np.asarray(np.clip(corners[..., 1, :] - corners[..., 0, :], 0, None).prod(axis=-1))


def suppress(corners: Floats, labels: Array, scores: Floats, iou: float) -> Array:
    """Which boxes stay, the surest first: none that overlaps a surer one of its class by more than `iou`.

    Parameters
    ----------
    corners : (N, 2, d) float
    labels : (N,) int
    scores : (N,) float
    iou : float
        1 keeps all.

    Returns
    -------
    (K,) int

    Examples
    --------
    >>> boxes = np.array([[[0, 0], [10, 10]], [[1, 0], [11, 10]], [[20, 0], [30, 10]]], dtype=float)
    >>> suppress(boxes, np.zeros(3, int), np.array([0.6, 0.9, 0.3]), 0.5).tolist()
    [1, 2]
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    if not len(order) or iou >= 1:
        return order
    corners, labels = np.asarray(corners, dtype=np.float64)[order], np.asarray(labels)[order]
    rivals = (iou_matrix(corners, corners) > iou) & (labels[:, None] == labels[None])
    alive = np.ones(len(order), dtype=bool)
    for n in range(len(order)):
        if alive[n]:
            alive[n + 1 :] &= ~rivals[n, n + 1 :]
    return order[alive]
