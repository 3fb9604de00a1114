"""Average precision of boxes, as COCO defines it: which prediction answers for which object, and what follows.

In each image and class, predictions are taken from the surest down. Each takes the free object that it covers best, if the
IoU reaches the threshold; objects that do not count (crowds, sizes out of range) are taken only where no other can be, and
what takes them counts as nothing. Precision over recall is made to fall and read at 101 recalls [1]_. Predictions of equal
score keep the order of their images. The matching is made once; weights of images, as a bootstrap draws them, then give the
value of the set in which each image stands as often as its weight says (scores of one image being different).

References
----------
.. [1] Lin et al., ECCV 2014, arXiv:1405.0312; values equal those of pycocotools.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sagittal.errors import ConfigError
from sagittal.metrics.boxes import DetectionSet, box_iou, box_volume
from sagittal.metrics.intervals import Estimate, bootstrap
from sagittal.types import Array, Bools, Floats

#: IoU thresholds of COCO's AP: .5, .55 ... .95.
COCO_IOU: tuple[float, ...] = tuple(float(t) for t in np.linspace(0.5, 0.95, 10))
#: Those of :func:`ap_measures`: the loose one of nodule detection, and COCO's with .3.
IOU: tuple[float, ...] = (0.1, 0.3, *COCO_IOU)
#: COCO's ranges of size, in square pixels.
COCO_AREAS: Mapping[str, tuple[float, float]] = {
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}

_RECALLS = np.linspace(0, 1, 101)

#: Weights times predictions that are held at once.
_CELLS = 4_000_000


@dataclass(frozen=True, eq=False)
class Matches:
    """Which predictions found an object, at each of T thresholds; sorted by class, then from the surest down.

    Parameters
    ----------
    iou : (T,) float
    classes : int
    index : (D,) int
        The prediction's place in the set; those beyond the limit of an image are left out.
    image, label : (D,) int
    score : (D,) float
    rank : (D,) int
        Place among the predictions of its image and class, from 0.
    truth : (D, T) int
        The object that it took, -1 for none.
    ignored : (D, T) bool
        Predictions that count as nothing.
    positives : (images, classes) int
        Objects that count.
    """

    iou: Floats
    classes: int
    index: Array
    image: Array
    label: Array
    score: Floats
    rank: Array
    truth: Array
    ignored: Bools
    positives: Array

    @property
    def hit(self) -> Bools:
        """Predictions that found an object that counts, (D, T)."""
        return np.asarray((self.truth >= 0) & ~self.ignored)


def match(
    boxes: DetectionSet,
    *,
    iou: Sequence[float] = COCO_IOU,
    max_dets: int = 100,
    area: tuple[float, float] = (0.0, math.inf),
) -> Matches:
    """Let the predictions take their objects, for every image, class and threshold at once.

    Parameters
    ----------
    boxes : DetectionSet
    iou : sequence of float
        Thresholds, above 0 and up to 1.
    max_dets : int
        Predictions of an image and class that count, the surest first.
    area : (float, float)
        Objects of another size count neither as found nor as missed, nor do predictions of another size that find
        nothing. Both limits belong to the range.

    Raises
    ------
    ConfigError
        If a threshold or the limit is out of range.
    """
    thresholds = np.asarray(iou, dtype=np.float64)
    if thresholds.ndim != 1 or not len(thresholds) or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise ConfigError(f"IoU thresholds lie above 0 and up to 1, not {list(iou)}")
    if max_dets < 1:
        raise ConfigError(f"max_dets is at least 1, not {max_dets}")
    low, high = area
    unwanted = boxes.truth_crowd | (boxes.truth_area < low) | (boxes.truth_area > high)
    # Predictions by image and class, the surest first.
    group = boxes.pred_image * boxes.classes + boxes.pred_class
    order = np.lexsort((-boxes.pred_score, group))
    rank = np.empty(len(order), dtype=np.intp)
    rank[order] = np.arange(len(order)) - np.searchsorted(group[order], group[order])
    truth, ignored = _take(boxes, unwanted, group, rank, np.minimum(thresholds, 1 - 1e-10), max_dets)
    size = box_volume(boxes.pred_corners)
    ignored |= (truth < 0) & ((size < low) | (size > high))[:, None]
    order = order[rank[order] < max_dets]
    order = order[np.lexsort((-boxes.pred_score[order], boxes.pred_class[order]))]
    positives = np.zeros((boxes.images, boxes.classes), dtype=np.intp)
    np.add.at(positives, (boxes.truth_image, boxes.truth_class), ~unwanted)
    return Matches(
        iou=thresholds,
        classes=boxes.classes,
        index=order,
        image=boxes.pred_image[order],
        label=boxes.pred_class[order],
        score=boxes.pred_score[order],
        rank=rank[order],
        truth=truth[order],
        ignored=ignored[order],
        positives=positives,
    )


def _take(
    boxes: DetectionSet, unwanted: Bools, group: Array, rank: Array, thresholds: Floats, max_dets: int
) -> tuple[Array, Bools]:
    """The object that each prediction takes, (D, T), and whether that object does not count."""
    shape = len(group), len(thresholds)
    taken, ignored = np.full(shape, -1, dtype=np.int32), np.zeros(shape, dtype=bool)
    near = []
    for d, g in boxes.pairs():
        kept = rank[d] < max_dets
        d, g = d[kept], g[kept]  # noqa: PLW2901
        ratio = box_iou(boxes.pred_corners[d], boxes.truth_corners[g], boxes.truth_crowd[g])
        kept = ratio >= thresholds.min()
        near.append((d[kept], g[kept], ratio[kept]))
    if not near:
        return taken, ignored
    d, g, ratio = (np.concatenate(parts) for parts in zip(*near, strict=True))
    if not len(d):
        return taken, ignored
    # The n-th predictions of all images and classes that are near any object take theirs together, round by round.
    used = np.unique(d)
    used = used[np.lexsort((rank[used], group[used]))]
    turn = np.zeros(len(group), dtype=np.intp)
    turn[used] = np.arange(len(used)) - np.searchsorted(group[used], group[used])
    # For each prediction, its best object comes first: one that counts, the largest IoU, of equal ones the last.
    order = np.lexsort((-g, -ratio, unwanted[g], d, turn[d]))
    d, g, ratio = d[order], g[order], ratio[order]
    new = np.flatnonzero(np.append(True, d[1:] != d[:-1])[: len(d)])
    rounds = np.flatnonzero(np.append(True, np.diff(turn[d[new]]) > 0)[: len(new)])
    free = np.ones((len(unwanted), len(thresholds)), dtype=bool)
    shared = boxes.truth_crowd[:, None]  # a crowd can be taken by many
    for first, last in zip(rounds, np.append(rounds[1:], len(new)), strict=True):
        begin, end = new[first], new[last] if last < len(new) else len(d)
        objects = g[begin:end]
        possible = (ratio[begin:end, None] >= thresholds) & (free[objects] | shared[objects])
        place = np.where(possible, np.arange(end - begin)[:, None], end - begin)
        best = np.minimum.reduceat(place, new[first:last] - begin, axis=0)  # (predictions of this round, T)
        row, t = np.nonzero(best < end - begin)
        who, what = d[new[first:last]][row], objects[best[row, t]]
        taken[who, t], ignored[who, t] = what, unwanted[what]
        free[what, t] = False
    return taken, ignored


def average_precision(matches: Matches, weights: Array | None = None) -> Floats:
    """Average precision of each threshold and class, 0..1.

    Parameters
    ----------
    matches : Matches
    weights : (..., images) float, optional
        How often each image counts; leading axes are kept, so that bootstrap resamples are one call.

    Returns
    -------
    (..., T, C) float64
        nan for a class without objects that count, 0 where none is found.
    """
    w = np.ones(len(matches.positives)) if weights is None else np.asarray(weights, dtype=np.float64)
    rows = w.reshape(math.prod(w.shape[:-1]), w.shape[-1])
    out = np.full((len(rows), len(matches.iou), matches.classes), np.nan)
    positives = rows @ matches.positives  # (R, C)
    bounds = np.searchsorted(matches.label, np.arange(matches.classes + 1))
    hit = matches.hit
    for c, (begin, end) in enumerate(itertools.pairwise(bounds)):
        some = positives[:, c] > 0
        out[some, :, c] = 0.0
        found = np.flatnonzero(hit[begin:end].any(axis=1))
        if not len(found) or not some.any():
            continue
        end = begin + found[-1] + 1  # noqa: PLW2901 - what comes after the last hit changes nothing
        part = max(1, _CELLS // (end - begin))
        for start in range(0, len(rows), part):
            rest = np.flatnonzero(some[start : start + part]) + start
            if len(rest):
                image, n = matches.image[begin:end], positives[rest, c]
                out[rest, :, c] = _class_ap(rows[rest][:, image], hit[begin:end], matches.ignored[begin:end], n)
    return out.reshape(*w.shape[:-1], len(matches.iou), matches.classes)


def _class_ap(weights: Floats, hit: Bools, ignored: Bools, positives: Floats) -> Floats:
    """(R, T) average precision of one class from weights (R, D) of its predictions, the surest first."""
    out = np.zeros((len(weights), hit.shape[1]))
    everything = None if ignored.any() else np.cumsum(weights, axis=1)
    for t in range(hit.shape[1]):
        at = np.flatnonzero(hit[:, t])
        if not len(at):
            continue
        counted = np.cumsum(weights * ~ignored[:, t], axis=1)[:, at] if everything is None else everything[:, at]
        tp = np.cumsum(weights[:, at], axis=1)
        precision = np.where(counted > 0, tp / np.where(counted > 0, counted, 1), 0.0)
        falling = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # Each hit answers for the recalls that it is the first to reach; only hits can raise the precision after them.
        reached = np.searchsorted(_RECALLS, tp / positives[:, None], side="right")
        gained = np.diff(reached, axis=1, prepend=0) * (tp[:, -1:] > 0)
        out[:, t] = (falling * gained).sum(axis=1) / len(_RECALLS)
    return out


def recall(matches: Matches, weights: Array | None = None, *, max_dets: int = 100) -> Floats:
    """Share of the objects that are found by the surest predictions, (..., T, C); nan for a class without objects."""
    w = np.ones(len(matches.positives)) if weights is None else np.asarray(weights, dtype=np.float64)
    counts = np.zeros((len(matches.positives), len(matches.iou), matches.classes))
    d, t = np.nonzero(matches.hit & (matches.rank < max_dets)[:, None])
    np.add.at(counts, (matches.image[d], t, matches.label[d]), 1)
    found = np.tensordot(w, counts, axes=1)
    positives = (w @ matches.positives)[..., None, :]
    return np.where(positives > 0, found / np.where(positives > 0, positives, 1), np.nan)


def class_mean(values: Floats) -> Floats:
    """Mean over the last axis of the classes that have objects; nan where none has."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=-1)
    return np.where(known.any(axis=-1), total / np.maximum(known.sum(axis=-1), 1), np.nan)


