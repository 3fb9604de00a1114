"""Watched folders: whole files go into the archive, bad ones aside, nothing is tried for ever."""

from __future__ import annotations

import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from sagittal.database.schema import events, instances, refusals
from sagittal.serve.config import Watch
from sagittal.serve.watch import Watching


@pytest.fixture
def place(make_service: Any, tmp_path: Path) -> Any:
    """A service, a folder, and what watches it."""
    service = make_service(limits__most_unpacked="4 MiB")
    folder = tmp_path / "watched"
    folder.mkdir()

    def watching(**given: Any) -> Watching:
        watch = Watch(folder, **{"keep": False, "quiet_s": 0.0, **given})
        return Watching(service.archive, [watch], tmp_path / "memory", service.config.limits)

    return service, folder, watching


def count(service: Any, table: Any) -> int:
    with service.db.read() as c:
        return int(c.execute(select(func.count()).select_from(table)).scalar_one())


def test_files_are_moved_into_the_archive(place: Any, forge: Any) -> None:
    service, folder, watching = place
    (folder / "deep").mkdir()
    for header in forge.series(3):
        (folder / "deep" / f"{header.InstanceNumber}.dcm").write_bytes(forge.file(header))
    (folder / "DICOMDIR").write_bytes(b"index")
    looks = watching()
    assert looks.look() == 0  # seen once: it may still grow
    assert looks.look() == 3
    assert count(service, instances) == 3
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["DICOMDIR"]
    assert looks.look() == 0


def test_a_file_that_grows_is_waited_for(place: Any, forge: Any) -> None:
    service, folder, watching = place
    whole = forge.file(forge.slice())
    path = folder / "slow.dcm"
    looks = watching()
    for size in (100, 1000, 2000, len(whole)):
        path.write_bytes(whole[:size])
        assert looks.look() == 0
    assert looks.look() == 1
    assert count(service, refusals) == 0
    patient = watching(quiet_s=3600.0)
    path.write_bytes(whole)
    assert [patient.look() for _ in range(3)] == [0, 0, 0]


def test_a_bad_file_is_laid_aside_once_with_the_reason(place: Any, forge: Any) -> None:
    service, folder, watching = place
    for name in ("Wang^XiaoDong.dcm", "notes.docx"):
        (folder / name).write_bytes(b"no image of any kind" * 50)
    (folder / "good.dcm").write_bytes(forge.file(forge.slice()))
    looks = watching()
    looks.look()
    assert looks.look() == 1
    aside = folder / "refused"
    assert sorted(path.name for path in aside.iterdir()) == [
        "Wang^XiaoDong.dcm",
        "Wang^XiaoDong.dcm.txt",
        "notes.docx",
        "notes.docx.txt",
    ]
    assert (aside / "notes.docx.txt").read_text(encoding="utf-8").startswith("unreadable: ")
    (folder / "notes.docx").write_bytes(b"another of the same name" * 50)
    assert [looks.look() for _ in range(3)] == [0, 0, 0]
    assert (aside / "notes-1.docx").is_file()
    with service.db.read() as c:
        rows = c.execute(select(refusals)).mappings().all()
    assert rows
    assert sum(row["count"] for row in rows) == 3
    assert not any("Wang" in row["reason"] for row in rows)


def test_files_may_stay_and_are_not_taken_twice(place: Any, forge: Any) -> None:
    service, folder, watching = place
    for header in forge.series(2):
        (folder / f"{header.InstanceNumber}.dcm").write_bytes(forge.file(header))
    looks = watching(keep=True)
    looks.look()
    assert looks.look() == 2
    assert looks.look() == 0
    again = watching(keep=True)  # after a restart
    assert [again.look() for _ in range(3)] == [0, 0, 0]
    assert len(list(folder.glob("*.dcm"))) == 2
    assert count(service, instances) == 2
    names = (next((folder.parent / "memory").iterdir())).read_text(encoding="ascii")
    assert ".dcm" not in names


def test_a_file_that_cannot_be_laid_aside_is_left_alone(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    service, folder, watching = place
    (folder / "bad.dcm").write_bytes(b"x" * 500)
    (folder / "refused").write_bytes(b"a file where the folder should be")
    looks = watching()
    for _ in range(5):
        looks.look()
    assert (folder / "bad.dcm").is_file()
    with service.db.read() as c:
        assert c.execute(select(func.sum(refusals.c.count))).scalar_one() == 1


def test_archives_links_and_bombs(place: Any, forge: Any, tmp_path: Path) -> None:
    service, folder, watching = place
    with zipfile.ZipFile(folder / "study.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for header in forge.series(2):
            packed.writestr(f"a/{header.InstanceNumber}", forge.file(header))
        packed.writestr("readme.txt", "not an image")
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("zeros", bytes(2**23))
    secret = tmp_path / "secret.dcm"
    secret.write_bytes(forge.file(forge.slice(study=9)))
    (folder / "link.dcm").symlink_to(secret)
    looks = watching()
    looks.look()
    assert looks.look() == 1
    assert count(service, instances) == 2
    assert (folder / "refused" / "bomb.zip.txt").read_text(encoding="utf-8").startswith("zip-bomb: ")
    assert (folder / "link.dcm").is_symlink()


def test_a_folder_that_is_away_is_an_event_that_ends(place: Any) -> None:
    service, folder, watching = place
    looks = watching()
    folder.rename(folder.with_name("away"))
    looks.look()
    looks.look()
    with service.db.read() as c:
        rows = c.execute(select(events)).mappings().all()
    assert [(row["code"], row["count"], row["over_at"]) for row in rows] == [("watch-folder", 2, None)]
    folder.with_name("away").rename(folder)
    looks.look()
    with service.db.read() as c:
        assert c.execute(select(events.c.over_at)).scalar_one() is not None


def test_a_full_disk_leaves_the_files_where_they_are(place: Any, forge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder, watching = place
    (folder / "1.dcm").write_bytes(forge.file(forge.slice()))
    looks = watching()
    looks.look()
    with monkeypatch.context() as patch:
        patch.setattr(
            "shutil.disk_usage", lambda _: __import__("collections").namedtuple("Usage", "total used free")(1, 1, 0)
        )
        assert looks.look() == 0
    assert (folder / "1.dcm").is_file()
    assert looks.look() == 1


def test_stopping_ends_a_look(place: Any, forge: Any) -> None:
    _, folder, watching = place
    (folder / "1.dcm").write_bytes(forge.file(forge.slice()))
    looks = watching()
    looks.look()
    stopping = threading.Event()
    stopping.set()
    assert looks.look(stopping) == 0
