"""Fetching: by accession number, or earlier studies of a patient; asked for once, and its identifier forgotten."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.database.connect import Database
from sagittal.database.schema import jobs, series, studies
from sagittal.deliver.destinations import DicomPeer
from sagittal.deliver.dicom_fetch import Fetched, FoundStudy, Retrieved
from sagittal.deliver.outcome import DeliveryError
from sagittal.jobs import fetch_job
from sagittal.jobs.fetch_job import FetchJob, queue_fetch
from sagittal.jobs.queue import Queue
from sagittal.jobs.supervise import Again, Work

PEER = DicomPeer("pacs", "127.0.0.1", 104, "PACS")


class Pacs:
    """A PACS that knows some studies."""

    def __init__(self, headers: SimpleNamespace) -> None:
        self.headers = headers
        self.known: dict[str, list[Any]] = {}
        self.asked: list[dict[str, Any]] = []
        self.found: list[FoundStudy] = []
        self.broken = False

    def find_studies(self, peer: DicomPeer, **keys: Any) -> list[FoundStudy]:
        self.asked.append(keys)
        if self.broken:
            raise DeliveryError("pacs: nobody answers", retry=True, trouble="away")
        return self.found

    def get_study(self, peer: DicomPeer, study_uid: str, keep: Callable[[Retrieved], int]) -> Fetched:
        done = failed = 0
        for made in self.known[study_uid]:
            whole = self.headers.file_bytes(made)
            start = whole.index(b"\x08\x00\x16\x00")  # where the data set begins
            status = keep(Retrieved(made.SOPClassUID, made.SOPInstanceUID, "1.2.840.10008.1.2.1", whole[start:]))
            done, failed = done + (status == 0), failed + (status != 0)
        return Fetched(done, failed, 0)


@pytest.fixture
def pacs(headers: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Pacs:
    made = Pacs(headers)
    monkeypatch.setattr(fetch_job, "find_studies", made.find_studies)
    monkeypatch.setattr(fetch_job, "get_study", made.get_study)
    return made


@pytest.fixture
def fetch(queue: Queue, archive: Archive) -> FetchJob:
    return FetchJob(queue, archive, {"pacs": PEER}, implementation=("2.25.1", "TEST"))


def study(uid: str, date: str = "20200101", modalities: tuple[str, ...] = ("CR",)) -> FoundStudy:
    return FoundStudy(uid, "A1", "SECRET-1", date, "", modalities, 1)


def rows(db: Database, table: sa.Table) -> list[Any]:
    with db.read() as c:
        return list(c.execute(sa.select(table).order_by(table.c.id)).mappings())


def put(db: Database, **asked: Any) -> int | None:
    with db.write() as c:
        return queue_fetch(c, "pacs", **asked)


def test_a_study_is_fetched_completed_and_what_it_was_asked_by_is_forgotten(
    db: Database, queue: Queue, fetch: FetchJob, pacs: Pacs, headers: SimpleNamespace
) -> None:
    pacs.known["1.2.9.1"] = [headers.picture(number=n) for n in (1, 2)]
    pacs.found = [study("1.2.9.1")]
    assert put(db, accession="A1") is not None
    assert put(db, accession="A1") is None
    job = queue.lease(["fetch"])
    assert job is not None
    fetch(Work(job))
    assert pacs.asked == [{"accession": "A1"}]
    (done,) = [row for row in rows(db, jobs) if row["kind"] == "fetch"]
    assert (done["state"], done["payload"]) == ("done", {"pacs": "pacs"})
    assert done["outcome"] == {"studies": 1, "stored": 2, "already": 0, "conflict": 0, "refused": 0}
    assert [row["completed_by"] for row in rows(db, series)] == ["call"]
    assert [row["kind"] for row in rows(db, jobs)] == ["fetch", "choose"]
    assert put(db, accession="A1") is not None  # it may be asked for again later


def test_earlier_studies_of_the_same_kind_are_fetched(
    db: Database, queue: Queue, fetch: FetchJob, pacs: Pacs, headers: SimpleNamespace, send: Callable[..., int]
) -> None:
    now = send(headers.picture(study="1"))
    pacs.found = [
        study("1.2.9.1"),
        study("1.2.9.9", date="20270101"),
        study("1.2.9.3", date="20250101", modalities=("MR",)),
        study("1.2.9.2", date="20240101"),
        study("1.2.9.4", date="20230101"),
    ]
    pacs.known["1.2.9.2"] = [headers.picture(study="2", PatientID="SECRET-1")]
    put(db, study_id=now, priors=1)
    job = queue.lease(["fetch"])
    assert job is not None
    fetch(Work(job))
    assert pacs.asked == [{"patient_id": "SECRET-1"}]
    assert [row["study_uid"] for row in rows(db, studies)] == ["1.2.9.1", "1.2.9.2"]


def test_a_pacs_that_is_away_is_asked_again_and_one_that_knows_nothing_is_not(
    db: Database, queue: Queue, fetch: FetchJob, pacs: Pacs
) -> None:
    put(db, accession="A1")
    job = queue.lease(["fetch"])
    assert job is not None
    pacs.broken = True
    with pytest.raises(Again, match="nobody answers") as told:
        fetch(Work(job))
    assert told.value.again
    pacs.broken = False
    with pytest.raises(Again, match="knows no such study") as told:
        fetch(Work(job))
    assert not told.value.again


def test_images_that_could_not_be_kept_are_fetched_again(
    queue: Queue,
    db: Database,
    archive: Archive,
    fetch: FetchJob,
    pacs: Pacs,
    headers: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sagittal.archive.refused import ArchiveFull

    pacs.known["1.2.9.1"], pacs.found = [headers.picture()], [study("1.2.9.1")]
    put(db, accession="A1")
    job = queue.lease(["fetch"])
    assert job is not None

    def full(*_: Any, **__: Any) -> Any:
        raise ArchiveFull("no room")

    monkeypatch.setattr(archive, "receive", full)
    with pytest.raises(Again, match="1 images of a study could not be fetched"):
        fetch(Work(job))
    monkeypatch.undo()


def test_a_pacs_of_another_name_is_not_asked(db: Database, queue: Queue, archive: Archive) -> None:
    put(db, accession="A1")
    job = queue.lease(["fetch"])
    assert job is not None
    with pytest.raises(Again, match="no such PACS"):
        FetchJob(queue, archive, {}, implementation=("2.25.1", "TEST"))(Work(job))
