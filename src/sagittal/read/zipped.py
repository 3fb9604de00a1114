"""Studies inside a zip archive: indexed once in a private folder, then each image unpacks its own entries while it reads.

So a manifest of an archive works, and nothing of a patient stays on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagittal.case import Case, ImageSource
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import DataError, ReadError, SagittalError
from sagittal.formats.open_image import data_files
from sagittal.guard.archive import archive_entries, unpacked
from sagittal.read.sources import make_mask_source, make_source
from sagittal.truth import SegmentationSource

if TYPE_CHECKING:
    from collections.abc import Iterable


def open_archive(path: Path, open_folder: Callable[[Path], Dataset]) -> Dataset:
    """The data set in an archive, as `open_folder` finds it when it is unpacked; its sources point into the archive.

    Raises
    ------
    ReadError, ResourceError
        If the archive is damaged, unsafe or too large.
    DataError
        If its images cannot be reached one by one.
    """
    with unpacked(path) as place:
        folder = _top(place.resolve())
        dataset = open_folder(folder)
        cases = tuple(point_into(case, path, place.resolve()) for case in dataset)
    inside = [
        Skipped(
            f"entry {entry.number}", "an archive inside the archive; unpack the outer one to use it", "not-an-image"
        )
        for entry in archive_entries(path)
        if entry.is_archive
    ]
    name = path.stem if dataset.name == folder.name else dataset.name
    return replace(dataset, name=name, cases=cases, skipped=(*dataset.skipped, *inside))


def find_in_archive(path: Path, find: Callable[[Path], Iterable[Case]]) -> list[Case]:
    """The cases that `find` sees in an archive when it is unpacked, pointing into it.

    An archive that cannot be unpacked is one case, whose error comes when it is read.
    """
    try:
        with unpacked(path) as place:
            return [point_into(case, path, place.resolve()) for case in find(_top(place.resolve()))]
    except ReadError:
        options = {"members": [], "way": "file", "options": {}}
        return [
            Case(path.stem, path.stem, {"image": make_source(path.stem, "zip", (path,), options)}, source=path.name)
        ]


def _top(place: Path) -> Path:
    """The folder that holds something: archives often have one folder around everything."""
    while len(inside := [p for p in place.iterdir() if p.name != "__MACOSX"]) == 1 and inside[0].is_dir():
        place = inside[0]
    return place


def point_into(case: Case, archive: Path, place: Path) -> Case:
    """The case with its sources in an archive, instead of the folder into which that was unpacked.

    Raises
    ------
    DataError
        If an image is one of many in one file, or lies outside the folder.
    """
    images = {
        name: source if not source.files else _source(case, source, archive, place)
        for name, source in case.images.items()
    }
    truth = case.truth
    if isinstance(truth, SegmentationSource) and truth.files:
        truth = make_mask_source(case.id, "zip", (archive,), _options(case, truth, place), structures=truth.structures)
    return replace(case, images=images, truth=truth)


def _source(case: Case, source: ImageSource, archive: Path, place: Path) -> ImageSource:
    options = _options(case, source, place)
    member = options["members"][0] + (f":{source.member}" if source.member else "")
    return make_source(case.id, "zip", (archive,), options, member=member)


def _options(case: Case, source: ImageSource | SegmentationSource, place: Path) -> dict[str, Any]:
    if source.way in {"", "item", "zip"}:
        raise DataError(
            f"case {case.id}: one of many images in one file of an archive, which would be unpacked anew for each; unpack "
            "the archive and give the folder or the .npz"
        )
    try:
        members = [file.resolve().relative_to(place).as_posix() for file in source.files]
    except ValueError as error:
        raise DataError(
            f"case {case.id}: its files do not lie in the archive; unpack it and give the folder"
        ) from error
    return {
        "members": members,
        "beside": _beside(source.files, place),
        "way": source.way,
        "options": dict(source.options),
    }


def _beside(files: Sequence[Path], place: Path) -> list[str]:
    """Data files that belong to headers of their own."""
    found: list[str] = []
    for file in files:
        if file.suffix.lower() in {".mhd", ".nhdr"}:
            try:
                found += [other.resolve().relative_to(place).as_posix() for other in data_files(file)[1:]]
            except (SagittalError, ValueError):
                continue  # told when the image is read
    return found
