"""Image and segmentation sources of cases: lazy, picklable, nameable in a manifest, the case's name on every error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2s
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.case import Case, ImageSource
from sagittal.errors import ConfigError, GeometryError, ReadError, SagittalError, nearest
from sagittal.formats.crops import read_crops
from sagittal.formats.dicom import read_dicom_series
from sagittal.formats.dicom_seg import read_dicom_seg
from sagittal.formats.label_map import read_label_map
from sagittal.formats.npz import read_npz_item
from sagittal.formats.open_image import read_image
from sagittal.formats.outlines import read_outlines
from sagittal.formats.rtstruct import read_rtstruct
from sagittal.formats.seg_nrrd import read_seg_nrrd
from sagittal.formats.shapes import read_shapes
from sagittal.guard.archive import unpacked
from sagittal.image import Image
from sagittal.truth import Segmentation, SegmentationSource


def _read_file(
    files: tuple[Path, ...], channel: int | None = None, modality: str = "", size: Sequence[int] | None = None
) -> Image:
    """One file; one of its channels, the modality that the data set states, the size that its annotations are for."""
    image = read_image(files[0])
    if size is not None and image.grid.shape[:2] != tuple(size):
        raise GeometryError(
            f"the annotations are for {size[0]} x {size[1]} pixels, the image has {image.grid.shape[0]} x "
            f"{image.grid.shape[1]}: they belong to another version of it"
        )
    if channel is not None:
        if not 0 <= channel < image.channels:
            raise ReadError(f"has {image.channels} channels, where the data set names a channel {channel}")
        image = replace(image, data=np.ascontiguousarray(image.data[channel : channel + 1]))
    if modality and image.modality == "OT":
        image = replace(image, modality=modality)
    return image


def _read_series(files: tuple[Path, ...], **options: Any) -> Image:
    return read_dicom_series(files, **options)


def _read_item(files: tuple[Path, ...], array: str, index: int, modality: str = "OT") -> Image:
    return read_npz_item(files[0], array, index, modality)


def _read_dicom_seg(files: tuple[Path, ...], **options: Any) -> Segmentation:
    return read_dicom_seg(files[0], files[1:], **options)


def _read_rtstruct(files: tuple[Path, ...], **options: Any) -> Segmentation:
    return read_rtstruct(files[0], files[1:], **options)


def _read_seg_nrrd(files: tuple[Path, ...]) -> Segmentation:
    return read_seg_nrrd(files[0])


def _read_zipped_image(files: tuple[Path, ...], **zipped: Any) -> Image:
    image: Image = _read_zipped(IMAGE_WAYS, files, **zipped)
    return image


def _read_zipped_mask(files: tuple[Path, ...], **zipped: Any) -> Segmentation:
    mask: Segmentation = _read_zipped(MASK_WAYS, files, **zipped)
    return mask


def _read_zipped(
    ways: Mapping[str, Callable[..., Any]],
    files: tuple[Path, ...],
    members: Sequence[str],
    way: str,
    options: Mapping[str, Any],
    beside: Sequence[str] = (),
) -> Any:
    """What some entries of an archive hold, unpacked into a private folder for as long as they are read."""
    if way == "zip" or way not in ways:
        raise ConfigError(f"entries of an archive are not read by '{way[:40]}'. {nearest(way, set(ways) - {'zip'})}")
    with unpacked(files[0], [*members, *beside]) as place:
        return ways[way](tuple(place / name for name in members), **options)


#: Way of reading -> function of the files and options. A manifest names the way, never code.
IMAGE_WAYS: dict[str, Callable[..., Image]] = {
    "file": _read_file,
    "item": _read_item,
    "series": _read_series,
    "zip": _read_zipped_image,
}
#: The same for segmentations.
MASK_WAYS: dict[str, Callable[..., Segmentation]] = {
    "crops": read_crops,
    "dicom_seg": _read_dicom_seg,
    "dicom_truth": read_outlines,
    "label_map": read_label_map,
    "rtstruct": _read_rtstruct,
    "seg_nrrd": _read_seg_nrrd,
    "shapes": read_shapes,
    "zip": _read_zipped_mask,
}


def make_source(
    case: str, way: str, files: Sequence[Path], options: Mapping[str, Any] | None = None, *, member: str = ""
) -> ImageSource:
    """An image that is read from files in one of :data:`IMAGE_WAYS`; its errors begin with the case's name.

    Raises
    ------
    ConfigError
        If the way is not known.
    """
    if way not in IMAGE_WAYS:
        raise ConfigError(f"case {case}: images are not read by '{way[:40]}'. {nearest(way, IMAGE_WAYS)}")
    files, options = tuple(files), dict(options or {})
    return ImageSource(partial(_read, case, "images", way, files, options), files, member, way, options)


def make_mask_source(
    case: str,
    way: str,
    files: Sequence[Path],
    options: Mapping[str, Any] | None = None,
    *,
    structures: Sequence[str] = (),
) -> SegmentationSource:
    """A segmentation that is read from files in one of :data:`MASK_WAYS`; its errors begin with the case's name.

    Raises
    ------
    ConfigError
        If the way is not known.
    """
    if way not in MASK_WAYS:
        raise ConfigError(f"case {case}: segmentations are not read by '{way[:40]}'. {nearest(way, MASK_WAYS)}")
    files, options = tuple(files), dict(options or {})
    return SegmentationSource(
        partial(_read, case, "masks", way, files, options), files, tuple(structures), way, options
    )


def rename_source(case: str, source: ImageSource) -> ImageSource:
    """The same image for a case of another name."""
    return make_source(case, source.way, source.files, source.options, member=source.member) if source.way else source


def rename_mask(case: str, source: SegmentationSource) -> SegmentationSource:
    """The same segmentation for a case of another name."""
    if not source.way:
        return source
    return make_mask_source(case, source.way, source.files, source.options, structures=source.structures)


def tilt_series(case: Case, tilt: str) -> Case:
    """The case with its DICOM series, and outlines on them, read with this `tilt` of ``read_dicom_series``."""
    images = {
        name: make_source(case.id, "series", source.files, {**source.options, "tilt": tilt}, member=source.member)
        if source.way == "series"
        else source
        for name, source in case.images.items()
    }
    truth = case.truth
    if isinstance(truth, SegmentationSource) and truth.way == "dicom_truth":
        reading = {**truth.options.get("reading", {}), "tilt": tilt}
        options = {**truth.options, "reading": reading}
        truth = make_mask_source(case.id, truth.way, truth.files, options, structures=truth.structures)
    return replace(case, images=images, truth=truth)


def file_source(case: str, path: Path, **options: Any) -> ImageSource:
    """The image in one file, or one of its channels."""
    member = f"channel {options['channel']}" if "channel" in options else ""
    return make_source(case, "file", (path,), options, member=member)


def series_source(case: str, paths: Sequence[Path], **options: Any) -> ImageSource:
    """The volume in the files of one DICOM series."""
    return make_source(case, "series", paths, options)


def item_source(case: str, path: Path, member: str, index: int, modality: str = "OT") -> ImageSource:
    """One image of an array of many."""
    options = {"array": member, "index": index, "modality": modality}
    return make_source(case, "item", (path,), options, member=f"{member}[{index}]")


def _read(case: str, kind: str, way: str, files: tuple[Path, ...], options: Mapping[str, Any]) -> Any:
    ways: Mapping[str, Callable[..., Any]] = IMAGE_WAYS if kind == "images" else MASK_WAYS
    try:
        signature(ways[way]).bind(files, **options)
    except TypeError as error:  # of a manifest that was changed
        raise ConfigError(f"case {case}: what the reader '{way}' is told does not fit it ({error})") from error
    try:
        return ways[way](files, **options)
    except SagittalError as error:
        raise type(error)(f"case {case}: {error}") from error


def patient_key(value: str) -> str:
    """What stands for a patient in a data set: the same for the same identifier, and not the identifier.

    >>> patient_key("12345") == patient_key(" 12345 "), "12345" in patient_key("12345")
    (True, False)
    """
    return "p-" + blake2s(value.strip().encode(), digest_size=8, person=b"patient").hexdigest()


def short_hash(value: str) -> str:
    """Twelve hexadecimal digits that stand for a DICOM identifier in a case's name."""
    return blake2s(value.strip().encode(), digest_size=6, person=b"case").hexdigest()
