"""Lesion-wise measures: by hand, against a plain rewriting of the definitions, laws, degenerate masks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from sagittal.errors import ConfigError, MaskError
from sagittal.metrics.lesions import components, find_lesions


def place(shape: tuple[int, ...], *boxes: tuple[tuple[int, int], ...]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    for box in boxes:
        mask[tuple(slice(a, b) for a, b in box)] = True
    return mask


def spots(rng: np.random.Generator) -> np.ndarray:
    return np.asarray(ndimage.gaussian_filter(rng.normal(size=(14, 15, 12)), 1.0) > rng.uniform(0.2, 0.35))


def test_a_found_a_missed_and_a_false_one() -> None:
    shape = (20, 20, 8)
    truth = place(shape, ((1, 5), (1, 5), (1, 3)), ((12, 14), (12, 14), (4, 6)))  # 32 and 8 voxels
    pred = place(shape, ((1, 5), (1, 4), (1, 3)), ((8, 9), (2, 3), (6, 7)))  # 24 of the 32, and a stray one
    lesions = find_lesions(pred, truth)
    assert lesions.voxels.tolist() == [32, 8]
    assert (lesions.true_positives, lesions.false_negatives, lesions.false_positives) == (1, 1, 1)
    assert lesions.sensitivity == lesions.precision == lesions.f1 == 0.5
    assert lesions.dice.tolist() == pytest.approx([48 / 56, 0])
    assert lesions.lesion_dice == pytest.approx(48 / 56 / 3)
    assert lesions.panoptic_quality == pytest.approx(0.75 / 2)
    assert find_lesions(pred, truth, min_iou=0.75).true_positives == 1
    assert find_lesions(pred, truth, min_iou=0.76).true_positives == 0
    assert len(lesions.of_size(10)) == 1
    assert lesions.of_size(10).sensitivity == 1
    assert lesions.of_size(0, 10).sensitivity == 0


def test_a_lesion_in_two_pieces() -> None:
    truth = place((12, 12), ((2, 4), (1, 11)))
    pred = place((12, 12), ((2, 4), (1, 5)), ((2, 4), (6, 11)))  # 8 and 10 of 20 pixels
    pairs = find_lesions(pred, truth)
    assert (pairs.true_positives, pairs.false_positives) == (1, 1)
    assert pairs.dice[0] == pytest.approx(20 / 30)
    groups = find_lesions(pred, truth, rule="groups")
    assert (groups.true_positives, groups.false_positives, groups.precision) == (1, 0, 1)
    assert groups.dice[0] == pytest.approx(36 / 38)


def test_one_answer_over_two_lesions() -> None:
    truth = place((12, 12), ((2, 4), (1, 5)), ((2, 4), (6, 11)))
    pred = place((12, 12), ((2, 4), (1, 11)))
    pairs = find_lesions(pred, truth)
    assert pairs.found.tolist() == [False, True]  # the larger IoU: 10 of 20, not 8 of 20
    assert (pairs.false_positives, pairs.f1) == (0, 2 / 3)
    groups = find_lesions(pred, truth, rule="groups")
    assert groups.found.tolist() == [True, True]
    merged = find_lesions(pred, truth, rule="groups", dilation=1)
    assert merged.voxels.tolist() == [18]
    assert merged.dice[0] == pytest.approx(36 / 38)


def test_best_choice_is_that_of_all_pairs_together() -> None:
    """The single best pair would leave the other lesion without an answer."""
    truth = place((3, 40), ((1, 2), (0, 10)), ((1, 2), (11, 31)))
    pred = place((3, 40), ((1, 2), (0, 4)), ((1, 2), (5, 16)))
    # The second answer has 5 / 16 with the first lesion and 5 / 26 with the second; the first has 4 / 10 with the first.
    lesions = find_lesions(pred, truth, min_iou=0.1)
    assert lesions.iou.tolist() == pytest.approx([4 / 10, 5 / 26])
    pred[1, :4] = False
    pred[1, 0] = True  # now 1 / 10, and 1 / 10 + 5 / 26 is less than 5 / 16 alone
    lesions = find_lesions(pred, truth, min_iou=0.1)
    assert lesions.iou.tolist() == pytest.approx([5 / 16, 0])
    pred[1, 16:31] = True  # the second answer now has 5 / 36 with the first lesion and 20 / 26 with the second
    assert find_lesions(pred, truth, min_iou=0.1).iou.tolist() == pytest.approx([1 / 10, 20 / 26])


def test_widening_reaches_a_near_answer() -> None:
    truth = place((20, 20, 5), ((2, 4), (2, 4), (2, 3)))
    near = place((20, 20, 5), ((5, 7), (2, 4), (2, 3)))
    assert find_lesions(near, truth, rule="groups").true_positives == 0
    widened = find_lesions(near, truth, rule="groups", dilation=2)
    assert (widened.true_positives, widened.false_positives, widened.lesion_dice) == (1, 0, 0)


@pytest.mark.parametrize("rule", ["pairs", "groups"])
@pytest.mark.parametrize("shape", [(6, 7, 5), (6, 7, 1), (6, 7)])
def test_degenerate_masks(rule: Any, shape: tuple[int, ...]) -> None:
    empty, full = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    names = ("sensitivity", "precision", "f1", "lesion_dice", "panoptic_quality")
    expected = {
        "both empty": (empty, empty, [math.nan] * 5),
        "no prediction": (empty, full, [0, math.nan, 0, 0, 0]),
        "no truth": (full, empty, [math.nan, 0, 0, 0, 0]),
        "equal": (full, full, [1, 1, 1, 1, 1]),
    }
    for case, (pred, truth, values) in expected.items():
        for dilation in (0, 1) if rule == "groups" else (0,):
            lesions = find_lesions(pred, truth, rule=rule, dilation=dilation)
            np.testing.assert_array_equal([getattr(lesions, name) for name in names], values, err_msg=case)


def test_neighbours_join_as_told() -> None:
    corner = np.zeros((4, 4, 4), dtype=bool)
    corner[0, 0, 0] = corner[1, 1, 1] = corner[2, 2, 1] = True
    assert [components(corner, n)[1] for n in (6, 18, 26)] == [3, 2, 1]
    assert components(corner)[1] == 1
    flat = np.eye(4, dtype=bool)
    assert [components(flat, n)[1] for n in (4, 8)] == [4, 1]
    assert components(flat[:, :, None])[1] == 1


def test_wrong_options_are_refused() -> None:
    mask = np.ones((3, 3, 3), dtype=bool)
    with pytest.raises(ConfigError, match="a voxel of a volume has 6 or 18 or 26 neighbours, not 8"):
        find_lesions(mask, mask, connectivity=8)
    with pytest.raises(ConfigError, match="unknown rule 'pair'. Did you mean 'pairs'"):
        find_lesions(mask, mask, rule="pair")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="min_iou lies above 0 and up to 1, not 0"):
        find_lesions(mask, mask, min_iou=0)
    with pytest.raises(ConfigError, match="dilation is a number of voxels for rule 'groups'"):
        find_lesions(mask, mask, dilation=2)
    with pytest.raises(MaskError, match="truth is int64"):
        find_lesions(mask, mask.astype(np.int64))


def plain_groups(pred: np.ndarray, truth: np.ndarray, dilation: int) -> tuple[list[float], int]:
    """The definition of the challenge, lesion by lesion over whole volumes."""
    cube, near = np.ones((3, 3, 3)), ndimage.generate_binary_structure(3, 2)
    wide = ndimage.binary_dilation(truth, near, iterations=dilation) if dilation else truth
    lesions = ndimage.label(wide, cube)[0] * truth
    answers, count = ndimage.label(pred, cube)
    dices, used = [], set()
    for number in range(1, lesions.max() + 1):
        lesion = lesions == number
        reach = ndimage.binary_dilation(lesion, near, iterations=dilation) if dilation else lesion
        touched = set(np.unique(answers[reach])) - {0}
        used |= touched
        answer = np.isin(answers, list(touched))
        dices.append(2 * (answer & lesion).sum() / (answer.sum() + lesion.sum()) if touched else 0.0)
    return dices, count - len(used)


@pytest.mark.parametrize("dilation", [0, 1, 3])
def test_groups_are_those_of_the_definition(dilation: int) -> None:
    rng = np.random.default_rng(dilation)
    for _ in range(12):
        pred, truth = spots(rng), spots(rng)
        lesions = find_lesions(pred, truth, rule="groups", dilation=dilation)
        dices, false = plain_groups(pred, truth, dilation)
        assert lesions.dice.tolist() == pytest.approx(dices)
        assert lesions.false_positives == false
        assert lesions.lesion_dice == pytest.approx(sum(dices) / (len(dices) + false))


def test_pairs_are_the_best_of_all_assignments() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        pred, truth = rng.random((2, 7, 7)) < 0.45
        lesions = find_lesions(pred, truth, min_iou=0.1, connectivity=4)
        (a, n), (b, m) = components(truth, 4), components(pred, 4)
        iou = np.array([[((a == i) & (b == j)).sum() / ((a == i) | (b == j)).sum() for j in range(1, m + 1)] for i in range(1, n + 1)])  # fmt: skip
        iou = np.where(iou >= 0.1, iou, 0)
        short, long = sorted(iou.shape)
        if long > 7:
            continue
        wide = iou if iou.shape[0] == short else iou.T
        best = max(sum(wide[r, c] for r, c in enumerate(p)) for p in itertools.permutations(range(long), short))
        assert lesions.iou.sum() == pytest.approx(best)


@settings(max_examples=40, deadline=None)
@given(arrays(bool, st.tuples(st.just(2), *[st.integers(1, 6)] * 3)), st.sampled_from(["pairs", "groups"]))
def test_laws(pair: np.ndarray, rule: Any) -> None:
    pred, truth = pair
    lesions = find_lesions(pred, truth, rule=rule)
    turned = find_lesions(pred[::-1, ::-1], truth[::-1, ::-1], rule=rule)
    for name in ("sensitivity", "precision", "f1", "lesion_dice"):
        assert getattr(turned, name) == pytest.approx(getattr(lesions, name), nan_ok=True)
    assert lesions.voxels.sum() == truth.sum()
    assert lesions.true_positives + lesions.false_negatives == components(truth)[1]
    assert 0 <= lesions.false_positives <= lesions.predicted == components(pred)[1]
    assert ((lesions.dice > 0) == lesions.found).all()
    if rule == "pairs":
        back = find_lesions(truth, pred)
        assert back.f1 == pytest.approx(lesions.f1, nan_ok=True)
    twice = lesions + lesions
    assert twice.f1 == pytest.approx(lesions.f1, nan_ok=True)
    assert len(twice) == 2 * len(lesions)
