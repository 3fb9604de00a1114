"""Masks on the grid of a study from a network's answer on a prepared array, a few planes at a time.

Resampling logits of every class to the grid of a CT takes (classes x voxels) numbers: 13 GB for 20 structures in
512 x 512 x 600. Here nothing of that size exists. The interpolation is a weighted mean, so where all samples that a voxel
is interpolated from agree on the structure, the voxel is of that structure too, whatever the weights; only voxels along
borders, a few in a hundred, are interpolated, and all others are looked up in maps of one byte.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sagittal.errors import DataError
from sagittal.formats.packed_masks import pack, stack_slices
from sagittal.labels import LabelScheme
from sagittal.prediction import Mask
from sagittal.prepare.lattice import Lattice
from sagittal.prepare.plan import Outputs
from sagittal.prepare.resample import resize
from sagittal.truth import Segmentation, Structure
from sagittal.types import Array, Floats

#: Logits that are looked at together: 8 MB of float32, which stay in the processor's cache.
BLOCK = 2_000_000
#: Voxels along borders that are interpolated together.
BORDER = 50_000
#: Structures that share a byte where each has an output of its own.
BITS = 8


@dataclass(frozen=True, eq=False)
class _Axis:
    """Which samples of one axis of the array each voxel of the study is interpolated from.

    `taps` and `weights` are (T, new); a voxel with fewer than T samples repeats one with weight 0.
    """

    taps: Array
    weights: Floats

    @property
    def same(self) -> bool:
        return len(self.taps) == 1

    @property
    def first(self) -> Array:
        return np.asarray(self.taps.min(axis=0))

    @property
    def last(self) -> Array:
        return np.asarray(self.taps.max(axis=0))


def _axis(old: int, new: int) -> _Axis:
    if old == new:
        return _Axis(np.arange(new)[None], np.ones((1, new), np.float32))
    matrix = resize(np.eye(old, dtype=np.float32), (new,))  # (old, new): the rule of preparing, so of restoring too
    used = matrix > 0
    first, count = used.argmax(axis=0), used.sum(axis=0)
    steps = np.arange(count.max())[:, None]
    taps = first + np.minimum(steps, count - 1)
    weights = np.where(steps < count, np.take_along_axis(matrix, taps, axis=0), 0)
    return _Axis(taps, weights.astype(np.float32))


class MaskCollector:
    """Takes planes of logits on a prepared array and gives the mask on the study's grid.

    Logits are brought to the grid by the resampling that prepared the study (linear, widened where it shrinks), and the
    largest one wins, or each that is positive. Voxels outside the box that was prepared are background.

    The expected Dice of a structure is that of its mask against its probabilities as if they were calibrated, on the
    array: ``2 sum(p in mask) / (voxels of mask + sum(p))``; nan where the mask is empty and so are the probabilities.

    Parameters
    ----------
    scheme : LabelScheme
        Its classes are the structures.
    outputs : {"exclusive", "independent"}
        Background and one output a structure, of which one holds; or one a structure, each by itself.
    lattice : Lattice
    probability : bool
        Whether the probability of each voxel is kept, one byte a structure and voxel.
    """

    def __init__(self, scheme: LabelScheme, outputs: Outputs, lattice: Lattice, *, probability: bool = False) -> None:
        self.scheme, self.outputs, self.lattice = scheme, outputs, lattice
        self.exclusive = outputs == "exclusive"
        self.count = len(scheme.classes) + self.exclusive
        # A picture is a stack of its rows: planes of (1, columns).
        self._size = _as_stack(lattice.size)
        extent, start = _as_stack(lattice.extent), _as_stack(lattice.start, lone=0)
        self._axes = tuple(_axis(old, new) for old, new in zip(self._size, extent, strict=True))
        self._same = all(axis.same for axis in self._axes)
        self._last = self._axes[0].last
        self._box = tuple(slice(s, s + e) for s, e in zip(start, extent, strict=True))
        i, j, k = lattice.grid.shape
        self._study = (k, j, i) if lattice.dimensions == 3 else (j, 1, i)
        kind = np.uint8 if self.count <= 256 else np.uint16
        self._labels = np.zeros(self._study, kind) if self.exclusive else None
        self._slices: tuple[dict[int, Array], ...] = tuple({} for _ in scheme.classes)
        self._probability = {name: np.zeros(self._study, np.uint8) for name in scheme.classes} if probability else {}
        self._doubt: Array | None = None
        self._overlap, self._sum, self._voxels = (np.zeros(len(scheme.classes)) for _ in range(3))
        # Planes that later ones are interpolated from: the first of them, their codes, logits and doubt.
        self._base = self._received = self._made = 0
        self._codes: list[Array] = []  # (groups, n1, n2) a plane
        self._logits: list[Floats] = []  # (n1, n2, outputs) a plane
        self._doubts: list[Floats] = []  # (n1, n2) a plane

    def add(self, start: int, logits: Floats, doubt: Floats | None = None) -> None:
        """Take the next planes along the first axis of the array, in order and without gaps.

        Parameters
        ----------
        start : int
            Number of the first plane.
        logits : (outputs, n, *rest) float32
        doubt : (n, *rest) float32, optional
            0 to 1; given with every call or with none.

        Raises
        ------
        DataError
            If planes are missing or come twice, or do not fit the lattice.
        """
        stack = np.asarray(logits, dtype=np.float32).reshape(len(logits), logits.shape[1], *self._size[1:])
        if start != self._received or start + stack.shape[1] > self._size[0] or len(stack) != self.count:
            raise DataError(
                f"expected planes from {self._received} of {self._size[0]} with {self.count} outputs, found "
                f"{len(stack)} outputs from {start} to {start + stack.shape[1]}"
            )
        if doubt is not None:
            doubt = np.asarray(doubt, dtype=np.float32).reshape(stack.shape[1:])
            if self._doubt is None:
                self._doubt = np.zeros(self._study, np.uint8)
        some = max(1, BLOCK // (self.count * self._size[1] * self._size[2]))
        for at in range(0, stack.shape[1], some):
            part = stack[:, at : at + some]
            self._take(part, None if doubt is None else doubt[at : at + some])

    def finish(self) -> Mask:
        """The mask on the study's grid, with the raw expected Dice of each structure.

        Raises
        ------
        DataError
            If planes are missing.
        """
        if self._received != self._size[0]:
            raise DataError(f"only {self._received} of {self._size[0]} planes were added")
        names = self.scheme.classes
        if self._labels is not None:
            layers = self._back(self._labels)[None]
            structures = tuple(Structure(name, (n + 1,)) for n, name in enumerate(names))
        else:
            layers, layer_of = self._stack()
            structures = tuple(Structure(name, (n + 1,), layer_of[n]) for n, name in enumerate(names))
        expected = np.full(len(names), np.nan)
        told = (self._voxels > 0) | (self._sum >= 1)
        expected[told] = 2 * self._overlap[told] / (self._voxels + self._sum)[told]
        return Mask(
            Segmentation(layers, self.lattice.grid, structures),
            probability={name: self._back(values) for name, values in self._probability.items()},
            doubt=None if self._doubt is None else self._back(self._doubt),
            expected_dice=dict(zip(names, expected.tolist(), strict=True)),
        )

    def _take(self, logits: Floats, doubt: Floats | None) -> None:
        codes = self._decide(logits)  # (groups, n, n1, n2)
        self._received += logits.shape[1]
        if self._same:
            planes = slice(self._made, self._received)
            self._write(planes, codes)
            self._write_doubt(planes, doubt)
            self._write_probability(planes, logits)
            self._made = self._received
            return
        self._codes += list(codes.swapaxes(0, 1))
        self._logits += list(np.ascontiguousarray(logits.transpose(1, 2, 3, 0)))
        self._doubts += [] if doubt is None else list(doubt.copy())
        ready = int(np.searchsorted(self._last, self._received))  # planes of the study whose samples are all here
        some = max(1, BLOCK // (len(codes) * self._box[1].stop * self._box[2].stop))
        for at in range(self._made, ready, some):
            self._make(slice(at, min(at + some, ready)))
        self._made = ready
        needed = int(self._axes[0].first[ready]) if ready < len(self._last) else self._received
        for held in (self._codes, self._logits, self._doubts):
            del held[: needed - self._base]
        self._base = needed

    def _decide(self, logits: Floats) -> Array:
        """What holds at each voxel of the array, (groups, n, n1, n2), and the sums behind the expected Dice."""
        count, shape = len(logits), logits.shape[1:]
        flat = logits.reshape(count, -1)
        if self.exclusive:
            assert self._labels is not None
            best, codes = flat[0].copy(), np.zeros(flat.shape[1], self._labels.dtype)
            for label in range(1, count):
                np.copyto(codes, label, where=flat[label] > best)
                np.maximum(best, flat[label], out=best)
            odds = np.exp(flat - best)
            sure = 1 / odds.sum(axis=0)  # the probability of the largest
            self._sum += (odds[1:] @ sure).astype(np.float64)
            self._overlap += np.bincount(codes, sure, count)[1:]
            self._voxels += np.bincount(codes, minlength=count)[1:]
            return codes.reshape(1, *shape)
        groups = np.zeros((-(-count // BITS), flat.shape[1]), np.uint8)
        for label, values in enumerate(flat):
            held = values > 0
            groups[label // BITS] |= held.astype(np.uint8) << (label % BITS)
            p = _sigmoid(values)
            self._sum[label] += p.sum(dtype=np.float64)
            self._overlap[label] += p[held].sum(dtype=np.float64)
            self._voxels[label] += np.count_nonzero(held)
        return groups.reshape(-1, *shape)

    def _make(self, planes: slice) -> None:
        """Planes of the study's box from the samples held."""
        along = self._axes[0].taps[:, planes] - self._base  # (T, k)
        lowest, last = int(along.min()), int(along.max()) + 1
        held = np.stack(self._codes[lowest:last], axis=1)  # (groups, m, n1, n2)
        codes, differ = self._agree(held, along - lowest)
        for group, (values, mixed) in enumerate(zip(codes, differ, strict=True)):
            for where in _parts(np.nonzero(mixed)):
                values[where] = self._interpolate(planes, where, group)
        self._write(planes, codes)
        if self._doubts:
            self._write_doubt(planes, self._spread(np.stack(self._doubts), planes))
        if self._probability:
            stack = np.stack(self._logits)  # (m, n1, n2, outputs)
            self._write_probability(planes, np.stack([self._spread(stack[..., n], planes) for n in range(self.count)]))

    def _agree(self, codes: Array, along: Array) -> tuple[Array, Array]:
        """Codes (groups, k, e1, e2) where all samples of a voxel have the same, and where they differ."""
        both, either = codes, codes
        taps = (along, self._axes[1].taps, self._axes[2].taps)
        for axis, indices in enumerate(taps, start=1):
            least, most = np.take(both, indices[0], axis=axis), np.take(either, indices[0], axis=axis)
            for more in indices[1:]:
                least &= np.take(both, more, axis=axis)
                most |= np.take(either, more, axis=axis)
            both, either = least, most
        return both, both != either

    def _interpolate(self, planes: slice, where: tuple[Array, Array, Array], group: int) -> Array:
        """Codes of single voxels (plane, row, column) of the study's box."""
        picked = slice(None) if self.exclusive else slice(group * BITS, (group + 1) * BITS)
        k, y, x = where
        depth, rows, columns = self._axes
        total: Floats | None = None
        for z_tap, z_weight in zip(depth.taps[:, planes][:, k], depth.weights[:, planes][:, k], strict=True):
            for y_tap, y_weight in zip(rows.taps[:, y], rows.weights[:, y], strict=True):
                for x_tap, x_weight in zip(columns.taps[:, x], columns.weights[:, x], strict=True):
                    some = self._at(z_tap - self._base, y_tap, x_tap, picked)
                    some *= (z_weight * y_weight * x_weight)[:, None]
                    total = some if total is None else np.add(total, some, out=total)
        assert total is not None
        if self.exclusive:
            return np.asarray(total.argmax(axis=1))
        bits = (total > 0) << np.arange(total.shape[1])
        return np.asarray(bits.sum(axis=1))

    def _at(self, z: Array, y: Array, x: Array, outputs: slice) -> Floats:
        """Logits (N, outputs) at samples; the voxels come plane by plane, so few planes are looked into."""
        found = np.empty((len(z), len(range(self.count)[outputs])), np.float32)
        edges = np.flatnonzero(np.diff(z, prepend=-1, append=-1))
        for start, stop in itertools.pairwise(edges):
            found[start:stop] = self._logits[z[start]][y[start:stop], x[start:stop], outputs]
        return found

    def _spread(self, held: Floats, planes: slice) -> Floats:
        """All voxels of planes of the study's box, (k, e1, e2), from samples (m, n1, n2)."""
        depth = self._axes[0]
        values = _mix(held, depth.taps[:, planes] - self._base, depth.weights[:, planes], 0)
        for axis in (1, 2):
            values = _mix(values, self._axes[axis].taps, self._axes[axis].weights, axis)
        return values

    def _inside(self, planes: slice) -> tuple[slice, slice, slice]:
        first = self._box[0].start
        return (slice(first + planes.start, first + planes.stop), self._box[1], self._box[2])

    def _write(self, planes: slice, codes: Array) -> None:
        box = self._inside(planes)
        if self._labels is not None:
            self._labels[box] = codes[0]
            return
        for number, plane in enumerate(range(box[0].start, box[0].stop)):
            for label, slices in enumerate(self._slices):
                held = (codes[label // BITS, number] >> (label % BITS)) & 1
                if held.any():
                    whole = np.zeros(self._study[1:], bool)
                    whole[box[1:]] = held
                    slices[plane] = pack(whole)

    def _write_doubt(self, planes: slice, doubt: Floats | None) -> None:
        if doubt is not None and self._doubt is not None:
            self._doubt[self._inside(planes)] = _to_byte(doubt)

    def _write_probability(self, planes: slice, logits: Floats) -> None:
        if not self._probability:
            return
        if self.exclusive:
            odds = np.exp(logits - logits.max(axis=0))
            values = odds[1:] / odds.sum(axis=0)
        else:
            values = _sigmoid(logits)
        for name, value in zip(self.scheme.classes, values, strict=True):
            self._probability[name][self._inside(planes)] = _to_byte(value)

    def _stack(self) -> tuple[Array, tuple[int, ...]]:
        """Layers (L, I, J, K): structures that overlap stand in different ones."""
        planes, rows, columns = self._study
        layers, layer_of = stack_slices((columns, rows, planes), self._slices, range(1, len(self._slices) + 1))
        return np.stack([self._back(layer.transpose(2, 1, 0)) for layer in layers]), layer_of

    def _back(self, stack: Array) -> Array:
        """(K, J, I), or of a picture (J, 1, I), as (I, J, K)."""
        return stack.transpose(2, 1, 0) if self.lattice.dimensions == 3 else stack.transpose(2, 0, 1)


def _as_stack(numbers: tuple[int, ...], lone: int = 1) -> tuple[int, int, int]:
    """Sizes of a volume; those of a picture as a stack of rows."""
    if len(numbers) == 3:
        return (numbers[0], numbers[1], numbers[2])
    return (numbers[0], lone, numbers[1])


def _mix(values: Floats, taps: Array, weights: Floats, axis: int) -> Floats:
    if len(taps) == 1:
        return np.asarray(np.take(values, taps[0], axis=axis))
    shape = [1, 1, 1]
    shape[axis] = -1
    total: Floats = np.take(values, taps[0], axis=axis) * weights[0].reshape(shape)
    for tap, weight in zip(taps[1:], weights[1:], strict=True):
        total += np.take(values, tap, axis=axis) * weight.reshape(shape)
    return total


def _parts(where: tuple[Array, ...]) -> Iterator[tuple[Array, Array, Array]]:
    k, y, x = where
    for at in range(0, len(k), BORDER):
        some = slice(at, at + BORDER)
        yield k[some], y[some], x[some]


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(0.5 * (np.tanh(0.5 * values) + 1))


def _to_byte(values: Floats) -> Array:
    byte: Array = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return byte
