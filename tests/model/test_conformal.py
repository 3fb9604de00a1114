"""Conformal sets cover as often as they say, whatever the network is worth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from sagittal.errors import ConfigError, PackageError
from sagittal.labels import LabelScheme
from sagittal.model.conformal import Conformal, fit_conformal

SHARES = np.array([0.6, 0.3, 0.1])
THREE = LabelScheme("multiclass", ("a", "b", "c"))


def population(count: int, rng: np.random.Generator, skill: float = 1.5, scale: float = 4.0):
    """Logits of an over-confident and biased network, and the truth."""
    numbers = rng.choice(3, count, p=SHARES)
    logits = rng.normal(0, 1, (count, 3)) + skill * np.eye(3)[numbers] + np.array([1.0, 0.0, -0.5])
    return scale * logits, numbers


@pytest.mark.parametrize("skill", [0.0, 1.5, 4.0])
@pytest.mark.parametrize("confidence", [0.8, 0.9])
def test_coverage_is_the_confidence_in_each_class(skill, confidence):
    rng = np.random.default_rng(0)
    covered = np.zeros(3)
    trials = 60
    for _ in range(trials):
        logits, numbers = population(1_000, rng, skill)
        sets = fit_conformal(logits, np.eye(3)[numbers], scheme=THREE, confidence=confidence)
        fresh, truth = population(4_000, rng, skill)
        inside = sets.contains(fresh, THREE)
        covered += [np.mean(inside[truth == c, c]) for c in range(3)]
    # The guarantee is on the mean over calibration sets; at most 1 / (n + 1) more where no score ties.
    assert np.all(covered / trials > confidence - 0.01)
    if skill == 0.0:  # a skilled network covers more, because its sets would be empty and are not
        assert np.all(covered / trials < confidence + 0.02)


def test_a_rare_class_is_covered_as_often_as_a_frequent_one():
    rng = np.random.default_rng(1)
    logits, numbers = population(2_000, rng)
    sets = fit_conformal(logits, np.eye(3)[numbers], scheme=THREE)
    assert sets.own == (True, True, True)
    together = Conformal(
        0.9, (sorted(1 - softmax(logits, axis=1)[np.arange(2_000), numbers])[1800],) * 3, (2_000,) * 3, (False,) * 3
    )
    fresh, truth = population(20_000, rng)
    rare = truth == 2
    assert np.mean(together.contains(fresh, THREE)[rare, 2]) < 0.87  # what one threshold for all would do
    assert np.mean(sets.contains(fresh, THREE)[rare, 2]) > 0.87


def test_better_networks_give_smaller_sets():
    rng = np.random.default_rng(2)
    sizes = []
    for skill in (0.0, 1.0, 2.0, 4.0):
        logits, numbers = population(2_000, rng, skill)
        sets = fit_conformal(logits, np.eye(3)[numbers], scheme=THREE)
        fresh, _ = population(5_000, rng, skill)
        sizes.append(np.mean(np.sum(sets.contains(fresh, THREE), axis=1)))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2.5
    assert sizes[-1] < 1.1


def test_sets_are_never_empty_and_grades_have_no_gaps():
    rng = np.random.default_rng(3)
    tight = Conformal(0.9, (0.0, 0.0, 0.0), (100,) * 3, (True,) * 3)
    inside = tight.contains(rng.normal(0, 1, (200, 3)), THREE)
    np.testing.assert_array_equal(inside.sum(axis=1), 1)
    grades = LabelScheme("ordinal", ("none", "mild", "severe"))
    ends = np.log([[0.45, 0.05, 0.5]])
    loose = Conformal(0.9, (0.6, 0.6, 0.6), (100,) * 3, (True,) * 3)
    assert loose.contains(ends, THREE).tolist() == [[True, False, True]]
    assert loose.contains(ends, grades).tolist() == [[True, True, True]]


def test_labels_are_missed_no_more_often_than_stated():
    scheme = LabelScheme("multilabel", ("x", "y"))
    rng = np.random.default_rng(4)

    def draw(count: int):
        y = (rng.random((count, 2)) < [0.3, 0.1]).astype(float)
        return rng.normal(3 * y - 1, 1.5), y

    covered = np.zeros(2)
    for _ in range(40):
        logits, y = draw(1_000)
        y[::7, 0] = np.nan
        sets = fit_conformal(logits, y, scheme=scheme)
        fresh, truth = draw(4_000)
        inside = sets.contains(fresh, scheme)
        covered += [np.mean(inside[truth[:, c] == 1, c]) for c in range(2)]
    np.testing.assert_allclose(covered / 40, 0.9, atol=0.02)


def test_too_few_cases():
    logits, numbers = population(60, np.random.default_rng(5))
    sets = fit_conformal(logits, np.eye(3)[numbers], scheme=THREE)
    assert sets.own[0]
    assert not sets.own[2]
    assert sets.cases[2] == 60
    assert fit_conformal(logits[:15], np.eye(3)[numbers[:15]], scheme=THREE) is None
    assert fit_conformal(logits, np.eye(3)[numbers], scheme=THREE, confidence=0.99) is None


def test_json_both_ways_and_bad_values():
    logits, numbers = population(300, np.random.default_rng(6))
    sets = fit_conformal(logits, np.eye(3)[numbers], scheme=THREE)
    assert Conformal.from_json(sets.to_json()) == sets
    with pytest.raises(PackageError, match="unknown key 'treshold'"):
        Conformal.from_json({**sets.to_json(), "treshold": 1})
    with pytest.raises(PackageError, match="between 0 and 1"):
        Conformal(1.5, (0.1,), (1,), (True,))
    with pytest.raises(ConfigError, match=r"decide.confidence: expected a number between 0 and 1, found 1.0"):
        fit_conformal(logits, np.eye(3)[numbers], scheme=THREE, confidence=1.0)
