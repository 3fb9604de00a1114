"""Sessions: who is logged in on which browser, until they leave, stay away or a day's work is over."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, insert, or_, select, update

from sagittal.database import clock
from sagittal.database.connect import Database
from sagittal.database.schema import sessions as table
from sagittal.database.schema import users
from sagittal.errors import ResourceError, ServeError
from sagittal.protect.secret import fingerprint, make_secret
from sagittal.protect.users import User, user_of

#: The time last seen is written no more often than this.
_SEEN_EVERY_S = 60.0
#: Asked with every request, so it is put together once.
_FIND = (
    select(users, table.c.csrf, table.c.seen_at, table.c.expires_at)
    .join(table, table.c.user_id == users.c.id)
    .where(table.c.sha256 == bindparam("sha256"))
)


@dataclass(frozen=True)
class Session:
    """One browser that is logged in.

    Parameters
    ----------
    user : User
    csrf : str
        What each request that changes something must send in ``X-CSRF-Token``.
    """

    user: User
    csrf: str


def start_session(db: Database, user_id: int, *, most_s: float, previous: str = "") -> tuple[str, str]:
    """Begin a session: the cookie's value and the CSRF token, both new at each login (session fixation, ASVS 7.2.4).

    Parameters
    ----------
    most_s : float
        Seconds after which it ends, however busy.
    previous : str
        Cookie that the browser came with; that session ends.
    """
    secret, csrf, now = make_secret(), make_secret(), clock.now(db)
    with db.write() as connection:
        if previous:
            connection.execute(delete(table).where(table.c.sha256 == fingerprint(previous)))
        connection.execute(
            insert(table).values(
                sha256=fingerprint(secret),
                user_id=user_id,
                csrf=csrf,
                created_at=now,
                seen_at=now,
                expires_at=now + most_s,
            )
        )
    return secret, csrf


def find_session(db: Database, secret: str, *, idle_s: float) -> Session | None:
    """The session of a cookie; ``None`` if it is unknown or over, or the user not in use.

    Parameters
    ----------
    idle_s : float
        Seconds without a request after which it is over.
    """
    if not secret or len(secret) > 128:
        return None
    now = clock.now(db)
    with db.read() as connection:
        row = connection.execute(_FIND, {"sha256": fingerprint(secret)}).first()
    if row is None or not row.active or row.expires_at <= now or row.seen_at + idle_s <= now:
        return None
    if now - row.seen_at > _SEEN_EVERY_S:
        # Where nothing can be written, what needs no writing still works: an administrator must see why.
        with suppress(ServeError, ResourceError), db.write() as connection:
            connection.execute(update(table).where(table.c.sha256 == fingerprint(secret)).values(seen_at=now))
    return Session(user_of(row), row.csrf)


def end_session(db: Database, secret: str) -> None:
    """End the session of a cookie."""
    with db.write() as connection:
        connection.execute(delete(table).where(table.c.sha256 == fingerprint(secret)))


def end_sessions(db: Database, user_id: int) -> int:
    """End all sessions of a user; how many there were."""
    with db.write() as connection:
        return int(connection.execute(delete(table).where(table.c.user_id == user_id)).rowcount)


def sweep_sessions(db: Database, *, idle_s: float) -> int:
    """Take out sessions that are over; how many there were."""
    now = clock.now(db)
    with db.write() as connection:
        return int(
            connection.execute(
                delete(table).where(or_(table.c.expires_at <= now, table.c.seen_at <= now - idle_s))
            ).rowcount
        )
