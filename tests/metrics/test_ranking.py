"""ROC, precision-recall and DeLong, against scikit-learn, statsmodels' normal theory and sums over all pairs."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from sagittal.errors import DataError
from sagittal.metrics import ranking

SAMPLES = {
    "continuous": lambda rng, n: rng.normal(size=n),
    "ties": lambda rng, n: np.round(rng.random(n), 1),
    "few values": lambda rng, n: rng.integers(0, 3, n).astype(float),
    "constant": lambda rng, n: np.full(n, 0.5),
}


def sample(kind, n=200, seed=0):
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < 0.3).astype(float)
    return SAMPLES[kind](rng, n) + (0 if kind == "constant" else np.round(0.4 * truth, 1)), truth


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("seed", range(5))
def test_auc_and_average_precision_equal_scikit_learn(kind, seed):
    scores, truth = sample(kind, seed=seed)
    assert ranking.auc(scores, truth) == pytest.approx(sk.roc_auc_score(truth, scores), abs=1e-12)
    assert ranking.average_precision(scores, truth) == pytest.approx(
        sk.average_precision_score(truth, scores), abs=1e-12
    )


@pytest.mark.parametrize("kind", SAMPLES)
def test_weights_equal_scikit_learn_and_repeated_cases(kind):
    scores, truth = sample(kind)
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 4, size=(6, len(truth)))
    area, ap = ranking.Ranking(scores, truth).measures(counts)
    for row in range(6):
        w = counts[row]
        repeated = np.repeat(scores, w), np.repeat(truth, w)
        assert area[row] == pytest.approx(sk.roc_auc_score(truth, scores, sample_weight=w), abs=1e-9)
        assert area[row] == pytest.approx(sk.roc_auc_score(repeated[1], repeated[0]), abs=1e-9)
        assert ap[row] == pytest.approx(sk.average_precision_score(repeated[1], repeated[0]), abs=1e-9)


def test_several_scores_of_a_case_share_its_weight():
    scores, truth = sample("ties", 60)
    case = np.repeat(np.arange(20), 3)
    counts = np.random.default_rng(0).integers(0, 3, size=20)
    area, ap = ranking.Ranking(scores, truth, case).measures(counts)
    assert area == pytest.approx(sk.roc_auc_score(truth, scores, sample_weight=counts[case]), abs=1e-12)
    assert ap == pytest.approx(sk.average_precision_score(truth, scores, sample_weight=counts[case]), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30))
def test_auc_is_the_share_of_pairs_in_order(pairs):
    scores = np.array([s for s, _ in pairs], dtype=float)
    truth = np.array([t for _, t in pairs], dtype=float)
    positive, negative = scores[truth == 1], scores[truth == 0]
    area = ranking.auc(scores, truth)
    if len(positive) == 0 or len(negative) == 0:
        assert np.isnan(area)
        return
    gap = positive[:, None] - negative
    assert area == pytest.approx(np.mean((gap > 0) + 0.5 * (gap == 0)), abs=1e-12)
    assert ranking.auc(-scores, truth) == pytest.approx(1 - area, abs=1e-12)
    assert ranking.auc(scores**3, truth) == pytest.approx(area, abs=1e-12)


@pytest.mark.parametrize("truth", [[], [0.0, 0.0], [1.0, 1.0], [np.nan, np.nan]])
def test_an_absent_class_gives_nan_and_no_warning(truth):
    scores = np.linspace(0, 1, len(truth))
    assert np.isnan(ranking.auc(scores, np.array(truth)))
    estimate = ranking.delong(scores, np.array(truth))
    assert np.isnan([estimate.value, estimate.low, estimate.high]).all()
    assert estimate.n == np.isfinite(np.array(truth)).sum()


def test_average_precision_needs_positives_only():
    assert ranking.average_precision(np.array([0.2, 0.7]), np.array([1.0, 1.0])) == 1
    assert np.isnan(ranking.average_precision(np.array([0.2, 0.7]), np.zeros(2)))


def test_unknown_truth_is_left_out():
    scores, truth = sample("ties")
    hidden = truth.copy()
    hidden[::3] = np.nan
    keep = np.isfinite(hidden)
    assert ranking.auc(scores, hidden) == pytest.approx(sk.roc_auc_score(truth[keep], scores[keep]), abs=1e-12)
    assert ranking.delong(scores, hidden).n == keep.sum()


@pytest.mark.parametrize(
    ("scores", "truth", "message"),
    [
        ([0.1], [0, 1], "same length"),
        ([0.1, 0.2], [0, 2], "0, 1 or nan"),
        ([np.nan, 0.2], [0, 1], "1 scores are not numbers"),
    ],
)
def test_what_does_not_fit_is_refused(scores, truth, message):
    with pytest.raises(DataError, match=message):
        ranking.auc(np.array(scores), np.array(truth))


@pytest.mark.parametrize("kind", ["continuous", "ties", "few values"])
def test_curves_equal_scikit_learn(kind):
    scores, truth = sample(kind)
    roc = ranking.roc_points(scores, truth)
    x, y, thresholds = sk.roc_curve(truth, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc.x, x, atol=1e-12)
    np.testing.assert_allclose(roc.y, y, atol=1e-12)
    np.testing.assert_allclose(roc.thresholds, thresholds)
    precision, recall, cuts = sk.precision_recall_curve(truth, scores)
    pr = ranking.pr_points(scores, truth)
    np.testing.assert_allclose(pr.y, precision[:-1][::-1], atol=1e-12)
    np.testing.assert_allclose(pr.x, recall[:-1][::-1], atol=1e-12)
    np.testing.assert_allclose(pr.thresholds, cuts[::-1])


def all_pairs_covariance(scores, truth):
    """DeLong's covariance from its definition, over all pairs (equations 4 to 6 of the paper of 1988)."""
    positive, negative = scores[:, truth == 1], scores[:, truth == 0]
    gap = positive[:, :, None] - negative[:, None, :]
    kernel = (gap > 0) + 0.5 * (gap == 0)
    v10, v01 = kernel.mean(axis=2), kernel.mean(axis=1)
    return kernel.mean(axis=(1, 2)), np.cov(v10) / v10.shape[1] + np.cov(v01) / v01.shape[1]


