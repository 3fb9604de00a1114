"""What stored DICOM values mean: rescale, units, MONOCHROME1."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.dataset import Dataset as Header
from pydicom.pixels.processing import apply_modality_lut

from sagittal.errors import ReadError
from sagittal.formats.dicom_geometry import Plane
from sagittal.formats.dicom_stack import Meaning
from sagittal.types import Array


def modality_of(header: Header) -> str:
    """The modality's code (PS3.3 C.7.3.1.1.1), ``"OT"`` where there is none."""
    return code_of(header.get("Modality")) or "OT"


def code_of(value: Any) -> str:
    """A code string in upper case; empty for anything that could be free text.

    >>> code_of(" bqml "), code_of("a name, written here")
    ('BQML', '')
    """
    text = str(value or "").strip().upper()
    return text if len(text) <= 16 and text.replace("_", "").replace(" ", "").isalnum() else ""


def meaning_of(plane: Plane, header: Header, *, factor: float = 1.0, padding: float | None = None) -> Meaning:
    """Stored grey values -> values of the modality, MONOCHROME1 inverted where they have no unit.

    In this order, the first that the frame has: Modality LUT (PS3.3 C.11.1), rescale slope and intercept, the scaling
    of a dose grid, a real-world value map (C.7.6.16.2.11). Never two of them.

    Parameters
    ----------
    plane : Plane
    header : Header
        Of the plane's file.
    factor : float
        Multiplied with the result, as for SUV.
    padding : float, optional
        What voxels of the padding value or range (PixelPaddingValue, PixelPaddingRangeLimit) become; they keep the
        value that the file gives them where left out.

    Returns
    -------
    Meaning
        A line (slope, intercept) wherever that is all, for the sake of speed; else a function.

    Raises
    ------
    ReadError
        If slope or intercept would erase the values.
    """
    meaning = _meaning(plane, header)
    if factor != 1.0:
        meaning = _times(meaning, factor)
    ends = _padding(plane, header) if padding is not None else None
    return meaning if padding is None or ends is None else _padded(meaning, ends, padding)


def _meaning(plane: Plane, header: Header) -> Meaning:
    source = plane.rescale if plane.rescale is not None else header
    world = real_world(plane, header)
    inverted = plane.layout.photometric == "MONOCHROME1" and unit_of(header, plane) == "1" and plane.layout.whole
    if "ModalityLUTSequence" in source:

        def look_up(stored: Array) -> Array:
            values: Array = np.asarray(apply_modality_lut(stored, source))
            # A LUT has no ends of its own: those of its values take their place.
            return float(values.min()) + float(values.max()) - values if inverted else values

        return look_up
    if world is not None and world.get("RealWorldValueLUTData") is not None:
        return _world_table(world)
    slope, intercept = _world_line(world) if world is not None else _rescale(source)
    if modality_of(header) == "RTDOSE":
        slope, intercept = _finite(header.get("DoseGridScaling"), 1.0), 0.0
    if slope == 0 or not np.isfinite(slope) or not np.isfinite(intercept):
        raise ReadError(
            f"DICOM: RescaleSlope {slope:g} and RescaleIntercept {intercept:g} would erase the values: damaged"
        )
    if inverted:
        lowest = -(1 << plane.layout.stored - 1) if plane.layout.signed else 0
        ends = 2 * lowest + (1 << plane.layout.stored) - 1
        return -slope, ends * slope + intercept  # the sum of the values of both ends, less the value
    return slope, intercept


def _rescale(source: Header) -> tuple[float, float]:
    """Slope and intercept (PS3.3 C.11.1.1.2); 1 and 0 where the file gives none."""
    return _finite(source.get("RescaleSlope"), 1.0), _finite(source.get("RescaleIntercept"), 0.0)


def _finite(value: Any, default: float) -> float:
    return default if value is None or value == "" else float(value)


def real_world(plane: Plane, header: Header) -> Header | None:
    """The real-world value map that applies to a frame: the only one it has, where no modality rescale stands."""
    source = plane.rescale if plane.rescale is not None else header
    if len(plane.real_world) != 1 or any(k in source for k in ("RescaleSlope", "ModalityLUTSequence")):
        return None
    item = plane.real_world[0]
    complete = item.get("RealWorldValueLUTData") is not None or item.get("RealWorldValueSlope") is not None
    return item if complete else None


