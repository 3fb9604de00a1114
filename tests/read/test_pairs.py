"""Masks beside their images: recognised only where it is plain, and which mask belongs to which image."""

from __future__ import annotations

import numpy as np
import pytest

from sagittal.errors import ConfigError, DataError
from sagittal.read.open_dataset import open_dataset
from sagittal.read.pair_files import is_pairs


def mask(*values, shape=(9, 12)):
    pixels = np.zeros(shape, np.uint8)
    for n, value in enumerate(values):
        pixels[1 + 2 * n : 3 + 2 * n, 2:7] = value
    return pixels


def reasons(dataset):
    return {one.case: one.reason for one in dataset.skipped}


def values_of(case):
    return {s.name: int(case.truth.load().mask(s.name).sum()) for s in case.truth.load().structures}


@pytest.mark.parametrize(
    "names",
    [
        ("images/{n}.png", "masks/{n}.png"),
        ("img/{n}.png", "segmentations/{n}_seg.png"),
        ("scans/p{n}/x.png", "labels/p{n}/x.png"),
        ("{n}.png", "{n}_mask.png"),
        ("p{n}/scan.png", "p{n}/scan-label.png"),
        ("a_{n}.png", "a_{n}_GroundTruth.png"),
    ],
)
def test_images_and_masks_of_every_arrangement(tmp_path, write_png, names):
    for n in range(3):
        write_png(names[0].format(n=n))
        write_png(names[1].format(n=n), mask(255))
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.scheme.kind, dataset.scheme.classes) == ("pairs", "structures", ("foreground",))
    assert (len(dataset), dataset.skipped) == (3, ())
    for n, case in enumerate(dataset):
        assert str(n) in case.id
        assert str(n) in str(case.truth.files[0].relative_to(tmp_path))
        assert values_of(case) == {"foreground": 10}
        assert case.truth.load().grid.shape == case.image().grid.shape


def test_splits_above_and_below_the_folders(tmp_path, write_png):
    for split in ("train", "val"):
        write_png(f"{split}/images/1.png")
        write_png(f"{split}/masks/1.png", mask(1))
    assert [(c.id, c.split) for c in open_dataset(tmp_path)] == [("train/images/1", "train"), ("val/images/1", "val")]
    for split in ("train", "test"):
        write_png(f"other/images/{split}/1.png")
        write_png(f"other/masks/{split}/1.png", mask(1))
    assert [c.split for c in open_dataset(tmp_path / "other")] == ["test", "train"]


def test_what_is_alone_is_told(tmp_path, write_png):
    for name in ("a", "b"):
        write_png(f"images/{name}.png")
    for name in ("a", "c"):
        write_png(f"masks/{name}.png", mask(1))
    write_png("overview.png")
    dataset = open_dataset(tmp_path)
    assert [c.id for c in dataset] == ["images/a"]
    assert reasons(dataset) == {
        "images/b.png": "an image without mask",
        "masks/c.png": "a mask without image",
        "overview.png": "no image of the set",
    }


def test_a_suffix_without_its_image_is_told(tmp_path, write_png):
    for name in ("a", "b"):
        write_png(f"{name}.png")
        write_png(f"{name}_mask.png", mask(1))
    write_png("c_mask.png", mask(1))
    assert reasons(open_dataset(tmp_path)) == {"c_mask.png": "a mask without image"}


def test_several_masks_of_an_image_are_joined(tmp_path, write_png):
    write_png("a.png")
    write_png("a_mask.png", mask(255))
    write_png("a_mask_1.png", mask(0, 255))
    (case,) = open_dataset(tmp_path)
    assert values_of(case) == {"foreground": 20}


