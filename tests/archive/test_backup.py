"""Backup while the service runs, its check, and putting it back."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from sagittal.archive.archive import Archive, Limits
from sagittal.archive.backup import check_backup, make_backup, read_backup, restore_backup
from sagittal.archive.receive import Receipt
from sagittal.archive.recover import Recovered, recover
from sagittal.database.connect import Database
from sagittal.database.schema import instances, metadata
from sagittal.errors import ReadError, ServeError

Put = Callable[..., Receipt]
Make = Callable[..., bytes]


def everything(db: Database) -> dict[str, list[tuple[object, ...]]]:
    with db.read() as c:
        return {
            table.name: [tuple(row) for row in c.execute(sa.select(table).order_by(*table.primary_key.columns))]
            for table in metadata.sorted_tables
            if table.name != "marks"
        }


@pytest.mark.parametrize("link", [False, True])
def test_what_was_backed_up_comes_back(
    archive: Archive, put: Put, make_object: Make, tmp_path: Path, link: bool
) -> None:
    data = [make_object(SOPInstanceUID=f"1.5.{n}") for n in range(3)]
    receipts = [put(one) for one in data]
    put(make_object(SOPInstanceUID="1.5.0", InstanceNumber=9))
    archive.store_file(b"nobody names it", ".json")
    before = everything(archive.db)
    made = make_backup(archive, tmp_path / "backup", link=link)
    assert (made.files, made.missing, made.linked) == (4, 0, 4 if link else 0)
    assert read_backup(tmp_path / "backup") == made
    assert check_backup(tmp_path / "backup").damaged == ()
    for path in archive.folder.rglob("*.dcm"):
        path.unlink()  # as if the disk were lost; what was linked stays
    url = f"sqlite:///{tmp_path / 'again' / 'sagittal.db'}"
    found = restore_backup(tmp_path / "backup", tmp_path / "again" / "archive", url)
    assert (found.files, found.damaged) == (4, ())
    db = Database.open(url)
    assert everything(db) == before
    again = Archive(db, tmp_path / "again" / "archive", Limits(disk_reserve=0))
    assert recover(again) == Recovered()
    for receipt, one in zip(receipts, data, strict=True):
        assert again.open(receipt.instance_id).read_bytes() == one
    assert (tmp_path / "again" / "archive" / "objects").stat().st_nlink >= 1
    again.close()
    db.close()


def test_a_backup_while_objects_arrive_is_whole(archive: Archive, make_object: Make, tmp_path: Path) -> None:
    objects = [make_object() for _ in range(60)]
    stop = threading.Event()

    def receive() -> None:
        for one in objects:
            with archive.receive("test") as incoming:
                incoming.write(one)
                incoming.finish()
            if stop.is_set():
                break

    thread = threading.Thread(target=receive)
    thread.start()
    made = [make_backup(archive, tmp_path / f"backup{n}") for n in range(3)]
    stop.set()
    thread.join()
    for number, one in enumerate(made):
        assert one.missing == 0
        found = check_backup(tmp_path / f"backup{number}")
        assert (found.files, found.damaged) == (one.files, ())


def test_the_next_backup_shares_the_files_of_the_one_before(
    archive: Archive, put: Put, make_object: Make, tmp_path: Path
) -> None:
    put(make_object())
    make_backup(archive, tmp_path / "one")
    put(make_object())
    second = make_backup(archive, tmp_path / "two", previous=tmp_path / "one")
    assert (second.files, second.linked) == (2, 1)
    assert check_backup(tmp_path / "two").damaged == ()


def test_damage_in_a_backup_is_found_and_marked_when_it_is_restored(
    archive: Archive, put: Put, make_object: Make, tmp_path: Path
) -> None:
    receipts = [put(make_object()) for _ in range(3)]
    make_backup(archive, tmp_path / "backup")
    with archive.db.read() as c:
        places = [
            c.execute(sa.select(instances.c.path).where(instances.c.id == r.instance_id)).scalar_one() for r in receipts
        ]
    (tmp_path / "backup" / "archive" / places[0]).write_bytes(b"x")
    (tmp_path / "backup" / "archive" / places[1]).unlink()
    assert set(check_backup(tmp_path / "backup").damaged) == {places[0], places[1]}
    url = f"sqlite:///{tmp_path / 'again.db'}"
    assert set(restore_backup(tmp_path / "backup", tmp_path / "again", url).damaged) == {places[0], places[1]}
    db = Database.open(url)
    with db.read() as c:
        assert list(c.execute(sa.select(instances.c.damage).order_by(instances.c.id)).scalars()) == [
            "altered",
            "missing",
            "",
        ]
    db.close()


def test_a_damaged_or_unfinished_backup_is_refused(
    archive: Archive, put: Put, make_object: Make, tmp_path: Path
) -> None:
    put(make_object())
    folder, url = tmp_path / "backup", f"sqlite:///{tmp_path / 'again.db'}"
    make_backup(archive, folder)
    index = (folder / "backup.json").read_text()
    (folder / "backup.json").unlink()
    with pytest.raises(ReadError, match="no finished backup"):
        restore_backup(folder, tmp_path / "again", url)
    (folder / "backup.json").write_text('{"made_at": 1}')
    with pytest.raises(ReadError, match="not that of a backup"):
        read_backup(folder)
    (folder / "backup.json").write_text(json.dumps({**json.loads(index), "tables": "9999", "version": "9.9"}))
    with pytest.raises(ReadError, match="version 9.9 of Sagittal, which is newer"):
        restore_backup(folder, tmp_path / "again", url)
    (folder / "backup.json").write_text(index)
    with (folder / "sagittal.db").open("r+b") as file:
        file.seek(5000)
        file.write(b"????")
    with pytest.raises(ReadError, match="database of the backup is damaged"):
        check_backup(folder)
    with pytest.raises(ReadError, match="database of the backup is damaged"):
        restore_backup(folder, tmp_path / "again", url)
    assert not (tmp_path / "again").exists()


def test_nothing_is_written_over(archive: Archive, put: Put, make_object: Make, tmp_path: Path) -> None:
    put(make_object())
    make_backup(archive, tmp_path / "backup")
    with pytest.raises(ServeError, match="not empty"):
        make_backup(archive, tmp_path / "backup")
    with pytest.raises(ServeError, match="not empty"):
        restore_backup(tmp_path / "backup", archive.folder, f"sqlite:///{tmp_path / 'again.db'}")
    with pytest.raises(ServeError, match="is there already"):
        restore_backup(tmp_path / "backup", tmp_path / "again", archive.db.url)


def test_a_backup_that_names_a_file_elsewhere_is_not_followed(
    archive: Archive, put: Put, make_object: Make, tmp_path: Path
) -> None:
    put(make_object())
    make_backup(archive, tmp_path / "backup")
    (tmp_path / "secret").write_text("x")
    database = tmp_path / "backup" / "sagittal.db"
    with sqlite3.connect(database) as c:
        c.execute("UPDATE instances SET path = 'objects/../../../../secret'")
    c.close()
    index = json.loads((tmp_path / "backup" / "backup.json").read_text())
    index["database"] = hashlib.sha256(database.read_bytes()).hexdigest()
    (tmp_path / "backup" / "backup.json").write_text(json.dumps(index))
    for do in (
        lambda: check_backup(tmp_path / "backup"),
        lambda: restore_backup(tmp_path / "backup", tmp_path / "again", f"sqlite:///{tmp_path / 'again.db'}"),
    ):
        with pytest.raises(ServeError, match="a file that the archive did not make"):
            do()
