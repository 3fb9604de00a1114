"""Reporter: how long work tells what it does, without knowing who listens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

_log = logging.getLogger(__name__)

#: ``advance(steps, note)``: that many steps more are done; the note stands beside the bar.
Advance = Callable[[float, str], None]


class Reporter(Protocol):
    """Where long work reports to: a terminal, a log, nothing."""

    def say(self, message: str) -> None:
        """Tell one line."""
        ...

    def track(self, what: str, total: float | None = None) -> AbstractContextManager[Advance]:
        """Follow one stretch of work of `total` steps; ``None`` where that is not known."""
        ...


class Quiet:
    """A reporter that only logs."""

    def say(self, message: str) -> None:
        """Log one line."""
        _log.info(message)

    @contextmanager
    def track(self, what: str, total: float | None = None) -> Iterator[Advance]:
        """Follow nothing."""
        yield _ignore


def _ignore(steps: float, note: str) -> None:
    """Advance nothing."""
