"""The contract of layouts: every form of a data set becomes the same kind of Dataset, and its manifest the same cases."""

from __future__ import annotations

import json
import pickle
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sagittal import verbs
from sagittal.case import Case
from sagittal.dataset import Dataset
from sagittal.errors import ConfigError, DataError, ReadError
from sagittal.labels import PLACE_KINDS, ClassScores, LabelScheme
from sagittal.options import ReadOptions, TrainOptions
from sagittal.read.manifest import CASES, ROW_SCHEMA, SCHEMA, read_manifest, write_manifest
from sagittal.read.open_dataset import LAYOUTS, open_dataset
from sagittal.read.sources import file_source, make_mask_source
from sagittal.truth import Boxes, SegmentationSource

Maker = Callable[[], tuple[Path | str, dict[str, object]]]
VOLUME = np.arange(60, dtype=np.int16).reshape(5, 4, 3)


@pytest.fixture
def forms(tmp_path, write_png, write_nifti, write_text, write_series) -> dict[str, Maker]:
    """Form of a data set -> a function that writes it and gives source and options."""

    def pictures(folder, count=4):
        for n in range(count):
            write_png(f"{folder}/{n}.png")

    def folders():
        for name in ("train/no/1", "train/yes/2", "test/no/3", "test/yes/4"):
            write_png(f"a/{name}.png")
        return tmp_path / "a", {}

    def table(text, **options):
        pictures("t")
        return write_text("t/t.csv", text), options

    def masks():
        pictures("t", 3)
        for n in range(2):
            write_png(f"t/m{n}.png", np.eye(9, 12, k=n, dtype=np.uint8) * 255)
        return write_text("t/t.csv", "image,mask,age\n0.png,m0.png,4\n1.png,m1.png,5\n2.png,,6\n"), {}

    def each():
        source, _ = masks()
        write_text("t/t.csv", "image,heart,lung\n0.png,m0.png,m1.png\n1.png,m1.png,\n2.png,,\n")
        return source, {"mask_column": "heart,lung"}

    def tree():
        for n, patient in enumerate(("ANNA", "ANNA", "BERT")):
            write_series(
                f"d/{n}",
                np.full((3, 4, 4), n, np.int16),
                [0, 1, 2.0],
                PatientID=patient,
                StudyInstanceUID=f"1.{n}",
                SeriesInstanceUID=f"1.{n}.9",
            )
        return tmp_path / "d", {
            "labels": write_text("d.csv", "StudyInstanceUID,label,age\n1.0,a,1\n1.1,b,\n1.2,a,3\n1.7,b,4\n")
        }

    def medmnist():
        np.savez(
            tmp_path / "s.npz", images=np.arange(105, dtype=np.uint8).reshape(3, 5, 7), labels=np.array([0, 1, -1])
        )
        return tmp_path / "s.npz", {}

    def msd(name="m"):
        write_nifti(f"{name}/imagesTr/x.nii.gz", np.stack([VOLUME, VOLUME * 2], axis=-1))
        write_nifti(f"{name}/labelsTr/x.nii.gz", (VOLUME % 3).astype(np.uint8))
        write_nifti(f"{name}/labelsTr/lonely.nii.gz", VOLUME)
        listed = [{"image": "./imagesTr/x.nii.gz", "label": "./labelsTr/x.nii.gz"}]
        write_text(
            f"{name}/dataset.json",
            {"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "a", "2": "b"}, "training": listed},
        )
        return tmp_path / name, {}

    def nnunet():
        write_nifti("n/imagesTr/x_0000.nii.gz", VOLUME)
        write_nifti("n/labelsTr/x.nii.gz", (VOLUME % 4).astype(np.uint8))
        write_text(
            "n/dataset.json",
            {"channel_names": {"0": "CT"}, "labels": {"background": 0, "all": [1, 2], "core": 2, "ignore": 3}},
        )
        return tmp_path / "n", {}

    def coco(**options):
        pictures("c")
        images = [{"id": n, "file_name": f"{n}.png", "width": 12, "height": 9} for n in range(3)]
        box = {"image_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 4, 2, 4, 6, 1, 6]], "iscrowd": 0}
        notes = [{**box, "id": 1, "category_id": 1}, {**box, "id": 2, "category_id": 2, "iscrowd": 1}]
        write_text(
            "c/c.json",
            {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]},
        )
        return tmp_path / "c", options

    def voc():
        pictures("v/JPEGImages", 3)
        place = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
        thing = f"<object><name>a</name><difficult>1</difficult>{place}</object>"
        for n, objects in enumerate((thing * 2, "", thing)):
            write_text(f"v/Annotations/{n}.xml", f"<annotation>{objects}</annotation>")
        write_text("v/ImageSets/Main/train.txt", "0\n1\n")
        write_text("v/ImageSets/Main/val.txt", "2\n")
        return tmp_path / "v", {}

    def pairs():
        pictures("p/images")
        for n in range(3):
            write_png(f"p/masks/{n}.png", np.eye(9, 12, k=n, dtype=np.uint8) * (n + 1))
        return tmp_path / "p", {"target": "a=1,b=2+3"}

    def case_folders():
        for n in range(2):
            for role in ("t1", "flair"):
                write_nifti(f"b/P{n}/P{n}_{role}.nii.gz", VOLUME)
            write_nifti(f"b/P{n}/P{n}_seg.nii.gz", (VOLUME % 4).astype(np.uint8))
        return tmp_path / "b", {"target": "whole=1+2,core=1,ignore=3"}

    def parts():
        pictures("q", 2)
        for n, name in enumerate(("liver", "spleen")):
            write_png(f"q/0_{name}.png", np.eye(9, 12, k=n, dtype=np.uint8) * 255)
        write_png("q/1_liver.png", np.eye(9, 12, dtype=np.uint8))
        write_png("q/1_spleen.png", np.zeros((9, 12), np.uint8))
        return tmp_path / "q", {"kind": "objects"}

    def crops():
        pictures("t", 2)
        write_png("t/c.png", np.eye(3, 4, dtype=np.uint8) * 255)
        table = write_text("t/t.csv", "image,mask,x,y,kind\n0.png,c.png,2,1,a\n0.png,c.png,7,5,b\n1.png,c.png,0,0,a\n")
        return table, {"mask_column": "mask", "target": "kind"}

    def objects_of_a_tree():
        tree()
        sphere = "coordX,coordY,coordZ,radius_mm,label"
        rows = "1.0.9,0,0,1,2,a\n1.0.9,1,1,1,2,b\n1.1.9,1,0,1,2,a\n"
        labels = write_text("d.csv", f"SeriesInstanceUID,{sphere}\n{rows}")
        return tmp_path / "d", {"labels": labels, "unlisted": "empty"}

    def zipped():
        folder, _ = msd("z")
        with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, file.relative_to(tmp_path))
        return tmp_path / "z.zip", {}

    def files():
        pictures("f")
        return tmp_path / "f", {"layout": "files"}

    def manifest():
        source, options = coco()
        write_manifest(open_dataset(source, **options), tmp_path / "first")
        return tmp_path / "first", {}

    return {
        "folders": folders,
        "table": lambda: table("image,label,age,report,patient,split\n0,a,4,fine,p,train\n1,b,,bad,p,train\n2,,5,,q,test\n9,a,1,,r,val\n"),
        "several labels": lambda: table("image,x,y\n0,1,0\n1,,-1\n2,0,1\n3,unknown,1\n", target="x,y"),
        "grades": lambda: table("image,grade\n0,2\n1,0\n2,1\n3,\n", kind="ordinal"),
        "several images": lambda: table("a,b,label\n0,1,x\n2,3,y\n", path_column="a,b", target="label"),
        "masks of a table": masks,
        "masks of each structure": each,
        "boxes of a table": lambda: table("image,x,y,w,h,label\n0,1,2,3,4,a\n0,2,2,3,3,b\n1,,,,,\n"),
        "spheres": lambda: table("image,coordX,coordY,coordZ,radius_mm\n0,1.5,-2,3,4\n1,,,,\n"),
        "dicom_tree": tree,
        "medmnist": medmnist,
        "msd": msd,
        "nnunet": nnunet,
        "coco": coco,
        "coco as masks": lambda: coco(kind="structures"),
        "voc": voc,
        "pairs": pairs,
        "case_folders": case_folders,
        "a file a structure": parts,
        "crops of a table": crops,
        "objects of a tree": objects_of_a_tree,
        "zip": zipped,
        "files": files,
        "manifest": manifest,
    }  # fmt: skip


