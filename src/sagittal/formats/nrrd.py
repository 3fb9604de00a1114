"""NRRD files (``.nrrd``, ``.nhdr`` with its data beside it): directions and origin to LPS+ mm."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from sagittal.errors import GeometryError, ReadError
from sagittal.formats.stored import beside, channels_first, check_stored, make_grid, read_stored, stored_image
from sagittal.grid import Grid
from sagittal.guard.limits import as_read_error, check_file
from sagittal.image import Image
from sagittal.types import Array, Floats

#: Bytes of a header; those of segmentations carry long descriptions of every segment.
_MAX_HEADER = 2**24
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_DTYPES = {name: code for code, names in _TYPES.items() for name in names}
_PACKINGS = {
    "raw": "raw", "gz": "zlib", "gzip": "zlib", "bz2": "bzip2", "bzip2": "bzip2", "txt": "text", "text": "text",
    "ascii": "text",
}  # fmt: skip
#: Named spaces -> signs that lead to LPS+.
_SPACES = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip
_UNITS = {
    "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "millimetre": 1.0, "cm": 10.0, "m": 1e3, "meter": 1e3,
    "um": 1e-3, "micron": 1e-3, "microns": 1e-3, "micrometer": 1e-3, "\u00b5m": 1e-3, "": 1.0, "???": 1.0,
}  # fmt: skip
_IN_SPACE = {"domain", "space"}


@dataclass(frozen=True, eq=False)
class Nrrd:
    """What an NRRD file holds.

    Parameters
    ----------
    data : (C, I, J, K)
        In the stored type.
    grid : Grid
    fields : mapping of str to str
        The header's fields, names in lower case.
    keys : mapping of str to str
        Its key/value pairs.
    """

    data: Array
    grid: Grid
    fields: Mapping[str, str]
    keys: Mapping[str, str]


def read_nrrd(path: Path) -> Image:
    """Read an NRRD file of 2 or 3 axes in space; nothing is reoriented or resampled.

    Axes without direction (``none``), or of a kind that is not space (``vector``, ``RGB-color``, ``list`` ...), become
    channels wherever they stand. The affine comes from ``space``, ``space directions`` and ``space origin``; RAS and LAS
    are turned into LPS+. A file in a space that does not name the patient's directions, or without origin, keeps its
    voxel size and gets no position; so does one with ``spacings`` alone.

    Parameters
    ----------
    path : Path
        A ``.nrrd``, or a ``.nhdr`` whose data file lies beside it.

    Raises
    ------
    ReadError
        If the file is damaged, or its values lie elsewhere or in a form that is not read.
    GeometryError
        If its position is not usable.

    References
    ----------
    .. [1] Definition of the NRRD file format, teem.sourceforge.net/nrrd/format.html.
    """
    nrrd = load_nrrd(path)
    return stored_image(nrrd.data, nrrd.grid)


def load_nrrd(path: Path) -> Nrrd:
    """The stored values, grid and header of an NRRD file. Errors as of :func:`read_nrrd`."""
    check_file(path)
    with as_read_error("NRRD"):
        with path.open("rb") as file:
            fields, keys = _header(file)
            start = file.tell()
        sizes = _whole_numbers(_needed(fields, "sizes"), "sizes")
        axes = _whole_numbers(_needed(fields, "dimension"), "dimension")[0]
        count = check_stored(sizes, axes, "NRRD")
        spatial, grid = _place(fields, sizes)
        values = _values(path, fields, start, count)
        return Nrrd(channels_first(values, sizes, spatial), grid, fields, keys)


def nrrd_keys(path: Path) -> dict[str, str]:
    """The key/value pairs of an NRRD header; its values are not read. Errors as of :func:`read_nrrd`."""
    check_file(path)
    with as_read_error("NRRD"), path.open("rb") as file:
        return _header(file)[1]


def nrrd_data_file(path: Path) -> Path | None:
    """The data file beside a detached header; ``None`` where the values lie in the file itself."""
    with as_read_error("NRRD"), path.open("rb") as file:
        name = _header(file)[0].get("data file")
    return None if name is None else beside(path, name, "NRRD")


def _header(file: IO[bytes]) -> tuple[dict[str, str], dict[str, str]]:
    """Fields and key/value pairs up to the empty line, or to the end of a detached header."""
    if not re.fullmatch(rb"NRRD000[1-6]\s*", file.readline(64)):
        raise ReadError("NRRD: the file does not hold an NRRD header (no 'NRRD000' mark)")
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    left = _MAX_HEADER
    while line := file.readline(left):
        left -= len(line)
        if left <= 0:
            raise ReadError(f"NRRD: the header is longer than {_MAX_HEADER:,} bytes: damaged")
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not text:
            return fields, keys
        if text.startswith("#"):
            continue
        name, mark, value = re.match(r"([^:]*)(:=|:|)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
        if mark == ":=":
            keys[name] = value
        elif mark == ":":
            name = name.strip().lower()
            name = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}.get(name, name)
            if name in fields:
                raise ReadError(f"NRRD: the header states its {name[:20]} twice: damaged")
            fields[name] = value.strip()
        else:
            raise ReadError("NRRD: the header holds a line that is neither a field nor a key: damaged")
    if "data file" not in fields:
        raise ReadError("NRRD: cut off, the header has no end")
    return fields, keys


def _needed(fields: Mapping[str, str], name: str) -> str:
    if not fields.get(name):
        raise ReadError(f"NRRD: the header does not state its {name}: damaged")
    return fields[name]


def _whole_numbers(text: str, what: str) -> list[int]:
    try:
        return [int(word) for word in text.split()]
    except ValueError as error:
        raise ReadError(f"NRRD: {what} holds something else than whole numbers: damaged") from error


def _values(path: Path, fields: Mapping[str, str], start: int, count: int) -> Array:
    kind = " ".join(_needed(fields, "type").lower().split())
    if kind not in _DTYPES:
        raise ReadError("NRRD: values of this type are not read; integers and real numbers of 1 to 8 bytes are")
    encoding = _needed(fields, "encoding").lower()
    if encoding not in _PACKINGS:
        raise ReadError("NRRD: values in this encoding are not read; raw, text, gzip and bzip2 are")
    packing = _PACKINGS[encoding]
    order = {"little": "<", "big": ">"}.get(fields.get("endian", "").lower(), "")
    dtype = np.dtype(_DTYPES[kind])
    if dtype.itemsize > 1 and packing != "text":
        if not order:
            raise ReadError("NRRD: the header does not say whether its values are little or big endian")
        dtype = dtype.newbyteorder(order)  # type: ignore[arg-type]
    name = fields.get("data file")
    source = path if name is None else beside(path, name, "NRRD")
    skip = _whole_numbers(fields.get("byte skip") or "0", "byte skip")[0]
    lines = _whole_numbers(fields.get("line skip") or "0", "line skip")[0]
    size = check_file(source)
    if skip < -1 or not 0 <= lines <= size or skip > size * 1040:
        raise ReadError("NRRD: byte skip or line skip leads past the file: damaged")
    if skip == -1 and packing != "raw":
        raise ReadError("NRRD: byte skip -1 goes with raw values only: damaged")
    with source.open("rb") as file:
        file.seek(start if name is None else 0)
        for _ in range(lines):
            file.readline()
        if skip == -1:
            file.seek(max(size - count * dtype.itemsize, 0 if name is not None else start))
            skip = 0
        return read_stored(file, count, dtype, packing, size - file.tell(), "NRRD", skip=skip)


def _place(fields: Mapping[str, str], sizes: Sequence[int]) -> tuple[list[int], Grid]:
    """Which axes lie in space, and the grid that they make."""
    axes = len(sizes)
    kinds = fields.get("kinds", "").lower().split()
    if kinds and len(kinds) != axes:
        raise ReadError(f"NRRD: {axes} axes, but {len(kinds)} kinds: damaged")
    space = fields.get("space", "").lower()
    spacings = _spacings(fields.get("spacings"), axes)
    vectors = _vectors(fields["space directions"], axes) if fields.get("space directions") else None
    if vectors is not None and space.endswith("-time"):
        vectors = [None if v is None or (v[:3] == 0).all() else v[:3] for v in vectors]
        space = space.removesuffix("-time")
    if vectors is not None:
        spatial = [axis for axis, vector in enumerate(vectors) if vector is not None]
    elif any(kind in _IN_SPACE for kind in kinds):
        spatial = [axis for axis, kind in enumerate(kinds) if kind in _IN_SPACE]
    elif kinds and any(kind not in {"none", "???"} for kind in kinds):
        spatial = [axis for axis, kind in enumerate(kinds) if kind in {"none", "???"}]
    elif spacings is not None and axes > 3:
        spatial = [axis for axis, value in enumerate(spacings) if np.isfinite(value)]
    else:
        spatial = list(range(axes))
    if not 2 <= len(spatial) <= 3:
        raise ReadError(
            f"NRRD: {len(spatial)} of its {axes} axes lie in space as far as the header says; 2 or 3 are read. "
            "State 'kinds' or 'space directions' in the header."
        )
    shape = tuple([sizes[axis] for axis in spatial] + [1] * (3 - len(spatial)))
    scale = _scale(fields.get("space units"))
    if vectors is None:
        spacing = None if spacings is None else [spacings[axis] for axis in spatial]
        return spatial, make_grid(shape, None, None, spacing, "NRRD")
    columns = [vector * scale for vector in vectors if vector is not None]
    if len({len(column) for column in columns}) != 1:
        raise ReadError("NRRD: the space directions differ in length: damaged")
    origin = _vectors(fields["space origin"], 1)[0] if fields.get("space origin") else None
    if space not in _SPACES or len(columns[0]) != 3:
        lengths = [float(np.linalg.norm(column)) for column in columns]
        return spatial, make_grid(shape, None, None, lengths, "NRRD")
    signs = np.array(_SPACES[space], dtype=np.float64)
    directions = np.stack(columns, axis=1) * signs[:, np.newaxis]
    if origin is not None:
        origin = origin[:3] * scale
        if len(origin) != 3:
            raise GeometryError("NRRD: the space origin must hold three numbers: damaged")
        origin = origin * signs
    return spatial, make_grid(shape, directions, origin, None, "NRRD")


def _spacings(text: str | None, axes: int) -> list[float] | None:
    if not text:
        return None
    try:
        values = [float(word) for word in text.split()]
    except ValueError as error:
        raise ReadError("NRRD: spacings holds something else than numbers: damaged") from error
    if len(values) != axes:
        raise ReadError(f"NRRD: {axes} axes, but {len(values)} spacings: damaged")
    return values


def _vectors(text: str, count: int) -> list[Floats | None]:
    """``(1,0,0) none (0,1,0)`` as vectors, ``None`` for none."""
    words = re.findall(r"none|\([^()]*\)", text)
    if re.sub(r"none|\([^()]*\)|\s", "", text) or len(words) != count:
        raise ReadError(f"NRRD: a list of {count} vectors is expected in the header, it holds {len(words)}: damaged")
    try:
        return [None if word == "none" else np.array([float(v) for v in word[1:-1].split(",")]) for word in words]
    except ValueError as error:
        raise ReadError("NRRD: a vector in the header holds something else than numbers: damaged") from error


def _scale(text: str | None) -> float:
    """Millimetres in the unit of the space; millimetres are what the format's users mean where nothing is said."""
    units = {word.strip().lower() for word in re.findall(r'"([^"]*)"', text or "")}
    scales = {_UNITS.get(unit) for unit in units} or {1.0}
    if len(scales) != 1 or None in scales:
        raise GeometryError("NRRD: the space units are not one known unit of length; mm, cm, m and um are read")
    return float(scales.pop() or 1.0)
