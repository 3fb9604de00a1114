"""The seven protocol data units of an association, as bytes. Standard: PS3.8 9.3, PS3.8 D and PS3.7 D.3.

What a peer sends is untrusted: every length is compared with the bytes that are there, every list is bounded, and
whatever breaks the rules is a :class:`ProtocolError` with the reason that an A-ABORT gives.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from sagittal.archive.meta import IMPLEMENTATION
from sagittal.errors import ServeError

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)

#: Reasons of an A-ABORT by the service provider, PS3.8 table 9-26.
NOT_SPECIFIED, UNRECOGNIZED_PDU, UNEXPECTED_PDU = 0, 1, 2
UNRECOGNIZED_PARAMETER, UNEXPECTED_PARAMETER, INVALID_PARAMETER = 4, 5, 6

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
#: Made of a random UUID, PS3.5 B.2; it says that this implementation wrote or received a file.
IMPLEMENTATION_CLASS_UID = IMPLEMENTATION
IMPLEMENTATION_VERSION = "SAGITTAL"

#: Bytes of an A-ASSOCIATE-RQ: 128 contexts with 60 transfer syntaxes each have about 200,000.
MOST_REQUEST = 2**18
_MOST_CONTEXTS = 128  # odd numbers of one byte
_MOST_SYNTAXES = 128  # of one context; the standard knows about 50
_MOST_SUB_ITEMS = 600  # of user information: roles and extended negotiations, at most one each per class and context

_head = struct.Struct(">BxI")
_item = struct.Struct(">BxH")
_UID = re.compile(rb"[0-9.]{1,64}")


class ProtocolError(ServeError):
    """A peer broke the rules of the upper layer; the association is aborted.

    Parameters
    ----------
    message : str
        What was found, without anything that the peer chose.
    reason : int
        Reason/Diag. of the A-ABORT, PS3.8 table 9-26.
    """

    def __init__(self, message: str, reason: int = INVALID_PARAMETER) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class ProposedContext:
    """A presentation context that a peer proposes: what it wants to talk about, and in which encodings."""

    id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True)
class AcceptedContext:
    """A presentation context on which both sides agreed."""

    id: int
    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True)
class AssociateRequest:
    """An A-ASSOCIATE-RQ, PS3.8 9.3.2, with the user information that matters to an acceptor."""

    called: str
    calling: str
    contexts: tuple[ProposedContext, ...]
    protocol_version: int = 1
    application_context: str = APPLICATION_CONTEXT
    most_pdu: int = 0  # bytes that the peer takes in one P-DATA-TF; 0: any number
    implementation_class: str = ""
    implementation_version: str = ""
    window: bool = False  # whether it asks for an asynchronous operations window
    roles: dict[str, tuple[bool, bool]] = field(default_factory=dict)  # class -> whether it would be user, provider
    titles: bytes = b" " * 32  # both titles and nothing else, as they came; they are sent back as they are


def read_head(data: memoryview | bytes) -> tuple[int, int]:
    """Type and length of a protocol data unit, from its first six bytes.

    >>> read_head(bytes.fromhex("040000000006"))
    (4, 6)
    """
    kind, length = _head.unpack_from(data)
    return kind, length


def read_request(data: bytes) -> AssociateRequest:
    """Understand an A-ASSOCIATE-RQ.

    Parameters
    ----------
    data : bytes
        All that follows the six bytes of type and length.

    Raises
    ------
    ProtocolError
        If a length points beyond the bytes, something obligatory is missing, or there is more of anything than any
        honest peer sends.
    """
    if len(data) < 68:
        raise ProtocolError(f"an association request of {len(data)} bytes; its fixed part alone has 68")
    contexts: list[ProposedContext] = []
    application = ""
    about: dict[str, object] | None = None
    for kind, value in _items(data, 68, most=_MOST_CONTEXTS + 8):
        if kind == 0x10:
            application = _uid(value)
        elif kind == 0x20:
            contexts.append(_context(value))
        elif kind == 0x50:
            if about is not None:
                raise ProtocolError("an association request with two items of user information", UNEXPECTED_PARAMETER)
            about = _user_information(value)
    if not contexts:
        raise ProtocolError("an association request without a presentation context")
    if len(contexts) > _MOST_CONTEXTS or len({c.id for c in contexts}) != len(contexts):
        raise ProtocolError("an association request with too many presentation contexts, or two of one number")
    return AssociateRequest(
        called=_title(data[4:20]),
        calling=_title(data[20:36]),
        contexts=tuple(contexts),
        protocol_version=int.from_bytes(data[:2], "big"),
        application_context=application,
        titles=data[4:36],
        **(about or {}),  # type: ignore[arg-type]
    )


def _items(data: bytes, at: int, *, most: int) -> list[tuple[int, bytes]]:
    """Type and value of the items from a place on; items of unknown types are for the caller to skip (PS3.8 9.3.1)."""
    found: list[tuple[int, bytes]] = []
    end = len(data)
    while at < end:
        if at + 4 > end:
            raise ProtocolError("an item of an association request that ends within its head")
        kind, length = _item.unpack_from(data, at)
        at += 4
        if at + length > end:
            raise ProtocolError("an item of an association request that is longer than the request")
        found.append((kind, data[at : at + length]))
        if len(found) > most:
            raise ProtocolError(f"an association request with more than {most} items in one list")
        at += length
    return found


def _context(value: bytes) -> ProposedContext:
    if len(value) < 4:
        raise ProtocolError("a presentation context without a number")
    if value[0] % 2 == 0:
        raise ProtocolError("a presentation context with an even number")
    abstract, syntaxes = "", []
    for kind, data in _items(value, 4, most=_MOST_SYNTAXES + 1):
        if kind == 0x30:
            abstract = _uid(data)
        elif kind == 0x40:
            syntaxes.append(_uid(data))
    return ProposedContext(value[0], abstract, tuple(syntaxes))


def _user_information(value: bytes) -> dict[str, object]:
    about: dict[str, object] = {}
    roles: dict[str, tuple[bool, bool]] = {}
    for kind, data in _items(value, 0, most=_MOST_SUB_ITEMS):
        if kind == 0x51 and len(data) == 4:
            about["most_pdu"] = int.from_bytes(data, "big")
        elif kind == 0x52:
            about["implementation_class"] = _uid(data)
        elif kind == 0x53 and len(data) == 4:
            about["window"] = True
        elif kind == 0x54:
            length = int.from_bytes(data[:2], "big")
            if len(data) != 2 + length + 2:
                raise ProtocolError("a role selection whose length does not fit its class")
            roles[_uid(data[2 : 2 + length])] = (data[-2] == 1, data[-1] == 1)
        elif kind == 0x55:
            about["implementation_version"] = _title(data[:16])
        # Extended negotiation (56, 57) may be left without an answer, and so may a user's identity (58): PS3.7 D.3.3
    about["roles"] = roles
    return about


def _uid(value: bytes) -> str:
    """The text of a UID, or nothing where it cannot be one: nobody then knows it, which is what is to be answered."""
    value = value.rstrip(b"\0 ")
    return value.decode("ascii") if _UID.fullmatch(value) else ""


def _title(value: bytes) -> str:
    """The text of an application entity title or a version name; ``?`` where it has other than printable characters."""
    text = value.decode("latin-1").rstrip("\0").strip(" ")
    return "".join(c if " " <= c <= "~" and c != "\\" else "?" for c in text)


def write_accept(
    request: AssociateRequest,
    contexts: dict[int, AcceptedContext | int],
    *,
    most_pdu: int,
    roles: dict[str, tuple[bool, bool]] | None = None,
) -> bytes:
    """An A-ASSOCIATE-AC, PS3.8 9.3.3.

    Parameters
    ----------
    contexts : dict[int, AcceptedContext | int]
        The answer to each proposed context by its number: what was accepted, or the result of a refusal
        (1 by the user, 3 abstract syntax, 4 transfer syntaxes not supported).
    most_pdu : int, bytes
        What we take in one P-DATA-TF.
    roles : dict
        Roles that the peer may have, of the classes for which it asked.
    """
    body = [b"\0\1\0\0", request.titles, bytes(32), _text(0x10, APPLICATION_CONTEXT)]
    for proposed in request.contexts:
        answer = contexts[proposed.id]
        if isinstance(answer, AcceptedContext):
            result, syntax = 0, answer.transfer_syntax
        else:
            result, syntax = answer, "1.2.840.10008.1.2"  # not significant in a refusal
        value = bytes((proposed.id, 0, result, 0)) + _text(0x40, syntax)
        body.append(_item.pack(0x21, len(value)) + value)
    user = [_item.pack(0x51, 4), most_pdu.to_bytes(4, "big"), _text(0x52, IMPLEMENTATION_CLASS_UID)]
    if request.window:
        user.append(_item.pack(0x53, 4) + b"\0\1\0\1")  # one operation at a time, each way
    for uid, (as_user, as_provider) in (roles or {}).items():
        name = uid.encode("ascii")
        value = len(name).to_bytes(2, "big") + name + bytes((as_user, as_provider))
        user.append(_item.pack(0x54, len(value)) + value)
    user.append(_text(0x55, IMPLEMENTATION_VERSION))
    about = b"".join(user)
    body.append(_item.pack(0x50, len(about)) + about)
    whole = b"".join(body)
    return _head.pack(ASSOCIATE_AC, len(whole)) + whole


def _text(kind: int, text: str) -> bytes:
    value = text.encode("ascii")
    return _item.pack(kind, len(value)) + value


def write_request(*, called: str, calling: str, context: ProposedContext, as_provider: bool, most_pdu: int) -> bytes:
    """An A-ASSOCIATE-RQ of our own, PS3.8 9.3.2, for one presentation context.

    Parameters
    ----------
    called, calling : str
        Titles of the peer and of us.
    as_provider : bool
        Whether we, who open the association, are the provider of the class (PS3.7 D.3.3.4).
    """
    offered = b"".join(_text(0x40, syntax) for syntax in context.transfer_syntaxes)
    value = bytes((context.id, 0, 0, 0)) + _text(0x30, context.abstract_syntax) + offered
    uid = context.abstract_syntax.encode("ascii")
    role = len(uid).to_bytes(2, "big") + uid + bytes((not as_provider, as_provider))
    about = (
        _item.pack(0x51, 4)
        + most_pdu.to_bytes(4, "big")
        + _text(0x52, IMPLEMENTATION_CLASS_UID)
        + _item.pack(0x54, len(role))
        + role
        + _text(0x55, IMPLEMENTATION_VERSION)
    )
    titles = called.encode("ascii").ljust(16) + calling.encode("ascii").ljust(16)
    body = b"\0\1\0\0" + titles + bytes(32) + _text(0x10, APPLICATION_CONTEXT)
    body += _item.pack(0x20, len(value)) + value + _item.pack(0x50, len(about)) + about
    return _head.pack(ASSOCIATE_RQ, len(body)) + body


def read_accept(data: bytes, proposed: ProposedContext) -> tuple[AcceptedContext | None, int]:
    """What a peer accepted of our one context, and the longest P-DATA-TF that it takes; None if it did not.

    Raises
    ------
    ProtocolError
        If it is no A-ASSOCIATE-AC.
    """
    agreed, most_pdu = None, 0
    for kind, value in _items(data, 68, most=_MOST_CONTEXTS + 8):
        if kind == 0x21 and len(value) >= 4 and value[0] == proposed.id and value[2] == 0:
            syntaxes = [_uid(text) for inner, text in _items(value, 4, most=1) if inner == 0x40]
            if syntaxes and syntaxes[0] in proposed.transfer_syntaxes:
                agreed = AcceptedContext(proposed.id, proposed.abstract_syntax, syntaxes[0])
        elif kind == 0x50:
            most_pdu = int(str(_user_information(value).get("most_pdu", 0)))
    return agreed, most_pdu


def write_reject(result: int, source: int, reason: int) -> bytes:
    """An A-ASSOCIATE-RJ, PS3.8 9.3.4.

    >>> write_reject(2, 3, 2).hex()
    '03000000000400020302'
    """
    return _head.pack(ASSOCIATE_RJ, 4) + bytes((0, result, source, reason))


def write_abort(source: int, reason: int) -> bytes:
    """An A-ABORT, PS3.8 9.3.8: source 0 the service's user, 2 its provider.

    >>> write_abort(2, 6).hex()
    '07000000000400000206'
    """
    return _head.pack(ABORT, 4) + bytes((0, 0, source, reason))


#: An A-RELEASE-RQ, PS3.8 9.3.6.
RELEASE = _head.pack(RELEASE_RQ, 4) + bytes(4)
#: An A-RELEASE-RP, PS3.8 9.3.7.
RELEASED = _head.pack(RELEASE_RP, 4) + bytes(4)


def write_data(context: int, command: bytes, data: bytes = b"", *, most_pdu: int = 0) -> bytes:
    """A DIMSE message as P-DATA-TF units, PS3.8 9.3.5 and annex E: its command, then its data set if there is one.

    Parameters
    ----------
    most_pdu : int, bytes
        What the peer takes in one unit; 0 stands for any number.
    """
    room = max(1, min(most_pdu or 2**16, 2**16) - 6)
    units = []
    for flag, whole in ((1, command), (0, data)):
        for at in range(0, len(whole), room):
            piece = whole[at : at + room]
            last = 2 if at + room >= len(whole) else 0
            units.append(
                _head.pack(P_DATA, len(piece) + 6) + struct.pack(">IBB", len(piece) + 2, context, flag | last) + piece
            )
    return b"".join(units)


def read_fragments(data: memoryview) -> list[tuple[int, int, memoryview]]:
    """The presentation data values of a P-DATA-TF: number of the context, message control header, bytes.

    The bytes are views into `data`, nothing is copied.

    Raises
    ------
    ProtocolError
        If the lengths within do not add up.

    Examples
    --------
    >>> [(c, h, bytes(v)) for c, h, v in read_fragments(memoryview(b"\\0\\0\\0\\4\\1\\2ab"))]
    [(1, 2, b'ab')]
    """
    found = []
    at, end = 0, len(data)
    while at < end:
        if at + 6 > end:
            raise ProtocolError("a presentation data value that ends within its head")
        length = int.from_bytes(data[at : at + 4], "big")
        if length < 2 or at + 4 + length > end:
            raise ProtocolError("a presentation data value whose length does not fit its unit")
        found.append((data[at + 4], data[at + 5], data[at + 6 : at + 4 + length]))
        at += 4 + length
    if not found:
        raise ProtocolError("a P-DATA-TF without a presentation data value")
    return found
