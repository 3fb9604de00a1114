"""What masks without a description outline: told by the user, by their files' names, or by the values that they hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sagittal.errors import ConfigError, DataError, SagittalError, nearest
from sagittal.formats.label_map import COLOUR, FOREGROUND, label_values, value_text
from sagittal.formats.seg_nrrd import seg_nrrd_names
from sagittal.labels import KINDS, Kind, LabelScheme
from sagittal.read.sources import make_mask_source
from sagittal.read.truths import is_lateral
from sagittal.truth import SegmentationSource

#: In a target: the value of which nothing is known, ``liver=1,ignore=255``; and those that are no structure.
IGNORE, BACKGROUND = "ignore", "background"
_SLICER = ".seg.nrrd"
#: Masks that are looked at to find out which values they hold.
_SAMPLE = 12


def place_kind(kind: str | None) -> Kind:
    """What masks are to answer: structures, or the objects that their connected parts are.

    Raises
    ------
    ConfigError
        If the kind is not known.
    DataError
        If it is one of a case as a whole.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"unknown kind of labels '{kind}'. {nearest(kind, KINDS)}")
    if kind not in {None, "structures", "objects"}:
        raise DataError(f"masks hold structures, not '{kind}': leave --kind out, or choose another --layout")
    return "objects" if kind == "objects" else "structures"


def named_values(target: str | None) -> dict[str, tuple[int, ...]] | None:
    """Structures that a target names by their values; ``None`` where it does not.

    Several structures may share a value, as the regions of BraTS do. What is called ``ignore`` is no structure: nothing
    is known of voxels of its value; and ``background`` is none either. Colours are values by their digits: ``#ff0000``.

    >>> named_values("whole=1+2+3,core=1+3,ignore=255"), named_values("diagnosis")
    ({'whole': (1, 2, 3), 'core': (1, 3), 'ignore': (255,)}, None)
    >>> named_values("vessel=#0000ff")
    {'vessel': (16777471,)}
    """
    if target is None or "=" not in target:
        return None
    found: dict[str, tuple[int, ...]] = {}
    for part in target.split(","):
        name, _, values = (piece.strip() for piece in part.partition("="))
        numbers = [_value(value.strip()) for value in values.split("+")]
        if not name or name in found or 0 in numbers:
            raise ConfigError(f"'{part.strip()}' names no values of masks; expected NAME=1, NAME=1+2 or NAME=#ff0000")
        found[name] = tuple(numbers)
    if len(found.get(IGNORE, (0,))) > 1 or set(found) <= {IGNORE, BACKGROUND}:
        raise ConfigError(f"'{target}': expected one value to ignore, and at least one structure beside it")
    return found


def _value(text: str) -> int:
    """The value that a text names; 0 where it names none."""
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return COLOUR + int(text[1:], 16) if int(text[1:], 16) else 0
    return int(text) if text.isdecimal() else 0


