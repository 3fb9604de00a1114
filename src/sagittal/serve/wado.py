"""WADO-RS: stored instances, frames, pictures, headers and large values over HTTP (PS3.18 10.4)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request
from starlette.responses import FileResponse, Response

from sagittal.errors import ConfigError, ReadError
from sagittal.serve import file_streams
from sagittal.serve.file_streams import FilePart, PiecesResponse, in_thread, multipart_answer
from sagittal.serve.frames import FRAME_TYPES, FrameIndex, open_frames
from sagittal.serve.instance_rows import Stored, find_stored, is_uid
from sagittal.serve.media_types import (
    DICOM,
    DICOM_JSON,
    EXPLICIT_LITTLE,
    JSON,
    OCTETS,
    MediaRange,
    choose,
    parse_accept,
)
from sagittal.serve.metadata import bulk_value, instance_metadata, linked, series_metadata
from sagittal.serve.rendered import PICTURES, View, parse_view, render
from sagittal.serve.security import Caller, allow
from sagittal.serve.series_cache import cache_folder
from sagittal.serve.transcode import can_decode, explicit_file
from sagittal.serve.views import note_view

router = APIRouter(prefix="/dicom-web", tags=["DICOMweb"])
Reader = Annotated[Caller, Depends(allow("see"))]
#: Frames of one answer.
_MOST_FRAMES = 10_000
_STORED, _ONE = "/studies/{study}", "/studies/{study}/series/{series}/instances/{uid}"


def accepted(request: Request) -> tuple[MediaRange, ...]:
    """What the client accepts: by the header, or by the query parameter ``accept`` that stands for it (PS3.18 8.3.3.1)."""
    return parse_accept(request.query_params.get("accept") or request.headers.get("accept"))


def root_of(request: Request) -> str:
    """The address of DICOMweb as clients see it.

    Some clients leave the port out of the Host header; where they reach us by our own address, it is added.
    """
    server = request.app.state.service.config.server
    if server.public_url:
        return f"{server.public_url.rstrip('/')}/dicom-web"
    base = request.base_url
    own, port = request.scope.get("server") or ("", None)
    if base.port is None and port not in {None, 80, 443} and base.hostname in {own, server.host, "localhost"}:
        base = base.replace(port=port)
    return f"{str(base).rstrip('/')}/dicom-web"


async def stored_or_404(request: Request, caller: Caller, *uids: str) -> list[Stored]:
    """The instances that a path names.

    Raises
    ------
    HTTPException
        400 where a UID is none, 404 where nothing is stored under it.
    """
    if not all(is_uid(uid) for uid in uids):
        raise HTTPException(400, "a UID has digits and dots, at most 64 of them")
    names = dict(zip(("study_uid", "series_uid", "uid"), uids, strict=False))
    service = request.app.state.service
    members = await in_thread(find_stored, service.db, **names)
    if not members:
        raise HTTPException(404, "nothing is stored under this UID")
    await in_thread(note_view, request, caller, {one.study_id for one in members})
    return members


# Instances -----------------------------------------------------------------------------------------------------------


def _instance_part(one: Stored, ranges: Sequence[MediaRange], folder: Path) -> FilePart | None:
    """One instance in the most wanted form that it can be given in."""
    path = folder / one.path
    as_stored = f"{DICOM}; transfer-syntax={one.syntax}"
    for wanted in ranges:
        if not wanted.fits(DICOM):
            continue
        # Where the client names the type, no transfer syntax means the default one; "*/*" leaves all to us.
        syntax = wanted.syntax or (EXPLICIT_LITTLE if wanted.name == DICOM else "*")
        if syntax in {"*", one.syntax}:
            return FilePart(as_stored, path, one.size)
        if syntax == EXPLICIT_LITTLE and can_decode(one.syntax):
            made = f"{DICOM}; transfer-syntax={EXPLICIT_LITTLE}"
            return FilePart(made, path, make=partial(explicit_file, path), otherwise=as_stored)
    return None


def _etag(members: Sequence[Stored], *form: str) -> str:
    key = "".join(one.sha256 for one in members) + "|".join(form)
    return f'W/"{hashlib.sha256(key.encode()).hexdigest()[:32]}"'


def _unchanged(request: Request, etag: str) -> bool:
    given = request.headers.get("if-none-match", "")
    return etag.removeprefix("W/") in [one.strip().removeprefix("W/") for one in given.split(",")]


async def _instances(request: Request, caller: Caller, *uids: str) -> Response:
    members = await stored_or_404(request, caller, *uids)
    ranges = accepted(request)
    folder = request.app.state.service.archive.folder
    made = [_instance_part(one, ranges, folder) for one in members]
    parts = [part for part in made if part is not None]
    if not parts:
        raise HTTPException(406, "stored in a transfer syntax that is not accepted; ask for transfer-syntax=*")
    best = next(wanted for wanted in ranges if wanted.fits(DICOM))
    single = len(members) == 1 and not best.multipart and best.name == DICOM
    if not best.multipart and best.name == DICOM and len(members) > 1:
        raise HTTPException(406, 'several instances are answered as multipart/related; type="application/dicom"')
    etag = _etag(members, *(part.content_type for part in parts))
    headers = {"etag": etag, "cache-control": "private, no-cache", "vary": "accept"}
    if _unchanged(request, etag):
        return Response(status_code=304, headers=headers)
    if single:
        return await _single(parts[0], headers)
    status = 200 if len(parts) == len(members) else 206
    return multipart_answer(parts, kind=DICOM, headers=headers, status_code=status)


async def _single(part: FilePart, headers: dict[str, str]) -> Response:
    if part.make is None and part.path is not None:
        return FileResponse(part.path, media_type=part.content_type, headers=headers)
    assert part.make is not None and part.path is not None  # noqa: PT018
    try:
        return Response(await in_thread(part.make), media_type=part.content_type, headers=headers)
    except ReadError as error:
        raise HTTPException(406, "the pixels cannot be decoded; ask for transfer-syntax=*") from error


@router.get(_STORED)
async def retrieve_study(request: Request, caller: Reader, study: str) -> Response:
    """All instances of a study."""
    return await _instances(request, caller, study)


@router.get(_STORED + "/series/{series}")
async def retrieve_series(request: Request, caller: Reader, study: str, series: str) -> Response:
    """All instances of a series."""
    return await _instances(request, caller, study, series)


@router.get(_ONE)
async def retrieve_instance(request: Request, caller: Reader, study: str, series: str, uid: str) -> Response:
    """One instance."""
    return await _instances(request, caller, study, series, uid)


# Headers -------------------------------------------------------------------------------------------------------------


async def _metadata(request: Request, caller: Caller, *uids: str) -> Response:
    media_type = choose(accepted(request), (DICOM_JSON, JSON))
    if media_type is None:
        raise HTTPException(406, "headers are answered as application/dicom+json")
    members = await stored_or_404(request, caller, *uids)
    service, root = request.app.state.service, root_of(request)
    etag = _etag(members, "metadata", root)
    headers = {"etag": etag, "cache-control": "private, no-cache", "vary": "accept"}
    if _unchanged(request, etag):
        return Response(status_code=304, headers=headers)

    def texts() -> Iterator[str]:
        if len(uids) == 3:
            yield from (instance_metadata(service.archive.folder / one.path, one) for one in members)
            return
        by_series: dict[int, list[Stored]] = {}
        for one in members:
            by_series.setdefault(one.series_id, []).append(one)
        for own in by_series.values():
            yield from series_metadata(service.archive.folder, cache_folder(service), own)

    def pieces() -> Iterator[bytes]:
        mark = "["
        for text in texts():
            yield (mark + linked(text, root)).encode()
            mark = ","
        yield b"]"

    return PiecesResponse(_joined(pieces()), media_type, headers=headers)


def _joined(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Small pieces as large ones."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= file_streams.PIECE:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


@router.get(_STORED + "/metadata")
async def study_metadata(request: Request, caller: Reader, study: str) -> Response:
    """The headers of a study's instances."""
    return await _metadata(request, caller, study)


