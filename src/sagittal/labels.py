"""LabelScheme: what the answers to a classification question are, and ClassScores: one answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from sagittal.errors import ConfigError, DataError, nearest
from sagittal.types import Floats

Kind = Literal["binary", "multiclass", "multilabel", "ordinal", "structures", "objects"]
#: Kinds of questions whose answer is one or more classes for the whole case.
CLASS_KINDS: tuple[Kind, ...] = ("binary", "multiclass", "multilabel", "ordinal")
#: Kinds whose answer has a place: structures in a label map, objects in boxes.
PLACE_KINDS: tuple[Kind, ...] = ("structures", "objects")
KINDS: tuple[Kind, ...] = (*CLASS_KINDS, *PLACE_KINDS)
#: The kinds of truth from which each task learns.
TASK_KINDS: Mapping[str, tuple[Kind, ...]] = {
    "classify": CLASS_KINDS,
    "segment": ("structures",),
    "detect": ("objects",),
}


@dataclass(frozen=True, eq=False)
class ClassScores:
    """One number for each class: of a truth 0, 1 or nan ("unknown"), of a prediction a probability.

    Parameters
    ----------
    values : (C,) float64
        For ``binary``, ``multiclass`` and ``ordinal`` schemes a truth is one-hot, or all nan where unknown; for
        ``multilabel`` each entry stands alone.
    """

    values: Floats

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        if values.ndim != 1:
            raise DataError(f"class scores are one number a class, shape (C,), not {values.shape}")
        values.flags.writeable = False
        object.__setattr__(self, "values", values)

    @property
    def known(self) -> bool:
        """Whether at least one class is known."""
        return bool(np.any(np.isfinite(self.values)))


@dataclass(frozen=True)
class LabelScheme:
    """The classes of a question, in order, and how they exclude each other.

    Parameters
    ----------
    kind : {"binary", "multiclass", "multilabel", "ordinal", "structures", "objects"}
        ``binary`` has two classes of which the second is the positive one; ``ordinal`` lists grades from least to
        most; in ``multilabel`` any number of classes holds at once. The classes of ``structures`` are what a
        segmentation outlines, background left out; those of ``objects`` are what boxes enclose.
    classes : tuple of str
    target : str
        Column or source that the labels came from.
    lateral : bool
        Whether a class depends on the side of the body, so that no image may be mirrored left to right.
    """

    kind: Kind
    classes: tuple[str, ...]
    target: str = "label"
    lateral: bool = False
    meaning: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"label scheme of unknown kind '{self.kind}'. {nearest(self.kind, KINDS)}")
        if len(set(self.classes)) != len(self.classes):
            raise DataError(f"class names must differ: {list(self.classes)}")
        if len(self.classes) < (1 if self.kind in {"multilabel", *PLACE_KINDS} else 2):
            raise DataError(
                f"'{self.target}' holds only one class ({', '.join(self.classes) or 'none'}); at least two are needed "
                "to learn from. Choose another target, or add cases of the other class."
            )
        if self.kind == "binary" and len(self.classes) != 2:
            raise DataError(f"a binary scheme has two classes, not {len(self.classes)}: {list(self.classes)}")

    @property
    def exclusive(self) -> bool:
        """Whether exactly one class holds for a case."""
        return self.kind in {"binary", "multiclass", "ordinal"}

    def truth(self, *names: str) -> ClassScores:
        """The truth in which exactly these classes hold.

        >>> LabelScheme("binary", ("benign", "malignant")).truth("malignant").values
        array([0., 1.])
        """
        values = np.zeros(len(self.classes))
        for name in names:
            if name not in self.classes:
                raise DataError(f"'{name}' is not a class of '{self.target}'. {nearest(name, self.classes)}")
            values[self.classes.index(name)] = 1
        if self.exclusive and len(names) != 1:
            raise DataError(f"a {self.kind} truth has one class, not {len(names)}")
        return ClassScores(values)

    def unknown(self) -> ClassScores:
        """The truth that says nothing: nan for every class, which is not the same as negative."""
        return ClassScores(np.full(len(self.classes), np.nan))

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a plan or a package."""
        return {
            "kind": self.kind,
            "classes": list(self.classes),
            "target": self.target,
            "lateral": self.lateral,
            "meaning": dict(self.meaning),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LabelScheme:
        """The scheme that :meth:`to_json` wrote."""
        known = {"kind", "classes", "target", "lateral", "meaning"}
        for key in values:
            if key not in known:
                raise ConfigError(f"label scheme: unknown key '{key}'. {nearest(key, known)}")
        return cls(**{**values, "classes": tuple(values["classes"])})
