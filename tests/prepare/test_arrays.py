"""From a study to an array and back."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from sagittal.case import Case, ImageSource
from sagittal.errors import DataError, ScopeError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.prepare.arrays import encode_table, prepare_case, to_input
from sagittal.prepare.plan import ColumnPlan, InputPlan, Plan, PreparePlan
from sagittal.prepare.resample import place, resize

SCHEME = LabelScheme("binary", ("a", "b"))
TILTED = np.array([[0.68, -0.17, 0.4, -90.0], [0.17, 0.67, 0.9, 40.0], [0.0, 0.1, 4.9, 12.0], [0, 0, 0, 1.0]])


def give(image: Image) -> Image:
    return image


def case_of(image: Image) -> Case:
    return Case("case-1", "p", {"image": ImageSource(partial(give, image))})


def plan_of(size: tuple[int, ...], channels: int = 1, **prepare: object) -> Plan:
    return Plan(
        SCHEME,
        input=InputPlan(dimensions=len(size), channels=channels),
        prepare=PreparePlan(size=size, **prepare),  # type: ignore[arg-type]
    )


def test_rows_and_columns_stand_as_on_the_screen() -> None:
    pixels = np.arange(12, dtype=np.float32).reshape(3, 4)  # 3 rows, 4 columns
    image = Image(pixels.T[None, :, :, None], Grid((4, 3, 1)))
    prepared = prepare_case(case_of(image), plan_of((3, 4)))
    np.testing.assert_array_equal(prepared.array[0], pixels)


def test_slices_come_first_in_volumes() -> None:
    values = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    prepared = prepare_case(case_of(Image(values, Grid((4, 5, 6), TILTED))), plan_of((6, 5, 4)))
    np.testing.assert_array_equal(prepared.array[0], values[0].T)


def test_resize_equals_pillow_where_both_shrink() -> None:
    pixels = np.random.default_rng(1).uniform(0, 255, size=(40, 60)).astype(np.float32)
    theirs = np.asarray(Pillow.fromarray(pixels).resize((15, 10), Pillow.Resampling.BILINEAR))
    np.testing.assert_allclose(resize(pixels, (10, 15)), theirs, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30))
def test_resize_keeps_a_constant(old: int, new: int) -> None:
    np.testing.assert_allclose(resize(np.full((2, old), 7.5), (new,)), 7.5, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=2), st.lists(st.integers(1, 9), min_size=2, max_size=2))
def test_place_there_and_back(old: list[int], new: list[int]) -> None:
    array = np.arange(old[0] * old[1], dtype=np.float32).reshape(1, *old) + 1
    placed, start = place(array, new, fill=0)
    assert placed.shape == (1, *new)
    for (r, c), value in np.ndenumerate(placed[0]):
        r_old, c_old = r - start[0], c - start[1]
        inside = 0 <= r_old < old[0] and 0 <= c_old < old[1]
        assert value == (array[0, r_old, c_old] if inside else 0)


@pytest.mark.parametrize("spacing_mm", [None, (5.0, 0.9, 0.9)])
def test_a_map_comes_back_to_its_place_on_a_tilted_anisotropic_grid(spacing_mm: tuple[float, ...] | None) -> None:
    values = np.zeros((1, 30, 24, 10), dtype=np.float32)
    values[0, 18:24, 4:8, 6:8] = 1
    image = Image(values, Grid((30, 24, 10), TILTED))
    plan = plan_of((8, 24, 28), spacing_mm=spacing_mm)
    prepared = prepare_case(case_of(image), plan)
    back = prepared.restore(prepared.array[0])
    assert back.shape == (30, 24, 10)
    centre = np.average(np.indices(back.shape).reshape(3, -1), axis=1, weights=back.ravel())
    np.testing.assert_allclose(centre, [20.5, 5.5, 6.5], atol=0.35)


def test_aspect_is_kept_by_padding() -> None:
    pixels = np.full((1, 40, 20, 1), 9.0, dtype=np.float32)
    pixels[0, 0, 0, 0] = 1
    prepared = prepare_case(case_of(Image(pixels, Grid((40, 20, 1)))), plan_of((16, 16), keep_aspect=True))
    assert prepared.resampled == (8, 16)
    assert prepared.start == (4, 0)
    assert np.all(prepared.array[0, :4] == prepared.array[0, 4:12].min())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_refused(bad: float) -> None:
    values = np.zeros((1, 4, 4, 1), dtype=np.float32)
    values[0, 1:3, 2] = bad
    with pytest.raises(DataError, match="case case-1: 2 of 16 voxels are nan or infinite"):
        prepare_case(case_of(Image(values, Grid((4, 4, 1)))), plan_of((4, 4)))


def test_a_study_without_voxel_size_is_refused_where_the_model_needs_one() -> None:
    image = Image(np.zeros((1, 4, 4, 4), dtype=np.float32), Grid((4, 4, 4)))
    with pytest.raises(ScopeError, match="states no voxel size, and the model needs one"):
        prepare_case(case_of(image), plan_of((4, 4, 4), spacing_mm=(1.0, 1.0, 1.0)))


def test_other_dimensions_and_channels_are_refused() -> None:
    volume = Image(np.zeros((1, 4, 4, 4), dtype=np.float32), Grid((4, 4, 4)))
    with pytest.raises(ScopeError, match="is 3-D with grid .* the model was made for 2-D"):
        prepare_case(case_of(volume), plan_of((4, 4)))
    colour = Image(np.zeros((3, 4, 4, 1), dtype=np.float32), Grid((4, 4, 1)))
    with pytest.raises(ScopeError, match="has 3 channels, the model was made for 1"):
        prepare_case(case_of(colour), plan_of((4, 4)))


def test_a_grey_picture_among_coloured_ones_is_repeated() -> None:
    grey = Image(np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1), Grid((4, 4, 1)))
    array = prepare_case(case_of(grey), plan_of((4, 4), channels=3)).array
    assert array.shape == (3, 4, 4)
    np.testing.assert_array_equal(array[0], array[2])


def test_stored_whole_numbers_are_normalised_as_floats_are() -> None:
    plan = plan_of((4, 4), offset=(100.0,), scale=(50.0,), store="uint8")
    image = Image(np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1) * 10, Grid((4, 4, 1)))
    prepared = prepare_case(case_of(image), plan)
    assert prepared.array.dtype == np.uint8
    batch = to_input(torch.from_numpy(prepared.array[None]), plan.prepare)
    np.testing.assert_allclose(batch[0, 0].numpy(), (image.data[0, :, :, 0].T - 100) / 50, rtol=1e-6)


def test_image_normalisation_ignores_scale_and_offset_of_the_device() -> None:
    values = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
    plan = plan_of((8, 8), normalise="image")
    one = prepare_case(case_of(Image(values, Grid((8, 8, 1)))), plan).array
    other = prepare_case(case_of(Image(values * 40 + 300, Grid((8, 8, 1)))), plan).array
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_inputs_are_left_alone() -> None:
    values = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
    before = values.copy()
    prepare_case(case_of(Image(values, Grid((8, 8, 1)))), replace(plan_of((4, 4), normalise="image", clip=(-1.0, 1.0))))
    np.testing.assert_array_equal(values, before)


def test_missing_table_cells_are_flagged_not_guessed() -> None:
    columns = [
        ColumnPlan("age", "number", mean=60, std=20),
        ColumnPlan("site", "category", categories=("back", "face")),
    ]
    assert encode_table({"age": "80", "site": "face"}, columns).tolist() == [1, 0, 0, 1, 0]
    assert encode_table({"age": float("nan"), "site": "elsewhere"}, columns).tolist() == [0, 1, 0, 0, 1]
