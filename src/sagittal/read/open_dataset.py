"""Any source of cases: its layout is recognised, or named."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from sagittal.dataset import Dataset
from sagittal.errors import ConfigError, DataError, ReadError, SagittalError, nearest
from sagittal.formats.dicom import TILTS, read_dicom
from sagittal.formats.dicom_index import Instance
from sagittal.formats.open_image import reader_of
from sagittal.guard.archive import is_archive
from sagittal.read.case_folders import is_case_folders, open_case_folders
from sagittal.read.coco import is_coco, open_coco
from sagittal.read.dicom_tree import open_dicom_tree
from sagittal.read.dicom_truth import is_dicom_truth, open_dicom_truth
from sagittal.read.files import TABLES, exists, image_files, index_file, walk
from sagittal.read.folders import class_folders, open_files, open_folders
from sagittal.read.manifest import is_manifest, open_manifest
from sagittal.read.medmnist import open_medmnist
from sagittal.read.msd import DATASET, is_msd, open_msd
from sagittal.read.nnunet import is_nnunet, open_nnunet
from sagittal.read.pair_files import is_pairs
from sagittal.read.pairs import open_pairs
from sagittal.read.request import Request
from sagittal.read.sources import tilt_series
from sagittal.read.table import names_images, open_table
from sagittal.read.table_boxes import UNLISTED
from sagittal.read.table_file import read_table
from sagittal.read.voc import is_voc, open_voc
from sagittal.read.zipped import open_archive
from sagittal.truth import Boxes

_log = logging.getLogger(__name__)


#: Name of a layout -> what opens it.
LAYOUTS: dict[str, Callable[[Request], Dataset]] = {
    "case_folders": open_case_folders,
    "coco": open_coco,
    "dicom_tree": open_dicom_tree,
    "dicom_truth": open_dicom_truth,
    "files": open_files,
    "folders": open_folders,
    "manifest": open_manifest,
    "medmnist": open_medmnist,
    "msd": open_msd,
    "nnunet": open_nnunet,
    "pairs": open_pairs,
    "table": open_table,
    "voc": open_voc,
}
#: Layouts that a folder shows by files of their own, with the test of each; the first that fits is taken.
SIGNS: tuple[tuple[str, Callable[[Path], bool]], ...] = (
    ("manifest", is_manifest),
    ("nnunet", is_nnunet),
    ("msd", is_msd),
    ("voc", is_voc),
    ("coco", is_coco),
)


def open_dataset(
    source: str | Path,
    *,
    target: str | None = None,
    layout: str | None = None,
    labels: str | Path | None = None,
    id_column: str | None = None,
    path_column: str | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    mask_column: str | None = None,
    sheet: str | None = None,
    images: str | None = None,
    tilt: str | None = None,
    kind: str | None = None,
    unlisted: str | None = None,
    search: Iterable[str | Path] = (),
) -> Dataset:
    """The cases of a source, their images not read yet.

    Parameters
    ----------
    source : str or Path
        A folder with a folder for each class; a CSV, TSV, Excel or Parquet table, or a folder with one; a folder of
        images or DICOM files with `labels`; a folder of the Medical Segmentation Decathlon, of nnU-Net, COCO or Pascal
        VOC, or of images with masks beside them; a JSON file of COCO; a ``.zip`` of one of these; an ``.npz``;
        ``medmnist:NAME`` or ``medmnist:NAME_64``.
    target : str, optional
        Column of the answer, or several separated by commas for several labels. May be left out where only one is
        possible. Of structures and objects: the names of those that are wanted; ``liver=1,tumour=2`` names the values
        of masks that have no description.
    layout : str, optional
        One of :data:`LAYOUTS`; recognised where left out.
    labels : str or Path, optional
        Table for a folder, or for a table of its images; or its annotations in the JSON of COCO.
    id_column, path_column, patient_column, split_column, mask_column : str, optional
        Columns of the table; found where left out. Several columns of images or masks have commas between them.
    sheet : str, optional
        Sheet of an Excel table; the first where left out.
    images : str, optional
        Series of each study of a DICOM tree that make one case: ``"T1=*T1*,FLAIR=*FLAIR*"``, patterns of the
        SeriesDescription; or of a folder a case the files: ``"T1=t1n,FLAIR=t2f"``, what follows the folder's name.
    tilt : {"refuse", "shear"}, optional
        What becomes of DICOM series of a tilted gantry: refused, or given the sheared affine that is exact.
    kind : {"binary", "multiclass", "multilabel", "ordinal", "structures", "objects"}, optional
        Where the source leaves it open. Masks answer ``objects`` too: each connected part is one.
    unlisted : {"skip", "empty"}, optional
        What becomes of images that no row of a table of boxes names: left out, or taken as images without any object.
    search : paths
        Folders in which sets of MedMNIST are looked for first.

    Raises
    ------
    ReadError
        If the source does not exist or its table is damaged.
    DataError
        If it holds no images, or its labels do not make a question.
    ConfigError
        If a layout, kind or set has an unknown name.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"unknown layout '{layout}'. {nearest(layout, LAYOUTS)}")
    if tilt not in {None, *TILTS}:
        raise ConfigError(f"tilt='{tilt}' is not known. {nearest(str(tilt), TILTS)}")
    if unlisted not in {None, *UNLISTED}:
        raise ConfigError(f"unlisted='{unlisted}' is not known. {nearest(str(unlisted), UNLISTED)}")
    request = Request(
        source=str(source),
        target=target,
        labels=None if labels is None else Path(labels),
        id_column=id_column,
        path_column=path_column,
        patient_column=patient_column,
        split_column=split_column,
        mask_column=mask_column,
        sheet=sheet,
        images=images,
        tilt=tilt,
        kind=kind,
        unlisted=unlisted,
        search=tuple(Path(folder) for folder in search),
    )
    if is_archive(Path(request.source)):
        dataset = open_archive(Path(request.source), lambda folder: _open(replace(request, source=str(folder)), layout))
    else:
        dataset = _open(request, layout)
    for note in dataset.notes:
        _log.info("%s: %s", dataset.layout, note)
    return dataset


