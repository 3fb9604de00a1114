"""Whether probabilities mean what they say: Brier score, log loss, calibration error, reliability.

``weights`` (..., n) count cases; leading axes are kept, so that bootstrap resamples are one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sagittal.errors import DataError
from sagittal.types import Array, Floats

Binning = Literal["mass", "width"]

_EPS = float(np.finfo(np.float64).eps)


def weighted_mean(values: Floats, weights: Array | None = None) -> Any:
    """Mean over cases; nan where there are none."""
    w = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(w @ values / w.sum(axis=-1))[()]


def brier_terms(probabilities: Floats, truth: Floats, *, exclusive: bool = True) -> Floats:
    """Squared distance of each case, (n,): summed over classes, halved for two exclusive ones (Brier 1950).

    The half makes the binary score that of the positive class alone, between 0 and 1. For classes that do not
    exclude each other it is the mean over the known ones.
    """
    square = (probabilities - truth) ** 2
    if not exclusive:
        known = np.isfinite(square)
        return np.asarray(np.where(known, square, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1))
    return np.asarray(square.sum(axis=1) / (2 if probabilities.shape[1] == 2 else 1))


def log_loss_terms(probabilities: Floats, truth: Floats, *, exclusive: bool = True) -> Floats:
    """Surprise of each case in nats, (n,): -ln of the probability given to what was true.

    Probabilities are kept 2.2e-16 away from 0 and 1, as in scikit-learn.
    """
    p = np.clip(np.asarray(probabilities, dtype=np.float64), _EPS, 1 - _EPS)
    if exclusive:
        return np.asarray(-np.sum(truth * np.log(p), axis=1))
    surprise = -(truth * np.log(p) + (1 - truth) * np.log1p(-p))
    known = np.isfinite(surprise)
    return np.asarray(np.where(known, surprise, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1))


def bin_numbers(probability: Floats, *, bins: int = 10, binning: Binning = "mass") -> Array:
    """The bin of each probability, (n,) int, from 0.

    ``mass``: bins of about the same number of cases, cut at quantiles; equal probabilities share a bin. ``width``:
    bins [0, 1/b], (1/b, 2/b] ... of the same width (Guo et al., ICML 2017).
    """
    probability = np.asarray(probability, dtype=np.float64)
    if bins < 1:
        raise DataError(f"a reliability curve needs at least one bin, not {bins}")
    if len(probability) == 0:
        return np.zeros(0, dtype=np.intp)
    if binning == "mass":
        edges = np.unique(np.quantile(probability, np.arange(1, bins) / bins, method="lower"))
    else:
        edges = np.arange(1, bins) / bins
    return np.searchsorted(edges, probability, side="left")


def ece(
    probability: Floats, happened: Floats, weights: Array | None = None, *, bins: int = 10, binning: Binning = "mass"
) -> Any:
    """Expected calibration error: the mean gap between stated probability and observed frequency over bins.

    Parameters
    ----------
    probability, happened : (n,) float
        Of one event a case: that the positive class holds, or that the answer is right.
    binning : {"mass", "width"}
        As in :func:`bin_numbers`; the bins are those of all cases, also for resamples. Bins of equal mass have less
        bias (Nixon et al., CVPR workshops 2019).

    Examples
    --------
    >>> round(float(ece(np.array([0.2, 0.2, 0.8, 0.8]), np.array([0, 0, 1, 1]), bins=2)), 3)
    0.2
    """
    number = bin_numbers(probability, bins=bins, binning=binning)
    w = np.ones(len(number)) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(number) == 0:
        return np.full(w.shape[:-1], np.nan)[()]
    member = (number[:, None] == np.arange(number.max() + 1)).astype(np.float64)
    gap = w @ (member * (np.asarray(probability) - np.asarray(happened))[:, None])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.abs(gap).sum(axis=-1) / w.sum(axis=-1))[()]


@dataclass(frozen=True, eq=False)
class Reliability:
    """One point a bin: mean stated probability, observed frequency and how many cases."""

    stated: Floats
    observed: Floats
    n: Array


def reliability(probability: Floats, happened: Floats, *, bins: int = 10, binning: Binning = "mass") -> Reliability:
    """Points of the reliability curve; empty bins are left out."""
    number = bin_numbers(probability, bins=bins, binning=binning)
    if len(number) == 0:
        return Reliability(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.intp))
    n = np.bincount(number)
    used = n > 0
    stated, observed = np.bincount(number, probability), np.bincount(number, happened)
    return Reliability(stated[used] / n[used], observed[used] / n[used], n[used])
