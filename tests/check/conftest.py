"""Phantoms: pictures and volumes that look like images, so that copies of them can be told from others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sagittal.grid import Grid
from sagittal.image import Image


def blobs(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """A smooth field with detail, 0 to 255, (rows, columns) or (slices, rows, columns) uint8."""
    rng = np.random.default_rng(seed)
    frequencies = np.meshgrid(*[np.fft.fftfreq(n) * n for n in shape], indexing="ij")
    radius = np.sqrt(sum(f**2 for f in frequencies))
    spectrum = np.fft.fftn(rng.normal(size=shape)) / (1 + radius) ** 1.6
    field = np.fft.ifftn(spectrum).real
    low, high = np.percentile(field, [1, 99])
    return (255 * np.clip((field - low) / (high - low), 0, 1)).astype(np.uint8)


def as_image(pixels: np.ndarray, **fields: object) -> Image:
    """The image that a reader makes of (rows, columns), (rows, columns, 3) or (slices, rows, columns)."""
    planes = pixels[..., np.newaxis] if pixels.ndim == 2 or pixels.shape[-1] != 3 else pixels
    planes = planes[np.newaxis] if planes.ndim == 3 else planes
    data = planes.astype(np.float32).transpose(3, 2, 1, 0)
    return Image(data, fields.pop("grid", Grid(data.shape[1:])), bits=8, **fields)  # type: ignore[arg-type]


@pytest.fixture
def make_pixels() -> Callable[[int, tuple[int, ...]], np.ndarray]:
    """``make_pixels(seed, shape)``."""
    return blobs


@pytest.fixture
def make_image() -> Callable[..., Image]:
    """``make_image(pixels, unit=..., grid=...)``."""
    return as_image
