"""Answers to FHIR, release 4 or 5: a Bundle with a DiagnosticReport, its Observations, the ImagingStudy and the Device.

As a transaction it can be posted to a FHIR server as it is, twice without harm: what is ours is put under ids that follow
from the model and the images, and the study is created only where the server does not have it. The patient is named by the
identifier of the images, never created.
"""

from __future__ import annotations

import datetime as calendar
import json
import math
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydicom.dataset import Dataset as Header

from sagittal.labels import ClassScores
from sagittal.prediction import Failure, Prediction
from sagittal.write.equipment import MANUFACTURER, Stamp
from sagittal.write.sources import Source
from sagittal.write.statement import Line, Statement, make_statement
from sagittal.write.terminology import PRIVATE_SCHEME, Code, Term, Terminology

Release = Literal["R4", "R5"]
Kind = Literal["transaction", "collection"]
_NAMESPACE = uuid.UUID("0d6b5f0e-9a55-4f50-8a4f-0b9c1f2a6d11")
_PRIVATE = "urn:uuid:5d3a1c57-4a5b-4f0c-9a52-3d0c2c4b7e90"
_SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "LN": "http://loinc.org",
    "UCUM": "http://unitsofmeasure.org",
    PRIVATE_SCHEME: _PRIVATE,
}
_UCUM = {"ml": "mL", "mm2": "mm2", "px2": "{pixels2}", "voxels": "{voxels}", "1": "1"}
#: "Artificial Intelligence asserted": a machine said it and nobody has checked it.
_AI = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "AIAST",
    "display": "Artificial Intelligence asserted",
}
_ABSENT = {"abstained": ("unknown", "Unknown"), "refused": ("not-performed", "Not Performed")}
_PRESENT, _ABSENT_FINDING = Code("52101004", "SCT", "Present"), Code("2667000", "SCT", "Absent")
_VOLUME, _AREA = Code("118565006", "SCT", "Volume"), Code("42798000", "SCT", "Area")
_COUNT, _CERTAINTY = Code("246205007", "SCT", "Quantity"), Code("111012", "DCM", "Certainty of Finding")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True)
class MadeObject:
    """A DICOM object of the same result, to be named in the imaging study."""

    modality: str
    sop_class: str
    sop_instance: str
    series: str


def make_fhir(
    answer: Prediction | Failure,
    source: Source | None,
    *,
    release: Release = "R4",
    kind: Kind = "transaction",
    stamp: Stamp | None = None,
    statement: Statement | None = None,
    made: Sequence[MadeObject] = (),
    terminology: Terminology | None = None,
) -> dict[str, Any]:
    """The bundle as plain values.

    The report is preliminary and all of it bears the label that an algorithm asserted it. Of an abstention or a refusal the
    report has one observation without a value, whose dataAbsentReason and note say why, and the conclusion says so.

    Parameters
    ----------
    answer : Prediction or Failure
    source : Source, optional
        ``None`` of a study that is no DICOM: then there is no imaging study, and the patient is not named.
    release : {"R4", "R5"}
    kind : {"transaction", "collection"}
    stamp : Stamp, optional
        Ids, time and model; where left out, new ids and the present time.
    statement : Statement, optional
    made : sequence of MadeObject
    terminology : Terminology, optional
    """
    stamp = stamp or Stamp.now(answer)
    statement = statement or make_statement(answer, stamp.model)
    builder = _Bundle(answer, source, release, stamp, statement, terminology or Terminology())
    entries = builder.entries(made)
    bundle: dict[str, Any] = {
        "resourceType": "Bundle",
        "id": builder.id("bundle"),
        "type": kind,
        "timestamp": _instant(stamp),
        "entry": [_entry(name, one, kind, builder) for name, one in entries],
    }
    plain: dict[str, Any] = _clean(bundle)
    return plain