def _open(request: Request, layout: str | None) -> Dataset:
    sign = None
    if request.labels is None and layout is None and exists(Path(request.source)) and Path(request.source).is_dir():
        sign = _sign(Path(request.source))
    if request.labels is None and sign is None and layout in {None, "table", "dicom_tree"}:
        request = with_table(request)
    name = layout or sign or recognise(request)
    if request.images and name not in {"case_folders", "dicom_tree", "dicom_truth", "files"}:
        raise ConfigError(
            f"--images joins the series of DICOM studies, or the files of a folder a case; this source is of the layout '{name}'"
        )
    dataset = LAYOUTS[name](request)
    if not dataset.cases:
        first = f"; the first, {dataset.skipped[0].case}: {dataset.skipped[0].reason}" if dataset.skipped else ""
        raise DataError(f"'{dataset.name}' holds no case that can be used; {len(dataset.skipped)} were left out{first}")
    if dataset.scheme is not None and dataset.scheme.kind == "objects" and not _has_boxes(dataset):
        told = "objects are the connected parts of the masks"
        dataset = replace(dataset, notes=tuple(dict.fromkeys((*dataset.notes, told))))
    return _tilted(dataset) if request.tilt == "shear" else dataset


def _has_boxes(dataset: Dataset) -> bool:
    return any(isinstance(case.truth, Boxes) for case in dataset)


def _tilted(dataset: Dataset) -> Dataset:
    """The data set whose DICOM series are read with the affine of their tilt."""
    return replace(dataset, cases=tuple(tilt_series(case, "shear") for case in dataset))


def with_table(request: Request) -> Request:
    """The request with its table named, where the source is a table or a folder with one beside its images."""
    path = Path(request.source)
    if request.source.startswith("medmnist:") or not exists(path):
        return request
    if path.is_file():
        return replace(request, source=str(path.parent), labels=path) if path.suffix.lower() in TABLES else request
    tables = _tables(path)
    if len(tables) != 1 or not image_files(path):
        return request
    classes = {name for name, _, _ in class_folders(path)}
    if len(classes) > 1 and not _is_dicom(path) and not names_images(read_table(tables[0], sheet=request.sheet), path):
        return request  # a table of something else beside folders of classes
    return replace(request, labels=tables[0])


