"""A model's first run, on nothing: what libraries make at their first use is made before the first study comes."""

from __future__ import annotations

import contextlib
import importlib
import logging
import time
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from sagittal.case import Case, ImageSource
from sagittal.errors import SagittalError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.model.load import AnyModel
from sagittal.model.package import Model
from sagittal.prepare.plan import Plan
from sagittal.write.equipment import ModelFacts

_log = logging.getLogger(__name__)

#: What a result's objects are made by; the second is an optional package, and missing until it is asked for.
_WRITERS = ("sagittal.jobs.make_objects", "highdicom", "PIL.ImageFont", "skimage.measure", "nibabel")


def warm_up(model: AnyModel) -> float:
    """Seconds that a run on an empty study of the model's own size took; what it says of it does not matter.

    What writes results is imported as well: the first result would wait a second or two for it.
    """
    start = time.perf_counter()
    for name in _WRITERS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    try:
        model.predict(empty_case(model.plan))
    except SagittalError as error:  # an empty study need not be one that the model knows
        _log.info("the first run ended early: %s", type(error).__name__)
    return time.perf_counter() - start


def empty_case(plan: Plan) -> Case:
    """A study of a constant value, as large as the network's input."""
    names = plan.input.images
    channels = max(plan.input.channels // len(names), 1)
    source = partial(_empty, plan, channels)
    return Case("empty", "nobody", {name: ImageSource(source) for name in names})


def _empty(plan: Plan, channels: int) -> Image:
    size = tuple(int(n) for n in reversed(plan.prepare.size))  # the network's axes run slices, rows, columns
    spacing = tuple(float(v) for v in reversed(plan.prepare.spacing_mm or (1.0,) * len(size)))
    low = 0.0 if plan.prepare.clip is None else plan.prepare.clip[0]
    shape = (size[0], size[1], size[2] if len(size) == 3 else 1)
    affine = None
    if len(size) == 3:
        affine = np.diag([*spacing, 1.0])
    grid = Grid(shape, affine, None if affine is not None else (*spacing, float("nan")))
    data = np.full((channels, *shape), low, dtype=np.float32)
    return Image(data, grid, unit=plan.input.unit, modality=plan.input.modality, body_part=plan.input.body_part)


def model_facts(model: AnyModel, name: str = "") -> ModelFacts:
    """What results say of a model, under the name that the service gives it."""
    plan = model.plan
    conformal = getattr(model, "conformal", None)
    return ModelFacts(
        name=(name or model.name)[:64],
        version=model.label.partition(" (")[2].rstrip(")")[:64],
        checksum=model.checksum,
        question=model.intended_use.question,
        intended_use=asdict(model.intended_use),
        abstains=model.gate is not None and model.gate.abstains,
        coverage=plan.decide.confidence if conformal is not None else None,
    )


def facts_of(model: AnyModel) -> dict[str, Any]:
    """What the service keeps of a loaded model, as plain values."""
    return {
        "name": model.name,
        "checksum": model.checksum,
        "task": model.plan.task,
        "classes": list(model.plan.scheme.classes),
        "kind": model.plan.scheme.kind,
        "gate": model.gate is not None,
        "networks": len(model.members),
        "points": [p.name for p in model.points] if isinstance(model, Model) else [],
    }
