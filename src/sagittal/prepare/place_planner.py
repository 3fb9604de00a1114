"""Planner of questions whose answer has a place: voxel size, windows, network and training from the fingerprint.

The rules were chosen on training data of public sets; ``docs/benchmarks.md`` has the figures. How long each member is
trained follows from timing (``train.budget``), as for classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sagittal.errors import ConfigError
from sagittal.prepare.fingerprint import Fingerprint
from sagittal.prepare.plan import (
    AugmentPlan,
    DecidePlan,
    InputPlan,
    NetworkPlan,
    Outputs,
    Plan,
    PreparePlan,
    SplitPlan,
    TrainPlan,
)
from sagittal.prepare.planner import ARBITRARY_SCALE, Wishes, input_plan, mirrored_axes, orient, split_plan

#: An axis whose voxels are so many times longer than the others' is resampled and convolved by itself (Isensee et al.,
#: Nature Methods 18:203, 2021).
ANISOTROPIC = 3.0
#: Voxels of a median study that windows can go through in a few minutes of two cores.
MOST_VOXELS_3D = 8e6
MOST_SIDE_2D = 1536
#: Voxels that the smallest structure should keep along its mean diameter when studies are made coarser.
LEAST_DIAMETER = 8.0
#: Pixels that the smallest kind of object should keep along its edge.
LEAST_EDGE = 20.0
#: Part of voxels that are 0 from which a background was cut out.
CUT_OUT = 0.25
#: Radius in voxels below which a structure counts as thin.
THIN = 8.0
#: Part of the voxels inside a border of air below which cutting it off pays.
WORTH_CROPPING = 0.9
#: Lengths in radii from which a thin structure is a tree and not just small.
LONG = 20.0
#: Stages of a network at most, and voxels that its coarsest map keeps along an axis at least.
MOST_STAGES, LEAST_MAP = 6, 4


@dataclass(frozen=True)
class _Rung:
    """One way to look at the studies.

    Parameters
    ----------
    voxels : float
        Of a window, at most.
    width, blocks : int
        Channels of the first stage, residual blocks of the later ones.
    stem : int
        Blocks of voxels that the first layer takes as one: at 2 a network of twice the width costs a third.
    steps : int
        After which the network is trained well.
    """

    voxels: float
    width: int
    blocks: int
    stem: int
    steps: int


#: Voxels that a training step should see at least.
STEP_VOXELS = {2: 330_000, 3: 360_000}
#: From the most to the least costly.
RUNGS: dict[tuple[int, str], tuple[_Rung, ...]] = {
    (2, "segment"): (
        _Rung(320**2, 32, 2, 1, 5000),
        _Rung(256**2, 32, 1, 1, 2500),
        _Rung(256**2, 16, 1, 1, 2500),
        _Rung(192**2, 16, 1, 2, 1200),
        _Rung(128**2, 16, 1, 2, 400),
    ),
    (2, "detect"): (
        _Rung(640**2, 32, 2, 2, 4000),
        _Rung(512**2, 32, 1, 2, 2500),
        _Rung(512**2, 16, 1, 2, 1500),
        _Rung(320**2, 16, 1, 2, 500),
    ),
    (3, "segment"): (
        _Rung(128**3, 48, 2, 2, 5000),
        _Rung(96**3, 48, 2, 2, 4000),
        _Rung(80**3, 32, 2, 2, 2500),
        _Rung(64**3, 32, 1, 2, 1500),
        _Rung(56**3, 16, 1, 2, 800),
        _Rung(40**3, 16, 1, 2, 300),
    ),
    (3, "detect"): (
        _Rung(80**3, 24, 1, 1, 3000),
        _Rung(64**3, 16, 1, 1, 1500),
        _Rung(58**3, 12, 1, 1, 1000),
        _Rung(48**3, 16, 1, 2, 300),
    ),
}


def make_place_plans(fingerprint: Fingerprint, *, budget_s: float | None, task: str, wishes: Wishes) -> list[Plan]:
    """Plans for structures or objects, from the most to the least costly.

    Raises
    ------
    ConfigError, DataError
        As :func:`sagittal.prepare.planner.input_plan`.
    """
    why: dict[str, str] = {}
    outputs: Outputs = "exclusive" if fingerprint.exclusive and not fingerprint.partly_known else "independent"
    if task == "segment":
        why["outputs"] = (
            "structures exclude each other"
            if outputs == "exclusive"
            else "structures overlap, or are not known in every case: each is answered by itself"
        )
    base = Plan(
        scheme=fingerprint.scheme,
        task=task,
        outputs=outputs if task == "segment" else "independent",
        input=_input(fingerprint, wishes, why),
        split=_split(fingerprint, wishes, why),
        seed=wishes.seed,
        budget_s=budget_s,
        fixed=("split.folds",) if wishes.folds is not None else (),
    )
    factor, spacing = _resampling(fingerprint, task, why)
    shape = tuple(max(1.0, axis.median * f) for axis, f in zip(fingerprint.size, factor, strict=True))
    prepare = _prepare(fingerprint, base, factor, spacing, why)
    rungs = RUNGS[fingerprint.dimensions, task]
    if wishes.preset == "fast":
        rungs = rungs[2:]
    return [_plan(base, fingerprint, prepare, shape, spacing, rung, dict(why)) for rung in rungs]


def _input(fingerprint: Fingerprint, wishes: Wishes, why: dict[str, str]) -> InputPlan:
    if wishes.inputs:
        raise ConfigError(
            f"input columns ({', '.join(wishes.inputs)}): a network that answers for each voxel takes no table. Leave "
            "--inputs out."
        )
    plan = input_plan(fingerprint, wishes, why)
    several = len(fingerprint.images) > 1 and len(fingerprint.image_channels) == len(fingerprint.images)
    return replace(plan, channels=sum(fingerprint.image_channels)) if several else plan


def _split(fingerprint: Fingerprint, wishes: Wishes, why: dict[str, str]) -> SplitPlan:
    plan = split_plan(fingerprint, wishes, why)
    if wishes.folds is None and wishes.preset != "best":
        why["split.folds"] = "one network that sees nearly all cases; more with --folds or --preset best"
        plan = replace(plan, folds=1)
    # About 25 cases settle how answers are cleaned and scored and what an unlike study is; every other one teaches.
    fraction = float(np.clip(26 / max(fingerprint.cases, 1), 0.1, 0.2))
    return replace(plan, val_fraction=fraction)


def _resampling(
    fingerprint: Fingerprint, task: str, why: dict[str, str]
) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    """By which factor the median study is resampled along each axis, and the voxel size where it is known, mm."""
    sizes = [axis.median for axis in fingerprint.size]
    if not fingerprint.spacing_mm:
        zoom = _zoom_2d(fingerprint, task, why) if fingerprint.dimensions == 2 else _coarser(fingerprint, sizes, why)
        return (zoom,) * fingerprint.dimensions, None
    spacing = [axis.median for axis in fingerprint.spacing_mm]
    why["prepare.spacing_mm"] = f"median of {fingerprint.sampled} cases"
    if fingerprint.dimensions == 3 and max(spacing) > ANISOTROPIC * min(spacing):
        axis = int(np.argmax(spacing))
        spacing[axis] = max(fingerprint.spacing_mm[axis].p05, min(spacing))
        why["prepare.spacing_mm"] += f"; along axis {axis}, whose voxels are the longest, the 5th percentile"
    sizes = [n.median * s.median / t for n, s, t in zip(fingerprint.size, fingerprint.spacing_mm, spacing, strict=True)]
    zoom = _zoom_2d(fingerprint, task, why) if fingerprint.dimensions == 2 else _coarser(fingerprint, sizes, why)
    if zoom < 1:
        # The shortest edges grow first: voxels become as even as the factor allows.
        volume = math.prod(spacing) / zoom**fingerprint.dimensions
        even = _even(spacing, volume)
        spacing = list(even)
    target = tuple(float(f"{s:.4g}") for s in spacing)
    return tuple(s.median / t for s, t in zip(fingerprint.spacing_mm, target, strict=True)), target


def _even(spacing: Sequence[float], volume: float) -> tuple[float, ...]:
    """Edges with a product of `volume`, none shorter than before, as even as can be.

    >>> _even([1.0, 1.0, 4.0], 16.0)
    (2.0, 2.0, 4.0)
    """
    longest_first = sorted(range(len(spacing)), key=lambda n: -spacing[n])
    edges, left, free = list(spacing), volume, len(spacing)
    for n in longest_first:
        common = left ** (1 / free)
        edges[n] = max(spacing[n], common)
        left, free = left / edges[n], free - 1
    return tuple(edges)


def _coarser(fingerprint: Fingerprint, sizes: Sequence[float], why: dict[str, str]) -> float:
    """By how much volumes are made coarser: as far as speed asks for it and the smallest structure bears it."""
    voxels = math.prod(sizes)
    if voxels <= MOST_VOXELS_3D:
        return 1.0
    wanted = (MOST_VOXELS_3D / voxels) ** (1 / 3)
    diameters = [2 * (3 * s.voxels.median / (4 * math.pi)) ** (1 / 3) for s in fingerprint.structures if s.voxels]
    diameters += [min(axis.median for axis in o.edges) for o in fingerprint.objects if o.edges]
    least = min(1.0, LEAST_DIAMETER / max(min(diameters, default=1e9), 1.0))
    zoom = max(wanted, least)
    why["prepare.spacing_mm"] = (
        f"{why.get('prepare.spacing_mm', '')}; {voxels / 1e6:.0f} million voxels a study: {1 / zoom:.2f} times coarser, "
        f"with at least {LEAST_DIAMETER:g} voxels across the smallest structure"
    ).lstrip("; ")
    return float(zoom)


def _zoom_2d(fingerprint: Fingerprint, task: str, why: dict[str, str]) -> float:
    longest = max(axis.median for axis in fingerprint.size)
    zoom = min(1.0, MOST_SIDE_2D / longest)
    found = [min(axis.median for axis in o.edges) for o in fingerprint.objects if o.edges]
    if task == "detect" and found:
        edge = min(found)
        zoom = float(np.clip(LEAST_EDGE / edge, 256 / longest, zoom))
        why["prepare.zoom"] = f"the smallest kind of object keeps about {edge * zoom:.0f} of its {edge:.0f} pixels"
    return float(round(float(zoom) * 16) / 16 if zoom > 1 / 16 else zoom)


def _prepare(
    fingerprint: Fingerprint,
    base: Plan,
    factor: tuple[float, ...],
    spacing: tuple[float, ...] | None,
    why: dict[str, str],
) -> PreparePlan:
    channels = base.input.channels
    common = PreparePlan(
        size=(1,) * fingerprint.dimensions,
        spacing_mm=spacing,
        zoom=None if spacing is not None or set(factor) == {1.0} else factor,
        whole=False,
        orient=orient(fingerprint, why),
        crop=fingerprint.content_part < WORTH_CROPPING,
        store="float16",
        offset=(0.0,) * channels,
        scale=(1.0,) * channels,
    )
    facts = fingerprint.inputs or fingerprint.intensity
    repeat = channels // max(len(facts), 1) if channels % max(len(facts), 1) == 0 else 1
    if fingerprint.whole_numbers and fingerprint.dimensions == 2:
        why["prepare.offset"] = "mean and deviation of the sampled values"
        return replace(
            common,
            store="uint8",
            offset=tuple(f.mean for f in facts) * repeat,
            scale=tuple(max(f.std, 1e-6) for f in facts) * repeat,
        )
    if fingerprint.unit == "HU":
        inside = fingerprint.foreground or facts
        low, high = min(f.spread.p05 for f in inside), max(f.spread.p95 for f in inside)
        why["prepare.clip"] = "0.5th to 99.5th percentile of HU inside structures"
        return replace(
            common,
            clip=(low, high),
            offset=tuple(f.mean for f in inside) * repeat,
            scale=tuple(max(f.std, 1e-6) for f in inside) * repeat,
        )
    if fingerprint.modality in ARBITRARY_SCALE or fingerprint.unit == "1":
        cut_out = fingerprint.zero_part > CUT_OUT
        why["prepare.normalise"] = "the scale of the values is arbitrary: mean 0 and deviation 1 in each image" + (
            f", of the voxels that are not 0 ({fingerprint.zero_part:.0%} are)" if cut_out else ""
        )
        return replace(common, normalise="nonzero" if cut_out else "image")
    why["prepare.offset"] = "mean and deviation of the sampled values"
    return replace(
        common,
        clip=(min(f.spread.p05 for f in facts), max(f.spread.p95 for f in facts)),
        offset=tuple(f.mean for f in facts) * repeat,
        scale=tuple(max(f.std, 1e-6) for f in facts) * repeat,
    )


def _plan(
    base: Plan,
    fingerprint: Fingerprint,
    prepare: PreparePlan,
    shape: tuple[float, ...],
    spacing: tuple[float, ...] | None,
    rung: _Rung,
    why: dict[str, str],
) -> Plan:
    d = fingerprint.dimensions
    edges = spacing or (1.0,) * d
    window = window_size(shape, edges, rung.voxels)
    strides, kernels = stages(window, edges, stem=rung.stem)
    window = _whole_multiple(window, strides)
    why["prepare.size"] = (
        f"windows of {' x '.join(map(str, window))} in a median study of {' x '.join(f'{n:.0f}' for n in shape)}"
    )
    why["network.strides"] = f"every axis shrinks as long as {LEAST_MAP} voxels are left; longer voxels later"
    thin = base.task == "segment" and any(
        0 < s.radius_voxels < THIN and s.length > LONG * s.radius_voxels for s in fingerprint.structures
    )
    batch = int(np.clip(round(STEP_VOXELS[d] / math.prod(window)), 2, 16))
    why["train.batch"] = f"about {STEP_VOXELS[d]:,} voxels a step"
    network = NetworkPlan(
        "unet",
        rung.width,
        (1, *(rung.blocks,) * (len(strides) - 1)),
        strides=strides,
        kernels=kernels,
        most_width=320 if d == 3 else 512,
        head_stride=_head_stride(fingerprint, base.task, prepare, why),
    )
    why["network.width"] = f"the widest network that {rung.steps} steps leave time for"
    cases = max(1, round(fingerprint.cases * (1 - base.split.val_fraction)))
    train = TrainPlan(
        learning_rate=3e-3 if d == 3 else 2e-3,
        weight_decay=0.03,
        schedule="one-cycle" if base.task == "detect" else "cosine",
        warmup=0.03,
        epochs=round(rung.steps * batch / cases, 2),
        batch=batch,
        averaging=0.995,
        clip_norm=12.0,
        foreground=0.5,
        class_weights="sqrt" if base.task == "detect" and len(base.scheme.classes) > 1 else "none",
        loss=("dice-ce-cldice" if thin else "dice-ce") if base.task == "segment" else "auto",
        deep_supervision=base.task == "segment" and len(strides) >= 4,
    )
    if thin:
        why["train.loss"] = "a structure is thin: its centreline is learnt too"
    flips = _mirrored(fingerprint, base, why)
    return replace(
        base,
        prepare=replace(prepare, size=window),
        augment=_augment(fingerprint, flips),
        network=network,
        train=train,
        decide=DecidePlan(
            overlap=0.25 if d == 3 else 0.2,
            flips=flips if d == 2 else flips[-1:],
            tolerance_mm=_tolerance(spacing, why),
            clean=base.task == "segment",
        ),
        why=why,
    )


def _mirrored(fingerprint: Fingerprint, base: Plan, why: dict[str, str]) -> tuple[int, ...]:
    """Axes that may be mirrored; of colour pictures all, as skin, slides and the retina are taken from any side."""
    flips = mirrored_axes(fingerprint)
    colour = fingerprint.dimensions == 2 and base.input.channels == 3 * len(fingerprint.images)
    if fingerprint.scheme.lateral:
        why["augment.flip"] = "none: a structure depends on the side of the body"
    elif colour:
        flips = (0, 1)
        why["augment.flip"] = "both axes: colour pictures are taken from any side"
    else:
        why["augment.flip"] = "left to right: no structure depends on the side" if flips else "none"
    return flips


def _tolerance(spacing: tuple[float, ...] | None, why: dict[str, str]) -> float:
    """Two voxels of the finest axis, but no less than 1 mm: what two careful readers differ by."""
    if spacing is None:
        return 2.0
    tolerance = float(f"{max(1.0, 2 * min(spacing)):.2g}")
    why["decide.tolerance_mm"] = f"about two voxels of {min(spacing):g} mm"
    return tolerance


def window_size(shape: Sequence[float], spacing: Sequence[float], voxels: float) -> tuple[int, ...]:
    """A window of about so many voxels: even in mm, and no larger than the median study along any axis.

    >>> window_size((200, 512, 512), (3.0, 1.0, 1.0), 64**3)
    (31, 92, 92)
    >>> window_size((35, 50, 36), (1.0, 1.0, 1.0), 64**3)
    (35, 50, 36)
    """
    size = [float(n) for n in shape]
    if math.prod(size) <= voxels:
        return tuple(max(1, round(n)) for n in size)
    order = sorted(range(len(size)), key=lambda n: shape[n] * spacing[n])  # the shortest study axes are met first
    left, free = voxels, len(size)
    edges = 1.0
    for position, n in enumerate(order):
        rest = order[position:]
        edges = (left * math.prod(spacing[m] for m in rest)) ** (1 / free)  # mm
        size[n] = min(shape[n], edges / spacing[n])
        left, free = left / size[n], free - 1
    return tuple(max(1, round(n)) for n in size)


def stages(
    window: Sequence[int], spacing: Sequence[float], *, stem: int = 1
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Strides and kernels of each stage of a network for windows of a size and voxels of a spacing.

    An axis shrinks as long as it keeps four voxels and its voxels are not more than twice as long as the shortest; along an
    axis whose voxels still are, kernels have one voxel (Isensee et al. 2021, the rules of its planner).

    >>> stages((32, 96, 96), (3.0, 1.0, 1.0))[0]
    ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    """
    d = len(window)
    size, edge = [float(n) for n in window], [float(s) for s in spacing]
    strides: list[tuple[int, ...]] = []
    kernels: list[tuple[int, ...]] = []
    first = tuple(stem if n / stem >= 2 * LEAST_MAP else 1 for n in window)
    for stage in range(MOST_STAGES):
        if stage == 0:
            stride = first
        else:
            stride = (
                tuple(
                    2
                    if size[a] / 2 >= LEAST_MAP
                    and edge[a] <= 2 * min(edge[b] for b in range(d) if size[b] / 2 >= LEAST_MAP)
                    else 1
                    for a in range(d)
                )
                if any(n / 2 >= LEAST_MAP for n in size)
                else (1,) * d
            )
            if max(stride) == 1:
                break
        size = [n / s for n, s in zip(size, stride, strict=True)]
        edge = [e * s for e, s in zip(edge, stride, strict=True)]
        strides.append(stride)
        kernels.append(tuple(1 if size[a] < 1.5 or edge[a] > 2 * min(edge) else 3 for a in range(d)))
    return tuple(strides), tuple(kernels)


