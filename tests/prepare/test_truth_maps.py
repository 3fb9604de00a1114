"""The truth of a case on its array, and what is said where it is wrong."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from sagittal.case import Case, ImageSource, Truth
from sagittal.errors import DataError, GeometryError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.prepare.lattice import Lattice
from sagittal.prepare.truth_maps import box_target, label_target, structure_masks
from sagittal.truth import Boxes, Segmentation, SegmentationSource, Structure

SCHEME = LabelScheme("structures", ("liver", "tumour"))
GRID = Grid((20, 16, 12), np.diag([1.0, 1.0, 2.0, 1.0]))


def source(segmentation: Segmentation) -> SegmentationSource:
    return SegmentationSource(partial(lambda s: s, segmentation))


def case_with(truth: Truth | None, **others: Grid) -> Case:
    images = {
        name: ImageSource(partial(lambda g: Image(np.zeros((1, *g.shape), np.float32), g), grid))
        for name, grid in ({"image": GRID} | others).items()
    }
    return Case("c1", "p1", images, truth=truth)


def blocks(grid: Grid = GRID, named: tuple[str, ...] = SCHEME.classes, ignore: int | None = None) -> Segmentation:
    """A liver of 8 x 8 x 6 voxels with a tumour in its corner, as parts of the grid's own size."""
    layer = np.zeros((1, *grid.shape), np.uint8)
    i, j, k = (n // 4 for n in grid.shape)
    layer[0, i : 3 * i, j : 3 * j, k : 3 * k] = 1
    layer[0, i : 2 * i, j : 2 * j, k : 2 * k] = 2
    if ignore is not None:
        layer[0, :, :, -2:] = ignore
    return Segmentation(
        layer, grid, tuple(Structure(n, (SCHEME.classes.index(n) + 1,)) for n in named if n in SCHEME.classes), ignore
    )


def test_labels_on_the_study_itself_are_unchanged() -> None:
    truth = blocks()
    target = label_target(case_with(source(truth)), SCHEME, "exclusive", Lattice.of(GRID, 3))
    np.testing.assert_array_equal(target[0], truth.layers[0].transpose(2, 1, 0))
    apart = label_target(case_with(source(truth)), SCHEME, "independent", Lattice.of(GRID, 3))
    np.testing.assert_array_equal(apart[1], truth.layers[0].transpose(2, 1, 0) == 2)


def test_resampled_labels_keep_their_volume_and_place() -> None:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in (40, 40, 20)], indexing="ij"), axis=-1)
    ball = np.linalg.norm((index - [20.3, 18.8, 9.5]) * [1, 1, 2], axis=-1) < 13
    grid = Grid((40, 40, 20), np.diag([1.0, 1.0, 2.0, 1.0]))
    layer = ball.astype(np.uint8)
    layer[:20][ball[:20]] = 2
    truth = Segmentation(layer[None], grid, (Structure("liver", (1,)), Structure("tumour", (2,))))
    lattice = Lattice(grid, (36, 30, 64), (1, 2, 3), (18, 36, 35))
    target = label_target(case_with(source(truth)), SCHEME, "exclusive", lattice)[0]
    assert target.shape == lattice.size
    for value in (1, 2):
        here = np.argwhere(target == value)
        volume = len(here) * np.prod(lattice.spacing_mm)
        assert volume == pytest.approx(2 * np.count_nonzero(layer == value), rel=0.03)
        centre = lattice.to_study(here.mean(axis=0))
        np.testing.assert_allclose(centre, np.argwhere(layer == value).mean(axis=0), atol=0.15)
    # Enlarged edges are smooth: a ball keeps its surface, where nearest-neighbour labels are stairs.
    assert np.count_nonzero(np.diff((target > 0).astype(np.int8), axis=0)) < 2 * (target > 0).any(axis=0).sum() + 4


