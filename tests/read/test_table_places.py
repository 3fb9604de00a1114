"""Tables with several images, masks or boxes in a row, of every kind of file."""

from __future__ import annotations

import zipfile

import numpy as np
import pandas as pd
import pytest

from sagittal.errors import ConfigError, DataError, GeometryError, MissingPackageError, ReadError
from sagittal.grid import Grid
from sagittal.read import table_file
from sagittal.read.open_dataset import open_dataset
from sagittal.read.table_file import read_table
from sagittal.truth import Boxes, SegmentationSource


def mask(*values):
    pixels = np.zeros((9, 12), np.uint8)
    for n, value in enumerate(values):
        pixels[1 + 2 * n : 3 + 2 * n, 2:7] = value
    return pixels


def reasons(dataset):
    return {one.case: one.reason for one in dataset.skipped}


# ---- several images a case


@pytest.fixture
def scans(tmp_path, write_png, write_text):
    for n in range(3):
        for name in ("t1", "flair"):
            write_png(f"im/{n}_{name}.png", np.full((9, 12), 10 * n + len(name), np.uint8))
    rows = "".join(f"{n}_t1.png,{n}_flair.png,{'yes' if n else 'no'},p{n}\n" for n in range(3))
    write_text("im/t.csv", "t1,flair,label,patient\n" + rows)
    return tmp_path / "im"


def test_several_columns_are_several_images(scans):
    dataset = open_dataset(scans, path_column="t1,flair", target="label")
    assert [c.id for c in dataset] == ["0_t1", "1_t1", "2_t1"]
    assert [list(c.images) for c in dataset] == [["t1", "flair"]] * 3
    assert [float(dataset.cases[2].image(name).data.max()) for name in ("t1", "flair")] == [22, 25]
    assert dataset.scheme.classes == ("no", "yes")
    assert "images by column 't1' and 'flair'" in dataset.notes


def test_a_case_that_lacks_one_of_its_images_is_told(scans):
    (scans / "1_flair.png").unlink()
    dataset = open_dataset(scans, path_column="t1,flair", target="label")
    assert len(dataset) == 2
    assert reasons(dataset) == {
        "1_t1": "the image of column 'flair' was not found",
        "1_t1.png": "an image without a row in the table",
    }


def test_images_that_are_not_used_are_said(scans):
    dataset = open_dataset(scans, target="label")
    assert [list(c.images) for c in dataset] == [["image"]] * 3
    assert "not used: the images of flair; all together with --path-column t1,flair" in dataset.notes
    with pytest.raises(DataError, match="no column 't2' for the images"):
        open_dataset(scans, path_column="t1,t2", target="label")


# ---- masks


@pytest.fixture
def outlined(tmp_path, write_png, write_text):
    """Three pictures with masks, one of them not outlined; ``outlined(head, rows)`` writes another table."""

    def make(head="image,mask,age", rows=("0.png,m0.png,40", "1.png,m1.png,50", "2.png,,60")):
        for n in range(3):
            write_png(f"set/{n}.png")
            write_png(f"set/m{n}.png", mask(255, 0))
        return write_text("set/t.csv", "\n".join([head, *rows]) + "\n").parent

    return make


def test_masks_in_a_column(outlined):
    dataset = open_dataset(outlined())
    assert (dataset.layout, dataset.scheme.kind, dataset.scheme.classes) == ("table", "structures", ("foreground",))
    assert [c.id for c in dataset] == ["0", "1", "2"]
    assert isinstance(dataset.cases[0].truth, SegmentationSource)
    assert dataset.cases[0].truth.load().mask("foreground").sum() == 10
    assert dataset.cases[2].truth is None, "an image that nobody outlined is not one without anything in it"
    assert [c.table["age"] for c in dataset] == [40, 50, 60]
    assert reasons(dataset) == {"m2.png": "an image without a row in the table"}
    assert len(dataset.labelled()) == 2


