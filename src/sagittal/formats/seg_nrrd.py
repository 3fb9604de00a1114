"""Segmentations of 3D Slicer (``.seg.nrrd``): an NRRD whose keys say what each value of each layer means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from sagittal.errors import ReadError
from sagittal.formats.nrrd import load_nrrd, nrrd_keys
from sagittal.truth import Segmentation, Structure
from sagittal.types import Array

_SEGMENT = re.compile(r"Segment(\d{1,6})_(ID|Name|LabelValue|Layer|Tags)")


def read_seg_nrrd(path: Path) -> Segmentation:
    """Read a segmentation that 3D Slicer saved: its layers, and its segments by name and code.

    Files of older versions, which keep every segment in a layer of its own and state no values, are read too.

    Raises
    ------
    ReadError
        If the file is damaged, describes no segments, or holds values that no segment names.
    GeometryError
        If its position is not usable.
    """
    nrrd = load_nrrd(path)
    layers = unsigned(nrrd.data, "NRRD segmentation")
    segments = _segments(nrrd.keys)
    names = _names(segments)
    structures = []
    for name, (number, segment) in zip(names, sorted(segments.items()), strict=True):
        layer = _whole_number(segment, "Layer", number if "LabelValue" not in segment else 0)
        value = _whole_number(segment, "LabelValue", 1)
        if not 0 <= layer < len(layers) or value < 1:
            raise ReadError(
                f"NRRD segmentation: segment {number} has value {value} in layer {layer}; there are {len(layers)} "
                "layers, and values begin at 1: damaged"
            )
        structures.append(Structure(name, (value,), layer, _code(segment.get("Tags", ""))))
    check_named(layers, structures, "NRRD segmentation")
    return Segmentation(layers, nrrd.grid, tuple(structures))


def seg_nrrd_names(path: Path) -> tuple[str, ...]:
    """The names of the segments in a ``.seg.nrrd`` by its header alone. Errors as of :func:`read_seg_nrrd`."""
    return tuple(_names(_segments(nrrd_keys(path))))


def _segments(keys: Mapping[str, str]) -> dict[int, dict[str, str]]:
    segments: dict[int, dict[str, str]] = {}
    for key, text in keys.items():
        if found := _SEGMENT.fullmatch(key):
            segments.setdefault(int(found[1]), {})[found[2]] = text
    if not segments:
        raise ReadError(
            "NRRD segmentation: the header describes no segments (no Segment0_Name); read it as a label map instead"
        )
    return segments


def _names(segments: Mapping[int, Mapping[str, str]]) -> list[str]:
    return different_names(
        segment.get("Name") or segment.get("ID") or f"segment {n}" for n, segment in sorted(segments.items())
    )


def _whole_number(segment: Mapping[str, str], key: str, default: int) -> int:
    try:
        return int(segment.get(key, default))
    except ValueError as error:
        raise ReadError(f"NRRD segmentation: a segment's {key} is no whole number: damaged") from error


def _code(tags: str) -> str:
    """``SCT:10200004`` out of the third part of a terminology entry, ``SCT^10200004^Liver``."""
    found = re.search(r"TerminologyEntry:([^|]*)", tags)
    parts = found[1].split("~") if found else []
    words = parts[2].split("^") if len(parts) > 2 else []
    return f"{words[0]}:{words[1]}" if len(words) >= 2 and words[0] and words[1] else ""


def unsigned(values: Array, what: str) -> Array:
    """Label values as unsigned integers, with nothing changed.

    Raises
    ------
    ReadError
        If a value is negative, beyond 65,535 or no whole number.
    """
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    is_whole = values.dtype.kind in "uib" or bool((values == np.floor(values)).all())
    if not is_whole or low < 0 or high > 65535:
        raise ReadError(f"{what}: label values must be whole numbers from 0 to 65,535, not {low:g} to {high:g}")
    return values.astype(np.uint8 if high < 256 else np.uint16, copy=False)


def different_names(names: Iterable[str]) -> list[str]:
    """Names with a number behind those that come again.

    >>> different_names(["lesion", "liver", "lesion"])
    ['lesion', 'liver', 'lesion 2']
    """
    told: list[str] = []
    for given in names:
        name = " ".join(given.split()) or "unnamed"
        number = 1
        while (name if number == 1 else f"{name} {number}") in told:
            number += 1
        told.append(name if number == 1 else f"{name} {number}")
    return told


def check_named(layers: Array, structures: Iterable[Structure], what: str) -> None:
    """Refuse voxel values that no structure names.

    Raises
    ------
    ReadError
    """
    given = list(structures)
    for number, layer in enumerate(layers):
        present = np.flatnonzero(np.bincount(layer.ravel()))
        named = {0, *(value for s in given if s.layer == number for value in s.values)}
        if strange := [int(value) for value in present if int(value) not in named]:
            raise ReadError(
                f"{what}: layer {number} holds the values {strange[:8]}, which no segment names; nothing says what "
                "they are. Save the segmentation again with all its segments."
            )
