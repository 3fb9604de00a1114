"""Warp: which places of stored arrays the voxels of a batch of windows come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sagittal.prepare.plan import AugmentPlan
from sagittal.types import Array, Floats

if TYPE_CHECKING:
    from torch import Tensor, device

#: Random values along each axis from which a smooth displacement is made, and the nodes of its lattice.
BEND_KNOTS, BEND_NODES = 4, 12


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


def draw_warp(
    plan: AugmentPlan,
    size: tuple[int, ...],
    centres: Floats,
    rng: np.random.Generator,
    place: device | None = None,
    *,
    spacing: Sequence[float] | None = None,
) -> Warp:
    """Windows around these centres, each mirrored, turned, scaled, sheared, shifted and bent in its own way.

    A window of a volume is turned, sheared and bent in one random plane of the array, so that its planes can be sampled
    together; across thick slices it is never turned. Angles and shears are those of the patient where the spacing is
    known. Windows that keep the voxels as they are get whole positions.

    Parameters
    ----------
    plan : AugmentPlan
        Its strengths are the ends of symmetric ranges, as in :func:`sagittal.prepare.augment.draw`.
    size : tuple of int
        Of the windows.
    centres : (N, d) float, voxels of the stored arrays
    rng : numpy.random.Generator
    place : torch.device, optional
        Where the windows are computed.
    spacing : sequence of float, optional
        Edge lengths of the stored voxels in mm, in the order of the array's axes.

    Returns
    -------
    Warp
    """
    from sagittal.prepare.augment import draw_planes

    centre = np.array(centres, dtype=np.float64)
    n, d = centre.shape
    edges = np.ones(d) if spacing is None or not np.all(np.isfinite(spacing)) else np.asarray(spacing, dtype=np.float64)
    across, matrix = draw_planes(n, size, plan, rng, edges)
    centre = centre + rng.uniform(-plan.translate, plan.translate, (n, d)) * np.asarray(size)
    whole = np.array([_is_lattice(m) for m in matrix])
    middle = (np.asarray(size) - 1) / 2
    start = centre[whole] - np.abs(matrix[whole]) @ middle
    centre[whole] = np.rint(start) + np.abs(matrix[whole]) @ middle
    displacement = None
    if plan.elastic:
        displacement = _as_tensor(_draw_bends(plan.elastic, matrix, size, across, edges, rng), place)
    return Warp(size, centre, matrix, displacement, place)


def sample_images(arrays: Sequence[Array], warp: Warp) -> Tensor:
    """The windows of a warp, each sampled once, linearly, from its array; beyond an array's edge its edge value.

    Parameters
    ----------
    arrays : sequence of (C, *own size) uint8, float16 or float32
        One for each window; of a memory map only the part that is needed is read.
    warp : Warp

    Returns
    -------
    (N, C, *size) float32 Tensor, on the warp's device
    """
    import torch

    from sagittal.prepare.sampling import sample_values

    size = (len(warp), arrays[0].shape[0], *warp.size)
    windows = torch.empty(size, device=warp.place or torch.device("cpu"))
    for n, array in enumerate(arrays):
        windows[n] = sample_values(array, warp, n)
    return windows


def sample_labels(labels: Sequence[Array], warp: Warp) -> Tensor:
    """The label maps in the windows of a warp: of each voxel the nearest stored value, 255 outside the array.

    Parameters
    ----------
    labels : sequence of (T, *own size) uint8
    warp : Warp

    Returns
    -------
    (N, T, *size) uint8 Tensor, on the warp's device
    """
    import torch

    from sagittal.prepare.sampling import sample_nearest

    windows = np.empty((len(warp), labels[0].shape[0], *warp.size), dtype=np.uint8)
    for n, label in enumerate(labels):
        windows[n] = sample_nearest(label, warp, n)
    return torch.from_numpy(windows).to(warp.place or torch.device("cpu"))


def warp_boxes(boxes: Floats, warp: Warp, number: int) -> Floats:
    """Boxes of a stored array in a window.

    The result is the box around the transformed ellipsoid that fills the old one: under rotation it stays as tight as the
    objects that boxes usually hold, where the box around the turned corners would grow. A smooth displacement counts by
    its value and its slope at the middle of the box.

    Parameters
    ----------
    boxes : (M, 2 d + k) float
        Low corner, high corner, and columns that are kept.
    warp : Warp
    number : int
        Which of its windows.

    Returns
    -------
    (M, 2 d + k) float32, voxels of the window
        Not cut at its edges; boxes may lie wholly outside.

    Examples
    --------
    >>> warp = Warp((8, 8), np.array([[10.0, 20.0]]), np.array([[[0.0, 1.0], [-1.0, 0.0]]]))  # a quarter turn
    >>> warp_boxes(np.array([[9.5, 19.5, 11.5, 20.5, 0.0, 0.0]]), warp, 0).tolist()
    [[3.0, 3.0, 4.0, 5.0, 0.0, 0.0]]
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    d = len(warp.size)
    middle, half = (boxes[:, :d] + boxes[:, d : 2 * d]) / 2, (boxes[:, d : 2 * d] - boxes[:, :d]) / 2
    forth = np.broadcast_to(warp.matrix[number], (len(boxes), d, d))
    place = warp.window(number, middle)
    if warp.displacement is not None and len(boxes):
        field = warp.displacement[number].cpu().numpy()
        for _ in range(3):  # the displacement varies slowly: three rounds settle it
            place = warp.window(number, middle - _displacement_at(field, warp.size, place))
        forth = forth + _stretch(field, warp.size, place)
    back = np.linalg.inv(forth)
    reach = np.sqrt(np.einsum("mab,mb->ma", back**2, half**2))
    return np.concatenate([place - reach, place + reach, boxes[:, 2 * d :]], axis=1).astype(np.float32)