def test_a_column_of_masks_may_be_named(outlined):
    folder = outlined("image,lesion_file", ("0.png,m0.png", "1.png,gone.png", "2.png,m2.png"))
    dataset = open_dataset(folder, mask_column="lesion_file", target="lesion")
    assert dataset.scheme.classes == ("lesion",)
    assert reasons(dataset) == {
        "1": "the table names a mask that was not found",
        "m1.png": "an image without a row in the table",
    }
    with pytest.raises(DataError, match="no column 'lesion' for the masks. Did you mean 'lesion_file'"):
        open_dataset(folder, mask_column="lesion")


def test_one_column_for_each_structure(outlined, write_png):
    write_png("set/lung.png", mask(0, 255))
    folder = outlined("image,heart,lung", ("0.png,m0.png,lung.png", "1.png,m1.png,"))
    dataset = open_dataset(folder, mask_column="heart,lung")
    assert dataset.scheme.classes == ("heart", "lung")
    both = dataset.cases[0].truth.load()
    assert [int(both.mask(name).sum()) for name in ("heart", "lung")] == [10, 10]
    assert dataset.cases[1].truth.structures == ("heart",), "a lung that was not outlined is unknown"


def test_several_rows_of_one_image_are_one_case(outlined):
    folder = outlined("image,mask,size", ("0.png,m0.png,3", "0.png,m1.png,5", "1.png,m2.png,7"))
    dataset = open_dataset(folder, kind="structures")
    assert [len(c.truth.files) for c in dataset] == [2, 1]
    assert [c.table["size"] for c in dataset] == [None, 7.0], "what differs between the lesions is not the case's"


def test_values_of_masks_are_named(outlined, write_png):
    folder = outlined()
    write_png("set/m0.png", mask(1, 2))
    assert open_dataset(folder).scheme.classes == ("1", "2", "255")
    write_png("set/m1.png", mask(2))
    dataset = open_dataset(folder, target="liver=1,tumour=2")
    assert dataset.scheme.classes == ("liver", "tumour")
    assert dataset.cases[1].truth.load().mask("tumour").sum() == 10


def test_masks_or_labels_is_asked(outlined):
    folder = outlined("image,mask,label", ("0.png,m0.png,a", "1.png,m1.png,b"))
    with pytest.raises(
        DataError, match=r"holds masks \('mask'\) and labels \('label'\).*--kind structures, or --target label"
    ):
        open_dataset(folder)
    assert open_dataset(folder, kind="structures").scheme.kind == "structures"
    labels = open_dataset(folder, target="label")
    assert (labels.scheme.kind, len(labels)) == ("binary", 2)
    with pytest.raises(DataError, match="masks hold structures, not 'binary'"):
        open_dataset(folder, mask_column="mask", kind="binary")
    with pytest.raises(DataError, match=r"no column of the table names masks \(image, label\)"):
        open_dataset(outlined("image,label", ("0.png,a", "1.png,b")), kind="structures")


# ---- boxes


@pytest.fixture
def boxed(tmp_path, write_png, write_text):
    def make(head, *rows):
        for n in range(4):
            write_png(f"set/{n}.png")
        return write_text("set/t.csv", "\n".join([head, *rows]) + "\n").parent

    return make


