"""Classify: which class holds for a study: one of two, one of many, any number of them, or a grade."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sagittal.case import Case
from sagittal.errors import ConfigError, DataError
from sagittal.grid import Grid
from sagittal.labels import ClassScores, LabelScheme
from sagittal.metrics.calibration import brier_terms, log_loss_terms
from sagittal.metrics.decision import balanced_accuracy, confusion_matrix
from sagittal.metrics.ranking import auc
from sagittal.networks.heads import Head
from sagittal.prediction import Prediction
from sagittal.tasks.task import Summary
from sagittal.types import Array, Floats

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

#: How fast the target of a grade falls off with the squared distance: 0.12 for a neighbour beside 0.79 for the grade.
GRADE_SHARPNESS = 2.0


@dataclass(frozen=True, eq=False)
class Classify:
    """Classification, learned with cross-entropy.

    One output a class. Classes that exclude each other share a softmax, also two of them: one rule for all kinds, and
    a bias per class for calibration to move. Several labels have a sigmoid each. Grades are learned from soft targets
    that fall off with the squared distance to the true grade [1]_, the weights of the quadratic kappa; the outputs
    stay those of a softmax.

    Parameters
    ----------
    scheme : LabelScheme
    label_smoothing : float
        0 to 1: how much of the target is spread evenly over the classes.
    class_weights : (C,) or (2, C) float, optional
        Factor on the loss of cases of each class; (2, C) for several labels: of the negative and the positive cases.
        :func:`class_weights` makes them from counts.

    References
    ----------
    .. [1] Diaz and Marathe, Soft Labels for Ordinal Regression, CVPR 2019, equation 1 with
       phi = GRADE_SHARPNESS * (i - j)**2.
    """

    scheme: LabelScheme
    label_smoothing: float = 0.0
    class_weights: Floats | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be at least 0 and below 1, not {self.label_smoothing}")
        if self.class_weights is not None:
            weights = np.array(self.class_weights, dtype=np.float64)
            c = len(self.scheme.classes)
            shape = (c,) if self.scheme.exclusive else (2, c)
            if weights.shape != shape or not np.all(np.isfinite(weights) & (weights >= 0)):
                raise ConfigError(f"class weights must be {shape} numbers of 0 or more, not {weights.tolist()}")
            weights.flags.writeable = False
            object.__setattr__(self, "class_weights", weights)

    @property
    def head(self) -> Head:
        """One output a class."""
        return Head("vector", len(self.scheme.classes))

    def target(self, case: Case) -> Array:
        """1 for the classes that hold, 0 for those that do not, nan where unknown, (C,) float32."""
        truth = case.scores if case.scores is not None else self.scheme.unknown()
        if len(truth.values) != len(self.scheme.classes):
            raise DataError(
                f"case {case.id}: the truth has {len(truth.values)} classes, "
                f"'{self.scheme.target}' has {len(self.scheme.classes)}"
            )
        return truth.values.astype(np.float32)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy over the known cases (or known labels) of a batch, in nats.

        Parameters
        ----------
        logits, target : (N, C) Tensor
            Targets may be mixtures, as mixup makes them; nan is unknown. Without any known target the loss is 0.
        """
        import torch

        logits, target = logits.float(), target.float()
        weights = None if self.class_weights is None else torch.tensor(self.class_weights).to(logits)
        known = ~torch.isnan(target)
        if not self.scheme.exclusive:
            soft = torch.where(known, target, 0)
            smooth = soft * (1 - self.label_smoothing) + self.label_smoothing / 2
            terms = torch.nn.functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
            if weights is not None:
                terms = terms * (weights[0] * (1 - soft) + weights[1] * soft)
            return torch.where(known, terms, 0).sum() / known.sum().clamp(min=1)
        row = known.all(dim=1)  # (N,)
        soft = torch.where(row[:, None], target, 0)
        weight = row.to(logits) if weights is None else soft @ weights
        if self.scheme.kind == "ordinal":
            soft = soft @ torch.as_tensor(grade_targets(len(self.scheme.classes))).to(logits)
        smooth = soft * (1 - self.label_smoothing) + self.label_smoothing / soft.shape[1]
        terms = -(smooth * torch.log_softmax(logits, dim=1)).sum(dim=1)
        return torch.where(row, terms * weight, 0).sum() / row.sum().clamp(min=1)

    def monitor(self, logits: Array, target: Array) -> dict[str, float]:
        """AUC (mean over classes), accuracy and balanced accuracy of the most probable class.

        For several labels the answers are those above one half, and accuracy is that of single labels.
        """
        target = np.asarray(target, dtype=np.float64)
        p = self.probabilities(logits)
        if self.scheme.kind == "binary":
            area = float(auc(p[:, 1], target[:, 1]))
        else:
            areas = np.array([auc(p[:, c], target[:, c]) for c in range(p.shape[1])])
            area = float(np.mean(areas[np.isfinite(areas)])) if np.isfinite(areas).any() else float("nan")
        truth, pred = self._numbers(target), self._numbers((p > 0.5).astype(float) if not self.scheme.exclusive else p)
        if self.scheme.exclusive:
            matrix = confusion_matrix(pred, truth, p.shape[1])
            balanced = float(balanced_accuracy(matrix))
        else:
            per_class = [confusion_matrix(pred[:, c], truth[:, c], 2) for c in range(p.shape[1])]
            matrix = np.sum(per_class, axis=0)
            values = np.array([balanced_accuracy(m) for m in per_class])
            balanced = float(np.mean(values[np.isfinite(values)])) if np.isfinite(values).any() else float("nan")
        total = matrix.sum()
        right = float(np.trace(matrix) / total) if total else float("nan")
        return {"auc": area, "accuracy": right, "balanced_accuracy": balanced}

    def _numbers(self, scores: Floats) -> Array:
        """Class numbers of one-hot rows or probabilities, -1 where unknown: (N,), or (N, C) of 0 and 1."""
        known = np.isfinite(scores)
        if not self.scheme.exclusive:
            return np.where(known, scores > 0.5, -1).astype(np.intp)
        return np.where(known.all(axis=1), np.argmax(np.where(known, scores, 0), axis=1), -1)

    def probabilities(self, logits: Array) -> Floats:
        """Softmax or sigmoid, (..., C) float64."""
        logits = np.asarray(logits, dtype=np.float64)
        if not self.scheme.exclusive:
            return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))  # does not overflow
        power = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(power / power.sum(axis=-1, keepdims=True))

    def decode(self, logits: Array, grid: Grid) -> ClassScores:
        """Probabilities from the calibrated logits (C,) of one case; the grid plays no part."""
        return ClassScores(self.probabilities(np.asarray(logits)))

    def score(self, prediction: Prediction, case: Case) -> dict[str, Any]:
        """The evidence row of a case.

        ``case``, ``patient``; ``truth`` and ``decision`` (class names, several joined by a comma, ``None`` where
        unknown or undecided); ``p_CLASS``; for several labels ``truth_CLASS`` and ``decision_CLASS`` (0, 1, nan);
        ``correct`` (``None`` where unknown), ``log_loss``, ``brier``; ``conformal``, ``uncertainty``, ``accepted``,
        ``reason``, ``seconds``.
        """
        truth = np.asarray(self.target(case), dtype=np.float64)
        p = prediction.probability
        classes = self.scheme.classes
        exclusive = self.scheme.exclusive
        row: dict[str, Any] = {"case": case.id, "patient": case.patient}
        holds = [name for name, value in zip(classes, truth, strict=True) if value == 1]
        known = np.isfinite(truth)
        row["truth"] = ", ".join(holds) if (known.all() if exclusive else known.any()) else None
        # No class: for several labels an answer ("none of them"), unless the gate refused the study.
        answered = bool(prediction.decision) or (not exclusive and prediction.verdict.accepted)
        row["decision"] = ", ".join(prediction.decision) if answered else None
        row.update({f"p_{name}": float(value) for name, value in zip(classes, p, strict=True)})
        decided = np.array([name in prediction.decision for name in classes], dtype=np.float64)
        if not answered:
            decided[:] = np.nan
        if not exclusive:
            row.update({f"truth_{name}": float(value) for name, value in zip(classes, truth, strict=True)})
            row.update({f"decision_{name}": float(value) for name, value in zip(classes, decided, strict=True)})
        row["correct"] = None
        if row["truth"] is not None and row["decision"] is not None:
            row["correct"] = bool(np.all(decided[known] == truth[known]))
        usable = row["truth"] is not None
        row["log_loss"] = (
            float(log_loss_terms(p[None], truth[None], exclusive=exclusive)[0]) if usable else float("nan")
        )
        row["brier"] = float(brier_terms(p[None], truth[None], exclusive=exclusive)[0]) if usable else float("nan")
        row["conformal"] = ", ".join(prediction.conformal)
        row["uncertainty"] = float(prediction.uncertainty)
        row["accepted"] = bool(prediction.verdict.accepted)
        row["reason"] = prediction.verdict.reason
        row["seconds"] = float(prediction.seconds)
        return row

    def summarise(
        self, rows: pd.DataFrame, *, resamples: int, seed: int, confidence: float, prevalence: float | None = None
    ) -> Summary:
        """Measures over the rows, each beside ``baseline.MEASURE`` of always answering the most frequent class.

        See :mod:`sagittal.tasks.measures` for what each is and where its interval comes from.
        """
        from sagittal.tasks.measures import summarise_rows

        return summarise_rows(
            self.scheme, rows, resamples=resamples, seed=seed, confidence=confidence, prevalence=prevalence
        )

    def figure(self, prediction: Prediction, case: Case) -> Array:
        """The image (three planes of a volume) with truth and answer written under it, (H, W, 3) uint8."""
        from sagittal.tasks.picture import picture, with_caption

        truth = self.target(case)
        best = np.argsort(-prediction.probability, kind="stable")[:3]
        known = ", ".join(n for n, v in zip(self.scheme.classes, truth, strict=True) if v == 1) or "none"
        lines = [
            f"truth: {known if np.isfinite(truth).any() else 'unknown'}",
            f"answer: {', '.join(prediction.decision) or 'none'}",
            *(f"{prediction.probability[c]:.2f}  {self.scheme.classes[c]}" for c in best),
        ]
        return with_caption(picture(case.image(next(iter(case.images)))), lines)


