"""The voxels of a DICOM series: files opened, frames decoded and written, in float32, into one array.

What the frames mean and where they lie is decided elsewhere (dicom_values, dicom_geometry); here they only become
numbers, in the order that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset as Header

from sagittal.errors import ReadError
from sagittal.read.dicom_file import PixelFormat, open_dicom
from sagittal.read.dicom_pixels import decode_pixels
from sagittal.types import Array, Floats

#: Stored grey values -> values: ``(slope, intercept)`` of a line, or a function of the stored array of one frame.
Meaning = tuple[float, float] | Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class StackFrame:
    """One frame that is to become a slice.

    Attributes
    ----------
    header : Header
        As :func:`open_series` gave it.
    number : int
        Of the frame in its file, from 0.
    layout : PixelFormat
        Of its file.
    meaning : Meaning
        Applied to grey values; colours are 0 to 255 as they are.
    """

    header: Header
    number: int
    layout: PixelFormat
    meaning: Meaning = (1.0, 0.0)


def open_series(paths: Sequence[Path]) -> list[Header]:
    """The headers of some DICOM files, each instance (SOPInstanceUID) once, in the order of the files.

    Raises
    ------
    ReadError
        As :func:`sagittal.read.dicom_file.open_dicom`.
    """
    opened = (open_dicom(Path(path)) for path in paths)
    return list({str(header.get("SOPInstanceUID") or number): header for number, header in enumerate(opened)}.values())


def stack_frames(frames: Sequence[StackFrame]) -> Floats:
    """Values of the frames along k, (C, columns, rows, frames) float32; C is 3 for colour and palettes, else 1.

    Frames may come from many files or be some of the frames of one; all have the size of the first.

    Raises
    ------
    ReadError
        If pixels are damaged, cut off, or do not fit their header.
    MissingPackageError
        If a decoder is not installed.
    """
    first = frames[0].layout
    colours = 3 if first.samples == 3 or first.photometric == "PALETTE COLOR" else 1
    stack = np.empty((len(frames), first.rows, first.columns, colours), dtype=np.float32)
    places: dict[int, list[int]] = {}
    for k, frame in enumerate(frames):
        places.setdefault(id(frame.header), []).append(k)
    for slices in places.values():
        header, layout = frames[slices[0]].header, frames[slices[0]].layout
        pixels = decode_pixels(header, layout)
        if pixels.shape != (layout.frames, first.rows, first.columns, colours):
            raise ReadError(f"DICOM: pixels decode to {pixels.shape}, not the declared size")
        for k in slices:
            values = pixels[frames[k].number]
            stack[k] = values if colours == 3 else _mean(values, frames[k].meaning)
    return stack.transpose(3, 2, 1, 0)


def _mean(stored: Array, meaning: Meaning) -> Array:
    if callable(meaning):
        return meaning(stored)
    slope, intercept = meaning
    if (slope, intercept) == (1.0, 0.0):
        return stored
    if slope == 1.0 and intercept == round(intercept) and stored.dtype.itemsize <= 2:
        # Exact, and half the time of double precision.
        return np.asarray(np.add(stored, np.float32(intercept), dtype=np.float32))
    return np.asarray(stored * slope + intercept)
