"""Coming in: passwords, links, tokens and the identity provider over the application, and what the trail says of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("fastapi")

import httpx

from sagittal.protect.audit import read_records, verify
from sagittal.protect.links import make_link
from sagittal.protect.users import User, add_user, change_user, find_name, log_in
from sagittal.serve import app as app_module
from sagittal.serve import routes_access
from sagittal.serve.app import make_app
from sagittal.serve.service import Service

Ask = Callable[..., httpx.Response]
GOOD, OTHER = "bone window at dusk", "seven grey herons sleep"


@pytest.fixture(autouse=True)
def only_access(monkeypatch: pytest.MonkeyPatch) -> None:
    """Applications with the routes of this file only, which are made in a tenth of the time."""
    monkeypatch.setattr(app_module, "ROUTES", ("routes_access", "routes_users"))
    monkeypatch.setattr(app_module, "PAGES", ())


@pytest.fixture
def ada(service: Service) -> User:
    return add_user(service.db, "ada", "reader", password=GOOD)


def trail(service: Service, action: str) -> list[dict[str, Any]]:
    return [row for row in read_records(service.db) if row["action"] == action]


def test_login_gives_a_session_that_ends_at_logout(ask: Ask, service: Service, ada: User) -> None:
    assert ask("GET", "/api/me").status_code == 401
    answer = ask("POST", "/api/login", json={"name": "Ada", "password": GOOD})
    assert answer.status_code == 200
    me = ask("GET", "/api/me").json()
    assert me == {
        "name": "ada",
        "role": "reader",
        "permissions": ["account", "review", "see", "steer"],
        "language": "en",
        "csrf": answer.json()["csrf"],
    }
    cookie = answer.cookies["sagittal"]
    assert ask("POST", "/api/logout").status_code == 403  # without the CSRF token
    assert ask("POST", "/api/logout", headers={"X-CSRF-Token": me["csrf"]}).status_code == 200
    assert ask("GET", "/api/me", headers={"Cookie": f"sagittal={cookie}"}).status_code == 401
    assert [(row["actor"], row["outcome"]) for row in trail(service, "login")] == [("ada", "done")]
    assert [row["actor"] for row in trail(service, "logout")] == ["ada"]


def test_wrong_name_and_wrong_password_look_alike(ask: Ask, service: Service, ada: User) -> None:
    answers = [ask("POST", "/api/login", json={"name": name, "password": OTHER}) for name in ("ada", "eve")]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].json()["error"] == answers[1].json()["error"]
    refused = trail(service, "login")
    assert [row["outcome"] for row in refused] == ["refused", "refused"]
    assert "ada" not in str(refused)  # people type passwords where names belong
    assert "eve" not in str(refused)


def test_tries_are_limited_by_name_and_forgiven_by_success(make_service: Callable[..., Service]) -> None:
    service = make_service({"access.logins": 3})
    add_user(service.db, "ada", "reader", password=GOOD)
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app=make_app(service)), base_url="http://localhost")

        def come_in(name: str, password: str) -> httpx.Response:
            return runner.run(client.post("/api/login", json={"name": name, "password": password}))

        assert [come_in("ada", one).status_code for one in (OTHER, OTHER, GOOD)] == [401, 401, 200]
        assert [come_in("ada", OTHER).status_code for _ in range(3)] == [401, 401, 401]
        limited = come_in("ADA ", GOOD)
        runner.run(client.aclose())
    assert limited.status_code == 429
    assert int(limited.headers["Retry-After"]) > 0


def test_tries_are_limited_by_address(make_service: Callable[..., Service]) -> None:
    service = make_service({"access.logins": 1})
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app=make_app(service)), base_url="http://localhost")
        statuses = [
            runner.run(client.post("/api/login", json={"name": f"user {n}", "password": OTHER})).status_code
            for n in range(7)
        ]
        runner.run(client.aclose())
    assert statuses == [401] * 5 + [429] * 2


def test_storm_of_logins_is_turned_away_and_others_are_served(
    make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashing costs memory and time: strangers get two threads of it, and a short queue."""
    service = make_service({"access.logins": 1000})
    monkeypatch.setattr(routes_access, "_MOST_HASHING", 5)
    original = routes_access.log_in

    def slow(*arguments: Any) -> User | None:
        time.sleep(0.05)
        return original(*arguments)

    monkeypatch.setattr(routes_access, "log_in", slow)

    async def storm() -> tuple[list[int], int, float]:
        transport = httpx.ASGITransport(app=make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            body = {"name": "eve", "password": OTHER}
            logins = [asyncio.create_task(client.post("/api/login", json=body)) for _ in range(60)]
            await asyncio.sleep(0.02)
            began = time.monotonic()
            other = await client.get("/api/links/" + "x" * 43)
            passed = time.monotonic() - began
            return [(await one).status_code for one in logins], other.status_code, passed

    codes, other, passed = asyncio.run(storm())
    assert set(codes) == {401, 503}
    assert codes.count(503) > 40
    assert other == 404
    assert passed < 1.0


def test_login_that_another_site_sends_is_refused(ask: Ask, ada: User) -> None:
    body = {"name": "ada", "password": GOOD}
    assert ask("POST", "/api/login", json=body, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    form = ask("POST", "/api/login", data=body)  # what a form of another site can send without being asked
    assert form.status_code == 422
    assert GOOD not in form.text


def test_password_is_never_sent_back(ask: Ask) -> None:
    answer = ask("POST", "/api/login", json={"name": "", "password": GOOD, "more": GOOD})
    assert answer.status_code == 422
    assert GOOD not in answer.text
    assert {field["where"] for field in answer.json()["fields"]} == {"body.name", "body.more"}


def test_session_of_before_the_login_is_ended_by_it(ask: Ask, ada: User) -> None:
    first = ask("POST", "/api/login", json={"name": "ada", "password": GOOD}).cookies["sagittal"]
    second = ask("POST", "/api/login", json={"name": "ada", "password": GOOD}).cookies["sagittal"]
    assert first != second
    assert ask("GET", "/api/me", headers={"Cookie": f"sagittal={first}"}).status_code == 401


def test_own_language_and_password_are_changed(ask: Ask, service: Service, ada: User) -> None:
    csrf = ask("POST", "/api/login", json={"name": "ada", "password": GOOD}).json()["csrf"]
    headers = {"X-CSRF-Token": csrf}
    assert ask("PATCH", "/api/me", json={"language": "zh"}, headers=headers).status_code == 200
    assert ask("GET", "/api/me").json()["language"] == "zh"
    assert ask("PATCH", "/api/me", json={"language": "tlh"}, headers=headers).status_code == 400
    wrong = ask("PATCH", "/api/me", json={"password": OTHER, "old_password": "not it at all"}, headers=headers)
    assert wrong.status_code == 403
    weak = ask("PATCH", "/api/me", json={"password": "short", "old_password": GOOD}, headers=headers)
    assert weak.status_code == 400
    assert "at least 12" in weak.json()["error"]
    changed = ask("PATCH", "/api/me", json={"password": OTHER, "old_password": GOOD}, headers=headers)
    assert changed.status_code == 200
    assert ask("GET", "/api/me").json()["csrf"] == changed.json()["csrf"] != csrf  # a new session
    assert log_in(service.db, "ada", OTHER) is not None


# Links


def test_first_administrator_comes_in_by_the_link(ask: Ask, service: Service) -> None:
    secret = make_link(service.db)
    assert ask("GET", f"/api/links/{secret}").json() == {"purpose": "first-administrator", "name": ""}
    assert ask("POST", f"/api/links/{secret}", json={"name": "root", "password": "short"}).status_code == 400
    answer = ask("POST", f"/api/links/{secret}", json={"name": "root", "password": GOOD})
    assert answer.status_code == 200
    assert ask("GET", "/api/me").json()["role"] == "administrator"
    assert ask("POST", f"/api/links/{secret}", json={"name": "again", "password": GOOD}).status_code == 404
    assert ask("GET", f"/api/links/{secret}").status_code == 404


def test_invented_links_are_limited(ask: Ask) -> None:
    statuses = [ask("GET", f"/api/links/{'x' * 40}{n:03d}").status_code for n in range(32)]
    assert statuses == [404] * 30 + [429] * 2


# Users and tokens


def test_administrator_adds_a_user_who_then_chooses_a_password(
    ask: Ask, service: Service, token: Callable[[str], dict[str, str]]
) -> None:
    root = token("administrator")
    made = ask("POST", "/api/users", headers=root, json={"name": "Bob", "role": "reader", "language": "zh"})
    assert made.status_code == 201
    assert made.json()["has_password"] is False
    assert ask("POST", f"/api/links/{made.json()['link']}", json={"password": GOOD}).status_code == 200
    assert ask("GET", "/api/me").json()["name"] == "bob"
    shown = ask("GET", "/api/users", headers=root).json()["users"]
    assert {one["name"]: one["has_password"] for one in shown} == {"a administrator": False, "bob": True}
    assert "argon2" not in str(shown)
    key = made.json()["id"]
    for body, expected in (
        ({"role": "boss"}, 400),
        ({"role": "engineer"}, 200),
        ({"active": False}, 200),
        ({"rule": "x"}, 422),
    ):
        assert ask("PATCH", f"/api/users/{key}", headers=root, json=body).status_code == expected
    assert ask("PATCH", "/api/users/999", headers=root, json={"active": False}).status_code == 404
    assert log_in(service.db, "bob", GOOD) is None
    assert [row["details"] for row in trail(service, "users")][-2:] == [
        {"user": key, "role": "engineer"},
        {"user": key, "active": False},
    ]


def test_last_administrator_cannot_be_taken_out(
    ask: Ask, service: Service, token: Callable[[str], dict[str, str]]
) -> None:
    root = token("administrator")
    user = find_name(service.db, "a administrator")
    assert user is not None
    answer = ask("DELETE", f"/api/users/{user.id}", headers=root)
    assert answer.status_code == 400
    assert "last administrator" in answer.json()["error"]


def test_user_makes_and_revokes_tokens_of_their_own(
    ask: Ask, service: Service, session: Callable[..., dict[str, str]], token: Callable[[str], dict[str, str]]
) -> None:
    mine, root = session("reader"), token("administrator")
    made = ask("POST", "/api/tokens", headers=mine, json={"name": "script", "days": 30})
    assert made.status_code == 201
    secret = {"Authorization": f"Bearer {made.json()['token']}"}
    assert ask("GET", "/api/me", headers=secret).json()["role"] == "reader"
    assert ask("POST", "/api/tokens", headers=secret, json={"name": "child"}).status_code == 403
    listed = ask("GET", "/api/tokens", headers=mine).json()["tokens"]
    assert [one["name"] for one in listed] == ["script"]
    assert "token" not in listed[0]
    everyone = ask("GET", "/api/tokens", headers=root).json()["tokens"]
    assert {one["user"] for one in everyone} == {"a administrator", "reader at a browser"}
    other, owner = next((one["id"], one["user_id"]) for one in everyone if one["user"] == "a administrator")
    assert ask("DELETE", f"/api/tokens/{other}", headers=mine).status_code == 404
    assert ask("POST", "/api/tokens", headers=mine, json={"name": "x", "user_id": owner}).status_code == 403
    assert ask("DELETE", f"/api/tokens/{listed[0]['id']}", headers=mine).status_code == 200
    assert ask("GET", "/api/me", headers=secret).status_code == 401


def test_administrator_makes_a_token_for_a_machine(ask: Ask, token: Callable[[str], dict[str, str]]) -> None:
    root = token("administrator")
    node = ask("POST", "/api/users", headers=root, json={"name": "pacs", "role": "machine"}).json()
    assert node["link"] is None
    made = ask("POST", "/api/tokens", headers=root, json={"name": "orthanc", "user_id": node["id"]}).json()
    assert ask("GET", "/api/me", headers={"Authorization": f"Bearer {made['token']}"}).json()["name"] == "pacs"


def test_trail_of_all_this_is_whole(ask: Ask, service: Service, ada: User) -> None:
    ask("POST", "/api/login", json={"name": "ada", "password": OTHER})
    ask("POST", "/api/login", json={"name": "ada", "password": GOOD})
    verdict = verify(service.db)
    assert verdict.sound
    assert verdict.records == 2


# The identity provider


@pytest.fixture
def provider() -> Iterator[str]:
    mock = pytest.importorskip("oidc_provider_mock")
    users = [mock.User(sub="s-1", claims={"preferred_username": "Ada", "groups": ["radiologists"]})]
    with mock.run_server_in_thread(user_claims=users) as server:
        yield f"http://localhost:{server.server_port}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the mock's own library
def test_login_by_the_identity_provider(provider: str, make_service: Callable[..., Service], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret of the client\n")
    service = make_service(
        {
            "oidc.issuer": provider,
            "oidc.client_id": "sagittal",
            "oidc.client_secret_file": str(tmp_path / "secret"),
            "oidc.roles": {"radiologists": "reader"},
            "server.public_url": "http://localhost",
        }
    )
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app=make_app(service)), base_url="http://localhost")
        start = runner.run(client.get("/api/oidc/start"))
        assert start.status_code == 303
        assert "HttpOnly" in start.headers["set-cookie"]
        agreed = httpx.post(start.headers["location"], data={"sub": "s-1"}, trust_env=False)
        back = urlsplit(agreed.headers["location"])
        assert back.path == "/api/oidc/back"
        query = {key: values[0] for key, values in parse_qs(back.query).items()}
        forged = runner.run(client.get("/api/oidc/back", params={**query, "state": "x" * 43}))
        assert (forged.status_code, forged.headers["location"]) == (303, "/signin?problem=refused")
        assert runner.run(client.get("/api/me")).status_code == 401
        # The cookie was for one answer: whoever failed begins again.
        late = runner.run(client.get("/api/oidc/back", params=query))
        assert late.headers["location"] == "/signin?problem=refused"
        start = runner.run(client.get("/api/oidc/start"))
        agreed = httpx.post(start.headers["location"], data={"sub": "s-1"}, trust_env=False)
        query = {key: values[0] for key, values in parse_qs(urlsplit(agreed.headers["location"]).query).items()}
        done = runner.run(client.get("/api/oidc/back", params=query))
        assert (done.status_code, done.headers["location"]) == (303, "/")
        me = runner.run(client.get("/api/me")).json()
        assert (me["name"], me["role"]) == ("ada", "reader")
        user = find_name(service.db, "ada")
        assert user is not None
        change_user(service.db, user.id, active=False)
        assert runner.run(client.get("/api/me")).status_code == 401
        runner.run(client.aclose())
    outcomes = [(row["outcome"], row["details"]["way"]) for row in trail(service, "login")]
    assert outcomes == [("refused", "oidc"), ("refused", "oidc"), ("done", "oidc")]


def test_provider_that_is_away_is_said_so(make_service: Callable[..., Service]) -> None:
    service = make_service(
        {
            "oidc.issuer": "http://127.0.0.1:9",
            "oidc.client_id": "sagittal",
            "oidc.roles": {"x": "reader"},
            "server.public_url": "http://localhost",
        }
    )
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app=make_app(service)), base_url="http://localhost")
        answer = runner.run(client.get("/api/oidc/start"))
        runner.run(client.aclose())
    assert (answer.status_code, answer.headers["location"]) == (303, "/signin?problem=provider")


def test_without_a_provider_there_is_none(ask: Ask) -> None:
    assert ask("GET", "/api/oidc/start").status_code == 404
    assert ask("GET", "/api/oidc/back?code=x&state=y").status_code == 404
