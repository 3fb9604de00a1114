"""A folder for each class, with folders for train, val and test above them or not; and loose images without labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sagittal.case import Case
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import DataError
from sagittal.read.dicom_group import Group
from sagittal.read.files import SPLIT_NAMES, group, image_files, sort_files
from sagittal.read.pair_files import mask_files
from sagittal.read.request import Request
from sagittal.read.sources import patient_key
from sagittal.read.studies import group_name, image_source, make_case, unique
from sagittal.read.study_images import join_series, parse_images
from sagittal.read.truths import scheme_of


def open_folders(request: Request) -> Dataset:
    """Cases labelled by the folder in which they lie: ``CLASS/...`` or ``train/CLASS/...``.

    Inside a class folder files may lie at any depth. A case is named by its path below the data set's folder, DICOM
    series by a hash.

    Raises
    ------
    DataError
        If there are no images, or only one class.
    """
    root = Path(request.source)
    tops = class_folders(root)
    if not tops:
        raise DataError(
            f"'{root.name}' has no folders of classes with images in them. Expected {root.name}/CLASS/image.png, "
            f"or {root.name}/train/CLASS/image.png; or give a table with labels=..."
        )
    found: list[tuple[Case, str, str | None]] = []
    skipped: list[Skipped] = []
    for name, split, folder in tops:
        for case in _cases(folder, root, skipped):
            found.append((case, name, split))
    cases = unique([case for case, _, _ in found])
    scheme, truths = scheme_of([name for _, name, _ in found], request.target or "class", request.kind)
    labelled = tuple(_with(case, truth, split) for case, truth, (_, _, split) in zip(cases, truths, found, strict=True))
    return Dataset(root.resolve().name, labelled, scheme, skipped=tuple(skipped), layout="folders")


def open_files(request: Request) -> Dataset:
    """Images that lie in a folder without labels: cases without truth; of several series each where `images` says so.

    Raises
    ------
    DataError
        If there is no image at all.
    """
    root = Path(request.source)
    skipped: list[Skipped] = []
    if request.images:
        cases, left = join_studies(root, parse_images(request.images))
        skipped += left
    else:
        cases = (
            unique(_cases(root, root, skipped)) if root.is_dir() else [make_case(g, root.parent) for g in group([root])]
        )
    if not cases:
        raise DataError(
            f"'{root.name}' holds no images that can be read"
            + (f"; {len(skipped)} files are empty (0 bytes)" if skipped else "")
            + ". DICOM, NIfTI, PNG, JPEG, TIFF, BMP, .npy and .npz are."
        )
    return Dataset(root.resolve().name, tuple(cases), skipped=tuple(skipped), layout="files")


def class_folders(root: Path) -> list[tuple[str, str | None, Path]]:
    """Class, split and folder for each folder of a class that holds images."""
    folders = [f for f in sorted(root.iterdir()) if f.is_dir() and not f.name.startswith((".", "__"))]
    splits = [f for f in folders if f.name.lower() in SPLIT_NAMES]
    if splits:
        return [
            (name, SPLIT_NAMES[top.name.lower()], folder) for top in splits for name, _, folder in class_folders(top)
        ]
    return [(f.name, None, f) for f in folders if image_files(f)]


def _cases(folder: Path, root: Path, skipped: list[Skipped]) -> list[Case]:
    return [make_case(found, root) for found in _groups(folder, root, skipped)]


def _groups(folder: Path, root: Path, skipped: list[Skipped]) -> list[Group]:
    files = image_files(folder)
    empty = {f for f in files if f.stat().st_size == 0}
    masks = mask_files(files) - empty
    skipped += [
        Skipped(f.relative_to(root).as_posix(), "the file is empty (0 bytes)", "empty-file")
        for f in files
        if f in empty
    ]
    skipped += [
        Skipped(f.relative_to(root).as_posix(), "a mask of another image", "selection") for f in files if f in masks
    ]
    groups, left = sort_files(f for f in files if f not in empty | masks)
    skipped += left
    return groups


def join_studies(root: Path, patterns: Mapping[str, str]) -> tuple[list[Case], list[Skipped]]:
    """A case for each DICOM study below a folder whose series the patterns name, and what is left out."""
    skipped: list[Skipped] = []
    groups = _groups(root, root, skipped)
    plain = [g.files[0].relative_to(root).as_posix() for g in groups if g.dicom is None]
    skipped += [Skipped(name, "no DICOM series, which --images is about", "selection") for name in plain]
    joined, left = join_series([(group_name(g), g) for g in groups if g.dicom is not None], patterns)
    skipped += left
    cases = []
    for name, images in joined:
        first = next(iter(images.values()))
        patient = patient_key(first.dicom.patient) if first.dicom and first.dicom.patient else name
        where = first.files[0].relative_to(root).parent.as_posix()
        sources = {key: image_source(name, found) for key, found in images.items()}
        cases.append(Case(name, patient, sources, source=where))
    return unique(cases), skipped


def _with(case: Case, truth: object, split: str | None) -> Case:
    from dataclasses import replace

    return replace(case, truth=truth, split=split)  # type: ignore[arg-type]
