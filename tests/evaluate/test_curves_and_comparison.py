"""Curves from evidence, subgroups, and two models on the same cases."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sk

from sagittal.errors import DataError
from sagittal.evaluate import curves
from sagittal.evaluate.compare import compare_evidence, mcnemar
from sagittal.evaluate.evidence import Evidence, evaluate_model
from sagittal.evaluate.subgroups import group_by, table_column
from sagittal.labels import LabelScheme
from sagittal.metrics.ranking import delong_test

FAST = {"resamples": 200}


@pytest.fixture
def evidence(binary, oracle, dataset_of):
    return evaluate_model(oracle(binary), dataset_of(binary, 200, unknown=(3,)), **FAST)


def test_curves_equal_scikit_learn(evidence):
    rows = evidence.rows[evidence.rows["truth"].notna()]
    y, p = (rows["truth"] == "malignant").to_numpy(), rows["p_malignant"].to_numpy()
    x, hit, _ = sk.roc_curve(y, p, drop_intermediate=False)
    roc = curves.roc_curve(evidence, "malignant")
    np.testing.assert_allclose(np.stack([roc.x, roc.y]), np.stack([x, hit]))
    pr = curves.pr_curve(evidence, "malignant")
    assert np.sum(np.diff(pr.x, prepend=0) * pr.y) == pytest.approx(evidence.overall["average_precision"].value)


def test_reliability_counts_every_case_once(evidence):
    curve = curves.reliability_curve(evidence, "malignant")
    assert curve.n.sum() == 199
    assert (curve.low <= curve.observed).all()
    assert (curve.observed <= curve.high).all()
    assert (np.diff(curve.stated) > 0).all()


def test_net_benefit_equals_its_formula(evidence):
    p, truth = curves.scores_of(evidence, "malignant")
    curve = curves.decision_curve(evidence, "malignant")
    for t, value, everyone in zip(curve.thresholds, curve.model, curve.treat_all, strict=True):
        act = p >= t
        tp, fp = np.sum(act & (truth == 1)), np.sum(act & (truth == 0))
        assert value == pytest.approx((tp - fp * t / (1 - t)) / len(p), abs=1e-12)
        assert everyone == pytest.approx((truth.sum() - (1 - truth).sum() * t / (1 - t)) / len(p), abs=1e-12)


def test_an_unknown_class_is_refused(evidence):
    with pytest.raises(DataError, match=r"no class 'malign'. Did you mean 'malignant'\?"):
        curves.roc_curve(evidence, "malign")


# --- subgroups


def test_numbers_are_cut_at_their_quartiles():
    values = pd.Series([*np.arange(100.0), None], name="age")
    grouping = group_by(values)
    assert grouping.edges == (0.0, 24.75, 49.5, 74.25, 99.0)
    assert [int(m.sum()) for m in grouping.members.values()] == [25, 25, 25, 25, 1]
    assert list(grouping.members)[-1] == "(missing)"
    assert np.sum(list(grouping.members.values()), axis=0).tolist() == [1] * 101


def test_repeated_numbers_make_fewer_bins():
    grouping = group_by(pd.Series([0.0] * 80 + list(range(1, 21)), name="dose"))
    assert sum(int(m.sum()) for m in grouping.members.values()) == 100
    assert len(grouping.edges) == len(set(grouping.edges)) < 5


def test_few_numbers_are_groups_themselves():
    assert list(group_by(pd.Series([3, 1.5, 1.5, 3])).members) == ["1.5", "3"]


def test_small_groups_are_marked():
    grouping = group_by(pd.Series(["a"] * 20 + ["b"] * 19))
    assert grouping.small == ("b",)


def test_rare_names_are_pooled():
    names = [f"site {n}" for n in range(30) for _ in range(30 - n)]
    grouping = group_by(pd.Series(names, name="site"))
    assert len(grouping.members) == 21
    assert grouping.members["(other, 10 values)"].sum() == sum(range(1, 11))
    assert len(grouping.pooled) == 10


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["1", "2.5", ""], [1.0, 2.5, None]),
        ([1, None, float("nan")], [1.0, None, None]),
        ([True, False], ["True", "False"]),
        (["1", "1a"], ["1", "1a"]),
        ([float("inf"), 1], [None, 1.0]),
    ],
)
def test_columns_become_numbers_or_text(given, expected):
    assert table_column(given) == expected


# --- comparison


def test_differences_are_second_minus_first_on_shared_cases(binary, oracle, dataset_of):
    data = dataset_of(binary, 200)
    first = evaluate_model(oracle(binary, skill=1.0, bad=("c1",)), data, **FAST)
    second = evaluate_model(oracle(binary, skill=3.0, seed=1, bad=("c2", "c3")), data, **FAST)
    found = compare_evidence(first, second)
    assert (found.cases, found.only_first, found.only_second) == (197, 2, 1)
    shared = sorted(set(first.rows["case"]) & set(second.rows["case"]))
    a, b = (e.rows.set_index("case").loc[shared] for e in (first, second))
    y = (a["truth"] == "malignant").to_numpy().astype(float)
    expected = delong_test(a["p_malignant"].to_numpy(), b["p_malignant"].to_numpy(), y)
    assert found.differences["auc"].p_value == pytest.approx(expected.p_value, rel=1e-9)
    assert found.differences["auc"].difference.value == pytest.approx(
        sk.roc_auc_score(y, b["p_malignant"]) - sk.roc_auc_score(y, a["p_malignant"]), abs=1e-9
    )
    brier = found.differences["brier"]
    assert brier.difference.value == pytest.approx(b["brier"].mean() - a["brier"].mean(), abs=1e-9)
    assert brier.difference.value < 0
    assert brier.verdict == "second better"  # lower is better
    assert found.differences["accuracy"].verdict == "second better"
    assert "second better" in found.text()
    json.dumps(found.to_json(), allow_nan=False)
    back = compare_evidence(second, first)
    assert back.differences["brier"].verdict == "first better"


def test_pairing_makes_the_interval_narrower_than_two_separate_ones(binary, oracle, dataset_of):
    data = dataset_of(binary, 300)
    first = evaluate_model(oracle(binary, skill=1.0), data, **FAST)
    nearly = evaluate_model(oracle(binary, skill=1.1), data, **FAST)
    e = compare_evidence(first, nearly).differences["log_loss"].difference
    alone = first.overall["log_loss"]
    assert e.high - e.low < 0.4 * (alone.high - alone.low)


def test_a_model_does_not_differ_from_itself(evidence):
    found = compare_evidence(evidence, evidence)
    assert {d.verdict for d in found.differences.values()} == {"no difference shown"}
    assert found.differences["auc"].p_value == 1
    assert found.differences["accuracy"].p_value == 1


@pytest.mark.parametrize(("kind", "classes"), [("multiclass", "abc"), ("ordinal", "0123"), ("multilabel", "xy")])
def test_every_kind_can_be_compared(kind, classes, oracle, dataset_of):
    scheme = LabelScheme(kind, tuple(classes))
    data = dataset_of(scheme, 90, patients=30)
    pair = [evaluate_model(oracle(scheme, skill=s), data, resamples=50) for s in (0.5, 3.0)]
    found = compare_evidence(*pair)
    assert found.patients == 30
    assert found.differences["auc"].verdict == "second better"
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("counts", [(5, 1), (12, 12), (0, 7), (30, 14)])
def test_mcnemar_equals_statsmodels(counts):
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    b, c = counts
    first = np.r_[np.ones(b), np.zeros(c), np.ones(20)]
    second = np.r_[np.zeros(b), np.ones(c), np.ones(20)]
    expected = tables.mcnemar([[20, b], [c, 0]], exact=True).pvalue
    assert mcnemar(first, second) == pytest.approx(min(expected, 1), abs=1e-9)
    assert mcnemar(first, second) == pytest.approx(stats.binomtest(b, b + c).pvalue)


def test_what_cannot_be_compared_is_refused(binary, oracle, dataset_of, evidence):
    three = LabelScheme("multiclass", ("a", "b", "c"))
    other = evaluate_model(oracle(three), dataset_of(three, 30), **FAST)
    with pytest.raises(DataError, match="answer different questions"):
        compare_evidence(evidence, other)
    elsewhere = evidence.rows.assign(case=evidence.rows["case"] + "x")
    with pytest.raises(DataError, match="share no case"):
        compare_evidence(evidence, Evidence.from_rows(elsewhere, evidence.task, evidence.settings))
    turned = evidence.rows.copy()
    turned["truth"] = turned["truth"].map({"benign": "malignant", "malignant": "benign"})
    with pytest.raises(DataError, match="disagree on the truth"):
        compare_evidence(evidence, Evidence.from_rows(turned, evidence.task, evidence.settings))
    nothing = replace(evidence, rows=evidence.rows.assign(truth=None))
    with pytest.raises(DataError, match="no shared case has a known truth"):
        compare_evidence(nothing, nothing)
