"""Measures of detection rows: what each is, and where its interval comes from.

``ap10`` ... ``ap95`` and ``ap``
    Average precision at an IoU, and its mean from .5 to .95, as COCO has it; the mean over classes. Basic bootstrap.
``cpm``, ``sensitivity_at_0.125`` ... ``sensitivity_at_8``
    Sensitivity at so many false positives an image and their mean; over all classes together, and of each. An object is
    found by IoU in a picture, by centre in a volume.
``sensitivity``, ``precision``, ``f1``, ``false_positives_an_image``
    At the operating point; objects of all classes together, and of each.
``auc``
    Of the highest score of an image: whether it holds an object at all, or one of the class.
``ece``
    Of boxes with a score of 0.1 and more: how far the score is from the share that found an object.
``sensitivity_small``, ``ap50_small`` ..., ``small_below``, ``large_from``
    By size: thirds of the true objects; the limits are edges of a cube (square) of the same volume (area), in mm where
    every study has a voxel size, else in voxels.
``baseline.NAME``
    Of a model that never finds anything.

All intervals come from resampling whole patients; BCa but for average precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sagittal.labels import LabelScheme
from sagittal.metrics import calibration
from sagittal.metrics.boxes import DetectionSet
from sagittal.metrics.detection import IOU, Matches, ap_estimates, match
from sagittal.metrics.froc import Hits, froc_measures
from sagittal.metrics.intervals import Estimate, bootstrap, group_codes, wilson
from sagittal.metrics.ranking import Ranking
from sagittal.tasks.detect_rows import BoxRows
from sagittal.tasks.detect_settle import HitRule
from sagittal.tasks.task import Summary
from sagittal.types import Array, Floats

if TYPE_CHECKING:
    import pandas as pd

SIZES = ("small", "medium", "large")
#: Fewer objects than this are not divided by size.
LEAST_OF_SIZE = 5
#: Scores below this say "hardly anything", rightly or not; they would drown the others.
LEAST_CALIBRATED = 0.1
#: Measures of which a lower value is better.
LOWER_IS_BETTER = frozenset({"false_positives_an_image", "ece"})


@dataclass(frozen=True, eq=False)
class _Counts:
    """Objects, those found, and false positives at the operating point, by image."""

    objects: Floats
    found: Floats
    false: Floats

    @classmethod
    def of(cls, hits: Hits) -> _Counts:
        def by_image(image: Array) -> Floats:
            return np.bincount(image, minlength=hits.images).astype(np.float64)

        found = np.isfinite(hits.object_score)
        return cls(by_image(hits.object_image), by_image(hits.object_image[found]), by_image(hits.false_image))

    def measures(self, w: Floats) -> dict[str, Floats]:
        objects, found, false = w @ self.objects, w @ self.found, w @ self.false
        return {
            "sensitivity": _ratio(found, objects),
            "precision": _ratio(found, found + false),
            "f1": _ratio(2 * found, found + false + objects),
            "false_positives_an_image": _ratio(false, w.sum(axis=-1)),
        }


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


class _Measured:
    """Everything about some boxes that does not change between resamples, and the measures of weights."""

    def __init__(self, rows: BoxRows, rule: HitRule, dimensions: int) -> None:
        boxes = rows.boxes
        self.boxes, self.dimensions = boxes, dimensions
        real = ~boxes.truth_crowd
        edge = boxes.truth_area[real] ** (1 / dimensions)
        self.hits = replace(rule.hits(boxes), object_edge=edge)
        self.chosen = replace(rule.hits(_chosen(boxes, rows.chosen)), object_edge=edge)
        self.limits = _thirds(edge)
        truth, scores = boxes.image_truth(), boxes.image_scores()
        any_truth = np.where((truth == 1).any(axis=1), 1.0, np.where(np.isnan(truth).any(axis=1), np.nan, 0.0))
        self.rankings = [Ranking(scores.max(axis=1, initial=0.0), any_truth)]
        self.rankings += [Ranking(scores[:, c], truth[:, c]) for c in range(boxes.classes)]
        self.known = [np.isfinite(any_truth), *(np.isfinite(truth[:, c]) for c in range(boxes.classes))]
        hit, counts = rule.judged(boxes)
        self.stated = counts & (boxes.pred_score >= LEAST_CALIBRATED)
        self.happened = hit[self.stated].astype(np.float64)
        self.bins = int(np.clip(len(self.happened) // 10, 2, 10))
        self.parts = {-1: self.hits, **{c: self.hits.of_class(c) for c in range(boxes.classes)}}
        self.counts = {-1: _Counts.of(self.chosen)}
        self.counts |= {c: _Counts.of(self.chosen.of_class(c)) for c in range(boxes.classes)}

    def __call__(self, w: Floats) -> dict[str, Floats]:
        """Weights (R, images) -> {"|measure" or "2|measure of class 2": (R,)}."""
        out: dict[str, Floats] = {}
        for part, hits in self.parts.items():
            scope = "" if part < 0 else str(part)
            out |= {f"{scope}|{name}": value for name, value in froc_measures(hits, w).items()}
            out |= {f"{scope}|{name}": value for name, value in self.counts[part].measures(w).items()}
            out[f"{scope}|auc"] = self.rankings[part + 1].measures(w)[0]
        if len(self.happened):
            image = self.boxes.pred_image[self.stated]
            out["|ece"] = calibration.ece(
                self.boxes.pred_score[self.stated], self.happened, w[..., image], bins=self.bins
            )
        for name, (low, high) in _ranges(self.limits).items():
            own = _Counts.of(self.chosen.of_size(low, high))
            out[f"|sensitivity_{name}"] = own.measures(w)["sensitivity"]
        return out

    def cases(self, key: str) -> int:
        """What a measure rests on: objects, images or boxes."""
        scope, _, name = key.partition("|")
        part = int(scope) if scope else -1
        if name == "auc":
            return int(self.known[part + 1].sum())
        if name == "false_positives_an_image":
            return self.boxes.images
        if name == "ece":
            return len(self.happened)
        if name.startswith("sensitivity_") and name.removeprefix("sensitivity_") in SIZES:
            low, high = _ranges(self.limits)[name.removeprefix("sensitivity_")]
            return len(self.hits.of_size(low, high).object_score)
        if name == "precision":
            count = self.counts[part]
            return int(count.found.sum() + count.false.sum())
        return len(self.parts[part].object_score)


def _chosen(boxes: DetectionSet, chosen: Array) -> DetectionSet:
    return replace(
        boxes,
        pred_image=boxes.pred_image[chosen],
        pred_class=boxes.pred_class[chosen],
        pred_corners=boxes.pred_corners[chosen],
        pred_score=boxes.pred_score[chosen],
    )


def _thirds(edge: Floats) -> tuple[float, float] | None:
    """Where thirds of the objects end; ``None`` where they are too few or too alike."""
    if len(edge) < 3 * LEAST_OF_SIZE:
        return None
    low, high = (float(v) for v in np.quantile(edge, [1 / 3, 2 / 3]))
    return (low, high) if edge.min() < low < high <= edge.max() else None


def _ranges(limits: tuple[float, float] | None) -> dict[str, tuple[float, float]]:
    if limits is None:
        return {}
    low, high = limits
    return dict(zip(SIZES, ((0.0, low), (low, high), (high, math.inf)), strict=True))


def summarise_boxes(
    scheme: LabelScheme,
    rows: pd.DataFrame,
    *,
    dimensions: int,
    rule: HitRule,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Summary:
    """Measures of evidence rows with intervals; see the top of this file."""
    read = BoxRows.read(rows, scheme)
    classes: dict[str, dict[str, Estimate]] = {name: {} for name in scheme.classes}
    if not read.boxes.images:
        return Summary({"ap50": Estimate(math.nan)}, classes)
    measured = _Measured(read, rule, dimensions)
    options = {"resamples": resamples, "seed": seed, "confidence": confidence}
    boot = bootstrap(measured, read.patients, resamples=resamples, seed=seed, confidence=confidence)
    found: dict[str, Estimate] = {}
    for key, (value, *limits) in boot.estimates.items():
        n = measured.cases(key)
        draws = boot.draws[key][np.isfinite(boot.draws[key])]
        varies = len(draws) and float(np.ptp(draws)) >= 1e-12
        lower, upper = limits if varies else _unvarying(key, value, n, read, confidence)
        found[key] = Estimate(value, lower, upper, n)
    found |= _precisions(read, measured, options)
    for name in ("ap", "ap50", "ap30", "cpm", "sensitivity_at_1", "sensitivity", "f1", "auc"):
        for scope in ("", *map(str, range(len(scheme.classes)))):
            if f"{scope}|{name}" in found:
                base = 0.5 if name == "auc" else 0.0
                known = math.isfinite(found[f"{scope}|{name}"].value)
                value = base if known else math.nan
                found[f"{scope}|baseline.{name}"] = Estimate(value, value, value, found[f"{scope}|{name}"].n)
    if measured.limits is not None:
        low, high = measured.limits
        n = len(measured.hits.object_score)
        found["|small_below"], found["|large_from"] = Estimate(low, n=n), Estimate(high, n=n)
    overall: dict[str, Estimate] = {}
    for key, estimate in found.items():
        scope, _, name = key.partition("|")
        (classes[scheme.classes[int(scope)]] if scope else overall)[name] = estimate
    return Summary(_ordered(overall, dimensions), {name: _ordered(of, dimensions) for name, of in classes.items()})


def _unvarying(key: str, value: float, n: int, read: BoxRows, confidence: float) -> tuple[float, float]:
    """An interval where all resamples agree: Wilson's at the number of patients for a proportion, else none."""
    name = key.partition("|")[2]
    proportion = name in ("sensitivity", "precision") or name.startswith("sensitivity_")
    if not proportion or not math.isfinite(value) or not n:
        return math.nan, math.nan
    patients = min(group_codes(read.patients)[1], n)
    return wilson(value * patients, patients, confidence=confidence)


