"""The training loop: one member of an ensemble, from its first step to its last."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from sagittal.prepare.plan import Plan
from sagittal.train.device import autocast
from sagittal.train.lesson import Lesson
from sagittal.train.schedule import Pace, Schedule, rate
from sagittal.types import Array

_log = logging.getLogger(__name__)


class Team(Protocol):
    """Processes that train one network together, each on its device and its part of a batch."""

    rank: int
    size: int

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network as it is called in training; gradients are averaged over the team."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Send a loss back through the wrapped network."""
        ...

    def agree(self, value: tuple[int, ...]) -> tuple[int, ...]:
        """What the first process says, so that all do the same."""
        ...


class Alone:
    """A team of one."""

    rank = 0
    size = 1

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network itself."""
        return network

    def backward(self, loss: Tensor) -> None:
        """Plain back-propagation."""
        torch.autograd.backward(loss)

    def agree(self, value: tuple[int, ...]) -> tuple[int, ...]:
        """The value itself."""
        return value


@dataclass
class Progress:
    """Where a member stands; with its tensors it is all that a checkpoint holds of it."""

    step: int = 0
    spent_s: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    train_loss: float = math.nan
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Member:
    """What a member trains with: its network, data and optimiser.

    Parameters
    ----------
    number : int
        Which member of the ensemble; enters every random number.
    average : nn.Module, optional
        Holds the moving average of the weights.
    best : dict of tensors
        Weights at the lowest validation loss, where the plan keeps the best.
    """

    number: int
    network: nn.Module
    average: nn.Module | None
    optimizer: Optimizer
    train: Array
    val: Array
    best: dict[str, Tensor]

    @property
    def result(self) -> nn.Module:
        """The network whose answers count: the averaged one where there is one."""
        return self.network if self.average is None else self.average


def make_optimizer(network: nn.Module, plan: Plan) -> Optimizer:
    """AdamW or SGD; norms and biases without weight decay, pretrained weights at their own rate."""
    train = plan.train
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decay = train.weight_decay if parameter.ndim > 1 else 0.0
            pretrained = plan.network.pretrained is not None and name.startswith("encoder.")
            factor = train.encoder_rate if pretrained else 1.0
            groups.setdefault((decay, factor), []).append(parameter)
    settings = [
        {"params": params, "weight_decay": decay, "lr": train.learning_rate * factor, "factor": factor}
        for (decay, factor), params in groups.items()
    ]
    if train.optimizer == "sgd":
        return SGD(settings, lr=train.learning_rate, momentum=0.9, nesterov=True)
    return AdamW(settings, lr=train.learning_rate)


class Loop:
    """Takes training steps; knows nothing of files, clocks or other members.

    Parameters
    ----------
    plan : Plan
    lesson : Lesson
    device : torch.device
    team : Team, optional
        The processes that train together; alone where not given.
    """

    def __init__(self, plan: Plan, lesson: Lesson, device: torch.device, team: Team | None = None) -> None:
        self.plan = plan
        self.lesson = lesson
        self.device = device
        self.team = team or Alone()
        self._scaler = torch.amp.GradScaler(device.type) if plan.train.precision == "fp16" else None

    def step(self, member: Member, number: int, total: int, forward: nn.Module | None = None) -> float:
        """Take one step and give its loss.

        `forward` is the network as it is called, where that is a compiled or distributed wrapper.
        """
        train = self.plan.train
        if self.plan.network.dropout or self.plan.network.drop_path or train.cache_features:
            torch.manual_seed(_torch_seed(self.plan.seed, member.number, number))
        factor = rate(train, number, total)
        for group in member.optimizer.param_groups:
            group["lr"] = train.learning_rate * group["factor"] * factor
        batch = self.lesson.batch(member.train, member.number, number, part=(self.team.rank, self.team.size))
        with autocast(self.device, train.precision):
            answer = self.lesson.answer(forward or member.network, batch)
        loss = self.lesson.loss(answer, batch)
        member.optimizer.zero_grad(set_to_none=True)
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        self.team.backward(loss)
        self._update(member, number)
        return float(loss.detach()) / (self._scaler.get_scale() if self._scaler is not None else 1.0)

    def _update(self, member: Member, number: int) -> None:
        train = self.plan.train
        if self._scaler is not None:
            self._scaler.unscale_(member.optimizer)
        norm = nn.utils.clip_grad_norm_(member.network.parameters(), train.clip_norm or math.inf)
        if self._scaler is not None:
            self._scaler.step(member.optimizer)
            self._scaler.update()
        elif bool(torch.isfinite(norm)):
            member.optimizer.step()
        else:  # one batch may overflow; a step along it would spoil every weight
            _log.warning("member %d: step %d left out, its gradient is not finite", member.number, number)
        if member.average is not None:
            follow(member.average, member.network, min(train.averaging, (1 + number) / (10 + number)))


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the trained ones; statistics of norms likewise."""
    ours = [*average.parameters(), *(b for b in average.buffers() if b.is_floating_point())]
    theirs = [*network.parameters(), *(b for b in network.buffers() if b.is_floating_point())]
    torch._foreach_lerp_(ours, [p.detach() for p in theirs], 1 - decay)


