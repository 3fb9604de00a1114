"""Masks beside their images: in sibling folders (``images``, ``masks``) or told by a suffix (``x.jpg``, ``x_mask.png``)."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagittal.case import Case
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import ConfigError, DataError, SagittalError, nearest
from sagittal.formats.label_map import FOREGROUND, label_values
from sagittal.formats.open_image import stem
from sagittal.formats.seg_nrrd import seg_nrrd_names
from sagittal.labels import KINDS, LabelScheme
from sagittal.read.files import SPLIT_NAMES, image_files
from sagittal.read.sources import file_source, make_mask_source
from sagittal.read.studies import unique
from sagittal.read.truths import is_lateral
from sagittal.truth import SegmentationSource

if TYPE_CHECKING:
    from sagittal.read.open_dataset import Request

#: Names of folders, without case and punctuation.
_IMAGES = frozenset({"image", "images", "img", "imgs", "imagestr", "imagests", "input", "inputs", "scans", "volumes"})
_MASKS = frozenset({
    "mask", "masks", "label", "labels", "labelstr", "labelsts", "seg", "segs", "segmentation", "segmentations", "gt",
    "groundtruth", "truth", "annotations", "1stmanual", "manual",
})  # fmt: skip
#: What stands behind an image's name in that of its mask; a number may follow.
_WORDS = (
    "mask", "masks", "seg", "segmentation", "label", "labels", "gt", "groundtruth", "truth", "manual", "manual1",
    "annotation", "1stho", "2ndho", "roi",
)  # fmt: skip
#: Second readings of what another file outlines already; used where they are asked for.
_SECOND = frozenset({"2ndho", "manual2"})
_SLICER = ".seg.nrrd"
_BESIDE = "in the folder beside the images"
#: Masks that are looked at to find out which values they hold.
_SAMPLE = 12


@dataclass(frozen=True)
class _Pair:
    image: Path
    masks: tuple[tuple[str, Path], ...]  # suffix, file
    split: str | None


def open_pairs(request: Request) -> Dataset:
    """Cases with masks that lie beside their images.

    Masks of one value besides 0 outline ``foreground``; in masks of several values each is a structure, called by its
    number or as the target says: ``liver=1,tumour=2``. Of several readings of one picture, as those of CHASE, the first
    counts; the target may name another (``2ndHO``). Images without mask and masks without image are reported as
    skipped.

    Raises
    ------
    DataError
        If no image has a mask, or a suffix or structure that is asked for is not there.
    """
    root = Path(request.source).resolve()
    check_place_kind(request.kind)
    pairs, skipped, suffixes, where = _find(root)
    if not any(pair.masks for pair in pairs):
        raise DataError(
            f"'{root.name}' holds no image with its mask: {len(pairs)} images without mask"
            f"{_listed(pair.image.relative_to(root).as_posix() for pair in pairs)} and {len(skipped)} masks without image"
            f"{_listed(one.case for one in skipped)}. Expected {root.name}/images/x.png and {root.name}/masks/x.png, or "
            "x.png and x_mask.png"
        )
    named = named_values(request.target)
    asked, structure = _asked_suffixes(request.target if named is None else None, suffixes)
    used = [
        (pair, [(s, file) for s, file in pair.masks if s in asked])
        for pair in pairs
        if any(s in asked for s, _ in pair.masks)
    ]
    masks = MaskScheme([[file for _, file in chosen] for _, chosen in used], named, structure)
    cases = []
    for pair, chosen in used:
        below = pair.image.relative_to(root)
        name = below.with_name(stem(pair.image)).as_posix()
        empty = [file for file in (pair.image, *(f for _, f in chosen)) if file.stat().st_size == 0]
        if empty:
            skipped.append(Skipped(name, "the file is empty (0 bytes)"))
            continue
        try:
            truth = masks.source(name, [file for _, file in chosen])
        except SagittalError as error:
            skipped.append(Skipped(name, str(error)))
            continue
        cases.append(
            Case(
                name,
                name,
                {"image": file_source(name, pair.image)},
                truth=truth,
                split=pair.split,
                source=below.as_posix(),
            )
        )
    alone = [pair for pair in pairs if not any(s in asked for s, _ in pair.masks)]
    skipped += [Skipped(pair.image.relative_to(root).as_posix(), "an image without mask") for pair in alone]
    others = [s for s in suffixes if s not in asked]
    notes = [f"masks {where}", *masks.notes()]
    notes += [f"other readings, not used: {', '.join(others)} (choose with --target {others[0]})"] if others else []
    return Dataset(
        root.name, tuple(unique(cases)), masks.scheme, skipped=tuple(skipped), layout="pairs", notes=tuple(notes)
    )


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return f" ({', '.join(shown[:5])}{' ...' if len(shown) > 5 else ''})" if shown else ""


def is_pairs(folder: Path) -> bool:
    """Whether a folder plainly holds masks beside their images.

    So it is where a folder of images and one of masks lie side by side, or where most images have a mask of their name
    with a known word behind it. Folders that might be classes forbid it, unless each of three or more holds one image
    with its mask.
    """
    if not folder.is_dir():
        return False
    tops = [f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith((".", "__"))]
    classes = sorted(name for name in tops if _is_class(name))
    if classes and (len(tops) < 3 or not any(_lone_mask(stem(f)) for f in image_files(folder / classes[0]))):
        return False  # without a closer look: folders of classes may hold very many images
    pairs, _, _, where = _find(folder)
    if classes:
        holders = Counter(pair.image.relative_to(folder).parts[0] for pair in pairs)
        alone = len(holders) >= 3 and set(holders.values()) == {1}
        return alone and all(pair.masks for pair in pairs)
    return where == _BESIDE or sum(bool(pair.masks) for pair in pairs) * 2 > len(pairs)


def check_place_kind(kind: str | None) -> None:
    """Refuse a kind of question that masks do not answer.

    Raises
    ------
    ConfigError
        If the kind is not known.
    DataError
        If it is another than ``structures``.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"unknown kind of labels '{kind}'. {nearest(kind, KINDS)}")
    if kind not in {None, "structures"}:
        raise DataError(f"masks hold structures, not '{kind}': leave --kind out, or choose another --layout")


