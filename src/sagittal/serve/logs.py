"""Logs: one JSON object a line, with nothing that names a patient.

Every line passes a filter that takes out what looks like a UID, a date of birth or study, a DICOM name or a file's path,
whoever wrote it; an exception is written as its kind and its frames, never with its own text.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

_log = logging.getLogger(__name__)

#: Fields beside the message that may stand in a line; what else a caller attaches is left out.
FIELDS = (
    "id", "method", "route", "status", "milliseconds", "bytes", "user", "address", "kind", "frames", "job", "study",
    "series", "instance", "result", "model", "destination", "peer", "seconds", "count", "attempt", "code", "state", "port",
)  # fmt: skip

#: Writers that say too much at the levels they use: query identifiers, addresses with UIDs, statements.
_LOUD = {
    "pynetdicom": logging.CRITICAL,
    "pydicom": logging.CRITICAL,
    "uvicorn.access": logging.CRITICAL,
    "uvicorn.error": logging.WARNING,
    "sqlalchemy": logging.ERROR,
    "alembic": logging.WARNING,
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "asyncio": logging.ERROR,
    "multipart": logging.ERROR,
    "python_multipart": logging.ERROR,
    "highdicom": logging.ERROR,
}

#: A sign of a part of a DICOM name.
_SIGN = r"[^\s^=:,;\"'()\[\]]"
_HIDDEN = (
    (re.compile(r"(?<![\w.])(?:[0-2](?:\.\d+){4,}|2\.25\.\d{9,})(?!\w|\.\d)"), "<uid>"),
    (re.compile(r"(?<!\d)(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)"), "<date>"),
    (re.compile(r"(?<!\d)(?:19|20)\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])(?![\dT])"), "<date>"),
    # A word with a capital before it may be the first part of a family name.
    (re.compile(rf"(?:(?=[^\x00-@a-z]){_SIGN}+\s)?{_SIGN}+\^{_SIGN}*(?:[\^=]{_SIGN}*)*"), "<name>"),
    (re.compile(r"(?<![\w<])(?:/[^/\s:'\"]+){2,}"), "<path>"),
    (re.compile(r"\bsg_[\w-]{8,}"), "<token>"),
)


def hide(text: str) -> str:
    """A text without what looks like an identifier.

    >>> hide("stored 1.2.840.10008.1.2 of DOE^JANE, born 19520413, at /data/doe/1.dcm")
    'stored <uid> of <name>, born <date>, at <path>'
    >>> hide("from 10.0.0.7 in 12.5 s")
    'from 10.0.0.7 in 12.5 s'
    """
    for pattern, instead in _HIDDEN:
        if instead != "<name>" or "^" in text:  # the costly one
            text = pattern.sub(instead, text)
    return text


class JsonLines(logging.Formatter):
    """A record as one line of JSON; control signs are escaped, so that no line can be forged (ASVS 16.4.1)."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line: dict[str, Any] = {
            "at": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": hide(record.getMessage()[:4000]),
        }
        for name in FIELDS:
            value = record.__dict__.get(name)
            if value is not None:
                line[name] = _plain(value, route=name == "route")
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["kind"] = type(error).__qualname__
            line["frames"] = [
                f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(error.__traceback__)[-12:]
            ]
        return json.dumps(line, ensure_ascii=True)


def _plain(value: Any, *, route: bool) -> Any:
    if isinstance(value, (int, float, bool)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(one, route=False) for one in value[:50]]
    return str(value)[:500] if route else hide(str(value)[:500])


_before: list[Callable[[threading.ExceptHookArgs], Any]] = []


def start_logs(level: str = "info", stream: IO[str] | None = None) -> logging.Handler:
    """Send what Sagittal and its libraries log to a stream as lines of JSON; stderr where none is given.

    Parameters
    ----------
    level : {"debug", "info", "warning", "error"}

    Returns
    -------
    logging.Handler
        For :func:`stop_logs`.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("sagittal").setLevel(level.upper())
    for name, least in _LOUD.items():
        logging.getLogger(name).setLevel(least)
    _before.append(threading.excepthook)
    threading.excepthook = _thread_ended  # Python itself would print the error with its text
    return handler


def stop_logs(handler: logging.Handler) -> None:
    """End what :func:`start_logs` began."""
    logging.getLogger().removeHandler(handler)
    if _before:
        threading.excepthook = _before.pop()


def _thread_ended(error: threading.ExceptHookArgs) -> None:
    if error.exc_value is not None:
        caught = (error.exc_type, error.exc_value, error.exc_traceback)
        _log.error("the thread %s ended", error.thread.name if error.thread else "?", exc_info=caught)
