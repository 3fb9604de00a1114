"""The JSON of the pages: worklist, study, images, reviews, what people and administrators do."""

from __future__ import annotations

import base64
import gzip
import io
import json
import threading
import time
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest
from sqlalchemy import insert, select, update

from sagittal.database.schema import audit, conflicts, events, jobs, objects, results, reviews, studies, users
from sagittal.errors import DataError
from sagittal.serve.agreement import begin_of, count_verdicts, wilson


def add_result(service: Any, study_id: int, series: list[int], **given: Any) -> int:
    """A result as the workers keep it."""
    values = {
        "study_id": study_id,
        "model": "lungs",
        "version": "abcd",
        "checksum": "c" * 64,
        "role": "answers",
        "inputs": f"{time.monotonic_ns():064x}",
        "series": series,
        "state": "answered",
        "summary": "left lung, right lung",
        "confidence": 0.9,
        "finding": {
            "kind": "mask",
            "shape": [32, 40, 5],
            "affine_lps": None,
            "structures": [
                {"name": "lung-left", "index": 1, "colour": "#ff0000"},
                {"name": "lung-right", "index": 2, "colour": "#00ff00"},
            ],
            "decision": ["lung-left", "lung-right"],
        },
        "created_at": time.time(),
        **given,
    }
    with service.db.write() as c:
        return int(c.execute(insert(results).values(**values).returning(results.c.id)).scalar_one())


def add_object(service: Any, result_id: int, kind: str, data: bytes, media_type: str, suffix: str) -> int:
    kept = service.archive.store_file(data, suffix)
    values = {
        "result_id": result_id,
        "kind": kind,
        "media_type": media_type,
        "path": kept.path,
        "sha256": kept.sha256,
        "size": kept.size,
    }
    with service.db.write() as c:
        return int(c.execute(insert(objects).values(**values).returning(objects.c.id)).scalar_one())


@pytest.fixture
def api(running: Any) -> Any:
    """Calls of the pages' API."""

    def call(method: str, path: str, role: str = "administrator", **given: Any) -> httpx.Response:
        return httpx.request(method, running.url + path, headers=running.headers(role), timeout=30, **given)

    return call


@pytest.fixture
def study(running: Any, forge: Any) -> Any:
    """A study of one CT series with a result that is a mask."""
    receipts = running.add(*forge.series(5))
    receipt = receipts[0]
    grid = nib.load(_volume(running, receipt.series_id))
    affine = np.diag([-1.0, -1, 1, 1]) @ grid.affine
    finding = {
        "kind": "mask",
        "shape": list(grid.shape),
        "affine_lps": affine.tolist(),
        "structures": [
            {"name": "lung-left", "index": 1, "colour": "#ff0000"},
            {"name": "lung-right", "index": 2, "colour": "#00ff00"},
        ],
        "decision": ["lung-left"],
    }
    result = add_result(running.service, receipt.study_id, [receipt.series_id], finding=finding)
    mask = np.zeros(grid.shape, np.uint8)
    mask[4:9, 10:20, 1:3] = 1
    data = gzip.compress(nib.Nifti1Image(mask, grid.affine).to_bytes())
    add_object(running.service, result, "mask", data, "application/gzip", ".nii.gz")
    return receipt, result, grid, mask


def _volume(running: Any, series_id: int) -> Any:
    from sagittal.serve.instance_rows import find_stored
    from sagittal.serve.study_page import volume_file

    return volume_file(running.service, find_stored(running.service.db, series_id=series_id), "")


def test_the_worklist_shows_filters_and_pages(running: Any, forge: Any, api: Any) -> None:
    for n in range(1, 6):
        running.add(forge.slice(study=n, patient=f"P{n}", name=f"Name{n}^X"))
    first = api("GET", "/api/studies?sort=newest&limit=3", "reader").json()
    assert [one["patient_id"] for one in first["studies"]] == ["P5", "P4", "P3"]
    assert first["counts"]["receiving"] == 5
    rest = api("GET", f"/api/studies?sort=newest&limit=3&after={first['next']}").json()
    assert [one["patient_id"] for one in rest["studies"]] == ["P2", "P1"]
    assert rest["next"] is None
    row = first["studies"][0]
    assert row["modalities"] == ["CT"]
    assert row["arrived_at"].endswith("Z")
    assert row["waiting_s"] >= 0
    assert api("GET", "/api/studies?text=name3").json()["studies"][0]["patient_id"] == "P3"
    assert api("GET", "/api/studies?modality=MR").json()["studies"] == []
    assert api("GET", "/api/studies?status=nonsense").status_code == 400
    assert api("GET", "/api/studies?limit=0").status_code == 422


