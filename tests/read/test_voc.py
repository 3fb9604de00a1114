"""Pascal VOC: boxes counted from 1, splits of ImageSets, and whatever does not fit told by case and line."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from sagittal.errors import DataError, GeometryError
from sagittal.read.open_dataset import open_dataset
from sagittal.truth import Boxes


def annotation(*objects, filename="", size=(12, 9), folder="JPEGImages"):
    """The XML of one image; objects are (name, xmin, ymin, xmax, ymax, difficult)."""
    parts = [f"<annotation><folder>{folder}</folder><filename>{filename}</filename>"]
    parts.append(f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>")
    for name, *corners, difficult in objects:
        places = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
        part = "<part><name>hand</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        parts.append(
            f"\n<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{places}</bndbox>{part}</object>"
        )
    return "".join([*parts, "</annotation>"])


@pytest.fixture
def voc(tmp_path, write_png, write_text):
    """A set of pictures and annotations: ``voc({"a": xml, "b": None})``."""

    def make(notes, **lists):
        for name, text in notes.items():
            write_png(f"set/JPEGImages/{name}.png")
            if text is not None:
                write_text(f"set/Annotations/{name}.xml", text)
        for name, lines in lists.items():
            write_text(f"set/ImageSets/Main/{name}.txt", "\n".join(lines) + "\n")
        return tmp_path / "set"

    return make


def reasons(dataset):
    return {one.case: one.reason for one in dataset.skipped}


def test_corners_count_pixels_from_one(voc):
    dataset = open_dataset(voc({"a": annotation(("cell", 1, 2, 12, 2, 0), ("dust", 3, 3, 3, 3, 1)), "b": annotation()}))
    assert (dataset.layout, dataset.scheme.kind, dataset.scheme.classes) == ("voc", "objects", ("cell", "dust"))
    first, none = (case.truth for case in dataset)
    assert isinstance(first, Boxes)
    # all twelve columns of the second row; then the one pixel (2, 2)
    np.testing.assert_array_equal(first.corners[0], [[-0.5, 0.5, -0.5], [11.5, 1.5, 0.5]])
    np.testing.assert_array_equal(first.corners[1], [[1.5, 1.5, -0.5], [2.5, 2.5, 0.5]])
    assert first.crowd.tolist() == [False, True]
    assert len(none) == 0


def test_splits_of_the_lists(voc):
    notes = {name: annotation(("cell", 1, 1, 3, 3, 0)) for name in "abcde"}
    dataset = open_dataset(
        voc(notes, train=["a", "b"], val=["c", "a"], test=["e"], trainval=["a", "b", "c"], cell_train=["b  1"])
    )
    assert {case.id[-1]: case.split for case in dataset} == {"b": "train", "c": "val", "d": None, "e": "test"}
    assert reasons(dataset) == {"Annotations/a": "ImageSets lists it in train and in val: it must be in one split"}


def test_a_list_for_train_and_val_together(voc):
    notes = {name: annotation(("cell", 1, 1, 3, 3, 0)) for name in "ab"}
    dataset = open_dataset(voc(notes, trainval=["a"], test=["b"]))
    assert [case.split for case in dataset] == ["train", "test"]


def test_what_does_not_fit_is_told(voc, tmp_path, write_text, write_png):
    good = ("cell", 1, 1, 3, 3, 0)
    folder = voc(
        {
            "good": annotation(good, filename="good.png"),
            "word": annotation(good, ("cell", 1, "left", 3, 3, 0)),
            "nameless": annotation(("", 1, 1, 3, 3, 0)),
            "cut": annotation(good)[:-20],
            "other": annotation(good, filename="good.png"),
            "bare": None,
            "empty": annotation(good),
        },
        train=["good", "never"],
    )
    write_text("set/Annotations/alone.xml", annotation(good))
    write_text("set/Annotations/scene.xml", "<scene/>")
    write_png("set/JPEGImages/scene.png")
    (folder / "JPEGImages" / "empty.png").write_bytes(b"")
    dataset = open_dataset(folder)
    assert [case.id for case in dataset] == ["JPEGImages/good"]
    assert reasons(dataset) == {
        "Annotations/word": "line 3 of the annotation: an object without box of four numbers",
        "Annotations/nameless": "line 2 of the annotation: an object without name",
        "Annotations/cut": "XML: damaged or cut off in line 2",
        "Annotations/other": "the annotation has the name of one image and names another",
        "Annotations/empty": "the file is empty (0 bytes)",
        "Annotations/alone": "an annotation without image",
        "Annotations/scene": "expected the element 'annotation', found 'scene'",
        "JPEGImages/bare.png": "an image without annotation",
        "never": "ImageSets lists it, but it has no annotation",
    }


def test_annotations_of_another_size_are_refused_when_the_image_is_read(voc):
    dataset = open_dataset(
        voc({"a": annotation(("c", 1, 1, 2, 2, 0), size=(9, 12)), "b": annotation(("c", 1, 1, 2, 2, 0), size=(0, 0))})
    )
    with pytest.raises(
        GeometryError, match="case JPEGImages/a: the annotations are for 9 x 12 pixels, the image has 12 x 9"
    ):
        dataset.cases[0].image()
    assert dataset.cases[1].image().grid.shape == (12, 9, 1)


def test_annotations_beside_their_images(tmp_path, write_png, write_text):
    for split in ("train", "valid"):
        write_png(f"{split}/a.png")
        write_text(f"{split}/a.xml", annotation(("c", 1, 1, 2, 2, 0), filename="a.png"))
    dataset = open_dataset(tmp_path)
    assert [(c.id, c.split) for c in dataset] == [("train/a", "train"), ("valid/a", "val")]


def test_no_object_at_all(voc):
    with pytest.raises(DataError, match="none of its 1 annotations names an object"):
        open_dataset(voc({"a": annotation()}))
    with pytest.raises(DataError, match="holds no annotation of Pascal VOC"):
        open_dataset(voc({"b": None}).parent / "set" / "JPEGImages", layout="voc")


def test_bccd(bench_data):
    dataset = open_dataset(bench_data / "bccd")
    assert (len(dataset), dataset.scheme.classes, dataset.skipped) == (292, ("Platelets", "RBC", "WBC"), ())
    assert {name: len(dataset.split(name)) for name in dataset.splits} == {"train": 205, "val": 87}
    boxes = odd = 0
    for case in dataset:
        tree = ElementTree.parse(bench_data / "bccd" / "Annotations" / f"{case.id.rpartition('/')[2]}.xml")
        given = np.array(
            [
                [float(o.find("bndbox").find(k).text) for k in ("xmin", "ymin", "xmax", "ymax")]
                for o in tree.iter("object")
            ]
        )
        corners = case.truth.corners
        np.testing.assert_array_equal(corners[:, 0, :2] + 1.5, given[:, :2])
        np.testing.assert_array_equal(corners[:, 1, :2] + 0.5, given[:, 2:])
        names = [o.find("name").text for o in tree.iter("object")]
        assert [dataset.scheme.classes[n] for n in case.truth.classes] == names
        boxes += len(names)
        odd += int((given[:, 2:] <= given[:, :2]).any(axis=1).sum())
    assert boxes > 3000
    assert odd == 2, "boxes whose corners coincide are kept for check to report"
    assert dataset.cases[0].image().data.shape == (3, 640, 480, 1)
