"""Calibration finds the truth where it is known, and never does harm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from sagittal.errors import DataError, PackageError
from sagittal.labels import LabelScheme
from sagittal.model.calibrate import METHODS, Calibration, fit_calibration, link_of, log_loss, to_probabilities

FOUR = LabelScheme("multiclass", ("a", "b", "c", "d"))
TWO = LabelScheme("binary", ("no", "yes"))
LABELS = LabelScheme("multilabel", ("x", "y", "z"))


def four_classes(count: int, temperature: float, offsets: tuple[float, ...] = (0, 0, 0, 0), seed: int = 0):
    """Logits of a network that is over-confident by a known temperature, and truths drawn from the right ones."""
    rng = np.random.default_rng(seed)
    right = rng.normal(0, 1.5, (count, 4))
    p = softmax(right + np.array(offsets), axis=1)
    numbers = np.array([rng.choice(4, p=row) for row in p])
    return right * temperature, np.eye(4)[numbers]


def two_classes(count: int, slope: float, offset: float, seed: int = 0):
    """Logits whose difference d means the probability expit(slope d + offset)."""
    rng = np.random.default_rng(seed)
    d = rng.normal(0, 3, count)
    yes = rng.random(count) < expit(slope * d + offset)
    shared = rng.normal(0, 5, count)  # common to both logits: means nothing
    return np.stack([shared - d / 2, shared + d / 2], axis=1), np.stack([~yes, yes], axis=1).astype(float)


def test_temperature_is_recovered():
    logits, truth = four_classes(20_000, 3.0)
    found = fit_calibration(logits, truth, scheme=FOUR, method="temperature")
    assert found.method == "temperature"
    np.testing.assert_allclose(found.scale, 1 / 3, rtol=0.03)
    np.testing.assert_array_equal(found.bias, 0)


def test_platt_scaling_agrees_with_logistic_regression():
    logits, truth = two_classes(20_000, 0.4, -1.2)
    found = fit_calibration(logits, truth, scheme=TWO, method="vector")
    peer = LogisticRegression(C=np.inf).fit(logits[:, 1:] - logits[:, :1], truth[:, 1])
    np.testing.assert_allclose(found.scale, peer.coef_[0], rtol=5e-3)
    np.testing.assert_allclose(found.bias, peer.intercept_, rtol=5e-3)
    np.testing.assert_allclose([found.scale[0], found.bias[0]], [0.4, -1.2], rtol=0.06)


def test_vector_scaling_recovers_a_shift_of_class_frequencies():
    logits, truth = four_classes(20_000, 2.0, offsets=(0.0, 1.0, -1.0, 0.5))
    found = fit_calibration(logits, truth, scheme=FOUR, method="vector")
    p = to_probabilities(found.apply(logits), "softmax")
    np.testing.assert_allclose(p.mean(axis=0), truth.mean(axis=0), atol=2e-3)
    # The best possible log loss is that of the probabilities the truths were drawn from.
    best = log_loss(logits / 2 + np.array([0.0, 1.0, -1.0, 0.5]), truth, "softmax")
    assert best - 1e-3 < found.loss_after < best + 2e-3 < found.loss_before


def test_isotonic_agrees_with_scikit_learn():
    logits, truth = two_classes(2_000, 0.7, 0.5)
    found = fit_calibration(logits, truth, scheme=TWO, method="isotonic")
    d = logits[:, 1] - logits[:, 0]
    peer = IsotonicRegression().fit(d, truth[:, 1]).predict(d)
    least = 0.5 / 2001
    ours = to_probabilities(found.apply(logits), "softmax")[:, 1]
    np.testing.assert_allclose(ours, np.clip(peer, least, 1 - least), atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", [TWO, FOUR, LABELS], ids=lambda s: s.kind)
def test_no_method_raises_the_log_loss_of_validation(method, scheme):
    rng = np.random.default_rng(5)
    classes = len(scheme.classes)
    logits = rng.normal(0, 4, (400, classes))
    numbers = rng.integers(0, classes, 400)
    truth = np.eye(classes)[numbers] if scheme.exclusive else (rng.random((400, classes)) < 0.3).astype(float)
    found = fit_calibration(logits, truth, scheme=scheme, method=method)
    link = link_of(scheme)
    assert log_loss(found.apply(logits), truth, link) <= log_loss(logits, truth, link) + 1e-12
    assert found.method == method


@pytest.mark.parametrize("method", ["temperature", "vector", "isotonic"])
def test_calibration_lowers_the_log_loss_of_new_cases(method):
    logits, truth = four_classes(1_000, 3.0, offsets=(0, 0.7, -0.7, 0))
    fresh, answers = four_classes(5_000, 3.0, offsets=(0, 0.7, -0.7, 0), seed=1)
    found = fit_calibration(logits, truth, scheme=FOUR, method=method)
    assert log_loss(found.apply(fresh), answers, "softmax") < 0.75 * log_loss(fresh, answers, "softmax")


def test_labels_are_calibrated_each_for_itself():
    rng = np.random.default_rng(0)
    right = rng.normal(0, 2, (8_000, 3))
    truth = (rng.random(right.shape) < expit(right)).astype(float)
    logits = right * np.array([4.0, 4.0, 2.0]) + np.array([0.0, 2.0, -1.0])
    found = fit_calibration(logits, truth, scheme=LABELS, method="vector")
    p = to_probabilities(found.apply(logits), "sigmoid")
    np.testing.assert_allclose(p.mean(axis=0), truth.mean(axis=0), atol=3e-3)
    np.testing.assert_allclose(found.scale, [0.25, 0.25, 0.5], rtol=0.08)


def test_unknown_truth_plays_no_part():
    logits, truth = four_classes(500, 2.0)
    hidden = truth.copy()
    hidden[::3] = np.nan
    keep = np.isfinite(hidden[:, 0])
    with_gaps = fit_calibration(logits, hidden, scheme=FOUR)
    without = fit_calibration(logits[keep], truth[keep], scheme=FOUR)
    np.testing.assert_allclose(with_gaps.scale, without.scale, rtol=1e-6)
    assert with_gaps.cases == int(keep.sum())

    labels = np.random.default_rng(1).random((500, 3)).round()
    labels[::2, 0] = np.nan  # of one label only
    found = fit_calibration(logits[:, :3], labels, scheme=LABELS)
    assert np.all(np.isfinite(found.scale))


def test_few_cases_take_a_simpler_method_and_say_so():
    logits, truth = four_classes(60, 2.0)
    found = fit_calibration(logits, truth, scheme=FOUR, method="isotonic")
    assert found.method in ("vector", "temperature")
    assert "60 validation cases are too few for isotonic" in found.why

    rare = np.zeros((60, 4))
    rare[np.arange(60), np.arange(60) % 3] = 1
    rare[0] = [0, 0, 0, 1]
    found = fit_calibration(logits, rare, scheme=FOUR, method="vector")
    assert found.method in ("temperature", "none")
    assert found.method == "none" or "fewer than 5" in found.why

    found = fit_calibration(logits[:4], truth[:4], scheme=FOUR, method="vector")
    assert found.method == "none"
    assert "4 validation cases" in found.why
    np.testing.assert_array_equal(found.apply(logits), logits)


def test_small_validation_sets_do_not_lead_to_wild_scales():
    # Perfectly separated: without a prior the scale of the best fit is infinite.
    logits = np.concatenate([np.tile([[3.0, -3.0]], (30, 1)), np.tile([[-3.0, 3.0]], (30, 1))])
    truth = np.repeat(np.eye(2), 30, axis=0)
    found = fit_calibration(logits, truth, scheme=TWO)
    assert 1 <= found.scale[0] < 20


@settings(max_examples=50, deadline=None)
@given(
    method=st.sampled_from(["temperature", "vector", "isotonic"]),
    at=st.lists(st.floats(-20, 20), min_size=2, max_size=2),
    more=st.floats(0.01, 10),
)
def test_a_higher_logit_never_means_a_lower_probability(method, at, more):
    found = _FITTED[method]
    low = to_probabilities(found.apply(np.array(at)), "softmax")[1]
    high = to_probabilities(found.apply(np.array([at[0], at[1] + more])), "softmax")[1]
    assert high >= low


_FITTED = {
    m: fit_calibration(*two_classes(300, 0.5, 0.3), scheme=TWO, method=m) for m in ("temperature", "vector", "isotonic")
}


@pytest.mark.parametrize("method", ["none", "temperature", "vector", "isotonic"])
def test_json_gives_the_same_numbers_back(method):
    logits, truth = four_classes(300, 2.0)
    found = fit_calibration(logits, truth, scheme=FOUR, method=method)
    again = Calibration.from_json(found.to_json())
    np.testing.assert_array_equal(again.apply(logits), found.apply(logits))
    assert again.to_json() == found.to_json()


def test_one_case_gets_the_same_as_a_batch():
    logits, truth = four_classes(300, 2.0)
    for method in METHODS:
        found = fit_calibration(logits, truth, scheme=FOUR, method=method)
        np.testing.assert_allclose(found.apply(logits[7]), found.apply(logits)[7], rtol=1e-12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "vectr"}, "Did you mean 'vector'"),
        ({"mehtod": "none"}, "unknown key 'mehtod'. Did you mean 'method'"),
        ({"method": "vector", "scale": [-1.0], "bias": [0.0]}, "finite and positive"),
        ({"method": "vector", "scale": ["x"], "bias": [0.0]}, "wrong type"),
        ({"method": "vector", "scale": [1.0], "bias": []}, "1 scales and 0 offsets"),
        ({"method": "temperature"}, "needs a scale"),
        ({"method": "isotonic", "knots": [[[0, 1], [1, 0]]]}, "never fall"),
        ({"method": "isotonic"}, "needs knots"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(PackageError, match=message):
        Calibration.from_json(values)


def test_what_does_not_fit_is_refused():
    logits, truth = four_classes(50, 1.0)
    with pytest.raises(DataError, match="do not fit 2 classes"):
        fit_calibration(logits, truth, scheme=TWO)
    logits[3, 1] = np.inf
    with pytest.raises(DataError, match="not finite"):
        fit_calibration(logits, truth, scheme=FOUR)
    with pytest.raises(DataError, match="for 4 outputs, these logits have 3"):
        Calibration("vector", scale=(1.0,) * 4, bias=(0.0,) * 4).apply(np.zeros((2, 3)))
