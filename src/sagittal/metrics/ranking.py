"""How well scores put positive cases above negative ones: ROC, DeLong, precision and recall.

Functions take ``scores`` (n,), the higher the more positive, and ``truth`` (n,) of 0, 1 or nan; cases of unknown truth
are left out. ``weights`` (..., n) count cases; leading axes are kept, so that bootstrap resamples are one call.
Measures that need both classes are nan where one is absent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

from sagittal.errors import DataError
from sagittal.metrics.intervals import Estimate, group_codes, normal_quantile
from sagittal.types import Array, Floats


def _known(scores: Array, truth: Array, weights: Array | None) -> tuple[Floats, Floats, Floats]:
    scores, truth = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if scores.ndim != 1 or scores.shape != truth.shape:
        raise DataError(f"scores and truth must be two lists of the same length, not {scores.shape} and {truth.shape}")
    w = np.ones(len(truth)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape[-1:] != truth.shape:
        raise DataError(f"weights {w.shape} do not fit {len(truth)} cases")
    known = np.isfinite(truth)
    if not known.all():
        scores, truth, w = scores[known], truth[known], w[..., known]
    if not np.all((truth == 0) | (truth == 1)):
        raise DataError("truth must be 0, 1 or nan (unknown)")
    if np.isnan(scores).any():
        raise DataError(f"{int(np.isnan(scores).sum())} scores are not numbers")
    return scores, truth, w


def _steps(scores: Floats, truth: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Thresholds from high to low, and the positives and negatives at or above each, (..., T)."""
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], np.ones(min(len(scores), 1), dtype=bool)))
    w = weights[..., order]
    everything = np.cumsum(w, axis=-1)[..., ends]
    positives = np.cumsum(w * truth[order], axis=-1)[..., ends]
    return scores[ends], positives, everything - positives


#: Up to so many different scores, one matrix product is faster than running sums.
_FEW_SCORES = 32


