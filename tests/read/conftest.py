"""Phantoms: DICOM slices, series and pictures written with known values at known places."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

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
