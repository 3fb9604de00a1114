"""Fixtures that every room's tests share: the benchmark data, and phantoms of DICOM, pictures and tables."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

ROOT = Path(__file__).resolve().parents[1]

if os.environ.get("CI"):

    def _demanded(name: str, *_: Any, **__: Any) -> Any:
        """In CI a missing component is a failure; elsewhere it is a skip with its reason."""
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.fail(f"CI lacks {name}: {error}", pytrace=False)

    pytest.importorskip = _demanded


@pytest.fixture(scope="session")
def bench_data() -> Path:
    """The folder of real benchmark data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("SAGITTAL_BENCH_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        if os.environ.get("CI") and "SAGITTAL_BENCH_DATA" in os.environ:
            pytest.fail("SAGITTAL_BENCH_DATA names a folder that does not exist")
        pytest.skip("benchmark data not found: set SAGITTAL_BENCH_DATA to its folder")
    return folder


#: A tilted plane: rows run to the left and up, columns to the back and down; not along any axis.
ROW = np.array([0.8, 0.36, 0.48])
COLUMN = np.array([-0.6, 0.48, 0.64])


def make_header(pixels: np.ndarray, **fields: Any) -> Dataset:
    """A CT slice of some pixels, (rows, columns) or (rows, columns, 3)."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = fields.pop("TransferSyntaxUID", ExplicitVRLittleEndian)
    header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    header.SOPInstanceUID = generate_uid()
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.StudyInstanceUID = "1.2.3.4"
    header.SeriesInstanceUID = "1.2.3.4.5"
    header.PatientID = "SECRET-ID"
    header.PatientName = "Secret^Name"
    header.Modality = "CT"
    header.Rows, header.Columns = pixels.shape[:2]
    header.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    header.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        header.PlanarConfiguration = 0
    header.BitsAllocated = header.BitsStored = 8 * pixels.dtype.itemsize
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    header.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    header["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    for name, value in fields.items():
        if value is None:
            if name in header:
                delattr(header, name)
        else:
            setattr(header, name, value)
    return header


@pytest.fixture
def write_slice(tmp_path: Path) -> Callable[..., Path]:
    """Write one DICOM file: ``write_slice(name, pixels, **fields)``; ``None`` leaves a field out."""

    def write(name: str, pixels: np.ndarray, **fields: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pydicom.dcmwrite(path, make_header(pixels, **fields), enforce_file_format=True)
        return path

    return write


@pytest.fixture
def write_series(write_slice: Callable[..., Path]) -> Callable[..., list[Path]]:
    """Write slices at given depths in mm along the normal of the tilted plane; names go against the order."""

    def write(folder: str, volume: np.ndarray, depths: list[float], **fields: Any) -> list[Path]:
        normal = np.cross(ROW, COLUMN)
        paths = []
        for number, (plane, depth) in enumerate(zip(volume, depths, strict=True)):
            place = np.array([10.0, -20.0, 30.0]) + depth * normal
            given = {
                "ImageOrientationPatient": [*ROW, *COLUMN],
                "ImagePositionPatient": [round(float(v), 6) for v in place],
                "PixelSpacing": [0.7, 0.5],  # between rows, between columns
                "InstanceNumber": number + 1,
                "RescaleSlope": 1,
                "RescaleIntercept": -1024,
                **fields,
            }
            given = {k: v(number) if callable(v) else v for k, v in given.items()}
            paths.append(write_slice(f"{folder}/{len(depths) - number:03d}.dcm", plane, **given))
        return paths

    return write


@pytest.fixture
def write_png(tmp_path: Path) -> Callable[..., Path]:
    """Write a picture of pixels: ``write_png(name, pixels)``."""
    from PIL import Image as Pictures

    def write(name: str, pixels: np.ndarray | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if pixels is None:
            pixels = np.random.default_rng(sum(name.encode())).integers(0, 255, (9, 12), dtype=np.uint8)
        Pictures.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def write_nifti(tmp_path: Path) -> Callable[..., Path]:
    """Write a volume of 0.7 x 0.8 x 3 mm voxels: ``write_nifti(name, values)``."""
    import nibabel

    def write(name: str, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        place = np.diag([0.7, 0.8, 3.0, 1.0]) if affine is None else affine
        nibabel.save(nibabel.Nifti1Image(values, place), path)
        return path

    return write


@pytest.fixture
def write_text(tmp_path: Path) -> Callable[..., Path]:
    """Write a text file, or anything else as JSON: ``write_text(name, {"a": 1})``."""
    import json

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_seg() -> Callable[..., Path]:
    """Write a DICOM SEG: ``write_seg(path, images, masks, kind)``; see :func:`make_seg`."""
    pytest.importorskip("highdicom")
    return make_seg


@pytest.fixture
def write_rtstruct() -> Callable[..., Path]:
    """Write a structure set: ``write_rtstruct(path, images, {name: contours})``; see :func:`make_rtstruct`."""
    return make_rtstruct


@pytest.fixture
def contour() -> Callable[..., Dataset]:
    """A contour of points in mm: ``contour(points, kind)``."""
    return make_contour


def _describe(*names: str) -> list[Any]:
    import highdicom as hd

    code = hd.sr.CodedConcept("10200004", "SCT", "Liver")
    kind = hd.seg.SegmentAlgorithmTypeValues.MANUAL
    return [hd.seg.SegmentDescription(n, name, code, code, kind) for n, name in enumerate(names, start=1)]


def make_seg(
    path: Path,
    images: list[Path],
    masks: np.ndarray,
    kind: str = "BINARY",
    names: tuple[str, ...] = ("liver", "lesion"),
    syntax: str = ExplicitVRLittleEndian,
    **changes: Any,
) -> Path:
    """A segmentation of (K, J, I) label values or (K, J, I, N) masks in the order of the planes' positions."""
    import highdicom as hd

    headers = sorted((pydicom.dcmread(p) for p in images), key=lambda h: h.InstanceNumber)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = hd.seg.Segmentation(
            headers, masks, kind, _describe(*names), generate_uid(), 9, generate_uid(), 1, "m", "m", "1", "1",
            transfer_syntax_uid=syntax, **changes,
        )  # fmt: skip
        made.save_as(path)
    return path


def make_contour(points: np.ndarray, kind: str = "CLOSED_PLANAR") -> Dataset:
    """A contour of (N, 3) points in mm."""
    item = Dataset()
    item.ContourGeometricType = kind
    item.NumberOfContourPoints = len(points)
    item.ContourData = [f"{v:.6f}" for v in np.ravel(points)]
    return item


def make_rtstruct(path: Path, images: list[Path], rois: dict[str, list[Any]], **changes: Any) -> Path:
    """A structure set; `rois` is name -> contours, each (N, 3) voxel indices or a contour item."""
    from sagittal.formats.dicom import read_dicom_series

    headers = [pydicom.dcmread(p, stop_before_pixels=True) for p in images]
    affine = read_dicom_series(images).grid.affine
    made = Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = "1.2.3.7"
    made.Modality = "RTSTRUCT"
    made.PatientID, made.StudyInstanceUID, made.SeriesInstanceUID = "SECRET-ID", "1.2.3.4", "1.2.3.4.6"
    made.StructureSetROISequence, made.ROIContourSequence = [], []
    frame, study, series = Dataset(), Dataset(), Dataset()
    frame.FrameOfReferenceUID, series.SeriesInstanceUID = "1.2.3.4.9", headers[0].SeriesInstanceUID
    series.ContourImageSequence = []
    for header in headers:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        series.ContourImageSequence.append(item)
    study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [series], [study]
    made.ReferencedFrameOfReferenceSequence = [frame]
    for number, (name, contours) in enumerate(rois.items(), start=3):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, drawn.ReferencedROINumber = number, name, number
        given = [
            c if isinstance(c, Dataset) else make_contour(np.c_[c, np.ones(len(c))] @ affine.T[:, :3]) for c in contours
        ]
        if given:
            drawn.ContourSequence = given
        made.StructureSetROISequence.append(roi)
        made.ROIContourSequence.append(drawn)
    for name, value in changes.items():
        setattr(made, name, value)
    pydicom.dcmwrite(path, made, enforce_file_format=True)
    return path
