"""Which file is a mask of which image: by folders that lie side by side, or by what a name adds to another."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sagittal.dataset import Skipped
from sagittal.formats.open_image import stem
from sagittal.read.files import SPLIT_NAMES, image_files
from sagittal.read.mask_scheme import is_binary_mask

#: Names of folders, without case and punctuation.
_IMAGES = frozenset({"image", "images", "img", "imgs", "imagestr", "imagests", "input", "inputs", "scans", "volumes"})
_MASKS = frozenset({
    "mask", "masks", "label", "labels", "labelstr", "labelsts", "seg", "segs", "segmentation", "segmentations", "gt",
    "groundtruth", "truth", "annotations", "1stmanual", "manual",
})  # fmt: skip
#: What stands behind an image's name in that of its mask; a number may follow.
_WORDS = (
    "mask", "masks", "seg", "segmentation", "label", "labels", "gt", "groundtruth", "truth", "manual", "manual1",
    "manual2", "annotation", "1stho", "2ndho", "roi", "rater1", "rater2", "reader1", "reader2", "observer1", "observer2",
)  # fmt: skip
#: Second readings of what another file outlines already; used where they are asked for.
SECOND = frozenset({"2ndho", "manual2", "rater2", "reader2", "observer2"})
_BESIDE = "in the folder beside the images"
_MARKS = "_-. "
#: Masks of a name that are looked at to tell whether it is that of a structure.
_LOOKED = 3


@dataclass(frozen=True)
class Pair:
    """An image with its masks.

    Attributes
    ----------
    image : Path
    masks : tuple of (str, Path)
        Each with what its name adds to the image's: the word of a mask, or what it outlines.
    split : str or None
    """

    image: Path
    masks: tuple[tuple[str, Path], ...]
    split: str | None


@dataclass(frozen=True)
class Found:
    """The images of a folder with their masks.

    Attributes
    ----------
    pairs : list of Pair
    skipped : list of Skipped
        Files that are neither.
    suffixes : list of str
        Words of masks that are in use, the most frequent first.
    structures : list of str
        What files of one structure each outline, by their names.
    where : str
        How masks were told, in words.
    """

    pairs: list[Pair]
    skipped: list[Skipped]
    suffixes: list[str]
    structures: list[str]
    where: str

    @property
    def beside(self) -> bool:
        """Whether the masks lie in a folder beside that of the images."""
        return self.where == _BESIDE


def find_pairs(root: Path, named: Sequence[str] = ()) -> Found:
    """The images below a folder with their masks.

    In a folder of masks what follows an image's name is what the mask outlines (``case_liver.nii.gz``), and so is a
    folder below it (``masks/liver/case.png``). In one folder, ``case_liver.nii.gz`` is a mask of ``case.nii.gz`` where
    two images or more have a file of that ending and those files hold 0 and one other value, or where it is `named`.

    Parameters
    ----------
    root : Path
    named : sequence of str
        Endings of files that are masks, as the user says.
    """
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
    return _by_suffix(root, files, named)


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
    found = find_pairs(folder)
    if classes:
        holders = Counter(pair.image.relative_to(folder).parts[0] for pair in found.pairs)
        alone = len(holders) >= 3 and set(holders.values()) == {1}
        return alone and all(pair.masks for pair in found.pairs)
    return found.beside or sum(bool(pair.masks) for pair in found.pairs) * 2 > len(found.pairs)


def mask_suffix(name: str, base: str) -> str | None:
    """What a mask's name adds to its image's, without the mark between; ``None`` where it adds no known word.

    >>> mask_suffix("a_mask_2", "a"), mask_suffix("Image_01L_1stHO", "Image_01L"), mask_suffix("a_left", "a")
    ('mask', '1stHO', None)
    """
    if not name.startswith(base) or name[len(base) : len(base) + 1] not in set(_MARKS):
        return None
    rest = re.sub(r"[_\-. ]\d+$", "", name[len(base) + 1 :])
    return rest if is_mask_word(rest) else None


def is_mask_word(word: str) -> bool:
    """Whether a word says that a file is a mask.

    >>> is_mask_word("Ground-Truth"), is_mask_word("left")
    (True, False)
    """
    return _plain(word) in _WORDS


def is_mask_folder(name: str) -> bool:
    """Whether a folder's name says that masks lie in it."""
    return _plain(name) in _MASKS


