"""When a series is complete: after a silence, by storage commitment, or because somebody says so.

A completed series queues the choice of models for its study; slices that come later open it again, and its next
completion queues the choice again, with all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import sqlalchemy as sa

from sagittal.database.connect import Database
from sagittal.database.queue import enqueue
from sagittal.database.schema import instances, series, studies

By = Literal["silence", "commitment", "call"]
#: Series that are closed in one transaction.
_AT_ONCE = 500


def close_quiet_series(db: Database, silence_s: float, now: float) -> int:
    """Close the series to which nothing was added for a while; how many there were.

    Parameters
    ----------
    silence_s : float
        Seconds.
    now : float
        Of :func:`sagittal.database.clock.now`.
    """
    quiet = sa.select(series.c.id).where(series.c.complete_at.is_(None), series.c.changed_at <= now - silence_s)
    with db.read() as c:  # mostly there is none
        if c.execute(quiet.limit(1)).first() is None:
            return 0
    with db.write() as c:
        ids = list(c.execute(quiet.order_by(series.c.changed_at).limit(_AT_ONCE)).scalars())
        _close(c, ids, "silence", now)
    return len(ids)


def close_series(db: Database, series_id: int, by: By) -> bool:
    """Close one series; false if it is closed already, or there is none.

    Parameters
    ----------
    by : {"silence", "commitment", "call"}
    """
    with db.write() as c:
        open_ = c.execute(
            sa.select(series.c.id).where(series.c.id == series_id, series.c.complete_at.is_(None))
        ).scalar()
        if open_ is None:
            return False
        _close(c, [series_id], by, db.clock.now())
    return True


def close_committed(db: Database, sop_instance_uids: Iterable[str]) -> list[int]:
    """Close the open series of which all objects that are here were named in a storage commitment.

    Parameters
    ----------
    sop_instance_uids : iterable of str
        What the peer asked to commit, as far as it is here.

    Returns
    -------
    list of int
        Rows of the series that were closed.
    """
    named = list(dict.fromkeys(sop_instance_uids))
    counts: dict[int, int] = {}
    closed: list[int] = []
    with db.write() as c:
        for first in range(0, len(named), _AT_ONCE):
            part = named[first : first + _AT_ONCE]
            found = c.execute(
                sa.select(instances.c.series_id, sa.func.count())
                .where(instances.c.sop_instance_uid.in_(part))
                .group_by(instances.c.series_id)
            )
            for series_id, count in found:
                counts[series_id] = counts.get(series_id, 0) + count
        for series_id, count in counts.items():
            whole = c.execute(
                sa.select(series.c.id).where(
                    series.c.id == series_id, series.c.complete_at.is_(None), series.c.instance_count <= count
                )
            ).scalar()
            if whole is not None:
                closed.append(series_id)
        _close(c, closed, "commitment", db.clock.now())
    return closed


def _close(c: sa.Connection, ids: list[int], by: By, now: float) -> None:
    if not ids:
        return
    c.execute(
        sa.update(series)
        .where(series.c.id.in_(ids))
        .values(complete_at=now, completed_by=by, revision=series.c.revision + 1)
    )
    owners = list(c.execute(sa.select(series.c.study_id).where(series.c.id.in_(ids)).distinct()).scalars())
    for study_id in owners:
        queue_choice(c, study_id)


def queue_choice(c: sa.Connection, study_id: int) -> int | None:
    """Queue the choice of models for a study as it is now; the job's row, ``None`` if it is queued already."""
    revisions, still_open = c.execute(
        sa.select(
            sa.func.coalesce(sa.func.sum(series.c.revision), 0),
            sa.func.coalesce(sa.func.sum(sa.case((series.c.complete_at.is_(None), 1), else_=0)), 0),
        ).where(series.c.study_id == study_id)
    ).one()
    urgency = c.execute(sa.select(studies.c.urgency).where(studies.c.id == study_id)).scalar_one()
    job = enqueue(
        c,
        "choose",
        f"choose:{study_id}:{revisions}",
        {"study_id": study_id},
        priority=urgency,
        study_id=study_id,
    )
    if job is not None and not still_open:
        c.execute(
            sa.update(studies).where(studies.c.id == study_id, studies.c.status == "receiving").values(status="waiting")
        )
    return job
