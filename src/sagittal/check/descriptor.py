"""What a picture or volume looks like, in a few kilobytes: its lowest cosine frequencies.

They hardly change when an image is encoded again, resized, brightened or loses a little of its detail; mirroring it, or
turning it by a right angle, only changes their signs and order. So copies are found without the pixels.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations, product

import numpy as np

from sagittal.image import Image
from sagittal.types import Array, Floats

#: Frequencies kept along each axis, of pictures and of volumes.
FREQUENCIES = {2: 32, 3: 14}
#: Luminance of R, G, B (ITU-R BT.601).
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
#: Slices of a volume that are taken at a time.
_SLAB = 16
#: Share of the places, of pictures and of volumes, over which variance is spread, below which an image is all but empty: a mark on black is no content.
_LEAST_CONTENT = {2: 0.01, 3: 0.002}


def describe(image: Image) -> Array | None:
    """The lowest cosine frequencies of an image, its mean left out.

    Parameters
    ----------
    image : Image
        Colour counts by its luminance, other channels by their mean.

    Returns
    -------
    (F, F) float16 or (F, F, F) float16, or None
        Along (i, j) of a picture, (i, j, k) of a volume; the frequencies that a short axis does not have are 0. Scaled to
        unit length after weighting by frequency, so that brightness and contrast do not count. ``None`` where the image is
        constant or all but empty, so that no copy of it could be told.
    """
    values = grey(image)
    lowest, highest = float(np.min(values)), float(np.max(values))
    if not np.isfinite(highest - lowest):
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        lowest, highest = float(values.min()), float(values.max())
    if lowest == highest:
        return None
    side = FREQUENCIES[values.ndim]
    planes = values if values.ndim == 3 else values[..., np.newaxis]
    coefficients = np.zeros((side, side) if values.ndim == 2 else (side, side, side), dtype=np.float32)
    basis = [cosines(length, side) for length in values.shape]
    mean, contrast = np.float32(values.mean(dtype=np.float64)), np.float32(highest - lowest)
    for start in range(0, planes.shape[2], _SLAB):  # a slab at a time: no second copy of a large volume
        slab = (planes[..., start : start + _SLAB] - mean) / contrast  # (I, J, S)
        slab = np.tensordot(basis[0], slab, axes=([1], [0]))  # (F, J, S)
        slab = np.tensordot(slab, basis[1], axes=([1], [1]))  # (F, S, F)
        if values.ndim == 2:
            coefficients = slab[:, 0]
        else:
            coefficients += np.tensordot(slab, basis[2][:, start : start + _SLAB], axes=([1], [1]))  # (F, F, F)
    coefficients[(0,) * values.ndim] = 0
    weighted = coefficients * distance(side, values.ndim)
    norm = float(np.linalg.norm(weighted))
    if not norm >= 1e-4 or _content(weighted) < _LEAST_CONTENT[values.ndim]:
        return None
    return np.asarray(weighted / norm, dtype=np.float16)


def grey(image: Image) -> Floats:
    """One value a pixel: (I, J) of a picture, (I, J, K) of a volume; float32."""
    data = image.data
    if len(data) == 1:
        values = data[0]
    elif len(data) == 3 and image.grid.dimensions == 2:
        values = np.tensordot(_LUMINANCE, data, axes=1)
    else:
        values = data.mean(axis=0)
    return np.asarray(values[..., 0] if image.grid.dimensions == 2 else values, dtype=np.float32)


@lru_cache(maxsize=64)
def cosines(length: int, frequencies: int) -> Floats:
    """The first cosines over an axis, (frequencies, length) float32; rows that the axis is too short for are 0."""
    k = np.arange(frequencies)[:, np.newaxis]
    basis = np.cos(np.pi * (np.arange(length) + 0.5) * k / length) / length
    basis[1:] *= np.sqrt(2)
    basis[length:] = 0
    return np.asarray(basis, dtype=np.float32)


@lru_cache(maxsize=16)
def distance(side: int, dimensions: int) -> Floats:
    """How far each frequency lies from 0, which undoes the fall of natural images' spectra; float32."""
    axes = np.meshgrid(*[np.arange(side)] * dimensions, indexing="ij")
    return np.asarray(np.sqrt(sum(axis.astype(np.float32) ** 2 for axis in axes)), dtype=np.float32)


@lru_cache(maxsize=16)
def turns(dimensions: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Every mirroring and turning by right angles: order of the axes, and which of them are reversed afterwards.

    8 of a picture, 48 of a volume; the first leaves the image as it is.
    """
    return tuple(
        (order, reversed_)
        for order in permutations(range(dimensions))
        for reversed_ in product((0, 1), repeat=dimensions)
    )


def turn(descriptors: Floats, how: tuple[tuple[int, ...], tuple[int, ...]]) -> Floats:
    """Descriptors (N, F, F) or (N, F, F, F) of the same images mirrored or turned."""
    order, reversed_ = how
    turned = descriptors.transpose(0, *(axis + 1 for axis in order))
    for axis, flag in enumerate(reversed_):
        if flag:
            shape = [1] * turned.ndim
            shape[axis + 1] = -1
            turned = turned * _signs(turned.shape[axis + 1]).reshape(shape)
    return turned


def in_space(descriptors: Floats) -> Floats:
    """Pictures (N, F, F) or volumes (N, F, F, F) that hold just these frequencies."""
    side = descriptors.shape[1]
    basis = cosines(side, side) * side
    values = descriptors
    for _ in range(descriptors.ndim - 1):
        values = np.tensordot(values, basis, axes=([1], [0]))
    return values


@lru_cache(maxsize=8)
def _signs(side: int) -> Floats:
    return np.asarray(np.where(np.arange(side) % 2, -1, 1), dtype=np.float32)


def _content(weighted: Floats) -> float:
    """The share of an image's places that its variance is spread over."""
    energy = in_space(weighted[np.newaxis]) ** 2
    return float(energy.sum() ** 2 / max(float((energy**2).sum()), 1e-30) / energy.size)
