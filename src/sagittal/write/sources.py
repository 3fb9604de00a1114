"""The DICOM instances that a study came from, slice by slice: what a result in DICOM refers to."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.charset import decode_element
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset as Header
from pydicom.uid import generate_uid

from sagittal.case import Case, ImageSource
from sagittal.errors import GeometryError, ReadError, SagittalError, ScopeError
from sagittal.formats.dicom import locate_frames, read_dicom
from sagittal.formats.dicom_file import open_dicom
from sagittal.formats.open_image import reader_of
from sagittal.grid import Grid
from sagittal.guard.archive import unpacked
from sagittal.types import Floats

#: Of the patient and the study, that every object of the study repeats, empty where unknown (type 2).
_STUDY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
_TEXTS = {"SH", "LO", "ST", "LT", "UC", "UT", "PN"}
#: That a character set begins (PS3.3 C.12.1.1.2, ISO 2022).
_ESCAPE = re.compile(r"\x1b(?:\$[()*+]?[@-~]|[()*+\-./][@-~])")
#: What an instance is, and of which series and study.
_IDENTITY = ["StudyInstanceUID", "SeriesInstanceUID", "Modality", "SOPClassUID", "SOPInstanceUID"]


@dataclass(frozen=True)
class SourceSlice:
    """Where one slice of a study comes from.

    Parameters
    ----------
    sop_class, sop_instance : str
        UIDs of the instance.
    frame : int
        Of the instance, from 1; 0 where it has but one.
    position : (3,) float, mm, optional
        Centre of its first voxel, as the header has it.
    """

    sop_class: str
    sop_instance: str
    frame: int
    position: tuple[float, float, float] | None


@dataclass(frozen=True)
class OtherSeries:
    """Another series of the study that the model read, such as a second contrast.

    Parameters
    ----------
    series_uid : str
    modality : str
    instances : tuple of (class, instance) UIDs
    """

    series_uid: str
    modality: str
    instances: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class Source:
    """The DICOM series of a study.

    Parameters
    ----------
    header : Header
        Of its first slice, with everything but pixels and what differs between frames.
    slices : tuple of SourceSlice
        One for each k of the grid.
    grid : Grid
    orientation : (6,) float, optional
        Directions of rows and columns, as the header has them.
    pixel_spacing : (2,) float, mm, optional
        Between rows, between columns.
    others : tuple of OtherSeries
        Of the same study, on which the answer rests too.
    instances : tuple of (class, instance) UIDs
        Each once, in the order of the slices.
    """

    header: Header
    slices: tuple[SourceSlice, ...]
    grid: Grid
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, float] | None
    others: tuple[OtherSeries, ...] = ()

    @property
    def instances(self) -> tuple[tuple[str, str], ...]:
        """SOP class and instance UIDs, each instance once."""
        return tuple(dict.fromkeys((one.sop_class, one.sop_instance) for one in self.slices))

    @property
    def placed(self) -> bool:
        """Whether its slices have a place in the patient that results can share."""
        return self.grid.affine is not None


def open_source(case: Case, grid: Grid, what: str) -> Source:
    """The DICOM series on whose grid a result lies; headers alone are read.

    Parameters
    ----------
    case : Case
    grid : Grid
        Of the result.
    what : str
        What is to be written, for messages: ``"a DICOM segmentation"``.

    Raises
    ------
    ScopeError
        If the study is no DICOM series, its frames share no single lattice with their instances (mosaics, loops), or no
        image of it lies on that grid.
    ReadError
        If its files cannot be read any more.
    """
    found = 0
    for source in case.images.values():
        with _files(source) as (files, options):
            if not files or reader_of(files[0]) is not read_dicom:
                continue
            found += 1
            wanted = {key: options[key] for key in ("volume", "tilt") if key in options}
            try:
                frames, own = locate_frames(files, **wanted)
                if not _same(own, grid):
                    continue
                return _with_others(_source(frames, own, files, what), case, source)
            except (OSError, SagittalError) as error:
                if isinstance(error, OSError):
                    raise ReadError(f"case {case.id}: its DICOM files cannot be read any more") from error
                raise type(error)(f"case {case.id}: {error}") from error
    if found:
        raise ScopeError(f"case {case.id}: none of its DICOM images lies on the grid of the result {grid.shape}")
    raise ScopeError(
        f"case {case.id}: {what} refers to the DICOM series that was outlined, and this study is none. Write another "
        "format: --format nifti, or mask or png for pictures."
    )


def open_series(case: Case, what: str) -> Source:
    """The DICOM series of a study, for a result without a place in it: classes, an abstention, a refusal.

    The first image of the case whose files are DICOM. Where its slices make up no lattice, which may be why it was
    refused, they come in the order of the files and have no place.

    Parameters
    ----------
    case : Case
    what : str
        What is to be written, for messages.

    Raises
    ------
    ScopeError
        If no image of the study is DICOM.
    ReadError
        If its files cannot be read any more, or name no study or instance.
    """
    for source in case.images.values():
        with _files(source) as (files, options):
            if not files or reader_of(files[0]) is not read_dicom:
                continue
            wanted = {key: options[key] for key in ("volume", "tilt") if key in options}
            try:
                try:
                    frames, grid = locate_frames(files, **wanted)
                    found = _source(frames, grid, files, what)
                except SagittalError:
                    found = _unordered(files)
                return _with_others(found, case, source)
            except (OSError, SagittalError) as error:
                raise ReadError(
                    f"case {case.id}: its DICOM files cannot be read, so {what} cannot refer to them"
                ) from error
    raise ScopeError(
        f"case {case.id}: {what} refers to the DICOM series that was read, and this study is none. It can have the results "
        "json and fhir."
    )


def _with_others(found: Source, case: Case, own: ImageSource) -> Source:
    """With the other DICOM series of the case; those of another study cannot be named in an object of this one."""
    others: dict[str, OtherSeries] = {}
    taken = {str(found.header.SeriesInstanceUID)}
    for source in case.images.values():
        if source is own or source.files == own.files:
            continue
        with _files(source) as (files, _):
            if not files or reader_of(files[0]) is not read_dicom:
                continue
            for path in files:
                with suppress(SagittalError):
                    header = open_dicom(path, pixels=False, tags=_IDENTITY)
                    values = [str(header.get(keyword) or "") for keyword in _IDENTITY]
                    study, series, modality, sop_class, instance = values
                    if study == found.header.StudyInstanceUID and all(values) and series not in taken:
                        one = others.get(series, OtherSeries(series, modality, ()))
                        others[series] = replace(one, instances=(*one.instances, (sop_class, instance)))
    return replace(found, others=tuple(others.values()))


def _unordered(files: tuple[Path, ...]) -> Source:
    """The instances of some files, without a place."""
    slices, first = [], None
    for path in files:
        with suppress(SagittalError):
            header = open_dicom(path, pixels=False)
            if header.get("SOPClassUID") and header.get("SOPInstanceUID"):
                slices.append(SourceSlice(str(header.SOPClassUID), str(header.SOPInstanceUID), 0, None))
                first = first or header
    if first is None:
        raise ReadError("DICOM: none of the files names its instance")
    shape = (max(1, _whole_number(first.get("Columns"))), max(1, _whole_number(first.get("Rows"))), len(slices))
    return Source(_complete(first), tuple(slices), Grid(shape), None, None)


def _whole_number(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0


@contextmanager
def _files(source: ImageSource) -> Iterator[tuple[tuple[Path, ...], dict[str, Any]]]:
    """The files of an image and how they are read, those of an archive unpacked for the time being."""
    options = dict(source.options)
    if source.way != "zip":
        yield source.files, options
        return
    with unpacked(source.files[0], [*options["members"], *options.get("beside", ())]) as place:
        yield tuple(place / name for name in options["members"]), dict(options["options"])


def _same(own: Grid, grid: Grid) -> bool:
    if own.has_position != grid.has_position:
        return own.shape == grid.shape and not own.has_position
    return own.same_place(grid, 1e-2)


def _source(frames: list[Any], grid: Grid, files: tuple[Path, ...], what: str) -> Source:
    first, plane = frames[0]
    if plane.tile is not None:
        raise ScopeError(
            f"{what} cannot refer to the tiles of a mosaic: they are no instances. Write another format: --format nifti"
        )
    if len(frames) > 1 and grid.affine is None:
        raise ScopeError(
            f"{what} of {len(frames)} frames needs a place for each, and these have none (a loop). Write another format: "
            "--format nifti cannot hold it either; --format mask does"
        )
    slices = tuple(
        SourceSlice(
            str(header.get("SOPClassUID") or ""),
            str(header.get("SOPInstanceUID") or ""),
            one.frame + 1 if one.layout.frames > 1 else 0,
            _triple(one.position),
        )
        for header, one in frames
    )
    if not all(one.sop_class and one.sop_instance for one in slices):
        raise GeometryError("DICOM: an instance has no SOP Class or Instance UID, so nothing can refer to it")
    header = _whole(str(slices[0].sop_instance), first, files)
    if grid.affine is not None and not header.get("FrameOfReferenceUID"):
        # Removed by many that take out identities. Slices of one series share one: the same for all its results.
        header.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame of reference", str(header.SeriesInstanceUID)])
    orientation = None if plane.orientation is None else tuple(float(v) for v in plane.orientation)
    spacing = None if plane.spacing is None else (float(plane.spacing[0]), float(plane.spacing[1]))
    return Source(header, slices, grid, orientation, spacing)


def _triple(position: Floats | None) -> tuple[float, float, float] | None:
    return None if position is None else (float(position[0]), float(position[1]), float(position[2]))


def _whole(instance: str, lazy: Header, files: tuple[Path, ...]) -> Header:
    """The header of the first slice as a plain data set, with the elements that results must repeat."""
    path = getattr(lazy, "path", None)
    candidates = [Path(path)] if path is not None else list(files)
    for candidate in candidates:
        header = open_dicom(candidate, pixels=False)
        if len(candidates) == 1 or str(header.get("SOPInstanceUID") or "") == instance:
            break
    return _complete(header)


def _complete(header: Header) -> Header:
    """With what results must repeat, and decoded: text that was never looked at would be written as the bytes it was."""
    for keyword in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        if keyword in header:
            delattr(header, keyword)
    given = header.get("SpecificCharacterSet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's show the text that they are about
        for tag in list(header.keys()):
            try:
                element = header[tag]
                _decode(element, given)
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, NotImplementedError):
                del header[tag]  # what is wrong is not handed on
    if not re.fullmatch(r"\d{3}[DWMY]", str(header.get("PatientAge") or "000Y")):
        del header.PatientAge  # some write 0Y; it may be left out
    for keyword in _STUDY:
        if header.get(keyword) is None:
            setattr(header, keyword, "")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        if not header.get(keyword):
            raise ReadError(f"DICOM: the images have no {keyword}, so no result can be filed with them")
    return header


def _decode(element: DataElement, character_set: Any) -> None:
    """Turn the text of an element, or of all that a sequence holds, into Unicode."""
    if element.VR == "SQ":
        for item in element.value:
            own = item.get("SpecificCharacterSet") or character_set
            for inner in item:
                _decode(inner, own)
        return
    decode_element(element, character_set)
    if element.VR in _TEXTS and "\x1b" in str(element.value):
        # Of ISO 2022 IR 58 pydicom decodes the signs and leaves the escapes between them.
        values = element.value if element.VM > 1 else [element.value]
        plain = [_ESCAPE.sub("", str(value)) for value in values]
        element.value = plain if element.VM > 1 else plain[0]


def corners_of(grid: Grid, points: Floats) -> Floats:
    """Voxel indices (..., 3) as LPS+ mm.

    Raises
    ------
    GeometryError
        If the grid has no position.
    """
    if grid.affine is None:
        raise GeometryError("the study has no position in the patient")
    affine = np.asarray(grid.affine)
    return np.asarray(points @ affine[:3, :3].T + affine[:3, 3])