def grade_targets(grades: int) -> Floats:
    """Soft target of each grade, (C, C) with rows that sum to 1."""
    i = np.arange(grades)
    power = np.exp(-GRADE_SHARPNESS * (i[:, None] - i) ** 2.0)
    return np.asarray(power / power.sum(axis=1, keepdims=True))


def class_weights(scheme: LabelScheme, targets: Array, kind: Literal["none", "sqrt", "balanced"]) -> Floats | None:
    """Weights from the class counts of training targets (N, C): inverse frequency to the power 1/2 or 1.

    The mean over the known cases is 1, so that the learning rate keeps its meaning. A class without a case has
    weight 1. For several labels the result is (2, C): of negative and positive cases of each.

    >>> scheme = LabelScheme("binary", ("no", "yes"))
    >>> class_weights(scheme, np.array([[1, 0], [1, 0], [1, 0], [0, 1]]), "balanced")
    array([0.66666667, 2.        ])
    """
    if kind == "none":
        return None
    if kind not in ("sqrt", "balanced"):
        raise ConfigError(f"unknown kind of class weights '{kind}'. Known: none, sqrt, balanced.")
    power = 0.5 if kind == "sqrt" else 1.0
    targets = np.asarray(targets, dtype=np.float64)
    positive, negative = np.nansum(targets, axis=0), np.nansum(1 - targets, axis=0)
    counts = positive if scheme.exclusive else np.stack([negative, positive])
    there = counts > 0
    raw = np.where(there, np.maximum(counts, 1e-9) ** -power, 0.0)
    mass = (counts * raw).sum(axis=-1 if scheme.exclusive else 0, keepdims=True)
    cases = counts.sum(axis=-1 if scheme.exclusive else 0, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there, raw * cases / mass, 1.0)
