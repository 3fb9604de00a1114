"""Task: what training, prediction and evaluation must know about a clinical question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sagittal.case import Case
from sagittal.grid import Grid
from sagittal.labels import ClassScores, LabelScheme
from sagittal.networks.heads import Head
from sagittal.prediction import Finding, Prediction
from sagittal.prepare.lattice import Lattice
from sagittal.prepare.warp import Warp
from sagittal.types import Array, Floats

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


class Question(Protocol):
    """What evaluation and report must know of a clinical question."""

    @property
    def head(self) -> Head:
        """What the network must end in."""
        ...

    def score(self, prediction: Prediction, case: Case) -> dict[str, Any]:
        """One row of the evidence table: truth, answer and scores of a case."""
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


class Task(Question, Protocol):
    """A question whose answer is about the case as a whole: one vector of logits a case."""

    def target(self, case: Case) -> Array:
        """What the network should say of a case, float32; nan where unknown."""
        ...

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar to be minimised, over the known parts of a batch."""
        ...

    def monitor(self, logits: Array, target: Array) -> dict[str, float]:
        """Quick scores of validation cases while training, the most telling first; higher is better."""
        ...

    def decode(self, logits: Array, grid: Grid) -> ClassScores:
        """The finding that calibrated logits of one case mean, on the study's own grid."""
        ...


class Collector(Protocol):
    """Takes a network's answer about one study piece by piece, so that it never has to be held as a whole."""

    def add(self, start: int, logits: Floats, doubt: Floats | None = None) -> None:
        """Take the next planes along the first axis of the network's map, in order and without gaps.

        Parameters
        ----------
        start : int
            Number of the first plane.
        logits : (outputs, n, *rest) float32
            Averaged over networks and views. The array is the caller's and may change after the call.
        doubt : (n, *rest) float32, optional
            By how much networks and views disagree, 0 to 1.
        """
        ...

    def finish(self) -> Finding:
        """The finding on the grid of the study, before anything that was settled on validation cases is applied."""
        ...


class PlaceTask(Question, Protocol):
    """A question whose answer has a place: a network says something of every voxel."""

    @property
    def scheme(self) -> LabelScheme:
        """The structures or objects that are asked for."""
        ...

    def target(self, case: Case, lattice: Lattice) -> Array:
        """The truth of a case on its prepared array, as it is stored.

        Of structures (T, *size) uint8, of objects (M, columns) float32 in the array's voxels.
        """
        ...

    def places(self, target: Array, size: tuple[int, ...]) -> tuple[Array, ...]:
        """For each class, places (m, d) int in an array of `size` around which windows of a training batch may lie."""
        ...

    def draw(self, targets: Sequence[Array], warp: Warp) -> Tensor:
        """What the network should say of the windows that `warp` cut out of these stored truths, on the warp's device."""
        ...

    def loss(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """Scalar to be minimised, over the known parts of a batch; outputs (N, O, *map) float32 are given finest first."""
        ...

    def tally(self, output: Tensor, target: Tensor) -> Floats:
        """Sums over a validation batch from which :meth:`monitor` computes its scores; tallies add up over batches."""
        ...

    def monitor(self, tally: Floats) -> dict[str, float]:
        """Quick scores while training, the most telling first; higher is better."""
        ...

    def collector(self, lattice: Lattice, *, probability: bool = False) -> Collector:
        """What turns the network's answer on a prepared array into a finding on its study.

        `probability` asks for what takes much memory: the probability of each voxel.
        """
        ...

    def settle(self, answers: Iterable[tuple[Finding, Case]]) -> dict[str, Any]:
        """What validation cases say of how findings must be cleaned and scored: plain values, as in JSON.

        The findings come from networks that did not learn from their case. `answers` can be gone through several times.
        """
        ...

    def conclude(self, finding: Finding, settled: Mapping[str, Any]) -> Finding:
        """The finding with what was settled applied."""
        ...
