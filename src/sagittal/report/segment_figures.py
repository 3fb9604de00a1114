"""Figures of segmentation: Dice and distances a structure, against the volume, against what the model expects."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from sagittal.evaluate.evidence import Evidence
from sagittal.report.place_words import unit_of
from sagittal.report.style import COLOURS, GREY, legend_below, sheet, short, square, with_interval
from sagittal.tasks.segment_measures import expected_pairs, structure_columns
from sagittal.types import Array, Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Structures with a colour of their own; of more, those in the most cases.
MOST_STRUCTURES = 6
#: Structures in the figure of all of them.
MOST_ROWS = 40
#: Cases drawn as points; of more, every n-th.
MOST_POINTS = 1500


def columns_of(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """The rows' columns by structure, cases with a known truth only."""
    rows = evidence.rows[evidence.rows["truth"].notna()]
    return {name: structure_columns(rows, name) for name in evidence.classes}


def drawn_structures(columns: dict[str, dict[str, Any]], most: int = MOST_STRUCTURES) -> list[str]:
    """Those that the most cases have, in their order."""
    count = {name: int((part["voxels_truth"] > 0).sum()) for name, part in columns.items()}
    kept = set(sorted(count, key=lambda name: -count[name])[:most])
    return [name for name in columns if name in kept]


def lowest(columns: dict[str, dict[str, Any]]) -> float:
    """Where an axis of Dice begins: at 0, or below the lowest one where all are high."""
    every = [float(np.nanmin(part["dice"])) for part in columns.values() if np.isfinite(part["dice"]).any()]
    low = min(every, default=0.0)
    return 0.0 if low < 0.35 else math.floor((low - 0.03) * 20) / 20


def _jitter(n: int, width: float) -> Floats:
    """Places beside a line that are the same each time."""
    return np.asarray(np.random.default_rng(5).uniform(-width, width, n))


def _thinned(values: Array) -> slice:
    return slice(None, None, max(1, math.ceil(len(values) / MOST_POINTS)))


