"""Objects in tables beside volumes and DICOM trees: LUNA's form, scans without any, several classes."""

from __future__ import annotations

import numpy as np
import pytest

from sagittal.errors import ConfigError, DataError
from sagittal.read.open_dataset import open_dataset
from sagittal.truth import Boxes

#: NIfTI's RAS of a grid of 0.5 x 0.8 x 2 mm whose k runs along the patient's j.
AFFINE = np.array([[-0.5, 0, 0, 10], [0, 0, 2.0, 20], [0, 0.8, 0, -30], [0, 0, 0, 1.0]])
HEAD = "seriesuid,coordX,coordY,coordZ,diameter_mm,class\n"


def place(i, j, k):
    """LPS+ mm of a voxel of that grid."""
    return -10 + 0.5 * i, -20 - 2.0 * k, -30 + 0.8 * j


def row(name, voxel, diameter, kind):
    return ",".join(map(str, (name, *place(*voxel), diameter, kind))) + "\n"


@pytest.fixture
def luna(tmp_path, write_nifti, write_text):
    """Three scans in two folders, two of them with nodules of two kinds."""
    for n in range(3):
        write_nifti(f"luna/subset{n % 2}/1.2.84{n}.nii.gz", np.zeros((40, 50, 20), np.int16), AFFINE)
    rows = (
        row("1.2.840", (10, 25, 4), 8, "solid")
        + row("1.2.840", (30, 20, 9), 4, "ground")
        + row("1.2.841", (5, 5, 5), 2, "solid")
    )
    write_text("luna/annotations.csv", HEAD + rows)
    return tmp_path / "luna"


def test_scans_without_a_row_say_nothing_unless_told(luna):
    dataset = open_dataset(luna)
    assert (len(dataset), dataset.scheme.classes) == (2, ("ground", "solid"))
    assert [(one.case, one.code) for one in dataset.skipped] == [("subset0/1.2.842.nii.gz", "no-truth")]
    assert any(
        "1 images that no row names are left out" in told and "--unlisted empty" in told for told in dataset.notes
    )
    every = open_dataset(luna, unlisted="empty")
    assert [len(case.truth) for case in every] == [2, 1, 0]
    assert every.skipped == ()
    assert "1 images that no row names hold no object (as asked for)" in every.notes
    empty = every.cases[2]
    assert isinstance(empty.truth, Boxes)
    assert len(empty.truth.on(empty.image().grid)) == 0
    with pytest.raises(ConfigError, match="unlisted='emty' is not known. Did you mean 'empty'"):
        open_dataset(luna, unlisted="emty")


def test_spheres_lie_on_the_voxels_of_their_scan(luna):
    case = open_dataset(luna).cases[0]
    found = case.truth.on(case.image().grid)
    np.testing.assert_allclose(found.corners[0], [[2, 20, 2], [18, 30, 6]], atol=1e-9)
    assert found.classes.tolist() == [1, 0]


def test_a_table_of_all_scans_beside_the_one_of_objects(luna, write_text):
    write_text(
        "luna/scans.csv",
        "scan,patient,age,split\n"
        + "".join(f"1.2.84{n},p{n},{40 + n},{s}\n" for n, s in enumerate(("train", "val", "test"))),
    )
    dataset = open_dataset(luna / "scans.csv", labels=luna / "annotations.csv")
    assert [(c.id, len(c.truth), c.table["age"], c.split) for c in dataset] == [
        ("1.2.840", 2, 40, "train"), ("1.2.841", 1, 41, "val"), ("1.2.842", 0, 42, "test"),
    ]  # fmt: skip
    assert len(dataset.patients) == 3
    assert any("3 images by column 'scan' of scans.csv, 1 of them without a row" in told for told in dataset.notes)
    write_text("luna/scans.csv", "scan,patient\n1.2.840,p0\n1.2.840,p0\n")
    with pytest.raises(DataError, match="the table of images names one of them twice, in row 3"):
        open_dataset(luna / "scans.csv", labels=luna / "annotations.csv")


