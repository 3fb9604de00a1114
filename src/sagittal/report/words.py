"""Measures and findings in plain words, for readers who are not statisticians."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sagittal.evaluate.evidence import Evidence
from sagittal.metrics.intervals import Estimate
from sagittal.tasks.measures import LOWER_IS_BETTER

#: Name for people and meaning of each measure.
MEASURES: dict[str, tuple[str, str]] = {
    "auc": ("AUC (ROC)", "chance that a case of the class scores above one without it"),
    "average_precision": ("Average precision", "mean PPV over all sensitivities; the baseline is the frequency"),
    "accuracy": ("Accuracy", "share of right answers"),
    "balanced_accuracy": ("Balanced accuracy", "mean over classes of the share answered right"),
    "sensitivity": ("Sensitivity", "share of cases of the class that are found"),
    "specificity": ("Specificity", "share of other cases that are left alone"),
    "ppv": ("PPV", "share of positive answers that are right, at the frequency in these cases"),
    "npv": ("NPV", "share of negative answers that are right, at the frequency in these cases"),
    "ppv_at_prevalence": ("PPV at stated prevalence", "PPV where the class is as frequent as stated"),
    "npv_at_prevalence": ("NPV at stated prevalence", "NPV where the class is as frequent as stated"),
    "f1": ("F1", "harmonic mean of sensitivity and PPV"),
    "mcc": ("MCC", "correlation of truth and answer, \u22121 to 1"),
    "kappa": ("Cohen's kappa", "agreement beyond chance"),
    "quadratic_kappa": ("Quadratic kappa", "agreement of grades beyond chance, far misses weigh more"),
    "grade_error": ("Grade error", "mean distance between true and answered grade; lower is better"),
    "brier": ("Brier score", "mean squared error of the probabilities; lower is better"),
    "log_loss": ("Log loss", "mean surprise in nats; lower is better"),
    "ece": ("Calibration error (ECE)", "mean gap between stated probability and observed frequency; lower is better"),
    "auc_micro": ("AUC, micro", "all labels pooled"),
    "average_precision_micro": ("Average precision, micro", "all labels pooled"),
    "f1_micro": ("F1, micro", "all labels pooled"),
    "sensitivity_micro": ("Sensitivity, micro", "all labels pooled"),
    "specificity_micro": ("Specificity, micro", "all labels pooled"),
    "ppv_micro": ("PPV, micro", "all labels pooled"),
    "exact_match": ("Exact match", "share of cases with every label right"),
    "accepted": ("Accepted by the gate", "share of studies like those the model learned from"),
    "accuracy_of_accepted": ("Accuracy of accepted", "share of right answers among them"),
    "prevalence": ("Frequency", "share of the class in these cases"),
}


@dataclass(frozen=True)
class Line:
    """One row of a table of measures."""

    name: str
    meaning: str
    estimate: Estimate
    baseline: Estimate | None


def title_of(name: str) -> str:
    """A measure's name for people."""
    return MEASURES.get(name, (name.replace("_", " "), ""))[0]


def lines(measures: Mapping[str, Estimate]) -> list[Line]:
    """Each measure with its baseline, in the order in which they came."""
    return [
        Line(title_of(name), MEASURES.get(name, ("", ""))[1], estimate, measures.get(f"baseline.{name}"))
        for name, estimate in measures.items()
        if not name.startswith("baseline.")
    ]


def number(value: float, *, digits: int = 3) -> str:
    """A number for a table; ``not defined`` where there is none.

    >>> number(0.12345), number(float("nan"))
    ('0.123', 'not defined')
    """
    return f"{value:.{digits}f}".replace("-", "\u2212") if math.isfinite(value) else "not defined"


def interval(estimate: Estimate, *, digits: int = 3) -> str:
    """The limits in words, empty where there are none.

    >>> interval(Estimate(0.9, 0.8123, 0.95, 10))
    '0.812 to 0.950'
    """
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return ""
    return f"{number(estimate.low, digits=digits)} to {number(estimate.high, digits=digits)}"


def ranges(pairs: Sequence[tuple[float, float]]) -> str:
    """Ranges of an array's axes, ``20 to 31.5`` or one number where both are the same.

    >>> ranges([(28, 28)])
    '28'
    """
    return " \u00d7 ".join(f"{low:g}" if low == high else f"{low:g} to {high:g}" for low, high in pairs)


def percent(estimate: Estimate) -> str:
    r"""A proportion with its interval in percent, in words.

    >>> percent(Estimate(0.912, 0.85, 0.955, 100))
    '91\xa0% (85 to 96\xa0%)'
    """
    if not math.isfinite(estimate.value):
        return "not defined"
    shown = f"{100 * estimate.value:.0f}\u00a0%"
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return shown
    return f"{shown} ({100 * estimate.low:.0f} to {100 * estimate.high:.0f}\u00a0%)"


