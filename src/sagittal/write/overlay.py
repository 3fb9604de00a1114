"""Masks and boxes drawn on their study, as pictures for people.

A picture is shown whole, enlarged by a whole factor where it is small. Of a volume a row of three planes through the place
that holds most of what was found is shown, and a row of the slices that hold most of each structure, or of each box; all
with the proportions of the patient, the head up where the file says where it is.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sagittal.image import Image
from sagittal.prediction import Prediction
from sagittal.tasks.picture import window
from sagittal.types import Array, Bools, Floats
from sagittal.write.boxes import detections_of
from sagittal.write.masks import mask_of
from sagittal.write.terminology import Term, Terminology

if TYPE_CHECKING:
    from PIL.Image import Image as Sheet
    from PIL.ImageFont import FreeTypeFont

#: Panels are enlarged or reduced to about these sides, pixels.
_SHORT, _PANEL, _MOST = 480, 360, 2048
_FILL = 0.3
_SLICES = 6
#: Windows in HU, by how dense what was found is: lung, soft tissue, bone.
_WINDOWS = ((-300.0, (-1350.0, 150.0)), (250.0, (-160.0, 240.0)), (float("inf"), (-500.0, 1300.0)))


def draw_mask(prediction: Prediction, image: Image, *, terminology: Terminology | None = None) -> bytes:
    """PNG bytes: the structures of a mask as outline and fill over the study, with a legend.

    Parameters
    ----------
    prediction : Prediction
        Its finding is a mask.
    image : Image
        On the mask's grid.
    terminology : Terminology, optional
        For colours.
    """
    mask = mask_of(prediction, "an overlay").segmentation
    names = [one.name for one in mask.structures]
    terms = (terminology or Terminology()).find_all(names)
    masks = [mask.mask(name) for name in names]
    anything = np.zeros(mask.grid.shape, dtype=bool)
    for one in masks:
        anything |= one
    values = _shown(image, anything)
    view = _View(image, values)
    if image.grid.dimensions == 2:
        return _png(_sheet([[view.panel("k", 0, masks, terms, _SHORT)]], _legend(names, masks, terms, image)))
    at = [_fullest(anything, axis) for axis in range(3)]
    rows = [[view.panel("kji"[n], at[2 - n], masks, terms, _PANEL) for n in range(3)]]
    slices = sorted({_fullest(one, 2) for one in masks if one.any()} - {at[2]})[:_SLICES]
    for start in range(0, len(slices), 3):
        rows.append([view.panel("k", k, masks, terms, _PANEL) for k in slices[start : start + 3]])
    return _png(_sheet(rows, _legend(names, masks, terms, image)))


def draw_boxes(prediction: Prediction, image: Image, *, terminology: Terminology | None = None) -> bytes:
    """PNG bytes: the chosen boxes with class and score over the study; of a volume a slice for each of the surest.

    Parameters
    ----------
    prediction : Prediction
        Its finding is boxes.
    image : Image
        On their grid.
    terminology : Terminology, optional
        For colours.
    """
    found = detections_of(prediction, "an overlay")
    classes = prediction.scheme.classes
    terms = (terminology or Terminology()).find_all(classes)
    chosen = np.flatnonzero(found.chosen)
    drawn = [
        _Box(
            found.boxes.corners[n],
            terms[int(found.boxes.classes[n])],
            f"{terms[int(found.boxes.classes[n])].name} {found.scores[n]:.2f}",
        )
        for n in chosen
    ]
    inside = np.zeros(image.grid.shape, dtype=bool)
    for one in drawn:
        low, high = (np.clip(np.rint(c + 0.5), 0, image.grid.shape).astype(int) for c in one.corners)
        inside[tuple(slice(a, max(b, a + 1)) for a, b in zip(low, high, strict=True))] = True
    view = _View(image, _shown(image, inside))
    counts = [int((found.boxes.classes[chosen] == n).sum()) for n in range(len(classes))]
    legend: list[tuple[Term | None, str]] = [
        (term, f"{term.name}: {count}") for term, count in zip(terms, counts, strict=True)
    ]
    if image.grid.dimensions == 2:
        return _png(_sheet([[view.panel("k", 0, [], [], _SHORT, drawn)]], legend))
    middles = [int(np.clip(round(float(one.corners[:, 2].mean())), 0, image.grid.shape[2] - 1)) for one in drawn]
    slices = list(dict.fromkeys(middles))[:_SLICES] or [image.grid.shape[2] // 2]
    rows = [
        [view.panel("k", k, [], [], _PANEL, drawn) for k in slices[start : start + 3]]
        for start in range(0, len(slices), 3)
    ]
    if len(slices) < len(set(middles)):
        legend.append((None, f"shown: {len(slices)} of {len(set(middles))} slices with boxes"))
    return _png(_sheet(rows, legend))


@dataclass(frozen=True, eq=False)
class _Box:
    corners: Floats
    term: Term
    label: str


class _View:
    """A study as colours, and panels of its planes."""

    def __init__(self, image: Image, values: Array) -> None:
        self.values = values if image.channels == 3 else np.repeat(values[:1], 3, axis=0)  # (3, I, J, K) uint8
        self.grid = image.grid
        spacing = None if image.grid.spacing is None else np.asarray(image.grid.spacing)
        known = spacing is not None and bool(np.isfinite(spacing[:2]).all())
        self.mm = np.where(np.isfinite(spacing), spacing, 1.0) if known and spacing is not None else np.ones(3)
        # LPS+: the third patient axis points to the head, so increasing k must go up the picture.
        self.up = image.grid.affine is not None and image.grid.affine[2, 2] > 0

    def panel(
        self,
        axis: str,
        at: int,
        masks: Sequence[Bools],
        terms: Sequence[Term],
        side: int,
        boxes: Sequence[_Box] = (),
    ) -> Sheet:
        """One plane with what was found in it, and its name."""
        from PIL import Image as Pillow

        across, down, normal = {"k": (0, 1, 2), "j": (0, 2, 1), "i": (1, 2, 0)}[axis]
        place: list[Any] = [slice(None)] * 3
        place[normal] = at
        plane = self.values[(slice(None), *place)].transpose(2, 1, 0)  # (rows, columns, 3)
        flip = self.up and axis != "k"
        columns, rows = self._size(plane.shape[1] * self.mm[across], plane.shape[0] * self.mm[down], plane.shape, side)
        pixels = plane[::-1] if flip else plane
        smooth = (
            Pillow.Resampling.NEAREST
            if columns % plane.shape[1] == 0 and rows % plane.shape[0] == 0
            else Pillow.Resampling.BILINEAR
        )
        picture = np.array(Pillow.fromarray(np.ascontiguousarray(pixels)).resize((columns, rows), smooth), np.float32)
        for mask, term in zip(masks, terms, strict=True):
            cut = mask[tuple(place)].T
            if cut.any():
                cut = cut[::-1] if flip else cut
                _paint(picture, _enlarged(cut, columns, rows), term.colour)
        sheet = Pillow.fromarray(np.rint(picture).astype(np.uint8))
        if boxes:
            self._frame(sheet, boxes, at, plane.shape)
        if self.grid.dimensions == 2:
            return sheet
        word = {"k": "slice", "j": "row", "i": "column"}[axis]
        return _titled(sheet, f"{word} {at + 1} of {self.grid.shape[normal]}")

    @staticmethod
    def _size(width: float, height: float, shape: tuple[int, ...], side: int) -> tuple[int, int]:
        """Columns and rows of a panel; pictures of square pixels by whole factors where they grow."""
        longest = max(width, height)
        if abs(width / height - shape[1] / shape[0]) < 1e-6:
            factor = float(max(1, round(side / min(shape[:2])))) if min(shape[:2]) < side else 1.0
            if side == _PANEL:
                factor = side / max(shape[:2])
            factor = min(factor, _MOST / max(shape[:2]))
            return max(1, round(shape[1] * factor)), max(1, round(shape[0] * factor))
        target = max(side, max(shape[:2]) if side == _SHORT else 0)
        factor = min(target, _MOST) / longest
        return max(1, round(width * factor)), max(1, round(height * factor))

    def _frame(self, sheet: Sheet, boxes: Sequence[_Box], k: int, shape: tuple[int, ...]) -> None:
        from PIL import ImageDraw

        draw = ImageDraw.Draw(sheet)
        x, y = sheet.width / shape[1], sheet.height / shape[0]
        width = max(1, round(min(sheet.size) / 240))
        font = _font(max(11, round(min(sheet.size) / 34)))
        for one in reversed(boxes):  # the surest on top
            if not one.corners[0, 2] <= k <= one.corners[1, 2]:
                continue
            (left, top), (right, bottom) = (one.corners[:, :2] + 0.5) * (x, y)
            draw.rectangle((left, top, max(right, left), max(bottom, top)), outline=one.term.colour, width=width)
        for one in reversed(boxes):
            if not one.corners[0, 2] <= k <= one.corners[1, 2]:
                continue
            (left, top), (_, bottom) = (one.corners[:, :2] + 0.5) * (x, y)
            text = draw.textbbox((0, 0), one.label, font=font)
            high = text[3] + 3
            above = top - high if top >= high else min(bottom, sheet.height - high)
            start = float(np.clip(left, 0, max(sheet.width - text[2] - 4, 0)))
            draw.rectangle((start, above, start + text[2] + 3, above + high - 1), fill=one.term.colour)
            draw.text((start + 2, above), one.label, fill=_ink(one.term.colour), font=font)


def _shown(image: Image, inside: Bools) -> Array:
    """The study as uint8: CT in the window that suits what was found, all else between percentiles."""
    if image.unit != "HU":
        return window(image.data, bits=image.bits)
    dense = float(np.median(image.data[0][inside])) if inside.any() else 0.0
    low, high = next(limits for most, limits in _WINDOWS if dense <= most or most == float("inf"))
    return np.asarray(np.rint(np.clip((image.data - low) / (high - low), 0, 1) * 255), dtype=np.uint8)


def _fullest(mask: Bools, axis: int) -> int:
    others = tuple(n for n in range(3) if n != axis)
    counts = np.count_nonzero(mask, axis=others)
    return int(counts.argmax()) if counts.any() else mask.shape[axis] // 2


def _enlarged(mask: Bools, columns: int, rows: int) -> Bools:
    """A mask in another size; where it shrinks, a pixel is inside if any of those that it stands for is."""
    out = mask
    for axis, size in ((0, rows), (1, columns)):
        old = mask.shape[axis]
        if size < old:
            out = np.logical_or.reduceat(out, np.arange(size) * old // size, axis=axis)
        else:
            out = out.take(np.arange(size) * old // size, axis=axis)
    return np.asarray(out)


def _paint(picture: Floats, mask: Bools, colour: tuple[int, int, int]) -> None:
    """Fill and a full outline, along the inner side of the mask, into the picture itself."""
    from scipy import ndimage

    width = max(1, round(min(mask.shape) / 700))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    inside = np.pad(mask[box], width).view(np.uint8)
    core = ndimage.minimum_filter(inside, size=2 * width + 1)[width:-width, width:-width] > 0
    part, ink = picture[box], np.array(colour, dtype=np.float32)
    part[mask[box]] *= 1 - _FILL
    part[mask[box]] += _FILL * ink
    part[mask[box] & ~core] = ink


def _legend(
    names: Sequence[str], masks: Sequence[Bools], terms: Sequence[Term], image: Image
) -> list[tuple[Term | None, str]]:
    edges = None if image.grid.affine is None else np.asarray(image.grid.affine)[:3, :3]
    lines: list[tuple[Term | None, str]] = []
    for name, mask, term in zip(names, masks, terms, strict=True):
        count = int(np.count_nonzero(mask))
        if not count:
            size = "not found"
        elif edges is not None and image.grid.dimensions == 3:
            size = f"{count * abs(float(np.linalg.det(edges))) / 1000:.3g} ml"
        else:
            size = f"{count:,} {'pixels' if image.grid.dimensions == 2 else 'voxels'}"
        lines.append((term, f"{name}: {size}"))
    return lines


@cache
def _font(size: int) -> FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _ink(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever stands out from a colour (relative luminance, ITU-R BT.709)."""
    bright = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]
    return (0, 0, 0) if bright > 110 else (255, 255, 255)


