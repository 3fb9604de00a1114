"""What stands on both sides of a split, told without reading pixels; and training stops there."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image as Pillow

import sagittal
from sagittal.check import leakage
from sagittal.check.check_dataset import check_dataset
from sagittal.errors import DataError
from sagittal.options import TrainOptions
from sagittal.prepare.plan import DecidePlan, NetworkPlan, Plan, PreparePlan, SplitPlan, TrainPlan
from sagittal.read.open_dataset import open_dataset


@pytest.fixture
def split_set(tmp_path, make_pixels):
    """32 pictures in a table with patients and splits; no leak yet. ``change(rows)`` may make one."""
    folder = tmp_path / "set"
    folder.mkdir()
    rows = []
    for n in range(32):
        Pillow.fromarray(make_pixels(n, (32, 32))).save(folder / f"{n:02d}.png")
        rows.append([f"{n:02d}.png", "ab"[n % 2], f"p{n}", "train" if n < 16 else "val" if n < 24 else "test"])

    def write(change=lambda rows: None):
        change(rows)
        lines = ["file,label,patient,split", *(",".join(row) for row in rows)]
        (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder

    return write


def cheap(folder):
    return {finding.code: finding for finding in check_dataset(open_dataset(folder), pixels="none")}


def test_no_leak(split_set):
    assert not {code for code in cheap(split_set()) if "splits" in code}


def test_a_file_copied_to_another_split(split_set):
    folder = split_set()
    (folder / "20.png").write_bytes((folder / "03.png").read_bytes())
    found = cheap(folder)["file-in-two-splits"]
    assert (found.severity, found.pairs) == ("error", (("03", "20"),))
    assert "1 pair of cases in two splits have the same files, byte by byte (03 = 20)" in found.message


def test_a_file_copied_within_a_split_is_no_leak(split_set):
    folder = split_set()
    (folder / "05.png").write_bytes((folder / "03.png").read_bytes())
    assert "file-in-two-splits" not in cheap(folder)


def test_equal_size_is_not_equal(split_set):
    folder = split_set()
    for n in (3, 20):
        Pillow.fromarray(np.full((32, 32), n, np.uint8)).save(folder / f"{n:02d}.bmp")
        (folder / f"{n:02d}.png").unlink()
        (folder / f"{n:02d}.bmp").rename(folder / f"{n:02d}.png")
    assert (folder / "03.png").stat().st_size == (folder / "20.png").stat().st_size
    assert "file-in-two-splits" not in cheap(folder)


def test_beyond_the_cap_starts_and_ends_are_compared(split_set, monkeypatch):
    monkeypatch.setattr(leakage, "_MOST_BYTES", 10)
    folder = split_set()
    (folder / "20.png").write_bytes((folder / "03.png").read_bytes())
    assert cheap(folder)["file-in-two-splits"].pairs == (("03", "20"),)


def test_a_patient_in_two_splits(split_set):
    def change(rows):
        rows[20][2] = rows[3][2] = "Meier"

    found = cheap(split_set(change))["patient-in-two-splits"]
    assert (found.severity, found.cases) == ("error", ("03", "20"))
    assert "Meier" not in found.message


@pytest.mark.parametrize("kind", ["file", "patient"])
def test_training_stops_on_leakage_and_says_how_to_go_on(split_set, tmp_path, kind):
    def change(rows):
        if kind == "patient":
            rows[20][2] = rows[3][2]

    folder = split_set(change)
    if kind == "file":
        (folder / "20.png").write_bytes((folder / "03.png").read_bytes())
    with pytest.raises(DataError, match=r"more than one split|two splits.*To train all the same: --allow-leakage"):
        sagittal.train(folder, target="label", budget="30s", output=tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "check.json").read_text(encoding="utf-8"))
    assert any(finding["code"] == f"{kind}-in-two-splits" and finding["severity"] == "error" for finding in kept)
    assert not (tmp_path / "run" / "plan.json").exists()


def test_allowed_leakage_is_kept_in_run_model_and_card(split_set, tmp_path):
    def change(rows):
        rows[20][2] = rows[3][2]

    folder = split_set(change)
    scheme = open_dataset(folder, target="label").scheme
    plan = Plan(
        scheme,
        prepare=PreparePlan(size=(16, 16), offset=(100.0,), scale=(40.0,), store="uint8"),
        network=NetworkPlan(width=8, depth=(1, 1)),
        train=TrainPlan(epochs=2, batch=8, learning_rate=0.01),
        split=SplitPlan(folds=1, val_fraction=0.25, test_fraction=0.25),
        decide=DecidePlan(calibration="temperature"),
    )
    plan.save(tmp_path / "plan.json")  # carried out in seconds, whatever else the machine does
    options = TrainOptions(allow_leakage=True, plan=tmp_path / "plan.json", device="cpu")
    run = sagittal.train(folder, target="label", output=tmp_path / "run", options=options)
    kept = json.loads((tmp_path / "run" / "check.json").read_text(encoding="utf-8"))
    assert [f["severity"] for f in kept if f["code"] == "patient-in-two-splits"] == ["warning"]
    assert json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["allow_leakage"] is True
    assert run.model.data["allowed_leakage"] == {"patient-in-two-splits": 2}
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "leakage between splits, allowed on request" in card
    assert "patient-in-two-splits (2 cases)" in card
