"""One process of a model, seen from the service: what it was asked, whether it lives, and why it ended."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from sagittal import errors
from sagittal.errors import ResourceError, SagittalError, ServeError
from sagittal.jobs.channel import Channel
from sagittal.jobs.memory import cpu_s, resident_bytes

#: A process that says nothing for so long while it has work is taken to hang.
SILENCE_S = 60.0
#: One that is at work on a request, computes nothing and comes no further for so long, too: it waits for itself.
IDLE_S = 120.0
#: Seconds between two looks at it.
LOOK_S = 0.25
#: Seconds that loading a model may take.
LOAD_S = 600.0

Ended = Literal["hang", "time", "memory", "crash", "stopped"]

_ROOT = Path(errors.__file__).parents[1]
#: The same package in the child, also where it was found by a path that the child does not know; "-P" keeps the current
#: folder out of its path.
_START = """import sys, importlib.util
spec = importlib.util.find_spec("sagittal")
if spec is None or spec.origin != sys.argv[1]:
    sys.path.insert(0, sys.argv[2])
from sagittal.jobs.worker_process import start
start(sys.argv[3:])"""
COMMAND: tuple[str, ...] = (
    sys.executable, "-P", "-W", "ignore", "-c", _START, str(_ROOT / "sagittal" / "__init__.py"), str(_ROOT),
)  # fmt: skip
_ERRORS: dict[str, type[SagittalError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, SagittalError)
}


class WorkerEnded(ServeError):  # noqa: N818
    """The process of a model ended before it answered.

    Attributes
    ----------
    how : {"hang", "time", "memory", "crash", "stopped"}
    """

    def __init__(self, how: Ended, message: str) -> None:
        super().__init__(message)
        self.how = how


class AnswerError(ServeError):
    """A model's process could not answer a request.

    Attributes
    ----------
    kind : str
        Name of the error's class there.
    again : bool
        Whether another try may help.
    """

    def __init__(self, kind: str, message: str, again: bool) -> None:
        super().__init__(message)
        self.kind, self.again = kind, again

    @property
    def original(self) -> SagittalError:
        """The error as it was raised there, where it is one of ours."""
        return _ERRORS.get(self.kind, ServeError)(str(self))


@dataclass
class _Asked:
    """A request that is not answered yet."""

    future: Future[Any]
    until: float
    limit_s: float
    progress: Callable[[float], None] | None = None


@dataclass(frozen=True)
class Limits:
    """What a process may do.

    Parameters
    ----------
    memory_bytes : int
        0 for no limit.
    silence_s, idle_s : float
        See :data:`SILENCE_S` and :data:`IDLE_S`.
    threads : int
        That the networks compute with.
    """

    memory_bytes: int = 0
    silence_s: float = SILENCE_S
    idle_s: float = IDLE_S
    threads: int = 1


class Worker:
    """A running process.

    Parameters
    ----------
    limits : Limits
    command : sequence of str
        What is started; the memory limit in bytes is added.
    on_end : callable (WorkerEnded), optional
        Called once when the process ended without having been asked to.

    Raises
    ------
    ResourceError
        If no process can be started.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        command: Sequence[str] = COMMAND,
        on_end: Callable[[WorkerEnded], None] | None = None,
    ) -> None:
        self.limits = limits
        self._on_end = on_end
        self._lock = threading.Lock()
        self._asked: dict[int, _Asked] = {}
        self._numbers = itertools.count(1)
        self._heard = time.monotonic()
        self._moved = time.monotonic()
        self._mark: tuple[float, float | None] = (time.monotonic(), None)
        self._stopping = False
        self._at, self._progress = -1, 0.0
        self.most_bytes = 0
        self.ended: WorkerEnded | None = None
        # The service's settings may hold secrets, which are no concern of a process that reads strangers' files.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SAGITTAL_SERVE")}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(limits.threads))
        try:
            self.process = subprocess.Popen(  # noqa: S603
                [*command, str(limits.memory_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # libraries print what stands in the files
                env=environment,
            )
        except OSError as error:
            raise ResourceError(f"no process for a model can be started ({error.strerror})") from error
        self.channel = Channel(cast("IO[bytes]", self.process.stdout), cast("IO[bytes]", self.process.stdin))
        threading.Thread(target=self._listen, daemon=True, name=f"sagittal-listen-{self.process.pid}").start()
        threading.Thread(target=self._watch, daemon=True, name=f"sagittal-watch-{self.process.pid}").start()

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self.ended is None

    @property
    def busy(self) -> int:
        """Requests that are not answered yet."""
        with self._lock:
            return len(self._asked)

    def ask(
        self,
        request: Mapping[str, Any],
        *,
        limit_s: float,
        progress: Callable[[float], None] | None = None,
    ) -> Future[Any]:
        """Ask something; the answer comes as a future.

        Parameters
        ----------
        request : mapping
            With ``do``.
        limit_s : float
            After so long the process is ended.
        progress : callable (float), optional
            Told how far the work is, about every second.

        Returns
        -------
        Future
            Of the answer; it raises :class:`AnswerError` or :class:`WorkerEnded`.
        """
        future: Future[Any] = Future()
        number = next(self._numbers)
        with self._lock:
            if self.ended is not None:
                future.set_exception(WorkerEnded(self.ended.how, str(self.ended)))
                return future
            now = time.monotonic()
            if not self._asked:
                self._heard = self._moved = now
            self._asked[number] = _Asked(future, now + limit_s, limit_s, progress)
        try:
            self.channel.send({**request, "id": number})
        except (OSError, ValueError):
            self._end("crash", self._how_it_ended())
        return future

    def stop(self, wait_s: float = 5.0) -> None:
        """End it: it may finish what it is at for a while, then it is killed."""
        self._stopping = True
        with contextlib.suppress(OSError, ValueError):
            self.channel.send({"do": "stop", "id": 0})
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(wait_s)
        self.kill("stopped", "the service stopped it")

    def kill(self, how: Ended, why: str) -> None:
        """End it at once; what it was asked fails with the reason."""
        self._end(how, why)

    # Threads

    def _listen(self) -> None:
        while True:
            try:
                message = self.channel.receive()
                number = int(message["id"])
            except (EOFError, OSError):
                self._end("crash", self._how_it_ended())
                return
            except (ValueError, KeyError, TypeError):
                self._end("crash", "it sent what makes no sense")
                return
            self._heard = time.monotonic()
            if number == -1:
                self._beat(message)
                continue
            with self._lock:
                asked = self._asked.pop(number, None)
            self._moved = time.monotonic()
            if asked is not None:
                _settle(asked.future, message)

    def _beat(self, message: Mapping[str, Any]) -> None:
        at, progress = int(message.get("at", -1)), float(message.get("progress", 0.0))
        if (at, progress) != (self._at, self._progress):
            self._at, self._progress, self._moved = at, progress, time.monotonic()
        with self._lock:
            asked = self._asked.get(at)
        if asked is not None and asked.progress is not None:
            asked.progress(progress)

    def _watch(self) -> None:
        while self.ended is None:
            try:
                self.process.wait(LOOK_S)
            except subprocess.TimeoutExpired:
                self._look()
            else:
                time.sleep(0.05)  # what it said at last may still be in the pipe
                self._end("crash", self._how_it_ended())

    def _look(self) -> None:
        """End it where it takes too much, too long, or says nothing."""
        taken = resident_bytes(self.process.pid)
        self.most_bytes = max(self.most_bytes, taken)
        most = self.limits.memory_bytes
        if most and taken > most:
            self._end("memory", f"it took {taken / 2**30:.1f} GB of memory, and may take {most / 2**30:.1f} GB")
            return
        now = time.monotonic()
        with self._lock:
            late = {number: one for number, one in self._asked.items() if one.until < now}
            waited = {number: one for number, one in late.items() if self._at not in {-1, number}}
            for number in waited:
                del self._asked[number]
            works = bool(self._asked)
        for one in waited.values():  # another's work is no reason to end the process
            _settle(
                one.future, {"error": "ResourceError", "message": "the model is at work on another study; try again"}
            )
        if late.keys() - waited.keys():
            limit_s = next(one.limit_s for number, one in late.items() if number not in waited)
            self._end("time", f"it did not answer within {limit_s:g} s")
            return
        if not works:
            return
        if now - self._heard > self.limits.silence_s:
            self._end("hang", f"it gave no sign of life for {self.limits.silence_s:g} s")
            return
        if self._computes(now):
            self._moved = now
        elif now - self._moved > self.limits.idle_s:
            self._end("hang", f"it computed nothing and came no further for {self.limits.idle_s:g} s")

    def _computes(self, now: float) -> bool:
        """Whether it has computed since the last look that counted; its signs of life alone are far below the limit."""
        since, before = self._mark
        if now - since < self.limits.idle_s / 8:
            return False
        computed = cpu_s(self.process.pid)
        self._mark = (now, computed)
        return before is None or computed is None or computed - before > 0.02 * (now - since)

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2.0)
        code = self.process.poll()
        if code is None:
            return "it closed its pipe"
        if code == -signal.SIGKILL:
            return "it was ended by the system, probably for want of memory"
        name = signal.Signals(-code).name if code < 0 else f"code {code}"
        return f"it crashed ({name})"

    def _end(self, how: Ended, why: str) -> None:
        with self._lock:
            if self.ended is not None:
                return
            if self._stopping:
                how, why = "stopped", "the service stopped it"
            self.ended = WorkerEnded(how, f"the model's process ended: {why}")
            left, self._asked = list(self._asked.values()), {}
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10.0)
        self.channel.close()
        for one in left:
            if not one.future.done():
                one.future.set_exception(WorkerEnded(how, str(self.ended)))
        if how != "stopped" and self._on_end is not None:
            self._on_end(self.ended)


def _settle(future: Future[Any], message: Mapping[str, Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if "ok" in message:
        future.set_result(message["ok"])
        return
    kind, text = str(message.get("error", "")), str(message.get("message", "it could not answer"))
    future.set_exception(AnswerError(kind, text, bool(message.get("again", True))))
