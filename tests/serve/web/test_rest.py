"""Pictures answered at once, uploads taken in as jobs, and what must not come in."""

from __future__ import annotations

import io
import json
import threading
import time
import zipfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy import func, select

from sagittal.database.schema import audit, instances, jobs, refusals
from sagittal.jobs.packages import ServedModel
from sagittal.jobs.queue import Queue
from sagittal.jobs.rules import ModelEntry, Use
from sagittal.jobs.supervise import Again, Work
from sagittal.jobs.worker import AnswerError
from sagittal.serve.uploads import UploadJob, sweep_uploads

PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)


def make_model(name: str = "skin", task: str = "classify", **given: Any) -> ServedModel:
    """A model as its package describes it."""
    values: dict[str, Any] = {
        "entry": ModelEntry(name),
        "name": name,
        "checksum": f"{name:c<64}",
        "path": Path(name),
        "task": task,
        "classes": ("benign", "malignant"),
        "use": Use("XC", "", 2, (), (), ("image",)),
        "intended_use": {"modality": "XC"},
        "size": (8, 8),
        "store": "uint8",
        "channels": 3,
        "unit": "1",
        "columns": (),
        "created": "",
        "bytes": 0,
    }
    return ServedModel(**{**values, **given})


class FakePool:
    """Models that answer in this process."""

    def __init__(self, *models: ServedModel) -> None:
        self.models = models
        self.asked: list[Any] = []

    def find(self, name: str, version: str = "") -> ServedModel:
        from sagittal.jobs.pool import Pool

        return Pool(self.models).find(name, version)

    def states(self) -> list[dict[str, Any]]:
        return [{"name": m.name, "version": m.version, "state": "ready"} for m in self.models]

    def ready(self, checksum: str) -> bool:
        return True

    def stop(self) -> None:
        return None

    def submit(self, checksum: str, request: Any, *, limit_s: float) -> Future[Any]:
        self.asked.append(request)
        future: Future[Any] = Future()
        if request["do"] == "infer":
            array = request["tensors"].get("array")
            if array is None:
                future.set_exception(AnswerError("ConfigError", "the input 'array' is missing", False))
                return future
            count = len(array)
            future.set_result(
                {
                    "probability": np.tile([0.25, 0.75], (count, 1)),
                    "decision": np.tile([False, True], (count, 1)),
                    "gate_score": np.full(count, np.nan),
                }
            )
        else:
            future.set_result({"answers": [self.look(data) for data in request["files"]]})
        return future

    @staticmethod
    def look(data: bytes) -> bytes | dict[str, str]:
        if data.startswith(b"\x89PNG"):
            return b'{"state":"answered","kind":"classes","decision":["malignant"],"classes":[]}'
        return {"error": "ReadError", "message": "not an image that is read"}

    def answer(self, checksum: str, request: Any, *, progress: Any = None) -> dict[str, Any]:
        self.asked.append(request)
        progress(0.5)
        path = Path(request["spool"]) / "mask.nii.gz"
        path.write_bytes(b"mask")
        return {
            "answer": {"state": "answered", "summary": "seen", "kind": "mask"},
            "objects": [{"kind": "mask", "path": "mask.nii.gz", "media_type": "application/gzip"}],
            "notes": [],
        }


@pytest.fixture
def skin(make_service: Any, run_service: Any) -> Any:
    """A service with one model of pictures."""
    return run_service(make_service(pool=FakePool(make_model())))


def work_off(service: Any) -> list[Any]:
    """Do the uploads that wait, as the supervisor's threads do."""
    data = service.config.server.data
    handler = UploadJob(
        service.db, service.archive, service.pool, data / "uploads", service.config.limits, data / "spool"
    )
    queue: Queue = service.queue
    outcomes = []
    while (job := queue.lease(["upload"])) is not None:
        work = Work(job)
        try:
            outcome = handler(work)
            queue.finish(job, outcome or {})
            outcomes.append(outcome)
        except Again as error:
            outcomes.append(queue.give_back(job, str(error), again=error.again, wait_s=0.0))
    return outcomes


