"""The first bytes of a file of PS3.10: preamble, mark and file meta information.

Source: PS3.10 7.1. Over DIMSE only the bare data set travels; what goes before it on the disk is written here.
"""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from dataclasses import dataclass

from sagittal.archive.elements import Elements, More, find_data_set
from sagittal.archive.header import uid_of
from sagittal.archive.refused import Refused

#: How a TIFF file begins; PS3.10 7.1 keeps the preamble free for such dual files.
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PREAMBLE = 128
#: Bytes in which a file without file meta information must have named its class and instance.
NEEDED = 2**16
#: Who writes the file meta information: a UID made of a random UUID (PS3.5 B.2).
IMPLEMENTATION = "2.25.169968275881052848096463636595026866228"
_AE = re.compile(rb"[\x20-\x7e]{1,16}")


@dataclass(frozen=True)
class FileMeta:
    """What an association says of an object whose data set it sends.

    Attributes
    ----------
    sop_class_uid, sop_instance_uid, transfer_syntax_uid : str
        As announced; compared with the data set.
    implementation_class_uid, implementation_version : str
        Of Sagittal, which writes the file.
    source_ae : str
        AE title of the sender.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    implementation_class_uid: str
    implementation_version: str = ""
    source_ae: str = ""

    def encode(self) -> bytes:
        """Preamble of zeros, mark and file meta information.

        Raises
        ------
        Refused
            If a UID is none.
        """
        body = _element(1, b"OB", b"\0\1")
        for element, text, what in (
            (2, self.sop_class_uid, "announced SOP Class UID"),
            (3, self.sop_instance_uid, "announced SOP Instance UID"),
            (0x10, self.transfer_syntax_uid, "Transfer Syntax UID"),
            (0x12, self.implementation_class_uid, "Implementation Class UID"),
        ):
            body += _element(element, b"UI", uid_of(_ascii(text), what).encode())
        for element, vr, text in ((0x13, b"SH", self.implementation_version), (0x16, b"AE", self.source_ae)):
            raw = _ascii(text)
            if _AE.fullmatch(raw):
                body += _element(element, vr, raw)
        return b"\0" * PREAMBLE + b"DICM" + _element(0, b"UL", struct.pack("<I", len(body))) + body


def _ascii(text: str) -> bytes:
    return text.encode("ascii", "replace")


def _element(element: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    if vr == b"OB":
        return struct.pack("<HH2sHI", 2, element, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


def is_part_10(start: bytes | bytearray) -> bool:
    """Whether a stream begins as PS3.10 says, as far as it goes."""
    mark = bytes(start[PREAMBLE : PREAMBLE + 4])
    return b"DICM".startswith(mark) if len(start) < PREAMBLE + 4 else mark == b"DICM"


def with_meta(start: bytes) -> bytes:
    """The beginning of a file that lacks the preamble, or the file meta information too, with what it lacks.

    Files from before 1996, and of some programs today, begin with group 2 or 8. Without file meta information they are
    in implicit little endian, or in explicit if their first element carries a value representation.

    Parameters
    ----------
    start : bytes
        All of the file, or at least :data:`NEEDED` bytes.

    Raises
    ------
    Refused
        If it is no DICOM file.
    """
    if start.startswith(b"\x02\x00"):
        return b"\0" * PREAMBLE + b"DICM" + start
    if not start.startswith(b"\x08\x00") or len(start) < 16:
        raise Refused("unreadable", "not a DICOM file: the mark DICM at byte 128 is missing")
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    found = Elements("1.2.840.10008.1.2.1" if explicit else "1.2.840.10008.1.2", 0, start)
    with suppress(More):
        find_data_set(found, 2**62)
    uids = [
        uid_of(found.raw(tag), what) for tag, what in ((0x00080016, "SOP Class UID"), (0x00080018, "SOP Instance UID"))
    ]
    return FileMeta(uids[0], uids[1], found.syntax, IMPLEMENTATION).encode() + start


def harmless(start: bytes) -> tuple[bytes, bool]:
    """The first bytes of a file with a preamble that nothing executes, and whether it had to be changed (CVE-2019-11687).

    A preamble of zeros or of a TIFF file stays; anything else becomes zeros, as PS3.10 7.5 advises.

    Parameters
    ----------
    start : bytes
        At least the preamble and the mark.

    Raises
    ------
    Refused
        If it is no DICOM file.
    """
    if start[PREAMBLE : PREAMBLE + 4] != b"DICM":
        raise Refused("unreadable", "not a DICOM file: the mark DICM at byte 128 is missing")
    if not start[:PREAMBLE].strip(b"\0") or start.startswith(_TIFF):
        return start, False
    return b"\0" * PREAMBLE + start[PREAMBLE:], True
