"""An encoder that measures shape and texture by fixed formulas and learns only what to make of them.

A few hundred cases are too few, and a few minutes too short, for convolutions to learn from nothing how thick or how
round a structure is. These measures hold that from the start; they cost less than one convolution at full resolution.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

# Reach of each further smoothing: standard deviations of 0.8, 1.2 and 2.0 voxels in all, then, on every second voxel,
# of 2.6, 4.2 and 5.3.
FINE = (1, 1, 2)
COARSE = (1, 2, 2)
POWERS = 5
# A measure that lies further out than this, in standard deviations of the training set, says no more than its sign.
CLIP = 4.0
TINY = 1e-9
# No measure of a real image comes near: an image of absurd values must not spoil the statistics of the others.
CLIP_RAW = 1e4


class DescriptorEncoder(nn.Module):
    """Shape and texture measures and a two-layer perceptron on them, as a map of one voxel.

    Parameters
    ----------
    channels : int
    dimensions : {2, 3}
    width : int
        Units of each hidden layer.
    dropout : float
        Probability in the hidden layers; half of it on the measures.
    noise : float
        Standard deviation of noise on the standardised measures while training.

    Attributes
    ----------
    features : int
        F, the same as ``width``.
    """

    def __init__(
        self, channels: int, dimensions: int, *, width: int = 64, dropout: float = 0.3, noise: float = 0.1
    ) -> None:
        super().__init__()
        self.features = width
        self.noise = noise
        inputs = channels * count_measures(dimensions)
        # Standardises: a batch's statistics in training, the set's after.
        self.norm = nn.BatchNorm1d(inputs, affine=False)
        self.perceptron = nn.Sequential(
            nn.Dropout(dropout / 2), nn.Linear(inputs, width), nn.GELU(),
            nn.Dropout(dropout), nn.Linear(width, width), nn.GELU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, F, 1, 1) of images (N, C, H, W), or (N, F, 1, 1, 1) of volumes (N, C, D, H, W)."""
        return self.back(self.front(x)).view(len(x), self.features, *[1] * (x.ndim - 2))

    def front(self, x: Tensor) -> Tensor:
        """The measures (N, M), which nothing trains: they may be computed once for all epochs."""
        with torch.autocast(x.device.type, enabled=False):  # sums over all voxels need single precision
            return torch.nan_to_num(measure(x.float()), nan=0.0, posinf=CLIP_RAW, neginf=-CLIP_RAW)

    def back(self, measures: Tensor) -> Tensor:
        """Features (N, F, 1, 1) of what :meth:`front` gave, or of a mixture of such."""
        z = self.norm(measures.float()).clamp(-CLIP, CLIP)
        if self.training and self.noise > 0:
            z = z + self.noise * torch.randn_like(z)
        out: Tensor = self.perceptron(z)
        return out[:, :, None, None]


def count_measures(dimensions: int) -> int:
    """How many numbers :func:`measure` gives for one channel."""
    return measure(torch.zeros(1, 1, *[2] * dimensions)).shape[1]


def measure(x: Tensor) -> Tensor:
    """Shape and texture measures of each channel, mostly logarithms.

    The values of each image, from its lowest to its highest, count as amounts of a substance between 0 and 1. Measured
    are its amount, extent and roundness; how much of it lies within reach of a voxel, of a piece of the substance and of
    a piece of its surface, at eight scales, as power means, of which the higher ones follow the thickest parts; and,
    last, where it lies and how it is oriented. All but these last stay the same when the image is mirrored or its axes
    are swapped.

    Parameters
    ----------
    x : (N, C, H, W) or (N, C, D, H, W) float32

    Returns
    -------
    (N, C * M) float32
        Finite for every finite image, also for one that is constant.
    """
    n = len(x)
    x = x.flatten(0, 1)  # (N * C, ...)
    values = x.flatten(1)
    low, high = values.amin(1), values.amax(1)
    amount = (x - _over(low, x)) / _over((high - low).clamp_min(1e-6), x)
    mass = _shares(amount)  # (N * C, V)
    parts = [low, high, values.mean(1), *_extent(amount, mass)]
    levels = [amount]
    for reach in FINE:
        levels.append(smooth(levels[-1], reach))
    parts += _reached(levels, levels[0], (levels[0] - levels[1]).abs())
    # What has been smoothed so far lies on every second voxel as well: an eighth of the work in 3-D.
    half = (slice(None), *[slice(None, None, 2)] * (x.ndim - 1))
    coarse = [levels[-1][half]]
    for reach in COARSE:
        coarse.append(smooth(coarse[-1], reach))
    parts += _reached(coarse, levels[1][half], (levels[1] - levels[2]).abs()[half])
    parts += _place(amount, mass)
    return torch.stack(parts, dim=1).view(n, -1)


