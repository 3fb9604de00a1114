"""Results into a folder: whole, marked, under names of our own."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from sagittal.deliver import folder as folder_module
from sagittal.deliver.destinations import FolderDestination
from sagittal.deliver.outcome import DeliveryError
from sagittal.deliver.send import send


@pytest.fixture
def share(tmp_path: Path) -> FolderDestination:
    (tmp_path / "share").mkdir()
    return FolderDestination(name="share", path=tmp_path / "share")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_files_then_their_marker_and_again_without_harm(files: Any, share: FolderDestination) -> None:
    objects = files(("seg", "json"))
    for _ in range(2):
        sent = send(objects, share, key="result-12")
        assert (sent.objects, sent.confirmed) == (2, True)
    found = contents(share.path)
    assert set(found) == {"result-12/seg.dcm", "result-12/result.json", "result-12.done"}
    for row, one in zip(json.loads(found["result-12.done"])["files"], objects, strict=True):
        assert (row["kind"], row["sha256"], row["size"]) == (one.kind, one.sha256, one.size)
        assert found[f"result-12/{row['file']}"] == one.path.read_bytes()


def test_everything_is_on_the_disk_before_the_marker(
    files: Any, share: FolderDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        assert "result-1.done" not in os.listdir(share.path) or synced[-1] == share.path.name
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    send(files(("seg", "json")), share, key="result-1")
    assert synced[:2] == ["seg.dcm", "result.json"]
    assert synced[-1] == "share"
    assert any(name.endswith(".done") for name in synced[2:])


def test_a_share_that_is_not_there_is_away_and_not_made(files: Any, tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="its folder is not there") as caught:
        send(files(), FolderDestination(name="share", path=tmp_path / "missing"))
    assert (caught.value.retry, caught.value.trouble) == (True, "away")
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(
    ("number", "trouble", "retry"),
    [
        (errno.ENOSPC, "resources", True),
        (errno.EACCES, "refused", False),
        (errno.EROFS, "refused", False),
        (errno.EIO, "away", True),
    ],
)
def test_what_the_disk_says(
    files: Any, share: FolderDestination, monkeypatch: pytest.MonkeyPatch, number: int, trouble: str, retry: bool
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(folder_module.shutil, "copyfileobj", fail)
    with pytest.raises(DeliveryError) as caught:
        send(files(), share, key="result-1")
    assert (caught.value.trouble, caught.value.retry) == (trouble, retry)
    assert contents(share.path) == {}


def test_names_are_our_own(files: Any, share: FolderDestination) -> None:
    for key in ("../x", "a/b", "", ".", "a" * 65, "a.b"):
        if not key:
            continue
        with pytest.raises(DeliveryError, match="no plain word"):
            send(files(), share, key=key)
    assert contents(share.path) == {}
    send(files(), share)
    (marker,) = share.path.glob("*.done")
    assert marker.name.startswith("result-")


def test_an_object_that_is_gone(files: Any, share: FolderDestination) -> None:
    objects = files()
    objects[1].path.unlink()
    with pytest.raises(OSError, match="'sc' is not there any more"):
        send(objects, share, key="result-1")
    assert contents(share.path) == {}


def test_kinds_that_a_destination_does_not_take_are_passed_over(files: Any, share: FolderDestination) -> None:
    only = FolderDestination(name="share", path=share.path, sends=("json",))
    assert send(files(("sr", "json")), only, key="r").objects == 1
    assert send(files(("sr",)), only, key="q").objects == 0
    assert set(contents(share.path)) == {"r/result.json", "r.done"}


def test_what_a_cut_off_delivery_left_is_cleared(files: Any, share: FolderDestination) -> None:
    left = share.path / ".part-r-1234"
    left.mkdir()
    (left / "seg.dcm").write_bytes(b"half")
    other = share.path / ".part-s-1234"
    other.mkdir()
    send(files(("json",)), share, key="r")
    assert not left.exists()
    assert other.exists()
