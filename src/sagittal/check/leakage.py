"""Does anything of the test set stand in the training set?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from sagittal.check.findings import Finding, some
from sagittal.dataset import Dataset


def check_patients(dataset: Dataset) -> Iterator[Finding]:
    """Patients with cases in more than one split."""
    splits: dict[str, set[str]] = defaultdict(set)
    for case in dataset:
        if case.split is not None:
            splits[case.patient].add(case.split)
    leaking = {patient for patient, names in splits.items() if len(names) > 1}
    if leaking:
        cases = tuple(case.id for case in dataset if case.patient in leaking)
        yield Finding(
            "error",
            "patient-in-two-splits",
            f"{len(leaking)} patients have cases in more than one split ({some(cases)}): the test would be of patients "
            "that were trained on. Move all cases of a patient to one split.",
            cases,
        )


def check_duplicates(dataset: Dataset, hashes: Mapping[str, str]) -> Iterator[Finding]:
    """Cases with exactly equal pixels.

    Parameters
    ----------
    hashes : mapping of str to str
        Case id -> hash of its pixels, for the cases that were read.
    """
    same: dict[str, list[str]] = defaultdict(list)
    for case in dataset:
        if case.id in hashes:
            same[hashes[case.id]].append(case.id)
    split = {case.id: case.split for case in dataset}
    patient = {case.id: case.patient for case in dataset}
    groups = [ids for ids in same.values() if len(ids) > 1]
    across = [case for ids in groups if len({split[i] for i in ids}) > 1 for case in ids]
    if across:
        yield Finding(
            "warning",
            "pixels-in-two-splits",
            f"{len(across)} cases have exactly the pixels of a case in another split: {some(across)}. Scores on the test "
            "set would be too good; remove the copies.",
            tuple(across),
        )
    strangers = [c for ids in groups if len({patient[i] for i in ids}) > 1 for c in ids if c not in set(across)]
    if strangers:
        yield Finding(
            "warning",
            "pixels-of-two-patients",
            f"{len(strangers)} cases of different patients have exactly equal pixels: {some(strangers)}. A random split "
            "could put copies on both sides; remove them, or give them the same patient.",
            tuple(strangers),
        )
