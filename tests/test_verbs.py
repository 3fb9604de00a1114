"""The verbs from end to end on a small set: train, evaluate, predict, explain, compare, report, in Python and as commands."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as Pillow

import sagittal
from sagittal import demonstration, verbs
from sagittal.cli.main import main
from sagittal.errors import BudgetError, ConfigError, DataError
from sagittal.explain.maps import METHODS
from sagittal.model.looks import read_looks
from sagittal.model.package import Model
from sagittal.options import EvaluateOptions, ReadOptions, TrainOptions
from sagittal.prediction import Failure, Prediction
from sagittal.prepare.plan import DecidePlan, NetworkPlan, Plan, PreparePlan, SplitPlan, TrainPlan
from sagittal.progress import Advance
from sagittal.read.open_dataset import open_dataset
from sagittal.train.run import Run

Capture = pytest.CaptureFixture[str]

#: What people look for in the folder of a run.
RUN_FILES = (
    "plan.json",
    "fingerprint.json",
    "splits.json",
    "config.json",
    "log.txt",
    "events.jsonl",
    "results.csv",
    "results.png",
    "confusion_matrix.png",
    "roc_curve.png",
    "pr_curve.png",
    "calibration.png",
    "train_batch.png",
    "val_batch_pred.png",
    "evidence.json",
    "cases.parquet",
    "report.html",
    "README.md",
    "environment.lock",
    "model/model.json",
)


def draw(label: int, rng: np.random.Generator) -> np.ndarray:
    """A noisy picture, with a bright square where the label is 1."""
    pixels = rng.normal(90, 20, (16, 16))
    if label:
        row, column = rng.integers(2, 9, 2)
        pixels[row : row + 5, column : column + 5] += 90
    return np.clip(pixels, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures in a folder a class, under a name beyond ASCII."""
    folder = tmp_path_factory.mktemp("Fälle")
    rng = np.random.default_rng(0)
    for n in range(60):
        place = folder / ("plain", "square")[n % 2]
        place.mkdir(exist_ok=True)
        Pillow.fromarray(draw(n % 2, rng)).save(place / f"{n:02d}.png")
    return folder


