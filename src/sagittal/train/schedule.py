"""Schedule: how many steps a member takes and how fast it learns at each, with the clock in view."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sagittal.prepare.plan import TrainPlan


@dataclass
class Schedule:
    """The steps of one member. The total is revised while the clock runs, and every revision is kept.

    Replaying the same revisions gives the same learning rates, whatever the machine's speed.

    Parameters
    ----------
    revisions : list of (from step, total steps)
        The first is (0, total).
    fixed : bool
        Whether the revisions are those of an earlier run, or the user's own number of epochs: nothing is revised.
    """

    revisions: list[tuple[int, int]] = field(default_factory=list)
    fixed: bool = False

    def total(self, step: int) -> int:
        """Total steps as known at `step`."""
        return next(total for start, total in reversed(self.revisions) if start <= step)

    @property
    def end(self) -> int:
        """Total steps by the last revision."""
        return self.revisions[-1][1]

    def revise(self, step: int, total: int) -> None:
        """Plan another total from `step` on.

        The rest of a schedule is moved at most by half at once: a hiccup of the machine is not its speed.
        """
        left = max(self.end - step, 1)
        total = step + min(max(total - step, math.ceil(left / 2), 1), left + math.ceil(left / 2))
        if total != self.end:
            self.revisions.append((step, total))


def rate(plan: TrainPlan, step: int, total: int) -> float:
    """Factor on the learning rate at a step, 0 to 1.

    ``cosine``: linear warm-up, then half a cosine to 1 % [1]_. ``one-cycle``: 30 % linear up, cosine down to nearly 0
    [2]_. ``constant``: after the warm-up 1.

    References
    ----------
    .. [1] Loshchilov and Hutter, SGDR, ICLR 2017, equation 5.
    .. [2] Smith and Topin, Super-convergence, 2019.
    """
    warm = 0.3 if plan.schedule == "one-cycle" else plan.warmup
    progress = (step + 0.5) / max(total, 1)
    if progress < warm:
        return max(progress / warm, 1e-3)
    if plan.schedule == "constant":
        return 1.0
    floor = 1e-3 if plan.schedule == "one-cycle" else 1e-2
    down = min((progress - warm) / max(1 - warm, 1e-9), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * down))


class Pace:
    """Seconds a step takes, as a mean that forgets: half after `half_life` steps."""

    def __init__(self, half_life: float = 50.0) -> None:
        self._keep = 0.5 ** (1 / half_life)
        self._seconds = 0.0
        self._weight = 0.0

    def tick(self, seconds: float) -> None:
        """Count one step."""
        self._seconds = self._keep * self._seconds + seconds
        self._weight = self._keep * self._weight + 1.0

    @property
    def step_s(self) -> float:
        """Seconds a step; nan before the first."""
        return self._seconds / self._weight if self._weight else float("nan")
