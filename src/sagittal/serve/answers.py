"""Errors as every route answers them: ``{"error": text, "code": status, "id": request}``, and nothing of the inside.

An answer of 500 or more says no more than its id, under which the log tells what happened (OWASP ASVS 5.0 16.5.1).
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from sagittal.errors import (
    ConfigError,
    DataError,
    GeometryError,
    MaskError,
    ReadError,
    ResourceError,
    ScopeError,
    ServeError,
)

_log = logging.getLogger(__name__)

_WORDS = {
    400: "the request cannot be understood",
    401: "log in, or send a token",
    403: "not allowed",
    404: "not found",
    405: "this method is not for this address",
    406: "no such form of the answer",
    408: "the request took too long to arrive",
    411: "the length of the body is missing",
    413: "the body is larger than this address takes",
    415: "this kind of body is not taken",
    422: "some fields are missing or wrong",
    429: "too many requests",
    503: "not ready; try again later",
    507: "the disk is full; try again later",
}


class TooLarge(HTTPException):
    """The body grew past what its address takes; the connection is closed after the answer."""

    def __init__(self, most: int) -> None:
        super().__init__(
            413, f"the body is larger than {most} bytes, the most that this address takes", {"Connection": "close"}
        )


def error_body(status: int, text: str, request_id: str, **more: Any) -> dict[str, Any]:
    """The JSON of an error.

    >>> error_body(404, "", "a1")
    {'error': 'not found', 'code': 404, 'id': 'a1'}
    """
    if status >= 500 and status not in (501, 503, 507):
        text = "something went wrong here; the log has it under this id"
    return {"error": text or _WORDS.get(status, "failed"), "code": status, "id": request_id, **more}


async def send_error(
    scope: Scope, receive: Receive, send: Send, status: int, text: str = "", headers: Iterable[tuple[str, str]] = ()
) -> None:
    """Answer a request with an error from a middleware."""
    body = error_body(status, text, request_id(scope))
    # A body that nobody reads must not go on arriving: the connection ends with the answer.
    more = {"Connection": "close"} if scope.get("method") not in ("GET", "HEAD") else {}
    await JSONResponse(body, status, headers={**more, **dict(headers)})(scope, receive, send)


def request_id(scope: Scope) -> str:
    """The id of a request, as the answer and the log have it."""
    return str(scope.get("state", {}).get("id", ""))


def add_error_handlers(app: FastAPI) -> None:
    """Let every error of every route take the one shape."""

    async def http_error(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 500)
        detail = getattr(error, "detail", "")
        if status in (204, 304):
            return Response(status_code=status, headers=getattr(error, "headers", None))
        text = detail if isinstance(detail, str) else ""
        text = "" if text in ("Not Found", "Method Not Allowed", "Internal Server Error") else text
        more = detail if isinstance(detail, dict) else {}
        text = str(more.pop("error", text)) if more else text
        body = error_body(status, text, request_id(request.scope), **({} if status >= 500 else more))
        return JSONResponse(body, status, headers=getattr(error, "headers", None))

    async def wrong_fields(request: Request, error: Exception) -> Response:
        # What was sent is not sent back: it may be a password or a name.
        given = error.errors() if isinstance(error, RequestValidationError) else []
        fields = [{"where": ".".join(str(part) for part in one["loc"]), "message": one["msg"]} for one in given]
        return JSONResponse(error_body(422, "", request_id(request.scope), fields=fields), 422)

    async def own_error(request: Request, error: Exception) -> Response:
        status = next((code for kind, code in _OWN if isinstance(error, kind)), 500)
        if status >= 500:
            log_trouble(error, request_id(request.scope))
        return JSONResponse(error_body(status, str(error) if status < 500 else "", request_id(request.scope)), status)

    app.add_exception_handler(StarletteHTTPException, http_error)
    app.add_exception_handler(RequestValidationError, wrong_fields)
    for kind, _ in _OWN:
        app.add_exception_handler(kind, own_error)


#: What a route may raise of our own, and what it answers.
_OWN: tuple[tuple[type[Exception], int], ...] = (
    (ConfigError, 400),
    (ReadError, 400),
    (DataError, 400),
    (GeometryError, 400),
    (MaskError, 400),
    (ScopeError, 422),
    (ResourceError, 507),
    (ServeError, 503),
)


def log_trouble(error: BaseException, where: str) -> None:
    """Write a fault to the log: its kind and its frames, not its text, which may hold what was sent."""
    frames = [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    _log.error("fault %s", where, extra={"id": where, "kind": type(error).__qualname__, "frames": frames[-12:]})
