"""One window sampled from a stored array, by the cheapest way that its map allows.

Three ways, from cheap to dear: voxels that map onto voxels are cut out; a map that leaves one axis of a volume to itself
samples all planes across it at the same places, which is one bilinear sampling of many channels; any other map is sampled
in three dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sagittal.prepare.warp import Warp
from sagittal.types import Array, Bools, Floats

#: What stands in a window outside the labels.
OUTSIDE = 255
_TINY = 1e-6


@dataclass(eq=False)
class _Map:
    """From a window's voxels to those of an array: centre + matrix @ (v - middle) + displacement."""

    size: tuple[int, ...]
    centre: Floats
    matrix: Floats
    displacement: Tensor | None  # (d, *coarse)

    @cached_property
    def middle(self) -> Floats:
        return (np.array(self.size) - 1) / 2

    def line(self, source: int, axis: int) -> Floats:
        """Places along an axis of the array that depend on one axis of the window alone."""
        steps = np.arange(self.size[axis]) - self.middle[axis]
        return np.asarray(self.centre[source] + self.matrix[source, axis] * steps)

    def reach(self) -> tuple[Floats, Floats]:
        """The lowest and highest place along each axis of the array."""
        half = np.abs(self.matrix) @ self.middle
        low, high = self.centre - half, self.centre + half
        if self.displacement is not None:
            flat = self.displacement.flatten(1)
            low, high = low + flat.amin(1).cpu().numpy(), high + flat.amax(1).cpu().numpy()
        return low, high

    def swaps(self) -> tuple[int, ...] | None:
        """For each axis of the array the window's axis that runs along it; ``None`` unless voxels map onto voxels."""
        if self.displacement is not None:
            return None
        size = np.abs(self.matrix)
        if not (
            np.array_equal(size, np.rint(size)) and (size.sum(axis=0) == 1).all() and (size.sum(axis=1) == 1).all()
        ):
            return None
        first = self.centre - size @ self.middle
        if np.abs(first - np.rint(first)).max() > _TINY:
            return None
        return tuple(int(n) for n in size.argmax(axis=1))

    def across(self) -> tuple[int, int] | None:
        """The array's and the window's axis that belong to each other alone; ``None`` where there is no such pair."""
        if len(self.size) != 3:
            return None
        size = np.abs(self.matrix)
        for axis in range(3):
            source = int(size[:, axis].argmax())
            alone = size[:, axis].sum() + size[source].sum() - 2 * size[source, axis] < 1e-12
            if alone and self._is_flat(source, axis):
                return source, axis
        return None

    def _is_flat(self, source: int, axis: int) -> bool:
        if self.displacement is None:
            return True
        first = self.displacement.narrow(axis + 1, 0, 1)
        return not bool(self.displacement[source].any()) and bool((self.displacement == first).all())

    def plane(self, source: int, axis: int) -> _Map:
        """The two-dimensional rest of a map with such a pair."""
        rows, columns = [a for a in range(3) if a != source], [a for a in range(3) if a != axis]
        field = None if self.displacement is None else self.displacement[rows].select(axis + 1, 0)
        size = tuple(self.size[a] for a in columns)
        return _Map(size, self.centre[rows], self.matrix[rows][:, columns], field)

    def places(self) -> Floats:
        """Where each voxel of the window lies in the array, (d, *size) float32."""
        d = len(self.size)
        found = np.empty((d, *self.size), dtype=np.float32)
        steps = [np.arange(n) - m for n, m in zip(self.size, self.middle, strict=True)]
        for source in range(d):
            lines = [(self.matrix[source, axis] * steps[axis]).astype(np.float32) for axis in range(d)]
            lines[-1] += np.float32(self.centre[source])
            rest = lines[-1] if d == 2 else lines[1][:, None] + lines[2]
            np.add(lines[0].reshape(-1, *(1,) * (d - 1)), rest, out=found[source])
        if self.displacement is not None:
            mode = "bilinear" if d == 2 else "trilinear"
            field = self.displacement.cpu()[None]
            found += functional.interpolate(field, size=self.size, mode=mode, align_corners=False)[0].numpy()
        return found


