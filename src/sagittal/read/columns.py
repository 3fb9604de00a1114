"""Which column of a table is what: the image, the patient, the split, the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sagittal.errors import DataError, nearest
from sagittal.read.files import SPLIT_NAMES

Table = Mapping[str, Sequence[str]]

PATIENT = (
    "patient",
    "patientid",
    "subject",
    "subjectid",
    "participant",
    "participantid",
    "person",
    "personid",
    "lesionid",
    "pid",
)
SPLIT = ("split", "subset", "partition", "set", "fold")
TARGET = (
    "label",
    "labels",
    "class",
    "target",
    "diagnosis",
    "dx",
    "category",
    "finding",
    "findings",
    "findinglabels",
    "grade",
    "level",
    "outcome",
    "y",
)
TEXT = ("report", "reporttext", "text")


def key(name: str) -> str:
    """A column name without case and punctuation: ``Patient_ID`` and ``PatientID`` are one.

    >>> key("Patient_ID"), key("patient id")
    ('patientid', 'patientid')
    """
    return "".join(c for c in name.lower() if c.isalnum())


def named(table: Table, name: str, what: str) -> str:
    """A column that the user named.

    Raises
    ------
    DataError
        If the table has no such column; the nearest is suggested.
    """
    if name in table:
        return name
    fits = [column for column in table if key(column) == key(name)]
    if len(fits) == 1:
        return fits[0]
    raise DataError(f"the table has no column '{name}' for the {what}. {nearest(name, table)}")


def guess_patient(table: Table) -> str | None:
    """The column that says which cases are of one person (or of one lesion)."""
    return _first(table, PATIENT)


def guess_split(table: Table) -> str | None:
    """A column of which every cell names a split, or is empty."""
    for column in table:
        cells = {cell.strip().lower() for cell in table[column]} - {""}
        if key(column) in SPLIT and cells and cells <= set(SPLIT_NAMES):
            return column
    return None


def guess_text(table: Table) -> str | None:
    """A column of report text."""
    return _first(table, TEXT)


def guess_target(table: Table, taken: set[str]) -> str | None:
    """The one column that can only be the answer; ``None`` if nothing is left.

    Raises
    ------
    DataError
        If several columns might be meant.
    """
    left = [column for column in table if column not in taken]
    hinted = [column for column in left if key(column) in TARGET]
    if len(hinted) == 1:
        return hinted[0]
    if len(left) == 1:
        return left[0]
    if not left:
        return None
    shown = ", ".join((hinted or left)[:20])
    raise DataError(f"which column holds the answer? Name it with --target (target=...), one of: {shown}.")


def _first(table: Table, names: Sequence[str]) -> str | None:
    keys = {key(column): column for column in reversed(list(table))}
    return next((keys[name] for name in names if name in keys), None)
