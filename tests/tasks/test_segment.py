"""Segmentation: learned for real on toy volumes and pictures, settled on answers whose worth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sagittal.case import Case
from sagittal.errors import ConfigError, DataError
from sagittal.grid import Grid
from sagittal.labels import LabelScheme
from sagittal.networks.heads import build_dense
from sagittal.networks.unet import DenseNetwork
from sagittal.prediction import Mask
from sagittal.prepare.lattice import Lattice
from sagittal.prepare.plan import DecidePlan, NetworkPlan, Plan, TrainPlan
from sagittal.prepare.warp import Warp
from sagittal.tasks.registry import make_place_task, make_segment, make_task
from sagittal.tasks.segment import Segment
from sagittal.truth import Segmentation, SegmentationSource, Structure
from sagittal.types import Array

SCHEME = LabelScheme("structures", ("core", "shell"))


def spheres(rng: np.random.Generator, count: int, size: tuple[int, ...]) -> tuple[Array, Array]:
    """Noisy images (N, 1, *size) of a bright ball in a grey one, and their label maps (N, 1, *size)."""
    places = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"))
    images, labels = [], []
    for _ in range(count):
        centre = [rng.uniform(0.35, 0.65) * n for n in size]
        distance = np.sqrt(sum((p - c) ** 2 for p, c in zip(places, centre, strict=True)))
        radius = rng.uniform(0.2, 0.3) * min(size)
        label = (distance < 1.7 * radius) * 2
        label[distance < radius] = 1
        images.append(np.array([0.0, 2.0, 1.0])[label] + rng.normal(0, 0.5, size))
        labels.append(label)
    return np.array(images, dtype=np.float32)[:, None], np.array(labels, dtype=np.uint8)[:, None]


def learn(task: Segment, size: tuple[int, ...], plan: NetworkPlan, steps: int) -> tuple[DenseNetwork, dict[str, float]]:
    rng = np.random.default_rng(1)
    torch.manual_seed(0)
    network = build_dense(plan, channels=1, dimensions=len(size), head=task.head, deep=True).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    middle = np.tile((np.array(size) - 1) / 2, (4, 1))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(steps):
        images, labels = spheres(rng, 4, size)
        if task.outputs == "independent":
            labels = np.concatenate([labels == 1, labels == 2], axis=1).astype(np.uint8)
        target = task.draw(list(labels), Warp.straight(size, middle))
        loss = task.loss(network(torch.from_numpy(images)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    images, labels = spheres(rng, 4, size)
    if task.outputs == "independent":
        labels = np.concatenate([labels == 1, labels == 2], axis=1).astype(np.uint8)
    with torch.no_grad():
        tally = task.tally(network(torch.from_numpy(images)), task.draw(list(labels), Warp.straight(size, middle)))
    return network, task.monitor(tally)


@pytest.mark.parametrize("outputs", ["exclusive", "independent"])
def test_pictures_are_learned(outputs: Any) -> None:
    plan = NetworkPlan(name="unet", width=8, depth=(1, 1, 1))
    _, scores = learn(Segment(SCHEME, outputs), (36, 44), plan, steps=60)
    assert list(scores) == ["dice", "dice_core", "dice_shell"]
    assert min(scores.values()) > 0.9, scores


def test_volumes_are_learned_at_half_resolution() -> None:
    plan = NetworkPlan(name="unet", width=16, depth=(1, 1, 1), strides=((2, 2, 2),) * 3)
    _, scores = learn(Segment(SCHEME), (20, 28, 24), plan, steps=80)
    assert min(scores.values()) > 0.9, scores
