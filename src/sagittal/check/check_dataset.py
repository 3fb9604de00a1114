"""Everything that is checked about a data set before training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from sagittal.check.findings import Finding, Findings, some
from sagittal.check.labels import check_labels
from sagittal.check.leakage import check_duplicates, check_patients
from sagittal.check.readable import check_readable, look
from sagittal.dataset import Dataset
from sagittal.errors import ConfigError, nearest
from sagittal.progress import Reporter

Pixels = Literal["none", "sample", "all"]
#: Cases that are read for ``pixels="sample"``, spread evenly over the data set.
SAMPLE = 64


def check_dataset(
    dataset: Dataset, *, pixels: Pixels = "sample", folds: int = 5, reporter: Reporter | None = None
) -> Findings:
    """What is wrong with a data set, or doubtful.

    Parameters
    ----------
    dataset : Dataset
    pixels : {"none", "sample", "all"}
        Whether images are read: none, some spread evenly over the data set, or all. Copies of images are only found
        among those that are read.
    folds : int
        Into how many parts the patients of each class must be divisible.
    reporter : Reporter, optional

    Raises
    ------
    ConfigError
        If `pixels` is none of the three words.
    """
    if pixels not in {"none", "sample", "all"}:
        raise ConfigError(f"pixels='{pixels}' is not known. {nearest(pixels, ['none', 'sample', 'all'])}")
    found = [*_skipped(dataset), *_guesses(dataset), *check_labels(dataset, folds=folds), *check_patients(dataset)]
    if pixels != "none" and len(dataset):
        cases = dataset.cases
        if pixels == "sample" and len(cases) > SAMPLE:
            cases = tuple(cases[round(n * (len(cases) - 1) / (SAMPLE - 1))] for n in range(SAMPLE))
        looked = look(cases, reporter)
        found += [*check_readable(dataset, looked), *check_duplicates(dataset, looked.hashes)]
    return Findings(found)


def _skipped(dataset: Dataset) -> Iterator[Finding]:
    reasons: dict[str, list[str]] = {}
    for left in dataset.skipped:
        reasons.setdefault(left.reason, []).append(left.case)
    for reason, cases in reasons.items():
        yield Finding("warning", "skipped", f"{len(cases)} left out: {reason} ({some(cases)}).", tuple(cases))


def _guesses(dataset: Dataset) -> Iterator[Finding]:
    for note in dataset.notes:
        yield Finding("note", "guess", note)
