"""Opening a DICOM file: its header, guarded against bombs, endless nesting and absurd declarations.

pydicom reads the elements; before it does, the nesting of sequences is measured without recursion, and a deflated file
is unpacked with a cap (pydicom itself does neither).
"""

from __future__ import annotations

import io
import struct
from math import ceil, prod
from pathlib import Path
from typing import IO, Any

import pydicom
from pydicom.dataset import Dataset as Header

from sagittal.errors import ReadError
from sagittal.read.limits import MAX_INFLATED_BYTES, MAX_SEQUENCE_DEPTH, as_read_error, check_file, check_size, inflate

DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_BIG = "1.2.840.10008.1.2.2"
_IMPLICIT = "1.2.840.10008.1.2"
_UNDEFINED = 0xFFFFFFFF
_LONG_VR = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}

#: What the reader and the index look at; everything else stays unparsed.
INDEX_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientID",
    "AccessionNumber",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SeriesNumber",
    "InstanceNumber",
    "BodyPartExamined",
    "PatientSex",
    "PatientAge",
]


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
        source: IO[bytes] = file
        syntax, start = _transfer_syntax(file)
        if syntax == DEFLATED:
            whole = _inflated(file, start)
            source, size = io.BytesIO(whole), len(whole)
            syntax, start = _transfer_syntax(source)
        _check_nesting(source, start, size, syntax)
        source.seek(0)
        header = pydicom.dcmread(
            source, force=True, stop_before_pixels=not pixels, specific_tags=list(tags) if tags is not None else None
        )
        if len(header) == 0:
            raise ReadError("DICOM: holds no elements")
        if "TransferSyntaxUID" not in header.file_meta:
            header.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    return header


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
    syntax = EXPLICIT_LITTLE if start[4:6].isalpha() and start[4:6].isupper() else _IMPLICIT
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


def _check_nesting(file: IO[bytes], start: int, size: int, syntax: str) -> None:
    """Walk the elements up to the pixel data with a stack of our own, and refuse deep nesting or lengths past the end.

    A sequence or item of defined length is entered too where it says that it is one; in implicit syntax only those of
    undefined length can be told without a dictionary, and only those are parsed eagerly later.
    """
    order = ">" if syntax == _BIG else "<"
    implicit = syntax == _IMPLICIT
    ends: list[int] = []  # for each open sequence or item: where it ends, 0 where a delimiter says so
    file.seek(start)
    position = start
    while position + 8 <= size:
        while ends and ends[-1] and position >= ends[-1]:
            ends.pop()
        file.seek(position)
        head = file.read(12)
        group, element = struct.unpack(order + "HH", head[:4])
        if group == 0xFFFE:
            length = struct.unpack(order + "I", head[4:8])[0]
            position += 8
            if element == 0xE000:
                ends.append(0 if length == _UNDEFINED else position + length)
            elif ends:
                ends.pop()
            continue
        if group == 0x7FE0 and not ends:
            return
        vr = b"" if implicit else head[4:6]
        if implicit:
            length, position = struct.unpack(order + "I", head[4:8])[0], position + 8
        elif vr in _LONG_VR:
            if len(head) < 12:
                return
            length, position = struct.unpack(order + "I", head[8:12])[0], position + 12
        else:
            length, position = struct.unpack(order + "H", head[6:8])[0], position + 8
        if length == _UNDEFINED:
            ends.append(0)
        elif vr == b"SQ":
            ends.append(position + length)
        elif position + length > size:
            raise ReadError("DICOM: cut off, an element before the pixel data reaches past the end of the file")
        else:
            position += length
        if len(ends) > 2 * MAX_SEQUENCE_DEPTH:  # a sequence and its item are one level
            raise ReadError(f"DICOM: sequences are nested deeper than {MAX_SEQUENCE_DEPTH} levels; refused")


class PixelFormat:
    """How the pixels of a data set are stored, checked against each other and against the pixel data's length.

    Attributes
    ----------
    rows, columns, frames, samples : int
    allocated, stored, high : int
        BitsAllocated, BitsStored, HighBit.
    signed : bool
    photometric : str
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
