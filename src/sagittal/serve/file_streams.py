"""Answers made of files: read in large pieces by a thread, one piece ahead of the network, never whole in memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sagittal.errors import ReadError
from sagittal.serve.multipart import last_boundary, new_boundary, part_head
from sagittal.serve.send_files import EXTENSION, Span

T = TypeVar("T")
#: Threads that wait for the disk on behalf of many clients.
_THREADS = ThreadPoolExecutor(32, thread_name_prefix="sagittal-files")
#: Bytes that are read at a time and handed to the network.
PIECE = 2**20
#: Bytes that are got ready while others are sent.
_AHEAD = 4 * 2**20


async def in_thread(function: Callable[..., T], *given: Any, **named: Any) -> T:
    """Call a function that waits for a disk, without holding up the others."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, partial(function, *given, **named))


@dataclass(frozen=True)
class FilePart:
    """A part of a multipart answer: a file as it is, or what a function makes.

    Attributes
    ----------
    content_type : str
    path : Path, optional
    size : int
        Of the part; -1 where it is not known before.
    make : callable () -> bytes, optional
        Makes the part. Where it raises ReadError, the file is given as it is.
    otherwise : str
        Media type of the file as it is.
    """

    content_type: str
    path: Path | None = None
    size: int = -1
    make: Callable[[], bytes] | None = None
    otherwise: str = ""


class PiecesResponse(Response):
    """An answer whose bytes an ordinary iterator gives, which runs in a thread and is closed when the client leaves.

    Parameters
    ----------
    pieces : iterator of bytes
    media_type : str
    length : int, optional
        Of all together, where it is known.
    headers : dict, optional
    status_code : int
    """

    def __init__(
        self,
        pieces: Iterator[bytes],
        media_type: str,
        *,
        length: int | None = None,
        headers: dict[str, str] | None = None,
        status_code: int = 200,
    ) -> None:
        self.pieces = pieces
        self.spans: Sequence[Span] = ()
        self.status_code = status_code
        self.media_type = None
        self.background = None
        self.init_headers({**(headers or {}), "content-type": media_type})
        if length is not None:
            self.headers["content-length"] = str(length)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it (ASGI)."""
        loop = asyncio.get_running_loop()
        sender = scope.get("extensions", {}).get(EXTENSION) if self.spans else None
        if sender is not None:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await sender.send_files(self.spans, _THREADS)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        # The first bytes before the head, so that what cannot be read is still an error and not a cut-off answer.
        ready = await loop.run_in_executor(_THREADS, self._some)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            while ready and not gone.done():
                following = loop.run_in_executor(_THREADS, self._some)
                try:
                    for piece in ready:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                finally:
                    ready = await following
            if not gone.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()
            close = getattr(self.pieces, "close", None)
            if close is not None:
                close()

    def _some(self) -> list[bytes]:
        found, size = [], 0
        for piece in self.pieces:
            found.append(piece)
            size += len(piece)
            if size >= _AHEAD:
                break
        return found


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def file_pieces(path: Path, size: int) -> Iterator[bytes]:
    """The bytes of a file of known size.

    Raises
    ------
    ReadError
        If it is shorter than it was.
    """
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        left = size
        while left:
            piece = os.read(file, min(PIECE, left))
            if not piece:
                raise ReadError("a file of the archive is shorter than it was")
            left -= len(piece)
            yield piece
    finally:
        os.close(file)


def multipart_answer(
    parts: Sequence[FilePart], *, kind: str, headers: dict[str, str] | None = None, status_code: int = 200
) -> PiecesResponse:
    """An answer of several parts; its length is told where all parts are files.

    Parameters
    ----------
    parts : sequence of FilePart
    kind : str
        Media type of the parts, for the ``type`` parameter.
    """
    boundary = new_boundary()
    end = last_boundary(boundary)
    length = None
    if all(part.size >= 0 for part in parts):
        heads = (part_head(boundary, part.content_type, first=n == 0) for n, part in enumerate(parts))
        length = sum(len(head) for head in heads) + sum(part.size for part in parts) + len(end)

    def pieces() -> Iterator[bytes]:
        for n, part in enumerate(parts):
            made, content_type = None, part.content_type
            if part.make is not None:
                try:
                    made = part.make()
                except ReadError:
                    if part.path is None:
                        raise
                    content_type = part.otherwise
            yield part_head(boundary, content_type, first=n == 0)
            if made is not None:
                yield made
            elif part.path is not None:
                yield from file_pieces(part.path, part.path.stat().st_size if part.size < 0 else part.size)
        yield end

    media_type = f'multipart/related; type="{kind}"; boundary={boundary}'
    answer = PiecesResponse(pieces(), media_type, length=length, headers=headers, status_code=status_code)
    if all(part.path is not None and part.make is None and part.size >= 0 for part in parts):
        files = (
            Span(part_head(boundary, part.content_type, first=n == 0), part.path, part.size)
            for n, part in enumerate(parts)
        )
        answer.spans = (*files, Span(end))
    return answer
