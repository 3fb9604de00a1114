"""DICOM objects of many kinds: where their frames lie, and what their values mean."""

from __future__ import annotations

import struct

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from sagittal.errors import ConfigError, GeometryError, ReadError
from sagittal.formats.dicom import read_dicom, read_dicom_series
from sagittal.formats.dicom_index import index_file
from sagittal.read.files import group

ROW = np.array([0.8, 0.36, 0.48])
COLUMN = np.array([-0.6, 0.48, 0.64])
NORMAL = np.cross(ROW, COLUMN)
ORIGIN = np.array([10.0, -20.0, 30.0])
RAMP = np.arange(5 * 7, dtype=np.int16).reshape(5, 7)
PLACED = {
    "ImageOrientationPatient": [*ROW, *COLUMN],
    "ImagePositionPatient": [10, -20, 30],
    "PixelSpacing": [0.7, 0.5],  # between rows, between columns
}


def _items(*items: dict) -> Sequence:
    found = []
    for fields in items:
        item = Dataset()
        for name, value in fields.items():
            setattr(item, name, value)
        found.append(item)
    return Sequence(found)


def _frames(count: int, rows: int = 4, columns: int = 5, dtype: type = np.uint16) -> np.ndarray:
    return np.arange(count * rows * columns, dtype=dtype).reshape(count, rows, columns)


def _multi(frames: np.ndarray, **fields: object) -> dict:
    return {"NumberOfFrames": len(frames), "PixelData": frames.tobytes(), **fields}


# ---- tilted gantry


def _tilted(write_series, shift: float) -> list:
    volume = np.random.default_rng(0).integers(0, 1000, (4, 5, 7)).astype(np.int16)
    return volume, write_series(
        "s",
        volume,
        [0.0, 3.0, 6.0, 9.0],
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        ImagePositionPatient=lambda n: [5.0, 7.0 + shift * n, 3.0 * n],
    )


def test_a_tilted_gantry_is_sheared_exactly_where_asked_for(write_series):
    volume, paths = _tilted(write_series, 1.0)
    with pytest.raises(GeometryError, match=r"tilted by 18\.4 degrees.*tilt='shear'.*0\.00, 3\.00, 6\.00, 9\.00"):
        read_dicom_series(paths)
    image = read_dicom_series(paths, tilt="shear")
    np.testing.assert_array_equal(image.data[0], volume.transpose(2, 1, 0) - 1024.0)
    np.testing.assert_allclose(
        image.grid.affine, [[0.5, 0, 0, 5], [0, 0.7, 1, 7], [0, 0, 3, 0], [0, 0, 0, 1]], atol=1e-9
    )


def test_shearing_changes_nothing_where_nothing_is_tilted(write_series):
    _, paths = _tilted(write_series, 0.0)
    assert read_dicom_series(paths, tilt="shear").grid.same_place(read_dicom_series(paths).grid, 1e-9)
    with pytest.raises(ConfigError, match="tilt is 'sheer'. Did you mean 'shear'"):
        read_dicom_series(paths, tilt="sheer")


def test_slices_shifted_unevenly_are_refused_although_shearing_was_asked_for(write_series):
    paths = write_series(
        "s",
        np.zeros((4, 4, 4), np.int16),
        [0.0, 3.0, 6.0, 9.0],
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        ImagePositionPatient=lambda n: [0.0, [0, 4, 0, 4][n], 3.0 * n],
    )
    with pytest.raises(GeometryError, match="shifted against each other within their planes"):
        read_dicom_series(paths, tilt="shear")


# ---- Siemens mosaic


def _csa(tags: dict[str, list[str]]) -> bytes:
    """A Siemens private header of the second kind."""
    out = b"SV10\4\3\2\1" + struct.pack("<2I", len(tags), 77)
    for name, values in tags.items():
        kind = {"AcquisitionMatrixText": b"LO\0\0", "SliceNormalVector": b"FD\0\0"}.get(name, b"US\0\0")
        out += struct.pack("<64si4s3i", name.encode(), len(values), kind, 4, len(values), 77)
        for value in values:
            text = value.encode() + b"\0"
            out += struct.pack("<4i", len(text), len(text), 77, len(text)) + text + b"\0" * (-len(text) % 4)
    return out


