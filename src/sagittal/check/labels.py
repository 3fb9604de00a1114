"""Are there labels, of enough classes, in enough patients, without contradiction?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from sagittal.case import Case
from sagittal.check.findings import Finding, some
from sagittal.dataset import Dataset
from sagittal.labels import CLASS_KINDS, LabelScheme

#: Below this many cases of a class, its sensitivity has an interval of more than 0.4 in width.
FEW = 20


def check_labels(dataset: Dataset, *, folds: int = 5) -> Iterator[Finding]:
    """Findings about the truth of a data set.

    Parameters
    ----------
    folds : int
        Into how many parts the patients of each class must be divisible.
    """
    labelled = [case for case in dataset if case.truth is not None and case.truth.known]
    if dataset.scheme is None or not labelled:
        yield Finding(
            "error",
            "no-labels",
            f"none of the {len(dataset)} cases has a label. Name the column with --target, give a table with --labels, or "
            "sort the images into a folder for each class.",
        )
        return
    unknown = tuple(case.id for case in dataset if case.truth is None or not case.truth.known)
    if unknown:
        yield Finding(
            "note",
            "unknown-labels",
            f"{len(unknown)} of {len(dataset)} cases have no known label and are left out of training: {some(unknown)}.",
            unknown,
        )
    if dataset.scheme.kind in CLASS_KINDS:
        yield from _classes(dataset.scheme, labelled, folds)
    yield from _patients(labelled, folds, has_splits=len(dataset.splits) > 1)
    yield from _conflicts(labelled)


def _classes(scheme: LabelScheme, labelled: list[Case], folds: int) -> Iterator[Finding]:
    values = np.array([case.scores.values for case in labelled if case.scores is not None])  # (N, C)
    positive, known = np.nansum(values, axis=0), np.isfinite(values).sum(axis=0)
    counts = {name: int(n) for name, n in zip(scheme.classes, positive, strict=True)}
    if scheme.exclusive and sum(n > 0 for n in counts.values()) < 2:
        only = max(counts, key=lambda name: counts[name])
        yield Finding(
            "error",
            "one-class",
            f"all {len(labelled)} labelled cases are '{only}'; at least two classes are needed to learn from. Add cases "
            "of the other classes, or choose another target.",
        )
        return
    if not scheme.exclusive:
        flat = [name for name, n, k in zip(scheme.classes, positive, known, strict=True) if n in {0, k}]
        if flat:
            yield Finding(
                "error" if len(flat) == len(counts) else "warning",
                "one-value",
                f"{some(flat)}: only one of yes and no occurs, so nothing can be learned about it.",
            )
    for name, count in counts.items():
        if scheme.exclusive and count == 0:
            yield Finding(
                "warning", "empty-class", f"class '{name}' has no case; it can be neither learned nor judged."
            )
        elif 0 < count < folds:
            yield Finding(
                "warning",
                "class-below-folds",
                f"class '{name}' has {count} cases, fewer than the {folds} parts that the data are split into; some "
                "parts will hold none of it. Add cases, or merge it with a neighbouring class.",
            )
        elif 0 < count < FEW:
            yield Finding(
                "warning", "small-class", f"class '{name}' has only {count} cases; its figures will be very uncertain."
            )
    most = max(counts.values())
    least = min((n for n in counts.values() if n), default=most)
    if scheme.exclusive and most > 10 * least:
        yield Finding(
            "note",
            "imbalance",
            f"the largest class has {most} cases, the smallest {least}: accuracy alone would mislead; balanced accuracy "
            "and the majority baseline are reported beside it.",
        )


def _patients(labelled: list[Case], folds: int, *, has_splits: bool) -> Iterator[Finding]:
    patients = {case.patient for case in labelled}
    if len(patients) == 1 and len(labelled) > 1:
        yield Finding(
            "error",
            "one-patient",
            f"all {len(labelled)} labelled cases are of one patient; nothing can be said about others. Check the column "
            "of patients (--patient-column), or add patients.",
        )
    elif len(patients) < folds and not has_splits:
        yield Finding(
            "warning",
            "few-patients",
            f"the labelled cases are of {len(patients)} patients, fewer than the {folds} parts they are split into.",
        )


def _conflicts(labelled: list[Case]) -> Iterator[Finding]:
    """The same image, by its place on disk, with different answers."""
    seen: dict[object, list[Case]] = defaultdict(list)
    for case in labelled:
        places = tuple((s.files, s.member) for s in case.images.values())
        if all(files or member for files, member in places):  # else it was made in memory, and has no place
            seen[places].append(case)
    conflicting: list[str] = []
    doubled: list[str] = []
    for same in seen.values():
        if len(same) > 1:
            values = [case.scores.values for case in same if case.scores is not None]
            equal = all(np.array_equal(v, values[0], equal_nan=True) for v in values)  # also where truth has a place
            (doubled if equal else conflicting).extend(case.id for case in same)
    if conflicting:
        yield Finding(
            "error",
            "conflicting-labels",
            f"{len(conflicting)} cases have the same image and different labels: {some(conflicting)}. Decide which holds.",
            tuple(conflicting),
        )
    if doubled:
        yield Finding(
            "warning",
            "doubled-cases",
            f"{len(doubled)} cases name the same image with the same label: {some(doubled)}. Each should stand once.",
            tuple(doubled),
        )
