"""An answer into the archive and the database: once for each model and content of its inputs, whatever happens in between.

The files of a result are made safe first, each under a name of its own hash; then one transaction writes the result, its
objects, the study's standing and the deliveries, and finishes the job. A process that ends in between leaves files that no
row names, which the next start deletes, and a job that is done again: the objects are the same then, by their UIDs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.archive.retention import delete_loose
from sagittal.database.queue import enqueue
from sagittal.database.schema import deliveries, instances, jobs, objects, results
from sagittal.errors import ServeError
from sagittal.jobs.packages import ServedModel
from sagittal.jobs.queue import Job, LeaseLostError, Queue
from sagittal.jobs.standing import refresh_study

_DICOM = "application/dicom"


@dataclass(frozen=True)
class KeptObject:
    """A file of a result that is safe: its kind, and what its row says."""

    kind: str
    media_type: str
    path: str
    sha256: str
    size: int
    instance_id: int | None = None


@dataclass(frozen=True)
class Stored:
    """A result that is kept.

    Attributes
    ----------
    result_id : int
    new : bool
        False where there was one of this model and these inputs already.
    replaced : int or None
        The result about earlier images that it takes the place of.
    deliveries : int
        How many were queued.
    """

    result_id: int
    new: bool
    replaced: int | None = None
    deliveries: int = 0


def keep_files(
    archive: Archive, spool: Path, made: Sequence[Mapping[str, Any]], *, shown: bool = True
) -> list[KeptObject]:
    """Bring the files of a result into the archive, flushed to the disk.

    Parameters
    ----------
    archive : Archive
    spool : Path
        The folder that the model's process wrote them into.
    made : sequence of mapping
        With ``kind``, ``path`` (a name in that folder) and ``media_type``.
    shown : bool
        Whether DICOM objects become instances of the study, which viewers and queries see; those of a model that only
        watches are files.

    Raises
    ------
    ServeError
        If a name leads out of the folder, or the archive refuses an object.
    ArchiveFull
        If the disk is full.
    """
    kept = []
    for one in made:
        name = str(one["path"])
        if Path(name).name != name or name in {"", ".", ".."}:
            raise ServeError("a model's process named a file outside of its folder")
        path = spool / name
        if path.is_symlink() or not path.is_file():
            raise ServeError("a model's process named a file that is not there")
        keep = _keep_dicom if shown and one["media_type"] == _DICOM else _keep_file
        kept.append(keep(archive, path, one))
    return kept


def _keep_dicom(archive: Archive, path: Path, one: Mapping[str, Any]) -> KeptObject:
    from pydicom import dcmread

    made = dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
    # Of a try that was interrupted after it kept the object: the first stands, as it may have been seen already.
    there = _find_own(archive, str(made.SOPInstanceUID))
    number = there if there is not None else archive.store_result_file(path).instance_id
    with archive.db.read() as c:
        columns = (instances.c.path, instances.c.sha256, instances.c.size)
        row = c.execute(sa.select(*columns).where(instances.c.id == number)).one()
    return KeptObject(str(one["kind"]), _DICOM, row.path, row.sha256, row.size, number)


def _find_own(archive: Archive, uid: str) -> int | None:
    own = sa.and_(instances.c.sop_instance_uid == uid, instances.c.source == "result", instances.c.damage == "")
    with archive.db.read() as c:
        return c.execute(sa.select(instances.c.id).where(own)).scalar()


def _keep_file(archive: Archive, path: Path, one: Mapping[str, Any]) -> KeptObject:
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    kept = archive.store_file(path.read_bytes(), suffix)
    return KeptObject(str(one["kind"]), str(one["media_type"]), kept.path, kept.sha256, kept.size)


def store_result(
    queue: Queue,
    archive: Archive,
    job: Job,
    model: ServedModel,
    answered: Mapping[str, Any],
    spool: Path,
    *,
    to: Sequence[str] = (),
) -> Stored:
    """Keep what a model answered, and finish the job.

    Parameters
    ----------
    queue : Queue
    archive : Archive
    job : Job
        Of kind "answer", leased.
    model : ServedModel
    answered : mapping
        What :func:`sagittal.jobs.answer_study.answer_study` gave.
    spool : Path
        Where it wrote the files.
    to : sequence of str
        Names of destinations; a model that only watches delivers nothing.

    Raises
    ------
    LeaseLostError
        If the job went to another meanwhile; nothing of this result is kept in the database.
    """
    answer = dict(answered["answer"])
    found = find_result(queue, job.study_id or 0, model.checksum, str(job.payload["inputs"]))
    if found is not None:
        queue.finish(job, {"result": found, "already": True})
        return Stored(found, False)
    queue.heartbeat(job)  # the study may have other images by now: then nothing of this may be seen
    kept = keep_files(archive, spool, answered["objects"], shown=model.answers)
    answer["notes"] = list(answered.get("notes", ()))
    try:
        with queue.db.write() as c:
            queue.hold_in(c, job)
            stored = _insert(c, job, model, answer, float(answered.get("seconds", 0.0)), kept, to)
            queue.finish_in(c, job, {"result": stored.result_id, "state": answer["state"]})
            refresh_study(c, job.study_id or 0)
    except LeaseLostError:
        _drop(archive, kept)
        raise
    return stored


def _drop(archive: Archive, kept: Sequence[KeptObject]) -> None:
    """Delete what was kept for a result that is not."""
    delete_loose(archive, [one.instance_id for one in kept if one.instance_id is not None])
    for one in kept:
        if one.instance_id is None:
            with contextlib.suppress(OSError):
                archive.path_of(one.path).unlink()


def find_result(queue: Queue, study_id: int, checksum: str, inputs: str) -> int | None:
    """The result of a model about these inputs, if there is one."""
    with queue.db.read() as c:
        return c.execute(_same(study_id, checksum, inputs)).scalar()


def _same(study_id: int, checksum: str, inputs: str) -> sa.Select[Any]:
    return sa.select(results.c.id).where(
        results.c.study_id == study_id, results.c.checksum == checksum, results.c.inputs == inputs
    )


def _insert(
    c: sa.Connection,
    job: Job,
    model: ServedModel,
    answer: Mapping[str, Any],
    seconds: float,
    kept: Sequence[KeptObject],
    to: Sequence[str],
) -> Stored:
    study_id, inputs = job.study_id or 0, str(job.payload["inputs"])
    there = c.execute(_same(study_id, model.checksum, inputs)).scalar()
    if there is not None:
        return Stored(there, False)
    number = c.execute(
        sa.insert(results)
        .values(
            study_id=study_id,
            model=model.name,
            version=model.version,
            checksum=model.checksum,
            role=model.entry.role,
            inputs=inputs,
            series=sorted(int(one) for one in job.payload["series"].values()),
            state=answer["state"],
            summary=answer.get("summary", ""),
            confidence=answer.get("confidence"),
            finding=answer,
            reason=answer.get("reason", ""),  # of an answer, the caution of a gate that only warns
            seconds=seconds,
            created_at=time.time(),
        )
        .returning(results.c.id)
    ).scalar_one()
    for one in kept:
        c.execute(
            sa.insert(objects).values(
                result_id=number,
                kind=one.kind,
                instance_id=one.instance_id,
                media_type=one.media_type,
                path=one.path,
                sha256=one.sha256,
                size=one.size,
            )
        )
    newer = _newer_job(c, job, model.checksum)
    if newer:
        # Images came while it was at work: it is kept, and neither shown nor sent.
        after = c.execute(_newest(study_id, model.checksum, number)).scalar()
        c.execute(sa.update(results).where(results.c.id == number).values(replaced_by=after))
        return Stored(number, True)
    older = c.execute(_newest(study_id, model.checksum, number)).scalar()
    if older is not None:
        earlier = sa.and_(
            results.c.study_id == study_id,
            results.c.checksum == model.checksum,
            results.c.id != number,
            results.c.replaced_by.is_(None),
        )
        c.execute(sa.update(results).where(earlier).values(replaced_by=number))
        _drop_deliveries(c, study_id, model.checksum)
    sent = queue_deliveries(c, number, study_id, to, priority=job.priority) if model.answers else 0
    return Stored(number, True, older, sent)


def _newer_job(c: sa.Connection, job: Job, checksum: str) -> bool:
    """Whether the same model was asked about other images of the study after this job was queued."""
    later = sa.and_(
        jobs.c.study_id == job.study_id,
        jobs.c.kind == "answer",
        jobs.c.id > job.id,
        jobs.c.state != "cancelled",
        jobs.c.key.startswith(f"answer:{checksum}:", autoescape=True),
    )
    return c.execute(sa.select(jobs.c.id).where(later).limit(1)).first() is not None


def _newest(study_id: int, checksum: str, without: int) -> sa.Select[Any]:
    return (
        sa.select(results.c.id)
        .where(
            results.c.study_id == study_id,
            results.c.checksum == checksum,
            results.c.id != without,
            results.c.replaced_by.is_(None),
        )
        .order_by(results.c.id.desc())
        .limit(1)
    )


def _drop_deliveries(c: sa.Connection, study_id: int, checksum: str) -> None:
    """What was not yet sent of replaced results is not sent any more."""
    replaced = sa.select(results.c.id).where(
        results.c.study_id == study_id, results.c.checksum == checksum, results.c.replaced_by.is_not(None)
    )
    why = "replaced: the study has other images now"
    waiting = sa.and_(deliveries.c.result_id.in_(replaced), deliveries.c.state == "waiting")
    ids = c.execute(sa.select(deliveries.c.id).where(waiting)).scalars().all()
    if not ids:
        return
    c.execute(sa.update(deliveries).where(deliveries.c.id.in_(ids)).values(state="failed", error=why))
    keys = [f"deliver:{one}" for one in ids]
    open_ones = sa.and_(jobs.c.key.in_(keys), jobs.c.state == "waiting")
    c.execute(sa.update(jobs).where(open_ones).values(state="cancelled", error=why, finished_at=time.time()))


def queue_deliveries(c: sa.Connection, result_id: int, study_id: int, to: Sequence[str], *, priority: int = 0) -> int:
    """Queue the sending of a result, a job for each destination, in a transaction; how many are new."""
    count = 0
    for name in dict.fromkeys(to):
        there = sa.and_(deliveries.c.result_id == result_id, deliveries.c.destination == name)
        if c.execute(sa.select(deliveries.c.id).where(there)).first() is not None:
            continue
        number = c.execute(
            sa.insert(deliveries).values(result_id=result_id, destination=name).returning(deliveries.c.id)
        ).scalar_one()
        payload = {"delivery": number, "result": result_id, "destination": name}
        enqueue(c, "deliver", f"deliver:{number}", payload, priority=priority, study_id=study_id)
        count += 1
    return count
