"""nnU-Net's raw data, versions 1 and 2: ``imagesTr/CASE_0000.nii.gz`` for each channel, ``labelsTr/CASE.nii.gz``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sagittal.case import Case
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import DataError, ReadError, SagittalError
from sagittal.formats.open_image import reader_of, stem
from sagittal.formats.raster import read_raster
from sagittal.guard.json_file import read_json
from sagittal.read.files import image_files
from sagittal.read.msd import (
    DATASET,
    Labels,
    channel_names,
    channel_notes,
    count_notes,
    is_msd,
    make_images,
    modality_of,
    read_description,
    unlisted,
    with_split,
)
from sagittal.read.request import Request
from sagittal.read.sources import file_source
from sagittal.read.studies import unique

_CHANNEL = re.compile(r"(.+)_(\d{4})")


def open_nnunet(request: Request) -> Dataset:
    """Cases with an image for each channel and a label map, of nnU-Net's raw folders.

    ``labels`` may name regions of several values and an ``ignore`` value. Where ``dataset`` lists the files of each
    case, they are taken from there. Cases that lack a channel or a label, and labels without image, are reported as
    skipped. Cases of ``imagesTs`` are of split ``test`` where ``labelsTs`` has their labels, else without truth.

    Raises
    ------
    ReadError
        If ``dataset.json`` is damaged.
    DataError
        If it names no labels or channels.
    """
    root, values = read_description(request)
    labels = Labels(values.get("labels"), request, root.name, values.get("regions"))
    channels = channel_names(values.get("channel_names", values.get("modality")))
    if not channels:
        raise DataError(f"{root.name}: {DATASET} names no channels; expected 'channel_names': {{'0': 'CT'}}")
    used: set[Path] = set()
    skipped: list[Skipped] = []
    tested = (root / "labelsTs").is_dir()
    listed = values.get("dataset")
    files: dict[str, tuple[dict[int, Path], Path | None, str]] = {}
    if isinstance(listed, dict):
        files.update(_explicit(root, listed, skipped))
    else:
        files.update(_found(root, "Tr"))
    for name, (images, label, where) in _found(root, "Ts").items():
        files.setdefault(name if name not in files else f"{name}-ts", (images, label, where))
    cases = []
    for name, (images, label, where) in files.items():
        used.update(images.values())
        used.update(() if label is None else (label,))
        case = _case(name, images, label, where, labels, channels, skipped)
        cases += (
            []
            if case is None
            else [(case, None if not tested else "test" if where.startswith("imagesTs") else "train")]
        )
    skipped += unlisted(root, used, "the list of cases")
    told = unique([case for case, _ in cases])
    order = values.get("regions_class_order")
    return Dataset(
        root.name,
        tuple(
            with_split(case, split if case.truth is not None else None)
            for case, (_, split) in zip(told, cases, strict=True)
        ),
        labels.scheme,
        skipped=tuple(skipped),
        layout="nnunet",
        notes=(
            *labels.notes(),
            *((f"regions_class_order {', '.join(map(str, order))}",) if isinstance(order, list) else ()),
            *count_notes(values, sum(not where.startswith("imagesTs") for _, _, where in files.values())),
            *channel_notes(channels),
        ),
    )


def is_nnunet(folder: Path) -> bool:
    """Whether a folder is raw data of nnU-Net: its ``dataset.json`` says so, or its images end in ``_0000``."""
    if not (folder / DATASET).is_file():
        return False
    try:
        values = read_json(folder / DATASET)
    except SagittalError:
        return False
    if "channel_names" in values and "labels" in values:
        return True
    if not is_msd(folder):
        return False
    names = [stem(file) for file in image_files(folder / "imagesTr")]
    listed = values.get("training")
    first = listed[0].get("image") if isinstance(listed, list) and listed and isinstance(listed[0], dict) else None
    there = isinstance(first, str) and (folder / first).is_file()
    return bool(names) and not there and all(_CHANNEL.fullmatch(name) for name in names)


def _found(root: Path, part: str) -> dict[str, tuple[dict[int, Path], Path | None, str]]:
    """Case -> its channels, its label, where it lies; by the names of the files."""
    folder = root / f"images{part}"
    if not folder.is_dir():
        return {}
    channels: dict[str, dict[int, Path]] = defaultdict(dict)
    for file in image_files(folder):
        match = _CHANNEL.fullmatch(stem(file))
        if match:
            channels[match[1]][int(match[2])] = file
    labels = root / f"labels{part}"
    masks = {stem(file): file for file in image_files(labels)} if labels.is_dir() else {}
    found: dict[str, tuple[dict[int, Path], Path | None, str]] = {}
    for name, files in channels.items():
        found[name] = (files, masks.get(name), f"images{part}/{name}")
    return found


def _explicit(
    root: Path, listed: Mapping[str, Any], skipped: list[Skipped]
) -> dict[str, tuple[dict[int, Path], Path | None, str]]:
    """The same from the list in ``dataset.json``; its paths are absolute or below the data set's folder."""
    found: dict[str, tuple[dict[int, Path], Path | None, str]] = {}
    for name, entry in listed.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(images, list) or not all(isinstance(i, str) for i in [*images, label or ""]):
            raise ReadError(f"{DATASET}: case '{name[:40]}' of 'dataset' names no list of images and no label")
        paths = {n: _path(root, image) for n, image in enumerate(images)}
        mask = _path(root, label) if label else None
        missing = [path for path in (*paths.values(), *((mask,) if mask else ())) if not path.is_file()]
        if missing:
            why = f"{len(missing)} of the files that {DATASET} lists for it are not there"
            skipped.append(Skipped(name, why, "incomplete"))
        else:
            found[name] = (paths, mask, f"dataset/{name}")
    return found


def _path(root: Path, name: str) -> Path:
    path = Path(name)
    if "\0" in name or ".." in path.parts:
        raise ReadError(
            f"{DATASET}: a listed path holds '..'; expected an absolute path or one below the data set's folder"
        )
    return path if path.is_absolute() else root / path


def _case(
    name: str,
    images: Mapping[int, Path],
    label: Path | None,
    where: str,
    labels: Labels,
    channels: Sequence[str],
    skipped: list[Skipped],
) -> Case | None:
    files = [*images.values(), *(() if label is None else (label,))]
    # A picture holds its colours in one file, though each colour is a channel of the list.
    whole = list(images) == [0] and len(channels) > 1 and reader_of(images[0]) is read_raster
    missing = [] if whole else [f"{n} ({channels[n]})" for n in range(len(channels)) if n not in images]
    surplus = [n for n in images if n >= len(channels)]
    left = None
    if any(file.stat().st_size == 0 for file in files):
        left = ("the file is empty (0 bytes)", "empty-file")
    elif missing:
        left = (f"channel {', '.join(missing)} is missing", "incomplete")
    elif surplus:
        left = (f"channel {surplus[0]} has no name in {DATASET}", "ambiguous")
    elif label is None and not where.startswith("imagesTs"):
        left = ("an image without label", "no-truth")
    if left is not None:
        skipped.append(Skipped(name, *left))
        return None
    if whole or len(channels) == 1:
        sources = make_images(name, images[0], channels[:1] if not whole else ())
    else:
        sources = {
            channel: file_source(
                name, images[n], **({"modality": modality_of(channel)} if modality_of(channel) else {})
            )
            for n, channel in enumerate(channels)
        }
    return Case(name, name, sources, truth=None if label is None else labels.source(name, label), source=where)
