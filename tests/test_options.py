"""Options of the verbs and how budgets are written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagittal.errors import ConfigError
from sagittal.options import EvaluateOptions, ReadOptions, TrainOptions, format_seconds, parse_budget


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("2h", 7200),
        ("1.5h", 5400),
        ("3d", 259200),
        ("2h30m", 9000),
        ("1d12h", 129600),
        ("90", 90),
        (90, 90),
        (0.5, 0.5),
        (" 10 M ", 600),
    ],
)
def test_budgets_are_read_as_people_write_them(text: str | float, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "ten minutes", "10x", "m10", "1h-5m", "1,5h", "1:30", "10min", "--"])
def test_what_is_no_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a time\. Write 90s, 10m, 2h, 1\.5h, 2h30m or 3d"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["0", "0s", "-5", "nan", "inf", -1])
def test_no_time_at_all_is_refused(text: str | float) -> None:
    with pytest.raises(ConfigError, match="expected more than no time, such as 10m"):
        parse_budget(text)


@given(st.floats(0.01, 1e7))
def test_durations_are_told_within_their_own_precision(seconds: float) -> None:
    text = format_seconds(seconds)
    value = sum(
        float(n) * {"s": 1, "min": 60, "h": 3600, "d": 86400}[unit]
        for n, unit in zip(text.split()[::2], text.split()[1::2], strict=True)
    )
    assert value == pytest.approx(seconds, rel=0.05, abs=0.5)


def test_reading_options_that_were_not_given_are_left_to_the_reader() -> None:
    assert ReadOptions().keywords() == {}
    assert ReadOptions(labels="a.csv", search=("x",)).keywords() == {"labels": "a.csv", "search": ("x",)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "fats"}, "preset: 'fats' is not a choice. Did you mean 'fast'"),
        ({"epochs": 0}, "epochs: expected more than 0, found 0"),
        ({"batch": 0}, "batch: expected at least 1, found 0"),
        ({"folds": -1}, "folds: expected at least 1, found -1"),
        ({"workers": -1}, "workers: expected at least 0, found -1"),
    ],
)
def test_training_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainOptions(**options)


@pytest.mark.parametrize("prevalence", [0.0, 1.0, 10.0, -0.1])
def test_a_prevalence_is_a_fraction(prevalence: float) -> None:
    with pytest.raises(ConfigError, match="expected a fraction between 0 and 1 such as 0.1"):
        EvaluateOptions(prevalence=prevalence)


def test_named_options_become_changes_of_the_plan_and_free_ones_stand_above() -> None:
    options = TrainOptions(epochs=3, batch=8, changes={"network.width": "48", "train.batch": "16"})
    assert options.overrides() == {"train.epochs": "3", "train.batch": "16", "network.width": "48"}
