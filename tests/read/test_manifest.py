"""Manifests: a data set goes out and comes back as it was, and files are found again."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from sagittal.case import Case, ImageSource
from sagittal.dataset import Dataset
from sagittal.errors import ConfigError, DataError, ReadError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.read.manifest import CASES, ROW_SCHEMA, SCHEMA, read_manifest, write_manifest
from sagittal.read.open_dataset import open_dataset


def make_table(folder: Path, *, missing: bool = False) -> Path:
    """Eight pictures and a table of labels and clinical columns, some unknown."""
    rng = np.random.default_rng(0)
    (folder / "bilder").mkdir(parents=True)
    rows = []
    for n in range(8):
        pixels = rng.integers(0, 255, (6, 5), dtype=np.uint8)
        Pillow.fromarray(pixels).save(folder / "bilder" / f"ä{n}.png")
        label = "" if n == 3 else ("benign", "malignant")[n % 2]
        rows.append(
            (f"bilder/ä{n}.png", label, f"patient {n // 2}", "" if n == 1 else 40 + n, "FM"[n % 2], "ab"[n % 2])
        )
    if missing:
        rows.append(("bilder/gone.png", "benign", "patient 9", 50, "F", "a"))
    table = folder / "labels.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "diagnosis", "patient", "age", "sex", "site"))
        writer.writerows(rows)
    return table


def assert_same(found: Dataset, expected: Dataset) -> None:
    assert found.scheme == expected.scheme
    assert found.columns == expected.columns
    assert found.skipped == expected.skipped
    assert found.notes == expected.notes
    assert found.name == expected.name
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.id, a.patient, a.split, a.text, a.source) == (b.id, b.patient, b.split, b.text, b.source)
        assert dict(a.table) == dict(b.table)
        assert (a.truth is None) == (b.truth is None)
        if a.truth is not None and b.truth is not None:
            np.testing.assert_array_equal(a.truth.values, b.truth.values)
        assert list(a.images) == list(b.images)
        for name in a.images:
            one, two = a.image(name), b.image(name)
            np.testing.assert_array_equal(one.data, two.data)
            assert (one.modality, one.unit, one.bits) == (two.modality, two.unit, two.bits)


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    dataset = open_dataset(make_table(tmp_path / "data", missing=True), target="diagnosis")
    write_manifest(dataset, tmp_path / "manifest")
    found = open_dataset(tmp_path / "manifest")
    assert found.layout == "manifest"
    assert len(found.skipped) == 1
    assert_same(found, dataset)


def test_a_stack_of_images_comes_back_as_it_was(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 6), ("val", 4), ("test", 3)):
        arrays[f"{split}_images"] = rng.integers(0, 255, (count, 7, 6), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2)[:, None]
    np.savez(tmp_path / "breastmnist.npz", **arrays)  # type: ignore[arg-type]
    dataset = open_dataset("medmnist:breastmnist", search=(tmp_path,))
    write_manifest(dataset, tmp_path / "manifest")
    found = read_manifest(tmp_path / "manifest")
    assert found.splits == ("train", "val", "test")
    assert_same(found, dataset)


def test_a_dicom_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    from sagittal.phantom import make_chest_ct

    labels = make_chest_ct(tmp_path / "ct", studies=4)
    dataset = open_dataset(tmp_path / "ct" / "studies", labels=labels, target="nodule")
    write_manifest(dataset, tmp_path / "manifest")
    found = read_manifest(tmp_path / "manifest")
    assert [case.patient for case in found] == [case.patient for case in dataset]
    first, same = found.cases[0].image(), dataset.cases[0].image()
    np.testing.assert_array_equal(first.data, same.data)
    np.testing.assert_array_equal(first.grid.affine, same.grid.affine)
    assert first.unit == "HU"


def test_unknown_is_not_the_same_as_no_truth(tmp_path: Path) -> None:
    dataset = open_dataset(make_table(tmp_path / "data"), target="diagnosis")
    write_manifest(dataset, tmp_path / "manifest")
    truth = read_manifest(tmp_path / "manifest").cases[3].truth
    assert truth is not None
    assert not truth.known


def test_a_manifest_copies_no_pixels(tmp_path: Path) -> None:
    dataset = open_dataset(make_table(tmp_path / "data"), target="diagnosis")
    write_manifest(dataset, tmp_path / "manifest")
    assert sorted(path.name for path in (tmp_path / "manifest").iterdir()) == [CASES, ROW_SCHEMA, SCHEMA]


def test_manifest_and_data_may_move_together(tmp_path: Path) -> None:
    dataset = open_dataset(make_table(tmp_path / "here" / "data"), target="diagnosis")
    write_manifest(dataset, tmp_path / "here" / "manifest")
    shutil.move(tmp_path / "here", tmp_path / "there")
    found = read_manifest(tmp_path / "there" / "manifest")
    assert found.cases[0].image().data.shape == (1, 5, 6, 1)


def test_a_manifest_alone_may_move(tmp_path: Path) -> None:
    dataset = open_dataset(make_table(tmp_path / "data"), target="diagnosis")
    write_manifest(dataset, tmp_path / "manifest")
    shutil.move(tmp_path / "manifest", tmp_path / "a" / "b" / "manifest")
    found = read_manifest(tmp_path / "a" / "b" / "manifest")
    assert found.cases[0].image().data.shape == (1, 5, 6, 1)


def test_data_that_moved_away_is_told(tmp_path: Path) -> None:
    dataset = open_dataset(make_table(tmp_path / "data"), target="diagnosis")
    write_manifest(dataset, tmp_path / "manifest")
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    with pytest.raises(
        ReadError, match="neither where they were nor beside it; put them back, or make the manifest again"
    ):
        read_manifest(tmp_path / "manifest")


def test_another_column_may_be_asked_for(tmp_path: Path) -> None:
    dataset = open_dataset(make_table(tmp_path / "data"), target="diagnosis")
    write_manifest(dataset, tmp_path / "manifest")
    found = open_dataset(tmp_path / "manifest", target="sex")
    assert found.scheme is not None
    assert (found.scheme.target, set(found.scheme.classes)) == ("sex", {"F", "M"})
    assert "sex" not in found.columns
    assert "sex" not in found.cases[0].table


def test_a_column_that_is_not_there_is_told_with_the_nearest(tmp_path: Path) -> None:
    dataset = open_dataset(make_table(tmp_path / "data"), target="diagnosis")
    write_manifest(dataset, tmp_path / "manifest")
    with pytest.raises(DataError, match="has no column 'diagnosys'. Did you mean 'diagnosis'"):
        open_dataset(tmp_path / "manifest", target="diagnosys")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"format": 3}, ReadError, "has format 3, this version reads up to 2. Install a newer Sagittal"),
        ({"format": "1"}, ReadError, "is not the schema of a manifest"),
        ({"colour": 1}, ConfigError, "unknown key 'colour'"),
        ({"columns": ["weight"]}, ReadError, "do not fit each other"),
        ({"cases": 7}, ReadError, "holds 8 cases, dataset.json names 7"),
    ],
)
def test_a_changed_schema_is_refused(
    change: dict[str, object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    dataset = open_dataset(make_table(tmp_path / "data"), target="diagnosis")
    write_manifest(dataset, tmp_path / "manifest")
    path = tmp_path / "manifest" / SCHEMA
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(error, match=message):
        read_manifest(tmp_path / "manifest")


@pytest.mark.parametrize("name", [CASES, SCHEMA])
def test_a_truncated_manifest_is_refused(name: str, tmp_path: Path) -> None:
    dataset = open_dataset(make_table(tmp_path / "data"), target="diagnosis")
    write_manifest(dataset, tmp_path / "manifest")
    path = tmp_path / "manifest" / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ReadError, match="manifest"):
        read_manifest(tmp_path / "manifest")


def test_a_way_of_reading_that_is_not_known_is_refused(tmp_path: Path) -> None:
    """A manifest never names code."""
    import pyarrow.parquet as pq

    dataset = open_dataset(make_table(tmp_path / "data"), target="diagnosis")
    write_manifest(dataset, tmp_path / "manifest")
    path = tmp_path / "manifest" / CASES
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0]["images"][0]["read"] = "os.system"
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(ConfigError, match=r"images are not read by 'os\.system'"):
        read_manifest(tmp_path / "manifest")


def test_images_that_lie_in_no_file_cannot_be_pointed_at(tmp_path: Path) -> None:
    source = ImageSource(lambda: Image(np.zeros((1, 2, 2, 1), np.float32), Grid((2, 2, 1))))
    dataset = Dataset("memory", (Case("a", "a", {"image": source}),))
    with pytest.raises(DataError, match="the image 'image' is not read from files"):
        write_manifest(dataset, tmp_path / "manifest")
