"""An archive in a folder of the test, and objects to put into it."""

from __future__ import annotations

import importlib.util
import io
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
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


def run_postgresql(folder: Path) -> Iterator[str]:
    """A server of PostgreSQL of our own, on a socket in a folder; URL of an empty database, until the end."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        reason = "PostgreSQL is not installed (Debian package postgresql)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    pytest.importorskip("pg8000")
    run: dict[str, Any] = {
        "capture_output": True,
        "timeout": 60,
        "env": {"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]},
    }
    if os.geteuid() == 0:  # it refuses to be run by root
        run |= {"user": "postgres", "group": "postgres", "extra_groups": []}
        shutil.chown(folder, "postgres", "postgres")
    initdb, control = programs[-1] / "initdb", programs[-1] / "pg_ctl"
    data, run["cwd"] = folder / "data", folder
    subprocess.run([initdb, "-D", data, "-A", "trust", "-U", "sagittal", "-E", "UTF8", "--no-sync"], check=True, **run)
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
    subprocess.run(
        [control, "-D", data, "-w", "-l", folder / "log", "-o", options, "start"],
        check=True,
        **{**run, "capture_output": False},
    )
    try:
        yield f"postgresql+pg8000://sagittal@/postgres?unix_sock={folder}/.s.PGSQL.5432"
    finally:
        subprocess.run([control, "-D", data, "-m", "immediate", "stop"], check=True, **run)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of a server of PostgreSQL for the tests; each makes a database of its own with ``new_database``."""
    with tempfile.TemporaryDirectory(
        prefix="pg-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:  # a short path for its socket
        yield from run_postgresql(Path(folder))


def new_database(url: str, name: str) -> str:
    """Make an empty database beside the one of `url`; its URL."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as c:
        # Sorted as people of a language sort, as many servers are: not byte by byte.
        c.exec_driver_sql(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'en-US'"
        )
    engine.dispose()
    return url.replace("/postgres?", f"/{name}?")


@pytest.fixture
def empty_postgresql(postgresql: str, request: pytest.FixtureRequest) -> Callable[[], str]:
    """Make empty databases: ``empty_postgresql()`` gives the URL of one."""
    return lambda: new_database(postgresql, f"t{secrets.token_hex(8)}")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def lasting(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Archive, Callable[..., Receipt]]]:
    """An archive for all tests of a file, and how it receives; on each kind of database."""
    folder = tmp_path_factory.mktemp("lasting")
    url = f"sqlite:///{folder / 'sagittal.db'}"
    if request.param == "postgresql":
        url = new_database(request.getfixturevalue("postgresql"), f"t{secrets.token_hex(8)}")
    db = Database.open(url)
    made = Archive(db, folder / "archive", Limits(disk_reserve=0))
    yield made, partial(receive_bytes, made)
    made.close()
    db.close()
