"""Answers to DICOM structured reports: TID 1500 Measurement Report, as Comprehensive 3D SR (PS3.3 A.35.13)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset as Header
from pydicom.uid import generate_uid

from sagittal.case import Case
from sagittal.prediction import Failure, Mask, Prediction
from sagittal.write.dicom_result import (
    UTF_8,
    Maker,
    concept,
    declare_schemes,
    highdicom,
    made_by_highdicom,
    maker_of,
    save_dicom,
    seal,
)
from sagittal.write.equipment import MANUFACTURER, Stamp
from sagittal.write.measurements import Measured, measure_mask
from sagittal.write.names import one_line
from sagittal.write.sources import Source, open_series, open_source
from sagittal.write.sr_groups import Groups
from sagittal.write.statement import Statement, make_statement
from sagittal.write.terminology import PRIVATE_SCHEME, Code, Terminology

_WHAT = "a DICOM structured report"
_SERIES = 9104


def write_dicom_sr(
    prediction: Prediction | Failure,
    case: Case,
    path: Path,
    *,
    segmentation: Any = None,
    measured: Sequence[Measured] | None = None,
    terminology: Terminology | None = None,
) -> Path:
    """Write an answer as a structured report. See :func:`make_dicom_sr`."""
    source = source_of(prediction, case, _WHAT)
    if isinstance(prediction, Prediction) and isinstance(prediction.finding, Mask) and measured is None:
        measured = measure_mask(prediction, case)
    made = make_dicom_sr(
        prediction, source, segmentation=segmentation, measured=measured or (), terminology=terminology
    )
    save_dicom(made, path)
    return path


def source_of(answer: Prediction | Failure, case: Case, what: str) -> Source:
    """The DICOM series that an answer is about: the one on whose grid it lies, or that of the study.

    Raises
    ------
    ScopeError, ReadError
        As :func:`sagittal.write.sources.open_source` and :func:`sagittal.write.sources.open_series`.
    """
    grid = getattr(answer.finding, "grid", None) if isinstance(answer, Prediction) else None
    return open_series(case, what) if grid is None else open_source(case, grid, what)


def make_dicom_sr(
    prediction: Prediction | Failure,
    source: Source,
    *,
    segmentation: Any = None,
    measured: Sequence[Measured] = (),
    terminology: Terminology | None = None,
    stamp: Stamp | None = None,
    statement: Statement | None = None,
) -> Any:
    """A measurement report that refers to the study's images.

    Each chosen box is a group of its own: a planar region (TID 1410), a rectangle on its image, where it lies on one slice,
    else a volumetric one (TID 1411), a rectangle on each slice that it covers; with class, certainty in per cent and edge
    lengths in mm. Each structure of a mask is a group with volume, surface, diameters and intensity: a volumetric region
    that refers to its segment where `segmentation` is given, else a group without a region (TID 1501). A class without a
    chosen box is named with quantity 0. Of classes there is a group with the decision, the classes that cannot be excluded
    and a comment in words, and a group for each class with its probability as certainty in per cent and whether it is
    present. An abstention or a refusal has one group, whose decision is coded as indeterminate or not done, with the reason
    in words, and no number. The report is unverified and preliminary; complete, or partial where there is no answer.

    Parameters
    ----------
    prediction : Prediction or Failure
        A failure is a refusal.
    source : Source
    segmentation : highdicom.seg.Segmentation, optional
        The object that :func:`sagittal.write.dicom_seg.make_dicom_seg` made of the same prediction.
    measured : sequence of Measured
        Of a mask, its structures' measurements.
    terminology : Terminology, optional
    stamp : Stamp, optional
        UIDs, time and model; where left out, new UIDs and the present time.
    statement : Statement, optional
        The answer in words; made where left out.

    Returns
    -------
    highdicom.sr.Comprehensive3DSR

    Raises
    ------
    MissingPackageError
        If highdicom is not installed.
    """
    stamp = stamp or Stamp.now(prediction)
    statement = statement or make_statement(prediction, stamp.model, measured=measured)
    hd, maker = highdicom(), maker_of(prediction, stamp)
    builder = Groups(prediction.case, source, maker, stamp, statement)
    names: Sequence[str] = ()
    if isinstance(prediction, Prediction) and statement.state == "answered":
        mask = isinstance(prediction.finding, Mask)
        names = [one.name for one in measured] if mask else prediction.scheme.classes
    terms = (terminology or Terminology()).find_all(names)
    with made_by_highdicom(prediction.case, _WHAT):
        groups = builder.of(prediction, terms, measured=measured, segmentation=segmentation)
        content = hd.sr.MeasurementReport(
            observation_context=_context(maker),
            procedure_reported=concept(Code("363679005", "SCT", "Imaging procedure")),
            imaging_measurements=groups,
            title=concept(Code("126000", "DCM", "Imaging Measurement Report")),
            language_of_content_item_and_descendants=_language(statement.language),
        )
        evidence = _evidence(source)
        if segmentation is not None:
            evidence.append(segmentation)
        made = hd.sr.Comprehensive3DSR(
            evidence=evidence,
            content=content,
            series_instance_uid=stamp.uid("series"),
            series_number=_SERIES,
            sop_instance_uid=stamp.uid("instance"),
            instance_number=1,
            specific_character_set=UTF_8,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=maker.name,
            software_versions=maker.software,
            device_serial_number=maker.serial,
            is_complete=statement.state == "answered",
            is_final=False,
            is_verified=False,
            series_description=one_line(f"Measurements by {maker.name}"),
        )
    made.SoftwareVersions = [maker.software, maker.version]
    declare_schemes(made, terms, always=_uses_private(groups))
    seal(made, source, stamp)
    return made


def _language(name: str) -> Any:
    value = {"zh": Code("zh-CN", "RFC5646", "Chinese (China)")}.get(name, Code("en-US", "RFC5646", "English (US)"))
    return highdicom().sr.LanguageOfContentItemAndDescendants(concept(value))


def _uses_private(groups: Sequence[Any]) -> bool:
    """Whether a coded name of a qualitative evaluation is of our own scheme."""
    return any(
        item.ConceptNameCodeSequence[0].get("CodingSchemeDesignator") == PRIVATE_SCHEME
        for group in groups
        for item in group[0].ContentSequence
    )


def device_observer(maker: Maker) -> Any:
    """The model as the device that observed (PS3.16 TID 1004)."""
    hd = highdicom()
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=["sagittal", maker.name, maker.version]),
        name=maker.name,
        manufacturer_name=MANUFACTURER,
        model_name=maker.name,
        serial_number=maker.serial,
    )
    kind = concept(Code("121007", "DCM", "Device"))
    return hd.sr.ObserverContext(observer_type=kind, observer_identifying_attributes=device)


def _context(maker: Maker) -> Any:
    return highdicom().sr.ObservationContext(observer_device_context=device_observer(maker))


def _evidence(source: Source) -> list[Header]:
    """The source's instances as data sets with their UIDs, the first with its patient and study."""
    made = []
    for n, (sop_class, instance) in enumerate(source.instances):
        header = copy.copy(source.header) if n == 0 else Header()
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
            setattr(header, keyword, source.header[keyword].value)
        header.SOPClassUID, header.SOPInstanceUID = sop_class, instance
        made.append(header)
    for other in source.others:
        for sop_class, instance in other.instances:
            header = Header()
            header.StudyInstanceUID, header.SeriesInstanceUID = source.header.StudyInstanceUID, other.series_uid
            header.SOPClassUID, header.SOPInstanceUID = sop_class, instance
            made.append(header)
    return made
