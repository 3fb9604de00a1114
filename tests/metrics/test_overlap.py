"""Overlap and volume: values by hand, laws, degenerate masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sagittal.errors import GeometryError, MaskError
from sagittal.metrics.overlap import cldice, dice, iou, overlap, precision, sensitivity, volume_error, volume_ml

PAIRS = arrays(bool, st.tuples(st.just(2), *[st.integers(1, 5)] * 3))


def test_values_by_hand() -> None:
    pred, truth = np.zeros((2, 4, 5, 6), dtype=bool)
    pred[0, :2], truth[0, 1:4] = True, True  # 12 and 18 voxels, 6 in common
    assert dice(pred, truth) == pytest.approx(12 / 30)
    assert iou(pred, truth) == pytest.approx(6 / 24)
    assert sensitivity(pred, truth) == pytest.approx(6 / 18)
    assert precision(pred, truth) == pytest.approx(6 / 12)


def test_values_are_those_of_scikit_learn() -> None:
    from sklearn import metrics

    rng = np.random.default_rng(0)
    for _ in range(20):
        pred, truth = rng.random((2, 4, 5, 6)) < rng.uniform(0.1, 0.9, (2, 1, 1, 1))
        flat = truth.ravel(), pred.ravel()
        assert dice(pred, truth) == pytest.approx(metrics.f1_score(*flat))
        assert iou(pred, truth) == pytest.approx(metrics.jaccard_score(*flat))
        assert sensitivity(pred, truth) == pytest.approx(metrics.recall_score(*flat))
        assert precision(pred, truth) == pytest.approx(metrics.precision_score(*flat))


@pytest.mark.parametrize(
    ("pred", "truth", "expected"),
    [  # dice, iou, sensitivity, precision; None is nan
        ([0, 0, 0], [0, 0, 0], (None, None, None, None)),
        ([0, 0, 0], [1, 1, 0], (0, 0, 0, None)),
        ([1, 0, 0], [0, 0, 0], (0, 0, None, 0)),
        ([1, 0, 1], [1, 0, 1], (1, 1, 1, 1)),
        ([1, 0, 0], [0, 0, 1], (0, 0, 0, 0)),
    ],
    ids=["both empty", "no prediction", "no truth", "equal", "apart"],
)
def test_degenerate_masks(pred: list[int], truth: list[int], expected: tuple[float | None, ...]) -> None:
    masks = np.array([pred], dtype=bool), np.array([truth], dtype=bool)
    got = [measure(*masks) for measure in (dice, iou, sensitivity, precision)]
    assert [None if math.isnan(value) else value for value in got] == list(expected)


@given(PAIRS)
def test_laws(pair: np.ndarray) -> None:
    pred, truth = pair
    counts = overlap(pred, truth)
    assert dice(pred, truth) == pytest.approx(dice(truth, pred), nan_ok=True)
    assert sensitivity(pred, truth) == pytest.approx(precision(truth, pred), nan_ok=True)
    assert overlap(pred[::-1], truth[::-1]) == counts
    assert overlap(pred.transpose(2, 0, 1), truth.transpose(2, 0, 1)) == counts
    assert counts.iou == pytest.approx(counts.dice / (2 - counts.dice), nan_ok=True)
    assert overlap(pred[:1], truth[:1]) + overlap(pred[1:], truth[1:]) == counts
    if pred.any():
        assert dice(pred, pred) == 1


def test_volume_of_a_block_in_anisotropic_voxels() -> None:
    pred, truth = np.zeros((2, 20, 20, 10), dtype=bool)
    pred[2:12, 3:13, 1:5], truth[2:12, 3:13, 4:9] = True, True  # 400 and 500 voxels of 2.45 mm^3
    spacing = (0.7, 0.7, 5.0)
    error = volume_error(pred, truth, spacing)
    assert volume_ml(truth, spacing) == pytest.approx(500 * 2.45 / 1000)
    assert error.ml == pytest.approx(-100 * 2.45 / 1000)
    assert error.absolute_ml == pytest.approx(0.245)
    assert error.relative == pytest.approx(-0.2)
    assert error.absolute_relative == pytest.approx(0.2)


def test_volume_error_without_truth_or_answer() -> None:
    empty, full = np.zeros((4, 4, 4), dtype=bool), np.ones((4, 4, 4), dtype=bool)
    assert math.isnan(volume_error(full, empty, (1, 1, 1)).relative)
    assert volume_error(full, empty, (1, 1, 1)).ml == pytest.approx(0.064)
    assert volume_error(empty, full, (1, 1, 1)).relative == -1
    assert volume_error(empty, empty, (1, 1, 1)).ml == 0


def test_a_picture_without_thickness_has_no_volume() -> None:
    with pytest.raises(GeometryError, match=r"one length for each of 3 axes, not \(2,\)"):
        volume_ml(np.ones((4, 4), dtype=bool), (1, 1))
    with pytest.raises(GeometryError, match="needs a spacing in mm, and the image has none"):
        volume_ml(np.ones((4, 4, 1), dtype=bool), None)


def test_masks_of_different_shape_are_refused() -> None:
    with pytest.raises(MaskError, match=r"pred \(2, 2\) and truth \(2, 3\) differ in shape"):
        dice(np.ones((2, 2), dtype=bool), np.ones((2, 3), dtype=bool))


# -- clDice


def test_cldice_asks_for_the_line_and_not_for_the_width() -> None:
    pytest.importorskip("skimage")
    thin, thick = np.zeros((2, 40, 40), dtype=bool)
    thin[19:20, 5:35] = True
    thick[17:22, 7:33] = True
    assert cldice(thin, thick) > 0.85  # but for the corners that the skeleton of a thick bar reaches into
    assert dice(thin, thick) < 0.4
    broken = thin.copy()
    broken[:, 15:25] = False
    assert cldice(broken, thin) == pytest.approx(2 * 1 * (20 / 30) / (1 + 20 / 30))


@pytest.mark.parametrize("shape", [(30, 30), (30, 30, 1), (20, 20, 20)])
def test_cldice_of_tubes(shape: tuple[int, ...]) -> None:
    pytest.importorskip("skimage")
    tube = np.zeros(shape, dtype=bool)
    tube[8:11, 2:18] = True
    if len(shape) == 3 and shape[2] > 1:
        tube[:, :, :8] = tube[:, :, 12:] = False
    apart = np.roll(tube, 7, axis=0)
    assert cldice(tube, tube) == 1
    assert cldice(tube, apart) == 0
    assert cldice(tube, np.zeros_like(tube)) == 0
    assert cldice(np.zeros_like(tube), tube) == 0
    assert math.isnan(cldice(np.zeros_like(tube), np.zeros_like(tube)))
    half = tube.copy()
    half[:, 10:] = False
    assert cldice(half, tube) == pytest.approx(cldice(tube, half))
    assert 0.5 < cldice(half, tube) < 0.8
