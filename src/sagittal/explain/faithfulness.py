"""Faithfulness: whether the places that a map marks matter to the model, more than chance would have it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sagittal.explain.subject import Subject
from sagittal.types import Floats

STEPS = 10
RANDOMS = 19  # with 19, a map that beats them all has a chance of 1 in 20 under the null


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Deletion and insertion scores of a map beside those of random maps.

    Parameters
    ----------
    deletion : float
        Mean probability of the class while the marked places are blurred away, most important first; low is good.
    insertion : float
        Mean probability while they are put into the blurred image; high is good.
    random_deletion, random_insertion : float
        Means over the random maps.
    random_deletion_std, random_insertion_std : float
    p_value : float
        Share of random maps (the map itself counted among them) whose insertion minus deletion is at least the map's; 1
        for a map that is the same everywhere, such as Grad-CAM of a feature map of one voxel.
    fraction : (S + 1,) float
        Part of the voxels that was changed at each step, 0 to 1.
    deletion_curve, insertion_curve : (S + 1,) float
    random_deletion_curves, random_insertion_curves : (R, S + 1) float
    """

    deletion: float
    insertion: float
    random_deletion: float
    random_insertion: float
    random_deletion_std: float
    random_insertion_std: float
    p_value: float
    fraction: Floats
    deletion_curve: Floats
    insertion_curve: Floats
    random_deletion_curves: Floats
    random_insertion_curves: Floats

    @property
    def better_than_random(self) -> bool:
        """Whether the map beats random maps at the level 0.05."""
        return self.p_value <= 0.05


def measure(
    subject: Subject, heat: Floats, *, steps: int = STEPS, randoms: int = RANDOMS, seed: int = 0
) -> Faithfulness:
    """Deletion and insertion (Petsiuk et al., BMVC 2018) of a map and of random maps.

    The baseline is the blurred image in both directions. A random map is the map itself, mirrored at random and moved
    round the edges by a random distance: it marks other places with the same size, shape and smoothness. (Random noise
    would be easier to beat: it changes every corner of the image at once.)

    Parameters
    ----------
    subject : Subject
    heat : (*size) float
        On the network's lattice.
    steps : int
    randoms : int
        At least 19 are needed for a verdict at the level 0.05.
    seed : int
    """
    rng = np.random.default_rng(seed)
    heats = [np.asarray(heat, dtype=np.float64), *(_moved(heat, rng) for _ in range(randoms))]
    ends = subject.scores(torch.cat([subject.image, subject.baseline]))
    fraction = np.linspace(0, 1, steps + 1)
    deleted, inserted = [], []
    for one in heats:
        masks = _masks(one, fraction[1:-1], rng).to(subject.image.device)  # (S - 1, 1, *size)
        down = subject.scores(torch.where(masks, subject.baseline, subject.image))
        up = subject.scores(torch.where(masks, subject.image, subject.baseline))
        deleted.append(np.concatenate([ends[:1], down, ends[1:]]))
        inserted.append(np.concatenate([ends[1:], up, ends[:1]]))
    curves = np.stack([np.stack(deleted), np.stack(inserted)])  # (2, 1 + R, S + 1)
    areas = np.trapezoid(curves, fraction, axis=2)
    gain = areas[1] - areas[0]
    beaten_by = int(np.sum(gain[1:] >= gain[0] - 1e-12)) if np.ptp(heats[0]) > 0 else randoms
    spread = areas[:, 1:].std(axis=1, ddof=1) if randoms > 1 else np.full(2, np.nan)
    middle = areas[:, 1:].mean(axis=1) if randoms else np.full(2, np.nan)
    return Faithfulness(
        deletion=float(areas[0, 0]),
        insertion=float(areas[1, 0]),
        random_deletion=float(middle[0]),
        random_insertion=float(middle[1]),
        random_deletion_std=float(spread[0]),
        random_insertion_std=float(spread[1]),
        p_value=(1 + beaten_by) / (1 + randoms),
        fraction=fraction,
        deletion_curve=curves[0, 0],
        insertion_curve=curves[1, 0],
        random_deletion_curves=curves[0, 1:],
        random_insertion_curves=curves[1, 1:],
    )


def _moved(heat: Floats, rng: np.random.Generator) -> Floats:
    axes = tuple(range(heat.ndim))
    mirrored = np.flip(heat, tuple(axis for axis in axes if rng.random() < 0.5))
    return np.roll(mirrored, [int(rng.integers(n)) for n in heat.shape], axes)


def _masks(heat: Floats, fractions: Floats, rng: np.random.Generator) -> torch.Tensor:
    """The most important voxels, (S, 1, *size) bool; equals in random order."""
    flat = heat.ravel()
    order = np.lexsort((rng.random(flat.size), -flat))
    rank = np.empty(flat.size, dtype=np.int64)
    rank[order] = np.arange(flat.size)
    counts = np.rint(fractions * flat.size)
    return torch.from_numpy((rank < counts[:, None]).reshape(len(counts), 1, *heat.shape))
