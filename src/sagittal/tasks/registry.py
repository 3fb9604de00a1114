"""The tasks by the name that a plan gives them."""

from __future__ import annotations

from collections.abc import Container
from typing import Protocol

from sagittal.errors import ConfigError, nearest
from sagittal.prepare.plan import Plan
from sagittal.tasks.classify import Classify, class_weights
from sagittal.tasks.detect import BALANCE, Detect
from sagittal.tasks.detect_settle import OperatingPoint
from sagittal.tasks.segment import Segment
from sagittal.tasks.task import PlaceTask, Task
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


class PlaceTaskFactory(Protocol):
    """Makes a task whose answer has a place from a plan."""

    def __call__(self, plan: Plan) -> PlaceTask:
        """Make the task."""
        ...


def make_segment(plan: Plan) -> Segment:
    """Segmentation with the outputs, the loss and the cleaning that the plan names."""
    return Segment(
        plan.scheme,
        outputs=plan.outputs,
        centreline=plan.train.loss == "dice-ce-cldice",
        label_smoothing=plan.train.label_smoothing,
        clean=plan.decide.clean,
        tolerance_mm=plan.decide.tolerance_mm,
    )


def make_detect(plan: Plan) -> Detect:
    """Detection with the map, the class weights and the operating point that the plan names."""
    return Detect(
        plan.scheme,
        dimensions=plan.input.dimensions,
        stride=plan.network.head_stride,
        balance=BALANCE[plan.train.class_weights],
        point=OperatingPoint.parse(plan.decide.operating_point),
    )


#: By name, the tasks with one answer a case; a new task is a new line here or below.
TASKS: dict[str, TaskFactory] = {"classify": make_classify}
#: By name, the tasks whose answer has a place.
PLACE_TASKS: dict[str, PlaceTaskFactory] = {"segment": make_segment, "detect": make_detect}


def make_task(plan: Plan, targets: Array | None = None) -> Task:
    """The task with one answer a case that a plan names.

    Raises
    ------
    ConfigError
        If there is no such task of that name.
    """
    if plan.task not in TASKS:
        raise ConfigError(f"plan.json: {_unknown(plan.task, PLACE_TASKS)}")
    return TASKS[plan.task](plan, targets)


def make_place_task(plan: Plan) -> PlaceTask:
    """The task whose answer has a place that a plan names.

    Raises
    ------
    ConfigError
        If there is no such task of that name.
    """
    if plan.task not in PLACE_TASKS:
        raise ConfigError(f"plan.json: {_unknown(plan.task, TASKS)}")
    return PLACE_TASKS[plan.task](plan)


def _unknown(name: str, others: Container[str]) -> str:
    if name in others:
        return f"the task '{name}' is of another kind than its network and preparation"
    return f"unknown task '{name}'. {nearest(name, [*TASKS, *PLACE_TASKS])}"
