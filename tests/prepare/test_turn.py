"""Volumes are seen the same way round whatever order a file keeps them in, and results lie where the file has them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from sagittal.case import Case, ImageSource
from sagittal.errors import ScopeError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.prediction import Detections, Mask
from sagittal.prepare.arrays import prepare_case
from sagittal.prepare.lattice import Lattice
from sagittal.prepare.plan import InputPlan, Plan, PreparePlan
from sagittal.prepare.truth_maps import box_target, label_target
from sagittal.prepare.turn import file_grid, find_turn, inverse, turn_array, turn_back, turn_grid, turn_image
from sagittal.prepare.volumes import prepare_volume
from sagittal.truth import Boxes, Segmentation, SegmentationSource, Structure

SHAPE = (12, 10, 8)
TILT = np.array([[0.98, 0.1, 0.05, -20], [-0.1, 1.9, 0.2, 30], [-0.04, -0.15, 3.0, 5], [0, 0, 0, 1]])
TURNS = [
    tuple(zip(axes, signs, strict=True))
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def image() -> Image:
    rng = np.random.default_rng(0)
    return Image(rng.normal(size=(1, *SHAPE)).astype(np.float32), Grid(SHAPE, TILT), modality="MR")


def stored(turn: tuple[tuple[int, int], ...]) -> Image:
    """The same volume as another file may keep it."""
    there = image()
    grid = turn_grid(there.grid, turn)
    return replace(there, data=turn_array(there.data, turn), grid=Grid(grid.shape, grid.affine))


@pytest.mark.parametrize("turn", TURNS)
def test_every_order_of_a_file_gives_the_same_array(turn: tuple[tuple[int, int], ...]) -> None:
    turned = turn_image(stored(turn))
    assert np.array_equal(turned.data, image().data)
    assert turned.grid.same_place(image().grid)


@pytest.mark.parametrize("turn", TURNS)
def test_a_turn_keeps_every_voxel_where_it_is_in_the_patient(turn: tuple[tuple[int, int], ...]) -> None:
    grid = turn_grid(Grid(SHAPE, TILT), turn)
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) @ TILT[:3, :3].T + TILT[:3, 3]
    moved = np.moveaxis(turn_array(np.moveaxis(places, -1, 0), turn), 0, -1)
    here = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    assert grid.affine is not None
    assert np.allclose(here @ grid.affine[:3, :3].T + grid.affine[:3, 3], moved)
    assert inverse(inverse(turn)) == turn
    assert file_grid(grid).same_place(Grid(SHAPE, TILT))


def structure_case(turn: tuple[tuple[int, int], ...], *, placed: bool = True) -> Case:
    """A case whose label map lies on the file's own grid, with or without a position of its own."""
    there = stored(turn)
    layers = (there.data > 0.5).astype(np.uint8)
    grid = there.grid if placed else Grid(there.grid.shape)
    truth = SegmentationSource(partial(Segmentation, layers, grid, (Structure("one", (1,)),)), structures=("one",))
    return Case("c", "p", {"image": ImageSource(partial(stored, turn))}, truth=truth)


PLAN = Plan(
    LabelScheme("structures", ("one",)),
    task="segment",
    input=InputPlan(modality="MR", dimensions=3),
    prepare=PreparePlan(size=(8, 8, 8), spacing_mm=(3.0, 2.0, 1.0), whole=False, orient=True, store="float32"),
)


@pytest.mark.parametrize("turn", TURNS[::5])
@pytest.mark.parametrize("placed", [True, False])
def test_image_and_labels_turn_together(turn: tuple[tuple[int, int], ...], placed: bool) -> None:
    case, plain = structure_case(turn, placed=placed), structure_case(TURNS[0])
    volume, expected = prepare_volume(case, PLAN), prepare_volume(plain, PLAN)
    assert np.allclose(volume.array, expected.array, atol=1e-5)
    labels = label_target(case, PLAN.scheme, "exclusive", volume.lattice)
    assert np.array_equal(labels, label_target(plain, PLAN.scheme, "exclusive", expected.lattice))


@pytest.mark.parametrize("turn", TURNS[::5])
def test_boxes_turn_with_the_image_and_back(turn: tuple[tuple[int, int], ...]) -> None:
    there = stored(turn)
    low = np.array([1.0, 2.0, 3.0])
    boxes = Boxes([[low - 0.5, low + np.array([2.5, 1.5, 3.5])]], [0])
    scheme = LabelScheme("objects", ("one",))
    case = Case("c", "p", {"image": ImageSource(partial(stored, turn))}, truth=boxes)
    lattice = Lattice.of(turn_image(there).grid, 3)
    (row,) = box_target(case, scheme, lattice)
    corners = np.sort(lattice.to_study(row[:6].reshape(2, 3)), axis=0)
    found = Detections(Boxes(corners[None], [0]), np.array([0.9]), lattice.grid, np.array([True]))
    back = turn_back(found)
    assert isinstance(back, Detections)
    assert np.allclose(back.boxes.corners, boxes.corners)
    assert back.grid.same_place(there.grid)
    assert back.grid.turned is None


@pytest.mark.parametrize("turn", TURNS[::5])
def test_masks_come_back_onto_the_file(turn: tuple[tuple[int, int], ...]) -> None:
    there = stored(turn)
    turned = turn_image(there)
    layers = (turned.data > 0.5).astype(np.uint8)
    values = (turned.data[0] > 0).astype(np.uint8)
    mask = Mask(Segmentation(layers, turned.grid, (Structure("one", (1,)),)), {"one": values}, values)
    back = turn_back(mask)
    assert isinstance(back, Mask)
    assert np.array_equal(back.segmentation.layers, there.data > 0.5)
    assert np.array_equal(back.probability["one"], there.data[0] > 0)
    assert back.doubt is not None
    assert np.array_equal(back.doubt, there.data[0] > 0)
    assert back.grid.same_place(there.grid)


def test_a_lattice_of_a_turned_grid_survives_json() -> None:
    turn = TURNS[13]
    lattice = Lattice.of(turn_image(stored(turn)).grid, 3)
    again = Lattice.from_json(lattice.to_json())
    assert again.grid.turned == lattice.grid.turned
    assert file_grid(again.grid).same_place(stored(turn).grid)


def test_a_volume_without_a_position_is_refused_where_the_model_needs_one() -> None:
    case = Case("c", "p", {"image": ImageSource(partial(Image, np.zeros((1, *SHAPE), np.float32), Grid(SHAPE, spacing=(1, 1, 1)), modality="MR"))})  # fmt: skip
    with pytest.raises(ScopeError, match="case c: the file does not say how the patient lies in it"):
        prepare_volume(case, PLAN)


def test_pictures_stay_as_they_are() -> None:
    assert find_turn(Grid((20, 30, 1))) is None


WHOLE = Plan(
    LabelScheme("binary", ("no", "yes")),
    input=InputPlan(modality="MR", dimensions=3),
    prepare=PreparePlan(size=(8, 10, 12), orient=True, store="float32"),
)


@pytest.mark.parametrize("turn", TURNS[::5])
def test_a_classifier_sees_every_order_alike_and_its_maps_come_back(turn: tuple[tuple[int, int], ...]) -> None:
    case = Case("c", "p", {"image": ImageSource(partial(stored, turn))})
    prepared = prepare_case(case, WHOLE)
    assert np.array_equal(prepared.array, image().data.transpose(0, 3, 2, 1))
    assert np.allclose(prepared.restore(prepared.array[0]), stored(turn).data[0], atol=1e-5)
