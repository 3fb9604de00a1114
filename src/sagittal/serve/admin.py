"""The administrator's lists: models, rules, destinations, jobs, troubles, storage, conflicts, refusals, the trail."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import APIRouter, Depends, HTTPException, Query, Request
from pydantic import BaseModel, ConfigDict

from sagittal.database.events import open_events, recent_events
from sagittal.database.schema import (
    JOB_STATES,
    conflicts,
    deliveries,
    instances,
    jobs,
    refusals,
    series,
    studies,
)
from sagittal.deliver.destinations import parse_destination
from sagittal.errors import SagittalError
from sagittal.jobs.queue import models_off, switch_model
from sagittal.serve.config import to_values
from sagittal.serve.inference_protocol import switched_off
from sagittal.serve.page_rows import iso, job_row
from sagittal.serve.reach import reach
from sagittal.serve.security import Caller, allow
from sagittal.serve.settle import settle_conflict
from sagittal.serve.study_page import check_key

if TYPE_CHECKING:
    from sagittal.serve.service import Service

router = APIRouter(prefix="/api", tags=["administration"])
Operator = Annotated[Caller, Depends(allow("operate"))]
Auditor = Annotated[Caller, Depends(allow("audit"))]
Reader = Annotated[Caller, Depends(allow("see"))]
Limit = Annotated[int, Query(ge=1, le=1000)]
Before = Annotated[int, Query(ge=0, le=2**63 - 1)]


class Switch(BaseModel):
    """On or off."""

    model_config = ConfigDict(extra="forbid")
    on: bool


class Pause(BaseModel):
    """Whether the queue hands out no jobs."""

    model_config = ConfigDict(extra="forbid")
    paused: bool


class Decision(BaseModel):
    """Which of two objects under one UID is the right one."""

    model_config = ConfigDict(extra="forbid")
    decision: Literal["keep-first", "take-second"]


def _settings(request: Request, caller: Caller, **details: Any) -> None:
    service: Service = request.app.state.service
    service.audit.record(caller.name, "settings", role=caller.role, address=caller.address, details=details)


# Models and rules ----------------------------------------------------------------------------------------------------


@router.get("/models")
def list_models(request: Request, _: Reader) -> dict[str, Any]:
    """The models: what each was trained for, whether it is on, loaded and busy."""
    service: Service = request.app.state.service
    off = models_off(service.db)
    return {"models": [{**one, "on": one["name"] not in off} for one in service.pool.states()]}


@router.post("/models/{name}/switch")
def switch(request: Request, caller: Operator, name: str, given: Switch) -> dict[str, Any]:
    """Switch a model on or off; off, what is queued for it waits."""
    service: Service = request.app.state.service
    if name not in {model.name for model in service.pool.models}:
        raise HTTPException(404, "there is no such model")
    switch_model(service.db, name, given.on, by=caller.name)
    switched_off(request.app).forget()
    service.supervisor.wake()
    _settings(request, caller, what="model", model=name, on=given.on)
    return {"name": name, "on": given.on}


@router.get("/rules")
def list_rules(request: Request, _: Operator) -> dict[str, Any]:
    """Which series each model is given, and what it may do; as the service's file has it."""
    service: Service = request.app.state.service
    rules = []
    for model in service.pool.models:
        entry = model.entry
        rules.append(
            {
                "model": model.name,
                "version": model.version,
                "role": entry.role,
                "urgency": entry.urgency,
                "inputs": list(model.use.images),
                "series": [to_values(rule) for rule in entry.series],
                "results": list(entry.results),
                "to": list(entry.to),
                "intended_use": dict(model.intended_use),
            }
        )
    return {"rules": rules, "completeness": to_values(service.config.completeness)}


# Destinations --------------------------------------------------------------------------------------------------------


