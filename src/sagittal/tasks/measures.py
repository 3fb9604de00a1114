"""Measures of classification rows: what each is, where its interval comes from, and the baseline beside it.

Names without a suffix are those of the positive class in a binary question, else the mean over classes (macro; classes
for which a measure is not defined are left out); ``_micro`` pools all labels. ``baseline.NAME`` is the same measure of
a model that knows only how frequent the classes are among these cases: it answers the most frequent one, with the
frequencies as its probabilities.

Intervals: proportions (accuracy, sensitivity, specificity, PPV, NPV, exact match) have Wilson's where every patient has
one case, AUCs of one class DeLong's on the logit scale (clustered by patient), everything else, and proportions of
patients with several cases, the BCa bootstrap over patients. Where all resamples agree (no errors at all), a proportion
has Wilson's interval with the number of patients and other measures have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sagittal.errors import ConfigError, DataError
from sagittal.labels import LabelScheme
from sagittal.metrics import calibration, decision
from sagittal.metrics.intervals import Bootstrap, Estimate, bootstrap, group_codes, wilson
from sagittal.metrics.ranking import Ranking, delong
from sagittal.tasks.task import Summary
from sagittal.types import Array, Floats

if TYPE_CHECKING:
    import pandas as pd

#: Per-class measures of a (..., 2, 2) matrix, in the order of the report.
BINARY_MEASURES: dict[str, Callable[[Floats], Floats]] = {
    "sensitivity": decision.sensitivity,
    "specificity": decision.specificity,
    "ppv": decision.ppv,
    "npv": decision.npv,
    "f1": decision.f1,
}

#: Where a higher value is better; of the others a lower one is.
LOWER_IS_BETTER = frozenset({"brier", "log_loss", "ece", "grade_error"})


@dataclass(frozen=True, eq=False)
class Answers:
    """Rows of cases with a known truth, as arrays.

    Parameters
    ----------
    truth : (n, C) float
        0, 1, nan.
    probability : (n, C) float
    decided : (n, C) float
        1 for the classes that the model answered, nan where it gave no answer.
    groups : (n,) str
        Patients.
    accepted : (n,) bool
        Whether the model's gate let the study pass.
    """

    scheme: LabelScheme
    truth: Floats
    probability: Floats
    decided: Floats
    groups: Array
    accepted: Array

    @classmethod
    def from_rows(cls, scheme: LabelScheme, rows: pd.DataFrame) -> Answers:
        """The rows with a known truth and a probability."""
        names = scheme.classes
        missing = [c for c in ("case", "truth", "decision", *(f"p_{n}" for n in names)) if c not in rows]
        if missing:
            raise DataError(f"evidence rows lack the columns {missing}; they come from the task's score()")
        p = rows[[f"p_{n}" for n in names]].to_numpy(dtype=np.float64)
        if scheme.exclusive:
            truth = _one_hot(rows["truth"].to_numpy(dtype=object), scheme)
            decided = _one_hot(rows["decision"].to_numpy(dtype=object), scheme)
        else:
            truth = rows[[f"truth_{n}" for n in names]].to_numpy(dtype=np.float64)
            decided = rows[[f"decision_{n}" for n in names]].to_numpy(dtype=np.float64)
        keep = np.isfinite(truth).any(axis=1) & np.isfinite(p).all(axis=1)
        groups = rows["patient" if "patient" in rows else "case"].to_numpy(dtype=object)
        accepted = rows["accepted"].to_numpy(dtype=bool) if "accepted" in rows else np.ones(len(rows), dtype=bool)
        return cls(scheme, truth[keep], p[keep], decided[keep], groups[keep], accepted[keep])

    def __len__(self) -> int:
        return len(self.truth)

    def exact(self) -> Floats:
        """1 where all known labels of a case are answered right, (n,); a case without an answer is not."""
        return np.asarray(np.all((self.truth == self.decided) | ~np.isfinite(self.truth), axis=1), dtype=np.float64)

    def baseline(self) -> Answers:
        """The answers of a model that knows only the frequencies of the classes in these cases."""
        if len(self) == 0:
            return self
        with np.errstate(invalid="ignore"):
            frequency = np.nansum(self.truth, axis=0) / np.isfinite(self.truth).sum(axis=0)
        frequency = np.where(np.isfinite(frequency), frequency, 0.0)
        if self.scheme.exclusive:
            answer = np.eye(len(frequency))[int(np.argmax(frequency))]
        else:
            answer = (frequency > 0.5).astype(np.float64)
        shape = self.truth.shape
        return Answers(
            self.scheme,
            self.truth,
            np.broadcast_to(frequency, shape),
            np.broadcast_to(answer, shape),
            self.groups,
            np.ones(len(self), dtype=bool),
        )


def _one_hot(names: Array, scheme: LabelScheme) -> Floats:
    number = {name: c for c, name in enumerate(scheme.classes)}
    out = np.full((len(names), len(scheme.classes)), np.nan)
    for row, name in enumerate(names):
        if isinstance(name, str):
            if name not in number:
                raise DataError(f"evidence row {row}: '{name}' is not a class of '{scheme.target}'")
            out[row] = 0
            out[row, number[name]] = 1
    return out


def _numbers(one_hot: Floats) -> Array:
    known = np.isfinite(one_hot).all(axis=1)
    return np.where(known, np.argmax(np.where(np.isfinite(one_hot), one_hot, 0), axis=1), -1)


def _labels(column: Floats) -> Array:
    return np.where(np.isfinite(column), column > 0.5, -1).astype(np.intp)


class Measured:
    """Everything about some answers that does not change between resamples, and the measures of weights."""

    def __init__(self, answers: Answers, prevalence: float | None) -> None:
        self.a = answers
        self.prevalence = prevalence
        self.classes = len(answers.scheme.classes)
        self.exclusive = answers.scheme.exclusive
        truth, p = answers.truth, answers.probability
        self.losses = {
            "brier": calibration.brier_terms(p, truth, exclusive=self.exclusive),
            "log_loss": calibration.log_loss_terms(p, truth, exclusive=self.exclusive),
        }
        if self.exclusive:
            self.pred, self.true = _numbers(answers.decided), _numbers(truth)
            if answers.scheme.kind == "binary":
                self.stated, self.happened = p[:, 1], truth[:, 1]
            else:  # of the most probable class
                top = np.argmax(p, axis=1)
                self.stated, self.happened = p[np.arange(len(p)), top], (top == self.true).astype(np.float64)
        else:
            known = np.isfinite(truth)
            self.stated, self.happened = p[known], truth[known]
            self.pooled_case = np.nonzero(known)[0]  # case of each known label
        self.rankings = [Ranking(p[:, c], truth[:, c]) for c in range(self.classes)]
        self.pooled_ranking = Ranking(*self.pooled())
        self.bins = int(np.clip(len(self.stated) // 10, 2, 10))

    def matrices(self, w: Floats) -> tuple[Floats | None, list[Floats]]:
        """The full matrix (classes that exclude each other only) and that of each class against the rest."""
        if self.exclusive:
            full = decision.confusion_matrix(self.pred, self.true, self.classes, w)
            return full, [decision.one_against_rest(full, c) for c in range(self.classes)]
        d, t = self.a.decided, self.a.truth
        return None, [decision.confusion_matrix(_labels(d[:, c]), _labels(t[:, c]), 2, w) for c in range(self.classes)]

    def __call__(self, w: Floats) -> dict[str, Floats]:
        """Weights (R, n) -> {"|overall measure" or "3|measure of class 3": (R,)}."""
        out: dict[str, Floats] = {}
        full, each = self.matrices(w)
        for c, matrix in enumerate(each):
            area, ap = self.rankings[c].measures(w)
            out[f"{c}|auc"], out[f"{c}|average_precision"] = area, ap
            for name, measure in BINARY_MEASURES.items():
                out[f"{c}|{name}"] = measure(matrix)
            if not self.exclusive:
                out[f"{c}|accuracy"] = decision.accuracy(matrix)
                out[f"{c}|balanced_accuracy"] = decision.balanced_accuracy(matrix)
                out[f"{c}|mcc"] = decision.mcc(matrix)
        ranked = ("auc", "average_precision")
        if self.a.scheme.kind == "binary":
            out |= {f"|{name}": out[f"1|{name}"] for name in (*ranked, *BINARY_MEASURES)}
            if self.prevalence is not None:
                pair = out["|sensitivity"], out["|specificity"]
                out["|ppv_at_prevalence"] = decision.ppv_at(*pair, self.prevalence)
                out["|npv_at_prevalence"] = decision.npv_at(*pair, self.prevalence)
        else:
            for name in (*ranked, *BINARY_MEASURES):
                out[f"|{name}"] = decision.nan_mean(
                    np.stack([out[f"{c}|{name}"] for c in range(self.classes)], axis=-1)
                )
            out |= self._micro(w, np.sum(each, axis=0))
        if full is not None:
            out["|accuracy"] = decision.accuracy(full)
            out["|balanced_accuracy"] = decision.balanced_accuracy(full)
            out["|mcc"], out["|kappa"] = decision.mcc(full), decision.kappa(full)
            if self.a.scheme.kind == "ordinal":
                out["|quadratic_kappa"] = decision.kappa(full, quadratic=True)
                out["|grade_error"] = decision.grade_error(full)
            bin_weights = w
        else:
            pooled = np.sum(each, axis=0)
            out["|accuracy"] = decision.accuracy(pooled)
            out["|balanced_accuracy"] = decision.nan_mean(
                np.stack([out[f"{c}|balanced_accuracy"] for c in range(self.classes)], axis=-1)
            )
            out["|exact_match"] = calibration.weighted_mean(self.a.exact(), w)
            bin_weights = w[..., self.pooled_case]
        for name, terms in self.losses.items():
            out[f"|{name}"] = calibration.weighted_mean(terms, w)
        out["|ece"] = calibration.ece(self.stated, self.happened, bin_weights, bins=self.bins)
        return out

    def pooled(self) -> tuple[Floats, Floats, Array]:
        """Probability, truth and case of each known label."""
        known = np.isfinite(self.a.truth)
        return self.a.probability[known], self.a.truth[known], np.nonzero(known)[0]

    def _micro(self, w: Floats, pooled_matrix: Floats) -> dict[str, Floats]:
        area, ap = self.pooled_ranking.measures(w)
        out = {"|auc_micro": area, "|average_precision_micro": ap, "|f1_micro": decision.f1(pooled_matrix)}
        if not self.exclusive:
            out["|sensitivity_micro"] = decision.sensitivity(pooled_matrix)
            out["|specificity_micro"] = decision.specificity(pooled_matrix)
            out["|ppv_micro"] = decision.ppv(pooled_matrix)
        return out

    def counts(self) -> dict[str, tuple[float, float]]:
        """Successes and number of each proportion over cases; their ratio is the measure."""
        full, each = self.matrices(np.ones(len(self.a)))
        out: dict[str, tuple[float, float]] = {}
        for c, m in enumerate(each):
            parts = {
                "sensitivity": (m[1, 1], m[1].sum()),
                "specificity": (m[0, 0], m[0].sum()),
                "ppv": (m[1, 1], m[:, 1].sum()),
                "npv": (m[0, 0], m[:, 0].sum()),
            }
            if not self.exclusive:
                parts["accuracy"] = (m[0, 0] + m[1, 1], m.sum())
            out |= {f"{c}|{name}": pair for name, pair in parts.items()}
        if self.a.scheme.kind == "binary":
            out |= {f"|{name}": out[f"1|{name}"] for name in ("sensitivity", "specificity", "ppv", "npv")}
        if full is not None:
            out["|accuracy"] = (float(np.trace(full)), float(full.sum()))
        else:
            out["|exact_match"] = (float(self.a.exact().sum()), float(len(self.a)))
        return out


def summarise_rows(
    scheme: LabelScheme,
    rows: pd.DataFrame,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    prevalence: float | None = None,
) -> Summary:
    """Measures of evidence rows with intervals; see the top of this file."""
    if prevalence is not None and not 0 < prevalence < 1:
        raise ConfigError(f"prevalence must lie between 0 and 1, such as 0.02, not {prevalence}")
    answers = Answers.from_rows(scheme, rows)
    overall: dict[str, Estimate] = {}
    classes: dict[str, dict[str, Estimate]] = {name: {} for name in scheme.classes}
    ours = _estimates(answers, prevalence, resamples, seed, confidence, fixed=False)
    plain = _estimates(answers.baseline(), prevalence, resamples, seed, confidence, fixed=True)
    for prefix, estimates in (("", ours), ("baseline.", plain)):
        for key, estimate in estimates.items():
            scope, name = key.split("|")
            place = classes[scheme.classes[int(scope)]] if scope else overall
            place[prefix + name] = estimate
    for c, name in enumerate(scheme.classes):
        known = np.isfinite(answers.truth[:, c])
        classes[name]["prevalence"] = _share(answers.truth[known, c], answers.groups[known], confidence)
    if len(answers) and not answers.accepted.all():
        overall |= _accepted(answers, confidence)
    return Summary(_ordered(overall), {name: _ordered(values) for name, values in classes.items()})


def _ordered(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Measures in the order of a report, the baselines last."""
    first = ("auc", "average_precision", "accuracy", "balanced_accuracy", *BINARY_MEASURES)
    rank = {name: i for i, name in enumerate(first)}
    return dict(
        sorted(
            estimates.items(),
            key=lambda kv: (kv[0].startswith("baseline."), rank.get(kv[0].removeprefix("baseline."), 99)),
        )
    )


