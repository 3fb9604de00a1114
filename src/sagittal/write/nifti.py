"""NIfTI: values on a grid to a file, LPS+ to RAS+ here, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sagittal.errors import GeometryError
from sagittal.grid import Grid
from sagittal.model.archive import disk_errors
from sagittal.types import Array

#: NIfTI counts x to the right and y to the front; DICOM and Sagittal to the left and the back.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT


def write_nifti(values: Array, grid: Grid, path: Path) -> None:
    """Write a volume as ``.nii`` or ``.nii.gz``, where the voxels lie in the patient.

    Parameters
    ----------
    values : (I, J, K) or (C, I, J, K) array
        uint8, int16 or float32 are kept, other types become float32. Channels become the fourth axis.
    grid : Grid
    path : Path

    Raises
    ------
    GeometryError
        If the grid has no position (a file that states none may not be given one), or another shape.
    ResourceError
        If the disk is full or cannot be written to.
    """
    import nibabel as nib

    if grid.affine is None:
        raise GeometryError(
            "the study has no position in the patient, which NIfTI must state. Write the values as .npz, or convert the "
            "study again with its geometry."
        )
    if values.shape[-3:] != grid.shape or values.ndim > 4:
        raise GeometryError(f"values {values.shape} do not fit the grid {grid.shape}")
    kept = values if values.dtype in (np.uint8, np.int16, np.float32) else values.astype(np.float32)
    volume = np.moveaxis(kept, 0, -1) if kept.ndim == 4 else kept
    make: Any = nib.Nifti1Image
    # In the file's own order, i fastest, which masks have in memory mostly: half a second less for a series of 120 slices.
    nifti = make(np.asfortranarray(volume), LPS_TO_RAS @ grid.affine)
    nifti.header.set_xyzt_units("mm")
    nifti.set_sform(nifti.affine, SCANNER)
    nifti.set_qform(nifti.affine, SCANNER, strip_shears=True)
    with disk_errors(path.name, need=kept.nbytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".part-{path.name}")  # the ending decides on compression
        try:
            nib.save(nifti, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
