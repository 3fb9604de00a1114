"""Masks to radiotherapy structure sets (RTSTRUCT): closed contours on the slices of the study's series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset as Header
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian

from sagittal.case import Case
from sagittal.errors import DataError, ScopeError
from sagittal.prediction import Mask, Prediction
from sagittal.types import Floats
from sagittal.write.dicom_result import Maker, declare_schemes, maker_of, save_dicom, seal
from sagittal.write.equipment import MANUFACTURER, Stamp
from sagittal.write.masks import mask_of, planes_of
from sagittal.write.names import one_line
from sagittal.write.outlines import outline
from sagittal.write.sources import Source, open_source
from sagittal.write.terminology import Code, Term, Terminology

_WHAT = "an RT structure set"
_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY_MANAGEMENT = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, as PS3.3 C.8.8.5 still asks for
_SERIES = 9103
_CONTOUR_DATA = 0x30060050


def write_rtstruct(prediction: Prediction, case: Case, path: Path, *, terminology: Terminology | None = None) -> Path:
    """Write the mask of a prediction as a structure set of the study's series. See :func:`make_rtstruct`."""
    source = open_source(case, mask_of(prediction, _WHAT).grid, _WHAT)
    save_dicom(make_rtstruct(prediction, source, terminology=terminology), path)
    return path


def make_rtstruct(
    prediction: Prediction, source: Source, *, terminology: Terminology | None = None, stamp: Stamp | None = None
) -> Header:
    """A structure set with a region of interest for each structure, in the frame of reference of its source.

    Contours run along the sides of the voxels (:mod:`sagittal.write.outlines`), so that masks and volumes come back as
    they were; holes are joined by keyholes. A structure that was not found has no contours.

    Parameters
    ----------
    prediction : Prediction
        Its finding is a mask.
    source : Source
    terminology : Terminology, optional
    stamp : Stamp, optional
        UIDs, time and model; where left out, new UIDs and the present time.

    Raises
    ------
    ScopeError
        If the series names no frame of reference, or the finding is no mask.
    DataError
        If the mask does not fit the series.
    """
    mask = mask_of(prediction, _WHAT)
    if not source.placed:
        raise ScopeError(
            f"case {prediction.case}: its series names no place in the patient, which {_WHAT} needs. Write another format: "
            "--format mask or png"
        )
    if source.grid.shape != mask.grid.shape:
        raise DataError(
            f"case {prediction.case}: the mask {mask.grid.shape} does not fit its series {source.grid.shape}"
        )
    stamp = stamp or Stamp.now(prediction)
    maker = maker_of(prediction, stamp)
    terms = (terminology or Terminology()).find_all([one.name for one in mask.segmentation.structures])
    made = _head(source, maker, stamp)
    made.StructureSetROISequence, made.ROIContourSequence, made.RTROIObservationsSequence = [], [], []
    drawn = _drawn(mask, source)
    for number, term in enumerate(terms, start=1):
        made.StructureSetROISequence.append(_region(number, term, source, maker))
        made.ROIContourSequence.append(_contours(number, term, drawn[number - 1]))
        made.RTROIObservationsSequence.append(_observation(number, term))
    declare_schemes(made, terms)
    seal(made, source, stamp)
    return made


