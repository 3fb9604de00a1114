"""NIfTI-1 and NIfTI-2 files: RAS+ to LPS+ here, and nowhere else."""

from __future__ import annotations

import io
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.errors import GeometryError, ReadError
from sagittal.grid import Grid
from sagittal.guard.gzipped import GzipStream
from sagittal.guard.limits import as_read_error, check_file, check_memory, check_size
from sagittal.image import Image
from sagittal.types import Floats

#: NIfTI counts x to the right and y to the front; DICOM and Sagittal to the left and the back.
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Deflate packs at most 1,032 to 1, so a smaller file cannot hold what it declares.
_MOST_PACKED = 1040
#: Values that are converted at a time: a part stays in the cache.
_PART = 2**20
_MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}


def read_nifti(path: Path, affine: Floats | None = None) -> Image:
    """Read a 2-D to 5-D NIfTI file (``.nii``, ``.nii.gz``); nothing is reoriented or resampled.

    The fourth or fifth axis becomes channels. The slope and intercept of the header are applied. The sform is used
    where its code is above 0, else the qform; with neither, the grid has the voxel size of the header and no position.

    Parameters
    ----------
    path : Path
    affine : (4, 4) float, mm, optional
        Voxel indices -> RAS+, instead of the header's.

    Raises
    ------
    ReadError
        If the file is damaged or holds values that are no numbers.
    GeometryError
        If its position is not usable.
    """
    size = check_file(path)
    with as_read_error("NIfTI"), _opened(path) as file:
        packed = isinstance(file, GzipStream)
        header, start = _header(file)
        shape = tuple(int(n) for n in header.get_data_shape())
        expected = check_size(shape, "NIfTI") * header.get_data_dtype().itemsize
        if expected > size * (_MOST_PACKED if packed else 1):
            raise ReadError(
                f"NIfTI: declares {shape} = {expected:,} bytes, but the file holds {size:,}: damaged or cut off"
            )
        check_memory(expected + 4 * prod(shape), "NIfTI")
        slope, intercept = header.get_slope_inter()
        dtype = header.get_data_dtype()
        # In double precision first: a scaled 32-bit integer would lose its last digits.
        line = None if slope is None or (slope, intercept) == (1.0, 0.0) else (float(slope), float(intercept or 0.0))
        data = _values(file, start, header, expected, line)  # (C, I, J, K)
        unit = _MILLIMETRES[header.get_xyzt_units()[0]]
        if affine is None and int(header["qform_code"]) == int(header["sform_code"]) == 0:
            zooms = np.array([*header.get_zooms()[:3], np.nan, np.nan], dtype=np.float64)[:3] * unit
            spacing = zooms if np.all((zooms > 0) | np.isnan(zooms)) and np.any(zooms > 0) else None
            grid = Grid(data.shape[1:], spacing=spacing)
        else:
            position = np.array(header.get_best_affine() if affine is None else affine, dtype=np.float64)
            if affine is None:
                position[:3] *= unit
            if not np.all(np.isfinite(position)):
                raise GeometryError("NIfTI: the position in the header holds values that are not finite")
            grid = Grid(data.shape[1:], RAS_TO_LPS @ position)
    bits = 8 * dtype.itemsize if dtype.kind in "ui" else 0
    return Image(data, grid, bits=bits)


def _opened(path: Path) -> GzipStream | io.FileIO:
    file = path.open("rb", buffering=0)
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return GzipStream(file) if packed else file


def _header(file: GzipStream | io.FileIO) -> tuple[Any, bytes]:
    """The header, and all bytes that have been read."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    start = file.read(540)
    two = start[4:8] in {b"n+2\0", b"ni2\0"}
    magic = start[4:8] if two else start[344:348]
    if magic in {b"ni1\0", b"ni2\0"}:
        raise ReadError("NIfTI: a header without its values (.hdr/.img pair); convert it to a single .nii.gz")
    if magic not in {b"n+1\0", b"n+2\0"}:
        raise ReadError("NIfTI: the file does not hold a NIfTI header (no 'n+1' or 'n+2' mark)")
    kind: Any = Nifti2Header if two else Nifti1Header
    return kind(start[: kind.sizeof_hdr], check=False), start


def _values(
    file: GzipStream | io.FileIO, start: bytes, header: Any, expected: int, line: tuple[float, float] | None
) -> Floats:
    """The values, (C, I, J, K); what is stored is read to the declared length and not further, and converted by parts."""
    offset = max(int(header["vox_offset"]), 0)
    if offset > 2**24:
        raise ReadError(f"NIfTI: the values are said to begin at byte {offset:,}: damaged")
    if offset > len(start):
        file.read(offset - len(start))
    shape, dtype = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
    colours = len([name for name in ("R", "G", "B") if name in (dtype.fields or ())]) or 1  # transparency is dropped
    if not dtype.fields and dtype.kind not in "uif":
        raise ReadError(f"NIfTI: values of type {dtype} are not read")
    data = np.empty((colours, prod(shape)), np.float32)
    part = np.empty(min(_PART, prod(shape)), dtype)
    raw = part.view(np.uint8)
    begun = np.frombuffer(start[offset : offset + expected], np.uint8)
    done = 0  # bytes
    while done < expected:
        room = raw[: min(len(raw), expected - done)]
        at = len(begun)
        room[:at] = begun
        while at < len(room) and (count := file.readinto(room[at:].data)):
            at += count
        done, begun = done + at, begun[:0]
        if at < len(room):
            raise ReadError(f"NIfTI: cut off, {expected - done:,} of {expected:,} bytes are missing")
        stored = room.view(dtype)
        place = slice((done - at) // dtype.itemsize, done // dtype.itemsize)
        for channel, name in enumerate(("R", "G", "B")[:colours]):
            values = stored[name] if dtype.fields else stored
            data[channel, place] = values if line is None else values.astype(np.float64) * line[0] + line[1]
    if isinstance(file, GzipStream):
        file.check_end()
    # The first index runs fastest; what stands behind the third axis becomes channels.
    whole = data.reshape(colours, *(shape + (1,) * (3 - len(shape)))[::-1])
    if len(shape) <= 3:
        return whole.transpose(0, 3, 2, 1)
    return whole.reshape(-1, *shape[2::-1]).transpose(0, 3, 2, 1)
