"""The files of one DICOM series -> the groups of files that make one image each."""

from __future__ import annotations

import filecmp
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from sagittal.errors import SagittalError
from sagittal.formats.dicom_frames import frame_traits
from sagittal.formats.dicom_index import Instance, with_diffusion
from sagittal.formats.dicom_series import Part, repeats, split_series
from sagittal.read.sources import short_hash


@dataclass(frozen=True)
class Group:
    """Files that make one image: a volume of a DICOM series, or a single file.

    Attributes
    ----------
    files : tuple of Path
    dicom : Instance, optional
        What the index knows of the first file, where it is DICOM.
    label : str
        What tells the volume from the others of its series, safe in a name: ``echo2``; empty for the only one.
    reason : str
        The same in words, or what else is to be said of it.
    volume : str
        Which volume of files that hold several (``volume`` of :func:`sagittal.formats.dicom.read_dicom_series`).
    """

    files: tuple[Path, ...]
    dicom: Instance | None = None
    label: str = ""
    reason: str = ""
    volume: str = ""


def series_name(instance: Instance) -> str:
    """A name for the series of a file that says nothing of the patient: modality and a hash.

    Files without a series are told apart by how they begin.
    """
    if instance.series:
        return f"{instance.modality.lower()}-{short_hash(instance.series)}"
    with instance.path.open("rb") as file:
        return f"{instance.modality.lower()}-{short_hash(file.read(4096).hex())}"


def sort_series(members: list[Instance]) -> list[Group]:
    """The images in the files of one series of one patient, its volumes in a fixed order."""
    members = sorted(members, key=lambda m: (m.number, str(m.path)))
    members, twins = _without_copies(members)
    bundles: dict[str, list[Instance]] = defaultdict(list)
    groups: list[Group] = []
    for member in members:
        if member.grouped:
            alone = "frames" if member.frames == 1 else str(member.path)
            bundles[member.concatenation or alone].append(member)
        elif member.placed and member.frames == 1:
            bundles["slices"].append(member)
        else:
            groups.append(_group([member], twins))
    for bundle in bundles.values():
        groups += _multi_frame(bundle, twins) if bundle[0].grouped else _slices(bundle, twins)
    return groups


def _slices(members: list[Instance], twins: dict[Path, list[Path]]) -> list[Group]:
    traits = [member.traits for member in members]
    if members[0].modality == "MR" and repeats(traits):
        files = [member.path for member in members]
        sample = range(0, len(files), max(len(files) // 8, 1))
        if any("b" in found.told for found in with_diffusion([files[n] for n in sample], [traits[n] for n in sample])):
            traits = with_diffusion(files, traits)
    return [_group([members[n] for n in part.members], twins, part) for part in split_series(traits)]


def _multi_frame(members: list[Instance], twins: dict[Path, list[Path]]) -> list[Group]:
    try:
        frames = [(member, traits) for member in members for traits in frame_traits(member.path)]
    except SagittalError:  # it is told when the file is read
        return [_group([member], twins) for member in members]
    parts = split_series([traits for _, traits in frames])
    if len(parts) == 1:
        return [_group(members, twins)]
    if len(frames) == len(members):
        return [_group([frames[n][0] for n in part.members], twins, part) for part in parts]
    return [_group(members, twins, part, part.label) for part in parts]


def _group(members: list[Instance], twins: dict[Path, list[Path]], part: Part | None = None, volume: str = "") -> Group:
    files = [file for member in members for file in (member.path, *twins.get(member.path, ()))]
    reasons = [part.reason] if part and part.reason else []
    if len(files) > len(members):
        reasons.append("files of one SOP Instance UID differ; they are compared when read")
    return Group(tuple(files), members[0], part.label if part else "", "; ".join(reasons), volume)


def _without_copies(members: list[Instance]) -> tuple[list[Instance], dict[Path, list[Path]]]:
    """Each instance once; and for a file the others that carry its UID with other content."""
    first: dict[str, Instance] = {}
    twins: dict[Path, list[Path]] = defaultdict(list)
    for member in members:
        known = first.setdefault(member.uid or str(member.path), member)
        if known is not member and not filecmp.cmp(known.path, member.path, shallow=False):
            twins[known.path].append(member.path)
    return list(first.values()), twins
