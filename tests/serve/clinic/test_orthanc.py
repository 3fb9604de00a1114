"""Orthanc routes studies to the service, the service answers, Orthanc holds the results: all of it as in a hospital."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest

import hospital
import tiny

ANSWERED, ABSTAINED, REFUSED, NO_MODEL, FETCHED, MOVED, PRIOR = 1, 2, 3, 4, 5, 6, 7
UID = {number: f"{tiny.ROOT}.{number}" for number in range(1, 7)}
SLICES, SIZE = 16, 32


@pytest.fixture(scope="module")
def clinic(need_orthanc: None, models: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Orthanc and the service; four studies were routed and answered."""
    folder = tmp_path_factory.mktemp("clinic")
    orthanc = hospital.Orthanc(folder / "orthanc", route=True)
    tables = {
        "destination": [orthanc.destination()],
        "pacs": [{"name": "archive", "host": "127.0.0.1", "port": orthanc.dicom, "ae_title": "ORTHANC"}],
        "model": [
            {"path": models.outliner, "results": ["seg", "sr", "sc", "json"], "to": ["pacs"]},
            {"path": models.classifier, "results": ["sr", "sc", "ko", "json"], "to": ["pacs"]},
        ],
    }
    service = hospital.Service(folder / "service", tables, dicom_port=orthanc.sagittal_port)
    with orthanc, service:
        service.admit()
        service.start()
        orthanc.take(tiny.make_study(ANSWERED, SLICES, SIZE, PatientName="Müller^Jörg=王^小东"))
        orthanc.take(tiny.make_study(ABSTAINED, SLICES, SIZE, base=-800))
        orthanc.take(tiny.make_study(REFUSED, SLICES, SIZE, leave_out=(6, 7, 11)))
        orthanc.take(tiny.make_study(NO_MODEL, SLICES, SIZE, Modality="PT", BodyPartExamined="HEAD"))
        hospital.until(lambda: len(studies(service)) == 4 and service.settled(), 120, "all studies are answered")
        confirmed = "select count(*) from deliveries where state != 'confirmed'"
        hospital.until(lambda: service.rows(confirmed) == [(0,)], 30, "all results are confirmed")
        yield SimpleNamespace(orthanc=orthanc, service=service, folder=folder)


def studies(service: hospital.Service) -> dict[str, dict[str, Any]]:
    """The worklist by accession number."""
    return {one["accession"]: one for one in service.call("/api/studies?limit=100")["studies"]}


@pytest.fixture(scope="module")
def held(clinic: Any) -> dict[int, list[Path]]:
    """What Orthanc holds of each study, as files."""
    kinds = ("CT", "PT", "SEG", "SR", "OT", "KO")
    return {
        number: [
            path for kind in kinds for path in clinic.orthanc.fetch(kind, UID[number], clinic.folder / str(number))
        ]
        for number in (ANSWERED, ABSTAINED, REFUSED, NO_MODEL)
    }


def kinds_of(paths: list[Path]) -> list[str]:
    """The kinds of the objects that are no images of the scanner."""
    return sorted(kind for path in paths if (kind := path.name.split("-")[0]) not in {"ct", "pt"})


def items(header: Any) -> Iterator[Any]:
    """All items of a report."""
    for one in header.get("ContentSequence", []):
        yield one
        yield from items(one)


def test_each_study_has_its_answer_in_the_worklist(clinic: Any) -> None:
    found = {accession: (one["status"], one["abstained"]) for accession, one in studies(clinic.service).items()}
    assert found == {
        "A000001": ("answered", False),
        "A000002": ("abstained", True),  # the outline answers, the classification abstains: the weaker is shown
        "A000003": ("refused", True),
        "A000004": ("no-model", False),
    }
    said = clinic.service.rows(
        "select s.accession, r.model, r.state from results r join studies s on s.id = r.study_id"
    )
    assert set(said) == {
        ("A000001", "block", "answered"),
        ("A000001", "block-or-not", "answered"),
        ("A000002", "block", "answered"),
        ("A000002", "block-or-not", "abstained"),
        ("A000003", "block", "refused"),
        ("A000003", "block-or-not", "refused"),
    }


