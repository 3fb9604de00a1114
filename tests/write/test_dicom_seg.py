"""DICOM SEG: valid, in the frame of reference of its series, and read back onto the right voxels by others."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from sagittal.case import Case
from sagittal.errors import DataError, ScopeError
from sagittal.formats.dicom_seg import read_dicom_seg
from sagittal.grid import Grid
from sagittal.prediction import Mask, Prediction
from sagittal.read.sources import file_source, series_source, tilt_series
from sagittal.truth import Segmentation, Structure
from sagittal.write.dicom_seg import make_dicom_seg, write_dicom_seg
from sagittal.write.dicom_sr import write_dicom_sr
from sagittal.write.rtstruct import write_rtstruct
from sagittal.write.sources import open_source

hd = pytest.importorskip("highdicom")

ROW = np.array([0.8, 0.36, 0.48])
COLUMN = np.array([-0.6, 0.48, 0.64])
ORIENTATIONS = {
    "tilted": [*ROW, *COLUMN],
    "negated column": [*ROW, *-COLUMN],
    "negated row": [*-ROW, *COLUMN],
    "sagittal": [0, 1, 0, 0, 0, -1],
    "feet first": [-1, 0, 0, 0, 1, 0],
}


def placed(orientation: list[float]) -> dict[str, Any]:
    normal = np.cross(orientation[:3], orientation[3:])
    return {
        "ImageOrientationPatient": orientation,
        "ImagePositionPatient": lambda n: [
            round(float(v), 4) for v in np.array([10.0, -20.0, 30.0]) + 2.5 * n * normal
        ],
    }


def by_hand(path: Path, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The frames of a segment from their bits and plane positions alone: (points (N, 3) mm, values (N,))."""
    header = pydicom.dcmread(path)
    numbers = {item.SegmentLabel: int(item.SegmentNumber) for item in header.SegmentSequence}
    shared = header.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
    spacing = [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing]
    size = header.Rows * header.Columns
    if header.SegmentationType == "BINARY":
        values = np.unpackbits(np.frombuffer(header.PixelData, np.uint8), bitorder="little")
    else:
        values = np.frombuffer(header.PixelData, np.uint8)
    rows, columns = np.indices((header.Rows, header.Columns)).reshape(2, -1)
    found = []
    for n, frame in enumerate(header.PerFrameFunctionalGroupsSequence):
        one = (frame.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence)[0]
        if int(one.ReferencedSegmentNumber) == numbers[name]:
            first = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
            points = (
                first + columns[:, None] * spacing[1] * orientation[:3] + rows[:, None] * spacing[0] * orientation[3:]
            )
            found.append((points, values[n * size : (n + 1) * size]))
    return found


def voxels_of(path: Path, name: str, grid: Grid) -> np.ndarray:
    """The same on the voxels of a grid, found by their places in the patient."""
    out = np.zeros(grid.shape, dtype=np.uint8)
    inverse = np.linalg.inv(grid.affine)
    for points, values in by_hand(path, name):
        index = points @ inverse[:3, :3].T + inverse[:3, 3]
        whole = np.rint(index).astype(int)
        assert np.abs(index - whole).max() < 0.02
        out[tuple(whole.T)] = values
    return out


