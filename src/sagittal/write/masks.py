"""Masks to label maps: NIfTI with its names beside it, or PNG of a picture, on the grid of the study."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.errors import ScopeError
from sagittal.model.archive import disk_errors
from sagittal.prediction import Mask, Prediction
from sagittal.truth import Structure
from sagittal.types import Array
from sagittal.write.names import safe_word
from sagittal.write.nifti import write_nifti
from sagittal.write.raster import write_png
from sagittal.write.terminology import Term, Terminology

#: Slices that are copied at once.
_BLOCK = 32


def write_mask_nifti(
    prediction: Prediction, folder: Path, stem: str, *, terminology: Terminology | None = None
) -> list[Path]:
    """Write a mask as ``STEM.nii.gz`` and ``STEM.json``, its names, values, codes and colours.

    Values count from 1 in the order of the model's structures; 0 is background. Structures that overlap get a file each,
    ``STEM.1-NAME.nii.gz`` of 0 and 1. Doubt and probabilities, where the prediction has them, become
    ``STEM.doubt.nii.gz`` and ``STEM.probability.nii.gz`` (0 to 1, structures along the fourth axis).

    Parameters
    ----------
    prediction : Prediction
        Its finding is a mask.
    folder : Path
    stem : str
        Safe for a file name.
    terminology : Terminology, optional

    Raises
    ------
    GeometryError
        If the study has no position in the patient, which NIfTI must state.
    ResourceError
        If the disk refuses.
    """
    mask = mask_of(prediction, "a label map")
    structures = mask.segmentation.structures
    terms = (terminology or Terminology()).find_all([one.name for one in structures])
    written, files = [], []
    if overlaps(mask):
        for n, one in enumerate(structures, start=1):
            files.append(f"{stem}.{n}-{safe_word(one.name)}.nii.gz")
            write_nifti(mask.segmentation.mask(one.name).astype(np.uint8), mask.grid, folder / files[-1])
            written.append(folder / files[-1])
    else:
        files = [f"{stem}.nii.gz"] * len(structures)
        write_nifti(label_map(mask), mask.grid, folder / f"{stem}.nii.gz")
        written.append(folder / f"{stem}.nii.gz")
    if mask.doubt is not None:
        written.append(folder / f"{stem}.doubt.nii.gz")
        write_nifti(_share(mask.doubt), mask.grid, written[-1])
    if all(one.name in mask.probability for one in structures) and structures:
        written.append(folder / f"{stem}.probability.nii.gz")
        stacked = np.stack([_share(mask.probability[one.name]) for one in structures])
        write_nifti(stacked, mask.grid, written[-1])
    names = folder / f"{stem}.json"
    _write_names(prediction, structures, terms, files, overlaps(mask), names)
    return [*written, names]


def write_mask_png(
    prediction: Prediction, folder: Path, stem: str, *, terminology: Terminology | None = None
) -> list[Path]:
    """Write the mask of a picture as ``STEM.mask.png`` and ``STEM.mask.json``; the pixels are the values.

    Structures that overlap get a file each, ``STEM.mask.1-NAME.png`` of 0 and 255. A loop gets its frames one below the
    other.

    Raises
    ------
    ScopeError
        If the study is a volume with a place in the patient, or has more than 255 structures.
    ResourceError
        If the disk refuses.
    """
    mask = mask_of(prediction, "a label map")
    structures = mask.segmentation.structures
    if mask.grid.dimensions == 3 and mask.grid.has_position:
        raise ScopeError(f"case {prediction.case}: a volume is no picture. Write another format: --format nifti")
    if len(structures) > 255:
        raise ScopeError(f"case {prediction.case}: a PNG holds 255 structures, the mask has {len(structures)}")
    terms = (terminology or Terminology()).find_all([one.name for one in structures])
    if overlaps(mask):
        files = [f"{stem}.mask.{n}-{safe_word(one.name)}.png" for n, one in enumerate(structures, start=1)]
        for name, one in zip(files, structures, strict=True):
            write_png(_below(mask.segmentation.mask(one.name).astype(np.uint8) * np.uint8(255)), folder / name)
        written = [folder / name for name in files]
    else:
        files = [f"{stem}.mask.png"] * len(structures)
        write_png(_below(label_map(mask)), folder / f"{stem}.mask.png")
        written = [folder / f"{stem}.mask.png"]
    names = folder / f"{stem}.mask.json"
    _write_names(prediction, structures, terms, files, overlaps(mask), names)
    return [*written, names]


def label_map(mask: Mask) -> Array:
    """Each voxel's structure, counted from 1 in the order of the model, 0 outside all; (I, J, K) uint8 or int16.

    Of structures that overlap, the last one wins.
    """
    structures = mask.segmentation.structures
    kind = np.uint8 if len(structures) < 256 else np.int16
    out = np.zeros(mask.grid.shape, dtype=kind)
    for layer in range(len(mask.segmentation.layers)):
        own = [(n, one) for n, one in enumerate(structures, start=1) if one.layer == layer and one.values]
        stored = mask.segmentation.layers[layer]
        table = np.zeros(int(np.iinfo(stored.dtype).max) + 1 if stored.dtype.itemsize <= 2 else 0, dtype=kind)
        if len(table):
            for n, one in own:
                table[list(one.values)] = n
            values = table[stored]
            out = values if layer == 0 else np.where(values > 0, values, out)
        else:
            for n, one in own:
                out[np.isin(stored, one.values)] = n
    return out


def planes_of(mask: Mask) -> Iterator[tuple[int, int, Array]]:
    """Each structure's voxels on each slice that it meets: its index, k, and (I, J) bool.

    One pass over the layers, slice by slice, so that no mask of the whole study is ever held.
    """
    structures = mask.segmentation.structures
    for number, layer in enumerate(mask.segmentation.layers):
        own = [(n, one.values) for n, one in enumerate(structures) if one.layer == number and one.values]
        table = np.zeros(int(np.iinfo(layer.dtype).max) + 1 if layer.dtype.itemsize <= 2 else 0, dtype=bool)
        for k, plane in _slices_of(layer):
            if len(table):
                table[:] = False
                table[plane.ravel(order="K")] = True
            for n, values in own:
                there = [value for value in values if not len(table) or (value < len(table) and table[value])]
                if not there:
                    continue
                inside = plane == there[0]
                for value in there[1:]:
                    inside |= plane == value
                if len(table) or inside.any():
                    yield n, k, inside


def _slices_of(layer: Array) -> Iterator[tuple[int, Array]]:
    """Each slice, (I, J), its columns side by side in memory as DICOM has them.

    Some slices are copied at once: with slices as the last axis of memory, one alone touches all of the volume.
    """
    for start in range(0, layer.shape[2], _BLOCK):
        block = np.ascontiguousarray(layer[:, :, start : start + _BLOCK].transpose(2, 1, 0))  # (k, J, I)
        for n, plane in enumerate(block):
            yield start + n, plane.T


def overlaps(mask: Mask) -> bool:
    """Whether a voxel belongs to more than one structure."""
    structures = [one for one in mask.segmentation.structures if one.values]
    layers = {one.layer for one in structures}
    shared = any(
        set(a.values) & set(b.values) and a.layer == b.layer
        for n, a in enumerate(structures)
        for b in structures[n + 1 :]
    )
    if len(layers) < 2 and not shared:
        return False
    count = np.zeros(mask.grid.shape, dtype=np.uint8)
    for one in structures:
        inside = mask.segmentation.mask(one.name)
        if (count[inside] > 0).any():
            return True
        count[inside] = 1
    return False


def mask_of(prediction: Prediction, what: str) -> Mask:
    """The mask of a prediction.

    Raises
    ------
    ScopeError
        If it found something else.
    """
    if not isinstance(prediction.finding, Mask):
        found = {"ClassScores": "classes", "Detections": "boxes"}.get(type(prediction.finding).__name__, "nothing")
        raise ScopeError(f"case {prediction.case}: {what} holds a mask, and this model finds {found}")
    return prediction.finding


def _share(values: Array) -> Array:
    return np.asarray(values, dtype=np.float32) / np.float32(255)


def _below(values: Array) -> Array:
    """(I, J, K) -> (K * J, I): the frames of a loop one below the other."""
    return np.ascontiguousarray(values.transpose(2, 1, 0).reshape(-1, values.shape[0]))


def _write_names(
    prediction: Prediction,
    structures: Sequence[Structure],
    terms: Sequence[Term],
    files: Sequence[str],
    apart: bool,
    path: Path,
) -> None:
    """The side file: what the values mean."""
    mask = mask_of(prediction, "a label map")
    rows: list[dict[str, Any]] = []
    for n, (one, term, file) in enumerate(zip(structures, terms, files, strict=True), start=1):
        row: dict[str, Any] = {
            "name": one.name,
            "file": file,
            "value": (255 if file.endswith(".png") else 1) if apart else n,
            "code": [term.type.value, term.type.scheme, term.type.meaning],
            "colour": "#{:02x}{:02x}{:02x}".format(*term.colour),
        }
        expected = mask.expected_dice.get(one.name)
        if expected is not None and np.isfinite(expected):
            row["expected_dice"] = round(float(expected), 4)
        rows.append(row)
    values = {"case": prediction.case, "model": prediction.model, "background": 0, "structures": rows}
    write_json(values, path)


def write_json(values: Any, path: Path) -> None:
    """Write plain values as JSON, whole or not at all.

    Raises
    ------
    ResourceError
        If the disk refuses.
    """
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(text, path)


def write_text(text: str, path: Path) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises
    ------
    ResourceError
        If the disk refuses.
    """
    write_bytes(text.encode(), path)


def write_bytes(data: bytes, path: Path) -> None:
    """Write a file, whole or not at all.

    Raises
    ------
    ResourceError
        If the disk refuses.
    """
    with disk_errors(path.name, need=len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".part-{path.name}")
        try:
            part.write_bytes(data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