@router.get(_STORED + "/series/{series}/metadata")
async def metadata_of_series(request: Request, caller: Reader, study: str, series: str) -> Response:
    """The headers of a series' instances."""
    return await _metadata(request, caller, study, series)


@router.get(_ONE + "/metadata")
async def metadata_of_instance(request: Request, caller: Reader, study: str, series: str, uid: str) -> Response:
    """The header of one instance."""
    return await _metadata(request, caller, study, series, uid)


# Frames, pictures, large values --------------------------------------------------------------------------------------


def _frame_form(index: FrameIndex, ranges: Sequence[MediaRange]) -> tuple[MediaRange, str, str] | None:
    """The range that decides, the media type of the parts, and their transfer syntax; ``None`` where none fits."""
    native = not index.places
    stored = EXPLICIT_LITTLE if native else index.syntax
    own = (OCTETS,) if native else FRAME_TYPES.get(index.syntax, (OCTETS,))
    for wanted in ranges:
        if wanted.name in own or (wanted.name != OCTETS and wanted.fits(own[0])):
            if wanted.syntax in {"", "*", stored, index.syntax}:
                return wanted, wanted.name if wanted.name in own else own[0], stored
        elif wanted.fits(OCTETS):
            if wanted.syntax in {"*", stored}:
                return wanted, OCTETS, stored
            if wanted.syntax in {"", EXPLICIT_LITTLE} and can_decode(index.syntax):
                return wanted, OCTETS, EXPLICIT_LITTLE
    return None