def test_a_study_shows_series_results_reviews_and_earlier_ones(running: Any, forge: Any, api: Any, study: Any) -> None:
    receipt, result, _, _ = study
    running.add(forge.slice(study=2))
    shown = api("GET", f"/api/studies/{receipt.study_id}", "reader").json()
    assert shown["patient_name"] == "Wang^XiaoDong=王^小東"
    assert [(one["modality"], one["instances"], one["volume"]) for one in shown["series"]] == [("CT", 5, True)]
    (told,) = shown["results"]
    assert told["masks"][0] == {
        "name": "lung-left",
        "index": 1,
        "colour": "#ff0000",
        "url": f"/api/results/{result}/mask.nii.gz",
    }
    assert [one["study_date"] for one in shown["earlier"]] == ["20240103"]
    assert api("GET", "/api/studies/999").status_code == 404
    assert api("GET", "/api/studies/99999999999999999999").status_code in {404, 422}
    assert api("GET", f"/api/studies/{receipt.study_id}", "machine").status_code == 200


def test_the_volume_lies_where_the_patient_does(running: Any, api: Any, study: Any, forge: Any) -> None:
    receipt, _, _, _ = study
    answer = api("GET", f"/api/series/{receipt.series_id}/volume.nii.gz", "reader")
    volume = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    assert volume.get_data_dtype() == np.int16
    assert volume.shape == (32, 40, 5)
    headers = forge.series(5)
    for i, j, k in ((0, 0, 0), (31, 0, 4), (7, 39, 2)):
        header = headers[k]
        row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        # PS3.3 10.7.1.3: columns i along the row's direction by the second spacing
        lps = np.array(header.ImagePositionPatient, float) + i * row * 0.5 + j * column * 0.7
        assert np.allclose(volume.affine @ [i, j, k, 1], [*(lps * [-1, -1, 1]), 1], atol=1e-4)
        assert volume.dataobj[i, j, k] == header.pixel_array[j, i]
    again = api("GET", f"/api/series/{receipt.series_id}/volume.nii.gz", "reader")
    assert again.content == answer.content
    part = httpx.get(
        f"{running.url}/api/series/{receipt.series_id}/volume.nii.gz",
        headers={**running.headers(), "range": "bytes=0-9"},
    )
    assert (part.status_code, part.content) == (206, answer.content[:10])


def test_planes_are_pictures_with_the_head_up(running: Any, api: Any, study: Any) -> None:
    from PIL import Image

    receipt, _, _, _ = study
    for plane in ("axial", "coronal", "sagittal"):
        answer = api("GET", f"/api/series/{receipt.series_id}/slices?plane={plane}&window=40,400", "reader")
        assert answer.headers["content-type"] == "image/png"
        assert np.asarray(Image.open(io.BytesIO(answer.content))).ndim == 2
    assert api("GET", f"/api/series/{receipt.series_id}/slices?plane=oblique").status_code == 400
    assert api("GET", f"/api/series/{receipt.series_id}/slices?index=500").status_code == 400
    assert api("GET", f"/api/series/{receipt.series_id}/slices?window=x").status_code == 400


def test_a_series_that_is_no_volume_says_why(running: Any, forge: Any, api: Any) -> None:
    receipts = running.add(forge.slice(number=1), forge.slice(number=2), forge.slice(number=9))
    answer = api("GET", f"/api/series/{receipts[0].series_id}/volume.nii.gz")
    assert answer.status_code == 422
    assert "mm" in answer.json()["error"]


