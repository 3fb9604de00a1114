"""One compressed frame to stored values: what runs in the limited process.

Which decoder reads which transfer syntax was chosen by time, among permissive ones; milliseconds for a 512 x 512 slice of
16 bits on one core: RLE by imagecodecs 0.3 (pydicom 4), JPEG lossless by libjpeg-turbo 1.5 (ljpeg 2.7, which also crashes on damaged frames), JPEG-LS
by CharLS 4.7 in either package, JPEG 2000 by OpenJPEG 25 in imagecodecs and 28 in pylibjpeg, HTJ2K by OpenJPH 1.8
(OpenJPEG 3.8).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sagittal.errors import ReadError, require
from sagittal.guard.limits import as_read_error
from sagittal.types import Array

_JPEG = "1.2.840.10008.1.2.4."
RLE = "1.2.840.10008.1.2.5"


@dataclass(frozen=True)
class FrameFormat:
    """What the header says of a compressed frame."""

    syntax: str
    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    photometric: str
    planar: int = 0

    @property
    def size(self) -> int:
        """Bytes of the decoded frame."""
        return self.rows * self.columns * self.samples * max(self.allocated // 8, 1)

    def job(self, frame: bytes | memoryview) -> dict[str, Any]:
        """What :func:`decode_frame` takes."""
        return {"frame": frame, **asdict(self)}


def decode_frame(job: dict[str, Any]) -> Array:
    """Stored values of one compressed frame, (rows, columns, samples); colour as RGB.

    Parameters
    ----------
    job : dict
        As :meth:`FrameFormat.job` makes it; so that it can go to another process.

    Raises
    ------
    ReadError
        If the frame is damaged, or does not fit what the header says.
    """
    frame = job.pop("frame")
    form = FrameFormat(**job)
    with as_read_error("compressed DICOM"):
        if form.syntax in _WITH_END:
            _check_end(frame, form)
        decoder = _COLOUR.get(form.syntax, _by_pydicom) if form.samples > 1 else _GREY[form.syntax]
        values = decoder(frame, form)
        if values.size != form.rows * form.columns * form.samples:
            raise ReadError(
                f"DICOM: a frame decodes to {values.size:,} values, not Rows x Columns x Samples = "
                f"{form.rows} x {form.columns} x {form.samples}"
            )
        return values.reshape(form.rows, form.columns, form.samples)


def _check_end(frame: bytes, form: FrameFormat) -> None:
    """The end marker of a stream, which its data cannot hold: decoders fill up in grey what is missing."""
    start = 0 if _GREY[form.syntax] is _high_throughput else start_of_frame(frame)[3]
    if frame.find(b"\xff\xd9", start) < 0:
        raise ReadError("DICOM: a compressed frame has no end: cut off")


def cut_to_bits(values: Array, *, allocated: int, stored: int, high: int, signed: bool) -> Array:
    """Move the high bit to its place, drop what lies above it (old overlays), and give the sign its meaning.

    Parameters
    ----------
    values : unsigned integers of `allocated` bits
    allocated, stored, high : int
        BitsAllocated, BitsStored, HighBit (PS3.5 8.1.1).
    signed : bool
    """
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    shift = high + 1 - stored
    if shift:
        values = values >> values.dtype.type(shift)
    if not signed:
        return values & values.dtype.type((1 << stored) - 1) if stored < allocated else values
    pattern = values.view(f"i{values.dtype.itemsize}")
    unused = pattern.dtype.type(8 * values.dtype.itemsize - stored)
    return (pattern << unused) >> unused if unused else pattern


def _by_header(values: Array, form: FrameFormat) -> Array:
    """Decoded values as the header's bits say (RLE, JPEG)."""
    if values.itemsize * 8 > form.allocated:
        raise ReadError(
            f"DICOM: frames decode to {values.itemsize * 8} bits, BitsAllocated is {form.allocated}: damaged"
        )
    wide = values.astype(f"u{form.allocated // 8}", copy=False)
    return cut_to_bits(wide, allocated=form.allocated, stored=form.stored, high=form.high, signed=form.signed)


def _by_precision(values: Array, precision: int, form: FrameFormat) -> Array:
    """Decoded values of as many bits as the stream says, signed if the header says so (JPEG-LS, JPEG 2000).

    JPEG-LS knows no sign, and some writers of JPEG 2000 give the wrong one; the header's holds (PS3.5 A.4.4).
    """
    if not 1 <= precision <= form.allocated:
        raise ReadError(f"DICOM: frames hold {precision} bits, BitsAllocated is {form.allocated}: damaged")
    # Sign extended or cut: the low bits are the same.
    wide = values.astype(f"u{form.allocated // 8}", copy=False) if values.dtype.kind == "u" else values.astype("i8")
    wide = wide.astype(f"u{form.allocated // 8}", copy=False)
    return cut_to_bits(wide, allocated=form.allocated, stored=precision, high=precision - 1, signed=form.signed)


