"""Lattice: where a prepared array lies in its study, so that what is found on it can be brought back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sagittal.errors import GeometryError
from sagittal.grid import Grid
from sagittal.types import Floats


@dataclass(frozen=True, eq=False)
class Lattice:
    """Where a prepared array of its own size lies in its study.

    A box of the study's voxels was cut out and resampled: the outer edges of the box and of the array coincide. Axes are
    in network order, (rows, columns) or (slices, rows, columns), which is the study's (i, j, k) reversed.

    Parameters
    ----------
    grid : Grid
        Of the study's first image.
    size : tuple of int
        Voxels of the array.
    start : tuple of int
        First voxel of the box in the study.
    extent : tuple of int
        The study's voxels in the box.

    Examples
    --------
    >>> lattice = Lattice(Grid((100, 80, 1)), size=(40, 50), start=(0, 0), extent=(80, 100))
    >>> lattice.to_study(np.array([[0.0, 0.0]])).tolist()  # the middle of a voxel of 2 x 2
    [[0.5, 0.5, 0.0]]
    """

    grid: Grid
    size: tuple[int, ...]
    start: tuple[int, ...]
    extent: tuple[int, ...]

    def __post_init__(self) -> None:
        study = self.grid.shape[::-1][3 - len(self.size) :]
        inside = all(
            s >= 0 and e > 0 and s + e <= n for s, e, n in zip(self.start, self.extent, study, strict=True)
        ) and all(n > 0 for n in self.size)
        if not inside:
            raise GeometryError(f"the box {self.start} + {self.extent} does not lie in a study of {study}")

    @classmethod
    def of(cls, grid: Grid, dimensions: int) -> Lattice:
        """The lattice of a study that is taken as it is."""
        size = grid.shape[::-1][3 - dimensions :]
        return cls(grid, size, (0,) * dimensions, size)

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.size)

    @property
    def factor(self) -> Floats:
        """Voxels of the study that one voxel of the array spans, (d,) in network order."""
        return np.asarray(self.extent, dtype=np.float64) / np.asarray(self.size, dtype=np.float64)

    @property
    def spacing_mm(self) -> Floats:
        """Edge lengths of the array's voxels, (d,) mm in network order; nan where the study does not say."""
        if self.grid.spacing is None:
            return np.full(self.dimensions, np.nan)
        return self.factor * np.asarray(self.grid.spacing, dtype=np.float64)[::-1][3 - self.dimensions :]

    def to_study(self, points: Floats) -> Floats:
        """Voxel indices (..., 3) of the study, (i, j, k), of places (..., d) in the array; k is 0 in 2-D."""
        found = (np.asarray(points, dtype=np.float64) + 0.5) * self.factor - 0.5 + np.asarray(self.start)
        whole = np.zeros((*found.shape[:-1], 3))
        whole[..., : self.dimensions] = found[..., ::-1]
        return whole

    def to_array(self, points: Floats) -> Floats:
        """Places (..., d) in the array of voxel indices (..., 3) of the study, (i, j, k)."""
        study = np.asarray(points, dtype=np.float64)[..., : self.dimensions][..., ::-1]
        return np.asarray((study - np.asarray(self.start) + 0.5) / self.factor - 0.5)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        grid = self.grid
        return {
            "shape": list(grid.shape),
            "affine": None if grid.affine is None else np.asarray(grid.affine).tolist(),
            "spacing": None if grid.spacing is None else np.asarray(grid.spacing).tolist(),
            "turned": None if grid.turned is None else [list(pair) for pair in grid.turned],
            "size": list(self.size),
            "start": list(self.start),
            "extent": list(self.extent),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Lattice:
        """The lattice that :meth:`to_json` wrote."""
        affine = values["affine"]
        i, j, k = values["shape"]
        turned = values.get("turned")
        grid = Grid(
            (i, j, k),
            None if affine is None else np.array(affine),
            values["spacing"],
            None if turned is None else tuple((int(axis), int(sign)) for axis, sign in turned),
        )
        return cls(grid, *(tuple(int(n) for n in values[name]) for name in ("size", "start", "extent")))
