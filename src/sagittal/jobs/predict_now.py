"""Small pictures and tensors answered while the caller waits, without the queue: one request to a warm model.

Pictures that come while the model is at work go to it together, in one message, so that many callers cost little more than
one; a single caller never waits for others.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sagittal.errors import ConfigError, ResourceError
from sagittal.jobs.packages import ServedModel
from sagittal.jobs.pool import Pool
from sagittal.jobs.worker import WorkerEnded

#: A file beyond this is a study for the queue, not a small picture; so many bytes go to a model together.
MOST_BYTES = 32 * 2**20
#: Requests of one model that may wait; more are turned away, as they would only wait longer.
MOST_WAITING = 256
#: Pictures that are answered together, and how many such messages are on their way: one at work, one that is next.
MOST_TOGETHER, MOST_UNDER_WAY = 32, 2
#: Kinds of numbers of the protocol -> numpy's names; BYTES is for texts and BF16 has no counterpart.
DATATYPES: Mapping[str, str] = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip


class Busy(ResourceError):  # noqa: N818
    """More requests wait than the model can answer soon (HTTP 503)."""


@dataclass(frozen=True)
class Instant:
    """What came of a picture.

    Attributes
    ----------
    body : bytes
        The answer in JSON, as :func:`sagittal.jobs.plain_answer.plain_answer` has it; empty where there is none.
    error, message : str
        Otherwise: the kind of the error, and its words.
    """

    body: bytes = b""
    error: str = ""
    message: str = ""

    @property
    def values(self) -> dict[str, Any]:
        """The answer, or ``error`` and ``message``."""
        if self.error:
            return {"error": self.error, "message": self.message}
        values: dict[str, Any] = json.loads(self.body)
        return values


@dataclass(eq=False)
class _Asked:
    """A picture that waits for its answer."""

    data: bytes
    future: Future[Instant] = field(default_factory=Future)


@dataclass(eq=False)
class _Line:
    """What is asked of one model: requests without an answer, pictures that are not sent yet, messages on their way."""

    waiting: int = 0
    held: deque[_Asked] = field(default_factory=deque)
    under_way: int = 0


class PredictNow:
    """Answers at once, by the models of a pool.

    Parameters
    ----------
    pool : Pool
    limit_s : float
        After so long the model's process is taken to hang.
    """

    def __init__(self, pool: Pool, *, limit_s: float = 120.0) -> None:
        self._pool, self._limit_s = pool, limit_s
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}

    def predict(self, model: ServedModel, data: bytes) -> Instant:
        """The answer to one picture.

        Raises
        ------
        Busy
            If too many wait already.
        ConfigError
            If the file is too large, or the model takes several images.
        AnswerError, WorkerEnded
            If the model's process failed twice.
        """
        try:
            return self.submit(model, data).result()
        except WorkerEnded:  # it was just being unloaded, or another's picture ended it: this time without others
            return self.submit(model, data, alone=True).result()

    def submit(self, model: ServedModel, data: bytes, *, alone: bool = False) -> Future[Instant]:
        """As :meth:`predict`, with the answer as a future, and one try; for those who wait for many.

        Loading a model that is not loaded happens before this returns.

        Parameters
        ----------
        alone : bool
            Not in one message with others.
        """
        if len(data) > MOST_BYTES:
            raise ConfigError(
                f"a picture of {len(data) / 2**20:.0f} MB is no small one: up to {MOST_BYTES // 2**20} MB are answered at once; "
                "send it as a study"
            )
        line = self._enter(model)
        asked = _Asked(data)
        asked.future.add_done_callback(lambda _: self._leave(line))
        if alone:
            with self._lock:
                line.under_way += 1
            self._send(model, line, [asked])
        else:
            with self._lock:
                line.held.append(asked)
            self._send_held(model, line)
        return asked.future

    def infer(self, model: ServedModel, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors to tensors; see :func:`sagittal.jobs.answer_tensors.answer_tensors`.

        Raises
        ------
        AnswerError
            With ``kind`` ConfigError if names, shapes or types do not fit.
        Busy, WorkerEnded
        """
        line = self._enter(model)
        request = {"do": "infer", "tensors": dict(tensors)}
        try:
            for last in (False, True):
                try:
                    found: dict[str, Any] = self._ask(model, request).result()
                    return found
                except WorkerEnded:
                    if last:
                        raise
            raise AssertionError("unreachable")  # pragma: no cover
        finally:
            self._leave(line)

    def _ask(self, model: ServedModel, request: Mapping[str, Any]) -> Future[Any]:
        return self._pool.submit(model.checksum, request, limit_s=self._limit_s)

    def _enter(self, model: ServedModel) -> _Line:
        with self._lock:
            line = self._lines.setdefault(model.checksum, _Line())
            if line.waiting >= MOST_WAITING:
                raise Busy(f"{MOST_WAITING} requests wait for the model {model.name} already; try again in a moment")
            line.waiting += 1
            return line

    def _leave(self, line: _Line) -> None:
        with self._lock:
            line.waiting -= 1

    # Messages to the model

    def _send_held(self, model: ServedModel, line: _Line) -> None:
        """Send what waits, unless enough is on its way; what that leaves goes when one of those is answered."""
        with self._lock:
            if not line.held or line.under_way >= MOST_UNDER_WAY:
                return
            together = [line.held.popleft()]
            size = len(together[0].data)
            while line.held and len(together) < MOST_TOGETHER and size + len(line.held[0].data) <= MOST_BYTES:
                size += len(line.held[0].data)
                together.append(line.held.popleft())
            line.under_way += 1
        self._send(model, line, together)

    def _send(self, model: ServedModel, line: _Line, together: list[_Asked]) -> None:
        try:
            future = self._ask(model, {"do": "instant", "files": [one.data for one in together]})
        except Exception as error:
            self._fail(model, line, together, error)
        else:
            future.add_done_callback(partial(self._answered, model, line, together))

    def _answered(self, model: ServedModel, line: _Line, together: list[_Asked], done: Future[Any]) -> None:
        error = done.exception()
        if error is not None:
            self._fail(model, line, together, error)
            return
        with self._lock:
            line.under_way -= 1
        for one, answer in zip(together, done.result()["answers"], strict=True):
            found = Instant(answer) if isinstance(answer, bytes) else Instant(b"", answer["error"], answer["message"])
            _settle(one.future, found)
        if self._pool.ready(model.checksum):
            self._send_held(model, line)
        else:
            self._drop(line, WorkerEnded("stopped", "the model was unloaded"))

    def _fail(self, model: ServedModel, line: _Line, together: list[_Asked], error: BaseException) -> None:
        """No answer for these. The next go to the model, where it is there; it is loaded by whoever asks again."""
        with self._lock:
            line.under_way -= 1
        for one in together:
            _settle(one.future, error)
        if self._pool.ready(model.checksum):
            self._send_held(model, line)
        else:
            self._drop(line, error)

    def _drop(self, line: _Line, error: BaseException) -> None:
        with self._lock:
            left, line.held = line.held, deque()
        for one in left:
            _settle(one.future, error)


