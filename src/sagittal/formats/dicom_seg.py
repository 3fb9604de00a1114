"""DICOM segmentations (PS3.3 A.51): binary, fractional and label map, on the lattice that their frames span."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset as Header

from sagittal.errors import ConfigError, GeometryError, ReadError
from sagittal.formats.dicom_file import open_dicom
from sagittal.formats.dicom_references import check_references, items
from sagittal.formats.packed_masks import pack, place_on, stack_slices
from sagittal.formats.seg_nrrd import different_names
from sagittal.grid import Grid
from sagittal.guard.limits import MAX_FRAME_VALUES, as_read_error, check_memory, check_size, inflate
from sagittal.truth import Segmentation, Structure
from sagittal.types import Array, Floats

_WHAT = "DICOM SEG"
_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
_BIG = "1.2.840.10008.1.2.2"
_UNCOMPRESSED = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", _BIG}
_RLE = "1.2.840.10008.1.2.5"
#: Frames lie on a slice where they are no further from it than this part of the step.
_ON_SLICE = 0.02
_MAX_FRAMES = 200_000


def read_dicom_seg(path: Path, series: Sequence[Path] = (), *, threshold: float = 0.5, **reading: Any) -> Segmentation:
    """Read a DICOM segmentation, on its own lattice or placed on that of its images.

    A fractional frame counts where its value is at least `threshold` of MaximumFractionalValue, be it probability or
    occupancy.
    Frames that were left out because they are empty are background. The step between slices is SpacingBetweenSlices
    where the frames' positions fit it; without it, the step that the positions share, or SliceThickness where all
    distances are multiples of it. What else could be meant is refused.

    Parameters
    ----------
    path : Path
    series : sequence of Path
        The files of the image series that it refers to; the result then lies on their grid.
    threshold : float
        Above 0, up to 1: the share of MaximumFractionalValue from which on a voxel of a fractional frame counts.
    **reading
        How the series is read, as for :func:`sagittal.formats.dicom.series_grid`.

    Returns
    -------
    Segmentation
        A value is the number of its segment. Segments without frames are structures without values.

    Raises
    ------
    ReadError
        If the file is damaged, no segmentation, or refers to other or missing images.
    GeometryError
        If its frames span no lattice, or another one than that of the images.
    ConfigError
        If the threshold is not in its range.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; expected a share above 0, up to 1")
    with as_read_error(_WHAT):
        header = open_dicom(Path(path))
        if str(header.get("Modality") or "") != "SEG" and "SegmentSequence" not in header:
            raise ReadError(f"{_WHAT}: the object is no segmentation")
        step = None
        grid = None
        if series:
            from sagittal.formats.dicom import series_grid

            check_references(header, series, _WHAT)
            grid = series_grid(series, **reading)
        if grid is not None and grid.affine is not None:
            step = _step_along(grid, header)
        segmentation = _segmentation(header, step, threshold)
        return segmentation if grid is None else place_on(segmentation, grid)


@dataclass(frozen=True, eq=False)
class _Frames:
    """How the frames are stored, and where each of them lies."""

    kind: str  # BINARY, FRACTIONAL or LABELMAP
    rows: int
    columns: int
    bits: int
    segments: tuple[int, ...]  # of each frame; 0 in a label map
    slices: tuple[int, ...]  # of each frame, its k
    grid: Grid


def _segmentation(header: Header, step: float | None, threshold: float) -> Segmentation:
    names = _segments(header)
    frames = _frames(header, names, step)
    if frames.kind == "LABELMAP":
        layers, found = _label_map(header, frames, names)
        layer_of: Mapping[int, int] = {}
    else:
        masks: dict[int, dict[int, Array]] = {}
        for number, k, bits in zip(frames.segments, frames.slices, _packed(header, frames, threshold), strict=True):
            slices = masks.setdefault(number, {})
            if k in slices:
                raise ReadError(
                    f"{_WHAT}: two frames of segment {number} lie at one place (several points in time, or copies); "
                    "give each as a segmentation of its own"
                )
            slices[k] = bits
        found = [number for number, slices in masks.items() if any(bits.any() for bits in slices.values())]
        layers, places = stack_slices(
            frames.grid.shape,
            [{k: bits for k, bits in masks[number].items() if bits.any()} for number in found],
            found,
        )
        layer_of = dict(zip(found, places, strict=True))
    structures = tuple(
        Structure(name, (number,) if number in found else (), layer_of.get(number, 0), code)
        for number, (name, code) in names.items()
    )
    return Segmentation(layers, frames.grid, structures)


