"""Coming in and going out: passwords, one-time links, the identity provider."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

from sagittal.errors import ServeError
from sagittal.protect.links import find_link, use_link
from sagittal.protect.oidc import Refusal, admit
from sagittal.protect.sessions import end_session, start_session
from sagittal.protect.users import User, change_user, find_user, log_in, plain_name
from sagittal.serve.answers import log_trouble, request_id
from sagittal.serve.security import (
    SAFE,
    AnyUser,
    address_of,
    anyone,
    read_cookie,
    session_cookie,
    set_cookie,
)
from sagittal.serve.tables import LANGUAGES

if TYPE_CHECKING:
    from sagittal.serve.service import Service

router = APIRouter(prefix="/api", tags=["access"])

_OIDC_S = 600
#: The page for signing in, which says that the identity provider let nobody in, or did not answer.
_NOT_LET_IN, _NO_PROVIDER = "/signin?problem=refused", "/signin?problem=provider"
#: Logins at work or waiting for their turn.
_MOST_HASHING = 100
Secret = Annotated[str, Path(min_length=20, max_length=100, pattern=r"^[\w-]+$")]


class Body(BaseModel):
    """A body without unknown fields."""

    model_config = ConfigDict(extra="forbid")


class Login(Body):
    """A name and its password."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    password: Annotated[str, Field(min_length=1, max_length=1024)]


class NewPassword(Body):
    """What a one-time link takes: a password, and a name where it makes the first administrator."""

    name: Annotated[str, Field(max_length=128)] = ""
    password: Annotated[str, Field(min_length=1, max_length=1024)]


class ChangedSelf(Body):
    """What users change of themselves."""

    language: Annotated[str, Field(max_length=8)] | None = None
    password: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    old_password: Annotated[str, Field(max_length=1024)] = ""


# Oneself --------------------------------------------------------------------------------------------------------------


@router.post("/login", dependencies=[Depends(anyone)])
async def login(request: Request, response: Response, body: Login) -> dict[str, Any]:
    """Begin a session with name and password."""
    return await _in_turn(_login, request, response, body)


async def _in_turn(act: Callable[..., dict[str, Any]], request: Request, *arguments: Any) -> dict[str, Any]:
    """What strangers can make us hash, in two threads of its own: however many come, others are served meanwhile."""
    state = request.app.state
    waiting = getattr(state, "hashing", 0)  # counted here: the limiter's own count lags behind a burst
    if waiting >= _MOST_HASHING:
        raise HTTPException(503, "too many logins at once; try again in a moment", {"Retry-After": "5"})
    state.hashing = waiting + 1
    try:
        return await to_thread.run_sync(act, request, *arguments, limiter=state.hashers)
    finally:
        state.hashing -= 1


def _login(request: Request, response: Response, body: Login) -> dict[str, Any]:
    service = _same_site(request)
    address, name = address_of(request), plain_name(body.name)
    for rate, key in ((service.rates.names, name), (service.rates.addresses, address)):
        wait_s = rate.take(key)
        if wait_s > 0:
            service.metrics.login("password", "limited")
            raise HTTPException(429, "too many tries; wait a while", {"Retry-After": str(int(wait_s) + 1)})
    user = log_in(service.db, name, body.password)
    if user is None:
        # The name is not kept: people type passwords there.
        service.audit.record("nobody", "login", address=address, outcome="refused", details={"way": "password"})
        service.metrics.login("password", "refused")
        raise HTTPException(401, "name or password are not right")
    service.rates.names.forgive(name)
    service.rates.addresses.forgive(address)
    return _enter(service, request, response, user, "password")


@router.post("/logout")
def logout(request: Request, response: Response, caller: AnyUser) -> dict[str, str]:
    """End the session."""
    service: Service = request.app.state.service
    cookie = session_cookie(request.scope, request.headers)
    if cookie:
        end_session(service.db, cookie)
    set_cookie(request.scope, response.headers, "", lasts_s=0)
    service.audit.record(caller.name, "logout", role=caller.role, address=caller.address)
    return {"status": "done"}


@router.get("/me")
def me(request: Request, caller: AnyUser) -> dict[str, Any]:
    """Who one is and what one may; the CSRF token that a session's requests must send in ``X-CSRF-Token``."""
    service: Service = request.app.state.service
    return {
        "name": caller.name,
        "role": caller.role,
        "permissions": sorted(caller.permissions),
        "language": caller.language or service.config.server.language,
        "csrf": caller.csrf,
    }


@router.patch("/me")
def change_me(request: Request, response: Response, caller: AnyUser, body: ChangedSelf) -> dict[str, Any]:
    """Change one's language or password; a new password takes the old one, and ends all other sessions."""
    service: Service = request.app.state.service
    user = known_user(service, caller.user_id or 0)
    check_language(body.language)
    if body.password is not None:
        if caller.via != "session":
            raise HTTPException(403, "a password is changed by who is logged in, not by a token")
        wait_s = service.rates.names.take(user.name)
        if wait_s > 0:
            raise HTTPException(429, "too many tries; wait a while", {"Retry-After": str(int(wait_s) + 1)})
        if user.issuer:
            raise HTTPException(400, "this user comes by the identity provider and has no password here")
        if log_in(service.db, user.name, body.old_password) is None:
            raise HTTPException(403, "the old password is not right")
        service.rates.names.forgive(user.name)
    changed = change_user(service.db, user.id, language=body.language, password=body.password)
    if body.password is not None:
        service.audit.record(
            caller.name,
            "users",
            role=caller.role,
            address=caller.address,
            details={"user": user.id, "what": "password"},
        )
        return _enter(service, request, response, changed, "password")
    return {"status": "done"}


