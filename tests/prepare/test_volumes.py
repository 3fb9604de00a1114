"""A study becomes an array of its own size; what lies where in it stays known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from sagittal.case import Case, ImageSource
from sagittal.errors import DataError, GeometryError, ScopeError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.prepare.align import bring, same_lattice
from sagittal.prepare.plan import InputPlan, Plan, PreparePlan
from sagittal.prepare.volumes import prepare_volume

SCHEME = LabelScheme("structures", ("organ",))
#: A tilted, anisotropic grid.
TURN = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])


def place(spacing: tuple[float, float, float], origin: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = TURN @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def ramp(shape: tuple[int, int, int], affine: np.ndarray, noise: float = 0.0) -> Image:
    """A value that rises linearly through the patient: 2 x + 3 y - z."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    mm = index @ affine[:3, :3].T + affine[:3, 3]
    values = mm @ [2.0, 3.0, -1.0] + noise * np.random.default_rng(0).normal(size=shape)
    return Image(values[None].astype(np.float32), Grid(shape, affine), modality="CT", unit="HU")


def make_case(*images: Image, names: tuple[str, ...] = ("image", "other")) -> Case:
    sources = {
        name: ImageSource(partial(lambda image: image, image)) for name, image in zip(names, images, strict=False)
    }
    return Case("c1", "p1", sources)


def plan(dimensions: int = 3, channels: int = 1, images: tuple[str, ...] = ("image",), **prepare: object) -> Plan:
    size = (8,) * dimensions
    return Plan(
        SCHEME,
        task="segment",
        input=InputPlan(images=images, dimensions=dimensions, channels=channels),
        prepare=replace(PreparePlan(size=size, whole=False), **prepare),  # type: ignore[arg-type]
    )


def in_mm(prepared: object, point: tuple[float, ...]) -> np.ndarray:
    lattice = prepared.lattice  # type: ignore[attr-defined]
    ijk = lattice.to_study(np.array(point, dtype=float))
    return ijk @ lattice.grid.affine[:3, :3].T + lattice.grid.affine[:3, 3]


def test_resampled_values_are_those_of_the_place_in_the_patient() -> None:
    case = make_case(ramp((24, 20, 12), place((0.7, 0.9, 3.0), (-30, 40, 7))))
    prepared = prepare_volume(case, plan(spacing_mm=(2.0, 1.4, 1.4)))
    assert prepared.array.shape == (1, 18, 13, 12)
    assert prepared.lattice.size == (18, 13, 12)
    for point in [(5, 6, 7), (9, 3, 4), (12, 9, 9)]:  # off the edges, where values cannot rise any further
        assert prepared.array[(0, *point)] == pytest.approx(in_mm(prepared, point) @ [2, 3, -1], abs=0.05)


def test_a_volume_taken_as_it_is_keeps_every_value() -> None:
    image = ramp((9, 8, 7), place((1, 1, 1)))
    prepared = prepare_volume(make_case(image), plan())
    np.testing.assert_array_equal(prepared.array[0], image.data[0].transpose(2, 1, 0))


@pytest.mark.parametrize("kind", ["image", "nonzero"])
def test_normalised_by_the_voxels_that_count(kind: str) -> None:
    values = np.random.default_rng(0).normal(500, 40, (2, 20, 18, 10)).astype(np.float32)
    values[:, :9] = 0
    image = Image(values, Grid((20, 18, 10), spacing=(1.0, 1.0, 1.0)))
    made = prepare_volume(make_case(image), plan(channels=2, normalise=kind, clip=(0, 550))).array
    for channel in range(2):
        expected = np.clip(values[channel], 0, 550).transpose(2, 1, 0)
        counted = expected[expected > 0] if kind == "nonzero" else expected
        np.testing.assert_allclose(made[channel], (expected - counted.mean()) / counted.std(), rtol=2e-4, atol=2e-4)


def test_a_border_of_air_is_cut_off_only_where_the_plan_says_so() -> None:
    values = np.full((1, 20, 18, 10), -1000, np.float32)
    values[:, 4:15, 3:9, 2:7] = 50
    values[:, 0, 0, 0] = -1024  # noise below the window is air as well
    image = Image(values, Grid((20, 18, 10), place((1, 1, 2))), unit="HU")
    cut = prepare_volume(make_case(image), plan(crop=True, clip=(-1000, 1000), store="float16"))
    assert (cut.lattice.start, cut.lattice.extent) == ((2, 3, 4), (5, 6, 11))
    assert cut.array.dtype == np.float16
    assert (cut.array == 50).all()
    assert prepare_volume(make_case(image), plan()).array.shape == (1, 10, 18, 20)
    empty = Image(np.zeros((1, 4, 4, 4), np.float32), Grid((4, 4, 4)))
    assert prepare_volume(make_case(empty), plan(crop=True)).array.shape == (1, 4, 4, 4)


