"""The worklist: a page of studies, filtered and sorted in the database, the same speed however many there are.

Pages follow each other by key, not by number: studies that arrive meanwhile move nothing. Ids are found in indexes that
hold all that filters ask for; only the rows of one page are read.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from sagittal.archive.text import fold
from sagittal.database.connect import Database
from sagittal.database.schema import STATUS, studies
from sagittal.errors import ConfigError, nearest

#: The orders of a worklist. ``urgency``: what nobody has reviewed first, the most urgent first, the newest first.
SORTS = ("urgency", "newest", "oldest", "confidence", "name", "date")
FILTERS = ("status", "urgency", "text", "modality", "from", "to", "verdict", "abstained")
#: Most studies of one page.
MOST = 500
_NONE = ("", None)


@dataclass(frozen=True)
class Page:
    """A page of the worklist.

    Attributes
    ----------
    studies : list of dict
        Columns of ``studies``.
    next : str or None
        What to give as ``after`` for the next page; ``None`` on the last.
    counts : dict of str to int
        How many studies have each status, under all filters but that of the status.
    """

    studies: list[dict[str, Any]]
    next: str | None
    counts: dict[str, int]


@dataclass(frozen=True)
class _Run:
    """Studies of one sort, in one direction along one index."""

    where: Sequence[sa.ColumnElement[bool]]
    key: sa.ColumnElement[Any]
    down: bool


def worklist(
    db: Database,
    filters: Mapping[str, str] | None = None,
    sort: str = "urgency",
    limit: int = 50,
    after: str | None = None,
    *,
    counts: bool = True,
) -> Page:
    """A page of the worklist.

    Parameters
    ----------
    filters : mapping of str to str
        ``status``, ``verdict``, ``modality`` (one or several, by commas; the verdict ``none`` is that of studies nobody
        reviewed), ``urgency`` (0 to 2, the least), ``text`` (words of name, id or accession number), ``from`` and ``to``
        (study date, YYYYMMDD or YYYY-MM-DD), ``abstained`` (true or false). Empty ones do not matter.
    sort : str
        One of :data:`SORTS`.
    limit : int
    after : str, optional
        ``next`` of the page before.
    counts : bool
        Whether to count.

    Raises
    ------
    ConfigError
        If a filter, the sort or `after` is none.
    """
    where, status = _conditions(filters or {})
    runs = _runs(sort)
    limit = max(1, min(limit, MOST))
    first, place = _place(after, sort, len(runs))
    with db.read() as c:
        ids: list[tuple[int, Any, int]] = []  # run, key, id
        for number in range(first, len(runs)):
            beyond = place if number == first else None
            ids += [
                (number, key, id_)
                for id_, key in _ids(c, runs[number], (*where, *status), limit + 1 - len(ids), beyond)
            ]
            if len(ids) > limit:
                break
        shown = ids[:limit]
        rows = c.execute(sa.select(studies).where(studies.c.id.in_([id_ for _, _, id_ in shown]))).mappings()
        found = {row["id"]: dict(row) for row in rows}
        told = _counts(c, where) if counts else {}
    more = len(ids) > limit
    return Page(
        [found[id_] for _, _, id_ in shown if id_ in found],
        _token(sort, *shown[-1]) if more else None,
        told,
    )


def _ids(
    c: sa.Connection, run: _Run, where: Sequence[sa.ColumnElement[bool]], limit: int, beyond: tuple[Any, int] | None
) -> list[tuple[int, Any]]:
    statement = sa.select(studies.c.id, run.key.label("key")).where(*run.where, *where)
    if beyond is not None:
        here = sa.tuple_(run.key, studies.c.id)
        there = sa.tuple_(*(sa.literal(value) for value in beyond))
        statement = statement.where(here < there if run.down else here > there)
    if run.down:
        statement = statement.order_by(run.key.desc(), studies.c.id.desc())
    else:
        statement = statement.order_by(run.key, studies.c.id)
    return [(row.id, row.key) for row in c.execute(statement.limit(limit))]


def _runs(sort: str) -> list[_Run]:
    s = studies.c
    if sort == "urgency":
        return [
            *(_Run((s.verdict == "", s.urgency == urgency), s.arrived_at, True) for urgency in (2, 1, 0)),
            _Run((s.verdict != "",), s.arrived_at, True),
        ]
    if sort == "confidence":
        return [
            _Run((s.confidence.is_not(None),), s.confidence, True),
            _Run((s.confidence.is_(None),), s.arrived_at, True),
        ]
    one = {
        "newest": _Run((), s.arrived_at, True),
        "oldest": _Run((), s.arrived_at, False),
        "name": _Run((), s.patient_search, False),
        "date": _Run((), s.study_date, True),
    }
    if sort not in one:
        raise ConfigError(f"there is no sort {sort[:32]!r}. {nearest(sort[:32], SORTS)}")
    return [one[sort]]


def _conditions(filters: Mapping[str, str]) -> tuple[list[sa.ColumnElement[bool]], list[sa.ColumnElement[bool]]]:
    """What the filters ask for: all but the status, and the status."""
    s = studies.c
    where: list[sa.ColumnElement[bool]] = [s.status != "deleted"]  # which is being done
    status: list[sa.ColumnElement[bool]] = []
    for name, value in filters.items():
        if name not in FILTERS:
            raise ConfigError(f"there is no filter {name[:32]!r}. {nearest(name[:32], FILTERS)}")
        if value in _NONE:
            continue
        text = str(value)
        if name == "status":
            status.append(s.status.in_(_known(text, STATUS, "status")))
        elif name == "verdict":
            words = _known(text, ("none", "accept", "correct", "reject"), "verdict")
            where.append(s.verdict.in_(["" if word == "none" else word for word in words]))
        elif name == "urgency":
            where.append(s.urgency >= int(_known(text, ("0", "1", "2"), "urgency")[0]))
        elif name == "abstained":
            where.append(s.abstained.is_(_known(text.lower(), ("true", "false"), "abstained")[0] == "true"))
        elif name == "modality":
            either = [_has_modality(word) for word in text.upper().split(",")[:16] if word]
            where.append(sa.or_(sa.false(), *either))
        elif name in {"from", "to"}:
            date = text.replace("-", "")
            if len(date) != 8 or not date.isdigit() or not date.isascii():
                raise ConfigError(f"{name} is a date such as 2026-01-31")
            where.append(s.study_date >= date if name == "from" else s.study_date <= date)
            if name == "to":
                where.append(s.study_date != "")
        else:
            where += [_mentions(word) for word in fold(text[:256]).split()[:8]]
    return where, status


def _known(text: str, known: Sequence[str], what: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in known:
            raise ConfigError(f"there is no {what} {word[:32]!r}. {nearest(word[:32], known)}")
    return words or [""]


def _has_modality(modality: str) -> sa.ColumnElement[bool]:
    whole = "\\" + studies.c.modalities + "\\"
    return whole.contains(f"\\{modality}\\", autoescape=True)


def _mentions(word: str) -> sa.ColumnElement[bool]:
    # A query of its own, so that the index of this one column is read and not the table.
    other = studies.alias()
    return studies.c.id.in_(sa.select(other.c.id).where(other.c.patient_search.contains(word, autoescape=True)))


def _counts(c: sa.Connection, where: Sequence[sa.ColumnElement[bool]]) -> dict[str, int]:
    # Grouped by what is no column, or SQLite walks the index of the status and reads the table for each of the others.
    status = studies.c.status if len(where) == 1 else studies.c.status.concat(sa.literal_column("''"))
    found = c.execute(sa.select(status, sa.func.count()).where(*where).group_by(status))
    return {status: int(count) for status, count in found}


def _token(sort: str, run: int, key: Any, id_: int) -> str:
    return base64.urlsafe_b64encode(json.dumps([sort, run, key, id_]).encode()).decode().rstrip("=")


def _place(after: str | None, sort: str, runs: int) -> tuple[int, tuple[Any, int] | None]:
    if not after:
        return 0, None
    try:
        told = json.loads(base64.urlsafe_b64decode(after[:2048] + "=" * (-len(after[:2048]) % 4)))
        of, run, key, id_ = told
        good = of == sort and 0 <= int(run) < runs and isinstance(key, (str, int, float))
        if good and isinstance(id_, int) and not isinstance(id_, bool) and abs(id_) < 2**63:
            return int(run), (key, id_)
    except (ValueError, TypeError, RecursionError):
        pass
    raise ConfigError("'after' is not the mark of a page of this worklist: begin at its first page")
