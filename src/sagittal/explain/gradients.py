"""Integrated gradients: the share of each voxel in the difference from a blurred image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sagittal.errors import require
from sagittal.explain.subject import BATCH_NUMBERS, Subject
from sagittal.networks.heads import Network
from sagittal.types import Floats

#: Points on the way from the baseline to the image.
STEPS = 32


def integrated_gradients(subject: Subject, steps: int = STEPS) -> Floats:
    """Integrated gradients (Sundararajan et al., ICML 2017) by captum, averaged over the networks.

    The way leads from the blurred baseline to the image; the shares of all voxels add up to the difference of the
    class's log-odds between the two, up to the error of the numerical integral.

    Parameters
    ----------
    subject : Subject
    steps : int

    Returns
    -------
    (rows, columns) or (slices, rows, columns) float32
        Sum over channels; positive speaks for the class, negative against it.

    Raises
    ------
    MissingPackageError
        If captum is not installed.
    """
    captum = require("captum.attr", feature="integrated gradients", extra="explain")
    total = np.zeros(subject.size, dtype=np.float32)
    for network, weight in subject.members:
        method = captum.IntegratedGradients(lambda images, n=network: _log_odds(subject, n, images))
        shares = method.attribute(
            subject.image,
            baselines=subject.baseline,
            n_steps=steps,
            internal_batch_size=max(1, BATCH_NUMBERS // subject.image.numel()),
        )
        total += weight * shares[0].sum(dim=0).detach().float().cpu().numpy()
    return total


def _log_odds(subject: Subject, network: Network, images: Tensor) -> Tensor:
    with torch.enable_grad():
        return subject.log_odds(network(images, subject.table_for(images)))
