"""The data sets of storage commitment: what is asked, and what is reported. Standard: PS3.4 tables J.3-1 and J.3-2."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from sagittal.archive.refused import Refused
from sagittal.serve.dimse import is_uid

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

#: References in one request; the largest studies have about 10,000 objects.
MOST_ITEMS = 20_000
_IMPLICIT = "1.2.840.10008.1.2"

Item = tuple[str, str]  # class, instance


@dataclass(frozen=True)
class Outcome:
    """What is reported of one request.

    Attributes
    ----------
    safe : tuple of (class, instance)
        Objects that are kept.
    failed : tuple of (class, instance, reason)
        Objects that are not, with the reason of PS3.3 C.14.1.1.
    """

    transaction: str
    safe: tuple[Item, ...]
    failed: tuple[tuple[str, str, int], ...] = ()

    @property
    def kind(self) -> int:
        """The Event Type ID: 1 all are safe, 2 there are failures."""
        return 2 if self.failed else 1


def read_action(data: bytes, syntax: str) -> tuple[str, list[Item]]:
    """The transaction and the objects of a request, PS3.4 table J.3-1.

    Parameters
    ----------
    data : bytes
        The data set of an N-ACTION.
    syntax : str
        Its transfer syntax: implicit or explicit little endian.

    Raises
    ------
    Refused
        If it cannot be read, or names too many objects or none.
    """
    header = _read(data, syntax)
    items = _references(header, "ReferencedSOPSequence")
    if not items:
        raise Refused("unreadable", "no objects are named")
    return _transaction(header), [(uid, instance) for uid, instance, _ in items]


def read_report(data: bytes, syntax: str) -> tuple[str, int]:
    """The transaction of a report that another archive sends us, and how many of its objects failed.

    Raises
    ------
    Refused
        If it cannot be read.
    """
    header = _read(data, syntax)
    return _transaction(header), len(_references(header, "FailedSOPSequence"))


def write_report(outcome: Outcome, syntax: str) -> bytes:
    """The data set of an N-EVENT-REPORT, PS3.4 table J.3-2."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, syntax == _IMPLICIT
    write_dataset(file, _report(outcome))
    return file.getvalue()


def _report(outcome: Outcome) -> Dataset:
    from pydicom.dataset import Dataset

    def reference(uid: str, instance: str) -> Dataset:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = uid, instance
        return item

    header = Dataset()
    header.TransactionUID = outcome.transaction
    if outcome.safe:
        header.ReferencedSOPSequence = [reference(*item) for item in outcome.safe]
    if outcome.failed:
        header.FailedSOPSequence = []
        for uid, instance, reason in outcome.failed:
            item = reference(uid, instance)
            item.FailureReason = reason
            header.FailedSOPSequence.append(item)
    return header


def _read(data: bytes, syntax: str) -> Dataset:
    from pydicom.filereader import read_dataset

    try:
        return read_dataset(BytesIO(data), syntax == _IMPLICIT, True, bytelength=len(data))
    except (
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        OSError,
        AttributeError,
        NotImplementedError,
        RecursionError,
    ) as e:
        raise Refused("unreadable", "the data set cannot be read") from e


def _transaction(header: Dataset) -> str:
    uid = _string(header, "TransactionUID")
    if not is_uid(uid):
        raise Refused("identifiers", "the transaction has no UID")
    return uid


def _references(header: Dataset, keyword: str) -> list[tuple[str, str, int]]:
    try:
        sequence = list(header.get(keyword) or [])
        if len(sequence) > MOST_ITEMS:
            raise Refused("too-large", f"more than {MOST_ITEMS} objects")
        found = [
            (_string(item, "ReferencedSOPClassUID"), _string(item, "ReferencedSOPInstanceUID"), 0) for item in sequence
        ]
    except (ValueError, KeyError, TypeError, EOFError, AttributeError, NotImplementedError, RecursionError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused("unreadable", "the list of objects cannot be read") from error
    if not all(is_uid(uid) and is_uid(instance) for uid, instance, _ in found):
        raise Refused("identifiers", "an object has no UID")
    return found


def _string(header: Dataset, keyword: str) -> str:
    return str(header.get(keyword) or "")
