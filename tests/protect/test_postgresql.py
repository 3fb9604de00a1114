"""The same on PostgreSQL, where several writers come at once: one chain, one administrator at least, links that work once."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pg8000")

from sagittal.database.connect import Database
from sagittal.errors import ConfigError
from sagittal.protect.audit import Audit, verify
from sagittal.protect.links import make_link, use_link
from sagittal.protect.sessions import find_session, start_session
from sagittal.protect.tokens import find_token, make_token
from sagittal.protect.users import add_user, administrators, change_user

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="PostgreSQL is started by POSIX means here")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A PostgreSQL of its own, as the tests of the archive start it."""
    place = Path(__file__).resolve().parents[1] / "archive" / "conftest.py"
    spec = importlib.util.spec_from_file_location("archive_fixtures", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield from module.run_postgresql(Path(folder))


def at_once(count: int, act: object) -> list[object]:
    """What happens when several do the same at once."""
    outcomes: list[object] = []
    gate = threading.Barrier(count)

    def run(number: int) -> None:
        gate.wait()
        try:
            outcomes.append(act(number))  # type: ignore[operator]
        except ConfigError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_writers_at_once_leave_one_chain_one_administrator_and_used_links(url: str) -> None:
    first, second = Database.open(url), Database.open(url)
    try:
        trails = [Audit(first), Audit(second), Audit(second)]

        def write(number: int) -> None:
            for study in range(20):
                trails[number % 3].record(f"writer {number}", "view", study_id=study, details={"share": 0.1 * study})

        at_once(6, write)
        verdict = verify(first)
        assert verdict.sound, verdict.problem
        assert verdict.records == 120

        secret = make_link(first)
        outcomes = at_once(4, lambda n: use_link(second, secret, "bone window at dusk", f"root {n}"))
        assert sum(isinstance(one, str) for one in outcomes) == 3
        assert administrators(first) == 1
        other = add_user(first, "other", "administrator")
        both = [one.id for one in (other,)] + [one.id for one in outcomes if not isinstance(one, str)]  # type: ignore[attr-defined]
        left = at_once(2, lambda n: change_user([first, second][n], both[n], active=False))
        assert sum("last administrator" in str(one) for one in left) == 1
        assert administrators(first) == 1

        reader = add_user(first, "reader", "reader")
        cookie, _ = start_session(first, reader.id, most_s=600)
        assert find_session(second, cookie, idle_s=60) is not None
        token, _ = make_token(first, reader.id, "x")
        assert find_token(second, token) is not None
        change_user(second, reader.id, active=False)
        assert find_session(first, cookie, idle_s=60) is None
        assert find_token(first, token) is None
    finally:
        first.close()
        second.close()
