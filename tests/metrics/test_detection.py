"""Average precision: equal to pycocotools on random sets and on drawn ones, by hand, laws, degenerate sets."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagittal.errors import ConfigError, DataError, GeometryError
from sagittal.metrics import boxes as boxes_module
from sagittal.metrics import detection
from sagittal.metrics.boxes import DetectionSet, box_iou, box_volume, gather
from sagittal.metrics.detection import (
    COCO_IOU,
    IOU,
    ap_estimates,
    ap_measures,
    average_precision,
    class_mean,
    coco_summary,
    match,
    recall,
)
from sagittal.truth import Boxes

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")  # fmt: skip

Lists = tuple[list[tuple[Boxes, np.ndarray]], list[Boxes], list[np.ndarray]]


def corners(xywh: np.ndarray) -> np.ndarray:
    """COCO's x, y, w, h as corners of voxel indices."""
    xywh = np.asarray(xywh, dtype=float).reshape(-1, 4)
    low = np.column_stack([xywh[:, :2] - 0.5, np.full(len(xywh), -0.5)])
    return np.stack([low, low + np.column_stack([xywh[:, 2:], np.ones(len(xywh))])], axis=1)


def random_lists(rng: np.random.Generator, *, whole: bool = True, most: int = 8) -> Lists:
    """Predictions near the truth and elsewhere, of few different scores; crowds; images with none; equal overlaps."""
    images, classes = int(rng.integers(1, 6)), 3
    pred, truth, areas = [], [], []
    side = rng.choice([20, 60, 200])
    for _ in range(images):
        n = int(rng.integers(0, most))
        xywh = np.column_stack([rng.uniform(0, side, (n, 2)), rng.uniform(1, side, (n, 2))])
        near = np.repeat(xywh, rng.integers(0, 4, n), axis=0)
        near = near + rng.normal(size=near.shape) * side / 25
        near[:, 2:] = np.maximum(near[:, 2:], 1)
        m = int(rng.integers(0, 4))
        stray = np.column_stack([rng.uniform(0, side, (m, 2)), rng.uniform(1, side, (m, 2))])
        found = np.concatenate([near, stray])
        if whole:
            xywh, found = np.maximum(np.round(xywh), (0, 0, 1, 1)), np.maximum(np.round(found), (0, 0, 1, 1))
        # In half of the sets many scores are equal.
        scores = rng.random(len(found)).round(1 if rng.random() < 0.5 else 6)
        pred.append((Boxes(corners(found), rng.integers(0, classes, len(found))), scores))
        truth.append(Boxes(corners(xywh), rng.integers(0, classes, n), rng.random(n) < 0.15))
        areas.append(xywh[:, 2] * xywh[:, 3] * rng.uniform(0.5, 1, n))  # as the area of an outline
    return pred, truth, areas


def spread(pred: list[tuple[Boxes, np.ndarray]], rng: np.random.Generator) -> None:
    """Make all scores different: equal ones keep the order in which they come."""
    for n, (boxes, scores) in enumerate(pred):
        pred[n] = boxes, scores + rng.random(len(scores)) * 1e-3


