"""Every measure by its name for people and its meaning, and numbers as tables show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sagittal.metrics.intervals import Estimate
from sagittal.tasks import detect_measures, measures, segment_measures

#: Measures of which less is better.
LOWER_IS_BETTER = measures.LOWER_IS_BETTER | segment_measures.LOWER_IS_BETTER | detect_measures.LOWER_IS_BETTER

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
    "dice": ("Dice", "overlap of answer and truth, 0 to 1; mean over cases"),
    "dice_median": ("Dice, median", "half of the cases are better"),
    "surface_dice": ("Surface Dice", "share of both surfaces that lies within the tolerance of the other"),
    "hd95_median": (
        "HD95, median",
        "distance within which 95 % of the surfaces lie, in half of the cases; mm or pixels",
    ),
    "hd95": ("HD95, mean", "mean of the finite ones"),
    "hd_median": ("HD, median", "largest distance between the surfaces"),
    "asd_median": (
        "Surface distance, median",
        "average surface distance, in half of the cases; mm or pixels",
    ),
    "iou": ("IoU", "common voxels over all that either marks"),
    "cldice": ("clDice", "overlap of the centre lines of thin structures"),
    "volume_error_percent": ("Volume error, %", "mean size of the error of the volume (area); lower is better"),
    "expected_dice_correlation": (
        "Expected Dice, correlation",
        "of the Dice that the model expects and the true one, within structures",
    ),
    "expected_dice_error": (
        "Expected Dice, error",
        "mean gap between the Dice that the model expects and the true one",
    ),
    "lesion_sensitivity": ("Lesions found", "share of all true lesions"),
    "lesion_precision": ("Lesion precision", "share of the found pieces that are lesions"),
    "lesion_f1": ("Lesion F1", "harmonic mean of both"),
    "lesion_dice": ("Lesion Dice", "mean Dice of lesions; missed and invented ones count as 0"),
    "lesion_false_per_case": ("False lesions a case", "pieces that are none; lower is better"),
    "missed": ("Missed", "share of the cases with the structure in which nothing of it is found"),
    "invented": ("Invented", "share of the cases without the structure in which some is found"),
    "cases_unknown": ("Unknown", "cases in which nobody looked for the structure"),
    "cases_both_empty": ("Neither there nor found", "cases that no overlap is defined for"),
    "cases_missed": ("Missed", "cases with the structure in which nothing of it is found; Dice 0"),
    "cases_invented": ("Invented", "cases without the structure in which some is found; Dice 0"),
    "cases_infinite": ("Without a distance", "cases in which one of the masks is empty; HD95 infinite"),
    "dice_of_accepted": ("Dice of accepted", "mean Dice of the studies that the gate let pass"),
    "ap50": ("AP at IoU .5", "average precision, a box counts from half an overlap; mean over classes"),
    "ap": ("AP at IoU .5 to .95", "mean over ten overlaps, as COCO has it"),
    "ap75": ("AP at IoU .75", "for tight boxes"),
    "ap30": ("AP at IoU .3", "for loose boxes"),
    "ap10": ("AP at IoU .1", "for very loose boxes, as is usual of nodules"),
    "ap50_small": ("AP at IoU .5, small", "the smallest third of the objects"),
    "ap50_medium": ("AP at IoU .5, medium", "the middle third"),
    "ap50_large": ("AP at IoU .5, large", "the largest third"),
    "sensitivity_small": ("Sensitivity, small", "the smallest third of the objects"),
    "sensitivity_medium": ("Sensitivity, medium", "the middle third"),
    "sensitivity_large": ("Sensitivity, large", "the largest third"),
    "small_below": ("Small: shorter than", "edge of a cube (square) of the same volume (area); mm or voxels"),
    "large_from": ("Large: from", "likewise"),
    "precision": ("Precision", "share of what is found that is right"),
    "false_positives_an_image": ("False positives an image", "boxes that enclose no object; lower is better"),
    "cpm": ("CPM", "mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives an image"),
}
MEASURES |= {
    f"sensitivity_at_{rate}": (
        f"Sensitivity at {rate} FP",
        f"objects found at {rate} false positive{'' if rate == '1' else 's'} an image",
    )
    for rate in ("0.125", "0.25", "0.5", "1", "2", "4", "8")
}

#: What measures of the same name mean of masks and of boxes.
PLACE_MEASURES: dict[str, dict[str, tuple[str, str]]] = {
    "structures": {
        "sensitivity": ("Sensitivity", "share of the true voxels that are marked"),
        "precision": ("Precision", "share of the marked voxels that are right"),
    },
    "objects": {
        "sensitivity": ("Sensitivity", "share of the objects that are found"),
        "precision": ("Precision", "share of the boxes that enclose an object"),
        "f1": ("F1", "harmonic mean of both"),
        "auc": ("AUC of images", "chance that an image with an object has a higher score than one without"),
        "ece": ("Calibration error (ECE)", "mean gap between a box's score and how often it is right; lower is better"),
    },
}

#: Numbers of cases, which have no decimals.
COUNTS = frozenset(segment_measures.COUNTS)


@dataclass(frozen=True)
class Line:
    """One row of a table of measures."""

    name: str
    meaning: str
    estimate: Estimate
    baseline: Estimate | None
    count: bool = False


def title_of(name: str, kind: str = "") -> str:
    """A measure's name for people, of a kind of question."""
    return _names(name, kind)[0]


def _names(name: str, kind: str) -> tuple[str, str]:
    own = PLACE_MEASURES.get(kind, {})
    found = own.get(name) or MEASURES.get(name)
    if found is not None:
        return found
    measure, _, rest = name.partition("_")  # that of one class, as training writes it
    return (f"{MEASURES[measure][0]}: {rest}" if measure in MEASURES and rest else name.replace("_", " ")), ""


def lines(measures: Mapping[str, Estimate], kind: str = "") -> list[Line]:
    """Each measure of a kind of question with its baseline, in the order in which they came."""
    return [
        Line(*_names(name, kind), estimate, measures.get(f"baseline.{name}"), name in COUNTS)
        for name, estimate in measures.items()
        if not name.startswith("baseline.")
    ]


def number(value: float, *, digits: int = 3) -> str:
    """A number for a table; ``not defined`` where there is none.

    >>> number(0.12345), number(float("nan")), number(float("inf"))
    ('0.123', 'not defined', '∞')
    """
    if math.isnan(value):
        return "not defined"
    if math.isinf(value):
        return "\u221e" if value > 0 else "\u2212\u221e"
    return f"{value:.{digits}f}".replace("-", "\u2212")


def interval(estimate: Estimate, *, digits: int = 3) -> str:
    """The limits in words, empty where there are none.

    >>> interval(Estimate(0.9, 0.8123, 0.95, 10))
    '0.812 to 0.950'
    """
    if math.isnan(estimate.low) or math.isnan(estimate.high):
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
