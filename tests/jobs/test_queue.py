"""The queue: nothing is lost, nothing is done twice, nothing waits for ever, whatever the clocks do."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagittal.database.clock import Clock
from sagittal.database.connect import Database
from sagittal.database.queue import enqueue
from sagittal.database.schema import jobs
from sagittal.jobs.holder import Holder
from sagittal.jobs.queue import (
    AGING_S,
    BACKOFF,
    FAIR,
    Backoff,
    Job,
    LeaseLostError,
    Queue,
    models_off,
    switch_model,
)


class Times:
    """Clocks that a test turns."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_000_000.0, 50.0

    def pass_s(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.fixture
def times(db: Database) -> Times:
    made = Times()
    db.clock = Clock(wall=lambda: made.wall, monotonic=lambda: made.steady)
    return made


def put(db: Database, key: str, *, kind: str = "answer", **values: Any) -> int:
    with db.write() as c:
        number = enqueue(c, kind, key, values.pop("payload", {}), **{"priority": 0, **values})
    assert number is not None
    return number


def row(db: Database, number: int) -> Any:
    with db.read() as c:
        return c.execute(sa.select(jobs).where(jobs.c.id == number)).mappings().one()


def test_a_job_is_done_once(db: Database, queue: Queue) -> None:
    number = put(db, "a")
    job = queue.lease(["answer"])
    assert job is not None
    assert (job.id, job.attempts) == (number, 1)
    assert queue.lease(["answer"]) is None
    queue.finish(job, {"result": 3})
    assert row(db, number)["state"] == "done"
    assert row(db, number)["outcome"] == {"result": 3}
    assert queue.lease(["answer"]) is None
    with pytest.raises(LeaseLostError):
        queue.finish(job, {"result": 4})


def test_the_same_thing_is_queued_once(db: Database) -> None:
    put(db, "a")
    with db.write() as c:
        assert enqueue(c, "answer", "a", {}) is None


def test_kinds_do_not_mix(db: Database, queue: Queue) -> None:
    put(db, "a", kind="choose")
    assert queue.lease(["answer", "deliver"]) is None
    assert queue.lease(["choose"]) is not None


def test_a_lease_that_ran_out_goes_on_elsewhere_and_its_late_finish_is_refused(
    db: Database, queue: Queue, times: Times
) -> None:
    number = put(db, "a")
    first = queue.lease(["answer"], lease_s=60)
    assert first is not None
    times.pass_s(59)
    assert queue.lease(["answer"]) is None
    times.pass_s(2)
    other = Queue(db, rng=np.random.default_rng(1))
    second = other.lease(["answer"])
    assert second is not None
    assert (second.id, second.attempts) == (number, 2)
    for late in (
        lambda: queue.finish(first, {}),
        lambda: queue.give_back(first, "late"),
        lambda: queue.heartbeat(first),
        lambda: queue.put_back(first),
    ):
        with pytest.raises(LeaseLostError, match="counts no more"):
            late()
    other.finish(second, {"by": "second"})
    assert row(db, number)["outcome"] == {"by": "second"}


def test_heartbeats_keep_a_lease_and_tell_how_far_it_is(db: Database, queue: Queue, times: Times) -> None:
    number = put(db, "a")
    job = queue.lease(["answer"], lease_s=60)
    assert job is not None
    for n in range(5):
        times.pass_s(50)
        queue.heartbeat(job, lease_s=60, progress=n / 4)
        assert queue.lease(["answer"]) is None
    assert row(db, number)["progress"] == 1.0
    queue.finish(job, {})


def test_a_clock_set_back_keeps_no_job_waiting_and_one_set_forward_takes_no_lease(
    db: Database, queue: Queue, times: Times
) -> None:
    put(db, "a")
    job = queue.lease(["answer"], lease_s=60)
    assert job is not None
    assert queue.give_back(job, "failed", wait_s=10) == "waiting"
    times.wall -= 86_400  # somebody sets the clock back by a day
    assert queue.lease(["answer"]) is None
    times.pass_s(11)
    again = queue.lease(["answer"], lease_s=60)
    assert again is not None
    times.pass_s(59)
    assert queue.lease(["answer"]) is None
    times.pass_s(2)
    assert queue.lease(["answer"]) is not None


def test_what_fails_is_tried_again_later_each_time_and_is_dead_in_the_end(
    db: Database, queue: Queue, times: Times
) -> None:
    number = put(db, "a", most_attempts=4)
    waits = []
    for attempt in range(1, 5):
        while (job := queue.lease(["answer"])) is None:
            times.pass_s(1)
            waits.append(attempt)
        state = queue.give_back(job, f"reason {attempt}")
        assert state == ("dead" if attempt == 4 else "waiting")
    counted = [waits.count(n) for n in (2, 3, 4)]
    assert 2 <= counted[0] <= 6
    assert counted[0] < counted[1] < counted[2] <= 21
    dead = row(db, number)
    assert (dead["state"], dead["error"], dead["attempts"]) == ("dead", "reason 4", 4)
    times.pass_s(1e6)
    assert queue.lease(["answer"]) is None


def test_an_error_that_cannot_pass_ends_at_once(db: Database, queue: Queue) -> None:
    number = put(db, "a")
    job = queue.lease(["answer"])
    assert job is not None
    assert queue.give_back(job, "no such model", again=False) == "dead"
    assert row(db, number)["error"] == "no such model"


def test_deliveries_are_tried_for_days(db: Database, queue: Queue, times: Times) -> None:
    put(db, "d", kind="deliver")
    for _ in range(40):
        while (job := queue.lease(["deliver"])) is None:
            times.pass_s(30)
        assert queue.give_back(job, "the destination is away") == "waiting"
    old = Job(**{**job.__dict__, "created_at": time.time() - 8 * 86_400})
    while (job := queue.lease(["deliver"])) is None:
        times.pass_s(30)
    old = Job(**{**job.__dict__, "created_at": time.time() - 8 * 86_400})
    assert queue.give_back(old, "away for more than a week") == "dead"


@given(attempts=st.integers(1, 10_000), first=st.floats(0.1, 60), most=st.floats(60, 3600), seed=st.integers(0, 99))
def test_back_off_stays_within_its_bounds(attempts: int, first: float, most: float, seed: int) -> None:
    wait = Backoff(first, most).wait(attempts, np.random.default_rng(seed))
    whole = min(first * 2.0 ** min(attempts - 1, 40), most)
    assert whole / 2 <= wait <= whole


def test_back_off_of_a_destination_is_minutes_at_most() -> None:
    assert BACKOFF["deliver"].most_s <= 600


def test_a_worker_that_vanishes_again_and_again_is_given_up(db: Database, queue: Queue, times: Times) -> None:
    number = put(db, "a", most_attempts=3)
    for _ in range(3):
        assert queue.lease(["answer"], lease_s=60) is not None
        times.pass_s(61)
    assert queue.lease(["answer"]) is None
    assert row(db, number)["state"] == "dead"
    assert "without a word 3 times" in row(db, number)["error"]


def test_urgent_jobs_come_first(db: Database, queue: Queue) -> None:
    for n in range(4):
        put(db, f"routine {n}")
    urgent = put(db, "urgent", priority=1)
    stat = put(db, "stat", priority=2)
    order = [queue.lease(["answer"]).id for _ in range(3)]  # type: ignore[union-attr]
    assert order[:2] == [stat, urgent]


def test_a_job_that_waited_long_enough_comes_before_an_urgent_one(db: Database, queue: Queue) -> None:
    routine = put(db, "routine")
    with db.write() as c:
        c.execute(sa.update(jobs).where(jobs.c.id == routine).values(created_at=time.time() - AGING_S - 1))
    put(db, "urgent", priority=1)
    assert queue.lease(["answer"]).id == routine  # type: ignore[union-attr]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 2), st.floats(0, 120)), min_size=1, max_size=30),
    wrong_clock=st.floats(-1e6, 1e6),
)
def test_nothing_starves(
    tmp_path_factory: pytest.TempPathFactory, arrivals: list[tuple[int, float]], wrong_clock: float
) -> None:
    """A routine job ends however many urgent ones keep coming, one for each that is done, whatever their clocks say."""
    db = Database.open(f"sqlite:///{tmp_path_factory.mktemp('q') / 'q.db'}")
    try:
        queue = Queue(db, rng=np.random.default_rng(0))
        with db.write() as c:
            routine = enqueue(c, "answer", "routine", {})
            for n, (priority, late) in enumerate(arrivals):
                number = enqueue(c, "answer", f"at first {n}", {}, priority=priority)
                at = time.time() + wrong_clock + late
                c.execute(sa.update(jobs).where(jobs.c.id == number).values(created_at=at))
        for done in range(2 * FAIR + 2):
            job = queue.lease(["answer"])
            assert job is not None
            if job.id == routine:
                break
            with db.write() as c:
                queue.finish_in(c, job, {})
                enqueue(c, "answer", f"endless {done}", {}, priority=2)
        else:
            pytest.fail("the routine job was passed over again and again")
    finally:
        db.close()