def fhir_bytes(bundle: dict[str, Any]) -> bytes:
    """The bundle as JSON in UTF-8; the same values give the same bytes."""
    return json.dumps(bundle, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _entry(name: str, resource: dict[str, Any], kind: Kind, builder: _Bundle) -> dict[str, Any]:
    entry: dict[str, Any] = {"fullUrl": builder.url(name), "resource": resource}
    if kind == "transaction":
        if resource["resourceType"] == "ImagingStudy":
            uid = resource["identifier"][0]["value"]
            known = f"identifier=urn:dicom:uid|{uid}"
            entry["request"] = {"method": "POST", "url": "ImagingStudy", "ifNoneExist": known}
        else:
            entry["request"] = {"method": "PUT", "url": f"{resource['resourceType']}/{resource['id']}"}
    return entry


@dataclass(frozen=True)
class _Bundle:
    answer: Prediction | Failure
    source: Source | None
    release: Release
    stamp: Stamp
    statement: Statement
    terminology: Terminology

    def id(self, name: str) -> str:
        return str(uuid.uuid5(_NAMESPACE, f"{self.release}/{self.stamp.uid(name)}"))

    def url(self, name: str) -> str:
        return f"urn:uuid:{self.id(name)}"

    def entries(self, made: Sequence[MadeObject]) -> list[tuple[str, dict[str, Any]]]:
        observations = self._observations()
        entries = [("device", self._device())]
        if self.source is not None:
            entries.append(("study", self._study(self.source, made)))
        entries += observations
        entries.append(("report", self._report([name for name, _ in observations])))
        return entries

    def _head(self, kind: str, name: str) -> dict[str, Any]:
        return {
            "resourceType": kind,
            "id": self.id(name),
            "meta": {"security": [_AI]},
            "language": {"en": "en", "zh": "zh-CN"}[self.statement.language],
        }

    def _report(self, observations: Sequence[str]) -> dict[str, Any]:
        made = self._head("DiagnosticReport", "report")
        made |= {
            "identifier": [{"system": "urn:ietf:rfc:3986", "value": self.url("report")}],
            "status": "preliminary",
            "category": [_coding("http://terminology.hl7.org/CodeSystem/v2-0074", "RAD", "Radiology")],
            "code": {**_concept(Code("18748-4", "LN", "Diagnostic imaging study")), "text": self._question()},
            **self._about(),
            "issued": _instant(self.stamp),
            "result": [{"reference": self.url(name)} for name in observations],
            "conclusion": self.statement.text,
        }
        if self.source is not None:
            made["imagingStudy" if self.release == "R4" else "study"] = [{"reference": self.url("study")}]
            if accession := str(self.source.header.get("AccessionNumber") or "").strip():
                made["basedOn"] = [{"type": "ServiceRequest", "identifier": _accession(accession)}]
        if decided := self._decided():
            made["conclusionCode"] = [_term(term) for term in decided]
        return made

    def _observations(self) -> list[tuple[str, dict[str, Any]]]:
        state = self.statement.state
        if state != "answered":
            code, display = _ABSENT[state]
            made = self._observation("answer", {"text": self._question()})
            system = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
            made["dataAbsentReason"] = {**_coding(system, code, display), "text": self.statement.summary}
            made["note"] = [{"text": self.statement.text}]
            return [("answer", made)]
        found = []
        if isinstance(self.answer, Prediction) and isinstance(self.answer.finding, ClassScores):
            found.append(("answer", self._decision(self.answer)))
        terms = self.terminology.find_all([one.name for one in self.statement.lines])
        for n, (line, term) in enumerate(zip(self.statement.lines, terms, strict=True)):
            found.append((f"line-{n}", self._line(f"line-{n}", line, term)))
        return found

    def _observation(self, name: str, code: dict[str, Any]) -> dict[str, Any]:
        made = self._head("Observation", name)
        category = _coding("http://terminology.hl7.org/CodeSystem/observation-category", "imaging", "Imaging")
        made |= {
            "identifier": [{"system": "urn:ietf:rfc:3986", "value": self.url(name)}],
            "status": "preliminary",
            "category": [category],
            "code": code,
            **self._about(),
            "issued": _instant(self.stamp),
            "device": {"reference": self.url("device")},
        }
        if self.source is not None:
            made["derivedFrom"] = [{"reference": self.url("study")}]
        return made

    def _decision(self, answer: Prediction) -> dict[str, Any]:
        made = self._observation("answer", {"text": self._question()})
        decided = self._decided()
        if len(decided) == 1:
            made["valueCodeableConcept"] = _term(decided[0])
        else:
            made["valueString"] = self.statement.summary
        excluded = self.terminology.find_all(answer.conformal)
        label = {"coding": [{"system": _PRIVATE, "code": "not-excluded"}], "text": "Cannot be excluded"}
        if parts := [{"code": label, "valueCodeableConcept": _term(term)} for term in excluded]:
            made["component"] = parts
        made["note"] = [{"text": self.statement.text}]
        return made

    def _line(self, name: str, line: Line, term: Term) -> dict[str, Any]:
        made = self._observation(name, _term(term))
        made["valueCodeableConcept"] = _concept(_PRESENT if line.held else _ABSENT_FINDING)
        parts = []
        if math.isfinite(line.size):
            parts.append((_VOLUME if line.unit in {"ml", "voxels"} else _AREA, line.size, line.unit))
        elif isinstance(self.answer, Prediction) and not isinstance(self.answer.finding, ClassScores):
            parts.append((_COUNT, float(line.count), "1"))
        if math.isfinite(line.probability):
            parts.append((_CERTAINTY, line.probability, "1"))
        made["component"] = [
            {"code": _concept(code), "valueQuantity": _quantity(value, unit)} for code, value, unit in parts
        ]
        system = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation"
        verdict = ("POS", "Positive") if line.held else ("NEG", "Negative")
        made["interpretation"] = [_coding(system, *verdict)]
        made["note"] = [{"text": line.words}]
        return made

    def _decided(self) -> tuple[Term, ...]:
        if self.statement.state != "answered" or not isinstance(self.answer, Prediction):
            return ()
        return self.terminology.find_all(self.answer.decision)

    def _question(self) -> str:
        return self.stamp.model.question or (
            self.answer.scheme.target if isinstance(self.answer, Prediction) else self.stamp.model.name
        )

    def _about(self) -> dict[str, Any]:
        """Whom and when it is about."""
        if self.source is None:
            return {"subject": {"type": "Patient", "display": "not stated by the images"}}
        about: dict[str, Any] = {"subject": _patient(self.source.header)}
        if moment := _study_time(self.source.header):
            about["effectiveDateTime"] = moment
        return about

    def _device(self) -> dict[str, Any]:
        from sagittal import __version__

        model = self.stamp.model
        made = self._head("Device", "device")
        kind = {"text": "Artificial intelligence: a trained model"}
        versions = [{"type": {"text": "model"}, "value": model.version or "not stated"}]
        versions.append({"type": {"text": MANUFACTURER}, "value": __version__})
        made |= {
            "status": "active",
            "manufacturer": MANUFACTURER,
            "modelNumber": model.name,
            "serialNumber": model.checksum or "not saved",
            "version": versions,
        }
        if self.release == "R4":
            made |= {"deviceName": [{"name": model.name, "type": "model-name"}], "type": kind}
        else:
            made |= {"name": [{"value": model.name, "type": "user-friendly-name"}], "type": [kind]}
        return made

    def _study(self, source: Source, made: Sequence[MadeObject]) -> dict[str, Any]:
        header = source.header
        identifiers: list[dict[str, Any]] = [{"system": "urn:dicom:uid", "value": f"urn:oid:{header.StudyInstanceUID}"}]
        if accession := str(header.get("AccessionNumber") or "").strip():
            identifiers.append(_accession(accession))
        images = self._series(
            str(header.SeriesInstanceUID), str(header.get("Modality") or "OT"), list(source.instances)
        )
        study: dict[str, Any] = {
            "resourceType": "ImagingStudy",
            "id": self.id("study"),
            "identifier": identifiers,
            "status": "available",
            "subject": _patient(header),
            "series": [images, *(self._series(one.series_uid, one.modality, one.instances) for one in source.others)],
        }
        if moment := _study_time(header):
            study["started"] = moment
        if description := str(header.get("StudyDescription") or "").strip():
            study["description"] = description
        for one in made:
            study["series"].append(self._series(one.series, one.modality, [(one.sop_class, one.sop_instance)]))
        return study

    def _series(self, uid: str, modality: str, instances: Sequence[tuple[str, str]]) -> dict[str, Any]:
        coding = {"system": _SYSTEMS["DCM"], "code": modality}
        return {
            "uid": _plain_uid(uid),
            "modality": coding if self.release == "R4" else {"coding": [coding]},
            "numberOfInstances": len(instances),
            "instance": [
                {
                    "uid": _plain_uid(instance),
                    "sopClass": {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{_plain_uid(sop_class)}"},
                }
                for sop_class, instance in instances
            ],
        }


def _plain_uid(uid: str) -> str:
    """A UID as FHIR's id takes it; of some makers they hold other signs."""
    return uid if _UID.fullmatch(uid) else f"2.25.{uuid.uuid5(_NAMESPACE, uid).int}"


def _patient(header: Header) -> dict[str, Any]:
    """The patient by the identifier in the images."""
    number = str(header.get("PatientID") or "").strip()
    issuer = str(header.get("IssuerOfPatientID") or "").strip()
    reference: dict[str, Any] = {"type": "Patient"}
    if number:
        kind = _coding("http://terminology.hl7.org/CodeSystem/v2-0203", "MR", "Medical record number")
        reference["identifier"] = {"type": kind, "value": number}
        if issuer:
            reference["identifier"]["assigner"] = {"display": issuer}
    name = header.get("PatientName")
    groups = [str(group) for group in getattr(name, "components", ()) if str(group).strip("^ ")]
    shown = " / ".join(" ".join(part for part in group.split("^") if part) for group in groups)
    reference["display"] = shown or "not stated by the images"
    return reference


def _study_time(header: Header) -> str:
    """When the study was made: a date, with the time only where the images state their zone, as FHIR asks."""
    day = re.fullmatch(r"(\d{4})(\d{2})(\d{2})", str(header.get("StudyDate") or ""))
    if day is None:
        return ""
    try:
        date = calendar.date(int(day[1]), int(day[2]), int(day[3])).isoformat()
    except ValueError:
        return ""
    clock = re.match(r"([01]\d|2[0-3])([0-5]\d)([0-5]\d)", str(header.get("StudyTime") or ""))
    zone = re.fullmatch(r"([+-])(0\d|1[0-4])([0-5]\d)", str(header.get("TimezoneOffsetFromUTC") or ""))
    if clock is None or zone is None:
        return date
    return f"{date}T{clock[1]}:{clock[2]}:{clock[3]}{zone[1]}{zone[2]}:{zone[3]}"


def _instant(stamp: Stamp) -> str:
    moment = stamp.made_at if stamp.made_at.tzinfo else stamp.made_at.astimezone()
    return moment.isoformat(timespec="seconds")


def _accession(number: str) -> dict[str, Any]:
    kind = _coding("http://terminology.hl7.org/CodeSystem/v2-0203", "ACSN", "Accession ID")
    return {"type": kind, "value": number}


def _quantity(value: float, unit: str) -> dict[str, Any]:
    code = _UCUM.get(unit, unit)
    return {"value": float(f"{value:.6g}"), "unit": unit, "system": _SYSTEMS["UCUM"], "code": code}


def _coding(system: str, code: str, display: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code, "display": display}]}


def _concept(code: Code) -> dict[str, Any]:
    system = _SYSTEMS.get(code.scheme, f"urn:x-dicom-scheme:{code.scheme}")
    return _coding(system, code.value, code.meaning)


def _term(term: Term) -> dict[str, Any]:
    return {**_concept(term.type), "text": term.name}


def _clean(value: Any) -> Any:
    """Without signs that FHIR's strings must not hold, and without empty values."""
    if isinstance(value, dict):
        pairs = {key: _clean(one) for key, one in value.items()}
        return {key: one for key, one in pairs.items() if one not in ("", [], {}, None)}
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if isinstance(value, str):
        return _CONTROL.sub(" ", value).strip()
    return value
