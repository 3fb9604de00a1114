"""WADO-RS: stored instances and their headers over HTTP (PS3.18 10.4.1.1.1, 10.4.1.1.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request
from starlette.responses import FileResponse, Response

from sagittal.errors import ReadError
from sagittal.serve import file_streams
from sagittal.serve.file_streams import FilePart, PiecesResponse, in_thread, multipart_answer
from sagittal.serve.instance_rows import Stored, find_stored, is_uid
from sagittal.serve.media_types import (
    DICOM,
    DICOM_JSON,
    EXPLICIT_LITTLE,
    JSON,
    MediaRange,
    choose,
    parse_accept,
)
from sagittal.serve.metadata import instance_metadata, linked, series_metadata
from sagittal.serve.security import Caller, allow
from sagittal.serve.series_cache import cache_folder
from sagittal.serve.transcode import can_decode, explicit_file
from sagittal.serve.views import note_view

router = APIRouter(prefix="/dicom-web", tags=["DICOMweb"])
Reader = Annotated[Caller, Depends(allow("see"))]
STORED, ONE = "/studies/{study}", "/studies/{study}/series/{series}/instances/{uid}"


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


def _instance_part(one: Stored, ranges: Sequence[MediaRange], path_of: Callable[[str], Path]) -> FilePart | None:
    """One instance in the most wanted form that it can be given in."""
    path = path_of(one.path)
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


def etag_of(members: Sequence[Stored], *form: str) -> str:
    """What stands for an answer: the same for the same bytes in the same form."""
    key = "".join(one.sha256 for one in members) + "|".join(form)
    return f'W/"{hashlib.sha256(key.encode()).hexdigest()[:32]}"'


def unchanged(request: Request, etag: str) -> bool:
    """Whether the client has it already (RFC 9110 13.1.2)."""
    given = request.headers.get("if-none-match", "")
    return etag.removeprefix("W/") in [one.strip().removeprefix("W/") for one in given.split(",")]


async def _instances(request: Request, caller: Caller, *uids: str) -> Response:
    members = await stored_or_404(request, caller, *uids)
    ranges = accepted(request)
    path_of = request.app.state.service.archive.path_of
    made = [_instance_part(one, ranges, path_of) for one in members]
    parts = [part for part in made if part is not None]
    if not parts:
        raise HTTPException(406, "stored in a transfer syntax that is not accepted; ask for transfer-syntax=*")
    best = next(wanted for wanted in ranges if wanted.fits(DICOM))
    single = len(members) == 1 and not best.multipart and best.name == DICOM
    if not best.multipart and best.name == DICOM and len(members) > 1:
        raise HTTPException(406, 'several instances are answered as multipart/related; type="application/dicom"')
    etag = etag_of(members, *(part.content_type for part in parts))
    headers = {"etag": etag, "cache-control": "private, no-cache", "vary": "accept"}
    if unchanged(request, etag):
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


@router.get(STORED)
async def retrieve_study(request: Request, caller: Reader, study: str) -> Response:
    """All instances of a study."""
    return await _instances(request, caller, study)


@router.get(STORED + "/series/{series}")
async def retrieve_series(request: Request, caller: Reader, study: str, series: str) -> Response:
    """All instances of a series."""
    return await _instances(request, caller, study, series)


@router.get(ONE)
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
    etag = etag_of(members, "metadata", root)
    headers = {"etag": etag, "cache-control": "private, no-cache", "vary": "accept"}
    if unchanged(request, etag):
        return Response(status_code=304, headers=headers)

    def texts() -> Iterator[str]:
        if len(uids) == 3:
            yield from (instance_metadata(service.archive.path_of(one.path), one) for one in members)
            return
        by_series: dict[int, list[Stored]] = {}
        for one in members:
            by_series.setdefault(one.series_id, []).append(one)
        for own in by_series.values():
            yield from series_metadata(service.archive.path_of, cache_folder(service), own)

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


@router.get(STORED + "/metadata")
async def study_metadata(request: Request, caller: Reader, study: str) -> Response:
    """The headers of a study's instances."""
    return await _metadata(request, caller, study)


@router.get(STORED + "/series/{series}/metadata")
async def metadata_of_series(request: Request, caller: Reader, study: str, series: str) -> Response:
    """The headers of a series' instances."""
    return await _metadata(request, caller, study, series)


@router.get(ONE + "/metadata")
async def metadata_of_instance(request: Request, caller: Reader, study: str, series: str, uid: str) -> Response:
    """The header of one instance."""
    return await _metadata(request, caller, study, series, uid)
