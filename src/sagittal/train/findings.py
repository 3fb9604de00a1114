"""Findings of validation cases, kept on disk as they were found: masks of many studies do not fit into memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.case import Case
from sagittal.errors import DataError
from sagittal.prediction import Detections, Finding, Mask
from sagittal.prepare.lattice import Lattice
from sagittal.truth import Boxes, Segmentation, Structure


@dataclass(frozen=True, eq=False)
class Found:
    """Findings that were kept in a folder, each beside its case; can be gone through several times.

    Parameters
    ----------
    folder : Path
    cases : tuple of Case
        In the order in which their findings were kept.
    """

    folder: Path
    cases: tuple[Case, ...]

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[tuple[Finding, Case]]:
        for number, case in enumerate(self.cases):
            yield load_finding(self.folder / f"{number}.npz"), case


def save_finding(finding: Finding, path: Path) -> None:
    """Write a mask or boxes.

    Raises
    ------
    DataError
        If it is neither.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(finding, Mask):
        seg = finding.segmentation
        values: dict[str, Any] = {
            "grid": Lattice.of(seg.grid, 3).to_json(),
            "structures": [[s.name, list(s.values), s.layer, s.code] for s in seg.structures],
            "expected_dice": dict(finding.expected_dice),
        }
        arrays: dict[str, Any] = {"layers": seg.layers}
        if finding.doubt is not None:
            arrays["doubt"] = finding.doubt
    elif isinstance(finding, Detections):
        values = {"grid": Lattice.of(finding.grid, 3).to_json()}
        arrays = {
            "corners": finding.boxes.corners,
            "classes": np.asarray(finding.boxes.classes),
            "scores": finding.scores,
            "chosen": np.asarray(finding.chosen),
        }
    else:
        raise DataError(f"a mask or boxes are kept here, not a {type(finding).__name__}")
    np.savez_compressed(path, about=np.array(json.dumps(values)), **arrays)


def load_finding(path: Path) -> Finding:
    """What :func:`save_finding` wrote."""
    with np.load(path, allow_pickle=False) as file:
        about: Mapping[str, Any] = json.loads(str(file["about"]))
        grid = Lattice.from_json(about["grid"]).grid
        if "layers" in file:
            structures = tuple(
                Structure(name, tuple(numbers), layer, code) for name, numbers, layer, code in about["structures"]
            )
            doubt = file["doubt"] if "doubt" in file.files else None
            return Mask(
                Segmentation(file["layers"], grid, structures), doubt=doubt, expected_dice=about["expected_dice"]
            )
        boxes = Boxes(file["corners"], file["classes"])
        return Detections(boxes, file["scores"], grid, file["chosen"])