def dice_figure(evidence: Evidence) -> Figure:
    """The Dice of each case by structure: a point a case, a box for the quartiles, the mean with its interval."""
    columns = columns_of(evidence)
    names = drawn_structures(columns, MOST_ROWS)
    with sheet(7.2, 1.9 + 0.42 * len(names)) as figure:
        axes = figure.subplots()
        for row, name in enumerate(names):
            part = columns[name]
            values = part["dice"]
            known = values[np.isfinite(values)]
            if not len(known):
                axes.text(0.5, row, "not defined", va="center", ha="center", fontsize=9, color=GREY)
                continue
            low, middle, high = np.percentile(known, [25, 50, 75])
            axes.barh(row, high - low, left=low, height=0.52, color="#DBEAFE", edgecolor="#93C5FD", linewidth=0.8)
            axes.plot([middle, middle], [row - 0.26, row + 0.26], color=COLOURS[0], linewidth=1.6)
            lost = np.isin(part["empty"], ("truth", "answer")) & np.isfinite(values)
            some = values[np.isfinite(values) & ~lost]
            pick = _thinned(some)
            axes.plot(some[pick], row + _jitter(len(some), 0.17)[pick], ".", color="#1F2937", markersize=3.2, alpha=0.5)
            count = int(lost.sum())
            axes.plot(np.zeros(count), row + _jitter(count, 0.17), "x", color=COLOURS[1], markersize=4.5)
            mean = evidence.classes[name]["dice"]
            if math.isfinite(mean.low):
                axes.plot([mean.low, mean.high], [row + 0.36] * 2, color=COLOURS[1], linewidth=1.6)
            axes.plot(mean.value, row + 0.36, "D", color=COLOURS[1], markersize=4)
        axes.set_yticks(range(len(names)), [f"{short(n, 26)}  {_count(columns[n])}" for n in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(lowest(columns) - 0.02, 1.01)
        axes.set(xlabel="Dice", title="Dice by structure")
        axes.grid(visible=False, axis="y")
        axes.plot([], [], ".", color="#1F2937", label="a case")
        axes.plot([], [], color=COLOURS[0], linewidth=5, alpha=0.4, label="middle half, median")
        axes.plot([], [], "D-", color=COLOURS[1], markersize=4, label="mean with interval")
        axes.plot([], [], "x", color=COLOURS[1], label="one of truth and answer is empty")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, handlelength=1.4, columnspacing=1.2)
        return figure


def _count(part: dict[str, Any]) -> str:
    return f"n = {int(np.isfinite(part['dice']).sum())}"


def size_figure(evidence: Evidence) -> Figure:
    """Dice against the size of the true structure, on a log scale: small ones are harder."""
    columns = columns_of(evidence)
    volume = any(np.isfinite(part["volume_truth_ml"]).any() for part in columns.values())
    key = "volume_truth_ml" if volume else "voxels_truth"
    names = drawn_structures(columns)
    with sheet(5.4, 4.6 + 0.21 * len(names)) as figure:
        axes = figure.subplots()
        for colour, name in zip(COLOURS, names, strict=False):
            size, dice = columns[name][key], columns[name]["dice"]
            here = np.flatnonzero((size > 0) & np.isfinite(dice))
            here = here[_thinned(here)]
            axes.plot(size[here], dice[here], "o", color=colour, markersize=4, alpha=0.6, label=short(name))
        axes.set_xscale("log")
        axes.set_ylim(lowest(columns) - 0.02, 1.02)
        axes.set(
            xlabel="true volume, ml" if volume else f"true size, {_counted(evidence)}",
            ylabel="Dice",
            title="Dice and size",
        )
        _plain_ticks(axes)
        legend_below(figure, axes)
        return figure


def _counted(evidence: Evidence) -> str:
    return "pixels" if evidence.settings.dimensions == 2 else "voxels"


def _plain_ticks(axes: Axes) -> None:
    """Few numbers on a log axis, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    narrow = high / max(low, 1e-12) < 50
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def expected_figure(evidence: Evidence) -> Figure | None:
    """The true Dice against the one that the model expects of itself; ``None`` where it expects nothing."""
    columns = columns_of(evidence)
    expected, true, _, structure = expected_pairs(columns)
    if len(expected) < 3:
        return None
    every = list(columns)
    names = drawn_structures(columns)
    with sheet(5.0, 5.6 + 0.21 * len(names)) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        for colour, name in zip(COLOURS, names, strict=False):
            here = np.flatnonzero(structure == every.index(name))
            here = here[_thinned(here)]
            axes.plot(expected[here], true[here], "o", color=colour, markersize=4, alpha=0.6, label=short(name))
        square(axes)
        low = max(0.0, min(lowest(columns), float(expected.min()) - 0.05))
        axes.set_xlim(low - 0.01, 1.01)
        axes.set_ylim(low - 0.01, 1.01)
        error = with_interval(evidence.overall.get("expected_dice_error"))
        axes.set(xlabel="Dice that the model expects", ylabel="true Dice", title=f"Expected Dice: mean gap {error}")
        corner: dict[str, Any] = {"xycoords": "axes fraction", "fontsize": 9, "color": GREY}
        axes.annotate("worse than expected", (0.98, 0.04), ha="right", **corner)
        axes.annotate("better than expected", (0.02, 0.93), **corner)
        legend_below(figure, axes)
        return figure


def agreement_figure(evidence: Evidence) -> Figure | None:
    """Bland-Altman: error of the volume against its size, with bias and limits of agreement, a panel a structure.

    Of pictures the area, in pixels. ``None`` where no case has a structure.
    """
    columns = columns_of(evidence)
    volume = any(np.isfinite(part["volume_error_ml"]).any() for part in columns.values())
    names = [name for name in drawn_structures(columns) if (columns[name]["voxels_truth"] > 0).any()]
    if not names:
        return None
    across = min(3, len(names))
    down = math.ceil(len(names) / across)
    with sheet(3.6 * across + (1.4 if across == 1 else 0), 3.2 * down + 0.3) as figure:
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for panel, name in zip(panels, names, strict=False):
            part = columns[name]
            truth, answer = (
                (part["volume_truth_ml"], part["volume_ml"])
                if volume
                else (part["voxels_truth"], part["voxels_answer"])
            )
            here = np.flatnonzero((truth > 0) & np.isfinite(answer))
            _agreement(panel, truth[here], answer[here])
            panel.set_title(short(name, 26), fontsize=10)
        for panel in panels[len(names) :]:
            panel.set_visible(False)
        unit = "ml" if volume else _counted(evidence)
        figure.supxlabel(f"mean of true and answered size, {unit}", fontsize=9.5)
        figure.supylabel(f"answer \u2212 truth, {unit}", fontsize=9.5)
        return figure


def _agreement(axes: Axes, truth: Floats, answer: Floats) -> None:
    error = answer - truth
    if not len(error):
        return
    bias, spread = float(error.mean()), float(error.std(ddof=1)) if len(error) > 1 else math.nan
    pick = _thinned(error)
    axes.plot(((truth + answer) / 2)[pick], error[pick], "o", color=COLOURS[0], markersize=4, alpha=0.6)
    axes.axhline(0, color="#D1D5DB", linewidth=1)
    axes.axhline(bias, color=COLOURS[1], linewidth=1.3)
    text = f"bias {_signed(bias)}"
    if math.isfinite(spread):
        for side in (-1.96, 1.96):
            axes.axhline(bias + side * spread, color=COLOURS[1], linewidth=1, linestyle="--")
        text += f"; 95 %: {_signed(bias - 1.96 * spread)} to {_signed(bias + 1.96 * spread)}"
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.22 * (high - low))  # room for the words
    axes.annotate(text, (0.02, 0.98), xycoords="axes fraction", va="top", fontsize=8, color=COLOURS[1])


def _signed(value: float) -> str:
    return f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.3g}"


def distance_figure(evidence: Evidence) -> Figure:
    """Share of cases whose HD95 lies below a distance, a line a structure; what never arrives at the top has none."""
    columns = columns_of(evidence)
    names = drawn_structures(columns)
    unit = unit_of(evidence)
    finite = [part["hd95"][np.isfinite(part["hd95"])] for part in columns.values()]
    every = np.concatenate([np.zeros(0), *finite])
    top = float(np.percentile(every, 98)) * 1.1 if len(every) else 1.0
    with sheet(5.4, 4.6 + 0.21 * len(names)) as figure:
        axes = figure.subplots()
        for colour, name in zip(COLOURS, names, strict=False):
            values = columns[name]["hd95"]
            known = np.sort(values[~np.isnan(values)])
            if not len(known):
                continue
            share = np.arange(1, len(known) + 1) / len(known)
            inside = np.isfinite(known)
            x, y = np.append(0.0, known[inside]), np.append(0.0, share[inside])
            lost = int((~inside).sum())
            label = f"{short(name)}: median {np.median(known):.3g} {unit}" + (f", {lost} without" if lost else "")
            axes.step(np.append(x, 1e9), np.append(y, y[-1]), where="post", color=colour, label=label)
        axes.set_xlim(0, max(top, 1e-6))
        axes.set_ylim(0, 1.02)
        axes.set(xlabel=f"HD95, {unit}", ylabel="share of cases below", title="Distance of the surfaces")
        legend_below(figure, axes)
        return figure


def segment_figures(evidence: Evidence) -> dict[str, Figure]:
    """The figures of segmentation evidence by file name; empty without a case of known truth."""
    if not len(evidence.rows) or not evidence.rows["truth"].notna().any():
        return {}
    found = {
        "dice.png": dice_figure(evidence),
        "distances.png": distance_figure(evidence),
        "dice_by_size.png": size_figure(evidence),
        "volumes.png": agreement_figure(evidence),
        "calibration.png": expected_figure(evidence),
    }
    return {name: figure for name, figure in found.items() if figure is not None}
