"""The models of a service, each in a process of its own: loaded, warm, within the machine's memory, replaced when they fail.

A model is loaded when the service starts or when it is first asked. Where memory is short, the one that was used longest
ago and has nothing to do is unloaded first. A process that hangs, crashes or takes too much memory is ended; what it was
at fails with the reason, which is for the queue to try again, and the next request starts another process.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from sagittal.errors import ConfigError, ResourceError, SagittalError, ServeError, nearest
from sagittal.guard.limited import cores
from sagittal.jobs.memory import budget_bytes, resident_bytes
from sagittal.jobs.packages import ServedModel
from sagittal.jobs.worker import COMMAND, IDLE_S, LOAD_S, SILENCE_S, AnswerError, Limits, Worker, WorkerEnded

_log = logging.getLogger(__name__)

#: A process with torch and no model takes about so much.
_BARE_BYTES = 400 * 2**20
#: After so many ends within this time a model is left alone for a while: it would only end again.
_MOST_ENDS, _ENDS_S, _REST_S = 5, 300.0, 60.0
#: Seconds that a model waits for memory which others still use.
_MEMORY_WAIT_S = 300.0
#: How a process ended -> code of the event.
_CODES = {"hang": "model-hangs", "time": "model-too-slow", "memory": "model-memory", "crash": "model-crashed"}

State = Literal["cold", "loading", "ready", "failed"]
#: Who is told of trouble: code, level, message, about.
Report = Callable[[str, str, str, str], None]


class Resting(ResourceError):  # noqa: N818
    """A model's process ended again and again; it is left alone for a while, whoever asks."""


@dataclass
class _Place:
    """A model, and its process where it has one."""

    model: ServedModel
    limits: Limits
    lock: threading.Lock = field(default_factory=threading.Lock)
    worker: Worker | None = None
    state: State = "cold"
    facts: Mapping[str, Any] = field(default_factory=dict)
    used: float = 0.0
    need: int = 0
    ends: list[float] = field(default_factory=list)
    troubles: set[str] = field(default_factory=set)
    error: str = ""

    @property
    def bytes(self) -> int:
        """What its process takes now."""
        return 0 if self.worker is None or not self.worker.alive else resident_bytes(self.worker.process.pid)


