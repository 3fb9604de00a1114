"""An archive in a folder of the test, and objects to put into it."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from sagittal.archive.archive import Archive, Limits
from sagittal.archive.receive import Receipt
from sagittal.database.connect import Database

_shared = importlib.util.spec_from_file_location("shared_conftest", Path(__file__).parents[1] / "conftest.py")
assert _shared is not None
assert _shared.loader is not None
_module = importlib.util.module_from_spec(_shared)
_shared.loader.exec_module(_module)
make_header = _module.make_header

PIXELS = np.arange(48, dtype=np.uint16).reshape(6, 8)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """A new database."""
    made = Database.open(f"sqlite:///{tmp_path / 'sagittal.db'}")
    yield made
    made.close()


@pytest.fixture
def archive(db: Database, tmp_path: Path) -> Iterator[Archive]:
    """A new archive without a reserve."""
    made = Archive(db, tmp_path / "archive", Limits(disk_reserve=0, most_object=2**24))
    yield made
    made.close()


def make_bytes(pixels: np.ndarray = PIXELS, preamble: bytes = b"", **fields: Any) -> bytes:
    """A DICOM file as bytes."""
    stream = io.BytesIO()
    header: Dataset = make_header(pixels, **fields)
    header.save_as(stream, enforce_file_format=True)
    return preamble.ljust(128, b"\0") + stream.getvalue()[128:] if preamble else stream.getvalue()


def receive_bytes(
    archive: Archive, data: bytes, *, source: str = "test", piece: int = 2**17, **options: Any
) -> Receipt:
    """Receive bytes, `piece` of them at once."""
    with archive.receive(source, **options) as incoming:
        for start in range(0, len(data), piece):
            incoming.write(data[start : start + piece])
        return incoming.finish()


@pytest.fixture(scope="session")
def make_object() -> Callable[..., bytes]:
    """A DICOM file as bytes: ``make_object(pixels, preamble, **fields)``; see ``make_header`` of the shared fixtures."""
    return make_bytes


@pytest.fixture
def put(archive: Archive) -> Callable[..., Receipt]:
    """Receive bytes: ``put(data, source="test", piece=bytes at once)``."""
    return partial(receive_bytes, archive)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Archive, Callable[..., Receipt]]]:
    """An archive for all tests of a file, and how it receives."""
    folder = tmp_path_factory.mktemp("lasting")
    db = Database.open(f"sqlite:///{folder / 'sagittal.db'}")
    made = Archive(db, folder / "archive", Limits(disk_reserve=0))
    yield made, partial(receive_bytes, made)
    made.close()
    db.close()
