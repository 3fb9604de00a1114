"""Zip archives of studies: nothing that an archive says of itself is believed, and nothing of it stays behind.

The central directory is parsed here, with every name and size checked before the first byte is unpacked; then caps are
counted while the entries stream out. Messages name an entry by its number, never by its name.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from stat import S_IFDIR, S_IFMT, S_IFREG
from typing import IO

from sagittal.errors import ReadError, ResourceError
from sagittal.guard.limits import as_read_error, check_file

#: Entries of an archive; a study has some thousand.
MAX_ENTRIES = 200_000
#: Bytes of the central directory, about 300 an entry.
MAX_DIRECTORY = 2**26
#: All entries together: at least this much, and no more than that many times the archive's own length.
MAX_RATIO_FREE, MAX_RATIO = 2**28, 200
_MAX_NAME, _MAX_PART = 2048, 255
_CHUNK = 2**20
_END, _END64, _WHERE64, _ENTRY, _LOCAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02", b"PK\x03\x04"


@dataclass(frozen=True)
class Entry:
    """One file in an archive, its name checked."""

    number: int
    name: str
    raw_name: bytes
    method: int
    packed: int
    size: int
    crc: int
    start: int
    limit: int  # where the next entry or the directory begins

    @property
    def is_archive(self) -> bool:
        """Whether it is an archive itself, by its suffix."""
        return self.name.lower().endswith((".zip", ".7z", ".rar", ".tar", ".tgz", ".tar.gz"))


def is_archive(path: Path) -> bool:
    """Whether a path is a file that calls itself a zip archive."""
    return path.suffix.lower() == ".zip" and path.is_file()


def archive_entries(path: Path) -> tuple[Entry, ...]:
    """The files in a zip archive, from its central directory, every name and size checked.

    Raises
    ------
    ReadError
        If the archive is damaged, encrypted or split; has too many entries, two of one name, one over another, a name
        that leads elsewhere (``..``, absolute, a drive), a link or a device; or would unpack to absurdly much.
    """
    status = path.stat() if check_file(path) else None
    return _entries(path, status.st_mtime_ns if status else 0, status.st_size if status else 0)


def check_directory(path: Path) -> int:
    """The number of entries that an archive declares, refused where it or its directory is absurd.

    Raises
    ------
    ReadError
    """
    size = check_file(path)
    with as_read_error("zip archive"), path.open("rb") as file:
        return _directory(file, size)[0]


@lru_cache(maxsize=4)
def _entries(path: Path, mtime: int, size: int) -> tuple[Entry, ...]:
    with as_read_error("zip archive"), path.open("rb") as file:
        count, start, length = _directory(file, size)
        file.seek(start)
        entries = _parse(file.read(length), count, start)
        total = sum(entry.size for entry in entries)
        most = MAX_RATIO_FREE + MAX_RATIO * size
        if total > most:
            raise ReadError(
                f"zip archive: its entries declare {total:,} bytes unpacked, its own length is {size:,}; at most {most:,} "
                "are unpacked: refused as a decompression bomb"
            )
        return entries


def _directory(file: IO[bytes], size: int) -> tuple[int, int, int]:
    """Count of entries, and place and length of the central directory."""
    tail_start = max(0, size - 22 - 65535)
    file.seek(tail_start)
    tail = file.read()
    at = tail.rfind(_END)
    while at >= 0 and not (at + 22 <= len(tail) and at + 22 + struct.unpack_from("<H", tail, at + 20)[0] == len(tail)):
        at = tail.rfind(_END, 0, at)
    if at < 0:
        raise ReadError("zip archive: damaged, cut off, or not a zip archive (it has no directory at its end)")
    disk, first, here, count, length, start = struct.unpack_from("<HHHHII", tail, at + 4)
    end = tail_start + at
    if 0xFFFF in {disk, first, here, count} or 0xFFFFFFFF in {length, start}:
        file.seek(max(end - 20, 0))
        where = file.read(20)
        if where[:4] == _WHERE64:
            end = struct.unpack_from("<Q", where, 8)[0]
            file.seek(min(end, size))
            record = file.read(56)
            if len(record) < 56 or record[:4] != _END64:
                raise ReadError("zip archive: its directory is damaged")
            disk, first, here, count, length, start = struct.unpack_from("<IIQQQQ", record, 16)
    if disk or first or here != count:
        raise ReadError("zip archive: one part of several; join the parts first")
    if count > MAX_ENTRIES or length > MAX_DIRECTORY:
        raise ReadError(f"zip archive: declares {count:,} entries; at most {MAX_ENTRIES:,} are read")
    if start + length != end:
        raise ReadError(
            "zip archive: its directory does not lie where its end says: damaged, or joined to something else"
        )
    return count, start, length


def _parse(directory: bytes, count: int, end: int) -> tuple[Entry, ...]:
    found: list[tuple[int, str, bytes, int, int, int, int, int]] = []
    starts: list[tuple[int, int]] = []
    names: set[str] = set()
    at, number = 0, 0
    while at < len(directory):
        if directory[at : at + 4] != _ENTRY or at + 46 > len(directory):
            raise ReadError("zip archive: its directory is damaged")
        made, flags, method = struct.unpack_from("<4xHxxHH", directory, at)
        crc, packed, size, name_length, extra_length, comment_length = struct.unpack_from("<IIIHHH", directory, at + 16)
        disk, attributes, start = struct.unpack_from("<HxxII", directory, at + 34)
        raw = directory[at + 46 : at + 46 + name_length]
        extra = directory[at + 46 + name_length : at + 46 + name_length + extra_length]
        at += 46 + name_length + extra_length + comment_length
        number += 1
        if number > count or at > len(directory):
            raise ReadError("zip archive: its directory holds more than it declares: damaged")
        size, packed, start = _wide(extra, size, packed, start)
        if disk not in {0, 0xFFFF}:
            raise ReadError("zip archive: one part of several; join the parts first")
        if flags & 0x2041:
            raise ReadError("zip archive: encrypted; unpack it with its password first and give the folder")
        kind = S_IFMT(attributes >> 16) if made >> 8 == 3 else 0
        if kind not in {0, S_IFREG, S_IFDIR}:
            raise ReadError(f"zip archive: entry {number} is a link or a device; refused")
        name = _safe_name(raw, flags, number)
        starts.append((start, start + 30 + len(raw) + packed))
        if raw.endswith((b"/", b"\\")) or kind == S_IFDIR:
            if size or packed > 2:
                raise ReadError(f"zip archive: entry {number} is a folder that holds bytes: damaged")
            continue
        if method not in {0, 8}:
            raise ReadError(
                f"zip archive: entry {number} is packed by method {method}; stored (0) and deflated (8) entries are read. "
                "Unpack it first and give the folder."
            )
        if name in names:
            raise ReadError(f"zip archive: entry {number} has the name of another; which is meant is not known")
        names.add(name)
        found.append((number, name, raw, method, packed, size, crc, start))
    if number != count:
        raise ReadError(f"zip archive: declares {count:,} entries, its directory holds {number:,}: damaged")
    limits = _limits(starts, end)
    return tuple(Entry(*values, limits[values[-1]]) for values in found)


def _limits(spans: list[tuple[int, int]], end: int) -> dict[int, int]:
    """Where each entry must end, by where it begins; refused where two share bytes."""
    spans = sorted(spans)
    limits = {}
    for (start, stop), (following, _) in zip(spans, [*spans, (end, 0)][1:], strict=True):
        if stop > following:
            raise ReadError(
                "zip archive: two of its entries lie over each other, or reach past its end: damaged or a bomb"
            )
        limits[start] = following
    return limits


def _wide(extra: bytes, size: int, packed: int, start: int) -> tuple[int, int, int]:
    """Sizes and place, from the zip64 field where they do not fit 32 bits."""
    values = [size, packed, start]
    at = 0
    while at + 4 <= len(extra) and 0xFFFFFFFF in values:
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            inside = extra[at + 4 : at + 4 + length]
            for n, value in enumerate(values):
                if value == 0xFFFFFFFF and len(inside) >= 8:
                    values[n], inside = struct.unpack("<Q", inside[:8])[0], inside[8:]
            break
        at += 4 + length
    return values[0], values[1], values[2]


def _safe_name(raw: bytes, flags: int, number: int) -> str:
    try:
        name = raw.decode("utf-8" if flags & 0x800 else "cp437").replace("\\", "/")
    except UnicodeDecodeError as error:
        raise ReadError(f"zip archive: the name of entry {number} is damaged") from error
    parts = name.rstrip("/").split("/")
    if any(part in {"", ".", ".."} or ":" in part or part != part.strip("\0") or "\0" in part for part in parts):
        raise ReadError(
            f"zip archive: the name of entry {number} leads out of the archive or is no name ('..', an absolute path, a "
            "drive); the whole archive is refused"
        )
    if len(name) > _MAX_NAME or any(len(part.encode("utf-8", "replace")) > _MAX_PART for part in parts):
        raise ReadError(f"zip archive: the name of entry {number} is longer than a file's name can be")
    return "/".join(parts)


@contextmanager
def unpacked(path: Path, names: Iterable[str] | None = None) -> Iterator[Path]:
    """A private temporary folder with the files of an archive, or some of them; removed at the end.

    Parameters
    ----------
    names : iterable of str, optional
        Entries to unpack; all where left out.

    Raises
    ------
    ReadError
        As :func:`archive_entries`; or if an entry unpacks to another length or checksum than was declared, or one that
        was asked for is not there.
    ResourceError
        If the disk of the temporary folder has no room.
    """
    entries = archive_entries(path)
    if names is not None:
        wanted = set(names)
        entries = tuple(entry for entry in entries if entry.name in wanted)
        if len(entries) != len(wanted):
            raise ReadError(
                f"zip archive: {len(wanted) - len(entries)} of the {len(wanted)} entries of this case are not in it; "
                "it was changed since it was indexed"
            )
    place = Path(tempfile.mkdtemp(prefix="sagittal-"))  # 0700
    try:
        total = sum(entry.size for entry in entries)
        if total > shutil.disk_usage(place).free:
            raise ResourceError(
                f"zip archive: unpacks to {total / 2**30:.1f} GiB, more than is free in the temporary folder; make room, "
                "set TMPDIR to a larger disk, or unpack the archive yourself and give the folder"
            )
        with as_read_error("zip archive"), path.open("rb") as file:
            for entry in entries:
                _extract(file, entry, place)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _extract(file: IO[bytes], entry: Entry, place: Path) -> None:
    file.seek(entry.start)
    head = file.read(30)
    if len(head) < 30 or head[:4] != _LOCAL:
        raise ReadError(f"zip archive: entry {entry.number} does not lie where the directory says: damaged")
    flags, method, name_length, extra_length = struct.unpack("<6xHH16xHH", head)
    if method != entry.method or flags & 0x2041 or file.read(name_length) != entry.raw_name:
        raise ReadError(f"zip archive: entry {entry.number} and the directory contradict each other: damaged")
    file.seek(extra_length, os.SEEK_CUR)
    if file.tell() + entry.packed > entry.limit:
        raise ReadError(f"zip archive: entry {entry.number} reaches into the next: damaged or a bomb")
    target = place / entry.name
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except FileExistsError as error:
        raise ReadError(
            f"zip archive: entry {entry.number} has the name of another; which is meant is not known"
        ) from error
    except NotADirectoryError as error:
        raise ReadError(f"zip archive: entry {entry.number} lies in a folder that is a file: damaged") from error
    written, crc = 0, 0
    with os.fdopen(handle, "wb") as out:
        for piece in _pieces(file, entry):
            written += len(piece)
            if written > entry.size:
                raise ReadError(
                    f"zip archive: entry {entry.number} unpacks to more than it declares: refused as a bomb"
                )
            crc = zlib.crc32(piece, crc)
            out.write(piece)
    if written != entry.size or crc != entry.crc:
        raise ReadError(f"zip archive: entry {entry.number} is damaged or cut off (its length or checksum is wrong)")


def _pieces(file: IO[bytes], entry: Entry) -> Iterator[bytes]:
    left = entry.packed
    worker = zlib.decompressobj(-15) if entry.method == 8 else None
    while left and (packed := file.read(min(_CHUNK, left))):
        left -= len(packed)
        if worker is None:
            yield packed
            continue
        while packed:
            try:
                yield worker.decompress(packed, _CHUNK)
            except zlib.error as error:
                raise ReadError(f"zip archive: entry {entry.number} is damaged or cut off") from error
            packed = worker.unconsumed_tail
    if worker is not None:
        while piece := worker.decompress(b"", _CHUNK):
            yield piece
