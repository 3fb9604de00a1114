"""Which files of a folder are images, and which DICOM files belong together."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from sagittal.dataset import Skipped
from sagittal.errors import ReadError, SagittalError
from sagittal.formats.dicom import read_dicom
from sagittal.formats.dicom_index import NOT_IMAGES, Instance, index_file, index_object
from sagittal.formats.open_image import READERS, image_suffix, reader_of
from sagittal.read.dicom_group import Group, series_name, sort_series
from sagittal.read.dicomdir import is_dicomdir, read_dicomdir

__all__ = [  # noqa: RUF022  plainly sorted, as everywhere
    "Group",
    "Instance",
    "SPLIT_NAMES",
    "TABLES",
    "exists",
    "expand",
    "group",
    "image_files",
    "index_file",
    "is_image",
    "sort_files",
    "walk",
]

TABLES = frozenset({".csv", ".tsv", ".parquet", ".xlsx"})
#: Names that data sets give their splits -> ours.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "tr": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "ts": "test",
}
_IGNORED_FOLDERS = {"__MACOSX"}
_NO_IMAGES = {
    *TABLES, ".txt", ".md", ".json", ".yaml", ".yml", ".xml", ".html", ".pdf", ".py", ".sh", ".log", ".xls",
    ".doc", ".docx", ".zip", ".tar", ".tgz", ".7z", ".toml", ".ini", ".cfg", ".db", ".sqlite", ".exe", ".dll", ".jar",
    ".htm", ".css", ".js", ".raw", ".gif", ".svg", ".mp4", ".avi",
}  # fmt: skip


def walk(folder: Path) -> Iterator[Path]:
    """The files below a folder in a fixed order; hidden ones and those of other systems' bookkeeping left out.

    Links to folders are followed, each folder once.
    """
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in _IGNORED_FOLDERS)
        for name in sorted(names):
            if not name.startswith(".") and name.lower() not in {"thumbs.db", "desktop.ini", "dicomdir"}:
                yield Path(place) / name


def image_files(folder: Path) -> list[Path]:
    """The files below a folder that are images by suffix or, where the suffix says nothing, by content."""
    return [path for path in walk(folder) if is_image(path)]


def is_image(path: Path) -> bool:
    """Whether a file is an image of a known format; an empty file of a known suffix counts, to be reported."""
    suffix = image_suffix(path)
    if suffix in READERS:
        return True
    return suffix not in _NO_IMAGES and reader_of(path) is not None


def group(paths: Iterable[Path]) -> list[Group]:
    """Files to images, as :func:`sort_files`, without what is left out."""
    return sort_files(paths)[0]


def sort_files(paths: Iterable[Path]) -> tuple[list[Group], list[Skipped]]:
    """Files to images: DICOM files of one volume together, every other file by itself; and what is left out, and why.

    The files of a series are those of equal patient, study and series; a series of several volumes (echoes, b-values,
    phases, orientations, repetitions) is split by :func:`sagittal.formats.dicom_series.split_series`. Exact copies of a
    file count once. A DICOM file that cannot be parsed is a group of its own, so that its error is told when it is
    read. A DICOMDIR stands for the files that it lists; one that is missing is a group too, whose error is told when it
    is read. Objects that are no images (reports, segmentations, structure sets) are left out, and so are files without
    pixels. Files of a series that have no position, as two views of a chest, are groups of their own.

    Returns
    -------
    groups : list of Group
    skipped : list of Skipped
        Named by modality and a hash of the series.
    """
    groups: list[Group] = []
    skipped: list[Skipped] = []
    series: dict[tuple[str, str, str], list[Instance]] = defaultdict(list)
    for path in _listed(paths, groups, skipped):
        # What is called DICOM need not be opened twice; if it is something else, it cannot be parsed.
        if READERS.get(image_suffix(path)) is not read_dicom and reader_of(path) is not read_dicom:
            groups.append(Group((path,)))
            continue
        try:
            found = index_object(path)
        except SagittalError:
            groups.append(Group((path,)))
            continue
        if found.image:
            series[found.series or str(path), found.study, found.patient].append(found)
        else:
            what = (
                f"an object of modality {found.modality}"
                if found.modality in NOT_IMAGES
                else "a DICOM object without pixels"
            )
            skipped.append(Skipped(series_name(found), f"{what}, not an image of a patient", "not-an-image"))
    for members in series.values():
        groups += sort_series(members)
    # The volumes of a series stay together, in their own order, where its first file stands.
    places: dict[str, str] = {}
    for made in groups:
        if made.dicom and made.label:
            where = str(made.files[0])
            places[made.dicom.series] = min(where, places.get(made.dicom.series, where))
    return sorted(groups, key=lambda g: places[g.dicom.series] if g.dicom and g.label else str(g.files[0])), skipped


def _listed(paths: Iterable[Path], groups: list[Group], skipped: list[Skipped]) -> Iterator[Path]:
    """The paths, each once, a DICOMDIR replaced by the files that it lists."""
    seen: set[Path] = set()
    lists: list[Path] = []
    for path in paths:
        if is_dicomdir(path):
            lists.append(path)
        elif path not in seen:
            seen.add(path)
            yield path
    for place in lists:
        try:
            found = read_dicomdir(place)
        except SagittalError:
            groups.append(Group((place,)))  # its error is told when it is read
            continue
        yield from (path for path in found.files if path not in seen)
        seen.update(found.files)
        groups += [Group((path,)) for path in found.missing if path not in seen]
        if found.refused:
            why = "leads out of the folder of its DICOMDIR, or is no name of a file: refused"
            skipped += [Skipped(f"dicomdir-reference-{n + 1}", why, "unreadable") for n in range(found.refused)]


def expand(paths: Iterable[str | Path]) -> list[Path]:
    """Files, folders and patterns to existing files and folders, in the order given.

    Raises
    ------
    ReadError
        If a path does not exist or a pattern fits nothing.
    """
    found: list[Path] = []
    for given in paths:
        path = Path(given)
        if exists(path):
            found.append(path)
        elif glob.has_magic(str(given)):
            fits = sorted(Path(p) for p in glob.glob(str(given), recursive=True))
            if not fits:
                raise ReadError(f"no file fits the pattern '{given}'")
            found += fits
        else:
            raise ReadError(f"'{given}' does not exist; give a file, a folder or a pattern such as 'scans/*.png'")
    return list(dict.fromkeys(found))


def exists(path: Path) -> bool:
    """Whether a path exists; a name that no file can have does not."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long for the file system, or with a NUL
        return False
