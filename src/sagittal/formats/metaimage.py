"""MetaImage files (``.mha``, ``.mhd`` with its data beside it), which stand in LPS+ mm themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from sagittal.errors import ReadError
from sagittal.formats.stored import beside, channels_first, check_stored, make_grid, read_stored, stored_image
from sagittal.guard.limits import as_read_error, check_file, check_size
from sagittal.image import Image
from sagittal.types import Array, Floats

_MAX_HEADER = 2**20
_DTYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_TRUE, _FALSE = {"true", "1"}, {"false", "0", ""}


def read_metaimage(path: Path) -> Image:
    """Read a MetaImage of 2 or 3 axes, with any number of channels; nothing is reoriented or resampled.

    The affine comes from ``TransformMatrix`` (also called ``Rotation`` or ``Orientation``: a row a voxel axis),
    ``ElementSpacing`` and ``Offset`` (``Position``, ``Origin``), in LPS+ mm as ITK writes it. ``CenterOfRotation`` is
    where a transform of the scene turns and moves no voxel. A file that states no ``Offset`` or no matrix keeps its
    voxel size and gets no position; so does a picture of two axes.

    Parameters
    ----------
    path : Path
        A ``.mha``, or a ``.mhd`` whose data file lies beside it.

    Raises
    ------
    ReadError
        If the file is damaged, or its values lie elsewhere or in a form that is not read.
    GeometryError
        If its position is not usable.

    References
    ----------
    .. [1] MetaIO documentation, itk.org/Wiki/ITK/MetaIO/Documentation.
    """
    check_file(path)
    with as_read_error("MetaImage"):
        with path.open("rb") as file:
            fields = _header(file)
            start = file.tell()
        axes = int(_numbers(fields, "NDims", 1)[0])
        sizes = [int(n) for n in _numbers(fields, "DimSize")]
        if axes not in {2, 3, 4}:
            raise ReadError(f"MetaImage: declares {axes} axes; 2 and 3, and 4 with one in time, are read")
        check_stored(sizes, axes, "MetaImage")
        channels = int(_numbers(fields, "ElementNumberOfChannels", 1)[0]) if "ElementNumberOfChannels" in fields else 1
        count = check_size((channels, *sizes), "MetaImage")
        values = _values(path, fields, start, count)
        spatial = list(range(1, 1 + min(axes, 3)))
        data = channels_first(values, (channels, *sizes), spatial)
        directions, origin, spacing = _place(fields, axes)
        shape = tuple(data.shape[1:])
        return stored_image(
            data, make_grid(shape, directions, origin, spacing, "MetaImage"), modality=_modality(fields)
        )


def metaimage_data_file(path: Path) -> Path | None:
    """The data file beside a header; ``None`` where the values lie in the file itself."""
    with as_read_error("MetaImage"), path.open("rb") as file:
        name = _header(file)["ElementDataFile"]
    return None if name.upper() == "LOCAL" else beside(path, name, "MetaImage")


def _header(file: IO[bytes]) -> dict[str, str]:
    """Fields up to ElementDataFile, which is the last."""
    fields: dict[str, str] = {}
    left = _MAX_HEADER
    while line := file.readline(left):
        left -= len(line)
        if left <= 0:
            break
        text = line.decode("utf-8", "replace").strip()
        if not text or text.startswith("#"):
            continue
        name, mark, value = text.partition("=")
        name, value = name.strip(), value.strip()
        if not mark or not name.replace("_", "").isalnum():
            raise ReadError("MetaImage: the header holds a line that is no field (NAME = VALUE): damaged")
        if name in fields:
            raise ReadError(f"MetaImage: the header states {name[:24]} twice: damaged")
        fields[name] = value
        if name == "ElementDataFile":
            return fields
    raise ReadError("MetaImage: no ElementDataFile ends the header: not a MetaImage, damaged or cut off")


def _numbers(fields: Mapping[str, str], name: str, count: int | None = None) -> list[float]:
    if not fields.get(name):
        raise ReadError(f"MetaImage: the header does not state {name}: damaged")
    try:
        values = [float(word) for word in fields[name].split()]
        whole = name not in {"ElementSpacing", "ElementSize", "TransformMatrix", "Offset"}
        if whole and any(v != int(v) for v in values):
            raise ValueError
    except (ValueError, OverflowError) as error:
        raise ReadError(f"MetaImage: {name} holds something else than the numbers expected: damaged") from error
    if count is not None and len(values) != count:
        raise ReadError(f"MetaImage: {name} must hold {count} numbers, not {len(values)}: damaged")
    return values


def _flag(fields: Mapping[str, str], *names: str) -> bool:
    for name in names:
        if name in fields:
            word = fields[name].lower()
            if word not in _TRUE | _FALSE:
                raise ReadError(f"MetaImage: {name} is neither True nor False: damaged")
            return word in _TRUE
    return False


def _values(path: Path, fields: Mapping[str, str], start: int, count: int) -> Array:
    kind = fields.get("ElementType", "").removesuffix("_ARRAY")
    if kind not in _DTYPES:
        raise ReadError(f"MetaImage: values of this ElementType are not read; {', '.join(_DTYPES)} are")
    dtype = np.dtype(_DTYPES[kind])
    if _flag(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB"):
        dtype = dtype.newbyteorder(">")
    packing = "raw"
    if not _flag(fields, "BinaryData") and "BinaryData" in fields:
        packing = "text"
    elif _flag(fields, "CompressedData"):
        packing = "zlib"
    name = fields["ElementDataFile"]
    local = name.upper() == "LOCAL"
    source = path if local else beside(path, name, "MetaImage")
    size = check_file(source)
    skip = int(_numbers(fields, "HeaderSize", 1)[0]) if fields.get("HeaderSize") and not local else 0
    if skip < -1 or skip > size:
        raise ReadError("MetaImage: HeaderSize leads past the file: damaged")
    with source.open("rb") as file:
        if skip == -1:
            if packing != "raw":
                raise ReadError("MetaImage: HeaderSize -1 goes with raw values only: damaged")
            file.seek(max(size - count * dtype.itemsize, 0))
        else:
            file.seek(start if local else skip)
        return read_stored(file, count, dtype, packing, size - file.tell(), "MetaImage")


def _place(fields: Mapping[str, str], axes: int) -> tuple[Floats | None, Floats | None, list[float] | None]:
    """Directions (3, 3), origin and spacing, as far as the header states them."""
    spacing = None
    for name in ("ElementSpacing", "ElementSize"):
        if fields.get(name):
            spacing = _numbers({"ElementSpacing": fields[name]}, "ElementSpacing", axes)
            break
    if spacing is not None and not all(np.isfinite(v) and v > 0 for v in spacing):
        raise ReadError(f"MetaImage: ElementSpacing must hold positive lengths in mm, not {spacing}: damaged")
    matrix = next((fields[n] for n in ("TransformMatrix", "Rotation", "Orientation") if fields.get(n)), None)
    offset = next((fields[n] for n in ("Offset", "Position", "Origin") if fields.get(n)), None)
    if axes == 2 or spacing is None or matrix is None or offset is None:
        return None, None, None if spacing is None else spacing[:3]
    turned = np.array(_numbers({"TransformMatrix": matrix}, "TransformMatrix", axes * axes)).reshape(axes, axes)
    origin = np.array(_numbers({"Offset": offset}, "Offset", axes))
    if axes == 4 and (np.abs(turned[3, :3]).max() > 0 or np.abs(turned[:3, 3]).max() > 0):
        raise ReadError("MetaImage: the fourth axis is not apart from the three of space; save it as channels")
    return turned[:3, :3].T * np.array(spacing[:3]), origin[:3], spacing[:3]


def _modality(fields: Mapping[str, str]) -> str:
    return {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR", "MET_MOD_US": "US", "MET_MOD_NM": "NM"}.get(
        fields.get("Modality", ""), "OT"
    )
