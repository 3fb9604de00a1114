"""Series of several volumes: each frame lands in its own volume, at its own place."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from sagittal.errors import ConfigError, GeometryError, ReadError
from sagittal.formats.dicom import read_dicom, read_dicom_series
from sagittal.formats.dicom_series import Traits, split_series
from sagittal.read.files import group, sort_files, walk
from sagittal.read.open_dataset import open_dataset
from sagittal.read.studies import find_studies

ROW = np.array([0.8, 0.36, 0.48])
COLUMN = np.array([-0.6, 0.48, 0.64])
DEPTHS = [0.0, 2.5, 5.0, 7.5]


@pytest.fixture
def write_volumes(write_series, tmp_path):
    """Write volumes of four tilted slices into one series: ``write_volumes([fields, ...])``, names in random order.

    The stored values of volume v, slice k are 100 v + k.
    """

    def write(volumes: list[dict], depths=DEPTHS, **shared) -> Path:
        number = 0
        rng = np.random.default_rng(len(volumes))
        (tmp_path / "s").mkdir(exist_ok=True)
        for v, fields in enumerate(volumes):
            stack = np.stack([np.full((3, 4), 100 * v + k, np.int16) for k in range(len(depths))])
            numbers = {"InstanceNumber": lambda n, v=v: v * len(depths) + n + 1}
            given = {"Modality": "MR", "RescaleSlope": None, "RescaleIntercept": None, **numbers, **shared, **fields}
            own = given.pop("depths", depths)
            for path in write_series(f"part{v}", stack[: len(own)], own, **given):
                path.rename(tmp_path / "s" / f"{rng.integers(10**6):06d}-{number}.dcm")
                number += 1
        return tmp_path / "s"

    return write


def _volumes(folder: Path) -> dict[str, list[int]]:
    """Label of each volume -> the values of its slices, in order of depth."""
    found = {}
    for part in group(walk(folder)):
        options = {"volume": part.volume} if part.volume else {}
        image = read_dicom_series(part.files, **options)
        values = image.data[0, 0, 0]
        assert np.ptp(image.data[0], axis=(0, 1)).max() == 0
        assert part.label not in found
        found[part.label] = values.astype(int).tolist()
    return found


def _stack(v: int, count: int = 4) -> list[int]:
    return [100 * v + k for k in range(count)]


@pytest.mark.parametrize(
    ("volumes", "labels"),
    [
        ([{"EchoTime": 90.0}, {"EchoTime": 11.0}], ["echo2", "echo1"]),
        ([{"EchoNumbers": 1}, {"EchoNumbers": 2}], ["echo1", "echo2"]),
        ([{"InversionTime": 800}, {"InversionTime": 200}], ["ti2", "ti1"]),
        ([{"TemporalPositionIdentifier": n} for n in (1, 2, 3)], ["phase1", "phase2", "phase3"]),
        ([{"AcquisitionNumber": 7}, {"AcquisitionNumber": 5}], ["acq2", "acq1"]),
        (
            [{"ImageType": ["ORIGINAL", "PRIMARY", kind, "ND"]} for kind in ("M", "P")],
            ["magnitude", "phasemap"],
        ),
        (
            [
                {"ImageType": ["DERIVED", "PRIMARY", "DIXON", kind]}
                for kind in ("WATER", "FAT", "IN_PHASE", "OPP_PHASE")
            ],
            ["water", "fat", "inphase", "opposed"],
        ),
        ([{"ImageType": ["DERIVED", "PRIMARY", kind]} for kind in ("SECRET_NAME", "OTHER")], ["type2", "type1"]),
        # The time of the trigger creeps from slice to slice, as in a cine of several slices.
        (
            [{"TriggerTime": lambda n, t=t: t + 3.0 * n} for t in (0.0, 50.0, 100.0)],
            ["phase1", "phase2", "phase3"],
        ),
        ([{"AcquisitionTime": t} for t in ("235950", "000010")], ["repeat2", "repeat1"]),
        (
            [{"AcquisitionDate": d, "AcquisitionTime": t} for d, t in (("20260101", "235950"), ("20260102", "000010"))],
            ["repeat1", "repeat2"],
        ),
        ([{}, {}], ["repeat1", "repeat2"]),  # nothing but the instance number
        (
            [
                {"DiffusionBValue": b, "DiffusionGradientOrientation": d, "InstanceNumber": lambda n, v=v: 4 * v + n}
                for v, (b, d) in enumerate(
                    ((0.0, None), (1000.0, [1.0, 0, 0]), (1000.0, [0, 1.0, 0]), (1000.0, [0, 0.001, 1.0]))
                )
            ],
            ["b0", "b1000-dir3", "b1000-dir2", "b1000-dir1"],
        ),
        (
            [{"EchoTime": e, "TemporalPositionIdentifier": t} for e in (5.0, 9.0) for t in (1, 2)],
            ["echo1-phase1", "echo1-phase2", "echo2-phase1", "echo2-phase2"],
        ),
    ],
)
def test_volumes_of_one_series_are_told_apart(write_volumes, volumes, labels):
    found = _volumes(write_volumes(volumes))
    assert found == {label: _stack(v) for v, label in enumerate(labels)}


@pytest.mark.parametrize("vendor", ["siemens", "ge", "philips"])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
def test_b_values_of_private_elements(write_volumes, vendor, syntax):
    folder = write_volumes([{}, {}, {}])
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        v = int(header.pixel_array[0, 0]) // 100
        b, direction = ((0, (0, 0, 0)), (800, (1, 0, 0)), (800, (0, 0.6, 0.8)))[v]
        if vendor == "siemens":
            block = header.private_block(0x19, "SIEMENS MR HEADER", create=True)
            block.add_new(0x0C, "IS", str(b))
            if b:
                block.add_new(0x0E, "FD", [float(d) for d in direction])
        elif vendor == "ge":
            block = header.private_block(0x43, "GEMS_PARM_01", create=True)
            block.add_new(0x39, "IS", [str(b + 1_000_000_000), "8", "0", "0"])
            block = header.private_block(0x19, "GEMS_ACQU_01", create=True)
            for element, value in zip((0xBB, 0xBC, 0xBD), direction, strict=True):
                block.add_new(element, "DS", str(value))
        else:
            header.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x03, "FL", float(b))
            block = header.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
            for element, value in zip((0xB0, 0xB1, 0xB2), direction, strict=True):
                block.add_new(element, "FL", float(value))
        header.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(path, header, implicit_vr=syntax.endswith(".2"), little_endian=True)
    assert _volumes(folder) == {"b0": _stack(0), "b800-dir2": _stack(1), "b800-dir1": _stack(2)}


def test_private_elements_of_another_maker_are_not_taken(write_volumes):
    folder = write_volumes([{}, {}])
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        block = header.private_block(0x19, "ANOTHER MAKER", create=True)
        block.add_new(0x0C, "IS", str(int(header.pixel_array[0, 0]) // 100 * 500))
        header.save_as(path)
    assert set(_volumes(folder)) == {"repeat1", "repeat2"}


def test_a_localiser_becomes_its_planes(write_volumes):
    axes = {"sagittal": [0, 1, 0, 0, 0, -1], "coronal": [1, 0, 0, 0, 0, -1], "axial": [1, 0, 0, 0, 1, 0]}
    folder = write_volumes(
        [
            {
                "ImageOrientationPatient": axis,
                "ImagePositionPatient": lambda n, a=axis: (n * 5.0 * np.cross(a[:3], a[3:])).tolist(),
                "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
            }
            for axis in axes.values()
        ]
    )
    assert _volumes(folder) == {name: _stack(v) for v, name in enumerate(axes)}


def test_two_stacks_of_one_plane_but_other_angle_are_numbered(write_volumes):
    axes = [[1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0.96, 0.28]]
    folder = write_volumes(
        [
            {
                "ImageOrientationPatient": axis,
                "ImagePositionPatient": lambda n, a=axis: (n * 5.0 * np.cross(a[:3], a[3:])).tolist(),
            }
            for axis in axes
        ]
    )
    assert _volumes(folder) == {"axial-1": _stack(0), "axial-2": _stack(1)}


def test_sizes_spacings_and_frames_of_reference_are_never_mixed(write_volumes):
    folder = write_volumes(
        [{"PixelSpacing": [0.7, 0.5]}, {"PixelSpacing": [0.9, 0.5]}, {"FrameOfReferenceUID": "1.2.3"}]
    )
    found = _volumes(folder)
    assert sorted(found.values()) == [_stack(0), _stack(1), _stack(2)]
    assert all(label for label in found)


def test_runs_of_slices_at_two_places_are_two_volumes(write_volumes):
    far = [d + 100 for d in DEPTHS]
    folder = write_volumes([{"AcquisitionNumber": 1}, {"AcquisitionNumber": 2, "depths": far}])
    assert _volumes(folder) == {"acq1": _stack(0), "acq2": _stack(1)}


def test_a_number_that_counts_images_splits_nothing(write_volumes):
    folder = write_volumes([{"AcquisitionNumber": lambda n: n, "ContentTime": lambda n: f"12000{n}"}])
    assert _volumes(folder) == {"": _stack(0)}


def test_an_incomplete_repetition_is_refused_never_interleaved(write_volumes):
    folder = write_volumes([{}, {"depths": DEPTHS[:3]}])
    (part,) = group(walk(folder))
    assert len(part.files) == 7
    assert "positions hold 1 to 2 frames each" in part.reason
    with pytest.raises(GeometryError, match=r"3 slices lie at the place of another.*34\.00, 34\.00, 36\.50"):
        read_dicom_series(part.files)


def test_an_incomplete_echo_leaves_the_other_whole(write_volumes):
    folder = write_volumes([{"EchoTime": 5}, {"EchoTime": 9, "depths": [0.0, 2.5, 7.5, 10.0]}], depths=[*DEPTHS, 10.0])
    parts = {part.label: part for part in group(walk(folder))}
    assert read_dicom_series(parts["echo1"].files).grid.shape == (4, 3, 5)
    with pytest.raises(GeometryError, match=r"5\.00 mm between slices 2 and 3"):
        read_dicom_series(parts["echo2"].files)


def test_two_distances_are_told_as_they_are(write_volumes):
    folder = write_volumes([{}], depths=[0.0, 2.5, 7.5])
    with pytest.raises(GeometryError, match=r"5\.00 mm between slices 2 and 3, 2\.50 mm elsewhere \(1 missing\)"):
        read_dicom_series(sorted(folder.iterdir()))


def test_all_files_at_once_say_which_volumes_there_are(write_volumes):
    files = sorted(write_volumes([{"EchoTime": 5}, {"EchoTime": 9}]).iterdir())
    with pytest.raises(
        GeometryError,
        match=r"lie at the place of another.*2 volumes \(slices\) in one series: echo1 \(4\), echo2 \(4\)",
    ):
        read_dicom_series(files)
    image = read_dicom_series(files, volume="echo2")
    np.testing.assert_array_equal(image.data[0, 0, 0], _stack(1))
    with pytest.raises(ConfigError, match="no volume 'echo3'. Did you mean 'echo"):
        read_dicom_series(files, volume="echo3")


# ---- files


def test_exact_copies_count_once_wherever_they_lie(write_volumes, tmp_path):
    folder = write_volumes([{}])
    shutil.copytree(folder, folder / "again")
    assert _volumes(folder) == {"": _stack(0)}


def test_one_uid_with_two_contents_is_refused(write_volumes):
    folder = write_volumes([{}])
    first = sorted(folder.iterdir())[0]
    header = pydicom.dcmread(first)
    header.PixelData = b"\1" * len(header.PixelData)
    header.save_as(folder / "other.dcm")
    (part,) = group(walk(folder))
    assert "SOP Instance UID differ" in part.reason
    with pytest.raises(ReadError, match="two files carry the same SOP Instance UID and differ"):
        read_dicom_series(part.files)


def test_one_image_in_two_transfer_syntaxes_counts_once(write_volumes, tmp_path):
    folder = write_volumes([{}])
    for n, path in enumerate(sorted(folder.iterdir())):
        header = pydicom.dcmread(path)
        header.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        header.save_as(folder / f"rle-{n}.dcm")
    (part,) = group(walk(folder))
    assert len(part.files) == 8
    np.testing.assert_array_equal(read_dicom_series(part.files).data[0, 0, 0], _stack(0))


def test_series_of_several_patients_in_one_folder_stay_apart(write_volumes, tmp_path):
    folder = write_volumes([{"PatientID": "A"}, {"PatientID": "B"}, {"SeriesInstanceUID": "9.8.7", "PatientID": "A"}])
    cases = find_studies(folder)
    assert len(cases) == 3
    assert len({case.patient for case in cases}) == 2
    assert sorted(case.image().data[0, 0, 0].astype(int).tolist() for case in cases) == [_stack(v) for v in range(3)]


def test_cases_say_what_tells_them_apart_and_nothing_of_the_patient(write_volumes):
    cases = find_studies(write_volumes([{"EchoTime": 5}, {"EchoTime": 9}], SeriesDescription="SECRET words"))
    assert [case.id[-6:] for case in cases] == ["-echo1", "-echo2"]
    assert len({case.patient for case in cases}) == 1
    for case in cases:
        assert case.id.startswith("mr-")
        assert "of 2 of its series, told apart by echo time (0018,0081)" in case.source
        assert "SECRET" not in repr((case.id, case.source, case.patient))
        assert case.image().grid.shape == (4, 3, 4)


def test_files_named_one_by_one_are_one_volume(write_volumes):
    (case,) = find_studies(sorted(write_volumes([{}]).iterdir()))
    assert case.image().grid.shape == (4, 3, 4)


def test_objects_without_image_are_told(write_volumes, write_slice, tmp_path):
    folder = write_volumes([{}])
    write_slice("s/report.dcm", np.zeros((2, 2), np.int16), Modality="SR", SeriesInstanceUID="7.7")
    groups, skipped = sort_files(walk(folder))
    assert len(groups) == 1
    (left,) = skipped
    assert left.reason == "an object of modality SR, not an image of a patient"


def test_a_tree_takes_each_volume_of_a_series_with_its_row(write_volumes, tmp_path):
    folder = write_volumes([{"EchoTime": 5}, {"EchoTime": 9}])
    (tmp_path / "labels.csv").write_text("SeriesInstanceUID,label\n1.2.3.4.5,yes\n7.7,no\n")
    dataset = open_dataset(folder, labels=tmp_path / "labels.csv")
    assert dataset.layout == "dicom_tree"
    assert [case.id.split("-")[2] for case in dataset] == ["echo1", "echo2"]
    assert [case.image().data[0, 0, 0].tolist() for case in dataset] == [_stack(0), _stack(1)]
    assert len(dataset.patients) == 1
    assert "1 series of several volumes split into 2" in dataset.notes
    assert all("told apart by echo time" in case.source for case in dataset)


# ---- multi-frame


def _item(**fields) -> Dataset:
    item = Dataset()
    for name, value in fields.items():
        setattr(item, name, value)
    return item


def _sequence(**fields) -> Sequence:
    return Sequence([_item(**fields)])


def _enhanced(write_slice, name, frames, **fields):
    """An enhanced MR of frames (value, depth, groups) on the tilted plane."""
    normal = np.cross(ROW, COLUMN)
    own = []
    for _, depth, groups in frames:
        position = [round(float(v), 6) for v in np.array([10.0, -20.0, 30.0]) + depth * normal]
        own.append(_item(PlanePositionSequence=_sequence(ImagePositionPatient=position), **groups))
    shared = _item(
        PlaneOrientationSequence=_sequence(ImageOrientationPatient=[*ROW, *COLUMN]),
        PixelMeasuresSequence=_sequence(PixelSpacing=[0.7, 0.5], SliceThickness=2.5),
    )
    pixels = np.stack([np.full((3, 4), value, np.uint16) for value, _, _ in frames])
    given = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4.1",
        "Modality": "MR",
        "NumberOfFrames": len(frames),
        "PixelData": pixels.tobytes(),
        "SharedFunctionalGroupsSequence": Sequence([shared]),
        "PerFrameFunctionalGroupsSequence": Sequence(own),
        "FrameOfReferenceUID": "1.2.3",
        **fields,
    }
    return write_slice(name, pixels[0], **given)


ENHANCED = {
    "echo": [{"MREchoSequence": {"EffectiveEchoTime": t}} for t in (5.0, 9.0)],
    "b": [{"MRDiffusionSequence": {"DiffusionBValue": b}} for b in (0.0, 50.0)],
    "phase": [{"FrameContentSequence": {"TemporalPositionIndex": n}} for n in (1, 2)],
    "heart": [{"CardiacSynchronizationSequence": {"NominalPercentageOfCardiacPhase": p}} for p in (30.0, 75.0)],
    "type": [
        {"MRImageFrameTypeSequence": {"FrameType": ["ORIGINAL", "PRIMARY"], "ComplexImageComponent": c}}
        for c in ("MAGNITUDE", "PHASE")
    ],
    "stack": [{"FrameContentSequence": {"StackID": s}} for s in ("1", "2")],
    "time": [
        {"FrameContentSequence": {"FrameAcquisitionDateTime": t}} for t in ("20260101120000.5", "20260101120001.25")
    ],
}


@pytest.mark.parametrize(
    ("key", "labels"),
    [
        ("echo", ("echo1", "echo2")),
        ("b", ("b0", "b50")),
        ("phase", ("phase1", "phase2")),
        ("heart", ("phase1", "phase2")),
        ("type", ("magnitude", "phasemap")),
        ("stack", ("stack1", "stack2")),
        ("time", ("repeat1", "repeat2")),
    ],
)
def test_volumes_in_one_file_are_told_apart_by_functional_groups(write_slice, tmp_path, key, labels):
    frames = [
        (100 * v + k, 2.5 * k, {name: _sequence(**fields) for name, fields in ENHANCED[key][v].items()})
        for k in (2, 0, 1)
        for v in (1, 0)
    ]
    path = _enhanced(write_slice, "e/a.dcm", frames)
    assert _volumes(tmp_path / "e") == {label: _stack(v, 3) for v, label in enumerate(labels)}
    with pytest.raises(GeometryError, match=rf"2 volumes .*{labels[0]} \(3\), {labels[1]} \(3\).*volume='{labels[0]}'"):
        read_dicom(path)
    cases = find_studies(path)
    assert sorted(case.id.split("-", 2)[2] for case in cases) == sorted(labels)
    assert all(case.image().grid.shape == (4, 3, 3) for case in cases)
    assert {case.images["image"].options["volume"] for case in cases} == set(labels)


def test_frames_told_apart_by_a_dimension_index_alone(write_slice, tmp_path):
    frames = [
        (100 * v + k, 2.5 * k, {"FrameContentSequence": _sequence(DimensionIndexValues=[1, k + 1, v + 1])})
        for v in (0, 1)
        for k in range(3)
    ]
    _enhanced(write_slice, "e/a.dcm", frames)
    assert _volumes(tmp_path / "e") == {"index1": _stack(0, 3), "index2": _stack(1, 3)}


def test_enhanced_files_of_one_frame_and_of_a_concatenation_are_one_volume(write_slice, tmp_path):
    for k in (2, 0, 1):
        _enhanced(write_slice, f"one/{k}.dcm", [(k, 2.5 * k, {})])
    for part, ks in enumerate(((3, 1), (0, 2))):
        frames = [(k, 2.5 * k, {}) for k in ks]
        _enhanced(write_slice, f"parts/{part}.dcm", frames, ConcatenationUID="4.5.6", SeriesInstanceUID="9.9")
    assert _volumes(tmp_path / "one") == {"": [0, 1, 2]}
    assert _volumes(tmp_path / "parts") == {"": [0, 1, 2, 3]}


def test_single_frame_enhanced_files_of_two_echoes(write_slice, tmp_path):
    for k in range(3):
        for v, groups in enumerate(ENHANCED["echo"]):
            own = {name: _sequence(**fields) for name, fields in groups.items()}
            _enhanced(write_slice, f"e/{k}-{v}.dcm", [(100 * v + k, 2.5 * k, own)])
    assert _volumes(tmp_path / "e") == {"echo1": _stack(0, 3), "echo2": _stack(1, 3)}


def test_numbers_that_are_none_tell_nothing_apart(write_slice, tmp_path):
    nan = float("nan")
    groups = [{"MRDiffusionSequence": _sequence(DiffusionBValue=b)} for b in (nan, 0.0)]
    frames = [(100 * v + k, 2.5 * k, groups[v]) for v in (0, 1) for k in range(3)]
    _enhanced(write_slice, "e/a.dcm", frames)
    assert _volumes(tmp_path / "e") == {"other": _stack(0, 3), "b0": _stack(1, 3)}


# ---- the law of splitting


def test_every_frame_lands_in_one_part_whatever_its_traits():
    rng = np.random.default_rng(0)
    names = ("type", "echo", "b", "direction", "phase", "acquisition")
    for _ in range(60):
        frames = [
            Traits(
                size=(4, 4),
                orientation=(1.0, 0, 0, 0, 1.0, 0) if rng.random() < 0.9 else None,
                position=(0.0, 0.0, float(rng.integers(4))) if rng.random() < 0.9 else None,
                told={
                    n: (str(rng.integers(2)),) if n in {"type", "direction"} else float(rng.integers(3))
                    for n in names
                    if rng.random() < 0.5
                },
                order={"number": float(n)},
            )
            for n in range(int(rng.integers(1, 30)))
        ]
        parts = split_series(frames)
        assert sorted(m for part in parts for m in part.members) == list(range(len(frames)))
        assert len({part.label for part in parts}) == len(parts)