def structure_of(rest: str) -> str | None:
    """What a mask outlines by the end of its name; ``None`` where that is no name.

    >>> structure_of("liver"), structure_of("left_lung_mask"), structure_of("mask"), structure_of("2")
    ('liver', 'left_lung', None, None)
    """
    parts = re.split(r"([_\-. ])", rest)
    while parts and is_mask_word(parts[-1]):
        del parts[-2:]
    while parts and is_mask_word(parts[0]):
        del parts[:2]
    name = "".join(parts)
    return name if re.search(r"[^\W\d_]", name) else None


def mask_files(files: Sequence[Path]) -> set[Path]:
    """The files that are masks of another by their names: ``x_mask.png`` beside ``x.png``."""
    stems: dict[Path, dict[str, Path]] = defaultdict(dict)
    for file in files:
        stems[file.parent].setdefault(stem(file), file)
    return {file for file in files if _base(stem(file), stems[file.parent]) is not None}


def patients_of(names: Sequence[str]) -> dict[str, str]:
    """Patient of each case where names come in pairs of a left and a right side, as of eyes; empty where they do not.

    >>> patients_of(["Image_01L", "Image_01R", "Image_02L"])
    {'Image_01L': 'Image_01', 'Image_01R': 'Image_01', 'Image_02L': 'Image_02'}
    >>> patients_of(["cell", "control"])
    {}
    """
    sides: dict[str, set[str]] = defaultdict(set)
    of: dict[str, str] = {}
    for name in names:
        match = re.fullmatch(r"(.*\d)[_\-. ]?(L|R|l|r|OD|OS|od|os|left|right|Left|Right)", name)
        if match:
            of[name] = match[1]
            sides[match[1]].add(match[2].lower())
    both = sum(len(found) == 2 for found in sides.values())
    return of if both * 2 >= len(sides) > 0 and len(of) == len(names) else {}


def _by_folder(root: Path, files: Sequence[Path], sides: Mapping[str, Mapping[tuple[str, ...], list[Path]]]) -> Found:
    pairs: list[Pair] = []
    used: set[Path] = set()
    structures: dict[str, None] = {}
    below: dict[tuple[str, ...], list[tuple[str, Path]]] = defaultdict(list)
    for place, masks_there in sides["mask"].items():
        # A folder of masks that no folder of images mirrors is one of a structure.
        home = place if place in sides["image"] or not place else place[:-1]
        below[home] += [("" if home == place else place[-1], file) for file in masks_there]
    for place, images in sides["image"].items():
        masks: dict[str, list[tuple[str, Path]]] = defaultdict(list)
        bases = {stem(image): image for image in images}
        for structure, file in below.get(place, []):
            name = stem(file)
            base = name if name in bases else _base(name, bases) or _any_base(name, bases)
            if base is None:
                continue
            word = "mask" if name == base else mask_suffix(name, base)
            outlined = structure or ("" if word else structure_of(name[len(base) + 1 :]) or "")
            if outlined:
                structures[outlined] = None
                masks[base].append((outlined, file))
            elif word:
                masks[base].append((word, file))
        for image in images:
            mine = tuple(masks.get(stem(image), ()))
            used.update((image, *(file for _, file in mine)))
            pairs.append(Pair(image, mine, _split_of(image, root)))
    skipped = [
        Skipped(f.relative_to(root).as_posix(), "a mask without image", "no-image")
        if _is_mask(f, root)
        else Skipped(f.relative_to(root).as_posix(), "no image of the set", "selection")
        for f in files
        if f not in used
    ]
    suffixes = [word for word in _suffixes(pairs) if word not in structures]
    return Found(pairs, skipped, suffixes, sorted(structures), _BESIDE)


