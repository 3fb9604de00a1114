"""WADO-RS: frames, pictures and large values of stored instances (PS3.18 10.4.1.1.3, 10.4.1.1.4, 10.4.1.1.5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from fastapi import APIRouter, HTTPException, Request
from starlette.responses import Response

from sagittal.errors import ConfigError, ReadError
from sagittal.serve.file_streams import FilePart, PiecesResponse, in_thread, multipart_answer
from sagittal.serve.frames import FRAME_TYPES, FrameIndex, open_frames
from sagittal.serve.instance_rows import Stored
from sagittal.serve.media_types import EXPLICIT_LITTLE, OCTETS, MediaRange, choose
from sagittal.serve.metadata import bulk_value
from sagittal.serve.rendered import PICTURES, View, parse_view, render
from sagittal.serve.security import Caller
from sagittal.serve.transcode import can_decode
from sagittal.serve.wado import ONE, STORED, Reader, accepted, etag_of, stored_or_404, unchanged

router = APIRouter(prefix="/dicom-web", tags=["DICOMweb"])
#: Frames of one answer.
_MOST_FRAMES = 10_000


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


@router.get(ONE + "/frames/{numbers}")
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
    headers = {"etag": etag_of([one], numbers, content_type), "cache-control": "private, no-cache", "vary": "accept"}
    if unchanged(request, headers["etag"]):
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
        return await in_thread(open_frames, request.app.state.service.archive.path_of(one.path))
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
        "etag": etag_of([one], media_type, str(view), numbers),
        "cache-control": "private, no-cache",
        "vary": "accept",
    }
    if unchanged(request, headers["etag"]):
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


@router.get(STORED + "/rendered")
async def rendered_study(request: Request, caller: Reader, study: str) -> Response:
    """A typical image of a study as a picture."""
    return await _picture(request, caller, study)


@router.get(STORED + "/thumbnail")
async def thumbnail_of_study(request: Request, caller: Reader, study: str) -> Response:
    """A small picture of a study."""
    return await _picture(request, caller, study, thumbnail=True)


@router.get(STORED + "/series/{series}/rendered")
async def rendered_series(request: Request, caller: Reader, study: str, series: str) -> Response:
    """The middle image of a series as a picture."""
    return await _picture(request, caller, study, series)


@router.get(STORED + "/series/{series}/thumbnail")
async def thumbnail_of_series(request: Request, caller: Reader, study: str, series: str) -> Response:
    """A small picture of a series."""
    return await _picture(request, caller, study, series, thumbnail=True)


@router.get(ONE + "/rendered")
async def rendered_instance(request: Request, caller: Reader, study: str, series: str, uid: str) -> Response:
    """An instance as a picture; of several frames the first."""
    return await _picture(request, caller, study, series, uid)


@router.get(ONE + "/thumbnail")
async def thumbnail_of_instance(request: Request, caller: Reader, study: str, series: str, uid: str) -> Response:
    """A small picture of an instance; of several frames the middle one."""
    return await _picture(request, caller, study, series, uid, thumbnail=True)


@router.get(ONE + "/frames/{numbers}/rendered")
async def rendered_frames(
    request: Request, caller: Reader, study: str, series: str, uid: str, numbers: str
) -> Response:
    """Some frames as pictures."""
    return await _picture(request, caller, study, series, uid, numbers=numbers)


@router.get(ONE + "/frames/{numbers}/thumbnail")
async def thumbnail_of_frames(
    request: Request, caller: Reader, study: str, series: str, uid: str, numbers: str
) -> Response:
    """Some frames as small pictures."""
    return await _picture(request, caller, study, series, uid, numbers=numbers, thumbnail=True)


@router.get(ONE + "/bulkdata/{place:path}")
async def retrieve_bulkdata(
    request: Request, caller: Reader, study: str, series: str, uid: str, place: str
) -> Response:
    """A large value, as a link in the metadata names it."""
    ranges = accepted(request)
    wanted = next((one for one in ranges if one.fits(OCTETS)), None)
    one = (await stored_or_404(request, caller, study, series, uid))[0]
    path = request.app.state.service.archive.path_of(one.path)
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
