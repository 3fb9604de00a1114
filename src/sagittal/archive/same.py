"""Whether two files hold the same data set, whatever was written before it.

An object that comes from the PACS by C-STORE and again by the web has another file meta information, and is the same.
"""

from __future__ import annotations

from pathlib import Path

from sagittal.archive.elements import More, find_meta
from sagittal.archive.refused import Refused

_BLOCK = 2**20


def same_data_set(one: Path, other: Path) -> bool:
    """Whether the bytes behind the file meta information are equal; false where a file cannot be read.

    Parameters
    ----------
    one, other : Path
        Files of PS3.10 in the same transfer syntax.
    """
    try:
        with one.open("rb") as first, other.open("rb") as second:
            first.seek(find_meta(first.read(_BLOCK), 2**62).start)
            second.seek(find_meta(second.read(_BLOCK), 2**62).start)
            while True:
                block = first.read(_BLOCK)
                if block != second.read(_BLOCK):
                    return False
                if not block:
                    return True
    except (OSError, More, Refused):
        return False
