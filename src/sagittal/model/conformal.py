"""Conformal sets: the classes that cannot be excluded at a stated confidence.

Split-conformal prediction with the score ``1 - probability of the true class`` (LAC, Sadinle et al., J Am Stat Assoc
114:223, 2019): of all sets with the same coverage these are the smallest on average. Where a class has cases enough its
threshold is its own (Mondrian, Vovk 2012), so that a rare disease is covered as often as a frequent one. The scores use
the network's logits before calibration, which was fitted on the same cases; the coverage of a new case from the same
population is then at least the confidence, whatever the network does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from sagittal.errors import ConfigError, DataError, PackageError, nearest
from sagittal.labels import LabelScheme
from sagittal.model.calibrate import link_of, to_probabilities
from sagittal.types import Bools, Floats

LEAST_OF_A_CLASS = 20  # cases: with fewer, the coverage of a class's own threshold varies by more than 0.07


@dataclass(frozen=True)
class Conformal:
    """Thresholds of the conformal sets.

    Parameters
    ----------
    confidence : float
        Of the true class being in the set.
    thresholds : (C,) tuple of float
        A class is in the set if 1 - its probability (before calibration) is at most this.
    cases : (C,) tuple of int
        Validation cases behind each threshold.
    own : (C,) tuple of bool
        Whether the threshold is the class's own, or that of all cases together.
    """

    confidence: float
    thresholds: tuple[float, ...]
    cases: tuple[int, ...]
    own: tuple[bool, ...]

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise PackageError(f"conformal: confidence must lie between 0 and 1, not {self.confidence}")
        if not len(self.thresholds) == len(self.cases) == len(self.own) or not self.thresholds:
            raise PackageError("conformal: thresholds, cases and own need one entry a class")
        if any(not math.isfinite(t) for t in self.thresholds):
            raise PackageError("conformal: thresholds must be finite")

    def contains(self, logits: Floats, scheme: LabelScheme, *, also: Bools | None = None) -> Bools:
        """Which classes are in the set, (N, C) bool, from logits (N, C) before calibration.

        The set of exclusive classes is never empty: it holds the most probable class, and the classes `also` given,
        such as those decided for. Of grades, those between two members are members. All this only adds to the coverage.
        """
        p = _probabilities(np.asarray(logits, dtype=np.float64), scheme)
        if p.shape[1] != len(self.thresholds):
            raise DataError(f"the conformal sets have {len(self.thresholds)} classes, these logits {p.shape[1]}")
        inside: Bools = 1 - p <= np.array(self.thresholds)
        if scheme.exclusive:
            inside |= p >= np.max(p, axis=1, keepdims=True)
        if also is not None:
            inside |= also
        if scheme.kind == "ordinal":
            before = np.maximum.accumulate(inside, axis=1)
            after = np.flip(np.maximum.accumulate(np.flip(inside, axis=1), axis=1), axis=1)
            inside = before & after
        return inside

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Conformal:
        """Check and read what :meth:`to_json` wrote."""
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                raise PackageError(f"conformal: unknown key '{key}'. {nearest(key, known)}")
        try:
            return cls(
                float(values["confidence"]),
                tuple(float(t) for t in values["thresholds"]),
                tuple(int(n) for n in values["cases"]),
                tuple(bool(b) for b in values["own"]),
            )
        except (KeyError, TypeError) as error:
            raise PackageError(f"conformal: holds values of the wrong type: {error}") from error


def fit_conformal(logits: Floats, truth: Floats, *, scheme: LabelScheme, confidence: float = 0.9) -> Conformal | None:
    """Thresholds from validation cases; ``None`` where there are too few for the confidence asked for.

    Parameters
    ----------
    logits : (N, C) float
        Before calibration, of cases that the networks did not learn from.
    truth : (N, C) float
        nan where unknown.
    scheme : LabelScheme
    confidence : float

    Raises
    ------
    ConfigError
        If the confidence does not lie between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"decide.confidence: expected a number between 0 and 1, found {confidence}")
    p, y = _probabilities(np.asarray(logits, dtype=np.float64), scheme), np.asarray(truth, dtype=np.float64)
    scores = [1 - p[y[:, c] == 1, c] for c in range(y.shape[1])]
    least = max(LEAST_OF_A_CLASS, math.ceil(confidence / (1 - confidence)))
    together = np.concatenate(scores)
    if len(together) < least:
        return None
    common = _quantile(together, confidence)
    own = tuple(len(s) >= least for s in scores)
    return Conformal(
        confidence,
        tuple(_quantile(s, confidence) if mine else common for s, mine in zip(scores, own, strict=True)),
        tuple(len(s) if mine else len(together) for s, mine in zip(scores, own, strict=True)),
        own,
    )


def _quantile(scores: Floats, confidence: float) -> float:
    """The ceil((n + 1) confidence)-th smallest score."""
    rank = math.ceil((len(scores) + 1) * confidence - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else 1.0


def _probabilities(logits: Floats, scheme: LabelScheme) -> Floats:
    return to_probabilities(logits, link_of(scheme))
