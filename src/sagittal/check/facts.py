"""What one look at a case leaves behind: numbers, a descriptor and a small picture, a few kilobytes in all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from sagittal.case import Case, ImageSource
from sagittal.check.descriptor import describe
from sagittal.check.picture import LARGE, SMALL, draw
from sagittal.errors import SagittalError
from sagittal.formats.preamble import has_executable_preamble
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.truth import Boxes, Segmentation, SegmentationSource
from sagittal.types import Array, Floats

#: Percentiles that are kept of each image.
PERCENTILES = (1, 25, 50, 75, 99)
#: Voxels that percentiles are taken from at most, spread evenly; all others are taken from every voxel.
_SAMPLED = 400_000


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """One image in numbers. Values are in the image's unit; where none is finite they are nan."""

    shape: tuple[int, int, int]
    channels: int
    unit: str
    modality: str
    bits: int
    affine: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    finite: float
    low: float
    high: float
    mean: float
    sd: float
    percentiles: tuple[float, ...]
    digest: str
    values: str
    burned_in: bool | None = None
    executable: bool = False
    descriptor: Array | None = None
    picture: Array | None = None

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        return _grid(self.shape, self.affine, self.spacing)

    @property
    def constant(self) -> bool:
        """Whether every finite voxel has one value."""
        return self.low == self.high


@dataclass(frozen=True, eq=False)
class MaskFacts:
    """One segmentation in numbers: voxels of each structure, and of each value that belongs to none."""

    shape: tuple[int, int, int]
    affine: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    voxels: Mapping[str, int]
    strangers: Mapping[str, int]
    ignored: int = 0
    picture: Array | None = None

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        return _grid(self.shape, self.affine, self.spacing)


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """What one look at a case showed; an image that cannot be read has a message instead of facts."""

    case: str
    images: Mapping[str, ImageFacts] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    mask: MaskFacts | None = None
    mask_failed: str = ""


# Values near the end of what float32 holds overflow where they are subtracted; such an image has no descriptor.
@np.errstate(over="ignore", invalid="ignore")
def look_at(case: Case, *, pictures: bool = True, large: bool = False) -> dict[str, Any]:
    """Read everything of a case once and keep what matters, not the pixels.

    Parameters
    ----------
    case : Case
    pictures : bool
        Whether small pictures are kept.
    large : bool
        Whether they are drawn larger, as for a case with boxes.

    Returns
    -------
    dict
        JSON values and small arrays, as :func:`case_facts` takes them; plain, so that any process can send it.
    """
    images: dict[str, Any] = {}
    failed: dict[str, str] = {}
    mask: dict[str, Any] | None = None
    mask_failed = ""
    drawn: Image | None = None
    for name, source in case.images.items():
        try:
            image = source.load()
        except SagittalError as error:
            failed[name] = str(error)
            continue
        drawn = drawn or image
        side = LARGE if large or isinstance(case.truth, Boxes) else SMALL
        images[name] = _of_image(image, source, pictures, side)
    if isinstance(case.truth, SegmentationSource):
        try:
            mask = _of_mask(case.truth.load(), drawn if pictures else None)
        except SagittalError as error:
            mask_failed = str(error)
    return {"case": case.id, "images": images, "failed": failed, "mask": mask, "mask_failed": mask_failed}


def case_facts(values: Mapping[str, Any]) -> CaseFacts:
    """The facts that :func:`look_at` put into plain values."""
    images = {name: ImageFacts(**_tuples(image)) for name, image in values["images"].items()}
    mask = None if values["mask"] is None else MaskFacts(**_tuples(values["mask"]))
    return CaseFacts(values["case"], images, values["failed"], mask, values["mask_failed"])


