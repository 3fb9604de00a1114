"""Quality gates: ``auc>=0.9``, ``auc.low>=0.85``, ``malignant.sensitivity>0.8``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sagittal.errors import ConfigError, nearest

_SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_RULE = re.compile(r"\s*(.+?)\s*(>=|<=|>|<)\s*([-+.\deE]+)\s*")
_PARTS = ("value", "low", "high", "n")


@dataclass(frozen=True)
class Rule:
    """What a measure must reach.

    Parameters
    ----------
    measure : str
        ``auc`` overall, or ``CLASS.sensitivity``; ``.low`` and ``.high`` mean the ends of its interval.
    sign : str
    limit : float
    """

    measure: str
    sign: str
    limit: float

    def __str__(self) -> str:
        return f"{self.measure}{self.sign}{self.limit:g}"


def parse_rule(text: str) -> Rule:
    """A rule from the command line.

    >>> print(parse_rule("auc >= 0.90"))
    auc>=0.9

    Raises
    ------
    ConfigError
        If it is no rule.
    """
    match = _RULE.fullmatch(text)
    try:
        if match:
            return Rule(match[1], match[2], float(match[3]))
    except ValueError:
        pass
    raise ConfigError(f"--require '{text}': expected a measure, a sign and a number, such as 'auc>=0.9'")


def miss(rule: Rule, evidence: Mapping[str, Any]) -> str:
    """What is missing to fulfil a rule, in words; empty where it holds. An undefined measure misses.

    Raises
    ------
    ConfigError
        If there is no such measure; the nearest is named.
    """
    value = _find(rule.measure, evidence)
    if value is None:
        return f"{rule} but it is undefined"
    return "" if _SIGNS[rule.sign](value, rule.limit) else f"{rule} but it is {value:.4g}"


def _find(measure: str, evidence: Mapping[str, Any]) -> float | None:
    known = dict(evidence["overall"])
    for name, measures in (evidence.get("classes") or {}).items():
        known.update({f"{name}.{key}": value for key, value in measures.items()})
    stem, _, part = measure.rpartition(".")
    if measure in known:
        stem, part = measure, "value"
    if stem not in known or part not in _PARTS:
        raise ConfigError(f"--require: there is no measure '{measure}'. {nearest(measure, known)}")
    value: float | None = known[stem][part]
    return value
