"""Values stored behind a text header, as NRRD and MetaImage keep them: where they lie, and reading no more than declared."""

from __future__ import annotations

import bz2
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from sagittal.errors import GeometryError, ReadError
from sagittal.grid import Grid
from sagittal.guard.gzipped import inflater
from sagittal.guard.limits import check_memory, check_size
from sagittal.image import Image
from sagittal.types import Array, Floats

_CHUNK = 2**22
#: Bytes beyond the declared ones that are dropped on the way to the checksum.
_SPARE = 2**24
#: Most that a byte of a stream can unpack to: 1,032 for deflate; a blank volume packs a million times with bzip2.
_MOST_PACKED = {"raw": 1, "zlib": 1040, "bzip2": 2_000_000}


def beside(header: Path, name: str, what: str) -> Path:
    """The data file that a header names: an ordinary file in the header's own folder, told by its plain name.

    Raises
    ------
    ReadError
        If the name leads elsewhere, is a list or pattern of files, or no such file lies there.
    """
    name = name.strip()
    if name.startswith("./"):
        name = name[2:]
    if name.upper().split(" ")[0].startswith("LIST") or "%" in name:
        raise ReadError(f"{what}: the values lie in several files; save it as one file first")
    if not name or name in {".", ".."} or any(mark in name for mark in "/\\:\0"):
        raise ReadError(
            f"{what}: the header names a data file in another place; only a file beside the header is read. "
            "Put both into one folder and write the plain file name into the header."
        )
    path = header.parent / name
    try:
        there = path.is_file()
        home = path.resolve().parent in {header.parent.resolve(), header.resolve().parent}
    except OSError as error:  # a name too long for the file system
        raise ReadError(f"{what}: the data file that the header names cannot be opened") from error
    if not there:
        raise ReadError(f"{what}: the data file that the header names does not lie beside it; copy both together")
    if path.is_symlink() and not home:
        raise ReadError(f"{what}: the data file beside the header is a link to another place; refused")
    return path


def read_stored(
    file: IO[bytes], count: int, dtype: np.dtype[Any], packing: str, available: int, what: str, *, skip: int = 0
) -> Array:
    """`count` values from the present place of a file, unpacked no further than they need.

    Parameters
    ----------
    packing : {"raw", "zlib", "bzip2", "text"}
        ``zlib`` stands for gzip as well.
    available : int
        Bytes that are left in the file, with which the declared size is compared before anything is allocated.
    skip : int
        Bytes to leave out after unpacking.

    Raises
    ------
    ReadError
        If the file holds less than was declared, or the packed part is damaged.
    ResourceError
        If the values would fill more than half of the memory.
    """
    needed = count * dtype.itemsize
    if packing == "text":
        return _from_text(file, count, dtype, available, what)
    if needed + skip > available * _MOST_PACKED[packing]:
        raise ReadError(f"{what}: declares {needed:,} bytes, but the file holds {available:,}: damaged or cut off")
    check_memory(needed + 4 * count, what)
    raw: Array = np.empty(needed + skip, dtype=np.uint8)  # memory is taken as it is filled
    filled = _fill(memoryview(raw), file, packing, what)  # type: ignore[arg-type]
    if filled < needed + skip:
        raise ReadError(f"{what}: cut off, {needed + skip - filled:,} of {needed:,} bytes are missing")
    values: Array = np.frombuffer(raw, dtype, count=count, offset=skip)
    return values.astype(dtype.newbyteorder("="), copy=False)


def _fill(room: memoryview, file: IO[bytes], packing: str, what: str) -> int:
    """Unpack into a buffer, and to the end of the packed part, so that its checksum is compared; the bytes filled."""
    at = 0
    if packing == "raw":
        while at < len(room) and (count := file.readinto(room[at : at + _CHUNK])):  # type: ignore[attr-defined]
            at += count
        return at
    packed = file.read(_CHUNK)
    # 31 for gzip, 15 for zlib
    worker: Any = bz2.BZ2Decompressor() if packing == "bzip2" else inflater(31 if packed[:2] == b"\x1f\x8b" else 15)
    ended = not packed
    spare = _SPARE
    while not worker.eof:
        try:
            piece = worker.decompress(packed, _CHUNK)
        except Exception as error:  # zlib.error, isal_zlib.IsalError, OSError, ValueError
            raise ReadError(f"{what}: the compressed part is damaged or cut off") from error
        packed = worker.unconsumed_tail if packing == "zlib" else b""
        if ended and not piece and not worker.eof:
            raise ReadError(f"{what}: cut off, the compressed part has no end")
        wanted = piece[: len(room) - at]
        room[at : at + len(wanted)] = wanted
        at += len(wanted)
        spare -= len(piece) - len(wanted)
        if spare < 0:
            raise ReadError(f"{what}: the compressed part holds far more than was declared: damaged")
        if not packed and (packing == "zlib" or worker.needs_input):
            packed = file.read(_CHUNK)
            ended = not packed
    return at


