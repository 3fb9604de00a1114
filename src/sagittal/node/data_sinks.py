"""Where the data set of a message goes, fragment by fragment, when it does not go into the archive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sagittal.node.pdu import ProtocolError

#: Bytes of the data set of an N-ACTION or N-EVENT-REPORT: 20,000 references have about 3 MB.
MOST_REQUEST = 2**23
#: Bytes that are still taken of an object that is refused already, so that the peer hears why; then the line is cut.
MOST_DROPPED = 2**28


class Sink(Protocol):
    """Takes the fragments of a data set."""

    def write(self, piece: memoryview) -> None:
        """Take a fragment; its bytes hold only until this returns."""

    def finish(self) -> None:
        """The last one was taken."""

    def abandon(self) -> None:
        """There will be no more: the association is over."""


class Dropped:
    """A data set that nobody wants; what was to be said is said at its end."""

    def __init__(self, at_end: Callable[[], None]) -> None:
        self._at_end, self._dropped = at_end, 0

    def write(self, piece: memoryview) -> None:
        """Take a fragment."""
        self._dropped += len(piece)
        if self._dropped > MOST_DROPPED:
            raise ProtocolError("far more bytes of an object that is refused", 0)

    def finish(self) -> None:
        """The last one was taken."""
        self._at_end()

    def abandon(self) -> None:
        """Nothing is left to do."""


class Collected:
    """A short data set, taken as a whole."""

    def __init__(self, at_end: Callable[[bytes], None]) -> None:
        self._at_end, self._data = at_end, bytearray()

    def write(self, piece: memoryview) -> None:
        """Take a fragment."""
        if len(self._data) + len(piece) > MOST_REQUEST:
            raise ProtocolError(f"a request of more than {MOST_REQUEST} bytes", 0)
        self._data += piece

    def finish(self) -> None:
        """The last one was taken."""
        self._at_end(bytes(self._data))

    def abandon(self) -> None:
        """Forget it."""
        self._data.clear()
