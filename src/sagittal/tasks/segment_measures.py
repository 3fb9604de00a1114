"""What segmentation rows say together: each measure with its interval, by structure and over all structures.

Of a structure: the mean over the cases where the measure is defined, and the median, which distances are led by: a
distance to an empty mask is infinite, which a median can hold and a mean cannot. Over all structures: the mean of the
structures' means (medians), so that each structure counts the same in partially labelled data too. A lesion's measures are
sums over all lesions of all cases. Intervals are BCa bootstraps over patients; those of shares of cases Wilson's where every
patient has one case.

``baseline.NAME`` is the same measure of an answer that marks every voxel as the structure; one that marks none has a Dice
of 0 wherever there is something to find. The baseline of the expected Dice is to state the structure's mean in every case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sagittal.errors import DataError
from sagittal.labels import LabelScheme
from sagittal.metrics.cases import CaseSummary, from_angle, summarise, weighted_mean, weighted_median
from sagittal.metrics.intervals import Estimate, bootstrap, wilson
from sagittal.tasks.task import Summary
from sagittal.types import Array, Floats

if TYPE_CHECKING:
    import pandas as pd

#: Measures that are shown by their mean over cases, the most telling first.
MEANS = ("dice", "surface_dice", "iou", "sensitivity", "precision", "cldice", "volume_error_percent")
#: Distances, shown by their median over cases.
DISTANCES = ("hd95", "asd", "hd")
#: Counts of cases, not measures: of how many the others say nothing.
COUNTS = ("cases_unknown", "cases_both_empty", "cases_missed", "cases_invented", "cases_infinite")
#: Measures of segmentation where less is better.
LOWER_IS_BETTER = frozenset(
    {
        *(f"{name}_median" for name in DISTANCES),
        *DISTANCES,
        "volume_error_percent",
        "missed",
        "invented",
        "expected_dice_error",
    }
)
#: Structures with at least this many pieces a case, on average where they are there, are judged lesion by lesion too.
SEVERAL = 1.5


class Outlined(Protocol):
    """What is needed of a segmentation task."""

    @property
    def scheme(self) -> LabelScheme:
        """Its structures."""
        ...


def summarise_rows(
    task: Outlined,
    rows: pd.DataFrame,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Summary:
    """Measures of evidence rows with intervals; see the top of this file.

    Raises
    ------
    DataError
        If the rows are not those of this task.
    """
    names = task.scheme.classes
    missing = [c for c in ("case", *(f"dice_{n}" for n in names)) if c not in rows]
    if missing:
        raise DataError(f"evidence rows lack the columns {missing}; they come from the task's score()")
    known = rows[rows["truth"].notna()] if "truth" in rows else rows
    groups = known["patient" if "patient" in known else "case"].to_numpy(dtype=object)
    options = {"resamples": resamples, "seed": seed, "confidence": confidence}
    if not len(known):
        return Summary({"dice": Estimate(math.nan)}, {name: {"dice": Estimate(math.nan)} for name in names})
    columns = {name: structure_columns(known, name) for name in names}
    classes = {name: _structure(columns[name], groups, confidence, options) for name in names}
    overall = _overall(columns, groups, options)
    overall |= _expected(columns, groups, options)
    for name in COUNTS:
        overall[name] = _total([classes[structure][name] for structure in names])
    if "accepted" in known and not known["accepted"].astype(bool).all():
        overall |= _accepted(known, groups, confidence, options)
    return Summary(overall, classes)


def structure_columns(rows: pd.DataFrame, name: str) -> dict[str, Any]:
    """The columns of one structure by their measure's name, distances of pictures without a size apart from those in mm."""
    ends = f"_{name}"
    wanted = [*MEANS, *DISTANCES, "expected_dice", "voxels_truth", "voxels_answer", "voxels_known"]
    wanted += ["volume_truth_ml", "volume_ml", "volume_error_ml"]
    wanted += [f"lesions_{part}" for part in ("truth", "found", "answer", "false", "dice")]
    out: dict[str, Any] = {}
    for measure in wanted:
        column = rows.get(measure + ends)
        out[measure] = np.full(len(rows), np.nan) if column is None else column.to_numpy(dtype=np.float64)
    out["empty"] = rows["empty" + ends].to_numpy(dtype=object)
    out["unknown"] = ~np.isfinite(out["voxels_truth"])
    units = rows["unit"].to_numpy(dtype=object) if "unit" in rows else np.full(len(rows), "mm", dtype=object)
    if (units == "mm").any():  # a distance in pixels is no length: it is not averaged with those in mm
        for measure in (*DISTANCES, "surface_dice"):
            out[measure] = np.where(units == "mm", out[measure], np.nan)
    return out


