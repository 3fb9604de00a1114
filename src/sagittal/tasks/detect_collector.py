"""BoxCollector: from the planes of a detecting network's map to boxes on the study, holding three planes at a time."""

from __future__ import annotations

import numpy as np

from sagittal.errors import DataError
from sagittal.prediction import Detections
from sagittal.prepare.lattice import Lattice
from sagittal.tasks.detect_decode import MOST_BOXES, find_peaks
from sagittal.tasks.detect_target import map_size, to_voxels
from sagittal.truth import Boxes
from sagittal.types import Array, Floats


class BoxCollector:
    """Takes logits plane by plane and keeps the peaks of the heat maps.

    A cell is a peak if none of its neighbours is higher, those of the planes before and after it included; so a plane is
    judged when the next one has come.

    Parameters
    ----------
    lattice : Lattice
        Where the prepared array lies in its study.
    classes : int
    stride : int
        Voxels of the array along each edge of a cell. Planes, rows and columns beyond the array, as padding makes them,
        are left out.
    """

    def __init__(self, lattice: Lattice, *, classes: int, stride: int) -> None:
        self._lattice = lattice
        self._classes = classes
        self._stride = stride
        self._cells = map_size(lattice.size, stride)
        self._held: Floats | None = None
        self._next = 0
        self._judged = 0
        self._found: list[tuple[Array, Floats, Floats]] = []

    def add(self, start: int, logits: Floats, doubt: Floats | None = None) -> None:
        """Take the next planes, (C + 2d, n, *rest).

        Raises
        ------
        DataError
            If planes are missing, come twice, or have the wrong shape.
        """
        logits = np.asarray(logits, dtype=np.float32)
        if start != self._next:
            raise DataError(f"the next plane of the map is {self._next}, but planes from {start} came")
        expected = self._classes + 2 * len(self._cells)
        enough = all(n >= m for n, m in zip(logits.shape[2:], self._cells[1:], strict=False))
        if logits.shape[0] != expected or logits.ndim != len(self._cells) + 1 or not enough:
            raise DataError(f"planes of {expected} outputs on {self._cells[1:]} cells are expected, not {logits.shape}")
        self._next += logits.shape[1]
        last = min(logits.shape[1], self._cells[0] - start)
        if last <= 0:
            return
        inside = (slice(None), slice(0, last), *(slice(0, n) for n in self._cells[1:]))
        first = start - (0 if self._held is None else self._held.shape[1])
        planes = logits[inside] if self._held is None else np.concatenate([self._held, logits[inside]], axis=1)
        end = first + planes.shape[1]
        # The last plane of the map has no next one.
        self._judge(planes, first, end if end == self._cells[0] else end - 1)
        self._held = planes[:, -2:].copy()

    def _judge(self, planes: Floats, first: int, until: int) -> None:
        cells, labels, scores, sides = find_peaks(planes, self._classes)
        chosen = (cells[:, 0] + first >= self._judged) & (cells[:, 0] + first < until)
        sides[..., 0] += first
        self._found.append((labels[chosen], scores[chosen], sides[chosen]))
        self._judged = max(self._judged, until)

    def finish(self) -> Detections:
        """Boxes in voxels of the study, the surest first, not yet suppressed; those beyond the array end at its edge.

        Raises
        ------
        DataError
            If planes of the map are missing.
        """
        if self._next < self._cells[0]:
            raise DataError(f"the map has {self._cells[0]} planes, but only {self._next} came")
        labels, scores, sides = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        order = np.argsort(-scores, kind="stable")[:MOST_BOXES]
        edge = np.asarray(self._lattice.size) - 0.5
        corners = np.clip(to_voxels(sides[order], self._stride), -0.5, edge)
        real = np.asarray((corners[:, 1] > corners[:, 0]).all(axis=1))
        order, corners = order[real], corners[real]
        study = self._lattice.to_study(corners)
        if self._lattice.dimensions == 2:
            study[:, 0, 2], study[:, 1, 2] = -0.5, 0.5
        boxes = Boxes(study, labels[order])
        return Detections(boxes, scores[order], self._lattice.grid, np.ones(len(order), dtype=bool))
