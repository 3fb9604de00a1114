"""PET activity to standardised uptake values by body weight.

As the Quantitative Imaging Biomarkers Alliance writes it down (vendor-neutral pseudo-code for SUV, QIBA FDG-PET/CT
profile 1.05, appendix G): SUVbw = activity x weight / decayed dose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydicom.dataset import Dataset as Header

from sagittal.formats.dicom_times import DAY_S, date_s, datetime_s, moment_s, time_s

#: Longest time from injection to scan that is believed, half-lives.
_LONGEST = 12.0


def suv_factor(headers: Sequence[Header]) -> tuple[float, str]:
    """What a PET series' rescaled values are multiplied with to become SUVbw in g/ml; NaN and the reason where unknown.

    Parameters
    ----------
    headers : sequence of Header
        Of all files of the series: the earliest acquisition decides where the series time was changed afterwards.

    Returns
    -------
    factor : float
        For values in Bq/ml (``BQML``), or in Philips' counts (``CNTS``) with the factor (7053,1000) or (7053,1009).
        NaN where the header does not give all that the formula needs.
    reason : str
        What is missing, without anything of the patient; empty where nothing is.
    """
    first = headers[0]
    units = str(first.get("Units") or "").strip().upper()
    corrected = {str(word).strip().upper() for word in _list(first.get("CorrectedImage"))}
    if units == "GML":
        return 1.0, ""
    if units not in {"BQML", "CNTS"}:
        return np.nan, f"Units are {units if units.isalnum() and len(units) <= 8 else 'not stated'}, not BQML"
    if not {"ATTN", "DECY"} <= corrected:
        return np.nan, "CorrectedImage names no attenuation and decay correction (ATTN, DECY)"
    to_activity = 1.0
    if units == "CNTS":
        direct, to_activity = _philips(first, 0x70531000), _philips(first, 0x70531009)
        if direct > 0:
            return direct, ""
        if to_activity <= 0:
            return np.nan, "values are counts, without Philips' factors (7053,1000) or (7053,1009)"
    dose, reason = _decayed_dose(headers)
    if reason:
        return np.nan, reason
    weight = _positive(first.get("PatientWeight"))
    if weight is None:
        return np.nan, "PatientWeight is missing or not positive"
    return to_activity * weight * 1000 / dose, ""


def _decayed_dose(headers: Sequence[Header]) -> tuple[float, str]:
    """Bq at the time to which the images are corrected."""
    first = headers[0]
    drugs = first.get("RadiopharmaceuticalInformationSequence") or []
    if len(drugs) != 1:
        return np.nan, f"{len(drugs)} radiopharmaceuticals are stated, one is expected"
    dose, half_life = (_positive(drugs[0].get(k)) for k in ("RadionuclideTotalDose", "RadionuclideHalfLife"))
    if dose is None or half_life is None:
        return np.nan, "RadionuclideTotalDose or RadionuclideHalfLife is missing or not positive"
    if dose < 1e5:
        return np.nan, "RadionuclideTotalDose is below 0.1 MBq: it is not in Bq"
    kind = str(first.get("DecayCorrection") or "").strip().upper()
    if kind == "ADMIN":
        return dose, ""
    if kind != "START":
        return np.nan, "DecayCorrection is neither START nor ADMIN"
    scan = _scan_start(headers)
    if scan is None:
        return np.nan, "no date and time of the series' start that precedes its acquisitions"
    injected = datetime_s(drugs[0].get("RadiopharmaceuticalStartDateTime"))
    if injected is None:
        time = time_s(drugs[0].get("RadiopharmaceuticalStartTime"))
        if time is None:
            return np.nan, "the time of injection is missing"
        injected = scan // DAY_S * DAY_S + time
        if injected > scan:
            injected -= DAY_S  # injected before midnight, scanned after
    passed = scan - injected
    if not 0 <= passed <= _LONGEST * half_life:
        return np.nan, f"{passed / 60:.0f} minutes from injection to scan cannot be true"
    return dose * 2 ** (-passed / half_life), ""


def _scan_start(headers: Sequence[Header]) -> float | None:
    """The time to which the scanner corrected decay: the start of the series, or GE's (0009,100D)."""
    acquired = [moment_s(h.get("AcquisitionDate"), h.get("AcquisitionTime")) for h in headers]
    known = [t for t in acquired if t is not None]
    if len(known) < len(headers):
        return None
    first = headers[0]
    series = moment_s(first.get("SeriesDate"), first.get("SeriesTime"))
    if series is not None and series <= min(known):
        return series
    # A reconstruction made afterwards has a later series time.
    if str(_private(first, 0x00090010) or "").strip() == "GEMS_PETD_01":
        own = datetime_s(_text(_private(first, 0x0009100D)))
        if own is not None and date_s(first.get("AcquisitionDate")) is not None and own <= min(known):
            return own
    return None


def _philips(header: Header, tag: int) -> float:
    if str(_private(header, 0x70530010) or "").strip() != "Philips PET Private Group":
        return 0.0
    return _positive(_text(_private(header, tag))) or 0.0


def _private(header: Header, tag: int) -> Any:
    try:
        return header[tag].value if tag in header else None
    except (KeyError, TypeError, AttributeError):  # a header that knows keywords only
        return None


def _text(value: Any) -> str:
    return value.decode("ascii", "replace").strip(" \0") if isinstance(value, bytes) else str(value or "")


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None


def _list(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
