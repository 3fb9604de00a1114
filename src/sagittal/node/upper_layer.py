"""One association: bytes in with limits of size and time, messages' fragments out.

Standard: PS3.8 9.2 (the state machine: an acceptor needs states 2, 3, 6 and 13, a requestor who sends one message 5, 6 and
7) and PS3.8 9.1.5 (ARTIM).

Nothing is read before its length was compared with the limit, and no length makes memory: one buffer is filled again and
again, and what it holds is handed on as views of it. Whoever takes a view copies it or is done with it when the next
unit is asked for.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from dataclasses import dataclass

from sagittal.errors import ServeError
from sagittal.node import pdu
from sagittal.node.pdu import AcceptedContext, AssociateRequest, ProposedContext, ProtocolError

#: Seconds that one wait for bytes lasts at most; between waits it is seen whether time is up or the node stops.
TICK_S = 0.25
_QUICK = getattr(socket, "TCP_QUICKACK", None)
#: Bytes that are still read after our last word.
MOST_DROPPED = 2**22
_TLS = 0x16  # type of the first record of a TLS handshake
_FIRST_ROOM = 2**13  # bytes for an association request; most are shorter


class Ended(ServeError):  # noqa: N818
    """The association is over: released, aborted, cut, timed out or stopped; the message says which."""


class TimedOut(Ended):
    """The peer was silent or slow for longer than allowed."""


class Stopped(Ended):
    """The node stops."""


@dataclass(frozen=True)
class WireLimits:
    """What one peer may take of us.

    Attributes
    ----------
    most_pdu : int, bytes
        The longest P-DATA-TF, which is announced and then held to. DCMTK sends at most 131,072.
    artim_s : float
        From the connection to the whole association request, and from our last word to the end of the connection.
    idle_s : float
        Without a byte.
    pdu_s : float
        From the first byte of a unit to its last.
    slowest : int, bytes per second
        What a message must bring on average after its first minute.
    """

    most_pdu: int = 131072
    artim_s: float = 10.0
    idle_s: float = 60.0
    pdu_s: float = 30.0
    slowest: int = 2048


class UpperLayer:
    """One side of one connection.

    Parameters
    ----------
    connection : socket.socket
        Connected, or a TLS socket after its handshake.
    limits : WireLimits
    stopping : threading.Event
        Set when no new message should be begun.
    killed : threading.Event
        Set when a message that is under way is given up as well.
    """

    def __init__(
        self,
        connection: socket.socket,
        limits: WireLimits,
        *,
        stopping: threading.Event | None = None,
        killed: threading.Event | None = None,
    ) -> None:
        self.received = 0  # bytes
        self._socket = connection
        self._limits = limits
        self._stopping = stopping or threading.Event()
        self._killed = killed or threading.Event()
        self._buffer = bytearray(_FIRST_ROOM)
        self._view = memoryview(self._buffer)
        self._at = self._end = 0
        self._heard = time.monotonic()
        self._peer_most = 0
        self._said_last: float | None = None
        self._message_from: tuple[float, int] | None = None  # when, and how many bytes had come by then
        connection.settimeout(min(TICK_S, limits.artim_s / 4, limits.idle_s / 4))

    # Beginning --------------------------------------------------------------------------------------------------------

    def read_request(self, due: float) -> AssociateRequest:
        """The A-ASSOCIATE-RQ with which every association begins.

        Parameters
        ----------
        due : float, s
            On the monotonic clock: when the ARTIM timer runs out.

        Raises
        ------
        Ended
            If the peer left, or did not finish in time. It has been told if the standard wants that.
        ProtocolError
            If something else came; the peer has been told.
        """
        data = self._read_first(pdu.ASSOCIATE_RQ, due)
        try:
            return pdu.read_request(data)
        except ProtocolError as error:
            self.abort(source=2, reason=error.reason)
            raise

    def _read_first(self, wanted: int, due: float) -> bytes:
        """The content of the unit with which the other side begins."""
        try:
            self._need(6, due)
            kind, length = pdu.read_head(self._view[self._at : self._end])
            if kind != wanted:
                known = pdu.ASSOCIATE_RQ <= kind <= pdu.ABORT
                raise ProtocolError(
                    "it speaks TLS, which is off here" if kind == _TLS else "it does not begin with an association",
                    pdu.UNEXPECTED_PDU if known else pdu.UNRECOGNIZED_PDU,
                )
            if length > pdu.MOST_REQUEST:
                raise ProtocolError(f"an association request or answer of more than {pdu.MOST_REQUEST} bytes")
            self._at += 6
            self._need(length, due)
            data = bytes(self._view[self._at : self._at + length])
            self._at += length
            return data
        except ProtocolError as error:
            self.abort(source=2, reason=error.reason)
            raise

    def accept(self, answer: bytes, *, peer_most: int) -> None:
        """Send an A-ASSOCIATE-AC and make room for data."""
        self._make_room(peer_most)
        self._send(answer)

    def associate(self, request: bytes, proposed: ProposedContext) -> AcceptedContext:
        """Send an A-ASSOCIATE-RQ of our own and wait for the answer.

        Raises
        ------
        Ended, ProtocolError
            If the peer refuses, is silent, or does not keep to the rules.
        """
        self._send(request)
        answer = self._read_first(pdu.ASSOCIATE_AC, time.monotonic() + self._limits.artim_s)
        agreed, peer_most = pdu.read_accept(answer, proposed)
        if agreed is None:
            self.release()
            raise Ended("the peer does not accept the presentation context")
        self._make_room(peer_most)
        return agreed

    def _make_room(self, peer_most: int) -> None:
        room = max(4 * self._limits.most_pdu, 2**18) + 6
        rest = bytes(self._view[self._at : self._end])
        self._buffer = bytearray(max(room, 2 * len(rest)))
        self._view = memoryview(self._buffer)
        self._view[: len(rest)] = rest
        self._at, self._end = 0, len(rest)
        self._peer_most = peer_most

    def reject(self, result: int, source: int, reason: int) -> None:
        """Send an A-ASSOCIATE-RJ, PS3.8 9.3.4; :meth:`linger` lets the peer close."""
        self._say_last(pdu.write_reject(result, source, reason))

    # Data -------------------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether bytes of the peer lie here that nobody has looked at."""
        return self._end > self._at

    def begin_message(self) -> None:
        """From here on a message is under way: stopping waits for its end, and slowness counts."""
        self._message_from = (time.monotonic(), self.received)

    def end_message(self) -> None:
        """The message is complete and answered; the peer's silence counts from now on."""
        self._message_from = None
        self._heard = time.monotonic()

    def next_fragments(self) -> list[tuple[int, int, memoryview]]:
        """Fragments of the next P-DATA-TF; none if nothing came for a moment (so that the caller can look around).

        Returns
        -------
        list of (context number, message control header, bytes)
            The bytes are views that hold until the next call.

        Raises
        ------
        Ended
            When the association is over, in whichever way; the peer has been told.
        ProtocolError
            When the peer broke the rules; it has been told.
        """
        try:
            if not self._begun():
                return []
            due = time.monotonic() + self._limits.pdu_s
            self._need(6, due)
            kind, length = pdu.read_head(self._view[self._at : self._end])
            if kind == pdu.P_DATA:
                if length > self._limits.most_pdu:
                    raise ProtocolError(f"a P-DATA-TF longer than the {self._limits.most_pdu} bytes that were agreed")
                self._at += 6
                self._need(length, due)
                unit = self._view[self._at : self._at + length]
                self._at += length
                self._see_pace()
                return pdu.read_fragments(unit)
            self._take_other(kind, length, due)
            raise AssertionError("unreachable")  # pragma: no cover
        except ProtocolError as error:
            self.abort(source=2, reason=error.reason)
            raise
        except (TimedOut, Stopped) as error:
            self.abort(source=0 if isinstance(error, Stopped) else 2)
            raise

    def send(self, context: int, command: bytes, data: bytes = b"") -> None:
        """Send one DIMSE message, in units that the peer takes.

        Raises
        ------
        Ended
            If the peer is gone or does not read.
        """
        self._send(pdu.write_data(context, command, data, most_pdu=self._peer_most))

    # End --------------------------------------------------------------------------------------------------------------

    def abort(self, *, source: int = 0, reason: int = pdu.NOT_SPECIFIED) -> None:
        """Send an A-ABORT, PS3.8 9.3.8; :meth:`linger` lets the peer close."""
        self._say_last(pdu.write_abort(source, reason))

    def release(self) -> None:
        """Send an A-RELEASE-RQ of our own; :meth:`linger` takes the answer."""
        self._say_last(pdu.RELEASE)

    def keep(self) -> None:
        """The peer's silence is no fault of its own: it waits for us."""
        self._heard = time.monotonic()

    def linger(self) -> None:
        """After our last word, wait for the peer to close, as state 13 wants; what it still sends is dropped.

        Without the wait, bytes that were not read would make the system reset the connection, and the peer might never
        see the answer.
        """
        if self._said_last is None:
            return
        dropped = 0
        try:
            self._socket.settimeout(TICK_S)
            while time.monotonic() < self._said_last + self._limits.artim_s and dropped < MOST_DROPPED:
                try:
                    count = self._socket.recv_into(self._buffer)
                except TimeoutError:
                    if self._stopping.is_set():
                        break
                    continue
                if not count:
                    break
                dropped += count
        except OSError:
            pass

    def _take_other(self, kind: int, length: int, due: float) -> None:
        """Answer what is not data; always raises."""
        if kind in (pdu.RELEASE_RQ, pdu.ABORT):
            if length != 4:
                raise ProtocolError("a release or abort that is not four bytes long")
            self._need(10, due)
            self._at += 10
            if kind == pdu.ABORT:
                raise Ended("aborted by the peer")
            if self._message_from is not None:
                raise ProtocolError("a release request within a message", pdu.UNEXPECTED_PDU)
            self._say_last(pdu.RELEASED)
            raise Ended("released")
        if pdu.ASSOCIATE_RQ <= kind <= pdu.RELEASE_RP:
            raise ProtocolError("a unit that has no place within an association", pdu.UNEXPECTED_PDU)
        raise ProtocolError("a unit of an unknown type", pdu.UNRECOGNIZED_PDU)

    # Bytes ------------------------------------------------------------------------------------------------------------

    def _begun(self) -> bool:
        """Whether a first byte of a unit is here, after waiting for a moment."""
        if self._stopping.is_set() and (self._message_from is None or self._killed.is_set()):
            raise Stopped("the node stops")
        if self._end > self._at:
            return True
        if self._receive():
            return True
        if time.monotonic() - self._heard > self._limits.idle_s:
            raise TimedOut("the peer was silent for too long")
        return False

    def _need(self, count: int, due: float) -> None:
        """Wait until so many bytes lie in the buffer from the place on."""
        if self._end - self._at >= count:
            return
        size = len(self._buffer)
        if self._at + count > size:
            held = self._end - self._at
            if count > size:  # only before the association stands, and bounded by pdu.MOST_REQUEST
                larger = bytearray(count)
                larger[:held] = self._view[self._at : self._end]
                self._buffer, self._view = larger, memoryview(larger)
            else:
                self._view[:held] = self._view[self._at : self._end]
            self._at, self._end = 0, held
        while self._end - self._at < count:
            self._receive()
            now = time.monotonic()
            if now > due:
                raise TimedOut("the peer did not finish a unit in time")
            if now - self._heard > self._limits.idle_s:
                raise TimedOut("the peer was silent for too long")
            if self._killed.is_set() or (self._stopping.is_set() and self._message_from is None):
                raise Stopped("the node stops")

    def _receive(self) -> int:
        """Bytes that came within a tick, as many as there is room for."""
        if self._at == self._end:
            self._at = self._end = 0
        elif self._end == len(self._buffer):
            return 0  # _need has made room wherever more is wanted
        try:
            if _QUICK is not None:
                # A sender that leaves Nagle's algorithm on holds an object's last bytes until those before them are
                # acknowledged, which a receiver may put off by 40 ms; the wish lasts for one acknowledgement only.
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICK, 1)
            count = self._socket.recv_into(self._view[self._end :])
        except TimeoutError:
            return 0
        except OSError as error:
            raise Ended("the connection broke") from error
        if not count:
            raise Ended("the peer closed the connection")
        self._end += count
        self.received += count
        self._heard = time.monotonic()
        return count

    def _see_pace(self) -> None:
        if self._message_from is not None:
            since, had = self._message_from
            late = time.monotonic() - since - 60
            if late > 0 and (self.received - had) < late * self._limits.slowest:
                raise TimedOut("the peer sends a message too slowly")

    def _send(self, data: bytes) -> None:
        due = time.monotonic() + self._limits.idle_s
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except TimeoutError:
                if time.monotonic() > due or self._killed.is_set():
                    raise TimedOut("the peer does not read") from None
            except OSError as error:
                raise Ended("the connection broke") from error

    def _say_last(self, data: bytes) -> None:
        """Send the last word, unless there was one; :meth:`linger` comes next."""
        if self._said_last is not None:
            return
        try:
            self._socket.settimeout(min(2.0, self._limits.artim_s))
            self._socket.sendall(data)
            if not isinstance(self._socket, ssl.SSLSocket):  # which cannot close half
                self._socket.shutdown(socket.SHUT_WR)
            self._said_last = time.monotonic()
        except OSError:
            pass  # gone already: nobody is left to be told
