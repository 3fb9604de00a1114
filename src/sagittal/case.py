"""Case: one study of one patient with what is known about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagittal.errors import DataError, nearest
from sagittal.image import Image
from sagittal.labels import ClassScores
from sagittal.truth import Boxes, SegmentationSource

#: What is known to be true of a case: its classes, what each voxel belongs to, or where its objects lie.
Truth = ClassScores | SegmentationSource | Boxes


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Where an image lies and how it is read; nothing is read before :meth:`load`.

    Parameters
    ----------
    read : callable () -> Image
        A module-level function or ``functools.partial`` of one, so that it can go to another process.
    files : tuple of Path
        The files on disk that it reads.
    member : str
        Which part of a file with several images, such as an index in an ``.npz``; empty for the whole file.
    way : str
        How it is read, a key of ``sagittal.read.sources.IMAGE_WAYS``; empty where it is not read from files.
    options : mapping of str to value
        What that way of reading was told; plain values, as in JSON.
    """

    read: Callable[[], Image]
    files: tuple[Path, ...] = ()
    member: str = ""
    way: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Image:
        """Read the image.

        Raises
        ------
        ReadError, GeometryError
            As the reader of its format says.
        """
        return self.read()


@dataclass(frozen=True, eq=False)
class Case:
    """One study of one patient.

    Parameters
    ----------
    id : str
        Unique in its data set. Safe to show: a running number or a relative path, never a patient's name.
    patient : str
        What groups cases of the same person; the case's own id where nothing is known. Never shown in messages.
    images : mapping of str to ImageSource
        By name: ``"image"`` where there is one, else ``"T1"``, ``"FLAIR"`` ...
    table : mapping of str to value
        Clinical columns; a missing value is ``None``.
    text : str
        Report text, empty where there is none.
    truth : Truth, optional
        ``None`` where the source holds no label at all for the case.
    split : str, optional
        ``"train"``, ``"val"`` or ``"test"`` where the source says so.
    source : str
        Where it came from, in words, for the person who looks for it.
    """

    id: str
    patient: str
    images: Mapping[str, ImageSource]
    table: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    truth: Truth | None = None
    split: str | None = None
    source: str = ""

    @property
    def scores(self) -> ClassScores | None:
        """The truth where it is about the case as a whole; ``None`` where nothing is known or it has a place."""
        return self.truth if isinstance(self.truth, ClassScores) else None

    def image(self, name: str | None = None) -> Image:
        """Read one image; the name may be left out where the case has only one."""
        if name is None:
            if len(self.images) != 1:
                raise DataError(f"case {self.id}: has {len(self.images)} images ({', '.join(self.images)}); say which")
            name = next(iter(self.images))
        if name not in self.images:
            raise DataError(f"case {self.id}: has no image '{name}'. {nearest(name, self.images)}")
        return self.images[name].load()
