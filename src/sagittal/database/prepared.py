"""Statements that are put into words once: SQLAlchemy spends four times as long on a row as SQLite does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from sagittal.database.connect import Database


class Prepared:
    """A statement in the words of one database, run with plain values; those of JSON columns are given as text.

    Parameters
    ----------
    db : Database
    statement
        Of SQLAlchemy; what varies are its :func:`sqlalchemy.bindparam`.
    keys : sequence of str
        Of an INSERT, the columns that are given, all of them: defaults of Python are not filled in.
    """

    def __init__(self, db: Database, statement: Any, keys: Sequence[str] = ()) -> None:
        made = statement.compile(dialect=db.engine.dialect, column_keys=list(keys) or None)
        self._text = str(made)
        self._fixed: dict[str, Any] = dict(made.params)
        self._names: list[str] | None = made.positiontup

    def run(self, c: sa.Connection, values: dict[str, Any]) -> sa.CursorResult[Any]:
        """Run it; its errors are SQLAlchemy's."""
        given = {**self._fixed, **values}
        if self._names is None:
            return c.exec_driver_sql(self._text, given)
        return c.exec_driver_sql(self._text, tuple([given[name] for name in self._names]))
