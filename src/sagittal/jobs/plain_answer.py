"""An answer as plain values: what is kept in the database, shown on the pages and sent as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sagittal.grid import Grid
from sagittal.labels import ClassScores
from sagittal.prediction import Detections, Failure, Mask, Prediction
from sagittal.write.equipment import ModelFacts
from sagittal.write.masks import planes_of
from sagittal.write.measurements import Measured, measured_row
from sagittal.write.statement import Statement
from sagittal.write.terminology import Terminology

#: Boxes below the operating point that are kept for the page, the surest first.
MOST_BOXES = 50


def plain_answer(
    answer: Prediction | Failure, statement: Statement, measured: Sequence[Measured], facts: ModelFacts
) -> dict[str, Any]:
    """What a model says, without its masks.

    Returns
    -------
    dict
        ``state``: answered, abstained or refused; ``summary``: the finding in one line; ``confidence``: 0 to 1 or None;
        ``reason``; ``decision``; ``model``: name, version, checksum; and by what is found ``classes`` (name, probability,
        held), ``structures`` (name, index, colour, measurements), ``boxes`` (label, score, chosen, corners in voxels and
        in mm, slices), ``slices``: of the first image, where the finding shows best, from 0.
    """
    values: dict[str, Any] = {
        "state": statement.state,
        "summary": statement.summary,
        "confidence": finite(statement.confidence),
        "reason": statement.reason,
        "text": statement.text,
        "model": {"name": facts.name, "version": facts.version, "checksum": facts.checksum},
    }
    if isinstance(answer, Failure):
        return {**values, "kind": "refusal", "decision": []}
    values |= {
        "decision": list(answer.decision),
        "conformal": list(answer.conformal),
        "uncertainty": finite(answer.uncertainty),
        "gate": {
            "accepted": answer.verdict.accepted,
            "reason": answer.verdict.reason,
            "score": finite(answer.verdict.score),
        },
        "seconds": finite(answer.seconds),
        "made_at": answer.made_at,
    }
    found = answer.finding
    if isinstance(found, ClassScores):
        return {**values, "kind": "classes", "classes": _classes(answer)}
    values |= {"shape": list(found.grid.shape), "affine_lps": _affine(found.grid)}
    if isinstance(found, Detections):
        return {**values, "kind": "boxes", "boxes": _boxes(answer, found), "slices": _box_slices(found)}
    return {
        **values,
        "kind": "mask",
        "structures": _structures(found, measured),
        "slices": _mask_slices(found),
    }


def _classes(answer: Prediction) -> list[dict[str, Any]]:
    return [
        {"name": name, "probability": finite(float(p)), "held": name in answer.decision}
        for name, p in zip(answer.scheme.classes, answer.probability, strict=True)
    ]


def _boxes(answer: Prediction, found: Detections) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for n in range(len(found)):
        chosen = bool(found.chosen[n])
        if not chosen and len(rows) >= MOST_BOXES:
            continue
        corners = found.boxes.corners[n]
        first = int(np.clip(math.ceil(corners[0, 2]), 0, found.grid.shape[2] - 1))
        last = int(np.clip(math.floor(corners[1, 2]), first, found.grid.shape[2] - 1))
        rows.append(
            {
                "label": answer.scheme.classes[int(found.boxes.classes[n])],
                "score": round(float(found.scores[n]), 6),
                "chosen": chosen,
                "corners_voxels": np.round(corners, 3).tolist(),
                "corners_mm": _in_mm(found.grid, corners),
                "slices": [first, last],
            }
        )
    return rows


def _in_mm(grid: Grid, corners: np.ndarray[Any, Any]) -> list[list[float]] | None:
    """The eight corners of a box in LPS+ mm; of a tilted study its edges run along no axis of the patient."""
    if grid.affine is None:
        return None
    low, high = corners
    points = np.array([[(low, high)[n >> a & 1][a] for a in range(3)] for n in range(8)])
    affine = np.asarray(grid.affine)
    placed: list[list[float]] = np.round(points @ affine[:3, :3].T + affine[:3, 3], 3).tolist()
    return placed


def _structures(found: Mask, measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Each with the value that it has in the page's mask, its colour and its measurements."""
    names = [one.name for one in found.segmentation.structures]
    terms = Terminology().find_all(names)
    sizes = {one.name: one for one in measured}
    rows = []
    for index, (name, term) in enumerate(zip(names, terms, strict=True), start=1):
        row: dict[str, Any] = {"name": name, "index": index, "colour": "#{:02x}{:02x}{:02x}".format(*term.colour)}
        if name in sizes:
            own = measured_row(sizes[name])
            row["measurements"] = {key: value for key, value in own.items() if key not in {"case", "structure"}}
        rows.append(row)
    return rows


def _mask_slices(found: Mask) -> list[int]:
    """Of each structure that is there, the slice on which it is largest."""
    best: dict[int, tuple[int, int]] = {}
    for n, k, plane in planes_of(found):
        area = int(np.count_nonzero(plane))
        if area > best.get(n, (0, 0))[0]:
            best[n] = (area, k)
    return sorted({k for _, k in best.values()})


def _box_slices(found: Detections) -> list[int]:
    chosen = found.boxes.corners[np.asarray(found.chosen)]
    middles = {int(np.clip(round(float(c[:, 2].mean())), 0, found.grid.shape[2] - 1)) for c in chosen}
    return sorted(middles)


def _affine(grid: Grid) -> list[list[float]] | None:
    if grid.affine is None:
        return None
    rows: list[list[float]] = np.asarray(grid.affine).tolist()
    return rows


def finite(value: float) -> float | None:
    """A number as JSON can hold it."""
    return float(value) if math.isfinite(value) else None
