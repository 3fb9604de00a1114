"""Pascal VOC: an XML file of boxes for each image, and lists of splits in ``ImageSets/Main``."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sagittal.case import Case
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import DataError, SagittalError
from sagittal.formats.open_image import stem
from sagittal.guard.xml_file import Element, read_xml
from sagittal.read.files import SPLIT_NAMES, walk
from sagittal.read.image_index import ImageIndex
from sagittal.read.request import Request
from sagittal.read.sources import file_source
from sagittal.read.studies import unique
from sagittal.read.truths import scheme_of_places, sort_classes
from sagittal.read.voc_masks import MASKS, OBJECTS, has_class_masks, open_voc_masks
from sagittal.truth import Boxes

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _NoImageError(DataError):
    """An annotation whose image is not there."""


@dataclass(frozen=True)
class _Object:
    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


def open_voc(request: Request) -> Dataset:
    """Cases with the objects of each image; corners count pixels from 1 and belong to the box.

    The annotation of an image has its name, in ``Annotations`` or beside it. Splits are the lists ``train.txt``,
    ``val.txt`` and ``test.txt`` of ``ImageSets/Main``, or folders of those names. Difficult objects count neither as
    found nor as missed. Boxes are kept as they are, degenerate ones too. Annotations that cannot be read, images
    without annotation, annotations without image, and names in two splits are reported as skipped.

    With the kind ``structures``, or without annotations, masks of ``SegmentationClass`` are read instead:
    :func:`sagittal.read.voc_masks.open_voc_masks`.

    Raises
    ------
    DataError
        If there is no annotation, or none names an object.
    """
    root = Path(request.source).resolve()
    masks = has_class_masks(root)
    if masks and (request.kind == "structures" or not annotation_files(root, most=1)):
        return open_voc_masks(request)
    annotations = annotation_files(root)
    if not annotations:
        raise DataError(f"'{root.name}' holds no annotation of Pascal VOC (an XML file for each image)")
    index = ImageIndex(root, root, without=(MASKS, OBJECTS))
    splits, notes = _splits(root)
    listed = set(splits)
    skipped: list[Skipped] = []
    used: set[Path] = set()
    found: list[tuple[str, Path, list[_Object], tuple[int, int] | None, str | None]] = []
    for file in annotations:
        listed.discard(file.stem)
        name = file.relative_to(root).with_suffix("").as_posix()
        try:
            image, objects, size = _read(file, index)
            used.add(image)
            places = splits.get(file.stem, set())
            if len(places) > 1:
                raise DataError(f"ImageSets lists it in {' and in '.join(sorted(places))}: it must be in one split")
        except SagittalError as error:
            skipped.append(Skipped(name, str(error), "no-image" if isinstance(error, _NoImageError) else "unreadable"))
            used.update(_of_stem(file, index)[:1])  # told once
            continue
        split = next(iter(places), None) or _folder_split(file, root)
        found.append((image.relative_to(root).with_name(stem(image)).as_posix(), image, objects, size, split))
    skipped += [Skipped(name, "ImageSets lists it, but it has no annotation", "no-truth") for name in sorted(listed)]
    loose = [file.relative_to(root).as_posix() for file in index.files if file not in used]
    notes = (*notes, *((f"not used: the masks of {MASKS} (--kind structures)",) if masks else ()))
    skipped += [Skipped(name, "an image without annotation", "no-truth") for name in loose]
    names = sort_classes({one.name for _, _, objects, _, _ in found for one in objects})
    if not names:
        first = f"; the first, {skipped[0].case}: {skipped[0].reason}" if skipped else ""
        raise DataError(f"'{root.name}': none of its {len(annotations)} annotations names an object{first}")
    scheme = scheme_of_places("objects", names, request, target="annotation")
    cases = [
        Case(
            name,
            name,
            {"image": file_source(name, image, **({} if size is None else {"size": list(size)}))},
            truth=_boxes([one for one in objects if one.name in scheme.classes], scheme.classes),
            split=split,
            source=image.relative_to(root).as_posix(),
        )
        for name, image, objects, size, split in found
    ]
    return Dataset(root.name, tuple(unique(cases)), scheme, skipped=tuple(skipped), layout="voc", notes=notes)


def is_voc(folder: Path) -> bool:
    """Whether a folder holds annotations or masks of Pascal VOC."""
    return folder.is_dir() and (has_class_masks(folder) or bool(annotation_files(folder, most=1)))


def annotation_files(root: Path, most: int | None = None) -> list[Path]:
    """The XML files below a folder that are annotations: those in ``Annotations``, and others that begin like one."""
    found: list[Path] = []
    for file in walk(root):
        if file.suffix.lower() == ".xml" and (file.parent.name.lower() == "annotations" or _begins(file)):
            found.append(file)
            if len(found) == most:
                break
    return found


def _begins(file: Path) -> bool:
    with file.open("rb") as opened:
        return b"<annotation" in opened.read(500)


def _read(file: Path, index: ImageIndex) -> tuple[Path, list[_Object], tuple[int, int] | None]:
    """Image, objects and stated size of one annotation."""
    tree = read_xml(file)
    if tree.name != "annotation":
        raise DataError(f"expected the element 'annotation', found '{tree.name[:40]}'")
    image = _image(file, tree.value("filename"), index)
    if image.stat().st_size == 0:
        raise DataError("the file is empty (0 bytes)")
    size = [_number(tree.value("size", name)) for name in ("width", "height")]
    whole = (int(size[0]), int(size[1])) if size[0] and size[1] and min(size[0], size[1]) > 0 else None
    return image, [_object(one) for one in tree.all("object")], whole


def _image(file: Path, named: str, index: ImageIndex) -> Path:
    """The image of the annotation's name; one that it names itself must be the same."""
    by_stem = next(iter(_of_stem(file, index)), None)
    base = named.replace("\\", "/").rpartition("/")[2]
    by_name = next((found for folder in _beside(file) if base and (found := index.at(folder / base))), None)
    if by_stem is None and by_name is None:
        raise _NoImageError("an annotation without image")
    if by_stem is not None and by_name is not None and by_stem != by_name:
        raise DataError("the annotation has the name of one image and names another")
    return by_stem or by_name  # type: ignore[return-value]


