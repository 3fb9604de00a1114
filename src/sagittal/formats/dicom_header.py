"""The header of an ordinary DICOM file, found element by element and understood only where it is asked.

pydicom takes a millisecond for a header of 150 elements, most of it for elements that nobody asks for; here it is a tenth.
Values are made by pydicom's own converters, so that they are its values; whatever is unusual (big endian, deflated,
elements out of order, unknown value representations) is left to pydicom as a whole.
"""

from __future__ import annotations

import os
import struct
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset as Header
from pydicom.tag import BaseTag, Tag
from pydicom.values import convert_value

from sagittal.formats.codecs import COMPRESSED
from sagittal.formats.dicom_file import EXPLICIT_LITTLE, IMPLICIT, open_dicom
from sagittal.guard.limits import MAX_SEQUENCE_DEPTH

PIXEL_DATA = 0x7FE00010
_FLOAT_PIXELS = 0x7FE00008  # before it lie a group length and offset tables of the pixels
_CHARACTER_SET = 0x00080005
_UNDEFINED = 0xFFFFFFFF
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT = frozenset(
    {
        *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL"),
        *(b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
    }
)
#: Value representations that convert by themselves, without the rest of the data set.
_NUMBERS = frozenset({"FD", "FL", "SL", "SS", "UL", "US"})
_CODES = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI"})
_TEXTS = frozenset({"LO", "SH"})
_SIMPLE = _NUMBERS | _CODES | _TEXTS
_PLAIN_SETS = frozenset({b"", b"ISO_IR 6", b"ISO_IR 100", b"ISO_IR 192"})
#: Bytes that are read first, and most of a header that is read at all; a longer one is pydicom's.
_FIRST, _MOST = 2**14, 2**26
_explicit = struct.Struct("<I2sH").unpack_from
_implicit = struct.Struct("<II").unpack_from
_four = struct.Struct("<I").unpack_from

#: Values of raw elements, shared by the files of a series: most of them are the same in all.
Memo = dict[tuple[int, bytes, bytes], Any]


class _Unusual(Exception):  # noqa: N818
    """Left to pydicom."""


class _More(Exception):  # noqa: N818
    """The header goes on beyond what has been read."""


def open_header(path: Path, memo: Memo) -> Header:
    """The header of a file with pixels; its pixels are found but not read.

    Parameters
    ----------
    memo : Memo
        One dictionary for the files of a series.

    Returns
    -------
    LazyHeader, or what :func:`sagittal.formats.dicom_file.open_dicom` gives where the file is unusual.

    Raises
    ------
    ReadError
        As :func:`sagittal.formats.dicom_file.open_dicom`.
    """
    try:
        return _lazy(path, memo)
    except (_Unusual, _More, OSError, ValueError, struct.error):
        return open_dicom(path)  # which says what is wrong


def _lazy(path: Path, memo: Memo) -> LazyHeader:
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        size = os.fstat(file).st_size
        data, wanted = b"", _FIRST
        while True:
            while len(data) < min(wanted, size):
                piece = os.read(file, wanted - len(data))
                if not piece:
                    raise _Unusual
                data += piece
            try:
                return _indexed(path, data, size, memo)
            except (_More, struct.error, IndexError) as error:
                if wanted >= min(size, _MOST):
                    raise _Unusual from error
                wanted *= 8
    finally:
        os.close(file)


def _indexed(path: Path, data: bytes, size: int, memo: Memo) -> LazyHeader:
    syntax, at = _syntax(data)
    implicit = syntax == IMPLICIT
    if not implicit and syntax != EXPLICIT_LITTLE and syntax not in COMPRESSED:
        raise _Unusual
    index: dict[int, tuple[bytes, int, int]] = {}
    last = 0x00020000
    while True:
        vr = b""
        if implicit:
            key, length = _implicit(data, at)
            start = at + 8
        else:
            key, vr, length = _explicit(data, at)
            start = at + 8
            if vr in _LONG:
                (length,) = _four(data, start)
                start += 4
            elif vr not in _SHORT:
                raise _Unusual
        tag = (key & 0xFFFF) << 16 | key >> 16
        if tag <= last or tag < 0x00080000:
            raise _Unusual
        if tag >= _FLOAT_PIXELS:
            break
        last = tag
        if length == _UNDEFINED:
            if vr == b"UN":  # implicit inside
                raise _Unusual
            length = _sequence_end(data, start, 0, implicit) - start
            vr = b"SQ"
        elif vr == b"SQ" and length:
            _check_depth(data, start, length, memo)
        index[tag] = (vr, start, length)
        at = start + length
        if at + 12 > len(data):
            raise _More
    if tag != PIXEL_DATA or (not implicit and vr not in {b"OB", b"OW"}) or not index:
        raise _Unusual
    if (length == _UNDEFINED) != (syntax in COMPRESSED):
        raise _Unusual
    length = size - start if length == _UNDEFINED else min(length, size - start)
    return LazyHeader(path, data[:at], index, (syntax, start, length, vr), memo)


def _syntax(data: bytes) -> tuple[str, int]:
    """The transfer syntax in the file meta information, and where the data set begins."""
    if data[128:132] != b"DICM":
        raise _Unusual
    syntax, at = b"", 132
    while True:
        key, vr, length = _explicit(data, at)
        if key & 0xFFFF != 2:
            return syntax.decode("ascii").strip(" \0"), at
        start = at + 8
        if vr in _LONG:
            (length,) = _four(data, start)
            start += 4
        elif vr not in _SHORT:
            raise _Unusual
        at = start + length
        if at + 12 > len(data):
            raise _More
        if key == 0x00100002:
            syntax = data[start:at]


def _check_depth(data: bytes, start: int, length: int, memo: Memo) -> None:
    """Walk a sequence of defined length, for its depth; the same bytes only once in a series."""
    raw = data[start : start + length]
    if len(raw) < length:
        raise _More
    if (0, raw, b"") not in memo:
        _sequence_end(raw, 0, length, False)
        memo[0, raw, b""] = None


def _sequence_end(data: bytes, at: int, end: int, implicit: bool) -> int:
    """Where a sequence that begins at `at` ends, its delimiter included; `end` is 0 where only a delimiter says so."""
    ends = [end]  # for each open sequence or item: where it ends, 0 where a delimiter says so
    while True:
        while ends and ends[-1] and at >= ends[-1]:
            ends.pop()
        if not ends:
            return at
        key, length = _implicit(data, at)
        at += 8
        if key & 0xFFFF == 0xFFFE:
            if key == 0xE000FFFE:
                ends.append(0 if length == _UNDEFINED else at + length)
            else:
                ends.pop()
        else:
            vr = b""
            if not implicit:
                _, vr, length = _explicit(data, at - 8)
                if vr in _LONG:
                    (length,) = _four(data, at)
                    at += 4
                elif vr not in _SHORT:
                    raise _Unusual
            if length == _UNDEFINED:
                ends.append(0)
            elif vr == b"SQ":
                ends.append(at + length)
            else:
                at += length
        if len(ends) > 2 * MAX_SEQUENCE_DEPTH:
            raise _Unusual  # open_dicom refuses it


class LazyHeader(Header):
    """A pydicom data set whose elements are converted when asked; anything but asking for one loads it in full.

    Derived from pydicom's so that everything that works on one works here: `_dict`, where it keeps its elements, is
    filled by reading the file when it is first touched.

    Attributes
    ----------
    path : Path
    syntax : str
        Transfer syntax UID.
    pixels_at, pixels_length : int
        Where the value of PixelData begins in the file, and its length (to the end of the file if compressed).
    pixels_vr : bytes
        Empty in implicit syntax.
    """

    def __init__(
        self,
        path: Path,
        data: bytes,
        index: dict[int, tuple[bytes, int, int]],
        pixels: tuple[str, int, int, bytes],
        memo: Memo,
    ) -> None:
        syntax, start, length, vr = pixels
        self.__dict__.update(
            path=path, syntax=syntax, pixels_at=start, pixels_length=length, pixels_vr=vr,
            _data=data, _index=index, _memo=memo,
        )  # fmt: skip

    @property
    def _dict(self) -> MutableMapping[BaseTag, Any]:
        if "_full" not in self.__dict__:
            full = open_dicom(self.path)
            self.__dict__["_full"] = full._dict
            for name, value in full.__dict__.items():
                if name != "_dict":
                    self.__dict__.setdefault(name, value)
        elements: MutableMapping[BaseTag, Any] = self.__dict__["_full"]
        return elements

    @_dict.setter
    def _dict(self, elements: MutableMapping[BaseTag, Any]) -> None:
        self.__dict__["_full"] = elements

    @property
    def loaded(self) -> bool:
        """Whether it is as pydicom reads it."""
        return "_full" in self.__dict__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not self.loaded:
            tag = tag_for_keyword(name)
            if tag is None:
                _ = self._dict
                return getattr(self, name)
            if tag not in self:
                raise AttributeError(name)
            if tag != PIXEL_DATA:
                return self._value(tag)
        return super().__getattr__(name)

    def __contains__(self, name: Any) -> bool:
        if self.loaded:
            return super().__contains__(name)
        tag = tag_for_keyword(name) if isinstance(name, str) else None
        if tag is None:
            try:
                tag = int(Tag(name))
            except (ValueError, OverflowError, TypeError):
                return False
        return tag in self._index or tag == PIXEL_DATA

    def get(self, key: Any, default: Any = None) -> Any:
        """As pydicom's: the value of a keyword, the element of a tag."""
        if not self.loaded and isinstance(key, str):
            tag = tag_for_keyword(key)
            if tag is not None and tag != PIXEL_DATA:
                return self._value(tag) if tag in self._index else default
        return super().get(key, default)

    def __getitem__(self, key: Any) -> Any:
        if not self.loaded and not isinstance(key, slice):
            tag = Tag(key)
            if tag in self._index:
                return self._element(tag)
        return super().__getitem__(key)

    def _element(self, tag: int) -> DataElement:
        vr = self._representation(tag)
        if vr in _SIMPLE:
            return DataElement(BaseTag(tag), vr, self._value(tag), already_converted=True)
        return self._head()[tag]

    def _value(self, tag: int) -> Any:
        _, start, length = self._index[tag]
        raw = self._data[start : start + length]
        key = (tag, raw, self._context())
        try:
            return self._memo[key]
        except KeyError:
            value = self._converted(tag, raw)
            if not tag >> 16 & 1:  # what a private element is depends on others
                self._memo[key] = value
            return value

    def _converted(self, tag: int, raw: bytes) -> Any:
        vr = self._representation(tag)
        simple = vr in _NUMBERS or (raw.isascii() and (vr in _CODES or (vr in _TEXTS and self._plain())))
        if not simple:
            return self._head()[tag].value
        return convert_value(vr, RawDataElement(BaseTag(tag), vr, len(raw), raw, 0, False, True))

    def _plain(self) -> bool:
        """Whether text in ASCII is just that."""
        _, start, length = self._index.get(_CHARACTER_SET, (b"", 0, 0))
        return self._data[start : start + length].strip() in _PLAIN_SETS

    def _representation(self, tag: int) -> str:
        vr: str = self._index[tag][0].decode()
        if vr or tag >> 16 & 1:
            return vr
        try:
            return str(dictionary_VR(tag))
        except KeyError:
            return ""

    def _context(self) -> bytes:
        """What the meaning of other elements depends on: the character set, and the sign of pixels in implicit syntax."""
        if "_told" not in self.__dict__:
            pieces = [self._index.get(tag, (b"", 0, 0)) for tag in (_CHARACTER_SET, 0x00280103)]
            told = [self.syntax.encode(), *(self._data[start : start + length] for _, start, length in pieces)]
            self.__dict__["_told"] = b"\\".join(told)
        context: bytes = self.__dict__["_told"]
        return context

    def _head(self) -> Header:
        """All of it but the pixels, by pydicom."""
        if "_whole_head" not in self.__dict__:
            self.__dict__["_whole_head"] = open_dicom(self.path, pixels=False)
        head: Header = self.__dict__["_whole_head"]
        return head
