"""What every reader keeps: the place of each voxel in the patient, and a clear refusal of every damaged form."""

from __future__ import annotations

import gzip
import shutil
import struct
import zlib

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image as Pictures

from sagittal.errors import ReadError, SagittalError
from sagittal.formats.dicom import read_dicom_series
from sagittal.formats.open_image import read_image
from sagittal.read.sources import file_source, make_mask_source, make_source, series_source

ROWS, COLUMNS, SLICES = 9, 7, 4
DEPTHS = [0.0, 3.0, 6.0, 9.0]
#: The tilted plane of the phantoms: rows and columns of ImageOrientationPatient, 0.5 mm along i, 0.7 along j, 3 along k.
ROW, COLUMN = np.array([0.8, 0.36, 0.48]), np.array([-0.6, 0.48, 0.64])
AFFINE = np.eye(4)
AFFINE[:3, :3] = np.stack([ROW * 0.5, COLUMN * 0.7, np.cross(ROW, COLUMN) * 3.0], axis=1)
AFFINE[:3, 3] = [10, -20, 30]
#: (I, J, K), every voxel another value
VOLUME = np.arange(COLUMNS * ROWS * SLICES, dtype=np.int16).reshape(COLUMNS, ROWS, SLICES)
SECRET = "Secret^Name^1950"
PATIENT = {
    "PatientBirthDate": "", "PatientSex": "", "AccessionNumber": "", "StudyID": "", "StudyDate": "", "StudyTime": "",
    "ReferringPhysicianName": "", "SeriesNumber": 1, "SliceThickness": 3, "FrameOfReferenceUID": "1.2.3.4.9",
    "RescaleIntercept": 0, "RescaleSlope": 1,
}  # fmt: skip


def numbers(values):
    return " ".join(repr(float(v)) for v in np.ravel(values))


def nrrd_header(data=""):
    vectors = " ".join(f"({','.join(repr(float(v)) for v in AFFINE[:3, axis])})" for axis in range(3))
    return (
        f"NRRD0004\ntype: short\ndimension: 3\nsizes: {COLUMNS} {ROWS} {SLICES}\nendian: little\nencoding: raw\n"
        f"space: LPS\nspace directions: {vectors}\nspace origin: (10,-20,30)\n{data}\n"
    ).encode()


def meta_header(data):
    spacing = np.linalg.norm(AFFINE[:3, :3], axis=0)
    return (
        f"ObjectType = Image\nNDims = 3\nTransformMatrix = {numbers((AFFINE[:3, :3] / spacing).T)}\nOffset = 10 -20 30\n"
        f"ElementSpacing = {numbers(spacing)}\nDimSize = {COLUMNS} {ROWS} {SLICES}\nElementType = MET_SHORT\n"
        f"ElementDataFile = {data}\n"
    ).encode()


RAW = VOLUME.tobytes(order="F")


@pytest.fixture
def placed(tmp_path, write_series):
    """A source of the phantom in each format that has a place, by name."""
    stored = np.ascontiguousarray(VOLUME.transpose(2, 1, 0))
    series = write_series("ct", stored, DEPTHS, **PATIENT)
    ras = np.diag([-1.0, -1, 1, 1]) @ AFFINE
    for name in ("a.nii", "a.nii.gz"):
        nib.save(nib.Nifti1Image(VOLUME, ras), tmp_path / name)
    nib.save(nib.Nifti2Image(VOLUME, ras), tmp_path / "b.nii")
    (tmp_path / "a.nrrd").write_bytes(nrrd_header() + RAW)
    (tmp_path / "a.nhdr").write_bytes(nrrd_header("data file: a.raw\n"))
    (tmp_path / "a.mha").write_bytes(meta_header("LOCAL") + RAW)
    (tmp_path / "a.mhd").write_bytes(meta_header("a.raw"))
    (tmp_path / "a.raw").write_bytes(RAW)
    archive = shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path, "ct")
    zipped = {"members": [f"ct/{path.name}" for path in series], "way": "series", "options": {}}
    found = {path.name: file_source("x", path) for path in tmp_path.glob("[ab].*") if path.suffix != ".raw"}
    found["series"] = series_source("x", series)
    found["zip"] = make_source("x", "zip", (tmp_path / archive,), zipped)
    return found


