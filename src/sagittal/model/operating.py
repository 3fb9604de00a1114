"""Operating points: from calibrated probabilities to a decision, chosen on validation cases.

A probability says how sure the model is, an operating point says from where on to act; the two are kept apart. One rule
serves every scheme: where classes exclude each other the class with the largest ``probability / threshold`` is taken;
of several labels each holds whose probability reaches its threshold.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sagittal.errors import ConfigError, DataError, PackageError, nearest
from sagittal.labels import LabelScheme
from sagittal.metrics.intervals import Estimate, wilson
from sagittal.types import Bools, Floats

_log = logging.getLogger(__name__)

POINTS = ("most-probable", "youden", "balanced", "sensitivity=0.95", "specificity=0.95")


@dataclass(frozen=True)
class OperatingPoint:
    """Where a model begins to say that a class holds, and what that was worth on validation cases.

    Parameters
    ----------
    name : str
        ``most-probable``, ``youden``, ``balanced``, ``sensitivity=X`` or ``specificity=X``.
    thresholds : (C,) tuple of float
        Of a binary scheme they are (1 - t, t): positive from a probability of t on.
    sensitivity, specificity : (C,) tuple of Estimate
        On the validation cases that chose the point, with 95 % Wilson intervals.
    """

    name: str
    thresholds: tuple[float, ...]
    sensitivity: tuple[Estimate, ...] = ()
    specificity: tuple[Estimate, ...] = ()

    def __post_init__(self) -> None:
        if not self.thresholds or any(not (math.isfinite(t) and t >= 0) for t in self.thresholds):
            raise PackageError(f"operating point '{self.name}': thresholds must be finite and not negative")

    def holds(self, probabilities: Floats, scheme: LabelScheme) -> Bools:
        """Which classes hold, (N, C) bool, from probabilities (N, C).

        >>> scheme = LabelScheme("binary", ("benign", "malignant"))
        >>> OperatingPoint("sensitivity=0.95", (0.8, 0.2)).holds(np.array([[0.75, 0.25], [0.9, 0.1]]), scheme)
        array([[False,  True],
               [ True, False]])
        """
        p = np.asarray(probabilities, dtype=np.float64)
        limits = np.array(self.thresholds)
        if p.shape[-1] != len(limits):
            raise DataError(f"the operating point has {len(limits)} classes, these probabilities {p.shape[-1]}")
        if not scheme.exclusive:
            return np.asarray(p >= limits)
        if scheme.kind == "binary":  # not as a ratio: a threshold may be 0 or 1
            positive = p[:, 1] >= limits[1]
            return np.stack([~positive, positive], axis=1)
        best = np.argmax(p / np.maximum(limits, 1e-12), axis=1)
        return np.asarray(best[:, np.newaxis] == np.arange(len(limits)))

    def decide(self, probabilities: Floats, scheme: LabelScheme) -> tuple[str, ...]:
        """The names of the classes that hold for one case, (C,)."""
        held = self.holds(np.asarray(probabilities)[np.newaxis], scheme)[0]
        return tuple(name for name, yes in zip(scheme.classes, held, strict=True) if yes)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "thresholds": list(self.thresholds),
            "sensitivity": [e.to_json() for e in self.sensitivity],
            "specificity": [e.to_json() for e in self.specificity],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> OperatingPoint:
        """Check and read what :meth:`to_json` wrote."""
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                raise PackageError(f"operating point: unknown key '{key}'. {nearest(key, known)}")
        try:
            return cls(
                str(values["name"]),
                tuple(float(t) for t in values["thresholds"]),
                tuple(Estimate.from_json(e) for e in values.get("sensitivity", ())),
                tuple(Estimate.from_json(e) for e in values.get("specificity", ())),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise PackageError(f"operating point: holds values of the wrong type: {error}") from error


def default_point(scheme: LabelScheme) -> OperatingPoint:
    """The most probable class, or every label from one half on; needs no validation cases."""
    count = len(scheme.classes)
    return OperatingPoint(
        "most-probable", (0.5,) * count if not scheme.exclusive or count == 2 else (1 / count,) * count
    )


def choose_point(name: str, probabilities: Floats, truth: Floats, scheme: LabelScheme) -> OperatingPoint:
    """The operating point of this name on validation cases.

    Parameters
    ----------
    name : str
        ``youden`` has the highest mean of the classes' sensitivities (for two classes the highest sensitivity +
        specificity). ``balanced`` divides each probability by the class's frequency. ``sensitivity=X`` is the highest
        threshold at which at least X of the positive cases are found, ``specificity=X`` the lowest at which at least X
        of the others are left alone; both need a binary scheme or several labels.
    probabilities, truth : (N, C) float
        Calibrated probabilities of validation cases, and their truth with nan where unknown.
    scheme : LabelScheme

    Raises
    ------
    ConfigError
        If the name is unknown, or needs a positive class where there is none.
    DataError
        If a class has no validation case with or without it.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    known = np.any(np.isfinite(y), axis=1)
    p, y = p[known], y[known]
    rule, _, value = name.partition("=")
    if rule not in {"most-probable", "youden", "balanced", "sensitivity", "specificity"}:
        raise ConfigError(f"operating point '{name}' is not known. {nearest(name, POINTS)}")
    if rule == "most-probable":
        return _measured(default_point(scheme), p, y, scheme)
    for c, label in enumerate(scheme.classes):
        column = y[np.isfinite(y[:, c]), c]
        if not 0 < np.sum(column) < len(column):
            raise DataError(
                f"operating point '{name}': no validation case {'without' if np.sum(column) else 'with'} '{label}'. "
                "Use most-probable, or give more validation cases."
            )
    if rule in ("sensitivity", "specificity"):
        thresholds = _at_least(rule, value, p, y, scheme)
    elif rule == "balanced":
        share = np.nanmean(y, axis=0)
        thresholds = share
    elif scheme.exclusive and len(scheme.classes) > 2:
        thresholds = _best_recalls(p, y)
    else:
        thresholds = _per_column(_youden, p, y, scheme)
    point = OperatingPoint(name, tuple(float(t) for t in thresholds))
    return _measured(point, p, y, scheme)


