"""Structure sets: closed forms on tilted, anisotropic slices, and everything that could put a mask elsewhere."""

from __future__ import annotations

import copy

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagittal.errors import GeometryError, ReadError
from sagittal.formats.dicom import read_dicom_series
from sagittal.formats.polygons import fill_even_odd
from sagittal.formats.rtstruct import read_rtstruct, roi_names
from sagittal.read.sources import make_mask_source

ROWS, COLUMNS, SLICES = 60, 80, 5
DEPTHS = [0.0, 3.0, 6.0, 9.0, 12.0]


@pytest.fixture
def images(write_series):
    """A tilted CT series: 0.5 mm between columns, 0.7 between rows, 3 between slices."""
    return write_series("ct", np.zeros((SLICES, ROWS, COLUMNS), np.int16), DEPTHS, FrameOfReferenceUID="1.2.3.4.9")


def ellipse(centre, radii, k, n=400):
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.c_[centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle), np.full(n, k)]


def square(low, high, k):
    return np.array([[low, low, k], [high, low, k], [high, high, k], [low, high, k]], float)


def test_a_cylinder_has_the_voxels_and_the_volume_of_its_formula(tmp_path, images, write_rtstruct):
    """A circle of 9 mm radius on the middle three slices: pi r^2 h."""
    radii = (9 / 0.5, 9 / 0.7)
    path = write_rtstruct(tmp_path / "rs.dcm", images, {"tube": [ellipse((40.2, 30.3), radii, k) for k in (1, 2, 3)]})
    found = read_rtstruct(path, images)
    assert found.grid.same_place(read_dicom_series(images).grid)
    i, j, k = np.indices((COLUMNS, ROWS, SLICES))
    inside = (((i - 40.2) / radii[0]) ** 2 + ((j - 30.3) / radii[1]) ** 2 < 1) & (k > 0) & (k < 4)
    assert (found.mask("tube") != inside).sum() <= 3 * 4  # the polygon of 400 corners is a little smaller
    volume = found.mask("tube").sum() * abs(np.linalg.det(found.grid.affine[:3, :3]))
    assert volume == pytest.approx(np.pi * 81 * 9, rel=0.01)


def test_holes_islands_and_keyholes(tmp_path, images, write_rtstruct):
    outer, hole, island = square(5.5, 25.5, 2), square(9.5, 21.5, 2), square(13.5, 15.5, 2)
    key = np.array([*square(5.5, 25.5, 2), [5.5, 5.5, 2], [9.5, 9.5, 2], *square(9.5, 21.5, 2)[::-1], [9.5, 9.5, 2]])
    path = write_rtstruct(
        tmp_path / "rs.dcm", images, {"nested": [hole, outer, island], "key": [key], "twice": [outer, outer]}
    )
    found = read_rtstruct(path, images)
    i, j = np.indices((COLUMNS, ROWS))

    def box(low, high):
        return (i >= low) & (i < high) & (j >= low) & (j < high)

    np.testing.assert_array_equal(found.mask("nested")[:, :, 2], box(6, 26) & ~box(10, 22) | box(14, 16))
    np.testing.assert_array_equal(found.mask("key")[:, :, 2], box(6, 26) & ~box(10, 22))
    np.testing.assert_array_equal(found.mask("twice")[:, :, 2], box(6, 26))
    assert found.mask("nested")[:, :, [0, 1, 3, 4]].sum() == 0
    assert {s.layer for s in found.structures} == {0, 1, 2}


