"""Whether each of many small targets is found: lesion-wise sensitivity, precision, F1 and Dice.

A lesion is a connected component of a mask. Two rules say which predicted component answers for which true lesion:

``"pairs"``
    One to one, as in panoptic quality [1]_: a pair counts from an IoU on; among the pairs that compete, the choice with
    the greatest sum of IoU. A lesion found in two pieces is found once, with one false positive.
``"groups"``
    As in BraTS since 2023 [2]_: all predicted components that touch a true lesion, widened by some voxels, answer for it
    together; a component that touches none is a false positive. True lesions whose widened shapes touch are one.

References
----------
.. [1] Kirillov et al., CVPR 2019; for medical images Kofler et al., arXiv:2312.02608.
.. [2] LaBella et al., arXiv:2305.07642, and the challenge's code, github.com/rachitsaluja/BraTS-2023-Metrics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage, optimize

from sagittal.errors import ConfigError, nearest
from sagittal.metrics.masks import check_masks
from sagittal.types import Array, Bools, Floats

Rule = Literal["pairs", "groups"]

#: Neighbours of a voxel -> the rank of scipy's structuring element, for pictures and for volumes.
_RANK = {2: {4: 1, 8: 2}, 3: {6: 1, 18: 2, 26: 3}}


def components(mask: Bools, connectivity: int | None = None) -> tuple[Array, int]:
    """Number the connected components of a mask.

    Parameters
    ----------
    mask : (I, J, K) or (I, J) bool
    connectivity : int, optional
        Neighbours of a voxel: 6, 18 or 26 in a volume (26 unless told), 4 or 8 in a picture (8 unless told). One slice
        counts as a picture.

    Returns
    -------
    labels : integer array of the mask's shape, 0 outside
    count : int

    Examples
    --------
    >>> diagonal = np.eye(3, dtype=bool)
    >>> components(diagonal)[1], components(diagonal, 4)[1]
    (1, 3)
    """
    check_masks(mask, mask)
    labels, count = ndimage.label(mask, structure=_structure(mask, connectivity))
    return labels, int(count)


def _structure(mask: Array, connectivity: int | None) -> Array:
    flat = mask.ndim == 2 or mask.shape[2] == 1
    ranks = _RANK[2 if flat else 3]
    wanted = max(ranks) if connectivity is None else connectivity
    if wanted not in ranks:
        kind = "a picture" if flat else "a volume"
        raise ConfigError(f"a voxel of {kind} has {' or '.join(map(str, ranks))} neighbours, not {wanted}")
    structure = np.asarray(ndimage.generate_binary_structure(2 if flat else 3, ranks[wanted]))
    if flat and mask.ndim == 3:
        return np.stack([np.zeros_like(structure), structure, np.zeros_like(structure)], axis=2)
    return structure


@dataclass(frozen=True, eq=False)
class Lesions:
    """Which lesions were found. The lists of several cases add up with ``+``.

    Parameters
    ----------
    voxels : (n,) int
        Size of each true lesion.
    found : (n,) bool
    dice : (n,) float
        Dice of each true lesion with what answers for it; 0 where it was not found.
    iou : (n,) float
        Likewise.
    predicted : int
        Predicted components.
    false_positives : int
        Those that answer for no lesion.
    """

    voxels: Array
    found: Bools
    dice: Floats
    iou: Floats
    predicted: int
    false_positives: int

    def __add__(self, other: Lesions) -> Lesions:
        return Lesions(
            np.append(self.voxels, other.voxels),
            np.append(self.found, other.found),
            np.append(self.dice, other.dice),
            np.append(self.iou, other.iou),
            self.predicted + other.predicted,
            self.false_positives + other.false_positives,
        )

    def __len__(self) -> int:
        return len(self.voxels)

    @property
    def true_positives(self) -> int:
        """True lesions that were found."""
        return int(self.found.sum())

    @property
    def false_negatives(self) -> int:
        """True lesions that were missed."""
        return len(self) - self.true_positives

    @property
    def sensitivity(self) -> float:
        """Share of the true lesions that were found; nan where there are none."""
        return self.true_positives / len(self) if len(self) else math.nan

    @property
    def precision(self) -> float:
        """Share of the predicted components that answer for a lesion; nan where nothing was predicted."""
        return 1 - self.false_positives / self.predicted if self.predicted else math.nan

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN) with true lesions as TP; nan where there is nothing true and nothing predicted."""
        below = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / below if below else math.nan

    @property
    def lesion_dice(self) -> float:
        """Sum of the lesions' Dice over TP + FP + FN, as in BraTS: a miss and a false alarm count as 0.

        nan where there is nothing true and nothing predicted (BraTS gives 1 there).
        """
        below = len(self) + self.false_positives
        return float(self.dice.sum()) / below if below else math.nan

    @property
    def panoptic_quality(self) -> float:
        """Sum of the found lesions' IoU over TP + FP / 2 + FN / 2; nan where there is nothing at all."""
        below = self.true_positives + self.false_positives / 2 + self.false_negatives / 2
        return float(self.iou[self.found].sum()) / below if below else math.nan

    def of_size(self, low: float = 0, high: float = math.inf) -> Lesions:
        """The true lesions of low up to, not including, high voxels; false positives have no true size and are kept."""
        chosen = (self.voxels >= low) & (self.voxels < high)
        lists = self.voxels[chosen], self.found[chosen], self.dice[chosen], self.iou[chosen]
        return Lesions(*lists, self.predicted, self.false_positives)


