"""What a data set's structures and objects are like: how often, how large, how thin, how bright."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sagittal.case import Case
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.prepare.align import same_lattice, voxel_map
from sagittal.prepare.spread import ChannelFacts, Spread
from sagittal.prepare.truth_maps import StructureTruth, object_boxes, structure_truth
from sagittal.truth import Boxes
from sagittal.types import Array, Bools, Floats

#: Voxels of structures whose values are kept of each case.
_KEPT = 4096


@dataclass(frozen=True)
class StructureFacts:
    """One structure over the sampled cases. Lengths in voxels are those of the studies as they came.

    Parameters
    ----------
    name : str
    present, absent, unknown : int
        Sampled cases that have it, that were searched in vain, and that say nothing about it.
    voxels, volume_ml : Spread, optional
        Over the cases that have it; `volume_ml` where all of them state their voxel size.
    part : float
        Median part of the image that it fills, where it is.
    components : float
        Median number of separate pieces.
    thickness : float
        Median of twice the voxels per face of the surface: the thickness of a sheet, 0.39 diameters of a tube and 0.22 of
        a ball.
    length : float
        Median longest edge of the box around the largest piece. A thin tree is much longer than thick.
    """

    name: str
    present: int = 0
    absent: int = 0
    unknown: int = 0
    voxels: Spread | None = None
    volume_ml: Spread | None = None
    part: float = 0.0
    components: float = 0.0
    thickness: float = 0.0
    length: float = 0.0

    @property
    def radius_voxels(self) -> float:
        """Radius of a tube that is as thick as the structure."""
        return 4 / np.pi * self.thickness


@dataclass(frozen=True)
class ObjectFacts:
    """The objects of one class.

    Parameters
    ----------
    name : str
    objects : int
        In the sampled cases, those without extent left out.
    images : int
        Sampled cases with at least one.
    an_image : Spread, optional
        Objects of a sampled case, cases with none among them.
    edges : one Spread an axis
        Edge lengths of the boxes in voxels of the studies, in network order.
    edges_mm : likewise, mm
        Empty unless every sampled study states its voxel size.
    """

    name: str
    objects: int = 0
    images: int = 0
    an_image: Spread | None = None
    edges: tuple[Spread, ...] = ()
    edges_mm: tuple[Spread, ...] = ()


@dataclass(frozen=True, eq=False)
class StructureLook:
    """What one case shows of its structures: for each known one its voxels and shape, and the values inside."""

    shapes: Mapping[str, tuple[float, ...] | None]  # voxels, volume ml, part, components, thickness, length
    exclusive: bool
    values: tuple[Floats, ...]  # for each channel


def look_at_structures(case: Case, scheme: LabelScheme, images: Sequence[Image]) -> StructureLook:
    """Measure the structures of a case whose images were read.

    Raises
    ------
    ReadError, DataError, GeometryError
        As :func:`sagittal.prepare.truth_maps.structure_truth`.
    """
    grid = images[0].grid
    truth = structure_truth(case, scheme, grid)
    box = _bounds(np.asarray((truth.segmentation.layers != 0).any(axis=0)))
    shapes: dict[str, tuple[float, ...] | None] = {}
    covered = np.zeros([s.stop - s.start for s in box], dtype=np.uint8)
    for number, name in enumerate(truth.names):
        if truth.known[number]:
            mask = _mask_in(truth, number, box)
            shapes[name] = _shape(mask, grid)
            covered += mask
        else:
            shapes[name] = None
    inside = np.argwhere(covered > 0)[:: max(1, int(np.count_nonzero(covered)) // _KEPT)]
    places = inside + [s.start for s in box]
    return StructureLook(shapes, bool(covered.max(initial=0) <= 1), tuple(_values_at(images, places)))


def structure_facts(looks: Sequence[StructureLook], scheme: LabelScheme) -> tuple[StructureFacts, ...]:
    """The structures of a scheme over the cases that were looked at."""
    facts = []
    for name in scheme.classes:
        known = [shape for look in looks if (shape := look.shapes[name]) is not None]
        rows = np.array([shape for shape in known if shape[0] > 0]).reshape(-1, 6)
        present, unknown = len(rows), len(looks) - len(known)
        if not present:
            facts.append(StructureFacts(name, 0, len(known), unknown))
            continue
        middle = np.median(rows, axis=0)
        facts.append(
            StructureFacts(
                name,
                present,
                len(known) - present,
                unknown,
                voxels=Spread.of(rows[:, 0].tolist()),
                volume_ml=Spread.of(rows[:, 1].tolist()) if np.all(np.isfinite(rows[:, 1])) else None,
                part=float(middle[2]),
                components=float(middle[3]),
                thickness=float(middle[4]),
                length=float(middle[5]),
            )
        )
    return tuple(facts)


def foreground_facts(looks: Sequence[StructureLook]) -> tuple[ChannelFacts, ...]:
    """Intensities inside structures, one for each channel of all images; none where nothing was outlined."""
    if not looks:
        return ()
    channels = min(len(look.values) for look in looks)
    values = [np.concatenate([look.values[c] for look in looks]) for c in range(channels)]
    return tuple(ChannelFacts.of(v) for v in values) if all(len(v) for v in values) else ()


def look_at_objects(case: Case, scheme: LabelScheme, grid: Grid) -> Boxes:
    """The objects of a case in voxels of its first image, those without extent left out.

    Raises
    ------
    ReadError, DataError, GeometryError
        As :func:`sagittal.prepare.truth_maps.object_boxes`.
    """
    boxes = object_boxes(case, scheme, grid)
    kept = (boxes.sizes[:, : grid.dimensions] > 0).all(axis=1)
    return Boxes(boxes.corners[kept], boxes.classes[kept], np.asarray(boxes.crowd)[kept])


def object_facts(looks: Sequence[tuple[Boxes, Grid]], scheme: LabelScheme, dimensions: int) -> tuple[ObjectFacts, ...]:
    """The objects of each class over the cases that were looked at."""
    facts = []
    spacings = [None if g.spacing is None else np.asarray(g.spacing)[:dimensions] for _, g in looks]
    in_mm = all(s is not None and bool(np.all(np.isfinite(s))) for s in spacings)
    for number, name in enumerate(scheme.classes):
        counts = [int(np.count_nonzero(boxes.classes == number)) for boxes, _ in looks]
        sizes = [boxes.sizes[boxes.classes == number][:, :dimensions][:, ::-1] for boxes, _ in looks]
        edges = np.concatenate(sizes) if sizes else np.zeros((0, dimensions))
        if not len(edges):
            facts.append(ObjectFacts(name))
            continue
        mm: tuple[Spread, ...] = ()
        if in_mm:
            scaled = [size * np.asarray(s)[::-1] for size, s in zip(sizes, spacings, strict=True)]
            mm = tuple(Spread.of(axis.tolist()) for axis in np.concatenate(scaled).T)
        facts.append(
            ObjectFacts(
                name,
                len(edges),
                sum(n > 0 for n in counts),
                Spread.of(counts),
                tuple(Spread.of(axis.tolist()) for axis in edges.T),
                mm,
            )
        )
    return tuple(facts)


def never_present(counts: Mapping[str, int], looked: int, all_cases: int) -> tuple[str, ...]:
    """What is said of structures or objects that no case has.

    >>> never_present({"liver": 3, "cyst": 0}, 5, 5)
    ("none of the 5 cases has 'cyst': it can be neither learned nor judged. Check its name or value, or leave it out with --target.",)
    """
    which = f"the {looked} cases" if looked == all_cases else f"{looked} of {all_cases} cases that were looked at"
    return tuple(
        f"none of {which} has '{name}': it can be neither learned nor judged. Check its name or value, or leave it out "
        "with --target."
        for name, count in counts.items()
        if not count
    )


def _shape(mask: Bools, grid: Grid) -> tuple[float, ...]:
    """Voxels, volume in ml, part of the image, pieces, thickness and length of a mask that was cut out of its image."""
    from scipy.ndimage import find_objects, label

    voxels = int(np.count_nonzero(mask))
    if not voxels:
        return (0.0,) * 6
    mask = mask[_bounds(mask)]
    spacing = None if grid.spacing is None else np.asarray(grid.spacing)
    ml = float("nan")
    if spacing is not None and np.all(np.isfinite(spacing)):
        ml = voxels * float(np.prod(spacing)) / 1000
    pieces, count = label(mask, structure=np.ones((3, 3, 3)))
    largest = int(np.bincount(pieces.ravel())[1:].argmax())
    length = max(s.stop - s.start for s in find_objects(pieces)[largest])
    faces = 0
    for axis, n in enumerate(grid.shape):
        if n > 1:  # a picture has no faces towards its reader
            changes = int(np.count_nonzero(np.diff(mask.astype(np.int8), axis=axis)))
            faces += changes + int(np.count_nonzero(mask.take(0, axis))) + int(np.count_nonzero(mask.take(-1, axis)))
    return (
        float(voxels),
        ml,
        voxels / float(np.prod(grid.shape)),
        float(count),
        2 * voxels / max(faces, 1),
        float(length),
    )


def _bounds(mask: Bools) -> tuple[slice, ...]:
    """The smallest box that holds a mask; all of it where it is empty."""
    box = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, mask.shape[axis]))
    return tuple(box)


def _mask_in(truth: StructureTruth, number: int, box: tuple[slice, ...]) -> Bools:
    """A structure's mask in a box, without making the rest."""
    for structure in truth.segmentation.structures:
        if structure.name == truth.names[number]:
            return np.isin(truth.segmentation.layers[structure.layer][box], structure.values)
    raise AssertionError("unreachable: the structure is known")


def _values_at(images: Sequence[Image], places: Array) -> list[Floats]:
    """Values of every channel of all images at voxels (m, 3) of the first image's grid; the nearest of other grids."""
    found: list[Floats] = []
    for image in images:
        index = places
        if not same_lattice(image.grid, images[0].grid):
            if image.grid.affine is None or images[0].grid.affine is None:
                found += [np.zeros(0, dtype=np.float32)] * image.channels  # preparing will say what is wrong
                continue
            matrix = voxel_map(image.grid, images[0].grid)
            index = np.rint(places @ matrix[:3, :3].T + matrix[:3, 3]).astype(int)
            index = index[((index >= 0) & (index < image.grid.shape)).all(axis=1)]
        found += [channel[tuple(index.T)] for channel in image.data]
    return found
