"""FROC: by hand, against LUNA16's way of computing it, laws, degenerate sets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagittal.errors import ConfigError
from sagittal.metrics.boxes import DetectionSet, gather
from sagittal.metrics.froc import RATES, Hits, cpm, froc, froc_estimates, froc_points, hits_by_centre, hits_by_iou
from sagittal.truth import Boxes

SPACING = np.array([0.7, 0.7, 2.5])


def balls(centres: Any, radius: Any) -> np.ndarray:
    """Boxes in voxels around centres in mm, with a radius in mm."""
    centres = np.asarray(centres, dtype=float).reshape(-1, 1, 3)
    reach = np.broadcast_to(np.asarray(radius, dtype=float).reshape(-1, 1, 1), (len(centres), 1, 1))
    return np.concatenate([centres - reach, centres + reach], axis=1) / SPACING


def random_scans(rng: np.random.Generator, scans: int = 8) -> tuple[DetectionSet, list[Any]]:
    """Scans with nodules, some irrelevant, and candidates; also as plain (centre, radius, irrelevant), (centre, score)."""
    pred, truth, plain = [], [], []
    for _ in range(scans):
        n, m = int(rng.integers(0, 4)), int(rng.integers(0, 12))
        centre, radius, crowd = rng.uniform(0, 60, (n, 3)), rng.uniform(2, 9, n), rng.random(n) < 0.25
        near = centre[rng.integers(0, n, m)] + rng.normal(size=(m, 3)) * 5 if n else rng.uniform(0, 60, (m, 3))
        near = np.where(rng.random((m, 1)) < 0.4, rng.uniform(0, 60, (m, 3)), near)
        score = rng.random(m).round(2)
        pred.append((Boxes(balls(near, 3.0), [0] * m), score))
        truth.append(Boxes(balls(centre, radius), [0] * n, crowd))
        plain.append((centre, radius, crowd, near, score))
    return gather(pred, truth, classes=1, spacing=np.tile(SPACING, (scans, 1))), plain


def luna(plain: list[Any], rates: Any) -> np.ndarray:
    """LUNA16's evaluation, nodule by nodule, with scikit-learn's ROC, as its script has it."""
    from sklearn.metrics import roc_curve

    labels, scores, missed, candidates = [], [], 0, 0
    for centre, radius, crowd, near, score in plain:
        free = np.ones(len(near), dtype=bool)
        for c, r, irrelevant in zip(centre, radius, crowd, strict=True):
            inside = ((near - c) ** 2).sum(axis=1) < r**2
            free &= ~inside
            if irrelevant:
                continue
            if inside.any():
                labels.append(1)
                scores.append(score[inside].max())
            else:
                missed += 1
        labels += [0] * int(free.sum())
        scores += list(score[free])
    found, candidates = sum(labels), len(labels)
    if found + missed == 0:
        return np.full(len(rates), np.nan)
    if found == candidates:
        return np.full(len(rates), found / (found + missed))
    if found == 0:
        return np.zeros(len(rates))
    fpr, tpr, _ = roc_curve(labels, scores)
    return np.interp(rates, fpr * (candidates - found) / len(plain), tpr * found / (found + missed))


def hits_of(images: int, objects: list[tuple[int, float]], false: list[tuple[int, float]]) -> Hits:
    oi, os = (np.array(column) for column in zip(*objects, strict=True)) if objects else (np.zeros(0, int), np.zeros(0))
    fi, fs = (np.array(column) for column in zip(*false, strict=True)) if false else (np.zeros(0, int), np.zeros(0))
    return Hits(images, oi, np.zeros(len(oi), int), np.ones(len(oi)), os, fi, np.zeros(len(fi), int), fs)


def test_values_are_those_of_luna16() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        boxes, plain = random_scans(rng)
        np.testing.assert_allclose(froc(hits_by_centre(boxes)), luna(plain, RATES), atol=1e-12)


def test_weights_are_the_set_with_scans_repeated() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        boxes, plain = random_scans(rng)
        draws = rng.integers(0, 3, (4, len(plain)))
        draws[0, :] = 0
        values = froc(hits_by_centre(boxes), draws.astype(float))
        assert np.isnan(values[0]).all()
        for draw, value in zip(draws[1:], values[1:], strict=True):
            np.testing.assert_allclose(value, luna([plain[n] for n in np.repeat(np.arange(len(draw)), draw)], RATES))


def test_curve_by_hand() -> None:
    """Four objects in two images: found at .9, .6 and .3, one missed; false positives at .8, .6 and .5."""
    hits = hits_of(2, [(0, 0.9), (0, 0.6), (1, 0.3), (1, -np.inf)], [(0, 0.8), (1, 0.6), (1, 0.5)])
    curve = froc_points(hits)
    assert curve.thresholds.tolist() == [np.inf, 0.9, 0.8, 0.6, 0.5, 0.3]
    assert curve.x.tolist() == [0, 0, 0.5, 1, 1.5, 1.5]
    assert curve.y.tolist() == [0, 0.25, 0.25, 0.5, 0.5, 0.75]
    assert froc(hits, rates=(0, 0.5, 0.75, 1, 1.5, 9)).tolist() == [0.25, 0.25, 0.375, 0.5, 0.75, 0.75]
    steps = froc(hits, rates=(0, 0.5, 0.75, 1, 1.5, 9), interpolate=False)
    assert steps.tolist() == [0.25, 0.25, 0.25, 0.5, 0.75, 0.75]
    assert cpm(hits) == pytest.approx((3 * 0.25 + 0.5 + 3 * 0.75) / 7)


def test_centre_inside_the_radius_and_not_at_it() -> None:
    nodule = [Boxes(balls([20, 20, 20], 4.0), [0])]
    for offset, found in (([0, 0, 3.99], True), ([0, 0, 4.0], False), ([2.9, 2.9, 0], False), ([2.8, 0, 2.8], True)):
        near = Boxes(balls(np.array([20, 20, 20]) + offset, 1.0), [0])
        hits = hits_by_centre(gather([(near, np.array([0.5]))], nodule, classes=1))
        assert np.isfinite(hits.object_score[0]) == found, offset
        assert len(hits.false_score) == (not found), offset


def test_further_candidates_of_a_nodule() -> None:
    """By centre they are no false positives; by IoU they are."""
    nodule, three = balls([20, 20, 20], 5.0), balls([[20, 20, 20], [21, 20, 20], [50, 50, 50]], 5.0)
    boxes = gather([(Boxes(three, [0, 0, 0]), np.array([0.5, 0.9, 0.7]))], [Boxes(nodule, [0])], classes=1)
    centre, iou = hits_by_centre(boxes), hits_by_iou(boxes)
    assert (centre.object_score.tolist(), centre.false_score.tolist()) == ([0.9], [0.7])
    assert iou.object_score.tolist() == [0.9]
    assert sorted(iou.false_score.tolist()) == [0.5, 0.7]


@pytest.mark.parametrize("find", [hits_by_centre, hits_by_iou])
def test_what_does_not_count_is_neither_found_nor_missed_nor_false(find: Any) -> None:
    place = balls([[20, 20, 20], [40, 40, 40]], 5.0)
    boxes = gather([(Boxes(place, [0, 0]), np.array([0.5, 0.9]))], [Boxes(place, [0, 0], [False, True])], classes=1)
    hits = find(boxes)
    assert (hits.object_score.tolist(), hits.false_score.tolist()) == ([0.5], [])
    assert cpm(hits) == 1


@pytest.mark.parametrize("find", [hits_by_centre, hits_by_iou])
def test_classes_and_sizes_apart(find: Any) -> None:
    small, large = balls([20, 20, 20], 2.0), balls([60, 60, 60], 10.0)
    truth = [Boxes(np.concatenate([small, large]), [0, 1])]
    pred = [(Boxes(np.concatenate([small, small, large]), [0, 1, 1]), np.array([0.5, 0.8, 0.7]))]
    hits = find(gather(pred, truth, classes=2, spacing=[SPACING]))
    assert hits.object_edge.tolist() == pytest.approx([4.0, 20.0])
    assert hits.of_class(0).object_score.tolist() == [0.5]
    assert (hits.of_class(1).object_score.tolist(), hits.of_class(1).false_score.tolist()) == ([0.7], [0.8])
    assert hits.of_size(0, 10).object_score.tolist() == [0.5]
    assert hits.of_size(10).object_score.tolist() == [0.7]
    assert hits.of_size(10).false_score.tolist() == [0.8]


@pytest.mark.parametrize("find", [hits_by_centre, hits_by_iou])
def test_degenerate_sets(find: Any) -> None:
    ball, none = Boxes(balls([20, 20, 20], 4.0), [0]), Boxes(np.zeros((0, 2, 3)), [])
    sure, nothing = (ball, np.array([0.9])), (none, np.zeros(0))
    cases = {
        "no objects, no predictions": ([nothing], [none], math.nan),
        "no objects": ([sure], [none], math.nan),
        "no predictions": ([nothing], [ball], 0.0),
        "found": ([sure], [ball], 1.0),
        "apart": ([(Boxes(balls([60, 60, 60], 4.0), [0]), np.array([0.9]))], [ball], 0.0),
        "degenerate object": ([sure], [Boxes(balls([20, 20, 20], 0.0), [0])], 0.0),
        "no images": ([], [], math.nan),
    }
    for name, (pred, truth, expected) in cases.items():
        np.testing.assert_array_equal(cpm(find(gather(pred, truth, classes=1))), expected, err_msg=name)
        froc_points(find(gather(pred, truth, classes=1)))


def test_wrong_rates_are_refused() -> None:
    with pytest.raises(ConfigError, match="rates are false positives an image, 0 or more"):
        froc(hits_of(1, [(0, 0.5)], []), rates=(-1,))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([hits_by_centre, hits_by_iou]))
def test_laws(seed: int, find: Any) -> None:
    rng = np.random.default_rng(seed)
    boxes, plain = random_scans(rng)
    scores = [score + rng.random(len(score)) * 1e-3 for *_, score in plain]

    def values(order: np.ndarray, inner: bool, weights: Any = None) -> np.ndarray:
        pred, truth = [], []
        for n in order:
            centre, radius, crowd, near, _ = plain[n]
            k = rng.permutation(len(near)) if inner else np.arange(len(near))
            pred.append((Boxes(balls(near[k], 3.0), [0] * len(k)), scores[n][k]))
            truth.append(Boxes(balls(centre, radius), [0] * len(centre), crowd))
        hits = find(gather(pred, truth, classes=1))
        steps = froc(hits, weights, interpolate=False)
        smooth = froc(hits, weights)
        assert np.isnan(steps).all() or (steps <= smooth + 1e-12).all()
        return smooth

    there = np.arange(len(plain))
    first = values(there, inner=False)
    np.testing.assert_allclose(values(rng.permutation(there), inner=True), first)
    np.testing.assert_allclose(values(there, inner=False, weights=np.full(len(plain), 3.0)), first)
    if np.isfinite(first).all():
        assert (np.diff(first) >= -1e-12).all()
        assert ((first >= 0) & (first <= 1)).all()
    assert boxes.images == len(plain)


def test_interval_keeps_patients_together() -> None:
    rng = np.random.default_rng(5)
    boxes, _ = random_scans(rng, scans=60)
    hits = hits_by_centre(boxes)
    found = froc_estimates(hits, [n // 2 for n in range(60)], resamples=200)
    assert list(found) == ["cpm", *(f"sensitivity_at_{r:g}" for r in RATES)]
    assert found["cpm"].value == pytest.approx(cpm(hits))
    assert found["cpm"].n == len(hits.object_score)
    assert 0 < found["cpm"].low < found["cpm"].value < found["cpm"].high < 1
