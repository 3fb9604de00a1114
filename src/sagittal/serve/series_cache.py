"""What is made of a series once and kept beside the archive: its volume for the page, its headers as JSON.

It holds what the originals hold, so it goes when they go: :func:`forget_series` with a deletion, and
:func:`sweep_series` for what was left behind.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from sagittal.database.connect import Database
from sagittal.database.schema import series, studies

if TYPE_CHECKING:
    from sagittal.serve.service import Service


def cache_folder(service: Service) -> Path:
    """Where the service keeps what it can make again."""
    return Path(service.config.server.data) / "cache"


_LOCKS: dict[str, tuple[threading.Lock, int]] = {}
_GUARD = threading.Lock()


def kept_file(cache: Path, series_id: int, name: str, make: Callable[[Path], None]) -> Path:
    """A file of a series, made if it is not there yet; others of its kind, of an earlier state of the series, go.

    Parameters
    ----------
    cache : Path
        The folder of all that is kept.
    series_id : int
    name : str
        ``KIND-FINGERPRINT.SUFFIX``.
    make : callable (Path) -> None
        Writes the file; called once, however many ask at the same time.
    """
    folder = cache / f"series-{series_id}"
    path = folder / name
    if path.is_file():
        return path
    with _alone(str(path)):
        if path.is_file():
            return path
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{secrets.token_hex(8)}-{name}"  # the ending stays, as it says how to compress
        try:
            make(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        kind = name.partition("-")[0]
        for other in folder.glob(f"{kind}-*"):
            if other.name != name:
                other.unlink(missing_ok=True)
    return path


class _alone:  # noqa: N801
    """A lock by name, forgotten when nobody waits for it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        with _GUARD:
            lock, users = _LOCKS.get(self._name, (threading.Lock(), 0))
            _LOCKS[self._name] = (lock, users + 1)
        lock.acquire()

    def __exit__(self, *_: object) -> None:
        with _GUARD:
            lock, users = _LOCKS[self._name]
            if users == 1:
                del _LOCKS[self._name]
            else:
                _LOCKS[self._name] = (lock, users - 1)
        lock.release()


def forget_series(cache: Path, series_ids: Iterable[int]) -> None:
    """Remove what is kept of some series."""
    for series_id in series_ids:
        shutil.rmtree(cache / f"series-{series_id}", ignore_errors=True)


def sweep_series(db: Database, cache: Path) -> int:
    """Remove what is kept of series that are no longer there; the number of them."""
    if not cache.is_dir():
        return 0
    kept = {int(path.name[7:]) for path in cache.glob("series-*") if path.name[7:].isdecimal()}
    if not kept:
        return 0
    statement = (
        sa.select(series.c.id).join(studies, series.c.study_id == studies.c.id).where(studies.c.deleted_at.is_(None))
    )
    with db.read() as c:
        there = set(c.execute(statement).scalars())
    gone = kept - there
    forget_series(cache, gone)
    return len(gone)
