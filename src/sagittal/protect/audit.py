"""The audit trail: who did what to which study, in records of which each holds the hash of the one before it.

No record can be changed, taken out or put in between without breaking the chain, which :func:`verify` walks. Records are
committed before :meth:`Audit.record` returns; those of many threads share one transaction. Which record answers to which
event of DICOM PS3.15 A.5.3 stands in :data:`EVENTS`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select, text

from sagittal.database import clock
from sagittal.database.connect import Database
from sagittal.database.schema import audit as table
from sagittal.database.schema import marks
from sagittal.errors import ServeError

#: What can stand in a record -> the event of PS3.15 A.5.3 and IHE ATNA that it answers to.
EVENTS: Mapping[str, str] = {
    "start": "Application Activity (start)",
    "stop": "Application Activity (stop)",
    "audit-read": "Audit Log Used",
    "login": "User Authentication (login)",
    "logout": "User Authentication (logout)",
    "refused": "Security Alert (access refused)",
    "receive": "DICOM Instances Transferred",
    "send": "DICOM Instances Transferred",
    "query": "Query",
    "view": "DICOM Instances Accessed",
    "predict": "DICOM Instances Accessed",
    "review": "DICOM Instances Accessed",
    "import": "Data Import",
    "export": "Data Export",
    "delete": "DICOM Study Deleted",
    "steer": "Procedure Record",
    "conflict": "Security Alert",
    "settings": "Security Alert (software configuration)",
    "users": "Security Alert (user security attributes changed)",
    "backup": "Data Export",
    "restore": "Data Import",
}

#: Before the first record.
START = "0" * 64
_HEAD = "audit.head"
_LOCK_KEY = 0x5A617564  # of PostgreSQL's advisory lock; any number that nobody else takes
_PIECE = 2000


@dataclass
class _Entry:
    """Records that wait for their place in the chain."""

    records: Sequence[Mapping[str, Any]]
    done: bool = False
    error: Exception | None = field(default=None)


@dataclass(frozen=True)
class Verdict:
    """What walking the chain found.

    Parameters
    ----------
    records : int
        Records that were walked.
    head : str
        Number and hash of the last sound record, ``"812:9f..."``; kept elsewhere it proves later that nothing before it
        was changed.
    problem : str
        What is wrong, and from which number on; empty if the chain holds.
    """

    records: int
    head: str
    problem: str = ""

    @property
    def sound(self) -> bool:
        """Whether the chain holds."""
        return not self.problem


class Audit:
    """The trail of one database; may be used by many threads, and by several processes on one database.

    Parameters
    ----------
    db : Database
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._waiting: list[_Entry] = []
        self._list = threading.Lock()
        self._turn = threading.Lock()

    def record(
        self,
        actor: str,
        action: str,
        *,
        role: str = "",
        address: str = "",
        study_id: int | None = None,
        outcome: str = "done",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Add one record; it is on the disk when this returns.

        Parameters
        ----------
        actor : str
            Name of the user, AE title of a machine, or ``"sagittal"``.
        action : str
            One of :data:`EVENTS`.
        study_id : int, optional
            Key of the row, never a UID.
        outcome : str
            ``done``, ``refused`` or ``failed``.
        details : mapping, optional
            Small and of JSON's kinds; names of settings, keys of rows. Nothing of a patient.

        Raises
        ------
        ServeError
            If it cannot be written. Whoever asked must then not do what was to be recorded (no fail-open, OWASP ASVS
            5.0 16.5.3).
        """
        self.record_all([make_record(actor, action, role, address, study_id, outcome, details)])

    def record_all(self, records: Sequence[Mapping[str, Any]]) -> None:
        """As :meth:`record`, of records that :func:`make_record` made; all or none of them.

        Raises
        ------
        ServeError
            If they cannot be written.
        """
        entry = _Entry(records)
        with self._list:
            self._waiting.append(entry)
        with self._turn:  # whoever comes first writes for all that wait
            if not entry.done:
                with self._list:
                    batch, self._waiting = self._waiting, []
                self._write(batch)
        if entry.error is not None:
            raise ServeError("the audit trail cannot be written, so nothing was done") from entry.error

    def _write(self, batch: list[_Entry]) -> None:
        error: Exception | None = None
        try:
            with self._db.write() as connection:
                _append(connection, [record for entry in batch for record in entry.records], clock.now(self._db))
        except Exception as trouble:
            error = trouble
        for entry in batch:
            entry.done, entry.error = True, error


def make_record(
    actor: str,
    action: str,
    role: str = "",
    address: str = "",
    study_id: int | None = None,
    outcome: str = "done",
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A record that has no place in the chain yet; see :meth:`Audit.record`."""
    return {
        "actor": actor[:256],
        "role": role,
        "address": address[:64],
        "action": action,
        "study_id": study_id,
        "outcome": outcome,
        "details": json.loads(_canonical(dict(details or {}))),
    }


def _append(connection: Connection, entries: list[Mapping[str, Any]], now: float) -> None:
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time anyway
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
    last = connection.execute(
        select(table.c.number, table.c.at, table.c.hash).order_by(table.c.number.desc()).limit(1)
    ).first()
    number, at, previous = (last.number, last.at, last.hash) if last else (0, 0.0, START)
    at = max(at, now)
    rows = []
    for entry in entries:
        number += 1
        row = {"number": number, "at": at, **entry, "previous": previous}
        previous = row["hash"] = hash_record(row)
        rows.append(row)
    connection.execute(insert(table), rows)
    head = {"number": number, "hash": previous}
    if not connection.execute(marks.update().where(marks.c.name == _HEAD).values(value=head)).rowcount:
        connection.execute(insert(marks).values(name=_HEAD, value=head))


def hash_record(row: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of a record: sorted keys, no spaces, ASCII; without its own hash.

    >>> hash_record({"number": 1, "actor": "a", "hash": "x"}) == hash_record({"actor": "a", "number": 1})
    True
    """
    return hashlib.sha256(_canonical({key: row[key] for key in row if key != "hash"}).encode("ascii")).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def read_records(db: Database, after: int = 0, most: int | None = None) -> Iterator[dict[str, Any]]:
    """The records after a number, in order, read piece by piece.

    Parameters
    ----------
    db : Database
    after : int
        Number of the record after which to begin.
    most : int, optional
        So many at most; all where not given.
    """
    left = most
    while left is None or left > 0:
        count = _PIECE if left is None else min(_PIECE, left)
        with db.read() as connection:
            rows: list[RowMapping] = list(
                connection.execute(select(table).where(table.c.number > after).order_by(table.c.number).limit(count))
                .mappings()
                .all()
            )
        yield from map(dict, rows)
        if len(rows) < count:
            return
        after = rows[-1]["number"]
        left = None if left is None else left - len(rows)


def verify(db: Database, expect: str = "") -> Verdict:
    """Walk the chain from its first record.

    Parameters
    ----------
    db : Database
    expect : str
        A head that was kept elsewhere, ``"812:9f..."``. Without it a trail whose end was cut off by someone who may
        write to the database, and who mended the mark of its head, looks whole.

    Returns
    -------
    Verdict
    """
    number, previous, at = 0, START, 0.0
    wanted, _, wanted_hash = expect.partition(":")
    for row in read_records(db):
        problem = ""
        if row["number"] != number + 1:
            problem = f"record {number + 1} is missing: the next is {row['number']}"
        elif row["previous"] != previous:
            problem = f"record {row['number']} does not continue record {number}"
        elif row["hash"] != hash_record(row):
            problem = f"record {row['number']} was changed"
        elif row["at"] < at:
            problem = f"record {row['number']} is older than record {number}"
        elif wanted == str(row["number"]) and wanted_hash != row["hash"]:
            problem = f"record {row['number']} is not the one that was kept: the trail was made again"
        if problem:
            return Verdict(number, f"{number}:{previous}", problem)
        number, previous, at = row["number"], row["hash"], row["at"]
    with db.read() as connection:
        head = connection.execute(select(marks.c.value).where(marks.c.name == _HEAD)).scalar_one_or_none()
    # A record that was added while this walked is no problem: the mark is then that of a row that is there.
    if head is not None and head != {"number": number, "hash": previous} and not _is_there(db, head):
        problem = f"records after {number} are missing: {head['number']} were written"
        return Verdict(number, f"{number}:{previous}", problem)
    if wanted.isdigit() and int(wanted) > number:
        return Verdict(number, f"{number}:{previous}", f"records after {number} are missing: {wanted} were kept")
    return Verdict(number, f"{number}:{previous}")


def _is_there(db: Database, head: Mapping[str, Any]) -> bool:
    with db.read() as connection:
        found = connection.execute(select(table.c.hash).where(table.c.number == head["number"])).scalar_one_or_none()
    return bool(found == head["hash"])
