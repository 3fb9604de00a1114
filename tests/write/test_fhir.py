"""FHIR bundles: valid by fhir.resources in both releases, harmless when posted twice, honest about no answer."""

from __future__ import annotations

import importlib
import json
import random
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pydicom.dataset import Dataset

from sagittal.case import Case
from sagittal.grid import Grid
from sagittal.prediction import Failure, Verdict
from sagittal.write.equipment import ModelFacts, Stamp, derive_uids
from sagittal.write.fhir import MadeObject, fhir_bytes, make_fhir
from sagittal.write.measurements import measure_mask
from sagittal.write.sources import Source, SourceSlice, open_series
from sagittal.write.statement import make_statement

NOON = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def stamp(facts: ModelFacts) -> Stamp:
    return Stamp(derive_uids("seed"), NOON, facts)


def validated(bundle: dict[str, Any], release: str) -> Any:
    """The bundle by fhir.resources; of release 4 by the classes of 4B, which are the same for these resources."""
    pytest.importorskip("fhir.resources")
    module = importlib.import_module("fhir.resources.R4B.bundle" if release == "R4" else "fhir.resources.bundle")
    return module.Bundle.model_validate_json(fhir_bytes(bundle))


def resources(bundle: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [one["resource"] for one in bundle["entry"] if one["resource"]["resourceType"] == kind]


@pytest.mark.parametrize("release", ["R4", "R5"])
@pytest.mark.parametrize("name", ["classes", "labels", "boxes", "mask", "abstained", "refused"])
def test_bundles_are_valid(
    study: Callable[..., Case],
    found_mask: Any,
    found_boxes: Any,
    found_classes: Any,
    stamp: Stamp,
    name: str,
    release: Any,
) -> None:
    case = study(TimezoneOffsetFromUTC="+0800", StudyDescription="CT", IssuerOfPatientID="Hospital")
    grid = case.image().grid
    answer: Any = {
        "classes": lambda: found_classes(case.id),
        "labels": lambda: found_classes(case.id, "multilabel"),
        "boxes": lambda: found_boxes(case.id, grid),
        "mask": lambda: found_mask(case.id, grid),
        "abstained": lambda: found_classes(case.id, decision=(), verdict=Verdict(False, "unlike", 1.0)),
        "refused": lambda: Failure(case.id, f"case {case.id}: is MR, made for CT", "ScopeError"),
    }[name]()
    statement = make_statement(answer, stamp.model, measured=measure_mask(answer, case) if name == "mask" else ())
    made = [MadeObject("SR", "1.2.840.10008.5.1.4.1.1.88.34", "2.25.1", "2.25.2")]
    bundle = make_fhir(answer, open_series(case, "x"), release=release, stamp=stamp, statement=statement, made=made)
    validated(bundle, release)
    (report,) = resources(bundle, "DiagnosticReport")
    (images,) = resources(bundle, "ImagingStudy")
    observations = resources(bundle, "Observation")
    assert report["status"] == "preliminary"
    assert report["effectiveDateTime"] == "2026-01-01T10:11:12+08:00"
    assert report["subject"]["identifier"]["value"] == "PHANTOM-7"
    assert report["meta"]["security"][0]["code"] == "AIAST"
    assert ("imagingStudy" in report, "study" in report) == (release == "R4", release == "R5")
    assert images["identifier"][0]["value"] == "urn:oid:1.2.3.4"
    assert [one["uid"] for one in images["series"]] == ["1.2.3.4.5", "2.25.2"]
    assert len(images["series"][0]["instance"]) == 9
    # Every reference within the bundle leads somewhere.
    urls = {one["fullUrl"] for one in bundle["entry"]}
    text = json.dumps(bundle)
    assert {part.split('"')[0] for part in text.split('"reference": "')[1:]} <= urls
    if name in {"abstained", "refused"}:
        (only,) = observations
        code = {"abstained": "unknown", "refused": "not-performed"}[name]
        assert only["dataAbsentReason"]["coding"][0]["code"] == code
        assert not [key for one in observations for key in one if key.startswith("value")]
        assert {"abstained": "abstains", "refused": "refused"}[name] in report["conclusion"]
        assert "conclusionCode" not in report
    if name == "classes":
        assert [one["text"] for one in report["conclusionCode"]] == ["nodule"]
        assert observations[0]["valueCodeableConcept"]["coding"][0]["system"] == "http://snomed.info/sct"
        assert [
            (
                one["code"]["text"],
                one["component"][0]["valueQuantity"]["value"],
                one["interpretation"][0]["coding"][0]["code"],
            )
            for one in observations[1:]
        ] == [
            ("effusion", 0.05, "NEG"),
            ("nodule", 0.82, "POS"),
            ("mass", 0.13, "NEG"),
        ]
    if name == "boxes":
        assert [(one["code"]["text"], one["component"][0]["valueQuantity"]["value"]) for one in observations] == [
            ("lung nodule", 1),
            ("gizmo", 1),
            ("mass", 0),
        ]
    if name == "mask":
        assert [one["component"][0]["valueQuantity"]["code"] for one in observations] == ["mL"] * 4
        present = [one["valueCodeableConcept"]["coding"][0]["display"] for one in observations]
        assert present == ["Present", "Present", "Present", "Absent"]


def test_posted_twice_it_does_no_harm(study: Callable[..., Case], found_classes: Any, stamp: Stamp) -> None:
    case = study()
    first, again = (make_fhir(found_classes(case.id), open_series(case, "x"), stamp=stamp) for _ in range(2))
    assert fhir_bytes(first) == fhir_bytes(again)
    for entry in first["entry"]:
        kind, request = entry["resource"]["resourceType"], entry["request"]
        if kind == "ImagingStudy":
            assert request == {"method": "POST", "url": kind, "ifNoneExist": "identifier=urn:dicom:uid|urn:oid:1.2.3.4"}
        else:
            assert request == {"method": "PUT", "url": f"{kind}/{entry['resource']['id']}"}
    assert not resources(first, "Patient")


def test_a_collection_asks_for_nothing(study: Callable[..., Case], found_classes: Any, stamp: Stamp) -> None:
    case = study()
    bundle = make_fhir(found_classes(case.id), open_series(case, "x"), kind="collection", stamp=stamp)
    assert bundle["type"] == "collection"
    assert not [one for one in bundle["entry"] if "request" in one]
    validated(bundle, "R4")


def test_a_study_that_is_no_dicom(found_classes: Any, stamp: Stamp) -> None:
    for release in ("R4", "R5"):
        bundle = make_fhir(found_classes("x"), None, release=release, stamp=stamp)  # type: ignore[arg-type]
        validated(bundle, release)
        assert not resources(bundle, "ImagingStudy")


def test_any_header_makes_a_valid_bundle(stamp: Stamp) -> None:
    answer = Failure("x", "case x: is MR, made for CT", "ScopeError")
    statement = make_statement(answer, stamp.model)
    rng = random.Random(17)
    signs = "<>&\"'\\\r\n\x00\x0b\x1cAß王=^\ud800 90-+"
    keys = (
        "PatientID",
        "PatientName",
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "StudyDescription",
        "Modality",
        "TimezoneOffsetFromUTC",
        "IssuerOfPatientID",
    )
    checked = 0
    for number in range(2_000):
        header = Dataset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header.StudyInstanceUID = "1.2.3"
            header.SeriesInstanceUID = rng.choice(("1.2.3.4", "1.2.x", "a/../b"))
            for key in rng.sample(keys, 4):
                value = "".join(rng.choice(signs) for _ in range(rng.randrange(9)))
                if key in {"StudyDate", "StudyTime"} and rng.random() < 0.5:
                    value = f"{rng.randrange(10**8):08d}"
                setattr(header, key, value)
        source = Source(header, (SourceSlice("1.2", "1.2.3.4.5", 0, None),), Grid((2, 2, 1)), None, None)
        bundle = make_fhir(answer, source, stamp=stamp, statement=statement)
        fhir_bytes(bundle)
        if number % 40 == 0:
            validated(bundle, "R4")
            checked += 1
    assert checked == 50
