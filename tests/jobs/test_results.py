"""Results: one for each model and content of its inputs, with its objects, the study's standing and the deliveries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.database.connect import Database
from sagittal.database.queue import enqueue
from sagittal.database.schema import conflicts, deliveries, instances, jobs, objects, results, studies
from sagittal.errors import ServeError
from sagittal.jobs.answer_job import AnswerJob, ChooseJob, after_answer
from sagittal.jobs.packages import ServedModel
from sagittal.jobs.pool import Resting
from sagittal.jobs.queue import Job, LeaseLostError, Queue, switch_model
from sagittal.jobs.results import keep_files, store_result
from sagittal.jobs.supervise import Again, Work
from sagittal.jobs.worker import AnswerError, WorkerEnded


class FakePool:
    """Models that answer at once what a test wants, with a file in DICOM and one in JSON."""

    def __init__(self, models: tuple[ServedModel, ...], headers: SimpleNamespace) -> None:
        self.models, self.headers = models, headers
        self.asked: list[Mapping[str, Any]] = []
        self.killed: list[str] = []
        self.state, self.error = "answered", None
        self.during: Callable[[], None] = lambda: None

    def answer(self, checksum: str, request: Mapping[str, Any], *, progress: Callable[[float], None]) -> dict[str, Any]:
        self.asked.append({**request, "checksum": checksum})
        progress(0.5)
        self.during()
        if self.error is not None:
            raise self.error
        made = self.headers.picture(series=f"9{checksum[:3].translate(str.maketrans('abcdef', '123456'))}")
        made.SOPInstanceUID = f"2.25.{int(str(request['inputs_hash'])[:16], 16)}"
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        made.ContentTime = f"{len(self.asked):06d}"  # made again, it has another time
        spool = Path(str(request["spool"]))
        pydicom.dcmwrite(spool / "sc.dcm", made, enforce_file_format=True)
        (spool / "json.json").write_text("{}")
        return {
            "answer": {
                "state": self.state,
                "summary": "malignant (93 %)",
                "confidence": 0.93 if self.state == "answered" else None,
                "reason": "Reason: unlike what it knows",
                "decision": ["malignant"],
            },
            "objects": [
                {"kind": "sc", "path": "sc.dcm", "media_type": "application/dicom"},
                {"kind": "json", "path": "json.json", "media_type": "application/json"},
            ],
            "notes": [],
            "seconds": 1.5,
        }

    def kill(self, checksum: str, why: str) -> None:
        self.killed.append(checksum)


@pytest.fixture
def pool(served: tuple[ServedModel, ...], headers: SimpleNamespace) -> FakePool:
    return FakePool(served, headers)


@pytest.fixture
def answer(queue: Queue, archive: Archive, pool: FakePool, tmp_path: Path) -> AnswerJob:
    return AnswerJob(queue, archive, pool, tmp_path / "spool")  # type: ignore[arg-type]


def rows(db: Database, table: sa.Table) -> list[Any]:
    with db.read() as c:
        return list(c.execute(sa.select(table).order_by(table.c.id)).mappings())


def standing(db: Database, study_id: int) -> Any:
    with db.read() as c:
        return c.execute(sa.select(studies).where(studies.c.id == study_id)).mappings().one()


def do(queue: Queue, kind: str, handler: Any) -> Job:
    """Do the next job as the supervisor does."""
    job = queue.lease([kind])
    assert job is not None
    work = Work(job)
    outcome = handler(work)
    if not work.finished:
        queue.finish(job, outcome or {})
    return job


@pytest.fixture
def chosen(queue: Queue, served: tuple[ServedModel, ...], send: Callable[..., int], headers: SimpleNamespace) -> int:
    """A study whose jobs are queued: ``chest`` answers, ``chest2`` watches."""
    study = send(headers.picture())
    do(queue, "choose", ChooseJob(queue, lambda: served))
    return study


def test_a_result_is_kept_with_all_that_belongs_to_it(
    db: Database, queue: Queue, archive: Archive, answer: AnswerJob, pool: FakePool, chosen: int
) -> None:
    job = do(queue, "answer", answer)
    (result,) = rows(db, results)
    assert (result["study_id"], result["model"], result["state"]) == (chosen, "chest", "answered")
    assert (result["summary"], result["confidence"], result["seconds"]) == ("malignant (93 %)", 0.93, 1.5)
    assert (result["inputs"], result["series"]) == (job.payload["inputs"], [1])
    assert result["checksum"] == pool.models[0].checksum
    kept = {row["kind"]: row for row in rows(db, objects)}
    assert set(kept) == {"sc", "json"}
    assert archive.open(kept["sc"]["instance_id"]) == archive.path_of(kept["sc"]["path"])
    assert archive.path_of(kept["json"]["path"]).read_text() == "{}"
    assert [(row["destination"], row["state"]) for row in rows(db, deliveries)] == [("pacs", "waiting")]
    row = standing(db, chosen)
    assert (row["status"], row["finding"], row["confidence"]) == ("answered", "malignant (93 %)", 0.93)
    assert row["answered_at"] is not None
    queued = [row for row in rows(db, jobs) if row["kind"] == "deliver"]
    assert queued[0]["payload"] == {"delivery": 1, "result": result["id"], "destination": "pacs"}
    done = next(row for row in rows(db, jobs) if row["id"] == job.id)
    assert done["outcome"] == {"result": result["id"], "state": "answered"}
    assert list((answer._spool).iterdir()) == []


def test_a_model_that_watches_is_neither_shown_nor_delivered(
    db: Database, queue: Queue, answer: AnswerJob, chosen: int
) -> None:
    do(queue, "answer", answer)
    before = standing(db, chosen)
    do(queue, "answer", answer)
    watching = rows(db, results)[1]
    assert (watching["role"], watching["replaced_by"]) == ("watches", None)
    assert len(rows(db, deliveries)) == 1
    assert {**standing(db, chosen), "changed_at": 0} == {**before, "changed_at": 0}
    kept = [row for row in rows(db, objects) if row["result_id"] == watching["id"]]
    assert {(row["kind"], row["instance_id"]) for row in kept} == {("sc", None), ("json", None)}
    assert len(rows(db, instances)) == 2  # the image and the answer's object


def test_caution_of_an_answer_is_kept_for_the_reader(
    db: Database, queue: Queue, answer: AnswerJob, pool: FakePool, chosen: int
) -> None:
    """A gate that only warns: the study is unlike the model's, and it is answered all the same."""
    do(queue, "answer", answer)
    (result,) = rows(db, results)
    assert (result["state"], result["reason"]) == ("answered", "Reason: unlike what it knows")


