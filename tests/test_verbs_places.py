"""The journey of a mask by commands: plan, train, evaluate, predict into files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import sagittal
from sagittal import PredictOptions, ReadOptions, TrainOptions
from sagittal.cli.main import main
from sagittal.errors import ConfigError, DataError
from sagittal.prediction import Mask

CASES = 14
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def ball(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape, radius = (26, 24, 14), rng.uniform(4, 6)
    centre = [rng.uniform(radius, n - radius) if n > 14 else n / 2 for n in shape]
    distance = np.sqrt(sum(((g - c) * s) ** 2 for g, c, s in zip(np.indices(shape), centre, (1, 1, 2), strict=True)))
    mask = (distance <= radius).astype(np.uint8)
    return (rng.normal(100, 10, shape) + 60 * mask).astype(np.int16), mask


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places") / "Task99_Balls"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    training = []
    for n in range(CASES):
        image, mask = ball(n)
        for kind, values in (("images", image), ("labels", mask)):
            nib.save(nib.Nifti1Image(values, AFFINE), folder / f"{kind}Tr" / f"ball_{n:03d}.nii.gz")
        training.append({"image": f"./imagesTr/ball_{n:03d}.nii.gz", "label": f"./labelsTr/ball_{n:03d}.nii.gz"})
    facts = {"name": "Balls", "modality": {"0": "MR"}, "labels": {"0": "background", "1": "ball"}, "training": training}
    (folder / "dataset.json").write_text(json.dumps({**facts, "numTraining": CASES, "numTest": 0, "test": []}))
    return folder


@pytest.fixture(scope="module")
def run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "balls"
    changes = {"network.width": "8", "train.batch": "2", "train.precision": "fp32", "decide.flips": "[2]"}
    made = sagittal.train(source, budget="60s", output=folder, options=TrainOptions(changes=changes, epochs=12))
    assert made.plan.task == "segment"
    assert all(isinstance(prediction.finding, Mask) for prediction, _ in made.validation), (
        "kept after the run has ended"
    )
    return folder


def test_a_run_leaves_what_people_look_for(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {
        "plan.json",
        "fingerprint.json",
        "splits.json",
        "evidence.json",
        "report.html",
        "README.md",
        "model",
    } <= names
    assert {"train_batch.png", "val_batch_pred.png", "results.csv", "check.json"} <= names
    assert "ball" in (run / "report.html").read_text(encoding="utf-8")
    assert not (run / "prepared").exists()


def test_held_out_cases_are_judged(run: Path, source: Path, tmp_path: Path) -> None:
    evidence = sagittal.evaluate(run, source, output=tmp_path / "evidence")
    assert evidence.settings.split == "test"
    assert evidence.overall["dice"].value > 0.5
    assert evidence.overall["dice"].low <= evidence.overall["dice"].value <= evidence.overall["dice"].high
    assert (tmp_path / "evidence" / "report.html").is_file()
    assert sagittal.info(run)["looks at test data"]


def test_masks_are_written_on_the_grid_that_came_in(run: Path, source: Path, tmp_path: Path, capsys: Any) -> None:
    study = source / "imagesTr" / "ball_000.nii.gz"
    assert main(["predict", str(run), str(study), "-o", str(tmp_path / "out"), "--format", "nifti,csv,png,json"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    written = nib.load(tmp_path / "out" / "ball_000.labels.nii.gz")
    assert written.shape == (26, 24, 14)
    assert np.allclose(written.affine, AFFINE)
    truth = ball(0)[1] > 0
    found = np.asarray(written.dataobj) > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.5
    assert (tmp_path / "out" / "measurements.csv").is_file()
    assert main(["predict", str(run), str(study), "-o", str(tmp_path / "out")]) == 2  # nothing is overwritten
    assert "--overwrite" in capsys.readouterr().err


def test_python_gives_the_same_mask_as_the_command(run: Path, source: Path) -> None:
    (answer,) = sagittal.predict(run, source / "imagesTr" / "ball_001.nii.gz")
    assert isinstance(answer.finding, Mask)
    assert answer.decision == ("ball",)
    again = sagittal.load_model(run / "model").predict(sagittal.open_dataset(source).cases[1])
    assert np.array_equal(again.finding.segmentation.layers, answer.finding.segmentation.layers)


def test_a_table_of_volumes_needs_no_folder(run: Path, source: Path, tmp_path: Path) -> None:
    table = tmp_path / "answers.json"
    sagittal.predict(run, source / "imagesTr", output=table)
    rows = json.loads(table.read_text())
    assert len(rows) == CASES
    assert all(row["ml_ball"] > 0 for row in rows)


def test_a_bad_study_does_not_stop_the_others(run: Path, source: Path, tmp_path: Path, capsys: Any) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes((source / "imagesTr" / "ball_000.nii.gz").read_bytes()[:200])
    good = source / "imagesTr" / "ball_002.nii.gz"
    assert main(["predict", str(run), str(bad), str(good), "-o", str(tmp_path / "out")]) == 3
    assert "1 of 2 studies could not be answered" in capsys.readouterr().err
    assert (tmp_path / "out" / "ball_002.labels.nii.gz").is_file()


def test_what_does_not_fit_is_told(run: Path, source: Path, tmp_path: Path) -> None:
    study = source / "imagesTr" / "ball_000.nii.gz"
    with pytest.raises(ConfigError, match="holds boxes, and this model finds a mask"):
        sagittal.predict(run, study, output=tmp_path / "out", options=PredictOptions(formats=("coco",)))
    with pytest.raises(ConfigError, match="name a folder"):
        sagittal.predict(run, study, options=PredictOptions(formats=("nifti",)))
    with pytest.raises(ConfigError, match="its answer is the place itself"):
        sagittal.explain(run, study, tmp_path / "maps")
    with pytest.raises(DataError, match="learns from boxes or masks|needs classes"):
        sagittal.train(source, task="classify", budget="1m", output=tmp_path / "run")


def test_masks_are_lesions_to_find_where_that_is_asked(source: Path) -> None:
    changes = {"network.width": "8"}
    plan = sagittal.plan(source, task="detect", budget="2m", options=TrainOptions(read=ReadOptions(), changes=changes))
    assert plan.task == "detect"
    assert plan.scheme.kind == "objects"
