"""Which series a model may have: the rules of the service's file, and what the model itself was made for.

Both must agree before a model sees a series. Free text of a header is compared and never shown: reasons name the rule.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sagittal.errors import ConfigError, nearest

Prefer = Literal["thinnest", "most", "newest"]
PREFERENCES: tuple[Prefer, ...] = ("thinnest", "most", "newest")
Role = Literal["answers", "watches"]
ROLES: tuple[Role, ...] = ("answers", "watches")

#: Kinds of picture that one model may have learnt from alike (as ``sagittal.model.gate.SAME_KIND``; a test compares them,
#: as that module loads torch, which the process of the pages must not).
SAME_KIND = ({"CR", "DX", "RG"}, {"XC", "DMS", "GM"}, {"OP", "OPM"})
#: What is never an input: reports, masks, presentations, captures of pages, plans.
NEVER = frozenset(
    {
        "SEG",
        "SR",
        "KO",
        "PR",
        "RTSTRUCT",
        "RTPLAN",
        "RTDOSE",
        "RTRECORD",
        "REG",
        "FID",
        "RWV",
        "DOC",
        "AU",
        "ECG",
        "PLAN",
    }
)
#: SOP classes of the same, with their sub-classes: objects that say one modality and are another thing (PS3.4 B.5).
NEVER_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.66",  # segmentation, surface, registration, fiducials
    "1.2.840.10008.5.1.4.1.1.88",  # reports and key objects
    "1.2.840.10008.5.1.4.1.1.11",  # presentation states
    "1.2.840.10008.5.1.4.1.1.104",  # encapsulated documents
    "1.2.840.10008.5.1.4.1.1.481",  # radiotherapy
    "1.2.840.10008.5.1.4.1.1.9",  # waveforms
)
#: Secondary captures are pictures of pages rather than of a patient, unless a rule asks for them.
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
#: Who makes Sagittal's own results; one that comes back from a PACS is known by it.
OWN = "Sagittal"
#: How far beyond the range of its training studies a model may be used: voxel sizes by a quarter, sizes by two.
SPACING_SLACK, SIZE_SLACK = 1.25, 2.0
#: A header's text that a pattern looks at; LO holds 64 characters (PS3.5 6.2).
_TEXT = 256


class Match(NamedTuple):
    """Whether a series fits, and why or why not, in words without header text."""

    fits: bool
    reason: str


@dataclass(frozen=True)
class SeriesFacts:
    """What rules look at, of one complete series.

    Parameters
    ----------
    id : int
        Of its row.
    modality, body_part, description, manufacturer : str
        As the header has them; empty where it does not say.
    thickness_mm : float, optional
    contrast : bool, optional
        ``None`` where the header does not say.
    images : int
        Frames of all its instances.
    size : tuple of int
        (slices, rows, columns); empty where not known.
    spacing_mm : tuple of float
        (between slices, between rows, between columns); empty where not known.
    newest : float
        When its last image came.
    sop_classes : frozenset of str
    own : bool
        Whether Sagittal made it.
    problem : str
        Why nothing of it may be used, in words; empty where it may.
    """

    id: int
    modality: str = ""
    body_part: str = ""
    description: str = ""
    manufacturer: str = ""
    thickness_mm: float | None = None
    contrast: bool | None = None
    images: int = 1
    size: tuple[float, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    newest: float = 0.0
    sop_classes: frozenset[str] = frozenset()
    own: bool = False
    problem: str = ""


@dataclass(frozen=True)
class SeriesRule:
    """One ``[[model.series]]``: what a series must be. What is left out does not matter.

    Parameters
    ----------
    modality, body_part : tuple of str
        Any of them, case ignored.
    description, manufacturer : str
        Regular expression that must be found somewhere, case ignored.
    exclude : str
        Regular expression that must not be found in the description.
    thickness_mm : (low, high), optional
    contrast : bool, optional
    images_least, images_most : int
        Frames; 0 for no limit.
    captures : bool
        Whether secondary captures may be used.
    prefer : {"thinnest", "most", "newest"}
        Which of several that fit.
    image : str
        Of a model with several inputs, the name of the one that this series is for.

    Raises
    ------
    ConfigError
        If a pattern is no regular expression, or a value makes no sense.

    Examples
    --------
    >>> rule = SeriesRule(modality=("CT",), description="lung|chest", thickness_mm=(0, 3))
    >>> rule.match(SeriesFacts(1, modality="CT", description="Lung 1.0 B60f", thickness_mm=1.0))
    Match(fits=True, reason='fits the rule')
    >>> rule.match(SeriesFacts(1, modality="CT", description="Lung 5.0", thickness_mm=5.0)).reason
    'slice thickness 5 mm, the rule asks for 0 to 3 mm'
    """

    modality: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    description: str = ""
    exclude: str = ""
    thickness_mm: tuple[float, float] | None = None
    contrast: bool | None = None
    manufacturer: str = ""
    images_least: int = 0
    images_most: int = 0
    captures: bool = False
    prefer: Prefer = "thinnest"
    image: str = ""

    def __post_init__(self) -> None:
        if self.prefer not in PREFERENCES:
            raise ConfigError(
                f"model.series: prefer = '{self.prefer}' is not known. {nearest(self.prefer, PREFERENCES)}"
            )
        for name in ("description", "exclude", "manufacturer"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ConfigError(
                    f"model.series: {name} = '{getattr(self, name)}' is no regular expression: {error}"
                ) from error
        if self.thickness_mm is not None:
            if len(self.thickness_mm) != 2 or not 0 <= self.thickness_mm[0] <= self.thickness_mm[1]:
                raise ConfigError(
                    f"model.series: thickness_mm = {list(self.thickness_mm)}; two numbers were expected, such as [0, 3]"
                )
            object.__setattr__(self, "thickness_mm", tuple(self.thickness_mm))
        if self.images_least < 0 or (self.images_most and self.images_most < self.images_least):
            raise ConfigError(
                f"model.series: images from {self.images_least} to {self.images_most}: the least is above the most"
            )
        for name in ("modality", "body_part"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))

    def match(self, facts: SeriesFacts) -> Match:
        """Whether a series is what the rule asks for."""
        if self.modality and _upper(facts.modality) not in {_upper(one) for one in self.modality}:
            return Match(False, f"modality {_code(facts.modality)}, the rule asks for {' or '.join(self.modality)}")
        if self.body_part and not any(same_part(facts.body_part, one) for one in self.body_part):
            said = "not stated" if not facts.body_part else "another"
            return Match(False, f"body part {said}, the rule asks for {' or '.join(self.body_part)}")
        if not _found(self.description, facts.description):
            return Match(False, "its description does not fit the rule's pattern")
        if self.exclude and _found(self.exclude, facts.description):
            return Match(False, "its description fits the pattern that the rule excludes")
        if not _found(self.manufacturer, facts.manufacturer):
            return Match(False, "its manufacturer does not fit the rule's pattern")
        if self.thickness_mm is not None:
            low, high = self.thickness_mm
            if facts.thickness_mm is None:
                return Match(False, f"states no slice thickness, the rule asks for {low:g} to {high:g} mm")
            if not low <= facts.thickness_mm <= high:
                return Match(
                    False, f"slice thickness {facts.thickness_mm:g} mm, the rule asks for {low:g} to {high:g} mm"
                )
        if self.contrast is not None and facts.contrast is not self.contrast:
            said = {None: "not stated", True: "given", False: "not given"}[facts.contrast]
            return Match(False, f"contrast agent {said}, the rule asks for {'one' if self.contrast else 'none'}")
        if facts.images < self.images_least:
            return Match(False, f"{_images(facts.images)}, the rule asks for at least {self.images_least}")
        if self.images_most and facts.images > self.images_most:
            return Match(False, f"{_images(facts.images)}, the rule asks for at most {self.images_most}")
        return Match(True, "fits the rule")


@dataclass(frozen=True)
class Use:
    """What a model was made for, as far as a header can tell; from its package, without its networks.

    Parameters
    ----------
    modality, body_part : str
        ``"OT"`` and empty where not stated.
    dimensions : int
    size : (low, high) for each array axis
        Of the training studies; empty where not known.
    spacing_mm : (low, high) for each array axis
    images : tuple of str
        Names of its inputs.
    """

    modality: str = "OT"
    body_part: str = ""
    dimensions: int = 2
    size: tuple[tuple[float, float], ...] = ()
    spacing_mm: tuple[tuple[float, float], ...] = ()
    images: tuple[str, ...] = ("image",)

    def match(self, facts: SeriesFacts) -> Match:
        """Whether the model was made for such a series.

        What a header does not say cannot be checked and passes; the process of the model looks again at the images
        themselves. Sizes and voxel sizes are compared in descending order: a volume may be stored along any of its axes.

        Examples
        --------
        >>> Use("CT", dimensions=3, spacing_mm=((1, 3), (0.5, 1), (0.5, 1))).match(
        ...     SeriesFacts(1, modality="CT", images=40, spacing_mm=(8.0, 0.7, 0.7))).reason
        'voxels of 8 x 0.7 x 0.7 mm, the model was made for 1 to 3 x 0.5 to 1 x 0.5 to 1 mm'
        """
        if not _same_modality(facts.modality, self.modality):
            return Match(False, f"modality {_code(facts.modality)}, the model was made for {self.modality}")
        if self.body_part and facts.body_part and not same_part(facts.body_part, self.body_part):
            return Match(False, f"another body part than {self.body_part}, which the model was made for")
        if self.dimensions == 3 and facts.images < 2:
            return Match(False, "a single image, the model was made for volumes")
        if self.spacing_mm and _outside(facts.spacing_mm[-len(self.spacing_mm) :], self.spacing_mm, SPACING_SLACK):
            told = " x ".join(f"{v:g}" for v in facts.spacing_mm[-len(self.spacing_mm) :])
            return Match(False, f"voxels of {told} mm, the model was made for {_ranges(self.spacing_mm)} mm")
        if self.size and _outside(facts.size[-len(self.size) :], self.size, SIZE_SLACK):
            told = " x ".join(f"{v:g}" for v in facts.size[-len(self.size) :])
            return Match(False, f"{told} voxels, the model was made for {_ranges(self.size)}")
        return Match(True, "is what the model was made for")


def usable(facts: SeriesFacts, *, captures: bool = False) -> Match:
    """Whether anything may be made of a series at all, whatever the rules say.

    Parameters
    ----------
    facts : SeriesFacts
    captures : bool
        Whether secondary captures count as images.
    """
    if facts.problem:
        return Match(False, f"has a problem: {facts.problem}")
    if facts.own or facts.manufacturer.strip() == OWN:
        return Match(False, "is a result of Sagittal's")
    if _upper(facts.modality) in NEVER:
        return Match(False, f"holds {_code(facts.modality)} objects, not images of a patient")
    if any(one == root or one.startswith(f"{root}.") for one in facts.sop_classes for root in NEVER_CLASSES):
        return Match(False, "holds objects that are not images of a patient")
    if not captures and any(one == CAPTURE or one.startswith(f"{CAPTURE}.") for one in facts.sop_classes):
        return Match(False, "holds secondary captures, which no rule asks for")
    if not facts.images:
        return Match(False, "holds no images")
    return Match(True, "holds images")


def rank(rule: SeriesRule, facts: SeriesFacts) -> tuple[float, ...]:
    """Ascending: the series to be preferred comes first; ties are settled by the other preferences, then by its row."""
    thin = facts.thickness_mm if facts.thickness_mm is not None else float("inf")
    values = {"thinnest": thin, "most": -float(facts.images), "newest": -facts.newest}
    return (values.pop(rule.prefer), *(values[name] for name in PREFERENCES if name in values), float(facts.id))


def same_part(found: str, wanted: str) -> bool:
    """Whether two names of a body part mean the same: case, blanks and a longer name of it do not matter.

    >>> same_part("LOWER LEG", "lower_leg"), same_part("CHESTABDPELVIS", "CHEST"), same_part("", "CHEST")
    (True, True, False)
    """
    a, b = (re.sub(r"[^A-Z0-9]", "", text.upper()) for text in (found, wanted))
    return bool(a and b) and (a == b or a in b or b in a)


def _same_modality(found: str, expected: str) -> bool:
    found, expected = _upper(found), _upper(expected)
    if "OT" in (found, expected) or not found or not expected or found == expected:
        return True
    return any(found in kind and expected in kind for kind in SAME_KIND)


def _outside(values: Sequence[float], ranges: Sequence[tuple[float, float]], slack: float) -> bool:
    if len(values) != len(ranges):
        return False  # not known, or of other dimensions, which is checked elsewhere
    wanted = sorted(ranges, key=lambda pair: pair[0] + pair[1], reverse=True)
    return any(
        not low / slack <= value <= high * slack
        for value, (low, high) in zip(sorted(values, reverse=True), wanted, strict=True)
    )


def _ranges(ranges: Sequence[tuple[float, float]]) -> str:
    return " x ".join(f"{low:g}" if low == high else f"{low:g} to {high:g}" for low, high in ranges)


def _upper(text: str) -> str:
    return text.strip().upper()


def _code(text: str) -> str:
    """A modality as it may be shown: a code, never free text."""
    code = _upper(text)
    return code if code.isalnum() and len(code) <= 16 else "not stated"


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _found(pattern: str, text: str) -> bool:
    return not pattern or re.search(pattern, text[:_TEXT], re.IGNORECASE) is not None


@dataclass(frozen=True)
class ModelEntry:
    """One ``[[model]]`` of the service's file.

    Parameters
    ----------
    path : str
        Of the package, or of the run that holds it.
    name : str
        What the service calls it; the package's own name where empty. Versions of one model share a name.
    role : {"answers", "watches"}
        A watching model's results are kept and compared, and neither shown as the answer nor delivered.
    urgency : int
        Added to that of the study, so that some models' studies come first.
    memory_bytes : int, optional
        Most that its process may take; a share of the machine's where not given.
    series : tuple of SeriesRule
        Any of them, in order of preference; of a model with several inputs, those of each input. Without any, what the
        model was made for decides alone.
    results : tuple of str
        Kinds of objects to make.
    to : tuple of str
        Names of destinations.
    limit_s : float
        Most that one study may take.
    explain_s : float
        Most that maps of where a classifier looked may take; 0 for none.
    """

    path: str
    name: str = ""
    role: Role = "answers"
    urgency: int = 0
    memory_bytes: int | None = None
    series: tuple[SeriesRule, ...] = ()
    results: tuple[str, ...] = ("seg", "sr", "sc", "json")
    to: tuple[str, ...] = ()
    limit_s: float = 1800.0
    explain_s: float = 20.0

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ConfigError(f"model: role = '{self.role}' is not known. {nearest(self.role, ROLES)}")
        if not self.limit_s > 0:
            raise ConfigError(f"model: limit_s = {self.limit_s:g} must be more than 0")
