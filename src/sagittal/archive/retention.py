"""How long studies and results are kept, and deleting them completely: files, rows and conflicts, in this order.

A study that is being deleted is first hidden, then its files go, then its rows. A crash between leaves a hidden study,
whose deletion the next start finishes; the other order would leave files that a start takes for received ones. Deleted
pages of the database are overwritten. Backups keep what they hold.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.archive.disk import flush_folder, told
from sagittal.database.schema import (
    choices,
    conflicts,
    deliveries,
    instances,
    jobs,
    objects,
    results,
    reviews,
    series,
    studies,
)

What = Literal["originals", "results"]
When = Literal["always", "reviewed", "delivered"]
#: Who is told of each deletion: the study's row, and what was deleted, for the audit trail.
Record = Callable[[int, dict[str, Any]], None]
#: Seconds for which an object without a result is left alone where several machines share the work.
_SHARED_S = 86400.0
#: Studies that one call deletes.
_AT_ONCE = 100


@dataclass(frozen=True)
class Keep:
    """A rule of retention.

    Attributes
    ----------
    what : {"originals", "results"}
        ``originals``: whole studies with their results, which nobody could look at without them; ``results``: only those.
    keep_s : float
        Seconds since the study's last change.
    when : {"always", "reviewed", "delivered"}
        Only studies whose results were reviewed, or have reached all their destinations.
    """

    what: What
    keep_s: float
    when: When = "always"


@dataclass(frozen=True)
class Deleted:
    """What a deletion removed.

    Attributes
    ----------
    study_id : int
    whole : bool
        Whether nothing is left of the study.
    instances, results, files, bytes : int
    """

    study_id: int
    whole: bool
    instances: int
    results: int
    files: int
    bytes: int

    def details(self, why: str, step: str) -> dict[str, Any]:
        """What the audit trail holds of it: counts, never an identifier of the patient."""
        return {
            "why": why,
            "step": step,
            "whole": self.whole,
            "instances": self.instances,
            "results": self.results,
            "files": self.files,
            "bytes": self.bytes,
        }


def apply_rules(archive: Archive, rules: Iterable[Keep], record: Record, *, now: float | None = None) -> list[Deleted]:
    """Delete what the rules no longer keep, at most a hundred studies of each rule; call again for more.

    Parameters
    ----------
    archive : Archive
    rules : iterable of Keep
    record : callable
        Called with the study's row and the details after each deletion, for the audit trail.
    now : float, optional
        Seconds since 1970 of :func:`sagittal.database.clock.now`.
    """
    at = archive.db.clock.now() if now is None else now
    done = []
    for rule in rules:
        why = f"kept for {rule.keep_s / 86400:g} days ({rule.what}, {rule.when})"
        for study_id in _due(archive, rule, at):
            if rule.what == "originals":
                done.append(delete_study(archive, study_id, record, why=why))
            else:
                done.append(delete_results(archive, study_id, record, why=why))
    return done


def _due(archive: Archive, rule: Keep, now: float) -> Sequence[int]:
    s, r = studies.c, results.c
    where = [s.changed_at <= now - rule.keep_s, s.deleted_at.is_(None)]
    has_results = sa.exists().where(r.study_id == s.id)
    if rule.what == "results":
        where.append(has_results)
    if rule.when == "reviewed":
        where.append(s.verdict != "")
    elif rule.when == "delivered":
        undone = (
            sa.select(sa.literal(1))
            .select_from(deliveries)
            .join(results, r.id == deliveries.c.result_id)
            .where(r.study_id == s.id, deliveries.c.state.not_in(("sent", "confirmed")))
        )
        where += [has_results, ~sa.exists(undone)]
    # What is being worked on is not deleted under the hands of a worker.
    busy = sa.exists().where(jobs.c.study_id == s.id, jobs.c.state.in_(("waiting", "leased")))
    with archive.db.read() as c:
        return c.execute(sa.select(s.id).where(*where, ~busy).order_by(s.changed_at).limit(_AT_ONCE)).scalars().all()


def finish_deletions(archive: Archive, record: Record) -> list[Deleted]:
    """Finish what a crash interrupted, deletions and results; to be called when the service starts."""
    delete_loose(archive)
    with archive.db.read() as c:
        begun = c.execute(sa.select(studies.c.id).where(studies.c.deleted_at.is_not(None))).scalars().all()
    return [delete_study(archive, study_id, record, why="finished after an interruption") for study_id in begun]


def delete_study(archive: Archive, study_id: int, record: Record, *, why: str = "asked for") -> Deleted:
    """Delete a study completely: its files and those of its conflicts and results, its rows, its jobs.

    An object of it that arrives meanwhile was acknowledged and stays, with a study of its own.

    Parameters
    ----------
    record : callable
        Called with the study's row and the details when it begins and when all is gone, so that a crash between leaves
        its trace.

    Raises
    ------
    KeyError
        If there is no such study.
    ServeError
        If a file cannot be deleted; the study stays hidden, and its deletion is finished later.
    """
    with archive.db.write() as c:
        found = c.execute(
            sa.update(studies).where(studies.c.id == study_id).values(deleted_at=time.time(), status="deleted")
        )
        if not found.rowcount:
            raise KeyError(study_id)
        c.execute(sa.delete(jobs).where(jobs.c.study_id == study_id))
        members = list(_members(c, study_id))
        result_ids = _results_of(c, study_id)
        places = {place: size for _, place, size in members} | _files_of(c, [id_ for id_, _, _ in members], result_ids)
    size = sum(places.values())
    record(study_id, Deleted(study_id, True, len(members), len(result_ids), len(places), size).details(why, "begun"))
    _unlink(archive, places)
    with archive.db.write() as c:
        ids = [id_ for id_, _, _ in members]
        late = [(id_, place) for id_, place, _ in _members(c, study_id, "result") if id_ not in set(ids)]
        ids += [id_ for id_, _ in late]
        result_ids = _results_of(c, study_id)
        more = set(_files_of(c, ids, result_ids)) | {place for _, place in late}
        _delete_results(c, result_ids)
        _delete_instances(c, ids)
        left = _delete_empty(c, study_id)
    _unlink(archive, dict.fromkeys(more - set(places), 0))
    archive.forget()
    _overwrite_log(archive)
    deleted = Deleted(study_id, not left, len(ids), len(result_ids), len(places), size)
    record(study_id, deleted.details(why, "done"))
    return deleted


def delete_results(archive: Archive, study_id: int, record: Record, *, why: str = "asked for") -> Deleted:
    """Delete the results of a study, their objects, deliveries and reviews; the study itself stays.

    Raises
    ------
    KeyError
        If there is no such study.
    """
    with archive.db.write() as c:
        if c.execute(sa.select(studies.c.id).where(studies.c.id == study_id)).first() is None:
            raise KeyError(study_id)
        result_ids = _results_of(c, study_id)
        own = sa.select(objects.c.instance_id).where(
            objects.c.result_id.in_(result_ids), objects.c.instance_id.is_not(None)
        )
        ids = list(c.execute(own).scalars())
        members = [member for member in _members(c, study_id) if member[0] in set(ids)]
        places = {place: size for _, place, size in members} | _files_of(c, ids, result_ids)
        _delete_results(c, result_ids)
        _delete_instances(c, ids)
        _delete_empty(c, study_id, keep=True)
        c.execute(
            sa.update(studies)
            .where(studies.c.id == study_id)
            .values(finding="", confidence=None, abstained=False, verdict="", answered_at=None)
        )
    # Rows first here: a file of a result that a crash leaves behind belongs to no received study.
    _unlink(archive, places)
    archive.forget()
    deleted = Deleted(study_id, False, len(ids), len(result_ids), len(places), sum(places.values()))
    record(study_id, deleted.details(why, "done"))
    return deleted


def delete_loose(archive: Archive, ids: Sequence[int] | None = None) -> int:
    """Delete objects that Sagittal made for results which were never kept, as the work was interrupted or its study has
    other images now: viewers would show them, and no result says what they are.

    Parameters
    ----------
    ids : sequence of int, optional
        Of instances; all that no result names where left out, which is for a start.

    Returns
    -------
    int
        How many there were.
    """
    named = sa.select(objects.c.instance_id).where(objects.c.instance_id.is_not(None))
    loose = sa.and_(instances.c.source == "result", instances.c.id.not_in(named))
    if ids is not None:
        loose = sa.and_(loose, instances.c.id.in_(list(ids)))
    elif archive.db.dialect != "sqlite":  # another machine may just now keep the result that names them
        loose = sa.and_(loose, instances.c.arrived_at < time.time() - _SHARED_S)
    found = (
        sa.select(instances.c.id, instances.c.path, series.c.study_id)
        .join(series, series.c.id == instances.c.series_id)
        .where(loose)
    )
    with archive.db.read() as c:  # mostly there is none
        if c.execute(found.limit(1)).first() is None:
            return 0
    with archive.db.write() as c:
        rows = c.execute(found).all()
        _delete_instances(c, [row.id for row in rows])
        for study_id in sorted({row.study_id for row in rows}):
            _delete_empty(c, study_id, keep=True)
    _unlink(archive, [row.path for row in rows])
    archive.forget()
    return len(rows)


def _members(c: sa.Connection, study_id: int, source: str | None = None) -> Sequence[tuple[int, str, int]]:
    statement = (
        sa.select(instances.c.id, instances.c.path, instances.c.size)
        .join(series, series.c.id == instances.c.series_id)
        .where(series.c.study_id == study_id)
    )
    if source is not None:
        statement = statement.where(instances.c.source == source)
    return [(row.id, row.path, row.size) for row in c.execute(statement)]


def _results_of(c: sa.Connection, study_id: int) -> list[int]:
    return list(c.execute(sa.select(results.c.id).where(results.c.study_id == study_id)).scalars())


def _files_of(c: sa.Connection, ids: Sequence[int], result_ids: Sequence[int]) -> dict[str, int]:
    """Files of conflicts, objects and corrected masks, with their bytes."""
    found: dict[str, int] = {}
    for part in _parts(ids):
        rows = c.execute(sa.select(conflicts.c.path, conflicts.c.size).where(conflicts.c.instance_id.in_(part)))
        found.update((row.path, row.size) for row in rows)
    for part in _parts(result_ids):
        rows = c.execute(sa.select(objects.c.path, objects.c.size).where(objects.c.result_id.in_(part)))
        found.update((row.path, row.size) for row in rows)
        corrections = c.execute(sa.select(reviews.c.correction).where(reviews.c.result_id.in_(part))).scalars()
        found.update((place, 0) for correction in corrections for place in files_in(correction))
    return found


def files_in(correction: Any) -> list[str]:
    """The files of the archive that a reader's correction names."""
    mask = correction.get("mask") if isinstance(correction, dict) else None
    if isinstance(mask, dict):
        mask = mask.get("path")
    return [mask] if isinstance(mask, str) and mask.startswith("files/") else []


