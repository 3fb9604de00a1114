"""DICOM images: one file, or the files of a series as one volume, in LPS+ mm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset as Header

from sagittal.errors import GeometryError, ReadError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.read.dicom_file import PixelFormat
from sagittal.read.dicom_geometry import Plane, check_alike, place_planes
from sagittal.read.dicom_stack import StackFrame, open_series, stack_frames
from sagittal.read.dicom_values import code_of, meaning_of, modality_of, unit_of
from sagittal.read.limits import as_read_error
from sagittal.types import Floats

#: Objects that hold pixels or references, but are no images of a patient.
NOT_IMAGES = frozenset(
    {"SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RWV", "REG", "FID", "AU", "ECG", "DOC", "PLAN"}
)


def read_dicom(path: Path) -> Image:
    """Read one DICOM file, of one frame or many. As :func:`read_dicom_series` of one file."""
    return read_dicom_series((path,))


def read_dicom_series(paths: Sequence[Path]) -> Image:
    """Read the files of a DICOM series as one image.

    Values keep their meaning (PS3.3 C.11.1): Modality LUT or rescale slope and intercept of each file or frame are
    applied, CT is in HU. MONOCHROME1 is inverted over the range of the stored bits, unless the values have a physical
    unit, where the inversion is a matter of display only. Palettes and YBR become RGB. Voxels with the padding value
    (0028,0120) keep the value that the file gives them.

    Slices are sorted by their position along the normal of the image plane, never by name or number. Columns of the
    affine: ImageOrientationPatient's row vector times the *second* PixelSpacing, its column vector times the first
    (PS3.3 10.7.1.3), and the mean step between slices. A single slice takes SpacingBetweenSlices or SliceThickness as
    its third voxel edge; without either, or without orientation and position, the grid has no affine. Projection
    radiographs without PixelSpacing take ImagerPixelSpacing, at the detector, divided by
    EstimatedRadiographicMagnificationFactor where that is given. The frames of a cine loop stand along k, without
    position or spacing.

    Parameters
    ----------
    paths : sequence of Path
        The files of one series, in any order. Copies of one instance count once.

    Raises
    ------
    ReadError
        If a file is damaged, or is no image.
    GeometryError
        If the slices make no volume: tilted gantry, missing or doubled slices, mixed orientation, size or spacing.
        The message gives the slices' positions along their normal in mm.
    MissingPackageError
        If a decoder is not installed.
    """
    if not paths:
        raise ReadError("DICOM: no files were given")
    with as_read_error("DICOM"):
        headers = open_series(paths)
        frames = [
            (StackFrame(header, number, plane.layout, meaning_of(plane, header)), plane)
            for header in headers
            for number, plane in enumerate(_planes(header))
        ]
        planes = [plane for _, plane in frames]
        check_alike(planes)
        order, grid = place_planes(planes)
        data = stack_frames([frames[n][0] for n in order])
        first = headers[0]
        unit = unit_of(first, planes[0])
        return Image(
            data,
            Grid(data.shape[1:], grid.affine, None if grid.affine is not None else grid.spacing),
            unit=unit,
            modality=modality_of(first),
            bits=planes[0].bits,
            body_part=code_of(first.get("BodyPartExamined")),
        )


def _planes(header: Header) -> list[Plane]:
    if modality_of(header) in NOT_IMAGES:
        raise ReadError(f"DICOM: a {modality_of(header)} object, not an image")
    if "PixelData" not in header and "FloatPixelData" not in header and "DoubleFloatPixelData" not in header:
        raise ReadError("DICOM: holds no pixel data")
    layout = PixelFormat(header)
    shared = _first(header, "SharedFunctionalGroupsSequence")
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    if groups and len(groups) != layout.frames:
        raise ReadError(f"DICOM: {layout.frames} frames, but {len(groups)} per-frame functional groups: damaged")
    planes = []
    for frame in range(layout.frames):
        own = groups[frame] if groups else None

        def find(sequence: str, own: Header | None = own) -> Header:
            """The item of a functional group: the frame's own, else the shared, else the data set itself."""
            return _first(own, sequence) or _first(shared, sequence) or header

        measures = find("PixelMeasuresSequence")
        value = find("PixelValueTransformationSequence")
        planes.append(
            Plane(
                layout=layout,
                orientation=_numbers(find("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
                position=_numbers(find("PlanePositionSequence"), "ImagePositionPatient", 3),
                spacing=_pixel_spacing(measures, header),
                thickness=_thickness(measures),
                rescale=value,
                cine=layout.frames > 1,
            )
        )
    return planes


def _first(header: Header | None, sequence: str) -> Header | None:
    items = header.get(sequence) if header is not None else None
    return items[0] if items else None


def _numbers(header: Header, keyword: str, count: int) -> Floats | None:
    value = header.get(keyword)
    if value is None or value == "":
        return None
    try:
        numbers = np.array([float(v) for v in value], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise GeometryError(f"DICOM: {keyword} holds something else than numbers") from error
    if numbers.shape != (count,) or not np.all(np.isfinite(numbers)):
        raise GeometryError(f"DICOM: {keyword} must hold {count} finite numbers, not {numbers.tolist()}")
    return numbers


def _pixel_spacing(measures: Header, header: Header) -> Floats | None:
    spacing = _numbers(measures, "PixelSpacing", 2)
    if spacing is None:
        spacing = _numbers(header, "ImagerPixelSpacing", 2)
        factor = header.get("EstimatedRadiographicMagnificationFactor")
        if spacing is not None and factor is not None and float(factor) > 0:
            spacing = spacing / float(factor)
    if spacing is not None and not np.all(spacing > 0):
        return None  # zeros are written where the device did not know
    return spacing


def _thickness(measures: Header) -> float | None:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        value = measures.get(keyword)
        if value is not None and value != "" and np.isfinite(float(value)) and abs(float(value)) > 0:
            return abs(float(value))
    return None
