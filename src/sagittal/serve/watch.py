"""Watched folders: what is put there goes into the archive; what is not kept is laid aside with the reason, once.

A file is taken when it has not changed for a while. It leaves the folder only when the archive has said that it is safe.
A file that cannot even be laid aside is left alone until it changes, so that nothing is tried for ever.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sagittal.archive.refused import Refused, record_refusal
from sagittal.database.events import end_event, report_event
from sagittal.errors import ReadError, ResourceError, ServeError
from sagittal.guard.archive import archive_entries, unpacked

if TYPE_CHECKING:
    from sagittal.archive.archive import Archive
    from sagittal.serve.config import Limits, Watch

#: Folder below a watched one where refused files go.
ASIDE = "refused"
#: Files of one look, and folders within each other.
_MOST_SEEN, _MOST_TAKEN, _DEPTH = 200_000, 5_000, 16

Sign = tuple[int, int]


@dataclass
class _Folder:
    """What is known of one watched folder."""

    watch: Watch
    memory: Path
    seen: dict[str, tuple[Sign, float]] = field(default_factory=dict)
    left: set[tuple[str, int, int]] = field(default_factory=set)


class Watching:
    """Looks into folders when it is told to.

    Parameters
    ----------
    archive : Archive
    watches : sequence of Watch
    memory : Path
        Folder where it is kept which files were taken that stay where they are; by hashes of their names.
    limits : Limits
    wake : callable (), optional
        Called when something was stored.
    """

    def __init__(
        self,
        archive: Archive,
        watches: Sequence[Watch],
        memory: Path,
        limits: Limits,
        *,
        wake: Callable[[], None] | None = None,
    ) -> None:
        self._archive, self._limits, self._wake = archive, limits, wake
        self._lock = threading.Lock()
        self._folders = []
        if watches:
            memory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for watch in watches:
            name = hashlib.sha256(str(watch.folder.absolute()).encode()).hexdigest()[:32]
            folder = _Folder(watch, memory / f"{name}.txt")
            folder.left = _remembered(folder.memory)
            self._folders.append(folder)

    def look(self, stopping: threading.Event | None = None) -> int:
        """Look into every folder once; how many files were stored."""
        count = 0
        with self._lock:
            for folder in self._folders:
                about = folder.watch.folder.name
                try:
                    count += self._look(folder, stopping)
                except OSError as error:
                    reason = error.strerror or type(error).__name__
                    report_event(
                        self._archive.db, "watch-folder", "error", f"a watched folder cannot be read: {reason}", about
                    )
                except (ServeError, ResourceError):
                    continue  # the archive is full or the database away: they say so themselves; the files wait
                else:
                    end_event(self._archive.db, "watch-folder", about)
        if count and self._wake is not None:
            self._wake()
        return count

    def _look(self, folder: _Folder, stopping: threading.Event | None) -> int:
        now = time.monotonic()
        present: dict[str, tuple[Sign, float]] = {}
        ready: list[tuple[Path, Sign]] = []
        for path, sign in _files(folder.watch.folder):
            key = _key(folder, path)
            if (key, *sign) in folder.left:
                continue
            before = folder.seen.get(key)
            if before is None or before[0] != sign:
                present[key] = (sign, now)
                continue
            present[key] = before
            if now - before[1] >= folder.watch.quiet_s and sign[0] > 0:
                ready.append((path, sign))
        folder.seen = present
        count = 0
        for path, sign in ready[:_MOST_TAKEN]:
            if stopping is not None and stopping.is_set():
                break
            if _sign(path) == sign and self._take(folder, path, sign):
                count += 1
        return count

    def _take(self, folder: _Folder, path: Path, sign: Sign) -> bool:
        try:
            self._store(path)
        except (Refused, ReadError) as error:
            code = error.code if isinstance(error, Refused) else "zip-bomb" if "bomb" in str(error) else "unreadable"
            if isinstance(error, ReadError):  # the archive has told of its own refusals
                record_refusal(self._archive.db, "folder", code, str(error))
            self._lay_aside(folder, path, sign, code, str(error))
            return False
        except OSError as error:
            if isinstance(error, ResourceError):
                raise
            self._leave(folder, path, sign)
            reason = error.strerror or type(error).__name__
            report_event(
                self._archive.db,
                "watch-file",
                "warning",
                f"a file of a watched folder cannot be read: {reason}",
                folder.watch.folder.name,
            )
            return False
        if folder.watch.keep:
            self._leave(folder, path, sign)
        else:
            try:
                path.unlink()
                _flush(path.parent)
            except OSError:
                self._leave(folder, path, sign)
        return True

    def _store(self, path: Path) -> None:
        with path.open("rb") as file:
            zipped = file.read(4) in {b"PK\x03\x04", b"PK\x05\x06"}
        if not zipped:
            self._receive(path)
            return
        entries = [one for one in archive_entries(path) if one.name.rpartition("/")[2].upper() != "DICOMDIR"]
        total = sum(one.size for one in entries)
        if total > self._limits.most_unpacked_bytes or len(entries) > self._limits.most_files:
            raise Refused("zip-bomb", f"unpacks to {total:,} bytes in {len(entries):,} files, more than is taken")
        with unpacked(path, [one.name for one in entries]) as place:
            good, last = 0, None
            for one in entries:
                try:
                    self._receive(place / one.name)
                    good += 1
                except Refused as error:
                    last = error
            if not good:
                raise last or Refused("unreadable", "the archive holds no file")

    def _receive(self, path: Path) -> None:
        with self._archive.receive("folder") as incoming, path.open("rb") as file:
            while piece := file.read(2**20):
                incoming.write(piece)
            incoming.finish()

    def _lay_aside(self, folder: _Folder, path: Path, sign: Sign, code: str, reason: str) -> None:
        """Move a refused file away, with the reason beside it; where that is not possible, remember it."""
        aside = folder.watch.folder / ASIDE
        try:
            aside.mkdir(exist_ok=True)
            name, number = path.name, 1
            while (aside / name).exists() or (aside / f"{name}.txt").exists():
                name = f"{path.stem}-{number}{path.suffix}"
                number += 1
            (aside / f"{name}.txt").write_text(f"{code}: {reason}\n", encoding="utf-8")
            shutil.move(path, aside / name)
            _flush(aside)
        except OSError:
            self._leave(folder, path, sign)

    def _leave(self, folder: _Folder, path: Path, sign: Sign) -> None:
        """Leave a file alone until it changes."""
        key = (_key(folder, path), *sign)
        folder.left.add(key)
        with suppress(OSError), folder.memory.open("a", encoding="ascii") as file:
            file.write(" ".join(map(str, key)) + "\n")


def _files(folder: Path) -> Iterator[tuple[Path, Sign]]:
    """Ordinary files in a folder and below it; links, hidden files and what was laid aside are passed over."""
    waiting: list[tuple[Path, int]] = [(folder, 0)]
    seen = 0
    while waiting:
        place, depth = waiting.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith(".") or (depth == 0 and entry.name == ASIDE):
                    continue
                try:
                    if entry.is_dir(follow_symlinks=False):
                        if depth < _DEPTH:
                            waiting.append((Path(entry.path), depth + 1))
                        continue
                    if not entry.is_file(follow_symlinks=False) or entry.name.upper() == "DICOMDIR":
                        continue
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # gone between the two looks
                    continue
                seen += 1
                if seen > _MOST_SEEN:
                    return
                yield Path(entry.path), (status.st_size, status.st_mtime_ns)


def _sign(path: Path) -> Sign | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _key(folder: _Folder, path: Path) -> str:
    """What stands for a file's name, which may be a patient's."""
    return hashlib.sha256(str(path.relative_to(folder.watch.folder)).encode("utf-8", "surrogateescape")).hexdigest()[
        :32
    ]


def _remembered(path: Path) -> set[tuple[str, int, int]]:
    found: set[tuple[str, int, int]] = set()
    with suppress(OSError):
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            pieces = line.split()
            if len(pieces) == 3 and pieces[1].isdigit() and pieces[2].isdigit():
                found.add((pieces[0], int(pieces[1]), int(pieces[2])))
    return found


def _flush(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
