"""What every task whose answer has a place must do, and a task from outside the package that does it."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from sagittal.case import Case, ImageSource
from sagittal.evaluate.evidence import Evidence, Settings
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.metrics.intervals import Estimate, bootstrap
from sagittal.networks.heads import Head, build_dense
from sagittal.prediction import Mask, Prediction
from sagittal.prepare.lattice import Lattice
from sagittal.prepare.plan import InputPlan, NetworkPlan, Plan
from sagittal.prepare.warp import Warp, sample_labels
from sagittal.tasks.registry import PLACE_TASKS
from sagittal.tasks.task import Collector, PlaceTask, Summary
from sagittal.truth import Boxes, Segmentation, SegmentationSource, Structure

SIZE = (40, 48)
GRID = Grid((48, 40, 1))
LATTICE = Lattice.of(GRID, 2)
NETWORK = NetworkPlan(name="unet", width=8, depth=(1, 1, 1), head_stride=2)
STRUCTURES = LabelScheme("structures", ("disc",))
OBJECTS = LabelScheme("objects", ("disc",))


@dataclass(frozen=True)
class Painted:
    """A question that the package does not know: what part of the picture is painted, learned by squared error."""

    scheme: LabelScheme

    @property
    def head(self):
        return Head("dense", 1)

    def target(self, case, lattice):
        return np.ascontiguousarray(case.truth.load().layers[:, :, :, 0].transpose(0, 2, 1))

    def places(self, target, size):
        return (np.argwhere(target[0] == 1),)

    def draw(self, targets, warp):
        return sample_labels(targets, warp).float()

    def loss(self, outputs, target):
        known = target != 255
        return ((outputs[0] - target) ** 2)[known].sum() / known.sum().clamp(min=1)

    def tally(self, output, target):
        return np.array([[float((output - target)[target != 255].abs().sum()), float((target != 255).sum())]])

    def monitor(self, tally):
        return {"minus_error": -float(tally[0, 0] / max(tally[0, 1], 1))}

    def collector(self, lattice, *, probability=False):
        return Painter(lattice)

    def settle(self, answers):
        return {"judged": sum(1 for _ in answers)}

    def conclude(self, finding, settled):
        return finding

    def score(self, prediction, case):
        found = prediction.finding.segmentation.layers[0].mean()
        truth = case.truth.load().layers[0].mean()
        return {"case": case.id, "patient": case.patient, "error": abs(float(found - truth))}

    def summarise(self, rows, *, resamples, seed, confidence, prevalence=None):
        error = rows["error"].to_numpy()
        found = bootstrap(
            lambda w: {"mean_error": w @ error / w.sum(axis=-1)},
            rows["patient"],
            resamples=resamples,
            seed=seed,
            confidence=confidence,
        )
        return Summary({k: Estimate(*v, len(rows)) for k, v in found.estimates.items()}, {})

    def figure(self, prediction, case):
        return np.zeros((8, 8, 3), dtype=np.uint8)


class Painter:
    """Planes put together."""

    def __init__(self, lattice):
        self.planes = []
        self.lattice = lattice

    def add(self, start, logits, doubt=None):
        assert start == sum(p.shape[1] for p in self.planes)
        self.planes.append(logits.copy())

    def finish(self):
        found = (np.concatenate(self.planes, axis=1) > 0.5).astype(np.uint8)
        return Mask(Segmentation(found.transpose(0, 2, 1)[..., None], GRID, (Structure("disc", (1,)),)))


def disc(number: int, scheme: LabelScheme) -> Case:
    """A bright disc in noise, and where it lies as this scheme has it."""
    rng = np.random.default_rng(number)
    radius = rng.uniform(5, 8)
    centre = np.array([rng.uniform(9, 38), rng.uniform(9, 30)])
    i, j = np.indices((48, 40))
    inside = (i - centre[0]) ** 2 + (j - centre[1]) ** 2 <= radius**2
    image = Image((rng.normal(0, 0.2, (1, 48, 40, 1)) + 2 * inside[None, ..., None]).astype(np.float32), GRID)
    truth: Any
    if scheme.kind == "objects":
        low, high = [*(centre - radius), -0.5], [*(centre + radius), 0.5]
        truth = Boxes(np.array([[low, high]]), np.zeros(1, int))
    else:
        outlined = Segmentation(inside[None, ..., None].astype(np.uint8), GRID, (Structure("disc", (1,)),))
        truth = SegmentationSource(lambda: outlined, structures=("disc",))
    return Case(f"c{number}", f"p{number // 2}", {"image": ImageSource(lambda: image)}, truth=truth)


def plan_of(name: str, scheme: LabelScheme) -> Plan:
    return Plan(scheme, task=name, input=InputPlan(dimensions=2), network=NETWORK)


MEMBERS = [
    *(
        pytest.param(make(plan_of(name, OBJECTS if name == "detect" else STRUCTURES)), id=name)
        for name, make in PLACE_TASKS.items()
    ),
    pytest.param(Painted(STRUCTURES), id="from outside"),
]


def prepared(case: Case) -> np.ndarray:
    """(1, rows, columns) float32, as a plan without resampling prepares it."""
    return np.ascontiguousarray(case.image().data[..., 0].transpose(0, 2, 1))


@pytest.mark.parametrize("task", MEMBERS)
def test_a_task_goes_from_stored_truth_to_evidence(task: PlaceTask, tmp_path):
    cases = [disc(n, task.scheme) for n in range(16)]
    images = torch.from_numpy(np.stack([prepared(case) for case in cases]))
    targets = [task.target(case, LATTICE) for case in cases]
    for target, case in zip(targets, cases, strict=True):
        (places,) = task.places(target, SIZE)
        assert places.shape[1] == 2
        assert len(places)
        assert ((places >= 0) & (places < SIZE)).all()
        assert np.median(prepared(case)[0][tuple(places.T)]) > 1, "places lie on the disc"

    warp = Warp.straight(SIZE, np.tile((np.array(SIZE) - 1) / 2, (len(cases), 1)))
    drawn = task.draw(targets, warp)
    assert len(drawn) == len(cases)
    torch.manual_seed(0)
    network = build_dense(NETWORK, channels=1, dimensions=2, head=task.head, deep=True).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = task.loss(network(images), drawn)
        assert loss.ndim == 0
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    with torch.no_grad():
        output = network.eval()(images)

    tally = task.tally(output[:5], drawn[:5]) + task.tally(output[5:], drawn[5:])
    quick = task.monitor(tally)
    assert quick
    assert all(isinstance(value, float) for value in quick.values())
    assert task.monitor(task.tally(output, drawn)) == pytest.approx(quick), "tallies add up over batches"

    findings = []
    for answer in output.numpy():
        whole, pieces = (task.collector(LATTICE) for _ in range(2))
        whole.add(0, answer)
        half = answer.shape[1] // 2
        feed(pieces, answer, [0, half, answer.shape[1]])
        one, other = whole.finish(), pieces.finish()
        assert type(one) is type(other)
        findings.append(other)
        assert other.grid.shape == GRID.shape
    answers = list(zip(findings, cases, strict=True))
    settled = task.settle(answers)
    assert json.loads(json.dumps(settled)) == settled, "what was settled is kept as JSON"
    concluded = [task.conclude(finding, settled) for finding in findings]
    predictions = [
        Prediction(case.id, task.scheme, finding, (), np.zeros(0))
        for finding, case in zip(concluded, cases, strict=True)
    ]
    rows = [task.score(p, c) for p, c in zip(predictions, cases, strict=True)]
    assert all(row["case"] == case.id for row, case in zip(rows, cases, strict=True))
    evidence = Evidence.from_rows(rows, task, Settings(resamples=50, scheme=None))
    assert evidence.overall
    assert all(isinstance(estimate, Estimate) for estimate in evidence.overall.values())
    evidence.save(tmp_path)
    assert Evidence.load(tmp_path, task).to_json() == evidence.to_json()
    picture = task.figure(predictions[0], cases[0])
    assert picture.ndim == 3
    assert picture.dtype == np.uint8


def feed(collector: Collector, answer: np.ndarray, cuts: list[int]) -> None:
    """Hand an answer over in pieces; the array changes after each call, as the contract allows."""
    for start, end in itertools.pairwise(cuts):
        piece = answer[:, start:end].copy()
        collector.add(start, piece)
        piece[:] = np.nan


@pytest.mark.parametrize("task", MEMBERS)
def test_a_task_learns_from_a_picture_in_which_there_is_nothing(task: PlaceTask):
    case = disc(0, task.scheme)
    if task.scheme.kind == "objects":
        truth: Any = Boxes(np.zeros((0, 2, 3)), np.zeros(0, int))
    else:
        empty = Segmentation(np.zeros((1, *GRID.shape), np.uint8), GRID, (Structure("disc", (1,)),))
        truth = SegmentationSource(lambda: empty, structures=("disc",))
    nothing = Case("empty", "p", case.images, truth=truth)
    target = task.target(nothing, LATTICE)
    (places,) = task.places(target, SIZE)
    assert places.shape == (0, 2)
    drawn = task.draw([target], Warp.straight(SIZE, (np.array([SIZE]) - 1) / 2))
    network = build_dense(NETWORK, channels=1, dimensions=2, head=task.head).train()
    loss = task.loss(network(torch.from_numpy(prepared(nothing))[None]), drawn)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
