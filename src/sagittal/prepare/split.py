"""Which cases teach, which choose, which are kept for the end: patients are never divided."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.case import Case
from sagittal.dataset import Dataset
from sagittal.errors import DataError
from sagittal.prepare.plan import SplitPlan
from sagittal.truth import Boxes, SegmentationSource
from sagittal.types import Array


@dataclass(frozen=True)
class Fold:
    """Case ids that teach one model, and those that judge it."""

    train: tuple[str, ...]
    val: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """The folds of a run and the cases that no model of it may see."""

    folds: tuple[Fold, ...]
    test: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write as JSON."""
        values = {"folds": [{"train": f.train, "val": f.val} for f in self.folds], "test": self.test}
        path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Splits:
        """Read what :meth:`save` wrote."""
        values: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        folds = tuple(Fold(tuple(f["train"]), tuple(f["val"])) for f in values["folds"])
        return cls(folds, tuple(values["test"]))


def make_splits(dataset: Dataset, plan: SplitPlan, seed: int) -> Splits:
    """Divide the labelled cases, by patient and with like class frequencies on each side.

    Given splits are kept: with one fold, train teaches and val judges; with several, both are pooled and divided
    anew, and test stays apart. Without given splits, `plan.test_fraction` of the patients is held out first.

    Raises
    ------
    DataError
        If there are too few patients, or one patient is on both sides of a given test split.
    """
    cases = list(dataset.labelled())
    given = plan.source == "given"
    test = [case for case in cases if case.split == "test"] if given else []
    rest = [case for case in cases if case.split != "test"] if given else cases
    if not given and plan.test_fraction > 0:
        rest, test = _part(rest, round(1 / plan.test_fraction), seed)
    _refuse_leakage(rest, test, dataset.name)
    if plan.folds > 1:
        pairs = _grouped_folds(rest, plan.folds, seed + 1)
    else:
        train = [case for case in rest if case.split != "val"] if given else rest
        val = [case for case in rest if case.split == "val"] if given else []
        if not val:
            train, val = _part(train, max(2, round(1 / plan.val_fraction)), seed + 1)
        pairs = [(train, val)]
    return Splits(tuple(Fold(_ids(train), _ids(val)) for train, val in pairs), _ids(test))


def _refuse_leakage(rest: Sequence[Case], test: Sequence[Case], name: str) -> None:
    both = {case.patient for case in rest} & {case.patient for case in test}
    if both:
        first = next(case.id for case in test if case.patient in both)
        raise DataError(
            f"{name}: {len(both)} patients stand both in the test split and outside it (the first in case {first}); "
            "its figures would be too good. Mend the split column, or leave it out so that Sagittal divides by patient."
        )


def _part(cases: Sequence[Case], parts: int, seed: int) -> tuple[list[Case], list[Case]]:
    """All but one of `parts` like parts, and that one."""
    folds = _grouped_folds(cases, parts, seed)
    return folds[0]


def _grouped_folds(cases: Sequence[Case], folds: int, seed: int) -> list[tuple[list[Case], list[Case]]]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    patients = np.array([case.patient for case in cases])
    number = len(set(patients.tolist()))
    folds = min(folds, number)
    if folds < 2:
        raise DataError(
            f"{number} patient(s) cannot be divided into a part that teaches and one that judges; at least 2 are needed."
        )
    strata = _strata(cases, folds)
    blank = np.zeros(len(cases))
    if number == len(cases):  # the grouped search costs seconds for thousands of groups, and finds the same
        pairs = StratifiedKFold(folds, shuffle=True, random_state=seed).split(blank, strata)
    else:
        pairs = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(blank, strata, patients)
    return [([cases[n] for n in train], [cases[n] for n in val]) for train, val in pairs]


def _strata(cases: Sequence[Case], folds: int) -> Array:
    """A class a case; classes with fewer cases than folds are pooled, so that none is asked to be everywhere."""
    held = [_holds(case) for case in cases]
    labels = sorted(set().union(*held))
    truth = np.array([[label in each for label in labels] for each in held], dtype=np.float64).reshape(len(cases), -1)
    if not labels:
        return np.zeros(len(cases), dtype=np.intp)
    rarity = 1 / np.maximum(truth.sum(axis=0), 1)
    strata = np.where(truth.any(axis=1), (truth * rarity).argmax(axis=1), -1)
    values, counts = np.unique(strata, return_counts=True)
    rare = values[counts < folds]
    strata = np.where(np.isin(strata, rare), -2, strata)
    if 0 < (strata == -2).sum() < folds:
        strata[strata == -2] = values[counts.argmax()]
    return strata


def _holds(case: Case) -> set[int | str]:
    """What a case is known to have without reading its pixels: classes, kinds of objects, or outlined structures."""
    if case.scores is not None:
        return set(np.flatnonzero(np.nan_to_num(case.scores.values) > 0).tolist())
    if isinstance(case.truth, Boxes):
        return set(case.truth.classes.tolist())
    return set(case.truth.structures) if isinstance(case.truth, SegmentationSource) else set()


def _ids(cases: Sequence[Case]) -> tuple[str, ...]:
    return tuple(case.id for case in cases)
