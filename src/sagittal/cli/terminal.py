"""What a person sees while work goes on: a progress bar on a terminal, a line a stage elsewhere; always on stderr."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from sagittal.options import format_seconds
from sagittal.progress import Advance

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_log = logging.getLogger(__name__)


def prepare_streams() -> None:
    """Let every text be printed in every locale: what a stream cannot show is escaped, never an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def is_terminal(stream: IO[str]) -> bool:
    """Whether a person reads this stream on something that can move its cursor."""
    try:
        return stream.isatty() and os.environ.get("TERM", "") != "dumb"
    except ValueError:  # a stream that was closed
        return False


class Terminal:
    """The reporter of the command line.

    Parameters
    ----------
    quiet : bool
        Whether only errors are told.
    stream : text stream, optional
        stderr where not given.
    every_s : float
        Shortest time between two lines of one stretch of work where there is no terminal.
    """

    def __init__(self, *, quiet: bool = False, stream: IO[str] | None = None, every_s: float = 2.0) -> None:
        self.quiet = quiet
        self._stream = stream or sys.stderr
        self._every_s = every_s
        self._moving = is_terminal(self._stream)
        self._progress: Progress | None = None
        self._open = 0

    def say(self, message: str) -> None:
        """Tell one line, above the bar where there is one."""
        _log.info(message)
        if self.quiet:
            return
        if self._progress is not None:
            self._progress.console.print(message, markup=False, highlight=False, soft_wrap=True)
        else:
            print(message, file=self._stream, flush=True)

    @contextmanager
    def track(self, what: str, total: float | None = None) -> Iterator[Advance]:
        """Follow one stretch of work: a bar on a terminal, else a line whenever the note says something new."""
        if self.quiet:
            yield _ignore
        elif self._moving:
            with self._bar(what, total) as advance:
                yield advance
        else:
            yield _Lines(what, total, self._stream, self._every_s)

    @contextmanager
    def _bar(self, what: str, total: float | None) -> Iterator[Advance]:
        if self._progress is None:
            self._progress = _make_progress(self._stream)
            self._progress.start()
        progress = self._progress
        pace = _Pace(total)
        task = progress.add_task(what, total=total, note="", pace="", count="")
        self._open += 1

        def advance(steps: float = 1.0, note: str = "") -> None:
            pace.advance(steps)
            if note:
                progress.update(task, note=note)
            progress.update(task, advance=steps, pace=pace.text(), count=pace.count())

        try:
            yield advance
        finally:
            self._open -= 1
            progress.remove_task(task)
            if self._open == 0:
                progress.stop()
                self._progress = None


def _ignore(steps: float = 1.0, note: str = "") -> None:
    """Follow nothing."""


class _Pace:
    """How fast work goes and when it will end."""

    def __init__(self, total: float | None) -> None:
        self.total, self.done, self.started = total, 0.0, time.monotonic()
        self.whole = True  # whether steps are things to count, not parts of the time

    def advance(self, steps: float) -> None:
        self.done += steps
        self.whole = self.whole and steps == int(steps)

    def count(self) -> str:
        """Steps done of all; a percentage where they are parts of the time."""
        if self.total is None:
            return f"{self.done:.0f}"
        if not self.whole:
            return f"{min(1.0, self.done / self.total):.0%}"
        return f"{self.done:.0f}/{self.total:.0f}"

    def text(self) -> str:
        """Time a step, and the expected time of day at the end."""
        passed = time.monotonic() - self.started
        if not self.done:
            return ""
        step = passed / self.done
        parts = []
        if self.whole:
            parts.append(f"{step:.2g} s each" if step >= 0.1 else f"{step * 1000:.2g} ms each")
        if self.total is not None and self.done < self.total:
            left = step * (self.total - self.done)
            clock = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
            parts.append(f"ends {clock} (in {format_seconds(left)})")
        return ", ".join(parts)


class _Lines:
    """Progress for a log: a line when the note changes, fewer and fewer of them, and one at the end.

    At most one each `every_s` seconds, and one each fifteenth of the time that has passed: a day leaves some 150 lines.
    """

    def __init__(self, what: str, total: float | None, stream: IO[str], every_s: float) -> None:
        self._what, self._stream, self._every_s = what, stream, every_s
        self._pace, self._note, self._told = _Pace(total), "", time.monotonic()

    def __call__(self, steps: float = 1.0, note: str = "") -> None:
        self._pace.advance(steps)
        total = self._pace.total
        ends = total is not None and self._pace.done >= total - 1e-9 > self._pace.done - steps
        fresh = bool(note) and note != self._note
        self._note = note or self._note
        now = time.monotonic()
        if ends or (fresh and now - self._told >= max(self._every_s, (now - self._pace.started) / 15)):
            self._told = now
            parts = (f"{self._what} {self._pace.count()}", self._note, self._pace.text())
            print("  ".join(part for part in parts if part), file=self._stream, flush=True)


def _make_progress(stream: IO[str]) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]}", markup=False),
        TextColumn("{task.fields[note]}", markup=False),
        TextColumn("{task.fields[pace]}", markup=False, style="dim"),
        console=_console(stream),
        transient=True,
    )


def _console(stream: IO[str]) -> Console:
    from rich.console import Console

    return Console(file=stream, markup=False, highlight=False)  # rich itself obeys NO_COLOR
