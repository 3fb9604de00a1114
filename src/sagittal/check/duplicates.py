"""Does the same picture stand in a data set twice, exactly or encoded again, resized or mirrored?

How bad it is follows one rule. In two splits it is leakage, an **error** (a warning where the splits are published ones).
Of two patients in one split, or where there are no splits, it is a **warning**: a random split could put the two on both
sides. Of one patient in one split it is a **note**. With different labels the exact copy is an error, for one of the labels
is wrong, and the near one a warning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sagittal.case import Case
from sagittal.check.facts import CaseFacts, ImageFacts
from sagittal.check.findings import Finding, Severity, number_of
from sagittal.check.leakage import leak_severity, split_by
from sagittal.check.near import find_near
from sagittal.dataset import Dataset
from sagittal.labels import ClassScores
from sagittal.truth import Boxes

#: Pairs of one group of equal pictures that are told; a hundred equal frames make five thousand.
_PAIRS_OF_GROUP = 20
#: Series of one patient are alike, before and after contrast agent above all (0.985 in a study of the brain).
_OF_ONE_PATIENT = 0.99


@dataclass(frozen=True)
class Pair:
    """Two cases with the same picture."""

    first: Case
    second: Case
    similarity: float = 1.0
    turned: bool = False
    same_values: bool = False


def check_duplicates(dataset: Dataset, facts: Mapping[str, CaseFacts], *, near: bool = True) -> Iterator[Finding]:
    """Findings about pictures that occur twice, among the cases that were read.

    Parameters
    ----------
    facts : mapping of case id to CaseFacts
    near : bool
        Whether near duplicates are searched.
    """
    groups = _equal(dataset, facts)
    exact = [pair for group in groups for pair in _of_group(group)]
    yield from _judged(dataset, facts, exact, "pixels", "have exactly equal pixels")
    if near:
        nearly = _near(dataset, facts)
        yield from _judged(dataset, facts, nearly, "near-copy", "show the same picture")


def _equal(dataset: Dataset, facts: Mapping[str, CaseFacts]) -> list[list[Case]]:
    """Cases that share an image, each group once; an image without content is no copy of another."""
    by_digest: dict[str, list[Case]] = defaultdict(list)
    for case in dataset:
        for image in _images(facts.get(case.id)):
            if not image.constant and case not in by_digest[image.digest][-1:]:
                by_digest[image.digest].append(case)
    groups = {tuple(case.id for case in cases): cases for cases in by_digest.values() if len(cases) > 1}
    return list(groups.values())


def _of_group(group: list[Case]) -> Iterator[Pair]:
    """Pairs that tell a group: those across splits and labels first."""
    pairs = [Pair(group[0], other) for other in group[1:]]
    across = [Pair(a, b) for n, a in enumerate(group[:50]) for b in group[n + 1 : 50] if split_by(a, b)]
    seen: set[tuple[str, str]] = set()
    for pair in [*across[:_PAIRS_OF_GROUP], *pairs[:_PAIRS_OF_GROUP]]:
        if (key := (pair.first.id, pair.second.id)) not in seen:
            seen.add(key)
            yield pair


def _near(dataset: Dataset, facts: Mapping[str, CaseFacts]) -> list[Pair]:
    found: list[Pair] = []
    for dimensions in (2, 3):
        owners: list[Case] = []
        images: list[ImageFacts] = []
        seen: set[str] = set()
        for case in dataset:
            for image in _images(facts.get(case.id)):
                if image.descriptor is not None and image.descriptor.ndim == dimensions and image.digest not in seen:
                    seen.add(image.digest)  # exact copies are told already
                    owners.append(case)
                    images.append(image)
        if len(images) < 2:
            continue
        descriptors = np.stack([image.descriptor for image in images if image.descriptor is not None])
        for near in find_near(descriptors, [min(image.shape[:dimensions]) for image in images]):
            first, second = owners[near.first], owners[near.second]
            if first is not second:
                values = images[near.first].values
                same = bool(values) and values == images[near.second].values
                found.append(Pair(first, second, near.similarity, near.turned, same))
    once: dict[tuple[str, str], Pair] = {}
    for pair in found:
        once.setdefault((pair.first.id, pair.second.id), pair)
    return list(once.values())


def _judged(
    dataset: Dataset, facts: Mapping[str, CaseFacts], pairs: Sequence[Pair], code: str, what: str
) -> Iterator[Finding]:
    """Findings about pairs by the rule of this module."""
    leak = leak_severity(dataset)
    across = [pair for pair in pairs if split_by(pair.first, pair.second)]
    # One file under two names in one split is told as "doubled-cases", from the table alone.
    rest = [pair for pair in pairs if not split_by(pair.first, pair.second) and not _same_file(pair)]
    known = any(case.patient != case.id for case in dataset)
    strangers = [pair for pair in rest if pair.first.patient != pair.second.patient]
    family = [pair for pair in rest if pair.first.patient == pair.second.patient and pair.similarity >= _OF_ONE_PATIENT]
    if across:
        yield _finding(
            leak, f"{code}-in-two-splits", across, f"in two splits {what}",
            "Scores on the held-out split would be too good; "
            + (
                "remove the copies from training."
                if leak == "error"
                else "no error here, because the splits are published and kept for comparison."
            ),
        )  # fmt: skip
    if strangers:
        yield _finding(
            "warning", f"{code}-of-two-patients", strangers, f"of different patients {what}" if known else what,
            "A random split could put copies on both sides; remove them, or give them the same patient.",
        )  # fmt: skip
    if family:
        yield _finding(
            "note", f"{code}-of-one-patient", family, f"of one patient {what}",
            "They count as often as they occur; keep one of them unless that is meant.",
        )  # fmt: skip
    differing = [pair for pair in pairs if _differ(pair, facts, code) and not _same_file(pair)]
    if differing:
        yield _finding(
            leak if code == "pixels" else "warning",
            "conflicting-labels" if code == "pixels" else "near-copy-with-other-label",
            differing, f"{what} and have different labels", "Decide which label holds.",
        )  # fmt: skip


def _finding(severity: Severity, code: str, pairs: Sequence[Pair], what: str, advice: str) -> Finding:
    details: dict[str, str] = {}
    for pair in pairs:
        if pair.similarity < 1 or pair.turned:
            how = f"similarity {pair.similarity:.3f}" + (", mirrored or turned" if pair.turned else "")
            if pair.turned and pair.same_values:
                how = "the same values, mirrored or turned"
            details[f"{pair.first.id} = {pair.second.id}"] = how
    named = tuple((pair.first.id, pair.second.id) for pair in pairs)
    cases = tuple(dict.fromkeys(case for pair in named for case in pair))
    shown = ", ".join(" = ".join(pair) for pair in named[:3]) + (f" and {len(named) - 3} more" if named[3:] else "")
    count = f"{number_of(len(named), 'pair')} of cases"
    return Finding(severity, code, f"{count} {what}: {shown}. {advice}", cases, named, details)


def _images(facts: CaseFacts | None) -> list[ImageFacts]:
    return [] if facts is None else list(facts.images.values())


def _differ(pair: Pair, facts: Mapping[str, CaseFacts], code: str) -> bool:
    """Whether the truths of two cases, both known, contradict each other; what has a place moves with a near copy."""
    if code != "pixels" and not isinstance(pair.first.truth, ClassScores):
        return False
    answers = [_answer(case, facts) for case in (pair.first, pair.second)]
    return None not in answers and answers[0] != answers[1]


def _answer(case: Case, facts: Mapping[str, CaseFacts]) -> Hashable | None:
    if isinstance(case.truth, ClassScores):
        return tuple(np.nan_to_num(case.truth.values, nan=-1).tolist()) if case.truth.known else None
    if isinstance(case.truth, Boxes):
        return tuple(sorted(np.bincount(case.truth.classes[case.truth.classes >= 0]).tolist()))
    mask = facts[case.id].mask if case.id in facts else None
    return None if mask is None else tuple(sorted(name for name, voxels in mask.voxels.items() if voxels))


def _same_file(pair: Pair) -> bool:
    """Whether both cases name one file: told from the labels alone already."""
    first, second = (
        [(source.files, source.member) for source in case.images.values()] for case in (pair.first, pair.second)
    )
    return first == second and all(files or member for files, member in first)
