"""Which model made a result, and when: the facts that every object of it states, and the UIDs that it goes by.

A result may be made twice: the service was stopped in between, or a destination asks for it again. Made of the same model
and the same images it is the same object then, byte by byte: its UIDs are derived from a seed, its times are given.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from pydicom.dataset import Dataset as Header
from pydicom.uid import generate_uid

from sagittal.errors import ConfigError, nearest
from sagittal.prediction import Failure, Prediction
from sagittal.write.names import one_line

MANUFACTURER = "Sagittal"
#: Namespace of derived UIDs; made once, at random.
_NAMESPACE = uuid.UUID("6f0f5c3e-6a58-4b0b-9c39-3d3f0a6f2b41")
_OFFSET = re.compile(r"([+-])(\d{2})(\d{2})")
#: PS3.16 CID 7005.
_PROCESSING = ("109102", "DCM", "Processing Equipment")


@dataclass(frozen=True)
class ModelFacts:
    """What a result says of the model that made it.

    Parameters
    ----------
    name, version : str
        Version is what the maker of the model calls it.
    checksum : str
        SHA-256 of the package, hexadecimal; empty where it was never saved.
    question : str
        What the model answers, in words.
    intended_use : mapping of str to value
        As :class:`sagittal.model.parts.IntendedUse` has it, as plain values.
    abstains : bool
        Whether the model makes no decision about a study that its gate does not know, or only warns.
    coverage : float, optional
        How often the conformal set holds the true class.
    evidence : sequence of str
        What is known of its worth, a sentence each: ``"AUC 0.94 (0.91 to 0.96) in 312 held-out cases"``.
    """

    name: str
    version: str = ""
    checksum: str = ""
    question: str = ""
    intended_use: Mapping[str, Any] = field(default_factory=dict)
    abstains: bool = True
    coverage: float | None = None
    evidence: Sequence[str] = ()

    @classmethod
    def of(cls, answer: Prediction | Failure) -> ModelFacts:
        """What a prediction itself says of its model, ``NAME (format 1, sha256 ...)``; the rest is unknown.

        >>> from sagittal.prediction import Failure
        >>> ModelFacts.of(Failure("7", "no", "ScopeError")).name
        'unnamed model'
        """
        label = answer.model if isinstance(answer, Prediction) else ""
        name, _, rest = label.partition(" (")
        rest = rest.rstrip(")").strip()
        checksum = rest.partition("sha256 ")[2].strip()
        return cls(name.strip()[:64] or "unnamed model", rest[:64] or "not saved", checksum)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelFacts:
        """The facts that :meth:`to_json` wrote.

        Raises
        ------
        ConfigError
            If a key is not known.
        """
        known = [one.name for one in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"facts of a model: unknown key '{key}'. {nearest(key, known)}")
        return cls(**{**values, "evidence": tuple(values.get("evidence", ()))})

    def to_json(self) -> dict[str, Any]:
        """Plain values, to be handed to another process."""
        return {**asdict(self), "intended_use": dict(self.intended_use), "evidence": list(self.evidence)}


@dataclass(frozen=True)
class Stamp:
    """What makes the identity of an object: its UIDs, its time and its model.

    Parameters
    ----------
    uid : callable (str) -> str
        The UID of a part of the object by its name, such as ``"series"``; see :func:`derive_uids`.
    made_at : datetime
        With its zone; see :meth:`clock`.
    model : ModelFacts
    """

    uid: Callable[[str], str]
    made_at: datetime
    model: ModelFacts

    @classmethod
    def now(cls, prediction: Prediction | Failure) -> Stamp:
        """A stamp of its own for each object: random UIDs, the present time."""
        return cls(lambda _: str(generate_uid()), datetime.now().astimezone(), ModelFacts.of(prediction))

    def within(self, kind: str) -> Stamp:
        """The stamp of one object among several of one result."""
        return Stamp(lambda name: self.uid(f"{kind}/{name}"), self.made_at, self.model)

    def clock(self, source: Header | None = None) -> datetime:
        """When it was made, on the clock that the times of a study are given in.

        That is the zone that the study states (TimezoneOffsetFromUTC), else this machine's: a result is not to look as if
        it had been made hours before its study.
        """
        stated = "" if source is None else str(source.get("TimezoneOffsetFromUTC") or "")
        match = _OFFSET.fullmatch(stated)
        if self.made_at.tzinfo is None:
            return self.made_at
        shift = timedelta(hours=99) if match is None else timedelta(hours=int(match[2]), minutes=int(match[3]))
        if match is None or shift > timedelta(hours=14):
            return self.made_at.astimezone()
        return self.made_at.astimezone(timezone(shift if match[1] == "+" else -shift))


def derive_uids(seed: str) -> Callable[[str], str]:
    """A function from the name of a part to its UID (``2.25.`` and 128 bits, PS3.5 B.2); the same for the same seed.

    >>> uid = derive_uids("sha256 of the model, hashes of the images")
    >>> uid("seg/instance") == derive_uids("sha256 of the model, hashes of the images")("seg/instance")
    True
    >>> uid("seg/instance") == uid("sr/instance")
    False
    >>> uid("seg/instance").startswith("2.25.") and len(uid("seg/instance")) <= 44
    True
    """
    space = uuid.uuid5(_NAMESPACE, seed)

    def uid(name: str) -> str:
        return f"2.25.{uuid.uuid5(space, name).int}"

    return uid


def add_equipment(made: Header, stamp: Stamp, source: Header) -> None:
    """State the machine that took the images and the model that read them (Contributing Equipment, PS3.3 C.12.1).

    What contributed to the images stays; the model is the last item, with name, version and checksum.
    """
    from sagittal import __version__

    items = list(source.get("ContributingEquipmentSequence") or ())
    items.append(_acquisition(source))
    model = Header()
    model.PurposeOfReferenceCodeSequence = [_code(*_PROCESSING)]
    model.Manufacturer = MANUFACTURER
    version = one_line(stamp.model.version) or "not stated"
    model.ManufacturerModelName = one_line(stamp.model.name) or "unnamed model"
    model.DeviceSerialNumber = one_line(stamp.model.checksum) or version
    model.SoftwareVersions = [f"{MANUFACTURER} {__version__}"[:64], version]
    model.ContributionDateTime = date_time(stamp.made_at)
    model.ContributionDescription = (
        "Algorithm: a trained model made this object from the images it refers to; no person has checked it"
    )
    made.ContributingEquipmentSequence = [*(item for item in items if item is not None), model]


def date_time(moment: datetime) -> str:
    """A moment as DICOM's DT, with its zone where it has one.

    >>> from datetime import UTC, datetime
    >>> date_time(datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC))
    '20260304050607+0000'
    """
    return f"{moment:%Y%m%d%H%M%S}{moment:%z}"


def made_at(answer: Prediction | Failure) -> datetime:
    """When a prediction says it was made, on this machine's clock; the present where it does not say."""
    text = answer.made_at if isinstance(answer, Prediction) else ""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.now(UTC)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone()


def _acquisition(source: Header) -> Header | None:
    """The machine of the source (109101), as far as its header names it."""
    if not source.get("Manufacturer"):
        return None
    item = Header()
    item.PurposeOfReferenceCodeSequence = [_code("109101", "DCM", "Acquisition Equipment")]
    for keyword in (
        "Manufacturer", "InstitutionName", "StationName", "InstitutionalDepartmentName", "ManufacturerModelName",
        "DeviceSerialNumber", "SoftwareVersions",
    ):  # fmt: skip
        if source.get(keyword):
            item[keyword] = source[keyword]
    return item


def _code(value: str, scheme: str, meaning: str) -> Header:
    item = Header()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
