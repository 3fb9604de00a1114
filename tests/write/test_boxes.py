"""Boxes: COCO results that pycocotools reads, and tables in voxels and mm."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sagittal.case import Case
from sagittal.errors import ScopeError
from sagittal.grid import Grid
from sagittal.prediction import Prediction
from sagittal.write.boxes import box_rows, coco_results, write_boxes_csv, write_boxes_json, write_coco


def test_pycocotools_reads_the_results(found_boxes: Callable[..., Prediction], tmp_path: Path) -> None:
    pycocotools = pytest.importorskip("pycocotools.coco")
    prediction = found_boxes("s", Grid((60, 40, 1)))
    results, images = write_coco([prediction], tmp_path, ids={"s": 17})
    told = json.loads(images.read_text())
    truth = pycocotools.COCO()
    truth.dataset = {"images": told["images"], "categories": told["categories"], "annotations": []}
    truth.createIndex()
    found = truth.loadRes(str(results))
    rows = found.loadAnns(found.getAnnIds(imgIds=[17], catIds=[1]))
    # Voxel indices (2.5, 3.5) to (8.5, 9.5) are pixels 3 to 8 and 4 to 9.
    assert [row["bbox"] for row in rows] == [[3.0, 4.0, 6.0, 6.0], [1.5, 1.5, 3.0, 3.0]]
    assert [row["score"] for row in rows] == [0.93, 0.2]
    assert [category["name"] for category in told["categories"]] == ["lung nodule", "gizmo", "mass"]


def test_boxes_of_a_volume_have_six_numbers(study: Callable[..., Case], found_boxes: Callable[..., Prediction]) -> None:
    rows = coco_results(found_boxes("s", study().image().grid), 1)
    assert rows[0]["bbox"] == [3.0, 4.0, 2.0, 6.0, 6.0, 3.0]


def test_table_in_voxels_and_mm(
    study: Callable[..., Case], found_boxes: Callable[..., Prediction], tmp_path: Path
) -> None:
    grid = study().image().grid
    path = write_boxes_csv([found_boxes("s", grid), found_boxes("t", grid)], tmp_path / "found.csv")
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert [(row["case"], row["box"], row["class"], row["chosen"]) for row in rows[:4]] == [
        ("s", "1", "lung nodule", "yes"),
        ("s", "2", "gizmo", "yes"),
        ("s", "3", "lung nodule", "no"),
        ("t", "1", "lung nodule", "yes"),
    ]
    first = rows[0]
    assert [float(first[f"{a}_{b}"]) for b in ("low", "high") for a in "ijk"] == [2.5, 3.5, 1.5, 8.5, 9.5, 4.5]
    assert [float(first[f"{a}_mm"]) for a in "ijk"] == [3.0, 4.2, 7.5]
    place = grid.affine @ [5.5, 6.5, 3.0, 1]
    assert [float(first[f"{a}_mm"]) for a in "xyz"] == pytest.approx(place[:3].tolist(), abs=1e-3)


def test_a_picture_without_a_size_has_no_mm(found_boxes: Callable[..., Prediction], tmp_path: Path) -> None:
    prediction = found_boxes("s", Grid((60, 40, 1)))
    (first, *_) = box_rows(prediction)
    assert [first[f"{a}_mm"] for a in "xyzijk"] == [None] * 6
    sized = box_rows(found_boxes("s", Grid((60, 40, 1), spacing=(0.5, 0.25, np.nan))))[0]
    assert [sized[f"{a}_mm"] for a in "ijk"] == [3.0, 1.5, None]
    values = json.loads(write_boxes_json(prediction, tmp_path / "s.json").read_text())
    assert values["affine_lps"] is None
    assert len(values["boxes"]) == 3


def test_a_mask_is_no_boxes(study: Callable[..., Case], found_mask: Callable[..., Prediction]) -> None:
    with pytest.raises(ScopeError, match="case s: a table of boxes holds boxes, and this model finds a mask"):
        box_rows(found_mask("s", study().image().grid))