def _share(values: Floats, groups: Array, confidence: float) -> Estimate:
    """A proportion with Wilson's interval at the number of patients."""
    n = len(values)
    if n == 0:
        return Estimate(math.nan)
    patients = len(set(groups))
    low, high = wilson(float(values.mean()) * patients, patients, confidence=confidence)
    return Estimate(float(values.mean()), low, high, n)


def _accepted(answers: Answers, confidence: float) -> dict[str, Estimate]:
    """How many studies the gate let pass, and the accuracy among them."""
    here = answers.accepted
    right = answers.exact()
    return {
        "accepted": _share(here.astype(np.float64), answers.groups, confidence),
        "accuracy_of_accepted": _share(right[here], answers.groups[here], confidence),
    }


def _estimates(
    answers: Answers, prevalence: float | None, resamples: int, seed: int, confidence: float, *, fixed: bool
) -> dict[str, Estimate]:
    """Every measure with its interval; `fixed` for the baseline, whose constant measures are known exactly."""
    measured = Measured(answers, prevalence)
    if len(answers) == 0:
        return {key: Estimate(math.nan) for key in measured(np.zeros((1, 0)))}
    boot = bootstrap(measured, answers.groups, resamples=resamples, seed=seed, confidence=confidence)
    patients = group_codes(answers.groups)[1]
    single = patients == len(answers)
    counts = measured.counts()
    out: dict[str, Estimate] = {}
    for key, (value, low, high) in boot.estimates.items():
        n = int(counts[key][1]) if key in counts else _cases(answers, key)
        estimate = Estimate(value, low, high, n)
        if fixed and _constant(boot, key):
            estimate = Estimate(value, value, value, n)
        elif key in counts and math.isfinite(value):
            if single:
                estimate = Estimate(value, *wilson(*counts[key], confidence=confidence), n)
            elif _constant(boot, key):
                effective = _patients(answers, n)
                estimate = Estimate(value, *wilson(value * effective, effective, confidence=confidence), n)
        elif _constant(boot, key):
            estimate = Estimate(value, n=n)
        out[key] = estimate
    if not fixed:
        out |= _delong_estimates(answers, measured, confidence)
    return out


