"""Whether one model is better than another on the same cases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from sagittal.errors import DataError
from sagittal.evaluate.compare_places import paired_measures
from sagittal.evaluate.evidence import Evidence
from sagittal.labels import PLACE_KINDS
from sagittal.metrics.intervals import Estimate, bootstrap
from sagittal.metrics.ranking import delong_test
from sagittal.tasks.measures import LOWER_IS_BETTER, Answers, Measured
from sagittal.tasks.segment_measures import LOWER_IS_BETTER as LOWER_OF_MASKS
from sagittal.types import Floats

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Difference:
    """Second minus first model, with the values of both on the shared cases.

    `p_value` is of DeLong's test for an AUC, of McNemar's exact test for accuracy (where every patient has one case),
    else nan: the interval says what there is to say.
    """

    first: float
    second: float
    difference: Estimate
    p_value: float = math.nan
    lower_is_better: bool = False

    @property
    def verdict(self) -> str:
        """``second better``, ``first better`` or ``no difference shown``."""
        d = self.difference
        if not (math.isfinite(d.low) and math.isfinite(d.high)) or d.low <= 0 <= d.high:
            return "no difference shown"
        return "second better" if (d.low > 0) != self.lower_is_better else "first better"

    def to_json(self) -> dict[str, Any]:
        """Plain values; nan becomes ``None``."""
        plain = {"first": self.first, "second": self.second, "p_value": self.p_value}
        return {
            **{k: v if math.isfinite(v) else None for k, v in plain.items()},
            "difference": self.difference.to_json(),
            "verdict": self.verdict,
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models on the same cases.

    Parameters
    ----------
    first, second : str
        The models.
    differences : mapping of str to Difference
        By measure.
    cases : int
        Shared cases, on which everything here is measured.
    only_first, only_second : int
        Cases that only one of them has; they are left out.
    """

    first: str
    second: str
    differences: Mapping[str, Difference]
    cases: int
    patients: int
    only_first: int
    only_second: int
    confidence: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "first": self.first,
            "second": self.second,
            "cases": self.cases,
            "patients": self.patients,
            "only_first": self.only_first,
            "only_second": self.only_second,
            "confidence": self.confidence,
            "differences": {name: d.to_json() for name, d in self.differences.items()},
        }

    def text(self) -> str:
        """A table for a terminal."""
        left = f", {self.only_first} and {self.only_second} cases of one model only left out"
        lines = [
            f"first   {self.first}",
            f"second  {self.second}",
            f"{self.cases} shared cases of {self.patients} patients"
            + (left if self.only_first or self.only_second else ""),
            f"{'measure':<22}{'first':>8}{'second':>8}  second - first ({100 * self.confidence:g} % interval)",
        ]
        for name, d in self.differences.items():
            e = d.difference
            shown = f"{e.value:+.3f}" + (f" ({e.low:+.3f} to {e.high:+.3f})" if math.isfinite(e.low) else "")
            p = f"  p = {d.p_value:.3g}" if math.isfinite(d.p_value) else ""
            lines.append(f"{name:<22}{d.first:>8.3f}{d.second:>8.3f}  {shown:<28}{d.verdict}{p}")
        return "\n".join(lines)


