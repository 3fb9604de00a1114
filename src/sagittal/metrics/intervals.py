"""How sure a number is: Estimate, Wilson's interval and the bootstrap that keeps a patient's cases together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from sagittal.errors import ConfigError, DataError
from sagittal.types import Array, Floats

#: Blocks of patients that the jackknife of BCa leaves out in turn, at most.
JACKKNIFE_BLOCKS = 200

#: Weights held at once, in numbers: 2 MB of float64, so that the steps of a measure stay in the cache.
_CHUNK = 250_000


@dataclass(frozen=True)
class Estimate:
    """A measure with its confidence interval.

    Parameters
    ----------
    value : float
        nan where the measure is not defined, such as an AUC without positive cases.
    low, high : float
        Limits of the interval; nan where there is none.
    n : int
        Cases that the measure rests on: all known ones for accuracy, the positive ones for sensitivity.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0

    def to_json(self) -> dict[str, float | int | None]:
        """Plain values; what is not finite becomes ``None``.

        >>> Estimate(0.9, 0.8, float("nan"), 10).to_json()
        {'value': 0.9, 'low': 0.8, 'high': None, 'n': 10}
        """
        plain = {name: float(getattr(self, name)) for name in ("value", "low", "high")}
        return {**{k: v if math.isfinite(v) else None for k, v in plain.items()}, "n": int(self.n)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Estimate:
        """The estimate that :meth:`to_json` wrote."""
        value, low, high = (math.nan if values[k] is None else float(values[k]) for k in ("value", "low", "high"))
        return cls(value, low, high, int(values["n"]))

    def __str__(self) -> str:
        """Three digits, as tables show it.

        >>> str(Estimate(0.91234, 0.85, 0.96, 100))
        '0.912 (0.850 to 0.960)'
        """
        if not math.isfinite(self.value):
            return "not defined"
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def normal_quantile(confidence: float) -> float:
    """Two-sided standard normal quantile: 1.96 for 0.95."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie between 0 and 1, such as 0.95, not {confidence}")
    return float(stats.norm.ppf(0.5 + confidence / 2))


def wilson(successes: float, n: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; (nan, nan) for n == 0.

    It keeps its coverage for few cases and for proportions at 0 and 1 [1]_.

    References
    ----------
    .. [1] Wilson, J Am Stat Assoc 22:209, 1927; Brown, Cai, DasGupta, Stat Sci 16:101, 2001.

    Examples
    --------
    >>> low, high = wilson(10, 10)
    >>> round(low, 4), high
    (0.7225, 1.0)
    """
    z = normal_quantile(confidence)
    if n <= 0:
        return math.nan, math.nan
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes <= 0 else (centre - half) / scale
    high = 1.0 if successes >= n else (centre + half) / scale
    return low, high


def group_codes(groups: Sequence[Any] | Array) -> tuple[Array, int]:
    """Whole numbers 0..G-1 for group names in the order of their first case, and G."""
    codes: dict[Any, int] = {}
    out = np.array([codes.setdefault(g, len(codes)) for g in groups], dtype=np.intp)
    return out, len(codes)


def resample_weights(codes: Array, groups: int, resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each case is drawn, for resamples of whole groups with replacement; chunks of (R, n)."""
    chunk = max(1, min(resamples, _CHUNK // max(len(codes), 1)))
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups)
        yield counts[:, codes].astype(np.float64)


def jackknife_weights(codes: Array, groups: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Weights 0 and 1 that leave out one block of groups at a time; chunks of (B, n)."""
    blocks = min(groups, JACKKNIFE_BLOCKS)
    block = (rng.permutation(groups) % blocks)[codes]
    chunk = max(1, _CHUNK // max(len(codes), 1))
    for start in range(0, blocks, chunk):
        out = np.arange(start, min(start + chunk, blocks))[:, None]
        yield (block[None, :] != out).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """What resampling says of several measures.

    Parameters
    ----------
    estimates : mapping of str to (value, low, high)
    undefined : mapping of str to int
        Resamples in which a measure was nan (a class was not drawn); they are left out of its interval. Where they
        are more than half, there is no interval.
    draws : mapping of str to (R,) float
    """

    estimates: Mapping[str, tuple[float, float, float]]
    undefined: Mapping[str, int]
    draws: Mapping[str, Floats]


def bootstrap(
    measures: Callable[[Floats], Mapping[str, Floats]],
    groups: Sequence[Any] | Array,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    method: str = "bca",
) -> Bootstrap:
    """Intervals from resampling whole groups (patients) with replacement.

    A resample is a row of weights: how often each case was drawn. `measures` works on many rows at once, so that no
    resample is ever copied out.

    Parameters
    ----------
    measures : callable
        Weights (R, n) -> {name: (R,)}; nan where a measure is not defined.
    groups : (n,) any
        The patient of each case.
    resamples : int
        0 gives values without intervals.
    method : {"bca", "percentile"}
        ``bca`` corrects bias and skewness [1]_; its acceleration comes from a jackknife that leaves out each group,
        or each of 200 random blocks of groups where there are more. Measures that are biased upwards in resamples,
        such as the calibration error, need it: a percentile interval may exclude their own value.

    References
    ----------
    .. [1] Efron, J Am Stat Assoc 82:171, 1987. Resampling of whole clusters: Field and Welsh, J R Stat Soc B 69:369,
       2007.
    """
    if method not in ("bca", "percentile"):
        raise ConfigError(f"unknown bootstrap method '{method}'. Known: bca, percentile.")
    if resamples < 0:
        raise ConfigError(f"resamples must be 0 or more, not {resamples}")
    normal_quantile(confidence)
    codes, count = group_codes(groups)
    if count == 0:
        raise DataError("a bootstrap needs at least one case")
    values = {k: float(v[0]) for k, v in measures(np.ones((1, len(codes)))).items()}
    if resamples == 0 or count < 2:
        nothing = np.zeros(0)
        return Bootstrap(
            {k: (v, math.nan, math.nan) for k, v in values.items()},
            dict.fromkeys(values, 0),
            dict.fromkeys(values, nothing),
        )
    draws = _gather(measures, resample_weights(codes, count, resamples, np.random.default_rng([seed, 0])))
    left_out = (
        _gather(measures, jackknife_weights(codes, count, np.random.default_rng([seed, 1]))) if method == "bca" else {}
    )
    estimates, undefined = {}, {}
    for name, value in values.items():
        good = draws[name][np.isfinite(draws[name])]
        undefined[name] = resamples - len(good)
        if not math.isfinite(value) or len(good) * 2 < resamples:
            estimates[name] = (value, math.nan, math.nan)
            continue
        tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
        if method == "bca":
            tails = _bca_tails(tails, value, good, left_out[name])
        low, high = np.quantile(good, tails)
        estimates[name] = (value, float(low), float(high))
    return Bootstrap(estimates, undefined, draws)


def _gather(measures: Callable[[Floats], Mapping[str, Floats]], chunks: Iterator[Floats]) -> dict[str, Floats]:
    parts = [measures(weights) for weights in chunks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _bca_tails(tails: Floats, value: float, draws: Floats, left_out: Floats) -> Floats:
    """Quantiles to read from the draws (Efron 1987, equations 4.5 and 7.3)."""
    # Half of the ties count as below (measures of few cases have many); kept off 0 and 1, where z0 is infinite.
    rounding = 1e-12 * max(1.0, abs(value))
    below = np.mean(draws < value - rounding) + np.mean(np.abs(draws - value) <= rounding) / 2
    edge = 0.5 / len(draws)
    z0 = stats.norm.ppf(np.clip(below, edge, 1 - edge))
    left_out = left_out[np.isfinite(left_out)]
    deviation = left_out.mean() - left_out if len(left_out) else np.zeros(1)
    spread = float(np.sum(deviation**2)) ** 1.5
    acceleration = float(np.sum(deviation**3)) / (6 * spread) if spread > 1e-300 else 0.0
    z = z0 + stats.norm.ppf(tails)
    return np.asarray(stats.norm.cdf(z0 + z / (1 - acceleration * z)))
