"""A data set that a network learns in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from sagittal.case import Case, ImageSource
from sagittal.dataset import Dataset
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.prepare.fingerprint import Fingerprint, measure_dataset
from sagittal.prepare.plan import (
    AugmentPlan,
    CompanionPlan,
    InputPlan,
    NetworkPlan,
    Plan,
    PreparePlan,
    SplitPlan,
    TrainPlan,
)
from sagittal.train.run import Run, train_model

SCHEME = LabelScheme("binary", ("dark", "bright"))


def draw(shape: tuple[int, int, int], seed: int, bright: bool) -> Image:
    values = np.random.default_rng(seed).normal(100, 20, size=(1, *shape)).astype(np.float32)
    i, j = shape[0] // 3, shape[1] // 3
    values[:, i : 2 * i, j : 2 * j] += 40 if bright else -40
    return Image(np.rint(np.clip(values, 0, 255)), Grid(shape), modality="US", bits=8)


def make_squares(cases: int = 60, shape: tuple[int, int, int] = (16, 16, 1)) -> Dataset:
    made = []
    for n in range(cases):
        image = ImageSource(partial(draw, shape, n, bool(n % 2)))
        truth = SCHEME.truth("bright" if n % 2 else "dark")
        table = {"age": 30 + n % 50, "sex": "f" if n % 3 else "m"}
        made.append(Case(f"c{n:03d}", f"p{n:03d}", {"image": image}, table=table, truth=truth))
    return Dataset("squares", tuple(made), SCHEME, columns=("age", "sex"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def squares() -> Callable[..., Dataset]:
    return make_squares


@pytest.fixture
def plan() -> Plan:
    return Plan(
        SCHEME,
        input=InputPlan(modality="US"),
        prepare=PreparePlan(size=(16, 16), offset=(100.0,), scale=(30.0,), store="uint8"),
        augment=AugmentPlan(flip=(1,), rotate_deg=10, translate=0.05, noise=0.1, mixup=0.2),
        network=NetworkPlan("resnet-small", 8, (1, 1), dropout=0.1),
        train=TrainPlan(learning_rate=1e-2, epochs=20, batch=16, averaging=0.9),
        companions=(
            CompanionPlan(
                NetworkPlan("descriptors", 16, (), dropout=0.1),
                TrainPlan(epochs=5, batch=16, cache_features=True, mixup=0.4),
            ),
        ),
        split=SplitPlan(folds=2, test_fraction=0.2),
    )


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Run]:
    """Train a plan on a data set into a folder of its own."""

    def run(dataset: Dataset, plan: Plan, name: str = "run", **options: object) -> Run:
        fingerprint: Fingerprint = measure_dataset(dataset)
        return train_model(dataset, plan, tmp_path / name, fingerprint=fingerprint, **options)  # type: ignore[arg-type]

    return run


@pytest.fixture
def small(plan: Plan) -> Plan:
    """One member, a few steps."""
    return replace(plan, companions=(), split=replace(plan.split, folds=1), train=replace(plan.train, epochs=2))