def post(running: Any, role: str = "machine", query: str = "", **given: Any) -> httpx.Response:
    headers = {**running.headers(role), **given.pop("headers", {})}
    return httpx.post(f"{running.url}/v1/predict{query}", headers=headers, timeout=30, **given)


def test_a_small_picture_is_answered_at_once(skin: Any) -> None:
    for given in (
        {"content": PNG, "headers": {"content-type": "image/png"}},
        {"content": PNG},
        {"files": {"file": ("Wang^XiaoDong.png", PNG, "image/png")}},
    ):
        answer = post(skin, **given)
        assert (answer.status_code, answer.json()["decision"]) == (200, ["malignant"]), answer.text
    assert [request["files"] for request in skin.service.pool.asked] == [[PNG]] * 3
    with skin.service.db.read() as c:
        told = c.execute(select(audit.c.action, audit.c.details).order_by(audit.c.number)).all()
        assert c.execute(select(func.count()).select_from(jobs)).scalar_one() == 0
    assert [row.action for row in told] == ["predict"] * 3
    assert "Wang" not in json.dumps([row.details for row in told])


def test_what_the_model_cannot_answer_is_an_error_in_words(skin: Any) -> None:
    bad = post(skin, content=b"no image")
    assert (bad.status_code, bad.json()["error"]) == (400, "not an image that is read")
    assert post(skin, query="?model=other", content=PNG).status_code == 404
    assert post(skin, query="?model=skin&version=zzz", content=PNG).status_code == 404
    assert post(skin, content=b"").status_code == 400
    assert post(skin, role="reader", content=PNG).status_code == 403
    assert post(skin, query="?urgency=9", content=PNG).status_code == 422
    for on, status in ((False, 503), (True, 200)):
        turned = httpx.post(f"{skin.url}/api/models/skin/switch", json={"on": on}, headers=skin.headers())
        assert turned.status_code == 200
        assert post(skin, query="?model=skin", content=PNG).status_code == status


