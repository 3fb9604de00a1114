"""What a detecting network learns from: a focal loss of the centre heat maps and the overlap of the boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Added to the heat map's outputs: an untrained network says "about one cell in a hundred", and learning does not begin by
#: silencing the background (Lin et al., Focal Loss, ICCV 2017, section 4.1).
PRIOR = -4.6
#: Distance in cells that an output of 0 means.
UNIT = 4.0
#: Outputs of distances are limited to this: e**4 * UNIT is wider than any map.
MOST = 4.0
#: Most that a class weighs beside the mean.
MOST_WEIGHT = 4.0
#: Weight of the boxes beside the heat map.
BOX_WEIGHT = 5.0


def detect_loss(output: Tensor, target: Tensor, *, classes: int, balance: float = 0.0) -> Tensor:
    """Scalar to be minimised: focal loss of the centres [1]_ plus one minus the generalised IoU of the boxes [2]_.

    The focal loss is summed over the known cells and divided by the number of objects in the batch, each counted with the
    weight of its class, at least 1; the box loss is the mean over cells, weighted by closeness to the centre.

    Parameters
    ----------
    output : (N, C + 2d, *map) Tensor
        Logits of the heat maps and logarithms of distances; see :mod:`sagittal.tasks.detect_target`.
    target : (N, C + 2d + 2, *map) Tensor
    classes : int
    balance : float
        0 to 1: the weight of a class in the focal loss is ``(n + 1) ** -balance``, with n its objects in the batch, divided
        by the mean over objects and limited to :data:`MOST_WEIGHT`. Where few of one class stand among many of another,
        they are otherwise found last.

    References
    ----------
    .. [1] Law and Deng, CornerNet, ECCV 2018, equation 1; alpha 2, beta 4.
    .. [2] Rezatofighi et al., CVPR 2019.
    """
    import torch
    from torch.nn.functional import logsigmoid

    output, target = output.float(), target.float()
    d = output.ndim - 2
    heat, known = target[:, :classes], target[:, -1:]
    logit = output[:, :classes] + PRIOR
    p = logit.sigmoid()
    centre = heat == 1
    terms = torch.where(centre, (1 - p) ** 2 * logsigmoid(logit), (1 - heat) ** 4 * p**2 * logsigmoid(-logit) * known)
    counts = centre.float()
    if balance:
        objects = counts.sum(dim=(0, *range(2, 2 + d)))  # (C,)
        weights = (objects + 1) ** -balance
        mean = (weights * objects).sum() / objects.sum().clamp(min=1)
        weights = torch.where(mean > 0, weights / mean.clamp(min=1e-9), 1).clamp(max=MOST_WEIGHT)
        weights = weights.view(1, -1, *[1] * d)
        terms, counts = terms * weights, counts * weights
    focal = -terms.sum() / counts.sum().clamp(min=1)
    weight = target[:, -2]
    at = weight > 0
    if not bool(at.any()):
        return focal + 0 * output[:, classes:].sum()
    found = distances(output[:, classes:].movedim(1, -1)[at])  # (P, 2d)
    true = target[:, classes:-2].movedim(1, -1)[at]
    overlap = generalised_iou(found, true)
    return focal + BOX_WEIGHT * ((1 - overlap) * weight[at]).sum() / weight[at].sum()


def distances(output: Tensor) -> Tensor:
    """Distances in cells from a network's outputs for them."""
    return UNIT * output.clamp(-MOST, MOST).exp()


def generalised_iou(found: Tensor, true: Tensor) -> Tensor:
    """Generalised IoU, -1..1, of boxes given as distances (..., 2d) from one place inside both of them."""
    import torch

    d = found.shape[-1] // 2

    def volume(sides: Tensor) -> Tensor:
        return (sides[..., :d] + sides[..., d:]).prod(dim=-1)

    common = volume(torch.minimum(found, true))
    union = volume(found) + volume(true) - common
    hull = volume(torch.maximum(found, true))
    return common / union - (hull - union) / hull
