"""From images that arrive to results that are delivered: with real models, and with a service that is killed again and again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.database.connect import Database
from sagittal.database.events import end_event, open_events, recent_events, report_event
from sagittal.database.schema import choices, conflicts, deliveries, instances, jobs, objects, results, studies
from sagittal.deliver.destinations import FolderDestination
from sagittal.jobs.answer_job import AnswerJob, ChooseJob, after_answer
from sagittal.jobs.deliver_job import DeliverJob
from sagittal.jobs.packages import ServedModel
from sagittal.jobs.pool import Pool
from sagittal.jobs.queue import Backoff, Queue
from sagittal.jobs.supervise import Supervisor


@pytest.fixture
def queue(db: Database) -> Queue:
    return Queue(db, rng=np.random.default_rng(0), backoff={"answer": Backoff(0.01, 0.02)})


@pytest.fixture
def share(tmp_path: Path) -> Path:
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


@pytest.fixture
def at_work(queue: Queue, archive: Archive, real_pool: Pool, share: Path, tmp_path: Path) -> Iterator[Supervisor]:
    """Everything that does jobs, as the service has it; results go to a folder."""
    there = {"pacs": FolderDestination("pacs", share)}
    supervisor = Supervisor(
        queue,
        {
            "choose": ChooseJob(queue, lambda: real_pool.models),
            "answer": AnswerJob(queue, archive, real_pool, tmp_path / "spool"),
            "deliver": DeliverJob(queue, archive, there, rng=np.random.default_rng(0)),
        },
        threads={"answer": 2},
        after=lambda job, ended: after_answer(queue, job, ended),
    )
    supervisor.start()
    yield supervisor
    supervisor.stop(5)


def rows(db: Database, table: sa.Table) -> list[Any]:
    with db.read() as c:
        return list(c.execute(sa.select(table).order_by(table.c.id)).mappings())


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"nothing of it within {seconds:g} s")


def all_done(db: Database) -> bool:
    return all(job["state"] in {"done", "cancelled"} for job in rows(db, jobs))


def test_images_become_results_that_are_delivered(
    db: Database,
    archive: Archive,
    at_work: Supervisor,
    real_pool: Pool,
    share: Path,
    send: Callable[..., int],
    headers: SimpleNamespace,
    packages: SimpleNamespace,
    tmp_path: Path,
) -> None:
    chest, liver = send(headers.picture(study="1")), send(*headers.volume(study="2"))
    nothing = send(headers.picture(study="3", Modality="US"))
    until(lambda: all_done(db))
    status = {row["id"]: row for row in rows(db, studies)}
    assert status[chest]["status"] in {"answered", "abstained"}
    assert (status[liver]["status"], status[nothing]["status"]) == ("answered", "no-model")
    assert status[liver]["finding"].startswith("liver: ")
    found = {(row["study_id"], row["model"], row["role"]): row for row in rows(db, results)}
    assert set(found) == {(chest, "chest", "answers"), (liver, "liver", "answers")}
    result = found[liver, "liver", "answers"]
    kept = {row["kind"]: row for row in rows(db, objects) if row["result_id"] == result["id"]}
    assert set(kept) == {"seg", "sr", "sc", "ko", "json", "mask"}
    assert result["finding"]["notes"] == []

    # The mask for the page and the segmentation are those of the model, on the study's own voxels.
    from sagittal.model.load import load_model
    from sagittal.read.requested import find_requested

    folder = tmp_path / "again"
    folder.mkdir()
    for n, made in enumerate(headers.volume(study="2")):
        (folder / f"{n}.dcm").write_bytes(headers.file_bytes(made))
    case = find_requested(folder)[0][0]
    expected = load_model(packages.liver).predict(case).finding.segmentation  # type: ignore[union-attr]
    page = nibabel.load(archive.path_of(kept["mask"]["path"]))
    np.testing.assert_array_equal(np.asarray(page.dataobj), expected.layers[0])
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ page.affine
    np.testing.assert_allclose(lps, expected.grid.affine, atol=1e-4)
    seg = pydicom.dcmread(archive.open(kept["seg"]["instance_id"]))
    assert seg.StudyInstanceUID == "1.2.9.2"
    assert seg.FrameOfReferenceUID == "1.2.9.2.99"
    referred = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred == {f"1.2.9.2.1.{n}" for n in range(1, 9)}
    assert seg.ContributingEquipmentSequence[-1].DeviceSerialNumber == real_pool.models[1].checksum
    structures = {one["name"]: one for one in result["finding"]["structures"]}
    voxels = int((expected.layers[0] == 1).sum())
    assert structures["liver"]["measurements"]["voxels"] == voxels
    assert structures["liver"]["index"] == 1

    # Both answers were delivered, once each.
    assert [row["state"] for row in rows(db, deliveries)] == ["confirmed", "confirmed"]
    assert len([path for path in share.iterdir() if path.is_dir()]) == 2
    assert len(list(share.rglob("*.dcm"))) == 2 + 4


def test_late_slices_give_a_new_result_that_replaces_the_first(
    db: Database, at_work: Supervisor, send: Callable[..., int], headers: SimpleNamespace
) -> None:
    study = send(*headers.volume(slices=6))
    until(lambda: all_done(db) and len(rows(db, results)) == 1)
    send(*headers.volume(slices=2, first=6))
    until(lambda: all_done(db) and len(rows(db, results)) == 2)
    first, second = rows(db, results)
    assert (first["replaced_by"], second["replaced_by"]) == (second["id"], None)
    assert (first["finding"]["shape"], second["finding"]["shape"]) == ([24, 20, 6], [24, 20, 8])
    assert [row["revision"] for row in rows(db, choices) if row["used"]] == [1, 2]
    with db.read() as c:
        assert c.execute(sa.select(studies.c.status).where(studies.c.id == study)).scalar() == "answered"


def test_what_a_model_was_not_made_for_is_a_refusal_that_says_so(
    db: Database, archive: Archive, at_work: Supervisor, send: Callable[..., int], headers: SimpleNamespace
) -> None:
    """The header does not say how far slices lie apart; the images do, and it is too far."""
    study = send(*headers.volume(PixelSpacing=[4.0, 4.0]))
    until(lambda: all_done(db))
    (result,) = rows(db, results)
    assert result["state"] == "refused"
    assert "voxels of 3 x 4 x 4 mm, the model was made for" in result["reason"]
    (row,) = [row for row in rows(db, studies) if row["id"] == study]
    assert (row["status"], row["abstained"]) == ("refused", True)
    kept = {row["kind"]: row for row in rows(db, objects)}
    assert set(kept) == {"sr", "sc", "ko", "json"}
    said = json.loads(archive.path_of(kept["json"]["path"]).read_text())
    assert said["state"] == "refused"


def test_a_file_that_became_unreadable_is_a_dead_letter_in_the_end(
    db: Database, archive: Archive, at_work: Supervisor, send: Callable[..., int], headers: SimpleNamespace
) -> None:
    """Never an answer about the slices that are left."""
    at_work.queue.pause(True, by="test")
    study = send(*headers.volume())
    (archive.folder / rows(db, instances)[3]["path"]).write_bytes(b"")
    at_work.queue.pause(False, by="test")
    until(lambda: any(job["state"] == "dead" for job in rows(db, jobs)))
    until(lambda: [row["status"] for row in rows(db, studies) if row["id"] == study] == ["failed"])
    assert rows(db, results) == []
    (job,) = [job for job in rows(db, jobs) if job["state"] == "dead"]
    assert job["error"] == f"case study-{study}: 1 of 8 files of the series cannot be read"
    assert job["attempts"] == 5


#: A model's process that hangs, or crashes, over the first study and answers the others; without torch.
MOODY = """
import os, sys, time, pathlib
from sagittal.jobs.worker_process import start