def recognise(request: Request) -> str:
    """The layout of a source that shows no sign of its own, from its name and its first files.

    Raises
    ------
    ReadError
        If it does not exist.
    DataError
        If it is an empty folder, or of no known layout.
    """
    if request.source.startswith("medmnist:"):
        return "medmnist"
    path = Path(request.source)
    if not exists(path):
        raise ReadError(f"'{request.source}' does not exist; expected a folder, a table, an .npz or medmnist:NAME")
    if path.is_file():
        return "table" if request.labels is not None and path.suffix.lower() in TABLES else _of_file(path)
    if is_manifest(path):
        return "manifest"
    if request.labels is not None:
        if not exists(request.labels):
            raise ReadError(f"the table '{request.labels}' does not exist")
        if request.labels.suffix.lower() == ".json":
            return "coco"
        return "dicom_tree" if _is_dicom(path) and not request.path_column else "table"
    if next(walk(path), None) is None:
        raise DataError(f"'{path.name}' is empty: no file lies in it or below it")
    if request.images and _is_dicom(path):
        return "dicom_truth" if is_dicom_truth(path) else "files"
    if is_case_folders(path):
        return "case_folders"
    if is_pairs(path):
        return "pairs"
    if _is_dicom(path) and is_dicom_truth(path):
        return "dicom_truth"
    tops = class_folders(path)
    if not tops and len(_tables(path)) > 1 and image_files(path):
        raise DataError(f"'{path.name}' holds {len(_tables(path))} tables; say which one with labels=...")
    if len({name for name, _, _ in tops}) == 1 and _is_dicom(path):
        return "files"  # the folder of a study or series, not of a class
    return "folders" if tops and not _are_patients([folder for _, _, folder in tops]) else "files"


def _sign(folder: Path) -> str | None:
    """The layout of which a folder holds the sign."""
    return next((name for name, holds in SIGNS if holds(folder)), None)


def _are_patients(folders: list[Path]) -> bool:
    """Whether folders hold the DICOM files of one patient each, or the series of one study, and so are no classes.

    The first file of each folder below is looked at.
    """
    if len(folders) < 2 or not _is_dicom(folders[0]):
        return False
    seen: list[set[tuple[str, str]]] = []
    for folder in folders:
        firsts = {path.parent: path for path in reversed(image_files(folder))}.values()
        found = [_instance(path) for path in firsts if reader_of(path) is read_dicom]
        seen.append({(one.patient, one.study) for one in found if one is not None})
    if len(set().union(*seen)) == 1 and all(seen) and "" not in next(iter(seen[0])):
        return True
    patients = [{patient for patient, _ in of} for of in seen]
    names = [name for of in patients for name in of]
    return (
        len(folders) >= 3 and all(len(of) == 1 for of in patients) and len(set(names)) == len(names) and "" not in names
    )


def _instance(path: Path) -> Instance | None:
    try:
        return index_file(path)
    except SagittalError:
        return None  # told when it is read


def _tables(folder: Path) -> list[Path]:
    return [f for f in sorted(folder.iterdir()) if f.suffix.lower() in TABLES and f.is_file()]


def _of_file(path: Path) -> str:
    if path.suffix.lower() == ".npz":
        return "medmnist"
    if path.name == DATASET and _sign(path.parent) in {"msd", "nnunet"}:
        return str(_sign(path.parent))
    if path.suffix.lower() == ".json" and is_coco(path):
        return "coco"
    if reader_of(path) is not None:
        return "files"
    raise DataError(
        f"'{path.name}' is no data set: expected a folder, a CSV, TSV, Excel or Parquet table, a JSON file of COCO, or an .npz"
    )


def _is_dicom(folder: Path) -> bool:
    first = next(iter(image_files(folder)), None)
    return first is not None and reader_of(first) is read_dicom
