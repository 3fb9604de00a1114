"""Rows of the database as the pages' JSON has them: times as ISO 8601 in UTC, urgency as a number, nothing left out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

#: Most that is passed on of a text which a header or a model wrote.
_TEXT = 4096


def iso(seconds: float | None) -> str | None:
    """A time as ISO 8601 in UTC.

    >>> iso(0.0), iso(None)
    ('1970-01-01T00:00:00.000Z', None)
    """
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def study_row(row: Mapping[Any, Any], now: float | None = None) -> dict[str, Any]:
    """A study as the worklist shows it.

    Parameters
    ----------
    row : mapping
        Columns of ``studies``.
    now : float, optional
        Seconds since 1970; the present where left out.
    """
    end = row["answered_at"] if row["answered_at"] is not None else time.time() if now is None else now
    return {
        "id": row["id"],
        "patient_name": row["patient_name"][:_TEXT],
        "patient_id": row["patient_id"][:_TEXT],
        "birth_date": row["birth_date"],
        "sex": row["sex"],
        "accession": row["accession"][:_TEXT],
        "study_date": row["study_date"],
        "study_time": row["study_time"],
        "description": row["description"][:_TEXT],
        "modalities": [one for one in row["modalities"].split("\\") if one],
        "series": row["series_count"],
        "instances": row["instance_count"],
        "status": row["status"],
        "urgency": row["urgency"],
        "waiting_s": round(max(end - row["arrived_at"], 0.0), 1),
        "finding": row["finding"][:_TEXT],
        "confidence": row["confidence"],
        "abstained": row["abstained"],
        "verdict": row["verdict"],
        "arrived_at": iso(row["arrived_at"]),
        "answered_at": iso(row["answered_at"]),
    }


def job_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A job as the pages show it."""
    return {
        "id": row["id"],
        "kind": row["kind"],
        "state": row["state"],
        "priority": row["priority"],
        "attempts": row["attempts"],
        "most_attempts": row["most_attempts"],
        "progress": row["progress"],
        "error": row["error"],
        "study_id": row["study_id"],
        "created_at": iso(row["created_at"]),
        "due_at": iso(row["due_at"]) if row["due_at"] else None,
        "finished_at": iso(row["finished_at"]),
    }
