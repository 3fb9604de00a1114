"""The start of a run: its options as a file that repeats it, its data set measured, its plan fitted to the budget."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sagittal.dataset import Dataset
from sagittal.errors import ConfigError
from sagittal.options import ReadOptions, TrainOptions
from sagittal.prepare.fingerprint import Fingerprint, measure_dataset
from sagittal.prepare.place_planner import make_place_plans
from sagittal.prepare.plan import Plan
from sagittal.prepare.planner import Wishes, make_plans
from sagittal.train.budget import fit_to_budget
from sagittal.train.place_run import train_places
from sagittal.train.run import Run, train_model

_KEPT = ("name", "preset", "epochs", "batch", "folds", "pretrained", "tensorboard", "allow_leakage")


def config_of(
    source: str | Path,
    target: str | None,
    task: str,
    budget: str | float,
    folder: Path,
    seed: int,
    options: TrainOptions,
) -> dict[str, Any]:
    """The options of a run under the names of the flags; paths as they were given."""
    names = (
        "name",
        "preset",
        "epochs",
        "batch",
        "folds",
        "pretrained",
        "device",
        "workers",
        "tensorboard",
        "allow_leakage",
    )
    chosen = {name: getattr(options, name) for name in names}
    chosen["inputs"] = ",".join(options.inputs) or None
    return {
        "source": str(source),
        "target": target,
        "task": task,
        "budget": str(budget),
        "output": str(folder),
        "seed": seed,
        **chosen,
        "plan": None if options.plan is None else str(options.plan),
        **{
            **options.read.keywords(),
            **({"search": os.pathsep.join(options.read.search)} if options.read.search else {}),
        },
        "plan_fields": dict(options.changes),
    }


def measure_and_plan(
    dataset: Dataset, task: str, seconds: float, seed: int, options: TrainOptions, started: float
) -> tuple[Fingerprint, Plan]:
    """Fingerprint and plan of a data set, fitted to what is left of the budget."""
    fingerprint = measure(dataset, seed, options)
    for warning in fingerprint.warnings:
        options.reporter.say(f"warning: {warning}")
    if options.plan is not None:
        made = Plan.load(Path(options.plan)).override(options.overrides())
        _check_question(made, fingerprint)
        return fingerprint, made
    wishes = Wishes(
        preset=options.preset,
        folds=options.folds,
        pretrained=options.pretrained or "auto",
        inputs=options.inputs,
        seed=seed,
    )
    changes = options.overrides()
    make = make_plans if task == "classify" else make_place_plans
    ladder = [rung.override(changes) for rung in make(fingerprint, budget_s=seconds, task=task, wishes=wishes)]
    made = fit_to_budget(ladder, fingerprint, device=options.device, spent_s=time.monotonic() - started)
    return fingerprint, made


def train_by(dataset: Dataset, plan: Plan, folder: Path, **how: Any) -> Run:
    """A model learnt as a plan says, whatever its question; see :func:`sagittal.train.run.train_model`."""
    run = train_model if plan.prepare.whole else train_places
    return run(dataset, plan, folder, **how)


def _check_question(made: Plan, fingerprint: Fingerprint) -> None:
    mine, found = made.scheme, fingerprint.scheme
    if (mine.kind, mine.classes) != (found.kind, found.classes):
        raise ConfigError(
            f"the plan is for the {mine.kind} question {', '.join(mine.classes)}; the source asks the {found.kind} question "
            f"{', '.join(found.classes)}. Make a plan for it: sagittal plan SOURCE -o plan.json"
        )


def measure(dataset: Dataset, seed: int, options: TrainOptions) -> Fingerprint:
    """The fingerprint of a data set."""
    return measure_dataset(dataset, seed=seed, reporter=options.reporter)


def options_from(values: Mapping[str, Any], options: TrainOptions) -> TrainOptions:
    """The options that a run was started with; device, workers and who listens are those of now."""
    texts = {name: values.get(name) for name in ReadOptions.__dataclass_fields__ if name != "search"}
    kept = {name: values[name] for name in _KEPT if name in values}
    return replace(
        options,
        read=ReadOptions(**texts, search=tuple(filter(None, str(values.get("search", "")).split(os.pathsep)))),
        inputs=tuple(name for name in str(values.get("inputs", "")).split(",") if name),
        plan=Path(values["plan"]) if values.get("plan") else None,
        changes=dict(values.get("plan_fields", {})),
        **kept,
    )