class MaskScheme:
    """What masks without a description outline.

    Parameters
    ----------
    masks : sequence of sequence of Path
        The files of each case.
    named : mapping of str to tuple of int, optional
        Structures by their values, as :func:`named_values` gives them.
    structure : str
        What a mask of one value is called.
    kind : {"structures", "objects"}

    Attributes
    ----------
    scheme : LabelScheme
    """

    def __init__(
        self,
        masks: Sequence[Sequence[Path]],
        named: Mapping[str, tuple[int, ...]] | None,
        structure: str = FOREGROUND,
        *,
        kind: Kind = "structures",
    ) -> None:
        self.named = {name: of for name, of in named.items() if name not in {IGNORE, BACKGROUND}} if named else None
        self.background = list(named.get(BACKGROUND, ())) if named else []
        self.ignore = named[IGNORE][0] if named and IGNORE in named else None
        self.structure = structure
        self._notes: tuple[str, ...] = ()
        self._slicer = self.named is None and all(f.name.lower().endswith(_SLICER) for files in masks for f in files)
        if self._slicer:
            names = _segment_names(masks)
            self._notes = ("structures by the segments that the masks name",)
            self.scheme = LabelScheme(kind, names, "mask", lateral=is_lateral(names))
            return
        if self.named is None:
            values, looked = self._look(masks)
            if len(values) > 1:
                self.named = {value_text(value): (value,) for value in values}
                self._notes = (
                    f"structures {', '.join(self.named)} by the values in {looked} of {len(masks)} masks; name them "
                    "with --target 'liver=1,tumour=2', regions of several values with 'whole=1+2,core=1'",
                )
            else:
                self._notes = (f"masks of one value outline '{structure}'",)
        if self.ignore is not None:
            self._notes = (*self._notes, f"value {value_text(self.ignore)} means that nothing is known")
        names = tuple(self.named or (structure,))
        meaning = {name: "value " + " + ".join(map(value_text, of)) for name, of in (self.named or {}).items()}
        self.scheme = LabelScheme(kind, names, "mask", lateral=is_lateral(names), meaning=meaning)

    def source(self, case: str, files: Sequence[Path], *, outlined: Sequence[str] | None = None) -> SegmentationSource:
        """The segmentation of a case.

        Parameters
        ----------
        case : str
        files : sequence of Path
        outlined : sequence of str, optional
            The structures that were looked for in this case; all where left out. Nothing is known of the others.

        Raises
        ------
        DataError
            If the case has several masks of several values, or none of the structures is outlined.
        """
        if self._slicer:
            if len(files) > 1:
                raise DataError(f"case {case}: has {len(files)} segmentations; give one an image")
            return make_mask_source(case, "seg_nrrd", files, structures=seg_nrrd_names(files[0]))
        known = [name for name in self.scheme.classes if outlined is None or name in outlined]
        options = self.options(case, len(files))
        if outlined is not None and self.named is not None:
            options["structures"] = {name: of for name, of in options["structures"].items() if name in known}
            others = sorted({v for name, of in self.named.items() if name not in known for v in of})
            taken = {v for of in options["structures"].values() for v in of}
            options["background"] = [v for v in [*self.background, *others] if v not in taken]
        return make_mask_source(case, "label_map", files, options, structures=known)

    def options(self, case: str, count: int) -> dict[str, Any]:
        """What ``label_map`` is told of the files of a case, of which there are so many.

        Raises
        ------
        DataError
            If there are several of several values.
        """
        ignored = {} if self.ignore is None else {"ignore": self.ignore}
        if self.named is None:
            return {"names": [self.structure] * count, **ignored}
        if count > 1:
            raise DataError(f"case {case}: has {count} masks of several values each; give one mask an image")
        besides = {"background": self.background} if self.background else {}
        return {"structures": {name: list(of) for name, of in self.named.items()}, **besides, **ignored}

    def notes(self) -> tuple[str, ...]:
        """What was found in the masks, in words."""
        return self._notes

    def _look(self, masks: Sequence[Sequence[Path]]) -> tuple[list[int], int]:
        """Values in one mask for a structure each, else in the first, the last and some between."""
        step = max(1, len(masks) // _SAMPLE)
        sample = [files for files in masks[::step] if files][:_SAMPLE]
        most: set[int] = set()
        several: set[int] = set()
        looked = 0
        for files in sample:
            for file in files[:2]:
                try:
                    values = set(label_values(file))
                except SagittalError:
                    continue  # told when the case is read
                looked += 1
                most |= values
                several |= values if len(values) > 1 else set()
        # Masks of 0 and 255 beside masks of 0 and 1 are one structure; a mask with two values is not.
        return (sorted(most) if several else sorted(most)[:1]), looked


def is_binary_mask(file: Path) -> bool:
    """Whether a file holds 0 and at most one other value, as a mask of one structure does."""
    try:
        return len(label_values(file)) <= 1
    except SagittalError:
        return False


def files_of_structures(
    case: str, files: Sequence[tuple[str, Path]], *, ignore: int | None = None
) -> SegmentationSource:
    """The segmentation in one file a structure; a structure without a file is unknown in this case."""
    files = sorted(files)
    names = [name for name, _ in files]
    options = {"names": names, **({} if ignore is None else {"ignore": ignore})}
    return make_mask_source(case, "label_map", [f for _, f in files], options, structures=list(dict.fromkeys(names)))


def _segment_names(masks: Sequence[Sequence[Path]]) -> tuple[str, ...]:
    """The names that occur in segmentations of 3D Slicer; damaged ones are told when their case is made."""
    names: dict[str, None] = {}
    for file in (file for files in masks for file in files):
        with suppress(SagittalError):
            names.update(dict.fromkeys(seg_nrrd_names(file)))
    if not names:
        raise DataError(f"none of the {len(masks)} .seg.nrrd files names a segment that can be read")
    return tuple(names)
