"""Groups of a structured report (PS3.16 TID 1410, 1411, 1501): a box, a structure, a class, a decision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sagittal.errors import DataError
from sagittal.labels import ClassScores
from sagittal.metrics.shape import Intensity, Shape
from sagittal.prediction import Detections, Failure, Prediction
from sagittal.types import Floats
from sagittal.write.dicom_result import Maker, concept, highdicom
from sagittal.write.equipment import MANUFACTURER, Stamp
from sagittal.write.measurements import Measured
from sagittal.write.names import one_line
from sagittal.write.sources import Source
from sagittal.write.statement import Statement
from sagittal.write.terminology import PRIVATE_SCHEME, Code, Term

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
_COMMENT = Code("121106", "DCM", "Comment")
_PRESENT, _ABSENT = Code("52101004", "SCT", "Present"), Code("2667000", "SCT", "Absent")
#: What a model decided, and the answers of a model that decides nothing.
_DECISION = Code("decision", PRIVATE_SCHEME, "Decision of the model")
_NOT_EXCLUDED = Code("not-excluded", PRIVATE_SCHEME, "Class that cannot be excluded")
_LIKENESS = Code("likeness", PRIVATE_SCHEME, "Likeness to what the model was made for")
_UNLIKE = Code("unlike", PRIVATE_SCHEME, "Unlike what the model was made for")
_NO_DECISION = {
    "abstained": Code("82334004", "SCT", "Indeterminate"),
    "refused": Code("373121007", "SCT", "Test not done"),
}
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


@dataclass(frozen=True)
class Groups:
    """Makes the groups of one report."""

    case: str
    source: Source
    maker: Maker
    stamp: Stamp
    statement: Statement

    def of(
        self,
        answer: Prediction | Failure,
        terms: Sequence[Term],
        *,
        measured: Sequence[Measured] = (),
        segmentation: Any = None,
    ) -> list[Any]:
        """All groups of an answer, in the order of the classes or structures that `terms` are of."""
        if not isinstance(answer, Prediction) or self.statement.state != "answered":
            return [self.of_state()]
        if isinstance(answer.finding, ClassScores):
            return self.of_classes(answer, terms)
        if isinstance(answer.finding, Detections):
            groups = self.of_boxes(answer.finding, terms)
        else:
            groups = self.of_mask(measured, terms, segmentation)
        return [self.of_state(), *groups] if self.statement.reason else groups

    def of_classes(self, prediction: Prediction, terms: Sequence[Term]) -> list[Any]:
        """The decision, then a group for each class."""
        hd = highdicom()
        by_name = dict(zip(prediction.scheme.classes, terms, strict=True))
        said = [(_DECISION, by_name[name].type) for name in prediction.decision]
        said += [(_NOT_EXCLUDED, by_name[name].type) for name in prediction.conformal]
        if not prediction.verdict.accepted:
            said.append((_LIKENESS, _UNLIKE))
        groups = [self._said(said)]
        for one, term in zip(self.statement.lines, terms, strict=True):
            present = hd.sr.QualitativeEvaluation(concept(_DECISION), concept(_PRESENT if one.held else _ABSENT))
            share = _number(_CERTAINTY, 100 * one.probability, _PERCENT)
            groups.append(self._group(term, one.name, [share], evaluations=[present]))
        return groups

    def of_state(self) -> Any:
        """Why there is no answer; or, of an answer, what speaks against relying on it."""
        code = _NO_DECISION.get(self.statement.state)
        return self._said([(_LIKENESS, _UNLIKE)] if code is None else [(_DECISION, code)])

    def _said(self, evaluations: Sequence[tuple[Code, Code]]) -> Any:
        """A group about the study as a whole: coded, and as a comment in words (TID 1501)."""
        hd = highdicom()
        made = hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=self._tracking("answer"),
            algorithm_id=self._algorithm(),
            qualitative_evaluations=[
                hd.sr.QualitativeEvaluation(concept(name), concept(value)) for name, value in evaluations
            ],
            source_images=self._one_image(),
        )
        comment = hd.sr.TextContentItem(
            name=concept(_COMMENT), value=self.statement.text, relationship_type=hd.sr.RelationshipTypeValues.CONTAINS
        )
        made[0].ContentSequence.append(comment)
        return made

    def of_boxes(self, found: Detections, terms: Sequence[Term]) -> list[Any]:
        """A group for each chosen box, and for each class without one."""
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
        """A group for each structure."""
        if not measured:
            raise DataError(f"case {self.case}: the mask names no structure")
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

    def _group(
        self, term: Term, label: str, values: list[Any], *, segment: Any = None, evaluations: list[Any] | None = None
    ) -> Any:
        hd = highdicom()
        if segment is not None:
            return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                referenced_segment=segment, measurements=values, **self._common(term, label)
            )
        return hd.sr.MeasurementsAndQualitativeEvaluations(
            measurements=values,
            qualitative_evaluations=evaluations,
            source_images=self._one_image(),
            **self._common(term, label),
        )

    def _one_image(self) -> list[Any] | None:
        """The image, where there is but one: all of a series are evidence of the report, and no group names them again."""
        if len(self.source.instances) != 1:
            return None
        hd = highdicom()
        return [hd.sr.SourceImageForMeasurementGroup(*self.source.instances[0])]

    def _common(self, term: Term, label: str) -> dict[str, Any]:
        hd = highdicom()
        side = None if term.modifier is None else concept(term.modifier)
        sites = [hd.sr.FindingSite(anatomic_location=concept(region), laterality=side) for region in term.regions]
        if not sites and side is not None:
            sites = [hd.sr.FindingSite(anatomic_location=concept(term.type), laterality=side)]
        return {
            "tracking_identifier": self._tracking(label),
            "finding_type": concept(term.type),
            "finding_category": concept(term.category),
            "finding_sites": sites or None,
            "algorithm_id": self._algorithm(),
        }

    def _tracking(self, label: str) -> Any:
        hd = highdicom()
        return hd.sr.TrackingIdentifier(
            uid=hd.UID(self.stamp.uid(f"tracking/{label}")), identifier=one_line(label) or "finding"
        )

    def _algorithm(self) -> Any:
        """TID 4019, without the optional family: highdicom reads that as an evaluation of the finding."""
        seal = [f"sha256={self.maker.checksum}"] if self.maker.checksum else None
        return highdicom().sr.AlgorithmIdentification(
            name=self.maker.name,
            version=self.maker.version,
            parameters=seal,
            manufacturer=MANUFACTURER,
        )


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
