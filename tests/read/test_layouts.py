"""Sources of cases: what each layout finds, and what it says where it finds nothing."""

from __future__ import annotations

import contextlib
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagittal.errors import ConfigError, DataError, GeometryError, ReadError, SagittalError
from sagittal.read.manifest import write_manifest
from sagittal.read.open_dataset import LAYOUTS, open_dataset
from sagittal.read.requested import find_requested
from sagittal.read.studies import find_studies


def _table(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _answers(dataset):
    """Case -> class of the one-hot truth, or None."""
    return {c.id: dataset.scheme.classes[int(np.argmax(c.truth.values))] if c.truth.known else None for c in dataset}


# ---- folders


def test_a_folder_for_each_class(tmp_path, write_png):
    pixels = np.arange(20, dtype=np.uint8).reshape(4, 5)
    for name in ("normal/1.png", "normal/2.png", "fracture/deep/3.png"):
        write_png(name, pixels)
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "folders"
    assert (dataset.scheme.kind, dataset.scheme.classes) == ("binary", ("normal", "fracture"))
    assert _answers(dataset) == {"normal/1": "normal", "normal/2": "normal", "fracture/deep/3": "fracture"}
    np.testing.assert_array_equal(dataset.cases[0].image().data[0, :, :, 0].T, pixels)


def test_folders_of_splits_above_folders_of_classes(tmp_path, write_png):
    for split in ("train", "valid", "Test"):
        for name in "abc":
            write_png(f"{split}/{name}/1.png")
    dataset = open_dataset(tmp_path)
    assert dataset.splits == ("train", "val", "test")
    assert dataset.scheme.kind == "multiclass"
    assert [c.id for c in dataset.split("val")] == ["valid/a/1", "valid/b/1", "valid/c/1"]


def test_a_dicom_series_in_a_class_folder_is_one_case(tmp_path, write_series, write_slice):
    write_series("yes/p1", np.zeros((3, 4, 4), np.int16), [0, 1, 2.0], SeriesInstanceUID="1.2", PatientID="A")
    write_series("no/p2", np.ones((2, 4, 4), np.int16), [0, 1.0], SeriesInstanceUID="1.3", PatientID="B")
    dataset = open_dataset(tmp_path)
    assert sorted(c.image().grid.shape[2] for c in dataset) == [2, 3]
    assert set(_answers(dataset).values()) == {"yes", "no"}
    assert len(dataset.patients) == 2
    assert not any("p1" in c.id or c.patient == "A" for c in dataset)


def test_lateral_classes_forbid_mirroring(tmp_path, write_png):
    for name in ("kidney-left", "kidney-right", "liver"):
        write_png(f"{name}/1.png")
    assert open_dataset(tmp_path).scheme.lateral


def test_ordinal_only_when_asked(tmp_path, write_png):
    for name in ("10", "9", "1"):
        write_png(f"{name}/1.png")
    assert open_dataset(tmp_path).scheme.kind == "multiclass"
    scheme = open_dataset(tmp_path, kind="ordinal").scheme
    assert (scheme.kind, scheme.classes) == ("ordinal", ("1", "9", "10"))


def test_empty_files_are_skipped_and_reported(tmp_path, write_png):
    write_png("a/1.png")
    write_png("b/1.png")
    (tmp_path / "b" / "2.png").touch()
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 2
    assert [(s.case, s.reason) for s in dataset.skipped] == [("b/2.png", "the file is empty (0 bytes)")]


def test_one_class_only_is_said_so(tmp_path, write_png):
    write_png("only/1.png")
    with pytest.raises(DataError, match=r"'class' holds only one class \(only\); at least two are needed"):
        open_dataset(tmp_path)


def test_loose_images_are_cases_without_truth(tmp_path, write_png):
    write_png("1.png")
    write_png("2.png")
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.scheme, [c.truth for c in dataset]) == ("files", None, [None, None])


def test_a_table_of_something_else_does_not_hide_folders_of_classes(tmp_path, write_png):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        write_png(name)
    _table(tmp_path / "scanner.csv", "device,year\nx,2001\n")
    assert open_dataset(tmp_path).layout == "folders"


def test_folders_of_patients_are_no_classes(tmp_path, write_series):
    for n, patient in enumerate(("ANNA", "BERT", "CARL")):
        for series in range(2):
            uid = f"1.{n}.{series}"
            write_series(
                f"{patient}/{series}", np.zeros((2, 4, 4), np.int16), [0, 1], PatientID=patient, SeriesInstanceUID=uid
            )
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.scheme, len(dataset), len(dataset.patients)) == ("files", None, 6, 3)
    assert open_dataset(tmp_path, layout="folders").scheme.classes == ("ANNA", "BERT", "CARL")