def test_a_thin_structure_does_not_vanish_by_chance() -> None:
    layer = np.zeros((1, 32, 32, 1), np.uint8)
    layer[0, :, 13:16] = 1
    grid = Grid((32, 32, 1))
    truth = Segmentation(layer, grid, (Structure("liver", (1,)), Structure("tumour", ())))
    case = Case("c", "p", {}, truth=source(truth))
    target = label_target(case, SCHEME, "exclusive", Lattice(grid, (16, 16), (0, 0), (32, 32)))[0]
    assert (np.count_nonzero(target, axis=0) >= 1).all()


def test_unknown_is_neither_background_nor_structure() -> None:
    truth = blocks(named=("liver",), ignore=7)
    layers = np.where(truth.layers == 2, 1, truth.layers).astype(np.uint8)
    truth = Segmentation(layers, GRID, truth.structures, 7)
    case = case_with(source(truth))
    lattice = Lattice.of(GRID, 3)
    together = label_target(case, SCHEME, "exclusive", lattice)[0]
    assert set(np.unique(together)) == {1, 255}  # background might be tumour
    apart = label_target(case, SCHEME, "independent", lattice)
    assert set(np.unique(apart[0])) == {0, 1, 255}
    assert (apart[0, -2:] == 255).all()
    assert (apart[1] == 255).all()
    masks, unknown = structure_masks(case, SCHEME, GRID)
    assert not masks[1].any()
    assert unknown[1].all()
    np.testing.assert_array_equal(unknown[0], layers[0] == 7)


def test_overlapping_structures_are_kept_apart() -> None:
    whole, core = np.zeros((2, *GRID.shape), np.uint8)
    whole[4:16, 4:12, 2:10] = 1
    core[8:12, 6:10, 4:8] = 1
    truth = Segmentation(np.stack([whole, core]), GRID, (Structure("liver", (1,)), Structure("tumour", (1,), layer=1)))
    apart = label_target(case_with(source(truth)), SCHEME, "independent", Lattice.of(GRID, 3))
    assert apart[0][apart[1] == 1].all()
    assert apart.sum() == whole.sum() + core.sum()


def test_labels_of_the_same_region_come_over_by_position() -> None:
    fine = Grid((40, 32, 12), np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 2.0, 0], [0, 0, 0, 1.0]]))
    masks, unknown = structure_masks(case_with(source(blocks(fine))), SCHEME, GRID)
    expected, _ = structure_masks(case_with(source(blocks())), SCHEME, GRID)
    np.testing.assert_array_equal(masks, expected)
    assert not unknown.any()
    mirrored = np.diag([-1.0, 1.0, 2.0, 1.0])
    mirrored[0, 3] = 19
    flipped = Segmentation(blocks().layers[:, ::-1], Grid(GRID.shape, mirrored), blocks().structures)
    np.testing.assert_array_equal(structure_masks(case_with(source(flipped)), SCHEME, GRID)[0], expected)


def test_a_part_of_the_lattice_is_placed() -> None:
    whole = blocks()
    offset = np.array(GRID.affine)
    offset[:3, 3] = (4, 3, 4)
    part = Segmentation(whole.layers[:, 4:17, 3:13, 2:10], Grid((13, 10, 8), offset), whole.structures)
    expected, _ = structure_masks(case_with(source(whole)), SCHEME, GRID)
    np.testing.assert_array_equal(structure_masks(case_with(source(part)), SCHEME, GRID)[0], expected)


def test_what_another_image_of_the_case_does_not_show_is_unknown() -> None:
    affine = np.diag([1.3, 1.3, 2.0, 1.0])
    affine[0, 3] = 7.9
    other = Grid((7, 14, 12), affine)
    _, unknown = structure_masks(case_with(source(blocks(other)), second=other), SCHEME, GRID)
    assert unknown[:, :7].all()
    assert not unknown[:, 9:15, 2:14].any()


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (
            Grid((20, 16, 12), np.diag([1.0, 1.0, 3.0, 1.0])),
            r"20 x 16 x 12 voxels of 1 x 1 x 3 mm.*of 1 x 1 x 2 mm.*copy",
        ),
        (Grid((10, 16, 12), np.diag([1.0, 1.0, 2.0, 1.0]) + np.eye(4, k=3) * 99), "different grids.*resample the mask"),
        (Grid((10, 16, 12)), "without both positions they cannot be brought"),
        (Grid((20, 16, 1), np.eye(4)), "the segmentation is a single plane, but the image is a volume"),
    ],
)
def test_contradicting_grids_are_refused_with_both_and_what_to_do(grid: Grid, words: str) -> None:
    with pytest.raises(GeometryError, match=f"case c1: .*{words}"):
        structure_masks(case_with(source(blocks(grid))), SCHEME, GRID)


