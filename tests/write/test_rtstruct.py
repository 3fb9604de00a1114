"""RTSTRUCT: valid, and contours that give the mask and its volume back to whoever fills them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from sagittal.case import Case
from sagittal.errors import ScopeError
from sagittal.formats.polygons import fill_even_odd
from sagittal.formats.rtstruct import read_rtstruct
from sagittal.prediction import Prediction
from sagittal.read.sources import file_source
from sagittal.write.outlines import outline
from sagittal.write.rtstruct import write_rtstruct

ROW = np.array([0.8, 0.36, 0.48])
COLUMN = np.array([-0.6, 0.48, 0.64])


def area(points: np.ndarray) -> float:
    x, y = points[:, 0], points[:, 1]
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def test_read_back_by_our_reader(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    case = study()
    prediction = found_mask(case.id, case.image().grid)
    path = write_rtstruct(prediction, case, tmp_path / "found.dcm")
    back = read_rtstruct(path, case.images["image"].files)
    truth = prediction.finding.segmentation
    for name in ("Liver", "kidney_left", "Liver Tumor"):
        np.testing.assert_array_equal(back.mask(name), truth.mask(name))
    # The ring has a hole on every slice, joined by a keyhole: one contour a slice.
    header = pydicom.dcmread(path)
    assert len(header.ROIContourSequence[0].ContourSequence) == 8
    assert "ContourSequence" not in header.ROIContourSequence[3]


def test_rounded_and_filled_as_others_do_it(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    """rt-utils rounds corners to whole pixels and fills with the outline included; done here by Pillow."""
    from PIL import Image, ImageDraw

    case = study((40, 36, 5))
    grid = case.image().grid
    prediction = found_mask(case.id, grid)
    header = pydicom.dcmread(write_rtstruct(prediction, case, tmp_path / "found.dcm"))
    names = {int(item.ROINumber): item.ROIName for item in header.StructureSetROISequence}
    inverse = np.linalg.inv(grid.affine)
    for drawn in header.ROIContourSequence[:3]:
        mask = prediction.finding.segmentation.mask(names[int(drawn.ReferencedROINumber)])
        filled = np.zeros(grid.shape, dtype=bool)
        exact = 0.0
        for contour in drawn.ContourSequence:
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            index = points @ inverse[:3, :3].T + inverse[:3, 3]
            k = round(float(index[:, 2].mean()))
            exact += area(index[:, :2])
            whole = [tuple(p) for p in np.rint(index[:, :2]).astype(int).tolist()]
            sheet = Image.new("1", (grid.shape[0], grid.shape[1]))
            ImageDraw.Draw(sheet).polygon(whole, fill=1, outline=1)
            filled[:, :, k] |= np.asarray(sheet).T
        dice = 2 * (filled & mask).sum() / (filled.sum() + mask.sum())
        assert dice > 0.99
        assert exact == pytest.approx(mask.sum(), rel=0.01)


@pytest.mark.parametrize("shape", [(21, 17, 9), (33, 9, 4)])
def test_validator_finds_nothing_wrong(
    study: Callable[..., Case],
    found_mask: Callable[..., Prediction],
    errors_of: Callable[[Path], list[str]],
    tmp_path: Path,
    shape: tuple[int, int, int],
) -> None:
    case = study(shape)
    prediction = found_mask(case.id, case.image().grid, ("liver", "gizmo", "cyst", "pancreas"))
    assert errors_of(write_rtstruct(prediction, case, tmp_path / "found.dcm")) == []


def test_what_the_object_says(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], run_tool: Callable[..., str], tmp_path: Path
) -> None:
    case = study()
    prediction = found_mask(case.id, case.image().grid)
    path = write_rtstruct(prediction, case, tmp_path / "found.dcm")
    header = pydicom.dcmread(path)
    assert header.ApprovalStatus == "UNAPPROVED"
    assert header.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID == "1.2.3.4.99"
    assert {item.ROIGenerationAlgorithm for item in header.StructureSetROISequence} == {"AUTOMATIC"}
    assert header.RTROIObservationsSequence[0].RTROIIdentificationCodeSequence[0].CodeValue == "10200004"
    sources = {
        s.SOPInstanceUID: np.array(s.ImagePositionPatient, dtype=float)
        for s in (pydicom.dcmread(p, stop_before_pixels=True) for p in case.images["image"].files)
    }
    normal = np.cross(ROW, COLUMN)
    for contour in header.ROIContourSequence[0].ContourSequence:
        points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
        place = sources[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        assert np.abs((points - place) @ normal).max() < 1e-4  # in the plane of the image that it names
    assert not any(line.startswith("E:") for line in run_tool("dcmdump", str(path)).splitlines())


def test_every_value_fits_its_representation(
    study: Callable[..., Case], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    case = study(ImagePositionPatient=lambda n: [-1234.56789, 2345.67891, -3456.78912 + 2.5 * n],
                 ImageOrientationPatient=[1, 0, 0, 0, 1, 0])  # fmt: skip
    prediction = found_mask(case.id, case.image().grid)
    header = pydicom.dcmread(write_rtstruct(prediction, case, tmp_path / "found.dcm"))
    for contour in header.ROIContourSequence[0].ContourSequence:
        assert max(len(str(v)) for v in contour.ContourData) <= 16


@pytest.mark.parametrize("fill", [0.2, 0.5, 0.8, 0.95])
def test_outlines_of_any_mask_come_back(fill: float) -> None:
    from scipy import ndimage

    rng = np.random.default_rng(round(100 * fill))
    for _ in range(40):
        mask = rng.random(rng.integers(1, 14, 2)) < fill
        polygons = outline(mask)
        assert len(polygons) == ndimage.label(mask)[1]  # one for each part, holes or not
        parts = [fill_even_odd(p, mask.shape).T for p in polygons]
        filled = np.logical_or.reduce([np.zeros_like(mask), *parts])
        np.testing.assert_array_equal(filled, mask)
        assert sum(int(p.sum()) for p in parts) == mask.sum()
        assert sum(area(p) for p in polygons) == pytest.approx(mask.sum(), abs=0.005 * mask.sum() + 1e-9)


def test_holes_within_holes() -> None:
    mask = np.zeros((15, 15), dtype=bool)
    mask[1:14, 1:14] = True
    mask[3:12, 3:12] = False
    mask[5:10, 5:10] = True
    mask[7, 6:9] = False
    polygons = outline(mask)
    assert len(polygons) == 2
    filled = np.logical_or.reduce([fill_even_odd(p, mask.shape).T for p in polygons])
    np.testing.assert_array_equal(filled, mask)
    assert outline(np.zeros((4, 5), dtype=bool)) == []


def test_a_picture_without_a_place_is_refused(
    write_slice: Callable[..., Path], found_mask: Callable[..., Prediction], tmp_path: Path
) -> None:
    pixels = np.zeros((30, 25), np.uint16)
    path = write_slice("x.dcm", pixels, SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1", Modality="DX")
    case = Case("x", "p", {"image": file_source("x", path)})
    with pytest.raises(ScopeError, match="names no place in the patient, which an RT structure set needs"):
        write_rtstruct(found_mask("x", case.image().grid), case, tmp_path / "found.dcm")


def test_boxes_have_no_contours(study: Callable[..., Case], found_boxes: Callable[..., Any], tmp_path: Path) -> None:
    case = study()
    with pytest.raises(ScopeError, match="an RT structure set holds a mask, and this model finds boxes"):
        write_rtstruct(found_boxes(case.id, case.image().grid), case, tmp_path / "found.dcm")