def test_several_tables_need_a_choice(clinic):
    _table(clinic / "a.csv", ROWS)
    _table(clinic / "b.csv", ROWS)
    for name in list((clinic / "images").iterdir()):
        name.rename(clinic / name.name)
    with pytest.raises(DataError, match="holds 2 tables; say which one with labels="):
        open_dataset(clinic)
    assert len(open_dataset(clinic, labels=clinic / "b.csv")) == 6


# ---- nothing there


def test_sources_that_are_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("text")
    for source, error, message in (
        (tmp_path / "empty", DataError, "'empty' is empty: no file lies in it"),
        (tmp_path / "notes", DataError, "'notes' holds no images that can be read"),
        (tmp_path / "none", ReadError, "does not exist; expected a folder, a table, an .npz or medmnist:NAME"),
        (tmp_path / ("n" * 300), ReadError, "does not exist"),
        (tmp_path / "notes" / "a.txt", DataError, "'a.txt' is no data set: expected a folder"),
    ):
        with pytest.raises(error, match=message):
            open_dataset(source)


def test_a_mistyped_layout_suggests_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown layout 'folder'\. Did you mean 'folders'"):
        open_dataset(tmp_path, layout="folder")
    assert {"folders", "table", "medmnist", "dicom_tree", "files"} <= set(LAYOUTS)


# ---- table


@pytest.fixture
def clinic(tmp_path, write_png):
    """Six pictures, and the rows of their table."""
    for n in range(6):
        write_png(f"images/img_{n}.png")
    return tmp_path


ROWS = """image_id,patient_id,diagnosis,age,sex,split
img_0,p1,benign,40,f,train
img_1,p1,malignant,,m,train
img_2,p2,benign,61.5,f,val
img_3,p3,,33,NA,test
img_4,p3,unknown,33,m,test
img_5,p4,malignant,70,f,
"""


def test_a_table_beside_its_images(clinic):
    _table(clinic / "labels.csv", ROWS)
    for source, more in (
        (clinic, {}),
        (clinic / "labels.csv", {}),
        (clinic / "images", {"labels": clinic / "labels.csv"}),
    ):
        dataset = open_dataset(source, **more)
        assert dataset.layout == "table"
        assert (dataset.scheme.kind, dataset.scheme.classes) == ("binary", ("benign", "malignant"))
        assert list(_answers(dataset).values()) == ["benign", "malignant", "benign", None, None, "malignant"]
        assert dataset.columns == ("age", "sex")
        assert [c.table["age"] for c in dataset] == [40.0, None, 61.5, 33.0, 33.0, 70.0]
        assert dataset.cases[3].table["sex"] is None
        assert [c.split for c in dataset] == ["train", "train", "val", "test", "test", None]
        assert len(dataset.patients) == 4
        assert "cases of one patient by column 'patient_id' (guessed)" in dataset.notes
        assert not any(c.patient in {"p1", "p2", "p3", "p4"} for c in dataset)
        assert dataset.cases[2].image().data.shape == (1, 12, 9, 1)


@pytest.mark.parametrize("kind", ["tsv", "semicolon", "parquet", "utf16", "bom", "gb18030"])
def test_tables_of_every_kind(clinic, kind):
    text = ROWS.replace("diagnosis", "诊断").replace("benign", "良性")
    path = clinic / ("labels.parquet" if kind == "parquet" else "labels.tsv" if kind == "tsv" else "labels.csv")
    if kind == "parquet":
        frame = pd.read_csv(_table(clinic / "x" / "t.csv", text))
        frame.to_parquet(path)
        (clinic / "x" / "t.csv").unlink()
    else:
        text = text.replace(",", {"tsv": "\t", "semicolon": ";"}.get(kind, ","))
        path.write_bytes(text.encode({"utf16": "utf-16", "bom": "utf-8-sig", "gb18030": "gb18030"}.get(kind, "utf-8")))
    dataset = open_dataset(path, target="诊断")
    assert set(dataset.scheme.classes) == {"良性", "malignant"}
    assert [c.table["age"] for c in dataset] == [40.0, None, 61.5, 33.0, 33.0, 70.0]


def test_paths_names_stems_and_folders_find_images(tmp_path, write_png, write_series):
    write_png("data/a/scan.png")
    write_png("data/b/scan.png")
    write_series("data/c/dicom", np.zeros((3, 4, 4), np.int16), [0, 1, 2.0])
    text = f"where,label\na/scan.png,x\n{tmp_path}/data/b/scan.png,y\nc,x\n"
    dataset = open_dataset(tmp_path / "data", labels=_table(tmp_path / "t.csv", text), path_column="where")
    assert [c.image().grid.shape for c in dataset] == [(12, 9, 1), (12, 9, 1), (4, 4, 3)]