def test_points_and_open_lines_are_no_masks_and_what_was_not_drawn_is_unknown(
    tmp_path, images, caplog, write_rtstruct, contour
):
    affine = read_dicom_series(images).grid.affine
    place = (affine @ [3, 4, 1, 1])[:3]
    rois = {
        "Secret mark": [contour([place], "POINT")],
        "line": [contour([place, place + 1], "OPEN_PLANAR")],
        "none": [],
        "liver": [square(5.5, 9.5, 0)],
        "dot": [np.array([[4.0, 4.0, 1.0]])],
    }
    path = write_rtstruct(tmp_path / "rs.dcm", images, rois)
    with caplog.at_level("INFO"):
        found = read_rtstruct(path, images)
    assert [(s.name, s.values) for s in found.structures] == [("liver", (1,)), ("dot", ())]
    assert "2 points or open lines" in caplog.text
    assert "Secret" not in caplog.text
    assert roi_names(pydicom.dcmread(path)) == ("liver", "dot")
    with pytest.raises(ReadError, match="holds no closed contour"):
        read_rtstruct(write_rtstruct(tmp_path / "b.dcm", images, {"a": [contour([place], "POINT")]}), images)


@pytest.mark.parametrize(
    ("contours", "message"),
    [
        (
            [square(5, 9, 0) + np.array([[0, 0, 0], [0, 0, 0.3], [0, 0, 0.3], [0, 0, 0]])],
            "not parallel to the slices.*1.00 to 1.30",
        ),
        ([square(5, 9, -0.8)], r"lies outside the image of \(80, 60, 5\) voxels"),
        ([square(5, 9, 4.9)], "lies outside the image"),
        ([square(-3, 9, 1)], "lies outside the image"),
        ([square(50, 62, 1)], "lies outside the image"),
        ([square(5, 9, 1.2), square(12, 19, 0.8)], r"different planes lie nearest to slice 2 \(1.80 and 2.20\)"),
        ([square(5, 15, 1), square(10, 20, 1)], "cross each other on slice 2"),
    ],
)
def test_contours_that_fit_no_slice(tmp_path, images, contours, message, write_rtstruct):
    with pytest.raises(GeometryError, match=message):
        read_rtstruct(write_rtstruct(tmp_path / "rs.dcm", images, {"a": contours}), images)


def test_contours_between_slices_go_to_the_nearest_and_may_touch_the_border(tmp_path, images, write_rtstruct, contour):
    rois = {"near": [square(5.5, 9.5, 1.4)], "edge": [square(-0.5, 59.5, 0)], "xor": [
        contour(np.c_[c, np.ones(4)] @ read_dicom_series(images).grid.affine.T[:, :3], "CLOSEDPLANAR_XOR")
        for c in (square(5.5, 15.5, 3), square(10.5, 20.5, 3))
    ]}  # fmt: skip
    found = read_rtstruct(write_rtstruct(tmp_path / "rs.dcm", images, rois), images)
    assert found.mask("near").sum(axis=(0, 1)).tolist() == [0, 16, 0, 0, 0]
    assert found.mask("edge")[:60, :, 0].all()
    assert found.mask("xor")[:, :, 3].sum() == 150


def test_damaged_structure_sets(tmp_path, images, write_rtstruct, contour):
    affine = read_dicom_series(images).grid.affine
    good = contour(np.c_[square(4.5, 8.5, 1), np.ones(4)] @ affine.T[:, :3])
    short, wrong = copy.deepcopy(good), copy.deepcopy(good)
    short.NumberOfContourPoints = 7
    wrong.ContourData = good.ContourData[:-1]
    for item in (short, wrong):
        with pytest.raises(ReadError, match="not three for each of its points"):
            read_rtstruct(write_rtstruct(tmp_path / "a.dcm", images, {"a": [item]}), images)
    with pytest.raises(ReadError, match="not described"):
        read_rtstruct(write_rtstruct(tmp_path / "b.dcm", images, {"a": [good]}, StructureSetROISequence=[]), images)
    with pytest.raises(ReadError, match="the object is no structure set"):
        read_rtstruct(images[0], images)
    path = write_rtstruct(tmp_path / "c.dcm", images, {"a": [good]})
    with pytest.raises(ReadError, match="give the image series"):
        read_rtstruct(path, ())
    with pytest.raises(ReadError, match="refers to 5 images, of which 1 are missing among the 4 files"):
        read_rtstruct(path, images[1:])
    with pytest.raises(ReadError, match="refers to no images"):
        read_rtstruct(
            write_rtstruct(tmp_path / "d.dcm", images, {"a": [good]}, ReferencedFrameOfReferenceSequence=[]), images
        )
    with pytest.raises(ReadError, match="^case 7: RTSTRUCT: "):
        make_mask_source("7", "rtstruct", (path, *images[1:])).load()
    assert make_mask_source("7", "rtstruct", (path, *images)).load().mask("a").sum() == 16


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-8, 40), st.integers(-8, 40)), min_size=3, max_size=12))
def test_the_even_odd_rule_equals_counting_crossings(corners):
    """Against the textbook rule at each centre."""
    points = np.array(corners) / 2 + 0.125 * np.array([1, 3]) + 0.0625
    found = fill_even_odd(points, (18, 14))
    for j in range(14):
        for i in range(18):
            crossings = 0
            for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
                if (y0 > j) != (y1 > j) and i >= x0 + (j - y0) * (x1 - x0) / (y1 - y0):
                    crossings += 1
            assert found[j, i] == (crossings % 2 == 1)


