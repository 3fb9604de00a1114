"""What rules look at to choose series and models: facts of the first object of a series, in words and millimetres."""

from __future__ import annotations

import io
import struct
from typing import Any

from sagittal.archive.elements import SHARED_GROUPS
from sagittal.archive.header import Header, number_of
from sagittal.guard.limits import as_read_error


def facts_of(header: Header) -> dict[str, Any]:
    """What rules look at to choose series and models; of the first object of a series.

    Returns
    -------
    dict
        ``modality``, ``body_part``, ``description``, ``study_description``, ``protocol``, ``manufacturer``, ``model``,
        ``station``, ``kernel``, ``image_type`` (list), ``photometric``, ``laterality``, ``view``, ``position`` (of the
        patient), ``sop_class_uid``, ``frame_of_reference`` (bool), ``contrast`` (bool; left out where the agent is there and empty), ``thickness_mm``,
        ``between_mm``, ``pixel_mm`` (list), ``orientation`` (list), ``rows``, ``columns``, ``frames``, ``sex``, ``age``,
        ``priority``, ``burned_in``; only those that the object has.
    """
    shared = _shared_groups(header)
    agent = header.text(0x00180010)
    facts: dict[str, Any] = {
        "modality": header.text(0x00080060).upper(),
        "body_part": header.text(0x00180015).upper(),
        "description": header.text(0x0008103E),
        "study_description": header.text(0x00081030),
        "protocol": header.text(0x00181030),
        "manufacturer": header.text(0x00080070),
        "model": header.text(0x00081090),
        "station": header.text(0x00081010),
        "kernel": header.text(0x00181210),
        "image_type": [part for part in header.text(0x00080008).upper().split("\\") if part],
        "photometric": header.text(0x00280004),
        "laterality": header.text(0x00200060) or header.text(0x00200062),
        "view": header.text(0x00185101),
        "position": header.text(0x00185100),
        "sop_class_uid": header.sop_class_uid,
        "frame_of_reference": bool(header.text(0x00200052)),
        "thickness_mm": number_of(header.text(0x00180050)) or shared.get("thickness_mm"),
        "between_mm": number_of(header.text(0x00180088)) or shared.get("between_mm"),
        "pixel_mm": _numbers(header.text(0x00280030)) or shared.get("pixel_mm") or _numbers(header.text(0x00181164)),
        "orientation": _numbers(header.text(0x00200037)) or shared.get("orientation"),
        "rows": header.rows,
        "columns": header.columns,
        "frames": header.frames,
        "sex": header.text(0x00100040).upper(),
        "age": header.text(0x00101010),
        "priority": header.text(0x00401003).upper() or header.text(0x0032000C).upper(),
        "burned_in": header.text(0x00280301).upper(),
    }
    facts = {name: value for name, value in facts.items() if value not in (None, "", [])}
    if agent or 0x00180010 not in header.elements.places:  # empty: the header does not say
        facts["contrast"] = bool(agent) and agent.upper() not in {"NONE", "NO", "N", "OFF", "0"}
    return facts


def _shared_groups(header: Header) -> dict[str, Any]:
    """Measures of an enhanced object, from its shared functional groups (PS3.3 C.7.6.16)."""
    place = header.elements.places.get(SHARED_GROUPS)
    if place is None:
        return {}
    from pydicom.filereader import read_dataset

    end = place[1] + place[2] if place[2] >= 0 else place[1] + 2**16
    raw = header.elements.data[place[1] : min(end, place[1] + 2**18)]
    implicit, little = header.syntax == "1.2.840.10008.1.2", header.syntax != "1.2.840.10008.1.2.2"
    found: dict[str, Any] = {}
    try:
        with as_read_error("DICOM"):
            item = read_dataset(io.BytesIO(raw[8:]), implicit, little, bytelength=_item_length(raw, little))
            measures: Any = item["PixelMeasuresSequence"].value[0] if "PixelMeasuresSequence" in item else {}
            for name, keyword in (("thickness_mm", "SliceThickness"), ("between_mm", "SpacingBetweenSlices")):
                if measures.get(keyword) is not None:
                    found[name] = float(measures.get(keyword))
            if measures.get("PixelSpacing"):
                found["pixel_mm"] = [float(v) for v in measures.get("PixelSpacing")]
            plane: Any = item["PlaneOrientationSequence"].value[0] if "PlaneOrientationSequence" in item else {}
            if plane.get("ImageOrientationPatient"):
                found["orientation"] = [float(v) for v in plane.get("ImageOrientationPatient")]
    except ValueError:
        return {}
    return found


def _item_length(raw: bytes, little: bool) -> int | None:
    length = int(struct.unpack_from("<I" if little else ">I", raw, 4)[0]) if len(raw) >= 8 else 0
    return None if length == 0xFFFFFFFF else min(length, len(raw) - 8)


def _numbers(text: str) -> list[float] | None:
    values = [number_of(part) for part in text.split("\\")] if text else []
    return [v for v in values if v is not None] if values and None not in values else None
