"""A wall clock that never goes back, for leases and back-off: someone sets the machine's clock, and nothing stands still.

Times in rows are those of the wall (``time.time()``), which people read; whether a lease has run out is decided by this
clock. It follows the wall forwards, goes on with the monotonic clock when the wall is set back, and is kept in the table
``marks``, so that a restart with a wrong clock does not go back either.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import sqlalchemy as sa

from sagittal.database.schema import marks

if TYPE_CHECKING:
    from sagittal.database.connect import Database

_NAME = "clock"
#: Seconds between two times that it is kept; beside other changes, so that it costs no flush of its own.
_KEEP_S = 10.0


class Clock:
    """Seconds since 1970 that never grow less.

    Parameters
    ----------
    wall, monotonic : callables
        The clocks of the system; tests give their own.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._lock = threading.Lock()
        self._seen, self._value = monotonic(), wall()
        self._kept = 0.0

    def now(self) -> float:
        """The time; as the wall's, or later."""
        with self._lock:
            elapsed = self._monotonic()
            self._value = max(self._wall(), self._value + max(elapsed - self._seen, 0.0))
            self._seen = elapsed
            return self._value

    @property
    def behind_s(self) -> float:
        """Seconds by which the wall is behind: more than a few, and somebody has set the machine's clock back."""
        return self.now() - self._wall()

    def start(self, c: sa.Connection) -> None:
        """Go on from where the database says that it was."""
        kept = c.execute(sa.select(marks.c.value).where(marks.c.name == _NAME)).scalar()
        with self._lock:
            self._value = max(self._value, float(kept or 0.0))

    def keep(self, c: sa.Connection) -> None:
        """Keep the time in a transaction that is being written anyway, at most every ten seconds."""
        now = self.now()
        if now - self._kept < _KEEP_S:
            return
        changed = c.execute(sa.update(marks).where(marks.c.name == _NAME).values(value=now))
        if not changed.rowcount:
            c.execute(sa.insert(marks).values(name=_NAME, value=now))
        self._kept = now


def now(db: Database) -> float:
    """Seconds since 1970 in UTC that never go back, not by a clock set back nor by a restart."""
    return db.clock.now()
