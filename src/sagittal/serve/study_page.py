"""One study for its page: series, why each was used or not, results, reviews, earlier studies; and its images and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, HTTPException, Query, Request
from starlette.responses import FileResponse, Response

from sagittal.database.schema import choices, instances, jobs, objects, results, reviews, series, studies, users
from sagittal.errors import GeometryError
from sagittal.serve.instance_rows import Stored, find_stored
from sagittal.serve.page_rows import iso, job_row, study_row
from sagittal.serve.rendered import parse_view
from sagittal.serve.security import Caller, allow
from sagittal.serve.series_cache import cache_folder, kept_file
from sagittal.serve.views import note_view
from sagittal.serve.volumes import make_volume, slice_picture, volume_name

if TYPE_CHECKING:
    from sagittal.serve.service import Service

router = APIRouter(prefix="/api", tags=["pages"])
Reader = Annotated[Caller, Depends(allow("see"))]
#: Series of these modalities hold no image to look at.
_NO_IMAGES = frozenset(
    {"SR", "KO", "PR", "SEG", "RTSTRUCT", "RTPLAN", "RTRECORD", "REG", "DOC", "AU", "ECG", "FID", "RWV"}
)
_EARLIER, _MOST_JOBS = 20, 200
#: Rows are 64-bit numbers; a larger one names nothing.
_MOST_KEY = 2**63 - 1


def check_key(number: int) -> int:
    """A row's number, or 404 where there can be no such row."""
    if not 0 < number <= _MOST_KEY:
        raise HTTPException(404)
    return number


def find_study(service: Service, study_id: int) -> Mapping[Any, Any]:
    """The row of a study that was not deleted.

    Raises
    ------
    HTTPException
        404 if there is none.
    """
    with service.db.read() as c:
        row = (
            c.execute(sa.select(studies).where(studies.c.id == check_key(study_id), studies.c.deleted_at.is_(None)))
            .mappings()
            .first()
        )
    if row is None:
        raise HTTPException(404, "there is no such study")
    return row


@router.get("/studies/{study_id}")
def show_study(request: Request, caller: Reader, study_id: int) -> dict[str, Any]:
    """A study with all that its page shows."""
    service: Service = request.app.state.service
    row = find_study(service, study_id)
    note_view(request, caller, [study_id])
    with service.db.read() as c:
        return {
            **study_row(row),
            "study_uid": row["study_uid"],
            "series": _series(c, study_id),
            "choices": _choices(c, study_id),
            "results": _results(c, study_id, service),
            "earlier": _earlier(c, row),
            "jobs": [
                job_row(job)
                for job in c.execute(
                    sa.select(jobs).where(jobs.c.study_id == study_id).order_by(jobs.c.id.desc()).limit(_MOST_JOBS)
                ).mappings()
            ],
        }


def _series(c: sa.Connection, study_id: int) -> list[dict[str, Any]]:
    images = sa.func.count(instances.c.rows).label("images")
    statement = (
        sa.select(series, images)
        .outerjoin(instances, instances.c.series_id == series.c.id)
        .where(series.c.study_id == study_id)
        .group_by(series.c.id)
        .order_by(series.c.number, series.c.id)
    )
    return [
        {
            "id": row["id"],
            "series_uid": row["series_uid"],
            "modality": row["modality"],
            "body_part": row["body_part"],
            "description": row["description"],
            "number": row["number"],
            "instances": row["instance_count"],
            "complete_at": iso(row["complete_at"]),
            "completed_by": row["completed_by"],
            "revision": row["revision"],
            "problem": row["problem"],
            "volume": bool(row["images"]) and row["modality"] not in _NO_IMAGES,
        }
        for row in c.execute(statement).mappings()
    ]


def _choices(c: sa.Connection, study_id: int) -> list[dict[str, Any]]:
    rows = c.execute(sa.select(choices).where(choices.c.study_id == study_id).order_by(choices.c.id)).mappings()
    last = {(row["series_id"], row["model"]): row for row in rows}  # of each series the last revision counts
    return [
        {
            "series_id": row["series_id"],
            "model": row["model"],
            "used": row["used"],
            "reason": row["reason"],
            "at": iso(row["at"]),
        }
        for row in last.values()
    ]


