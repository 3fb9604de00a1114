"""The queue with PostgreSQL, where many processes take jobs at the same time without waiting for each other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import sqlalchemy as sa

from sagittal.database.connect import Database
from sagittal.database.queue import enqueue
from sagittal.database.schema import jobs
from sagittal.jobs.queue import LeaseLostError, Queue, models_off, switch_model


@pytest.fixture
def db(empty_postgresql: Callable[[], str]) -> Iterator[Database]:
    database = Database.open(empty_postgresql())
    yield database
    database.close()


def test_each_job_is_taken_once(db: Database) -> None:
    with db.write() as c:
        for n in range(120):
            enqueue(c, "answer", str(n), {"n": n}, priority=n % 3)
    done: list[int] = []
    together = threading.Barrier(6)

    def work(seed: int) -> None:
        queue = Queue(db, rng=np.random.default_rng(seed))
        together.wait()
        misses = 0
        while misses < 20:  # a row that another holds is passed over, so nothing may be left for a moment
            job = queue.lease(["answer"])
            if job is None:
                misses += 1
                continue
            done.append(job.id)
            queue.finish(job, {"by": seed})

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == sorted(set(done))
    assert len(done) == 120
    with db.read() as c:
        assert set(c.execute(sa.select(jobs.c.state)).scalars()) == {"done"}


def test_a_transaction_that_holds_a_job_keeps_no_other_waiting(db: Database) -> None:
    with db.write() as c:
        first = enqueue(c, "answer", "first", {}, priority=2)
        second = enqueue(c, "answer", "second", {})
    queue = Queue(db, rng=np.random.default_rng(0))
    with db.write() as c:
        c.execute(sa.select(jobs).where(jobs.c.id == first).with_for_update())
        taken = queue.lease(["answer"])
    assert taken is not None
    assert taken.id == second


def test_leases_retries_switches_and_dead_letters(db: Database) -> None:
    queue = Queue(db, rng=np.random.default_rng(0))
    with db.write() as c:
        number = enqueue(c, "answer", "answer:abc:1", {}, most_attempts=2)
    switch_model(db, "lung", False, by="anna")
    assert models_off(db) == {"lung"}
    assert queue.lease(["answer"], without=["answer:abc:"]) is None
    job = queue.lease(["answer"])
    assert job is not None
    queue.heartbeat(job, progress=0.5)
    assert queue.give_back(job, "failed", wait_s=0) == "waiting"
    with pytest.raises(LeaseLostError):
        queue.finish(job, {})
    job = queue.lease(["answer"])
    assert job is not None
    assert queue.give_back(job, "failed again", wait_s=0) == "dead"
    assert queue.run_again(job.id)
    assert queue.cancel(number or 0, by="anna")
    assert queue.counts() == {"answer": {"cancelled": 1}}
