"""What a reader accepts: sizes beyond which a file is refused, and how the failure of a decoder is told.

A file from outside is untrusted. Its declared sizes are multiplied as Python integers and compared with what the file
holds before anything is allocated; messages name neither the file nor anything in its header that says who the
patient is (the caller adds the case).
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

from sagittal.errors import ReadError, ResourceError, SagittalError

#: Whether this process is itself one with limits (sagittal.guard.limited), so that decoders need no other.
within_limits = False

#: Values of one image (voxels times channels): 4 GiB as float32, 4,096 slices of 512 x 512.
MAX_VALUES = 2**30
#: Values of one compressed frame or picture, whose size the file's length does not bound.
MAX_FRAME_VALUES = 2**28
#: Bytes that a deflated DICOM file or a gzipped NIfTI file may unpack to.
MAX_INFLATED_BYTES = 2**29
#: Levels of DICOM sequences inside each other; the deepest structured reports in use have about ten.
MAX_SEQUENCE_DEPTH = 64


def check_size(shape: tuple[int, ...], what: str, *, limit: int = MAX_VALUES) -> int:
    """The number of values of a declared shape, refused where absurd.

    Raises
    ------
    ReadError
        If an extent is not positive, or the product lies beyond `limit`.
    """
    if not shape or min(shape) < 1:
        raise ReadError(f"{what}: declares the size {_times(shape)}; every extent must be at least 1")
    count = prod(int(n) for n in shape)
    if count > limit:
        raise ReadError(
            f"{what}: declares {_times(shape)} = {count:,} values; at most {limit:,} are read. "
            "The header is damaged, or the image must be cut into parts first."
        )
    return count


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape) or "nothing"


def check_memory(needed: int, what: str) -> None:
    """Refuse to load what would fill more than half of this machine's memory.

    Raises
    ------
    ResourceError
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return
    if needed > total // 2:
        raise ResourceError(
            f"{what}: needs {needed / 2**30:.1f} GiB in memory, more than half of the {total / 2**30:.1f} GiB of this "
            "machine. Use a smaller version of the set, or separate image files, which are read one at a time."
        )


def check_file(path: Path) -> int:
    """The length of an existing, non-empty, ordinary file, in bytes.

    Raises
    ------
    ReadError
        If there is no such file, it is a folder, it cannot be opened, or it is empty.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise ReadError("the file does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ReadError(f"the file cannot be opened ({_reason(error)})") from error
    if not path.is_file():
        raise ReadError("is not a file")
    if size == 0:
        raise ReadError("the file is empty (0 bytes). Copy it again from where it came.")
    return size


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


class _Hush(logging.Filter):
    """Stops what a decoder logs while this thread is inside :func:`as_read_error`."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(self.inside, "depth", 0)


class _Silence:
    """Warnings off while any thread reads: the first to come saves the filters, the last to go restores them.

    ``warnings.catch_warnings`` alone would restore the wrong filters when threads leave in another order.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.saved = warnings.catch_warnings()

    def enter(self) -> None:
        with self.lock:
            if self.depth == 0:
                self.saved = warnings.catch_warnings()
                self.saved.__enter__()
                warnings.simplefilter("ignore")
            self.depth += 1

    def leave(self) -> None:
        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                self.saved.__exit__(None, None, None)


_HUSH = _Hush()
_SILENCE = _Silence()
#: They log free header text, such as a value that does not fit its type.
_LOGGERS = ("pydicom", "nibabel.global", "tifffile")


@contextmanager
def _hushed() -> Iterator[None]:
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_HUSH)  # a filter that is there already is not added again
    _HUSH.inside.depth = getattr(_HUSH.inside, "depth", 0) + 1
    _SILENCE.enter()
    try:
        yield
    finally:
        _SILENCE.leave()
        _HUSH.inside.depth -= 1


@contextmanager
def as_read_error(what: str) -> Iterator[None]:
    """Turn whatever a decoder raises on damaged bytes into a ReadError, and its warnings and logs into silence.

    Decoders of other packages raise anything from struct.error to AttributeError on hostile bytes; none of that may
    reach the user, and no free header text may reach a log.
    """
    try:
        with _hushed():
            yield
    except SagittalError:
        raise
    except MemoryError as error:
        if within_limits:
            raise  # the other process tells how much it may have
        raise ReadError(f"{what}: decoding needs more memory than there is") from error
    except RecursionError as error:
        raise ReadError(f"{what}: nested too deep to be an honest file") from error
    except OSError as error:
        raise ReadError(f"{what}: cannot be read ({_reason(error)}): damaged or cut off") from error
    except Exception as error:
        raise ReadError(f"{what}: damaged or cut off ({type(error).__name__})") from error


def inflate(packed: bytes, *, wbits: int, limit: int = MAX_INFLATED_BYTES) -> bytes:
    """Unpack deflated bytes, never more than `limit` of them.

    Parameters
    ----------
    wbits : int
        As for :func:`zlib.decompressobj`: -15 for a raw stream, 31 for gzip.

    Raises
    ------
    ReadError
        If more would come out (a decompression bomb), or the stream is damaged.
    """
    worker = zlib.decompressobj(wbits)
    try:
        out = worker.decompress(packed, limit + 1)
    except zlib.error as error:
        raise ReadError("the compressed part is damaged or cut off") from error
    if len(out) > limit:
        raise ReadError(f"unpacks to more than {limit:,} bytes: refused as a decompression bomb")
    if not worker.eof:
        raise ReadError("the compressed part is cut off")
    return out
