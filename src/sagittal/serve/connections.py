"""One connection of HTTP/1.1, with limits that the server of the library does not have.

llhttp collects headers for as long as they come. Here a connection whose header grows past 64 KiB, or is not whole after
ten seconds, is closed; so is one whose chunked body is mostly made of the signs around its chunks, one that does not read
what it asked for, and one too many from one address.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from sagittal.serve.send_files import SendsFiles
from sagittal.serve.tables import is_loopback

#: Bytes of a request that are not its body.
MOST_HEADER = 64 * 2**10
#: Seconds for a request's header, and for the first byte on a new connection.
HEADER_S = 10.0
#: Seconds in which a peer must have read what waits for it, 64 KiB at most.
READ_S = 60.0
#: Connections of one address; this machine's and those of trusted proxies are not counted.
MOST_OF_ONE = 128
_counts: Counter[tuple[int, str]] = Counter()


class Connection(SendsFiles):
    """A connection whose headers are limited in size and time; everything else is uvicorn's."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._around, self._body = 0, 0
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._counted: tuple[int, str] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; the first header has its time."""
        super().connection_made(transport)
        self._expect_header()
        address = self.client[0] if self.client else ""
        if not is_loopback(address) and address not in (self.config.forwarded_allow_ips or ()):
            self._counted = (id(self.server_state), address)
            _counts[self._counted] += 1
            if _counts[self._counted] > MOST_OF_ONE:
                self._stop(b"503 Service Unavailable")

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._header_is_there()
        self.resume_writing()
        if self._counted is not None:
            _counts[self._counted] -= 1
            if not _counts[self._counted]:
                del _counts[self._counted]
            self._counted = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The peer does not read; it has some time."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(READ_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Take bytes, and count those that are no body."""
        self._around += len(data)
        super().data_received(data)
        # Chunks of 64 bytes, which nobody sends, still pass: 6 bytes around each.
        if self._around > MOST_HEADER + self._body // 8 and not self.transport.is_closing():
            self._stop(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """A request begins, perhaps on a connection that was kept."""
        super().on_message_begin()
        if self._deadline is None:
            self._expect_header()

    def on_headers_complete(self) -> None:
        """Its header is whole."""
        self._header_is_there()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        self._around -= len(body)
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole; the next one begins from nothing."""
        self._around, self._body = 0, 0
        super().on_message_complete()

    def _expect_header(self) -> None:
        self._deadline = self.loop.call_later(HEADER_S, self._stop, b"408 Request Timeout")

    def _header_is_there(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _stop(self, status: bytes) -> None:
        self._header_is_there()
        if not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                self.transport.close()
            else:
                self.transport.abort()
