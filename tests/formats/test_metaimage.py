"""MetaImage: values and place as ITK, which made the format, reads them."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagittal.errors import GeometryError, ReadError
from sagittal.formats.metaimage import read_metaimage
from sagittal.formats.open_image import data_files, read_image

sitk = pytest.importorskip("SimpleITK")

VALUES = np.arange(24, dtype="<i2").reshape(4, 3, 2)  # (K, J, I)
PLACE = {"TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "10 20 30", "ElementSpacing": "2 3 4"}


def write(path, body=None, **fields):
    """A MetaImage of 2 x 3 x 4 int16 voxels, or of other fields and bytes; ``None`` leaves a field out."""
    given = {"ObjectType": "Image", "NDims": 3, "DimSize": "2 3 4", "ElementType": "MET_SHORT", **fields}
    file = given.pop("ElementDataFile", "LOCAL")
    text = "".join(f"{name} = {value}\n" for name, value in given.items() if value is not None)
    path.write_bytes(f"{text}ElementDataFile = {file}\n".encode() + (VALUES.tobytes() if body is None else body))
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numbers=st.lists(st.floats(-1, 1), min_size=9, max_size=9),
    spacing=st.lists(st.floats(0.05, 9), min_size=3, max_size=3),
    origin=st.lists(st.floats(-500, 500), min_size=3, max_size=3),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    kind=st.sampled_from(
        ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
    ),
    channels=st.sampled_from([1, 3]),
    packed=st.booleans(),
    suffix=st.sampled_from([".mha", ".mhd"]),
)
def test_values_and_place_are_those_of_itk(tmp_path, numbers, spacing, origin, shape, kind, channels, packed, suffix):
    turned, _ = np.linalg.qr(np.array(numbers).reshape(3, 3) + 2 * np.eye(3))
    values = (np.random.default_rng(0).random((*shape, channels)) * 100).astype(kind)
    image = sitk.GetImageFromArray(values if channels > 1 else values[..., 0], isVector=channels > 1)
    image.SetDirection(turned.ravel().tolist())
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"), useCompression=packed)
    ours = read_metaimage(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(ours.data, values.transpose(3, 2, 1, 0).astype(np.float32))
    back = sitk.ReadImage(str(tmp_path / f"a{suffix}"))
    for index in [(0, 0, 0), (1, 2, 3), (-5, 4, 9)]:
        place = ours.grid.affine @ [*index, 1]
        np.testing.assert_allclose(place[:3], back.TransformContinuousIndexToPhysicalPoint(index), atol=1e-6)


def test_a_picture_of_two_axes_keeps_its_pixel_size(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(12, dtype=np.uint8).reshape(3, 4)), str(tmp_path / "a.mha"))
    image = read_metaimage(tmp_path / "a.mha")
    assert (image.grid.shape, image.grid.affine) == ((4, 3, 1), None)
    np.testing.assert_array_equal(image.grid.spacing, [1, 1, np.nan])
    np.testing.assert_array_equal(image.data[0, :, :, 0], np.arange(12).reshape(3, 4).T)


def test_a_fourth_axis_becomes_channels(tmp_path):
    volumes = [sitk.GetImageFromArray(np.full((4, 3, 2), n, np.int16)) for n in range(5)]
    for volume in volumes:
        volume.SetSpacing((2, 3, 4))
        volume.SetOrigin((10, 20, 30))
    sitk.WriteImage(sitk.JoinSeries(volumes), str(tmp_path / "a.mha"))
    image = read_metaimage(tmp_path / "a.mha")
    assert image.data[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(image.grid.affine @ [1, 1, 1, 1], [12, 23, 34, 1])


def test_the_centre_of_rotation_moves_nothing(tmp_path):
    fields = {**PLACE, "TransformMatrix": "0 1 0 -1 0 0 0 0 1"}
    path = write(tmp_path / "a.mha", **fields, CenterOfRotation="7 8 9", BinaryData="True")
    back = sitk.ReadImage(str(path))
    place = read_metaimage(path).grid.affine @ [1, 2, 3, 1]
    np.testing.assert_allclose(place[:3], back.TransformIndexToPhysicalPoint((1, 2, 3)))
    np.testing.assert_allclose(place[:3], [10 - 6, 20 + 2, 30 + 12])


@pytest.mark.parametrize("missing", ["Offset", "TransformMatrix", "ElementSpacing"])
def test_what_is_not_stated_is_not_guessed(tmp_path, missing):
    fields = {**PLACE, missing: None, "AnatomicalOrientation": "RAI"}
    grid = read_metaimage(write(tmp_path / "a.mha", **fields)).grid
    assert grid.affine is None
    if missing == "ElementSpacing":
        assert grid.spacing is None
    else:
        assert grid.spacing.tolist() == [2, 3, 4]


def test_older_names_of_the_fields_and_comments(tmp_path):
    fields = {"Comment": "by hand", "Rotation": "1 0 0 0 1 0 0 0 1", "Position": "10 20 30", "ElementSize": "2 3 4"}
    image = read_metaimage(write(tmp_path / "a.mha", **fields, Modality="MET_MOD_CT"))
    np.testing.assert_array_equal(image.grid.affine @ [1, 1, 1, 1], [12, 23, 34, 1])
    assert image.modality == "CT"


def test_big_endian_compressed_text_and_header_sizes(tmp_path):
    big = write(tmp_path / "a.mha", VALUES.astype(">i2").tobytes(), BinaryDataByteOrderMSB="True")
    packed = write(tmp_path / "b.mha", zlib.compress(VALUES.tobytes()), CompressedData="True")
    text = write(tmp_path / "c.mha", " ".join(map(str, VALUES.ravel())).encode(), BinaryData="False")
    (tmp_path / "d.raw").write_bytes(b"12345" + VALUES.tobytes())
    skipped = write(tmp_path / "d.mhd", b"", HeaderSize=5, ElementDataFile="d.raw")
    last = write(tmp_path / "e.mhd", b"", HeaderSize=-1, ElementDataFile="d.raw")
    for path in (big, packed, text, skipped, last):
        np.testing.assert_array_equal(read_image(path).data[0], VALUES.T)
    assert data_files(skipped) == (skipped, tmp_path / "d.raw")
    assert data_files(big) == (big,)


@pytest.mark.parametrize(
    ("fields", "body", "message"),
    [
        ({"DimSize": "2 3 400"}, None, "declares 4,800 bytes, but the file holds 48"),
        ({"DimSize": "99999999 99999999 99999999"}, None, "at most 1,073,741,824 are read"),
        ({"ElementNumberOfChannels": 10**9}, None, "at most 1,073,741,824 are read"),
        ({"ElementNumberOfChannels": 0}, None, "every extent must be at least 1"),
        ({"DimSize": "2 3 -4"}, None, "every extent must be at least 1"),
        ({"DimSize": "2 3"}, None, "declares 3 axes, but 2 sizes"),
        ({"DimSize": "2 3 4.5"}, None, "DimSize holds something else"),
        ({"DimSize": "2 3 inf"}, None, "DimSize holds something else"),
        ({"NDims": 9}, None, "declares 9 axes"),
        ({"NDims": None}, None, "does not state NDims"),
        ({"ElementType": "MET_STRING"}, None, "values of this ElementType are not read"),
        ({"CompressedData": "perhaps"}, None, "neither True nor False"),
        ({"CompressedData": "True"}, b"nonsense", "damaged or cut off"),
        ({"CompressedData": "True"}, zlib.compress(VALUES.tobytes())[:-9], "cut off"),
        ({"CompressedData": "True", "DimSize": "999 999 999"}, zlib.compress(bytes(48)), "damaged or cut off"),
        ({**PLACE, "ElementSpacing": "2 3 0"}, None, "positive lengths"),
        ({**PLACE, "ElementSpacing": "2 3 nan"}, None, "positive lengths"),
        ({**PLACE, "Offset": "1 2"}, None, "must hold 3 numbers, not 2"),
        ({**PLACE, "Offset": "1 2 inf"}, None, "not finite"),
        ({**PLACE, "TransformMatrix": "1 0 0 1 0 0 0 0 1"}, None, "onto a plane or line"),
        ({"ElementDataFile": "../a.raw"}, None, "only a file beside the header"),
        ({"ElementDataFile": "/etc/passwd"}, None, "only a file beside the header"),
        ({"ElementDataFile": "LIST"}, None, "several files"),
        ({"ElementDataFile": "a%03d.raw 1 4 1"}, None, "several files"),
        ({"ElementDataFile": "none.raw"}, None, "does not lie beside it"),
        ({"HeaderSize": -7, "ElementDataFile": "a.mha"}, None, "HeaderSize leads past"),
    ],
)  # fmt: skip
def test_damaged_and_absurd_headers(tmp_path, fields, body, message):
    with pytest.raises((ReadError, GeometryError), match=message):
        read_metaimage(write(tmp_path / "a.mha", body, **fields))


def test_headers_that_are_none(tmp_path):
    for text, message in (
        (b"ObjectType = Image\nNDims = 3\n", "no ElementDataFile"),
        (b"\xff\xfe" * 99, "no field|no ElementDataFile"),
        (b"NDims = 3\nNDims = 3\n", "twice"),
        (b"Comment = " + b"x" * 2**21, "no ElementDataFile"),
    ):
        (tmp_path / "a.mha").write_bytes(text)
        with pytest.raises(ReadError, match=message):
            read_metaimage(tmp_path / "a.mha")
