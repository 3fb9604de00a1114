"""The frames of a DICOM object: where each lies and what its values mean, from the header or its functional groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset as Header

from sagittal.errors import GeometryError, ReadError
from sagittal.formats.dicom_file import PixelFormat, open_dicom
from sagittal.formats.dicom_geometry import Plane
from sagittal.formats.dicom_index import NOT_IMAGES
from sagittal.formats.dicom_series import Traits
from sagittal.formats.dicom_times import datetime_s
from sagittal.formats.dicom_values import modality_of
from sagittal.guard.limits import as_read_error
from sagittal.types import Floats

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
#: Frames of one file; the longest recordings in use have some ten thousand.
_MOST_FRAMES = 2**16
#: Functional groups that say what kind of frame it is.
_FRAME_TYPES = (
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "XRay3DFrameTypeSequence",
    "UltrasoundFrameTypeSequence",
)


def planes_of(header: Header) -> list[Plane]:
    """The planes in a file with pixels, in the order of its frames.

    Raises
    ------
    ReadError
        If the object is no image, or its header is damaged.
    GeometryError
        If positions, orientations or spacings are no numbers.
    """
    modality = modality_of(header)
    if modality in NOT_IMAGES - {"RTDOSE"}:
        raise ReadError(f"DICOM: an object of modality {modality}, not an image")
    if not any(keyword in header for keyword in _PIXELS):
        raise ReadError("DICOM: holds no pixel data")
    layout = PixelFormat(header)
    regions = _region_spacing(header) if "SequenceOfUltrasoundRegions" in header else None
    planes = []
    for number, groups in enumerate(_groups(header, layout.frames)):
        measures = groups.find("PixelMeasuresSequence")
        spacing = _pixel_spacing(measures, header)
        planes.append(
            Plane(
                layout=layout,
                orientation=_numbers(groups.find("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
                position=_numbers(groups.find("PlanePositionSequence"), "ImagePositionPatient", 3),
                spacing=regions if spacing is None else spacing,
                thickness=_thickness(measures),
                rescale=groups.find("PixelValueTransformationSequence"),
                cine=layout.frames > 1,
                real_world=groups.items("RealWorldValueMappingSequence"),
                frame=number,
            )
        )
    if modality == "RTDOSE":
        return _placed_doses(header, planes)
    if modality == "NM" and layout.frames > 1:
        return _placed_detector(header, planes)
    return planes


def frame_traits(path: Path) -> list[Traits]:
    """What tells the frames of a file with functional groups from each other; its pixels are not read.

    Raises
    ------
    ReadError
        If the header is damaged.
    """
    with as_read_error("DICOM"):
        return traits_of(open_dicom(path, pixels=False))


def traits_of(header: Header) -> list[Traits]:
    """What tells the frames of a data set with functional groups from each other.

    Raises
    ------
    ReadError
        If the header is damaged.
    GeometryError
        If positions, orientations or spacings are no numbers.
    """
    layout = PixelFormat(header)
    reference = str(header.get("FrameOfReferenceUID") or "")
    traits = []
    for number, groups in enumerate(_groups(header, layout.frames)):
        told, order = _told(groups, header)
        if reference:
            told["reference"] = reference
        traits.append(
            Traits(
                size=(layout.rows, layout.columns, layout.photometric),
                orientation=_plain(groups.find("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
                position=_plain(groups.find("PlanePositionSequence"), "ImagePositionPatient", 3),
                spacing=_plain(groups.find("PixelMeasuresSequence"), "PixelSpacing", 2),
                told=told,
                order={"number": float(number), **order},
            )
        )
    return traits


class _Groups:
    """The functional groups of one frame: its own, else those that all frames share, else the data set itself."""

    def __init__(self, own: Header | None, shared: Header | None, header: Header) -> None:
        self.own, self.shared, self.header = own, shared, header

    def items(self, sequence: str) -> Sequence[Header]:
        for place in (self.own, self.shared, self.header):
            found = place.get(sequence) if place is not None else None
            if found:
                return list(found)
        return []

    def find(self, sequence: str) -> Header:
        items = self.items(sequence)
        return items[0] if items else self.header

    def value(self, sequence: str, keyword: str) -> Any:
        """An element of a functional group, ``None`` where neither the group nor the data set has it."""
        found = self.find(sequence).get(keyword)
        return None if found is None or found == "" else found


def _groups(header: Header, frames: int) -> Iterator[_Groups]:
    if frames > _MOST_FRAMES:
        raise ReadError(f"DICOM: declares {frames:,} frames; at most {_MOST_FRAMES:,} are read")
    shared = header.get("SharedFunctionalGroupsSequence")
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    if own and len(own) != frames:
        raise ReadError(f"DICOM: {frames} frames, but {len(own)} per-frame functional groups: damaged")
    for frame in range(frames):
        yield _Groups(own[frame] if own else None, shared[0] if shared else None, header)


def _told(groups: _Groups, header: Header) -> tuple[dict[str, Any], dict[str, float]]:
    told: dict[str, Any] = {}
    words: list[str] = []
    for sequence in _FRAME_TYPES:
        kind = groups.items(sequence)
        for word in (kind[0].get("FrameType"), kind[0].get("ComplexImageComponent")) if kind else ():
            words += [word] if isinstance(word, str) else list(word or ())
    if words:
        told["type"] = tuple(str(w).strip().upper() for w in words[:8])
    diffusion = "MRDiffusionSequence"
    numbers = {
        "echo": groups.value("MREchoSequence", "EffectiveEchoTime"),
        "inversion": groups.value("MRModifierSequence", "InversionTimes"),
        "b": groups.value(diffusion, "DiffusionBValue"),
        "phase": groups.value("FrameContentSequence", "TemporalPositionIndex"),
        "heart": groups.value("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
        "acquisition": groups.value("FrameContentSequence", "FrameAcquisitionNumber"),
    }
    for name, value in numbers.items():
        first = value if value is None or isinstance(value, str | int | float) else next(iter(value), None)
        if first is not None and isfinite(float(first)):
            told[name] = round(float(first), 3)
    if "b" in told:
        gradient = groups.find(diffusion).get("DiffusionGradientDirectionSequence")
        vector = _numbers(gradient[0], "DiffusionGradientOrientation", 3) if gradient and told["b"] else None
        told["direction"] = () if vector is None else tuple(np.round(vector, 2).tolist())
    stack = groups.value("FrameContentSequence", "StackID")
    if stack is not None:
        told["stack"] = str(stack)
    index = groups.value("FrameContentSequence", "DimensionIndexValues")
    if index is not None:
        values = [index] if isinstance(index, int) else list(index)
        told.update({f"index{d}": int(v) for d, v in enumerate(values[:8])})
    order = {}
    trigger = groups.value("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime")
    if trigger is not None and isfinite(float(trigger)):
        order["trigger"] = float(trigger)
    moment = datetime_s(groups.value("FrameContentSequence", "FrameAcquisitionDateTime"))
    if moment is not None:
        order["acquired"] = moment
    return told, order


def _plain(header: Header, keyword: str, count: int) -> tuple[float, ...] | None:
    numbers = _numbers(header, keyword, count)
    return None if numbers is None else tuple(numbers.tolist())


def _numbers(header: Header, keyword: str, count: int) -> Floats | None:
    value = header.get(keyword)
    if value is None or value == "":
        return None
    try:
        numbers = [float(v) for v in value]
    except (TypeError, ValueError) as error:
        raise GeometryError(f"DICOM: {keyword} holds something else than numbers") from error
    if len(numbers) != count or not all(map(isfinite, numbers)):
        raise GeometryError(f"DICOM: {keyword} must hold {count} finite numbers, not {numbers[:12]}")
    return np.array(numbers)


def _pixel_spacing(measures: Header, header: Header) -> Floats | None:
    spacing = _numbers(measures, "PixelSpacing", 2)
    if spacing is None:
        spacing = _numbers(header, "ImagerPixelSpacing", 2)
        factor = header.get("EstimatedRadiographicMagnificationFactor")
        if spacing is not None and factor is not None and float(factor) > 0:
            spacing = spacing / float(factor)
    if spacing is not None and spacing.min() <= 0:
        return None  # zeros are written where the device did not know
    return spacing


def _thickness(measures: Header) -> float | None:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        value = measures.get(keyword)
        if value is not None and value != "" and isfinite(float(value)) and float(value):
            return abs(float(value))
    return None


def _region_spacing(header: Header) -> Floats | None:
    """Pixel size in the regions of an ultrasound picture (PS3.3 C.8.5.5), (rows, columns) mm.

    ``None`` unless all regions are two-dimensional pictures in centimetres of one scale: a Doppler trace beside the
    picture has seconds along its columns.
    """
    sizes = set()
    for region in header.get("SequenceOfUltrasoundRegions") or ():
        units = region.get("PhysicalUnitsYDirection"), region.get("PhysicalUnitsXDirection")
        if region.get("RegionSpatialFormat") != 1 or units != (3, 3):
            return None
        deltas = region.get("PhysicalDeltaY"), region.get("PhysicalDeltaX")
        sizes.add(tuple(round(abs(float(d)) * 10, 9) if d is not None else 0.0 for d in deltas))
    if len(sizes) != 1:
        return None
    size = np.array(sizes.pop(), dtype=np.float64)
    return size if np.all(np.isfinite(size)) and np.all(size > 0) else None


def _placed_doses(header: Header, planes: list[Plane]) -> list[Plane]:
    """The planes of a dose grid by GridFrameOffsetVector (PS3.3 C.8.8.3.2)."""
    first = planes[0]
    if len(planes) == 1 or first.position is None or first.orientation is None:
        return planes
    offsets = _numbers(header, "GridFrameOffsetVector", len(planes))
    if offsets is None:
        raise GeometryError(f"DICOM: a dose grid of {len(planes)} planes without GridFrameOffsetVector")
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    if offsets[0] != 0:  # then they are patient z, which only transverse planes may have
        if abs(abs(normal[2]) - 1) > 1e-6 or abs(offsets[0] - first.position[2]) > 1e-3:
            raise GeometryError(
                f"DICOM: GridFrameOffsetVector begins at {offsets[0]:g}, which is neither 0 nor the z of its first plane"
            )
        offsets = (offsets - offsets[0]) * np.sign(normal[2])
    return [replace(p, position=first.position + o * normal) for p, o in zip(planes, offsets, strict=True)]


def _placed_detector(header: Header, planes: list[Plane]) -> list[Plane]:
    """The slices of a reconstructed NM tomogram (PS3.3 C.8.4.15), where the header gives them exactly.

    Slices are numbered by SliceVector alone, SpacingBetweenSlices has the sign of the direction in which they are
    stacked, and the first slice's position and orientation stand with the one detector.
    """
    detectors = header.get("DetectorInformationSequence") or []
    vector = header.get("SliceVector")
    step = header.get("SpacingBetweenSlices")
    words = header.get("ImageType") or ()
    if len(detectors) != 1 or vector is None or step is None or "RECON TOMO" not in words:
        return planes
    if [int(v) for v in vector] != list(range(1, len(planes) + 1)) or not isfinite(float(step)) or not float(step):
        return planes
    orientation = _numbers(detectors[0], "ImageOrientationPatient", 6)
    position = _numbers(detectors[0], "ImagePositionPatient", 3)
    if orientation is None or position is None:
        return planes
    normal = np.cross(orientation[:3], orientation[3:])
    return [
        replace(plane, orientation=orientation, position=position + number * float(step) * normal)
        for number, plane in enumerate(planes)
    ]