@pytest.fixture
def tree(tmp_path, write_series, write_text):
    """Three series of two patients; nodules in the first, at the voxel (3, 2, 1), and of the second patient."""
    for n in range(3):
        fields = {"SeriesInstanceUID": f"1.2.{n}", "StudyInstanceUID": f"1.{n}", "PatientID": f"S{min(n, 1)}"}
        write_series(f"ct/{n}", np.zeros((4, 6, 5), np.int16), [0, 2, 4, 6], **fields)
    dataset = open_dataset(tmp_path / "ct", layout="files")
    grid = next(case.image().grid for case in dataset if case.images["image"].files[0].parent.name == "0")
    x, y, z = (grid.affine @ [3, 2, 1, 1])[:3]
    return tmp_path / "ct", write_text, f"{x},{y},{z},3"


def test_objects_of_a_dicom_tree(tree):
    folder, write_text, sphere = tree
    table = write_text(
        "t.csv", f"seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2.0,{sphere}\n1.2.0,{sphere}\n9.9,1,1,1,1\n"
    )
    dataset = open_dataset(folder, labels=table)
    assert (dataset.layout, dataset.scheme.kind, dataset.scheme.classes) == ("dicom_tree", "objects", ("object",))
    (case,) = dataset.cases
    assert len(case.truth) == 2, "the rows of one series are one case"
    np.testing.assert_allclose(case.truth.on(case.image().grid).corners.mean(axis=1), [[3, 2, 1]] * 2, atol=1e-6)
    assert case.patient.startswith("p-")
    assert sorted(one.code for one in dataset.skipped) == ["no-image", "no-truth", "no-truth"]
    every = open_dataset(folder, labels=table, unlisted="empty")
    assert sorted(len(case.truth) for case in every) == [0, 0, 2]


def test_objects_of_a_patient_with_several_volumes_are_not_guessed(tree):
    folder, write_text, sphere = tree
    table = write_text("t.csv", f"patient_id,coordX,coordY,coordZ,diameter_mm\nS0,{sphere}\nS1,{sphere}\n")
    dataset = open_dataset(folder, labels=table)
    assert len(dataset) == 1
    assert {(one.code, one.reason) for one in dataset.skipped} == {
        ("ambiguous", "the table has objects of its PatientID, which has 2 volumes: name them by SeriesInstanceUID")
    }


def test_official_lists_of_bccd_are_its_splits(bench_data):
    folder = bench_data / "bccd"
    dataset = open_dataset(folder)
    for split in ("train", "val"):
        listed = set((folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split())
        assert {case.id.rpartition("/")[2] for case in dataset.split(split)} == listed
    assert all(case.split for case in dataset), "no case is free to be put elsewhere"


def test_a_metaimage_as_luna_has_it(tmp_path, write_text):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(np.zeros((20, 50, 40), np.int16))
    image.SetSpacing((0.5, 0.8, 2.0))
    image.SetOrigin((-30.0, 12.0, -200.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    (tmp_path / "luna").mkdir()
    sitk.WriteImage(image, str(tmp_path / "luna" / "1.3.6.mhd"))
    voxel = (10, 25, 4)
    world = image.TransformIndexToPhysicalPoint(voxel)
    write_text(
        "luna/annotations.csv", "seriesuid,coordX,coordY,coordZ,diameter_mm\n1.3.6," + ",".join(map(str, (*world, 8)))
    )
    (case,) = open_dataset(tmp_path / "luna").cases
    found = case.truth.on(case.image().grid)
    np.testing.assert_allclose(found.corners, [[[2, 20, 2], [18, 30, 6]]], atol=1e-9)


def test_objects_in_a_zip(luna, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "luna.zip", "w") as archive:
        for file in sorted(luna.rglob("*.*")):
            archive.write(file, file.relative_to(tmp_path))
    dataset = open_dataset(tmp_path / "luna.zip", unlisted="empty")
    assert [len(case.truth) for case in dataset] == [2, 1, 0]
    assert dataset.cases[2].image().grid.shape == (40, 50, 20)
