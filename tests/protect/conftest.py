"""A database of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from sagittal.database.connect import Database


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
