"""Evidence of masks and boxes: classes matched by name, what is unknown left alone, bad truths listed, models compared."""

from dataclasses import replace

import numpy as np
import pytest

from sagittal.errors import DataError
from sagittal.evaluate.align import align, known_part
from sagittal.evaluate.cases import evidence_of
from sagittal.evaluate.compare import compare_evidence
from sagittal.evaluate.evidence import Evidence, Settings, evaluate_model
from sagittal.labels import LabelScheme
from sagittal.metrics.detection import average_precision, class_mean, match
from sagittal.prediction import Failure
from sagittal.prepare.plan import DecidePlan, Plan
from sagittal.tasks.detect_rows import BoxRows
from sagittal.tasks.registry import make_place_task
from sagittal.truth import Boxes, SegmentationSource

FAST = {"resamples": 60}
KINDS = ("structures", "objects")


def task_of(scheme, tolerance_mm=1.0):
    task = {"structures": "segment", "objects": "detect"}[scheme.kind]
    return make_place_task(Plan(scheme, task=task, decide=DecidePlan(tolerance_mm=tolerance_mm)))


def evaluated(places, kind, *, scheme=None, data=None, by=(), settings=FAST, n=24, patients=None, **options):
    scheme = scheme or places.schemes[kind]
    model = places.oracle(task_of(scheme), **options)
    return evaluate_model(model, places.dataset(data or places.schemes[kind], n, patients=patients), by=by, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_places_are_evaluated_as_classes_are(kind, places, tmp_path):
    data = places.dataset(places.schemes[kind], unknown=(5,))
    model = places.oracle(task_of(places.schemes[kind]), bad=("c7",), refused=("c8",))
    evidence = evaluate_model(model, data, by=("sex",), **FAST)
    assert evidence.counts["cases"] == 23
    assert evidence.counts["with_truth"] == 22
    assert evidence.counts["abstained"] == 1
    assert [f.case for f in evidence.failures] == ["c7"]
    assert set(evidence.subgroups["sex"]) == {"female", "male"}
    main = {"structures": "dice", "objects": "ap50"}[kind]
    assert 0 < evidence.overall[main].value < 1
    assert evidence.overall[main].low < evidence.overall[main].high
    assert set(evidence.classes) == set(places.schemes[kind].classes)
    assert evidence.settings.task == {"structures": "segment", "objects": "detect"}[kind]
    evidence.save(tmp_path)
    back = Evidence.load(tmp_path)
    assert type(back.task) is type(model.task)
    assert back.to_json() == evidence.to_json()
    assert b"Name^Of" not in (tmp_path / "cases.parquet").read_bytes()


def test_settings_keep_what_the_task_measures_by(places):
    scheme = places.schemes["structures"]
    data = places.dataset(scheme, 6)
    loose, strict = (evaluate_model(places.oracle(task_of(scheme, tolerance_mm=mm)), data, **FAST) for mm in (5.0, 0.1))
    assert loose.overall["surface_dice"].value > strict.overall["surface_dice"].value
    assert loose.settings.tolerance_mm == 5.0
    assert Settings.from_json(loose.settings.to_json()) == loose.settings
    assert evaluated(places, "objects", n=8).settings.dimensions == 2


def test_structures_are_matched_by_name_whatever_their_order(places):
    mine = places.schemes["structures"]
    turned = LabelScheme("structures", mine.classes[::-1])
    plain, other = evaluated(places, "structures"), evaluated(places, "structures", data=turned)
    assert plain.overall["dice"] == other.overall["dice"]
    assert other.settings.scheme == mine


def test_boxes_of_data_in_another_order_get_the_numbers_of_the_model(places):
    mine = places.schemes["objects"]
    turned = LabelScheme("objects", mine.classes[::-1])
    data = places.dataset(turned)
    moved = align(data, mine)
    assert moved.scheme == mine
    for before, after, truth in zip(data, moved, places.dataset(mine), strict=True):
        assert isinstance(after.truth, Boxes)
        np.testing.assert_array_equal(after.truth.classes, truth.truth.classes)
        np.testing.assert_array_equal(after.truth.corners, before.truth.corners)
    assert evaluated(places, "objects", data=turned).overall["ap50"] == evaluated(places, "objects").overall["ap50"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_the_model_does_not_know_is_refused(kind, places):
    scheme = places.schemes[kind]
    known = replace(scheme, classes=("spleen", scheme.classes[1]))
    with pytest.raises(
        DataError, match=rf"does not know '{scheme.classes[0]}'.*the model has 'spleen', '{scheme.classes[1]}'"
    ):
        align(places.dataset(scheme), known)


def test_a_structure_that_the_data_do_not_know_is_unknown(places):
    scheme = places.schemes["structures"]
    evidence = evaluated(places, "structures", data=replace(scheme, classes=("liver",)))
    assert evidence.settings.unlabelled == ("tumour",)
    assert evidence.classes["tumour"]["cases_unknown"].value == 24
    assert np.isnan(evidence.classes["tumour"]["dice"].value)
    assert evidence.overall["dice"].value == evidence.classes["liver"]["dice"].value


def test_boxes_of_a_class_that_the_data_do_not_know_are_no_false_alarms(places):
    scheme = places.schemes["objects"]
    only = replace(scheme, classes=("vessel",))
    evidence = evaluated(places, "objects", data=only)
    alone = evaluated(places, "objects")
    assert evidence.settings.unlabelled == ("node",)
    assert evidence.classes["vessel"]["ap50"].value == alone.classes["vessel"]["ap50"].value
    assert "node" not in "".join(evidence.rows["boxes_found"])
    assert evidence.overall["false_positives_an_image"].value <= alone.overall["false_positives_an_image"].value
    assert np.isnan(evidence.classes["node"]["ap50"].value)


def test_a_finding_of_known_classes_only_is_left_as_it_is(places):
    model = places.oracle(task_of(places.schemes["objects"]))
    answer = next(model.predict_many(places.dataset(places.schemes["objects"], 3).cases))
    assert known_part(answer, ()) is answer
    assert len(known_part(answer, places.schemes["objects"].classes).finding) == 0


def test_objects_may_be_those_of_outlined_structures(places):
    objects = LabelScheme("objects", ("tumour", "liver"))
    moved = align(places.dataset(places.schemes["structures"]), objects)
    assert moved.scheme == objects
    assert isinstance(moved.cases[0].truth, SegmentationSource)
    with pytest.raises(DataError, match=r"truth is objects .*the model outlines structures: give masks"):
        align(places.dataset(places.schemes["objects"]), LabelScheme("structures", ("node", "vessel")))
    with pytest.raises(DataError, match=r"truth is structures .*answers a binary question"):
        align(places.dataset(places.schemes["structures"]), LabelScheme("binary", ("no", "yes")))


@pytest.mark.parametrize(("kind", "wanted"), [("structures", "Give masks"), ("objects", "Give boxes or masks")])
def test_no_truth_at_all_says_what_to_give(kind, wanted, places):
    data = places.dataset(places.schemes[kind], 4, unknown=range(4))
    with pytest.raises(DataError, match=f"no case has a truth to measure against. {wanted}"):
        evaluate_model(places.oracle(task_of(places.schemes[kind])), data, **FAST)
    with pytest.raises(DataError, match=f"holds no truth to measure against. {wanted}"):
        align(replace(data, scheme=None), places.schemes[kind])


def test_a_truth_that_cannot_be_read_is_a_failure_of_its_case_alone(places):
    def broken():
        raise DataError("case c3: the mask holds the value 9")

    data = places.dataset(places.schemes["structures"], 6)
    cases = [replace(c, truth=SegmentationSource(broken)) if c.id == "c3" else c for c in data]
    evidence = evaluate_model(
        places.oracle(task_of(places.schemes["structures"])), replace(data, cases=tuple(cases)), **FAST
    )
    assert [(f.case, f.kind) for f in evidence.failures] == [("c3", "DataError")]
    assert len(evidence.rows) == 5


def test_answers_are_scored_as_they_stream_by(places):
    """Nothing of an answer is kept: while one case is predicted, the finding of the one before is gone."""
    import gc
    import weakref

    model = places.oracle(task_of(places.schemes["structures"]))
    alive = []
    whole = model.predict_many

    def watched(cases, *, reporter=None):
        seen = []
        for answer in whole(cases):
            if not isinstance(answer, Failure):
                seen.append(weakref.ref(answer.finding))
            yield answer
            del answer
            gc.collect()
            alive.append(sum(ref() is not None for ref in seen))

    model.predict_many = watched
    evaluate_model(model, places.dataset(places.schemes["structures"], 6), **FAST)
    # The loop's own variable holds the last answer; no earlier one lives.
    assert max(alive) <= 1


def test_evidence_of_answers_goes_through_them_once(places):
    data = places.dataset(places.schemes["structures"], 6)
    model = places.oracle(task_of(places.schemes["structures"]))
    by_id = {case.id: case for case in data}
    answers = ((answer, by_id[answer.case]) for answer in model.predict_many(data.cases))
    evidence = evidence_of(answers, model, data="phantoms", split="validation")
    assert len(evidence.rows) == 6
    assert (evidence.settings.task, evidence.settings.split) == ("segment", "validation")
    assert evidence.overall["dice"].value == evaluate_model(model, data, **FAST).overall["dice"].value


def test_the_better_masks_are_shown_to_be_better(places):
    good, bad = (evaluated(places, "structures", noise=noise, n=40) for noise in (0.5, 3.0))
    found = compare_evidence(bad, good)
    dice = found.differences["dice"]
    assert dice.verdict == "second better"
    assert dice.difference.value == pytest.approx(good.overall["dice"].value - bad.overall["dice"].value)
    assert dice.first == pytest.approx(bad.overall["dice"].value)
    lower = found.differences["hd95_median"]
    assert lower.lower_is_better
    assert lower.difference.value < 0
    assert compare_evidence(good, good).differences["dice"].verdict == "no difference shown"
    assert "dice" in found.text()


def test_the_better_boxes_are_shown_to_be_better(places):
    good, bad = (evaluated(places, "objects", noise=noise, n=60) for noise in (0.3, 3.0))
    found = compare_evidence(bad, good)
    ap = found.differences["ap50"]
    assert ap.verdict == "second better"
    values = [
        float(class_mean(average_precision(match(BoxRows.read(e.rows, e.settings.scheme).boxes, iou=(0.5,))))[0])
        for e in (bad, good)
    ]
    assert (ap.first, ap.second) == pytest.approx(values)
    assert ap.difference.value == pytest.approx(values[1] - values[0])


def test_pairing_makes_the_interval_of_a_difference_narrow(places):
    """Cases that are hard for both models cancel; unpaired, the intervals of the two would add up."""
    first, second = (evaluated(places, "structures", noise=1.0, seed=seed, n=40) for seed in (0, 1))
    paired = compare_evidence(first, second).differences["sensitivity"].difference
    one, two = first.overall["sensitivity"], second.overall["sensitivity"]
    apart = ((one.high - one.low) ** 2 + (two.high - two.low) ** 2) ** 0.5
    assert paired.high - paired.low < apart


@pytest.mark.parametrize(("kind", "what"), [("structures", "masks"), ("objects", "boxes")])
def test_models_judged_by_other_truths_are_not_compared(kind, what, places):
    one = evaluated(places, kind, n=8)
    rows = one.rows.copy()
    if kind == "structures":
        rows["voxels_truth_liver"] += 1
    else:
        rows.loc[1, "boxes_truth"] = "[]"
    other = Evidence(rows, one.task, one.settings)
    with pytest.raises(DataError, match=f"evaluate both on the same {what}"):
        compare_evidence(one, other)
    with pytest.raises(DataError, match="different questions"):
        compare_evidence(one, evaluated(places, KINDS[1 - KINDS.index(kind)], n=8))


def test_evaluations_by_other_rules_are_not_compared(places):
    one = evaluated(places, "structures", n=6)
    other = Evidence(one.rows, one.task, replace(one.settings, tolerance_mm=4.0))
    with pytest.raises(DataError, match=r"tolerance_mm 1\.0 and 4\.0"):
        compare_evidence(one, other)
