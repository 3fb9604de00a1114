"""Task: what training, prediction and evaluation must know about a clinical question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sagittal.case import Case
from sagittal.grid import Grid
from sagittal.networks.heads import Head
from sagittal.prediction import Finding, Prediction
from sagittal.types import Array

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from sagittal.metrics.intervals import Estimate


@dataclass(frozen=True)
class Summary:
    """Measures of a set of cases, each with its interval.

    `overall` maps a measure's name to its estimate; `classes` maps a class name to such a mapping.
    """

    overall: Mapping[str, Estimate]
    classes: Mapping[str, Mapping[str, Estimate]]


class Task(Protocol):
    """A clinical question. Training, prediction, evaluation and report know it only through this."""

    @property
    def head(self) -> Head:
        """What the network must end in."""
        ...

    def target(self, case: Case) -> Array:
        """What the network should say of a case, float32; nan where unknown."""
        ...

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar to be minimised, over the known parts of a batch."""
        ...

    def monitor(self, logits: Array, target: Array) -> dict[str, float]:
        """Quick scores of validation cases while training, the most telling first; higher is better."""
        ...

    def decode(self, logits: Array, grid: Grid) -> Finding:
        """The finding that calibrated logits of one case mean, on the study's own grid."""
        ...

    def score(self, prediction: Prediction, case: Case) -> dict[str, Any]:
        """One row of the evidence table: truth, probabilities, decision and scores of a case."""
        ...

    def summarise(
        self, rows: pd.DataFrame, *, resamples: int, seed: int, confidence: float, prevalence: float | None = None
    ) -> Summary:
        """Measures over the rows that :meth:`score` made; the column ``patient`` groups them.

        `prevalence` is that of the positive class where the model will be used, for the measures that depend on it.
        """
        ...

    def figure(self, prediction: Prediction, case: Case) -> Array:
        """A picture of the case with the answer, (H, W, 3) uint8."""
        ...
