"""The supervisor: what fails goes back, what is cancelled stops, and stopping loses nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from sagittal.archive.refused import ArchiveFull
from sagittal.database.connect import Database
from sagittal.database.events import open_events, recent_events
from sagittal.database.queue import enqueue
from sagittal.database.schema import jobs
from sagittal.errors import ConfigError, ReadError
from sagittal.jobs.queue import Backoff, Queue
from sagittal.jobs.supervise import Again, Supervisor, Tick, Work

FAST = {"answer": Backoff(first_s=0.01, most_s=0.02), "deliver": Backoff(first_s=0.01, most_s=0.02, give_up_s=60)}


@pytest.fixture
def queue(db: Database) -> Queue:
    return Queue(db, rng=np.random.default_rng(0), backoff=FAST)


@pytest.fixture
def supervise(queue: Queue) -> Iterator[Callable[..., Supervisor]]:
    made: list[Supervisor] = []

    def start(handlers: Mapping[str, Any], **more: Any) -> Supervisor:
        one = Supervisor(queue, handlers, **more)
        made.append(one)
        one.start()
        return one

    yield start
    for one in made:
        one.stop(0.5)


def put(db: Database, key: str, kind: str = "answer", **more: Any) -> int:
    with db.write() as c:
        number = enqueue(c, kind, key, {}, **more)
    assert number is not None
    return number


def row(db: Database, number: int) -> Any:
    with db.read() as c:
        return c.execute(sa.select(jobs).where(jobs.c.id == number)).mappings().one()


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    pytest.fail(f"nothing of it within {seconds:g} s")


def test_jobs_are_done_and_their_outcome_is_kept(db: Database, supervise: Callable[..., Supervisor]) -> None:
    numbers = [put(db, str(n)) for n in range(5)]
    supervise({"answer": lambda work: {"by": work.job.key}})
    until(lambda: all(row(db, n)["state"] == "done" for n in numbers))
    assert row(db, numbers[2])["outcome"] == {"by": "2"}


def test_what_fails_is_tried_again_and_its_words_are_our_own(
    db: Database, supervise: Callable[..., Supervisor]
) -> None:
    tries: list[int] = []

    def fail(work: Work) -> None:
        tries.append(work.job.attempts)
        if len(tries) == 1:
            raise ReadError("the file is cut off")
        if len(tries) == 2:
            raise KeyError("Smith^John")
        if len(tries) == 3:
            raise Again("interrupted", counts=False)

    number = put(db, "a")
    errors = []
    supervise({"answer": fail}, after=lambda job, ended: errors.append((ended, row(db, job.id)["error"])))
    until(lambda: row(db, number)["state"] == "done")
    until(lambda: len(errors) == 4)
    assert tries == [1, 2, 3, 3]
    assert errors[:2] == [("waiting", "the file is cut off"), ("waiting", "an unexpected KeyError")]
    assert errors[3][0] == "done"


def test_an_error_that_cannot_pass_is_dead_at_once(db: Database, supervise: Callable[..., Supervisor]) -> None:
    def fail(work: Work) -> None:
        raise ConfigError("no such destination") if work.job.key == "a" else Again("refused for good", again=False)

    first, second = put(db, "a"), put(db, "b")
    supervise({"answer": fail})
    until(lambda: row(db, first)["state"] == row(db, second)["state"] == "dead")
    assert row(db, first)["error"] == "no such destination"
    assert row(db, second)["attempts"] == 1


def test_many_destinations_do_not_wait_for_each_other(db: Database, supervise: Callable[..., Supervisor]) -> None:
    hold = threading.Event()

    def send(work: Work) -> None:
        if work.job.key == "slow":
            hold.wait(20)

    slow, quick = put(db, "slow", "deliver"), put(db, "quick", "deliver")
    supervise({"deliver": send}, threads={"deliver": 2})
    until(lambda: row(db, quick)["state"] == "done")
    assert row(db, slow)["state"] == "leased"
    hold.set()
    until(lambda: row(db, slow)["state"] == "done")


def test_heartbeats_keep_long_work_and_its_progress(db: Database, supervise: Callable[..., Supervisor]) -> None:
    done = threading.Event()

    def work(given: Work) -> None:
        given.advance(0.5)
        done.wait(20)

    number = put(db, "a")
    supervise({"answer": work}, threads={"answer": 2}, lease_s=0.4)
    until(lambda: row(db, number)["progress"] == 0.5)
    time.sleep(0.8)
    assert row(db, number)["attempts"] == 1
    done.set()
    until(lambda: row(db, number)["state"] == "done")


def test_a_full_disk_uses_up_no_try(
    db: Database, supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagittal.jobs.supervise.FULL_S", 0.01)
    tries: list[int] = []

    def keep(work: Work) -> None:
        tries.append(work.job.attempts)
        if len(tries) < 8:
            raise ArchiveFull("the disk of the archive is full")

    number = put(db, "a")
    supervise({"answer": keep})
    until(lambda: row(db, number)["state"] == "done")
    assert tries == [1] * 8


def test_work_that_is_cancelled_is_told(db: Database, queue: Queue, supervise: Callable[..., Supervisor]) -> None:
    at_work, told = threading.Event(), threading.Event()

    def work(given: Work) -> None:
        given.on_lost = told.set
        at_work.set()
        given.lost.wait(20)
        raise Again("stopped", counts=False)

    number = put(db, "a")
    one = supervise({"answer": work})
    assert at_work.wait(20)
    queue.cancel(number, by="anna")
    assert one.lose(number)
    assert told.wait(5)
    until(lambda: not one.working)
    assert row(db, number)["state"] == "cancelled"


def test_a_cancelled_job_is_noticed_by_its_heartbeat(
    db: Database, queue: Queue, supervise: Callable[..., Supervisor]
) -> None:
    at_work, lost = threading.Event(), threading.Event()

    def work(given: Work) -> None:
        at_work.set()
        if given.lost.wait(20):
            lost.set()

    number = put(db, "a")
    supervise({"answer": work}, lease_s=0.4)
    assert at_work.wait(20)
    queue.cancel(number, by="anna")
    assert lost.wait(10)


def test_stopping_lets_short_work_finish(db: Database, supervise: Callable[..., Supervisor]) -> None:
    at_work = threading.Event()

    def work(given: Work) -> None:
        at_work.set()
        time.sleep(0.3)

    number, later = put(db, "a"), put(db, "b")
    one = supervise({"answer": work})
    assert at_work.wait(20)
    one.stop(10)
    assert row(db, number)["state"] == "done"
    assert row(db, later)["state"] == "waiting"
    assert not any(thread.is_alive() for thread in one._threads)


def test_stopping_gives_back_what_does_not_finish(db: Database, supervise: Callable[..., Supervisor]) -> None:
    """One handler listens and one does not: both jobs wait again, and neither try counts."""
    at_work = threading.Barrier(3, timeout=20)
    deaf = threading.Event()

    def work(given: Work) -> None:
        at_work.wait()
        if given.job.key == "deaf":
            deaf.wait(20)
        else:
            given.lost.wait(20)
            raise Again("the service stopped", counts=False)

    numbers = [put(db, "deaf"), put(db, "listens")]
    one = supervise({"answer": work}, threads={"answer": 2})
    at_work.wait()
    one.stop(0.2)
    for number in numbers:
        assert (row(db, number)["state"], row(db, number)["attempts"]) == ("waiting", 0)
    deaf.set()
    until(lambda: not one.working)
    assert row(db, numbers[0])["state"] == "waiting"  # its late finish was refused


def test_ticks_go_on_after_they_fail_and_the_trouble_is_seen_until_it_ends(
    db: Database, supervise: Callable[..., Supervisor]
) -> None:
    calls: list[int] = []
    well = threading.Event()

    def tick() -> None:
        calls.append(1)
        if not well.is_set():
            raise OSError("a path with a name in it")

    supervise({}, ticks=[Tick("integrity", 0.02, tick)])
    found = until(lambda: open_events(db))
    assert found[0].code == "integrity-failed"
    assert "path" not in found[0].message
    well.set()
    until(lambda: not open_events(db))
    assert len(calls) > 1


def test_a_database_that_is_away_is_waited_for(
    db: Database, queue: Queue, supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sagittal.errors import ServeError

    real, look, failures = queue.lease, queue.ready, []

    def lease(*given: Any, **more: Any) -> Any:
        if len(failures) < 2:
            failures.append(1)
            raise ServeError("the database stayed locked")
        return real(*given, **more)

    def ready(*given: Any) -> Any:
        if len(failures) < 2:
            raise ServeError("the database stayed locked")
        return look(*given)

    monkeypatch.setattr(queue, "lease", lease)
    monkeypatch.setattr(queue, "ready", ready)
    monkeypatch.setattr("sagittal.jobs.supervise.LOOK_S", 0.005)
    monkeypatch.setattr("sagittal.jobs.supervise.FIRST_WAIT_S", 0.02)
    number = put(db, "a")
    supervise({"answer": lambda work: {}})
    until(lambda: row(db, number)["state"] == "done")
    assert len(failures) == 2
    (seen,) = until(lambda: [event for event in recent_events(db) if event.over_at is not None])
    assert seen.code == "database-away"


def test_what_a_handler_leaves_out_waits(db: Database, supervise: Callable[..., Supervisor]) -> None:
    class Choosy:
        off = ("answer:abc:",)

        def __call__(self, work: Work) -> dict[str, Any]:
            return {}

        def left_out(self) -> tuple[str, ...]:
            return self.off

    waits, goes = put(db, "answer:abc:1"), put(db, "answer:def:1")
    handler = Choosy()
    one = supervise({"answer": handler})
    until(lambda: row(db, goes)["state"] == "done")
    assert row(db, waits)["state"] == "waiting"
    assert row(db, waits)["attempts"] == 0
    handler.off = ()
    one.wake()
    until(lambda: row(db, waits)["state"] == "done")


def test_a_clock_that_was_set_back_is_seen_until_it_has_caught_up(
    db: Database, supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sagittal.database.clock import Clock

    monkeypatch.setattr("sagittal.jobs.supervise.CLOCK_S", 0.02)
    wrong = [0.0]
    db.clock = Clock(wall=lambda: time.time() + wrong[0])
    number = put(db, "a", due_at=db.clock.now() + 0.5)
    supervise({"answer": lambda work: {}})
    wrong[0] = -3600.0
    (found,) = until(lambda: open_events(db))
    assert found.code == "clock-set-back"
    assert "set back by 3,600 s" in found.message
    until(lambda: row(db, number)["state"] == "done")
    wrong[0] = 1.0
    until(lambda: not open_events(db))
