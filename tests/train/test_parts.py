"""Schedule, checkpoint, device and budget, each by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sagittal.dataset import Dataset
from sagittal.errors import BudgetError, ConfigError, PackageError, ResourceError
from sagittal.model.device import pick_device
from sagittal.prepare.fingerprint import measure_dataset
from sagittal.prepare.plan import Plan, TrainPlan
from sagittal.prepare.planner import make_plans
from sagittal.train.batches import draw
from sagittal.train.budget import fit_to_budget
from sagittal.train.checkpoint import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from sagittal.train.run import Run
from sagittal.train.schedule import Pace, Schedule, rate
from sagittal.train.speed import measure_speed

Squares = Callable[..., Dataset]


@given(st.sampled_from(["cosine", "one-cycle", "constant"]), st.integers(1, 500))
def test_rates_stay_between_nothing_and_the_highest(kind: str, total: int) -> None:
    plan = TrainPlan(schedule=kind)  # type: ignore[arg-type]
    rates = [rate(plan, step, total) for step in range(total)]
    assert all(0 < value <= 1 for value in rates)
    if total >= 40:
        assert max(rates) > 0.99
        assert kind == "constant" or rates[-1] < 0.05


def test_cosine_is_the_closed_form() -> None:
    plan = TrainPlan(warmup=0.0)
    for step in (0, 25, 99):
        expected = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step + 0.5) / 100))
        assert rate(plan, step, 100) == pytest.approx(expected)


def test_revisions_replay() -> None:
    schedule = Schedule([(0, 100)])
    schedule.revise(40, 80)
    schedule.revise(60, 400)  # a hiccup moves the end by half of what is left at most
    assert schedule.revisions == [(0, 100), (40, 80), (60, 90)]
    assert [schedule.total(step) for step in (0, 39, 40, 59, 60)] == [100, 100, 80, 80, 90]


def test_pace_follows_a_change_of_speed() -> None:
    pace = Pace(half_life=10)
    for seconds in [1.0] * 100 + [3.0] * 100:
        pace.tick(seconds)
    assert pace.step_s == pytest.approx(3.0, rel=0.01)


@given(st.integers(1, 40), st.integers(1, 64))
def test_every_case_is_drawn_once_an_epoch(cases: int, batch: int) -> None:
    rows = np.arange(cases) + 7
    size = min(batch, cases)
    steps = math.lcm(size, cases) // size
    drawn = np.concatenate([draw(rows, batch, 3, 1, step) for step in range(steps)])
    assert sorted(drawn.tolist()) == sorted(rows.tolist() * (len(drawn) // cases))


def test_a_checkpoint_brings_the_optimiser_back(tmp_path: Path) -> None:
    def make() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def step(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    layer, optimizer = make()
    step(layer, optimizer)
    tensors, numbers = optimizer_tensors(optimizer)
    weights = {f"w.{k}": v for k, v in layer.state_dict().items()}
    save_checkpoint(
        tmp_path, {**weights, **{f"o.{k}": v for k, v in tensors.items()}}, {"serial": 1, "numbers": numbers}
    )
    found = load_checkpoint(tmp_path)
    assert found is not None
    other, fresh = make()
    other.load_state_dict({k[2:]: v for k, v in found[0].items() if k.startswith("w.")})
    restore_optimizer(fresh, {k[2:]: v for k, v in found[0].items() if k.startswith("o.")}, found[1]["numbers"])
    step(layer, optimizer)
    step(other, fresh)
    torch.testing.assert_close(layer.weight, other.weight, rtol=0, atol=0)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"a": torch.zeros(3)}, {"serial": 1})
    next(tmp_path.glob("*.safetensors")).write_bytes(b"\x00" * 40)
    with pytest.raises(PackageError, match="the checkpoint is damaged .* Start again with --overwrite"):
        load_checkpoint(tmp_path)
    assert load_checkpoint(tmp_path / "none") is None


def test_a_checkpoint_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sagittal.train.checkpoint.save_file", full)
    with pytest.raises(ResourceError, match="No space left on device. Free some space and go on with --resume"):
        save_checkpoint(tmp_path, {"a": torch.zeros(3)}, {"serial": 1})


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="'gpu7' is not"):
        pick_device("gpu7")
    with pytest.raises(ResourceError, match="cuda:7"):
        pick_device("cuda:7")


def test_a_budget_too_short_says_what_would_be_enough(squares: Squares) -> None:
    fingerprint = measure_dataset(squares())
    with pytest.raises(BudgetError, match=r"the budget of 3 s is too short.* Give at least --budget \d+s"):
        fit_to_budget(make_plans(fingerprint, budget_s=3.0), fingerprint)


def test_more_time_buys_more_training(squares: Squares) -> None:
    fingerprint = measure_dataset(squares(cases=200, shape=(28, 28, 1)))
    plans = [fit_to_budget(make_plans(fingerprint, budget_s=budget), fingerprint) for budget in (40.0, 1200.0)]
    cost = [plan.expect["members"] * plan.train.epochs * plan.network.width * sum(plan.network.depth) for plan in plans]
    assert cost[1] > 3 * cost[0]
    assert all(plan.expect["total_s"] == plan.budget_s for plan in plans)


def test_what_the_user_set_is_kept(squares: Squares, plan: Plan, fit: Callable[..., Run]) -> None:
    fingerprint = measure_dataset(squares(cases=80, shape=(28, 28, 1)))
    ladder = [rung.override({"epochs": "2", "folds": "2"}) for rung in make_plans(fingerprint, budget_s=600.0)]
    made = fit_to_budget(ladder, fingerprint)
    assert (made.train.epochs, made.split.folds) == (2.0, 2)
    timed = replace(plan, budget_s=300.0, expect={"finish_s": 10.0, "train_s": 9.0}, companions=())
    run = fit(squares(), timed.override({"epochs": "2"}))
    assert [len(revisions) for revisions in run.plan.train.steps] == [1, 1]


def test_speed_is_measured_in_a_form_that_this_machine_has(small: Plan) -> None:
    speed = measure_speed(small, device=torch.device("cpu"), limit_s=0.2)
    assert 0 < speed.step_s < 30
    assert speed.precision in ("fp32", "bf16")


def test_the_budget_is_kept(squares: Squares, plan: Plan, fit: Callable[..., Run]) -> None:
    limited = replace(plan, budget_s=20.0, expect={"finish_s": 10.0, "train_s": 9.0}, companions=())
    limited = replace(limited, train=replace(limited.train, epochs=10_000))
    run = fit(squares(), limited)  # far more epochs were asked for than fit
    assert len(run.plan.train.steps) == 2
    assert all(revisions[-1][1] < 10_000 for revisions in run.plan.train.steps)