def test_a_column_of_ids_names_the_cases_where_another_holds_the_paths(tmp_path, write_png):
    write_png("a/scan.png")
    write_png("b/scan.png")
    write_png("c/scan.png")
    table = _table(tmp_path / "t.csv", "study,where,label\nS1,a/scan.png,x\nS2,b/scan.png,y\n,c/scan.png,x\n")
    dataset = open_dataset(tmp_path, labels=table, path_column="where", id_column="study")
    assert [case.id for case in dataset] == ["S1", "S2", "c/scan"]
    assert dataset.columns == ()


def test_names_are_found_across_systems(tmp_path, write_png):
    write_png("im/Z\u0075\u0308rich.png")  # two code points, as a Mac writes it
    write_png("im/b.png")
    text = "image,label\nZ\u00fcrich.PNG,x\nim\\b.png,y\n"
    dataset = open_dataset(tmp_path, labels=_table(tmp_path / "t.csv", text))
    assert len(dataset) == 2
    assert not dataset.skipped


def test_links_are_followed_once(tmp_path, write_png):
    write_png("store/a/1.png")
    write_png("store/b/1.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").symlink_to(tmp_path / "store" / "a")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "store" / "b")
    (tmp_path / "store" / "b" / "loop").symlink_to(tmp_path / "store")
    assert [c.id for c in open_dataset(tmp_path / "set").cases[:1]] == ["a/1"]


def test_one_column_may_be_a_multilabel_question(clinic):
    text = "image,nodule\nimg_0,1\nimg_1,0\nimg_2,\n"
    dataset = open_dataset(clinic / "images", labels=_table(clinic / "t.csv", text), kind="multilabel")
    assert dataset.scheme.classes == ("nodule",)
    np.testing.assert_array_equal([c.truth.values for c in dataset], [[1], [0], [np.nan]])


def test_one_column_for_each_label_with_unknowns(clinic):
    text = "image,effusion,nodule\nimg_0,1,0\nimg_1,0.0,\nimg_2,,-1\nimg_3,yes,no\n"
    dataset = open_dataset(clinic / "images", labels=_table(clinic / "t.csv", text), target="effusion,nodule")
    assert (dataset.scheme.kind, dataset.scheme.classes) == ("multilabel", ("effusion", "nodule"))
    nan = np.nan
    np.testing.assert_array_equal([c.truth.values for c in dataset], [[1, 0], [0, nan], [nan, nan], [1, 0]])
    assert len(dataset.labelled()) == 3


def test_one_cell_with_several_labels(clinic):
    text = "image,finding\nimg_0,effusion|nodule\nimg_1,No Finding\nimg_2,\nimg_3,nodule\n"
    dataset = open_dataset(clinic / "images", labels=_table(clinic / "t.csv", text))
    assert (dataset.scheme.kind, dataset.scheme.classes) == ("multilabel", ("effusion", "nodule"))
    nan = np.nan
    np.testing.assert_array_equal([c.truth.values for c in dataset], [[1, 1], [0, 0], [nan, nan], [0, 1]])


def test_grades_are_ordinal_when_asked(clinic):
    text = "image,grade\n" + "".join(f"img_{n},{n % 3}.0\n" for n in range(6))
    scheme = open_dataset(clinic / "images", labels=_table(clinic / "t.csv", text), kind="ordinal").scheme
    assert (scheme.kind, scheme.classes) == ("ordinal", ("0", "1", "2"))


def test_grades_in_words_have_the_order_of_their_scale_or_none(clinic):
    for words, order in (
        (("severe", "Mild", "none"), ("none", "Mild", "severe")),
        (("III", "I", "II"), ("I", "II", "III")),
    ):
        text = "image,grade\n" + "".join(f"img_{n},{words[n % 3]}\n" for n in range(6))
        assert (
            open_dataset(clinic / "images", labels=_table(clinic / "t.csv", text), kind="ordinal").scheme.classes
            == order
        )
    text = "image,grade\nimg_0,red\nimg_1,green\n"
    with pytest.raises(
        DataError, match=r"order of the grades in 'grade' is not known: green, red\. Put a number before"
    ):
        open_dataset(clinic / "images", labels=_table(clinic / "t.csv", text), kind="ordinal")


def test_rows_without_image_and_images_without_row_are_reported(clinic):
    _table(clinic / "labels.csv", ROWS.replace("img_2", "gone").replace("img_0", "../secret"))
    dataset = open_dataset(clinic)
    reasons = {}
    for left in dataset.skipped:
        reasons.setdefault(left.reason, []).append(left.case)
    assert reasons == {
        "the table names an image that was not found": ["../secret", "gone"],
        "an image without a row in the table": ["images/img_0.png", "images/img_2.png"],
    }
    assert len(dataset) == 4