def segment_names(header: Header) -> tuple[str, ...]:
    """What the segments of a DICOM segmentation are called.

    Raises
    ------
    ReadError
        If it describes none.
    """
    return tuple(name for name, _ in _segments(header).values())


def _segments(header: Header) -> dict[int, tuple[str, str]]:
    """Segment number -> name and code; the background of a label map left out."""
    sequence = header.get("SegmentSequence") or []
    numbers = [int(item.SegmentNumber) for item in sequence]
    if not numbers or len(set(numbers)) != len(numbers) or min(numbers) < 0 or max(numbers) > 65535:
        raise ReadError(f"{_WHAT}: its segments are not described, or not by different numbers: damaged")
    told = [(n, item) for n, item in zip(numbers, sequence, strict=True) if n > 0]
    names = different_names(str(item.get("SegmentLabel") or "") or _meaning(item) for _, item in told)
    return {n: (name, _code(item)) for (n, item), name in zip(told, names, strict=True)}


def _meaning(item: Header) -> str:
    types = items(item, "SegmentedPropertyTypeCodeSequence")
    return str(types[0].get("CodeMeaning") or "") if types else ""


def _code(item: Header) -> str:
    for code in items(item, "SegmentedPropertyTypeCodeSequence")[:1]:
        scheme, value = code.get("CodingSchemeDesignator"), code.get("CodeValue") or code.get("LongCodeValue")
        return f"{scheme}:{value}" if scheme and value else ""
    return ""


def _frames(header: Header, names: Mapping[int, object], step: float | None) -> _Frames:
    kind = str(header.get("SegmentationType") or "").upper()
    if kind not in {"BINARY", "FRACTIONAL", "LABELMAP"}:
        raise ReadError(f"{_WHAT}: SegmentationType is none of BINARY, FRACTIONAL and LABELMAP: damaged")
    rows, columns, bits = (int(header.get(k) or 0) for k in ("Rows", "Columns", "BitsAllocated"))
    count = int(header.get("NumberOfFrames") or 0)
    if bits not in {"BINARY": {1, 8}, "FRACTIONAL": {8}, "LABELMAP": {8, 16}}[kind]:
        raise ReadError(f"{_WHAT}: BitsAllocated {bits} does not go with {kind}: damaged")
    check_size((rows, columns), _WHAT, limit=MAX_FRAME_VALUES)
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    if not 1 <= count <= _MAX_FRAMES or len(groups) not in {count, 0}:
        raise ReadError(f"{_WHAT}: declares {count} frames, and describes {len(groups)}: damaged")
    shared = (header.get("SharedFunctionalGroupsSequence") or [Header()])[0]
    segments, positions, orientations, spacings = [], [], [], []
    measures = None
    for frame in groups or [Header()] * count:
        measures = _group(frame, shared, "PixelMeasuresSequence")
        spacings.append(_numbers(measures, "PixelSpacing", 2))
        orientations.append(_numbers(_group(frame, shared, "PlaneOrientationSequence"), "ImageOrientationPatient", 6))
        positions.append(_numbers(_group(frame, shared, "PlanePositionSequence"), "ImagePositionPatient", 3))
        if kind == "LABELMAP":
            segments.append(0)
            continue
        number = int(_group(frame, shared, "SegmentIdentificationSequence").get("ReferencedSegmentNumber") or 0)
        if number not in names:
            raise ReadError(f"{_WHAT}: a frame belongs to segment {number}, which is not described: damaged")
        segments.append(number)
    grid, slices = _lattice(
        np.array(positions), np.array(orientations), np.array(spacings), (columns, rows), measures or Header(), step
    )
    return _Frames(kind, rows, columns, bits, tuple(segments), slices, grid)


