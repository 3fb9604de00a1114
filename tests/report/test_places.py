"""Reports on masks and boxes: what they say is what the rows hold, every figure is drawn, cases show what was judged."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from sagittal.evaluate.evidence import Evidence, evaluate_model
from sagittal.labels import LabelScheme
from sagittal.metrics.boxes import gather
from sagittal.metrics.detection import average_precision, match
from sagittal.model.parts import IntendedUse
from sagittal.prepare.place_store import build_place_store
from sagittal.prepare.plan import (
    AugmentPlan,
    DecidePlan,
    InputPlan,
    NetworkPlan,
    Plan,
    PreparePlan,
    SplitPlan,
    TrainPlan,
)
from sagittal.progress import Quiet
from sagittal.report import conclude as concluding
from sagittal.report import detect_figures, segment_figures, style, words
from sagittal.report.batches import window_batch
from sagittal.report.card import model_card
from sagittal.report.facts import describe_model, settled_rows
from sagittal.report.measure_names import LOWER_IS_BETTER, number, title_of
from sagittal.report.page import render, write_report
from sagittal.report.pictures import case_scores, choose_cases, describe, draw_cases
from sagittal.tasks.detect_rows import BoxRows
from sagittal.tasks.registry import make_place_task
from sagittal.truth import Boxes

FAST = {"resamples": 40}
SETTLED = {
    "structures": {
        "clean": {"liver": {"largest": True, "least_ml": 0.25, "fill": True}},
        "clean_gain": {
            "liver": {
                "mean": 0.0123,
                "lower": 0.002,
                "better": 12,
                "worse": 1,
                "dice_before": 0.85,
                "dice_after": 0.8623,
            }
        },
        "expected_dice": {
            "liver": {"kind": "mean", "cases": 30, "error": 0.02, "error_of_mean": 0.05, "correlation": 0.8}
        },
    },
    "objects": {
        "suppress_iou": 0.4,
        "calibration": {},
        "threshold": {"node": 0.31, "vessel": 0.42},
        "rule": "iou",
        "point": "fp=1",
        "validation": {
            "images": 40,
            "classes": {
                "node": {"objects": 99, "sensitivity": 0.9, "precision": 0.8, "false_positives_an_image": 0.5},
                "vessel": {"objects": 0},
            },
        },
    },
}
FIGURES = {
    "structures": {"dice.png", "distances.png", "dice_by_size.png", "volumes.png", "calibration.png"},
    "objects": {"pr_curve.png", "froc_curve.png", "calibration.png", "sizes.png", "confusion_matrix.png"},
}


def plan_of(scheme):
    task = {"structures": "segment", "objects": "detect"}[scheme.kind]
    dimensions = {"structures": 3, "objects": 2}[scheme.kind]
    size = (8, 16, 16) if dimensions == 3 else (32, 32)
    stages = ((1,) * dimensions, (2,) * dimensions, (2,) * dimensions)
    return Plan(
        scheme,
        task=task,
        input=InputPlan(dimensions=dimensions),
        prepare=PreparePlan(size=size, whole=False, normalise="image", store="float16"),
        augment=AugmentPlan(flip=(0,), rotate_deg=10),
        network=NetworkPlan(name="unet", width=4, depth=(1, 1, 1), strides=stages, kernels=((3,) * dimensions,) * 3),
        train=TrainPlan(batch=2),
        split=SplitPlan(folds=2),
        decide=DecidePlan(tolerance_mm=1.0, flips=(0,)),
    )


def model_of(places, kind, **options):
    """A model that says where, without networks."""
    scheme = places.schemes[kind]
    plan = plan_of(scheme)
    oracle = places.oracle(make_place_task(plan), **options)
    return SimpleNamespace(
        name="phantom-finder",
        label=oracle.label,
        plan=plan,
        task=oracle.task,
        members=(1, 2),
        weights=(0.5, 0.5),
        settled=SETTLED[kind],
        gate=None,
        intended_use=IntendedUse.of(plan),
        data={"name": "phantoms", "training_cases": 160},
        created="2026-01-01T00:00:00+00:00",
        versions={"torch": "2"},
        checksum="ab",
        predict_many=oracle.predict_many,
    )


@pytest.fixture(scope="module", params=["structures", "objects"])
def judged(request, places):
    """Model, data and evidence of each kind; made once."""
    model = model_of(places, request.param, bad=("c9",), refused=("c10",))
    data = places.dataset(places.schemes[request.param], 30)
    return SimpleNamespace(
        kind=request.param,
        model=model,
        data=data,
        evidence=evaluate_model(model, data, by=("sex",), **FAST),
    )


def test_every_figure_of_a_kind_is_drawn_and_saved(judged, tmp_path):
    pictures = draw_cases(judged.evidence, judged.model, judged.data, each=1)
    page = write_report(judged.evidence, tmp_path, model=judged.model, pictures=pictures)
    assert {p.name for p in tmp_path.glob("*.png")} == FIGURES[judged.kind]
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/") == len(FIGURES[judged.kind]) + len(pictures) + 1  # one of subgroups
    assert "http:" not in text
    assert "https:" not in text
    assert "Name^Of" not in text


def test_the_page_holds_the_numbers_of_the_evidence(judged):
    page = render(judged.evidence, {}, model=judged.model)
    main = {"structures": ("dice", "surface_dice"), "objects": ("ap50", "cpm", "sensitivity")}[judged.kind]
    for name in main:
        assert title_of(name, judged.kind) in page
        assert number(judged.evidence.overall[name].value) in page
    for name in judged.evidence.classes:
        assert f'<th scope="row">{name}' in page
    assert "Operating points</h2>" not in page
    assert "Settled on validation cases" in page
    assert "the file ends early; copy it again" in page
    assert "unlike the training cases" in page


def test_counts_of_cases_that_say_nothing_stand_on_the_page(places):
    model = model_of(places, "structures")
    evidence = evaluate_model(model, places.dataset(places.schemes["structures"], 22), **FAST)
    page = " ".join(render(evidence, {}, model=model).split())
    tumour = evidence.classes["tumour"]
    # Without a tumour in truth and answer; with one, and none found.
    assert tumour["cases_both_empty"].value == 11
    missed = int(tumour["cases_missed"].value)
    assert missed == sum(n % 2 and n % 7 == 3 for n in range(22))
    row = page[page.index("Cases that say less") :]
    row = row[row.index("tumour</th>") : row.index("</tr>", row.index("tumour</th>"))]
    assert row.count(">11<") == 1
    assert f">{missed}<" in row
    told = " ".join(words.headline(evidence))
    assert "Nothing at all is found of 'tumour'" in told
    assert any("their Dice is 0, their distance infinite" in s for s in words.cautions(evidence))


def test_headlines_say_the_main_number_and_what_it_stands_beside(judged):
    told = " ".join(words.headline(judged.evidence))
    if judged.kind == "structures":
        assert f"mean Dice over 2 structures is {judged.evidence.overall['dice'].value:.2f}" in told
        assert "Marking every voxel would give" in told
        assert "Within 1 mm of each other" in told
    else:
        assert f"{judged.evidence.overall['ap50'].value:.2f}" in told
        assert "a model that finds nothing has 0" in told
        assert "At the operating point 'fp=1'" in told


def test_cautions_name_what_is_rare_unknown_or_without_a_scale(places):
    model = model_of(places, "structures")
    only = LabelScheme("structures", ("liver",))
    evidence = evaluate_model(model, places.dataset(only, 6), **FAST)
    told = " ".join(words.cautions(evidence))
    assert "These data do not know tumour" in told
    assert "fewer than 20 cases have, whose figures are uncertain: liver (6)" in told
    pixels = evidence.rows.copy()
    pixels["unit"] = "px"
    told = " ".join(words.cautions(Evidence(pixels, evidence.task, evidence.settings)))
    assert "distances and the tolerance are in pixels" in told
    assert "pixels" in " ".join(words.headline(Evidence(pixels, evidence.task, evidence.settings)))


def test_gaps_look_at_the_measure_of_the_question(places):
    """One group of cases is answered far worse; its Dice lies below that of all."""
    model = model_of(places, "structures")
    data = places.dataset(places.schemes["structures"], 60)
    evidence = evaluate_model(model, data, by=("sex",), **FAST)
    rows = evidence.rows.copy()
    bad = rows["table_sex"] == "female"
    for name in ("dice_liver", "surface_dice_liver"):
        rows.loc[bad, name] = rows.loc[bad, name] * 0.5
    found = words.gaps(Evidence(rows, evidence.task, evidence.settings))
    assert ("sex", "female", "dice") in {(column, group, measure) for column, group, measure, _ in found}
    assert all(group == "female" for _, group, _, _ in found)


def test_cases_are_ranked_by_how_well_they_are_answered(judged):
    scores = case_scores(judged.evidence)
    groups = choose_cases(judged.evidence, each=3)
    worst, best = ([scores[name] for name in groups[which]] for which in ("worst", "best"))
    assert max(scores.values()) == best[0]
    assert min(scores.values()) == worst[0]
    assert max(worst) <= min(scores[name] for name in groups["typical"]) <= min(best)
    assert not set(groups["best"]) & set(groups["worst"])


@pytest.mark.parametrize(
    ("hit", "true", "false", "score"), [(0, 0, 0, 1.0), (0, 0, 2, 0.0), (2, 4, 0, 2 / 3), (0, 3, 0, 0.0)]
)
def test_the_score_of_a_case_with_boxes_is_its_f1(hit, true, false, score):
    row = {"case": "c", "truth": "", "n_hit": hit, "n_truth": true, "false_positives": false}
    evidence = Evidence(pd.DataFrame([row]), None)
    assert case_scores(evidence)["c"] == pytest.approx(score)
    assert describe(row).startswith(f"{hit} of {true} objects found, {false} false")


def test_a_case_without_truth_is_not_ranked(places):
    model = model_of(places, "objects")
    evidence = evaluate_model(model, places.dataset(places.schemes["objects"], 8, unknown=(2,)), **FAST)
    assert "c2" not in case_scores(evidence)
    assert len(case_scores(evidence)) == 7
    assert describe(evidence.rows.iloc[2].to_dict()).startswith("truth: unknown")


def test_what_was_settled_is_told_in_words(judged):
    rows = dict(settled_rows(judged.model))
    if judged.kind == "structures":
        told = rows["liver: post-processing"]
        assert "only the largest piece is kept, pieces below 0.25 ml are removed, holes are filled" in told
        assert "0.850 → 0.862, by +0.0123, at least +0.0020" in told
        assert "better in 12, worse in 1 patients" in told
        assert rows["tumour: post-processing"].startswith("none")
        assert rows["tumour: expected Dice"].startswith("not stated")
    else:
        assert rows["operating point"] == "fp=1"
        assert "from a score of 0.310; there: 99 objects, sensitivity 0.90" in rows["node"]
        assert "no true object" in rows["vessel"]
    assert settled_rows(None) == []


def test_the_card_and_the_facts_are_those_of_a_model_that_says_where(judged):
    card = model_card(judged.model, None, judged.evidence)
    assert "windows of" in card
    assert "conformal" not in card
    assert "calibration |" not in card
    assert title_of({"structures": "dice", "objects": "ap50"}[judged.kind]) in card
    facts = describe_model(judged.model)
    assert "calibration" not in facts
    assert facts["settled"] == dict(settled_rows(judged.model))
    assert facts["window"] == "x".join(map(str, judged.model.plan.prepare.size))


def test_lower_is_better_for_errors_and_distances():
    assert {"hd95_median", "volume_error_percent", "false_positives_an_image", "brier"} <= LOWER_IS_BETTER
    assert not {"dice", "ap50", "cpm", "auc", "surface_dice"} & LOWER_IS_BETTER


def test_the_agreement_of_volumes_is_that_of_the_rows(places):
    model = model_of(places, "structures")
    evidence = evaluate_model(model, places.dataset(places.schemes["structures"], 12), **FAST)
    figure = segment_figures.agreement_figure(evidence)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    error = evidence.rows["volume_error_ml_liver"]
    assert any(text.startswith(f"bias {error.mean():+.3g}") for text in texts)
    assert any(f"{error.mean() + 1.96 * error.std():+.3g}" in text for text in texts)


def test_curves_of_distances_end_below_the_top_where_a_mask_is_empty(places):
    model = model_of(places, "structures")
    evidence = evaluate_model(model, places.dataset(places.schemes["structures"], 22), **FAST)
    figure = segment_figures.distance_figure(evidence)
    ends = {line.get_label().split(":")[0]: line.get_ydata()[-1] for line in figure.axes[0].lines}
    values = evidence.rows["hd95_tumour"].dropna()
    assert ends["liver"] == 1.0
    assert ends["tumour"] == pytest.approx(np.isfinite(values).mean())
    assert ends["tumour"] < 1


def test_precision_and_recall_enclose_the_average_precision(places):
    """The area under the falling envelope of the drawn curve is the AP in its legend."""
    model = model_of(places, "objects", noise=1.5)
    evidence = evaluate_model(model, places.dataset(places.schemes["objects"], 40), **FAST)
    figure = detect_figures.pr_figure(evidence)
    boxes = BoxRows.read(evidence.rows, evidence.settings.scheme).boxes
    expected = average_precision(match(boxes, iou=(0.5,)))[0]
    for line, ap in zip(figure.axes[0].lines[::2], expected, strict=True):
        recall, precision = line.get_data()
        envelope = np.maximum.accumulate(np.asarray(precision)[::-1])[::-1]
        area = float(np.sum(np.diff(recall) * envelope[1:]))
        assert area == pytest.approx(float(ap), abs=0.02)


def test_confusion_counts_classes_misses_and_inventions():
    def box(x):
        return [[x, 0, -0.5], [x + 10, 10, 0.5]]

    truth = [Boxes([box(0), box(20), box(40)], [0, 1, 1])]
    found = [(Boxes([box(0), box(20), box(60)], [0, 0, 1]), np.array([0.9, 0.8, 0.7]))]
    rows = SimpleNamespace(boxes=gather(found, truth, classes=2), chosen=np.array([True, True, True]))
    expected = [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    np.testing.assert_array_equal(detect_figures.confusion(rows, 0.5, 2), expected)
    rows.chosen = np.array([True, False, False])
    np.testing.assert_array_equal(detect_figures.confusion(rows, 0.5, 2), [[1, 0, 0], [0, 0, 2], [0, 0, 0]])


def test_evidence_without_objects_or_truth_gives_no_curves(places):
    model = model_of(places, "objects")
    data = places.dataset(places.schemes["objects"], 9)
    empty = tuple(replace(c, truth=Boxes([], [])) for c in data)
    evidence = evaluate_model(model, replace(data, cases=empty), **FAST)
    assert "pr_curve.png" not in detect_figures.detect_figures(evidence)
    assert "no object by which the model could be judged" in " ".join(words.headline(evidence))
    render(evidence, {}, model=model)


def test_one_structure_and_one_case_are_drawn(places):
    only = LabelScheme("structures", ("liver",))
    model = model_of(places, "structures")
    evidence = evaluate_model(model, places.dataset(only, 1), **FAST)
    for figure in segment_figures.segment_figures(evidence).values():
        style.to_png(figure)


@pytest.mark.parametrize("kind", ["structures", "objects"])
def test_windows_of_a_training_batch_show_what_is_told(kind, places, tmp_path):
    plan = plan_of(places.schemes[kind])
    task = make_place_task(plan)
    data = places.dataset(places.schemes[kind], 5)
    store = build_place_store(data.cases, plan, task, tmp_path)
    shown = window_batch(store, np.arange(4), plan, task)
    assert shown.dtype == np.uint8
    grey = np.all(shown[..., :1] == shown, axis=-1)
    assert 0.005 < 1 - grey.mean() < 0.9  # the images are grey, what is told is coloured
    assert window_batch(store, np.arange(0), plan, task) is None


@pytest.mark.parametrize("kind", ["structures", "objects"])
def test_a_run_is_concluded_by_the_answers_that_it_was_judged_by(kind, places, tmp_path, monkeypatch):
    model = model_of(places, kind)
    data = places.dataset(places.schemes[kind], 9)
    by_id = {case.id: case for case in data}

    class Answers:
        """Gone through again at will, as those of a run."""

        def __len__(self):
            return len(data)

        def __iter__(self):
            return ((answer, by_id[answer.case]) for answer in model.predict_many(data.cases))

    def forbidden(*_, **__):
        raise AssertionError("the packaged model learnt from these cases; its answers must not be shown")

    run = SimpleNamespace(
        folder=tmp_path,
        plan=model.plan,
        model=SimpleNamespace(**{**vars(model), "predict_many": forbidden}),
        splits=SimpleNamespace(folds=()),
        validation=Answers(),
    )
    evidence = concluding.conclude(run, data, reporter=Quiet())
    assert len(evidence.rows) == 9
    assert evidence.settings.split == "validation"
    names = {p.name for p in tmp_path.iterdir()}
    assert {"report.html", "README.md", "evidence.json", "cases.parquet", "val_batch_pred.png"} <= names
    assert FIGURES[kind] <= names
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('class="case"') == 6
    assert page.count("networks and mirrored views disagree") == (kind == "structures")
    assert page.count("disagreement of case") == (6 if kind == "structures" else 0)
    assert "validation cases: the model was calibrated" in page


def test_numbers_that_are_not_finite():
    assert number(math.inf) == "∞"
    assert number(math.nan) == "not defined"