def smooth(x: Tensor, reach: int) -> Tensor:
    """Mean of three voxels, ``reach`` apart, along each axis of (N, ...); beyond the edges lies 0.

    Sums of shifted copies: the pooling of torch takes ten times as long on a CPU.
    """
    for axis in range(1, x.ndim):
        size = x.shape[axis]
        far_ends = [0, 0] * (x.ndim - 1 - axis) + [reach, reach]
        padded = functional.pad(x, far_ends)
        x = (x + padded.narrow(axis, 0, size) + padded.narrow(axis, 2 * reach, size)) / 3
    return x


def _reached(levels: list[Tensor], mass: Tensor, surface: Tensor) -> list[Tensor]:
    """Logarithms of power means of each level over all voxels, the mass and the surface, its maximum, and the bands."""
    everywhere = torch.full_like(mass.flatten(1), 1 / mass[0].numel())
    weights = torch.stack([everywhere, _shares(mass), _shares(surface)], dim=1)  # (N, 3, V)
    out = []
    for level in levels:
        values = level.flatten(1)
        out.append((values.amax(1) + 1e-3).log())
        for k in range(POWERS):
            means = torch.bmm(weights, values.unsqueeze(2)).squeeze(2)  # (N, 3)
            out += ((means + TINY).log() / 2**k).unbind(1)
            values = values * values
    bands = [(finer - level).flatten(1).square().mean(1) for finer, level in pairwise(levels)]
    return out + [(band + TINY).log() for band in bands]


def _extent(amount: Tensor, mass: Tensor) -> list[Tensor]:
    """Logarithms of the amount, of its extents along no particular axes, and of its surface."""
    points = _positions(amount)
    covariance = _covariance(mass, points)
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)
    # Sums of the eigenvalues' products by two and by three: as telling as the eigenvalues, and without a solver.
    pairs = ((trace.square() - covariance.square().sum((1, 2))) / 2).clamp_min(0)
    centre = mass @ points
    distance = points.square().sum(1) - 2 * centre @ points.T + centre.square().sum(1, keepdim=True)  # squared
    fourth = ((mass * distance.square()).sum(1) + TINY).log()
    total = amount.flatten(1).sum(1) + 1e-6
    variation = torch.stack(_variations(amount)).sum(0)
    return [
        total.log(),
        (trace + 1e-6).log() / 2,
        (pairs + TINY).log() / 4,
        (_determinant(covariance).clamp_min(0) + 1e-12).log() / 6,
        fourth / 4,
        fourth - 2 * (trace + 1e-6).log(),
        (variation + 1e-6).log(),
        (variation / total + 1e-6).log(),
    ]


def _place(amount: Tensor, mass: Tensor) -> list[Tensor]:
    points = _positions(amount)
    d = points.shape[1]
    covariance = _covariance(mass, points)
    variations = torch.stack(_variations(amount), dim=1)
    variations = variations / variations.sum(1, keepdim=True).clamp_min(1e-6)
    upper = [covariance[:, i, j] for i in range(d) for j in range(i, d)]
    return [*(mass @ points).unbind(1), *variations.unbind(1), *upper]


def _positions(amount: Tensor) -> Tensor:
    """Places of the voxels (V, d), from -1 to 1 along each axis."""
    axes = [torch.linspace(-1, 1, size, device=amount.device) for size in amount.shape[1:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def _covariance(mass: Tensor, points: Tensor) -> Tensor:
    d = points.shape[1]
    products = (points[:, :, None] * points[:, None, :]).flatten(1)  # (V, d * d)
    centre = mass @ points
    return (mass @ products).view(-1, d, d) - centre[:, :, None] * centre[:, None, :]


def _determinant(m: Tensor) -> Tensor:
    """Determinants of (N, 2, 2) or (N, 3, 3), written out: exporters know no other way."""
    if m.shape[1] == 2:
        return m[:, 0, 0] * m[:, 1, 1] - m[:, 0, 1] * m[:, 1, 0]
    triple: Tensor = m[:, 0] * torch.linalg.cross(m[:, 1], m[:, 2])
    return triple.sum(1)


def _variations(amount: Tensor) -> list[Tensor]:
    """Sum of the absolute steps along each axis, each (N,)."""
    return [amount.diff(dim=axis).abs().flatten(1).sum(1) for axis in range(1, amount.ndim)]


def _shares(amount: Tensor) -> Tensor:
    """Part of the whole at each voxel (N, V)."""
    flat = amount.flatten(1)
    return flat / flat.sum(1, keepdim=True).clamp_min(1e-6)


def _over(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
