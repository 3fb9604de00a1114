"""The durable queue: who works on what, for how long, and what becomes of work that fails.

A job is a row of the table ``jobs``, put there by :func:`sagittal.database.queue.enqueue` in the transaction that made it
necessary. Who takes it has it for the time of a lease, which heartbeats make longer; a lease that runs out is given to
another, and what its late holder says then is refused. What fails is tried again after a while that doubles each time, and
ends in the list of dead letters with its reason.

Which job comes first: urgent ones, but each step of urgency is worth half an hour of waiting, and one lease in eight goes to
the job that was queued first whatever the clocks said, so that nothing waits for ever.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import sqlalchemy as sa

from sagittal.database.connect import Database
from sagittal.database.events import end_event
from sagittal.database.schema import jobs, switches
from sagittal.errors import ServeError
from sagittal.jobs.holder import Holder
from sagittal.jobs.standing import refresh_study

#: Seconds of waiting that one step of urgency is worth.
AGING_S = 1800.0
#: One lease in so many goes to the job that was queued first.
FAIR = 8
#: Seconds of a lease; heartbeats come three times as often.
LEASE_S = 60.0
#: A job whose process was ended together with the whole service is tried again so often, whatever its attempts.
MOST_INTERRUPTIONS = 50
#: Tries after which what is tried for days may be given up.
LEAST_TRIES = 20
#: Name of the switch that pauses the queue.
PAUSED = "queue"
_ERROR_LENGTH = 2000


@dataclass(frozen=True)
class Backoff:
    """How long a failed job waits: `first_s`, then twice as long each time up to `most_s`, half of it by chance.

    Parameters
    ----------
    first_s, most_s : float
    give_up_s : float
        After so long since it was queued it is dead; 0: after the attempts that the job itself allows.
    """

    first_s: float = 5.0
    most_s: float = 600.0
    give_up_s: float = 0.0

    def wait(self, attempts: int, rng: np.random.Generator) -> float:
        """Seconds before the next try after so many."""
        whole = min(self.first_s * 2.0 ** min(max(attempts - 1, 0), 40), self.most_s)
        return float(whole * rng.uniform(0.5, 1.0))


#: A destination may be away for days; everything else fails for good soon or not at all.
BACKOFF: Mapping[str, Backoff] = {
    "deliver": Backoff(first_s=5.0, most_s=300.0, give_up_s=7 * 86400.0),
    "fetch": Backoff(first_s=5.0, most_s=300.0, give_up_s=86400.0),
}


class LeaseLostError(ServeError):
    """The lease of a job ran out and the job went to another: what was done with it is not kept."""


@dataclass(frozen=True)
class Job:
    """A job as it was leased.

    Parameters
    ----------
    id : int
    kind, key : str
    payload : mapping
    priority : int
    attempts : int
        This one included.
    most_attempts : int
    study_id : int, optional
    created_at : float
    lease_by : str
        Of this lease alone.
    """

    id: int
    kind: str
    key: str
    payload: Mapping[str, Any]
    priority: int
    attempts: int
    most_attempts: int
    study_id: int | None
    created_at: float
    lease_by: str


class Queue:
    """The queue of a database. Safe to use from many threads and processes.

    Parameters
    ----------
    db : Database
    rng : numpy.random.Generator
        Spreads the tries of jobs that failed together.
    backoff : mapping of kind to Backoff
    """

    def __init__(self, db: Database, *, rng: np.random.Generator, backoff: Mapping[str, Backoff] | None = None) -> None:
        self.db = db
        self.holder = Holder()
        self._rng = rng
        self._backoff = BACKOFF if backoff is None else backoff
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._nonce = secrets.token_hex(3)

    # Taking and giving

    def lease(self, kinds: Sequence[str], *, lease_s: float = LEASE_S, without: Sequence[str] = ()) -> Job | None:
        """Take the next job of some kinds; ``None`` where nothing is to be done, or the queue is paused.

        Parameters
        ----------
        kinds : sequence of str
        lease_s : float
            How long it is the caller's without a heartbeat.
        without : sequence of str
            Beginnings of keys whose jobs are left waiting, such as those of a model that is switched off.
        """
        now = self.db.clock.now()
        fit = self._waits(kinds, now, without)
        with self.db.read() as c:  # mostly nothing waits, and looking costs no flush
            if self._paused(c) or c.execute(sa.select(jobs.c.id).where(fit).limit(1)).first() is None:
                return None
        number = next(self._numbers)
        with self.db.write() as c:
            while (row := c.execute(self._next(fit, number)).mappings().first()) is not None:
                if row["state"] == "leased" and row["attempts"] >= row["most_attempts"]:
                    self._bury(c, row["id"], f"its worker stopped without a word {row['attempts']} times")
                    continue
                by = f"{self.holder}:{self._nonce}{number:x}"
                c.execute(
                    sa.update(jobs)
                    .where(jobs.c.id == row["id"])
                    .values(
                        state="leased",
                        lease_until=now + lease_s,
                        lease_by=by,
                        attempts=jobs.c.attempts + 1,
                        progress=0.0,
                    )
                )
                return Job(
                    id=row["id"],
                    kind=row["kind"],
                    key=row["key"],
                    payload=row["payload"],
                    priority=row["priority"],
                    attempts=row["attempts"] + 1,
                    most_attempts=row["most_attempts"],
                    study_id=row["study_id"],
                    created_at=row["created_at"],
                    lease_by=by,
                )
        return None

    def ready(self, kinds: Sequence[str]) -> list[str]:
        """Those of some kinds of which a job may be taken now; none while the queue is paused."""
        fit = self._waits(kinds, self.db.clock.now(), ())
        with self.db.read() as c:
            if self._paused(c):
                return []
            return list(c.execute(sa.select(jobs.c.kind).where(fit).distinct()).scalars())

    def _waits(self, kinds: Sequence[str], now: float, without: Sequence[str]) -> sa.ColumnElement[bool]:
        ready = sa.or_(
            sa.and_(jobs.c.state == "waiting", jobs.c.due_at <= now),
            sa.and_(jobs.c.state == "leased", jobs.c.lease_until < now),
        )
        return sa.and_(
            jobs.c.kind.in_(kinds), ready, *(sa.not_(jobs.c.key.startswith(one, autoescape=True)) for one in without)
        )

    @staticmethod
    def _next(fit: sa.ColumnElement[bool], number: int) -> sa.Select[Any]:
        order: tuple[sa.ColumnElement[Any], ...] = (jobs.c.id,)
        if number % FAIR:
            order = ((jobs.c.created_at - jobs.c.priority * AGING_S), jobs.c.id)
        return sa.select(jobs).where(fit).order_by(*order).limit(1).with_for_update(skip_locked=True)

    def heartbeat(self, job: Job, *, lease_s: float = LEASE_S, progress: float | None = None) -> None:
        """Make a lease longer, and say how far the work is (0 to 1).

        Raises
        ------
        LeaseLostError
            If the job went to another, or was cancelled: stop working on it.
        """
        values: dict[str, Any] = {"lease_until": self.db.clock.now() + lease_s}
        if progress is not None:
            values["progress"] = min(max(float(progress), 0.0), 1.0)
        with self.db.write() as c:
            self._change(c, job, values)

    def finish(self, job: Job, outcome: Mapping[str, Any]) -> None:
        """Say that a job is done, and what came of it.

        Raises
        ------
        LeaseLostError
            If the job went to another meanwhile.
        """
        with self.db.write() as c:
            self.finish_in(c, job, outcome)

    def finish_in(self, c: sa.Connection, job: Job, outcome: Mapping[str, Any]) -> None:
        """As :meth:`finish`, in the transaction that keeps what was done: both are kept, or neither."""
        done = {"state": "done", "outcome": dict(outcome), "error": "", "progress": 1.0, "finished_at": time.time()}
        self._change(c, job, {**done, "lease_until": None})

    def hold_in(self, c: sa.Connection, job: Job) -> None:
        """Make sure, in a transaction, that a job is still the caller's.

        Raises
        ------
        LeaseLostError
            If it went to another.
        """
        self._change(c, job, {"lease_until": self.db.clock.now() + LEASE_S})

    def give_back(self, job: Job, error: str, *, again: bool = True, wait_s: float | None = None) -> str:
        """Put a job that failed back into the queue, or among the dead where another try is of no use.

        Parameters
        ----------
        job : Job
        error : str
            Why, in words that name no patient.
        again : bool
            Whether another try may help.
        wait_s : float, optional
            Before the next one; by the kind's back-off where not given.

        Returns
        -------
        {"waiting", "dead"}

        Raises
        ------
        LeaseLostError
            If the job went to another meanwhile.
        """
        backoff = self._backoff.get(job.kind, Backoff())
        if backoff.give_up_s:
            # Both: a clock that jumps ahead must not end what was tried a few times.
            over = time.time() - job.created_at > backoff.give_up_s and job.attempts >= LEAST_TRIES
        else:
            over = job.attempts >= job.most_attempts
        dead = over or not again
        values: dict[str, Any] = {"error": error[:_ERROR_LENGTH], "lease_until": None, "lease_by": ""}
        if dead:
            values |= {"state": "dead", "finished_at": time.time()}
        else:
            with self._lock:
                pause = backoff.wait(job.attempts, self._rng) if wait_s is None else wait_s
            values |= {"state": "waiting", "due_at": self.db.clock.now() + pause}
        with self.db.write() as c:
            self._change(c, job, values)
        return "dead" if dead else "waiting"

    def put_back(self, job: Job, *, wait_s: float = 0.0) -> None:
        """Put a job back that was not failed but interrupted: this attempt does not count."""
        values = {
            "state": "waiting",
            "attempts": jobs.c.attempts - 1,
            "due_at": self.db.clock.now() + wait_s,
            "lease_until": None,
            "lease_by": "",
        }
        with self.db.write() as c:
            self._change(c, job, values)

    def recover(self) -> int:
        """Put back the jobs of processes of this machine that have ended, without waiting for their leases.

        Returns
        -------
        int
            How many.
        """
        with self.db.read() as c:
            rows = c.execute(
                sa.select(jobs.c.id, jobs.c.lease_by, jobs.c.outcome).where(jobs.c.state == "leased")
            ).all()
        lost = [row for row in rows if (who := Holder.of(row.lease_by)) is not None and who.gone]
        if not lost:
            return 0
        with self.db.write() as c:
            for row in lost:
                mine = sa.and_(jobs.c.id == row.id, jobs.c.lease_by == row.lease_by, jobs.c.state == "leased")
                times = int((row.outcome or {}).get("interrupted", 0)) + 1
                if times > MOST_INTERRUPTIONS:
                    self._bury(c, row.id, f"the service ended {times} times while it was at work")
                    continue
                c.execute(
                    sa.update(jobs)
                    .where(mine)
                    .values(
                        state="waiting",
                        attempts=jobs.c.attempts - 1,
                        lease_until=None,
                        lease_by="",
                        outcome={"interrupted": times},
                    )
                )
        return len(lost)

    def _change(self, c: sa.Connection, job: Job, values: Mapping[str, Any]) -> None:
        """Change a job if it is still the holder's; a lease's name is its own, so that no other can be taken for it."""
        mine = sa.and_(
            jobs.c.id == job.id,
            jobs.c.state == "leased",
            jobs.c.lease_by == job.lease_by,
            jobs.c.attempts == job.attempts,
        )
        if c.execute(sa.update(jobs).where(mine).values(**values)).rowcount != 1:
            raise LeaseLostError(
                f"job {job.id}: its lease ran out or it was cancelled, so that this try counts no more"
            )

    @staticmethod
    def _bury(c: sa.Connection, job_id: int, why: str) -> None:
        values = {"state": "dead", "error": why, "finished_at": time.time(), "lease_until": None, "lease_by": ""}
        c.execute(sa.update(jobs).where(jobs.c.id == job_id).values(**values))

    # What people do

    def cancel(self, job_id: int, *, by: str) -> bool:
        """Cancel a job that waits or is at work; whether there was one. Work under way is told at its next heartbeat."""
        with self.db.write() as c:
            done = cancel_in(c, [job_id], f"cancelled by {by}") == 1
            _refresh(c, job_id)
        return done

    def run_again(self, job_id: int, *, urgency: int | None = None) -> bool:
        """Queue a job again that is done, dead or cancelled, with all its attempts; whether there was one."""
        values: dict[str, Any] = {
            "state": "waiting",
            "attempts": 0,
            "due_at": 0.0,
            "error": "",
            "outcome": None,
            "progress": 0.0,
            "finished_at": None,
            "created_at": time.time(),
        }
        if urgency is not None:
            values["priority"] = urgency
        over = sa.and_(jobs.c.id == job_id, jobs.c.state.in_(("done", "dead", "cancelled")))
        with self.db.write() as c:
            done = c.execute(sa.update(jobs).where(over).values(**values)).rowcount == 1
            kind = _refresh(c, job_id)
            dead = sa.and_(jobs.c.kind == kind, jobs.c.state == "dead")
            left = c.execute(sa.select(jobs.c.id).where(dead).limit(1)).first()
        if done and left is None:
            end_event(self.db, "dead-letter", kind)
        return done

    def raise_urgency(self, study_id: int, urgency: int) -> int:
        """Give the waiting jobs of a study another urgency; how many there were."""
        mine = sa.and_(jobs.c.study_id == study_id, jobs.c.state == "waiting")
        with self.db.write() as c:
            return c.execute(sa.update(jobs).where(mine).values(priority=urgency)).rowcount

    def pause(self, paused: bool, *, by: str) -> None:
        """Stop or go on handing out jobs; those at work are finished."""
        set_switch(self.db, PAUSED, {"paused": paused}, by=by)

    @property
    def paused(self) -> bool:
        """Whether an administrator has paused the queue."""
        with self.db.read() as c:
            return self._paused(c)

    @staticmethod
    def _paused(c: sa.Connection) -> bool:
        value = c.execute(sa.select(switches.c.value).where(switches.c.name == PAUSED)).scalar()
        return bool((value or {}).get("paused"))

    def counts(self) -> dict[str, dict[str, int]]:
        """How many jobs there are, by kind and state."""
        found: dict[str, dict[str, int]] = {}
        with self.db.read() as c:
            for kind, state, number in c.execute(
                sa.select(jobs.c.kind, jobs.c.state, sa.func.count()).group_by(jobs.c.kind, jobs.c.state)
            ):
                found.setdefault(kind, {})[state] = int(number)
        return found


def _refresh(c: sa.Connection, job_id: int) -> str:
    """Keep the worklist true after a person changed a job; the job's kind."""
    row = c.execute(sa.select(jobs.c.kind, jobs.c.study_id).where(jobs.c.id == job_id)).first()
    if row is None:
        return ""
    if row.kind == "answer" and row.study_id is not None:
        refresh_study(c, row.study_id)
    return str(row.kind)


