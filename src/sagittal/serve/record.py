"""What the trail and the worklist hear of jobs that end: answers, deliveries, fetched studies, deletions by rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sagittal.database.connect import Database
from sagittal.database.events import end_event
from sagittal.jobs.answer_job import after_answer
from sagittal.jobs.packages import ServedModel
from sagittal.jobs.queue import Job, Queue
from sagittal.jobs.results import Stored
from sagittal.protect.audit import Audit


def answered(audit: Audit, job: Job, model: ServedModel, stored: Stored) -> None:
    """Tell the trail of a model's answer."""
    details = {"model": model.name, "version": model.version, "result": stored.result_id, "role": model.entry.role}
    audit.record("sagittal", "predict", study_id=job.study_id, details=details)


def ended(audit: Audit, queue: Queue, job: Job, how: str) -> None:
    """Tell the worklist of a job that ended, and the trail of what was sent to others or fetched from them.

    Parameters
    ----------
    how : str
        ``done``, ``waiting`` or ``dead``.
    """
    after_answer(queue, job, how)
    action = {"deliver": "send", "fetch": "import"}.get(job.kind)
    if action is not None and how in ("done", "dead"):
        named = {key: job.payload[key] for key in ("destination", "pacs", "delivery") if key in job.payload}
        outcome = "done" if how == "done" else "failed"
        audit.record("sagittal", action, study_id=job.study_id, outcome=outcome, details=named)


def deleted(audit: Audit, study_id: int, details: Mapping[str, Any]) -> None:
    """Tell the trail of a deletion that a rule asked for."""
    audit.record("sagittal", "delete", study_id=study_id, details=details)


def trouble_over(db: Database, code: str, about: str) -> None:
    """Say that a trouble is over, whether or not there was one."""
    end_event(db, code, about)
