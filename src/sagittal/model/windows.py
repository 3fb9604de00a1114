"""Windows over an array of any size, so that the answer comes plane by plane and is never held as a whole.

What is not computed costs nothing: an axis that one window covers gets one, of the array's own size and without padding;
others get as few as reach across it, evenly placed, a little larger than those of training where that saves some; a window
in which nothing but the array's lowest value stands is answered once for all of them.

Windows meet in a seam: half of their overlap, in its middle, where the weight of one falls as that of the other rises
(squared sine, so that they sum to 1). What lies between seam and border of a window saw the border's padding and is not
used; what lies between seams is used as it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sagittal.errors import ConfigError
from sagittal.types import Array, Floats

Numbers = tuple[int, ...]
#: Takes windows (N, C, *window) as the array stores them; gives logits (N, outputs, *map) float32 and doubt (N, *map),
#: both its caller's to change.
Answer = Callable[[Array], tuple[Floats, Floats | None]]

_Place = tuple[Numbers, Array]

#: A window of prediction may be longer than one of training by this factor along each axis: fewer overlaps.
GROWTH = 1.5
#: Voxels of a window that is larger than one of training, at most: a map of 32 channels of it takes 320 MB.
MOST_VOXELS = 2_500_000
#: Numbers of the accumulator that a window longer than one of training may bring with it, at most: 1 GB.
MOST_HELD = 250_000_000


@dataclass(frozen=True)
class Layout:
    """Where windows lie in an array.

    Parameters
    ----------
    size : tuple of int
        Of the array, without channels.
    window : tuple of int
        Of every window.
    starts : one ascending tuple an axis
        First voxels: every combination is a window.
    stride : int
        The network's map has this many times fewer voxels along each axis; all starts are multiples of it.
    """

    size: Numbers
    window: Numbers
    starts: tuple[Numbers, ...]
    stride: int = 1

    @property
    def count(self) -> int:
        """Windows."""
        return math.prod(map(len, self.starts))

    @property
    def work(self) -> float:
        """Voxels that the network computes, as a multiple of those of the array."""
        return self.count * math.prod(self.window) / math.prod(self.size)

    @property
    def map_size(self) -> Numbers:
        """Of the network's map of the whole array."""
        return tuple(-(-n // self.stride) for n in self.size)

    @property
    def depth(self) -> int:
        """Planes of the map that are held at once."""
        seams = self.seams(0)
        ends = [*(stop for _, stop in seams), self.map_size[0]]
        return max(stop - start for start, stop in zip([0, *(s for s, _ in seams)], ends, strict=True))

    def seams(self, axis: int) -> list[tuple[int, int]]:
        """First voxel and end, on the map, of the stretch in which each window gives way to the next."""
        starts = [start // self.stride for start in self.starts[axis]]
        length = -(-self.window[axis] // self.stride)
        step = min((b - a for a, b in itertools.pairwise(starts)), default=0)
        found = []
        for a, b in itertools.pairwise(starts):
            shared = a + length - b
            wide = min(max(shared // 2, 1), step, shared)
            first = b + (shared - wide) // 2
            found.append((first, first + wide))
        return found


def lay_out(
    size: Sequence[int],
    patch: Sequence[int],
    *,
    overlap: float,
    align: Sequence[int] | None = None,
    stride: int = 1,
    outputs: int = 1,
    growth: float = GROWTH,
    most: int = MOST_VOXELS,
) -> Layout:
    """As few windows as reach across an array.

    Parameters
    ----------
    size : tuple of int
        Of the array, without channels.
    patch : tuple of int
        Windows of training.
    overlap : float
        Of neighbouring windows, at least, as a fraction of `patch`.
    align : tuple of int, optional
        Windows that do not span the array are multiples of this: the factor by which the network shrinks its input.
    stride : int
        Of the network's map.
    outputs : int
        Of the network, for the memory that the accumulator takes.
    growth : float
        By how much a window may be longer than `patch` along each axis.
    most : int
        Voxels of a window that is larger than `patch`.

    Examples
    --------
    >>> layout = lay_out((100, 256, 256), (96, 96, 96), overlap=0.25)
    >>> layout.window, layout.starts, round(layout.work, 2)
    ((100, 140, 140), ((0,), (0, 116), (0, 116)), 1.2)
    """
    if not 0 <= overlap < 1:
        raise ConfigError(f"decide.overlap is at least 0 and below 1, not {overlap}")
    if len(size) != len(patch):
        raise ConfigError(f"windows of {tuple(patch)} do not fit an array of {tuple(size)}")
    shared = [min(math.ceil(overlap * p), p - 1) for p in patch]
    aligned = list(align or [1] * len(size))
    # What is no multiple is padded to one inside the network, and costs as much.
    longest = [
        max(p, math.ceil(int(growth * p) / a) * a if growth > 1 else p) for p, a in zip(patch, aligned, strict=True)
    ]
    while True:
        axes = [_cover(*values, stride) for values in zip(size, longest, shared, aligned, strict=True)]
        window, starts = tuple(w for w, _ in axes), tuple(s for _, s in axes)
        layout = Layout(tuple(size), window, starts, stride)
        larger = [axis for axis, (w, p) in enumerate(zip(window, patch, strict=True)) if w > p]
        held = outputs * layout.depth * math.prod(layout.map_size[1:])
        if math.prod(window) > most and larger:
            worst = max(larger, key=lambda axis: window[axis] / patch[axis])
        elif held > MOST_HELD and 0 in larger and len(window) > 1:
            worst = 0
        else:
            return layout
        longest[worst] = max(patch[worst], (window[worst] - 1) // aligned[worst] * aligned[worst])


def _cover(n: int, longest: int, shared: int, align: int, stride: int) -> tuple[int, Numbers]:
    """Length and first voxels of the fewest windows, none longer than `longest`, that reach across `n`."""
    if n <= longest:
        return n, (0,)
    for count in range(2, n + 1):
        least = -(-(n + (count - 1) * shared) // count)
        length = -(-least // align) * align
        length = length if length <= longest else least
        length += (n - length) % stride  # the last window, too, begins at a multiple of the stride
        if length <= longest or length - shared <= stride:
            break
    spare = max(n - length, 0) // stride
    starts = {stride * round(i * spare / (count - 1)) for i in range(count)}  # fewer where the stride joins two
    return min(length, n), tuple(sorted(starts))


@dataclass(frozen=True, eq=False)
class Slab:
    """Planes of a network's map that no further window changes.

    Parameters
    ----------
    start : int
        Number of the first plane.
    logits : (outputs, n, *rest) float32
        Valid until the next slab is asked for.
    doubt : (n, *rest) float32, optional
    """

    start: int
    logits: Floats
    doubt: Floats | None


def run_windows(answer: Answer, array: Array, layout: Layout, *, batch: int = 1) -> Iterator[Slab]:
    """The network's map of an array in slabs along its first axis, in order, every plane once.

    Parameters
    ----------
    answer : callable
        The network.
    array : (C, *size)
        Any type.
    layout : Layout
        Of :func:`lay_out`.
    batch : int
        Windows that are answered at once.
    """
    if layout.count == 1:
        logits, doubt = answer(array[None])
        yield Slab(0, logits[0], None if doubt is None else doubt[0])
        return
    accumulator: _Ring | None = None
    lowest = array.min(axis=tuple(range(1, array.ndim)))
    seams = [layout.seams(axis) for axis in range(len(layout.size))]
    empty: tuple[Floats, Floats | None] | None = None
    for layer in range(len(layout.starts[0])):
        places = itertools.product(*(range(len(starts)) for starts in layout.starts[1:]))
        full: list[_Place] = []
        air: list[_Place] = []
        for place in places:
            at = (layer, *place)
            window = array[(slice(None), *_window(layout, at))]
            (air if _is_empty(window, lowest) else full).append((at, window))
        for some in _batched(full, batch):
            logits, doubt = answer(np.stack([window for _, window in some]))
            for number, (at, _) in enumerate(some):
                accumulator = accumulator or _Ring(layout, logits.shape[1], doubt is not None)
                accumulator.add(at, seams, logits[number], None if doubt is None else doubt[number])
        for at, window in air:
            empty = empty or answer(window[None])
            accumulator = accumulator or _Ring(layout, empty[0].shape[1], empty[1] is not None)
            accumulator.add(at, seams, empty[0][0].copy(), None if empty[1] is None else empty[1][0].copy())
        if accumulator is not None:
            done = seams[0][layer][0] if layer < len(seams[0]) else layout.map_size[0]
            yield from accumulator.give(done)


class _Ring:
    """Sums of weighted answers: plane p of the map lies at p modulo the depth."""

    def __init__(self, layout: Layout, outputs: int, doubt: bool) -> None:
        self.layout, self.depth, self.given = layout, layout.depth, 0
        size = (self.depth, *layout.map_size[1:])
        self.logits = np.zeros((outputs, *size), np.float32)
        self.doubt = np.zeros(size, np.float32) if doubt else None

    def add(self, at: Numbers, seams: list[list[tuple[int, int]]], logits: Floats, doubt: Floats | None) -> None:
        """Add one window's answer (outputs, *map), which is changed."""
        used, into = [], []
        parts = [logits] if doubt is None else [logits, doubt[None]]
        for axis, number in enumerate(at):
            start = self.layout.starts[axis][number] // self.layout.stride
            stop = start + logits.shape[1 + axis]
            if number > 0:
                first, end = seams[axis][number - 1]
                _weigh(parts, axis, first - start, _rise(end - first))
                start_used = first
            else:
                start_used = start
            if number < len(seams[axis]):
                first, end = seams[axis][number]
                _weigh(parts, axis, first - start, 1 - _rise(end - first))
                stop = end
            used.append(slice(start_used - start, stop - start))
            into.append(slice(start_used, stop))
        for ring, taken in self._pieces(into[0].start, into[0].stop):
            first = used[0].start + taken
            depth = ring.stop - ring.start
            inner = (slice(None), slice(first, first + depth), *used[1:])
            self.logits[(slice(None), ring, *into[1:])] += logits[inner]
            if self.doubt is not None and doubt is not None:
                self.doubt[(ring, *into[1:])] += doubt[inner[1:]]

    def give(self, stop: int) -> Iterator[Slab]:
        """The planes up to `stop`, which are then forgotten."""
        for ring, _ in list(self._pieces(self.given, stop)):
            doubt = None if self.doubt is None else self.doubt[ring]
            yield Slab(self.given, self.logits[:, ring], doubt)
            self.given += ring.stop - ring.start
            self.logits[:, ring] = 0
            if doubt is not None:
                doubt[...] = 0

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[slice, int]]:
        """Where planes lie in the ring, and how many came before."""
        plane = start
        while plane < stop:
            place = plane % self.depth
            count = min(stop - plane, self.depth - place)
            yield slice(place, place + count), plane - start
            plane += count


def _rise(length: int) -> Floats:
    """Weights from 0 to 1; those of the window before are what lacks to 1."""
    weights: Floats = np.sin((np.arange(length) + 0.5) / length * (math.pi / 2)) ** 2
    return weights.astype(np.float32)


def _weigh(parts: list[Floats], axis: int, first: int, weights: Floats) -> None:
    for part in parts:
        shape = [1] * part.ndim
        shape[1 + axis] = -1
        stretch = [slice(None)] * part.ndim
        stretch[1 + axis] = slice(first, first + len(weights))
        part[tuple(stretch)] *= weights.reshape(shape)


def _window(layout: Layout, at: Numbers) -> tuple[slice, ...]:
    first = [starts[n] for starts, n in zip(layout.starts, at, strict=True)]
    return tuple(slice(a, a + w) for a, w in zip(first, layout.window, strict=True))


def _is_empty(window: Array, lowest: Array) -> bool:
    """Whether every channel holds nothing but the array's lowest value; most windows are found not to be at once."""
    middle = tuple(n // 2 for n in window.shape[1:])
    if (window[(slice(None), *middle)] != lowest).any():
        return False
    return all(bool((channel == value).all()) for channel, value in zip(window, lowest, strict=True))


def _batched(items: list[_Place], size: int) -> Iterator[list[_Place]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]