def test_values_are_structures_and_may_be_named(tmp_path, write_png):
    for n in range(3):
        write_png(f"images/{n}.png")
        write_png(f"masks/{n}.png", mask(1, 2) if n else mask(1))
    dataset = open_dataset(tmp_path)
    assert dataset.scheme.classes == ("1", "2")
    assert any(
        "structures 1, 2 by the values in 3 of 3 masks; name them with --target" in told for told in dataset.notes
    )
    named = open_dataset(tmp_path, target="liver=1, tumour=2")
    assert named.scheme.classes == ("liver", "tumour")
    assert [values_of(case) for case in named] == [{"liver": 10, "tumour": 0}, *[{"liver": 10, "tumour": 10}] * 2]
    assert open_dataset(tmp_path, target="organ=1+2").scheme.classes == ("organ",)
    with pytest.raises(DataError, match=r"case images/1: label map: holds the values 2, which no structure has"):
        open_dataset(tmp_path, target="liver=1").cases[1].truth.load()
    with pytest.raises(ConfigError, match="'liver=one' names no values of masks"):
        open_dataset(tmp_path, target="liver=one")
    with pytest.raises(DataError, match="masks hold structures, not 'binary'"):
        open_dataset(tmp_path, layout="pairs", kind="binary")


def test_one_structure_may_be_named(tmp_path, write_png):
    write_png("images/1.png")
    write_png("masks/1.png", mask(255))
    dataset = open_dataset(tmp_path, target="vessel")
    assert dataset.scheme.classes == ("vessel",)
    assert values_of(dataset.cases[0]) == {"vessel": 10}


def test_a_value_in_a_mask_that_was_not_looked_at_is_an_error_of_its_case(tmp_path, write_png):
    for n in range(40):
        write_png(f"images/{n:02d}.png")
        write_png(f"masks/{n:02d}.png", mask(1, 2) if n == 38 else mask(1))
    dataset = open_dataset(tmp_path)
    assert dataset.scheme.classes == ("foreground",)
    with pytest.raises(DataError, match=r"case images/38: the mask of 'foreground' holds 2 values \(1, 2\).*--target"):
        dataset.cases[38].truth.load()


def test_what_is_not_plain_is_not_guessed(tmp_path, write_png):
    for name in ("benign/1.png", "benign/1_mask.png", "malignant/2.png", "malignant/2_mask.png"):
        write_png(f"classes/{name}", mask(1))
    assert not is_pairs(tmp_path / "classes")
    for n in range(5):
        write_png(f"loose/{n}.png")
    write_png("loose/0_mask.png", mask(1))
    assert not is_pairs(tmp_path / "loose")
    for name in ("left", "right"):
        write_png(f"words/a_{name}.png")
    write_png("words/a.png")
    assert not is_pairs(tmp_path / "words")
    assert len(open_dataset(tmp_path / "loose", layout="pairs")) == 1


def test_volumes_and_their_labels(tmp_path, write_nifti):
    volume = np.arange(60).reshape(5, 4, 3)
    write_nifti("images/a.nii.gz", volume.astype(np.int16))
    write_nifti("labels/a.nii.gz", (volume % 4).astype(np.uint8))
    dataset = open_dataset(tmp_path, target="a=1,b=2,c=3")
    found = dataset.cases[0].truth.load()
    np.testing.assert_array_equal(found.mask("c"), volume % 4 == 3)
    assert found.grid.same_place(dataset.cases[0].image().grid)


def test_an_empty_mask_file_is_told(tmp_path, write_png):
    for n in range(2):
        write_png(f"images/{n}.png")
        write_png(f"masks/{n}.png", mask(1))
    (tmp_path / "masks/1.png").write_bytes(b"")
    dataset = open_dataset(tmp_path)
    assert (len(dataset), reasons(dataset)) == (1, {"images/1": "the file is empty (0 bytes)"})


def test_chase(bench_data):
    dataset = open_dataset(bench_data / "chase")
    assert (dataset.layout, len(dataset), dataset.skipped) == ("pairs", 20, ())
    assert any("other masks, not used: 2ndHO (choose with --mask-column 2ndHO)" in told for told in dataset.notes)
    case = dataset.cases[0]
    assert case.id == "Image_01L"
    assert case.truth.files[0].name == "Image_01L_1stHO.png"
    assert case.truth.load().layers.shape[1:] == case.image().grid.shape == (999, 960, 1)
    second = open_dataset(bench_data / "chase", target="2ndHO")
    assert second.cases[0].truth.files[0].name == "Image_01L_2ndHO.png"
    assert open_dataset(bench_data / "chase", target="vessel").scheme.classes == ("vessel",)


