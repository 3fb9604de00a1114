"""One look at each case, in processes with limits: what is kept, and what a broken file does."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image as Pillow

from sagittal.case import Case, ImageSource
from sagittal.check import survey as survey_module
from sagittal.check.check_dataset import check_dataset
from sagittal.check.facts import PERCENTILES, look_at
from sagittal.check.picture import draw, in_picture
from sagittal.check.survey import survey
from sagittal.dataset import Dataset
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.read.sources import file_source
from sagittal.truth import Segmentation, Structure


@pytest.fixture
def pictures(tmp_path, make_pixels):
    """Eight sound pictures, one cut off, one empty, one that is text, one with absurd dimensions."""
    for n in range(8):
        Pillow.fromarray(make_pixels(n, (40, 60))).save(tmp_path / f"p{n}.png")
    whole = (tmp_path / "p0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "absurd.png").write_bytes(absurd_png())
    return tmp_path


def absurd_png():
    """A PNG that declares 100,000 x 100,000 pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def cases_of(folder):
    return [Case(p.stem, p.stem, {"image": file_source(p.stem, p)}) for p in sorted(folder.iterdir())]


def test_facts_are_those_of_the_pixels(pictures, make_pixels):
    facts = survey(cases_of(pictures))
    assert list(facts) == [case.id for case in cases_of(pictures)]
    pixels = make_pixels(3, (40, 60)).astype(float)
    image = facts["p3"].images["image"]
    assert (image.shape, image.channels, image.bits, image.unit, image.finite) == ((60, 40, 1), 1, 8, "1", 1.0)
    assert (image.low, image.high) == (pixels.min(), pixels.max())
    assert image.mean == pytest.approx(pixels.mean())
    assert image.sd == pytest.approx(pixels.std())
    assert image.percentiles == pytest.approx(np.percentile(pixels, PERCENTILES))
    assert image.descriptor.shape == (32, 32)
    shown = Pillow.open(io.BytesIO(image.picture.tobytes()))
    assert shown.size == (96, 64)
    assert np.corrcoef(np.asarray(shown.resize((60, 40))).ravel(), pixels.ravel())[0, 1] > 0.95


def test_broken_files_are_told_and_do_not_stop_the_rest(pictures):
    facts = survey(cases_of(pictures))
    failed = {case for case, found in facts.items() if found.failed}
    assert failed == {"cut", "empty", "text", "absurd"}
    assert all(found.failed["image"].startswith(f"case {case}:") for case, found in facts.items() if found.failed)
    assert all(facts[f"p{n}"].images for n in range(8))
    findings = check_dataset(Dataset("set", tuple(cases_of(pictures))), pixels="all")
    told = next(f for f in findings if f.code == "unreadable")
    assert set(told.cases) == set(told.details) == failed
    assert told.message.startswith("4 of 12 cases cannot be read and are left out; the first: case absurd:")


def test_processes_and_this_one_see_the_same(pictures):
    """Two workers, one, and no other process."""
    cases = [case for case in cases_of(pictures) if case.id.startswith("p")]
    here = [look_at(case)["images"]["image"] for case in cases]
    for workers in (1, 2):
        there = survey(cases, workers=workers)
        for case, mine in zip(cases, here, strict=True):
            image = there[case.id].images["image"]
            assert (image.digest, image.values, image.mean) == (mine["digest"], mine["values"], mine["mean"])
            np.testing.assert_array_equal(image.descriptor, mine["descriptor"])


def test_a_picture_beyond_the_memory_of_a_case_is_an_error_of_that_case(pictures, monkeypatch):
    Pillow.new("L", (9000, 4000)).save(pictures / "large.png")  # 144 MB as float32
    monkeypatch.setattr(survey_module, "MEMORY_BYTES", 10**8)
    facts = survey([case for case in cases_of(pictures) if case.id in {"large", "p0"}])
    assert "memory" in facts["large"].failed["image"]
    assert facts["large"].failed["image"].startswith("case large:")
    assert facts["p0"].images


def test_relative_paths_are_those_of_this_process(pictures, monkeypatch):
    """The processes that read may have been started while another folder was the current one."""
    survey([case for case in cases_of(pictures) if case.id == "p0"])
    monkeypatch.chdir(pictures)
    from pathlib import Path

    relative = [Case(f"p{n}", f"p{n}", {"image": file_source(f"p{n}", Path(f"p{n}.png"))}) for n in range(4)]
    assert not any(found.failed for found in survey(relative).values())


@pytest.mark.parametrize(
    "values",
    [
        [-3.4e38, 3.4e38],
        [np.nan, np.nan],
        [np.inf, -np.inf],
        [np.nan, 5.0],
        [1e-45, 2e-45],
        [-1.0, 70_000.0],
    ],
)
def test_absurd_values_are_looked_at_all_the_same(values):
    data = np.resize(np.array(values, np.float32), (1, 20, 30, 1))
    case = Case("c", "c", {"image": ImageSource(lambda: Image(data, Grid((20, 30, 1)), bits=16))})
    facts = survey([case])["c"].images["image"]
    finite = data[np.isfinite(data)]
    assert facts.finite == pytest.approx(finite.size / data.size)
    assert facts.picture is not None
    assert facts.descriptor is None or np.isfinite(facts.descriptor).all()
    if finite.size:
        assert (facts.low, facts.high) == (finite.min(), finite.max())
    else:
        assert np.isnan(facts.low)


def test_no_pictures_where_none_are_wanted(pictures):
    cases = [case for case in cases_of(pictures) if case.id.startswith("p")]
    assert all(found.images["image"].picture is None for found in survey(cases, pictures=False).values())