def _write_mosaic(write_slice, sign: float, count: int = 5, **fields):
    tiles = np.random.default_rng(1).integers(0, 4000, (count, 4, 6)).astype(np.uint16)
    side = 3
    mosaic = np.zeros((side * 4, side * 6), np.uint16)
    for k, tile in enumerate(tiles):
        mosaic[k // side * 4 :][:4, k % side * 6 :][:, :6] = tile
    # As Siemens writes it: the position of a slice of the mosaic's size around the centre of the first slice.
    corner = ORIGIN - ROW * 0.5 * (18 - 6) / 2 - COLUMN * 0.7 * (12 - 4) / 2
    csa = _csa(
        {
            "AcquisitionMatrixText": ["4*6"],
            "NumberOfImagesInMosaic": [str(count)],
            "SliceNormalVector": [f"{sign * v:.8f}" for v in NORMAL],
        }
    )
    given = {
        **PLACED,
        "ImagePositionPatient": [round(float(v), 6) for v in corner],
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"],
        "Modality": "MR",
        "SpacingBetweenSlices": 3,
        "SliceThickness": 2.5,
        "Manufacturer": "SIEMENS",
        **fields,
    }
    path = write_slice("m/a.dcm", mosaic, **given)
    header = pydicom.dcmread(path)
    header.private_block(0x29, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", csa + b"\0" * (len(csa) % 2))
    header.save_as(path)
    return path, tiles


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_siemens_mosaic_becomes_its_volume(write_slice, sign):
    path, tiles = _write_mosaic(write_slice, sign)
    image = read_dicom(path)
    stacked = tiles if sign > 0 else tiles[::-1]  # sorted along the normal
    np.testing.assert_array_equal(image.data[0], stacked.transpose(2, 1, 0))
    for i, j, k in ((0, 0, 0), (5, 3, 4), (2, 1, 3)):
        number = k if sign > 0 else len(tiles) - 1 - k
        place = ORIGIN + ROW * 0.5 * i + COLUMN * 0.7 * j + sign * NORMAL * 3 * number
        np.testing.assert_allclose((image.grid.affine @ [i, j, k, 1])[:3], place, atol=1e-4)


def test_a_mosaic_lies_where_nibabel_puts_it(write_slice):
    wrappers = pytest.importorskip("nibabel.nicom.dicomwrappers")
    path, _ = _write_mosaic(write_slice, 1.0)
    wrapper = wrappers.wrapper_from_file(path)
    image = read_dicom(path)
    theirs = wrapper.affine @ np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # rows first there
    np.testing.assert_allclose(image.grid.affine, theirs, atol=1e-4)
    np.testing.assert_array_equal(image.data[0], np.asarray(wrapper.get_data()).transpose(1, 0, 2))


def test_a_mosaic_without_its_private_header_is_refused(write_slice):
    path, _ = _write_mosaic(write_slice, 1.0)
    header = pydicom.dcmread(path)
    header.remove_private_tags()
    header.save_as(path)
    with pytest.raises(GeometryError, match=r"private header \(0029,1010\) is missing or damaged"):
        read_dicom(path)


def test_a_mosaic_that_cannot_fill_its_frame_is_refused(write_slice):
    path, _ = _write_mosaic(write_slice, 1.0)
    header = pydicom.dcmread(path)
    block = header.private_block(0x29, "SIEMENS CSA HEADER")
    csa = _csa({"NumberOfImagesInMosaic": ["50"], "SliceNormalVector": [f"{v:.8f}" for v in NORMAL]})
    block[0x10].value = csa + b"\0" * (len(csa) % 2)
    header.save_as(path)
    with pytest.raises(GeometryError, match="a mosaic of 50 slices cannot fill a frame of 12 x 18"):
        read_dicom(path)


def test_mosaics_of_a_time_series_are_a_volume_each(write_slice, tmp_path):
    for n in range(3):
        path, _ = _write_mosaic(write_slice, 1.0, AcquisitionNumber=n + 1, InstanceNumber=n + 1)
        path.rename(tmp_path / f"{n}.dcm")
    parts = group(sorted(tmp_path.glob("*.dcm")))
    assert [(part.label, len(part.files)) for part in parts] == [("acq1", 1), ("acq2", 1), ("acq3", 1)]


# ---- dose, tomograms of nuclear medicine, tomosynthesis, loops


@pytest.mark.parametrize("relative", [True, False])
def test_a_dose_grid_is_in_gray_and_placed_by_its_offsets(write_slice, relative):
    frames = _frames(3)
    offsets = np.array([0.0, -2.5, -5.0]) + (0 if relative else 30)
    fields = {
        "Modality": "RTDOSE",
        "DoseUnits": "GY",
        "DoseGridScaling": "0.001",
        "GridFrameOffsetVector": offsets.tolist(),
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [10, -20, 30],
        "PixelSpacing": [0.7, 0.5],
    }
    path = write_slice("d.dcm", frames[0], **_multi(frames, **fields))
    image = read_dicom(path)
    assert image.unit == "Gy"
    np.testing.assert_allclose(image.data[0], frames[::-1].transpose(2, 1, 0) * 0.001, rtol=1e-6)
    np.testing.assert_allclose(
        image.grid.affine, [[0.5, 0, 0, 10], [0, 0.7, 0, -20], [0, 0, 2.5, 25], [0, 0, 0, 1]], atol=1e-9
    )
    assert group([path]) == [], "a dose is no study of its own"


def test_a_dose_grid_that_begins_elsewhere_is_refused(write_slice):
    frames = _frames(3)
    fields = {**PLACED, "Modality": "RTDOSE", "GridFrameOffsetVector": [3.0, 6.0, 9.0]}
    with pytest.raises(GeometryError, match="begins at 3, which is neither 0 nor the z"):
        read_dicom(write_slice("d.dcm", frames[0], **_multi(frames, **fields)))


def _nuclear(write_slice, step: float, **fields):
    frames = _frames(3)
    given = {
        "Modality": "NM",
        "ImageType": ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"],
        "PixelSpacing": [0.7, 0.5],
        "SpacingBetweenSlices": step,
        "SliceVector": [1, 2, 3],
        "DetectorInformationSequence": _items(
            {"ImageOrientationPatient": [*ROW, *COLUMN], "ImagePositionPatient": [10, -20, 30]}
        ),
        **fields,
    }
    return frames, read_dicom(write_slice("n.dcm", frames[0], **_multi(frames, **given)))


@pytest.mark.parametrize("step", [4.0, -4.0])
def test_a_reconstructed_tomogram_is_placed_by_its_detector(write_slice, step):
    frames, image = _nuclear(write_slice, step)
    stacked = frames if step > 0 else frames[::-1]
    np.testing.assert_array_equal(image.data[0], stacked.transpose(2, 1, 0))
    first = ORIGIN if step > 0 else ORIGIN + 2 * step * NORMAL
    np.testing.assert_allclose(image.grid.affine[:3, 3], first, atol=1e-6)
    np.testing.assert_allclose(image.grid.affine[:3, 2], 4 * NORMAL, atol=1e-6)


@pytest.mark.parametrize(
    "fields", [{"SliceVector": [1, 1, 2]}, {"ImageType": ["ORIGINAL", "PRIMARY", "DYNAMIC"]}, {"SliceVector": None}]
)
def test_nuclear_frames_that_are_no_stack_get_no_position(write_slice, fields):
    _, image = _nuclear(write_slice, 4.0, **fields)
    assert image.grid.affine is None


def test_a_tomosynthesis_is_a_volume(write_slice):
    frames = _frames(3)
    own = [
        {"PlanePositionSequence": _items({"ImagePositionPatient": (ORIGIN + k * NORMAL).round(6).tolist()})}
        for k in (2, 1, 0)
    ]
    shared = {
        "PlaneOrientationSequence": _items({"ImageOrientationPatient": [*ROW, *COLUMN]}),
        "PixelMeasuresSequence": _items({"PixelSpacing": [0.7, 0.5], "SliceThickness": 1}),
        "PixelValueTransformationSequence": _items({"RescaleSlope": 2, "RescaleIntercept": 1, "RescaleType": "US"}),
    }
    fields = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.13.1.3",
        "Modality": "MG",
        "SharedFunctionalGroupsSequence": _items(shared),
        "PerFrameFunctionalGroupsSequence": _items(*own),
    }
    image = read_dicom(write_slice("t.dcm", frames[0], **_multi(frames, **fields)))
    np.testing.assert_array_equal(image.data[0], frames[::-1].transpose(2, 1, 0) * 2.0 + 1)
    np.testing.assert_allclose(image.grid.spacing, [0.5, 0.7, 1.0], atol=1e-6)


def test_an_angiography_keeps_its_pixel_size_but_time_is_no_distance(write_slice):
    frames = _frames(3)
    fields = {"Modality": "XA", "ImagerPixelSpacing": [0.2, 0.1], "SliceThickness": 5}
    grid = read_dicom(write_slice("x.dcm", frames[0], **_multi(frames, **fields))).grid
    assert grid.affine is None
    np.testing.assert_allclose(grid.spacing, [0.1, 0.2, np.nan])


def test_a_legacy_converted_file_equals_the_slices_it_was_made_of(write_series, tmp_path):
    legacy = pytest.importorskip("highdicom.legacy")
    volume = np.random.default_rng(0).integers(0, 1000, (4, 5, 7)).astype(np.int16)
    fields = {
        "Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "FrameOfReferenceUID": "1.2.3", "Manufacturer": "M",
        "StudyDate": "20260101", "StudyTime": "120000", "StudyID": "1", "SeriesNumber": 1, "AccessionNumber": "",
        "PatientBirthDate": "", "PatientSex": "", "ReferringPhysicianName": "", "PatientPosition": "HFS",
        "PositionReferenceIndicator": "", "ImageType": ["ORIGINAL", "PRIMARY", "M"], "SliceThickness": 2.5,
        "RescaleSlope": lambda n: n + 1, "RescaleIntercept": -3, "RescaleType": "US", "BurnedInAnnotation": "NO",
    }  # fmt: skip
    paths = write_series("s", volume, [0.0, 2.5, 5.0, 7.5], **fields)
    plain = read_dicom_series(paths)
    converted = legacy.LegacyConvertedEnhancedMRImage(
        [pydicom.dcmread(path) for path in paths],
        series_instance_uid="1.2.3.9",
        series_number=2,
        sop_instance_uid="1.2.3.10",
        instance_number=1,
    )
    converted.save_as(tmp_path / "legacy.dcm")
    image = read_dicom(tmp_path / "legacy.dcm")
    np.testing.assert_array_equal(image.data, plain.data)
    assert image.grid.same_place(plain.grid, 1e-6)
    (part,) = group([tmp_path / "legacy.dcm"])
    assert part.volume == ""


REGION = {
    "RegionSpatialFormat": 1,
    "PhysicalUnitsXDirection": 3,
    "PhysicalUnitsYDirection": 3,
    "PhysicalDeltaX": 0.05,
    "PhysicalDeltaY": 0.04,
}


@pytest.mark.parametrize(
    ("regions", "spacing"),
    [
        ([REGION], [0.5, 0.4]),
        ([REGION, REGION], [0.5, 0.4]),
        ([{**REGION, "PhysicalDeltaY": -0.04}], [0.5, 0.4]),
        ([REGION, {**REGION, "RegionSpatialFormat": 3, "PhysicalUnitsXDirection": 4}], None),  # Doppler beside it
        ([REGION, {**REGION, "PhysicalDeltaX": 0.06}], None),
        ([{**REGION, "PhysicalUnitsXDirection": 4}], None),
        ([{**REGION, "PhysicalDeltaX": 0.0}], None),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_ultrasound_takes_the_scale_of_its_regions(write_slice, regions, spacing, count):
    frames = _frames(count, dtype=np.uint8)
    fields = {"Modality": "US", "SequenceOfUltrasoundRegions": _items(*regions)}
    grid = read_dicom(write_slice("u.dcm", frames[0], **_multi(frames, **fields))).grid
    assert grid.affine is None
    if spacing is None:
        assert grid.spacing is None
    else:
        np.testing.assert_allclose(grid.spacing, [*spacing, np.nan])


# ---- what values mean


def _world(**fields) -> dict:
    unit = fields.pop("unit", "mm2/s")
    return {
        "RealWorldValueMappingSequence": _items(
            {"MeasurementUnitsCodeSequence": _items({"CodeValue": unit, "CodingSchemeDesignator": "UCUM"}), **fields}
        )
    }


def test_a_real_world_value_map_gives_values_and_unit(write_slice):
    fields = _world(RealWorldValueSlope=1e-6, RealWorldValueIntercept=2e-6)
    image = read_dicom(write_slice("a.dcm", RAMP, Modality="MR", **fields))
    assert image.unit == "mm2/s"
    np.testing.assert_allclose(image.data[0, :, :, 0].T, RAMP * 1e-6 + 2e-6, rtol=1e-6)


def test_a_real_world_value_map_is_not_put_upon_a_rescale(write_slice):
    fields = _world(RealWorldValueSlope=5.0, RealWorldValueIntercept=0.0)
    image = read_dicom(write_slice("a.dcm", RAMP, RescaleSlope=2, RescaleIntercept=-10, **fields))
    assert image.unit == "HU"
    np.testing.assert_array_equal(image.data[0, :, :, 0].T, RAMP * 2.0 - 10)


def test_a_real_world_value_table_is_looked_up_and_has_no_values_outside(write_slice):
    table = [10.0, 20.0, 40.0, 80.0]
    fields = _world(RealWorldValueLUTData=table, RealWorldValueFirstValueMapped=2, unit="[hnsf'U]")
    pixels = np.array([[2, 3], [5, 4]], np.uint16)
    image = read_dicom(write_slice("a.dcm", pixels, Modality="MR", **fields))
    assert image.unit == "HU"
    np.testing.assert_array_equal(image.data[0, :, :, 0].T, [[10, 20], [80, 40]])
    with pytest.raises(ReadError, match="stored values 2 to 6 lie outside of the 2 to 5"):
        read_dicom(write_slice("b.dcm", pixels + (pixels == 5), Modality="MR", **fields))


def test_two_real_world_value_maps_leave_the_stored_values(write_slice):
    both = [{"RealWorldValueSlope": s, "RealWorldValueIntercept": 0.0} for s in (2.0, 3.0)]
    image = read_dicom(write_slice("a.dcm", RAMP, Modality="MR", RealWorldValueMappingSequence=_items(*both)))
    assert image.unit == "1"
    np.testing.assert_array_equal(image.data[0, :, :, 0].T, RAMP)


@pytest.mark.parametrize("double", [False, True])
def test_a_parametric_map_of_floats(write_slice, double):
    frames = np.random.default_rng(0).normal(size=(2, 4, 5)).astype("f8" if double else "f4")
    own = [
        {"PlanePositionSequence": _items({"ImagePositionPatient": (ORIGIN + k * 3 * NORMAL).round(6).tolist()})}
        for k in range(2)
    ]
    shared = {
        "PlaneOrientationSequence": _items({"ImageOrientationPatient": [*ROW, *COLUMN]}),
        "PixelMeasuresSequence": _items({"PixelSpacing": [0.7, 0.5], "SliceThickness": 3}),
        **_world(RealWorldValueSlope=1.0, RealWorldValueIntercept=0.0, unit="mm2/s"),
    }
    fields = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.30",
        "Modality": "MR",
        "NumberOfFrames": 2,
        "PixelData": None,
        "BitsAllocated": 64 if double else 32,
        "BitsStored": None,
        "HighBit": None,
        "PixelRepresentation": None,
        ("DoubleFloatPixelData" if double else "FloatPixelData"): frames.tobytes(),
        "SharedFunctionalGroupsSequence": _items(shared),
        "PerFrameFunctionalGroupsSequence": _items(*own),
    }
    image = read_dicom(write_slice("p.dcm", np.zeros((4, 5), np.uint16), **fields))
    np.testing.assert_array_equal(image.data[0], frames.transpose(2, 1, 0).astype(np.float32))
    assert image.unit == "mm2/s"
    assert image.grid.has_position


def test_padding_becomes_what_is_asked_for(write_slice):
    pixels = RAMP.copy()
    pixels[0, :3] = [-2000, -1995, -1990]
    fields = {"PixelPaddingValue": -2000, "RescaleSlope": 2, "RescaleIntercept": -1024}
    one = read_dicom_series([write_slice("a.dcm", pixels, **fields)], padding=-1024).data[0, :, 0, 0]
    np.testing.assert_array_equal(one[:3], [-1024, -1995 * 2 - 1024, -1990 * 2 - 1024])
    ranged = write_slice("b.dcm", pixels, **fields, PixelPaddingRangeLimit=-1995)
    np.testing.assert_array_equal(read_dicom_series([ranged], padding=0).data[0, :3, 0, 0], [0, 0, -1990 * 2 - 1024])
    np.testing.assert_array_equal(read_dicom_series([ranged]).data[0, :, :, 0].T, pixels * 2.0 - 1024)


@pytest.mark.parametrize(("said", "known"), [("YES", True), ("NO", False), (None, None), ("", None)])
def test_burned_in_annotation_is_said_or_not(write_slice, said, known):
    path = write_slice("a.dcm", RAMP, BurnedInAnnotation=said, Modality="US")
    assert read_dicom(path).burned_in is known
    assert index_file(path).burned_in is known


def test_a_modality_table_in_hounsfield_units_says_so(write_slice):
    item = Dataset()
    item.LUTDescriptor = [4, 0, 16]
    item.add_new(0x00283006, "US", [100, 200, 400, 900])
    item.ModalityLUTType = "HU"
    path = write_slice("a.dcm", np.array([[0, 1], [2, 3]], np.uint16), ModalityLUTSequence=Sequence([item]))
    assert read_dicom(path).unit == "HU"


def test_slices_of_different_units_are_refused(write_series):
    paths = write_series("s", np.zeros((3, 4, 4), np.int16), [0, 1, 2], RescaleType=lambda n: "HU" if n else "US")
    with pytest.raises(ReadError, match="different units, 1, HU"):
        read_dicom_series(paths)


def test_an_absurd_number_of_frames_is_refused_at_once(write_slice):
    fields = {"NumberOfFrames": 100_000, "PixelData": bytes(100_000)}
    with pytest.raises(ReadError, match="declares 100,000 frames; at most 65,536 are read"):
        read_dicom(write_slice("a.dcm", np.zeros((1, 1), np.uint8), **fields))


# ---- SUV


def _pet(write_slice, name="p.dcm", drug=None, **fields):
    """A PET slice: 200 MBq of F-18 injected one half-life before the scan, 80 kg."""
    given = {
        "RadionuclideTotalDose": 200e6,
        "RadionuclideHalfLife": 6586.2,
        "RadiopharmaceuticalStartTime": "081013.8",
        **(drug or {}),
    }
    values = {
        "Modality": "PT",
        "Units": "BQML",
        "CorrectedImage": ["NORM", "DECY", "ATTN", "SCAT"],
        "DecayCorrection": "START",
        "PatientWeight": 80,
        "SeriesDate": "20260301",
        "SeriesTime": "100000",
        "AcquisitionDate": "20260301",
        "AcquisitionTime": "100010",
        "RescaleSlope": 2,
        "RescaleIntercept": 0,
        "RadiopharmaceuticalInformationSequence": _items({k: v for k, v in given.items() if v is not None}),
        **fields,
    }
    return write_slice(name, RAMP, **values)


def test_activity_becomes_suv_by_body_weight(write_slice):
    image = read_dicom(_pet(write_slice))
    assert image.unit == "SUV"
    # Half of the dose is left: SUV = activity (Bq/ml) x 80,000 g / 100e6 Bq.
    np.testing.assert_allclose(image.data[0, :, :, 0].T, RAMP * 2.0 * 80_000 / 100e6, rtol=1e-5)


@pytest.mark.parametrize(
    ("drug", "fields"),
    [
        # Injected at 23:10:13.8 of the day before, without its date; then with it.
        ({"RadiopharmaceuticalStartTime": "231013.8"}, {"SeriesTime": "010000", "AcquisitionTime": "010001"}),
        (
            {"RadiopharmaceuticalStartTime": None, "RadiopharmaceuticalStartDateTime": "20260228231013.80"},
            {"SeriesTime": "010000", "AcquisitionTime": "010001"},
        ),
        # Corrected to the time of injection: nothing has decayed yet, 100 MBq give the same.
        ({"RadionuclideTotalDose": 100e6}, {"DecayCorrection": "ADMIN"}),
    ],
)
def test_suv_over_midnight_and_by_the_time_of_administration(write_slice, drug, fields):
    image = read_dicom(_pet(write_slice, drug=drug, **fields))
    assert image.unit == "SUV"
    np.testing.assert_allclose(image.data[0, :, :, 0].T, RAMP * 2.0 * 80_000 / 100e6, rtol=1e-5)


@pytest.mark.parametrize(
    ("drug", "fields", "reason"),
    [
        ({}, {"PatientWeight": None}, "PatientWeight is missing"),
        ({}, {"PatientWeight": 0}, "PatientWeight is missing or not positive"),
        ({"RadionuclideTotalDose": None}, {}, "RadionuclideTotalDose or RadionuclideHalfLife"),
        ({"RadionuclideTotalDose": 200.0}, {}, "not in Bq"),
        ({"RadiopharmaceuticalStartTime": None}, {}, "time of injection"),
        ({}, {"CorrectedImage": ["NORM", "DECY"]}, "ATTN, DECY"),
        ({}, {"DecayCorrection": "NONE"}, "neither START nor ADMIN"),
        ({}, {"SeriesTime": "110000"}, "precedes its acquisitions"),
        ({"RadionuclideHalfLife": 100.0}, {}, "cannot be true"),
        ({}, {"RadiopharmaceuticalInformationSequence": None}, "0 radiopharmaceuticals"),
    ],
)
def test_activity_stays_with_the_reason_where_suv_cannot_be_known(write_slice, drug, fields, reason):
    image = read_dicom(_pet(write_slice, drug=drug, **fields))
    assert image.unit == "Bq/ml"
    np.testing.assert_array_equal(image.data[0, :, :, 0].T, RAMP * 2.0)
    (note,) = image.notes
    assert note.startswith("not converted to SUV: ")
    assert reason in note


def test_a_reconstruction_made_later_takes_the_scan_time_that_ge_keeps(write_slice):
    path = _pet(write_slice, SeriesTime="130000")
    header = pydicom.dcmread(path)
    block = header.private_block(0x09, "GEMS_PETD_01", create=True)
    block.add_new(0x0D, "DT", "20260301100000.00")
    header.save_as(path)
    image = read_dicom(path)
    assert image.unit == "SUV"
    np.testing.assert_allclose(image.data.max(), RAMP.max() * 2.0 * 80_000 / 100e6, rtol=1e-5)


@pytest.mark.parametrize(("element", "factor", "expected"), [(0x00, "0.0005", 0.0005), (0x09, "3", 3 * 80_000 / 100e6)])
def test_counts_of_philips_have_private_factors(write_slice, element, factor, expected):
    path = _pet(write_slice, Units="CNTS")
    assert read_dicom(path).unit == "counts"
    header = pydicom.dcmread(path)
    header.private_block(0x7053, "Philips PET Private Group", create=True).add_new(element, "DS", factor)
    header.save_as(path)
    image = read_dicom(path)
    assert image.unit == "SUV"
    np.testing.assert_allclose(image.data[0, :, :, 0].T, RAMP * 2.0 * expected, rtol=1e-5)


def test_one_factor_holds_for_all_slices_of_a_series(write_slice):
    normal = NORMAL
    paths = [
        _pet(
            write_slice,
            f"s/{k}.dcm",
            **{**PLACED, "ImagePositionPatient": (ORIGIN + 3 * k * normal).round(6).tolist()},
            AcquisitionTime=f"10{10 * k:02d}00",
        )
        for k in range(3)
    ]
    image = read_dicom_series(paths)
    assert image.unit == "SUV"
    np.testing.assert_allclose(image.data[0, :, :, 2].T, RAMP * 2.0 * 80_000 / 100e6, rtol=1e-5)
