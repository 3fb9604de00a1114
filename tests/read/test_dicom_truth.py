"""A DICOM tree with segmentations and structure sets becomes cases with truth; what does not fit is told."""

from __future__ import annotations

import shutil

import numpy as np
import pydicom
import pytest

from sagittal.errors import DataError, ReadError
from sagittal.read.manifest import read_manifest, write_manifest
from sagittal.read.open_dataset import open_dataset

ROWS, COLUMNS, SLICES = 7, 9, 6
PATIENT = {
    "PatientBirthDate": "", "PatientSex": "", "AccessionNumber": "", "StudyID": "", "StudyDate": "", "StudyTime": "",
    "ReferringPhysicianName": "", "SeriesNumber": 1, "SliceThickness": 2.5, "FrameOfReferenceUID": "1.2.3.4.9",
}  # fmt: skip


@pytest.fixture
def tree(tmp_path, write_series, write_seg, write_rtstruct):
    """Three series of three patients: one with a SEG and a structure set, one with a SEG, one with nothing."""
    volume = np.zeros((SLICES, ROWS, COLUMNS), np.int16)
    series = {}
    for name in ("a", "b", "c"):
        series[name] = write_series(
            f"tree/{name}/ct", volume, [2.5 * n for n in range(SLICES)], SeriesInstanceUID=f"1.2.3.{ord(name)}", PatientID=f"SECRET-{name}",
            StudyInstanceUID=f"1.2.{ord(name)}", InstanceNumber=lambda n: n + 1, **PATIENT,
        )  # fmt: skip
    labels = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
    labels[2, 3, 4], labels[4, 5, 6] = 1, 2
    write_seg(tmp_path / "tree/a/seg.dcm", series["a"], labels)
    write_rtstruct(
        tmp_path / "tree/a/rs.dcm",
        series["a"],
        {"kidney left": [[[0.5, 0.5, 1], [3.5, 0.5, 1], [3.5, 3.5, 1], [0.5, 3.5, 1]]]},
    )
    write_seg(tmp_path / "tree/b/seg.dcm", series["b"], labels, names=("liver", "cyst"))
    return tmp_path / "tree", series


def test_cases_are_the_series_that_are_outlined(tree, tmp_path):
    folder, _ = tree
    dataset = open_dataset(folder)
    assert (dataset.layout, len(dataset)) == ("dicom_truth", 2)
    assert dataset.scheme.kind == "structures"
    assert set(dataset.scheme.classes) == {"liver", "lesion", "cyst", "kidney left"}
    assert dataset.scheme.lateral
    assert [one.reason for one in dataset.skipped] == ["no segmentation or structure set of the tree refers to it"]
    first, second = sorted(dataset, key=lambda case: len(case.truth.structures), reverse=True)
    found, image = first.truth.load(), first.image()
    assert found.grid.same_place(image.grid)
    assert np.argwhere(found.mask("liver")).tolist() == [[4, 3, 2]]
    assert np.argwhere(found.mask("lesion")).tolist() == [[6, 5, 4]]
    assert found.mask("kidney left").sum(axis=(0, 1)).tolist() == [0, 9, 0, 0, 0, 0]
    assert set(second.truth.structures) == {"liver", "cyst"}
    assert first.patient != second.patient
    assert not any("SECRET" in text for case in dataset for text in (case.id, case.patient, case.source))
    write_manifest(dataset, tmp_path / "manifest")
    again = {case.id: case for case in read_manifest(tmp_path / "manifest")}[first.id]
    np.testing.assert_array_equal(again.truth.load().layers, found.layers)


def test_a_zip_of_it_and_one_structure_of_it(tree, tmp_path):
    folder, _ = tree
    archive = shutil.make_archive(str(tmp_path / "study"), "zip", folder)
    dataset = open_dataset(archive, target="cyst")
    assert dataset.scheme.classes == ("cyst",)
    case = next(case for case in dataset if "cyst" in case.truth.structures)
    assert np.argwhere(case.truth.load().mask("cyst")).tolist() == [[6, 5, 4]]