def _constant(boot: Bootstrap, key: str) -> bool:
    draws = boot.draws[key]
    draws = draws[np.isfinite(draws)]
    return len(draws) == 0 or float(np.ptp(draws)) < 1e-12


def _patients(answers: Answers, n: int) -> float:
    """Patients behind n cases, if they have as many cases each as all have on average; at least 1."""
    return max(1.0, n * group_codes(answers.groups)[1] / len(answers))


def _cases(answers: Answers, key: str) -> int:
    scope, _, name = key.partition("|")
    known = np.isfinite(answers.truth)
    if scope:
        return int(known[:, int(scope)].sum())
    if name.endswith("_micro") or (name in ("accuracy", "ece") and not answers.scheme.exclusive):
        return int(known.sum())
    return len(answers)


def _delong_estimates(answers: Answers, measured: Measured, confidence: float) -> dict[str, Estimate]:
    out = {}
    for c in range(len(answers.scheme.classes)):
        out[f"{c}|auc"] = delong(
            answers.probability[:, c], answers.truth[:, c], groups=answers.groups, confidence=confidence
        )
    if answers.scheme.kind == "binary":
        out["|auc"] = out["1|auc"]
    else:
        p, truth, case = measured.pooled()
        out["|auc_micro"] = delong(p, truth, groups=answers.groups[case], confidence=confidence)
    return out
