"""Expected Dice: how good a mask is, said by the model itself, corrected by what validation cases showed.

A network's probabilities p give a first estimate, ``2 sum(p in mask) / (voxels of mask + sum(p))``: the Dice that would be
expected if they were calibrated and voxels independent. Neither holds, so that number is mapped to the Dice that
validation cases really had, by a straight line or, with many cases, by an isotonic curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sagittal.types import Array, Floats

#: Fewer patients than this say nothing of how good an estimate is.
LEAST_PATIENTS = 8
#: From so many patients on an isotonic curve is tried beside the straight line.
MANY_PATIENTS = 60
#: Parts into which the patients are divided to measure how far a correction errs.
FOLDS = 10


def fit_expected(raw: Floats, dice: Floats, patients: Sequence[str]) -> dict[str, Any]:
    """What corrects the raw expected Dice of one structure, and how well that works on patients it was not fitted on.

    Parameters
    ----------
    raw : (n,) float
        Raw expected Dice of validation cases; nan where the mask is empty.
    dice : (n,) float
        Their true Dice, after cleaning; nan where undefined.
    patients : sequence of n str

    Returns
    -------
    dict
        ``kind``: ``line`` (``slope``, ``offset``), ``curve`` (``raw``, ``dice``: knots) or ``mean`` (``value``) where
        the estimate says no more than the mean; ``cases``; ``correlation`` (Spearman) and ``error`` (mean absolute) of
        patients that were left out of the fit; ``error_of_mean``, that of saying the mean. Empty for fewer than
        ``LEAST_PATIENTS`` patients.
    """
    raw, dice = np.asarray(raw, dtype=np.float64), np.asarray(dice, dtype=np.float64)
    usable = np.isfinite(raw) & np.isfinite(dice)
    groups = np.unique(np.asarray(patients)[usable], return_inverse=True)[1] if usable.any() else np.zeros(0, int)
    if len(np.unique(groups)) < LEAST_PATIENTS:
        return {}
    raw, dice = raw[usable], dice[usable]
    kinds = ["mean", "line"] + (["curve"] if groups.max() + 1 >= MANY_PATIENTS else [])
    # Folds by patient, in an order that has nothing to do with theirs.
    fold = np.random.default_rng(0).permutation(groups.max() + 1)[groups] % FOLDS
    apart = {kind: _apart(kind, raw, dice, fold) for kind in kinds}
    error = {kind: float(np.abs(told - dice).mean()) for kind, told in apart.items()}
    best = min(kinds, key=lambda kind: error[kind])
    return {
        **_fit(best, raw, dice),
        "cases": len(raw),
        "correlation": 0.0 if best == "mean" else _spearman(apart[best], dice),
        "error": error[best],
        "error_of_mean": error["mean"],
    }


def correct_expected(raw: float, fitted: Mapping[str, Any] | None) -> float:
    """The Dice to expect of a mask, 0 to 1; nan where nothing was fitted or the estimate is nan.

    >>> correct_expected(0.9, {"kind": "line", "slope": 2.0, "offset": -1.0})
    0.8
    """
    if not fitted or not np.isfinite(raw):
        return float("nan")
    return round(float(_apply(fitted, np.array([raw]))[0]), 6)


def _fit(kind: str, raw: Floats, dice: Floats) -> dict[str, Any]:
    if kind == "line" and np.ptp(raw) > 0:
        slope, offset = np.polyfit(raw, dice, 1)
        if slope > 0:
            return {"kind": "line", "slope": float(slope), "offset": float(offset)}
    if kind == "curve":
        from scipy.optimize import isotonic_regression

        order = np.argsort(raw)
        x, y = raw[order], isotonic_regression(dice[order]).x
        ends = np.flatnonzero(np.r_[True, np.diff(y) > 0] | np.r_[np.diff(y) > 0, True])  # of each step, first and last
        return {"kind": "curve", "raw": x[ends].tolist(), "dice": y[ends].tolist()}
    return {"kind": "mean", "value": float(dice.mean())}


def _apply(fitted: Mapping[str, Any], raw: Floats) -> Floats:
    if fitted["kind"] == "line":
        told = fitted["slope"] * raw + fitted["offset"]
    elif fitted["kind"] == "curve":
        told = np.interp(raw, fitted["raw"], fitted["dice"])
    else:
        told = np.full(len(raw), fitted["value"])
    return np.asarray(np.clip(told, 0, 1))


def _apart(kind: str, raw: Floats, dice: Floats, fold: Array) -> Floats:
    """What is said of each case by a correction that its patient had no part in."""
    told = np.empty(len(raw))
    for number in np.unique(fold):
        out = fold == number
        told[out] = _apply(_fit(kind, raw[~out], dice[~out]), raw[out])
    return told


def _spearman(told: Floats, dice: Floats) -> float:
    from scipy.stats import rankdata

    ranks = rankdata(told), rankdata(dice)
    if np.ptp(ranks[0]) == 0 or np.ptp(ranks[1]) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])
