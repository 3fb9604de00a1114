"""Spreads: distributions in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Five numbers of a distribution."""

    low: float
    p05: float
    median: float
    p95: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Minimum, 5th percentile, median, 95th percentile, maximum."""
        return cls(*(float(v) for v in np.quantile(np.asarray(values, dtype=np.float64), [0, 0.05, 0.5, 0.95, 1])))


@dataclass(frozen=True)
class ChannelFacts:
    """Intensities of one channel over the sampled cases, in the image's unit.

    ``spread.p05`` and ``spread.p95`` are the 0.5th and the 99.5th percentile: a single hot voxel must not set a scale.
    """

    mean: float
    std: float
    spread: Spread

    @classmethod
    def of(cls, values: Any) -> ChannelFacts:
        """The facts of a sample of values."""
        values = np.asarray(values, dtype=np.float64)
        spread = Spread(*(float(v) for v in np.quantile(values, [0, 0.005, 0.5, 0.995, 1])))
        return cls(float(values.mean()), float(values.std()), spread)