def _results(c: sa.Connection, study_id: int, service: Service) -> list[dict[str, Any]]:
    rows = (
        c.execute(sa.select(results).where(results.c.study_id == study_id).order_by(results.c.id.desc()))
        .mappings()
        .all()
    )
    files: dict[int, list[dict[str, Any]]] = {}
    said: dict[int, list[dict[str, Any]]] = {}
    for one in c.execute(
        sa.select(objects)
        .join(results, objects.c.result_id == results.c.id)
        .where(results.c.study_id == study_id)
        .order_by(objects.c.id)
    ).mappings():
        files.setdefault(one["result_id"], []).append(
            {"id": one["id"], "kind": one["kind"], "media_type": one["media_type"], "size": one["size"]}
        )
    for one in c.execute(
        sa.select(reviews, users.c.name)
        .join(users, reviews.c.user_id == users.c.id)
        .where(reviews.c.study_id == study_id)
        .order_by(reviews.c.id)
    ).mappings():
        said.setdefault(one["result_id"], []).append(
            {
                "id": one["id"],
                "user": one["name"],
                "at": iso(one["at"]),
                "verdict": one["verdict"],
                "reason": one["reason"],
                "correction": shown_correction(one["id"], one["correction"]),
            }
        )
    return [_result(row, files.get(row["id"], []), said.get(row["id"], []), service) for row in rows]


