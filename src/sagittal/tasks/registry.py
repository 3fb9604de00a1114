"""The tasks by the name that a plan gives them."""

from __future__ import annotations

from typing import Protocol

from sagittal.errors import ConfigError, nearest
from sagittal.prepare.plan import Plan
from sagittal.tasks.classify import Classify, class_weights
from sagittal.tasks.task import Task
from sagittal.types import Array


class TaskFactory(Protocol):
    """Makes a task from a plan; the training targets (N, C), where given, set class weights as the plan says."""

    def __call__(self, plan: Plan, targets: Array | None = None) -> Task:
        """Make the task."""
        ...


def make_classify(plan: Plan, targets: Array | None = None) -> Classify:
    """Classification with the loss that the plan's training section names."""
    weights = None if targets is None else class_weights(plan.scheme, targets, plan.train.class_weights)
    return Classify(plan.scheme, label_smoothing=plan.train.label_smoothing, class_weights=weights)


#: By name; a new task is a new line here.
TASKS: dict[str, TaskFactory] = {"classify": make_classify}


def make_task(plan: Plan, targets: Array | None = None) -> Task:
    """The task that a plan names.

    Raises
    ------
    ConfigError
        If there is no task of that name.
    """
    if plan.task not in TASKS:
        raise ConfigError(f"plan.json: unknown task '{plan.task}'. {nearest(plan.task, TASKS)}")
    return TASKS[plan.task](plan, targets)
