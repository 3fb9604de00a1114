"""Sizes, spacings and intensities that are far from the rest of their kind, by measures that outliers cannot move."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from sagittal.check.facts import CaseFacts, ImageFacts
from sagittal.check.findings import Finding, Severity, some
from sagittal.types import Floats

#: Fewer images of a kind do not show what is usual.
_LEAST = 12
#: So many robust standard deviations (1.4826 times the median absolute deviation) are far.
_FAR = 6.0
#: Values of CT that no scaling has brought to HU: air is -1000, so the lowest value is never above this.
_LOWEST_HU = -150.0
#: Contrasts that differ by more than this are on different scales.
_SCALES = 20.0


@dataclass(frozen=True)
class Measure:
    """Something that images of a kind should have alike.

    Parameters
    ----------
    of : callable (ImageFacts) -> sequence of float, or None
        Numbers that are compared one by one, on the scale on which they are compared.
    least : float
        Smallest difference that counts, on the same scale.
    tell : callable (ImageFacts) -> str
    """

    code: str
    severity: Severity
    what: str
    of: Callable[[ImageFacts], tuple[float, ...] | None]
    least: float
    tell: Callable[[ImageFacts], str]
    advice: str


def _log_size(image: ImageFacts) -> tuple[float, ...]:
    return tuple(np.log2(image.shape).tolist())


def _log_spacing(image: ImageFacts) -> tuple[float, ...] | None:
    return None if image.spacing is None else tuple(np.log2(np.asarray(image.spacing, dtype=float)).tolist())


def _levels(image: ImageFacts) -> tuple[float, ...] | None:
    """Dark, middle and bright end of an image; constant ones are told as such."""
    return (
        None
        if image.constant or image.finite < 1
        else (image.percentiles[1], image.percentiles[2], image.percentiles[4])
    )


MEASURES = (
    Measure(
        "outlying-size", "note", "sizes", _log_size, 1.0,
        lambda image: " x ".join(map(str, image.shape)),
        "Look whether they show the same thing: crops, scouts and screenshots are of other sizes.",
    ),
    Measure(
        "outlying-spacing", "warning", "spacings", _log_spacing, 1.0,
        lambda image: " x ".join(f"{mm:.4g}" for mm in image.spacing or ()) + " mm",
        "A wrong spacing stretches what a model sees; compare with the study, and mend or leave out.",
    ),
    Measure(
        "outlying-intensity", "note", "intensities", _levels, 0.25,
        lambda image: f"quartile {image.percentiles[1]:.4g}, median {image.percentiles[2]:.4g}, "
        f"99th percentile {image.percentiles[4]:.4g}" + ("" if image.unit == "1" else f" {image.unit}"),
        "Look whether they are inverted, in another unit, or of another examination.",
    ),
)  # fmt: skip


def check_outliers(facts: Mapping[str, CaseFacts]) -> Iterator[Finding]:
    """Findings about images unlike others of the same name, modality, unit, channels and dimensions."""
    kinds: dict[tuple[str, str, str, int, bool], dict[str, ImageFacts]] = defaultdict(dict)
    for case, found in facts.items():
        for name, image in found.images.items():
            kinds[name, image.modality, image.unit, image.channels, image.shape[2] == 1][case] = image
    for (name, modality, unit, _, flat), images in kinds.items():
        kind = f"{modality} {'pictures' if flat else 'volumes'}" + (f" in {unit}" if unit != "1" else "")
        for measure in MEASURES:
            yield from _far(measure, name, kind, images)
        yield from _scales(name, kind, unit, images)
    yield from _not_hounsfield(facts)


def _far(measure: Measure, name: str, kind: str, images: Mapping[str, ImageFacts]) -> Iterator[Finding]:
    values = {case: measure.of(image) for case, image in images.items()}
    known = {case: value for case, value in values.items() if value is not None}
    if len(known) < _LEAST:
        return
    table = np.array(list(known.values()), dtype=np.float64)  # (N, D)
    usual = np.nanmedian(table, axis=0) if np.isfinite(table).any() else np.zeros(table.shape[1])
    least = measure.least * _contrast(images) if measure.code == "outlying-intensity" else measure.least
    far = np.nanmax(np.nan_to_num(_distance(table, usual, least)), axis=1) > 1
    odd = {case: measure.tell(images[case]) for case, is_far in zip(known, far, strict=True) if is_far}
    if not odd or len(odd) > 0.1 * len(known):  # a tenth of all is no outlier but a second kind
        return
    middle = list(known)[int(np.argmin(np.abs(np.nan_to_num(table - usual)).sum(axis=1)))]
    example = next(iter(odd))
    yield Finding(
        measure.severity,
        measure.code,
        f"{len(odd)} of {len(known)} {kind} ('{name}') have outlying {measure.what}: {some(odd)}. Usual is "
        f"{measure.tell(images[middle])}; {example} has {odd[example]}. {measure.advice}",
        tuple(odd),
        details=odd,
    )


def _scales(name: str, kind: str, unit: str, images: Mapping[str, ImageFacts]) -> Iterator[Finding]:
    """Images of an arbitrary unit whose contrast differs by orders of magnitude."""
    spans = {
        case: i.percentiles[4] - i.percentiles[0] for case, i in images.items() if not i.constant and i.finite == 1
    }
    spans = {case: span for case, span in spans.items() if span > 0}
    if unit != "1" or len(spans) < _LEAST:
        return
    low, high = np.percentile(list(spans.values()), [5, 95])
    if high > _SCALES * low:
        yield Finding(
            "note",
            "intensity-scales",
            f"the intensities of {len(spans)} {kind} ('{name}') are on scales that differ by a factor of {high / low:.3g} "
            f"(contrast {low:.3g} to {high:.3g}). They carry no unit, so each image has to be normalised by itself.",
        )


def _distance(table: Floats, usual: Floats, least: float) -> Floats:
    """How far each value is, in units of what is far: six robust deviations, and at least a set difference."""
    apart = np.abs(table - usual)
    deviation = 1.4826 * np.nanmedian(apart, axis=0) if np.isfinite(table).any() else np.zeros(table.shape[1])
    return np.asarray(apart / np.maximum(_FAR * deviation, least))


def _contrast(images: Mapping[str, ImageFacts]) -> float:
    """The usual distance from the dark to the bright end of an image of the kind."""
    return max(float(np.nanmedian([i.percentiles[4] - i.percentiles[0] for i in images.values()])), 1e-12)


def _not_hounsfield(facts: Mapping[str, CaseFacts]) -> Iterator[Finding]:
    shifted = {
        case: f"lowest value {image.low:.4g} HU"
        for case, found in facts.items()
        for image in found.images.values()
        if image.unit == "HU" and image.modality == "CT" and image.low > _LOWEST_HU and image.sd > 0
    }
    if shifted:
        yield Finding(
            "warning",
            "no-air-in-ct",
            f"{len(shifted)} CT images hold no value below {_LOWEST_HU:g} HU ({some(shifted)}), although air is -1000: they "
            "are cropped inside the body, or their rescale intercept was lost. Compare with the study.",
            tuple(shifted),
            details=shifted,
        )
