"""A service of its own for a test, and callers of every kind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

import httpx
from argon2 import PasswordHasher
from fastapi import FastAPI

from sagittal.protect import passwords
from sagittal.protect.sessions import start_session
from sagittal.protect.tokens import make_token
from sagittal.protect.users import User, add_user
from sagittal.serve.app import make_app
from sagittal.serve.config import read_config
from sagittal.serve.service import Service, open_service


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """A service without ports: ``make_service({"server.language": "zh"})``; closed at the end."""
    made: list[Service] = []

    def make(flags: dict[str, Any] | None = None) -> Service:
        given = {"server.data": str(tmp_path / "data"), "server.port": 0, "dicom.port": 0, "limits.disk_reserve": 0}
        made.append(open_service(read_config(flags={**given, **(flags or {})})))
        return made[-1]

    yield make
    for service in made:
        service.stop()


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    """A service without ports."""
    return make_service()


@pytest.fixture
def token(service: Service) -> Callable[[str], dict[str, str]]:
    """Headers of a caller with a role: ``token("reader")``."""
    users: dict[str, User] = {}

    def make(role: str) -> dict[str, str]:
        if role not in users:
            users[role] = add_user(service.db, f"a {role}", role)
        return {"Authorization": f"Bearer {make_token(service.db, users[role].id, 'test')[0]}"}

    return make


@pytest.fixture
def session(service: Service) -> Callable[..., dict[str, str]]:
    """Headers of a browser that is logged in: ``session("reader")``."""

    def make(role: str, *, csrf: bool = True) -> dict[str, str]:
        user = add_user(service.db, f"{role} at a browser", role)
        secret, code = start_session(service.db, user.id, most_s=3600)
        return {"Cookie": f"sagittal={secret}", **({"X-CSRF-Token": code} if csrf else {})}

    return make


@pytest.fixture
def app(service: Service) -> FastAPI:
    """The application of the service."""
    return make_app(service)


@pytest.fixture
def ask(app: FastAPI) -> Iterator[Callable[..., httpx.Response]]:
    """Ask the application: ``ask("GET", "/api/me", headers={...})``; keeps cookies as a browser does."""
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost")
        yield lambda *arguments, **more: runner.run(client.request(*arguments, **more))
        runner.run(client.aclose())


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of passwords that cost a hundredth; what the real ones cost is tested where they are made."""
    quick = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
    monkeypatch.setattr(passwords, "_HASHER", quick)
    monkeypatch.setattr(passwords, "_made", [])
