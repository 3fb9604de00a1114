"""Any image file: the content decides, and every damaged file ends in an error of ours."""

from __future__ import annotations

import contextlib

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagittal.errors import ReadError, SagittalError
from sagittal.formats.open_image import READERS, read_image


@pytest.fixture
def samples(tmp_path, write_slice, write_png):
    """A small file of each kind, by suffix."""
    pixels = np.random.default_rng(0).integers(0, 255, (9, 8), dtype=np.uint8)
    files = {s: write_png(f"a{s}", pixels) for s in (".png", ".jpg", ".tif", ".bmp")}
    files[".dcm"] = write_slice("a.dcm", pixels.astype(np.int16))
    files[".nii.gz"], files[".nii"] = tmp_path / "a.nii.gz", tmp_path / "a.nii"
    for name in (".nii", ".nii.gz"):
        nib.save(nib.Nifti1Image(pixels[:, :, np.newaxis], np.diag([1.0, 2, 3, 1])), files[name])
    files[".npy"], files[".npz"] = tmp_path / "a.npy", tmp_path / "a.npz"
    np.save(files[".npy"], pixels)
    np.savez_compressed(files[".npz"], pixels)
    return files


def test_every_kind_is_read(samples):
    for suffix, path in samples.items():
        assert sorted(read_image(path).grid.shape) == [1, 8, 9], suffix


def test_a_wrong_suffix_does_not_matter(samples, tmp_path):
    for suffix, path in samples.items():
        for wrong in (".png", ".dcm", ".nii.gz", "", ".xyz"):
            other = tmp_path / f"wrong{wrong}"
            if suffix == ".bmp":
                continue  # two letters are too little to know it by
            other.write_bytes(path.read_bytes())
            np.testing.assert_array_equal(read_image(other).data, read_image(path).data)


@pytest.mark.parametrize("suffix", sorted(READERS))
def test_text_under_any_suffix_is_refused(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_text("this is a text, not an image, and long enough to be looked at. " * 20)
    with pytest.raises(ReadError, match=r"damaged|not a DICOM file|does not hold an? (NIfTI|NRRD) header|not a PNG"):
        read_image(tmp_path / f"a{suffix}")


def test_unknown_files_missing_files_folders_and_empty_files(tmp_path):
    (tmp_path / "a.xyz").write_bytes(b"something else" * 99)
    (tmp_path / "empty.dcm").touch()
    for path, message in (
        ("a.xyz", r"not an image file of a known kind. Known: .*\.dcm.*\.nii\.gz"),
        ("empty.dcm", r"the file is empty \(0 bytes\)"),
        ("none.png", "the file does not exist"),
        ("", "is not a file"),
        ("n" * 300 + ".png", "cannot be opened"),
        ("a\0b.png", "cannot be opened"),
    ):
        with pytest.raises(ReadError, match=message):
            read_image(tmp_path / path)


def test_names_of_any_script_and_long_paths(tmp_path, samples):
    deep = tmp_path
    for part in ("患者影像", "Größe und Maß", "x" * 200, "y" * 200, "z" * 200, "ы" * 120):
        deep = deep / part
    deep.mkdir(parents=True)
    assert len(str(deep)) > 700
    for suffix, path in samples.items():
        other = deep / f"图像 é{suffix}"
        other.write_bytes(path.read_bytes())
        np.testing.assert_array_equal(read_image(other).data, read_image(path).data)


def test_reading_in_threads_leaves_the_warnings_as_they_were(samples):
    import warnings
    from concurrent.futures import ThreadPoolExecutor

    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read_image, [*samples.values()] * 12))
    assert list(warnings.filters) == before


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.6, 0.9])
def test_cut_files_end_in_our_errors(samples, fraction):
    for suffix, path in samples.items():
        raw = path.read_bytes()
        path.write_bytes(raw[: int(len(raw) * fraction)])
        with contextlib.suppress(SagittalError):
            image = read_image(path)
            assert suffix == ".jpg" or image.data.size <= 2 * len(raw), f"{suffix} was read although cut"


@pytest.mark.parametrize("suffix", [".dcm", ".png", ".tif", ".jpg", ".nii", ".nii.gz", ".npy", ".npz"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255), st.integers(1, 8)), min_size=1, max_size=6),
    header=st.booleans(),
    cut=st.floats(0.5, 1),
)
def test_mutated_files_end_in_an_image_or_in_our_errors(samples, suffix, changes, header, cut):
    path = samples[suffix].with_name(f"mutated{suffix}")
    raw = bytearray(samples[suffix].read_bytes())
    for place, value, length in changes:
        at = int(place * (min(len(raw), 700) if header else len(raw)))
        raw[at : at + length] = bytes([value]) * length
    path.write_bytes(bytes(raw[: int(cut * len(raw))] if cut < 0.8 else raw))
    with contextlib.suppress(SagittalError):
        image = read_image(path)
        assert image.data.dtype == np.float32
        assert image.data.shape[1:] == image.grid.shape
