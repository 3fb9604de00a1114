"""The audit trail as the administrator's page shows and checks it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Query, Request

from sagittal.database.schema import audit
from sagittal.protect.audit import verify
from sagittal.serve.page_rows import iso
from sagittal.serve.security import Caller, allow

if TYPE_CHECKING:
    from sagittal.serve.service import Service

router = APIRouter(prefix="/api", tags=["administration"])
Auditor = Annotated[Caller, Depends(allow("audit"))]
Limit = Annotated[int, Query(ge=1, le=1000)]
_AUDIT = ("number", "actor", "role", "address", "action", "study_id", "outcome", "details", "hash")


@router.get("/audit")
def read_audit(
    request: Request,
    caller: Auditor,
    after: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0,
    limit: Limit = 100,
    action: Annotated[str, Query(max_length=32)] = "",
    actor: Annotated[str, Query(max_length=256)] = "",
    study_id: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0,
) -> dict[str, Any]:
    """The trail, the newest first; `after` is the last number of the page before."""
    service: Service = request.app.state.service
    wanted = [audit.c.number < after] if after else []
    if action:
        wanted.append(audit.c.action == action)
    if actor:
        wanted.append(audit.c.actor == actor)
    if study_id:
        wanted.append(audit.c.study_id == study_id)
    with service.db.read() as c:
        rows = c.execute(sa.select(audit).where(*wanted).order_by(audit.c.number.desc()).limit(limit)).mappings().all()
    service.audit.record(caller.name, "audit-read", role=caller.role, address=caller.address)
    return {
        "records": [{**{key: row[key] for key in _AUDIT}, "at": iso(row["at"])} for row in rows],
        "next": rows[-1]["number"] if len(rows) == limit else None,
    }


@router.get("/audit/verify")
def verify_audit(request: Request, caller: Auditor) -> dict[str, Any]:
    """Walk the trail's chain of hashes."""
    service: Service = request.app.state.service
    verdict = verify(service.db)
    service.audit.record(
        caller.name, "audit-read", role=caller.role, address=caller.address, details={"what": "verify"}
    )
    return {"sound": verdict.sound, "records": verdict.records, "head": verdict.head, "problem": verdict.problem}
