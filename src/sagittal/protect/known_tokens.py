"""Tokens that were looked up a moment ago, so that a program with many requests is not looked up with each.

What this process changes of users and tokens holds at once; what another does (the command line, a second server) within
a second.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from sagittal.database.connect import Database
from sagittal.protect.secret import fingerprint
from sagittal.protect.tokens import find_token
from sagittal.protect.users import User

#: Seconds for which a token is remembered.
KNOWN_S = 1.0
_MOST = 4096


class KnownTokens:
    """Remembers whose a token is.

    Parameters
    ----------
    db : Database
    clock : callable
        Seconds that never go back.
    """

    def __init__(self, db: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._db, self._clock = db, clock
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[float, int, tuple[User, int]]] = OrderedDict()

    def recall(self, secret: str) -> tuple[User, int] | None:
        """The user of a token and the token's key, where it was looked up a moment ago; asks nobody."""
        with self._lock:
            found = self._known.get(fingerprint(secret))
        if found is None or found[0] < self._clock() or found[1] != self._db.access_changes:
            return None
        return found[2]

    def find(self, secret: str) -> tuple[User, int] | None:
        """The same, looked up: ``None`` if it is unknown, over, revoked or the user not in use."""
        until, changes = self._clock() + KNOWN_S, self._db.access_changes  # as they were before it was looked up
        found = find_token(self._db, secret)
        key = fingerprint(secret)
        with self._lock:
            self._known.pop(key, None)
            if found is not None:
                self._known[key] = (until, changes, found)
                while len(self._known) > _MOST:
                    self._known.popitem(last=False)
        return found
