"""Storage commitment: an archive says in writing which objects it keeps safe. Standard: PS3.4 J, PS3.7 10.1.

A request is in the database before it is answered, and stays there until the peer has taken our report. What is
reported was looked at then: the object's row, its file, and the file's bytes, whose hash is computed anew.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.archive.refused import Refused
from sagittal.database import clock
from sagittal.database.events import end_event, report_event
from sagittal.database.schema import commitments, instances
from sagittal.errors import ConfigError, ResourceError, ServeError
from sagittal.node.commitment_data import Item, Outcome
from sagittal.node.dimse import CLASS_INSTANCE_CONFLICT, NO_SUCH_INSTANCE, PROCESSING_FAILURE

logger = logging.getLogger(__name__)

#: Reports that are tried of one request, and seconds before the second; each further wait is twice as long, up to an hour.
MOST_ATTEMPTS, FIRST_WAIT_S, MOST_WAIT_S = 12, 15.0, 3600.0
_PIECE = 500

Report = Callable[[str, Outcome], None]


class Pending:
    """A request that was kept and is not answered; `outcome` is there once its objects were looked at."""

    def __init__(self, row: int, peer: str, transaction: str, items: Sequence[Item], *, held: bool) -> None:
        self.row, self.peer, self.transaction, self.items = row, peer, transaction, tuple(items)
        self.outcome: Outcome | None = None
        self.held = held  # by the association on which it came
        self.since = time.monotonic()
        self.attempts = 0


class Commitments:
    """Requests of peers, kept until they are answered.

    Parameters
    ----------
    db : Database
    folder : Path
        The archive's: rows name files below it.
    report : callable or None
        Reports an outcome to a peer by its title on an association of its own. It raises :class:`ServeError` or OSError
        where that fails and :class:`ConfigError` where nobody knows where the peer listens. None: peers hear only on the association on which they asked.
    on_committed : callable
        Told of the instances (their UIDs) that a peer wants to be safe, as far as they are here: it has sent them all.
    wait_s : float
        Seconds before a report that failed is tried again.
    """

    def __init__(
        self,
        archive: Archive,
        *,
        report: Report | None = None,
        on_committed: Callable[[Sequence[str]], object] = lambda _uids: None,
        wait_s: float = FIRST_WAIT_S,
    ) -> None:
        self._archive, self._db = archive, archive.db
        self._report, self._on_committed, self._wait_s = report, on_committed, wait_s
        self._due: list[tuple[float, int, Pending]] = []  # a heap: when, a number that keeps the order, what
        self._count = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take up what was left unanswered, and go on in a thread."""
        with self._db.read() as c:
            rows = c.execute(
                sa.select(commitments).where(
                    commitments.c.answered_at.is_(None), commitments.c.attempts < MOST_ATTEMPTS
                )
            ).mappings()
            for row in rows:
                pending = Pending(
                    row["id"], row["peer"], row["transaction_uid"], [tuple(i) for i in row["items"]], held=False
                )
                pending.attempts = row["attempts"]
                self._put(pending, 0.0)
        self._thread = threading.Thread(target=self._run, name="commitments", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; what is unanswered stays in the database."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def ask(self, peer: str, transaction: str, items: Sequence[Item]) -> Pending:
        """Keep a request; it is on the disk when this returns. The association that asked may report it.

        The same request again, from a peer that missed the answer, is looked at again.

        Raises
        ------
        Refused
            If the transaction's UID stands for another request.
        ServeError, ResourceError
            If it cannot be kept now.
        """
        listed = [list(item) for item in items]
        with self._db.write() as c:
            found = c.execute(
                sa.select(commitments).where(commitments.c.transaction_uid == transaction)
            ).mappings().first()  # fmt: skip
            if found is None:
                values = {
                    "transaction_uid": transaction,
                    "peer": peer,
                    "items": listed,
                    "asked_at": clock.now(self._db),
                }
                row = c.execute(sa.insert(commitments).values(values).returning(commitments.c.id)).scalar_one()
            elif found["peer"] == peer and found["items"] == listed:
                row = found["id"]
                c.execute(sa.update(commitments).where(commitments.c.id == row).values(answered_at=None, attempts=0))
            else:
                raise Refused("mismatch", "the transaction's UID was used before")
        pending = Pending(row, peer, transaction, items, held=True)
        self._put(pending, 0.0)
        return pending

    def close(self, pending: Pending) -> None:
        """The peer has taken the report."""
        with self._db.write() as c:
            c.execute(
                sa.update(commitments).where(commitments.c.id == pending.row).values(answered_at=clock.now(self._db))
            )
        end_event(self._db, "commitment", pending.peer)

    def hand_back(self, pending: Pending) -> None:
        """The association could not report it: another one will be tried."""
        with self._changed:
            looked_at = pending.held and pending.outcome is not None
            pending.held = False
        if looked_at:
            self._put(pending, 0.0)

    # The thread -------------------------------------------------------------------------------------------------------

    def _put(self, pending: Pending, wait_s: float) -> None:
        with self._changed:
            self._count += 1
            heapq.heappush(self._due, (time.monotonic() + wait_s, self._count, pending))
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopping and (not self._due or self._due[0][0] > time.monotonic()):
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self._stopping:
                    return
                pending = heapq.heappop(self._due)[2]
            try:
                self._advance(pending)
            except (ServeError, ResourceError, OSError, sa.exc.SQLAlchemyError) as error:
                logger.warning("commitment %d waits: %s", pending.row, type(error).__name__)
                self._put(pending, self._wait_s)

    def _advance(self, pending: Pending) -> None:
        """Look at the objects, then report unless the association does."""
        outcome = self._look(pending)
        self._on_committed([instance for _, instance in outcome.safe])
        with self._changed:
            pending.outcome = outcome
            held = pending.held
        if held or self._report is None:
            return  # the association reports it, or hands it back
        pending.attempts += 1
        with self._db.write() as c:
            c.execute(sa.update(commitments).where(commitments.c.id == pending.row).values(attempts=pending.attempts))
        try:
            self._report(pending.peer, outcome)
        except (ServeError, OSError):
            self._try_again(pending)
        except ConfigError:
            pending.attempts = MOST_ATTEMPTS  # nobody knows where it listens: more attempts would not find it either
            self._try_again(pending)
        else:
            self.close(pending)

    def _try_again(self, pending: Pending) -> None:
        last = pending.attempts >= MOST_ATTEMPTS
        report_event(
            self._db,
            "commitment",
            "error" if last else "warning",
            "A peer that asked for storage commitment could not be told the answer"
            + (" and is not tried any more." if last else "; it is tried again.")
            + " Give its address and port in [dicom] peers, and see that it listens there.",
            pending.peer,
        )
        if not last:
            self._put(pending, min(self._wait_s * 2.0 ** (pending.attempts - 1), MOST_WAIT_S))

    def _look(self, pending: Pending) -> Outcome:
        """Which objects are safe."""
        rows: dict[str, Any] = {}
        uids = sorted({instance for _, instance in pending.items})
        for at in range(0, len(uids), _PIECE):
            with self._db.read() as c:
                found = c.execute(
                    sa.select(instances).where(instances.c.sop_instance_uid.in_(uids[at : at + _PIECE]))
                ).mappings()
                rows |= {row["sop_instance_uid"]: row for row in found}
        safe, failed = [], []
        for uid, instance in pending.items:
            reason = self._failure(uid, rows.get(instance))
            if reason:
                failed.append((uid, instance, reason))
            else:
                safe.append((uid, instance))
        return Outcome(pending.transaction, tuple(safe), tuple(failed))

    def _failure(self, uid: str, row: Any) -> int:
        """Why an object is not safe; 0 if it is."""
        if row is None:
            return NO_SUCH_INSTANCE
        if row["sop_class_uid"] != uid:
            return CLASS_INSTANCE_CONFLICT
        if row["damage"]:
            return PROCESSING_FAILURE
        try:
            with self._archive.path_of(row["path"]).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ServeError):
            digest = ""
        return 0 if digest == row["sha256"] else PROCESSING_FAILURE
