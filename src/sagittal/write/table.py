"""Predictions as a table: CSV, Parquet, JSON or JSON lines, one row a study."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.errors import ConfigError, ResourceError, nearest
from sagittal.grid import Grid
from sagittal.prediction import Detections, Failure, Mask, Prediction
from sagittal.types import Array

TABLES = (".csv", ".tsv", ".parquet", ".json", ".jsonl")


def prediction_row(answer: Prediction | Failure) -> dict[str, Any]:
    """One row: the answer, or what went wrong.

    ``status`` is ``ok``, ``abstained`` where the gate refused the study, or ``failed``. Probabilities stand under
    ``p_CLASS``; several decisions or classes are joined by ``|`` in tables and stay lists in JSON. Of a mask there are
    ``voxels_STRUCTURE``, ``ml_STRUCTURE`` where voxels have a size, and ``expected_dice_STRUCTURE`` where the model says
    one; of boxes ``n_CLASS``, how many were chosen, and ``top_CLASS``, the highest score of all.
    """
    if isinstance(answer, Failure):
        return {"case": answer.case, "status": "failed", "error": answer.error, "error_kind": answer.kind}
    return {
        "case": answer.case,
        "status": "ok" if answer.verdict.accepted else "abstained",
        "decision": list(answer.decision),
        **_found(answer),
        "conformal_set": list(answer.conformal),
        "uncertainty": _number(answer.uncertainty),
        "gate_reason": answer.verdict.reason,
        "gate_score": _number(answer.verdict.score),
        "model": answer.model,
        "made_at": answer.made_at,
        "seconds": _number(answer.seconds),
    }


def _found(answer: Prediction) -> dict[str, Any]:
    """What was found, in columns that all cases of a model share."""
    found = answer.finding
    if isinstance(found, Mask):
        return _structures(found)
    if isinstance(found, Detections):
        row: dict[str, Any] = {}
        for number, name in enumerate(answer.scheme.classes):
            own = found.boxes.classes == number
            row[f"n_{name}"] = int((own & found.chosen).sum())
            row[f"top_{name}"] = float(found.scores[own].max()) if own.any() else None
        return row
    return {f"p_{name}": _number(p) for name, p in zip(answer.scheme.classes, answer.probability, strict=True)}


def _structures(found: Mask) -> dict[str, Any]:
    """Size of each structure; voxels of a layer are counted once for all structures in it."""
    counts = [_occurring(layer) for layer in found.segmentation.layers]
    size = _voxel_ml(found.grid)
    row: dict[str, Any] = {}
    for one in found.segmentation.structures:
        voxels = sum(counts[one.layer].get(value, 0) for value in set(one.values))
        row[f"voxels_{one.name}"] = voxels
        if math.isfinite(size):
            row[f"ml_{one.name}"] = round(voxels * size, 6)
        if one.name in found.expected_dice:
            row[f"expected_dice_{one.name}"] = _number(found.expected_dice[one.name])
    return row


def _voxel_ml(grid: Grid) -> float:
    """Volume of a voxel, ml; nan of a picture and where no size is known."""
    if grid.dimensions == 2:
        return math.nan
    if grid.affine is not None:
        return abs(float(np.linalg.det(np.asarray(grid.affine)[:3, :3]))) / 1000
    return math.nan if grid.spacing is None else float(np.prod(np.asarray(grid.spacing))) / 1000


def _occurring(layer: Array) -> dict[int, int]:
    """How often each value occurs, slice by slice, as counting takes eight bytes a voxel."""
    total: dict[int, int] = {}
    for k in range(layer.shape[2]):
        values, counts = np.unique(layer[:, :, k], return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            total[value] = total.get(value, 0) + count
    return total


def check_table(path: Path) -> None:
    """Refuse a name that says no format.

    Raises
    ------
    ConfigError
    """
    if path.suffix.lower() not in TABLES:
        raise ConfigError(
            f"{path.name}: the ending '{path.suffix}' is no table that can be written. {nearest(path.suffix, TABLES)}"
        )


def write_predictions(answers: Sequence[Prediction | Failure], path: Path) -> None:
    """Write a table in the format that the ending of its name says.

    The file appears whole or not at all.

    Raises
    ------
    ConfigError
        If the ending is not known.
    ResourceError
        If the disk refuses.
    """
    write_rows([prediction_row(answer) for answer in answers], path)


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write rows of :func:`prediction_row`, as :func:`write_predictions` does.

    Raises
    ------
    ConfigError, ResourceError
        As there.
    """
    check_table(path)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(rows, part, path.suffix.lower())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise ResourceError(
            f"{path}: cannot be written: {error.strerror or error}. Write elsewhere with -o."
        ) from error


def _write(rows: Sequence[dict[str, Any]], path: Path, kind: str) -> None:
    if kind == ".json":
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    elif kind == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        import pandas as pd

        frame = pd.DataFrame(
            [{key: _flat(value) for key, value in row.items()} for row in rows], columns=_columns(rows)
        )
        if kind == ".parquet":
            frame.to_parquet(path, index=False)
        else:
            frame.to_csv(path, index=False, sep="\t" if kind == ".tsv" else ",", lineterminator="\n")


def _columns(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Columns of all rows in the order of a full one; those of failures come last."""
    good = [row for row in rows if row["status"] != "failed"] or [{"case": "", "status": ""}]
    names = dict.fromkeys([*good[0], *(key for row in good for key in row), "error", "error_kind"])
    return list(names)


def _flat(value: Any) -> Any:
    return "|".join(value) if isinstance(value, list) else value


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
