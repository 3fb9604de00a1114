"""Summaries over cases: undefined and infinite ones are counted, patients stay together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagittal.errors import DataError
from sagittal.metrics.cases import summarise


def test_undefined_and_infinite_cases_are_counted() -> None:
    values = [0.5, 1.5, math.inf, math.nan, math.inf, 2.5, 4.5]
    found = summarise({"hd95": values}, range(7), resamples=200)["hd95"]
    assert (found.undefined, found.infinite) == (1, 2)
    assert (found.mean.value, found.mean.n) == (2.25, 4)
    assert (found.median.value, found.median.n) == (3.5, 6)
    assert found.mean.low < 2.25 < found.mean.high < math.inf
    assert found.median.low < 3.5 < found.median.high == math.inf
    assert str(found).endswith("of 6; 1 undefined; 2 infinite")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20))
def test_values_are_those_of_numpy(values: list[float]) -> None:
    found = summarise({"x": values}, range(len(values)), resamples=0)["x"]
    assert found.mean.value == pytest.approx(np.mean(values), abs=1e-9)
    assert found.median.value == pytest.approx(np.median(values), rel=1e-9, abs=1e-9)


def test_weighted_median_is_that_of_the_repeated_cases() -> None:
    from sagittal.metrics.cases import weighted_median

    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.normal(size=rng.integers(1, 8)).round(1)
        weights = rng.integers(0, 4, (5, len(values))).astype(float)
        weights[:, 0] += 1
        expected = [np.median(np.repeat(values, row.astype(int))) for row in weights]
        np.testing.assert_allclose(weighted_median(values, weights), expected, atol=1e-12)


def test_more_than_half_infinite() -> None:
    found = summarise({"hd95": [1.0, math.inf, math.inf]}, range(3), resamples=50)["hd95"]
    assert found.median.value == math.inf
    assert found.mean.value == 1.0


def test_nothing_defined() -> None:
    found = summarise({"dice": [math.nan, math.nan]}, "ab", resamples=50)["dice"]
    assert math.isnan(found.mean.value)
    assert math.isnan(found.median.value)
    assert (found.undefined, found.mean.n, found.median.n) == (2, 0, 0)
    assert str(found) == "mean not defined, median not defined of 0; 2 undefined"


def test_patients_stay_together() -> None:
    """Ten copies of each of eight cases: as eight patients they say no more than the eight."""
    rng = np.random.default_rng(1)
    values = np.repeat(rng.random(8), 10)
    apart = summarise({"dice": values}, range(80), resamples=400)["dice"].mean
    together = summarise({"dice": values}, np.repeat(np.arange(8), 10), resamples=400)["dice"].mean
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(DataError, match=r"dice: one value for each of 2 cases is needed, not \(1,\)"):
        summarise({"dice": [1.0]}, "ab")
    with pytest.raises(DataError, match="at least one case"):
        summarise({"dice": []}, [])
