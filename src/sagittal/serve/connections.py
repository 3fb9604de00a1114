"""One connection of HTTP/1.1, with limits that the server of the library does not have: the size and time of headers.

llhttp collects headers for as long as they come. Here a connection whose header grows past 64 KiB, or is not whole after
ten seconds, is closed; so is one whose chunked body is mostly made of the signs around its chunks.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Bytes of a request that are not its body.
MOST_HEADER = 64 * 2**10
#: Seconds for a request's header, and for the first byte on a new connection.
HEADER_S = 10.0


class Connection(HttpToolsProtocol):
    """A connection whose headers are limited in size and time; everything else is uvicorn's."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._around, self._body = 0, 0
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; the first header has its time."""
        super().connection_made(transport)
        self._expect_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._header_is_there()
        super().connection_lost(exc)

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