def test_reviews_are_kept_with_who_and_when(running: Any, api: Any, forge: Any) -> None:
    receipt = running.add(*forge.series(2))[0]
    finding = {
        "kind": "classes",
        "decision": ["benign"],
        "classes": [
            {"name": "benign", "probability": 0.7, "held": True},
            {"name": "malignant", "probability": 0.3, "held": False},
        ],
    }
    result = add_result(running.service, receipt.study_id, [receipt.series_id], finding=finding)
    path = f"/api/results/{result}/reviews"
    assert api("POST", path, "reader", json={"verdict": "accept"}).status_code == 201
    assert api("POST", path, "reader", json={"verdict": "reject"}).status_code == 400  # without a reason
    assert api("POST", path, "reader", json={"verdict": "reject", "reason": "other lung"}).status_code == 201
    for wrong in (
        {"verdict": "maybe"},
        {"verdict": "accept", "correction": {"class": "benign"}},
        {"verdict": "correct"},
        {"verdict": "correct", "correction": {}},
        {"verdict": "correct", "correction": {"class": "liver"}},
        {"verdict": "correct", "correction": {"class": "benign", "classes": []}},
        {"verdict": "correct", "correction": {"boxes": []}},
        {"verdict": "correct", "correction": {"mask": "AAAA"}},
    ):
        assert api("POST", path, "reader", json=wrong).status_code in {400, 422}, wrong
    assert (
        api("POST", path, "reader", json={"verdict": "correct", "correction": {"class": "malignant"}}).status_code
        == 201
    )
    for role in ("machine", "engineer"):
        assert api("POST", path, role, json={"verdict": "accept"}).status_code == 403
    assert api("POST", "/api/results/999/reviews", json={"verdict": "accept"}).status_code == 404
    shown = api("GET", f"/api/studies/{receipt.study_id}").json()
    assert shown["verdict"] == "correct"
    told = shown["results"][0]["reviews"]
    assert [(one["user"], one["verdict"], one["reason"], one["correction"]) for one in told] == [
        ("the-reader", "accept", "", None),
        ("the-reader", "reject", "other lung", None),
        ("the-reader", "correct", "", {"class": "malignant"}),
    ]
    with running.service.db.read() as c:
        trail = c.execute(select(audit.c.details).where(audit.c.action == "review")).scalars().all()
    assert [one["verdict"] for one in trail] == ["accept", "reject", "correct"]


def test_corrected_boxes_lie_in_the_image(running: Any, api: Any, forge: Any) -> None:
    receipt = running.add(*forge.series(2))[0]
    boxes = [{"label": "nodule", "score": 0.9, "chosen": True, "corners_voxels": [[1, 1, 0], [4, 4, 1]]}]
    finding = {"kind": "boxes", "shape": [32, 40, 2], "boxes": boxes, "classes": [{"name": "nodule"}]}
    result = add_result(running.service, receipt.study_id, [receipt.series_id], finding=finding)

    def send(corners: Any, label: str = "nodule") -> int:
        correction = {"boxes": [{"label": label, "corners_voxels": corners}]}
        return api(
            "POST", f"/api/results/{result}/reviews", "reader", json={"verdict": "correct", "correction": correction}
        ).status_code

    assert send([[0, 0, 0], [5, 5, 1]]) == 201
    assert send([[-0.5, -0.5, -0.5], [31.5, 39.5, 1.5]]) == 201
    for wrong in ([[0, 0, 0], [33, 5, 1]], [[5, 5, 1], [0, 0, 0]], [[0, 0], [1, 1]], [[0, 0, 0]]):
        assert send(wrong) == 400, wrong
    assert send([[0, 0, 0], [5, 5, 1]], "liver") == 400


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 192", "Wang^XiaoDong=王^小東"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        (["", "ISO 2022 IR 58"], "Zhang^XiaoDong=张^小东"),
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 192", "<script>alert(1)</script>^<b>"),
    ],
)
def test_names_of_every_character_set(running: Any, api: Any, forge: Any, character_set: Any, name: str) -> None:
    header = forge.slice(name=name, SpecificCharacterSet=character_set)
    if character_set[-1] == "ISO 2022 IR 58":  # PS3.5 K.2: each part of the name begins with the escape sequence
        first, chinese = name.split("=")
        raw = b"^".join(b"\x1b$)A" + part.encode("gb2312") for part in chinese.split("^"))
        header.PatientName = pydicom.valuerep.PersonName(first.encode() + b"=" + raw, ["iso8859", "iso_ir_58"])
    running.add(header)
    answer = api("GET", "/api/studies/1", "reader")
    assert answer.json()["patient_name"] == name
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    forms = name.split("=")
    expected = dict(zip(("Alphabetic", "Ideographic"), forms, strict=False))
    for path in ("studies", f"studies/{forge.uid}.1/metadata"):
        found = httpx.get(f"{running.url}/dicom-web/{path}", headers=running.headers()).json()
        assert found[0]["00100010"]["Value"] == [expected], path


