"""Budget: real steps are timed on this machine, and the plan is fitted to the user's time."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from sagittal.errors import BudgetError
from sagittal.model.device import pick_device
from sagittal.networks.heads import build_network
from sagittal.prepare.arrays import table_width, to_input
from sagittal.prepare.augment import augment
from sagittal.prepare.fingerprint import Fingerprint
from sagittal.prepare.plan import Plan
from sagittal.tasks.registry import make_task
from sagittal.tasks.task import Task
from sagittal.train.device import Precision, autocast, memory_format, precisions, synchronise
from sagittal.train.loop import make_optimizer

#: Part of the budget that timing may take.
PROBE_PART = 0.04
#: Seconds of timing beyond which compiling is tried on a GPU.
COMPILE_S = 20.0
#: Part of the budget kept for explanations in the report.
MAPS_PART = 0.05
#: Part of the budget that companions may take with all their repeats; twice that with one.
COMPANION_PART = 0.15
#: Seconds that calibration, evidence and the report's figures take whatever the data.
FINISH_S = 9.0
#: Part of its epochs with which a member is trained well enough.
ENOUGH = 0.6
#: Up to this many cases every one of them must teach and judge.
FEW_CASES = 2000
#: Steps of a member below which a network has learnt nothing worth having.
LEAST_STEPS = 20


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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
    return Speed(step, forward, precision, channels_last, peak, compiled)


def fit_to_budget(
    ladder: Sequence[Plan],
    fingerprint: Fingerprint,
    *,
    device: str = "auto",
    spent_s: float = 0.0,
) -> Plan:
    """The best plan of a ladder that the budget holds, with its number of members and epochs.

    Parameters
    ----------
    ladder : sequence of Plan
        From the most to the least costly; the epochs of each are what it needs to be trained well. All have the same
        budget; without one the first is taken as it is, timed.
    fingerprint : Fingerprint
    device : str
    spent_s : float
        Seconds of the budget that are gone already.

    Raises
    ------
    BudgetError
        If not even the cheapest plan can be trained; says what would be enough.
    """
    target = pick_device(device.split(",", maxsplit=1)[0])
    budget = ladder[0].budget_s
    began = time.perf_counter()
    enough = math.inf
    for n, rung in enumerate(ladder):
        limit = 2.0 if budget is None else PROBE_PART * budget / len(ladder)
        speed = measure_speed(rung, device=target, limit_s=limit)
        plan = _as_measured(rung, speed)
        train_cases = _train_cases(fingerprint, plan)
        epoch_s = _epoch_s(plan, speed, train_cases)
        if budget is None:
            finish = finish_s(plan, fingerprint, speed)
            return _expecting(plan, speed, epoch_s, prepare_s=_prepare_s(fingerprint), finish=finish)
        prepare_s = _prepare_s(fingerprint)
        if plan.train.cache_features:
            prepare_s += fingerprint.cases * speed.forward_case_s
        plan, beside_s = _afford_companions(plan, fingerprint, target, budget - spent_s)
        prepare_s += beside_s
        gone = spent_s + (time.perf_counter() - began) + prepare_s
        left = budget - gone - finish_s(plan, fingerprint, speed)
        least_s = LEAST_STEPS * speed.step_s + 2 * speed.forward_case_s * train_cases / 4
        enough = min(enough, budget - left + least_s)
        last = n == len(ladder) - 1
        few = _fold_part(plan, fingerprint) < ENOUGH
        wanted = max(ENOUGH, _fold_part(plan, fingerprint) * plan.split.folds if few and not last else 0)
        if left >= plan.train.epochs * epoch_s * wanted or (last and left >= least_s):
            chosen = _fill(plan, left, epoch_s, _fold_part(plan, fingerprint))
            finish = finish_s(chosen, fingerprint, speed)
            return _expecting(chosen, speed, epoch_s, prepare_s=prepare_s, finish=finish)
    raise BudgetError(
        f"the budget of {budget:.0f} s is too short: reading, a short training and the evaluation of {fingerprint.cases} "
        f"cases take about {math.ceil(enough * 1.1)} s here. Give at least --budget {math.ceil(enough * 1.1)}s."
    )


def _afford_companions(
    plan: Plan, fingerprint: Fingerprint, device: torch.device, budget_s: float
) -> tuple[Plan, float]:
    """The plan with those companions that cost little beside the budget, and the seconds that they take."""
    kept, total = [], 0.0
    why = dict(plan.why)
    for n, companion in enumerate(plan.companions):
        family = plan.families[n + 1]
        speed = measure_speed(family, device=device, limit_s=0.3)
        steps = family.train.epochs * max(1.0, _train_cases(fingerprint, plan) / family.train.batch)
        member_s = steps * speed.step_s * 1.3 + 0.2
        front_s = fingerprint.cases * speed.forward_case_s
        # All folds with all repeats, all folds once, or one fold: the most that is cheap beside the budget.
        for folds, repeats, part in (
            (plan.split.folds, companion.repeats, COMPANION_PART),
            (plan.split.folds, 1, COMPANION_PART),
            (1, 1, 2 * COMPANION_PART),
        ):
            seconds = front_s + member_s * folds * repeats
            if seconds <= part * budget_s:
                break
        else:
            why[f"companions.{companion.network.name}"] = f"left out: it would take {seconds:.0f} s"
            continue
        kept.append(replace(companion, repeats=repeats))
        total += seconds
    return replace(plan, companions=tuple(kept), why=why), total


def _as_measured(plan: Plan, speed: Speed) -> Plan:
    train = plan.train
    why = dict(plan.why)
    if "train.precision" not in plan.fixed:
        train = replace(train, precision=speed.precision, channels_last=speed.channels_last, compile=speed.compiled)
        why["train.precision"] = (
            f"{speed.precision} is the fastest here: {1000 * speed.step_s:.0f} ms a step of {train.batch}"
        )
    return replace(plan, train=train, why=why)


def _train_cases(fingerprint: Fingerprint, plan: Plan) -> int:
    """Cases that teach one member."""
    given = fingerprint.splits
    if plan.split.source == "given":
        pool = given.get("train", 0) + given.get("val", 0)
        if plan.split.folds == 1 and given.get("val", 0):
            return given.get("train", 0)
    else:
        pool = round(fingerprint.cases * (1 - plan.split.test_fraction))
    part = 1 - 1 / plan.split.folds if plan.split.folds > 1 else 1 - plan.split.val_fraction
    return max(1, round(pool * part))


def _epoch_s(plan: Plan, speed: Speed, cases: int) -> float:
    """Seconds of one epoch of one member, validation included."""
    steps = max(1.0, cases / min(plan.train.batch, cases))
    return steps * speed.step_s * 1.06


def _prepare_s(fingerprint: Fingerprint) -> float:
    """Seconds to read and resample all cases, as the sampled ones let expect."""
    return 0.7 * fingerprint.cases * fingerprint.read_s + 2e-9 * fingerprint.cases * fingerprint.bytes_in_memory + 0.2


def finish_s(plan: Plan, fingerprint: Fingerprint, speed: Speed) -> float:
    """Seconds of what comes after training: out-of-fold answers, calibration, evidence, explanations, report."""
    members = plan.split.folds * plan.split.repeats
    answers = 2 * speed.forward_case_s * fingerprint.cases
    maps = 6 * 90 * speed.forward_case_s * members
    # Explanations are drawn as long as there is time; they may not take it from training.
    return FINISH_S + answers + min(maps, MAPS_PART * (plan.budget_s or math.inf))


def expected_finish_s(plan: Plan, fingerprint: Fingerprint) -> float:
    """As the plan's timing said: seconds to keep free at the end."""
    return float(plan.expect.get("finish_s", FINISH_S + 0.001 * fingerprint.cases))


