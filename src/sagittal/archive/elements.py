"""Where the elements of a DICOM file lie: found in one pass without trust, understood only where the index asks.

Source: PS3.5 7.1 (elements), 7.5 (sequences), A.4 (encapsulated pixels), PS3.10 7.1 (file meta information). No
recursion, every length compared with what there is, a limit on depth and number. The header of a CT slice takes a tenth
of a millisecond, and its pixels are stepped over.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from functools import lru_cache

from sagittal.archive.refused import Refused
from sagittal.guard.limits import MAX_SEQUENCE_DEPTH

IMPLICIT = "1.2.840.10008.1.2"
BIG = "1.2.840.10008.1.2.2"
#: Elements of one object, those in sequences included; a segmentation of 5,000 frames has 300,000.
MAX_ELEMENTS = 2_000_000
SHARED_GROUPS = 0x52009229
#: Elements outside of sequences; a rich header has three hundred.
MAX_TOP = 20_000
PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_UNDEFINED = 0xFFFFFFFF
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT = frozenset(
    {
        *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL"),
        *(b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
    }
)
_UNTOLD = frozenset({b"", b"UN"})
_ITEM, _ITEM_END, _END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
#: Of both byte orders: tag halves and a length, value representation and a short length, a long length.
_ORDERS = {
    order: (
        struct.Struct(order + "HHI").unpack_from,
        struct.Struct(order + "HH2sH").unpack_from,
        struct.Struct(order + "I").unpack_from,
    )
    for order in "<>"
}

Bytes = bytes | mmap.mmap


class More(Exception):  # noqa: N818
    """The header goes on beyond the bytes at hand."""


@dataclass(slots=True)
class Elements:
    """Where the elements of an object lie.

    Attributes
    ----------
    syntax : str
        Transfer syntax UID.
    start : int
        Where the data set begins in the file.
    meta, places : dict of int to (bytes, int, int)
        Tag -> value representation (empty in implicit syntax), offset and length of the value; -1 where a sequence or
        encapsulated pixels have no defined length. At the top level only.
    data : bytes or mmap
        What they lie in.
    """

    syntax: str
    start: int
    data: Bytes
    meta: dict[int, tuple[bytes, int, int]] = field(default_factory=dict)
    places: dict[int, tuple[bytes, int, int]] = field(default_factory=dict)

    @property
    def order(self) -> str:
        """Byte order, as struct writes it."""
        return ">" if self.syntax == BIG else "<"

    def raw(self, tag: int, most: int = 65536) -> bytes:
        """The bytes of an element's value; empty where there is none, or where it is longer than `most`."""
        place = self.places.get(tag)
        if place is None or not 0 < place[2] <= most:
            return b""
        return self.data[place[1] : place[1] + place[2]]

    def detach(self) -> None:
        """Keep the short values and let go of what they lay in."""
        kept, places = bytearray(), {}
        for tag, (vr, start, length) in self.places.items():
            most = 2**18 if tag == SHARED_GROUPS else 2**16
            size = most if length < 0 and tag == SHARED_GROUPS else length
            if 0 < size <= most and len(kept) < 2**24:
                places[tag] = (vr, len(kept), length)
                kept += self.data[start : start + size]
            else:
                places[tag] = (vr, 0, 0)
        self.data, self.places, self.meta = bytes(kept), places, {}

    def raw_meta(self, tag: int) -> bytes:
        """As :meth:`raw`, of the file meta information."""
        place = self.meta.get(tag)
        return b"" if place is None or place[2] > 1024 else self.data[place[1] : place[1] + place[2]]


def find_elements(data: Bytes, size: int) -> Elements:
    """Find the elements of a file of PS3.10.

    Parameters
    ----------
    data : bytes or mmap
        The beginning of the file, or all of it.
    size : int
        Bytes of the whole file.

    Raises
    ------
    More
        If `data` ends before the pixel data, or before the end where there is none.
    Refused
        If it is no DICOM file, is cut off, or is nested too deep.
    """
    found = find_meta(data, size)
    if found.syntax not in _DEFLATED:
        find_data_set(found, size)
    return found


