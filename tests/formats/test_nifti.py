"""NIfTI: RAS+ becomes LPS+, scaling is applied, nothing is invented."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sagittal.errors import GeometryError, ReadError
from sagittal.formats.nifti import read_nifti

TILTED = np.array([[0.56, -0.3, 1.44, -90.0], [0.252, 0.24, -2.0, 126.0], [0.336, 0.32, 4.0, -72.0], [0, 0, 0, 1]])
VALUES = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)


@pytest.fixture
def save(tmp_path):
    def write(image, name="a.nii.gz"):
        nib.save(image, tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_values_stay_and_positions_become_lps(save, name, kind):
    image = read_nifti(save(kind(VALUES, TILTED), name))
    np.testing.assert_array_equal(image.data[0], VALUES)
    right_front_up = TILTED @ [2, 1, 3, 1]
    left_back_up = image.grid.affine @ [2, 1, 3, 1]
    np.testing.assert_allclose(left_back_up[:3], right_front_up[:3] * [-1, -1, 1], atol=1e-5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edges=arrays(np.float64, (3, 3), elements=st.floats(-4, 4, width=32)),
    origin=st.tuples(*[st.floats(-300, 300, width=32)] * 3),
    index=st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 4)),
)
def test_world_coordinates_hold_for_any_grid(save, edges, origin, index):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = edges, origin
    if abs(np.linalg.det(edges)) <= 1e-3 * max(np.prod(np.linalg.norm(edges, axis=0)), 1e-9):
        return
    image = read_nifti(save(nib.Nifti1Image(VALUES, affine), "a.nii"))
    expected = (affine @ [*index, 1])[:3] * [-1, -1, 1]
    np.testing.assert_allclose((image.grid.affine @ [*index, 1])[:3], expected, atol=1e-3)
    assert image.data[(0, *index)] == VALUES[index]


def test_without_position_there_is_a_voxel_size_and_nothing_else(save):
    nifti = nib.Nifti1Image(VALUES, None)
    nifti.header.set_zooms((0.5, 0.7, 3.0))
    grid = read_nifti(save(nifti)).grid
    assert grid.affine is None
    np.testing.assert_allclose(grid.spacing, [0.5, 0.7, 3.0], rtol=1e-6)
    given = read_nifti(save(nifti), affine=TILTED).grid
    np.testing.assert_allclose(given.affine[:3, 3], [90, -126, -72])


def test_qform_is_used_where_there_is_no_sform(save):
    nifti = nib.Nifti1Image(VALUES, None)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = 10, 20, 30
    nifti.set_qform(affine, code=1)
    np.testing.assert_allclose(
        read_nifti(save(nifti)).grid.affine, [[-2, 0, 0, -10], [0, -3, 0, -20], [0, 0, 4, 30], [0, 0, 0, 1]], atol=1e-5
    )


def test_slope_and_intercept_are_applied(save):
    path = save(nib.Nifti1Image(VALUES, TILTED))
    _patched(path, 112, np.array([0.5, -1024], np.float32).tobytes())  # scl_slope, scl_inter
    np.testing.assert_array_equal(read_nifti(path).data[0], VALUES * 0.5 - 1024)


def test_metres_and_microns_become_millimetres(save):
    for unit, factor in (("meter", 1000.0), ("micron", 0.001), ("mm", 1.0)):
        nifti = nib.Nifti1Image(VALUES, np.diag([2.0, 3.0, 4.0, 1.0]))
        nifti.header.set_xyzt_units(unit)
        np.testing.assert_allclose(read_nifti(save(nifti)).grid.spacing, np.array([2, 3, 4]) * factor, rtol=1e-6)


def test_more_axes_become_channels_and_fewer_a_plane(save):
    four = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    np.testing.assert_array_equal(read_nifti(save(nib.Nifti1Image(four, TILTED))).data, four.transpose(3, 0, 1, 2))
    vector = four[:, :, :, np.newaxis]
    np.testing.assert_array_equal(read_nifti(save(nib.Nifti1Image(vector, TILTED))).data, four.transpose(3, 0, 1, 2))
    plane = read_nifti(save(nib.Nifti1Image(VALUES[:, :, 0], TILTED)))
    assert plane.grid.shape == (3, 4, 1)
    np.testing.assert_array_equal(plane.data[0, :, :, 0], VALUES[:, :, 0])


def test_rgb_becomes_channels(save):
    rgb = np.random.default_rng(0).integers(0, 255, (3, 4, 5, 3), dtype=np.uint8)
    packed = np.ascontiguousarray(rgb).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    np.testing.assert_array_equal(read_nifti(save(nib.Nifti1Image(packed, TILTED))).data, rgb.transpose(3, 0, 1, 2))


def test_real_volumes_equal_nibabel(bench_data):
    paths = sorted((bench_data / "hippocampus" / "imagesTr").glob("*.nii.gz"))
    assert len(paths) == 200
    for path in paths[::10]:
        image, nifti = read_nifti(path), nib.load(path)
        np.testing.assert_array_equal(image.data[0], nifti.get_fdata(dtype=np.float32))
        np.testing.assert_allclose(image.grid.affine, np.diag([-1, -1, 1, 1]) @ nifti.affine)


def _patched(path, offset, value):
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[offset : offset + len(value)] = value
    path.write_bytes(gzip.compress(bytes(raw)))
    return path


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (42, b"\xff\x7f\xff\x7f\xff\x7f", "32767 x 32767 x 32767 = .* values; at most"),
        (42, b"\x00\x04\x00\x04\x64\x00", "declares .* bytes, but the file holds"),
        (42, b"\x04\x00", "cut off, 40 of 160 bytes are missing"),
        (42, b"\xff\xff", "every extent must be at least 1"),
        (40, b"\x63\x00", "damaged"),
        (70, b"\x20\x00", "values of type complex64 are not read|cut off|declares"),
        (344, b"xyz\0", "does not hold a NIfTI header"),
        (344, b"ni1\0", r"\.hdr/\.img pair"),
        (108, np.float32(1e9).tobytes(), "said to begin at byte 1,000,000,000"),
    ],
)
def test_damaged_headers_are_refused(save, offset, value, message):
    path = save(nib.Nifti1Image(VALUES[:, :, :5], TILTED))
    with pytest.raises(ReadError, match=message):
        read_nifti(_patched(path, offset, value))


def test_a_flat_or_infinite_position_is_refused(save):
    path = save(nib.Nifti1Image(VALUES, TILTED))
    with pytest.raises(GeometryError, match="not finite"):
        read_nifti(_patched(path, 280, np.float32(np.nan).tobytes()))
    with pytest.raises(GeometryError, match="plane or line"):
        read_nifti(_patched(path, 280, bytes(48)))


def test_a_cut_file_is_refused(save):
    path = save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(20, 20, 20)), TILTED))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ReadError, match="damaged or cut off"):
        read_nifti(path)
