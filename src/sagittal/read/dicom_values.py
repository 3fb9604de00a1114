"""What stored DICOM values mean: rescale, units, MONOCHROME1."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.dataset import Dataset as Header
from pydicom.pixels.processing import apply_modality_lut

from sagittal.errors import ReadError
from sagittal.read.dicom_geometry import Plane
from sagittal.read.dicom_stack import Meaning
from sagittal.types import Array


def modality_of(header: Header) -> str:
    return code_of(header.get("Modality")) or "OT"


def code_of(value: Any) -> str:
    text = str(value or "").strip().upper()
    return text if len(text) <= 16 and text.replace("_", "").replace(" ", "").isalnum() else ""


def meaning_of(plane: Plane, header: Header) -> Meaning:
    """Stored grey values -> values of the modality, MONOCHROME1 inverted where they have no unit.

    A line (slope, intercept) wherever that is all, for the sake of speed; else a function.
    """
    source = plane.rescale if plane.rescale is not None else header
    slope, intercept = _rescale(source)
    inverted = plane.layout.photometric == "MONOCHROME1" and unit_of(header, plane) == "1" and plane.layout.whole
    if "ModalityLUTSequence" in source:

        def look_up(stored: Array) -> Array:
            values: Array = np.asarray(apply_modality_lut(stored, source))
            # A LUT has no ends of its own: those of its values take their place.
            return float(values.min()) + float(values.max()) - values if inverted else values

        return look_up
    if inverted:
        lowest = -(1 << plane.layout.stored - 1) if plane.layout.signed else 0
        ends = 2 * lowest + (1 << plane.layout.stored) - 1
        return -slope, ends * slope + intercept  # the sum of the values of both ends, less the value
    return slope, intercept


def _rescale(source: Header) -> tuple[float, float]:
    """Slope and intercept (PS3.3 C.11.1.1.2); 1 and 0 where the file gives none."""
    given = source.get("RescaleSlope"), source.get("RescaleIntercept")
    slope, intercept = (
        default if v is None or v == "" else float(v) for v, default in zip(given, (1.0, 0.0), strict=True)
    )
    if slope == 0 or not np.isfinite(slope) or not np.isfinite(intercept):
        raise ReadError(
            f"DICOM: RescaleSlope {slope:g} and RescaleIntercept {intercept:g} would erase the values: damaged"
        )
    return slope, intercept


def unit_of(header: Header, plane: Plane) -> str:
    """HU for CT with a rescale, the Units of PET, what RescaleType says, else "1"."""
    source = plane.rescale if plane.rescale is not None else header
    if plane.layout.photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        return "1"
    modality = modality_of(header)
    if modality == "PT":
        return {"BQML": "Bq/ml", "GML": "SUV", "CNTS": "counts"}.get(code_of(header.get("Units")), "1")
    kind = code_of(source.get("RescaleType"))
    if kind == "HU" or (modality == "CT" and kind == "" and "RescaleSlope" in source):
        return "HU"
    return "1"
