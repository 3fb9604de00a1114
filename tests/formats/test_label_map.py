"""Label maps: values keep their meaning, what is no label map is refused, structures may overlap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from sagittal.errors import DataError, GeometryError, ReadError
from sagittal.formats.label_map import COLOUR, label_values, read_label_map, stack_masks
from sagittal.grid import Grid
from sagittal.read.sources import MASK_WAYS, make_mask_source

VALUES = np.arange(24).reshape(4, 3, 2) % 4  # (I, J, K)
TWO = {"liver": [1], "tumour": [2, 3]}


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".npy"])
def test_a_label_map_of_any_type_and_format(write_nifti, tmp_path, kind, suffix):
    if suffix == ".npy":
        path = tmp_path / "a.npy"
        np.save(path, VALUES[:, :, 0].astype(kind))
    else:
        path = write_nifti(f"a{suffix}", VALUES.astype(kind))
    found = read_label_map([path], structures=TWO)
    assert found.layers.dtype == np.uint8
    if suffix == ".npy":
        assert found.layers.shape == (1, 3, 4, 1)
    else:
        np.testing.assert_array_equal(found.mask("tumour"), VALUES >= 2)
        np.testing.assert_allclose(found.grid.affine, np.diag([-0.7, -0.8, 3, 1]), atol=1e-6)
    assert int(found.mask("liver").sum()) == int((VALUES[:, :, 0] if suffix == ".npy" else VALUES == 1).__eq__(1).sum())


def test_overlapping_regions_share_a_layer(write_nifti):
    path = write_nifti("a.nii", VALUES.astype(np.uint8))
    found = read_label_map([path], structures={"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]})
    assert len(found.layers) == 1
    assert [int(found.mask(name).sum()) for name in ("whole", "core", "enhancing")] == [18, 12, 6]


def test_ignored_and_unasked_values(write_nifti):
    path = write_nifti("a.nii", VALUES.astype(np.uint8))
    found = read_label_map([path], structures={"liver": [1]}, background=[2], ignore=3)
    np.testing.assert_array_equal(found.unknown, VALUES == 3)
    assert sorted(np.unique(found.layers)) == [0, 1, 3]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (VALUES + 0.5, ReadError, r"holds values that are no whole numbers \(0\.5\).*nearest-neighbour"),
        (VALUES - 1.0, ReadError, "holds values from -1 to 2; expected whole numbers from 0"),
        (np.where(VALUES, np.nan, 0.0), ReadError, "holds values that are not finite"),
        (VALUES + 5.0, DataError, r"holds the values 5, 6, 7, 8, which no structure has \(liver = 1, tumour = 2\+3\)"),
        (np.stack([VALUES, VALUES], axis=-1) * 1.0, ReadError, "has 2 channels; expected one whole number"),
    ],
)
def test_what_is_no_label_map_is_refused(write_nifti, values, error, message):
    with pytest.raises(error, match=message):
        read_label_map([write_nifti("a.nii", values.astype(np.float32))], structures=TWO)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "I;16", "LA"])
def test_pictures_of_every_kind_are_one_structure(tmp_path, mode):
    inside = np.zeros((5, 7), bool)
    inside[1:3, 2:6] = True
    path = tmp_path / "m.png"
    if mode == "P":
        picture = Pillow.fromarray(inside.astype(np.uint8), "P")
        picture.putpalette([0, 0, 0, 128, 0, 0])  # dark red, as in VOC's segmentations
    elif mode == "I;16":
        picture = Pillow.fromarray(np.where(inside, 65535, 0).astype(np.uint16))
    else:
        picture = Pillow.fromarray(np.where(inside, 255, 0).astype(np.uint8)).convert(mode)
    picture.save(path)
    found = read_label_map([path], names=["vessel"])
    assert found.layers.shape == (1, 7, 5, 1)
    np.testing.assert_array_equal(found.mask("vessel")[:, :, 0].T, inside)


def test_the_indices_of_a_palette_count_and_not_its_colours(tmp_path):
    indices = np.array([[0, 1, 2], [255, 2, 1]], np.uint8)
    picture = Pillow.fromarray(indices, "P")
    picture.putpalette([9] * 768)  # every colour the same
    picture.save(tmp_path / "m.png")
    found = read_label_map([tmp_path / "m.png"], structures={"a": [1], "b": [2]}, ignore=255)
    np.testing.assert_array_equal(found.layers[0, :, :, 0].T, indices)
    assert label_values(tmp_path / "m.png") == (1, 2, 255)
    assert int(found.unknown.sum()) == 1


def test_colours_are_values(tmp_path):
    colours = np.zeros((4, 5, 3), np.uint8)
    colours[1, 1:3] = (200, 10, 10)
    colours[2, 2] = (0, 0, 255)
    colours[3, 3] = (255, 255, 0)
    Pillow.fromarray(colours).save(tmp_path / "m.png")
    red, blue, yellow = (COLOUR + rgb for rgb in (0xC80A0A, 0x0000FF, 0xFFFF00))
    assert label_values(tmp_path / "m.png") == tuple(sorted((red, blue, yellow)))
    found = read_label_map([tmp_path / "m.png"], structures={"a": [red], "b": [blue, red]}, ignore=yellow)
    assert found.layers.dtype == np.uint8
    np.testing.assert_array_equal(np.argwhere(found.mask("a")), [[1, 1, 0], [2, 1, 0]])
    assert (int(found.mask("b").sum()), np.argwhere(found.unknown).tolist()) == (3, [[3, 3, 0]])
    part = read_label_map([tmp_path / "m.png"], structures={"a": [red]}, background=[blue, yellow])
    assert (int(part.mask("a").sum()), int(part.layers.astype(bool).sum())) == (2, 2)
    with pytest.raises(DataError, match=r"holds the values #0000ff, #ffff00, which no structure has \(a = #c80a0a\)"):
        read_label_map([tmp_path / "m.png"], structures={"a": [red]})
    photograph = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    Pillow.fromarray(photograph).save(tmp_path / "p.png")
    with pytest.raises(
        ReadError, match=r"holds 1,\d\d\d colours, as a photograph does; a mask has one for each structure"
    ):
        label_values(tmp_path / "p.png")


def test_a_blurred_mask_is_refused_with_advice(tmp_path):
    pixels = np.zeros((32, 32), np.uint8)
    pixels[8:20, 9:23] = 255
    Pillow.fromarray(pixels).save(tmp_path / "m.jpg", quality=60)
    with pytest.raises(DataError, match=r"mask of 'a' holds \d+ values .* a JPEG blurs its values and is no mask"):
        read_label_map([tmp_path / "m.jpg"], names=["a"])


def test_one_file_for_each_structure_in_layers_where_they_overlap(write_png):
    masks = {}
    for n, name in enumerate(("heart", "left lung", "right lung")):
        masks[name] = np.zeros((6, 8), np.uint8)
        masks[name][1 + n : 4 + n, 2 * n : 2 * n + 3] = (255, 1, 255)[n]
    files = [write_png(f"{name}.png", mask) for name, mask in masks.items()]
    found = read_label_map(files, names=list(masks))
    assert len(found.layers) == 2
    for name, mask in masks.items():
        np.testing.assert_array_equal(found.mask(name)[:, :, 0].T, mask > 0)


def test_files_of_one_name_are_joined(write_png):
    one, two = np.zeros((2, 4, 4), np.uint8)
    one[0, 0], two[3, 3] = 255, 255
    found = read_label_map([write_png("1.png", one), write_png("2.png", two)], names=["nucleus", "nucleus"])
    assert [s.name for s in found.structures] == ["nucleus"]
    assert int(found.mask("nucleus").sum()) == 2


def test_masks_of_one_image_on_different_grids_are_refused(write_png):
    files = [write_png("1.png", np.zeros((4, 4), np.uint8)), write_png("2.png", np.zeros((4, 5), np.uint8))]
    with pytest.raises(GeometryError, match=r"different grids: 'a' \(4, 4, 1\), 'b' \(5, 4, 1\)"):
        read_label_map(files, names=["a", "b"])


def test_an_empty_mask_is_a_structure_that_was_not_found(write_png):
    found = read_label_map([write_png("1.png", np.zeros((4, 5), np.uint8))], names=["a"])
    assert not found.mask("a").any()
    assert [s.name for s in found.structures] == ["a"]


def test_more_structures_than_a_byte_holds():
    masks = {f"s{n}": np.zeros((300, 1, 1), bool) for n in range(300)}
    for n, mask in enumerate(masks.values()):
        mask[n] = True
    found = stack_masks(masks, Grid((300, 1, 1)), np.arange(300).reshape(300, 1, 1) == 7)
    assert (found.layers.dtype, found.ignore) == (np.uint16, 65535)
    assert not found.mask("s7").any()
    assert found.mask("s299").sum() == 1


def test_errors_of_a_mask_name_the_case(tmp_path):
    assert "label_map" in MASK_WAYS
    source = make_mask_source("017", "label_map", [tmp_path / "SECRET.nii"], {"structures": {"a": [1]}})
    with pytest.raises(ReadError, match="case 017: the file does not exist") as told:
        source.load()
    assert "SECRET" not in str(told.value)


def test_chase_masks_hold_their_pixels(bench_data: Path):
    path = bench_data / "chase" / "Image_01L_1stHO.png"
    found = read_label_map([path], names=["vessel"])
    with Pillow.open(path) as picture:
        expected = np.asarray(picture.convert("L")) > 0
    np.testing.assert_array_equal(found.mask("vessel")[:, :, 0].T, expected)
