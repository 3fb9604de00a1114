"""DICOMDIR as a source, and preambles that are programs."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.sequence import Sequence

from sagittal.errors import ReadError
from sagittal.formats.preamble import executable_preamble, has_executable_preamble
from sagittal.read.dicomdir import is_dicomdir, read_dicomdir
from sagittal.read.files import sort_files, walk
from sagittal.read.studies import find_studies


def _write_directory(folder: Path, references: list[object], inactive: int | None = None) -> Path:
    """A DICOMDIR of image records with given Referenced File IDs."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    header.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    header.FileSetID = "DISC"
    records = []
    for n, reference in enumerate(references):
        record = Dataset()
        record.OffsetOfTheNextDirectoryRecord = 0
        record.RecordInUseFlag = 0 if n == inactive else 0xFFFF
        record.DirectoryRecordType = "IMAGE"
        if reference is not None:
            record.add_new(0x00041500, "LO", reference)  # LO: it writes what CS would warn of
        records.append(record)
    header.DirectoryRecordSequence = Sequence(records)
    pydicom.dcmwrite(folder / "DICOMDIR", header, enforce_file_format=True)
    return folder / "DICOMDIR"


@pytest.fixture
def disc(write_series, tmp_path):
    """A folder of three slices, IMAGES/IM0 to IM2 (no suffix)."""
    paths = write_series("raw", np.arange(36, dtype=np.int16).reshape(3, 3, 4), [0.0, 2.0, 4.0])
    (tmp_path / "disc" / "IMAGES").mkdir(parents=True)
    for n, path in enumerate(paths):
        path.rename(tmp_path / "disc" / "IMAGES" / f"IM{n}")
    return tmp_path / "disc"


REFERENCES = [["IMAGES", f"IM{n}"] for n in range(3)]


def test_a_dicomdir_stands_for_its_files(disc):
    path = _write_directory(disc, [None, *REFERENCES, REFERENCES[0]])
    assert is_dicomdir(path)
    found = read_dicomdir(path)
    assert [f.name for f in found.files] == ["IM0", "IM1", "IM2"]
    assert (found.missing, found.refused) == ((), 0)
    (case,) = find_studies(path)
    assert case.image().grid.shape == (4, 3, 3)


def test_a_folder_with_a_dicomdir_is_read_once(disc):
    _write_directory(disc, REFERENCES)
    (case,) = find_studies(disc)
    assert case.image().grid.shape == (4, 3, 3)


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")  # pydicom leaves folders behind
def test_a_dicomdir_of_pydicom_is_read(disc, tmp_path):
    files = FileSet()
    for n in range(3):
        header = pydicom.dcmread(disc / "IMAGES" / f"IM{n}")
        header.StudyDate, header.StudyTime, header.StudyID, header.SeriesNumber = "20260101", "120000", "1", 1
        files.add(header)
    files.write(tmp_path / "set")
    del files
    gc.collect()
    (case,) = find_studies(tmp_path / "set" / "DICOMDIR")
    assert case.image().grid.shape == (4, 3, 3)


def test_names_are_found_in_any_case(disc):
    (disc / "IMAGES").rename(disc / "images")
    for n in range(3):
        (disc / "images" / f"IM{n}").rename(disc / "images" / f"im{n}")
    assert len(read_dicomdir(_write_directory(disc, REFERENCES)).files) == 3


def test_records_that_are_not_in_use_are_left_out(disc):
    assert len(read_dicomdir(_write_directory(disc, REFERENCES, inactive=1)).files) == 2


def test_what_is_missing_is_a_case_that_fails(disc):
    path = _write_directory(disc, [*REFERENCES, ["IMAGES", "IM9"]])
    assert [f.name for f in read_dicomdir(path).missing] == ["IM9"]
    for source in (path, disc):
        missing, whole = sorted(find_studies(source), key=lambda case: len(case.images["image"].files))
        assert whole.image().grid.shape == (4, 3, 3)
        with pytest.raises(ReadError, match=rf"case {missing.id}: the file does not exist"):
            missing.image()


@pytest.mark.parametrize(
    "reference",
    [
        ["..", "raw", "secret"],
        ["IMAGES", "..", "..", "secret"],
        "..",
        ".",
        ["IMAGES", ""],
        "/etc/passwd",
        ["", "etc", "passwd"],
        "IMAGES/../../secret",
        "C:",
        ["LINK", "secret"],
        "LINKED",
        ["A"] * 9,
    ],
)
def test_references_out_of_the_folder_are_refused(disc, tmp_path, write_slice, reference, caplog):
    outside = write_slice("outside/secret", np.zeros((3, 4), np.int16), SeriesInstanceUID="6.6")
    (disc / "LINK").symlink_to(outside.parent)
    (disc / "LINKED").symlink_to(outside)
    path = _write_directory(disc, [*REFERENCES, reference])
    found = read_dicomdir(path)
    assert len(found.files) == 3
    assert found.refused == 1
    assert all(f.resolve().is_relative_to(disc.resolve()) for f in found.files)
    groups, skipped = sort_files([path])
    assert [len(g.files) for g in groups] == [3]
    assert skipped[0].reason.endswith("refused")
    assert len(find_studies(path)) == 1
    assert "leads out of the folder" in caplog.text
    assert "secret" not in caplog.text


def test_a_broken_dicomdir_is_a_case_that_fails(disc):
    (disc / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\x04\x00\x20\x12SQ\0\0\xff\xff")
    with pytest.raises(ReadError):
        read_dicomdir(disc / "DICOMDIR")
    (case,) = find_studies(disc / "DICOMDIR")
    with pytest.raises(ReadError, match="case "):
        case.image()
    assert len(list(walk(disc))) == 3


def test_pydicom_is_one_that_keeps_to_the_folder():
    """CVE-2026-32711: FileSet of earlier versions follows `..`."""
    from importlib.metadata import requires, version

    assert tuple(int(v) for v in version("pydicom").split(".")[:3]) >= (3, 0, 2)
    (floor,) = [r for r in requires("sagittal") or () if r.startswith("pydicom") and "extra" not in r]
    assert ">=3.0.2" in floor.replace(" ", "")


# ---- preambles


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"MZ\x90\0", "Windows program"),
        (b"\x7fELF\2\1", "Linux program"),
        (b"\xcf\xfa\xed\xfe", "macOS program"),
        (b"\xfe\xed\xfa\xce", "macOS program"),
        (b"\xca\xfe\xba\xbe", "macOS or Java program"),
        (b"#!/bin/sh\n", "script"),
        (b"", ""),
        (b"II*\0", ""),  # PS3.10 7.1: a TIFF that is DICOM as well
    ],
)
def test_preambles_that_are_programs_are_recognised(write_slice, start, kind):
    path = write_slice("a.dcm", np.zeros((3, 4), np.int16))
    path.write_bytes(start.ljust(128, b"\0") + path.read_bytes()[128:])
    assert executable_preamble(path) == kind
    assert has_executable_preamble(path) is bool(kind)


def test_only_dicom_files_have_a_preamble(tmp_path):
    (tmp_path / "tool.exe").write_bytes(b"MZ".ljust(400, b"\0"))
    (tmp_path / "short").write_bytes(b"MZ")
    assert not any(has_executable_preamble(tmp_path / name) for name in ("tool.exe", "short", "missing"))