@router.get("/destinations")
def list_destinations(request: Request, _: Operator) -> dict[str, Any]:
    """Where results go, and how it went; secrets are left out."""
    service: Service = request.app.state.service
    statement = sa.select(
        deliveries.c.destination,
        deliveries.c.state,
        sa.func.count().label("number"),
        sa.func.max(deliveries.c.sent_at).label("last"),
    ).group_by(deliveries.c.destination, deliveries.c.state)
    counts: dict[str, dict[str, int]] = {}
    last: dict[str, float] = {}
    with service.db.read() as c:
        for row in c.execute(statement):
            counts.setdefault(row.destination, {})[row.state] = row.number
            if row.last is not None:
                last[row.destination] = max(last.get(row.destination, 0.0), row.last)
    troubles = {one.about: one for one in open_events(service.db)}
    shown = []
    for values in service.config.destination:
        name = str(values.get("name", ""))
        trouble = troubles.get(name)
        shown.append(
            {
                **to_values(values),
                **({"folder": str(values["path"])} if values.get("path") else {}),
                "deliveries": counts.get(name, {}),
                "last_sent_at": iso(last.get(name)),
                "trouble": None if trouble is None else {"code": trouble.code, "message": trouble.message},
            }
        )
    return {"destinations": shown}


@router.post("/destinations/{name}/test")
def try_destination(request: Request, caller: Operator, name: str) -> dict[str, Any]:
    """Try to reach a destination, without sending it anything of a patient."""
    service: Service = request.app.state.service
    values = next((one for one in service.config.destination if one.get("name") == name), None)
    if values is None:
        raise HTTPException(404, "there is no such destination")
    started = time.perf_counter()
    try:
        said = reach(parse_destination(values))
        answer = {"ok": True, "message": said, "hurried": service.supervisor.hurry(name)}
    except SagittalError as error:
        answer = {"ok": False, "message": str(error)}
    _settings(request, caller, what="test", destination=name, ok=answer["ok"])
    return {**answer, "seconds": round(time.perf_counter() - started, 3)}


# Work ----------------------------------------------------------------------------------------------------------------


@router.get("/jobs")
def list_jobs(
    request: Request,
    _: Reader,
    state: Annotated[str, Query(max_length=64)] = "",
    kind: Annotated[str, Query(max_length=64)] = "",
    limit: Limit = 100,
    before: Before = 0,
) -> dict[str, Any]:
    """Jobs, the newest first; `before` is the last id of the page before."""
    service: Service = request.app.state.service
    wanted: list[sa.ColumnElement[bool]] = []
    states = [one for one in state.split(",") if one]
    if any(one not in JOB_STATES for one in states):
        raise HTTPException(400, f"states are {', '.join(JOB_STATES)}")
    if states:
        wanted.append(jobs.c.state.in_(states))
    if kind:
        wanted.append(jobs.c.kind.in_(kind.split(",")))
    if before:
        wanted.append(jobs.c.id < before)
    with service.db.read() as c:
        rows = c.execute(sa.select(jobs).where(*wanted).order_by(jobs.c.id.desc()).limit(limit)).mappings().all()
    return {
        "jobs": [job_row(row) for row in rows],
        "next": rows[-1]["id"] if len(rows) == limit else None,
        "counts": service.queue.counts(),
        "paused": service.queue.paused,
    }


@router.post("/queue")
def pause_queue(request: Request, caller: Operator, given: Pause) -> dict[str, Any]:
    """Stop or go on handing out jobs; those at work are finished."""
    service: Service = request.app.state.service
    service.queue.pause(given.paused, by=caller.name)
    service.supervisor.wake()
    _settings(request, caller, what="queue", paused=given.paused)
    return {"paused": given.paused}


@router.get("/events")
def list_events(request: Request, _: Operator, limit: Limit = 100, over: bool = False) -> dict[str, Any]:
    """Troubles that last; with `over` also those that ended."""
    service: Service = request.app.state.service
    found = recent_events(service.db, limit) if over else open_events(service.db)[:limit]
    return {
        "events": [
            {
                "id": one.id,
                "code": one.code,
                "about": one.about,
                "level": one.level,
                "message": one.message,
                "first_at": iso(one.first_at),
                "last_at": iso(one.last_at),
                "count": one.count,
                "over_at": iso(one.over_at),
            }
            for one in found
        ]
    }


# What is kept --------------------------------------------------------------------------------------------------------


