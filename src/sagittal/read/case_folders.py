"""A folder for each case, with its images and masks called alike: ``P1/P1-t1.nii.gz``, ``P1/P1-seg.nii.gz``; as in BraTS."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sagittal.case import Case, ImageSource
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import DataError, SagittalError, nearest
from sagittal.formats.dicom import read_dicom
from sagittal.formats.open_image import READERS, image_suffix, stem
from sagittal.labels import Kind, LabelScheme
from sagittal.read.files import SPLIT_NAMES, walk
from sagittal.read.mask_scheme import MaskScheme, files_of_structures, named_values, place_kind
from sagittal.read.msd import modality_of
from sagittal.read.pair_files import SECOND, is_mask_folder, is_mask_word, structure_of
from sagittal.read.request import Request
from sagittal.read.sources import file_source
from sagittal.read.study_images import parse_images
from sagittal.read.truths import is_lateral
from sagittal.truth import SegmentationSource

_MARKS = "_-. "
#: Folders, and files, that are looked at to tell whether they are cases.
_SAMPLE, _FILES = 40, 20_000
#: ``BraTS-GLI-00005-100`` is the second visit of patient ``BraTS-GLI-00005``.
_VISIT = re.compile(r"(BraTS-[A-Za-z]+-\d{4,6})-\d{3}")


@dataclass
class Folder:
    """The files of one case.

    Attributes
    ----------
    path : Path
    images : dict of str to Path
        By what their names add to that of the folder, lower case.
    masks : list of (str, Path)
        Each with the word of a mask, or, in a folder of masks, with what it outlines.
    """

    path: Path
    images: dict[str, Path] = field(default_factory=dict)
    masks: list[tuple[str, Path]] = field(default_factory=list)
    structures: bool = False

    def role(self, name: str) -> str:
        """What a file's name adds to the folder's; the whole name where it does not begin with it."""
        own = self.path.name
        if name.lower().startswith(own.lower()) and name[len(own) : len(own) + 1] in set(_MARKS):
            return name[len(own) + 1 :].lower()
        return name.lower()


def is_case_folders(root: Path) -> bool:
    """Whether a folder plainly holds one folder a case.

    So it is where two folders or more hold images of the same names (their own folder's name left out), most of them
    several images, or one with a folder of masks, and most have a mask.
    """
    if not root.is_dir():
        return False
    folders = find_case_folders(root, most=_SAMPLE)
    if len(folders) < 2:
        return False
    usual, count = Counter(frozenset(folder.images) for folder in folders).most_common(1)[0]
    masks = sum(bool(folder.masks) for folder in folders)
    several = len(usual) > 1 or any(folder.structures for folder in folders)
    return bool(usual) and several and count >= 2 and count * 2 > len(folders) and masks * 2 > len(folders)


def find_case_folders(root: Path, most: int | None = None) -> list[Folder]:
    """The folders below a folder, or itself, that hold files with the suffix of a volume or picture; not of DICOM.

    Parameters
    ----------
    root : Path
    most : int, optional
        Look no further than so many folders, for a sample.
    """
    found: dict[Path, Folder] = {}
    for looked, file in enumerate(walk(root)):
        if most is not None and looked >= _FILES:
            break
        if READERS.get(image_suffix(file)) in {None, read_dicom}:
            continue
        inside = is_mask_folder(file.parent.name) and file.parent != root
        place = file.parent.parent if inside else file.parent
        if place not in found and len(found) == most:
            break
        folder = found.setdefault(place, Folder(place))
        role = folder.role(stem(file))
        last = re.split(r"[_\-. ]", role)[-1]
        if inside:
            folder.structures = True
            folder.masks.append((structure_of(role) or role, file))
        elif is_mask_word(role) or is_mask_word(last):
            folder.masks.append((role, file))
        else:
            folder.images[role] = file
    return [folder for folder in found.values() if folder.images or folder.masks]


def open_case_folders(request: Request) -> Dataset:
    """Cases with the images and masks of one folder each, the images by the names that the folders share.

    The names of the images are those that most folders hold; `images` chooses and renames some of them
    (``T1=t1n,FLAIR=t2f``). A mask called by a known word (``seg``) is a label map; files in a folder of masks outline one
    structure each, by their names. Folders that lack an image or a mask are reported as skipped. Visits of one patient of
    BraTS count as one patient.

    Raises
    ------
    DataError
        If no folder has an image and a mask, or an image that is asked for is not there.
    """
    root = Path(request.source).resolve()
    kind = place_kind(request.kind)
    folders = find_case_folders(root)
    names = _image_names(folders, request.images)
    skipped: list[Skipped] = []
    whole: list[tuple[Folder, str]] = []
    for folder in folders:
        below = folder.path.relative_to(root).as_posix()
        missing = [name for name, role in names.items() if role not in folder.images]
        files = [*folder.images.values(), *(file for _, file in folder.masks)]
        if missing:
            reason = f"image {', '.join(missing)} is not there" if folder.images else "a mask without image"
            skipped.append(Skipped(below, reason, "incomplete" if folder.images else "no-image"))
        elif not folder.masks:
            skipped.append(Skipped(below, "a case without mask", "no-truth"))
        elif any(file.stat().st_size == 0 for file in files):
            skipped.append(Skipped(below, "the file is empty (0 bytes)", "empty-file"))
        else:
            whole.append((folder, below))
    if not whole:
        first = f"; the first, {skipped[0].case}: {skipped[0].reason}" if skipped else ""
        raise DataError(
            f"'{root.name}' holds no folder with {', '.join(names)} and a mask{first}. Expected {root.name}/CASE/CASE-t1.nii.gz "
            "and CASE-seg.nii.gz"
        )
    truths = _Truths([folder for folder, _ in whole], request, kind)
    cases = []
    for folder, name in whole:
        masks = [(word, file) for word, file in folder.masks if word in truths.asked]
        if not masks:
            skipped.append(Skipped(name, "a case without mask", "no-truth"))
            continue
        try:
            truth = truths.source(name, masks)
        except SagittalError as error:
            skipped.append(Skipped(name, str(error), "unreadable"))
            continue
        images = {key: named_image(name, key, folder.images[role]) for key, role in names.items()}
        split = next((SPLIT_NAMES[part.lower()] for part in Path(name).parts[:-1] if part.lower() in SPLIT_NAMES), None)
        cases.append(Case(name, patient_of(name), images, truth=truth, split=split, source=name))
    visits = len({case.patient for case in cases}) < len(cases)
    others = sorted({role for folder, _ in whole for role in folder.images} - set(names.values()))
    notes = [f"a folder each case, images {', '.join(names)}", *truths.notes]
    notes += [f"not used: {', '.join(others[:12])} (choose images with --images 'A={others[0]}')"] if others else []
    notes += ["visits of one patient of BraTS count as one patient"] if visits else []
    return Dataset(
        root.name, tuple(cases), truths.scheme, skipped=tuple(skipped), layout="case_folders", notes=tuple(notes)
    )


def named_image(case: str, name: str, file: Path) -> ImageSource:
    """An image of a case with several, whose name may say the modality."""
    modality = modality_of(name)
    return file_source(case, file, **({"modality": modality} if modality else {}))


def patient_of(case: str) -> str:
    """The patient of a case: what is left of the name of a visit of BraTS, else the case itself.

    >>> patient_of("BraTS-GLI-00005-100"), patient_of("train/P1")
    ('BraTS-GLI-00005', 'train/P1')
    """
    visit = _VISIT.fullmatch(case.rpartition("/")[2])
    return visit[1] if visit else case


def _image_names(folders: Sequence[Folder], asked: str | None) -> dict[str, str]:
    """Name of each image -> its role."""
    counts: Counter[str] = Counter(role for folder in folders for role in folder.images)
    if asked:
        wanted = parse_images(asked)
        for role in wanted.values():
            if role.lower() not in counts:
                raise DataError(f"no file is called by the image '{role}'. {nearest(role, counts)}")
        return {name: role.lower() for name, role in wanted.items()}
    least = 0.5 * sum(bool(folder.images) for folder in folders)
    common = [role for role, count in counts.items() if count > least]
    if not common:
        raise DataError("the folders hold no image of a common name. Choose with --images 'T1=t1,T2=t2'")
    return {"image": common[0]} if len(common) == 1 else {role: role for role in sorted(common)}


class _Truths:
    """Which masks count, and what they outline.

    Attributes
    ----------
    asked : collection of str
    scheme : LabelScheme
    notes : list of str
    """

    asked: Collection[str]

    def __init__(self, folders: Sequence[Folder], request: Request, kind: Kind) -> None:
        named = named_values(request.target)
        words = Counter(word for folder in folders for word, _ in folder.masks)
        wanted = [part.strip().lower() for part in (request.mask_column or "").split(",") if part.strip()]
        for word in wanted:
            if word not in {one.lower() for one in words}:
                raise DataError(f"no mask is called '{word}'. {nearest(word, words)}")
        self.of_files = any(folder.structures for folder in folders)
        if self.of_files:
            names = [word for word in sorted(words) if not wanted or word.lower() in wanted]
            if request.target and named is None:
                given = [part.strip() for part in request.target.split(",")]
                for name in given:
                    if name not in names:
                        raise DataError(f"no mask outlines '{name}'. {nearest(name, names)}")
                names = given
            self.asked = set(names)
            self.scheme = LabelScheme(kind, tuple(names), "mask", lateral=is_lateral(names))
            self.notes = [
                f"structures {', '.join(names[:12])} by the names of the files; one without a file is unknown"
            ]
            return
        first = {word for word in words if not any(word.endswith(second) for second in SECOND)} or set(words)
        self.asked = {word for word in words if word.lower() in wanted} or first
        files: dict[Path, list[Path]] = defaultdict(list)
        for folder in folders:
            files[folder.path] += [file for word, file in folder.masks if word in self.asked]
        structure = [request.target] if request.target and named is None else []
        self.masks = MaskScheme(list(files.values()), named, *structure, kind=kind)
        self.scheme = self.masks.scheme
        self.notes = [f"masks by the name {', '.join(sorted(self.asked))}", *self.masks.notes()]

    def source(self, case: str, masks: Sequence[tuple[str, Path]]) -> SegmentationSource:
        """The segmentation of a case."""
        if self.of_files:
            return files_of_structures(case, masks)
        return self.masks.source(case, [file for _, file in masks])