def _precisions(read: BoxRows, measured: _Measured, options: Mapping[str, float]) -> dict[str, Estimate]:
    """Average precision of all classes, of each, and by size."""
    resamples, seed, confidence = int(options["resamples"]), int(options["seed"]), float(options["confidence"])

    def estimates(matches: Matches) -> dict[str, Estimate]:
        return ap_estimates(matches, read.patients, resamples=resamples, seed=seed, confidence=confidence)

    matches = match(read.boxes, iou=IOU)
    out = {f"|{name}": estimate for name, estimate in estimates(matches).items()}
    for c in range(read.boxes.classes):
        alone = np.zeros_like(matches.positives)
        alone[:, c] = matches.positives[:, c]
        out |= {f"{c}|{name}": estimate for name, estimate in estimates(replace(matches, positives=alone)).items()}
    for name, (low, high) in _ranges(measured.limits).items():
        some = match(
            read.boxes, iou=(0.5,), area=(low**measured.dimensions, np.nextafter(high**measured.dimensions, 0))
        )
        out |= {f"|{key}_{name}": estimate for key, estimate in estimates(some).items()}
    return {key: estimate for key, estimate in out.items() if _shown(key)}


def _shown(key: str) -> bool:
    name = key.partition("|")[2]
    return name in ("ap", "ap10", "ap30", "ap50", "ap75") or name.startswith("ap50_")


def _ordered(estimates: Mapping[str, Estimate], dimensions: int) -> dict[str, Estimate]:
    """Measures in the order of a report: pictures by their overlap, volumes by their false positives; baselines last."""
    overlap = ("ap50", "ap", "ap75", "ap30", "ap10")
    rates = ("cpm", "sensitivity_at_1")
    point = ("sensitivity", "precision", "f1", "false_positives_an_image", "auc", "ece")
    first = (*overlap, *point, *rates) if dimensions == 2 else (*rates, *point, *overlap)
    rank = {name: place for place, name in enumerate(first)}
    return dict(
        sorted(
            estimates.items(),
            key=lambda pair: (pair[0].startswith("baseline."), rank.get(pair[0].removeprefix("baseline."), 99)),
        )
    )
