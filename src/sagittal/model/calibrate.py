"""Calibration: from logits to logits whose probabilities can be believed.

Fitted on validation cases only. The maps are strictly increasing (vector scaling, temperature) or never decreasing
(isotonic) in each logit, so that a ranking is never turned round, and a fit that does not lower the log loss on the cases
it was fitted on is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, log_softmax, softmax

from sagittal.errors import DataError, PackageError, nearest
from sagittal.labels import LabelScheme
from sagittal.types import Bools, Floats

Method = Literal["none", "temperature", "vector", "isotonic"]
METHODS: tuple[Method, ...] = ("none", "temperature", "vector", "isotonic")

#: How logits become probabilities: ``softmax`` over classes that exclude each other, ``sigmoid`` for each label alone.
Link = Literal["softmax", "sigmoid"]
LINKS: tuple[Link, ...] = ("softmax", "sigmoid")

# Standard deviations of the normal priors that pull a fit towards the identity. In units of log scale and of logits.
# The shared scale and the offsets are left free, a scale of its own for each class is not: with the tens of cases of a
# small validation set it would fit noise.
SHARED_SCALE, CLASS_SCALE, OFFSET = 2.0, 0.25, 2.0

LEAST_FOR_VECTOR = 5  # cases with and without a class
LEAST_FOR_ISOTONIC = 100  # cases; a step function through fewer is noise (Niculescu-Mizil and Caruana, ICML 2005)


@dataclass(frozen=True)
class Calibration:
    """A map from logits to calibrated logits.

    Parameters
    ----------
    method : {"none", "temperature", "vector", "isotonic"}
    link : {"softmax", "sigmoid"}
    scale, bias : tuple of float, one an output
        ``temperature`` and ``vector``: calibrated = scale * logit + bias. Over two exclusive classes they act on the
        difference of the two logits and have one entry (Platt scaling); over more, on log-probabilities.
    knots : tuple of (x, y) pairs of tuples, one an output
        ``isotonic``: logit before and after, linear in between, constant beyond.
    cases : int
        Validation cases that it was fitted on.
    loss_before, loss_after : float
        Log loss of those cases.
    why : str
        The reason, where another method than the one asked for was taken.
    """

    method: Method = "none"
    link: Link = "softmax"
    scale: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()
    knots: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()
    cases: int = 0
    loss_before: float = math.nan
    loss_after: float = math.nan
    why: str = ""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise PackageError(f"calibration: unknown method '{self.method}'. {nearest(self.method, METHODS)}")
        if self.link not in LINKS:
            raise PackageError(f"calibration: unknown link '{self.link}'. {nearest(self.link, LINKS)}")
        if any(not (math.isfinite(s) and s > 0) for s in self.scale) or any(not math.isfinite(b) for b in self.bias):
            raise PackageError("calibration: scales must be finite and positive, offsets finite")
        if len(self.scale) != len(self.bias):
            raise PackageError(f"calibration: {len(self.scale)} scales and {len(self.bias)} offsets")
        if self.method in ("temperature", "vector") and not self.scale:
            raise PackageError(f"calibration: '{self.method}' needs a scale and an offset")
        if self.method == "isotonic" and not self.knots:
            raise PackageError("calibration: 'isotonic' needs knots")
        for x, y in self.knots:
            bad = not x or len(x) != len(y) or not np.all(np.isfinite([*x, *y]))
            if bad or np.any(np.diff(x) < 0) or np.any(np.diff(y) < 0):
                raise PackageError("calibration: knots must be finite and never fall")

    def apply(self, logits: Floats) -> Floats:
        """Calibrated logits, float64, in the shape given: (N, C) or (C,).

        >>> Calibration("temperature", scale=(0.5,), bias=(0.0,)).apply(np.array([-2.0, 2.0]))
        array([-1.,  1.])
        """
        given = np.asarray(logits, dtype=np.float64)
        if self.method == "none":
            return given
        units = _to_units(np.atleast_2d(given), self.link)  # (N, U)
        width = len(self.scale) if self.method != "isotonic" else len(self.knots)
        if units.shape[1] != width:
            raise DataError(f"the calibration is for {width} outputs, these logits have {units.shape[1]}")
        if self.method == "isotonic":
            columns = [np.interp(units[:, u], x, y) for u, (x, y) in enumerate(self.knots)]
            calibrated = _from_units(np.stack(columns, axis=1), self.link, given.shape[-1], log_odds=True)
        else:
            calibrated = _from_units(units * np.array(self.scale) + np.array(self.bias), self.link, given.shape[-1])
        return calibrated.reshape(given.shape)

    def to_json(self) -> dict[str, Any]:
        """Plain values; nan becomes ``None``."""
        values = asdict(self)
        for key in ("loss_before", "loss_after"):
            values[key] = None if math.isnan(values[key]) else values[key]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """Check and read what :meth:`to_json` wrote."""
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                raise PackageError(f"calibration: unknown key '{key}'. {nearest(key, known)}")
        try:
            read = dict(values)
            for key in ("scale", "bias"):
                read[key] = tuple(float(v) for v in values.get(key, ()))
            read["knots"] = tuple(
                (tuple(float(v) for v in x), tuple(float(v) for v in y)) for x, y in values.get("knots", ())
            )
            for key in ("loss_before", "loss_after"):
                read[key] = math.nan if values.get(key) is None else float(values[key])
            return cls(**read)
        except (TypeError, ValueError) as error:
            if isinstance(error, PackageError):
                raise
            raise PackageError(f"calibration: holds values of the wrong type: {error}") from error


def link_of(scheme: LabelScheme) -> Link:
    """How a network speaks about the classes of a scheme, one output a class.

    >>> link_of(LabelScheme("ordinal", ("none", "mild", "severe")))
    'softmax'
    """
    return "softmax" if scheme.exclusive else "sigmoid"


def to_probabilities(logits: Floats, link: Link) -> Floats:
    """Probabilities of the classes, float64, from logits (N, C) or (C,)."""
    z = np.asarray(logits, dtype=np.float64)
    return np.asarray(softmax(z, axis=-1) if link == "softmax" else expit(z))


def log_loss(logits: Floats, truth: Floats, link: Link) -> float:
    """Mean negative log likelihood in nats over the known entries; `truth` is (N, C), nan where unknown."""
    units, target = _fit_units(logits, truth, link)
    return _loss(units, target, softmaxed=link == "softmax" and units.shape[1] > 1)


def fit_calibration(logits: Floats, truth: Floats, *, scheme: LabelScheme, method: Method = "vector") -> Calibration:
    """The calibration that makes the probabilities of validation cases most likely.

    ``temperature`` divides all logits by one number (Guo et al., ICML 2017). ``vector`` gives each output a scale and an
    offset, with normal priors around the identity, and is Platt scaling for two classes. ``isotonic`` fits a monotone
    step function for each output (Zadrozny and Elkan, KDD 2002) and interpolates it.

    Parameters
    ----------
    logits : (N, C) float
        Of cases that the networks did not learn from: validation or out-of-fold.
    truth : (N, C) float
        ``case.truth.values``: one-hot, or 0 and 1 for each label; nan where unknown.
    scheme : LabelScheme
    method : {"none", "temperature", "vector", "isotonic"}
        What the plan asks for. With too few cases a simpler one is taken and ``why`` says so.

    Raises
    ------
    DataError
        If shapes do not fit or logits are not finite.
    """
    logits, truth = np.asarray(logits, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if logits.ndim != 2 or logits.shape != truth.shape or truth.shape[1] != len(scheme.classes):
        raise DataError(
            f"calibration: logits {logits.shape} and truth {truth.shape} do not fit {len(scheme.classes)} classes"
        )
    if not np.all(np.isfinite(logits)):
        raise DataError("calibration: the network gave logits that are not finite; train again with a lower rate")
    link = link_of(scheme)
    if method == "none":
        return Calibration("none", link)
    units, target = _fit_units(logits, truth, link)
    known = np.isfinite(target)
    n = int(np.sum(np.any(known, axis=1)))
    fewest = min(_fewest(target[known[:, u], u]) for u in range(target.shape[1]))
    why = ""
    if method == "isotonic" and (n < LEAST_FOR_ISOTONIC or fewest < LEAST_FOR_VECTOR):
        why = f"{n} validation cases are too few for isotonic calibration, which needs {LEAST_FOR_ISOTONIC}. "
        method = "vector"
    if method == "vector" and fewest < LEAST_FOR_VECTOR:
        why += f"a class has {fewest} validation cases with or without it, fewer than {LEAST_FOR_VECTOR}: temperature. "
        method = "temperature"
    if n < 2 * LEAST_FOR_VECTOR or fewest == 0:
        return Calibration(
            "none", link, cases=n, why=f"{n} validation cases cannot calibrate {target.shape[1]} outputs"
        )
    softmaxed = link == "softmax" and units.shape[1] > 1
    before = _loss(units, target, softmaxed)
    if method == "isotonic":
        fitted = Calibration(
            "isotonic", link, knots=tuple(_isotonic(units[:, u], target[:, u]) for u in range(units.shape[1]))
        )
    else:
        scale, bias = _scaling(units, target, softmaxed, shared_only=method == "temperature")
        fitted = Calibration(method, link, scale=tuple(map(float, scale)), bias=tuple(map(float, bias)))
    after = log_loss(fitted.apply(logits), truth, link)
    if not after <= before + 1e-12:
        return Calibration(
            "none", link, cases=n, loss_before=before, loss_after=before, why=f"{why}no gain in log loss"
        )
    return replace(fitted, cases=n, loss_before=before, loss_after=after, why=why.strip())


# A "unit" is what is scaled: the difference of two exclusive logits, else each output.


def _to_units(logits: Floats, link: Link) -> Floats:
    if link == "softmax" and logits.shape[1] == 2:
        return logits[:, 1:] - logits[:, :1]
    if link == "softmax":
        return np.asarray(log_softmax(logits, axis=1))  # the same probabilities, and comparable between cases
    return logits


def _from_units(units: Floats, link: Link, outputs: int, *, log_odds: bool = False) -> Floats:
    if link == "softmax" and outputs == 2:
        return np.concatenate([-units / 2, units / 2], axis=1)
    if link == "softmax" and log_odds:
        return np.asarray(-np.logaddexp(0, -units))  # log of the class's own probability; softmax makes them sum to 1
    return units


def _fit_units(logits: Floats, truth: Floats, link: Link) -> tuple[Floats, Floats]:
    """Units (N, U) and their targets (N, U), cases without a known truth left out."""
    units = _to_units(np.asarray(logits, dtype=np.float64), link)
    target = np.asarray(truth, dtype=np.float64)
    if link == "softmax" and target.shape[1] == 2:
        target = target[:, 1:]
    known = np.any(np.isfinite(target), axis=1)
    return units[known], target[known]


def _fewest(target: Floats) -> int:
    return int(min(np.sum(target > 0.5), np.sum(target <= 0.5)))


def _loss(units: Floats, target: Floats, softmaxed: bool) -> float:
    if softmaxed:
        return float(-np.mean(np.sum(target * log_softmax(units, axis=1), axis=1)))
    known = np.isfinite(target)
    loss = np.logaddexp(0, units) - np.where(known, target, 0) * units
    return float(np.sum(loss[known]) / np.sum(known))


def _scaling(units: Floats, target: Floats, softmaxed: bool, *, shared_only: bool) -> tuple[Floats, Floats]:
    """Scale and bias of each unit at the largest posterior."""
    count, width = units.shape
    known: Bools = np.isfinite(target)
    truth = np.where(known, target, 0)

    def split(theta: Floats) -> tuple[float, Floats, Floats]:
        if shared_only:
            return float(theta[0]), np.zeros(width), np.zeros(width)
        return float(theta[0]), theta[1 : 1 + width], theta[1 + width :]

    def objective(theta: Floats) -> tuple[float, Floats]:
        shared, own, bias = split(theta)
        scale = np.exp(shared + own)
        z = units * scale + bias
        if softmaxed:
            loss = -np.sum(truth * log_softmax(z, axis=1))
            slope = softmax(z, axis=1) - truth
        else:
            loss = np.sum((np.logaddexp(0, z) - truth * z)[known])
            slope = np.where(known, expit(z) - truth, 0)
        by_scale = np.sum(slope * units, axis=0) * scale
        gradient = [np.array([np.sum(by_scale) + shared / SHARED_SCALE**2])]
        loss += 0.5 * (shared / SHARED_SCALE) ** 2
        if not shared_only:
            loss += 0.5 * np.sum((own / CLASS_SCALE) ** 2) + 0.5 * np.sum((bias / OFFSET) ** 2)
            gradient += [by_scale + own / CLASS_SCALE**2, np.sum(slope, axis=0) + bias / OFFSET**2]
        return float(loss) / count, np.concatenate(gradient) / count

    start = np.zeros(1 if shared_only else 1 + 2 * width)
    bounds = [(-6.0, 6.0)] * len(start)  # a scale of e^6 is as good as infinite
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
    shared, own, bias = split(found.x)
    return np.exp(shared + own), np.asarray(bias)


def _isotonic(unit: Floats, target: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots of the monotone step function, in logits on both axes."""
    known = np.isfinite(target)
    x, first, counts = np.unique(unit[known], return_inverse=True, return_counts=True)
    positive = np.bincount(first, weights=target[known], minlength=len(x)) / counts
    level = isotonic_regression(positive, weights=counts.astype(np.float64)).x
    # Blocks of only one class would say 0 or 1, and one mistake would then cost an infinite log loss.
    least = 0.5 / (np.sum(counts) + 1)
    level = np.clip(level, least, 1 - least)
    keep = np.ones(len(x), dtype=bool)  # the two ends of each block are enough
    keep[1:-1] = (np.diff(level)[:-1] != 0) | (np.diff(level)[1:] != 0)
    odds = np.log(level / (1 - level))
    return tuple(map(float, x[keep])), tuple(map(float, np.maximum.accumulate(odds[keep])))
