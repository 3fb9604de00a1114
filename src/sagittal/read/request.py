"""What is asked of a layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """What was asked of a layout: the keywords of :func:`sagittal.read.open_dataset.open_dataset`."""

    source: str
    target: str | None = None
    labels: Path | None = None
    id_column: str | None = None
    path_column: str | None = None
    patient_column: str | None = None
    split_column: str | None = None
    mask_column: str | None = None
    sheet: str | None = None
    images: str | None = None
    tilt: str | None = None
    kind: str | None = None
    unlisted: str | None = None
    search: tuple[Path, ...] = ()
