"""The frames of a stored DICOM file: where each lies, as it is or decoded, without reading the others (PS3.5 A.4, PS3.18 10.4)."""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from pydicom.dataset import Dataset as Header

from sagittal.errors import ReadError
from sagittal.formats.codecs import COMPRESSED
from sagittal.formats.dicom_file import PixelFormat, open_dicom
from sagittal.formats.dicom_header import LazyHeader, Memo, open_header
from sagittal.formats.dicom_pixels import NATIVE, decode_frames, frame_format
from sagittal.guard.limits import as_read_error
from sagittal.types import Array

_JPEG = "1.2.840.10008.1.2.4."
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
#: Transfer syntax -> media types of its frames, the usual one first (PS3.18 table 8.7.3-2, 8.7.3-5).
FRAME_TYPES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((_JPEG + n for n in ("50", "51", "53", "55", "57", "70")), ("image/jpeg",)),
    **dict.fromkeys((_JPEG + "80", _JPEG + "81"), ("image/jls", "image/x-jls")),
    **dict.fromkeys((_JPEG + "90", _JPEG + "91"), ("image/jp2", "image/x-jp2")),
    **dict.fromkeys((_JPEG + n for n in ("92", "93")), ("image/jpx",)),
    **dict.fromkeys((_JPEG + n for n in ("201", "202", "203")), ("image/jphc", "image/jph")),
    "1.2.840.10008.1.2.5": ("image/dicom-rle", "image/x-dicom-rle"),
    **dict.fromkeys((_JPEG + n for n in ("100", "101")), ("video/mpeg2", "video/mpeg")),
    **dict.fromkeys((_JPEG + n for n in ("102", "103", "104", "105", "106")), ("video/mp4",)),
    **dict.fromkeys((_JPEG + n for n in ("107", "108")), ("video/h265", "video/mp4")),
}
_ITEM, _DELIMITER, _UNDEFINED = 0xE000FFFE, 0xE0DDFFFE, 0xFFFFFFFF
#: Fragments of one file; the longest recordings in use have some ten thousand frames.
_MOST_FRAGMENTS = 2**20
#: Opened files that are remembered, so that a viewer that asks frame by frame does not parse a header each time.
_KEPT = 64


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """Where the frames of one file lie.

    Attributes
    ----------
    path : Path
    syntax : str
        Transfer syntax UID.
    layout : PixelFormat
    header : Header
        Without pixels, or lazy.
    start : int
        Of the value of PixelData in the file; -1 where it does not lie there as it is (deflated).
    length : int
    places : tuple of tuple of (int, int)
        For each compressed frame the places and lengths of its fragments; empty where frames are not compressed.
    in_words : bool
        Whether pixels of 8 bits were written two in a word, whose order of bytes matters.
    """

    path: Path
    syntax: str
    layout: PixelFormat
    header: Header
    start: int
    length: int
    places: tuple[tuple[tuple[int, int], ...], ...] = ()
    in_words: bool = True

    @property
    def count(self) -> int:
        """Number of frames."""
        return self.layout.frames

    @property
    def bits(self) -> int:
        """Bits of one uncompressed frame."""
        return self.layout.rows * self.layout.columns * self.layout.samples * self.layout.allocated

    def stored(self, number: int) -> bytes:
        """The bytes of one frame as they lie in the file, of a compressed one its stream.

        Parameters
        ----------
        number : int
            From 0.

        Raises
        ------
        ReadError
            If the file is cut off.
        IndexError
            If there is no such frame.
        """
        if not 0 <= number < self.count:
            raise IndexError(number)
        if self.places:
            return b"".join(_read(self.path, at, length) for at, length in self.places[number])
        if self.start < 0:
            return self._from_whole(number)
        first, last = number * self.bits, (number + 1) * self.bits
        if last > self.length * 8:
            raise ReadError("DICOM: the pixel data is shorter than the header says: cut off")
        data = _read(self.path, self.start + first // 8, -(-last // 8) - first // 8)
        if self.bits % 8:  # frames of single bits follow each other without gaps
            cut = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[first % 8 :][: self.bits]
            return np.packbits(cut, bitorder="little").tobytes()
        return _swapped(data, self.layout.allocated, self.in_words) if self.syntax == BIG_ENDIAN else data

    def _from_whole(self, number: int) -> bytes:
        header = open_dicom(self.path)
        size = self.bits // 8
        data = bytes(header.PixelData)[number * size : (number + 1) * size]
        if len(data) < size or self.bits % 8:
            raise ReadError("DICOM: the pixel data is shorter than the header says: cut off")
        return data

    def decoded(self, number: int) -> bytes:
        """One frame as uncompressed little-endian bytes, colours as RGB by pixel.

        Raises
        ------
        ReadError
            If it is damaged, or its transfer syntax is not read.
        MissingPackageError
            If the decoder is not installed.
        """
        if not self.places:
            return self.stored(number)
        return self.values(number).astype(f"<u{self.layout.allocated // 8}", casting="unsafe", copy=False).tobytes()

    def values(self, number: int) -> Array:
        """Stored values of one frame, (rows, columns, samples), with their sign; colours as RGB, palettes as indices.

        Raises
        ------
        ReadError
            As :meth:`decoded`.
        """
        layout = self.layout
        if self.places:
            form = frame_format(self.header, layout, self.syntax)
            with as_read_error("DICOM"):
                for _, values in decode_frames([form.job(self.stored(number))], form.size):
                    return np.array(values)
        raw = self.stored(number)
        if layout.allocated == 1:
            bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
            return bits[: layout.rows * layout.columns].reshape(layout.rows, layout.columns, 1)
        kind = "i" if layout.signed else "u"
        values = np.frombuffer(raw, f"<{kind}{layout.allocated // 8}")
        if layout.samples == 1:
            return values.reshape(layout.rows, layout.columns, 1)
        return _colours(values, layout, self.header)


def _colours(values: Array, layout: PixelFormat, header: Header) -> Array:
    shape = (layout.rows, layout.columns, layout.samples)
    if int(header.get("PlanarConfiguration") or 0) == 1:
        values = values.reshape(layout.samples, layout.rows, layout.columns).transpose(1, 2, 0)
    values = values.reshape(shape)
    if layout.photometric.startswith("YBR_FULL") and layout.photometric != "YBR_FULL_422":
        from pydicom.pixels.processing import convert_color_space

        return np.asarray(convert_color_space(np.ascontiguousarray(values), "YBR_FULL", "RGB"))
    return values


def _swapped(data: bytes, allocated: int, in_words: bool) -> bytes:
    """Big-endian pixels the other way round; of 8 bits only where they were written in words (PS3.5 8.1.1)."""
    width = allocated // 8
    if width <= 1:
        width = 2 if in_words and len(data) % 2 == 0 else 1
    return np.frombuffer(data, f">u{width}").astype(f"<u{width}").tobytes() if width > 1 else data


_OPENED: OrderedDict[tuple[str, int, int], FrameIndex] = OrderedDict()
_LOCK = Lock()


def open_frames(path: Path) -> FrameIndex:
    """The frames of a DICOM file.

    Raises
    ------
    ReadError
        If it is damaged or holds no pixels.
    """
    status = path.stat()
    key = (str(path), status.st_mtime_ns, status.st_size)
    with _LOCK:
        if key in _OPENED:
            _OPENED.move_to_end(key)
            return _OPENED[key]
    index = _index(path)
    with _LOCK:
        _OPENED[key] = index
        while len(_OPENED) > _KEPT:
            _OPENED.popitem(last=False)
    return index


def _index(path: Path) -> FrameIndex:
    memo: Memo = {}
    with as_read_error("DICOM"):
        header: Header = open_header(path, memo)
        if "PixelData" not in header:
            raise ReadError("DICOM: holds no pixel data")
        layout = PixelFormat(header)
        in_words = True
        if isinstance(header, LazyHeader) and not header.loaded:
            syntax, start, length = header.syntax, header.pixels_at, header.pixels_length
        else:
            syntax = str(header.file_meta.TransferSyntaxUID)
            pixels: Any = header.get_item("PixelData")
            in_words = str(pixels.VR or "OW") == "OW"
            start, length = (-1, 0) if syntax == DEFLATED else (int(pixels.value_tell), len(pixels.value))
            header = open_dicom(path, pixels=False)  # what is remembered holds no pixels
        if syntax in NATIVE:
            if start >= 0:
                layout.check_native(length)
            return FrameIndex(path, syntax, layout, header, start, length, in_words=in_words)
        if syntax not in COMPRESSED and syntax not in FRAME_TYPES:
            raise ReadError("DICOM: the transfer syntax is not known, its frames cannot be told apart")
        end = path.stat().st_size
        return FrameIndex(path, syntax, layout, header, start, length, _fragments(path, start, end, layout.frames))


def _fragments(path: Path, start: int, end: int, frames: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The fragments of each frame, by the offset table, or by counting (PS3.5 A.4)."""
    found: list[tuple[int, int]] = []
    offsets: tuple[int, ...] = ()
    with path.open("rb") as file:
        at = start
        while True:
            file.seek(at)
            head = file.read(8)
            if len(head) < 8 or at + 8 > end:
                raise ReadError("DICOM: cut off, the compressed pixels have no end")
            tag, size = struct.unpack("<II", head)
            if tag == _DELIMITER:
                break
            if tag != _ITEM or size == _UNDEFINED or at + 8 + size > end or len(found) > _MOST_FRAGMENTS:
                raise ReadError("DICOM: the fragments of the compressed pixels are damaged")
            if at == start:
                table = file.read(size)
                offsets = struct.unpack(f"<{size // 4}I", table[: size // 4 * 4])
            else:
                found.append((at + 8, size))
            at += 8 + size
    if len(found) == frames:
        return tuple((one,) for one in found)
    if frames == 1:
        return (tuple(found),)
    if len(offsets) != frames:
        raise ReadError(f"DICOM: {frames} frames in {len(found)} fragments, and no table says which belong together")
    base = found[0][0] - 8 if found else 0
    groups: list[list[tuple[int, int]]] = [[] for _ in range(frames)]
    limits = [base + offset for offset in offsets[1:]] + [end]
    frame = 0
    for place, size in found:
        while place - 8 >= limits[frame] and frame + 1 < frames:
            frame += 1
        groups[frame].append((place, size))
    if not all(groups):
        raise ReadError("DICOM: the offset table of the frames is damaged")
    return tuple(tuple(group) for group in groups)


def _read(path: Path, at: int, length: int) -> bytes:
    with path.open("rb") as file:
        data = os.pread(file.fileno(), length, at)
        while len(data) < length:
            more = os.pread(file.fileno(), length - len(data), at + len(data))
            if not more:
                raise ReadError("DICOM: the file is shorter than its header says: cut off")
            data += more
    return data
