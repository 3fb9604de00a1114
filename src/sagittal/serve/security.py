"""Who is calling, and whether they may: by the cookie of a session, by a token, or not at all.

Every path is closed unless a route says with ``Depends(anyone)`` that it is open, and every other route says with
``Depends(allow("see"))`` what it takes. A caller is looked up before anything of a body is read.
"""

from __future__ import annotations

import binascii
import hmac
import re
from base64 import b64decode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, HTTPException, Request
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from sagittal.errors import ServeError
from sagittal.protect.roles import Permission, permissions
from sagittal.protect.sessions import find_session
from sagittal.protect.users import User
from sagittal.serve.answers import send_error

if TYPE_CHECKING:
    from sagittal.serve.service import Service

#: Threads that look callers up.
_LOOKERS = 8
#: Methods that change nothing.
SAFE = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Caller:
    """Who is calling.

    Parameters
    ----------
    name : str
        Of the user.
    role : str
    user_id : int, optional
        ``None`` for the one who reads the counters with the token of the configuration.
    via : str
        ``session``, ``token`` or ``metrics``.
    address : str
        Network address.
    language : str
    csrf : str
        Of a session: what requests that change something must send.
    token_id : int, optional
        Key of the token that was used.
    """

    name: str
    role: str
    user_id: int | None
    via: Literal["session", "token", "metrics"]
    address: str = ""
    language: str = ""
    csrf: str = ""
    token_id: int | None = None

    @property
    def permissions(self) -> frozenset[Permission]:
        """What the caller may do."""
        return frozenset({"metrics"}) if self.via == "metrics" else permissions(self.role)

    def may(self, permission: Permission) -> bool:
        """Whether the caller has a permission."""
        return permission in self.permissions


class Allow:
    """A dependency that lets through who has a permission, and gives the caller; see :func:`allow`."""

    def __init__(self, permission: Permission) -> None:
        self.permission = permission

    async def __call__(self, request: Request) -> Caller:
        """The caller of a request.

        Raises
        ------
        HTTPException
            401 if nobody is known, 403 if the permission is missing.
        """
        caller: Caller | None = getattr(request.state, "caller", None)
        if caller is None:
            raise HTTPException(401, "log in, or send a token", {"WWW-Authenticate": "Bearer"})
        if not caller.may(self.permission):
            service: Service = request.app.state.service
            if service.rates.refused.take(f"{caller.via}:{caller.user_id}") == 0:
                route = getattr(request.scope.get("route"), "path", "")
                await run_in_threadpool(
                    service.audit.record,
                    caller.name,
                    "refused",
                    role=caller.role,
                    address=caller.address,
                    outcome="refused",
                    details={"route": route, "method": request.method, "permission": self.permission},
                )
            raise HTTPException(403, f"this takes the permission '{self.permission}', which your role does not have")
        return caller


class Anyone:
    """A dependency that says that a route is open to everyone; see :data:`anyone`."""

    async def __call__(self) -> None:
        """Nothing is asked."""


def allow(permission: Permission) -> Allow:
    """A dependency for ``Depends``: lets through who has a permission, and gives the :class:`Caller`.

    Parameters
    ----------
    permission : str
        One of :data:`sagittal.protect.roles.PERMISSIONS`.
    """
    return Allow(permission)


#: The dependency of a route that is open to everyone.
anyone = Anyone()
#: The caller on a route that everyone who is logged in may use.
AnyUser = Annotated[Caller, Depends(allow("account"))]


def needed(route: BaseRoute) -> Permission | Literal["anyone"] | None:
    """What a route asks for; ``None`` where it does not say."""
    if not isinstance(route, APIRoute):
        return None
    calls = [dependency.call for dependency in _all(route.dependant.dependencies)]
    asked = [call.permission for call in calls if isinstance(call, Allow) and call.permission != "account"]
    if asked:
        return asked[0]
    if any(isinstance(call, Allow) for call in calls):
        return "account"
    return "anyone" if any(isinstance(call, Anyone) for call in calls) else None


def _all(dependencies: Iterable[Any]) -> Iterable[Any]:
    for dependency in dependencies:
        yield dependency
        yield from _all(dependency.dependencies)


def check_routes(routes: Iterable[BaseRoute]) -> None:
    """Refuse routes that do not say who may use them: the service then does not start.

    Raises
    ------
    ServeError
        Naming them.
    """
    mute = sorted({str(getattr(route, "path", route)) for route in routes if needed(route) is None})
    if mute:
        raise ServeError(f"these routes do not say who may use them: {', '.join(mute)}")


class Gate:
    """Middleware that finds the caller of each request, and ends those of nobody on every path that is not open.

    Parameters
    ----------
    app : ASGI application
    service : Service
    routes : list of routes
        All that there are.
    """

    def __init__(self, app: ASGIApp, *, service: Service, routes: list[BaseRoute]) -> None:
        self._app, self._service = app, service
        self._threads = CapacityLimiter(_LOOKERS)
        self._open: list[tuple[frozenset[str], re.Pattern[str]]] = []
        for route in routes:
            if isinstance(route, APIRoute) and needed(route) == "anyone":
                self._open.append((frozenset(route.methods or ()), route.path_regex))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its caller in ``state``, or answer 401, 403 or 429."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        state = scope.setdefault("state", {})
        is_open = any(scope["method"] in methods and pattern.match(scope["path"]) for methods, pattern in self._open)
        if not is_open:
            address = _address(scope)
            caller = _recalled(self._service, headers, address)
            if caller is None:
                # Threads of its own: a hundred answers that take their time never keep others from being told who they are.
                caller = await to_thread.run_sync(
                    _find_caller, self._service, scope, headers, address, limiter=self._threads
                )
            if isinstance(caller, _Answer):
                await send_error(scope, receive, send, caller.status, caller.text, caller.headers)
                return
            state["caller"] = caller
        await self._app(scope, receive, send)


