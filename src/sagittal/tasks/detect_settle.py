"""What validation cases decide of boxes: which are duplicates, what a score is worth, and from where a box counts.

The suppression IoU is the one of the highest mean average precision. A score then becomes the probability that the box
encloses an object of its class, by beta calibration [1]_, one curve a class: it rises strictly, so that it changes no
ranking. The operating point follows from the calibrated scores.

References
----------
.. [1] Kull, Silva Filho and Flach, AISTATS 2017, with the targets for few boxes of Platt, in Advances in Large Margin
       Classifiers, 1999.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from sagittal.errors import ConfigError, nearest
from sagittal.grid import Grid
from sagittal.metrics.boxes import DetectionSet, gather
from sagittal.metrics.detection import average_precision, class_mean, match
from sagittal.metrics.froc import Hits, hits_by_centre, hits_by_iou
from sagittal.prediction import Detections
from sagittal.tasks.detect_decode import suppress
from sagittal.truth import Boxes
from sagittal.types import Array, Bools, Floats

#: Boxes kept of an image and class, as COCO counts them.
MOST_OF_CLASS = 100
#: Suppression IoUs that validation chooses from, and the one without validation.
SUPPRESS_IOU = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
USUAL_IOU = 0.5

#: Numbers of a calibration curve, as they are kept.
_CURVE = ("below", "above", "offset")

Rule = Literal["iou", "centre"]


@dataclass(frozen=True)
class HitRule:
    """When a box has found an object: by its IoU, or by its centre.

    Parameters
    ----------
    kind : {"iou", "centre"}
        Of a picture, and of a volume as LUNA16 has it.
    iou : float
        Least IoU of the first kind; the second compares boxes at it where average precision is meant.
    """

    kind: Rule
    iou: float

    @classmethod
    def of(cls, dimensions: int) -> HitRule:
        """IoU of one half for pictures; the centre inside the object, and an IoU of 0.1, for volumes."""
        return cls("iou", 0.5) if dimensions == 2 else cls("centre", 0.1)

    def hits(self, boxes: DetectionSet) -> Hits:
        """Objects with the score at which each is found, and false positives."""
        return hits_by_iou(boxes, self.iou) if self.kind == "iou" else hits_by_centre(boxes)

    def judged(self, boxes: DetectionSet) -> tuple[Bools, Bools]:
        """Of each predicted box whether it found an object, and whether it counts at all, (D,) each."""
        false = np.ones(len(boxes.pred_image), dtype=bool)
        counts = np.ones(len(false), dtype=bool)
        if self.kind == "iou":
            found = match(boxes, iou=(self.iou,), max_dets=10**6)
            false[found.index] = ~found.hit[:, 0]
            counts[found.index] = ~found.ignored[:, 0]
            return ~false & counts, counts
        middle, half = boxes.truth_corners.mean(axis=1), np.diff(boxes.truth_corners, axis=1)[:, 0] / 2
        centre = boxes.pred_corners.mean(axis=1)
        crowd = np.zeros(len(false), dtype=bool)
        for d, g in boxes.pairs():
            inside: Bools = np.asarray((half[g] > 0).all(axis=1))
            inside[inside] = (((centre[d] - middle[g])[inside] / half[g][inside]) ** 2).sum(axis=1) < 1
            real = inside & ~boxes.truth_crowd[g]
            false[d[real]] = False
            crowd[d[inside & boxes.truth_crowd[g]]] = True
        return ~false, ~(crowd & false)


@dataclass(frozen=True)
class OperatingPoint:
    """From which score a box counts.

    Parameters
    ----------
    kind : {"f1", "fp", "sensitivity"}
        The highest F1; the highest sensitivity at no more than `value` false positives an image; the fewest false
        positives at a sensitivity of at least `value`.
    value : float
    """

    kind: str = "f1"
    value: float = math.nan

    @classmethod
    def parse(cls, text: str) -> OperatingPoint:
        """Read ``f1``, ``fp=1`` or ``sensitivity=0.9``; ``most-probable``, the default of plans, is ``f1``.

        Raises
        ------
        ConfigError
            If it is none of these, or the number is out of range.
        """
        name, _, number = text.partition("=")
        if text in ("f1", "most-probable"):
            return cls()
        if name not in ("fp", "sensitivity"):
            raise ConfigError(
                f"decide.operating_point: '{text}' is none of detection. {nearest(name, ('f1', 'fp', 'sensitivity'))} "
                "Known: f1, fp=RATE (false positives an image), sensitivity=SHARE."
            )
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not value > 0 or (name == "sensitivity" and value > 1):
            raise ConfigError(f"decide.operating_point: '{text}' needs a number, such as fp=1 or sensitivity=0.9")
        return cls(name, value)

    def choose(self, hits: Hits) -> float:
        """The score of one class from which a box counts; 0.5 where there is nothing to choose from.

        Of equally good scores the highest, and of two neighbouring ones that enclose it the middle: so the choice does
        not hang on a single box.
        """
        found = hits.object_score[np.isfinite(hits.object_score)]
        scores = np.unique(np.concatenate([found, hits.false_score]))[::-1]  # from the surest
        if not len(scores) or not len(hits.object_score):
            return 0.5
        true = np.searchsorted(np.sort(-found), -scores, side="right")
        false = np.searchsorted(np.sort(-hits.false_score), -scores, side="right")
        sensitivity, rate = true / len(hits.object_score), false / max(hits.images, 1)
        if self.kind == "f1":
            at = int(np.argmax(2 * true / (true + false + len(hits.object_score))))
        elif self.kind == "fp":
            allowed = np.flatnonzero(rate <= self.value)
            if not len(allowed):
                return float(min(1.0, scores[0] + 1e-6))
            at = int(allowed[np.argmax(sensitivity[allowed])])
        else:
            reached = np.flatnonzero(sensitivity >= self.value)
            at = int(reached[0]) if len(reached) else len(scores) - 1
        below = scores[at + 1] if at + 1 < len(scores) else 0.0
        return float((scores[at] + below) / 2)


def settle_boxes(
    answers: Sequence[tuple[Detections, Boxes]], classes: Sequence[str], *, rule: HitRule, point: OperatingPoint
) -> dict[str, Any]:
    """What validation answers say, as plain values.

    Parameters
    ----------
    answers : sequence of (Detections, Boxes)
        For each case what the collector gave, and the truth in the same voxels.
    classes : sequence of str
    rule : HitRule
    point : OperatingPoint

    Returns
    -------
    dict
        ``suppress_iou``; ``calibration`` and ``threshold`` by class; ``rule``, ``point``; and under ``validation`` how
        many images and objects that rests on and what it gave there. Nothing of a class without a true object.
    """
    spacing = common_spacing([edges_mm(finding.grid) for finding, _ in answers])
    truth = [boxes for _, boxes in answers]

    def collect(iou: float) -> DetectionSet:
        kept = [_suppressed(finding, iou) for finding, _ in answers]
        return gather([(f.boxes, f.scores) for f in kept], truth, classes=len(classes), spacing=spacing)

    sets = {iou: collect(iou) for iou in SUPPRESS_IOU}
    quality = {iou: average_precision(match(boxes, iou=(rule.iou,)))[0] for iou, boxes in sets.items()}
    means = {iou: float(np.nan_to_num(class_mean(ap))) for iou, ap in quality.items()}
    # The usual one, unless another is better.
    best = max(SUPPRESS_IOU, key=lambda iou: (round(means[iou], 6), -abs(iou - USUAL_IOU)))
    boxes = sets[best]
    hit, counts = rule.judged(boxes)
    calibration: dict[str, dict[str, float]] = {}
    thresholds: dict[str, float] = {}
    measured: dict[str, dict[str, float | int | None]] = {}
    calibrated = boxes.pred_score.copy()
    for number, name in enumerate(classes):
        ours = boxes.pred_class == number
        objects = int(((boxes.truth_class == number) & ~boxes.truth_crowd).sum())
        curve = (1.0, 1.0, 0.0)
        if objects:
            curve = fit_beta(boxes.pred_score[ours & counts], hit[ours & counts])
        calibration[name] = dict(zip(_CURVE, curve, strict=True))
        calibrated[ours] = beta_curve(boxes.pred_score[ours], *curve)
    hits = rule.hits(replace(boxes, pred_score=calibrated))
    for number, name in enumerate(classes):
        own = hits.of_class(number)
        threshold = point.choose(own)
        thresholds[name] = threshold
        measured[name] = _at(own, threshold) | {"average_precision": _plain(float(quality[best][number]))}
    return {
        "suppress_iou": best,
        "calibration": calibration,
        "threshold": thresholds,
        "rule": rule.kind,
        "rule_iou": rule.iou,
        "point": point.kind if point.kind == "f1" else f"{point.kind}={point.value:g}",
        "validation": {"images": len(answers), "average_precision": _plain(means[best]), "classes": measured},
    }


def _at(hits: Hits, threshold: float) -> dict[str, float | int | None]:
    true = int((hits.object_score >= threshold).sum())
    false = int((hits.false_score >= threshold).sum())
    objects = len(hits.object_score)
    return {
        "objects": objects,
        "sensitivity": _plain(true / objects if objects else math.nan),
        "precision": _plain(true / (true + false) if true + false else math.nan),
        "false_positives_an_image": _plain(false / hits.images if hits.images else math.nan),
    }


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def edges_mm(grid: Grid) -> tuple[float, float, float] | None:
    """Voxel edge lengths (i, j, k) for measuring boxes; ``None`` where the grid does not say.

    A picture counts as one mm thick, so that the volume of a box is its area.
    """
    if grid.spacing is None:
        return None
    i, j, k = (float(v) for v in grid.spacing)
    edges = (i, j, 1.0 if grid.dimensions == 2 else k)
    return edges if np.isfinite(edges).all() else None


def common_spacing(each: Sequence[Sequence[float] | None]) -> Floats | None:
    """Edge lengths of all images, (images, 3) mm; ``None`` unless all are known."""
    known = [one for one in each if one is not None]
    return np.array(known, dtype=np.float64) if known and len(known) == len(each) else None


def _suppressed(finding: Detections, iou: float) -> Detections:
    """Without duplicates and beyond no more than 100 boxes of a class, the surest first."""
    flat = finding.grid.dimensions == 2
    corners = finding.boxes.corners[..., : 2 if flat else 3]
    kept = suppress(corners, finding.boxes.classes, finding.scores, iou)
    labels = finding.boxes.classes[kept]
    rank = np.zeros(len(kept), dtype=int)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    return _taken(finding, kept[rank < MOST_OF_CLASS])


def _taken(finding: Detections, chosen: Array) -> Detections:
    boxes = finding.boxes
    return Detections(
        Boxes(boxes.corners[chosen], boxes.classes[chosen], np.asarray(boxes.crowd)[chosen]),
        finding.scores[chosen],
        finding.grid,
        finding.chosen[chosen],
    )


def conclude_boxes(finding: Detections, settled: Mapping[str, Any], classes: Sequence[str]) -> Detections:
    """The boxes without duplicates, with calibrated scores, and marked where they count.

    Without anything settled: duplicates at an IoU of 0.5, scores as they are, from 0.5.
    """
    kept = _suppressed(finding, float(settled.get("suppress_iou", USUAL_IOU)))
    labels, scores = kept.boxes.classes, kept.scores.copy()
    threshold = np.full(len(scores), 0.5)
    for number, name in enumerate(classes):
        ours = labels == number
        curve = settled.get("calibration", {}).get(name)
        if curve is not None:
            scores[ours] = beta_curve(scores[ours], *(float(curve[key]) for key in _CURVE))
        threshold[ours] = float(settled.get("threshold", {}).get(name, 0.5))
    concluded = Detections(kept.boxes, scores, kept.grid, scores >= threshold)
    return _taken(concluded, np.argsort(-scores, kind="stable"))


def beta_curve(scores: Floats, below: float, above: float, offset: float) -> Floats:
    """The beta calibration curve, 0..1: logistic in ``below * log(s) - above * log(1 - s) + offset``.

    >>> beta_curve(np.array([0.2, 0.5]), 1.0, 1.0, 0.0).tolist()
    [0.2, 0.5]
    """
    low, high = _logarithms(scores)
    return np.asarray(0.5 * (1 + np.tanh(0.5 * (below * low + above * high + offset))))


def _logarithms(scores: Floats) -> tuple[Floats, Floats]:
    p = np.clip(np.asarray(scores, dtype=np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(p)), np.asarray(-np.log1p(-p))


def fit_beta(scores: Floats, hit: Bools) -> tuple[float, float, float]:
    """The beta calibration curve of highest likelihood: `below` and `above`, both above 0 so that it rises, and `offset`.

    The targets are those of Platt, (n + 1) / (n + 2) and 1 / (m + 2), so that few boxes do not make certain. Without any
    box the scores stay as they are.
    """
    from scipy.optimize import minimize

    if not len(scores):
        return 1.0, 1.0, 0.0
    low, high = _logarithms(scores)
    n, m = int(hit.sum()), int((~hit).sum())
    y = np.where(hit, (n + 1) / (n + 2), 1 / (m + 2))

    def loss(values: Floats) -> tuple[float, Floats]:
        below, above = np.exp(values[:2])
        z = below * low + above * high + values[2]
        error = 0.5 * (1 + np.tanh(0.5 * z)) - y
        # A weak pull to the scores as they are keeps the curve finite where hits and misses do not mix.
        pull = 0.5 * float((values[:2] ** 2).sum())
        slopes = [(error * low).sum() * below + values[0], (error * high).sum() * above + values[1], error.sum()]
        return float((np.logaddexp(0, z) - y * z).sum()) + pull, np.array(slopes)

    best = minimize(loss, np.zeros(3), jac=True, method="L-BFGS-B", bounds=[(-4, 3), (-4, 3), (-20, 20)])
    return float(np.exp(best.x[0])), float(np.exp(best.x[1])), float(best.x[2])
