"""What a start puts right after a crash, and what a kill leaves behind."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from sagittal.archive.archive import Archive, Limits
from sagittal.archive.receive import Receipt
from sagittal.archive.recover import Recovered, recover
from sagittal.archive.refused import ArchiveFull
from sagittal.database.connect import Database
from sagittal.database.events import open_events, recent_events
from sagittal.database.queue import enqueue
from sagittal.database.schema import instances, objects, results, series
from sagittal.errors import ServeError

Put = Callable[..., Receipt]
Make = Callable[..., bytes]


def test_a_start_in_order_finds_nothing(archive: Archive, put: Put, make_object: Make) -> None:
    put(make_object())
    assert recover(archive) == Recovered()
    assert open_events(archive.db) == []


def test_unfinished_files_are_deleted_unless_somebody_writes_them(archive: Archive, make_object: Make) -> None:
    (archive.incoming / "dead.part").write_bytes(b"x" * 1000)
    (archive.incoming / "other").write_bytes(b"x")
    incoming = archive.receive("test")
    data = make_object() + b""
    incoming.write(data)
    incoming.write(b"\0" * 2**20)  # it lies on the disk now
    assert recover(archive).parts == 1
    assert {path.name for path in archive.incoming.iterdir()} >= {"other"}
    assert len(list(archive.incoming.glob("*.part"))) == 1
    incoming.abandon()
    assert list(archive.incoming.glob("*.part")) == []
    assert [e.code for e in recent_events(archive.db)] == ["recovered"]


def test_a_file_that_got_no_rows_is_indexed(archive: Archive, put: Put, make_object: Make) -> None:
    put(make_object())
    data = make_object(SeriesInstanceUID="1.5.5", PatientID="P9")
    name = f"{hashlib.sha256(data).hexdigest()}-00000000.dcm"
    (archive.shelves.path / "000001" / name).write_bytes(data)
    assert recover(archive) == Recovered(orphans=1)
    with archive.db.read() as c:
        row = c.execute(sa.select(instances).where(instances.c.source == "recovered")).one()
        assert c.execute(sa.select(sa.func.count()).select_from(series)).scalar() == 2
    assert archive.open(row.id).read_bytes() == data
    assert recover(archive) == Recovered()


def test_an_orphan_that_is_there_already_is_deleted(archive: Archive, put: Put, make_object: Make) -> None:
    data = make_object()
    receipt = put(data)
    copy = archive.shelves.path / "000001" / f"{hashlib.sha256(data).hexdigest()}-00000000.dcm"
    copy.write_bytes(data)
    assert recover(archive).orphans == 1
    assert not copy.exists()
    assert archive.open(receipt.instance_id).read_bytes() == data


def test_a_file_that_has_its_row_is_left_alone_even_if_it_is_taken_for_an_orphan(
    archive: Archive, put: Put, make_object: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_object()
    receipt = put(data)
    monkeypatch.setattr("sagittal.archive.recover.places_in", lambda *_: set())
    recover(archive)
    assert archive.open(receipt.instance_id).read_bytes() == data
    with archive.db.read() as c:
        assert c.execute(sa.select(sa.func.count()).select_from(instances)).scalar() == 1


@pytest.mark.parametrize("content", [b"", b"something", None])
def test_a_file_that_the_archive_did_not_make_is_left_alone(
    archive: Archive, put: Put, make_object: Make, content: bytes | None
) -> None:
    put(make_object())
    data = make_object() if content is None else content
    stray = archive.shelves.path / "000001" / f"{'0' * 64}-00000000.dcm"  # the name is not that of its bytes
    stray.write_bytes(data)
    assert recover(archive) == Recovered(strays=1)
    assert stray.read_bytes() == data


def test_a_missing_file_is_marked_reported_and_heals_when_it_is_sent_again(
    archive: Archive, put: Put, make_object: Make
) -> None:
    data = make_object()
    receipt = put(data)
    archive.open(receipt.instance_id).unlink()
    assert recover(archive) == Recovered(missing=1)
    assert [(e.code, e.level) for e in open_events(archive.db)] == [("damaged", "error")]
    assert put(data).outcome == "already"
    assert archive.open(receipt.instance_id).read_bytes() == data
    with archive.db.read() as c:
        assert c.execute(sa.select(instances.c.damage)).scalar() == ""


def test_only_one_process_recovers(archive: Archive) -> None:
    recover(archive)
    with pytest.raises(ServeError, match="another process receives"):
        recover(Archive(archive.db, archive.folder))


#: Forks a receiver again and again, which says what it acknowledged, and kills each at a random moment.
_RECEIVER = """
import os, random, signal, sys, threading, time
from pathlib import Path
from sagittal.archive.archive import Archive, Limits
from sagittal.archive.recover import recover
from sagittal.database.connect import Database

from sagittal.archive.header import image_classes, kept_syntaxes

kept_syntaxes(), image_classes()  # load what they need before forking
folder, objects, kills = Path(sys.argv[1]), sorted(Path(sys.argv[2]).iterdir()), int(sys.argv[3])
draw = random.Random(11)

