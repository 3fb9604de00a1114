"""The pixels of a DICOM data set: decoded, sign and bits as declared, colours as RGB.

A decoder is chosen by transfer syntax, permissive licences only. What a compressed frame says of its own size is
compared with Rows and Columns before it is decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from pydicom.dataset import Dataset as Header
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, convert_color_space

from sagittal.errors import ReadError, require
from sagittal.read.dicom_file import DEFLATED, PixelFormat
from sagittal.read.limits import MAX_FRAME_VALUES, check_size
from sagittal.types import Array

_JPEG = "1.2.840.10008.1.2.4."
_NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED}
#: Transfer syntax -> how a frame is decoded: a plug-in of pydicom, or imagecodecs.
DECODERS = {
    "1.2.840.10008.1.2.5": "pydicom",  # RLE
    _JPEG + "50": "pillow",  # baseline, 8 bits
    _JPEG + "51": "imagecodecs",  # extended, 8 or 12 bits: Pillow has no 12
    _JPEG + "53": "imagecodecs",  # spectral selection (retired)
    _JPEG + "55": "imagecodecs",  # full progression (retired)
    _JPEG + "57": "imagecodecs",  # lossless
    _JPEG + "70": "imagecodecs",  # lossless, first-order prediction
    _JPEG + "80": "pyjpegls",  # JPEG-LS lossless
    _JPEG + "81": "pyjpegls",  # JPEG-LS near-lossless
    _JPEG + "90": "pylibjpeg",  # JPEG 2000 lossless, by openjpeg
    _JPEG + "91": "pylibjpeg",
    _JPEG + "201": "pylibjpeg",  # high-throughput JPEG 2000
    _JPEG + "202": "pylibjpeg",
    _JPEG + "203": "pylibjpeg",
}
_PACKAGES = {"imagecodecs": "imagecodecs", "pyjpegls": "jpeg_ls", "pylibjpeg": "openjpeg"}


def decode_pixels(header: Header, layout: PixelFormat) -> Array:
    """Stored values, (frames, rows, columns, samples), before any rescaling.

    Colour comes out as RGB of 8 bits where the file holds YBR or a palette (16-bit palettes are cut to 8 bits, which
    is what displays show); grey keeps type and sign.

    Raises
    ------
    ReadError
        If there are no pixels, or they do not fit the header.
    MissingPackageError
        If the decoder of the transfer syntax is not installed; the message names the extra.
    """
    syntax = str(header.file_meta.TransferSyntaxUID)
    if "PixelData" not in header:
        for other in ("FloatPixelData", "DoubleFloatPixelData"):
            if other in header:
                return _floats(header[other].value, layout, "f4" if other[0] == "F" else "f8")
        raise ReadError("DICOM: holds no pixel data")
    if syntax in _NATIVE:
        layout.check_native(len(header.PixelData))
        pixels = _native(header, layout)
    elif syntax in DECODERS:
        check_size((layout.rows, layout.columns, layout.samples), "compressed DICOM", limit=MAX_FRAME_VALUES)
        pixels = _compressed(header, layout, DECODERS[syntax])
    else:
        known = header.file_meta.TransferSyntaxUID.name
        raise ReadError(
            f"DICOM: the transfer syntax {known} is not read. Convert it to Explicit VR Little Endian first."
        )
    if layout.photometric == "PALETTE COLOR":
        pixels = _palette(pixels[..., 0], header)
    return pixels


def _floats(raw: bytes, layout: PixelFormat, dtype: str) -> Array:
    values = np.frombuffer(raw, "<" + dtype)
    shape = (layout.frames, layout.rows, layout.columns, layout.samples)
    if values.size < np.prod(shape):
        raise ReadError("DICOM: the floating-point pixel data is cut off")
    return values[: int(np.prod(shape))].reshape(shape)


def _native(header: Header, layout: PixelFormat) -> Array:
    shape = (layout.frames, layout.rows, layout.columns, layout.samples)
    if layout.allocated == 1 or layout.samples == 3:
        return _by_pydicom(header, layout, "")
    order = ">" if not header.original_encoding[1] else "<"
    kind = "u" if layout.allocated > 1 else "i"
    count = int(np.prod(shape))
    raw: bytes = header.PixelData
    # PS3.5 8.1.1: PixelData of 8 bits written as OW in big endian has its bytes in pairs.
    if order == ">" and layout.allocated == 8 and header["PixelData"].VR == "OW":
        pairs = np.frombuffer(raw[: len(raw) // 2 * 2], ">u2").astype("<u2")
        values = pairs.view(np.uint8)[:count]
    else:
        values = np.frombuffer(raw, f"{order}{kind}{layout.allocated // 8}", count=count)
    return _cut_to_bits(values, layout).reshape(shape)


def _cut_to_bits(values: Array, layout: PixelFormat) -> Array:
    """Move the high bit to its place, drop what lies above it (old overlays), and give the sign its meaning."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    shift = layout.high + 1 - layout.stored
    if shift:
        values = values >> values.dtype.type(shift)
    if layout.stored < layout.allocated:
        values = values & values.dtype.type((1 << layout.stored) - 1)
    if not layout.signed:
        return values
    signed = values.view(f"i{values.dtype.itemsize}")
    unused = layout.allocated - layout.stored
    return signed if unused == 0 else (signed << signed.dtype.type(unused)) >> signed.dtype.type(unused)


