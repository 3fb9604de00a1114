"""Rows of segmentation evidence: hand-counted measures, empties, the unknown, other grids; and what rows say together."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from sagittal.case import Case, ImageSource
from sagittal.errors import DataError, GeometryError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import ClassScores, LabelScheme
from sagittal.metrics import lesions, overlap, surface
from sagittal.prediction import Mask, Prediction, Verdict
from sagittal.tasks.outlines import find_boxes, thick
from sagittal.tasks.segment_picture import ANSWER, BOTH, TRUTH, doubt_figure
from sagittal.tasks.segment_rows import MEASURES, figure, is_thin, lengths, score_row, summarise_rows
from sagittal.truth import Segmentation, SegmentationSource, Structure

SCHEME = LabelScheme("structures", ("liver", "tumour"))
AFFINE = np.array([[0.7, 0.1, 0, 5], [-0.1, 0.7, 0, 2], [0, 0, 3.0, -40], [0, 0, 0, 1]])
GRID = Grid((20, 18, 12), AFFINE)
TASK = SimpleNamespace(scheme=SCHEME, tolerance_mm=1.0)


def label_map(*boxes, grid=GRID):
    """Boxes as (value, i, j, k slices)."""
    out = np.zeros(grid.shape, dtype=np.uint8)
    for value, *box in boxes:
        out[tuple(slice(*part) for part in box)] = value
    return out


def outlined(array, grid=GRID, names=SCHEME.classes, ignore=None):
    structures = tuple(Structure(name, (SCHEME.classes.index(name) + 1,)) for name in names)
    return Segmentation(array[np.newaxis], grid, structures, ignore)


def case_of(truth, *, name="c1", patient="p1", grid=GRID):
    image = Image(np.random.default_rng(0).random((1, *grid.shape)).astype(np.float32), grid)
    source = None if truth is None else SegmentationSource(lambda: truth, structures=SCHEME.classes)
    return Case(name, patient, {"image": ImageSource(lambda: image)}, truth=source)


def answer_of(array, *, grid=GRID, expected=None, doubt=None, accepted=True, name="c1"):
    finding = Mask(outlined(array, grid), doubt=doubt, expected_dice=expected or {})
    there = tuple(n for i, n in enumerate(SCHEME.classes) if (array == i + 1).any())
    verdict = Verdict() if accepted else Verdict(False, "unlike the training cases")
    return Prediction(name, SCHEME, finding, there, np.zeros(0), uncertainty=0.1, verdict=verdict, seconds=2.0)


LIVER = (1, (3, 12), (4, 13), (2, 8))


def test_each_measure_is_that_of_the_whole_study():
    true = label_map(LIVER, (2, (6, 9), (6, 9), (3, 6)))
    found = label_map((1, (4, 12), (4, 14), (2, 8)), (2, (6, 8), (6, 9), (3, 7)), (2, (15, 17), (2, 4), (9, 11)))
    row = score_row(TASK, answer_of(found, expected={"liver": 0.9}), case_of(outlined(true)))
    for n, name in enumerate(SCHEME.classes):
        pred, truth = found == n + 1, true == n + 1
        distances = surface.surface_distances(pred, truth, GRID.spacing)
        assert row[f"dice_{name}"] == overlap.dice(pred, truth)
        assert row[f"iou_{name}"] == overlap.iou(pred, truth)
        assert row[f"sensitivity_{name}"] == overlap.sensitivity(pred, truth)
        assert row[f"precision_{name}"] == overlap.precision(pred, truth)
        assert row[f"hd95_{name}"] == pytest.approx(distances.hd(95), abs=1e-12)
        assert row[f"hd_{name}"] == pytest.approx(distances.hd(), abs=1e-12)
        assert row[f"asd_{name}"] == pytest.approx(distances.assd(), abs=1e-12)
        assert row[f"surface_dice_{name}"] == pytest.approx(distances.surface_dice(1.0), abs=1e-12)
        error = overlap.volume_error(pred, truth, GRID.spacing)
        assert row[f"volume_ml_{name}"] == pytest.approx(error.pred_ml)
        assert row[f"volume_error_ml_{name}"] == pytest.approx(error.ml)
        assert row[f"volume_error_percent_{name}"] == pytest.approx(100 * error.relative)
        pieces = lesions.find_lesions(pred, truth)
        assert row[f"lesions_found_{name}"] == pieces.true_positives
        assert row[f"lesions_false_{name}"] == pieces.false_positives
        assert row[f"lesions_dice_{name}"] == pytest.approx(pieces.dice.sum())
    assert row["lesions_false_tumour"] == 1
    assert row["mean_dice"] == pytest.approx((row["dice_liver"] + row["dice_tumour"]) / 2)
    assert (row["expected_dice_liver"], row["unit"], row["seconds"]) == (0.9, "mm", 2.0)
    assert math.isnan(row["expected_dice_tumour"])
    assert (row["truth"], row["decision"]) == ("liver, tumour", "liver, tumour")


def test_a_structure_of_one_slice_is_measured_as_part_of_its_volume():
    true, found = label_map((1, (4, 9), (4, 9), (5, 6))), label_map((1, (4, 9), (4, 6), (5, 6)))
    row = score_row(TASK, answer_of(found), case_of(outlined(true)))
    whole = surface.surface_distances(found == 1, true == 1, GRID.spacing)
    assert row["surface_dice_liver"] == pytest.approx(whole.surface_dice(1.0), abs=1e-12)
    flat = surface.surface_distances(found[:, :, 5:6] == 1, true[:, :, 5:6] == 1, GRID.spacing)
    assert row["surface_dice_liver"] != pytest.approx(flat.surface_dice(1.0), abs=1e-3)  # what a careless cut gives
    last = thick((slice(0, 2), slice(0, 2), slice(11, 12)), GRID)
    assert last[2] == slice(10, 12)


@pytest.mark.parametrize(
    ("true", "found", "empty", "dice", "hd95", "missing"),
    [
        ([], [], "both", math.nan, math.nan, ""),
        ([LIVER], [], "answer", 0.0, math.inf, "liver"),
        ([], [LIVER], "truth", 0.0, math.inf, ""),
        ([LIVER], [(1, (14, 16), (4, 6), (2, 4))], "", 0.0, None, "liver"),
        ([LIVER], [LIVER], "", 1.0, 0.0, "liver"),
    ],
)
def test_empty_masks_are_told_apart(true, found, empty, dice, hd95, missing):
    row = score_row(TASK, answer_of(label_map(*found)), case_of(outlined(label_map(*true))))
    assert row["empty_liver"] == empty
    np.testing.assert_equal(row["dice_liver"], dice)
    if hd95 is not None:
        np.testing.assert_equal(row["hd95_liver"], hd95)
    assert row["truth"] == missing
    assert row["volume_truth_ml_liver"] == pytest.approx(0.0 if not true else 9 * 9 * 6 * 0.5 * 3 / 1000)


def test_a_structure_that_nobody_looked_for_is_unknown_and_not_absent():
    true = outlined(label_map(LIVER), names=("liver",))
    row = score_row(TASK, answer_of(label_map(LIVER, (2, (5, 8), (5, 8), (3, 5)))), case_of(true))
    assert all(math.isnan(row[f"{m}_tumour"]) for m in MEASURES)
    assert row["empty_tumour"] == ""
    assert row["mean_dice"] == row["dice_liver"]
    assert row["truth"] == "liver"
    unknown = score_row(TASK, answer_of(label_map(LIVER)), case_of(None))
    assert unknown["truth"] is None
    assert math.isnan(unknown["mean_dice"])


def test_what_is_to_be_ignored_is_left_out_on_both_sides():
    true = label_map(LIVER, (255, (10, 12), (4, 13), (2, 8)))
    found = label_map(LIVER, (1, (10, 12), (4, 17), (2, 8)))
    row = score_row(TASK, answer_of(found), case_of(outlined(true, ignore=255)))
    assert row["voxels_known_liver"] == GRID.shape[0] * GRID.shape[1] * GRID.shape[2] - 2 * 9 * 6
    assert row["voxels_truth_liver"] == 7 * 9 * 6
    assert row["voxels_answer_liver"] == 7 * 9 * 6 + 2 * 4 * 6
    assert row["dice_liver"] == pytest.approx(2 * 378 / (378 + 426))


def test_a_truth_on_a_finer_grid_is_brought_by_position():
    fine = AFFINE.copy()
    fine[:3, 2] /= 2
    fine[:3, 3] -= AFFINE[:3, 2] / 4
    grid = Grid((20, 18, 24), fine)
    true = label_map((1, (3, 12), (4, 13), (4, 16)), grid=grid)
    row = score_row(TASK, answer_of(label_map(LIVER)), case_of(outlined(true, grid)))
    assert row["dice_liver"] == 1.0
    moved = AFFINE.copy()
    moved[:3, 3] += 40
    with pytest.raises(GeometryError, match="different grids"):
        score_row(TASK, answer_of(label_map(LIVER)), case_of(outlined(label_map(LIVER), Grid(GRID.shape, moved))))


def test_another_kind_of_truth_or_answer_is_refused():
    other = Case("c1", "p", {}, truth=ClassScores(np.array([1.0, 0.0])))
    with pytest.raises(DataError, match="case c1: its truth outlines no structures"):
        score_row(TASK, answer_of(label_map(LIVER)), other)
    vector = Prediction("c1", SCHEME, ClassScores(np.array([1.0, 0.0])), ("liver",), np.zeros(2))
    with pytest.raises(DataError, match="case c1: a mask is expected to be scored, not ClassScores"):
        score_row(TASK, vector, case_of(outlined(label_map(LIVER))))


def test_a_picture_without_a_pixel_size_is_measured_in_pixels():
    grid = Grid((40, 30, 1))
    true, found = (
        label_map((1, (5, 20), (5, 20), (0, 1)), grid=grid),
        label_map((1, (7, 20), (5, 20), (0, 1)), grid=grid),
    )
    row = score_row(TASK, answer_of(found, grid=grid), case_of(outlined(true, grid), grid=grid))
    assert row["unit"] == "px"
    assert row["hd_liver"] == pytest.approx(2.0)
    assert math.isnan(row["volume_ml_liver"])
    assert row["volume_error_percent_liver"] == pytest.approx(-100 * 2 / 15)
    assert lengths(Grid((4, 4, 1), spacing=(0.5, 0.25, math.nan)))[1] == "mm"
    assert lengths(Grid((4, 4, 4), spacing=(0.5, 0.25, math.nan)))[1] == "px"


def test_centre_lines_are_compared_where_the_truth_is_thin():
    grid = Grid((120, 100, 1))
    array = np.zeros(grid.shape, dtype=np.uint8)
    array[5:115, 50:53] = 1
    array[60:63, 5:95] = 1
    row = score_row(TASK, answer_of(array, grid=grid), case_of(outlined(array, grid), grid=grid))
    assert row["cldice_liver"] == 1.0
    assert is_thin(array == 1)
    assert math.isnan(score_row(TASK, answer_of(label_map(LIVER)), case_of(outlined(label_map(LIVER))))["cldice_liver"])


def test_regions_of_several_labels_have_one_box():
    regions = (Structure("whole", (1, 2)), Structure("core", (2,)), Structure("nowhere", (7,)), Structure("never", ()))
    array = label_map((1, (3, 6), (4, 6), (2, 4)), (2, (10, 12), (8, 9), (7, 9)))
    boxes = find_boxes(Segmentation(array[np.newaxis], GRID, regions))
    assert boxes["whole"] == (slice(3, 12), slice(4, 9), slice(2, 9))
    assert boxes["core"] == (slice(10, 12), slice(8, 9), slice(7, 9))
    assert set(boxes) == {"whole", "core"}


def rows_of(n=40, seed=0, patients=None, lost=()):
    """Rows as from n cases: answers of varying size, some tumours missed, some invented, one structure often unknown."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(n):
        true, low = [LIVER], int(rng.integers(0, 4))
        if number % 3 == 0:
            true.append((2, (6, 9), (6, 9), (3, 6)))
        found = [(1, (3 + low, 12), (4, 13), (2, 8))]
        if (number % 3 == 0 and number % 6) or number % 10 == 1:
            found.append((2, (6, 8), (6, 9), (3, 6)))
        names = ("liver",) if number % 5 == 4 else SCHEME.classes
        expected = {"liver": 1 - low / 20}
        name = f"c{number}"
        prediction = answer_of(label_map(*found), expected=expected, accepted=number not in lost, name=name)
        patient = f"p{number if patients is None else number % patients}"
        truth = outlined(label_map(*true[: len(names)]), names=names)
        rows.append(score_row(TASK, prediction, case_of(truth, name=name, patient=patient)))
    return pd.DataFrame(rows)


