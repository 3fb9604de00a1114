"""Segmentation: learned for real on toy volumes and pictures, settled on answers whose worth is known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from sagittal.case import Case
from sagittal.errors import ConfigError, DataError
from sagittal.grid import Grid
from sagittal.labels import LabelScheme
from sagittal.networks.heads import build_dense
from sagittal.networks.unet import DenseNetwork
from sagittal.prediction import Mask
from sagittal.prepare.plan import DecidePlan, NetworkPlan, Plan, TrainPlan
from sagittal.prepare.warp import Warp
from sagittal.tasks.expected_dice import correct_expected, fit_expected
from sagittal.tasks.registry import make_place_task, make_segment, make_task
from sagittal.tasks.segment import Segment
from sagittal.truth import Segmentation, SegmentationSource, Structure
from sagittal.types import Array

SCHEME = LabelScheme("structures", ("core", "shell"))


def spheres(rng: np.random.Generator, count: int, size: tuple[int, ...]) -> tuple[Array, Array]:
    """Noisy images (N, 1, *size) of a bright ball in a grey one, and their label maps (N, 1, *size)."""
    places = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"))
    images, labels = [], []
    for _ in range(count):
        centre = [rng.uniform(0.35, 0.65) * n for n in size]
        distance = np.sqrt(sum((p - c) ** 2 for p, c in zip(places, centre, strict=True)))
        radius = rng.uniform(0.2, 0.3) * min(size)
        label = (distance < 1.7 * radius) * 2
        label[distance < radius] = 1
        images.append(np.array([0.0, 2.0, 1.0])[label] + rng.normal(0, 0.3, size))
        labels.append(label)
    return np.array(images, dtype=np.float32)[:, None], np.array(labels, dtype=np.uint8)[:, None]


def learn(task: Segment, size: tuple[int, ...], plan: NetworkPlan, steps: int) -> tuple[DenseNetwork, dict[str, float]]:
    rng = np.random.default_rng(1)
    torch.manual_seed(0)
    network = build_dense(plan, channels=1, dimensions=len(size), head=task.head, deep=True).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    middle = np.tile((np.array(size) - 1) / 2, (4, 1))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(steps):
        images, labels = spheres(rng, 4, size)
        if task.outputs == "independent":
            labels = np.concatenate([labels == 1, labels == 2], axis=1).astype(np.uint8)
        target = task.draw(list(labels), Warp.straight(size, middle))
        loss = task.loss(network(torch.from_numpy(images)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    images, labels = spheres(rng, 4, size)
    if task.outputs == "independent":
        labels = np.concatenate([labels == 1, labels == 2], axis=1).astype(np.uint8)
    with torch.no_grad():
        tally = task.tally(network(torch.from_numpy(images)), task.draw(list(labels), Warp.straight(size, middle)))
    return network, task.monitor(tally)


@pytest.mark.parametrize("outputs", ["exclusive", "independent"])
def test_pictures_are_learned(outputs: Any) -> None:
    plan = NetworkPlan(name="unet", width=8, depth=(1, 1, 1))
    _, scores = learn(Segment(SCHEME, outputs), (32, 40), plan, steps=40)
    assert list(scores) == ["dice", "dice_core", "dice_shell"]
    assert min(scores.values()) > 0.9, scores


def test_volumes_are_learned_at_half_resolution() -> None:
    plan = NetworkPlan(name="unet", width=16, depth=(1, 1), strides=((2, 2, 2),) * 2)
    _, scores = learn(Segment(SCHEME), (20, 24, 22), plan, steps=140)
    assert min(scores.values()) > 0.9, scores


def test_head_has_an_output_for_the_background_where_structures_exclude_each_other() -> None:
    assert Segment(SCHEME).head.outputs == 3
    assert Segment(SCHEME, "independent").head.outputs == 2
    assert Segment(SCHEME).head.kind == "dense"


def test_places_are_voxels_of_each_structure() -> None:
    target = np.zeros((1, 40, 50, 60), dtype=np.uint8)
    target[0, 3:5, 10:12, 20:23] = 1
    target[0, 10:, :, :] = 2
    target[0, 39] = 255
    core, shell = Segment(SCHEME).places(target, (40, 50, 60))
    assert sorted(map(tuple, core.tolist())) == [(z, y, x) for z in (3, 4) for y in (10, 11) for x in (20, 21, 22)]
    assert shell.shape == (5000, 3)
    assert (target[0][tuple(shell.T)] == 2).all()
    assert np.ptp(shell, axis=0).min() >= 27  # spread over all of it
    again = Segment(SCHEME).places(target, (40, 50, 60))
    assert (again[1] == shell).all()
    layered = np.stack([target[0] == 1, np.zeros_like(target[0])]).astype(np.uint8)
    core, nothing = Segment(SCHEME, "independent").places(layered, (40, 50, 60))
    assert core.shape == (12, 3)
    assert nothing.shape == (0, 3)


def test_tally_leaves_the_unknown_out_and_adds_up() -> None:
    target = torch.tensor([[[0, 1, 1, 2, 255, 255]]], dtype=torch.uint8)
    answer = torch.tensor([[1, 1, 0, 2, 1, 2]])
    output = torch.nn.functional.one_hot(answer, 3).permute(0, 2, 1)[:, :, None].float()
    tally = Segment(SCHEME).tally(output, target)
    assert tally.tolist() == [[1, 1], [2, 1], [2, 1]]
    scores = Segment(SCHEME).monitor(tally + tally)
    assert scores == {"dice": 0.75, "dice_core": 0.5, "dice_shell": 1.0}
    layers = torch.tensor([[[[1, 1, 0]], [[255, 255, 1]]]], dtype=torch.uint8)
    output = torch.tensor([[[[3.0, -1, 2]], [[9.0, 9, 1]]]])
    assert Segment(SCHEME, "independent").tally(output, layers).tolist() == [[1, 1], [2, 1], [2, 1]]


# Validation cases: the answer is the truth, worn away at its rim, with a false island. How much is worn away, the answer
# says of itself, but twice too sure.
AFFINE = np.array([[0.8, 0, 0, 3], [0, 0.79, -0.8, -7], [0, 0.13, 4.9, 2], [0, 0, 0, 1]])
STRUCTURES = (Structure("core", (1,)), Structure("shell", (2,)))


def make_answer(number: int) -> tuple[Mask, Case]:
    rng = np.random.default_rng(number)
    labels = np.zeros((1, 24, 26, 10), dtype=np.uint8)
    labels[0, 4:16, 4:16, 2:8] = 1
    labels[0, 4:16, 16:20, 2:8] = 2
    grid = Grid((24, 26, 10), AFFINE)
    truth = Segmentation(labels, grid, STRUCTURES)
    found = labels.copy()
    worn = int(rng.integers(0, 6))
    found[0, 4 : 4 + worn, 4:16, 2:8] = 0  # core: 12 rows of 72 voxels, of which some are missed
    found[0, 20 : 21 + number % 3, 22:25, 1:3] = 1
    cells = 12 - worn
    dice = 2 * cells / (cells + 12)
    expected = {"core": 1 - (1 - dice) / 2 + rng.normal(0, 0.002), "shell": 0.98}
    case = Case(
        id=f"c{number}",
        patient=f"p{number}",
        images={},
        truth=SegmentationSource(read=lambda: truth, structures=("core", "shell")),
    )
    return Mask(Segmentation(found, grid, STRUCTURES), expected_dice=expected), case


def test_settled_cleaning_and_expected_dice_are_right() -> None:
    task = Segment(SCHEME)
    settled = task.settle([make_answer(n) for n in range(24)])
    assert settled["clean"] == {"core": {"largest": True}}
    assert settled["clean_gain"]["core"]["better"] == 24
    fitted = settled["expected_dice"]["core"]
    assert fitted["kind"] == "line"
    assert fitted["slope"] == pytest.approx(2, rel=0.1)
    assert fitted["correlation"] > 0.95
    assert fitted["error"] < 0.01 < fitted["error_of_mean"]
    assert settled["expected_dice"]["shell"]["kind"] == "mean"
    json.dumps(settled)

    mask, case = make_answer(100)
    concluded = task.conclude(mask, settled)
    truth = case.truth.load()  # type: ignore[union-attr]
    core, true = concluded.segmentation.mask("core"), truth.mask("core")
    assert not core[20:].any()
    dice = 2 * (core & true).sum() / (core.sum() + true.sum())
    assert concluded.expected_dice["core"] == pytest.approx(dice, abs=0.02)
    assert concluded.expected_dice["shell"] == pytest.approx(1.0, abs=1e-6)
    assert mask.segmentation.mask("core")[20:].any()  # the finding itself stays as it was


def test_nothing_is_settled_from_few_patients_or_without_leave() -> None:
    answers = [make_answer(n) for n in range(2)]
    assert Segment(SCHEME).settle(answers) == {"clean": {}, "clean_gain": {}, "expected_dice": {}}
    many = [make_answer(n) for n in range(12)]
    assert Segment(SCHEME, clean=False).settle(many)["clean"] == {}
    concluded = Segment(SCHEME).conclude(answers[0][0], {})
    assert np.isnan(list(concluded.expected_dice.values())).all()
    assert (concluded.segmentation.layers == answers[0][0].segmentation.layers).all()


def test_settle_passes_over_cases_without_truth_and_structures_that_were_not_looked_for() -> None:
    answers = [make_answer(n) for n in range(12)]
    mask, case = answers[0]
    answers[0] = mask, Case(id=case.id, patient=case.patient, images={}, truth=None)
    layers = case.truth.load().layers  # type: ignore[union-attr]
    partly = Segmentation(np.where(layers == 1, layers, 0), mask.grid, STRUCTURES[:1])
    answers[1] = (
        answers[1][0],
        Case(id="c1", patient="p1", images={}, truth=SegmentationSource(read=lambda: partly, structures=("core",))),
    )
    fitted = Segment(SCHEME).settle(answers)["expected_dice"]
    assert (fitted["core"]["cases"], fitted["shell"]["cases"]) == (11, 10)


def test_conclude_takes_a_mask_only() -> None:
    with pytest.raises(DataError, match="a segmentation finds a mask, not a ClassScores"):
        Segment(SCHEME).conclude(LabelScheme("binary", ("a", "b")).truth("a"), {})


def test_plan_names_loss_cleaning_and_tolerance() -> None:
    plan = Plan(
        SCHEME,
        task="segment",
        outputs="independent",
        train=TrainPlan(loss="dice-ce-cldice", label_smoothing=0.1),
        decide=DecidePlan(clean=False, tolerance_mm=1.0),
    )
    assert make_segment(plan) == make_place_task(plan)
    assert make_segment(plan) == Segment(SCHEME, "independent", True, 0.1, False, 1.0)
    assert not make_segment(Plan(SCHEME, task="segment")).centreline


def test_tasks_of_the_other_kind_and_unknown_ones_are_refused() -> None:
    with pytest.raises(ConfigError, match="the task 'segment' is of another kind"):
        make_task(Plan(SCHEME, task="segment"))
    with pytest.raises(ConfigError, match="the task 'classify' is of another kind"):
        make_place_task(Plan(SCHEME, task="classify"))
    with pytest.raises(ConfigError, match="unknown task 'segmnt'. Did you mean 'segment'"):
        make_place_task(Plan(SCHEME, task="segmnt"))


def test_expected_dice_by_an_isotonic_curve_where_the_line_bends() -> None:
    rng = np.random.default_rng(2)
    raw = rng.uniform(0.2, 1, 200)
    dice = np.where(raw < 0.7, 0.3, 0.95) + rng.normal(0, 0.01, 200)
    fitted = fit_expected(raw, dice, [f"p{n}" for n in range(200)])
    assert fitted["kind"] == "curve"
    assert correct_expected(0.3, fitted) == pytest.approx(0.3, abs=0.03)
    assert correct_expected(0.9, fitted) == pytest.approx(0.95, abs=0.03)
    told = [correct_expected(x, fitted) for x in np.linspace(0, 1, 50)]
    assert told == sorted(told)
    assert json.loads(json.dumps(fitted)) == fitted


def test_expected_dice_that_says_nothing_becomes_the_mean() -> None:
    rng = np.random.default_rng(3)
    raw, dice = rng.uniform(0.5, 1, 40), rng.uniform(0.6, 0.9, 40)
    fitted = fit_expected(raw, dice, [f"p{n}" for n in range(40)])
    assert fitted["kind"] in {"mean", "line"}
    assert fitted["error"] <= fitted["error_of_mean"]
    steep = fit_expected(raw, 1 - raw, [f"p{n}" for n in range(40)])  # surer where it is worse: not to be used
    assert (steep["kind"], steep["correlation"]) == ("mean", 0.0)
    assert fit_expected(raw[:7], dice[:7], list("abcdefg")) == {}
    assert fit_expected(np.full(20, np.nan), dice[:20], [str(n) for n in range(20)]) == {}
    assert np.isnan(correct_expected(0.8, None))
    assert np.isnan(correct_expected(np.nan, fitted))
