"""Brier score, log loss and calibration error, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from sagittal.errors import DataError
from sagittal.metrics import calibration


def answers(classes, n=300, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 2
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    number = np.array([rng.choice(classes, p=row) for row in p])
    return p, np.eye(classes)[number], number


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_brier_and_log_loss_equal_scikit_learn(classes):
    p, truth, number = answers(classes)
    ours = calibration.weighted_mean(calibration.brier_terms(p, truth))
    theirs = sk.brier_score_loss(number, p[:, 1]) if classes == 2 else sk.brier_score_loss(number, p)
    assert ours == pytest.approx(theirs, abs=1e-12)
    ours = calibration.weighted_mean(calibration.log_loss_terms(p, truth))
    assert ours == pytest.approx(sk.log_loss(number, p), abs=1e-12)


def test_certain_and_wrong_is_finite_as_in_scikit_learn():
    p, truth = np.array([[1.0, 0.0], [0.3, 0.7]]), np.array([[0.0, 1.0], [0.0, 1.0]])
    ours = calibration.weighted_mean(calibration.log_loss_terms(p, truth))
    assert ours == pytest.approx(sk.log_loss([1, 1], p, labels=[0, 1]), abs=1e-9)


def test_several_labels_average_over_the_known_ones():
    p, truth = np.array([[0.9, 0.2, 0.5]]), np.array([[1.0, np.nan, 0.0]])
    assert calibration.brier_terms(p, truth, exclusive=False)[0] == pytest.approx((0.01 + 0.25) / 2)
    expected = -(np.log(0.9) + np.log(0.5)) / 2
    assert calibration.log_loss_terms(p, truth, exclusive=False)[0] == pytest.approx(expected)


def plain_ece(p, happened, number):
    return sum(
        abs(p[number == b].mean() - happened[number == b].mean()) * (number == b).mean() for b in np.unique(number)
    )


@pytest.mark.parametrize("binning", ["mass", "width"])
def test_ece_equals_its_definition(binning):
    p, truth, _ = answers(2)
    p, truth = np.round(p[:, 1], 2), truth[:, 1]
    number = calibration.bin_numbers(p, binning=binning)
    assert calibration.ece(p, truth, binning=binning) == pytest.approx(plain_ece(p, truth, number), abs=1e-12)


def test_ece_by_hand():
    p = np.array([0.1, 0.1, 0.3, 0.3, 0.9, 0.9])
    happened = np.array([0, 0, 0, 1, 1, 1.0])
    assert calibration.ece(p, happened, binning="width") == pytest.approx((2 * 0.1 + 2 * 0.2 + 2 * 0.1) / 6)


def test_ece_of_resamples_equals_repeated_cases():
    p, truth, _ = answers(2, 80)
    p, truth = p[:, 1], truth[:, 1]
    number = calibration.bin_numbers(p)
    weights = np.random.default_rng(1).integers(0, 3, size=(4, 80))
    for value, w in zip(calibration.ece(p, truth, weights), weights, strict=True):
        expected = plain_ece(np.repeat(p, w), np.repeat(truth, w), np.repeat(number, w))
        assert value == pytest.approx(expected, abs=1e-12)


def test_bins_of_mass_hold_about_the_same_number_and_never_split_a_value():
    p = np.round(np.random.default_rng(0).beta(0.3, 2, 1000), 3)
    number = calibration.bin_numbers(p)
    for value in np.unique(p):
        assert len(set(number[p == value])) == 1
    fine = np.random.default_rng(0).random(1000)
    np.testing.assert_array_equal(np.bincount(calibration.bin_numbers(fine)), [100] * 10)


@pytest.mark.parametrize("seed", range(3))
def test_reliability_of_equal_widths_equals_scikit_learn(seed):
    p, truth, _ = answers(2, seed=seed)
    points = calibration.reliability(p[:, 1], truth[:, 1], binning="width")
    observed, stated = calibration_curve(truth[:, 1], p[:, 1], n_bins=10)
    np.testing.assert_allclose(points.observed, observed, atol=1e-12)
    np.testing.assert_allclose(points.stated, stated, atol=1e-12)
    assert points.n.sum() == len(p)


def test_no_cases_give_nan():
    nothing = np.zeros(0)
    assert np.isnan(calibration.ece(nothing, nothing))
    assert np.isnan(calibration.weighted_mean(nothing))
    assert len(calibration.reliability(nothing, nothing).n) == 0


def test_constant_probability_is_one_bin():
    assert calibration.ece(np.full(10, 0.3), np.r_[np.ones(3), np.zeros(7)]) == pytest.approx(0)
    assert len(calibration.reliability(np.full(10, 0.3), np.ones(10)).n) == 1


def test_no_bins_are_refused():
    with pytest.raises(DataError, match="at least one bin"):
        calibration.bin_numbers(np.ones(3), bins=0)
