"""The outlines that DICOM objects hold, segmentations and structure sets alike, joined on the grid of their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.errors import SagittalError
from sagittal.formats.dicom import read_dicom
from sagittal.formats.dicom_file import scan_dicom
from sagittal.formats.dicom_seg import read_dicom_seg
from sagittal.formats.open_image import reader_of
from sagittal.formats.rtstruct import read_rtstruct
from sagittal.truth import Segmentation


def object_kind(path: Path) -> str:
    """The modality of a DICOM file, upper case; empty for any other file."""
    if reader_of(path) is not read_dicom:
        return ""
    try:
        return scan_dicom(path, {"Modality": 0x00080060})["Modality"].upper()
    except SagittalError:
        return ""


def read_outlines(
    files: Sequence[Path], *, objects: int = 1, reading: Mapping[str, Any] | None = None, threshold: float = 0.5
) -> Segmentation:
    """The structures that one or several DICOM objects outline, on the grid of the image series.

    Parameters
    ----------
    files : sequence of Path
        The objects, SEG or RTSTRUCT, then the files of the series.
    objects : int
        How many of the files are objects.
    reading : mapping, optional
        How the series is read.
    threshold : float
        From which share on a voxel of a fractional segmentation counts.

    Raises
    ------
    ReadError, GeometryError
        As :func:`sagittal.formats.dicom_seg.read_dicom_seg` and :func:`sagittal.formats.rtstruct.read_rtstruct`.
    """
    series, options = tuple(files[objects:]), dict(reading or {})
    parts = [
        read_rtstruct(path, series, **options)
        if object_kind(path) == "RTSTRUCT"
        else read_dicom_seg(path, series, threshold=threshold, **options)
        for path in files[:objects]
    ]
    if len(parts) == 1:
        return parts[0]
    kind = np.result_type(*(part.layers.dtype for part in parts))
    structures = []
    before = 0
    for part in parts:
        structures += [replace(one, layer=one.layer + before) for one in part.structures]
        before += len(part.layers)
    layers = np.concatenate([part.layers.astype(kind, copy=False) for part in parts])
    return Segmentation(layers, parts[0].grid, tuple(structures))
