"""Work on bytes from outside, done in processes with limits: a cap on memory, a time, and a life of their own.

Decoders are written in C and parse what anyone may have made. In a process of its own a crash is an error message, a
hang ends, and a bomb meets a cap (CVE-2026-5442, CVE-2024-47796 and their like). The processes
stay for the next job, so that a job costs some 50 microseconds; they end with this process, and a process that is forked
from it starts its own.

The cap is RLIMIT_AS, above what the process has when a job begins, so it holds on Linux; elsewhere there is a process
and a clock, but no cap.
"""

from __future__ import annotations

import atexit
import contextlib
import mmap
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from sagittal import errors
from sagittal.errors import ReadError, ResourceError, SagittalError
from sagittal.guard import limits, wire
from sagittal.guard.limited_worker import HEAD, READY

#: Packages whose functions a limited process may call.
ALLOWED: tuple[str, ...] = ("sagittal",)
#: Memory that a job may take in addition to what its process has, unless told otherwise.
MEMORY_BYTES = 2**31
#: Seconds that a job may take, unless told otherwise.
TIMEOUT_S = 60.0
#: A reply beyond this is refused.
MAX_REPLY_BYTES = 2**31
#: Jobs after which a process is replaced, should a decoder leak.
_JOBS_OF_A_LIFE = 5000
#: Idle processes that are kept.
_KEPT = 4
#: A request up to this length fits into any pipe, so that it can wait there while its process is busy.
_SHORT = 2048
_START_S = 120.0
_POSIX = os.name == "posix"
_SHARES = hasattr(os, "memfd_create")
_ERRORS: dict[str, type[SagittalError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, SagittalError)
}
#: Bytes read from a pipe at a time.
_GULP = 2**20
#: Shared memory that an idle process keeps.
_KEPT_BYTES = 2**26
#: Jobs run beside each other already, so one thread each; and the memory of a frame is kept for the next one, whose
#: pages would else be asked of the system again (half of the time of a run-length decoder).
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
}
_ROOT = Path(errors.__file__).parents[1]
_WHERE = (str(_ROOT / "sagittal" / "__init__.py"), str(_ROOT))
#: The same package in the child, also where it was found by a path that the child does not know. "-P" keeps the current
#: folder, which may hold a numpy.py, out of the child's path.
_START = """import sys, importlib.util
spec = importlib.util.find_spec("sagittal")
if spec is None or spec.origin != sys.argv[1]:
    sys.path.insert(0, sys.argv[2])
from sagittal.guard.limited_worker import start
start(sys.argv[3:])"""


def run_limited(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    workers: int = 0,
    memory_bytes: int = MEMORY_BYTES,
    timeout_s: float = TIMEOUT_S,
) -> Generator[tuple[int, Any]]:
    """Call a function on each item in processes with limits; the results as they come.

    A failure is a result: an item whose process crashed, hung or asked for more memory than it may have gives a
    ReadError that says so, and the others go on in a new process. `items` is read as results are taken, two items a
    process ahead, so it may be long. Leaving the iteration early ends what is still at work.

    Parameters
    ----------
    function : callable (item) -> result
        A module-level function of this package. It is called in a process that has imported its module, and nothing
        else; modules that it imports within itself count against `memory_bytes`.
    items : iterable
        Plain values: ``None``, bool, int, float, str, bytes, Path, numpy arrays and scalars, and lists, tuples and
        dictionaries of them. Results are of the same kinds.
    workers : int
        Processes; 0 for the number of cores, at most 4.
    memory_bytes : int
        Address space that one item may take beyond what its process has.
    timeout_s : float
        Seconds of wall-clock time that one item may take.

    Yields
    ------
    (int, result or SagittalError)
        The number of the item in `items`, from 0, in the order in which they are done; the error is not raised.

    Raises
    ------
    ResourceError
        If no process can be started.
    TypeError
        If an item is not of those kinds.

    Examples
    --------
    >>> from sagittal.guard.limits import check_file
    >>> [(number, str(result)) for number, result in run_limited(check_file, [Path("nowhere.png")])]
    [(0, 'the file does not exist')]
    """
    if limits.within_limits:
        return _run_here(function, items)
    module, name = function.__module__, function.__qualname__
    if "." in name or "<" in name or not module.startswith(ALLOWED):
        raise TypeError(
            f"{module}.{name} cannot be called in another process: give a module-level function of sagittal"
        )
    return run(f"{module}:{name}", items, workers=workers, memory_bytes=memory_bytes, timeout_s=timeout_s)


