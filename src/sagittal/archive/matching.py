"""What an attribute must be to match a key of a search, as a condition in SQL.

Source: PS3.4 C.2.2.2: single values, lists of UIDs, universal matching, wild cards, ranges, and empty values (``""``).
Names match without case and accents, in each of their forms; everything else as it is written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from sagittal.archive.text import fold
from sagittal.errors import ConfigError

_DATE = re.compile(r"[0-9]{8}", re.ASCII)
_TIME = re.compile(r"([0-9]{2})([0-9]{2})?([0-9]{2})?(\.[0-9]{1,6})?", re.ASCII)
_WILD = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})


@dataclass(frozen=True)
class Field:
    """Where an attribute lies.

    Attributes
    ----------
    vr : str
        Value representation; ``PN`` only for the column of folded names.
    column : sqlalchemy.Column
    tag : int
        Of the attribute in a column of DICOM JSON; 0 for a column of its own.
    part : str
        Of a name in DICOM JSON.
    """

    vr: str
    column: sa.ColumnElement[Any]
    tag: int = 0
    part: str = ""


def condition(dialect: str, field: Field, value: str, *, fuzzy: bool) -> sa.ColumnElement[bool] | None:
    """The condition under which an attribute matches; ``None`` where everything does.

    Parameters
    ----------
    dialect : str
        ``"sqlite"`` or ``"postgresql"``.
    field : Field
    value : str
        The key.
    fuzzy : bool
        Whether each word of a name may be the beginning of one.

    Raises
    ------
    ConfigError
        If the value is none that the attribute can have; it is not repeated in the message.
    """
    value = value.strip(" \0")
    if not value or (field.vr in _WILD and not value.strip("*")):
        return None
    if value == '""':
        return _is_empty(dialect, field)
    if field.vr == "PN":
        return _name(field.column, value, fuzzy)
    if not field.tag:
        return _matches(dialect, field.column, field.vr, value)
    each = _values(dialect, field)
    return sa.exists(
        sa.select(sa.literal(1))
        .select_from(each)
        .where(_matches(dialect, _text(dialect, each, field), field.vr, value))
    )


def _values(dialect: str, field: Field) -> Any:
    """The values of an attribute in DICOM JSON, as rows."""
    tag = f"{field.tag:08X}"
    if dialect == "sqlite":
        return sa.func.json_each(field.column, f'$."{tag}".Value').table_valued("value")
    made = sa.cast(field.column, sa.JSON)[tag]["Value"]
    if field.part:
        return sa.func.json_array_elements(made).table_valued("value")
    return sa.func.json_array_elements_text(made).table_valued("value")


def _text(dialect: str, each: Any, field: Field) -> sa.ColumnElement[Any]:
    value: sa.ColumnElement[Any] = each.c.value
    if not field.part:
        return sa.cast(value, sa.Text) if field.vr not in {"IS"} else sa.cast(value, sa.Integer)
    if dialect != "sqlite":
        made: sa.ColumnElement[Any] = sa.cast(value, sa.JSON)[field.part].as_string()
        return made
    return sa.cast(sa.func.json_extract(value, f"$.{field.part}"), sa.Text)


def _is_empty(dialect: str, field: Field) -> sa.ColumnElement[bool]:
    if field.tag:
        return ~sa.exists(sa.select(sa.literal(1)).select_from(_values(dialect, field)))
    if field.vr == "PN":
        return field.column.startswith("==", autoescape=True)
    return field.column.is_(None) if field.vr == "IS" else field.column == ""


def _matches(dialect: str, column: sa.ColumnElement[Any], vr: str, value: str) -> sa.ColumnElement[bool]:
    if vr == "UI":
        return column.in_([part.strip() for part in re.split(r"[\\,]", value) if part.strip()][:10_000])
    if vr == "IS":
        numbers = [part.strip() for part in value.split("\\")]
        if not all(re.fullmatch(r"[+-]?[0-9]{1,12}", number, re.ASCII) for number in numbers):
            raise ConfigError("a key of a search is not the whole number that its attribute is")
        return column.in_([int(number) for number in numbers])
    if vr == "DA":
        return _date(column, value)
    if vr == "TM":
        return _time(column, value)
    parts = value.split("\\")[:100]
    return sa.or_(*(_like(dialect, column, part) for part in parts))


def _like(dialect: str, column: sa.ColumnElement[Any], value: str) -> sa.ColumnElement[bool]:
    if "*" not in value and "?" not in value:
        return column == value
    if dialect == "sqlite":  # GLOB minds the case, and uses the index where the beginning is given
        return column.op("GLOB", is_comparison=True)(re.sub(r"([\[\]])", r"[\1]", value))
    return column.like(_pattern(value), escape="/")


def _pattern(value: str) -> str:
    return re.sub(r"([%_/])", r"/\1", value).replace("*", "%").replace("?", "_")


def _name(column: sa.ColumnElement[Any], value: str, fuzzy: bool) -> sa.ColumnElement[bool]:
    """Of the column of folded names, ``=one form=another=|...``."""
    if fuzzy:
        words = [word.strip("*?") for word in fold(value).split()]
        found = []
        for word in (_pattern(word) for word in words[:8] if word):
            found.append(sa.or_(*(column.like(f"%{mark}{word}%|%|%|", escape="/") for mark in "= ")))
        return sa.and_(sa.true(), *found)
    either = []
    for form in value.rstrip("=^").split("=")[:3]:
        folded = fold(form.rstrip("^"))
        if folded:
            either.append(column.like(f"%={_pattern(folded)}=%|%|%|", escape="/"))
    return sa.or_(sa.false(), *either)


def _date(column: sa.ColumnElement[Any], value: str) -> sa.ColumnElement[bool]:
    """PS3.4 C.2.2.2.5.1: a date, or a range with one end or both."""
    value = value.replace(".", "")
    if "-" not in value:
        _check(_DATE, value)
        return column == value
    low, _, high = value.partition("-")
    found = [column != ""]
    if low:
        _check(_DATE, low)
        found.append(column >= low)
    if high:
        _check(_DATE, high)
        found.append(column <= high)
    return sa.and_(*found)


def _time(column: sa.ColumnElement[Any], value: str) -> sa.ColumnElement[bool]:
    """PS3.4 C.2.2.2.5.2: a time, or a range; what it leaves out may be anything."""
    value = value.replace(":", "")
    low, dash, high = value.partition("-")
    if not dash:
        _check(_TIME, low)
        return column.startswith(low, autoescape=True)
    found = [column != ""]
    if low:
        _check(_TIME, low)
        found.append(column >= low)
    if high:
        _check(_TIME, high)
        found.append(column <= high + "235959.999999"[len(high) :])  # the whole of the last hour, minute or second
    return sa.and_(*found)


def _check(shape: re.Pattern[str], value: str) -> None:
    if not shape.fullmatch(value):
        raise ConfigError("a key of a search is no date, time or range of them as PS3.5 writes it")