def test_rows_of_one_image_are_cases_of_their_own(clinic):
    _table(clinic / "labels.csv", "image_id,label\nimg_0,a\nimg_0,b\nimg_1,a\n")
    assert [c.id for c in open_dataset(clinic)] == ["img_0#1", "img_0#2", "img_1"]


def test_an_id_that_is_the_patient_is_not_shown(tmp_path, write_png):
    for n in range(3):
        write_png(f"PAT{n}.png")
    dataset = open_dataset(tmp_path, labels=_table(tmp_path / "t.csv", "PatientID,label\nPAT0,a\nPAT1,b\nPAT2,a\n"))
    assert [c.id for c in dataset] == ["case-0001", "case-0002", "case-0003"]
    assert not any("PAT" in c.patient for c in dataset)


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        (ROWS, {"target": "diagnose"}, DataError, "no column 'diagnose' for the target. Did you mean 'diagnosis'"),
        (ROWS, {"target": "sex,agee"}, DataError, "no column 'agee' for the target. Did you mean 'age'"),
        (ROWS, {"id_column": "imgid"}, DataError, "no column 'imgid' for the images. Did you mean 'image_id'"),
        (
            ROWS,
            {"patient_column": "patent"},
            DataError,
            "no column 'patent' for the patient. Did you mean 'patient_id'",
        ),
        (ROWS, {"kind": "binery"}, ConfigError, "unknown kind of labels 'binery'. Did you mean 'binary'"),
        (ROWS, {"target": "age", "split_column": "sex"}, DataError, "unknown split 'f'; expected train, val or test"),
        (ROWS.replace("img_", "scan"), {}, DataError, "none of the 6 images that column 'image_id' names was found"),
        (
            "a,b\nx,y\n",
            {},
            DataError,
            r"no column of the table names images below .* \(6 images there; columns: a, b\)",
        ),
        ("image,sex,age\nimg_0,f,1\nimg_1,m,2\n", {}, DataError, "which column holds the answer.*one of: sex, age"),
        (
            "image,label\nimg_0,\nimg_1,unknown\n",
            {},
            DataError,
            "'label' holds no label: all 2 cells are empty or unknown",
        ),
        ("image,label\nimg_0,a\nimg_1,a\n", {}, DataError, r"'label' holds only one class \(a\)"),
        ("image,label\nimg_0,1.5\nimg_1,2.25\nimg_2,3.125\n", {}, DataError, "measurements or names, not classes"),
        ("image,x,y\nimg_0,1,maybe\n", {"target": "x,y"}, DataError, "column 'y' holds 'maybe'"),
        ("image,label\n", {}, ReadError, "has no rows below its header"),
        ("image,label,label\nimg_0,a,b\n", {}, ReadError, "the column 'label' occurs twice"),
        ("image,label\nimg_0,a,b,c\n", {}, ReadError, "row 2 has 4 cells, the header 2"),
        ("\0\1\2\3", {}, ReadError, "holds binary data, not text"),
        ("", {}, ReadError, r"the file is empty \(0 bytes\)"),
    ],
)
def test_tables_that_cannot_be_used_say_why(clinic, text, options, error, message):
    _table(clinic / "labels.csv", text)
    with pytest.raises(error, match=message):
        open_dataset(clinic, **options)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "xlsx"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255), st.integers(1, 6)), min_size=1, max_size=5))
def test_mutated_tables_end_in_a_data_set_or_in_our_errors(clinic, suffix, changes):
    path = clinic / f"t.{suffix}"
    frame = pd.DataFrame([row.split(",") for row in ROWS.split()[1:]], columns=ROWS.split(maxsplit=1)[0].split(","))
    if suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False) if suffix == "csv" else frame.to_excel(path, index=False)
    raw = bytearray(path.read_bytes())
    for place, value, length in changes:
        at = int(place * len(raw))
        raw[at : at + length] = bytes([value]) * length
    path.write_bytes(bytes(raw))
    with contextlib.suppress(SagittalError):
        assert len(open_dataset(clinic / "images", labels=path, target="diagnosis")) > 0


def test_ham10000(bench_data):
    dataset = open_dataset(bench_data / "ham10000", target="dx")
    frame = pd.read_csv(bench_data / "ham10000" / "labels.csv")
    assert len(dataset) == len(frame) == 2000
    assert not dataset.skipped
    assert list(_answers(dataset).values()) == frame["dx"].tolist()
    ages = [np.nan if c.table["age"] is None else c.table["age"] for c in dataset]
    np.testing.assert_array_equal(ages, frame["age"])
    assert {"age", "sex", "localization"} <= set(dataset.columns)
    assert dataset.cases[7].image().data.shape == (3, 224, 224, 1)


