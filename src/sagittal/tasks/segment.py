"""Segmentation: which structure each voxel belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sagittal.case import Case
from sagittal.errors import DataError
from sagittal.labels import LabelScheme
from sagittal.networks.heads import Head
from sagittal.prediction import Finding, Mask, Prediction
from sagittal.prepare.lattice import Lattice
from sagittal.prepare.plan import Outputs
from sagittal.prepare.truth_maps import label_target
from sagittal.prepare.warp import Warp, sample_labels
from sagittal.tasks.clean import choose_cleaning, clean_segmentation, trace_pieces
from sagittal.tasks.expected_dice import correct_expected, fit_expected
from sagittal.tasks.mask_collector import MaskCollector
from sagittal.tasks.outlines import find_boxes, true_segmentation
from sagittal.tasks.segment_loss import UNKNOWN, segmentation_loss
from sagittal.tasks.segment_picture import figure
from sagittal.tasks.segment_rows import score_row, summarise_rows
from sagittal.tasks.task import Summary
from sagittal.types import Array, Floats

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

#: Places that are kept of a structure in a case; more would only say the same again.
PLACES = 5000


@dataclass(frozen=True)
class Segment:
    """Which structure each voxel belongs to.

    Parameters
    ----------
    scheme : LabelScheme
        Its classes are the structures, background left out.
    outputs : {"exclusive", "independent"}
        Whether the structures exclude each other: then there is one output more, for the background.
    centreline : bool
        Whether the loss looks at centrelines too, for thin trees.
    label_smoothing : float
    clean : bool
        Whether post-processing is tried on validation cases.
    tolerance_mm : float
        Of the surface Dice.
    """

    scheme: LabelScheme
    outputs: Outputs = "exclusive"
    centreline: bool = False
    label_smoothing: float = 0.0
    clean: bool = True
    tolerance_mm: float = 2.0

    @property
    def head(self) -> Head:
        """One output for each structure and, where they exclude each other, the background in front."""
        return Head("dense", len(self.scheme.classes) + (self.outputs == "exclusive"))

    def target(self, case: Case, lattice: Lattice) -> Array:
        """The label map, (1, *size) or (S, *size) uint8; see :func:`sagittal.prepare.truth_maps.label_target`."""
        return label_target(case, self.scheme, self.outputs, lattice)

    def places(self, target: Array, size: tuple[int, ...]) -> tuple[Array, ...]:
        """For each structure some of its voxels, (m, d) int, spread over it by chance and alike in every run.

        Examples
        --------
        >>> task = Segment(LabelScheme("structures", ("head", "tail")))
        >>> head, tail = task.places(np.array([[[0, 2], [0, 0]]], dtype=np.uint8), (2, 2))
        >>> head.shape, tail.tolist()
        ((0, 2), [[0, 1]])
        """
        rng = np.random.default_rng(0)
        found = []
        for number in range(len(self.scheme.classes)):
            mask = target[0] == number + 1 if self.outputs == "exclusive" else target[number] == 1
            voxels = np.flatnonzero(mask)
            if len(voxels) > PLACES:
                voxels = np.sort(rng.choice(voxels, PLACES, replace=False))
            found.append(np.stack(np.unravel_index(voxels, size), axis=1).astype(np.int32))
        return tuple(found)

    def draw(self, targets: Sequence[Array], warp: Warp) -> Tensor:
        """The labels in the windows: (N, *size) where structures exclude each other, else (N, S, *size), uint8."""
        labels = sample_labels(targets, warp)
        return labels[:, 0] if self.outputs == "exclusive" else labels

    def loss(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """Dice and cross-entropy, and where the plan says so the Dice of centrelines."""
        return segmentation_loss(
            outputs, target, self.outputs, centreline=self.centreline, smoothing=self.label_smoothing
        )

    def tally(self, output: Tensor, target: Tensor) -> Floats:
        """Voxels of each structure that are found and true, found, true: (3, S) float64."""
        known = target != UNKNOWN
        chosen = output.argmax(dim=1) if self.outputs == "exclusive" else output > 0
        sums = np.zeros((3, len(self.scheme.classes)))
        for number in range(len(self.scheme.classes)):
            if self.outputs == "exclusive":
                found, true = (chosen == number + 1) & known, target == number + 1
            else:
                found, true = chosen[:, number] & known[:, number], target[:, number] == 1
            sums[:, number] = [float(part.sum()) for part in (found & true, found, true)]
        return sums

    def monitor(self, tally: Floats) -> dict[str, float]:
        """Mean Dice over the structures that were there or found, all windows taken as one; then each structure's.

        Examples
        --------
        >>> task = Segment(LabelScheme("structures", ("head", "tail", "other")))
        >>> scores = task.monitor(np.array([[4.0, 0, 0], [5, 2, 0], [5, 3, 0]]))
        >>> {name: round(score, 3) for name, score in scores.items()}
        {'dice': 0.4, 'dice_head': 0.8, 'dice_tail': 0.0}
        """
        both, found, true = tally
        there = found + true > 0
        dice = {
            name: float(2 * b / (f + t))
            for name, b, f, t, is_there in zip(self.scheme.classes, both, found, true, there, strict=True)
            if is_there
        }
        mean = float(np.mean(list(dice.values()))) if dice else 0.0
        return {"dice": mean, **{f"dice_{name}": value for name, value in dice.items()}}

    def collector(self, lattice: Lattice, *, probability: bool = False) -> MaskCollector:
        """What brings logits to the study's grid and decides there."""
        return MaskCollector(self.scheme, self.outputs, lattice, probability=probability)

    def settle(self, answers: Iterable[tuple[Finding, Case]]) -> dict[str, Any]:
        """How masks are cleaned, and how the Dice that they expect of themselves is corrected.

        Returns
        -------
        dict
            ``clean``: per structure what :func:`sagittal.tasks.clean.clean_segmentation` takes; ``clean_gain``: what that
            brought on these cases; ``expected_dice``: per structure what
            :func:`sagittal.tasks.expected_dice.correct_expected` takes.
        """
        names = self.scheme.classes
        traces: dict[str, list[Any]] = {name: [] for name in names}
        expected: dict[str, list[float]] = {name: [] for name in names}
        patients: dict[str, list[str]] = {name: [] for name in names}
        for finding, case in answers:
            mask = _mask(finding)
            truth = true_segmentation(case, self.scheme, mask.grid)
            if truth is None:
                continue
            known = {structure.name for structure in truth.structures}
            boxes = find_boxes(mask.segmentation), find_boxes(truth)
            for name in names:
                if name in known:
                    traces[name].append(trace_pieces(mask.segmentation, truth, name, boxes))
                    expected[name].append(mask.expected_dice.get(name, np.nan))
                    patients[name].append(case.patient)
        settled: dict[str, Any] = {"clean": {}, "clean_gain": {}, "expected_dice": {}}
        for name in names:
            choice = choose_cleaning(traces[name], patients[name], allowed=self.clean)
            if choice.rule:
                settled["clean"][name], settled["clean_gain"][name] = choice.rule, choice.gain
            fitted = fit_expected(np.array(expected[name]), choice.dice, patients[name])
            if fitted:
                settled["expected_dice"][name] = fitted
        return settled

    def conclude(self, finding: Finding, settled: Mapping[str, Any]) -> Mask:
        """The cleaned mask with corrected expectations of its Dice; nan where none could be fitted."""
        mask = _mask(finding)
        segmentation = clean_segmentation(mask.segmentation, settled.get("clean", {}))
        there = find_boxes(segmentation)
        expected = {
            name: correct_expected(mask.expected_dice.get(name, np.nan), settled.get("expected_dice", {}).get(name))
            if name in there
            else np.nan
            for name in self.scheme.classes
        }
        return Mask(segmentation, probability=mask.probability, doubt=mask.doubt, expected_dice=expected)

    def score(self, prediction: Prediction, case: Case) -> dict[str, Any]:
        """The evidence row of a case; see :func:`sagittal.tasks.segment_rows.score_row`."""
        return score_row(self, prediction, case)

    def summarise(
        self, rows: pd.DataFrame, *, resamples: int, seed: int, confidence: float, prevalence: float | None = None
    ) -> Summary:
        """Measures over the rows of :meth:`score`; a prevalence has no part in them."""
        return summarise_rows(self, rows, resamples=resamples, seed=seed, confidence=confidence)

    def figure(self, prediction: Prediction, case: Case) -> Array:
        """The study with the outlines of answer and truth, (H, W, 3) uint8."""
        return figure(self, prediction, case)


def _mask(finding: Finding) -> Mask:
    if not isinstance(finding, Mask):
        raise DataError(f"a segmentation finds a mask, not a {type(finding).__name__}")
    return finding