def test_many_threads_take_each_job_once(db: Database) -> None:
    with db.write() as c:
        for n in range(60):
            enqueue(c, "answer", str(n), {}, priority=n % 3)
    done: list[int] = []
    lock = threading.Lock()

    def work(seed: int) -> None:
        queue = Queue(db, rng=np.random.default_rng(seed))
        while (job := queue.lease(["answer"])) is not None:
            with lock:
                done.append(job.id)
            queue.finish(job, {"by": seed})

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == sorted(set(done))
    assert len(done) == 60


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 2)),
        st.tuples(st.just("lease"), st.integers(0, 2)),
        st.tuples(st.sampled_from(["finish", "give back", "give up", "put back", "heartbeat"]), st.integers(0, 50)),
        st.tuples(st.just("cancel"), st.integers(0, 50)),
        st.tuples(st.just("run again"), st.integers(0, 50)),
        st.tuples(st.just("pass"), st.integers(1, 100)),
        st.tuples(st.just("set clock"), st.integers(-100_000, 100_000)),
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_whatever_happens_a_job_has_one_holder_and_one_end(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int]]
) -> None:
    """Several workers take, lose, finish and give back; people cancel; clocks jump. Compared with a model in memory."""
    db = Database.open(f"sqlite:///{tmp_path_factory.mktemp('q') / 'q.db'}")
    times = Times()
    db.clock = Clock(wall=lambda: times.wall, monotonic=lambda: times.steady)
    queues = [Queue(db, rng=np.random.default_rng(n)) for n in range(3)]
    held: list[tuple[Queue, Job]] = []  # every lease that was ever given
    holder: dict[int, str] = {}  # the lease that counts now
    count = 0
    try:
        for what, n in operations:
            if what == "put":
                put(db, f"job {count}", priority=n)
                count += 1
            elif what == "lease":
                job = queues[n].lease(["answer"], lease_s=60)
                if job is not None:
                    before = holder.get(job.id)
                    assert before is None or row_of_lease(held, before) is not None
                    held.append((queues[n], job))
                    holder[job.id] = job.lease_by
            elif what == "pass":
                times.pass_s(n)
            elif what == "set clock":
                times.wall += n
            elif what == "cancel" and count:
                number = n % count + 1
                if queues[0].cancel(number, by="anna"):
                    holder.pop(number, None)
                    assert row(db, number)["state"] == "cancelled"
            elif what == "run again" and count:
                queues[0].run_again(n % count + 1)
            elif held:
                queue, job = held[n % len(held)]
                act(queue, job, what, counts=holder.get(job.id) == job.lease_by, holder=holder)
        for number in range(1, count + 1):
            found = row(db, number)
            assert (found["state"] == "leased") == (number in holder)
            assert found["attempts"] <= found["most_attempts"]
    finally:
        db.close()


