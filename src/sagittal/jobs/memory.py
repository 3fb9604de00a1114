"""How much memory the machine has for models, and how much a process takes."""

from __future__ import annotations

import os
from pathlib import Path

#: Part of the machine's memory that all models together may take where nothing is said.
SHARE = 0.6
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def machine_bytes() -> int:
    """Memory of the machine, or of its container where that has less; 4 GiB where it cannot be told."""
    found = []
    try:
        found.append(_PAGE * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        found.append(4 * 2**30)
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(place).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no container, or no limit ("max")
            continue
    return min(found)


def budget_bytes() -> int:
    """What all models together may take where nothing is said."""
    return int(SHARE * machine_bytes())


def resident_bytes(pid: int) -> int:
    """Memory that a process has of its own, without what it shares with others; 0 where that cannot be told."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return max(int(fields[1]) - int(fields[2]), 0) * _PAGE


def cpu_s(pid: int) -> float | None:
    """Seconds of computing that a process has done; ``None`` where that cannot be told."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