def sample_values(array: Array, warp: Warp, number: int) -> Tensor:
    """One window of an array (C, *own size), (C, *size) float32; beyond the array's edge its edge value."""
    place = warp.place or torch.device("cpu")
    mapping = _map_of(warp, number)
    swaps = mapping.swaps()
    if swaps is not None:
        cut, _ = _cut_lattice(array, mapping, swaps)
        return torch.from_numpy(np.ascontiguousarray(cut)).to(place).float()
    region, mapping = _cut_region(array, mapping)
    values = torch.from_numpy(region).to(place)
    pair = mapping.across()
    if pair is None:
        return _sample(values.float(), mapping.places())
    source, axis = pair
    plane = mapping.plane(source, axis)
    height, width = (n for a, n in enumerate(values.shape[1:]) if a != source)
    channels, depth = len(values), values.shape[source + 1]
    made = _mix(_upright(values, source), *_corners(plane.places(), (height, width)))
    # Turned about, so that planes are rows, which are mixed to the window's planes.
    index, weight = _ends(mapping.line(source, axis), depth)
    index = (index + depth * np.arange(channels)[:, None, None]).reshape(-1, 2)
    made = _mix(made.t().contiguous(), index, np.tile(weight, (channels, 1)))
    planes = made.view(channels, -1, plane.size[0] * plane.size[1])
    if axis == 2:
        return torch.stack([p.t().contiguous() for p in planes]).view(channels, *mapping.size)
    return planes.view(channels, -1, *plane.size).movedim(1, axis + 1)


def sample_nearest(labels: Array, warp: Warp, number: int) -> Array:
    """One window of label maps (T, *own size), (T, *size) uint8; 255 outside them."""
    mapping = _map_of(warp, number)
    swaps = mapping.swaps()
    if swaps is not None:
        cut, beyond = _cut_lattice(labels, mapping, swaps)
        cut = np.array(cut)
        for axis, outside in enumerate(beyond):
            if outside.any():
                cut[(slice(None),) * (axis + 1) + (outside,)] = OUTSIDE
        return cut
    region, shifted = _cut_region(labels, mapping)
    # The region ends where the array does, or where no voxel of the window comes from.
    pair = shifted.across()
    if pair is None:
        index, beyond_volume = _nearest(shifted.places(), region.shape[1:])
        made = np.take(region.reshape(len(region), -1), index, axis=1)
        if beyond_volume.any():
            made[:, beyond_volume] = OUTSIDE
        return made
    source, axis = pair
    line = np.rint(shifted.line(source, axis)).astype(np.int64)
    n = region.shape[source + 1]
    beyond_line = (line < 0) | (line >= n)
    line = np.clip(line, 0, n - 1)
    plane = shifted.plane(source, axis)
    last = source == 2  # what lies above each other is side by side in memory
    planes = region if last else np.take(np.moveaxis(region, source + 1, 1), line, axis=1)
    index, beyond_plane = _nearest(plane.places(), planes.shape[1:3] if last else planes.shape[2:])
    if last:
        made = np.take(region.reshape(len(region), -1, n), index.ravel(), axis=1)
        made = np.take(made, line, axis=2).reshape(len(region), *plane.size, -1)
        made = np.moveaxis(made, 3, 1)
    else:
        made = np.take(planes.reshape(*planes.shape[:2], -1), index, axis=2)
    if beyond_plane.any():
        made[:, :, beyond_plane] = OUTSIDE
    made[:, beyond_line] = OUTSIDE
    return np.moveaxis(made, 1, axis + 1)


def _map_of(warp: Warp, number: int) -> _Map:
    field = None if warp.displacement is None else warp.displacement[number]
    return _Map(warp.size, warp.centre[number], warp.matrix[number], field)


def _cut_lattice(array: Array, mapping: _Map, swaps: tuple[int, ...]) -> tuple[Array, list[Bools]]:
    """Voxels cut out, and for each axis of the window which of its voxels lie outside the array."""
    beyond: list[Bools] = [np.zeros(0, dtype=bool)] * len(swaps)
    cut = array
    for source, axis in enumerate(swaps):
        line = np.rint(mapping.line(source, axis)).astype(np.int64)
        n = array.shape[source + 1]
        beyond[axis] = (line < 0) | (line >= n)
        lead = (slice(None),) * (source + 1)
        if beyond[axis].any():
            # Few voxels are outside: the rest is a view, so that a memory map is read only where needed.
            low, high = int(np.clip(line.min(), 0, n - 1)), int(np.clip(line.max(), 0, n - 1))
            cut = np.take(cut[(*lead, slice(low, high + 1))], np.clip(line, low, high) - low, axis=source + 1)
        else:
            step = -1 if len(line) > 1 and line[1] < line[0] else 1
            last = int(line[-1]) + step
            cut = cut[(*lead, slice(int(line[0]), None if last < 0 else last, step))]
    order = [0] * len(swaps)
    for source, axis in enumerate(swaps):
        order[axis] = source + 1
    return cut.transpose(0, *order), beyond