def load(station, request):
    return {"facts": {"checksum": sys.argv[1]}, "warm_s": 0.0}

def answer(station, request):
    mark = pathlib.Path(sys.argv[2])
    if not mark.exists():
        mark.touch()
        time.sleep(600) if sys.argv[3] == "hang" else os.kill(os.getpid(), 11)
    return {"answer": {"state": "answered", "summary": "benign", "confidence": 0.5, "reason": ""}, "notes": [],
            "objects": [], "seconds": 0.1}

start(sys.argv[4:], {"load": load, "answer": answer})
"""


@pytest.mark.parametrize(("mood", "code"), [("hang", "model-hangs"), ("crash", "model-crashed")])
def test_a_model_that_fails_once_is_asked_again_and_the_administrator_sees_it(
    db: Database,
    queue: Queue,
    archive: Archive,
    served: tuple[ServedModel, ...],
    send: Callable[..., int],
    headers: SimpleNamespace,
    tmp_path: Path,
    mood: str,
    code: str,
) -> None:
    mark = str(tmp_path / "mark")
    pool = Pool(
        served[:1],
        threads=1,
        idle_s=0.8,
        command=(sys.executable, "-W", "ignore", "-c", MOODY, served[0].checksum, mark, mood),
        report=partial(report_event, db),  # type: ignore[arg-type]
        ended=lambda code, about: end_event(db, code, about) and None,
    )
    handlers = {
        "choose": ChooseJob(queue, lambda: pool.models),
        "answer": AnswerJob(queue, archive, pool, tmp_path / "spool"),
    }
    supervisor = Supervisor(queue, handlers, after=partial(after_answer, queue))
    supervisor.start()
    try:
        study = send(headers.picture())
        until(lambda: rows(db, results))
        until(lambda: not open_events(db))
    finally:
        supervisor.stop(5)
        pool.stop(1)
    (row,) = [row for row in rows(db, studies) if row["id"] == study]
    assert row["status"] == "answered"
    (job,) = [job for job in rows(db, jobs) if job["kind"] == "answer"]
    assert (job["state"], job["attempts"]) == ("done", 2)
    seen = [(event.code, event.over_at is not None) for event in recent_events(db)]
    assert seen == [(code, True)]


# A service that is killed -------------------------------------------------------------------------------------------

#: All of a service but its ports, with a model's process that needs no torch.
SERVICE = '''
import sys, json
from pathlib import Path
import numpy as np
from sagittal.archive.archive import Archive, Limits
from sagittal.database.connect import Database
from sagittal.deliver.destinations import FolderDestination
from sagittal.jobs.answer_job import AnswerJob, ChooseJob, after_answer
from sagittal.jobs.deliver_job import DeliverJob
from sagittal.jobs.packages import read_packages
from sagittal.jobs.pool import Pool
from sagittal.jobs.queue import Queue
from sagittal.jobs.rules import ModelEntry
from sagittal.jobs.supervise import Supervisor

MODEL = """
import sys, time, pydicom
from pathlib import Path
from sagittal.jobs.worker_process import start
def load(station, request):
    return {"facts": {"checksum": CHECKSUM}, "warm_s": 0.0}