# ---- MedMNIST


@pytest.mark.parametrize(
    "name",
    [
        "breastmnist",
        "pneumoniamnist",
        "adrenalmnist3d",
        "vesselmnist3d",
        pytest.param("vesselmnist3d_64", marks=pytest.mark.slow),
    ],
)
def test_medmnist_holds_what_the_file_holds(bench_data, name):
    dataset = open_dataset(f"medmnist:{name}", search=[bench_data])
    stored = np.load(bench_data / "medmnist" / f"{name}.npz")
    assert dataset.splits == ("train", "val", "test")
    for split in dataset.splits:
        part, images = dataset.split(split), stored[f"{split}_images"]
        assert len(part) == len(images)
        np.testing.assert_array_equal([int(c.truth.values[1]) for c in part], stored[f"{split}_labels"][:, 0])
        for index in (0, len(part) // 2, len(part) - 1):
            case = part.cases[index]
            assert case.id == f"{split}-{index:04d}"
            data = case.image().data
            array = data.transpose(0, 3, 2, 1)[0] if "3d" in name else data[..., 0].transpose(0, 2, 1)[0]
            np.testing.assert_array_equal(array, images[index])


def test_breastmnist_keeps_the_official_order_and_says_so(bench_data):
    dataset = open_dataset(bench_data / "medmnist" / "breastmnist.npz")
    assert dataset.scheme.classes == ("malignant", "normal, benign")
    assert "0 = malignant, 1 = normal, benign" in dataset.notes[0]
    assert dataset.scheme.meaning["malignant"] == "label 0"


def _save(path, labels, names=("train", "val", "test"), shape=(5, 7)):
    arrays = {}
    for name in names:
        arrays[f"{name}_images"] = np.zeros((len(labels), *shape), np.uint8)
        arrays[f"{name}_labels"] = np.array(labels)
    np.savez(path, **arrays)
    return path


def test_medmnist_of_several_labels_and_of_grades(tmp_path):
    several = open_dataset(
        "medmnist:chestmnist", search=[_save(tmp_path / "chestmnist.npz", np.eye(14, dtype=int)).parent]
    )
    assert (several.scheme.kind, several.scheme.classes[13]) == ("multilabel", "hernia")
    np.testing.assert_array_equal(several.cases[13].truth.values, np.eye(14)[13])
    unknown = open_dataset(_save(tmp_path / "chestmnist.npz", np.eye(14, dtype=int) - np.eye(14, k=1, dtype=int)))
    np.testing.assert_array_equal(unknown.cases[0].truth.values[:3], [1, np.nan, 0])
    grades = open_dataset(_save(tmp_path / "retinamnist.npz", [[0], [4], [2]], shape=(5, 7, 3)))
    assert (grades.scheme.kind, grades.scheme.classes) == ("ordinal", ("0", "1", "2", "3", "4"))
    assert grades.cases[0].image().data.shape == (3, 7, 5, 1)
    organs = open_dataset(_save(tmp_path / "organamnist.npz", [[1], [2], [0]]))
    assert organs.scheme.lateral


def test_any_npz_of_images_and_labels(tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, images=np.zeros((3, 5, 7), np.uint8), labels=np.array([0, 1, -1]))
    dataset = open_dataset(path)
    assert [c.id for c in dataset] == ["case-0000", "case-0001", "case-0002"]
    assert dataset.scheme.classes == ("class 0", "class 1")
    assert not dataset.cases[2].truth.known


def test_medmnist_that_cannot_be_had_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "medmnist", None)
    with pytest.raises(
        ReadError, match=r"medmnist:bloodmnist was not found here\. Put bloodmnist\.npz .* SAGITTAL_DATA"
    ):
        open_dataset("medmnist:bloodmnist")
    with pytest.raises(ConfigError, match=r"'brestmnist' is not a set of MedMNIST\. Did you mean 'breastmnist'"):
        open_dataset("medmnist:brestmnist")
    with pytest.raises(ConfigError, match="has the sizes 28, 64, 128, 224, not '65'"):
        open_dataset("medmnist:bloodmnist_65")
    _save(tmp_path / "bloodmnist_64.npz", [[0], [1], [2]], shape=(64, 64, 3))
    assert len(open_dataset("medmnist:bloodmnist_64")) == 9