def _of_image(image: Image, source: ImageSource, pictures: bool, side: int) -> dict[str, Any]:
    data = image.data
    lowest, highest = float(data.min()), float(data.max())
    share, sample = 1.0, data
    if not np.isfinite(highest - lowest):
        finite = np.isfinite(data)
        share = float(finite.mean())
        sample = data[finite]
        lowest, highest = (float(sample.min()), float(sample.max())) if sample.size else (np.nan, np.nan)
    flat = sample.ravel(order="K")
    few = flat[:: max(1, flat.size // _SAMPLED)] if flat.size else np.array([np.nan], np.float32)
    mean, sd = _moments(flat)
    return {
        "shape": list(image.grid.shape),
        "channels": image.channels,
        "unit": image.unit,
        "modality": image.modality,
        "bits": image.bits,
        "affine": None if image.grid.affine is None else np.asarray(image.grid.affine).ravel().tolist(),
        "spacing": None if image.grid.spacing is None else np.asarray(image.grid.spacing).tolist(),
        "finite": share,
        "low": lowest,
        "high": highest,
        "mean": mean,
        "sd": sd,
        "percentiles": [float(v) for v in np.percentile(few, PERCENTILES)],
        **_digests(image),
        "burned_in": image.burned_in,
        "executable": _executable(source),
        "descriptor": describe(image),
        "picture": np.frombuffer(draw(image, side=side), dtype=np.uint8) if pictures else None,
    }


def _moments(flat: Floats) -> tuple[float, float]:
    """Mean and standard deviation in double precision, part by part, so that nothing large is copied."""
    if not flat.size:
        return np.nan, np.nan
    mean = float(flat.mean(dtype=np.float64))
    parts = (flat[start : start + 2**20] for start in range(0, flat.size, 2**20))
    return mean, float(
        np.sqrt(sum(float(np.square(part - mean, dtype=np.float64).sum()) for part in parts) / flat.size)
    )


def _of_mask(mask: Segmentation, image: Image | None) -> dict[str, Any]:
    strangers: dict[str, int] = {}
    counts: list[dict[int, int]] = []
    for number, layer in enumerate(mask.layers):
        values, voxels = np.unique(layer, return_counts=True)
        counts.append(dict(zip(values.tolist(), voxels.tolist(), strict=True)))
        known = {v for s in mask.structures if s.layer == number for v in s.values} | {0, mask.ignore}
        for value, n in counts[-1].items():
            if value not in known:
                strangers[str(value)] = strangers.get(str(value), 0) + n
    voxels_of = {s.name: sum(counts[s.layer].get(v, 0) for v in s.values) for s in mask.structures}
    return {
        "shape": list(mask.grid.shape),
        "affine": None if mask.grid.affine is None else np.asarray(mask.grid.affine).ravel().tolist(),
        "spacing": None if mask.grid.spacing is None else np.asarray(mask.grid.spacing).tolist(),
        "voxels": voxels_of,
        "strangers": strangers,
        "ignored": int(mask.unknown.sum()) if mask.ignore is not None else 0,
        "picture": None if image is None else np.frombuffer(draw(image, mask, LARGE), dtype=np.uint8),
    }


def _digests(image: Image) -> dict[str, str]:
    """A hash of the pixels in their order, and one of how often each value occurs, which no mirroring changes.

    Grey that is stored as colour is grey: the same pixels give the same hash in every format.
    """
    data = image.data
    if len(data) == 3 and np.array_equal(data[0], data[1]) and np.array_equal(data[0], data[2]):
        data = data[:1]
    digest = blake2b(repr(data.shape).encode(), digest_size=16)
    # Readers give a transposed view of an array in storage order: hashed in that order nothing is copied.
    digest.update(np.ascontiguousarray(data.T).data)
    values = ""
    if image.grid.dimensions == 2 and 0 < image.bits <= 16:
        whole = data.astype(np.uint16)
        if np.array_equal(whole, data):
            counts = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in whole])
            values = blake2b(counts.tobytes(), digest_size=16).hexdigest()
    return {"digest": digest.hexdigest(), "values": values}


def _executable(source: ImageSource) -> bool:
    """Whether a file of an image is also a program; the first four of a series stand for the rest."""
    return any(path.is_file() and has_executable_preamble(path) for path in source.files[:4])


def _grid(shape: tuple[int, int, int], affine: tuple[float, ...] | None, spacing: tuple[float, ...] | None) -> Grid:
    if affine is not None:
        return Grid(shape, np.array(affine).reshape(4, 4))
    return Grid(shape, spacing=None if spacing is None else np.array(spacing))


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
