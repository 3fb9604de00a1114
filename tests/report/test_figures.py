"""Figures: drawn from the evidence, the same every time, without pyplot."""

import io

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib._pylab_helpers import Gcf
from PIL import Image as Pillow

from sagittal.evaluate.evidence import Evidence, evaluate_model
from sagittal.labels import LabelScheme
from sagittal.report import figures, style

KINDS = {
    "binary": ("benign", "malignant"),
    "multiclass": tuple("abcdefghij"),
    "multilabel": ("x", "y", "z", "u", "v"),
}


def pixels(png):
    return np.asarray(Pillow.open(io.BytesIO(png)).convert("RGB"))


def make(kind, oracle, dataset_of, n=80, **options):
    scheme = LabelScheme(kind, KINDS[kind])
    return evaluate_model(oracle(scheme), dataset_of(scheme, n), resamples=20, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_figures(kind, oracle, dataset_of, tmp_path):
    before = dict(mpl.rcParams)
    drawn = figures.evidence_figures(make(kind, oracle, dataset_of))
    saved = style.save_figures(drawn, tmp_path)
    names = {"confusion_matrix.png", "roc_curve.png", "pr_curve.png", "calibration.png", "decision_curve.png"}
    assert set(saved) == names == {p.name for p in tmp_path.iterdir()}
    for png in saved.values():
        image = pixels(png)
        assert min(image.shape[:2]) > 300
        assert (image[0, 0] == 255).all()
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20
    assert not Gcf.figs  # pyplot knows of none
    assert dict(mpl.rcParams) == before


def test_the_same_evidence_draws_the_same_bytes(oracle, dataset_of):
    evidence = make("binary", oracle, dataset_of)
    first, second = (style.to_png(figures.roc_figure(evidence)) for _ in range(2))
    assert first == second


def test_roc_figure_draws_the_curve_and_its_area(oracle, dataset_of):
    evidence = make("binary", oracle, dataset_of)
    figure = figures.roc_figure(evidence)
    curve = figure.axes[0].lines[1]
    area = np.trapezoid(curve.get_ydata(), curve.get_xdata())
    assert area == pytest.approx(evidence.overall["auc"].value, abs=1e-9)
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert any(f"AUC {evidence.overall['auc'].value:.2f}" in t for t in texts)
    dot = figure.axes[0].lines[2]
    assert dot.get_xdata()[0] == pytest.approx(1 - evidence.overall["specificity"].value)
    assert dot.get_ydata()[0] == pytest.approx(evidence.overall["sensitivity"].value)


def test_confusion_figure_writes_the_counts(oracle, dataset_of):
    evidence = make("binary", oracle, dataset_of)
    shown = sorted(int(t.get_text().split()[0]) for t in figures.confusion_figure(evidence).axes[0].texts)
    rows = evidence.rows
    assert shown == sorted(pd.crosstab(rows["truth"], rows["decision"]).to_numpy().ravel().tolist())
    assert sum(shown) == 80


def test_no_more_lines_than_colours(oracle, dataset_of):
    evidence = make("multiclass", oracle, dataset_of, 200)
    kept = figures.drawn_classes(evidence)
    assert len(kept) == 8
    counts = evidence.rows["truth"].value_counts()
    assert min(counts[name] for name in kept) >= max(counts[name] for name in set(counts.index) - set(kept))


@pytest.mark.parametrize("truth", ["benign", "malignant", None])
def test_an_absent_class_is_drawn_without_a_warning(truth, oracle, dataset_of):
    evidence = make("binary", oracle, dataset_of)
    one = Evidence.from_rows(evidence.rows.assign(truth=truth), evidence.task, evidence.settings)
    drawn = figures.evidence_figures(one)
    assert len(drawn) == (5 if truth else 0)
    for figure in drawn.values():
        style.to_png(figure)


def test_names_are_text_and_not_formulas(oracle, dataset_of):
    scheme = LabelScheme("binary", ("$\\frac{1}", "_b^ $x$ <b> 良性 " + "long " * 20))
    evidence = evaluate_model(oracle(scheme), dataset_of(scheme, 40), resamples=20)
    style.to_png(figures.confusion_figure(evidence))
    labels = [t.get_text() for t in figures.roc_figure(evidence).legends[0].get_texts()]
    assert any("$x$" in text for text in labels)


def test_training_figure_has_a_line_a_member_and_score():
    steps = np.arange(5)
    table = pd.concat(
        pd.DataFrame(
            {"member": m, "step": steps, "loss": 1 / (1 + steps), "val_loss": 0.5, "val_auc": 0.8, "val_accuracy": 0.7}
        )
        for m in (0, 1, 2)
    )
    figure = figures.training_figure(table)
    left, right = figure.axes
    assert len(left.lines) == len(right.lines) == 6
    assert [t.get_text() for t in right.get_legend().get_texts()] == ["AUC (ROC)", "Accuracy"]
    style.to_png(figures.training_figure(table[table["step"] == 0].drop(columns="member")))


@pytest.mark.parametrize("shape", [(1, 20, 24), (3, 20, 24), (1, 7, 20, 24), (2, 9, 9)])
def test_batch_figure_shows_each_array(shape):
    arrays = np.random.default_rng(0).normal(size=(20, *shape)).astype(np.float32)
    figure = figures.batch_figure(arrays, [f"case {n}\nanswer" for n in range(20)], title="Batch")
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 16
    assert shown[3].images[0].get_array().shape[:2] == shape[-2:]
    assert shown[3].get_title(loc="left").startswith("case 3")
    style.to_png(figures.batch_figure(np.zeros((1, *shape)), ["constant"]))


def test_subgroup_figure_marks_small_groups(oracle, dataset_of):
    evidence = make("binary", oracle, dataset_of, by=("scanner",))
    figure = figures.subgroup_figure(evidence, "scanner", "accuracy")
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels == ["common  n = 78", "rare  n = 2"]
    style.to_png(figures.subgroup_figure(evidence, "scanner", "auc"))
