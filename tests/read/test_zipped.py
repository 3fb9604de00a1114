"""A zip archive is a source like the folder in it, for data sets and for studies; nothing of it stays behind."""

from __future__ import annotations

import shutil
import tempfile
import zipfile

import numpy as np
import pytest

from sagittal.errors import ConfigError, DataError, ReadError
from sagittal.read.manifest import read_manifest, write_manifest
from sagittal.read.open_dataset import open_dataset
from sagittal.read.requested import find_requested
from sagittal.read.sources import make_source
from sagittal.read.studies import find_studies


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A temporary folder of the test's own, to see that nothing stays there."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert not list(place.iterdir())


@pytest.fixture
def classes(tmp_path, write_png):
    """A folder of two classes, and the archive of it."""
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        write_png(f"pets/{name}")
    return tmp_path / "pets", shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path, "pets")


def test_folders_of_classes(classes, tmp_path):
    folder, archive = classes
    plain, zipped = open_dataset(folder), open_dataset(archive)
    assert zipped.layout == "folders"
    assert zipped.name == "study"
    assert [case.id for case in zipped] == [case.id for case in plain]
    for a, b in zip(plain, zipped, strict=True):
        np.testing.assert_array_equal(a.image().data, b.image().data)
        np.testing.assert_array_equal(a.truth.values, b.truth.values)
    members = {case.images["image"].member for case in zipped}
    assert members == {"pets/cat/1.png", "pets/cat/2.png", "pets/dog/1.png", "pets/dog/2.png"}
    write_manifest(zipped, tmp_path / "manifest")
    again = read_manifest(tmp_path / "manifest")
    np.testing.assert_array_equal(next(iter(again)).image().data, next(iter(plain)).image().data)


def test_a_table_beside_images_and_a_layout_by_name(tmp_path, write_png):
    for n in range(4):
        write_png(f"set/{n}.png")
    (tmp_path / "set/labels.csv").write_text("image,grade\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(4)))
    archive = shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "set")
    assert (open_dataset(archive).layout, len(open_dataset(archive))) == ("table", 4)
    assert open_dataset(archive, layout="files").scheme is None


def test_series_and_headers_with_data_beside(tmp_path, write_series):
    volume = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    write_series("study/ct", volume, [0, 2, 4])
    (tmp_path / "study/b.raw").write_bytes(volume.tobytes())
    (tmp_path / "study/b.mhd").write_text(
        "NDims = 3\nDimSize = 5 4 3\nElementType = MET_SHORT\nElementDataFile = b.raw\n"
    )
    archive = shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "study")
    series, header = sorted(find_studies(archive), key=lambda case: case.id, reverse=True)
    assert series.id.startswith("ct-")
    np.testing.assert_array_equal(series.image().data[0], volume.transpose(2, 1, 0) - 1024)
    assert series.image().grid.spacing.tolist() == pytest.approx([0.5, 0.7, 2])
    np.testing.assert_array_equal(header.image().data[0], volume.transpose(2, 1, 0))
    cases, failures = find_requested([archive, tmp_path / "none.zip"])
    assert (len(cases), len(failures)) == (2, 1)


def test_one_bad_archive_is_one_bad_case(classes, tmp_path):
    _, archive = classes
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 and then nothing of use" * 9)
    cases = find_studies([archive, tmp_path / "bad.zip"])
    assert len(cases) == 5
    with pytest.raises(ReadError, match="case bad: zip archive: damaged, cut off"):
        cases[-1].image()
    with pytest.raises(ReadError, match="zip archive: damaged"):
        open_dataset(tmp_path / "bad.zip")


def test_archives_inside_are_reported_and_changes_noticed(classes, tmp_path):
    folder, archive = classes
    shutil.copy(archive, folder / "inner.zip")
    outer = shutil.make_archive(str(tmp_path / "outer"), "zip", folder)
    dataset = open_dataset(outer)
    assert [one.reason for one in dataset.skipped] == ["an archive inside the archive; unpack the outer one to use it"]
    with zipfile.ZipFile(outer, "w") as out:
        out.writestr("other.txt", "x")
    with pytest.raises(ReadError, match=r"case cat/1: zip archive: 1 of the 1 entries of this case are not in it"):
        next(iter(dataset)).image()


def test_what_cannot_be_reached_one_by_one(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=np.zeros((4, 9, 9), np.uint8), train_labels=np.array([0, 1, 0, 1]))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.write(tmp_path / "a.npz", "a.npz")
    with pytest.raises((DataError, ReadError), match="unpack the archive|say which"):
        open_dataset(tmp_path / "a.zip", layout=None).cases[0].image()
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises((DataError, ReadError), match="empty|no image"):
        open_dataset(tmp_path / "empty.zip")


def test_a_manifest_cannot_name_archives_in_archives(tmp_path, classes):
    source = make_source("a", "zip", (tmp_path / "study.zip",), {"members": [], "way": "zip", "options": {}})
    with pytest.raises(ConfigError, match="entries of an archive are not read by 'zip'"):
        source.load()
