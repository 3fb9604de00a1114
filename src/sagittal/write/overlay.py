"""Masks, boxes and heat maps drawn on their study, as pictures for people.

A picture is shown whole, enlarged by a whole factor where it is small. Of a volume a row of three planes through the place
that holds most of what was found is shown, and a row of the slices that hold most of each structure, or of each box; all
with the proportions of the patient, the head up where the file says where it is.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sagittal.image import Image
from sagittal.prediction import Prediction
from sagittal.types import Array, Bools, Floats
from sagittal.write.boxes import detections_of
from sagittal.write.lettering import text_length, write_line
from sagittal.write.masks import mask_of, planes_of
from sagittal.write.statement_words import WORDS
from sagittal.write.terminology import Term, Terminology

if TYPE_CHECKING:
    from PIL.Image import Image as Sheet

#: Panels are enlarged or reduced to about these sides, pixels.
_SHORT, _PANEL, _TALL, _MOST = 480, 360, 720, 2048
_FILL = 0.3
#: Strongest cover of the study by a heat map.
_COVER = 0.65
#: Voxels that are looked at for the grey values of a volume.
_SAMPLE = 2**22
_SLICES = 6
#: Windows in HU, by how dense what was found is: lung, soft tissue, bone.
_WINDOWS = ((-300.0, (-1350.0, 150.0)), (250.0, (-160.0, 240.0)), (float("inf"), (-500.0, 1300.0)))


def draw_mask(
    prediction: Prediction,
    image: Image,
    *,
    terminology: Terminology | None = None,
    tall: bool = False,
    language: str = "en",
) -> bytes:
    """PNG bytes: the structures of a mask as outline and fill over the study, with a legend.

    Parameters
    ----------
    prediction : Prediction
        Its finding is a mask.
    image : Image
        On the mask's grid.
    terminology : Terminology, optional
        For colours.
    tall : bool
        For an upright page: the slice large, the other two planes beside it.
    language : {"en", "zh"}
        Of the words in it.
    """
    found = mask_of(prediction, "an overlay")
    structures = found.segmentation.structures
    terms = (terminology or Terminology()).find_all([one.name for one in structures])
    counts = [[np.zeros(n, dtype=np.int64) for n in found.grid.shape] for _ in structures]
    dense = []
    for n, k, plane in planes_of(found):
        counts[n][0] += np.count_nonzero(plane, axis=1)
        counts[n][1] += np.count_nonzero(plane, axis=0)
        counts[n][2][k] = np.count_nonzero(plane)
        dense.append(image.data[0, :, :, k][plane][:: max(1, int(counts[n][2][k]) // 200)])
    view = _View(image, _limits(image, dense), WORDS[language])
    legend = _legend([int(one[2].sum()) for one in counts], terms, image, WORDS[language])

    def panel(axis: int, at: int, side: int) -> Sheet:
        place: list[Any] = [slice(None)] * 3
        place[axis] = at
        layers = found.segmentation.layers[(slice(None), *place)]
        cuts = [(np.isin(layers[one.layer], one.values), term) for one, term in zip(structures, terms, strict=True)]
        return view.panel(axis, at, side, masks=cuts)

    if image.grid.dimensions == 2:
        return _png(_sheet([[panel(2, 0, _SHORT)]], legend))
    at = [int(np.sum([one[axis] for one in counts], axis=0).argmax()) for axis in range(3)] if counts else [0, 0, 0]
    rows = [_planes(panel, at, image, tall)]
    slices = sorted({int(one[2].argmax()) for one in counts if one[2].any()} - {at[2]})[:_SLICES]
    for start in range(0, len(slices), 3):
        rows.append([panel(2, k, _PANEL) for k in slices[start : start + 3]])
    return _png(_sheet(rows, legend))


def draw_boxes(
    prediction: Prediction, image: Image, *, terminology: Terminology | None = None, language: str = "en"
) -> bytes:
    """PNG bytes: the chosen boxes with class and score over the study; of a volume a slice for each of the surest.

    Parameters
    ----------
    prediction : Prediction
        Its finding is boxes.
    image : Image
        On their grid.
    terminology : Terminology, optional
        For colours.
    language : {"en", "zh"}
        Of the words in it.
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
    dense = []
    for one in drawn:
        low, high = (np.clip(np.rint(c + 0.5), 0, image.grid.shape).astype(int) for c in one.corners)
        box = tuple(slice(int(x), max(int(y), int(x) + 1)) for x, y in zip(low, high, strict=True))
        inside = image.data[0][box].reshape(-1)
        dense.append(inside[:: max(1, inside.size // 1000)])
    view = _View(image, _limits(image, dense), WORDS[language])
    counts = [int((found.boxes.classes[chosen] == n).sum()) for n in range(len(classes))]
    legend: list[tuple[Term | None, str]] = [
        (term, f"{term.name}: {count}") for term, count in zip(terms, counts, strict=True)
    ]
    if image.grid.dimensions == 2:
        return _png(_sheet([[view.panel(2, 0, _SHORT, boxes=drawn)]], legend))
    middles = [int(np.clip(round(float(one.corners[:, 2].mean())), 0, image.grid.shape[2] - 1)) for one in drawn]
    slices = list(dict.fromkeys(middles))[:_SLICES] or [image.grid.shape[2] // 2]
    rows = [
        [view.panel(2, k, _PANEL, boxes=drawn) for k in slices[start : start + 3]] for start in range(0, len(slices), 3)
    ]
    if len(slices) < len(set(middles)):
        legend.append((None, WORDS[language]["shown"].format(shown=len(slices), all=len(set(middles)))))
    return _png(_sheet(rows, legend))


def draw_heat(image: Image, heat: Floats | None, *, tall: bool = False, language: str = "en") -> bytes:
    """PNG bytes: a heat map over the study, bright where it is strongest; without one the study alone.

    Of a volume three planes through the strongest voxel, or through the middle. The scale ends at the 99.8th percentile of
    what is positive.

    Parameters
    ----------
    image : Image
    heat : (I, J, K) float, optional
        On its grid.
    tall : bool
        For an upright page: the slice large, the other two planes beside it.
    language : {"en", "zh"}
        Of the words in it.
    """
    view = _View(image, _limits(image, ()), WORDS[language])
    shape = image.grid.shape
    share, at = None, tuple(n // 2 for n in shape)
    if heat is not None:
        positive = np.maximum(np.nan_to_num(np.asarray(heat, dtype=np.float32), posinf=0, neginf=0), 0)
        top = float(np.percentile(positive, 99.8)) or float(positive.max())
        share = np.clip(positive / top, 0, 1) if top > 0 else positive
        at = tuple(int(n) for n in np.unravel_index(int(positive.argmax()), shape)) if top > 0 else at

    def panel(axis: int, place: int, side: int) -> Sheet:
        cut = None if share is None else np.asarray(share.take(place, axis=axis))
        return view.panel(axis, place, side, heat=cut)

    if image.grid.dimensions == 2:
        return _png(_sheet([[panel(2, 0, _SHORT)]], ()))
    return _png(_sheet([_planes(panel, at, image, tall)], ()))


def _planes(panel: Callable[[int, int, int], Sheet], at: Sequence[int], image: Image, tall: bool) -> list[Sheet]:
    """The three planes through a voxel in a row, or the slice twice as large and the others one above the other.

    Of a loop, whose frames lie nowhere, one frame.
    """
    from PIL import Image as Pillow

    if image.grid.affine is None and tall:
        return [panel(2, at[2], _TALL)]
    if not tall:
        return [panel(axis, at[axis], _PANEL) for axis in (2, 1, 0)]
    beside = [panel(axis, at[axis], _PANEL) for axis in (1, 0)]
    column = Pillow.new("RGB", (max(p.width for p in beside), sum(p.height for p in beside) + 6), "white")
    column.paste(beside[0], (0, 0))
    column.paste(beside[1], (0, beside[0].height + 6))
    return [panel(2, at[2], _TALL), column]


@dataclass(frozen=True, eq=False)
class _Box:
    corners: Floats
    term: Term
    label: str


class _View:
    """A study between two grey values, and panels of its planes."""

    def __init__(self, image: Image, limits: tuple[float, float], words: Mapping[str, str]) -> None:
        self.image, self.limits, self.grid, self.words = image, limits, image.grid, words
        spacing = None if image.grid.spacing is None else np.asarray(image.grid.spacing)
        known = spacing is not None and bool(np.isfinite(spacing[:2]).all())
        self.mm = np.where(np.isfinite(spacing), spacing, 1.0) if known and spacing is not None else np.ones(3)
        # LPS+: the third patient axis points to the head, so increasing k must go up the picture.
        self.up = image.grid.affine is not None and image.grid.affine[2, 2] > 0

    def panel(
        self,
        axis: int,
        at: int,
        side: int,
        *,
        masks: Sequence[tuple[Bools, Term]] = (),
        boxes: Sequence[_Box] = (),
        heat: Floats | None = None,
    ) -> Sheet:
        """One plane with what was found in it, and its name; masks and heat are of the plane, in the grid's order."""
        from PIL import Image as Pillow

        across, down = [n for n in range(3) if n != axis]
        plane = self._colours(axis, at)
        flip = self.up and axis != 2
        columns, rows = self._size(plane.shape[1] * self.mm[across], plane.shape[0] * self.mm[down], plane.shape, side)
        pixels = np.ascontiguousarray(plane[::-1] if flip else plane)
        whole = columns % plane.shape[1] == 0 and rows % plane.shape[0] == 0
        smooth = Pillow.Resampling.NEAREST if whole else Pillow.Resampling.BILINEAR
        picture = np.array(Pillow.fromarray(pixels).resize((columns, rows), smooth), np.float32)
        for mask, term in masks:
            cut = mask.T
            if cut.any():
                _paint(picture, _enlarged(cut[::-1] if flip else cut, columns, rows), term.colour)
        if heat is not None:
            share = heat.T[::-1] if flip else heat.T
            _glow(picture, np.asarray(Pillow.fromarray(share).resize((columns, rows), Pillow.Resampling.BILINEAR)))
        sheet = Pillow.fromarray(np.rint(picture).astype(np.uint8))
        if boxes:
            self._frame(sheet, boxes, at, plane.shape)
        if self.grid.dimensions == 2:
            return sheet
        title = self.words[("column", "row", "slice")[axis]]
        return _titled(sheet, title.format(at=at + 1, all=self.grid.shape[axis]))

    def _colours(self, axis: int, at: int) -> Array:
        """The plane as (rows, columns, 3) uint8."""
        place: list[Any] = [slice(None)] * 3
        place[axis] = at
        values = self.image.data[(slice(None), *place)]
        low, high = self.limits
        values = np.where(np.isfinite(values), values, low)
        grey = np.rint(np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.uint8)
        return (grey if self.image.channels == 3 else np.repeat(grey[:1], 3, axis=0)).transpose(2, 1, 0)

    @staticmethod
    def _size(width: float, height: float, shape: tuple[int, ...], side: int) -> tuple[int, int]:
        """Columns and rows of a panel; pictures of square pixels by whole factors where they grow."""
        longest = max(width, height)
        if abs(width / height - shape[1] / shape[0]) < 1e-6:
            factor = float(max(1, round(side / min(shape[:2])))) if min(shape[:2]) < side else 1.0
            if side in {_PANEL, _TALL}:
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
        size = max(11, round(min(sheet.size) / 34))
        for one in reversed(boxes):  # the surest on top
            if not one.corners[0, 2] <= k <= one.corners[1, 2]:
                continue
            (left, top), (right, bottom) = (one.corners[:, :2] + 0.5) * (x, y)
            draw.rectangle((left, top, max(right, left), max(bottom, top)), outline=one.term.colour, width=width)
        for one in reversed(boxes):
            if not one.corners[0, 2] <= k <= one.corners[1, 2]:
                continue
            (left, top), (_, bottom) = (one.corners[:, :2] + 0.5) * (x, y)
            long, high = text_length(one.label, size), round(1.25 * size) + 3
            above = top - high if top >= high else min(bottom, sheet.height - high)
            start = float(np.clip(left, 0, max(sheet.width - long - 4, 0)))
            draw.rectangle((start, above, start + long + 3, above + high - 1), fill=one.term.colour)
            write_line(sheet, (round(start) + 2, round(above)), one.label, size, _ink(one.term.colour))


def _limits(image: Image, dense: Sequence[Floats]) -> tuple[float, float]:
    """Grey values that become black and white: of CT the window that suits what was found, else of a sample of voxels.

    As :func:`sagittal.tasks.picture.window` has it, which would hold all voxels at once.
    """
    if image.unit == "HU":
        middle = float(np.median(np.concatenate(dense))) if len(dense) else 0.0
        return next(limits for most, limits in _WINDOWS if middle <= most or most == float("inf"))
    step = max(1, round((image.data.size / _SAMPLE) ** (1 / 3)))
    sample = image.data[:, ::step, ::step, ::step] if image.grid.dimensions == 3 else image.data
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return 0.0, 1.0
    if image.bits == 8 and float(sample.min()) >= 0 and float(sample.max()) <= 255:
        return 0.0, 255.0
    low, high = (float(v) for v in np.percentile(sample, (0.5, 99.5)))
    return (low, high) if high > low else (float(sample.min()), float(sample.max()))


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


def _glow(picture: Floats, share: Floats) -> None:
    """Heat (rows, columns) from 0 to 1 into the picture itself; what it does not mark stays visible."""
    from matplotlib import colormaps

    colour = np.asarray(colormaps["inferno"](share))[..., :3] * 255
    cover = (_COVER * np.sqrt(np.clip(share, 0, 1)))[..., np.newaxis]
    picture *= 1 - cover
    picture += cover * colour


def _legend(
    counts: Sequence[int], terms: Sequence[Term], image: Image, words: Mapping[str, str]
) -> list[tuple[Term | None, str]]:
    edges = None if image.grid.affine is None else np.asarray(image.grid.affine)[:3, :3]
    lines: list[tuple[Term | None, str]] = []
    for count, term in zip(counts, terms, strict=True):
        if not count:
            lines.append((term, words["not found"].format(name=term.name)))
            continue
        if edges is not None and image.grid.dimensions == 3:
            size = f"{count * abs(float(np.linalg.det(edges))) / 1000:.3g} ml"
        else:
            size = f"{count:,} {words['pixels' if image.grid.dimensions == 2 else 'voxels']}"
        lines.append((term, f"{term.name}: {size}"))
    return lines


def _ink(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever stands out from a colour (relative luminance, ITU-R BT.709)."""
    bright = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]
    return (0, 0, 0) if bright > 110 else (255, 255, 255)


def _titled(sheet: Sheet, title: str) -> Sheet:
    from PIL import Image as Pillow

    made = Pillow.new("RGB", (sheet.width, sheet.height + 20), "white")
    made.paste(sheet, (0, 20))
    write_line(made, (2, 2), title, 13, (17, 17, 17))
    return made


def _sheet(rows: Sequence[Sequence[Sheet]], legend: Sequence[tuple[Term | None, str]]) -> Sheet:
    """Panels in rows, and the legend under them."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    gap = 6
    width = max(sum(p.width for p in row) + gap * (len(row) - 1) for row in rows)
    size = max(13, min(26, width // 60))
    step = round(size * 1.5)
    spots, x, y = [], 0, 0
    for _, text in legend:
        long = text_length(text, size) + round(2.4 * step)
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
        square = round(size * 0.9)
        if term is not None:
            draw.rectangle((x + 4, top + y + 3, x + 4 + square, top + y + 3 + square), fill=term.colour)
        write_line(made, (x + 10 + square, top + y), text, size, (17, 17, 17))
    return made


def _png(sheet: Sheet) -> bytes:
    stream = io.BytesIO()
    sheet.save(stream, format="png")
    return stream.getvalue()