@pytest.mark.parametrize(
    ("head", "cells"),
    [
        ("image,x,y,w,h,label", "2,3,4,1"),
        ("image,x,y,width,height,label", "2,3,4,1"),
        ("image,x_min,y_min,x_max,y_max,label", "2,3,5,3"),
        ("image,width,height,label,xmin,ymin,xmax,ymax", None),
        ("image,x1,y1,x2,y2,label", "2,3,5,3"),
    ],
)
def test_boxes_of_every_convention_lie_on_the_same_pixels(boxed, head, cells):
    row = "0.png,12,9,a,2,3,5,3" if cells is None else f"0.png,{cells},a"
    empty = "1.png,12,9,b,,,," if cells is None else "1.png,,,,,b"
    dataset = open_dataset(boxed(head, row, empty))
    assert (dataset.scheme.kind, dataset.scheme.classes) == ("objects", ("a",))
    truth = dataset.cases[0].truth
    assert isinstance(truth, Boxes)
    np.testing.assert_array_equal(truth.corners, [[[1.5, 2.5, -0.5], [5.5, 3.5, 0.5]]])
    assert len(dataset.cases[1].truth) == 0, "a row with an empty box says that nothing was found"
    assert reasons(dataset) == {f"{n}.png": "an image without a row in the table" for n in (2, 3)}, "not said: unknown"
    assert any("boxes by the columns" in told for told in dataset.notes)


def test_a_row_a_lesion(boxed):
    folder = boxed(
        "image,x,y,w,h,class,volume,age,split", "0.png,1,1,2,2,cyst,5,40,train", "0.png,5,5,2,2,tumour,9,40,train", "1.png,1,1,2,2,cyst,3,50,test",
    )  # fmt: skip
    dataset = open_dataset(folder)
    assert [c.truth.classes.tolist() for c in dataset] == [[0, 1], [0]]
    assert [dict(c.table) for c in dataset] == [{"volume": None, "age": 40}, {"volume": 3, "age": 50}]
    assert [c.split for c in dataset] == ["train", "test"]


def test_boxes_without_a_class_are_objects(boxed):
    dataset = open_dataset(boxed("image,x,y,w,h,age", "0.png,1,1,2,2,40"))
    assert (dataset.scheme.classes, dataset.columns) == (("object",), ("age",))


def test_volumes_have_boxes_of_three_dimensions(tmp_path, write_nifti, write_text):
    write_nifti("set/a.nii.gz", np.zeros((9, 8, 7), np.int16))
    write_text("set/t.csv", "image,xmin,ymin,zmin,xmax,ymax,zmax\na.nii.gz,1,2,3,4,5,6\n")
    np.testing.assert_array_equal(
        open_dataset(tmp_path / "set").cases[0].truth.corners, [[[0.5, 1.5, 2.5], [4.5, 5.5, 6.5]]]
    )


def test_spheres_in_mm_become_boxes_on_the_grid_of_their_image(tmp_path, write_nifti, write_text):
    # NIfTI's RAS: the first voxel lies at (+10, +20, -30), so in LPS at (-10, -20, -30); k runs along the patient's j.
    affine = np.array([[-0.5, 0, 0, 10], [0, 0, 2.0, 20], [0, 0.8, 0, -30], [0, 0, 0, 1.0]])
    write_nifti("luna/1.2.840.nii.gz", np.zeros((40, 50, 20), np.int16), affine)
    write_nifti("luna/1.2.841.nii.gz", np.zeros((4, 4, 4), np.int16), affine)
    centre = np.array([-10 + 0.5 * 10, -20 - 2.0 * 4, -30 + 0.8 * 25])  # voxel (10, 25, 4)
    text = "seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2.840," + ",".join(map(str, centre)) + ",8\n"
    write_text("luna/annotations.csv", text)
    dataset = open_dataset(tmp_path / "luna")
    case = dataset.cases[0]
    assert case.truth.frame == "mm"
    np.testing.assert_allclose(case.truth.corners.mean(axis=1), [centre])
    found = case.truth.on(case.image().grid)
    assert found.frame == "voxel"
    np.testing.assert_allclose(found.corners, [[[2, 20, 2], [18, 30, 6]]], atol=1e-9)
    assert found.on(case.image().grid) is found
    with pytest.raises(GeometryError, match="given in mm of the patient, but the image has no position"):
        case.truth.on(Grid((4, 4, 4)))
    assert reasons(dataset) == {"1.2.841.nii.gz": "an image without a row in the table"}
    radius = write_text("luna/annotations.csv", text.replace("diameter_mm", "radius_mm").replace(",8\n", ",4\n"))
    np.testing.assert_array_equal(open_dataset(radius).cases[0].truth.corners, case.truth.corners)


