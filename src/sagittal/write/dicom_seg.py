"""Masks to DICOM segmentations (PS3.3 A.51), binary or fractional, that refer to the series that was outlined.

highdicom makes the object; the frames' bits are filled in here, slice by slice, so that memory holds one layer of masks and
the file's own pixels and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydicom.dataset import Dataset as Header

from sagittal.case import Case
from sagittal.errors import DataError, ScopeError
from sagittal.prediction import Mask, Prediction
from sagittal.types import Array
from sagittal.write.dicom_result import (
    UTF_8,
    algorithm,
    concept,
    declare_schemes,
    highdicom,
    made_by_highdicom,
    maker_of,
    save_dicom,
    seal,
    stand_ins,
)
from sagittal.write.equipment import MANUFACTURER, Stamp
from sagittal.write.masks import mask_of, planes_of
from sagittal.write.names import one_line
from sagittal.write.sources import Source, open_source
from sagittal.write.terminology import Term, Terminology

Kind = Literal["BINARY", "FRACTIONAL"]
_WHAT = "a DICOM segmentation"
_SERIES = {"BINARY": 9101, "FRACTIONAL": 9102}
#: Pixel data of one object end here: a length has 32 bits, the last value of which means another thing.
_MOST_BYTES = 2**32 - 2


def write_dicom_seg(
    prediction: Prediction, case: Case, path: Path, *, kind: Kind = "BINARY", terminology: Terminology | None = None
) -> Path:
    """Write the mask of a prediction as a DICOM SEG of the study's series. See :func:`make_dicom_seg`."""
    source = open_source(case, mask_of(prediction, _WHAT).grid, _WHAT)
    save_dicom(make_dicom_seg(prediction, source, kind=kind, terminology=terminology), path)
    return path


def make_dicom_seg(
    prediction: Prediction,
    source: Source,
    *,
    kind: Kind = "BINARY",
    terminology: Terminology | None = None,
    stamp: Stamp | None = None,
) -> Any:
    """A segmentation object in the frame of reference of its source, a frame for each slice that a structure meets.

    Every structure is a segment, also one that was not found, which has no frames; at least one frame is written, empty
    where all structures are. Segments may overlap. Fractional pixels are probabilities (SegmentationFractionalType
    PROBABILITY) of 0 to 255.

    Parameters
    ----------
    prediction : Prediction
        Its finding is a mask.
    source : Source
    kind : {"BINARY", "FRACTIONAL"}
    terminology : Terminology, optional
        Codes of the structures.
    stamp : Stamp, optional
        UIDs, time and model; where left out, new UIDs and the present time.

    Returns
    -------
    highdicom.seg.Segmentation

    Raises
    ------
    ScopeError
        If the series has no place in the patient and more than one slice; or a fractional one is asked for and the
        prediction has no probabilities.
    DataError
        If the frames would need more than 4 GB.
    MissingPackageError
        If highdicom is not installed.
    """
    stamp = stamp or Stamp.now(prediction)
    hd, mask, maker = highdicom(), mask_of(prediction, _WHAT), maker_of(prediction, stamp)
    names = [structure.name for structure in mask.segmentation.structures]
    _check(prediction, source, kind, names)
    terms = (terminology or Terminology()).find_all(names)
    slices = _planes(mask, kind)
    present = np.zeros((len(source.slices), 1, 1, len(names)), dtype=np.uint8)
    for n, found in enumerate(slices):
        present[list(found), 0, 0, n] = 1
    if not present.any():
        present[0, 0, 0, 0] = 1  # an object has one frame at least
    size = int(mask.grid.shape[0]) * int(mask.grid.shape[1])
    need = int(present.sum()) * size // (8 if kind == "BINARY" else 1)
    if need > _MOST_BYTES:
        raise DataError(
            f"case {prediction.case}: the frames of a {kind} segmentation need {need / 2**30:.1f} GB, a DICOM object holds 4. "
            "Write a binary one (--format seg) or NIfTI (--format nifti)."
        )
    with made_by_highdicom(prediction.case, _WHAT):
        made = hd.seg.Segmentation(
            stand_ins(source),
            present,
            kind,
            [_describe(n, term, algorithm(maker), stamp) for n, term in enumerate(terms, start=1)],
            series_instance_uid=stamp.uid("series"),
            series_number=_SERIES[kind],
            sop_instance_uid=stamp.uid("instance"),
            instance_number=1,
            specific_character_set=UTF_8,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=maker.name,
            software_versions=maker.software,
            device_serial_number=maker.serial,
            content_label="SAGITTAL",
            content_description=one_line(f"Found by {maker.name}"),
            content_creator_name=f"{MANUFACTURER}^",
            series_description=one_line(f"Segmentation by {maker.name}"),
        )
    made.SoftwareVersions = [maker.software, maker.version]
    if not source.placed:  # type 2C of the General Image module
        made.PatientOrientation = source.header.get("PatientOrientation") or ""
    order = _refer(made, source)
    made.Rows, made.Columns = mask.grid.shape[1], mask.grid.shape[0]
    made.PixelData = _pixels(order, slices, size, kind)
    made["PixelData"].VR = "OB"
    overlapping = len(mask.segmentation.layers) > 1
    made.SegmentsOverlap = "UNDEFINED" if kind == "FRACTIONAL" or overlapping else "NO"
    declare_schemes(made, terms)
    seal(made, source, stamp)
    return made


