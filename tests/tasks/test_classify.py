"""Classification: target, loss, quick scores, decoding, rows and measures of each kind of question."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit, softmax
from sklearn import metrics as sk

from sagittal.case import Case, ImageSource
from sagittal.errors import ConfigError, DataError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import ClassScores, LabelScheme
from sagittal.metrics.intervals import wilson
from sagittal.metrics.ranking import delong
from sagittal.prediction import Prediction, Verdict
from sagittal.prepare.plan import Plan, TrainPlan
from sagittal.tasks.classify import Classify, class_weights, grade_targets
from sagittal.tasks.registry import TASKS, make_task

GRID = Grid((4, 5, 1))
SCHEMES = {
    "binary": LabelScheme("binary", ("benign", "malignant")),
    "multiclass": LabelScheme("multiclass", ("a", "b", "c")),
    "ordinal": LabelScheme("ordinal", ("0", "1", "2", "3")),
    "multilabel": LabelScheme("multilabel", ("effusion", "nodule", "mass")),
}


def case(scheme, *names, unknown=False, number=0, patient=None, image=None):
    truth = scheme.unknown() if unknown else scheme.truth(*names)
    images = {"image": ImageSource(lambda: image)} if image is not None else {}
    return Case(f"c{number}", patient or f"p{number}", images, truth=truth)


def answer(scheme, probability, decision=None, *, number=0, accepted=True):
    p = np.asarray(probability, dtype=float)
    if decision is None:
        decision = (
            (scheme.classes[int(p.argmax())],)
            if scheme.exclusive
            else tuple(n for n, v in zip(scheme.classes, p, strict=True) if v > 0.5)
        )
    verdict = Verdict() if accepted else Verdict(False, "unlike", 0.999)
    return Prediction(f"c{number}", scheme, ClassScores(p), decision, np.log(p + 1e-9), verdict=verdict)


def rows_of(kind, n=120, seed=0, patients=None, skill=2.0):
    """Rows of n cases as score() makes them, and their truth and probability."""
    scheme, rng = SCHEMES[kind], np.random.default_rng(seed)
    c = len(scheme.classes)
    task = Classify(scheme)
    rows, truths, ps = [], [], []
    for i in range(n):
        if scheme.exclusive:
            t = np.eye(c)[rng.choice(c, p=np.arange(c, 0, -1) / np.arange(1, c + 1).sum())]
        else:
            t = (rng.random(c) < [0.5, 0.3, 0.2]).astype(float)
        logits = skill * (t - 0.5) + rng.normal(size=c)
        p = softmax(logits) if scheme.exclusive else expit(logits)
        names = [name for name, v in zip(scheme.classes, t, strict=True) if v]
        patient = None if patients is None else f"p{i % patients}"
        rows.append(task.score(answer(scheme, p, number=i), case(scheme, *names, number=i, patient=patient)))
        truths.append(t)
        ps.append(p)
    return pd.DataFrame(rows), np.array(truths), np.array(ps)


def summarise(kind, rows, **options):
    given = {"resamples": 60, "seed": 0, "confidence": 0.95, **options}
    return Classify(SCHEMES[kind]).summarise(rows, **given)


# --- target and loss


@pytest.mark.parametrize("kind", SCHEMES)
def test_target_is_one_hot_or_unknown(kind):
    scheme = SCHEMES[kind]
    task = Classify(scheme)
    target = task.target(case(scheme, scheme.classes[1]))
    assert target.dtype == np.float32
    np.testing.assert_array_equal(target, np.eye(len(scheme.classes))[1])
    assert np.isnan(task.target(case(scheme, unknown=True))).all()
    assert np.isnan(task.target(Case("x", "x", {}))).all()
    assert task.head.outputs == len(scheme.classes)


def test_a_truth_of_other_classes_is_refused():
    with pytest.raises(DataError, match="case x: the truth has 3 classes, 'label' has 2"):
        Classify(SCHEMES["binary"]).target(Case("x", "x", {}, truth=ClassScores(np.zeros(3))))


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_loss_is_cross_entropy_of_torch(kind):
    c = len(SCHEMES[kind].classes)
    logits, number = torch.randn(20, c, generator=torch.manual_seed(0)), torch.arange(20) % c
    target = torch.nn.functional.one_hot(number, c).float()
    for smoothing in (0.0, 0.1):
        expected = torch.nn.functional.cross_entropy(logits, number, label_smoothing=smoothing)
        assert Classify(SCHEMES[kind], label_smoothing=smoothing).loss(logits, target) == pytest.approx(
            expected.item(), abs=1e-6
        )


def test_mixed_targets_mix_the_loss():
    task = Classify(SCHEMES["multiclass"], class_weights=np.array([0.5, 1.0, 2.0]))
    logits = torch.randn(6, 3, generator=torch.manual_seed(1))
    first, second = torch.eye(3)[[0, 1, 2, 0, 1, 2]], torch.eye(3)[[2, 2, 0, 1, 1, 0]]
    expected = -(torch.log_softmax(logits, 1) * (0.7 * first + 0.3 * second)).sum(1)
    weight = (0.7 * first + 0.3 * second) @ torch.tensor([0.5, 1.0, 2.0])
    assert task.loss(logits, 0.7 * first + 0.3 * second) == pytest.approx((expected * weight).mean().item(), abs=1e-6)


def test_multilabel_loss_is_binary_cross_entropy_of_the_known_labels():
    task = Classify(SCHEMES["multilabel"])
    logits = torch.randn(8, 3, generator=torch.manual_seed(2))
    target = (torch.rand(8, 3, generator=torch.manual_seed(3)) > 0.5).float()
    known = torch.rand(8, 3, generator=torch.manual_seed(4)) > 0.3
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], target[known])
    assert task.loss(logits, torch.where(known, target, torch.nan)) == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("kind", SCHEMES)
def test_unknown_truth_gives_no_loss_and_no_gradient(kind):
    c = len(SCHEMES[kind].classes)
    task = Classify(SCHEMES[kind])
    logits = torch.randn(5, c, requires_grad=True, generator=torch.manual_seed(0))
    target = torch.eye(c)[torch.arange(5) % c]
    target[2:] = torch.nan
    loss = task.loss(logits, target)
    assert loss.item() == pytest.approx(task.loss(logits[:2], target[:2]).item(), abs=1e-6)
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[2:] == 0).all()
    assert (logits.grad[:2] != 0).any()
    assert task.loss(logits, torch.full_like(target, torch.nan)).item() == 0


@pytest.mark.parametrize("kind", SCHEMES)
def test_training_learns_the_target(kind):
    scheme = SCHEMES[kind]
    c = len(scheme.classes)
    task = Classify(scheme)
    target = torch.eye(c)
    logits = torch.zeros(c, c, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(80):
        optimizer.zero_grad()
        task.loss(logits, target).backward()
        optimizer.step()
    p = task.probabilities(logits.detach().numpy())
    np.testing.assert_array_equal(p.argmax(axis=1), np.arange(c))
    assert np.diag(p).min() > 0.7


def test_a_far_grade_costs_more_than_a_near_one():
    task = Classify(SCHEMES["ordinal"])
    target = torch.eye(4)[[0]]
    losses = [task.loss(6 * torch.eye(4)[[k]], target).item() for k in range(4)]
    assert losses == sorted(losses)
    # Cross-entropy alone cannot tell them apart.
    plain = [torch.nn.functional.cross_entropy(6 * torch.eye(4)[[k]], torch.tensor([0])).item() for k in (1, 2, 3)]
    assert plain[0] == pytest.approx(plain[2])


def test_grade_targets_sum_to_one_and_keep_their_grade():
    table = grade_targets(5)
    np.testing.assert_allclose(table.sum(axis=1), 1)
    np.testing.assert_array_equal(table.argmax(axis=1), np.arange(5))
    np.testing.assert_allclose(table, table[::-1, ::-1])


def test_weights_balance_the_classes():
    scheme = SCHEMES["multiclass"]
    targets = np.repeat(np.eye(3), [60, 30, 10], axis=0)
    targets = np.r_[targets, np.full((5, 3), np.nan)]
    balanced, root = (class_weights(scheme, targets, k) for k in ("balanced", "sqrt"))
    np.testing.assert_allclose(balanced, 100 / (3 * np.array([60, 30, 10])))
    np.testing.assert_allclose(root**2 / root[0] ** 2, balanced / balanced[0])
    for weights in (balanced, root):
        assert (weights * [60, 30, 10]).sum() == pytest.approx(100)
    assert class_weights(scheme, targets, "none") is None


def test_weights_of_labels_balance_each_label():
    targets = np.array([[1, 0, np.nan]] * 2 + [[0, 0, 1]] * 8, dtype=float)
    weights = class_weights(SCHEMES["multilabel"], targets, "balanced")
    np.testing.assert_allclose(weights, [[10 / 16, 1, 1], [10 / 4, 1, 1]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, not 1.0"),
        ({"class_weights": np.ones(3)}, r"class weights must be \(2,\)"),
        ({"class_weights": np.array([1, np.nan])}, "class weights must be"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Classify(SCHEMES["binary"], **options)


def test_unknown_kind_of_weights_is_refused():
    with pytest.raises(ConfigError, match="unknown kind of class weights 'inverse'"):
        class_weights(SCHEMES["binary"], np.eye(2), "inverse")


# --- monitor and decode


@pytest.mark.parametrize("kind", ["binary", "multiclass", "ordinal"])
def test_monitor_equals_scikit_learn(kind):
    scheme = SCHEMES[kind]
    c = len(scheme.classes)
    rng = np.random.default_rng(0)
    number = rng.integers(0, c, 90)
    logits = rng.normal(size=(90, c)) + 1.5 * np.eye(c)[number]
    target = np.eye(c)[number]
    target[::10] = np.nan
    keep = np.isfinite(target[:, 0])
    scores = Classify(scheme).monitor(logits.astype(np.float32), target.astype(np.float32))
    p = softmax(logits[keep].astype(np.float32).astype(float), axis=1)
    area = sk.roc_auc_score(number[keep], p[:, 1]) if c == 2 else sk.roc_auc_score(number[keep], p, multi_class="ovr")
    assert next(iter(scores)) == "auc"
    assert scores["auc"] == pytest.approx(area, abs=1e-9)
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(number[keep], p.argmax(1)), abs=1e-9)
    assert scores["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(number[keep], p.argmax(1)), abs=1e-9)


def test_monitor_of_labels_equals_scikit_learn():
    rng = np.random.default_rng(0)
    target = (rng.random((80, 3)) < 0.4).astype(float)
    logits = rng.normal(size=(80, 3)) + target
    scores = Classify(SCHEMES["multilabel"]).monitor(logits, target)
    assert scores["auc"] == pytest.approx(sk.roc_auc_score(target, logits), abs=1e-9)
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(target.ravel(), logits.ravel() > 0), abs=1e-9)


@pytest.mark.parametrize("kind", SCHEMES)
def test_monitor_without_known_cases_is_nan_and_silent(kind):
    c = len(SCHEMES[kind].classes)
    scores = Classify(SCHEMES[kind]).monitor(np.zeros((4, c)), np.full((4, c), np.nan))
    assert all(math.isnan(v) for v in scores.values())


@pytest.mark.parametrize("kind", SCHEMES)
def test_decode_gives_probabilities_without_overflow(kind):
    scheme = SCHEMES[kind]
    c = len(scheme.classes)
    logits = np.random.default_rng(0).normal(size=c)
    expected = softmax(logits) if scheme.exclusive else expit(logits)
    np.testing.assert_allclose(Classify(scheme).decode(logits, GRID).values, expected, atol=1e-12)
    extreme = Classify(scheme).decode(np.linspace(-2000, 2000, c), GRID).values
    assert np.isfinite(extreme).all()


# --- rows


def test_row_of_a_binary_case():
    scheme = SCHEMES["binary"]
    row = Classify(scheme).score(answer(scheme, [0.3, 0.7]), case(scheme, "malignant"))
    assert row["case"] == "c0"
    assert row["patient"] == "p0"
    assert (row["truth"], row["decision"], row["correct"]) == ("malignant", "malignant", True)
    assert (row["p_benign"], row["p_malignant"]) == (0.3, 0.7)
    assert row["log_loss"] == pytest.approx(-np.log(0.7))
    assert row["brier"] == pytest.approx(0.09)


def test_unknown_truth_is_missing_not_negative():
    scheme = SCHEMES["binary"]
    row = Classify(scheme).score(answer(scheme, [0.3, 0.7]), case(scheme, unknown=True))
    assert row["truth"] is None
    assert row["correct"] is None
    assert math.isnan(row["log_loss"])


def test_an_abstention_is_neither_right_nor_wrong():
    scheme = SCHEMES["binary"]
    row = Classify(scheme).score(answer(scheme, [0.3, 0.7], (), accepted=False), case(scheme, "malignant"))
    assert (row["decision"], row["correct"], row["accepted"], row["reason"]) == (None, None, False, "unlike")


def test_row_of_labels_with_one_unknown():
    scheme = SCHEMES["multilabel"]
    truth = ClassScores(np.array([1, np.nan, 0.0]))
    row = Classify(scheme).score(answer(scheme, [0.9, 0.8, 0.1]), Case("c0", "p0", {}, truth=truth))
    assert (row["truth"], row["decision"], row["correct"]) == ("effusion", "effusion, nodule", True)
    assert math.isnan(row["truth_nodule"])
    assert (row["decision_nodule"], row["truth_mass"]) == (1, 0)
    nothing = Classify(scheme).score(answer(scheme, [0.1, 0.1, 0.1]), case(scheme))
    assert (nothing["truth"], nothing["decision"], nothing["correct"]) == ("", "", True)
    refused = Classify(scheme).score(answer(scheme, [0.1, 0.1, 0.1], accepted=False), case(scheme))
    assert refused["decision"] is None
    assert math.isnan(refused["decision_mass"])


# --- measures


def test_binary_measures_equal_scikit_learn():
    rows, truth, p = rows_of("binary")
    y, d = truth[:, 1], p.argmax(axis=1)
    found = summarise("binary", rows, prevalence=0.1).overall
    sensitivity, specificity = sk.recall_score(y, d), sk.recall_score(1 - y, 1 - d)
    expected = {
        "auc": sk.roc_auc_score(y, p[:, 1]),
        "average_precision": sk.average_precision_score(y, p[:, 1]),
        "accuracy": sk.accuracy_score(y, d),
        "balanced_accuracy": sk.balanced_accuracy_score(y, d),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": sk.precision_score(y, d),
        "npv": sk.precision_score(1 - y, 1 - d),
        "f1": sk.f1_score(y, d),
        "mcc": sk.matthews_corrcoef(y, d),
        "kappa": sk.cohen_kappa_score(y, d),
        "brier": sk.brier_score_loss(y, p[:, 1]),
        "log_loss": sk.log_loss(y, p[:, 1]),
        "ppv_at_prevalence": sensitivity * 0.1 / (sensitivity * 0.1 + (1 - specificity) * 0.9),
        "npv_at_prevalence": specificity * 0.9 / (specificity * 0.9 + (1 - sensitivity) * 0.1),
    }
    assert set(expected) | {"ece"} == {name for name in found if not name.startswith("baseline.")}
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-9), name
        assert found[name].low <= found[name].value <= found[name].high, name
    share = y.mean()
    assert found["baseline.accuracy"].value == pytest.approx(max(share, 1 - share))
    assert found["baseline.brier"].value == pytest.approx(share * (1 - share))
    assert found["baseline.average_precision"].value == pytest.approx(share)
    assert (found["baseline.auc"].value, found["baseline.auc"].low) == (0.5, 0.5)
    beside = {name.removeprefix("baseline.") for name in found if name.startswith("baseline.")}
    assert beside == {name for name in found if not name.startswith("baseline.")}  # beside every score


@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
def test_measures_of_many_classes_equal_scikit_learn(kind):
    rows, truth, p = rows_of(kind)
    y, d = truth.argmax(axis=1), p.argmax(axis=1)
    summary = summarise(kind, rows)
    zero = {"average": "macro", "zero_division": np.nan}
    expected = {
        "auc": sk.roc_auc_score(y, p, multi_class="ovr"),
        "auc_micro": sk.roc_auc_score(truth, p, average="micro"),
        "average_precision": sk.average_precision_score(truth, p),
        "average_precision_micro": sk.average_precision_score(truth, p, average="micro"),
        "accuracy": sk.accuracy_score(y, d),
        "balanced_accuracy": sk.balanced_accuracy_score(y, d),
        "sensitivity": sk.recall_score(y, d, **zero),
        "ppv": sk.precision_score(y, d, **zero),
        "f1": sk.f1_score(y, d, **zero),
        "f1_micro": sk.f1_score(y, d, average="micro"),
        "mcc": sk.matthews_corrcoef(y, d),
        "kappa": sk.cohen_kappa_score(y, d),
        "brier": sk.brier_score_loss(y, p),
        "log_loss": sk.log_loss(y, p),
    }
    if kind == "ordinal":
        expected |= {
            "quadratic_kappa": sk.cohen_kappa_score(y, d, weights="quadratic"),
            "grade_error": sk.mean_absolute_error(y, d),
        }
    for name, value in expected.items():
        assert summary.overall[name].value == pytest.approx(value, abs=1e-9), name
    for c, name in enumerate(SCHEMES[kind].classes):
        values = summary.classes[name]
        assert values["auc"].value == pytest.approx(sk.roc_auc_score(y == c, p[:, c]), abs=1e-9)
        assert values["sensitivity"].value == pytest.approx(sk.recall_score(y == c, d == c), abs=1e-9)
        assert values["sensitivity"].n == (y == c).sum()
        assert values["prevalence"].value == pytest.approx((y == c).mean())


def test_measures_of_labels_equal_scikit_learn_also_with_unknown_ones():
    rows, truth, p = rows_of("multilabel")
    d = p > 0.5
    found = summarise("multilabel", rows).overall
    expected = {
        "auc": sk.roc_auc_score(truth, p),
        "auc_micro": sk.roc_auc_score(truth, p, average="micro"),
        "average_precision": sk.average_precision_score(truth, p),
        "f1": sk.f1_score(truth, d, average="macro"),
        "f1_micro": sk.f1_score(truth, d, average="micro"),
        "accuracy": 1 - sk.hamming_loss(truth, d),
        "exact_match": sk.accuracy_score(truth, d),
        "sensitivity_micro": sk.recall_score(truth, d, average="micro"),
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-9), name
    assert found["accuracy"].n == truth.size
    hidden = rows.copy()
    hidden.loc[::4, "truth_nodule"] = np.nan
    keep = np.arange(len(rows)) % 4 != 0
    values = summarise("multilabel", hidden).classes["nodule"]
    assert values["auc"].value == pytest.approx(sk.roc_auc_score(truth[keep, 1], p[keep, 1]), abs=1e-9)
    assert values["auc"].n == keep.sum()


def test_intervals_of_single_cases_are_those_of_wilson_and_delong():
    rows, truth, p = rows_of("binary")
    found = summarise("binary", rows).overall
    y, d = truth[:, 1], p.argmax(axis=1)
    assert (found["accuracy"].low, found["accuracy"].high) == pytest.approx(wilson((y == d).sum(), len(y)))
    assert (found["sensitivity"].low, found["sensitivity"].high) == pytest.approx(wilson(d[y == 1].sum(), y.sum()))
    assert found["auc"] == delong(p[:, 1], y)


def test_several_cases_of_a_patient_widen_the_intervals():
    rows, _, _ = rows_of("binary", 40)
    single, threefold = rows, pd.concat([rows.assign(case=rows["case"] + f"-{k}") for k in range(3)])
    once, thrice = (summarise("binary", r, resamples=1000).overall for r in (single, threefold))
    assert thrice["auc"].low == pytest.approx(once["auc"].low)
    for name in ("accuracy", "sensitivity", "brier", "mcc"):
        width, naive = thrice[name].high - thrice[name].low, once[name].high - once[name].low
        assert width == pytest.approx(naive, rel=0.25), name


@pytest.mark.parametrize("patients", [None, 12])
def test_no_errors_at_all_are_still_uncertain(patients):
    rows, _, _ = rows_of("binary", 36, patients=patients, skill=60)
    found = summarise("binary", rows).overall
    assert found["accuracy"].value == found["accuracy"].high == found["auc"].value == 1
    assert 0.7 < found["accuracy"].low < 0.95
    assert 0.6 < found["auc"].low < 1
    assert math.isnan(found["mcc"].low)  # resampling cannot say
    if patients:
        assert found["accuracy"].low == pytest.approx(wilson(12, 12)[0])


@pytest.mark.parametrize("kind", SCHEMES)
def test_one_class_only_gives_nan_where_both_are_needed(kind):
    rows, _, _ = rows_of(kind, 30)
    scheme = SCHEMES[kind]
    if scheme.exclusive:
        rows["truth"] = scheme.classes[0]
    else:
        for name in scheme.classes:
            rows[f"truth_{name}"] = 0.0
    found = summarise(kind, rows)
    assert math.isnan(found.overall["auc"].value)
    assert math.isfinite(found.overall["accuracy"].value)
    assert set(found.classes) == set(scheme.classes)


@pytest.mark.parametrize("kind", SCHEMES)
def test_no_known_truth_gives_nan_and_zero_cases(kind):
    rows, _, _ = rows_of(kind, 10)
    rows["truth"] = None
    for name in SCHEMES[kind].classes:
        if f"truth_{name}" in rows:
            rows[f"truth_{name}"] = np.nan
    found = summarise(kind, rows)
    assert all(math.isnan(e.value) and e.n == 0 for e in found.overall.values())
    assert "accuracy" in found.overall


@pytest.mark.parametrize("kind", SCHEMES)
def test_one_case_is_measured_without_a_warning(kind):
    rows, _, _ = rows_of(kind, 1)
    assert summarise(kind, rows).overall["accuracy"].n in (1, 3)


def test_refused_studies_are_counted_and_not_hidden():
    rows, _, _ = rows_of("binary", 50)
    plain = summarise("binary", rows).overall
    rows.loc[:9, "accepted"] = False
    found = summarise("binary", rows).overall
    assert found["accepted"].value == pytest.approx(0.8)
    assert found["accuracy_of_accepted"].n == 40
    assert found["accuracy"] == plain["accuracy"]


def test_same_seed_same_intervals():
    rows, _, _ = rows_of("multiclass", 60)
    assert summarise("multiclass", rows).overall == summarise("multiclass", rows).overall


@pytest.mark.parametrize("prevalence", [0, 1, 5])
def test_impossible_prevalence_is_refused(prevalence):
    with pytest.raises(ConfigError, match=f"between 0 and 1, such as 0.02, not {prevalence}"):
        summarise("binary", rows_of("binary", 5)[0], prevalence=prevalence)


def test_rows_of_other_classes_are_refused():
    rows, _, _ = rows_of("binary", 5)
    with pytest.raises(DataError, match="lack the columns"):
        summarise("multiclass", rows)
    rows.loc[2, "truth"] = "bening"
    with pytest.raises(DataError, match="row 2: 'bening' is not a class"):
        summarise("binary", rows)


# --- picture and registry


@pytest.mark.parametrize("shape", [(1, 28, 20, 1), (3, 64, 48, 1), (1, 30, 24, 10), (2, 300, 260, 1)])
def test_figure_shows_image_and_answer(shape):
    scheme = SCHEMES["binary"]
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    affine = np.diag([1.0, 1, 3, 1]) if shape[3] > 1 else None
    image = Image(data, Grid(shape[1:], affine=affine))
    with_image = case(scheme, "malignant", image=image)
    figure = Classify(scheme).figure(answer(scheme, [0.4, 0.6]), with_image)
    assert figure.dtype == np.uint8
    assert figure.shape[2] == 3
    assert min(figure.shape[:2]) >= 60
    caption = figure[-20:]
    assert (caption == 255).any()
    assert (caption < 100).any()
    other = Classify(scheme).figure(answer(scheme, [0.7, 0.3]), with_image)
    assert (figure != other).any()


def test_registry_makes_the_task_that_the_plan_names():
    plan = Plan(SCHEMES["binary"], train=TrainPlan(label_smoothing=0.05, class_weights="balanced"))
    targets = np.repeat(np.eye(2), [3, 1], axis=0)
    task = make_task(plan, targets)
    assert isinstance(task, Classify)
    assert task.label_smoothing == 0.05
    np.testing.assert_allclose(task.class_weights, [2 / 3, 2])
    assert TASKS["classify"](plan).class_weights is None
    with pytest.raises(ConfigError, match=r"unknown task 'clasify'. Did you mean 'classify'\?"):
        make_task(Plan(SCHEMES["binary"], task="clasify"))
