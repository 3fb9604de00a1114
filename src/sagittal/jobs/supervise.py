"""Threads that take jobs and do them, a heartbeat for those at work, and a ticker for what is due now and then.

Each kind of job has a handler and a number of threads. Whatever a handler raises goes back into the queue with its reason:
an error that cannot pass makes the job a dead letter at once, anything else is tried again. Stopping takes no new jobs,
lets those at work finish for a while, and puts back what does not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sagittal.archive.refused import ArchiveFull
from sagittal.database.connect import Database
from sagittal.database.events import end_event, report_event
from sagittal.errors import ConfigError, MissingPackageError, PackageError, SagittalError
from sagittal.jobs.queue import LEASE_S, Job, LeaseLostError, Queue

_log = logging.getLogger(__name__)

#: Seconds between two looks into the queue, by one thread for all; what is queued by this process is taken at once.
LOOK_S = 0.25
#: Seconds after which a thread that was not told of work looks by itself.
_SLEEP_S = 5.0
#: Seconds before the queue is asked again when it could not be reached; twice as long each time, up to half a minute.
FIRST_WAIT_S = 1.0
#: Seconds until a trouble that goes on is told again.
TELL_S = 60.0
#: Seconds between two looks at the machine's clock, and by how much it may be behind.
CLOCK_S, CLOCK_BEHIND_S = 5.0, 5.0
#: Seconds until work that the disk had no room for is tried again: however long it stays full, nothing is given up for it.
FULL_S = 15.0
#: Errors that another try meets again.
FINAL: tuple[type[Exception], ...] = (ConfigError, PackageError, MissingPackageError)


class Again(Exception):  # noqa: N818
    """Raised by a handler: try the job again, or not.

    Attributes
    ----------
    again : bool
        Whether another try may help.
    counts : bool
        Whether this one counts; not where the work was interrupted.
    wait_s : float or None
        Before the next try; by the kind's back-off where ``None``.
    """

    def __init__(self, why: str, *, again: bool = True, counts: bool = True, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.again, self.counts, self.wait_s = again, counts, wait_s


@dataclass
class Work:
    """A job at work: what its handler may ask and tell.

    Attributes
    ----------
    job : Job
    lost : threading.Event
        Set when the job is no longer ours: it was cancelled, or the service ends.
    progress : float
    finished : bool
        Set by a handler that has finished the job in a transaction of its own.
    """

    job: Job
    lost: threading.Event = field(default_factory=threading.Event)
    progress: float = 0.0
    finished: bool = False
    on_lost: Callable[[], None] | None = None

    def advance(self, progress: float) -> None:
        """Say how far it is; kept with the next heartbeat."""
        self.progress = progress

    def lose(self) -> None:
        """Tell the handler to stop."""
        if not self.lost.is_set():
            self.lost.set()
            if self.on_lost is not None:
                self.on_lost()


class Handler(Protocol):
    """Does one kind of job."""

    def __call__(self, work: Work) -> Mapping[str, Any] | None:
        """Do it; what came of it, or ``None`` where it has finished the job itself."""
        ...


@dataclass(frozen=True)
class Tick:
    """Something that is done every so many seconds.

    Parameters
    ----------
    name : str
    every_s : float
    do : callable ()
    """

    name: str
    every_s: float
    do: Callable[[], Any]


class Supervisor:
    """Does the jobs of a queue.

    Parameters
    ----------
    queue : Queue
    handlers : mapping of kind to Handler
        One that has a method ``left_out`` says by it which jobs are left waiting at the moment, by beginnings of their keys
        (:meth:`Queue.lease`).
    threads : mapping of kind to int, optional
        One where not given.
    ticks : sequence of Tick
    lease_s : float
    after : callable (Job, str), optional
        Told when a job ended: ``done``, ``waiting``, ``dead``.
    """

    def __init__(
        self,
        queue: Queue,
        handlers: Mapping[str, Handler],
        *,
        threads: Mapping[str, int] | None = None,
        ticks: Sequence[Tick] = (),
        lease_s: float = LEASE_S,
        after: Callable[[Job, str], None] | None = None,
    ) -> None:
        self.queue = queue
        self._handlers = dict(handlers)
        self._counts = dict(threads or {})
        self._ticks = tuple(ticks)
        self._lease_s = lease_s
        self._after = after
        self._stop = threading.Event()
        self._wake = threading.Condition()
        self._woken = dict.fromkeys(self._handlers, 0)
        self._working: dict[str, Work] = {}
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def hurry(self, name: str) -> int:
        """Send at once what waits for a destination that answers again; how many there were, 0 where nothing is delivered here."""
        hurry: Callable[[str], int] | None = getattr(self._handlers.get("deliver"), "hurry", None)
        if hurry is None:
            return 0
        waiting = hurry(name)
        self.wake(["deliver"])
        return waiting

    def start(self) -> None:
        """Put back what a process before this one was at when it ended, and begin."""
        put_back = self.queue.recover()
        if put_back:
            _log.info("%d jobs of a service that ended are queued again", put_back)
        for kind in self._handlers:
            for n in range(self._counts.get(kind, 1)):
                self._begin(f"sagittal-{kind}-{n}", self._work, kind)
        self._begin("sagittal-queue", self._look)
        self._begin("sagittal-heartbeat", self._beat)
        self._begin("sagittal-clock", self._watch_clock)
        for tick in self._ticks:
            self._begin(f"sagittal-{tick.name}", self._tick, tick)

    def _begin(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def wake(self, kinds: Sequence[str] | None = None) -> None:
        """Look into the queue at once: something was put there.

        Parameters
        ----------
        kinds : sequence of str, optional
            Of jobs; all where left out.
        """
        with self._wake:
            for kind in self._handlers if kinds is None else kinds:
                self._woken[kind] += 1
            self._wake.notify_all()

    @property
    def working(self) -> list[Job]:
        """The jobs at work."""
        with self._lock:
            return [work.job for work in self._working.values()]

    def lose(self, job_id: int) -> bool:
        """Stop a job that was cancelled, without waiting for its next heartbeat; whether it is at work here."""
        with self._lock:
            found = [work for work in self._working.values() if work.job.id == job_id]
        for work in found:
            work.lose()
        return bool(found)

    def stop(self, wait_s: float = 20.0) -> None:
        """End: nothing new is taken, what is at work may finish, the rest is put back."""
        self._stop.set()
        self.wake()
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and self.working:
            time.sleep(0.05)
        with self._lock:
            left = list(self._working.values())
        for work in left:
            work.lose()
        deadline = max(deadline, time.monotonic() + 1.0)
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        with self._lock:
            stuck = list(self._working.values())
        for work in stuck:  # its thread does not come back; another process may have the job
            self._give(work, Again("the service stopped", counts=False))

    # Threads

    def _work(self, kind: str) -> None:
        failures = 0
        leaves_out: Callable[[], Sequence[str]] = getattr(self._handlers[kind], "left_out", _nothing)
        while not self._stop.is_set():
            with self._wake:
                seen = self._woken[kind]
            try:
                job = self.queue.lease([kind], lease_s=self._lease_s, without=leaves_out())
                failures = 0
            except Exception as error:  # the database is locked, or gone for a while
                failures += 1
                _log.warning("the queue cannot be reached: %s", _words(error))
                self._stop.wait(min(FIRST_WAIT_S * 2.0 ** min(failures - 1, 10), 30.0))
                continue
            if job is None:
                with self._wake:
                    self._wake.wait_for(lambda seen=seen: self._woken[kind] != seen, _SLEEP_S)  # type: ignore[misc]
                continue
            self._do(job)

    def _look(self) -> None:
        """Tell the threads of what others have put into the queue, and of what is due now."""
        kinds, away = list(self._handlers), 0.0
        while not self._stop.wait(LOOK_S):
            try:
                ready = self.queue.ready(kinds)
            except Exception as error:
                _log.debug("the queue cannot be looked at: %s", _words(error))
                away = away or time.monotonic()
                continue
            if away:
                seconds, away = time.monotonic() - away, 0.0
                self._tell("database-away", f"The database could not be reached for {seconds:.0f} s. Nothing was lost.")
                self._tell("database-away", "")
            if ready:
                self.wake(ready)

    def _do(self, job: Job) -> None:
        work = Work(job)
        with self._lock:
            self._working[job.lease_by] = work
        ended = "done"
        try:
            outcome = self._handlers[job.kind](work)
            if not work.finished:
                self.queue.finish(job, outcome or {})
        except LeaseLostError:
            _log.info("job %d went to another", job.id)
            ended = "lost"
        except Exception as error:
            ended = self._give(work, error)
        finally:
            with self._lock:
                self._working.pop(job.lease_by, None)
        if self._after is not None and ended != "lost":
            try:
                self._after(job, ended)
            except Exception as error:
                _log.warning("job %d: %s after it ended", job.id, _words(error))
        self.wake()

    def _give(self, work: Work, error: Exception) -> str:
        """Put a job back, with why."""
        job, why = work.job, _words(error)
        if isinstance(error, ArchiveFull):
            error = Again(why, counts=False, wait_s=FULL_S)
        counts = error.counts if isinstance(error, Again) else True
        try:
            if not counts:
                self.queue.put_back(job, wait_s=getattr(error, "wait_s", None) or 0.0)
                return "waiting"
            again = error.again if isinstance(error, Again) else not isinstance(error, FINAL)
            wait_s = error.wait_s if isinstance(error, Again) else None
            state = self.queue.give_back(job, why, again=again, wait_s=wait_s)
        except LeaseLostError:
            return "lost"
        except Exception as trouble:  # its lease will run out
            _log.warning("job %d cannot be put back: %s", job.id, _words(trouble))
            return "lost"
        _log.log(logging.ERROR if state == "dead" else logging.WARNING, "job %d (%s): %s", job.id, job.kind, why)
        return state

    def _beat(self) -> None:
        while not self._stop.wait(self._lease_s / 4):
            self._beat_once()
        while self.working:  # while the rest finishes
            self._beat_once()
            time.sleep(min(self._lease_s / 4, 0.5))

    def _beat_once(self) -> None:
        with self._lock:
            at_work = list(self._working.values())
        for work in at_work:
            try:
                self.queue.heartbeat(work.job, lease_s=self._lease_s, progress=work.progress)
            except LeaseLostError:
                with self._lock:
                    still = work.job.lease_by in self._working
                if still:
                    work.lose()
            except Exception as error:
                _log.warning("job %d: no heartbeat: %s", work.job.id, _words(error))

    def _tick(self, tick: Tick) -> None:
        told, at = "", 0.0
        while not self._stop.wait(tick.every_s):
            try:
                tick.do()
            except Exception as error:
                _log.warning("%s: %s", tick.name, _words(error))
                words = f"{tick.name} failed: {_words(error)}"
                if words != told or time.monotonic() - at > TELL_S:  # it may fail four times a second for hours
                    told, at = words, time.monotonic()
                    self._tell(f"{tick.name}-failed", words)
            else:
                if told:
                    told = ""
                    self._tell(f"{tick.name}-failed", "")

    def _watch_clock(self) -> None:
        """Tell when somebody has set the machine's clock back, until it has caught up."""
        told: bool | None = None  # what a process before this one told is not known
        while not self._stop.wait(CLOCK_S):
            behind = self.queue.db.clock.behind_s
            if (behind > CLOCK_BEHIND_S) is told:
                continue
            told = behind > CLOCK_BEHIND_S
            words = (
                f"The machine's clock was set back by {behind:,.0f} s. Work goes on by a clock that does not go back; "
                "times that are shown are wrong until it has caught up."
            )
            self._tell("clock-set-back", words if told else "")

    def _tell(self, code: str, message: str) -> None:
        try:
            tell(self.queue.db, code, message)
        except Exception as error:
            _log.warning("%s: %s", code, _words(error))


def tell(db: Database, code: str, message: str, about: str = "") -> None:
    """Report a trouble with a message, or its end without one."""
    if message:
        report_event(db, code, "warning", message, about)
    else:
        end_event(db, code, about)


def _words(error: BaseException) -> str:
    """Why, without what a stranger's file or a header may have put into an error: only our own words."""
    if isinstance(error, (SagittalError, Again)):
        return str(error)
    return f"an unexpected {type(error).__name__}"


def _nothing() -> Sequence[str]:
    return ()
