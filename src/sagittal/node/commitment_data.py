"""The data sets of storage commitment: what is asked, and what is reported. Standard: PS3.4 tables J.3-1 and J.3-2.

Only two encodings are agreed for them, and only five elements matter, so they are taken apart and put together by hand:
without recursion, with every length compared with what is there, and without a library that tells its log what it reads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from sagittal.archive.refused import Refused
from sagittal.guard.limits import MAX_SEQUENCE_DEPTH
from sagittal.node.dimse import is_uid

#: References in one request; the largest studies have about 10,000 objects.
MOST_ITEMS = 20_000
_IMPLICIT = "1.2.840.10008.1.2"
_CLASS, _INSTANCE, _TRANSACTION, _REASON = 0x00081150, 0x00081155, 0x00081195, 0x00081197
_FAILED, _REFERENCED = 0x00081198, 0x00081199
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_head = struct.Struct("<HHI")
_explicit_head = struct.Struct("<HH2sH")

Item = tuple[str, str]  # class, instance


@dataclass(frozen=True)
class Outcome:
    """What is reported of one request.

    Attributes
    ----------
    safe : tuple of (class, instance)
        Objects that are kept.
    failed : tuple of (class, instance, reason)
        Objects that are not, with the reason of PS3.3 C.14.1.1.
    """

    transaction: str
    safe: tuple[Item, ...]
    failed: tuple[tuple[str, str, int], ...] = ()

    @property
    def kind(self) -> int:
        """The Event Type ID: 1 all are safe, 2 there are failures."""
        return 2 if self.failed else 1


def read_action(data: bytes, syntax: str) -> tuple[str, list[Item]]:
    """The transaction and the objects of a request, PS3.4 table J.3-1.

    Parameters
    ----------
    data : bytes
        The data set of an N-ACTION.
    syntax : str
        Its transfer syntax: implicit or explicit little endian.

    Raises
    ------
    Refused
        If it cannot be read, or names too many objects or none.
    """
    implicit = syntax == _IMPLICIT
    transaction, sequences = _read(data, implicit)
    items = list(_references(data, sequences.get(_REFERENCED), implicit))
    if not items:
        raise Refused("unreadable", "no objects are named")
    return transaction, items


def read_report(data: bytes, syntax: str) -> tuple[str, int]:
    """The transaction of a report that another archive sends us, and how many of its objects failed.

    Raises
    ------
    Refused
        If it cannot be read.
    """
    implicit = syntax == _IMPLICIT
    transaction, sequences = _read(data, implicit)
    return transaction, sum(1 for _ in _references(data, sequences.get(_FAILED), implicit))


def _read(data: bytes, implicit: bool) -> tuple[str, dict[int, tuple[int, int]]]:
    """The transaction's UID, and where the sequences lie."""
    transaction, sequences = "", {}
    for tag, start, end in _elements(data, 0, len(data), implicit):
        if tag == _TRANSACTION:
            transaction = _text(data[start:end])
        elif tag in (_FAILED, _REFERENCED):
            sequences[tag] = (start, end)
    if not is_uid(transaction):
        raise Refused("identifiers", "the transaction has no UID")
    return transaction, sequences


def _references(data: bytes, place: tuple[int, int] | None, implicit: bool) -> Iterator[Item]:
    if place is None:
        return
    for count, (tag, start, end) in enumerate(_elements(data, *place, implicit)):
        if tag != _ITEM or count >= MOST_ITEMS:
            raise Refused("too-large", f"more than {MOST_ITEMS} objects, or something else among them")
        found = {
            inner: data[a:b] for inner, a, b in _elements(data, start, end, implicit) if inner in (_CLASS, _INSTANCE)
        }
        item = _text(found.get(_CLASS, b"")), _text(found.get(_INSTANCE, b""))
        if not is_uid(item[0]) or not is_uid(item[1]):
            raise Refused("identifiers", "an object has no UID")
        yield item


def _text(value: bytes) -> str:
    return value[:66].rstrip(b"\0 ").decode("latin-1")


def _elements(data: bytes, at: int, end: int, implicit: bool) -> Iterator[tuple[int, int, int]]:
    """Tag, begin and end of the values of one level."""
    while at < end:
        tag, start, length = _element(data, at, end, implicit)
        if length == _UNDEFINED:
            stop, at = _find_end(data, start, end, implicit)
        else:
            stop = at = start + length
        yield tag, start, stop


def _element(data: bytes, at: int, end: int, implicit: bool) -> tuple[int, int, int]:
    """Tag, begin and length of the value of the element at a place."""
    if at + 8 > end:
        raise Refused("unreadable", "an element is cut off")
    group, element, length = _head.unpack_from(data, at)
    start = at + 8
    if not implicit and group != 0xFFFE:
        _, _, vr, length = _explicit_head.unpack_from(data, at)
        if vr in _LONG:
            if at + 12 > end:
                raise Refused("unreadable", "an element is cut off")
            length, start = int.from_bytes(data[at + 8 : at + 12], "little"), at + 12
    if length != _UNDEFINED and start + length > end:
        raise Refused("unreadable", "an element is longer than the data set")
    return group << 16 | element, start, length


def _find_end(data: bytes, at: int, end: int, implicit: bool) -> tuple[int, int]:
    """Where the value of an element without a length ends, and where the next one begins."""
    depth = 1
    while True:
        tag, start, length = _element(data, at, end, implicit)
        if tag in (_ITEM_END, _SEQUENCE_END):
            depth -= 1
            if not depth:
                return at, start
            at = start
        elif length == _UNDEFINED:
            depth += 1
            if depth > MAX_SEQUENCE_DEPTH:
                raise Refused("too-deep", "sequences nested too deep")
            at = start
        else:
            at = start + length


def write_report(outcome: Outcome, syntax: str) -> bytes:
    """The data set of an N-EVENT-REPORT, PS3.4 table J.3-2.

    Parameters
    ----------
    syntax : str
        Implicit or explicit little endian.
    """
    implicit = syntax == _IMPLICIT
    parts = [_written(_TRANSACTION, b"UI", _padded(outcome.transaction), implicit)]
    if outcome.failed:
        items = (
            _written(_CLASS, b"UI", _padded(uid), implicit)
            + _written(_INSTANCE, b"UI", _padded(instance), implicit)
            + _written(_REASON, b"US", reason.to_bytes(2, "little"), implicit)
            for uid, instance, reason in outcome.failed
        )
        parts.append(_sequence(_FAILED, items, implicit))
    if outcome.safe:
        items = (
            _written(_CLASS, b"UI", _padded(uid), implicit) + _written(_INSTANCE, b"UI", _padded(instance), implicit)
            for uid, instance in outcome.safe
        )
        parts.append(_sequence(_REFERENCED, items, implicit))
    return b"".join(parts)


def _padded(uid: str) -> bytes:
    return uid.encode("ascii") + b"\0" * (len(uid) % 2)


def _sequence(tag: int, items: Iterator[bytes], implicit: bool) -> bytes:
    value = b"".join(_head.pack(0xFFFE, 0xE000, len(item)) + item for item in items)
    return _written(tag, b"SQ", value, implicit)


def _written(tag: int, vr: bytes, value: bytes, implicit: bool) -> bytes:
    if implicit:
        return _head.pack(tag >> 16, tag & 0xFFFF, len(value)) + value
    if vr == b"SQ":
        return _explicit_head.pack(tag >> 16, tag & 0xFFFF, vr, 0) + len(value).to_bytes(4, "little") + value
    return _explicit_head.pack(tag >> 16, tag & 0xFFFF, vr, len(value)) + value