def find_meta(data: Bytes, size: int) -> Elements:
    """As :func:`find_elements`, the file meta information alone: the data set is not looked at."""
    try:
        return _find_meta(data, size)
    except (struct.error, IndexError) as error:
        if len(data) < size:
            raise More from error
        raise Refused("unreadable", "the file is cut off in its file meta information") from error


def find_data_set(found: Elements, size: int) -> None:
    """Find the elements of a data set, from where it begins; those found before an exception are there.

    Parameters
    ----------
    found : Elements
        Its places are filled in.
    size : int
        Bytes of the whole file.

    Raises
    ------
    More, Refused
        As :func:`find_elements`.
    """
    try:
        _walk(found, found.start, size)
    except (struct.error, IndexError) as error:
        if len(found.data) < size:
            raise More from error
        raise Refused("unreadable", "the file is cut off in its header") from error


def _find_meta(data: Bytes, size: int) -> Elements:
    if data[128:132] != b"DICM":
        if len(data) < min(size, 132):
            raise More
        raise Refused("unreadable", "not a DICOM file: the mark DICM at byte 128 is missing")
    meta: dict[int, tuple[bytes, int, int]] = {}
    at = 132
    _, short, long = _ORDERS["<"]
    while at < size:
        group, element, vr, length = short(data, at)
        if group != 2:
            break
        start = at + 8
        if vr in _LONG:
            (length,) = long(data, start)
            start += 4
        elif vr not in _SHORT:
            raise Refused("unreadable", "the file meta information is damaged: an unknown value representation")
        at = start + length
        if at > size or length > 2**20:
            raise Refused("unreadable", "the file meta information is damaged: a length reaches past its end")
        if at > len(data):
            raise More
        meta[0x00020000 | element] = (vr, start, length)
    _, start, length = meta.get(0x00020010, (b"", 0, 0))
    syntax = data[start : start + length].decode("ascii", "replace").strip(" \0")
    if not syntax:
        raise Refused("transfer-syntax", "the file names no transfer syntax")
    return Elements(syntax, at, data, meta)


#: Syntaxes whose data sets are not walked: they are refused, with the reason.
_DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})


def _walk(found: Elements, at: int, size: int) -> None:
    data, places = found.data, found.places
    implicit = found.syntax == IMPLICIT
    plain, short, long = _ORDERS[found.order]
    item = b"\xff\xfe\xe0\x00" if found.order == ">" else b"\xfe\xff\x00\xe0"
    left = [MAX_ELEMENTS]
    known = len(data)
    while at < size:
        vr = b""
        if implicit:
            group, element, length = plain(data, at)
            start = at + 8
        else:
            group, element, vr, length = short(data, at)
            start = at + 8
            if vr in _LONG:
                (length,) = long(data, start)
                start += 4
            elif vr not in _SHORT:
                if _only_zeros(data, at, size):
                    return
                raise Refused("unreadable", "the header is damaged: an unknown value representation")
        tag = group << 16 | element
        if group < 3 or group == 0xFFFE:  # commands and file meta information; ends of sequences
            if _only_zeros(data, at, size):
                return
            raise Refused("unreadable", "the header is damaged: an element that does not belong into a data set")
        left[0] -= 1
        if tag in PIXEL_TAGS:
            if length == _UNDEFINED:
                places[tag] = (vr, start, -1)
            elif start + length > size:
                raise Refused("unreadable", "cut off: the pixel data reaches past the end of the file")
            else:
                places[tag] = (vr, start, length)
            return
        if length == _UNDEFINED:
            if vr == b"UN":  # implicit little endian inside (PS3.5 6.2.2)
                end = _sequence_end(data, start, 0, True, "<", left)
            else:
                end = _sequence_end(data, start, 0, implicit, found.order, left)
            places[tag] = (b"SQ", start, -1)
            at = end
        else:
            end = start + length
            if end > size:
                raise Refused(
                    "unreadable", "cut off: an element before the pixel data reaches past the end of the file"
                )
            if length >= 8 and (vr == b"SQ" or (vr in _UNTOLD and data[start : start + 4] == item)):
                if end > known:
                    raise More
                sure = vr == b"SQ" or tag in sequences()
                _check_depth(data, start, end, implicit or vr == b"UN", found.order, left, sure=sure)
            places[tag] = (vr, start, length)
            at = end
        if left[0] < 0 or len(places) > MAX_TOP:
            raise Refused("too-deep", "more elements than any object has")


