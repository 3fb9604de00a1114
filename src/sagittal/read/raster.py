"""PNG, JPEG, TIFF and BMP pictures: no position, no voxel size, values as stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sagittal.errors import ReadError, require
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.read.limits import MAX_FRAME_VALUES, as_read_error, check_file, check_size
from sagittal.types import Array

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")


def read_raster(path: Path) -> Image:
    """Read a picture: (1 or 3, width, height, pages) float32 on a grid without position.

    The choices, where the file leaves one: EXIF orientation is applied; a palette becomes RGB; CMYK and YCbCr become
    RGB; transparency is dropped, not blended, so that the stored colours stay; bilevel pictures hold 0 and 255. The
    pages of a TIFF of one size and kind stand along k. Resolution tags describe print and are not taken as spacing.

    Raises
    ------
    ReadError
        If the file is damaged, absurdly large or of a kind that is not read.
    MissingPackageError
        For 16-bit colour without the ``codecs`` extra.
    """
    check_file(path)
    with as_read_error("picture"):
        pixels, bits = _decode(path)
    if pixels.ndim == 3:
        pixels = pixels[..., np.newaxis]  # (K, H, W, C)
    data = pixels.astype(np.float32, order="C").transpose(3, 2, 1, 0)  # (C, W, H, K)
    return Image(data, Grid(data.shape[1:]), bits=bits)


def _decode(path: Path) -> tuple[Array, int]:
    """Pixels as (K, H, W) or (K, H, W, 3), and their bits."""
    from PIL import Image as Pictures
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with Pictures.open(path, formats=_FORMATS) as picture:
            pages = int(getattr(picture, "n_frames", 1)) if picture.format == "TIFF" else 1
            width, height = picture.size
            check_size((pages, height, width, len(picture.getbands())), "picture", limit=MAX_FRAME_VALUES)
            if _deep_colour(picture):
                return _decode_deep(path, str(picture.format))
            planes = []
            for page in range(pages):
                if pages > 1:
                    picture.seek(page)
                if picture.size != (width, height):
                    raise ReadError("picture: its pages differ in size; save each as a file of its own")
                planes.append(_values(ImageOps.exif_transpose(picture)))
    except UnidentifiedImageError as error:
        if _is_tiff(path):  # kinds of TIFF that Pillow does not know, 16-bit RGB among them
            return _decode_deep(path, "TIFF")
        raise ReadError("picture: damaged, or not a PNG, JPEG, TIFF or BMP") from error
    except Pictures.DecompressionBombError as error:
        raise ReadError("picture: declares more pixels than are read at once; cut it into tiles first") from error
    if len({plane.shape for plane in planes}) > 1:
        raise ReadError("picture: its pages differ in colour; save each as a file of its own")
    pixels = np.stack(planes)
    bits = {"u1": 8, "u2": 16}.get(pixels.dtype.str[1:], 0)
    return pixels, bits


def _values(picture: Any) -> Array:
    """One page as (H, W) or (H, W, 3)."""
    mode = picture.mode
    if mode in {"L", "RGB", "F", "I"} or mode.startswith("I;16"):
        values = np.asarray(picture)
    elif mode in {"1", "LA", "La"}:
        values = np.asarray(
            picture.convert("LA" if mode == "La" else mode).convert("L") if mode == "1" else picture.getchannel("L")
        )
    elif mode in {"RGBA", "RGBX"}:
        values = np.asarray(picture)[..., :3]
    elif mode in {"P", "PA"}:
        values = np.asarray(picture.convert("RGBA"))[..., :3]
    elif mode in {"CMYK", "YCbCr", "LAB", "HSV", "RGBa"}:
        values = np.asarray(picture.convert("RGB"))
    else:
        raise ReadError(f"picture: pixels of the kind '{mode}' are not read; save it as grey or RGB")
    if values.dtype.kind == "i" and values.size and values.min() >= 0 and values.max() < 2**16:
        values = values.astype(np.uint16)  # 16-bit grey that the decoder widened
    return values


def _deep_colour(picture: Any) -> bool:
    """Whether the file holds colour of more than 8 bits, which Pillow would silently cut to 8."""
    if picture.format == "PNG":
        raw = [tile[3] for tile in picture.tile]
        return any(isinstance(mode, str) and mode.endswith(";16B") and mode[:2] in {"RG", "LA"} for mode in raw)
    if picture.format == "TIFF":
        depth = picture.tag_v2.get(258, (8,))  # BitsPerSample
        return len(depth) > 1 and max(depth) > 8
    return False


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}


def _decode_deep(path: Path, kind: str) -> tuple[Array, int]:
    """16-bit colour as (1, H, W, 3)."""
    if kind == "TIFF":
        tifffile = require("tifffile", feature="reading this kind of TIFF", extra="codecs")
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            check_size(tuple(page.shape), "picture", limit=MAX_FRAME_VALUES)
            pixels = page.asarray()
            if getattr(page, "planarconfig", 1) == 2 and pixels.ndim == 3:
                pixels = np.moveaxis(pixels, 0, -1)
    else:
        codecs = require("imagecodecs", feature="reading PNG of 16-bit colour", extra="codecs")
        pixels = codecs.png_decode(path.read_bytes())
    if pixels.ndim == 3 and pixels.shape[-1] in {2, 4}:
        pixels = pixels[..., : pixels.shape[-1] - 1]  # the last is transparency
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in {2, 3} or (pixels.ndim == 3 and pixels.shape[-1] != 3) or pixels.dtype.kind not in "uif":
        raise ReadError(f"picture: {pixels.dtype} values of shape {pixels.shape} are not read; save it as grey or RGB")
    return pixels[np.newaxis], 8 * pixels.itemsize if pixels.dtype.kind == "u" else 0
