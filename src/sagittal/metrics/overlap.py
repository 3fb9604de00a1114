"""How far two masks cover the same voxels: Dice, IoU, sensitivity, precision, volume error, clDice.

Masks are (I, J, K) or (I, J) bool. A share whose denominator is empty is ``nan``: it says nothing, and reports count it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sagittal.errors import require
from sagittal.metrics.masks import check_masks, check_spacing, flat
from sagittal.types import Bools


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan


@dataclass(frozen=True)
class Overlap:
    """Voxel counts of two masks; every measure of overlap follows from them.

    Counts of several cases or structures add up with ``+`` to those of all voxels together.

    Parameters
    ----------
    both, only_pred, only_truth : int
        Voxels of both masks, of the prediction alone (false positives), of the truth alone (false negatives).
    """

    both: int
    only_pred: int
    only_truth: int

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(self.both + other.both, self.only_pred + other.only_pred, self.only_truth + other.only_truth)

    @property
    def dice(self) -> float:
        """2 |P and T| / (|P| + |T|); 0 if one mask is empty or they are apart, nan if both are empty."""
        return _ratio(2 * self.both, 2 * self.both + self.only_pred + self.only_truth)

    @property
    def iou(self) -> float:
        """|P and T| / |P or T|; 0 if one mask is empty or they are apart, nan if both are empty."""
        return _ratio(self.both, self.both + self.only_pred + self.only_truth)

    @property
    def sensitivity(self) -> float:
        """Share of the truth that is found; nan if the truth is empty."""
        return _ratio(self.both, self.both + self.only_truth)

    @property
    def precision(self) -> float:
        """Share of the prediction that is right; nan if the prediction is empty."""
        return _ratio(self.both, self.both + self.only_pred)


def overlap(pred: Bools, truth: Bools) -> Overlap:
    """Count the voxels of two masks.

    Raises
    ------
    MaskError
        If the masks differ in shape or are not boolean.

    Examples
    --------
    >>> counts = overlap(np.array([[True, True, False]]), np.array([[False, True, True]]))
    >>> counts
    Overlap(both=1, only_pred=1, only_truth=1)
    >>> counts.dice
    0.5
    """
    check_masks(pred, truth)
    both = int(np.count_nonzero(pred & truth))
    return Overlap(both, int(np.count_nonzero(pred)) - both, int(np.count_nonzero(truth)) - both)


def dice(pred: Bools, truth: Bools) -> float:
    """Dice's coefficient, 0..1: twice the common voxels over the sum of both masks (Dice, Ecology 26:297, 1945).

    0 if one mask is empty, ``nan`` if both are.

    >>> dice(np.array([[True, True, False]]), np.array([[False, True, True]]))
    0.5
    """
    return overlap(pred, truth).dice


def iou(pred: Bools, truth: Bools) -> float:
    """Intersection over union, 0..1 (Jaccard); 0 if one mask is empty, ``nan`` if both are."""
    return overlap(pred, truth).iou


def sensitivity(pred: Bools, truth: Bools) -> float:
    """Share of the truth's voxels that are found (recall); ``nan`` if the truth is empty."""
    return overlap(pred, truth).sensitivity


def precision(pred: Bools, truth: Bools) -> float:
    """Share of the predicted voxels that are right (positive predictive value); ``nan`` if the prediction is empty."""
    return overlap(pred, truth).precision


def volume_ml(mask: Bools, spacing: Any) -> float:
    """Volume of a mask in millilitres: voxels times their volume.

    Raises
    ------
    GeometryError
        If the spacing does not hold three lengths: a picture has no volume.

    Examples
    --------
    >>> volume_ml(np.ones((10, 10, 5), dtype=bool), (1.0, 1.0, 4.0))
    2.0
    """
    check_masks(mask, mask)
    return float(np.count_nonzero(mask) * np.prod(check_spacing(spacing, 3)) / 1000)


@dataclass(frozen=True)
class VolumeError:
    """How far a predicted volume lies from the true one.

    Parameters
    ----------
    pred_ml, truth_ml : float
    """

    pred_ml: float
    truth_ml: float

    @property
    def ml(self) -> float:
        """Predicted minus true volume, ml; negative where too little was found."""
        return self.pred_ml - self.truth_ml

    @property
    def absolute_ml(self) -> float:
        """Size of the error, ml."""
        return abs(self.ml)

    @property
    def relative(self) -> float:
        """Error as a share of the true volume, -1 and more; nan if the truth is empty."""
        return _ratio(self.ml, self.truth_ml)

    @property
    def absolute_relative(self) -> float:
        """Size of the error as a share of the true volume; nan if the truth is empty."""
        return abs(self.relative)


def volume_error(pred: Bools, truth: Bools, spacing: Any) -> VolumeError:
    """Compare the volumes of two masks, wherever they lie.

    Errors as in :func:`volume_ml` and :func:`overlap`.

    Examples
    --------
    >>> pred, truth = np.zeros((2, 10, 10, 10), dtype=bool)
    >>> pred[:5], truth[:4] = True, True
    >>> error = volume_error(pred, truth, (1, 1, 10))
    >>> error.ml, error.relative
    (1.0, 0.25)
    """
    check_masks(pred, truth)
    return VolumeError(volume_ml(pred, spacing), volume_ml(truth, spacing))


def cldice(pred: Bools, truth: Bools) -> float:
    """Overlap of the centre lines of thin trees, 0..1: vessels, airways, nerves [1]_.

    The harmonic mean of two shares: of the prediction's skeleton that lies in the truth, and of the truth's that lies in
    the prediction. Skeletons are scikit-image's [2]_: by Zhang in a picture, by Lee in a volume. They are voxels of the
    grid: resample to about equal spacing first where it is anisotropic. 0 if one mask is empty, ``nan`` if both are.

    Raises
    ------
    MissingPackageError
        If scikit-image is not installed.

    References
    ----------
    .. [1] Shit et al., CVPR 2021, algorithm 1.
    .. [2] Zhang and Suen, Commun ACM 27:236, 1984; Lee et al., CVGIP 56:462, 1994.
    """
    pred, truth = (flat(mask) for mask in check_masks(pred, truth))
    if not pred.any() or not truth.any():
        return math.nan if not pred.any() and not truth.any() else 0.0
    morphology = require("skimage.morphology", feature="clDice", extra="measures")
    lines = [np.asarray(morphology.skeletonize(mask), dtype=bool) for mask in (pred, truth)]
    # A skeleton keeps at least one voxel of every component, so that neither share is empty.
    right = float(truth[lines[0]].mean())
    found = float(pred[lines[1]].mean())
    return 2 * right * found / (right + found) if right + found > 0 else 0.0
