"""The truth of a case on an array: structures as label maps, objects as boxes, with all that may be wrong said plainly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sagittal.case import Case
from sagittal.errors import DataError, GeometryError
from sagittal.grid import Grid
from sagittal.labels import LabelScheme
from sagittal.prepare.align import same_lattice
from sagittal.prepare.lattice import Lattice
from sagittal.prepare.place_segmentation import place_segmentation
from sagittal.prepare.plan import Outputs
from sagittal.prepare.resample import resize_part
from sagittal.prepare.turn import file_grid, turn_boxes, turn_segmentation
from sagittal.truth import Boxes, Segmentation, SegmentationSource
from sagittal.types import Array, Bools, Floats

#: Stored value of a voxel of which nothing is known.
UNKNOWN = 255


@dataclass(frozen=True, eq=False)
class StructureTruth:
    """What is known of the structures of a scheme in one case, on one grid; masks are made when asked for.

    Parameters
    ----------
    segmentation : Segmentation
        On the grid that was asked for.
    names : tuple of str
        The scheme's structures.
    notes : tuple of str
        What was done to bring it there.
    """

    segmentation: Segmentation
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[bool, ...]:
        """For each structure whether it was looked for in this case."""
        named = {structure.name for structure in self.segmentation.structures}
        return tuple(name in named for name in self.names)

    @property
    def ignored(self) -> Bools:
        """Voxels of which nothing is known, (I, J, K) bool."""
        return self.segmentation.unknown

    def mask(self, number: int) -> Bools:
        """The voxels of a structure, (I, J, K) bool; none where it was not looked for."""
        if not self.known[number]:
            return np.zeros(self.segmentation.grid.shape, dtype=bool)
        return self.segmentation.mask(self.names[number])

    def unknown(self, number: int) -> Bools:
        """The voxels of which it is not known whether the structure is there, (I, J, K) bool."""
        if not self.known[number]:
            return np.ones(self.segmentation.grid.shape, dtype=bool)
        return self.ignored


def structure_truth(case: Case, scheme: LabelScheme, grid: Grid) -> StructureTruth:
    """Read the segmentation of a case and bring it to a grid, normally that of its first image.

    One on another grid is brought over as :func:`sagittal.prepare.place_segmentation.place_segmentation` says.

    Raises
    ------
    ReadError
        If it cannot be read.
    DataError
        If the case has no segmentation, or it holds values that no structure has.
    GeometryError
        If it does not lie on the image.
    """
    if grid.turned is not None:
        own = structure_truth(case, scheme, file_grid(grid))
        return StructureTruth(turn_segmentation(own.segmentation, grid), own.names, own.notes)
    if not isinstance(case.truth, SegmentationSource):
        found = "no truth" if case.truth is None else f"truth of kind {type(case.truth).__name__}"
        raise DataError(f"case {case.id}: has {found} where a segmentation was expected. Choose another --task.")
    segmentation = case.truth.load()
    _check_values(segmentation, scheme, case.id)
    names = tuple(scheme.classes)
    if same_lattice(segmentation.grid, grid):
        return StructureTruth(segmentation, names)
    moved, note = place_segmentation(segmentation, case, grid)
    return StructureTruth(moved, names, (note,))


def structure_masks(case: Case, scheme: LabelScheme, grid: Grid) -> tuple[Bools, Bools]:
    """The masks of a case's structures on a grid, and where they are unknown; see :func:`structure_truth`.

    Returns
    -------
    masks : (S, I, J, K) bool
        In the order of the scheme.
    unknown : (S, I, J, K) bool
        Read only. True everywhere for a structure that was not looked for.
    """
    truth = structure_truth(case, scheme, grid)
    numbers = range(len(truth.names))
    masks = np.empty((len(numbers), *grid.shape), dtype=bool)
    for n in numbers:
        masks[n] = truth.mask(n)
    if all(truth.known):
        return masks, np.broadcast_to(truth.ignored, masks.shape)
    return masks, np.stack([truth.unknown(n) for n in numbers])


def label_target(case: Case, scheme: LabelScheme, outputs: Outputs, lattice: Lattice) -> Array:
    """The truth of a case's structures on its prepared array.

    Each structure is resampled by itself, linearly and without aliasing, and a voxel goes to whichever has the largest
    part of it, the background among them; so labels do not jag when they are enlarged, and thin structures do not
    vanish by chance when they shrink.

    Returns
    -------
    (1, *size) uint8 for "exclusive"
        0 background, 1..S structures, 255 unknown: ignored voxels, and background where a structure of the scheme was
        not looked for.
    (S, *size) uint8 for "independent"
        0, 1 or 255.

    Raises
    ------
    ReadError, DataError, GeometryError
        As :func:`structure_truth`.
    """
    truth = structure_truth(case, scheme, lattice.grid)
    numbers = range(len(truth.names))
    if len(truth.names) >= UNKNOWN and outputs == "exclusive":
        raise DataError(f"{len(truth.names)} structures; at most {UNKNOWN - 1} can exclude each other in one map")
    ignored = truth.segmentation.ignore is not None
    blank = _parts(truth.ignored, lattice) if ignored else None
    if outputs == "independent":
        stored = np.zeros((len(truth.names), *lattice.size), dtype=np.uint8)
        for n in numbers:
            if not truth.known[n]:
                stored[n] = UNKNOWN
                continue
            found = _parts(truth.mask(n), lattice)
            if found is not None:
                part, box = found
                stored[n][box] = part >= 0.5
            _blank(stored[n], blank)
        return stored
    label = np.zeros(lattice.size, dtype=np.uint8)
    same = lattice.size == lattice.extent
    most = None if same else np.zeros(lattice.size, dtype=np.float32)
    total = None if same else np.zeros(lattice.size, dtype=np.float32)
    for n in numbers:
        found = _parts(truth.mask(n), lattice) if truth.known[n] else None
        if found is None:
            continue
        part, box = found
        if most is None or total is None:
            label[box][(part > 0) & (label[box] == 0)] = n + 1
            continue
        better = part > most[box]
        label[box][better] = n + 1
        most[box][better] = part[better]
        total[box] += part
    if most is not None and total is not None:
        label[most < 1 - total] = 0  # more of the voxel is background
    if not all(truth.known):
        label[label == 0] = UNKNOWN
    _blank(label, blank)
    return label[np.newaxis]


def box_target(case: Case, scheme: LabelScheme, lattice: Lattice) -> Array:
    """The objects of a case on its prepared array.

    Boxes are cut at the edge of the array; those without extent or wholly outside are left out (``check`` reports both).
    A case whose truth is a segmentation gives a box for each connected component of each structure.

    Returns
    -------
    (M, 2 d + 2) float32
        Low corner, high corner in the array's voxels, whose centres have whole indices; class; crowd, 0 or 1.

    Raises
    ------
    ReadError, DataError, GeometryError
        As :func:`structure_truth`, or if boxes in mm meet an image without a position, or have a class that the scheme
        lacks.
    """
    boxes = object_boxes(case, scheme, lattice.grid)
    d = lattice.dimensions
    low, high = (lattice.to_array(boxes.corners[:, n]) for n in (0, 1))
    low, high = np.maximum(low, -0.5), np.minimum(high, np.array(lattice.size) - 0.5)
    kept = (high - low > 1e-3).all(axis=1)
    if d == 3:  # a flat box of a volume is degenerate, but not one of a picture
        kept &= (boxes.sizes > 0).all(axis=1)
    crowd = np.asarray(boxes.crowd, dtype=np.float32)
    rows = np.concatenate([low, high, boxes.classes[:, None], crowd[:, None]], axis=1)
    return np.ascontiguousarray(rows[kept], dtype=np.float32)


def object_boxes(case: Case, scheme: LabelScheme, grid: Grid) -> Boxes:
    """The objects of a case in voxel indices of a grid: its boxes, or those around the components of its structures.

    Raises
    ------
    ReadError, DataError, GeometryError
        As :func:`box_target`.
    """
    if grid.turned is not None:
        own = file_grid(grid)
        return turn_boxes(object_boxes(case, scheme, own), own.shape, grid.turned)
    truth = case.truth
    if isinstance(truth, SegmentationSource):
        return _lesion_boxes(structure_truth(case, scheme, grid))
    if not isinstance(truth, Boxes):
        found = "no truth" if truth is None else f"truth of kind {type(truth).__name__}"
        raise DataError(f"case {case.id}: has {found} where boxes were expected. Choose another --task.")
    strange = sorted({int(c) for c in truth.classes if not 0 <= c < len(scheme.classes)})
    if strange:
        raise DataError(
            f"case {case.id}: has boxes of class {', '.join(map(str, strange[:8]))}; the scheme has "
            f"{len(scheme.classes)} ({', '.join(scheme.classes[:8])}), counted from 0"
        )
    try:
        return truth.on(grid)
    except GeometryError as error:
        raise GeometryError(f"case {case.id}: {error}. Convert the image again with its position.") from None


def _lesion_boxes(truth: StructureTruth) -> Boxes:
    from scipy.ndimage import find_objects, label

    corners: list[list[list[float]]] = []
    classes: list[int] = []
    for n in range(len(truth.names)):
        components, _ = label(truth.mask(n), structure=np.ones((3, 3, 3)))
        for box in find_objects(components):
            corners.append([[s.start - 0.5 for s in box], [s.stop - 0.5 for s in box]])
            classes.append(n)
    return Boxes(np.array(corners, dtype=np.float64).reshape(-1, 2, 3), np.array(classes, dtype=np.int64))


def _check_values(segmentation: Segmentation, scheme: LabelScheme, case: str) -> None:
    """Refuse voxel values that no structure has."""
    for number, layer in enumerate(segmentation.layers):
        known = {0, *(v for s in segmentation.structures if s.layer == number for v in s.values)}
        if segmentation.ignore is not None:
            known.add(segmentation.ignore)
        if layer.dtype.itemsize == 1:
            present = np.flatnonzero(np.bincount(layer.ravel(order="K"), minlength=1))
        else:
            present = np.unique(layer)
        others = [int(v) for v in present if int(v) not in known]
        if others:
            shown = ", ".join(f"{v} ({np.count_nonzero(layer == v)} voxels)" for v in others[:8])
            raise DataError(
                f"case {case}: the segmentation holds the values {shown}{', ...' if len(others) > 8 else ''}, which no "
                f"structure has; expected 0 and those of {', '.join(scheme.classes)}. Name them in the data set's "
                "description or with --target NAME=VALUE, or correct the mask."
            )


def _parts(mask: Bools, lattice: Lattice) -> tuple[Floats, tuple[slice, ...]] | None:
    """What part of each voxel of the array a mask of the study fills, and the box outside which that is nothing."""
    study = mask[..., 0].T if lattice.dimensions == 2 else mask.T
    kept = study[tuple(slice(s, s + e) for s, e in zip(lattice.start, lattice.extent, strict=True))]
    box = _bounds(kept)
    if box is None:
        return None
    part = kept[box]
    if lattice.size == lattice.extent:
        return part.astype(np.float32), box
    resized, first = resize_part(part.astype(np.float32), [s.start for s in box], lattice.extent, lattice.size)
    return resized, tuple(slice(f, f + n) for f, n in zip(first, resized.shape, strict=True))


def _bounds(mask: Bools) -> tuple[slice, ...] | None:
    """The smallest box that holds a mask; ``None`` for an empty one."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        used = np.flatnonzero(mask.any(axis=others))
        if not len(used):
            return None
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def _blank(label: Array, blank: tuple[Floats, tuple[slice, ...]] | None) -> None:
    """Mark what is not known; writes into `label`."""
    if blank is not None:
        part, box = blank
        label[box][part >= 0.5] = UNKNOWN
