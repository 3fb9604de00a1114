"""Operating points do on validation cases what their names say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_curve
from statsmodels.stats.proportion import proportion_confint

from sagittal.errors import ConfigError, DataError, PackageError
from sagittal.labels import LabelScheme
from sagittal.model.operating import POINTS, OperatingPoint, all_points, choose_point, default_point

TWO = LabelScheme("binary", ("no", "yes"))
THREE = LabelScheme("multiclass", ("a", "b", "c"))
LABELS = LabelScheme("multilabel", ("x", "y"))


def scores_and_truth(count: int = 400, seed: int = 0):
    rng = np.random.default_rng(seed)
    yes = rng.random(count) < 0.3
    s = np.clip(rng.normal(0.35 + 0.25 * yes, 0.15), 0.001, 0.999)
    return np.stack([1 - s, s], axis=1), np.stack([~yes, yes], axis=1).astype(float)


def test_youden_agrees_with_the_roc_curve():
    p, y = scores_and_truth()
    point = choose_point("youden", p, y, TWO)
    fpr, tpr, _ = roc_curve(y[:, 1], p[:, 1], drop_intermediate=False)
    j = point.sensitivity[1].value + point.specificity[1].value - 1
    assert j == pytest.approx(np.max(tpr - fpr), abs=1e-12)


@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("rule", ["sensitivity", "specificity"])
def test_at_least_is_reached_and_not_by_more_than_needed(rule, wanted):
    p, y = scores_and_truth()
    point = choose_point(f"{rule}={wanted}", p, y, TWO)
    reached = (point.sensitivity if rule == "sensitivity" else point.specificity)[1].value
    assert reached >= wanted
    t = point.thresholds[1]
    # The next threshold in the direction that helps the other rate would miss what was asked for.
    mine = np.sort(p[y[:, 1] == (rule == "sensitivity"), 1])
    if rule == "sensitivity":
        worse = np.mean(mine >= np.min(mine[mine >= t]) + 1e-12)
    else:
        worse = np.mean(mine < np.max(mine[mine < t]))
    assert worse < wanted


def test_binary_thresholds_are_complementary_and_decide():
    p, y = scores_and_truth()
    for name in POINTS:
        point = choose_point(name, p, y, TWO)
        assert sum(point.thresholds) == pytest.approx(1)
        held = point.holds(p, TWO)
        np.testing.assert_array_equal(held[:, 1], p[:, 1] >= point.thresholds[1])
        np.testing.assert_array_equal(held.sum(axis=1), 1)
    assert choose_point("sensitivity=0.95", p, y, TWO).decide(np.array([0.6, 0.4]), TWO) == ("yes",)


def test_intervals_are_wilsons():
    p, y = scores_and_truth()
    point = choose_point("most-probable", p, y, TWO)
    hits, count = int(np.sum(p[y[:, 1] == 1, 1] >= 0.5)), int(y[:, 1].sum())
    low, high = proportion_confint(hits, count, method="wilson")
    found = point.sensitivity[1]
    assert (found.value, found.n) == (hits / count, count)
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=1e-9)


def test_balanced_and_youden_help_rare_classes():
    rng = np.random.default_rng(0)
    numbers = rng.choice(3, 900, p=[0.85, 0.1, 0.05])
    y = np.eye(3)[numbers]
    p = np.exp(rng.normal(0, 1, (900, 3)) + 1.2 * y + np.log([0.85, 0.1, 0.05]))
    p /= p.sum(axis=1, keepdims=True)

    def mean_recall(name: str) -> float:
        held = choose_point(name, p, y, THREE).holds(p, THREE)
        return balanced_accuracy_score(numbers, np.argmax(held, axis=1))

    assert mean_recall("balanced") > mean_recall("most-probable") + 0.1
    assert mean_recall("youden") >= mean_recall("balanced")


def test_several_labels_have_a_threshold_each():
    rng = np.random.default_rng(0)
    y = (rng.random((500, 2)) < [0.2, 0.5]).astype(float)
    p = np.clip(rng.normal(0.3 + 0.3 * y, 0.2), 0, 1)
    y[:100, 0] = np.nan
    point = choose_point("sensitivity=0.9", p, y, LABELS)
    for c in range(2):
        assert point.sensitivity[c].value >= 0.9
    assert point.sensitivity[0].n == int(np.nansum(y[:, 0]))
    high, low = point.thresholds[0] + 0.01, point.thresholds[1] - 0.01
    assert point.decide(np.array([high, low]), LABELS) == ("x",)
    assert point.decide(np.array([0.0, 0.0]), LABELS) == ()


def test_extreme_thresholds_still_decide():
    assert OperatingPoint("p", (1.0, 0.0)).decide(np.array([1.0, 0.0]), TWO) == ("yes",)
    assert OperatingPoint("p", (0.0, 1.0)).decide(np.array([0.01, 0.99]), TWO) == ("no",)


def test_default_point_takes_the_most_probable():
    for scheme, p in itertools.product([THREE], np.random.default_rng(0).dirichlet(np.ones(3), 50)):
        assert default_point(scheme).decide(p, scheme) == (scheme.classes[int(np.argmax(p))],)


def test_all_points_keep_what_can_be_chosen():
    p, y = scores_and_truth()
    assert [point.name for point in all_points(p, y, TWO, "sensitivity=0.8")] == [*POINTS, "sensitivity=0.8"]
    three = np.random.default_rng(0).dirichlet(np.ones(3), 60)
    names = [point.name for point in all_points(three, np.eye(3)[np.arange(60) % 3], THREE)]
    assert names == ["most-probable", "youden", "balanced"]


def test_a_class_without_validation_cases_does_not_stop_the_rest(caplog):
    p, y = scores_and_truth()
    y[:] = [1, 0]
    assert [point.name for point in all_points(p, y, TWO, "youden")] == ["most-probable"]
    assert "no validation case without 'no'" in caplog.text
    with pytest.raises(DataError, match="no validation case"):
        choose_point("youden", p, y, TWO)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yuoden", "Did you mean 'youden'"),
        ("sensitivity=abc", "expected a number above 0 and at most 1"),
        ("specificity=1.5", "expected a number above 0 and at most 1"),
    ],
)
def test_unknown_points_are_refused(name, message):
    p, y = scores_and_truth()
    with pytest.raises(ConfigError, match=message):
        all_points(p, y, TWO, name)


def test_sensitivity_needs_a_positive_class():
    p = np.random.default_rng(0).dirichlet(np.ones(3), 60)
    with pytest.raises(ConfigError, match="needs one positive class; 'label' has 3 that exclude each other"):
        choose_point("sensitivity=0.9", p, np.eye(3)[np.arange(60) % 3], THREE)


def test_json_both_ways():
    p, y = scores_and_truth()
    point = choose_point("youden", p, y, TWO)
    assert OperatingPoint.from_json(point.to_json()) == point
    with pytest.raises(PackageError, match="unknown key 'treshold'"):
        OperatingPoint.from_json({**point.to_json(), "treshold": 1})
    with pytest.raises(PackageError, match="finite and not negative"):
        OperatingPoint("p", (-1.0, 2.0))