def _codecs() -> Any:
    return require("imagecodecs", feature="decoding this compressed DICOM", extra="codecs")


def _run_lengths(frame: bytes, form: FrameFormat) -> Array:
    """RLE (PS3.5 annex G): each byte of each sample a segment, the highest byte first."""
    width, size = form.allocated // 8, form.rows * form.columns
    count = form.samples * width
    if len(frame) < 64 or struct.unpack_from("<I", frame)[0] != count:
        raise ReadError(f"DICOM: an RLE frame does not hold the {count} segments that the header asks for: damaged")
    starts = [*struct.unpack_from(f"<{count}I", frame, 4), len(frame)]
    if any(a > b for a, b in zip([64, *starts], starts, strict=False)):
        raise ReadError("DICOM: the segments of an RLE frame lie outside of it: damaged")
    unpack = _packbits()
    values = np.empty((size, form.samples), f"u{width}")
    for sample in range(form.samples):
        for segment in range(sample * width, (sample + 1) * width):
            raw = unpack(frame[starts[segment] : starts[segment + 1]], size)
            if len(raw) < size:
                raise ReadError("DICOM: an RLE segment is shorter than the frame: cut off or damaged")
            part = np.frombuffer(raw, np.uint8, size)
            if segment == sample * width:
                values[:, sample] = part
            else:
                values[:, sample] <<= 8
                values[:, sample] |= part
    picture: Array = values.reshape(form.rows, form.columns, form.samples)
    return _by_header(picture, form) if form.samples == 1 else _to_rgb(picture, form)


def _packbits() -> Callable[[bytes, int], bytes]:
    try:
        import imagecodecs
    except ImportError:
        from pydicom.pixels.decoders.rle import _rle_decode_segment

        return lambda segment, _: bytes(_rle_decode_segment(segment))

    def unpack(segment: bytes, size: int) -> bytes:
        # A byte of padding may end a segment, which is no whole run; what is decoded beyond the frame is dropped.
        return bytes(imagecodecs.packbits_decode(segment, out=size + 256))

    return unpack


def _to_rgb(values: Array, form: FrameFormat) -> Array:
    if form.photometric.startswith("YBR_FULL"):
        from pydicom.pixels.processing import convert_color_space

        return np.asarray(convert_color_space(values, "YBR_FULL", "RGB"))
    return values


def _pillow(frame: bytes, form: FrameFormat) -> Array:
    from PIL import Image

    with Image.open(io.BytesIO(frame), formats=("JPEG",)) as picture:
        if picture.mode != "L":
            raise ReadError(f"DICOM: a frame of one sample decodes to colours ({picture.mode}): damaged")
        return _by_header(np.asarray(picture), form)


def _turbo(frame: bytes, form: FrameFormat) -> Array:
    """JPEG of 8, 12 or up to 16 bits, lossy and lossless, by libjpeg-turbo."""
    values: Array = _codecs().jpeg8_decode(frame)
    if values.shape[:2] != (form.rows, form.columns):
        raise ReadError("DICOM: a frame decodes to another size than Rows x Columns")
    values = values.reshape(form.rows, form.columns, -1)
    if values.shape[-1] != form.samples:
        raise ReadError(f"DICOM: frames decode to {values.shape[-1]} samples, {form.samples} are declared")
    if form.samples == 1:
        return _by_header(values, form)
    # The lossy decoder gives RGB itself; lossless JPEG transforms no colours.
    return _to_rgb(values, form) if start_of_frame(frame)[0] == 0xC3 else values


def _charls(frame: bytes, form: FrameFormat) -> Array:
    at = start_of_frame(frame)[3]
    return _by_precision(_codecs().jpegls_decode(frame), frame[at + 4], form)


def _jpeg2000(frame: bytes, form: FrameFormat) -> Array:
    return _by_precision(_codecs().jpeg2k_decode(frame), _precision(frame), form)


def _high_throughput(frame: bytes, form: FrameFormat) -> Array:
    return _by_precision(_codecs().htj2k_decode(frame), _precision(frame), form)


