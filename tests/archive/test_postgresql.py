"""The same archive with PostgreSQL as its database: receiving, closing, deleting, backup to and fro."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from sagittal.archive.archive import Archive, Limits
from sagittal.archive.backup import check_backup, make_backup, restore_backup
from sagittal.archive.complete import close_quiet_series
from sagittal.archive.integrity import check_files, storage_of
from sagittal.archive.recover import Recovered, recover
from sagittal.archive.retention import Keep, apply_rules, delete_study
from sagittal.database import clock
from sagittal.database.connect import Database, _engines
from sagittal.database.events import end_event, open_events, report_event
from sagittal.database.migrate import upgrade
from sagittal.database.schema import conflicts, instances, jobs, metadata, series, studies
from sagittal.errors import ServeError

Make = Callable[..., bytes]


@pytest.fixture
def archive(empty_postgresql: Callable[[], str], tmp_path: Path) -> Iterator[Archive]:
    db = Database.open(empty_postgresql())
    made = Archive(db, tmp_path / "archive", Limits(disk_reserve=0))
    yield made
    made.close()
    db.close()


def put(archive: Archive, data: bytes) -> str:
    with archive.receive("test") as incoming:
        incoming.write(data)
        return incoming.finish().outcome


def everything(db: Database) -> dict[str, list[tuple[object, ...]]]:
    with db.read() as c:
        return {
            table.name: [tuple(row) for row in c.execute(sa.select(table).order_by(*table.primary_key.columns))]
            for table in metadata.sorted_tables
            if table.name != "marks"
        }


def test_the_migrations_make_what_the_schema_says(empty_postgresql: Callable[[], str]) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with closing(Database(*_engines(empty_postgresql(), create=True))) as db:
        upgrade(db)
        with db.read() as c:
            assert compare_metadata(MigrationContext.configure(c, opts={"compare_type": True}), metadata) == []


def test_events_and_the_clock(archive: Archive) -> None:
    db = archive.db
    for _ in range(2):
        report_event(db, "away", "warning", "does not answer", about="pacs")
    assert [(e.code, e.count) for e in open_events(db)] == [("away", 2)]
    assert end_event(db, "away", "pacs")
    first = clock.now(db)
    assert clock.now(db) >= first


def test_many_receive_at_once(archive: Archive, make_object: Make) -> None:
    objects = [make_object(SeriesInstanceUID=f"1.2.3.{n % 3}") for n in range(24)]
    outcomes: list[str] = []

    def receive(part: list[bytes]) -> None:
        outcomes.extend([put(archive, one) for one in part])

    threads = [threading.Thread(target=receive, args=(objects[n % 4 :: 4],)) for n in range(8)]  # each twice
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["already"] * 24 + ["stored"] * 24
    with archive.db.read() as c:
        assert c.execute(sa.select(studies.c.instance_count)).scalar_one() == 24
        assert sorted(c.execute(sa.select(series.c.instance_count)).scalars()) == [8, 8, 8]
    assert len(list(archive.shelves.path.rglob("*.dcm"))) == 24


def test_a_study_from_its_arrival_to_its_deletion(archive: Archive, make_object: Make) -> None:
    db = archive.db
    data = make_object(SOPInstanceUID="1.5.1")
    assert put(archive, data) == "stored"
    assert put(archive, make_object(SOPInstanceUID="1.5.1", InstanceNumber=7)) == "conflict"
    assert close_quiet_series(db, 0.0, clock.now(db) + 1.0) == 1
    with db.write() as c:
        assert c.execute(sa.select(jobs.c.kind)).scalars().all() == ["choose"]
        c.execute(sa.update(jobs).values(state="done"))
    path = next(archive.shelves.path.rglob("*.dcm"))
    assert check_files(archive, every_s=-1.0).files == 1
    assert storage_of(archive).unsettled_conflicts == 1
    assert recover(archive) == Recovered()
    assert apply_rules(archive, [Keep("originals", -1.0)], lambda *a: None)[0].whole
    assert not path.exists()
    with db.read() as c:
        assert all(
            c.execute(sa.select(sa.func.count()).select_from(t)).scalar() == 0
            for t in (studies, instances, conflicts, jobs)
        )
    assert put(archive, data) == "stored"
    with pytest.raises(KeyError):
        delete_study(archive, 99, lambda *a: None)


def test_a_study_that_another_process_deletes_is_made_again(archive: Archive, make_object: Make) -> None:
    put(archive, make_object())
    other = Archive(archive.db, archive.folder)
    with archive.db.read() as c:
        study = c.execute(sa.select(studies.c.id)).scalar_one()
    delete_study(other, study, lambda *a: None)
    assert put(archive, make_object()) == "stored"  # it remembers a study that is gone
    with archive.db.read() as c:
        assert c.execute(sa.select(studies.c.instance_count)).scalars().all() == [1]


def test_a_backup_goes_to_sqlite_and_back(
    archive: Archive, make_object: Make, empty_postgresql: Callable[[], str], tmp_path: Path
) -> None:
    for number in range(3):
        put(
            archive,
            make_object(
                SOPInstanceUID=f"1.5.{number}", PatientName="Wang^XiaoDong=王^小东", SpecificCharacterSet="GB18030"
            ),
        )
    before = everything(archive.db)
    assert make_backup(archive, tmp_path / "backup").files == 3
    assert check_backup(tmp_path / "backup").damaged == ()
    for number, url in enumerate((empty_postgresql(), f"sqlite:///{tmp_path / 'again.db'}")):
        assert restore_backup(tmp_path / "backup", tmp_path / f"again{number}", url).damaged == ()
        with closing(Database.open(url)) as db:
            assert everything(db) == before
            again = Archive(db, tmp_path / f"again{number}", Limits(disk_reserve=0))
            assert put(again, make_object()) == "stored"  # its number is not one that was there
            assert put(again, make_object(SOPInstanceUID="1.5.1", InstanceNumber=2)) == "conflict"
        if number == 0:
            with pytest.raises(ServeError, match="the database is not empty"):
                restore_backup(tmp_path / "backup", tmp_path / "third", url)
    assert check_backup(tmp_path / "backup").damaged == ()  # restoring changed nothing in it
