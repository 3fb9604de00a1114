"""A model that answers at once, and a data set with patients, columns, gaps and a bad case."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sagittal.case import Case, ImageSource
from sagittal.dataset import Dataset, Skipped
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import ClassScores, LabelScheme
from sagittal.prediction import Failure, Prediction, Verdict
from sagittal.tasks.classify import Classify

GRID = Grid((6, 5, 1))


class Oracle:
    """Answers from the truth with noise; fails on the cases that it is told to."""

    def __init__(self, scheme, *, skill=2.0, seed=0, bad=(), silent=(), refused=()):
        self.task, self.name, self.label = Classify(scheme), "oracle", "oracle (format 1, sha256 0123)"
        self.skill, self.seed, self.bad, self.silent, self.refused = skill, seed, bad, silent, refused
        self.operating_point = "most-probable"

    def predict_many(self, cases, *, batch=None, reporter=None):
        scheme = self.task.scheme
        for case in cases:
            number = int(case.id.lstrip("c"))
            if case.id in self.silent:
                continue
            if case.id in self.bad:
                yield Failure(case.id, f"case {case.id}: the file ends early; copy it again", "ReadError")
                continue
            truth = np.nan_to_num(case.truth.values) if case.truth else np.zeros(len(scheme.classes))
            logits = self.skill * truth + np.random.default_rng([self.seed, number]).normal(size=len(truth))
            finding = self.task.decode(logits, GRID)
            best = scheme.classes[int(finding.values.argmax())]
            several = tuple(n for n, v in zip(scheme.classes, finding.values, strict=True) if v > 0.7)
            verdict = Verdict(False, "unlike the training cases", 0.999) if case.id in self.refused else Verdict()
            decision = (best,) if scheme.exclusive else several
            yield Prediction(case.id, scheme, finding, decision, logits, verdict=verdict, model=self.label)


def make_dataset(scheme, n=120, *, patients=None, unknown=(), skipped=(), split="test"):
    rng = np.random.default_rng(1)
    image = Image(rng.random((1, 6, 5, 1)).astype(np.float32), GRID)
    cases = []
    for i in range(n):
        if scheme.exclusive:
            truth = scheme.truth(scheme.classes[int(rng.integers(len(scheme.classes)))])
        else:
            truth = ClassScores((rng.random(len(scheme.classes)) < 0.4).astype(float))
        table = {
            "age": None if i % 20 == 0 else float(rng.integers(20, 90)),
            "sex": str(rng.choice(["female", "male"])),
            "scanner": "rare" if i % 40 == 3 else "common",
        }
        cases.append(
            Case(
                f"c{i}",
                f"Name^Of^Patient{i if patients is None else i % patients}",
                {"image": ImageSource(lambda: image)},
                table=table,
                truth=scheme.unknown() if i in unknown else truth,
                split=split,
            )
        )
    left_out = tuple(Skipped(name, f"case {name}: no pixel data") for name in skipped)
    return Dataset("phantoms", tuple(cases), scheme, columns=("age", "sex", "scanner"), skipped=left_out)


@pytest.fixture
def binary():
    return LabelScheme("binary", ("benign", "malignant"), target="dx")


@pytest.fixture
def oracle():
    return Oracle


@pytest.fixture
def dataset_of():
    return make_dataset


def _places():
    """The phantoms of masks and boxes that the tests of evaluation use."""
    path = Path(__file__).parents[1] / "evaluate" / "conftest.py"
    spec = importlib.util.spec_from_file_location("evaluate_conftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def places():
    """The schemes of the place phantoms, a model that knows them, and data sets of them."""
    module = _places()
    return SimpleNamespace(schemes=module.PLACES, oracle=module.PlaceOracle, dataset=module.make_places)