def _group(frame: Header, shared: Header, name: str) -> Header:
    found = frame.get(name) or shared.get(name)
    return found[0] if found else Header()


def _numbers(group: Header, name: str, count: int) -> list[float]:
    value = group.get(name)
    try:
        numbers = [float(v) for v in value]
    except (TypeError, ValueError) as error:
        raise GeometryError(
            f"{_WHAT}: a frame has no {name}; segmentations without a place in the patient (such as of slides) are not read"
        ) from error
    if len(numbers) != count or not np.all(np.isfinite(numbers)):
        raise GeometryError(f"{_WHAT}: {name} must hold {count} finite numbers: damaged")
    return numbers


def _lattice(
    positions: Floats,
    orientations: Floats,
    spacings: Floats,
    size: tuple[int, int],
    measures: Header,
    step: float | None,
) -> tuple[Grid, tuple[int, ...]]:
    """The grid that the frames span, and the slice of each frame."""
    if np.ptp(orientations, axis=0).max() > 1e-4 or (np.ptp(spacings, axis=0) > 1e-4 * spacings[0]).any():
        raise GeometryError(f"{_WHAT}: its frames have different orientations or pixel spacings: no single lattice")
    row, column = orientations[0, :3], orientations[0, 3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(float(v)) for v in (lengths[0] - 1, lengths[1] - 1, row @ column)) > 1e-2:
        raise GeometryError(f"{_WHAT}: ImageOrientationPatient is not two perpendicular unit vectors")
    row, column = row / lengths[0], column / lengths[1]
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    depths = (positions - positions[0]) @ normal
    shift = positions - positions[0] - depths[:, np.newaxis] * normal
    if np.linalg.norm(shift, axis=1).max() > 0.05 * float(spacings.min()):
        raise GeometryError(
            f"{_WHAT}: its frames are shifted against each other within their planes (a tilted gantry, or tiles)"
        )
    depths -= depths.min()
    distance = step if step is not None else _distance(np.unique(np.round(depths, 4)), measures)
    slices = np.rint(depths / distance).astype(int)
    if np.abs(depths - slices * distance).max() > max(_ON_SLICE * distance, 1e-3):
        raise _uneven(depths, distance)
    first = positions[int(depths.argmin())]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * spacings[0, 1], column * spacings[0, 0]
    affine[:3, 2], affine[:3, 3] = normal * distance, first
    check_size((*size, int(slices.max()) + 1), _WHAT)
    return Grid((*size, int(slices.max()) + 1), affine), tuple(slices.tolist())


def _distance(depths: Floats, measures: Header) -> float:
    """The step between slices, mm, as far as the file proves it."""
    gaps = np.diff(depths)
    gaps = gaps[gaps > 1e-3]
    given = [float(measures.get(k) or 0) for k in ("SpacingBetweenSlices", "SliceThickness")]
    between, thick = (abs(v) if np.isfinite(v) else 0.0 for v in given)
    if len(gaps) == 0:
        if between or thick:
            return between or thick
        raise GeometryError(f"{_WHAT}: holds one slice and states no thickness; its third voxel edge is not known")

    def fits(distance: float) -> bool:
        steps = depths / distance
        return bool(distance > 0 and np.abs(steps - np.rint(steps)).max() * distance <= max(_ON_SLICE * distance, 1e-3))

    if between:
        if fits(between):
            # Positions are written with more digits than the spacing: let them have the last word.
            return float(depths[-1] / np.rint(depths[-1] / between))
        raise _uneven(depths, between)
    usual = float(depths[-1] / len(gaps))
    if fits(usual) and np.abs(gaps - usual).max() <= max(_ON_SLICE * usual, 1e-3):
        return usual
    if thick and fits(thick):
        return float(depths[-1] / np.rint(depths[-1] / thick))
    raise _uneven(depths, thick or usual)


