"""Measurements of every structure of a mask, as rows of a table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.case import Case
from sagittal.image import Image
from sagittal.metrics.shape import Intensity, Shape, measure_intensity, measure_shape
from sagittal.prediction import Prediction
from sagittal.write.masks import mask_of, write_text


@dataclass(frozen=True)
class Measured:
    """What one structure of a case measures.

    Parameters
    ----------
    case, name : str
    shape : Shape
    intensity : Intensity, optional
        Of the case's first image with one channel on the mask's grid; ``None`` where there is none.
    modality : str
        Of that image.
    expected_dice : float
        What the model expects of itself here; nan where it cannot say.
    """

    case: str
    name: str
    shape: Shape
    intensity: Intensity | None = None
    modality: str = "OT"
    expected_dice: float = math.nan


def measure_mask(prediction: Prediction, case: Case | None = None, *, image: Image | None = None) -> list[Measured]:
    """Measure every structure of a mask, in the order of the model's structures.

    Parameters
    ----------
    prediction : Prediction
        Its finding is a mask.
    case : Case, optional
        Its first image on the mask's grid gives the intensities; read for this unless `image` is given.
    image : Image, optional
        On the mask's grid.
    """
    mask = mask_of(prediction, "a table of measurements")
    image = image if image is not None else image_on(case, prediction)
    values = image.data[0] if image is not None and image.channels == 1 else None
    rows = []
    for one in mask.segmentation.structures:
        inside = mask.segmentation.mask(one.name)
        intensity = None if values is None or image is None else measure_intensity(inside, values, image.unit)
        rows.append(
            Measured(
                prediction.case,
                one.name,
                measure_shape(inside, mask.grid),
                intensity,
                "OT" if image is None else image.modality,
                float(mask.expected_dice.get(one.name, math.nan)),
            )
        )
    return rows


def image_on(case: Case | None, prediction: Prediction) -> Image | None:
    """The first image of a case that lies on the grid of what was found; ``None`` where none does."""
    grid = getattr(prediction.finding, "grid", None)
    if case is None or grid is None:
        return None
    for name in case.images:
        image = case.image(name)
        if image.grid.same_place(grid, 1e-2):
            return image
    return None


def measured_row(measured: Measured) -> dict[str, Any]:
    """One row, with the unit in the name of each column; what cannot be said is left out.

    Lengths are in mm, or in pixels (``_px``) of a picture without a pixel size.
    """
    shape, unit = measured.shape, measured.shape.unit
    place = ("x", "y", "z") if unit == "mm" else ("i", "j", "k")
    row: dict[str, Any] = {
        "case": measured.case,
        "structure": measured.name,
        "found": "yes" if shape.voxels else "no",
        "voxels": shape.voxels,
        "components": shape.components,
        "volume_ml": shape.volume_ml,
        "surface_mm2": shape.surface_mm2,
        f"area_{unit}2": shape.area,
        f"long_axis_{unit}": shape.axes.long,
        f"short_axis_{unit}": shape.axes.short,
        "axes_slice": shape.axes.slice + 1 if shape.axes.slice >= 0 else None,
        f"diameter_{unit}": shape.diameter,
        **{f"{axis}_{unit}": value for axis, value in zip(place, shape.centroid, strict=True)},
    }
    for side, corner in zip(("low", "high"), shape.corners, strict=True):
        row |= {f"{axis}_{side}": value for axis, value in zip("ijk", corner, strict=True)}
    if measured.intensity is not None:
        found = measured.intensity
        row |= {
            "mean": found.mean,
            "std": found.std,
            "min": found.low,
            "median": found.median,
            "max": found.high,
            "intensity_unit": found.unit,
        }
    row["expected_dice"] = measured.expected_dice
    return {key: _plain(value) for key, value in row.items() if not (isinstance(value, float) and math.isnan(value))}


def write_measurements(measured: Sequence[Measured], path: Path) -> Path:
    """Write a CSV, a row a case and structure.

    Raises
    ------
    ResourceError
        If the disk refuses.
    """
    write_rows([measured_row(one) for one in measured], path, first=("case", "structure"))
    return path


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path, *, first: Sequence[str] = ()) -> None:
    """Write rows as CSV, with a column for each key of any of them."""
    names = list(dict.fromkeys([*first, *(key for row in rows for key in row)]))
    stream = io.StringIO()
    table = csv.DictWriter(stream, names, lineterminator="\n", restval="")
    table.writeheader()
    table.writerows(rows)
    write_text(stream.getvalue(), path)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value
