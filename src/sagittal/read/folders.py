"""A folder for each class, with folders for train, val and test above them or not; and loose images without labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sagittal.case import Case
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import DataError
from sagittal.read.files import SPLIT_NAMES, group, image_files
from sagittal.read.studies import make_case, unique
from sagittal.read.truths import scheme_of

if TYPE_CHECKING:
    from sagittal.read.open_dataset import Request


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
    """Images that lie in a folder without labels: cases without truth.

    Raises
    ------
    DataError
        If there is no image at all.
    """
    root = Path(request.source)
    skipped: list[Skipped] = []
    cases = unique(_cases(root, root, skipped)) if root.is_dir() else [make_case(g, root.parent) for g in group([root])]
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
    files = image_files(folder)
    empty = [f for f in files if f.stat().st_size == 0]
    skipped += [Skipped(f.relative_to(root).as_posix(), "the file is empty (0 bytes)") for f in empty]
    return [make_case(g, root) for g in group(f for f in files if f not in set(empty))]


def _with(case: Case, truth: object, split: str | None) -> Case:
    from dataclasses import replace

    return replace(case, truth=truth, split=split)  # type: ignore[arg-type]
