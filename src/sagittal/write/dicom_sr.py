"""Findings to DICOM structured reports: TID 1500 Measurement Report, as Comprehensive 3D SR (PS3.3 A.35.13)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset as Header
from pydicom.uid import generate_uid

from sagittal.case import Case
from sagittal.errors import DataError, ScopeError
from sagittal.metrics.shape import Intensity, Shape
from sagittal.prediction import Detections, Mask, Prediction
from sagittal.types import Floats
from sagittal.write.dicom_result import (
    MANUFACTURER,
    UTF_8,
    Maker,
    concept,
    declare_schemes,
    highdicom,
    made_by_highdicom,
    maker_of,
    save_dicom,
)
from sagittal.write.measurements import Measured, measure_mask
from sagittal.write.sources import Source, open_source
from sagittal.write.terminology import Code, Term, Terminology

_WHAT = "a DICOM structured report"
_SERIES = 9104
_SEG = "1.2.840.10008.5.1.4.1.1.66.4"
_MM, _ML, _MM2 = Code("mm", "UCUM", "mm"), Code("ml", "UCUM", "Milliliter"), Code("mm2", "UCUM", "square millimeter")
_PIXELS, _PERCENT, _ONE = (
    Code("{pixels}", "UCUM", "pixels"),
    Code("%", "UCUM", "Percent"),
    Code("1", "UCUM", "no units"),
)
_PIXELS2 = Code("{pixels2}", "UCUM", "square pixels")
_CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
_LONG, _SHORT = Code("103339001", "SCT", "Long axis"), Code("103340004", "SCT", "Short axis")
_DIAMETER = Code("L0JK", "IBSI", "Maximum 3D Diameter of a Mesh")
_VOLUME, _SURFACE = Code("YEKZ", "IBSI", "Volume from Voxel Summation"), Code("C0JK", "IBSI", "Surface Area of Mesh")
_AREA, _COUNT = Code("42798000", "SCT", "Area"), Code("246205007", "SCT", "Quantity")
_WIDTH, _HEIGHT = Code("103355008", "SCT", "Width"), Code("121207", "DCM", "Height")
_DEPTH = Code("410668003", "SCT", "Length")
#: Unit of an image -> the quantity that it measures, and its unit in UCUM.
_QUANTITIES = {
    "HU": (Code("112031", "DCM", "Attenuation Coefficient"), Code("[hnsf'U]", "UCUM", "Hounsfield unit")),
    "SUV": (Code("126401", "DCM", "SUVbw"), Code("g/ml{SUVbw}", "UCUM", "Standardized Uptake Value body weight")),
}
_MR = (Code("110852", "DCM", "MR signal intensity"), _ONE)
_DERIVED = (
    ("mean", Code("373098007", "SCT", "Mean")),
    ("std", Code("386136009", "SCT", "Standard Deviation")),
    ("low", Code("255605001", "SCT", "Minimum")),
    ("median", Code("373099004", "SCT", "Median")),
    ("high", Code("56851009", "SCT", "Maximum")),
)


def write_dicom_sr(
    prediction: Prediction,
    case: Case,
    path: Path,
    *,
    segmentation: Any = None,
    measured: Sequence[Measured] | None = None,
    terminology: Terminology | None = None,
) -> Path:
    """Write the boxes or the measured mask of a prediction as a structured report. See :func:`make_dicom_sr`."""
    source = open_source(case, _grid_of(prediction), _WHAT)
    if isinstance(prediction.finding, Mask) and measured is None:
        measured = measure_mask(prediction, case)
    made = make_dicom_sr(
        prediction, source, segmentation=segmentation, measured=measured or (), terminology=terminology
    )
    save_dicom(made, path)
    return path


def make_dicom_sr(
    prediction: Prediction,
    source: Source,
    *,
    segmentation: Any = None,
    measured: Sequence[Measured] = (),
    terminology: Terminology | None = None,
) -> Any:
    """A measurement report that refers to the study's images.

    Each chosen box is a group of its own: a planar region (TID 1410), a rectangle on its image, where it lies on one slice,
    else a volumetric one (TID 1411), a rectangle on each slice that it covers; with class, certainty in per cent and edge
    lengths in mm. Each structure of a mask is a group with volume, surface, diameters and intensity: a volumetric region
    that refers to its segment where `segmentation` is given, else a group without a region (TID 1501). A class without a
    chosen box is named with quantity 0. The report is complete, unverified and preliminary.

    Parameters
    ----------
    prediction : Prediction
    source : Source
    segmentation : highdicom.seg.Segmentation, optional
        The object that :func:`sagittal.write.dicom_seg.make_dicom_seg` made of the same prediction.
    measured : sequence of Measured
        Of a mask, its structures' measurements.
    terminology : Terminology, optional

    Returns
    -------
    highdicom.sr.Comprehensive3DSR

    Raises
    ------
    ScopeError
        If the finding is neither boxes nor a mask.
    MissingPackageError
        If highdicom is not installed.
    """
    _grid_of(prediction)
    hd, maker = highdicom(), maker_of(prediction)
    builder = _Builder(prediction, source, maker)
    with made_by_highdicom(prediction.case, _WHAT):
        if isinstance(prediction.finding, Detections):
            terms = (terminology or Terminology()).find_all(prediction.scheme.classes)
            groups = builder.of_boxes(prediction.finding, terms)
        else:
            terms = (terminology or Terminology()).find_all([one.name for one in measured])
            groups = builder.of_mask(measured, terms, segmentation)
        content = hd.sr.MeasurementReport(
            observation_context=_context(maker),
            procedure_reported=concept(Code("363679005", "SCT", "Imaging procedure")),
            imaging_measurements=groups,
            title=concept(Code("126000", "DCM", "Imaging Measurement Report")),
        )
        evidence = _evidence(source)
        if segmentation is not None:
            evidence.append(segmentation)
        made = hd.sr.Comprehensive3DSR(
            evidence=evidence,
            content=content,
            series_instance_uid=hd.UID(),
            series_number=_SERIES,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            specific_character_set=UTF_8,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=maker.name,
            software_versions=maker.software,
            device_serial_number=maker.version[-64:],
            is_complete=True,
            is_final=False,
            is_verified=False,
            series_description=f"Measurements by {maker.name}"[:64],
        )
    made.SoftwareVersions = [maker.software, maker.version]
    declare_schemes(made, terms)
    return made


def _grid_of(prediction: Prediction) -> Any:
    if not isinstance(prediction.finding, Detections | Mask):
        raise ScopeError(
            f"case {prediction.case}: {_WHAT} of measurements holds boxes or a mask, and this model finds classes"
        )
    return prediction.finding.grid


def _context(maker: Maker) -> Any:
    hd = highdicom()
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=["sagittal", maker.name, maker.version]),
        name=maker.name,
        manufacturer_name=MANUFACTURER,
        model_name=maker.name,
        serial_number=maker.version,
    )
    kind = concept(Code("121007", "DCM", "Device"))
    return hd.sr.ObservationContext(
        observer_device_context=hd.sr.ObserverContext(observer_type=kind, observer_identifying_attributes=device)
    )


def _evidence(source: Source) -> list[Header]:
    """The source's instances as data sets with their UIDs, the first with its patient and study."""
    made = []
    for n, (sop_class, instance) in enumerate(source.instances):
        header = copy.copy(source.header) if n == 0 else Header()
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
            setattr(header, keyword, source.header[keyword].value)
        header.SOPClassUID, header.SOPInstanceUID = sop_class, instance
        made.append(header)
    return made


