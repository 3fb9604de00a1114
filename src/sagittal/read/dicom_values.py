"""What stored DICOM values mean: rescale, units, MONOCHROME1."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.dataset import Dataset as Header
from pydicom.pixels.processing import apply_modality_lut

from sagittal.errors import ReadError
from sagittal.read.dicom_geometry import Plane
from sagittal.types import Array


def modality_of(header: Header) -> str:
    return code_of(header.get("Modality")) or "OT"


def code_of(value: Any) -> str:
    text = str(value or "").strip().upper()
    return text if len(text) <= 16 and text.replace("_", "").replace(" ", "").isalnum() else ""


def apply_meaning(frame: Array, plane: Plane, header: Header) -> Array:
    """Stored grey values -> values of the modality, MONOCHROME1 inverted where they have no unit."""
    source = plane.rescale if plane.rescale is not None else header
    values: Array = frame
    slope, intercept = _rescale(source)
    if "ModalityLUTSequence" in source:
        values = np.asarray(apply_modality_lut(frame, source))
    elif slope == 1.0 and intercept == round(intercept) and frame.dtype.itemsize <= 2:
        values = np.add(frame, np.float32(intercept), dtype=np.float32)  # exact, and half the time of double precision
    elif (slope, intercept) != (1.0, 0.0):
        values = frame * slope + intercept
    if plane.layout.photometric == "MONOCHROME1" and unit_of(header, plane) == "1" and frame.dtype.kind != "f":
        lowest = -(1 << plane.layout.stored - 1) if plane.layout.signed else 0
        ends = np.array([lowest, lowest + (1 << plane.layout.stored) - 1])
        # A LUT has no ends of its own: those of its values take their place.
        ends = np.array([values.min(), values.max()]) if "ModalityLUTSequence" in source else ends * slope + intercept
        values = ends.sum() - values.astype(np.float64)
    return values


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
