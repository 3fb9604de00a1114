"""Opening the database: flushed commits, one writer, locks waited for, errors that name no patient."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from sagittal.database.connect import Database
from sagittal.database.events import open_events, recent_events
from sagittal.database.schema import marks, metadata, studies
from sagittal.errors import ConfigError, ResourceError, ServeError


def open_database(tmp_path: Path, **options: float) -> Database:
    return Database.open(f"sqlite:///{tmp_path / 'sagittal.db'}", **options)


def test_commits_are_flushed_and_the_log_is_written_ahead(tmp_path: Path) -> None:
    db = open_database(tmp_path)
    with db.write() as c:
        told = {
            name: c.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "fullfsync")
        }
    db.close()
    assert told == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "fullfsync": 1}


def test_all_tables_of_the_schema_are_made(tmp_path: Path) -> None:
    db = open_database(tmp_path)
    with db.read() as c:
        assert set(metadata.tables) <= set(sa.inspect(c).get_table_names())
    db.close()


def test_a_transaction_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    db = open_database(tmp_path)
    with db.write() as c:
        c.execute(sa.insert(marks).values(name="kept", value=1))
    with suppress(ZeroDivisionError), db.write() as c:
        c.execute(sa.insert(marks).values(name="lost", value=1))
        raise ZeroDivisionError
    with db.read() as c:
        assert set(c.execute(sa.select(marks.c.name)).scalars()) >= {"kept"}
        assert "lost" not in set(c.execute(sa.select(marks.c.name)).scalars())
    db.close()


def test_reading_cannot_write(tmp_path: Path) -> None:
    db = open_database(tmp_path)
    with pytest.raises(sa.exc.OperationalError, match="readonly"), db.read() as c:
        c.execute(sa.insert(marks).values(name="a", value=1))
    db.close()


def test_readers_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    db = open_database(tmp_path)
    with db.write() as c:
        c.execute(sa.insert(marks).values(name="a", value=1))
        with db.read() as other:  # while the transaction is open
            assert other.execute(sa.select(marks).where(marks.c.name == "a")).all() == []
    db.close()


def test_a_database_locked_by_another_process_is_waited_for(tmp_path: Path) -> None:
    db = open_database(tmp_path)
    other = sqlite3.connect(tmp_path / "sagittal.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.3, lambda: other.execute("COMMIT")).start()
    begun = time.monotonic()
    with db.write() as c:
        c.execute(sa.insert(marks).values(name="a", value=1))
    assert time.monotonic() - begun > 0.25
    other.close()
    db.close()


def test_a_database_that_stays_locked_is_an_error_and_usable_afterwards(tmp_path: Path) -> None:
    db = open_database(tmp_path, wait_s=0.1)
    other = sqlite3.connect(tmp_path / "sagittal.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ServeError, match="stayed locked by another process"), db.write():
        pass
    other.execute("COMMIT")
    other.close()
    with db.write() as c:
        c.execute(sa.insert(marks).values(name="a", value=1))
    db.close()


def test_an_administrator_is_told_of_a_long_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagittal.database.connect.TELL_S", 0.05)
    db = open_database(tmp_path, wait_s=0.1)
    other = sqlite3.connect(tmp_path / "sagittal.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ServeError, match="stayed locked"), db.write():
        pass
    other.execute("COMMIT")
    other.close()
    for _ in range(2):
        with db.write():
            pass
    assert [(e.code, e.count) for e in recent_events(db)] == [("database-locked", 1)]
    assert open_events(db) == []
    db.close()


def test_a_transaction_inside_another_of_the_same_thread_is_an_error_not_a_deadlock(tmp_path: Path) -> None:
    db = open_database(tmp_path)
    with pytest.raises(ServeError, match="inside of another one"), db.write(), db.write():
        pass
    with db.write() as c:
        c.execute(sa.insert(marks).values(name="a", value=1))
    db.close()


def test_many_threads_write_one_after_the_other(tmp_path: Path) -> None:
    db = open_database(tmp_path)
    with db.write() as c:
        c.execute(sa.insert(marks).values(name="count", value=0))

    def add() -> None:
        for _ in range(10):
            with db.write() as c:
                count = c.execute(sa.select(marks.c.value).where(marks.c.name == "count")).scalar_one()
                c.execute(sa.update(marks).where(marks.c.name == "count").values(value=count + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as c:
        assert c.execute(sa.select(marks.c.value).where(marks.c.name == "count")).scalar_one() == 40
    db.close()


def test_a_full_disk_is_said_and_nothing_is_kept(tmp_path: Path) -> None:
    db = open_database(tmp_path)
    with db.write() as c:
        pages = c.exec_driver_sql("PRAGMA page_count").scalar_one()
        c.exec_driver_sql(f"PRAGMA max_page_count={pages + 2}")  # SQLite says "full" as on a full disk
    with pytest.raises(ResourceError, match="the disk of the database is full"), db.write() as c:
        c.execute(sa.insert(marks), [{"name": f"{n}", "value": "x" * 4000} for n in range(50)])
    with db.write() as c:
        c.exec_driver_sql("PRAGMA max_page_count=1000000")
        assert c.execute(sa.select(sa.func.count()).select_from(marks).where(marks.c.name == "0")).scalar() == 0
        c.execute(sa.insert(marks).values(name="a", value=1))
    db.close()


def test_an_error_holds_no_values(tmp_path: Path) -> None:
    db = open_database(tmp_path)
    row = {"study_uid": "1.2.3", "patient_name": "SECRET^NAME", "arrived_at": 0.0, "changed_at": 0.0}
    with pytest.raises(sa.exc.IntegrityError) as told, db.write() as c:
        c.execute(sa.insert(studies), [row, row])
    assert "SECRET" not in str(told.value)
    db.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [("nonsense", "cannot be read"), ("sqlite://", "must be a file"), ("mysql://a/b", "'mysql' are not supported")],
)
def test_a_url_that_is_none_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Database.open(url)


def test_a_database_that_is_not_there_is_not_made_when_that_was_not_asked(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="does not exist"):
        Database.open(f"sqlite:///{tmp_path / 'none.db'}", create=False)
    assert not (tmp_path / "none.db").exists()
