"""The pixels of a DICOM data set: decoded, sign and bits as declared, colours as RGB.

Compressed frames are decoded in processes with limits (sagittal.guard.limited); what a frame says of its own size is
compared with Rows and Columns before it goes there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import closing

import numpy as np
from pydicom.dataset import Dataset as Header
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID

from sagittal.errors import ReadError, SagittalError, require
from sagittal.formats.codecs import COMPRESSED, IN_CORE, RLE, FrameFormat, cut_to_bits, decode_frame, stream_size
from sagittal.formats.dicom_file import DEFLATED, PixelFormat
from sagittal.guard import limited, limits
from sagittal.guard.limits import MAX_FRAME_VALUES, check_size
from sagittal.types import Array

NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED})
#: What decoding a frame may take: bytes, and bytes for each of its own (JPEG 2000 works on several 32-bit copies).
FRAME_MEMORY = (2**28, 24)
#: The time that it may take: seconds, and bytes a second.
FRAME_TIME = (30.0, 1e6)


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
    if syntax in NATIVE:
        layout.check_native(len(header.PixelData))
        pixels = _native(header, layout)
    else:
        form = frame_format(header, layout, syntax)
        frames = [form.job(frame) for frame in compressed_frames(header.PixelData, form, layout.frames)]
        decoded: list[Array] = [np.empty(0)] * len(frames)
        for number, values in decode_frames(frames, form.size):
            decoded[number] = values.copy()
        pixels = np.stack(decoded)
    if layout.photometric == "PALETTE COLOR":
        pixels = _palette(pixels[..., 0], header)
    return pixels


def frame_format(header: Header, layout: PixelFormat, syntax: str) -> FrameFormat:
    """What decoding a compressed frame needs to know; refused where no decoder is there.

    Raises
    ------
    ReadError
        If the transfer syntax is not read, or a frame is absurdly large.
    MissingPackageError
        If the decoder is not installed.
    """
    if syntax not in COMPRESSED:
        known = UID(syntax).name
        raise ReadError(
            f"DICOM: the transfer syntax {known} is not read. Convert it to Explicit VR Little Endian first."
        )
    if syntax not in IN_CORE:
        require("imagecodecs", feature="decoding this compressed DICOM", extra="codecs")
    if layout.allocated not in {8, 16, 32}:
        raise ReadError(f"DICOM: compressed pixels with BitsAllocated {layout.allocated}; 8, 16 and 32 are read")
    check_size((layout.rows, layout.columns, layout.samples), "compressed DICOM", limit=MAX_FRAME_VALUES)
    return FrameFormat(
        syntax=syntax,
        rows=layout.rows,
        columns=layout.columns,
        samples=layout.samples,
        allocated=layout.allocated,
        stored=layout.stored,
        high=layout.high,
        signed=layout.signed,
        photometric=layout.photometric,
        planar=int(header.get("PlanarConfiguration") or 0),
    )


def compressed_frames(data: bytes, form: FrameFormat, count: int) -> list[bytes]:
    """The compressed frames in the value of a PixelData, each of the size that the header declares.

    Raises
    ------
    ReadError
        If there are more or fewer than `count`, or one is not of that size.
    """
    frames = list(generate_frames(data, number_of_frames=count))
    if len(frames) != count:
        raise ReadError(f"DICOM: {count} frames are declared, {len(frames)} are there: cut off")
    for frame in frames:
        if len(frame) > _room(form.size):
            raise ReadError(
                f"DICOM: a compressed frame has {len(frame):,} bytes, more than twice the {form.size:,} of its pixels: damaged"
            )
        if form.syntax != RLE and stream_size(frame) != (form.rows, form.columns):
            rows, columns = stream_size(frame)
            raise ReadError(
                f"DICOM: a compressed frame says it is {rows} x {columns}, the header says {form.rows} x {form.columns}"
            )
    return frames


def check_items(data: bytes) -> None:
    """Walk the fragments of a compressed PixelData as it lies in a file, to the delimiter that ends it (PS3.5 A.4).

    Raises
    ------
    ReadError
        If a fragment reaches past the end, or the delimiter is missing.
    """
    at = 0
    while at + 8 <= len(data):
        tag, length = struct.unpack_from("<II", data, at)
        if tag == 0xE0DDFFFE:
            return
        if tag != 0xE000FFFE:
            raise ReadError("DICOM: between the fragments of the compressed pixels stands something else: damaged")
        at += 8 + length
    raise ReadError("DICOM: cut off, the compressed pixels have no end")


def _room(size: int) -> int:
    """Bytes that a frame of `size` decoded bytes has, compressed or not. No honest encoder makes it twice as long."""
    return 2 * size + 2**16


def decode_frames(jobs: Iterable[dict[str, object]], size: int) -> Iterator[tuple[int, Array]]:
    """Decode compressed frames beside each other in processes with limits; in place where this process has limits.

    A frame may take 256 MiB and 24 times its size, and 30 seconds and one for every million bytes of it.

    Parameters
    ----------
    jobs : iterable of dict
        As :meth:`sagittal.formats.codecs.FrameFormat.job` makes them; taken as frames are done.
    size : int
        Bytes of the largest decoded frame.

    Yields
    ------
    (int, Array)
        The number of the frame, in the order in which they are done, and its values, (rows, columns, samples), valid
        until the next is asked for.

    Raises
    ------
    ReadError
        If a frame cannot be decoded, or its decoder crashed or exceeded its limits.
    """
    if limits.within_limits:
        for number, job in enumerate(jobs):
            yield number, decode_frame(job)
        return
    running = limited.run(
        f"{decode_frame.__module__}:{decode_frame.__qualname__}",
        jobs,
        memory_bytes=FRAME_MEMORY[0] + FRAME_MEMORY[1] * size,
        timeout_s=FRAME_TIME[0] + size / FRAME_TIME[1],
        room=_room(size),
    )
    with closing(running):
        for number, result in running:
            if isinstance(result, SagittalError):
                raise result
            yield number, result


def _floats(raw: bytes, layout: PixelFormat, dtype: str) -> Array:
    values = np.frombuffer(raw, "<" + dtype)
    shape = (layout.frames, layout.rows, layout.columns, layout.samples)
    if values.size < np.prod(shape):
        raise ReadError("DICOM: the floating-point pixel data is cut off")
    return values[: int(np.prod(shape))].reshape(shape)


def _native(header: Header, layout: PixelFormat) -> Array:
    shape = (layout.frames, layout.rows, layout.columns, layout.samples)
    if layout.allocated == 1 or layout.samples == 3:
        return _by_pydicom(header, layout)
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
    return by_layout(values, layout).reshape(shape)


def by_layout(values: Array, layout: PixelFormat) -> Array:
    """Unsigned stored values with their bits in place and their sign (:func:`sagittal.formats.codecs.cut_to_bits`)."""
    return cut_to_bits(values, allocated=layout.allocated, stored=layout.stored, high=layout.high, signed=layout.signed)


def _by_pydicom(header: Header, layout: PixelFormat) -> Array:
    decoder = get_decoder(header.file_meta.TransferSyntaxUID)
    pixels, _ = decoder.as_array(header)  # colour comes out as RGB
    return np.asarray(pixels).reshape(layout.frames, layout.rows, layout.columns, -1)


def _palette(indices: Array, header: Header) -> Array:
    if "RedPaletteColorLookupTableDescriptor" not in header:
        raise ReadError("DICOM: PALETTE COLOR without its colour table")
    colours = apply_color_lut(indices, header)[..., :3]
    bits = int(header.RedPaletteColorLookupTableDescriptor[2])
    if bits == 16:
        colours = colours >> 8
    return colours.astype(np.uint8)
