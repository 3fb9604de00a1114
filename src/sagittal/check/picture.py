"""A small picture of an image for the page of findings: upright, sensibly windowed, with the outline of its mask."""

from __future__ import annotations

import io

import numpy as np

from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.truth import Segmentation
from sagittal.types import Array, Floats

#: Longest side in pixels: of a plain picture, and of one with a mask or boxes in it.
SMALL, LARGE = 96, 176
#: Window of CT in HU: soft tissue, width 400 and level 40.
_SOFT_TISSUE = (-160.0, 240.0)
#: Outlines: colours that people with any colour vision tell apart on grey (Okabe and Ito).
OUTLINES = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178))


def draw(image: Image, mask: Segmentation | None = None, side: int = SMALL) -> bytes:
    """A JPEG of the middle slice, or of the slice that holds most of the mask.

    Upright where the file says how the patient lay: left of the patient on the right, back or feet below.

    Parameters
    ----------
    image : Image
    mask : Segmentation, optional
        Its outlines are drawn where they lie in the patient; by share of the axes where one of the two has no position.
    side : int
        Pixels along the longer side, which is drawn to scale where the spacing is known.
    """
    from PIL import Image as Pictures

    k = image.grid.shape[2] // 2 if mask is None else _fullest(image.grid, mask)
    places, size = _places(image.grid, k, side)
    plane = image.data[:, places[0], places[1], k]  # (C, h, w): values for windowing below
    if min(image.grid.shape[:2]) > 2 * max(size):  # far more pixels than places: the mean of an area, no moiré
        plane = _shrunk(image.data[..., k], places)
    pixels = _windowed(image, plane)
    if mask is not None:
        pixels = _outlined(pixels, image.grid, mask, k, places)
    file = io.BytesIO()
    picture = pixels[..., 0] if np.array_equal(pixels[..., 0], pixels[..., 1]) and mask is None else pixels
    # A line of one pixel needs its colour in every pixel.
    Pictures.fromarray(picture).save(file, "JPEG", quality=78, optimize=True, subsampling=2 if mask is None else 0)
    return file.getvalue()


def in_picture(grid: Grid, corners: Floats) -> tuple[float, float, float, float] | None:
    """Where a box lies in the drawn middle slice: left, top, width and height as shares of the picture.

    Parameters
    ----------
    corners : (2, 3) float, voxel indices
        As in :class:`sagittal.truth.Boxes`.

    Returns
    -------
    tuple, or None
        ``None`` where the box lies in other slices of a volume.
    """
    k = grid.shape[2] // 2
    if grid.shape[2] > 1 and not corners[0, 2] <= k <= corners[1, 2]:
        return None
    across, flips = _upright(grid)
    ends = []
    for axis in (across, 1 - across):
        low, high = ((corners[end, axis] + 0.5) / grid.shape[axis] for end in (0, 1))
        ends.append((1 - high, 1 - low) if flips[axis] else (low, high))
    (left, right), (top, bottom) = ends
    return float(left), float(top), float(right - left), float(bottom - top)


def _places(grid: Grid, k: int, side: int) -> tuple[tuple[Array, Array], tuple[int, int]]:
    """Voxel (i, j) of each pixel of the drawn slice, each (h, w), and the picture's width and height."""
    edges = np.ones(2) if grid.spacing is None else np.asarray(grid.spacing, dtype=np.float64)[:2]
    if not np.all(np.isfinite(edges)):
        edges = np.ones(2)
    lengths = np.array(grid.shape[:2]) * edges
    across, flips = _upright(grid)
    width_mm, height_mm = (lengths[0], lengths[1]) if across == 0 else (lengths[1], lengths[0])
    longest = max(width_mm, height_mm)
    width, height = (max(8, round(side * float(mm / longest))) for mm in (width_mm, height_mm))
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    along = {across: np.broadcast_to(x, (height, width)), 1 - across: np.broadcast_to(y[:, None], (height, width))}
    i, j = (
        np.minimum((np.where(flips[axis], 1 - along[axis], along[axis]) * grid.shape[axis]).astype(int), n - 1)
        for axis, n in ((0, grid.shape[0]), (1, grid.shape[1]))
    )
    return (i, j), (width, height)


def _upright(grid: Grid) -> tuple[int, tuple[bool, bool]]:
    """Which axis runs across the picture, and which of the two are reversed."""
    if grid.affine is None:
        return 0, (False, False)
    edges = np.asarray(grid.affine)[:3, :2]
    main = [int(np.argmax(np.abs(edges[:, axis]))) for axis in (0, 1)]
    across = 1 if main[0] == 2 or (main[0] == 1 and main[1] == 0) else 0
    # Across: towards left (+L) or back (+P). Down: towards the back (+P) or the feet (-S).
    flips = [False, False]
    for axis in (0, 1):
        positive = edges[main[axis], axis] > 0
        flips[axis] = bool(positive) if main[axis] == 2 and axis != across else not positive
    return across, (flips[0], flips[1])


