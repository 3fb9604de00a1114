"""A frame as a picture that a browser shows: windowed, cut and scaled as asked for (PS3.18 8.3.5, PS3.3 C.11.2)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from pydicom.dataset import Dataset as Header

from sagittal.errors import ConfigError, MissingPackageError, ReadError
from sagittal.guard.limits import as_read_error
from sagittal.serve.frames import FrameIndex
from sagittal.types import Array, Floats

Function = Literal["linear", "linear-exact", "sigmoid"]
#: Media types of pictures, the usual one first.
PICTURES = ("image/jpeg", "image/png")
#: Pixels along a side of a thumbnail, and the most that a viewport may ask for.
THUMBNAIL, MOST_SIDE = 128, 4096


@dataclass(frozen=True)
class Window:
    """A grey-scale window (PS3.3 C.11.2.1.2), in values of the modality."""

    center: float
    width: float
    function: Function = "linear"

    def apply(self, values: Floats) -> Array:
        """Values as (…) uint8."""
        x = values.astype(np.float32, copy=False)
        if self.function == "sigmoid":
            y = 255 / (1 + np.exp(np.clip(-4 * (x - self.center) / self.width, -60, 60)))
        elif self.function == "linear-exact" or self.width <= 1:
            y = ((x - self.center) / self.width + 0.5) * 255
        else:
            y = ((x - (self.center - 0.5)) / (self.width - 1) + 0.5) * 255
        return np.asarray(np.clip(np.round(y), 0, 255), dtype=np.uint8)


@dataclass(frozen=True)
class View:
    """How a frame is to be shown.

    Attributes
    ----------
    window : Window, optional
        The file's own where left out.
    size : (int, int), optional
        Width and height of the viewport, into which the picture is fitted.
    part : (float, float, float, float), optional
        Left, top, width and height of the part that is shown, in pixels; a negative extent mirrors.
    quality : int
        Of JPEG, 1 to 100.
    """

    window: Window | None = None
    size: tuple[int, int] | None = None
    part: tuple[float, float, float, float] | None = None
    quality: int = 90


def parse_view(query: Mapping[str, str], *, thumbnail: bool = False) -> View:
    """What the query parameters ``window``, ``viewport`` and ``quality`` ask for (PS3.18 8.3.5.1).

    Raises
    ------
    ConfigError
        If one of them is no such value.

    Examples
    --------
    >>> parse_view({"window": "40,400,linear", "viewport": "256,256"}).size
    (256, 256)
    """
    window = None
    if query.get("window"):
        center, width, *rest = [piece.strip() for piece in query["window"].split(",")] + [""] * 2
        function = (rest[0] or "linear").lower()
        if function not in {"linear", "linear-exact", "sigmoid"}:
            raise ConfigError("window: the function is linear, linear-exact or sigmoid")
        window = Window(_number(center, "window"), _number(width, "window"), cast(Function, function))
        if window.width <= 0 or (window.function == "linear" and window.width < 1):
            raise ConfigError("window: the width must be at least 1")
    size: tuple[int, int] | None = (THUMBNAIL, THUMBNAIL) if thumbnail else None
    part = None
    if query.get("viewport"):
        pieces = [piece.strip() for piece in query["viewport"].split(",")]
        if len(pieces) not in {2, 6}:
            raise ConfigError("viewport: two numbers, width and height, or six")
        width_, height = (_number(piece, "viewport") for piece in pieces[:2])
        if not (1 <= width_ <= MOST_SIDE and 1 <= height <= MOST_SIDE):
            raise ConfigError(f"viewport: width and height lie between 1 and {MOST_SIDE}")
        size = (int(width_), int(height))
        if len(pieces) == 6:
            left, top, across, down = (_number(piece or "0", "viewport") for piece in pieces[2:])
            part = (left, top, across, down)
    quality = 90
    if query.get("quality"):
        quality = int(_number(query["quality"], "quality"))
        if not 1 <= quality <= 100:
            raise ConfigError("quality: a whole number from 1 to 100")
    return View(window, size, part, quality)


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise ConfigError(f"{what}: expected numbers with commas between them") from error
    if not np.isfinite(value) or abs(value) > 1e9:
        raise ConfigError(f"{what}: expected numbers with commas between them")
    return value


def render(frames: FrameIndex, number: int, view: View, media_type: str) -> bytes:
    """One frame as a picture.

    Parameters
    ----------
    frames : FrameIndex
    number : int
        From 0.
    view : View
    media_type : {"image/jpeg", "image/png"}

    Raises
    ------
    ReadError
        If the frame cannot be decoded.
    IndexError
        If there is no such frame.
    """
    with as_read_error("DICOM"):
        try:
            pixels = _shown(frames, number, view.window)
        except (MissingPackageError, IndexError) as error:
            raise ReadError(f"DICOM: cannot be shown ({error})") from error
        return encode_picture(_fitted(pixels, view), media_type, view.quality)


def encode_picture(pixels: Array, media_type: str, quality: int = 90) -> bytes:
    """Pixels (H, W) or (H, W, 3) uint8 as JPEG or PNG."""
    from PIL import Image as Pillow

    stream = io.BytesIO()
    picture = Pillow.fromarray(np.ascontiguousarray(pixels))
    if media_type == "image/png":
        picture.save(stream, format="png", compress_level=1)
    else:
        picture.save(stream, format="jpeg", quality=quality)
    return stream.getvalue()


def _shown(frames: FrameIndex, number: int, window: Window | None) -> Array:
    """(rows, columns) or (rows, columns, 3) uint8."""
    values, layout, header = frames.values(number), frames.layout, frames.header
    if layout.photometric == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        colours = apply_color_lut(values[..., 0], _whole(header))[..., :3]
        return np.asarray(colours >> 8 if colours.dtype.itemsize == 2 else colours, dtype=np.uint8)
    if layout.samples == 3:
        return values.astype(np.uint8) if layout.allocated == 8 else (values >> layout.stored - 8).astype(np.uint8)
    groups = _groups(header, number)
    grey = _modality(values[..., 0], groups)
    shown = _voi(grey, groups) if window is None else window.apply(grey)
    return 255 - shown if layout.photometric == "MONOCHROME1" else shown


class _Groups:
    """Elements of one frame: in its functional groups, the shared ones, or the header."""

    def __init__(self, places: list[Header]) -> None:
        self.places = places

    def source(self, sequence: str, keyword: str) -> Header | None:
        for place in self.places:
            items = place.get(sequence)
            if items and items[0].get(keyword) not in {None, ""}:
                return cast(Header, items[0])
        found = self.places[-1]
        return found if found.get(keyword) not in {None, ""} else None


def _groups(header: Header, number: int) -> _Groups:
    places = []
    own, shared = header.get("PerFrameFunctionalGroupsSequence"), header.get("SharedFunctionalGroupsSequence")
    if own and number < len(own):
        places.append(own[number])
    if shared:
        places.append(shared[0])
    return _Groups([*places, header])


def _modality(stored: Array, groups: _Groups) -> Floats:
    header = groups.places[-1]
    if header.get("ModalityLUTSequence"):
        from pydicom.pixels.processing import apply_modality_lut

        return np.asarray(apply_modality_lut(stored, _whole(header)), dtype=np.float32)
    source = groups.source("PixelValueTransformationSequence", "RescaleSlope")
    slope = float(source.RescaleSlope) if source is not None else 1.0
    intercept = float(source.get("RescaleIntercept") or 0) if source is not None else 0.0
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        slope, intercept = 1.0, 0.0
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _voi(grey: Floats, groups: _Groups) -> Array:
    header = groups.places[-1]
    source = groups.source("FrameVOILUTSequence", "WindowCenter")
    if source is not None:
        center, width = _first(source.WindowCenter), _first(source.get("WindowWidth"))
        function = str(source.get("VOILUTFunction") or "LINEAR").strip().lower().replace("_", "-")
        if center is not None and width is not None and width >= (0.001 if function != "linear" else 1):
            known = function if function in {"linear", "linear-exact", "sigmoid"} else "linear"
            return Window(center, width, cast(Function, known)).apply(grey)
    if header.get("VOILUTSequence"):
        from pydicom.pixels.processing import apply_voi

        mapped = np.asarray(apply_voi(np.round(grey).astype(np.int32), _whole(header)), dtype=np.float32)
        return _spread(mapped, float(mapped.min()), float(mapped.max()))
    finite = grey[np.isfinite(grey)]
    if not finite.size:
        return np.zeros(grey.shape, np.uint8)
    low, high = (float(v) for v in np.percentile(finite, (0.5, 99.5)))
    if high <= low:
        low, high = float(finite.min()), float(finite.max())
    return _spread(grey, low, high)


def _spread(values: Floats, low: float, high: float) -> Array:
    scaled = (np.nan_to_num(values, nan=low) - low) / max(high - low, 1e-12)
    return np.asarray(np.round(np.clip(scaled, 0, 1) * 255), dtype=np.uint8)


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
    except (ValueError, TypeError, IndexError):
        return None
    return number if np.isfinite(number) else None


def _whole(header: Header) -> Header:
    """The header as pydicom's own functions need it."""
    return cast(Header, header._head()) if hasattr(header, "_head") else header


