"""Peak memory of a command and all processes that it starts; needs psutil."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil


#: Seconds between two looks; a peak that is shorter may be missed.
_EVERY = 0.1


@dataclass(frozen=True)
class Peak:
    """What a command took.

    Parameters
    ----------
    gb : float
        Largest sum of the memory of its processes at one moment, in 10^9 bytes; a page that several processes share counts
        for each of them in part (on Linux; elsewhere in full).
    seconds : float
    ended : str
        Why it was broken off; empty if it ended by itself.
    """

    gb: float
    seconds: float
    ended: str


def used_bytes(process: psutil.Process) -> int:
    """Memory of a process and its descendants in bytes, shared pages shared out (proportional set size)."""
    import psutil

    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            memory = one.memory_full_info()
        except psutil.Error:
            continue
        total += getattr(memory, "pss", memory.rss)
    return total


def run_watched(
    command: Sequence[str | Path],
    environment: Mapping[str, str] | None = None,
    *,
    limit_gb: float,
    limit_s: float,
    log: Path | None = None,
) -> Peak:
    """Run a command to its end, or until it takes more memory or time than it may."""
    import psutil

    start = time.monotonic()
    with (log or Path("/dev/null")).open("w") as out:
        process = psutil.Popen([str(part) for part in command], env=environment, stdout=out, stderr=subprocess.STDOUT)
        most, ended = 0, ""
        while process.poll() is None:
            try:
                most = max(most, used_bytes(process))
            except psutil.NoSuchProcess:
                break
            if most > 1e9 * limit_gb:
                ended = f"broken off above {limit_gb:g} GB"
            elif time.monotonic() - start > limit_s:
                ended = f"broken off after {limit_s:g} s"
            if ended:
                _end(process)
                break
            time.sleep(_EVERY)
        process.wait()
    return Peak(most / 1e9, time.monotonic() - start, ended)


def _end(process: psutil.Process) -> None:
    import psutil

    for one in (*process.children(recursive=True), process):
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
