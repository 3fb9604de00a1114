"""Figures of a report, drawn without a display; no state of matplotlib is left behind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sagittal.evaluate.curves import answers_of, decision_curve, pr_curve, reliability_curve, roc_curve, scores_of
from sagittal.evaluate.evidence import Evidence
from sagittal.metrics.decision import confusion_matrix
from sagittal.metrics.intervals import Estimate
from sagittal.report.detect_figures import detect_figures
from sagittal.report.measure_names import title_of
from sagittal.report.segment_figures import segment_figures
from sagittal.report.style import (
    COLOURS,
    GREY,
    legend_below,
    sheet,
    short,
    square,
    with_interval,
)
from sagittal.types import Array, Floats

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_BLUES = ["#FFFFFF", "#CFE3F2", "#5FA8D3", "#0B5A8F"]

#: Classes drawn in one figure, at most: the most frequent ones.
MOST_CLASSES = len(COLOURS)


def drawn_classes(evidence: Evidence) -> tuple[str, ...]:
    """The classes that curves are drawn for: the positive one of two, else the most frequent ones in their order."""
    answers = answers_of(evidence)
    classes = answers.scheme.classes
    if answers.scheme.kind == "binary":
        return (classes[1],)
    counts = np.nansum(answers.truth, axis=0) if len(answers) else np.zeros(len(classes))
    kept = sorted(np.argsort(-counts, kind="stable")[:MOST_CLASSES])
    return tuple(classes[c] for c in kept)


def _class_measure(evidence: Evidence, label: str, measure: str) -> Estimate | None:
    return evidence.classes.get(label, {}).get(measure)


def roc_figure(evidence: Evidence) -> Figure:
    """ROC curve of each class, its AUC with interval, and the operating point in use."""
    names = drawn_classes(evidence)
    with sheet(5.0, 5.6 + 0.21 * len(names)) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="chance: 0.50")
        for colour, name in zip(COLOURS, names, strict=False):
            curve = roc_curve(evidence, name)
            label = f"{short(name)}: AUC {with_interval(_class_measure(evidence, name, 'auc'))}"
            axes.plot(curve.x, curve.y, color=colour, label=label)
            hit, rest = (_class_measure(evidence, name, m) for m in ("sensitivity", "specificity"))
            if hit and rest and math.isfinite(hit.value + rest.value):
                axes.plot(1 - rest.value, hit.value, "o", color=colour, markersize=7, markeredgecolor="white")
        axes.plot([], [], "o", color=GREY, markersize=6, label=f"operating point: {evidence.settings.operating_point}")
        square(axes)
        axes.set(xlabel="1 \u2212 specificity", ylabel="sensitivity", title="ROC curve")
        legend_below(figure, axes)
        return figure


def pr_figure(evidence: Evidence) -> Figure:
    """Precision-recall curve of each class with its average precision; the dashed line is the class's frequency."""
    names = drawn_classes(evidence)
    with sheet(5.0, 5.6 + 0.21 * len(names)) as figure:
        axes = figure.subplots()
        for colour, name in zip(COLOURS, names, strict=False):
            curve = pr_curve(evidence, name)
            label = f"{short(name)}: AP {with_interval(_class_measure(evidence, name, 'average_precision'))}"
            if np.isfinite(curve.x).any():
                # Where recall is gained; the area under these steps is the average precision.
                gained = np.diff(curve.x, prepend=0) > 0
                x, y = np.append(0.0, curve.x[gained]), np.append(curve.y[gained][:1], curve.y[gained])
                axes.step(x, y, where="pre", color=colour, label=label)
            share = _class_measure(evidence, name, "prevalence")
            if share and math.isfinite(share.value):
                axes.axhline(share.value, color=colour, linewidth=0.9, linestyle="--", alpha=0.7)
        axes.plot([], [], color=GREY, linewidth=1, linestyle="--", label="frequency of the class (chance)")
        square(axes)
        axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)", title="Precision and recall")
        legend_below(figure, axes)
        return figure


def calibration_figure(evidence: Evidence) -> Figure:
    """Reliability curve with Wilson intervals, and how often each probability was given."""
    from matplotlib.ticker import MaxNLocator

    names = drawn_classes(evidence)
    with sheet(5.0, 5.9 + 0.1 * len(names)) as figure:
        axes, below = figure.subplots(2, 1, gridspec_kw={"height_ratios": [5, 1]}, sharex=True)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        for colour, name in zip(COLOURS, names, strict=False):
            curve = reliability_curve(evidence, name, bins=10 if len(names) == 1 else 5)
            if not len(curve.n):
                continue
            if len(names) == 1:
                spread = np.clip(np.stack([curve.observed - curve.low, curve.high - curve.observed]), 0, None)
                axes.errorbar(
                    curve.stated, curve.observed, yerr=spread, color=colour, linewidth=1, capsize=2.5, fmt="none"
                )
            axes.plot(curve.stated, curve.observed, "o-", color=colour, markersize=5, linewidth=1.2, label=short(name))
            p, _ = scores_of(evidence, name)
            edges = np.linspace(0, 1, 26).tolist()
            below.hist(p, bins=edges, color=colour, histtype="stepfilled" if len(names) == 1 else "step", alpha=0.8)
        axes.set_ylim(-0.02, 1.02)
        error = f": mean gap (ECE) {with_interval(evidence.overall.get('ece'))}" if len(names) == 1 else ""
        axes.set_title("Calibration" + error)
        axes.set_ylabel("observed frequency")
        below.set(xlabel="stated probability", ylabel="cases", xlim=(-0.02, 1.02))
        below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        axes.annotate("rarer than stated", (0.98, 0.04), ha="right", fontsize=9, color=GREY)
        axes.annotate("more frequent than stated", (0.02, 0.93), fontsize=9, color=GREY)
        if len(names) > 1:
            handles, labels = axes.get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=2)
        return figure


