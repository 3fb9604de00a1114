"""Files from the disk's cache to the network without passing through this process (sendfile(2)), where HTTP is plain.

The library's server copies each byte twice; a series of a gigabyte is worth the trouble. Its connection is asked to stand
aside while the bytes of an answer go out, and counts them as its own; with TLS, or on another system, nothing changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sagittal.errors import ReadError

#: Name of the extension in the scope of a request (ASGI, "Extensions").
EXTENSION = "sagittal.send_files"
#: Seconds in which the peer must take something.
STALLED_S = 60.0
#: Milliseconds that a thread waits for the peer before another answer has its turn.
_PATIENCE_MS = 20
#: Bytes that one call hands over.
_AT_ONCE = 2**24


@dataclass(frozen=True)
class Span:
    """Bytes to send: those at hand, then those of a file.

    Attributes
    ----------
    head : bytes
    path : Path, optional
    size : int
        Bytes of the file, from its beginning.
    """

    head: bytes = b""
    path: Path | None = None
    size: int = 0


class SendsFiles(HttpToolsProtocol):
    """A connection that offers to send files by itself."""

    def on_message_begin(self) -> None:
        """A request begins: tell it what the connection can do."""
        super().on_message_begin()
        if sys.platform == "linux" and self.transport.get_extra_info("sslcontext") is None:
            extensions: dict[str, Any] = {EXTENSION: self}
            self.scope["extensions"] = extensions

    async def send_files(self, spans: Sequence[Span], threads: Executor) -> None:
        """Send the body of an answer whose head, with a Content-Length, has been sent.

        Parameters
        ----------
        spans : sequence of Span
        threads : Executor

        Raises
        ------
        ReadError
            If a file is shorter than it was; the connection is closed then, so that the peer knows.
        """
        cycle = self.cycle
        try:
            cycle.expected_content_length -= await self._send_files(spans, threads)
            return
        except ReadError:
            self.transport.abort()
            raise
        except ConnectionError:  # the peer is gone, or takes nothing: nobody is there to be told
            self.transport.abort()
        for _ in range(100):
            if cycle.disconnected:
                break
            await asyncio.sleep(0.01)

    async def _send_files(self, spans: Sequence[Span], threads: Executor) -> int:
        loop = asyncio.get_running_loop()
        due = loop.time() + STALLED_S
        while self.transport.get_write_buffer_size():  # the head goes first
            if loop.time() > due or self.transport.is_closing():
                raise ConnectionError("the peer takes nothing")
            await asyncio.sleep(0 if loop.time() < due - STALLED_S + 0.05 else 0.005)
        out = socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno()))
        out.setblocking(False)
        sending = _Sending(out, spans)
        try:
            while not await loop.run_in_executor(threads, sending.go_on):
                await _writable(loop, out)
        finally:
            sending.close()
            out.close()
        return sending.sent


class _Sending:
    """How far the body of one answer is."""

    def __init__(self, out: socket.socket, spans: Sequence[Span]) -> None:
        self._out, self._spans = out, list(reversed(spans))
        self._poll = select.poll()
        self._poll.register(out, select.POLLOUT)
        self._head = memoryview(b"")
        self._file, self._at, self._end = -1, 0, 0
        self.sent = 0

    def go_on(self) -> bool:
        """Send until all is sent, or the peer takes no more for the moment; whether all is."""
        while True:
            try:
                if len(self._head):
                    more = socket.MSG_MORE if self._file >= 0 or self._spans else 0
                    count = self._out.send(self._head, more)
                    self._head = self._head[count:]
                elif self._at < self._end:
                    count = os.sendfile(self._out.fileno(), self._file, self._at, min(self._end - self._at, _AT_ONCE))
                    if count == 0:
                        raise ReadError("a file of the archive is shorter than it was")
                    self._at += count
                else:
                    self.close()
                    if not self._spans:
                        return True
                    self._next(self._spans.pop())
                    continue
                self.sent += count
            except BlockingIOError:
                if not self._poll.poll(_PATIENCE_MS):
                    return False

    def _next(self, span: Span) -> None:
        self._head = memoryview(span.head)
        if span.path is not None:
            self._file = os.open(span.path, os.O_RDONLY)
            self._at, self._end = 0, span.size

    def close(self) -> None:
        """Close the file that is open."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self._at, self._end = -1, 0, 0


async def _writable(loop: asyncio.AbstractEventLoop, out: socket.socket) -> None:
    """Wait until the peer takes something again."""
    ready = asyncio.Event()
    loop.add_writer(out.fileno(), ready.set)
    try:
        await asyncio.wait_for(ready.wait(), STALLED_S)
    except TimeoutError:
        raise ConnectionError("the peer takes nothing") from None
    finally:
        with contextlib.suppress(OSError, ValueError):
            loop.remove_writer(out.fileno())
