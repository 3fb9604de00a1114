"""All objects of a result: complete, valid, the same when made again, and saying so where there is no answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.valuerep import PersonName

from sagittal.case import Case
from sagittal.errors import ConfigError
from sagittal.labels import ClassScores, LabelScheme
from sagittal.prediction import Failure, Prediction, Verdict
from sagittal.read.sources import file_source
from sagittal.write.equipment import ModelFacts, derive_uids
from sagittal.write.service_objects import KINDS, ObjectFile, ObjectOptions, make_objects, possible_kinds

pytest.importorskip("highdicom")
NOON = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)
UNLIKE = Verdict(False, "unlike the cases the model knows", 1.0)


@pytest.fixture
def make(facts: ModelFacts, tmp_path: Path) -> Callable[..., dict[str, ObjectFile]]:
    """Make objects by kind: ``make(answer, case, kinds, folder=, **given)``."""

    def run(answer: Any, case: Case, kinds: Any = tuple(KINDS), folder: str = "made", **given: Any) -> Any:
        options = ObjectOptions(**{"made_at": NOON, **given.pop("options", {})})
        made = make_objects(
            answer, case, kinds, facts, tmp_path / folder, derive_uid=derive_uids("seed"), options=options, **given
        )
        return {one.kind: one for one in made}

    return run


def answers(case: Case, found_mask: Any, found_boxes: Any, found_classes: Any) -> dict[str, Prediction | Failure]:
    grid = case.image().grid
    return {
        "mask": found_mask(case.id, grid, ("liver", "kidney_left", "cyst", "spleen")),
        "boxes": found_boxes(case.id, grid),
        "classes": found_classes(case.id),
        "labels": found_classes(case.id, "multilabel"),
        "abstained": found_classes(case.id, decision=(), verdict=UNLIKE),
        "refused": Failure(case.id, f"case {case.id}: is a study of modality MR, made for CT", "ScopeError"),
    }


@pytest.mark.parametrize("name", ["mask", "boxes", "classes", "labels", "abstained", "refused"])
def test_every_object_is_valid_and_refers_to_its_study(
    study: Any,
    found_mask: Any,
    found_boxes: Any,
    found_classes: Any,
    make: Any,
    errors_of: Any,
    run_tool: Any,
    name: str,
) -> None:
    case = study(BodyPartExamined="ABDOMEN", TimezoneOffsetFromUTC="+0800", StudyDescription="CT abdomen")
    made = make(answers(case, found_mask, found_boxes, found_classes)[name], case)
    expected = set(KINDS) if name == "mask" else set(KINDS) - {"seg", "rtstruct"}
    assert set(made) == expected
    images = [pydicom.dcmread(path, stop_before_pixels=True) for path in case.images["image"].files]
    own = {str(image.SOPInstanceUID) for image in images}
    dicom = [one for one in made.values() if one.sop_instance_uid]
    for one in dicom:
        assert errors_of(one.path) == [], one.kind
        header = pydicom.dcmread(one.path)
        assert header.SOPInstanceUID == one.sop_instance_uid
        assert header.file_meta.MediaStorageSOPInstanceUID == one.sop_instance_uid
        assert header.SeriesInstanceUID == one.series_instance_uid
        assert one.sop_instance_uid.startswith("2.25.")
        for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "StudyDescription", "AccessionNumber"):
            assert header[keyword].value == images[0][keyword].value, keyword
        # 12:00 UTC on the study's clock.
        assert (header.InstanceCreationDate, header.InstanceCreationTime) == ("20260304", "200000")
        assert header.TimezoneOffsetFromUTC == "+0800"
        referred = {
            str(element.value)
            for element in header.iterall()
            if element.keyword == "ReferencedSOPInstanceUID" and str(element.value) in own
        }
        assert referred == own if one.kind != "ko" else referred <= own
        assert referred
        model = header.ContributingEquipmentSequence[-1]
        assert model.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert model.ManufacturerModelName == "chest"
        assert model.DeviceSerialNumber == "0123456789abcdef" * 4
        assert model.SoftwareVersions[1] == "2.1"
        assert "Algorithm" in model.ContributionDescription
    assert len({one.series_instance_uid for one in dicom}) == len(dicom)
    said = run_tool("dcentvfy", *(str(path) for path in case.images["image"].files), *(str(one.path) for one in dicom))
    wrong = [line for line in said.splitlines() if line.startswith(("Error", "Warning"))]
    # The validator files AccessionNumber of a report under its series.
    assert [line for line in wrong if "AccessionNumber> IE <Series> versus <Study>" not in line] == []


def test_made_again_is_the_same_to_the_byte(
    study: Any, found_mask: Any, found_boxes: Any, found_classes: Any, make: Any
) -> None:
    case = study()
    for name, answer in answers(case, found_mask, found_boxes, found_classes).items():
        first, again = make(answer, case, folder=f"{name}-1"), make(answer, case, folder=f"{name}-2")
        assert {kind: one.path.read_bytes() for kind, one in first.items()} == {
            kind: one.path.read_bytes() for kind, one in again.items()
        }


def test_another_seed_gives_other_uids(study: Any, found_boxes: Any, facts: ModelFacts, tmp_path: Path) -> None:
    case = study()
    answer = found_boxes(case.id, case.image().grid)
    uids = []
    for seed in ("a", "b"):
        made = make_objects(answer, case, ["sr", "sc", "ko"], facts, tmp_path / seed, derive_uid=derive_uids(seed))
        uids += [uid for one in made for uid in (one.sop_instance_uid, one.series_instance_uid)]
    assert len(set(uids)) == 12


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", ["abstained", "refused"])
def test_no_answer_is_said_in_every_object(
    study: Any, found_mask: Any, found_boxes: Any, found_classes: Any, make: Any, name: str, language: str
) -> None:
    case = study()
    made = make(answers(case, found_mask, found_boxes, found_classes)[name], case, options={"language": language})
    reason = {"abstained": "unlike the cases the model knows", "refused": "is a study of modality MR"}[name]
    words = {"en": {"abstained": "abstains", "refused": "refused"}, "zh": {"abstained": "弃权", "refused": "拒绝"}}
    for one in made.values():
        if one.sop_instance_uid:
            header = pydicom.dcmread(one.path)
            text = " ".join(str(e.value) for e in header.iterall() if e.VR in {"UT", "LT", "ST"})
            if one.kind == "sr":
                assert header.CompletionFlag == "PARTIAL"
        else:
            text = one.path.read_bytes().decode()
        assert reason in text, one.kind
        if one.kind != "sc" or language == "en":
            assert words[language][name] in text, one.kind
        assert "82" not in [str(e.value) for e in header.iterall() if e.keyword == "NumericValue"]
    values = json.loads(made["json"].path.read_bytes())
    assert (values["state"], values["findings"], values["confidence"]) == (name, [], None)


def test_a_mask_of_an_abstention_is_not_drawn_as_a_segmentation(study: Any, found_mask: Any, make: Any) -> None:
    case = study()
    found = found_mask(case.id, case.image().grid, ("liver", "kidney_left", "cyst", "spleen"))
    answer = Prediction(
        found.case,
        found.scheme,
        found.finding,
        (),
        found.logits,
        verdict=UNLIKE,
        model=found.model,
        made_at=found.made_at,
    )
    assert set(make(answer, case)) == set(KINDS) - {"seg", "rtstruct"}


def test_names_in_other_character_sets_are_shown_right(
    study: Any, found_boxes: Any, make: Any, errors_of: Any, tmp_path: Path
) -> None:
    names = {
        "GB18030": "Wang^XiaoDong=王^小东",
        "GBK": "Wang^XiaoDong=王^小东",
        ("", "ISO 2022 IR 58"): "Zhang^XiaoDong=张^小东",
        "ISO_IR 192": "Müller^Jörg=王^小东",
        ("", "ISO 2022 IR 149"): "Hong^Gildong=洪^吉洞=홍^길동",
        "ISO_IR 100": "Müller^Jörg",
    }
    for number, (charset, name) in enumerate(names.items()):
        value = list(charset) if isinstance(charset, tuple) else charset
        given: Any = name
        if charset == ("", "ISO 2022 IR 58"):  # PS3.5 K.2; pydicom leaves out the escapes when it writes
            raw = b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab"
            given = PersonName(raw, ["iso8859", "iso_ir_58"])
        case = study(
            name=f"set-{number}",
            SpecificCharacterSet=value,
            PatientName=given,
            BodyPartExamined="CHEST",
            StudyDescription="腹部" if number in {0, 1, 3} else "x",
        )
        made = make(found_boxes(case.id, case.image().grid), case, folder=f"set-{number}")
        for one in made.values():
            if one.sop_instance_uid:
                header = pydicom.dcmread(one.path)
                assert str(header.PatientName) == name
                kept = charset in {"GB18030", "GBK", "ISO_IR 100"}
                assert header.SpecificCharacterSet == (str(charset).replace("GBK", "GB18030") if kept else "ISO_IR 192")
                codec = {"GB18030": "gb18030", "GBK": "gbk", "ISO_IR 100": "latin-1"}.get(str(charset), "utf-8")
                assert name.encode(codec) in one.path.read_bytes()
                assert errors_of(one.path) == []
        group = name.split("=")[-1].split("^")[0]
        assert group in made["hl7"].path.read_bytes().decode()
        assert group in made["fhir"].path.read_bytes().decode()
        assert group not in made["json"].path.read_bytes().decode()


def test_a_character_set_that_lacks_a_sign_of_ours_gives_way(study: Any, found_classes: Any, make: Any) -> None:
    case = study(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    made = make(found_classes(case.id), case, ["sr"], options={"language": "zh"})
    header = pydicom.dcmread(made["sr"].path)
    assert (header.SpecificCharacterSet, str(header.PatientName)) == ("ISO_IR 192", "Müller^Jörg")
    assert any("由算法生成" in str(element.value) for element in header.iterall())


def test_a_study_that_is_no_dicom_has_what_needs_no_images(
    write_png: Any, found_classes: Any, make: Any, tmp_path: Path
) -> None:
    case = Case("x", "x", {"image": file_source("x", write_png("x.png"))})
    made = make(found_classes("x"), case)
    assert set(made) == {"fhir", "fhir5", "json"}
    assert json.loads(made["json"].path.read_bytes())["study"] is None


def test_slices_without_a_lattice_can_still_be_refused(study: Any, make: Any, errors_of: Any) -> None:
    turned = {"ImageOrientationPatient": lambda n: [1, 0, 0, 0, 1, 0] if n % 2 else [1, 0, 0, 0, 0, 1]}
    case = study(BodyPartExamined="CHEST", **turned)
    made = make(Failure(case.id, f"case {case.id}: slices of two directions", "GeometryError"), case)
    assert {"sr", "sc", "ko"} <= set(made)
    for kind in ("sr", "sc", "ko"):
        assert errors_of(made[kind].path) == []


def test_every_series_that_was_read_is_named(study: Any, found_mask: Any, make: Any, errors_of: Any) -> None:
    first = study(name="t1", SeriesInstanceUID="1.2.3.4.5", BodyPartExamined="BRAIN")
    second = study(name="flair", SeriesInstanceUID="1.2.3.4.6", BodyPartExamined="BRAIN")
    elsewhere = study(name="old", StudyInstanceUID="1.2.3.9", SeriesInstanceUID="1.2.3.9.1")
    images = {"T1": first.images["image"], "FLAIR": second.images["image"], "old": elsewhere.images["image"]}
    case = Case("x", "x", images)
    made = make(found_mask("x", first.image().grid, ("liver", "kidney_left", "cyst", "spleen")), case)
    uids = {
        name: {str(pydicom.dcmread(p, stop_before_pixels=True).SOPInstanceUID) for p in source.files}
        for name, source in images.items()
    }
    for kind in ("seg", "rtstruct", "sr", "sc"):
        header = pydicom.dcmread(made[kind].path)
        named = {str(e.value) for e in header.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
        assert uids["T1"] | uids["FLAIR"] <= named, kind
        assert not uids["old"] & named, kind
        assert errors_of(made[kind].path) == []
    for kind in ("fhir", "json"):
        assert "1.2.3.4.6" in made[kind].path.read_bytes().decode()


NAMES = ("<script>alert(1)</script>", "a\\b^c=d|e&f~g", "x" * 200, "新发\n病灶 \x0b\x00", " ", "liver")


@pytest.mark.parametrize("name", ["mask", "boxes", "classes"])
def test_names_that_mean_something_to_a_format_are_only_names(
    study: Any, found_mask: Any, found_boxes: Any, found_classes: Any, make: Any, errors_of: Any, name: str
) -> None:
    case = study(BodyPartExamined="CHEST")
    grid = case.image().grid
    if name == "mask":
        answer = found_mask(case.id, grid, NAMES[:4])
    elif name == "boxes":
        answer = replace(found_boxes(case.id, grid), scheme=LabelScheme("objects", NAMES[:3]), decision=NAMES[:2])
    else:
        scheme = LabelScheme("multilabel", NAMES, "\\evil^")
        answer = found_classes(
            case.id, scheme=scheme, finding=ClassScores(np.full(6, 0.7)), decision=NAMES, conformal=NAMES[:2]
        )
    made = make(answer, case)
    for one in made.values():
        if one.sop_instance_uid:
            assert errors_of(one.path) == [], one.kind
        else:
            data = one.path.read_bytes().decode()
            assert not set(data) & {"\x00", "\x0b"}
            if one.media_type != "application/hl7-v2":
                json.loads(data)
    assert "<script>alert(1)</script>" in made["json"].path.read_text(encoding="utf-8")


def test_a_model_may_have_any_name(
    study: Any, found_boxes: Any, facts: ModelFacts, errors_of: Any, tmp_path: Path
) -> None:
    case = study(BodyPartExamined="CHEST")
    answer = found_boxes(case.id, case.image().grid)
    for number, name in enumerate(("chest\\2", "模型" * 60, "a\nb\x00", "", "^=|~&")):
        other = replace(facts, name=name, version=name, question=name, checksum="")
        folder = tmp_path / str(number)
        for one in make_objects(answer, case, list(KINDS), other, folder, derive_uid=derive_uids("s")):
            if one.sop_instance_uid:
                assert errors_of(one.path) == [], (one.kind, name)


def test_what_cannot_even_be_read_is_told_without_dicom(study: Any, make: Any) -> None:
    case = study()
    for path in case.images["image"].files:
        path.write_bytes(path.read_bytes()[:300])
    made = make(Failure(case.id, f"case {case.id}: its files are cut off", "ReadError"), case)
    assert set(made) == {"fhir", "fhir5", "json"}


def test_kinds_are_checked_and_ordered(found_classes: Any) -> None:
    assert possible_kinds(found_classes("x"), ["json", "seg", "sr"]) == ["sr", "json"]
    with pytest.raises(ConfigError, match="unknown kind of result 'sec'. Did you mean 'sc'"):
        possible_kinds(found_classes("x"), ["sec"])


def test_what_the_files_are_is_stated(study: Any, found_classes: Any, make: Any) -> None:
    import hashlib

    case = study()
    made = make(found_classes(case.id), case, ["sr", "hl7"])
    for one in made.values():
        data = one.path.read_bytes()
        assert (one.size, one.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert made["sr"].media_type == "application/dicom"
    assert [
        one["modality"]
        for one in json.loads(make(found_classes(case.id), case, ["sr", "json"])["json"].path.read_bytes())["objects"]
    ] == ["SR"]


def test_heat_peak_is_the_key_image(study: Any, found_classes: Any, make: Any) -> None:
    case = study()
    grid = case.image().grid
    heat = np.zeros(grid.shape, np.float32)
    heat[4, 5, 6] = 1
    made = make(
        found_classes(case.id), case, ["ko", "sc"], heat=SimpleNamespace(heat=heat, grid=grid, method="gradcam")
    )
    by_number = {
        str(h.SOPInstanceUID): int(h.InstanceNumber)
        for h in (pydicom.dcmread(p, stop_before_pixels=True) for p in case.images["image"].files)
    }
    header = pydicom.dcmread(made["ko"].path)
    (item,) = [one for one in header.ContentSequence if one.ValueType == "IMAGE"]
    assert by_number[item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID] == 7
    assert header.ConceptNameCodeSequence[0].CodeValue == "113000"


def test_without_a_part_of_the_body_the_page_has_no_error_either(
    study: Any, found_classes: Any, make: Any, errors_of: Any
) -> None:
    case = study()
    made = make(found_classes(case.id), case, ["sc"])
    assert [line for line in errors_of(made["sc"].path) if line.startswith("Error")] == []
    assert pydicom.dcmread(made["sc"].path).Laterality == ""


@pytest.mark.parametrize(
    ("sop_class", "modality", "colour"),
    [
        ("1.1.1", "DX", False),
        ("1", "CR", False),
        ("1.2", "MG", False),
        ("6.1", "US", True),
        ("7", "OT", True),
        ("77.1.4", "XC", True),
        ("77.1.5.1", "OP", True),
        ("20", "NM", False),
    ],
)
def test_pictures_of_every_kind_have_valid_objects(
    write_slice: Any, found_classes: Any, make: Any, errors_of: Any, sop_class: str, modality: str, colour: bool
) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (40, 32, 3) if colour else (40, 32)).astype(np.uint8)
    path = write_slice(
        "x.dcm", pixels, SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{sop_class}", Modality=modality, BodyPartExamined="CHEST",
        PatientBirthDate="", PatientSex="", StudyDate="", StudyTime="", StudyID="", AccessionNumber="",
    )  # fmt: skip
    case = Case("x", "x", {"image": file_source("x", path)})
    made = make(found_classes("x"), case)
    assert set(made) == set(KINDS) - {"seg", "rtstruct"}
    for one in made.values():
        if one.sop_instance_uid:
            assert errors_of(one.path) == [], one.kind
            named = [
                str(e.value) for e in pydicom.dcmread(one.path).iterall() if e.keyword == "ReferencedSOPInstanceUID"
            ]
            assert set(named) == {str(pydicom.dcmread(path).SOPInstanceUID)}


def test_a_loop_is_named_as_one_instance(write_slice: Any, found_classes: Any, make: Any, errors_of: Any) -> None:
    frames = np.random.default_rng(1).integers(0, 255, (6, 40, 32)).astype(np.uint8)
    path = write_slice(
        "loop.dcm", frames[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.3.1", Modality="US", NumberOfFrames=6,
        PixelData=frames.tobytes(), FrameTime=40, FrameIncrementPointer=0x00181063, BodyPartExamined="HEART",
    )  # fmt: skip
    case = Case("x", "x", {"image": file_source("x", path)})
    made = make(found_classes("x"), case)
    for kind in ("sr", "sc", "ko"):
        assert errors_of(made[kind].path) == [], kind
