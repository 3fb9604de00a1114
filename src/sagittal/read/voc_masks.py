"""Masks of Pascal VOC: a picture of classes for each image in ``SegmentationClass``, as CVAT and LabelMe write them too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sagittal.case import Case
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import DataError, ReadError, SagittalError
from sagittal.formats.label_map import COLOUR, label_values
from sagittal.formats.open_image import stem
from sagittal.guard.limits import check_file
from sagittal.read.files import SPLIT_NAMES, image_files
from sagittal.read.mask_scheme import MaskScheme, named_values, place_kind
from sagittal.read.request import Request
from sagittal.read.sources import file_source, make_mask_source
from sagittal.read.studies import unique
from sagittal.read.truths import scheme_of_places

MASKS, OBJECTS, IMAGES = "SegmentationClass", "SegmentationObject", "JPEGImages"
#: What VOC draws between objects, where nothing is known: an index, and the colour that it has.
_VOID, _VOID_COLOUR = 255, COLOUR + 0xE0E0C0
_LISTS = ("labelmap.txt", "class_names.txt")
#: Bytes of a list of classes.
_MOST_BYTES = 2**20


def has_class_masks(root: Path) -> bool:
    """Whether a folder holds masks of classes beside images."""
    return (root / MASKS).is_dir() and (root / IMAGES).is_dir()


def open_voc_masks(request: Request) -> Dataset:
    """Cases with the mask of classes of each image.

    Names stand in ``labelmap.txt`` (``name:r,g,b``, as CVAT writes it) or ``class_names.txt`` (a name a line, as LabelMe
    does), else the values are names; the target may name them, ``cell=1``. The border that VOC draws around objects
    (index 255, or its colour) is unknown. Splits are the lists of ``ImageSets/Segmentation``.

    Raises
    ------
    DataError
        If no mask has its image.
    ReadError
        If the list of classes is damaged.
    """
    root = Path(request.source).resolve()
    images = {stem(file): file for file in image_files(root / IMAGES)}
    masks = {stem(file): file for file in image_files(root / MASKS)}
    used = {name: file for name, file in masks.items() if name in images}
    if not used:
        raise DataError(
            f"'{root.name}': none of the {len(masks)} masks in {MASKS} has an image of its name in {IMAGES}"
        )
    named = named_values(request.target)
    listed = _listed(root, coloured=_coloured(next(iter(used.values())))) if named is None else None
    if listed is None:
        read = MaskScheme(
            [[file] for file in used.values()], named or _without_void(used), kind=place_kind(request.kind)
        )
        scheme, notes = read.scheme, list(read.notes())
        known: dict[str, tuple[int, ...]] = dict(read.named or {})
    else:
        known, notes = listed[0], [listed[1]]
        scheme = scheme_of_places("structures", list(known), request, target="mask")
    splits, told = _splits(root)
    skipped = [
        Skipped(f"{MASKS}/{name}", "a mask without image", "no-image") for name in sorted(set(masks) - set(images))
    ]
    cases = []
    for name, image in images.items():
        below = image.relative_to(root)
        places = splits.get(name, set())
        reason = None
        if name not in used:
            reason = ("an image without mask", "no-truth")
        elif not (image.stat().st_size and used[name].stat().st_size):
            reason = ("the file is empty (0 bytes)", "empty-file")
        elif len(places) > 1:
            reason = (f"ImageSets lists it in {' and in '.join(sorted(places))}: it must be in one split", "ambiguous")
        if reason is not None:
            skipped.append(Skipped(below.with_name(name).as_posix(), *reason))
            continue
        case = below.with_name(name).as_posix()
        wanted = {one: list(known[one]) for one in scheme.classes} if known else {}
        options: dict[str, Any] = {"structures": wanted, "ignore": _ignore(known, named)}
        if not known:
            options = {"names": list(scheme.classes), "ignore": _VOID}
        elif others := sorted({v for of in known.values() for v in of} - {v for of in wanted.values() for v in of}):
            options["background"] = others
        truth = make_mask_source(case, "label_map", (used[name],), options, structures=scheme.classes)
        source = {"image": file_source(case, image)}
        cases.append(Case(case, case, source, truth=truth, split=next(iter(places), None), source=below.as_posix()))
    notes = [f"masks of {MASKS}; their border ({_VOID}) is unknown", *notes, *told]
    if (root / OBJECTS).is_dir():
        notes.append(f"not used: {OBJECTS}; with --kind objects the connected parts of the classes are objects")
    return Dataset(root.name, tuple(unique(cases)), scheme, skipped=tuple(skipped), layout="voc", notes=tuple(notes))


def _ignore(known: dict[str, tuple[int, ...]], named: dict[str, tuple[int, ...]] | None) -> int:
    if named and "ignore" in named:
        return named["ignore"][0]
    return _VOID_COLOUR if any(value > COLOUR for of in known.values() for value in of) else _VOID


def _coloured(mask: Path) -> bool:
    """Whether a mask is stored in colours rather than numbers."""
    try:
        return any(value > COLOUR for value in label_values(mask))
    except SagittalError:
        return False


def _without_void(masks: dict[str, Path]) -> dict[str, tuple[int, ...]] | None:
    """Structures by the values of some masks, the border left out; ``None`` where it is one."""
    seen: set[int] = set()
    for file in list(masks.values())[:: max(1, len(masks) // 12)][:12]:
        try:
            seen.update(label_values(file))
        except SagittalError:
            continue  # told when the case is read
    values = sorted(seen - {_VOID, _VOID_COLOUR})
    return {str(v) if v < COLOUR else f"#{v - COLOUR:06x}": (v,) for v in values} or None


def _listed(root: Path, *, coloured: bool) -> tuple[dict[str, tuple[int, ...]], str] | None:
    """The classes of a list, the background left out, by index or colour; and where they stand."""
    path = next((root / name for name in _LISTS if (root / name).is_file()), None)
    if path is None:
        return None
    check_file(path)
    if path.stat().st_size > _MOST_BYTES:
        raise ReadError(f"{path.name}: holds {path.stat().st_size:,} bytes; expected a line for each class")
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#") and line != "__ignore__"]
    found: dict[str, tuple[int, ...]] = {}
    for index, line in enumerate(lines):
        name, *rest = line.split(":")
        value = index
        if coloured:
            try:
                red, green, blue = (int(part) for part in rest[0].split(","))
            except (IndexError, ValueError) as error:
                raise ReadError(f"{path.name}: line {index + 1} gives no colour; expected NAME:R,G,B") from error
            rgb = red << 16 | green << 8 | blue
            value = COLOUR + rgb if rgb else 0
        if not name or name in found:
            raise ReadError(f"{path.name}: line {index + 1} names no class, or one that was named before")
        if name.strip("_").lower() != "background" and value:
            found[name] = (value,)
    return found, f"classes by {path.name}"


def _splits(root: Path) -> tuple[dict[str, set[str]], list[str]]:
    places: dict[str, set[str]] = {}
    taken = []
    for file in sorted((root / "ImageSets" / "Segmentation").glob("*.txt")):
        split = SPLIT_NAMES.get(file.stem.lower())
        if split is None:
            continue
        taken.append(file.stem.lower())
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.strip():
                places.setdefault(line.split()[0], set()).add(split)
    return places, [f"splits by ImageSets/Segmentation: {', '.join(taken)}"] if taken else []
