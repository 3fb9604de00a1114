"""Jobs of the kinds "choose" and "answer": from a complete study to a result that is kept."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.database.events import report
from sagittal.database.schema import deliveries, instances, jobs, studies
from sagittal.errors import ReadError
from sagittal.jobs.choose import choose_for_study
from sagittal.jobs.packages import ServedModel
from sagittal.jobs.pool import Pool, Resting
from sagittal.jobs.queue import Job, Queue, models_off
from sagittal.jobs.results import Stored, find_result, store_result
from sagittal.jobs.standing import refresh_study
from sagittal.jobs.supervise import Again, Work
from sagittal.jobs.worker import AnswerError, WorkerEnded

#: Seconds until work for a model that is switched off is looked at again.
OFF_S = 30.0


class ChooseJob:
    """Chooses series and models for a study that is complete.

    Parameters
    ----------
    queue : Queue
    models : callable () -> tuple of ServedModel
    """

    def __init__(self, queue: Queue, models: Callable[[], tuple[ServedModel, ...]]) -> None:
        self._queue, self._models = queue, models

    def __call__(self, work: Work) -> None:
        """Choose, and finish the job, in one transaction."""
        job = work.job
        off = models_off(self._queue.db)
        with self._queue.db.write() as c:
            outcome = choose_for_study(c, int(job.payload["study_id"]), self._models(), off=off)
            self._queue.finish_in(c, job, outcome)
        work.finished = True


class AnswerJob:
    """Lets a model answer a study, and keeps the result.

    Parameters
    ----------
    queue : Queue
    archive : Archive
    pool : Pool
    spool : Path
        Folder in which the processes of models write; emptied at the start.
    language : str
        Of the sentences in objects.
    stored : callable (Job, Stored), optional
        Told of each result.
    """

    def __init__(
        self,
        queue: Queue,
        archive: Archive,
        pool: Pool,
        spool: Path,
        *,
        language: str = "en",
        stored: Callable[[Job, ServedModel, Stored], None] | None = None,
    ) -> None:
        self._queue, self._archive, self._pool, self._spool = queue, archive, pool, spool
        self._language, self._stored = language, stored
        self._turns = {model.checksum: threading.Lock() for model in pool.models}
        shutil.rmtree(spool, ignore_errors=True)
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)

    def __call__(self, work: Work) -> Mapping[str, Any] | None:
        """Answer and keep; the result is written in the transaction that finishes the job."""
        job = work.job
        model = self._model(job)
        found = find_result(self._queue, job.study_id or 0, model.checksum, str(job.payload["inputs"]))
        if found is not None:
            return {"result": found, "already": True}
        if model.name in models_off(self._queue.db):
            raise Again(f"the model {model.name} is switched off", counts=False, wait_s=OFF_S)
        # One study at a time: the next would only wait in the model's process, and its time run.
        with self._turns.setdefault(model.checksum, threading.Lock()):
            self._answer(work, model)
        return None

    def _answer(self, work: Work, model: ServedModel) -> None:
        job = work.job
        if work.lost.is_set():
            raise Again("cancelled while it waited for its turn", counts=False)
        inputs = self._paths(job)
        self._show(job)
        folder = Path(tempfile.mkdtemp(prefix=f"job-{job.id}-", dir=self._spool))
        work.on_lost = lambda: self._pool.kill(model.checksum, "what it was at was cancelled")
        try:
            answered = self._ask(work, model, inputs, folder)
            stored = store_result(self._queue, self._archive, job, model, answered, folder, to=model.entry.to)
        finally:
            work.on_lost = None
            shutil.rmtree(folder, ignore_errors=True)
        work.finished = True
        if self._stored is not None:
            with contextlib.suppress(Exception):
                self._stored(job, model, stored)

    def left_out(self) -> list[str]:
        """Beginnings of the keys of jobs that wait: their model is at work on another study, or switched off."""
        off = models_off(self._queue.db)
        return [
            f"answer:{model.checksum}:"
            for model in self._pool.models
            if model.name in off or (model.checksum in self._turns and self._turns[model.checksum].locked())
        ]

    def _model(self, job: Job) -> ServedModel:
        for model in self._pool.models:
            if model.checksum == job.payload["checksum"]:
                return model
        raise Again("the service does not have this version of the model any more", again=False)

    def _ask(self, work: Work, model: ServedModel, inputs: Mapping[str, list[str]], folder: Path) -> dict[str, Any]:
        request = {
            "study": work.job.study_id,
            "name": model.name,
            "inputs": inputs,
            "inputs_hash": work.job.payload["inputs"],
            "spool": str(folder),
            "results": list(model.entry.results),
            "made_at": work.job.created_at,
            "explain_s": model.entry.explain_s,
            "language": self._language,
        }
        try:
            return self._pool.answer(model.checksum, request, progress=work.advance)
        except WorkerEnded as error:
            if error.how == "stopped":
                raise Again(str(error), counts=False) from error
            raise Again(str(error)) from error
        except AnswerError as error:
            raise Again(str(error), again=error.again) from error
        except Resting as error:  # over another study, perhaps
            raise Again(str(error), counts=False, wait_s=OFF_S) from error

    def _paths(self, job: Job) -> dict[str, list[str]]:
        """By name of the input, the files of its series in the archive."""
        wanted: dict[str, list[str]] = {}
        with self._queue.db.read() as c:
            for name, series_id in job.payload["series"].items():
                rows = c.execute(
                    sa.select(instances.c.path)
                    .where(instances.c.series_id == series_id, instances.c.damage == "")
                    .order_by(instances.c.number, instances.c.id)
                ).scalars()
                wanted[name] = [str(self._archive.path_of(row)) for row in rows]
        if not all(wanted.values()) or not wanted:
            raise ReadError("the images that were chosen are not in the archive any more")
        return wanted

    def _show(self, job: Job) -> None:
        with self._queue.db.write() as c:
            if job.payload.get("role", "answers") == "answers":
                now = {"status": "running", "changed_at": time.time()}
                c.execute(sa.update(studies).where(studies.c.id == job.study_id).values(**now))


def after_answer(queue: Queue, job: Job, ended: str) -> None:
    """Keep worklist and deliveries true after a job ended in another way than well, and tell of dead letters."""
    if ended == "done":
        return
    with queue.db.write() as c:
        if job.study_id is not None and job.kind == "answer":
            refresh_study(c, job.study_id)
        elif ended == "dead" and job.kind == "choose":
            c.execute(sa.update(studies).where(studies.c.id == job.study_id).values(status="failed"))
        elif ended == "dead" and job.kind == "deliver":
            mine = deliveries.c.id == int(job.payload["delivery"])
            why = c.execute(sa.select(jobs.c.error).where(jobs.c.id == job.id)).scalar()
            c.execute(sa.update(deliveries).where(mine).values(state="failed", error=why or ""))
        if ended == "dead":
            message = "Work was given up after its last try: the list of jobs says why. It can be run again there."
            report(c, "dead-letter", "error", message, about=job.kind)
