"""What the index of a tree knows of each DICOM file: whose it is, and what tells it from the others of its series."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset as Header

from sagittal.errors import SagittalError
from sagittal.formats.dicom_file import open_dicom, scan_dicom
from sagittal.formats.dicom_series import Traits, clusters
from sagittal.formats.dicom_times import moment_s, time_s

#: Objects that hold pixels or references, but are no images of a patient.
NOT_IMAGES = frozenset(
    {"SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RWV", "REG", "FID", "AU", "ECG", "DOC", "PLAN"}
)
#: What the index of a DICOM file needs: keyword -> tag.
_INDEX = {
    "ImageType": 0x00080008,
    "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018,
    "AcquisitionDate": 0x00080022,
    "AcquisitionTime": 0x00080032,
    "ContentTime": 0x00080033,
    "AccessionNumber": 0x00080050,
    "Modality": 0x00080060,
    "PatientID": 0x00100020,
    "EchoTime": 0x00180081,
    "InversionTime": 0x00180082,
    "EchoNumbers": 0x00180086,
    "TriggerTime": 0x00181060,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "AcquisitionNumber": 0x00200012,
    "InstanceNumber": 0x00200013,
    "ImagePositionPatient": 0x00200032,
    "ImageOrientationPatient": 0x00200037,
    "FrameOfReferenceUID": 0x00200052,
    "TemporalPositionIdentifier": 0x00200100,
    "ConcatenationUID": 0x00209161,
    "PhotometricInterpretation": 0x00280004,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "PixelSpacing": 0x00280030,
    "BurnedInAnnotation": 0x00280301,
}
#: Tags of diffusion in the order in which they are asked: the standard's, then those of Siemens, GE and Philips.
_B_VALUES = (0x00189087, 0x0019100C, 0x00431039, 0x20011003)
_DIRECTIONS = ((0x00189089,), (0x0019100E,), (0x001910BB, 0x001910BC, 0x001910BD), (0x200510B0, 0x200510B1, 0x200510B2))
_CREATORS = {
    0x00190010: ("SIEMENS MR HEADER", "GEMS_ACQU_01"),
    0x00430010: ("GEMS_PARM_01",),
    0x20010010: ("Philips Imaging DD 001",),
    0x20050010: ("Philips MR Imaging DD 001",),
}
#: SOP classes whose frames may carry functional groups: enhanced and legacy converted CT, MR and PET, breast tomography
#: and tomosynthesis, 3-D X-ray, ultrasound volumes, multi-frame secondary captures, parametric maps, ophthalmic tomography.
_WITH_GROUPS = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{n}"
    for n in (
        "2.1", "2.2", "4.1", "4.3", "4.4", "6.2", "7.1", "7.2", "7.3", "7.4", "13.1.1", "13.1.2", "13.1.3", "13.1.4", "13.1.5", "30", "77.1.5.4",
        "128.1", "130",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Instance:
    """What the index knows of one DICOM file. Identifiers stay in here; they are never shown."""

    path: Path
    modality: str
    series: str
    study: str
    patient: str
    accession: str
    number: int
    placed: bool
    frames: int
    image: bool = True
    uid: str = ""
    concatenation: str = ""
    grouped: bool = False
    burned_in: bool | None = None
    traits: Traits = field(default_factory=lambda: Traits((0, 0)))


def index_file(path: Path) -> Instance | None:
    """What the header of a DICOM file says of its place among others; ``None`` for an object that is no image.

    Raises
    ------
    ReadError
        As :func:`sagittal.formats.dicom_file.scan_dicom`.
    """
    instance = index_object(path)
    return instance if instance.image else None


def index_object(path: Path) -> Instance:
    """What the header of any DICOM file says of its place among others, an object that is no image included.

    Raises
    ------
    ReadError
        As :func:`sagittal.formats.dicom_file.scan_dicom`.
    """
    found = scan_dicom(path, _INDEX)
    modality = found["Modality"].upper()
    return Instance(
        path=path,
        image=modality not in NOT_IMAGES and found["Rows"] not in {"", "0"},
        modality=modality if modality.isalnum() and len(modality) <= 16 else "OT",
        series=found["SeriesInstanceUID"],
        study=found["StudyInstanceUID"],
        patient=found["PatientID"],
        accession=found["AccessionNumber"],
        number=_whole(found["InstanceNumber"]),
        placed=bool(found["ImagePositionPatient"]),
        frames=_whole(found["NumberOfFrames"]) or 1,
        uid=found["SOPInstanceUID"],
        concatenation=found["ConcatenationUID"],
        grouped=found["SOPClassUID"] in _WITH_GROUPS,
        burned_in=said_yes(found["BurnedInAnnotation"]),
        traits=_traits(found),
    )


def said_yes(text: Any) -> bool | None:
    """YES or NO of a header as a truth value; ``None`` where it says neither.

    >>> said_yes("YES"), said_yes("no "), said_yes("")
    (True, False, None)
    """
    return {"YES": True, "NO": False}.get(str(text or "").strip().upper())


def _traits(found: dict[str, str]) -> Traits:
    told: dict[str, Any] = {}
    if words := _words(found["ImageType"]):
        told["type"] = words
    if found["FrameOfReferenceUID"]:
        told["reference"] = found["FrameOfReferenceUID"]
    echo = _number(found["EchoTime"])
    if echo is None:
        echo = _number(found["EchoNumbers"])
    for name, value in (
        ("echo", echo),
        ("inversion", _number(found["InversionTime"])),
        ("phase", _number(found["TemporalPositionIdentifier"])),
        ("acquisition", _number(found["AcquisitionNumber"])),
    ):
        if value is not None:
            told[name] = round(value, 3)
    acquired = moment_s(found["AcquisitionDate"], found["AcquisitionTime"])
    order = {
        "trigger": _number(found["TriggerTime"]),
        "acquired": time_s(found["AcquisitionTime"]) if acquired is None else acquired,
        "content": time_s(found["ContentTime"]),
        "number": _number(found["InstanceNumber"]),
    }
    return Traits(
        size=(_whole(found["Rows"]), _whole(found["Columns"]), found["PhotometricInterpretation"]),
        orientation=_numbers(found["ImageOrientationPatient"], 6),
        position=_numbers(found["ImagePositionPatient"], 3),
        spacing=_numbers(found["PixelSpacing"], 2),
        told=told,
        order={name: value for name, value in order.items() if value is not None},
    )


def with_diffusion(files: Iterable[Path], traits: Iterable[Traits]) -> list[Traits]:
    """The traits with b-value and direction of diffusion, read from each file's standard or private elements."""
    traits = list(traits)
    measured = [_diffusion(path) for path in files]
    groups = clusters([direction for _, direction in measured], 0.02)
    first: dict[int, tuple[float, ...]] = {}
    told = []
    for own, (b, direction), group in zip(traits, measured, groups, strict=True):
        more: dict[str, Any] = {}
        if b is not None:
            more["b"] = float(round(b))
            # An unweighted image has a direction only by accident.
            more["direction"] = () if direction is None or b == 0 else first.setdefault(group, direction)
        told.append(replace(own, told={**own.told, **more}))
    return told