def _titled(sheet: Sheet, title: str) -> Sheet:
    from PIL import Image as Pillow
    from PIL import ImageDraw

    made = Pillow.new("RGB", (sheet.width, sheet.height + 20), "white")
    made.paste(sheet, (0, 20))
    ImageDraw.Draw(made).text((2, 2), title, fill=(17, 17, 17), font=_font(13))
    return made


def _sheet(rows: Sequence[Sequence[Sheet]], legend: Sequence[tuple[Term | None, str]]) -> Sheet:
    """Panels in rows, and the legend under them."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    gap = 6
    width = max(sum(p.width for p in row) + gap * (len(row) - 1) for row in rows)
    font = _font(max(13, min(26, width // 60)))
    step = round(font.size * 1.5)
    probe = ImageDraw.Draw(Pillow.new("RGB", (1, 1)))
    spots, x, y = [], 0, 0
    for _, text in legend:
        long = round(probe.textlength(text, font=font)) + round(2.4 * step)
        if x and x + long > width:
            x, y = 0, y + step
        spots.append((x, y))
        x += long
    height = sum(max(p.height for p in row) + gap for row in rows) + y + step + gap
    made = Pillow.new("RGB", (max(width, 200), height), "white")
    top = 0
    for row in rows:
        left = 0
        for panel in row:
            made.paste(panel, (left, top))
            left += panel.width + gap
        top += max(p.height for p in row) + gap
    draw = ImageDraw.Draw(made)
    for (term, text), (x, y) in zip(legend, spots, strict=True):
        square = round(font.size * 0.9)
        if term is not None:
            draw.rectangle((x + 4, top + y + 3, x + 4 + square, top + y + 3 + square), fill=term.colour)
        draw.text((x + 10 + square, top + y), text, fill=(17, 17, 17), font=font)
    return made


def _png(sheet: Sheet) -> bytes:
    stream = io.BytesIO()
    sheet.save(stream, format="png")
    return stream.getvalue()
