"""The report page and the card: complete, self-contained, and nothing in them can run."""

import html
import math
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from sagittal.case import Case, ImageSource
from sagittal.dataset import Skipped
from sagittal.errors import DataError, ReadError, ResourceError
from sagittal.evaluate.evidence import evaluate_model
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.metrics.intervals import Estimate
from sagittal.model.looks import Look
from sagittal.model.operating import OperatingPoint
from sagittal.model.parts import IntendedUse
from sagittal.prepare.plan import Plan
from sagittal.report import measure_names, words
from sagittal.report.card import model_card
from sagittal.report.page import render, write_report, write_training_figure
from sagittal.report.pictures import CasePicture, MapPicture, choose_cases, draw_cases, png_bytes

EVIL = "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>\"' onload=\"x"
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Reader(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not close."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.words, self._open = [], [], [], []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def model_of(scheme, **use):
    interval = (Estimate(0.9, 0.8, 0.95, 40), Estimate(0.8, 0.7, 0.9, 60))
    points = (
        OperatingPoint("most-probable", (0.5, 0.5), interval, interval[::-1]),
        OperatingPoint("sensitivity=0.95", (0.8, 0.2), interval, interval[::-1]),
    )
    return SimpleNamespace(
        name="breast",
        plan=Plan(scheme, seed=7),
        members=(1, 2, 3),
        points=points,
        operating_point=points[0],
        intended_use=replace(IntendedUse.of(Plan(scheme)), **use),
        data={
            "name": "breast",
            "training_cases": 546,
            "validation_cases": 78,
            "patients": 600,
            "classes": {"benign": 3},
        },
        created="2026-01-01T00:00:00+00:00",
        versions={"torch": "2.13.0"},
        checksum="ab" * 32,
    )


LOOKS = (Look(1, "2026-01-01T00:00:00+00:00", "ab" * 32, "breast", "test", 156, {}, "first look", "ab" * 32),)


@pytest.fixture
def evidence(binary, oracle, dataset_of):
    data = dataset_of(binary, 80, unknown=(1,), skipped=("s1",))
    return evaluate_model(
        oracle(binary, bad=("c7",), refused=("c9",)), data, by=("age", "sex", "scanner"), resamples=40
    )


def read(path):
    return Reader(path.read_text(encoding="utf-8"))


def page_of(evidence, **known):
    """The page without its figures, which take most of the time."""
    return Reader(render(evidence, {}, **known))


def test_page_says_what_was_found_beside_the_baseline(evidence, binary, tmp_path):
    page = read(write_report(evidence, tmp_path / "new", model=model_of(binary, population="adults"), looks=LOOKS)).text
    auc, right = evidence.overall["auc"], evidence.overall["accuracy"]
    assert f"the area under the ROC curve for 'malignant' is {auc.value:.2f}" in page
    assert f"{auc.low:.2f} to {auc.high:.2f}" in page
    assert f"{100 * right.value:.0f}\u00a0%" in html.unescape((tmp_path / "new" / "report.html").read_text())
    assert "Not a medical device" in page
    for name, e in evidence.overall.items():
        if not name.startswith("baseline."):
            assert measure_names.title_of(name) in page
            assert measure_names.number(e.value) in page
            assert measure_names.interval(e) in page
    assert measure_names.number(evidence.overall["baseline.accuracy"].value) in page
    for expected in ("adults", "546", "first look", "sensitivity=0.95", "in use", "case c7: the file ends early", "s1",
                     "unlike the training cases", "n < 20", "(missing)", "DeLong", "Obuchowski", "seed 0", "2.13.0"):  # fmt: skip
        assert expected in page, expected
    made = {p.name for p in (tmp_path / "new").iterdir()}
    assert made == {
        "report.html", "confusion_matrix.png", "roc_curve.png", "pr_curve.png", "calibration.png", "decision_curve.png"
    }  # fmt: skip


def test_what_is_not_known_reads_not_stated(evidence):
    page = page_of(evidence).text
    assert "population not stated" in page
    assert "training cases not stated" in page
    assert "How it was chosen is not stated" in page


def test_nothing_is_loaded_from_outside(evidence, binary, tmp_path):
    page = read(write_report(evidence, tmp_path, model=model_of(binary)))
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:image/png;base64,", "#")), (tag, value[:60])
    policy = [v for t, n, v in page.attributes if t == "meta" and n == "content" and "default-src" in v]
    assert policy and "default-src 'none'" in policy[0]  # noqa: PT018
    anchors = {v[1:] for t, n, v in page.attributes if t == "a" and n == "href"}
    assert anchors <= {v for _, n, v in page.attributes if n == "id"}


def evil_case(i, scheme):
    image = Image(np.zeros((1, 6, 5, 1), dtype=np.float32), Grid((6, 5, 1)))
    names = (scheme.classes[i % 2],)
    return Case(
        f"c{i}",
        f"p{i}",
        {"image": ImageSource(lambda: image)},
        table={EVIL: EVIL if i % 3 else "x"},
        truth=scheme.truth(*names),
    )


def test_script_in_any_text_is_inert(oracle, dataset_of):
    scheme = LabelScheme("binary", (EVIL + "0", EVIL + "1"), target=EVIL)
    data = replace(
        dataset_of(scheme, 30),
        name=EVIL,
        cases=tuple(evil_case(i, scheme) for i in range(30)),
        columns=(EVIL,),
        skipped=(Skipped(EVIL, EVIL),),
    )
    model = oracle(scheme, bad=("c7",), refused=("c9",))
    evidence = evaluate_model(model, data, by=(EVIL,), resamples=20)
    rows = evidence.rows.assign(reason=EVIL)
    failures = tuple(replace(f, case=EVIL, error=EVIL) for f in evidence.failures)
    evidence = replace(
        evidence, rows=rows, failures=failures, settings=replace(evidence.settings, model=EVIL, split=EVIL)
    )
    package = model_of(scheme, population=EVIL, indication=EVIL, user=EVIL, exclusions=EVIL, body_part=EVIL)
    package.name = package.created = EVIL
    package.versions, package.data = {EVIL: EVIL}, {"name": EVIL, "training_cases": EVIL, "classes": {EVIL: 1}}
    png = png_bytes(np.zeros((4, 4, 3), dtype=np.uint8))
    pictures = [CasePicture(EVIL, EVIL, png, EVIL, (MapPicture(EVIL, png),))]
    looks = [replace(LOOKS[0], dataset=EVIL, note=EVIL)]
    page = page_of(evidence, model=package, pictures=pictures, looks=looks)
    assert "script" not in page.tags
    assert {n for _, n, _ in page.attributes} & {"onerror", "onload"} == set()
    assert all(v.startswith("data:image/png") for t, n, v in page.attributes if t == "img" and n == "src")
    assert page.text.count("<script>alert('x')</script>") > 20  # shown as text
    card = model_card(package, package.plan, evidence, looks=looks)
    assert "<script" not in card
    assert "<img" not in card


def test_pictures_stand_with_their_maps_and_scores(evidence):
    png = png_bytes(np.full((8, 8, 3), 7, dtype=np.uint8))
    maps = (MapPicture("gradcam", png, 0.21, 0.83, 0.55, 0.56), MapPicture("occlusion", png))
    page = page_of(evidence, pictures=[CasePicture("c4", "worst", png, "truth: benign", maps)])
    assert "Worst: the highest log loss" in page.text
    assert "gradcam. Deletion 0.21 (random 0.55), insertion 0.83 (random 0.56)." in page.text
    assert "occlusion. Deletion not defined" in page.text


def test_synthetic_images_are_called_synthetic(evidence):
    assert "(synthetic images)" in page_of(evidence).text  # the data are called phantoms
    real = replace(evidence, settings=replace(evidence.settings, data="ward 7"))
    assert "synthetic" not in page_of(real).text
    assert "synthetic phantoms" in page_of(real, synthetic=True).text


@pytest.mark.parametrize(
    ("kind", "classes"), [("multiclass", "abcdefghijkl"), ("ordinal", "0123"), ("multilabel", "xyz")]
)
def test_every_kind_has_a_page(kind, classes, oracle, dataset_of):
    scheme = LabelScheme(kind, tuple(classes))
    evidence = evaluate_model(oracle(scheme), dataset_of(scheme, 60), by=("sex",), resamples=20)
    page = page_of(evidence).text
    assert "mean over classes" in page
    assert ("Quadratic kappa" in page) == (kind == "ordinal")
    assert ("Exact match" in page) == (kind == "multilabel")


def test_training_curves_stand_in_the_page_of_a_run(evidence, tmp_path):
    table = pd.DataFrame({"step": [1, 2], "loss": [1.0, 0.5], "val_loss": [1.0, 0.6], "val_auc": [0.5, 0.7]})
    table.to_csv(tmp_path / "results.csv", index=False)
    write_report(evidence, tmp_path)
    assert "Loss and validation scores while training" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "results.png").is_file()
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ReadError, match=r"results.csv: has no column 'step'"):
        write_training_figure(tmp_path)
    (tmp_path / "results.csv").write_text("")
    with pytest.raises(ReadError, match=r"results.csv: is not a table"):
        write_training_figure(tmp_path)


