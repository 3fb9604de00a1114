"""Jobs of the kind "deliver": a result to one destination, again and again until it is there.

A destination that is away is asked by one job at a time, after a while that grows to some minutes; the others wait without
using up their tries. When it answers again, all of them go at once, and the trouble in the administrator's list is over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.database.connect import Database
from sagittal.database.events import end_event, report, report_event
from sagittal.database.schema import deliveries, instances, jobs, objects, results, series
from sagittal.deliver.destinations import Destination, DicomDestination
from sagittal.deliver.outcome import DeliveryError, Sent
from sagittal.deliver.send import send
from sagittal.jobs.queue import Queue
from sagittal.jobs.supervise import Again, Work
from sagittal.write.equipment import derive_uids
from sagittal.write.service_objects import KINDS, ObjectFile

#: Seconds until a destination that is away is asked again: at first, and at most.
FIRST_S, MOST_S = 5.0, 300.0
#: Seconds that a promised confirmation is waited for before it is asked for again, and how often.
CONFIRM_S, MOST_ASKED = 3600.0, 24
#: Why a delivery failed -> code of the event.
_CODES = {"away": "destination-away", "resources": "destination-full", "refused": "destination-refuses"}
#: Sends the objects of a result; :func:`sagittal.deliver.send.send`.
Send = Callable[..., Sent]


@dataclass
class _Line:
    """What is known of a destination: whether it is away, and when it is asked next."""

    failures: int = 0
    until: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class DeliverJob:
    """Sends results.

    Parameters
    ----------
    queue : Queue
    archive : Archive
    destinations : mapping of name to Destination
    rng : numpy.random.Generator
    send : callable
    first_s, most_s : float
        Seconds until a destination that is away is asked again.
    """

    def __init__(
        self,
        queue: Queue,
        archive: Archive,
        destinations: Mapping[str, Destination],
        *,
        rng: np.random.Generator,
        send: Send = send,
        first_s: float = FIRST_S,
        most_s: float = MOST_S,
    ) -> None:
        self._queue, self._archive, self._destinations = queue, archive, dict(destinations)
        self._rng, self._send, self._first_s, self._most_s = rng, send, first_s, most_s
        self._lines = {name: _Line() for name in self._destinations}

    def __call__(self, work: Work) -> Mapping[str, Any] | None:
        """Send one result to one destination."""
        job = work.job
        name = str(job.payload["destination"])
        destination = self._destinations.get(name)
        row = self._row(int(job.payload["delivery"]))
        if row is None or row["state"] == "confirmed":
            return {"state": "gone" if row is None else "confirmed"}
        if destination is None:
            self._mark(row["id"], state="failed", error="the service has no such destination any more")
            raise Again("the service has no such destination any more", again=False)
        if row["replaced_by"] is not None:
            self._mark(row["id"], state="failed", error="replaced: the study has other images now")
            return {"state": "replaced"}
        line = self._lines[name]
        wait, probing = line.until - time.monotonic(), line.failures > 0
        if wait > 0 or (probing and not line.lock.acquire(blocking=False)):
            pause = max(wait, 1.0)
            raise Again(f"{name} is away", counts=False, wait_s=pause * float(1 + 0.2 * self._rng.random()))
        try:
            sent = self._deliver(work, row, destination)
        except DeliveryError as error:
            self._failed(line, row["id"], name, error)
            raise Again(str(error), again=error.retry) from error
        finally:
            if probing:
                line.lock.release()
        self._arrived(line, row["id"], name, sent)
        return {"state": "confirmed" if sent.confirmed else "sent", "warnings": list(sent.warnings)}

    def _row(self, number: int) -> dict[str, Any] | None:
        with self._queue.db.read() as c:
            found = (
                c.execute(
                    sa.select(deliveries, results.c.replaced_by, results.c.checksum, results.c.inputs)
                    .join(results, results.c.id == deliveries.c.result_id)
                    .where(deliveries.c.id == number)
                )
                .mappings()
                .first()
            )
        return None if found is None else dict(found)

    def _deliver(self, work: Work, row: Mapping[str, Any], destination: Destination) -> Sent:
        files = object_files(self._queue.db, self._archive, int(row["result_id"]))
        transaction = ""
        if isinstance(destination, DicomDestination) and destination.confirm:
            # Known before it is asked for: the answer may be faster than our own writing.
            seed = f"{row['checksum']} {row['inputs']} {row['id']} {work.job.lease_by}"
            transaction = derive_uids(seed)("commitment")
            self._mark(row["id"], transaction_uid=transaction)
        return self._send(files, destination, key=f"result-{row['result_id']}", transaction_uid=transaction)

    def _mark(self, number: int, **values: Any) -> None:
        with self._queue.db.write() as c:
            c.execute(sa.update(deliveries).where(deliveries.c.id == number).values(**values))

    def _failed(self, line: _Line, number: int, name: str, error: DeliveryError) -> None:
        values: dict[str, Any] = {"error": str(error)}
        if not error.retry:
            values["state"] = "failed"
        self._mark(number, **values)
        if error.trouble in {"away", "resources"}:
            line.failures += 1
            pause = min(self._first_s * 2.0 ** min(line.failures - 1, 20), self._most_s)
            line.until = time.monotonic() + pause * float(self._rng.uniform(0.5, 1.0))
        code = _CODES.get(error.trouble, "delivery-failed")
        again = "It is tried again." if error.retry else "It is not tried again: look at the list of jobs."
        report_event(
            self._queue.db,
            code,
            "warning" if error.retry else "error",
            f"{error}. {again}".replace("..", "."),
            about=name,
        )

    def _arrived(self, line: _Line, number: int, name: str, sent: Sent) -> None:
        now = time.time()
        with self._queue.db.write() as c:
            # Its confirmation may have come already, by another way.
            state = c.execute(sa.select(deliveries.c.state).where(deliveries.c.id == number)).scalar()
            values: dict[str, Any] = {"sent_at": now, "error": ""}
            if state != "confirmed":
                values["state"] = "confirmed" if sent.confirmed else "sent"
                values["confirmed_at"] = now if sent.confirmed else None
            c.execute(sa.update(deliveries).where(deliveries.c.id == number).values(**values))
        if line.failures:
            line.failures, line.until = 0, 0.0
            self.hurry(name)
        for code in (*_CODES.values(), "delivery-failed"):
            end_event(self._queue.db, code, about=name)

    def hurry(self, name: str) -> int:
        """Send at once what waits for a destination that answers again; how many there were."""
        line = self._lines.get(name)
        if line is not None:
            line.failures, line.until = 0, 0.0
        with self._queue.db.write() as c:
            waiting = sa.and_(jobs.c.kind == "deliver", jobs.c.state == "waiting", jobs.c.due_at > 0)
            rows = c.execute(sa.select(jobs.c.id, jobs.c.payload).where(waiting).order_by(jobs.c.id).limit(5000)).all()
            mine = [row.id for row in rows if row.payload.get("destination") == name]
            for first in range(0, len(mine), 500):
                c.execute(sa.update(jobs).where(jobs.c.id.in_(mine[first : first + 500])).values(due_at=0.0))
        return len(mine)


def object_files(db: Database, archive: Archive, result_id: int) -> list[ObjectFile]:
    """The objects of a result as files, as destinations take them."""
    with db.read() as c:
        rows = c.execute(
            sa.select(
                objects.c.kind,
                objects.c.path,
                objects.c.media_type,
                objects.c.sha256,
                objects.c.size,
                instances.c.path.label("place"),
                instances.c.sop_instance_uid,
                instances.c.sop_class_uid,
                series.c.series_uid,
            )
            .select_from(objects)
            .outerjoin(instances, instances.c.id == objects.c.instance_id)
            .outerjoin(series, series.c.id == instances.c.series_id)
            .where(objects.c.result_id == result_id)
            .order_by(objects.c.id)
        ).all()
    made = [
        ObjectFile(
            kind=row.kind,
            path=archive.path_of(row.place or row.path),
            media_type=row.media_type,
            sop_instance_uid=row.sop_instance_uid or "",
            sop_class_uid=row.sop_class_uid or "",
            series_instance_uid=row.series_uid or "",
            sha256=row.sha256,
            size=row.size,
        )
        for row in rows
        if row.kind in KINDS
    ]
    return sorted(made, key=lambda one: list(KINDS).index(one.kind))


def confirm_delivery(db: Database, transaction_uid: str, safe: bool) -> bool:
    """Note what a node says about a result that it was asked to keep; whether the transaction was one of ours.

    What it does not commit itself to is sent again.

    Parameters
    ----------
    db : Database
    transaction_uid : str
        Of the storage commitment.
    safe : bool
        Whether it commits itself to all objects.
    """
    if not transaction_uid:
        return False
    with db.write() as c:
        mine = deliveries.c.transaction_uid == transaction_uid
        row = c.execute(sa.select(deliveries.c.id, deliveries.c.destination).where(mine)).first()
        if row is None:
            return False
        if safe:
            values: dict[str, Any] = {"state": "confirmed", "confirmed_at": time.time(), "error": ""}
        else:
            values = {"state": "waiting", "error": "the destination does not commit itself to all objects"}
            _again(c, row.id)
        c.execute(sa.update(deliveries).where(mine).values(**values))
        if not safe:
            message = (
                f"{row.destination}: it does not commit itself to the objects that it was sent. They are sent again."
            )
            report(c, "delivery-failed", "warning", message, row.destination)
    return True


def chase_confirmations(db: Database, destinations: Sequence[Destination], *, after_s: float = CONFIRM_S) -> int:
    """Ask again for confirmations that were promised and have not come; how many."""
    asking = [one.name for one in destinations if getattr(one, "confirm", False)]
    late = sa.and_(
        deliveries.c.state == "sent", deliveries.c.destination.in_(asking), deliveries.c.sent_at < time.time() - after_s
    )
    with db.read() as c:
        if c.execute(sa.select(deliveries.c.id).where(late).limit(1)).first() is None:
            return 0
    count = 0
    with db.write() as c:
        for row in c.execute(sa.select(deliveries.c.id, deliveries.c.destination).where(late).limit(500)).all():
            if _again(c, row.id):
                count += 1
    return count


def _again(c: sa.Connection, delivery: int) -> bool:
    """Queue a delivery again that is done; false where it was asked for too often."""
    job = sa.and_(jobs.c.key == f"deliver:{delivery}", jobs.c.state == "done")
    row = c.execute(sa.select(jobs.c.id, jobs.c.attempts).where(job)).first()
    if row is None or row.attempts >= MOST_ASKED:
        return False
    values = {"state": "waiting", "due_at": 0.0, "finished_at": None, "created_at": time.time()}
    c.execute(sa.update(jobs).where(jobs.c.id == row.id).values(**values))
    return True
