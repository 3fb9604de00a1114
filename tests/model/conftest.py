"""Small models and cases that the tests of this room share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sagittal.case import Case, ImageSource
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.model.package import Model
from sagittal.networks.heads import Network, build_network
from sagittal.prepare.arrays import table_width
from sagittal.prepare.plan import ColumnPlan, InputPlan, NetworkPlan, Plan, PreparePlan
from sagittal.tasks.registry import make_task

BINARY = LabelScheme("binary", ("benign", "malignant"), target="diagnosis")


def flat_plan(**changes: object) -> Plan:
    """A plan for 12 x 10 grey pictures (rows, columns), not square on purpose."""
    values = {
        "scheme": BINARY,
        "network": NetworkPlan(name="resnet-small", width=8, depth=(1, 1)),
        "prepare": PreparePlan(size=(12, 10), offset=(120.0,), scale=(60.0,), store="uint8"),
    }
    return Plan(**{**values, **changes})


def volume_plan(**changes: object) -> Plan:
    """A plan for CT of 8 x 12 x 10 (slices, rows, columns) with an age beside it."""
    values = {
        "scheme": BINARY,
        "input": InputPlan(
            modality="CT", unit="HU", dimensions=3, table=(ColumnPlan("age", "number", mean=60.0, std=10.0),)
        ),
        "network": NetworkPlan(name="resnet-small", width=8, depth=(1, 1)),
        "prepare": PreparePlan(size=(8, 12, 10), offset=(0.0,), scale=(300.0,), clip=(-1000.0, 1000.0)),
    }
    return Plan(**{**values, **changes})


def network_of(plan: Plan, seed: int = 0) -> Network:
    """The plan's network with random weights and moved batch statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(
            plan.network,
            channels=plan.input.channels,
            dimensions=plan.input.dimensions,
            head=make_task(plan).head,
            table=table_width(plan.input),
        )
        shape = (16, plan.input.channels, *plan.prepare.size)
        table = torch.randn(16, network.columns) if network.columns else None
        network.train()
        network(torch.randn(shape), table)
    return network.eval()


def stored_arrays(plan: Plan, count: int, seed: int = 0) -> np.ndarray:
    """Prepared arrays as the store keeps them."""
    rng = np.random.default_rng(seed)
    shape = (count, plan.input.channels, *plan.prepare.size)
    if plan.prepare.store == "uint8":
        return rng.integers(0, 256, shape).astype(np.uint8)
    return np.clip(rng.normal(0, 300, shape), *plan.prepare.clip).astype(plan.prepare.store)


def image_of(array: np.ndarray, modality: str, unit: str) -> Image:
    """The image that is prepared to exactly this array."""
    if array.ndim == 3:
        data = array.transpose(0, 2, 1)[..., np.newaxis]
        grid = Grid(data.shape[1:])
    else:
        data = array.transpose(0, 3, 2, 1)
        affine = np.diag([-0.7, 0.7, 5.0, 1.0])
        affine[:3, 3] = [10, -20, 30]
        grid = Grid(data.shape[1:], affine)
    return Image(data.astype(np.float32), grid, unit=unit, modality=modality)


def cases_of(plan: Plan, arrays: np.ndarray) -> list[Case]:
    """One case an array; ages are 50, 51 ..."""
    return [
        Case(
            f"case-{n}",
            f"patient-{n}",
            {"image": ImageSource(partial(image_of, array, plan.input.modality, plan.input.unit))},
            table={"age": 50 + n},
        )
        for n, array in enumerate(arrays)
    ]


def truth_of(count: int, classes: int = 2, seed: int = 1) -> np.ndarray:
    """One-hot truth in which each class occurs."""
    rng = np.random.default_rng(seed)
    numbers = np.concatenate([np.arange(classes), rng.integers(0, classes, count - classes)])
    return np.eye(classes)[numbers]


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    """The functions above."""
    functions = (flat_plan, volume_plan, network_of, stored_arrays, image_of, cases_of, truth_of)
    return SimpleNamespace(**{function.__name__: function for function in functions})


@pytest.fixture(scope="session")
def make_model() -> Callable[..., tuple[Model, np.ndarray]]:
    """A function that gives a whole small model (calibrated, with conformal sets and a gate) and its arrays."""

    def make(plan: Plan | None = None, members: int = 1, count: int = 120) -> tuple[Model, np.ndarray]:
        plan = plan or flat_plan()
        arrays = stored_arrays(plan, count)
        networks = [network_of(plan, seed) for seed in range(members)]
        truth = truth_of(count, len(plan.scheme.classes))
        rng = np.random.default_rng(2)
        logits = 2.0 * truth + rng.normal(0, 1, truth.shape)
        model = Model.assemble(
            "toy",
            plan,
            networks,
            logits=logits,
            truth=truth,
            references=[arrays] * members,
            data={"cases": count, "classes": {"benign": 60}},
        )
        return model, arrays

    return make