def test_npz_files_that_are_no_set(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(DataError, match=r"holds no pair of images and labels \(arrays: x\)"):
        open_dataset(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"only one class \(1\)"):
        open_dataset(_save(tmp_path / "b.npz", [[1], [1]]))
    np.savez(tmp_path / "c.npz", images=np.zeros((3, 5, 7)), labels=np.zeros(4))
    with pytest.raises(DataError, match="does not give one label for each of 3 images"):
        open_dataset(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", images=np.zeros((2, 5, 7)), labels=np.array([{}, []], dtype=object))
    with pytest.raises(ReadError, match="pickled objects"):
        open_dataset(tmp_path / "d.npz")


# ---- DICOM tree


@pytest.fixture
def tree(tmp_path, write_series, write_slice):
    """Three series of two patients, and an object that is no image."""
    volume = np.zeros((3, 4, 4), np.int16)
    for n, (patient, study) in enumerate((("ANNA", "1.1"), ("ANNA", "1.2"), ("BERT", "1.3"))):
        write_series(
            f"tree/{patient}/{n}",
            volume + n,
            [0, 1, 2.0],
            PatientID=patient,
            StudyInstanceUID=study,
            SeriesInstanceUID=f"{study}.9",
            AccessionNumber=f"ACC{n}",
        )
    write_slice("tree/report.dcm", volume[0], Modality="SR", PatientID="ANNA", StudyInstanceUID="1.1")
    return tmp_path


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("StudyInstanceUID", ["1.1", "1.2", "1.3"]),
        ("SeriesInstanceUID", ["1.1.9", "1.2.9", "1.3.9"]),
        ("AccessionNumber", ["ACC0", "ACC1", "ACC2"]),
        ("some_name", ["1.1", "1.2", "1.3"]),
    ],
)
def test_a_dicom_tree_by_every_key(tree, key, values):
    answers = ["yes", "no", "no"]
    text = f"{key},label,age\n" + "".join(
        f"{v},{a},{n}\n" for n, (v, a) in enumerate(zip(values, answers, strict=True))
    )
    dataset = open_dataset(tree / "tree", labels=_table(tree / "labels.csv", text))
    assert dataset.layout == "dicom_tree"
    assert {int(c.image().data.max()) + 1024: a for c, a in zip(dataset, _answers(dataset).values(), strict=True)} == {
        0: "yes",
        1: "no",
        2: "no",
    }
    assert len(dataset.patients) == 2
    assert sorted(c.table["age"] for c in dataset) == [0, 1, 2]
    shown = repr([(c.id, c.patient) for c in dataset])
    assert not any(secret in shown for secret in ("ANNA", "BERT", "1.1", "ACC"))
    assert dataset.cases[0].id.startswith("ct-")


def test_a_dicom_tree_by_patient_and_beside_its_table(tree):
    _table(tree / "tree" / "labels.csv", "PatientID,label\nANNA,yes\nBERT,no\nCARL,no\n")
    dataset = open_dataset(tree / "tree")
    assert sorted(_answers(dataset).values()) == ["no", "yes", "yes"]
    report, row = dataset.skipped
    assert (row.case, row.reason) == ("row-0003", "the table names a study that was not found")
    assert report.reason == "an object of modality SR, not an image of a patient"


def test_series_without_a_row_are_reported(tree):
    text = "StudyInstanceUID,label\n1.1,yes\n1.2,no\n"
    dataset = open_dataset(tree / "tree", labels=_table(tree / "labels.csv", text))
    _, left = dataset.skipped
    assert left.reason == "a series without a row in the table"
    assert left.case.startswith("ct-")


def test_a_tree_may_be_labelled_by_its_folders(tree):
    text = "folder,label\n0,yes\n1,no\n2,no\n"
    dataset = open_dataset(tree / "tree", labels=_table(tree / "labels.csv", text))
    assert dataset.layout == "table"
    assert len(dataset) == 3
    assert len(dataset.patients) == 2, "the patient of a DICOM file is known from the file"


def test_a_tree_with_the_wrong_table_says_so(tree):
    labels = _table(tree / "labels.csv", "study,label\n9.9,yes\n9.8,no\n")
    with pytest.raises(
        DataError, match=r"no column of the table \(study, label\) holds a StudyInstanceUID.* of the 3 DICOM"
    ):
        open_dataset(tree / "tree", labels=labels)
    with pytest.raises(DataError, match="no column 'studyy' for the identifier. Did you mean 'study'"):
        open_dataset(tree / "tree", labels=labels, id_column="studyy")
    with pytest.raises(ReadError, match=r"the table '.*none\.csv' does not exist"):
        open_dataset(tree / "tree", labels=tree / "none.csv")
    with pytest.raises(DataError, match="needs a table of labels"):
        open_dataset(tree / "tree", layout="dicom_tree")


# ---- several series of a study as the images of one case


