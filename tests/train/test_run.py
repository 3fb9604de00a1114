"""From a data set to a model: it learns, repeats, resumes and predicts as it judged."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sagittal.case import ImageSource
from sagittal.dataset import Dataset
from sagittal.errors import ReadError
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.model.package import Model
from sagittal.networks.heads import Network
from sagittal.prepare.plan import ColumnPlan, NetworkPlan, Plan, PreparePlan
from sagittal.progress import Advance
from sagittal.train import members
from sagittal.train.loop import Loop, Member
from sagittal.train.run import Run, clear_work

Fit = Callable[..., Run]
Squares = Callable[..., Dataset]


def weights(run: Run) -> list[torch.Tensor]:
    return [value for member in run.model.members for value in member.state_dict().values()]


def same(one: Run, other: Run) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


class Interrupting:
    """A reporter that presses Ctrl-C after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def say(self, message: str) -> None:
        pass

    @contextmanager
    def track(self, what: str, total: float | None = None) -> Iterator[Advance]:
        def advance(steps: float, note: str) -> None:
            if what == "train" and note:
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt

        yield advance


def test_it_learns_and_leaves_what_people_recognise(fit: Fit, squares: Squares, plan: Plan) -> None:
    run = fit(squares(), plan)
    hits = [
        prediction.decision == ("bright" if case.truth.values[1] else "dark",) for prediction, case in run.validation
    ]  # type: ignore[union-attr]
    assert len(run.validation) == 48
    assert np.mean(hits) > 0.9
    names = {path.name for path in run.folder.iterdir()}
    assert names >= {"plan.json", "splits.json", "results.csv", "events.jsonl", "model"}
    assert names >= {"checkpoint", "prepared"}  # a kill while the evidence is written must not cost the training
    again = fit(squares(), plan, resume=True)
    assert same(run, again)
    clear_work(run.folder)
    assert not {path.name for path in run.folder.iterdir()} & {"checkpoint", "prepared"}
    with (run.folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["member"] for row in rows} == {"0", "1", "2", "3"}
    assert all(float(row["val_loss"]) > 0 for row in rows)
    assert all(json.loads(line)["event"] for line in (run.folder / "events.jsonl").read_text().splitlines())


def test_same_seed_same_weights_and_another_seed_others(fit: Fit, squares: Squares, small: Plan) -> None:
    first, again = fit(squares(), small, "a"), fit(squares(), small, "b")
    assert same(first, again)
    assert not same(first, fit(squares(), replace(small, seed=1), "c"))


def test_the_resolved_plan_repeats_a_timed_run(fit: Fit, squares: Squares, small: Plan) -> None:
    timed = fit(squares(), replace(small, budget_s=16.0, expect={"finish_s": 10.0}), "timed")
    assert timed.plan.train.steps
    assert same(timed, fit(squares(), Plan.load(timed.folder / "plan.json"), "again"))


@pytest.mark.parametrize("steps", [3, 7, 13])
def test_ctrl_c_loses_nothing(fit: Fit, squares: Squares, plan: Plan, steps: int) -> None:
    plan = replace(plan, train=replace(plan.train, epochs=6), companions=())
    whole = fit(squares(), plan, "whole")
    interrupting = Interrupting(steps)
    with pytest.raises(KeyboardInterrupt):
        fit(squares(), plan, "cut", reporter=interrupting)
    assert same(whole, fit(squares(), plan, "cut", resume=True))


def test_a_kill_goes_on_from_the_last_checkpoint(
    fit: Fit, squares: Squares, plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    monkeypatch.setattr(members, "CHECKPOINT_S", -1.0)  # one after each step
    plan = replace(plan, train=replace(plan.train, epochs=3))
    whole = fit(squares(), plan, "whole")
    taken = 0
    save = members.save_checkpoint

    def save_then_die(*args: object) -> None:
        nonlocal taken
        save(*args)  # type: ignore[arg-type]
        taken += 1
        if taken == 17:
            raise Killed

    monkeypatch.setattr(members, "save_checkpoint", save_then_die)
    with pytest.raises(Killed):
        fit(squares(), plan, "cut")
    monkeypatch.setattr(members, "save_checkpoint", save)
    assert (tmp_path / "cut" / "checkpoint").exists()
    assert same(whole, fit(squares(), plan, "cut", resume=True))


def test_package_predictions_equal_those_of_training(fit: Fit, squares: Squares, plan: Plan) -> None:
    dataset = squares()
    run = fit(dataset, replace(plan, split=replace(plan.split, folds=1)))
    model = Model.load(run.folder / "model")
    for prediction, case in run.validation:
        again = model.predict(case)
        np.testing.assert_allclose(again.logits, prediction.logits, atol=1e-5)
        np.testing.assert_allclose(again.probability, prediction.probability, atol=1e-5)
        assert again.decision == prediction.decision


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("shape", "network"),
    [
        ((16, 16, 1), NetworkPlan("resnet-small", 8, (1, 1))),
        ((12, 12, 8), NetworkPlan("resnet-small", 8, (1, 1), stem_stride=2)),
    ],
)
def test_planes_and_volumes_in_each_precision(
    fit: Fit, squares: Squares, small: Plan, precision: str, shape: tuple[int, int, int], network: NetworkPlan
) -> None:
    volume = shape[2] > 1
    size = shape[::-1] if volume else shape[1::-1]
    plan = replace(
        small,
        input=replace(small.input, dimensions=3 if volume else 2),
        prepare=PreparePlan(size=size, offset=(100.0,), scale=(30.0,), store="float16"),
        augment=replace(small.augment, flip=(0,)),
        network=network,
        train=replace(small.train, precision=precision, channels_last=not volume),  # type: ignore[arg-type]
    )
    assert len(fit(squares(shape=shape), plan).validation) > 5


