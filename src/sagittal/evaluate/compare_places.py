"""Paired differences of two models that say where: masks of the same structures, boxes of the same objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sagittal.errors import DataError
from sagittal.metrics.boxes import DetectionSet
from sagittal.metrics.detection import IOU, ap_measures, match
from sagittal.metrics.froc import froc_measures
from sagittal.tasks.detect_rows import BoxRows
from sagittal.tasks.detect_settle import HitRule
from sagittal.tasks.segment_measures import overall_measures, structure_columns
from sagittal.types import Array, Floats

if TYPE_CHECKING:
    import pandas as pd

    from sagittal.evaluate.evidence import Settings

#: Weights (R, n) of the cases -> measures of one model, (R,) each.
Measures = Callable[[Floats], Mapping[str, Floats]]

#: Of detection, what is compared.
SHOWN = ("ap50", "ap", "ap30", "ap10", "ap75", "cpm", "sensitivity_at_1")


def paired_measures(
    settings: Settings, first: pd.DataFrame, second: pd.DataFrame
) -> tuple[tuple[Measures, Measures], Array]:
    """The measures of two models on the same cases in the same order, and the patients of these cases.

    Parameters
    ----------
    settings : Settings
        Of the first evidence.
    first, second : DataFrame
        Rows of the same cases.

    Raises
    ------
    DataError
        If they disagree on the truth of a case, or no case has one.
    """
    assert settings.scheme is not None
    known = first["truth"].notna().to_numpy() & second["truth"].notna().to_numpy()
    if not known.any():
        raise DataError("no shared case has a known truth")
    first, second = first[known], second[known]
    patients = first["patient"].to_numpy(dtype=object)
    if settings.scheme.kind == "structures":
        return (_structures(settings, first, second), patients)
    return (_objects(settings, first, second), patients)


def _structures(settings: Settings, first: pd.DataFrame, second: pd.DataFrame) -> tuple[Measures, Measures]:
    assert settings.scheme is not None
    both: list[dict[str, dict[str, Any]]] = [
        {name: structure_columns(rows, name) for name in settings.scheme.classes} for rows in (first, second)
    ]
    for one, other in zip(*(part.values() for part in both), strict=True):
        if not np.array_equal(one["voxels_truth"], other["voxels_truth"], equal_nan=True):
            raise DataError("the two evaluations disagree on the truth of a case; evaluate both on the same masks")
    return overall_measures(both[0], angles=False), overall_measures(both[1], angles=False)


def _objects(settings: Settings, first: pd.DataFrame, second: pd.DataFrame) -> tuple[Measures, Measures]:
    assert settings.scheme is not None
    if list(first["boxes_truth"]) != list(second["boxes_truth"]):
        raise DataError("the two evaluations disagree on the truth of a case; evaluate both on the same boxes")
    rule = HitRule.of(settings.dimensions)
    one, two = (_measured(BoxRows.read(rows, settings.scheme).boxes, rule) for rows in (first, second))
    return one, two


def _measured(boxes: DetectionSet, rule: HitRule) -> Measures:
    matches, hits = match(boxes, iou=IOU), rule.hits(boxes)

    def measures(weights: Floats) -> dict[str, Floats]:
        values = {**ap_measures(matches, weights), **froc_measures(hits, weights)}
        return {name: values[name] for name in SHOWN}

    return measures