def _structure(
    columns: Mapping[str, Any], groups: Array, confidence: float, options: Mapping[str, Any]
) -> dict[str, Estimate]:
    there = [m for m in (*MEANS, *DISTANCES) if np.isfinite(columns[m]).any() or m in ("dice", "surface_dice", "hd95")]
    values = {m: np.abs(columns[m]) if m == "volume_error_percent" else columns[m] for m in there}
    found = summarise(values, groups, **options)
    # The mean and the median of each; in front those that tell most.
    both = {name: found[name].mean for name in there} | {f"{name}_median": found[name].median for name in there}
    out = {name: both[name] for name in ("dice", "dice_median", "surface_dice", "hd95_median")} | both
    out |= _lesions(columns, groups, options)
    empty, known = columns["empty"], ~columns["unknown"]
    has = known & (columns["voxels_truth"] > 0)
    out["missed"] = _share((empty == "answer")[has], groups[has], confidence)
    out["invented"] = _share((empty == "truth")[known & ~has], groups[known & ~has], confidence)
    out |= _counts(columns, found)
    p = np.where(has, columns["voxels_truth"] / columns["voxels_known"], np.nan)
    if has.any():
        for name, value in (("dice", 2 * p / (1 + p)), ("iou", p), ("precision", p)):
            mean = float(np.nanmean(value))
            out[f"baseline.{name}"] = Estimate(mean, mean, mean, int(has.sum()))
    return out


def _counts(columns: Mapping[str, Any], found: Mapping[str, CaseSummary]) -> dict[str, Estimate]:
    empty, n = columns["empty"], len(columns["empty"])
    counts = {
        "cases_unknown": int(columns["unknown"].sum()),
        "cases_both_empty": int((empty == "both").sum()),
        "cases_missed": int((empty == "answer").sum()),
        "cases_invented": int((empty == "truth").sum()),
        "cases_infinite": found["hd95"].infinite,
    }
    return {name: Estimate(float(counts[name]), n=n) for name in COUNTS}


def _total(parts: Sequence[Estimate]) -> Estimate:
    return Estimate(sum(part.value for part in parts), n=sum(part.n for part in parts))


def _share(holds: Array, groups: Array, confidence: float) -> Estimate:
    """A share of cases with Wilson's interval at the number of patients."""
    n = len(holds)
    if n == 0:
        return Estimate(math.nan)
    share, patients = float(np.mean(holds)), len(set(groups))
    return Estimate(share, *wilson(share * patients, patients, confidence=confidence), n)


def _ratio(above: Floats, below: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)


def _lesions(columns: Mapping[str, Any], groups: Array, options: Mapping[str, Any]) -> dict[str, Estimate]:
    """Measures over all lesions of all cases, of a structure that typically has several pieces."""
    true = columns["lesions_truth"]
    there = true > 0
    thin = np.isfinite(columns["cldice"])  # the pieces of a vessel tree are no lesions
    if not there.any() or float(true[there].mean()) < SEVERAL or 2 * np.count_nonzero(thin) > np.count_nonzero(there):
        return {}
    usable = np.isfinite(true)
    parts = {n: np.where(usable, columns[f"lesions_{n}"], 0) for n in ("truth", "found", "answer", "false", "dice")}

    def measures(weights: Floats) -> dict[str, Floats]:
        s = {name: weights @ values for name, values in parts.items()}
        return {
            "lesion_sensitivity": _ratio(s["found"], s["truth"]),
            "lesion_precision": _ratio(s["answer"] - s["false"], s["answer"]),
            "lesion_f1": _ratio(2 * s["found"], s["found"] + s["truth"] + s["false"]),
            "lesion_dice": _ratio(s["dice"], s["truth"] + s["false"]),
            "lesion_false_per_case": s["false"] / np.maximum(weights @ usable, 1e-12),
        }

    boot = bootstrap(measures, groups, **options)
    n = int(true[usable].sum())
    return {name: Estimate(*values, n) for name, values in boot.estimates.items()}


def overall_measures(
    columns: Mapping[str, Mapping[str, Any]], *, angles: bool = True
) -> Callable[[Floats], dict[str, Floats]]:
    """What gives the measures over all structures for weights (R, n) of the cases, for a bootstrap.

    Distances come as `angles`, ``arctan`` of their value, so that an infinite median stays in an interval.
    """

    def measures(weights: Floats) -> dict[str, Floats]:
        out = {}
        for name in MEANS:
            each = []
            for part in columns.values():
                values = np.abs(part[name]) if name == "volume_error_percent" else part[name]
                if np.isfinite(values).any():
                    each.append(weighted_mean(values, weights))
            if each:
                out[name] = _mean_of(each)
        for name in DISTANCES:
            each = [weighted_median(p[name], weights) for p in columns.values() if (~np.isnan(p[name])).any()]
            if each:
                middle = _mean_of(each)
                out[f"{name}_median"] = np.arctan(middle) if angles else middle
        return out

    return measures


