"""Batches of windows: which parts of which cases a step sees, and how they come to the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from sagittal.prepare.augment import change_intensity
from sagittal.prepare.place_store import PlaceStore
from sagittal.prepare.plan import Plan
from sagittal.prepare.warp import Warp, draw_warp, sample_images
from sagittal.tasks.task import PlaceTask
from sagittal.train.batches import IN_MEMORY, Batch
from sagittal.types import Array, Floats

#: A place around which a window lies is at most this part of the window's size away from its middle.
JITTER = 0.25
#: Windows of a validation case, and of all of them.
MOST_A_CASE, MOST_PIECES = 4, 200

_Key = tuple[bytes, int, int, int, tuple[int, int]]


class WindowBatches:
    """Windows of a store's cases with their targets.

    Each step's windows and random changes follow from (seed, member, step) alone, so that a resumed run goes on exactly as
    the first would have. All cases are drawn equally often. The part ``plan.train.foreground`` of the windows lies around a
    place of a class, rare classes as often as their cases allow; the others lie anywhere in the case.

    Parameters
    ----------
    store : PlaceStore
    plan : Plan
    task : PlaceTask
    device : torch.device
    ahead : bool, optional
        Whether the next step's batch is made in the background while the network works. Where not given: on every device
        but the CPU, whose cores have no time for it.
    """

    def __init__(
        self, store: PlaceStore, plan: Plan, task: PlaceTask, device: torch.device, *, ahead: bool | None = None
    ) -> None:
        keep = store.nbytes <= IN_MEMORY
        self._images = tuple(np.array(a) for a in store.images) if keep else store.images
        self._targets = tuple(np.array(a) for a in store.targets) if keep else store.targets
        self._tables = np.array(store.tables, dtype=np.float32)
        self._places = store.places
        self._plan = plan
        self._task = task
        self._device = device
        self._edges = _edges(store, plan)
        self._rarity = _rarity(store.places)
        background = device.type != "cpu" if ahead is None else ahead
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="windows") if background else None
        self._next: tuple[_Key, Future[Batch]] | None = None

    def samples(self, rows: Array) -> int:
        """Windows that one epoch over these cases draws."""
        return self._plan.train.windows or len(rows)

    def training(self, rows: Array, seed: int, member: int, step: int, *, part: tuple[int, int] = (0, 1)) -> Batch:
        """The batch of a training step: drawn, cut out and augmented; of several processes each takes its `part`.

        Parameters
        ----------
        rows : (n,) int
            The store's cases to learn from.
        seed, member, step : int
        part : (rank, size)
        """
        rows = np.asarray(rows, dtype=np.int64)
        if self._pool is None:
            return self._training(rows, seed, member, step, part)
        key = (rows.tobytes(), seed, member, step, part)
        made = self._next[1] if self._next is not None and self._next[0] == key else None
        batch = self._training(rows, seed, member, step, part) if made is None else made.result()
        following = self._pool.submit(self._training, rows, seed, member, step + 1, part)
        self._next = ((key[0], seed, member, step + 1, part), following)
        return batch

    def pieces(self, rows: Array, size: int) -> Iterator[Batch]:
        """Fixed windows of these cases as they are, `size` at a time: at most 4 a case and about 200 in all.

        They are the same each time, so that scores of different steps can be compared: the first of a case lies around one
        of its places, where it has any, the others around places and anywhere by turns.
        """
        windows = self._fixed(np.asarray(rows, dtype=np.int64))
        for start in range(0, len(windows), size):
            part = windows[start : start + size]
            taken = np.array([row for row, _ in part], dtype=np.int64)
            warp = Warp.straight(self._size, np.stack([centre for _, centre in part]))
            yield self._batch(taken, Warp(warp.size, warp.centre, warp.matrix, None, self._device))

    @property
    def _size(self) -> tuple[int, ...]:
        return self._plan.prepare.size

    def _training(self, rows: Array, seed: int, member: int, step: int, part: tuple[int, int]) -> Batch:
        plan, (rank, size) = self._plan, part
        count = plan.train.batch
        taken = turns(rows, count, seed, member, step)[rank::size]
        numbers = (step * count + np.arange(count))[rank::size]
        share = plan.train.foreground
        around = np.floor((numbers + 1) * share) > np.floor(numbers * share)
        rng = np.random.default_rng([seed, member, step, 1, rank])
        centres = np.stack([self._centre(row, near, rng) for row, near in zip(taken, around, strict=True)])
        warp = draw_warp(plan.augment, self._size, centres, rng, self._device, spacing=self._edges)
        batch = self._batch(taken, warp)
        return Batch(change_intensity(batch.image, plan.augment, rng), batch.table, batch.target)

    def _batch(self, rows: Array, warp: Warp) -> Batch:
        image = self._normalise(sample_images([self._images[row] for row in rows], warp))
        table = torch.from_numpy(self._tables[rows]).to(self._device) if self._tables.shape[1] else None
        return Batch(image, table, self._task.draw([self._targets[row] for row in rows], warp))

    def _normalise(self, windows: Tensor) -> Tensor:
        """As :func:`sagittal.prepare.arrays.to_input`, in place."""
        prepare = self._plan.prepare
        shape = (1, -1) + (1,) * (windows.ndim - 2)
        if any(prepare.offset):
            windows -= torch.tensor(prepare.offset, device=windows.device).reshape(shape)
        if any(s != 1 for s in prepare.scale):
            windows /= torch.tensor(prepare.scale, device=windows.device).reshape(shape)
        return windows

    def _centre(self, row: int, near: bool, rng: np.random.Generator) -> Floats:
        """The middle of a window of a case, around one of its places or anywhere."""
        own, size = np.array(self._images[row].shape[1:]), np.array(self._size)
        where = self._place(row, rng) if near else None
        if where is None:
            return _within(rng.uniform(-0.5, own - 0.5), own, size)
        return _within(where + rng.uniform(-JITTER, JITTER, len(size)) * size, own, size)

    def _place(self, row: int, rng: np.random.Generator) -> Floats | None:
        """A random place of a random class that the case has; the fewer cases have a class, the sooner it is chosen."""
        weights = np.array([w if len(p) else 0.0 for w, p in zip(self._rarity, self._places[row], strict=True)])
        if not weights.any():
            return None
        places = self._places[row][int(rng.choice(len(weights), p=weights / weights.sum()))]
        return np.asarray(places[int(rng.integers(len(places)))], dtype=np.float64)

    def _fixed(self, rows: Array) -> list[tuple[int, Floats]]:
        if len(rows) > MOST_PIECES:
            rows = rows[np.linspace(0, len(rows) - 1, MOST_PIECES).round().astype(int)]
        each = min(MOST_A_CASE, max(1, MOST_PIECES // max(len(rows), 1)))
        windows: list[tuple[int, Floats]] = []
        for row in rows:
            own, size = np.array(self._images[row].shape[1:]), np.array(self._size)
            rng = np.random.default_rng([self._plan.seed, 7, int(row)])
            # A window that holds the whole case shows all of it at once.
            for n in range(min(each, int(np.prod(np.ceil(own / size))))):
                centre = self._centre(int(row), n % 2 == 0, rng)
                start = np.rint(centre - (size - 1) / 2)  # voxels are taken as they are
                windows.append((int(row), start + (size - 1) / 2))
        return windows


def turns(rows: Array, batch: int, seed: int, member: int, step: int) -> Array:
    """The cases of a step's windows: every case once before any comes again, in an order of each round's own.

    >>> rows = np.arange(3)
    >>> taken = np.concatenate([turns(rows, 4, seed=0, member=0, step=s) for s in range(3)])
    >>> np.bincount(taken).tolist()
    [4, 4, 4]
    """
    first, taken = step * batch, []
    while batch:
        epoch, place = divmod(first, len(rows))
        order = np.random.default_rng([seed, member, epoch, 0]).permutation(len(rows))
        chosen = order[place : place + batch]
        taken.append(rows[chosen])
        first, batch = first + len(chosen), batch - len(chosen)
    return np.concatenate(taken)


def _within(centre: Floats, own: Array, size: Array) -> Floats:
    """The nearest centre at which a window lies within its array; the array's middle where the window is larger."""
    half = (size - 1) / 2
    return np.where(size >= own, (own - 1) / 2, np.clip(centre, half, np.maximum(own - 1 - half, half)))


def _edges(store: PlaceStore, plan: Plan) -> Sequence[float] | None:
    """Edge lengths of the stored voxels in mm, where all cases have nearly the same."""
    if plan.prepare.spacing_mm is not None:
        return plan.prepare.spacing_mm
    spacings = np.array([lattice.spacing_mm for lattice in store.lattices])
    if not len(spacings) or not np.all(np.isfinite(spacings)):
        return None
    return [float(v) for v in np.median(spacings, axis=0)]


def _rarity(places: Sequence[Sequence[Array]]) -> Floats:
    """For each class 1 / the cases that have a place of it; 0 where none has."""
    if not places:
        return np.zeros(0)
    having = np.array([[len(p) > 0 for p in case] for case in places]).reshape(len(places), -1).sum(axis=0)
    return np.where(having > 0, 1 / np.maximum(having, 1), 0.0)
