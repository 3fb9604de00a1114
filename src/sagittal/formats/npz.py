"""``.npy`` and ``.npz`` arrays, never with pickled objects inside."""

from __future__ import annotations

import zipfile
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from sagittal.errors import ReadError, nearest
from sagittal.grid import Grid
from sagittal.guard.archive import check_directory
from sagittal.guard.limits import as_read_error, check_file, check_memory, check_size
from sagittal.image import Image
from sagittal.types import Array


def read_npz(path: Path, member: str | None = None) -> Image:
    """Read one array of a ``.npz`` or ``.npy`` file as an image without position.

    Parameters
    ----------
    path : Path
    member : str, optional
        Name of the array; may be left out where there is only one.

    Returns
    -------
    Image
        An array of (H, W), (H, W, 3), (D, H, W) or (D, H, W, 3) becomes data (C, W, H, D).

    Raises
    ------
    ReadError
        If the file is damaged, holds objects instead of numbers, or an array that is no image.
    """
    return array_image(load_array(path, member))


def array_image(array: Array) -> Image:
    """The image that an array in storage order (slices, rows, columns, colours) holds.

    A last axis of 3 is colour where no other axis is that short.

    >>> array_image(np.zeros((32, 40, 3), np.uint8)).data.shape
    (3, 40, 32, 1)
    >>> array_image(np.zeros((9, 32, 40), np.uint8)).data.shape
    (1, 40, 32, 9)
    """
    if array.dtype.kind not in "uifb":
        raise ReadError(f"array: values of type {array.dtype} are no image")
    colour = array.ndim in {3, 4} and array.shape[-1] == 3 and min(array.shape[:-1]) > 3
    planes = array if colour else array[..., np.newaxis]
    if planes.ndim == 3:
        planes = planes[np.newaxis]  # (D, H, W, C)
    if planes.ndim != 4:
        raise ReadError(
            f"array: shape {array.shape} is no image; expected (H, W), (H, W, 3), (D, H, W) or (D, H, W, 3)"
        )
    check_size(planes.shape, "array")
    bits = 8 * array.dtype.itemsize if array.dtype.kind == "u" else int(array.dtype.kind == "b")
    with np.errstate(over="ignore"):  # beyond 32 bits: infinite, which check reports
        data = planes.astype(np.float32, order="C").transpose(3, 2, 1, 0)  # (C, W, H, D)
    return Image(data, Grid(data.shape[1:]), bits=bits)


def read_npz_item(path: Path, member: str, index: int, modality: str = "OT") -> Image:
    """One image out of an array that stacks many along its first axis.

    The whole array is unpacked once a process and kept, because a compressed ``.npz`` cannot be entered in the middle.
    """
    stack = stacked_array(path, member)
    if not 0 <= index < len(stack):
        raise ReadError(f"array '{member}' has {len(stack)} images, not one of number {index}")
    image = array_image(stack[index])
    return Image(image.data, image.grid, modality=modality, bits=image.bits)


def stacked_array(path: Path, member: str) -> Array:
    """An array of a ``.npz`` file, read-only and kept in memory while the file on disk is the same."""
    status = path.stat() if check_file(path) else None
    return _stacked(path, member, status.st_mtime_ns if status else 0, status.st_size if status else 0)


@lru_cache(maxsize=4)
def _stacked(path: Path, member: str, mtime: int, size: int) -> Array:
    array = load_array(path, member)
    array.flags.writeable = False
    return array


def array_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays of a ``.npz`` file, from their headers alone."""
    check_file(path)
    with as_read_error("npz"), _archive(path) as archive:
        shapes = {}
        for info in archive.infolist():
            if info.filename.endswith(".npy"):
                with archive.open(info) as file:
                    shapes[info.filename.removesuffix(".npy")] = _header(file, info.file_size)[0]
    return shapes


def load_array(path: Path, member: str | None = None) -> Array:
    """An array of a ``.npz`` or ``.npy`` file, its declared size checked before anything is allocated.

    Raises
    ------
    ReadError
    ResourceError
        If it would fill more than half of the memory.
    """
    size = check_file(path)
    with as_read_error("array"):
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                file.seek(0)
                return _load(file, size)
        with _archive(path) as archive:
            names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
            if member is None:
                if len(names) != 1:
                    raise ReadError(f"npz: holds {len(names)} arrays ({', '.join(names[:8])}); say which")
                member = names[0]
            if member not in names:
                raise ReadError(f"npz: has no array '{member}'. {nearest(member, names)}")
            info = archive.getinfo(f"{member}.npy")
            with archive.open(info) as opened:
                return _load(opened, info.file_size)


def _archive(path: Path) -> zipfile.ZipFile:
    if not zipfile.is_zipfile(path):
        raise ReadError("npz: damaged, cut off, or not an .npz or .npy file")
    check_directory(path)  # before zipfile keeps an object for each entry
    archive = zipfile.ZipFile(path)
    if not any(name.endswith(".npy") for name in archive.namelist()):
        archive.close()
        raise ReadError("a zip archive without .npy arrays; rename it to .zip, or unpack it and give the folder")
    return archive


def _load(file: IO[bytes], size: int) -> Array:
    shape, fortran, dtype = _header(file, size)
    count = prod(shape)
    check_memory(count * dtype.itemsize, "array")
    raw = bytearray()
    left = count * dtype.itemsize
    while left and (chunk := file.read(min(left, 2**24))):  # grows only as far as there are bytes
        raw += chunk
        left -= len(chunk)
    if left:
        raise ReadError(f"array: cut off, {left:,} bytes are missing")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


def _header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type that an ``.npy`` header declares, compared with the `size` of the entry."""
    version = np.lib.format.read_magic(file)
    if version not in {(1, 0), (2, 0), (3, 0)}:
        raise ReadError(f"array: npy version {version} is not read")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ReadError("array: holds pickled objects, which can run code; refused. Save plain numbers instead.")
    if dtype.kind not in "buif":
        raise ReadError(f"array: values of type {dtype} are not read")
    if any(n < 0 for n in shape) or prod(shape) * dtype.itemsize > size:
        raise ReadError(f"array: declares {shape} of {dtype}, more than the {size:,} bytes that the file holds")
    return shape, fortran, dtype
