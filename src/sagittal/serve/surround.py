"""What surrounds every request: an id, limits on its body, headers that bind the browser, one line in the log, counters."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from secrets import token_hex
from typing import TYPE_CHECKING

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sagittal.serve.answers import TooLarge, log_trouble, send_error

if TYPE_CHECKING:
    from sagittal.serve.service import Service

_access = logging.getLogger("sagittal.access")

#: A page may load scripts, styles and data from here and nowhere else, and may not be framed (CSP level 3).
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; worker-src 'self' blob:; manifest-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'self'"
)
_HEADERS = (
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), microphone=(), geolocation=(), payment=(), usb=()"),
)
#: Seconds that the next piece of a body may take, and the least bytes a second after the first `_GRACE_S` of them.
_PIECE_S, _GRACE_S, _LEAST_RATE = 30.0, 30.0, 1024
#: Largest bodies by method and path, of what is not an upload; see :func:`body_limit`.
_SMALL, _FORM, _TENSOR, _MASK = 64 * 2**10, 2**20, 256 * 2**20, 64 * 2**20
_LIMITS: tuple[tuple[re.Pattern[str], int | None], ...] = (
    (re.compile(r"/dicom-web/studies(/.*)?"), None),
    (re.compile(r"/v1/.*"), None),
    (re.compile(r"/v2/models/.*/infer"), _TENSOR),
    (re.compile(r"/api/results/\d+/reviews"), _MASK),
    (re.compile(r"/api/(login|links/.*)"), _SMALL),
    (re.compile(r"/api/.*"), _FORM),
)


def body_limit(path: str, most_upload: int) -> int:
    """The most bytes that a path takes as a body.

    Parameters
    ----------
    path : str
    most_upload : int, bytes
        Of paths that take studies.

    >>> body_limit("/api/login", 2**32), body_limit("/dicom-web/studies", 2**32) == 2**32
    (65536, True)
    """
    for pattern, most in _LIMITS:
        if pattern.fullmatch(path):
            return most_upload if most is None else min(most, most_upload)
    return _SMALL


class Surround:
    """Middleware around everything else.

    Parameters
    ----------
    app : ASGI application
    service : Service
    """

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever goes wrong inside becomes a 500 that says nothing but its id."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["id"] = token_hex(8)
        began = time.perf_counter()
        answer = _Answer(scope, send)
        try:
            body = _Body(receive, body_limit(scope["path"], self._service.config.limits.most_upload_bytes))
            refused = body.refuse_at_once(Headers(scope=scope))
            if refused is not None:
                await send_error(scope, receive, answer.send, *refused)
            else:
                await self._app(scope, body.receive, answer.send)
        except Exception as error:
            log_trouble(error, scope["state"]["id"])
            if answer.status:
                raise ConnectionError("the answer was cut off") from None  # uvicorn closes the connection
            await send_error(scope, receive, answer.send, 500)
        finally:
            self._tell(scope, answer, time.perf_counter() - began)

    def _tell(self, scope: Scope, answer: _Answer, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or "(none)"
        caller = scope["state"].get("caller")
        self._service.metrics.answered(scope["method"], route, answer.status or 499, seconds)
        _access.info(
            "request",
            extra={
                "id": scope["state"]["id"],
                "method": scope["method"],
                "route": route,  # the pattern, never the path: that may hold UIDs or secrets
                "status": answer.status or 499,
                "milliseconds": round(seconds * 1000, 2),
                "bytes": answer.bytes,
                "user": getattr(caller, "user_id", None),
                "address": (scope.get("client") or ("",))[0],
            },
        )


class _Answer:
    """Adds headers to an answer on its way out, and counts it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self.status, self.bytes = 0, 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS:
                headers.setdefault(name, value)
            headers.setdefault("content-security-policy", POLICY)
            headers.setdefault("cache-control", "no-store")
            headers["x-request-id"] = self._scope["state"]["id"]
            if self._scope.get("scheme") == "https":
                headers.setdefault("strict-transport-security", "max-age=31536000")
        elif message["type"] == "http.response.body":
            self.bytes += len(message.get("body", b""))
        await self._send(message)


class _Body:
    """Counts a body on its way in: its size, and that it keeps coming."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most = receive, most
        self._seen, self._began, self._whole = 0, 0.0, False

    def refuse_at_once(self, headers: Headers) -> tuple[int, str] | None:
        """Status and text where the header alone says that the body cannot be taken."""
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):  # a bomb of a megabyte unpacks to a gigabyte (CVE-2026-5438)
            return 415, "compressed bodies are not taken; send it as it is"
        length = headers.get("content-length")
        if length is None:
            return None
        if not (length.isascii() and length.isdigit()):
            return 400, "Content-Length is not a number"
        if len(length) > 15 or int(length) > self._most:  # before anything is set aside for it (CVE-2026-5440)
            return 413, f"the body is larger than {self._most} bytes, the most that this address takes"
        return None

    async def receive(self) -> Message:
        if self._whole:  # what comes now is the end of the connection
            return await self._receive()
        now = time.monotonic()
        self._began = self._began or now
        try:
            message = await asyncio.wait_for(self._receive(), _PIECE_S)
        except TimeoutError:
            raise HTTPException(408, headers={"Connection": "close"}) from None
        if message["type"] != "http.request":
            self._whole = True
            return message
        self._seen += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._seen > self._most:
            raise TooLarge(self._most)
        passed = time.monotonic() - self._began
        if not self._whole and passed > _GRACE_S and self._seen < (passed - _GRACE_S) * _LEAST_RATE:
            raise HTTPException(408, "the body arrives too slowly", {"Connection": "close"})
        return message