@pytest.mark.parametrize("kind", ["continuous", "ties", "few values"])
def test_delong_equals_its_definition(kind):
    first, truth = sample(kind, 150, 1)
    second = first + np.round(np.random.default_rng(5).normal(size=150), 1)
    areas, covariance = ranking.delong_covariance(np.stack([first, second]), truth)
    expected = all_pairs_covariance(np.stack([first, second]), truth)
    np.testing.assert_allclose(areas, expected[0], atol=1e-12)
    np.testing.assert_allclose(covariance, expected[1], atol=1e-12)


def test_delong_interval_is_the_normal_one_of_the_logit():
    scores, truth = sample("continuous")
    areas, covariance = all_pairs_covariance(np.stack([scores, scores]), truth)
    a, se = areas[0], np.sqrt(covariance[0, 0])
    limits = stats.norm.interval(0.9, np.log(a / (1 - a)), se / (a * (1 - a)))
    estimate = ranking.delong(scores, truth, confidence=0.9)
    np.testing.assert_allclose([estimate.low, estimate.high], 1 / (1 + np.exp(-np.array(limits))), atol=1e-12)


def test_perfect_ranking_still_has_an_interval():
    truth = np.repeat([0.0, 1.0], 10)
    estimate = ranking.delong(truth, truth)
    assert estimate.value == 1
    assert estimate.high == 1
    assert 0.7 < estimate.low < 0.95  # ten against ten prove little
    larger = ranking.delong(np.repeat(truth, 10), np.repeat(truth, 10))
    assert estimate.low < larger.low < 1
    worst = ranking.delong(-truth, truth)
    assert (worst.low, worst.high) == pytest.approx((0, 1 - estimate.low))


def test_newcombe_limit_solves_its_equation():
    truth = np.repeat([0.0, 1.0], [8, 13])
    a = ranking.delong(truth, truth).low
    star = (8 + 13) / 2
    variance = a * (1 - a) * (1 + (star - 1) * ((1 - a) / (2 - a) + a / (1 + a))) / (8 * 13)
    assert 1 - a == pytest.approx(stats.norm.ppf(0.975) * np.sqrt(variance), rel=1e-9)


