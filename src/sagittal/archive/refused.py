"""What is not kept, and why: the errors of receiving, and the list that an administrator reads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import sqlalchemy as sa

from sagittal.database.schema import refusals
from sagittal.errors import DataError, ResourceError

if TYPE_CHECKING:
    from sagittal.database.connect import Database

#: Code of a refusal -> what it means. A code is an interface: pages translate it, DICOM and HTTP map it to a status.
CODES = {
    "unreadable": "not DICOM, cut off or damaged",
    "too-deep": "sequences nested too deep, or too many elements",
    "too-large": "more bytes than an object may have",
    "transfer-syntax": "a transfer syntax that is not kept",
    "identifiers": "a UID is missing or is no UID",
    "mismatch": "the data set is not the object that was announced",
    "no-pixel-data": "an image without pixel data",
    "pixel-length": "rows, columns and frames do not fit the pixel data",
    "zip-bomb": "unpacks to more than may be",
    "unsupported": "a kind of file that is not read",
}
#: Seconds in which the same refusal of the same sender is one row.
_TOGETHER_S = 3600.0


class Refused(DataError):  # noqa: N818
    """An object is not kept.

    Attributes
    ----------
    code : str
        One of :data:`CODES`.
    reason : str
        What was found and what was expected, without header text.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class ArchiveFull(ResourceError):  # noqa: N818
    """The disk has no room: C-STORE answers 0xA700, HTTP 507. What was acknowledged before is never given up for it."""


def record_refusal(db: Database, source: str, code: str, reason: str) -> None:
    """Put a refusal into the administrator's list; the same one again within an hour is counted.

    Parameters
    ----------
    source : str
        "dicom AE", "stow", "rest", "folder".
    code : str
        One of :data:`CODES`.
    reason : str
        Without header text.
    """
    at = time.time()
    same = (refusals.c.source == source, refusals.c.code == code, refusals.c.reason == reason)
    with db.write() as c:
        latest = c.execute(
            sa.select(refusals.c.id)
            .where(*same, refusals.c.at > at - _TOGETHER_S)
            .order_by(refusals.c.id.desc())
            .limit(1)
        ).scalar()
        if latest is None:
            c.execute(sa.insert(refusals).values(at=at, source=source, code=code, reason=reason, count=1))
        else:
            c.execute(sa.update(refusals).where(refusals.c.id == latest).values(count=refusals.c.count + 1))