def say(text):
    os.write(1, (text + "\\n").encode())
    os.write(progress[1], b".")

def receive(archive, part):
    for path in part:
        data = path.read_bytes()
        with archive.receive("test") as incoming:
            incoming.write(data[:1000])
            incoming.write(data[1000:])
            receipt = incoming.finish()
        say(f"{receipt.outcome} {path.name}")

def run():
    db = Database.open(f"sqlite:///{folder / 'sagittal.db'}")
    archive = Archive(db, folder / "archive", Limits(disk_reserve=0))
    found = recover(archive)
    say(f"recovered {found.parts} {found.orphans} {found.strays} {found.missing}")
    mine = draw.sample(objects, len(objects))
    threads = [threading.Thread(target=receive, args=(archive, mine[n::4])) for n in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    say("end")

for number in range(kills):
    wanted, wait = draw.randrange(1, 14), draw.uniform(0.0, 0.01)
    progress = os.pipe()
    child = os.fork()
    if child == 0:
        draw.seed(number)
        run()
        os._exit(0)
    os.close(progress[1])
    for _ in range(wanted):  # as much as that, then a moment that falls anywhere into the next
        os.read(progress[0], 1)
    time.sleep(wait)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(progress[0])
    os.write(1, b"killed\\n")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks")
def test_what_was_acknowledged_is_there_after_a_kill_at_any_moment(tmp_path: Path, make_object: Make) -> None:
    """30 kills while 4 threads receive; what a power loss does beyond that is up to the disk's own honesty."""
    folder, source = tmp_path / "data", tmp_path / "objects"
    folder.mkdir()
    source.mkdir()
    hashes = {}
    for number in range(400):
        data = make_object(SeriesInstanceUID=f"1.2.3.{number % 12}", InstanceNumber=number)
        (source / f"{number:04d}").write_bytes(data)
        hashes[f"{number:04d}"] = hashlib.sha256(data).hexdigest()
    command = [sys.executable, "-c", _RECEIVER, str(folder), str(source), "30"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert told.returncode == 0, told.stderr
    lines = [line.split() for line in told.stdout.splitlines()]
    assert lines.count(["killed"]) == 30
    recovered = [[int(n) for n in line[1:]] for line in lines if line[0] == "recovered"]
    assert sum(line[2] + line[3] for line in recovered) == 0  # no stray file, no row without its file
    acknowledged = {hashes[line[1]] for line in lines if line[0] in {"stored", "already"}}
    assert len(acknowledged) > 100, told.stderr
    db = Database.open(f"sqlite:///{folder / 'sagittal.db'}")
    archive = Archive(db, folder / "archive", Limits(disk_reserve=0))
    recover(archive)
    with db.read() as c:
        found = c.execute(sa.select(instances.c.sha256, instances.c.path)).all()
        counted = c.execute(sa.select(sa.func.sum(series.c.instance_count))).scalar()
    assert acknowledged <= {row.sha256 for row in found}
    assert counted == len(found)
    for row in found:
        assert hashlib.sha256(archive.path_of(row.path).read_bytes()).hexdigest() == row.sha256
    on_disk = {str(path.relative_to(archive.folder)) for path in archive.shelves.path.rglob("*.dcm")}
    assert on_disk == {row.path for row in found}
    assert list(archive.incoming.iterdir()) == []
    archive.close()
    db.close()


def test_files_of_results_that_nothing_names_are_deleted(archive: Archive, put: Put, make_object: Make) -> None:
    """A kill after the file of a result was kept and before its row: it shows a patient, and no deletion finds it."""
    study_id = put(make_object()).study_id
    kept = {
        name: archive.store_file(f"mask of {name}".encode(), ".nii.gz").path for name in ("object", "job", "nothing")
    }
    with archive.db.write() as c:
        enqueue(c, "upload", "upload:1", {"files": [{"path": kept["job"]}]})
        result = c.execute(
            sa.insert(results)
            .values(
                study_id=study_id, model="m", version="1", checksum="0", inputs="0", state="answered", created_at=0.0
            )
            .returning(results.c.id)
        ).scalar_one()
        c.execute(
            sa.insert(objects).values(
                result_id=result, kind="mask", media_type="application/gzip", path=kept["object"], sha256="0", size=1
            )
        )
    found = recover(archive)
    there = {name: archive.path_of(path).is_file() for name, path in kept.items()}
    assert there == {"object": True, "job": True, "nothing": False}
    assert (found.unnamed, found.strays) == (1, 0)


def test_a_file_of_a_result_that_the_disk_has_no_room_for_is_told(db: Database, tmp_path: Path) -> None:
    full = Archive(db, tmp_path / "full", Limits(disk_reserve=2**60))
    with pytest.raises(ArchiveFull, match="GiB are kept free"):
        full.store_file(b"mask", ".nii.gz")
    assert [one.code for one in open_events(db)] == ["disk-full"]
