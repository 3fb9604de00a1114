"""Files, folders and patterns to cases without truth, for prediction."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sagittal.case import Case, ImageSource
from sagittal.errors import ReadError
from sagittal.formats.open_image import stem
from sagittal.guard.archive import is_archive
from sagittal.read.dicom_group import Group, series_name
from sagittal.read.dicomdir import is_dicomdir
from sagittal.read.files import expand, image_files, sort_files
from sagittal.read.sources import file_source, patient_key, rename_mask, rename_source, series_source
from sagittal.read.zipped import find_in_archive
from sagittal.truth import SegmentationSource

_LOG = logging.getLogger(__name__)


def find_studies(paths: str | Path | Iterable[str | Path]) -> list[Case]:
    """The studies that files, folders and patterns hold, each a case without truth.

    Nothing but DICOM headers is read; a file that is named but unreadable is a case whose error comes when it is read.

    Parameters
    ----------
    paths : path, or several

    Returns
    -------
    list of Case
        DICOM files grouped by series, named by modality and a hash of the series; a series of several volumes gives
        a case each (``mr-0a1b2c3d4e5f-echo2``), whose `source` says what tells them apart; other files are named by
        their path below the folder that was given. A DICOMDIR stands for the files that it lists.

    Raises
    ------
    ReadError
        If a path does not exist, or nothing was found.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    cases: list[Case] = []
    loose: list[Path] = []
    for place in expand(given):
        if is_archive(place):
            cases += find_in_archive(place, _cases_below)
        elif place.is_dir():
            cases += _cases_below(place)
        else:
            loose.append(place)
    cases += _cases_of(loose)  # together: the files of one series may have been named one by one
    if not cases:
        raise ReadError(
            f"no image was found in {', '.join(repr(str(p)) for p in given) or 'nothing'}; "
            "DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF, BMP, .npy and .npz are read"
        )
    return unique(cases)


def _cases_below(folder: Path) -> list[Case]:
    # The references of a DICOMDIR may be missing.
    directories = [path for path in sorted(folder.iterdir()) if is_dicomdir(path)]
    return _cases_of([*image_files(folder), *directories], folder)


def _cases_of(files: list[Path], root: Path | None = None) -> list[Case]:
    groups, skipped = sort_files(files)
    for reason, count in Counter(left.reason for left in skipped).items():
        _LOG.warning("left out %d times: %s", count, reason)
    return [make_case(found, root or found.files[0].parent) for found in groups]


def make_case(found: Group, root: Path) -> Case:
    """The case of one group of files, named safely."""
    where = _relative(found.files[0], root)
    if found.dicom is None:
        name = where.with_name(stem(where)).as_posix()
        return Case(name, name, {"image": file_source(name, found.files[0])}, source=str(where))
    name = group_name(found)
    place = where if len(found.files) == 1 else where.parent
    patient = patient_key(found.dicom.patient) if found.dicom.patient else series_name(found.dicom)
    source = f"{place} ({found.reason})" if found.reason else str(place)
    return Case(name, patient, {"image": image_source(name, found)}, source=source)


def group_name(found: Group) -> str:
    """What a DICOM image is called: modality, a hash of its series, and what tells it apart: ``mr-0a1b2c3d4e5f-echo2``."""
    if found.dicom is None:
        return stem(found.files[0])
    return "-".join(part for part in (series_name(found.dicom), found.label) if part)


def image_source(name: str, found: Group) -> ImageSource:
    """The image of a group of files, whose errors begin with a name."""
    if found.volume:
        return series_source(name, found.files, volume=found.volume)
    return file_source(name, found.files[0]) if len(found.files) == 1 else series_source(name, found.files)


def unique(cases: list[Case]) -> list[Case]:
    """Cases of equal name told apart by a running number."""
    total = Counter(case.id for case in cases)
    seen: Counter[str] = Counter()
    told = []
    for case in cases:
        if total[case.id] == 1:
            told.append(case)
            continue
        seen[case.id] += 1
        told.append(_renamed(case, f"{case.id}-{seen[case.id]}"))
    return told


def _renamed(case: Case, name: str) -> Case:
    """The case under another name, which its image sources' errors take up too."""
    images = {key: rename_source(name, source) for key, source in case.images.items()}
    truth = rename_mask(name, case.truth) if isinstance(case.truth, SegmentationSource) else case.truth
    patient = name if case.patient == case.id else case.patient
    return replace(case, id=name, patient=patient, images=images, truth=truth)


def _relative(path: Path, root: Path) -> Path:
    try:
        return path.relative_to(root)
    except ValueError:
        return Path(path.name)