def test_a_folder_that_cannot_be_made_says_what_to_do(evidence, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="choose another folder"):
        write_report(evidence, tmp_path / "file" / "x")


def test_a_page_without_a_known_truth_still_opens(evidence):
    nothing = replace(evidence, rows=evidence.rows.assign(truth=None))
    assert "nothing can be drawn" in page_of(nothing).text


# --- words


def test_an_interval_that_includes_the_baseline_says_so(binary, oracle, dataset_of):
    weak = evaluate_model(oracle(binary, skill=0.0), dataset_of(binary, 40), resamples=20)
    assert any("do not show that the answers are better" in s for s in words.headline(weak))
    strong = evaluate_model(oracle(binary, skill=9.0), dataset_of(binary, 200), resamples=20)
    assert not any("do not show" in s for s in words.headline(strong))


@pytest.mark.parametrize(("split", "warned"), [("train", "trained on them"), ("val", "calibrated"), ("test", None)])
def test_cases_that_the_model_knows_are_called_so(split, warned, evidence):
    told = " ".join(words.cautions(replace(evidence, settings=replace(evidence.settings, split=split))))
    assert (warned in told) if warned else ("more favourable" not in told)


def test_a_group_that_does_worse_is_named(binary, oracle, dataset_of):
    data = dataset_of(binary, 200)

    class Biased(oracle):
        def predict_many(self, cases, *, batch=None, reporter=None):
            young = [c for c in cases if c.table["sex"] == "female"]
            old = [c for c in cases if c.table["sex"] == "male"]
            yield from oracle(binary, skill=6.0).predict_many(young)
            yield from oracle(binary, skill=0.0).predict_many(old)

    found = words.gaps(evaluate_model(Biased(binary), data, by=("sex",), resamples=50))
    assert {(column, group) for column, group, _, _ in found} == {("sex", "male")}


