"""What every task must do, and a task from outside the package that does it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch

from sagittal.case import Case, ImageSource
from sagittal.evaluate.evidence import Evidence, Settings
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import ClassScores, LabelScheme
from sagittal.metrics.intervals import Estimate, bootstrap
from sagittal.networks.heads import Head
from sagittal.prediction import Prediction
from sagittal.prepare.plan import Plan
from sagittal.tasks.registry import TASKS
from sagittal.tasks.task import Summary, Task

SCHEMES = [
    LabelScheme("binary", ("no", "yes")),
    LabelScheme("multiclass", ("a", "b", "c")),
    LabelScheme("ordinal", ("0", "1", "2", "3")),
    LabelScheme("multilabel", ("x", "y")),
]


@dataclass(frozen=True)
class MeanDose:
    """A question that the package does not know: the mean value of a study, learned from the table column ``dose_gy``."""

    scheme: LabelScheme

    @property
    def head(self):
        return Head("vector", 1)

    def target(self, case):
        return np.array([np.nan if case.table.get("dose_gy") is None else case.table["dose_gy"]], dtype=np.float32)

    def loss(self, logits, target):
        known = ~torch.isnan(target)
        return torch.where(known, (logits - torch.nan_to_num(target)) ** 2, 0).sum() / known.sum().clamp(min=1)

    def monitor(self, logits, target):
        return {"minus_mae": -float(np.nanmean(np.abs(logits - target)))}

    def decode(self, logits, grid):
        return ClassScores(np.asarray(logits, dtype=float))

    def score(self, prediction, case):
        truth = float(self.target(case)[0])
        return {
            "case": case.id,
            "patient": case.patient,
            "truth": truth,
            "error_gy": abs(float(prediction.finding.values[0]) - truth),
        }

    def summarise(self, rows, *, resamples, seed, confidence, prevalence=None):
        error = rows["error_gy"].to_numpy()
        found = bootstrap(
            lambda w: {"mae_gy": w @ error / w.sum(axis=-1)},
            rows["patient"],
            resamples=resamples,
            seed=seed,
            confidence=confidence,
        )
        return Summary({k: Estimate(*v, len(rows)) for k, v in found.estimates.items()}, {})

    def figure(self, prediction, case):
        return np.zeros((8, 8, 3), dtype=np.uint8)


def make_toy(plan, targets=None):
    return MeanDose(plan.scheme)


MEMBERS = [
    *(pytest.param(make, scheme, id=f"{name} {scheme.kind}") for name, make in TASKS.items() for scheme in SCHEMES),
    pytest.param(make_toy, SCHEMES[0], id="from outside"),
]


def case_of(scheme, n):
    image = Image(np.full((1, 6, 5, 1), float(n), dtype=np.float32), Grid((6, 5, 1)))
    truth = scheme.truth(scheme.classes[n % len(scheme.classes)])
    return Case(
        f"c{n}", f"p{n // 2}", {"image": ImageSource(lambda: image)}, table={"dose_gy": float(n % 7)}, truth=truth
    )


def prediction_of(task, scheme, case, logits):
    finding = task.decode(logits, case.image().grid)
    return Prediction(case.id, scheme, finding, (scheme.classes[int(np.argmax(logits)) % len(scheme.classes)],), logits)


@pytest.mark.parametrize(("make", "scheme"), MEMBERS)
def test_a_task_goes_from_a_training_step_to_evidence(make, scheme, tmp_path):
    task: Task = make(Plan(scheme))
    cases = [case_of(scheme, n) for n in range(24)]
    targets = np.stack([task.target(case) for case in cases])
    assert targets.dtype == np.float32

    torch.manual_seed(0)
    network = torch.nn.Linear(1, task.head.outputs)
    images = torch.stack([torch.as_tensor(case.image().data.mean()).reshape(1) for case in cases])
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = task.loss(network(images), torch.from_numpy(targets))
        assert loss.ndim == 0
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    logits = network(images).detach().numpy()
    monitored = task.monitor(logits, targets)
    assert monitored
    assert all(isinstance(value, float) for value in monitored.values())

    predictions = [prediction_of(task, scheme, c, row) for c, row in zip(cases, logits, strict=True)]
    rows = [task.score(p, c) for p, c in zip(predictions, cases, strict=True)]
    assert all(row["case"] == c.id for row, c in zip(rows, cases, strict=True))
    evidence = Evidence.from_rows(rows, task, Settings(resamples=50, scheme=None))
    assert evidence.overall
    assert all(isinstance(e, Estimate) for e in evidence.overall.values())
    limits = [(e.low, e.high) for e in evidence.overall.values() if np.isfinite([e.low, e.high]).all()]
    assert limits
    assert all(low <= high for low, high in limits)
    evidence.save(tmp_path)
    assert Evidence.load(tmp_path, task).to_json() == evidence.to_json()

    picture = task.figure(predictions[0], cases[0])
    assert picture.ndim == 3
    assert picture.dtype == np.uint8


@pytest.mark.parametrize(("make", "scheme"), MEMBERS)
def test_a_task_ignores_what_is_unknown(make, scheme):
    task: Task = make(Plan(scheme))
    nothing = Case("c", "p", {}, truth=None)
    assert np.isnan(task.target(nothing)).all()
    logits = torch.ones(2, task.head.outputs, requires_grad=True)
    target = torch.from_numpy(np.stack([task.target(case_of(scheme, 1)), task.target(nothing)]))
    task.loss(logits, target).backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[1] == 0).all()


def test_the_toy_measures_what_it_says():
    task = MeanDose(SCHEMES[0])
    rows = pd.DataFrame({"case": ["a", "b"], "patient": ["a", "b"], "error_gy": [1.0, 3.0]})
    assert Evidence.from_rows(rows, task).overall["mae_gy"].value == 2
