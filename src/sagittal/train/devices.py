"""Several devices: the same trainer in one process a device, through Lightning Fabric."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sagittal.errors import ConfigError, require
from sagittal.model.device import pick_device
from sagittal.prepare.place_store import open_place_store
from sagittal.prepare.plan import Plan
from sagittal.prepare.split import Splits
from sagittal.prepare.store import open_store
from sagittal.progress import Quiet
from sagittal.train.lesson import ClassMaterial, Material
from sagittal.train.members import Trained, Trainer
from sagittal.train.place_lesson import PlaceMaterial
from sagittal.types import Floats


def split_devices(names: str) -> list[str]:
    """The devices of ``0,1`` or ``cuda:0,cuda:1`` or ``cpu,cpu``; one name gives a list of one.

    >>> split_devices("0,1"), split_devices("auto")
    (['cuda:0', 'cuda:1'], ['auto'])

    Raises
    ------
    ConfigError
        If they are of different kinds.
    """
    parts = [part.strip() for part in names.split(",") if part.strip()]
    named = [f"cuda:{part}" if part.isdigit() else part for part in parts]
    if len({name.split(":")[0] for name in named}) > 1:
        raise ConfigError(f"--device {names}: devices of different kinds cannot train together. Name one kind: 0,1")
    return named or ["auto"]


class FabricTeam:
    """A team of processes that Lightning Fabric connects."""

    def __init__(self, fabric: Any) -> None:
        self._fabric = fabric
        self.rank = int(fabric.global_rank)
        self.size = int(fabric.world_size)
        self._wrapped = False

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network behind distributed data parallel."""
        self._wrapped = True
        wrapped: nn.Module = self._fabric.setup_module(network)
        return wrapped

    def backward(self, loss: Tensor) -> None:
        """Send back and average over the team."""
        if self._wrapped:
            self._fabric.backward(loss)
        else:  # members that every process trains for itself, alike
            torch.autograd.backward(loss)

    def agree(self, value: tuple[int, ...]) -> tuple[int, ...]:
        """What the first process says."""
        said = self._fabric.broadcast(torch.tensor(value), src=0)
        return tuple(int(v) for v in said)


def train_all(
    trainer: Trainer, device: str, store: Path | None, *, targets: Floats | None = None, resume: bool
) -> list[Trained]:
    """Every member of a run, trained here or, where several devices are named, in one process for each of them.

    Parameters
    ----------
    trainer : Trainer
        For the first device.
    device : str
        As :func:`split_devices` takes it.
    store, targets
        As of :func:`train_on`.
    resume : bool
    """
    devices = split_devices(device)
    if len(devices) == 1:
        return trainer.run(resume=resume)
    assert store is not None
    train_on(devices, trainer.plan, store, targets, folder=trainer.folder, deadline=trainer.deadline, resume=resume)
    return trainer.finished()


def train_on(
    devices: list[str], plan: Plan, store: Path, targets: Floats | None, *, folder: Path, deadline: float, resume: bool
) -> None:
    """Train all members on several devices; what they learnt lies in the folder afterwards.

    Each device takes its part of every batch, so that the batch of the plan is that of all together.

    Parameters
    ----------
    store : Path
        Folder of the prepared arrays.
    targets : (N, outputs) float32, optional
        In the order of the store; a store of truths with a place holds its own.

    Raises
    ------
    MissingPackageError
        If Lightning Fabric is not installed.
    ResourceError
        If a device is not there.
    """
    fabric_module = require("lightning_fabric", feature="training on several devices", extra="scale")
    kind = pick_device(devices[0]).type
    for name in devices:
        pick_device(name)
    numbers: Any = len(devices) if kind == "cpu" else [torch.device(name).index or 0 for name in devices]
    job = folder / "checkpoint" / "job"
    job.mkdir(parents=True, exist_ok=True)
    plan.save(job / "plan.json")
    if targets is not None:
        np.save(job / "targets.npy", targets, allow_pickle=False)
    fabric = fabric_module.Fabric(accelerator=kind, devices=numbers, strategy="ddp_spawn")
    fabric.launch(_work, str(folder), str(store), deadline - time.monotonic(), resume)


def _work(fabric: Any, folder: str, store: str, left_s: float, resume: bool) -> None:
    """What each process does."""
    if fabric.device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(fabric.world_size)))
    job = Path(folder) / "checkpoint" / "job"
    plan = Plan.load(job / "plan.json")
    cases = json.loads((Path(store) / "cases.json").read_text(encoding="utf-8"))
    material: Material
    if plan.prepare.whole:
        targets = np.load(job / "targets.npy", allow_pickle=False)
        material = ClassMaterial(open_store(Path(store), cases["numbers"], cases["ids"], plan), targets)
    else:
        material = PlaceMaterial(open_place_store(Path(store), cases["numbers"], cases["ids"], plan))
    trainer = Trainer(
        plan,
        Splits.load(Path(folder) / "splits.json"),
        material,
        folder=Path(folder),
        device=fabric.device,
        deadline=time.monotonic() + left_s,
        reporter=Quiet(),
        team=FabricTeam(fabric),
    )
    trainer.run(resume=resume)
    fabric.barrier()
