"""NIfTI-1 and NIfTI-2 files: RAS+ to LPS+ here, and nowhere else."""

from __future__ import annotations

import io
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.errors import GeometryError, ReadError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.read.gzipped import GzipStream
from sagittal.read.limits import as_read_error, check_file, check_memory, check_size
from sagittal.types import Array, Floats

#: NIfTI counts x to the right and y to the front; DICOM and Sagittal to the left and the back.
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Deflate packs at most 1,032 to 1, so a smaller file cannot hold what it declares.
_MOST_PACKED = 1040
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
        values = _values(file, start, header, expected)
        slope, intercept = header.get_slope_inter()
        data = _channels_first(values, slope, intercept)  # (C, I, J, K)
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
    bits = 8 * values.dtype.itemsize if values.dtype.kind in "ui" else 0
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


def _values(file: GzipStream | io.FileIO, start: bytes, header: Any, expected: int) -> Array:
    """The stored values, read to the declared length and not further."""
    offset = max(int(header["vox_offset"]), 0)
    if offset > 2**24:
        raise ReadError(f"NIfTI: the values are said to begin at byte {offset:,}: damaged")
    if offset > len(start):
        file.read(offset - len(start))
    raw = np.empty(expected, np.uint8)
    begun = start[offset : offset + expected]
    raw[: len(begun)] = np.frombuffer(begun, np.uint8)
    at = len(begun)
    while at < expected and (count := file.readinto(raw[at:].data)):
        at += count
    if at < expected:
        raise ReadError(f"NIfTI: cut off, {expected - at:,} of {expected:,} bytes are missing")
    if isinstance(file, GzipStream):
        file.check_end()
    dtype = header.get_data_dtype()
    values: Array = raw.view(dtype)
    if dtype.fields:  # RGB24, RGBA32: colours as a last axis, transparency dropped
        values = np.stack([values[name] for name in ("R", "G", "B")])
        shape = tuple(int(n) for n in header.get_data_shape())
        return values.reshape(3, *shape[::-1]).transpose(*range(len(shape), 0, -1), 0)
    if dtype.kind not in "uif":
        raise ReadError(f"NIfTI: values of type {dtype} are not read")
    return values.reshape(tuple(int(n) for n in header.get_data_shape())[::-1]).T


def _channels_first(values: Array, slope: float | None, intercept: float | None) -> Floats:
    if slope is None or (slope, intercept) == (1.0, 0.0):
        data = values.astype(np.float32)
    else:
        data = np.empty_like(values, dtype=np.float32)
        # In double precision first: a scaled 32-bit integer would lose its last digits. Plane by plane, to save memory.
        for out, stored in zip(data.T, values.T, strict=True) if values.ndim else ():
            out[...] = stored.astype(np.float64) * slope + float(intercept or 0.0)
    shape = data.shape + (1,) * (4 - data.ndim)
    return np.moveaxis(data.reshape(*shape[:3], prod(shape[3:]), order="F"), -1, 0)