def _stretch(field: Floats, size: tuple[int, ...], places: Floats) -> Floats:
    """By how much the displacement changes from voxel to voxel at places (M, d): (M, d, d)."""
    steps = 2.0 * np.eye(len(size))
    apart = [_displacement_at(field, size, places + s) - _displacement_at(field, size, places - s) for s in steps]
    return np.stack(apart, axis=-1) / 4.0


def _displacement_at(field: Floats, size: tuple[int, ...], places: Floats) -> Floats:
    """The displacement (M, d) at places (M, d) of a window, from its coarse lattice (d, *coarse)."""
    from scipy.ndimage import map_coordinates

    coarse = np.array(field.shape[1:])
    where = ((places + 0.5) * coarse / np.asarray(size) - 0.5).T
    return np.stack([map_coordinates(f, where, order=1, mode="nearest") for f in field], axis=1)


def _draw_bends(
    strength: float, matrix: Floats, size: tuple[int, ...], across: Array, edges: Floats, rng: np.random.Generator
) -> Floats:
    """Smooth displacements (N, d, *coarse) in voxels; of volumes within a plane and alike along the axis across it."""
    from scipy.ndimage import zoom

    n, d = matrix.shape[:2]
    field = np.zeros((n, d, *(BEND_NODES,) * d), dtype=np.float32)
    for one, linear, axis in zip(field, matrix, across, strict=True):
        beside = int(np.abs(linear[:, axis]).argmax()) if d == 3 else -1  # the stored array's axis across the plane
        plane = [a for a in range(d) if a != beside]
        length = min(size[a] * float(edges[a]) for a in plane) * strength * rng.random()
        for a in plane:
            knots = rng.normal(0, length / edges[a], (BEND_KNOTS, BEND_KNOTS))
            smooth = zoom(knots, BEND_NODES / BEND_KNOTS, order=3, grid_mode=True, mode="nearest")
            one[a] = np.expand_dims(smooth, int(axis)) if d == 3 else smooth
    return field


def _as_tensor(values: Floats, place: device | None) -> Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(place or torch.device("cpu"))


def _is_lattice(matrix: Floats) -> bool:
    """Whether a matrix only swaps and mirrors axes."""
    return bool(np.array_equal(np.abs(matrix), np.rint(np.abs(matrix))) and (np.abs(matrix).sum(axis=1) == 1).all())