def test_a_corrected_mask_must_fit_the_study(running: Any, api: Any, study: Any) -> None:
    _, result, grid, mask = study
    path = f"/api/results/{result}/reviews"

    def send(image: Any) -> httpx.Response:
        data = image if isinstance(image, bytes) else gzip.compress(image.to_bytes())
        return api(
            "POST", path, "reader", json={"verdict": "correct", "correction": {"mask": base64.b64encode(data).decode()}}
        )

    mask = mask.copy()
    mask[20:25, 5:9, 3] = 2
    kept = send(nib.Nifti1Image(mask, grid.affine))
    assert kept.status_code == 201, kept.text
    url = kept.json()["correction"]["mask"]["url"]
    back = nib.Nifti1Image.from_bytes(gzip.decompress(api("GET", url, "reader").content))
    assert np.array_equal(back.dataobj, mask)
    assert np.allclose(back.affine, grid.affine)
    moved = grid.affine.copy()
    moved[0, 3] += 1
    for wrong, words in (
        (nib.Nifti1Image(mask, moved), "beside the study"),
        (nib.Nifti1Image(mask[:-1], grid.affine), "voxels"),
        (nib.Nifti1Image(mask + np.uint8(1), grid.affine), "no structure has"),
        (nib.Nifti1Image(mask.astype(np.float32) + 0.5, grid.affine), "no structure has"),
        (b"\x1f\x8b" + bytes(100), "damaged"),
        (gzip.compress(bytes(2**28)), "bomb"),
        (gzip.compress(b"no nifti"), "damaged"),
    ):
        answer = send(wrong)
        assert answer.status_code == 400, words
        assert words in answer.json()["error"]
    flipped = nib.as_closest_canonical(nib.Nifti1Image(mask, grid.affine))
    assert send(flipped).status_code == 400  # the same voxels in another order are not on this grid


def test_results_are_given_byte_for_byte_and_never_run(running: Any, api: Any, study: Any) -> None:
    _, result, _, _ = study
    page = add_object(running.service, result, "fhir", b"<script>alert(1)</script>", "text/html", ".json")
    answer = api("GET", f"/api/objects/{page}", "reader")
    assert answer.content == b"<script>alert(1)</script>"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    mask = api("GET", f"/api/results/{result}/mask.nii.gz", "reader")
    assert gzip.decompress(mask.content)[:4] == b"\x5c\x01\x00\x00"
    assert api("GET", "/api/objects/999").status_code == 404


def test_urgency_complete_and_run(running: Any, api: Any, study: Any) -> None:
    receipt, _, _, _ = study
    service = running.service
    assert api("POST", f"/api/studies/{receipt.study_id}/urgency", "reader", json={"urgency": 2}).json()["urgency"] == 2
    assert api("POST", f"/api/studies/{receipt.study_id}/urgency", "reader", json={"urgency": 3}).status_code == 422
    assert api("POST", f"/api/series/{receipt.series_id}/complete", "reader").json() == {"closed": True}
    assert api("POST", f"/api/series/{receipt.series_id}/complete", "reader").json() == {"closed": False}
    with service.db.read() as c:
        row = c.execute(select(jobs)).mappings().one()
    assert (row["kind"], row["priority"], row["state"]) == ("choose", 2, "waiting")
    assert api("POST", f"/api/jobs/{row['id']}/cancel", "reader").json() == {"cancelled": True}
    assert api("POST", f"/api/studies/{receipt.study_id}/run", "reader", json={}).json() == {
        "jobs": [row["id"]],
        "series": [],
    }
    assert api("POST", f"/api/studies/{receipt.study_id}/run", "reader", json={"model": "nothing"}).status_code == 404
    with service.db.write() as c:
        c.execute(update(jobs).values(state="dead"))
    assert api("POST", f"/api/jobs/{row['id']}/retry", "engineer").json() == {"queued": True}
    assert api("POST", "/api/jobs/999/retry").status_code == 404
    assert api("POST", f"/api/jobs/{row['id']}/retry", "machine").status_code == 403
    listed = api("GET", "/api/jobs?state=waiting").json()
    assert [one["id"] for one in listed["jobs"]] == [row["id"]]
    assert listed["counts"] == {"choose": {"waiting": 1}}
    assert api("GET", "/api/jobs?state=nonsense").status_code == 400