def find_lesions(
    pred: Bools,
    truth: Bools,
    *,
    rule: Rule = "pairs",
    min_iou: float = 0.1,
    dilation: int = 0,
    connectivity: int | None = None,
) -> Lesions:
    """Compare two masks lesion by lesion.

    Parameters
    ----------
    pred, truth : (I, J, K) or (I, J) bool
    rule : {"pairs", "groups"}
        See the top of this file.
    min_iou : float, 0 < min_iou <= 1
        IoU from which a pair counts (``"pairs"``). From above 0.5 no two pairs can compete.
    dilation : int
        Voxels by which true lesions are widened before they are compared (``"groups"``); by steps to 18 neighbours in a
        volume and 4 in a picture, as BraTS does.
    connectivity : int, optional
        As in :func:`components`.

    Raises
    ------
    MaskError
        If the masks differ in shape or are not boolean.
    ConfigError
        If an option is out of range.

    Examples
    --------
    >>> pred, truth = np.zeros((2, 9, 9), dtype=bool)
    >>> truth[1:3, 1:3] = truth[6:8, 6:8] = True
    >>> pred[1:3, 1:3] = pred[1, 7] = True
    >>> lesions = find_lesions(pred, truth)
    >>> lesions.sensitivity, lesions.precision, round(lesions.lesion_dice, 3)
    (0.5, 0.5, 0.333)
    """
    if rule not in ("pairs", "groups"):
        raise ConfigError(f"unknown rule '{rule}'. {nearest(str(rule), ['pairs', 'groups'])}")
    if not 0 < min_iou <= 1:
        raise ConfigError(f"min_iou lies above 0 and up to 1, not {min_iou}")
    if dilation < 0 or (dilation and rule == "pairs"):
        raise ConfigError(f"dilation is a number of voxels for rule 'groups', 0 or more, not {dilation} for '{rule}'")
    check_masks(pred, truth)
    answers, predicted = components(pred, connectivity)
    if dilation:
        flat = pred.ndim == 2 or pred.shape[2] == 1
        step = _structure(pred, 4 if flat else 18)
        wide = ndimage.binary_dilation(truth, structure=step, iterations=dilation)
        merged, true_count = components(wide, connectivity)
        lesions = np.where(truth, merged, 0)
        # Each lesion is widened by itself: what it reaches is what lies near it, in the widened shape or beyond it.
        reach = _reach(lesions, answers, true_count, step, dilation)
    else:
        lesions, true_count = components(truth, connectivity)
        reach = None
    sizes = np.bincount(lesions.ravel(), minlength=true_count + 1)[1:]
    volumes = np.bincount(answers.ravel(), minlength=predicted + 1)[1:]
    lesion, answer, common = _pairs(lesions, answers, predicted)
    if rule == "pairs":
        return _one_to_one(sizes, volumes, lesion, answer, common, min_iou)
    if reach is None:
        reach = lesion, answer
    return _together(sizes, volumes, (lesion, answer, common), reach)


