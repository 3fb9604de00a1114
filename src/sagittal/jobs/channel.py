"""Messages between the service and the processes of its models: JSON and raw bytes, nothing that could run.

A message is the length of its header and of its bytes, a header in JSON, and the bytes that the header names by number
(:mod:`sagittal.guard.wire`). What comes from a process that has read a stranger's files is data from outside as well.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from typing import IO, Any

from sagittal.guard import wire

_HEAD = struct.Struct("<IQ")
#: A header or the bytes of a message beyond this are refused: no study travels here, only paths and small pictures.
MOST_HEADER, MOST_BYTES = 2**26, 2**31


class Channel:
    """One end of a pair of pipes. Many threads may send; one receives.

    Parameters
    ----------
    reader, writer : binary files
    """

    def __init__(self, reader: IO[bytes], writer: IO[bytes]) -> None:
        self._reader, self._writer = reader, writer
        self._lock = threading.Lock()

    def send(self, value: Any) -> None:
        """Send a value of plain types, bytes and arrays.

        Raises
        ------
        BrokenPipeError
            If nobody is at the other end any more.
        TypeError
            If there is anything else in it.
        """
        parts = wire.encode(value)
        pieces = [_HEAD.pack(len(parts.header), parts.size) + parts.header, *parts.blobs]
        if parts.size < 2**16:
            pieces = [b"".join(bytes(piece) for piece in pieces)]
        with self._lock:
            for piece in pieces:
                self._writer.write(piece)
            self._writer.flush()

    def receive(self) -> Any:
        """The next value.

        Raises
        ------
        EOFError
            If the other end has closed.
        ValueError
            If what came is no message.
        """
        header, size = _HEAD.unpack(self._exactly(_HEAD.size))
        if header > MOST_HEADER or size > MOST_BYTES:
            raise ValueError("a message of another process is damaged")
        head = self._exactly(header)
        return wire.decode(head, self._exactly(size) if size else b"")

    def _exactly(self, size: int) -> bytes:
        data = self._reader.read(size)
        if data is None or len(data) < size:
            raise EOFError("the other process has closed its end")
        return data

    def close(self) -> None:
        """Close both ends."""
        for file in (self._writer, self._reader):
            with contextlib.suppress(OSError, ValueError):
                file.close()