def test_deletion_is_complete(running: Any, api: Any, study: Any) -> None:
    receipt, _, _, _ = study
    service = running.service
    assert api("DELETE", f"/api/studies/{receipt.study_id}", "engineer").status_code == 403
    assert list((service.config.server.data / "cache").glob("series-*"))
    assert api("DELETE", f"/api/studies/{receipt.study_id}").status_code == 204
    for path in (f"/api/studies/{receipt.study_id}", f"/api/series/{receipt.series_id}/volume.nii.gz"):
        assert api("GET", path).status_code == 404
    assert api("GET", "/api/studies").json()["studies"] == []
    assert list((service.config.server.data / "cache").glob("series-*")) == []
    assert [path for path in (service.archive.folder / "objects").rglob("*") if path.is_file()] == []
    with service.db.read() as c:
        record = c.execute(select(audit).where(audit.c.action == "delete")).mappings().all()
    assert [one["study_id"] for one in record] == [receipt.study_id] * 2  # begun, and done


# Agreement


def test_agreement_has_intervals_by_hand() -> None:
    # Wilson 1927 by hand: 8 of 10, z = 1.96
    assert np.allclose(wilson(8, 10), (0.4902, 0.9433), atol=1e-4)
    assert wilson(0, 0) == (None, None)
    assert wilson(0, 10)[0] == 0.0
    assert begin_of(1767225600.0, "week") == "2025-12-29"  # 1 January 2026 is a Thursday
    counts = count_verdicts([{"verdict": "accept"}] * 3 + [{"verdict": "reject"}])
    assert (counts["n"], counts["agreement"]) == (4, 0.75)


def test_agreement_with_the_statistics_room() -> None:
    from sagittal.metrics.intervals import wilson as other

    for n in (1, 7, 50):
        for k in range(n + 1):
            assert np.allclose(wilson(k, n), other(k, n), atol=1e-9)


def test_agreement_counts_the_last_word(running: Any, forge: Any, api: Any) -> None:
    service = running.service
    days = [1767225600.0, 1767225600.0, 1767830400.0]
    with service.db.read() as c:
        user = c.execute(select(users.c.id).where(users.c.name == "the-reader")).scalar_one()
    for n, (at, verdict) in enumerate(zip(days, ("accept", "reject", "accept"), strict=True), start=1):
        receipt = running.add(forge.slice(study=n))[0]
        result = add_result(service, receipt.study_id, [receipt.series_id])
        with service.db.write() as c:
            for said in ("correct", verdict):
                c.execute(
                    insert(reviews).values(
                        result_id=result, study_id=receipt.study_id, user_id=user, at=at, verdict=said
                    )
                )
    found = api("GET", "/api/agreement?by=week", "reader").json()
    assert (found["all"]["n"], found["all"]["accept"]) == (3, 2)
    assert [(one["begin"], one["accept"], one["n"]) for one in found["periods"]] == [
        ("2025-12-29", 1, 2),
        ("2026-01-05", 1, 1),
    ]
    assert found["all"]["low"] < 2 / 3 < found["all"]["high"]
    assert api("GET", "/api/agreement?model=other").json()["all"]["n"] == 0
    assert api("GET", "/api/agreement?by=year").status_code == 422


# Administrators


