"""When a series is complete, and what that queues."""

from __future__ import annotations

from collections.abc import Callable

import pydicom
import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.archive.complete import close_committed, close_quiet_series, close_series
from sagittal.archive.receive import Receipt
from sagittal.database.connect import Database
from sagittal.database.schema import jobs, series, studies

Put = Callable[..., Receipt]
Make = Callable[..., bytes]


def queued(db: Database) -> list[str]:
    with db.read() as c:
        return list(c.execute(sa.select(jobs.c.key).order_by(jobs.c.id)).scalars())


def state(db: Database, series_id: int) -> tuple[bool, str, int]:
    with db.read() as c:
        row = c.execute(sa.select(series).where(series.c.id == series_id)).one()
    return row.complete_at is not None, row.completed_by, row.revision


def test_a_silence_closes_a_series_and_queues_the_choice_once(archive: Archive, put: Put, make_object: Make) -> None:
    db = archive.db
    receipt = put(make_object())
    now = db.clock.now()
    assert close_quiet_series(db, 30.0, now) == 0  # an image came just now
    assert close_quiet_series(db, 30.0, now + 31.0) == 1
    assert state(db, receipt.series_id) == (True, "silence", 1)
    assert queued(db) == [f"choose:{receipt.study_id}:1"]
    assert close_quiet_series(db, 30.0, now + 99.0) == 0
    with db.read() as c:
        row = c.execute(sa.select(jobs)).one()
        assert (row.kind, row.payload, row.study_id) == ("choose", {"study_id": receipt.study_id}, receipt.study_id)
        assert c.execute(sa.select(studies.c.status)).scalar() == "waiting"


def test_late_slices_open_it_again_and_its_next_end_queues_again(archive: Archive, put: Put, make_object: Make) -> None:
    db = archive.db
    receipt = put(make_object())
    close_quiet_series(db, 0.0, db.clock.now() + 1)
    data = make_object()
    put(data)
    assert state(db, receipt.series_id) == (False, "", 1)
    close_quiet_series(db, 0.0, db.clock.now() + 1)
    assert state(db, receipt.series_id) == (True, "silence", 2)
    assert queued(db) == [f"choose:{receipt.study_id}:1", f"choose:{receipt.study_id}:2"]
    assert put(data).outcome == "already"  # sent twice is processed once
    assert close_quiet_series(db, 0.0, db.clock.now() + 1) == 0
    assert len(queued(db)) == 2


def test_series_that_end_together_queue_one_choice_for_their_study(
    archive: Archive, put: Put, make_object: Make
) -> None:
    db = archive.db
    for number in range(3):
        receipt = put(make_object(SeriesInstanceUID=f"1.2.3.{number}"))
    other = put(make_object(SeriesInstanceUID="1.7.1", StudyInstanceUID="1.7"))
    assert close_quiet_series(db, 0.0, db.clock.now() + 1) == 4
    assert sorted(queued(db)) == sorted([f"choose:{receipt.study_id}:3", f"choose:{other.study_id}:1"])


def test_a_study_waits_only_when_all_its_series_are_closed(archive: Archive, put: Put, make_object: Make) -> None:
    db = archive.db
    first = put(make_object(SeriesInstanceUID="1.2.3.1"))
    second = put(make_object(SeriesInstanceUID="1.2.3.2"))
    assert close_series(db, first.series_id, "call")
    with db.read() as c:
        assert c.execute(sa.select(studies.c.status)).scalar() == "receiving"
    assert not close_series(db, first.series_id, "call")
    assert close_series(db, second.series_id, "call")
    with db.read() as c:
        assert c.execute(sa.select(studies.c.status)).scalar() == "waiting"
    assert state(db, first.series_id) == (True, "call", 1)
    assert not close_series(db, 99, "call")


def test_a_commitment_closes_the_series_that_it_names_whole(archive: Archive, put: Put, make_object: Make) -> None:
    db = archive.db
    for uid, where in (("1.5.1", "1.2.3.1"), ("1.5.2", "1.2.3.1"), ("1.5.3", "1.2.3.2"), ("1.5.4", "1.2.3.2")):
        receipt = put(make_object(SOPInstanceUID=uid, SeriesInstanceUID=where))
    closed = close_committed(db, ["1.5.1", "1.5.2", "1.5.3", "1.5.99"])
    assert len(closed) == 1
    assert state(db, closed[0]) == (True, "commitment", 1)
    assert queued(db) == [f"choose:{receipt.study_id}:1"]
    assert close_committed(db, []) == []


def test_a_result_queues_nothing(archive: Archive, put: Put, make_object: Make) -> None:
    import io

    put(make_object())
    close_quiet_series(archive.db, 0.0, archive.db.clock.now() + 1)
    archive.store_result(pydicom.dcmread(io.BytesIO(make_object(SeriesInstanceUID="1.9", Modality="SR"))))
    assert close_quiet_series(archive.db, 0.0, archive.db.clock.now() + 1) == 0
    assert len(queued(archive.db)) == 1


def test_a_clock_set_back_holds_nothing_up(archive: Archive, put: Put, make_object: Make, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    import time

    receipt = put(make_object())
    before = archive.db.clock.now()
    real = time.monotonic
    monkeypatch.setattr(archive.db.clock, "_wall", lambda: before - 86400.0)
    monkeypatch.setattr(archive.db.clock, "_monotonic", lambda: real() + 31.0)
    assert close_quiet_series(archive.db, 30.0, archive.db.clock.now()) == 1
    assert state(archive.db, receipt.series_id)[0]


def test_a_clock_set_back_ends_no_silence_early(archive: Archive, put: Put, make_object: Make, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    import time

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 7200.0)  # after the archive was opened
    receipt = put(make_object())
    assert close_quiet_series(archive.db, 30.0, archive.db.clock.now()) == 0
    assert not state(archive.db, receipt.series_id)[0]
