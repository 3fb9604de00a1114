"""DICOM segmentations written by highdicom in every form, read back onto the right voxels."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from sagittal.errors import ConfigError, GeometryError, ReadError
from sagittal.formats.dicom import read_dicom_series
from sagittal.formats.dicom_seg import read_dicom_seg
from sagittal.formats.nrrd import load_nrrd
from sagittal.formats.packed_masks import place_on
from sagittal.grid import Grid
from sagittal.read.sources import make_mask_source
from sagittal.truth import Segmentation, Structure

ROWS, COLUMNS, SLICES = 7, 9, 6  # 63 pixels a frame: frames begin within bytes
DEPTHS = [0.0, 2.5, 5.0, 7.5, 10.0, 12.5]
PATIENT = {
    "PatientBirthDate": "", "PatientSex": "", "AccessionNumber": "", "StudyID": "", "StudyDate": "", "StudyTime": "",
    "ReferringPhysicianName": "", "SeriesNumber": 1, "SliceThickness": 2.5, "FrameOfReferenceUID": "1.2.3.4.9",
}  # fmt: skip


@pytest.fixture
def images(write_series):
    """A tilted CT series of 7 x 9 x 6 voxels."""
    volume = np.zeros((SLICES, ROWS, COLUMNS), np.int16)
    return write_series("ct", volume, DEPTHS, InstanceNumber=lambda n: n + 1, **PATIENT)


def label_volume(seed=0):
    return np.random.default_rng(seed).integers(0, 3, (SLICES, ROWS, COLUMNS)).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "syntax"),
    [
        ("BINARY", ExplicitVRLittleEndian), ("LABELMAP", ExplicitVRLittleEndian), ("LABELMAP", RLELossless),
        ("LABELMAP", JPEGLSLossless), ("FRACTIONAL", ExplicitVRLittleEndian), ("FRACTIONAL", RLELossless),
    ],
)  # fmt: skip
def test_each_form_lies_on_the_voxels_of_the_image(tmp_path, images, kind, syntax, write_seg):
    labels = label_volume()
    given = labels if kind != "FRACTIONAL" else np.stack([labels == 1, labels == 2], axis=-1).astype(np.float32)
    extra = {"fractional_type": "PROBABILITY"} if kind == "FRACTIONAL" else {}
    path = write_seg(tmp_path / "seg.dcm", images, given, kind, syntax=syntax, **extra)
    grid = read_dicom_series(images).grid
    for found in (read_dicom_seg(path), read_dicom_seg(path, images)):
        assert found.grid.same_place(grid)
        assert len(found.layers) == 1
        np.testing.assert_array_equal(found.layers[0], labels.transpose(2, 1, 0))
        assert [(s.name, s.values, s.code) for s in found.structures] == [
            ("liver", (1,), "SCT:10200004"), ("lesion", (2,), "SCT:10200004"),
        ]  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
def test_label_maps_of_sixteen_bits_with_a_palette(tmp_path, images, write_seg, packed):
    labels = label_volume()
    header = pydicom.dcmread(write_seg(tmp_path / "a.dcm", images, labels, "LABELMAP"))
    for item in header.SegmentSequence:
        item.SegmentNumber += 299 * (item.SegmentNumber > 0)
    frames = np.frombuffer(header.PixelData, np.uint8)[: header.NumberOfFrames * ROWS * COLUMNS].astype("<u2")
    frames[frames > 0] += 299
    header.PixelData = frames.tobytes()
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    if packed:
        header.compress(RLELossless, frames.reshape(-1, ROWS, COLUMNS))
    header.PhotometricInterpretation = "PALETTE COLOR"
    header.save_as(tmp_path / "b.dcm")
    found = read_dicom_seg(tmp_path / "b.dcm")
    assert [s.values for s in found.structures] == [(300,), (301,)]
    np.testing.assert_array_equal(found.mask("lesion"), labels.transpose(2, 1, 0) == 2)


def test_deflated_files_and_deflated_frames(tmp_path, images, write_seg):
    labels = label_volume()
    path = write_seg(tmp_path / "seg.dcm", images, labels)
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(tmp_path / "deflated.dcm", header, enforce_file_format=True)
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "deflated.dcm").layers[0], labels.transpose(2, 1, 0))
    import zlib

    from pydicom.encaps import encapsulate

    header = pydicom.dcmread(path)
    bits = np.unpackbits(np.frombuffer(header.PixelData, np.uint8), bitorder="little")
    size = ROWS * COLUMNS
    frames = []
    for n in range(header.NumberOfFrames):
        worker = zlib.compressobj(9, zlib.DEFLATED, -15)
        raw = np.packbits(bits[n * size : (n + 1) * size], bitorder="little").tobytes()
        frames.append(worker.compress(raw) + worker.flush())
    header.PixelData = encapsulate([f + b"\0" * (len(f) % 2) for f in frames])
    header["PixelData"].VR = "OB"
    header["PixelData"].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.8.1"
    pydicom.dcmwrite(tmp_path / "frames.dcm", header, implicit_vr=False, little_endian=True, force_encoding=True)
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "frames.dcm").layers[0], labels.transpose(2, 1, 0))


def test_big_endian_words(tmp_path, images, write_seg):
    labels = label_volume()
    header = pydicom.dcmread(write_seg(tmp_path / "a.dcm", images, labels))
    header.PixelData = np.frombuffer(header.PixelData, "<u2").astype(">u2").tobytes()
    header["PixelData"].VR = "OW"
    header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.2"
    pydicom.dcmwrite(tmp_path / "b.dcm", header, implicit_vr=False, little_endian=False, force_encoding=True)
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "b.dcm").layers[0], labels.transpose(2, 1, 0))


def test_overlapping_segments_stand_in_different_layers(tmp_path, images, write_seg):
    masks = np.random.default_rng(1).random((SLICES, ROWS, COLUMNS, 3)) < [0.4, 0.3, 0.3]
    masks[..., 2] &= ~masks[..., 0]
    found = read_dicom_seg(write_seg(tmp_path / "a.dcm", images, masks.astype(np.uint8), names=("a", "b", "c")), images)
    assert [s.layer for s in found.structures] == [0, 1, 0]
    for n, name in enumerate("abc"):
        np.testing.assert_array_equal(found.mask(name), masks[..., n].transpose(2, 1, 0))


def test_omitted_frames_are_background_where_the_spacing_proves_it(tmp_path, images, write_seg):
    labels = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
    labels[1, 2, 3], labels[4, 5, 6] = 1, 1
    path = write_seg(tmp_path / "a.dcm", images, labels)
    header = pydicom.dcmread(path)
    assert header.NumberOfFrames == 2
    own, placed = read_dicom_seg(path), read_dicom_seg(path, images)
    assert own.grid.shape == (COLUMNS, ROWS, 4)
    assert np.argwhere(own.mask("liver")).tolist() == [[3, 2, 0], [6, 5, 3]]
    assert np.argwhere(placed.mask("liver")).tolist() == [[3, 2, 1], [6, 5, 4]]
    assert placed.structures[1] == Structure("lesion", (), 0, "SCT:10200004")
    measures = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    if "SpacingBetweenSlices" in measures:
        del measures.SpacingBetweenSlices
    measures.SliceThickness = 2.0
    header.save_as(tmp_path / "b.dcm")
    # One distance of 7.5 mm alone may be the step; a second of 5 mm shows that it is not.
    assert read_dicom_seg(tmp_path / "b.dcm", images).mask("liver").sum() == 2
    labels[5, 1, 1] = 1
    path = write_seg(tmp_path / "c.dcm", images, labels)
    header = pydicom.dcmread(path)
    measures = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SliceThickness = 2.0
    measures.SpacingBetweenSlices = None
    header.save_as(path)
    with pytest.raises(
        GeometryError, match=r"do not lie on slices 2 mm apart.*0\.00, 7\.50, 10\.00.*together with the images"
    ):
        read_dicom_seg(path)
    assert np.argwhere(read_dicom_seg(path, images).mask("liver"))[:, 2].tolist() == [5, 1, 4]


@pytest.mark.parametrize("seed", range(4))
def test_frames_in_any_order(tmp_path, images, seed, write_seg):
    labels = label_volume()
    header = pydicom.dcmread(write_seg(tmp_path / "a.dcm", images, labels))
    order = np.random.default_rng(seed).permutation(header.NumberOfFrames)
    bits = np.unpackbits(np.frombuffer(header.PixelData, np.uint8), bitorder="little")
    frames = bits[: len(order) * 63].reshape(len(order), 63)[order]
    header.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes() + b"\0"
    groups = header.PerFrameFunctionalGroupsSequence
    header.PerFrameFunctionalGroupsSequence = [groups[int(n)] for n in order]
    header.save_as(tmp_path / "b.dcm")
    np.testing.assert_array_equal(read_dicom_seg(tmp_path / "b.dcm").layers[0], labels.transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ([1, 0, 0], [0, 1, 0]), ([-1, 0, 0], [0, 1, 0]), ([1, 0, 0], [0, -1, 0]), ([-1, 0, 0], [0, -1, 0]),
        ([0, 0, -1], [0, 1, 0]), ([0, 0, -1], [0, -1, 0]), ([1, 0, 0], [0.0, 0.8, 0.6]), ([0, -0.6, 0.8], [0, 0.8, 0.6]),
        ([0, 1, 0], [0, 0, -1]),
    ],
)  # fmt: skip
def test_any_orientation_keeps_the_places_in_the_patient(tmp_path, write_series, write_seg, row, column):
    normal = np.cross(row, column)
    fields = {
        "ImageOrientationPatient": [*row, *column],
        "ImagePositionPatient": lambda n: [float(v) for v in np.round(np.array([5, 6, 7]) + 2.5 * n * normal, 6)],
    }
    images = write_series("ct", np.zeros((SLICES, ROWS, COLUMNS), np.int16), DEPTHS, **PATIENT, **fields)
    labels = label_volume(3)
    path = write_seg(tmp_path / "a.dcm", images, labels)
    found, image = read_dicom_seg(path, images), read_dicom_series(images)
    np.testing.assert_array_equal(found.grid.affine, image.grid.affine)
    np.testing.assert_array_equal(found.layers[0], labels.transpose(2, 1, 0))
    own = read_dicom_seg(path)
    inside = np.argwhere(own.mask("lesion"))
    places = np.c_[inside, np.ones(len(inside))] @ own.grid.affine.T
    voxels = np.rint(places @ np.linalg.inv(image.grid.affine).T)[:, :3].astype(int)
    assert all(found.layers[0][tuple(v)] == 2 for v in voxels)


def test_probabilities_count_from_one_half(tmp_path, images, write_seg):
    values = np.tile(np.linspace(0, 1, COLUMNS, dtype=np.float32), (SLICES, ROWS, 1))[..., np.newaxis]
    path = write_seg(
        tmp_path / "a.dcm",
        images,
        values,
        "FRACTIONAL",
        ("liver",),
        fractional_type="PROBABILITY",
        max_fractional_value=200,
    )
    np.testing.assert_array_equal(read_dicom_seg(path).mask("liver")[:, 0, 0], np.linspace(0, 1, COLUMNS) >= 0.5)
    for share in (0.25, 0.625, 1.0):
        found = read_dicom_seg(path, images, threshold=share)
        np.testing.assert_array_equal(found.mask("liver")[:, 0, 0], np.linspace(0, 1, COLUMNS) >= share)
    for share in (0.0, 1.01):
        with pytest.raises(ConfigError, match=rf"threshold is {share}; expected a share above 0, up to 1"):
            read_dicom_seg(path, threshold=share)


def test_the_pixels_of_the_images_are_not_needed(tmp_path, images, write_seg, monkeypatch):
    labels = label_volume()
    path = write_seg(tmp_path / "seg.dcm", images, labels, "BINARY")
    monkeypatch.setattr("sagittal.formats.dicom.stack_frames", lambda frames: pytest.fail("pixels were read"))
    np.testing.assert_array_equal(read_dicom_seg(path, images).layers[0], labels.transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: setattr(h, "PixelData", h.PixelData[:20]), "PixelData holds 20 bytes"),
        (lambda h: setattr(h, "NumberOfFrames", 4000), "declares 4000 frames, and describes 12"),
        (lambda h: setattr(h, "NumberOfFrames", 0), "declares 0 frames"),
        (lambda h: setattr(h, "Rows", 60000), "PixelData holds"),
        (lambda h: (setattr(h, "Rows", 60000), setattr(h, "Columns", 60000)), "268,435,456 are read"),
        (lambda h: setattr(h, "BitsAllocated", 16), "BitsAllocated 16 does not go with BINARY"),
        (lambda h: setattr(h, "SegmentationType", "OTHER"), "none of BINARY"),
        (lambda h: setattr(h.SegmentSequence[1], "SegmentNumber", 1), "not by different numbers"),
        (lambda h: setattr(h, "SegmentSequence", h.SegmentSequence[:1]), "belongs to segment 2, which is not described"),
        (lambda h: setattr(h, "Modality", "CT") or delattr(h, "SegmentSequence"), "the object is no segmentation"),
        (lambda h: setattr(group(h, 1).PlanePositionSequence[0], "ImagePositionPatient", group(h, 0).PlanePositionSequence[0].ImagePositionPatient), "two frames of segment 1 lie at one place"),
        (lambda h: delattr(group(h, 0), "PlanePositionSequence"), "a frame has no ImagePositionPatient"),
        (lambda h: setattr(group(h, 1).PlanePositionSequence[0], "ImagePositionPatient", [900, 0, 0]), "shifted against each other"),
        (lambda h: setattr(shared(h).PixelMeasuresSequence[0], "SpacingBetweenSlices", 2.2), "do not lie on slices 2.2 mm apart"),
        (lambda h: setattr(shared(h).PlaneOrientationSequence[0], "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "perpendicular unit vectors"),
    ],
)  # fmt: skip
def test_damaged_segmentations(tmp_path, images, change, message, write_seg):
    header = pydicom.dcmread(write_seg(tmp_path / "a.dcm", images, label_volume()))
    change(header)
    header.save_as(tmp_path / "b.dcm")
    with pytest.raises((ReadError, GeometryError), match=message):
        read_dicom_seg(tmp_path / "b.dcm")


def group(header, number):
    return header.PerFrameFunctionalGroupsSequence[number]


def shared(header):
    return header.SharedFunctionalGroupsSequence[0]


def test_references_to_other_or_missing_images(tmp_path, images, write_series, write_seg):
    path = write_seg(tmp_path / "a.dcm", images, label_volume())
    other = write_series(
        "other", np.zeros((SLICES, ROWS, COLUMNS), np.int16), DEPTHS, SeriesInstanceUID="9.9", **PATIENT
    )
    with pytest.raises(ReadError, match=r"refers to another series \(1 named, none of them this one\)"):
        read_dicom_seg(path, other)
    with pytest.raises(ReadError, match=r"refers to 6 images, of which 2 are missing among the 4 files"):
        read_dicom_seg(path, images[:4])
    header = pydicom.dcmread(path)
    del header.ReferencedSeriesSequence
    if "SourceImageSequence" in header:
        del header.SourceImageSequence
    for frame in header.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    header.save_as(tmp_path / "b.dcm")
    with pytest.raises(ReadError, match="refers to no images"):
        read_dicom_seg(tmp_path / "b.dcm", images)
    header = pydicom.dcmread(path)
    header.FrameOfReferenceUID = "1.2.3.99"
    header.save_as(tmp_path / "c.dcm")
    with pytest.raises(ReadError, match="another frame of reference"):
        read_dicom_seg(tmp_path / "c.dcm", images)


def test_a_source_of_it_names_the_case(tmp_path, images, write_seg):
    labels = label_volume()
    path = write_seg(tmp_path / "a.dcm", images, labels)
    source = make_mask_source("case-1", "dicom_seg", (path, *images), {}, structures=("liver", "lesion"))
    np.testing.assert_array_equal(source.load().layers[0], labels.transpose(2, 1, 0))
    with pytest.raises(ReadError, match=r"^case case-1: DICOM SEG: refers to 6 images"):
        make_mask_source("case-1", "dicom_seg", (path, *images[1:]), {}).load()


def seg_on(affine, layers):
    grid = Grid(layers.shape[1:], affine)
    return Segmentation(layers, grid, (Structure("a", (1,)),))


def test_place_on_turns_flips_and_crops_without_resampling():
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] * [0.7, 0.5, 3]
    affine[:3, 3] = [4, 5, 6]
    image = Grid((8, 9, 5), affine)
    whole = np.zeros((1, 8, 9, 5), np.uint8)
    whole[0, 2:6, 3:7, 1:4] = rng.integers(0, 2, (4, 4, 3))
    # a crop that counts (k, -i, j): its voxel (a, b, c) is the image's (6 - b, 2 + c, 1 + a)
    steps = np.array([[0, -1, 0, 6], [0, 0, 1, 2], [1, 0, 0, 1], [0, 0, 0, 1]], float)
    crop = np.zeros((1, 3, 6, 6), np.uint8)
    for a, b, c in np.ndindex(3, 6, 6):
        crop[0, a, b, c] = whole[0, 6 - b, 2 + c, 1 + a]
    placed = place_on(seg_on(affine @ steps, crop), image)
    np.testing.assert_array_equal(placed.layers, whole)
    assert placed.grid is image
    half = steps.copy()
    half[0, 3] += 0.5
    with pytest.raises(GeometryError, match=r"different lattices.*up to 0.5 voxels apart.*nearest-neighbour"):
        place_on(seg_on(affine @ half, crop), image)
    with pytest.raises(GeometryError, match="different lattices"):
        place_on(seg_on(affine @ steps @ np.diag([1, 1, 2, 1]), crop), image)
    out = steps.copy()
    out[1, 3] = 6
    lost = int(whole[0, 2:6, 5:7, 1:4].sum())
    with pytest.raises(GeometryError, match=rf"{lost} outlined voxels lie outside the image of \(8, 9, 5\)"):
        place_on(seg_on(affine @ out, crop), image)
    with pytest.raises(GeometryError, match="no position in the patient"):
        place_on(seg_on(affine @ steps, crop), Grid((8, 9, 5)))


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("liver.dcm", "liver_seg.nrrd"),
        ("23x38x3/seg/label.seg", "23x38x3/nrrd/label.nrrd"),
        ("24x38x3/seg/label.seg", "24x38x3/nrrd/label.nrrd"),
        ("sparse-labelmap-noppv.dcm", "sparse_labelmap_noppv_seg.nrrd"),
        ("sparse-labelmap-ppv5.dcm", "sparse_labelmap_ppv5_seg.nrrd"),
    ],
)
def test_published_segmentations_equal_their_truth(bench_data, name, truth):
    folder = bench_data / "dicom/seg/segmentations"
    found, expected = read_dicom_seg(folder / name), load_nrrd(folder / truth)
    values = np.where(expected.data[0] == 5, 0, expected.data[0])  # 5 is the padding of that label map
    np.testing.assert_array_equal(found.layers[0], values)
    assert found.grid.same_place(expected.grid)


@pytest.mark.data
def test_published_overlaps_and_images(bench_data):
    folder = bench_data / "dicom/seg/segmentations"
    images = sorted((folder / "ct-3slice").glob("*.dcm"))
    found = read_dicom_seg(folder / "partial_overlaps.dcm", images)
    assert found.grid.same_place(read_dicom_series(images).grid)
    total = 0
    for number in (1, 2, 3):
        part = load_nrrd(folder / f"partial_overlaps-{number}.nrrd").data[0]
        for value in np.unique(part[part > 0]):
            name = found.structures[int(value) - 1].name
            np.testing.assert_array_equal(found.mask(name), part == value)
            total += 1
    assert total == 5
    for size in ("23x38x3", "24x38x3"):
        for pictures in ("image/IMG*.dcm",):
            series = sorted((folder / size).glob(pictures))
            placed = read_dicom_seg(folder / size / "seg/label.seg", series)
            np.testing.assert_array_equal(placed.layers[0], load_nrrd(folder / size / "nrrd/label.nrrd").data[0])
    with pytest.raises(ReadError, match="refers to another series"):
        read_dicom_seg(folder / "liver.dcm", sorted((folder / "23x38x3/image").glob("*.dcm")))