def _run_here(function: Callable[[Any], Any], items: Iterable[Any]) -> Generator[tuple[int, Any]]:
    for number, item in enumerate(items):
        try:
            yield number, function(item)
        except SagittalError as error:
            yield number, error


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(eq=False)
class _Job:
    number: int
    parts: wire.Parts
    slot: int = -1


@dataclass(frozen=True)
class _Terms:
    """What holds for every job of one run."""

    memory_bytes: int
    timeout_s: float
    room: int  # bytes of shared memory that a job has for its bytes and for those of its result; 0: all by the pipe


def run(
    address: str,
    items: Iterable[Any],
    *,
    workers: int = 0,
    memory_bytes: int = MEMORY_BYTES,
    timeout_s: float = TIMEOUT_S,
    room: int = 0,
) -> Generator[tuple[int, Any]]:
    """As :func:`run_limited`, by the address ``"module:function"`` and with shared memory for large values.

    Parameters
    ----------
    room : int
        Bytes of shared memory that each item has, at least as many as the bytes of the item and as those of its result.
        Arrays in a result are then views of that memory, valid until the next result is asked for. The function must
        not return arrays that it was given. 0: nothing is shared, and results are the caller's.
    """
    terms = _Terms(memory_bytes, timeout_s, -(-room // mmap.PAGESIZE) * mmap.PAGESIZE if _SHARES else 0)
    most = workers or min(cores(), 4)
    coming = iter(enumerate(items))
    waiting: deque[_Job] = deque()
    crew: list[_Worker] = []
    try:
        while True:
            while True:
                if not waiting:
                    if (following := next(coming, None)) is None:
                        break
                    waiting.append(_Job(following[0], wire.encode([address, memory_bytes, timeout_s, following[1]])))
                if (worker := _free(crew, waiting[0], terms, most)) is None:
                    break
                worker.send(waiting.popleft(), terms)
            busy = [worker for worker in crew if worker.jobs]
            if not busy:
                return
            for worker in _ready(busy):
                for job, result in worker.results(terms):
                    yield job.number, result
                    worker.slots.append(job.slot)
                if worker.ended:
                    waiting.extend(worker.jobs)
                    worker.close()
                    crew.remove(worker)
    finally:
        for worker in crew:
            _POOL.give(worker)


def _free(crew: list[_Worker], job: _Job, terms: _Terms, most: int) -> _Worker | None:
    """Who takes the job: one that is idle, a new one, or one with another job at work and none waiting."""
    for worker in crew:
        if not worker.jobs:
            return worker
    if len(crew) < most:
        crew.append(_POOL.take())
        return crew[-1]
    if not _POSIX or (job.parts.size and not terms.room) or len(job.parts.header) > _SHORT:
        return None  # a long request would wait in the pipe, and hold this process up
    return next((worker for worker in crew if len(worker.jobs) == 1), None)


def _ready(busy: list[_Worker]) -> list[_Worker]:
    """Those that have something to say, or whose time is over."""
    if not _POSIX:
        return busy[:1]  # its reading waits, and a timer ends it
    with selectors.DefaultSelector() as selector:
        for worker in busy:
            selector.register(worker.replies, selectors.EVENT_READ, worker)
        wait = max(min(worker.deadline for worker in busy) - time.monotonic(), 0)
        ready = [cast("_Worker", key.data) for key, _ in selector.select(wait)]
    now = time.monotonic()
    return ready + [worker for worker in busy if worker not in ready and worker.deadline <= now]


def _shared_memory() -> int:
    """A file descriptor of memory that can grow but not shrink, or -1 where the system has no such thing."""
    if not _SHARES:
        return -1
    import fcntl

    memory = os.memfd_create("sagittal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # shrunk by the child, it would end this process
    return memory


class _Worker:
    """One process, what it has been asked, and the memory that it shares with this one."""

    def __init__(self) -> None:
        self.memory = _shared_memory()
        self.shared: mmap.mmap | None = None
        command = [sys.executable, "-P", "-W", "ignore", "-c", _START, *_WHERE, str(self.memory), *ALLOWED]
        try:
            self.process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # decoders print what stands in the file
                bufsize=0,
                env={**os.environ, **_ENVIRONMENT},
                pass_fds=(self.memory,) if self.memory >= 0 else (),
            )
        except OSError as error:
            if self.memory >= 0:
                os.close(self.memory)
            raise ResourceError(f"no process for decoding can be started ({error.strerror})") from error
        self.requests = cast("IO[bytes]", self.process.stdin)
        self.replies = cast("IO[bytes]", self.process.stdout)
        if _POSIX:
            os.set_blocking(self.replies.fileno(), False)
        self.buffer = bytearray()
        self.jobs: deque[_Job] = deque()  # the one at work, and one that waits
        self.slots = [1, 0]
        self.done = 0
        self.started = self.ended = self.late = False
        self.deadline = time.monotonic() + _START_S
        _LIVE.add(self)

    def send(self, job: _Job, terms: _Terms) -> None:
        """Give it a job; beside another one at work, this one waits in the pipe."""
        start, parts = -1, job.parts
        job.slot = self.slots.pop()
        if terms.room:
            if parts.size > terms.room:
                raise ValueError(f"an item of {parts.size} bytes in a room of {terms.room}")
            if self.shared is None or len(self.shared) < 2 * terms.room:
                os.ftruncate(self.memory, 2 * terms.room)
                self.shared = mmap.mmap(self.memory, 2 * terms.room)
            start = at = job.slot * terms.room
            for blob in parts.blobs:
                self.shared[at : at + len(blob)] = blob
                at += len(blob)
        if not self.jobs and self.started:
            self.deadline = time.monotonic() + terms.timeout_s
        self.jobs.append(job)
        message = HEAD.pack(job.number, len(parts.header), parts.size, start, terms.room) + parts.header
        with contextlib.suppress(BrokenPipeError):  # that it has ended is found where it is read
            for piece in [message] if terms.room else [message, *parts.blobs]:
                view = memoryview(piece)
                while view:
                    view = view[self.requests.write(view) :]

    def results(self, terms: _Terms) -> Iterator[tuple[_Job, Any]]:
        """What it has answered since the last call, and its failure if it is over (`ended`)."""
        self._receive()
        overdue = time.monotonic() >= self.deadline
        while self.buffer and (message := self._message()) is not None:
            number, answer = message
            self.deadline, overdue = time.monotonic() + terms.timeout_s, False
            if number == READY and not self.started:
                self.started = True
            elif self.jobs and number == self.jobs[0].number:
                self.done += 1
                yield self.jobs.popleft(), _result(answer, terms)
            else:
                self.ended = True
                break
        if overdue and not self.ended:
            self._stop_late()
        if not self.ended:
            return
        self.process.kill()
        code = self.process.wait()
        if not self.started:
            raise ResourceError(f"no process for decoding can be started (it ended with code {code})")
        if self.jobs:
            yield self.jobs.popleft(), _failure(code, self.late, terms)

    def _stop_late(self) -> None:
        self.ended = self.late = True
        self.process.kill()

    def _receive(self) -> None:
        """Take what has come; sets `ended` at the end."""
        timer = None
        if not _POSIX:
            timer = threading.Timer(max(self.deadline - time.monotonic(), 0), self._stop_late)
            timer.start()
        before = len(self.buffer)
        while len(self.buffer) - before < _GULP:
            try:
                piece = self.replies.read(_GULP)
            except BlockingIOError:
                piece = None
            if piece is None:
                break
            if not piece:
                self.ended = True
                break
            self.buffer += piece
            if not _POSIX:
                break
        if timer is not None:
            timer.cancel()
            timer.join()

    def _message(self) -> tuple[int, Any] | None:
        """The next complete answer, taken from the buffer."""
        if len(self.buffer) < HEAD.size:
            return None
        number, length, blobs, start, room = HEAD.unpack_from(self.buffer)
        shared = start >= 0
        size = HEAD.size + length + (0 if shared else blobs)
        if size > MAX_REPLY_BYTES or (
            shared and (self.shared is None or blobs > room or start + room > len(self.shared))
        ):
            return READY, None  # a second READY: nonsense, which ends it
        if len(self.buffer) < size:
            return None
        message = bytes(memoryview(self.buffer)[:size])
        del self.buffer[:size]
        body = memoryview(message)[HEAD.size + length :]
        if shared:
            body = memoryview(cast("mmap.mmap", self.shared))[start : start + blobs]
        try:
            return number, wire.decode(message[HEAD.size : HEAD.size + length], body)
        except ValueError:
            return READY, None

    def close(self) -> None:
        """End it, whatever it does."""
        _LIVE.discard(self)
        self.process.kill()
        self.process.wait()
        self.let_go()

    def let_go(self) -> None:
        """Close what belongs to this process."""
        self.requests.close()
        self.replies.close()
        if self.memory >= 0:
            os.close(self.memory)
            self.memory = -1
        if self.shared is not None:
            with contextlib.suppress(BufferError):  # someone still looks at a result
                self.shared.close()


def _result(answer: Any, terms: _Terms) -> Any:
    """The result, or the error that stands for it."""
    match answer:
        case ("result", value):
            return value
        case ("memory",):
            return ReadError(
                f"the decoder needed more than {terms.memory_bytes / 2**20:,.0f} MiB of memory; the file is damaged, or "
                "made to do harm"
            )
        case ("error", str(name), str(message)) if name in _ERRORS:
            return _ERRORS[name](message)
        case ("failed", str(where)):
            return ReadError(f"reading failed in a way that was not foreseen ({where.strip()})")
    return ReadError("the decoder gave an answer that makes no sense")


def _failure(code: int, late: bool, terms: _Terms) -> ReadError:
    why = "the file is damaged, or made to do harm"
    if late or code == -getattr(signal, "SIGALRM", 0):
        return ReadError(f"the decoder needed more than {terms.timeout_s:.3g} s, and was stopped; {why}")
    if code == -getattr(signal, "SIGKILL", 0):
        return ReadError("the decoder was ended by the system, probably for want of memory; read fewer files at a time")
    name = signal.Signals(-code).name if code < 0 else f"code {code}"
    return ReadError(f"the decoder crashed ({name}); {why}")


class _Pool:
    """Processes that wait for the next job."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[_Worker] = []

    def take(self) -> _Worker:
        with self.lock:
            while self.idle:
                worker = self.idle.pop()
                if worker.process.poll() is None:
                    return worker
                worker.close()
        return _Worker()

    def give(self, worker: _Worker) -> None:
        if worker.shared is not None and len(worker.shared) > _KEPT_BYTES and hasattr(mmap, "MADV_REMOVE"):
            worker.shared.madvise(mmap.MADV_REMOVE)
        with self.lock:
            fit = not worker.jobs and not worker.ended and worker.done < _JOBS_OF_A_LIFE
            if fit and len(self.idle) < _KEPT:
                worker.slots = [1, 0]  # a run that was left early gives none back
                self.idle.append(worker)
                return
        worker.close()


_LIVE: set[_Worker] = set()
_POOL = _Pool()


def stop() -> None:
    """End all limited processes of this process; the next job starts new ones."""
    _POOL.idle.clear()
    for worker in list(_LIVE):
        worker.close()


def _forget() -> None:
    """In a forked child: the processes are the parent's. Close our ends, so that theirs is the only one."""
    global _POOL  # noqa: PLW0603
    _POOL = _Pool()
    for worker in list(_LIVE):
        worker.process.returncode = 0  # not ours to wait for
        worker.let_go()
    _LIVE.clear()


atexit.register(stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
