"""A picture of a case with its boxes: true ones dashed, found ones drawn through with class and score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sagittal.case import Case
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.prediction import Detections, Prediction
from sagittal.tasks.detect_rows import true_boxes
from sagittal.tasks.picture import SHORT_SIDE, font_of, window, with_caption
from sagittal.truth import Boxes
from sagittal.types import Array, Floats

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

#: Of the true boxes, and of the found ones by class; told apart by people who see few colours (Okabe and Ito, 2008).
TRUE = (255, 255, 255)
FOUND = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178))
#: Found boxes that all have their name beside them.
MOST_NAMES = 12
#: Length of a dash and of the gap behind it, in pixels of the picture.
DASH = 5


def draw_boxes(prediction: Prediction, case: Case, scheme: LabelScheme) -> Array:
    """The first image, or one slice of it, with its boxes, (H, W, 3) uint8.

    Of a volume the slice through the middle of the surest box that counts; where none counts, of the largest true object;
    else the middle slice.
    """
    finding = prediction.finding
    image = case.image(next(iter(case.images)))
    assert isinstance(finding, Detections)
    truth, _ = true_boxes(case, scheme, finding.grid)
    found, scores = finding.boxes.corners[finding.chosen], finding.scores[finding.chosen]
    labels = finding.boxes.classes[finding.chosen]
    k = _slice_of(image, found, truth)
    plane, scale = _plane(image, k)
    from PIL import Image as Pillow
    from PIL import ImageDraw

    sheet = Pillow.fromarray(plane)
    draw = ImageDraw.Draw(sheet)
    size = max(11, min(plane.shape[:2]) // 28)
    font = font_of(size, wide=any(ord(sign) >= 0x2E80 for name in scheme.classes for sign in name))
    here = np.array([_crosses(corners, k) for corners in found], dtype=bool)
    count = np.bincount(labels[here], minlength=len(scheme.classes))
    # Where many crowd the picture, those of the most frequent class go without a name.
    unnamed = int(np.argmax(count)) if count.sum() > MOST_NAMES else -1
    for corners, label, score in zip(found[here], labels[here], scores[here], strict=True):
        colour = FOUND[label % len(FOUND)]
        left, top, right, bottom = _pixels(corners, scale)
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
        if label != unnamed:
            _write(draw, (left, top - size - 3), f"{scheme.classes[label]} {score:.2f}", font, colour)
    true = 0
    for corners in truth.corners if truth is not None else ():
        if _crosses(corners, k):
            _dashed(draw, _pixels(corners, scale))
            true += 1
    where = "" if image.grid.dimensions == 2 else f" on slice {k + 1} of {image.grid.shape[2]}"
    lines = [
        f"truth (dashed): {true if truth is not None else 'unknown'}{where}",
        f"found: {_counts(count, scheme, unnamed)}{where}" + ("" if prediction.verdict.accepted else "; not accepted"),
    ]
    return with_caption(np.asarray(sheet), lines)


def _counts(count: Array, scheme: LabelScheme, unnamed: int) -> str:
    parts = [
        f"{n} {name}" + (" (unnamed)" if c == unnamed else "")
        for c, (n, name) in enumerate(zip(count, scheme.classes, strict=True))
        if n
    ]
    return ", ".join(parts) or "none"


def _slice_of(image: Image, found: Floats, truth: Boxes | None) -> int:
    slices = image.grid.shape[2]
    if slices == 1:
        return 0
    if len(found):
        middle = found[0, :, 2].mean()
    elif truth is not None and len(truth):
        middle = truth.corners[int(np.argmax(truth.sizes.prod(axis=1))), :, 2].mean()
    else:
        middle = (slices - 1) / 2
    return int(np.clip(round(float(middle)), 0, slices - 1))


def _plane(image: Image, k: int) -> tuple[Array, tuple[float, float]]:
    """One slice, (H, W, 3), and its pixels for each voxel along i and j."""
    from PIL import Image as Pillow

    values = window(image.data, bits=image.bits)[..., k]
    colour = values if image.channels == 3 else np.repeat(values[:1], 3, axis=0)  # (3, I, J)
    spacing = image.grid.spacing
    edges = np.ones(2) if spacing is None or not np.isfinite(spacing[:2]).all() else np.asarray(spacing)[:2]
    columns, rows = np.asarray(image.grid.shape[:2]) * edges / edges.min()
    factor = max(1.0, 2 * SHORT_SIDE / min(columns, rows))
    size = (max(1, round(columns * factor)), max(1, round(rows * factor)))
    pixels = Pillow.fromarray(np.ascontiguousarray(colour.transpose(2, 1, 0))).resize(size, Pillow.Resampling.BILINEAR)
    return np.asarray(pixels), (size[0] / image.grid.shape[0], size[1] / image.grid.shape[1])


def _crosses(corners: Floats, k: int) -> bool:
    return bool(corners[0, 2] <= k <= corners[1, 2])


def _pixels(corners: Floats, scale: tuple[float, float]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a box in the picture."""
    (left, top), (right, bottom) = ((c[:2] + 0.5) * np.asarray(scale) for c in corners)
    return float(left), float(top), float(right), float(bottom)


def _dashed(draw: ImageDraw, box: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = box
    for start, end in (
        ((left, top), (right, top)),
        ((right, top), (right, bottom)),
        ((right, bottom), (left, bottom)),
        ((left, bottom), (left, top)),
    ):
        a, b = np.asarray(start), np.asarray(end)
        length = float(np.linalg.norm(b - a))
        for begin in np.arange(0, length, 2 * DASH):
            stop = min(begin + DASH, length)
            first, last = a + (b - a) * begin / length, a + (b - a) * stop / length
            draw.line([(float(first[0]), float(first[1])), (float(last[0]), float(last[1]))], fill=TRUE, width=1)


def _write(draw: ImageDraw, place: tuple[float, float], text: str, font: Any, colour: tuple[int, int, int]) -> None:
    """Text on a dark ground, inside the picture."""
    x, y = max(0.0, place[0]), max(0.0, place[1])
    draw.rectangle(draw.textbbox((x, y), text, font=font), fill=(0, 0, 0))
    draw.text((x, y), text, font=font, fill=colour)
