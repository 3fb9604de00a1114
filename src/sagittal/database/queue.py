"""Putting work into the queue, in the transaction that made it necessary: both are kept, or neither."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from sagittal.database.schema import jobs


def enqueue(
    c: sa.Connection,
    kind: str,
    key: str,
    payload: Mapping[str, Any],
    *,
    priority: int = 0,
    study_id: int | None = None,
    due_at: float | None = None,
    most_attempts: int = 5,
) -> int | None:
    """Queue a job, once for each key.

    Parameters
    ----------
    c : sqlalchemy.Connection
        Of ``db.write()``.
    kind : str
        choose, answer, deliver, fetch, upload.
    key : str
        What it is about: a second job of the same key is not queued, whatever became of the first.
    payload : mapping
        What JSON can hold: keys of rows, never header text.
    priority : int
        Higher first.
    study_id : int, optional
    due_at : float, optional
        Not before this time of :func:`sagittal.database.clock.now`; at once where left out.
    most_attempts : int

    Returns
    -------
    int or None
        The job's row; ``None`` if there is one of this key already.
    """
    insert = sqlite.insert if c.dialect.name == "sqlite" else postgresql.insert
    statement = (
        insert(jobs)
        .values(
            kind=kind,
            key=key,
            payload=dict(payload),
            priority=priority,
            study_id=study_id,
            created_at=time.time(),
            due_at=0.0 if due_at is None else due_at,
            most_attempts=most_attempts,
        )
        .on_conflict_do_nothing()
        .returning(jobs.c.id)
    )
    return c.execute(statement).scalar()
