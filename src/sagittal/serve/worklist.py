"""The worklist of the pages, and what people do to studies: urgency, run again, complete, delete."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, HTTPException, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from sagittal.archive import retention as archived
from sagittal.archive.complete import close_series, queue_choice
from sagittal.archive.worklist import SORTS, worklist
from sagittal.database.schema import jobs, series, studies
from sagittal.serve import admin, agreement, changes, fetch, reviews, study_page, trail, truth_export
from sagittal.serve.page_rows import study_row
from sagittal.serve.security import Caller, allow
from sagittal.serve.series_cache import cache_folder, forget_series
from sagittal.serve.study_page import check_key, find_study
from sagittal.serve.views import note_view

if TYPE_CHECKING:
    from sagittal.serve.service import Service

own = APIRouter(prefix="/api", tags=["pages"])
Reader = Annotated[Caller, Depends(allow("see"))]
Steering = Annotated[Caller, Depends(allow("steer"))]
Deleting = Annotated[Caller, Depends(allow("delete"))]
Word = Annotated[str, Query(max_length=256)]


class Urgency(BaseModel):
    """How urgent a study is: 0 routine, 1 urgent, 2 stat."""

    model_config = ConfigDict(extra="forbid")
    urgency: int = Field(ge=0, le=2)


class Run(BaseModel):
    """Which model is to answer again; all that fit where it is empty."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field("", max_length=256)


@own.get("/studies")
def list_studies(
    request: Request,
    caller: Reader,
    status: Word = "",
    urgency: Word = "",
    text: Word = "",
    modality: Word = "",
    from_: Annotated[str, Query(alias="from", max_length=16)] = "",
    to: Annotated[str, Query(max_length=16)] = "",
    verdict: Word = "",
    abstained: Annotated[str, Query(max_length=8)] = "",
    sort: Annotated[str, Query(max_length=32)] = SORTS[0],
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    after: Annotated[str, Query(max_length=1024)] = "",
) -> dict[str, Any]:
    """A page of the worklist, with the number of studies of each status."""
    service: Service = request.app.state.service
    filters = {
        "status": status,
        "urgency": urgency,
        "text": text,
        "modality": modality,
        "from": from_,
        "to": to,
        "verdict": verdict,
        "abstained": abstained,
    }
    page = worklist(service.db, {key: value for key, value in filters.items() if value}, sort, limit, after or None)
    note_view(request, caller, [None], "query")
    now = time.time()
    return {"studies": [study_row(row, now) for row in page.studies], "next": page.next, "counts": page.counts}


def _told(request: Request, caller: Caller, action: str, study_id: int | None, **details: Any) -> None:
    service: Service = request.app.state.service
    service.audit.record(
        caller.name, action, role=caller.role, address=caller.address, study_id=study_id, details=details
    )


@own.post("/studies/{study_id}/urgency")
def set_urgency(request: Request, caller: Steering, study_id: int, given: Urgency) -> dict[str, Any]:
    """Set how urgent a study is; its waiting jobs move with it."""
    service: Service = request.app.state.service
    find_study(service, study_id)
    with service.db.write() as c:
        c.execute(
            sa.update(studies).where(studies.c.id == study_id).values(urgency=given.urgency, changed_at=time.time())
        )
    moved = service.queue.raise_urgency(study_id, given.urgency)
    _told(request, caller, "steer", study_id, what="urgency", urgency=given.urgency)
    return {"urgency": given.urgency, "jobs": moved}


@own.post("/studies/{study_id}/run", status_code=202)
def run_again(request: Request, caller: Steering, study_id: int, given: Run) -> dict[str, Any]:
    """Answer a study again: its dead and cancelled jobs, or where there are none, the choice of models anew."""
    service: Service = request.app.state.service
    row = find_study(service, study_id)
    checksums: set[str] = set()
    if given.model:
        checksums = {one.checksum for one in service.pool.models if one.name == given.model}
        if not checksums:
            raise HTTPException(404, "there is no such model")
    with service.db.read() as c:
        kept = c.execute(sa.select(jobs).where(jobs.c.study_id == study_id).order_by(jobs.c.id)).mappings().all()
        opened = c.execute(
            sa.select(series.c.id).where(series.c.study_id == study_id, series.c.complete_at.is_(None))
        ).scalars()
        waiting = list(opened)
    for series_id in waiting:
        close_series(service.db, series_id, "call")
    over = [one for one in kept if one["kind"] in {"answer", "choose"} and one["state"] in {"dead", "cancelled"}]
    if checksums:
        over = [one for one in over if one["payload"].get("checksum") in checksums]
    again = [one["id"] for one in over if service.queue.run_again(one["id"], urgency=row["urgency"])]
    if not again and not waiting:
        again = _choose_again(service, study_id, row["urgency"])
    service.supervisor.wake()
    _told(request, caller, "steer", study_id, what="run", model=given.model, jobs=len(again) + len(waiting))
    return {"jobs": again, "series": waiting}


