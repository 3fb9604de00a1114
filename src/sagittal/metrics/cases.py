"""What the measures of many cases say together: means and medians with intervals, and how many cases say nothing.

A measure of a case may be ``nan`` (both masks empty: there is nothing to measure) or ``inf`` (one mask empty: no distance
exists). Neither is dropped in silence: they are counted, and a median takes ``inf`` for what it is, the worst.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sagittal.errors import DataError
from sagittal.metrics.intervals import Estimate, bootstrap
from sagittal.types import Array, Floats


@dataclass(frozen=True)
class CaseSummary:
    """One measure over many cases.

    Parameters
    ----------
    mean : Estimate
        Over the cases with a finite value.
    median : Estimate
        Over the cases with a value, ``inf`` being the largest; its limits may be ``inf`` too.
    undefined : int
        Cases where the measure is nan.
    infinite : int
        Cases where it is infinite.
    """

    mean: Estimate
    median: Estimate
    undefined: int
    infinite: int

    def __str__(self) -> str:
        """As tables show it.

        >>> print(summarise({"dice": [0.9, 0.8, float("nan")]}, "abc", resamples=0)["dice"])
        mean 0.850, median 0.850 of 2; 1 undefined
        """
        counts = [f"{n} {word}" for n, word in ((self.undefined, "undefined"), (self.infinite, "infinite")) if n]
        shown = f"mean {self.mean}, median {self.median} of {self.median.n}"
        return "; ".join([shown, *counts])


def summarise(
    values: Mapping[str, Sequence[float] | Array],
    patients: Sequence[Any] | Array,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, CaseSummary]:
    """Mean and median of each measure, with BCa intervals from resampling whole patients.

    Parameters
    ----------
    values : mapping of str to (n,) float
        One number a case; nan and inf as the measures give them.
    patients : (n,) any
        The patient of each case: cases of one patient stay together.
    resamples : int
        0 gives values without intervals.

    Raises
    ------
    DataError
        If there are no cases, or lists differ in length.

    Examples
    --------
    >>> found = summarise({"hd95": [1.0, 2.0, math.inf]}, ["A", "A", "B"], resamples=0)["hd95"]
    >>> found.mean.value, found.median.value, found.infinite
    (1.5, 2.0, 1)
    """
    columns = {name: np.asarray(column, dtype=np.float64) for name, column in values.items()}
    for name, column in columns.items():
        if column.shape != (len(patients),):
            raise DataError(f"{name}: one value for each of {len(patients)} cases is needed, not {column.shape}")

    def measures(weights: Floats) -> dict[str, Floats]:
        out = {}
        for name, column in columns.items():
            out[f"mean {name}"] = weighted_mean(column, weights)
            # As angles, so that a resample whose median is infinite stays in the interval.
            out[f"median {name}"] = np.arctan(weighted_median(column, weights))
        return out

    result = bootstrap(measures, patients, resamples=resamples, seed=seed, confidence=confidence)
    out = {}
    for name, column in columns.items():
        finite, known = int(np.isfinite(column).sum()), int((~np.isnan(column)).sum())
        value, low, high = result.estimates[f"mean {name}"]
        middle = float(weighted_median(column, np.ones((1, len(column))))[0])
        _, lower, upper = (from_angle(angle) for angle in result.estimates[f"median {name}"])
        out[name] = CaseSummary(
            mean=Estimate(value, low, high, finite),
            median=Estimate(middle, lower, upper, known),
            undefined=len(column) - known,
            infinite=known - finite,
        )
    return out


def from_angle(value: float) -> float:
    """The number whose ``arctan`` is given, infinite at a right angle: medians are resampled as angles.

    >>> from_angle(math.pi / 2), round(from_angle(math.atan(2.5)), 9), from_angle(math.nan)
    (inf, 2.5, nan)
    """
    return math.copysign(math.inf, value) if abs(value) > math.pi / 2 - 1e-12 else math.tan(value)


def weighted_mean(values: Floats, weights: Floats) -> Floats:
    """Mean of the finite values (n,) for each row of weights (R, n); nan where a row draws none of them."""
    finite = np.isfinite(values)
    total = weights @ finite.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(weights @ np.where(finite, values, 0.0) / total)


def weighted_median(values: Floats, weights: Floats) -> Floats:
    """Median of what is not nan of (n,) for each row of weights (R, n); infinity is the largest value.

    The mean of the two middle values where the weight splits in half; nan where a row draws nothing.
    """
    order = np.argsort(values)  # nan comes last
    order = order[: int((~np.isnan(values)).sum())]
    if not len(order):
        return np.full(len(weights), np.nan)
    ordered, share = values[order], np.cumsum(weights[:, order], axis=1)
    half = share[:, -1:] / 2
    low = np.minimum((share < half * (1 - 1e-12)).sum(axis=1), len(order) - 1)
    high = np.minimum((share <= half * (1 + 1e-12)).sum(axis=1), len(order) - 1)
    first, second = ordered[low], ordered[high]
    # Halves, so that two infinite values do not give nan; no cases drawn, no median.
    middle = np.where(low == high, first, first / 2 + second / 2)
    return np.where(share[:, -1] > 0, middle, np.nan)
