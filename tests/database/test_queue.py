"""Putting jobs into the queue, once for each key."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa

from sagittal.database.connect import Database
from sagittal.database.queue import enqueue
from sagittal.database.schema import jobs


def test_the_same_key_is_queued_once(tmp_path: Path) -> None:
    db = Database.open(f"sqlite:///{tmp_path / 'sagittal.db'}")
    with db.write() as c:
        first = enqueue(c, "choose", "choose:1:1", {"study_id": 1}, priority=2)
        assert first is not None
        assert enqueue(c, "choose", "choose:1:1", {"study_id": 1}) is None
        assert enqueue(c, "choose", "choose:1:2", {"study_id": 1}) not in {first, None}
    with db.read() as c:
        row = c.execute(sa.select(jobs).where(jobs.c.id == first)).mappings().one()
    assert (row["state"], row["priority"], row["payload"], row["attempts"]) == ("waiting", 2, {"study_id": 1}, 0)
    assert row["due_at"] <= row["created_at"]
    db.close()


def test_a_job_is_queued_with_what_made_it_necessary_or_not_at_all(tmp_path: Path) -> None:
    db = Database.open(f"sqlite:///{tmp_path / 'sagittal.db'}")
    with suppress(ZeroDivisionError), db.write() as c:
        enqueue(c, "choose", "choose:1:1", {})
        raise ZeroDivisionError
    with db.read() as c:
        assert c.execute(sa.select(jobs)).all() == []
    db.close()