def test_lists_of_the_administrator(running: Any, api: Any, forge: Any) -> None:
    service = running.service
    header = forge.slice()
    running.add(header)
    header.PixelData = bytes(len(header.PixelData))
    running.add(header)
    incoming = service.archive.receive("stow")
    incoming.write(b"x" * 500)
    with pytest.raises(DataError, match="not a DICOM file"):
        incoming.finish()
    assert [one["code"] for one in api("GET", "/api/refusals").json()["refusals"]] == ["unreadable"]
    (conflict,) = api("GET", "/api/conflicts", "engineer").json()["conflicts"]
    assert api("POST", f"/api/conflicts/{conflict['id']}", json={"decision": "nothing"}).status_code == 422
    assert api("POST", f"/api/conflicts/{conflict['id']}", json={"decision": "take-second"}).status_code == 200
    assert api("POST", f"/api/conflicts/{conflict['id']}", json={"decision": "keep-first"}).status_code == 409
    with service.db.read() as c:
        assert c.execute(select(conflicts.c.decision)).scalar_one() == "take-second"
    got = httpx.get(
        f"{running.url}/dicom-web/studies/{forge.uid}.1/series/{forge.uid}.1.1/instances/{forge.uid}.1.1.1/frames/1",
        headers={**running.headers(), "accept": "application/octet-stream"},
    )
    assert got.content == header.PixelData
    kept = api("GET", "/api/storage").json()
    assert (kept["studies"], kept["instances"], kept["damaged"]) == (1, 1, 0)
    assert kept["used"] > 2000
    assert kept["free"] > 0
    assert api("GET", "/api/models", "reader").json() == {"models": []}
    assert api("POST", "/api/models/x/switch", json={"on": False}).status_code == 404
    assert api("GET", "/api/rules").json()["rules"] == []
    assert api("POST", "/api/queue", "engineer", json={"paused": True}).json() == {"paused": True}
    assert api("GET", "/api/jobs").json()["paused"] is True
    for path in ("/api/events", "/api/refusals", "/api/conflicts", "/api/storage", "/api/rules", "/api/destinations"):
        assert api("GET", path, "reader").status_code == 403, path


def test_the_trail_is_read_and_verified(running: Any, api: Any) -> None:
    api("POST", "/api/queue", json={"paused": False})
    found = api("GET", "/api/audit?limit=1").json()
    assert found["records"][0]["action"] == "settings"
    assert found["next"] == found["records"][0]["number"]
    assert api("GET", "/api/audit?action=settings&actor=the-administrator").json()["records"]
    assert api("GET", "/api/audit/verify").json()["sound"] is True
    with running.service.db.write() as c:
        c.execute(update(audit).where(audit.c.action == "settings").values(actor="somebody"))
    assert api("GET", "/api/audit/verify").json()["sound"] is False
    assert api("GET", "/api/audit", "engineer").status_code == 403


# Changes


def test_changes_are_told_as_they_happen(running: Any, forge: Any) -> None:
    heard: list[dict[str, Any]] = []
    ready = threading.Event()

    def listen() -> None:
        with httpx.stream("GET", f"{running.url}/api/changes", headers=running.headers("reader"), timeout=20) as stream:
            ready.set()
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    heard.append(json.loads(line[6:]))
                    if len(heard) == 2:
                        return

    thread = threading.Thread(target=listen)
    thread.start()
    assert ready.wait(10)
    time.sleep(0.3)
    running.add(forge.slice())
    with running.service.db.write() as c:
        c.execute(
            insert(events).values(code="x", level="error", message="m", first_at=time.time(), last_at=time.time())
        )
    thread.join(10)
    assert heard == [{"kind": "study", "id": 1}, {"kind": "event", "id": 1}]
    with running.service.db.read() as c:
        assert c.execute(select(studies.c.id)).scalars().all() == [1]


def test_open_pages_do_not_hold_a_stop_up(running: Any) -> None:
    with httpx.stream("GET", f"{running.url}/api/changes", headers=running.headers("reader"), timeout=20) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "retry: 3000"
        running.service.stopping.set()
        began = time.monotonic()
        assert not any(line.startswith("data: {") for line in lines)
        assert time.monotonic() - began < 10
