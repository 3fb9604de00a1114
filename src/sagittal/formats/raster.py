"""PNG, JPEG, TIFF, BMP, WebP and JPEG 2000 pictures: no position, no voxel size, values as stored."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.errors import ReadError, SagittalError, require
from sagittal.grid import Grid
from sagittal.guard.limited import run_limited
from sagittal.guard.limits import MAX_FRAME_VALUES, as_read_error, check_file, check_size
from sagittal.image import Image
from sagittal.types import Array

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
_JPEG_2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_raster(path: Path) -> Image:
    """Read a picture: (1 or 3, width, height, pages) float32 on a grid without position.

    The choices, where the file leaves one: EXIF and TIFF orientation are applied; a palette becomes RGB; CMYK and YCbCr
    become RGB; transparency is dropped, not blended, so that the stored colours stay; bilevel pictures hold 0 and 255;
    where 0 means white the values are turned over. The pages of a TIFF of one size and kind stand along k, copies of
    lower resolution left out. Resolution tags describe print and are not taken as spacing. JPEG 2000, WebP, and TIFF and
    PNG of 16-bit colour or rare kinds of numbers are decoded in a process with limits.

    Raises
    ------
    ReadError
        If the file is damaged, absurdly large, animated or of a kind that is not read.
    MissingPackageError
        For JPEG 2000, 16-bit colour and rare kinds of TIFF without the ``codecs`` extra.
    """
    check_file(path)
    with as_read_error("picture"):
        with path.open("rb") as file:
            start = file.read(12)
        if start.startswith(_JPEG_2000):
            pixels, bits = _apart(path, "JPEG2000")
        elif start[:4] == b"RIFF" and start[8:12] == b"WEBP":
            pixels, bits = _apart(path, "WEBP")
        else:
            pixels, bits = _decode(path)
    if pixels.ndim == 3:
        pixels = pixels[..., np.newaxis]  # (K, H, W, C)
    with np.errstate(over="ignore"):  # beyond 32 bits: infinite, which check reports
        data = pixels.astype(np.float32, order="C").transpose(3, 2, 1, 0)  # (C, W, H, K)
    return Image(data, Grid(data.shape[1:]), bits=bits)


#: Seconds that decoding a rarer kind of picture may take, and one more for each MB: some damaged files never end.
PATIENCE_S = 10.0


def _apart(path: Path, kind: str) -> tuple[Array, int]:
    """Pixels and bits, decoded in a process with limits."""
    for package in ("tifffile", "imagecodecs"):
        if kind != "WEBP" and not (package == "tifffile" and kind != "TIFF"):
            require(package, feature=f"reading {_WORDS[kind]}", extra="codecs")
    patience = PATIENCE_S + path.stat().st_size / 2**20
    _, result = next(iter(run_limited(decode_apart, [[str(path.resolve()), kind]], timeout_s=patience)))
    if isinstance(result, SagittalError):
        raise result
    pixels, bits = result
    return np.asarray(pixels), int(bits)


_WORDS = {"TIFF": "this kind of TIFF", "PNG": "PNG of 16-bit colour", "JPEG2000": "JPEG 2000"}


def decode_apart(item: list[str]) -> list[Any]:
    """Pixels (K, H, W) or (K, H, W, 3) and bits of a picture, for a process with limits.

    Parameters
    ----------
    item : [path, kind]
        Kind is ``"TIFF"``, ``"PNG"``, ``"JPEG2000"`` or ``"WEBP"``.

    Raises
    ------
    ReadError
        As :func:`read_raster`.
    """
    path, kind = Path(item[0]), item[1]
    with as_read_error("picture"):
        if kind == "WEBP":
            pixels, bits = _decode(path)
        else:
            pixels = {"TIFF": _tiff, "PNG": _deep_png, "JPEG2000": _jpeg_2000}[kind](path)
            bits = 8 * pixels.itemsize if pixels.dtype.kind == "u" else 0
        return [np.ascontiguousarray(pixels), bits]


def _decode(path: Path) -> tuple[Array, int]:
    """Pixels as (K, H, W) or (K, H, W, 3), and their bits."""
    from PIL import Image as Pictures
    from PIL import ImageOps, UnidentifiedImageError

    try:
        # Not by its path: Pillow maps an uncompressed TIFF that it opened so into memory, with rows and columns exchanged
        # where the orientation exchanges them (pillow 13.0).
        with path.open("rb") as file, Pictures.open(file, formats=_FORMATS) as picture:
            kind = str(picture.format)
            pages = int(getattr(picture, "n_frames", 1)) if kind in {"TIFF", "PNG", "WEBP"} else 1
            if pages > 1 and kind != "TIFF":
                raise ReadError(f"picture: animated, with {pages} frames; save each as a file of its own")
            width, height = picture.size
            check_size((pages, height, width, len(picture.getbands())), "picture", limit=MAX_FRAME_VALUES)
            if _is_deep(picture):
                return _apart(path, kind)
            planes: list[Array] = []
            for page in range(pages):
                if pages > 1:
                    picture.seek(page)
                    if _tag(picture, 254, 0) & 1:
                        continue  # NewSubfileType: a copy of lower resolution
                if planes and picture.size != (width, height):
                    raise ReadError("picture: its pages differ in size; save each as a file of its own")
                width, height = picture.size
                planes.append(_values(ImageOps.exif_transpose(picture), _white_is_zero(picture)))
    except UnidentifiedImageError as error:
        with path.open("rb") as file:
            start = file.read(4)
        if start in _TIFF:  # kinds of TIFF that Pillow does not know, 16-bit RGB among them
            return _apart(path, "TIFF")
        raise ReadError("picture: damaged, or not a PNG, JPEG, TIFF, BMP, WebP or JPEG 2000") from error
    except Pictures.DecompressionBombError as error:
        raise ReadError("picture: declares more pixels than are read at once; cut it into tiles first") from error
    return _stack(planes), {"u1": 8, "u2": 16}.get(planes[0].dtype.str[1:] if planes else "", 0)


def _stack(planes: list[Array]) -> Array:
    if not planes:
        raise ReadError("picture: holds no page of full resolution: damaged")
    if len({(plane.shape, plane.dtype) for plane in planes}) > 1:
        if len({plane.shape[:2] for plane in planes}) > 1:
            raise ReadError("picture: its pages differ in size; save each as a file of its own")
        raise ReadError("picture: its pages differ in colour or kind; save each as a file of its own")
    return np.stack(planes)


def _white_is_zero(picture: Any) -> bool:
    """Whether 0 means white and the decoder left it at that, as Pillow does for TIFF of 16 bits."""
    return bool(picture.format == "TIFF" and picture.mode.startswith("I;16") and _tag(picture, 262, 1) == 0)


def _tag(picture: Any, number: int, default: int) -> int:
    return int(picture.tag_v2.get(number, default))


def _values(picture: Any, white_is_zero: bool = False) -> Array:
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
    return 65535 - values if white_is_zero else values


def _is_deep(picture: Any) -> bool:
    """Whether Pillow would silently change the values: colour cut to 8 bits, whole numbers of 32 bits given a sign."""
    if picture.format == "PNG":
        raw = [tile[3] for tile in picture.tile]
        return any(isinstance(mode, str) and mode.endswith(";16B") and mode[:2] in {"RG", "LA"} for mode in raw)
    if picture.format == "TIFF":
        depth, kinds = picture.tag_v2.get(258, (8,)), picture.tag_v2.get(339, (1,))  # BitsPerSample, SampleFormat
        return (len(depth) > 1 and max(depth) > 8) or (max(depth) > 16 and 1 in kinds)
    return False


def _tiff(path: Path) -> Array:
    """The pages of a TIFF of full resolution, (K, H, W) or (K, H, W, 3)."""
    tifffile = require("tifffile", feature="reading this kind of TIFF", extra="codecs")
    with tifffile.TiffFile(path) as file:
        # Counted first: a directory that points back at itself is then found, where iteration would never end.
        every = [file.pages[n] for n in range(len(file.pages))]
        pages = [page for page in every if not int(getattr(page, "subfiletype", 0) or 0) & 1]
        if not pages:
            raise ReadError("picture: holds no page of full resolution: damaged")
        first = pages[0]
        check_size((len(pages), *first.shape), "picture", limit=MAX_FRAME_VALUES)
        planes = []
        for page in pages:
            if page.shape != first.shape:
                raise ReadError("picture: its pages differ in size; save each as a file of its own")
            pixels = page.asarray()
            if getattr(page, "planarconfig", 1) == 2 and pixels.ndim == 3:
                pixels = np.moveaxis(pixels, 0, -1)
            if int(page.photometric) == 0 and pixels.dtype.kind == "u":
                pixels = np.iinfo(pixels.dtype).max - pixels
            tag = page.tags.get(274)
            planes.append(turn(_grey_or_rgb(pixels), int(tag.value) if tag is not None else 1))
    return _stack(planes)


def _deep_png(path: Path) -> Array:
    from PIL import Image as Pictures

    codecs = require("imagecodecs", feature="reading PNG of 16-bit colour", extra="codecs")
    with Pictures.open(path, formats=("PNG",)) as picture:
        check_size((picture.size[1], picture.size[0], len(picture.getbands())), "picture", limit=MAX_FRAME_VALUES)
        orientation = picture.getexif().get(0x0112, 1)
    return turn(_grey_or_rgb(codecs.png_decode(path.read_bytes())), orientation)[np.newaxis]


def _jpeg_2000(path: Path) -> Array:
    codecs = require("imagecodecs", feature="reading JPEG 2000", extra="codecs")
    raw = path.read_bytes()
    at = raw.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(raw) < at + 42:
        raise ReadError("picture: JPEG 2000 without its codestream: damaged or cut off")
    right, bottom, left, top = struct.unpack_from(">IIII", raw, at + 8)
    parts = struct.unpack_from(">H", raw, at + 40)[0]
    check_size((bottom - top, right - left, parts), "picture", limit=MAX_FRAME_VALUES)
    space = raw.find(b"colr\x01", 0, at)
    if space >= 0 and raw[space + 7 : space + 11] == b"\0\0\0\x12":
        raise ReadError("picture: JPEG 2000 in YCC colours is not read; save it as RGB")
    pixels = _grey_or_rgb(codecs.jpeg2k_decode(raw))
    if pixels.shape[:2] != (bottom - top, right - left):
        raise ReadError("picture: JPEG 2000 decodes to another size than it declares: damaged")
    return pixels[np.newaxis]


def _grey_or_rgb(pixels: Array) -> Array:
    """(H, W) or (H, W, 3); transparency dropped."""
    if pixels.ndim == 3 and pixels.shape[-1] in {2, 4}:
        pixels = pixels[..., : pixels.shape[-1] - 1]
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in {2, 3} or (pixels.ndim == 3 and pixels.shape[-1] != 3) or pixels.dtype.kind not in "uif":
        raise ReadError(f"picture: {pixels.dtype} values of shape {pixels.shape} are not read; save it as grey or RGB")
    return pixels


def turn(pixels: Array, orientation: int) -> Array:
    """Pixels (H, W, ...) as they are to be shown, by the orientation tag of EXIF and TIFF (274), 1 to 8.

    >>> turn(np.array([[1, 2], [3, 4]]), 6).tolist()
    [[3, 1], [4, 2]]
    """
    if orientation in {5, 6, 7, 8}:
        pixels = pixels.swapaxes(0, 1)
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    return pixels
