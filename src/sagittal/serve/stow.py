"""STOW-RS: instances received part by part straight into the archive, several at a time (PS3.18 10.5)."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import sqlalchemy as sa
from fastapi import APIRouter, Depends, HTTPException, Request
from starlette.responses import Response

from sagittal.archive.refused import ArchiveFull, Refused
from sagittal.database.schema import instances, series, studies
from sagittal.errors import ReadError, ResourceError
from sagittal.serve.instance_rows import is_uid
from sagittal.serve.media_types import DICOM, DICOM_JSON, JSON, RELATED, choose, parse_media_type
from sagittal.serve.multipart import MultipartReader, PartBegin, PartData
from sagittal.serve.security import Caller, allow
from sagittal.serve.wado import accepted, root_of

if TYPE_CHECKING:
    from sagittal.archive.receive import Incoming, Receipt
    from sagittal.serve.service import Service

router = APIRouter(prefix="/dicom-web", tags=["DICOMweb"])
Sender = Annotated[Caller, Depends(allow("send"))]
T = TypeVar("T")
#: A part up to this length is handed to the archive in one go; a longer one piece by piece as it comes.
_SMALL = 2**20
#: Parts that are made safe at the same time, so that they share flushes of the disk.
_AT_ONCE = 32
#: Bytes of a part that are looked at before it is safe: its file meta information, and which study it is of.
_HEAD = 65536
#: Instances of one message.
_MOST_PARTS = 100_000
#: Failure reasons (PS3.18 table 10.5.3-2, PS3.4 annex B.2.3).
_NO_ROOM, _NO_MATCH, _NOT_UNDERSTOOD, _NO_SYNTAX, _OTHER_STUDY, _FAILED = 0xA700, 0xA900, 0xC000, 0xC122, 0xA900, 0x0110
_KEPT_BESIDE = 0xB000
_REASONS = {"transfer-syntax": _NO_SYNTAX, "mismatch": _NO_MATCH, "too-large": _NO_ROOM, "no-pixel-data": _NO_MATCH}


@dataclass
class _Part:
    """What became of one part."""

    receipt: Receipt | None = None
    reason: int = 0
    head: bytes = b""


@dataclass
class _Open:
    """The part that is coming in."""

    part: _Part
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0
    incoming: Incoming | None = None


class Store:
    """Takes the parts of one message into the archive.

    Parameters
    ----------
    service : Service
    source : str
        For the rows of instances.
    study_uid : str, optional
        The study that every instance must belong to.
    turns : asyncio.Semaphore
        Of all messages: how many parts are made safe at the same time.
    """

    def __init__(self, service: Service, source: str, study_uid: str | None, turns: asyncio.Semaphore) -> None:
        self._service, self._source, self._study = service, source, study_uid
        self.parts: list[_Part] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = turns
        self._open: _Open | None = None

    def begin(self, content_type: str) -> None:
        """A part begins."""
        part = _Part()
        self.parts.append(part)
        name, _ = parse_media_type(content_type or DICOM)
        if name not in {DICOM, "application/octet-stream"}:
            part.reason = _NOT_UNDERSTOOD
        self._open = _Open(part)

    async def write(self, data: bytes) -> None:
        """Bytes of the present part."""
        now = self._open
        if now is None or now.part.reason:
            return
        if len(now.part.head) < _HEAD:
            now.part.head += data[: _HEAD - len(now.part.head)]
        now.pieces.append(data)
        now.size += len(data)
        if now.size >= _SMALL:
            await self._hand_over(now)

    async def end(self) -> None:
        """The present part is whole: it is made safe while the next comes in."""
        now, self._open = self._open, None
        if now is None or now.part.reason:
            return
        await self._turns.acquire()
        self._start(self._finished(now))

    async def close(self) -> None:
        """Wait until all parts are safe."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    async def give_up(self) -> None:
        """The message broke off: what is whole is kept, the present part is not."""
        now, self._open = self._open, None
        if now is not None and now.incoming is not None:
            await _threaded(now.incoming.abandon)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hand_over(self, now: _Open) -> None:
        pieces, now.pieces, now.size = now.pieces, [], 0
        try:
            now.incoming = await _threaded(self._written, now.incoming, pieces)
        except (Refused, ResourceError) as error:
            now.part.reason = _reason(error)

    def _written(self, incoming: Incoming | None, pieces: list[bytes]) -> Incoming:
        if incoming is None:
            incoming = self._service.archive.receive(self._source)
        try:
            for piece in pieces:
                incoming.write(piece)
        except BaseException:
            incoming.abandon()
            raise
        return incoming

    async def _finished(self, now: _Open) -> None:
        try:
            now.part.receipt = await _threaded(self._safe, now)
        except (Refused, ResourceError) as error:
            now.part.reason = _reason(error)
        finally:
            self._turns.release()

    def _safe(self, now: _Open) -> Receipt:
        incoming = self._written(now.incoming, now.pieces)
        now.pieces = []
        if self._study is not None and not _belongs(now.part.head, self._study):
            incoming.abandon()
            raise Refused("mismatch", "an instance of another study than the one that is named")
        receipt = incoming.finish()
        now.part.head = b""
        return receipt


