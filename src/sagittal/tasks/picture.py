"""Pictures of a study for people: windowed to 8 bits, three planes of a volume, a caption under it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.types import Array, Floats

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

#: Smaller pictures are enlarged to about this many pixels, by whole factors so that pixels stay visible.
SHORT_SIDE = 224


def window(data: Floats, *, bits: int = 0, percentiles: tuple[float, float] = (0.5, 99.5)) -> Array:
    """Values as uint8: as they are for pictures of 8 bits, else between two percentiles of the finite values."""
    finite = np.isfinite(data)
    if not finite.any():
        return np.zeros(data.shape, dtype=np.uint8)
    if bits == 8 and float(data[finite].min()) >= 0 and float(data[finite].max()) <= 255:
        return np.where(finite, data, 0).astype(np.uint8)
    low, high = (float(v) for v in np.percentile(data[finite], percentiles))
    if high <= low:  # nearly constant, such as a sparse mask
        low, high = float(data[finite].min()), float(data[finite].max())
    scaled = (np.where(finite, data, low) - low) / max(high - low, 1e-12)
    return np.asarray(np.round(np.clip(scaled, 0, 1) * 255), dtype=np.uint8)


def picture(image: Image) -> Array:
    """The image as (H, W, 3) uint8: a plane as it is, a volume as its three middle planes side by side.

    Axial, coronal and sagittal planes have the aspect of the patient (millimetres, not voxels) and, where the file
    gives a position, the head at the top. Channels other than red, green, blue are shown as grey, the first one.
    """
    values = window(image.data, bits=image.bits)
    colour = values if image.channels == 3 else np.repeat(values[:1], 3, axis=0)  # (3, I, J, K)
    if image.grid.dimensions == 2:
        return _enlarge(colour[..., 0].transpose(2, 1, 0))
    spacing = image.grid.spacing
    mm = np.ones(3) if spacing is None or not np.all(np.isfinite(spacing)) else np.asarray(spacing)
    i, j, k = (n // 2 for n in image.grid.shape)
    planes = [  # rows are the later axis, columns the earlier
        _resize(colour[:, :, :, k].transpose(2, 1, 0), mm[1], mm[0]),
        _resize(_head_up(colour[:, :, j, :].transpose(2, 1, 0), image), mm[2], mm[0]),
        _resize(_head_up(colour[:, i, :, :].transpose(2, 1, 0), image), mm[2], mm[1]),
    ]
    height = max(plane.shape[0] for plane in planes)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, 4 * (n < 2)), (0, 0))) for n, p in enumerate(planes)]
    return np.concatenate(padded, axis=1)


def _head_up(plane: Array, image: Image) -> Array:
    return plane[::-1] if head_up(image.grid) else plane


def head_up(grid: Grid) -> bool:
    """Whether a plane with rows along k must be turned over to have the head at the top.

    LPS+: the third patient axis points to the head, so increasing k must go up the picture.
    """
    return grid.affine is not None and bool(grid.affine[2, 2] > 0)


def _resize(plane: Array, row_mm: float, column_mm: float) -> Array:
    from PIL import Image as Pillow

    fine = min(row_mm, column_mm)
    rows, columns = round(plane.shape[0] * row_mm / fine), round(plane.shape[1] * column_mm / fine)
    factor = max(1, round(SHORT_SIDE / max(rows, columns)))
    size = (max(1, columns * factor), max(1, rows * factor))
    method = Pillow.Resampling.NEAREST if row_mm == column_mm else Pillow.Resampling.BILINEAR
    return np.asarray(Pillow.fromarray(np.ascontiguousarray(plane)).resize(size, method))


def _enlarge(plane: Array) -> Array:
    factor = max(1, round(SHORT_SIDE / min(plane.shape[:2])))
    return np.ascontiguousarray(plane.repeat(factor, axis=0).repeat(factor, axis=1))


#: Families with Chinese, Japanese and Korean signs, of which the first that is installed is used.
_WIDE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Arial Unicode MS",
    "Droid Sans Fallback",
)


@cache
def wide_font() -> tuple[str, str] | None:
    """Name and file of an installed font with Chinese signs; ``None`` where there is none."""
    from matplotlib.font_manager import fontManager

    files = {entry.name: entry.fname for entry in fontManager.ttflist}
    return next(((name, files[name]) for name in _WIDE_FONTS if name in files), None)


@cache
def font_of(size: int, *, wide: bool) -> FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib (Latin, Greek, Cyrillic), or one with Chinese signs where installed."""
    import matplotlib
    from PIL import ImageFont

    other = wide_font() if wide else None
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(other[1] if other else path, size)


def with_caption(pixels: Array, lines: list[str]) -> Array:
    """A picture with lines of text under it, dark on white, larger under wide pictures.

    A line that is too long ends in an ellipsis.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    size = max(13, pixels.shape[1] // 22)
    font = font_of(size, wide=any(ord(sign) >= 0x2E80 for line in lines for sign in line))
    step = size + 5
    height, width = pixels.shape[:2]
    sheet = Pillow.new("RGB", (max(width, 200), height + step * len(lines) + 6), "white")
    sheet.paste(Pillow.fromarray(np.ascontiguousarray(pixels)), (0, 0))
    draw = ImageDraw.Draw(sheet)
    for n, full in enumerate(lines):
        line = full
        while line and draw.textlength(line, font=font) > sheet.width - 8:
            line = line[:-2].rstrip("\u2026") + "\u2026" if len(line) > 2 else ""
        draw.text((4, height + 3 + n * step), line, fill=(17, 17, 17), font=font)
    return np.asarray(sheet)
