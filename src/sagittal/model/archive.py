"""A model's files on disk: a folder, or one file with the same content, and nothing that was not expected.

Both forms hold a fixed list of names. ``model.json`` names every other file with its size and SHA-256, and
``model.sha256`` holds the SHA-256 of ``model.json`` in the format of ``sha256sum``. A file is read once, its bytes are
verified, and only verified bytes are parsed. The single file ``NAME.sagittal`` is a zip archive without compression that
any zip tool can list; it is read by the code below, which knows no links, no folders, no compression and no second
version of a name, so that none of these has to be defended against.

Checksums find damage and tampering with a part. Whoever can replace the whole model can replace them too: where that is a
threat, compare :attr:`sagittal.model.package.Model.checksum` with the value that the maker gave by another way.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from sagittal.errors import PackageError, ResourceError, nearest

FORMAT = 1
SUFFIX = ".sagittal"
LOOKS = "looks.jsonl"
INDEX, SEAL = "model.json", "model.sha256"

MAX_TEXT = 32 * 2**20
MAX_WEIGHTS = 8 * 2**30
MAX_ARCHIVE = 2**32 - 1  # what a zip can hold without its 64-bit extension
MAX_FILES = 128
MAX_JSON_DEPTH = 32

_PLAIN = {
    INDEX,
    SEAL,
    "plan.json",
    "calibration.json",
    "operating.json",
    "conformal.json",
    "gate.json",
    "data.json",
    "settled.json",
}
_NAMES = re.compile(r"gate\.safetensors|README\.md|weights-(0|[1-9]\d?)\.safetensors|encoder-(0|[1-9]\d?)\.json")


def is_allowed(name: str) -> bool:
    """Whether a model may hold a file of this name.

    >>> is_allowed("weights-0.safetensors"), is_allowed("weights-0.pkl"), is_allowed("../plan.json")
    (True, False, False)
    """
    return name in _PLAIN or _NAMES.fullmatch(name) is not None


def size_limit(name: str) -> int:
    """The most bytes that a file of this name may have."""
    return MAX_WEIGHTS if name.endswith(".safetensors") else MAX_TEXT


def digest(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


# Reading


def read_files(path: Path) -> tuple[dict[str, bytes], str]:
    """The verified files of a model, and the checksum of the whole.

    Returns
    -------
    files : dict of str to bytes
        Every file but the seal; ``model.json`` is among them.
    checksum : str
        SHA-256 of ``model.json``, which fixes every other file.

    Raises
    ------
    PackageError
        If the model is missing, damaged, of a newer format, or holds anything that does not belong there.
    """
    if path.is_dir():
        files = _read_folder(path)
    elif path.is_file():
        files = _read_zip(path)
    else:
        raise PackageError(
            f"{path.name}: there is no model. Give a folder or a {SUFFIX} file that sagittal train wrote."
        )
    if INDEX not in files or SEAL not in files:
        raise PackageError(f"{path.name}: is not a Sagittal model: it has no {INDEX if INDEX not in files else SEAL}")
    checksum = _check_seal(files.pop(SEAL), files[INDEX], path.name)
    index = parse_json(files[INDEX], INDEX)
    version = index.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise PackageError(f"{path.name}: {INDEX} states no format version")
    if version > FORMAT:
        raise PackageError(
            f"{path.name}: the model has format {version}, this version reads up to {FORMAT}. Install a newer Sagittal."
        )
    listed = index.get("files")
    if not isinstance(listed, dict):
        raise PackageError(f"{path.name}: {INDEX} lists no files")
    present = set(files) - {INDEX}
    if missing := sorted(set(listed) - present):
        raise PackageError(f"{path.name}: the file {missing[0]!r} is missing. Copy the whole model again.")
    if extra := sorted(present - set(listed)):
        raise PackageError(f"{path.name}: the file {extra[0]!r} does not belong to the model: {INDEX} does not list it")
    for name, entry in listed.items():
        expected = entry if isinstance(entry, dict) else {}
        if expected.get("size") != len(files[name]) or expected.get("sha256") != digest(files[name]):
            raise PackageError(
                f"{path.name}: {name} was changed after the model was saved: size or SHA-256 differ from {INDEX}. "
                "Copy the model again from where it came."
            )
    return files, checksum


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object from verified bytes; no duplicate keys, no nan, no deep nesting.

    Raises
    ------
    PackageError
        If it is anything else.
    """

    def refuse(token: str) -> NoReturn:
        raise ValueError(f"'{token}' is not JSON")

    try:
        text = data.decode("utf-8")
        if _depth(text) > MAX_JSON_DEPTH:
            raise ValueError(f"is nested deeper than {MAX_JSON_DEPTH}")
        values = json.loads(text, object_pairs_hook=_unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{name}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise PackageError(f"{name}: expected a JSON object, found {type(values).__name__}")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return values


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text):
        depth += 1 if bracket in "[{" else -1 if bracket in "]}" else 0
        deepest = max(deepest, depth)
    return deepest