@pytest.fixture
def studies(tmp_path, write_series):
    """Two studies of T1, FLAIR and a localizer; a third with two T1 and no FLAIR."""
    for study, series in (
        ("1", ("T1 ANNA", "FLAIR", "loc")),
        ("2", ("t1 pre", "Sag FLAIR fs", "loc")),
        ("3", ("T1", "T1")),
    ):
        for n, text in enumerate(series):
            fields = {
                "StudyInstanceUID": f"1.{study}",
                "SeriesInstanceUID": f"1.{study}.{n}",
                "SeriesDescription": text,
            }
            volume = np.full((3, 4, 4), 10 * int(study) + n, np.int16)
            write_series(f"tree/{study}/{n}", volume, [0, 1, 2.0], Modality="MR", PatientID=f"P{study}", **fields)
    return tmp_path


def test_series_of_a_study_are_the_images_of_one_case(studies):
    labels = _table(studies / "t.csv", "StudyInstanceUID,label\n1.1,a\n1.2,b\n1.3,a\n")
    for options in ({"labels": labels}, {}):
        dataset = open_dataset(studies / "tree", images="T1=*T1*,FLAIR=*FLAIR*", **options)
        assert dataset.layout == ("dicom_tree" if options else "files")
        assert len(dataset) == len(dataset.patients) == 2
        for number, case in enumerate(dataset, start=1):
            assert case.id.startswith("study-")
            assert [float(case.image(name).data.max()) + 1024 for name in ("T1", "FLAIR")] == [
                10 * number,
                10 * number + 1,
            ]
        assert (dataset.scheme.classes if options else dataset.scheme) == (("a", "b") if options else None)
        reasons = sorted(one.reason for one in dataset.skipped)
        assert reasons == [
            "2 series fit the pattern of 'T1', no series fits the pattern of 'FLAIR'; expected one for each (--images)",
            *["a series that no pattern of --images names"] * 2,
        ]
        shown = repr([(c.id, c.patient, c.source) for c in dataset]) + repr(dataset.skipped) + repr(dataset.notes)
        assert "ANNA" not in shown


def test_series_are_joined_in_dicom_studies_only(studies, write_png):
    with pytest.raises(ConfigError, match="expected a name and a pattern of the SeriesDescription"):
        open_dataset(studies / "tree", images="*T1*")
    write_png("pictures/a/1.png")
    write_png("pictures/b/1.png")
    with pytest.raises(
        ConfigError,
        match="joins the series of DICOM studies, or the files of a folder a case; this source is of the layout 'folders'",
    ):
        open_dataset(studies / "pictures", images="T1=*")


def test_a_real_study(bench_data):
    dataset = open_dataset(bench_data / "dicom" / "brain_mr_study", images="T1=t1pre*,FLAIR=*flair*")
    (case,) = dataset
    assert {case.image(name).modality for name in case.images} == {"MR"}
    assert len(dataset.skipped) == 3


def test_series_of_one_study_are_no_classes(bench_data, studies):
    assert open_dataset(bench_data / "dicom" / "brain_mr_study").layout == "files"
    assert open_dataset(studies / "tree" / "1").layout == "files"


def test_masks_in_the_folders_of_classes_are_no_images(tmp_path, write_png):
    for name in (
        "benign/1.png",
        "benign/1_mask.png",
        "malignant/2.png",
        "malignant/2_mask.png",
        "malignant/2_mask_1.png",
    ):
        write_png(name)
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, [c.id for c in dataset]) == ("folders", ["benign/1", "malignant/2"])
    assert {one.reason for one in dataset.skipped} == {"a mask of another image"}
    assert len(dataset.skipped) == 3


# ---- studies


def test_studies_are_files_series_and_patterns(tree, write_png):
    write_png("pictures/a.png")
    write_png("pictures/b.png")
    assert len(find_studies(tree / "tree")) == 3
    assert [c.id for c in find_studies(str(tree / "pictures" / "*.png"))] == ["a", "b"]
    both = find_studies([tree / "tree" / "ANNA", tree / "pictures" / "a.png"])
    assert [c.truth for c in both] == [None] * 3
    assert [c.image().grid.shape for c in both] == [(4, 4, 3), (4, 4, 3), (12, 9, 1)]


def test_a_study_is_named_alike_wherever_it_lies(tree):
    text = "StudyInstanceUID,label\n1.1,yes\n1.2,no\n1.3,no\n"
    labelled = open_dataset(tree / "tree", labels=_table(tree / "labels.csv", text))
    assert {c.id for c in labelled} == {c.id for c in find_studies(tree / "tree")}
    assert {c.patient for c in labelled} == {c.patient for c in find_studies(tree / "tree")}


