"""Detect: where the objects of each class lie, in a picture or a volume."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sagittal.case import Case
from sagittal.errors import ConfigError, DataError
from sagittal.labels import LabelScheme
from sagittal.networks.heads import Head
from sagittal.prediction import Detections, Finding, Prediction
from sagittal.prepare.lattice import Lattice
from sagittal.prepare.truth_maps import box_target
from sagittal.prepare.warp import Warp, warp_boxes
from sagittal.tasks.detect_collector import BoxCollector
from sagittal.tasks.detect_loss import detect_loss
from sagittal.tasks.detect_measures import summarise_boxes
from sagittal.tasks.detect_rows import score_row, true_boxes
from sagittal.tasks.detect_settle import HitRule, OperatingPoint, conclude_boxes, settle_boxes
from sagittal.tasks.detect_tally import monitor_tally, tally_windows
from sagittal.tasks.detect_target import render
from sagittal.tasks.task import Summary
from sagittal.types import Array, Floats

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

#: The power of the frequency that each choice of class weights in a plan means.
BALANCE = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}


@dataclass(frozen=True, eq=False)
class Detect:
    """Detection by centre heat maps, with the distances from a centre to the sides of its box.

    One network output a class, and 2d distances that all classes share. No anchors: a cell answers for the object whose
    centre is near, whatever its size. See :mod:`sagittal.tasks.detect_target` for what is learned and
    :mod:`sagittal.tasks.detect_settle` for how scores and the operating point are chosen.

    Parameters
    ----------
    scheme : LabelScheme
        Of kind ``objects``.
    dimensions : {2, 3}
    stride : int
        Voxels along each edge of a cell of the network's map. An object narrower than a cell shares it with its
        neighbours.
    balance : float
        0 to 1: how much more the objects of rare classes teach, see :func:`sagittal.tasks.detect_loss.detect_loss`.
    point : OperatingPoint
        From which score a box counts.
    """

    scheme: LabelScheme
    dimensions: int = 2
    stride: int = 4
    balance: float = 0.5
    point: OperatingPoint = field(default_factory=OperatingPoint)

    def __post_init__(self) -> None:
        if self.dimensions not in (2, 3):
            raise ConfigError(f"objects lie in 2 or 3 dimensions, not {self.dimensions}")
        if not 0 <= self.balance <= 1:
            raise ConfigError(f"balance is a power between 0 and 1, not {self.balance}")

    @property
    def classes(self) -> int:
        """C, how many classes there are."""
        return len(self.scheme.classes)

    @property
    def head(self) -> Head:
        """A heat map for each class and the 2d distances; of a mirrored view, those along the axis change places."""
        c, d = self.classes, self.dimensions
        same = tuple(range(c + 2 * d))
        swapped = [list(same) for _ in range(d)]
        for axis, order in enumerate(swapped):
            order[c + axis], order[c + d + axis] = c + d + axis, c + axis
        return Head("dense", c + 2 * d, self.stride, mirror=tuple(tuple(order) for order in swapped))

    @property
    def rule(self) -> HitRule:
        """When a box has found an object."""
        return HitRule.of(self.dimensions)

    def target(self, case: Case, lattice: Lattice) -> Array:
        """The objects of a case on its prepared array, (M, 2d + 2) float32: corners, class, crowd.

        Raises
        ------
        ReadError, DataError, GeometryError
            As :func:`sagittal.prepare.truth_maps.box_target`.
        """
        return box_target(case, self.scheme, lattice)

    def places(self, target: Array, size: tuple[int, ...]) -> tuple[Array, ...]:
        """For each class the voxel in the middle of each object, (m, d) int; crowds have none."""
        d = self.dimensions
        boxes = np.asarray(target, dtype=np.float64).reshape(-1, 2 * d + 2)
        boxes = boxes[boxes[:, -1] == 0]
        middle = np.rint((boxes[:, :d] + boxes[:, d : 2 * d]) / 2).astype(np.int64)
        middle = np.clip(middle, 0, np.asarray(size) - 1)
        return tuple(middle[boxes[:, -2] == c] for c in range(self.classes))

    def draw(self, targets: Sequence[Array], warp: Warp) -> Tensor:
        """The maps of windows, (N, C + 2d + 2, *map) float32 on the warp's device."""
        import torch

        maps = [
            render(warp_boxes(boxes, warp, number), warp.size, classes=self.classes, stride=self.stride)
            for number, boxes in enumerate(targets)
        ]
        return torch.from_numpy(np.stack(maps)).to(warp.place or torch.device("cpu"))

    def loss(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """Focal loss of the centres and one minus the generalised IoU of the boxes, of the finest map."""
        return detect_loss(outputs[0], target, classes=self.classes, balance=self.balance)

    def tally(self, output: Tensor, target: Tensor) -> Floats:
        """Hits and false positives of each class by score, over the windows of a batch."""
        return tally_windows(
            output.detach().float().cpu().numpy(), target.cpu().numpy(), classes=self.classes, iou=self.rule.iou
        )

    def monitor(self, tally: Floats) -> dict[str, float]:
        """Average precision (at an IoU of 0.5, in volumes of 0.1) and highest F1, means over classes that have objects."""
        return monitor_tally(tally, classes=self.classes, iou=self.rule.iou)

    def collector(self, lattice: Lattice, *, probability: bool = False) -> BoxCollector:
        """What turns the network's map into boxes; there is no probability of voxels to give."""
        return BoxCollector(lattice, classes=self.classes, stride=self.stride)

    def settle(self, answers: Iterable[tuple[Finding, Case]]) -> dict[str, Any]:
        """Suppression, calibration and operating point from validation cases, as plain values.

        Raises
        ------
        DataError
            If a finding holds no boxes.
        """
        known = []
        for finding, case in answers:
            if not isinstance(finding, Detections):
                raise DataError(f"case {case.id}: boxes are expected of detection, not a {type(finding).__name__}")
            truth, _ = true_boxes(case, self.scheme, finding.grid)
            if truth is not None:
                known.append((finding, truth))
        return settle_boxes(known, self.scheme.classes, rule=self.rule, point=self.point)

    def conclude(self, finding: Finding, settled: Mapping[str, Any]) -> Detections:
        """Boxes without duplicates, with calibrated scores, marked from the operating point on.

        Raises
        ------
        DataError
            If the finding holds no boxes.
        """
        if not isinstance(finding, Detections):
            raise DataError(f"boxes are expected of detection, not a {type(finding).__name__}")
        return conclude_boxes(finding, settled, self.scheme.classes)

    def score(self, prediction: Prediction, case: Case) -> dict[str, Any]:
        """The evidence row of a case; see :func:`sagittal.tasks.detect_rows.score_row`."""
        return score_row(prediction, case, self.scheme, self.rule)

    def summarise(
        self, rows: pd.DataFrame, *, resamples: int, seed: int, confidence: float, prevalence: float | None = None
    ) -> Summary:
        """Measures over the rows; see :mod:`sagittal.tasks.detect_measures`. A prevalence plays no part."""
        return summarise_boxes(
            self.scheme,
            rows,
            dimensions=self.dimensions,
            rule=self.rule,
            resamples=resamples,
            seed=seed,
            confidence=confidence,
        )

    def figure(self, prediction: Prediction, case: Case) -> Array:
        """The image, or one slice of a volume, with true boxes dashed and found ones drawn through, (H, W, 3) uint8."""
        from sagittal.tasks.detect_picture import draw_boxes

        return draw_boxes(prediction, case, self.scheme)