def _beside(file: Path) -> list[Path]:
    """Where the image of an annotation may lie."""
    return [file.parent, *(file.parent.parent / name for name in ("JPEGImages", "images", "Images", ""))]


def _of_stem(file: Path, index: ImageIndex) -> list[Path]:
    """The images of an annotation's own name, the nearest first."""
    return [found for folder in _beside(file) for found in index.stems(folder / file.stem)] or list(
        index.find(file.stem)
    )


def _object(element: Element) -> _Object:
    name = element.value("name")
    values = [_number(element.value("bndbox", corner)) for corner in _CORNERS]
    if not name or any(value is None for value in values):
        what = "name" if not name else "box of four numbers"
        raise DataError(f"line {element.line} of the annotation: an object without {what}")
    x0, y0, x1, y1 = (float(value) for value in values if value is not None)
    return _Object(name, (x0, y0, x1, y1), element.value("difficult") in {"1", "true", "True"})


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < 1e9 else None


def _boxes(objects: list[_Object], classes: tuple[str, ...]) -> Boxes:
    corners = [
        [[one.corners[0] - 1.5, one.corners[1] - 1.5, -0.5], [one.corners[2] - 0.5, one.corners[3] - 0.5, 0.5]]
        for one in objects
    ]
    numbers = [classes.index(one.name) for one in objects]
    return Boxes(
        np.array(corners, dtype=np.float64), np.array(numbers, int), np.array([one.difficult for one in objects], bool)
    )


def _splits(root: Path) -> tuple[dict[str, set[str]], tuple[str, ...]]:
    """Name of an image -> the splits that list it."""
    folder = root / "ImageSets" / "Main"
    places: dict[str, set[str]] = defaultdict(set)
    if not folder.is_dir():
        return {}, ()
    lists = {f.stem.lower(): f for f in sorted(folder.glob("*.txt"))}
    if "trainval" in lists and not {"train", "val"} & set(lists):
        lists["train"] = lists["trainval"]
    taken = {name: file for name, file in lists.items() if name in SPLIT_NAMES}
    for name, file in taken.items():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.strip():
                places[line.split()[0]].add(SPLIT_NAMES[name])
    return places, (f"splits by ImageSets/Main: {', '.join(sorted(taken))}",) if taken else ()


def _folder_split(file: Path, root: Path) -> str | None:
    for part in file.relative_to(root).parts[:-1]:
        if part.lower() in SPLIT_NAMES:
            return SPLIT_NAMES[part.lower()]
    return None
