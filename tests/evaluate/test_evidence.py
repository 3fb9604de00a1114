"""Evidence: one row a case, bad cases listed, summaries computed from the rows."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from sagittal.errors import ConfigError, DataError, ReadError, ResourceError
from sagittal.evaluate.evidence import Evidence, Settings, align, evaluate_model
from sagittal.labels import LabelScheme
from sagittal.prediction import Failure

FAST = {"resamples": 50}
KINDS = {
    "binary": ("benign", "malignant"),
    "multiclass": ("a", "b", "c"),
    "ordinal": ("0", "1", "2"),
    "multilabel": ("x", "y", "z"),
}


def test_every_case_is_counted_once(binary, oracle, dataset_of):
    data = dataset_of(binary, unknown=(5, 6), skipped=("s1",))
    evidence = evaluate_model(oracle(binary, bad=("c7",), silent=("c8",), refused=("c9", "c10")), data, **FAST)
    assert evidence.counts == {
        "cases": 118,
        "patients": 118,
        "with_truth": 116,
        "without_truth": 2,
        "abstained": 2,
        "undecided": 0,
        "failed": 2,
        "skipped": 1,
    }
    assert [f.case for f in evidence.failures] == ["c7", "c8"]
    assert "copy it again" in evidence.failures[0].error
    assert evidence.failures[1].error == "the model gave no answer"
    assert evidence.overall["accuracy"].n == 116
    assert "c7" not in set(evidence.rows["case"])


def test_values_are_those_of_the_rows(binary, oracle, dataset_of):
    evidence = evaluate_model(oracle(binary), dataset_of(binary), **FAST)
    rows = evidence.rows
    y = (rows["truth"] == "malignant").to_numpy()
    assert evidence.overall["auc"].value == pytest.approx(sk.roc_auc_score(y, rows["p_malignant"]), abs=1e-9)
    assert evidence.overall["accuracy"].value == pytest.approx(rows["correct"].astype(float).mean(), abs=1e-12)
    assert evidence.overall["log_loss"].value == pytest.approx(rows["log_loss"].mean(), abs=1e-12)
    assert evidence.overall["brier"].value == pytest.approx(rows["brier"].mean(), abs=1e-12)


def test_patients_are_numbered_and_never_named(binary, oracle, dataset_of, tmp_path):
    evidence = evaluate_model(oracle(binary), dataset_of(binary, patients=30), by=("sex",), **FAST)
    assert evidence.counts["patients"] == 30
    assert evidence.rows["patient"].iloc[0] == evidence.rows["patient"].iloc[30] == "P00001"
    evidence.save(tmp_path)
    for path in tmp_path.iterdir():
        assert b"Name^Of" not in path.read_bytes()


def test_intervals_keep_patients_together(binary, oracle, dataset_of):
    one = evaluate_model(oracle(binary), dataset_of(binary, 200), resamples=400)
    few = evaluate_model(oracle(binary), dataset_of(binary, 200, patients=10), resamples=400)
    for name in ("auc", "brier", "accuracy"):
        assert one.overall[name].value == few.overall[name].value
        assert (one.overall[name].low, one.overall[name].high) != (few.overall[name].low, few.overall[name].high)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_evidence_is_computed_again_the_same(kind, oracle, dataset_of, tmp_path):
    scheme = LabelScheme(kind, KINDS[kind])
    model = oracle(scheme, bad=("c2",), refused=("c3",))
    evidence = evaluate_model(model, dataset_of(scheme, 60, unknown=(4,)), by=("age", "sex"), **FAST)
    evidence.save(tmp_path / "new" / "folder")
    back = Evidence.load(tmp_path / "new" / "folder")
    assert back.to_json() == evidence.to_json()
    pd.testing.assert_frame_equal(back.rows, evidence.rows, check_dtype=False)
    assert back.settings == evidence.settings
    assert back.failures == evidence.failures


def test_evidence_json_has_the_promised_form(binary, oracle, dataset_of, tmp_path):
    evaluate_model(oracle(binary), dataset_of(binary), by=("sex",), prevalence=0.02, **FAST).save(tmp_path)
    values = json.loads((tmp_path / "evidence.json").read_text())
    form = {"value", "low", "high", "n"}
    assert set(values["overall"]["auc"]) == form
    assert set(values["classes"]["malignant"]["sensitivity"]) == form
    assert set(values["subgroups"]["sex"]["female"]["accuracy"]) == form
    assert values["overall"]["ppv_at_prevalence"]["value"] < values["overall"]["ppv"]["value"]
    assert values["settings"]["model"] == "oracle (format 1, sha256 0123)"
    assert (values["settings"]["data"], values["settings"]["split"]) == ("phantoms", "test")
    assert values["settings"]["prevalence"] == 0.02
    assert values["settings"]["made_at"].endswith("+00:00")
    rows = pd.read_parquet(tmp_path / "cases.parquet")
    assert len(rows) == 120
    assert {
        "case",
        "patient",
        "truth",
        "decision",
        "p_benign",
        "p_malignant",
        "correct",
        "log_loss",
        "brier",
        "table_sex",
    } <= set(rows)


def test_subgroups_are_measured_on_their_rows(binary, oracle, dataset_of):
    evidence = evaluate_model(oracle(binary), dataset_of(binary), by=("age", "sex", "scanner"), **FAST)
    rows = evidence.rows[evidence.rows["table_sex"] == "female"]
    expected = rows["correct"].astype(float).mean()
    assert evidence.subgroups["sex"]["female"]["accuracy"].value == pytest.approx(expected, abs=1e-12)
    assert "(missing)" in evidence.subgroups["age"]
    assert len(evidence.subgroups["age"]) == 5
    assert evidence.groupings["scanner"].small == ("rare",)
    for column, groups in evidence.subgroups.items():
        assert sum(g["accuracy"].n for g in groups.values()) == 120, column


def test_a_clinical_column_cannot_replace_the_truth(binary, oracle, dataset_of):
    from dataclasses import replace

    data = dataset_of(binary, 40)
    cases = tuple(replace(c, table={"truth": "malignant", "case": 1, "p_benign": 0.5}) for c in data)
    data = replace(data, cases=cases, columns=("truth", "case", "p_benign"))
    evidence = evaluate_model(oracle(binary), data, by=("truth", "case", "p_benign"), **FAST)
    assert set(evidence.rows["truth"]) == {"benign", "malignant"}
    assert set(evidence.subgroups["truth"]) == {"malignant"}


def test_nan_measures_are_listed_as_undefined(binary, oracle, dataset_of, tmp_path):
    evidence = evaluate_model(oracle(binary), dataset_of(binary, 40), **FAST)
    evidence.rows["truth"] = "benign"
    one_class = Evidence.from_rows(evidence.rows, evidence.task, evidence.settings)
    assert {"auc", "sensitivity", "malignant: auc"} <= set(one_class.undefined)
    one_class.save(tmp_path)
    assert json.loads((tmp_path / "evidence.json").read_text())["overall"]["auc"]["value"] is None


# --- classes of the data and of the model


def test_classes_may_come_in_another_order(binary, oracle, dataset_of):
    turned = LabelScheme("binary", ("malignant", "benign"), target="dx")
    data = dataset_of(turned)
    moved = align(data, binary)
    for before, after in zip(data, moved, strict=True):
        assert before.truth.values.tolist() == after.truth.values.tolist()[::-1]
    evidence = evaluate_model(oracle(binary), data, **FAST)
    assert evidence.overall["auc"].value > 0.8


def test_fewer_classes_than_the_model_knows_are_fine(oracle, dataset_of):
    three = LabelScheme("multiclass", ("a", "b", "c"))
    evidence = evaluate_model(oracle(three), dataset_of(LabelScheme("binary", ("c", "a"))), **FAST)
    assert set(evidence.rows["truth"]) == {"a", "c"}
    assert np.isnan(evidence.classes["b"]["sensitivity"].value)
    some = align(dataset_of(LabelScheme("multilabel", ("y",))), LabelScheme("multilabel", ("x", "y")))
    assert np.isnan(some.cases[0].truth.values[0])


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (
            LabelScheme("binary", ("benign", "malignnant"), target="dx"),
            "class 'malignnant' of 'dx'.*Did you mean 'malignant'",
        ),
        (LabelScheme("multilabel", ("benign", "malignant")), "is multilabel, the model answers a binary question"),
    ],
)
def test_another_question_is_refused(theirs, message, binary, oracle, dataset_of):
    with pytest.raises(DataError, match=message):
        evaluate_model(oracle(binary), dataset_of(theirs), **FAST)


def test_no_truth_is_refused(binary, oracle, dataset_of):
    from dataclasses import replace

    with pytest.raises(DataError, match="phantoms: no case has a truth to measure against"):
        evaluate_model(oracle(binary), dataset_of(binary, 5, unknown=range(5)), **FAST)
    with pytest.raises(DataError, match="holds no truth to measure against"):
        evaluate_model(oracle(binary), replace(dataset_of(binary, 5), scheme=None), **FAST)


def test_a_mistyped_column_is_refused_before_anything_is_predicted(binary, dataset_of):
    class Never:
        name = "never"

        def __init__(self, scheme):
            from sagittal.tasks.classify import Classify

            self.task = Classify(scheme)

        def predict_many(self, cases, *, reporter=None):
            raise AssertionError("predicted")

    with pytest.raises(DataError, match=r"no clinical column 'sexx'. Did you mean 'sex'\?"):
        evaluate_model(Never(binary), dataset_of(binary), by=("sexx",))
    with pytest.raises(ConfigError, match="confidence must lie between 0 and 1"):
        evaluate_model(Never(binary), dataset_of(binary), confidence=95)


def test_all_cases_failing_is_an_error(binary, oracle, dataset_of):
    with pytest.raises(
        DataError, match="none of its 3 cases could be predicted; the first, case c0: case c0: the file"
    ):
        evaluate_model(oracle(binary, bad=("c0", "c1", "c2")), dataset_of(binary, 3), **FAST)


def test_prevalence_needs_two_classes(oracle, dataset_of):
    three = LabelScheme("multiclass", ("a", "b", "c"))
    with pytest.raises(ConfigError, match="prevalence is that of the positive class of two"):
        evaluate_model(oracle(three), dataset_of(three), prevalence=0.1)


# --- rows and files that are not what they should be


def test_two_rows_of_a_case_are_refused(binary, oracle, dataset_of):
    evidence = evaluate_model(oracle(binary), dataset_of(binary, 10), **FAST)
    with pytest.raises(DataError, match="two rows for case c0"):
        Evidence.from_rows(pd.concat([evidence.rows, evidence.rows]), evidence.task)
    with pytest.raises(DataError, match="no column 'case'"):
        Evidence.from_rows(evidence.rows.drop(columns="case"), evidence.task)


def test_damaged_evidence_is_refused(binary, oracle, dataset_of, tmp_path):
    with pytest.raises(ReadError, match="holds no evidence that can be read"):
        Evidence.load(tmp_path)
    evaluate_model(oracle(binary), dataset_of(binary, 10), **FAST).save(tmp_path)
    whole = (tmp_path / "evidence.json").read_text()
    (tmp_path / "evidence.json").write_text(whole[:100])
    with pytest.raises(ReadError, match="holds no evidence that can be read"):
        Evidence.load(tmp_path)
    (tmp_path / "evidence.json").write_text("{}")
    with pytest.raises(ReadError, match="holds no 'settings'"):
        Evidence.load(tmp_path)
    (tmp_path / "evidence.json").write_text(whole.replace('"format": 2', '"format": 9', 1))
    with pytest.raises(ConfigError, match="the evidence has format 9, this version reads up to 2"):
        Evidence.load(tmp_path)
    (tmp_path / "evidence.json").write_text(whole.replace('"resamples"', '"resample"', 1))
    with pytest.raises(ConfigError, match=r"unknown setting 'resample'. Did you mean 'resamples'\?"):
        Evidence.load(tmp_path)
    (tmp_path / "evidence.json").write_text(whole.replace('"confidence": 0.95', '"confidence": "high"', 1))
    with pytest.raises(ReadError, match="values of the wrong kind"):
        Evidence.load(tmp_path)
    (tmp_path / "evidence.json").write_text(whole)
    (tmp_path / "cases.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(ReadError, match="holds no evidence that can be read"):
        Evidence.load(tmp_path)


def test_a_folder_that_cannot_be_made_says_what_to_do(binary, oracle, dataset_of, tmp_path):
    (tmp_path / "file").write_text("")
    evidence = evaluate_model(oracle(binary), dataset_of(binary, 10), **FAST)
    with pytest.raises(ResourceError, match="cannot be written .* choose another folder with -o"):
        evidence.save(tmp_path / "file" / "folder")


def test_failures_survive_without_rows_of_their_own(binary, oracle, dataset_of):
    evidence = evaluate_model(oracle(binary), dataset_of(binary, 10), **FAST)
    again = Evidence.from_rows(evidence.rows, evidence.task, Settings(resamples=20), failures=[Failure("x", "why")])
    assert again.counts["failed"] == 1