def test_summaries_are_those_of_the_rows():
    rows = rows_of()
    summary = summarise_rows(TASK, rows, resamples=100)
    for name in SCHEME.classes:
        dice, hd95 = rows[f"dice_{name}"].dropna(), rows[f"hd95_{name}"].dropna()
        found = summary.classes[name]
        assert found["dice"].value == pytest.approx(dice.mean())
        assert found["dice"].n == len(dice)
        assert found["dice_median"].value == pytest.approx(dice.median())
        assert found["hd95_median"].value == pytest.approx(np.median(hd95), nan_ok=True)
        assert found["hd95"].value == pytest.approx(hd95[np.isfinite(hd95)].mean())
    means = [summary.classes[name]["dice"].value for name in SCHEME.classes]
    assert summary.overall["dice"].value == pytest.approx(np.mean(means))
    assert summary.overall["dice"].low < summary.overall["dice"].value < summary.overall["dice"].high
    percent = summary.classes["liver"]["volume_error_percent"].value
    assert percent == pytest.approx(rows["volume_error_percent_liver"].abs().mean())


def test_cases_that_say_nothing_are_counted():
    rows = rows_of()
    found = summarise_rows(TASK, rows, resamples=0).classes["tumour"]
    empty = rows["empty_tumour"]
    unknown = int(rows["voxels_truth_tumour"].isna().sum())
    assert unknown == 8
    assert found["cases_unknown"].value == unknown
    assert found["cases_both_empty"].value == (empty == "both").sum() > 0
    assert found["cases_missed"].value == (empty == "answer").sum() > 0
    assert found["cases_invented"].value == (empty == "truth").sum() > 0
    assert found["cases_infinite"].value == np.isinf(rows["hd95_tumour"]).sum()
    has = rows["voxels_truth_tumour"] > 0
    assert found["missed"].value == pytest.approx((empty == "answer").sum() / has.sum())
    assert found["missed"].n == has.sum()
    assert found["invented"].n == len(rows) - unknown - has.sum()