def _by_suffix(root: Path, files: Sequence[Path], named: Sequence[str]) -> Found:
    stems: dict[Path, dict[str, Path]] = defaultdict(dict)
    for file in files:
        stems[file.parent].setdefault(stem(file), file)
    structures = list(named) or _structures(files, stems)
    masks: dict[Path, list[tuple[str, Path]]] = defaultdict(list)
    skipped: list[Skipped] = []
    rest: list[Path] = []
    for file in files:
        name, known = stem(file), stems[file.parent]
        base = _base(name, known)
        ending = next((s for s in structures if name[: -len(s) - 1] in known and _ends_in(name, s)), None)
        if ending is not None:
            masks[known[name[: -len(ending) - 1]]].append((ending, file))
        elif base is not None:
            masks[known[base]].append((str(mask_suffix(name, base)), file))
        elif _lone_mask(name) or any(_ends_in(name, s) for s in structures):
            skipped.append(Skipped(file.relative_to(root).as_posix(), "a mask without image", "no-image"))
        else:
            rest.append(file)
    pairs = [Pair(file, tuple(masks.get(file, ())), _split_of(file, root)) for file in rest]
    used = _suffixes(pairs)
    told = [s for s in structures if s in used and not is_mask_word(s)]
    words = [s for s in used if s not in told]
    return Found(pairs, skipped, words, sorted(told), f"by the suffix {', '.join([*words, *sorted(told)])}")


def _structures(files: Sequence[Path], stems: Mapping[Path, Mapping[str, Path]]) -> list[str]:
    """The endings that two images or more have, and whose files look like masks of one structure."""
    endings: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        base = _any_base(stem(file), stems[file.parent])
        if base is not None and _base(stem(file), stems[file.parent]) is None:
            rest = stem(file)[len(base) + 1 :]
            if structure_of(rest) == rest:
                endings[rest].append(file)
    return sorted(
        ending
        for ending, of in endings.items()
        if len(of) >= 2 and all(is_binary_mask(file) for file in of[:: max(1, len(of) // _LOOKED)][:_LOOKED])
    )


def _ends_in(name: str, ending: str) -> bool:
    return name.endswith(ending) and name[-len(ending) - 1 : -len(ending)] in set(_MARKS)


def _lone_mask(name: str) -> bool:
    """Whether a name ends in the word of a mask."""
    parts = re.split(r"[_\-. ]", re.sub(r"[_\-. ]\d+$", "", name))
    return len(parts) > 1 and parts[-1].lower() in _WORDS


def _base(name: str, bases: Iterable[str]) -> str | None:
    """The longest name of an image to which a mask's name adds a known word."""
    known = bases if isinstance(bases, dict) else set(bases)
    for at in range(len(name) - 1, 0, -1):
        if name[at] in _MARKS and name[:at] in known and mask_suffix(name, name[:at]) is not None:
            return name[:at]
    return None


def _any_base(name: str, bases: Mapping[str, Path]) -> str | None:
    """The longest name of an image with which a name begins."""
    return next((name[:at] for at in range(len(name) - 1, 0, -1) if name[at] in _MARKS and name[:at] in bases), None)


def _suffixes(pairs: Sequence[Pair]) -> list[str]:
    return [s for s, _ in Counter(s for pair in pairs for s in dict.fromkeys(x for x, _ in pair.masks)).most_common()]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _is_class(folder: str) -> bool:
    return _plain(folder) not in _IMAGES | _MASKS and folder.lower() not in SPLIT_NAMES


def _is_mask(file: Path, root: Path) -> bool:
    return any(is_mask_folder(part) for part in file.relative_to(root).parts[:-1])


def _split_of(file: Path, root: Path) -> str | None:
    for part in file.relative_to(root).parts[:-1]:
        if part.lower() in SPLIT_NAMES:
            return SPLIT_NAMES[part.lower()]
    return {"imagestr": "train", "imagests": "test"}.get(_plain(file.relative_to(root).parts[0]))