def decision_figure(evidence: Evidence) -> Figure:
    """Net benefit of acting by the model, on all and on none."""
    from matplotlib.ticker import PercentFormatter

    names = drawn_classes(evidence)
    with sheet(5.6, 4.8 + 0.19 * len(names)) as figure:
        axes = figure.subplots()
        top = 0.05
        for colour, name in zip(COLOURS, names, strict=False):
            curve = decision_curve(evidence, name)
            if not np.isfinite(curve.model).any():
                continue
            top = max(top, float(np.nanmax(curve.model)))
            axes.plot(curve.thresholds, curve.model, color=colour, label=f"model: {short(name)}")
            axes.plot(curve.thresholds, curve.treat_all, color=colour, linewidth=1, linestyle=":")
        axes.plot([], [], color=GREY, linewidth=1, linestyle=":", label="act on every case")
        axes.axhline(0, color=GREY, linewidth=1, linestyle="--", label="act on none")
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.25 * top, 1.1 * top)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.set(
            xlabel="threshold: probability from which one would act",
            ylabel="net benefit (true positives a case)",
            title="Decision curve",
        )
        legend_below(figure, axes)
        return figure


def confusion_figure(evidence: Evidence) -> Figure:
    """Counts of truth against answer, shaded by the share of each true class; a panel a class for several labels."""
    answers = answers_of(evidence)
    classes = answers.scheme.classes
    if not answers.scheme.exclusive:
        return _confusion_panels(answers.truth, answers.decided, classes)
    pred, true = (
        np.where(np.isfinite(v).all(axis=1), np.argmax(np.nan_to_num(v), axis=1), -1)
        for v in (answers.decided, answers.truth)
    )
    side = float(np.clip(2.6 + 0.62 * len(classes), 4.2, 14))
    with sheet(side + 0.4, side) as figure:
        axes = figure.subplots()
        _draw_matrix(axes, confusion_matrix(pred, true, len(classes)), [short(n, 18) for n in classes])
        axes.set(xlabel="answer of the model", ylabel="truth", title="Confusion matrix")
        return figure


def _blues() -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("blues", _BLUES)


def _draw_matrix(axes: Axes, matrix: Floats, names: Sequence[str]) -> None:
    rows = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, rows, out=np.zeros_like(matrix), where=rows > 0)
    axes.imshow(share, cmap=_blues(), vmin=0, vmax=1)
    axes.grid(visible=False)
    size = float(np.clip(13 - 0.45 * len(names), 6, 12))
    for i, j in np.ndindex(*matrix.shape):
        percent = f"\n{100 * share[i, j]:.0f} %" if rows[i, 0] and len(names) <= 12 else ""
        colour = "white" if share[i, j] > 0.6 else "#111827"
        axes.text(j, i, f"{matrix[i, j]:.0f}{percent}", ha="center", va="center", color=colour, fontsize=size)
    turned = max(map(len, names)) > 6 and len(names) > 2
    axes.set_xticks(range(len(names)), names, rotation=45 if turned else 0, ha="right" if turned else "center")
    axes.set_yticks(range(len(names)), names)
    axes.spines[:].set_visible(False)


def _confusion_panels(truth: Floats, decided: Floats, classes: Sequence[str]) -> Figure:
    columns = min(4, len(classes))
    rows = math.ceil(len(classes) / columns)
    with sheet(2.5 * columns, 2.6 * rows + 0.3) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for c, name in enumerate(classes):
            labels = [np.where(np.isfinite(v[:, c]), v[:, c], -1).astype(int) for v in (decided, truth)]
            _draw_matrix(panels[c], confusion_matrix(labels[0], labels[1], 2), ["no", "yes"])
            panels[c].set_title(short(name, 20), fontsize=10)
            panels[c].set_ylabel("truth", fontsize=9)
            panels[c].set_xlabel("answer", fontsize=9)
        for panel in panels[len(classes) :]:
            panel.set_visible(False)
        return figure