@router.get(_ONE + "/frames/{numbers}")
async def retrieve_frames(
    request: Request, caller: Reader, study: str, series: str, uid: str, numbers: str
) -> Response:
    """Some frames of an instance, counted from 1, with commas between them."""
    one = (await stored_or_404(request, caller, study, series, uid))[0]
    index = await _open(request, one)
    chosen = _numbers(numbers, index.count)
    form = _frame_form(index, accepted(request))
    if form is None:
        raise HTTPException(406, "the frames are stored in a transfer syntax that is not accepted")
    wanted, media_type, syntax = form
    decode = bool(index.places) and syntax == EXPLICIT_LITTLE
    make = index.decoded if decode else index.stored
    content_type = f"{media_type}; transfer-syntax={syntax}"
    headers = {"etag": _etag([one], numbers, content_type), "cache-control": "private, no-cache", "vary": "accept"}
    if _unchanged(request, headers["etag"]):
        return Response(status_code=304, headers=headers)
    if len(chosen) == 1 and not wanted.multipart and wanted.name not in {"*/*", "image/*"}:
        try:
            return Response(await in_thread(make, chosen[0]), media_type=content_type, headers=headers)
        except ReadError as error:
            raise _damaged() from error
    size = -1 if index.places else -(-index.bits // 8)
    parts = [FilePart(content_type, size=size, make=partial(make, n)) for n in chosen]
    return multipart_answer(parts, kind=media_type, headers=headers)


def _numbers(text: str, count: int) -> list[int]:
    pieces = text.split(",")
    if not all(piece.strip().isdecimal() and len(piece) < 10 for piece in pieces) or len(pieces) > _MOST_FRAMES:
        raise HTTPException(400, "frames are numbers from 1, with commas between them")
    chosen = [int(piece) - 1 for piece in pieces]
    if not all(0 <= n < count for n in chosen):
        raise HTTPException(404, f"the instance has {count} frames")
    return chosen


async def _open(request: Request, one: Stored) -> FrameIndex:
    try:
        return await in_thread(open_frames, request.app.state.service.archive.folder / one.path)
    except ReadError as error:
        raise HTTPException(404, "the instance holds no frames that can be read") from error


def _damaged() -> HTTPException:
    return HTTPException(404, "the pixels are damaged, or no decoder for them is installed")


async def _picture(
    request: Request, caller: Caller, *uids: str, numbers: str = "1", thumbnail: bool = False
) -> Response:
    media_type = choose(accepted(request), PICTURES)
    if media_type is None:
        raise HTTPException(406, f"pictures are answered as {' or '.join(PICTURES)}")
    try:
        view = parse_view(request.query_params, thumbnail=thumbnail)
    except ConfigError as error:
        raise HTTPException(400, str(error)) from error
    members = await stored_or_404(request, caller, *uids)
    one = members[0] if len(uids) == 3 else _typical(members)
    index = await _open(request, one)
    chosen = _numbers(numbers, index.count)
    if len(uids) < 3 or (thumbnail and index.count > 1 and numbers == "1"):
        chosen = [index.count // 2]
    headers = {
        "etag": _etag([one], media_type, str(view), numbers),
        "cache-control": "private, no-cache",
        "vary": "accept",
    }
    if _unchanged(request, headers["etag"]):
        return Response(status_code=304, headers=headers)
    try:
        pictures = await in_thread(_rendered, index, chosen, view, media_type)
    except ReadError as error:
        raise _damaged() from error
    if len(pictures) == 1:
        return Response(pictures[0], media_type=media_type, headers=headers)
    parts = [FilePart(media_type, size=len(data), make=partial(bytes, data)) for data in pictures]
    return multipart_answer(parts, kind=media_type, headers=headers)


def _rendered(index: FrameIndex, chosen: Sequence[int], view: View, media_type: str) -> list[bytes]:
    return [render(index, n, view, media_type) for n in chosen[:64]]


def _typical(members: Sequence[Stored]) -> Stored:
    """The middle image of the longest series."""
    images = [one for one in members if one.rows] or list(members)
    by_series: dict[int, list[Stored]] = {}
    for one in images:
        by_series.setdefault(one.series_id, []).append(one)
    longest = max(by_series.values(), key=len)
    return longest[len(longest) // 2]


@router.get(_STORED + "/rendered")
async def rendered_study(request: Request, caller: Reader, study: str) -> Response:
    """A typical image of a study as a picture."""
    return await _picture(request, caller, study)


@router.get(_STORED + "/thumbnail")
async def thumbnail_of_study(request: Request, caller: Reader, study: str) -> Response:
    """A small picture of a study."""
    return await _picture(request, caller, study, thumbnail=True)


@router.get(_STORED + "/series/{series}/rendered")
async def rendered_series(request: Request, caller: Reader, study: str, series: str) -> Response:
    """The middle image of a series as a picture."""
    return await _picture(request, caller, study, series)


@router.get(_STORED + "/series/{series}/thumbnail")
async def thumbnail_of_series(request: Request, caller: Reader, study: str, series: str) -> Response:
    """A small picture of a series."""
    return await _picture(request, caller, study, series, thumbnail=True)


@router.get(_ONE + "/rendered")
async def rendered_instance(request: Request, caller: Reader, study: str, series: str, uid: str) -> Response:
    """An instance as a picture; of several frames the first."""
    return await _picture(request, caller, study, series, uid)


@router.get(_ONE + "/thumbnail")
async def thumbnail_of_instance(request: Request, caller: Reader, study: str, series: str, uid: str) -> Response:
    """A small picture of an instance; of several frames the middle one."""
    return await _picture(request, caller, study, series, uid, thumbnail=True)


@router.get(_ONE + "/frames/{numbers}/rendered")
async def rendered_frames(
    request: Request, caller: Reader, study: str, series: str, uid: str, numbers: str
) -> Response:
    """Some frames as pictures."""
    return await _picture(request, caller, study, series, uid, numbers=numbers)


@router.get(_ONE + "/frames/{numbers}/thumbnail")
async def thumbnail_of_frames(
    request: Request, caller: Reader, study: str, series: str, uid: str, numbers: str
) -> Response:
    """Some frames as small pictures."""
    return await _picture(request, caller, study, series, uid, numbers=numbers, thumbnail=True)


@router.get(_ONE + "/bulkdata/{place:path}")
async def retrieve_bulkdata(
    request: Request, caller: Reader, study: str, series: str, uid: str, place: str
) -> Response:
    """A large value, as a link in the metadata names it."""
    ranges = accepted(request)
    wanted = next((one for one in ranges if one.fits(OCTETS)), None)
    one = (await stored_or_404(request, caller, study, series, uid))[0]
    path = request.app.state.service.archive.folder / one.path
    steps = place.split("/")
    if place.upper() == "7FE00010" and one.frames and one.rows:
        index = await _open(request, one)
        return await retrieve_all_frames(request, one, index, ranges)
    if wanted is None:
        raise HTTPException(406, "large values are answered as application/octet-stream")
    try:
        value = await in_thread(bulk_value, path, steps)
    except (KeyError, ReadError) as error:
        raise HTTPException(404, "the instance holds no such value") from error
    if wanted.multipart:
        return multipart_answer([FilePart(OCTETS, size=len(value), make=partial(bytes, value))], kind=OCTETS)
    return Response(value, media_type=OCTETS)


async def retrieve_all_frames(
    request: Request, one: Stored, index: FrameIndex, ranges: Sequence[MediaRange]
) -> Response:
    """The whole pixel data: uncompressed in one part, compressed a part a frame."""
    form = _frame_form(index, ranges)
    if form is None:
        raise HTTPException(406, "the pixels are stored in a transfer syntax that is not accepted")
    wanted, media_type, syntax = form
    content_type = f"{media_type}; transfer-syntax={syntax}"
    if index.places:
        make = index.decoded if syntax == EXPLICIT_LITTLE else index.stored
        if syntax != EXPLICIT_LITTLE:
            parts = [FilePart(content_type, make=partial(make, n)) for n in range(index.count)]
            return multipart_answer(parts, kind=media_type)
        frames: Iterator[bytes] = (make(n) for n in range(index.count))
    else:
        frames = (index.stored(n) for n in range(index.count))
    if wanted.multipart or wanted.name != OCTETS:
        data = await in_thread(b"".join, frames) if index.count * index.bits < 2**31 else b""
        if not data:
            raise HTTPException(413, "too many pixels for one part; ask for the frames")
        return multipart_answer([FilePart(content_type, size=len(data), make=partial(bytes, data))], kind=media_type)
    length = None if index.bits % 8 or index.places else index.count * index.bits // 8
    return PiecesResponse(frames, content_type, length=length)