def test_a_busy_model_turns_callers_away(skin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagittal.jobs.predict_now.MOST_WAITING", 0)
    answer = post(skin, content=PNG)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


@pytest.fixture
def lungs(make_service: Any, run_service: Any) -> Any:
    """A service with a model of volumes."""
    volumes = make_model("lungs", "segment", use=Use("CT", "", 3, (), (), ("image",)))
    return run_service(make_service(pool=FakePool(volumes), limits__most_files=20, limits__most_unpacked="2 MiB"))


def zipped(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name.replace("__", "/"), data)
    return stream.getvalue()


def test_a_zip_of_a_study_goes_into_the_archive(lungs: Any, forge: Any) -> None:
    files = {f"study__{n}.dcm": forge.file(header) for n, header in enumerate(forge.series(4))}
    clutter = {"DICOMDIR": b"index", "study__.DS_Store": b"clutter", "readme": b"no image"}
    data = zipped(**files, **clutter)
    answer = post(lungs, content=data, headers={"content-type": "application/zip"}, query="?urgency=2")
    assert answer.status_code == 202, answer.text
    job = answer.json()["job"]
    assert answer.headers["location"] == f"/v1/jobs/{job}"
    url = f"{lungs.url}/v1/jobs/{job}"
    assert httpx.get(url, headers=lungs.headers("machine")).json()["state"] == "waiting"
    (outcome,) = work_off(lungs.service)
    assert isinstance(outcome, dict), httpx.get(url, headers=lungs.headers("machine")).text
    assert outcome["instances"] == {"stored": 4, "already": 0, "conflict": 0, "refused": 1}
    shown = httpx.get(url, headers=lungs.headers("machine")).json()
    assert shown["state"] == "running"  # the study waits for its model
    assert [one["status"] for one in shown["studies"]] == ["waiting"]
    with lungs.service.db.read() as c:
        assert c.execute(select(jobs.c.kind, jobs.c.priority).where(jobs.c.kind == "choose")).all() == [("choose", 2)]
        c.rollback()
    with lungs.service.db.write() as c:
        from sqlalchemy import update

        from sagittal.database.schema import studies

        c.execute(update(studies).values(status="answered", finding="seen"))
    done = httpx.get(url, headers=lungs.headers("machine")).json()
    assert (done["state"], done["studies"][0]["finding"]) == ("done", "seen")
    assert list((lungs.service.config.server.data / "uploads").iterdir()) == []
    again = post(lungs, content=data, headers={"content-type": "application/zip"}).json()
    assert (again["job"], again["new"]) == (job, False)  # the same study sent twice is one job
    assert list((lungs.service.config.server.data / "uploads").iterdir()) == []


def test_several_files_of_a_folder_in_a_form(lungs: Any, forge: Any) -> None:
    files = [("file", (f"../../{n}.dcm", forge.file(header))) for n, header in enumerate(forge.series(3))]
    answer = post(lungs, files=files, data={"note": "not a file"})
    assert answer.status_code == 202
    assert work_off(lungs.service)[0]["instances"]["stored"] == 3
    assert sorted(path.name for path in lungs.service.config.server.data.iterdir()) == [
        "archive", "sagittal.db", "sagittal.db-shm", "sagittal.db-wal", "uploads",
    ]  # fmt: skip


def test_a_named_model_answers_without_the_archive(lungs: Any) -> None:
    answer = post(lungs, query="?model=lungs", content=b"\x1f\x8bnifti", headers={"content-type": "application/gzip"})
    assert answer.status_code == 202
    work_off(lungs.service)
    (asked,) = lungs.service.pool.asked
    assert [Path(path).name for path in asked["inputs"]["image"]] == ["000000.nii.gz"]
    url = f"{lungs.url}/v1/jobs/{answer.json()['job']}"
    shown = httpx.get(url, headers=lungs.headers("machine")).json()
    assert (shown["state"], shown["answer"]["summary"]) == ("done", "seen")
    got = httpx.get(lungs.url + shown["files"][0]["url"], headers=lungs.headers("machine"))
    assert got.content == b"mask"
    assert httpx.get(f"{url}/files/7", headers=lungs.headers("machine")).status_code == 404
    assert httpx.get(f"{lungs.url}/v1/jobs/999", headers=lungs.headers("machine")).status_code == 404
    with lungs.service.db.read() as c:
        assert c.execute(select(func.count()).select_from(instances)).scalar_one() == 0


def test_images_of_several_inputs_are_told_by_name(make_service: Any, run_service: Any) -> None:
    brain = make_model("brain", "segment", use=Use("MR", "", 3, (), (), ("T1", "FLAIR")))
    running = run_service(make_service(pool=FakePool(brain)))
    files = [("T1", ("a.nii.gz", b"1")), ("file", ("case7_flair.nii.gz", b"2"))]
    assert post(running, query="?model=brain", files=files).status_code == 202
    assert work_off(running.service) == ["dead"]  # names of files are ours: only fields and archives tell
    files = [("T1", ("a.nii.gz", b"1")), ("FLAIR", ("b.nii.gz", b"2"))]
    assert post(running, query="?model=brain", files=files).status_code == 202
    work_off(running.service)
    assert {key: len(paths) for key, paths in running.service.pool.asked[-1]["inputs"].items()} == {"T1": 1, "FLAIR": 1}
    data = zipped(**{"case-t1.nii.gz": b"1", "case-flair.nii.gz": b"2"})
    assert post(running, query="?model=brain", content=data).status_code == 202
    work_off(running.service)
    assert [Path(p).name for p in running.service.pool.asked[-1]["inputs"]["FLAIR"]] == ["case-flair.nii.gz"]


def _forged() -> bytes:
    """An archive whose directory says that a large entry is small (CVE-2026-5439)."""
    data = bytearray(zipped(zeros=bytes(2**22)))
    at = data.rfind(b"PK\x01\x02")
    data[at + 24 : at + 28] = (100).to_bytes(4, "little")
    return bytes(data)


def _named(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        packed.writestr(zipfile.ZipInfo(name), b"x" * 500)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (zipped(zeros=bytes(2**24)), "zip-bomb"),
        (_forged(), "zip-bomb"),
        (_named("../../secret"), "unreadable"),
        (_named("/etc/secret"), "unreadable"),
        (zipped(**{f"f{n}": b"x" for n in range(40)}), "zip-bomb"),
        (zipped(readme=b"nothing of use"), "unreadable"),
        (b"PK\x03\x04" + bytes(500), "unreadable"),
    ],
)
def test_bad_archives_end_as_refusals(lungs: Any, data: bytes, code: str) -> None:
    answer = post(lungs, content=data, headers={"content-type": "application/zip"})
    assert answer.status_code == 202
    assert work_off(lungs.service) == ["dead"]
    shown = httpx.get(f"{lungs.url}/v1/jobs/{answer.json()['job']}", headers=lungs.headers("machine")).json()
    assert (shown["state"], bool(shown["error"])) == ("failed", True)
    with lungs.service.db.read() as c:
        codes = c.execute(select(refusals.c.code)).scalars().all()
        assert c.execute(select(func.count()).select_from(instances)).scalar_one() == 0
    assert code in codes
    assert list((lungs.service.config.server.data / "uploads").iterdir()) == []


