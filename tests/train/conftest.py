"""A data set that a network learns in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

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
    DecidePlan,
    InputPlan,
    NetworkPlan,
    Plan,
    PreparePlan,
    SplitPlan,
    TrainPlan,
)
from sagittal.train.run import Run, train_model
from sagittal.truth import Boxes, Segmentation, SegmentationSource, Structure
from sagittal.types import Array

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


# Pictures and volumes with something bright in them, outlined or boxed: learnt in seconds

SHAPES = {2: (44, 36, 1), 3: (28, 24, 20)}
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def ball(seed: int, shape: tuple[int, int, int]) -> tuple[Array, float]:
    rng = np.random.default_rng(seed)
    radius = rng.uniform(4, 7)
    low = np.minimum(np.array(shape) / 2, radius + 1)
    return np.array([rng.uniform(a, n - 1 - a) if n > 1 else 0.0 for a, n in zip(low, shape, strict=True)]), radius


def inside(seed: int, shape: tuple[int, int, int]) -> Array:
    centre, radius = ball(seed, shape)
    return np.sqrt(sum((g - c) ** 2 for g, c in zip(np.indices(shape), centre, strict=True))) <= radius


def draw_ball(seed: int, shape: tuple[int, int, int]) -> Image:
    values = np.random.default_rng([seed, 1]).normal(0, 0.4, shape) + 2.0 * inside(seed, shape)
    return Image(values[None].astype(np.float32), Grid(shape, AFFINE), modality="MR")


def outline_ball(seed: int, shape: tuple[int, int, int]) -> Segmentation:
    return Segmentation(inside(seed, shape)[None].astype(np.uint8), Grid(shape, AFFINE), (Structure("ball", (1,)),))


def make_places(kind: str, dimensions: int, cases: int = 16) -> Dataset:
    """Cases of kind ``structures`` or ``objects``."""
    shape, made = SHAPES[dimensions], []
    for n in range(cases):
        if kind == "structures":
            truth: SegmentationSource | Boxes = SegmentationSource(
                partial(outline_ball, n, shape), structures=("ball",)
            )
        else:
            there = np.argwhere(inside(n, shape))
            truth = Boxes([[there.min(axis=0) - 0.5, there.max(axis=0) + 0.5]], [0])
        made.append(Case(f"c{n:02d}", f"p{n:02d}", {"image": ImageSource(partial(draw_ball, n, shape))}, truth=truth))
    return Dataset("balls", tuple(made), LabelScheme(kind, ("ball",)))  # type: ignore[arg-type]


def make_place_plan(dataset: Dataset, dimensions: int, steps: int = 40) -> Plan:
    """A small network, trained for so many steps."""
    assert dataset.scheme is not None
    objects = dataset.scheme.kind == "objects"
    two = (2,) * dimensions
    return Plan(
        dataset.scheme,
        task="detect" if objects else "segment",
        outputs="independent" if objects else "exclusive",
        input=InputPlan(modality="MR", dimensions=dimensions),
        prepare=PreparePlan(
            size=(32, 32) if dimensions == 2 else (16, 24, 24),
            spacing_mm=None if dimensions == 2 else (2.0, 1.0, 1.0),
            whole=False,
            normalise="image",
            store="float16",
        ),
        augment=AugmentPlan(flip=(0,), rotate_deg=10, noise=0.05),
        network=NetworkPlan(
            "unet",
            8,
            (1, 1, 1),
            strides=((1,) * dimensions, two, two),
            kernels=((3,) * dimensions,) * 3,
            head_stride=2 if objects else 1,
        ),
        train=TrainPlan(
            learning_rate=5e-3,
            epochs=steps * 4 / 13,
            batch=4,
            loss="auto" if objects else "dice-ce",
            foreground=0.7,
            deep_supervision=not objects,
            clip_norm=10,
        ),
        split=SplitPlan(folds=1, val_fraction=0.2, test_fraction=0.0),
        decide=DecidePlan(flips=(0,), overlap=0.25),
    )


@pytest.fixture(scope="session")
def places() -> SimpleNamespace:
    """``dataset(kind, dimensions)`` and ``plan(dataset, dimensions, steps)`` of the bright balls."""
    return SimpleNamespace(dataset=make_places, plan=make_place_plan)
