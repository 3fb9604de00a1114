"""COCO: one or several JSON files of images, categories and annotations; boxes, or masks from their outlines."""

from __future__ import annotations

import mmap
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.case import Case
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import DataError, ReadError
from sagittal.formats.open_image import stem
from sagittal.guard.json_file import read_json
from sagittal.labels import Kind, LabelScheme
from sagittal.read.files import SPLIT_NAMES, walk
from sagittal.read.image_index import ImageIndex
from sagittal.read.request import Request
from sagittal.read.sources import file_source, make_mask_source
from sagittal.read.studies import unique
from sagittal.read.truths import scheme_of_places
from sagittal.truth import Boxes, SegmentationSource

_MARKS = (b'"images"', b'"annotations"', b'"categories"')
_FIELDS = ("images", "annotations", "categories")


def open_coco(request: Request) -> Dataset:
    """Cases with the objects of each image, ``x, y, width, height`` from the upper left corner in pixels.

    Several files are read together; ``train``, ``val`` or ``test`` in the name of a file or of its folder is the split.
    With the kind ``structures`` the outlines become masks instead. A listed image without annotations holds no object.
    Images that are not there, annotations of images that are not listed, images that no file lists, and images with a
    malformed annotation are reported as skipped.

    Raises
    ------
    ReadError
        If a file is damaged.
    DataError
        If no file has images, annotations and categories.
    """
    root, files = _places(request)
    parts = [_Part(file, read_json(file), root) for file in files]
    names = list(dict.fromkeys(name for part in parts for name in part.categories.values()))
    kind: Kind = "structures" if request.kind == "structures" else "objects"
    meaning = {name: f"category {key}" for part in parts for key, name in part.categories.items()}
    scheme = scheme_of_places(kind, names, request, target="categories", meaning=meaning)
    index = ImageIndex(root, root)
    skipped: list[Skipped] = []
    used: set[Path] = set()
    found: list[Case] = []
    for part in parts:
        found += part.cases(index, scheme, used, skipped)
    loose = [file for file in index.files if file not in used]
    skipped += [
        Skipped(file.relative_to(root).as_posix(), "an image that the annotations do not list", "no-truth")
        for file in loose
    ]
    left_out = [file.name for file in _coco_files(root) if file not in files]
    notes = [f"annotations of {', '.join(file.name for file in files)}"]
    notes += [f"not used: {', '.join(left_out)}"] if left_out else []
    return Dataset(root.name, tuple(unique(found)), scheme, skipped=tuple(skipped), layout="coco", notes=tuple(notes))


def is_coco(path: Path) -> bool:
    """Whether a JSON file, or one that a folder holds, has images, annotations and categories."""
    return _looks_right(path) if path.is_file() else next(iter(_coco_files(path)), None) is not None


class _Part:
    """One JSON file."""

    def __init__(self, file: Path, values: Mapping[str, Any], root: Path) -> None:
        self.file, self.root = file, root
        for name in _FIELDS:
            if not isinstance(values.get(name), list) or not all(isinstance(item, dict) for item in values[name]):
                raise ReadError(f"{file.name}: '{name}' is no list of objects; expected the instances of COCO")
        self.images, self.annotations = values["images"], values["annotations"]
        self.categories = _categories(values["categories"], file.name)
        self.split = _split_in(file, root)

    def cases(self, index: ImageIndex, scheme: LabelScheme, used: set[Path], skipped: list[Skipped]) -> list[Case]:
        of_image: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        for annotation in self.annotations:
            of_image[_key(annotation.get("image_id"))].append(annotation)
        classes = {name: n for n, name in enumerate(scheme.classes)}
        known = set(self.categories.values())
        cases, seen = [], set()
        for number, image in enumerate(self.images):
            key, name = _key(image.get("id")), image.get("file_name")
            if not isinstance(name, str) or not name or key is None:
                skipped.append(
                    Skipped(f"image {number + 1}", f"{self.file.name} gives it no id or no file_name", "unreadable")
                )
                continue
            label = Path(name.replace("\\", "/")).with_suffix("").as_posix().lstrip("/.")
            if key in seen:
                skipped.append(Skipped(label, f"{self.file.name} gives its id to two images", "ambiguous"))
                continue
            seen.add(key)
            mine = of_image.pop(key, [])
            path = self._locate(name, index)
            if path is None:
                told = f"; it has {len(mine)} annotations" if mine else ""
                skipped.append(
                    Skipped(label, f"the image is not there, or more than one is called so{told}", "no-image")
                )
                continue
            used.add(path)
            where = path.relative_to(self.root)
            case = where.with_name(stem(path)).as_posix()
            try:
                if path.stat().st_size == 0:
                    raise DataError("the file is empty (0 bytes)")
                size = _size(image)
                truth = self._truth(case, mine, size, classes, known, scheme)
            except DataError as error:
                skipped.append(Skipped(case, str(error), "empty-file" if path.stat().st_size == 0 else "unreadable"))
                continue
            options = {} if size is None else {"size": list(size)}
            source = {"image": file_source(case, path, **options)}
            cases.append(Case(case, case, source, truth=truth, split=self.split, source=where.as_posix()))
        for key, left in of_image.items():
            reason = f"{len(left)} annotations of an image that {self.file.name} does not list"
            skipped.append(Skipped(f"image id {str(key)[:40]}", reason, "no-image"))
        return cases

    def _locate(self, name: str, index: ImageIndex) -> Path | None:
        """The image beside the file, in the usual folders, or the only one of that name below the data set's folder."""
        name = name.replace("\\", "/").removeprefix("./")
        here = self.file.parent
        for folder in (
            here,
            here / "images",
            here.parent,
            here.parent / "images",
            here.parent / self.file.stem.rpartition("_")[2],
        ):
            found = index.at(folder / name)
            if found is not None:
                return found
        files = index.find(name) or index.find(name.rpartition("/")[2])
        return files[0] if len(files) == 1 else None

    def _truth(
        self,
        case: str,
        annotations: Sequence[Mapping[str, Any]],
        size: tuple[int, int] | None,
        classes: Mapping[str, int],
        known: set[str],
        scheme: LabelScheme,
    ) -> Boxes | SegmentationSource:
        wanted = []
        for annotation in annotations:
            name = self.categories.get(_key(annotation.get("category_id")))
            if name is None:
                raise DataError(f"annotation {_id(annotation)}: names a category that {self.file.name} does not list")
            if name in classes:
                wanted.append((name, annotation))
        if scheme.kind == "objects":
            return _boxes(wanted, classes)
        if size is None:
            raise DataError("its width and height are not given, which outlines need")
        here = [name for name in scheme.classes if name in known]
        options = {"size": list(size), "names": here, "shapes": [_shape(n, a, size) for n, a in wanted]}
        return make_mask_source(case, "shapes", (), options, structures=here)