def _pairs(lesions: Array, answers: Array, predicted: int) -> tuple[Array, Array, Array]:
    """Lesion and component (from 0) that share voxels, and how many."""
    both = (lesions > 0) & (answers > 0)
    key = (lesions[both].astype(np.int64) - 1) * max(predicted, 1) + answers[both] - 1
    keys, common = np.unique(key, return_counts=True)
    return keys // max(predicted, 1), keys % max(predicted, 1), common


def _reach(lesions: Array, answers: Array, count: int, step: Array, dilation: int) -> tuple[Array, Array]:
    """Lesion and component (from 0) that touch once the lesion is widened."""
    first, second = [], []
    for number, box in enumerate(ndimage.find_objects(lesions, max_label=count)):
        wide = tuple(slice(max(part.start - dilation, 0), part.stop + dilation) for part in box)
        near = ndimage.binary_dilation(lesions[wide] == number + 1, structure=step, iterations=dilation)
        touched = np.unique(answers[wide][near])
        touched = touched[touched > 0] - 1
        first.append(np.full(len(touched), number))
        second.append(touched)
    if not first:
        return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp)
    return np.concatenate(first), np.concatenate(second)


def _one_to_one(sizes: Array, volumes: Array, lesion: Array, answer: Array, common: Array, min_iou: float) -> Lesions:
    ratio = common / (sizes[lesion] + volumes[answer] - common)
    good = ratio >= min_iou
    lesion, answer, common, ratio = lesion[good], answer[good], common[good], ratio[good]
    if len(np.unique(lesion)) < len(lesion) or len(np.unique(answer)) < len(answer):
        rows, row = np.unique(lesion, return_inverse=True)
        columns, column = np.unique(answer, return_inverse=True)
        gain = np.zeros((len(rows), len(columns)))
        gain[row, column] = ratio
        chosen = np.zeros(gain.shape, dtype=bool)
        chosen[optimize.linear_sum_assignment(gain, maximize=True)] = True
        kept = chosen[row, column]
        lesion, answer, common, ratio = lesion[kept], answer[kept], common[kept], ratio[kept]
    found, dice, iou = np.zeros(len(sizes), dtype=bool), np.zeros(len(sizes)), np.zeros(len(sizes))
    found[lesion], iou[lesion] = True, ratio
    dice[lesion] = 2 * common / (sizes[lesion] + volumes[answer])
    return Lesions(sizes, found, dice, iou, len(volumes), len(volumes) - len(answer))


def _together(
    sizes: Array, volumes: Array, overlaps: tuple[Array, Array, Array], reach: tuple[Array, Array]
) -> Lesions:
    n = len(sizes)
    answered = np.bincount(reach[0], weights=volumes[reach[1]], minlength=n)
    common = np.bincount(overlaps[0], weights=overlaps[2], minlength=n)
    found = np.bincount(reach[0], minlength=n) > 0
    total = sizes + answered
    dice, iou = np.where(found, 2 * common / total, 0.0), np.where(found, common / (total - common), 0.0)
    return Lesions(sizes, found, dice, iou, len(volumes), len(volumes) - len(np.unique(reach[1])))