def test_a_contour_of_very_many_crossings_takes_little_memory():
    """A comb of 60,000 edges across 500 rows: 30 million crossings."""
    import resource

    x = np.repeat(np.linspace(1, 90, 30_000), 2)
    points = np.c_[x, np.tile([0.5, 500.5], 30_000)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mask = fill_even_odd(points, (100, 501))
    assert mask.shape == (501, 100)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


def test_neighbours_that_share_an_edge_share_no_voxel():
    """Corners on the centres themselves: each voxel of the whole belongs to exactly one part."""
    left, right = np.array([[2, 2], [5, 2], [5, 8], [2, 8]]), np.array([[5, 2], [9, 2], [9, 8], [5, 8]])
    whole = np.array([[2, 2], [9, 2], [9, 8], [2, 8]])
    parts = [fill_even_odd(p, (12, 12)).astype(int) for p in (left, right)]
    np.testing.assert_array_equal(sum(parts), fill_even_odd(whole, (12, 12)).astype(int))


@pytest.mark.data
def test_published_structure_sets(bench_data):
    folder = bench_data / "dicom/rtstruct/mock_data"
    images = [folder / "ct_1.dcm", folder / "ct_2.dcm"]
    found = read_rtstruct(folder / "rt.dcm", images)
    grid = found.grid
    (structure,) = found.structures
    # The square from -51 to -27 mm with an octagon from -47 to -31 mm in it, at z = 60.
    expected = np.zeros(grid.shape, bool)
    header = pydicom.dcmread(folder / "rt.dcm")
    i, j, k = np.indices(grid.shape)
    x, y, z = (np.stack([i, j, k, np.ones_like(i)], -1) @ grid.affine.T)[..., :3].transpose(3, 0, 1, 2)
    from matplotlib.path import Path as Outline

    for item in header.ROIContourSequence[0].ContourSequence:
        points = np.array(item.ContourData, float).reshape(-1, 3)
        inside = Outline(points[:, :2]).contains_points(np.c_[x[..., 0].ravel(), y[..., 0].ravel()])
        expected[..., np.abs(z[0, 0] - points[0, 2]).argmin()] ^= inside.reshape(grid.shape[:2])
    assert (found.mask(structure.name) != expected).sum() <= 0.002 * expected.sum()
    with pytest.raises(ReadError, match=r"refers to 5 images, of which \d are missing among the 2 files"):
        read_rtstruct(folder / "invalid_reference_rt.dcm", images)
    with pytest.raises(ReadError, match="refers to no images|of which|another series"):
        read_rtstruct(folder / "non_existent_reference_rt.dcm", images)
    with pytest.raises(ReadError, match="refers to another series"):
        read_rtstruct(folder / "rt.dcm", sorted((bench_data / "dicom/rtstruct/oriented_data").glob("*.dcm")))
