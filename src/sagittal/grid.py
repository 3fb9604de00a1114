"""Grid: where a lattice of voxels lies in the patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sagittal.errors import GeometryError
from sagittal.types import Floats


@dataclass(frozen=True, eq=False)
class Grid:
    """Where a voxel lattice lies in the patient, without its values.

    A 2-D image is a grid with ``K == 1``. A file that gives no position has ``affine is None``; one that gives
    no voxel size either has ``spacing is None`` as well. Neither is ever invented.

    Parameters
    ----------
    shape : (I, J, K) int
        Voxels along the column index i, the row index j and the slice index k.
    affine : (4, 4) float64, mm, optional
        Voxel centre (i, j, k) -> patient coordinates LPS+ (DICOM PS3.3 C.7.6.2.1.1).
    spacing : (3,) float, mm, optional
        Voxel edge lengths along (i, j, k). Derived from `affine` where that is known; give it alone for a file
        with a pixel size but no position. The third is ``nan`` where a 2-D file states no thickness.
    turned : three (axis, direction), optional
        Where the axes are not those of the file: for each one which axis of the file it is, and 1 or -1.

    Raises
    ------
    GeometryError
        If the shape is empty or not 3-D, or the affine is not (4, 4), not finite or singular.
    """

    shape: tuple[int, int, int]
    affine: Floats | None = None
    spacing: Floats | Sequence[float] | None = None
    turned: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise GeometryError(f"a grid has three positive sizes (I, J, K), not {tuple(self.shape)}")
        object.__setattr__(self, "shape", shape)
        if self.affine is not None:
            object.__setattr__(self, "affine", _checked_affine(self.affine))
            object.__setattr__(self, "spacing", np.linalg.norm(np.asarray(self.affine)[:3, :3], axis=0))
        elif self.spacing is not None:
            spacing = np.array(self.spacing, dtype=np.float64)
            if spacing.shape != (3,) or not np.all((spacing > 0) | np.isnan(spacing)):
                raise GeometryError(f"spacing must be three positive lengths in mm, not {self.spacing}")
            object.__setattr__(self, "spacing", spacing)
        if isinstance(self.spacing, np.ndarray):
            self.spacing.flags.writeable = False

    @property
    def has_position(self) -> bool:
        """Whether the file said where the voxels lie in the patient."""
        return self.affine is not None

    @property
    def dimensions(self) -> int:
        """2 for a single plane, 3 for a volume."""
        return 2 if self.shape[2] == 1 else 3

    def same_place(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Whether two grids have the same shape and their corners agree within a distance in mm."""
        if self.shape != other.shape or self.has_position != other.has_position:
            return False
        if self.affine is None or other.affine is None:
            return True
        corners = np.array(
            [
                [i, j, k, 1]
                for i in (0, self.shape[0] - 1)
                for j in (0, self.shape[1] - 1)
                for k in (0, self.shape[2] - 1)
            ]
        )
        return bool(np.all(np.linalg.norm((corners @ (self.affine - other.affine).T)[:, :3], axis=1) <= tolerance_mm))


def _checked_affine(given: Floats) -> Floats:
    affine = np.array(given, dtype=np.float64)  # a copy: the caller's stays writable
    if affine.shape != (4, 4):
        raise GeometryError(f"affine must be (4, 4), not {affine.shape}")
    if not np.all(np.isfinite(affine)):
        raise GeometryError(f"affine holds values that are not finite:\n{affine}")
    edges = affine[:3, :3]
    # Relative to the edge lengths: micro-CT voxels of 1e-3 mm have a tiny determinant.
    if abs(np.linalg.det(edges)) <= 1e-6 * np.prod(np.linalg.norm(edges, axis=0)):
        raise GeometryError(f"affine maps the voxels onto a plane or line:\n{affine}")
    affine.flags.writeable = False
    return affine
