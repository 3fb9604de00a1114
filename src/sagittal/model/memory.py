"""Memory: how much is free, and how much the windows of a study will take, before they take it.

A system that overcommits memory ends a process that uses too much of it instead of refusing it: no error is there to be
caught. So what will be needed is estimated first.
"""

from __future__ import annotations

import math
from pathlib import Path

from sagittal.model.windows import Layout
from sagittal.prepare.plan import Plan

#: Numbers that a network holds at once for each voxel of its first map, in maps of its first width: what it skips over to
#: the decoder, what it joins there, and what a convolution reads and writes. Measured: 5 to 8 with torch, 6 to 9 with OpenVINO.
LIVE_MAPS = 9


def free_memory() -> int | None:
    """Bytes that this process may still take: of the machine, or of its container where that is less; ``None`` if unknown."""
    free = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free.append(1024 * int(line.split()[1]))
    except (OSError, ValueError):
        pass
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            most = int((Path(folder) / limit).read_text(encoding="ascii"))
            taken = int((Path(folder) / used).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no container, or no limit ("max")
            continue
        free.append(max(most - taken, 0))
    return min(free, default=None)


def windows_bytes(plan: Plan, layout: Layout, *, outputs: int, batch: int, views: int) -> int:
    """Bytes that answering the windows of a study will take at once, roughly.

    Parameters
    ----------
    plan : Plan
    layout : Layout
    outputs : int
        Of the network.
    batch : int
        Windows that are answered at once.
    views : int
        Networks times mirrored views whose answers are averaged.
    """
    voxels = batch * math.prod(layout.window)
    stem = math.prod(plan.network.strides[0]) if plan.network.strides else plan.network.stem_stride ** len(layout.size)
    inside = LIVE_MAPS * plan.network.width * voxels / stem
    answers = (2 if views == 1 else 5) * outputs * voxels / layout.stride ** len(layout.size)
    held = 0 if layout.count == 1 else (outputs + 1) * layout.depth * math.prod(layout.map_size[1:])
    return int(4 * (inside + answers + held))