def test_a_dead_upload_may_be_sent_again(lungs: Any) -> None:
    first = post(lungs, content=zipped(readme=b"no")).json()
    work_off(lungs.service)
    second = post(lungs, content=zipped(readme=b"no")).json()
    assert second["new"] is True
    assert second["job"] != first["job"]


def test_too_much_is_refused_before_it_is_taken(make_service: Any, run_service: Any) -> None:
    running = run_service(make_service(pool=FakePool(), limits__most_upload="1 MiB"))
    host, _, port = running.url.removeprefix("http://").partition(":")
    import socket

    with socket.create_connection((host, int(port)), timeout=10) as line:
        token = running.headers("machine")["Authorization"]
        line.sendall(
            f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nContent-Length: {2**40}\r\n\r\n".encode()
        )
        assert line.recv(100).startswith(b"HTTP/1.1 413")

    def endless() -> Any:
        while True:
            yield bytes(2**16)

    try:
        answer = post(running, content=endless())
        assert answer.status_code == 413
    except httpx.HTTPError:  # the connection was closed while it was still sending
        pass
    assert not any((running.service.config.server.data / "uploads").glob("*"))
    assert post(running, content=b"\x1f\x8b", headers={"content-encoding": "gzip"}).status_code == 415
    assert post(running, content=b"x", headers={"content-type": "multipart/form-data; boundary=b"}).status_code == 400


def test_a_full_disk_is_said_and_nothing_stays(skin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1, 1, 0))
    answer = post(skin, content=zipped(a=b"x"))
    assert answer.status_code == 507
    assert list((skin.service.config.server.data / "uploads").iterdir()) == []


def test_uploads_that_nobody_names_are_swept(lungs: Any) -> None:
    post(lungs, content=zipped(readme=b"one"))
    folder = lungs.service.config.server.data / "uploads"
    (folder / ("0" * 32)).mkdir()
    later = time.time() + 2 * 86400
    assert sweep_uploads(lungs.service.db, folder, now=later) == 1
    assert len(list(folder.iterdir())) == 1


def test_a_large_upload_passes_through_in_pieces(lungs: Any) -> None:
    """Peak memory stays far below the size of what is sent."""
    import resource

    size = 200 * 2**20
    piece = bytes(2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = post(lungs, query="?model=lungs", content=(piece for _ in range(size // len(piece))))
    assert answer.status_code == 202
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
    (stored,) = (lungs.service.config.server.data / "uploads").glob("*/000000*")
    assert stored.stat().st_size == size


def test_many_callers_at_once(skin: Any) -> None:
    found: list[int] = []

    def call() -> None:
        with httpx.Client(headers=skin.headers("machine")) as client:
            for _ in range(10):
                found.append(client.post(f"{skin.url}/v1/predict", content=PNG).status_code)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 80
    with skin.service.db.read() as c:
        assert c.execute(select(func.count()).select_from(audit)).scalar_one() == 80
