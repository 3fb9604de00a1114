"""Links that work once: how the first administrator comes in, and how a new user chooses a password.

There is no default password anywhere; whoever holds a link chooses one.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update

from sagittal.database import clock
from sagittal.database.connect import Database
from sagittal.database.schema import links as table
from sagittal.errors import ConfigError
from sagittal.protect.passwords import check_password
from sagittal.protect.secret import fingerprint, make_secret
from sagittal.protect.users import User, add_user, administrators, change_user, find_user

FIRST, RENEW = "first-administrator", "set-password"
_LASTS_S = {FIRST: 24 * 3600.0, RENEW: 7 * 24 * 3600.0}


@dataclass(frozen=True)
class Link:
    """What a link is for.

    Parameters
    ----------
    purpose : str
        ``first-administrator`` or ``set-password``.
    user : User, optional
        Whose password it sets.
    """

    purpose: str
    user: User | None = None


def make_link(db: Database, user_id: int | None = None) -> str:
    """The secret of a new link; earlier ones for the same end stop working.

    Parameters
    ----------
    user_id : int, optional
        Whose password it sets; where not given, it makes the first administrator.
    """
    purpose = FIRST if user_id is None else RENEW
    secret = make_secret()
    with db.write() as connection:
        connection.execute(delete(table).where(table.c.purpose == purpose, table.c.user_id == user_id))
        connection.execute(
            insert(table).values(
                sha256=fingerprint(secret),
                purpose=purpose,
                user_id=user_id,
                expires_at=clock.now(db) + _LASTS_S[purpose],
            )
        )
    return secret


def find_link(db: Database, secret: str) -> Link | None:
    """What a link is for; ``None`` if it is unknown, used or over."""
    with db.read() as connection:
        row = connection.execute(select(table).where(table.c.sha256 == fingerprint(secret))).first()
    if row is None or row.used_at is not None or row.expires_at <= clock.now(db):
        return None
    if row.purpose == FIRST:
        return Link(FIRST) if administrators(db) == 0 else None
    user = find_user(db, row.user_id)
    return Link(RENEW, user) if user is not None and user.active else None


def use_link(db: Database, secret: str, password: str, name: str = "") -> User:
    """Use a link: make the first administrator, or set a user's password; the user.

    Raises
    ------
    ConfigError
        If the link is unknown, used or over, or the name or password cannot be taken; a link that fails so still works.
    """
    link = find_link(db, secret)
    if link is None:
        raise ConfigError("this link was used, is over or was never made; ask an administrator for a new one")
    check_password(password, link.user.name if link.user else name)
    with db.write() as connection:  # only one of two that come at once gets past here
        taken = connection.execute(
            update(table)
            .where(table.c.sha256 == fingerprint(secret), table.c.used_at.is_(None))
            .values(used_at=clock.now(db))
        ).rowcount
    if not taken:
        raise ConfigError("this link was used just now")
    try:
        if link.user is None:
            return add_user(db, name, "administrator", password=password)
        return change_user(db, link.user.id, password=password)
    except Exception:
        with db.write() as connection:
            connection.execute(update(table).where(table.c.sha256 == fingerprint(secret)).values(used_at=None))
        raise