def all_points(probabilities: Floats, truth: Floats, scheme: LabelScheme, also: str = "") -> tuple[OperatingPoint, ...]:
    """Every named operating point that these validation cases can choose, and the one `also` asked for.

    Raises
    ------
    ConfigError
        If the one asked for does not exist for the scheme. One that validation cases are too few for is left out, with
        a warning in the log: a trained network is not thrown away for it.
    """
    points: list[OperatingPoint] = []
    for name in dict.fromkeys([*POINTS, *([also] if also else [])]):
        try:
            points.append(choose_point(name, probabilities, truth, scheme))
        except ConfigError:
            if name == also:
                raise
        except DataError as error:
            if name == also:
                _log.warning("%s", error)
    return tuple(points)


def _measured(point: OperatingPoint, p: Floats, y: Floats, scheme: LabelScheme) -> OperatingPoint:
    held = point.holds(p, scheme) if len(p) else np.zeros(y.shape, dtype=bool)
    sensitivity, specificity = [], []
    for c in range(y.shape[1]):
        with_it, without = y[:, c] == 1, y[:, c] == 0
        sensitivity.append(_wilson(int(np.sum(held[with_it, c])), int(np.sum(with_it))))
        specificity.append(_wilson(int(np.sum(~held[without, c])), int(np.sum(without))))
    return OperatingPoint(point.name, point.thresholds, tuple(sensitivity), tuple(specificity))


def _wilson(hits: int, count: int) -> Estimate:
    return Estimate(hits / count, *wilson(hits, count), n=count) if count else Estimate(math.nan)


def _per_column(choose: Callable[[Floats, Floats], float], p: Floats, y: Floats, scheme: LabelScheme) -> Floats:
    if scheme.kind == "binary":
        t = choose(p[:, 1], y[:, 1])
        return np.array([1 - t, t])
    known = np.isfinite(y)
    return np.array([choose(p[known[:, c], c], y[known[:, c], c]) for c in range(y.shape[1])])


def _candidates(scores: Floats) -> Floats:
    """Thresholds between neighbouring scores, lowest first; the first takes every case, the last none.

    Midpoints: a threshold that equals a score would turn on the last bit of a float.
    """
    s = np.unique(scores)
    return np.concatenate([[s[0] / 2], (s[1:] + s[:-1]) / 2, [(s[-1] + 1) / 2]])


def _rates(scores: Floats, truth: Floats, thresholds: Floats) -> tuple[Floats, Floats]:
    """Sensitivity and specificity at each threshold (ascending)."""
    positive, negative = np.sort(scores[truth == 1]), np.sort(scores[truth == 0])
    sensitivity = 1 - np.searchsorted(positive, thresholds, side="left") / len(positive)
    specificity = np.searchsorted(negative, thresholds, side="left") / len(negative)
    return sensitivity, specificity


def _youden(scores: Floats, truth: Floats) -> float:
    thresholds = _candidates(scores)
    j = np.sum(_rates(scores, truth, thresholds), axis=0)
    best = np.flatnonzero(j >= np.max(j) - 1e-12)
    return float(thresholds[best[len(best) // 2]])  # the middle of equals


def _at_least(rule: str, value: str, p: Floats, y: Floats, scheme: LabelScheme) -> Floats:
    try:
        wanted = float(value)
    except ValueError:
        wanted = math.nan
    if not 0 < wanted <= 1:
        raise ConfigError(f"operating point '{rule}={value}': expected a number above 0 and at most 1, as {rule}=0.95")
    if scheme.exclusive and scheme.kind != "binary":
        raise ConfigError(
            f"operating point '{rule}={value}' needs one positive class; '{scheme.target}' has {len(scheme.classes)} that "
            "exclude each other. Use most-probable, balanced or youden."
        )

    def choose(scores: Floats, truth: Floats) -> float:
        thresholds = _candidates(scores)
        sensitivity, specificity = _rates(scores, truth, thresholds)
        if rule == "sensitivity":
            return float(thresholds[np.flatnonzero(sensitivity >= wanted - 1e-12)[-1]])
        return float(thresholds[np.flatnonzero(specificity >= wanted - 1e-12)[0]])

    return _per_column(choose, p, y, scheme)


def _best_recalls(p: Floats, y: Floats) -> Floats:
    """Thresholds of classes that exclude each other at the highest mean sensitivity, by coordinate ascent."""
    truth = np.argmax(y, axis=1)
    classes = np.arange(y.shape[1])
    log_p = np.log(np.maximum(p, 1e-12))
    log_t = np.log(np.maximum(np.mean(y, axis=0), 1e-12))  # "balanced" is the start
    weight = 1 / (np.bincount(truth, minlength=len(classes))[truth] * len(classes))

    def recall(log_limits: Floats) -> float:
        return float(np.sum(weight * (np.argmax(log_p - log_limits, axis=1) == truth)))

    best = recall(log_t)
    for _ in range(3):
        before = best
        for c in classes:
            for step in np.linspace(-2, 2, 41):
                tried = log_t + step * (classes == c)
                value = recall(tried)
                if value > best + 1e-12:
                    best, log_t = value, tried
        if best <= before + 1e-12:
            break
    limits = np.exp(log_t)
    return np.asarray(limits / np.sum(limits))