def test_orthanc_holds_every_object_of_every_result_confirmed(clinic: Any, held: dict[int, list[Path]]) -> None:
    assert kinds_of(held[ANSWERED]) == ["ko", "ot", "ot", "seg", "sr", "sr"]
    assert kinds_of(held[REFUSED]) == ["ko", "ot", "ot", "sr", "sr"]
    assert kinds_of(held[NO_MODEL]) == []
    kept = clinic.service.rows("select i.sop_instance_uid from objects o join instances i on i.id = o.instance_id")
    there = {pydicom.dcmread(p, stop_before_pixels=True).SOPInstanceUID for paths in held.values() for p in paths}
    assert {uid for (uid,) in kept} <= there
    assert len(there) == 4 * SLICES - 3 + len(kept)
    assert clinic.service.rows("select distinct state, error from deliveries") == [("confirmed", "")]


def test_segmentation_lies_on_the_block_in_the_patient(held: dict[int, list[Path]]) -> None:
    seg = pydicom.dcmread(next(path for path in held[ANSWERED] if path.name.startswith("seg")))
    sources = {str(one.SOPInstanceUID) for one in map(pydicom.dcmread, held[ANSWERED]) if one.Modality == "CT"}
    ((name, found),) = tiny.found_mm(seg)
    truth = np.zeros((SLICES, SIZE, SIZE), bool)
    truth[tiny.block_of(ANSWERED, SLICES, SIZE)] = True
    expected = tiny.place_mm(np.argwhere(truth))
    apart = np.linalg.norm(found[:, None] - expected[None], axis=-1)  # (N found, N expected) mm
    assert name == "lesion"
    assert 2 * (apart.min(axis=1) < 0.01).sum() / (len(found) + len(expected)) > 0.85
    assert np.linalg.norm(found.mean(axis=0) - expected.mean(axis=0)) < 1.0
    assert seg.FrameOfReferenceUID == f"{UID[ANSWERED]}.99"
    referred = {one.ReferencedSOPInstanceUID for one in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred
    assert referred <= sources


def test_report_says_the_volume_of_the_segmentation(held: dict[int, list[Path]]) -> None:
    seg = pydicom.dcmread(next(path for path in held[ANSWERED] if path.name.startswith("seg")))
    ((_, found),) = tiny.found_mm(seg)
    volume_mm3 = len(found) * np.prod(tiny.SPACING)
    volumes = []
    for path in held[ANSWERED]:
        report = pydicom.dcmread(path)
        for one in items(report):
            if one.ValueType == "NUM" and one.ConceptNameCodeSequence[0].CodeMeaning.startswith("Volume"):
                value = one.MeasuredValueSequence[0]
                scale = {"mm3": 1.0, "cm3": 1000.0, "ml": 1000.0}[value.MeasurementUnitsCodeSequence[0].CodeValue]
                volumes.append(float(value.NumericValue) * scale)
    assert volumes
    assert volumes[0] == pytest.approx(volume_mm3, rel=0.01)


def test_every_object_says_which_model_made_it(clinic: Any, held: dict[int, list[Path]]) -> None:
    checksums = {one for (one,) in clinic.service.rows("select distinct checksum from results")}
    named = set()
    for path in (path for paths in held.values() for path in paths if kinds_of([path])):
        header = pydicom.dcmread(path)
        equipment = header.ContributingEquipmentSequence[-1]
        assert equipment.DeviceSerialNumber in checksums
        assert header.Manufacturer == "Sagittal"
        named.add(equipment.DeviceSerialNumber)
        assert header.PatientID == f"P{int(header.AccessionNumber[1:]):06d}"
    assert named == checksums
    answered = [pydicom.dcmread(path) for path in held[ANSWERED]]
    assert {str(one.PatientName) for one in answered} == {"Müller^Jörg=王^小东"}


def test_abstentions_and_refusals_say_so_in_the_report(held: dict[int, list[Path]]) -> None:
    def text(number: int) -> str:
        headers = [pydicom.dcmread(path) for path in held[number] if path.name.startswith("sr")]
        return json.dumps([one.to_json_dict() for one in headers], ensure_ascii=False).lower()

    assert "abstain" in text(ABSTAINED)
    assert "refus" in text(REFUSED)
    assert "abstain" not in text(ANSWERED)
    assert "refus" not in text(ANSWERED)


def test_validators_find_no_error(
    clinic: Any, held: dict[int, list[Path]], errors_of: Callable[..., list[str]]
) -> None:
    for number, paths in held.items():
        for path in paths:
            if kinds_of([path]):
                assert errors_of("dciodvfy", path) == [], (number, path.name)
        assert errors_of("dcentvfy", *paths) == [], number


def test_what_comes_back_from_the_pacs_changes_nothing(clinic: Any) -> None:
    """A routing that knows no better sends the results back, again and again."""
    before = [clinic.service.rows(f"select count(*) from {table}") for table in ("instances", "results", "jobs")]
    for one in clinic.orthanc.call("/studies"):
        clinic.orthanc.call("/modalities/sagittal/store", one.encode())
    hospital.until(clinic.service.settled, 30, "nothing is left to do")
    after = [clinic.service.rows(f"select count(*) from {table}") for table in ("instances", "results", "jobs")]
    assert after == before
    assert clinic.service.rows("select count(*) from conflicts") == [(0,)]
    assert clinic.service.rows("select count(*) from refusals") == [(0,)]


def test_study_is_fetched_by_its_accession_number(clinic: Any) -> None:
    clinic.orthanc.take(tiny.make_study(FETCHED, SLICES, SIZE, StudyDescription="not routed"))
    asked = clinic.service.call("/api/fetch", {"pacs": "archive", "accession": "A000005"})
    answered = (
        "select count(*) from studies where accession = 'A000005' and status = 'answered' and instance_count >= 16"
    )
    hospital.until(lambda: clinic.service.rows(answered) == [(1,)], 60, "the fetched study is answered")
    (payload,) = clinic.service.rows("select payload from jobs where id = ?", asked["job"])[0]
    assert "A000005" not in payload


def test_earlier_study_of_the_patient_is_fetched(clinic: Any) -> None:
    prior = {"StudyDescription": "not routed", "StudyDate": "20250101", "PatientID": "P000001"}
    clinic.orthanc.take(tiny.make_study(PRIOR, SLICES, SIZE, **prior))
    study = studies(clinic.service)["A000001"]["id"]
    assert clinic.service.call(f"/api/studies/{study}/earlier", {"pacs": "archive"})["job"]
    there = "select patient_id, study_date from studies where accession = 'A000007'"
    assert hospital.until(lambda: clinic.service.rows(there), 60, "it is fetched") == [("P000001", "20250101")]


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"pacs": "elsewhere", "accession": "A000001"}, 404),
        ({"pacs": "archive", "accession": "A*"}, 422),
        ({"pacs": "archive", "accession": ""}, 422),
    ],
)
def test_what_cannot_be_fetched_is_refused(clinic: Any, asked: dict[str, str], status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        clinic.service.call("/api/fetch", asked)
    assert caught.value.code == status
    caught.value.close()


def test_study_is_moved_from_the_pacs_to_the_node(clinic: Any) -> None:
    from sagittal.deliver.destinations import DicomPeer
    from sagittal.deliver.dicom_client import find_studies, move_study

    clinic.orthanc.take(tiny.make_study(MOVED, SLICES, SIZE, StudyDescription="not routed"))
    peer = DicomPeer("archive", "127.0.0.1", clinic.orthanc.dicom, "ORTHANC")
    (found,) = find_studies(peer, accession="A000006")
    done = move_study(peer, found.study_uid, "SAGITTAL")
    assert (done.completed, done.failed) == (SLICES, 0)
    there = "select instance_count from studies where accession = 'A000006'"
    assert clinic.service.rows(there)[0][0] >= SLICES


def test_log_names_no_patient(clinic: Any) -> None:
    said = clinic.service.log.read_text(encoding="utf-8")
    assert '"route"' in said
    for secret in ("Phantom^", "Müller", "王", "P00000", "A00000", tiny.ROOT, "19600101"):
        assert secret not in said, secret


def test_trail_of_it_all_is_whole(clinic: Any) -> None:
    assert clinic.service.call("/api/audit/verify")["sound"] is True
    assert clinic.service.events().keys() <= {"recovered"}
