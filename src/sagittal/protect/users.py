"""Users: who may come in, in which role, and by which way."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import DBAPIError

from sagittal.database import clock
from sagittal.database.connect import Database, broke_a_rule
from sagittal.database.schema import sessions, tokens
from sagittal.database.schema import users as table
from sagittal.errors import ConfigError, DataError
from sagittal.protect.passwords import check_password, hash_password, match_password
from sagittal.protect.roles import Permission, check_role, permissions

_NAME = re.compile(r"[^\W_][\w.@+ -]{0,126}[\w.@+-]|[^\W_]")


@dataclass(frozen=True)
class User:
    """Someone, or a machine, that may come in.

    Parameters
    ----------
    id : int
    name : str
    role : str
        One of :data:`sagittal.protect.roles.ROLES`.
    language : str
        ``en``, ``zh`` or empty for the page's own.
    active : bool
    has_password : bool
    issuer : str
        Of the identity provider that vouches for the user; empty for local ones.
    created_at : float
        Seconds since 1970.
    """

    id: int
    name: str
    role: str
    language: str = ""
    active: bool = True
    has_password: bool = False
    issuer: str = ""
    created_at: float = 0.0

    @property
    def permissions(self) -> frozenset[Permission]:
        """What the role allows."""
        return permissions(self.role)


def user_of(row: Any) -> User:
    """A user from a row of the table."""
    return User(row.id, row.name, row.role, row.language, row.active, bool(row.password), row.issuer, row.created_at)


def list_users(db: Database) -> list[User]:
    """Every user by name, those who were put out of use too."""
    with db.read() as connection:
        return [user_of(row) for row in connection.execute(select(table).order_by(table.c.name))]


def find_user(db: Database, user_id: int) -> User | None:
    """One user by key."""
    with db.read() as connection:
        row = connection.execute(select(table).where(table.c.id == user_id)).first()
    return user_of(row) if row else None


def find_name(db: Database, name: str) -> User | None:
    """One user by name, in whichever case it was written."""
    with db.read() as connection:
        row = connection.execute(select(table).where(table.c.name == plain_name(name))).first()
    return user_of(row) if row else None


def add_user(
    db: Database, name: str, role: str, *, password: str = "", language: str = "", issuer: str = "", subject: str = ""
) -> User:
    """Add a user, with a password or to be let in by a link, a token or an identity provider.

    Raises
    ------
    ConfigError
        If the name is taken or cannot be one, the role is unknown or the password weak.
    """
    name = plain_name(name)
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "a user's name has 1 to 128 letters, digits or . _ - + @ and single spaces, and begins with a letter or digit"
        )
    role = check_role(role)
    if password:
        check_password(password, name)
    values = {
        "name": name,
        "role": role,
        "password": hash_password(password) if password else "",
        "language": language,
        "issuer": issuer,
        "subject": subject,
        "active": True,
        "created_at": clock.now(db),
    }
    try:
        with db.write() as connection:
            key = connection.execute(insert(table).values(values).returning(table.c.id)).scalar_one()
    except DBAPIError as error:
        if not broke_a_rule(error):
            raise
        raise ConfigError(f"there is a user '{name}' already; take another name") from error
    found = find_user(db, key)
    if found is None:
        raise DataError(f"user {key} was taken out while being added")
    return found


def change_user(
    db: Database,
    user_id: int,
    *,
    role: str | None = None,
    active: bool | None = None,
    language: str | None = None,
    password: str | None = None,
) -> User:
    """Change a user; a new role or password, or being put out of use, ends all the user's sessions.

    Raises
    ------
    ConfigError
        If there is no such user or role, the password is weak, or no administrator would be left.
    """
    user = find_user(db, user_id)
    if user is None:
        raise ConfigError(f"there is no user {user_id}")
    values: dict[str, Any] = {}
    if role is not None and role != user.role:
        values["role"] = check_role(role)
    if active is not None and active != user.active:
        values["active"] = active
    if language is not None:
        values["language"] = language
    if password is not None:
        check_password(password, user.name)
        values["password"] = hash_password(password)
    with db.write() as connection:
        loses = (
            user.role == "administrator"
            and user.active
            and (values.get("role", user.role) != "administrator" or not values.get("active", True))
        )
        if loses and not _other_administrator(connection, user_id):
            raise ConfigError("this is the last administrator; make another one first")
        if values:
            connection.execute(update(table).where(table.c.id == user_id).values(values))
        if values.keys() & {"role", "active", "password"}:
            connection.execute(delete(sessions).where(sessions.c.user_id == user_id))
        if values.get("active") is False:
            connection.execute(
                update(tokens)
                .where(tokens.c.user_id == user_id, tokens.c.revoked_at.is_(None))
                .values(revoked_at=clock.now(db))
            )
    db.access_changes += 1
    changed = find_user(db, user_id)
    if changed is None:
        raise ConfigError(f"there is no user {user_id}")
    return changed


def log_in(db: Database, name: str, password: str) -> User | None:
    """The user of this name and password; ``None`` for every other pair, after the same time."""
    plain = plain_name(name)
    with db.read() as connection:
        row = connection.execute(select(table).where(table.c.name == plain)).first()
    usable = row is not None and row.active and row.password
    match = match_password(row.password if row is not None and usable else "", password)
    if row is None or not match.right:
        return None
    if match.outdated:
        renewed = hash_password(password)
        with db.write() as connection:
            connection.execute(
                update(table).where(table.c.id == row.id, table.c.password == row.password).values(password=renewed)
            )
    return user_of(row)


def plain_name(name: str) -> str:
    """A name as it is kept: lower case, single spaces.

    >>> plain_name("  Ada  Lovelace ")
    'ada lovelace'
    """
    return " ".join(name.split()).lower()


def administrators(db: Database) -> int:
    """How many administrators are in use."""
    with db.read() as connection:
        return int(
            connection.execute(
                select(func.count()).where(table.c.role == "administrator", table.c.active.is_(True))
            ).scalar_one()
        )


def _other_administrator(connection: Connection, user_id: int) -> bool:
    """Whether another administrator is in use; those rows stay locked, so that two cannot leave at once."""
    rows = connection.execute(
        select(table.c.id).where(table.c.role == "administrator", table.c.active.is_(True)).with_for_update()
    )
    return any(row.id != user_id for row in rows)