def test_a_picture_is_an_ordinary_case_and_is_never_distorted() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 40, 30, 1)).astype(np.float32)
    image = Image(pixels, Grid((40, 30, 1)))
    prepared = prepare_volume(make_case(image), plan(2, 3, zoom=(0.5, 0.5), store="uint8"))
    assert prepared.array.shape == (3, 15, 20)
    assert prepared.array.dtype == np.uint8
    assert np.allclose(prepared.lattice.factor, 2)
    grey = Image(pixels[:1], Grid((40, 30, 1)))
    array = prepare_volume(make_case(grey), plan(2, 3)).array
    np.testing.assert_array_equal(array[0], array[2])


def test_images_on_other_grids_come_to_the_first_by_position() -> None:
    first = ramp((20, 18, 10), place((1.0, 1.0, 2.5), (5, 5, 5)))
    fine = ramp((50, 44, 30), place((0.5, 0.5, 1.0), (3, 3, 3)))
    prepared = prepare_volume(make_case(first, fine), plan(channels=2, images=("image", "other")))
    inner = (slice(2, 8), slice(4, 14), slice(4, 14))
    np.testing.assert_allclose(prepared.array[1][inner], prepared.array[0][inner], atol=0.3)
    tilted = np.eye(4)
    tilted[:3, :3] = np.array([[1.0, 0.0, 0.0], [0.0, 0.9, -0.43589], [0.0, 0.43589, 0.9]]) @ np.diag([1.5, 1.5, 1.5])
    tilted[:3, 3] = (-10, -20, -40)
    turned = bring(ramp((40, 60, 70), tilted).data, Grid((40, 60, 70), tilted), first.grid)
    np.testing.assert_allclose(turned, first.data, atol=0.4)  # a tenth of a millimetre


def test_a_coarser_grid_averages_what_it_cannot_hold() -> None:
    source, target = Grid((64, 8, 8), np.diag([0.25, 1, 1, 1])), Grid((8, 8, 8), np.diag([2.0, 1, 1, 1]))
    stripes = np.zeros((1, 64, 8, 8), np.float32)
    stripes[:, ::2] = 1
    brought = bring(stripes, source, target)
    np.testing.assert_allclose(brought[:, 1:], 0.5, atol=0.05)


def test_images_that_cannot_be_brought_together_name_both_grids() -> None:
    first = ramp((20, 18, 10), place((1.0, 1.0, 2.5)))
    both = plan(channels=2, images=("image", "other"))
    nowhere = Image(np.zeros((1, 7, 8, 9), np.float32), Grid((7, 8, 9)))
    with pytest.raises(
        GeometryError, match=r"c1: .*'other' has 7 x 8 x 9 voxels of unknown.*20 x 18 x 10 voxels of 1 x"
    ):
        prepare_volume(make_case(first, nowhere), both)
    far = ramp((20, 18, 11), place((1.0, 1.0, 2.5), (500, 0, 0)))
    with pytest.raises(GeometryError, match="do not overlap in the patient"):
        prepare_volume(make_case(first, far), both)
    assert same_lattice(Grid((5, 5, 5)), Grid((5, 5, 5), np.eye(4)))
    assert not same_lattice(Grid((5, 5, 5), np.eye(4)), Grid((5, 5, 5), np.diag([-1.0, 1, 1, 1])))


def test_wrong_studies_say_what_is_wrong() -> None:
    volume = ramp((6, 6, 6), place((1, 1, 1)))
    with pytest.raises(ScopeError, match="is 3-D .* made for 2-D"):
        prepare_volume(make_case(volume), plan(2))
    with pytest.raises(ScopeError, match="has 1 channels, the model was made for 2"):
        prepare_volume(make_case(volume), plan(3, 2))
    with pytest.raises(ScopeError, match="states no voxel size"):
        prepare_volume(make_case(Image(volume.data, Grid((6, 6, 6)))), plan(spacing_mm=(1.0, 1.0, 1.0)))
    holes = volume.data.copy()
    holes[0, 1, 2, 3] = np.nan
    with pytest.raises(DataError, match="1 of 216 voxels are nan"):
        prepare_volume(make_case(Image(holes, volume.grid)), plan())