def _check(prediction: Prediction, source: Source, kind: Kind, names: Sequence[str]) -> None:
    mask = mask_of(prediction, _WHAT)
    if not names:
        raise DataError(f"case {prediction.case}: the mask names no structure, and a segmentation has one at least")
    if source.grid.shape != mask.grid.shape:
        raise DataError(
            f"case {prediction.case}: the mask {mask.grid.shape} does not fit its series {source.grid.shape}"
        )
    if not source.placed and len(source.slices) > 1:
        raise ScopeError(
            f"case {prediction.case}: its slices have no place in the patient, which {_WHAT} of several needs. Write "
            "another format: --format nifti"
        )
    if kind == "FRACTIONAL" and (missing := [name for name in names if name not in mask.probability]):
        raise ScopeError(
            f"case {prediction.case}: a fractional segmentation holds probabilities, and the prediction has none of "
            f"{', '.join(missing[:8])}. Ask for them when predicting, or write a binary one: --format seg"
        )


def _planes(mask: Mask, kind: Kind) -> list[dict[int, Array]]:
    """Of each structure, the slices that it meets -> its pixels there, packed bits or bytes, row by row."""
    found: list[dict[int, Array]] = [{} for _ in mask.segmentation.structures]
    if kind == "BINARY":
        for n, k, plane in planes_of(mask):
            found[n][k] = np.packbits(plane.T.reshape(-1), bitorder="little")
        return found
    for n, one in enumerate(mask.segmentation.structures):
        values = mask.probability[one.name]
        for k in range(values.shape[2]):
            plane = values[:, :, k].T
            if plane.any():
                found[n][k] = plane.reshape(-1)
    return found


def _describe(number: int, term: Term, identification: Any, stamp: Stamp) -> Any:
    hd = highdicom()
    made = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=one_line(term.name) or f"structure {number}",
        segmented_property_category=concept(term.category),
        segmented_property_type=concept(term.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=identification,
        tracking_uid=stamp.uid(f"tracking/{number}"),
        tracking_id=one_line(f"{number} {term.name}"),
        anatomic_regions=[concept(region) for region in term.regions] or None,
        display_color=hd.color.CIELabColor.from_rgb(*term.colour),
    )
    if term.modifier is not None:
        made.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [concept(term.modifier)]
    return made


def _refer(made: Header, source: Source) -> list[tuple[int, int]]:
    """Let each frame refer to the instance and frame it was drawn on; (segment index, k) of each frame."""
    order = []
    shared = made.SharedFunctionalGroupsSequence[0]
    by_place = {_key(one.position): k for k, one in enumerate(source.slices)} if source.placed else {}
    for frame in made.PerFrameFunctionalGroupsSequence:
        k = by_place[_key(frame.PlanePositionSequence[0].ImagePositionPatient)] if source.placed else 0
        number = (frame.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence)[0]
        order.append((int(number.ReferencedSegmentNumber) - 1, k))
        for derivation in frame.DerivationImageSequence:
            for item in derivation.SourceImageSequence:
                one = source.slices[k]
                item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one.sop_class, one.sop_instance
                if one.frame:
                    item.ReferencedFrameNumber = one.frame
    references = [_referred(*one) for one in source.instances]
    series = Header()
    series.SeriesInstanceUID = source.header.SeriesInstanceUID
    series.ReferencedInstanceSequence = references
    made.ReferencedSeriesSequence = [series]
    for other in source.others:
        item = Header()
        item.SeriesInstanceUID = other.series_uid
        item.ReferencedInstanceSequence = [_referred(*one) for one in other.instances]
        made.ReferencedSeriesSequence.append(item)
    if "SourceImageSequence" in made:
        made.SourceImageSequence = references
    return order


def _referred(sop_class: str, instance: str) -> Header:
    item = Header()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
    return item


def _key(position: Any) -> tuple[float, ...]:
    return tuple(round(float(v), 3) for v in position)


def _pixels(order: Sequence[tuple[int, int]], slices: Sequence[dict[int, Array]], size: int, kind: Kind) -> bytes:
    """All frames one after the other; bits without a gap between frames (PS3.5 8.1.1)."""
    each = -(-size // 8) if kind == "BINARY" else size
    if kind == "BINARY" and size % 8:
        bits = np.zeros(len(order) * size, dtype=np.uint8)
        for n, (segment, k) in enumerate(order):
            plane = slices[segment].get(k)
            if plane is not None:
                bits[n * size : (n + 1) * size] = np.unpackbits(plane, count=size, bitorder="little")
        data = np.packbits(bits, bitorder="little")
    else:
        data = np.zeros(len(order) * each, dtype=np.uint8)
        for n, (segment, k) in enumerate(order):
            plane = slices[segment].get(k)
            if plane is not None:
                data[n * each : (n + 1) * each] = plane
    return data.tobytes() + b"\0" * (data.size % 2)
