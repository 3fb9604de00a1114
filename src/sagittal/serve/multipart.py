"""Multipart messages, read and written piece by piece (RFC 2046 5.1, RFC 2387): no message is ever whole in memory."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from sagittal.errors import ReadError

#: Bytes of the header of one part.
MAX_HEAD = 8192
_END = b"--"


@dataclass(frozen=True)
class PartBegin:
    """A part begins; its header fields, names in lower case."""

    fields: dict[str, str]


@dataclass(frozen=True)
class PartData:
    """Bytes of the present part."""

    data: bytes


@dataclass(frozen=True)
class PartEnd:
    """The present part is whole."""


Event = PartBegin | PartData | PartEnd


class MultipartReader:
    """Finds the parts of a multipart message in bytes as they come.

    Parameters
    ----------
    boundary : str
        Of the message's Content-Type.
    most_parts : int
        More are refused.

    Raises
    ------
    ReadError
        If the boundary is none (RFC 2046 5.1.1: 1 to 70 characters).

    Examples
    --------
    >>> reader = MultipartReader("x")
    >>> events = [*reader.feed(b"--x\\r\\nContent-Type: a/b\\r\\n\\r\\nhe"), *reader.feed(b"llo\\r\\n--x--\\r\\n")]
    >>> [getattr(event, "data", type(event).__name__) for event in events]
    ['PartBegin', b'hello', 'PartEnd']
    >>> reader.close()
    """

    def __init__(self, boundary: str, *, most_parts: int = 1_000_000) -> None:
        try:
            mark = boundary.encode("ascii")
        except UnicodeEncodeError as error:
            raise ReadError("multipart: the boundary holds letters that it may not") from error
        if not 1 <= len(mark) <= 70 or b"\r" in mark or b"\n" in mark:
            raise ReadError("multipart: the boundary must have 1 to 70 characters")
        self._mark = b"\r\n--" + mark
        self._left = most_parts
        self._state = "preamble"
        self._held = b"\r\n"  # so that a boundary at the very beginning is found like every other

    def feed(self, data: bytes) -> Iterator[Event]:
        """What the next bytes hold.

        Raises
        ------
        ReadError
            If the message is damaged, or has too many parts.
        """
        held = self._held + data if self._held else data
        at = 0
        while True:
            if self._state == "end":
                held, at = b"", 0
                break
            if self._state in {"preamble", "body"}:
                found = held.find(self._mark, at)
                if found < 0:
                    keep = self._tail(held, at)
                    if self._state == "body" and keep > at:
                        yield PartData(held[at:keep] if at or keep < len(held) else held)
                    at = keep
                    break
                if self._state == "body":
                    if found > at:
                        yield PartData(held[at:found])
                    yield PartEnd()
                at, self._state = found + len(self._mark), "after"
            if self._state == "after":
                # Blanks may follow a boundary, then the end of the line, or two dashes for the end of all.
                line = held.find(b"\r\n", at)
                if held.startswith(_END, at):
                    self._state = "end"
                    continue
                if line < 0:
                    if len(held) - at > MAX_HEAD:
                        raise ReadError("multipart: after a boundary the line has no end: damaged")
                    break
                if held[at:line].strip(b" \t"):
                    raise ReadError("multipart: something else follows a boundary in its line: damaged")
                at, self._state = line, "head"  # the line's end may be that of an empty header
            if self._state == "head":
                end = held.find(b"\r\n\r\n", at)
                if end < 0 or end - at > MAX_HEAD:
                    if len(held) - at > MAX_HEAD:
                        raise ReadError(f"multipart: the header of a part has more than {MAX_HEAD} bytes")
                    break
                self._left -= 1
                if self._left < 0:
                    raise ReadError("multipart: more parts than are taken in one message; send several")
                yield PartBegin(_fields(held[at:end]))
                # The two bytes before a body may be the line break that a boundary begins with: an empty part.
                at, self._state = end + 2, "gap"
            if self._state == "gap":
                if len(held) - at < 2 + len(self._mark):
                    break
                if held.startswith(self._mark, at):
                    yield PartEnd()
                    at, self._state = at + len(self._mark), "after"
                else:
                    at, self._state = at + 2, "body"
        self._held = held[at:]

    def close(self) -> None:
        """Say that nothing more comes.

        Raises
        ------
        ReadError
            If the last boundary is missing.
        """
        if self._state == "after" and self._held.startswith(_END):
            self._state = "end"
        if self._state != "end":
            raise ReadError("multipart: the message is cut off, its last boundary is missing")

    def _tail(self, held: bytes, at: int) -> int:
        """From where the bytes may be the beginning of a boundary."""
        start = max(at, len(held) - len(self._mark) + 1)
        while start < len(held):
            start = held.find(b"\r", start)
            if start < 0:
                return len(held)
            if self._mark.startswith(held[start:]):
                return start
            start += 1
        return len(held)


def _fields(head: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in head.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if colon:
            found.setdefault(name.strip().lower().decode("latin-1"), value.strip().decode("latin-1"))
    return found


def new_boundary() -> str:
    """A boundary that no part holds, with a probability of one in 2^128."""
    return secrets.token_hex(16)


def part_head(boundary: str, content_type: str, *, first: bool) -> bytes:
    """What stands before the bytes of a part."""
    before = "" if first else "\r\n"
    return f"{before}--{boundary}\r\nContent-Type: {content_type}\r\n\r\n".encode("latin-1")


def last_boundary(boundary: str) -> bytes:
    """What stands after the last part."""
    return f"\r\n--{boundary}--\r\n".encode("ascii")
