"""Radiotherapy structure sets (RTSTRUCT): contours in the patient to masks on the slices on which they were drawn."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset as Header

from sagittal.errors import GeometryError, ReadError
from sagittal.formats.dicom_file import open_dicom
from sagittal.formats.dicom_references import check_references, items
from sagittal.formats.packed_masks import pack, stack_slices
from sagittal.formats.polygons import fill_even_odd
from sagittal.formats.seg_nrrd import different_names
from sagittal.grid import Grid
from sagittal.guard.limits import as_read_error
from sagittal.truth import Segmentation, Structure
from sagittal.types import Array, Floats

_log = logging.getLogger(__name__)

_WHAT = "RTSTRUCT"
_CLOSED = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"}
#: A contour is flat where its points lie in one plane within this part of the distance between slices.
_FLAT = 0.1
#: Contours may reach out of the image by this much, voxels.
_BORDER = 1.0
#: One contour lies in another where no more than this part of it lies outside.
_INSIDE = 0.02


def read_rtstruct(path: Path, series: Sequence[Path], **reading: Any) -> Segmentation:
    """Read the closed contours of a structure set as masks on the grid of the image series that it refers to.

    A voxel belongs to a structure where its centre lies inside a contour. A contour inside another is a hole, one inside
    that an island (even-odd rule; a keyhole needs nothing more). A contour lies on the slice nearest to it, no further
    than half the distance between slices. Points and open lines have no inside: structures of nothing else are left
    out, and so are structures without any contour, of which nothing is known.

    Parameters
    ----------
    path : Path
    series : sequence of Path
        All files of the image series.
    **reading
        How the series is read, as for :func:`sagittal.formats.dicom.series_grid`.

    Returns
    -------
    Segmentation
        Structures that overlap stand in layers of their own.

    Raises
    ------
    ReadError
        If the file is damaged, no structure set, or refers to other or missing images.
    GeometryError
        If a contour is not parallel to the slices, lies outside the image or crosses another of its structure, or two
        of different depth lie nearest to one slice.

    References
    ----------
    .. [1] DICOM PS3.3 C.8.8.6, ROI Contour Module.
    """
    with as_read_error(_WHAT):
        header = open_dicom(Path(path), pixels=False)
        if str(header.get("Modality") or "") != "RTSTRUCT":
            raise ReadError(f"{_WHAT}: the object is no structure set")
        if not series:
            raise ReadError(
                f"{_WHAT}: contours have no voxels of their own; give the image series that it refers to as well"
            )
        from sagittal.formats.dicom import series_grid

        check_references(header, series, _WHAT, by_instance=True)
        grid = series_grid(series, **reading)
        if grid.affine is None:
            raise GeometryError(f"{_WHAT}: the images that it refers to have no position in the patient")
        return _segmentation(header, grid)


def roi_names(header: Header) -> tuple[str, ...]:
    """The structures of a structure set that have at least one closed contour."""
    contours = _contours(header)
    return tuple(name for number, name in _names(header).items() if contours.get(number))


def _names(header: Header) -> dict[int, str]:
    sequence = items(header, "StructureSetROISequence")
    numbers = [int(item.ROINumber) for item in sequence]
    if not numbers or len(set(numbers)) != len(numbers):
        raise ReadError(f"{_WHAT}: its structures are not described, or not by different numbers: damaged")
    return dict(zip(numbers, different_names(str(item.get("ROIName") or "") for item in sequence), strict=True))


def _contours(header: Header) -> dict[int, list[Header]]:
    """ROI number -> its closed contours."""
    closed: dict[int, list[Header]] = defaultdict(list)
    left_out = 0
    for roi in items(header, "ROIContourSequence"):
        number = int(roi.get("ReferencedROINumber", -1))
        for contour in items(roi, "ContourSequence"):
            if str(contour.get("ContourGeometricType") or "").strip().upper() in _CLOSED:
                closed[number].append(contour)
            else:
                left_out += 1
    if left_out:
        _log.info("%s: %d points or open lines have no inside and are left out", _WHAT, left_out)
    return dict(closed)


def _codes(header: Header) -> dict[int, str]:
    codes = {}
    for observation in items(header, "RTROIObservationsSequence"):
        for code in items(observation, "RTROIIdentificationCodeSequence")[:1]:
            scheme, value = code.get("CodingSchemeDesignator"), code.get("CodeValue")
            if scheme and value:
                codes[int(observation.get("ReferencedROINumber", -1))] = f"{scheme}:{value}"
    return codes


def _segmentation(header: Header, grid: Grid) -> Segmentation:
    names, codes, contours = _names(header), _codes(header), _contours(header)
    if strange := set(contours) - set(names):
        raise ReadError(
            f"{_WHAT}: {len(strange)} sets of contours belong to structures that are not described: damaged"
        )
    inverse = np.linalg.inv(np.asarray(grid.affine))
    masks, told = [], []
    for number, name in names.items():
        if number not in contours:
            continue
        found: dict[int, list[tuple[float, Floats, bool]]] = defaultdict(list)
        for contour in contours[number]:
            points = _points(contour)
            voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
            k = _slice_of(voxels, grid, number)
            found[k].append((float(voxels[:, 2].mean()), voxels[:, :2], "XOR" in str(contour.ContourGeometricType)))
        slices = {k: pack(_join(drawn, grid, number, k)) for k, drawn in found.items()}
        masks.append({k: bits for k, bits in slices.items() if bits.any()})
        told.append((name, codes.get(number, "")))
    if not told:
        raise ReadError(f"{_WHAT}: holds no closed contour, so no structure has an inside")
    values = list(range(1, len(told) + 1))
    layers, layer_of = stack_slices(grid.shape, masks, values)
    structures = tuple(
        Structure(name, (value,) if mask else (), layer, code)
        for (name, code), value, mask, layer in zip(told, values, masks, layer_of, strict=True)
    )
    return Segmentation(layers, grid, structures)


def _points(contour: Header) -> Floats:
    """(N, 3) mm. The text is split at once: a value by itself takes pydicom fifty times as long."""
    element: Any = contour.get_item("ContourData")
    raw = None if element is None else element.value
    try:
        numbers = np.array(raw.split(b"\\") if isinstance(raw, bytes) else list(raw or []), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ReadError(f"{_WHAT}: a contour holds something else than numbers: damaged") from error
    declared = contour.get("NumberOfContourPoints")
    if not len(numbers) or len(numbers) % 3 or (declared not in {None, ""} and int(declared) * 3 != len(numbers)):
        raise ReadError(
            f"{_WHAT}: a contour holds {len(numbers)} numbers, which are not three for each of its points: damaged"
        )
    if not np.all(np.isfinite(numbers)):
        raise ReadError(f"{_WHAT}: a contour holds numbers that are not finite: damaged")
    return numbers.reshape(-1, 3)


def _slice_of(voxels: Floats, grid: Grid, number: int) -> int:
    depth = voxels[:, 2]
    if np.ptp(depth) > _FLAT:
        raise GeometryError(
            f"{_WHAT}: a contour of structure {number} is not parallel to the slices of the images: its points lie on "
            f"slices {depth.min() + 1:.2f} to {depth.max() + 1:.2f}. Export the structures on the original slices."
        )
    low, high = (
        voxels[:, :2].min(axis=0) + 0.5 + _BORDER,
        np.array(grid.shape[:2]) - 0.5 + _BORDER - voxels[:, :2].max(axis=0),
    )
    k = round(float(depth.mean()))
    if not -0.5 <= depth.mean() <= grid.shape[2] - 0.5 or (low < 0).any() or (high < 0).any():
        raise GeometryError(
            f"{_WHAT}: a contour of structure {number} lies outside the image of {grid.shape} voxels: around voxel "
            f"({', '.join(f'{v:.1f}' for v in voxels.mean(axis=0))}). The structures belong to another image, or slices are missing."
        )
    return min(max(k, 0), grid.shape[2] - 1)


def _join(drawn: list[tuple[float, Floats, bool]], grid: Grid, number: int, k: int) -> Array:
    """The (J, I) mask of all contours of one structure on one slice."""
    depths = [depth for depth, _, _ in drawn]
    if max(depths) - min(depths) > _FLAT:
        raise GeometryError(
            f"{_WHAT}: contours of structure {number} in different planes lie nearest to slice {k + 1} "
            f"({min(depths) + 1:.2f} and {max(depths) + 1:.2f}): they were drawn on thinner slices than these"
        )
    size = grid.shape[0], grid.shape[1]
    masks: list[Array] = []
    for _, points, exclusive in drawn:
        mask = fill_even_odd(points, size)
        area = int(mask.sum())
        if not area:
            continue
        if not exclusive:
            shared = [int((mask & other).sum()) for other in masks]
            if any(both == area == int(other.sum()) for both, other in zip(shared, masks, strict=True)):
                continue  # a copy: counted twice, it would erase itself
            for both, other in zip(shared, masks, strict=True):
                if both and both < (1 - _INSIDE) * min(area, int(other.sum())):
                    raise GeometryError(
                        f"{_WHAT}: two contours of structure {number} cross each other on slice {k + 1}; whether what they "
                        "share is inside or a hole is not known. Join them where they were drawn."
                    )
        masks.append(mask)
    return np.logical_xor.reduce(masks) if masks else np.zeros(size[::-1], dtype=bool)