def _uneven(depths: Floats, distance: float) -> GeometryError:
    shown = ", ".join(f"{d:.2f}" for d in np.unique(np.round(depths, 4))[:16])
    return GeometryError(
        f"{_WHAT}: its frames do not lie on slices {distance:.4g} mm apart, so that what lies between them is not known; "
        f"positions along the normal in mm: {shown}. Read it together with the images that it was made from."
    )


def _step_along(grid: Grid, header: Header) -> float | None:
    """The voxel edge of the images along the normal of the frames, mm; ``None`` where they are oblique to each other."""
    shared = items(header, "SharedFunctionalGroupsSequence", "PlaneOrientationSequence")
    frames = shared or items(header, "PerFrameFunctionalGroupsSequence", "PlaneOrientationSequence")[:1]
    if not frames or grid.affine is None:
        return None
    orientation = np.array(_numbers(frames[0], "ImageOrientationPatient", 6))
    normal = np.cross(orientation[:3], orientation[3:])
    spacing = np.asarray(grid.spacing)
    along = np.abs(normal @ (grid.affine[:3, :3] / spacing))
    best = int(along.argmax())
    return float(spacing[best]) if along[best] > 0.999 else None


def _stored(header: Header, frames: _Frames) -> Iterator[Array]:
    """Each frame's values, (rows * columns) uint8 or uint16; bits of an uncompressed binary one packed."""
    size, count = frames.rows * frames.columns, len(frames.slices)
    syntax = str(header.file_meta.TransferSyntaxUID)
    data: bytes = header.get("PixelData") or b""
    if syntax in _UNCOMPRESSED:
        needed = ceil(size * count * frames.bits / 8)
        if len(data) < needed:
            raise ReadError(
                f"{_WHAT}: PixelData holds {len(data):,} bytes, {needed:,} are declared: cut off or damaged"
            )
        order = ">" if syntax == _BIG else "<"
        if order == ">" and frames.bits <= 8 and header["PixelData"].VR == "OW":  # bytes in pairs, PS3.5 8.1.1
            data = np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype("<u2").tobytes()
        if frames.bits == 1:
            yield from _bits(np.frombuffer(data, np.uint8), size, count)
            return
        kind = np.dtype(f"{order}u{frames.bits // 8}")
        for n in range(count):
            yield np.frombuffer(data, kind, size, n * size * kind.itemsize).astype(kind.newbyteorder("="), copy=False)
        return
    from pydicom.encaps import generate_frames

    found = 0
    for frame in generate_frames(data, number_of_frames=count):
        if found == count:
            break
        found += 1
        yield _unpacked(frame, frames, syntax, header)
    if found != count:
        raise ReadError(f"{_WHAT}: {count} frames are declared, {found} are there: cut off")


