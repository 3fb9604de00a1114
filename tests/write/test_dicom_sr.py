"""TID 1500 reports: valid, and saying where, what, how sure and how large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from sagittal.case import Case
from sagittal.prediction import Detections, Failure, Prediction, Verdict
from sagittal.read.sources import file_source
from sagittal.truth import Boxes
from sagittal.write.dicom_result import save_dicom
from sagittal.write.dicom_seg import make_dicom_seg
from sagittal.write.dicom_sr import make_dicom_sr, write_dicom_sr
from sagittal.write.equipment import ModelFacts, Stamp, derive_uids
from sagittal.write.measurements import measure_mask
from sagittal.write.sources import open_series, open_source

hd = pytest.importorskip("highdicom")
NOON = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)


def report_of(path: Path) -> Any:
    """The report's content, as highdicom understands it."""
    return hd.sr.srread(path).content


def numbers_of(group: Any) -> dict[str, tuple[float, str]]:
    return {
        f"{one.name.meaning}{' ' + one.derivation.meaning if one.derivation else ''}": (
            float(one.value),
            one.unit.value,
        )
        for one in group.get_measurements()
    }


def _items(header: Any) -> list[Any]:
    """Every item of every sequence, depth first."""
    found = []
    for element in header:
        if element.VR == "SQ":
            for item in element.value:
                found += [item, *_items(item)]
    return found


def test_boxes_of_a_volume(study: Callable[..., Case], found_boxes: Callable[..., Prediction], tmp_path: Path) -> None:
    case = study()
    prediction = found_boxes(case.id, case.image().grid)
    report = report_of(write_dicom_sr(prediction, case, tmp_path / "found.dcm"))
    (first,) = report.get_volumetric_roi_measurement_groups()
    (second,) = report.get_planar_roi_measurement_groups()
    (none,) = report.get_image_measurement_groups()
    # Voxels of 0.5 x 0.7 x 2.5 mm; the box has 6 x 6 x 3 of them.
    assert numbers_of(first) == {
        "Certainty of Finding": (93.0, "%"),
        "Width": (3.0, "mm"),
        "Height": (pytest.approx(4.2), "mm"),
        "Length": (7.5, "mm"),
    }
    assert first.finding_type.meaning == "Nodule"
    assert [site.topographical_modifier for site in first.finding_sites] == [None]
    assert first.finding_sites[0].value.meaning == "Lung"
    assert first.tracking_identifier == "lung nodule 1"
    # A rectangle on each of the slices 2, 3 and 4, from the outer corner of the first pixel: half a pixel more than indices.
    files = {
        str(h.SOPInstanceUID): float(h.InstanceNumber) - 1
        for h in (pydicom.dcmread(p, stop_before_pixels=True) for p in case.images["image"].files)
    }
    regions = first.roi
    assert sorted(files[r.ContentSequence[0].referenced_sop_instance_uid] for r in regions) == [2, 3, 4]
    for region in regions:
        np.testing.assert_allclose(region.value, [[3, 4], [9, 4], [9, 10], [3, 10], [3, 4]])
    assert second.finding_type.scheme_designator == "99SAGITTAL"
    assert files[second.roi.ContentSequence[0].referenced_sop_instance_uid] == 6
    np.testing.assert_allclose(second.roi.value[:2], [[10.75, 2.5], [15.25, 2.5]])
    assert numbers_of(none) == {"Quantity": (0.0, "1")}
    assert none.finding_type.meaning == "Mass"


