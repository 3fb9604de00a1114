"""Siemens mosaics: the slices of one volume laid side by side in one frame."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, sqrt
from typing import Any

import numpy as np
from pydicom.dataset import Dataset as Header

from sagittal.errors import GeometryError
from sagittal.formats.dicom_geometry import Plane

_CREATOR = 0x00290010
_CSA = 0x00291010


def is_mosaic(header: Header) -> bool:
    """Whether a header says that its frame is a mosaic of slices."""
    return "MOSAIC" in [str(word).strip().upper() for word in header.get("ImageType") or ()]


def cut_mosaic(header: Header, plane: Plane) -> list[Plane]:
    """The slices of a mosaic as planes, each a tile of the one frame.

    The number of slices and their normal stand in Siemens' own header (0029,1010), "CSA". ImagePositionPatient is that
    of a single slice of the mosaic's size around the same centre, so that a tile's first voxel lies half the difference
    of sizes further in; the slices follow each other along SliceNormalVector by SpacingBetweenSlices.

    Parameters
    ----------
    header : Header
        All of it, private elements included.
    plane : Plane
        Of the whole frame.

    Raises
    ------
    GeometryError
        If the private header was removed or does not fit the frame: then the slices cannot be placed.
    """
    count, normal = _read_csa(header)
    spacing = header.get("SpacingBetweenSlices")
    side = ceil(sqrt(count))
    rows, columns = plane.layout.rows, plane.layout.columns
    if rows % side or columns % side:
        raise GeometryError(f"DICOM: a mosaic of {count} slices cannot fill a frame of {rows} x {columns}: damaged")
    if plane.position is None or plane.orientation is None or plane.spacing is None or not spacing:
        raise GeometryError(
            "DICOM: a mosaic without position, orientation, PixelSpacing or SpacingBetweenSlices; convert it from the "
            "files that the scanner wrote"
        )
    row, column = plane.orientation[:3], plane.orientation[3:]
    if abs(abs(float(np.cross(row, column) @ normal)) - 1) > 1e-2:
        raise GeometryError("DICOM: the mosaic's SliceNormalVector does not stand on ImageOrientationPatient: damaged")
    height, width = rows // side, columns // side
    corner = (
        plane.position
        + row * plane.spacing[1] * (columns - width) / 2
        + column * plane.spacing[0] * (rows - height) / 2
    )
    return [
        replace(
            plane,
            position=corner + k * abs(float(spacing)) * normal,
            thickness=abs(float(spacing)),
            tile=(k // side * height, k % side * width, height, width),
        )
        for k in range(count)
    ]


def _read_csa(header: Header) -> tuple[int, Any]:
    """How many slices a mosaic has, and the unit vector from one to the next."""
    from nibabel.nicom import csareader

    tags: dict[str, Any] = {}
    if _CSA in header and _CREATOR in header and str(header[_CREATOR].value).strip() == "SIEMENS CSA HEADER":
        tags = csareader.read(bytes(header[_CSA].value))["tags"]  # type: ignore[no-untyped-call]
    count = [int(v) for v in tags.get("NumberOfImagesInMosaic", {}).get("items", ()) if str(v).strip()]
    normal = np.array([float(v) for v in tags.get("SliceNormalVector", {}).get("items", ())], dtype=np.float64)
    if len(count) != 1 or not 1 <= count[0] <= 1024 or normal.shape != (3,) or not np.all(np.isfinite(normal)):
        raise GeometryError(
            "DICOM: a Siemens mosaic whose private header (0029,1010) is missing or damaged, so that the number and "
            "direction of its slices are not known; take the files before de-identification, or the enhanced ones"
        )
    return count[0], normal / max(float(np.linalg.norm(normal)), 1e-9)
