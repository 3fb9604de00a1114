"""Arrays: storage order kept, nothing pickled, nothing allocated that is not there."""

from __future__ import annotations

import contextlib
import io
import zipfile

import numpy as np
import pytest

from sagittal.errors import ReadError, ResourceError
from sagittal.formats import npz
from sagittal.formats.npz import array_shapes, load_array, read_npz, read_npz_item


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((5, 7), (1, 7, 5, 1)), ((5, 7, 3), (3, 7, 5, 1)), ((4, 5, 7), (1, 7, 5, 4)), ((4, 5, 7, 3), (3, 7, 5, 4))],
)
def test_the_network_sees_an_array_as_it_is_stored(tmp_path, shape, expected):
    stored = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", stored)
    image = read_npz(tmp_path / "a.npy")
    assert image.data.shape == expected
    seen = image.data.transpose(0, 3, 2, 1)  # (C, slices, rows, columns), as networks get it
    plain = stored if shape[-1] == 3 else stored[..., np.newaxis]
    np.testing.assert_array_equal(seen, np.moveaxis(plain.reshape(expected[3], expected[2], expected[1], -1), -1, 0))


def test_one_of_many_in_two_and_three_dimensions(tmp_path):
    flat = np.random.default_rng(0).integers(0, 255, (6, 5, 7), dtype=np.uint8)
    deep = np.random.default_rng(0).integers(0, 255, (6, 4, 5, 7), dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", flat=flat, deep=deep)
    np.testing.assert_array_equal(
        read_npz_item(tmp_path / "a.npz", "flat", 4).data[..., 0].transpose(0, 2, 1)[0], flat[4]
    )
    np.testing.assert_array_equal(read_npz_item(tmp_path / "a.npz", "deep", 4).data.transpose(0, 3, 2, 1)[0], deep[4])
    with pytest.raises(ReadError, match="has 6 images, not one of number 6"):
        read_npz_item(tmp_path / "a.npz", "flat", 6)


def test_a_stack_is_unpacked_once_and_again_when_the_file_changes(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", flat=np.zeros((3, 5, 7), np.uint8))
    loads = []
    real = npz.load_array
    monkeypatch.setattr(npz, "load_array", lambda *a: loads.append(a) or real(*a))
    for index in range(3):
        read_npz_item(tmp_path / "a.npz", "flat", index)
    assert len(loads) == 1
    np.savez(tmp_path / "a.npz", flat=np.ones((4, 5, 7), np.uint8))
    assert read_npz_item(tmp_path / "a.npz", "flat", 3).data.min() == 1
    assert len(loads) == 2


def test_shapes_come_from_headers(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((3, 4), np.float32), y=np.zeros(2))
    assert array_shapes(tmp_path / "a.npz") == {"x": (3, 4), "y": (2,)}


def test_fortran_order_is_undone(tmp_path):
    stored = np.asfortranarray(np.arange(35).reshape(5, 7))
    np.save(tmp_path / "a.npy", stored)
    np.testing.assert_array_equal(load_array(tmp_path / "a.npy"), stored)


def test_pickles_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", np.array([print], dtype=object), allow_pickle=True)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ReadError, match="pickled objects, which can run code"):
            read_npz(tmp_path / name, "arr_0" if name == "a.npz" else None)


def test_several_arrays_need_a_name(tmp_path):
    np.savez(tmp_path / "a.npz", left=np.zeros((5, 7)), right=np.ones((5, 7)))
    with pytest.raises(ReadError, match=r"holds 2 arrays \(left, right\); say which"):
        read_npz(tmp_path / "a.npz")
    with pytest.raises(ReadError, match=r"no array 'rigth'\. Did you mean 'right'"):
        read_npz(tmp_path / "a.npz", "rigth")
    assert read_npz(tmp_path / "a.npz", "right").data.min() == 1


def test_other_zips_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("../../evil.txt", "x")
    with pytest.raises(ReadError, match=r"zip archive without \.npy arrays"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("shape", [(1000000000, 1000, 1000), (-1, 5)])
def test_a_header_that_declares_too_much_allocates_nothing(tmp_path, shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    (tmp_path / "a.npy").write_bytes(buffer.getvalue() + bytes(80))
    with pytest.raises(ReadError, match=r"more than the .* bytes that the file holds"):
        read_npz(tmp_path / "a.npy")


def test_an_archive_that_declares_too_much_is_refused(tmp_path):
    """The size in the central directory is not believed either: reading stops where the bytes do."""
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((100, 100)))
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    central = raw.rfind(b"PK\x01\x02")
    raw[central + 24 : central + 28] = (2**31).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(bytes(raw))
    with contextlib.suppress(ReadError):
        assert load_array(tmp_path / "a.npz", "x").nbytes == 80_000


def test_what_does_not_fit_into_memory_is_refused_before(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.zeros((100, 100)))
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    with pytest.raises(ResourceError, match=r"more than half of the 0\.0 GiB of this machine"):
        read_npz(tmp_path / "a.npy")


def test_no_image_is_said_so(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(5))
    with pytest.raises(ReadError, match=r"shape \(5,\) is no image"):
        read_npz(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros((5, 7), complex))
    with pytest.raises(ReadError, match="values of type complex128"):
        read_npz(tmp_path / "b.npy")


def test_an_archive_of_a_million_entries_is_refused_before_it_is_listed(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((5, 7)))
    raw = (tmp_path / "a.npz").read_bytes()
    end = raw.index(b"PK\x05\x06")
    start = int.from_bytes(raw[end + 16 : end + 20], "little")
    body = raw[start:end] * 700_000  # 40 MB of directory
    record = b"PK\x06\x06" + (44).to_bytes(8, "little") + bytes([45, 0, 45, 0]) + bytes(8)
    for value in (10**6, 10**6, len(body), start):
        record += value.to_bytes(8, "little")
    where = b"PK\x06\x07" + bytes(4) + (start + len(body)).to_bytes(8, "little") + (1).to_bytes(4, "little")
    tail = b"PK\x05\x06" + bytes(4) + b"\xff" * 12 + bytes(2)
    (tmp_path / "a.npz").write_bytes(raw[:start] + body + record + where + tail)
    with pytest.raises(ReadError, match="declares 1,000,000 entries; at most 200,000"):
        read_npz(tmp_path / "a.npz")


def test_values_beyond_32_bits_are_infinite(tmp_path):
    np.save(tmp_path / "a.npy", np.full((5, 7), 1e300))
    assert np.isinf(read_npz(tmp_path / "a.npy").data).all()