def slicer_file(path, *names, broken=False):
    """A segmentation as 3D Slicer saves it: one value a segment."""
    keys = "".join(
        f"Segment{n}_Name:={name}\nSegment{n}_LabelValue:={n + 1}\nSegment{n}_Layer:=0\n"
        for n, name in enumerate(names)
    )
    head = "NRRD0004\ntype: unsigned char\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 3 2\n"
    head += "space directions: (0.7,0,0) (0,0.5,0) (0,0,3)\nspace origin: (1,2,3)\nencoding: raw\n" + keys + "\n"
    values = np.arange(24, dtype=np.uint8) % (len(names) + 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"NRRD nonsense" if broken else head.encode() + values.tobytes())


def test_segmentations_of_slicer_keep_their_names(tmp_path):
    for n, names in enumerate((("liver", "tumour"), ("liver",), ("spleen",))):
        slicer_file(tmp_path / f"images/p{n}.nrrd")
        slicer_file(tmp_path / f"masks/p{n}.seg.nrrd", *names)
    slicer_file(tmp_path / "images/p3.nrrd")
    slicer_file(tmp_path / "masks/p3.seg.nrrd", broken=True)
    dataset = open_dataset(tmp_path)
    assert dataset.scheme.classes == ("liver", "tumour", "spleen")
    assert [case.truth.structures for case in dataset] == [("liver", "tumour"), ("liver",), ("spleen",)]
    assert values_of(dataset.cases[0]) == {"liver": 8, "tumour": 8}
    assert list(reasons(dataset)) == ["images/p3"]
    assert "case" not in reasons(dataset)["images/p3"]


# Several files of an image, a structure each -------------------------------------------------------------------------


def part(top, height=2, value=255):
    pixels = np.zeros((9, 12), np.uint8)
    pixels[top : top + height, 2:7] = value
    return pixels


@pytest.mark.parametrize(
    ("image", "liver", "tumour"),
    [
        ("{n}.png", "{n}_liver.png", "{n}-tumour.png"),
        ("images/{n}.png", "masks/{n}_liver.png", "masks/{n}_tumour_mask.png"),
        ("img/{n}.png", "labels/liver/{n}.png", "labels/tumour/{n}.png"),
        ("images/{n}.png", "masks/{n}_liver_seg.png", "masks/{n}_mask_tumour.png"),
    ],
)
def test_a_file_for_each_structure(tmp_path, write_png, image, liver, tumour):
    for n in range(3):
        write_png(image.format(n=f"case{n}"))
        write_png(liver.format(n=f"case{n}"), part(1, 4))
        if n:
            write_png(tumour.format(n=f"case{n}"), part(3))
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.scheme.classes, dataset.skipped) == ("pairs", ("liver", "tumour"), ())
    assert [case.truth.structures for case in dataset] == [("liver",), ("liver", "tumour"), ("liver", "tumour")]
    assert values_of(dataset.cases[0]) == {"liver": 20}, "no file of the tumour: unknown, not absent"
    assert values_of(dataset.cases[1]) == {"liver": 20, "tumour": 10}, "they overlap"
    assert any("one without a file is unknown" in told for told in dataset.notes)
    only = open_dataset(tmp_path, target="tumour")
    assert only.scheme.classes == ("tumour",)
    assert reasons(only) == {image.format(n="case0"): "an image without mask"}
    with pytest.raises(DataError, match="no mask outlines 'tumor'. Did you mean 'tumour'"):
        open_dataset(tmp_path, target="liver,tumor")


def test_other_pictures_of_a_case_are_no_masks(tmp_path, write_png):
    for n in range(3):
        write_png(f"case{n}.png")
        write_png(f"case{n}_left.png", np.arange(108, dtype=np.uint8).reshape(9, 12))
    assert not is_pairs(tmp_path)
    with pytest.raises(DataError, match=r"holds no image with its mask: 6 images without mask"):
        open_dataset(tmp_path, layout="pairs")
    named = open_dataset(tmp_path, layout="pairs", mask_column="left")
    assert named.scheme.classes == ("left",)
    with pytest.raises(DataError, match="the mask of 'left' holds 107 values .*, where 0 and one other were expected"):
        named.cases[0].truth.load()
    with pytest.raises(DataError, match="no file's name ends in 'lft'. Did you mean 'left'"):
        open_dataset(tmp_path, layout="pairs", mask_column="left,lft")


