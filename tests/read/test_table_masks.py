"""Masks in tables: a column a structure, crops with their place, names by row, cases of which only a part is known."""

from __future__ import annotations

import numpy as np
import pytest

from sagittal.errors import DataError, GeometryError, ReadError
from sagittal.formats.crops import read_crops
from sagittal.read.manifest import read_manifest, write_manifest
from sagittal.read.open_dataset import open_dataset


def voxels(case):
    found = case.truth.load()
    return {one.name: int(found.mask(one.name).sum()) for one in found.structures}


def block(top, left, height=2, width=3, value=255, shape=(9, 12)):
    pixels = np.zeros(shape, np.uint8)
    pixels[top : top + height, left : left + width] = value
    return pixels


def test_columns_of_structures_are_found_by_name(tmp_path, write_png, write_text):
    for n in range(3):
        write_png(f"{n}.png")
        write_png(f"m/liver{n}.png", block(1, 1))
        write_png(f"m/tumour{n}.png", block(2, 2))
    rows = "0.png,m/liver0.png,m/tumour0.png\n1.png,m/liver1.png,\n2.png,,\n"
    write_text("t.csv", "image,liver_mask,mask_tumour\n" + rows)
    dataset = open_dataset(tmp_path / "t.csv")
    assert dataset.scheme.classes == ("liver", "tumour")
    assert voxels(dataset.cases[0]) == {"liver": 6, "tumour": 6}
    assert dataset.cases[1].truth.structures == ("liver",), "an empty cell: nobody looked for the tumour"
    assert dataset.cases[2].truth is None
    assert any("an empty cell is unknown" in told for told in dataset.notes)
    write_manifest(dataset, tmp_path / "manifest")
    again = read_manifest(tmp_path / "manifest")
    assert [None if c.truth is None else c.truth.structures for c in again] == [("liver", "tumour"), ("liver",), None]
    assert voxels(again.cases[1]) == {"liver": 6}


def test_a_label_map_of_which_a_part_is_known(tmp_path, write_png, write_text):
    for n in range(3):
        write_png(f"{n}.png")
        write_png(f"m{n}.png", block(1, 1, value=1) + block(4, 4, value=2) + block(7, 7, value=3))
    rows = "0.png,m0.png,\n1.png,m1.png,liver;spleen\n2.png,m2.png,organ\n"
    write_text("t.csv", "image,mask,outlined\n" + rows)
    dataset = open_dataset(tmp_path / "t.csv", target="liver=1,spleen=2,kidney=3")
    assert [c.truth.structures for c in dataset] == [("liver", "spleen", "kidney"), ("liver", "spleen")]
    assert voxels(dataset.cases[1]) == {"liver": 6, "spleen": 6}, "the kidney is background in its file, and unknown"
    assert {one.case: one.reason for one in dataset.skipped} == {
        "2": "the table says that 'organ' was outlined, which no mask holds: liver, spleen, kidney"
    }


@pytest.fixture
def crops(tmp_path, write_png, write_text):
    """Two pictures of 12 x 9; the first with two crops of 4 x 3, the second with a mask of its own size."""
    for n in range(2):
        write_png(f"{n}.png")
    write_png("c/a.png", np.full((3, 4), 255, np.uint8))
    write_png("c/b.png", block(0, 0, 2, 2, shape=(3, 4)))
    write_png("c/whole.png", block(4, 5))
    return lambda head, *rows: write_text("t.csv", "\n".join([head, *rows]) + "\n")


def test_crops_lie_where_the_table_says(crops):
    table = crops("image,mask,x_offset,y_offset", "0.png,c/a.png,2,1", "0.png,c/b.png,8,6", "1.png,c/whole.png,0,0")
    dataset = open_dataset(table, mask_column="mask", target="lesion")
    assert (dataset.scheme.classes, len(dataset), dataset.columns) == (("lesion",), 2, ())
    expected = np.zeros((12, 9), bool)
    expected[2:6, 1:4] = expected[8:10, 6:8] = True
    found = dataset.cases[0].truth.load()
    np.testing.assert_array_equal(found.mask("lesion")[:, :, 0], expected)
    assert found.grid.shape == dataset.cases[0].image().grid.shape
    assert voxels(dataset.cases[1]) == {"lesion": 6}, "a mask of the image's size is no crop"
    assert any("placed by the columns x_offset, y_offset" in told for told in dataset.notes)


