"""All results of a batch: files by case, one bad case that stops nothing, and nothing of a patient where it does not belong."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from sagittal.case import Case
from sagittal.errors import ConfigError
from sagittal.grid import Grid
from sagittal.labels import ClassScores
from sagittal.prediction import Failure, Prediction
from sagittal.read.sources import file_source
from sagittal.write.result_files import FORMATS, check_formats, write_results
from sagittal.write.terminology import Terminology

pytest.importorskip("highdicom")


def table_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_every_format_of_a_mask(
    study: Callable[..., Case],
    found_mask: Callable[..., Prediction],
    errors_of: Callable[[Path], list[str]],
    tmp_path: Path,
) -> None:
    case = study()
    prediction = found_mask(case.id, case.image().grid, overlapping=False, probability=True)
    wanted = ["nifti", "seg", "seg-fractional", "rtstruct", "sr", "png", "csv", "json"]
    written = write_results([prediction], [case], tmp_path / "out", wanted)
    assert written.failures == ()
    assert sorted(path.name for path in written.paths) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert sorted(path.name for path in written.paths) == [
        "measurements.csv", "study-7.labels.json", "study-7.labels.nii.gz", "study-7.labels.probability.nii.gz", "study-7.overlay.png",
        "study-7.result.json", "study-7.rtstruct.dcm", "study-7.seg-fractional.dcm", "study-7.seg.dcm", "study-7.sr.dcm",
    ]  # fmt: skip
    rows = table_of(tmp_path / "out" / "measurements.csv")
    assert [(row["case"], row["structure"], row["found"]) for row in rows] == [
        ("study-7", "Liver", "yes"), ("study-7", "kidney_left", "yes"), ("study-7", "Liver Tumor", "no"), ("study-7", "spleen", "no"),
    ]  # fmt: skip
    inside = prediction.finding.segmentation.mask("Liver")
    values = case.image().data[0][inside]
    assert float(rows[0]["volume_ml"]) == pytest.approx(inside.sum() * 0.5 * 0.7 * 2.5 / 1000, rel=1e-4)
    assert float(rows[0]["mean"]) == pytest.approx(float(values.mean()), rel=1e-4)
    assert (rows[0]["intensity_unit"], rows[0]["expected_dice"]) == ("HU", "0.91")
    assert rows[3]["volume_ml"] == "0.0"
    assert rows[3]["mean"] == ""
    for path in written.paths:
        if path.suffix == ".dcm":
            assert errors_of(path) == []
    report = pydicom.dcmread(tmp_path / "out" / "study-7.sr.dcm")
    seg = pydicom.dcmread(tmp_path / "out" / "study-7.seg.dcm")
    assert seg.SOPInstanceUID in str(report)


def test_every_format_of_boxes(
    study: Callable[..., Case], found_boxes: Callable[..., Prediction], tmp_path: Path
) -> None:
    case = study()
    prediction = found_boxes(case.id, case.image().grid)
    written = write_results([prediction], [case], tmp_path, ["sr", "png", "csv", "json", "coco"])
    assert written.failures == ()
    assert sorted(path.name for path in written.paths) == [
        "detections.coco.json", "detections.csv", "detections.images.json", "study-7.overlay.png", "study-7.result.json", "study-7.sr.dcm",
    ]  # fmt: skip
    assert len(table_of(tmp_path / "detections.csv")) == 3


def test_defaults_fit_the_finding(
    study: Callable[..., Case],
    found_boxes: Callable[..., Prediction],
    found_mask: Callable[..., Prediction],
    tmp_path: Path,
) -> None:
    case = study()
    grid = case.image().grid
    mask = write_results([found_mask(case.id, grid, overlapping=False)], [case], tmp_path / "m")
    boxes = write_results([found_boxes(case.id, grid)], [case], tmp_path / "b")
    assert mask.failures == boxes.failures == ()
    assert {path.name for path in mask.paths} == {
        "study-7.labels.nii.gz",
        "study-7.labels.json",
        "study-7.overlay.png",
        "measurements.csv",
    }
    assert {path.name for path in boxes.paths} == {
        "detections.csv", "detections.coco.json", "detections.images.json", "study-7.overlay.png",
    }  # fmt: skip


def test_one_bad_case_stops_nothing(
    study: Callable[..., Case],
    found_mask: Callable[..., Prediction],
    write_nifti: Callable[..., Path],
    tmp_path: Path,
) -> None:
    good = study()
    path = write_nifti("n.nii.gz", np.zeros((21, 17, 9), np.float32))
    plain = Case("plain", "p", {"image": file_source("plain", path)})
    gone = study((21, 17, 9), "gone", SeriesInstanceUID="1.2.3.4.8")
    gone_grid = gone.image().grid
    for file in gone.images["image"].files:
        file.unlink()
    predictions = [
        found_mask("gone", gone_grid),
        Failure("broken", "case broken: cut off"),
        found_mask("plain", plain.image().grid),
        found_mask(good.id, good.image().grid),
        replace(found_mask("classes", good.image().grid), finding=ClassScores(np.zeros(4))),
        found_mask("stranger", good.image().grid),
    ]
    written = write_results(iter(predictions), [gone, plain, good], tmp_path / "out", ["seg", "csv"])
    assert [path.name for path in written.paths] == ["study-7.seg.dcm", "measurements.csv"]
    told = {(failure.case, failure.error.split(": ")[1]) for failure in written.failures}
    assert told == {
        ("gone", "seg"), ("gone", "csv"), ("plain", "seg"),
        ("classes", "found classes for the whole case; write them as a table"), ("stranger", "seg"),
    }  # fmt: skip
    by_case = {failure.case: failure.error for failure in written.failures}
    assert "this study is none. Write another format: --format nifti" in by_case["plain"]
    assert "its study is not at hand" in by_case["stranger"]
    assert {row["case"] for row in table_of(tmp_path / "out" / "measurements.csv")} == {"plain", "study-7", "stranger"}


def test_what_is_there_is_kept(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    case = study()
    prediction = found_mask(case.id, case.image().grid)
    write_results([prediction], [case], tmp_path, ["seg"])
    before = (tmp_path / "study-7.seg.dcm").read_bytes()

    def never() -> object:
        raise AssertionError("predicted although the folder is taken")
        yield

    with pytest.raises(ConfigError, match=r"study-7\.seg\.dcm exists already and is kept\. To replace it: --overwrite"):
        write_results(never(), [case], tmp_path, ["seg"])
    assert (tmp_path / "study-7.seg.dcm").read_bytes() == before
    assert write_results([prediction], [case], tmp_path, ["seg"], overwrite=True).failures == ()
    assert (tmp_path / "study-7.seg.dcm").read_bytes() != before  # another instance, made at another time


def test_nothing_of_the_patient_outside_dicom(
    study: Callable[..., Case],
    found_mask: Callable[..., Prediction],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = study(
        PatientName="Doe^Secret", PatientID="SECRET-4711", AccessionNumber="ACC-99", PatientBirthDate="19440607"
    )
    prediction = found_mask(case.id, case.image().grid, ("liver", "gizmo", "cyst", "spleen"), probability=True)
    formats = ["nifti", "seg", "seg-fractional", "rtstruct", "sr", "png", "csv", "json"]
    with caplog.at_level(logging.DEBUG):
        written = write_results([prediction], [case], tmp_path / "out", formats)
    assert written.failures == ()
    for path in written.paths:
        content = path.read_bytes()
        if path.name.endswith(".nii.gz"):
            import gzip

            content = gzip.decompress(content)
        for secret in (b"Secret", b"SECRET-4711", b"ACC-99", b"19440607"):
            assert (secret in content) == (path.suffix == ".dcm"), (path.name, secret)
            assert secret.decode() not in caplog.text
            assert secret.decode() not in path.name


def test_case_ids_become_safe_names(found_mask: Callable[..., Prediction], tmp_path: Path) -> None:
    names = ["../up", "a/b", "a b", "a_b"]
    predictions = [found_mask(name, Grid((20, 10, 1)), overlapping=False) for name in names]
    written = write_results(predictions, [], tmp_path / "out", ["mask"])
    assert written.failures == ()
    assert len(list((tmp_path / "out").iterdir())) == len(written.paths) == 8
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_terminology_of_the_user_reaches_every_format(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    case = study()
    prediction = found_mask(case.id, case.image().grid, ("gizmo", "liver", "cyst", "spleen"), overlapping=False)
    own = Terminology({"gizmo": {"category": "object", "type": ["77", "99MINE", "Gizmo of mine"], "colour": "#123456"}})
    written = write_results([prediction], [case], tmp_path, ["seg", "rtstruct", "sr", "nifti"], terminology=own)
    assert written.failures == ()
    for name in ("seg", "rtstruct", "sr"):
        assert b"Gizmo of mine" in (tmp_path / f"study-7.{name}.dcm").read_bytes()
    (first, *_) = json.loads((tmp_path / "study-7.labels.json").read_text())["structures"]
    assert (first["code"], first["colour"]) == (["77", "99MINE", "Gizmo of mine"], "#123456")


@pytest.mark.parametrize(
    ("formats", "kind", "message"),
    [
        (["sge"], None, "unknown format 'sge'. Did you mean 'seg'"),
        (["coco"], "structures", "holds boxes, and this model finds a mask. Formats that fit: nifti, mask, seg"),
        (["seg"], "objects", "holds a mask, and this model finds boxes. Formats that fit: sr, png, coco, csv, json"),
        (["sr"], "multiclass", "finds classes for the whole case. Write a table: -o predictions.csv"),
    ],
)
def test_formats_that_do_not_fit(formats: list[str], kind: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_formats(formats, kind)


def test_every_format_is_described() -> None:
    assert set(FORMATS) == {"nifti", "mask", "seg", "seg-fractional", "rtstruct", "sr", "png", "coco", "csv", "json"}
    assert check_formats(["png", "csv", "png"], "objects") == ("png", "csv")
