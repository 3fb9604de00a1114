"""Small data sets with a known answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from sagittal.case import Case, ImageSource
from sagittal.dataset import Dataset
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme

SCHEME = LabelScheme("binary", ("dark", "bright"))
TILTED = np.array([[0.68, -0.17, 0.4, -90.0], [0.17, 0.67, 0.9, 40.0], [0.0, 0.1, 4.9, 12.0], [0, 0, 0, 1.0]])


def draw_square(
    shape: tuple[int, int, int], seed: int, bright: bool, spacing: tuple[float, ...] | None = None
) -> Image:
    """Noise with a square whose brightness is the answer."""
    values = np.random.default_rng(seed).normal(100, 10, size=(1, *shape)).astype(np.float32)
    i, j = shape[0] // 3, shape[1] // 3
    values[:, i : 2 * i, j : 2 * j] += 60 if bright else -40
    return Image(np.rint(np.clip(values, 0, 255)), Grid(shape, spacing=spacing), modality="US", bits=8)


def make_dataset(
    cases: int = 60, shape: tuple[int, int, int] = (20, 16, 1), patients: int | None = None, splits: bool = False
) -> Dataset:
    """Cases whose class follows their number; every third of a patient's is held out where `splits` is asked for."""
    patients = patients or cases
    made = []
    for n in range(cases):
        bright = n % 2 == 1
        split = ("test" if n % 5 == 0 else "val" if n % 5 == 1 else "train") if splits else None
        made.append(
            Case(
                id=f"case-{n:03d}",
                patient=f"p{n % patients}",
                images={"image": ImageSource(partial(draw_square, shape, n, bright))},
                table={"age": 40 + n % 30 if n % 7 else None, "sex": "f" if n % 3 else "m"},
                truth=SCHEME.truth("bright" if bright else "dark"),
                split=split,
            )
        )
    return Dataset("squares", tuple(made), SCHEME, columns=("age", "sex"))


@pytest.fixture
def squares() -> Callable[..., Dataset]:
    """Makes data sets of noise with a bright or a dark square."""
    return make_dataset
