"""Estimates, Wilson's interval and the bootstrap over patients."""

import math
import time

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from sagittal.errors import ConfigError, DataError
from sagittal.metrics.intervals import Estimate, bootstrap, group_codes, jackknife_weights, resample_weights, wilson
from sagittal.metrics.ranking import Ranking, delong


def mean_of(values):
    return lambda w: {"mean": w @ values / w.sum(axis=-1)}


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (37, 41), (999, 1000), (1, 1)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_equals_statsmodels(successes, n, confidence):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    expected = proportion.proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    assert wilson(successes, n, confidence=confidence) == pytest.approx(expected, abs=1e-9)


def test_wilson_of_nothing_is_nan():
    assert all(math.isnan(v) for v in wilson(0, 0))


def test_estimates_survive_json():
    for estimate in (Estimate(0.5, 0.4, 0.6, 7), Estimate(math.nan, math.nan, math.nan, 0)):
        back = Estimate.from_json(estimate.to_json())
        assert str(back) == str(estimate)
        assert back.n == estimate.n


def test_resamples_draw_whole_groups_as_many_as_there_are():
    codes, count = group_codes(["a", "b", "a", "c", "b", "a"])
    assert codes.tolist() == [0, 1, 0, 2, 1, 0]
    weights = np.concatenate(list(resample_weights(codes, count, 500, np.random.default_rng(0))))
    assert weights.shape == (500, 6)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    np.testing.assert_array_equal(weights[:, 0] + weights[:, 1] + weights[:, 3], np.full(500, 3.0))
    assert weights.mean() == pytest.approx(1, abs=0.05)


def test_jackknife_leaves_out_each_group_once():
    codes, count = group_codes(["a", "b", "a", "c"])
    weights = np.concatenate(list(jackknife_weights(codes, count, np.random.default_rng(0))))
    assert sorted(map(tuple, weights.tolist())) == [(0, 1, 0, 1), (1, 0, 1, 1), (1, 1, 1, 0)]


@pytest.mark.parametrize(("method", "theirs"), [("bca", "BCa"), ("percentile", "percentile")])
def test_interval_is_close_to_that_of_scipy(method, theirs):
    values = np.random.default_rng(0).exponential(size=60)  # skewed: percentile and BCa differ
    ours = bootstrap(mean_of(values), np.arange(60), resamples=20_000, method=method).estimates["mean"]
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method=theirs, rng=1).confidence_interval
    assert ours[0] == pytest.approx(values.mean())
    assert ours[1:] == pytest.approx((expected.low, expected.high), abs=0.012)


def test_same_seed_same_interval_and_another_seed_another():
    values = np.random.default_rng(0).normal(size=50)
    first, again, other = (bootstrap(mean_of(values), np.arange(50), seed=s).estimates["mean"] for s in (4, 4, 5))
    assert first == again
    assert first != other


def test_cases_of_one_patient_widen_the_interval():
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(40), 5)
    values = rng.normal(size=40)[patient] + 0.1 * rng.normal(size=200)
    grouped = bootstrap(mean_of(values), patient).estimates["mean"]
    naive = bootstrap(mean_of(values), np.arange(200)).estimates["mean"]
    assert grouped[2] - grouped[1] > 1.8 * (naive[2] - naive[1])


def test_undefined_resamples_are_counted_and_left_out():
    truth = np.r_[np.ones(2), np.zeros(10)]
    scores = np.arange(12.0)[::-1] + 3 * np.random.default_rng(0).normal(size=12)
    ranking = Ranking(scores, truth)
    result = bootstrap(lambda w: {"auc": ranking.measures(w)[0]}, np.arange(12), resamples=500)
    draws = result.draws["auc"]
    assert result.undefined["auc"] == np.isnan(draws).sum() > 20
    assert np.isfinite(result.estimates["auc"]).all()


def test_more_than_half_undefined_gives_no_interval():
    def measure(w):
        return {"x": np.where(w[:, 0] > 1, 1.0, np.nan) if len(w) > 1 else np.ones(1)}

    value, low, high = bootstrap(measure, np.arange(30)).estimates["x"]
    assert value == 1
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize("groups", [np.zeros(5), np.arange(5)])
def test_without_resamples_or_with_one_patient_there_is_no_interval(groups):
    resamples = 0 if len(set(groups)) > 1 else 100
    value, low, _ = bootstrap(mean_of(np.arange(5.0)), groups, resamples=resamples).estimates["mean"]
    assert value == 2
    assert math.isnan(low)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "basic"}, "unknown bootstrap method 'basic'"),
        ({"resamples": -1}, "0 or more"),
        ({"confidence": 95}, "between 0 and 1, such as 0.95, not 95"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        bootstrap(mean_of(np.ones(3)), np.arange(3), **options)


def test_no_cases_are_refused():
    with pytest.raises(DataError, match="at least one case"):
        bootstrap(mean_of(np.ones(0)), [])


def test_draws_equal_those_of_scikit_learn_on_repeated_cases():
    rng = np.random.default_rng(0)
    truth = (rng.random(50) < 0.4).astype(float)
    scores = np.round(truth + rng.normal(size=50), 1)
    ranking = Ranking(scores, truth)
    draws = bootstrap(lambda w: {"auc": ranking.measures(w)[0]}, np.arange(50), resamples=30, seed=3).draws["auc"]
    weights = np.concatenate(list(resample_weights(np.arange(50), 50, 30, np.random.default_rng([3, 0])))).astype(int)
    expected = [roc_auc_score(np.repeat(truth, w), np.repeat(scores, w)) for w in weights]
    np.testing.assert_allclose(draws, expected, atol=1e-9)


def test_bootstrap_of_auc_agrees_with_delong():
    rng = np.random.default_rng(1)
    truth = np.repeat([0.0, 1.0], 300)
    scores = truth + rng.normal(size=600)
    ranking = Ranking(scores, truth)
    _, low, high = bootstrap(lambda w: {"auc": ranking.measures(w)[0]}, np.arange(600), resamples=4000).estimates["auc"]
    theory = delong(scores, truth)
    assert (low, high) == pytest.approx((theory.low, theory.high), abs=0.004)


def test_a_thousand_resamples_of_ten_thousand_cases_take_seconds():
    rng = np.random.default_rng(0)
    truth = (rng.random(10_000) < 0.3).astype(float)
    ranking = Ranking(truth + rng.normal(size=10_000), truth)
    start = time.process_time()
    bootstrap(lambda w: {"auc": ranking.measures(w)[0]}, np.arange(10_000), resamples=1000)
    assert time.process_time() - start < 8  # about 0.5 s on a quiet core


def test_intervals_cover_as_often_as_they_say():
    """Mean of a skewed quantity with four cases a patient: the interval holds the truth in about 95 of 100 worlds."""
    rng = np.random.default_rng(7)
    patient = np.repeat(np.arange(60), 4)
    held = 0
    for _ in range(200):
        values = rng.exponential(size=60)[patient] + rng.normal(size=240)
        _, low, high = bootstrap(mean_of(values), patient, resamples=400).estimates["mean"]
        held += low <= 1 <= high
    assert 0.89 <= held / 200 <= 0.99