def _parts(ids: Sequence[int]) -> list[Sequence[int]]:
    return [ids[first : first + 500] for first in range(0, len(ids), 500)]


def _delete_results(c: sa.Connection, result_ids: Sequence[int]) -> None:
    for part in _parts(result_ids):
        c.execute(sa.update(results).where(results.c.replaced_by.in_(part)).values(replaced_by=None))
    for part in _parts(result_ids):
        for table in (objects, deliveries, reviews):
            c.execute(sa.delete(table).where(table.c.result_id.in_(part)))
        c.execute(sa.delete(results).where(results.c.id.in_(part)))


def _delete_instances(c: sa.Connection, ids: Sequence[int]) -> None:
    for part in _parts(ids):
        c.execute(sa.delete(conflicts).where(conflicts.c.instance_id.in_(part)))
        c.execute(sa.delete(instances).where(instances.c.id.in_(part)))


def _delete_empty(c: sa.Connection, study_id: int, *, keep: bool = False) -> int:
    """Delete the series without instances, and the study if none is left; how many instances are."""
    rows = c.execute(
        sa.select(series.c.id, sa.func.count(instances.c.id), sa.func.coalesce(sa.func.sum(instances.c.size), 0))
        .outerjoin(instances, instances.c.series_id == series.c.id)
        .where(series.c.study_id == study_id)
        .group_by(series.c.id)
    ).all()
    counts: dict[int, int] = {row[0]: row[1] for row in rows}
    empty = [id_ for id_, count in counts.items() if not count]
    for part in _parts(empty):
        c.execute(sa.delete(choices).where(choices.c.series_id.in_(part)))
        c.execute(sa.delete(series).where(series.c.id.in_(part)))
    for id_, count in counts.items():
        if count:
            c.execute(sa.update(series).where(series.c.id == id_).values(instance_count=count))
    left = sum(counts.values())
    if left or keep:
        values: dict[str, Any] = {"instance_count": left, "series_count": len(counts) - len(empty)}
        values["bytes"] = sum(int(row[2]) for row in rows)
        if not keep:  # something came while the rest was deleted
            values |= {"deleted_at": None, "status": "receiving", "finding": "", "confidence": None, "verdict": ""}
            values |= {"answered_at": None, "abstained": False}
        c.execute(sa.update(studies).where(studies.c.id == study_id).values(values))
    else:
        c.execute(sa.delete(choices).where(choices.c.study_id == study_id))
        c.execute(sa.delete(jobs).where(jobs.c.study_id == study_id))
        c.execute(sa.delete(studies).where(studies.c.id == study_id))
    return left


def _unlink(archive: Archive, places: Iterable[str]) -> None:
    folders = set()
    with told():
        for place in places:
            path = archive.path_of(place)
            with suppress(FileNotFoundError):
                os.unlink(path)
                folders.add(path.parent)
        for folder in sorted(folders):
            flush_folder(folder)


def _overwrite_log(archive: Archive) -> None:
    """Let the database's log forget what was deleted; best effort, as others may be reading."""
    if archive.db.dialect == "sqlite":
        archive.db.truncate_log()