def answer(station, request):
    time.sleep(0.05)
    made = pydicom.dcmread(request["inputs"]["image"][0])
    made.SOPInstanceUID = "2.25." + str(int(request["inputs_hash"][:16], 16))
    made.SeriesInstanceUID = made.SOPInstanceUID + ".1"
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.ContentTime = str(time.time_ns() % 1000000).zfill(6)
    spool = Path(request["spool"])
    pydicom.dcmwrite(spool / "sc.dcm", made, enforce_file_format=True)
    (spool / "json.json").write_text("{}")
    return {"answer": {"state": "answered", "summary": "benign", "confidence": 0.5, "reason": ""}, "notes": [],
            "objects": [{"kind": "sc", "path": "sc.dcm", "media_type": "application/dicom"},
                        {"kind": "json", "path": "json.json", "media_type": "application/json"}], "seconds": 0.05}
CHECKSUM = sys.argv[1]
start(sys.argv[2:], {"load": load, "answer": answer})
"""
folder, package = Path(sys.argv[1]), sys.argv[2]
db = Database.open("sqlite:///" + str(folder / "service.db"))
archive = Archive(db, folder / "archive", Limits(disk_reserve=0))
models = read_packages([ModelEntry(package, to=("share",))])
pool = Pool(models, threads=1, command=(sys.executable, "-W", "ignore", "-c", MODEL, models[0].checksum))
queue = Queue(db, rng=np.random.default_rng(0))
there = {"share": FolderDestination("share", folder / "share")}
supervisor = Supervisor(queue, {
    "choose": ChooseJob(queue, lambda: pool.models),
    "answer": AnswerJob(queue, archive, pool, folder / "spool"),
    "deliver": DeliverJob(queue, archive, there, rng=np.random.default_rng(0)),
}, after=lambda job, ended: after_answer(queue, job, ended))
supervisor.start()
print("started", flush=True)
sys.stdin.read()
supervisor.stop(5)
pool.stop(1)
'''


def test_a_service_that_is_killed_again_and_again_gives_each_study_one_result(
    db: Database,
    archive: Archive,
    send: Callable[..., int],
    headers: SimpleNamespace,
    packages: SimpleNamespace,
    share: Path,
    tmp_path: Path,
) -> None:
    count = 24
    for n in range(1, count + 1):
        send(headers.picture(study=str(n)))
    rng = np.random.default_rng(7)
    for _ in range(3):
        running = start_service(tmp_path, packages.chest)
        time.sleep(float(rng.uniform(0.1, 0.8)))
        os.kill(running.pid, signal.SIGKILL)
        running.communicate()
    running = start_service(tmp_path, packages.chest)
    try:
        until(lambda: all_done(db) and len(rows(db, deliveries)) == count)
    finally:
        running.communicate()  # closes its input
        assert running.returncode == 0
    assert sorted(row["study_id"] for row in rows(db, results)) == list(range(1, count + 1))
    assert {row["status"] for row in rows(db, studies)} == {"answered"}
    assert {row["state"] for row in rows(db, deliveries)} == {"confirmed"}
    assert len(rows(db, objects)) == 2 * count
    assert rows(db, conflicts) == []
    made = [row for row in rows(db, instances) if row["source"] == "result"]
    assert len(made) == count
    assert all(archive.path_of(row["path"]).is_file() for row in made)
    assert len([path for path in share.iterdir() if path.is_dir()]) == count
    assert [job["attempts"] for job in rows(db, jobs) if job["kind"] == "answer"] == [1] * count


def start_service(folder: Path, package: str) -> subprocess.Popen[bytes]:
    started = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVICE, str(folder), package],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert started.stdout is not None
    assert started.stdout.readline() == b"started\n"
    return started
