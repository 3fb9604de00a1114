"""Grids of one case that should be one."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from sagittal.case import Case, ImageSource
from sagittal.check.check_dataset import check_dataset
from sagittal.check.geometry import corner_distance_mm
from sagittal.dataset import Dataset
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.truth import Segmentation, SegmentationSource, Structure

SCHEME = LabelScheme("structures", ("liver",))
SHAPE = (20, 24, 12)


def tilted(shift=(0.0, 0.0, 0.0), spacing=(0.7, 0.7, 5.0), shape=SHAPE):
    """A grid along no axis of the patient."""
    turn = np.array([[0.8, -0.6, 0.0], [0.36, 0.48, -0.8], [0.48, 0.64, 0.6]])
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = np.array([-100.0, 40.0, 7.0]) + shift
    return Grid(shape, affine)


def volume(grid, seed):
    return Image(np.random.default_rng(seed).normal(size=(1, *grid.shape)).astype(np.float32), grid)


def outline(grid):
    layers = np.zeros((1, *grid.shape), np.uint8)
    layers[0, 4:9, 5:12, 2:5] = 1
    return Segmentation(layers, grid, (Structure("liver", (1,)),))


def case(name, image_grid, mask_grid, second=None):
    images = {"CT": ImageSource(partial(volume, image_grid, hash(name) % 1000))}
    if second is not None:
        images["PET"] = ImageSource(partial(volume, second, hash(name) % 1000 + 1))
    return Case(name, name, images, truth=SegmentationSource(partial(outline, mask_grid), structures=("liver",)))


def found(*cases):
    findings = check_dataset(Dataset("set", cases, SCHEME), pixels="all", near=False)
    return {
        f.code: f
        for f in findings
        if f.code in {"mask-on-another-grid", "mask-slightly-off", "images-on-different-grids"}
    }


def test_equal_grids_are_silent():
    assert found(case("a", tilted(), tilted())) == {}


def test_differences_of_the_last_digits_are_silent():
    """1e-8 of a unit in a header is no difference; neither are the four digits of a hasty converter."""
    assert found(case("a", tilted(), tilted(shift=(1e-8, -1e-8, 0.004)))) == {}


def test_another_shape():
    told = found(case("a", tilted(), tilted(shape=(20, 24, 11))))["mask-on-another-grid"]
    assert told.severity == "error"
    assert "case a: image has 20 x 24 x 12 voxels, mask 20 x 24 x 11, corners up to 5 mm apart" in told.message


def test_another_place():
    told = found(case("a", tilted(), tilted(shift=(3.0, 4.0, 0.0))))["mask-on-another-grid"]
    assert told.details == {"a": "image and mask have the same shape, but corners up to 5 mm apart"}


def test_another_spacing():
    told = found(case("a", tilted(), tilted(spacing=(0.7, 0.7, 2.5))))["mask-on-another-grid"]
    # 11 slices of 5 and of 2.5 mm: 27.5 mm at the far end
    assert "corners up to 27.5 mm apart (spacing 0.7 x 0.7 x 5 and 0.7 x 0.7 x 2.5 mm)" in told.message


def test_less_than_half_a_voxel():
    told = found(case("a", tilted(), tilted(shift=(0.2, 0.0, 0.0))))
    assert set(told) == {"mask-slightly-off"}
    assert told["mask-slightly-off"].severity == "warning"
    assert "corners up to 0.2 mm apart" in told["mask-slightly-off"].message


def test_a_mirrored_mask():
    grid = tilted()
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    told = found(case("a", grid, Grid(SHAPE, np.asarray(grid.affine) @ flip)))
    # the same box of space, its first axis reversed: corners 19 voxels of 0.7 mm away
    assert "corners up to 13.3 mm apart" in told["mask-on-another-grid"].message


@pytest.mark.parametrize(
    ("mask", "codes"),
    [
        (Grid(SHAPE), set()),
        (Grid(SHAPE, spacing=(0.7, 0.7, 5.0)), set()),
        (Grid(SHAPE, spacing=(0.7, 0.7, 2.5)), {"mask-on-another-grid"}),
        (Grid((9, 9, 9)), {"mask-on-another-grid"}),
    ],
)
def test_a_mask_without_position(mask, codes):
    assert set(found(case("a", tilted(), mask))) == codes


def test_the_image_that_the_mask_fits_counts():
    told = found(case("a", tilted(spacing=(2.0, 2.0, 5.0)), tilted(), second=tilted()))
    assert set(told) == {"images-on-different-grids"}
    assert "'CT' and 'PET'" in told["images-on-different-grids"].message


def test_corner_distance_by_hand():
    assert corner_distance_mm(tilted(), tilted(shift=(0, 3, 4))) == pytest.approx(5)
    assert corner_distance_mm(tilted(), tilted()) == 0
