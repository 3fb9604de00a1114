"""Speed: real training steps timed on this machine, in each form that may be the fastest."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch

from sagittal.networks.heads import build_network
from sagittal.prepare.arrays import table_width, to_input
from sagittal.prepare.augment import augment
from sagittal.prepare.plan import Plan
from sagittal.tasks.registry import make_task
from sagittal.tasks.task import Task
from sagittal.train.device import Precision, autocast, memory_format, precisions, synchronise
from sagittal.train.loop import make_optimizer


@dataclass(frozen=True)
class Speed:
    """How fast a plan's steps are here, and in which form they are fastest."""

    step_s: float
    forward_case_s: float
    precision: Precision
    channels_last: bool
    memory_mb: float
    compiled: bool = False


def measure_speed(plan: Plan, *, device: torch.device, limit_s: float) -> Speed:
    """Time training steps of a plan on random data, in each number format that this device may have.

    Parameters
    ----------
    limit_s : float
        About how long the timing may take. At least one step is timed, however long it lasts.
    """
    forms: list[tuple[Precision, bool]] = [("fp32", False)]
    if plan.train.cache_features:
        return _time_form(plan, device, "fp32", False, limit_s)
    if plan.input.dimensions == 2:
        forms.append(("fp32", True))
    forms += [(kind, plan.input.dimensions == 2) for kind in precisions(device, plan.input.dimensions)[1:]]
    best: Speed | None = None
    for precision, channels_last in forms:
        speed = _time_form(plan, device, precision, channels_last, limit_s / len(forms))
        # Fewer digits must pay: a gain below a tenth is noise.
        if best is None or speed.step_s < 0.9 * best.step_s:
            best = speed
    assert best is not None
    return best


def _time_form(
    plan: Plan,
    device: torch.device,
    precision: Precision,
    channels_last: bool,
    limit_s: float,
    *,
    compiled: bool = False,
) -> Speed:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task: Task = make_task(plan)
        network = build_network(
            plan.network,
            channels=plan.input.channels,
            dimensions=plan.input.dimensions,
            head=task.head,
            table=table_width(plan.input),
            weights=False,
        ).to(device)
        format_ = memory_format(plan.input.dimensions, channels_last)
        network = network.to(memory_format=format_)  # type: ignore[call-overload]
        optimizer = make_optimizer(network, plan)
        batch = plan.train.batch
        raw = torch.randint(0, 255, (batch, plan.input.channels, *plan.prepare.size), dtype=torch.uint8, device=device)
        table = torch.zeros((batch, table_width(plan.input)), device=device) if plan.input.table else None
        target = torch.full((batch, task.head.outputs), 1.0 / task.head.outputs, device=device)
        cached = plan.train.cache_features
        network.train(not cached)
        start = time.perf_counter()
        image = to_input(raw, plan.prepare).contiguous(memory_format=format_)
        with torch.no_grad():
            front = network.front(image) if cached else network.eval()(image, table)
        synchronise(device)
        forward = (time.perf_counter() - start) / batch
        network.train()
        call = torch.compile(network) if compiled else network
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < 12 and (not times or time.perf_counter() - began < limit_s):
            start = time.perf_counter()
            if cached:
                logits = network.finish(front, table)
            else:
                image = augment(to_input(raw, plan.prepare), plan.augment, np.random.default_rng(len(times)))
                with autocast(device, precision):
                    logits = call(image.contiguous(memory_format=format_), table)
            loss = task.loss(logits.float(), target)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            synchronise(device)
            times.append(time.perf_counter() - start)
    # The first step pays for set-up; the median of the rest is what a run sees.
    step = float(np.median(times[1:])) if len(times) > 1 else times[0]
    return Speed(step, forward, precision, channels_last, peak_memory_mb(), compiled)


def peak_memory_mb() -> float:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