@dataclass
class Clock:
    """Whether a member is on time.

    Parameters
    ----------
    allowance_s : float
        Seconds that the member may take in all, validation included; infinite without a budget.
    """

    allowance_s: float
    pace: Pace = field(default_factory=Pace)
    validate_s: float = 0.0


def run_member(
    loop: Loop, member: Member, schedule: Schedule, progress: Progress, clock: Clock
) -> Iterator[dict[str, Any]]:
    """Train a member to its end, yielding after every step.

    Yields
    ------
    dict
        ``{"step", "loss", "step_s"}``; after a validation also its scores, and the row is kept in `progress`.
    """
    train, team = loop.plan.train, loop.team
    member.network.train()
    forward = _forward(loop, member)
    samples = loop.lesson.samples
    epoch = max(1, math.ceil(samples / min(train.batch, samples)))
    losses: list[float] = []
    due = _validation_interval(epoch, schedule.end, clock)
    while progress.step < schedule.end:
        start = time.perf_counter()
        loss = loop.step(member, progress.step, schedule.total(progress.step), forward)
        losses.append(loss)
        progress.step += 1
        clock.pace.tick(time.perf_counter() - start)
        news: dict[str, Any] = {"step": progress.step, "loss": loss, "step_s": clock.pace.step_s}
        if progress.step % due == 0 or progress.step == schedule.end:
            began = time.perf_counter()
            scores = loop.lesson.validate(member.result, member.val)
            clock.validate_s = time.perf_counter() - began
            progress.train_loss = float(np.mean(losses))
            losses.clear()
            _remember(member, progress, scores["val_loss"], train.keep)
            news.update(scores, train_loss=progress.train_loss, epoch=progress.step / epoch)
        progress.spent_s += time.perf_counter() - start
        if "val_loss" in news:
            news["learning_rate"] = train.learning_rate * rate(train, progress.step - 1, schedule.end)
            progress.rows.append({"member": member.number, **news, "seconds": progress.spent_s})
        if not schedule.fixed and math.isfinite(clock.allowance_s):
            _keep_time(schedule, progress, clock, epoch, team)
        if "val_loss" in news:
            (due,) = team.agree((_validation_interval(epoch, schedule.end, clock),))
        yield news
        if train.patience and "val_loss" in news and progress.step - progress.best_step > train.patience * schedule.end:
            break
    if train.keep == "best" and member.best:
        member.result.load_state_dict(member.best)


def _forward(loop: Loop, member: Member) -> nn.Module:
    """The network as training calls it: shared among a team, compiled where the plan says so."""
    if loop.plan.train.cache_features:
        return member.network
    forward = loop.team.wrap(member.network)
    if loop.plan.train.compile:
        compiled: nn.Module = torch.compile(forward)  # type: ignore[assignment]
        return compiled
    return forward


def _validation_interval(epoch: int, total: int, clock: Clock) -> int:
    """Every how many steps: about 40 times a member, at whole epochs, and at most a tenth of its time."""
    interval = max(1, total // 40)
    if clock.validate_s and clock.pace.step_s:
        interval = max(interval, math.ceil(10 * clock.validate_s / clock.pace.step_s))
    return interval if interval < epoch else math.ceil(interval / epoch) * epoch


def _remember(member: Member, progress: Progress, loss: float, keep: str) -> None:
    if loss < progress.best_loss:
        progress.best_loss, progress.best_step = loss, progress.step
        if keep == "best":
            member.best.clear()
            member.best.update({name: value.detach().clone() for name, value in member.result.state_dict().items()})


def _keep_time(schedule: Schedule, progress: Progress, clock: Clock, epoch: int, team: Team) -> None:
    """Revise the total where the member would miss its allowance by more than 2 %."""
    if progress.step % max(10, min(epoch, schedule.end // 50)) or progress.step >= schedule.end:
        return
    validations = max(0.0, (schedule.end - progress.step) / _validation_interval(epoch, schedule.end, clock))
    left = clock.allowance_s - progress.spent_s - validations * clock.validate_s
    (possible,) = team.agree((progress.step + max(1, int(left / clock.pace.step_s)),))
    if abs(possible - schedule.end) > 0.02 * schedule.end:
        schedule.revise(progress.step, possible)


def _torch_seed(*parts: int) -> int:
    """One seed for torch's own generator, used by dropout alone."""
    return int(np.random.default_rng([*parts, 2]).integers(2**62))
