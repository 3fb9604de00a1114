"""Coded names of structures: what a segment is, in words that every DICOM reader knows (SNOMED CT)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import blake2s
from pathlib import Path
from typing import Any

from sagittal.errors import ConfigError, ReadError, nearest
from sagittal.guard.json_file import read_json
from sagittal.write.names import one_line

_log = logging.getLogger(__name__)

#: Coding scheme of names that no public scheme holds here; PS3.16 8.2 leaves those that begin with 99 to anyone.
PRIVATE_SCHEME = "99SAGITTAL"
#: Far apart in hue and lightness, for structures without a customary colour; the first are told apart by everyone.
PALETTE = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#8dd35f", "#b15928", "#6a3d9a",
    "#1fb3ae", "#ff6f91", "#b8b800", "#4f6d7a", "#ff9f6b", "#7b9fff", "#a3195b", "#2f7d32", "#c7a27c", "#8c8c8c",
)  # fmt: skip
_KEYS = ("category", "type", "modifier", "regions", "colour", "also")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class Code:
    """A coded concept: a value of a coding scheme, and what it means in words."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Term:
    """What a structure is.

    Parameters
    ----------
    name : str
        As the model calls it.
    category : Code
        Of DICOM's CID 7150: anatomical structure, morphologically abnormal structure, tissue ...
    type : Code
    modifier : Code, optional
        Left, right, anterior ...
    regions : tuple of Code
        Where in the body it lies, if that is not said by the type.
    colour : (3,) int
        Red, green, blue, 0 to 255.
    known : bool
        Whether the name was found; else the type is a private code made from the name.
    """

    name: str
    category: Code
    type: Code
    modifier: Code | None = None
    regions: tuple[Code, ...] = ()
    colour: tuple[int, int, int] = (230, 159, 0)
    known: bool = True


@dataclass(frozen=True)
class Terminology:
    """Structure names -> what they are. See :func:`read_terminology`.

    Parameters
    ----------
    own : mapping of str to dict
        Entries that come before the ones that Sagittal brings, by plain name.
    """

    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def find(self, name: str, index: int = 0) -> Term:
        """What a structure is.

        Upper case, underscores and numbers at the end do not matter; words for a side become the modifier; an organ before
        a finding becomes its region: ``"Liver_Tumor"`` is a neoplasm in the liver. A name that is not found gets a
        private code, and the log says so.

        Parameters
        ----------
        name : str
        index : int
            Its place among the structures, for its colour where none is customary.

        Examples
        --------
        >>> term = Terminology().find("kidney_left")
        >>> term.type.meaning, term.modifier.meaning
        ('Kidney', 'Left')
        >>> term = Terminology().find("Liver Tumor")
        >>> term.type.meaning, [region.meaning for region in term.regions]
        ('Neoplasm', ['Liver'])
        >>> Terminology().find("gizmo").type
        Code(value='S-2cbb0676f3c5', scheme='99SAGITTAL', meaning='gizmo')
        """
        plain = _plain(name)
        for entries in (self.own, _built_in()):
            if found := _search(plain, entries):
                entry, modifier, regions = found
                return _term(name, entry, modifier, regions, index)
        _log.info(
            "structure '%s' has no code in the terminology and gets a private one; a terminology file may name it", name
        )
        meaning = one_line(name) or "unnamed"
        private = Code(f"S-{blake2s(plain.encode(), digest_size=6).hexdigest()}", PRIVATE_SCHEME, meaning)
        return Term(name, _category("other"), private, colour=_rgb(PALETTE[index % len(PALETTE)]), known=False)

    def find_all(self, names: Sequence[str]) -> tuple[Term, ...]:
        """What some structures are; those of one colour, as a left and a right one, get different ones."""
        terms: list[Term] = []
        for index, name in enumerate(names):
            term = self.find(name, index)
            used = {one.colour for one in terms}
            free = [colour for colour in (term.colour, *map(_rgb, PALETTE)) if colour not in used]
            terms.append(replace(term, colour=free[0] if free else term.colour))
        return tuple(terms)