def _reason(error: Exception) -> int:
    if isinstance(error, Refused):
        return _REASONS.get(error.code, _NOT_UNDERSTOOD)
    return _NO_ROOM if isinstance(error, ArchiveFull) else _FAILED


def _belongs(head: bytes, study_uid: str) -> bool:
    """Whether the beginning of a file names a study: as bytes, since the archive has not looked into it yet.

    A short file that names none at all is let through, as the archive refuses it with the better reason.
    """
    if len(head) < _HEAD and not any(struct.pack(order + "HH", 0x0020, 0x000D) in head for order in "<>"):
        return True
    wanted = study_uid.encode("ascii")
    value = wanted + b"\0" * (len(wanted) % 2)
    explicit = struct.pack("<HH2sH", 0x0020, 0x000D, b"UI", len(value)) + value
    implicit = struct.pack("<HHI", 0x0020, 0x000D, len(value)) + value
    big = struct.pack(">HH2sH", 0x0020, 0x000D, b"UI", len(value)) + value
    return any(form in head for form in (explicit, implicit, big))


_POOL = ThreadPoolExecutor(_AT_ONCE + 4, thread_name_prefix="stow")


async def _threaded(function: Any, *given: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(_POOL, partial(function, *given))


@router.post("/studies")
async def store(request: Request, caller: Sender) -> Response:
    """Store instances of any study."""
    return await _store(request, caller, None)


@router.post("/studies/{study}")
async def store_in_study(request: Request, caller: Sender, study: str) -> Response:
    """Store instances of one study; those of another are refused."""
    if not is_uid(study):
        raise HTTPException(400, "a UID has digits and dots, at most 64 of them")
    return await _store(request, caller, study)


async def _store(request: Request, caller: Caller, study: str | None) -> Response:
    answer_type = choose(accepted(request), (DICOM_JSON, JSON))
    if answer_type is None:
        raise HTTPException(406, "what was stored is answered as application/dicom+json")
    service: Service = request.app.state.service
    name, parameters = parse_media_type(request.headers.get("content-type", ""))
    inner, _ = parse_media_type(parameters.get("type", DICOM))
    if name not in {RELATED, DICOM} or (name == RELATED and inner != DICOM):
        raise HTTPException(
            415,
            'send multipart/related; type="application/dicom", or application/dicom; headers apart from their pixels are not taken',
        )
    state = request.app.state
    if getattr(state, "stow_turns", None) is None:
        state.stow_turns = asyncio.Semaphore(_AT_ONCE)
    store = Store(service, "stow", study, state.stow_turns)
    try:
        if name == DICOM:
            await _one(request, store)
        else:
            await _several(request, store, parameters.get("boundary", ""))
        await store.close()
    except ReadError as error:
        await store.give_up()
        if not any(part.receipt for part in store.parts):
            raise HTTPException(400, str(error)) from error
        store.parts.append(_Part(reason=_NOT_UNDERSTOOD))  # what came before the damage is kept, and said
    except BaseException:
        await store.give_up()
        raise
    touched = {part.receipt.study_id for part in store.parts if part.receipt is not None}
    text, status = await _threaded(_answer, service, store.parts, root_of(request))
    await _threaded(
        partial(
            service.audit.record,
            caller.name,
            "receive",
            role=caller.role,
            address=caller.address,
            study_id=touched.pop() if len(touched) == 1 else None,
            outcome="done" if status < 400 else "refused",
            details={"how": "stow", "instances": sum(1 for part in store.parts if part.receipt)},
        )
    )
    return Response(text, status, media_type=answer_type)


async def _one(request: Request, store: Store) -> None:
    store.begin(DICOM)
    async for data in request.stream():
        await store.write(data)
    await store.end()


async def _several(request: Request, store: Store, boundary: str) -> None:
    reader = MultipartReader(boundary, most_parts=_MOST_PARTS)
    async for data in request.stream():
        for event in reader.feed(data):
            if isinstance(event, PartData):
                await store.write(event.data)
            elif isinstance(event, PartBegin):
                store.begin(event.fields.get("content-type", ""))
            else:
                await store.end()
    reader.close()


def _answer(service: Service, parts: list[_Part], root: str) -> tuple[str, int]:
    """The JSON of PS3.18 10.5.3.2, and the status."""
    ids = [part.receipt.instance_id for part in parts if part.receipt is not None]
    statement = (
        sa.select(
            instances.c.id,
            instances.c.sop_class_uid,
            instances.c.sop_instance_uid,
            series.c.series_uid,
            studies.c.study_uid,
        )
        .join(series, instances.c.series_id == series.c.id)
        .join(studies, series.c.study_id == studies.c.id)
    )
    rows: dict[int, Any] = {}
    with service.db.read() as c:
        for start in range(0, len(ids), 500):
            for row in c.execute(statement.where(instances.c.id.in_(ids[start : start + 500]))):
                rows[row.id] = row
    kept: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    beside = False
    study_uids = set()
    for part in parts:
        found = rows.get(part.receipt.instance_id) if part.receipt is not None else None
        if found is None:
            sop_class, uid = _announced(part.head)
            reason = part.reason or _FAILED
            failed.append({**_reference(sop_class, uid), "00081197": {"vr": "US", "Value": [reason]}})
            continue
        study_uids.add(found.study_uid)
        url = f"{root}/studies/{found.study_uid}/series/{found.series_uid}/instances/{found.sop_instance_uid}"
        item = {**_reference(found.sop_class_uid, found.sop_instance_uid), "00081190": {"vr": "UR", "Value": [url]}}
        if part.receipt is not None and part.receipt.outcome == "conflict":
            beside = True
            item["00081196"] = {"vr": "US", "Value": [_KEPT_BESIDE]}
        kept.append(item)
    answer: dict[str, Any] = {}
    if len(study_uids) == 1:
        answer["00081190"] = {"vr": "UR", "Value": [f"{root}/studies/{study_uids.pop()}"]}
    if failed:
        answer["00081198"] = {"vr": "SQ", "Value": failed}
    if kept:
        answer["00081199"] = {"vr": "SQ", "Value": kept}
    full = any(part.reason == _NO_ROOM for part in parts)
    nothing = 507 if full else 409 if parts else 400
    return json.dumps(answer), (202 if failed or beside else 200) if kept else nothing


def _reference(sop_class: str, uid: str) -> dict[str, Any]:
    """SOP class and instance; without a value where the part did not say (PS3.18 F.2.5)."""
    pairs = (("00081150", sop_class), ("00081155", uid))
    return {tag: {"vr": "UI", "Value": [value]} if value else {"vr": "UI"} for tag, value in pairs}


def _announced(head: bytes) -> tuple[str, str]:
    """SOP class and instance UID in the file meta information of a part that was not kept."""
    found = []
    for element in (2, 3):
        at = head.find(struct.pack("<HH2s", 2, element, b"UI"), 132)
        length = int.from_bytes(head[at + 6 : at + 8], "little") if at > 0 else 0
        text = head[at + 8 : at + 8 + length].decode("ascii", "replace").strip("\0 ") if length <= 64 else ""
        found.append(text if is_uid(text) else "")
    return found[0], found[1]
