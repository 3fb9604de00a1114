"""Do masks hold what they should: known values, each structure somewhere, plausible volumes?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from sagittal.check.facts import CaseFacts, MaskFacts
from sagittal.check.findings import Finding, number_of, some
from sagittal.dataset import Dataset

#: Masks with a structure below which its usual volume is not known.
_LEAST = 12


def check_structures(dataset: Dataset, facts: Mapping[str, CaseFacts]) -> Iterator[Finding]:
    """Findings about the segmentations of the cases that were read; nothing where there are none."""
    masks = {case: found.mask for case, found in facts.items() if found.mask is not None}
    if not masks or dataset.scheme is None:
        return
    strangers = {
        case: ", ".join(f"{value} ({voxels} voxels)" for value, voxels in mask.strangers.items())
        for case, mask in masks.items()
        if mask.strangers
    }
    if strangers:
        values = Counter(value for mask in masks.values() for value in mask.strangers)
        yield Finding(
            "error",
            "unknown-mask-value",
            f"{number_of(len(strangers), 'mask holds', 'masks hold')} values that mean no structure: {some(values)} ({some(strangers)}). Expected 0 and "
            f"the values of {', '.join(dataset.scheme.classes)}. Name them in the data set's description, or correct the "
            "masks.",
            tuple(strangers),
            details=strangers,
        )
    empty = tuple(case for case, mask in masks.items() if not any(mask.voxels.values()))
    if empty and len(empty) == len(masks):
        yield Finding(
            "error",
            "empty-mask",
            f"all {len(masks)} masks that were read outline nothing ({some(empty)}), so there is nothing to learn. Check that they "
            f"were drawn before they were saved, and that {', '.join(dataset.scheme.classes)} have the values that they use.",
            empty,
        )
    elif empty:
        yield Finding(
            "warning",
            "empty-mask",
            f"{len(empty)} of {len(masks)} masks outline nothing: {some(empty)}. Right where the structure is absent; else "
            "they were saved before they were drawn.",
            empty,
        )
    yield from _parts(dataset.scheme.classes, masks)
    ignored = tuple(case for case, mask in masks.items() if mask.ignored >= np.prod(mask.shape))
    if ignored:
        yield Finding(
            "warning",
            "nothing-known",
            f"{number_of(len(ignored), 'mask says', 'masks say')} of every voxel that nothing is known: {some(ignored)}. They teach "
            "nothing; leave them out, or check the value to ignore.",
            ignored,
        )
    for name in dataset.scheme.classes if len(empty) < len(masks) else ():
        outlined = {case: mask for case, mask in masks.items() if mask.voxels.get(name)}
        if not outlined:
            yield Finding(
                "warning",
                "structure-never-occurs",
                f"no mask that was read holds '{name}'; it can be neither learned nor judged. Check its value.",
            )
            continue
        yield from _volumes(name, outlined)


def _parts(classes: tuple[str, ...], masks: Mapping[str, MaskFacts]) -> Iterator[Finding]:
    """Structures that were not looked for in every case."""
    missing = {name: tuple(case for case, mask in masks.items() if name not in mask.voxels) for name in classes}
    partly = {name: cases for name, cases in missing.items() if cases}
    if partly:
        shown = ", ".join(f"'{name}' in {len(masks) - len(cases)} of {len(masks)}" for name, cases in partly.items())
        cases = tuple(case for case in masks if any(case in of for of in partly.values()))
        yield Finding(
            "note",
            "partly-outlined",
            f"not every structure was looked for in every case: {shown}. Where it was not, it counts as unknown, neither "
            "present nor absent; give an empty mask where it is absent.",
            cases,
            details={case: ", ".join(name for name, of in partly.items() if case in of) for case in cases},
        )


def volume_ml(mask: MaskFacts, name: str) -> float | None:
    """Volume of a structure in ml; ``None`` where the voxel size is not known.

    >>> mask = MaskFacts((4, 4, 4), None, (1.0, 1.0, 2.5), {"liver": 8}, {})
    >>> volume_ml(mask, "liver")
    0.02
    """
    if mask.spacing is None or not np.all(np.isfinite(mask.spacing)):
        return None
    return mask.voxels.get(name, 0) * float(np.prod(mask.spacing)) / 1000


def structure_rows(dataset: Dataset, facts: Mapping[str, CaseFacts]) -> list[tuple[str, int, str]]:
    """For each structure: its name, in how many masks it is, and its usual size in words."""
    masks = [found.mask for found in facts.values() if found.mask is not None]
    rows = []
    for name in dataset.scheme.classes if dataset.scheme is not None else ():
        outlined = [mask for mask in masks if mask.voxels.get(name)]
        volumes = [volume for mask in outlined if (volume := volume_ml(mask, name)) is not None]
        if volumes:
            low, middle, high = np.percentile(volumes, [5, 50, 95])
            size = f"{middle:.3g} ml ({low:.3g} to {high:.3g})"
        else:
            shares = [mask.voxels[name] / float(np.prod(mask.shape)) for mask in outlined]
            size = f"{np.median(shares):.2%} of the image" if shares else "-"
        rows.append((name, len(outlined), size))
    return rows


def _volumes(name: str, outlined: Mapping[str, MaskFacts]) -> Iterator[Finding]:
    volumes = {case: volume for case, mask in outlined.items() if (volume := volume_ml(mask, name)) is not None}
    if len(volumes) < _LEAST:
        return
    logs = np.log2(np.array(list(volumes.values())))
    apart = np.abs(logs - np.median(logs))
    # Six robust deviations, and at least four times smaller or larger than usual.
    far = apart > max(6 * 1.4826 * float(np.median(apart)), 2.0)
    odd = {case: f"{volume:.3g} ml" for (case, volume), is_far in zip(volumes.items(), far, strict=True) if is_far}
    if odd and len(odd) <= 0.1 * len(volumes):
        usual = float(np.median(list(volumes.values())))
        example = next(iter(odd))
        yield Finding(
            "note",
            "outlying-volume",
            f"'{name}' is unusually small or large in {number_of(len(odd), 'mask')}: {some(odd)}. Usual is {usual:.3g} ml; {example} has "
            f"{odd[example]}. Look at the outlines.",
            tuple(odd),
            details=odd,
        )
