"""The plan as a file that people edit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sagittal.errors import ConfigError
from sagittal.labels import LabelScheme
from sagittal.prepare.plan import ColumnPlan, CompanionPlan, InputPlan, NetworkPlan, Plan, TrainPlan

PLAN = Plan(
    LabelScheme("ordinal", ("0", "1", "2"), target="grade"),
    input=InputPlan(table=(ColumnPlan("age", "number", 50.0, 9.5), ColumnPlan("sex", "category", categories=("f",)))),
    train=TrainPlan(steps=(((0, 100), (50, 90)), ((0, 80),))),
    companions=(CompanionPlan(NetworkPlan("descriptors", 64, ()), TrainPlan(epochs=60.0), repeats=3),),
    budget_s=600.0,
    why={"train.batch": "fits"},
)


def test_a_plan_survives_the_disk(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == PLAN
    assert '"budget_s": 600.0' in (tmp_path / "plan.json").read_text()


def test_a_mistyped_key_is_refused_with_the_nearest() -> None:
    values = PLAN.to_json()
    values["train"]["learning_rat"] = 1
    with pytest.raises(ConfigError, match="unknown key 'learning_rat'. Did you mean 'learning_rate'"):
        Plan.from_json(values)
    with pytest.raises(ConfigError, match="the plan has no field 'widht'. Did you mean 'width'"):
        PLAN.override({"widht": "3"})


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("train", "batch", "many", "expected int, found 'many'"),
        ("train", "batch", True, "expected int, found True"),
        ("train", "optimizer", "adam", "'adam' is not a choice. Did you mean 'adamw'"),
        ("prepare", "size", 28, "expected a list, found 28"),
        ("prepare", "clip", [1.0], "expected 2 values, found 1"),
        ("network", "width", 2.5, "expected int, found 2.5"),
    ],
)
def test_wrong_values_are_refused(section: str, key: str, value: object, message: str) -> None:
    values = PLAN.to_json()
    values[section][key] = value
    with pytest.raises(ConfigError, match=message):
        Plan.from_json(values)


def test_a_newer_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="the plan has format 99, this version reads up to 1. Install a newer"):
        Plan.from_json({**PLAN.to_json(), "format": 99})


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", json.dumps({"task": "classify"})])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ConfigError, match=r"plan\.json"):
        Plan.load(tmp_path / "plan.json")


def test_overrides_take_full_and_bare_names() -> None:
    plan = PLAN.override({"network.width": "48", "epochs": "3", "prepare.size": "[32, 32]", "optimizer": "sgd"})
    assert (plan.network.width, plan.train.epochs, plan.prepare.size, plan.train.optimizer) == (
        48,
        3.0,
        (32, 32),
        "sgd",
    )
    assert plan.why["network.width"] == "set by the user"
    assert plan.fixed == ("network.width", "prepare.size", "train.epochs", "train.optimizer")
    with pytest.raises(ConfigError, match="'mixup' stands in several sections of the plan: augment.mixup, train.mixup"):
        PLAN.override({"mixup": "0"})
