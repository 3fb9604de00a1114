"""Speed of training on windows: whole steps, cutting out and augmentation included, on cases made up for the purpose."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from sagittal.grid import Grid
from sagittal.model.predictor import flip_sets
from sagittal.prepare.lattice import Lattice
from sagittal.prepare.place_store import PlaceStore
from sagittal.prepare.plan import Plan
from sagittal.tasks.registry import make_place_task
from sagittal.train.device import Precision, autocast, memory_format, precisions, synchronise
from sagittal.train.lesson import Lesson
from sagittal.train.loop import Loop, Member, make_optimizer
from sagittal.train.place_lesson import PlaceMaterial
from sagittal.train.speed import Speed, peak_memory_mb
from sagittal.types import Array

#: Part of the time of steps below which a form must come to be chosen before one with more digits.
GAIN = 0.9
#: Of the gradient in fewer digits with that in fp32, over all weights.
LEAST_COSINE = 0.98


def measure_place_speed(plan: Plan, study: Sequence[float], *, device: torch.device, limit_s: float) -> Speed:
    """Time training steps of a plan in each number format that this device may have.

    Parameters
    ----------
    plan : Plan
    study : sequence of float
        Size of a prepared study; what answering one takes is estimated from it.
    device : torch.device
    limit_s : float
        About how long the timing may take. At least one step is timed, however long it lasts.
    """
    forms: tuple[Precision, ...] = precisions(device, 2)
    best: Speed | None = None
    for precision in forms:
        # Channels last were the faster order in 2-D and 3-D, in every form that was tried.
        form = replace(plan, train=replace(plan.train, precision=precision, channels_last=True))
        # On a CPU the gradients of volumes are not trusted to fewer digits unseen; see `precisions`.
        if precision != "fp32" and plan.input.dimensions == 3 and not same_gradients(form, device):
            continue
        speed = _time_form(form, study, device, limit_s / len(forms))
        if best is None or speed.step_s < GAIN * best.step_s:
            best = speed
    assert best is not None
    return best


def same_gradients(plan: Plan, device: torch.device) -> bool:
    """Whether the plan's number format gives the gradients of fp32 on a few batches: finite, and in the same direction."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        material = PlaceMaterial(made_up_store(plan))
        network = material.network(plan).to(device).train()
        network = network.to(memory_format=memory_format(plan.input.dimensions, plan.train.channels_last))  # type: ignore[call-overload]
        rows = np.arange(2)
        lesson = material.lesson(plan, network, 0, rows, device)
        for step in range(2):
            batch = lesson.batch(rows, 0, step, part=(0, 1))
            found = []
            for precision in ("fp32", plan.train.precision):
                network.zero_grad(set_to_none=True)
                with autocast(device, precision):
                    answer = lesson.answer(network, batch)
                torch.autograd.backward(lesson.loss(answer, batch))
                found.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
            exact, short = found
            if not bool(torch.isfinite(short).all()):
                return False
            if float(torch.nn.functional.cosine_similarity(exact, short, dim=0)) < LEAST_COSINE:
                return False
    return True


def made_up_store(plan: Plan) -> PlaceStore:
    """Two cases somewhat larger than a window, with something to learn in each."""
    size = tuple(int(1.2 * n) + 1 for n in plan.prepare.size)
    rng = np.random.default_rng(0)
    kind = np.dtype(plan.prepare.store)
    values = (
        rng.integers(0, 255, (2, plan.input.channels, *size))
        if kind == np.uint8
        else rng.normal(size=(2, plan.input.channels, *size))
    )
    i, j, k = (*size[::-1], 1)[:3]
    lattice = Lattice.of(Grid((i, j, k)), len(size))
    target = _truth(plan, size)
    places = make_place_task(plan).places(target, size)
    return PlaceStore(
        ids=("a", "b"),
        images=tuple(values.astype(kind)),
        targets=(target, target),
        tables=np.zeros((2, 0), np.float32),
        lattices=(lattice, lattice),
        places=(places, places),
    )


def _truth(plan: Plan, size: tuple[int, ...]) -> Array:
    classes, d = len(plan.scheme.classes), len(size)
    if plan.scheme.kind == "objects":
        rng = np.random.default_rng(1)
        low = np.array([[rng.integers(0, max(n - 8, 1)) for n in size] for _ in range(8 * classes)])
        rest = [[n % classes, 0] for n in range(len(low))]
        return np.concatenate([low, low + 7, rest], axis=1).astype(np.float32)
    layers = 1 if plan.outputs == "exclusive" else classes
    target = np.zeros((layers, *size), np.uint8)
    for n in range(classes):
        # A slab a structure along the first axis.
        part = slice(n * size[0] // (classes + 1), (n + 1) * size[0] // (classes + 1) + 1)
        target[0 if layers == 1 else n, part] = n + 1 if layers == 1 else 1
    assert d == target.ndim - 1
    return target


def _time_form(plan: Plan, study: Sequence[float], device: torch.device, limit_s: float) -> Speed:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        material = PlaceMaterial(made_up_store(plan))
        network = material.network(plan).to(device)
        layout = memory_format(plan.input.dimensions, plan.train.channels_last)
        network = network.to(memory_format=layout)  # type: ignore[call-overload]
        rows = np.arange(2)
        lesson: Lesson = material.lesson(plan, network, 0, rows, device)
        member = Member(0, network, None, make_optimizer(network, plan), rows, rows, {})
        loop = Loop(plan, lesson, device)
        network.train()
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < 12 and (not times or time.perf_counter() - began < limit_s):
            start = time.perf_counter()
            loop.step(member, len(times), 1000)
            synchronise(device)
            times.append(time.perf_counter() - start)
        network.eval()
        window = torch.zeros((1, plan.input.channels, *plan.prepare.size), device=device)
        with torch.inference_mode():
            network(window)
            start = time.perf_counter()
            network(window)
            synchronise(device)
        forward = time.perf_counter() - start
    step = float(np.median(times[1:])) if len(times) > 1 else times[0]
    views = len(flip_sets(plan.decide.flips))
    windows = math.prod(max(n / p, 1.0) for n, p in zip(study, plan.prepare.size, strict=True))
    # Overlap, resampling and surfaces cost about as much again as the network does.
    case_s = 2.0 * forward * windows * views
    return Speed(step, case_s, plan.train.precision, plan.train.channels_last, peak_memory_mb())
