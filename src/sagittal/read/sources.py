"""Image sources of cases: lazy, picklable, and with the case's name on every error."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from hashlib import blake2s
from pathlib import Path

from sagittal.case import ImageSource
from sagittal.errors import SagittalError
from sagittal.image import Image
from sagittal.read.dicom import read_dicom_series
from sagittal.read.npz import read_npz_item
from sagittal.read.open_image import read_image


def file_source(case: str, path: Path) -> ImageSource:
    """The image in one file."""
    return ImageSource(partial(_read, case, partial(read_image, path)), (path,))


def series_source(case: str, paths: tuple[Path, ...]) -> ImageSource:
    """The volume in the files of one DICOM series."""
    return ImageSource(partial(_read, case, partial(read_dicom_series, paths)), paths)


def item_source(case: str, path: Path, member: str, index: int, modality: str = "OT") -> ImageSource:
    """One image of an array of many."""
    read = partial(read_npz_item, path, member, index, modality)
    return ImageSource(partial(_read, case, read), (path,), f"{member}[{index}]")


def _read(case: str, read: Callable[[], Image]) -> Image:
    try:
        return read()
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
