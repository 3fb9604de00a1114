"""Masks of classes beside images: as VOC has them, as CVAT and LabelMe write them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as Picture

from sagittal.errors import DataError, ReadError
from sagittal.read.open_dataset import open_dataset
from sagittal.truth import Boxes

INDICES = np.zeros((9, 12), np.uint8)
INDICES[1:4, 1:5], INDICES[5:8, 6:9], INDICES[8] = 1, 2, 255
COLOURS = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)


@pytest.fixture
def voc(tmp_path, write_png, write_text):
    """Three images of which two have masks: indices with a palette, or their colours."""

    def make(coloured=False, names=None, boxes=False):
        for n in range(3):
            write_png(f"v/JPEGImages/{n}.png")
        for folder in ("SegmentationClass", "SegmentationObject"):
            (tmp_path / "v" / folder).mkdir(exist_ok=True)
            for n in range(2):
                if coloured:
                    pixels = COLOURS[np.where(INDICES == 255, 0, INDICES)]
                    pixels[8] = (224, 224, 192)
                    picture = Picture.fromarray(pixels)
                else:
                    picture = Picture.fromarray(INDICES, "P")
                    picture.putpalette([*COLOURS.ravel().tolist(), *[9] * 759])
                picture.save(tmp_path / "v" / folder / f"{n}.png")
        write_text("v/ImageSets/Segmentation/train.txt", "0\n")
        write_text("v/ImageSets/Segmentation/val.txt", "1\n2\n")
        if names:
            write_text(f"v/{names[0]}", names[1])
        if boxes:
            box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
            for n in range(3):
                write_text(f"v/Annotations/{n}.xml", f"<annotation><object><name>a</name>{box}</object></annotation>")
        return tmp_path / "v"

    return make


CVAT = ("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncell:128,0,0::\nvessel:0,128,0::\n")


@pytest.mark.parametrize(
    ("coloured", "names", "classes"),
    [
        (False, CVAT, ("cell", "vessel")),
        (True, CVAT, ("cell", "vessel")),
        (False, ("class_names.txt", "_background_\ncell\nvessel\n"), ("cell", "vessel")),
        (False, None, ("1", "2")),
        (True, None, ("#008000", "#800000")),
    ],
)
def test_classes_of_every_writer(voc, coloured, names, classes):
    dataset = open_dataset(voc(coloured, names))
    assert (dataset.layout, dataset.scheme.kind, dataset.scheme.classes) == ("voc", "structures", classes)
    assert [(case.id, case.split) for case in dataset] == [("JPEGImages/0", "train"), ("JPEGImages/1", "val")]
    assert [(one.case, one.code) for one in dataset.skipped] == [("JPEGImages/2", "no-truth")]
    found = dataset.cases[0].truth.load()
    first = classes[1] if classes[0] == "#008000" else classes[0]
    np.testing.assert_array_equal(found.mask(first)[:, :, 0].T, INDICES == 1)
    np.testing.assert_array_equal(found.unknown[:, :, 0].T, INDICES == 255)
    assert any("not used: SegmentationObject" in told for told in dataset.notes)


def test_some_classes_and_objects(voc):
    folder = voc(names=CVAT)
    one = open_dataset(folder, target="vessel", kind="objects")
    assert (one.scheme.kind, one.scheme.classes) == ("objects", ("vessel",))
    np.testing.assert_array_equal(one.cases[0].truth.load().mask("vessel")[:, :, 0].T, INDICES == 2)
    named = open_dataset(folder, target="both=1+2,ignore=255")
    np.testing.assert_array_equal(named.cases[0].truth.load().mask("both")[:, :, 0].T, np.isin(INDICES, (1, 2)))


def test_boxes_or_masks_may_be_chosen(voc):
    folder = voc(names=CVAT, boxes=True)
    boxes = open_dataset(folder)
    assert boxes.scheme.classes == ("a",)
    assert all(isinstance(case.truth, Boxes) for case in boxes)
    assert boxes.skipped == ()
    assert "not used: the masks of SegmentationClass (--kind structures)" in boxes.notes
    assert open_dataset(folder, kind="structures").scheme.classes == ("cell", "vessel")


@pytest.mark.parametrize(
    ("coloured", "text", "message"),
    [
        (True, "cell\n", "labelmap.txt: line 1 gives no colour; expected NAME:R,G,B"),
        (False, "a\nb\nb\n", "labelmap.txt: line 3 names no class, or one that was named before"),
    ],
)
def test_damaged_lists_of_classes(voc, coloured, text, message):
    with pytest.raises(ReadError, match=message):
        open_dataset(voc(coloured, ("labelmap.txt", text)))


def test_masks_without_their_images(voc):
    folder = voc()
    for path in (folder / "JPEGImages").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(
        DataError, match="none of the 2 masks in SegmentationClass has an image of its name in JPEGImages"
    ):
        open_dataset(folder)
