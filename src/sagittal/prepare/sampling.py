"""One window sampled from a stored array, by the cheapest way that its map allows.

Three ways, from cheap to dear: voxels that map onto voxels are cut out; a map that leaves one axis of a volume to itself
samples all planes across it at the same places, which is one bilinear sampling of many channels; any other map is sampled
in three dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sagittal.prepare.warp import Warp
from sagittal.types import Array, Bools, Floats

#: What stands in a window outside the labels.
OUTSIDE = 255
_TINY = 1e-6


@dataclass(frozen=True, eq=False)
class _Map:
    """From a window's voxels to those of an array: centre + matrix @ (v - middle) + displacement."""

    size: tuple[int, ...]
    centre: Floats
    matrix: Floats
    displacement: Tensor | None  # (d, *coarse)

    @property
    def middle(self) -> Floats:
        return (np.asarray(self.size) - 1) / 2

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
        return _Map(size, self.centre[rows], self.matrix[np.ix_(rows, columns)], field)

    def places(self, place: torch.device) -> Tensor:
        """Where each voxel of the window lies in the array, (d, *size) float32."""
        d = len(self.size)
        found = torch.empty((d, *self.size), device=place)
        for source in range(d):
            lines = []
            for axis in range(d):
                steps = self.matrix[source, axis] * (np.arange(self.size[axis]) - self.middle[axis])
                steps = steps + (self.centre[source] if axis == 0 else 0.0)
                shape = [1] * d
                shape[axis] = -1
                lines.append(torch.from_numpy(steps.astype(np.float32)).to(place).view(shape))
            rest = lines[1] if d == 2 else lines[1] + lines[2]
            torch.add(lines[0], rest, out=found[source])
        if self.displacement is not None:
            mode = "bilinear" if d == 2 else "trilinear"
            field = self.displacement.to(place)[None]
            found += functional.interpolate(field, size=self.size, mode=mode, align_corners=False)[0]
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
        return _sample(values.float(), mapping.places(place))
    source, axis = pair
    # Order of axes: channels, the axis across, the plane's rows and columns.
    planes = values.movedim(source + 1, 1).float()
    line = np.clip(mapping.line(source, axis), 0, planes.shape[1] - 1)
    places = mapping.plane(source, axis).places(place)
    blend_first = planes.shape[1] >= len(line)
    if blend_first:
        planes = _blend(planes, line)
    made: Tensor = _sample(planes.flatten(0, 1), places).view(*planes.shape[:2], *places.shape[1:])
    if not blend_first:
        made = _blend(made, line)
    return made.movedim(1, axis + 1)


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
    cpu = torch.device("cpu")
    if pair is None:
        index, inside = _nearest(shifted.places(cpu), region.shape[1:])
        made = np.take(region.reshape(len(region), -1), index, axis=1)
        made[:, ~inside] = OUTSIDE
        return made
    source, axis = pair
    planes = np.moveaxis(region, source + 1, 1)
    line = np.rint(shifted.line(source, axis)).astype(np.int64)
    beyond_line = (line < 0) | (line >= planes.shape[1])
    planes = np.take(planes, np.clip(line, 0, planes.shape[1] - 1), axis=1)
    index, inside = _nearest(shifted.plane(source, axis).places(cpu), planes.shape[2:])
    made = np.take(planes.reshape(*planes.shape[:2], -1), index, axis=2)
    made[:, :, ~inside] = OUTSIDE
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
    return np.ascontiguousarray(region), _Map(
        mapping.size, mapping.centre - first, mapping.matrix, mapping.displacement
    )


def _sample(values: Tensor, places: Tensor) -> Tensor:
    """Linear samples of (C, *own size) at places (d, *size); edge values beyond the edge."""
    d = len(places)
    grid = torch.empty((1, *places.shape[1:], d), device=places.device)
    for axis, line in enumerate(places):
        n = values.shape[axis + 1]
        # The sampler counts axes from the last, from -1 at the first voxel to 1 at the last.
        torch.mul(line, 2 / max(n - 1, 1), out=grid[0, ..., d - 1 - axis])
    grid -= 1
    return functional.grid_sample(values[None], grid, mode="bilinear", padding_mode="border", align_corners=True)[0]


def _blend(planes: Tensor, line: Floats) -> Tensor:
    """Linear samples of (C, n, rows, columns) along the second axis, at places within it."""
    low = np.floor(line).astype(np.int64)
    part = (line - low).astype(np.float32)
    first = planes.index_select(1, torch.from_numpy(low).to(planes.device))
    if not part.any():
        return first
    upper = torch.from_numpy(np.minimum(low + 1, planes.shape[1] - 1)).to(planes.device)
    weight = torch.from_numpy(part).to(planes.device)[:, None, None]
    return torch.lerp(first, planes.index_select(1, upper), weight)


def _nearest(places: Tensor, shape: tuple[int, ...]) -> tuple[Array, Bools]:
    """Flat index of the voxel nearest to each place (d, *size), and whether there is one."""
    flat: Tensor | None = None
    inside: Tensor | None = None
    for line, n in zip(places, shape, strict=True):
        nearest = line.round_().to(torch.int32)
        within = (nearest >= 0) & (nearest < n)
        inside = within if inside is None else inside & within
        nearest = nearest.clamp_(0, n - 1)
        flat = nearest if flat is None else flat.mul_(n).add_(nearest)
    assert flat is not None
    assert inside is not None
    return flat.numpy(), inside.numpy()
