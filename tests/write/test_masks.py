"""Label maps: NIfTI read back by SimpleITK and nibabel, PNG, and the names beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sagittal.case import Case
from sagittal.errors import GeometryError, ScopeError
from sagittal.grid import Grid
from sagittal.prediction import Mask, Prediction
from sagittal.truth import Segmentation, Structure
from sagittal.write.masks import label_map, overlaps, write_mask_nifti, write_mask_png

NAMES = ("liver", "gizmo", "cyst", "spleen")


def test_label_map_on_the_grid_of_the_study(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    import nibabel

    grid = study().image().grid
    prediction = found_mask("s", grid, NAMES, overlapping=False)
    written = write_mask_nifti(prediction, tmp_path, "s")
    assert [path.name for path in written] == ["s.nii.gz", "s.json"]
    image = nibabel.load(written[0])
    stored = np.asarray(image.dataobj)
    assert stored.dtype == np.uint8
    names = json.loads(written[1].read_text())
    truth = prediction.finding.segmentation
    for row in names["structures"]:
        np.testing.assert_array_equal(stored == row["value"], truth.mask(row["name"]))
    assert [row["value"] for row in names["structures"]] == [1, 2, 3, 4]
    assert names["structures"][0]["code"] == ["10200004", "SCT", "Liver"]
    assert names["structures"][0]["expected_dice"] == 0.91
    assert "expected_dice" not in names["structures"][1]
    np.testing.assert_allclose(image.affine, np.diag([-1, -1, 1, 1]) @ grid.affine, atol=1e-4)


def test_simpleitk_finds_the_voxels_in_the_patient(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    sitk = pytest.importorskip("SimpleITK")
    grid = study().image().grid
    prediction = found_mask("s", grid, NAMES, overlapping=False)
    image = sitk.ReadImage(str(write_mask_nifti(prediction, tmp_path, "s")[0]))
    mask = prediction.finding.segmentation.mask("liver")
    for voxel in np.argwhere(mask)[::37]:
        place = grid.affine[:3, :3] @ voxel + grid.affine[:3, 3]  # LPS+, as ITK counts
        index = image.TransformPhysicalPointToIndex([float(v) for v in place])
        assert image[index] == 1


def test_structures_that_overlap_get_a_file_each(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    import nibabel

    prediction = found_mask("s", study().image().grid, NAMES)
    written = write_mask_nifti(prediction, tmp_path, "s")
    assert [p.name for p in written] == [
        "s.1-liver.nii.gz", "s.2-gizmo.nii.gz", "s.3-cyst.nii.gz", "s.4-spleen.nii.gz", "s.json",
    ]  # fmt: skip
    rows = json.loads(written[-1].read_text())["structures"]
    for path, row in zip(written, rows, strict=False):
        assert (row["file"], row["value"]) == (path.name, 1)
        stored = np.asarray(nibabel.load(path).dataobj)
        np.testing.assert_array_equal(stored == 1, prediction.finding.segmentation.mask(row["name"]))


def test_doubt_and_probability_are_shares(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    import nibabel

    prediction = found_mask("s", study().image().grid, NAMES, overlapping=False, probability=True)
    mask = prediction.finding
    doubt = np.full(mask.grid.shape, 51, dtype=np.uint8)
    prediction = replace(prediction, finding=replace(mask, doubt=doubt))
    names = [p.name for p in write_mask_nifti(prediction, tmp_path, "s")]
    assert names == ["s.nii.gz", "s.doubt.nii.gz", "s.probability.nii.gz", "s.json"]
    np.testing.assert_allclose(np.asarray(nibabel.load(tmp_path / "s.doubt.nii.gz").dataobj), 0.2)
    stored = np.asarray(nibabel.load(tmp_path / "s.probability.nii.gz").dataobj)
    np.testing.assert_allclose(stored[..., 0], mask.probability["liver"] / 255, atol=1e-6)


def test_more_structures_than_a_byte_holds() -> None:
    grid = Grid((300, 2, 1))
    layers = np.arange(600, dtype=np.uint16).reshape(1, 300, 2, 1)
    structures = tuple(Structure(f"n{n}", (n,)) for n in range(1, 301))
    labels = label_map(Mask(Segmentation(layers, grid, structures)))
    assert labels.dtype == np.int16
    np.testing.assert_array_equal(labels, np.where(layers[0] <= 300, layers[0], 0))


def test_regions_of_several_labels_overlap_in_one_layer() -> None:
    grid = Grid((3, 1, 1))
    layers = np.array([1, 2, 0], dtype=np.uint8).reshape(1, 3, 1, 1)
    whole, core = Structure("whole", (1, 2)), Structure("core", (2,))
    assert overlaps(Mask(Segmentation(layers, grid, (whole, core))))
    assert not overlaps(Mask(Segmentation(layers, grid, (Structure("edge", (1,)), core))))
    assert label_map(Mask(Segmentation(layers, grid, (whole, core)))).reshape(-1).tolist() == [1, 2, 0]


def test_picture_as_png(found_mask: Callable[..., Prediction], tmp_path: Path) -> None:
    from PIL import Image

    prediction = found_mask("s", Grid((25, 14, 1)), NAMES, overlapping=False)
    written = write_mask_png(prediction, tmp_path, "s")
    assert [p.name for p in written] == ["s.mask.png", "s.mask.json"]
    pixels = np.asarray(Image.open(written[0]))
    assert pixels.shape == (14, 25)
    np.testing.assert_array_equal(pixels.T == 1, prediction.finding.segmentation.mask("liver")[..., 0])
    both = write_mask_png(found_mask("s", Grid((25, 14, 1)), NAMES), tmp_path / "b", "s")
    assert json.loads(both[-1].read_text())["structures"][0]["value"] == 255
    assert set(np.unique(np.asarray(Image.open(both[0])))) == {0, 255}


def test_a_study_without_position_is_no_nifti(found_mask: Callable[..., Prediction], tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="no position in the patient, which NIfTI must state"):
        write_mask_nifti(found_mask("s", Grid((9, 8, 7)), NAMES, overlapping=False), tmp_path, "s")
    assert list(tmp_path.iterdir()) == []


def test_a_volume_is_no_png(study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path) -> None:
    with pytest.raises(ScopeError, match=r"a volume is no picture.*--format nifti"):
        write_mask_png(found_mask("s", study().image().grid, NAMES), tmp_path, "s")