FORMS = (
    "folders", "table", "several labels", "grades", "several images", "masks of a table", "masks of each structure",
    "boxes of a table", "spheres", "dicom_tree", "medmnist", "msd", "nnunet", "coco", "coco as masks", "voc", "pairs",
    "case_folders", "a file a structure", "crops of a table", "objects of a tree", "zip", "files", "manifest",
)  # fmt: skip


def assert_same_truth(one, two) -> None:
    assert type(one) is type(two)
    if isinstance(one, ClassScores):
        np.testing.assert_array_equal(one.values, two.values)
    elif isinstance(one, Boxes):
        assert one.frame == two.frame
        for name in ("corners", "classes", "crowd"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    elif isinstance(one, SegmentationSource):
        assert (one.way, one.structures, dict(one.options)) == (two.way, two.structures, dict(two.options))
        first, second = one.load(), two.load()
        np.testing.assert_array_equal(first.layers, second.layers)
        assert (first.structures, first.ignore) == (second.structures, second.ignore)
        assert first.grid.same_place(second.grid)


def assert_same(found: Dataset, expected: Dataset) -> None:
    for name in ("scheme", "columns", "skipped", "notes", "name"):
        assert getattr(found, name) == getattr(expected, name), name
    assert [c.id for c in found] == [c.id for c in expected]
    for a, b in zip(found, expected, strict=True):
        assert (a.patient, a.split, a.text, a.source, dict(a.table)) == (
            b.patient,
            b.split,
            b.text,
            b.source,
            dict(b.table),
        )
        assert list(a.images) == list(b.images)
        assert_same_truth(a.truth, b.truth)
        for name in a.images:
            one, two = a.image(name), b.image(name)
            np.testing.assert_array_equal(one.data, two.data)
            assert (one.modality, one.unit, one.bits, a.images[name].member) == (
                two.modality,
                two.unit,
                two.bits,
                b.images[name].member,
            )
            assert one.grid.same_place(two.grid)


def test_the_forms_cover_the_layouts(forms):
    assert set(FORMS) == set(forms)
    assert set(LAYOUTS) - set(FORMS) == {"dicom_truth"}, "which has a test of its own, with real structure sets"


def test_structure_sets_come_back_as_they_were(bench_data, tmp_path):
    dataset = open_dataset(bench_data / "dicom" / "rtstruct" / "mock_data")
    write_manifest(dataset, tmp_path / "out")
    assert dataset.layout == "dicom_truth"
    assert_same(read_manifest(tmp_path / "out"), dataset)


@pytest.mark.parametrize("form", FORMS)
def test_a_manifest_gives_the_same_cases(forms, form, tmp_path):
    source, options = forms[form]()
    dataset = open_dataset(source, **options)
    found = verbs.ingest(
        source,
        tmp_path / "out",
        target=options.get("target"),
        options=ReadOptions(**{k: str(v) for k, v in options.items() if k != "target"}),
    )
    assert_same(found, dataset)
    assert_same(open_dataset(tmp_path / "out"), dataset)
    assert {f.name for f in (tmp_path / "out").iterdir()} == {CASES, ROW_SCHEMA, SCHEMA}
    again = pickle.loads(pickle.dumps(found.cases[0]))
    next(iter(again.images.values())).load()


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_what_the_schema_says(forms, form, tmp_path):
    import pyarrow.parquet as pq
    from jsonschema import Draft202012Validator

    source, options = forms[form]()
    write_manifest(open_dataset(source, **options), tmp_path / "out")
    schema = json.loads((tmp_path / "out" / ROW_SCHEMA).read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    check = Draft202012Validator(schema)
    rows = pq.read_table(tmp_path / "out" / CASES).to_pylist()
    for row in rows:
        check.validate(row)
        assert not check.is_valid({**row, "split": "training"})
        assert not check.is_valid({**row, "more": 1})
        for image in row["images"]:
            assert isinstance(json.loads(image["options"]), dict)
    assert set(schema["required"]) == set(rows[0])


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_lost(forms, form):
    """Every file of an image below the source is in a case or in the list of what was left out."""
    source, options = forms[form]()
    dataset = open_dataset(source, **options)
    assert len({case.id for case in dataset}) == len(dataset)
    used = {file.resolve() for case in dataset for image in case.images.values() for file in image.files}
    used |= {
        file.resolve() for case in dataset if isinstance(case.truth, SegmentationSource) for file in case.truth.files
    }
    told = " ".join(one.case for one in dataset.skipped)
    if not Path(source).is_dir() or ((Path(source) / SCHEMA).is_file() and form == "manifest"):
        return
    left = [f for f in Path(source).resolve().rglob("*") if f.suffix in {".png", ".gz", ".dcm"} and f not in used]
    assert [f.name for f in left if f.name not in told and f.name.partition(".")[0] not in told] == []


@pytest.mark.parametrize(
    "form", ["several labels", "grades", "table", "medmnist", "masks of a table", "boxes of a table", "voc", "coco"]
)
def test_unknown_is_not_negative(forms, form):
    source, options = forms[form]()
    dataset = open_dataset(source, **options)
    known = {case.id.rpartition("/")[2]: case.truth is not None and case.truth.known for case in dataset}
    if form == "several labels":
        np.testing.assert_array_equal(dataset.cases[1].truth.values, [np.nan, np.nan])
        np.testing.assert_array_equal(dataset.cases[3].truth.values, [np.nan, 1])
    expected = {
        "several labels": {"1"}, "grades": {"3"}, "table": {"2"}, "medmnist": {"case-0002"}, "masks of a table": {"2"},
    }  # fmt: skip
    assert {name for name, is_known in known.items() if not is_known} == expected.get(form, set())
    if form in {"boxes of a table", "voc", "coco"}:
        assert any(not len(case.truth) for case in dataset), "an image in which nothing was found"
        reasons = {one.reason for one in dataset.skipped}
        assert form == "voc" or any("an image" in reason for reason in reasons), "images of which nothing is said"


def test_structures_and_objects_of_a_manifest_may_be_chosen(forms, tmp_path):
    source, options = forms["coco"]()
    write_manifest(open_dataset(source, **options), tmp_path / "boxes")
    dataset = open_dataset(tmp_path / "boxes", target="b")
    assert dataset.scheme.classes == ("b",)
    assert [(c.truth.classes.tolist(), np.asarray(c.truth.crowd).tolist()) for c in dataset][1] == ([0], [True])
    write_manifest(open_dataset(forms["msd"]()[0]), tmp_path / "masks")
    assert open_dataset(tmp_path / "masks", target="b").scheme.classes == ("b",)
    objects = open_dataset(tmp_path / "masks", kind="objects")
    assert (objects.scheme.kind, type(objects.cases[0].truth)) == ("objects", SegmentationSource)
    with pytest.raises(DataError, match="the manifest has no column 'bb'. Did you mean 'b'|Known: labels, a, b"):
        open_dataset(tmp_path / "masks", target="bb")


def test_a_manifest_of_format_1_is_still_read(forms, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for form in ("medmnist", "dicom_tree", "table"):
        source, options = forms[form]()
        dataset = open_dataset(source, **options)
        out = tmp_path / form
        write_manifest(dataset, out)
        rows = pq.read_table(out / CASES).to_pylist()
        for row in rows:
            del row["masks"], row["boxes"]
            for image in row["images"]:
                told = json.loads(image.pop("options"))
                image.pop("member")
                image.update({key: told.get(key) for key in ("array", "index", "modality")})
        pq.write_table(pa.Table.from_pylist(rows), out / CASES)
        (out / ROW_SCHEMA).unlink()
        values = json.loads((out / SCHEMA).read_text(encoding="utf-8"))
        (out / SCHEMA).write_text(json.dumps({**values, "format": 1}), encoding="utf-8")
        assert_same(read_manifest(out), dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["boxes"].update(classes=[0, 9]), "do not fit each other"),
        (lambda row: row["boxes"].update(corners=[1.0]), "do not fit each other"),
        (lambda row: row["images"][0].update(options="["), "do not fit each other"),
        (lambda row: row["images"][0].update(options="3"), "do not fit each other"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(forms, tmp_path, change, message):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_manifest(open_dataset(forms["coco"]()[0]), tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / CASES)
    rows = table.to_pylist()
    change(rows[1])
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "out" / CASES)
    with pytest.raises(ReadError, match=message):
        read_manifest(tmp_path / "out")


def test_masks_that_lie_in_no_file_cannot_be_pointed_at(forms, tmp_path):
    source, _ = forms["pairs"]()
    dataset = open_dataset(source, target="a=1,b=2+3")
    first = replace(dataset.cases[0], truth=SegmentationSource(dataset.cases[0].truth.read))
    with pytest.raises(DataError, match="case images/0: its segmentation is not read from files"):
        write_manifest(replace(dataset, cases=(first,)), tmp_path / "out")


def test_ten_thousand_rows_open_in_a_moment(tmp_path, write_png):
    path = write_png("a/x.png")
    scheme = LabelScheme("structures", ("a", "b"))
    options = {"structures": {"a": [1], "b": [2]}}
    cases = tuple(
        Case(
            f"c{n}", f"p{n // 2}", {"T1": file_source(f"c{n}", path, modality="MR"), "T2": file_source(f"c{n}", path)},
            {"age": float(n), "sex": "f"}, truth=make_mask_source(f"c{n}", "label_map", [path], options, structures=("a", "b")),
        )
        for n in range(10_000)
    )  # fmt: skip
    write_manifest(Dataset("many", cases, scheme, ("age", "sex")), tmp_path / "out")
    began = time.perf_counter()
    found = read_manifest(tmp_path / "out")
    took = time.perf_counter() - began
    assert (len(found), found.cases[9_999].table["age"]) == (10_000, 9_999)
    assert took < 8, "2 s on a quiet machine"


# ---- the verbs


@pytest.mark.parametrize("form", ["msd", "coco", "masks of a table"])
def test_classification_needs_classes(forms, form, tmp_path):
    source, _ = forms[form]()
    advice = "one of: age" if form == "masks of a table" else "--labels TABLE --target COLUMN"
    for call in (
        lambda: verbs.plan(source, task="classify", options=TrainOptions()),
        lambda: verbs.train(source, task="classify", output=tmp_path / "run", budget="1m"),
    ):
        with pytest.raises(
            DataError,
            match=f"truth is of kind '({'|'.join(PLACE_KINDS)})' .*needs classes of the case as a whole.*{advice}",
        ):
            call()


def test_a_classifier_is_not_judged_by_structures(forms, monkeypatch):
    monkeypatch.setattr(verbs, "_load", lambda model, device: (None, model))
    with pytest.raises(DataError, match="truth is of kind 'structures' .*needs classes of the case as a whole"):
        verbs.evaluate(SimpleNamespace(plan=SimpleNamespace(task="classify")), forms["msd"]()[0])


def test_facts_count_boxes_and_structures(forms):
    from sagittal.cli.text import dataset_text
    from sagittal.report.facts import describe_dataset

    facts = describe_dataset(open_dataset(forms["voc"]()[0]))
    assert (facts["kind"], facts["classes"], facts["labelled"]) == ("objects", {"a": 3}, 3)
    assert "boxes of a: 3" in dataset_text(facts)
    facts = describe_dataset(open_dataset(forms["msd"]()[0]))
    assert (facts["classes"], facts["images"]) == ({"a": 1, "b": 1}, ["T1", "T2"])
    assert "outlined a: 1, b: 1" in dataset_text(facts)


def test_a_reader_is_told_only_what_it_understands(write_png):
    source = file_source("c1", write_png("a.png"), colour="red")
    with pytest.raises(ConfigError, match="case c1: what the reader 'file' is told does not fit it .*'colour'"):
        source.load()
