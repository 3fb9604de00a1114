"""The process that a model lives in: it loads one, and answers until its input ends.

It is started by :mod:`sagittal.jobs.worker` alone. Studies are read from the archive by their paths and their results are
written into a folder; only what fits into a line of JSON, and small pictures, come through the pipe. One thread reads the
pipe, one says every second that the process is alive and how far it is, and the main thread works: a study at a time, or
the small pictures of one message.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagittal.errors import MissingPackageError, PackageError, ResourceError, SagittalError
from sagittal.jobs.channel import Channel

if TYPE_CHECKING:
    from sagittal.model.load import AnyModel

#: Seconds between two signs of life.
BEAT_S = 1.0


@dataclass
class Station:
    """What the threads of the process share.

    Attributes
    ----------
    channel : Channel
    model : Model or PlaceModel, optional
        Once it is loaded.
    at : int
        Number of the request at work, -1 for none.
    progress : float
        Of that request, 0 to 1.
    """

    channel: Channel
    model: AnyModel | None = None
    at: int = -1
    progress: float = 0.0
    waiting: queue.SimpleQueue[dict[str, Any]] = field(default_factory=queue.SimpleQueue)

    def advance(self, progress: float) -> None:
        """Say how far the request at work is."""
        self.progress = progress


#: What a request asks for -> who answers it.
Handler = Callable[[Station, Mapping[str, Any]], Mapping[str, Any]]


def load(station: Station, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Load the model, and run it once on nothing, so that the first study does not wait for what a first run makes."""
    import torch

    from sagittal.jobs.warm import choose_threads, facts_of, speed_up, warm_up
    from sagittal.model.load import load_model

    with contextlib.suppress(RuntimeError):  # it was set, and may be set only once
        torch.set_num_interop_threads(1)
    station.model = load_model(Path(request["path"]), device=str(request.get("device", "cpu")))
    threads = choose_threads(station.model, int(request["threads"]))
    engines = speed_up(station.model)
    seconds = warm_up(station.model)
    return {
        "facts": {**facts_of(station.model), "threads": threads, "engines": engines},
        "warm_s": seconds,
        "pid": os.getpid(),
    }


def answer(station: Station, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Answer a study: see :func:`sagittal.jobs.answer_study.answer_study`."""
    from sagittal.jobs.answer_study import answer_study

    return answer_study(_model(station), request, advance=station.advance)


def infer(station: Station, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Answer tensors: see :func:`sagittal.jobs.answer_tensors.answer_tensors`."""
    from sagittal.jobs.answer_tensors import answer_tensors

    return answer_tensors(_model(station), request["tensors"])


def instant(station: Station, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Answer small pictures, each as JSON: see :func:`sagittal.jobs.answer_instant.answer_pictures`."""
    from sagittal.jobs.answer_instant import answer_pictures

    found = answer_pictures(_model(station), request["files"])
    return {"answers": [one if "error" in one else _as_json(one) for one in found]}


def _as_json(answer: Mapping[str, Any]) -> bytes:
    """An answer as it goes out; the service hands it on as it is."""
    return json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _model(station: Station) -> AnyModel:
    if station.model is None:
        raise PackageError("no model was loaded")
    return station.model


HANDLERS: dict[str, Handler] = {"load": load, "answer": answer, "instant": instant, "infer": infer}


def serve(channel: Channel, handlers: Mapping[str, Handler] | None = None) -> None:
    """Answer requests until the channel ends.

    Parameters
    ----------
    channel : Channel
    handlers : mapping, optional
        By the request's ``do``; those of this module where left out.
    """
    station = Station(channel)
    known = HANDLERS if handlers is None else handlers
    threading.Thread(target=_read, args=(station,), daemon=True, name="sagittal-requests").start()
    threading.Thread(target=_beat, args=(station,), daemon=True, name="sagittal-beat").start()
    while True:
        request = station.waiting.get()
        if request["do"] == "stop":
            return
        station.progress, station.at = 0.0, int(request["id"])
        try:
            handler = known.get(request["do"])
            if handler is None:
                raise PackageError("an unknown request")
            reply: Mapping[str, Any] = {"id": request["id"], "ok": dict(handler(station, request))}
        except Exception as error:
            reply = {"id": request["id"], **describe(error)}
        station.at = -1
        channel.send(reply)


def _read(station: Station) -> None:
    """Take requests from the pipe; without the service there is nothing to live for."""
    try:
        while True:
            station.waiting.put(station.channel.receive())
    except (EOFError, ValueError, OSError):
        os._exit(0)


def _beat(station: Station) -> None:
    """Say that the process is alive. A computation that holds the interpreter, or a thread that hangs, is told apart by it."""
    while True:
        try:
            station.channel.send({"id": -1, "at": station.at, "progress": station.progress})
        except (OSError, ValueError):
            os._exit(0)
        time.sleep(BEAT_S)


def describe(error: Exception) -> dict[str, Any]:
    """An error as a reply: kind, words that name no patient, and whether another try may help."""
    name = type(error).__name__
    if isinstance(error, SagittalError):
        again = isinstance(error, ResourceError) or name == "ReadError"
        if isinstance(error, (MissingPackageError, PackageError)):
            again = False
        return {"error": name, "message": str(error), "again": again}
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        return {"error": "ResourceError", "message": "memory does not hold the study", "again": True}
    return {
        "error": name,
        "message": f"an unexpected {name} stopped it{_place(error)}; please report it",
        "again": True,
    }


def _place(error: BaseException) -> str:
    """File and line of our own code; never the error's text, which may hold what stood in a header."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}sagittal{os.sep}" in f.filename]
    if not frames:
        return ""
    return f" in {os.sep.join(frames[-1].filename.split(os.sep)[-2:])}:{frames[-1].lineno}"


def limit_memory(bytes_: int) -> None:
    """Make a request for more memory than twice what the process may have fail, and let the system end it first.

    The service watches what the process really takes; this is for what is asked for between two looks.
    """
    try:
        import resource
    except ImportError:  # not a POSIX system
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if bytes_:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        wanted = 2 * bytes_
        resource.setrlimit(
            resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("700", encoding="ascii")


def start(arguments: list[str], handlers: Mapping[str, Handler] | None = None) -> None:
    """Entry of the process: the bytes of memory that it may take."""
    limit_memory(int(arguments[0]) if arguments else 0)
    reader, writer = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):  # what a library prints must not end up among the replies
        os.dup2(nothing, number)
    for number in (signal.SIGINT, signal.SIGTERM):  # the service decides what they mean
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError):
        serve(Channel(reader, writer), handlers)
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="ascii")  # noqa: SIM115
    os._exit(0)


if __name__ == "__main__":
    start(sys.argv[1:])
