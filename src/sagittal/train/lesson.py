"""Lesson: the cases that teach one member and how it is asked and judged; Material: what all members learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sagittal.model.predictor import flip_sets
from sagittal.networks.heads import Network, build_network
from sagittal.prepare.arrays import table_width
from sagittal.prepare.plan import Plan
from sagittal.prepare.store import Store
from sagittal.tasks.registry import make_task
from sagittal.tasks.task import Task
from sagittal.train.batches import Batch, Batches
from sagittal.train.device import memory_format
from sagittal.types import Array, Floats


class Lesson(Protocol):
    """What differs between kinds of questions while one member is trained."""

    @property
    def samples(self) -> int:
        """Samples that one epoch draws."""
        ...

    def batch(self, rows: Array, member: int, number: int, *, part: tuple[int, int]) -> Batch:
        """The batch of a training step, drawn from these cases; of several processes each takes its `part`."""
        ...

    def answer(self, network: nn.Module, batch: Batch) -> Any:
        """What the network says of a batch; called where the number format of training holds."""
        ...

    def loss(self, answer: Any, batch: Batch) -> Tensor:
        """Scalar to be minimised."""
        ...

    def validate(self, network: nn.Module, rows: Array) -> dict[str, float]:
        """``val_loss`` and ``val_NAME`` of quick scores, the most telling first; higher is better."""
        ...

    def answers(self, network: nn.Module, rows: Array) -> Floats:
        """What is kept of a trained member: its logits (len(rows), outputs) on cases that it did not learn from.

        (len(rows), 0) where the answer has a place, which is found again when it is needed.
        """
        ...


class Material(Protocol):
    """Prepared cases with their truth, from which all members of a run learn."""

    @property
    def cases(self) -> int:
        """How many there are."""
        ...

    def rows(self, ids: Sequence[str]) -> Array:
        """Row numbers of these cases; the ones that could not be prepared are left out."""
        ...

    def network(self, plan: Plan) -> nn.Module:
        """A new network for a plan; its random weights are drawn from torch's generator."""
        ...

    def lesson(self, plan: Plan, network: nn.Module, family: int, rows: Array, device: torch.device) -> Lesson:
        """The lesson of a member of a family that learns from these rows."""
        ...


class ClassLesson:
    """A lesson whose answers are vectors.

    Parameters
    ----------
    plan : Plan
    task : Task
    batches : Batches
    targets : (N, outputs) float32
        Of all cases.
    samples : int
        Cases that teach.
    """

    def __init__(self, plan: Plan, task: Task, batches: Batches, targets: Floats, samples: int) -> None:
        self.plan, self.task, self.batches, self.targets, self.samples = plan, task, batches, targets, samples
        self._format = memory_format(plan.input.dimensions, plan.train.channels_last)

    def batch(self, rows: Array, member: int, number: int, *, part: tuple[int, int]) -> Batch:
        """Drawn, augmented and mixed; where the network's front was computed before, every process takes all."""
        part = (0, 1) if self.plan.train.cache_features else part
        return self.batches.training(rows, self.plan.seed, member, number, part=part)

    def answer(self, network: nn.Module, batch: Batch) -> Tensor:
        """Logits (N, outputs)."""
        if self.plan.train.cache_features:
            logits: Tensor = network.finish(batch.image, batch.table)  # type: ignore[operator]
        else:
            logits = network(batch.image.contiguous(memory_format=self._format), batch.table)
        return logits

    def loss(self, answer: Tensor, batch: Batch) -> Tensor:
        """The task's, in fp32."""
        return self.task.loss(answer.float(), batch.target)

    @torch.no_grad()
    def answers(self, network: nn.Module, rows: Array) -> Floats:
        """Logits (len(rows), outputs) float32, without augmentation, with the flips that the package averages over."""
        network.eval()
        parts = []
        for batch in self.batches.pieces(rows, 2 * self.plan.train.batch):
            if self.plan.train.cache_features:
                parts.append(network.finish(batch.image, batch.table).float().cpu())  # type: ignore[operator]
                continue
            views = [
                torch.flip(batch.image, axes) if axes else batch.image for axes in flip_sets(self.plan.decide.flips)
            ]
            said = [network(view.contiguous(memory_format=self._format), batch.table).float() for view in views]
            parts.append(torch.stack(said).mean(dim=0).cpu())
        network.train()
        return torch.cat(parts).numpy() if parts else np.zeros((0, self.task.head.outputs), dtype=np.float32)

    def validate(self, network: nn.Module, rows: Array) -> dict[str, float]:
        """Loss and the task's scores."""
        logits, truth = self.answers(network, rows), self.targets[rows]
        loss = float(self.task.loss(torch.from_numpy(logits), torch.from_numpy(truth)))
        return {"val_loss": loss, **{f"val_{k}": v for k, v in self.task.monitor(logits, truth).items()}}


class ClassMaterial:
    """A store of arrays of one size, with a vector as the truth of each.

    Parameters
    ----------
    store : Store
    targets : (N, outputs) float32
        In the order of the store.
    """

    def __init__(self, store: Store, targets: Floats) -> None:
        self.store, self.targets = store, targets
        self._fronts: dict[int, Tensor] = {}  # a family: what nothing trains is alike for its members

    @property
    def cases(self) -> int:
        """Rows of the store."""
        return len(self.store.ids)

    def rows(self, ids: Sequence[str]) -> Array:
        """Row numbers of these cases."""
        return self.store.rows(ids)

    def network(self, plan: Plan) -> Network:
        """With a vector at its end."""
        return build_network(
            plan.network,
            channels=plan.input.channels,
            dimensions=plan.input.dimensions,
            head=make_task(plan).head,
            table=table_width(plan.input),
        )

    def lesson(self, plan: Plan, network: nn.Module, family: int, rows: Array, device: torch.device) -> ClassLesson:
        """Class weights are those of the rows; the part of a network that nothing trains is computed once a family."""
        task = make_task(plan, self.targets[rows])
        batches = Batches(self.store, self.targets, plan, device)
        if plan.train.cache_features:
            if family not in self._fronts:
                self._fronts[family] = batches.fronts(network.eval().front, 2 * plan.train.batch)  # type: ignore[arg-type]
            batches.use_fronts(self._fronts[family])
        return ClassLesson(plan, task, batches, self.targets, len(rows))
