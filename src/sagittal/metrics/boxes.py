"""Predicted and true boxes of many images in flat arrays, and how far two boxes cover each other.

A box is a pair of corners along (i, j, k), as in :class:`sagittal.truth.Boxes`: in voxels, or in mm along the grid's axes.
Intersection over union is the same in both, since each axis is scaled by itself. A box of a picture is one pixel thick, so
that its volume is its area.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sagittal.errors import DataError, GeometryError
from sagittal.truth import Boxes
from sagittal.types import Array, Bools, Floats

#: Pairs of boxes compared at once: some arrays of 16 MB.
_PAIRS = 500_000


def box_volume(corners: Floats) -> Floats:
    """Volume of boxes (..., 2, 3), in the cube of their unit; the area for a picture; 0 for degenerate ones.

    >>> float(box_volume(np.array([[3.5, 6.5, -0.5], [5.5, 9.5, 0.5]])))
    6.0
    """
    corners = np.asarray(corners, dtype=np.float64)
    return np.asarray(np.clip(corners[..., 1, :] - corners[..., 0, :], 0, None).prod(axis=-1))


def box_iou(pred: Floats, truth: Floats, crowd: Bools | None = None) -> Floats:
    """Intersection over union of boxes, one by one, 0..1.

    Parameters
    ----------
    pred, truth : (..., 2, 3) float
        Their leading axes broadcast: ``box_iou(pred[:, None], truth)`` compares all with all.
    crowd : (...) bool, optional
        Where the truth is a crowd, the union is the predicted box alone, as COCO has it.

    Returns
    -------
    (...) float64
        0 for degenerate boxes.

    Examples
    --------
    >>> first = np.array([[-0.5, -0.5, -0.5], [3.5, 1.5, 0.5]])
    >>> float(box_iou(first, first + [2, 0, 0]))  # 2 x 2 of 12 pixels
    0.3333333333333333
    """
    pred, truth = np.asarray(pred, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    low, high = np.maximum(pred[..., 0, :], truth[..., 0, :]), np.minimum(pred[..., 1, :], truth[..., 1, :])
    common = np.clip(high - low, 0, None).prod(axis=-1)
    own = box_volume(pred)
    union = own + box_volume(truth) - common
    if crowd is not None:
        union = np.where(crowd, own, union)
    return np.where(common > 0, common / np.where(common > 0, union, 1), 0.0)


@dataclass(frozen=True, eq=False)
class DetectionSet:
    """What was predicted and what is true, over many images; made by :func:`gather`.

    Parameters
    ----------
    images, classes : int
        How many there are; images and classes are numbers from 0.
    pred_image, pred_class : (D,) int
    pred_corners : (D, 2, 3) float
    pred_score : (D,) float
        The higher the surer.
    truth_image, truth_class : (N,) int
    truth_corners : (N, 2, 3) float
    truth_crowd : (N,) bool
        Objects that count neither as found nor as missed.
    truth_area : (N,) float
        What the ranges of size compare: the volume of the box unless the source gives another, such as COCO's area of the
        outline.
    """

    images: int
    classes: int
    pred_image: Array
    pred_class: Array
    pred_corners: Floats
    pred_score: Floats
    truth_image: Array
    truth_class: Array
    truth_corners: Floats
    truth_crowd: Bools
    truth_area: Floats

    @property
    def truth_edge(self) -> Floats:
        """Longest edge of each true box, in the unit of its corners: the diameter of a round object."""
        return np.asarray((self.truth_corners[:, 1] - self.truth_corners[:, 0]).max(axis=1, initial=-np.inf))

    def image_scores(self) -> Floats:
        """Highest score of each class in each image, (images, classes): whether there is one at all.

        0 where nothing was predicted, which is below every confidence. ``sagittal.metrics.ranking`` measures them.
        """
        out = np.full((self.images, self.classes), -np.inf)
        np.maximum.at(out, (self.pred_image, self.pred_class), self.pred_score)
        return np.where(np.isfinite(out), out, 0.0)

    def image_truth(self) -> Floats:
        """Whether each image holds an object of each class, (images, classes) of 0 and 1; nan where only a crowd is."""
        count, crowds = (np.zeros((self.images, self.classes)) for _ in range(2))
        np.add.at(count, (self.truth_image, self.truth_class), ~self.truth_crowd)
        np.add.at(crowds, (self.truth_image, self.truth_class), self.truth_crowd)
        return np.where(count > 0, 1.0, np.where(crowds > 0, np.nan, 0.0))

    def pairs(self) -> Iterator[tuple[Array, Array]]:
        """Every predicted and true box of the same image and class, as (P,) indices of each, in parts."""
        group = self.truth_image * self.classes + self.truth_class
        order = np.argsort(group, kind="stable")
        wanted = self.pred_image * self.classes + self.pred_class
        first = np.searchsorted(group[order], wanted, side="left")
        count = np.searchsorted(group[order], wanted, side="right") - first
        used = np.flatnonzero(count)
        ends = np.cumsum(count[used])
        start = 0
        while start < len(used):
            done = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS)))
            n = count[used[start:stop]]
            pred = np.repeat(used[start:stop], n)
            step = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
            yield pred, order[np.repeat(first[used[start:stop]], n) + step]
            start = stop


def gather(
    pred: Sequence[tuple[Boxes, Array]],
    truth: Sequence[Boxes],
    *,
    classes: int,
    spacing: Any = None,
    area: Sequence[Array] | None = None,
) -> DetectionSet:
    """Put the boxes of many images into one set.

    Parameters
    ----------
    pred : sequence of (Boxes, (D,) float)
        For each image, what was predicted and how sure it is.
    truth : sequence of Boxes
        For each image, in the same order; an image without objects has empty ones.
    classes : int
    spacing : (images, 3) float, mm, optional
        Voxel edge lengths of each image: sizes are then in mm.
    area : sequence of (N,) float, optional
        Size of each true object, where it is not that of its box.

    Raises
    ------
    DataError
        If lists differ in length, a score or corner is not finite, or a class is not one of the set's.
    GeometryError
        If boxes are in mm of the patient, or the spacing does not fit.

    Examples
    --------
    >>> box = [[[9.5, 9.5, -0.5], [19.5, 19.5, 0.5]]]
    >>> found = gather([(Boxes(box, [0]), np.array([0.9]))], [Boxes(box, [0])], classes=1)
    >>> found.image_scores().tolist(), found.truth_area.tolist()
    ([[0.9]], [100.0])
    """
    if len(pred) != len(truth):
        raise DataError(
            f"{len(pred)} images were predicted, but {len(truth)} have truth: give one of each, in one order"
        )
    if area is not None and [len(a) for a in area] != [len(boxes) for boxes in truth]:
        raise DataError("area holds one number for each true box of each image")
    found = [boxes for boxes, _ in pred]
    for n, (boxes, scores) in enumerate(pred):
        if len(boxes) != len(np.atleast_1d(scores)):
            raise DataError(f"image {n}: {len(boxes)} boxes were predicted, but {np.size(scores)} scores")
    pred_image, truth_image = (np.repeat(np.arange(len(b)), [len(x) for x in b]) for b in (found, truth))
    pred_corners, truth_corners = _corners(found, "predicted"), _corners(truth, "true")
    if spacing is not None:
        edges = np.asarray(spacing, dtype=np.float64)
        if edges.shape != (len(truth), 3) or not (np.isfinite(edges).all() and (edges > 0).all()):
            raise GeometryError(
                f"spacing holds three positive lengths for each of {len(truth)} images, not {edges.shape}"
            )
        pred_corners = pred_corners * edges[pred_image, None]
        truth_corners = truth_corners * edges[truth_image, None]
    return DetectionSet(
        images=len(truth),
        classes=classes,
        pred_image=pred_image,
        pred_class=_classes(found, classes),
        pred_corners=pred_corners,
        pred_score=_finite("score", [np.ravel(scores) for _, scores in pred]),
        truth_image=truth_image,
        truth_class=_classes(truth, classes),
        truth_corners=truth_corners,
        truth_crowd=np.concatenate(
            [np.zeros(0, dtype=bool), *(np.asarray(boxes.crowd, dtype=bool) for boxes in truth)]
        ),
        truth_area=box_volume(truth_corners) if area is None else _finite("area", [np.ravel(a) for a in area]),
    )


def _corners(boxes: Sequence[Boxes], which: str) -> Floats:
    for n, some in enumerate(boxes):
        if some.frame != "voxel":
            raise GeometryError(f"image {n}: {which} boxes are in mm of the patient: give boxes.on(grid) of the image")
    return _finite(f"corner of the {which} boxes", [some.corners for some in boxes]).reshape(-1, 2, 3)


def _classes(boxes: Sequence[Boxes], classes: int) -> Array:
    out = np.concatenate([np.zeros(0, dtype=np.int64), *(some.classes for some in boxes)])
    wrong = (out < 0) | (out >= classes)
    if wrong.any():
        raise DataError(f"class {int(out[wrong][0])} is not one of the {classes} classes of the set")
    return out


def _finite(name: str, parts: Sequence[Array]) -> Floats:
    out = np.concatenate([np.zeros(0), *(np.asarray(part, dtype=np.float64).ravel() for part in parts)])
    wrong = int((~np.isfinite(out)).sum())
    if wrong:
        raise DataError(f"{wrong} values are not finite numbers: {name}")
    return out
