"""What each column of a table is for, and the case of one of its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sagittal.case import Case, ImageSource, Truth
from sagittal.errors import DataError
from sagittal.labels import ClassScores, LabelScheme
from sagittal.read import columns
from sagittal.read.files import SPLIT_NAMES
from sagittal.read.request import Request
from sagittal.read.sources import patient_key
from sagittal.read.table_file import Rows
from sagittal.read.truths import UNKNOWN, scheme_of, scheme_of_columns


class Roles:
    """What each column of a table is for.

    Attributes
    ----------
    targets : tuple of str
        The columns of labels, as the user or a guess has it.
    patient, split, text : str or None
    clinical : tuple of str
        The other columns.
    """

    def __init__(self, table: Rows, request: Request, taken: set[str], labels: bool = True) -> None:
        self.kind = request.kind
        self.patient = (
            columns.named(table, request.patient_column, "patient")
            if request.patient_column
            else columns.guess_patient(table)
        )
        self.split = (
            columns.named(table, request.split_column, "split") if request.split_column else columns.guess_split(table)
        )
        self.text = columns.guess_text(table)
        self.taken = taken | {c for c in (self.patient, self.split, self.text) if c}
        self.targets = self._targets(table, request.target) if labels else ()
        self.clinical = tuple(c for c in table if c not in self.taken | set(self.targets) and not _is_key(table[c]))
        self.numbers = {c for c in self.clinical if _is_numeric(table[c])}
        self.guessed_patient = self.patient is not None and not request.patient_column

    def _targets(self, table: Rows, target: str | None) -> tuple[str, ...]:
        if target is None:
            guess = columns.guess_target(
                {c: table[c] for c in table}, self.taken | {c for c in table if _is_key(table[c])}
            )
            return () if guess is None else (guess,)
        if target in table or "," not in target:
            return (columns.named(table, target, "target"),)
        return tuple(columns.named(table, part.strip(), "target") for part in target.split(",") if part.strip())

    def truths(self, table: Rows) -> tuple[LabelScheme | None, list[ClassScores | None]]:
        """The scheme, and the truth of each row."""
        if not self.targets:
            return None, [None] * len(next(iter(table.values())))
        if len(self.targets) == 1:
            scheme, truths = scheme_of(table[self.targets[0]], self.targets[0], self.kind)
        else:
            scheme, truths = scheme_of_columns({c: table[c] for c in self.targets}, ",".join(self.targets))
        return scheme, list(truths)

    def notes(self) -> list[str]:
        """What was guessed, in words."""
        if self.patient is None:
            return ["no column of patients was found: each case counts as a patient of its own"]
        return [f"cases of one patient by column '{self.patient}'" + (" (guessed)" if self.guessed_patient else "")]


def find_roles(table: Rows, request: Request, taken: set[str], *, labels: bool = True) -> Roles:
    """What each column is for, those in `taken` being identifiers; without `labels` no column is the answer."""
    return Roles(table, request, taken, labels)


def make_row_case(
    name: str,
    image: ImageSource | Mapping[str, ImageSource],
    table: Rows,
    row: int,
    roles: Roles,
    truths: Sequence[Truth | None] | Mapping[int, Truth | None],
    *,
    source: str,
    patient: str | None = None,
) -> Case:
    """The case of one row; `truths` holds its truth at the row's number."""
    cell = table[roles.patient][row].strip() if roles.patient else ""
    return Case(
        id=name,
        patient=patient_key(cell) if cell else patient or name,
        images={"image": image} if isinstance(image, ImageSource) else image,
        table={c: _value(table[c][row], c in roles.numbers) for c in roles.clinical},
        text=table[roles.text][row] if roles.text else "",
        truth=truths[row],
        split=_split(table[roles.split][row], name) if roles.split else None,
        source=source,
    )


def _split(cell: str, case: str) -> str | None:
    text = cell.strip().lower()
    if text and text not in SPLIT_NAMES:
        raise DataError(f"case {case}: unknown split '{text[:20]}'; expected train, val or test")
    return SPLIT_NAMES[text] if text else None


def _is_key(cells: list[str]) -> bool:
    """Whether a column of text names each row differently, as a second identifier does."""
    filled = [cell for cell in cells if cell.strip()]
    return len(filled) > 20 and len(set(filled)) == len(filled) and not _is_numeric(cells)


def _is_numeric(cells: list[str]) -> bool:
    filled = [c for c in (cell.strip() for cell in cells) if c.lower() not in UNKNOWN]
    return bool(filled) and all(_number(c) is not None for c in filled)


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _value(cell: str, numeric: bool) -> Any:
    text = cell.strip()
    if numeric:
        return _number(text)
    return None if text.lower() in UNKNOWN - {"-1"} else text
