"""Dataset: cases, their splits and the schema they share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sagittal.case import Case
from sagittal.errors import DataError, nearest
from sagittal.labels import LabelScheme

SPLITS = ("train", "val", "test")
#: Kinds of reasons why a study is left out, for machines.
SKIP_CODES = (
    "no-truth", "no-image", "incomplete", "empty-file", "unreadable", "not-an-image", "ambiguous", "selection", "",
)  # fmt: skip


@dataclass(frozen=True)
class Skipped:
    """A study that was left out, and why.

    Parameters
    ----------
    case : str
        Its name, or that of the file or row.
    reason : str
        In words.
    code : str
        One of :data:`SKIP_CODES`: an image of which nothing is known (``no-truth``), truth or a row whose image is not
        there (``no-image``), a part of the case is missing (``incomplete``), a file of no bytes (``empty-file``), damaged
        or contradictory (``unreadable``), something else than an image of a patient (``not-an-image``), more than one
        thing could be meant (``ambiguous``), not asked for (``selection``); empty where it is none of these.
    """

    case: str
    reason: str
    code: str = ""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Cases of one question, as one source gave them.

    Parameters
    ----------
    name : str
        Short and safe to show: a folder's name or ``medmnist:breastmnist``.
    cases : tuple of Case
    scheme : LabelScheme, optional
        ``None`` where the source holds no truth.
    columns : tuple of str
        Columns of the clinical table, label columns left out.
    skipped : tuple of Skipped
        Studies that could not be used; reported, never silently lost.
    layout : str
        The layout that was recognised: ``folders``, ``table``, ``medmnist``, ``dicom_tree`` ...
    notes : tuple of str
        What was guessed on the way, in words: which column names the images, which the patients.

    Raises
    ------
    DataError
        If two cases share an id, or a split has a name that is not known.
    """

    name: str
    cases: tuple[Case, ...]
    scheme: LabelScheme | None = None
    columns: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    layout: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        twice = [name for name, n in Counter(case.id for case in self.cases).items() if n > 1]
        if twice:
            raise DataError(f"{self.name}: {len(twice)} case names are used twice, the first is '{twice[0]}'")
        for case in self.cases:
            if case.split is not None and case.split not in SPLITS:
                raise DataError(f"case {case.id}: unknown split '{case.split}'. {nearest(case.split, SPLITS)}")

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)

    @property
    def patients(self) -> tuple[str, ...]:
        """The patients, each once, in the order of their first case."""
        return tuple(dict.fromkeys(case.patient for case in self.cases))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the source gave, in the order train, val, test."""
        present = {case.split for case in self.cases}
        return tuple(name for name in SPLITS if name in present)

    def split(self, *names: str) -> Dataset:
        """The part of the data set that lies in these splits."""
        for name in names:
            if name not in self.splits:
                raise DataError(
                    f"{self.name}: has no split '{name}'. "
                    + (f"It has: {', '.join(self.splits)}." if self.splits else "The source gives no splits.")
                )
        return replace(self, cases=tuple(case for case in self.cases if case.split in names), skipped=())

    def labelled(self) -> Dataset:
        """The cases of which at least one class is known."""
        return replace(self, cases=tuple(case for case in self.cases if case.truth is not None and case.truth.known))
