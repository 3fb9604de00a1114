"""NRRD: every way in which the format says where its values are and lie, against independent readers."""

from __future__ import annotations

import bz2
import gzip

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagittal.errors import GeometryError, ReadError, ResourceError
from sagittal.formats.nrrd import load_nrrd, read_nrrd
from sagittal.formats.open_image import data_files, read_image
from sagittal.formats.seg_nrrd import read_seg_nrrd

pynrrd = pytest.importorskip("nrrd")
sitk = pytest.importorskip("SimpleITK")

LPS = "space: left-posterior-superior\nspace directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (10,20,30)\n"
VALUES = np.arange(24, dtype="<i2").reshape(4, 3, 2)  # (K, J, I)


def write(path, fields, body=None, *, first="NRRD0004"):
    """An NRRD of 2 x 3 x 4 int16 voxels, or of other fields and bytes."""
    given = {"type": "short", "dimension": "3", "sizes": "2 3 4", "endian": "little", "encoding": "raw"}
    text = ""
    for line in fields.splitlines():
        name, mark, value = line.partition(": ")
        if mark and name in given:
            given[name] = value
        else:
            text += line + "\n"
    head = "".join(f"{name}: {value}\n" for name, value in given.items() if value)
    path.write_bytes(f"{first}\n{head}{text}\n".encode() + (VALUES.tobytes() if body is None else body))
    return path


