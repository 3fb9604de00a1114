"""The evidence row of a case with boxes, and the boxes of many rows as one set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sagittal.case import Case
from sagittal.errors import DataError
from sagittal.grid import Grid
from sagittal.labels import LabelScheme
from sagittal.metrics.boxes import DetectionSet, gather
from sagittal.prediction import Detections, Prediction
from sagittal.prepare.truth_maps import object_boxes
from sagittal.tasks.detect_settle import HitRule, common_spacing, edges_mm
from sagittal.truth import Boxes
from sagittal.types import Array, Bools

if TYPE_CHECKING:
    import pandas as pd


def true_boxes(case: Case, scheme: LabelScheme, grid: Grid) -> tuple[Boxes | None, int]:
    """The objects of a case that can be found, cut at the edge of the image, and how many were left out.

    Boxes without extent and those wholly outside enclose nothing; they are left out, as in training. ``None`` where
    nothing is known of the case.

    Raises
    ------
    ReadError, DataError, GeometryError
        As :func:`sagittal.prepare.truth_maps.object_boxes`.
    """
    if case.truth is None:
        return None, 0
    boxes = object_boxes(case, scheme, grid)
    edge = np.asarray(grid.shape) - 0.5
    corners = np.clip(boxes.corners, -0.5, edge)
    flat = grid.dimensions == 2
    real = (corners[:, 1] > corners[:, 0])[:, : 2 if flat else 3].all(axis=1) & (boxes.sizes > 0).all(axis=1)
    if flat:
        corners[:, 0, 2], corners[:, 1, 2] = -0.5, 0.5
    crowd = np.asarray(boxes.crowd)
    return Boxes(corners[real], boxes.classes[real], crowd[real]), int((~real).sum())


def score_row(prediction: Prediction, case: Case, scheme: LabelScheme, rule: HitRule) -> dict[str, Any]:
    """The evidence row of a case.

    ``case``, ``patient``; ``truth`` and ``decision``: classes that are there and that were found, joined by a comma,
    ``None`` where unknown or refused; at the operating point ``n_truth``, ``n_found``, ``n_hit`` (objects found),
    ``false_positives``; ``left_out`` (true boxes that enclose nothing); ``max_score``; ``boxes_found`` and ``boxes_truth``
    as JSON lists of ``low``, ``high`` (voxel indices), ``class`` and ``score``, ``chosen`` or ``crowd``; ``spacing_mm``;
    ``accepted``, ``reason``, ``seconds``.

    Raises
    ------
    DataError
        If the answer holds no boxes.
    """
    finding = prediction.finding
    if not isinstance(finding, Detections):
        raise DataError(f"case {case.id}: boxes are expected of detection, not a {type(finding).__name__}")
    truth, left_out = true_boxes(case, scheme, finding.grid)
    classes = scheme.classes
    accepted = prediction.verdict.accepted
    answered = bool(prediction.decision) or accepted
    spacing = edges_mm(finding.grid)
    row: dict[str, Any] = {
        "case": case.id,
        "patient": case.patient,
        "truth": None if truth is None else _named(truth.classes[~np.asarray(truth.crowd)], classes),
        "decision": ", ".join(prediction.decision) if answered else None,
        "n_truth": None,
        "n_found": int(finding.chosen.sum()),
        "n_hit": None,
        "false_positives": None,
        "left_out": left_out,
        "max_score": float(finding.scores.max(initial=0.0)),
    }
    if truth is not None:
        chosen = finding.chosen
        boxes = gather(
            [(_part(finding.boxes, chosen), finding.scores[chosen])],
            [truth],
            classes=len(classes),
            spacing=common_spacing([spacing]),
        )
        hits = rule.hits(boxes)
        row["n_truth"] = len(hits.object_score)
        row["n_hit"] = int(np.isfinite(hits.object_score).sum())
        row["false_positives"] = len(hits.false_score)
    row["boxes_found"] = _found_json(finding, classes)
    row["boxes_truth"] = None if truth is None else _truth_json(truth, classes)
    row["spacing_mm"] = None if spacing is None else json.dumps([round(v, 6) for v in spacing])
    row["accepted"] = bool(accepted)
    row["reason"] = prediction.verdict.reason
    row["seconds"] = float(prediction.seconds)
    return row


def _named(labels: Array, classes: Sequence[str]) -> str:
    present = set(labels.tolist())
    return ", ".join(name for number, name in enumerate(classes) if number in present)


def _part(boxes: Boxes, chosen: Bools) -> Boxes:
    return Boxes(boxes.corners[chosen], boxes.classes[chosen], np.asarray(boxes.crowd)[chosen])


def _ends(corners: Array) -> dict[str, list[float]]:
    low, high = np.round(corners, 3).tolist()
    return {"low": low, "high": high}


def _found_json(finding: Detections, classes: Sequence[str]) -> str:
    parts = zip(finding.boxes.corners, finding.boxes.classes, finding.scores, finding.chosen, strict=True)
    return json.dumps(
        [
            {**_ends(corners), "class": classes[label], "score": float(score), "chosen": bool(chosen)}
            for corners, label, score, chosen in parts
        ]
    )


def _truth_json(truth: Boxes, classes: Sequence[str]) -> str:
    parts = zip(truth.corners, truth.classes, np.asarray(truth.crowd), strict=True)
    return json.dumps(
        [{**_ends(corners), "class": classes[label], "crowd": bool(crowd)} for corners, label, crowd in parts]
    )


@dataclass(frozen=True, eq=False)
class BoxRows:
    """The rows of known cases as one set of boxes.

    Parameters
    ----------
    boxes : DetectionSet
        In mm where every row has a spacing, else in voxels.
    chosen : (D,) bool
        Predicted boxes at or above the operating point.
    patients : (images,) str
    in_mm : bool
    """

    boxes: DetectionSet
    chosen: Bools
    patients: Array
    in_mm: bool

    @classmethod
    def read(cls, rows: pd.DataFrame, scheme: LabelScheme) -> BoxRows:
        """The set that rows of :func:`score_row` describe; rows without truth are left out.

        Raises
        ------
        DataError
            If a row names a class that the scheme lacks, or a column is missing.
        """
        for name in ("boxes_found", "boxes_truth", "patient"):
            if len(rows) and name not in rows:
                raise DataError(
                    f"evidence rows of detection have no column '{name}'; they come from the task's score()"
                )
        number = {name: n for n, name in enumerate(scheme.classes)}
        pred, truth, chosen, spacing, patients = [], [], [], [], []
        for position in range(len(rows)):
            row = rows.iloc[position]
            if not isinstance(row["boxes_truth"], str):
                continue
            found, true = json.loads(row["boxes_found"]), json.loads(row["boxes_truth"])
            pred.append((_boxes(found, number), np.array([one["score"] for one in found], dtype=np.float64)))
            truth.append(_boxes(true, number))
            chosen += [bool(one["chosen"]) for one in found]
            text = row.get("spacing_mm")
            spacing.append(json.loads(text) if isinstance(text, str) else None)
            patients.append(row["patient"])
        edges = common_spacing(spacing)
        boxes = gather(pred, truth, classes=len(scheme.classes), spacing=edges)
        return cls(boxes, np.array(chosen, dtype=bool), np.array(patients, dtype=object), edges is not None)


def _boxes(values: Sequence[dict[str, Any]], number: dict[str, int]) -> Boxes:
    for one in values:
        if one["class"] not in number:
            raise DataError(f"an evidence row names the class '{one['class']}'; the scheme has {', '.join(number)}")
    return Boxes(
        np.array([[one["low"], one["high"]] for one in values], dtype=np.float64).reshape(-1, 2, 3),
        np.array([number[one["class"]] for one in values], dtype=np.int64),
        np.array([one.get("crowd", False) for one in values], dtype=bool),
    )
