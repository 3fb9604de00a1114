"""Random changes to whole training batches: one resampling for everything spatial, then intensities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sagittal.prepare.plan import AugmentPlan

# Share of the samples that get each intensity change; the others keep the network used to clean input.
INTENSITY_SHARE = 0.5
# Edge lengths of an erased box as a fraction of the image's.
ERASE_EDGE = (0.15, 0.4)
# A three-point kernel (w, 1 - 2 w, w) has variance 2 w and stays non-negative and unimodal up to w = 1/3.
BLUR_VARIANCE_PER_PASS = 2 / 3
# A plane of voxels with a larger ratio of edges is not turned: its structures would be torn.
MOST_ANISOTROPIC = 3.0


@dataclass(frozen=True, eq=False)
class Augmentation:
    """What will be done to each sample of one batch; None where nothing of that kind is done.

    Attributes
    ----------
    matrix : (N, d, d) float, optional
        Takes an offset from the centre of the result to the one in the source, in voxels along the array axes.
    shift : (N, d) float, optional
        Added to the source position, as a fraction of the size. Given whenever ``matrix`` is.
    lattice : bool
        Whether all matrices only swap and mirror axes and all shifts are 0, so that voxels map onto voxels.
    blur : (N,) float, optional
        Standard deviation of the blur, voxels.
    contrast : (N,) float, optional
        Factor on the distance from the sample's mean.
    brightness : (N,) float, optional
        Added to every value.
    gamma : (N,) float, optional
        Exponent on the values, scaled to 0..1 by the sample's range.
    noise : (N,) float, optional
        Standard deviation of white noise, in the unit of the values.
    noise_seed : int
        Makes the noise repeatable.
    erase : (N, d, 2) float, optional
        First and last edge of an erased box as fractions of the size; equal edges erase nothing.
    """

    matrix: Tensor | None = None
    shift: Tensor | None = None
    lattice: bool = False
    blur: Tensor | None = None
    contrast: Tensor | None = None
    brightness: Tensor | None = None
    gamma: Tensor | None = None
    noise: Tensor | None = None
    noise_seed: int = 0
    erase: Tensor | None = None


def augment(batch: Tensor, plan: AugmentPlan, rng: np.random.Generator) -> Tensor:
    """A randomly changed copy of a batch, each sample changed in its own way.

    Parameters
    ----------
    batch : (N, C, H, W) or (N, C, D, H, W) float
        Intensities of about unit standard deviation: noise and brightness are in their unit.
    plan : AugmentPlan
    rng : numpy.random.Generator

    Returns
    -------
    (N, C, ...) float
        A new tensor of the same shape; the input is left alone.
    """
    return apply(batch, draw(batch.shape, plan, rng))


def draw(shape: Sequence[int], plan: AugmentPlan, rng: np.random.Generator) -> Augmentation:
    """Random parameters for a batch of the given shape (N, C, ...).

    Axes are only swapped where their lengths agree. The strengths in the plan are the ends of symmetric ranges: uniform
    for angles, shear, shift and brightness, uniform in the logarithm for scale, contrast and gamma.
    """
    n, sizes = shape[0], tuple(shape[2:])
    d = len(sizes)
    lattice = not (plan.rotate_deg or plan.scale or plan.shear or plan.translate)
    matrix = shift = None
    if plan.flip or plan.permute or not lattice:
        linear = _symmetries(n, sizes, plan, rng)
        if not lattice:
            linear = linear @ _rotations(n, d, plan.rotate_deg, rng) @ _shears(n, d, plan.shear, rng)
            linear = linear / _factors(n, plan.scale, rng)[:, None, None]
        matrix = _tensor(linear)
        shift = _tensor(rng.uniform(-plan.translate, plan.translate, (n, d)))
    return Augmentation(
        matrix=matrix,
        shift=shift,
        lattice=lattice,
        blur=_tensor(_some(n, rng) * rng.uniform(0, plan.blur, n)) if plan.blur else None,
        contrast=_tensor(_factors(n, plan.contrast, rng) ** _some(n, rng)) if plan.contrast else None,
        brightness=_tensor(_some(n, rng) * rng.uniform(-plan.brightness, plan.brightness, n))
        if plan.brightness
        else None,
        gamma=_tensor(_factors(n, plan.gamma, rng) ** _some(n, rng)) if plan.gamma else None,
        noise=_tensor(_some(n, rng) * rng.uniform(0, plan.noise, n)) if plan.noise else None,
        noise_seed=int(rng.integers(2**63)) if plan.noise else 0,
        erase=_tensor(_boxes(n, d, plan.erase, rng)) if plan.erase else None,
    )


def apply(batch: Tensor, params: Augmentation) -> Tensor:
    """The batch (N, C, ...) with drawn changes applied: always the same for the same input.

    Beyond the edges of the source its border values are repeated.
    """
    out = batch
    if params.matrix is not None and params.shift is not None:
        out = _resample(out, params.matrix, params.shift, "nearest" if params.lattice else "bilinear")
    if params.blur is not None:
        out = _blur(out, params.blur)
    if params.contrast is not None:
        mean = out.flatten(1).mean(1)
        out = torch.addcmul(_column(mean * (1 - params.contrast), out), out, _column(params.contrast, out))
    if params.brightness is not None:
        out = out + _column(params.brightness, out)
    if params.gamma is not None:
        low = _column(out.flatten(1).amin(1), out)
        span = (_column(out.flatten(1).amax(1), out) - low).clamp_min(1e-6)
        out = ((out - low) / span).pow(_column(params.gamma, out)) * span + low
    if params.noise is not None:
        generator = torch.Generator(out.device).manual_seed(params.noise_seed)
        noise = torch.randn(out.shape, generator=generator, dtype=out.dtype, device=out.device)
        out = torch.addcmul(out, noise, _column(params.noise, out))
    if params.erase is not None:
        out = torch.where(_inside(params.erase, out), _column(out.flatten(1).mean(1), out), out)
    return out.clone() if out is batch else out


def mix(batch: Tensor, targets: Tensor, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Each sample blended with another of the batch, and the targets with it (mixup [1]_).

    Parameters
    ----------
    batch : (N, C, ...) float
    targets : (N, K) float
        NaN where unknown. A blend with an unknown target is unknown.
    alpha : float
        The share of the first sample is drawn per sample from Beta(alpha, alpha); 0 gives back the input.

    Returns
    -------
    batch : (N, C, ...) float
    targets : (N, K) float

    References
    ----------
    .. [1] Zhang et al., mixup: beyond empirical risk minimization, ICLR 2018.
    """
    n = len(batch)
    if alpha <= 0 or n < 2:
        return batch, targets
    share = torch.as_tensor(rng.beta(alpha, alpha, n), dtype=batch.dtype, device=batch.device)
    # A cyclic shift of a shuffled order: every sample meets another one.
    order = rng.permutation(n)
    partner = np.empty(n, dtype=np.int64)
    partner[order] = np.roll(order, 1)
    other = torch.as_tensor(partner, device=batch.device)
    blend = torch.lerp(batch[other], batch, _column(share, batch))
    column = share.to(targets.dtype).unsqueeze(1)  # (N, 1)
    return blend, column * targets + (1 - column) * targets[other]