def test_boxes_that_cannot_be_used_are_told_by_row(boxed):
    folder = boxed("image,x,y,w,h,class", "0.png,1,1,2,2,a", "1.png,1,1,,2,a", "2.png,1,1,x,2,a", "3.png,1,1,2,2,")
    assert reasons(open_dataset(folder)) == {
        "1": "row 3 of the table: its box is not 4 numbers",
        "2": "row 4 of the table: its box is not 4 numbers",
        "3": "row 5 of the table: a box without a class in column 'class'",
    }
    with pytest.raises(DataError, match=r"no row holds a box \(columns x, y, w, h\)"):
        open_dataset(boxed("image,x,y,w,h,class", "0.png,,,,,a"))
    with pytest.raises(DataError, match=r"no columns of boxes \(image, class\)\. Expected xmin, ymin, xmax, ymax; or"):
        open_dataset(boxed("image,class", "0.png,a"), kind="objects")
    with pytest.raises(DataError, match="which column holds the class of a box.*one of: class, label"):
        open_dataset(boxed("image,x,y,w,h,class,label", "0.png,1,1,2,2,a,b"))


def test_boxes_may_stand_beside_a_classification(boxed):
    folder = boxed("image,x,y,w,h,label", "0.png,1,1,2,2,a", "1.png,1,1,2,2,b")
    assert open_dataset(folder, kind="binary", target="label").scheme.kind == "binary"


def test_rows_of_one_image_must_agree_on_its_patient_and_split(boxed):
    folder = boxed(
        "image,x,y,w,h,patient,split",
        "0.png,1,1,2,2,p,train",
        "0.png,1,1,2,2,q,train",
        "1.png,1,1,2,2,r,train",
        "1.png,1,1,2,2,r,val",
        "2.png,1,1,2,2,s,val",
    )
    dataset = open_dataset(folder)
    assert reasons(dataset) == {
        "0": "the rows of one image name different patients",
        "1": "the rows of one image name different splits",
        "3.png": "an image without a row in the table",
    }


# ---- Excel


@pytest.fixture
def workbook(tmp_path, write_png):
    """Three pictures and a workbook of two sheets."""
    for n in range(3):
        write_png(f"set/{n}.png")
    path = tmp_path / "set" / "labels.xlsx"
    first = pd.DataFrame(
        {"image": ["0", "1", "2"], "label": ["a", "b", None], "age": [40, 50.5, None], "ok": [True, False, True]}
    )
    second = pd.DataFrame({"image": [0, 1, 2], "label": ["x", "x", "y"]})
    with pd.ExcelWriter(path) as writer:
        first.to_excel(writer, sheet_name="first", index=False)
        second.to_excel(writer, sheet_name="second", index=False)
    return path


def test_a_workbook_is_a_table(workbook):
    for source in (workbook, workbook.parent):
        dataset = open_dataset(source, target="label")
        assert dataset.scheme.classes == ("a", "b")
        assert [c.truth.known for c in dataset] == [True, True, False]
        assert [c.table["age"] for c in dataset] == [40.0, 50.5, None]
    assert open_dataset(workbook, sheet="second").scheme.classes == ("x", "y")
    with pytest.raises(ConfigError, match="has no sheet 'secnd'. Did you mean 'second'"):
        open_dataset(workbook, sheet="secnd")
    assert read_table(workbook)["ok"] == ["1", "0", "1"]


def test_sheets_are_of_workbooks_only(workbook, write_text):
    with pytest.raises(ConfigError, match="'t.csv' has no sheets, only .xlsx has"):
        read_table(write_text("t.csv", "a\n1\n"), sheet="first")