def _enter(service: Service, request: Request, response: Response, user: User, way: str) -> dict[str, Any]:
    """Begin a session, and say so in the trail."""
    access = service.config.access
    service.audit.record(user.name, "login", role=user.role, address=address_of(request), details={"way": way})
    previous = session_cookie(request.scope, request.headers)
    secret, csrf = start_session(service.db, user.id, most_s=access.session_most_s, previous=previous)
    set_cookie(request.scope, response.headers, secret, lasts_s=int(access.session_most_s))
    service.metrics.login(way, "done")
    return {
        "name": user.name,
        "role": user.role,
        "permissions": sorted(user.permissions),
        "language": user.language or service.config.server.language,
        "csrf": csrf,
    }


def _same_site(request: Request) -> Service:
    """Refuse a login that another site sends: it would put its own user into this browser."""
    if request.method not in SAFE and request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise HTTPException(403, "the request came from another site")
    service: Service = request.app.state.service
    return service


# One-time links -------------------------------------------------------------------------------------------------------


@router.get("/links/{secret}", dependencies=[Depends(anyone)])
def show_link(request: Request, secret: Secret) -> dict[str, str]:
    """What a link is for; 404 where it was used, is over or never was."""
    service = _limited(request)
    link = find_link(service.db, secret)
    if link is None:
        service.rates.strangers.take(address_of(request))
        raise HTTPException(404, "this link was used, is over or was never made; ask an administrator for a new one")
    return {"purpose": link.purpose, "name": link.user.name if link.user else ""}


@router.post("/links/{secret}", dependencies=[Depends(anyone)])
async def follow_link(request: Request, response: Response, secret: Secret, body: NewPassword) -> dict[str, Any]:
    """Choose a password, and come in."""
    return await _in_turn(_follow, request, response, secret, body)


def _follow(request: Request, response: Response, secret: str, body: NewPassword) -> dict[str, Any]:
    _same_site(request)
    service = _limited(request)
    link = find_link(service.db, secret)
    if link is None:
        service.rates.strangers.take(address_of(request))
        raise HTTPException(404, "this link was used, is over or was never made; ask an administrator for a new one")
    user = use_link(service.db, secret, body.password, body.name)
    service.audit.record(
        user.name, "users", role=user.role, address=address_of(request), details={"link": link.purpose, "user": user.id}
    )
    return _enter(service, request, response, user, "link")


def _limited(request: Request) -> Service:
    service: Service = request.app.state.service
    if service.rates.strangers.wait_s(address_of(request)) > 0:
        raise HTTPException(429, "too many tries; wait a while", {"Retry-After": "60"})
    return service


# The identity provider ------------------------------------------------------------------------------------------------


@router.get("/oidc/start", dependencies=[Depends(anyone)])
def oidc_start(request: Request) -> Response:
    """Send the browser to the identity provider of the hospital."""
    service = _limited(request)
    if service.oidc is None:
        raise HTTPException(404, "no identity provider is configured")
    try:
        address, secret = service.oidc.start(_back(service))
    except ServeError as error:
        log_trouble(error, request_id(request.scope))
        return RedirectResponse(_NO_PROVIDER, 303)
    response = RedirectResponse(address, 303)
    set_cookie(request.scope, response.headers, secret, "sagittal-oidc", lasts_s=_OIDC_S)
    return response


@router.get("/oidc/back", dependencies=[Depends(anyone)])
async def oidc_back(
    request: Request,
    code: Annotated[str, Query(max_length=4096)] = "",
    state: Annotated[str, Query(max_length=256)] = "",
    iss: Annotated[str | None, Query(max_length=512)] = None,
    error: Annotated[str | None, Query(max_length=256)] = None,
) -> Response:
    """Where the identity provider sends the browser back to; begins a session, and goes to the first page.

    Where it lets nobody in, it goes to the page for signing in, which says so.
    """
    service = _limited(request)
    if service.oidc is None:
        raise HTTPException(404, "no identity provider is configured")
    answer = {"code": code, "state": state}
    answer |= {key: value for key, value in (("iss", iss), ("error", error)) if value is not None}
    response = RedirectResponse("/", 303)
    set_cookie(request.scope, response.headers, "", "sagittal-oidc", lasts_s=0)
    cookie = read_cookie(request.scope, request.headers, "sagittal-oidc")
    return await run_in_threadpool(_admit, service, request, response, answer, cookie)


def _admit(service: Service, request: Request, response: Response, answer: dict[str, str], cookie: str) -> Response:
    address = address_of(request)
    try:
        if service.oidc is None:
            raise Refusal("no identity provider is configured")
        user = admit(service.db, service.oidc.finish(answer, cookie, _back(service)))
    except Refusal as refusal:
        service.rates.strangers.take(address)
        service.audit.record(
            "nobody", "login", address=address, outcome="refused", details={"way": "oidc", "reason": str(refusal)}
        )
        service.metrics.login("oidc", "refused")
        response.headers["location"] = _NOT_LET_IN  # a browser comes here, and a person reads what it shows
        return response
    except ServeError as trouble:
        log_trouble(trouble, request_id(request.scope))
        response.headers["location"] = _NO_PROVIDER
        return response
    _enter(service, request, response, user, "oidc")
    return response


def _back(service: Service) -> str:
    return service.config.server.public_url.rstrip("/") + "/api/oidc/back"


def known_user(service: Service, user_id: int) -> User:
    """The user of a key; 404 where there is none."""
    user = find_user(service.db, user_id)
    if user is None:
        raise HTTPException(404, "there is no such user")
    return user


def check_language(language: str | None) -> None:
    """Refuse a language that pages do not have; 400."""
    if language and language not in LANGUAGES:
        raise HTTPException(400, f"the languages are {', '.join(LANGUAGES)}")
