"""The kinds of objects that a result is made into, and one of them as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DICOM = "application/dicom"
FHIR = "application/fhir+json"
HL7 = "application/hl7-v2"
#: Kinds of objects in the order in which they are made, with media type and file name.
KINDS = {
    "seg": (DICOM, "seg.dcm"),
    "rtstruct": (DICOM, "rtstruct.dcm"),
    "sr": (DICOM, "sr.dcm"),
    "sc": (DICOM, "sc.dcm"),
    "ko": (DICOM, "ko.dcm"),
    "fhir": (FHIR, "fhir-r4.json"),
    "fhir5": (FHIR, "fhir-r5.json"),
    "hl7": (HL7, "oru.hl7"),
    "json": ("application/json", "result.json"),
}


@dataclass(frozen=True)
class ObjectFile:
    """One object of a result as a file.

    Parameters
    ----------
    kind : str
        A key of :data:`KINDS`.
    path : Path
    media_type : str
    sop_instance_uid, sop_class_uid, series_instance_uid : str
        Empty where it is no DICOM.
    sha256 : str
    size : int
        Bytes.
    """

    kind: str
    path: Path
    media_type: str
    sop_instance_uid: str = ""
    sop_class_uid: str = ""
    series_instance_uid: str = ""
    sha256: str = ""
    size: int = 0