def row_of_lease(held: list[tuple[Queue, Job]], lease_by: str) -> Job | None:
    return next((job for _, job in held if job.lease_by == lease_by), None)


def act(queue: Queue, job: Job, what: str, *, counts: bool, holder: dict[int, str]) -> None:
    """Do what a worker does; it succeeds exactly where its lease is the one that counts."""
    do = {
        "finish": lambda: queue.finish(job, {"by": job.lease_by}),
        "give back": lambda: queue.give_back(job, "failed"),
        "give up": lambda: queue.give_back(job, "failed", again=False),
        "put back": lambda: queue.put_back(job),
        "heartbeat": lambda: queue.heartbeat(job),
    }[what]
    if not counts:
        with pytest.raises(LeaseLostError):
            do()
        return
    do()
    if what != "heartbeat":
        del holder[job.id]


def test_cancelled_work_is_told_and_can_be_run_again(db: Database, queue: Queue) -> None:
    number = put(db, "a")
    job = queue.lease(["answer"])
    assert job is not None
    assert queue.cancel(number, by="anna")
    assert row(db, number)["state"] == "cancelled"
    with pytest.raises(LeaseLostError):
        queue.heartbeat(job)
    with pytest.raises(LeaseLostError):
        queue.finish(job, {})
    assert not queue.cancel(number, by="anna")
    assert queue.run_again(number, urgency=2)
    again = queue.lease(["answer"])
    assert again is not None
    assert (again.attempts, again.priority) == (1, 2)
    assert not queue.run_again(number)


