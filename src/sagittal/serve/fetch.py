"""Asking a configured PACS for a study by its accession number, or for earlier studies of a patient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field

from sagittal.jobs.fetch_job import MOST_PRIORS, queue_fetch
from sagittal.serve.security import Caller, allow
from sagittal.serve.study_page import find_study

if TYPE_CHECKING:
    from sagittal.serve.service import Service

router = APIRouter(prefix="/api", tags=["pages"])
Reader = Annotated[Caller, Depends(allow("see"))]
Steering = Annotated[Caller, Depends(allow("steer"))]


class Wanted(BaseModel):
    """A study by its accession number, of one of the PACS that :func:`list_pacs` names."""

    model_config = ConfigDict(extra="forbid")
    pacs: str = Field(max_length=64)
    accession: str = Field(min_length=1, max_length=64, pattern=r"^[^*?\\\x00-\x1f]+$")


class Earlier(BaseModel):
    """How many earlier studies are wanted, the newest first."""

    model_config = ConfigDict(extra="forbid")
    pacs: str = Field(max_length=64)
    most: int = Field(1, ge=1, le=MOST_PRIORS)


@router.get("/pacs")
def list_pacs(request: Request, _: Reader) -> dict[str, list[str]]:
    """The PACS that studies can be fetched from, by name."""
    service: Service = request.app.state.service
    return {"pacs": [peer.name for peer in service.config.pacs]}


@router.post("/fetch", status_code=202)
def fetch_study(request: Request, caller: Steering, given: Wanted) -> dict[str, int | None]:
    """Fetch a study; the job's row, ``null`` where the same is being fetched already."""
    return {"job": _queue(request, caller, given.pacs, accession=given.accession)}


@router.post("/studies/{study_id}/earlier", status_code=202)
def fetch_earlier(request: Request, caller: Steering, study_id: int, given: Earlier) -> dict[str, int | None]:
    """Fetch earlier studies of the same patient; the job's row, ``null`` where they were fetched already."""
    service: Service = request.app.state.service
    find_study(service, study_id)
    return {"job": _queue(request, caller, given.pacs, study_id=study_id, priors=given.most)}


def _queue(request: Request, caller: Caller, pacs: str, **asked: Any) -> int | None:
    service: Service = request.app.state.service
    if pacs not in {peer.name for peer in service.config.pacs}:
        raise HTTPException(404, "the service knows no such PACS")
    with service.db.write() as c:
        job = queue_fetch(c, pacs, **asked)
    service.supervisor.wake()
    service.audit.record(
        caller.name,
        "steer",
        role=caller.role,
        address=caller.address,
        study_id=asked.get("study_id"),
        details={"what": "fetch", "pacs": pacs, "job": job},
    )
    return job