def _mean_of(parts: Sequence[Floats]) -> Floats:
    """Mean over structures of what is defined, (R,)."""
    stack = np.stack(parts)
    known = ~np.isnan(stack)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(known, stack, 0).sum(axis=0) / known.sum(axis=0))


def _overall(
    columns: Mapping[str, Mapping[str, Any]], groups: Array, options: Mapping[str, Any]
) -> dict[str, Estimate]:
    boot = bootstrap(overall_measures(columns), groups, **options)
    out: dict[str, Estimate] = {}
    for name, limits in boot.estimates.items():
        measure = name.removesuffix("_median")
        n = sum(int((~np.isnan(part[measure])).sum()) for part in columns.values())
        value, low, high = limits if name == measure else (from_angle(angle) for angle in limits)
        out[name] = Estimate(value, low, high, n)
    for name in ("dice", "iou", "precision"):
        p = [_everything(part, name) for part in columns.values()]
        p = [value for value in p if math.isfinite(value)]
        if p and name in out:
            mean = float(np.mean(p))
            out[f"baseline.{name}"] = Estimate(mean, mean, mean, out[name].n)
    order = ("dice", "surface_dice", "hd95_median")
    return {**{name: out[name] for name in order if name in out}, **out}


def _everything(columns: Mapping[str, Any], name: str) -> float:
    """The mean of a measure where every voxel is marked."""
    has = columns["voxels_truth"] > 0
    if not has.any():
        return math.nan
    p = columns["voxels_truth"][has] / columns["voxels_known"][has]
    return float(np.mean(2 * p / (1 + p) if name == "dice" else p))


def expected_pairs(columns: Mapping[str, Mapping[str, Any]]) -> tuple[Floats, Floats, Array, Array]:
    """Expected and true Dice wherever both are known, with the number of the case and of the structure."""
    expected, true, case, structure = [], [], [], []
    for number, part in enumerate(columns.values()):
        here = np.flatnonzero(np.isfinite(part["expected_dice"]) & np.isfinite(part["dice"]))
        expected.append(part["expected_dice"][here])
        true.append(part["dice"][here])
        case.append(here)
        structure.append(np.full(len(here), number))
    return np.concatenate(expected), np.concatenate(true), np.concatenate(case), np.concatenate(structure)


def _expected(
    columns: Mapping[str, Mapping[str, Any]], groups: Array, options: Mapping[str, Any]
) -> dict[str, Estimate]:
    """How far the Dice that the model expects of itself can be believed."""
    expected, true, case, structure = expected_pairs(columns)
    if len(expected) < 3:
        return {}
    gap = np.abs(expected - true)
    means = np.array([true[structure == s].mean() if (structure == s).any() else np.nan for s in range(len(columns))])
    plain = np.abs(true - means[structure])

    def measures(weights: Floats) -> dict[str, Floats]:
        w = weights[:, case]
        total = w.sum(axis=1)
        sums = np.zeros((3, len(w)))
        with np.errstate(invalid="ignore", divide="ignore"):
            # Within structures: that one is harder than another says nothing about a case.
            for number in np.unique(structure):
                here = structure == number
                part = w[:, here]
                x, y = ((part @ v[here] / part.sum(axis=1))[:, None] for v in (expected, true))
                a, b = np.nan_to_num(expected[here] - x), np.nan_to_num(true[here] - y)
                sums += np.stack([(part * product).sum(axis=1) for product in (a * b, a * a, b * b)])
            scale = np.sqrt(sums[1] * sums[2])
            r = np.where(scale > 1e-12, sums[0] / np.where(scale > 1e-12, scale, 1), np.nan)
            return {"expected_dice_correlation": r, "expected_dice_error": w @ gap / total, "plain": w @ plain / total}

    boot = bootstrap(measures, groups, **options)
    n = len(expected)
    out = {name: Estimate(*limits, n) for name, limits in boot.estimates.items()}
    out["baseline.expected_dice_error"] = out.pop("plain")
    out["baseline.expected_dice_correlation"] = Estimate(0.0, 0.0, 0.0, n)
    return out


def _accepted(rows: pd.DataFrame, groups: Array, confidence: float, options: Mapping[str, Any]) -> dict[str, Estimate]:
    """How many studies the gate let pass, and the mean Dice among them."""
    here = rows["accepted"].to_numpy(dtype=bool)
    out = {"accepted": _share(here, groups, confidence)}
    if here.any() and "mean_dice" in rows:
        dice = {"dice": rows["mean_dice"].to_numpy(dtype=np.float64)[here]}
        out["dice_of_accepted"] = summarise(dice, groups[here], **options)["dice"].mean
    return out