@st.composite
def grids(draw):
    """Rotation, spacing and origin of a tilted, anisotropic grid."""
    numbers = st.floats(-1, 1)
    turned, _ = np.linalg.qr(np.array(draw(st.lists(numbers, min_size=9, max_size=9))).reshape(3, 3) + 2 * np.eye(3))
    spacing = draw(st.lists(st.floats(0.05, 9), min_size=3, max_size=3))
    origin = draw(st.lists(st.floats(-500, 500), min_size=3, max_size=3))
    return turned, spacing, origin


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    grid=grids(),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    kind=st.sampled_from(
        ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
    ),
    channels=st.sampled_from([1, 3]),
    packed=st.booleans(),
    suffix=st.sampled_from([".nrrd", ".nhdr"]),
)
def test_values_and_place_are_those_of_itk(tmp_path, grid, shape, kind, channels, packed, suffix):
    turned, spacing, origin = grid
    values = (np.random.default_rng(0).random((*shape, channels)) * 100).astype(kind)  # (K, J, I, C)
    image = sitk.GetImageFromArray(values if channels > 1 else values[..., 0], isVector=channels > 1)
    image.SetDirection(turned.ravel().tolist())
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"), useCompression=packed)
    ours = read_nrrd(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(ours.data, values.transpose(3, 2, 1, 0).astype(np.float32))
    back = sitk.ReadImage(str(tmp_path / f"a{suffix}"))
    for index in [(0, 0, 0), (1, 2, 3), (-5, 4, 9)]:
        place = ours.grid.affine @ [*index, 1]
        np.testing.assert_allclose(place[:3], back.TransformContinuousIndexToPhysicalPoint(index), atol=1e-6)


@pytest.mark.parametrize(
    ("space", "signs"), [("RAS", [-1, -1, 1]), ("left-anterior-superior", [1, -1, 1]), ("LPS", [1, 1, 1])]
)
def test_other_spaces_become_lps(tmp_path, space, signs):
    path = write(tmp_path / "a.nrrd", LPS.replace("left-posterior-superior", space))
    np.testing.assert_array_equal(read_nrrd(path).grid.affine[:3, :3], np.diag([2, 3, 4]) * signs)
    np.testing.assert_array_equal(read_nrrd(path).grid.affine[:3, 3], np.array([10, 20, 30]) * signs)


def test_a_volume_of_pynrrd_in_each_encoding(tmp_path):
    values = np.random.default_rng(1).integers(-9, 9, (2, 3, 4)).astype(np.int16)
    for encoding in ("raw", "gzip", "bzip2", "ascii"):
        header = {
            "space": "RAS",
            "space directions": np.diag([2.0, 3, 4]),
            "space origin": [1, 2, 3],
            "encoding": encoding,
        }
        pynrrd.write(str(tmp_path / f"{encoding}.nrrd"), values, header)
        pynrrd.write(str(tmp_path / f"{encoding}.nhdr"), values, header)
        for suffix in ("nrrd", "nhdr"):
            np.testing.assert_array_equal(load_nrrd(tmp_path / f"{encoding}.{suffix}").data[0], values)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_channels_may_stand_anywhere(tmp_path, at):
    vectors = ["(2,0,0)", "(0,3,0)", "(0,0,4)"]
    vectors.insert(at, "none")
    sizes = [2, 3, 4]
    sizes.insert(at, 5)
    values = np.arange(120, dtype="<i2").reshape(sizes, order="F")
    text = f"dimension: 4\nsizes: {' '.join(map(str, sizes))}\nspace: LPS\nspace directions: {' '.join(vectors)}\nspace origin: (0,0,0)\n"
    image = read_nrrd(write(tmp_path / "a.nrrd", text, values.tobytes(order="F")))
    np.testing.assert_array_equal(image.data, np.moveaxis(values, at, 0))
    assert image.grid.spacing.tolist() == [2, 3, 4]


def test_a_colour_axis_is_told_by_its_kind_alone(tmp_path):
    text = "dimension: 3\nsizes: 3 2 4\nkinds: RGB-color domain domain\nspacings: nan 0.5 0.25\n"
    image = read_nrrd(write(tmp_path / "a.nrrd", text))
    assert image.data.shape == (3, 2, 4, 1)
    np.testing.assert_array_equal(image.grid.spacing, [0.5, 0.25, np.nan])
    np.testing.assert_array_equal(image.data[:, 1, 2, 0], VALUES.ravel()[[15, 16, 17]])


def test_what_gives_no_position_gets_none(tmp_path):
    for text, spacing in (
        ("spacings: 2 3 4\n", [2, 3, 4]),
        ("spacings: 2 3 0\n", [2, 3, np.nan]),
        (LPS.replace("space origin: (10,20,30)\n", ""), [2, 3, 4]),
        (LPS.replace("left-posterior-superior", "scanner-xyz"), [2, 3, 4]),
        (LPS.replace("space: left-posterior-superior", "space dimension: 3"), [2, 3, 4]),
    ):
        grid = read_nrrd(write(tmp_path / "a.nrrd", text)).grid
        assert grid.affine is None
        np.testing.assert_array_equal(grid.spacing, spacing)
    grid = read_nrrd(write(tmp_path / "a.nrrd", "")).grid
    assert (grid.affine, grid.spacing) == (None, None)


def test_one_slice_in_space_keeps_its_pixel_size_only(tmp_path):
    text = "dimension: 2\nsizes: 6 4\nspace: LPS\nspace directions: (0,2,0) (0,0,3)\nspace origin: (1,2,3)\n"
    grid = read_nrrd(write(tmp_path / "a.nrrd", text)).grid
    assert (grid.shape, grid.affine) == ((6, 4, 1), None)
    np.testing.assert_array_equal(grid.spacing, [2, 3, np.nan])


def test_units_of_space_are_brought_to_millimetres(tmp_path):
    path = write(tmp_path / "a.nrrd", LPS + 'space units: "cm" "cm" "cm"\n')
    np.testing.assert_array_equal(read_nrrd(path).grid.affine[:3, 3], [100, 200, 300])
    path = write(tmp_path / "a.nrrd", LPS + 'space units: "mm" "mm" "furlong"\n')
    with pytest.raises(GeometryError, match="not one known unit of length"):
        read_nrrd(path)


def test_big_endian_comments_keys_and_skips(tmp_path):
    body = b"line one\nline two\nxyz" + VALUES.astype(">i2").tobytes()
    text = "# a comment\nendian: big\nline skip: 2\nbyte skip: 3\nmodality:=CT: dual\n"
    nrrd = load_nrrd(write(tmp_path / "a.nrrd", text, body))
    np.testing.assert_array_equal(nrrd.data[0], VALUES.T)
    assert nrrd.keys == {"modality": "CT: dual"}
    (tmp_path / "b.raw").write_bytes(b"anything" + VALUES.tobytes())
    nrrd = load_nrrd(write(tmp_path / "b.nhdr", "byte skip: -1\ndata file: b.raw\n", b""))
    np.testing.assert_array_equal(nrrd.data[0], VALUES.T)
    packed = gzip.compress(b"xyz" + VALUES.tobytes(), mtime=0)
    nrrd = load_nrrd(write(tmp_path / "c.nrrd", "encoding: gzip\nbyte skip: 3\n", packed))
    np.testing.assert_array_equal(nrrd.data[0], VALUES.T)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../a.raw", "only a file beside the header"),
        ("/etc/passwd", "only a file beside the header"),
        ("sub/a.raw", "only a file beside the header"),
        ("sub\\a.raw", "only a file beside the header"),
        ("C:a.raw", "only a file beside the header"),
        ("..", "only a file beside the header"),
        ("LIST", "several files"),
        ("a%02d.raw 1 4 1", "several files"),
        ("none.raw", "does not lie beside it"),
        ("link.raw", "a link to another place"),
        ("n" * 300, "cannot be opened|does not lie beside"),
    ],
)
def test_data_elsewhere_are_refused(tmp_path, name, message):
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    for place in (tmp_path, home / "sub"):
        (place / "a.raw").write_bytes(VALUES.tobytes())
    (home / "link.raw").symlink_to(tmp_path / "a.raw")
    with pytest.raises(ReadError, match=message):
        read_nrrd(write(home / "a.nhdr", f"data file: {name}\n", b""))


