"""A result as plain JSON, for programs of the house: what was found, how sure, of which images, by which model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sagittal.prediction import Detections, Failure, Prediction
from sagittal.write.boxes import box_rows
from sagittal.write.equipment import MANUFACTURER, Stamp
from sagittal.write.fhir import MadeObject
from sagittal.write.measurements import Measured, measured_row
from sagittal.write.sources import Source
from sagittal.write.statement import Statement

FORMAT = "sagittal-result"
VERSION = 1


def make_json(
    answer: Prediction | Failure,
    source: Source | None,
    statement: Statement,
    stamp: Stamp,
    measured: Sequence[Measured] = (),
    made: Sequence[MadeObject] = (),
) -> dict[str, Any]:
    """The result as plain values; numbers are finite, what is not known is ``None``.

    ``format``, ``version``; ``state`` (answered, abstained, refused), ``summary``, ``confidence``, ``reason``, ``notice``;
    ``findings``: a row a class, structure or kind of object; ``boxes`` and ``structures`` in full; ``not_excluded``;
    ``model``; ``study`` by UIDs; ``objects``: the DICOM objects of the same result. It names the study by UID and holds
    nothing else of the patient.
    """
    from sagittal import __version__

    facts = stamp.model
    answered = isinstance(answer, Prediction) and statement.state == "answered"
    values: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "id": stamp.uid("json/result"),
        "made_at": stamp.made_at.isoformat(timespec="seconds"),
        "made_by": "algorithm",
        "state": statement.state,
        "summary": statement.summary,
        "confidence": _finite(statement.confidence),
        "confidence_words": statement.confidence_words,
        "reason": statement.reason,
        "notice": statement.notice,
        "findings": [
            {
                "name": one.name,
                "held": one.held,
                "probability": _finite(one.probability),
                "count": one.count,
                "size": _finite(one.size),
                "unit": one.unit,
                "words": one.words,
            }
            for one in statement.lines
        ],
        "not_excluded": list(answer.conformal) if answered and isinstance(answer, Prediction) else [],
        "model": {
            "name": facts.name,
            "version": facts.version,
            "sha256": facts.checksum,
            "question": facts.question,
            "intended_use": dict(facts.intended_use),
        },
        "software": f"{MANUFACTURER} {__version__}",
        "study": None if source is None else _study(source),
        "objects": [
            {
                "modality": one.modality,
                "sop_class_uid": one.sop_class,
                "sop_instance_uid": one.sop_instance,
                "series_instance_uid": one.series,
            }
            for one in made
        ],
    }
    if isinstance(answer, Prediction):
        values["likeness"] = {
            "accepted": answer.verdict.accepted,
            "score": _finite(answer.verdict.score),
            "reason": answer.verdict.reason,
        }
    if answered and isinstance(answer, Prediction) and isinstance(answer.finding, Detections):
        values["boxes"] = [{k: v for k, v in row.items() if k != "case"} for row in box_rows(answer)]
    if answered and measured:
        values["structures"] = [{k: v for k, v in measured_row(row).items() if k != "case"} for row in measured]
    return _plain(values)  # type: ignore[no-any-return]


def _study(source: Source) -> dict[str, Any]:
    return {
        "study_instance_uid": str(source.header.StudyInstanceUID),
        "series_instance_uid": str(source.header.SeriesInstanceUID),
        "frame_of_reference_uid": str(source.header.get("FrameOfReferenceUID") or "") or None,
        "instances": [instance for _, instance in source.instances],
        "other_series": [
            {"series_instance_uid": one.series_uid, "instances": [instance for _, instance in one.instances]}
            for one in source.others
        ],
    }


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Tuples as lists, numpy's numbers as Python's, what is not finite as nothing."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
