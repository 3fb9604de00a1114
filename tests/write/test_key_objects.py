"""Key images: the slices that decide, in order, no more than a reader looks at."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from sagittal.case import Case
from sagittal.labels import LabelScheme
from sagittal.prediction import Detections, Failure, Mask, Prediction
from sagittal.read.sources import file_source
from sagittal.truth import Boxes, Segmentation, Structure
from sagittal.write.dicom_result import save_dicom
from sagittal.write.equipment import ModelFacts, Stamp, derive_uids
from sagittal.write.key_objects import decisive_slices, make_key_objects
from sagittal.write.sources import open_series

hd = pytest.importorskip("highdicom")
NOON = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def stamp(facts: ModelFacts) -> Stamp:
    return Stamp(derive_uids("seed"), NOON, facts)


def selected(header: Any) -> list[Any]:
    return [one.ReferencedSOPSequence[0] for one in header.ContentSequence if one.ValueType == "IMAGE"]


def numbers(case: Case) -> dict[str, int]:
    headers = (pydicom.dcmread(p, stop_before_pixels=True) for p in case.images["image"].files)
    return {str(h.SOPInstanceUID): int(h.InstanceNumber) - 1 for h in headers}


def mask_of(case: Case, counts: dict[str, list[int]]) -> Prediction:
    """A mask in which each structure has so many voxels on each slice."""
    grid = case.image().grid
    layers = np.zeros((1, *grid.shape), np.uint8)
    for value, (_, row) in enumerate(counts.items(), start=1):
        for k, count in enumerate(row):
            layers[0, :count, value, k] = value
    structures = tuple(Structure(name, (n,)) for n, name in enumerate(counts, start=1))
    found = Mask(Segmentation(layers, grid, structures))
    names = tuple(counts)
    return Prediction(case.id, LabelScheme("structures", names), found, names, np.zeros(0), model="m (format 1)")


def test_of_a_mask_the_largest_area_of_each_structure(
    study: Callable[..., Case], stamp: Stamp, errors_of: Any, run_tool: Any, tmp_path: Path
) -> None:
    case = study()
    answer = mask_of(case, {"liver": [0, 3, 9, 4, 0, 0, 0, 0, 0], "cyst": [0] * 7 + [2, 1], "spleen": [0] * 9})
    assert decisive_slices(answer) == [2, 7]
    made = make_key_objects(answer, open_series(case, "x"), stamp=stamp)
    save_dicom(made, tmp_path / "ko.dcm")
    assert errors_of(tmp_path / "ko.dcm") == []
    header = pydicom.dcmread(tmp_path / "ko.dcm")
    by_number = numbers(case)
    assert [by_number[one.ReferencedSOPInstanceUID] for one in selected(header)] == [2, 7]
    evidence = header.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert len(evidence) == 2
    # Read back by highdicom and by dcmtk.
    content = hd.ko.KeyObjectSelectionDocument.from_dataset(header).content
    assert len(content.get_references()) == 2
    assert "Of Interest" in run_tool("dsrdump", str(tmp_path / "ko.dcm"))


def test_of_boxes_their_middles_the_surest_first(study: Callable[..., Case], found_boxes: Any) -> None:
    case = study()
    grid = case.image().grid
    assert decisive_slices(found_boxes(case.id, grid)) == [3, 6]  # the third is below the operating point
    corners = np.zeros((30, 2, 3)) + np.array([[[0.0, 0, 0], [2, 2, 0]]])
    corners[:, :, 2] = (np.arange(30) % 9)[:, None]
    many = Detections(Boxes(corners, [0] * 30), np.linspace(0.9, 0.5, 30), grid, np.ones(30, bool))
    answer = Prediction(case.id, LabelScheme("objects", ("a",)), many, ("a",), np.zeros(0))
    assert decisive_slices(answer, most=4) == [0, 1, 2, 3]
    assert len(decisive_slices(answer)) == 9


@pytest.mark.parametrize("name", ["nothing found", "classes", "refused"])
def test_without_a_place_the_middle_image_stands_for_the_series(
    study: Callable[..., Case], found_classes: Any, stamp: Stamp, name: str
) -> None:
    case = study()
    answer: Any = {
        "nothing found": lambda: mask_of(case, {"liver": [0] * 9}),
        "classes": lambda: found_classes(case.id),
        "refused": lambda: Failure(case.id, f"case {case.id}: is MR", "ScopeError"),
    }[name]()
    header = make_key_objects(answer, open_series(case, "x"), stamp=stamp)
    (one,) = selected(header)
    assert numbers(case)[one.ReferencedSOPInstanceUID] == 4
    text = next(
        item.TextValue
        for item in header.ContentSequence
        if item.ValueType == "TEXT" and item.ConceptNameCodeSequence[0].CodeValue == "113012"
    )
    assert "the middle one stands for the series" in text
    assert ("is MR" in text) == (name == "refused")


def test_frames_of_one_instance_are_named_by_number(
    write_slice: Any, stamp: Stamp, errors_of: Any, tmp_path: Path
) -> None:
    frames = np.zeros((5, 20, 16), np.uint16)
    shared, frame = pydicom.Dataset(), []
    measures, orientation = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.7, 0.5], 2
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    for k in range(5):
        place, item = pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = [0, 0, 2.0 * k]
        item.PlanePositionSequence = [place]
        frame.append(item)
    path = write_slice(
        "multi.dcm", frames[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", NumberOfFrames=5, FrameOfReferenceUID="1.2.9",
        SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=frame, PixelData=frames.tobytes(),
    )  # fmt: skip
    case = Case("x", "x", {"image": file_source("x", path)})
    answer = mask_of(case, {"liver": [0, 4, 0, 0, 0], "cyst": [0, 0, 0, 3, 0]})
    made = make_key_objects(answer, open_series(case, "x"), stamp=stamp)
    (one,) = selected(made)
    assert [int(n) for n in one.ReferencedFrameNumber] == [2, 4]
    save_dicom(made, tmp_path / "ko.dcm")
    assert errors_of(tmp_path / "ko.dcm") == []