def _shrunk(plane: Floats, places: tuple[Array, Array]) -> Floats:
    """Area means of (C, I, J) at the places of a smaller picture."""
    factor = max(1, min(plane.shape[1] // places[0].shape[1], plane.shape[2] // places[0].shape[0]))
    c, i, j = plane.shape[0], plane.shape[1] // factor, plane.shape[2] // factor
    means = plane[:, : i * factor, : j * factor].reshape(c, i, factor, j, factor).mean(axis=(2, 4))
    return np.asarray(means[:, np.minimum(places[0] // factor, i - 1), np.minimum(places[1] // factor, j - 1)])


def _windowed(image: Image, plane: Floats) -> Array:
    """(h, w, 3) uint8."""
    if image.unit == "HU":
        low, high = _SOFT_TISSUE
    elif 1 < image.bits <= 8 and image.unit == "1":
        low, high = 0.0, float(2**image.bits - 1)
    else:
        sample = image.data.ravel(order="K")[:: max(1, image.data.size // 100_000)]
        finite = sample[np.isfinite(sample)]
        low, high = (float(v) for v in np.percentile(finite, [0.5, 99.5])) if finite.size else (0.0, 1.0)
        if low == high and finite.size:
            low, high = float(finite.min()), float(finite.max())
    shown = np.nan_to_num((plane - low) / max(high - low, 1e-12), nan=0.0, posinf=1.0, neginf=0.0)
    bytes_ = (255 * np.clip(shown, 0, 1)).astype(np.uint8)
    colour = bytes_ if len(bytes_) == 3 and image.grid.dimensions == 2 else np.repeat(bytes_[:1], 3, axis=0)
    return np.ascontiguousarray(colour.transpose(1, 2, 0))


def _fullest(grid: Grid, mask: Segmentation) -> int:
    """The slice of the image in which most of the mask lies; the middle where there is none."""
    counts = (mask.layers != 0).sum(axis=(0, 1, 2))  # (K,)
    if not counts.any():
        return grid.shape[2] // 2
    k = int(np.argmax(counts))
    if grid.affine is not None and mask.grid.affine is not None:
        inside = np.argwhere((mask.layers[..., k] != 0).any(axis=0))[0]
        place = np.asarray(mask.grid.affine) @ [*inside, k, 1]
        k = round(float((np.linalg.inv(np.asarray(grid.affine)) @ place)[2]))
    elif grid.shape[2] != mask.grid.shape[2]:
        k = int((k + 0.5) / mask.grid.shape[2] * grid.shape[2])
    return min(max(k, 0), grid.shape[2] - 1)


def _outlined(pixels: Array, grid: Grid, mask: Segmentation, k: int, places: tuple[Array, Array]) -> Array:
    """The picture with a line around each structure."""
    i, j, inside = _in_mask(grid, mask.grid, k, places)
    drawn = pixels.copy()
    for number, structure in enumerate(mask.structures):
        plane = mask.layers[structure.layer][i[0], j, i[1]]
        member = np.isin(plane, structure.values) & inside
        edge = member & ~(_shift(member, 0, 1) & _shift(member, 0, -1) & _shift(member, 1, 1) & _shift(member, 1, -1))
        drawn[edge] = OUTLINES[number % len(OUTLINES)]
    return drawn


def _in_mask(grid: Grid, other: Grid, k: int, places: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array, Array]:
    """Voxels of the mask's grid under each pixel: ((i, k), j), and whether they lie inside it."""
    ijk = np.stack([places[0], places[1], np.full_like(places[0], k)], axis=-1).astype(np.float64)
    if grid.affine is not None and other.affine is not None:
        there = np.linalg.inv(np.asarray(other.affine)) @ np.asarray(grid.affine)
        ijk = ijk @ there[:3, :3].T + there[:3, 3]
    else:
        ijk = (ijk + 0.5) * (np.array(other.shape) / np.array(grid.shape)) - 0.5
    index = np.rint(ijk).astype(int)
    inside = np.all((index >= 0) & (index < np.array(other.shape)), axis=-1)
    index = np.clip(index, 0, np.array(other.shape) - 1)
    return (index[..., 0], index[..., 2]), index[..., 1], inside


def _shift(member: Array, axis: int, by: int) -> Array:
    moved = np.roll(member, by, axis=axis)
    edge = [slice(None), slice(None)]
    edge[axis] = slice(0, 1) if by > 0 else slice(-1, None)
    moved[tuple(edge)] = False
    return moved