def _diffusion(path: Path) -> tuple[float | None, tuple[float, ...] | None]:
    wanted = [*_B_VALUES, *(tag for tags in _DIRECTIONS for tag in tags), *_CREATORS]
    try:
        header = open_dicom(path, pixels=False, tags=[f"{tag:08X}" for tag in wanted])
    except SagittalError:
        return None, None
    return diffusion_of(header)


def diffusion_of(header: Header) -> tuple[float | None, tuple[float, ...] | None]:
    """b-value in s/mm2 and unit vector of the gradient that a classic MR header gives, ``None`` where it does not.

    The standard's elements first, then Siemens (0019,100C) and (0019,100E), GE (0043,1039), whose first value carries
    a flag of 1e9, and (0019,10BB) to (0019,10BD), Philips (2001,1003) and (2005,10B0) to (2005,10B2); private ones
    only under their creator's name.
    """
    b, direction = None, None
    for tag, tags in zip(_B_VALUES, _DIRECTIONS, strict=True):
        value = _private(header, tag)
        if b is None and value:
            b = value[0] % 100_000 if tag == 0x00431039 else value[0]
        vector = [v for t in tags for v in _private(header, t)]
        if direction is None and len(vector) == 3 and any(vector):
            direction = tuple(vector)
    return b, direction


def _private(header: Header, tag: int) -> list[float]:
    """The numbers of an element; of a private one only where its block belongs to a vendor that is known."""
    group = tag >> 16
    if group % 2:
        creator = group << 16 | 0x10
        if creator not in header or str(header[creator].value).strip() not in _CREATORS[creator]:
            return []
        if tag in {0x0019100C, 0x0019100E} and "SIEMENS" not in str(header[creator].value):
            return []
        if group == 0x19 and tag >= 0x001910BB and "GEMS" not in str(header[creator].value):
            return []
    if tag not in header:
        return []
    value = header[tag].value
    if isinstance(value, bytes):  # of unknown type, in implicit syntax without dictionary
        try:
            value = value.decode("ascii").strip(" \0").split("\\")
        except UnicodeDecodeError:
            return []
    items = [value] if isinstance(value, str | int | float) or not isinstance(value, Iterable) else list(value)
    numbers = [_number(item) for item in items]
    return [n for n in numbers if n is not None] if None not in numbers else []


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0


def _number(text: Any) -> float | None:
    if not text and text != 0:
        return None
    try:
        value = float(str(text).split("\\", 1)[0])
    except ValueError:
        return None
    return value if math.isfinite(value) else None


@lru_cache(maxsize=256)  # most of them are the same in all files of a series
def _words(text: str) -> tuple[str, ...]:
    return tuple(w.strip().upper() for w in text.split("\\") if w.strip())[:8]


@lru_cache(maxsize=1024)
def _numbers(text: str, count: int) -> tuple[float, ...] | None:
    values = [_number(part) for part in text.split("\\")] if text else []
    return tuple(v for v in values if v is not None) if len(values) == count and None not in values else None
