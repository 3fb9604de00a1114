"""Can the images be read, and are they of one kind?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from sagittal.check.facts import CaseFacts, ImageFacts
from sagittal.check.findings import Finding, Severity, number_of, some

_KINDS: tuple[tuple[str, Severity, str], ...] = (
    ("channels", "warning", "Grey is repeated to colour; save them alike if that is not meant."),
    ("dimensions", "error", "Pictures and volumes cannot be learned from together; keep one kind."),
    ("unit", "warning", "Values of different units cannot be compared; export them alike."),
    ("modality", "warning", "A model learns the modality instead of the disease if they go together."),
)


def check_readable(facts: Mapping[str, CaseFacts]) -> Iterator[Finding]:
    """Findings from reading: what failed, holds nothing, should not be shown, or is unlike the rest."""
    failed = {name: next(iter(case.failed.values())) for name, case in facts.items() if case.failed}
    if failed:
        yield Finding(
            "error" if len(failed) == len(facts) else "warning",
            "unreadable",
            f"{len(failed)} of {len(facts)} cases cannot be read and are left out; the first: {next(iter(failed.values()))}",
            tuple(failed),
            details=failed,
        )
    for code, lost in _lost_masks(facts).items():
        yield Finding(
            "error" if len(lost) == len(facts) else "warning",
            code,
            f"the segmentations of {len(lost)} of {len(facts)} cases cannot be used; the first: {next(iter(lost.values()))}",
            tuple(lost),
            details=lost,
        )
    yield from _empty(facts)
    yield from _unsafe(facts)
    names = dict.fromkeys(name for case in facts.values() for name in case.images)
    for name in names:
        images = {case: found.images[name] for case, found in facts.items() if name in found.images}
        for what, severity, advice in _KINDS:
            yield from _mixed(name, what, images, severity, advice)


#: Words in the reason why a mask was refused -> code of the finding; else it cannot be read at all.
_REFUSALS = {
    "which no structure has": "unknown-mask-value",
    "whole numbers": "mask-not-whole",
    "refers to another series": "mask-of-another-image",
    "are missing among the": "mask-of-another-image",
    "another frame of reference": "mask-of-another-image",
    "on different lattices": "mask-on-another-grid",
    "on different grids": "mask-on-another-grid",
    "outside the image": "mask-outside-image",
    "out of the image": "mask-outside-image",
    "not parallel to the slices": "contour-off-slices",
    "different planes lie nearest": "contour-off-slices",
}


def _lost_masks(facts: Mapping[str, CaseFacts]) -> dict[str, dict[str, str]]:
    lost: dict[str, dict[str, str]] = defaultdict(dict)
    for name, case in facts.items():
        if case.mask_failed:
            code = next((code for words, code in _REFUSALS.items() if words in case.mask_failed), "unreadable-mask")
            lost[code][name] = case.mask_failed
    return lost


def _empty(facts: Mapping[str, CaseFacts]) -> Iterator[Finding]:
    infinite = _where(facts, lambda image: image.finite < 1)
    if infinite:
        shares = {case: _told(facts[case], lambda i: f"{1 - i.finite:.3%} not finite") for case in infinite}
        yield Finding(
            "warning",
            "not-finite",
            f"{number_of(len(infinite), 'case holds', 'cases hold')} NaN or infinite voxels: {some(infinite)}. They cannot be "
            "trained on; convert them again, or leave them out.",
            infinite,
            details=shares,
        )
    constant = _where(facts, lambda image: image.constant and image.finite == 1)
    if constant:
        yield Finding(
            "warning",
            "constant",
            f"{number_of(len(constant), 'image has', 'images have')} the same value everywhere: {some(constant)}. That is no "
            "information.",
            constant,
            details={case: _told(facts[case], lambda i: f"{i.low:g} {_unit(i)}".strip()) for case in constant},
        )


def _unsafe(facts: Mapping[str, CaseFacts]) -> Iterator[Finding]:
    burned = _where(facts, lambda image: image.burned_in is True)
    if burned:
        yield Finding(
            "warning",
            "burned-in",
            f"{number_of(len(burned), 'image says', 'images say')} that text is burned into their pixels (BurnedInAnnotation is YES): {some(burned)}. "
            "It may name the patient, and a model may read it instead of the image; mask it, or leave them out.",
            burned,
        )
    programs = _where(facts, lambda image: image.executable)
    if programs:
        yield Finding(
            "error",
            "executable-preamble",
            f"{number_of(len(programs), 'DICOM file begins', 'DICOM files begin')} as a program does, in the 128 bytes before their own mark: {some(programs)}. "
            "They may be malware; have them examined, and clear the preamble before anyone opens them.",
            programs,
        )


def _mixed(
    image: str, what: str, images: Mapping[str, ImageFacts], severity: Severity, advice: str
) -> Iterator[Finding]:
    kinds: dict[str, list[str]] = defaultdict(list)
    for case, facts in images.items():
        value = (2 if facts.shape[2] == 1 else 3) if what == "dimensions" else getattr(facts, what)
        kinds[str(value)].append(case)
    if len(kinds) < 2:
        return
    counts = Counter({value: len(cases) for value, cases in kinds.items()})
    usual = counts.most_common(1)[0][0]
    odd = {case: f"{what} {value}" for value, cases in kinds.items() if value != usual for case in cases}
    shown = ", ".join(f"{n} x {value}" for value, n in counts.most_common())
    yield Finding(
        severity,
        f"mixed-{what}",
        f"image '{image}' differs in {what} from case to case ({shown}; such as {some(odd, 3)}). {advice}",
        tuple(odd),
        details=odd,
    )


def _where(facts: Mapping[str, CaseFacts], holds: Callable[[ImageFacts], bool]) -> tuple[str, ...]:
    return tuple(case for case, found in facts.items() if any(holds(i) for i in found.images.values()))


def _told(facts: CaseFacts, text: Callable[[ImageFacts], str]) -> str:
    return "; ".join(text(image) for image in facts.images.values())


def _unit(image: ImageFacts) -> str:
    return "" if image.unit == "1" or not np.isfinite(image.low) else image.unit