def _settle(future: Future[Instant], found: Instant | BaseException) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(found, Instant):
        future.set_result(found)
    else:
        future.set_exception(found)


def describe_tensors(model: ServedModel) -> dict[str, Any]:
    """Inputs and outputs of a model as the Open Inference Protocol's metadata has them.

    Returns
    -------
    dict
        ``name``, ``versions``, ``platform``, ``inputs``, ``outputs``; a size of -1 may be any. Either ``array`` (and
        ``table``) or the images are given.
    """
    store = {"uint8": "UINT8", "float16": "FP16", "float32": "FP32"}[model.store]
    flat = model.use.dimensions == 2
    inputs: list[dict[str, Any]] = []
    if model.task == "classify":
        inputs.append({"name": "array", "datatype": store, "shape": [-1, model.channels, *model.size]})
    shape = [-1, -1, -1] if flat else [-1, -1, -1, -1]
    inputs += [{"name": name, "datatype": "FP32", "shape": shape} for name in model.use.images]
    inputs.append({"name": "spacing_mm", "datatype": "FP32", "shape": [-1, 2 if flat else 3]})
    inputs += [{"name": name, "datatype": "FP32", "shape": [-1]} for name in model.columns]
    count = len(model.classes)
    outputs = {
        "classify": [("probability", "FP64", [-1, count]), ("logits", "FP64", [-1, count]), ("decision", "BOOL", [-1, count])],
        "segment": [("mask", "UINT8", [-1, -1, -1, -1])],
        "detect": [
            ("boxes", "FP32", [-1, 6]), ("scores", "FP64", [-1]), ("classes", "INT64", [-1]), ("chosen", "BOOL", [-1]),
            ("batch", "INT64", [-1]),
        ],
    }  # fmt: skip
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": "sagittal",
        "inputs": inputs,
        "outputs": [{"name": n, "datatype": t, "shape": s} for n, t, s in outputs.get(model.task, [])],
    }
