"""Patients are never divided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagittal.dataset import Dataset
from sagittal.errors import DataError
from sagittal.prepare.plan import SplitPlan
from sagittal.prepare.split import Splits, make_splits


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(patients=st.integers(8, 40), folds=st.integers(1, 5), seed=st.integers(0, 5))
def test_every_patient_is_on_one_side(squares: Callable[..., Dataset], patients: int, folds: int, seed: int) -> None:
    dataset = squares(cases=80, patients=patients)
    splits = make_splits(dataset, SplitPlan(folds=folds), seed)
    patient = {case.id: case.patient for case in dataset}
    for fold in splits.folds:
        sides = [{patient[name] for name in side} for side in (fold.train, fold.val, splits.test)]
        assert sum(map(len, sides)) == len(set.union(*sides))
        assert {*fold.train, *fold.val, *splits.test} == set(patient)
    if folds > 1:
        judged = [name for fold in splits.folds for name in fold.val]
        assert sorted(judged) == sorted(set(patient) - set(splits.test))


def test_given_splits_are_kept(squares: Callable[..., Dataset]) -> None:
    dataset = squares(splits=True)
    one = make_splits(dataset, SplitPlan(source="given"), 0)
    assert set(one.folds[0].train) == {case.id for case in dataset if case.split == "train"}
    assert set(one.folds[0].val) == {case.id for case in dataset if case.split == "val"}
    five = make_splits(dataset, SplitPlan(source="given", folds=5), 0)
    assert set(one.test) == set(five.test) == {case.id for case in dataset if case.split == "test"}
    assert not {name for fold in five.folds for name in (*fold.train, *fold.val)} & set(five.test)


def test_classes_are_alike_in_each_part(squares: Callable[..., Dataset]) -> None:
    splits = make_splits(squares(cases=100), SplitPlan(folds=5), 3)
    odd = [sum(int(name[-1]) % 2 for name in fold.val) / len(fold.val) for fold in splits.folds]
    assert all(0.4 <= share <= 0.6 for share in odd)


def test_a_leaking_test_split_is_refused(squares: Callable[..., Dataset]) -> None:
    dataset = squares(cases=60, patients=7, splits=True)
    with pytest.raises(DataError, match="7 patients stand both in the test split and outside it"):
        make_splits(dataset, SplitPlan(source="given"), 0)


def test_the_same_seed_divides_alike_and_the_file_keeps_it(squares: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = squares(cases=50, patients=20)
    first, again, other = (make_splits(dataset, SplitPlan(folds=3), seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    first.save(tmp_path / "splits.json")
    assert Splits.load(tmp_path / "splits.json") == first


def test_a_rare_class_is_no_obstacle(squares: Callable[..., Dataset]) -> None:
    dataset = squares(cases=40)
    rare = tuple(
        replace(case, truth=dataset.scheme.truth("bright" if n == 3 else "dark"))  # type: ignore[union-attr]
        for n, case in enumerate(dataset)
    )
    assert len(make_splits(replace(dataset, cases=rare), SplitPlan(folds=5), 0).folds) == 5