def _cut_region(array: Array, mapping: _Map) -> tuple[Array, _Map]:
    """The part of an array that a window needs, and the map onto it."""
    low, high = mapping.reach()
    ends = np.array(array.shape[1:]) - 1
    first = np.clip(np.floor(low), 0, ends).astype(int)
    last = np.clip(np.ceil(high), 0, ends).astype(int)
    region = array[(slice(None), *(slice(a, b + 1) for a, b in zip(first, last, strict=True)))]
    if not region.flags.writeable:  # a part of a memory map is read once, and torch takes no such memory
        region = np.array(region)
    return region, _Map(mapping.size, mapping.centre - first, mapping.matrix, mapping.displacement)


def _sample(values: Tensor, places: Floats) -> Tensor:
    """Linear samples of (C, *own size) at places (d, *size); edge values beyond the edge."""
    d = len(places)
    grid = np.empty((1, *places.shape[1:], d), dtype=np.float32)
    for axis, line in enumerate(places):
        # The sampler counts axes from the last, from -1 at the first voxel to 1 at the last.
        np.multiply(line, np.float32(2 / max(values.shape[axis + 1] - 1, 1)), out=grid[0, ..., d - 1 - axis])
    grid -= 1
    places_of = torch.from_numpy(grid).to(values.device)
    return functional.grid_sample(values[None], places_of, mode="bilinear", padding_mode="border", align_corners=True)[
        0
    ]


def _upright(values: Tensor, source: int) -> Tensor:
    """A volume (C, *own size) with the voxels of a plane as rows, what lies across it side by side: (plane, C * depth)."""
    if source == 0:  # two steps, because torch turns whole matrices about by blocks
        return values.float().contiguous().flatten(0, 1).flatten(1).t().contiguous()
    return values.movedim(0, -1).movedim(source, -1).float().flatten(2).flatten(0, 1).contiguous()


def _corners(places: Floats, shape: tuple[int, int]) -> tuple[Array, Floats]:
    """For each place (2, h, w) the four voxels around it, as flat indices (h * w, 4), and their weights."""
    rows, columns = places.reshape(2, -1)
    (row, above), (column, beside) = _ends(rows, shape[0]), _ends(columns, shape[1])
    index = row[:, :, None] * shape[1] + column[:, None, :]
    weight = above[:, :, None] * beside[:, None, :]
    return index.reshape(-1, 4), weight.reshape(-1, 4)


def _ends(line: Floats, n: int) -> tuple[Array, Floats]:
    """The two voxels of an axis around each place, (m, 2), and their weights; the edge holds beyond the edge."""
    held = np.clip(line, 0, n - 1)
    low = held.astype(np.int64)
    part = (held - low).astype(np.float32)
    return np.stack([low, np.minimum(low + 1, n - 1)], axis=1), np.stack([1 - part, part], axis=1)


def _mix(rows: Tensor, index: Array, weight: Floats) -> Tensor:
    """Weighted sums (m, L) of rows (n, L): each of those that its index (m, k) names.

    An embedding bag is the fastest weighted gathering of whole rows that torch has: ten times that of sampling a picture
    with as many channels.
    """
    chosen, parts = torch.from_numpy(index).to(rows.device), torch.from_numpy(weight).to(rows.device)
    return functional.embedding_bag(chosen, rows, per_sample_weights=parts, mode="sum")


def _nearest(places: Floats, shape: tuple[int, ...]) -> tuple[Array, Bools]:
    """Flat index of the voxel nearest to each place (d, *size), and which places have none."""
    flat = np.zeros(places.shape[1:], dtype=np.int64)
    beyond = np.zeros(places.shape[1:], dtype=bool)
    for line, n in zip(places, shape, strict=True):
        nearest = np.rint(line).astype(np.int64)
        held = np.clip(nearest, 0, n - 1)
        beyond |= nearest != held
        flat *= n
        flat += held
    return flat, beyond
