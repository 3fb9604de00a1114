"""Truth that has a place: Segmentation, what each voxel belongs to, and Boxes, where each object lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sagittal.errors import DataError, GeometryError, nearest
from sagittal.grid import Grid
from sagittal.types import Array, Floats


@dataclass(frozen=True)
class Structure:
    """One outlined structure: which voxels of a segmentation are its own.

    Parameters
    ----------
    name : str
    values : tuple of int
        The voxel values of its layer that belong to it; several for a region made of several labels (as the whole
        tumour of BraTS). Empty for a structure that was looked for and not found.
    layer : int
        Index of the layer; structures that overlap stand in different ones.
    code : str
        Coded meaning where the file gives one, ``scheme:value``, such as ``"SCT:10200004"``.
    """

    name: str
    values: tuple[int, ...]
    layer: int = 0
    code: str = ""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What each voxel of a grid belongs to.

    Structures that do not overlap share a layer, as in a label map; so most segmentations have one.

    Parameters
    ----------
    layers : (L, I, J, K) unsigned integer
        0 is background in every layer.
    grid : Grid
    structures : tuple of Structure
        What was outlined. A structure that is not named here was not looked for: it is unknown, not absent.
    ignore : int, optional
        Voxel value, in every layer, of which nothing is known.

    Raises
    ------
    GeometryError
        If the layers do not fit the grid.
    DataError
        If two structures have one name, or one names a layer that is not there.
    """

    layers: Array
    grid: Grid
    structures: tuple[Structure, ...]
    ignore: int | None = None

    def __post_init__(self) -> None:
        if self.layers.ndim != 4 or self.layers.shape[1:] != self.grid.shape:
            raise GeometryError(f"layers {self.layers.shape} do not fit grid {self.grid.shape}: expected (L, I, J, K)")
        if self.layers.dtype.kind != "u":
            raise DataError(f"layers hold unsigned integers, not {self.layers.dtype}")
        names = [structure.name for structure in self.structures]
        if len(set(names)) != len(names):
            raise DataError(f"structures need different names: {names}")
        for structure in self.structures:
            if not 0 <= structure.layer < len(self.layers):
                raise DataError(
                    f"structure '{structure.name}' names layer {structure.layer}; there are {len(self.layers)}"
                )

    def mask(self, name: str) -> Array:
        """The voxels of one structure, (I, J, K) bool.

        Raises
        ------
        DataError
            If no structure has that name.
        """
        for structure in self.structures:
            if structure.name == name:
                layer = self.layers[structure.layer]
                first, *others = structure.values or (None,)
                # A comparison keeps the order of memory; isin of a large volume takes a hundred times as long.
                found = np.zeros_like(layer, dtype=bool) if first is None else layer == first
                for value in others:
                    found |= layer == value
                return found
        raise DataError(
            f"there is no structure '{name}' here. {nearest(name, [structure.name for structure in self.structures])}"
        )

    @property
    def unknown(self) -> Array:
        """The voxels of which nothing is known, (I, J, K) bool."""
        if self.ignore is None:
            return np.zeros(self.grid.shape, dtype=bool)
        return np.asarray((self.layers == self.ignore).any(axis=0))


@dataclass(frozen=True, eq=False)
class SegmentationSource:
    """Where a segmentation lies and how it is read; nothing is read before :meth:`load`.

    Parameters
    ----------
    read : callable () -> Segmentation
        A module-level function or ``functools.partial`` of one, so that it can go to another process.
    files : tuple of Path
        The files on disk that it reads.
    structures : tuple of str
        Names of what was outlined, as far as known without reading.
    way : str
        How it is read, a key of ``sagittal.read.sources.MASK_WAYS``; empty where it is not read from files.
    options : mapping of str to value
        What that way of reading was told; plain values, as in JSON.
    """

    read: Callable[[], Segmentation]
    files: tuple[Path, ...] = ()
    structures: tuple[str, ...] = ()
    way: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """True: something was outlined or looked for."""
        return True

    def load(self) -> Segmentation:
        """Read the segmentation.

        Raises
        ------
        ReadError, GeometryError, DataError
            As the reader of its format says.
        """
        return self.read()


@dataclass(frozen=True, eq=False)
class Boxes:
    """Where the objects of one image lie.

    Parameters
    ----------
    corners : (N, 2, 3) float64, voxel indices
        The lower and the upper corner along (i, j, k). Voxel centres have whole indices, so a box around the single
        voxel (4, 7, 0) reaches from (3.5, 6.5, -0.5) to (4.5, 7.5, 0.5). A box of a picture has -0.5 and 0.5 along k.
        Boxes are kept as the source has them, degenerate and out-of-frame ones too: ``check`` reports those.
    classes : (N,) int
        Index into the classes of the data set's scheme.
    crowd : (N,) bool, optional
        Boxes that count neither as found nor as missed: crowds of COCO, difficult objects of VOC.
    frame : {"voxel", "mm"}
        ``"mm"`` where the source gives places in the patient, as LUNA does: the middle of the corners is then LPS+ mm,
        and their difference the edge lengths in mm along the (i, j, k) of whatever grid the image has. :meth:`on` turns
        them into voxels.
    """

    corners: Floats
    classes: Array
    crowd: Array | Sequence[bool] | None = None
    frame: Literal["voxel", "mm"] = "voxel"

    def __post_init__(self) -> None:
        if self.frame not in {"voxel", "mm"}:
            raise DataError(f"boxes are in 'voxel' or 'mm', not '{self.frame}'")
        corners = np.array(self.corners, dtype=np.float64).reshape(-1, 2, 3)
        classes = np.array(self.classes, dtype=np.int64).reshape(-1)
        crowd = np.zeros(len(classes), bool) if self.crowd is None else np.array(self.crowd, dtype=bool).reshape(-1)
        if not len(corners) == len(classes) == len(crowd):
            raise DataError(f"{len(corners)} boxes, but {len(classes)} classes and {len(crowd)} crowd marks")
        for name, value in (("corners", corners), ("classes", classes), ("crowd", crowd)):
            value.flags.writeable = False
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.corners)

    @property
    def known(self) -> bool:
        """True: an image without boxes is one in which no object was found."""
        return True

    @property
    def sizes(self) -> Floats:
        """Edge lengths, (N, 3) in the unit of the frame; zero or negative for a degenerate box."""
        return np.asarray(self.corners[:, 1] - self.corners[:, 0])

    def on(self, grid: Grid) -> Boxes:
        """The boxes in voxel indices of the grid of their image; they themselves where they are so already.

        Raises
        ------
        GeometryError
            If they are in mm and the image has no position.

        Examples
        --------
        >>> nodule = Boxes([[[-5, -5, -5], [5, 5, 5]]], [0], frame="mm")  # 10 mm around the origin
        >>> nodule.on(Grid((64, 64, 20), np.diag([0.5, 0.5, 2.0, 1]))).corners.tolist()
        [[[-10.0, -10.0, -2.5], [10.0, 10.0, 2.5]]]
        """
        if self.frame == "voxel":
            return self
        if grid.affine is None:
            raise GeometryError("the boxes are given in mm of the patient, but the image has no position")
        inverse = np.linalg.inv(grid.affine)
        middle = self.corners.mean(axis=1) @ inverse[:3, :3].T + inverse[:3, 3]
        half = self.sizes / 2 / np.asarray(grid.spacing)
        return Boxes(np.stack([middle - half, middle + half], axis=1), self.classes, self.crowd)