def test_the_baseline_marks_every_voxel():
    rows = rows_of(6)
    summary = summarise_rows(TASK, rows, resamples=0)
    share = 9 * 9 * 6 / np.prod(GRID.shape)
    # The liver loses the tumour's voxels in every third case.
    less = (9 * 9 * 6 - 27) / np.prod(GRID.shape)
    expected = np.mean([2 * p / (1 + p) for p in (less, share, share, less, share, share)])
    assert summary.classes["liver"]["baseline.dice"].value == pytest.approx(expected)
    assert "baseline.hd95_median" not in summary.classes["liver"]


def test_the_expected_dice_is_held_against_the_true_one():
    rows = rows_of(lost=(3, 4))
    found = summarise_rows(TASK, rows, resamples=100).overall
    pairs = rows[["expected_dice_liver", "dice_liver"]]
    assert found["expected_dice_correlation"].value == pytest.approx(np.corrcoef(pairs.T)[0, 1])
    gap = (pairs["expected_dice_liver"] - pairs["dice_liver"]).abs().mean()
    assert found["expected_dice_error"].value == pytest.approx(gap)
    constant = (pairs["dice_liver"] - pairs["dice_liver"].mean()).abs().mean()
    assert found["baseline.expected_dice_error"].value == pytest.approx(constant)
    assert found["accepted"].value == pytest.approx(38 / 40)
    kept = rows["mean_dice"][rows["accepted"]]
    assert found["dice_of_accepted"].value == pytest.approx(kept.mean())


