"""Who holds the lease of a job: a process, told apart from one before it that had the same number."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from hashlib import blake2s
from pathlib import Path


def _host() -> str:
    """Twelve digits for this machine's name: names of containers are long, and often differ at their end only."""
    return blake2s(socket.gethostname().encode(), digest_size=6).hexdigest()


def _started(pid: int) -> str:
    """When a process began, in clock ticks since the machine did; empty where there is none or that cannot be told."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return _alive(pid)
    state, *fields = text.rpartition(")")[2].split()
    return "" if state in {"Z", "X"} else fields[18]


def _alive(pid: int) -> str:
    """Where there is no /proc: whether there is a process of that number at all."""
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except OSError:
        return ""
    return "running"


@dataclass(frozen=True)
class Holder:
    """A process that takes jobs; told apart from one before it with the same number.

    Parameters
    ----------
    host : str
        Stands for the machine's or container's name.
    pid : int
    started : str
        When the process began, as the system counts it.
    """

    host: str = field(default_factory=_host)
    pid: int = field(default_factory=os.getpid)
    started: str = field(default_factory=lambda: _started(os.getpid()))

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.started}"

    @classmethod
    def of(cls, lease_by: str) -> Holder | None:
        """Who a lease belongs to; ``None`` where that cannot be told."""
        parts = lease_by.rsplit(":", 3)
        return cls(parts[0], int(parts[1]), parts[2]) if len(parts) == 4 and parts[1].isdigit() else None

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended: it was on this machine, and its number is free or another process's."""
        if self.host != _host():
            return False
        return _started(self.pid) != self.started
