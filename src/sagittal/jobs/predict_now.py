"""Small pictures and tensors answered while the caller waits, without the queue: one request to a warm model.

What waits together is answered together by the model's process (:mod:`sagittal.jobs.worker_process`), so that many callers
cost little more than one; a single caller never waits for others.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from sagittal.errors import ConfigError, ResourceError
from sagittal.jobs.packages import ServedModel
from sagittal.jobs.pool import Pool
from sagittal.jobs.worker import WorkerEnded

#: A file beyond this is a study for the queue, not a small picture.
MOST_BYTES = 32 * 2**20
#: Requests of one model that may wait; more are turned away, as they would only wait longer.
MOST_WAITING = 256
#: Kinds of numbers of the protocol -> numpy's names; BYTES is for texts and BF16 has no counterpart.
DATATYPES: Mapping[str, str] = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip


class Busy(ResourceError):  # noqa: N818
    """More requests wait than the model can answer soon (HTTP 503)."""


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
        self._waiting: Counter[str] = Counter()

    def predict(self, model: ServedModel, data: bytes) -> dict[str, Any]:
        """The answer to one picture, as :func:`sagittal.jobs.plain_answer.plain_answer` has it; or ``error``, ``message``.

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
            return self._done(self.submit(model, data))
        except WorkerEnded:  # it was just being unloaded, or another's picture ended it
            return self._done(self.submit(model, data))

    def submit(self, model: ServedModel, data: bytes) -> Future[Any]:
        """As :meth:`predict`, with the answer as a future; for those who wait for many.

        Loading a model that is not loaded happens before this returns.
        """
        if len(data) > MOST_BYTES:
            raise ConfigError(
                f"a picture of {len(data) / 2**20:.0f} MB is no small one: up to {MOST_BYTES // 2**20} MB are answered at once; "
                "send it as a study"
            )
        return self._send(model, {"do": "instant", "file": data})

    def infer(self, model: ServedModel, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors to tensors; see :func:`sagittal.jobs.answer_tensors.answer_tensors`.

        Raises
        ------
        AnswerError
            With ``kind`` ConfigError if names, shapes or types do not fit.
        Busy, WorkerEnded
        """
        request = {"do": "infer", "tensors": dict(tensors)}
        try:
            return self._done(self._send(model, request))
        except WorkerEnded:
            return self._done(self._send(model, request))

    def _send(self, model: ServedModel, request: Mapping[str, Any]) -> Future[Any]:
        with self._lock:
            if self._waiting[model.checksum] >= MOST_WAITING:
                raise Busy(f"{MOST_WAITING} requests wait for the model {model.name} already; try again in a moment")
            self._waiting[model.checksum] += 1
        try:
            future = self._pool.submit(model.checksum, request, limit_s=self._limit_s)
        except BaseException:
            self._less(model.checksum)
            raise
        future.add_done_callback(lambda _: self._less(model.checksum))
        return future

    def _less(self, checksum: str) -> None:
        with self._lock:
            self._waiting[checksum] -= 1

    @staticmethod
    def _done(future: Future[Any]) -> dict[str, Any]:
        found: dict[str, Any] = future.result()
        return found


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
