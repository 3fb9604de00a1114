"""Ensemble: how much each family of networks counts in the blended logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize

from sagittal.labels import LabelScheme
from sagittal.model.calibrate import link_of, log_loss
from sagittal.types import Floats

#: Pulls the shares towards equal ones, in nats: few validation cases cannot tell families apart.
EQUAL_PRIOR = 0.005


def fit_shares(logits: Floats, truth: Floats, scheme: LabelScheme) -> tuple[float, ...]:
    """Shares of the families that give the lowest log loss on cases that the networks did not learn from.

    Parameters
    ----------
    logits : (F, N, C) float
        Out-of-fold logits of each family.
    truth : (N, C) float
    scheme : LabelScheme

    Returns
    -------
    (F,) float
        Not negative, sum 1. The scale of the blend is left to calibration: while shares are sought, a common
        temperature is fitted with them.
    """
    families = len(logits)
    if families == 1:
        return (1.0,)
    link = link_of(scheme)

    def loss(theta: Floats) -> float:
        shares = _softmax(theta[:-1])
        blend = np.exp(theta[-1]) * np.tensordot(shares, logits, axes=1)
        return log_loss(blend, truth, link) + EQUAL_PRIOR * float(np.sum((shares - 1 / families) ** 2))

    found = minimize(loss, np.zeros(families + 1), method="Nelder-Mead", options={"maxiter": 400 * families})
    return tuple(float(share) for share in _softmax(found.x[:-1]))


def member_weights(shares: Sequence[float], families: Sequence[int]) -> tuple[float, ...]:
    """One weight a member: its family's share divided among the family.

    >>> member_weights((0.75, 0.25), (0, 0, 0, 1))
    (0.25, 0.25, 0.25, 0.25)
    """
    counts = [list(families).count(n) for n in range(len(shares))]
    total = sum(share for share, count in zip(shares, counts, strict=True) if count)
    return tuple(float(shares[n]) / counts[n] / total for n in families)


def _softmax(theta: Floats) -> Floats:
    powers = np.exp(theta - theta.max())
    return np.asarray(powers / powers.sum())