def test_one_case_a_patient_is_plain_delong():
    scores, truth = sample("ties")
    plain = ranking.delong(scores, truth)
    grouped = ranking.delong(scores, truth, groups=[f"p{i}" for i in range(len(truth))])
    assert (grouped.low, grouped.high) == pytest.approx((plain.low, plain.high), abs=1e-12)


def test_repeating_every_case_of_a_patient_adds_no_certainty():
    scores, truth = sample("continuous", 100)
    once = ranking.delong(scores, truth)
    thrice = ranking.delong(np.repeat(scores, 3), np.repeat(truth, 3), groups=np.repeat(np.arange(100), 3))
    naive = ranking.delong(np.repeat(scores, 3), np.repeat(truth, 3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=1e-12)
    assert naive.high - naive.low < 0.65 * (once.high - once.low)


def test_clustered_variance_equals_its_definition():
    """Obuchowski 1997, equations 3 to 6, term by term for patients with cases of both classes."""
    rng = np.random.default_rng(2)
    truth = (rng.random(90) < 0.4).astype(float)
    groups = rng.integers(0, 30, 90)
    scores = truth + rng.normal(size=30)[groups] + rng.normal(size=90)
    positive, negative = scores[truth == 1], scores[truth == 0]
    kernel = (positive[:, None] > negative).astype(float)
    area, m, n = kernel.mean(), len(positive), len(negative)
    v10, v01 = kernel.mean(axis=1), kernel.mean(axis=0)
    s10 = s01 = s11 = 0.0
    with_positive = with_negative = 0
    for g in np.unique(groups):
        a, b = v10[groups[truth == 1] == g], v01[groups[truth == 0] == g]
        da, db = a.sum() - len(a) * area, b.sum() - len(b) * area
        with_positive, with_negative = with_positive + bool(len(a)), with_negative + bool(len(b))
        s10, s01, s11 = s10 + da**2, s01 + db**2, s11 + da * db
    i = len(np.unique(groups))
    expected = (
        with_positive / ((with_positive - 1) * m) * s10 / m
        + with_negative / ((with_negative - 1) * n) * s01 / n
        + 2 * i / (i - 1) * s11 / (m * n)
    )
    assert ranking.delong_covariance(scores, truth, groups)[1][0, 0] == pytest.approx(expected, abs=1e-14)


def test_paired_test_equals_the_normal_test_of_the_difference():
    first, truth = sample("continuous", 300)
    second = first + np.random.default_rng(8).normal(size=300)
    areas, c = all_pairs_covariance(np.stack([first, second]), truth)
    z = (areas[1] - areas[0]) / np.sqrt(c[0, 0] + c[1, 1] - 2 * c[0, 1])
    paired = ranking.delong_test(first, second, truth)
    assert paired.difference.value == pytest.approx(areas[1] - areas[0], abs=1e-12)
    assert paired.p_value == pytest.approx(2 * stats.norm.cdf(-abs(z)), abs=1e-12)
    assert (paired.difference.low > 0 or paired.difference.high < 0) == (paired.p_value < 0.05)


def test_a_model_does_not_differ_from_itself():
    scores, truth = sample("ties")
    paired = ranking.delong_test(scores, 2 * scores, truth)
    assert paired.p_value == 1
    assert paired.difference.value == 0


def test_paired_test_keeps_its_level():
    """Two models of the same worth: p below 0.05 in about one of twenty worlds."""
    rng = np.random.default_rng(11)
    small = 0
    for _ in range(400):
        truth = np.repeat([0.0, 1.0], 40)
        shared = truth + rng.normal(size=80)
        small += ranking.delong_test(shared + rng.normal(size=80), shared + rng.normal(size=80), truth).p_value < 0.05
    assert stats.binomtest(small, 400, 0.05).pvalue > 0.001


def test_infinite_scores_are_ranked():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ranking.auc(np.array([-np.inf, 0.0, np.inf]), np.array([0, 0, 1])) == 1
