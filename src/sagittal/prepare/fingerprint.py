"""Fingerprint: what a data set is like, in numbers that a plan can be made from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.case import Case
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import DataError, SagittalError
from sagittal.image import Image
from sagittal.labels import PLACE_KINDS, LabelScheme
from sagittal.prepare.arrays import check_finite, is_missing, number
from sagittal.prepare.place_facts import (
    ObjectFacts,
    StructureFacts,
    foreground_facts,
    look_at_objects,
    look_at_structures,
    never_present,
    object_facts,
    structure_facts,
)
from sagittal.prepare.spread import ChannelFacts, Spread
from sagittal.prepare.turn import turn_image
from sagittal.prepare.volumes import content_part
from sagittal.progress import Quiet, Reporter
from sagittal.truth import Boxes, SegmentationSource

#: Cases whose voxels are read; sizes and intensities of a data set are settled long before. Volumes hold more voxels.
SAMPLE = 256
SAMPLE_VOLUMES = 48


@dataclass(frozen=True)
class ColumnFacts:
    """What a clinical column holds."""

    name: str
    missing: int
    numeric: bool
    mean: float = 0.0
    std: float = 1.0
    categories: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Fingerprint:
    """What a data set is like. Sizes and spacings are in network order: (slices,) rows, columns.

    Parameters
    ----------
    cases, patients : int
    sampled : int
        Cases whose voxels were read; the facts on sizes and intensities come from them.
    splits : mapping of split to cases
        ``""`` counts the cases without a given split.
    classes : mapping of class to cases
    unknown : int
        Cases without a known class.
    size, spacing_mm : one Spread an axis
        `spacing_mm` is empty unless every sampled study states its voxel size.
    modality, unit, body_part : str
        The most frequent.
    whole_numbers : bool
        Whether all values are whole and within 0..255.
    read_s : float
        Median seconds to read a case.
    bytes_in_memory : float
        Median size of a study's float32 values.
    content : str
        SHA-256 over the files' names, sizes and times, the labels and the splits.
    structures : one StructureFacts a structure
        Of a scheme of structures; `classes` counts sampled cases then.
    objects : one ObjectFacts a class
        Of a scheme of objects; `classes` counts sampled cases with at least one.
    exclusive : bool
        Whether no voxel of a sampled case belongs to two structures.
    partly_known : bool
        Whether a sampled case says nothing about one of the structures.
    foreground : one ChannelFacts a channel of all images
        Intensities inside structures; empty where there are none.
    image_channels : one int an image
    inputs : one ChannelFacts a channel of all images
    zero_part : float
        Median part of the voxels that have the lowest value of every channel, as air has.
    content_part : float
        Median part of the voxels that is left when a border of such voxels is cut off; not measured for schemes of classes.
    positioned : bool
        Whether every sampled study says how the patient lies in it. Sizes of volumes are then those along the patient's
        axes: (superior, posterior, left).
    warnings : tuple of str
        What the user should know before training.
    """

    name: str
    cases: int
    patients: int
    sampled: int
    splits: Mapping[str, int]
    scheme: LabelScheme
    classes: Mapping[str, int]
    unknown: int
    images: tuple[str, ...]
    dimensions: int
    size: tuple[Spread, ...]
    spacing_mm: tuple[Spread, ...]
    channels: Mapping[str, int]
    modality: str
    modalities: Mapping[str, int]
    unit: str
    body_part: str
    whole_numbers: bool
    binary: bool
    intensity: tuple[ChannelFacts, ...]
    columns: tuple[ColumnFacts, ...]
    read_s: float
    bytes_in_memory: float
    content: str
    skipped: tuple[Skipped, ...] = ()
    structures: tuple[StructureFacts, ...] = ()
    objects: tuple[ObjectFacts, ...] = ()
    exclusive: bool = True
    partly_known: bool = False
    foreground: tuple[ChannelFacts, ...] = ()
    image_channels: tuple[int, ...] = (1,)
    inputs: tuple[ChannelFacts, ...] = ()
    zero_part: float = 0.0
    content_part: float = 1.0
    positioned: bool = False
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        values["scheme"] = self.scheme.to_json()
        return values

    def save(self, path: Path) -> None:
        """Write the fingerprint as indented JSON."""
        path.write_text(json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def measure_dataset(dataset: Dataset, *, seed: int = 0, reporter: Reporter | None = None) -> Fingerprint:
    """Measure a data set: counts over all cases, sizes and intensities over a sample of 256 pictures or 48 volumes.

    Test cases are counted but their voxels are never looked at.

    Raises
    ------
    DataError
        If there are no cases, no labels, only one class, mixed dimensions, or no study can be read; or if every
        segmentation that was read is empty.
    """
    scheme, labelled = check_trainable(dataset)
    rng = np.random.default_rng([seed, 1])
    pool = [case for case in labelled if case.split != "test"] or list(labelled)
    chosen = [pool[n] for n in np.sort(rng.permutation(len(pool))[:SAMPLE])]
    looks, skipped = _look_at(chosen, scheme, reporter or Quiet())
    channels = Counter(str(look["channels"]) for look in looks)
    dimensions = _one_dimension(looks, dataset.name)
    places = _place_facts(looks, scheme, dimensions, len(labelled), dataset.name)
    counts = places.pop("classes", None)
    image_channels = tuple(int(n) for n in np.max([look["image_channels"] for look in looks], axis=0))
    return Fingerprint(
        name=dataset.name,
        cases=len(labelled),
        patients=len(labelled.patients),
        sampled=len(looks),
        splits=dict(Counter(case.split or "" for case in labelled)),
        scheme=scheme,
        classes=_count_classes(labelled, scheme) if counts is None else counts,
        unknown=len(dataset) - len(labelled),
        images=tuple(chosen[0].images),
        dimensions=dimensions,
        size=tuple(Spread.of(axis) for axis in np.array([look["size"] for look in looks]).T[-dimensions:]),
        spacing_mm=_spacings(looks, dimensions),
        channels=dict(channels),
        modality=_most(looks, "modality"),
        modalities=dict(Counter(look["modality"] for look in looks)),
        unit=_most(looks, "unit"),
        body_part=_most(looks, "body_part"),
        whole_numbers=all(look["whole"] for look in looks),
        binary=all(look["binary"] for look in looks),
        intensity=_intensities(looks, max(int(c) for c in channels)),
        columns=tuple(_column_facts(name, labelled) for name in dataset.columns),
        read_s=float(np.median([look["seconds"] for look in looks])),
        bytes_in_memory=float(np.median([look["bytes"] for look in looks])),
        content=_content(labelled),
        skipped=(*dataset.skipped, *skipped),
        image_channels=image_channels,
        inputs=_inputs(looks, image_channels),
        zero_part=float(np.median([look["zero_part"] for look in looks])),
        content_part=float(np.median([look.get("content_part", 1.0) for look in looks])),
        positioned=all(look["positioned"] for look in looks),
        **places,
    )


def check_trainable(dataset: Dataset) -> tuple[LabelScheme, Dataset]:
    """The scheme and the labelled cases, or the reason why nothing can be learnt from them.

    Raises
    ------
    DataError
        If there are no cases, no labels, one class or one patient only, or no image has an object.
    """
    if not len(dataset):
        left = (
            f" {len(dataset.skipped)} were left out, the first because: {dataset.skipped[0].reason}"
            if dataset.skipped
            else ""
        )
        raise DataError(f"{dataset.name}: holds no case that can be used.{left}")
    labelled = dataset.labelled()
    if dataset.scheme is None or not len(labelled):
        raise DataError(
            f"{dataset.name}: none of its {len(dataset)} cases has a label. Name the column with --target, or give a "
            "table with --labels."
        )
    counts = _count_classes(labelled, dataset.scheme)
    if dataset.scheme.exclusive and sum(n > 0 for n in counts.values()) < 2:
        only = next((name for name, n in counts.items() if n), "none")
        raise DataError(
            f"{dataset.name}: all {len(labelled)} labelled cases are of one class ('{only}'); at least two are needed "
            "to learn from."
        )
    if dataset.scheme.kind == "objects" and not any(_may_have_objects(case) for case in labelled):
        raise DataError(
            f"{dataset.name}: none of the {len(labelled)} annotated images has a box; at least some must hold what is to be "
            "found. Check the annotations (sagittal check), or the classes that --target names."
        )
    if len(labelled.patients) < 2:
        raise DataError(
            f"{dataset.name}: all {len(labelled)} cases belong to one patient; what is learnt could not be tested on "
            "another. Check the patient column (--patient-column), or add patients."
        )
    return dataset.scheme, labelled


def _may_have_objects(case: Case) -> bool:
    return not isinstance(case.truth, Boxes) or len(case.truth) > 0


def _look_at(
    cases: Sequence[Case], scheme: LabelScheme, reporter: Reporter
) -> tuple[list[dict[str, Any]], list[Skipped]]:
    looks: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    with reporter.track("measure", len(cases)) as advance:
        for case in cases:
            start = time.perf_counter()
            try:
                images = [source.load() for source in case.images.values()]
                for image in images:
                    check_finite(image.data, case.id)
                seconds = time.perf_counter() - start
                positioned = all(image.grid.has_position for image in images)
                if positioned:
                    images = [turn_image(image) for image in images]
                look = {**_facts(images), **_place_look(case, scheme, images), "seconds": seconds}
                look["positioned"] = positioned
            except (SagittalError, MemoryError) as error:
                skipped.append(Skipped(case.id, str(error)))
            else:
                looks.append(look)
            advance(1, "")
            if len(looks) >= SAMPLE_VOLUMES and all(look["dimensions"] == 3 for look in looks):
                break
    if not looks:
        raise DataError(f"none of {len(cases)} studies can be read; the first because: {skipped[0].reason}")
    return looks, skipped


def _facts(images: Sequence[Image]) -> dict[str, Any]:
    first = images[0]
    values = np.concatenate(
        [
            image.data.reshape(image.channels, -1)[:, :: _stride(image)]
            for image in images
            if image.channels == first.channels
        ],
        axis=1,
    )
    whole = bool(values.min() >= 0 and values.max() <= 255 and np.all(values == np.rint(values)))
    return {
        "size": first.grid.shape[::-1],
        "spacing": None if first.grid.spacing is None else tuple(np.asarray(first.grid.spacing)[::-1]),
        "dimensions": first.grid.dimensions,
        "channels": first.channels,
        "modality": first.modality,
        "unit": first.unit,
        "body_part": first.body_part,
        "whole": whole,
        "binary": whole and len(np.unique(values[:, :4096])) <= 2 and len(np.unique(values)) <= 2,
        "values": values[:, :: max(1, values.shape[1] // 4096)],
        "bytes": float(sum(image.data.nbytes for image in images)),
        "image_channels": [image.channels for image in images],
        "inputs": [
            channel[:: max(1, channel.size // 4096)] for i in images for channel in i.data.reshape(i.channels, -1)
        ],
        "zero_part": float((values == values.min(axis=1, keepdims=True)).all(axis=0).mean()),
    }


def _place_look(case: Case, scheme: LabelScheme, images: Sequence[Image]) -> dict[str, Any]:
    if scheme.kind not in PLACE_KINDS:
        return {}
    grid, left = images[0].grid, {"content_part": content_part(list(images[0].data))}
    if scheme.kind == "structures":
        return {"structures": look_at_structures(case, scheme, images), **left}
    return {"objects": (look_at_objects(case, scheme, grid), grid), **left}


def _place_facts(
    looks: Sequence[Mapping[str, Any]], scheme: LabelScheme, dimensions: int, cases: int, name: str
) -> dict[str, Any]:
    """The fields of a fingerprint that are about structures or objects, and the counts of classes."""
    if scheme.kind == "structures":
        shown = [look["structures"] for look in looks]
        facts = structure_facts(shown, scheme)
        counts = {f.name: f.present for f in facts}
        if not any(counts.values()):
            raise DataError(
                f"{name}: none of the {len(looks)} segmentations that were read outlines anything; there is nothing to "
                f"learn. Expected {', '.join(scheme.classes[:8])}: look at the masks and at the values that they use."
            )
        return {
            "classes": counts,
            "structures": facts,
            "exclusive": all(look.exclusive for look in shown),
            "partly_known": any(f.unknown for f in facts),
            "foreground": foreground_facts(shown),
            "warnings": never_present(counts, len(looks), cases),
        }
    if scheme.kind == "objects":
        objects = object_facts([look["objects"] for look in looks], scheme, dimensions)
        counts = {f.name: f.images for f in objects}
        return {"classes": counts, "objects": objects, "warnings": never_present(counts, len(looks), cases)}
    return {}


def _inputs(looks: Sequence[Mapping[str, Any]], image_channels: Sequence[int]) -> tuple[ChannelFacts, ...]:
    """Intensities of each channel of each image, over the cases that have all of them."""
    whole = [look for look in looks if tuple(look["image_channels"]) == tuple(image_channels)]
    return tuple(
        ChannelFacts.of(np.concatenate(values)) for values in zip(*(look["inputs"] for look in whole), strict=True)
    )


def _stride(image: Image) -> int:
    """Every how many voxels are looked at, so that about a million are."""
    return max(1, int(image.data[0].size) // 1_000_000)


def _one_dimension(looks: Sequence[Mapping[str, Any]], name: str) -> int:
    """2 or 3; the few single planes among volumes are no reason to refuse, a real mixture is."""
    counts = Counter(int(look["dimensions"]) for look in looks)
    dimensions = 3 if counts[3] > counts[2] else 2
    if counts[dimensions] < 0.9 * len(looks):
        raise DataError(
            f"{name}: {counts[2]} of {len(looks)} studies are single planes and {counts[3]} are volumes. Train on one kind: "
            "choose the files, or give a table that names them."
        )
    return dimensions


def _spacings(looks: Sequence[Mapping[str, Any]], dimensions: int) -> tuple[Spread, ...]:
    known = [look["spacing"][-dimensions:] for look in looks if look["spacing"] is not None]
    if len(known) < len(looks) or not np.all(np.isfinite(known)):
        return ()
    return tuple(Spread.of(axis) for axis in np.array(known).T)


def _most(looks: Sequence[Mapping[str, Any]], key: str) -> str:
    return str(Counter(look[key] for look in looks).most_common(1)[0][0])


def _intensities(looks: Sequence[Mapping[str, Any]], channels: int) -> tuple[ChannelFacts, ...]:
    facts = []
    for channel in range(channels):
        values = np.concatenate([look["values"][min(channel, look["channels"] - 1)] for look in looks])
        facts.append(ChannelFacts.of(values))
    return tuple(facts)


def _count_classes(dataset: Dataset, scheme: LabelScheme) -> dict[str, int]:
    total = np.zeros(len(scheme.classes))
    for case in dataset:
        if case.scores is not None:
            total += np.nan_to_num(case.scores.values)
    return {name: int(n) for name, n in zip(scheme.classes, total, strict=True)}


def _column_facts(name: str, dataset: Dataset) -> ColumnFacts:
    values = [case.table.get(name) for case in dataset]
    present = [value for value in values if not is_missing(value)]
    numbers = [n for n in map(number, present) if n is not None]
    missing = len(values) - len(present)
    if present and len(numbers) == len(present) and not all(isinstance(value, bool) for value in present):
        return ColumnFacts(name, missing, True, float(np.mean(numbers)), max(float(np.std(numbers)), 1e-6))
    counts = Counter(str(value) for value in present)
    return ColumnFacts(name, missing, False, categories=dict(counts.most_common(50)))


def _content(dataset: Dataset) -> str:
    """Changes when a file, a label or a split does."""
    digest = hashlib.sha256()
    for case in dataset:
        digest.update(case_content(case).encode())
        digest.update(
            f"{case.id}|{case.split}|{None if case.scores is None else case.scores.values.tolist()}\n".encode()
        )
    return digest.hexdigest()


def case_content(case: Case) -> str:
    """A short text that changes when a file of the case does, or its outlines and boxes: names, sizes, times, members."""
    parts = [case.id]
    for name, source in case.images.items():
        parts += _files_content(name, source.files)
        parts.append(source.member)
    if isinstance(case.truth, SegmentationSource):
        parts += _files_content("truth", case.truth.files)
        parts.append(json.dumps([case.truth.way, dict(case.truth.options)], default=str))
    elif isinstance(case.truth, Boxes):
        boxes = case.truth
        arrays = (boxes.corners, boxes.classes, np.asarray(boxes.crowd))
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
        parts.append(f"boxes:{boxes.frame}:{digest.hexdigest()[:16]}")
    return "|".join(parts)


def _files_content(name: str, files: Sequence[Path]) -> list[str]:
    parts = []
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            parts.append(f"{name}:{file}:gone")
        else:
            parts.append(f"{name}:{file}:{stat.st_size}:{stat.st_mtime_ns}")
    return parts
