"""Settling a conflict: which of two objects under one UID is the right one. Both files stay; the other is no longer shown."""

from __future__ import annotations

import mmap
import time
from typing import Literal

import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.archive.elements import find_elements
from sagittal.archive.header import INSTANCE, read_header
from sagittal.database.events import end_event
from sagittal.database.schema import conflicts, instances, series, studies
from sagittal.errors import DataError


def settle_conflict(
    archive: Archive, conflict_id: int, decision: Literal["keep-first", "take-second"], *, by: str
) -> bool:
    """Keep the first of two objects, or let the second take its place; the series is then open again, to be answered anew.

    Parameters
    ----------
    archive : Archive
    conflict_id : int
    decision : {"keep-first", "take-second"}
    by : str
        Name of who decides.

    Returns
    -------
    bool
        False where it was settled before, or there is none.

    Raises
    ------
    DataError
        If the second is of another series: then it is no other version of the first.
    """
    with archive.db.read() as c:
        row = c.execute(
            sa.select(conflicts, instances.c.series_id, series.c.series_uid)
            .join(instances, conflicts.c.instance_id == instances.c.id)
            .join(series, instances.c.series_id == series.c.id)
            .where(conflicts.c.id == conflict_id, conflicts.c.settled_at.is_(None))
        ).first()
    if row is None:
        return False
    values = {}
    if decision == "take-second":
        values = _second(archive, row.path, row.size, row.series_uid)
    at = time.time()
    settled = {"settled_at": at, "settled_by": by, "decision": decision}
    with archive.db.write() as c:
        open_ones = sa.and_(conflicts.c.id == conflict_id, conflicts.c.settled_at.is_(None))
        if not c.execute(sa.update(conflicts).where(open_ones).values(**settled)).rowcount:
            return False
        if values:
            first = c.execute(
                sa.select(instances.c.path, instances.c.sha256, instances.c.size, instances.c.source).where(
                    instances.c.id == row.instance_id
                )
            ).one()
            # The row of the conflict keeps the file that is no longer shown, so that a deletion finds it.
            c.execute(
                sa.update(conflicts)
                .where(conflicts.c.id == conflict_id)
                .values(path=first.path, sha256=first.sha256, size=first.size, source=first.source)
            )
            c.execute(
                sa.update(instances)
                .where(instances.c.id == row.instance_id)
                .values(
                    **values,
                    sha256=row.sha256,
                    size=row.size,
                    path=row.path,
                    source=row.source,
                    damage="",
                    checked_at=None,
                )
            )
            c.execute(sa.update(series).where(series.c.id == row.series_id).values(changed_at=at, complete_at=None))
            own = sa.select(series.c.study_id).where(series.c.id == row.series_id).scalar_subquery()
            c.execute(sa.update(studies).where(studies.c.id == own).values(changed_at=at))
        left = c.execute(sa.select(conflicts.c.id).where(conflicts.c.settled_at.is_(None)).limit(1)).first()
    if left is None:
        end_event(archive.db, "conflict")
    return True


def _second(archive: Archive, place: str, size: int, series_uid: str) -> dict[str, object]:
    """What the row of the instance says, of the second file."""
    with (
        archive.path_of(place).open("rb") as file,
        mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as whole,
    ):
        character_set = archive.limits.default_character_set
        header = read_header(find_elements(whole, size), size, default_character_set=character_set)
        values: dict[str, object] = {
            "sop_class_uid": header.sop_class_uid,
            "transfer_syntax_uid": header.syntax,
            "number": header.number,
            "frames": header.frames,
            "rows": header.rows,
            "columns": header.columns,
            "attributes": header.json(INSTANCE),
        }
        other = header.series_uid != series_uid
        header.elements.detach()
    if other:
        raise DataError(
            "the second object belongs to another series: keep the first, and have the second sent with a UID of its own"
        )
    return values