def test_a_detached_header_names_its_data_beside_it(tmp_path):
    (tmp_path / "a.raw").write_bytes(VALUES.tobytes())
    path = write(tmp_path / "a.nhdr", LPS + "data file: ./a.raw\n", b"")
    np.testing.assert_array_equal(read_image(path).data[0], VALUES.T)
    assert data_files(path) == (path, tmp_path / "a.raw")
    assert data_files(write(tmp_path / "b.nrrd", LPS)) == (tmp_path / "b.nrrd",)


@pytest.mark.parametrize(
    ("text", "body", "message"),
    [
        ("sizes: 2 3 400\n", None, "declares 4,800 bytes, but the file holds 48"),
        ("sizes: 99999999 99999999 99999999\n", None, "at most 1,073,741,824 are read"),
        ("sizes: 2 3 0\n", None, "every extent must be at least 1"),
        ("sizes: 2 3 -4\n", None, "every extent must be at least 1"),
        ("sizes: 2 3\n", None, "declares 3 axes, but 2 sizes"),
        ("sizes: 2 3 x\n", None, "something else than whole numbers"),
        ("dimension: 99\n", None, "declares 99 axes"),
        ("type: block\n", None, "values of this type are not read"),
        ("encoding: hex\n", None, "encoding are not read"),
        ("endian: \n", None, "little or big endian"),
        ("encoding: gzip\n", b"nonsense", "damaged or cut off"),
        ("encoding: bzip2\n", b"nonsense", "damaged or cut off"),
        ("encoding: gzip\n", gzip.compress(VALUES.tobytes(), mtime=0)[:-20], "cut off"),
        ("encoding: bzip2\n", bz2.compress(VALUES.tobytes())[:-9], "cut off"),
        ("encoding: gzip\n", gzip.compress(VALUES.tobytes()[:40], mtime=0), "8 of 48 bytes are missing"),
        ("encoding: ascii\n", b"1 2 3", "declares 24 numbers, but the file holds 5|21 of 24"),
        ("encoding: ascii\n", b"1 2 x " * 8, "no number of the declared type"),
        ("encoding: gzip\nbyte skip: -1\n", None, "raw values only"),
        ("byte skip: -5\n", None, "leads past the file"),
        ("line skip: 99999999999\n", None, "leads past the file"),
        ("space: LPS\nspace directions: (1,0,0) (1,0,0) (0,0,1)\nspace origin: (0,0,0)\n", None, "onto a plane or line"),
        ("space: LPS\nspace directions: (1,0,0) (0,nan,0) (0,0,1)\nspace origin: (0,0,0)\n", None, "not finite"),
        ("space: LPS\nspace directions: (1,0,0) (0,1,0)\n", None, "3 vectors is expected"),
        ("space: LPS\nspace directions: (1,0,0) (0,1,0) (0,x,1)\n", None, "else than numbers"),
        ("spacings: 1 2\n", None, "3 axes, but 2 spacings"),
        ("kinds: domain list list\n", None, "1 of its 3 axes lie in space"),
        ("nonsense\n", None, "neither a field nor a key"),
        ("content: a\ncontent: b\n", None, "twice"),
    ],
)  # fmt: skip
def test_damaged_and_absurd_headers(tmp_path, text, body, message):
    with pytest.raises((ReadError, GeometryError), match=message):
        read_nrrd(write(tmp_path / "a.nrrd", text, body))


def test_a_bomb_is_unpacked_no_further_than_declared(tmp_path, monkeypatch):
    bomb = gzip.compress(bytes(2**24), mtime=0)
    image = read_nrrd(write(tmp_path / "a.nrrd", "encoding: gzip\n", bomb))
    assert image.data.size == 24
    monkeypatch.setattr("os.sysconf", lambda name: 1000)
    with pytest.raises(ResourceError, match="more than half"):
        read_nrrd(write(tmp_path / "b.nrrd", "sizes: 200 200 200\nencoding: bzip2\n", bz2.compress(bytes(2**24))))


