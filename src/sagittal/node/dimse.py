"""DIMSE command sets as bytes: what a peer asks, and the answers. Standard: PS3.7 6.3, 9.3, 10.3, C and E.

A command set is always implicit VR little endian with elements of group 0000; it is taken apart by hand, with limits,
because an answer waits for it. Answers are built the same way.

>>> asked = read_command(event_report(7, "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1", 2))
>>> asked.field == N_EVENT_REPORT_RQ, asked.message, asked.kind, asked.has_data
(True, 7, 2, True)
>>> answered = read_command(answer(asked, SUCCESS))
>>> answered.field == N_EVENT_REPORT_RQ | RESPONSE, answered.message, answered.status, answered.has_data
(True, 7, 0, False)
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from sagittal.node.pdu import ProtocolError

C_STORE_RQ, C_ECHO_RQ, N_EVENT_REPORT_RQ, N_ACTION_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0100, 0x0130, 0x0FFF
RESPONSE = 0x8000

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
INVALID_ARGUMENT = 0x0115
INVALID_INSTANCE = 0x0117
NO_SUCH_CLASS = 0x0118
CLASS_INSTANCE_CONFLICT = 0x0119
CLASS_NOT_SUPPORTED = 0x0122
NO_SUCH_ACTION = 0x0123
NO_SUCH_EVENT = 0x0113
UNRECOGNIZED_OPERATION = 0x0211
MISTYPED_ARGUMENT = 0x0212
RESOURCE_LIMITATION = 0x0213
#: Of C-STORE, PS3.4 B.2.3.
OUT_OF_RESOURCES = 0xA700
NOT_OF_ITS_CLASS = 0xA900
CANNOT_UNDERSTAND = 0xC000

#: Bytes of a command set; the longest that any service here takes has about 400.
MOST_COMMAND = 2**13
_MOST_ELEMENTS = 64
_NO_DATA = 0x0101

_element = struct.Struct("<HHI")
_number = struct.Struct("<HHIH")
#: PS3.5 9.1, but for leading zeros of a component, which old equipment writes.
_VALID_UID = re.compile(r"[0-2](\.[0-9]{1,62}){1,62}")
_COMMAND_FIELD, _MESSAGE_ID, _ANSWERED_ID, _DATA_TYPE, _STATUS, _COMMENT = 0x100, 0x110, 0x120, 0x800, 0x900, 0x902
_CLASS, _REQUESTED_CLASS, _INSTANCE, _REQUESTED_INSTANCE, _EVENT, _ACTION = 0x2, 0x3, 0x1000, 0x1001, 0x1002, 0x1008


@dataclass(frozen=True)
class Command:
    """A command set, as far as an acceptor looks into it; UIDs are whatever the peer sent.

    Attributes
    ----------
    kind : int
        Event Type ID or Action Type ID.
    """

    field: int
    message: int  # its ID, or in a response the ID of the request that it answers
    has_data: bool
    class_uid: str = ""
    instance_uid: str = ""
    kind: int = 0
    status: int = 0


def is_uid(text: str) -> bool:
    """Whether a text is built as a UID is, PS3.5 9.1.

    >>> is_uid("1.2.840.10008.1.1"), is_uid(".."), is_uid("1.2/3"), is_uid("")
    (True, False, False, False)
    """
    return len(text) <= 64 and _VALID_UID.fullmatch(text) is not None


def read_command(data: bytes) -> Command:
    """Understand a command set.

    Raises
    ------
    ProtocolError
        If it is not one: elements of other groups, lengths beyond its end, none of the elements that every one has.
    """
    found: dict[int, bytes] = {}
    at, end = 0, len(data)
    while at < end:
        if at + 8 > end:
            raise ProtocolError("a command set that ends within an element")
        group, element, length = _element.unpack_from(data, at)
        at += 8
        if group != 0 or at + length > end:
            raise ProtocolError("a command set with an element of another group, or longer than the set")
        if element in found or len(found) >= _MOST_ELEMENTS:
            raise ProtocolError("a command set with an element twice, or too many elements")
        found[element] = data[at : at + length]
        at += length

    def number(element: int, default: int | None = None) -> int:
        value = found.get(element)
        if value is None and default is not None:
            return default
        if value is None or len(value) != 2:
            raise ProtocolError("a command set that lacks a number, or has one of a wrong length")
        return int.from_bytes(value, "little")

    field = number(_COMMAND_FIELD)
    return Command(
        field=field,
        message=number(_ANSWERED_ID if field & RESPONSE or field == C_CANCEL_RQ else _MESSAGE_ID),
        has_data=number(_DATA_TYPE) != _NO_DATA,
        class_uid=_text(found.get(_CLASS) or found.get(_REQUESTED_CLASS) or b""),
        instance_uid=_text(found.get(_INSTANCE) or found.get(_REQUESTED_INSTANCE) or b""),
        kind=number(_ACTION, 0) or number(_EVENT, 0),
        status=number(_STATUS, 0),
    )


def _text(value: bytes) -> str:
    return value[:66].rstrip(b"\0 ").decode("latin-1")


def answer(asked: Command, status: int, comment: str = "") -> bytes:
    """The response to a request without a data set.

    Parameters
    ----------
    status : int
        PS3.7 C, PS3.4 B.2.3.
    comment : str
        Error Comment: at most 64 characters that an engineer at the peer may read; nothing of the object.
    """
    parts = []
    if is_uid(asked.class_uid):
        parts.append(_uid(_CLASS, asked.class_uid))
    parts += [
        _short(_COMMAND_FIELD, asked.field | RESPONSE),
        _short(_ANSWERED_ID, asked.message),
        _short(_DATA_TYPE, _NO_DATA),
        _short(_STATUS, status),
    ]
    if comment:
        text = comment[:64].encode("ascii", "replace")
        parts.append(_element.pack(0, _COMMENT, len(text) + len(text) % 2) + text + b" " * (len(text) % 2))
    if is_uid(asked.instance_uid):
        parts.append(_uid(_INSTANCE, asked.instance_uid))
    if asked.field == N_EVENT_REPORT_RQ:
        parts.append(_short(_EVENT, asked.kind))
    elif asked.field == N_ACTION_RQ:
        parts.append(_short(_ACTION, asked.kind))
    return _set(*parts)


def event_report(message: int, class_uid: str, instance_uid: str, kind: int) -> bytes:
    """An N-EVENT-REPORT-RQ with a data set, PS3.7 10.3.1.1."""
    return _set(
        _uid(_CLASS, class_uid),
        _short(_COMMAND_FIELD, N_EVENT_REPORT_RQ),
        _short(_MESSAGE_ID, message),
        _short(_DATA_TYPE, 0x0001),
        _uid(_INSTANCE, instance_uid),
        _short(_EVENT, kind),
    )


def _set(*elements: bytes) -> bytes:
    body = b"".join(elements)
    return _element.pack(0, 0, 4) + len(body).to_bytes(4, "little") + body


def _short(element: int, value: int) -> bytes:
    return _number.pack(0, element, 2, value)


def _uid(element: int, uid: str) -> bytes:
    value = uid.encode("latin-1")
    return _element.pack(0, element, len(value) + len(value) % 2) + value + b"\0" * (len(value) % 2)