def ap_measures(matches: Matches, weights: Floats) -> dict[str, Floats]:
    """Mean AP over classes by name, for :func:`sagittal.metrics.intervals.bootstrap`.

    Parameters
    ----------
    matches : Matches
        With any thresholds.
    weights : (R, images) float

    Returns
    -------
    dict of str to (R,) float
        ``ap10``, ``ap30``, ``ap50`` ... for each threshold, and ``ap``, the mean of .5 to .95, where all of them are there.
    """
    values = class_mean(average_precision(matches, weights))  # (R, T)
    out = {f"ap{round(100 * t):02d}": values[:, n] for n, t in enumerate(matches.iou)}
    places = [np.flatnonzero(np.isclose(matches.iou, t)) for t in COCO_IOU]
    if all(len(p) for p in places):
        out["ap"] = values[:, [int(p[0]) for p in places]].mean(axis=1)
    return out


def ap_estimates(
    matches: Matches,
    patients: Sequence[Any] | Array,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Mean AP over classes with intervals from resampling whole patients, by the names of :func:`ap_measures`.

    AP of few objects is too high in expectation, and in resamples once more; the interval is therefore the basic one, which
    takes what resampling adds from the value [1]_. ``benchmarks/detection_intervals.py`` measures how often it holds the
    true value: about as often as it says for a few classes, less often for many classes of few objects.

    Parameters
    ----------
    matches : Matches
    patients : (images,) any
        The patient of each image: images of one patient stay together.

    References
    ----------
    .. [1] Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 5.2; here with the value itself
       always inside.
    """
    result = bootstrap(
        lambda weights: ap_measures(matches, weights),
        patients,
        resamples=resamples,
        seed=seed,
        confidence=confidence,
        method="percentile",
    )
    n = int(matches.positives.sum())
    out = {}
    for name, (value, lower, upper) in result.estimates.items():
        low, high = (float(np.clip(2 * value - limit, 0, 1)) for limit in (upper, lower))
        out[name] = Estimate(value, min(low, value), max(high, value), n)
    return out


def coco_summary(boxes: DetectionSet) -> dict[str, float]:
    """The twelve numbers of COCO: AP, AP50, AP75, AP by size, and average recall of 1, 10 and 100 predictions and by size.

    nan where pycocotools gives -1: no class has an object of that size. Sizes are in square pixels.

    Examples
    --------
    >>> from sagittal.metrics.boxes import gather
    >>> from sagittal.truth import Boxes
    >>> box = [[[9.5, 9.5, -0.5], [19.5, 19.5, 0.5]]]
    >>> scores = coco_summary(gather([(Boxes(box, [0]), np.array([0.9]))], [Boxes(box, [0])], classes=1))
    >>> scores["ap"], scores["ap50"], scores["ap_large"]
    (1.0, 1.0, nan)
    """
    everything = match(boxes, area=(0.0, 1e10))
    values = class_mean(average_precision(everything))
    out = {"ap": float(values.mean()), "ap50": float(values[0]), "ap75": float(values[5])}
    recalls = {f"ar{n}": float(class_mean(recall(everything, max_dets=n)).mean()) for n in (1, 10, 100)}
    for name, area in COCO_AREAS.items():
        some = match(boxes, area=area)
        out[f"ap_{name}"] = float(class_mean(average_precision(some)).mean())
        recalls[f"ar_{name}"] = float(class_mean(recall(some)).mean())
    return out | recalls
