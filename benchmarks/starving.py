"""How much of a training step the network waits for its data: preparing, augmenting, mixing.

    python benchmarks/starving.py

For each network and size that the planner chooses, a step is taken apart: what brings the batch to the network, and the
network itself. Under 5 % is the aim.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from machine import describe
from sagittal.labels import LabelScheme
from sagittal.networks.heads import build_network
from sagittal.prepare.plan import AugmentPlan, InputPlan, NetworkPlan, Plan, PreparePlan, TrainPlan
from sagittal.prepare.store import Store
from sagittal.tasks.registry import make_task
from sagittal.train.batches import Batches
from sagittal.train.lesson import ClassLesson
from sagittal.train.loop import Loop, Member, make_optimizer

PICTURE = AugmentPlan(
    (1,),
    rotate_deg=15,
    scale=0.2,
    shear=0.1,
    translate=0.14,
    brightness=0.3,
    contrast=0.35,
    gamma=0.4,
    noise=0.05,
    mixup=0.2,
)
VOLUME = AugmentPlan((0, 1, 2), rotate_deg=20, scale=0.15, translate=0.08, noise=0.05, mixup=0.2)
CASES = (
    ("28 px, small residual network", (28, 28), 1, NetworkPlan("resnet-small", 32, (2, 2, 2)), PICTURE, 64, True),
    ("28 px, shallow", (28, 28), 1, NetworkPlan("resnet-small", 32, (1, 1, 1)), PICTURE, 64, True),
    ("64 px, small residual network", (64, 64), 3, NetworkPlan("resnet-small", 32, (2, 2, 2), 2), PICTURE, 64, True),
    ("112 px, efficientnet-lite0", (112, 112), 3, NetworkPlan("efficientnet-lite0"), PICTURE, 32, False),
    (
        "28 voxels, small residual network",
        (28, 28, 28),
        1,
        NetworkPlan("resnet-small", 32, (2, 2, 2), 2),
        VOLUME,
        32,
        True,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    print(f"{describe()}, {torch.get_num_threads()} threads\n")
    print("| network | batch | data ms | network ms | waiting |\n|---|---|---|---|---|")
    for name, size, channels, network_plan, augment, batch, bf16 in CASES:
        scheme = LabelScheme("binary", ("a", "b"))
        train = TrainPlan(
            batch=batch, averaging=0.98, precision="bf16" if bf16 else "fp32", channels_last=len(size) == 2
        )
        plan = Plan(
            scheme,
            input=InputPlan(dimensions=len(size), channels=channels),
            prepare=PreparePlan(size=size, store="uint8", offset=(128.0,) * channels, scale=(60.0,) * channels),
            augment=augment,
            network=network_plan,
            train=train,
        )
        rng = np.random.default_rng(0)
        arrays = rng.integers(0, 255, size=(4 * batch, channels, *size), dtype=np.uint8)
        targets = np.eye(2, dtype=np.float32)[rng.integers(0, 2, 4 * batch)]
        store = Store(tuple(map(str, range(len(arrays)))), arrays, np.zeros((len(arrays), 0), np.float32))
        task = make_task(plan)
        batches = Batches(store, targets, plan, torch.device("cpu"))
        network = build_network(
            replace(network_plan, pretrained=None), channels=channels, dimensions=len(size), head=task.head
        )
        rows = np.arange(len(arrays))
        member = Member(0, network, None, make_optimizer(network, plan), rows, rows, {})
        loop = Loop(plan, ClassLesson(plan, task, batches, targets, len(rows)), torch.device("cpu"))
        whole, data = [], []
        for step in range(arguments.steps + 2):
            start = time.perf_counter()
            batches.training(rows, 0, 0, step)
            between = time.perf_counter()
            loop.step(member, step, 1000)
            whole.append(time.perf_counter() - between)
            data.append(between - start)
        data_ms, whole_ms = (1000 * float(np.median(times[2:])) for times in (data, whole))
        print(f"| {name} | {batch} | {data_ms:.1f} | {whole_ms - data_ms:.1f} | {data_ms / whole_ms:.1%} |", flush=True)


if __name__ == "__main__":
    main()
