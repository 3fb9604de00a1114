"""Budget: real steps are timed on this machine, and the plan is fitted to the user's time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from sagittal.errors import BudgetError
from sagittal.model.device import pick_device
from sagittal.prepare.fingerprint import Fingerprint
from sagittal.prepare.plan import Plan
from sagittal.prepare.volumes import resampled_size
from sagittal.train.place_speed import measure_place_speed
from sagittal.train.speed import Speed, measure_speed

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
#: Likewise where the answer has a place; cleaning is chosen and pictures are drawn.
PLACE_FINISH_S = 20.0
#: Part of its epochs with which a member is trained well enough.
ENOUGH = 0.6
#: So many times the steps that it needs at least are of use to a network that answers for each voxel; more time makes more
#: networks, each of which every new study must wait for.
LONGER = 4.0
#: Up to this many cases every one of them must teach and judge.
FEW_CASES = 2000
#: Steps of a member below which a network has learnt nothing worth having.
LEAST_STEPS = 20


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
        speed = _speed(rung, fingerprint, target, limit)
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


def _speed(plan: Plan, fingerprint: Fingerprint, device: torch.device, limit_s: float) -> Speed:
    if plan.prepare.whole:
        return measure_speed(plan, device=device, limit_s=limit_s)
    spacing = [axis.median for axis in fingerprint.spacing_mm]
    study = resampled_size([round(axis.median) for axis in fingerprint.size], spacing, plan.prepare)
    return measure_place_speed(plan, study, device=device, limit_s=limit_s)


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


def judged_cases(plan: Plan, fingerprint: Fingerprint) -> int:
    """Cases that judge the members: those of all folds."""
    given = fingerprint.splits
    if plan.split.source == "given":
        pool = given.get("train", 0) + given.get("val", 0)
        if plan.split.folds == 1:
            return given.get("val", 0) or max(1, round(pool * plan.split.val_fraction))
        return pool
    pool = round(fingerprint.cases * (1 - plan.split.test_fraction))
    return pool if plan.split.folds > 1 else max(1, round(pool * plan.split.val_fraction))


def _epoch_s(plan: Plan, speed: Speed, cases: int) -> float:
    """Seconds of one epoch of one member, validation included."""
    samples = plan.train.windows or cases
    steps = max(1.0, samples / min(plan.train.batch, samples))
    return steps * speed.step_s * 1.06


def _prepare_s(fingerprint: Fingerprint) -> float:
    """Seconds to read and resample all cases, as the sampled ones let expect."""
    return 0.7 * fingerprint.cases * fingerprint.read_s + 2e-9 * fingerprint.cases * fingerprint.bytes_in_memory + 0.2


def finish_s(plan: Plan, fingerprint: Fingerprint, speed: Speed) -> float:
    """Seconds of what comes after training: out-of-fold answers, calibration, evidence, explanations, report."""
    if not plan.prepare.whole:
        return PLACE_FINISH_S + 1.5 * speed.forward_case_s * judged_cases(plan, fingerprint) * plan.split.repeats
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
    stretch = 2.0 if plan.prepare.whole else LONGER
    if not {"split.repeats", "train.epochs"} & set(plan.fixed) and members * need * stretch <= seconds:
        repeats = max(1, min(int(2 * seconds / (folds * need * stretch)), math.ceil(15 / folds)))
        members = folds * repeats
    epochs = plan.train.epochs
    if "train.epochs" not in plan.fixed:
        epochs = min(seconds / members / epoch_s, stretch * epochs)
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