def test_missing_images_damaged_objects_and_two_observers(tree, tmp_path):
    folder, series = tree
    series["b"][2].unlink()
    header = pydicom.dcmread(folder / "a/seg.dcm")
    header.SOPInstanceUID = "1.2.3.99"
    header.save_as(folder / "a/seg2.dcm")
    (folder / "c/seg.dcm").write_bytes((folder / "a/seg.dcm").read_bytes())
    broken = pydicom.dcmread(folder / "a/seg.dcm")
    del broken.SegmentSequence
    broken.save_as(folder / "c/broken.dcm")
    with pytest.raises(DataError, match="none of its 6 segmentations and structure sets outlines images"):
        open_dataset(folder)
    (folder / "a/seg2.dcm").unlink()
    (folder / "c/seg.dcm").unlink()
    dataset = open_dataset(folder)
    reasons = " | ".join(sorted(one.reason for one in dataset.skipped))
    assert "refers to 6 images, of which 1 are missing among the 5 files" in reasons
    assert "its segments are not described" in reasons
    assert len(dataset) == 1
    header.save_as(folder / "a/seg2.dcm")
    with pytest.raises(DataError) as caught:
        open_dataset(folder)
    assert "SECRET" not in str(caught.value)
    shutil.rmtree(folder / "a/ct")
    with pytest.raises(DataError, match="refers to images that are not in the tree|missing"):
        open_dataset(folder)


def test_a_case_says_its_name_when_its_truth_breaks(tree):
    folder, _ = tree
    dataset = open_dataset(folder)
    case = next(case for case in dataset if "cyst" in case.truth.structures)
    (folder / "b/seg.dcm").write_bytes((folder / "b/seg.dcm").read_bytes()[:-10])
    with pytest.raises(ReadError, match=f"^case {case.id}: "):
        case.truth.load()


@pytest.mark.data
def test_published_trees(bench_data):
    folder = bench_data / "dicom/seg/segmentations/23x38x3"
    dataset = open_dataset(folder)
    assert dataset.layout == "dicom_truth"
    assert dataset.scheme.classes == ("Liver",)
    assert len(dataset) == 1
    assert dataset.cases[0].truth.load().mask("Liver").any()
    dataset = open_dataset(bench_data / "dicom/rtstruct/mock_data")
    assert len(dataset) == 1
    assert any("missing" in one.reason for one in dataset.skipped)


def test_an_outlined_series_beside_others_of_its_study(tmp_path, write_series, write_seg):
    volume = np.zeros((SLICES, ROWS, COLUMNS), np.int16)
    labels = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
    labels[2, 3, 4] = 1
    for study in range(3):
        series = {
            name: write_series(
                f"tree/{study}/{name}", volume + n, [2.5 * k for k in range(SLICES)], SeriesInstanceUID=f"1.{study}.{n}",
                StudyInstanceUID=f"1.{study}", PatientID=f"S{study}", SeriesDescription=name, InstanceNumber=lambda k: k + 1,
                **PATIENT,
            )
            for n, name in enumerate(("T1", "T2", "SCOUT"))
        }  # fmt: skip
        if study < 2:
            write_seg(tmp_path / f"tree/{study}/seg.dcm", series["T2"], labels, names=("lesion",))
    dataset = open_dataset(tmp_path / "tree", images="T1=T1,T2=T2")
    assert (dataset.layout, len(dataset), dataset.scheme.classes) == ("dicom_truth", 2, ("lesion",))
    for case in dataset:
        assert [float(case.image(name).data.max()) for name in ("T1", "T2")] == [-1024, -1023]
        assert np.argwhere(case.truth.load().mask("lesion")).tolist() == [[4, 3, 2]]
        assert case.id.startswith("study-")
    assert sorted(one.code for one in dataset.skipped).count("no-truth") >= 1
    assert any(one.reason == "none of its 2 series is outlined; one was expected" for one in dataset.skipped)
    with pytest.raises(DataError, match="no study has the series of --images with one of them outlined"):
        open_dataset(tmp_path / "tree", images="A=T1,B=SCOUT")
    write_manifest(dataset, tmp_path / "manifest")
    assert list(read_manifest(tmp_path / "manifest").cases[0].images) == ["T1", "T2"]
