"""A model that answers at once, and a data set with patients, columns, gaps and a bad case."""

from types import SimpleNamespace

import numpy as np
import pytest

from sagittal.case import Case, ImageSource
from sagittal.dataset import Dataset, Skipped
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import ClassScores, LabelScheme
from sagittal.prediction import Detections, Failure, Mask, Prediction, Verdict
from sagittal.tasks.classify import Classify
from sagittal.truth import Boxes, Segmentation, SegmentationSource, Structure

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


PLACES = {
    "structures": LabelScheme("structures", ("liver", "tumour"), target="masks"),
    "objects": LabelScheme("objects", ("node", "vessel"), target="boxes"),
}
VOLUME = Grid((24, 20, 10), np.array([[0.8, 0, 0, -9], [0, 0.8, 0, 4], [0, 0, 2.5, 100], [0, 0, 0, 1.0]]))
PICTURE = Grid((64, 48, 1))


def true_place(scheme, number):
    """The truth of a case: a liver that grows with its number, in every other case with a tumour; or some boxes."""
    rng = np.random.default_rng([7, number])
    if scheme.kind == "structures":
        label = np.zeros(VOLUME.shape, dtype=np.uint8)
        label[3 : 12 + number % 8, 3:15, 2:8] = 1
        if number % 2:
            label[6:10, 6:10, 3:6] = 2
        structures = tuple(Structure(name, (n + 1,)) for n, name in enumerate(scheme.classes))
        return Segmentation(label[np.newaxis], VOLUME, structures)
    count = number % 4
    low = rng.integers(0, [50, 36], size=(count, 2)).astype(float)
    size = rng.integers(6, 12, size=(count, 2))
    corners = np.zeros((count, 2, 3))
    corners[:, 0, :2], corners[:, 1, :2] = low - 0.5, low + size - 0.5
    corners[:, 0, 2], corners[:, 1, 2] = -0.5, 0.5
    return Boxes(corners, rng.integers(0, len(scheme.classes), count))


class PlaceOracle:
    """Answers from the truth with errors that grow with `noise`; fails on the cases that it is told to."""

    def __init__(self, task, *, noise=1.0, seed=0, bad=(), refused=()):
        self.task, self.name, self.label = task, "oracle", "oracle (format 1, sha256 0123)"
        self.noise, self.seed, self.bad, self.refused = noise, seed, bad, refused

    def predict_many(self, cases, *, reporter=None):
        for case in cases:
            if case.id in self.bad:
                yield Failure(case.id, f"case {case.id}: the file ends early; copy it again", "ReadError")
                continue
            number = int(case.id.lstrip("c"))
            rng = np.random.default_rng([self.seed, number])
            finding = self._mask(number, rng) if self.task.scheme.kind == "structures" else self._boxes(number, rng)
            verdict = Verdict(False, "unlike the training cases", 0.999) if case.id in self.refused else Verdict()
            found = tuple(self._names(finding))
            yield Prediction(case.id, self.task.scheme, finding, found, np.zeros(0), verdict=verdict, seconds=0.5)

    def _names(self, finding):
        classes = self.task.scheme.classes
        if isinstance(finding, Mask):
            return [n for n in classes if finding.segmentation.mask(n).any()]
        return [n for i, n in enumerate(classes) if (finding.boxes.classes[finding.chosen] == i).any()]

    def _mask(self, number, rng):
        scheme = PLACES["structures"]
        truth = true_place(scheme, number)
        shift = int(rng.integers(0, 1 + round(2 * self.noise)))
        label = np.roll(truth.layers, shift, axis=1)
        if number % 7 == 3:
            label = np.where(label == 2, 1, label).astype(np.uint8)  # the tumour is missed
        names = {s.name: s for s in truth.structures}
        seg = Segmentation(label, VOLUME, tuple(names.get(n, Structure(n, ())) for n in self.task.scheme.classes))
        dice = 1 - shift / 12
        doubt = (255 * (label[0] != truth.layers[0])).astype(np.uint8)
        return Mask(seg, doubt=doubt, expected_dice={"liver": dice + 0.02, "tumour": dice - 0.1})

    def _boxes(self, number, rng):
        classes = self.task.scheme.classes
        truth = true_place(PLACES["objects"], number)
        label = np.array([classes.index(PLACES["objects"].classes[c]) for c in truth.classes], dtype=int)
        moved = truth.corners + np.append(
            rng.normal(0, self.noise, (len(truth), 1, 2)), np.zeros((len(truth), 1, 1)), 2
        )
        false = np.array([[[2, 2, -0.5], [9, 9, 0.5]]] * (number % 3 == 0), dtype=float).reshape(-1, 2, 3)
        corners = np.concatenate([moved, false])
        label = np.append(label, np.zeros(len(false), dtype=int))
        scores = np.append(rng.uniform(0.4, 1.0, len(truth)), rng.uniform(0.0, 0.7, len(false)))
        order = np.argsort(-scores)
        return Detections(Boxes(corners[order], label[order]), scores[order], PICTURE, scores[order] > 0.5)


def make_places(scheme, n=24, *, patients=None, unknown=()):
    """Cases with masks or boxes; the scheme names what the data know, in its own order."""
    grid = VOLUME if scheme.kind == "structures" else PICTURE
    image = Image(np.random.default_rng(3).random((1, *grid.shape)).astype(np.float32), grid)
    cases = []
    for i in range(n):
        if scheme.kind == "structures":
            whole = true_place(PLACES["structures"], i)
            known = tuple(s for s in whole.structures if s.name in scheme.classes)
            seg = Segmentation(whole.layers, whole.grid, known, None if len(known) == 2 else 2)
            truth = SegmentationSource(lambda seg=seg: seg, structures=scheme.classes)
        else:
            whole = true_place(PLACES["objects"], i)
            names = [PLACES["objects"].classes[c] for c in whole.classes]
            kept = [k for k, name in enumerate(names) if name in scheme.classes]
            truth = Boxes(whole.corners[kept], [scheme.classes.index(names[k]) for k in kept])
        patient = f"Name^Of^Patient{i if patients is None else i % patients}"
        table = {"sex": "female" if i % 2 else "male"}
        source = {"image": ImageSource(lambda: image)}
        cases.append(Case(f"c{i}", patient, source, table, truth=None if i in unknown else truth, split="test"))
    return Dataset("phantoms", tuple(cases), scheme, columns=("sex",))


@pytest.fixture
def places():
    """The schemes of the place phantoms, a model that knows them, and data sets of them."""
    return SimpleNamespace(schemes=PLACES, oracle=PlaceOracle, dataset=make_places)
