"""REST for programs: give in a picture or a study and get the answer, at once or as a job with progress."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from starlette.responses import FileResponse, JSONResponse, Response

from sagittal.archive.refused import ArchiveFull, Refused, record_refusal
from sagittal.database.schema import jobs, results, studies
from sagittal.errors import ReadError
from sagittal.jobs.packages import ServedModel
from sagittal.jobs.predict_now import MOST_BYTES, Busy, Instant, PredictNow
from sagittal.jobs.worker import AnswerError, WorkerEnded
from sagittal.serve.file_streams import in_thread
from sagittal.serve.inference_protocol import model_named, switched_off
from sagittal.serve.media_types import parse_media_type
from sagittal.serve.multipart import MultipartReader, PartBegin, PartData
from sagittal.serve.page_rows import iso
from sagittal.serve.recorder import Recorder
from sagittal.serve.security import Caller, allow
from sagittal.serve.study_page import check_key
from sagittal.serve.upload_files import Uploading, queue_upload
from sagittal.serve.views import note_view

if TYPE_CHECKING:
    from sagittal.serve.service import Service

router = APIRouter(prefix="/v1", tags=["REST"])
Sender = Annotated[Caller, Depends(allow("send"))]
Reader = Annotated[Caller, Depends(allow("see"))]
#: What a study's status means for a job that brought it in.
_OVER = frozenset({"answered", "abstained", "refused", "failed", "no-model"})
#: Bytes of pictures that are held at a time, and callers that wait for a model that is being loaded.
_MOST_HELD, _MOST_WAITING = 2**29, 64
_WAITING = ThreadPoolExecutor(_MOST_WAITING, thread_name_prefix="sagittal-waiting")
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_PREDICT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "responses": {"202": {"description": "Taken in: look at the job for the answer."}},
}


def uploads_folder(service: Service) -> Path:
    """Where uploads wait for their job."""
    return Path(service.config.server.data) / "uploads"


@router.post("/predict", openapi_extra=_PREDICT)
async def predict(
    request: Request,
    caller: Sender,
    model: Annotated[str, Query(max_length=256)] = "",
    version: Annotated[str, Query(max_length=64)] = "",
    urgency: Annotated[int, Query(ge=0, le=2)] = 0,
) -> Response:
    """Answer a picture at once, or take in a study.

    The body is one file, or a form of several. One small picture for a model of classes is answered in the response. Other
    files that name a `model` are answered by it as a job, and not kept. DICOM that names none goes into the archive, where
    the rules choose. 202 comes with the job's address.
    """
    chosen = await in_thread(model_named, request.app, model, version) if model else await _only_instant(request.app)
    name, parameters = parse_media_type(request.headers.get("content-type", ""))
    length = request.headers.get("content-length", "")
    size = int(length) if length.isdigit() and len(length) < 12 else MOST_BYTES + 1
    told: dict[str, Any] = {"model": chosen if model else None, "urgency": urgency}
    if chosen is None or not chosen.instant or size > MOST_BYTES:
        return await _take(request, caller, None, name, parameters, **told)
    with _room(request, size):
        body = await request.body()
        picture = _only_file(body, parameters.get("boundary", "")) if name == "multipart/form-data" else body
        if picture and picture[:4] not in _ZIP:
            return await _at_once(request, caller, chosen, picture)
        return await _take(request, caller, body, name, parameters, **told)


@contextmanager
def _room(request: Request, size: int) -> Iterator[None]:
    """Memory for a body, while it is there.

    Raises
    ------
    HTTPException
        503 if others fill it.
    """
    state = request.app.state
    held = getattr(state, "bodies", 0)
    if held + size > _MOST_HELD:
        raise HTTPException(503, "too many pictures at a time", {"Retry-After": "1"})
    state.bodies = held + size
    try:
        yield
    finally:
        state.bodies -= size


async def _only_instant(app: FastAPI) -> ServedModel | None:
    """The one model that answers pictures at once, where the service has one model and it does."""
    models = app.state.service.pool.models
    if len(models) != 1 or not (models[0].instant and models[0].answers):
        return None
    only: ServedModel = models[0]
    off = switched_off(app).recall()
    return None if only.name in (await in_thread(switched_off(app).names) if off is None else off) else only


def _only_file(body: bytes, boundary: str) -> bytes:
    """The file in a form of one file; nothing where there are several, or fields beside it."""
    found: list[bytes] = []
    reader = MultipartReader(boundary)
    for event in reader.feed(body):
        if isinstance(event, PartBegin):
            found.append(b"")
        elif isinstance(event, PartData):
            found[-1] = found[-1] + event.data if found[-1] else event.data
    reader.close()
    return found[0] if len(found) == 1 else b""


async def _at_once(request: Request, caller: Caller, model: ServedModel, picture: bytes) -> Response:
    service: Service = request.app.state.service
    instant = service.predict_now
    details = {"model": model.name, "version": model.version, "how": "picture"}
    # The record is on the disk before the answer goes out; it is written while the model computes.
    record = recorder(request.app).record(
        caller.name, "predict", role=caller.role, address=caller.address, details=details
    )
    try:
        if service.pool.ready(model.checksum):
            answer = await asyncio.wrap_future(instant.submit(model, picture))
        else:
            answer = await _waited(instant.predict, model, picture)
    except WorkerEnded:
        answer = await _again(instant, model, picture)
    except Busy as error:
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
    except AnswerError as error:
        raise HTTPException(503 if error.again else 422, str(error)) from error
    finally:
        await record
    if answer.error:
        status = 400 if answer.error in {"ReadError", "ConfigError", "DataError"} else 422
        raise HTTPException(status, answer.message)
    return Response(answer.body, media_type="application/json")


def recorder(app: FastAPI) -> Recorder:
    """The one of an application."""
    if getattr(app.state, "recorder", None) is None:
        app.state.recorder = Recorder(app.state.service.audit)
    found: Recorder = app.state.recorder
    return found


async def _waited(function: Callable[..., Instant], *given: Any) -> Instant:
    """Call what may take as long as a model takes to load."""
    return await asyncio.get_running_loop().run_in_executor(_WAITING, partial(function, *given))


async def _again(instant: PredictNow, model: ServedModel, picture: bytes) -> Instant:
    try:
        return await _waited(lambda: instant.submit(model, picture, alone=True).result())
    except Busy as error:
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
    except (WorkerEnded, AnswerError) as error:
        raise HTTPException(503, str(error)) from error


# Taking in -----------------------------------------------------------------------------------------------------------


async def _take(
    request: Request,
    caller: Caller,
    body: bytes | None,
    name: str,
    parameters: Mapping[str, str],
    *,
    model: ServedModel | None,
    urgency: int,
) -> Response:
    service: Service = request.app.state.service
    limits = service.config.limits
    uploading = await in_thread(
        Uploading, uploads_folder(service), most_files=limits.most_files, reserve=limits.disk_reserve_bytes
    )
    try:
        if name == "multipart/form-data":
            await _form(request, body, uploading, parameters.get("boundary", ""))
        else:
            uploading.begin(_ending(name))
            async for data in _pieces(request, body):
                await in_thread(uploading.write, data)
            await in_thread(uploading.end)
        upload = await in_thread(uploading.finish)
    except (Refused, ReadError, ArchiveFull) as error:
        await in_thread(uploading.abandon)
        if not isinstance(error, ArchiveFull):
            code = error.code if isinstance(error, Refused) else "unreadable"
            await in_thread(record_refusal, service.db, "rest", code, str(error))
        raise
    except BaseException:
        await in_thread(uploading.abandon)
        raise
    job, new = await in_thread(
        partial(queue_upload, service.db, upload, model=model.checksum if model else "", urgency=urgency)
    )
    if new:
        service.supervisor.wake()
    else:
        await in_thread(uploading.abandon)
    await in_thread(
        partial(
            service.audit.record,
            caller.name,
            "import",
            role=caller.role,
            address=caller.address,
            details={"how": "rest", "job": job, "files": len(upload.files), "bytes": upload.size, "new": new},
        )
    )
    where = f"/v1/jobs/{job}"
    return JSONResponse({"job": job, "new": new, "url": where}, 202, headers={"location": where})


def _ending(media_type: str) -> str:
    known = {
        "application/gzip": ".nii.gz",
        "application/x-gzip": ".nii.gz",
        "application/dicom": ".dcm",
        "application/zip": ".zip",
    }
    return "file" + (known.get(media_type) or mimetypes.guess_extension(media_type) or "")


async def _pieces(request: Request, body: bytes | None) -> Any:
    if body is not None:
        yield body
        return
    held: list[bytes] = []
    size = 0
    async for data in request.stream():
        held.append(data)
        size += len(data)
        if size >= 2**20:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


async def _form(request: Request, body: bytes | None, uploading: Uploading, boundary: str) -> None:
    reader = MultipartReader(boundary)
    is_file = False
    async for data in _pieces(request, body):
        for event in reader.feed(data):
            if isinstance(event, PartBegin):
                _, fields = parse_media_type(event.fields.get("content-disposition", ""))
                is_file = "filename" in fields
                if is_file:
                    await in_thread(uploading.begin, fields["filename"][:1024], fields.get("name", "")[:64])
            elif not is_file:
                continue
            elif isinstance(event, PartData):
                await in_thread(uploading.write, event.data)
            else:
                await in_thread(uploading.end)
    reader.close()


# Jobs ----------------------------------------------------------------------------------------------------------------


@router.get("/jobs/{job_id}")
def show_job(request: Request, caller: Reader, job_id: int) -> dict[str, Any]:
    """A job that was given in, and what came of it."""
    service: Service = request.app.state.service
    row = _upload(service, job_id)
    outcome = row["outcome"] or {}
    shown: dict[str, Any] = {
        "id": job_id,
        "state": {
            "waiting": "waiting",
            "leased": "running",
            "done": "done",
            "dead": "failed",
            "cancelled": "cancelled",
        }[row["state"]],
        "progress": row["progress"],
        "error": row["error"],
        "created_at": iso(row["created_at"]),
        "finished_at": iso(row["finished_at"]),
    }
    if row["state"] != "done":
        return shown
    if "answer" in outcome:
        files = [
            {"kind": one["kind"], "media_type": one["media_type"], "url": f"/v1/jobs/{job_id}/files/{n}"}
            for n, one in enumerate(outcome.get("files", []))
        ]
        return {**shown, "answer": outcome["answer"], "files": files, "notes": outcome.get("notes", [])}
    found = _studies(service, list(outcome.get("studies", [])))
    note_view(request, caller, [one["id"] for one in found])
    over = [one for one in found if one["status"] in _OVER]
    if len(over) < len(found):
        shown |= {"state": "running", "progress": round(0.5 + 0.5 * len(over) / len(found), 3)}
    return {**shown, "instances": outcome.get("instances", {}), "refused": outcome.get("refused", []), "studies": found}


def _upload(service: Service, job_id: int) -> Mapping[Any, Any]:
    with service.db.read() as c:
        row = (
            c.execute(sa.select(jobs).where(jobs.c.id == check_key(job_id), jobs.c.kind == "upload")).mappings().first()
        )
    if row is None:
        raise HTTPException(404, "there is no such job")
    return row


def _studies(service: Service, ids: list[int]) -> list[dict[str, Any]]:
    with service.db.read() as c:
        rows = (
            c.execute(
                sa.select(studies)
                .where(studies.c.id.in_(ids[:500]), studies.c.deleted_at.is_(None))
                .order_by(studies.c.id)
            )
            .mappings()
            .all()
        )
        answers: dict[int, list[dict[str, Any]]] = {}
        for one in c.execute(
            sa.select(results).where(
                results.c.study_id.in_([row["id"] for row in rows]),
                results.c.replaced_by.is_(None),
                results.c.role == "answers",
            )
        ).mappings():
            answers.setdefault(one["study_id"], []).append(
                {
                    "id": one["id"],
                    "model": one["model"],
                    "version": one["version"],
                    "state": one["state"],
                    "summary": one["summary"],
                    "confidence": one["confidence"],
                    "reason": one["reason"],
                    "finding": one["finding"],
                }
            )
    keys = ("id", "study_uid", "status", "finding", "confidence", "abstained")
    return [{**{key: row[key] for key in keys}, "results": answers.get(row["id"], [])} for row in rows]


@router.get("/jobs/{job_id}/files/{number}")
def get_job_file(request: Request, _: Reader, job_id: int, number: int) -> Response:
    """A file that a job made."""
    service: Service = request.app.state.service
    files = (_upload(service, job_id)["outcome"] or {}).get("files", [])
    if not 0 <= number < len(files):
        raise HTTPException(404, "there is no such file")
    path = service.archive.path_of(files[number]["path"])
    if not path.is_file():
        raise HTTPException(404, "there is no such file")
    return FileResponse(path, media_type=files[number]["media_type"], headers={"cache-control": "private, no-cache"})
