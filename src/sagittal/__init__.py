"""Sagittal: from raw medical studies to a model that a hospital can run and trust.

The steps of the journey are functions: :func:`ingest`, :func:`check`, :func:`plan`, :func:`train`, :func:`evaluate`,
:func:`predict`, :func:`explain`, :func:`compare`, :func:`report`. Each is a command of ``sagittal`` too. Importing the
package loads nothing else; each name brings what it needs when it is first used.

>>> import sagittal
>>> sagittal.train
<function sagittal.train, and the room of that name>
"""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Case",
    "ConfigError",
    "DataError",
    "Dataset",
    "EvaluateOptions",
    "Evidence",
    "Grid",
    "Image",
    "LabelScheme",
    "Model",
    "PlaceModel",
    "Plan",
    "PredictOptions",
    "Prediction",
    "ReadOptions",
    "Run",
    "SagittalError",
    "TrainOptions",
    "check",
    "compare",
    "demo",
    "doctor",
    "evaluate",
    "explain",
    "fit",
    "info",
    "ingest",
    "load_model",
    "open_dataset",
    "plan",
    "predict",
    "read_image",
    "report",
    "test",
    "train",
]

if TYPE_CHECKING:
    from sagittal.case import Case
    from sagittal.dataset import Dataset
    from sagittal.demonstration import demo
    from sagittal.errors import ConfigError, DataError, SagittalError
    from sagittal.evaluate.evidence import Evidence
    from sagittal.formats.open_image import read_image
    from sagittal.grid import Grid
    from sagittal.image import Image
    from sagittal.labels import LabelScheme
    from sagittal.model.load import load_model
    from sagittal.model.package import Model
    from sagittal.model.place_model import PlaceModel
    from sagittal.options import EvaluateOptions, PredictOptions, ReadOptions, TrainOptions
    from sagittal.prediction import Prediction
    from sagittal.prepare.plan import Plan
    from sagittal.read.open_dataset import open_dataset
    from sagittal.train.run import Run
    from sagittal.verbs import (
        check,
        compare,
        doctor,
        evaluate,
        explain,
        fit,
        info,
        ingest,
        plan,
        predict,
        report,
        test,
        train,
    )

#: Rooms that have a verb's name: the module is callable, and calling it is the verb.
_ROOMS = ("check", "evaluate", "explain", "report", "train")

_PLACES = {
    "Case": "case",
    "ConfigError": "errors",
    "DataError": "errors",
    "Dataset": "dataset",
    "EvaluateOptions": "options",
    "Evidence": "evaluate.evidence",
    "Grid": "grid",
    "Image": "image",
    "LabelScheme": "labels",
    "Model": "model.package",
    "PlaceModel": "model.place_model",
    "Plan": "prepare.plan",
    "PredictOptions": "options",
    "Prediction": "prediction",
    "ReadOptions": "options",
    "Run": "train.run",
    "SagittalError": "errors",
    "TrainOptions": "options",
    "compare": "verbs",
    "demo": "demonstration",
    "doctor": "verbs",
    "fit": "verbs",
    "info": "verbs",
    "ingest": "verbs",
    "load_model": "model.load",
    "open_dataset": "read.open_dataset",
    "plan": "verbs",
    "predict": "verbs",
    "read_image": "formats.open_image",
    "test": "verbs",
}


class _Room(ModuleType):
    """A room that has a verb's name; calling it does what the verb says."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._verb(*arguments, **named)

    @property
    def _verb(self) -> Any:
        return getattr(importlib.import_module("sagittal.verbs"), self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._verb)

    def __repr__(self) -> str:
        return f"<function {self.__name__}, and the room of that name>"


class _Package(ModuleType):
    """This package's own module: a room that is imported into it becomes callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ROOMS and type(value) is ModuleType:
            value.__class__ = _Room
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _PLACES:
        value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package
