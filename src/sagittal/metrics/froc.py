"""Free-response ROC: how many objects are found at how many false positives an image.

A prediction finds an object of its class in one of two ways:

by centre
    Its centre lies inside the ellipsoid of the object's box; for a nodule given by centre and radius this is LUNA16's rule,
    nearer than the radius [1]_. An object counts once, at its highest score; further predictions of it are no false
    positives. A prediction on what does not count (LUNA's irrelevant findings) is none either.
by IoU
    As in :mod:`sagittal.metrics.detection`: each object is taken once, and every further prediction of it is a false
    positive.

Between operating points the curve is straight, as LUNA16's script has it; beyond the last it stays level. CPM is the mean
sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives an image.

References
----------
.. [1] Setio et al., Med Image Anal 42:1, 2017.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from sagittal.errors import ConfigError
from sagittal.metrics.boxes import DetectionSet
from sagittal.metrics.detection import match
from sagittal.metrics.intervals import Estimate, bootstrap
from sagittal.metrics.ranking import Curve
from sagittal.types import Array, Bools, Floats

#: False positives an image at which LUNA16 reads the sensitivity.
RATES: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, eq=False)
class Hits:
    """Objects with the score at which each is found, and false positives with theirs.

    Parameters
    ----------
    images : int
    object_image, object_class : (N,) int
    object_edge : (N,) float
        Longest edge, in the unit of the boxes.
    object_score : (N,) float
        ``-inf`` where it is missed.
    false_image, false_class : (F,) int
    false_score : (F,) float
    """

    images: int
    object_image: Array
    object_class: Array
    object_edge: Floats
    object_score: Floats
    false_image: Array
    false_class: Array
    false_score: Floats

    def _only(self, objects: Bools, false: Bools) -> Hits:
        return Hits(
            self.images,
            self.object_image[objects],
            self.object_class[objects],
            self.object_edge[objects],
            self.object_score[objects],
            self.false_image[false],
            self.false_class[false],
            self.false_score[false],
        )

    def of_class(self, label: int) -> Hits:
        """The objects and false positives of one class."""
        return self._only(self.object_class == label, self.false_class == label)

    def of_size(self, low: float = 0.0, high: float = math.inf) -> Hits:
        """The objects with a longest edge from low up to, not including, high; all false positives are kept."""
        chosen = (self.object_edge >= low) & (self.object_edge < high)
        return self._only(chosen, np.ones(len(self.false_score), dtype=bool))


def hits_by_centre(boxes: DetectionSet) -> Hits:
    """Find objects by the centre of a prediction, as LUNA16 does.

    Examples
    --------
    >>> from sagittal.metrics.boxes import gather
    >>> from sagittal.truth import Boxes
    >>> nodule = Boxes([[[10, 10, 10], [20, 20, 20]]], [0])
    >>> near = Boxes([[[12, 12, 12], [20, 20, 20]], [[40, 40, 5], [44, 44, 9]]], [0, 0])
    >>> hits = hits_by_centre(gather([(near, np.array([0.9, 0.4]))], [nodule], classes=1))
    >>> hits.object_score.tolist(), hits.false_score.tolist()
    ([0.9], [0.4])
    """
    score = np.full(len(boxes.truth_image), -np.inf)
    harmless = np.zeros(len(boxes.pred_image), dtype=bool)
    middle, half = boxes.truth_corners.mean(axis=1), (boxes.truth_corners[:, 1] - boxes.truth_corners[:, 0]) / 2
    centre = boxes.pred_corners.mean(axis=1)
    real = np.asarray((half > 0).all(axis=1))
    half = np.where(real[:, None], half, 1.0)
    for d, g in boxes.pairs():
        inside = real[g] & ((((centre[d] - middle[g]) / half[g]) ** 2).sum(axis=1) < 1)
        harmless[d[inside]] = True
        np.maximum.at(score, g[inside], boxes.pred_score[d[inside]])
    return _hits(boxes, score, ~harmless)


def hits_by_iou(boxes: DetectionSet, iou: float = 0.1, *, max_dets: int = 100) -> Hits:
    """Find objects by the overlap of the boxes; options as in :func:`sagittal.metrics.detection.match`."""
    found = match(boxes, iou=(iou,), max_dets=max_dets)
    score = np.full(len(boxes.truth_image), -np.inf)
    at = found.truth[:, 0] >= 0
    # A crowd may be taken by many; it is left out below.
    score[found.truth[at, 0]] = found.score[at]
    false = np.zeros(len(boxes.pred_image), dtype=bool)
    false[found.index[~at & ~found.ignored[:, 0]]] = True
    return _hits(boxes, score, false)


def _hits(boxes: DetectionSet, score: Floats, false: Bools) -> Hits:
    real = ~boxes.truth_crowd
    return Hits(
        boxes.images,
        boxes.truth_image[real],
        boxes.truth_class[real],
        boxes.truth_edge[real],
        score[real],
        boxes.pred_image[false],
        boxes.pred_class[false],
        boxes.pred_score[false],
    )


def _operating_points(hits: Hits) -> tuple[Array, Bools, Array, Floats]:
    """Image and kind of all that has a score, from the highest down, where equal scores end, and those scores."""
    found = np.isfinite(hits.object_score)
    image = np.append(hits.object_image[found], hits.false_image)
    score = np.append(hits.object_score[found], hits.false_score)
    real = np.arange(len(score)) < found.sum()
    order = np.argsort(-score, kind="stable")
    score = score[order]
    ends = np.flatnonzero(np.append(score[1:] != score[:-1], np.ones(min(len(score), 1), dtype=bool)))
    return image[order], real[order], ends, score[ends]


def froc_points(hits: Hits) -> Curve:
    """False positives an image (x) and sensitivity (y) from the strictest threshold, infinity, to the lowest score."""
    _, real, ends, scores = _operating_points(hits)
    with np.errstate(invalid="ignore", divide="ignore"):
        y = np.append(0.0, np.cumsum(real)[ends]) / np.float64(len(hits.object_score))
        x = np.append(0.0, np.cumsum(~real)[ends]) / np.float64(hits.images)
    return Curve(x, y, np.append(np.inf, scores))


def froc(
    hits: Hits, weights: Array | None = None, *, rates: Sequence[float] = RATES, interpolate: bool = True
) -> Floats:
    """Sensitivity at given rates of false positives an image.

    Parameters
    ----------
    hits : Hits
    weights : (..., images) float, optional
        How often each image counts; leading axes are kept, so that bootstrap resamples are one call.
    rates : sequence of float
    interpolate : bool
        Straight between operating points, as LUNA16's script; else the best point at or below the rate.

    Returns
    -------
    (..., len(rates)) float64
        nan where there are no objects, or no images.
    """
    wanted = np.asarray(rates, dtype=np.float64)
    if wanted.ndim != 1 or not len(wanted) or not (wanted >= 0).all():
        raise ConfigError(f"rates are false positives an image, 0 or more, not {list(rates)}")
    w = np.ones(hits.images) if weights is None else np.asarray(weights, dtype=np.float64)
    rows = w.reshape(math.prod(w.shape[:-1]), w.shape[-1])
    image, real, ends, _ = _operating_points(hits)
    # The curve turns only where an object is found: at those points, the ones before them and the last.
    found = np.diff(np.cumsum(real)[ends], prepend=0) > 0
    ends = ends[found | np.append(found[1:], np.ones(min(len(found), 1), dtype=bool))]
    part = np.searchsorted(ends, np.arange(len(image)))
    shape = len(ends), hits.images
    total = rows @ np.bincount(hits.object_image, minlength=hits.images)
    images = rows.sum(axis=1)
    out = np.full((len(rows), len(wanted)), np.nan)
    at = np.flatnonzero((total > 0) & (images > 0))
    drawn = rows[at].T
    y, x = (
        np.cumsum(sparse.csr_array((np.ones(kind.sum()), (part[kind], image[kind])), shape=shape) @ drawn, axis=0)
        for kind in (real, ~real)
    )  # (points, rows)
    for n, row in enumerate(at):
        fps, sensitivity = np.append(0.0, x[:, n] / images[row]), np.append(0.0, y[:, n] / total[row])
        if interpolate:
            out[row] = np.interp(wanted, fps, sensitivity)
        else:
            out[row] = sensitivity[np.searchsorted(fps, wanted * (1 + 1e-12), side="right") - 1]
    return out.reshape(*w.shape[:-1], len(wanted))


def cpm(hits: Hits) -> float:
    """Mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives an image (LUNA16); nan without objects."""
    return float(froc(hits).mean())


def froc_measures(hits: Hits, weights: Floats) -> dict[str, Floats]:
    """CPM and the sensitivity at each of its rates by name, for :func:`sagittal.metrics.intervals.bootstrap`.

    Parameters
    ----------
    weights : (R, images) float

    Returns
    -------
    dict of str to (R,) float
        ``cpm``, ``sensitivity_at_0.125`` ... ``sensitivity_at_8``.
    """
    values = froc(hits, weights)
    named = {f"sensitivity_at_{rate:g}": values[:, n] for n, rate in enumerate(RATES)}
    return {"cpm": values.mean(axis=1), **named}


def froc_estimates(
    hits: Hits,
    patients: Sequence[Any] | Array,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """CPM and sensitivities with BCa intervals from resampling whole patients, by the names of :func:`froc_measures`.

    Parameters
    ----------
    patients : (images,) any
        The patient of each image: images of one patient stay together.
    """
    result = bootstrap(
        lambda weights: froc_measures(hits, weights), patients, resamples=resamples, seed=seed, confidence=confidence
    )
    return {name: Estimate(*values, n=len(hits.object_score)) for name, values in result.estimates.items()}