def draw_planes(
    n: int, size: tuple[int, ...], plan: AugmentPlan, rng: np.random.Generator, edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Random linear maps of windows that turn and shear in one plane of the array.

    Parameters
    ----------
    n : int
    size : tuple of int
        Of the windows.
    plan : AugmentPlan
    rng : numpy.random.Generator
    edges : (d,) float, mm
        Of the stored voxels: a turn is one of the patient. A plane of voxels more than three times as long as wide is not
        turned.

    Returns
    -------
    across : (N,) int
        Of volumes: the window's axis that the map leaves to itself.
    matrix : (N, d, d) float
        As in :class:`sagittal.prepare.warp.Warp`.
    """
    d = len(size)
    linear = _symmetries(n, tuple(zip(size, edges, strict=True)), plan, rng)
    turn = _rotations_in_plane(n, plan.rotate_deg, rng) @ _shears(n, 2, plan.shear, rng)
    factor = _factors(n, plan.scale, rng)
    if d == 2:
        across = np.full(n, -1)
        turn = _by_edges(turn, edges)
    else:
        planes = [[b for b in range(3) if b != axis] for axis in range(3)]
        ratio = np.array([max(edges[p]) / min(edges[p]) for p in planes])
        level = ratio <= MOST_ANISOTROPIC
        across = rng.choice(np.flatnonzero(level) if level.any() else [int(ratio.argmin())], n)
        whole = np.broadcast_to(np.eye(3), (n, 3, 3)).copy()
        for matrix, flat, axis in zip(whole, turn, across, strict=True):
            if level[axis]:
                matrix[np.ix_(planes[axis], planes[axis])] = _by_edges(flat, edges[planes[axis]])
        turn = whole
    return across, linear @ turn / factor[:, None, None]


def _by_edges(turn: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """A map of the patient's plane, as one of voxels with these edges."""
    scaled: np.ndarray = turn * edges[None, :] / edges[:, None]
    return scaled


def _rotations_in_plane(n: int, degrees: float, rng: np.random.Generator) -> np.ndarray:
    angle = np.deg2rad(rng.uniform(-degrees, degrees, n))
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([c, -s, s, c], axis=1).reshape(n, 2, 2)


def change_intensity(batch: Tensor, plan: AugmentPlan, rng: np.random.Generator) -> Tensor:
    """The part of :func:`augment` that leaves everything in its place, in place and only where it was drawn.

    Parameters
    ----------
    batch : (N, C, ...) float
        Changed.
    plan : AugmentPlan
        Its blur, contrast, brightness, gamma, noise and erase.
    rng : numpy.random.Generator

    Returns
    -------
    (N, C, ...) float
        The batch.
    """
    n, d = len(batch), batch.ndim - 2
    share = {name: _some(n, rng) for name in ("blur", "contrast", "brightness", "gamma", "noise")}
    blur = share["blur"] * rng.uniform(0, plan.blur, n)
    contrast = _factors(n, plan.contrast, rng) ** share["contrast"]
    brightness = share["brightness"] * rng.uniform(-plan.brightness, plan.brightness, n)
    gamma = _factors(n, plan.gamma, rng) ** share["gamma"]
    noise = share["noise"] * rng.uniform(0, plan.noise, n)
    erase = _tensor(_boxes(n, d, plan.erase, rng)) if plan.erase else None
    generator = torch.Generator(batch.device).manual_seed(int(rng.integers(2**63))) if plan.noise else None
    for k, one in enumerate(batch):
        if blur[k] > 0:
            one.copy_(_blur(one[None], _tensor(blur[k : k + 1]))[0])
        if contrast[k] != 1 or brightness[k] != 0:
            centre = float(one.mean()) if contrast[k] != 1 else 0.0
            one.mul_(float(contrast[k])).add_(centre * (1 - float(contrast[k])) + float(brightness[k]))
        if gamma[k] != 1:
            low, high = (float(v) for v in torch.aminmax(one))
            span = max(high - low, 1e-6)
            one.sub_(low).div_(span).pow_(float(gamma[k])).mul_(span).add_(low)
        if noise[k] > 0:
            values = torch.randn(one.shape, generator=generator, dtype=one.dtype, device=one.device)
            one.add_(values, alpha=float(noise[k]))
    if erase is not None:
        batch.copy_(torch.where(_inside(erase, batch), _column(batch.flatten(1).mean(1), batch), batch))
    return batch


def _resample(batch: Tensor, matrix: Tensor, shift: Tensor, mode: str) -> Tensor:
    half = torch.tensor(batch.shape[2:], dtype=torch.float32, device=batch.device) / 2
    linear = matrix.to(batch.device) * half / half[:, None]  # in units of half the size, array axes
    # The sampler counts axes from the last: x is the last array axis.
    theta = torch.cat([linear, 2 * shift.to(batch.device).unsqueeze(2)], dim=2).flip(1)  # (N, d, d + 1)
    theta = torch.cat([theta[:, :, :-1].flip(2), theta[:, :, -1:]], dim=2)
    grid = functional.affine_grid(theta, list(batch.shape), align_corners=False).to(batch.dtype)  # (N, ..., d)
    return functional.grid_sample(batch, grid, mode=mode, padding_mode="border", align_corners=False)


def _blur(batch: Tensor, sigma: Tensor) -> Tensor:
    """Repeated three-point averages along each axis: cheaper here than a convolution with a kernel a sample."""
    variance = sigma.square()
    passes = max(1, int(np.ceil(float(variance.max()) / BLUR_VARIANCE_PER_PASS)))
    weight = _column(variance / (2 * passes), batch)
    for axis in range(2, batch.ndim):
        size = batch.shape[axis]
        for _ in range(passes):
            before = torch.cat([batch.narrow(axis, 0, 1), batch.narrow(axis, 0, size - 1)], dim=axis)
            after = torch.cat([batch.narrow(axis, 1, size - 1), batch.narrow(axis, size - 1, 1)], dim=axis)
            batch = torch.addcmul(batch, weight, before + after - 2 * batch)
    return batch


def _inside(boxes: Tensor, batch: Tensor) -> Tensor:
    n, d = boxes.shape[:2]
    mask = torch.ones((n,) + (1,) * (d + 1), dtype=torch.bool, device=batch.device)
    for axis in range(d):
        size = batch.shape[axis + 2]
        centre = (torch.arange(size, device=batch.device) + 0.5) / size
        low, high = boxes[:, axis, :1].to(batch.device), boxes[:, axis, 1:].to(batch.device)
        shape = [n] + [1] * (d + 1)
        shape[axis + 2] = size
        mask = mask & ((centre >= low) & (centre < high)).view(shape)
    return mask  # (N, 1, ...)


def _symmetries(n: int, sizes: Sequence[object], plan: AugmentPlan, rng: np.random.Generator) -> np.ndarray:
    """Axes swapped where what `sizes` says of them agrees, and mirrored."""
    d = len(sizes)
    eye = np.eye(d)
    linear = np.broadcast_to(eye, (n, d, d))
    if plan.permute:
        kept = [order for order in permutations(range(d)) if all(sizes[i] == sizes[j] for i, j in enumerate(order))]
        linear = np.stack([eye[list(order)] for order in kept])[rng.integers(len(kept), size=n)]
    signs = np.ones((n, d))
    axes = list(plan.flip)
    signs[:, axes] = rng.choice([-1.0, 1.0], size=(n, len(axes)))
    return signs[:, :, None] * linear


def _rotations(n: int, d: int, degrees: float, rng: np.random.Generator) -> np.ndarray:
    """Rotations (N, d, d) by uniform angles; in 3-D about axes that are uniform on the sphere."""
    angle = np.deg2rad(rng.uniform(-degrees, degrees, n))[:, None, None]
    if d == 2:
        turn = np.broadcast_to(np.array([[0.0, -1.0], [1.0, 0.0]]), (n, 2, 2))
    else:
        axis = rng.normal(size=(n, 3))
        x, y, z = (axis / np.linalg.norm(axis, axis=1, keepdims=True)).T
        o = np.zeros(n)
        turn = np.stack([o, -z, y, z, o, -x, -y, x, o], axis=1).reshape(n, 3, 3)
    # Rodrigues' formula, which holds in the plane as well.
    rotation: np.ndarray = np.eye(d) + np.sin(angle) * turn + (1 - np.cos(angle)) * (turn @ turn)
    return rotation


def _shears(n: int, d: int, strength: float, rng: np.random.Generator) -> np.ndarray:
    shear: np.ndarray = np.eye(d) + rng.uniform(-strength, strength, (n, d, d)) * (1 - np.eye(d))
    return shear


def _factors(n: int, strength: float, rng: np.random.Generator) -> np.ndarray:
    factors: np.ndarray = (1 + strength) ** rng.uniform(-1, 1, n)
    return factors


def _boxes(n: int, d: int, probability: float, rng: np.random.Generator) -> np.ndarray:
    edge = rng.uniform(*ERASE_EDGE, (n, d)) * (rng.random((n, 1)) < probability)
    low = rng.uniform(0, 1 - edge)
    return np.stack([low, low + edge], axis=2)


def _some(n: int, rng: np.random.Generator) -> np.ndarray:
    return (rng.random(n) < INTENSITY_SHARE).astype(np.float64)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _column(values: Tensor, batch: Tensor) -> Tensor:
    """Per-sample values (N,) shaped to broadcast against the batch."""
    return values.to(batch).view(-1, *[1] * (batch.ndim - 1))
