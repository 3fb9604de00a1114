"""Measures of the confusion matrix, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn import metrics as sk

from sagittal.errors import DataError
from sagittal.metrics import decision


def answers(classes=2, n=150, seed=0, skill=0.6):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    pred = np.where(rng.random(n) < skill, truth, rng.integers(0, classes, n))
    return pred, truth


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("seed", range(4))
def test_measures_equal_scikit_learn(classes, seed):
    pred, truth = answers(classes, seed=seed)
    m = decision.confusion_matrix(pred, truth, classes)
    np.testing.assert_array_equal(m, sk.confusion_matrix(truth, pred, labels=range(classes)))
    close = pytest.approx
    assert decision.accuracy(m) == close(sk.accuracy_score(truth, pred), abs=1e-12)
    assert decision.balanced_accuracy(m) == close(sk.balanced_accuracy_score(truth, pred), abs=1e-12)
    assert decision.mcc(m) == close(sk.matthews_corrcoef(truth, pred), abs=1e-12)
    assert decision.kappa(m) == close(sk.cohen_kappa_score(truth, pred), abs=1e-12)
    assert decision.kappa(m, quadratic=True) == close(sk.cohen_kappa_score(truth, pred, weights="quadratic"), abs=1e-12)
    assert decision.grade_error(m) == close(sk.mean_absolute_error(truth, pred), abs=1e-12)
    for c in range(classes):
        each = {"labels": [c], "average": "macro"}
        assert decision.sensitivity(m, c) == close(sk.recall_score(truth, pred, **each), abs=1e-12)
        assert decision.ppv(m, c) == close(sk.precision_score(truth, pred, **each), abs=1e-12)
        assert decision.f1(m, c) == close(sk.f1_score(truth, pred, **each), abs=1e-12)
        other = truth != c, pred != c
        assert decision.specificity(m, c) == close(sk.recall_score(*other), abs=1e-12)
        assert decision.npv(m, c) == close(sk.precision_score(*other), abs=1e-12)


def test_a_stack_of_matrices_is_measured_like_each():
    pred, truth = answers(4)
    weights = np.random.default_rng(1).integers(0, 3, size=(5, len(truth)))
    stack = decision.confusion_matrix(pred, truth, 4, weights)
    functions = (decision.accuracy, decision.balanced_accuracy, decision.mcc, decision.kappa, decision.f1, decision.npv)
    for function in functions:
        rows = [function(decision.confusion_matrix(np.repeat(pred, w), np.repeat(truth, w), 4)) for w in weights]
        np.testing.assert_allclose(function(stack), rows, atol=1e-12)


def test_by_hand():
    m = np.array([[50.0, 10.0], [5.0, 35.0]])
    assert decision.sensitivity(m) == 35 / 40
    assert decision.specificity(m) == 50 / 60
    assert decision.ppv(m) == 35 / 45
    assert decision.npv(m) == 50 / 55
    assert decision.f1(m) == pytest.approx(70 / 85)


def test_predictive_values_at_the_cases_own_prevalence_are_the_plain_ones():
    m = np.array([[50.0, 10.0], [5.0, 35.0]])
    pair = decision.sensitivity(m), decision.specificity(m)
    assert decision.ppv_at(*pair, 0.4) == pytest.approx(decision.ppv(m), abs=1e-12)
    assert decision.npv_at(*pair, 0.4) == pytest.approx(decision.npv(m), abs=1e-12)
    assert decision.ppv_at(*pair, 0.01) < 0.06


def test_unknown_and_undecided_are_left_out():
    m = decision.confusion_matrix(np.array([0, -1, 1, 1]), np.array([0, 1, -1, 1]), 2)
    np.testing.assert_array_equal(m, np.eye(2))


@pytest.mark.parametrize(
    ("matrix", "undefined"),
    [
        (np.zeros((2, 2)), {"accuracy", "balanced", "mcc", "kappa", "f1", "sensitivity", "specificity", "ppv", "npv"}),
        (np.array([[9.0, 0], [0, 0]]), {"mcc", "kappa", "f1", "sensitivity", "ppv"}),
        (np.array([[0.0, 0], [0, 9]]), {"mcc", "kappa", "specificity", "npv"}),
        (np.array([[6.0, 0], [3, 0]]), {"ppv"}),
        (np.array([[6.0, 2], [1, 3]]), set()),
    ],
    ids=["empty", "negatives only", "positives only", "one answer", "ordinary"],
)
def test_what_has_no_denominator_is_nan(matrix, undefined):
    values = {
        "accuracy": decision.accuracy(matrix),
        "balanced": decision.balanced_accuracy(matrix),
        "mcc": decision.mcc(matrix),
        "kappa": decision.kappa(matrix),
        "f1": decision.f1(matrix),
        "sensitivity": decision.sensitivity(matrix),
        "specificity": decision.specificity(matrix),
        "ppv": decision.ppv(matrix),
        "npv": decision.npv(matrix),
    }
    assert {name for name, value in values.items() if np.isnan(value)} == undefined


def test_one_answer_for_everything_has_no_correlation():
    assert decision.mcc(np.array([[6.0, 0], [3, 0]])) == 0
    assert decision.kappa(np.array([[6.0, 0], [3, 0]])) == 0


@pytest.mark.parametrize(
    ("pred", "truth", "message"), [([0], [0, 1], "same length"), ([0, 5], [0, 1], "below 2, found 5")]
)
def test_what_does_not_fit_is_refused(pred, truth, message):
    with pytest.raises(DataError, match=message):
        decision.confusion_matrix(np.array(pred), np.array(truth), 2)