@dataclass(frozen=True)
class _Builder:
    """Makes the groups of one report."""

    prediction: Prediction
    source: Source
    maker: Maker

    def of_boxes(self, found: Detections, terms: Sequence[Term]) -> list[Any]:
        groups, counts = [], [0] * len(terms)
        for n in np.flatnonzero(found.chosen).tolist():
            number = int(found.boxes.classes[n])
            counts[number] += 1
            label = f"{terms[number].name} {counts[number]}"
            groups.append(
                self._box(found.boxes.corners[n], float(found.scores[n]), terms[number], label, found.grid.spacing)
            )
        for term, count in zip(terms, counts, strict=True):
            if not count:
                groups.append(self._group(term, f"{term.name}: none found", [_number(_COUNT, 0, _ONE)]))
        return groups

    def of_mask(self, measured: Sequence[Measured], terms: Sequence[Term], segmentation: Any) -> list[Any]:
        if not measured:
            raise DataError(f"case {self.prediction.case}: the mask names no structure")
        drawn = _drawn_segments(segmentation)
        groups = []
        for n, (one, term) in enumerate(zip(measured, terms, strict=True), start=1):
            values = _measurements(one.shape, one.intensity, one.modality)
            region = self._segment(segmentation, n) if n in drawn else None
            groups.append(self._group(term, term.name, values, segment=region))
        return groups

    def _box(self, corners: Floats, score: float, term: Term, label: str, spacing: Any) -> Any:
        hd = highdicom()
        values = [_number(_CERTAINTY, round(100 * score, 4), _PERCENT)]
        lengths = corners[1] - corners[0]
        edges = np.full(3, np.nan) if spacing is None else np.asarray(spacing, dtype=np.float64)
        for name, voxels, edge in zip((_WIDTH, _HEIGHT, _DEPTH), lengths, edges, strict=True):
            if name is _DEPTH and len(self.source.slices) == 1:
                continue
            if math.isfinite(edge):
                values.append(_number(name, float(voxels * edge), _MM))
            elif name is not _DEPTH:
                values.append(_number(name, float(voxels), _PIXELS))
        first = int(np.clip(math.ceil(corners[0, 2]), 0, len(self.source.slices) - 1))
        last = int(np.clip(math.floor(corners[1, 2]), first, len(self.source.slices) - 1))
        regions = [self._rectangle(corners, k) for k in range(first, last + 1)]
        if len(regions) == 1:
            return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                referenced_region=regions[0], measurements=values, **self._common(term, label)
            )
        return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_regions=regions, measurements=values, **self._common(term, label)
        )

    def _rectangle(self, corners: Floats, k: int) -> Any:
        """On one image; its coordinates begin at the outer corner of the first pixel (PS3.3 C.18.6.1.1)."""
        hd, one = highdicom(), self.source.slices[k]
        (left, top), (right, bottom) = np.clip(
            corners[:, :2] + 0.5, 0, (self.source.grid.shape[0], self.source.grid.shape[1])
        )
        points = np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]])
        image = hd.sr.SourceImageForRegion(
            one.sop_class, one.sop_instance, referenced_frame_numbers=[one.frame] if one.frame else None
        )
        return hd.sr.ImageRegion(hd.sr.GraphicTypeValues.POLYLINE, points, image)

    def _segment(self, segmentation: Any, number: int) -> Any:
        hd = highdicom()
        return hd.sr.ReferencedSegment(
            sop_class_uid=_SEG,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=number,
            source_series=hd.sr.SourceSeriesForSegmentation(self.source.header.SeriesInstanceUID),
        )

    def _group(self, term: Term, label: str, values: list[Any], *, segment: Any = None) -> Any:
        hd = highdicom()
        if segment is not None:
            return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                referenced_segment=segment, measurements=values, **self._common(term, label)
            )
        # All instances of the series are evidence of the report; each group of it need not name hundreds of them again.
        images = (
            [hd.sr.SourceImageForMeasurementGroup(sop_class, instance) for sop_class, instance in self.source.instances]
            if len(self.source.instances) == 1
            else None
        )
        return hd.sr.MeasurementsAndQualitativeEvaluations(
            measurements=values, source_images=images, **self._common(term, label)
        )

    def _common(self, term: Term, label: str) -> dict[str, Any]:
        hd = highdicom()
        side = None if term.modifier is None else concept(term.modifier)
        sites = [hd.sr.FindingSite(anatomic_location=concept(region), laterality=side) for region in term.regions]
        if not sites and side is not None:
            sites = [hd.sr.FindingSite(anatomic_location=concept(term.type), laterality=side)]
        return {
            "tracking_identifier": hd.sr.TrackingIdentifier(uid=hd.UID(), identifier=label[:64]),
            "finding_type": concept(term.type),
            "finding_category": concept(term.category),
            "finding_sites": sites or None,
            "algorithm_id": hd.sr.AlgorithmIdentification(name=self.maker.name, version=self.maker.version),
        }


