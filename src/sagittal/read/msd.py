"""Medical Segmentation Decathlon: ``dataset.json`` beside ``imagesTr``, ``labelsTr`` and ``imagesTs``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sagittal.case import Case, ImageSource
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import DataError, ReadError, SagittalError
from sagittal.formats.open_image import stem
from sagittal.guard.json_file import read_json
from sagittal.labels import LabelScheme
from sagittal.read.files import image_files
from sagittal.read.request import Request
from sagittal.read.sources import file_source, make_mask_source
from sagittal.read.studies import unique
from sagittal.read.truths import scheme_of_places
from sagittal.truth import SegmentationSource

DATASET = "dataset.json"
#: Bytes of a ``dataset.json``; one with a hundred thousand cases has about twenty million.
_MOST_BYTES = 2**28
_MODALITIES = {
    "adc": "MR", "cr": "CR", "ct": "CT", "dwi": "MR", "dx": "DX", "flair": "MR", "mg": "MG", "mr": "MR", "mri": "MR",
    "pet": "PT", "pt": "PT", "swi": "MR", "t1": "MR", "t1c": "MR", "t1ce": "MR", "t1gd": "MR", "t1n": "MR", "t1w": "MR", "t2": "MR", "t2f": "MR",
    "t2w": "MR", "us": "US", "ultrasound": "US", "x-ray": "DX",
}  # fmt: skip


def open_msd(request: Request) -> Dataset:
    """Cases with a label map each, as ``dataset.json`` lists them, compared with the files that are there.

    Channels of 4-D images become images of their own, by the names under ``modality``. Images without label, labels
    without image, and files that are listed and not there or there and not listed, are reported as skipped. Images of
    ``imagesTs`` are cases of split ``test`` where ``labelsTs`` has their labels, else cases without truth.

    Raises
    ------
    ReadError
        If ``dataset.json`` is damaged.
    DataError
        If it names no labels, or holds no list of cases.
    """
    root, values = read_description(request)
    labels = Labels(values.get("labels"), request, root.name, values.get("regions"))
    channels = channel_names(values.get("modality"))
    used: set[Path] = set()
    skipped: list[Skipped] = []
    tested = (root / "labelsTs").is_dir()
    listed = [_pair(entry, "training") for entry in _list(values, "training")]
    if not listed:
        raise DataError(f"{DATASET}: lists no training cases; expected 'training': [{{'image': ..., 'label': ...}}]")
    cases = []
    for image, label in listed:
        case = _case(root, image, label, labels, channels, used, skipped)
        cases += [] if case is None else [(case, "train" if tested else None)]
    for entry in _list(values, "test"):
        image, label = _pair(entry, "test")
        beside = f"labelsTs/{Path(image).name}"
        label = label or (beside if (root / beside).is_file() else None)
        case = _case(root, image, label, labels, channels, used, skipped, needs_label=False)
        cases += [] if case is None else [(case, "test" if label else None)]
    skipped += unlisted(root, used, DATASET)
    told = unique([case for case, _ in cases])
    return Dataset(
        root.name,
        tuple(with_split(case, split) for case, (_, split) in zip(told, cases, strict=True)),
        labels.scheme,
        skipped=tuple(skipped),
        layout="msd",
        notes=(*labels.notes(), *count_notes(values, len(listed)), *channel_notes(channels)),
    )


def is_msd(folder: Path) -> bool:
    """Whether a folder is one of the decathlon: ``imagesTr`` and a ``dataset.json``."""
    return (folder / "imagesTr").is_dir() and (folder / DATASET).is_file()


def read_description(request: Request) -> tuple[Path, dict[str, Any]]:
    """The folder of the data set, and what its ``dataset.json`` says."""
    path = Path(request.source).resolve()
    root = path.parent if path.is_file() else path
    if not (root / DATASET).is_file():
        raise DataError(f"'{root.name}' holds no {DATASET}")
    return root, read_json(root / DATASET, limit=_MOST_BYTES)


class Labels:
    """What the values of the label maps mean.

    Parameters
    ----------
    given : object
        Of ``dataset.json``: value -> name, or name -> value, or name -> values for a region of several.
    request : Request
    name : str
        Of the data set.
    regions : object, optional
        Of ``dataset.json``: name -> the labels that make it, as values or names. Where there are regions, these are the
        structures, unless the target names others.

    Attributes
    ----------
    values : dict of str to tuple of int
        Every structure and region, background left out.
    regions : tuple of str
    ignore : int or None
    scheme : LabelScheme
        The structures that were asked for.
    """

    def __init__(self, given: object, request: Request, name: str, regions: object = None) -> None:
        if not isinstance(given, dict) or not given:
            raise DataError(f"{name}: {DATASET} names no labels; expected 'labels': {{'0': 'background', '1': ...}}")
        self.values: dict[str, tuple[int, ...]] = {}
        self.ignore: int | None = None
        by_value = all(str(key).strip().isdigit() for key in given)
        for key, value in given.items():
            structure, of = (value, key) if by_value else (key, value)
            numbers = _whole_numbers(of)
            if not isinstance(structure, str) or not numbers:
                raise DataError(f"{name}: {DATASET}: the label '{str(key)[:40]}' is no name with whole numbers")
            if structure.strip().lower() == "ignore" and len(numbers) == 1:
                self.ignore = numbers[0]
            elif numbers != (0,):
                if structure in self.values:
                    raise DataError(f"{name}: {DATASET}: two labels are called '{structure}'; rename one")
                self.values[structure] = tuple(n for n in numbers if n)
        self.regions = self._add_regions(regions, name)
        meaning = {key: "label " + " + ".join(map(str, of)) for key, of in self.values.items()}
        known = list(self.regions) if self.regions and request.target is None else list(self.values)
        self.scheme: LabelScheme = scheme_of_places("structures", known, request, target="labels", meaning=meaning)

    def _add_regions(self, given: object, name: str) -> tuple[str, ...]:
        if given is None:
            return ()
        if not isinstance(given, dict) or not given:
            raise DataError(f"{name}: {DATASET}: 'regions' is no object; expected {{'whole': [1, 2], 'core': [1]}}")
        numbers = {value for of in self.values.values() for value in of}
        found: dict[str, tuple[int, ...]] = {}
        for region, parts in given.items():
            of: set[int] = set()
            for part in parts if isinstance(parts, list) else [parts]:
                values = self.values.get(part) if isinstance(part, str) else None
                of.update(values if values is not None else _whole_numbers(part))
            if not of or not of <= numbers or region in self.values:
                raise DataError(
                    f"{name}: {DATASET}: the region '{str(region)[:40]}' must have a name of its own and be made of labels: "
                    f"{', '.join(f'{n} ({v})' for n, vs in self.values.items() for v in vs)}"
                )
            found[region] = tuple(sorted(of))
        self.values.update(found)
        return tuple(found)

    def source(self, case: str, file: Path) -> SegmentationSource:
        """The segmentation in one label map."""
        wanted = {name: list(self.values[name]) for name in self.scheme.classes}
        taken = {value for of in wanted.values() for value in of}
        others = sorted({value for of in self.values.values() for value in of} - taken)
        options = {
            "structures": wanted,
            **({"background": others} if others else {}),
            **({} if self.ignore is None else {"ignore": self.ignore}),
        }
        return make_mask_source(case, "label_map", (file,), options, structures=self.scheme.classes)

    def notes(self) -> tuple[str, ...]:
        """What the values mean, in words."""
        told = ", ".join(f"{'+'.join(map(str, of))} = {name}" for name, of in self.values.items())
        ignored = () if self.ignore is None else (f"label {self.ignore} means that nothing is known",)
        return (f"labels {told}", *ignored)


def _whole_numbers(value: object) -> tuple[int, ...]:
    parts = list(value) if isinstance(value, (list, tuple)) else str(value).split(",")
    try:
        numbers = tuple(int(str(part).strip()) for part in parts)
    except ValueError:
        return ()
    return numbers if all(0 <= n <= 2**24 for n in numbers) else ()


def channel_names(given: object) -> tuple[str, ...]:
    """The names of the channels in their order, each different; empty where none are given."""
    if not isinstance(given, dict):
        return ()
    try:
        ordered = [str(given[key]) for key in sorted(given, key=int)]
    except (TypeError, ValueError):
        return ()
    return tuple(name if ordered.count(name) == 1 else f"{name}-{n}" for n, name in enumerate(ordered))


def modality_of(channel: str) -> str:
    """The DICOM modality of a channel's name; empty where it does not say.

    >>> modality_of("FLAIR"), modality_of("CT"), modality_of("channel 1")
    ('MR', 'CT', '')
    """
    return _MODALITIES.get(channel.strip().lower(), "")


def make_images(case: str, file: Path, channels: Sequence[str]) -> dict[str, ImageSource]:
    """The images of one file: itself, or each of its channels by name."""
    if len(channels) < 2:
        modality = modality_of(channels[0]) if channels else ""
        return {"image": file_source(case, file, **({"modality": modality} if modality else {}))}
    return {
        name: file_source(case, file, channel=n, **({"modality": modality_of(name)} if modality_of(name) else {}))
        for n, name in enumerate(channels)
    }


def channel_notes(channels: Sequence[str]) -> tuple[str, ...]:
    """What the images of a case are called."""
    return (f"images {', '.join(channels)}",) if len(channels) > 1 else ()


def count_notes(values: Mapping[str, Any], found: int) -> tuple[str, ...]:
    """Whether ``numTraining`` is what the list holds."""
    said = values.get("numTraining")
    if isinstance(said, int) and said != found:
        return (f"{DATASET} says numTraining = {said}, but {found} training cases are there",)
    return ()


def with_split(case: Case, split: str | None) -> Case:
    """The case in a split."""
    from dataclasses import replace

    return replace(case, split=split)


def unlisted(root: Path, used: set[Path], by: str) -> list[Skipped]:
    """The images below a folder that nothing has used, each with what is missing."""
    left = [file for file in image_files(root) if file not in used]
    stems = {file.relative_to(root).with_name(stem(file)) for file in left}
    skipped = []
    for file in left:
        below = file.relative_to(root)
        top, other = below.parts[0], {"imagesTr": "labelsTr", "labelsTr": "imagesTr"}
        if top in other:
            twin = Path(other[top], *below.parts[1:-1], stem(file))
            what = "an image" if top == "imagesTr" else "a label"
            lacks = "" if twin in stems else " without label" if top == "imagesTr" else " without image"
            code = "selection" if not lacks else "no-truth" if top == "imagesTr" else "no-image"
            reason = f"{what}{lacks}, which {by} does not list"
        else:
            reason, code = f"a file outside imagesTr, labelsTr and imagesTs, which {by} does not list", "selection"
        skipped.append(Skipped(below.as_posix(), reason, code))
    return skipped


def _list(values: Mapping[str, Any], key: str) -> list[Any]:
    found = values.get(key, [])
    if not isinstance(found, list):
        raise ReadError(f"{DATASET}: '{key}' holds no list")
    return found


def _pair(entry: object, where: str) -> tuple[str, str | None]:
    """Image and label of an entry: ``{"image": ..., "label": ...}`` or a path."""
    if isinstance(entry, str) and entry:
        return entry, None
    if isinstance(entry, dict) and isinstance(entry.get("image"), str) and entry["image"]:
        label = entry.get("label")
        return entry["image"], label if isinstance(label, str) and label else None
    raise ReadError(f"{DATASET}: an entry of '{where}' names no image: {str(entry)[:60]}")


def _case(
    root: Path,
    image: str,
    label: str | None,
    labels: Labels,
    channels: Sequence[str],
    used: set[Path],
    skipped: list[Skipped],
    *,
    needs_label: bool = True,
) -> Case | None:
    name = stem(Path(image))
    try:
        file, mask = _inside(root, image), None if label is None else _inside(root, label)
    except SagittalError as error:
        skipped.append(Skipped(name, str(error), "unreadable"))
        return None
    there = [path for path in (file, mask) if path is not None and path.is_file()]
    used.update(there)
    left = None
    if file not in there:
        left = (
            f"a label without image: {DATASET} lists one that is not there"
            if there
            else f"{DATASET} lists it, but it is not there",
            "no-image",
        )
    elif needs_label and mask is None:
        left = (f"an image for which {DATASET} lists no label", "no-truth")
    elif mask is not None and mask not in there:
        left = (f"an image without label: {DATASET} lists one that is not there", "no-truth")
    elif any(path.stat().st_size == 0 for path in there):
        left = ("the file is empty (0 bytes)", "empty-file")
    if left is not None:
        skipped.append(Skipped(name, *left))
        return None
    return Case(
        name,
        name,
        make_images(name, file, channels),
        truth=None if mask is None else labels.source(name, mask),
        source=file.relative_to(root).as_posix(),
    )


def _inside(root: Path, name: str) -> Path:
    """A listed path, which must lie in the data set's folder."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ReadError(f"{DATASET} lists a path outside of the data set's folder")
    return root / path
