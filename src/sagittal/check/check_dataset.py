"""Everything that is checked about a data set before training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from sagittal.case import Case
from sagittal.check.duplicates import check_duplicates
from sagittal.check.facts import CaseFacts
from sagittal.check.findings import Finding, Findings, some
from sagittal.check.geometry import check_grids
from sagittal.check.labels import check_labels
from sagittal.check.leakage import check_files, check_patients
from sagittal.check.objects import check_objects
from sagittal.check.outliers import check_outliers
from sagittal.check.readable import check_readable
from sagittal.check.structures import check_structures
from sagittal.check.survey import survey
from sagittal.dataset import Dataset
from sagittal.errors import ConfigError, nearest
from sagittal.progress import Reporter

Pixels = Literal["none", "sample", "all"]
#: Cases that are read for ``pixels="sample"``, spread evenly over the data set.
SAMPLE = 64
#: Cases from which on it is told that they are compared, which takes some seconds.
_MANY = 5000


@dataclass(frozen=True, eq=False)
class Checked:
    """A data set with what was found, and what the look at each case left behind.

    Parameters
    ----------
    dataset : Dataset
    findings : Findings
    facts : mapping of case id to CaseFacts
        Of the cases that were read.
    """

    dataset: Dataset
    findings: Findings
    facts: Mapping[str, CaseFacts]


def check_dataset(
    dataset: Dataset,
    *,
    pixels: Pixels = "sample",
    folds: int = 5,
    near: bool = True,
    workers: int = 0,
    reporter: Reporter | None = None,
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
    near : bool
        Whether copies are also found that were encoded again, resized, mirrored or turned.
    workers : int
        Processes that read; 0 for one a core.
    reporter : Reporter, optional

    Raises
    ------
    ConfigError
        If `pixels` is none of the three words.
    """
    found = look_through(
        dataset, pixels=pixels, folds=folds, near=near, pictures=False, workers=workers, reporter=reporter
    )
    return found.findings


def look_through(
    dataset: Dataset,
    *,
    pixels: Pixels = "all",
    folds: int = 5,
    near: bool = True,
    pictures: bool = True,
    workers: int = 0,
    reporter: Reporter | None = None,
) -> Checked:
    """As :func:`check_dataset`, and the facts and small pictures that a page of findings is made from.

    Raises
    ------
    ConfigError
        If `pixels` is none of the three words.
    """
    if pixels not in {"none", "sample", "all"}:
        raise ConfigError(f"pixels='{pixels}' is not known. {nearest(pixels, ['none', 'sample', 'all'])}")
    cases = _chosen(dataset, pixels)
    facts = survey(cases, pictures=pictures, workers=workers, reporter=reporter) if cases else {}
    found = [
        *_skipped(dataset),
        *_guesses(dataset),
        *check_labels(dataset, folds=folds),
        *check_patients(dataset),
        *check_objects(dataset, facts),
    ]
    if near and reporter is not None and len(facts) > _MANY:
        reporter.say(f"comparing {len(facts):,} cases with each other")
    if not facts:
        found += check_files(dataset)
    else:
        found += [
            *check_readable(facts),
            *check_duplicates(dataset, facts, near=near),
            *check_grids(facts),
            *check_structures(dataset, facts),
            *check_outliers(facts),
        ]
        if len(facts) < len(dataset):
            found += check_files(dataset)
    return Checked(dataset, Findings(found), facts)


def _chosen(dataset: Dataset, pixels: Pixels) -> tuple[Case, ...]:
    cases = dataset.cases
    if pixels == "none":
        return ()
    if pixels == "sample" and len(cases) > SAMPLE:
        return tuple(cases[round(n * (len(cases) - 1) / (SAMPLE - 1))] for n in range(SAMPLE))
    return cases


#: Why a study was left out -> code of the finding; every other is ``skipped``.
_SKIPPED = {"no-truth": "image-without-truth", "no-image": "truth-without-image"}


def _skipped(dataset: Dataset) -> Iterator[Finding]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for left in dataset.skipped:
        reasons.setdefault((left.reason, left.code), []).append(left.case)
    for (reason, why), cases in reasons.items():
        code = _SKIPPED.get(why, "skipped")
        yield Finding("warning", code, f"{len(cases)} left out: {reason} ({some(cases)}).", tuple(cases))


def _guesses(dataset: Dataset) -> Iterator[Finding]:
    for note in dataset.notes:
        yield Finding("note", "guess", note)