def test_an_unreadable_study_is_a_case_with_its_error(tmp_path, write_png):
    write_png("good.png")
    (tmp_path / "bad.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 99)
    (tmp_path / "text.pdf").write_text("no image")
    cases = {c.id: c for c in find_studies(tmp_path)}
    assert set(cases) == {"good", "bad"}
    with pytest.raises(ReadError, match="case bad: DICOM"):
        cases["bad"].image()
    with pytest.raises(ReadError, match="case text.pdf: not an image file of a known kind"):
        find_studies(tmp_path / "text.pdf")[0].image()


def test_studies_that_are_not_there(tmp_path):
    for source, message in (
        (tmp_path / "none", "does not exist; give a file, a folder or a pattern"),
        (tmp_path / "*.png", "no file fits the pattern"),
        (tmp_path, "no image was found"),
    ):
        with pytest.raises(ReadError, match=message):
            find_studies(source)


def test_what_is_asked_for_and_not_there_is_a_failure_of_its_own(tmp_path, write_png):
    write_png("in/a.png")
    write_png("in/b.png")
    (tmp_path / "list.txt").write_text(f"# chosen\n{tmp_path}/in/b.png\n\n")
    wanted = [str(tmp_path / "in" / "[a].png"), f"@{tmp_path}/list.txt", "n" * 300, "a\0b", str(tmp_path / "*.dcm")]
    cases, failures = find_requested(wanted)
    assert [c.id for c in cases] == ["a", "b"]
    assert [f.case for f in failures] == wanted[2:]
    assert failures[2].error.endswith("*.dcm: there is no such file, folder or match")
    with pytest.raises(ReadError, match="no study was found in an empty list"):
        find_requested([])


def test_views_of_a_radiograph_are_cases_of_their_own(write_slice, tmp_path):
    for n in (1, 2):
        write_slice(f"{n}.dcm", np.zeros((4, 5), np.int16) + n, Modality="DX", InstanceNumber=n)
    cases = find_studies(tmp_path)
    assert sorted(c.image().data.max() for c in cases) == [1, 2]
    assert len({c.id for c in cases}) == 2
    assert len({c.patient for c in cases}) == 1


def test_cases_go_to_other_processes(tree, bench_data):
    cases = find_studies(tree / "tree") + list(open_dataset("medmnist:breastmnist", search=[bench_data]).cases[:1])
    for case in cases:
        again = pickle.loads(pickle.dumps(case))
        np.testing.assert_array_equal(again.image().data, case.image().data)


def test_medmnist_is_fetched_by_its_package(tmp_path, monkeypatch):
    """The package is not installed here; one of the same shape stands for it."""
    asked = []

    class BloodMNIST:
        def __init__(self, *, split, download, size, root):
            asked.append((split, download, size))
            if size == 128:
                raise RuntimeError("no route to host")
            _save(Path(root) / "bloodmnist_64.npz", [[0], [1], [2]], shape=(64, 64, 3))

    package = types.ModuleType("medmnist")
    package.INFO = {"bloodmnist": {"python_class": "BloodMNIST"}}
    package.BloodMNIST = BloodMNIST
    monkeypatch.setitem(sys.modules, "medmnist", package)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("medmnist:bloodmnist_64")
    assert (len(dataset), asked) == (9, [("test", True, 64)])
    assert len(open_dataset("medmnist:bloodmnist_64")) == 9, "from the folder of the package, without asking again"
    assert len(asked) == 1
    with pytest.raises(ReadError, match=r"could not fetch it \(RuntimeError: no network\?\)\. Put bloodmnist_128\.npz"):
        open_dataset("medmnist:bloodmnist_128")


def test_a_tilted_series_gets_its_exact_affine_where_asked_for(tmp_path, write_series):
    volume = np.arange(24, dtype=np.int16).reshape(3, 2, 4)
    paths = write_series("study/series", volume, [0, 3, 6])
    for path in paths:
        header = pydicom.dcmread(path)
        header.ImagePositionPatient = [
            *header.ImagePositionPatient[:2],
            header.ImagePositionPatient[2] + header.InstanceNumber,
        ]
        header.save_as(path)
    refused = open_dataset(tmp_path / "study")
    with pytest.raises(GeometryError, match="gantry is tilted"):
        refused.cases[0].image()
    dataset = open_dataset(tmp_path / "study", tilt="shear")
    affine = dataset.cases[0].image().grid.affine
    first, second = (pydicom.dcmread(p).ImagePositionPatient for p in paths[:2])
    np.testing.assert_allclose(affine[:3, 2], np.subtract(second, first), atol=1e-6)
    write_manifest(dataset, tmp_path / "manifest")
    np.testing.assert_array_equal(open_dataset(tmp_path / "manifest").cases[0].image().grid.affine, affine)
    with pytest.raises(ConfigError, match="tilt='sheer' is not known. Did you mean 'shear'"):
        open_dataset(tmp_path / "study", tilt="sheer")
