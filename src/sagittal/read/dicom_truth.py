"""A DICOM tree in which segmentations or structure sets outline image series: those series with that truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sagittal.case import Case
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import DataError, ReadError, SagittalError
from sagittal.formats.dicom_file import open_dicom, scan_dicom
from sagittal.formats.dicom_references import check_references, references
from sagittal.formats.dicom_seg import segment_names
from sagittal.formats.outlines import object_kind
from sagittal.formats.rtstruct import roi_names
from sagittal.read.dicom_group import Group
from sagittal.read.files import image_files, sort_files
from sagittal.read.request import Request
from sagittal.read.sources import make_mask_source, rename_mask, short_hash
from sagittal.read.studies import image_source, make_case, unique
from sagittal.read.study_images import join_series, parse_images
from sagittal.read.truths import scheme_of_places
from sagittal.truth import SegmentationSource

#: Modality of an object that outlines -> how its structures are named and its masks are read.
_NAMES = {"SEG": segment_names, "RTSTRUCT": roi_names}
_TAGS = {"SOPInstanceUID": 0x00080018}


def is_dicom_truth(folder: Path) -> bool:
    """Whether a folder of DICOM files holds a segmentation or structure set."""
    return any(object_kind(path) in _NAMES for path in image_files(folder))


def open_dicom_truth(request: Request) -> Dataset:
    """One case for each image volume that a DICOM SEG or RTSTRUCT of the tree refers to, with it as truth.

    Headers alone are read. Several objects that outline different structures of one volume are joined. Volumes that none
    outlines, objects whose images are missing, and volumes of which one structure is outlined twice (by several
    observers, or in several versions) are reported as skipped. Where `images` names several series by patterns, each study
    is one case, outlined where one of them is.

    Raises
    ------
    DataError
        If the tree holds no such objects, or none of them refers to images that are there.
    """
    root = Path(request.source)
    files = image_files(root)
    objects = {path: modality for path in files if (modality := object_kind(path)) in _NAMES}
    if not objects:
        raise DataError(f"'{root.name}' holds no DICOM segmentation (SEG) or structure set (RTSTRUCT)")
    groups, skipped = sort_files([path for path in files if path not in objects])
    groups = [found for found in groups if found.dicom is not None]
    finder = _Finder(groups)
    outlined: dict[int, list[tuple[Path, tuple[str, ...]]]] = defaultdict(list)
    for path, modality in sorted(objects.items()):
        try:
            header = open_dicom(path, pixels=False)
            place = finder.find(header, modality)
            outlined[place].append((path, _NAMES[modality](header)))
        except SagittalError as error:
            name = f"{modality.lower()}-{short_hash(str(path.relative_to(root)))}"
            skipped.append(Skipped(name, str(error), "unreadable"))
    named: list[str] = []
    bare: list[str] = []
    cases: list[Case] = []
    told = unique([make_case(found, root) for found in groups])
    for number, (case, found) in enumerate(zip(told, groups, strict=True)):
        names = [name for _, of in outlined[number] for name in of]
        if not names:
            bare.append(case.id)
        elif len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            skipped.append(
                Skipped(
                    case.id,
                    f"{len(outlined[number])} objects outline '{twice[0]}', by several observers or in several versions; "
                    "leave one of them in the tree",
                    "ambiguous",
                )
            )
        else:
            named += [name for name in names if name not in named]
            cases.append(replace(case, truth=_truth(case.id, found, [path for path, _ in outlined[number]], names)))
    if not cases:
        raise DataError(
            f"'{root.name}': none of its {len(objects)} segmentations and structure sets outlines images that are there; the "
            f"first: {skipped[0].reason if skipped else 'unknown'}"
        )
    if request.images:
        series = [(case.id, found) for case, found in zip(told, groups, strict=True)]
        cases, left = _joined(series, {case.id: case for case in cases}, parse_images(request.images))
        used = {name for case in cases for name in case.source.split(", ")}
        skipped += [one for one in left if one.case not in bare]
        bare = [name for name in bare if name not in used]
    why = "no segmentation or structure set of the tree refers to it"
    skipped += [Skipped(name, why, "no-truth") for name in bare]
    if not cases:
        raise DataError(
            f"'{root.name}': no study has the series of --images with one of them outlined; the first: {skipped[0].reason}"
        )
    scheme = scheme_of_places("structures", named, request, target="segmentation")
    return Dataset(
        root.resolve().name,
        tuple(cases),
        scheme,
        skipped=tuple(skipped),
        layout="dicom_truth",
        notes=(f"truth from {len(objects)} DICOM segmentations and structure sets",),
    )


def _joined(
    series: Sequence[tuple[str, Group]], outlined: Mapping[str, Case], patterns: Mapping[str, str]
) -> tuple[list[Case], list[Skipped]]:
    """A case for each study that has the series of the patterns, with the truth of the one that is outlined."""
    names = {id(found): name for name, found in series}
    joined, skipped = join_series(series, patterns)
    cases = []
    for study, images in joined:
        members = [names[id(found)] for found in images.values()]
        with_truth = [outlined[name] for name in members if name in outlined]
        if len(with_truth) != 1:
            why = f"{len(with_truth) or 'none'} of its {len(members)} series {'are' if with_truth else 'is'} outlined; one was expected"
            skipped.append(Skipped(study, why, "ambiguous" if with_truth else "no-truth"))
            continue
        one = with_truth[0]
        sources = {key: image_source(study, found) for key, found in images.items()}
        truth = rename_mask(study, one.truth) if isinstance(one.truth, SegmentationSource) else one.truth
        cases.append(Case(study, one.patient, sources, truth=truth, source=", ".join(members)))
    return unique(cases), skipped


def _truth(case: str, found: Group, objects: Sequence[Path], names: Sequence[str]) -> Any:
    options: dict[str, Any] = {"objects": len(objects)}
    if found.volume:
        options["reading"] = {"volume": found.volume}
    return make_mask_source(case, "dicom_truth", (*objects, *found.files), options, structures=names)


class _Finder:
    """Finds the image volume to which an object refers."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        self.by_series: dict[str, list[int]] = defaultdict(list)
        for number, found in enumerate(groups):
            if found.dicom is not None:
                self.by_series[found.dicom.series].append(number)
        self.instances: dict[str, int] = {}

    def find(self, header: Any, modality: str) -> int:
        """The number of the group.

        Raises
        ------
        ReadError
            If its images are not there, or not all, or belong to several volumes.
        """
        referred = references(header)
        places = [number for series in referred for number in self.by_series.get(series, [])]
        wanted = set().union(*referred.values())
        if len(places) > 1 or not places:
            among = self._of_instances(wanted, places or range(len(self.groups)))
            places = sorted(among)
        if not places:
            raise ReadError(
                f"{modality}: refers to images that are not in the tree"
                if referred
                else f"{modality}: refers to no images, so nothing says what was outlined"
            )
        if len(places) > 1:
            raise ReadError(f"{modality}: refers to images of {len(places)} volumes; one was expected")
        check_references(header, self.groups[places[0]].files, modality, by_instance=modality == "RTSTRUCT")
        return places[0]

    def _of_instances(self, wanted: set[str], among: Sequence[int]) -> set[int]:
        for number in among:
            for path in self.groups[number].files:
                self.instances.setdefault(scan_dicom(path, _TAGS)["SOPInstanceUID"], number)
        return {self.instances[uid] for uid in wanted if self.instances.get(uid) in set(among)}