def _drawn_segments(segmentation: Any) -> set[int]:
    """Numbers of the segments that have frames with something in them."""
    if segmentation is None:
        return set()
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    return {
        int(
            (frame.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence)[
                0
            ].ReferencedSegmentNumber
        )
        for frame in segmentation.PerFrameFunctionalGroupsSequence
    }


def _measurements(shape: Shape, intensity: Intensity | None, modality: str) -> list[Any]:
    length, area = (_MM, _MM2) if shape.unit == "mm" else (_PIXELS, _PIXELS2)
    values = [
        (_VOLUME, shape.volume_ml, _ML),
        (_SURFACE, shape.surface_mm2, _MM2),
        (_AREA, shape.area, area),
        (_LONG, shape.axes.long, length),
        (_SHORT, shape.axes.short, length),
        (_DIAMETER, shape.diameter if math.isfinite(shape.volume_ml) else math.nan, length),
    ]
    if not shape.voxels:
        values = values[:1] if math.isfinite(shape.volume_ml) else values[2:3]
    made = [_number(name, value, unit) for name, value, unit in values if math.isfinite(value)]
    known = None if intensity is None else _QUANTITIES.get(intensity.unit, _MR if modality == "MR" else None)
    if intensity is not None and known is not None:
        for key, how in _DERIVED:
            value = float(getattr(intensity, key))
            if math.isfinite(value):
                made.append(_number(known[0], value, known[1], how))
    return made


def _number(name: Code, value: float, unit: Code, derivation: Code | None = None) -> Any:
    """TID 300; a decimal string holds 16 characters, six digits are more than any of these are worth."""
    return highdicom().sr.Measurement(
        name=concept(name),
        value=float(f"{value:.6g}"),
        unit=concept(unit),
        derivation=None if derivation is None else concept(derivation),
    )
