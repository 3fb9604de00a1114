"""What stands in a label column -> a label scheme and a truth for each case."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from sagittal.errors import ConfigError, DataError, nearest
from sagittal.labels import CLASS_KINDS, KINDS, ClassScores, Kind, LabelScheme

#: "We do not know", which is never the same as "no".
UNKNOWN = frozenset(
    {"", "-1", "nan", "na", "n/a", "null", "unknown", "uncertain", "unclear", "missing", "?", "<na>", "#n/a"}
)
#: In a cell with several labels: none of the classes holds.
_NOTHING = frozenset({"no finding", "no findings"})
_YES = frozenset({"1", "true", "yes", "y", "positive", "pos", "present"})
_NO = frozenset({"0", "false", "no", "n", "negative", "neg", "absent"})
_NEGATIVE = frozenset(
    {*_NO, "normal", "benign", "healthy", "control", "none", "no finding", "unremarkable", "non", "ctrl"}
)
#: Words of grades from least to most; each row is one scale.
_SCALES = (
    (
        "none",
        "absent",
        "normal",
        "minimal",
        "trace",
        "mild",
        "slight",
        "moderate",
        "marked",
        "severe",
        "very severe",
        "critical",
    ),
    ("low", "medium", "intermediate", "high", "very high"),
    ("i", "ii", "iii", "iv", "v", "vi"),
)


class Asked(Protocol):
    """What a user may ask of the truth of a source."""

    @property
    def target(self) -> str | None:
        """Column, or names with commas between them."""

    @property
    def kind(self) -> str | None:
        """Kind of the question."""


#: More classes than this in a column without repetition are measurements or names.
_MOST_CLASSES = 200


def scheme_of(values: Sequence[str], target: str, kind: str | None = None) -> tuple[LabelScheme, list[ClassScores]]:
    """The scheme of a column of text, and the truth of each row.

    Two values make a binary scheme whose second class is the positive one (``1``, ``yes``, the one that is not
    "normal"); more make a multi-class one. Cells such as ``effusion|nodule`` make a multi-label scheme. Grades become
    ordinal only where `kind` says so. Empty cells, ``-1``, ``nan``, ``unknown`` and ``uncertain`` are unknown.

    Raises
    ------
    DataError
        If there is no known label, only one class, or the column holds measurements.
    ConfigError
        If the kind is not known.

    Examples
    --------
    >>> scheme, truths = scheme_of(["benign", "malignant", "", "benign"], "diagnosis")
    >>> scheme.kind, scheme.classes, [t.known for t in truths]
    ('binary', ('benign', 'malignant'), [True, True, False, True])
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"unknown kind of labels '{kind}'. {nearest(kind, KINDS)}")
    if kind is not None and kind not in CLASS_KINDS:
        raise DataError(
            f"'{target}' holds classes, not {kind}: expected {', '.join(CLASS_KINDS)}. Truth with a place comes from masks "
            "or boxes: a column of masks (--mask-column), columns of boxes, or a layout such as msd, coco or voc."
        )
    cells = [clean(value) for value in values]
    known = [cell for cell in cells if cell is not None]
    if not known:
        raise DataError(
            f"'{target}' holds no label: all {len(cells)} cells are empty or unknown. Choose another target."
        )
    if kind == "multilabel" and all(cell.lower() in _YES | _NO for cell in known):
        return scheme_of_columns({target: values}, target)
    if kind == "multilabel" or (kind is None and any("|" in cell for cell in known)):
        return _many(cells, target)
    names = sort_grades(set(known), target) if kind == "ordinal" else sort_classes(set(known))
    _check_classes(names, known, target)
    chosen = kind or ("binary" if len(names) == 2 else "multiclass")
    if chosen == "binary" and len(names) > 2:
        raise DataError(f"'{target}' has {len(names)} classes ({', '.join(names[:8])}); a binary question has two")
    scheme = LabelScheme(
        "binary" if chosen == "multiclass" and len(names) == 2 else chosen,
        tuple(names),
        target,
        lateral=is_lateral(names),
    )
    return scheme, [scheme.unknown() if cell is None else scheme.truth(cell) for cell in cells]


def scheme_of_columns(columns: dict[str, Sequence[str]], target: str) -> tuple[LabelScheme, list[ClassScores]]:
    """The multi-label scheme of several columns of yes, no and unknown.

    Raises
    ------
    DataError
        If a column holds something else.
    """
    rows = []
    for name, values in columns.items():
        rows.append([_yes_no(value, name) for value in values])
    scheme = LabelScheme("multilabel", tuple(columns), target, lateral=is_lateral(columns))
    truths = [ClassScores(np.array(row)) for row in zip(*rows, strict=True)]
    if not any(truth.known for truth in truths):
        raise DataError(f"'{target}' holds no label: every cell is empty or unknown. Choose other columns.")
    return scheme, truths


def _yes_no(value: str, column: str) -> float:
    cell = clean(value)
    if cell is None:
        return float("nan")
    if cell.lower() in _YES:
        return 1.0
    if cell.lower() in _NO:
        return 0.0
    raise DataError(f"column '{column}' holds '{cell[:40]}'; for several labels each column says 0, 1 or nothing")


def _many(cells: list[str | None], target: str) -> tuple[LabelScheme, list[ClassScores]]:
    rows = [None if cell is None else [p for p in (part.strip() for part in cell.split("|")) if p] for cell in cells]
    names = sort_classes({name for row in rows if row for name in row if name.lower() not in _NOTHING})
    _check_classes(names, [name for row in rows if row for name in row], target)
    scheme = LabelScheme("multilabel", tuple(names), target, lateral=is_lateral(names))
    truths = []
    for row in rows:
        if row is None:
            truths.append(scheme.unknown())
        else:
            truths.append(scheme.truth(*(name for name in row if name.lower() not in _NOTHING)))
    return scheme, truths


