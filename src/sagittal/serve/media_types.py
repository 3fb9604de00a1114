"""What a client accepts: the Accept header of DICOMweb, with media types inside media types (PS3.18 8.7.4, RFC 9110 12.5.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

DICOM, JSON, DICOM_JSON = "application/dicom", "application/json", "application/dicom+json"
OCTETS, RELATED = "application/octet-stream", "multipart/related"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
#: A longer header, or one of more parts, is read this far.
_MOST_LENGTH, _MOST_RANGES = 8192, 64


@dataclass(frozen=True)
class MediaRange:
    """One alternative of an Accept header.

    Attributes
    ----------
    name : str
        ``type/subtype`` in lower case; either may be ``*``. Of a multipart message what its parts are.
    multipart : bool
        Whether it was asked for as the parts of ``multipart/related``.
    syntax : str
        Transfer syntax UID, ``*`` for any, empty where nothing is said.
    quality : float
        0 to 1.
    parameters : mapping of str to str
    """

    name: str
    multipart: bool = False
    syntax: str = ""
    quality: float = 1.0
    parameters: Mapping[str, str] = field(default_factory=dict)

    def fits(self, name: str) -> bool:
        """Whether a media type lies in the range.

        >>> MediaRange("image/*").fits("image/png"), MediaRange("image/*").fits("application/dicom")
        (True, False)
        """
        kind, _, subtype = self.name.partition("/")
        other, _, another = name.lower().partition("/")
        return kind in {"*", other} and subtype in {"*", "", another}


def parse_media_type(text: str) -> tuple[str, dict[str, str]]:
    """A media type in lower case and its parameters, their names in lower case.

    >>> parse_media_type('multipart/related; type="application/dicom"; Boundary=a=b')
    ('multipart/related', {'type': 'application/dicom', 'boundary': 'a=b'})
    """
    name, *pieces = _split(text[:_MOST_LENGTH], ";")
    parameters: dict[str, str] = {}
    for piece in pieces:
        key, equals, value = piece.partition("=")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = value[1:-1].replace('\\"', '"').replace("\\\\", "\\")
        if equals and key.strip():
            parameters.setdefault(key.strip().lower(), value)
    return name.strip().lower(), parameters


def parse_accept(header: str | None) -> tuple[MediaRange, ...]:
    """The alternatives of an Accept header, the most wanted first; ``*/*`` where there is none.

    Of equal quality the more specific comes first, else the earlier. What is refused (``q=0``) is left out.

    >>> [one.name for one in parse_accept("image/png;q=0.5, */*;q=0.1, image/jpeg")]
    ['image/jpeg', 'image/png', '*/*']
    """
    if header is None or not header.strip():
        return (MediaRange("*/*"),)
    found: list[MediaRange] = []
    for text in _split(header[:_MOST_LENGTH], ",")[:_MOST_RANGES]:
        name, parameters = parse_media_type(text)
        if "/" not in name and name != "*":
            continue
        quality = _quality(parameters.pop("q", "1"))
        multipart = name == RELATED
        inner = parameters.get("type", "*/*").lower() if multipart else name
        syntax = parameters.get("transfer-syntax", "")
        found.append(MediaRange("*/*" if inner == "*" else inner, multipart, syntax, quality, parameters))
    return tuple(sorted((one for one in found if one.quality > 0), key=lambda one: (-one.quality, _vagueness(one))))


def choose(ranges: Sequence[MediaRange], offers: Iterable[str]) -> str | None:
    """The media type to answer with, of several offered, the preferred first; ``None`` where none is accepted.

    >>> choose(parse_accept("image/*"), ["application/dicom+json", "image/jpeg", "image/png"])
    'image/jpeg'
    """
    offered = list(offers)
    for wanted in ranges:
        for name in offered:
            if wanted.fits(name):
                return name
    return None


def _vagueness(wanted: MediaRange) -> int:
    kind, _, subtype = wanted.name.partition("/")
    return 2 if kind == "*" else 1 if subtype in {"*", ""} else 0


def _quality(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 1.0
    return value if 0 <= value <= 1 else 0.0 if value < 0 else 1.0


def _split(text: str, mark: str) -> list[str]:
    """Pieces between marks that do not stand inside quotes."""
    if '"' not in text:
        return text.split(mark)
    pieces, start, quoted, skip = [], 0, False, False
    for at, letter in enumerate(text):
        if skip:
            skip = False
        elif quoted and letter == "\\":
            skip = True
        elif letter == '"':
            quoted = not quoted
        elif letter == mark and not quoted:
            pieces.append(text[start:at])
            start = at + 1
    return [*pieces, text[start:]]