def compare_evidence(first: Evidence, second: Evidence) -> Comparison:
    """Differences of two models' measures on the cases that both have, with intervals.

    Both models are measured in the same resamples of patients, so that what is hard for both cancels (paired BCa
    bootstrap): of masks the mean Dice and what else is measured of overlap and surfaces, of boxes average precision and
    FROC. An AUC of one class has DeLong's paired test, clustered by patient. Seed, resamples and confidence are
    those of the first evidence.

    Raises
    ------
    DataError
        If they share no case, ask different questions, or disagree on the truth of a case.
    """
    scheme, other = first.settings.scheme, second.settings.scheme
    if scheme is None or other is None or (scheme.kind, scheme.classes) != (other.kind, other.classes):
        raise DataError("the two models answer different questions; compare models of the same classes")
    both = [name for name in first.rows["case"] if name in set(second.rows["case"])]
    if not both:
        raise DataError("the two models share no case; evaluate both on the same data")
    a_rows, b_rows = (e.rows.set_index("case", drop=False).loc[both] for e in (first, second))
    left_out = len(first.rows) - len(both), len(second.rows) - len(both)
    if scheme.kind in PLACE_KINDS:
        return _compare_places(first, second, (a_rows, b_rows), left_out)
    same = Answers.from_rows(scheme, a_rows), Answers.from_rows(scheme, b_rows)
    if same[0].truth.shape != same[1].truth.shape or not np.array_equal(same[0].truth, same[1].truth, equal_nan=True):
        raise DataError("the two evaluations disagree on the truth of a case; evaluate both on the same labels")
    a, b = same
    if len(a) == 0:
        raise DataError("no shared case has a known truth")
    measured = Measured(a, first.settings.prevalence), Measured(b, first.settings.prevalence)

    def difference(weights: Floats) -> dict[str, Floats]:
        one, two = measured[0](weights), measured[1](weights)
        return {name: two[name] - one[name] for name in one}

    s = first.settings
    boot = bootstrap(difference, a.groups, resamples=s.resamples, seed=s.seed, confidence=s.confidence)
    everything = np.ones((1, len(a)))
    values = [{k: float(v[0]) for k, v in m(everything).items()} for m in measured]
    out: dict[str, Difference] = {}
    for key, (value, low, high) in boot.estimates.items():
        scope, _, name = key.partition("|")
        if scope:  # classes: the table would be long, and nobody corrects for so many comparisons
            continue
        out[name] = Difference(
            values[0][key], values[1][key], Estimate(value, low, high, len(a)), lower_is_better=name in LOWER_IS_BETTER
        )
    if scheme.kind == "binary":
        paired = delong_test(
            a.probability[:, 1], b.probability[:, 1], a.truth[:, 1], groups=a.groups, confidence=s.confidence
        )
        out["auc"] = Difference(paired.first, paired.second, paired.difference, paired.p_value)
    patients = len(set(a.groups))
    if scheme.exclusive and patients == len(a):
        p_value = mcnemar(a.exact(), b.exact())
        out["accuracy"] = Difference(out["accuracy"].first, out["accuracy"].second, out["accuracy"].difference, p_value)
    return Comparison(
        first=s.model,
        second=second.settings.model,
        differences=out,
        cases=len(a),
        patients=patients,
        only_first=left_out[0],
        only_second=left_out[1],
        confidence=s.confidence,
    )


def _compare_places(
    first: Evidence, second: Evidence, rows: tuple[pd.DataFrame, pd.DataFrame], left_out: tuple[int, int]
) -> Comparison:
    s, other = first.settings, second.settings
    for name in ("dimensions", "tolerance_mm"):
        if getattr(s, name) != getattr(other, name):
            raise DataError(
                f"the two evaluations were made with {name} {getattr(s, name)} and {getattr(other, name)}; evaluate both alike"
            )
    (one, two), patients = paired_measures(s, *rows)

    def difference(weights: Floats) -> dict[str, Floats]:
        a, b = one(weights), two(weights)
        with np.errstate(invalid="ignore"):  # of two infinite distances nothing can be said
            return {name: b[name] - a[name] for name in a if name in b}

    boot = bootstrap(difference, patients, resamples=s.resamples, seed=s.seed, confidence=s.confidence)
    everything = np.ones((1, len(patients)))
    values = [{k: float(v[0]) for k, v in m(everything).items()} for m in (one, two)]
    differences = {
        name: Difference(
            values[0][name],
            values[1][name],
            Estimate(value, low, high, len(patients)),
            lower_is_better=name in LOWER_OF_MASKS,
        )
        for name, (value, low, high) in boot.estimates.items()
    }
    return Comparison(
        first=s.model,
        second=other.model,
        differences=differences,
        cases=len(patients),
        patients=len(set(patients)),
        only_first=left_out[0],
        only_second=left_out[1],
        confidence=s.confidence,
    )


def mcnemar(first: Floats, second: Floats) -> float:
    """Exact two-sided p-value that two models are right equally often on the same cases (McNemar 1947).

    >>> mcnemar(np.array([1, 1, 1, 0, 1.0]), np.array([1, 0, 0, 0, 0.0]))
    0.25
    """
    only_first, only_second = int(np.sum((first == 1) & (second == 0))), int(np.sum((first == 0) & (second == 1)))
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)
