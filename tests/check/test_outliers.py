"""Sizes, spacings and intensities far from the rest, by measures that the outliers themselves do not move."""

from __future__ import annotations

from functools import partial

import numpy as np

from sagittal.case import Case, ImageSource
from sagittal.check.check_dataset import check_dataset
from sagittal.dataset import Dataset
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme

SCHEME = LabelScheme("binary", ("no", "yes"))


def volume(seed, shape=(10, 12, 8), spacing=(0.7, 0.7, 5.0), low=-1000.0, high=400.0, unit="HU", modality="CT"):
    values = np.random.default_rng(seed).uniform(low, high, size=(1, *shape)).astype(np.float32)
    grid = Grid(shape, None if spacing is None else np.diag([*spacing, 1.0]))
    return Image(values, grid, unit=unit, modality=modality)


def found(changes=None, number=40, **common):
    """Findings about so many volumes, some of them changed."""
    cases = [
        Case(
            f"c{n}", f"p{n}",
            {"image": ImageSource(partial(volume, n, **{**common, **(changes or {}).get(n, {})}))},
            truth=SCHEME.truth(SCHEME.classes[n % 2]),
        )
        for n in range(number)
    ]  # fmt: skip
    findings = check_dataset(Dataset("set", tuple(cases), SCHEME), pixels="all", near=False)
    return {f.code: f for f in findings}


def test_equal_images_are_silent():
    assert found() == {}


def test_a_size_that_is_far():
    told = found({3: {"shape": (10, 12, 40)}})["outlying-size"]
    assert (told.severity, told.cases) == ("note", ("c3",))
    assert "Usual is 10 x 12 x 8; c3 has 10 x 12 x 40" in told.message


def test_a_spacing_that_is_far():
    told = found({3: {"spacing": (0.07, 0.07, 5.0)}, 5: {"spacing": (0.7, 0.7, 5.2)}})["outlying-spacing"]
    assert (told.severity, told.details) == ("warning", {"c3": "0.07 x 0.07 x 5 mm"})
    assert "1 of 40 CT volumes in HU ('image')" in told.message


def test_many_outliers_do_not_hide_each_other():
    """Four of forty: mean and standard deviation would call none of them far."""
    told = found({n: {"spacing": (0.7, 0.7, 50.0)} for n in range(4)})["outlying-spacing"]
    assert told.cases == ("c0", "c1", "c2", "c3")


def test_a_second_kind_is_no_outlier():
    assert "outlying-spacing" not in found({n: {"spacing": (0.7, 0.7, 1.0)} for n in range(0, 40, 3)})


def test_an_intensity_that_is_far():
    told = found({3: {"low": 2000.0, "high": 3400.0}})
    assert told["outlying-intensity"].cases == ("c3",)
    assert "HU" in told["outlying-intensity"].details["c3"]
    assert told["no-air-in-ct"].cases == ("c3",)
    assert "their rescale intercept was lost" in told["no-air-in-ct"].message


def test_scales_of_arbitrary_intensities():
    common = {"unit": "1", "modality": "MR", "low": 0.0, "high": 100.0}
    assert found(**common) == {}
    told = found({n: {"high": 1e5} for n in range(0, 40, 3)}, **common)["intensity-scales"]
    assert told.severity == "note"
    assert "differ by a factor of 1" in told.message


def test_few_images_show_nothing_usual():
    assert "outlying-size" not in found({3: {"shape": (10, 12, 40)}}, number=11)


def test_images_without_spacing():
    assert found(spacing=None) == {}


def test_kinds_are_compared_among_themselves():
    """MR has other values than CT, which is told once, as another modality."""
    told = found({n: {"unit": "1", "modality": "MR", "low": 0.0, "high": 9e4} for n in range(0, 40, 2)})
    assert set(told) == {"mixed-unit", "mixed-modality"}
