"""Figures of detection: precision and recall, FROC, what a score is worth, objects by size."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from sagittal.evaluate.evidence import Evidence
from sagittal.metrics.calibration import bin_numbers
from sagittal.metrics.detection import match
from sagittal.metrics.froc import RATES, froc
from sagittal.metrics.intervals import Estimate, bootstrap, wilson
from sagittal.report.style import COLOURS, GREY, legend_below, sheet, short, square, with_interval
from sagittal.tasks.detect_measures import LEAST_CALIBRATED
from sagittal.tasks.detect_rows import BoxRows
from sagittal.tasks.detect_settle import HitRule
from sagittal.types import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Classes drawn in one figure, at most: those with the most objects.
MOST_CLASSES = len(COLOURS)
#: False positives an image between which the FROC curve is drawn.
LEAST_RATE, MOST_RATE = 1 / 16, 16.0


def _read(evidence: Evidence) -> BoxRows:
    scheme = evidence.settings.scheme
    assert scheme is not None
    return BoxRows.read(evidence.rows, scheme)


def drawn_objects(evidence: Evidence, rows: BoxRows) -> list[int]:
    """Numbers of the classes that have objects, of many those with the most."""
    boxes = rows.boxes
    count = np.bincount(boxes.truth_class[~boxes.truth_crowd], minlength=boxes.classes)
    kept = sorted(np.argsort(-count, kind="stable")[:MOST_CLASSES].tolist())
    return [c for c in kept if count[c]]


def pr_figure(evidence: Evidence) -> Figure:
    """Precision over recall of each class, and its average precision with interval.

    At the IoU that finds an object of a picture, one half; of a volume 0.1.
    """
    rows = _read(evidence)
    names = list(evidence.classes)
    iou = HitRule.of(evidence.settings.dimensions).iou
    measure = f"ap{round(100 * iou):02d}"
    found = match(rows.boxes, iou=(iou,))
    drawn = drawn_objects(evidence, rows)
    with sheet(5.0, 5.4 + 0.21 * len(drawn)) as figure:
        axes = figure.subplots()
        for colour, c in zip(COLOURS, drawn, strict=False):
            here = (found.label == c) & ~found.ignored[:, 0]
            hit = found.hit[here, 0]
            true = np.cumsum(hit)
            recall = np.append(0.0, true / found.positives[:, c].sum())
            precision = np.append(1.0, true / np.arange(1, len(hit) + 1))
            ap = evidence.classes[names[c]].get(measure)
            axes.plot(recall, precision, color=colour, label=f"{short(names[c])}: AP {with_interval(ap)}")
            point, rate = evidence.classes[names[c]].get("sensitivity"), evidence.classes[names[c]].get("precision")
            by_iou = HitRule.of(evidence.settings.dimensions).kind == "iou"
            if by_iou and point and rate and math.isfinite(point.value + rate.value):
                axes.plot(point.value, rate.value, "o", color=colour, markersize=7, markeredgecolor="white")
        square(axes)
        axes.set(xlabel="recall (sensitivity)", ylabel="precision", title=f"Precision and recall at IoU {iou:g}")
        legend_below(figure, axes)
        return figure


def froc_figure(evidence: Evidence) -> Figure:
    """Sensitivity over false positives an image, all classes with a band from resampling patients, and each class."""
    rows = _read(evidence)
    names, settings = list(evidence.classes), evidence.settings
    hits = HitRule.of(settings.dimensions).hits(rows.boxes)
    drawn = drawn_objects(evidence, rows)
    rates = np.geomspace(LEAST_RATE, MOST_RATE, 49)

    def measures(weights: Floats) -> dict[str, Floats]:
        values = froc(hits, weights, rates=rates.tolist())
        return {str(n): values[:, n] for n in range(len(rates))}

    band = bootstrap(
        measures,
        rows.patients,
        resamples=min(settings.resamples, 400),
        seed=settings.seed,
        confidence=settings.confidence,
        method="percentile",
    ).estimates
    value, low, high = (np.array([band[str(n)][k] for n in range(len(rates))]) for k in range(3))
    with sheet(5.6, 5.0 + 0.21 * len(drawn)) as figure:
        axes = figure.subplots()
        if np.isfinite(low).any():
            axes.fill_between(rates, low, high, color=COLOURS[0], alpha=0.15, linewidth=0)
        alone = len(drawn) == 1
        who = short(names[drawn[0]]) if alone else "all classes"
        cpm = with_interval(evidence.overall.get("cpm"))
        axes.plot(rates, value, color="#111827" if not alone else COLOURS[0], label=f"{who}: CPM {cpm}")
        for colour, c in zip(COLOURS, drawn if not alone else [], strict=False):
            own = froc(hits.of_class(c), rates=rates.tolist())
            cpm = with_interval(evidence.classes[names[c]].get("cpm"))
            axes.plot(rates, own, color=colour, linewidth=1.2, label=f"{short(names[c])}: CPM {cpm}")
        at, rate = evidence.overall.get("sensitivity"), evidence.overall.get("false_positives_an_image")
        if at and rate and math.isfinite(at.value) and rate.value >= LEAST_RATE:
            axes.plot(rate.value, at.value, "o", color=GREY, markersize=7, markeredgecolor="white")
            axes.plot([], [], "o", color=GREY, markersize=6, label=f"operating point: {settings.operating_point}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(RATES, [f"{rate:g}" if rate >= 1 else f"1/{round(1 / rate)}" for rate in RATES])
        axes.minorticks_off()
        axes.set_xlim(LEAST_RATE, MOST_RATE)
        axes.set_ylim(0, 1.02)
        axes.set(xlabel="false positives an image", ylabel="sensitivity", title="FROC curve")
        legend_below(figure, axes)
        return figure


def score_figure(evidence: Evidence) -> Figure | None:
    """How often a box of a certain score is right, with Wilson intervals, and how often each score was given.

    ``None`` where no box has a score worth looking at.
    """
    from matplotlib.ticker import MaxNLocator

    boxes = _read(evidence).boxes
    hit, counts = HitRule.of(evidence.settings.dimensions).judged(boxes)
    used = counts & (boxes.pred_score >= LEAST_CALIBRATED)
    score, right = boxes.pred_score[used], hit[used].astype(np.float64)
    if not len(score):
        return None
    number = bin_numbers(score, bins=max(1, min(10, len(score) // 10)), binning="mass")
    groups = [number == b for b in np.unique(number)]
    stated = np.array([score[g].mean() for g in groups])
    observed = np.array([right[g].mean() for g in groups])
    limits = [wilson(float(right[g].sum()), float(g.sum()), confidence=evidence.settings.confidence) for g in groups]
    low, high = np.array(limits).T
    with sheet(5.0, 5.8) as figure:
        axes, below = figure.subplots(2, 1, gridspec_kw={"height_ratios": [5, 1]}, sharex=True)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        spread = np.clip(np.stack([observed - low, high - observed]), 0, None)
        axes.errorbar(stated, observed, yerr=spread, color=COLOURS[0], linewidth=1, capsize=2.5, fmt="none")
        axes.plot(stated, observed, "o-", color=COLOURS[0], markersize=5, linewidth=1.2)
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(f"Scores: mean gap (ECE) {with_interval(evidence.overall.get('ece'))}")
        axes.set_ylabel("share of boxes that enclose an object")
        below.hist(boxes.pred_score[counts], bins=np.linspace(0, 1, 26).tolist(), color=COLOURS[0], alpha=0.8)
        below.set(xlabel="score", ylabel="boxes", xlim=(-0.02, 1.02))
        below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        axes.annotate("surer than it should be", (0.98, 0.04), ha="right", fontsize=9, color=GREY)
        axes.annotate("right more often than stated", (0.02, 0.93), fontsize=9, color=GREY)
        return figure


def object_size_figure(evidence: Evidence) -> Figure | None:
    """Objects found and missed at the operating point by their size; ``None`` without objects."""
    from dataclasses import replace

    rows = _read(evidence)
    boxes, chosen = rows.boxes, rows.chosen
    part = replace(
        boxes,
        pred_image=boxes.pred_image[chosen],
        pred_class=boxes.pred_class[chosen],
        pred_corners=boxes.pred_corners[chosen],
        pred_score=boxes.pred_score[chosen],
    )
    hits = HitRule.of(evidence.settings.dimensions).hits(part)
    if not len(hits.object_score):
        return None
    edge = boxes.truth_area[~boxes.truth_crowd] ** (1 / evidence.settings.dimensions)
    found = np.isfinite(hits.object_score)
    edges = np.unique(np.quantile(edge, np.linspace(0, 1, 9)))
    if len(edges) < 2:
        edges = np.array([edges[0] * 0.9, edges[0] * 1.1])
    with sheet(5.6, 4.6) as figure:
        axes = figure.subplots()
        place = np.clip(np.searchsorted(edges, edge, side="right") - 1, 0, len(edges) - 2)
        total = np.bincount(place, minlength=len(edges) - 1)
        hit = np.bincount(place[found], minlength=len(edges) - 1)
        x = np.arange(len(total))
        axes.bar(x, hit, color=COLOURS[0], width=0.8, label="found")
        axes.bar(x, total - hit, bottom=hit, color=COLOURS[1], width=0.8, label="missed")
        for n in x:
            if total[n]:
                axes.text(
                    float(n),
                    float(total[n]),
                    f"{100 * hit[n] / total[n]:.0f}\u00a0%",
                    ha="center",
                    va="bottom",
                    fontsize=8.5,
                )
        axes.set_xticks(x, [f"{a:.3g}\u2013{b:.3g}" for a, b in itertools.pairwise(edges)])
        axes.tick_params(axis="x", labelrotation=30 if len(x) > 4 else 0)
        unit = "mm" if rows.in_mm else "pixels" if evidence.settings.dimensions == 2 else "voxels"
        solid = "square" if evidence.settings.dimensions == 2 else "cube"
        axes.set(xlabel=f"edge of a {solid} of the same size, {unit}", ylabel="objects", title="Objects by size")
        axes.margins(y=0.12)
        axes.grid(visible=False, axis="x")
        legend_below(figure, axes)
        return figure


def class_figure(evidence: Evidence) -> Figure | None:
    """Which class is answered where an object lies, whatever its own: the confusion matrix, with what is missed or invented.

    ``None`` for a single class.
    """
    rows, names = _read(evidence), list(evidence.classes)
    if len(names) < 2 or len(names) > 20:
        return None
    counts = confusion(rows, HitRule.of(evidence.settings.dimensions).iou, len(names))
    side = float(np.clip(3.0 + 0.62 * len(names), 4.6, 14))
    with sheet(side + 0.4, side) as figure:
        axes = figure.subplots()
        _draw_confusion(axes, counts, [short(n, 18) for n in names])
        return figure


def confusion(rows: BoxRows, iou: float, classes: int) -> Floats:
    """Objects by true class (rows) and answered class (columns), (C + 1, C + 1); the last row and column are nothing.

    Boxes that count, the surest first, each take the free object of any class that they cover best, from an IoU on.
    """
    from dataclasses import replace

    boxes, chosen = rows.boxes, rows.chosen
    real = ~boxes.truth_crowd
    alike = replace(
        boxes,
        classes=1,
        pred_image=boxes.pred_image[chosen],
        pred_class=np.zeros(int(chosen.sum()), dtype=np.int64),
        pred_corners=boxes.pred_corners[chosen],
        pred_score=boxes.pred_score[chosen],
        truth_class=np.zeros(len(boxes.truth_class), dtype=np.int64),
    )
    found = match(alike, iou=(iou,), max_dets=10**6)
    out = np.zeros((classes + 1, classes + 1))
    answered = boxes.pred_class[chosen][found.index]
    taken = found.truth[:, 0]
    hit = (taken >= 0) & ~found.ignored[:, 0]
    np.add.at(out, (boxes.truth_class[taken[hit]], answered[hit]), 1)
    false = (taken < 0) & ~found.ignored[:, 0]
    out[classes, :classes] = np.bincount(answered[false], minlength=classes)
    missed = real.copy()
    missed[taken[hit]] = False
    out[:classes, classes] = np.bincount(boxes.truth_class[missed], minlength=classes)
    return out


def _draw_confusion(axes: Axes, matrix: Floats, names: list[str]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    total = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, total, out=np.zeros_like(matrix), where=total > 0)
    blues = LinearSegmentedColormap.from_list("blues", ["#FFFFFF", "#CFE3F2", "#5FA8D3", "#0B5A8F"])
    axes.imshow(share, cmap=blues, vmin=0, vmax=1)
    axes.grid(visible=False)
    last = len(names)
    for i, j in np.ndindex(*matrix.shape):
        if (i, j) == (last, last):
            continue
        colour = "white" if share[i, j] > 0.6 else "#111827"
        axes.text(j, i, f"{matrix[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=10 if last < 9 else 8)
    turned = max(map(len, names)) > 6
    columns, rows = [*names, "missed"], [*names, "no object"]
    axes.set_xticks(range(last + 1), columns, rotation=45 if turned else 0, ha="right" if turned else "center")
    axes.set_yticks(range(last + 1), rows)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="answer of the model", ylabel="truth", title="Which class is answered")


def detect_figures(evidence: Evidence) -> dict[str, Figure]:
    """The figures of detection evidence by file name; empty without a case of known truth."""
    rows = evidence.rows
    if not len(rows) or not rows["truth"].notna().any():
        return {}
    has_objects = math.isfinite(evidence.overall.get("cpm", Estimate(math.nan)).value)
    found = {
        "pr_curve.png": pr_figure(evidence) if has_objects else None,
        "froc_curve.png": froc_figure(evidence) if has_objects else None,
        "calibration.png": score_figure(evidence),
        "sizes.png": object_size_figure(evidence),
        "confusion_matrix.png": class_figure(evidence),
    }
    return {name: figure for name, figure in found.items() if figure is not None}