def named_values(target: str | None) -> dict[str, tuple[int, ...]] | None:
    """Structures that a target names by their values; ``None`` where it does not.

    >>> named_values("liver=1,tumour=2+3"), named_values("diagnosis")
    ({'liver': (1,), 'tumour': (2, 3)}, None)
    """
    if target is None or "=" not in target:
        return None
    found: dict[str, tuple[int, ...]] = {}
    for part in target.split(","):
        name, _, values = part.partition("=")
        numbers = [value.strip() for value in values.split("+")]
        if not name.strip() or not all(value.isdigit() and int(value) > 0 for value in numbers):
            raise ConfigError(f"'{part.strip()}' names no values of masks; expected NAME=1 or NAME=1+2")
        found[name.strip()] = tuple(int(value) for value in numbers)
    return found


class MaskScheme:
    """What masks without a description outline: told by the user, or by the values that some of them hold.

    Parameters
    ----------
    masks : sequence of sequence of Path
        The files of each case.
    named : mapping of str to tuple of int, optional
        Structures by their values.
    structure : str
        What a mask of one value is called.

    Attributes
    ----------
    scheme : LabelScheme
    """

    def __init__(
        self, masks: Sequence[Sequence[Path]], named: Mapping[str, tuple[int, ...]] | None, structure: str = FOREGROUND
    ) -> None:
        self.named = dict(named) if named else None
        self.structure = structure
        self._notes: tuple[str, ...] = ()
        self._slicer = self.named is None and all(f.name.lower().endswith(_SLICER) for files in masks for f in files)
        if self._slicer:
            names = _segment_names(masks)
            self._notes = ("structures by the segments that the masks name",)
            self.scheme = LabelScheme("structures", names, "mask", lateral=is_lateral(names))
            return
        if self.named is None:
            values, looked = self._look(masks)
            if len(values) > 1:
                self.named = {str(value): (value,) for value in values}
                self._notes = (
                    f"structures {', '.join(self.named)} by the values in {looked} of {len(masks)} masks; name them "
                    "with --target 'liver=1,tumour=2'",
                )
            else:
                self._notes = (f"masks of one value outline '{structure}'",)
        names = tuple(self.named or (structure,))
        meaning = {name: "value " + " + ".join(map(str, of)) for name, of in (self.named or {}).items()}
        self.scheme = LabelScheme("structures", names, "mask", lateral=is_lateral(names), meaning=meaning)

    def source(self, case: str, files: Sequence[Path]) -> SegmentationSource:
        """The segmentation of a case."""
        if self._slicer:
            if len(files) > 1:
                raise DataError(f"case {case}: has {len(files)} segmentations; give one an image")
            return make_mask_source(case, "seg_nrrd", files, structures=seg_nrrd_names(files[0]))
        options: dict[str, Any] = {"names": [self.structure] * len(files)}
        if self.named is not None:
            if len(files) > 1:
                raise DataError(f"case {case}: has {len(files)} masks of several values each; give one mask an image")
            options = {"structures": {name: list(of) for name, of in self.named.items()}}
        return make_mask_source(case, "label_map", files, options, structures=self.scheme.classes)

    def notes(self) -> tuple[str, ...]:
        """What was found in the masks, in words."""
        return self._notes

    def _look(self, masks: Sequence[Sequence[Path]]) -> tuple[list[int], int]:
        """Values in one mask for a structure each, else in the first, the last and some between."""
        step = max(1, len(masks) // _SAMPLE)
        sample = [files for files in masks[::step] if files][:_SAMPLE]
        most: set[int] = set()
        several: set[int] = set()
        looked = 0
        for files in sample:
            for file in files[:2]:
                try:
                    values = set(label_values(file))
                except SagittalError:
                    continue  # told when the case is read
                looked += 1
                most |= values
                several |= values if len(values) > 1 else set()
        # Masks of 0 and 255 beside masks of 0 and 1 are one structure; a mask with two values is not.
        return (sorted(most) if several else sorted(most)[:1]), looked


def _segment_names(masks: Sequence[Sequence[Path]]) -> tuple[str, ...]:
    """The names that occur in segmentations of 3D Slicer; damaged ones are told when their case is made."""
    names: dict[str, None] = {}
    for file in (file for files in masks for file in files):
        with suppress(SagittalError):
            names.update(dict.fromkeys(seg_nrrd_names(file)))
    if not names:
        raise DataError(f"none of the {len(masks)} .seg.nrrd files names a segment that can be read")
    return tuple(names)


def mask_suffix(name: str, base: str) -> str | None:
    """What a mask's name adds to its image's, without the mark between; ``None`` where it adds no known word.

    >>> mask_suffix("a_mask_2", "a"), mask_suffix("Image_01L_1stHO", "Image_01L"), mask_suffix("a_left", "a")
    ('mask', '1stHO', None)
    """
    if not name.startswith(base) or name[len(base) : len(base) + 1] not in {"_", "-", ".", " "}:
        return None
    rest = re.sub(r"[_\-. ]\d+$", "", name[len(base) + 1 :])
    return rest if re.sub(r"[^a-z0-9]", "", rest.lower()) in _WORDS else None


def mask_files(files: Sequence[Path]) -> set[Path]:
    """The files that are masks of another by their names: ``x_mask.png`` beside ``x.png``."""
    stems: dict[Path, dict[str, Path]] = defaultdict(dict)
    for file in files:
        stems[file.parent].setdefault(stem(file), file)
    return {file for file in files if _base(stem(file), stems[file.parent]) is not None}


def _find(root: Path) -> tuple[list[_Pair], list[Skipped], list[str], str]:
    """Images with their masks, what is left over, the suffixes in use, and how they were found."""
    files = image_files(root)
    sides: dict[str, dict[tuple[str, ...], list[Path]]] = {"image": defaultdict(list), "mask": defaultdict(list)}
    for file in files:
        parts = file.relative_to(root).parts[:-1]
        at = next((n for n in reversed(range(len(parts))) if _plain(parts[n]) in _IMAGES | _MASKS), None)
        if at is not None:
            side = "image" if _plain(parts[at]) in _IMAGES else "mask"
            sides[side][(*parts[:at], *parts[at + 1 :])].append(file)
    if sides["image"] and sides["mask"]:
        return _by_folder(root, files, sides)
    return _by_suffix(root, files)


def _by_folder(
    root: Path, files: Sequence[Path], sides: Mapping[str, Mapping[tuple[str, ...], list[Path]]]
) -> tuple[list[_Pair], list[Skipped], list[str], str]:
    pairs: list[_Pair] = []
    used: set[Path] = set()
    for place, images in sides["image"].items():
        masks: dict[str, list[tuple[str, Path]]] = defaultdict(list)
        bases = {stem(image): image for image in images}
        for file in sides["mask"].get(place, []):
            name = stem(file)
            if name in bases:
                masks[name].append(("mask", file))
            elif base := _base(name, bases):
                masks[base].append((str(mask_suffix(name, base)), file))
        for image in images:
            mine = tuple(masks.get(stem(image), ()))
            used.update((image, *(file for _, file in mine)))
            pairs.append(_Pair(image, mine, _split_of(image, root)))
    skipped = [
        Skipped(f.relative_to(root).as_posix(), "a mask without image" if _is_mask(f, root) else "no image of the set")
        for f in files
        if f not in used
    ]
    return pairs, skipped, _suffixes(pairs), _BESIDE


def _by_suffix(root: Path, files: Sequence[Path]) -> tuple[list[_Pair], list[Skipped], list[str], str]:
    stems: dict[Path, dict[str, Path]] = defaultdict(dict)
    for file in files:
        stems[file.parent].setdefault(stem(file), file)
    masks: dict[Path, list[tuple[str, Path]]] = defaultdict(list)
    skipped: list[Skipped] = []
    rest: list[Path] = []
    for file in files:
        base = _base(stem(file), stems[file.parent])
        if base is not None:
            masks[stems[file.parent][base]].append((str(mask_suffix(stem(file), base)), file))
        elif _lone_mask(stem(file)):
            skipped.append(Skipped(file.relative_to(root).as_posix(), "a mask without image"))
        else:
            rest.append(file)
    pairs = [_Pair(file, tuple(masks.get(file, ())), _split_of(file, root)) for file in rest]
    suffixes = _suffixes(pairs)
    return pairs, skipped, suffixes, f"by the suffix {', '.join(suffixes)}"


def _lone_mask(name: str) -> bool:
    """Whether a name ends in the word of a mask."""
    parts = re.split(r"[_\-. ]", re.sub(r"[_\-. ]\d+$", "", name))
    return len(parts) > 1 and parts[-1].lower() in _WORDS


def _base(name: str, bases: Iterable[str]) -> str | None:
    """The longest name of an image to which a mask's name adds a known word."""
    known = bases if isinstance(bases, dict) else set(bases)
    for at in range(len(name) - 1, 0, -1):
        if name[at] in "_-. " and name[:at] in known and mask_suffix(name, name[:at]) is not None:
            return name[:at]
    return None


def _suffixes(pairs: Sequence[_Pair]) -> list[str]:
    return [s for s, _ in Counter(s for pair in pairs for s in dict.fromkeys(x for x, _ in pair.masks)).most_common()]


def _asked_suffixes(target: str | None, suffixes: Sequence[str]) -> tuple[set[str], str]:
    """The suffixes whose masks count, and what a mask of one value is called.

    A target that is no suffix names the structure.
    """
    first = {s for s in suffixes if s.lower() not in _SECOND} or set(suffixes)
    if target is None:
        return first, FOREGROUND
    chosen = {s for s in suffixes if s.lower() == target.strip().lower()}
    if chosen:
        return chosen, FOREGROUND
    if "," in target:
        raise DataError(f"masks of one value hold one structure, not '{target}'; name values: 'liver=1,tumour=2'")
    return first, target.strip()


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _is_class(folder: str) -> bool:
    return _plain(folder) not in _IMAGES | _MASKS and folder.lower() not in SPLIT_NAMES


def _is_mask(file: Path, root: Path) -> bool:
    return any(_plain(part) in _MASKS for part in file.relative_to(root).parts[:-1])


def _split_of(file: Path, root: Path) -> str | None:
    for part in file.relative_to(root).parts[:-1]:
        if part.lower() in SPLIT_NAMES:
            return SPLIT_NAMES[part.lower()]
    return {"imagestr": "train", "imagests": "test"}.get(_plain(file.relative_to(root).parts[0]))
