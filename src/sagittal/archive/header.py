"""What the archive keeps of an object's header: the rows of its study, series and instance, checked as it comes in.

Source: PS3.18 10.6 (attributes that a search returns), PS3.5 9.1 (UIDs), PS3.3 C.7.6.3 (pixels).
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

from sagittal.archive.elements import Elements, check_fragments
from sagittal.archive.refused import Refused
from sagittal.archive.text import Texts

_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*", re.ASCII)
_NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
_DIRECTORY = b"1.2.840.10008.1.3.10"
_PIXELS, _FLOATS, _DOUBLES = 0x7FE00010, 0x7FE00008, 0x7FE00009

#: Attributes that a search returns at each level, tag -> value representation (PS3.18 Tables 10.6.3-3 to 10.6.3-5, and
#: what viewers ask for beside them). Those of a level are taken from the first object that arrives.
STUDY = {
    0x00080020: "DA",
    0x00080030: "TM",
    0x00080050: "SH",
    0x00080090: "PN",
    0x00080201: "SH",
    0x00081030: "LO",
    0x00080080: "LO",
    0x00100010: "PN",
    0x00100020: "LO",
    0x00100021: "LO",
    0x00100030: "DA",
    0x00100040: "CS",
    0x00101010: "AS",
    0x0020000D: "UI",
    0x00200010: "SH",
}
SERIES = {
    0x00080021: "DA",
    0x00080031: "TM",
    0x00080060: "CS",
    0x00080070: "LO",
    0x00080201: "SH",
    0x0008103E: "LO",
    0x00081090: "LO",
    0x00180015: "CS",
    0x00181030: "LO",
    0x0020000E: "UI",
    0x00200011: "IS",
    0x00200060: "CS",
    0x00400244: "DA",
    0x00400245: "TM",
}
INSTANCE = {
    0x00080008: "CS",
    0x00080016: "UI",
    0x00080018: "UI",
    0x00080022: "DA",
    0x00080023: "DA",
    0x00080032: "TM",
    0x00080033: "TM",
    0x00080201: "SH",
    0x00200012: "IS",
    0x00200013: "IS",
    0x00200032: "DS",
    0x00200037: "DS",
    0x00200052: "UI",
    0x00201041: "DS",
    0x00280002: "US",
    0x00280004: "CS",
    0x00280008: "IS",
    0x00280010: "US",
    0x00280011: "US",
    0x00280030: "DS",
    0x00280100: "US",
    0x00280101: "US",
}
#: Bytes of a value that is kept for searches; longer ones break PS3.5 6.2 and would fill the index of a database.
_LONGEST = 2048
_NAME_PARTS = ("Alphabetic", "Ideographic", "Phonetic")


@dataclass(slots=True)
class Header:
    """What one object says of itself, as far as the archive looks.

    Attributes
    ----------
    elements : Elements
    texts : Texts
    sop_class_uid, sop_instance_uid, series_uid, study_uid, syntax : str
        Checked.
    frames : int
    number, rows, columns : int or None
    patient : str
        What tells patients apart within a series: the id, or name and birth date where there is none.
    kept : str
        Attributes of the instance as the text of a JSON object, once :meth:`keep` was called.
    """

    elements: Elements
    texts: Texts
    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    study_uid: str
    syntax: str
    frames: int = 1
    number: int | None = None
    rows: int | None = None
    columns: int | None = None
    patient: str = ""
    kept: str = ""
    _told: dict[int, str] = field(default_factory=dict)

    def keep(self) -> None:
        """Put the attributes of the instance into the text of their row, before others wait for it."""
        self.kept = self.kept or json.dumps(self.json(INSTANCE), separators=(",", ":"))

    def text(self, tag: int, most: int = 2048) -> str:
        """The text of an element; empty where there is none, and cut where it is longer than `most` characters."""
        if tag not in self._told:
            self._told[tag] = self.texts.text(self.elements.raw(tag))
        return self._told[tag][:most]

    def name(self, tag: int) -> str:
        """The name in an element; empty where there is none."""
        return self.texts.name(self.elements.raw(tag))[:512]

    def whole(self, tag: int) -> int | None:
        """The whole number in an element of IS."""
        return _whole(self.text(tag))

    def short(self, tag: int) -> int | None:
        """The whole number in an element of US, or of UL where a writer took it for one."""
        return _binary(self.elements, tag)

    def json(self, tags: dict[int, str]) -> dict[str, Any]:
        """Some elements as DICOM JSON (PS3.18 F.2), those that the object has and that are no longer than any may be."""
        places = self.elements.places
        return {
            f"{tag:08X}": self._json(tag, vr)
            for tag, vr in tags.items()
            if tag in places and places[tag][2] <= _LONGEST
        }

    def _json(self, tag: int, vr: str) -> dict[str, Any]:
        if vr == "US":
            number = self.short(tag)
            return {"vr": vr} if number is None else {"vr": vr, "Value": [number]}
        if vr == "PN":
            parts = self.name(tag).split("=")[:3]
            named = {part: text for part, text in zip(_NAME_PARTS, parts, strict=False) if text}
            return {"vr": vr, "Value": [named]} if named else {"vr": vr}
        text = self.text(tag)
        if not text:
            return {"vr": vr}
        values: list[Any] = [part.strip() or None for part in text.split("\\")]
        if vr == "IS":
            values = [_whole(v) if v else None for v in values]
        elif vr == "DS":
            values = [number_of(v) if v else None for v in values]
        return {"vr": vr, "Value": values}


def read_header(elements: Elements, size: int, *, default_character_set: str = "ISO_IR 100") -> Header:
    """What an object says of itself, checked against its pixels.

    Parameters
    ----------
    elements : Elements
    size : int
        Bytes of the whole file.
    default_character_set : str
        Of objects that declare none.

    Raises
    ------
    More, Refused
        As :func:`told_header` and :func:`check_pixels`.
    """
    header = told_header(elements, default_character_set)
    check_pixels(header, size)
    return header


def told_header(elements: Elements, default_character_set: str = "ISO_IR 100") -> Header:
    """What an object says of itself; its pixels may still be on their way.

    Raises
    ------
    Refused
        If a UID is missing or is none, or the transfer syntax is not kept.
    """
    check_syntax(elements.syntax)
    if elements.raw_meta(0x00020002).rstrip(b"\0 ") == _DIRECTORY:
        raise Refused("unsupported", "a DICOMDIR is a list of files on a disc: send the files that it names")
    texts = Texts(elements.raw(0x00080005), default_character_set)
    header = Header(
        elements,
        texts,
        uid_of(elements.raw(0x00080016), "SOP Class UID"),
        uid_of(elements.raw(0x00080018), "SOP Instance UID"),
        uid_of(elements.raw(0x0020000E), "Series Instance UID"),
        uid_of(elements.raw(0x0020000D), "Study Instance UID"),
        elements.syntax,
    )
    header.frames = max(_whole(header.text(0x00280008)) or 1, 1)
    header.number = header.whole(0x00200013)
    header.rows, header.columns = header.short(0x00280010), header.short(0x00280011)
    header.patient = header.text(0x00100020) or f"{header.name(0x00100010)}/{header.text(0x00100030)}"
    return header


def check_syntax(syntax: str) -> None:
    """Refuse a transfer syntax that is not kept.

    Raises
    ------
    Refused
    """
    if syntax == "1.2.840.10008.1.2.1.99":
        raise Refused(
            "transfer-syntax", "the deflated transfer syntax is not kept: send the object in explicit little endian"
        )
    if syntax not in kept_syntaxes():
        raise Refused("transfer-syntax", "the transfer syntax is private, retired or has its pixels elsewhere")


@lru_cache(maxsize=1)
def kept_syntaxes() -> frozenset[str]:
    """UIDs of the transfer syntaxes that the archive keeps: those whose pixels lie in the file, but for deflated ones."""
    from pydicom._uid_dict import UID_dictionary

    elsewhere = ("JPIP", "Deflate", "SMPTE", "XML", "MIME", "Papyrus")
    return frozenset(
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "Transfer Syntax" and not any(word in name for word in elsewhere)
    )


@lru_cache(maxsize=1)
def image_classes() -> frozenset[str]:
    """UIDs of the SOP classes whose objects have pixels: the Image Storage classes, segmentations, parametric maps."""
    from pydicom._uid_dict import UID_dictionary

    return frozenset(
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class"
        and ("Image Storage" in name or name in {"Segmentation Storage", "Parametric Map Storage"})
        and "Hardcopy" not in name
    )


def uid_of(raw: bytes, what: str) -> str:
    """A UID, checked: digits and dots, at most 64 (PS3.5 9.1).

    Raises
    ------
    Refused
    """
    text = raw[:66].decode("ascii", "replace").rstrip(" ").removesuffix("\0")
    if not text:
        raise Refused("identifiers", f"the {what} is missing")
    if len(text) > 64 or not _UID.fullmatch(text):
        raise Refused("identifiers", f"the {what} is no UID: it must be at most 64 digits and dots")
    return text


def check_pixels(header: Header, size: int) -> None:
    """Compare the pixels with what the header says of them (PS3.3 C.7.6.3), as whole numbers, before anything is decoded.

    Parameters
    ----------
    header : Header
    size : int
        Bytes of the whole file.

    Raises
    ------
    More
        If fragments of compressed pixels lie beyond the bytes at hand.
    Refused
        If an image has no pixels, or their length does not fit rows, columns, frames and bits.
    """
    places = header.elements.places
    tag = next((t for t in (_PIXELS, _FLOATS, _DOUBLES) if t in places), 0)
    if not tag:
        if header.sop_class_uid in image_classes():
            raise Refused("no-pixel-data", "an image without pixel data")
        return
    _, start, length = places[tag]
    if start + max(length, 0) > size:
        raise Refused("unreadable", "cut off: the pixel data reaches past the end of the file")
    frames_text = header.text(0x00280008)
    if (length == -1) != (header.syntax not in _NATIVE and tag == _PIXELS):
        raise Refused("pixel-length", "the pixel data is not stored as the transfer syntax says")
    rows, columns, samples = header.rows, header.columns, header.short(0x00280002) or 1
    allocated = header.short(0x00280100)
    if tag != _PIXELS:
        allocated = 32 if tag == _FLOATS else 64
    if rows is None or columns is None or allocated is None:
        raise Refused("pixel-length", "there are pixels, but Rows, Columns or BitsAllocated are missing")
    if frames_text and (_whole(frames_text) or 0) < 1:
        raise Refused("pixel-length", "NumberOfFrames is no positive number")
    if min(rows, columns, samples) < 1 or samples > 4 or allocated not in {1, 8, 12, 16, 24, 32, 64}:
        raise Refused("pixel-length", "Rows, Columns, SamplesPerPixel or BitsAllocated have values that no image has")
    stored = header.short(0x00280101)
    high = header.short(0x00280102)
    if tag == _PIXELS and (
        (stored is not None and not 1 <= stored <= allocated) or (high is not None and not high < allocated)
    ):
        raise Refused("pixel-length", "BitsStored and HighBit do not fit BitsAllocated")
    if length == -1:
        fragments = check_fragments(header.elements, start, size) - 1  # the first is the table of offsets
        if fragments < 1 or (header.frames > 1 and fragments < header.frames and not _is_stream(header.syntax)):
            raise Refused("pixel-length", f"{max(fragments, 0)} fragments cannot hold {header.frames} frames")
        return
    needed = (prod((rows, columns, header.frames, samples)) * allocated + 7) // 8
    least = needed * 2 // 3 if header.text(0x00280004).startswith("YBR_FULL_422") else needed
    if length < least:
        raise Refused(
            "pixel-length",
            f"the pixel data holds {length:,} bytes, but Rows x Columns x Frames x Samples x BitsAllocated = "
            f"{rows} x {columns} x {header.frames} x {samples} x {allocated} bits need {least:,}",
        )
    if length >= needed + max(needed // header.frames, 2):
        raise Refused(
            "pixel-length",
            f"the pixel data holds {length:,} bytes, at least one frame more than the {needed:,} of the declared "
            f"{rows} x {columns} x {header.frames} frames",
        )


def _is_stream(syntax: str) -> bool:
    """Whether all frames lie in one stream (MPEG, HEVC, JPEG 2000 multi-component)."""
    last = syntax.removeprefix("1.2.840.10008.1.2.4.")
    return last.split(".")[0] in {"92", "93", "100", "101", "102", "103", "104", "105", "106", "107", "108"}


def _binary(elements: Elements, tag: int) -> int | None:
    raw = elements.raw(tag, 64)
    if len(raw) >= 4 and elements.places[tag][0] == b"UL":
        return int(struct.unpack_from(elements.order + "I", raw)[0])
    return int(struct.unpack_from(elements.order + "H", raw)[0]) if len(raw) >= 2 else None


def _whole(text: str) -> int | None:
    text = text.split("\\", 1)[0].strip()
    if len(text) > 12:
        return None
    try:
        value = int(text)
    except ValueError:
        try:
            value = int(float(text))  # "1.0" by careless writers
        except (ValueError, OverflowError):
            return None
    return value if -(2**31) <= value < 2**31 else None


def number_of(text: str) -> float | None:
    """The number in a text of DS; ``None`` where it is none, or not finite."""
    try:
        value = float(text[:32])
    except ValueError:
        return None
    return value if value - value == 0 else None