@pytest.mark.parametrize("packing", ["gzip", "bzip2"])
def test_no_changed_byte_of_a_packed_part_changes_a_value_unseen(tmp_path, packing):
    packed = gzip.compress(VALUES.tobytes(), mtime=0) if packing == "gzip" else bz2.compress(VALUES.tobytes())
    refused = 0
    for at in range(len(packed)):
        damaged = bytearray(packed)
        damaged[at] ^= 0x55
        path = write(tmp_path / "a.nrrd", f"encoding: {packing}\n", bytes(damaged))
        try:
            np.testing.assert_array_equal(load_nrrd(path).data[0], VALUES.T)
        except ReadError:
            refused += 1
    assert refused > len(packed) * 0.7


def test_no_message_names_the_file_or_its_text(tmp_path):
    path = write(tmp_path / "Secret^Name.nrrd", "content: Secret^Name\nsizes: 2 3 400\n")
    with pytest.raises(ReadError) as caught:
        read_nrrd(path)
    assert "Secret" not in str(caught.value)


def segmented(path, layers=1, **keys):
    values = np.zeros((layers, 2, 3, 4), np.uint8)
    values[0, 1, 2, 3], values[0, 0, 0, 0], values[layers - 1, 1, 1, 1] = 1, 2, 1
    sizes = f"{layers} 2 3 4" if layers > 1 else "2 3 4"
    text = f"type: uchar\ndimension: {4 if layers > 1 else 3}\nsizes: {sizes}\nspace: LPS\n"
    vectors = "none " * (layers > 1) + "(2,0,0) (0,3,0) (0,0,4)"
    text += f"space directions: {vectors}\nspace origin: (0,0,0)\nkinds: {'list ' * (layers > 1)}domain domain domain\n"
    text += "".join(f"{key}:={value}\n" for key, value in keys.items())
    return write(path, text, values.tobytes(order="F"))


def test_a_slicer_segmentation_keeps_layers_names_and_codes(tmp_path):
    tags = (
        "Segmentation.Status:done|TerminologyEntry:Segmentation category and type~SCT^123037004^Anatomical Structure"
        "~SCT^10200004^Liver~^^~Anatomic codes~^^~^^|"
    )
    keys = {
        "Segment0_ID": "Segment_1", "Segment0_Name": "liver", "Segment0_Layer": 0, "Segment0_LabelValue": 1,
        "Segment0_Tags": tags, "Segment0_Extent": "1 1 2 2 3 3",
        "Segment1_Name": "lesion", "Segment1_Layer": 0, "Segment1_LabelValue": 2,
        "Segment2_Name": "lesion", "Segment2_Layer": 1, "Segment2_LabelValue": 1, "Segmentation_MasterRepresentation": "B",
    }  # fmt: skip
    found = read_seg_nrrd(segmented(tmp_path / "a.seg.nrrd", 2, **keys))
    assert [(s.name, s.code, s.layer) for s in found.structures] == [
        ("liver", "SCT:10200004", 0), ("lesion", "", 0), ("lesion 2", "", 1),
    ]  # fmt: skip
    assert np.argwhere(found.mask("liver")).tolist() == [[1, 2, 3]]
    assert np.argwhere(found.mask("lesion")).tolist() == [[0, 0, 0]]
    assert np.argwhere(found.mask("lesion 2")).tolist() == [[1, 1, 1]]
    assert found.grid.spacing.tolist() == [2, 3, 4]


def test_older_segmentations_have_a_layer_for_each_segment(tmp_path):
    path = tmp_path / "a.seg.nrrd"
    keys = {"Segment0_Name": "left", "Segment1_Name": "right"}
    write(path, "type: uchar\ndimension: 4\nsizes: 2 2 2 2\nspace: LPS\nspace directions: none (1,0,0) (0,1,0) (0,0,1)\n"
          "space origin: (0,0,0)\n" + "".join(f"{k}:={v}\n" for k, v in keys.items()), bytes([1, 0] * 4 + [0, 1] * 4))  # fmt: skip
    found = read_seg_nrrd(path)
    assert found.mask("left").sum(axis=(0, 1)).tolist() == [4, 0]
    assert found.mask("right").sum(axis=(0, 1)).tolist() == [0, 4]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "describes no segments"),
        (
            {"Segment0_Name": "a", "Segment0_LabelValue": 1, "Segment0_Layer": 0},
            r"values \[2\], which no segment names",
        ),
        ({"Segment0_Name": "a", "Segment0_LabelValue": 1, "Segment0_Layer": 7}, "there are 1 layers"),
        ({"Segment0_Name": "a", "Segment0_LabelValue": "x"}, "no whole number"),
    ],
)
def test_a_segmentation_that_says_too_little_is_refused(tmp_path, keys, message):
    with pytest.raises(ReadError, match=message):
        read_seg_nrrd(segmented(tmp_path / "a.seg.nrrd", **keys))
