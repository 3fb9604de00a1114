"""The voxels of a DICOM series: files opened, frames decoded and written, in float32, into one array.

What the frames mean and where they lie is decided elsewhere (dicom_values, dicom_geometry); here they only become
numbers, in the order that is asked for. Uncompressed grey frames go straight from the file into their slice, compressed
ones by way of processes with limits, each on all cores; everything else takes the general way, file by file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from pydicom.dataset import Dataset as Header

from sagittal.errors import ReadError
from sagittal.formats.codecs import FrameFormat
from sagittal.formats.dicom_file import PixelFormat
from sagittal.formats.dicom_header import LazyHeader, Memo, open_header
from sagittal.formats.dicom_pixels import (
    NATIVE,
    by_layout,
    check_items,
    compressed_frames,
    decode_frames,
    decode_pixels,
    frame_format,
)
from sagittal.guard.limited import cores
from sagittal.types import Array, Floats

#: Stored grey values -> values: ``(slope, intercept)`` of a line, or a function of the stored array of one frame.
Meaning = tuple[float, float] | Callable[[Array], Array]
#: A series of fewer values is not worth a second thread.
_WORTH_THREADS = 2**22


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
        As :func:`sagittal.formats.dicom_file.open_dicom`.
    """
    memo: Memo = {}
    opened = (open_header(Path(path), memo) for path in paths)
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
    colours = _colours(first)
    stack = np.empty((len(frames), first.rows, first.columns, colours), dtype=np.float32)
    files: dict[int, list[int]] = {}
    for k, frame in enumerate(frames):
        files.setdefault(id(frame.header), []).append(k)
    plain: list[int] = []
    packed: list[list[int]] = []
    for slices in files.values():
        frame = frames[slices[0]]
        if (frame.layout.rows, frame.layout.columns, _colours(frame.layout)) != (first.rows, first.columns, colours):
            raise ReadError("DICOM: the frames of a volume are of different sizes")
        if _goes_straight(frame):
            frame.layout.check_native(cast(LazyHeader, frame.header).pixels_length)
            plain += slices
        elif _is_packed(frame):
            packed.append(slices)
        else:
            pixels = decode_pixels(frame.header, frame.layout)
            if pixels.shape != (frame.layout.frames, first.rows, first.columns, colours):
                raise ReadError(f"DICOM: pixels decode to {pixels.shape}, not the declared size")
            for k in slices:
                _write(stack[k], pixels[frames[k].number], frames[k].meaning)
    _read_plain(frames, plain, stack)
    _read_packed(frames, packed, stack)
    return stack.transpose(3, 2, 1, 0)


def _colours(layout: PixelFormat) -> int:
    return 3 if layout.samples == 3 or layout.photometric == "PALETTE COLOR" else 1


def _goes_straight(frame: StackFrame) -> bool:
    header, layout = frame.header, frame.layout
    return (
        isinstance(header, LazyHeader)
        and header.syntax in NATIVE
        and _colours(layout) == 1
        and layout.allocated in {8, 16, 32}
        and header.pixels_length < 2**31
    )


def _is_packed(frame: StackFrame) -> bool:
    header = frame.header
    return (
        isinstance(header, LazyHeader) and header.syntax not in NATIVE and frame.layout.photometric != "PALETTE COLOR"
    )


def _read_plain(frames: Sequence[StackFrame], slices: list[int], stack: Floats) -> None:
    """Uncompressed frames from their files into their slices."""
    if not slices:
        return
    workers = min(cores(), 4) if len(slices) * stack[0].size > _WORTH_THREADS else 1
    if workers == 1:
        _read_some(frames, slices, stack)
        return
    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(_read_some, frames, slices[n::workers], stack) for n in range(workers)]:
            done.result()


def _read_some(frames: Sequence[StackFrame], slices: list[int], stack: Floats) -> None:
    first = frames[slices[0]].layout
    values = np.empty(0, np.uint8)
    for k in slices:
        header, layout = cast(LazyHeader, frames[k].header), frames[k].layout
        if values.itemsize != layout.allocated // 8 or not values.size:
            values = np.empty(first.rows * first.columns, f"<u{layout.allocated // 8}")
        with open(header.path, "rb", buffering=0) as file:
            file.seek(header.pixels_at + frames[k].number * values.nbytes)
            view = values.view(np.uint8).data
            while view:
                count = file.readinto(view)
                if not count:
                    raise ReadError("DICOM: the file was cut off while it was read")
                view = view[count:]
        _write(stack[k], by_layout(values, layout).reshape(layout.rows, layout.columns, 1), frames[k].meaning)


def _read_packed(frames: Sequence[StackFrame], files: list[list[int]], stack: Floats) -> None:
    """Compressed frames, decoded as their files are read."""
    if not files:
        return
    places: list[int] = []
    forms = [_form(frames[slices[0]]) for slices in files]

    def jobs() -> Iterator[dict[str, object]]:
        for slices, form in zip(files, forms, strict=True):
            header, layout = cast(LazyHeader, frames[slices[0]].header), frames[slices[0]].layout
            with open(header.path, "rb") as file:
                file.seek(header.pixels_at)
                data = file.read(header.pixels_length)
            check_items(data)
            found = compressed_frames(data, form, layout.frames)
            for k in slices:
                places.append(k)
                yield form.job(found[frames[k].number])

    for number, values in decode_frames(jobs(), max(form.size for form in forms)):
        k = places[number]
        _write(stack[k], values, frames[k].meaning)


def _form(frame: StackFrame) -> FrameFormat:
    header = cast(LazyHeader, frame.header)
    return frame_format(header, frame.layout, header.syntax)


def _write(out: Floats, stored: Array, meaning: Meaning) -> None:
    """Stored values of a frame, (rows, columns, C), as values into its slice."""
    if out.shape[-1] == 3:
        out[...] = stored
    elif callable(meaning):
        out[..., 0] = meaning(stored[..., 0])
    elif meaning == (1.0, 0.0):
        out[...] = stored
    elif meaning[0] == 1.0 and meaning[1] == round(meaning[1]) and stored.dtype.itemsize <= 2:
        out[...] = stored  # exact, and a third of the time of double precision
        out += np.float32(meaning[1])
    else:
        values = np.multiply(stored, meaning[0], dtype=np.float64)
        values += meaning[1]
        out[...] = values