NAMES = ["a.nii", "a.nii.gz", "b.nii", "a.nrrd", "a.nhdr", "a.mha", "a.mhd", "series", "zip"]


@pytest.mark.parametrize("name", NAMES)
def test_each_value_keeps_its_place_in_the_patient(placed, name):
    image = placed[name].load()
    assert set(placed) == set(NAMES)
    for value in (0, 1, COLUMNS, 77, VOLUME.size - 1):
        there = np.argwhere(image.data[0] == value)
        assert len(there) == 1
        place = (image.grid.affine @ [*there[0], 1])[:3]
        expected = (AFFINE @ [*np.argwhere(value == VOLUME)[0], 1])[:3]
        np.testing.assert_allclose(place, expected, atol=1e-3)
    np.testing.assert_array_equal(np.sort(image.data.ravel()), np.arange(VOLUME.size))
    assert image.data.dtype == np.float32
    np.testing.assert_allclose(image.grid.spacing, [0.5, 0.7, 3], atol=1e-5)


def test_masks_keep_their_place_too(tmp_path, placed, write_seg, write_rtstruct):
    images = sorted((tmp_path / "ct").glob("*.dcm"))
    labels = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
    labels[1, 2:5, 3] = 1
    order = np.argsort([pydicom.dcmread(p).InstanceNumber for p in images])
    images = [images[n] for n in order]
    seg = write_seg(tmp_path / "seg.dcm", images, labels, names=("a",))
    box = [[[2.5, 1.5, 1], [3.5, 1.5, 1], [3.5, 4.5, 1], [2.5, 4.5, 1]]]
    rt = write_rtstruct(tmp_path / "rt.dcm", images, {"a": box})
    text = nrrd_header("Segment0_Name:=a\nSegment0_LabelValue:=1\nSegment0_Layer:=0\n")
    (tmp_path / "a.seg.nrrd").write_bytes(text + labels.transpose(2, 1, 0).astype(np.int16).tobytes(order="F"))
    expected = AFFINE @ [3, 3, 1, 1]
    for way, files in (
        ("dicom_seg", (seg, *images)), ("dicom_seg", (seg,)), ("rtstruct", (rt, *images)),
        ("seg_nrrd", (tmp_path / "a.seg.nrrd",)),
    ):  # fmt: skip
        found = make_mask_source("x", way, files).load()
        inside = np.argwhere(found.mask("a"))
        assert len(inside) == 3
        place = found.grid.affine @ [*inside.mean(axis=0), 1]
        np.testing.assert_allclose(place, expected, atol=1e-3)


@pytest.fixture
def flat(tmp_path):
    """The files of formats without place, and one of each kind that has one, under a name that must not be told."""
    pixels = np.random.default_rng(0).integers(0, 255, (60, 70), dtype=np.uint8)
    home = tmp_path / SECRET
    home.mkdir()
    for suffix in ("png", "tif", "bmp", "jpg", "webp"):
        Pictures.fromarray(pixels).save(home / f"{SECRET}.{suffix}")
    np.save(home / f"{SECRET}.npy", pixels)
    np.savez_compressed(home / f"{SECRET}.npz", pixels)
    nib.save(nib.Nifti1Image(VOLUME, np.eye(4)), home / f"{SECRET}.nii")
    (home / f"{SECRET}.nii.gz").write_bytes(gzip.compress((home / f"{SECRET}.nii").read_bytes()))
    (home / f"{SECRET}.nrrd").write_bytes(nrrd_header() + RAW)
    (home / f"{SECRET}.mha").write_bytes(meta_header("LOCAL") + RAW)
    (home / f"{SECRET}.nhdr").write_bytes(nrrd_header(f"data file: {SECRET}.raw\n"))
    (home / f"{SECRET}.mhd").write_bytes(meta_header(f"{SECRET}.raw"))
    (home / f"{SECRET}.raw").write_bytes(RAW)
    return home


