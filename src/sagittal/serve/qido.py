"""QIDO-RS: searching for studies, series and instances (PS3.18 10.6); the answer is put together from JSON that is kept as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from starlette.responses import Response

from sagittal.archive.query import find_json
from sagittal.serve.file_streams import in_thread
from sagittal.serve.instance_rows import is_uid
from sagittal.serve.media_types import DICOM_JSON, JSON, choose
from sagittal.serve.security import Caller, allow
from sagittal.serve.views import note_view
from sagittal.serve.wado import accepted, root_of

router = APIRouter(prefix="/dicom-web", tags=["DICOMweb"])
Reader = Annotated[Caller, Depends(allow("see"))]
#: Results of one answer where the client sets no limit, and the most that it may ask for.
USUAL, MOST = 5000, 20_000
_PLAIN = frozenset(
    {
        "includefield",
        "fuzzymatching",
        "limit",
        "offset",
        "accept",
        "emptyvaluematching",
        "multiplevaluematching",
        "charset",
    }
)
_MOST_KEYS, _LONGEST = 64, 1024


@dataclass(frozen=True)
class Search:
    """What a query asks for.

    Attributes
    ----------
    keys : mapping of str to str
        Keyword of an attribute -> the value to match, as C-FIND has it: ``*`` and ``?``, ranges of dates, lists of UIDs.
    limit, offset : int
    fuzzy : bool
        Whether names match approximately.
    ignored : tuple of str
        Parameters that are no attributes.
    """

    keys: Mapping[str, str]
    limit: int = USUAL
    offset: int = 0
    fuzzy: bool = False
    ignored: tuple[str, ...] = ()


def parse_search(items: Iterable[tuple[str, str]]) -> Search:
    """The query parameters of a search (PS3.18 8.3.4).

    Attributes are named by keyword or by eight hexadecimal digits, with dots into sequences, of which the innermost
    counts. Several values of one attribute are alternatives.

    Raises
    ------
    ValueError
        If a limit, an offset or a switch is none, or there are too many parameters.

    Examples
    --------
    >>> parse_search([("00100020", "7"), ("StudyDate", "20200101-"), ("limit", "5"), ("_", "1")])
    Search(keys={'PatientID': '7', 'StudyDate': '20200101-'}, limit=5, offset=0, fuzzy=False, ignored=('_',))
    """
    keys: dict[str, list[str]] = {}
    plain: dict[str, str] = {}
    ignored: list[str] = []
    for number, (name, value) in enumerate(items):
        if number >= _MOST_KEYS or len(value) > _LONGEST * 64 or "\0" in value:
            raise ValueError("too many or too long parameters")
        if name.lower() in _PLAIN:
            plain[name.lower()] = value
        elif keyword := _keyword(name):
            if value:
                keys.setdefault(keyword, []).append(value)
        else:
            ignored.append(name[:64])
    return Search(
        {name: "\\".join(values) for name, values in keys.items()},
        min(_whole(plain.get("limit"), USUAL, "limit"), MOST),
        _whole(plain.get("offset"), 0, "offset"),
        _switch(plain.get("fuzzymatching")),
        tuple(ignored),
    )


def _keyword(name: str) -> str:
    last = name.rpartition(".")[2]
    if re.fullmatch(r"[0-9a-fA-F]{8}", last):
        return keyword_for_tag(int(last, 16))
    return last if tag_for_keyword(last) is not None else ""


def _whole(text: str | None, usual: int, what: str) -> int:
    if text is None or text == "":
        return usual
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise ValueError(f"{what} is a whole number")
    return int(text)


def _switch(text: str | None) -> bool:
    if (text or "false").lower() not in {"true", "false", "1", "0"}:
        raise ValueError("fuzzymatching is true or false")
    return (text or "").lower() in {"true", "1"}


async def _search(request: Request, caller: Caller, level: str, **above: str) -> Response:
    media_type = choose(accepted(request), (DICOM_JSON, JSON))
    if media_type is None:
        raise HTTPException(406, "searches are answered as application/dicom+json")
    if not all(is_uid(uid) for uid in above.values()):
        raise HTTPException(400, "a UID has digits and dots, at most 64 of them")
    try:
        search = parse_search(request.query_params.multi_items())
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    body = await in_thread(_found, request, caller, level, {**search.keys, **above}, search, root_of(request))
    headers = {"cache-control": "no-store"}
    if search.ignored:
        headers["warning"] = '299 Sagittal "parameters that are no attributes were ignored"'
    return Response(body, media_type=media_type, headers=headers)


def _found(request: Request, caller: Caller, level: str, keys: Mapping[str, str], search: Search, root: str) -> bytes:
    note_view(request, caller, [None], "query")
    texts = find_json(
        request.app.state.service.db,
        level,
        keys,
        limit=search.limit,
        offset=search.offset,
        fuzzy=search.fuzzy,
        root=root,
    )
    return ("[" + ",".join(texts) + "]").encode()


@router.get("/studies")
async def search_studies(request: Request, caller: Reader) -> Response:
    """Search for studies."""
    return await _search(request, caller, "study")


@router.get("/series")
async def search_series(request: Request, caller: Reader) -> Response:
    """Search for series of any study."""
    return await _search(request, caller, "series")


@router.get("/instances")
async def search_instances(request: Request, caller: Reader) -> Response:
    """Search for instances of any study."""
    return await _search(request, caller, "instance")


@router.get("/studies/{study}/series")
async def series_of_study(request: Request, caller: Reader, study: str) -> Response:
    """Search for series of a study."""
    return await _search(request, caller, "series", StudyInstanceUID=study)


@router.get("/studies/{study}/instances")
async def instances_of_study(request: Request, caller: Reader, study: str) -> Response:
    """Search for instances of a study."""
    return await _search(request, caller, "instance", StudyInstanceUID=study)


@router.get("/studies/{study}/series/{series}/instances")
async def instances_of_series(request: Request, caller: Reader, study: str, series: str) -> Response:
    """Search for instances of a series."""
    return await _search(request, caller, "instance", StudyInstanceUID=study, SeriesInstanceUID=series)
