"""Exit codes, and which error ends in which.

0    done
1    failed
2    usage: a wrong option, plan, file of options or budget
3    bad input data: unreadable studies, labels that cannot answer the question, a damaged model
4    environment: memory, disk, device or an optional package is missing
5    a quality gate was missed (``evaluate --require``)
130  interrupted; training has left a checkpoint
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
import tempfile
import time
import traceback
from enum import IntEnum
from pathlib import Path

from sagittal.errors import (
    BudgetError,
    ConfigError,
    DataError,
    GeometryError,
    MaskError,
    MissingPackageError,
    PackageError,
    ReadError,
    ResourceError,
    SagittalError,
    ScopeError,
)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ENVIRONMENT = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EIO)


class Exit(IntEnum):
    """What the process ends with."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    DATA = 3
    ENVIRONMENT = 4
    GATE = 5
    INTERRUPTED = 130


class GateMissed(Exception):  # noqa: N818  (not an error: the work is done, the model is not good enough)
    """A model does not reach what ``--require`` asks for."""


def exit_code(error: BaseException) -> Exit:
    """The exit code that an exception ends in.

    >>> exit_code(ConfigError("no such option")).name
    'USAGE'
    """
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED
    if isinstance(error, GateMissed):
        return Exit.GATE
    if isinstance(error, (ConfigError, BudgetError)):
        return Exit.USAGE
    if isinstance(error, (ResourceError, MissingPackageError, MemoryError)) or _out_of_resources(error):
        return Exit.ENVIRONMENT
    if isinstance(error, (ReadError, GeometryError, MaskError, DataError, ScopeError, PackageError)):
        return Exit.DATA
    return Exit.FAILED


def _out_of_resources(error: BaseException) -> bool:
    """Whether an error of the system or of torch means that this machine has too little."""
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
        return True
    # torch.cuda.OutOfMemoryError and torch's CPU allocator raise RuntimeErrors; torch is not imported to ask.
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "DefaultCPUAllocator" in text)


def explain_error(error: BaseException) -> str:
    """One message for a person: what happened, and what to do."""
    if isinstance(error, (SagittalError, GateMissed)):
        return str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"the disk is full{_place(error)}. Free some space, or write elsewhere with -o."
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return f"the disk is read-only{_place(error)}. Write elsewhere with -o."
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
        return f"no permission{_place(error)}. Change the permissions, or write elsewhere with -o."
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "a file name is longer than this disk allows. Give a shorter -o or --name."
    if isinstance(error, MemoryError) or _out_of_resources(error):
        return (
            f"this machine has too little memory or too few handles for it ({_first_line(error) or 'out of memory'}). "
            "Use a smaller --batch, --preset fast, or a machine with more."
        )
    return f"unexpected {type(error).__name__}: {_first_line(error)}"


def _place(error: OSError) -> str:
    return f" at {os.fsdecode(error.filename)}" if isinstance(error.filename, (str, bytes)) else ""


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")


def is_expected(error: BaseException) -> bool:
    """Whether the message says all; else the program itself is at fault and a bug report is written."""
    expected = (SagittalError, GateMissed, KeyboardInterrupt, MemoryError)
    return (
        isinstance(error, expected) or _out_of_resources(error) or getattr(error, "errno", None) == errno.ENAMETOOLONG
    )


def write_bug_report(error: BaseException, command: str) -> Path | None:
    """Write what a developer needs to a file that can be pasted; ``None`` where no folder can be written.

    The report holds the kind of command, versions and the traceback without the error's own text, which may name files:
    no arguments, no paths of data.
    """
    from sagittal import __version__

    frames = traceback.extract_tb(error.__traceback__)
    lines = [
        f"Sagittal {__version__}, command '{command}', {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}",
        f"Python {platform.python_version()} on {platform.platform()}",
        "",
        *(f"  {_module(frame.filename)}:{frame.lineno} in {frame.name}\n    {frame.line}" for frame in frames),
        f"{type(error).__module__}.{type(error).__qualname__}",
        "",
        "Please add the output of: sagittal doctor",
        "",
    ]
    name = f"sagittal-bug-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (Path.cwd, lambda: Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            path = folder() / name
            path.write_text("\n".join(lines), encoding="utf-8", errors="backslashreplace")
            return path
    return None


def _module(filename: str) -> str:
    """The part of a source file's path that does not show whose machine it is."""
    for root in sorted(sys.path, key=len, reverse=True):
        if root and filename.startswith(root + os.sep):
            return filename[len(root) + 1 :]
    return Path(filename).name
