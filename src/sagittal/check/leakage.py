"""Does anything of the test set stand in the training set, as far as that can be told without reading pixels?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from sagittal.case import Case
from sagittal.check.findings import Finding, Severity, number_of, some
from sagittal.dataset import Dataset

#: Bytes of files that are compared in full; beyond it only their sizes, starts and ends are.
_MOST_BYTES = 2**31
_END = 65_536


def leak_severity(dataset: Dataset) -> Severity:
    """How bad a leak is: an error, but a warning where the splits are published ones.

    The official splits of MedMNIST are kept as they are, leaks included, so that figures can be compared with others'.
    """
    return "warning" if dataset.layout == "medmnist" or dataset.name.startswith("medmnist:") else "error"


def split_by(case: Case, other: Case) -> bool:
    """Whether two cases lie in two splits; a case without a split lies in none."""
    return case.split is not None and other.split is not None and case.split != other.split


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
            f"{number_of(len(leaking), 'patient has', 'patients have')} cases in more than one split ({some(cases)}): the test would be of patients "
            "that were trained on. Move all cases of a patient to one split.",
            cases,
        )


def check_files(dataset: Dataset) -> Iterator[Finding]:
    """Files of one split that have a copy, byte by byte, in another: cheap, because most files differ in size."""
    if len(dataset.splits) < 2:
        return
    pairs = tuple(
        (a.id, b.id)
        for group in _equal_files(dataset)
        for n, a in enumerate(group[:50])
        for b in group[n + 1 : 50]
        if split_by(a, b)
    )
    if pairs:
        cases = tuple(dict.fromkeys(case for pair in pairs for case in pair))
        yield Finding(
            leak_severity(dataset),
            "file-in-two-splits",
            f"{number_of(len(pairs), 'pair')} of cases in two splits have the same files, byte by byte ({' = '.join(pairs[0])}): scores on the held-out "
            "split would be too good. Remove the copies from training.",
            cases,
            pairs,
        )


def _equal_files(dataset: Dataset) -> list[list[Case]]:
    by_size: dict[tuple[int, ...], list[tuple[Case, tuple[Path, ...]]]] = defaultdict(list)
    for case in dataset:
        for source in case.images.values():
            if not source.member and source.files and case.split is not None:
                try:
                    sizes = tuple(sorted(path.stat().st_size for path in source.files))
                except OSError:  # missing: told when it is read
                    continue
                by_size[sizes].append((case, source.files))
    alike = {sizes: found for sizes, found in by_size.items() if len({case.split for case, _ in found}) > 1}
    whole = sum(sum(sizes) * len(found) for sizes, found in alike.items()) <= _MOST_BYTES
    by_hash: dict[tuple[str, ...], list[Case]] = defaultdict(list)
    for found in alike.values():
        for case, files in found:
            try:
                key = tuple(sorted(_hash(path, whole) for path in files))
            except OSError:
                continue
            if case not in by_hash[key]:
                by_hash[key].append(case)
    return [cases for cases in by_hash.values() if len(cases) > 1]


def _hash(path: Path, whole: bool) -> str:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        if whole:
            while part := file.read(2**20):
                digest.update(part)
        else:
            size = path.stat().st_size
            digest.update(f"{size} ".encode() + file.read(_END))
            file.seek(max(0, size - _END))
            digest.update(file.read(_END))
    return digest.hexdigest()
