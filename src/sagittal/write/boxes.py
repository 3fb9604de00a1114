"""Found boxes to files: COCO results JSON, and CSV in voxels and in mm."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.errors import ScopeError
from sagittal.prediction import Detections, Prediction
from sagittal.types import Floats
from sagittal.write.masks import write_json, write_text

COLUMNS = (
    "case", "box", "class", "score", "chosen",
    "i_low", "j_low", "k_low", "i_high", "j_high", "k_high",
    "x_mm", "y_mm", "z_mm", "i_mm", "j_mm", "k_mm",
)  # fmt: skip


def detections_of(prediction: Prediction, what: str) -> Detections:
    """The boxes of a prediction.

    Raises
    ------
    ScopeError
        If it found something else.
    """
    if not isinstance(prediction.finding, Detections):
        found = {"ClassScores": "classes", "Mask": "a mask"}.get(type(prediction.finding).__name__, "nothing")
        raise ScopeError(f"case {prediction.case}: {what} holds boxes, and this model finds {found}")
    return prediction.finding


def box_rows(prediction: Prediction) -> list[dict[str, Any]]:
    """A row for each box: class, score, its corners in voxel indices, and where it lies in the patient.

    Corners lie on the outer sides of voxels (the box around voxel 4 reaches from 3.5 to 4.5). ``x_mm, y_mm, z_mm`` is the
    middle in LPS+ mm, ``i_mm, j_mm, k_mm`` are the edge lengths along the voxel axes in mm; empty where the study has no
    position or no voxel size.
    """
    found = detections_of(prediction, "a table of boxes")
    edges = None if found.grid.spacing is None else np.asarray(found.grid.spacing, dtype=np.float64)
    rows = []
    for n, (corners, number) in enumerate(zip(found.boxes.corners, found.boxes.classes, strict=True)):
        row: dict[str, Any] = {
            "case": prediction.case,
            "box": n + 1,
            "class": prediction.scheme.classes[int(number)],
            "score": round(float(found.scores[n]), 6),
            "chosen": "yes" if found.chosen[n] else "no",
        }
        row |= dict(zip(COLUMNS[5:11], (round(float(v), 3) for v in corners.reshape(-1)), strict=True))
        middle = _place(found, corners.mean(axis=0))
        row |= dict(zip(COLUMNS[11:14], middle, strict=True))
        sizes = [None] * 3 if edges is None else [_finite(v) for v in (corners[1] - corners[0]) * edges]
        rows.append({**row, **dict(zip(COLUMNS[14:], sizes, strict=True))})
    return rows


def write_boxes_csv(predictions: Sequence[Prediction], path: Path) -> Path:
    """Write the boxes of some cases as one table, the surest of each case first. See :func:`box_rows`.

    Raises
    ------
    ResourceError
        If the disk refuses.
    """
    stream = io.StringIO()
    table = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    table.writeheader()
    for prediction in predictions:
        table.writerows(box_rows(prediction))
    write_text(stream.getvalue(), path)
    return path


def coco_results(prediction: Prediction, image_id: int | str) -> list[dict[str, Any]]:
    """The boxes of a picture as COCO's results format: ``image_id``, ``category_id``, ``bbox``, ``score``.

    ``bbox`` is x, y, width, height with the origin at the outer corner of the first pixel. Categories count from 1 in the
    order of the scheme. Of a volume, ``bbox`` has six numbers: x, y, z, width, height, depth, in voxels.
    """
    found = detections_of(prediction, "COCO results")
    flat = found.grid.dimensions == 2
    out = []
    for corners, number, score in zip(found.boxes.corners, found.boxes.classes, found.scores, strict=True):
        low, size = corners[0] + 0.5, corners[1] - corners[0]
        axes = 2 if flat else 3
        out.append(
            {
                "image_id": image_id,
                "category_id": int(number) + 1,
                "bbox": [round(float(v), 3) for v in (*low[:axes], *size[:axes])],
                "score": round(float(score), 6),
            }
        )
    return out


def write_coco(
    predictions: Sequence[Prediction], folder: Path, *, ids: Mapping[str, int | str] | None = None
) -> list[Path]:
    """Write ``detections.coco.json``, a list of results as pycocotools reads it, and ``detections.images.json``.

    All boxes are written, also those below the operating point, as curves need them. The second file names the image ids
    and categories.

    Parameters
    ----------
    predictions : sequence of Prediction
    folder : Path
    ids : mapping of case id to image id, optional
        Those of the data set's own annotations; else cases count from 1 in their order.

    Raises
    ------
    ScopeError
        If a prediction holds no boxes.
    ResourceError
        If the disk refuses.
    """
    numbers = {p.case: (ids or {}).get(p.case, n) for n, p in enumerate(predictions, start=1)}
    rows = [row for p in predictions for row in coco_results(p, numbers[p.case])]
    results, names = folder / "detections.coco.json", folder / "detections.images.json"
    write_json(rows, results)
    classes = predictions[0].scheme.classes if predictions else ()
    write_json(
        {
            "images": [
                {
                    "id": numbers[p.case],
                    "case": p.case,
                    "width": _grid(p)[0],
                    "height": _grid(p)[1],
                    "depth": _grid(p)[2],
                }
                for p in predictions
            ],
            "categories": [{"id": n, "name": name} for n, name in enumerate(classes, start=1)],
        },
        names,
    )
    return [results, names]


def write_boxes_json(prediction: Prediction, path: Path) -> Path:
    """Write the boxes of one case with everything that is known of them, as in the table.

    Raises
    ------
    ResourceError
        If the disk refuses.
    """
    found = detections_of(prediction, "JSON of boxes")
    values = {
        "case": prediction.case,
        "model": prediction.model,
        "shape": list(found.grid.shape),
        "affine_lps": None if found.grid.affine is None else np.asarray(found.grid.affine).tolist(),
        "boxes": [{k: v for k, v in row.items() if k != "case"} for row in box_rows(prediction)],
    }
    write_json(values, path)
    return path


def _grid(prediction: Prediction) -> tuple[int, int, int]:
    return detections_of(prediction, "COCO results").grid.shape


def _place(found: Detections, middle: Floats) -> list[float | None]:
    if found.grid.affine is None:
        return [None] * 3
    affine = np.asarray(found.grid.affine)
    return [round(float(v), 3) for v in affine[:3, :3] @ middle + affine[:3, 3]]


def _finite(value: float) -> float | None:
    return round(float(value), 3) if np.isfinite(value) else None