@router.get("/storage")
def storage(request: Request, _: Operator) -> dict[str, Any]:
    """How much is kept, how much room there is, and when its hashes were last compared."""
    service: Service = request.app.state.service
    disk = shutil.disk_usage(service.config.server.data)
    with service.db.read() as c:
        count, size = c.execute(
            sa.select(sa.func.coalesce(sa.func.sum(studies.c.instance_count), 0), sa.func.count()).where(
                studies.c.deleted_at.is_(None), studies.c.instance_count > 0
            )
        ).one()
        used = _used(c)
        first, last = c.execute(
            sa.select(sa.func.min(instances.c.checked_at), sa.func.max(instances.c.checked_at))
        ).one()
        damaged = {
            row.damage: row.number
            for row in c.execute(
                sa.select(instances.c.damage, sa.func.count().label("number"))
                .where(instances.c.damage != "")
                .group_by(instances.c.damage)
            )
        }
    return {
        "used": used,
        "free": disk.free,
        "total": disk.total,
        "reserve": service.config.limits.disk_reserve_bytes,
        "studies": size,
        "instances": count,
        "oldest_check": iso(first),
        "last_check": iso(last),
        "damaged": sum(damaged.values()),
        "damage": damaged,
    }


def _used(c: sa.Connection) -> int:
    return int(c.execute(sa.select(sa.func.coalesce(sa.func.sum(instances.c.size), 0))).scalar_one())


@router.get("/conflicts")
def list_conflicts(request: Request, _: Operator, settled: bool = False, limit: Limit = 100) -> dict[str, Any]:
    """Objects that came under a UID that is there already, with other bytes; both are kept."""
    service: Service = request.app.state.service
    statement = (
        sa.select(
            conflicts,
            instances.c.series_id,
            series.c.study_id,
            instances.c.arrived_at.label("first_at"),
            instances.c.source.label("first_source"),
        )
        .join(instances, conflicts.c.instance_id == instances.c.id)
        .join(series, instances.c.series_id == series.c.id)
        .order_by(conflicts.c.id.desc())
        .limit(limit)
    )
    if not settled:
        statement = statement.where(conflicts.c.settled_at.is_(None))
    with service.db.read() as c:
        return {"conflicts": [_conflict(row) for row in c.execute(statement).mappings()]}


def _conflict(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "study_id": row["study_id"],
        "series_id": row["series_id"],
        "instance_id": row["instance_id"],
        "size": row["size"],
        "source": row["source"],
        "arrived_at": iso(row["arrived_at"]),
        "first_source": row["first_source"],
        "first_at": iso(row["first_at"]),
        "settled_at": iso(row["settled_at"]),
        "settled_by": row["settled_by"],
        "decision": row["decision"],
    }


@router.post("/conflicts/{conflict_id}")
def settle(request: Request, caller: Operator, conflict_id: int, given: Decision) -> dict[str, Any]:
    """Say which of the two is right; the other is kept on the disk, and no longer shown."""
    service: Service = request.app.state.service
    with service.db.read() as c:
        row = c.execute(
            sa.select(series.c.study_id)
            .join(instances, conflicts.c.instance_id == instances.c.id)
            .join(series, instances.c.series_id == series.c.id)
            .where(conflicts.c.id == check_key(conflict_id))
        ).first()
    if row is None:
        raise HTTPException(404, "there is no such conflict")
    if not settle_conflict(service.archive, conflict_id, given.decision, by=caller.name):
        raise HTTPException(409, "this conflict was settled before")
    service.audit.record(
        caller.name,
        "conflict",
        role=caller.role,
        address=caller.address,
        study_id=row.study_id,
        details={"conflict": conflict_id, "decision": given.decision},
    )
    service.supervisor.wake()
    return {"id": conflict_id, "decision": given.decision}


@router.get("/refusals")
def list_refusals(request: Request, _: Operator, limit: Limit = 100, before: Before = 0) -> dict[str, Any]:
    """What was received and not kept, with the reason."""
    service: Service = request.app.state.service
    statement = sa.select(refusals).order_by(refusals.c.id.desc()).limit(limit)
    if before:
        statement = statement.where(refusals.c.id < before)
    with service.db.read() as c:
        rows = c.execute(statement).mappings().all()
    shown = [
        {
            "id": r["id"],
            "at": iso(r["at"]),
            "source": r["source"],
            "code": r["code"],
            "reason": r["reason"],
            "count": r["count"],
        }
        for r in rows
    ]
    return {"refusals": shown, "next": rows[-1]["id"] if len(rows) == limit else None}