def read_terminology(path: Path) -> Terminology:
    """Coded names from a JSON file, which come before those that Sagittal brings.

    The file maps the name of a structure to an object with ``"category"`` (``"anatomy"``, ``"tissue"``, ``"abnormal"``,
    ``"object"``, ``"substance"``, ``"other"``, or a code), ``"type"`` (a code) and, where wanted, ``"modifier"`` (a code),
    ``"regions"`` (a list of codes), ``"colour"`` (``"#rrggbb"``) and ``"also"`` (other names). A code is a list of value,
    scheme and meaning: ``["10200004", "SCT", "Liver"]``.

    Raises
    ------
    ReadError
        If the file is no JSON object.
    ConfigError
        If an entry is not as above.
    """
    own: dict[str, Mapping[str, Any]] = {}
    for name, entry in read_json(path, limit=2**24).items():
        where = f"{path.name}: structure '{name}'"
        if not isinstance(entry, dict):
            raise ConfigError(f"{where}: an object with 'category' and 'type' was expected, not {type(entry).__name__}")
        for key in entry:
            if key not in _KEYS:
                raise ConfigError(f"{where}: unknown key '{key}'. {nearest(key, _KEYS)}")
        if "type" not in entry:
            raise ConfigError(f'{where}: \'type\' is missing, such as ["10200004", "SCT", "Liver"]')
        if "colour" in entry and not (isinstance(entry["colour"], str) and _COLOUR.fullmatch(entry["colour"])):
            raise ConfigError(f"{where}: colour must be like '#dd8265'")
        names = [name, *_list(entry.get("also"), where, "also")]
        _list(entry.get("regions"), where, "regions")
        try:
            _term(name, entry, None, (), 0)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        own.update({_plain(str(one)): entry for one in names})
    return Terminology(own)


def _list(value: Any, where: str, key: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConfigError(f"{where}: '{key}' must be a list")
    return value


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_\-.]+", name.strip().lower())).strip()


@cache
def _file() -> dict[str, Any]:
    try:
        return read_json(Path(__file__).with_name("terminology.json"))
    except ReadError as error:
        raise ConfigError(f"the terminology of this installation is damaged: {error}") from error


@cache
def _built_in() -> dict[str, Mapping[str, Any]]:
    entries: dict[str, Mapping[str, Any]] = {}
    for name, entry in _file()["structures"].items():
        entries |= dict.fromkeys([name, *entry.get("also", ())], entry)
    return entries


def _category(value: Any) -> Code:
    categories = _file()["categories"]
    if isinstance(value, str):
        if value not in categories:
            raise ConfigError(f"unknown category '{value}'. {nearest(value, categories)}")
        return _code(categories[value])
    return _code(value)


def _code(value: Any) -> Code:
    if not (isinstance(value, list) and len(value) == 3 and all(isinstance(v, str) and v.strip() for v in value)):
        raise ConfigError(f"a code is a list of value, scheme and meaning, not {str(value)[:60]}")
    if len(value[0]) > 16 or len(value[1]) > 16 or len(value[2]) > 64:
        raise ConfigError("of a code, value and scheme have at most 16 characters and the meaning 64 (DICOM PS3.3 8.8)")
    return Code(*value)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _term(name: str, entry: Mapping[str, Any], modifier: Code | None, regions: tuple[Code, ...], index: int) -> Term:
    own = _code(entry["modifier"]) if entry.get("modifier") is not None else modifier
    return Term(
        name,
        _category(entry.get("category", "anatomy")),
        _code(entry["type"]),
        own,
        tuple(_code(region) for region in entry.get("regions") or ()) or regions,
        _rgb(entry.get("colour") or PALETTE[index % len(PALETTE)]),
    )


def _search(
    plain: str, entries: Mapping[str, Mapping[str, Any]]
) -> tuple[Mapping[str, Any], Code | None, tuple[Code, ...]] | None:
    """The entry of a name, and what its words say beside it."""
    if plain in entries:
        return entries[plain], None, ()
    modifiers = _file()["modifiers"]
    words = plain.split()
    sides = [word for word in words if word in modifiers]
    rest = " ".join(word for word in words if word not in modifiers)
    modifier = _code(modifiers[sides[0]]) if len(sides) == 1 else None
    if len(sides) > 1:
        return None
    for candidate in (rest, re.sub(r" ?\d+$", "", rest)):
        if candidate in entries:
            return entries[candidate], modifier, ()
        parts = candidate.split()
        for cut in range(1, len(parts)):
            organ, finding = " ".join(parts[:cut]), " ".join(parts[cut:])
            where = entries.get(organ) or _built_in().get(organ)
            if finding in entries and where is not None and where.get("category") == "anatomy":
                return entries[finding], modifier, (_code(where["type"]),)
    return None