@pytest.fixture(scope="module")
def plan_file(studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan that is carried out in seconds, whatever else the machine does."""
    scheme = open_dataset(studies).scheme
    assert scheme is not None
    plan = Plan(
        scheme,
        prepare=PreparePlan(size=(16, 16), offset=(100.0,), scale=(40.0,), store="uint8"),
        network=NetworkPlan(width=8, depth=(1, 1)),
        train=TrainPlan(epochs=12, batch=12, learning_rate=0.01),
        split=SplitPlan(folds=1, val_fraction=0.25, test_fraction=0.25),
        decide=DecidePlan(calibration="temperature"),
    )
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan.save(path)
    return path


@pytest.fixture(scope="module")
def run(studies: Path, plan_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One finished run that the tests share."""
    folder = tmp_path_factory.mktemp("runs") / "squares"
    return sagittal.train(studies, output=folder, options=TrainOptions(plan=plan_file, device="cpu"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("SAGITTAL_"):
            monkeypatch.delenv(name)


# The names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["check", "evaluate", "explain", "report", "train"])
def test_a_room_with_a_verb_s_name_is_the_verb_too(name: str) -> None:
    room = getattr(sagittal, name)
    assert isinstance(room, ModuleType)
    assert room is sys.modules[f"sagittal.{name}"]
    assert inspect.signature(room) == inspect.signature(getattr(verbs, name))


def test_rooms_stay_packages() -> None:
    import sagittal.train.run as module
    from sagittal.train import run as same

    assert module is same
    assert sagittal.train.run is module  # type: ignore[attr-defined]


def test_verbs_have_at_most_eight_arguments() -> None:
    for name in (
        "ingest",
        "check",
        "plan",
        "train",
        "evaluate",
        "predict",
        "explain",
        "compare",
        "report",
        "info",
        "demo",
    ):
        assert len(inspect.signature(getattr(sagittal, name)).parameters) <= 8, name
    assert verbs.fit is verbs.train
    assert verbs.test is verbs.evaluate


def test_the_methods_that_are_offered_are_those_that_exist() -> None:
    assert set(verbs.METHODS) == set(METHODS)


# Train -----------------------------------------------------------------------------------------------------------------


def test_a_run_leaves_what_people_look_for(run: Run) -> None:
    missing = [name for name in RUN_FILES if not (run.folder / name).is_file()]
    assert missing == []
    assert not (run.folder / "checkpoint").exists()
    log = (run.folder / "log.txt").read_text(encoding="utf-8")
    assert "judging the run by" in log
    for name in ("train_batch.png", "val_batch_pred.png"):
        pixels = np.asarray(Pillow.open(run.folder / name))
        assert pixels.shape[2] == 3
        assert pixels.std() > 10


def test_a_run_says_of_validation_that_it_is_validation(run: Run) -> None:
    evidence = json.loads((run.folder / "evidence.json").read_text(encoding="utf-8"))
    assert evidence["settings"]["split"] == "validation"
    rows = pd.read_parquet(run.folder / "cases.parquet")
    assert set(rows["case"]) == set(run.splits.folds[0].val)
    assert evidence["overall"]["auc"]["value"] > 0.9  # squares are easy to see


def test_the_options_of_a_run_repeat_it(run: Run, tmp_path: Path, capsys: Capture) -> None:
    again = tmp_path / "again"
    assert main(["train", "--config", str(run.folder / "config.json"), "-o", str(again), "--quiet"]) == 0
    first, second = (Model.load(folder / "model") for folder in (run.folder, again))
    for one, two in zip(first.members, second.members, strict=True):
        for key, value in one.state_dict().items():
            assert torch.equal(value, two.state_dict()[key]), key
    assert f"model   {again / 'model'}" in capsys.readouterr().out


class Interrupting:
    """A reporter that presses Ctrl-C while training goes on."""

    def __init__(self) -> None:
        self.left = 3

    def say(self, message: str) -> None:
        pass

    @contextmanager
    def track(self, what: str, total: float | None = None) -> Iterator[Advance]:
        def advance(steps: float = 1.0, note: str = "") -> None:
            self.left -= what == "train"
            if self.left == 0:
                raise KeyboardInterrupt

        yield advance


def test_an_interrupted_run_says_how_to_go_on_and_does(studies: Path, plan_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    options = TrainOptions(plan=plan_file, device="cpu", reporter=Interrupting())
    with pytest.raises(KeyboardInterrupt, match=f"sagittal train -o {folder} --resume"):
        sagittal.train(studies, output=folder, options=options)
    assert (folder / "checkpoint").is_dir()
    assert not (folder / "model").exists()
    with pytest.raises(ConfigError, match="has no model yet. Go on with it: sagittal train -o"):
        sagittal.predict(folder, studies)
    with pytest.raises(ConfigError, match="--resume"):
        sagittal.train(studies, output=folder, options=TrainOptions(plan=plan_file))
    assert main(["train", "-o", str(folder), "--resume", "--quiet"]) == 0
    assert (folder / "report.html").is_file()


def test_a_run_that_stopped_before_its_plan_begins_anew(
    studies: Path, plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "early"

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sagittal.train.start.measure_dataset", stop)
        with pytest.raises(KeyboardInterrupt):
            sagittal.train(studies, output=folder, seed=3, options=TrainOptions(plan=plan_file, device="cpu"))
    seen: dict[str, object] = {}

    def train_model(dataset: object, plan: Plan, place: Path, **options: object) -> None:
        seen.update(options, plan=plan, folder=place)
        raise ConfigError("enough")

    monkeypatch.setattr("sagittal.train.start.train_model", train_model)
    with pytest.raises(ConfigError, match="enough"):
        sagittal.train(None, output=folder, resume=True)
    assert seen["resume"] is False
    assert seen["folder"] == folder
    assert isinstance(seen["plan"], Plan)
    assert seen["plan"].network.width == 8  # that of the options which the run began with


def test_a_finished_run_is_not_resumed(run: Run) -> None:
    with pytest.raises(ConfigError, match="is finished; there is nothing to resume"):
        sagittal.train(None, output=run.folder, resume=True)


def test_a_plan_for_another_question_is_refused(studies: Path, plan_file: Path, tmp_path: Path) -> None:
    plan = Plan.load(plan_file)
    other = replace(plan, scheme=replace(plan.scheme, classes=("no", "yes")))
    other.save(tmp_path / "other.json")
    with pytest.raises(
        ConfigError, match=r"the plan is for the binary question no, yes; the source asks .* plain, square"
    ):
        sagittal.train(studies, output=tmp_path / "run", options=TrainOptions(plan=tmp_path / "other.json"))


def test_a_budget_that_is_too_short_says_what_would_be_enough(studies: Path) -> None:
    with pytest.raises(BudgetError, match=r"the budget of 1 s is too short.*Give at least --budget \d+s"):
        sagittal.plan(studies, budget="1s")


def test_a_plan_shows_its_reasons_and_can_be_changed_on_the_way(studies: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["plan", str(studies), "--budget", "2m", "-o", "my.json", "network.width=24", "--batch", "8"]) == 0
    text = capsys.readouterr().out
    assert "network.width" in text
    assert "set by the user" in text
    plan = Plan.load(tmp_path / "my.json")
    assert (plan.network.width, plan.train.batch, plan.budget_s) == (24, 8, 120)


def test_a_field_that_is_not_in_the_plan_is_refused(studies: Path, capsys: Capture) -> None:
    assert main(["plan", str(studies), "network.widht=24"]) == 2
    assert "Did you mean 'network.width'" in capsys.readouterr().err


# Evaluate --------------------------------------------------------------------------------------------------------------


def test_evaluation_is_of_the_cases_that_the_run_held_out_and_is_recorded(
    run: Run, studies: Path, tmp_path: Path, capsys: Capture
) -> None:
    before = len(read_looks(run.folder / "model"))
    assert main(["evaluate", str(run.folder), str(studies), "-o", "evidence", "--json", "--require", "auc>=0.8"]) == 0
    printed = json.loads(capsys.readouterr().out)
    rows = pd.read_parquet(tmp_path / "evidence" / "cases.parquet")
    assert set(rows["case"]) == set(run.splits.test)
    assert printed == json.loads((tmp_path / "evidence" / "evidence.json").read_text(encoding="utf-8"))
    assert set(printed["overall"]["auc"]) == {"value", "low", "high", "n"}
    assert "baseline.accuracy" in printed["overall"]
    looks = read_looks(run.folder / "model")
    assert len(looks) == before + 1
    assert (looks[-1].split, looks[-1].cases) == ("test", 15)
    page = (tmp_path / "evidence" / "report.html").read_text(encoding="utf-8")
    assert "gradcam" in page.lower().replace("-", "")
    for name in ("roc_curve.png", "confusion_matrix.png", "calibration.png"):
        assert (tmp_path / "evidence" / name).is_file()


def test_a_missed_gate_ends_in_5_with_the_evidence_written(
    run: Run, studies: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["evaluate", str(run.folder), str(studies), "--split", "val", "--resamples", "50"]
    assert main([*arguments, "--require", "brier<=-1", "--require", "auc>=0"]) == 5
    captured = capsys.readouterr()
    assert "quality gate missed: brier<=-1 but it is " in captured.err
    assert "auc" in captured.out
    assert not list(tmp_path.iterdir())  # nothing is written without -o


def test_a_look_at_other_cases_than_test_is_not_recorded(run: Run, studies: Path) -> None:
    before = read_looks(run.folder / "model")
    evidence = sagittal.evaluate(run.folder, studies, split="val", options=EvaluateOptions(resamples=50))
    assert evidence.settings.split == "val"
    assert read_looks(run.folder / "model") == before


def test_other_cases_are_judged_all(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    for n in range(10):
        place = tmp_path / "other" / ("plain", "square")[n % 2]
        place.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(draw(n % 2, rng)).save(place / f"new-{n}.png")
    evidence = sagittal.evaluate(run.folder, tmp_path / "other", options=EvaluateOptions(resamples=50))
    assert len(evidence.rows) == 10
    assert evidence.settings.split == "all"


def test_a_class_that_the_model_does_not_know_is_refused(run: Run, studies: Path, tmp_path: Path) -> None:
    shutil.copytree(studies, tmp_path / "other")
    (tmp_path / "other" / "square").rename(tmp_path / "other" / "sqare")
    with pytest.raises(DataError, match="class 'sqare'.*Did you mean 'square'"):
        sagittal.evaluate(run.folder, tmp_path / "other", split="all")


def test_a_split_that_is_not_there_is_refused(run: Run, studies: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(run.folder), str(studies), "--split", "tets"]) == 2
    assert "Did you mean 'test'" in capsys.readouterr().err


def test_evidence_is_compared_and_reported_again(run: Run, studies: Path, tmp_path: Path, capsys: Capture) -> None:
    for name in ("a", "b"):
        options = EvaluateOptions(resamples=50, figures=False)
        sagittal.evaluate(run.folder, studies, split="val", output=tmp_path / name, options=options)
    assert main(["compare", "a", "b", "--json"]) == 0
    comparison = json.loads(capsys.readouterr().out)
    assert comparison["cases"] == len(run.splits.folds[0].val)
    assert {d["verdict"] for d in comparison["differences"].values()} == {"no difference shown"}
    (tmp_path / "a" / "report.html").unlink()
    assert main(["report", "a"]) == 0
    assert capsys.readouterr().out == f"{Path('a') / 'report.html'}\n"
    assert (tmp_path / "a" / "report.html").stat().st_size > 10_000


def test_evidence_that_is_there_is_not_overwritten_unasked(run: Run, studies: Path, tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "evidence.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"exists already and is kept.*--overwrite"):
        sagittal.evaluate(run.folder, studies, output=tmp_path / "e")


# Predict ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """Six new studies, one of them damaged, one in a folder whose name is not ASCII."""
    folder = tmp_path / "Eingang" / "胸 片"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    for n in range(5):
        Pillow.fromarray(draw(n % 2, rng)).save(folder / f"{n}.png")
    (folder.parent / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    return folder.parent


def test_one_bad_study_never_stops_the_rest(run: Run, inbox: Path, capsys: Capture) -> None:
    assert main(["predict", str(run.folder), str(inbox), "-o", "table.csv"]) == 3
    captured = capsys.readouterr()
    assert captured.out == "table.csv\n"
    assert "1 of 6 studies could not be answered" in captured.err
    assert "case bad:" in captured.err
    table = pd.read_csv("table.csv").set_index("case")
    assert (table["status"] == "failed").sum() == 1
    good = table[table["status"] != "failed"]
    np.testing.assert_allclose(good["p_plain"] + good["p_square"], 1, atol=1e-9)
    assert [good.loc[f"胸 片/{n}", "decision"] for n in range(5)] == ["plain", "square", "plain", "square", "plain"]


def test_the_terminal_shows_case_decision_probabilities_set_and_gate(run: Run, inbox: Path, capsys: Capture) -> None:
    assert main(["predict", str(run.folder), str(inbox / "胸 片"), "--quiet"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "case"
    for word in ("decision", "plain", "square", "not excluded", "gate"):
        assert word in head
    assert len(rows) == 5


def test_studies_come_from_globs_and_lists(run: Run, inbox: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"# mine\n{inbox / '胸 片' / '3.png'}\n\nnowhere.png\n", encoding="utf-8")
    answers = sagittal.predict(run.folder, [str(inbox / "*" / "[0-1].png"), "@list.txt"])
    good = [answer for answer in answers if isinstance(answer, Prediction)]
    assert len(good) == 3
    (bad,) = [answer for answer in answers if isinstance(answer, Failure)]
    assert bad.error == "nowhere.png: there is no such file, folder or match"


def test_a_loaded_model_gives_the_same_answers(run: Run, inbox: Path) -> None:
    model = sagittal.Model.load(run.folder / "model")
    one = sagittal.predict(model, inbox / "胸 片")
    two = sagittal.predict(run.folder, inbox / "胸 片", batch=1)
    for a, b in zip(one, two, strict=True):
        assert isinstance(a, Prediction)
        assert isinstance(b, Prediction)
        np.testing.assert_allclose(a.probability, b.probability, atol=1e-5)


def test_nothing_to_predict_is_bad_input(run: Run, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(run.folder), "empty"]) == 3
    assert main(["predict", str(run.folder), "@nolist.txt"]) == 3
    assert "the list nolist.txt cannot be read" in capsys.readouterr().err


def test_a_changed_byte_in_a_model_is_refused(run: Run, inbox: Path, tmp_path: Path, capsys: Capture) -> None:
    copy = tmp_path / "model"
    shutil.copytree(run.folder / "model", copy)
    (weights,) = copy.glob("weights-*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert main(["predict", str(copy), str(inbox)]) == 3
    assert "Traceback" not in capsys.readouterr().err


# Explain and the rest --------------------------------------------------------------------------------------------------


def test_explanations_come_with_their_worth(run: Run, inbox: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = [
        "explain",
        str(run.folder),
        str(inbox / "胸 片" / "1.png"),
        "-o",
        "maps",
        "--class",
        "square",
        "--json",
    ]
    assert main([*arguments, "--method", "gradcam, occlusion"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["gradcam", "occlusion"]
    for row in rows:
        assert row["class"] == "square"
        assert (tmp_path / "maps" / row["picture"]).is_file()
        assert (tmp_path / "maps" / row["values"]).is_file()
        assert 0 <= row["random_deletion"] <= 1


def test_a_study_that_cannot_be_explained_ends_in_3(run: Run, inbox: Path, capsys: Capture) -> None:
    assert main(["explain", str(run.folder), str(inbox / "bad.png"), "-o", "maps"]) == 3
    assert "case bad:" in capsys.readouterr().err


def test_a_class_that_is_not_there_cannot_be_explained(run: Run, inbox: Path, capsys: Capture) -> None:
    assert main(["explain", str(run.folder), str(inbox), "-o", "maps", "--class", "sqare"]) == 2
    assert "Did you mean 'square'" in capsys.readouterr().err


def test_info_knows_models_runs_and_sources(run: Run, studies: Path, capsys: Capture) -> None:
    facts = [verbs.info(thing) for thing in (run.folder, run.folder / "model", studies)]
    assert facts[0]["source"] == str(studies)
    assert facts[1]["classes"] == ["plain", "square"]
    assert facts[2]["cases"] == 60
    assert main(["info", str(run.folder)]) == 0
    assert "plain, square" in capsys.readouterr().out


def test_ingest_writes_a_manifest_that_is_a_source(studies: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["ingest", str(studies), "-o", "manifest"]) == 0
    assert capsys.readouterr().out == "manifest\n"
    dataset = sagittal.open_dataset(tmp_path / "manifest")
    assert (len(dataset), dataset.layout) == (60, "manifest")
    assert main(["ingest", str(studies), "-o", "manifest"]) == 2
    assert main(["ingest", str(studies), "-o", "manifest", "--overwrite", "--quiet"]) == 0


def test_check_tells_what_forbids_training(tmp_path: Path, studies: Path, capsys: Capture) -> None:
    assert main(["check", str(studies), "--pixels", "sample"]) == 0
    assert "ready for training" in capsys.readouterr().out
    (tmp_path / "pair").mkdir()
    table = "file,label,patient\n" + "".join(f"{n}.png,{'ab'[n % 2]},same\n" for n in range(4))
    (tmp_path / "pair" / "labels.csv").write_text(table, encoding="utf-8")
    for n in range(4):
        Pillow.fromarray(np.full((4, 4), 40 * n, np.uint8)).save(tmp_path / "pair" / f"{n}.png")
    assert main(["check", "pair", "--json"]) == 3
    assert any(finding["severity"] == "error" for finding in json.loads(capsys.readouterr().out))


def test_reading_options_reach_the_reader(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    table = "bild,grad,person\n" + "".join(f"{n}.png,{n % 3},p{n}\n" for n in range(6))
    (tmp_path / "set" / "tabelle.csv").write_text(table, encoding="utf-8")
    for n in range(6):
        Pillow.fromarray(np.full((4, 4), 40 * n, np.uint8)).save(tmp_path / "set" / f"{n}.png")
    read = ReadOptions(path_column="bild", patient_column="person", kind="ordinal")
    dataset = sagittal.ingest(tmp_path / "set" / "tabelle.csv", target="grad", options=read)
    assert dataset.scheme is not None
    assert (dataset.scheme.kind, dataset.scheme.classes) == ("ordinal", ("0", "1", "2"))


def test_a_full_disk_is_an_error_of_the_environment(studies: Path, plan_file: Path, tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        command = [sys.executable, "-m", "sagittal.cli.main", "train", str(studies), "--plan", str(plan_file)]
        result = subprocess.run(
            [*command, "-o", str(place / "run"), "--quiet"],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert result.returncode == 4, result.stderr
    assert "-o" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_demo_takes_twice_the_time_on_a_busy_machine(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, bool]] = []

    def train(source: Path, *, budget: str | float, options: TrainOptions, **_: object) -> None:
        asked.append((budget, options.overwrite))
        raise BudgetError("too short") if len(asked) == 1 else DataError("enough")

    monkeypatch.setattr(demonstration, "train", train)
    with pytest.raises(DataError, match="enough"):
        sagittal.demo(tmp_path / "demo", data=str(studies), budget="1m")
    assert asked == [("1m", False), (120.0, True)]


@pytest.mark.slow
def test_the_demo_goes_the_whole_way(tmp_path: Path) -> None:
    page = sagittal.demo(tmp_path / "demo", studies=20, budget="45s")
    assert page == tmp_path / "demo" / "evidence" / "report.html"
    text = page.read_text(encoding="utf-8").lower()
    assert "synthetic" in text
    assert "data:image/png;base64," in text
    assert (tmp_path / "demo" / "predictions.csv").is_file()
    assert list((tmp_path / "demo" / "maps").glob("*.nii.gz"))
    assert (tmp_path / "demo" / "manifest" / "cases.parquet").is_file()
