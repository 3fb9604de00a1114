"""The objects of a real mask into Orthanc by both ways, and what it says of them."""

from __future__ import annotations

import io
import json
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

pytest.importorskip("highdicom")
pytest.importorskip("pynetdicom")
pytest.importorskip("httpx")

from sagittal.case import Case
from sagittal.deliver.destinations import DicomDestination, StowDestination
from sagittal.deliver.send import send
from sagittal.labels import LabelScheme
from sagittal.prediction import Mask, Prediction
from sagittal.read.sources import series_source
from sagittal.truth import Segmentation, Structure
from sagittal.write.equipment import ModelFacts, derive_uids
from sagittal.write.service_objects import KINDS, ObjectOptions, make_objects

NAME = "Wang^XiaoDong=王^小东"
FACTS = ModelFacts("liver", "1.0", "ab" * 32, "Where is the liver?")


@pytest.fixture
def made(write_series: Any, tmp_path: Path) -> Any:
    """All objects of a mask of a study in GB 18030."""
    volume = np.random.default_rng(3).integers(900, 1300, (7, 24, 20)).astype(np.int16)
    paths = write_series(
        "study", volume, [2.5 * k for k in range(7)], SpecificCharacterSet="GB18030", PatientName=NAME, PatientID="GB-1",
        FrameOfReferenceUID="1.2.3.4.99", StudyInstanceUID="1.2.3.77", SeriesInstanceUID="1.2.3.77.1", StudyDate="20260101",
        StudyTime="101112", AccessionNumber="A77", BodyPartExamined="ABDOMEN", SliceThickness=2.5,
    )  # fmt: skip
    case = Case("study", "p", {"image": series_source("study", paths)})
    grid = case.image().grid
    layers = np.zeros((1, *grid.shape), np.uint8)
    layers[0, 5:12, 6:15, 2:5] = 1
    found = Mask(Segmentation(layers, grid, (Structure("liver", (1,)),)))
    answer = Prediction("study", LabelScheme("structures", ("liver",)), found, ("liver",), np.zeros(0))

    def again(folder: str) -> Any:
        options = ObjectOptions(made_at=datetime(2026, 1, 1, 11, tzinfo=UTC))
        return make_objects(
            answer, case, list(KINDS), FACTS, tmp_path / folder, derive_uid=derive_uids("x"), options=options
        )

    return again


def test_orthanc_holds_what_was_made_and_knows_it_again(made: Any, orthanc: Any) -> None:
    first, second = made("first"), made("second")
    peer = DicomDestination(name="pacs", host="127.0.0.1", port=orthanc.dicom, ae_title="ORTHANC")
    assert send(first, peer).objects == 5
    # Made once more and sent the other way: the same instances.
    assert send(second, StowDestination(name="web", url=f"{orthanc.url}/dicom-web", confirm=True)).confirmed
    (study,) = [
        one
        for one in map(orthanc.get, (f"/studies/{n}" for n in orthanc.get("/studies")))
        if one["MainDicomTags"]["StudyInstanceUID"] == "1.2.3.77"
    ]
    assert study["PatientMainDicomTags"]["PatientName"] == NAME
    assert len(study["Series"]) == 5
    modalities = {orthanc.get(f"/series/{one}")["MainDicomTags"]["Modality"] for one in study["Series"]}
    assert modalities == {"SEG", "RTSTRUCT", "SR", "OT", "KO"}
    for one in first:
        if not one.sop_instance_uid:
            continue
        request = urllib.request.Request(
            f"{orthanc.url}/tools/lookup", data=one.sop_instance_uid.encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            (instance,) = json.loads(answer.read())
        with urllib.request.urlopen(f"{orthanc.url}/instances/{instance['ID']}/file", timeout=60) as answer:
            stored = pydicom.dcmread(io.BytesIO(answer.read()))
        ours = pydicom.dcmread(one.path)
        assert stored.to_json() == ours.to_json(), one.kind
        assert str(stored.PatientName) == NAME