def test_formulas_are_not_evaluated(tmp_path):
    import openpyxl

    book = openpyxl.Workbook()
    for row in (("image", "label"), ("0", '=HYPERLINK("http://127.0.0.1","x")'), ("1", "b")):
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    assert read_table(tmp_path / "t.xlsx") == {"image": ["0", "1"], "label": ["", "b"]}


def repack(path, **parts):
    """The workbook with some parts added or replaced."""
    with zipfile.ZipFile(path) as book:
        old = {one.filename: book.read(one) for one in book.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        for name, content in {**old, **{k.replace("__", "/"): v for k, v in parts.items()}}.items():
            book.writestr(name, content)
    return path


LAUGHS = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><sst>&c;</sst>'


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"xl/sharedStrings.xml": LAUGHS}, "declares a document type or entities"),
        ({"xl/sharedStrings.xml": LAUGHS.replace(b"!DOCTYPE", b"!doctype")}, "declares a document type or entities"),
        ({"xl/sharedStrings.xml": LAUGHS.decode().encode("utf-16")}, "declares a document type or entities"),
        ({"xl/sharedStrings.xml": b'<?xml version="1.0" encoding="cp037"?><a/>'}, "is not written in UTF-8"),
        ({"xl/sharedStrings.xml": b" " * (2**20 - 4) + LAUGHS}, "declares a document type or entities"),
        ({"xl/vbaProject.bin": b"x"}, "holds macros; save it as .xlsx without macros"),
        ({"xl/worksheets/sheet1.xml": b"<worksheet>"}, "table: damaged or cut off|cannot be read"),
        ({f"xl/p{n}.xml": b"" for n in range(2000)}, "the workbook has 2,01. parts; at most 2,000 are read"),
    ],
)
def test_hostile_workbooks_are_refused(workbook, parts, message):
    with pytest.raises(ReadError, match=message):
        read_table(repack(workbook, **parts))


def test_a_workbook_that_unpacks_without_end_is_refused(workbook, monkeypatch):
    monkeypatch.setattr(table_file, "MAX_INFLATED_BYTES", 2**21)
    with pytest.raises(ReadError, match="unpacks to more than 2,097,152 bytes"):
        read_table(repack(workbook, **{"xl/sharedStrings.xml": b" " * 2**23}))


@pytest.mark.parametrize("suffix", [".xls", ".xlsm", ".ods"])
def test_other_workbooks_are_refused_with_the_way_out(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(ReadError, match="is not read; save it as .xlsx or CSV"):
        read_table(path)


def test_a_truncated_workbook(workbook):
    workbook.write_bytes(workbook.read_bytes()[:-200])
    with pytest.raises(ReadError, match="table: damaged or cut off"):
        read_table(workbook)


def test_a_workbook_without_its_package(workbook, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(
        MissingPackageError, match=r"reading Excel tables needs the package 'openpyxl'.*sagittal\[excel\]"
    ):
        read_table(workbook)


def test_check_looks_at_spheres_on_the_grid_of_their_image(tmp_path, write_nifti, write_text):
    from sagittal.check.check_dataset import check_dataset

    write_nifti("luna/1.nii.gz", np.arange(64_000, dtype=np.int16).reshape(40, 40, 40))  # 0.7 x 0.8 x 3 mm, from 0
    rows = ("1,-14,-16,60,6", "1,-14,-16,200,6", "1,-14,-16,117,9")  # its middle, above it, across its edge
    write_text("luna/t.csv", "image,coordX,coordY,coordZ,diameter_mm\n" + "\n".join(rows) + "\n")
    found = {one.code: one for one in check_dataset(open_dataset(tmp_path / "luna"))}
    assert "1 box wholly outside the image" in found["box-outside"].message
    assert "box 2 (object)" in found["box-outside"].message
    assert "1 box beyond the edge" in found["box-out-of-frame"].message
    assert "box 3 (object)" in found["box-out-of-frame"].message
