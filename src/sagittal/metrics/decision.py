"""How good yes-or-no answers are: measures of the confusion matrix.

Every measure takes a matrix (..., C, C) with the truth in rows and the answers in columns, so that a stack of
bootstrap resamples is one call, and gives numbers of shape (...). A measure whose denominator is 0 is nan.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sagittal.errors import DataError
from sagittal.types import Array, Floats


def confusion_matrix(pred: Array, truth: Array, classes: int, weights: Array | None = None) -> Floats:
    """Count cases of each truth (row) and answer (column).

    Parameters
    ----------
    pred, truth : (n,) int
        Class numbers from 0; -1 where unknown or undecided: such cases are left out.
    weights : (..., n) float, optional

    Returns
    -------
    (..., C, C) float64

    Examples
    --------
    >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), 2)
    array([[1., 1.],
           [0., 1.]])
    """
    pred, truth = np.asarray(pred), np.asarray(truth)
    if pred.shape != truth.shape or pred.ndim != 1:
        raise DataError(f"answers and truth must be two lists of the same length, not {pred.shape} and {truth.shape}")
    if len(pred) and max(pred.max(), truth.max()) >= classes:
        raise DataError(f"class numbers must lie below {classes}, found {max(pred.max(), truth.max())}")
    w = np.ones(len(pred)) if weights is None else np.asarray(weights, dtype=np.float64)
    known = (pred >= 0) & (truth >= 0)
    cell = np.where(known, truth * classes + pred, classes * classes)
    out = np.zeros((*w.shape[:-1], classes * classes))
    used = np.unique(cell[known])
    out[..., used] = w @ (cell[:, None] == used).astype(np.float64)
    return out.reshape(*w.shape[:-1], classes, classes)


def _ratio(above: Floats, below: Floats) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)[()]


def one_against_rest(matrix: Floats, positive: int) -> Floats:
    """The (..., 2, 2) matrix of one class (second) against all others (first)."""
    tp = matrix[..., positive, positive]
    fn = matrix[..., positive, :].sum(axis=-1) - tp
    fp = matrix[..., :, positive].sum(axis=-1) - tp
    tn = matrix.sum(axis=(-1, -2)) - tp - fn - fp
    return np.stack([np.stack([tn, fp], axis=-1), np.stack([fn, tp], axis=-1)], axis=-2)


def accuracy(matrix: Floats) -> Any:
    """Share of right answers."""
    return _ratio(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum(axis=(-1, -2)))


def recalls(matrix: Floats) -> Floats:
    """Share of each class's cases that are answered right, (..., C)."""
    return np.asarray(_ratio(np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(axis=-1)))


def nan_mean(values: Floats) -> Any:
    """Mean over the last axis of what is defined; nan where nothing is."""
    good = np.isfinite(values)
    return _ratio(np.where(good, values, 0).sum(axis=-1), good.sum(axis=-1))


def balanced_accuracy(matrix: Floats) -> Any:
    """Mean share of right answers over the classes that occur."""
    return nan_mean(recalls(matrix))


def sensitivity(matrix: Floats, positive: int = 1) -> Any:
    """Share of positive cases that are answered positive (recall)."""
    return _ratio(matrix[..., positive, positive], matrix[..., positive, :].sum(axis=-1))


def specificity(matrix: Floats, positive: int = 1) -> Any:
    """Share of negative cases that are answered negative."""
    m = one_against_rest(matrix, positive)
    return _ratio(m[..., 0, 0], m[..., 0, :].sum(axis=-1))


def ppv(matrix: Floats, positive: int = 1) -> Any:
    """Share of positive answers that are right (precision), at the prevalence of these cases."""
    return _ratio(matrix[..., positive, positive], matrix[..., :, positive].sum(axis=-1))


def npv(matrix: Floats, positive: int = 1) -> Any:
    """Share of negative answers that are right, at the prevalence of these cases."""
    m = one_against_rest(matrix, positive)
    return _ratio(m[..., 0, 0], m[..., :, 0].sum(axis=-1))


def ppv_at(sensitivity: Any, specificity: Any, prevalence: float) -> Any:
    """Positive predictive value where the positive class has this prevalence (Bayes).

    >>> round(float(ppv_at(0.9, 0.95, 0.01)), 4)
    0.1538
    """
    hits = np.asarray(sensitivity) * prevalence
    return _ratio(hits, hits + (1 - np.asarray(specificity)) * (1 - prevalence))


def npv_at(sensitivity: Any, specificity: Any, prevalence: float) -> Any:
    """Negative predictive value where the positive class has this prevalence (Bayes)."""
    right = np.asarray(specificity) * (1 - prevalence)
    return _ratio(right, right + (1 - np.asarray(sensitivity)) * prevalence)


def f1(matrix: Floats, positive: int = 1) -> Any:
    """Harmonic mean of sensitivity and PPV; nan where the class neither occurs nor is answered."""
    tp = matrix[..., positive, positive]
    return _ratio(2 * tp, matrix[..., positive, :].sum(axis=-1) + matrix[..., :, positive].sum(axis=-1))


def mcc(matrix: Floats) -> Any:
    """Matthews correlation coefficient, for any number of classes [1]_.

    0 where every answer is the same; nan where only one class occurs.

    References
    ----------
    .. [1] Gorodkin, Comput Biol Chem 28:367, 2004.
    """
    truth, pred, n = matrix.sum(axis=-1), matrix.sum(axis=-2), matrix.sum(axis=(-1, -2))
    covariance = np.trace(matrix, axis1=-2, axis2=-1) * n - (truth * pred).sum(axis=-1)
    of_truth, of_pred = n**2 - (truth**2).sum(axis=-1), n**2 - (pred**2).sum(axis=-1)
    value = _ratio(covariance, np.sqrt(of_truth * of_pred))
    return np.where(of_truth <= 0, np.nan, np.where(of_pred <= 0, 0.0, value))[()]


def kappa(matrix: Floats, *, quadratic: bool = False) -> Any:
    """Cohen's kappa: agreement beyond chance; with quadratic weights for grades (Cohen 1968)."""
    classes = matrix.shape[-1]
    i = np.arange(classes)
    cost = (i[:, None] - i) ** 2 if quadratic else 1 - np.eye(classes)
    truth, pred, n = matrix.sum(axis=-1), matrix.sum(axis=-2), matrix.sum(axis=(-1, -2))
    seen = (cost * matrix).sum(axis=(-1, -2)) * n
    expected = (cost * (truth[..., :, None] * pred[..., None, :])).sum(axis=(-1, -2))
    return 1 - _ratio(seen, expected)


def grade_error(matrix: Floats) -> Any:
    """Mean distance between true and answered grade, in grades."""
    i = np.arange(matrix.shape[-1])
    return _ratio((np.abs(i[:, None] - i) * matrix).sum(axis=(-1, -2)), matrix.sum(axis=(-1, -2)))
