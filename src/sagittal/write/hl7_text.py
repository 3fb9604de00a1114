"""Text in HL7 version 2: its character sets, its escapes, and a message under another address."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sagittal.errors import ConfigError, nearest

#: Character set as the product names it -> as MSH-18 does (HL7 table 0211), and Python's codec.
CHARSETS = {"utf-8": ("UNICODE UTF-8", "utf-8"), "gb18030": ("GB 18030-2000", "gb18030"), "ascii": ("ASCII", "ascii")}
#: Signs that a message is divided by, and what stands for them in text (2.7.1).
_ESCAPES = {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"}
_MOST_TEXT = 10_000


@dataclass(frozen=True)
class Parties:
    """Who sends a message to whom (MSH-3 to 6): application and facility of both."""

    sending_application: str = "SAGITTAL"
    sending_facility: str = ""
    receiving_application: str = ""
    receiving_facility: str = ""


def address_message(message: bytes, parties: Parties, charset: str) -> bytes:
    """A message of :func:`make_hl7` to other parties, in another character set.

    Its control id stays: it is the same message to whomever it goes.

    Raises
    ------
    ConfigError
        If the character set is not known.
    """
    if charset not in CHARSETS:
        raise ConfigError(f"unknown character set '{charset}' of HL7. {nearest(charset, CHARSETS)}")
    head, _, rest = message.partition(b"\r")
    fields = head.decode("ascii", "replace").split("|")
    stated = fields[17] if len(fields) > 17 else ""
    codec = next((codec for name, codec in CHARSETS.values() if name == stated), "utf-8")
    fields += [""] * (18 - len(fields))
    fields[2:6] = [
        escape(one) if one else old
        for one, old in zip(
            (
                parties.sending_application,
                parties.sending_facility,
                parties.receiving_application,
                parties.receiving_facility,
            ),
            fields[2:6],
            strict=True,
        )
    ]
    fields[17] = CHARSETS[charset][0]
    text = "|".join(fields) + "\r" + rest.decode(codec, "replace")
    return text.encode(CHARSETS[charset][1], errors="replace")


def escape(text: str) -> str:
    r"""Text without a sign that would end a field, component, segment or message (2.7).

    Line ends become ``\.br\``; other control characters ``\Xnn\``.

    >>> escape("a|b^c & 100%\nend\x0b")
    'a\\F\\b\\S\\c \\T\\ 100%\\.br\\end\\X0B\\'
    """
    text = re.sub("\r\n|\r|\n|\x85|\u2028|\u2029", "\n", text[:_MOST_TEXT])
    signs = []
    for sign in text:
        if sign == "\n":
            signs.append("\\.br\\")
        elif sign in _ESCAPES:
            signs.append(_ESCAPES[sign])
        elif ord(sign) < 32 or 127 <= ord(sign) < 160:
            signs.append(f"\\X{ord(sign):02X}\\")
        elif 0xD800 <= ord(sign) <= 0xDFFF:
            signs.append("?")
        else:
            signs.append(sign)
    return "".join(signs)
