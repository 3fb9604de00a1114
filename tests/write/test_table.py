"""Predictions as tables: every format holds the same rows, good and bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sagittal.errors import ConfigError, ResourceError
from sagittal.grid import Grid
from sagittal.labels import ClassScores, LabelScheme
from sagittal.prediction import Failure, Prediction, Verdict
from sagittal.write.table import prediction_row, write_predictions

SCHEME = LabelScheme("multiclass", ("nævus", "melanoma, in situ", "other"))


def answers() -> list[Prediction | Failure]:
    good = Prediction(
        case="a",
        scheme=SCHEME,
        finding=ClassScores(np.array([0.25, 0.7, 0.05])),
        decision=("melanoma, in situ",),
        logits=np.zeros(3),
        conformal=("melanoma, in situ", "nævus"),
        uncertainty=0.5,
        verdict=Verdict(True, "", 0.125),
        model="m",
        made_at="2026-01-01T00:00:00+00:00",
        seconds=0.5,
    )
    outside = Prediction(
        case="c",
        scheme=SCHEME,
        finding=ClassScores(np.array([0.25, 0.5, 0.25])),
        decision=(),
        logits=np.zeros(3),
        verdict=Verdict(False, "unlike the training cases", 1.0),
    )
    return [good, Failure("b", "case b: cut off", "ReadError"), outside]


def test_a_row_holds_the_whole_answer() -> None:
    assert prediction_row(answers()[0]) == {
        "case": "a",
        "status": "ok",
        "decision": ["melanoma, in situ"],
        "p_nævus": 0.25,
        "p_melanoma, in situ": 0.7,
        "p_other": 0.05,
        "conformal_set": ["melanoma, in situ", "nævus"],
        "uncertainty": 0.5,
        "gate_reason": "",
        "gate_score": 0.125,
        "model": "m",
        "made_at": "2026-01-01T00:00:00+00:00",
        "seconds": 0.5,
    }


def test_abstention_and_failure_are_told_apart() -> None:
    rows = [prediction_row(answer) for answer in answers()]
    assert [row["status"] for row in rows] == ["ok", "failed", "abstained"]
    assert rows[1]["error"] == "case b: cut off"
    assert rows[2]["gate_reason"] == "unlike the training cases"
    assert rows[2]["uncertainty"] is None  # nan is not a number in JSON


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet", ".CSV"])
def test_tables_hold_a_row_a_study_in_their_order(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"antworten{ending}"
    write_predictions(answers(), path)
    table = pd.read_parquet(path) if ending == ".parquet" else pd.read_csv(path, sep="\t" if ending == ".tsv" else ",")
    assert table["case"].tolist() == ["a", "b", "c"]
    assert table["p_melanoma, in situ"].iloc[0] == 0.7
    assert table["conformal_set"].iloc[0] == "melanoma, in situ|nævus"
    assert table["error_kind"].iloc[1] == "ReadError"
    assert table["p_other"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_json_keeps_lists(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    write_predictions(answers(), path)
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if ending == ".json" else [json.loads(line) for line in text.splitlines()]
    assert rows == [prediction_row(answer) for answer in answers()]
    assert "nævus" in text


def test_only_failures_are_a_table_too(tmp_path: Path) -> None:
    write_predictions([Failure("b", "case b: cut off")], tmp_path / "a.csv")
    table = pd.read_csv(tmp_path / "a.csv")
    assert table["status"].tolist() == ["failed"]


def test_an_unknown_ending_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the ending '\.cvs' is no table that can be written. Did you mean '\.csv'"):
        write_predictions(answers(), tmp_path / "a.cvs")


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ResourceError, match=r"cannot be written.*-o"):
        write_predictions(answers(), tmp_path / "file" / "a.csv")


def test_a_disk_that_fills_up_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("old", encoding="utf-8")
    write = Path.write_text

    def full(self: Path, *arguments: object, **named: object) -> int:
        write(self, "half", encoding="utf-8")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        write_predictions(answers(), path)
    assert path.read_text(encoding="utf-8") == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_a_mask_becomes_sizes(found_mask: Callable[..., Prediction]) -> None:
    grid = Grid((21, 17, 9), np.diag([0.5, 0.7, 2.5, 1]))
    prediction = found_mask("s", grid)
    row = prediction_row(prediction)
    voxels = int(prediction.finding.segmentation.mask("Liver").sum())
    assert row["voxels_Liver"] == voxels
    assert row["ml_Liver"] == pytest.approx(voxels * 0.875 / 1000, abs=1e-6)
    assert row["expected_dice_Liver"] == 0.91
    assert row["voxels_Liver Tumor"] == int(prediction.finding.segmentation.mask("Liver Tumor").sum())
    assert (row["voxels_spleen"], row["ml_spleen"]) == (0, 0)
    flat = prediction_row(found_mask("s", Grid((21, 17, 1), spacing=(0.1, 0.1, np.nan))))
    assert "ml_Liver" not in flat
    assert flat["voxels_Liver"] > 0


def test_boxes_become_counts(found_boxes: Callable[..., Prediction], tmp_path: Path) -> None:
    prediction = found_boxes("s", Grid((21, 17, 9)))
    row = prediction_row(prediction)
    assert [row[f"n_{name}"] for name in prediction.scheme.classes] == [1, 1, 0]
    assert [row[f"top_{name}"] for name in prediction.scheme.classes] == [0.93, 0.61, None]
    write_predictions([prediction, Failure("b", "case b: cut off")], tmp_path / "found.csv")
    frame = pd.read_csv(tmp_path / "found.csv")
    assert frame["n_lung nodule"].tolist()[0] == 1
    assert frame["error"].tolist()[1] == "case b: cut off"