def test_boxes_of_a_picture(
    write_slice: Callable[..., Path],
    found_boxes: Callable[..., Prediction],
    errors_of: Callable[[Path], list[str]],
    tmp_path: Path,
) -> None:
    pixels = np.zeros((30, 25), np.uint16)
    path = write_slice("x.dcm", pixels, SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1", Modality="DX")
    case = Case("x", "p", {"image": file_source("x", path)})
    made = write_dicom_sr(found_boxes("x", case.image().grid), case, tmp_path / "found.dcm")
    first, second = report_of(made).get_planar_roi_measurement_groups()
    assert numbers_of(first) == {
        "Certainty of Finding": (93.0, "%"),
        "Width": (6.0, "{pixels}"),
        "Height": (6.0, "{pixels}"),
    }
    assert first.roi.ContentSequence[0].referenced_sop_instance_uid == pydicom.dcmread(path).SOPInstanceUID
    assert second.tracking_identifier == "gizmo 1"
    assert errors_of(made) == []


@pytest.mark.parametrize("shape", [(21, 17, 9), (16, 20, 4)])
def test_validator_finds_nothing_wrong(
    study: Callable[..., Case],
    found_boxes: Callable[..., Prediction],
    found_mask: Callable[..., Prediction],
    errors_of: Callable[[Path], list[str]],
    run_tool: Callable[..., str],
    tmp_path: Path,
    shape: tuple[int, int, int],
) -> None:
    case = study(shape)
    grid = case.image().grid
    mask = found_mask(case.id, grid)
    segmentation = make_dicom_seg(mask, open_source(case, grid, "x"))
    for name, prediction, seg in (
        ("b", found_boxes(case.id, grid), None),
        ("m", mask, None),
        ("s", mask, segmentation),
    ):
        path = write_dicom_sr(prediction, case, tmp_path / f"{name}.dcm", segmentation=seg)
        assert errors_of(path) == []
        said = run_tool("dsrdump", str(path))
        assert "Imaging Measurement Report" in said
        assert not any(line.startswith("E:") for line in said.splitlines())


def test_nothing_found_is_a_report_too(
    study: Callable[..., Case],
    found_boxes: Callable[..., Prediction],
    errors_of: Callable[[Path], list[str]],
    tmp_path: Path,
) -> None:
    case = study()
    grid = case.image().grid
    none = Detections(Boxes(np.zeros((0, 2, 3)), []), np.zeros(0), grid, np.zeros(0, bool))
    path = write_dicom_sr(replace(found_boxes(case.id, grid), finding=none), case, tmp_path / "found.dcm")
    assert errors_of(path) == []
    groups = report_of(path).get_image_measurement_groups()
    assert [numbers_of(group)["Quantity"][0] for group in groups] == [0, 0, 0]


def test_structures_refer_to_their_segments(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    case = study()
    grid = case.image().grid
    prediction = found_mask(case.id, grid)
    segmentation = make_dicom_seg(prediction, open_source(case, grid, "x"))
    path = write_dicom_sr(prediction, case, tmp_path / "found.dcm", segmentation=segmentation)
    groups = report_of(path).get_volumetric_roi_measurement_groups()
    header = pydicom.dcmread(path)
    segments = [
        (int(element.value), item.ReferencedSOPInstanceUID)
        for item in _items(header)
        for element in item
        if element.keyword == "ReferencedSegmentNumber"
    ]
    assert segments == [(n, segmentation.SOPInstanceUID) for n in (1, 2, 3)]
    measured = measure_mask(prediction, case)
    inside = case.image().data[0][prediction.finding.segmentation.mask("Liver")]
    values = numbers_of(groups[0])
    assert values["Volume from Voxel Summation"] == (pytest.approx(measured[0].shape.volume_ml, rel=1e-4), "ml")
    assert measured[0].shape.volume_ml == pytest.approx(len(inside) * 0.5 * 0.7 * 2.5 / 1000)
    assert values["Long axis"][0] == pytest.approx(measured[0].shape.axes.long, rel=1e-4)
    assert values["Attenuation Coefficient Mean"] == (pytest.approx(float(inside.mean()), rel=1e-4), "[hnsf'U]")
    assert values["Attenuation Coefficient Standard Deviation"][0] == pytest.approx(float(inside.std()), rel=1e-4)
    evidence = [
        item.ReferencedSOPInstanceUID
        for study_ in header.CurrentRequestedProcedureEvidenceSequence
        for series in study_.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    ]
    assert segmentation.SOPInstanceUID in evidence
    assert len(evidence) == 9 + 1
    # Not found: no segment frame to refer to, a volume of nothing.
    (none,) = report_of(path).get_image_measurement_groups()
    assert numbers_of(none) == {"Volume from Voxel Summation": (0.0, "ml")}


def test_who_made_it(study: Callable[..., Case], found_boxes: Callable[..., Prediction], tmp_path: Path) -> None:
    case = study()
    header = pydicom.dcmread(write_dicom_sr(found_boxes(case.id, case.image().grid), case, tmp_path / "found.dcm"))
    assert (header.CompletionFlag, header.VerificationFlag, header.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert (header.PatientID, header.Modality) == ("PHANTOM-7", "SR")
    assert header.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    texts = [str(element.value) for element in header.iterall() if element.keyword == "TextValue"]
    assert {"nodules", "format 1, sha256 fedcba"} <= set(texts)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_classes_are_coded_with_their_probability_and_the_decision(
    study: Callable[..., Case],
    found_classes: Callable[..., Prediction],
    facts: ModelFacts,
    errors_of: Callable[[Path], list[str]],
    run_tool: Callable[..., str],
    tmp_path: Path,
    kind: str,
) -> None:
    case = study()
    prediction = found_classes(case.id, kind)
    made = make_dicom_sr(prediction, open_series(case, "x"), stamp=Stamp(derive_uids("s"), NOON, facts))
    save_dicom(made, tmp_path / "found.dcm")
    assert errors_of(tmp_path / "found.dcm") == []
    whole, *classes = report_of(tmp_path / "found.dcm").get_image_measurement_groups()
    said = [(one.name.value, one.value.meaning) for one in whole.get_qualitative_evaluations()]
    decided = [("decision", "Nodule")] if kind == "multiclass" else [("decision", "Effusion"), ("decision", "Mass")]
    assert said == [*decided, ("not-excluded", "Nodule"), ("not-excluded", "Mass")]
    # Held or not, by the decision; the certainty is the calibrated probability.
    held = {"multiclass": ["Absent", "Present", "Absent"], "multilabel": ["Present", "Absent", "Present"]}[kind]
    assert [one.get_qualitative_evaluations()[-1].value.meaning for one in classes] == held
    values = {"multiclass": [5, 82, 13], "multilabel": [90, 12, 70]}[kind]
    assert [numbers_of(one) for one in classes] == [
        {"Certainty of Finding": (pytest.approx(value), "%")} for value in values
    ]
    header = pydicom.dcmread(tmp_path / "found.dcm")
    assert (header.CompletionFlag, header.VerificationFlag, header.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    model = header.ContributingEquipmentSequence[-1]
    assert (model.ManufacturerModelName, model.SoftwareVersions[1], model.DeviceSerialNumber) == (
        "chest",
        "2.1",
        "0123456789abcdef" * 4,
    )
    text = run_tool("dsrdump", str(tmp_path / "found.dcm"))
    assert '"Algorithm Name")="chest"' in text
    assert '"Algorithm Version")="2.1"' in text
    assert any("Made by an algorithm" in str(item.get("TextValue")) for item in _items(header))


@pytest.mark.parametrize("state", ["abstained", "refused"])
def test_no_decision_is_coded_and_said_without_numbers(
    study: Callable[..., Case],
    found_classes: Callable[..., Prediction],
    errors_of: Callable[[Path], list[str]],
    tmp_path: Path,
    state: str,
) -> None:
    case = study()
    answer: Prediction | Failure = found_classes(case.id, decision=(), verdict=Verdict(False, "unlike the cases", 1.0))
    if state == "refused":
        answer = Failure(case.id, f"case {case.id}: is a study of modality MR, the model was made for CT", "ScopeError")
    path = write_dicom_sr(answer, case, tmp_path / "none.dcm")
    assert errors_of(path) == []
    (group,) = report_of(path).get_image_measurement_groups()
    (said,) = group.get_qualitative_evaluations()
    assert said.value.meaning == {"abstained": "Indeterminate", "refused": "Test not done"}[state]
    assert group.get_measurements() == []
    header = pydicom.dcmread(path)
    assert header.CompletionFlag == "PARTIAL"
    text = " ".join(str(item.get("TextValue")) for item in _items(header))
    assert {"abstained": "unlike the cases", "refused": "was made for CT"}[state] in text
    assert "82" not in [str(item.get("NumericValue")) for item in _items(header)]