def _fold_part(plan: Plan, fingerprint: Fingerprint) -> float:
    """The part of its epochs that a member must have for the sake of more folds.

    Where cases are few, each must teach and judge, and the companions hold what a shortened network misses.
    """
    return 0.25 if fingerprint.cases <= FEW_CASES and plan.companions else ENOUGH


def _fill(plan: Plan, seconds: float, epoch_s: float, fold_part: float) -> Plan:
    """Spend the time: on more folds first where the plan asks for them, then on epochs, then on repeats."""
    need = plan.train.epochs * epoch_s
    why = dict(plan.why)
    folds, repeats = plan.split.folds, plan.split.repeats
    fixed_folds = "split.folds" in plan.fixed
    while folds > 1 and not fixed_folds and folds * need * fold_part > seconds:
        folds = {5: 3}.get(folds, 1)
    members = folds * repeats
    if not {"split.repeats", "train.epochs"} & set(plan.fixed) and members * need * 2 <= seconds:
        repeats = max(1, min(int(seconds / (folds * need)), math.ceil(15 / folds)))
        members = folds * repeats
    epochs = plan.train.epochs
    if "train.epochs" not in plan.fixed:
        epochs = min(seconds / members / epoch_s, 2.0 * epochs)
        why["train.epochs"] = f"{seconds:.0f} s of training for {members} member(s), {epoch_s:.2f} s an epoch"
    if not fixed_folds:
        why["split.folds"] = (
            f"{why.get('split.folds', '')}; {folds} fold(s) x {repeats} repeat(s) fit into {seconds:.0f} s".lstrip("; ")
        )
    return replace(
        plan,
        split=replace(plan.split, folds=folds, repeats=repeats),
        train=replace(plan.train, epochs=round(epochs, 3)),
        why=why,
    )


def _expecting(plan: Plan, speed: Speed, epoch_s: float, *, prepare_s: float, finish: float) -> Plan:
    members = plan.split.folds * plan.split.repeats
    train_s = plan.train.epochs * epoch_s * members
    total = plan.budget_s if plan.budget_s is not None else prepare_s + train_s + finish
    expect = {
        "total_s": round(total, 1),
        "prepare_s": round(prepare_s, 2),
        "train_s": round(train_s, 1),
        "finish_s": round(finish, 1),
        "step_s": round(speed.step_s, 5),
        "members": float(members),
        "memory_mb": round(speed.memory_mb),
    }
    return replace(plan, expect=expect)
