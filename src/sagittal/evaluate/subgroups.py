"""Subgroups: cases that share a value of a clinical column, numbers cut at quantiles, missing values apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sagittal.types import Bools

if TYPE_CHECKING:
    import pandas as pd

#: A group with fewer cases is shown, and marked as too small to conclude from.
SMALL = 20

#: A column of numbers with more different values than this is cut into bins.
FEW_VALUES = 6

#: A column of names keeps its most frequent groups; the rest are taken together.
MOST_GROUPS = 20

MISSING = "(missing)"


@dataclass(frozen=True, eq=False)
class Grouping:
    """How a column divides the cases.

    Parameters
    ----------
    column : str
    members : mapping of str to (n,) bool
        Each case is in exactly one group.
    edges : tuple of float
        Where a column of numbers was cut: bins include their lower edge, the last one also its upper.
    pooled : tuple of str
        Values that were too rare for a group of their own.
    """

    column: str
    members: dict[str, Bools] = field(default_factory=dict)
    edges: tuple[float, ...] = ()
    pooled: tuple[str, ...] = ()

    @property
    def small(self) -> tuple[str, ...]:
        """Groups of fewer than 20 cases."""
        return tuple(name for name, here in self.members.items() if here.sum() < SMALL)

    def to_json(self) -> dict[str, Any]:
        """How the groups were made."""
        return {
            "cases": {name: int(here.sum()) for name, here in self.members.items()},
            "edges": list(self.edges),
            "small": list(self.small),
            "pooled": list(self.pooled),
        }


def group_by(values: pd.Series[Any], *, column: str | None = None, bins: int = 4) -> Grouping:
    """Groups of a column's values, missing ones as a group of their own.

    Numbers with more than six different values are cut at their quantiles into `bins` of about the same number of
    cases; fewer where values repeat. Everything else is a group a value; beyond the 20 most frequent they are pooled.

    Examples
    --------
    >>> import pandas as pd
    >>> group_by(pd.Series(["f", "m", None, "f"], name="sex")).to_json()["cases"]
    {'f': 2, 'm': 1, '(missing)': 1}
    >>> group_by(pd.Series(range(40), name="age"), bins=2).to_json()["cases"]
    {'0 to below 19.5': 20, '19.5 to 39': 20}
    """
    import pandas as pd

    name = str(values.name) if column is None else column
    missing = values.isna().to_numpy(dtype=bool)
    edges: tuple[float, ...] = ()
    pooled: tuple[str, ...] = ()
    members: dict[str, Bools] = {}
    known = values[~missing]
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
        missing = ~np.isfinite(numbers)
        distinct = np.unique(numbers[~missing])
        if len(distinct) > FEW_VALUES:
            cuts = np.unique(np.quantile(numbers[~missing], np.linspace(0, 1, bins + 1)))
            edges = tuple(float(c) for c in cuts)
            members = _bins(numbers, cuts)
        else:
            members = {f"{value:g}": numbers == value for value in distinct}
    else:
        texts = known.astype(str)
        counts = texts.value_counts()
        order = sorted(counts.index, key=lambda v: (-int(counts[v]), v))
        kept, rest = order[:MOST_GROUPS], order[MOST_GROUPS:]
        whole = values.astype(object).map(str).to_numpy(dtype=object)
        members = {value: (whole == value) & ~missing for value in sorted(kept)}
        if rest:
            pooled = tuple(rest)
            members[f"(other, {len(rest)} values)"] = np.isin(whole.astype(str), rest) & ~missing
    if missing.any():
        members[MISSING] = missing
    return Grouping(name, members, edges, pooled)


def _bins(numbers: np.ndarray[Any, Any], cuts: np.ndarray[Any, Any]) -> dict[str, Bools]:
    members = {}
    for n, (low, high) in enumerate(itertools.pairwise(cuts)):
        last = n == len(cuts) - 2
        label = f"{low:.4g} to {'' if last else 'below '}{high:.4g}"
        members[label] = (numbers >= low) & ((numbers <= high) if last else (numbers < high))
    return members


def table_column(values: Sequence[Any]) -> list[Any]:
    """Values of one clinical column as either all numbers or all text, ``None`` where missing.

    Text that holds numbers only, as a CSV may give them, becomes numbers.

    >>> table_column(["63", None, "7.5"])
    [63.0, None, 7.5]
    >>> table_column([1, "x", ""])
    ['1', 'x', None]
    """
    empty = [
        v is None or (isinstance(v, float) and np.isnan(v)) or (isinstance(v, str) and not v.strip()) for v in values
    ]
    numbers: list[Any] = []
    for value, nothing in zip(values, empty, strict=True):
        if nothing:
            numbers.append(None)
            continue
        if isinstance(value, (bool, np.bool_)):
            break
        try:
            number = float(value)
        except (TypeError, ValueError):
            break
        numbers.append(number if np.isfinite(number) else None)
    else:
        return numbers
    return [None if nothing else str(value) for value, nothing in zip(values, empty, strict=True)]