def training_figure(results: pd.DataFrame) -> Figure:
    """Losses and validation scores over the steps of training, a line a member.

    Parameters
    ----------
    results : DataFrame
        Columns ``step``, ``loss``, ``val_loss`` and other ``val_`` scores, as in ``results.csv``; ``member`` where there
        are several.
    """
    import pandas as pd
    from matplotlib.ticker import MaxNLocator

    scores = [c for c in results if str(c).startswith("val_") and c != "val_loss"]
    member = results["member"] if "member" in results else pd.Series(0, index=results.index)
    groups = list(results.groupby(member, sort=True))
    with sheet(9.2, 3.9) as figure:
        left, right = figure.subplots(1, 2)
        for number, (_, rows) in enumerate(groups):
            mark = "o" if len(rows) == 1 else None
            several = len(groups) > 1
            alpha = max(0.35, 1 - 0.12 * number) if several else 1.0
            for kind, name, colour in (("loss", "training", GREY), ("val_loss", "validation", COLOURS[0])):
                if kind in rows:
                    label = name if number == 0 else None
                    left.plot(rows["step"], rows[kind], color=colour, alpha=alpha, marker=mark, label=label)
            for colour, column in zip(COLOURS, scores, strict=False):
                label = title_of(str(column).removeprefix("val_")) if number == 0 else None
                right.plot(rows["step"], rows[column], color=colour, alpha=alpha, marker=mark, label=label)
        left.set(xlabel="step", ylabel="loss", title="Loss")
        right.set(xlabel="step", title="Validation scores")
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
        if len(groups) > 1:
            figure.suptitle(f"{len(groups)} members, the first one darkest", fontsize=9, color=GREY, x=0.99, ha="right")
        return figure


def batch_figure(arrays: Array, captions: Sequence[str], *, title: str = "", columns: int = 4) -> Figure:
    """Network inputs as pictures with a caption each: what training really sees, or validation with its answers.

    Parameters
    ----------
    arrays : (N, C, H, W) or (N, C, D, H, W) float
        Of a volume the middle slice is shown. Three channels are colour, else the first one is grey; each picture is
        scaled to its own range.
    captions : sequence of N str
    """
    shown = min(len(arrays), 16, len(captions))
    columns = max(1, min(columns, shown))
    rows = max(1, math.ceil(shown / columns))
    with sheet(2.3 * columns, 2.6 * rows + 0.3) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for n, panel in enumerate(panels):
            panel.set_axis_off()
            if n >= shown:
                continue
            one = np.asarray(arrays[n], dtype=np.float64)
            one = one[:, one.shape[1] // 2] if one.ndim == 4 else one  # (C, H, W)
            low, high = float(np.nanmin(one)), float(np.nanmax(one))
            one = np.nan_to_num((one - low) / max(high - low, 1e-12))
            colour = one.shape[0] == 3
            panel.imshow(one.transpose(1, 2, 0) if colour else one[0], cmap=None if colour else "gray", vmin=0, vmax=1)
            panel.set_title(
                "\n".join(short(line, 30) for line in captions[n].split("\n")), fontsize=8.5, fontweight="normal"
            )
        if title:
            figure.suptitle(title, fontsize=11, fontweight="bold")
        return figure


def subgroup_figure(evidence: Evidence, column: str, measure: str) -> Figure:
    """One measure in each group of a column with its interval; the line is all cases."""
    groups = evidence.subgroups[column]
    small = evidence.groupings[column].small
    with sheet(6.6, 1.6 + 0.34 * len(groups)) as figure:
        axes = figure.subplots()
        whole = evidence.overall[measure]
        kind = evidence.settings.scheme.kind if evidence.settings.scheme is not None else ""
        axes.axvline(whole.value, color=COLOURS[0], linewidth=1, linestyle="--", label=f"all cases: {whole.value:.2f}")
        for n, (name, measures) in enumerate(groups.items()):
            e = measures.get(measure)
            if e is None or not math.isfinite(e.value):
                axes.text(0.5, n, "not defined", va="center", ha="center", fontsize=9, color=GREY)
                continue
            colour = GREY if name in small else "#111827"
            if math.isfinite(e.low):
                axes.plot([e.low, e.high], [n, n], color=colour, linewidth=1.6)
            axes.plot(e.value, n, "s", color=colour, markersize=5)
        axes.set_yticks(
            range(len(groups)),
            [f"{short(name, 26)}  n = {int(evidence.groupings[column].members[name].sum())}" for name in groups],
        )
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set(xlabel=title_of(measure, kind) + " (grey: fewer than 20 cases)", title=f"By {short(column, 40)}")
        legend_below(figure, axes)
        return figure


def evidence_figures(evidence: Evidence) -> dict[str, Figure]:
    """The figures of evidence by file name; empty without a case of known truth."""
    scheme = evidence.settings.scheme
    if scheme is not None and scheme.kind == "structures":
        return segment_figures(evidence)
    if scheme is not None and scheme.kind == "objects":
        return detect_figures(evidence)
    if scheme is None or len(answers_of(evidence)) == 0:
        return {}
    return {
        "confusion_matrix.png": confusion_figure(evidence),
        "roc_curve.png": roc_figure(evidence),
        "pr_curve.png": pr_figure(evidence),
        "calibration.png": calibration_figure(evidence),
        "decision_curve.png": decision_figure(evidence),
    }