def shown_correction(review_id: int, correction: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A correction as pages see it: of a mask the address, not the file."""
    if correction is None:
        return None
    shown = dict(correction)
    if "mask" in shown:
        shown["mask"] = {"url": f"/api/reviews/{review_id}/mask.nii.gz"}
    return shown


def _result(
    row: Mapping[Any, Any], files: Sequence[dict[str, Any]], said: list[dict[str, Any]], service: Service
) -> dict[str, Any]:
    finding = row["finding"] or {}
    mask = next((_address(row["id"], one) for one in files if one["kind"] == "mask"), None)
    return {
        "id": row["id"],
        "model": row["model"],
        "version": row["version"],
        "checksum": row["checksum"],
        "role": row["role"],
        "state": row["state"],
        "summary": row["summary"],
        "confidence": row["confidence"],
        "finding": finding,
        "reason": row["reason"],
        "seconds": row["seconds"],
        "created_at": iso(row["created_at"]),
        "replaced_by": row["replaced_by"],
        "series": row["series"],
        "objects": list(files),
        "reviews": said,
        "intended_use": intended_use(service, row["checksum"]),
        "masks": [
            {"name": one.get("name"), "index": one.get("index"), "colour": one.get("colour"), "url": mask}
            for one in finding.get("structures", [])
            if mask is not None
        ],
        "boxes": finding.get("boxes", []),
        "maps": [
            {"name": one["kind"], "url": _address(row["id"], one), "media_type": one["media_type"]}
            for one in files
            if one["kind"] == "map"
        ],
    }


def _address(result_id: int, one: Mapping[str, Any]) -> str:
    """Where a file is: by a name that says how it is read, as viewers go by that."""
    if one["media_type"] == "application/gzip":
        return f"/api/results/{result_id}/{one['kind']}.nii.gz"
    return f"/api/objects/{one['id']}"


def intended_use(service: Service, checksum: str) -> dict[str, Any]:
    """What a model was trained for; empty where it is no longer served."""
    for model in service.pool.models:
        if model.checksum == checksum:
            return {**model.intended_use, "task": model.task, "classes": list(model.classes)}
    return {}


def _earlier(c: sa.Connection, row: Mapping[Any, Any]) -> list[dict[str, Any]]:
    if not row["patient_id"]:
        return []
    statement = (
        sa.select(studies)
        .where(studies.c.patient_id == row["patient_id"], studies.c.id != row["id"], studies.c.deleted_at.is_(None))
        .order_by(studies.c.study_date.desc(), studies.c.id.desc())
        .limit(_EARLIER)
    )
    keys = ("id", "study_date", "description", "finding", "modalities", "status", "verdict")
    return [
        {key: one for key, one in study_row(other).items() if key in keys} for other in c.execute(statement).mappings()
    ]


# Images --------------------------------------------------------------------------------------------------------------


def volume_file(service: Service, members: Sequence[Stored], part: str) -> Path:
    """The kept volume of a series, made if it is not there yet."""
    files = [service.archive.path_of(one.path) for one in members]
    name = volume_name(members, part)
    try:
        return kept_file(
            cache_folder(service), members[0].series_id, name, lambda target: make_volume(files, part, target)
        )
    except GeometryError as error:
        raise HTTPException(422, str(error)) from error


def _members(request: Request, caller: Caller, series_id: int) -> list[Stored]:
    service: Service = request.app.state.service
    members = [one for one in find_stored(service.db, series_id=check_key(series_id)) if one.rows]
    if not members:
        raise HTTPException(404, "there is no such series, or it holds no images")
    note_view(request, caller, {members[0].study_id})
    return members


@router.get("/series/{series_id}/volume.nii.gz")
def series_volume(
    request: Request, caller: Reader, series_id: int, part: Annotated[str, Query(max_length=64)] = ""
) -> Response:
    """The volume of a series as NIfTI, where its voxels lie in the patient (RAS+); `part` chooses one of several."""
    service: Service = request.app.state.service
    path = volume_file(service, _members(request, caller, series_id), part)
    return FileResponse(
        path,
        media_type="application/gzip",
        headers={"etag": f'"{path.name[:48]}"', "cache-control": "private, no-cache"},
    )


@router.get("/series/{series_id}/slices")
def series_slice(
    request: Request,
    caller: Reader,
    series_id: int,
    plane: Annotated[str, Query(max_length=16)] = "axial",
    index: Annotated[int | None, Query(ge=0, le=10**6)] = None,
    window: Annotated[str, Query(max_length=64)] = "",
    part: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """One plane of a series as PNG; `window` is center and width with a comma between."""
    service: Service = request.app.state.service
    asked = parse_view({"window": window}).window if window else None
    path = volume_file(service, _members(request, caller, series_id), part)
    picture = slice_picture(path, plane, index, None if asked is None else (asked.center, asked.width))
    return Response(picture, media_type="image/png", headers={"cache-control": "private, no-cache"})


# Files ---------------------------------------------------------------------------------------------------------------


@router.get("/objects/{object_id}")
def get_object(request: Request, caller: Reader, object_id: int) -> Response:
    """A file of a result, byte for byte."""
    return _object(request, caller, objects.c.id == check_key(object_id))


@router.get("/results/{result_id}/mask.nii.gz")
def get_mask(request: Request, caller: Reader, result_id: int) -> Response:
    """The label map of a result as NIfTI, on the grid of its series."""
    return _object(request, caller, sa.and_(objects.c.result_id == check_key(result_id), objects.c.kind == "mask"))


@router.get("/results/{result_id}/map.nii.gz")
def get_map(request: Request, caller: Reader, result_id: int) -> Response:
    """Where the model looked, 0 to 255, as NIfTI on the grid of its series."""
    return _object(request, caller, sa.and_(objects.c.result_id == check_key(result_id), objects.c.kind == "map"))


@router.get("/reviews/{review_id}/mask.nii.gz")
def get_corrected_mask(request: Request, caller: Reader, review_id: int) -> Response:
    """The label map as a reader corrected it."""
    service: Service = request.app.state.service
    statement = (
        sa.select(reviews.c.correction, reviews.c.study_id)
        .join(studies, reviews.c.study_id == studies.c.id)
        .where(reviews.c.id == check_key(review_id), studies.c.deleted_at.is_(None))
    )
    with service.db.read() as c:
        row = c.execute(statement).first()
    kept = (row.correction or {}).get("mask") if row is not None else None
    if row is None or not kept:
        raise HTTPException(404, "there is no such mask")
    note_view(request, caller, [row.study_id])
    return FileResponse(
        service.archive.path_of(kept["path"]),
        media_type="application/gzip",
        headers={"cache-control": "private, no-cache"},
    )


def _object(request: Request, caller: Caller, which: sa.ColumnElement[bool]) -> Response:
    service: Service = request.app.state.service
    statement = (
        sa.select(objects, results.c.study_id)
        .join(results, objects.c.result_id == results.c.id)
        .join(studies, results.c.study_id == studies.c.id)
        .where(which, studies.c.deleted_at.is_(None))
    )
    with service.db.read() as c:
        row = c.execute(statement).mappings().first()
    path = service.archive.path_of(row["path"]) if row is not None else None
    if row is None or path is None or not path.is_file():
        raise HTTPException(404, "there is no such file")
    note_view(request, caller, [row["study_id"]])
    headers = {
        "etag": f'"{row["sha256"][:32]}"',
        "cache-control": "private, no-cache",
        # Nothing of a result is run as a page of ours, whatever it holds.
        "content-security-policy": "default-src 'none'; sandbox",
    }
    return FileResponse(path, media_type=row["media_type"], headers=headers)
