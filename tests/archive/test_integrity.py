"""The scheduled check of every file's hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from sagittal.archive import disk
from sagittal.archive.archive import Archive
from sagittal.archive.integrity import check_files, check_instance, storage_of
from sagittal.archive.receive import Receipt
from sagittal.database.events import open_events
from sagittal.database.schema import conflicts, instances, objects, results

Put = Callable[..., Receipt]
Make = Callable[..., bytes]


def state(archive: Archive) -> list[tuple[str, bool]]:
    with archive.db.read() as c:
        rows = c.execute(sa.select(instances.c.damage, instances.c.checked_at).order_by(instances.c.id))
        return [(row.damage, row.checked_at is not None) for row in rows]


def test_damage_is_found_marked_reported_and_heals(archive: Archive, put: Put, make_object: Make) -> None:
    data = [make_object() for _ in range(4)]
    paths = [archive.open(put(one).instance_id) for one in data]
    flipped = bytearray(data[1])
    flipped[-1] ^= 1  # one bit
    paths[1].write_bytes(flipped)
    paths[2].write_bytes(data[2][:-2])
    paths[3].unlink()
    found = check_files(archive, every_s=-1.0)
    assert (found.files, found.damaged, found.over) == (4, 3, True)
    assert found.bytes == sum(len(one) for one in data)
    assert state(archive) == [("", True), ("altered", True), ("altered", True), ("missing", True)]
    (event,) = open_events(archive.db)
    assert (event.code, event.level) == ("damaged", "error")
    assert event.message.startswith("3 files")
    for one in data:  # sent again
        assert put(one).outcome == "already"
    assert check_files(archive, every_s=-1.0).damaged == 0
    assert [damage for damage, _ in state(archive)] == [""] * 4
    assert open_events(archive.db) == []
    assert len(list(archive.shelves.path.rglob("*.dcm"))) == 4


def test_a_file_is_due_after_its_time(archive: Archive, put: Put, make_object: Make) -> None:
    put(make_object())
    assert check_files(archive, every_s=3600.0).files == 0  # its hash was made just now
    assert check_files(archive, every_s=-1.0).files == 1
    assert check_files(archive, every_s=3600.0).files == 0


def test_a_check_ends_in_time_and_goes_on_later(archive: Archive, put: Put, make_object: Make) -> None:
    for _ in range(5):
        put(make_object())
    found = check_files(archive, every_s=-1.0, most_s=0.0)
    assert (found.files, found.over) == (0, False)
    slept: list[float] = []
    found = check_files(archive, every_s=-1.0, bytes_per_s=1e4, most_s=30.0, sleep=slept.append)
    assert found.files == 5
    assert sum(slept) > 0  # slower than the disk can


def test_a_restored_file_is_no_longer_damaged(archive: Archive, put: Put, make_object: Make) -> None:
    data = make_object()
    receipt = put(data)
    path = archive.open(receipt.instance_id)
    path.write_bytes(b"x")
    assert check_instance(archive, receipt.instance_id) == "altered"
    path.write_bytes(data)
    assert check_instance(archive, receipt.instance_id) == ""
    assert open_events(archive.db) == []
    with pytest.raises(KeyError):
        check_instance(archive, 99)


def test_files_without_rows_are_found_in_older_folders_too(
    archive: Archive, put: Put, make_object: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "FOLDER_FILES", 1)
    for _ in range(4):
        put(make_object())
    data = make_object()
    (archive.shelves.path / "000001" / f"{hashlib.sha256(data).hexdigest()}-00000000.dcm").write_bytes(data)
    (archive.shelves.path / "000002" / "mine.txt").write_bytes(b"x")
    found = [check_files(archive, every_s=3600.0).orphans for _ in range(4)]
    assert sum(found) == 1
    assert [e.code for e in open_events(archive.db)] == ["strays"]
    assert len(state(archive)) == 5


def test_files_that_are_no_instances_are_checked_too(archive: Archive, put: Put, make_object: Make) -> None:
    receipt = put(make_object(SOPInstanceUID="1.2.9"))
    put(make_object(SOPInstanceUID="1.2.9", InstanceNumber=4))
    kept = [archive.store_file(f"{n}".encode() * 9, ".json") for n in range(2)]
    with archive.db.write() as c:
        of = {
            "study_id": receipt.study_id,
            "model": "m",
            "version": "1",
            "checksum": "c",
            "state": "answered",
            "created_at": 1.0,
        }
        result = c.execute(sa.insert(results).values(inputs="1", **of)).inserted_primary_key[0]
        for number, one in enumerate(kept):
            c.execute(
                sa.insert(objects).values(
                    result_id=result, kind=f"k{number}", media_type="x", path=one.path, sha256=one.sha256, size=one.size
                )
            )
        beside = c.execute(sa.select(conflicts.c.path)).scalar_one()
    check_files(archive, every_s=-1.0)
    assert [e.code for e in open_events(archive.db)] == ["conflict"]
    archive.path_of(kept[1].path).write_bytes(b"x")
    archive.path_of(beside).unlink()
    for _ in range(2):  # one portion to come to the end, one from the beginning
        check_files(archive, every_s=-1.0)
    told = {e.about: e.message for e in open_events(archive.db) if e.code == "damaged-file"}
    assert set(told) == {"conflicts 1", "objects 2"}
    assert "is altered" in told["objects 2"]
    assert "is missing" in told["conflicts 1"]


def test_the_administrator_sees_how_the_archive_is_filled(archive: Archive, put: Put, make_object: Make) -> None:
    empty = storage_of(archive)
    assert (empty.used, empty.studies, empty.instances, empty.damaged, empty.oldest_check) == (0, 0, 0, 0, None)
    data = make_object(SOPInstanceUID="1.2.9")
    path = archive.open(put(data).instance_id)
    put(make_object(SOPInstanceUID="1.2.9", InstanceNumber=4))
    path.unlink()
    check_files(archive, every_s=-1.0)
    found = storage_of(archive)
    assert (found.used, found.studies, found.instances, found.damaged, found.unsettled_conflicts, found.unchecked) == (
        len(data),
        1,
        1,
        1,
        1,
        0,
    )
    assert found.oldest_check is not None
    assert found.free > 0
