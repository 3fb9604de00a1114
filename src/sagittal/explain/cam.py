"""Grad-CAM: the places of the last feature map that speak for a class."""

from __future__ import annotations

import numpy as np
import torch

from sagittal.explain.subject import Subject
from sagittal.prepare.resample import resize
from sagittal.types import Floats


def has_places(subject: Subject) -> bool:
    """Whether the networks with most of the weight have a last feature map of more than one voxel."""
    with torch.inference_mode():
        weights = [w for network, w in subject.members if network.feature_map(subject.image)[0, 0].numel() > 1]
    return sum(weights) >= 0.5


def grad_cam(subject: Subject) -> Floats:
    """Class activation by gradients (Selvaraju et al., ICCV 2017, equations 1 and 2), averaged over the networks.

    Each channel of the last feature map is weighted by the mean gradient of the class's log-odds, and negative sums are
    cut off. The map is as coarse as that feature map, and all zero where nothing speaks for the class.

    Returns
    -------
    (rows, columns) or (slices, rows, columns) float32
        On the network's lattice, not negative.
    """
    total = np.zeros(subject.size, dtype=np.float32)
    for network, weight in subject.members:
        with torch.enable_grad():
            features = network.feature_map(subject.image).detach().requires_grad_(True)
            odds = subject.log_odds(network.classify_features(features, subject.table))
            (gradient,) = torch.autograd.grad(odds.sum(), features)
        space = tuple(range(2, features.ndim))
        strength = gradient.mean(dim=space, keepdim=True)  # (1, F, 1, ...)
        coarse = torch.relu((strength * features).sum(dim=1))[0].detach()
        total += weight * resize(coarse.float().cpu().numpy(), subject.size)
    return total
