"""Deliveries: tried until they are there, without asking one that is away by all who wait, and confirmed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.database.connect import Database
from sagittal.database.events import open_events
from sagittal.database.schema import deliveries, jobs, objects, results, studies
from sagittal.deliver.destinations import DicomDestination, FolderDestination
from sagittal.deliver.outcome import DeliveryError, Sent
from sagittal.jobs.answer_job import after_answer
from sagittal.jobs.deliver_job import DeliverJob, chase_confirmations, confirm_delivery, object_files
from sagittal.jobs.queue import Job, Queue
from sagittal.jobs.results import queue_deliveries
from sagittal.jobs.supervise import Again, Work

PACS = DicomDestination("pacs", "127.0.0.1", 104, "PACS", confirm=True)


class Far:
    """A destination that does what a test wants."""

    def __init__(self) -> None:
        self.error: DeliveryError | None = None
        self.calls: list[tuple[list[str], dict[str, Any]]] = []
        self.confirmed = False

    def __call__(self, files: Any, destination: Any, **more: Any) -> Sent:
        self.calls.append(([one.kind for one in files], more))
        if self.error is not None:
            raise self.error
        return Sent(destination.name, len(files), self.confirmed, more["transaction_uid"])


@pytest.fixture
def far() -> Far:
    return Far()


@pytest.fixture
def result(db: Database, archive: Archive, headers: SimpleNamespace, send: Callable[..., int]) -> Callable[..., int]:
    """Make a result with an object in DICOM and one in JSON, queued for destinations: gives its row."""

    def make(number: int = 1, to: tuple[str, ...] = ("pacs",)) -> int:
        study = send(headers.picture(study=str(number)))
        receipt = archive.store_result(headers.picture(study=str(number), series="9"))
        file = archive.store_file(b"{}", ".json")
        with db.write() as c:
            made = c.execute(
                sa.insert(results)
                .values(
                    study_id=study,
                    model="m",
                    version="v",
                    checksum="c",
                    inputs=str(number),
                    state="answered",
                    created_at=0,
                )
                .returning(results.c.id)
            ).scalar_one()
            for kind, instance, media in (
                ("sc", receipt.instance_id, "application/dicom"),
                ("json", None, "application/json"),
            ):
                c.execute(
                    sa.insert(objects).values(
                        result_id=made,
                        kind=kind,
                        instance_id=instance,
                        media_type=media,
                        path=file.path,
                        sha256="",
                        size=2,
                    )
                )
            c.execute(
                sa.insert(objects).values(
                    result_id=made, kind="mask", media_type="application/gzip", path=file.path, sha256="", size=2
                )
            )
            queue_deliveries(c, made, study, to)
        return int(made)

    return make


@pytest.fixture
def deliver(queue: Queue, archive: Archive, far: Far, tmp_path: Path) -> DeliverJob:
    there = {"pacs": PACS, "share": FolderDestination("share", tmp_path)}
    return DeliverJob(queue, archive, there, rng=np.random.default_rng(0), send=far, first_s=0.2, most_s=0.8)


def row(db: Database, number: int = 1, table: sa.Table = deliveries) -> Any:
    with db.read() as c:
        return c.execute(sa.select(table).where(table.c.id == number)).mappings().one()


def do(queue: Queue, deliver: DeliverJob) -> Job:
    job = queue.lease(["deliver"])
    assert job is not None
    try:
        outcome = deliver(Work(job))
    except Again as error:
        if error.counts:
            after_answer(queue, job, queue.give_back(job, str(error), again=error.again, wait_s=0.0))
        else:
            queue.put_back(job)
        raise
    queue.finish(job, outcome or {})
    return job


def codes(db: Database) -> list[tuple[str, str]]:
    return [(event.code, event.about) for event in open_events(db)]


def test_a_result_is_sent_and_waits_for_its_confirmation(
    db: Database, queue: Queue, deliver: DeliverJob, far: Far, result: Callable[..., int]
) -> None:
    number = result()
    do(queue, deliver)
    kinds, more = far.calls[0]
    assert kinds == ["sc", "json"]  # the mask is for the page alone
    assert more["key"] == f"result-{number}"
    sent = row(db)
    assert (sent["state"], sent["transaction_uid"]) == ("sent", more["transaction_uid"])
    assert sent["transaction_uid"].startswith("2.25.")
    assert confirm_delivery(db, sent["transaction_uid"], True)
    assert row(db)["state"] == "confirmed"
    assert row(db)["confirmed_at"] is not None
    assert not confirm_delivery(db, "1.2.3", True)
    assert not confirm_delivery(db, "", True)


def test_what_is_not_kept_there_is_sent_again(
    db: Database, queue: Queue, deliver: DeliverJob, far: Far, result: Callable[..., int]
) -> None:
    result()
    do(queue, deliver)
    first = row(db)["transaction_uid"]
    assert confirm_delivery(db, first, False)
    assert codes(db) == [("delivery-failed", "pacs")]
    far.confirmed = True
    do(queue, deliver)
    assert row(db)["state"] == "confirmed"
    assert row(db)["transaction_uid"] != first
    assert codes(db) == []


def test_a_confirmation_that_comes_before_we_have_written_that_it_was_sent_counts(
    db: Database, queue: Queue, deliver: DeliverJob, far: Far, result: Callable[..., int]
) -> None:
    result()

    def quick(files: Any, destination: Any, **more: Any) -> Sent:
        assert confirm_delivery(db, more["transaction_uid"], True)
        return Sent(destination.name, len(files), False, more["transaction_uid"])

    deliver._send = quick
    do(queue, deliver)
    assert row(db)["state"] == "confirmed"


def test_one_that_is_away_is_asked_by_one_job_and_all_go_when_it_answers(
    db: Database, queue: Queue, deliver: DeliverJob, far: Far, result: Callable[..., int]
) -> None:
    for n in range(1, 5):
        result(n)
    far.error = DeliveryError("pacs: nobody answers", retry=True, trouble="away")
    for _ in range(4):
        with pytest.raises(Again):
            do(queue, deliver)
    assert len(far.calls) == 1
    assert codes(db) == [("destination-away", "pacs")]
    assert [row(db, n, jobs)["attempts"] for n in range(1, 9) if row(db, n, jobs)["kind"] == "deliver"] == [1, 0, 0, 0]
    time.sleep(0.25)
    with pytest.raises(Again, match="nobody answers"):
        do(queue, deliver)
    assert len(far.calls) == 2
    far.error = None
    with db.write() as c:  # they wait for minutes
        c.execute(sa.update(jobs).where(jobs.c.kind == "deliver").values(due_at=4e9))
    time.sleep(0.45)
    with db.write() as c:
        c.execute(sa.update(jobs).where(jobs.c.key == "deliver:1").values(due_at=0))
    do(queue, deliver)
    assert codes(db) == []
    for _ in range(3):
        do(queue, deliver)
    assert {row(db, n)["state"] for n in range(1, 5)} == {"sent"}


def test_another_destination_does_not_wait(
    db: Database, queue: Queue, deliver: DeliverJob, far: Far, result: Callable[..., int]
) -> None:
    result(to=("pacs", "share"))
    far.error = DeliveryError("pacs: nobody answers", retry=True, trouble="away")
    with pytest.raises(Again):
        do(queue, deliver)
    far.error = None
    with db.write() as c:
        c.execute(sa.update(jobs).where(jobs.c.key == "deliver:1").values(due_at=4e9))
    do(queue, deliver)
    assert row(db, 2)["state"] == "sent"
    assert codes(db) == [("destination-away", "pacs")]


def test_what_is_refused_for_good_is_a_dead_letter(
    db: Database, queue: Queue, deliver: DeliverJob, far: Far, result: Callable[..., int]
) -> None:
    result()
    far.error = DeliveryError("pacs: our title is not known there", retry=False, trouble="refused")
    with pytest.raises(Again):
        do(queue, deliver)
    assert (row(db)["state"], row(db)["error"]) == ("failed", "pacs: our title is not known there")
    assert codes(db) == [("dead-letter", "deliver"), ("destination-refuses", "pacs")]


def test_a_result_that_was_replaced_is_not_sent(
    db: Database, queue: Queue, deliver: DeliverJob, far: Far, result: Callable[..., int]
) -> None:
    first, second = result(1), result(2)
    with db.write() as c:
        c.execute(sa.update(results).where(results.c.id == first).values(replaced_by=second))
    do(queue, deliver)
    assert far.calls == []
    assert row(db)["state"] == "failed"


def test_a_destination_that_is_gone_and_a_result_that_is_gone(
    db: Database, queue: Queue, deliver: DeliverJob, far: Far, result: Callable[..., int]
) -> None:
    result(1, to=("nowhere",))
    with pytest.raises(Again, match="no such destination") as told:
        do(queue, deliver)
    assert not told.value.again
    result(2)
    with db.write() as c:
        c.execute(sa.delete(deliveries).where(deliveries.c.id == 2))
    do(queue, deliver)
    assert far.calls == []


def test_confirmations_that_do_not_come_are_asked_for_again(
    db: Database, queue: Queue, deliver: DeliverJob, far: Far, result: Callable[..., int]
) -> None:
    result()
    do(queue, deliver)
    assert chase_confirmations(db, [PACS], after_s=3600) == 0
    with db.write() as c:
        c.execute(sa.update(deliveries).values(sent_at=time.time() - 4000))
    assert chase_confirmations(db, [PACS], after_s=3600) == 1
    far.confirmed = True
    do(queue, deliver)
    assert row(db)["state"] == "confirmed"
    assert chase_confirmations(db, [PACS], after_s=-1) == 0


def test_deliveries_are_queued_once(db: Database, result: Callable[..., int]) -> None:
    number = result()
    with db.write() as c:
        study = c.execute(sa.select(studies.c.id)).scalar_one()
        assert queue_deliveries(c, number, study, ("pacs", "pacs", "share")) == 1


def test_objects_come_with_what_a_pacs_asks_for(db: Database, archive: Archive, result: Callable[..., int]) -> None:
    first, second = object_files(db, archive, result())
    assert (first.kind, first.sop_instance_uid, first.series_instance_uid) == ("sc", "1.2.9.1.9.1", "1.2.9.1.9")
    assert first.path.read_bytes()[128:132] == b"DICM"
    assert (second.kind, second.sop_instance_uid, second.path.read_bytes()) == ("json", "", b"{}")