class Ranking:
    """Scores sorted once, so that many sets of weights are measured fast.

    Parameters
    ----------
    scores, truth : (m,) float
        As everywhere here; cases of unknown truth are left out.
    case : (m,) int, optional
        The column of the weights that counts each score, where one case has several; else the score's own position.
    """

    def __init__(self, scores: Array, truth: Array, case: Array | None = None) -> None:
        columns = np.arange(len(np.asarray(truth))) if case is None else np.asarray(case)
        columns = columns[np.isfinite(np.asarray(truth, dtype=np.float64))]
        scores, truth, _ = _known(scores, truth, None)
        order = np.argsort(-scores, kind="stable")
        scores, at = scores[order], truth[order] == 1
        last = np.append(scores[1:] != scores[:-1], np.ones(min(len(scores), 1), dtype=bool))
        group = np.cumsum(last) - last  # number of the tie group of each score, from the highest
        with_positive = np.unique(group[at])
        ends = np.flatnonzero(last)
        self._columns = columns[order]
        self._positive = at
        self._group = group
        self._groups = len(ends)
        # Tie groups without a positive add nothing. Within the positives, where each of the others ends:
        self._positive_ends = np.searchsorted(group[at], with_positive, side="right") - 1
        self._ends = ends[with_positive]
        self._before = np.append(-1, ends)[with_positive]  # last score above the tie group, -1 for none

    def _steps(self, weights: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Total, and for each tie group: positives at or above it, everything at or above it, everything above it."""
        if self._groups <= _FEW_SCORES:
            n = weights.shape[-1]
            cell = self._columns * self._groups + self._group
            shape = (n, self._groups)
            all_of = np.bincount(cell, minlength=n * self._groups).reshape(shape).astype(np.float64)
            positive_of = np.bincount(cell[self._positive], minlength=n * self._groups).reshape(shape)
            everything = np.cumsum(weights @ all_of, axis=-1)
            tp = np.cumsum(weights @ positive_of.astype(np.float64), axis=-1)
            return everything[..., -1], tp, everything, np.roll(everything, 1, axis=-1) * (np.arange(self._groups) > 0)
        above = np.cumsum(weights[..., self._columns], axis=-1)
        tp = np.cumsum(weights[..., self._columns[self._positive]], axis=-1)[..., self._positive_ends]
        return above[..., -1], tp, above[..., self._ends], np.where(self._before < 0, 0, above[..., self._before])

    def measures(self, weights: Array) -> tuple[Floats, Floats]:
        """AUC and average precision for weights (..., n), each of the shape of the leading axes."""
        weights = np.asarray(weights, dtype=np.float64)
        if not self._positive.any():
            return np.full(weights.shape[:-1], np.nan), np.full(weights.shape[:-1], np.nan)
        total, tp, everything, before = self._steps(weights)
        gain = np.diff(tp, axis=-1, prepend=0)
        positives = tp[..., -1]
        negatives = total - positives
        tied = everything - before - gain
        beaten = negatives[..., None] - (everything - tp) + tied / 2  # a tie counts one half
        with np.errstate(divide="ignore", invalid="ignore"):
            area = np.sum(gain * beaten, axis=-1) / (positives * negatives)
            ap = np.sum(np.where(gain > 0, gain * tp / everything, 0), axis=-1) / positives
        both = (positives > 0) & (negatives > 0)
        return np.where(both, area, np.nan), np.where(positives > 0, ap, np.nan)


def auc(scores: Array, truth: Array, weights: Array | None = None) -> Any:
    """Area under the ROC curve: the probability that a positive case scores above a negative one, ties one half.

    >>> float(auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])))
    0.75
    """
    return _measures(scores, truth, weights)[0][()]


def average_precision(scores: Array, truth: Array, weights: Array | None = None) -> Any:
    """Mean precision over the recalls gained, without interpolation; nan without positive cases.

    >>> round(float(average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))), 4)
    0.8333
    """
    return _measures(scores, truth, weights)[1][()]


def _measures(scores: Array, truth: Array, weights: Array | None) -> tuple[Floats, Floats]:
    scores, truth, w = _known(scores, truth, weights)
    return Ranking(scores, truth).measures(w)


@dataclass(frozen=True, eq=False)
class Curve:
    """Points of a curve, each with the threshold that gives it (scores at or above it are positive)."""

    x: Floats
    y: Floats
    thresholds: Floats


def roc_points(scores: Array, truth: Array) -> Curve:
    """False positive rate (x) and sensitivity (y) from the strictest threshold, infinity, to the lowest score."""
    thresholds, tp, fp = _steps(*_known(scores, truth, None))
    positives, negatives = (tp[-1], fp[-1]) if len(tp) else (0.0, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = np.append(0.0, fp) / negatives, np.append(0.0, tp) / positives
    return Curve(x, y, np.append(np.inf, thresholds))


def pr_points(scores: Array, truth: Array) -> Curve:
    """Recall (x) and precision (y) from the highest score down to the lowest."""
    thresholds, tp, fp = _steps(*_known(scores, truth, None))
    with np.errstate(invalid="ignore", divide="ignore"):
        return Curve(tp / tp[-1] if len(tp) else tp, tp / (tp + fp), thresholds)


def structural_components(scores: Array, truth: Array) -> tuple[Floats, Floats]:
    """DeLong's components by midranks (Sun and Xu 2014, equations 5 and 6).

    Returns
    -------
    positive : (P,) float
        For each positive case, the share of negatives that it beats.
    negative : (N,) float
        For each negative case, the share of positives that beat it.
    """
    scores, truth, _ = _known(scores, truth, None)
    at = truth == 1
    p, n = int(at.sum()), int((~at).sum())
    if p == 0 or n == 0:
        return np.full(p, np.nan), np.full(n, np.nan)
    rank = stats.rankdata(scores)
    return (rank[at] - stats.rankdata(scores[at])) / n, 1 - (rank[~at] - stats.rankdata(scores[~at])) / p


def delong_covariance(
    scores: Array, truth: Array, groups: Sequence[Any] | Array | None = None
) -> tuple[Floats, Floats]:
    """AUCs of M models on the same cases and their covariance.

    Parameters
    ----------
    scores : (M, n) float
    groups : (n,) any, optional
        The patient of each case. Cases of one patient are not independent; their components are summed before the
        covariance is taken [3]_. Without groups, or with one case each, this is DeLong's estimate [1]_.

    Returns
    -------
    areas : (M,) float
    covariance : (M, M) float
        nan where a class has fewer than two patients.

    References
    ----------
    .. [1] DeLong, DeLong, Clarke-Pearson, Biometrics 44:837, 1988.
    .. [2] Sun and Xu, IEEE Signal Process Lett 21:1389, 2014.
    .. [3] Obuchowski, Biometrics 53:567, 1997.
    """
    scores, truth = np.atleast_2d(np.asarray(scores, dtype=np.float64)), np.asarray(truth, dtype=np.float64)
    known = np.isfinite(truth)
    at = truth[known] == 1
    codes, count = group_codes(np.arange(len(truth)) if groups is None else groups)
    codes = codes[known]
    parts = [structural_components(row, truth) for row in scores]
    v10, v01 = np.stack([a for a, _ in parts]), np.stack([b for _, b in parts])  # (M, P), (M, N)
    p, n = v10.shape[1], v01.shape[1]
    areas = v10.mean(axis=1) if p and n else np.full(len(scores), np.nan)
    with_p, with_n = np.unique(codes[at]), np.unique(codes[~at])
    if len(with_p) < 2 or len(with_n) < 2:
        return areas, np.full((len(scores),) * 2, np.nan)
    d10 = np.stack([np.bincount(codes[at], row - a, count) for row, a in zip(v10, areas, strict=True)])
    d01 = np.stack([np.bincount(codes[~at], row - a, count) for row, a in zip(v01, areas, strict=True)])
    s10 = len(with_p) / (len(with_p) - 1) * d10 @ d10.T / p**2
    s01 = len(with_n) / (len(with_n) - 1) * d01 @ d01.T / n**2
    here = len(np.union1d(with_p, with_n))
    cross = here / (here - 1) * d10 @ d01.T / (p * n)
    return areas, s10 + s01 + cross + cross.T


def delong(
    scores: Array, truth: Array, *, groups: Sequence[Any] | Array | None = None, confidence: float = 0.95
) -> Estimate:
    """AUC with DeLong's interval, taken on the logit scale so that it stays inside 0..1.

    logit(AUC) +- z * se / (AUC (1 - AUC)), back-transformed (Pepe 2003, section 5.2.4). At an AUC of exactly 0 or 1
    DeLong's variance is 0; there the interval is Newcombe's, method 5 (Stat Med 25:559, 2006), with the number of
    patients in place of the number of cases.

    Examples
    --------
    >>> print(delong(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])))
    0.750 (0.069 to 0.992)
    """
    z = normal_quantile(confidence)
    truth = np.asarray(truth, dtype=np.float64)
    areas, covariance = delong_covariance(scores, truth, groups)
    area, variance, n = float(areas[0]), float(covariance[0, 0]), int(np.isfinite(truth).sum())
    if math.isfinite(area) and min(area, 1 - area) < 1e-12:
        codes = np.arange(len(truth)) if groups is None else group_codes(groups)[0]
        low, high = _newcombe(round(area), len(set(codes[truth == 1])), len(set(codes[truth == 0])), z)
        return Estimate(area, low, high, n)
    if not math.isfinite(variance):
        return Estimate(area, n=n)
    centre, half = math.log(area / (1 - area)), z * math.sqrt(max(variance, 0)) / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-x)) for x in (centre - half, centre + half))
    return Estimate(area, low, high, n)


def _newcombe(area: int, p: int, n: int, z: float) -> tuple[float, float]:
    """Interval of an AUC of 0 or 1: the limit at which the observed value lies z standard errors away."""
    balanced = (p + n) / 2 - 1

    def excess(t: float) -> float:  # t is 1 - AUC
        a = 1 - t
        variance = a * t * (1 + balanced * (t / (2 - a) + a / (1 + a))) / (p * n)
        return t - z * math.sqrt(variance)

    limit = float(optimize.brentq(excess, 1e-12, 1 - 1e-12))
    return (1 - limit, 1.0) if area == 1 else (0.0, limit)


@dataclass(frozen=True)
class PairedDifference:
    """Second minus first model on the same cases, with a two-sided p-value."""

    first: float
    second: float
    difference: Estimate
    p_value: float


def delong_test(
    first: Array,
    second: Array,
    truth: Array,
    *,
    groups: Sequence[Any] | Array | None = None,
    confidence: float = 0.95,
) -> PairedDifference:
    """DeLong's test of two models' AUCs on the same cases; clusters of a patient as in :func:`delong_covariance`.

    The p-value is 1 for equal scores and nan where the variance is 0 or unknown but the areas differ.
    """
    z = normal_quantile(confidence)
    areas, covariance = delong_covariance(np.stack([np.asarray(first), np.asarray(second)]), truth, groups)
    difference = float(areas[1] - areas[0])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    n = int(np.isfinite(np.asarray(truth, dtype=np.float64)).sum())
    if math.isfinite(variance) and variance > 1e-20:
        error = math.sqrt(variance)
        estimate = Estimate(difference, difference - z * error, difference + z * error, n)
        return PairedDifference(
            float(areas[0]), float(areas[1]), estimate, float(2 * stats.norm.sf(abs(difference) / error))
        )
    p_value = 1.0 if abs(difference) < 1e-12 else math.nan
    return PairedDifference(float(areas[0]), float(areas[1]), Estimate(difference, n=n), p_value)
