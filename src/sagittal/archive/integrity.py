"""The scheduled check of the archive: every file's hash compared with its row, in small portions that leave the disk to others.

Bits rot, disks fail and people move files. What is damaged is marked and reported at once, is not used for results any
more, and heals when the same object is sent again or restored from a backup.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.archive.damage import Damage, damage_of, report_damage
from sagittal.archive.recover import index_orphans
from sagittal.database.events import report
from sagittal.database.schema import conflicts, instances, marks, objects, studies

#: Rows that are asked for at once.
_AT_ONCE = 64
_MARK = "integrity-folder"


@dataclass(frozen=True)
class Checked:
    """What a portion of the check found.

    Attributes
    ----------
    files, bytes : int
        That were read.
    damaged : int
        Of them, newly found missing or altered.
    orphans : int
        Files without rows that were indexed.
    over : bool
        Whether nothing is due any more.
    """

    files: int = 0
    bytes: int = 0
    damaged: int = 0
    orphans: int = 0
    over: bool = False


def check_files(
    archive: Archive,
    *,
    every_s: float,
    most_s: float = 10.0,
    bytes_per_s: float = 50e6,
    sleep: Callable[[float], None] = time.sleep,
) -> Checked:
    """Check the files whose last check is longest ago, for a while.

    Parameters
    ----------
    archive : Archive
    every_s : float
        Seconds after which a file is due again.
    most_s : float
        Seconds that this call takes.
    bytes_per_s : float
        Read no faster than this.
    sleep : callable
        Waits some seconds; tests and a service that stops give their own.
    """
    begun = time.monotonic()
    now = archive.db.clock.now()
    files = size = damaged = 0
    over = False
    while not over and time.monotonic() - begun < most_s:
        rows = _due(archive, now - every_s)
        over = len(rows) < _AT_ONCE
        sound: list[int] = []
        for row in rows:
            damage = damage_of(archive.path_of(row.path), row.sha256, row.size)
            if damage or row.damage:
                _write_down(archive, [row.id], damage, now)
            else:
                sound.append(row.id)
            files, size = files + 1, size + row.size
            damaged += bool(damage) and not row.damage
            ahead = size / bytes_per_s - (time.monotonic() - begun)
            if ahead > 0:
                sleep(min(ahead, 1.0))
            if time.monotonic() - begun >= most_s:
                over = False
                break
        if sound:
            _write_down(archive, sound, "", now)
    report_damage(archive.db)
    for table in (conflicts, objects):
        _check_others(archive, table)
    return Checked(files, size, damaged, _check_folder(archive), over)


def _due(archive: Archive, before: float) -> Sequence[Any]:
    """Rows to check, the longest unchecked first; those never checked come first of all once they are old enough."""
    columns = (instances.c.id, instances.c.path, instances.c.sha256, instances.c.size, instances.c.damage)
    with archive.db.read() as c:
        never = c.execute(
            sa.select(*columns)
            .where(instances.c.checked_at.is_(None), instances.c.arrived_at <= before)
            .order_by(instances.c.id)
            .limit(_AT_ONCE)
        ).all()
        if never:
            return never
        return c.execute(
            sa.select(*columns).where(instances.c.checked_at <= before).order_by(instances.c.checked_at).limit(_AT_ONCE)
        ).all()


def _write_down(archive: Archive, ids: list[int], damage: Damage, now: float) -> None:
    with archive.db.write() as c:
        c.execute(sa.update(instances).where(instances.c.id.in_(ids)).values(checked_at=now, damage=damage))


def _check_others(archive: Archive, table: sa.Table) -> None:
    """Check the next files that are no instances: those of conflicts, and of results in other formats."""
    name = f"integrity-{table.name}"
    with archive.db.read() as c:
        last = int(c.execute(sa.select(marks.c.value).where(marks.c.name == name)).scalar() or 0)
        columns = sa.select(table.c.id, table.c.path, table.c.sha256, table.c.size).order_by(table.c.id).limit(_AT_ONCE)
        if table is objects:
            columns = columns.where(objects.c.instance_id.is_(None))
        rows = c.execute(columns.where(table.c.id > last)).all()
    found = [(row.id, damage_of(archive.path_of(row.path), row.sha256, row.size)) for row in rows]
    if not rows and not last:
        return
    with archive.db.write() as c:
        _set_mark(c, name, rows[-1].id if rows else 0)
        for id_, damage in found:
            if damage:
                report(
                    c,
                    "damaged-file",
                    "error",
                    f"A file of the archive that is no image is {damage}: restore it from a backup.",
                    f"{table.name} {id_}",
                )


def _set_mark(c: sa.Connection, name: str, value: Any) -> None:
    changed = c.execute(sa.update(marks).where(marks.c.name == name).values(value=value))
    if not changed.rowcount:
        c.execute(sa.insert(marks).values(name=name, value=value))


def check_instance(archive: Archive, instance_id: int) -> Damage:
    """Check one file now; what is wrong with it, empty if nothing is.

    Raises
    ------
    KeyError
        If there is no such instance.
    """
    columns = (instances.c.path, instances.c.sha256, instances.c.size)
    with archive.db.read() as c:
        row = c.execute(sa.select(*columns).where(instances.c.id == instance_id)).first()
    if row is None:
        raise KeyError(instance_id)
    damage = damage_of(archive.path_of(row.path), row.sha256, row.size)
    _write_down(archive, [instance_id], damage, archive.db.clock.now())
    report_damage(archive.db)
    return damage


def _check_folder(archive: Archive) -> int:
    """Look for files without rows in the next folder; how many were indexed. The newest is left to those who receive."""
    names = archive.shelves.names()[:-1]
    if not names:
        return 0
    with archive.db.read() as c:
        last = str(c.execute(sa.select(marks.c.value).where(marks.c.name == _MARK)).scalar() or "")
    name = next((n for n in names if n > last), names[0])
    indexed, strays = index_orphans(archive, name)
    with archive.db.write() as c:
        _set_mark(c, _MARK, name)
        if strays:
            report(
                c,
                "strays",
                "warning",
                f"{strays} files lie in the archive's folder that it did not receive. They are not touched.",
                name,
            )
    return indexed


@dataclass(frozen=True)
class Storage:
    """How the archive is filled; what the administrator's page shows. Bytes, counts and seconds since 1970."""

    used: int
    free: int
    studies: int
    instances: int
    damaged: int
    unsettled_conflicts: int
    oldest_check: float | None
    unchecked: int


def storage_of(archive: Archive) -> Storage:
    """How the archive is filled."""
    i, unchecked = instances.c, sa.select(sa.func.count()).where(instances.c.checked_at.is_(None))
    with archive.db.read() as c:
        number, count, used = c.execute(
            sa.select(
                sa.func.count(),
                sa.func.coalesce(sa.func.sum(studies.c.instance_count), 0),
                sa.func.coalesce(sa.func.sum(studies.c.bytes), 0),
            )
        ).one()
        oldest = c.execute(sa.select(sa.func.min(i.checked_at))).scalar()
        left = c.execute(unchecked.select_from(instances)).scalar_one()
        damaged = c.execute(sa.select(sa.func.count()).select_from(instances).where(i.damage != "")).scalar_one()
        open_ = c.execute(
            sa.select(sa.func.count()).select_from(conflicts).where(conflicts.c.settled_at.is_(None))
        ).scalar_one()
    free = shutil.disk_usage(archive.folder).free
    return Storage(int(used), free, number, int(count), damaged, open_, oldest, left)
