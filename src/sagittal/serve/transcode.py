"""A stored DICOM file in Explicit VR Little Endian, for who cannot read the transfer syntax that it was sent in (PS3.18 8.7.3.5)."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian

from sagittal.errors import ReadError
from sagittal.formats.codecs import COMPRESSED
from sagittal.formats.dicom_file import open_dicom
from sagittal.formats.dicom_pixels import NATIVE, decode_frames, frame_format
from sagittal.guard.limits import as_read_error
from sagittal.serve.frames import BIG_ENDIAN, open_frames

#: Decoded bytes of a file; a longer one is given as it is stored only.
MAX_DECODED = 2**29


#: Files that are decoded at the same time.
_TURNS = threading.BoundedSemaphore(2)


def can_decode(syntax: str) -> bool:
    """Whether files of a transfer syntax can be given in Explicit VR Little Endian."""
    return syntax in NATIVE or syntax in COMPRESSED


def explicit_file(path: Path) -> bytes:
    """The file in Explicit VR Little Endian: pixels decoded, everything else as it is.

    Colours become RGB by pixel, as decoders give them. Lossy compression that was is still told by the header.

    Raises
    ------
    ReadError
        If the file is damaged, its pixels cannot be decoded, or they are too many.
    MissingPackageError
        If the decoder is not installed.
    """
    with _TURNS, as_read_error("DICOM"):
        header = open_dicom(path)
        syntax = str(header.file_meta.TransferSyntaxUID)
        if "PixelData" in header and syntax in COMPRESSED:
            _decode(path, header, syntax)
        elif "PixelData" in header and syntax == BIG_ENDIAN:
            frames = open_frames(path)
            pixels = b"".join(frames.stored(n) for n in range(frames.count))
            header.PixelData = pixels + b"\0" * (len(pixels) % 2)
        elif syntax not in NATIVE:
            raise ReadError("DICOM: the transfer syntax is not decoded")
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
            if name in header:
                delattr(header, name)
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, header, enforce_file_format=True, implicit_vr=False, little_endian=True)
        return stream.getvalue()


def _decode(path: Path, header: pydicom.Dataset, syntax: str) -> None:
    frames = open_frames(path)
    layout = frames.layout
    if frames.count * layout.rows * layout.columns * layout.samples * layout.allocated // 8 > MAX_DECODED:
        raise ReadError("DICOM: too many pixels to be given decoded; ask for it as it is stored")
    form = frame_format(frames.header, layout, syntax)
    pixels: list[bytes] = [b""] * frames.count
    for number, values in decode_frames((form.job(frames.stored(n)) for n in range(frames.count)), form.size):
        pixels[number] = np.ascontiguousarray(values).astype(f"<u{layout.allocated // 8}", copy=False).tobytes()
    joined = b"".join(pixels)
    header.PixelData = joined + b"\0" * (len(joined) % 2)
    element = header["PixelData"]
    element.is_undefined_length = False
    element.VR = "OW" if layout.allocated > 8 else "OB"
    header.HighBit = layout.stored - 1
    if layout.samples == 3:
        header.PhotometricInterpretation = "RGB"
        header.PlanarConfiguration = 0
