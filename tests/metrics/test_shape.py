"""Measurements of one structure, against shapes of known size on tilted, sheared and anisotropic grids."""

from __future__ import annotations

import time

import numpy as np
import pytest

from sagittal.errors import MaskError
from sagittal.grid import Grid
from sagittal.metrics.shape import measure_intensity, measure_shape
from sagittal.metrics.surface import surface_area

TILT = np.array([[0.8, -0.6, 0.0], [0.36, 0.48, -0.8], [0.48, 0.64, 0.6]])  # columns: directions of i, j, k


def tilted(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = TILT * spacing
    affine[:3, 3] = (-31.0, 17.5, 240.0)
    return Grid(shape, affine)


def ellipsoid(grid: Grid, middle: np.ndarray, axes: np.ndarray, halves: tuple[float, ...]) -> np.ndarray:
    """Voxels whose centres lie in an ellipsoid of the patient; `axes` are its directions as columns."""
    i, j, k = np.indices(grid.shape)
    points = np.stack([i, j, k, np.ones_like(i)], axis=-1) @ grid.affine[:3].T - middle
    return np.asarray((((points @ axes) / halves) ** 2).sum(axis=-1) <= 1)


SPACINGS = [(0.7, 0.7, 0.7), (0.5, 0.8, 2.5), (0.9, 0.6, 1.25)]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_sphere_on_a_tilted_grid(spacing: tuple[float, float, float]) -> None:
    shape = tuple(int(36 / s) for s in spacing)
    grid = tilted(shape, spacing)
    middle = grid.affine[:3, :3] @ (np.array(shape) / 2 + 0.3) + grid.affine[:3, 3]
    radius = 15.0
    found = measure_shape(ellipsoid(grid, middle, TILT, (radius,) * 3), grid)
    assert found.unit == "mm"
    assert found.components == 1
    assert found.volume_ml == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.01)
    # The longest of many lines: never much shorter than the true one, and up to a voxel longer.
    assert -0.2 < found.diameter - 2 * radius < max(spacing)
    assert -0.2 < found.axes.long - 2 * radius < max(spacing[:2])
    assert -0.5 < found.axes.short - 2 * radius < max(spacing[:2])
    assert found.centroid == pytest.approx(tuple(middle), abs=0.1)
    # The surface through voxels has steps, so it is larger than 4 pi r^2; more so where slices are thick.
    excess = found.surface_mm2 / (4 * np.pi * radius**2) - 1
    assert 0.05 < excess < (0.13 if max(spacing) < 2.5 * min(spacing) else 0.21)


def test_ellipsoid_that_is_turned_in_its_slices() -> None:
    grid = tilted((70, 60, 20), (0.5, 0.8, 2.0))
    middle = grid.affine[:3, :3] @ (35.0, 30.0, 10.0) + grid.affine[:3, 3]
    c, s = np.cos(0.6), np.sin(0.6)
    axes = TILT @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    found = measure_shape(ellipsoid(grid, middle, axes, (14.0, 6.0, 9.0)), grid)
    assert found.axes.long == pytest.approx(28, abs=0.8)
    assert found.axes.short == pytest.approx(12, abs=0.8)
    assert found.axes.slice == 10
    assert found.diameter == pytest.approx(28, abs=0.8)
    assert found.volume_ml == pytest.approx(4 / 3 * np.pi * 14 * 6 * 9 / 1000, rel=0.01)
    ends = np.array(found.axes.ends) @ grid.affine[:3, :3].T
    assert np.linalg.norm(ends[1] - ends[0]) == pytest.approx(found.axes.long)
    across = np.array(found.axes.short_ends) @ grid.affine[:3, :3].T
    assert np.linalg.norm(across[1] - across[0]) == pytest.approx(found.axes.short)
    assert abs((ends[1] - ends[0]) @ (across[1] - across[0])) < 1e-9  # perpendicular in the patient


