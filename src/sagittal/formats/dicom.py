"""DICOM images: one file, or the files of a series as one volume, in LPS+ mm."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset as Header

from sagittal.errors import ConfigError, GeometryError, ReadError, nearest
from sagittal.formats.dicom_file import open_dicom
from sagittal.formats.dicom_frames import planes_of, traits_of
from sagittal.formats.dicom_geometry import Plane, check_alike, place_planes
from sagittal.formats.dicom_index import index_object, said_yes, with_diffusion
from sagittal.formats.dicom_mosaic import cut_mosaic, is_mosaic
from sagittal.formats.dicom_series import Part, split_series
from sagittal.formats.dicom_stack import StackFrame, open_series, stack_frames
from sagittal.formats.dicom_suv import suv_factor
from sagittal.formats.dicom_values import code_of, meaning_of, modality_of, unit_of
from sagittal.grid import Grid
from sagittal.guard.limits import as_read_error
from sagittal.image import Image
from sagittal.types import Floats

TILTS = ("refuse", "shear")


def read_dicom(path: Path) -> Image:
    """Read one DICOM file, of one frame or many. As :func:`read_dicom_series` of one file."""
    return read_dicom_series((path,))


def read_dicom_series(
    paths: Sequence[Path], *, volume: str | None = None, tilt: str = "refuse", padding: float | None = None
) -> Image:
    """Read the files of a DICOM series as one image.

    Values keep their meaning: Modality LUT, rescale slope and intercept (PS3.3 C.11.1) of each file or frame, the
    scaling of a dose grid or, where none of these stands, the frame's real-world value map is applied; CT is in HU,
    dose in Gy. Activity of PET becomes SUV by body weight where the header gives all that this needs
    (:func:`sagittal.formats.dicom_suv.suv_factor`), else it stays and :attr:`Image.notes` says why. MONOCHROME1 is
    inverted over the range of the stored bits, unless the values have a physical unit, where the inversion is a matter
    of display only. Palettes and YBR become RGB. Overlays are left out.

    Slices are sorted by their position along the normal of the image plane, never by name or number. Columns of the
    affine: ImageOrientationPatient's row vector times the *second* PixelSpacing, its column vector times the first
    (PS3.3 10.7.1.3), and the mean step between slices. A single slice takes SpacingBetweenSlices or SliceThickness as
    its third voxel edge; without either, or without orientation and position, the grid has no affine. Projection
    radiographs without PixelSpacing take ImagerPixelSpacing, at the detector, divided by
    EstimatedRadiographicMagnificationFactor where that is given; ultrasound takes the scale of its regions where all
    are two-dimensional pictures of one scale (valid within them). The frames of a cine loop stand along k, without
    position. Siemens mosaics become volumes by their private header.

    Parameters
    ----------
    paths : sequence of Path
        The files of one series, in any order. Copies of one instance count once, also in another transfer syntax.
    volume : str, optional
        Which volume of several (echoes, b-values, phases ...), by the label that
        :func:`sagittal.formats.dicom_series.split_series` gives it, such as ``"echo2"``. A message lists them.
    tilt : str
        What becomes of slices of a tilted gantry: ``"refuse"``, or ``"shear"`` for the exact affine, whose third
        column is then not perpendicular to the others. Nothing is resampled.
    padding : float, optional
        What voxels of the padding value or range become; left out, they keep the value that the file gives them.

    Raises
    ------
    ReadError
        If a file is damaged, is no image, or two files carry one SOP Instance UID and differ.
    GeometryError
        If the slices make no volume: tilted gantry, missing or doubled slices, mixed orientation, size or spacing, or
        several volumes and none was chosen. The message gives the slices' positions along their normal in mm.
    ConfigError
        If there is no such volume, or `tilt` is another word.
    MissingPackageError
        If a decoder is not installed.
    """
    with as_read_error("DICOM"):
        headers, own, grid = _located(paths, volume, tilt)
        first = own[0][0]
        factor, unit, notes = _units(headers, own)
        frames = [
            StackFrame(header, plane.frame, plane.layout, meaning_of(plane, header, factor=factor, padding=padding))
            for header, plane in own
        ]
        planes = [plane for _, plane in own]
        data = _tiled(frames, planes) if planes[0].tile else stack_frames(frames)
        return Image(
            data,
            Grid(data.shape[1:], grid.affine, None if grid.affine is not None else grid.spacing),
            unit=unit,
            modality=modality_of(first),
            bits=planes[0].bits,
            body_part=code_of(first.get("BodyPartExamined")),
            burned_in=_burned_in(headers),
            notes=notes,
        )


def series_grid(paths: Sequence[Path], *, volume: str | None = None, tilt: str = "refuse") -> Grid:
    """The grid of a series' image, from the headers alone; damaged pixels are not noticed.

    Parameters and errors are those of :func:`read_dicom_series`.
    """
    return locate_frames(paths, volume=volume, tilt=tilt)[1]


def locate_frames(
    paths: Sequence[Path], *, volume: str | None = None, tilt: str = "refuse"
) -> tuple[list[tuple[Header, Plane]], Grid]:
    """The header and the frame from which each slice of a series' image comes, and the image's grid; no pixels are read.

    Parameters and errors are those of :func:`read_dicom_series`, whose image has these slices along k.
    """
    with as_read_error("DICOM"):
        _, own, grid = _located(paths, volume, tilt)
        return own, grid


def _located(
    paths: Sequence[Path], volume: str | None, tilt: str
) -> tuple[list[Header], list[tuple[Header, Plane]], Grid]:
    """All headers, the frames of the volume in the order of its slices, and its grid."""
    if not paths:
        raise ReadError("DICOM: no files were given")
    if tilt not in TILTS:
        raise ConfigError(f"tilt is '{tilt[:20]}'. {nearest(tilt, TILTS)}")
    paths = [Path(path) for path in paths]
    headers = open_series(paths)
    if len(headers) < len(paths):
        paths = _without_copies(paths)
        headers = open_series(paths)
    own = [(header, plane) for header in headers for plane in planes_of(header)]
    own = _chosen(own, headers, paths, volume)
    if len(headers) == 1 and len(own) == 1 and is_mosaic(headers[0]):
        tiles = cut_mosaic(open_dicom(paths[0], pixels=False), own[0][1])
        own = [(headers[0], tile) for tile in tiles]
    order, grid = _placed([plane for _, plane in own], paths, tilt, hint=volume is None and len(headers) > 1)
    return headers, [own[n] for n in order], grid


def _without_copies(paths: list[Path]) -> list[Path]:
    """The files of different instances; those of one must be equal, or the same image in another transfer syntax."""
    first: dict[str, Path] = {}
    for path in paths:
        known = first.setdefault(index_object(path).uid or str(path), path)
        if known is path or filecmp.cmp(known, path, shallow=False):
            continue
        one, other = read_dicom(known), read_dicom(path)
        same = one.grid.same_place(other.grid, 1e-6) and one.unit == other.unit
        if not same or not np.array_equal(one.data, other.data):
            raise ReadError(
                "DICOM: two files carry the same SOP Instance UID and differ; which of them is true cannot be told. "
                "Keep the right one."
            )
    return list(first.values())


def _chosen(
    own: list[tuple[Header, Plane]], headers: list[Header], paths: list[Path], volume: str | None
) -> list[tuple[Header, Plane]]:
    """The frames of one volume; all where there is but one, or where files of one frame each are to be one."""
    grouped = any(plane.layout.frames > 1 for _, plane in own) and _has_groups(headers[0])
    if volume is None and not grouped:
        return own
    parts = _parts(headers, paths, len(own))
    if volume is None and len(parts) == 1:
        return own
    labels = [part.label for part in parts]
    if volume is None:
        raise GeometryError(f"DICOM: {_several(parts)}")
    if volume not in labels:
        raise ConfigError(f"DICOM: there is no volume '{volume[:40]}'. {nearest(volume, [x for x in labels if x])}")
    return [own[n] for n in parts[labels.index(volume)].members]


def _has_groups(header: Header) -> bool:
    return "PerFrameFunctionalGroupsSequence" in header


def _parts(headers: list[Header], paths: list[Path], count: int) -> list[Part]:
    if count == len(paths) and not _has_groups(headers[0]):
        return split_series(with_diffusion(paths, [index_object(path).traits for path in paths]))
    return split_series([traits for header in headers for traits in traits_of(header)])


def _several(parts: list[Part]) -> str:
    shown = ", ".join(f"{part.label} ({len(part.members)})" for part in parts[:20]) + (", ..." * (len(parts) > 20))
    return (
        f"{len(parts)} volumes (slices) in one series: {shown}; they are told apart by "
        f"{parts[0].reason.partition('told apart by ')[2]}. Choose one, as volume='{parts[0].label}'"
    )


def _placed(planes: list[Plane], paths: list[Path], tilt: str, *, hint: bool) -> tuple[list[int], Grid]:
    try:
        check_alike(planes)
        return place_planes(planes, tilt=tilt)
    except GeometryError as error:
        if not hint or len(planes) != len(paths):
            raise
        parts = split_series(with_diffusion(paths, [index_object(path).traits for path in paths]))
        if len(parts) == 1:
            raise
        raise GeometryError(f"{error}; {_several(parts)}") from error


def _units(headers: list[Header], own: list[tuple[Header, Plane]]) -> tuple[float, str, tuple[str, ...]]:
    """A factor for SUV, the unit of the values, and why they are not in SUV where that could be."""
    units = {unit_of(header, plane) for header, plane in own}
    if len(units) > 1:
        raise ReadError(f"DICOM: the values of the slices are in different units, {', '.join(sorted(units))}")
    (unit,) = units
    if modality_of(headers[0]) != "PT" or unit not in {"Bq/ml", "counts"}:
        return 1.0, unit, ()
    factor, reason = suv_factor(headers)
    if reason:
        return 1.0, unit, (f"not converted to SUV: {reason}",)
    return factor, "SUV", ("SUV by body weight from activity, injected dose and weight",)


def _burned_in(headers: list[Header]) -> bool | None:
    said = {said_yes(header.get("BurnedInAnnotation")) for header in headers}
    return True if True in said else None if None in said else False


def _tiled(frames: list[StackFrame], planes: list[Plane]) -> Floats:
    """The tiles of one frame along k."""
    whole = stack_frames(frames[:1])[..., 0]  # (C, columns, rows)
    tiles = []
    for plane in planes:
        row, column, rows, columns = plane.tile or (0, 0, *plane.size)
        tiles.append(whole[:, column : column + columns, row : row + rows])
    return np.ascontiguousarray(np.stack(tiles, axis=-1))
