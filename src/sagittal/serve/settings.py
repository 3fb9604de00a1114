"""Tables of a TOML file as frozen dataclasses: every unknown key and every wrong value is found, and told all at once.

The dataclass says what is expected. A field ``silence_s`` is the key ``silence``, a time such as ``"30s"`` or seconds; a
field ``most_upload_bytes`` is the key ``most_upload``, a size such as ``"4 GiB"`` or bytes.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from sagittal.errors import ConfigError, nearest

T = TypeVar("T")

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "y": 31557600.0}
_BYTES = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_TIME = re.compile(r"(?:\d+(?:\.\d+)?\s*[a-z]+\s*)+", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII)


class Problems(list[str]):
    """What is wrong, one line each, with the place."""

    def add(self, where: str, what: str) -> None:
        """Note something wrong at a place such as ``dicom.port``."""
        self.append(f"{where}: {what}" if where else what)


def seconds(value: Any) -> float:
    """Seconds of a time such as ``"30s"``, ``"1h 30m"``, ``"90d"`` or a number of seconds.

    Raises
    ------
    ConfigError
        If it is none.

    >>> seconds("1h 30m"), seconds(5), seconds("90d")
    (5400.0, 5.0, 7776000.0)
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value < 0:
            raise ConfigError(f"a time cannot be negative: {value}")
        return float(value)
    text = str(value).strip().lower()
    if _TIME.fullmatch(text):
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text)
        if all(unit in _SECONDS for _, unit in parts):
            return sum(float(count) * _SECONDS[unit] for count, unit in parts)
    raise ConfigError(f"expected a time such as '30s', '15m', '12h' or '90d', found {value!r}")


def size(value: Any) -> int:
    """Bytes of a size such as ``"4 GiB"``, ``"500 MB"`` or a number of bytes.

    Raises
    ------
    ConfigError
        If it is none.

    >>> size("4 GiB"), size("1.5 kB"), size(10)
    (4294967296, 1500, 10)
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(str(value).strip().lower())
    if match is None or match[2] not in _BYTES or isinstance(value, bool):
        raise ConfigError(f"expected a size such as '500 MB' or '4 GiB', found {value!r}")
    return int(float(match[1]) * _BYTES[match[2]])


def read_table(kind: type[T], values: Any, where: str, problems: Problems) -> T | None:
    """A dataclass from a table; ``None`` and an entry in `problems` where it cannot be made.

    Parameters
    ----------
    kind : dataclass
    values : mapping
        As a TOML reader gives it.
    where : str
        The table's name, for messages.
    problems : Problems
        Grows.
    """
    if not isinstance(values, Mapping):
        problems.add(where, f"expected a table, found {_called(values)}")
        return None
    before = len(problems)
    hints = typing.get_type_hints(kind)
    fields = {_key(field.name): field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    names = {**{field.name: field for field in fields.values()}, **fields}
    given: dict[str, Any] = {}
    for key, value in values.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in names:
            problems.add(place, f"unknown key. {nearest(str(key), fields)}")
            continue
        field = names[key]
        given[field.name] = _read(hints[field.name], value, place, problems, field.name)
    for key, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and field.name not in given:
            problems.add(f"{where}.{key}" if where else key, "is missing")
    if len(problems) > before:
        return None
    try:
        return kind(**given)
    except ConfigError as error:
        problems.add(where, str(error))
        return None


def _key(name: str) -> str:
    """The key of a field: its name without the unit.

    >>> _key("silence_s"), _key("most_upload_bytes"), _key("address")
    ('silence', 'most_upload', 'address')
    """
    for ending in ("_bytes", "_s"):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return name


def _read(hint: Any, value: Any, where: str, problems: Problems, name: str) -> Any:
    """A value as its type asks for it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value == "auto" and type(None) in arguments:
            return None  # said aloud, what holds where nothing is said
        inner = [one for one in arguments if one is not type(None)]
        return _read(inner[0], value, where, problems, name)
    if dataclasses.is_dataclass(hint):
        return read_table(typing.cast("type[Any]", hint), value, where, problems)
    if origin is tuple:
        return _read_tuple(arguments, value, where, problems, name)
    if origin in (Mapping, dict) or hint in (Mapping, dict):
        if not isinstance(value, Mapping):
            problems.add(where, f"expected a table, found {_called(value)}")
            return {}
        inner_type = arguments[1] if len(arguments) > 1 else Any
        return {str(key): _read(inner_type, one, f"{where}.{key}", problems, "") for key, one in value.items()}
    if origin is typing.Literal:
        if value not in arguments:
            found = nearest(str(value), [str(one) for one in arguments])
            problems.add(where, f"{value!r} is none of those known. {found}")
        return value
    return _read_plain(hint, value, where, problems, name)


def _read_plain(hint: Any, value: Any, where: str, problems: Problems, name: str) -> Any:
    try:
        if hint is Any:
            return value
        if name.endswith("_s") and hint is float:
            return seconds(value)
        if name.endswith("_bytes") and hint is int:
            return size(value)
    except ConfigError as error:
        problems.add(where, str(error))
        return 0
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, str):
        return value
    problems.add(where, f"expected {_WORDS.get(hint, 'another kind of value')}, found {_called(value)}")
    return value


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


def _read_tuple(arguments: tuple[Any, ...], value: Any, where: str, problems: Problems, name: str) -> tuple[Any, ...]:
    several = len(arguments) == 2 and arguments[1] is Ellipsis
    if several and isinstance(value, str) and arguments[0] is str:
        value = [value]  # one of several is written without brackets
    if not isinstance(value, list):
        problems.add(where, f"expected a list, found {_called(value)}")
        return ()
    if several:
        return tuple(_read(arguments[0], one, f"{where}[{n}]", problems, name) for n, one in enumerate(value, start=1))
    if len(value) != len(arguments):
        problems.add(where, f"expected {len(arguments)} values, found {len(value)}")
        return ()
    return tuple(_read(kind, one, where, problems, name) for kind, one in zip(arguments, value, strict=True))


def _called(value: Any) -> str:
    """A value's kind in words; its text only where it is short."""
    words = {
        dict: "a table",
        list: "a list",
        bool: str(value).lower(),
        str: repr(value) if len(str(value)) < 60 else "a long text",
    }
    return words.get(type(value), repr(value))
