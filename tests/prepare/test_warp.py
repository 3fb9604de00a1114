"""Windows hold what their map says, whichever way they are sampled; boxes and labels go the same way."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from torch.nn import functional

from sagittal.prepare.plan import AugmentPlan
from sagittal.prepare.warp import Warp, draw_warp, sample_images, sample_labels, warp_boxes

ALL = AugmentPlan(flip=(0, 1), rotate_deg=30, scale=0.3, shear=0.1, translate=0.1, elastic=0.05)
RNG = np.random.default_rng(0)


def places_of(warp: Warp, number: int) -> np.ndarray:
    """Source places of a window's voxels, (d, *size), as the docstring of Warp has them."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in warp.size], indexing="ij"), axis=-1)
    places = warp.source(number, grid)
    if warp.displacement is not None:
        mode = "bilinear" if len(warp.size) == 2 else "trilinear"
        bent = functional.interpolate(
            warp.displacement[number][None].double(), size=warp.size, mode=mode, align_corners=False
        )[0]
        places = places + np.moveaxis(bent.numpy(), 0, -1)
    return np.moveaxis(places, -1, 0)


def expected_values(array: np.ndarray, warp: Warp, number: int) -> np.ndarray:
    places = places_of(warp, number)
    return np.stack([map_coordinates(c.astype(np.float64), places, order=1, mode="nearest") for c in array])


def arrays(d: int, kind: str = "float32") -> list[np.ndarray]:
    sizes = [(40, 33), (25, 50)] if d == 2 else [(20, 33, 28), (31, 17, 24)]
    return [(RNG.random((2, *size)) * 100).astype(kind) for size in sizes]


def general(d: int) -> Warp:
    """A map that mixes all axes."""
    matrix = np.eye(d) + RNG.uniform(-0.3, 0.3, (2, d, d))
    return Warp((14, 10, 12)[:d], RNG.uniform(5, 20, (2, d)), matrix)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("kind", ["uint8", "float16", "float32"])
def test_every_way_of_sampling_gives_the_values_at_the_places_of_the_map(d: int, kind: str) -> None:
    sources = arrays(d, kind)
    size = (14, 10, 12)[:d]
    centres = np.array([[12.0, 14.5, 13.5], [3.0, 9.0, 21.0]])[:, :d]
    still = AugmentPlan(flip=(0, 1), permute=True)
    bent = general(d)
    bent = Warp(bent.size, bent.centre, bent.matrix, torch.from_numpy(RNG.normal(0, 1, (2, d, *(4,) * d))).float())
    warps = [
        Warp.straight(size, centres),  # over the edge and off the lattice
        Warp.straight((6,) * d, np.full((2, d), 12.5)),
        draw_warp(still, (8,) * d, centres, np.random.default_rng(1)),
        *[draw_warp(ALL, size, centres, np.random.default_rng(seed)) for seed in range(4)],
        draw_warp(AugmentPlan(scale=0.5), size, centres, np.random.default_rng(5)),
        general(d),
        bent,
    ]
    for number, warp in enumerate(warps):
        made = sample_images(sources, warp)
        assert made.shape == (2, 2, *warp.size)
        for n in range(2):
            np.testing.assert_allclose(
                made[n].numpy(), expected_values(sources[n], warp, n), atol=0.02, err_msg=f"map {number}"
            )


@pytest.mark.parametrize("d", [2, 3])
def test_labels_are_the_nearest_and_unknown_outside(d: int) -> None:
    sources = [(a > 50).astype(np.uint8) * 7 for a in arrays(d)]
    size = (14, 10, 12)[:d]
    centres = np.array([[12.0, 14.5, 13.5], [3.0, 9.0, 21.0]])[:, :d]
    warps = [Warp.straight(size, centres), general(d)]
    warps += [draw_warp(ALL, size, centres, np.random.default_rng(seed)) for seed in range(4)]
    warps += [draw_warp(AugmentPlan(flip=(0,), permute=True), (8,) * d, centres, np.random.default_rng(2))]
    for warp in warps:
        made = sample_labels(sources, warp).numpy()
        for n, source in enumerate(sources):
            places = places_of(warp, n)
            near = np.rint(places).astype(int)
            inside = np.all([(p >= 0) & (p < s) for p, s in zip(near, source.shape[1:], strict=True)], axis=0)
            index = tuple(np.clip(p, 0, s - 1) for p, s in zip(near, source.shape[1:], strict=True))
            expected = np.where(inside, source[(slice(None), *index)], 255)
            clear = np.abs(places - np.floor(places) - 0.5).min(axis=0) > 1e-3  # not on the border of two voxels
            np.testing.assert_array_equal(made[n][:, clear], expected[:, clear])
    assert (sample_labels(sources, Warp.straight(size, np.full((2, d), 500.0))).numpy() == 255).all()


