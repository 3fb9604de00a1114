"""Rows of segmentation evidence: what an answer is worth in one case, structure by structure.

Columns of a structure end in its name, ``dice_liver``. What cannot be measured is nan: a structure that nobody looked for in
this case (the case counts as unknown for it), an overlap of two empty masks, a share without a denominator. A distance to
an empty mask is infinite. ``empty_NAME`` says which masks are empty.

Distances are mm where the study says how large its voxels are, else pixels of the picture; ``unit`` says which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from sagittal.case import Case
from sagittal.errors import DataError
from sagittal.grid import Grid
from sagittal.labels import LabelScheme
from sagittal.metrics.lesions import find_lesions
from sagittal.metrics.overlap import cldice, overlap
from sagittal.metrics.surface import surface_distances
from sagittal.prediction import Mask, Prediction
from sagittal.tasks.outlines import cut, find_boxes, thick, true_segmentation, union
from sagittal.tasks.segment_measures import summarise_rows
from sagittal.tasks.segment_picture import figure
from sagittal.types import Bools, Floats

#: Measures of a structure that are nan where it is unknown.
MEASURES = (
    "dice",
    "iou",
    "sensitivity",
    "precision",
    "surface_dice",
    "hd95",
    "hd",
    "asd",
    "cldice",
    "voxels_truth",
    "voxels_answer",
    "voxels_known",
    "volume_truth_ml",
    "volume_ml",
    "volume_error_ml",
    "volume_error_percent",
    "lesions_truth",
    "lesions_found",
    "lesions_answer",
    "lesions_false",
    "lesions_dice",
)

#: A true structure is thin where its largest piece is longer than this many times its voxels over their outer faces, in a
#: picture and in a volume: a disc has 7, a straight vessel of 25 diameters 50; a ball has 16, a hippocampus up to 60, a
#: straight vessel of 25 diameters 125, a tree several hundred.
THIN = {2: 50.0, 3: 100.0}

#: Boxes with more voxels than this are too large for skeletons and for the numbering of their pieces.
MOST_VOXELS = 60_000_000


class Outlines(Protocol):
    """What is needed of a segmentation task."""

    @property
    def scheme(self) -> LabelScheme:
        """Its structures."""
        ...

    @property
    def tolerance_mm(self) -> float:
        """Of the surface Dice."""
        ...


def score_row(task: Outlines, prediction: Prediction, case: Case) -> dict[str, Any]:
    """The evidence row of a case.

    ``case``, ``patient``; ``truth`` and ``decision`` (the structures that are there, joined by a comma; ``None`` where
    unknown or undecided); ``mean_dice`` over the known structures; ``unit`` of distances; for each structure the
    columns of :data:`MEASURES`, ``empty_NAME`` (``"both"``, ``"truth"``, ``"answer"`` or nothing) and
    ``expected_dice_NAME``; ``uncertainty``, ``accepted``, ``reason``, ``seconds``.

    Voxels of which nothing is known are left out on both sides. A truth on another grid than the study is brought to it
    by its position. ``clDice`` is measured where the true structure is thin.

    Raises
    ------
    DataError
        If the prediction holds no mask, or lacks a structure.
    GeometryError, ReadError
        If the truth cannot be read or brought to the study's grid.
    """
    finding = prediction.finding
    if not isinstance(finding, Mask):
        raise DataError(f"case {case.id}: a mask is expected to be scored, not {type(finding).__name__}")
    classes = task.scheme.classes
    row: dict[str, Any] = {"case": case.id, "patient": case.patient}
    truth = true_segmentation(case, task.scheme, finding.grid)
    spacing, unit = lengths(finding.grid)
    row |= {"truth": None, "decision": None, "mean_dice": math.nan, "unit": unit}
    if prediction.decision or prediction.verdict.accepted:
        row["decision"] = ", ".join(prediction.decision)
    known = {} if truth is None else {structure.name for structure in truth.structures}
    hidden = None if truth is None or truth.ignore is None else truth.unknown
    boxes = [{} if one is None else find_boxes(one) for one in (finding.segmentation, truth)]
    voxels = math.prod(finding.grid.shape) - (0 if hidden is None else int(np.count_nonzero(hidden)))
    there = []
    for name in classes:
        found: Mapping[str, Any] = dict.fromkeys(MEASURES, math.nan) | {"empty": ""}
        if truth is not None and name in known:
            box = thick(union(boxes[0].get(name), boxes[1].get(name)), finding.grid)
            rest = None if hidden is None else hidden[box]
            pred, true = (cut(one, name, box, rest) for one in (finding.segmentation, truth))
            found = measure(pred, true, spacing, task.tolerance_mm, volume=unit == "mm")
            found = {**found, "voxels_known": float(voxels)}
            if found["voxels_truth"]:
                there.append(name)
        row |= {f"{measured}_{name}": value for measured, value in found.items()}
        row[f"expected_dice_{name}"] = float(finding.expected_dice.get(name, math.nan))
    if known:
        row["truth"] = ", ".join(there)
    dices = np.array([row[f"dice_{name}"] for name in classes], dtype=np.float64)
    if np.isfinite(dices).any():
        row["mean_dice"] = float(np.nanmean(dices))
    row["uncertainty"] = float(prediction.uncertainty)
    row["accepted"] = bool(prediction.verdict.accepted)
    row["reason"] = prediction.verdict.reason
    row["seconds"] = float(prediction.seconds)
    return row


def measure(pred: Bools, truth: Bools, spacing: Floats, tolerance: float, *, volume: bool = True) -> dict[str, Any]:
    """The measures of one structure by their names in :data:`MEASURES`, and ``empty``.

    Parameters
    ----------
    pred, truth : (I, J, K) bool
        Cut to a box that holds both.
    spacing : (3,) float
    tolerance : float
        Of the surface Dice, in the unit of the spacing.
    volume : bool
        Whether the spacing is in mm; a picture has no volume either way.

    Examples
    --------
    >>> pred, truth = np.zeros((2, 9, 9, 9), dtype=bool)
    >>> pred[2:6, 2:6, 2:6] = truth[2:6, 2:6, 2:8] = True
    >>> found = measure(pred, truth, np.array([1.0, 1.0, 2.5]), 1.0)
    >>> found["dice"], found["hd95"], found["volume_error_percent"]
    (0.8, 5.0, -33.333333333333336)
    """
    counts = overlap(pred, truth)
    answered, true = counts.both + counts.only_pred, counts.both + counts.only_truth
    out: dict[str, Any] = dict.fromkeys(MEASURES, math.nan)
    out |= {"dice": counts.dice, "iou": counts.iou, "sensitivity": counts.sensitivity, "precision": counts.precision}
    distances = surface_distances(pred, truth, spacing)
    out |= {"surface_dice": distances.surface_dice(tolerance), "hd95": distances.hd(95), "hd": distances.hd()}
    out["asd"] = distances.assd()
    out |= {"voxels_truth": float(true), "voxels_answer": float(answered)}
    if volume and np.isfinite(spacing).all():
        ml = float(np.prod(spacing)) / 1000
        out |= {"volume_truth_ml": true * ml, "volume_ml": answered * ml, "volume_error_ml": (answered - true) * ml}
    if true:
        out["volume_error_percent"] = 100 * (answered - true) / true
    if pred.size <= MOST_VOXELS:
        found = find_lesions(pred, truth)
        out |= {
            "lesions_truth": float(len(found)),
            "lesions_found": float(found.true_positives),
            "lesions_answer": float(found.predicted),
            "lesions_false": float(found.false_positives),
            "lesions_dice": float(found.dice.sum()),
        }
        if is_thin(truth):
            out["cldice"] = cldice(pred, truth)
    out["empty"] = {(True, True): "", (False, False): "both", (False, True): "answer", (True, False): "truth"}[
        answered > 0, true > 0
    ]
    return out


def lengths(grid: Grid) -> tuple[Floats, str]:
    """Edge lengths of the voxels and their unit: ``mm``, or ``px`` where the study does not say how large they are.

    A single plane of unknown thickness has nan as its third length, and no volume.
    """
    if grid.spacing is None:
        return np.ones(3), "px"
    spacing = np.asarray(grid.spacing, dtype=np.float64)
    needed = spacing[: grid.dimensions]
    if not np.isfinite(needed).all():
        return np.ones(3), "px"
    return spacing, "mm"


def is_thin(mask: Bools) -> bool:
    """Whether a structure is a thin tree such as vessels, so that the overlap of its centre lines says something.

    By the largest piece: the diagonal of its box in voxels over its voxels per face on the outside.

    >>> ball, line = np.zeros((2, 60, 60, 60), dtype=bool)
    >>> ball[10:50, 10:50, 10:50] = line[:, 30:32, 30:32] = True
    >>> is_thin(ball), is_thin(line)
    (False, True)
    """
    from scipy import ndimage

    if not mask.any():
        return False
    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if count > 1:
        largest = int(np.argmax(np.bincount(labels.reshape(-1))[1:])) + 1
        mask = labels[ndimage.find_objects(labels)[largest - 1]] == largest
    axes = [axis for axis in range(3) if mask.shape[axis] > 1 or axis < 2]
    faces = sum(
        int(np.count_nonzero(np.diff(mask, axis=axis)))
        + int(np.count_nonzero(mask.take(0, axis=axis)))
        + int(np.count_nonzero(mask.take(-1, axis=axis)))
        for axis in axes
    )
    diagonal = float(np.linalg.norm([mask.shape[axis] for axis in axes]))
    return diagonal * faces / int(np.count_nonzero(mask)) > THIN[len(axes)]


__all__ = ["MEASURES", "figure", "measure", "score_row", "summarise_rows"]