def _precision(frame: bytes) -> int:
    """Bits of the first component of a JPEG 2000 stream (T.800 A.5.1)."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 512)
    if start < 0:
        raise ReadError("DICOM: a compressed frame is damaged, it is no JPEG 2000 stream")
    return int(frame[start + 42] & 0x7F) + 1


def _by_pydicom(frame: bytes, form: FrameFormat) -> Array:
    """Colour, through pydicom's decoders and its conversion to RGB."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    package = COLOUR_PLUGINS[form.syntax]
    if package in _NEEDED:
        require(_NEEDED[package], feature="decoding this compressed DICOM", extra="codecs")
    described: dict[str, Any] = {
        "rows": form.rows,
        "columns": form.columns,
        "number_of_frames": 1,
        "samples_per_pixel": form.samples,
        "bits_allocated": form.allocated,
        "bits_stored": form.stored,
        "photometric_interpretation": form.photometric,
        "pixel_representation": int(form.signed),
        "planar_configuration": form.planar,
        "pixel_keyword": "PixelData",
        "transfer_syntax_uid": UID(form.syntax),
    }
    values, _ = get_decoder(UID(form.syntax)).as_array(encapsulated(frame), decoding_plugin=package, **described)
    return np.asarray(values)


def encapsulated(frame: bytes) -> bytes:
    """One frame as the value of a compressed PixelData (PS3.5 A.4): an empty offset table, one fragment."""
    frame = bytes(frame) + b"\0" * (len(frame) % 2)
    return struct.pack("<HHI", 0xFFFE, 0xE000, 0) + struct.pack("<HHI", 0xFFFE, 0xE000, len(frame)) + frame


def stream_size(frame: bytes) -> tuple[int, int]:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream declares.

    Raises
    ------
    ReadError
        If it declares none.
    """
    start = frame.find(b"\xff\x4f\xff\x51", 0, 512)  # JPEG 2000, with or without the boxes of JP2
    if start >= 0 and len(frame) >= start + 24:
        right, bottom, left, top = struct.unpack(">IIII", frame[start + 8 : start + 24])
        return bottom - top, right - left
    _, rows, columns, _ = start_of_frame(frame)
    return rows, columns


def start_of_frame(frame: bytes) -> tuple[int, int, int, int]:
    """Marker, rows, columns and place of the frame header of a JPEG or JPEG-LS stream.

    Raises
    ------
    ReadError
        If there is none.
    """
    position = frame.find(b"\xff\xd8", 0, 16) + 2
    while position >= 2 and position + 9 <= len(frame):
        if frame[position] != 0xFF:
            break
        marker = frame[position + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8:
            position += 1 if marker == 0xFF else 2
            continue
        if marker in {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}:
            rows, columns = struct.unpack(">HH", frame[position + 5 : position + 9])
            return marker, rows, columns, position
        position += 2 + int(struct.unpack(">H", frame[position + 2 : position + 4])[0])
    raise ReadError("DICOM: a compressed frame is damaged, it holds no frame header")


#: Transfer syntax -> decoder of frames of one sample.
_GREY: dict[str, Callable[[bytes, FrameFormat], Array]] = {
    RLE: _run_lengths,
    _JPEG + "50": _pillow,  # baseline, 8 bits
    _JPEG + "51": _turbo,  # extended, 8 or 12 bits: Pillow has no 12
    _JPEG + "53": _turbo,  # spectral selection (retired)
    _JPEG + "55": _turbo,  # full progression (retired)
    _JPEG + "57": _turbo,  # lossless
    _JPEG + "70": _turbo,  # lossless, first-order prediction
    _JPEG + "80": _charls,  # JPEG-LS lossless
    _JPEG + "81": _charls,  # JPEG-LS near-lossless
    _JPEG + "90": _jpeg2000,  # lossless
    _JPEG + "91": _jpeg2000,
    _JPEG + "201": _high_throughput,
    _JPEG + "202": _high_throughput,
    _JPEG + "203": _high_throughput,
}
#: The same for colour; the others go through pydicom, by these of its plug-ins.
_COLOUR: dict[str, Callable[[bytes, FrameFormat], Array]] = {
    uid: decoder for uid, decoder in _GREY.items() if decoder in {_run_lengths, _turbo}
}
#: pylibjpeg stands for OpenJPEG only: for JPEG it would take libjpeg, which is GPL.
COLOUR_PLUGINS = {
    _JPEG + "50": "pillow",
    **dict.fromkeys((_JPEG + "80", _JPEG + "81"), "pyjpegls"),
    **dict.fromkeys((_JPEG + n for n in ("90", "91", "201", "202", "203")), "pylibjpeg"),
}
_NEEDED = {"pyjpegls": "jpeg_ls", "pylibjpeg": "openjpeg"}
_WITH_END = frozenset(uid for uid, decoder in _GREY.items() if decoder is not _run_lengths and decoder is not _jpeg2000)
#: Transfer syntaxes of compressed frames that are read.
COMPRESSED = frozenset(_GREY)
#: Those that ask for no package beyond the core.
IN_CORE = frozenset({RLE, _JPEG + "50"})
