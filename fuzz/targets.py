"""What is done with a mutant of each format: what a user's command would do with the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from receiving import receive_mutant
from sagittal.errors import SagittalError
from sagittal.formats.dicom_seg import read_dicom_seg
from sagittal.formats.open_image import read_image
from sagittal.formats.rtstruct import read_rtstruct
from sagittal.guard.archive import unpacked
from sagittal.read.files import group


def read_mutant(kind: str, path: Path, series: Sequence[Path]) -> None:
    """Read one file; a SagittalError is the right answer to damage.

    Parameters
    ----------
    series : sequence of Path
        The images that segmentations and structure sets refer to.
    """
    if kind == "received":
        receive_mutant(path)
    elif kind == "zip":
        with unpacked(path) as folder:
            sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    elif kind == "outlines":
        try:
            read_dicom_seg(path)
        except SagittalError:
            read_rtstruct(path, series)
    else:
        for found in group([path]):
            image = read_image(found.files[0])
            if image.data.dtype != np.float32 or image.data.shape[1:] != image.grid.shape:
                raise AssertionError(f"an image of {image.data.dtype} {image.data.shape} on {image.grid.shape}")