def _boxes(wanted: Sequence[tuple[str, Mapping[str, Any]]], classes: Mapping[str, int]) -> Boxes:
    try:
        given = np.array([annotation["bbox"] for _, annotation in wanted], dtype=np.float64).reshape(len(wanted), 4)
        if not np.all(np.isfinite(given)):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        bad = next(a for _, a in wanted if not _is_numbers(a.get("bbox"), 4))
        raise DataError(f"annotation {_id(bad)}: its box is not four numbers") from None
    x, y, width, height = given.T - 0.0
    flat = np.zeros(len(wanted))
    low = np.stack([x - 0.5, y - 0.5, flat - 0.5], axis=1)
    high = np.stack([x + width - 0.5, y + height - 0.5, flat + 0.5], axis=1)
    crowd = [annotation.get("iscrowd") == 1 for _, annotation in wanted]
    return Boxes(np.stack([low, high], axis=1), np.array([classes[name] for name, _ in wanted]), np.array(crowd, bool))


def _shape(name: str, annotation: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    outline = annotation.get("segmentation")
    if isinstance(outline, dict):
        counts = outline.get("counts")
        if outline.get("size") == [size[1], size[0]] and (
            isinstance(counts, str) or (isinstance(counts, list) and all(type(run) is int for run in counts))
        ):
            return {"name": name, "counts": counts}
        raise DataError(
            f"annotation {_id(annotation)}: its run lengths are not those of a {size[0]} x {size[1]} picture"
        )
    if isinstance(outline, list) and outline and all(
        isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 and _is_numbers(p, len(p)) for p in outline
    ):  # fmt: skip
        return {"name": name, "polygons": outline}
    raise DataError(f"annotation {_id(annotation)}: has no outline; expected polygons of three corners or more")


def _is_numbers(values: object, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e15 for v in values)
    )


def _categories(given: Sequence[Mapping[str, Any]], file: str) -> dict[Any, str]:
    found: dict[Any, str] = {}
    for category in given:
        key, name = _key(category.get("id")), category.get("name")
        if key is None or not isinstance(name, str) or not name or key in found:
            raise ReadError(f"{file}: a category without an id of its own or without a name")
        found[key] = name if name not in found.values() else f"{name} ({key})"
    return dict(sorted(found.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _key(value: object) -> int | str | None:
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _id(annotation: Mapping[str, Any]) -> str:
    return str(annotation.get("id", "without id"))[:40]


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    if not isinstance(width, int) or not isinstance(height, int) or min(width, height) < 1:
        return None
    return width, height


def _split_in(file: Path, root: Path) -> str | None:
    """The split that the file's name or its folder's says."""
    folder = file.parent.name if file.parent != root else ""
    for text in (file.stem, folder):
        words = [re.sub(r"\d+$", "", word) for word in re.split(r"[^a-z0-9]+", text.lower())]
        for word in words:
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return None


def _places(request: Request) -> tuple[Path, list[Path]]:
    """The folder of the images, and the annotation files."""
    source = Path(request.source).resolve()
    if request.labels is not None:
        return source, [Path(request.labels).resolve()]
    if source.is_file():
        beside = source.parent
        alone = beside.name.lower() == "annotations" and not ImageIndex(beside, beside).files
        return (beside.parent if alone else beside), [source]
    files = _coco_files(source)
    instances = [file for file in files if file.stem.lower().startswith("instances")]
    if not files:
        raise DataError(f"'{source.name}' holds no JSON file with images, annotations and categories")
    return source, instances or files


def _coco_files(root: Path) -> list[Path]:
    return [
        f for f in walk(root) if f.suffix.lower() == ".json" and len(f.relative_to(root).parts) <= 3 and _looks_right(f)
    ]


def _looks_right(file: Path) -> bool:
    if file.suffix.lower() != ".json" or file.stat().st_size < 30:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return all(text.find(mark) >= 0 for mark in _MARKS)