def coco(lists: Lists, iou: Any = None, max_dets: Any = None) -> Any:
    """The same set, evaluated by pycocotools."""
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    pred, truth, areas = lists
    annotations, results = [], []
    for image, (boxes, area) in enumerate(zip(truth, areas, strict=True)):
        for box, label, crowd, size in zip(boxes.corners, boxes.classes, boxes.crowd, area, strict=True):  # type: ignore[arg-type]
            xywh = [*(box[0, :2] + 0.5), *(box[1, :2] - box[0, :2])]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image + 1,
                    "category_id": int(label) + 1,
                    "bbox": [float(v) for v in xywh],
                    "area": float(size),
                    "iscrowd": int(crowd),
                }
            )
    for image, (boxes, scores) in enumerate(pred):
        for box, label, score in zip(boxes.corners, boxes.classes, scores, strict=True):
            xywh = [*(box[0, :2] + 0.5), *(box[1, :2] - box[0, :2])]
            results.append(
                {
                    "image_id": image + 1,
                    "category_id": int(label) + 1,
                    "bbox": [float(v) for v in xywh],
                    "score": float(score),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {
            "images": [{"id": n + 1} for n in range(len(truth))],
            "categories": [{"id": n + 1} for n in range(3)],
            "annotations": annotations,
        }
        known.createIndex()
        if not results:
            return None
        evaluation = COCOeval(known, known.loadRes(results), "bbox")
        if iou is not None:
            evaluation.params.iouThrs = np.asarray(iou)
        if max_dets is not None:
            evaluation.params.maxDets = max_dets
        evaluation.evaluate()
        evaluation.accumulate()
        if iou is None and max_dets is None:
            evaluation.summarize()
    return evaluation


def collect(lists: Lists) -> DetectionSet:
    return gather(lists[0], lists[1], classes=3, area=lists[2])


def theirs(values: np.ndarray) -> np.ndarray:
    """Their mean over recalls, with nan for the -1 of a class without objects."""
    return np.where((values > -1).all(axis=1), values.mean(axis=1), np.nan)


# -- equal to pycocotools


@pytest.mark.parametrize("whole", [True, False], ids=["whole pixels", "any place"])
def test_the_twelve_numbers_are_those_of_pycocotools(whole: bool) -> None:
    rng = np.random.default_rng(int(whole))
    compared = 0
    for _ in range(60):
        lists = random_lists(rng, whole=whole)
        evaluation = coco(lists)
        if evaluation is None:
            continue
        ours = coco_summary(collect(lists))
        expected = np.where(evaluation.stats == -1, np.nan, evaluation.stats)
        np.testing.assert_allclose([ours[name] for name in NAMES], expected, rtol=0, atol=1e-12)
        compared += 1
    assert compared > 50


def test_each_class_and_threshold_is_that_of_pycocotools() -> None:
    rng = np.random.default_rng(7)
    for _ in range(40):
        lists = random_lists(rng)
        evaluation = coco(lists, IOU, [1, 3, 5])
        if evaluation is None:
            continue
        matches = match(collect(lists), iou=IOU, max_dets=5, area=(0, 1e10))
        precision = evaluation.eval["precision"][:, :, :, 0, 2]
        np.testing.assert_allclose(average_precision(matches), theirs(precision), rtol=0, atol=1e-12)
        recalls = evaluation.eval["recall"][:, :, 0, 1]
        np.testing.assert_allclose(recall(matches, max_dets=3), np.where(recalls < 0, np.nan, recalls), atol=1e-12)


def test_crowded_images_and_the_limit_of_predictions() -> None:
    """More than a hundred predictions of a class in an image, many near the same objects."""
    rng = np.random.default_rng(8)
    for _ in range(3):
        n = 40
        xywh = np.column_stack([rng.integers(0, 60, (n, 2)), rng.integers(5, 30, (n, 2))]).astype(float)
        found = np.maximum(np.repeat(xywh, 6, axis=0) + rng.integers(-2, 3, (6 * n, 4)), 1)
        lists: Lists = (
            [(Boxes(corners(found), np.zeros(6 * n)), rng.random(6 * n))],
            [Boxes(corners(xywh), np.zeros(n), rng.random(n) < 0.2)],
            [xywh[:, 2] * xywh[:, 3]],
        )
        expected = coco(lists).stats
        ours = coco_summary(collect(lists))
        np.testing.assert_allclose([ours[n] for n in NAMES], np.where(expected == -1, np.nan, expected), atol=1e-12)


def test_weights_are_the_set_with_images_repeated() -> None:
    """What a bootstrap computes from weights is what pycocotools says of the set that was drawn."""
    rng = np.random.default_rng(9)
    for _ in range(25):
        lists = random_lists(rng)
        spread(lists[0], rng)
        draws = rng.integers(0, 3, (3, len(lists[1])))
        values = average_precision(match(collect(lists), iou=IOU, area=(0, 1e10)), draws.astype(float))
        assert values.shape == (3, len(IOU), 3)
        for draw, value in zip(draws, values, strict=True):
            drawn = tuple([part[n] for n in np.repeat(np.arange(len(draw)), draw)] for part in lists)
            evaluation = coco(drawn, IOU) if draw.any() else None  # type: ignore[arg-type]
            if evaluation is not None:
                np.testing.assert_allclose(value, theirs(evaluation.eval["precision"][:, :, :, 0, 2]), atol=1e-12)


def test_work_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    for _ in range(10):
        lists = random_lists(rng)
        weights = rng.integers(0, 3, (5, len(lists[1]))).astype(float)
        whole = average_precision(match(collect(lists), iou=IOU), weights)
        with monkeypatch.context() as patch:
            patch.setattr(boxes_module, "_PAIRS", 3)
            patch.setattr(detection, "_CELLS", 7)
            np.testing.assert_array_equal(average_precision(match(collect(lists), iou=IOU), weights), whole)


# -- by hand


def one_class(
    pred: list[list[tuple[list[float], float]]], truth: list[list[list[float]]], **options: Any
) -> DetectionSet:
    """Images of (x, y, w, h) boxes; predictions with their score."""
    found = [
        (Boxes(corners(np.array([b for b, _ in image])), [0] * len(image)), np.array([s for _, s in image]))
        for image in pred
    ]
    return gather(found, [Boxes(corners(np.array(image)), [0] * len(image)) for image in truth], classes=1, **options)


HERE: list[float] = [10, 10, 10, 10]
THERE: list[float] = [40, 40, 10, 10]


def test_average_precision_by_hand() -> None:
    """Hit, false, hit of three objects: precision 1 up to recall 1/3, 2/3 up to 2/3, then 0: 34 + 33 * 2/3 of 101."""
    boxes = one_class([[(HERE, 0.9), ([70, 70, 5, 5], 0.8)], [(THERE, 0.7)]], [[HERE], [THERE, [0, 0, 4, 4]]])
    values = average_precision(match(boxes))
    np.testing.assert_allclose(values[:, 0], (34 + 33 * 2 / 3) / 101)
    np.testing.assert_allclose(recall(match(boxes))[:, 0], 2 / 3)


def test_second_prediction_of_an_object_is_a_false_positive() -> None:
    boxes = one_class([[(HERE, 0.9), (HERE, 0.8), (THERE, 0.7)]], [[HERE, THERE]])
    found = match(boxes, iou=(0.5,))
    assert found.hit[:, 0].tolist() == [True, False, True]
    assert average_precision(found)[0, 0] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_threshold_is_reached_exactly() -> None:
    boxes = one_class([[([10, 10, 10, 5], 0.9)]], [[HERE]])
    assert match(boxes, iou=(0.5, 0.501)).hit.tolist() == [[True, False]]


def test_an_object_of_another_size_does_not_count() -> None:
    boxes = one_class([[(HERE, 0.9), ([40, 40, 50, 50], 0.8)]], [[HERE, [40, 40, 50, 50]]])
    small = match(boxes, iou=(0.5,), area=(0, 32**2))
    assert small.positives.tolist() == [[1]]
    assert (small.hit[:, 0].tolist(), small.ignored[:, 0].tolist()) == ([True, False], [False, True])
    assert average_precision(small)[0, 0] == 1


def test_boxes_of_volumes() -> None:
    """In 3-D, by hand: 4 x 4 x 2 voxels, moved by one along k: 16 of 48."""
    truth = np.array([[0.5, 0.5, 0.5], [4.5, 4.5, 2.5]])
    pred = truth + np.array([0, 0, 1])
    assert box_volume(truth) == 32
    assert box_iou(pred, truth) == pytest.approx(16 / 48)
    lists = [(Boxes([pred], [0]), np.array([0.5]))], [Boxes([truth], [0])]
    for spacing in (None, [[0.7, 0.9, 5.0]]):
        found = match(gather(*lists, classes=1, spacing=spacing), iou=IOU)
        assert found.hit[0].tolist() == [True, True, *[False] * 10]
    assert gather(*lists, classes=1, spacing=[[0.7, 0.9, 5.0]]).truth_area[0] == pytest.approx(32 * 0.7 * 0.9 * 5)
    assert gather(*lists, classes=1, spacing=[[0.7, 0.9, 5.0]]).truth_edge[0] == pytest.approx(10.0)


def test_degenerate_boxes_overlap_nothing() -> None:
    flat, turned = np.array([[1, 1, 0], [1, 5, 1.0]]), np.array([[4, 4, 1], [2, 2, 0.0]])
    cube = np.array([[0, 0, 0], [9, 9, 9.0]])
    for box in (flat, turned):
        assert box_volume(box) == 0
        assert box_iou(box, cube) == box_iou(cube, box) == box_iou(box, box) == 0
        assert box_iou(box, cube, np.array(True)) == 0


def test_image_scores() -> None:
    boxes = one_class([[(HERE, 0.3), (THERE, 0.8)], [], [(HERE, 0.5)]], [[HERE], [], []])
    assert boxes.image_scores().tolist() == [[0.8], [0.0], [0.5]]
    assert boxes.image_truth().tolist() == [[1], [0], [0]]
    crowd = gather([(Boxes(corners([]), []), np.zeros(0))], [Boxes(corners(HERE), [0], [True])], classes=1)
    assert math.isnan(crowd.image_truth()[0, 0])


# -- degenerate sets


def test_sets_without_objects_or_predictions() -> None:
    nothing: list[Any] = []
    cases = {
        "nothing at all": (one_class([nothing, nothing], [nothing, nothing]), math.nan),
        "no objects": (one_class([[(HERE, 0.5)]], [nothing]), math.nan),
        "no predictions": (one_class([nothing], [[HERE]]), 0.0),
        "all found": (one_class([[(HERE, 0.5)]], [[HERE]]), 1.0),
        "apart": (one_class([[(HERE, 0.5)]], [[THERE]]), 0.0),
        "no images": (one_class(nothing, nothing), math.nan),
    }
    for name, (boxes, expected) in cases.items():
        np.testing.assert_array_equal(average_precision(match(boxes, iou=IOU)), [[expected]] * len(IOU), err_msg=name)
        np.testing.assert_array_equal(coco_summary(boxes)["ap"], expected, err_msg=name)


def test_mean_is_over_classes_with_objects() -> None:
    assert class_mean(np.array([[0.5, np.nan, 1.0], [np.nan] * 3])).tolist() == pytest.approx(
        [0.75, math.nan], nan_ok=True
    )


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"truth": []}, DataError, "1 images were predicted, but 0 have truth"),
        ({"pred": [(Boxes([[[0, 0, 0], [1, 1, 1]]], [0]), np.zeros(2))]}, DataError, "image 0: 1 boxes were predicted, but 2"),
        ({"pred": [(Boxes([[[0, 0, 0], [1, 1, 1]]], [0]), [math.nan])]}, DataError, "1 values are not finite numbers: score"),
        ({"truth": [Boxes([[[0, 0, 0], [1, math.inf, 1]]], [0])]}, DataError, "not finite numbers: corner of the true boxes"),
        ({"truth": [Boxes([[[0, 0, 0], [1, 1, 1]]], [3])]}, DataError, "class 3 is not one of the 2 classes"),
        ({"truth": [Boxes([[[0, 0, 0], [1, 1, 1]]], [0], frame="mm")]}, GeometryError, r"give boxes.on\(grid\)"),
        ({"spacing": [[1, 1]]}, GeometryError, "three positive lengths for each of 1 images"),
        ({"area": [[1.0, 2.0]]}, DataError, "area holds one number for each true box"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused(change: dict[str, Any], error: type[Exception], said: str) -> None:
    box = Boxes([[[0, 0, 0], [1, 1, 1]]], [0])
    with pytest.raises(error, match=said):
        gather(**({"pred": [(box, np.array([0.5]))], "truth": [box], "classes": 2} | change))


def test_wrong_options_are_refused() -> None:
    boxes = one_class([[(HERE, 0.5)]], [[HERE]])
    with pytest.raises(ConfigError, match="IoU thresholds lie above 0 and up to 1"):
        match(boxes, iou=(0.0,))
    with pytest.raises(ConfigError, match="max_dets is at least 1, not 0"):
        match(boxes, max_dets=0)


# -- laws


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_laws(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pred, truth, _ = random_lists(rng)
    spread(pred, rng)
    values = average_precision(match(gather(pred, truth, classes=3), iou=IOU))

    def again(pred: Any, truth: Any, **options: Any) -> np.ndarray:
        return average_precision(match(gather(pred, truth, classes=3, **options), iou=IOU))

    shuffled = []
    for boxes, scores in pred:
        order = rng.permutation(len(scores))
        shuffled.append((Boxes(boxes.corners[order], boxes.classes[order]), scores[order]))
    np.testing.assert_array_equal(again(shuffled, truth), values)
    order = rng.permutation(len(truth))
    np.testing.assert_array_equal(again([pred[n] for n in order], [truth[n] for n in order]), values)
    rescored = [(boxes, np.exp(3 * scores)) for boxes, scores in pred]
    np.testing.assert_array_equal(again(rescored, truth), values)
    spacing = np.tile([0.5, 0.25, 4.0], (len(truth), 1))  # powers of two: exact
    np.testing.assert_array_equal(again(pred, truth, spacing=spacing), values)
    step = np.array([8, 16, 0])
    moved = [(Boxes(boxes.corners + step, boxes.classes), scores) for boxes, scores in pred]
    np.testing.assert_array_equal(again(moved, [Boxes(b.corners + step, b.classes, b.crowd) for b in truth]), values)
    twice = average_precision(match(gather(pred, truth, classes=3), iou=IOU), np.full(len(truth), 2.0))
    np.testing.assert_allclose(twice, values)
    assert ((values >= 0) | np.isnan(values)).all()


def test_interval_keeps_patients_together() -> None:
    rng = np.random.default_rng(11)
    pred, truth = [], []
    for _ in range(60):
        xywh = np.column_stack([rng.uniform(0, 200, (4, 2)), rng.uniform(10, 40, (4, 2))])
        near = xywh + rng.normal(size=(4, 4)) * 3
        pred.append((Boxes(corners(np.maximum(near, 1)), [0] * 4), rng.random(4)))
        truth.append(Boxes(corners(xywh), [0] * 4))
    matches = match(gather(pred, truth, classes=1), iou=IOU)
    patients = [n // 3 for n in range(60)]
    found = ap_estimates(matches, patients, resamples=200)
    assert set(found) == {"ap", "ap10", "ap30", *(f"ap{n}" for n in range(50, 100, 5))}
    for name, estimate in found.items():
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1, name
        assert estimate.n == 240
    value = found["ap"].value
    assert value == pytest.approx(
        class_mean(average_precision(match(gather(pred, truth, classes=1), iou=COCO_IOU))).mean()
    )
    assert "ap" not in ap_measures(match(gather(pred, truth, classes=1), iou=(0.1,)), np.ones((1, 60)))


def test_interval_holds_its_own_value_where_resamples_lie_above_it() -> None:
    """Many classes of few objects: every resample may be better than the set itself."""
    rng = np.random.default_rng(12)
    pred, truth = [], []
    for _ in range(40):
        xywh = np.column_stack([rng.uniform(0, 200, (3, 2)), rng.uniform(10, 40, (3, 2))])
        label = rng.integers(0, 20, 3)
        stray = np.column_stack([rng.uniform(0, 200, (6, 2)), rng.uniform(10, 40, (6, 2))])
        found = np.concatenate([np.maximum(xywh + rng.normal(size=(3, 4)) * 3, 1), stray])
        pred.append((Boxes(corners(found), np.append(label, rng.integers(0, 20, 6))), rng.random(9)))
        truth.append(Boxes(corners(xywh), label))
    matches = match(gather(pred, truth, classes=20), iou=(0.5,))
    estimate = ap_estimates(matches, range(40), resamples=100)["ap50"]
    assert estimate.low <= estimate.value <= estimate.high
    nothing = ap_estimates(match(gather(pred[:1], truth[:1], classes=20)), ["A"])["ap"]
    assert math.isnan(nothing.low)