@pytest.mark.parametrize("state", ["abstained", "refused"])
def test_abstentions_and_refusals_are_results(
    db: Database, queue: Queue, answer: AnswerJob, pool: FakePool, chosen: int, state: str
) -> None:
    pool.state = state
    do(queue, "answer", answer)
    (result,) = rows(db, results)
    assert (result["state"], result["reason"]) == (state, "Reason: unlike what it knows")
    row = standing(db, chosen)
    assert (row["status"], row["abstained"], row["confidence"]) == (state, True, None)
    assert len(rows(db, deliveries)) == 1


def test_a_second_try_after_a_kill_gives_the_same_single_result(
    db: Database, queue: Queue, archive: Archive, answer: AnswerJob, pool: FakePool, chosen: int, tmp_path: Path
) -> None:
    """The first try is ended after its objects were kept and before its rows were written."""
    job = queue.lease(["answer"])
    assert job is not None
    spool = tmp_path / "first"
    spool.mkdir()
    first = pool.answer(
        pool.models[0].checksum,
        {"spool": str(spool), "inputs_hash": job.payload["inputs"]},
        progress=lambda _: None,
    )
    keep_files(archive, spool, first["objects"])
    queue.put_back(job)
    do(queue, "answer", answer)
    assert len(rows(db, results)) == 1
    assert [row["source"] for row in rows(db, instances)] == ["test", "result"]
    assert rows(db, conflicts) == []
    assert rows(db, objects)[0]["instance_id"] == 2


def test_a_lost_lease_keeps_nothing(
    db: Database, queue: Queue, archive: Archive, answer: AnswerJob, pool: FakePool, chosen: int
) -> None:
    job = queue.lease(["answer"])
    assert job is not None
    pool.during = lambda: queue.put_back(job)
    with pytest.raises(LeaseLostError):
        answer(Work(job))
    assert rows(db, results) == []
    assert rows(db, objects) == []
    assert list(answer._spool.iterdir()) == []
    assert [row["source"] for row in rows(db, instances)] == ["test"]  # the image alone