@pytest.mark.parametrize("orientation", list(ORIENTATIONS))
def test_binary_frames_lie_on_their_voxels_in_every_orientation(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path, orientation: str
) -> None:
    case = study(**placed(ORIENTATIONS[orientation]))
    grid = case.image().grid
    prediction = found_mask(case.id, grid)
    path = write_dicom_seg(prediction, case, tmp_path / "found.dcm")
    truth = prediction.finding.segmentation
    own = read_dicom_seg(path, case.images["image"].files)
    assert own.grid.same_place(grid)
    other = hd.seg.segread(path)
    volume = other.get_volume(combine_segments=False, dtype=np.uint8)
    assert other.segmentation_type.value == "BINARY"
    for n, structure in enumerate(truth.structures, start=1):
        mask = truth.mask(structure.name)
        np.testing.assert_array_equal(own.mask(structure.name), mask)
        np.testing.assert_array_equal(voxels_of(path, structure.name, grid), mask)
        # highdicom's volume: its own affine (LPS+) and axes; each of its voxels must be ours.
        there = np.argwhere(volume.array[..., n - 1])
        places = there @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        index = np.rint((places - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T).astype(int)
        assert {tuple(v) for v in index} == {tuple(v) for v in np.argwhere(mask)}


def test_fractional_frames_are_the_probabilities(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    case = study()
    grid = case.image().grid
    prediction = found_mask(case.id, grid, probability=True)
    path = write_dicom_seg(prediction, case, tmp_path / "found.dcm", kind="FRACTIONAL")
    header = pydicom.dcmread(path)
    assert (header.SegmentationType, header.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    assert header.MaximumFractionalValue == 255
    for name, values in prediction.finding.probability.items():
        np.testing.assert_array_equal(voxels_of(path, name, grid), values)
    own = read_dicom_seg(path, case.images["image"].files)
    np.testing.assert_array_equal(own.mask("Liver"), prediction.finding.probability["Liver"] >= 128)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
@pytest.mark.parametrize("shape", [(21, 17, 9), (16, 8, 4)])
def test_validator_finds_nothing_wrong(
    study: Callable[..., Case],
    found_mask: Callable[..., Prediction],
    errors_of: Callable[[Path], list[str]],
    tmp_path: Path,
    kind: Any,
    shape: tuple[int, int, int],
) -> None:
    case = study(shape)
    prediction = found_mask(case.id, case.image().grid, ("liver", "gizmo", "cyst", "pancreas"), probability=True)
    assert errors_of(write_dicom_seg(prediction, case, tmp_path / "found.dcm", kind=kind)) == []


def test_source_without_anything_that_it_need_not_have(
    study: Callable[..., Case],
    found_mask: Callable[..., Prediction],
    errors_of: Callable[[Path], list[str]],
    tmp_path: Path,
) -> None:
    gone = dict.fromkeys(
        ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "SliceThickness",
         "ReferringPhysicianName", "SeriesNumber", "PositionReferenceIndicator")
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = study(**gone, PatientAge="0Y")  # invalid, and written by real scanners
    prediction = found_mask(case.id, case.image().grid)
    path = write_dicom_seg(prediction, case, tmp_path / "found.dcm")
    assert errors_of(path) == []
    np.testing.assert_array_equal(
        read_dicom_seg(path, case.images["image"].files).mask("Liver"), prediction.finding.segmentation.mask("Liver")
    )


def test_what_the_object_says_of_itself(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = study()
    prediction = found_mask(case.id, case.image().grid, ("Liver", "kidney_left", "gizmo", "spleen"))
    with caplog.at_level(logging.INFO):
        path = write_dicom_seg(prediction, case, tmp_path / "found.dcm")
    header = pydicom.dcmread(path)
    sources = [pydicom.dcmread(p, stop_before_pixels=True) for p in case.images["image"].files]
    assert header.FrameOfReferenceUID == "1.2.3.4.99"
    assert header.StudyInstanceUID == sources[0].StudyInstanceUID
    assert header.SeriesInstanceUID != sources[0].SeriesInstanceUID
    assert (header.PatientID, str(header.PatientName)) == ("PHANTOM-7", "Phantom^Tilted")
    (series,) = header.ReferencedSeriesSequence
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == {
        s.SOPInstanceUID for s in sources
    }
    place = {s.SOPInstanceUID: [float(v) for v in s.ImagePositionPatient] for s in sources}
    for frame in header.PerFrameFunctionalGroupsSequence:
        (one,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert one.SpatialLocationsPreserved == "YES"
        assert [float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient] == pytest.approx(
            place[one.ReferencedSOPInstanceUID]
        )
    liver, kidney, gizmo, spleen = header.SegmentSequence
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert liver.SegmentAlgorithmType == "AUTOMATIC"
    algorithm = liver.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("abdomen", "format 1, sha256 0123456789abcdef")
    modifier = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert modifier.CodeMeaning == "Left"
    code = gizmo.SegmentedPropertyTypeCodeSequence[0]
    assert (code.CodingSchemeDesignator, code.CodeMeaning) == ("99SAGITTAL", "gizmo")
    assert header.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99SAGITTAL"
    assert "structure 'gizmo' has no code in the terminology" in caplog.text
    # Not found: described, and without a frame.
    numbers = {
        int(f.SegmentIdentificationSequence[0].ReferencedSegmentNumber) for f in header.PerFrameFunctionalGroupsSequence
    }
    assert numbers == {1, 2, 3}
    assert spleen.SegmentNumber == 4
    # Slice 0 is empty, so no frame lies there.
    assert header.NumberOfFrames == 3 * 8
    assert header.SegmentsOverlap == "UNDEFINED"


def test_an_empty_mask_is_one_empty_frame(
    study: Callable[..., Case], errors_of: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    case = study()
    grid = case.image().grid
    empty = Segmentation(
        np.zeros((1, *grid.shape), np.uint8), grid, (Structure("liver", (1,)), Structure("cyst", (2,)))
    )
    from sagittal.labels import LabelScheme

    prediction = Prediction(case.id, LabelScheme("structures", ("liver", "cyst")), Mask(empty), (), np.zeros(0))
    path = write_dicom_seg(prediction, case, tmp_path / "found.dcm")
    assert pydicom.dcmread(path).NumberOfFrames == 1
    assert errors_of(path) == []
    assert not read_dicom_seg(path, case.images["image"].files).mask("liver").any()


def test_an_exclusive_mask_says_that_nothing_overlaps(
    study: Callable[..., Case], found_mask: Callable[..., Prediction]
) -> None:
    case = study()
    grid = case.image().grid
    made = make_dicom_seg(found_mask(case.id, grid, overlapping=False), open_source(case, grid, "x"))
    assert made.SegmentsOverlap == "NO"


def enhanced(frames: np.ndarray, positions: list[list[float]], **fields: Any) -> dict[str, Any]:
    """An Enhanced CT of frames at given positions, in that order."""
    own = []
    for place in positions:
        plane = Dataset()
        plane.ImagePositionPatient = place
        frame = Dataset()
        frame.PlanePositionSequence = [plane]
        own.append(frame)
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [*ROW, *COLUMN]
    measures.PixelSpacing, measures.SliceThickness = [0.7, 0.5], 2.5
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    return {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1",
        "NumberOfFrames": len(frames),
        "PixelData": frames.tobytes(),
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": own,
        **fields,
    }


def test_frames_of_an_enhanced_image_are_named_by_number(
    write_slice: Callable[..., Path],
    found_mask: Callable[..., Prediction],
    errors_of: Callable[[Path], list[str]],
    tmp_path: Path,
) -> None:
    normal = np.cross(ROW, COLUMN)
    order = [3, 0, 4, 1, 2, 5]  # as stored
    places = [[round(float(v), 4) for v in np.array([10.0, -20.0, 30.0]) + 2.5 * n * normal] for n in order]
    frames = np.random.default_rng(0).integers(0, 900, (6, 17, 21)).astype(np.int16)
    told = {"FrameOfReferenceUID": "1.2.3.4.99", "PatientBirthDate": "", "StudyDate": "", "StudyTime": ""}
    path = write_slice("e.dcm", frames[0], **enhanced(frames, places, **told))
    case = Case("e", "p", {"image": file_source("e", path)})
    grid = case.image().grid
    assert grid.shape == (21, 17, 6)
    prediction = found_mask("e", grid)
    made = write_dicom_seg(prediction, case, tmp_path / "found.dcm")
    header = pydicom.dcmread(made)
    truth = prediction.finding.segmentation
    np.testing.assert_array_equal(voxels_of(made, "Liver", grid), truth.mask("Liver"))
    np.testing.assert_array_equal(read_dicom_seg(made, [path]).mask("Liver"), truth.mask("Liver"))
    for frame in header.PerFrameFunctionalGroupsSequence:
        (one,) = frame.DerivationImageSequence[0].SourceImageSequence
        place = places[int(one.ReferencedFrameNumber) - 1]
        assert [float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient] == pytest.approx(place)
    assert len(header.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1
    assert errors_of(made) == []


@pytest.mark.parametrize("spacing", [{"PixelSpacing": [0.2, 0.3]}, {}])
def test_a_radiograph_without_a_place(
    write_slice: Callable[..., Path],
    found_mask: Callable[..., Prediction],
    errors_of: Callable[[Path], list[str]],
    tmp_path: Path,
    spacing: dict[str, Any],
) -> None:
    pixels = np.random.default_rng(0).integers(0, 4000, (30, 25)).astype(np.uint16)
    path = write_slice("x.dcm", pixels, SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1", Modality="DX", **spacing)
    case = Case("x", "p", {"image": file_source("x", path)})
    grid = case.image().grid
    prediction = found_mask("x", grid, ("lung", "heart", "nodule", "clavicle"))
    made = write_dicom_seg(prediction, case, tmp_path / "found.dcm")
    other = hd.seg.segread(made)
    uid = pydicom.dcmread(path).SOPInstanceUID
    assert other.get_source_image_uids()[0][2] == uid
    pixels = other.get_pixels_by_source_instance([uid], ignore_spatial_locations=True)
    for n, structure in enumerate(prediction.finding.segmentation.structures):
        np.testing.assert_array_equal(
            pixels[0, :, :, n].T, prediction.finding.segmentation.mask(structure.name)[..., 0]
        )
    assert errors_of(made) == []


def test_slices_of_a_tilted_gantry_keep_their_places(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    case = tilt_series(
        study(
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=lambda n: [5.0, 7.0 + n, 3.0 * n],
        ),
        "shear",
    )
    grid = case.image().grid
    prediction = found_mask(case.id, grid)
    path = write_dicom_seg(prediction, case, tmp_path / "found.dcm")
    np.testing.assert_array_equal(voxels_of(path, "Liver", grid), prediction.finding.segmentation.mask("Liver"))


def test_studies_that_are_no_dicom_are_refused(
    write_nifti: Callable[..., Path], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    path = write_nifti("a.nii.gz", np.zeros((9, 8, 7), np.float32))
    case = Case("a", "p", {"image": file_source("a", path)})
    with pytest.raises(ScopeError, match=r"case a: a DICOM segmentation refers to the DICOM series.*--format nifti"):
        write_dicom_seg(found_mask("a", case.image().grid), case, tmp_path / "found.dcm")


def test_a_mask_of_another_grid_is_refused(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    case = study()
    other = Grid(case.image().grid.shape, np.eye(4))
    with pytest.raises(ScopeError, match="none of its DICOM images lies on the grid of the result"):
        write_dicom_seg(found_mask(case.id, other), case, tmp_path / "found.dcm")


def test_a_series_without_frame_of_reference_gets_one_of_its_own(
    study: Callable[..., Case],
    found_mask: Callable[..., Prediction],
    errors_of: Callable[[Path], list[str]],
    tmp_path: Path,
) -> None:
    case = study(FrameOfReferenceUID=None)
    prediction = found_mask(case.id, case.image().grid)
    path = write_dicom_seg(prediction, case, tmp_path / "found.dcm")
    assert errors_of(path) == []
    np.testing.assert_array_equal(
        read_dicom_seg(path, case.images["image"].files).mask("Liver"), prediction.finding.segmentation.mask("Liver")
    )
    again = pydicom.dcmread(write_dicom_seg(prediction, case, tmp_path / "again.dcm"))
    assert again.FrameOfReferenceUID == pydicom.dcmread(path).FrameOfReferenceUID  # all results of a series share it


@pytest.mark.parametrize(
    ("name", "characters"),
    [
        ("Undivided", "ISO_IR 100"),
        ("", "ISO_IR 100"),
        ("Müller^Zoë", "ISO 2022 IR 100"),
        ("Yamada^Tarou=山田^太郎", ["", "ISO 2022 IR 87"]),
        ("Wáng^XiǎoDōng=王^小东", "ISO_IR 192"),
    ],
)
def test_names_in_any_character_set(
    study: Callable[..., Case],
    found_mask: Callable[..., Prediction],
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
    name: str,
    characters: Any,
) -> None:
    """And without a warning: those of the library show the name."""
    case = study(SpecificCharacterSet=characters, PatientName=name)
    prediction = found_mask(case.id, case.image().grid)
    for write in (write_dicom_seg, write_rtstruct, write_dicom_sr):
        assert str(pydicom.dcmread(write(prediction, case, tmp_path / "found.dcm")).PatientName) == name
    assert len(recwarn) == 0


def test_fractions_without_probabilities_are_refused(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    case = study()
    with pytest.raises(ScopeError, match=r"holds probabilities, and the prediction has none of Liver, kidney_left"):
        write_dicom_seg(found_mask(case.id, case.image().grid), case, tmp_path / "found.dcm", kind="FRACTIONAL")


def test_boxes_are_no_segmentation(
    study: Callable[..., Case], found_boxes: Callable[..., Prediction], tmp_path: Path
) -> None:
    case = study()
    with pytest.raises(ScopeError, match="holds a mask, and this model finds boxes"):
        write_dicom_seg(found_boxes(case.id, case.image().grid), case, tmp_path / "found.dcm")


def test_too_many_frames_are_refused_before_memory_is_taken(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = study()
    grid = case.image().grid
    monkeypatch.setattr("sagittal.write.dicom_seg._MOST_BYTES", 500)
    with pytest.raises(DataError, match=r"need 0\.0 GB, a DICOM object holds 4.*--format nifti"):
        make_dicom_seg(found_mask(case.id, grid), open_source(case, grid, "x"))


def test_several_images_take_the_one_on_the_grid(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    thick, thin = study(), study((21, 17, 5), "other", SeriesInstanceUID="1.2.3.4.6")
    case = replace(thick, images={"T1": thick.images["image"], "T2": thin.images["image"]})
    prediction = found_mask(case.id, case.image("T2").grid)
    header = pydicom.dcmread(write_dicom_seg(prediction, case, tmp_path / "found.dcm"))
    assert header.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.4.6"


def test_files_of_an_archive_are_referred_to(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    import zipfile

    from sagittal.read.sources import make_source

    plain = study()
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for path in plain.images["image"].files:
            archive.write(path, path.name)
    members = [path.name for path in plain.images["image"].files]
    source = make_source("z", "zip", (tmp_path / "s.zip",), {"members": members, "way": "series", "options": {}})
    case = Case("z", "p", {"image": source})
    prediction = found_mask("z", case.image().grid)
    path = write_dicom_seg(prediction, case, tmp_path / "found.dcm")
    np.testing.assert_array_equal(
        read_dicom_seg(path, plain.images["image"].files).mask("Liver"), prediction.finding.segmentation.mask("Liver")
    )


def test_many_structures_in_a_large_series_are_fast_to_write(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    case = study((128, 128, 60))
    grid = case.image().grid
    labels = np.zeros((1, *grid.shape), np.uint8)
    for n in range(20):
        labels[0, 6 * n : 6 * n + 5, 20:100, 5:55] = n + 1
    structures = tuple(Structure(f"part {chr(97 + n)}", (n + 1,)) for n in range(20))
    prediction = replace(found_mask(case.id, grid), finding=Mask(Segmentation(labels, grid, structures)))
    started = time.process_time()  # other work on the machine does not count
    path = write_dicom_seg(prediction, case, tmp_path / "found.dcm")
    assert time.process_time() - started < 6
    assert pydicom.dcmread(path, stop_before_pixels=True).NumberOfFrames == 20 * 50


def test_dcmtk_reads_it(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], run_tool: Callable[..., str], tmp_path: Path
) -> None:
    case = study()
    path = write_dicom_seg(found_mask(case.id, case.image().grid), case, tmp_path / "found.dcm")
    said = run_tool("dcmdump", "+P", "SegmentationType", "+P", "SegmentLabel", "+P", "NumberOfFrames", str(path))
    assert "[BINARY]" in said
    assert "[Liver Tumor]" in said
    assert not any(line.startswith("E:") for line in said.splitlines())


def test_series_source_is_read_when_asked(study: Callable[..., Case]) -> None:
    case = study()
    files = case.images["image"].files
    shuffled = Case("s", "p", {"image": series_source("s", files[::-1])})
    grid = case.image().grid
    first, second = (open_source(one, grid, "x") for one in (case, shuffled))
    assert first.slices == second.slices
    assert first.instances == second.instances
    positions = np.array([one.position for one in first.slices])
    np.testing.assert_allclose(positions, grid.affine[:3, 3] + np.arange(9)[:, None] * grid.affine[:3, 2], atol=1e-4)
