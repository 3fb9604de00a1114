"""Prediction: what a model says about a case, and how far to believe it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sagittal.errors import DataError, GeometryError
from sagittal.grid import Grid
from sagittal.labels import ClassScores, LabelScheme
from sagittal.truth import Boxes, Segmentation
from sagittal.types import Array, Floats


@dataclass(frozen=True, eq=False)
class Mask:
    """What each voxel of a study belongs to, as a model says.

    Parameters
    ----------
    segmentation : Segmentation
        On the grid of the study's first image; a structure that was not found has an empty mask.
    probability : mapping of str to (I, J, K) uint8, optional
        By structure, 0 to 255 for 0 to 1; only where it was asked for, as it takes as much memory as the study.
    doubt : (I, J, K) uint8, optional
        By how much the networks and mirrored views disagree, 0 to 255 for 0 to 1; where there was more than one view.
    expected_dice : mapping of str to float
        By structure: the Dice that the model expects of itself here, fitted on validation cases; nan where it cannot say.
    """

    segmentation: Segmentation
    probability: Mapping[str, Array] = field(default_factory=dict)
    doubt: Array | None = None
    expected_dice: Mapping[str, float] = field(default_factory=dict)

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        return self.segmentation.grid


@dataclass(frozen=True, eq=False)
class Detections:
    """Where the objects of a study lie, as a model says, the surest first.

    Parameters
    ----------
    boxes : Boxes
        Voxel indices of `grid`.
    scores : (N,) float64
        Calibrated: of the boxes with a score of 0.8, four in five enclose an object of their class.
    grid : Grid
        Of the study's first image.
    chosen : (N,) bool
        Those at or above the model's operating point; the others are kept for curves.
    """

    boxes: Boxes
    scores: Floats
    grid: Grid
    chosen: Array

    def __post_init__(self) -> None:
        scores, chosen = np.array(self.scores, dtype=np.float64), np.array(self.chosen, dtype=bool)
        if self.boxes.frame != "voxel":
            raise GeometryError("found boxes are given in voxel indices of the study")
        if scores.shape != (len(self.boxes),) or chosen.shape != scores.shape:
            raise DataError(
                f"{len(self.boxes)} boxes need as many scores and choices, not {scores.shape}, {chosen.shape}"
            )
        for name, value in (("scores", scores), ("chosen", chosen)):
            value.flags.writeable = False
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.boxes)


#: What a model found, in the form of the task's truth.
Finding = ClassScores | Mask | Detections


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a study: whether the model knows its like.

    Parameters
    ----------
    accepted : bool
    reason : str
        Empty where accepted; else what was found and what the model was made for.
    score : float
        Out-of-distribution score as a percentile of the training cases, 0 (typical) to 1; nan where not measured.
    """

    accepted: bool = True
    reason: str = ""
    score: float = float("nan")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says about one case.

    Parameters
    ----------
    case : str
        The case's id.
    scheme : LabelScheme
    finding : Finding
        Calibrated probabilities, one a class; or a mask, or boxes.
    decision : tuple of str
        The class that holds by the model's operating point; for several labels all that hold, possibly none. Of a mask
        the structures that are there, of boxes the classes that were chosen at least once.
    logits : (C,) float
        Before calibration, averaged over the members of an ensemble; empty where the answer has a place.
    conformal : tuple of str
        Classes that cannot be excluded at the package's confidence level; empty where not calibrated.
    uncertainty : float
        Entropy of the probabilities in nats divided by its maximum, 0 to 1; of a mask one minus the mean expected Dice.
    verdict : Verdict
    model : str
        Name, format version and checksum of the package.
    made_at : str
        UTC, ISO 8601.
    seconds : float
        Wall time for the case, reading included.
    """

    case: str
    scheme: LabelScheme
    finding: Finding
    decision: tuple[str, ...]
    logits: Floats
    conformal: tuple[str, ...] = ()
    uncertainty: float = float("nan")
    verdict: Verdict = Verdict()
    model: str = ""
    made_at: str = ""
    seconds: float = float("nan")

    @property
    def probability(self) -> Floats:
        """Calibrated probabilities, (C,).

        Raises
        ------
        DataError
            If the answer has a place: a mask or boxes hold no number for the case as a whole.
        """
        if not isinstance(self.finding, ClassScores):
            raise DataError(f"case {self.case}: a {type(self.finding).__name__.lower()} has no class probabilities")
        return self.finding.values


@dataclass(frozen=True)
class Failure:
    """A study that could not be predicted, and why; the batch goes on."""

    case: str
    error: str
    kind: str = "ReadError"