def _world_line(world: Header) -> tuple[float, float]:
    return _finite(world.get("RealWorldValueSlope"), 1.0), _finite(world.get("RealWorldValueIntercept"), 0.0)


def _world_table(world: Header) -> Meaning:
    table = np.asarray([float(v) for v in world.get("RealWorldValueLUTData") or ()], dtype=np.float64)
    first = int(_finite(world.get("RealWorldValueFirstValueMapped"), 0.0))

    def look_up(stored: Array) -> Array:
        index = stored.astype(np.int64) - first
        if index.min() < 0 or index.max() >= len(table):
            raise ReadError(
                f"DICOM: stored values {int(stored.min())} to {int(stored.max())} lie outside of the "
                f"{first} to {first + len(table) - 1} that the real-world value map gives a meaning"
            )
        return np.asarray(table[index])

    return look_up


def _times(meaning: Meaning, factor: float) -> Meaning:
    if callable(meaning):
        return lambda stored: np.asarray(meaning(stored) * factor)
    return meaning[0] * factor, meaning[1] * factor


def _padding(plane: Plane, header: Header) -> tuple[float, float] | None:
    """The least and the greatest stored value of padding (PS3.3 C.7.5.1.1.2); ``None`` where there is none."""
    for names in (("PixelPaddingValue", "PixelPaddingRangeLimit"), ("FloatPixelPaddingValue",) * 2):
        value, limit = (header.get(name) for name in names)
        if value is None or value == "":
            continue
        ends = [_finite(value, 0.0), _finite(limit, _finite(value, 0.0))]
        if plane.layout.signed:  # some write the bits of a negative value as an unsigned number
            ends = [v - 2**plane.layout.allocated if v >= 2 ** (plane.layout.allocated - 1) else v for v in ends]
        return min(ends), max(ends)
    return None


def _padded(meaning: Meaning, ends: tuple[float, float], padding: float) -> Meaning:
    def pad(stored: Array) -> Array:
        values = meaning(stored) if callable(meaning) else stored * meaning[0] + meaning[1]
        return np.asarray(np.where((stored >= ends[0]) & (stored <= ends[1]), padding, values))

    return pad


def unit_of(header: Header, plane: Plane) -> str:
    """HU for CT with a rescale, the Units of PET, what RescaleType says, that of a real-world value map, else "1"."""
    source = plane.rescale if plane.rescale is not None else header
    if plane.layout.photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        return "1"
    world = real_world(plane, header)
    if world is not None:
        codes = world.get("MeasurementUnitsCodeSequence")
        return _ucum(codes[0].get("CodeValue")) if codes else "1"
    modality = modality_of(header)
    if modality == "RTDOSE":
        return "Gy" if code_of(header.get("DoseUnits")) == "GY" else "1"
    if modality == "PT":
        unit = {"BQML": "Bq/ml", "GML": "SUV", "CNTS": "counts"}.get(code_of(header.get("Units")), "1")
        return "g/ml" if unit == "SUV" and code_of(header.get("SUVType")) not in {"", "BW"} else unit
    kind = code_of(source.get("RescaleType"))
    if "ModalityLUTSequence" in source:
        kind = code_of(source["ModalityLUTSequence"].value[0].get("ModalityLUTType")) or "US"
    if kind == "HU" or (modality == "CT" and kind == "" and "RescaleSlope" in source):
        return "HU"
    return "1"


def _ucum(code: Any) -> str:
    """A unit of UCUM as we call it; a code that is no unit is left out."""
    text = str(code or "").strip()
    known = {"[hnsf'U]": "HU", "{SUVbw}g/ml": "SUV", "g/ml{SUVbw}": "SUV", "Bq/mL": "Bq/ml", "{counts}": "counts"}
    if text in known:
        return known[text]
    return text if 0 < len(text) <= 16 and all(c.isalnum() or c in "./*-%[]{}'^_" for c in text) else "1"