@pytest.fixture
def dicom(flat, write_slice):
    """The same folder with a DICOM file and a compressed one."""
    rng = np.random.default_rng(1)
    write_slice(f"{SECRET}/{SECRET}.dcm", rng.integers(0, 99, (30, 40)).astype(np.int16), PatientName=SECRET)
    header = pydicom.dcmread(flat / f"{SECRET}.dcm")
    header.compress(pydicom.uid.RLELossless)
    header.save_as(flat / f"{SECRET}.ima")
    return flat


SUFFIXES = [
    "png",
    "tif",
    "bmp",
    "jpg",
    "webp",
    "npy",
    "npz",
    "nii",
    "nii.gz",
    "nrrd",
    "mha",
    "nhdr",
    "mhd",
    "dcm",
    "ima",
]


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "jpg", "webp", "npy", "npz"])
def test_what_states_no_place_gets_none(flat, suffix):
    grid = read_image(flat / f"{SECRET}.{suffix}").grid
    assert (grid.shape, grid.affine, grid.spacing) == ((70, 60, 1), None, None)


def refused(path, match=None):
    """The error of a file; its text must not tell the file's name, its folder's or the patient's."""
    with pytest.raises(SagittalError, match=match) as caught:
        read_image(path)
    assert isinstance(caught.value, ValueError)
    assert not any(word in str(caught.value) for word in ("Secret", "1950", str(path.parent)))
    return caught.value


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_forms_are_refused_without_a_name(dicom, suffix):
    path = dicom / f"{SECRET}.{suffix}"
    assert read_image(path).data.size
    raw = path.read_bytes()
    holds = dicom / f"{SECRET}.raw" if suffix in {"nhdr", "mhd"} else path  # where the values are
    whole = holds.read_bytes()
    for fraction in (0.9, 0.5, 0.1):
        holds.write_bytes(whole[: int(len(whole) * fraction)])
        error = refused(path)
        assert isinstance(error, ReadError), f"{suffix} cut to {fraction}: {error}"
    holds.write_bytes(b"")
    refused(path, "0 bytes")
    holds.write_bytes(whole)
    for content in (b"\0", b"\0" * 5000, b"\xff" * 5000, b"<html>not an image at all</html>" * 40, raw[:4]):
        path.write_bytes(content)
        assert isinstance(refused(path), ReadError), f"{suffix}: {content[:8]!r}"
    path.unlink()
    refused(path, "does not exist")
    path.mkdir()
    refused(path, "is not a file")


def patch(path, find, replace):
    raw = path.read_bytes()
    assert raw.count(find) >= 1
    path.write_bytes(raw.replace(find, replace, 1))


@pytest.mark.parametrize("suffix", ["png", "bmp", "npy", "nii", "nrrd", "mha", "dcm", "tif", "webp"])
def test_absurd_dimensions_are_refused_before_anything_is_allocated(dicom, suffix, monkeypatch):
    path = dicom / f"{SECRET}.{suffix}"
    if suffix == "png":
        raw = bytearray(path.read_bytes())
        raw[16:24] = struct.pack(">II", 2**30, 2**30)
        raw[29:33] = struct.pack(">I", zlib.crc32(bytes(raw[12:29])))
        path.write_bytes(bytes(raw))
    elif suffix == "bmp":
        patch(path, struct.pack("<ii", 70, 60), struct.pack("<ii", 2**30, 2**30))
    elif suffix == "npy":
        patch(path, b"(60, 70)", b"(6**9,7)")
        refused(path)
        np.save(path, np.zeros((60, 70), np.uint8))
        patch(path, b"(60, 70), }         ", b"(6000000, 7000000), }")
    elif suffix == "nii":
        raw = bytearray(path.read_bytes())
        raw[42:48] = struct.pack("<hhh", 32767, 32767, 32767)
        path.write_bytes(bytes(raw))
    elif suffix == "nrrd":
        patch(path, b"sizes: 7 9 4", b"sizes: 7000000 9000000 4000000")
    elif suffix == "mha":
        patch(path, b"DimSize = 7 9 4", b"DimSize = 7000000 9000000 4000000")
    elif suffix == "dcm":
        header = pydicom.dcmread(path)
        header.Rows = header.Columns = 65535
        header.save_as(path)
    elif suffix == "webp":
        pixels = np.zeros((60, 70), np.uint8)
        Pictures.fromarray(pixels).save(path, lossless=True)
        raw = bytearray(path.read_bytes())
        raw[21:25] = b"\xff\xff\xff\x0f"  # 16,384 x 16,384 in 100 bytes
        path.write_bytes(bytes(raw))
    else:
        raw = path.read_bytes()
        for tag in (256, 257):  # ImageWidth, ImageLength
            at = next(
                n
                for n in range(8, len(raw) - 12)
                if struct.unpack_from("<H", raw, n)[0] == tag and raw[n + 2] in {3, 4}
            )
            raw = raw[: at + 2] + struct.pack("<HII", 4, 1, 2**30) + raw[at + 12 :]
        path.write_bytes(raw)
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert isinstance(refused(path), ReadError)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024


