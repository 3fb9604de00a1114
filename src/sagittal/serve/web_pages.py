"""The pages that people see: plain files, written in the reader's language, under a policy that lets nothing else run.

A page's words come from ``pages/text/*.json``; ``{{key}}`` in its HTML is replaced by them, escaped. Pages hold no data: they
ask the JSON API for it, so they are open to everyone. Files are served from a list made at the start, never by a path.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi import Path as InPath
from starlette.responses import FileResponse, RedirectResponse

from sagittal.errors import ServeError
from sagittal.serve.security import Caller, allow, anyone
from sagittal.serve.tables import LANGUAGES
from sagittal.serve.viewer import OHIF_POLICY, Viewer, find_viewers, viewers_folder

if TYPE_CHECKING:
    from sagittal.serve.service import Service

FOLDER = Path(__file__).with_name("pages")
#: Addresses of pages and their files.
PAGES = {
    "/": "worklist",
    "/study/{study_id}": "study",
    "/agreement": "agreement",
    "/admin": "admin",
    "/account": "account",
    "/signin": "signin",
    "/link": "link",
    "/link/{secret}": "link",
}
#: Scripts, styles, pictures and data of this service; nothing inline, nothing evaluated, nobody else, no frames.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "manifest-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
_TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".html": "text/html",
}
_PLACE = re.compile(r"\{\{(@?[\w.-]+)\}\}")


@dataclass(frozen=True)
class Asset:
    """A file as it is sent."""

    content: bytes
    media_type: str
    tag: str

    @classmethod
    def of(cls, content: bytes, media_type: str) -> Asset:
        """With the tag by which a browser asks whether it has changed."""
        return cls(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


@cache
def texts(language: str) -> Mapping[str, str]:
    """All words of a language, by key."""
    found: dict[str, str] = json.loads((FOLDER / "text" / f"{language}.json").read_text(encoding="utf-8"))
    return found


@cache
def assets() -> Mapping[str, Asset]:
    """Every file that pages load, by the path behind ``/assets/``."""
    found = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file() and path.suffix in _TYPES and path.suffix != ".html":
            kind = _TYPES[path.suffix] + ("" if path.suffix == ".svg" else "; charset=utf-8")
            found[path.relative_to(FOLDER).as_posix()] = Asset.of(path.read_bytes(), kind)
    return found


@cache
def build() -> str:
    """What stands in the addresses of all files, another once one of them is another: browsers keep them for good."""
    digest = hashlib.sha256()
    for name, asset in assets().items():
        digest.update(f"{name} {asset.tag}\n".encode())
    return digest.hexdigest()[:12]


@cache
def render(page: str, language: str, marks: tuple[tuple[str, str], ...] = ()) -> Asset:
    """A page in a language.

    Parameters
    ----------
    page : str
        Name of its file, without the ending.
    language : str
        One of :data:`LANGUAGES`.
    marks : tuple of (str, str)
        What stands for ``{{@name}}``: whether something is installed or configured.

    Raises
    ------
    ServeError
        If the page names a word that the language lacks.
    """
    known = texts(language)
    given = {"@language": language, "@build": build(), **{f"@{key}": value for key, value in marks}}

    def fill(match: re.Match[str]) -> str:
        key = match.group(1)
        word = given.get(key) if key.startswith("@") else known.get(key)
        if word is None:
            raise ServeError(f"page {page}: nothing is known for '{key}' in language '{language}'")
        return html.escape(word, quote=True)

    content = _PLACE.sub(fill, (FOLDER / f"{page}.html").read_text(encoding="utf-8"))
    return Asset.of(content.encode(), "text/html; charset=utf-8")


def choose_language(cookie: str | None, accept: str, default: str = "en") -> str:
    """The language of a page: the one that was chosen, else the browser's first that we have, else the service's.

    Parameters
    ----------
    cookie : str, optional
        What the reader chose.
    accept : str
        ``Accept-Language`` (RFC 9110 12.5.4).
    default : str

    >>> choose_language(None, "fr, zh-CN;q=0.8, en;q=0.5")
    'zh'
    >>> choose_language("en", "zh")
    'en'
    >>> choose_language("xx", "fr", "zh")
    'zh'
    """
    if cookie in LANGUAGES:
        return cookie
    ranked = []
    for place, part in enumerate(accept[:1000].split(",")):
        name, _, parameters = part.strip().partition(";")
        weight = re.search(r"q=([01](?:\.\d{0,3})?)\s*$", parameters)
        share = float(weight.group(1)) if weight else 1.0
        base = name.strip().lower().partition("-")[0]
        if share > 0 and base in LANGUAGES:
            ranked.append((-share, place, base))
    return min(ranked)[2] if ranked else default


def add_pages(app: FastAPI) -> None:
    """Add the pages, what they load, and the viewers that are installed.

    Parameters
    ----------
    app : FastAPI
        Its ``state.service`` says where viewers lie and whether there is an identity provider.
    """
    for address, name in PAGES.items():
        app.get(address, include_in_schema=False, dependencies=[Depends(anyone)], name=name)(_page(name))
    for address, answer in (
        ("/assets/{version}/{name:path}", _asset),
        ("/viewer/niivue/{name:path}", _niivue),
        ("/ohif", _ohif_start),
        ("/ohif/{name:path}", _ohif),
        ("/favicon.ico", _icon),
    ):
        app.get(address, include_in_schema=False, dependencies=[Depends(anyone)])(answer)
    app.get("/open/ohif/{study_id}", include_in_schema=False)(_open_ohif)


def _page(name: str) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        service: Service = request.app.state.service
        language = choose_language(
            request.cookies.get("sagittal_language"),
            request.headers.get("accept-language", ""),
            service.config.server.language,
        )
        there = _viewers(request)
        marks = (
            ("niivue", "yes" if "niivue" in there else "no"),
            ("ohif", "yes" if "ohif" in there and service.config.page.viewer == "ohif" else "no"),
            ("oidc", "yes" if service.oidc is not None else "no"),
        )
        sent = _send(request, render(name, language, marks))
        sent.headers["Content-Language"] = language
        sent.headers["Vary"] = "Accept-Language, Cookie"
        return sent

    return answer


def _asset(request: Request, version: str, name: str) -> Response:
    found = assets().get(name)
    if found is None:
        raise HTTPException(404)
    sent = _send(request, found)
    if (
        version == build()
    ):  # a page of the version before, still open, is given what there is now, to be asked for again
        sent.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return sent


def _icon(request: Request) -> Response:
    return _send(request, assets()["icon.svg"])


def _send(request: Request, asset: Asset) -> Response:
    """A file, or that the browser has it already."""
    headers = {"ETag": asset.tag, "Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
    if request.headers.get("if-none-match") == asset.tag:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)


def _viewers(request: Request) -> Mapping[str, Viewer]:
    service: Service = request.app.state.service
    return find_viewers(viewers_folder(service.config.server.data))


def _niivue(request: Request, name: str) -> Response:
    viewer = _viewers(request).get("niivue")
    path = viewer.file(name) if viewer else None
    if path is None:
        raise HTTPException(404)
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
    return FileResponse(path, media_type="text/javascript; charset=utf-8", headers=headers)


def _ohif_start() -> Response:
    return RedirectResponse("/ohif/", 308)


def _ohif(request: Request, name: str) -> Response:
    viewer = _viewers(request).get("ohif")
    if viewer is None:
        raise HTTPException(404)
    # Addresses inside the viewer are its own: each opens its one page.
    path = viewer.file(name) if "." in name.rpartition("/")[2] else viewer.file("index.html")
    if path is None:
        raise HTTPException(404)
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": OHIF_POLICY}
    return FileResponse(path, headers=headers)


def _open_ohif(
    request: Request, study_id: Annotated[int, InPath(ge=1, lt=2**63)], caller: Annotated[Caller, Depends(allow("see"))]
) -> Response:
    """Open a study in OHIF, which names studies by UID; the look is in the trail."""
    from sqlalchemy import select

    from sagittal.database.schema import studies
    from sagittal.serve.views import note_view

    service: Service = request.app.state.service
    if "ohif" not in _viewers(request):
        raise HTTPException(404, "OHIF is not installed: sagittal viewer install ohif")
    with service.db.read() as c:
        uid = c.execute(
            select(studies.c.study_uid).where(studies.c.id == study_id, studies.c.deleted_at.is_(None))
        ).scalar()
    if uid is None:
        raise HTTPException(404, "there is no such study")
    note_view(request, caller, [study_id])
    return RedirectResponse(f"/ohif/viewer?StudyInstanceUIDs={uid}", 303)