def cancel_in(c: sa.Connection, ids: Iterable[int], why: str) -> int:
    """Cancel jobs that wait or are at work, in a transaction that is being written; how many there were."""
    open_ones = sa.and_(jobs.c.id.in_(list(ids)), jobs.c.state.in_(("waiting", "leased")))
    values = {"state": "cancelled", "error": why, "finished_at": time.time(), "lease_until": None, "lease_by": ""}
    return c.execute(sa.update(jobs).where(open_ones).values(**values)).rowcount


def set_switch(db: Database, name: str, value: Mapping[str, Any], *, by: str) -> None:
    """Turn one of the switches that last beyond a restart."""
    values = {"value": dict(value), "changed_at": time.time(), "changed_by": by}
    with db.write() as c:
        if not c.execute(sa.update(switches).where(switches.c.name == name).values(**values)).rowcount:
            c.execute(sa.insert(switches).values(name=name, **values))


def models_off(db: Database) -> frozenset[str]:
    """Names of the models that an administrator has switched off."""
    with db.read() as c:
        rows = c.execute(sa.select(switches.c.name, switches.c.value).where(switches.c.name.startswith("model:"))).all()
    return frozenset(row.name.removeprefix("model:") for row in rows if row.value.get("on") is False)


def switch_model(db: Database, name: str, on: bool, *, by: str) -> None:
    """Switch a model on or off. Off, it is given no more studies, and what is queued for it waits."""
    set_switch(db, f"model:{name}", {"on": on}, by=by)