def test_numbers_in_words():
    assert measure_names.number(-0.1234) == "\u22120.123"
    assert measure_names.percent(Estimate(math.nan)) == "not defined"
    assert measure_names.percent(Estimate(0.5)) == "50\u00a0%"


# --- pictures


def test_cases_are_chosen_by_their_loss(evidence):
    chosen = choose_cases(evidence, each=2)
    loss = evidence.rows.set_index("case")["log_loss"].dropna()
    assert set(chosen["best"]) == set(loss.nsmallest(2).index)
    assert set(chosen["worst"]) == set(loss.nlargest(2).index)
    assert loss[list(chosen["typical"])].between(loss.quantile(0.4), loss.quantile(0.6)).all()
    few = replace(evidence, rows=evidence.rows.head(2))
    assert choose_cases(few) == {"typical": tuple(few.rows.dropna(subset="log_loss").sort_values("log_loss")["case"])}


def test_a_case_that_cannot_be_drawn_is_left_out(binary, oracle, dataset_of, evidence):
    data = dataset_of(binary, 80)
    worst = choose_cases(evidence)["worst"][0]

    def broken():
        raise DataError("gone")

    cases = tuple(replace(c, images={"image": ImageSource(broken)}) if c.id == worst else c for c in data)
    drawn = draw_cases(evidence, oracle(binary), replace(data, cases=cases))
    assert len(drawn) == 8
    assert worst not in {p.case for p in drawn}
    assert all(p.png.startswith(b"\x89PNG") for p in drawn)
    assert {p.group for p in drawn} == {"best", "typical", "worst"}


def test_a_map_that_cannot_be_made_leaves_the_picture(binary, oracle, dataset_of, evidence):
    def maps(case, answer):
        raise DataError("no gradient")

    drawn = draw_cases(evidence, oracle(binary), dataset_of(binary, 80), maps=maps)
    assert len(drawn) == 9
    assert all(p.maps == () for p in drawn)


# --- card


def test_card_holds_what_is_known_and_marks_the_rest(evidence, binary):
    card = model_card(model_of(binary, population="adults"), evidence=evidence, looks=LOOKS)
    for expected in ("# breast", "Not a medical device", "| population | adults |", "| indication | not stated |", "| taught by | 546 |",
                     "| members averaged | 3 |", "seed 7", "abab", "| 1 | 2026-01-01T00:00:00+00:00 | breast | test | 156 |",
                     "| who labelled the cases, and how | not stated |"):  # fmt: skip
        assert expected in card, expected
    e, base = evidence.overall["auc"], evidence.overall["baseline.auc"]
    assert f"| AUC (ROC) | {e.value:.3f} | {e.low:.3f} to {e.high:.3f} | {base.value:.3f} | {e.n} |" in card


def test_card_without_anything_states_nothing():
    card = model_card()
    assert card.count("not stated") > 15
    assert "Not evaluated yet" in card


def test_text_cannot_break_the_tables_of_a_card(binary):
    card = model_card(model_of(binary, population="a|b\n# heading `x` [l](http://x)"))
    line = next(row for row in card.splitlines() if row.startswith("| population"))
    assert line == "| population | a\\|b \\# heading \\`x\\` \\[l\\](http://x) |"