def test_what_was_kept_for_a_lost_lease_is_deleted(
    db: Database,
    queue: Queue,
    archive: Archive,
    answer: AnswerJob,
    chosen: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """New images came just when the files were kept: no viewer may show an answer about the old ones without its result."""
    job = queue.lease(["answer"])
    assert job is not None
    hold_in = queue.hold_in

    def too_late(c: sa.Connection, given: Any) -> None:
        assert len(rows(db, instances)) == 2  # it was kept
        raise LeaseLostError("gone")

    monkeypatch.setattr(queue, "hold_in", too_late)
    before = sorted(path for path in archive.folder.rglob("*") if path.is_file())
    with pytest.raises(LeaseLostError):
        answer(Work(job))
    monkeypatch.setattr(queue, "hold_in", hold_in)
    assert sorted(path for path in archive.folder.rglob("*") if path.is_file()) == before
    assert [row["source"] for row in rows(db, instances)] == ["test"]
    assert standing(db, chosen)["instance_count"] == 1


def test_the_result_that_is_there_is_not_made_again(
    db: Database, queue: Queue, answer: AnswerJob, pool: FakePool, chosen: int
) -> None:
    first, second = do(queue, "answer", answer), do(queue, "answer", answer)
    assert queue.run_again(first.id)
    do(queue, "answer", answer)
    assert [request["checksum"] for request in pool.asked] == [model.checksum for model in pool.models[:2]]
    assert second.payload["role"] == "watches"
    assert len(rows(db, results)) == 2
    assert len(rows(db, deliveries)) == 1


def test_late_slices_replace_the_first_result(
    db: Database, queue: Queue, answer: AnswerJob, served: Any, send: Callable[..., int], headers: SimpleNamespace
) -> None:
    study = send(*headers.volume(slices=6))
    do(queue, "choose", ChooseJob(queue, lambda: served))
    do(queue, "answer", answer)
    send(*headers.volume(slices=2, first=6))
    do(queue, "choose", ChooseJob(queue, lambda: served))
    do(queue, "answer", answer)
    first, second = rows(db, results)
    assert (first["replaced_by"], second["replaced_by"]) == (second["id"], None)
    assert first["inputs"] != second["inputs"]
    states = {row["result_id"]: row["state"] for row in rows(db, deliveries)}
    assert states == {first["id"]: "failed", second["id"]: "waiting"}
    open_jobs = [
        row["payload"]["result"] for row in rows(db, jobs) if row["kind"] == "deliver" and row["state"] == "waiting"
    ]
    assert open_jobs == [second["id"]]
    assert standing(db, study)["status"] == "answered"


def test_a_result_about_images_that_were_added_to_meanwhile_is_neither_shown_nor_sent(
    db: Database,
    queue: Queue,
    answer: AnswerJob,
    pool: FakePool,
    served: Any,
    send: Callable[..., int],
    headers: SimpleNamespace,
) -> None:
    study = send(*headers.volume(slices=6))
    do(queue, "choose", ChooseJob(queue, lambda: served))
    job = queue.lease(["answer"])
    assert job is not None
    answered = pool.answer(
        served[2].checksum, {"spool": str(answer._spool), "inputs_hash": job.payload["inputs"]}, progress=print
    )
    send(*headers.volume(slices=2, first=6))
    with db.write() as c:  # as another process chose, and did not know of ours
        later = {**dict(job.payload), "inputs": "ff" * 32}
        enqueue(c, "answer", f"answer:{served[2].checksum}:{study}:{'ff' * 32}", later, study_id=study)
    stored = store_result(queue, answer._archive, job, served[2], answered, answer._spool, to=("pacs",))
    assert stored.deliveries == 0
    assert standing(db, study)["status"] == "waiting"


@pytest.mark.parametrize("name", ["../secret.dcm", "/etc/passwd", "..", "", "a/b.dcm"])
def test_a_process_that_names_files_elsewhere_is_not_believed(archive: Archive, tmp_path: Path, name: str) -> None:
    with pytest.raises(ServeError, match="outside of its folder"):
        keep_files(archive, tmp_path, [{"kind": "sc", "path": name, "media_type": "application/json"}])


def test_a_link_in_the_folder_is_not_followed(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "sc.json").symlink_to("/etc/passwd")
    with pytest.raises(ServeError, match="not there"):
        keep_files(archive, tmp_path, [{"kind": "sc", "path": "sc.json", "media_type": "application/json"}])


@pytest.mark.parametrize(
    ("error", "again", "counts"),
    [
        (WorkerEnded("hang", "the model's process ended: no sign of life"), True, True),
        (WorkerEnded("stopped", "the service stopped it"), True, False),
        (AnswerError("ReadError", "a file cannot be read", True), True, True),
        (AnswerError("PackageError", "the model is damaged", False), False, True),
    ],
)
def test_why_a_model_did_not_answer_decides_whether_it_is_asked_again(
    queue: Queue, answer: AnswerJob, pool: FakePool, chosen: int, error: Exception, again: bool, counts: bool
) -> None:
    pool.error = error  # type: ignore[assignment]
    job = queue.lease(["answer"])
    assert job is not None
    with pytest.raises(Again) as told:
        answer(Work(job))
    assert (told.value.again, told.value.counts, str(told.value)) == (again, counts, str(error))


def test_cancelled_work_ends_the_process_that_is_at_it(
    queue: Queue, answer: AnswerJob, pool: FakePool, chosen: int
) -> None:
    job = queue.lease(["answer"])
    assert job is not None
    work = Work(job)
    pool.during = work.lose
    answer(work)
    assert pool.killed == [pool.models[0].checksum]


def test_a_dead_letter_is_seen_in_the_worklist_and_by_the_administrator(
    db: Database, queue: Queue, answer: AnswerJob, chosen: int
) -> None:
    from sagittal.database.events import open_events

    job = queue.lease(["answer"])
    assert job is not None
    state = queue.give_back(job, "the model's process ended: it crashed (SIGSEGV)", again=False)
    after_answer(queue, job, state)
    row = standing(db, chosen)
    assert (row["status"], row["finding"]) == ("failed", "the model's process ended: it crashed (SIGSEGV)")
    assert [event.code for event in open_events(db)] == ["dead-letter"]


def test_what_people_do_with_jobs_is_seen_in_the_worklist(
    db: Database, queue: Queue, answer: AnswerJob, chosen: int
) -> None:
    from sagittal.database.events import open_events

    job = queue.lease(["answer"])
    assert job is not None
    after_answer(queue, job, queue.give_back(job, "no", again=False))
    assert standing(db, chosen)["status"] == "failed"
    assert [event.code for event in open_events(db)] == ["dead-letter"]
    assert queue.run_again(job.id)
    assert standing(db, chosen)["status"] == "waiting"
    assert open_events(db) == []
    assert queue.cancel(job.id, by="anna")
    assert (standing(db, chosen)["status"], standing(db, chosen)["finding"]) == ("failed", "cancelled by anna")


def test_a_model_that_rests_costs_no_tries(queue: Queue, answer: AnswerJob, pool: FakePool, chosen: int) -> None:
    pool.error = Resting("the model's process ended 5 times")  # type: ignore[assignment]
    job = queue.lease(["answer"])
    assert job is not None
    with pytest.raises(Again) as told:
        answer(Work(job))
    assert (told.value.counts, told.value.wait_s) == (False, 30.0)


def test_while_late_images_come_the_worklist_says_so_and_tells_what_was_found_before(
    db: Database,
    queue: Queue,
    answer: AnswerJob,
    pool: FakePool,
    chosen: int,
    send: Callable[..., int],
    headers: SimpleNamespace,
) -> None:
    pool.during = lambda: send(headers.picture(number=2), close=False)
    do(queue, "answer", answer)
    row = standing(db, chosen)
    assert (row["status"], row["finding"]) == ("receiving", "malignant (93 %)")


def test_while_it_is_at_work_the_worklist_says_so(
    db: Database, queue: Queue, answer: AnswerJob, pool: FakePool, chosen: int
) -> None:
    seen: list[str] = []
    pool.during = lambda: seen.append(standing(db, chosen)["status"])
    do(queue, "answer", answer)
    assert seen == ["running"]


def test_a_model_has_one_study_at_a_time_and_others_are_not_kept_waiting(
    db: Database, queue: Queue, answer: AnswerJob, pool: FakePool, chosen: int
) -> None:
    chest, chest2 = pool.models[:2]
    seen: list[list[str]] = []
    pool.during = lambda: seen.append(answer.left_out())
    do(queue, "answer", answer)
    assert seen == [[f"answer:{chest.checksum}:"]]
    assert answer.left_out() == []
    switch_model(db, "chest", False, by="anna")
    assert answer.left_out() == [f"answer:{chest.checksum}:", f"answer:{chest2.checksum}:"]


def test_a_caution_is_kept_with_an_answer(db: Database, queue: Queue, answer: AnswerJob, chosen: int) -> None:
    do(queue, "answer", answer)
    assert rows(db, results)[0]["reason"] == "Reason: unlike what it knows"
    assert standing(db, chosen)["finding"] == "malignant (93 %)"


def test_work_for_a_model_that_is_off_waits(
    db: Database, queue: Queue, answer: AnswerJob, pool: FakePool, chosen: int
) -> None:
    switch_model(db, "chest", False, by="anna")
    job = queue.lease(["answer"])
    assert job is not None
    with pytest.raises(Again, match="switched off") as told:
        answer(Work(job))
    assert not told.value.counts
    assert pool.asked == []
    assert standing(db, chosen)["status"] == "waiting"
    queue.put_back(job)
    switch_model(db, "chest", True, by="anna")
    do(queue, "answer", answer)
    assert len(pool.asked) == 1


def test_a_model_of_another_version_is_not_asked(
    db: Database, queue: Queue, archive: Archive, pool: FakePool, chosen: int, tmp_path: Path
) -> None:
    pool.models = ()
    job = queue.lease(["answer"])
    assert job is not None
    with pytest.raises(Again, match="does not have this version") as told:
        AnswerJob(queue, archive, pool, tmp_path / "other")(Work(job))  # type: ignore[arg-type]
    assert not told.value.again