def test_what_a_case_leaves_is_small(pictures):
    case = next(case for case in cases_of(pictures) if case.id == "p0")
    kept = look_at(case)["images"]["image"]
    assert sum(value.nbytes for value in kept.values() if isinstance(value, np.ndarray)) < 8000


def test_unsafe_dicom(tmp_path, make_pixels):
    """Text burned in, and a file that is a program too: both told, neither stops the reading."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    for n, burned in enumerate(("YES", "NO", None)):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{n}"
        header = FileDataset(None, {}, file_meta=meta, preamble=(b"MZ" if n == 1 else b"\0\0") + b"\0" * 126)
        header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        header.StudyInstanceUID, header.SeriesInstanceUID, header.PatientID = "1.2", f"1.2.{n}", f"SECRET{n}"
        header.Modality, header.Rows, header.Columns, header.SamplesPerPixel = "OT", 40, 50, 1
        header.PhotometricInterpretation, header.PixelRepresentation = "MONOCHROME2", 0
        header.BitsAllocated = header.BitsStored = 8
        header.HighBit = 7
        header.PixelData = make_pixels(n, (40, 50)).tobytes()
        if burned is not None:
            header.BurnedInAnnotation = burned
        pydicom.dcmwrite(tmp_path / f"d{n}.dcm", header, enforce_file_format=True)
    findings = {f.code: f for f in check_dataset(Dataset("set", tuple(cases_of(tmp_path))), pixels="all")}
    assert findings["burned-in"].cases == ("d0",)
    assert (findings["executable-preamble"].severity, findings["executable-preamble"].cases) == ("error", ("d1",))
    assert "unreadable" not in findings


# Pictures --------------------------------------------------------------------------------------------------------------


def shown(image, mask=None, side=96):
    return np.asarray(Pillow.open(io.BytesIO(draw(image, mask, side))))


def test_ct_is_shown_in_a_soft_tissue_window():
    values = np.full((1, 40, 40, 1), -1000, np.float32)
    values[0, 10:30, 10:30], values[0, 15:25, 15:25] = 40, 1000
    picture = shown(Image(values, Grid((40, 40, 1)), unit="HU", modality="CT"), side=40)
    assert picture[2, 2] < 5
    assert 120 < picture[12, 20] < 136  # 40 HU lies in the middle of -160 to 240
    assert picture[20, 20] > 250


def test_a_head_is_shown_upright():
    """Stored with i towards the right and j towards the front, as NIfTI files often are: nose up, left on the right."""
    values = np.zeros((1, 40, 40, 3), np.float32)
    values[0, 18:22, 34:, :] = 100  # the nose, in front
    values[0, 34:, 18:22, :] = 50  # the right ear
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS+: i points to the right, j to the front
    picture = shown(Image(values, Grid((40, 40, 3), affine)), side=40).astype(int)
    assert picture[2, 20] > 200
    assert 80 < picture[20, 2] < 180
    assert picture[37, 20] < 20
    assert picture[20, 37] < 20


def test_a_coronal_slice_stands_on_its_feet():
    values = np.zeros((1, 40, 40, 2), np.float32)
    values[0, :, 35:] = 100  # the top of the head: j points up
    affine = np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])
    picture = shown(Image(values, Grid((40, 40, 2), affine)), side=40)
    assert picture[2, 20] > 200
    assert picture[37, 20] < 20


def test_pixels_are_drawn_to_scale():
    values = np.random.default_rng(0).normal(size=(1, 40, 40, 1)).astype(np.float32)
    assert shown(Image(values, Grid((40, 40, 1)))).shape[:2] == (96, 96)
    assert shown(Image(values, Grid((40, 40, 1), spacing=(1.0, 0.5, np.nan)))).shape[:2] == (48, 96)
    assert shown(Image(values, Grid((40, 40, 1), spacing=(1.0, 0.5, 2.0)))).shape[:2] == (48, 96)


def test_the_outline_lies_where_the_mask_lies_in_the_patient():
    """The mask has half as many, twice as large voxels and starts elsewhere; the slice with most of it is shown."""
    grid = Grid((40, 40, 12), np.diag([1.0, 1.0, 1.0, 1.0]))
    values = np.zeros((1, *grid.shape), np.float32)
    values[0, 0, 0] = 1
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 10.5, 4.5, 0.5
    layers = np.zeros((1, 10, 10, 5), np.uint8)
    layers[0, 2:6, 3:7, 2] = 1  # x from 13.5 to 21.5 mm, y from 9.5 to 17.5 mm, at z = 4.5
    mask = Segmentation(layers, Grid((10, 10, 5), affine), (Structure("a", (1,)),))
    picture = shown(Image(values, grid), mask, side=160).astype(int)
    orange = (picture[..., 0] > 120) & (picture[..., 2] < 90)
    rows, columns = np.nonzero(orange)
    # a pixel is 0.25 mm, and voxel 0 reaches from -0.5 to 0.5 mm
    assert abs(columns.min() * 0.25 - 0.5 - 13.5) < 1
    assert abs(columns.max() * 0.25 - 0.5 - 21.5) < 1
    assert abs(rows.min() * 0.25 - 0.5 - 9.5) < 1
    assert abs(rows.max() * 0.25 - 0.5 - 17.5) < 1
    assert not orange[rows.min() + 6 : rows.max() - 6, columns.min() + 6 : columns.max() - 6].any()


def test_a_box_in_a_picture():
    box = np.array([[9.5, 3.5, -0.5], [19.5, 23.5, 0.5]])
    assert in_picture(Grid((40, 80, 1)), box) == pytest.approx((0.25, 0.05, 0.25, 0.25))
    flipped = Grid((40, 80, 1), np.diag([-1.0, 1, 1, 1]))
    assert in_picture(flipped, box) == pytest.approx((0.5, 0.05, 0.25, 0.25))
    assert in_picture(Grid((40, 80, 9)), box) is None
