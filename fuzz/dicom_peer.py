"""A sender of DICOM made of nothing but a socket, which can also break every rule; written apart from the product's code.

The tests, ``fuzz/pdu.py`` and ``benchmarks/cstore.py`` share it.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

CT = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
COMMITMENT = "1.2.840.10008.1.20.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"


def item(kind: int, value: bytes) -> bytes:
    """An item of an association request."""
    return struct.pack(">BBH", kind, 0, len(value)) + value


def unit(kind: int, body: bytes, length: int | None = None) -> bytes:
    """A protocol data unit; `length` may be a lie."""
    return struct.pack(">BBI", kind, 0, len(body) if length is None else length) + body


def context(number: int, abstract: str, syntaxes: tuple[str, ...] = (IMPLICIT,)) -> bytes:
    """A proposed presentation context."""
    value = bytes((number, 0, 0, 0)) + item(0x30, abstract.encode())
    return item(0x20, value + b"".join(item(0x40, s.encode()) for s in syntaxes))


def request(
    *contexts: bytes,
    called: str = "SAGITTAL",
    calling: str = "TEST",
    most_pdu: int = 0,
    version: int = 1,
    application: str = "1.2.840.10008.3.1.1.1",
    user: bytes = b"",
) -> bytes:
    """An A-ASSOCIATE-RQ."""
    about = item(0x51, struct.pack(">I", most_pdu)) + item(0x52, b"1.2.3.4") + user
    fixed = struct.pack(">H", version) + b"\0\0" + called.encode().ljust(16) + calling.encode().ljust(16) + bytes(32)
    return unit(1, fixed + item(0x10, application.encode()) + b"".join(contexts) + item(0x50, about))


def element(number: int, value: bytes) -> bytes:
    """An element of a command set; `value` is made even."""
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHI", 0, number, len(value)) + value


def short(number: int, value: int) -> bytes:
    """An element of a command set with a number of 16 bits."""
    return element(number, struct.pack("<H", value))


def command(*elements: bytes) -> bytes:
    """A command set with its length."""
    body = b"".join(elements)
    return element(0, struct.pack("<I", len(body))) + body


def store_command(uid: str, *, sop_class: str = CT, message: int = 1) -> bytes:
    """A C-STORE-RQ."""
    return command(
        element(2, sop_class.encode()),
        short(0x100, 1),
        short(0x110, message),
        short(0x700, 0),
        short(0x800, 1),
        element(0x1000, uid.encode()),
    )


ECHO = command(element(2, VERIFICATION.encode()), short(0x100, 0x30), short(0x110, 1), short(0x800, 0x101))


def data(number: int, header: int, piece: bytes | memoryview) -> bytes:
    """A P-DATA-TF with one presentation data value."""
    return unit(4, struct.pack(">IBB", len(piece) + 2, number, header) + bytes(piece))


def data_units(number: int, dataset: bytes, size: int) -> bytes:
    """A data set as P-DATA-TF units of at most `size` bytes."""
    room, units = size - 6, []
    for at in range(0, len(dataset), room):
        last = 2 if at + room >= len(dataset) else 0
        units.append(data(number, last, memoryview(dataset)[at : at + room]))
    return b"".join(units)


class Peer:
    """One connection to a node."""

    def __init__(self, port: int, *, host: str = "127.0.0.1", timeout_s: float = 20.0) -> None:
        self.socket = socket.create_connection((host, port), timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.most_pdu = 16384
        self.accepted: dict[int, tuple[int, str]] = {}

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, content: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(content)

    def read(self, count: int) -> bytes:
        """So many bytes, or fewer where the node closes."""
        parts = bytearray()
        while len(parts) < count:
            piece = self.socket.recv(count - len(parts))
            if not piece:
                break
            parts += piece
        return bytes(parts)

    def read_unit(self) -> tuple[int, bytes]:
        """Type and content of the next unit; (0, b"") where the node closed."""
        head = self.read(6)
        if len(head) < 6:
            return 0, b""
        kind, _, length = struct.unpack(">BBI", head)
        return kind, self.read(length)

    def associate(self, *contexts: bytes, **fields: object) -> bool:
        """Open an association; whether the node accepts it. Fills :attr:`accepted`: context -> (result, syntax)."""
        self.send(request(*contexts, **fields))  # type: ignore[arg-type]
        kind, body = self.read_unit()
        self.answer = body
        if kind != 2:
            return False
        self._understand(body)
        return True

    def _understand(self, body: bytes) -> None:
        at = 68
        while at < len(body):
            kind, _, length = struct.unpack_from(">BBH", body, at)
            value = body[at + 4 : at + 4 + length]
            if kind == 0x21:
                self.accepted[value[0]] = (value[2], value[8:].decode())
            elif kind == 0x50:
                self.most_pdu = struct.unpack_from(">I", value, 4)[0]
            at += 4 + length

    def store(self, number: int, dataset: bytes, uid: str, *, sop_class: str = CT, size: int = 0) -> int:
        """Send an object; the status of the answer."""
        size = size or min(self.most_pdu or 131072, 131072)
        self.send(data(number, 3, store_command(uid, sop_class=sop_class)) + data_units(number, dataset, size))
        return self.status()

    def status(self) -> int:
        """The status of the next answer."""
        return struct.unpack("<H", self.elements()[0x900])[0]

    def elements(self) -> dict[int, bytes]:
        """The elements of the next answer's command set."""
        kind, body = self.read_unit()
        if kind != 4:
            raise ConnectionError(f"a unit of type {kind} in place of an answer: {body.hex()}")
        found, at = {}, 6
        while at < len(body):
            _, number, length = struct.unpack_from("<HHI", body, at)
            found[number] = body[at + 8 : at + 8 + length]
            at += 8 + length
        return found

    def release(self) -> bool:
        """Release the association; whether the node agrees."""
        self.send(unit(5, bytes(4)))
        return self.read_unit()[0] == 6


def bare_data_set(path: Path) -> tuple[bytes, str, str, str]:
    """The data set of a DICOM file as it lies there, its class, instance and transfer syntax."""
    import pydicom

    content = path.read_bytes()
    meta = pydicom.filereader.read_file_meta_info(path)
    at = 132 + 12 + meta.FileMetaInformationGroupLength
    return content[at:], meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID
