"""The process at the other end of :mod:`sagittal.guard.limited`: one job after another, each within limits.

It is started by that module alone, and ends when its input does. A job that hangs in C after its parent has died is
ended by the kernel: the alarm of each job has its default action.
"""

from __future__ import annotations

import importlib
import mmap
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import IO, Any

from sagittal.errors import SagittalError
from sagittal.guard import limits, wire

try:
    import resource
except ImportError:  # not a POSIX system: no limit of memory, but still a process of its own
    resource = None  # type: ignore[assignment]

#: Number of the job; lengths of header and blobs; where the window of shared memory begins (-1: blobs follow in the
#: pipe), and its length.
HEAD = struct.Struct("<QIQqQ")
#: Number of the message that says: ready.
READY = 2**64 - 1


def main(memory: int, allowed: Sequence[str]) -> None:
    """Do jobs until the input ends.

    Parameters
    ----------
    memory : int
        File descriptor of the memory shared with the parent; -1 for none.
    allowed : sequence of str
        Packages whose functions may be called.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)  # what a C library prints must not end up among the replies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    limits.within_limits = True
    _reply(replies, READY, wire.encode(None), None, -1)
    shared: mmap.mmap | None = None
    while len(head := requests.read(HEAD.size)) == HEAD.size:
        number, length, blobs, start, window = HEAD.unpack(head)
        header = requests.read(length)
        if start >= 0 and (shared is None or len(shared) < start + window):
            shared = mmap.mmap(memory, os.fstat(memory).st_size)
        room = None
        if start >= 0 and shared is not None:
            room = memoryview(shared)[start : start + window]
            body: memoryview | bytes = room[:blobs]
        else:
            body = requests.read(blobs)
        answer = _answer(header, body, allowed)
        _reply(replies, number, answer, room, start)


def _reply(file: IO[bytes], number: int, parts: wire.Parts, room: memoryview | None, start: int) -> None:
    if room is not None and parts.size <= len(room):
        at = 0
        for blob in parts.blobs:
            room[at : at + len(blob)] = blob
            at += len(blob)
        _write(file, HEAD.pack(number, len(parts.header), parts.size, start, len(room)) + parts.header)
        return
    _write(file, HEAD.pack(number, len(parts.header), parts.size, -1, 0) + parts.header)
    for blob in parts.blobs:
        _write(file, blob)


def _write(file: IO[bytes], data: memoryview | bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _answer(header: bytes, body: memoryview | bytes, allowed: Sequence[str]) -> wire.Parts:
    """("result", value), ("error", class, message), ("memory",) or ("failed", where)."""
    try:
        address, memory_bytes, timeout_s, item = wire.decode(header, body)
        function = _function(address, allowed)
        _limit(memory_bytes, timeout_s)
        try:
            return wire.encode(("result", function(item)))
        finally:
            _unlimit()
    except SagittalError as error:
        return wire.encode(("error", type(error).__name__, str(error)))
    except MemoryError:
        return wire.encode(("memory",))
    except Exception as error:
        return wire.encode(("failed", f"{type(error).__name__} {_place(error, allowed)}"))


def _function(address: str, allowed: Sequence[str]) -> Callable[[Any], Any]:
    module, _, name = address.partition(":")
    if not any(module == package or module.startswith(package + ".") for package in allowed):
        raise ValueError(f"{module} is not one of ours")
    function: Callable[[Any], Any] = getattr(importlib.import_module(module), name)
    return function


def _limit(memory_bytes: int, timeout_s: float) -> None:
    if hasattr(signal, "setitimer"):
        # The parent measures the time, and kills; this is for the case that it is gone.
        signal.setitimer(signal.ITIMER_REAL, timeout_s + 5)
    if resource is not None and memory_bytes and (size := _address_space()):
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = size + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _unlimit() -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    if resource is not None:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _address_space() -> int:
    """Bytes of address space that this process has; 0 where that cannot be told."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * mmap.PAGESIZE
    except OSError:
        return 0


def _place(error: BaseException, allowed: Sequence[str]) -> str:
    """File and line of our own code in which something unforeseen happened; never the error's text, it may hold names."""
    folders = tuple(package.replace(".", os.sep) for package in allowed)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if any(part in f.filename for part in folders)]
    if not frames:
        return ""
    return f"in {os.sep.join(frames[-1].filename.split(os.sep)[-2:])}:{frames[-1].lineno}"


def start(arguments: Sequence[str]) -> None:
    """Entry of the process: the number of the shared memory, then the packages whose functions may be called."""
    try:
        main(int(arguments[0]), arguments[1:])
    except (BrokenPipeError, EOFError):  # the parent is gone
        sys.exit(1)
