"""Which files of a folder are images, and which DICOM files belong together."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sagittal.errors import ReadError, SagittalError
from sagittal.read.dicom import NOT_IMAGES, read_dicom
from sagittal.read.dicom_file import scan_dicom
from sagittal.read.open_image import READERS, image_suffix, reader_of

TABLES = frozenset({".csv", ".tsv", ".parquet"})
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
#: What the index of a DICOM file needs: keyword -> tag.
_INDEX = {
    "AccessionNumber": 0x00080050,
    "Modality": 0x00080060,
    "PatientID": 0x00100020,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "InstanceNumber": 0x00200013,
    "ImagePositionPatient": 0x00200032,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
}
_IGNORED_FOLDERS = {"__MACOSX"}
_NO_IMAGES = {
    *TABLES, ".txt", ".md", ".json", ".yaml", ".yml", ".xml", ".html", ".pdf", ".py", ".sh", ".log", ".xlsx", ".xls",
    ".doc", ".docx", ".zip", ".tar", ".tgz", ".7z", ".toml", ".ini", ".cfg", ".db", ".sqlite", ".exe", ".dll", ".jar",
    ".htm", ".css", ".js", ".nrrd", ".mha", ".mhd", ".raw", ".gif", ".svg", ".mp4", ".avi",
}  # fmt: skip


@dataclass(frozen=True)
class Instance:
    """What the index knows of one DICOM file. Identifiers stay in here; they are never shown."""

    path: Path
    modality: str
    series: str
    study: str
    patient: str
    accession: str
    number: int
    placed: bool
    frames: int


@dataclass(frozen=True)
class Group:
    """Files that make one image: a DICOM series, or a single file."""

    files: tuple[Path, ...]
    dicom: Instance | None = None


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
    """Files to images: DICOM files of one series together, every other file by itself.

    A DICOM file that cannot be parsed is a group of its own, so that its error is told when it is read. Objects that
    are no images (reports, segmentations, structure sets) are left out, and so are files without pixels. Files of a
    series that have no position, as two views of a chest, are groups of their own.
    """
    groups: list[Group] = []
    series: dict[str, list[Instance]] = defaultdict(list)
    for path in paths:
        if reader_of(path) is not read_dicom:
            groups.append(Group((path,)))
            continue
        try:
            instance = index_file(path)
        except SagittalError:
            groups.append(Group((path,)))
            continue
        if instance is not None:
            series[instance.series or str(path)].append(instance)
    for members in series.values():
        members.sort(key=lambda m: (m.number, str(m.path)))
        if len(members) > 1 and all(m.placed and m.frames == 1 for m in members):
            groups.append(Group(tuple(m.path for m in members), members[0]))
        else:
            groups += [Group((m.path,), m) for m in members]
    return sorted(groups, key=lambda g: str(g.files[0]))


def index_file(path: Path) -> Instance | None:
    """What the header of a DICOM file says of its place among others; ``None`` for an object that is no image."""
    found = scan_dicom(path, _INDEX)
    modality = found["Modality"].upper()
    if modality in NOT_IMAGES or found["Rows"] in {"", "0"}:
        return None
    return Instance(
        path=path,
        modality=modality if modality.isalnum() and len(modality) <= 16 else "OT",
        series=found["SeriesInstanceUID"],
        study=found["StudyInstanceUID"],
        patient=found["PatientID"],
        accession=found["AccessionNumber"],
        number=_whole(found["InstanceNumber"]),
        placed=bool(found["ImagePositionPatient"]),
        frames=_whole(found["NumberOfFrames"]) or 1,
    )


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0


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
