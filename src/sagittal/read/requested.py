"""What a user names on a command line or in a list -> cases, and what is not there as failures of their own."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sagittal.case import Case
from sagittal.dataset import Dataset
from sagittal.errors import ConfigError, ReadError, nearest
from sagittal.formats.dicom import TILTS
from sagittal.formats.open_image import stem
from sagittal.prediction import Failure
from sagittal.read.case_folders import find_case_folders, named_image, patient_of
from sagittal.read.files import TABLES, expand, image_files
from sagittal.read.folders import join_studies
from sagittal.read.manifest import is_manifest, read_manifest
from sagittal.read.sources import file_source, tilt_series
from sagittal.read.studies import find_studies, unique
from sagittal.read.study_images import parse_images
from sagittal.read.table import open_images

#: How nnU-Net numbers the channels of a case.
_CHANNEL = re.compile(r"(.+)_(\d{4})")
#: Kinds of what is left out that a user asked for all the same.
_MISSING = frozenset({"no-image", "incomplete", "empty-file", "unreadable"})


def find_requested(
    studies: str | Path | Iterable[str | Path],
    *,
    images: Sequence[str] = (),
    patterns: str | None = None,
    tilt: str | None = None,
) -> tuple[list[Case], list[Failure]]:
    """Cases in files, folders, globs, tables, manifests and ``@lists``; what is not there becomes a failure of its own.

    Parameters
    ----------
    studies : path, or several
        A table names its images as for training; its other columns are the case's table. A manifest is taken without its
        truth.
    images : sequence of str
        What a model calls its images. Where there are several, a case is a folder that holds a file for each, called so
        (``P1/P1-T1.nii.gz``, ``P1/FLAIR.nii.gz``), numbered files in this order (``P1_0000.nii.gz``), a file with so
        many channels, or a row of a table with columns called so.
    patterns : str, optional
        Where the images are called otherwise: ``"T1=t1n,FLAIR=t2f"``, endings of files or patterns of the
        SeriesDescription.
    tilt : {"refuse", "shear"}, optional
        What becomes of DICOM series of a tilted gantry.

    Raises
    ------
    ReadError
        If nothing at all is found.
    ConfigError
        If `tilt` is another word, or `patterns` names other images than the model has.
    """
    if tilt not in {None, *TILTS}:
        raise ConfigError(f"tilt='{tilt}' is not known. {nearest(str(tilt), TILTS)}")
    wanted = [studies] if isinstance(studies, (str, Path)) else list(studies)
    roles = _roles(images, patterns)
    paths: list[Path] = []
    failures: list[Failure] = []
    for text in _listed(wanted):
        try:
            paths += expand([text])
        except ReadError:
            failures.append(Failure(text, f"{text}: there is no such file, folder or match", ReadError.__name__))
    cases: list[Case] = []
    plain: list[Path] = []
    for path in paths:
        if path.is_dir() and is_manifest(path):
            cases += [replace(case, truth=None) for case in read_manifest(path)]
        elif path.suffix.lower() in TABLES:
            found = open_images(path, tuple(images))
            cases += found.cases
            failures += _failed(found)
        else:
            plain.append(path)
    if plain and len(roles) > 1:
        named, lacking, plain = _named(plain, roles, patterns)
        cases += named
        failures += lacking
    if plain:
        cases += find_studies(plain)
    if not cases and not failures:
        raise ReadError(f"no study was found in {', '.join(map(str, wanted)) or 'an empty list'}")
    cases = unique(cases)
    return [tilt_series(case, tilt) for case in cases] if tilt == "shear" else cases, failures


def _roles(images: Sequence[str], patterns: str | None) -> dict[str, str]:
    """Name of an image -> what its file or series is called."""
    if not patterns:
        return {name: name for name in images}
    given = parse_images(patterns)
    for name in given:
        if images and name not in images:
            raise ConfigError(f"--images names '{name}', which the model does not take. {nearest(name, images)}")
    missing = [name for name in images if name not in given]
    if missing:
        raise ConfigError(f"--images leaves out {', '.join(missing)}, which the model needs as well")
    return given


def _failed(found: Dataset) -> list[Failure]:
    return [Failure(one.case, f"case {one.case}: {one.reason}") for one in found.skipped if one.code in _MISSING]


def _named(
    paths: Sequence[Path], roles: dict[str, str], patterns: str | None
) -> tuple[list[Case], list[Failure], list[Path]]:
    """Cases with an image for each name, cases that lack one, and the paths in which nothing of that form is."""
    cases: list[Case] = []
    failures: list[Failure] = []
    rest: list[Path] = []
    for path in paths:
        found, lacking = _of_files(path, roles) if path.is_dir() else ([], [])
        if not found and not lacking and path.is_dir() and patterns:
            found, left = join_studies(path, roles)
            lacking = [Failure(one.case, f"case {one.case}: {one.reason}") for one in left if one.code in _MISSING]
        if (
            not found
            and not lacking
            and path.is_file()
            and path.name.lower().endswith((".nii", ".nii.gz", ".nrrd", ".mha"))
        ):
            name = stem(path)
            channels = {image: file_source(name, path, channel=n) for n, image in enumerate(roles)}
            found = [Case(name, name, channels, source=path.name)]
        if not found and not lacking:
            rest.append(path)
        cases += found
        failures += lacking
    return cases, failures, rest


def _of_files(root: Path, roles: dict[str, str]) -> tuple[list[Case], list[Failure]]:
    """The cases of a folder of folders with named files, else of one with numbered files."""
    cases: list[Case] = []
    failures: list[Failure] = []
    wanted = {name: role.lower() for name, role in roles.items()}
    for folder in find_case_folders(root):
        there = [name for name, role in wanted.items() if role in folder.images]
        name = folder.path.name if folder.path == root else folder.path.relative_to(root).as_posix()
        if len(there) == len(wanted):
            sources = {image: named_image(name, image, folder.images[role]) for image, role in wanted.items()}
            cases.append(Case(name, patient_of(name), sources, source=name))
        elif there:
            lacks = ", ".join(sorted(set(wanted) - set(there)))
            failures.append(
                Failure(name, f"case {name}: image {lacks} is not there; the model needs {', '.join(roles)}")
            )
    return (cases, failures) if cases or failures else _of_numbers(root, list(roles))


def _of_numbers(root: Path, names: Sequence[str]) -> tuple[list[Case], list[Failure]]:
    channels: dict[str, dict[int, Path]] = defaultdict(dict)
    for file in image_files(root):
        match = _CHANNEL.fullmatch(stem(file))
        if match is None:
            return [], []
        channels[file.relative_to(root).with_name(match[1]).as_posix()][int(match[2])] = file
    cases: list[Case] = []
    failures: list[Failure] = []
    for name, files in channels.items():
        if set(files) == set(range(len(names))):
            sources = {image: named_image(name, image, files[n]) for n, image in enumerate(names)}
            cases.append(Case(name, name, sources, source=name))
        else:
            told = f"has the channels {', '.join(f'{n:04d}' for n in sorted(files))}, the model takes {len(names)}"
            failures.append(Failure(name, f"case {name}: {told} ({', '.join(names)})"))
    return cases, failures


def _listed(wanted: Iterable[str | Path]) -> list[str]:
    """Arguments with each ``@file`` replaced by its lines."""
    texts = []
    for item in map(str, wanted):
        if not item.startswith("@"):
            texts.append(item)
            continue
        try:
            lines = Path(item[1:]).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ReadError(f"the list {item[1:]} cannot be read: {error}") from error
        texts += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return texts