def clean(value: str) -> str | None:
    """A cell without blanks, whole numbers without a decimal point; ``None`` where it means "unknown".

    >>> clean(" 2.0 "), clean("Uncertain"), clean("-1.0")
    ('2', None, None)
    """
    text = " ".join(value.split())
    if re.fullmatch(r"-?\d+\.0+", text):
        text = text.split(".")[0]
    return None if text.lower() in UNKNOWN else text


def _check_classes(names: Sequence[str], known: Sequence[str], target: str) -> None:
    numbers = [name for name in names if re.fullmatch(r"-?\d*\.\d+(e-?\d+)?", name, re.IGNORECASE)]
    if len(names) > _MOST_CLASSES or (len(numbers) > 2 and len(numbers) * 2 > len(names)):
        raise DataError(
            f"'{target}' has {len(names)} different values in {len(known)} cases (such as {', '.join(names[:3])}): "
            "measurements or names, not classes. Choose another target, or a column of grades."
        )


def sort_grades(names: Iterable[str], target: str) -> list[str]:
    """Grades from least to most: by their numbers, or by the words of a common scale.

    Raises
    ------
    DataError
        If neither says which grade is more.

    >>> sort_grades({"KL 10", "KL 2"}, "grade"), sort_grades({"Severe", "mild", "moderate"}, "grade")
    (['KL 2', 'KL 10'], ['mild', 'moderate', 'Severe'])
    """
    given = sorted(names)
    if all(re.search(r"\d", name) for name in given):
        return sorted(given, key=_natural)
    for scale in _SCALES:
        if all(name.lower() in scale for name in given):
            return sorted(given, key=lambda name: scale.index(name.lower()))
    raise DataError(
        f"the order of the grades in '{target}' is not known: {', '.join(given[:8])}. Put a number before each, from "
        "least to most, such as '1 mild'."
    )


def sort_classes(names: Iterable[str]) -> list[str]:
    """Class names in their natural order; of two, the one that means "no" comes first.

    >>> sort_classes({"10", "9", "1"}), sort_classes({"abnormal", "normal"}), sort_classes({"\u00b2", "a"})
    (['1', '9', '10'], ['normal', 'abnormal'], ['a', '\u00b2'])
    """
    ordered = sorted(names, key=_natural)
    if len(ordered) == 2 and _is_negative(ordered[1]) and not _is_negative(ordered[0]):
        ordered.reverse()
    return ordered


def _is_negative(name: str) -> bool:
    words = re.split(r"[^a-z0-9]+", name.lower())
    return name.lower() in _NEGATIVE or words[0] in {"no", "non", "not", "without", *_NEGATIVE}


def _natural(name: str) -> tuple[tuple[int, float, str], ...]:
    parts = re.split(r"(\d+(?:\.\d+)?)", name.lower())
    return (*((0, float(p), "") if p[:1].isdecimal() else (1, 0.0, p) for p in parts if p), (2, 0.0, name))


def is_lateral(names: Iterable[str]) -> bool:
    """Whether a class names a side of the body, so that mirroring an image would change its answer.

    >>> is_lateral(["kidney-left", "liver"]), is_lateral(["OD", "OS"]), is_lateral(["bright", "dark"])
    (True, True, False)
    """
    words = [set(re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())) for name in names]
    every = set().union(*words)
    return bool({"left", "right", "links", "rechts"} & every) or {"l", "r"} <= every or {"od", "os"} <= every


def scheme_of_places(
    kind: Kind, names: Sequence[str], request: Asked, *, target: str, meaning: Mapping[str, str] | None = None
) -> LabelScheme:
    """The scheme of structures or objects that a data set names, or of those that were asked for.

    Parameters
    ----------
    kind : {"structures", "objects"}
        What the data set holds. Structures are objects where the request says so: each connected part of a mask is one.
    names : sequence of str
        What the data set names, background left out.
    request : Asked
        Its target may choose some of them, with commas between.
    target : str
        What the truth came from, in a word.
    meaning : mapping of str to str, optional
        What each name stands for.

    Raises
    ------
    DataError
        If there is none, one that is asked for is not there, or another kind of question is asked.
    ConfigError
        If the kind is not known.
    """
    if request.kind is not None and request.kind not in KINDS:
        raise ConfigError(f"unknown kind of labels '{request.kind}'. {nearest(request.kind, KINDS)}")
    if (request.kind, kind) == ("objects", "structures"):
        kind = "objects"
    if request.kind not in {None, kind}:
        raise DataError(
            f"the truth here is of kind '{kind}' ({', '.join(list(names)[:8])}), not '{request.kind}': leave --kind out"
        )
    chosen = list(names)
    if request.target is not None:
        wanted = [request.target] if request.target in names else [part.strip() for part in request.target.split(",")]
        for name in wanted:
            if name not in names:
                raise DataError(f"the data set has no {kind} called '{name}'. {nearest(name, names)}")
        chosen = [name for name in names if name in wanted]
    if not chosen:
        raise DataError(f"the data set names no {kind}")
    told = {name: text for name, text in (meaning or {}).items() if name in chosen}
    return LabelScheme(kind, tuple(chosen), target, lateral=is_lateral(chosen), meaning=told)
