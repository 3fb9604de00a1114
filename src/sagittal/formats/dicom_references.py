"""Which images a DICOM segmentation or structure set refers to, and whether they are the ones at hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset as Header

from sagittal.errors import ReadError
from sagittal.formats.dicom_file import scan_dicom

_TAGS = {"SOPInstanceUID": 0x00080018, "SeriesInstanceUID": 0x0020000E, "FrameOfReferenceUID": 0x00200052}


def items(header: Any, *sequences: str) -> list[Any]:
    """All items at the end of a path of sequences; none where a part of the path is missing.

    >>> items(Header(), "ReferencedSeriesSequence")
    []
    """
    found = [header]
    for name in sequences:
        found = [item for one in found for item in (one.get(name) or [])]
    return found


def references(header: Header) -> dict[str, set[str]]:
    """Series -> the instances of it that an object refers to; the series is empty where only instances are named."""
    found: dict[str, set[str]] = defaultdict(set)
    places = [
        *items(header, "ReferencedSeriesSequence"),
        *items(header, "StudiesContainingOtherReferencedInstancesSequence", "ReferencedSeriesSequence"),
        *items(header, "ReferencedFrameOfReferenceSequence", "RTReferencedStudySequence", "RTReferencedSeriesSequence"),
    ]
    for series in places:
        instances = [*items(series, "ReferencedInstanceSequence"), *items(series, "ContourImageSequence")]
        found[str(series.get("SeriesInstanceUID") or "")] |= _instances(instances)
    loose = [
        *items(header, "SourceImageSequence"),
        *items(header, "ReferencedImageSequence"),
        *items(header, "ROIContourSequence", "ContourSequence", "ContourImageSequence"),
    ]
    if not found:
        frames = items(header, "PerFrameFunctionalGroupsSequence") + items(header, "SharedFunctionalGroupsSequence")
        loose += [one for frame in frames for one in items(frame, "DerivationImageSequence", "SourceImageSequence")]
    known = set().union(*found.values())
    if rest := _instances(loose) - known:
        found[""] |= rest
    return {series: instances for series, instances in found.items() if series or instances}


def _instances(given: list[Any]) -> set[str]:
    return {str(item.get("ReferencedSOPInstanceUID") or "") for item in given} - {""}


def check_references(header: Header, series: Sequence[Path], what: str, *, by_instance: bool = False) -> None:
    """Refuse an object that does not refer to the series at hand, or to images of it that are missing.

    Parameters
    ----------
    by_instance : bool
        Whether naming every instance is enough, though the frame of reference is another: a library in wide use writes
        structure sets with a frame of reference of their own.

    Raises
    ------
    ReadError
        The message counts; it shows no identifier.
    """
    found = [scan_dicom(path, _TAGS) for path in series]
    instances = {one["SOPInstanceUID"] for one in found}
    uids = {one["SeriesInstanceUID"] for one in found}
    frames = {one["FrameOfReferenceUID"] for one in found} - {""}
    own = {
        str(header.get("FrameOfReferenceUID") or ""),
        *(str(one.get("FrameOfReferenceUID") or "") for one in items(header, "ReferencedFrameOfReferenceSequence")),
    } - {""}
    referred = references(header)
    if not referred:
        raise ReadError(
            f"{what}: refers to no images, so nothing says what was outlined. Export it together with its images."
        )
    mine = set().union(*(given for uid, given in referred.items() if uid in uids or not uid))
    if not uids & set(referred) and not mine & instances:
        raise ReadError(
            f"{what}: refers to another series ({len(referred)} named, none of them this one). Give the images that it "
            "was made from."
        )
    if missing := len(mine - instances):
        raise ReadError(
            f"{what}: refers to {len(mine)} images, of which {missing} are missing among the {len(series)} files of the "
            "series. Copy the whole series."
        )
    if own and frames and not own & frames and not (by_instance and mine):
        raise ReadError(
            f"{what}: stands in another frame of reference than the series that it refers to; one was changed"
        )
