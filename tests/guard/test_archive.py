"""Zip archives: what is honest comes out as it went in; what is not is refused before it does harm."""

from __future__ import annotations

import io
import os
import resource
import stat
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from sagittal.errors import ReadError, ResourceError
from sagittal.guard import archive
from sagittal.guard.archive import archive_entries, is_archive, unpacked


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A temporary folder of the test's own, to see that nothing stays there."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def make(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as out:
        for name, body in files:
            out.writestr(name, body)
    return path


def central(raw, number=0):
    """Where the n-th entry of the central directory begins."""
    at = raw.index(b"PK\x01\x02")
    for _ in range(number):
        at = raw.index(b"PK\x01\x02", at + 4)
    return at


def patched(path, changes):
    raw = bytearray(path.read_bytes())
    for at, value in changes(raw):
        raw[at : at + len(value)] = value
    path.write_bytes(bytes(raw))
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_files_come_out_as_they_went_in_and_nothing_stays(tmp_path, temporary, method):
    big = np.random.default_rng(0).integers(0, 9, 3_000_000, dtype=np.uint8).tobytes()
    path = make(tmp_path / "a.zip", [("x/y/a.bin", big), ("b.txt", b""), ("x/Größe.txt", b"c"), ("x/", b"")], method)
    assert is_archive(path)
    assert [entry.name for entry in archive_entries(path)] == ["x/y/a.bin", "b.txt", "x/Größe.txt"]
    with unpacked(path) as place:
        assert (place / "x/y/a.bin").read_bytes() == big
        assert (place / "b.txt").read_bytes() == b""
        assert (place / "x/Größe.txt").read_bytes() == b"c"
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert stat.S_IMODE((place / "b.txt").stat().st_mode) == 0o600
    with unpacked(path, ["b.txt"]) as place:
        assert [p.name for p in place.rglob("*")] == ["b.txt"]
    with (
        pytest.raises(ReadError, match="1 of the 2 entries of this case are not in it"),
        unpacked(path, ["b.txt", "z"]),
    ):
        pass
    assert not list(temporary.iterdir())


def test_a_zip64_archive_and_backslashes(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out, out.open("sub\\a.txt", "w", force_zip64=True) as file:
        file.write(b"abc")
    with unpacked(tmp_path / "a.zip") as place:
        assert (place / "sub/a.txt").read_bytes() == b"abc"
    raw = (tmp_path / "a.zip").read_bytes()
    end = raw.index(b"PK\x05\x06")
    count, length, start = struct.unpack_from("<HII", raw, end + 10)
    record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, length, start)
    where = b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1)
    tail = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "b.zip").write_bytes(raw[:end] + record + where + tail)
    assert [entry.name for entry in archive_entries(tmp_path / "b.zip")] == ["sub/a.txt"]


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/etc/evil", "C:/evil", "C:evil", "..\\evil", "a/./b", "a//b", "..", "\\\\host\\x"],
)
def test_names_that_lead_elsewhere_refuse_the_whole_archive(tmp_path, temporary, name):
    path = make(tmp_path / "a.zip", [("good.txt", b"x"), (name, b"evil")])
    with pytest.raises(ReadError, match="name of entry 2 leads out of the archive") as caught, unpacked(path):
        pass
    assert "evil" not in str(caught.value)
    assert not list(temporary.iterdir())
    assert not (tmp_path / "evil").exists()


def test_a_nul_in_a_name(tmp_path):
    path = patched(make(tmp_path / "a.zip", [("aXb", b"x")]), lambda raw: [(central(raw) + 47, b"\0")])
    with pytest.raises(ReadError, match="leads out of the archive or is no name"):
        archive_entries(path)


def test_a_name_longer_than_a_name_can_be(tmp_path):
    with pytest.raises(ReadError, match="longer than a file's name can be"):
        archive_entries(make(tmp_path / "a.zip", [("x" * 300, b"")]))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices(tmp_path, kind):
    info = zipfile.ZipInfo("link")
    info.create_system = 3
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.writestr(info, "/etc/passwd")
    with pytest.raises(ReadError, match="entry 1 is a link or a device"):
        archive_entries(tmp_path / "a.zip")


def test_two_entries_of_one_name(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = make(tmp_path / "a.zip", [("a.png", b"x"), ("a.png", b"y")])
    with pytest.raises(ReadError, match="entry 2 has the name of another"):
        archive_entries(path)


def test_a_file_that_is_a_folder_too(tmp_path):
    path = make(tmp_path / "a.zip", [("a", b"x"), ("a/b", b"y")])
    with pytest.raises(ReadError, match="folder that is a file|name of another"), unpacked(path):
        pass


def test_a_million_entries_are_refused_at_once(tmp_path):
    entry = b"PK\x01\x02" + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    for declared in (10**6, 5):
        body = entry * 10**6
        end = struct.pack("<HHHHIIH", 0, 0, min(declared, 0xFFFF), min(declared, 0xFFFF), len(body), 0, 0)
        record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, declared, declared, len(body), 0)
        where = b"PK\x06\x07" + struct.pack("<IQI", 0, len(body), 1)
        middle = record + where if declared > 0xFFFF else b""
        (tmp_path / "a.zip").write_bytes(body + middle + b"PK\x05\x06" + end)
        with pytest.raises(
            ReadError, match="declares 1,000,000 entries|lie over each other|name of another|holds more"
        ):
            archive_entries(tmp_path / "a.zip")


