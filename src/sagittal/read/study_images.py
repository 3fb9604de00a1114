"""Several series of one DICOM study as the named images of one case, told by patterns of the SeriesDescription.

The description is free text that may say who the patient is: it is compared, and never shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from sagittal.dataset import Skipped
from sagittal.errors import ConfigError, SagittalError
from sagittal.formats.dicom_file import scan_dicom
from sagittal.read.dicom_group import Group
from sagittal.read.sources import short_hash

_DESCRIPTION = {"SeriesDescription": 0x0008103E}


def parse_images(text: str) -> dict[str, str]:
    """The name of each image and the pattern of its series.

    Raises
    ------
    ConfigError
        If the text is not of the form ``NAME=PATTERN,NAME=PATTERN``.

    Examples
    --------
    >>> parse_images("T1=*T1*PRE*, FLAIR=*FLAIR*")
    {'T1': '*T1*PRE*', 'FLAIR': '*FLAIR*'}
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        name, mark, pattern = (piece.strip() for piece in part.partition("="))
        if not (name and mark and pattern) or name in found:
            raise ConfigError(
                f"--images '{text[:80]}': expected a name and a pattern of the SeriesDescription for each image, such as "
                "'T1=*T1*PRE*,FLAIR=*FLAIR*'"
            )
        found[name] = pattern
    return found


def join_series(
    series: Sequence[tuple[str, Group]], patterns: Mapping[str, str]
) -> tuple[list[tuple[str, dict[str, Group]]], list[Skipped]]:
    """The studies of which each pattern fits exactly one volume, named ``study-HASH``; and what is left over, and why.

    Parameters
    ----------
    series : sequence of (str, Group)
        Volumes by their own names.
    patterns : mapping of str to str
        As :func:`parse_images` gives them; ``*`` and ``?`` stand for anything, case does not count.
    """
    studies: dict[str, list[tuple[str, Group]]] = defaultdict(list)
    for name, group in series:
        studies[group.dicom.study if group.dicom and group.dicom.study else name].append((name, group))
    joined: list[tuple[str, dict[str, Group]]] = []
    skipped: list[Skipped] = []
    for study, members in studies.items():
        case = f"study-{short_hash(study)}"
        told = [(name, group, _description(group)) for name, group in members]
        fits = {
            image: [(name, group) for name, group, text in told if fnmatchcase(text, pattern.lower())]
            for image, pattern in patterns.items()
        }
        taken = {name for of in fits.values() for name, _ in of}
        bad = [
            f"{len(of) or 'no'} series {'fit' if len(of) > 1 else 'fits'} the pattern of '{image}'"
            for image, of in fits.items()
            if len(of) != 1
        ]
        if bad:
            skipped.append(Skipped(case, f"{', '.join(bad)}; expected one for each (--images)", "incomplete"))
        else:
            joined.append((case, {image: of[0][1] for image, of in fits.items()}))
        left = [name for name, _ in members if name not in taken]
        skipped += [Skipped(name, "a series that no pattern of --images names", "selection") for name in left]
    return joined, skipped


def _description(group: Group) -> str:
    try:
        return scan_dicom(group.files[0], _DESCRIPTION)["SeriesDescription"].strip().lower()
    except SagittalError:
        return ""
