"""Findings in plain words, for readers who are not statisticians."""

from __future__ import annotations

import math

from sagittal.evaluate.evidence import Evidence
from sagittal.labels import PLACE_KINDS
from sagittal.metrics.intervals import Estimate
from sagittal.report.kinds import telling_of
from sagittal.report.measure_names import LOWER_IS_BETTER, percent, title_of
from sagittal.report.place_words import place_cautions, place_headline


def headline(evidence: Evidence) -> list[str]:
    """What was found, in two to four sentences, the most telling first."""
    overall, counts, settings = evidence.overall, evidence.counts, evidence.settings
    scheme = settings.scheme
    if scheme is not None and scheme.kind in PLACE_KINDS:
        return place_headline(evidence)
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
    place = settings.scheme is not None and settings.scheme.kind in PLACE_KINDS
    out += place_cautions(evidence) if place else _class_cautions(evidence)
    for key, one, many in (
        (
            "failed",
            "could not be measured and is not in the figures",
            "could not be measured and are not in the figures",
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


def _class_cautions(evidence: Evidence) -> list[str]:
    out = []
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
    return out


def gaps(evidence: Evidence) -> list[tuple[str, str, str, Estimate]]:
    """Groups of at least 20 cases whose interval of the main measure excludes the value of all cases."""
    found = []
    for column, groups in evidence.subgroups.items():
        for name, measures in groups.items():
            if name in evidence.groupings[column].small:
                continue
            for measure in telling_of(evidence).main:
                e, whole = measures.get(measure), evidence.overall.get(measure)
                if e is None or whole is None or not math.isfinite(e.low + e.high + whole.value):
                    continue
                worse = e.low > whole.value if measure in LOWER_IS_BETTER else e.high < whole.value
                if worse:
                    found.append((column, name, measure, e))
    return found
