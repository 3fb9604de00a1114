"""DICOMDIR: the list of files on a DICOM medium, resolved below its own folder only (CVE-2026-32711)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagittal.errors import ReadError
from sagittal.formats.dicom_file import open_dicom
from sagittal.guard.limits import as_read_error


@dataclass(frozen=True)
class Directory:
    """What a DICOMDIR lists.

    Attributes
    ----------
    files : tuple of Path
        That are there, in the order of the list, each once.
    missing : tuple of Path
        That are not.
    refused : int
        References that lead out of the folder of the DICOMDIR, or are no names of files.
    """

    files: tuple[Path, ...]
    missing: tuple[Path, ...]
    refused: int


def is_dicomdir(path: Path) -> bool:
    """Whether a path is called as PS3.10 8.6 asks: DICOMDIR, in any case."""
    return path.name.lower() in {"dicomdir", "dicomdir.dcm"} and path.is_file()


def read_dicomdir(path: Path) -> Directory:
    """The files that a DICOMDIR refers to.

    A reference is a list of up to eight names (Referenced File ID, PS3.3 F.3.2.2), found in the folder of the DICOMDIR
    in any case of letters. A name that is empty, ``.``, ``..``, absolute or holds a separator is refused, and so is one
    that a link leads out of the folder.

    Parameters
    ----------
    path : Path

    Raises
    ------
    ReadError
        If the file is damaged or no DICOMDIR.
    """
    folder = path.parent
    with as_read_error("DICOMDIR"):
        header = open_dicom(path, pixels=False)
        if "DirectoryRecordSequence" not in header:
            raise ReadError("DICOMDIR: holds no directory records")
        references = list(_references(header))
    root = folder.resolve()
    names: dict[Path, dict[str, Path]] = {}
    files: dict[Path, None] = {}
    missing: dict[Path, None] = {}
    refused = 0
    for parts in references:
        if not 1 <= len(parts) <= 8 or any(_unsafe(part) for part in parts):
            refused += 1
            continue
        place = folder
        for part in parts:
            place = _look_up(place, part, names)
        if not place.resolve().is_relative_to(root):
            refused += 1
        elif place.is_file():
            files[place] = None
        else:
            missing[place] = None
    return Directory(tuple(files), tuple(missing), refused)


def _references(header: Any) -> Iterator[list[str]]:
    for record in header.get("DirectoryRecordSequence") or ():
        if record.get("RecordInUseFlag") == 0:
            continue
        given = record.get("ReferencedFileID")
        if given:
            yield [given] if isinstance(given, str) else [str(part) for part in given]


def _unsafe(part: str) -> bool:
    return part.strip() in {"", ".", ".."} or len(part) > 255 or any(c in "/\\:\0" for c in part)


def _look_up(folder: Path, name: str, names: dict[Path, dict[str, Path]]) -> Path:
    """A name in a folder, in whatever case it was written there."""
    exact = folder / name
    if exact.exists():
        return exact
    if folder not in names:
        try:
            names[folder] = {child.name.lower(): child for child in sorted(folder.iterdir())}
        except OSError:
            names[folder] = {}
    return names[folder].get(name.lower(), exact)
