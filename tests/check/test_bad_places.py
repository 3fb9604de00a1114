"""Wrong truth with a place, each with its message: what was found, what was expected, what to do."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from sagittal.case import Case
from sagittal.check.check_dataset import check_dataset
from sagittal.dataset import Dataset
from sagittal.labels import LabelScheme
from sagittal.read.open_dataset import open_dataset
from sagittal.read.sources import make_mask_source, series_source
from sagittal.read.studies import find_studies

AFFINE = np.array([[-0.7, 0.1, 0, 10], [0, 0, 2.0, 20], [0, 0.8, 0, -30], [0, 0, 0, 1.0]])


def told(dataset):
    return {one.code: one for one in check_dataset(dataset, pixels="all", near=False)}


@pytest.fixture
def organs(tmp_path, write_nifti):
    """Three volumes of noise with masks; ``organs(mask=..., affine=...)`` changes the mask of the second."""

    def make(mask=None, affine=AFFINE, every=False, **options):
        for n in range(3):
            noise = np.random.default_rng(n).integers(0, 99, (6, 5, 4)).astype(np.int16)
            write_nifti(f"set/images/{n}.nii.gz", noise, AFFINE)
            usual = np.zeros((6, 5, 4), np.uint8)
            usual[1:4, 1:4, 1:3] = 1
            usual[4, 4, 3] = 2
            changed = mask is not None and (n == 1 or every)
            write_nifti(f"set/masks/{n}.nii.gz", mask if changed else usual, affine if changed else AFFINE)
        return open_dataset(tmp_path / "set", target="liver=1,spleen=2", **options)

    return make


def test_sound_masks_are_silent(organs):
    assert {code for code, one in told(organs()).items() if one.severity != "note"} == {"few-patients"}


def test_labels_on_another_grid(organs):
    finding = told(organs(np.ones((6, 5, 8), np.uint8), AFFINE @ np.diag([1, 1, 0.5, 1])))["mask-on-another-grid"]
    assert (finding.severity, finding.cases) == ("error", ("images/1",))
    for part in (
        "image has 6 x 5 x 4 voxels, mask 6 x 5 x 8", "spacing 0.7 x 0.8062 x 2 and 0.7 x 0.8062 x 1 mm",
        "resample the mask onto the image's grid by nearest neighbour",
    ):  # fmt: skip
        assert part in finding.message
    shifted = AFFINE.copy()
    shifted[:3, 3] += 4
    assert (
        "same shape, but corners up to 6.93 mm apart"
        in told(organs(np.ones((6, 5, 4), np.uint8), shifted))["mask-on-another-grid"].message
    )
    turned = told(organs(np.ones((5, 6, 4), np.uint8)))["mask-on-another-grid"].message
    assert "as if axes were exchanged" in turned


def test_a_label_of_one_slice_for_a_volume(organs):
    finding = told(organs(np.ones((6, 5, 1), np.uint8)))["mask-of-one-slice"]
    assert (finding.severity, finding.cases) == ("error", ("images/1",))
    assert "image has 6 x 5 x 4 voxels, mask 6 x 5 x 1" in finding.message
    assert "Export the outlines as a volume on the image's grid" in finding.message


def test_values_outside_the_scheme(organs):
    mask = np.zeros((6, 5, 4), np.uint8)
    mask[0, 0, :2] = 7
    finding = told(organs(mask))["unknown-mask-value"]
    assert finding.cases == ("images/1",)
    assert "holds the values 7, which no structure has (liver = 1, spleen = 2); name them too, or mend the mask" in (
        finding.message
    )


def test_empty_masks_everywhere(organs):
    found = told(organs(np.zeros((6, 5, 4), np.uint8), every=True))
    assert found["empty-mask"].severity == "error"
    assert "all 3 masks that were read outline nothing" in found["empty-mask"].message
    assert "that liver, spleen have the values that they use" in found["empty-mask"].message
    assert "structure-never-occurs" not in found, "said once"
    one = told(organs(np.zeros((6, 5, 4), np.uint8)))["empty-mask"]
    assert (one.severity, one.cases) == ("warning", ("images/1",))


def test_a_structure_that_is_never_there(organs):
    mask = np.zeros((6, 5, 4), np.uint8)
    mask[1:3] = 1
    finding = told(organs(mask, every=True))["structure-never-occurs"]
    assert finding.severity == "warning"
    assert "no mask that was read holds 'spleen'; it can be neither learned nor judged" in finding.message


def test_structures_that_were_not_looked_for_everywhere(tmp_path, write_png):
    for n in range(3):
        write_png(f"{n}.png", np.random.default_rng(n).integers(0, 99, (9, 12)).astype(np.uint8))
        write_png(f"{n}_liver.png", np.eye(9, 12, dtype=np.uint8))
        if n:
            write_png(f"{n}_spleen.png", np.eye(9, 12, k=2, dtype=np.uint8))
    finding = told(open_dataset(tmp_path))["partly-outlined"]
    assert (finding.severity, finding.details) == ("note", {"0": "spleen"})
    assert "'spleen' in 2 of 3" in finding.message
    assert "it counts as unknown, neither present nor absent" in finding.message


def test_masks_that_know_nothing(organs):
    found = told(organs(np.full((6, 5, 4), 9, np.uint8)))
    assert "nothing-known" not in found
    dataset = organs(np.full((6, 5, 4), 9, np.uint8))
    cases = tuple(
        Case(
            c.id,
            c.id,
            c.images,
            truth=make_mask_source(c.id, "label_map", c.truth.files, {**c.truth.options, "ignore": 9}),
        )
        for c in dataset
    )
    finding = told(Dataset("set", cases, dataset.scheme))["nothing-known"]
    assert (finding.severity, finding.cases) == ("warning", ("images/1",))


# DICOM objects -------------------------------------------------------------------------------------------------------


@pytest.fixture
def series(tmp_path, write_series):
    """Two CT series of 7 x 9 x 6 voxels in one frame of reference."""
    depths = [0.0, 2.5, 5.0, 7.5, 10.0, 12.5]
    fields = {
        "PatientBirthDate": "", "PatientSex": "", "AccessionNumber": "", "StudyID": "", "StudyDate": "", "StudyTime": "",
        "ReferringPhysicianName": "", "SeriesNumber": 1, "SliceThickness": 2.5, "FrameOfReferenceUID": "1.2.3.4.9",
    }  # fmt: skip
    return [
        write_series(
            f"tree/{n}", np.random.default_rng(n).integers(0, 99, (6, 7, 9)).astype(np.int16), depths,
            SeriesInstanceUID=f"1.2.{n}", InstanceNumber=lambda k: k + 1, **fields,
        )
        for n in range(2)
    ]  # fmt: skip


def of_series(series, way, file, names):
    case = Case(
        "c",
        "p",
        {"image": series_source("c", series)},
        truth=make_mask_source("c", way, (file, *series), structures=names),
    )
    return Dataset("set", (case,), LabelScheme("structures", names, "segmentation"))


def test_a_segmentation_of_another_series(tmp_path, series, write_seg):
    seg = write_seg(tmp_path / "tree" / "seg.dcm", series[0], np.ones((6, 7, 9), np.uint8), "BINARY", ("liver",))
    dataset = open_dataset(tmp_path / "tree")
    assert [case.images["image"].files for case in dataset] == [tuple(series[0])]
    finding = told(of_series(series[1], "dicom_seg", seg, ("liver",)))["mask-of-another-image"]
    assert (finding.severity, finding.cases) == ("error", ("c",))
    assert (
        "DICOM SEG: refers to another series (1 named, none of them this one). Give the images that it was made from"
        in (finding.message)
    )
    for path in series[0]:
        path.unlink()
    left = [one for one in check_dataset(open_dataset(tmp_path / "tree", layout="files")) if one.code == "skipped"]
    assert left


@pytest.mark.parametrize(
    ("move", "code", "message"),
    [
        ([500, 0, 0], "mask-outside-image", "lies outside the image of .* The structures belong to another image"),
        ([0, 0, 300], "mask-outside-image|contour-off-slices", "outside the image|not parallel"),
    ],
)
def test_contours_outside_the_volume(tmp_path, series, write_rtstruct, contour, move, code, message):
    import re

    first = pydicom.dcmread(series[0][0])
    row, column = np.array(first.ImageOrientationPatient[:3], float), np.array(first.ImageOrientationPatient[3:], float)
    origin = np.array(first.ImagePositionPatient, float)
    square = np.array([origin + a * row + b * column for a, b in ((1, 1), (3, 1), (3, 3), (1, 3))])
    sound = write_rtstruct(tmp_path / "sound.dcm", series[0], {"liver": [contour(square)]})
    assert "mask-outside-image" not in told(of_series(series[0], "rtstruct", sound, ("liver",)))
    wrong = write_rtstruct(tmp_path / "wrong.dcm", series[0], {"liver": [contour(square + move)]})
    found = told(of_series(series[0], "rtstruct", wrong, ("liver",)))
    (finding,) = (one for name, one in found.items() if re.fullmatch(code, name))
    assert re.search(message, finding.message)


def test_contours_between_the_slices(tmp_path, series, write_rtstruct, contour):
    first = pydicom.dcmread(series[0][0])
    row, column = np.array(first.ImageOrientationPatient[:3], float), np.array(first.ImageOrientationPatient[3:], float)
    origin = np.array(first.ImagePositionPatient, float)
    tipped = np.array([origin + a * row + b * column for a, b in ((1, 1), (3, 1), (3, 3), (1, 3))])
    tipped[2:] += 3 * np.cross(row, column)
    path = write_rtstruct(tmp_path / "a.dcm", series[0], {"liver": [contour(tipped)]})
    finding = told(of_series(series[0], "rtstruct", path, ("liver",)))["contour-off-slices"]
    assert "is not parallel to the slices of the images" in finding.message
    assert "Export the structures on the original slices" in finding.message


# Boxes ---------------------------------------------------------------------------------------------------------------


def test_boxes_that_enclose_nothing(tmp_path, write_png, write_text):
    for n in range(6):
        write_png(f"{n}.png", np.random.default_rng(n).integers(0, 99, (9, 12)).astype(np.uint8))
    rows = ["1,1,4,4", "20,1,3,3", "10,1,4,4", "2,2,0,3", "-5,2,3,3", "-1,2,3,3"]
    write_text("t.csv", "image,x,y,width,height\n" + "".join(f"{n}.png,{row}\n" for n, row in enumerate(rows)))
    found = told(open_dataset(tmp_path))
    assert found["box-outside"].cases == ("1", "4")
    assert "box 1 (object): (19.5, 0.5) to (22.5, 3.5), wholly outside the 12 x 9 image" in found["box-outside"].message
    assert "They enclose nothing of it and are left out" in found["box-outside"].message
    assert found["box-out-of-frame"].cases == ("2", "5")
    assert found["degenerate-box"].cases == ("3",)
    assert all(found[code].severity == "warning" for code in ("box-outside", "box-out-of-frame", "degenerate-box"))


def test_why_a_study_was_left_out_has_a_code(tmp_path, write_png):
    for n in range(4):
        write_png(f"images/{n}.png")
        write_png(f"masks/{n + 1}.png", np.eye(9, 12, dtype=np.uint8))
    dataset = open_dataset(tmp_path)
    assert {(one.case, one.code) for one in dataset.skipped} == {
        ("images/0.png", "no-truth"),
        ("masks/4.png", "no-image"),
    }
    assert {"image-without-truth", "truth-without-image"} <= set(told(dataset))
    assert len(find_studies(tmp_path / "images")) == 4
