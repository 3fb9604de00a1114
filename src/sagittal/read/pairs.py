"""Masks beside their images: in sibling folders (``images``, ``masks``) or told by a suffix (``x.jpg``, ``x_mask.png``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sagittal.case import Case
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import DataError, SagittalError, nearest
from sagittal.formats.label_map import FOREGROUND
from sagittal.formats.open_image import stem
from sagittal.labels import Kind, LabelScheme
from sagittal.read.mask_scheme import MaskScheme, files_of_structures, named_values, place_kind
from sagittal.read.pair_files import SECOND, Found, find_pairs, patients_of
from sagittal.read.request import Request
from sagittal.read.sources import file_source
from sagittal.read.studies import unique
from sagittal.read.truths import is_lateral
from sagittal.truth import SegmentationSource


def open_pairs(request: Request) -> Dataset:
    """Cases with masks that lie beside their images.

    Masks of one value besides 0 outline ``foreground``; in masks of several values each is a structure, called by its
    number or as the target says: ``liver=1,tumour=2``, or ``whole=1+2,core=1`` for regions of several values. Several
    files of an image, each of one structure, are called by their names (``case_liver.nii.gz``); what has no file is
    unknown in that case. Of several readings of one picture, as those of CHASE, the first counts; the mask column
    names another (``2ndHO``). Images without mask and masks without image are reported as skipped.

    Raises
    ------
    DataError
        If no image has a mask, or a suffix or structure that is asked for is not there.
    """
    root = Path(request.source).resolve()
    kind = place_kind(request.kind)
    wanted = [part.strip() for part in (request.mask_column or "").split(",") if part.strip()]
    found = find_pairs(root, wanted)
    if not any(pair.masks for pair in found.pairs):
        raise DataError(
            f"'{root.name}' holds no image with its mask: {len(found.pairs)} images without mask"
            f"{_listed(pair.image.relative_to(root).as_posix() for pair in found.pairs)} and {len(found.skipped)} masks "
            f"without image{_listed(one.case for one in found.skipped)}. Expected {root.name}/images/x.png and "
            f"{root.name}/masks/x.png, or x.png and x_mask.png"
        )
    made = _Truths(found, request.target, wanted, kind)
    skipped = list(found.skipped)
    cases = []
    for pair in found.pairs:
        below = pair.image.relative_to(root)
        chosen = [(s, file) for s, file in pair.masks if s in made.asked]
        if not chosen:
            skipped.append(Skipped(below.as_posix(), "an image without mask", "no-truth"))
            continue
        name = below.with_name(stem(pair.image)).as_posix()
        if any(file.stat().st_size == 0 for file in (pair.image, *(f for _, f in chosen))):
            skipped.append(Skipped(name, "the file is empty (0 bytes)", "empty-file"))
            continue
        try:
            truth = made.source(name, chosen)
        except SagittalError as error:
            skipped.append(Skipped(name, str(error), "unreadable"))
            continue
        images = {"image": file_source(name, pair.image)}
        cases.append(Case(name, name, images, truth=truth, split=pair.split, source=below.as_posix()))
    told = unique(cases)
    patients = patients_of([case.id for case in told])
    notes = [*made.notes]
    if patients:
        told = [replace(case, patient=patients[case.id]) for case in told]
        notes.append("cases whose names differ in the side only (L and R) count as one patient (guessed)")
    return Dataset(root.name, tuple(told), made.scheme, skipped=tuple(skipped), layout="pairs", notes=tuple(notes))


class _Truths:
    """Which masks count, and what they outline.

    Attributes
    ----------
    asked : set of str
        The endings of the files that are used.
    scheme : LabelScheme
    notes : list of str
    """

    def __init__(self, found: Found, target: str | None, wanted: Sequence[str], kind: Kind) -> None:
        named = named_values(target)
        known = [*found.suffixes, *found.structures]
        for word in wanted:
            if word.lower() not in {one.lower() for one in known}:
                raise DataError(f"no file's name ends in '{word}'. {nearest(word, known)}")
        self.of_files = bool(found.structures) and (not wanted or any(w in found.structures for w in wanted))
        self.notes = [f"masks {found.where}"]
        if self.of_files:
            names = [name for name in wanted or found.structures if name in found.structures]
            if target is not None and named is None:
                names = _chosen(target, names)
            self.asked = set(names)
            self.scheme = LabelScheme(kind, tuple(names), "mask", lateral=is_lateral(names))
            self.notes.append(f"structures {', '.join(names)} by the names of the files; one without a file is unknown")
            left = [word for word in known if word not in self.asked]
        else:
            chosen = {one for one in found.suffixes if one.lower() in {w.lower() for w in wanted}}
            self.asked, structure = _asked_suffixes(target if named is None else None, found.suffixes, chosen)
            files = [[f for s, f in pair.masks if s in self.asked] for pair in found.pairs]
            self.masks = MaskScheme([of for of in files if of], named, structure, kind=kind)
            self.scheme = self.masks.scheme
            if not found.beside:
                self.notes = [f"masks by the suffix {', '.join(one for one in found.suffixes if one in self.asked)}"]
            self.notes += self.masks.notes()
            left = [one for one in known if one not in self.asked]
        if left:
            self.notes.append(f"other masks, not used: {', '.join(left)} (choose with --mask-column {left[0]})")

    def source(self, case: str, files: Sequence[tuple[str, Path]]) -> SegmentationSource:
        """The segmentation of a case."""
        if self.of_files:
            return files_of_structures(case, files)
        return self.masks.source(case, [file for _, file in files])


def _chosen(target: str, names: Sequence[str]) -> list[str]:
    wanted = [part.strip() for part in target.split(",")]
    for name in wanted:
        if name not in names:
            raise DataError(f"no mask outlines '{name}'. {nearest(name, names)}")
    return [name for name in names if name in wanted]


def _asked_suffixes(target: str | None, suffixes: Sequence[str], wanted: set[str]) -> tuple[set[str], str]:
    """The suffixes whose masks count, and what a mask of one value is called.

    A target that is no suffix names the structure.
    """
    first = wanted or {s for s in suffixes if s.lower() not in SECOND} or set(suffixes)
    if target is None:
        return first, FOREGROUND
    chosen = {s for s in suffixes if s.lower() == target.strip().lower()}
    if chosen:
        return chosen, FOREGROUND
    if "," in target:
        raise DataError(f"masks of one value hold one structure, not '{target}'; name values: 'liver=1,tumour=2'")
    return first, target.strip()


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return f" ({', '.join(shown[:5])}{' ...' if len(shown) > 5 else ''})" if shown else ""
