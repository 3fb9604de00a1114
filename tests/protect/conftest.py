"""A database of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from argon2 import PasswordHasher

from sagittal.database.connect import Database
from sagittal.protect import passwords


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(f"sqlite:///{tmp_path / 'sagittal.db'}")
    yield opened
    opened.close()


@pytest.fixture
def clock(db: Database, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the database's clock is ahead; tests add to it."""
    ahead = [0.0]
    real = db.clock.now
    monkeypatch.setattr(db.clock, "now", lambda: real() + ahead[0])
    return ahead


@pytest.fixture(autouse=True)
def quick_hashes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of passwords that cost a hundredth; what the real ones cost is tested where they are made."""
    if request.module.__name__.endswith("test_passwords") or "renewed" in request.node.name:
        return
    quick = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
    monkeypatch.setattr(passwords, "_HASHER", quick)
    monkeypatch.setattr(passwords, "_made", [])
