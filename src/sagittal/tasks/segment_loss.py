"""Losses of segmentation: Dice with cross-entropy, and the Dice of centrelines for thin trees.

Voxels of which nothing is known (255) teach nothing: they enter neither the sums of a Dice nor a cross-entropy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sagittal.prepare.plan import Outputs

#: Value of a target's voxel of which nothing is known.
UNKNOWN = 255
#: Added to numerator and denominator of a Dice, in voxels: a structure that a batch lacks pulls little.
SMOOTH = 1.0
#: Share of the centreline Dice in what is not cross-entropy (alpha of Shit et al., CVPR 2021, section 3.3).
CENTRELINE = 0.3
#: Steps in which soft skeletons are thinned: half the width, in voxels, of the widest branch that still becomes a line.
THINNINGS = 5


def segmentation_loss(
    maps: Sequence[Tensor], target: Tensor, outputs: Outputs, *, centreline: bool = False, smoothing: float = 0.0
) -> Tensor:
    """Dice loss and cross-entropy in equal parts, over one map or over several with deep supervision.

    Of several maps each counts half as much as the next finer one; the weights add up to 1 (as in nnU-Net, Isensee et al.,
    Nature Methods 2021). The target of a coarser map is that of the middle of its voxels; with `centreline` the highest
    class in them, so that thin branches do not vanish.

    Parameters
    ----------
    maps : sequence of (N, O, *map) float32
        Logits, the finest first.
    target : (N, *size) or (N, S, *size) uint8
        As :func:`known_parts` takes it.
    outputs : {"exclusive", "independent"}
    centreline : bool
        Whether the centreline Dice of the finest map is a third part.
    smoothing : float
        Part of the cross-entropy that is shared out evenly among the classes.

    Returns
    -------
    scalar Tensor
    """
    weights = [2.0**-n for n in range(len(maps))]
    total = torch.zeros((), device=target.device)
    for number, (logits, weight) in enumerate(zip(maps, weights, strict=True)):
        fitting = shrink_target(target, logits.shape[2:], thin=centreline)
        parts = Parts(logits, fitting, outputs, smoothing=smoothing)
        loss = parts.entropy()
        if centreline and number == 0:
            loss = loss + (1 - CENTRELINE) * parts.dice() + CENTRELINE * parts.centreline()
        else:
            loss = loss + parts.dice()
        total = total + loss * (weight / sum(weights))
    return total


class Parts:
    """The terms of the loss of one map; what they share is computed once.

    Parameters
    ----------
    logits : (N, O, *size) float32
        ``exclusive``: of the background and S structures; ``independent``: of S structures.
    target : (N, *size) or (N, S, *size) uint8
        ``exclusive``: 0 background, 1..S structures, 255 unknown; ``independent``: 0, 1 or 255 for each structure.
    outputs : {"exclusive", "independent"}
    smoothing : float
    """

    def __init__(self, logits: Tensor, target: Tensor, outputs: Outputs, *, smoothing: float = 0.0) -> None:
        self.logits, self.target, self.outputs, self.smoothing = logits, target, outputs, smoothing
        self.known = target != UNKNOWN
        self.whole = bool(self.known.all())
        if outputs == "exclusive":
            self._log = torch.log_softmax(logits, dim=1)
            self._probability = self._log[:, 1:].exp()  # (N, S, *size)
        else:
            self._probability = torch.sigmoid(logits)

    def entropy(self) -> Tensor:
        """Mean cross-entropy in nats: of a voxel's class, or of each structure's yes or no; 0 where nothing is known."""
        if self.outputs == "exclusive":
            target = self.target.long()
            if not self.whole:
                target = torch.where(self.known, target, 0)
            told = -self._log.gather(1, target[:, None])[:, 0]  # (N, *size)
            if self.smoothing:
                told = (1 - self.smoothing) * told - self.smoothing * self._log.mean(dim=1)
        else:
            truth = (self.target == 1).to(self.logits.dtype)
            if self.smoothing:
                truth = truth * (1 - self.smoothing) + self.smoothing / 2
            told = functional.binary_cross_entropy_with_logits(self.logits, truth, reduction="none")
        if self.whole:
            return told.mean()
        return (told * self.known).sum() / self.known.sum().clamp_min(1)

    def structures(self) -> tuple[Tensor, Tensor]:
        """Of each structure the probability, 0 where unknown, and the truth: (N, S, *size) float32 both."""
        if self.outputs == "exclusive":
            known = self.known[:, None]
            numbers = torch.arange(1, self.logits.shape[1], device=self.target.device, dtype=self.target.dtype)
            truth = self.target[:, None] == numbers.view(1, -1, *(1,) * (self.target.ndim - 1))
        else:
            known, truth = self.known, self.target == 1
        probability = self._probability if self.whole else self._probability * known
        return probability, truth.to(probability.dtype)

    def seen(self) -> Tensor:
        """The structures of which anything is known in this batch, (S,) bool."""
        if self.outputs == "exclusive":
            return self.known.any().expand(self.logits.shape[1] - 1)
        return self.known.transpose(0, 1).flatten(1).any(dim=1)

    def dice(self) -> Tensor:
        """One minus the mean over structures of the soft Dice of the whole batch (Milletari et al., 3DV 2016, linear sums)."""
        probability, truth = self.structures()
        space = (0, *range(2, probability.ndim))
        both = (probability * truth).sum(dim=space)  # (S,)
        sizes = probability.sum(dim=space) + truth.sum(dim=space)
        return _mean_loss((2 * both + SMOOTH) / (sizes + SMOOTH), self.seen())

    def centreline(self) -> Tensor:
        """One minus the mean soft clDice (Shit et al., CVPR 2021, algorithm 2): each centreline should lie in the other mask."""
        probability, truth = self.structures()
        space = (0, *range(2, probability.ndim))
        line = soft_skeleton(probability)
        true_line = soft_skeleton(truth.to(torch.uint8)).to(probability.dtype)
        precision = ((line * truth).sum(dim=space) + SMOOTH) / (line.sum(dim=space) + SMOOTH)
        sensitivity = ((true_line * probability).sum(dim=space) + SMOOTH) / (true_line.sum(dim=space) + SMOOTH)
        return _mean_loss(2 * precision * sensitivity / (precision + sensitivity), self.seen())


def _mean_loss(scores: Tensor, seen: Tensor) -> Tensor:
    return ((1 - scores) * seen).sum() / seen.sum().clamp_min(1)


def shrink_target(target: Tensor, size: Sequence[int], *, thin: bool = False) -> Tensor:
    """A target for a coarser map: the value at the middle of its voxels, or with `thin` the highest known value in them.

    Parameters
    ----------
    target : (N, *old) or (N, S, *old) uint8
    size : sequence of int
        Spatial size of the map.

    Examples
    --------
    >>> shrink_target(torch.tensor([[[0, 0, 0, 2], [0, 255, 0, 0]]], dtype=torch.uint8), (1, 2), thin=True).tolist()
    [[[0, 2]]]
    """
    d = len(size)
    old = target.shape[-d:]
    if tuple(old) == tuple(size):
        return target
    if not thin:
        for axis, (before, after) in enumerate(zip(old, size, strict=True), start=target.ndim - d):
            places = ((torch.arange(after, device=target.device) + 0.5) * (before / after)).long()
            target = target.index_select(axis, places)
        return target
    # 255 ranks lowest: 0 is unknown, 1 background, so that one known voxel of a block decides.
    ranked = (target + 1).to(torch.float32)  # uint8 wraps around: 255 becomes 0
    extra = ranked[:, None] if target.ndim == d + 1 else ranked
    pool = functional.adaptive_max_pool2d if d == 2 else functional.adaptive_max_pool3d
    best: Tensor = pool(extra, list(size))
    return (best[:, 0] if target.ndim == d + 1 else best).to(torch.uint8) - 1


def soft_skeleton(x: Tensor, thinnings: int = THINNINGS) -> Tensor:
    """Centrelines of soft masks: what each thinning and a final opening would lose (Shit et al., CVPR 2021, algorithm 1).

    Parameters
    ----------
    x : (N, S, *size) float32, 0 to 1, or uint8, 0 or 1
    thinnings : int
        At least half the width of the widest branch, in voxels.

    Returns
    -------
    Tensor like x
    """
    skeleton = torch.zeros_like(x)
    for _ in range(thinnings + 1):
        thinner = _erode(x)
        # What an opening takes away; written so that unsigned numbers serve too, which cost a quarter.
        lost = x - _lesser(x, _dilate(thinner))
        skeleton = skeleton + lost * (1 - skeleton)
        x = thinner
    return skeleton


def _erode(x: Tensor) -> Tensor:
    """The least of a voxel and its neighbours along the axes."""
    return functools.reduce(_lesser, [_three(x, axis, _lesser) for axis in range(2, x.ndim)])


def _dilate(x: Tensor) -> Tensor:
    """The greatest of a voxel and all its neighbours."""
    for axis in range(2, x.ndim):
        x = _three(x, axis, _greater)
    return x


def _three(x: Tensor, axis: int, choose: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The least or greatest of each voxel and its two neighbours along an axis; pooling takes five times as long."""
    size = x.shape[axis]
    if size == 1:
        return x
    pairs = choose(x.narrow(axis, 0, size - 1), x.narrow(axis, 1, size - 1))
    inner = choose(pairs.narrow(axis, 0, size - 2), pairs.narrow(axis, 1, size - 2))
    return torch.cat([pairs.narrow(axis, 0, 1), inner, pairs.narrow(axis, size - 2, 1)], dim=axis)


def _greater(a: Tensor, b: Tensor) -> Tensor:
    # The gradient of torch.maximum takes ten times as long as that of a ReLU.
    return a + functional.relu(b - a) if a.requires_grad else torch.maximum(a, b)


def _lesser(a: Tensor, b: Tensor) -> Tensor:
    return a - functional.relu(a - b) if a.requires_grad else torch.minimum(a, b)