def test_forged_sizes_are_counted_not_believed(tmp_path):
    body = bytes(500_000)
    small = make(tmp_path / "small.zip", [("a.bin", body)])
    patched(small, lambda raw: [(central(raw) + 24, struct.pack("<I", 10))])
    with pytest.raises(ReadError, match="entry 1 unpacks to more than it declares"), unpacked(small):
        pass
    large = make(tmp_path / "large.zip", [("a.bin", body)])
    patched(large, lambda raw: [(central(raw) + 24, struct.pack("<I", 600_000))])
    with pytest.raises(ReadError, match="length or checksum is wrong"), unpacked(large):
        pass
    wrong = make(tmp_path / "wrong.zip", [("a.bin", body)])
    patched(wrong, lambda raw: [(central(raw) + 16, b"\1\2\3\4")])
    with pytest.raises(ReadError, match="length or checksum is wrong"), unpacked(wrong):
        pass
    reaching = make(tmp_path / "reaching.zip", [("a.bin", body)])
    patched(reaching, lambda raw: [(central(raw) + 20, struct.pack("<I", 2**31))])
    with pytest.raises(ReadError, match="reach past its end"):
        archive_entries(reaching)


def test_a_bomb_is_refused_before_it_unpacks(tmp_path):
    worker = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = worker.compress(bytes(2**24)) + worker.flush(zlib.Z_FULL_FLUSH)
    packed = piece * 64 + worker.flush()  # 1 GiB in 1 MB
    name = b"a.bin"
    fields = (20, 0, 8, 0, 0, 0, len(packed), 2**30, len(name), 0)
    local = b"PK\x03\x04" + struct.pack("<HHHHHIIIHH", *fields) + name + packed
    entry = b"PK\x01\x02" + struct.pack("<HHHHHHIIIHHHHHII", 20, *fields, 0, 0, 0, 0, 0) + name
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0)
    (tmp_path / "a.zip").write_bytes(local + entry + end)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ReadError, match="refused as a decompression bomb"), unpacked(tmp_path / "a.zip"):
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_entries_over_each_other(tmp_path):
    """The quoted bomb: many entries that share one packed kernel."""
    path = make(tmp_path / "a.zip", [("a.bin", bytes(5000)), ("b.bin", bytes(5000))])
    patched(path, lambda raw: [(central(raw, 1) + 42, struct.pack("<I", 0))])
    with pytest.raises(ReadError, match="lie over each other"):
        archive_entries(path)


def test_headers_that_contradict_the_directory(tmp_path):
    path = make(tmp_path / "a.zip", [("a.bin", b"abc")])
    patched(path, lambda raw: [(30, b"z")])
    with pytest.raises(ReadError, match="contradict each other"), unpacked(path):
        pass
    path = make(tmp_path / "b.zip", [("a.bin", b"abc")])
    patched(path, lambda raw: [(28, struct.pack("<H", 500))])
    with pytest.raises(ReadError, match="reaches into the next"), unpacked(path):
        pass


def test_encrypted_split_and_strangely_packed_archives(tmp_path):
    path = make(tmp_path / "a.zip", [("a.bin", b"abc")])
    patched(path, lambda raw: [(central(raw) + 8, b"\1")])
    with pytest.raises(ReadError, match="encrypted; unpack it with its password"):
        archive_entries(path)
    with pytest.raises(ReadError, match=r"packed by method 14; stored \(0\) and deflated"):
        archive_entries(make(tmp_path / "b.zip", [("a.bin", b"abc")], zipfile.ZIP_LZMA))
    path = make(tmp_path / "c.zip", [("a.bin", b"abc")])
    patched(path, lambda raw: [(raw.index(b"PK\x05\x06") + 4, b"\1")])
    with pytest.raises(ReadError, match="one part of several"):
        archive_entries(path)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.6, 0.95, 0.999])
def test_cut_archives_and_other_files(tmp_path, fraction):
    raw = make(tmp_path / "a.zip", [(f"{n}.bin", os.urandom(300)) for n in range(20)]).read_bytes()
    (tmp_path / "b.zip").write_bytes(raw[: int(len(raw) * fraction)])
    with pytest.raises(ReadError, match="cut off|empty|damaged"), unpacked(tmp_path / "b.zip"):
        pass
    (tmp_path / "c.zip").write_bytes(b"junk before" + raw)
    with pytest.raises(ReadError, match="joined to something else"):
        archive_entries(tmp_path / "c.zip")


def test_mutated_archives_end_in_files_or_in_our_errors(tmp_path, temporary):
    rng = np.random.default_rng(0)
    raw = make(tmp_path / "a.zip", [(f"x/{n}.bin", bytes(100 * n)) for n in range(9)]).read_bytes()
    done = 0
    for number in range(400):
        damaged = bytearray(raw)
        for at in rng.integers(0, len(raw), rng.integers(1, 5)):
            damaged[at] = rng.integers(256)
        path = tmp_path / "b.zip"
        path.write_bytes(bytes(damaged))
        os.utime(path, ns=(number, number))
        try:
            with unpacked(path) as place:
                assert all(file.resolve().is_relative_to(place) for file in place.rglob("*"))
                done += 1
        except ReadError:
            continue
    assert 0 < done < 400
    assert not list(temporary.iterdir())
    assert not [p for p in Path(tmp_path).iterdir() if p.name not in {"tmp", "a.zip", "b.zip"}]


def test_a_full_disk_is_said_before(tmp_path, monkeypatch):
    path = make(tmp_path / "a.zip", [("a.bin", bytes(5000))])
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 100}))
    with pytest.raises(ResourceError, match="more than is free in the temporary folder"), unpacked(path):
        pass


def test_archives_inside_are_told(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as out:
        out.writestr("a", "b")
    path = make(tmp_path / "a.zip", [("inner.zip", inner.getvalue()), ("a.png", b"")])
    assert [entry.number for entry in archive_entries(path) if entry.is_archive] == [1]
