"""Do boxes enclose something: inside the image, with a size, once, of a known class?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from sagittal.case import Case
from sagittal.check.facts import CaseFacts
from sagittal.check.findings import Finding, Severity, number_of, some
from sagittal.dataset import Dataset
from sagittal.truth import Boxes
from sagittal.types import Array, Floats

#: Boxes of one class that share so much of their area are one object drawn twice.
DOUBLED = 0.9
#: Voxels along an edge below which an object is hardly visible.
TINY = 2.0
#: Images with an object of a class, below which parts of the data will have none.
FEW_IMAGES = 5


def check_objects(dataset: Dataset, facts: Mapping[str, CaseFacts]) -> Iterator[Finding]:
    """Findings about boxes; those about the frame need the image, so only of cases that were read."""
    cases = [case for case in dataset if isinstance(case.truth, Boxes)]
    if not cases or dataset.scheme is None:
        return
    classes = dataset.scheme.classes
    odd: dict[str, dict[str, str]] = {key: {} for key in _MESSAGES}
    for case in cases:
        for key, text in _of_case(case, facts.get(case.id), classes):
            odd[key][case.id] = "; ".join(filter(None, (odd[key].get(case.id), text)))
    for key, (severity, what, advice) in _MESSAGES.items():
        if odd[key]:
            boxes = sum(text.count("box ") for text in odd[key].values())
            first, text = next(iter(odd[key].items()))
            yield Finding(
                severity,
                key,
                f"{number_of(boxes, 'box', 'boxes')} {what}, in {number_of(len(odd[key]), 'case')} ({some(odd[key])}; case {first}: {text}). {advice}",
                tuple(odd[key]),
                details=odd[key],
            )
    without = tuple(case.id for case in cases if isinstance(case.truth, Boxes) and not len(case.truth))
    if without:
        yield Finding(
            "note",
            "no-objects",
            f"{len(without)} of {len(cases)} images have no box: {some(without)}. They teach what is not an object, if that "
            "is meant; else they were not annotated.",
            without,
        )
    counts = object_counts(dataset)
    for name, (boxes, images) in counts.items():
        if 0 < images < FEW_IMAGES:
            yield Finding(
                "warning",
                "small-class",
                f"class '{name}' stands in only {number_of(images, 'image')}, {number_of(boxes, 'box', 'boxes')} in all; some parts of the data will hold "
                "none of it, and its figures will be very uncertain.",
            )
        if boxes == 0:
            yield Finding("warning", "empty-class", f"class '{name}' has no box; it can be neither learned nor judged.")


#: Code -> severity, what is wrong, what to do.
_MESSAGES: dict[str, tuple[Severity, str, str]] = {
    "unknown-box-class": ("error", "of no class of the scheme", "Correct the class, or name it in the data set."),
    "degenerate-box": (
        "warning", "without size",
        "They enclose nothing and are left out; draw them again or remove them.",
    ),
    "box-outside": (
        "warning", "wholly outside the image",
        "They enclose nothing of it and are left out; check that image and boxes belong together, and how places are counted.",
    ),
    "box-out-of-frame": (
        "warning", "beyond the edge of the image",
        "They are cut at its edge; check that image and boxes belong together.",
    ),
    "doubled-box": ("warning", f"with {DOUBLED:.0%} of the area in common with another of the class", "Keep one of each."),
    "tiny-box": ("warning", f"less than {TINY:g} voxels wide", "Look whether they were clicked by mistake."),
}  # fmt: skip


def object_counts(dataset: Dataset) -> dict[str, tuple[int, int]]:
    """Boxes of each class, and cases with at least one."""
    classes = dataset.scheme.classes if dataset.scheme is not None else ()
    boxes, cases = np.zeros(len(classes), int), np.zeros(len(classes), int)
    for case in dataset:
        if isinstance(case.truth, Boxes):
            known = case.truth.classes[(case.truth.classes >= 0) & (case.truth.classes < len(classes))]
            counts = np.bincount(known, minlength=len(classes))
            boxes += counts
            cases += counts > 0
    return {name: (int(boxes[n]), int(cases[n])) for n, name in enumerate(classes)}


def _of_case(case: Case, facts: CaseFacts | None, classes: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    truth = case.truth
    if not isinstance(truth, Boxes) or not len(truth):
        return
    image = next(iter(facts.images.values()), None) if facts is not None else None
    if truth.frame == "mm":
        if image is None or not image.grid.has_position:
            return  # without the place of the image nothing can be said
        truth = truth.on(image.grid)
    flat = image is None or image.shape[2] == 1
    axes = 2 if flat else 3
    sizes = truth.sizes[:, :axes]
    shape = None if image is None else np.array(image.shape[:axes])
    degenerate = np.any(sizes <= 0, axis=1)
    for n, index in enumerate(truth.classes):
        name = classes[index] if 0 <= index < len(classes) else None
        shown = f"box {n + 1} ({name or f'class {index}'}): {_corners(truth.corners[n, :, :axes])}"
        if name is None:
            yield "unknown-box-class", shown
        if degenerate[n]:
            yield "degenerate-box", shown
        elif np.any(sizes[n] < TINY):
            yield "tiny-box", shown
        if shape is not None:
            low, high = truth.corners[n, 0, :axes], truth.corners[n, 1, :axes]
            if np.any(high <= -0.5) or np.any(low >= shape - 0.5):
                yield "box-outside", f"{shown}, wholly outside the {' x '.join(map(str, shape))} image"
                continue
            beyond = max(0.0, float(np.max(-0.5 - truth.corners[n, :, :axes])))
            beyond = max(beyond, float(np.max(truth.corners[n, :, :axes] - (shape - 0.5))))
            if beyond > 1e-6:
                of = " x ".join(map(str, shape))
                yield "box-out-of-frame", f"{shown}, {beyond:g} beyond the {of} image"
    for n, other in _doubled(truth.corners[..., :axes], truth.classes, degenerate):
        yield "doubled-box", f"box {other + 1} is box {n + 1} again"


def _doubled(corners: Floats, classes: Array, degenerate: Array) -> Iterator[tuple[int, int]]:
    low = np.maximum(corners[:, None, 0], corners[None, :, 0])
    high = np.minimum(corners[:, None, 1], corners[None, :, 1])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    area = np.prod(np.clip(corners[:, 1] - corners[:, 0], 0, None), axis=-1)
    union = area[:, None] + area[None] - shared
    same = (shared > DOUBLED * np.maximum(union, 1e-9)) & (classes[:, None] == classes[None])
    same &= ~(degenerate[:, None] | degenerate[None])
    for n, other in np.argwhere(np.triu(same, 1)):
        yield int(n), int(other)


def _corners(corners: Floats) -> str:
    return " to ".join("(" + ", ".join(f"{value:g}" for value in corner) + ")" for corner in corners)
