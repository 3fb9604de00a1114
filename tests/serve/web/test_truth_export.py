"""Reviews become truth: what is exported is what ``sagittal ingest`` reads, and names nobody."""

from __future__ import annotations

import gzip
import io
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest
from sqlalchemy import insert, select

import sagittal
from sagittal.database.schema import objects, results, reviews, users
from sagittal.formats.dicom import read_dicom_series
from sagittal.jobs.choose import inputs_hash
from sagittal.read.open_dataset import open_dataset
from sagittal.read.sources import patient_key
from sagittal.serve.nameless import nameless_file, other_uid


def add_answer(running: Any, receipt: Any, finding: dict[str, Any], **given: Any) -> int:
    """A result about one series as the workers keep it."""
    with running.service.db.write() as c:
        values = {
            "study_id": receipt.study_id,
            "model": "m",
            "version": "v",
            "checksum": "c" * 64,
            "inputs": inputs_hash(c, {"image": receipt.series_id}),
            "series": [receipt.series_id],
            "state": "answered",
            "finding": finding,
            "created_at": time.time(),
            **given,
        }
        return int(c.execute(insert(results).values(**values).returning(results.c.id)).scalar_one())


def review(
    running: Any, result: int, study: int, verdict: str, correction: Any = None, at: float | None = None
) -> None:
    with running.service.db.write() as c:
        user = c.execute(select(users.c.id).where(users.c.name == "the-reader")).scalar_one()
        values = {"result_id": result, "study_id": study, "user_id": user, "at": at or time.time(), "verdict": verdict}
        c.execute(insert(reviews).values(**values, reason="", correction=correction))


def export(running: Any, query: str = "", role: str = "engineer") -> httpx.Response:
    return httpx.get(f"{running.url}/api/export/truth{query}", headers=running.headers(role), timeout=60)


def _classes(*names: str) -> dict[str, Any]:
    known = ("benign", "malignant")
    return {
        "kind": "classes",
        "decision": list(names),
        "classes": [{"name": name, "probability": 0.5, "held": name in names} for name in known],
    }


def test_classes_are_exported_as_agreed_and_corrected(running: Any, forge: Any, tmp_path: Path) -> None:
    said = [("accept", None), ("correct", {"class": "benign"}), ("reject", None), ("accept", None)]
    for n, (verdict, correction) in enumerate(said, start=1):
        receipt = running.add(*forge.series(3, study=n, patient=f"P{min(n, 3)}"))[0]
        state = "abstained" if n == 4 else "answered"
        result = add_answer(running, receipt, _classes("malignant"), state=state)
        review(running, result, receipt.study_id, "reject", at=1.0)
        review(running, result, receipt.study_id, verdict, correction)
    answer = export(running)
    assert answer.status_code == 200, answer.text
    path = tmp_path / "truth.zip"
    path.write_bytes(answer.content)
    dataset = open_dataset(path)
    assert dataset.scheme is not None
    assert (dataset.scheme.kind, dataset.scheme.classes) == ("binary", ("benign", "malignant"))
    assert {case.id: case.scores.values.tolist() for case in dataset} == {"result-1": [0, 1], "result-2": [1, 0]}
    assert [case.patient for case in dataset] == [patient_key("P1"), patient_key("P2")]
    expected = np.stack([header.pixel_array for header in forge.series(3, study=1)]).transpose(2, 1, 0)
    assert np.array_equal(dataset.cases[0].image().data[0], expected)
    with zipfile.ZipFile(path) as packed:
        table = packed.read("reviews.csv").decode()
        whole = b"".join(packed.read(name) for name in packed.namelist())
    assert "result-3,reject,,no" in table
    assert "result-4,accept,,no" in table
    for secret in ("Wang", "王", "ACC-", "19500101", "20240102", forge.uid, str(running.service.config.server.data)):
        assert secret.encode() not in whole, secret
    with zipfile.ZipFile(path) as packed:
        packed.extractall(tmp_path / "folder")
    sagittal.ingest(tmp_path / "folder", output=tmp_path / "manifest")
    assert len(open_dataset(tmp_path / "manifest")) == 2


def _volume(files: list[Path]) -> tuple[Any, np.ndarray]:
    image = read_dicom_series(files)
    return image, np.diag([-1.0, -1, 1, 1]) @ image.grid.affine


