"""Pictures of a segmentation: the study with the true outline, the model's, and where both agree, in fixed colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sagittal.case import Case
from sagittal.errors import DataError, SagittalError
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.metrics.overlap import overlap
from sagittal.prediction import Mask, Prediction
from sagittal.tasks.outlines import Box, cut, find_boxes, true_segmentation, union
from sagittal.tasks.picture import font_of, head_up, window
from sagittal.truth import Segmentation
from sagittal.types import Array, Bools, Floats

#: Told apart by colour-blind readers, on grey images and on the red of a fundus.
TRUTH, ANSWER, BOTH = (0, 170, 255), (255, 215, 0), (255, 255, 255)
_INK = (17, 17, 17)

#: A plane is enlarged by a whole factor up to about this many pixels, and made smaller above the second number.
SIDE, MOST = 260, 760
#: Share of a mask's pixels on its rim from which it is filled, not outlined: thin vessels.
_RIM = 0.45
_OPACITY = 0.75


class Outlined(Protocol):
    """What is needed of a segmentation task."""

    @property
    def scheme(self) -> LabelScheme:
        """Its structures."""
        ...


@dataclass(frozen=True, eq=False)
class Plane:
    """One plane of a study as it is drawn: rows from the top, columns from the left.

    Parameters
    ----------
    pixels : (H, W, 3) uint8
    truth, answer : tuple of (H, W) bool
        One a structure.
    mm : (row, column)
        Edge lengths of a pixel.
    doubt : (H, W) uint8, optional
    """

    pixels: Array
    truth: tuple[Bools, ...]
    answer: tuple[Bools, ...]
    mm: tuple[float, float]
    doubt: Array | None = None


def figure(task: Outlined, prediction: Prediction, case: Case) -> Array:
    """The study with both outlines, a legend and the Dice of each structure, (H, W, 3) uint8.

    A picture as it is; of a volume the axial, coronal and sagittal plane in which the structures are largest, cut to their
    surroundings, with the aspect of the patient and the head at the top.

    Raises
    ------
    DataError
        If the prediction holds no mask.
    ReadError, GeometryError
        If the study or its truth cannot be read.
    """
    finding = _mask(prediction, case)
    planes, truth = planes_of(task, finding, case)
    drawn = side_by_side([draw_plane(plane) for plane in planes])
    if truth is None:
        return with_legend(drawn, [(ANSWER, "answer")], ["truth unknown"])
    legend = [(BOTH, "both"), (TRUTH, "truth only"), (ANSWER, "answer only")]
    return with_legend(drawn, legend, ["Dice: " + ", ".join(_dice_texts(task.scheme.classes, finding, truth))])


def _dice_texts(names: Sequence[str], finding: Mask, truth: Segmentation) -> list[str]:
    answer = finding.segmentation
    boxes = find_boxes(answer), find_boxes(truth)
    known = {structure.name for structure in truth.structures}
    hidden = None if truth.ignore is None else truth.unknown
    out = []
    for name in names:
        if name not in known:
            out.append(f"{name} unknown")
            continue
        box = union(boxes[0].get(name), boxes[1].get(name))
        counts = overlap(*(cut(one, name, box, None if hidden is None else hidden[box]) for one in (answer, truth)))
        if counts.both + counts.only_pred + counts.only_truth == 0:
            out.append(f"{name} absent, none found")
        else:
            missed = "" if counts.both + counts.only_pred else " (missed)"
            missed = missed if counts.both + counts.only_truth else " (not there)"
            out.append(f"{name} {counts.dice:.2f}{missed}")
    return out


def doubt_figure(task: Outlined, prediction: Prediction, case: Case) -> Array | None:
    """The same planes with the answer's outline and, in red, where networks and mirrored views disagree.

    ``None`` where the prediction says nothing of it.
    """
    finding = _mask(prediction, case)
    if finding.doubt is None:
        return None
    planes, _ = planes_of(task, finding, case)
    drawn = []
    for plane in planes:
        if plane.doubt is not None:
            share = plane.doubt[..., None].astype(np.float32) / 255
            red = plane.pixels * (1 - share) + np.array([255, 0, 0], dtype=np.float32) * share
            drawn.append(draw_plane(Plane(red.astype(np.uint8), (), plane.answer, plane.mm), fill=False))
    most = float(finding.doubt.max()) / 255
    legend = [(ANSWER, "answer"), ((255, 0, 0), "networks and views disagree")]
    return with_legend(side_by_side(drawn), legend, [f"largest disagreement {most:.2f} of 1"])


def _mask(prediction: Prediction, case: Case) -> Mask:
    if not isinstance(prediction.finding, Mask):
        raise DataError(f"case {case.id}: a mask is expected to be drawn, not {type(prediction.finding).__name__}")
    return prediction.finding


def planes_of(task: Outlined, finding: Mask, case: Case) -> tuple[list[Plane], Segmentation | None]:
    """The planes that are drawn of a case, and its truth where that is known."""
    image = case.image(next(iter(case.images)))
    if image.grid.shape != finding.grid.shape:
        raise DataError(f"case {case.id}: the mask {finding.grid.shape} does not lie on the study {image.grid.shape}")
    try:
        truth = true_segmentation(case, task.scheme, finding.grid)
    except SagittalError:  # the answer can be drawn without it
        truth = None
    names = task.scheme.classes
    if image.grid.dimensions == 2:
        cuts: list[tuple[int, int]] = [(2, 0)]
    else:
        cuts = [(axis, at) for axis, at in zip((2, 1, 0), _largest(finding.segmentation, truth, names), strict=True)]
    return [_plane(image, finding, truth, names, axis, at) for axis, at in cuts], truth


def _largest(answer: Segmentation, truth: Segmentation | None, names: Sequence[str]) -> tuple[int, int, int]:
    """For the axes k, j, i the index at which the largest true structure has the most voxels.

    Where nothing is true the largest one found, and the middle where there is none either.
    """
    best: tuple[int, Bools, Box] | None = None
    for one in (truth, answer):
        boxes = {} if one is None or best is not None else find_boxes(one)
        for name, box in boxes.items():
            if one is not None and name in names:
                mask = cut(one, name, box)
                size = int(np.count_nonzero(mask))
                if best is None or size > best[0]:
                    best = size, mask, box
    if best is None:
        i, j, k = (n // 2 for n in answer.grid.shape)
        return k, j, i
    _, mask, box = best
    at = []
    for axis in (2, 1, 0):
        others = tuple(a for a in range(3) if a != axis)
        at.append(box[axis].start + int(np.argmax(np.count_nonzero(mask, axis=others))))
    return at[0], at[1], at[2]


def _plane(image: Image, finding: Mask, truth: Segmentation | None, names: Sequence[str], axis: int, at: int) -> Plane:
    """The plane at one index along an axis; rows are the later of the other axes, columns the earlier."""
    where: list[Any] = [slice(None)] * 3
    where[axis] = at
    index = tuple(where)
    masks = []
    for one in (finding.segmentation, truth):
        known = {} if one is None else {s.name: s for s in one.structures}
        masks.append(
            [np.isin(one.layers[known[n].layer][index], known[n].values).T for n in names if n in known] if one else []
        )
    values = image.data[(slice(None), *index)]  # (C, a, b)
    doubt = None if finding.doubt is None else finding.doubt[index].T
    spacing = image.grid.spacing
    mm = np.ones(3) if spacing is None else np.where(np.isfinite(spacing), spacing, 1.0)
    others = [a for a in range(3) if a != axis]
    rows, columns = _surroundings([*masks[0], *masks[1]], values.shape[2], values.shape[1], image.grid.dimensions)
    pixels = _pixels(values[:, columns, rows], image).transpose(2, 1, 0)
    flip = slice(None, None, -1) if axis != 2 and head_up(image.grid) else slice(None)

    def pick(plane: Array) -> Array:
        return np.ascontiguousarray(plane[rows, columns][flip])

    return Plane(
        np.ascontiguousarray(pixels[flip]),
        tuple(pick(m) for m in masks[1]),
        tuple(pick(m) for m in masks[0]),
        (float(mm[others[1]]), float(mm[others[0]])),
        None if doubt is None else pick(doubt),
    )


def _surroundings(masks: Sequence[Bools], height: int, width: int, dimensions: int) -> tuple[slice, slice]:
    """Rows and columns around what is outlined: a volume's plane is cut to twice its box, a picture is whole."""
    whole = slice(0, height), slice(0, width)
    if dimensions == 2 or not any(mask.any() for mask in masks):
        return whole
    some = np.logical_or.reduce(list(masks))
    out = []
    for axis, n in ((1, height), (0, width)):
        used = np.flatnonzero(some.any(axis=axis))
        margin = max(12, (used[-1] - used[0] + 1) // 2)
        out.append(slice(max(0, int(used[0]) - margin), min(n, int(used[-1]) + 1 + margin)))
    return out[0], out[1]


def _pixels(values: Floats, image: Image) -> Array:
    """One plane as (3, ...) uint8, its contrast that of what is drawn."""
    shown = window(values, bits=image.bits)
    return shown if image.channels == 3 else np.repeat(shown[:1], 3, axis=0)


def draw_plane(plane: Plane, *, fill: bool | None = None) -> Array:
    """The plane with its outlines, enlarged with the aspect of the patient.

    What lies on one outline only has that side's colour, what lies on both is white. Thin structures are filled, as an
    outline would leave nothing of them to see; ``fill`` forces either.
    """
    from PIL import Image as Pillow

    height, width = plane.pixels.shape[:2]
    fine = min(plane.mm)
    rows, columns = height * plane.mm[0] / fine, width * plane.mm[1] / fine
    factor = max(1, round(SIDE / max(rows, columns)))
    factor = min(float(factor), MOST / max(rows, columns))
    size = max(1, round(columns * factor)), max(1, round(rows * factor))
    method = Pillow.Resampling.NEAREST if plane.mm[0] == plane.mm[1] and factor >= 1 else Pillow.Resampling.BILINEAR
    shown = np.array(Pillow.fromarray(plane.pixels).resize(size, method)).astype(np.float32)
    sides = [[_resized(mask, size) for mask in masks] for masks in (plane.truth, plane.answer)]
    if fill is None:
        fill = any(_is_thin(mask) for mask in plane.truth) if plane.truth else any(map(_is_thin, plane.answer))
    marked = []
    for masks in sides:
        mark = np.zeros(size[::-1], dtype=bool)
        for mask in masks:
            mark |= mask if fill else _rim(mask)
        marked.append(mark)
    truth, answer = marked
    for where, colour in ((truth & ~answer, TRUTH), (answer & ~truth, ANSWER), (truth & answer, BOTH)):
        # Thin masks cover much: what lies under them stays visible.
        strength = _OPACITY if fill else 1.0
        shown[where] = (1 - strength) * shown[where] + strength * np.array(colour, dtype=np.float32)
    return np.round(shown).astype(np.uint8)


def _resized(mask: Bools, size: tuple[int, int]) -> Bools:
    from PIL import Image as Pillow

    return np.asarray(Pillow.fromarray(mask.astype(np.uint8) * 255).resize(size, Pillow.Resampling.NEAREST)) > 127


def _rim(mask: Bools) -> Bools:
    """Pixels of a mask beside its outside; two pixels wide in a large picture."""
    from scipy import ndimage

    width = 1 if max(mask.shape) < 220 else 2
    return np.asarray(mask & ~ndimage.binary_erosion(mask, iterations=width, border_value=0))


def _is_thin(mask: Bools) -> bool:
    count = int(np.count_nonzero(mask))
    return count > 400 and int(np.count_nonzero(_rim(mask))) > _RIM * count


def side_by_side(pictures: Sequence[Array]) -> Array:
    """Pictures in a row on white, each as large as it is."""
    height = max(picture.shape[0] for picture in pictures)
    padded = [
        np.pad(p, ((0, height - p.shape[0]), (0, 4 * (n < len(pictures) - 1)), (0, 0)), constant_values=255)
        for n, p in enumerate(pictures)
    ]
    return np.concatenate(padded, axis=1)


def with_legend(pixels: Array, names: Sequence[tuple[tuple[int, int, int], str]], lines: Sequence[str]) -> Array:
    """A picture with a swatch and a word for each colour under it, and lines of text that wrap."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    size = int(np.clip(pixels.shape[1] // 40, 13, 22))
    wide = any(ord(sign) >= 0x2E80 for text in (*lines, *(name for _, name in names)) for sign in text)
    font = font_of(size, wide=wide)
    width = max(pixels.shape[1], 260)
    ruler = ImageDraw.Draw(Pillow.new("RGB", (1, 1)))
    wrapped: list[str] = []
    for line in lines:
        wrapped += _wrap(line, lambda text: ruler.textlength(text, font=font), width - 8)
    step = size + 6
    sheet = Pillow.new("RGB", (width, pixels.shape[0] + step * (1 + len(wrapped)) + 6), "white")
    sheet.paste(Pillow.fromarray(np.ascontiguousarray(pixels)), (0, 0))
    draw, left, top = ImageDraw.Draw(sheet), 4, pixels.shape[0] + 4
    for colour, name in names:
        draw.rectangle((left, top + 2, left + size, top + size), fill=colour, outline=(107, 114, 128))
        draw.text((left + size + 5, top), name, fill=_INK, font=font)
        left += size + 18 + int(draw.textlength(name, font=font))
    for n, line in enumerate(wrapped):
        draw.text((4, top + step * (n + 1)), line, fill=_INK, font=font)
    return np.asarray(sheet)


def _wrap(line: str, length: Any, most: float) -> list[str]:
    """A line broken at spaces, in at most three lines."""
    out, current = [], ""
    for word in line.split(" "):
        longer = f"{current} {word}".strip()
        if current and length(longer) > most:
            out.append(current)
            current = word
        else:
            current = longer
    out.append(current)
    return out if len(out) <= 3 else [*out[:2], out[2] + " …"]
