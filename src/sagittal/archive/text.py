"""Text of a DICOM header as people write it: character sets understood, control characters out, names folded for search.

Source: PS3.5 6.1 and Annexes H to K, PS3.3 C.12.1.1.2. Most text is plain ASCII and decoded at once; the rest by pydicom.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from sagittal.guard.limits import as_read_error

#: Sets under which text in ASCII is just that, escape sequences apart.
_ESCAPE = b"\x1b"
#: Sets of two bytes in the upper half, beside ASCII (PS3.3 Table C.12-4).
_DOUBLE = {b"ISO 2022 IR 58": (b"\x1b$)A", "gb18030"), b"ISO 2022 IR 149": (b"\x1b$)C", "cp949")}


class Texts:
    """Decodes the text of one data set.

    Parameters
    ----------
    character_set : bytes
        Value of (0008,0005); empty where the object has none.
    default : str
        The set of objects that declare none and hold more than ASCII; UTF-8 is tried before.
    """

    def __init__(self, character_set: bytes, default: str = "ISO_IR 100") -> None:
        self.declared = bool(character_set.strip(b" \0"))
        self._encodings = _encodings(character_set, default)
        self._double = _double(character_set)

    def text(self, raw: bytes) -> str:
        """One value, or several joined by a backslash; padding and control characters are taken out."""
        if raw.isascii() and _ESCAPE not in raw:
            return clean(raw.decode("ascii"))
        return clean(self._decoded(raw, False))

    def name(self, raw: bytes) -> str:
        """A person's name: alphabetic=ideographic=phonetic, as far as it goes."""
        if raw.isascii() and _ESCAPE not in raw:
            return clean(raw.decode("ascii")).rstrip("=^ ")
        return clean(self._decoded(raw, True)).rstrip("=^ ")

    def _decoded(self, raw: bytes, name: bool) -> str:
        if not self.declared and _ESCAPE not in raw:
            try:  # what is valid UTF-8 by chance is next to nothing
                return raw.decode("utf-8")
            except UnicodeDecodeError:
                pass
        if self._double:
            plain = raw.replace(self._double[0], b"")
            if _ESCAPE not in plain:
                try:
                    return plain.decode(self._double[1])
                except UnicodeDecodeError:
                    pass
        from pydicom.charset import decode_bytes
        from pydicom.valuerep import TEXT_VR_DELIMS, PersonName

        try:
            with as_read_error("DICOM"):
                if name:
                    return str(PersonName(raw, list(self._encodings)))
                return decode_bytes(raw, list(self._encodings), TEXT_VR_DELIMS)
        except ValueError:  # bytes that are no text in any set of its own
            return raw.decode("ascii", "replace")


@lru_cache(maxsize=64)
def _double(character_set: bytes) -> tuple[bytes, str] | None:
    """Escape sequence and encoding where ASCII and one set of two bytes are all that is declared.

    Then every byte beyond ASCII is of that set, whether the escape sequence stands before each part of a name, as PS3.5
    6.1.2.5.3 asks, only before the first, or nowhere: writers do all three, and pydicom 3.0 keeps the sequence as text.
    """
    sets = {part.strip() for part in character_set.strip(b" \0").split(b"\\")} - {b"", b"ISO 2022 IR 6", b"ISO_IR 6"}
    return _DOUBLE.get(sets.pop()) if len(sets) == 1 else None


@lru_cache(maxsize=64)
def _encodings(character_set: bytes, default: str) -> tuple[str, ...]:
    from pydicom.charset import convert_encodings

    sets = character_set.decode("ascii", "replace").strip(" \0")
    names = [part.strip() for part in sets.split("\\")] if sets else [default]
    try:
        with as_read_error("DICOM"):
            return tuple(convert_encodings(names))
    except ValueError:
        return ("iso8859",)


def clean(text: str) -> str:
    """Text without padding and without characters that control anything.

    >>> clean("Wang^Xiaodong\\0 "), clean("one\\ttwo\\x07")
    ('Wang^Xiaodong', 'one two')
    """
    text = text.rstrip(" \0").lstrip(" ")
    if text.isprintable():
        return text
    kept = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(kept.split())


def fold(text: str) -> str:
    """Text as it is compared in a search: without case, accents and the signs between the parts of a name.

    >>> fold("Müller^José"), fold("Wang^XiaoDong=王^小东")
    ('muller jose', 'wang xiaodong 王 小东')
    """
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(text.casefold().replace("^", " ").replace("=", " ").replace(",", " ").split())
