"""Curves of one class against the others, from evidence rows: ROC, precision-recall, reliability, net benefit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sagittal.errors import DataError, nearest
from sagittal.evaluate.evidence import Evidence
from sagittal.metrics.calibration import Binning, bin_numbers
from sagittal.metrics.intervals import wilson
from sagittal.metrics.ranking import Curve, pr_points, roc_points
from sagittal.tasks.measures import Answers
from sagittal.types import Array, Floats


def answers_of(evidence: Evidence) -> Answers:
    """The rows of classification evidence as arrays; cases of unknown truth are left out."""
    if evidence.settings.scheme is None:
        raise DataError("this evidence has no classes; curves are those of classification")
    return Answers.from_rows(evidence.settings.scheme, evidence.rows)


def scores_of(evidence: Evidence, name: str) -> tuple[Floats, Floats]:
    """Probability and truth (0 or 1) of a class, over the cases where it is known.

    Raises
    ------
    DataError
        If there is no such class.
    """
    answers = answers_of(evidence)
    classes = answers.scheme.classes
    if name not in classes:
        raise DataError(f"the evidence has no class '{name}'. {nearest(name, classes)}")
    c = classes.index(name)
    known = np.isfinite(answers.truth[:, c])
    return answers.probability[known, c], answers.truth[known, c]


def roc_curve(evidence: Evidence, name: str) -> Curve:
    """False positive rate and sensitivity at each threshold of a class's probability."""
    return roc_points(*scores_of(evidence, name))


def pr_curve(evidence: Evidence, name: str) -> Curve:
    """Recall and precision at each threshold of a class's probability."""
    return pr_points(*scores_of(evidence, name))


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """A point a bin: mean stated probability, observed frequency with Wilson's interval, number of cases."""

    stated: Floats
    observed: Floats
    low: Floats
    high: Floats
    n: Array


def reliability_curve(evidence: Evidence, name: str, *, bins: int = 10, binning: Binning = "mass") -> ReliabilityCurve:
    """How often a class was true where the model gave it a certain probability.

    The intervals are those of independent cases, at the evidence's confidence.
    """
    p, truth = scores_of(evidence, name)
    number = bin_numbers(p, bins=max(1, min(bins, len(p) // 10)), binning=binning)
    used = np.unique(number)
    here = [number == b for b in used]
    n = np.array([int(h.sum()) for h in here], dtype=np.intp)
    limits = [wilson(float(truth[h].sum()), float(h.sum()), confidence=evidence.settings.confidence) for h in here]
    low, high = (np.array([pair[k] for pair in limits], dtype=np.float64) for k in (0, 1))
    stated, observed = (np.array([float(v[h].mean()) for h in here], dtype=np.float64) for v in (p, truth))
    return ReliabilityCurve(stated, observed, low, high, n)


@dataclass(frozen=True, eq=False)
class NetBenefit:
    """Net benefit over threshold probabilities, in true positives a case.

    Parameters
    ----------
    thresholds : (T,) float
        The probability from which one would act; it weighs a needless action as t / (1 - t) of a missed one.
    model, treat_all : (T,) float
        Acting by the model, and acting on every case. Acting on none is 0.
    """

    thresholds: Floats
    model: Floats
    treat_all: Floats


def net_benefit(probability: Floats, truth: Floats, thresholds: Floats) -> NetBenefit:
    """Decision-curve analysis (Vickers and Elkin, Med Decis Making 26:565, 2006).

    Parameters
    ----------
    probability, truth : (n,) float
    thresholds : (T,) float, between 0 and 1

    Examples
    --------
    >>> curve = net_benefit(np.array([0.9, 0.6, 0.2, 0.1]), np.array([1, 0, 1, 0]), np.array([0.5]))
    >>> float(curve.model[0]), float(curve.treat_all[0])
    (0.0, 0.0)
    """
    t = np.asarray(thresholds, dtype=np.float64)
    positive = truth == 1
    order_p, order_n = np.sort(probability[positive]), np.sort(probability[~positive])
    with np.errstate(invalid="ignore", divide="ignore"):
        hit = 1 - np.searchsorted(order_p, t, side="left") / len(order_p) if len(order_p) else np.zeros_like(t)
        alarm = 1 - np.searchsorted(order_n, t, side="left") / len(order_n) if len(order_n) else np.zeros_like(t)
    share = float(positive.mean()) if len(truth) else np.nan
    odds = t / (1 - t)
    return NetBenefit(t, hit * share - alarm * (1 - share) * odds, share - (1 - share) * odds)


def decision_curve(evidence: Evidence, name: str) -> NetBenefit:
    """Net benefit of acting on a class, for thresholds from 1 to 99 %, at the frequency of the class in these cases.

    Not at a stated prevalence: the probabilities mean what they say only where the class is as frequent as here.
    """
    return net_benefit(*scores_of(evidence, name), np.arange(1, 100) / 100)
