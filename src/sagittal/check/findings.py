"""Findings: what is wrong, doubtful or worth knowing about a data set before anything is spent on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sagittal.errors import DataError

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
#: Codes of findings that say that something of a held-out split stands in another one as well.
LEAKAGE = frozenset({"patient-in-two-splits", "file-in-two-splits", "pixels-in-two-splits", "near-copy-in-two-splits"})


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Parameters
    ----------
    severity : {"error", "warning", "note"}
        An error forbids training; a warning leaves the result doubtful; a note is worth knowing.
    code : str
        Short and stable, for machines: ``"one-class"``, ``"patient-in-two-splits"`` ...
    message : str
        What was found, what was expected and what to do.
    cases : tuple of str
        Ids of the cases concerned, where it is about cases.
    pairs : tuple of (str, str)
        Ids of cases that belong together, where it is about copies.
    details : mapping of str to str
        Case -> what was found there, where that differs from case to case; ``"a = b"`` -> likewise for a pair.
    """

    severity: Severity
    code: str
    message: str
    cases: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values; pairs and details where there are any."""
        values = {"severity": self.severity, "code": self.code, "message": self.message, "cases": list(self.cases)}
        return {
            **values,
            **({"pairs": [list(pair) for pair in self.pairs]} if self.pairs else {}),
            **({"details": dict(self.details)} if self.details else {}),
        }


class Findings:
    """Everything that was found, errors first.

    >>> found = Findings([Finding("note", "small", "20 cases"), Finding("error", "one-class", "only 'a'")])
    >>> found.may_train, [f.code for f in found]
    (False, ['one-class', 'small'])
    """

    def __init__(self, findings: Iterable[Finding] = ()) -> None:
        self._findings = tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity)))

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._findings)

    def __len__(self) -> int:
        return len(self._findings)

    @property
    def may_train(self) -> bool:
        """Whether nothing forbids to train."""
        return not self.of("error")

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(f for f in self._findings if f.severity == severity)

    def leakage(self) -> tuple[Finding, ...]:
        """The findings that training on one split would spoil another, whatever their severity."""
        return tuple(f for f in self._findings if f.code in LEAKAGE)

    def allow_leakage(self) -> Findings:
        """The same findings, of which leakage forbids nothing: each is a warning that says that it was allowed."""
        return Findings(
            replace(f, severity="warning", message=f"{f.message} (Allowed on request.)")
            if f.code in LEAKAGE and f.severity == "error"
            else f
            for f in self._findings
        )

    def codes(self) -> set[str]:
        """The codes that occur."""
        return {f.code for f in self._findings}

    def demand(self) -> None:
        """Go on only if training is possible.

        Raises
        ------
        DataError
            With the messages of all errors.
        """
        if not self.may_train:
            raise DataError(" ".join(f.message for f in self.of("error")))

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values, errors first."""
        return [f.to_json() for f in self._findings]


def number_of(count: int, one: str, several: str = "") -> str:
    """A count with its noun, and perhaps its verb.

    >>> number_of(1, "mask lies", "masks lie"), number_of(1200, "box", "boxes"), number_of(2, "case")
    ('1 mask lies', '1,200 boxes', '2 cases')
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def some(cases: Iterable[str], most: int = 5) -> str:
    """The first few case ids, for a message.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    names = list(cases)
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