def test_values_of_no_structure_are_refused_with_their_number() -> None:
    wrong = blocks()
    layers = wrong.layers.copy()
    layers[0, 0, 0, :3] = 9
    with pytest.raises(
        DataError, match=r"c1: .*values 9 \(3 voxels\), which no structure has; expected 0 .*liver, tumour"
    ):
        structure_masks(case_with(source(Segmentation(layers, GRID, wrong.structures))), SCHEME, GRID)


def test_an_empty_mask_is_an_answer_and_no_mask_is_none() -> None:
    empty = Segmentation(np.zeros((1, *GRID.shape), np.uint8), GRID, blocks().structures)
    assert not label_target(case_with(source(empty)), SCHEME, "exclusive", Lattice.of(GRID, 3)).any()
    with pytest.raises(DataError, match="has no truth where a segmentation was expected"):
        structure_masks(case_with(None), SCHEME, GRID)


def test_boxes_lie_on_the_array_and_wrong_ones_are_left_out() -> None:
    corners = [
        [[3.5, 5.5, 1.5], [7.5, 9.5, 3.5]],
        [[-4, -4, -4], [1.5, 1.5, 1.5]],  # over the edge
        [[5, 5, 5], [5, 8, 8]],  # flat
        [[50, 50, 50], [60, 60, 60]],  # outside
    ]
    scheme = LabelScheme("objects", ("nodule", "node"))
    boxes = Boxes(corners, [0, 1, 0, 1], [False, True, False, False])
    lattice = Lattice(GRID, (6, 16, 40), (0, 0, 0), (12, 16, 20))
    target = box_target(case_with(boxes), scheme, lattice)
    np.testing.assert_allclose(
        target, [[0.5, 5.5, 7.5, 1.5, 9.5, 15.5, 0, 0], [-0.5, -0.5, -0.5, 0.5, 1.5, 3.5, 1, 1]], atol=1e-6
    )
    assert box_target(case_with(Boxes(np.zeros((0, 2, 3)), [])), scheme, lattice).shape == (0, 8)
    with pytest.raises(DataError, match="boxes of class 5; the scheme has 2"):
        box_target(case_with(Boxes(corners[:1], [5])), scheme, lattice)


def test_boxes_of_a_picture_have_four_corners() -> None:
    grid = Grid((20, 10, 1))
    case = Case("c", "p", {}, truth=Boxes([[[3.5, 1.5, -0.5], [9.5, 4.5, 0.5]]], [0]))
    target = box_target(case, LabelScheme("objects", ("cell",)), Lattice(grid, (5, 10), (0, 0), (10, 20)))
    np.testing.assert_allclose(target, [[0.5, 1.5, 2.0, 4.5, 0, 0]], atol=1e-6)


def test_each_component_of_a_mask_is_an_object() -> None:
    layer = np.zeros((1, *GRID.shape), np.uint8)
    layer[0, 2:4, 2:5, 1:2] = 1
    layer[0, 10:15, 8:10, 6:9] = 1
    layer[0, 17, 1, 1] = 2
    truth = Segmentation(layer, GRID, (Structure("liver", (1,)), Structure("tumour", (2,))))
    target = box_target(case_with(source(truth)), LabelScheme("objects", SCHEME.classes), Lattice.of(GRID, 3))
    np.testing.assert_allclose(
        target,
        [
            [0.5, 1.5, 1.5, 1.5, 4.5, 3.5, 0, 0],
            [5.5, 7.5, 9.5, 8.5, 9.5, 14.5, 0, 0],
            [0.5, 0.5, 16.5, 1.5, 1.5, 17.5, 1, 0],
        ],
    )