def _check_seal(seal: bytes, index: bytes, where: str) -> str:
    checksum = digest(index)
    if seal != seal_of(checksum):
        raise PackageError(
            f"{where}: {INDEX} or {SEAL} was changed after the model was saved: the SHA-256 of {INDEX} is not the one in "
            f"{SEAL}. Copy the model again from where it came."
        )
    return checksum


def seal_of(checksum: str) -> bytes:
    """The content of the seal: ``sha256sum --check model.sha256`` understands it."""
    return f"{checksum}  {INDEX}\n".encode("ascii")


def _read_folder(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    with os.scandir(path) as entries:
        for count, entry in enumerate(entries):
            if count >= MAX_FILES:
                raise PackageError(f"{path.name}: holds more than {MAX_FILES} entries and is not a Sagittal model")
            if entry.name == LOOKS:
                continue
            if not is_allowed(entry.name):
                raise PackageError(
                    f"{path.name}: the file {entry.name!r} does not belong to a model. {nearest(entry.name, _PLAIN)} "
                    "Remove it, or copy the model again."
                )
            files[entry.name] = read_regular(Path(entry.path), size_limit(entry.name))
    return files


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of an ordinary file: no link of either kind, no device, not more than `limit` bytes.

    Raises
    ------
    PackageError
        Otherwise.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if path.is_symlink():
            raise PackageError(f"{path.name}: is a symbolic link; a model holds its files itself")
        handle = os.open(path, flags)
    except OSError as error:
        raise PackageError(f"{path.name}: cannot be opened: {error.strerror}") from error
    with os.fdopen(handle, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise PackageError(f"{path.name}: is not an ordinary file")
        if status.st_nlink > 1:
            raise PackageError(f"{path.name}: is a hard link to a file elsewhere; copy the model instead of linking it")
        if status.st_size > limit:
            raise PackageError(f"{path.name}: has {status.st_size} bytes, at most {limit} are expected")
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise PackageError(f"{path.name}: grew beyond {limit} bytes while it was read")
    return data


# The single file is a zip archive in which nothing is left to choice: given the names, sizes and checksums of the
# entries, each byte outside them is known. What a reader does not expect it therefore does not accept.

_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_VERSION, _UNIX, _MIDNIGHT_1980 = 20, 3, 33  # "needs version 2.0", "made on unix", 1980-01-01
_MODE = (stat.S_IFREG | 0o644) << 16


def _local(name: bytes, crc: int, size: int) -> bytes:
    """The header before an entry's bytes (APPNOTE 4.3.7)."""
    return _LOCAL.pack(b"PK\x03\x04", _VERSION, 0, 0, 0, _MIDNIGHT_1980, crc, size, size, len(name), 0) + name


def _entry(name: bytes, crc: int, size: int, at: int) -> bytes:
    """An entry of the directory (APPNOTE 4.3.12)."""
    made = _UNIX << 8 | _VERSION
    fixed = (b"PK\x01\x02", made, _VERSION, 0, 0, 0, _MIDNIGHT_1980, crc, size, size, len(name), 0, 0, 0, 0, _MODE, at)
    return _ENTRY.pack(*fixed) + name


def _end(count: int, length: int, start: int) -> bytes:
    """The end of the archive (APPNOTE 4.3.16)."""
    return _END.pack(b"PK\x05\x06", 0, 0, count, count, length, start, 0)


def _read_zip(path: Path) -> dict[str, bytes]:
    """The files of an archive as :func:`write_zip` makes it; any other structure is refused."""

    def refuse(what: str) -> NoReturn:
        raise PackageError(f"{path.name}: {what}. Copy the model again, or ask its maker for a Sagittal model.")

    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if not _END.size <= size <= MAX_ARCHIVE:
            refuse(f"is no {SUFFIX} file: it has {size} bytes")
        stream.seek(size - _END.size)
        last = stream.read(_END.size)
        magic, _, _, here, count, length, start, _ = _END.unpack(last)
        if magic != b"PK\x05\x06":
            refuse(f"is damaged, or not a {SUFFIX} file: it does not end as one")
        if max(here, count) > MAX_FILES:
            refuse(f"holds {max(count, here)} entries or more, at most {MAX_FILES} are expected")
        if last != _end(count, length, start):
            refuse("is damaged: its last record is not as Sagittal writes it")
        if start + length + _END.size != size or length > MAX_FILES * (_ENTRY.size + 64):
            refuse("has a directory that does not fit the file")
        stream.seek(start)
        directory = stream.read(length)
        files: dict[str, bytes] = {}
        place = offset = 0
        for _ in range(count):
            if place + _ENTRY.size > length:
                refuse("has a directory that ends too early")
            (_, _, _, flags, method, _, _, crc, packed, plain, name_size, _, _, _, _, mode, at) = _ENTRY.unpack_from(
                directory, place
            )
            raw = directory[place + _ENTRY.size : place + _ENTRY.size + name_size]
            name = raw.decode("ascii", errors="backslashreplace")
            if not is_allowed(name):
                refuse(f"holds the entry {name[:60]!r}, which does not belong to a model")
            if name in files:
                refuse(f"holds {name!r} twice")
            if stat.S_IFMT(mode >> 16) not in (0, stat.S_IFREG):
                refuse(f"holds {name!r} as a link or device")
            if method or flags or packed != plain:
                refuse(f"holds {name!r} compressed or encrypted; the entries of a model are stored as they are")
            if plain > size_limit(name):
                refuse(f"says that {name!r} has {plain} bytes, at most {size_limit(name)} are expected")
            entry = _entry(raw, crc, plain, at)
            if directory[place : place + len(entry)] != entry:
                refuse(f"describes {name!r} in another form than Sagittal writes")
            header = _local(raw, crc, plain)
            if at != offset or at + len(header) + plain > start:
                refuse(f"places {name!r} where it cannot lie")
            stream.seek(at)
            if stream.read(len(header)) != header:
                refuse(f"describes {name!r} in two different ways")
            files[name] = stream.read(plain)
            if len(files[name]) != plain or zlib.crc32(files[name]) != crc:
                refuse(f"is damaged: {name} was changed after the model was saved")
            offset = at + len(header) + plain
            place += len(entry)
        if place != length or offset != start:
            refuse("holds bytes that belong to no entry")
    return files


def check_tensors(data: bytes, name: str, dtypes: Mapping[str, int]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The table of contents of safetensors bytes: dtype and shape of each tensor, checked before anything is built.

    Parameters
    ----------
    data : bytes
    name : str
        For messages.
    dtypes : mapping of str to int
        Allowed element types and their bytes.

    Raises
    ------
    PackageError
        If the header is too long or not plain, or the tensors do not tile the data exactly.
    """
    if len(data) < 8:
        raise PackageError(f"{name}: is too short for safetensors")
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, MAX_TEXT):
        raise PackageError(f"{name}: states a header of {length} bytes, the file has {len(data)}")
    header = parse_json(data[8 : 8 + length], name)
    header.pop("__metadata__", None)
    spans: list[tuple[int, int]] = []
    contents: dict[str, tuple[str, tuple[int, ...]]] = {}
    for tensor, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        except (KeyError, TypeError, ValueError) as error:
            raise PackageError(f"{name}: the entry of a tensor is incomplete") from error
        if dtype not in dtypes:
            raise PackageError(f"{name}: holds numbers of type {dtype!r}, expected one of {', '.join(sorted(dtypes))}")
        if not whole or end - begin != math.prod(shape) * dtypes[dtype]:
            raise PackageError(f"{name}: the size of a tensor does not fit its shape {tuple(shape)}")
        spans.append((begin, end))
        contents[tensor] = (dtype, tuple(shape))
    place = 0
    for begin, end in sorted(spans):
        if begin != place:
            raise PackageError(f"{name}: tensors overlap or leave a gap")
        place = end
    if place != len(data) - 8 - length:
        raise PackageError(f"{name}: tensors cover {place} bytes of {len(data) - 8 - length}")
    return contents


# Writing


def with_index(files: Mapping[str, bytes], index: Mapping[str, Any]) -> tuple[dict[str, bytes], str]:
    """The files with their ``model.json`` and seal, and the checksum of the whole."""
    listed = {name: {"size": len(data), "sha256": digest(data)} for name, data in sorted(files.items())}
    data = json_bytes({"format": FORMAT, **index, "files": listed})
    checksum = digest(data)
    return {INDEX: data, SEAL: seal_of(checksum), **files}, checksum


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """Indented JSON with a line end; nan is refused."""
    return (json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def write_files(path: Path, files: Mapping[str, bytes], *, overwrite: bool = False) -> None:
    """Write a model whole or not at all: into a neighbour first, flushed to disk, then renamed.

    A path that ends in ``.sagittal`` becomes a single file, any other a folder.

    Raises
    ------
    PackageError
        If the path exists and `overwrite` was not said, or exists and is no model.
    ResourceError
        If the disk is full or read-only.
    """
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise PackageError(f"{path.name}: exists already. Choose another name, remove it, or ask to overwrite it.")
    if path.is_dir() and not path.is_symlink() and not _only_model_files(path):
        raise PackageError(f"{path.name}: is a folder that holds more than a model; it is not overwritten")
    if path.suffix == SUFFIX and sum(map(len, files.values())) + 2**16 > MAX_ARCHIVE:
        raise PackageError(f"{path.name}: the model has more than 4 GB. Save it as a folder: a name without {SUFFIX}.")
    beside = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    with disk_errors(path.name, need=sum(map(len, files.values()))):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if path.suffix == SUFFIX:
                write_zip(beside, files)
            else:
                beside.mkdir()
                for name, data in files.items():
                    write_flushed(beside / name, data)
                flush_folder(beside)
            _put(beside, path)
            flush_folder(path.parent)
        finally:
            if beside.is_dir():
                shutil.rmtree(beside, ignore_errors=True)
            else:
                with suppress(OSError):
                    beside.unlink(missing_ok=True)


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    """An archive without compression; the same files give the same bytes."""
    directory = b""
    with path.open("xb") as stream:
        for name, data in files.items():
            raw, crc = name.encode("ascii"), zlib.crc32(data)
            directory += _entry(raw, crc, len(data), stream.tell())
            stream.write(_local(raw, crc, len(data)))
            stream.write(data)
        start = stream.tell()
        stream.write(directory + _end(len(files), len(directory), start))
        stream.flush()
        os.fsync(stream.fileno())


def write_flushed(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def flush_folder(path: Path) -> None:
    """Wait until the disk has a folder's entries; not every system can."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def disk_errors(name: str, *, need: int = 0) -> Iterator[None]:
    """Say of a full or read-only disk what is the matter, as :class:`ResourceError`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ResourceError):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = (
                f"the disk is full; {max(need, 1) / 2**20:.1f} MB are needed. Free some space, or choose another disk."
            )
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            what = "the folder cannot be written to. Choose another place with -o, or change its permissions."
        else:
            what = f"{error.strerror or type(error).__name__}. Choose another place with -o."
        raise ResourceError(f"{name}: cannot be written: {what}") from error


def _only_model_files(path: Path) -> bool:
    names = os.listdir(path)
    return all(is_allowed(name) or name == LOOKS for name in names)


def _put(new: Path, path: Path) -> None:
    """Rename, with what stood there before moved out of the way first (a folder cannot be replaced in one step)."""
    if not path.is_dir() or path.is_symlink():
        if new.is_dir():
            path.unlink(missing_ok=True)
        new.replace(path)
        return
    old = path.parent / f".{path.name}.{secrets.token_hex(4)}.old"
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