def test_a_window_that_keeps_voxels_is_cut_out_exactly() -> None:
    source = arrays(3)[0]
    straight = sample_images([source], Warp.straight((4, 6, 8), np.array([[6.5, 10.5, 12.5]])))
    np.testing.assert_array_equal(straight[0], source[:, 5:9, 8:14, 9:17])
    flip = draw_warp(AugmentPlan(flip=(0, 1, 2)), (4, 6, 8), np.array([[6.2, 10.1, 12.3]]), np.random.default_rng(3))
    window = sample_images([source], flip)[0].numpy()
    cut = source[:, 5:9, 8:14, 9:17]
    assert any(
        np.array_equal(window, np.flip(cut, [a + 1 for a in range(3) if s[a]])) for s in product((0, 1), repeat=3)
    )


def test_windows_of_thick_slices_are_turned_in_the_patient_and_never_across() -> None:
    plan = AugmentPlan(rotate_deg=45, elastic=0.05)
    warp = draw_warp(plan, (8, 32, 32), np.zeros((40, 3)), np.random.default_rng(0), spacing=(6.0, 1.0, 1.0))
    np.testing.assert_allclose(warp.matrix[:, 0], np.eye(3)[:1].repeat(40, 0), atol=1e-12)
    assert warp.displacement is not None
    assert not warp.displacement[:, 0].any()
    edges = np.array([2.5, 1.0, 1.0])
    turned = draw_warp(plan, (16, 32, 32), np.zeros((40, 3)), np.random.default_rng(0), spacing=tuple(edges))
    in_mm = turned.matrix * edges[:, None] / edges[None, :]
    np.testing.assert_allclose(in_mm @ in_mm.transpose(0, 2, 1), np.eye(3)[None].repeat(40, 0), atol=1e-9)
    assert np.abs(in_mm[:, 0, 1:]).max() > 0.3


def test_strengths_are_the_ends_of_ranges() -> None:
    warp = draw_warp(AugmentPlan(rotate_deg=20, scale=0.25), (9, 9), np.zeros((500, 2)), np.random.default_rng(0))
    factor = np.sqrt(np.linalg.det(warp.matrix))
    angle = np.rad2deg(np.arctan2(warp.matrix[:, 1, 0], warp.matrix[:, 0, 0]))
    assert 1 / 1.25 <= factor.min() < 0.82
    assert 1.22 < factor.max() <= 1.25
    assert 19 < np.abs(angle).max() <= 20
    bent = draw_warp(AugmentPlan(elastic=0.1), (50, 50), np.zeros((300, 2)), np.random.default_rng(0)).displacement
    assert bent is not None
    assert 1.2 < float(bent.std()) < 3.5  # 0.1 * 50 is the greatest, half of it the mean


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3]), st.sampled_from([0.0, 0.008]))
def test_boxes_go_where_their_objects_go(seed: int, d: int, elastic: float) -> None:
    """The box of an ellipsoid, sampled as a label, is the warped box."""
    rng = np.random.default_rng(seed)
    size = (90,) * 2 if d == 2 else (48,) * 3
    half = rng.uniform(5, 9, d)
    middle = np.array(size) / 2 + rng.uniform(-2, 2, d)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij"), axis=-1)
    body = ((((index - middle) / half) ** 2).sum(axis=-1) < 1).astype(np.uint8)[None]
    plan = AugmentPlan(flip=(0,), rotate_deg=40, scale=0.3, elastic=elastic)
    warp = draw_warp(plan, tuple(int(1.4 * n) for n in size), np.array([size]) / 2, rng)
    found = np.argwhere(sample_labels([body], warp)[0, 0].numpy() == 1)
    box = warp_boxes(np.concatenate([middle - half, middle + half, [3, 1]])[None], warp, 0)[0]
    np.testing.assert_allclose(box[:d], found.min(axis=0) - 0.5, atol=1.5 + 100 * elastic)
    np.testing.assert_allclose(box[d : 2 * d], found.max(axis=0) + 0.5, atol=1.5 + 100 * elastic)
    assert box[2 * d :].tolist() == [3, 1]
    assert warp_boxes(np.zeros((0, 2 * d + 2)), warp, 0).shape == (0, 2 * d + 2)
