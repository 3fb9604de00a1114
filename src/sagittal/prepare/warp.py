"""Warp: which places of stored arrays the voxels of a batch of windows come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sagittal.types import Floats

if TYPE_CHECKING:
    from torch import Tensor, device


@dataclass(frozen=True, eq=False)
class Warp:
    """Which places of stored arrays the voxels of a batch of windows come from.

    Every spatial change of an augmented window (cutting out, mirroring, rotation, scaling, shearing, smooth displacement)
    is one map, so that a window is sampled once. Window voxel ``v`` of sample ``n`` comes from
    ``centre[n] + matrix[n] @ (v - (size - 1) / 2)``, in voxels of the stored array, plus the displacement at v.

    Parameters
    ----------
    size : tuple of int
        Of the windows, d numbers in network order.
    centre : (N, d) float64
    matrix : (N, d, d) float64
    displacement : (N, d, *coarse) float32 Tensor, optional
        In voxels of the stored array, on a coarse lattice whose outer edges are those of the window.
    place : torch.device, optional
        Where the windows are computed; the CPU where not given.
    """

    size: tuple[int, ...]
    centre: Floats
    matrix: Floats
    displacement: Tensor | None = None
    place: device | None = None

    @classmethod
    def straight(cls, size: tuple[int, ...], centre: Floats) -> Warp:
        """Windows cut out as they are, around these centres (N, d)."""
        n, d = np.asarray(centre).shape
        return cls(size, np.asarray(centre, dtype=np.float64), np.broadcast_to(np.eye(d), (n, d, d)))

    def __len__(self) -> int:
        return len(self.centre)

    def source(self, number: int, points: Floats) -> Floats:
        """Places (..., d) in the stored array of places in window `number`, the displacement left out."""
        middle = (np.asarray(self.size) - 1) / 2
        return np.asarray((np.asarray(points) - middle) @ self.matrix[number].T + self.centre[number])

    def window(self, number: int, points: Floats) -> Floats:
        """Places (..., d) in window `number` of places in the stored array, the displacement left out."""
        middle = (np.asarray(self.size) - 1) / 2
        back = np.linalg.inv(self.matrix[number])
        return np.asarray((np.asarray(points) - self.centre[number]) @ back.T + middle)
