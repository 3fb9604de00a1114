"""Every route refuses whom it should; the list of routes is the application's own description of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("fastapi")

import httpx
from fastapi import APIRouter, FastAPI

from sagittal.database.schema import sessions
from sagittal.errors import ServeError
from sagittal.protect.audit import read_records
from sagittal.protect.roles import PERMISSIONS, ROLES, permissions
from sagittal.protect.sessions import start_session
from sagittal.protect.users import add_user, change_user
from sagittal.serve import security
from sagittal.serve.app import describe, make_app
from sagittal.serve.service import Service

Ask = Callable[..., httpx.Response]
#: What is open, and why; nothing else may be.
OPEN = {
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("POST", "/api/login"),
    ("GET", "/api/links/{secret}"),
    ("POST", "/api/links/{secret}"),
    ("GET", "/api/oidc/start"),
    ("GET", "/api/oidc/back"),
    ("GET", "/v2"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
}


_FOUND: list[tuple[str, str, str]] = []


def operations(app: FastAPI) -> list[tuple[str, str, str]]:
    """Method, path with values put in, and permission of every operation that is described; the same for every app."""
    described = {} if _FOUND else describe(app)["paths"]
    for path, methods in described.items():
        for method, operation in methods.items():
            asked = path
            for one in operation.get("parameters", []):
                kind = one["schema"].get("type", "string")
                asked = asked.replace("{" + one["name"] + "}", "7" if kind == "integer" else "x" * 30)
            _FOUND.append((method.upper(), asked, operation["x-permission"]))
    return _FOUND


def test_every_route_says_who_may_and_is_described(app: FastAPI) -> None:
    assert {takes for *_, takes in operations(app)} <= {"anyone", *PERMISSIONS}
    assert len(operations(app)) > 15


def test_open_routes_are_those_that_must_be(app: FastAPI) -> None:
    described = describe(app)["paths"]
    open_ones = {
        (method.upper(), path)
        for path, methods in described.items()
        for method, one in methods.items()
        if one["x-permission"] == "anyone"
    }
    assert open_ones <= OPEN


def test_stranger_is_refused_on_every_route(app: FastAPI, ask: Ask) -> None:
    wrong = []
    for method, path, takes in operations(app):
        if takes == "anyone":
            continue
        for headers in (
            {},
            {"Cookie": "sagittal=x"},
            {"Authorization": "Bearer sg_" + "x" * 43},
            {"Authorization": "Basic eDp5"},
        ):
            app.state.service.rates.strangers.forgive("127.0.0.1")
            answer = ask(method, path, headers=headers)
            if answer.status_code != 401:
                wrong.append((method, path, answer.status_code))
    assert wrong == []


def test_session_that_is_over_is_refused_on_every_route(
    app: FastAPI, ask: Ask, service: Service, session: Callable[..., dict[str, str]]
) -> None:
    headers = session("administrator")
    assert ask("GET", "/api/me", headers=headers).status_code == 200
    with service.db.write() as c:
        c.execute(sessions.update().values(expires_at=1.0))
    wrong = [
        (method, path)
        for method, path, takes in operations(app)
        if takes != "anyone" and ask(method, path, headers=headers).status_code != 401
    ]
    assert wrong == []


@pytest.mark.parametrize("role", ROLES)
def test_role_without_the_permission_is_refused_on_every_route(
    app: FastAPI, ask: Ask, token: Callable[[str], dict[str, str]], role: str
) -> None:
    headers = token(role)
    lacking = set(PERMISSIONS) - permissions(role)
    wrong, tried = [], 0
    for method, path, takes in operations(app):
        if takes in lacking:
            tried += 1
            if (status := ask(method, path, headers=headers).status_code) != 403:
                wrong.append((method, path, status))
    assert wrong == []
    assert tried or not lacking


def test_request_of_a_session_that_changes_something_needs_its_csrf_token(
    app: FastAPI, ask: Ask, session: Callable[..., dict[str, str]]
) -> None:
    headers = session("administrator", csrf=False)
    other = session("reader")
    wrong = []
    for method, path, takes in operations(app):
        if takes == "anyone" or method == "GET":
            continue
        for more in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": other["X-CSRF-Token"]}):
            if (status := ask(method, path, headers={**headers, **more}).status_code) != 403:
                wrong.append((method, path, status))
    assert wrong == []


def test_request_from_another_site_is_refused_even_with_the_token(
    ask: Ask, session: Callable[..., dict[str, str]]
) -> None:
    headers = session("administrator")
    assert ask("POST", "/api/users", headers={**headers, "Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert ask("POST", "/api/users", headers={**headers, "Sec-Fetch-Site": "same-origin"}).status_code == 422


def test_token_needs_no_csrf(ask: Ask, token: Callable[[str], dict[str, str]]) -> None:
    assert (
        ask("POST", "/api/users", headers=token("administrator"), json={"name": "x", "role": "reader"}).status_code
        == 201
    )


def test_token_as_password_of_basic_authentication(ask: Ask, token: Callable[[str], dict[str, str]]) -> None:
    secret = token("reader")["Authorization"].removeprefix("Bearer ")
    assert ask("GET", "/api/me", auth=("anything", secret)).json()["role"] == "reader"


def test_user_put_out_of_use_is_refused_at_once(
    ask: Ask, service: Service, session: Callable[..., dict[str, str]], token: Callable[[str], dict[str, str]]
) -> None:
    from sagittal.protect.users import list_users

    callers = [session("reader"), token("reader")]
    assert [ask("GET", "/api/me", headers=one).status_code for one in callers] == [200, 200]
    for user in list_users(service.db):
        change_user(service.db, user.id, active=False)
    assert [ask("GET", "/api/me", headers=one).status_code for one in callers] == [401, 401]


def test_refusals_are_in_the_trail_and_do_not_flood_it(
    ask: Ask, service: Service, token: Callable[[str], dict[str, str]]
) -> None:
    headers = token("reader")
    for _ in range(40):
        assert ask("GET", "/api/users", headers=headers).status_code == 403
    told = [row for row in read_records(service.db) if row["action"] == "refused"]
    assert len(told) == 20
    assert told[0]["outcome"] == "refused"
    assert told[0]["details"] == {"route": "/api/users", "method": "GET", "permission": "users"}


def test_refused_caller_gets_no_answer_where_the_trail_cannot_be_written(
    ask: Ask, service: Service, token: Callable[[str], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ServeError("the audit trail cannot be written, so nothing was done")

    monkeypatch.setattr(service.audit, "record", broken)
    headers = token("administrator")
    answer = ask("POST", "/api/tokens", headers=headers, json={"name": "x"})
    assert answer.status_code == 503
    assert "sg_" not in answer.text


def test_wrong_tokens_are_limited_by_address(ask: Ask, token: Callable[[str], dict[str, str]]) -> None:
    statuses = [ask("GET", "/api/me", headers={"Authorization": "Bearer sg_wrong"}).status_code for _ in range(32)]
    assert statuses[:30] == [401] * 30
    assert statuses[30:] == [429, 429]


def test_requests_of_a_token_are_limited(make_service: Callable[..., Service]) -> None:
    service = make_service({"access.token_requests": 3})
    user = add_user(service.db, "node", "machine")
    from sagittal.protect.tokens import make_token

    headers = {"Authorization": f"Bearer {make_token(service.db, user.id, 'x')[0]}"}
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app=make_app(service)), base_url="http://localhost")
        answers = [runner.run(client.get("/api/me", headers=headers)) for _ in range(5)]
        runner.run(client.aclose())
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert int(answers[-1].headers["Retry-After"]) >= 1


def test_token_of_prometheus_opens_the_counters_and_nothing_else(make_service: Callable[..., Service]) -> None:
    service = make_service({"metrics.token": "a token of the counters"})
    headers = {"Authorization": "Bearer a token of the counters"}
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app=make_app(service)), base_url="http://localhost")
        assert runner.run(client.get("/metrics", headers=headers)).status_code == 200
        assert runner.run(client.get("/api/me", headers=headers)).status_code == 401
        assert runner.run(client.get("/metrics", headers={"Authorization": "Bearer another"})).status_code == 401
        runner.run(client.aclose())


def test_route_that_does_not_say_who_may_does_not_start() -> None:
    router = APIRouter()

    @router.get("/forgotten")
    def forgotten() -> None: ...

    with pytest.raises(ServeError, match="/forgotten"):
        security.check_routes(router.routes)


def test_session_cookie_is_bound_to_this_host_over_tls(service: Service, app: FastAPI) -> None:
    user = add_user(service.db, "ada", "reader", password="bone window at dusk")
    with asyncio.Runner() as runner:
        for base, name in (("http://localhost", "sagittal"), ("https://localhost", "__Host-sagittal")):
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=base)
            body = {"name": "ada", "password": "bone window at dusk"}
            answer = runner.run(client.post("/api/login", json=body))
            cookie = answer.headers["set-cookie"]
            assert cookie.startswith(f"{name}=")
            assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
            assert ("Secure" in cookie) == base.startswith("https")
            assert "Domain" not in cookie
            runner.run(client.aclose())
        # A cookie without the prefix is worth nothing over TLS.
        secret, _ = start_session(service.db, user.id, most_s=600)
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="https://localhost")
        assert runner.run(client.get("/api/me", headers={"Cookie": f"sagittal={secret}"})).status_code == 401
        assert runner.run(client.get("/api/me", headers={"Cookie": f"__Host-sagittal={secret}"})).status_code == 200
        runner.run(client.aclose())
