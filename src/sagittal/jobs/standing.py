"""Where a study stands, as the worklist shows it: made anew from its jobs and results whenever one of them changes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from sagittal.database.schema import jobs, results, series, studies

#: What the worklist shows where several models answer: the first of these that any of them has.
_ORDER = ("failed", "refused", "abstained", "answered")


def refresh_study(c: sa.Connection, study_id: int, *, why: str = "") -> str:
    """Set status, finding, confidence and time of the answer of a study; in a transaction that is being written.

    Only models that answer count; those that watch are not seen.

    Parameters
    ----------
    c : sqlalchemy.Connection
    study_id : int
    why : str
        Why no model answers, for a study that has neither jobs nor results.

    Returns
    -------
    str
        Its status, one of ``schema.STATUS``.
    """
    current = (
        c.execute(
            sa.select(results)
            .where(results.c.study_id == study_id, results.c.role == "answers", results.c.replaced_by.is_(None))
            .order_by(results.c.model, results.c.id.desc())
        )
        .mappings()
        .all()
    )
    states = _last_jobs(c, study_id)
    status = _status(states, [row["state"] for row in current])
    coming = sa.and_(series.c.study_id == study_id, series.c.complete_at.is_(None))
    if c.execute(sa.select(series.c.id).where(coming).limit(1)).first() is not None:
        status = "receiving"  # what was found before is still told
    values: dict[str, Any] = {"status": status, "changed_at": time.time()}  # open pages look for what changed
    if current:
        confident = [row["confidence"] for row in current if row["confidence"] is not None]
        values |= {
            "finding": "; ".join(_line(dict(row), several=len(current) > 1) for row in current),
            "confidence": min(confident) if confident else None,
            "abstained": any(row["state"] != "answered" for row in current),
            "answered_at": max(row["created_at"] for row in current),
        }
    elif status == "no-model":
        values |= {"finding": why, "confidence": None, "abstained": False, "answered_at": None}
    elif status == "failed":
        values |= {"finding": states.get("dead", states.get("cancelled", "")), "abstained": False}
    c.execute(sa.update(studies).where(studies.c.id == study_id).values(**values))
    return status


def _last_jobs(c: sa.Connection, study_id: int) -> dict[str, str]:
    """Of each answering model its last job: states -> errors. Earlier ones were about images that the study had before."""
    rows = c.execute(
        sa.select(jobs.c.state, jobs.c.error, jobs.c.payload)
        .where(jobs.c.study_id == study_id, jobs.c.kind == "answer")
        .order_by(jobs.c.id)
    ).all()
    last = {row.payload.get("checksum"): row for row in rows if row.payload.get("role", "answers") == "answers"}
    return {row.state: row.error for row in last.values()}


def _status(states: Mapping[str, str], found: Sequence[str]) -> str:
    if "leased" in states:
        return "running"
    if "waiting" in states:
        return "waiting"
    failed = "dead" in states or ("cancelled" in states and not found)
    reached = {*found, *(["failed"] if failed else [])}
    return next((state for state in _ORDER if state in reached), "no-model")


def _line(row: Mapping[str, Any], *, several: bool) -> str:
    text = row["summary"] or row["reason"]
    return f"{row['model']}: {text}" if several else str(text)