def test_series_and_archives_tell_the_case_and_no_file(tmp_path, write_series, placed):
    series = write_series(
        SECRET, np.ascontiguousarray(VOLUME.transpose(2, 1, 0)), DEPTHS, PatientName=SECRET, **PATIENT
    )
    series[2].write_bytes(series[2].read_bytes()[:-50])
    archive = shutil.make_archive(str(tmp_path / SECRET), "zip", tmp_path, SECRET)
    options = {"members": [f"{SECRET}/{path.name}" for path in series], "way": "series", "options": {}}
    for source in (series_source("case-3", series), make_source("case-3", "zip", (tmp_path / archive,), options)):
        with pytest.raises(ReadError, match="^case case-3: DICOM") as caught:
            source.load()
        assert "Secret" not in str(caught.value)
    assert read_dicom_series(sorted((tmp_path / "ct").glob("*.dcm"))).grid.shape == VOLUME.shape


@pytest.mark.parametrize("way", ["dicom_seg", "rtstruct", "seg_nrrd"])
def test_mutated_outlines_end_in_a_segmentation_or_in_our_errors(tmp_path, placed, write_seg, write_rtstruct, way):
    images = sorted((tmp_path / "ct").glob("*.dcm"), reverse=True)
    labels = np.random.default_rng(2).integers(0, 3, (SLICES, ROWS, COLUMNS)).astype(np.uint8)
    box = [[[2.5, 1.5, 1], [3.5, 1.5, 1], [3.5, 4.5, 1], [2.5, 4.5, 1]]]
    if way == "dicom_seg":
        path = write_seg(tmp_path / "seed", images, labels)
    elif way == "rtstruct":
        path = write_rtstruct(tmp_path / "seed", images, {"a": box, "b": box})
    else:
        path = tmp_path / "seed"
        text = nrrd_header("Segment0_Name:=a\nSegment0_LabelValue:=1\nSegment1_Name:=b\nSegment1_LabelValue:=2\n")
        path.write_bytes(text + labels.transpose(2, 1, 0).astype(np.int16).tobytes(order="F"))
    raw = path.read_bytes()
    rng = np.random.default_rng(3)
    told: list[str] = []
    count = 0
    files = (tmp_path / f"mutant{'' if way != 'seg_nrrd' else '.nrrd'}", *(images if way == "rtstruct" else ()))
    for _ in range(120):
        mutant = bytearray(raw)
        for _ in range(rng.integers(1, 4)):
            at, length = int(rng.integers(len(mutant))), int(rng.integers(1, 12))
            if rng.integers(3):
                mutant[at : at + length] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
            else:
                del mutant[at : at + length]
        files[0].write_bytes(bytes(mutant))
        try:
            found = make_mask_source("x", way, files).load()
        except SagittalError as error:
            told.append(str(error))
        else:
            assert found.layers.shape[1:] == found.grid.shape
            count += 1
    assert count > 0
    assert told
    assert not any("SECRET" in text for text in told)