def test_regions_share_values_and_a_value_may_be_ignored(tmp_path, write_png):
    pixels = mask(1, 2, 4)
    pixels[8] = 255
    for n in range(2):
        write_png(f"images/{n}.png")
        write_png(f"masks/{n}.png", pixels)
    dataset = open_dataset(tmp_path, target="whole=1+2+4,core=1+4,enhancing=4,ignore=255")
    assert dataset.scheme.classes == ("whole", "core", "enhancing")
    found = dataset.cases[0].truth.load()
    assert {s.name: int(found.mask(s.name).sum()) for s in found.structures} == {
        "whole": 30, "core": 20, "enhancing": 10,
    }  # fmt: skip
    assert int(found.unknown.sum()) == 12
    assert "value 255 means that nothing is known" in dataset.notes
    for target, message in (
        ("ignore=255", "at least one structure beside it"),
        ("a=1,ignore=2+3", "expected one value to ignore"),
        ("a=1,a=2", "names no values of masks"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_dataset(tmp_path, target=target)


def test_masks_may_answer_where_objects_are(tmp_path, write_png):
    for n in range(2):
        write_png(f"images/{n}.png")
        write_png(f"masks/{n}.png", mask(255))
    dataset = open_dataset(tmp_path, kind="objects", target="lesion")
    assert (dataset.scheme.kind, dataset.scheme.classes) == ("objects", ("lesion",))
    assert values_of(dataset.cases[0]) == {"lesion": 10}
    assert "objects are the connected parts of the masks" in dataset.notes


def test_both_eyes_are_of_one_patient(bench_data, tmp_path, write_png):
    dataset = open_dataset(bench_data / "chase")
    assert len(dataset) == 20
    assert dataset.patients == tuple(f"Image_{n:02d}" for n in range(1, 11))
    assert "cases whose names differ in the side only (L and R) count as one patient (guessed)" in dataset.notes
    for name in ("cell", "control", "a1"):
        write_png(f"{name}.png")
        write_png(f"{name}_mask.png", mask(1))
    assert len(open_dataset(tmp_path).patients) == 3


def test_either_observer_of_chase(bench_data):
    first, second = (
        open_dataset(bench_data / "chase", mask_column=word, target="vessel") for word in ("1stHO", "2ndHO")
    )
    assert first.scheme.classes == second.scheme.classes == ("vessel",)
    assert second.cases[0].truth.files[0].name == "Image_01L_2ndHO.png"
    assert first.notes[0] == "masks by the suffix 1stHO"
    masks = [dataset.cases[0].truth.load() for dataset in (first, second)]
    for found in masks:
        assert set(np.unique(found.layers)) == {0, 1}
    one, two = (found.mask("vessel") for found in masks)
    assert 0.7 < 2 * (one & two).sum() / (one.sum() + two.sum()) < 0.9, "two readers agree as published, not entirely"


def test_masks_in_colours(tmp_path, write_png):
    pixels = np.zeros((9, 12, 3), np.uint8)
    pixels[1:3, 2:7], pixels[4:6, 2:7], pixels[8] = (255, 0, 0), (0, 0, 255), (255, 255, 255)
    for n in range(2):
        write_png(f"images/{n}.png")
        write_png(f"masks/{n}.png", pixels)
    assert open_dataset(tmp_path).scheme.classes == ("#0000ff", "#ff0000", "#ffffff")
    dataset = open_dataset(tmp_path, target="artery=#ff0000,vein=#0000FF,background=#ffffff")
    assert values_of(dataset.cases[1]) == {"artery": 10, "vein": 10}
    with pytest.raises(DataError, match="holds the values #ffffff, which no structure has"):
        open_dataset(tmp_path, target="artery=#ff0000,vein=#0000ff").cases[0].truth.load()