def test_masks_keep_their_place(running: Any, forge: Any, tmp_path: Path) -> None:
    service = running.service
    expected: dict[str, np.ndarray] = {}
    affines: dict[str, np.ndarray] = {}
    for n in (1, 2):
        receipts = running.add(*forge.series(4, study=n, patient=f"P{n}"))
        from sagittal.serve.instance_rows import find_stored

        files = [service.archive.folder / one.path for one in find_stored(service.db, series_id=receipts[0].series_id)]
        image, affine = _volume(files)
        shape = image.grid.shape
        finding = {
            "kind": "mask",
            "shape": list(shape),
            "affine_lps": np.asarray(image.grid.affine).tolist(),
            "structures": [
                {"name": "liver", "index": 1, "colour": "#ff0000"},
                {"name": "tumour", "index": 2, "colour": "#00ff00"},
            ],
            "decision": ["liver"],
        }
        result = add_answer(running, receipts[0], finding)
        mask = np.zeros(shape, np.uint8)
        mask[3:9, 4:7, 1] = 1
        kept = service.archive.store_file(gzip.compress(nib.Nifti1Image(mask, affine).to_bytes()), ".nii.gz")
        with service.db.write() as c:
            c.execute(
                insert(objects).values(
                    result_id=result,
                    kind="mask",
                    media_type="application/gzip",
                    path=kept.path,
                    sha256=kept.sha256,
                    size=kept.size,
                )
            )
        if n == 2:
            import base64

            mask[20, 30, 3] = 2
            data = base64.b64encode(gzip.compress(nib.Nifti1Image(mask, affine).to_bytes())).decode()
            answer = httpx.post(
                f"{running.url}/api/results/{result}/reviews",
                json={"verdict": "correct", "correction": {"mask": data}},
                headers=running.headers("reader"),
            )
            assert answer.status_code == 201, answer.text
        else:
            review(running, result, receipts[0].study_id, "accept")
        expected[f"result-{result}"], affines[f"result-{result}"] = mask, image.grid.affine
    path = tmp_path / "truth.zip"
    path.write_bytes(export(running, "?model=m").content)
    dataset = open_dataset(path)
    assert dataset.scheme is not None
    assert (dataset.scheme.kind, dataset.scheme.classes) == ("structures", ("liver", "tumour"))
    for case in dataset:
        truth = case.truth.load()
        assert np.array_equal(truth.mask("liver"), expected[case.id] == 1)
        assert np.array_equal(truth.mask("tumour"), expected[case.id] == 2)
        assert np.allclose(truth.grid.affine, affines[case.id], atol=1e-4)
        assert case.image().grid.same_place(truth.grid, 1e-3)


def test_boxes_stand_where_they_were(running: Any, forge: Any, tmp_path: Path) -> None:
    boxes = [
        {"label": "nodule", "score": 0.9, "chosen": True, "corners_voxels": [[1, 2, 0], [5, 6, 2]]},
        {"label": "nodule", "score": 0.1, "chosen": False, "corners_voxels": [[9, 9, 0], [10, 10, 1]]},
    ]
    for n, (verdict, correction) in enumerate(
        [
            ("accept", None),
            ("correct", {"boxes": [{"label": "nodule", "corners_voxels": [[3, 3, 1], [7, 8, 2]]}]}),
            ("correct", {"boxes": []}),
        ],
        start=1,
    ):
        receipt = running.add(*forge.series(3, study=n))[0]
        result = add_answer(
            running, receipt, {"kind": "boxes", "shape": [32, 40, 3], "boxes": boxes, "decision": ["nodule"]}
        )
        review(running, result, receipt.study_id, verdict, correction)
    path = tmp_path / "truth.zip"
    path.write_bytes(export(running).content)
    dataset = open_dataset(path)
    assert [case.truth.corners.tolist() for case in dataset] == [[[[1, 2, 0], [5, 6, 2]]], [[[3, 3, 1], [7, 8, 2]]], []]


def test_what_is_not_the_truth_of_these_images_is_left_out(running: Any, forge: Any, tmp_path: Path) -> None:
    receipts = running.add(*forge.series(3))
    result = add_answer(running, receipts[0], _classes("benign"))
    review(running, result, receipts[0].study_id, "accept")
    running.add(forge.slice(number=4))  # a late slice: the answer was not about it
    assert export(running).status_code == 404
    other = running.add(*forge.series(2, study=2))[0]
    review(running, add_answer(running, other, _classes("benign")), other.study_id, "accept", at=1767225600.0)
    assert export(running, "?from=2026-01-01&to=2026-01-01").status_code == 200
    assert export(running, "?from=2026-01-02&to=2026-01-03").status_code == 404
    assert export(running, "?from=yesterday").status_code == 400
    third = running.add(*forge.series(2, study=3))[0]
    review(
        running, add_answer(running, third, _classes("benign"), model="n", checksum="d" * 64), third.study_id, "accept"
    )
    several = export(running)
    assert (several.status_code, "say which" in several.json()["error"]) == (400, True)
    for role in ("reader", "machine"):
        assert export(running, role=role).status_code == 403


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
def test_nameless_files_hold_the_image_and_nobody(forge: Any, tmp_path: Path, syntax: str) -> None:
    header = forge.slice(TransferSyntaxUID=pydicom.uid.UID(syntax))
    if syntax.endswith(".2.2"):
        header.PixelData = np.frombuffer(header.PixelData, "<i2").astype(">i2").tobytes()
    header.add_new(0x00091010, "LO", "Private Secret")
    header.add_new(0x00081115, "SQ", [header.__class__()])
    header.StudyDescription = "Mr Secret's chest"
    path = tmp_path / "x.dcm"
    path.write_bytes(forge.file(header))
    data = nameless_file(path)
    made = pydicom.dcmread(io.BytesIO(data))
    assert np.array_equal(made.pixel_array, header.pixel_array)
    assert made.ImagePositionPatient == header.ImagePositionPatient
    assert made.SOPInstanceUID == other_uid(header.SOPInstanceUID)
    assert made.file_meta.MediaStorageSOPInstanceUID == made.SOPInstanceUID
    assert made.PatientIdentityRemoved == "YES"
    for secret in (b"Secret", b"Wang", b"ACC-", b"19500101", forge.uid.encode()):
        assert secret not in data
    assert made.PatientID == patient_key("P1")
