"""What a C-STORE answers when an object is not kept, and what the log says of it. Standard: PS3.4 B.2.3, PS3.7 C."""

from __future__ import annotations

import logging
import secrets
import traceback
from pathlib import Path

from sagittal.archive.refused import CODES, ArchiveFull, Refused
from sagittal.errors import ResourceError, ServeError
from sagittal.node import dimse

logger = logging.getLogger(__name__)

#: What the archive refuses -> the status that says so, PS3.4 B.2.3: A9xx the data set does not match its class, Cxxx it
#: cannot be understood. The last two digits are ours and tell the reasons apart.
STATUS_OF = {
    "mismatch": 0xA900,
    "identifiers": 0xA901,
    "no-pixel-data": 0xA902,
    "pixel-length": 0xA903,
    "unreadable": 0xC000,
    "too-deep": 0xC001,
    "too-large": 0xC002,
    "transfer-syntax": 0xC003,
}


def status_of(error: Exception) -> tuple[int, str]:
    """Status and comment that answer for an object that is not kept.

    Parameters
    ----------
    error : Exception
        What the archive raised.

    Returns
    -------
    (int, str)
        The comment holds at most 64 characters and nothing of the object.
    """
    if isinstance(error, Refused):
        return STATUS_OF.get(error.code, dimse.CANNOT_UNDERSTAND), CODES.get(error.code, "refused")
    if isinstance(error, ArchiveFull):
        return dimse.OUT_OF_RESOURCES, "no room on the disk"
    if isinstance(error, (ResourceError, ServeError, OSError, MemoryError)):
        logger.warning("an object was not kept: %s", type(error).__name__)
        return dimse.OUT_OF_RESOURCES, "not kept now; send it again"
    name = secrets.token_hex(4)  # told to the peer and to the log, so that one finds the other; no header text
    logger.error("error %s: an object was not kept: %s", name, place_of(error))
    return dimse.PROCESSING_FAILURE, f"error {name}"


def place_of(error: BaseException) -> str:
    """What kind of error, and where it arose: for the log, which must not hold its text (there may be a header in it).

    >>> try:
    ...     {}["Secret^Name"]
    ... except KeyError as error:
    ...     print(place_of(error).partition(" ")[0])
    KeyError
    """
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).stem}:{frame.lineno}" for frame in frames[-3:]]
    return f"{type(error).__name__} at {' > '.join(places)}"