def test_crops_may_be_named_by_row(crops):
    table = crops("image,mask,x,y,pathology", "0.png,c/a.png,2,1,benign", "0.png,c/b.png,8,6,malignant")
    dataset = open_dataset(table, mask_column="mask", target="pathology")
    assert dataset.scheme.classes == ("benign", "malignant")
    assert voxels(dataset.cases[0]) == {"benign": 12, "malignant": 4}
    objects = open_dataset(table, mask_column="mask", target="pathology", kind="objects")
    assert (objects.scheme.kind, objects.scheme.classes) == ("objects", ("benign", "malignant"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0.png,c/a.png,2,", "row 3 of the table: the place of its mask is not 2 whole numbers"),
        ("0.png,c/a.png,2.5,1", "row 3 of the table: the place of its mask is not 2 whole numbers"),
        ("0.png,c/none.png,2,1", "the table names a mask that was not found"),
    ],
)
def test_crops_that_cannot_be_placed_are_told(crops, row, reason):
    dataset = open_dataset(crops("image,mask,x,y", "1.png,c/a.png,1,1", row), mask_column="mask", target="lesion")
    assert {one.case: one.reason for one in dataset.skipped if one.case in "01"} == {"0": reason}


def test_a_crop_beyond_its_image_is_an_error_of_its_case(crops):
    dataset = open_dataset(
        crops("image,mask,x,y", "0.png,c/a.png,9,1", "1.png,c/a.png,-1,1"), mask_column="mask", target="lesion"
    )
    for case in dataset:
        with pytest.raises(
            GeometryError, match=rf"case {case.id}: a mask of 4 x 3 voxels at \(.*\) reaches out of the image"
        ):
            case.truth.load()


def test_crops_of_volumes_and_of_several_values(write_nifti):
    affine = np.array([[-0.7, 0, 0, 1], [0, 0, 2.0, 5], [0, 0.8, 0, -3], [0, 0, 0, 1.0]])
    image = write_nifti("a.nii.gz", np.zeros((9, 8, 7), np.int16), affine)
    one = write_nifti("one.nii.gz", np.full((2, 3, 2), 2, np.uint8))
    two = write_nifti("two.nii.gz", np.array([[[0, 1]]], np.uint8))
    at = [{"at": [1, 2, 3]}, {"at": [1, 1, 4]}]
    found = read_crops([one, two, image], crops=at, structures={"a": [1], "b": [2]})
    assert np.argwhere(found.mask("a")).tolist() == [[1, 1, 5]]
    assert (int(found.mask("b").sum()), found.grid.shape) == (12, (9, 8, 7))
    assert found.mask("b")[1:3, 2:5, 3:5].all()
    np.testing.assert_allclose(found.grid.affine[:2], -affine[:2])
    clash = write_nifti("clash.nii.gz", np.full((2, 3, 2), 1, np.uint8))
    with pytest.raises(DataError, match="two masks of parts of the image give a voxel different values"):
        read_crops([one, clash, image], crops=[at[0], at[0]], structures={"a": [1], "b": [2]})
    with pytest.raises(ReadError, match="does not exist|not found|no such|missing"):
        read_crops([one, image.with_name("none.nii.gz")], crops=at[:1], structures={"b": [2]})


def test_crops_in_a_zip(crops, tmp_path):
    import zipfile

    crops("image,mask,x,y", "0.png,c/a.png,2,1", "0.png,c/b.png,8,6")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("0.png", "c/a.png", "c/b.png", "t.csv"):
            archive.write(tmp_path / name, f"set/{name}")
    (case,) = open_dataset(tmp_path / "set.zip", mask_column="mask", target="lesion").cases
    assert voxels(case) == {"lesion": 16}
