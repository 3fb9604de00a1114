"""What validation settles about boxes, and how answers are scored, summarised and drawn; expected numbers by hand, by
pycocotools' definitions in sagittal.metrics, and by simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from sagittal.case import Case, ImageSource
from sagittal.errors import ConfigError, DataError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import ClassScores, LabelScheme
from sagittal.metrics.boxes import gather
from sagittal.metrics.detection import average_precision, match
from sagittal.metrics.froc import cpm, hits_by_centre
from sagittal.prediction import Detections, Mask, Prediction, Verdict
from sagittal.tasks.detect import Detect
from sagittal.tasks.detect_settle import HitRule, OperatingPoint, beta_curve, fit_beta
from sagittal.truth import Boxes, Segmentation

CELLS = LabelScheme("objects", ("platelet", "red cell"))
PICTURE = Grid((120, 90, 1))
SCAN = Grid((60, 50, 20), np.diag([0.7, 0.7, 2.5, 1]))


def flat(*corners):
    """Boxes of a picture from (left, top, right, bottom) in voxel indices."""
    return np.array([[[a, b, -0.5], [c, d, 0.5]] for a, b, c, d in corners], dtype=float).reshape(-1, 2, 3)


def case_of(number, boxes, grid=PICTURE, patient=None):
    image = Image(np.full((1, *grid.shape), float(number), dtype=np.float32), grid)
    return Case(f"c{number}", patient or f"p{number}", {"image": ImageSource(lambda: image)}, truth=boxes)


def answer(case, finding, task, settled=None, verdict=None):
    concluded = task.conclude(finding, settled or {})
    present = tuple(
        n for c, n in enumerate(task.scheme.classes) if (concluded.boxes.classes[concluded.chosen] == c).any()
    )
    return Prediction(case.id, task.scheme, concluded, present, np.zeros(0), verdict=verdict or Verdict(), seconds=0.5)


def simulated(rng, cases, *, grid=PICTURE, spread=1.5):
    """Truth and raw answers: true objects found with good scores, often twice, beside false positives with lower ones."""
    answers = []
    for number in range(cases):
        n = int(rng.integers(0, 6))
        d = 2 if grid.shape[2] == 1 else 3
        low = np.zeros((n, 3))
        low[:, :d] = rng.uniform(0, np.asarray(grid.shape[:d]) - 14, (n, d))
        high = low + np.where(np.arange(3) < d, rng.uniform(7, 13, (n, 3)), 1.0)
        corners = np.stack([low, high], axis=1)
        if d == 2:
            corners[:, 0, 2], corners[:, 1, 2] = -0.5, 0.5
        labels = rng.integers(0, 2, n)
        seen = rng.random(n) < 0.9
        near = np.concatenate([corners[seen], corners[seen]]) + 0.0
        near[..., :d] += rng.normal(0, spread / 3, (len(near), 1, d))
        strays = int(rng.integers(0, 5))
        stray = np.zeros((strays, 2, 3))
        stray[:, 0, :d] = rng.uniform(0, np.asarray(grid.shape[:d]) - 12, (strays, d))
        stray[:, 1] = stray[:, 0] + np.where(np.arange(3) < d, 10.0, 1.0)
        if d == 2:
            stray[:, 0, 2], stray[:, 1, 2] = -0.5, 0.5
        scores = np.concatenate([rng.beta(6, 3, len(near)), rng.beta(2, 6, strays)])
        order = np.argsort(-scores)
        boxes = Boxes(
            np.concatenate([near, stray])[order],
            np.concatenate([np.tile(labels[seen], 2), rng.integers(0, 2, strays)])[order],
        )
        finding = Detections(boxes, scores[order], grid, np.ones(len(boxes), dtype=bool))
        answers.append((finding, case_of(number, Boxes(corners, labels), grid, patient=f"p{number // 2}")))
    return answers


@pytest.mark.parametrize(("dimensions", "grid"), [(2, PICTURE), (3, SCAN)])
def test_settled_scores_say_how_often_a_box_is_right(dimensions, grid):
    rng = np.random.default_rng(dimensions)
    task = Detect(CELLS, dimensions=dimensions, stride=2)
    settled = task.settle(simulated(rng, 400, grid=grid))
    assert json.loads(json.dumps(settled, allow_nan=False)) == settled
    fresh = [(task.conclude(finding, settled), case) for finding, case in simulated(rng, 400, grid=grid)]
    boxes = gather([(f.boxes, f.scores) for f, _ in fresh], [c.truth for _, c in fresh], classes=2)
    hit, counts = task.rule.judged(boxes)
    assert counts.all()
    stated = boxes.pred_score
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0)):
        inside = (stated >= low) & (stated < high)
        assert inside.sum() > 50
        assert abs(stated[inside].mean() - hit[inside].mean()) < 0.1
    # What was found twice is there once: duplicates were found within about a voxel.
    assert settled["suppress_iou"] <= 0.5
    assert all(len(f.boxes) == 0 or (np.diff(f.scores) <= 0).all() for f, _ in fresh)


def test_calibration_changes_no_ranking_and_so_no_average_precision():
    rng = np.random.default_rng(7)
    task = Detect(CELLS, stride=2)
    answers = simulated(rng, 80)
    settled = task.settle(answers)
    plain = {key: value for key, value in settled.items() if key == "suppress_iou"}

    def precision(how):
        concluded = [task.conclude(finding, how) for finding, _ in answers]
        boxes = gather([(f.boxes, f.scores) for f in concluded], [c.truth for _, c in answers], classes=2)
        return average_precision(match(boxes, iou=(0.5,)))

    np.testing.assert_allclose(precision(settled), precision(plain), atol=1e-12)
    np.testing.assert_allclose(precision(settled)[0].mean(), settled["validation"]["average_precision"], atol=1e-12)


def test_the_operating_point_is_what_was_asked_for():
    answers = simulated(np.random.default_rng(3), 120)
    cases = len(answers)
    for text in ("f1", "fp=0.25", "sensitivity=0.8"):
        task = Detect(CELLS, stride=2, point=OperatingPoint.parse(text))
        settled = task.settle(answers)
        rows = [task.score(answer(c, f, task, settled), c) for f, c in answers]
        for name in CELLS.classes:
            found = settled["validation"]["classes"][name]
            own = [
                one for row in rows for one in json.loads(row["boxes_found"]) if one["class"] == name and one["chosen"]
            ]
            assert len(own) == pytest.approx(
                found["sensitivity"] * found["objects"] + found["false_positives_an_image"] * cases
            )
            if text == "fp=0.25":
                assert found["false_positives_an_image"] <= 0.25
                assert found["sensitivity"] > 0.5
            if text == "sensitivity=0.8":
                assert found["sensitivity"] >= 0.8


def test_f1_is_the_highest_there_is():
    # Scores .9 .8 .7 .6 .5: hit, hit, false, hit, false; four objects. F1: 2/5, 4/6, 4/7, 6/8, 6/9.
    truth = Boxes(flat((0, 0, 9, 9), (20, 0, 29, 9), (40, 0, 49, 9), (60, 0, 69, 9)), [0] * 4)
    found = Boxes(flat((0, 0, 9, 9), (20, 0, 29, 9), (0, 50, 9, 59), (40, 0, 49, 9), (60, 50, 69, 59)), [0] * 5)
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    hits = HitRule("iou", 0.5).hits(gather([(found, scores)], [truth], classes=1))
    assert OperatingPoint("f1").choose(hits) == pytest.approx(0.55)
    assert OperatingPoint("fp", 1.0).choose(hits) == pytest.approx(0.55)
    assert OperatingPoint("fp", 0.5).choose(hits) == pytest.approx(0.75)
    assert OperatingPoint("sensitivity", 0.5).choose(hits) == pytest.approx(0.75)
    assert OperatingPoint("sensitivity", 1.0).choose(hits) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fp=none", "needs a number, such as fp=1"),
        ("sensitivity=2", "needs a number"),
        ("yuden", "is none of detection"),
    ],
)
def test_an_operating_point_that_is_none_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        OperatingPoint.parse(text)


def test_plans_that_say_most_probable_get_the_highest_f1():
    assert OperatingPoint.parse("most-probable") == OperatingPoint.parse("f1")


def test_calibration_finds_the_curve_that_made_the_hits():
    rng = np.random.default_rng(1)
    scores = rng.uniform(0.02, 0.98, 6000)
    hit = rng.random(6000) < beta_curve(scores, 1.4, 0.6, -0.3)
    found = beta_curve(scores, *fit_beta(scores, hit))
    assert np.abs(found - beta_curve(scores, 1.4, 0.6, -0.3)).max() < 0.05


def test_few_boxes_do_not_make_certain():
    few = np.array([0.3, 0.9])
    curve = fit_beta(few, np.array([False, True]))
    assert 0.2 < beta_curve(few, *curve)[0] < beta_curve(few, *curve)[1] < 0.9
    assert fit_beta(np.zeros(0), np.zeros(0, dtype=bool)) == (1.0, 1.0, 0.0)
    # A ranking that is upside down is not turned round.
    below, above, _ = fit_beta(np.array([0.1, 0.2, 0.8, 0.9] * 20), np.array([True, True, False, False] * 20))
    assert below > 0
    assert above > 0


def test_a_class_that_validation_never_saw_keeps_its_scores():
    task = Detect(CELLS, stride=2)
    case = case_of(0, Boxes(flat((10, 10, 19, 19)), [0]))
    finding = Detections(Boxes(flat((10, 10, 19, 19), (50, 50, 59, 59)), [0, 1]), [0.7, 0.6], PICTURE, [True, True])
    settled = task.settle([(finding, case)])
    concluded = task.conclude(finding, settled)
    assert concluded.scores[concluded.boxes.classes == 1].tolist() == [0.6]
    assert settled["threshold"]["red cell"] == 0.5


def test_nothing_to_settle_from_is_no_crash():
    task = Detect(CELLS, stride=2)
    empty = Detections(Boxes([], []), [], PICTURE, [])
    for answers in ([], [(empty, case_of(0, None))], [(empty, case_of(0, Boxes([], [])))]):
        settled = task.settle(answers)
        json.dumps(settled, allow_nan=False)
        assert len(task.conclude(empty, settled)) == 0


def test_findings_of_another_kind_are_refused():
    task = Detect(CELLS, stride=2)
    mask = Mask(Segmentation(np.zeros((1, *PICTURE.shape), dtype=np.uint8), PICTURE, ()))
    for use in (lambda: task.conclude(mask, {}), lambda: task.settle([(mask, case_of(0, None))])):
        with pytest.raises(DataError, match="boxes are expected of detection, not a Mask"):
            use()
    prediction = Prediction("c0", CELLS, mask, (), np.zeros(0))
    with pytest.raises(DataError, match="case c0: boxes are expected"):
        task.score(prediction, case_of(0, None))


def test_a_row_holds_what_was_found_and_missed():
    task = Detect(CELLS, stride=2)
    truth = Boxes(
        flat((10, 10, 19, 19), (40, 10, 49, 19), (70, 10, 79, 19), (30, 40, 30, 50), (-9, 60, 8, 70)),
        [0, 0, 1, 0, 1],
        [False, False, True, False, False],
    )
    found = Boxes(flat((10, 10, 19, 19), (60, 60, 69, 69), (71, 10, 79, 19), (-0.5, 60, 8, 70)), [0, 0, 1, 1])
    finding = Detections(found, [0.9, 0.7, 0.8, 0.2], PICTURE, [True] * 4)
    case = case_of(4, truth, patient="p1")
    row = task.score(answer(case, finding, task), case)
    assert (row["case"], row["patient"], row["truth"], row["decision"]) == (
        "c4",
        "p1",
        "platelet, red cell",
        "platelet, red cell",
    )
    # One of three objects is found at .5 and above; the box on the crowd counts as nothing; one true box has no area.
    assert (row["n_truth"], row["n_hit"], row["n_found"], row["false_positives"], row["left_out"]) == (3, 1, 3, 1, 1)
    assert row["max_score"] == 0.9
    assert json.loads(row["boxes_truth"])[-1] == {"low": [-0.5, 60, -0.5], "high": [8, 70, 0.5], "class": "red cell", "crowd": False}  # fmt: skip
    assert row["spacing_mm"] is None
    unknown = task.score(answer(case_of(5, None), finding, task), case_of(5, None))
    assert unknown["truth"] is None
    assert unknown["boxes_truth"] is None
    refused = answer(case, Detections(Boxes([], []), [], PICTURE, []), task, verdict=Verdict(False, "too dark"))
    assert task.score(refused, case)["decision"] is None


@pytest.mark.parametrize(("dimensions", "grid"), [(2, PICTURE), (3, SCAN)])
def test_summaries_are_those_of_the_metrics(dimensions, grid):
    rng = np.random.default_rng(11)
    task = Detect(CELLS, dimensions=dimensions, stride=2)
    answers = simulated(rng, 60, grid=grid)
    settled = task.settle(answers)
    concluded = [(task.conclude(f, settled), c) for f, c in answers]
    rows = pd.DataFrame([task.score(answer(c, f, task, settled), c) for f, c in answers])
    summary = task.summarise(rows, resamples=40, seed=0, confidence=0.9)
    boxes = gather(
        [(f.boxes, f.scores) for f, _ in concluded],
        [c.truth for _, c in concluded],
        classes=2,
        spacing=None if dimensions == 2 else [grid.spacing] * 60,
    )
    values = average_precision(match(boxes, iou=(0.1, 0.3, 0.5, 0.75)))
    for n, name in enumerate(("ap10", "ap30", "ap50", "ap75")):
        assert summary.overall[name].value == pytest.approx(values[n].mean(), abs=2e-3)
        for c, label in enumerate(CELLS.classes):
            assert summary.classes[label][name].value == pytest.approx(values[n, c], abs=2e-3)
    if dimensions == 3:
        assert summary.overall["cpm"].value == pytest.approx(cpm(hits_by_centre(boxes)), abs=1e-6)
        assert next(iter(summary.overall)) == "cpm"
    else:
        assert next(iter(summary.overall)) == "ap50"
    known = rows[["n_truth", "n_hit", "false_positives"]].sum()
    assert summary.overall["sensitivity"].value == pytest.approx(known["n_hit"] / known["n_truth"])
    assert summary.overall["precision"].value == pytest.approx(
        known["n_hit"] / (known["n_hit"] + known["false_positives"])
    )
    assert summary.overall["false_positives_an_image"].value == pytest.approx(known["false_positives"] / 60)
    assert 0 <= summary.overall["ece"].value < 0.15
    shares = [summary.overall[f"sensitivity_{size}"] for size in ("small", "medium", "large")]
    total = sum(one.value * one.n for one in shares)
    assert total / sum(one.n for one in shares) == pytest.approx(summary.overall["sensitivity"].value)
    low, high = summary.overall["small_below"].value, summary.overall["large_from"].value
    edges = np.prod(np.diff(boxes.truth_corners, axis=1)[:, 0], axis=1) ** (1 / dimensions)
    np.testing.assert_allclose([low, high], np.quantile(edges, [1 / 3, 2 / 3]), rtol=1e-3)
    for name, estimate in summary.overall.items():
        if not name.startswith("baseline.") and math.isfinite(estimate.low):
            assert estimate.low <= estimate.value + 1e-9, name
            assert estimate.high >= estimate.value - 1e-9, name
    assert summary.overall["baseline.auc"].value == 0.5
    assert summary.overall["baseline.sensitivity"].value == 0.0


def test_perfect_answers_have_honest_intervals():
    task = Detect(CELLS, stride=2)
    rows = []
    for n in range(10):
        truth = Boxes(flat((10, 10, 20 + n, 25), (50, 50, 60, 61 + n)), [0, 1])
        case = case_of(n, truth)
        rows.append(task.score(answer(case, Detections(truth, [0.95, 0.9], PICTURE, [True, True]), task), case))
    summary = task.summarise(pd.DataFrame(rows), resamples=50, seed=0, confidence=0.95)
    assert summary.overall["ap"].value == pytest.approx(1)
    found = summary.overall["sensitivity"]
    # All of 10 patients: Wilson's interval with 10, not with 20.
    assert (found.value, found.n) == (1.0, 20)
    assert found.low == pytest.approx(0.7225, abs=1e-3)
    assert math.isnan(summary.overall["auc"].value)  # every image has objects


def test_rows_without_any_truth_are_no_crash():
    task = Detect(CELLS, stride=2)
    finding = Detections(Boxes([], []), [], PICTURE, [])
    rows = pd.DataFrame([task.score(answer(case_of(0, None), finding, task), case_of(0, None))])
    summary = task.summarise(rows, resamples=10, seed=0, confidence=0.95)
    assert math.isnan(summary.overall["ap50"].value)


def test_images_without_objects_judge_false_positives():
    task = Detect(CELLS, stride=2)
    rows = []
    for n in range(20):
        truth = Boxes(flat((10, 10, 20, 20)), [1]) if n < 10 else Boxes([], [])
        found = Boxes(flat((10, 10, 20, 20)), [1]) if n < 10 or n >= 18 else Boxes([], [])
        score = [0.9] * len(found) if n < 10 else [0.6] * len(found)
        case = case_of(n, truth)
        rows.append(task.score(answer(case, Detections(found, score, PICTURE, [True] * len(found)), task), case))
    summary = task.summarise(pd.DataFrame(rows), resamples=50, seed=0, confidence=0.95)
    assert summary.overall["auc"].value == 1.0
    assert summary.overall["false_positives_an_image"].value == pytest.approx(0.1)
    assert summary.overall["precision"].value == pytest.approx(10 / 12)
    assert math.isnan(summary.classes["platelet"]["ap50"].value)
    assert summary.classes["red cell"]["ap50"].value == pytest.approx(1)


def test_pictures_show_true_and_found_boxes():
    task = Detect(CELLS, stride=2)
    truth = Boxes(flat((20, 20, 60, 50)), [0])
    case = case_of(0, truth)
    finding = Detections(Boxes(flat((70, 40, 100, 80)), [1]), [0.8], PICTURE, [True])
    pixels = task.figure(answer(case, finding, task), case)
    assert pixels.dtype == np.uint8
    blue = (pixels == (86, 180, 233)).all(axis=2)
    white = (pixels == (255, 255, 255)).all(axis=2)
    scale = pixels.shape[1] / 120
    rows, columns = np.nonzero(blue)
    assert columns.max() == pytest.approx(100.5 * scale, abs=2)
    assert rows.max() == pytest.approx(80.5 * scale, abs=2)
    top = white[round(20.5 * scale), round(20.5 * scale) : round(60.5 * scale)]
    assert 0.3 < top.mean() < 0.9  # dashed


def test_a_volume_shows_the_slice_of_its_surest_or_missed_object():
    task = Detect(CELLS, dimensions=3, stride=2)
    values = np.zeros((1, *SCAN.shape), dtype=np.float32)
    values[..., 15] = 1.0  # only this slice is bright
    values[..., 4] = 0.5
    image = Image(values, SCAN)
    truth = Boxes([[[10, 10, 3], [30, 30, 5]]], [0])
    case = Case("c0", "p0", {"image": ImageSource(lambda: image)}, truth=truth)
    found = Detections(Boxes([[[10, 10, 14], [30, 30, 16]]], [0]), [0.9], SCAN, [True])
    surest, missed = (
        task.figure(answer(case, f, task), case) for f in (found, Detections(Boxes([], []), [], SCAN, []))
    )
    assert np.median(surest[40:80, 40:80]) == 255
    assert 100 < np.median(missed[40:80, 40:80]) < 160


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dimensions": 4}, "2 or 3 dimensions, not 4"), ({"balance": 1.5}, "between 0 and 1, not 1.5")],
)
def test_a_task_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Detect(CELLS, **options)


def test_a_case_of_classes_has_no_boxes():
    case = Case("c1", "p1", {}, truth=ClassScores(np.array([1.0, 0.0])))
    finding = Detections(Boxes([], []), [], PICTURE, [])
    with pytest.raises(DataError, match="ClassScores where boxes were expected"):
        Detect(CELLS).settle([(finding, case)])


def test_a_crowded_picture_names_only_the_rarer_class():
    task = Detect(CELLS, stride=2)
    corners = flat(*((5 + 12 * (n % 9), 20 + 35 * (n // 9), 14 + 12 * (n % 9), 40 + 35 * (n // 9)) for n in range(14)))
    case = case_of(0, Boxes([], []))

    def named(labels):
        """Whether there is writing above the first and the last box: colour where no box is."""
        finding = Detections(Boxes(corners, labels), np.full(14, 0.9), PICTURE, np.ones(14, dtype=bool))
        pixels = task.figure(answer(case, finding, task, {"suppress_iou": 1.0}), case).astype(int)
        scale = pixels.shape[1] / 120
        return [
            pixels[round((top - 3) * scale) : round((top - 0.5) * scale), round(left * scale) :].max() > 100
            for left, top in ((5, 20), (53, 55))
        ]

    assert named([1] + [0] * 13) == [True, False]
    assert named([0] * 13 + [1]) == [False, True]