def _choose_again(service: Service, study_id: int, urgency: int) -> list[int]:
    """Queue the choice of models once more, though nothing new came: a model may be new."""
    with service.db.write() as c:
        new = queue_choice(c, study_id)
        if new is not None:
            return [new]
        last = c.execute(
            sa.select(jobs.c.id)
            .where(jobs.c.study_id == study_id, jobs.c.kind == "choose", jobs.c.state == "done")
            .order_by(jobs.c.id.desc())
            .limit(1)
        ).scalar()
    return [last] if last is not None and service.queue.run_again(last, urgency=urgency) else []


@own.post("/series/{series_id}/complete")
def complete_series(request: Request, caller: Steering, series_id: int) -> dict[str, Any]:
    """Say that a series is whole, without waiting for the silence."""
    service: Service = request.app.state.service
    with service.db.read() as c:
        study_id = c.execute(
            sa.select(series.c.study_id)
            .join(studies, series.c.study_id == studies.c.id)
            .where(series.c.id == check_key(series_id), studies.c.deleted_at.is_(None))
        ).scalar()
    if study_id is None:
        raise HTTPException(404, "there is no such series")
    closed = close_series(service.db, series_id, "call")
    service.supervisor.wake()
    _told(request, caller, "steer", study_id, what="complete", series=series_id)
    return {"closed": closed}


@own.delete("/studies/{study_id}", status_code=204)
def delete_study(request: Request, caller: Deleting, study_id: int) -> Response:
    """Delete a study with everything that was made of it; only the record that it was deleted stays."""
    service: Service = request.app.state.service
    find_study(service, study_id)
    with service.db.read() as c:
        own_series = list(c.execute(sa.select(series.c.id).where(series.c.study_id == study_id)).scalars())

    def record(row: int, details: dict[str, Any]) -> None:
        _told(request, caller, "delete", row, **details)

    archived.delete_study(service.archive, study_id, record)
    forget_series(cache_folder(service), own_series)
    return Response(status_code=204)


# Jobs ----------------------------------------------------------------------------------------------------------------


@own.post("/jobs/{job_id}/cancel")
def cancel_job(request: Request, caller: Steering, job_id: int) -> dict[str, Any]:
    """Cancel a job that waits or is at work."""
    service: Service = request.app.state.service
    study_id = _job_study(service, job_id)
    done = service.queue.cancel(job_id, by=caller.name)
    if done:
        service.supervisor.lose(job_id)
        _told(request, caller, "steer", study_id, what="cancel", job=job_id)
    return {"cancelled": done}


@own.post("/jobs/{job_id}/retry")
def retry_job(request: Request, caller: Steering, job_id: int) -> dict[str, Any]:
    """Queue a job again that is done, dead or cancelled."""
    service: Service = request.app.state.service
    study_id = _job_study(service, job_id)
    done = service.queue.run_again(job_id)
    if done:
        service.supervisor.wake()
        _told(request, caller, "steer", study_id, what="retry", job=job_id)
    return {"queued": done}


def _job_study(service: Service, job_id: int) -> int | None:
    with service.db.read() as c:
        row = c.execute(sa.select(jobs.c.id, jobs.c.study_id).where(jobs.c.id == check_key(job_id))).first()
    if row is None:
        raise HTTPException(404, "there is no such job")
    return None if row.study_id is None else int(row.study_id)


router = APIRouter()
for _part in (
    own,
    study_page.router,
    reviews.router,
    agreement.router,
    admin.router,
    trail.router,
    fetch.router,
    truth_export.router,
    changes.router,
):
    router.include_router(_part)