def headline(evidence: Evidence) -> list[str]:
    """What was found, in two to four sentences, the most telling first."""
    overall, counts, settings = evidence.overall, evidence.counts, evidence.settings
    scheme = settings.scheme
    told = []
    cases = f"{counts['with_truth']:,} cases of {counts['patients']:,} patients"
    auc = overall.get("auc")
    if auc is not None and math.isfinite(auc.value):
        binary = scheme is not None and scheme.kind == "binary"
        of = f" for '{scheme.classes[1]}'" if scheme is not None and binary else ", mean over classes"
        limits = (
            f" ({100 * settings.confidence:g}\u00a0% interval {auc.low:.2f} to {auc.high:.2f})"
            if math.isfinite(auc.low)
            else ""
        )
        told.append(f"On {cases}, the area under the ROC curve{of} is {auc.value:.2f}{limits}; chance is 0.50.")
    else:
        told.append(f"{cases} were evaluated.")
    right, always = overall.get("accuracy"), overall.get("baseline.accuracy")
    if right is not None and always is not None and math.isfinite(right.value):
        what = "labels" if scheme and not scheme.exclusive else "cases"
        told.append(
            f"Of the {what}, {percent(right)} are answered right; always giving the most frequent answer would be right "
            f"in {100 * always.value:.0f}\u00a0%."
            + (
                ""
                if right.low > always.value or not math.isfinite(right.low)
                else " The interval includes that, so these cases do not show that the answers are better."
            )
        )
    if scheme and scheme.kind == "binary":
        hit, rest = overall["sensitivity"], overall["specificity"]
        if math.isfinite(hit.value + rest.value):
            told.append(
                f"At the operating point '{settings.operating_point}' it recognises {percent(hit)} of the {hit.n:,} cases "
                f"of '{scheme.classes[1]}' (sensitivity) and {percent(rest)} of the {rest.n:,} cases of "
                f"'{scheme.classes[0]}' (specificity)."
            )
    elif "balanced_accuracy" in overall and math.isfinite(overall["balanced_accuracy"].value):
        told.append(
            f"Averaged over classes, each counting the same, {percent(overall['balanced_accuracy'])} are answered right."
        )
    if "quadratic_kappa" in overall:
        told.append(f"Agreement of the grades beyond chance (quadratic kappa) is {overall['quadratic_kappa']}.")
    return told


def cautions(evidence: Evidence, *, synthetic: bool = False) -> list[str]:
    """What a careful reader must know before using the numbers."""
    counts, settings = evidence.counts, evidence.settings
    out = []
    if synthetic:
        out.append("The images are synthetic phantoms; the figures say nothing about patients.")
    if settings.split in ("train", "val", "validation"):
        out.append(
            f"These are {'training' if settings.split == 'train' else 'validation'} cases: the model was "
            + ("trained on them" if settings.split == "train" else "calibrated and its operating point chosen on them")
            + ", so the figures are more favourable than on new cases."
        )
    rare = [
        f"{name} ({round(values['prevalence'].value * values['prevalence'].n):d})"
        for name, values in evidence.classes.items()
        if "prevalence" in values
        and values["prevalence"].n
        and values["prevalence"].value * values["prevalence"].n < 20
    ]
    if rare:
        out.append("Classes with fewer than 20 cases, whose figures are uncertain: " + ", ".join(rare) + ".")
    if evidence.undefined:
        out.append(
            f"{len(evidence.undefined)} measures are not defined for these cases: "
            + ", ".join(evidence.undefined[:8])
            + (", ..." if len(evidence.undefined) > 8 else "")
            + "."
        )
    for key, one, many in (
        (
            "failed",
            "could not be predicted and is not in the figures",
            "could not be predicted and are not in the figures",
        ),
        ("skipped", "could not be read and is not in the figures", "could not be read and are not in the figures"),
        (
            "without_truth",
            "has no known truth and is not in the figures",
            "have no known truth and are not in the figures",
        ),
        (
            "abstained",
            "was judged unlike the training data by the model's gate",
            "were judged unlike the training data by the model's gate",
        ),
    ):
        if counts[key]:
            out.append(f"1 case {one}." if counts[key] == 1 else f"{counts[key]:,} cases {many}.")
    found = gaps(evidence)
    for column, name, measure, e in found:
        out.append(
            f"{column} = {name}: {title_of(measure)} {e} lies below that of all cases "
            f"({evidence.overall[measure].value:.3f})."
        )
    if found:
        groups = sum(len(values) for values in evidence.subgroups.values())
        out.append(f"Of {groups} groups that were looked at, some gaps may be chance.")
    if counts["patients"] == counts["cases"]:
        out.append("Every case counts as a patient of its own: true if so, else the intervals are too narrow.")
    return out


def gaps(evidence: Evidence) -> list[tuple[str, str, str, Estimate]]:
    """Groups of at least 20 cases whose interval of the main measure excludes the value of all cases."""
    found = []
    for column, groups in evidence.subgroups.items():
        for name, measures in groups.items():
            if name in evidence.groupings[column].small:
                continue
            for measure in ("auc", "balanced_accuracy"):
                e, whole = measures.get(measure), evidence.overall.get(measure)
                if e is None or whole is None or not math.isfinite(e.low + e.high + whole.value):
                    continue
                worse = e.low > whole.value if measure in LOWER_IS_BETTER else e.high < whole.value
                if worse:
                    found.append((column, name, measure, e))
    return found
