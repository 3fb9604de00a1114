"""DICOM images: one file, or the files of a series as one volume, in LPS+ mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset as Header
from pydicom.pixels.processing import apply_modality_lut

from sagittal.errors import GeometryError, ReadError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.read.dicom_file import PixelFormat, open_dicom
from sagittal.read.dicom_pixels import decode_pixels
from sagittal.read.limits import as_read_error, check_size
from sagittal.types import Array, Floats

#: Objects that hold pixels or references, but are no images of a patient.
NOT_IMAGES = frozenset(
    {"SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RWV", "REG", "FID", "AU", "ECG", "DOC", "PLAN"}
)
#: Sine of the greatest angle between the slices' shift and their normal that passes as no gantry tilt, 0.5 degrees.
_TILT = 0.0087


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
        opened = (open_dicom(Path(path)) for path in paths)
        headers = list({_instance(header, number): header for number, header in enumerate(opened)}.values())
        planes = [plane for header in headers for plane in _planes(header)]
        _check_alike(planes)
        order, grid = _place(planes)
        data = _gather(headers, planes, order)
        first = headers[0]
        unit = _unit(first, planes[0])
        return Image(
            data,
            Grid(data.shape[1:], grid.affine, None if grid.affine is not None else grid.spacing),
            unit=unit,
            modality=_modality(first),
            bits=planes[0].bits,
            body_part=_code(first.get("BodyPartExamined")),
        )


@dataclass(frozen=True, eq=False)
class Plane:
    """One frame: where it lies, and what its stored values mean."""

    layout: PixelFormat
    orientation: Floats | None  # (6,)
    position: Floats | None  # (3,), mm
    spacing: Floats | None  # (2,): between rows, between columns, mm
    thickness: float | None  # mm
    rescale: Header | None  # the data set or item that holds slope and intercept or a LUT
    cine: bool

    @property
    def bits(self) -> int:
        """Bits of the values after decoding."""
        return 8 if self.layout.photometric == "PALETTE COLOR" else self.layout.stored


def _instance(header: Header, number: int) -> str:
    return str(header.get("SOPInstanceUID") or number)


def _modality(header: Header) -> str:
    return _code(header.get("Modality")) or "OT"


def _code(value: Any) -> str:
    text = str(value or "").strip().upper()
    return text if len(text) <= 16 and text.replace("_", "").replace(" ", "").isalnum() else ""


def _planes(header: Header) -> list[Plane]:
    if _modality(header) in NOT_IMAGES:
        raise ReadError(f"DICOM: a {_modality(header)} object, not an image")
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


def _check_alike(planes: list[Plane]) -> None:
    first = planes[0]
    for plane in planes:
        for word, a, b in (
            ("sizes", (plane.layout.rows, plane.layout.columns), (first.layout.rows, first.layout.columns)),
            ("photometric interpretations", plane.layout.photometric, first.layout.photometric),
        ):
            if a != b:
                raise GeometryError(f"DICOM: the slices are of different {word}, {b} and {a}: not one volume")
    check_size((len(planes), first.layout.rows, first.layout.columns, first.layout.samples), "DICOM series")


def _place(planes: list[Plane]) -> tuple[list[int], Grid]:
    """The order of the planes along their normal, and the grid (its shape still (columns, rows, planes))."""
    first = planes[0]
    shape = (first.layout.columns, first.layout.rows, len(planes))
    order = list(range(len(planes)))
    spacing = first.spacing
    if any(p.orientation is None or p.position is None for p in planes) or spacing is None:
        if len(planes) > 1 and not first.cine:
            raise GeometryError(
                f"DICOM: {len(planes)} slices without position, orientation or pixel spacing make no volume; read them one by one"
            )
        if spacing is None or first.cine:
            return order, Grid(shape)
        return order, Grid(shape, spacing=(spacing[1], spacing[0], first.thickness or np.nan))
    orientations = np.array([p.orientation for p in planes])
    positions = np.array([p.position for p in planes])
    row, column = _axes(orientations[0])
    normal = np.cross(row, column)
    depths = positions @ normal
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise GeometryError(
            f"DICOM: the slices have different orientations, so they are not one volume; {_depths(depths)}"
        )
    if any(p.spacing is None or np.abs(p.spacing / spacing - 1).max() > 1e-3 for p in planes):
        raise GeometryError(
            f"DICOM: the slices have different pixel spacings, so they are not one volume; {_depths(depths)}"
        )
    order = [int(n) for n in np.argsort(depths, kind="stable")]
    step = _step(positions[order], depths[order], normal, first.thickness)
    if step is None:
        return order, Grid(shape, spacing=(spacing[1], spacing[0], np.nan))
    affine = np.eye(4)
    affine[:3, 0] = row * spacing[1]
    affine[:3, 1] = column * spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[order[0]]
    return order, Grid(shape, affine)


def _axes(orientation: Floats) -> tuple[Floats, Floats]:
    row, column = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if abs(lengths[0] - 1) > 1e-2 or abs(lengths[1] - 1) > 1e-2 or abs(row @ column) > 1e-2:
        raise GeometryError(
            f"DICOM: ImageOrientationPatient is not two perpendicular unit vectors: {np.round(orientation, 4).tolist()}"
        )
    return row / lengths[0], column / lengths[1]


def _step(positions: Floats, depths: Floats, normal: Floats, thickness: float | None) -> Floats | None:
    """The vector from one slice to the next, mm; slices sorted. ``None`` for one slice of unknown thickness."""
    count = len(positions)
    if count == 1:
        return np.asarray(normal * thickness) if thickness is not None else None
    steps = np.diff(depths)
    if steps.min() < 1e-3:
        raise GeometryError(
            f"DICOM: {int((steps < 1e-3).sum())} slices lie at the place of another (several phases, echoes or copies "
            f"in one series); give each as a series of its own; {_depths(depths)}"
        )
    step = (positions[-1] - positions[0]) / (count - 1)
    usual = float(np.median(steps))
    # Positions are often rounded to a tenth of a millimetre.
    tolerance = max(0.05 * usual, 0.06)
    # Depths alone decide on gaps: a tilted gantry shifts slices within their planes.
    if (
        np.abs(steps - usual).max() > 2 * tolerance
        or np.abs(depths - np.linspace(depths[0], depths[-1], count)).max() > tolerance
    ):
        worst = int(np.abs(steps - usual).argmax())
        missing = round(float(steps[worst]) / usual) - 1
        raise GeometryError(
            "DICOM: the slices are not evenly spaced: "
            f"{steps[worst]:.2f} mm between slices {worst + 1} and {worst + 2}, {usual:.2f} mm elsewhere"
            + (f" ({missing} missing)" if missing > 0 and abs(steps[worst] / usual - missing - 1) < 0.1 else "")
            + f"; {_depths(depths)}"
        )
    sine = float(np.linalg.norm(np.cross(step, normal)) / np.linalg.norm(step))
    if sine > _TILT:
        raise GeometryError(
            f"DICOM: the gantry is tilted by {np.degrees(np.arcsin(min(sine, 1.0))):.1f} degrees against the slices; "
            f"correct the tilt first (resample to straight slices); {_depths(depths)}"
        )
    if np.linalg.norm(positions - (positions[0] + np.arange(count)[:, np.newaxis] * step), axis=1).max() > max(
        tolerance, 0.5
    ):
        raise GeometryError(f"DICOM: the slices are shifted against each other within their planes; {_depths(depths)}")
    return np.asarray(step)


def _depths(depths: Floats) -> str:
    shown = [f"{d:.2f}" for d in sorted(depths.tolist())]
    if len(shown) > 24:
        shown = [*shown[:12], "...", *shown[-12:]]
    return f"positions along the normal in mm: {', '.join(shown)}"


def _gather(headers: list[Header], planes: list[Plane], order: list[int]) -> Floats:
    """Values of all planes in order, (C, columns, rows, planes) float32."""
    first = planes[0].layout
    colours = 3 if first.samples == 3 or first.photometric == "PALETTE COLOR" else 1
    stack = np.empty((len(planes), first.rows, first.columns, colours), dtype=np.float32)
    place = {number: k for k, number in enumerate(order)}
    number = 0
    for header in headers:
        layout = planes[number].layout
        pixels = decode_pixels(header, layout)
        if pixels.shape != (layout.frames, layout.rows, layout.columns, colours):
            raise ReadError(f"DICOM: pixels decode to {pixels.shape}, not the declared size")
        for frame in pixels:
            stack[place[number]] = frame if colours == 3 else _meaning(frame, planes[number], header)
            number += 1
    return stack.transpose(3, 2, 1, 0)


def _meaning(frame: Array, plane: Plane, header: Header) -> Array:
    """Stored grey values -> values of the modality, MONOCHROME1 inverted where they have no unit."""
    source = plane.rescale if plane.rescale is not None else header
    values: Array = frame
    slope, intercept = _rescale(source)
    if "ModalityLUTSequence" in source:
        values = np.asarray(apply_modality_lut(frame, source))
    elif slope == 1.0 and intercept == round(intercept) and frame.dtype.itemsize <= 2:
        values = np.add(frame, np.float32(intercept), dtype=np.float32)  # exact, and half the time of double precision
    elif (slope, intercept) != (1.0, 0.0):
        values = frame * slope + intercept
    if plane.layout.photometric == "MONOCHROME1" and _unit(header, plane) == "1" and frame.dtype.kind != "f":
        lowest = -(1 << plane.layout.stored - 1) if plane.layout.signed else 0
        ends = np.array([lowest, lowest + (1 << plane.layout.stored) - 1])
        # A LUT has no ends of its own: those of its values take their place.
        ends = np.array([values.min(), values.max()]) if "ModalityLUTSequence" in source else ends * slope + intercept
        values = ends.sum() - values.astype(np.float64)
    return values


def _rescale(source: Header) -> tuple[float, float]:
    """Slope and intercept (PS3.3 C.11.1.1.2); 1 and 0 where the file gives none."""
    given = source.get("RescaleSlope"), source.get("RescaleIntercept")
    slope, intercept = (
        default if v is None or v == "" else float(v) for v, default in zip(given, (1.0, 0.0), strict=True)
    )
    if slope == 0 or not np.isfinite(slope) or not np.isfinite(intercept):
        raise ReadError(
            f"DICOM: RescaleSlope {slope:g} and RescaleIntercept {intercept:g} would erase the values: damaged"
        )
    return slope, intercept


def _unit(header: Header, plane: Plane) -> str:
    """HU for CT with a rescale, the Units of PET, what RescaleType says, else "1"."""
    source = plane.rescale if plane.rescale is not None else header
    if plane.layout.photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        return "1"
    modality = _modality(header)
    if modality == "PT":
        return {"BQML": "Bq/ml", "GML": "SUV", "CNTS": "counts"}.get(_code(header.get("Units")), "1")
    kind = _code(source.get("RescaleType"))
    if kind == "HU" or (modality == "CT" and kind == "" and "RescaleSlope" in source):
        return "HU"
    return "1"
