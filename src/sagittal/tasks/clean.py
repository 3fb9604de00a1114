"""Post-processing of masks: islands removed, holes filled; each step kept for the structures that it helps.

Whether a step helps is asked of validation cases, patient by patient: the mean Dice must rise by more than noise. No step
takes a voxel from another structure: what is removed becomes background, and only background is filled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage

from sagittal.grid import Grid
from sagittal.metrics.lesions import components
from sagittal.tasks.outlines import Box, cut, find_boxes
from sagittal.truth import Segmentation, Structure
from sagittal.types import Array, Bools, Floats

#: A step must raise the mean Dice by more than this.
LEAST_GAIN = 0.001
#: Patients below which nothing is chosen.
LEAST_PATIENTS = 3
#: Resamples, and the quantile of their gains that must be positive; with no patient worse, three that are better suffice.
RESAMPLES, LOWER = 1000, 0.05
#: Edge of the blocks in which a large mask is taken apart, voxels.
BLOCK = 8
#: Quantiles of the volumes of false islands that are tried as least volume.
QUANTILES = (0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True, eq=False)
class Pieces:
    """The connected components of one structure in one answer, the largest first, and how much of each is true.

    Parameters
    ----------
    voxels : (m,) int
        Size of each component.
    known, true : (m,) int
        Its voxels of which the truth says something, and those that belong to the structure.
    hole_known, hole_true : (m,) int
        Likewise of the background that it encloses.
    truth : int
        Voxels of the structure in the truth.
    unit_ml : float
        Volume of a voxel; nan for a picture, or where the study does not say.
    """

    voxels: Array
    known: Array
    true: Array
    hole_known: Array
    hole_true: Array
    truth: int
    unit_ml: float

    def dice(self, rule: Mapping[str, Any]) -> float:
        """The Dice after cleaning by a rule; 1 where nothing is found and nothing is there."""
        kept = _kept(self.voxels, rule, self.unit_ml)
        found, both = int(self.known[kept].sum()), int(self.true[kept].sum())
        if rule.get("fill"):
            found, both = found + int(self.hole_known[kept].sum()), both + int(self.hole_true[kept].sum())
        return 1.0 if found + self.truth == 0 else 2 * both / (found + self.truth)


@dataclass(frozen=True, eq=False)
class Choice:
    """How one structure is cleaned.

    Parameters
    ----------
    rule : dict
        ``largest`` (only the largest component stays), ``fill`` (holes are filled), ``least_ml`` or ``least_voxels``
        (components below are removed); empty where nothing helped.
    gain : dict
        ``mean``, ``lower`` (one-sided 95 % limit), ``better``, ``worse`` (patients), ``dice_before``, ``dice_after``.
    dice : (n,) float
        Of each case after cleaning; nan where nothing was found and nothing is there.
    """

    rule: dict[str, Any] = field(default_factory=dict)
    gain: dict[str, Any] = field(default_factory=dict)
    dice: Floats = field(default_factory=lambda: np.zeros(0))


def trace_pieces(
    answer: Segmentation, truth: Segmentation, name: str, boxes: tuple[Mapping[str, Box], Mapping[str, Box]]
) -> Pieces:
    """Take an answer's structure apart, so that every rule can be tried without looking at a voxel again.

    Parameters
    ----------
    answer, truth : Segmentation
        On one grid.
    name : str
    boxes : (mapping, mapping)
        Of :func:`sagittal.tasks.outlines.find_boxes` of both.
    """
    hidden = None if truth.ignore is None else truth.unknown
    there = (
        int(np.count_nonzero(cut(truth, name, boxes[1][name], _cut(hidden, boxes[1][name])))) if name in boxes[1] else 0
    )
    unit = _volume_ml(answer.grid)
    none = np.zeros(0, dtype=np.int64)
    if name not in boxes[0]:
        return Pieces(none, none, none, none, none, there, unit)
    box = boxes[0][name]
    whole, true = cut(answer, name, box), cut(truth, name, box, _cut(hidden, box))
    known = np.ones_like(whole) if hidden is None else ~hidden[box]
    structure = next(s for s in answer.structures if s.name == name)
    free = answer.layers[structure.layer][box] == 0
    parts = [np.zeros((5, 0), dtype=np.int64)]
    for place, mask in regions(whole):
        labels, count = components(mask)
        holes = _holes(mask, picture=answer.grid.shape[2] == 1) & free[place]
        owner = _owners(labels, holes)
        here = known[place], true[place]
        chosen = [
            labels,
            *(np.where(mask & part, labels, 0) for part in here),
            *(np.where(part, owner, 0) for part in here),
        ]
        parts.append(np.stack([np.bincount(one.ravel(), minlength=count + 1)[1:] for one in chosen]))
    voxels, *others = np.concatenate(parts, axis=1)
    order = np.argsort(-voxels, kind="stable")
    of_known, of_true, hole_known, hole_true = (part[order] for part in others)
    return Pieces(voxels[order], of_known, of_true, hole_known, hole_true, there, unit)


def choose_cleaning(pieces: Sequence[Pieces], patients: Sequence[str], *, allowed: bool = True) -> Choice:
    """The steps that raise the mean Dice of validation cases of one structure.

    First one of: only the largest component, or a least volume (quantiles of the volumes of wholly false islands); then
    filling. A step is kept where the mean gain over patients exceeds ``LEAST_GAIN``, its bootstrapped lower limit is
    positive, and more patients are better than worse.

    Parameters
    ----------
    pieces : sequence of n Pieces
    patients : sequence of n str
    allowed : bool
        ``False`` chooses nothing, and still gives the Dice of each case.
    """
    if not len(pieces):
        return Choice()
    rule: dict[str, Any] = {}
    if allowed and len(set(patients)) >= LEAST_PATIENTS:
        steps = [{"largest": True}, *_least_volumes(pieces)]
        gains = [(_gain(pieces, patients, {}, step), step) for step in steps]
        helping = [(gain["mean"], step) for gain, step in gains if _helps(gain)]
        if helping:
            rule = dict(max(helping, key=lambda pair: pair[0])[1])
        if _helps(_gain(pieces, patients, rule, {**rule, "fill": True})):
            rule["fill"] = True
    dice = np.array([piece.dice(rule) for piece in pieces])
    kept = [_kept(piece.voxels, rule, piece.unit_ml) for piece in pieces]
    dice[[piece.truth == 0 and not k.any() for piece, k in zip(pieces, kept, strict=True)]] = np.nan
    return Choice(rule, _gain(pieces, patients, {}, rule) if rule else {}, dice)


def clean_segmentation(segmentation: Segmentation, rules: Mapping[str, Mapping[str, Any]]) -> Segmentation:
    """The segmentation with the islands and holes of some structures gone.

    Islands of all structures go first, then holes are filled, so that an island of one inside another leaves no hole.

    Parameters
    ----------
    segmentation : Segmentation
    rules : mapping of str to mapping
        By structure, as :class:`Choice` describes them; others stay as they are.
    """
    wanted = [s for s in segmentation.structures if rules.get(s.name)]
    if not wanted:
        return segmentation
    boxes = find_boxes(segmentation)
    layers = np.array(segmentation.layers)
    unit = _volume_ml(segmentation.grid)
    parts = [(structure, boxes[structure.name]) for structure in wanted if structure.name in boxes]
    for structure, box in parts:
        _remove_islands(layers[structure.layer][box], structure, rules[structure.name], unit)
    for structure, box in parts:
        if rules[structure.name].get("fill"):
            layer = layers[structure.layer][box]
            for place, mask in regions(_own(layer, structure)):
                part = layer[place]
                part[_holes(mask, picture=layers.shape[3] == 1) & (part == 0)] = structure.values[0]
    return Segmentation(layers, segmentation.grid, segmentation.structures, segmentation.ignore)


def _remove_islands(layer: Array, structure: Structure, rule: Mapping[str, Any], unit: float) -> None:
    """Set the components of a structure that a rule removes to 0, in a view of its layer."""
    if not any(rule.get(step) for step in ("largest", "least_ml", "least_voxels")):
        return
    parts = [(place, *components(mask)) for place, mask in regions(_own(layer, structure))]
    voxels = np.concatenate([np.bincount(labels.ravel(), minlength=count + 1)[1:] for _, labels, count in parts])
    order = np.argsort(-voxels, kind="stable")
    gone = np.zeros(len(voxels), dtype=bool)
    gone[order] = ~_kept(voxels[order], rule, unit)
    first = 0
    for place, labels, count in parts:
        layer[place][np.append(False, gone[first : first + count])[labels]] = 0
        first += count


def _own(layer: Array, structure: Structure) -> Bools:
    values = structure.values
    return np.asarray(layer == values[0] if len(values) == 1 else np.isin(layer, values))


def regions(mask: Bools) -> list[tuple[Box, Bools]]:
    """Parts of a mask that no component joins, each with its box: far islands do not make it a matter of the whole study.

    Voxels in blocks of 8 x 8 x 8 that do not even touch belong to different components.

    Examples
    --------
    >>> mask = np.zeros((100, 100, 100), dtype=bool)
    >>> mask[3:5, 3:5, 3] = mask[90, 90, 90] = True
    >>> [(part.shape, int(part.sum())) for _, part in regions(mask)]
    [((8, 8, 8), 4), ((8, 8, 8), 1)]
    """
    if mask.size <= BLOCK**3 * 8:
        return [((slice(None), slice(None), slice(None)), np.ascontiguousarray(mask))]
    some = mask
    for axis in range(3):
        some = np.logical_or.reduceat(some, range(0, mask.shape[axis], BLOCK), axis=axis)
    numbers, count = ndimage.label(some, structure=np.ones((3, 3, 3)))
    out = []
    for number, coarse in enumerate(ndimage.find_objects(numbers, max_label=count), start=1):
        i, j, k = (slice(s.start * BLOCK, min(s.stop * BLOCK, n)) for s, n in zip(coarse, mask.shape, strict=True))
        mine = numbers[coarse] == number
        part = np.ascontiguousarray(mask[i, j, k])
        if not mine.all():  # another part's blocks lie in the same box
            fine = mine
            for axis in range(3):
                fine = np.repeat(fine, BLOCK, axis=axis)
            part &= fine[: part.shape[0], : part.shape[1], : part.shape[2]]
        out.append(((i, j, k), part))
    return out


def _kept(voxels: Array, rule: Mapping[str, Any], unit: float) -> Bools:
    """Which components stay, of sizes that fall."""
    kept = np.ones(len(voxels), dtype=bool)
    if rule.get("largest"):
        kept[1:] = False
    if rule.get("least_voxels"):
        kept &= voxels >= rule["least_voxels"]
    if rule.get("least_ml") and math.isfinite(unit):
        kept &= voxels * unit >= rule["least_ml"]
    return kept


def _holes(mask: Bools, *, picture: bool) -> Bools:
    """Background of a box that a mask encloses; at the faces of the box it is open, but for those of a picture."""
    flat = mask[:, :, 0] if picture else mask
    # Labels of the outside: ndimage.binary_fill_holes grows it voxel by voxel, which takes 20 times as long.
    labels, count = ndimage.label(np.pad(~flat, 1, constant_values=True))
    if count < 2:
        return np.zeros_like(mask)
    inner = labels[tuple(slice(1, -1) for _ in range(flat.ndim))]
    holes = (inner > 0) & (inner != labels[(0,) * flat.ndim])
    return np.asarray(holes[:, :, None] if picture else holes)


def _owners(labels: Array, holes: Bools) -> Array:
    """For each voxel of a hole the component that encloses it; 0 elsewhere."""
    owner = np.zeros_like(labels)
    numbers, count = ndimage.label(holes)
    for number, box in enumerate(ndimage.find_objects(numbers, max_label=count), start=1):
        wide = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
        inside = numbers[wide] == number
        around = labels[wide][ndimage.binary_dilation(inside) & ~inside]
        touched = np.bincount(around[around > 0]) if (around > 0).any() else np.zeros(1)
        owner[wide][inside] = int(touched.argmax())
    return owner


def _least_volumes(pieces: Sequence[Pieces]) -> list[dict[str, Any]]:
    """Least volumes worth trying: just above some quantiles of the volumes of islands that are wholly false."""
    in_ml = all(math.isfinite(piece.unit_ml) for piece in pieces)
    sizes = [
        float(size) * (piece.unit_ml if in_ml else 1)
        for piece in pieces
        for size in piece.voxels[(piece.true == 0) & (piece.known > 0)]
    ]
    if not sizes:
        return []
    name = "least_ml" if in_ml else "least_voxels"
    tried = sorted({float(np.quantile(sizes, quantile, method="higher")) for quantile in QUANTILES})
    return [{name: float(f"{size * 1.001:.6g}") if in_ml else size + 1} for size in tried]


def _gain(
    pieces: Sequence[Pieces], patients: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, Any]:
    """What a rule brings against another, averaged within patients."""
    old, new = (np.array([piece.dice(rule) for piece in pieces]) for rule in (before, after))
    _, group = np.unique(np.asarray(patients), return_inverse=True)
    count = np.bincount(group)
    gain = np.bincount(group, new - old) / count
    rng = np.random.default_rng(0)
    means = gain[rng.integers(0, len(gain), (RESAMPLES, len(gain)))].mean(axis=1)
    return {
        "mean": float(gain.mean()),
        "lower": float(np.quantile(means, LOWER)),
        "better": int((gain > 0).sum()),
        "worse": int((gain < 0).sum()),
        "dice_before": float(old.mean()),
        "dice_after": float(new.mean()),
    }


def _helps(gain: Mapping[str, Any]) -> bool:
    return bool(gain["mean"] > LEAST_GAIN and gain["lower"] > 0 and gain["better"] > gain["worse"])


def _cut(hidden: Bools | None, box: Box) -> Bools | None:
    return None if hidden is None else hidden[box]


def _volume_ml(grid: Grid) -> float:
    """Of a voxel; nan for a picture or an image without a size."""
    if grid.spacing is None or grid.shape[2] == 1:
        return math.nan
    return float(np.prod(np.asarray(grid.spacing, dtype=np.float64))) / 1000
