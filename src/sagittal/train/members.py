"""Members: the networks of an ensemble trained one after another, resumable, inside one allowance of time."""

from __future__ import annotations

import copy
import csv
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sagittal.prepare.plan import Plan
from sagittal.prepare.split import Splits
from sagittal.progress import Advance, Reporter
from sagittal.train.checkpoint import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from sagittal.train.device import memory_format
from sagittal.train.lesson import Material
from sagittal.train.loop import Alone, Clock, Loop, Member, Progress, Team, make_optimizer, run_member
from sagittal.train.schedule import Schedule
from sagittal.types import Floats

_log = logging.getLogger(__name__)

#: Seconds between checkpoints: a kill loses no more than this and the time of writing one.
CHECKPOINT_S = 30.0


@dataclass(frozen=True)
class Seat:
    """A member's place: which fold it learns, with which seed, of which family."""

    number: int
    fold: int
    repeat: int
    family: int


def make_seats(plan: Plan, folds: int) -> tuple[Seat, ...]:
    """All members in the order of training: companions first, whose time is known and short."""
    order = [*range(1, len(plan.companions) + 1), 0]
    repeats = [plan.split.repeats, *(companion.repeats for companion in plan.companions)]
    places = [(f, r, g) for g in order for r in range(repeats[g]) for f in range(folds)]
    return tuple(Seat(n, f, r, g) for n, (f, r, g) in enumerate(places))


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained member and its answers on the cases that it did not learn from."""

    seat: Seat
    network: nn.Module
    rows: Floats  # row numbers in the store
    logits: Floats  # (len(rows), outputs)
    schedule: tuple[tuple[int, int], ...]


class Trainer:
    """Trains every seat; what it has done lies in its folder, so that another can go on.

    Parameters
    ----------
    plan : Plan
    splits : Splits
    material : Material
    folder : Path
        Of the run.
    device : torch.device
    deadline : float
        Of ``time.monotonic()``; infinite without a budget.
    reporter : Reporter
    tensorboard : bool
    team : Team, optional
        The processes that train together; only the first of them writes files.
    """

    def __init__(
        self,
        plan: Plan,
        splits: Splits,
        material: Material,
        *,
        folder: Path,
        device: torch.device,
        deadline: float,
        reporter: Reporter,
        tensorboard: bool = False,
        team: Team | None = None,
    ) -> None:
        self.team = team or Alone()
        self.plan, self.splits, self.material = plan, splits, material
        self.folder, self.device, self.deadline, self.reporter = folder, device, deadline, reporter
        self.seats = make_seats(plan, len(splits.folds))
        self._families = plan.families
        self._saved = 0.0
        self._serial = 0
        self._board = _board(folder) if tensorboard else None

    def run(self, *, resume: bool) -> list[Trained]:
        """Train all seats, or the rest of them after an interruption.

        Raises
        ------
        KeyboardInterrupt
            After a checkpoint was written.
        """
        trained = self.finished() if resume else []
        start = load_checkpoint(self.folder / "checkpoint") if resume else None
        finished = {member.seat.number for member in trained}
        with self.reporter.track("train", 100.0) as advance:
            parts = self._parts()
            advance(sum(parts[number] for number in finished), "")
            for seat in self.seats:
                if seat.number in finished:
                    continue
                here = start if start is not None and start[1]["seat"] == seat.number else None
                share = parts[seat.number]
                trained.append(self._train(seat, here, lambda n, note, share=share: advance(n * share, note)))  # type: ignore[misc]
        if self._board is not None:
            self._board.close()
        return sorted(trained, key=lambda member: member.seat.number)

    def finished(self) -> list[Trained]:
        """The members that are trained already, as they lie in the folder."""
        done = [self._load_done(seat) for seat in self.seats]
        return [member for member in done if member is not None]

    def _parts(self) -> dict[int, float]:
        """Per cent of the training time that each seat is expected to take."""
        main_s = float(self.plan.expect.get("train_s", 60.0)) / max(sum(seat.family == 0 for seat in self.seats), 1)
        cost = {seat.number: main_s if seat.family == 0 else min(3.0, main_s) for seat in self.seats}
        return {number: 100 * seconds / sum(cost.values()) for number, seconds in cost.items()}

    def allowance_s(self, seat: Seat) -> float:
        """Seconds that a member may take: an equal part of what is left for its family and those like it."""
        left = self.deadline - time.monotonic()
        peers = sum(1 for other in self.seats if other.number >= seat.number and other.family == seat.family)
        return left / max(peers, 1) if seat.family == 0 else float("inf")

    def _train(self, seat: Seat, start: tuple[dict[str, Tensor], dict[str, Any]] | None, advance: Advance) -> Trained:
        plan = replace(self._families[seat.family], seed=self.plan.seed)
        fold = self.splits.folds[seat.fold]
        train_rows, val_rows = self.material.rows(fold.train), self.material.rows(fold.val)
        network = self._network(plan, seat)
        lesson = self.material.lesson(plan, network, seat.family, train_rows, self.device)
        loop = Loop(plan, lesson, self.device, self.team)
        average = copy.deepcopy(network).eval() if plan.train.averaging else None
        if average is not None:
            average.requires_grad_(False)
        member = Member(seat.number, network, average, make_optimizer(network, plan), train_rows, val_rows, {})
        progress, schedule = Progress(), self._schedule(plan, seat, lesson.samples)
        clock = Clock(self.allowance_s(seat))
        if start is not None:
            schedule = _restore(member, progress, start)
            clock.allowance_s += progress.spent_s
        self._follow(loop, member, schedule, progress, clock, advance, seat)
        result = member.result.eval()
        logits = lesson.answers(result, val_rows)
        trained = Trained(seat, result, val_rows, logits, tuple(schedule.revisions))
        if self.team.rank == 0:
            self._save_done(trained)
        return trained

    def _network(self, plan: Plan, seat: Seat) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.default_rng([plan.seed, seat.number, 3]).integers(2**62)))
            network = self.material.network(plan)
        layout = memory_format(plan.input.dimensions, plan.train.channels_last)
        return network.to(self.device).to(memory_format=layout)  # type: ignore[call-overload, no-any-return]

    def _schedule(self, plan: Plan, seat: Seat, samples: int) -> Schedule:
        recorded = self.plan.train.steps
        if recorded:
            return Schedule([tuple(entry) for entry in recorded[seat.number]], fixed=True)  # type: ignore[misc]
        steps = max(1, round(plan.train.epochs * samples / min(plan.train.batch, samples)))
        timed = seat.family == 0 and self.plan.budget_s is not None and "train.epochs" not in self.plan.fixed
        return Schedule([(0, steps)], fixed=not timed)

    def _follow(
        self,
        loop: Loop,
        member: Member,
        schedule: Schedule,
        progress: Progress,
        clock: Clock,
        advance: Advance,
        seat: Seat,
    ) -> None:
        fraction = progress.step / schedule.end
        advance(fraction, "")
        try:
            for news in run_member(loop, member, schedule, progress, clock):
                now = min(progress.step / schedule.end, 1.0)
                advance(now - fraction, self._note(seat, news, schedule))
                fraction = now
                if self.team.rank > 0:
                    continue
                if "val_loss" in news:
                    self._write_row(progress.rows[-1])
                if time.monotonic() - self._saved > CHECKPOINT_S:
                    self._checkpoint(seat, member, schedule, progress)
        except KeyboardInterrupt:
            if self.team.rank == 0:
                self._checkpoint(seat, member, schedule, progress)
            raise
        advance(1.0 - fraction, "")

    def _note(self, seat: Seat, news: Mapping[str, Any], schedule: Schedule) -> str:
        parts = [f"member {seat.number + 1}/{len(self.seats)}", f"step {news['step']}/{schedule.end}"]
        parts.append(f"{1000 * news['step_s']:.0f} ms a step")
        parts.append(f"loss {news['loss']:.3f}")
        parts += [f"{key[4:]} {value:.3f}" for key, value in news.items() if key.startswith("val_")][:3]
        return ", ".join(parts)

    def _write_row(self, row: Mapping[str, Any]) -> None:
        path = self.folder / "results.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": "validated", "at": time.time(), **row}) + "\n")
        if self._board is not None:
            for key, value in row.items():
                if key not in ("member", "step") and isinstance(value, float):
                    self._board.add_scalar(f"member {row['member']}/{key}", value, row["step"])

    def _checkpoint(self, seat: Seat, member: Member, schedule: Schedule, progress: Progress) -> None:
        tensors = {f"network.{k}": v for k, v in member.network.state_dict().items()}
        if member.average is not None:
            tensors |= {f"average.{k}": v for k, v in member.average.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in member.best.items()}
        moments, numbers = optimizer_tensors(member.optimizer)
        tensors |= {f"optimizer.{k}": v for k, v in moments.items()}
        self._serial += 1
        save_checkpoint(
            self.folder / "checkpoint",
            tensors,
            {
                "serial": self._serial,
                "seat": seat.number,
                "revisions": schedule.revisions,
                "fixed": schedule.fixed,
                "optimizer": numbers,
                "progress": vars(progress),
                "left_s": self.deadline - time.monotonic(),
            },
        )
        self._saved = time.monotonic()

    def _save_done(self, trained: Trained) -> None:
        tensors = {f"network.{k}": v for k, v in trained.network.state_dict().items()}
        tensors["logits"] = torch.from_numpy(np.asarray(trained.logits))
        tensors["rows"] = torch.from_numpy(np.asarray(trained.rows))
        save_checkpoint(
            self.folder / "checkpoint" / f"member-{trained.seat.number}",
            tensors,
            {"serial": 0, "schedule": trained.schedule, "left_s": self.deadline - time.monotonic()},
        )

    def _load_done(self, seat: Seat) -> Trained | None:
        found = load_checkpoint(self.folder / "checkpoint" / f"member-{seat.number}")
        if found is None:
            return None
        tensors, state = found
        plan = self._families[seat.family]
        network = self._network(plan, seat)
        network.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("network.")})
        schedule = tuple((int(a), int(b)) for a, b in state["schedule"])
        return Trained(seat, network.eval(), tensors["rows"].numpy(), tensors["logits"].numpy(), schedule)


def left_s(folder: Path) -> float | None:
    """Seconds of the budget that an interrupted run had left, or ``None`` where it had not begun to train."""
    places = [folder / "checkpoint", *sorted((folder / "checkpoint").glob("member-*"))]
    found = [load_checkpoint(place) for place in places]
    values = [float(state["left_s"]) for _, state in (f for f in found if f is not None)]
    return min(values) if values else None


def _restore(member: Member, progress: Progress, start: tuple[dict[str, Tensor], dict[str, Any]]) -> Schedule:
    tensors, state = start
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        part, rest = name.split(".", 1)
        parts.setdefault(part, {})[rest] = value
    member.network.load_state_dict(parts["network"])
    if member.average is not None:
        member.average.load_state_dict(parts["average"])
    member.best.update(parts.get("best", {}))
    restore_optimizer(member.optimizer, parts.get("optimizer", {}), state["optimizer"])
    for name, value in state["progress"].items():
        setattr(progress, name, value)
    return Schedule([(int(a), int(b)) for a, b in state["revisions"]], fixed=bool(state["fixed"]))


def _board(folder: Path) -> Any:
    from sagittal.errors import require

    module = require("torch.utils.tensorboard", feature="--tensorboard", extra="tensorboard")
    return module.SummaryWriter(str(folder / "tensorboard"))


def oof(trained: Sequence[Trained], cases: int, outputs: int, families: int) -> tuple[Floats, Floats]:
    """Out-of-fold logits: the mean over the members of a family that did not learn from a case.

    Returns
    -------
    logits : (families, cases, outputs) float64
        nan where no member judged the case.
    judged : (cases,) bool
    """
    total = np.zeros((families, cases, outputs))
    count = np.zeros((families, cases, 1))
    for member in trained:
        total[member.seat.family, member.rows] += member.logits
        count[member.seat.family, member.rows] += 1
    with np.errstate(invalid="ignore", divide="ignore"):
        logits = total / count
    return logits, np.asarray(np.all(count[:, :, 0] > 0, axis=0))