def test_intervals_keep_patients_together():
    one, few = (summarise_rows(TASK, rows_of(patients=p), resamples=300).overall["dice"] for p in (None, 4))
    assert one.value == few.value
    assert (one.low, one.high) != (few.low, few.high)


def test_many_small_pieces_are_judged_one_by_one():
    true = label_map(*[(1, (i, i + 2), (j, j + 2), (2, 4)) for i in (1, 6, 11) for j in (1, 6)])
    found = label_map(
        *[(1, (i, i + 2), (j, j + 2), (2, 4)) for i in (1, 6) for j in (1, 6)], (1, (16, 18), (14, 16), (8, 9))
    )
    rows = [score_row(TASK, answer_of(found), case_of(outlined(true), patient=f"p{n}", name=f"c{n}")) for n in range(3)]
    summary = summarise_rows(TASK, pd.DataFrame(rows), resamples=20)
    liver = summary.classes["liver"]
    assert liver["lesion_sensitivity"].value == pytest.approx(4 / 6)
    assert liver["lesion_precision"].value == pytest.approx(4 / 5)
    assert liver["lesion_f1"].value == pytest.approx(8 / 11)
    assert liver["lesion_dice"].value == pytest.approx(4 / 7)
    assert liver["lesion_false_per_case"].value == 1
    assert liver["lesion_sensitivity"].n == 18
    assert "lesion_f1" not in summarise_rows(TASK, rows_of(6), resamples=0).classes["liver"]