def _from_text(file: IO[bytes], count: int, dtype: np.dtype[Any], available: int, what: str) -> Array:
    if count > available:  # each number takes at least a digit and a blank
        raise ReadError(
            f"{what}: declares {count:,} numbers, but the file holds {available:,} bytes: damaged or cut off"
        )
    check_memory(available * 20, what)
    words = file.read(min(available, 40 * count + 1)).split()
    if len(words) < count:
        raise ReadError(f"{what}: cut off, {count - len(words):,} of {count:,} numbers are missing")
    try:
        if dtype.kind == "f":
            return np.array([float(word) for word in words[:count]], dtype=dtype.newbyteorder("="))
        return np.array([int(word) for word in words[:count]], dtype=dtype.newbyteorder("="))
    except (ValueError, OverflowError) as error:
        raise ReadError(f"{what}: holds text that is no number of the declared type") from error


def channels_first(values: Array, sizes: Sequence[int], spatial: Sequence[int]) -> Array:
    """Values in file order, fastest axis first, as (C, I, J, K).

    Parameters
    ----------
    sizes : sequence of int
        Extents, fastest axis first.
    spatial : sequence of int
        Which of the axes are i, j and k; the others become channels, the fastest of them fastest.

    >>> channels_first(np.arange(12), (3, 2, 2), (1, 2))[:, 0, 0, 0].tolist()
    [0, 1, 2]
    """
    others = [axis for axis in range(len(sizes)) if axis not in spatial]
    volume = values.reshape(tuple(sizes), order="F")
    volume = volume.transpose(*others, *spatial)
    shape = [sizes[axis] for axis in spatial] + [1] * (3 - len(spatial))
    if len(others) > 1:
        volume = volume.reshape(prod(sizes[axis] for axis in others), *shape, order="F")
    return volume.reshape(prod(sizes[axis] for axis in others), *shape)


def check_stored(sizes: Sequence[int], axes: int, what: str) -> int:
    """The number of values of declared extents, refused where absurd or where there are other than 2 to 8 axes."""
    if not 2 <= axes <= 8:
        raise ReadError(f"{what}: declares {axes} axes; 2 to 8 are read")
    if len(sizes) != axes:
        raise ReadError(f"{what}: declares {axes} axes, but {len(sizes)} sizes: damaged")
    return check_size(tuple(sizes), what)


def make_grid(
    shape: tuple[int, ...], directions: Floats | None, origin: Floats | None, spacing: Sequence[float] | None, what: str
) -> Grid:
    """The grid of what a header says of place: an affine only where directions and origin are both known.

    Parameters
    ----------
    shape : (I, J, K)
    directions : (3, n) float, LPS+ mm, optional
        A column for each of the n spatial axes: the step from one voxel to the next.
    origin : (3,) float, LPS+ mm, optional
    spacing : n floats, mm, optional
        Used where there are no directions; zeros and nan are taken as unknown.

    Raises
    ------
    GeometryError
        If the numbers are not finite or the axes lie in a plane.
    """
    if directions is not None:
        if not np.all(np.isfinite(directions)) or (origin is not None and not np.all(np.isfinite(origin))):
            raise GeometryError(f"{what}: the position in the header holds values that are not finite")
        if directions.shape[1] == 3 and origin is not None:
            affine = np.eye(4)
            affine[:3, :3], affine[:3, 3] = directions, origin
            return Grid(shape, affine)  # type: ignore[arg-type]
        spacing = np.linalg.norm(directions, axis=0).tolist()
    if spacing is None:
        return Grid(shape)  # type: ignore[arg-type]
    known = np.full(3, np.nan)
    known[: len(spacing)] = [abs(value) if np.isfinite(value) and value != 0 else np.nan for value in spacing]
    return Grid(shape, spacing=None if np.all(np.isnan(known)) else known)  # type: ignore[arg-type]


def stored_image(data: Array, grid: Grid, *, modality: str = "OT") -> Image:
    """The image of stored values; bits are those of an unsigned or signed integer type, 0 for real values."""
    bits = 8 * data.dtype.itemsize if data.dtype.kind in "ui" else 0
    with np.errstate(over="ignore"):  # beyond 32 bits: infinite, which check reports
        values = data.astype(np.float32)
    return Image(values, grid, bits=bits, modality=modality)
