"""Surface distances: values from geometry, from surface-distance and from MONAI; laws; degenerate masks."""

from __future__ import annotations

import importlib
import itertools
import math
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from sagittal.errors import ConfigError, GeometryError, MaskError
from sagittal.metrics import surface
from sagittal.metrics.surface import asd, assd, boundary_iou, hd, hd95, surface_dice, surface_distances
from sagittal.metrics.surfels import contour_lengths, surfel_areas

MEASURES = {
    "hd": hd,
    "hd95": hd95,
    "asd": asd,
    "assd": assd,
    "surface_dice": lambda p, t, s, **k: surface_dice(p, t, s, 1.0, **k),
}


def box(shape: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def random_pair(rng: np.random.Generator, ndim: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two related ragged masks, some at the border of the image, and an anisotropic spacing."""
    shape = rng.integers(2, 15, ndim)
    common = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0, 1.5))
    masks = []
    for _ in range(2):
        own = common + rng.uniform(0, 0.6) * ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0, 1.5))
        mask = own > np.quantile(own, rng.uniform(0.2, 0.95))
        mask[tuple(rng.integers(shape))] = True
        masks.append(mask)
    return masks[0], masks[1], rng.uniform(0.3, 4, ndim)


def peer(name: str) -> ModuleType:
    pytest.importorskip(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


# -- geometry


def test_plane_through_a_tilted_block_has_the_area_of_geometry() -> None:
    areas = surfel_areas(np.array([0.7, 0.9, 5.0]))
    assert areas[0b00001111] == pytest.approx(0.9 * 5.0)  # across i
    assert areas[0b00110011] == pytest.approx(0.7 * 5.0)  # across j
    assert areas[0b01010101] == pytest.approx(0.7 * 0.9)  # across k
    # The edge of a solid: the plane through the middles of four edges.
    assert areas[0b00000011] == pytest.approx(math.hypot(0.7 / 2, 0.9 / 2) * 5.0)
    # One corner: the triangle between the middles of its edges, by Heron.
    a, b, c = (math.hypot(x, y) / 2 for x, y in itertools.combinations((0.7, 0.9, 5.0), 2))
    s = (a + b + c) / 2
    assert areas[0b00000001] == pytest.approx(math.sqrt(s * (s - a) * (s - b) * (s - c)))


@given(st.integers(0, 255), st.tuples(*[st.floats(0.1, 10)] * 3), st.permutations([0, 1, 2]), st.integers(0, 7))
def test_area_does_not_depend_on_how_the_block_is_turned(
    code: int, spacing: tuple[float, float, float], axes: list[int], flips: int
) -> None:
    block = np.array([code >> bit & 1 for bit in range(8)]).reshape(2, 2, 2)
    turned = np.flip(block.transpose(axes), [axis for axis in range(3) if flips >> axis & 1])
    other = int((turned.ravel() << np.arange(8)).sum())
    there, here = surfel_areas(np.array(spacing)[axes]), surfel_areas(np.array(spacing))
    assert there[other] == pytest.approx(here[code])
    assert here[255 - code] == pytest.approx(here[code])


def test_areas_are_those_of_surface_distance() -> None:
    tables = peer("surface_distance.lookup_tables")
    rng = np.random.default_rng(0)
    for spacing in rng.uniform(0.2, 6, (20, 3)):
        weights = tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL.reshape(-1)
        codes = [sum(int(weights[bit]) for bit in range(8) if code >> bit & 1) for code in range(256)]
        theirs = tables.create_table_neighbour_code_to_surface_area(spacing)[codes]
        np.testing.assert_allclose(surfel_areas(spacing), theirs, rtol=1e-12)
        weights = tables.ENCODE_NEIGHBOURHOOD_2D_KERNEL.reshape(-1)
        codes = [sum(int(weights[bit]) for bit in range(4) if code >> bit & 1) for code in range(16)]
        theirs = tables.create_table_neighbour_code_to_contour_length(spacing[:2])[codes]
        np.testing.assert_allclose(contour_lengths(spacing[:2]), theirs, rtol=1e-12)


def test_area_of_a_box_is_that_of_its_faces_less_its_cut_edges() -> None:
    pred = box((12, 14, 10), (2, 3, 1), (8, 11, 6))
    spacing = np.array([0.7, 1.1, 5.0])
    area = surface_distances(pred, pred, spacing).there.size.sum()
    n = np.array([6, 8, 5])
    faces = edges = corners = 0.0
    areas = surfel_areas(spacing)
    for axis in range(3):
        u, v = (a for a in range(3) if a != axis)
        faces += 2 * (n[u] - 1) * (n[v] - 1) * spacing[u] * spacing[v]
        edges += 4 * (n[axis] - 1) * spacing[axis] * math.hypot(spacing[u], spacing[v]) / 2
    corners = 8 * areas[1]
    assert area == pytest.approx(faces + edges + corners)


# -- values by hand


@pytest.mark.parametrize("elements", ["area", "voxel"])
def test_shifted_slab_in_thin_and_thick_directions(elements: Any) -> None:
    for axis, step in ((0, 0.7), (2, 5.0)):
        truth = box((20, 20, 20), (4, 4, 4), (12, 12, 12))
        pred = np.roll(truth, 2, axis=axis)
        assert hd(pred, truth, (0.7, 0.9, 5.0), elements=elements) == pytest.approx(2 * step)


def test_one_stray_voxel_moves_hd_and_not_hd95() -> None:
    truth = box((40, 40, 40), (5, 5, 5), (25, 25, 25))
    pred = truth.copy()
    pred[35, 15, 15] = True
    spacing = (1.0, 1.0, 2.0)
    # By elements, the far side of the stray voxel lies at 35.5, the face of the truth at 24.5; by voxels 35 and 24.
    assert hd(pred, truth, spacing) == pytest.approx(11.0)
    assert hd(pred, truth, spacing, elements="voxel") == pytest.approx(11.0)
    assert hd95(pred, truth, spacing) == 0
    assert asd(truth, pred, spacing) == 0 < asd(pred, truth, spacing)


def test_percentile_by_area_counts_a_large_face_more() -> None:
    """A plate that is one voxel thick: a shift along k moves the faces; four thin sides stay within a tolerance."""
    truth = box((14, 14, 9), (2, 2, 3), (12, 12, 4))
    pred = box((14, 14, 9), (2, 2, 4), (12, 12, 5))
    by_area = surface_dice(pred, truth, (1, 1, 3.0), 2.9)
    # The upper side of the one is the lower of the other. The other faces are three millimetres away; of 9 x 9 of flat area
    # and the cut edges around (36 of length 1 and width sqrt(1 + 9) / 2, 4 corners), half of each mask is shared.
    assert by_area == pytest.approx(0.5)
    assert surface_dice(pred, truth, (1, 1, 3.0), 3.0) == 1


def test_tolerance_is_met_by_rounded_sums() -> None:
    truth = box((12, 12, 12), (2, 2, 2), (8, 8, 8))
    pred = np.roll(truth, 3, axis=0)
    assert 3 * 0.1 != 0.3
    assert surface_dice(pred, truth, (0.1, 1, 1), 0.3) == 1
    assert surface_dice(pred, truth, (0.1, 1, 1), 0.29) < 1


def test_picture_is_measured_in_its_plane() -> None:
    truth = box((20, 20, 1), (4, 4, 0), (12, 12, 1))
    pred = np.roll(truth, 3, axis=1)
    flat = surface_distances(pred[..., 0], truth[..., 0], (0.5, 0.25))
    for spacing in ((0.5, 0.25, 1.0), (0.5, 0.25, 77.0)):
        slab = surface_distances(pred, truth, spacing)
        assert (slab.hd(), slab.hd(95), slab.assd()) == (flat.hd(), flat.hd(95), flat.assd())
    assert flat.hd() == pytest.approx(0.75)
    # A contour has the length of its sides less the corners that are cut.
    assert flat.there.size.sum() == pytest.approx(2 * 7 * (0.5 + 0.25) + 4 * math.hypot(0.5, 0.25) / 2)


def test_average_surface_distance_of_concentric_spheres() -> None:
    """Radii 10 and 13 mm on a grid of (0.7, 0.7, 1.5) mm: 3 mm apart, to half a voxel's diagonal of 1.8 mm."""
    x, y, z = np.meshgrid(*(np.arange(-n, n + 1) * s for n, s in ((22, 0.7), (22, 0.7), (10, 1.5))), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    pred, truth, spacing = radius < 10, radius < 13, (0.7, 0.7, 1.5)
    assert assd(pred, truth, spacing) == pytest.approx(3.0, abs=0.9)
    assert hd95(pred, truth, spacing) == pytest.approx(3.0, abs=0.9)
    assert surface_dice(pred, truth, spacing, 4.2) == 1
    assert surface_dice(pred, truth, spacing, 1.2) == 0


# -- other packages


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("share", [0.0, 10.0], ids=["transform", "tree"])
def test_values_are_those_of_surface_distance(ndim: int, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sd = peer("surface_distance")
    monkeypatch.setattr(surface, "_TREE_SHARE", share)
    rng = np.random.default_rng(ndim)
    for _ in range(60):
        pred, truth, spacing = random_pair(rng, ndim)
        tolerance = rng.uniform(0.2, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls scipy by names that are going away
            theirs = sd.compute_surface_distances(truth, pred, tuple(spacing))
        back, there = sd.compute_average_surface_distance(theirs)
        ours = surface_distances(pred, truth, spacing)
        got = [ours.hd(), ours.surface_dice(tolerance), ours.there.mean(), ours.back.mean()]
        # Where exactly 95 per cent of the area lie within a distance, rounding decides what theirs gives.
        robust = sd.compute_robust_hausdorff(theirs, 95)
        assert ours.hd(95) == pytest.approx(robust) or ours.hd(95 + 1e-9) == pytest.approx(robust)
        expected = [
            sd.compute_robust_hausdorff(theirs, 100),
            sd.compute_surface_dice_at_tolerance(theirs, tolerance),
            there,
            back,
        ]
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ndim", [2, 3])
def test_values_are_those_of_monai(ndim: int) -> None:
    monai = peer("monai.metrics")
    torch = peer("torch")
    rng = np.random.default_rng(10 + ndim)
    for _ in range(40):
        pred, truth, spacing = random_pair(rng, ndim)
        tolerance = rng.uniform(0.2, 4)
        masks = [torch.from_numpy(mask)[None, None].float() for mask in (pred, truth)]
        options = {"include_background": True, "spacing": tuple(spacing)}
        ours = surface_distances(pred, truth, spacing, elements="voxel")
        got = [ours.hd(), ours.hd(95), ours.surface_dice(tolerance), ours.there.mean(), ours.assd()]
        got.append(surface_dice(pred, truth, spacing, tolerance))  # by area
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls itself by arguments that are going away
            theirs = [
                monai.compute_hausdorff_distance(*masks, **options),
                monai.compute_hausdorff_distance(*masks, percentile=95, **options),
                monai.compute_surface_dice(*masks, [tolerance], **options),
                monai.compute_average_surface_distance(*masks, **options),
                monai.compute_average_surface_distance(*masks, symmetric=True, **options),
                monai.compute_surface_dice(*masks, [tolerance], use_subvoxels=True, **options),
            ]
        np.testing.assert_allclose(got, [float(value) for value in theirs], rtol=1e-5, atol=1e-5)


def test_hausdorff_is_that_of_simpleitk() -> None:
    """It measures from mask to mask, voxel by voxel: the same farthest distance where neither lies inside the other."""
    sitk = peer("SimpleITK")
    spacing = (0.7, 0.9, 5.0)
    truth, pred = box((16, 16, 16), (2, 2, 2), (6, 6, 6)), box((16, 16, 16), (9, 3, 4), (13, 8, 9))
    images = [sitk.GetImageFromArray(mask.transpose(2, 1, 0).astype(np.uint8)) for mask in (pred, truth)]
    for image in images:
        image.SetSpacing(spacing)
    measure = sitk.HausdorffDistanceImageFilter()
    measure.Execute(*images)
    assert hd(pred, truth, spacing, elements="voxel") == pytest.approx(measure.GetHausdorffDistance())


def test_the_two_definitions_differ_as_documented() -> None:
    """Thin slices: by voxels the many pixels of a plate's faces decide, by area the tall sides."""
    truth = box((30, 30, 12), (5, 5, 2), (25, 25, 10))
    pred = box((30, 30, 12), (5, 5, 2), (27, 25, 10))
    area, voxel = (surface_distances(pred, truth, (1, 1, 8.0), elements=e) for e in ("area", "voxel"))
    assert area.hd() == voxel.hd() == 2
    assert area.assd() > voxel.assd() > 0


# -- degenerate masks


@pytest.mark.parametrize("elements", ["area", "voxel"])
@pytest.mark.parametrize("shape", [(6, 7, 5), (6, 7, 1), (6, 7)])
def test_degenerate_masks(shape: tuple[int, ...], elements: Any) -> None:
    empty, full = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    spacing = (0.7, 0.7, 5.0)[: len(shape)]
    for name, measure in MEASURES.items():
        apart = 0.0 if name == "surface_dice" else math.inf
        assert math.isnan(measure(empty, empty, spacing, elements=elements)), name
        assert measure(empty, full, spacing, elements=elements) == apart, name
        assert measure(full, empty, spacing, elements=elements) == apart, name
        assert measure(full, full, spacing, elements=elements) == (1.0 if name == "surface_dice" else 0.0), name


def test_single_voxels_in_opposite_corners() -> None:
    for shape in ((5, 9, 4), (1, 1, 7), (70, 1, 65)):
        pred, truth = np.zeros((2, *shape), dtype=bool)
        pred[0, 0, 0] = truth[-1, -1, -1] = True
        far = math.hypot(*((n - 1) * s for n, s in zip(shape, (0.7, 0.9, 5.0), strict=True)))
        assert hd(pred, truth, (0.7, 0.9, 5.0), elements="voxel") == pytest.approx(far)
        assert hd(pred, truth, (0.7, 0.9, 5.0)) == pytest.approx(far)


def test_layout_in_memory_changes_nothing() -> None:
    pred, truth, spacing = random_pair(np.random.default_rng(5))
    expected = surface_distances(pred, truth, spacing).assd()
    assert surface_distances(np.asfortranarray(pred), truth, spacing).assd() == expected
    assert surface_distances(np.flip(pred.copy()[::-1, ::-1, ::-1]), truth, spacing).assd() == expected


def test_inputs_are_left_alone() -> None:
    pred, truth, spacing = random_pair(np.random.default_rng(6))
    kept = pred.copy(), truth.copy()
    pred.flags.writeable = truth.flags.writeable = False
    hd95(pred, truth, spacing)
    assert (pred == kept[0]).all()
    assert (truth == kept[1]).all()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"pred": np.zeros((4, 4, 4), np.uint8)}, MaskError, r"pred is uint8, expected a bool array"),
        ({"truth": [[True]]}, MaskError, r"truth is list, expected"),
        ({"pred": np.zeros((4, 4, 5), bool)}, MaskError, r"pred \(4, 4, 5\) and truth \(4, 4, 4\) differ in shape"),
        ({"spacing": None}, GeometryError, r"needs a spacing in mm, and the image has none"),
        ({"spacing": (1, 1)}, GeometryError, r"one length for each of 3 axes, not \(2,\)"),
        ({"spacing": (1, 0, 1)}, GeometryError, r"positive lengths in mm, not \[1.0, 0.0, 1.0\]"),
        ({"spacing": (1, math.nan, 1)}, GeometryError, r"positive lengths"),
        ({"elements": "areas"}, ConfigError, r"unknown surface elements 'areas'. Did you mean 'area'\?"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, Any], error: type[Exception], said: str) -> None:
    mask = np.ones((4, 4, 4), dtype=bool)
    with pytest.raises(error, match=said):
        hd95(**{"pred": mask, "truth": mask, "spacing": (1, 1, 1)} | change)


def test_wrong_options_are_refused() -> None:
    mask = np.ones((4, 4, 4), dtype=bool)
    distances = surface_distances(mask, mask, (1, 1, 1))
    with pytest.raises(ConfigError, match="a percentile lies above 0 and up to 100, not 0.0"):
        distances.hd(0.0)
    for tolerance in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="a tolerance is a length in mm, 0 or more"):
            distances.surface_dice(tolerance)
    with pytest.raises(MaskError, match="a rim of 0.5 mm holds no voxel"):
        boundary_iou(mask, mask, (1, 1, 1), 0.5)
    with pytest.raises(MaskError, match=r"axes \(I, J\) or \(I, J, K\)"):
        hd95(mask[None], mask[None], (1, 1, 1))


# -- laws

PAIRS = arrays(bool, st.tuples(st.just(2), *[st.integers(1, 6)] * 3))
SPACINGS = st.tuples(*[st.floats(0.2, 6)] * 3)


@settings(max_examples=60, deadline=None)
@given(PAIRS, SPACINGS, st.sampled_from(["area", "voxel"]))
def test_laws_of_distances(pair: np.ndarray, spacing: tuple[float, float, float], elements: Any) -> None:
    pred, truth = pair
    both = surface_distances(pred, truth, spacing, elements=elements)
    turned = surface_distances(truth, pred, spacing, elements=elements)
    flipped = surface_distances(pred[::-1, :, ::-1].copy(), truth[::-1, :, ::-1].copy(), spacing, elements=elements)
    doubled = surface_distances(pred, truth, 2 * np.array(spacing), elements=elements)
    for q in (50, 95, 100):
        assert turned.hd(q) == pytest.approx(both.hd(q), nan_ok=True)
        assert doubled.hd(q) == pytest.approx(2 * both.hd(q), nan_ok=True)
    assert flipped.hd() == pytest.approx(both.hd(), nan_ok=True)
    assert flipped.assd() == pytest.approx(both.assd(), nan_ok=True)
    assert turned.assd() == pytest.approx(both.assd(), nan_ok=True)
    assert doubled.assd() == pytest.approx(2 * both.assd(), nan_ok=True)
    assert doubled.surface_dice(2.0) == pytest.approx(both.surface_dice(1.0), nan_ok=True)
    assert surface_distances(pred, pred, spacing).assd() == (0 if pred.any() else pytest.approx(math.nan, nan_ok=True))
    if pred.any() and truth.any():
        assert both.assd() <= both.hd()
        assert both.hd(50) <= both.hd(95) <= both.hd()
        assert both.surface_dice(0) <= both.surface_dice(1.0) <= both.surface_dice(both.hd()) == 1


@settings(max_examples=40, deadline=None)
@given(PAIRS, SPACINGS, st.tuples(*[st.integers(0, 70)] * 3))
def test_place_in_the_image_changes_nothing(
    pair: np.ndarray, spacing: tuple[float, float, float], before: tuple[int, int, int]
) -> None:
    """Nor does what surrounds it: the masks are cropped and their flags packed into words at any offset."""
    larger = [np.pad(np.pad(mask, ((0, 1),) * 3), [(n, 2) for n in before]) for mask in pair]
    here = [np.pad(mask, ((0, 1),) * 3) for mask in pair]  # not a picture
    for elements in ("area", "voxel"):
        small = surface_distances(*here, spacing, elements=elements)  # type: ignore[arg-type]
        large = surface_distances(*larger, spacing, elements=elements)  # type: ignore[arg-type]
        np.testing.assert_allclose(large.there.mm, small.there.mm, rtol=1e-9)
        np.testing.assert_allclose(large.back.size, small.back.size)


# -- boundary IoU


def test_boundary_iou_by_hand() -> None:
    truth = box((20, 20), (2, 2), (12, 12))
    pred = box((20, 20), (2, 2), (12, 11))
    # Rims one pixel wide: 36 and 34 pixels, by erosion as in the paper.
    rim = [mask & ~ndimage.binary_erosion(mask) for mask in (pred, truth)]
    expected = (rim[0] & rim[1]).sum() / (rim[0] | rim[1]).sum()
    assert [int(r.sum()) for r in rim] == [34, 36]
    assert boundary_iou(pred, truth, (1, 1), 1.0) == pytest.approx(expected)
    assert boundary_iou(pred, truth, (1, 1), 50.0) == pytest.approx(90 / 100)
    assert boundary_iou(pred, np.zeros_like(pred), (1, 1), 1.0) == 0
    assert math.isnan(boundary_iou(np.zeros_like(pred), np.zeros_like(pred), (1, 1), 1.0))