def _by_pydicom(header: Header, layout: PixelFormat, plugin: str) -> Array:
    decoder = get_decoder(header.file_meta.TransferSyntaxUID)
    pixels, _ = decoder.as_array(header, decoding_plugin=plugin)  # colour comes out as RGB
    return np.asarray(pixels).reshape(layout.frames, layout.rows, layout.columns, -1)


def _compressed(header: Header, layout: PixelFormat, decoder: str) -> Array:
    if decoder in _PACKAGES:
        require(_PACKAGES[decoder], feature="decoding this compressed DICOM", extra="codecs")
    if decoder != "pydicom":
        found = 0
        for frame in _frames(header, layout):
            _check_codestream(frame, layout)
            found += 1
        if found != layout.frames:
            raise ReadError(f"DICOM: {layout.frames} frames are declared, {found} are there: cut off")
    if decoder == "imagecodecs":
        return _by_imagecodecs(header, layout)
    pixels = _by_pydicom(header, layout, decoder)
    return (
        _cut_to_bits(pixels.view(f"u{pixels.itemsize}"), layout)
        if decoder == "pydicom" and layout.samples == 1
        else pixels
    )


def _frames(header: Header, layout: PixelFormat) -> Iterator[bytes]:
    return generate_frames(header.PixelData, number_of_frames=layout.frames)


def _by_imagecodecs(header: Header, layout: PixelFormat) -> Array:
    codecs = require("imagecodecs", feature="decoding this compressed DICOM", extra="codecs")
    planes = []
    for frame in _frames(header, layout):
        lossless = _sof(frame)[0] == 0xC3
        # libjpeg-turbo reads lossless JPEG as well, and survives damaged frames that crash ljpeg_decode.
        plane = codecs.jpeg8_decode(frame)
        if plane.shape[:2] != (layout.rows, layout.columns):
            raise ReadError("DICOM: a frame decodes to another size than Rows x Columns")
        plane = plane.reshape(layout.rows, layout.columns, -1)
        planes.append(plane)
    pixels = np.stack(planes)
    if pixels.shape[-1] != layout.samples:
        raise ReadError(f"DICOM: frames decode to {pixels.shape[-1]} samples, {layout.samples} are declared")
    if layout.samples == 3:
        # The lossy decoder gives RGB itself; lossless JPEG transforms no colours.
        if lossless and layout.photometric.startswith("YBR_FULL"):
            pixels = convert_color_space(pixels, "YBR_FULL", "RGB")
        return pixels
    if pixels.itemsize * 8 > layout.allocated:
        raise ReadError(
            f"DICOM: frames decode to {pixels.itemsize * 8} bits, BitsAllocated is {layout.allocated}: damaged"
        )
    wide = pixels.astype(f"u{layout.allocated // 8}", copy=False)
    return _cut_to_bits(wide, layout)


def _palette(indices: Array, header: Header) -> Array:
    if "RedPaletteColorLookupTableDescriptor" not in header:
        raise ReadError("DICOM: PALETTE COLOR without its colour table")
    colours = apply_color_lut(indices, header)[..., :3]
    bits = int(header.RedPaletteColorLookupTableDescriptor[2])
    if bits == 16:
        colours = colours >> 8
    return colours.astype(np.uint8)


def _check_codestream(frame: bytes, layout: PixelFormat) -> None:
    """Compare the size that a compressed frame declares in its own header with Rows and Columns."""
    rows, columns = _codestream_size(frame)
    if (rows, columns) != (layout.rows, layout.columns):
        raise ReadError(
            f"DICOM: a compressed frame says it is {rows} x {columns}, the header says {layout.rows} x {layout.columns}"
        )


def _codestream_size(frame: bytes) -> tuple[int, int]:
    start = frame.find(b"\xff\x4f\xff\x51", 0, 512)  # JPEG 2000, with or without the boxes of JP2
    if start >= 0:
        right, bottom, left, top = struct.unpack(">IIII", frame[start + 8 : start + 24])
        return bottom - top, right - left
    _, rows, columns = _sof(frame)
    return rows, columns


def _sof(frame: bytes) -> tuple[int, int, int]:
    """Marker, rows and columns of the frame header of a JPEG or JPEG-LS stream."""
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
            return marker, rows, columns
        position += 2 + int(struct.unpack(">H", frame[position + 2 : position + 4])[0])
    raise ReadError("DICOM: a compressed frame is damaged, it holds no frame header")