def test_a_dead_job_run_again_has_all_its_tries(db: Database, queue: Queue) -> None:
    number = put(db, "a", most_attempts=1)
    job = queue.lease(["answer"])
    assert job is not None
    assert queue.give_back(job, "no") == "dead"
    assert queue.run_again(number)
    assert row(db, number)["error"] == ""
    assert queue.lease(["answer"]).attempts == 1  # type: ignore[union-attr]


def test_a_paused_queue_hands_out_nothing(db: Database, queue: Queue) -> None:
    put(db, "a")
    queue.pause(True, by="anna")
    assert queue.paused
    assert queue.lease(["answer"]) is None
    queue.pause(False, by="anna")
    assert queue.lease(["answer"]) is not None


def test_jobs_of_a_model_that_is_off_wait(db: Database, queue: Queue) -> None:
    put(db, "answer:abc:1:x")
    other = put(db, "answer:def:1:x")
    switch_model(db, "lung", False, by="anna")
    assert models_off(db) == {"lung"}
    switch_model(db, "lung", True, by="anna")
    assert models_off(db) == frozenset()
    assert queue.lease(["answer"], without=["answer:abc:"]).id == other  # type: ignore[union-attr]
    assert queue.lease(["answer"], without=["answer:abc:"]) is None
    assert queue.lease(["answer"]) is not None


def test_urgency_can_be_raised_while_a_study_waits(db: Database, queue: Queue) -> None:
    from sagittal.database.schema import studies

    with db.write() as c:
        study = c.execute(
            sa.insert(studies).values(study_uid="1.2", arrived_at=0, changed_at=0).returning(studies.c.id)
        ).scalar_one()
    put(db, "first")
    late = put(db, "late", study_id=study)
    assert queue.raise_urgency(study, 2) == 1
    assert queue.lease(["answer"]).id == late  # type: ignore[union-attr]


_TAKE_AND_DIE = """
import os, sys
import numpy as np
from sagittal.database.connect import Database
from sagittal.jobs.queue import Queue
db = Database.open(sys.argv[1])
job = Queue(db, rng=np.random.default_rng(0)).lease(["answer"], lease_s=3600)
print(job.id, flush=True)
os.kill(os.getpid(), 9)
"""


def test_jobs_of_a_killed_service_go_on_at_once_and_their_try_does_not_count(db: Database, queue: Queue) -> None:
    number = put(db, "a", most_attempts=1)
    url = f"sqlite:///{db.engine.url.database}"
    for _ in range(2):
        killed = subprocess.run(
            [sys.executable, "-c", _TAKE_AND_DIE, url], capture_output=True, text=True, timeout=120, check=False
        )
        assert killed.stdout.strip() == str(number), killed.stderr
        assert queue.lease(["answer"]) is None
        assert queue.recover() == 1
        assert row(db, number)["attempts"] == 0
    assert queue.lease(["answer"]) is not None
    assert queue.recover() == 0  # ours, and we live


def test_a_process_is_known_by_more_than_its_number() -> None:
    me = Holder()
    assert not me.gone
    assert Holder(me.host, me.pid, "1").gone
    assert not Holder("elsewhere", me.pid, "1").gone
    assert Holder.of(f"{me}:abc1") == me
    assert Holder.of("nonsense") is None


def test_counts_tell_kinds_and_states(db: Database, queue: Queue) -> None:
    put(db, "a")
    put(db, "b", kind="deliver")
    assert queue.lease(["answer"]) is not None
    assert queue.counts() == {"answer": {"leased": 1}, "deliver": {"waiting": 1}}