def test_a_clinical_table_is_learnt_from(fit: Fit, squares: Squares, small: Plan) -> None:
    columns = (ColumnPlan("age", "number", 50.0, 15.0), ColumnPlan("sex", "category", categories=("f", "m")))
    plan = replace(small, input=replace(small.input, table=columns))
    run = fit(squares(), plan)
    case = run.validation[0][1]
    model = Model.load(run.folder / "model")
    other = model.predict(replace(case, table={"age": None, "sex": "m"}))
    assert not np.allclose(other.logits, model.predict(case).logits)


@pytest.mark.parametrize("kind", ["multiclass", "ordinal", "multilabel"])
def test_every_kind_of_label(fit: Fit, squares: Squares, small: Plan, kind: str) -> None:
    scheme = LabelScheme(kind, ("one", "two", "three"))  # type: ignore[arg-type]
    cases = []
    for n, case in enumerate(squares(cases=72)):
        names = (
            [scheme.classes[n % 3]] if scheme.exclusive else [c for m, c in enumerate(scheme.classes) if (n >> m) % 2]
        )
        truth = scheme.truth(*names)
        if n % 10 == 7 and kind == "multilabel":
            values = truth.values.copy()
            values[1] = np.nan
            truth = replace(truth, values=values)
        cases.append(replace(case, truth=truth))
    run = fit(replace(squares(), cases=tuple(cases), scheme=scheme), replace(small, scheme=scheme))
    prediction = Model.load(run.folder / "model").predict(cases[0])
    assert prediction.probability.shape == (3,)
    if scheme.exclusive:
        assert prediction.probability.sum() == pytest.approx(1)


def test_an_unreadable_study_is_left_out_and_counted(fit: Fit, squares: Squares, small: Plan) -> None:
    def broken() -> Image:
        raise ReadError("case c007: the file is truncated")

    dataset = squares()
    cases = list(dataset)
    cases[7] = replace(cases[7], images={"image": ImageSource(broken)})
    run = fit(replace(dataset, cases=tuple(cases)), small)
    assert [skip.case for skip in run.skipped] == ["c007"]
    assert sum(run.model.data["skipped"].values()) == 1


def test_early_stopping_ends_a_member(fit: Fit, squares: Squares, small: Plan) -> None:
    plan = replace(small, train=replace(small.train, epochs=400, patience=0.02, keep="best", learning_rate=0.05))
    run = fit(squares(), plan)
    with (run.folder / "results.csv").open() as file:
        assert int(list(csv.DictReader(file))[-1]["step"]) < run.plan.train.steps[0][-1][1]


@pytest.mark.slow
def test_two_processes_train_together(fit: Fit, squares: Squares, plan: Plan) -> None:
    pytest.importorskip("lightning_fabric", reason="several devices need the extra 'scale'")
    run = fit(squares(), replace(plan, split=replace(plan.split, folds=1)), device="cpu,cpu")
    hits = [
        prediction.decision == ("bright" if case.truth.values[1] else "dark",) for prediction, case in run.validation
    ]  # type: ignore[union-attr]
    assert np.mean(hits) > 0.8
    assert len(run.model.members) == 2


def test_a_linear_probe_computes_its_encoder_once(
    fit: Fit, squares: Squares, small: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    front = Network.front

    def counted(self: Network, image: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += len(image)
        return front(self, image)

    monkeypatch.setattr(Network, "front", counted)
    plan = replace(
        small,
        network=NetworkPlan("resnet-small", 8, (1, 1), tuning="linear"),
        train=replace(small.train, epochs=30, cache_features=True, averaging=0.0),
    )
    run = fit(squares(), plan)
    assert calls == 48  # every case that teaches or judges, once
    model = Model.load(run.folder / "model")
    prediction, case = run.validation[0]
    np.testing.assert_allclose(model.predict(case).logits, prediction.logits, atol=1e-5)


def test_a_batch_that_overflows_spoils_nothing(
    fit: Fit, squares: Squares, small: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, count = Loop.step, 0

    def burst(self: Loop, member: Member, number: int, total: int, forward: object = None) -> float:
        nonlocal count
        count += 1
        if count == 3:
            with torch.no_grad():
                hook = member.network.output.weight.register_hook(lambda gradient: gradient * float("nan"))
            loss = step(self, member, number, total)
            hook.remove()
            return loss
        return step(self, member, number, total)

    monkeypatch.setattr(Loop, "step", burst)
    run = fit(squares(), small)
    assert count > 3
    assert all(bool(torch.isfinite(value).all()) for value in weights(run) if value.is_floating_point())