def test_box_by_hand() -> None:
    mask = np.zeros((20, 30, 8), dtype=bool)
    mask[4:14, 5:25, 2:5] = True  # 10 x 20 x 3 voxels of 0.6 x 0.5 x 4 mm
    found = measure_shape(mask, tilted(mask.shape, (0.6, 0.5, 4.0)))
    assert found.volume_ml == pytest.approx(600 * 1.2 / 1000)
    # Corners are cut in the middle of the edges: along j the whole 10 mm, along i one voxel less.
    assert found.axes.long == pytest.approx(np.hypot(20 * 0.5, 9 * 0.6))
    # In space the longest line ends on the sides across k: 12 mm there, and one voxel less along i and j.
    assert found.diameter == pytest.approx(np.sqrt(12**2 + (9 * 0.6) ** 2 + (19 * 0.5) ** 2))
    assert found.corners == ((3.5, 4.5, 1.5), (13.5, 24.5, 4.5))
    assert found.axes.slice == 2


def test_area_of_a_box_is_its_faces_without_the_cut_edges() -> None:
    mask = np.zeros((64, 64, 64), dtype=bool)
    mask[2:62, 2:62, 2:62] = True
    # Faces of 59 x 59, slanted strips along the edges, and a triangle at each corner: all in closed form.
    exact = 6 * 59**2 + 12 * 59 * np.sqrt(0.5) + 8 * np.sqrt(3) / 8
    assert surface_area(mask, (1, 1, 1)) == pytest.approx(exact)
    assert surface_area(mask, (0.5, 2, 3)) == pytest.approx(2 * 3600 * (1 + 1.5 + 6), rel=0.02)
    # Of a slanted lattice the faces are parallelograms: |a x b| each.
    edges = TILT @ np.array([[1, 0, 0.4], [0, 1, 0], [0, 0, 2.0]])
    faces = [np.linalg.norm(np.cross(edges[:, a], edges[:, b])) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert surface_area(mask, edges) == pytest.approx(2 * 3600 * sum(faces), rel=0.02)
    assert surface_area(mask, TILT * (0.5, 2, 3)) == pytest.approx(surface_area(mask, (0.5, 2, 3)))


def test_sheared_slices_keep_volume_and_in_plane_axes() -> None:
    mask = np.zeros((20, 30, 8), dtype=bool)
    mask[4:14, 5:25, 2:5] = True
    affine = np.diag([0.6, 0.5, 4.0, 1.0])
    affine[1, 2] = 1.1  # a tilted gantry
    found, straight = (measure_shape(mask, Grid(mask.shape, a)) for a in (affine, np.diag([0.6, 0.5, 4.0, 1.0])))
    assert found.volume_ml == pytest.approx(straight.volume_ml)
    assert found.axes == straight.axes
    assert found.diameter > straight.diameter


def test_axes_of_many_parts_are_those_of_one_region() -> None:
    mask = np.zeros((60, 60, 4), dtype=bool)
    mask[2:6, 2:6, 0] = True
    mask[50:58, 50:54, 0] = True  # the larger one
    mask[30, 30, 2] = True
    found = measure_shape(mask, Grid(mask.shape, np.eye(4)))
    assert found.components == 3
    assert found.axes.long == pytest.approx(np.hypot(8, 3))
    assert found.diameter == found.axes.long
    assert found.corners == ((1.5, 1.5, -0.5), (57.5, 53.5, 2.5))


def test_single_voxel_is_as_long_as_its_longest_edge() -> None:
    mask = np.zeros((5, 5, 5), dtype=bool)
    mask[2, 3, 1] = True
    found = measure_shape(mask, tilted(mask.shape, (0.7, 0.9, 5.0)))
    assert found.voxels == found.components == 1
    assert found.volume_ml == pytest.approx(0.7 * 0.9 * 5 / 1000)
    assert (found.axes.long, found.axes.short) == (pytest.approx(0.9), pytest.approx(0.7))
    assert found.diameter == pytest.approx(5.0)
    assert found.surface_mm2 > 0


def test_empty_mask_has_size_zero_and_no_place() -> None:
    found = measure_shape(np.zeros((5, 6, 7), dtype=bool), tilted((5, 6, 7), (1, 1, 2)))
    assert (found.voxels, found.components, found.volume_ml, found.surface_mm2, found.diameter) == (0, 0, 0, 0, 0)
    assert (found.axes.long, found.axes.short, found.axes.slice) == (0, 0, -1)
    assert np.isnan(found.centroid).all()
    assert np.isnan(found.corners).all()


def test_picture_without_spacing_is_in_pixels() -> None:
    mask = np.zeros((40, 30, 1), dtype=bool)
    mask[10:20, 5:9, 0] = True
    found = measure_shape(mask, Grid(mask.shape))
    assert found.unit == "px"
    assert found.area == 40
    assert np.isnan(found.volume_ml)
    assert np.isnan(found.surface_mm2)
    assert found.axes.long == pytest.approx(np.hypot(10, 3))
    assert found.diameter == found.axes.long
    assert found.centroid == (14.5, 6.5, 0)


def test_picture_with_pixel_size_is_in_mm_and_has_no_volume() -> None:
    mask = np.zeros((40, 30, 1), dtype=bool)
    mask[10:20, 5:9, 0] = True
    found = measure_shape(mask, Grid(mask.shape, spacing=(0.2, 0.4, np.nan)))
    assert found.unit == "mm"
    assert found.area == pytest.approx(40 * 0.08)
    assert np.isnan(found.volume_ml)
    assert found.axes.long == pytest.approx(np.hypot(9 * 0.2, 4 * 0.4))


def test_loop_without_thickness_has_no_volume() -> None:
    mask = np.zeros((10, 10, 3), dtype=bool)
    mask[2:5, 2:5] = True
    found = measure_shape(mask, Grid(mask.shape, spacing=(0.2, 0.4, np.nan)))
    assert np.isnan(found.volume_ml)
    assert found.diameter == found.axes.long  # what lies between the frames is time


def test_volume_without_any_size_is_in_voxels() -> None:
    mask = np.zeros((10, 10, 3), dtype=bool)
    mask[2:5, 2:5] = True
    found = measure_shape(mask, Grid(mask.shape))
    assert found.unit == "px"
    assert np.isnan(found.volume_ml)
    assert found.axes.long == pytest.approx(np.hypot(3, 2))


def test_intensity_of_a_structure() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(40, 9, (20, 21, 22)).astype(np.float32)
    mask = np.zeros(values.shape, dtype=bool)
    mask[3:9, 4:12, 5:13] = True
    values[3, 4, 5] = np.nan
    found = measure_intensity(mask, values, "HU")
    inside = values[mask][1:]
    assert found.mean == pytest.approx(np.mean(inside, dtype=np.float64))
    assert found.std == pytest.approx(np.std(inside, dtype=np.float64))
    assert (found.low, found.high, found.unit) == (inside.min(), inside.max(), "HU")
    assert found.median == pytest.approx(np.median(inside))
    assert np.isnan(measure_intensity(np.zeros_like(mask), values).mean)


def test_mask_that_is_none() -> None:
    grid = Grid((4, 4, 4), np.eye(4))
    with pytest.raises(MaskError, match="bool mask"):
        measure_shape(np.ones((4, 4, 4), dtype=np.uint8), grid)
    with pytest.raises(MaskError, match=r"mask \(4, 4, 5\) does not fit grid \(4, 4, 4\)"):
        measure_shape(np.ones((4, 4, 5), dtype=bool), grid)
    with pytest.raises(MaskError, match="differ in shape"):
        measure_intensity(np.ones((4, 4, 5), dtype=bool), np.ones((4, 4, 4)))


def test_a_long_structure_is_fast() -> None:
    i, j, k = np.ogrid[:160, :160, :200]
    mask = np.asarray((i - 80) ** 2 + (j - 80) ** 2 <= (40 + 20 * np.sin(k / 9)) ** 2)
    started = time.process_time()  # other work on the machine does not count
    found = measure_shape(mask, Grid(mask.shape, np.diag([0.7, 0.7, 1.0, 1.0])))
    assert time.process_time() - started < 3
    assert found.axes.long == pytest.approx(120 * 0.7, abs=1.4)
