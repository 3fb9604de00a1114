"""What an administrator should know: the PACS is away, the disk is full, a file is damaged. One row a trouble, counted."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa

from sagittal.database.schema import events

if TYPE_CHECKING:
    from sagittal.database.connect import Database

Level = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Event:
    """A trouble, or something that happened.

    Attributes
    ----------
    id : int
    code : str
        Such as ``"disk-full"``: what programs look at.
    about : str
        The destination, model or folder that it is about; empty for the service as a whole.
    level : {"info", "warning", "error"}
    message : str
        What an administrator reads: what happened, and what to do. Holds nothing that names a patient.
    first_at, last_at : float
        Seconds since 1970 in UTC.
    count : int
        How often it was reported.
    over_at : float or None
        When it ended.
    """

    id: int
    code: str
    about: str
    level: str
    message: str
    first_at: float
    last_at: float
    count: int
    over_at: float | None


def report_event(db: Database, code: str, level: Level, message: str, about: str = "") -> None:
    """Report a trouble. The same code about the same thing is one row until :func:`end_event`, and counted.

    Not inside of a transaction that writes: use :func:`report` there.
    """
    with db.write() as c:
        report(c, code, level, message, about)


def report(c: sa.Connection, code: str, level: Level, message: str, about: str = "", *, over: bool = False) -> None:
    """As :func:`report_event`, in a transaction that is being written; `over` where the trouble has passed already."""
    at = time.time()
    changed = c.execute(
        sa.update(events)
        .where(events.c.code == code, events.c.about == about, events.c.over_at.is_(None))
        .values(level=level, message=message, last_at=at, count=events.c.count + 1)
    )
    if not changed.rowcount:
        c.execute(
            sa.insert(events).values(
                code=code, about=about, level=level, message=message, first_at=at, last_at=at, count=1
            )
        )
    if over:
        c.execute(sa.update(events).where(_open(code, about)).values(over_at=at))


def end_event(db: Database, code: str, about: str = "") -> bool:
    """Say that a trouble is over; whether there was one."""
    with db.read() as c:  # mostly there is none, and looking costs no flush
        found = c.execute(sa.select(events.c.id).where(_open(code, about)).limit(1)).first()
    if found is None:
        return False
    with db.write() as c:
        c.execute(sa.update(events).where(_open(code, about)).values(over_at=time.time()))
    return True


def _open(code: str, about: str) -> sa.ColumnElement[bool]:
    return sa.and_(events.c.code == code, events.c.about == about, events.c.over_at.is_(None))


def open_events(db: Database) -> list[Event]:
    """The troubles that are not over, the latest first."""
    with db.read() as c:
        found = c.execute(sa.select(events).where(events.c.over_at.is_(None)).order_by(events.c.last_at.desc()))
        return [Event(**row) for row in found.mappings()]


def recent_events(db: Database, limit: int = 100) -> list[Event]:
    """Events of any kind, the latest first, at most `limit` of them."""
    with db.read() as c:
        found = c.execute(sa.select(events).order_by(events.c.last_at.desc()).limit(limit))
        return [Event(**row) for row in found.mappings()]
