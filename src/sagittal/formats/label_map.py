"""Label maps: volumes or pictures whose values say what each voxel belongs to; or one file for each structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sagittal.errors import DataError, GeometryError, ReadError
from sagittal.formats.open_image import read_image, reader_of
from sagittal.formats.raster import read_raster
from sagittal.grid import Grid
from sagittal.guard.limits import MAX_FRAME_VALUES, as_read_error, check_file, check_size
from sagittal.truth import Segmentation, Structure
from sagittal.types import Array

#: What a mask without a name of its own outlines.
FOREGROUND = "foreground"
#: A colour stands as the number above this that its hexadecimal digits are; black is 0.
COLOUR = 2**24
#: More colours than this are those of a photograph.
_MOST_COLOURS = 256


def read_label_map(
    files: Sequence[Path],
    *,
    structures: Mapping[str, Sequence[int]] | None = None,
    background: Sequence[int] = (),
    ignore: int | None = None,
    names: Sequence[str] = (),
) -> Segmentation:
    """The segmentation in one label map, or in several files of one structure each.

    Give `structures` for one file whose values tell structures apart, or `names`, one a file, for files in which every
    value but 0 (and `ignore`) means the same. Any format of :func:`sagittal.formats.open_image.read_image` will do;
    pictures may be grey or have a palette, whose indices count and not its colours. In pictures without palette each
    colour but black is a value, ``COLOUR + 0xff0000`` for pure red; the segmentation then numbers them anew. Nothing is
    resampled: the grid is that of the mask.

    Parameters
    ----------
    files : sequence of Path
    structures : mapping of str to sequence of int, optional
        Name -> the values that belong to it; a value may belong to several.
    background : sequence of int
        Values beside 0 that count as background: structures that are not asked for.
    ignore : int, optional
        Value of which nothing is known.
    names : sequence of str, optional
        Name for each file. Files of equal name are joined.

    Returns
    -------
    Segmentation
        Structures that overlap stand in layers of their own.

    Raises
    ------
    ReadError
        If a file cannot be read, has several channels, or holds values that are no whole numbers of 0 or more.
    DataError
        If values occur that no structure has, or a file of one structure holds several values.
    GeometryError
        If the files lie on different grids.
    """
    if structures is None:
        return _join([_read_labels(file) for file in files], list(names), ignore)
    values, grid = _read_labels(files[0])
    wanted = {name: tuple(int(v) for v in of) for name, of in structures.items()}
    known = {0, *background, *(() if ignore is None else (ignore,)), *(v for of in wanted.values() for v in of)}
    others = sorted(set(_present(values)) - known)
    if others:
        scheme = ", ".join(f"{name} = {'+'.join(map(value_text, of))}" for name, of in list(wanted.items())[:12])
        raise DataError(
            f"label map: holds the values {_few(others)}, which no structure has ({scheme}); name them too, or mend the "
            "mask"
        )
    if background:
        values = np.where(np.isin(values, list(background)), values.dtype.type(0), values)
    if max(known) > COLOUR:
        values, wanted, ignore = _numbered(values, wanted, ignore)
    return Segmentation(values[np.newaxis], grid, tuple(Structure(n, of) for n, of in wanted.items()), ignore)


def value_text(value: int) -> str:
    """A value of a label map as it is shown and named: its number, or the digits of its colour.

    >>> value_text(3), value_text(COLOUR + 0xFF8000)
    ('3', '#ff8000')
    """
    return f"#{value - COLOUR:06x}" if value > COLOUR else str(value)


def label_values(path: Path) -> tuple[int, ...]:
    """The values that a label map holds, background left out, in ascending order.

    Raises
    ------
    ReadError
        As :func:`read_label_map`.
    """
    return tuple(v for v in _present(_read_labels(path)[0]) if v)


def stack_masks(masks: Mapping[str, Array], grid: Grid, ignore: Array | None = None) -> Segmentation:
    """The segmentation of one mask for each structure: a layer for all, or several where structures overlap.

    Parameters
    ----------
    masks : mapping of str to (I, J, K) bool
    grid : Grid
    ignore : (I, J, K) bool, optional
        Voxels of which nothing is known; stored as 255, or 65535 where there are more than 254 structures.
    """
    kind = np.uint8 if len(masks) < 255 else np.uint16
    layers: list[Array] = []
    found = []
    for number, (name, mask) in enumerate(masks.items(), start=1):
        place = next((n for n, layer in enumerate(layers) if not np.any(layer[mask])), len(layers))
        if place == len(layers):
            layers.append(np.zeros(grid.shape, kind))
        layers[place][mask] = number
        found.append(Structure(name, (number,), place))
    if not layers:
        layers.append(np.zeros(grid.shape, kind))
    most = int(np.iinfo(kind).max)
    if ignore is not None:
        for layer in layers:
            layer[ignore] = most
    return Segmentation(np.stack(layers), grid, tuple(found), None if ignore is None else most)


def _join(parts: list[tuple[Array, Grid]], names: list[str], ignore: int | None) -> Segmentation:
    if not parts or len(parts) != len(names):
        raise DataError(f"{len(parts)} masks, but {len(names)} names of structures")
    grid = parts[0][1]
    masks: dict[str, Array] = {}
    unknown = np.zeros(grid.shape, bool)
    for (values, place), name in zip(parts, names, strict=True):
        if not place.same_place(grid):
            raise GeometryError(
                f"the masks of one image lie on different grids: '{names[0]}' {grid.shape}, '{name}' {place.shape}"
            )
        found = [v for v in _present(values) if v and v != ignore]
        if len(found) > 1:
            raise DataError(
                f"the mask of '{name}' holds {len(found)} values ({_few(found)}), where 0 and one other were expected. "
                "Name its structures: --target 'liver=1,tumour=2'; a JPEG blurs its values and is no mask."
            )
        if ignore is not None:
            unknown |= values == ignore
        mask = values == found[0] if found else np.zeros(grid.shape, bool)
        masks[name] = masks[name] | mask if name in masks else mask
    return stack_masks(masks, grid, unknown if ignore is not None else None)


def _numbered(
    values: Array, wanted: Mapping[str, tuple[int, ...]], ignore: int | None
) -> tuple[Array, dict[str, tuple[int, ...]], int | None]:
    """Colours as the numbers 1, 2, 3 ... that one byte or two can hold."""
    known = sorted({v for of in wanted.values() for v in of} | (set() if ignore is None else {ignore}))
    number = {value: n for n, value in enumerate(known, start=1)}
    small = np.zeros(values.shape, np.uint8 if len(known) < 256 else np.uint16)
    for value, n in number.items():
        small[values == value] = n
    return (
        small,
        {name: tuple(number[v] for v in of) for name, of in wanted.items()},
        None if ignore is None else number[ignore],
    )


def _present(values: Array) -> list[int]:
    """The different values, ascending."""
    if values.dtype.itemsize == 1:
        return [int(v) for v in np.flatnonzero(np.bincount(values.ravel(order="K"), minlength=1))]
    return [int(v) for v in np.unique(values)]


def _few(values: Sequence[int]) -> str:
    return ", ".join(map(value_text, values[:8])) + (", ..." if len(values) > 8 else "")


def _read_labels(path: Path) -> tuple[Array, Grid]:
    """The values of one file as unsigned integers, (I, J, K)."""
    check_file(path)
    if reader_of(path) is read_raster:
        indices = _palette_indices(path)
        if indices is not None:
            values = np.ascontiguousarray(indices.T[:, :, np.newaxis])  # (I, J, 1)
            return values, Grid(values.shape)
    image = read_image(path)
    data = image.data
    if len(data) > 1 and reader_of(path) is read_raster and np.all(data == data[:1]):
        data = data[:1]  # grey that was saved as RGB
    if len(data) == 3 and image.bits == 8 and reader_of(path) is read_raster:
        return _colours(data), image.grid
    if len(data) != 1:
        raise ReadError(f"label map: has {len(data)} channels; expected one whole number in each voxel")
    low, high = float(data.min()), float(data.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ReadError("label map: holds values that are not finite")
    if low < 0 or high > 2**24:
        raise ReadError(f"label map: holds values from {low:g} to {high:g}; expected whole numbers from 0 to {2**24}")
    kind = np.uint8 if high < 2**8 else np.uint16 if high < 2**16 else np.uint32
    values = data[0].astype(kind)
    if not np.array_equal(values, data[0]):
        wrong = float(data[0][values != data[0]].flat[0])
        raise ReadError(
            f"label map: holds values that are no whole numbers ({wrong:g}): it is no label map, or was resampled with "
            "interpolation. Make it again with nearest-neighbour resampling."
        )
    return values, image.grid


def _colours(data: Array) -> Array:
    """Each colour but black as a number above COLOUR, (I, J, K)."""
    red, green, blue = data.astype(np.uint32)
    values = red << np.uint32(16) | green << np.uint32(8) | blue
    found = np.unique(values)
    if len(found) > _MOST_COLOURS:
        raise ReadError(
            f"label map: holds {len(found):,} colours, as a photograph does; a mask has one for each structure. A JPEG blurs "
            "its colours and is no mask: save it as PNG."
        )
    values[values > 0] += np.uint32(COLOUR)
    return np.asarray(values)


def _palette_indices(path: Path) -> Array | None:
    """(H, W) indices of a picture with a palette; ``None`` for other pictures."""
    from PIL import Image as Pictures
    from PIL import ImageOps, UnidentifiedImageError

    with as_read_error("label map"):
        try:
            # Not by its path, for the reason that stands in formats/raster.py.
            with path.open("rb") as file, Pictures.open(file, formats=("PNG", "TIFF", "BMP")) as picture:
                if picture.mode != "P" or getattr(picture, "n_frames", 1) > 1:
                    return None
                check_size(picture.size, "label map", limit=MAX_FRAME_VALUES)
                return np.array(ImageOps.exif_transpose(picture), dtype=np.uint8)
        except UnidentifiedImageError:
            return None