def _whole_multiple(window: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The window enlarged to a multiple of the network's strides along each axis."""
    totals = [math.prod(stride[axis] for stride in strides) for axis in range(len(window))]
    return tuple(total * math.ceil(n / total) for n, total in zip(window, totals, strict=True))


def _head_stride(fingerprint: Fingerprint, task: str, prepare: PreparePlan, why: dict[str, str]) -> int:
    if task != "detect":
        return 1
    zoom = prepare.zoom or (1.0,) * fingerprint.dimensions
    if prepare.spacing_mm is not None:
        zoom = tuple(s.median / t for s, t in zip(fingerprint.spacing_mm, prepare.spacing_mm, strict=True))
    edges = [axis.median * z for o in fingerprint.objects for axis, z in zip(o.edges, zoom, strict=True)]
    smallest = min(edges, default=16.0)
    stride = 4 if smallest >= 16 else 2 if smallest >= 4 else 1
    why["network.head_stride"] = f"the smallest kind of object has {smallest:.0f} voxels along its shortest edge"
    return stride


def _augment(fingerprint: Fingerprint, flips: tuple[int, ...]) -> AugmentPlan:
    if fingerprint.dimensions == 3:
        return AugmentPlan(
            flip=flips,
            rotate_deg=20,
            scale=0.2,
            shear=0.05,
            elastic=0.02,
            brightness=0.15,
            contrast=0.2,
            gamma=0.25,
            noise=0.08,
            blur=0.5,
        )
    return AugmentPlan(
        flip=flips,
        rotate_deg=20,
        scale=0.25,
        shear=0.1,
        elastic=0.01,
        brightness=0.25,
        contrast=0.25,
        gamma=0.25,
        noise=0.05,
        blur=0.5,
    )
