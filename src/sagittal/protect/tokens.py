"""Personal access tokens: how machines and scripts come in, each revocable by itself."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import bindparam, insert, select, update

from sagittal.database import clock
from sagittal.database.connect import Database
from sagittal.database.schema import tokens as table
from sagittal.database.schema import users
from sagittal.errors import ConfigError, ResourceError, ServeError
from sagittal.protect.secret import fingerprint, make_secret
from sagittal.protect.users import User, user_of

#: What every token begins with, so that scanners of code find those that leaked.
PREFIX = "sg_"
#: Most that one user may have at a time.
MOST = 50
#: The time of last use is written no more often than this.
_USED_EVERY_S = 60.0
#: Asked with every request, so it is put together once.
_FIND = (
    select(users, table.c.id.label("token_id"), table.c.expires_at, table.c.used_at, table.c.revoked_at)
    .join(table, table.c.user_id == users.c.id)
    .where(table.c.sha256 == bindparam("sha256"))
)


@dataclass(frozen=True)
class Token:
    """What is shown of a token: everything but the token itself, which nobody has any more.

    Parameters
    ----------
    id, user_id : int
    name : str
    created_at : float
    expires_at, used_at, revoked_at : float, optional
        Seconds since 1970.
    """

    id: int
    user_id: int
    name: str
    created_at: float
    expires_at: float | None = None
    used_at: float | None = None
    revoked_at: float | None = None


def make_token(db: Database, user_id: int, name: str, *, lasts_s: float | None = None) -> tuple[str, Token]:
    """A new token of a user, and what is kept of it; the token itself is told this once.

    Parameters
    ----------
    lasts_s : float, optional
        Seconds until it ends by itself; never where not given.

    Raises
    ------
    ConfigError
        If the name is empty or too long, the time is not one, or the user has too many tokens.
    """
    name = name.strip()
    if not 0 < len(name) <= 128:
        raise ConfigError("a token needs a name of 1 to 128 letters that says what uses it")
    if lasts_s is not None and not 0 < lasts_s < 1e9:
        raise ConfigError("a token lasts for a time above 0, or without an end")
    if sum(token.revoked_at is None for token in list_tokens(db, user_id)) >= MOST:
        raise ConfigError(f"there are {MOST} tokens in use already; revoke one first")
    secret, now = make_secret(PREFIX), clock.now(db)
    values = {
        "user_id": user_id,
        "name": name,
        "sha256": fingerprint(secret),
        "created_at": now,
        "expires_at": None if lasts_s is None else now + lasts_s,
    }
    with db.write() as connection:
        key = connection.execute(insert(table).values(values).returning(table.c.id)).scalar_one()
    return secret, Token(key, user_id, name, now, None if lasts_s is None else now + lasts_s)


def find_token(db: Database, secret: str) -> tuple[User, int] | None:
    """The user of a token and the token's key; ``None`` if it is unknown, over, revoked or the user not in use."""
    if not secret.startswith(PREFIX) or len(secret) > 128:
        return None
    now = clock.now(db)
    with db.read() as connection:
        row = connection.execute(_FIND, {"sha256": fingerprint(secret)}).first()
    if row is None or not row.active or row.revoked_at is not None:
        return None
    if row.expires_at is not None and row.expires_at <= now:
        return None
    if row.used_at is None or now - row.used_at > _USED_EVERY_S:
        # Where nothing can be written, what needs no writing still works: an administrator must see why.
        with suppress(ServeError, ResourceError), db.write() as connection:
            connection.execute(update(table).where(table.c.id == row.token_id).values(used_at=now))
    return user_of(row), row.token_id


def list_tokens(db: Database, user_id: int | None = None) -> list[Token]:
    """Tokens of a user, or of all, the newest first."""
    asked = select(table).order_by(table.c.id.desc())
    if user_id is not None:
        asked = asked.where(table.c.user_id == user_id)
    with db.read() as connection:
        return [
            Token(row.id, row.user_id, row.name, row.created_at, row.expires_at, row.used_at, row.revoked_at)
            for row in connection.execute(asked)
        ]


def revoke_token(db: Database, token_id: int, user_id: int | None = None) -> bool:
    """End a token for good; whether there was one in use.

    Parameters
    ----------
    user_id : int, optional
        Only if it is this user's.
    """
    asked = update(table).where(table.c.id == token_id, table.c.revoked_at.is_(None))
    if user_id is not None:
        asked = asked.where(table.c.user_id == user_id)
    with db.write() as connection:
        ended = bool(connection.execute(asked.values(revoked_at=clock.now(db))).rowcount)
    db.access_changes += 1
    return ended
