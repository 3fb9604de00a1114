"""Rates: how often one key may do something, as a bucket that fills again with time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _Bucket:
    left: float
    at: float


class Rate:
    """At most `burst` at once, and `burst` a `period_s` in the long run, for each key.

    Parameters
    ----------
    burst : int
    period_s : float
        Seconds in which an empty bucket is full again.
    most_keys : int
        Keys that are remembered; the longest unused is forgotten first, so that inventing keys takes no memory.
    clock : callable
        Seconds that never go back.

    Examples
    --------
    >>> now = [0.0]
    >>> rate = Rate(2, 10.0, clock=lambda: now[0])
    >>> [rate.take("a"), rate.take("a"), rate.take("a"), rate.take("b")]
    [0.0, 0.0, 5.0, 0.0]
    >>> now[0] = 5.0
    >>> rate.take("a")
    0.0
    """

    def __init__(
        self, burst: int, period_s: float, *, most_keys: int = 100_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst, self._period_s, self._most_keys, self._clock = burst, period_s, most_keys, clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str) -> float:
        """Take one; 0 where it was there, else the seconds until the next one is, and nothing is taken."""
        with self._lock:
            bucket = self._fill(key)
            if bucket.left >= 1:
                bucket.left -= 1
                return 0.0
            return (1 - bucket.left) * self._period_s / self._burst

    def wait_s(self, key: str) -> float:
        """Seconds until one can be taken; takes none."""
        with self._lock:
            return max(0.0, (1 - self._fill(key).left) * self._period_s / self._burst)

    def forgive(self, key: str) -> None:
        """Fill the bucket of a key that did well, such as a login with the right password."""
        with self._lock:
            self._buckets.pop(key, None)

    def _fill(self, key: str) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(float(self._burst), now)
            if len(self._buckets) > self._most_keys:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        bucket.left = min(float(self._burst), bucket.left + (now - bucket.at) * self._burst / self._period_s)
        bucket.at = now
        return bucket