class Pool:
    """The models of a service.

    Parameters
    ----------
    models : sequence of ServedModel
    memory_bytes : int, optional
        What all processes together may take; a share of the machine's where not given.
    threads : int, optional
        That each network computes with; the cores of the machine where not given.
    report : callable (code, level, message, about), optional
        Told of trouble.
    ended : callable (code, about), optional
        Told that a trouble is over.
    command : sequence of str
        What is started for a model.
    silence_s, idle_s : float
        After which a process is taken to hang; see :mod:`sagittal.jobs.worker`.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        *,
        memory_bytes: int | None = None,
        threads: int | None = None,
        report: Report | None = None,
        ended: Callable[[str, str], None] | None = None,
        command: Sequence[str] = COMMAND,
        silence_s: float = SILENCE_S,
        idle_s: float = IDLE_S,
    ) -> None:
        self.budget = memory_bytes or budget_bytes()
        self._command = command
        self._report = report or _quiet
        self._over = ended or _quiet_end
        # Of its own: who listens to a process must not wait for a database.
        self._telling = ThreadPoolExecutor(1, thread_name_prefix="sagittal-pool")
        self._making = threading.Condition()
        self._loading = threading.Lock()
        self._stopped = False
        each = threads or cores()
        self._places: dict[str, _Place] = {}
        for model in models:
            most = min(model.entry.memory_bytes or self.budget, self.budget)
            place = _Place(model, Limits(most, silence_s, idle_s, each))
            place.need = _BARE_BYTES + 3 * model.bytes
            self._places[model.checksum] = place

    # What there is

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """All models, in the order of the service's file."""
        return tuple(place.model for place in self._places.values())

    def find(self, name: str, version: str = "") -> ServedModel:
        """A model by its name and, where there are several versions, the one that answers or the one that is named.

        Parameters
        ----------
        name : str
        version : str
            The beginning of a checksum.

        Raises
        ------
        ConfigError
            If there is none.
        """
        named = [model for model in self.models if model.name == name]
        if not named:
            raise ConfigError(f"there is no model '{name[:64]}'. {nearest(name[:64], [m.name for m in self.models])}")
        if version:
            fitting = [model for model in named if model.checksum.startswith(version)]
            if len(fitting) != 1:
                raise ConfigError(
                    f"the model '{name}' has no version '{version[:64]}'. {nearest(version[:64], [m.version for m in named])}"
                )
            return fitting[0]
        return next((model for model in named if model.answers), named[0])

    def states(self) -> list[dict[str, Any]]:
        """What each model is at, for the administrator's page and for metrics."""
        return [
            {
                "name": place.model.name,
                "version": place.model.version,
                "role": place.model.entry.role,
                "task": place.model.task,
                "state": place.state,
                "busy": 0 if place.worker is None else place.worker.busy,
                "bytes": place.bytes,
                "most_bytes": place.limits.memory_bytes,
                "used": place.used,
                "error": place.error,
                "intended_use": dict(place.model.intended_use),
                "classes": list(place.model.classes),
            }
            for place in self._places.values()
        ]

    def ready(self, checksum: str) -> bool:
        """Whether a model is loaded and can be asked at once."""
        place = self._places.get(checksum)
        return place is not None and place.state == "ready" and place.worker is not None and place.worker.alive

    # Asking

    def warm(self) -> None:
        """Load the models one after the other, as many as memory holds; those that fail are reported and left."""
        for place in self._places.values():
            if self._stopped:
                return
            if sum(p.bytes for p in self._places.values()) + place.need > self.budget and any(
                p.state == "ready" for p in self._places.values()
            ):
                continue  # loaded when it is asked for
            try:
                self._ready(place)
            except SagittalError as error:
                _log.warning("model %s: %s", place.model.label, error)

    def answer(
        self,
        checksum: str,
        request: Mapping[str, Any],
        *,
        progress: Callable[[float], None] | None = None,
    ) -> dict[str, Any]:
        """Answer a study, and wait for it; see :func:`sagittal.jobs.answer_study.answer_study`.

        Raises
        ------
        AnswerError
            If the model could not answer.
        WorkerEnded
            If its process hung, crashed, or took too much memory or time.
        ResourceError
            If there is no memory to load it.
        """
        place = self._place(checksum)
        future = self._ask(place, {**request, "do": "answer"}, place.model.entry.limit_s, progress)
        found: dict[str, Any] = future.result()
        return found

    def submit(self, checksum: str, request: Mapping[str, Any], *, limit_s: float) -> Future[Any]:
        """Ask a model something that is answered at once; the answer comes as a future.

        Raises
        ------
        ResourceError, WorkerEnded, AnswerError
            If the model is not loaded and cannot be.
        """
        return self._ask(self._place(checksum), request, limit_s, None)

    def _place(self, checksum: str) -> _Place:
        place = self._places.get(checksum)
        if place is None:
            raise ConfigError("the service has no such version of the model any more")
        return place

    def _ask(
        self,
        place: _Place,
        request: Mapping[str, Any],
        limit_s: float,
        progress: Callable[[float], None] | None,
    ) -> Future[Any]:
        worker = self._ready(place)
        place.used = time.monotonic()
        future = worker.ask(request, limit_s=limit_s, progress=progress)
        future.add_done_callback(lambda done: self._settled(place, done))
        return future

    def _settled(self, place: _Place, done: Future[Any]) -> None:
        place.used = time.monotonic()
        if place.troubles and done.exception() is None:
            self._well(place)
        with self._making:
            self._making.notify_all()

    # Processes

    def _ready(self, place: _Place) -> Worker:
        """The model's process, started and warm."""
        worker = place.worker
        if worker is not None and worker.alive and place.state == "ready":
            return worker
        with place.lock:
            if self._stopped:
                raise ServeError("the service is stopping")
            if place.worker is not None and place.worker.alive and place.state == "ready":
                return place.worker
            self._rest(place)
            place.state, place.error = "loading", ""
            try:
                with self._loading:  # two at once would each find the room that the other takes
                    self._make_room(place)
                    place.worker = self._load(place)
            except (SagittalError, OSError) as error:
                place.state, place.error = "failed", str(error)
                self._trouble(place, "model-not-loaded", f"it could not be loaded: {error}")
                raise
            place.state = "ready"
            place.used = time.monotonic()
            place.need = max(place.need, place.bytes)
            return place.worker

    def _load(self, place: _Place) -> Worker:
        worker = Worker(place.limits, command=self._command, on_end=lambda ended: self._ended(place, ended))
        request = {"do": "load", "path": str(place.model.path), "threads": place.limits.threads}
        try:
            reply = worker.ask(request, limit_s=LOAD_S).result()
            if reply["facts"]["checksum"] != place.model.checksum:
                raise ResourceError("the package was changed after the service was started; start the service again")
        except BaseException:
            worker.stop(0.0)
            raise
        place.facts = reply["facts"]
        return worker

    def _rest(self, place: _Place) -> None:
        """Refuse to start a process again and again that ends again and again."""
        now = time.monotonic()
        place.ends = [at for at in place.ends if now - at < _ENDS_S]
        if len(place.ends) >= _MOST_ENDS and now - place.ends[-1] < _REST_S:
            raise Resting(
                f"the model's process ended {len(place.ends)} times within {_ENDS_S / 60:g} min; it rests for a minute"
            )

    def _make_room(self, place: _Place) -> None:
        """Unload models that were used longest ago until this one fits; those at work are waited for."""
        deadline = time.monotonic() + _MEMORY_WAIT_S
        while True:
            others = [p for p in self._places.values() if p is not place and p.bytes]
            if not others or sum(p.bytes for p in others) + place.need <= self.budget:
                return
            idle = sorted((p for p in others if p.worker is not None and not p.worker.busy), key=lambda p: p.used)
            if idle:
                self._unload(idle[0])
                continue
            with self._making:
                self._making.wait(1.0)
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"memory does not hold one more model: {len(others)} are at work and may take "
                    f"{self.budget / 2**30:.1f} GB together"
                )

    def _unload(self, place: _Place) -> None:
        worker = place.worker
        place.state, place.worker = "cold", None
        if worker is not None:
            place.need = max(_BARE_BYTES, worker.most_bytes)
            worker.stop()
            _log.info("model %s was unloaded to make room", place.model.label)

    def _ended(self, place: _Place, ended: WorkerEnded) -> None:
        """Its process ended by itself, or had to be ended."""
        place.ends.append(time.monotonic())
        if place.state == "ready":
            place.state = "cold"
        place.error = str(ended)
        self._trouble(place, _CODES.get(ended.how, "model-crashed"), f"{ended}. What it was at is tried again.")
        with self._making:
            self._making.notify_all()

    def _trouble(self, place: _Place, code: str, message: str) -> None:
        place.troubles.add(code)
        self._tell(self._report, code, "error", f"{place.model.name}: {message}", place.model.name)

    def _well(self, place: _Place) -> None:
        """It works again."""
        while place.troubles:
            self._tell(self._over, place.troubles.pop(), place.model.name)

    def _tell(self, who: Callable[..., None], *what: str) -> None:
        def tell() -> None:
            try:
                who(*what)
            except Exception as error:
                _log.warning("%s could not be told (%s)", what[0], type(error).__name__)

        with contextlib.suppress(RuntimeError):  # it was stopped
            self._telling.submit(tell)

    def kill(self, checksum: str, why: str) -> None:
        """End the process of a model at once, as when what it is at was cancelled."""
        worker = self._place(checksum).worker
        if worker is not None:
            worker.kill("stopped", why)
            self._places[checksum].state = "cold"

    def stop(self, wait_s: float = 5.0) -> None:
        """End all processes."""
        self._stopped = True
        running: Iterable[Worker] = [p.worker for p in self._places.values() if p.worker is not None]
        threads = [threading.Thread(target=worker.stop, args=(wait_s,)) for worker in running]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for place in self._places.values():
            place.state, place.worker = "cold", None
        self._telling.shutdown()


def _quiet(code: str, level: str, message: str, about: str) -> None:
    _log.warning("%s: %s", code, message)


def _quiet_end(code: str, about: str) -> None:
    _log.info("%s is over", code)


__all__ = ["AnswerError", "Pool", "Resting", "WorkerEnded"]