@dataclass(frozen=True)
class _Answer:
    status: int
    text: str
    headers: tuple[tuple[str, str], ...] = ()


def _recalled(service: Service, headers: Headers, address: str) -> Caller | _Answer | None:
    """The caller with a token that was looked up a moment ago; the database is not asked, and no thread waited for."""
    token = bearer(headers.get("authorization", ""))
    found = service.known_tokens.recall(token) if token else None
    return None if found is None else _let_in(service, *found, address)


def _find_caller(service: Service, scope: Scope, headers: Headers, address: str) -> Caller | _Answer:
    token = bearer(headers.get("authorization", ""))
    if token:
        return _by_token(service, scope, token, address)
    cookie = session_cookie(scope, headers)
    session = find_session(service.db, cookie, idle_s=service.config.access.session_idle_s) if cookie else None
    if session is None:
        return _Answer(401, "log in, or send a token", (("WWW-Authenticate", "Bearer"),))
    wait_s = service.rates.sessions.take(str(session.user.id))
    if wait_s > 0:
        return _Answer(429, "too many requests", (("Retry-After", str(int(wait_s) + 1)),))
    if scope["method"] not in SAFE:
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return _Answer(403, "the request came from another site")
        if not hmac.compare_digest(headers.get("x-csrf-token", "").encode(), session.csrf.encode()):
            return _Answer(403, "the header X-CSRF-Token is missing or is not that of this session; see /api/me")
    user = session.user
    return Caller(user.name, user.role, user.id, "session", address, user.language, session.csrf)


def _by_token(service: Service, scope: Scope, token: str, address: str) -> Caller | _Answer:
    expected = service.config.metrics.token
    if expected and scope["path"] == "/metrics" and hmac.compare_digest(token.encode(), expected.encode()):
        return Caller("metrics", "machine", None, "metrics", address)
    if service.rates.strangers.wait_s(address) > 0:
        return _Answer(429, "too many wrong tokens from this address", (("Retry-After", "60"),))
    found = service.known_tokens.find(token)
    if found is None:
        service.rates.strangers.take(address)
        return _Answer(401, "this token is unknown, over or revoked", (("WWW-Authenticate", "Bearer"),))
    return _let_in(service, *found, address)


def _let_in(service: Service, user: User, token_id: int, address: str) -> Caller | _Answer:
    wait_s = service.rates.tokens.take(str(token_id))
    if wait_s > 0:
        return _Answer(429, "too many requests with this token", (("Retry-After", str(int(wait_s) + 1)),))
    return Caller(user.name, user.role, user.id, "token", address, user.language, token_id=token_id)


def bearer(authorization: str) -> str:
    """The token of an ``Authorization`` header: ``Bearer TOKEN``, or ``Basic`` with the token as password.

    >>> bearer("Bearer sg_1"), bearer("Basic dTpzZ18x"), bearer("Digest x")
    ('sg_1', 'sg_1', '')
    """
    kind, _, value = authorization.strip().partition(" ")
    value = value.strip()
    if kind.lower() == "bearer":
        return value
    if kind.lower() != "basic":
        return ""
    try:
        return b64decode(value, validate=True).decode("utf-8").partition(":")[2] or "?"
    except (binascii.Error, UnicodeDecodeError):
        return "?"


# Cookies --------------------------------------------------------------------------------------------------------------


def cookie_name(scope: Scope, what: str = "sagittal") -> str:
    """Name of a cookie: with TLS it begins with ``__Host-``, which no other host or path can set (RFC 6265bis 4.1.3)."""
    return f"__Host-{what}" if scope.get("scheme") == "https" else what


def session_cookie(scope: Scope, headers: Headers) -> str:
    """The value of the session's cookie; empty where there is none."""
    return read_cookie(scope, headers, "sagittal")


def read_cookie(scope: Scope, headers: Headers, what: str) -> str:
    """The value of one of our cookies; empty where there is none."""
    return cookie_parser(headers.get("cookie", "")).get(cookie_name(scope, what), "")


def set_cookie(scope: Scope, headers: MutableHeaders, value: str, what: str = "sagittal", *, lasts_s: int) -> None:
    """Add the header that sets a cookie, or takes it away where `value` is empty."""
    parts = [f"{cookie_name(scope, what)}={value}", "Path=/", "HttpOnly", "SameSite=Lax"]
    parts.append(f"Max-Age={lasts_s if value else 0}")
    if scope.get("scheme") == "https":
        parts.append("Secure")
    headers.append("set-cookie", "; ".join(parts))


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def address_of(request: Request) -> str:
    """The network address of a request, as the trusted proxy tells it where there is one."""
    return _address(request.scope)
