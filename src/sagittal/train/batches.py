"""Batches: which cases a step sees, and how they come to the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sagittal.prepare.arrays import to_input
from sagittal.prepare.augment import augment, mix
from sagittal.prepare.plan import Plan
from sagittal.prepare.store import Store
from sagittal.types import Array, Floats

#: Arrays up to this size are held in memory; larger ones are read from the map batch by batch.
IN_MEMORY = 2_000_000_000


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step learns from, on the device."""

    image: Tensor  # (N, C, *size) float32; (N, M) where the network's front was computed before
    table: Tensor | None  # (N, T) float32
    target: Tensor  # (N, outputs) float32


class Batches:
    """Cases of a store with their targets.

    Each step's cases and random changes follow from (seed, member, step) alone, so that a resumed run goes on exactly
    as the first would have.

    Parameters
    ----------
    store : Store
    targets : (N, outputs) float32, a row for each of the store's
    plan : Plan
    device : torch.device
    """

    def __init__(self, store: Store, targets: Floats, plan: Plan, device: torch.device) -> None:
        arrays = np.asarray(store.arrays) if store.arrays.nbytes <= IN_MEMORY else store.arrays
        self._arrays: Array = np.array(arrays) if arrays is not store.arrays else arrays
        self._tables = np.array(store.tables, dtype=np.float32)
        self._targets = np.array(targets, dtype=np.float32)
        self._plan = plan
        self._device = device
        self._fronts: Tensor | None = None
        own = plan.train.mixup
        self._mixup = plan.augment.mixup if own is None else own

    def fronts(self, front: Callable[[Tensor], Tensor], size: int) -> Tensor:
        """The part of a network that nothing trains, computed once for all cases, `size` at a time."""
        with torch.no_grad():
            return torch.cat([front(batch.image) for batch in self.pieces(np.arange(len(self._targets)), size)])

    def use_fronts(self, fronts: Tensor) -> None:
        """Make batches of what :meth:`fronts` gave from now on."""
        self._fronts = fronts

    def take(self, rows: Array) -> Batch:
        """These cases as they are."""
        table = torch.from_numpy(self._tables[rows]).to(self._device) if self._tables.shape[1] else None
        if self._fronts is None:
            stored = torch.from_numpy(np.ascontiguousarray(self._arrays[rows]))
            image = to_input(stored.to(self._device), self._plan.prepare)
        else:
            image = self._fronts[torch.from_numpy(rows)]
        return Batch(
            image=image,
            table=table,
            target=torch.from_numpy(self._targets[rows]).to(self._device),
        )

    def training(self, rows: Array, seed: int, member: int, step: int, *, part: tuple[int, int] = (0, 1)) -> Batch:
        """The batch of a training step: drawn, augmented and mixed; of several processes each takes its `part`."""
        rank, size = part
        batch = self.take(draw(rows, self._plan.train.batch, seed, member, step)[rank::size])
        rng = np.random.default_rng([seed, member, step, 1, rank])
        image, target = batch.image, batch.target
        if self._fronts is None:
            image = augment(image, self._plan.augment, rng)
        if self._mixup > 0 and batch.table is None:
            image, target = mix(image, target, self._mixup, rng)
        return Batch(image, batch.table, target)

    def pieces(self, rows: Array, size: int) -> Iterator[Batch]:
        """These cases in order, `size` at a time."""
        for start in range(0, len(rows), size):
            yield self.take(rows[start : start + size])


def draw(rows: Array, batch: int, seed: int, member: int, step: int) -> Array:
    """The rows of a step: every case once an epoch, in an order of the epoch's own, without short batches.

    >>> rows = np.arange(10)
    >>> epoch = np.concatenate([draw(rows, 5, seed=0, member=0, step=s) for s in (2, 3)])
    >>> sorted(epoch.tolist()) == list(range(10))
    True
    """
    batch = min(batch, len(rows))
    first = step * batch
    taken: list[Array] = []
    while batch:
        epoch, place = divmod(first, len(rows))
        order = np.random.default_rng([seed, member, epoch, 0]).permutation(len(rows))
        part = order[place : place + batch]
        taken.append(rows[part])
        first, batch = first + len(part), batch - len(part)
    return np.concatenate(taken)