def _bits(data: Array, size: int, count: int) -> Iterator[Array]:
    """The bits of each frame, packed from a byte of its own on; in the file they follow each other without a gap."""
    for n in range(count):
        start, stop = n * size, (n + 1) * size
        if start % 8 == 0 and size % 8 == 0:
            yield data[start // 8 : stop // 8]
        else:
            bits = np.unpackbits(data[start // 8 : -(-stop // 8)], bitorder="little")
            yield np.packbits(bits[start % 8 : start % 8 + size], bitorder="little")


def _unpacked(frame: bytes, frames: _Frames, syntax: str, header: Header) -> Array:
    size, width = frames.rows * frames.columns, max(frames.bits // 8, 1)
    if syntax == _DEFLATED_FRAMES:
        expected = ceil(size * frames.bits / 8)
        raw = inflate(frame.rstrip(b"\0") + b"\0\0", wbits=-15, limit=expected + 1)
        if len(raw) < expected:
            raise ReadError(f"{_WHAT}: a frame is cut off")
        return np.frombuffer(raw, np.uint8 if width == 1 else np.dtype("<u2"), ceil(expected / width))
    if syntax == _RLE and frames.bits > 1:
        return _run_lengths(frame, size, width)
    from sagittal.formats.dicom_file import PixelFormat
    from sagittal.formats.dicom_pixels import decode_pixels

    one = Header()
    one.update({element.tag: element for element in header if element.tag.group == 0x28})
    one.file_meta, one.NumberOfFrames = header.file_meta, 1
    one.PhotometricInterpretation = "MONOCHROME2"  # a label map may carry a palette for display
    from pydicom.encaps import encapsulate

    one.PixelData = encapsulate([frame])
    one["PixelData"].VR = "OB"
    check_memory(size * 8, _WHAT)
    return np.asarray(decode_pixels(one, PixelFormat(one))).reshape(-1)


def _run_lengths(frame: bytes, size: int, width: int) -> Array:
    """One frame of PackBits segments (PS3.5 annex G), the high byte first."""
    if len(frame) < 64:
        raise ReadError(f"{_WHAT}: a run-length frame is cut off")
    head = np.frombuffer(frame, "<u4", 16).tolist()
    if head[0] != width:
        raise ReadError(f"{_WHAT}: a run-length frame holds {head[0]} byte planes, {width} are declared: damaged")
    stops = [*head[2 : 1 + width], len(frame)]
    planes = [_plane(frame[start:stop], size) for start, stop in zip(head[1 : 1 + width], stops, strict=True)]
    return planes[0] if width == 1 else np.stack(planes, axis=1).view(">u2")[:, 0].astype(np.uint16)


def _plane(packed: bytes, size: int) -> Array:
    out = bytearray()
    at = 0
    while len(out) < size and at + 1 < len(packed):
        mark = packed[at]
        if mark < 128:
            out += packed[at + 1 : at + 2 + mark]
            at += mark + 2
        elif mark > 128:
            out += packed[at + 1 : at + 2] * (257 - mark)
            at += 2
        else:
            at += 1
    if len(out) < size:
        raise ReadError(f"{_WHAT}: a run-length frame is cut off")
    return np.frombuffer(bytes(out[:size]), np.uint8)


def _packed(header: Header, frames: _Frames, threshold: float) -> Iterator[Array]:
    most = int(header.get("MaximumFractionalValue") or 0)
    if frames.kind == "FRACTIONAL" and not 1 <= most <= 255:
        raise ReadError(f"{_WHAT}: MaximumFractionalValue is missing or absurd: damaged")
    least = ceil(threshold * most - 1e-9)  # 0.1 x 250 is a little more than 25 in floating point
    for stored in _stored(header, frames):
        if frames.kind == "FRACTIONAL":
            if int(stored.max()) > most:
                raise ReadError(f"{_WHAT}: holds values above MaximumFractionalValue {most}: damaged")
            yield pack(stored >= least)
        else:
            yield stored if frames.bits == 1 else pack(stored != 0)


def _label_map(header: Header, frames: _Frames, names: Mapping[int, object]) -> tuple[Array, list[int]]:
    """The one layer of a label map, and the segments that occur."""
    columns, rows, slices = frames.grid.shape
    if len(set(frames.slices)) != len(frames.slices):
        raise ReadError(
            f"{_WHAT}: two frames of the label map lie at one place; give each as a segmentation of its own"
        )
    padding = header.get("PixelPaddingValue")
    kind = np.uint8 if frames.bits == 8 else np.uint16
    layer = np.zeros((slices, rows * columns), dtype=kind)
    seen: set[int] = set()
    for k, stored in zip(frames.slices, _stored(header, frames), strict=True):
        layer[k] = stored
        if padding is not None and int(padding) not in names:
            layer[k][stored == int(padding)] = 0
        seen |= _different(layer[k])
    present = sorted(seen - {0})
    if strange := [v for v in present if v not in names]:
        raise ReadError(f"{_WHAT}: its label map holds the values {strange[:8]}, which no segment describes")
    return layer.reshape(1, slices, rows, columns).transpose(0, 3, 2, 1), present


def _different(values: Array) -> set[int]:
    """The values that occur among (N,) integers of 8 or 16 bits; bytes are looked at two at a time."""
    if values.dtype.itemsize == 1 and values.size % 2 == 0:
        pairs = np.bincount(values.view(np.uint16), minlength=65536).reshape(256, 256)
        return set(np.flatnonzero(pairs.any(axis=0) | pairs.any(axis=1)).tolist())
    return set(np.flatnonzero(np.bincount(values)).tolist())