def test_distances_in_pixels_are_not_averaged_with_those_in_mm():
    rows = rows_of(6)
    rows.loc[0, "unit"] = "px"
    rows.loc[0, "hd95_liver"] = 1e6
    found = summarise_rows(TASK, rows, resamples=0).classes["liver"]
    assert found["hd95"].value < 100
    assert found["hd95"].n == 5
    assert found["dice"].n == 6


def test_no_case_with_a_truth_gives_no_measures():
    row = score_row(TASK, answer_of(label_map(LIVER)), case_of(None))
    assert math.isnan(summarise_rows(TASK, pd.DataFrame([row])).overall["dice"].value)
    with pytest.raises(DataError, match="lack the columns"):
        summarise_rows(TASK, pd.DataFrame([{"case": "c", "truth": "liver"}]))


def colours(picture):
    return {tuple(int(v) for v in c) for c in picture.reshape(-1, 3)}


def test_the_picture_shows_both_outlines_in_their_colours():
    true, found = label_map(LIVER), label_map((1, (3, 12), (4, 11), (2, 8)))
    picture = figure(TASK, answer_of(found), case_of(outlined(true)))
    assert picture.dtype == np.uint8
    assert {TRUTH, ANSWER, BOTH} <= colours(picture)
    alone = figure(TASK, answer_of(true), case_of(outlined(true)))
    drawn = alone[: alone.shape[0] // 2]
    assert BOTH in colours(drawn)
    assert TRUTH not in colours(drawn)
    assert ANSWER not in colours(drawn)
    unknown = figure(TASK, answer_of(found), case_of(None))
    assert ANSWER in colours(unknown)
    assert TRUTH not in colours(unknown)


def test_the_picture_goes_through_the_largest_structure():
    """A plane elsewhere would show no outline at all."""
    corner = label_map((1, (16, 19), (14, 17), (10, 12)))
    picture = figure(TASK, answer_of(corner), case_of(outlined(corner)))
    third = picture[: picture.shape[0] // 2]
    width = third.shape[1] // 3
    assert all(BOTH in colours(third[:, n * width : (n + 1) * width]) for n in range(3))


def test_doubt_is_drawn_where_it_is_known():
    doubt = np.zeros(GRID.shape, dtype=np.uint8)
    doubt[3:12, 4:13, 2:8] = 255
    picture = doubt_figure(TASK, answer_of(label_map(LIVER), doubt=doubt), case_of(None))
    assert picture is not None
    assert (255, 0, 0) in colours(picture)
    assert doubt_figure(TASK, answer_of(label_map(LIVER)), case_of(None)) is None
