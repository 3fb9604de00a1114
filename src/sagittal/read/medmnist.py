"""MedMNIST sets, and any ``.npz`` of stacked images and labels in their form."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sagittal.case import Case
from sagittal.dataset import SPLITS, Dataset
from sagittal.errors import ConfigError, DataError, ReadError, nearest
from sagittal.formats.npz import array_shapes, load_array
from sagittal.labels import ClassScores, LabelScheme
from sagittal.read.files import SPLIT_NAMES
from sagittal.read.request import Request
from sagittal.read.sources import item_source
from sagittal.read.truths import is_lateral
from sagittal.types import Array

_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left", "lung-right",
    "pancreas", "spleen",
)  # fmt: skip
_ORGANS_3D = (
    "liver", "kidney-right", "kidney-left", "femur-right", "femur-left", "bladder", "heart", "lung-right", "lung-left",
    "spleen", "pancreas",
)  # fmt: skip
#: Set -> DICOM modality and classes in the order of the official labels (MedMNIST v2, info.py). Binary shapes and
#: electron microscopy have no modality of their own.
SETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "adrenalmnist3d": ("OT", ("normal", "hyperplasia")),
    "bloodmnist": (
        "SM",
        (
            "basophil", "eosinophil", "erythroblast", "immature granulocytes", "lymphocyte", "monocyte", "neutrophil",
            "platelet",
        ),
    ),
    "breastmnist": ("US", ("malignant", "normal, benign")),
    "chestmnist": (
        "CR",
        (
            "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
            "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
        ),
    ),
    "dermamnist": (
        "XC",
        (
            "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions",
            "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions",
        ),
    ),
    "fracturemnist3d": ("CT", ("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture")),
    "nodulemnist3d": ("CT", ("benign", "malignant")),
    "octmnist": ("OPT", ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal")),
    "organamnist": ("CT", _ORGANS),
    "organcmnist": ("CT", _ORGANS),
    "organsmnist": ("CT", _ORGANS),
    "organmnist3d": ("CT", _ORGANS_3D),
    "pathmnist": (
        "SM",
        (
            "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
            "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
        ),
    ),
    "pneumoniamnist": ("CR", ("normal", "pneumonia")),
    "retinamnist": ("OP", ("0", "1", "2", "3", "4")),
    "synapsemnist3d": ("OT", ("inhibitory synapse", "excitatory synapse")),
    "tissuemnist": (
        "SM",
        (
            "Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells",
            "Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments",
            "Thick Ascending Limb",
        ),
    ),
    "vesselmnist3d": ("OT", ("vessel", "aneurysm")),
}  # fmt: skip
_SIZES = (28, 64, 128, 224)
_PREFIX = "medmnist:"


def open_medmnist(request: Request) -> Dataset:
    """The data set of ``medmnist:NAME``, ``medmnist:NAME_64`` or a local ``.npz`` of that form.

    The arrays are ``train_images`` and ``train_labels`` and the same for val and test, or ``images`` and ``labels``
    alone. The official order of the classes is kept: in BreastMNIST label 0 is malignant and label 1, the positive
    class of a binary scheme, is "normal, benign". Cases are named by split and place in the array (``train-0000``).

    Raises
    ------
    ConfigError
        If the name is not one of MedMNIST.
    ReadError
        If the file is neither here nor to be had, or is damaged.
    DataError
        If it holds no labels, or only one class.
    """
    path = locate(request.source, request.search)
    name = request.source.removeprefix(_PREFIX).lower() if request.source.startswith(_PREFIX) else path.stem
    base = name.partition("_")[0]
    modality, classes = SETS.get(base, ("OT", ()))
    shapes = array_shapes(path)
    pairs = _pairs(shapes)
    if not pairs:
        raise DataError(
            f"'{name}' holds no pair of images and labels (arrays: {', '.join(list(shapes)[:8]) or 'none'}); "
            "expected 'train_images' and 'train_labels', or 'images' and 'labels'"
        )
    labels = {images: _labels(path, key, shapes[images][0]) for images, key, _ in pairs}
    scheme = _scheme(list(labels.values()), base, classes, request.kind, request.target)
    cases = []
    for images, _, split in pairs:
        digits = max(4, len(str(shapes[images][0] - 1)))
        for index, row in enumerate(labels[images]):
            case = f"{split or 'case'}-{index:0{digits}d}"
            source = item_source(case, path, images, index, modality)
            truth = _truth(scheme, row)
            cases.append(Case(case, case, {"image": source}, truth=truth, split=split, source=f"{images}[{index}]"))
    note = "in the official order of MedMNIST: " + ", ".join(f"{n} = {c}" for n, c in enumerate(scheme.classes))
    return Dataset(
        request.source if request.source.startswith(_PREFIX) else name,
        tuple(cases),
        scheme,
        layout="medmnist",
        notes=(f"classes {note}",) if classes else (),
    )


def locate(source: str, search: Iterable[Path] = ()) -> Path:
    """The ``.npz`` of a set: the path itself, or the first in the search folders, here, or in ``~/.medmnist``."""
    if not source.startswith(_PREFIX):
        return Path(source)
    name = source.removeprefix(_PREFIX).lower()
    base, _, size = name.partition("_")
    if base not in SETS:
        raise ConfigError(f"'{base}' is not a set of MedMNIST. {nearest(base, SETS)}")
    if size and (not size.isdigit() or int(size) not in _SIZES):
        raise ConfigError(f"MedMNIST has the sizes {', '.join(map(str, _SIZES))}, not '{size}': medmnist:{base}_64")
    file = f"{base}.npz" if size in {"", "28"} else f"{name}.npz"
    home = Path.home() / ".medmnist"
    folders = [*search, Path(), home]
    for folder in folders:
        for place in (folder / file, folder / "medmnist" / file):
            if place.is_file():
                return place
    return _download(base, int(size or 28), file, home)


def _download(name: str, size: int, file: str, folder: Path) -> Path:
    """Let the medmnist package fetch the set into its own folder."""
    advice = (
        f"Put {file} (from medmnist.com) into this folder or into {folder.name} in the home folder, set SAGITTAL_DATA to "
        "its folder, or give its path"
    )
    try:
        package = importlib.import_module("medmnist")
    except Exception as error:  # the package imports torchvision, which fails in ways of its own
        raise ReadError(
            f"medmnist:{name} was not found here. {advice}. Where there is a network: pip install medmnist ({type(error).__name__})"
        ) from error
    try:
        folder.mkdir(exist_ok=True)
        kind = getattr(package, package.INFO[name]["python_class"])
        kind(split="test", download=True, size=size, root=str(folder))
    except Exception as error:
        raise ReadError(
            f"medmnist:{name} was not found here, and the medmnist package could not fetch it ({type(error).__name__}: "
            f"no network?). {advice}."
        ) from error
    return folder / file


def _pairs(shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, str, str | None]]:
    """Array of images, array of labels, split; train first."""
    pairs: list[tuple[str, str, str | None]] = []
    for key in shapes:
        prefix, _, rest = key.rpartition("_")
        if rest == "images" and f"{prefix}_labels" in shapes and prefix in SPLIT_NAMES:
            pairs.append((key, f"{prefix}_labels", SPLIT_NAMES[prefix]))
    pairs.sort(key=lambda pair: SPLITS.index(str(pair[2])))
    if not pairs and {"images", "labels"} <= set(shapes):
        return [("images", "labels", None)]
    return pairs


def _labels(path: Path, key: str, count: int) -> Array:
    labels = load_array(path, key)
    if labels.shape[:1] != (count,) or labels.ndim > 2:
        raise DataError(f"array '{key}' of shape {labels.shape} does not give one label for each of {count} images")
    return np.asarray(labels.reshape(count, -1), dtype=np.float64)


def _scheme(
    labels: list[Array], base: str, classes: tuple[str, ...], kind: str | None, target: str | None
) -> LabelScheme:
    values = np.concatenate(labels)
    known = values[np.isfinite(values) & (values >= 0)]
    if known.size == 0:
        raise DataError("the labels are all unknown")
    if values.shape[1] > 1:
        names = classes or tuple(f"class {n}" for n in range(values.shape[1]))
        return LabelScheme("multilabel", names, target or base, lateral=is_lateral(names))
    if np.any(known != np.round(known)):
        raise DataError("the labels are measurements, not the whole numbers of classes")
    highest = int(known.max())
    if np.unique(known).size < 2:
        raise DataError(
            f"the labels hold only one class ({highest}); at least two are needed to learn from. Add cases of the other."
        )
    names = classes if len(classes) > highest else tuple(f"class {n}" for n in range(highest + 1))
    natural = "ordinal" if base == "retinamnist" else "binary" if len(names) == 2 else "multiclass"
    meaning = {name: f"label {n}" for n, name in enumerate(names)}
    return LabelScheme(kind or natural, names, target or base, is_lateral(names), meaning)  # type: ignore[arg-type]


def _truth(scheme: LabelScheme, row: Array) -> ClassScores:
    if not scheme.exclusive:
        return ClassScores(np.where(row < 0, np.nan, row))
    if not np.isfinite(row[0]) or row[0] < 0:
        return scheme.unknown()
    values = np.zeros(len(scheme.classes))
    values[int(row[0])] = 1
    return ClassScores(values)
