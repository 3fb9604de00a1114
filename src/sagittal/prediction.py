"""Prediction: what a model says about a case, and how far to believe it."""

from __future__ import annotations

from dataclasses import dataclass

from sagittal.labels import ClassScores, LabelScheme
from sagittal.types import Floats

#: What a model found, in the form of the task's truth. Later tasks add label maps and boxes.
Finding = ClassScores


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
        Calibrated probabilities, one a class.
    decision : tuple of str
        The class that holds by the model's operating point; for several labels all that hold, possibly none.
    logits : (C,) float
        Before calibration, averaged over the members of an ensemble.
    conformal : tuple of str
        Classes that cannot be excluded at the package's confidence level; empty where not calibrated.
    uncertainty : float
        Entropy of the probabilities in nats divided by its maximum, 0 to 1.
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
        """Calibrated probabilities, (C,)."""
        return self.finding.values


@dataclass(frozen=True)
class Failure:
    """A study that could not be predicted, and why; the batch goes on."""

    case: str
    error: str
    kind: str = "ReadError"
