"""What masks and boxes are worth, in plain words."""

from __future__ import annotations

import math

import numpy as np

from sagittal.evaluate.evidence import Evidence
from sagittal.metrics.intervals import Estimate
from sagittal.report.measure_names import percent, title_of

#: Of a class with fewer cases (objects) than this the figures are uncertain.
FEW = 20


def place_headline(evidence: Evidence) -> list[str]:
    """What was found of masks or boxes, in two to five sentences, the most telling first."""
    scheme = evidence.settings.scheme
    return _of_masks(evidence) if scheme is not None and scheme.kind == "structures" else _of_boxes(evidence)


def _cases(evidence: Evidence) -> str:
    return f"{evidence.counts['with_truth']:,} cases of {evidence.counts['patients']:,} patients"


def _limits(evidence: Evidence, e: Estimate) -> str:
    if math.isnan(e.low) or math.isnan(e.high):
        return ""
    return f" ({100 * evidence.settings.confidence:g}\u00a0% interval {e.low:.2f} to {e.high:.2f})"


def _known(e: Estimate | None) -> bool:
    return e is not None and math.isfinite(e.value)


def _of_masks(evidence: Evidence) -> list[str]:
    overall, names = evidence.overall, list(evidence.classes)
    dice = overall.get("dice", Estimate(math.nan))
    if not math.isfinite(dice.value):
        return [f"{_cases(evidence)} were evaluated; no Dice is defined for them."]
    of = f"mean Dice over {len(names)} structures" if len(names) > 1 else f"mean Dice of '{names[0]}'"
    told = [f"On {_cases(evidence)}, the {of} is {dice.value:.2f}{_limits(evidence, dice)}."]
    base = overall.get("baseline.dice")
    if base is not None:
        told[0] += f" Marking every voxel would give {base.value:.2f}, marking none 0."
    means = {n: values["dice"].value for n, values in evidence.classes.items() if _known(values.get("dice"))}
    if len(means) > 1:
        best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        told.append(f"It is highest for '{best}' ({means[best]:.2f}) and lowest for '{worst}' ({means[worst]:.2f}).")
    near, far = overall.get("surface_dice"), overall.get("hd95_median")
    unit = unit_of(evidence)
    if near is not None and math.isfinite(near.value) and far is not None:
        half = (
            f"in half of the cases 95\u00a0% lies within {far.value:.1f} {unit}"
            if math.isfinite(far.value)
            else "in half of the cases one of the masks is empty, so that no distance exists"
        )
        told.append(
            f"Within {evidence.settings.tolerance_mm:g} {unit if evidence.settings.tolerance_mm != 1 else unit.rstrip('s')} of each other lie {percent(near)} of the surfaces; {half}."
        )
    missed = {
        name: values["missed"]
        for name, values in evidence.classes.items()
        if _known(values.get("missed")) and values["missed"].value > 0
    }
    if missed:
        name = max(missed, key=lambda n: missed[n].value)
        told.append(
            f"Nothing at all is found of '{name}' in {percent(missed[name])} of the {missed[name].n:,} cases that have it."
        )
    gap, constant = overall.get("expected_dice_error"), overall.get("baseline.expected_dice_error")
    if gap is not None and constant is not None and math.isfinite(gap.value):
        told.append(
            f"The Dice that the model expects of itself is {gap.value:.3f} off on average; stating the same Dice in every "
            f"case would be {constant.value:.3f} off."
        )
    return told


def _of_boxes(evidence: Evidence) -> list[str]:
    overall, volume = evidence.overall, evidence.settings.dimensions == 3
    cases = _cases(evidence)
    first = ("cpm", "ap50") if volume else ("ap50", "cpm")
    name = next((n for n in first if _known(overall.get(n))), None)
    if name is None:
        return [f"{cases} were evaluated; they hold no object by which the model could be judged."]
    main = overall[name]
    objects = f"{main.n:,} objects"
    if name == "cpm":
        one = overall["sensitivity_at_1"]
        told = [
            f"On {cases} with {objects}, {percent(one)} are found at one false positive a scan; the mean over 1/8 to 8 "
            f"(CPM) is {main.value:.2f}{_limits(evidence, main)}."
        ]
    else:
        over = ", mean over classes," if len(evidence.classes) > 1 else ""
        told = [
            f"On {cases} with {objects}, the average precision at an IoU of 0.5{over} is "
            f"{main.value:.2f}{_limits(evidence, main)}; a model that finds nothing has 0."
        ]
    hit, rate = overall.get("sensitivity"), overall.get("false_positives_an_image")
    if hit is not None and rate is not None and math.isfinite(hit.value + rate.value):
        told.append(
            f"At the operating point '{evidence.settings.operating_point}' it finds {percent(hit)} of the objects with "
            f"{rate.value:.2f} false boxes an image."
        )
    means = {n: values[name].value for n, values in evidence.classes.items() if _known(values.get(name))}
    if len(means) > 1:
        best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        told.append(
            f"By class, {title_of(name)} is highest for '{best}' ({means[best]:.2f}) and lowest for '{worst}' "
            f"({means[worst]:.2f})."
        )
    return told


def unit_of(evidence: Evidence) -> str:
    """The unit of distances: mm, or pixels where no study says how large its voxels are."""
    rows = evidence.rows
    if "unit" in rows and len(rows) and not (rows["unit"] == "mm").any():
        return "pixels"
    return "mm"


def place_cautions(evidence: Evidence) -> list[str]:
    """What a careful reader must know before using figures of masks or boxes."""
    out, settings, rows = [], evidence.settings, evidence.rows
    kind = settings.scheme.kind if settings.scheme is not None else ""
    if settings.unlabelled:
        out.append(
            f"These data do not know {', '.join(settings.unlabelled)}; nothing is said of what the model does there."
        )
    few = []
    for name, values in evidence.classes.items():
        if name in settings.unlabelled:
            continue
        n = _present(evidence, name) if kind == "structures" else values.get("cpm", Estimate(math.nan)).n
        if n < FEW:
            few.append(f"{name} ({n})")
    if few:
        what = (
            "Structures that fewer than 20 cases have" if kind == "structures" else "Classes with fewer than 20 objects"
        )
        out.append(f"{what}, whose figures are uncertain: {', '.join(few)}.")
    if kind == "structures" and len(rows):
        units = set(rows["unit"]) if "unit" in rows else {"mm"}
        if "px" in units:
            some = "some of the cases do" if len(units) > 1 else "the cases do"
            left = "; their distances are left out" if len(units) > 1 else ": distances and the tolerance are in pixels"
            out.append(f"{some[0].upper()}{some[1:]} not say how large their voxels are{left}.")
        far = sum(
            int(values["cases_infinite"].value) for values in evidence.classes.values() if "cases_infinite" in values
        )
        if far:
            out.append(
                f"In {far:,} cases of a structure one of truth and answer is empty: their Dice is 0, their distance infinite."
            )
    if kind == "objects" and "left_out" in rows and int(rows["left_out"].sum()):
        out.append(f"{int(rows['left_out'].sum()):,} true boxes enclose nothing of their image and are left out.")
    return out


def _present(evidence: Evidence, name: str) -> int:
    column = evidence.rows.get(f"voxels_truth_{name}")
    return 0 if column is None else int(np.count_nonzero(column.to_numpy(dtype=np.float64) > 0))
