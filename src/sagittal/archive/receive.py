"""Receiving one object: bytes come in, and only when they are safe on the disk and indexed is there a receipt.

In this order: the bytes go into ``incoming/<name>.part``, with a cap; the file is flushed; it is renamed to a name made
of our own hash of it; the folder is flushed; the rows are written with full synchronisation; the receipt is given.
Whatever fails before leaves nothing behind but, after a power loss, a file that the next start deletes or indexes.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sagittal.archive.disk import flush, hold, told, write_all
from sagittal.archive.elements import More, find_elements, find_meta
from sagittal.archive.header import Header, check_pixels, check_syntax, read_header, told_header
from sagittal.archive.meta import NEEDED, PREAMBLE, FileMeta, harmless, is_part_10, with_meta
from sagittal.archive.refused import Refused
from sagittal.archive.rows import Arrival
from sagittal.errors import ServeError

if TYPE_CHECKING:
    from sagittal.archive.archive import Archive

Outcome = Literal["stored", "already", "conflict"]
#: Bytes that are gathered before they are written and their header is understood, while the sender sends the rest; and
#: those from which on a piece is written as it lies in its sender's buffer, where it would have to be copied to be kept.
_GATHERED, _LARGE = 2**17, 2**15
#: Stands for the bytes of a file that is still coming in.
_UNKNOWN = 2**62


@dataclass(frozen=True)
class Receipt:
    """What became of an object that is safe now.

    Attributes
    ----------
    outcome : {"stored", "already", "conflict"}
        New; there already with the same data set; or kept beside another of the same UID, and shown to an administrator.
    instance_id, series_id, study_id : int
        Rows.
    """

    outcome: Outcome
    instance_id: int
    series_id: int
    study_id: int


class Incoming:
    """An object that is being received; made by :meth:`sagittal.archive.archive.Archive.receive`.

    Used by one thread. As a context manager it is abandoned unless it was finished.
    """

    def __init__(self, archive: Archive, source: str, meta: FileMeta | None, *, result: bool = False) -> None:
        self._archive, self._source, self._meta, self._result = archive, source, meta, result
        self._sha = hashlib.sha256()
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._size = 0
        self._head = b""  # the beginning of what was written, for its header
        self._header: Header | None = None
        self._begun = False
        self._start = bytearray()  # until it is clear what it is
        self._file = -1
        self._part = Path()
        self._over = False
        self.cleaned = False
        if meta is not None:
            check_syntax(meta.transfer_syntax_uid)
            self._begun = True
            self._take(meta.encode())

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    @property
    def size(self) -> int:
        """Bytes that came in so far, with the preamble and meta information of the file."""
        return self._size

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take some more bytes of the stream.

        Raises
        ------
        Refused
            If there are more than an object may have, or the beginning is that of no object that is kept; nothing is
            left of it then.
        ArchiveFull, ServeError
            If the disk does not take them.
        """
        if self._over:
            raise ServeError("the object was finished or abandoned before")
        try:
            piece = data if isinstance(data, bytes) else memoryview(data)
            if self._size + len(piece) > self._archive.limits.most_object:
                raise Refused("too-large", f"more than the {self._archive.limits.most_object:,} bytes that are allowed")
            if not self._begun:
                self._start += piece
                if len(self._start) < (PREAMBLE + 4 if is_part_10(self._start) else NEEDED):
                    return
                self._begin()
            else:
                self._take(piece)
        except BaseException as error:
            self._fail(error)
            raise

    def finish(self) -> Receipt:
        """Make it safe: flushed, renamed, indexed.

        Raises
        ------
        Refused
            If it is no object that is kept; nothing is left of it then.
        ArchiveFull, ServeError
            If disk or database do not take it; nothing is left of it then, and it may be sent again.
        """
        if self._over:
            raise ServeError("the object was finished or abandoned before")
        try:
            receipt = self._finish()
        except BaseException as error:
            self._fail(error)
            raise
        self._over = True
        self._archive.left(self)
        if self.cleaned:
            self._archive.cleaned()
        return receipt

    def abandon(self) -> None:
        """Forget it, as when the association broke. After :meth:`finish` this does nothing."""
        if self._over:
            return
        self._over = True
        self._pieces, self._head, self._start = [], b"", bytearray()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._part.name:
            with suppress(OSError):
                os.unlink(self._part)
        self._archive.left(self)

    def _fail(self, error: BaseException) -> None:
        self.abandon()
        self._archive.failed(self._source, error)

    def _begin(self) -> None:
        start, self._start, self._begun = bytes(self._start), bytearray(), True
        start, self.cleaned = harmless(start if is_part_10(start) else with_meta(start))
        self._take(start)

    def _take(self, piece: bytes | memoryview) -> None:
        """Take a piece; what it lies in may be used again when this returns."""
        self._sha.update(piece)
        self._size += len(piece)
        self._gathered += len(piece)
        lasts = isinstance(piece, bytes)
        if self._gathered >= _GATHERED or (self._file >= 0 and len(piece) >= _LARGE and not lasts):
            self._write(piece)
        else:
            self._pieces.append(piece if isinstance(piece, bytes) else bytes(piece))

    def _write(self, last: bytes | memoryview) -> None:
        pieces = [*self._pieces, last]
        with told():
            if self._file < 0:
                self._head = b"".join((*self._pieces, memoryview(last)[:_GATHERED]))
                self._look_early()
                self._open()
            self._archive.check_space(self._gathered)
            write_all(self._file, pieces)
        self._pieces, self._gathered = [], 0

    def _look_early(self) -> None:
        """Understand the header while the rest comes in; what cannot be kept must not come in whole."""
        with suppress(More):
            check_syntax(find_meta(self._head, _UNKNOWN).syntax)
        with suppress(More, Refused):  # a refusal is told when all of it is there
            elements = find_elements(self._head, _UNKNOWN)
            self._header = told_header(elements, self._archive.limits.default_character_set)
            self._header.keep()

    def _open(self) -> None:
        self._part = self._archive.new_part()
        self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        hold(self._file)

    def _finish(self) -> Receipt:
        if not self._begun:
            self._begin()
        if self._file < 0:
            header = self._understood(b"".join(self._pieces))
            with told():
                self._archive.check_space(self._gathered)
                self._open()
                write_all(self._file, self._pieces)
        else:
            if self._pieces:
                self._write(b"")
            header = self._understood(self._head)
        self._pieces, self._head = [], b""
        with told():
            flush(self._file)
        arrival = Arrival(header, "", self._sha.hexdigest(), self._size, self._source, self._result)
        receipt = self._archive.keep(self._part, arrival)
        os.close(self._file)
        self._file, self._part = -1, Path()
        return receipt

    def _understood(self, head: bytes) -> Header:
        """The header, from the beginning at hand or, where that is not enough, from the file."""
        character_set = self._archive.limits.default_character_set
        try:
            header = self._header or told_header(find_elements(head, self._size), character_set)
            check_pixels(header, self._size)
        except More:
            with told(), mmap.mmap(self._file, self._size, access=mmap.ACCESS_READ) as whole:
                header = read_header(find_elements(whole, self._size), self._size, default_character_set=character_set)
                header.elements.detach()
        header.keep()
        if self._meta is not None and (
            header.sop_instance_uid != self._meta.sop_instance_uid or header.sop_class_uid != self._meta.sop_class_uid
        ):
            raise Refused("mismatch", "the data set holds another SOP class or instance than was announced")
        return header