def _fitted(pixels: Array, view: View) -> Array:
    """The part that is shown, fitted into the viewport with its shape kept."""
    rows, columns = pixels.shape[:2]
    if view.part is not None:
        left, top, across, down = view.part
        mirrored, flipped = across < 0, down < 0
        wide, high = abs(across) or columns - left, abs(down) or rows - top
        x0, y0 = int(np.clip(left, 0, columns - 1)), int(np.clip(top, 0, rows - 1))
        x1, y1 = int(np.clip(left + wide, x0 + 1, columns)), int(np.clip(top + high, y0 + 1, rows))
        pixels = pixels[y0:y1, x0:x1]
        pixels = pixels[:: -1 if flipped else 1, :: -1 if mirrored else 1]
        rows, columns = pixels.shape[:2]
    if view.size is None:
        return pixels
    scale = min(view.size[0] / columns, view.size[1] / rows)
    width, height = max(1, round(columns * scale)), max(1, round(rows * scale))
    if (width, height) == (columns, rows):
        return pixels
    from PIL import Image as Pillow

    picture = Pillow.fromarray(np.ascontiguousarray(pixels))
    way = Pillow.Resampling.BILINEAR if scale >= 1 else Pillow.Resampling.BOX
    return np.asarray(picture.resize((width, height), way))
