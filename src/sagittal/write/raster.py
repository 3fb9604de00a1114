"""Raster: pictures to PNG files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from sagittal.errors import DataError
from sagittal.model.archive import disk_errors
from sagittal.types import Array


def write_png(pixels: Array | bytes, path: Path) -> None:
    """Write a picture, whole or not at all.

    Parameters
    ----------
    pixels : (H, W) or (H, W, 3) uint8, or bytes
        Bytes are taken for a finished PNG.
    path : Path

    Raises
    ------
    DataError
        If the pixels are something else.
    ResourceError
        If the disk is full or cannot be written to.
    """
    data = pixels if isinstance(pixels, bytes) else png_bytes(pixels)
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise DataError("a picture must be PNG bytes or an array of uint8")
    with disk_errors(path.name, need=len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".part-{path.name}")
        try:
            part.write_bytes(data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def png_bytes(pixels: Array) -> bytes:
    """Pixels (H, W) or (H, W, 3) uint8 as a PNG.

    Raises
    ------
    DataError
        If the shape or the type is another.
    """
    from PIL import Image as Pillow

    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not fits:
        raise DataError(f"a picture is (H, W) or (H, W, 3) uint8, not {pixels.shape} {pixels.dtype}")
    stream = io.BytesIO()
    Pillow.fromarray(np.ascontiguousarray(pixels)).save(stream, format="png")
    return stream.getvalue()
