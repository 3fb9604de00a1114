"""Lessons whose answers have a place: windows of cases of any size, with what the network should say of each voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sagittal.networks.heads import build_dense
from sagittal.networks.unet import DenseNetwork
from sagittal.prepare.place_store import PlaceStore
from sagittal.prepare.plan import Plan
from sagittal.tasks.registry import make_place_task
from sagittal.tasks.task import PlaceTask
from sagittal.train.batches import Batch
from sagittal.train.device import memory_format
from sagittal.train.windows import WindowBatches
from sagittal.types import Array, Floats


class PlaceLesson:
    """A lesson of windows.

    Parameters
    ----------
    plan : Plan
    task : PlaceTask
    batches : WindowBatches
    samples : int
        Windows of one epoch.
    """

    def __init__(self, plan: Plan, task: PlaceTask, batches: WindowBatches, samples: int) -> None:
        self.plan, self.task, self.batches, self.samples = plan, task, batches, samples
        self._format = memory_format(plan.input.dimensions, plan.train.channels_last)

    def batch(self, rows: Array, member: int, number: int, *, part: tuple[int, int]) -> Batch:
        """Windows around places and anywhere, changed at random."""
        return self.batches.training(rows, self.plan.seed, member, number, part=part)

    def answer(self, network: nn.Module, batch: Batch) -> Sequence[Tensor]:
        """Maps (N, O, *map), finest first."""
        maps = network(batch.image.contiguous(memory_format=self._format))
        return (maps,) if isinstance(maps, Tensor) else tuple(maps)

    def loss(self, answer: Sequence[Tensor], batch: Batch) -> Tensor:
        """The task's, in fp32."""
        return self.task.loss([each.float() for each in answer], batch.target)

    @torch.no_grad()
    def validate(self, network: nn.Module, rows: Array) -> dict[str, float]:
        """Loss and the task's scores over fixed windows of these cases."""
        network.eval()
        losses, sizes, total = [], [], None
        for batch in self.batches.pieces(rows, 2 * self.plan.train.batch):
            output = self.answer(network, batch)[0].float()
            losses.append(float(self.task.loss([output], batch.target)))
            sizes.append(len(output))
            tally = self.task.tally(output, batch.target)
            total = tally if total is None else total + tally
        network.train()
        if total is None:
            return {"val_loss": float("nan")}
        scores = self.task.monitor(total)
        return {"val_loss": float(np.average(losses, weights=sizes)), **{f"val_{k}": v for k, v in scores.items()}}

    def answers(self, network: nn.Module, rows: Array) -> Floats:
        """Nothing is kept: cases are answered as a whole once the network is trained."""
        return np.zeros((len(rows), 0), dtype=np.float32)


class PlaceMaterial:
    """A store of arrays of their own sizes, with a truth that has a place.

    Parameters
    ----------
    store : PlaceStore
    """

    def __init__(self, store: PlaceStore) -> None:
        self.store = store

    @property
    def cases(self) -> int:
        """Rows of the store."""
        return len(self.store.ids)

    def rows(self, ids: Sequence[str]) -> Array:
        """Row numbers of these cases."""
        return self.store.rows(ids)

    def network(self, plan: Plan) -> DenseNetwork:
        """With a map at its end; several, finest first, where the plan asks for deep supervision."""
        return build_dense(
            plan.network,
            channels=plan.input.channels,
            dimensions=plan.input.dimensions,
            head=make_place_task(plan).head,
            deep=plan.train.deep_supervision,
        )

    def lesson(self, plan: Plan, network: nn.Module, family: int, rows: Array, device: torch.device) -> PlaceLesson:
        """Every case is seen about equally often; an epoch draws the plan's number of windows."""
        task = make_place_task(plan)
        batches = WindowBatches(self.store, plan, task, device)
        return PlaceLesson(plan, task, batches, batches.samples(rows))
