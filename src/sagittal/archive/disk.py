"""Files that are safe when they are said to be: written, flushed, renamed, their folder flushed.

Source: the manual pages of fsync(2) and rename(2). A file's bytes are flushed before it gets its name, and the folder
afterwards, or a name without bytes, or neither, is left after a power loss. What waits for the same flush shares it.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar

from sagittal.archive.refused import ArchiveFull
from sagittal.errors import ServeError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

#: Files of one folder; the next begins then. Received objects lie in few folders, so that their flushes are shared.
FOLDER_FILES = 4096
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@contextmanager
def told() -> Iterator[None]:
    """What the system says of full and broken disks, as our own errors.

    Raises
    ------
    ArchiveFull
    ServeError
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, ArchiveFull):
            raise
        if error.errno in _NO_ROOM:
            raise ArchiveFull("the disk of the archive is full: free some space, or give it more") from error
        raise ServeError(
            f"the archive's disk cannot be used ({error.strerror or type(error).__name__}): look at the system's log"
        ) from error


def flush(file: int) -> None:
    """Bytes of a file, or names of a folder, are on the disk when this returns."""
    if fcntl is not None and hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone leaves them in the drive's cache
        with suppress(OSError):
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)
            return
    os.fsync(file)


def write_all(file: int, pieces: Sequence[bytes | memoryview]) -> None:
    """Write all of some pieces, in few calls of the system."""
    for first in range(0, len(pieces), 512):  # IOV_MAX is 1024 on Linux
        part = [memoryview(piece) for piece in pieces[first : first + 512] if piece]
        while part:
            written = os.writev(file, part) if hasattr(os, "writev") else os.write(file, part[0])
            while part and written >= len(part[0]):
                written -= len(part.pop(0))
            if part and written:
                part[0] = part[0][written:]


def hold(file: int) -> bool:
    """Mark an open file as in use, until it is closed or the process ends; false if another process uses it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class _Ticket(Generic[Item, Answer]):
    __slots__ = ("answer", "done", "error", "item")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self.done = False


class Together(Generic[Item, Answer]):
    """Work that costs the same for many as for one: who comes while it is being done waits, and the next does it for all.

    Parameters
    ----------
    work : callable
        Takes the items of all who wait and gives an answer for each, in their order. It begins after the last of them
        came.
    """

    def __init__(self, work: Callable[[list[Item]], list[Answer]]) -> None:
        self._work = work
        self._condition = threading.Condition()
        self._waiting: list[_Ticket[Item, Answer]] = []
        self._busy = False

    def run(self, item: Item) -> Answer:
        """The answer for one item, whoever did the work; what the work raised is raised for all who shared it."""
        ticket: _Ticket[Item, Answer] = _Ticket(item)
        with self._condition:
            self._waiting.append(ticket)
            while self._busy and not ticket.done:
                self._condition.wait()
            if not ticket.done:
                self._busy = True
                batch, self._waiting = self._waiting, []
        if not ticket.done:
            self._do(batch)
        if ticket.error is not None:
            raise ticket.error
        return ticket.answer  # type: ignore[return-value]

    def _do(self, batch: list[_Ticket[Item, Answer]]) -> None:
        try:
            for ticket, answer in zip(batch, self._work([t.item for t in batch]), strict=True):
                ticket.answer = answer
        except BaseException as error:
            for ticket in batch:
                ticket.error = error
        finally:
            with self._condition:
                self._busy = False
                for ticket in batch:
                    ticket.done = True
                self._condition.notify_all()


class _Handle:
    """A folder opened for flushing; closed when the last who waits for its flush is gone."""

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)

    def flush(self, items: list[None]) -> list[None]:
        flush(self.file)
        return items


class _Folder:
    """A folder that files are being put into."""

    def __init__(self, path: Path, name: str, count: int) -> None:
        self.name, self.count = name, count
        self.flushes: Together[None, None] = Together(_Handle(path / name).flush)


class Shelves:
    """Numbered folders of files that are kept: ``000001``, ``000002`` and so on, of 4,096 files each.

    Parameters
    ----------
    path : Path
        Made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._current: _Folder | None = None

    def names(self) -> list[str]:
        """The names of the folders, the oldest first."""
        if not self.path.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(self.path) if entry.name.isdigit() and entry.is_dir())

    def put(self, part: Path, name: str) -> str:
        """Give a flushed file its name, and flush the folder; the place below :attr:`path`.

        Raises
        ------
        ArchiveFull, ServeError
            The file is then where it was, or gone.
        """
        with told():
            folder = self._folder()
            place = f"{folder.name}/{name}"
            os.rename(part, self.path / place)
            try:
                folder.flushes.run(None)
            except BaseException:
                with suppress(OSError):
                    os.unlink(self.path / place)
                raise
            return place

    def close(self) -> None:
        """Let go of the folder that is being filled; the next file opens it again."""
        with self._lock:
            self._current = None

    def _folder(self) -> _Folder:
        with self._lock:
            if self._current is None:
                self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
                names = self.names() or [self._begin(1)]
                self._current = _Folder(self.path, names[-1], len(os.listdir(self.path / names[-1])))
            if self._current.count >= FOLDER_FILES:
                self._current = _Folder(self.path, self._begin(int(self._current.name) + 1), 0)
            self._current.count += 1
            return self._current

    def _begin(self, number: int) -> str:
        name = f"{number:06d}"
        (self.path / name).mkdir(exist_ok=True, mode=0o700)
        flush_folder(self.path)
        return name


def flush_folder(path: Path) -> None:
    """The names in a folder are on the disk when this returns."""
    if os.name == "nt":  # folders cannot be opened there; its journal keeps the order
        return
    file = os.open(path, os.O_RDONLY)
    try:
        flush(file)
    finally:
        os.close(file)


def path_in(folder: Path, place: str) -> Path:
    """Where a file lies whose place below a folder stands in a row: the one way from a row to a path.

    Parameters
    ----------
    folder : Path
        Of the archive.
    place : str
        Such as ``objects/000001/<hash>-<number>.dcm``.

    Raises
    ------
    ServeError
        If it is none that the archive made.
    """
    parts = place.split("/")
    stem, _, suffix = parts[-1].partition(".")
    own = all(part.isalnum() for part in (*stem.split("-"), *suffix.split("."))) and place.isascii()
    if len(parts) != 3 or parts[0] not in {"objects", "files"} or not parts[1].isdigit() or not own:
        raise ServeError("a row of the database names a file that the archive did not make")
    return folder / parts[0] / parts[1] / parts[2]
