"""Opening a DICOM file: its header, guarded against bombs, endless nesting and absurd declarations.

pydicom reads the elements; before it does, the nesting of sequences is measured without recursion, and a deflated file
is unpacked with a cap (pydicom itself does neither).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from math import ceil, prod
from pathlib import Path
from typing import IO, Any

import pydicom
from pydicom.dataset import Dataset as Header

from sagittal.errors import ReadError
from sagittal.guard.limits import MAX_INFLATED_BYTES, MAX_SEQUENCE_DEPTH, as_read_error, check_file, check_size, inflate

DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_BIG = "1.2.840.10008.1.2.2"
IMPLICIT = "1.2.840.10008.1.2"
_UNDEFINED = 0xFFFFFFFF
_LONG_VR = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}

#: Bytes of a header that are read at once.
_WINDOW = 2**15
#: Rows and Columns are binary numbers, the other elements of an index are text.
_NUMBERS = frozenset({0x00280010, 0x00280011})


def open_dicom(path: Path, *, pixels: bool = True, tags: list[str] | None = None) -> Header:
    """The data set of a DICOM file, with or without its pixel data.

    Parameters
    ----------
    pixels : bool
        Whether PixelData and what follows it is read.
    tags : list of str, optional
        Keywords to keep; all where left out.

    Raises
    ------
    ReadError
        If the file is empty, cut off, nested too deep, a bomb or not DICOM.
    """
    size = check_file(path)
    with as_read_error("DICOM"), path.open("rb") as file:
        source, size, syntax, start = _unpacked(file, size)
        _walk(source, start, size, syntax)
        source.seek(0)
        header = pydicom.dcmread(
            source, force=True, stop_before_pixels=not pixels, specific_tags=list(tags) if tags is not None else None
        )
        if len(header) == 0:
            raise ReadError("DICOM: holds no elements")
        if "TransferSyntaxUID" not in header.file_meta:
            header.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    return header


def _unpacked(file: IO[bytes], size: int) -> tuple[IO[bytes], int, str, int]:
    """The file, or its inflated content; its length, transfer syntax, and where the data set begins."""
    syntax, start = _transfer_syntax(file)
    if syntax != DEFLATED:
        return file, size, syntax, start
    whole = _inflated(file, start)
    source = io.BytesIO(whole)
    return source, len(whole), *_transfer_syntax(source)


def _transfer_syntax(file: IO[bytes]) -> tuple[str, int]:
    """The transfer syntax, and where the data set begins.

    A file without the preamble of PS3.10 begins with group 2 or 8 itself; implicit little endian is its syntax unless
    the first element carries a value representation.
    """
    file.seek(0)
    start = file.read(132)
    position = 132 if start[128:132] == b"DICM" else 0
    if position == 0:
        group = struct.unpack("<H", start[:2])[0] if len(start) >= 8 else 0
        if group not in {2, 8}:
            raise ReadError("not a DICOM file: no 'DICM' mark at byte 128")
    explicit = start[4:6].isalpha() and start[4:6].isupper() and position == 0
    syntax = EXPLICIT_LITTLE if explicit else IMPLICIT
    file.seek(position)
    while len(head := file.read(8)) == 8:
        group, element, vr, length = struct.unpack("<HH2sH", head)
        if group != 2:
            break
        if vr in _LONG_VR:
            length = struct.unpack("<I", file.read(4))[0]
        value = file.read(length) if length < 2**16 else b""
        if len(value) < length:
            raise ReadError("DICOM: the file meta information is damaged or cut off")
        if element == 0x10:
            syntax = value.decode("ascii", "replace").strip(" \0")
        position = file.tell()
    return syntax, position


def _inflated(file: IO[bytes], start: int) -> bytes:
    """The file as if it had been written in explicit little endian."""
    file.seek(start)
    try:
        packed = file.read()
        # Honest images deflate a few times; a blank slice of some MB a thousand times.
        body = inflate(packed, wbits=-15, limit=min(MAX_INFLATED_BYTES, 2**26 + 64 * len(packed)))
    except ReadError as error:
        raise ReadError(f"deflated DICOM: {error}") from error
    # One element is all the meta information that the rest needs.
    value = EXPLICIT_LITTLE.encode() + b"\0"
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(value)) + value
    return b"\0" * 128 + b"DICM" + meta + body


def _walk(
    file: IO[bytes], start: int, size: int, syntax: str, wanted: frozenset[int] = frozenset()
) -> dict[int, bytes]:
    """Walk the elements up to the pixel data with a stack of our own, and refuse deep nesting or lengths past the end.

    A sequence or item of defined length is entered too where it says that it is one; in implicit syntax only those of
    undefined length can be told without a dictionary, and only those are parsed eagerly later.

    Parameters
    ----------
    wanted : frozenset of int
        Tags whose raw values at the top level are returned; the walk then ends behind the last of them. All elements
        up to the pixel data are walked where it is empty.
    """
    order = ">" if syntax == _BIG else "<"
    implicit = syntax == IMPLICIT
    two, four = struct.Struct(order + "HH").unpack_from, struct.Struct(order + "I").unpack_from
    short = struct.Struct(order + "H").unpack_from
    last = max(wanted, default=0)
    values: dict[int, bytes] = {}
    ends: list[int] = []  # for each open sequence or item: where it ends, 0 where a delimiter says so
    position, base, window = start, start, b""
    while position + 8 <= size:
        while ends and ends[-1] and position >= ends[-1]:
            ends.pop()
        at = position - base
        if at + 12 > len(window):
            file.seek(position)
            base, at, window = position, 0, file.read(_WINDOW)
        group, element = two(window, at)
        if group == 0xFFFE:
            length = four(window, at + 4)[0]
            position += 8
            if element == 0xE000:
                ends.append(0 if length == _UNDEFINED else position + length)
            elif ends:
                ends.pop()
            continue
        tag = group << 16 | element
        if not ends and (group == 0x7FE0 or (wanted and tag > last)):
            break
        vr = b"" if implicit else window[at + 4 : at + 6]
        if implicit:
            length, position = four(window, at + 4)[0], position + 8
        elif vr in _LONG_VR:
            if len(window) < at + 12:
                break
            length, position = four(window, at + 8)[0], position + 12
        else:
            length, position = short(window, at + 6)[0], position + 8
        if length == _UNDEFINED:
            ends.append(0)
        elif vr == b"SQ":
            ends.append(position + length)
        elif position + length > size:
            raise ReadError("DICOM: cut off, an element before the pixel data reaches past the end of the file")
        else:
            if tag in wanted and not ends and length <= 1024:
                values[tag] = window[position - base : position - base + length]
                if len(values[tag]) < length:  # the value lies across the end of the window
                    file.seek(position)
                    values[tag] = file.read(length)
            position += length
        if len(ends) > 2 * MAX_SEQUENCE_DEPTH:  # a sequence and its item are one level
            raise ReadError(f"DICOM: sequences are nested deeper than {MAX_SEQUENCE_DEPTH} levels; refused")
    return values


def scan_dicom(path: Path, tags: Mapping[str, int]) -> dict[str, str]:
    """Values of some text and US elements of a header, as text, without parsing the rest: for an index of many files.

    Parameters
    ----------
    tags : mapping of str to int
        Keyword -> tag of the elements to look for.

    Raises
    ------
    ReadError
        As :func:`open_dicom`.
    """
    with as_read_error("DICOM"), path.open("rb") as file:
        source, size, syntax, start = _unpacked(file, check_file(path))
        raw = _walk(source, start, size, syntax, frozenset(tags.values()))
        if not raw:
            raise ReadError("DICOM: holds none of the elements of an image")
        if any(max(value, default=0) > 127 for tag, value in raw.items() if tag not in _NUMBERS):
            header = open_dicom(path, pixels=False, tags=[*tags, "SpecificCharacterSet"])
            return {name: str(header.get(name) or "").strip() for name in tags}
    order = ">H" if syntax == _BIG else "<H"
    found = {}
    for name, tag in tags.items():
        value = raw.get(tag, b"")
        if tag in _NUMBERS:
            found[name] = str(struct.unpack(order, value[:2])[0]) if len(value) >= 2 else ""
        else:
            found[name] = value.decode("ascii").strip(" \0")
    return found


class PixelFormat:
    """How the pixels of a data set are stored, checked against each other and against the pixel data's length.

    Attributes
    ----------
    rows, columns, frames, samples : int
    allocated, stored, high : int
        BitsAllocated, BitsStored, HighBit.
    signed : bool
    photometric : str
    whole : bool
        Whether the stored values are whole numbers, not floating point.
    """

    def __init__(self, header: Header) -> None:
        self.rows = _integer(header, "Rows")
        self.columns = _integer(header, "Columns")
        self.frames = _integer(header, "NumberOfFrames", 1) or 1
        self.samples = _integer(header, "SamplesPerPixel", 1)
        self.allocated = _integer(header, "BitsAllocated")
        self.stored = _integer(header, "BitsStored", self.allocated)
        self.high = _integer(header, "HighBit", self.stored - 1)
        self.signed = _integer(header, "PixelRepresentation", 0) == 1
        self.photometric = str(header.get("PhotometricInterpretation") or "").strip().upper()
        self.whole = "PixelData" in header
        self._check()

    def _check(self) -> None:
        if self.allocated not in {1, 8, 16, 32, 64}:
            raise ReadError(f"DICOM: BitsAllocated is {self.allocated}; 1, 8, 16, 32 and 64 are read")
        if not 1 <= self.stored <= self.allocated or not self.stored - 1 <= self.high < self.allocated:
            raise ReadError(
                f"DICOM: BitsStored {self.stored} and HighBit {self.high} do not fit BitsAllocated {self.allocated}: damaged"
            )
        if self.samples not in {1, 3}:
            raise ReadError(f"DICOM: SamplesPerPixel is {self.samples}; 1 (grey) and 3 (colour) are read")
        check_size((self.frames, self.rows, self.columns, self.samples), "DICOM")

    def check_native(self, length: int) -> None:
        """Compare an uncompressed PixelData of `length` bytes with what the header declares."""
        expected = ceil(prod((self.rows, self.columns, self.frames, self.samples)) * self.allocated / 8)
        least = expected * 2 // 3 if self.photometric == "YBR_FULL_422" else expected
        frame = max(expected // self.frames, 2)
        if length < least:
            raise ReadError(
                f"DICOM: PixelData holds {length:,} bytes, but Rows x Columns x Frames x Samples x BitsAllocated = "
                f"{self.rows} x {self.columns} x {self.frames} x {self.samples} x {self.allocated} bits need {least:,}: "
                "cut off or damaged"
            )
        if length >= expected + frame:
            raise ReadError(
                f"DICOM: PixelData holds {length:,} bytes, at least one frame more than the {expected:,} of the "
                f"declared {self.rows} x {self.columns} x {self.frames} frames: the header is damaged"
            )


def _integer(header: Header, keyword: str, default: int | None = None) -> int:
    value: Any = header.get(keyword)
    if value is None or value == "":
        if default is None:
            raise ReadError(f"DICOM: holds no image, {keyword} is missing")
        return default
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise ReadError(f"DICOM: {keyword} is not a number: damaged") from error