def _only_zeros(data: Bytes, at: int, size: int) -> bool:
    """Whether nothing but padding is left; some writers fill the last block of a disk."""
    return size - at <= 65536 and len(data) >= size and not data[at:size].strip(b"\0")


@lru_cache(maxsize=1)
def sequences() -> frozenset[int]:
    """Tags that are sequences by the standard's dictionary: all that tells them where no value representation is written."""
    from pydicom._dicom_dict import DicomDictionary

    return frozenset(tag for tag, entry in DicomDictionary.items() if entry[0] == "SQ")


def _check_depth(data: Bytes, start: int, end: int, implicit: bool, order: str, left: list[int], *, sure: bool) -> None:
    """Walk a sequence of defined length for its depth; one that only looks like a sequence may be anything."""
    try:
        _sequence_end(data, start, end, implicit, order, left)
    except Refused as error:
        if sure or error.code == "too-deep":
            raise
    except struct.error:
        if sure:
            raise


def _sequence_end(data: Bytes, at: int, end: int, implicit: bool, order: str, left: list[int]) -> int:
    """Where a sequence ends, its delimiter included; `end` is 0 where only a delimiter says so."""
    plain, short, long = _ORDERS[order]
    ends = [end]  # for each open sequence or item: where it ends, 0 where a delimiter says so
    count = 0
    while True:
        while ends and ends[-1] and at >= ends[-1]:
            ends.pop()
        if not ends:
            break
        count += 1
        if count > left[0]:
            raise Refused("too-deep", f"more than {MAX_ELEMENTS:,} elements")
        group, element, length = plain(data, at)
        if group == 0xFFFE:
            at += 8
            if element == 0xE000:
                ends.append(0 if length == _UNDEFINED else at + length)
            else:
                ends.pop()
        else:
            vr = b""
            if not implicit:
                _, _, vr, length = short(data, at)
                if vr in _LONG:
                    (length,) = long(data, at + 8)
                    at += 4
                elif vr not in _SHORT:
                    raise Refused("unreadable", "the header is damaged: an unknown value representation in a sequence")
            at += 8
            if implicit and length >= 8 and (group << 16 | element) in sequences():
                vr = b"SQ"
            if length == _UNDEFINED and vr == b"UN":  # implicit little endian inside, and nothing explicit in there
                left[0] -= count
                at, count = _sequence_end(data, at, 0, True, "<", left), 0
            elif length == _UNDEFINED:
                ends.append(0)
            elif vr == b"SQ":
                ends.append(at + length)
            else:
                at += length
        if len(ends) > 2 * MAX_SEQUENCE_DEPTH:  # a sequence and its item are one level
            raise Refused("too-deep", f"sequences are nested deeper than {MAX_SEQUENCE_DEPTH} levels")
    left[0] -= count
    return at


def check_fragments(found: Elements, start: int, size: int) -> int:
    """The number of fragments of encapsulated pixels, walked to their end (PS3.5 A.4).

    Raises
    ------
    More
        If the bytes at hand end before.
    Refused
        If the fragments are cut off or damaged.
    """
    data, at, count = found.data, start, 0
    plain = _ORDERS["<"][0]
    try:
        while True:
            group, element, length = plain(data, at)
            tag = group << 16 | element
            if tag == _END:
                return count
            if tag != _ITEM or length == _UNDEFINED or at + 8 + length > size:
                raise Refused("pixel-length", "the compressed pixel data is damaged or cut off")
            at += 8 + length
            count += 1
            if count > MAX_ELEMENTS:
                raise Refused("too-deep", f"more than {MAX_ELEMENTS:,} fragments of compressed pixel data")
    except struct.error as error:
        if len(data) < size:
            raise More from error
        raise Refused("pixel-length", "the compressed pixel data is cut off") from error
