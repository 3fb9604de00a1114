"""Users and their tokens, as an administrator manages them and as each user manages their own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Request
from pydantic import Field

from sagittal.errors import ConfigError
from sagittal.protect.links import make_link
from sagittal.protect.tokens import Token, list_tokens, make_token, revoke_token
from sagittal.protect.users import User, add_user, change_user, list_users
from sagittal.serve.routes_access import Body, check_language, known_user
from sagittal.serve.security import AnyUser, Caller, allow

if TYPE_CHECKING:
    from sagittal.serve.service import Service

router = APIRouter(prefix="/api", tags=["access"])

Key = Annotated[int, Path(ge=1, lt=2**63)]
Manager = Annotated[Caller, Depends(allow("users"))]


class NewUser(Body):
    """A user to be."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    role: Annotated[str, Field(max_length=16)]
    language: Annotated[str, Field(max_length=8)] = ""


class ChangedUser(Body):
    """What an administrator changes of a user."""

    role: Annotated[str, Field(max_length=16)] | None = None
    active: bool | None = None
    language: Annotated[str, Field(max_length=8)] | None = None
    link: bool = False


class NewToken(Body):
    """A token to be; of oneself, or of another user where one may."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    days: Annotated[float, Field(gt=0, le=3660)] | None = None
    user_id: Annotated[int, Field(ge=1, lt=2**63)] | None = None


# Users ----------------------------------------------------------------------------------------------------------------


@router.get("/users")
def users(request: Request, caller: Manager) -> dict[str, Any]:
    """Every user."""
    return {"users": [_shown(user) for user in list_users(request.app.state.service.db)]}


@router.post("/users", status_code=201)
def new_user(request: Request, caller: Manager, body: NewUser) -> dict[str, Any]:
    """Add a user; the answer holds a link, told this once, by which the user chooses a password."""
    service: Service = request.app.state.service
    check_language(body.language)
    user = add_user(service.db, body.name, body.role, language=body.language)
    link = None if user.role == "machine" else make_link(service.db, user.id)
    _note(service, caller, {"user": user.id, "added": user.role})
    return {**_shown(user), "link": link}


@router.patch("/users/{user_id}")
def edit_user(request: Request, caller: Manager, user_id: Key, body: ChangedUser) -> dict[str, Any]:
    """Change a user's role or language, put it out of use or back, or make a new link for its password."""
    service: Service = request.app.state.service
    user = known_user(service, user_id)
    check_language(body.language)
    changed = change_user(service.db, user.id, role=body.role, active=body.active, language=body.language)
    done = {
        key: value for key, value in body.model_dump(exclude_none=True).items() if value is not False or key == "active"
    }
    _note(service, caller, {"user": user.id, **done})
    return {**_shown(changed), "link": make_link(service.db, user.id) if body.link else None}


@router.delete("/users/{user_id}")
def remove_user(request: Request, caller: Manager, user_id: Key) -> dict[str, Any]:
    """Put a user out of use: sessions and tokens end. The name stays, for reviews and the trail refer to it."""
    service: Service = request.app.state.service
    user = known_user(service, user_id)
    changed = change_user(service.db, user.id, active=False)
    _note(service, caller, {"user": user.id, "active": False})
    return _shown(changed)


# Tokens ---------------------------------------------------------------------------------------------------------------


@router.get("/tokens")
def tokens(request: Request, caller: AnyUser) -> dict[str, Any]:
    """One's own tokens; everyone's for who may manage users."""
    service: Service = request.app.state.service
    whose = None if caller.may("users") else caller.user_id
    names = {user.id: user.name for user in list_users(service.db)} if whose is None else {caller.user_id: caller.name}
    return {"tokens": [{**_token(one), "user": names.get(one.user_id, "")} for one in list_tokens(service.db, whose)]}


@router.post("/tokens", status_code=201)
def new_token(request: Request, caller: AnyUser, body: NewToken) -> dict[str, Any]:
    """Make a token; it is told this once."""
    service: Service = request.app.state.service
    owner = body.user_id or caller.user_id or 0
    if caller.via != "session" and not caller.may("users"):
        raise HTTPException(403, "a token is made by who is logged in, not by another token")
    if owner != caller.user_id and not caller.may("users"):
        raise HTTPException(403, "only who may manage users makes tokens for others")
    user = known_user(service, owner)
    if not user.active:
        raise ConfigError("this user is not in use")
    secret, token = make_token(service.db, user.id, body.name, lasts_s=None if body.days is None else body.days * 86400)
    _note(service, caller, {"user": user.id, "token": token.id})
    return {**_token(token), "user": user.name, "token": secret}


@router.delete("/tokens/{token_id}")
def end_token(request: Request, caller: AnyUser, token_id: Key) -> dict[str, str]:
    """Revoke a token: one's own, or anyone's for who may manage users."""
    service: Service = request.app.state.service
    if not revoke_token(service.db, token_id, None if caller.may("users") else caller.user_id):
        raise HTTPException(404, "there is no such token in use")
    _note(service, caller, {"token": token_id, "revoked": True})
    return {"status": "done"}


def _note(service: Service, caller: Caller, details: dict[str, Any]) -> None:
    service.audit.record(caller.name, "users", role=caller.role, address=caller.address, details=details)


def _shown(user: User) -> dict[str, Any]:
    return {
        "id": user.id,
        "name": user.name,
        "role": user.role,
        "language": user.language,
        "active": user.active,
        "has_password": user.has_password,
        "by_provider": bool(user.issuer),
        "created_at": _iso(user.created_at),
    }


def _token(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "user_id": token.user_id,
        "name": token.name,
        "created_at": _iso(token.created_at),
        "expires_at": _iso(token.expires_at),
        "used_at": _iso(token.used_at),
        "revoked_at": _iso(token.revoked_at),
    }


def _iso(seconds: float | None) -> str | None:
    return (
        None
        if seconds is None
        else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    )