def _head(source: Source, maker: Maker, stamp: Stamp) -> Header:
    made = Header()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = UID(_CLASS)
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = UID(stamp.uid("instance"))
    made.StructureSetDate = made.StructureSetTime = ""  # set when it is sealed
    made.Modality, made.SeriesInstanceUID, made.SeriesNumber = "RTSTRUCT", UID(stamp.uid("series")), _SERIES
    made.SeriesDescription = one_line(f"Structures by {maker.name}")
    made.OperatorsName = ""
    made.Manufacturer, made.ManufacturerModelName = MANUFACTURER, maker.name
    made.DeviceSerialNumber = maker.serial
    made.SoftwareVersions = [maker.software, maker.version]
    made.StructureSetLabel = "SAGITTAL"
    made.StructureSetName = maker.name
    made.StructureSetDescription = f"{maker.name}, {maker.version}: found by a model, not checked by a person"[:1024]
    made.InstanceNumber = 1
    made.FrameOfReferenceUID = source.header.FrameOfReferenceUID
    made.PositionReferenceIndicator = str(source.header.get("PositionReferenceIndicator") or "")
    made.ApprovalStatus = "UNAPPROVED"
    frame, study, series = Header(), Header(), Header()
    frame.FrameOfReferenceUID = source.header.FrameOfReferenceUID
    study.ReferencedSOPClassUID = _STUDY_MANAGEMENT
    study.ReferencedSOPInstanceUID = source.header.StudyInstanceUID
    series.SeriesInstanceUID = source.header.SeriesInstanceUID
    series.ContourImageSequence = [_reference(sop_class, instance) for sop_class, instance in source.instances]
    study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [series], [study]
    for other in source.others:
        item = Header()
        item.SeriesInstanceUID = other.series_uid
        item.ContourImageSequence = [_reference(*one) for one in other.instances]
        study.RTReferencedSeriesSequence.append(item)
    made.ReferencedFrameOfReferenceSequence = [frame]
    return made


def _reference(sop_class: str, instance: str, frame: int = 0) -> Header:
    item = Header()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
    if frame:
        item.ReferencedFrameNumber = frame
    return item


def _region(number: int, term: Term, source: Source, maker: Maker) -> Header:
    item = Header()
    item.ROINumber, item.ROIName = number, one_line(term.name) or f"structure {number}"
    item.ReferencedFrameOfReferenceUID = source.header.FrameOfReferenceUID
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    item.ROIGenerationDescription = one_line(f"{maker.name}, {maker.version}")
    return item


def _contours(number: int, term: Term, drawn: list[Header]) -> Header:
    item = Header()
    item.ReferencedROINumber, item.ROIDisplayColor = number, list(term.colour)
    if drawn:
        item.ContourSequence = drawn
    return item


def _drawn(mask: Mask, source: Source) -> list[list[Header]]:
    """The contours of each structure, slice by slice."""
    drawn: list[list[Header]] = [[] for _ in mask.segmentation.structures]
    for n, k, plane in planes_of(mask):
        columns, rows = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
        first = np.array([columns[0], rows[0]])
        for points in outline(plane[columns[0] : columns[-1] + 1, rows[0] : rows[-1] + 1]):
            drawn[n].append(_contour(len(drawn[n]) + 1, points + first, k, source))
    return drawn


def _contour(number: int, points: Floats, k: int, source: Source) -> Header:
    one = source.slices[k]
    across, down = np.array(source.orientation).reshape(2, 3)
    rows, columns = source.pixel_spacing or (1.0, 1.0)
    mm = np.array(one.position) + points[:, :1] * columns * across + points[:, 1:] * rows * down
    item = Header()
    item.ContourNumber = number
    item.ContourImageSequence = [_reference(one.sop_class, one.sop_instance, one.frame)]
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = len(mm)
    # As bytes at once: a value by itself takes pydicom fifty times as long and forty times the memory.
    text = "\\".join(["%.5f"] * mm.size) % tuple(mm.reshape(-1).tolist())
    data = text.encode("ascii") + b" " * (len(text) % 2)
    item[_CONTOUR_DATA] = RawDataElement(Tag(_CONTOUR_DATA), "DS", len(data), data, 0, False, True)
    return item


def _observation(number: int, term: Term) -> Header:
    item = Header()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.RTROIInterpretedType = "ORGAN" if term.category.meaning == "Anatomical Structure" else ""
    item.ROIInterpreter = ""
    item.RTROIIdentificationCodeSequence = [_coded(term.type)]
    return item


def _coded(code: Code) -> Any:
    item = Header()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item
