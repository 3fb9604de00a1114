"""Predictions as a table: CSV, Parquet, JSON or JSON lines, one row a study."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sagittal.errors import ConfigError, ResourceError, nearest
from sagittal.prediction import Failure, Prediction

TABLES = (".csv", ".tsv", ".parquet", ".json", ".jsonl")


def prediction_row(answer: Prediction | Failure) -> dict[str, Any]:
    """One row: the answer, or what went wrong.

    ``status`` is ``ok``, ``abstained`` where the gate refused the study, or ``failed``. Probabilities stand under
    ``p_CLASS``; several decisions or classes are joined by ``|`` in tables and stay lists in JSON.
    """
    if isinstance(answer, Failure):
        return {"case": answer.case, "status": "failed", "error": answer.error, "error_kind": answer.kind}
    probabilities = {f"p_{name}": _number(p) for name, p in zip(answer.scheme.classes, answer.probability, strict=True)}
    return {
        "case": answer.case,
        "status": "ok" if answer.verdict.accepted else "abstained",
        "decision": list(answer.decision),
        **probabilities,
        "conformal_set": list(answer.conformal),
        "uncertainty": _number(answer.uncertainty),
        "gate_reason": answer.verdict.reason,
        "gate_score": _number(answer.verdict.score),
        "model": answer.model,
        "made_at": answer.made_at,
        "seconds": _number(answer.seconds),
    }


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
    check_table(path)
    rows = [prediction_row(answer) for answer in answers]
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
