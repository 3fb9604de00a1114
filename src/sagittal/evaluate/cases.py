"""Which cases of a data set judge a model, and the evidence of answers that are already there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sagittal.case import Case
from sagittal.dataset import SPLITS, Dataset
from sagittal.errors import ConfigError, SagittalError, nearest
from sagittal.evaluate.evidence import Evidence, Predicts, settings_of
from sagittal.prediction import Failure, Prediction
from sagittal.prepare.split import Splits


def held_out(dataset: Dataset, split: str | None, *, splits_file: Path | None = None) -> tuple[Dataset, str]:
    """The part of a data set that is asked for, and its name.

    Parameters
    ----------
    dataset : Dataset
    split : {"train", "val", "test", "all"}, optional
        Where not given: the test split where there is one, all cases where there are no splits at all.
    splits_file : Path, optional
        The splits that a run made, used where the source gives none and the cases are the same.

    Raises
    ------
    ConfigError
        If there are splits but no test, and none is named.
    DataError
        If there is no such split.
    """
    if split is not None and split not in (*SPLITS, "all"):
        raise ConfigError(f"--split {split}: is not a split. {nearest(split, (*SPLITS, 'all'))}")
    if not dataset.splits and splits_file is not None and splits_file.is_file():
        dataset = with_splits(dataset, Splits.load(splits_file))
    if split == "all" or (split is None and not dataset.splits):
        return dataset, "all"
    if split is None and "test" not in dataset.splits:
        raise ConfigError(
            f"{dataset.name} has {', '.join(dataset.splits)} cases and no test cases. Say which: --split val or --split all."
        )
    name = split or "test"
    return dataset.split(name), name


def with_splits(dataset: Dataset, splits: Splits) -> Dataset:
    """The data set with the splits that a run made; unchanged where none of its cases were in that run.

    With one fold, its val cases chose and calibrated; with several, every case outside test taught some member.
    """
    place = dict.fromkeys(splits.test, "test")
    for fold in splits.folds:
        place.update(dict.fromkeys(fold.train, "train"))
    for fold in splits.folds:
        place.update(dict.fromkeys(fold.val, "val" if len(splits.folds) == 1 else "train"))
    if not any(case.id in place for case in dataset):
        return dataset
    return replace(dataset, cases=tuple(replace(case, split=place.get(case.id)) for case in dataset))


def evidence_of(
    answers: Iterable[tuple[Prediction, Case]], model: Predicts, *, data: str, split: str, seed: int = 0
) -> Evidence:
    """Evidence of predictions that were made elsewhere, such as those of cross-validation.

    Parameters
    ----------
    answers : iterable of (Prediction, Case)
        Gone through once; nothing of an answer is kept but its row.
    model : Model or PlaceModel
    data, split : str
        What the cases are, for the report.
    seed : int
        Of the bootstrap.
    """
    settings = settings_of(model, data=data, split=split, seed=seed)
    rows, failures = [], []
    for prediction, case in answers:
        try:
            rows.append(model.task.score(prediction, case))
        except SagittalError as error:
            failures.append(Failure(case.id, str(error), type(error).__name__))
    return Evidence.from_rows(rows, model.task, settings, failures=failures)
