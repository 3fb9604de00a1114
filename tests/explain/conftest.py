"""Networks that learned to look at one corner, in 2-D and 3-D."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from sagittal.case import Case, ImageSource
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.model.package import Model
from sagittal.networks.heads import Network, build_network
from sagittal.prepare.arrays import to_input
from sagittal.prepare.plan import InputPlan, NetworkPlan, Plan, PreparePlan
from sagittal.tasks.registry import make_task


def corner_plan(dimensions: int) -> Plan:
    """24 x 20 pictures, or 12 x 16 x 14 volumes: not square, so that swapped axes show."""
    return Plan(
        scheme=LabelScheme("binary", ("absent", "present"), target="square"),
        input=InputPlan(dimensions=dimensions),
        network=NetworkPlan(name="resnet-small", width=8, depth=(1, 1)),
        prepare=PreparePlan(
            size=(24, 20) if dimensions == 2 else (12, 16, 14), offset=(100.0,), scale=(40.0,), store="uint8"
        ),
    )


def corner_arrays(plan: Plan, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a dark patch anywhere; every second one has a bright square at the top left (of the first slices)."""
    rng = np.random.default_rng(seed)
    size = plan.prepare.size
    arrays = rng.normal(100, 15, (count, 1, *size))
    present = np.arange(count) % 2 == 1
    edge = tuple(n // 3 for n in size)
    for n in range(count):
        at = [int(rng.integers(0, s - e + 1)) for s, e in zip(size, edge, strict=True)]
        arrays[(n, 0, *(slice(a, a + e) for a, e in zip(at, edge, strict=True)))] -= 50
        if present[n]:
            arrays[(n, 0, *(slice(1, 1 + e) for e in edge))] = rng.normal(200, 15, edge)
    return np.clip(arrays, 0, 255).astype(np.uint8), np.eye(2)[present.astype(int)]


def untrained(plan: Plan, seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(
            plan.network, channels=1, dimensions=plan.input.dimensions, head=make_task(plan).head
        ).eval()


def corner_model(plan: Plan, members: int = 1) -> Model:
    """A model that was trained for a few seconds to tell whether the square is there."""
    arrays, truth = corner_arrays(plan, 240)
    task = make_task(plan)
    networks = []
    for seed in range(members):
        with torch.random.fork_rng(devices=[]):
            network = untrained(plan, seed).train()
            torch.manual_seed(seed)
            optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
            images, targets = to_input(torch.from_numpy(arrays[:160]), plan.prepare), torch.from_numpy(truth[:160])
            for step in range(25):
                rows = torch.randperm(160)[:32] if step else torch.arange(32)
                optimizer.zero_grad()
                task.loss(network(images[rows]), targets[rows]).backward()
                optimizer.step()
            networks.append(network.eval())
    with torch.inference_mode():
        held = to_input(torch.from_numpy(arrays[160:]), plan.prepare)
        logits = torch.stack([n(held) for n in networks]).mean(dim=0).double().numpy()
    return Model.assemble("corner", plan, networks, logits=logits, truth=truth[160:])


def corner_case(plan: Plan, array: np.ndarray, *, position: bool = False) -> Case:
    """The study that is prepared to this array; with `position` on a tilted grid of 0.7 x 0.7 x 5 mm."""
    axes = (0, 2, 1) if plan.input.dimensions == 2 else (0, 3, 2, 1)
    data = array.transpose(axes).astype(np.float32)
    if data.ndim == 3:
        data = data[..., np.newaxis]
    affine = None
    if position:
        turn = np.radians(20)
        affine = np.eye(4)
        affine[:3, :3] = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
        affine[:3, :3] *= [0.7, 0.7, 5.0]
        affine[:3, 3] = [-60, 20, 300]
    image = Image(data, Grid(data.shape[1:], affine), bits=8)
    return Case("study/1", "patient-secret", {"image": ImageSource(partial(_same, image))})


def _same(image: Image) -> Image:
    return image


@pytest.fixture(scope="session", params=[2, 3], ids=["2-D", "3-D"])
def corner(request):
    """(model, array with the square, array without)."""
    plan = corner_plan(request.param)
    arrays, _ = corner_arrays(plan, 10, seed=5)
    return corner_model(plan), arrays[1], arrays[0]


@pytest.fixture(scope="session")
def build():
    """The functions above."""
    from types import SimpleNamespace

    return SimpleNamespace(plan=corner_plan, arrays=corner_arrays, model=corner_model, case=corner_case, raw=untrained)
