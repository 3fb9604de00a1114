"""Tensors to tensors, for machines that speak the Open Inference Protocol; in the process of the model.

A model has two ways in. ``array`` is what the network gets: prepared arrays in the plan's store type, (N, C, *size), for
those who prepare studies themselves. The names of the plan's images (``image``, ``T1`` ...) take pixels as a scanner or
camera gives them, which are prepared here as everywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from sagittal.case import Case, ImageSource
from sagittal.errors import ConfigError, DataError, ScopeError, nearest
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import ClassScores
from sagittal.model.load import AnyModel
from sagittal.model.package import Model
from sagittal.prediction import Detections, Failure, Mask, Prediction, Verdict
from sagittal.types import Array
from sagittal.write.masks import label_map

#: Prepared arrays.
ARRAY = "array"
#: Voxel edge lengths of raw pixels, mm, in the order of their axes.
SPACING = "spacing_mm"


def answer_tensors(model: AnyModel, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """What a model says of tensors.

    Parameters
    ----------
    model : Model or PlaceModel
    tensors : mapping of str to array
        ``array``: (N, C, *size) in the plan's store type; or for each of the plan's images (N, rows, columns),
        (N, rows, columns, 3), or of volumes (N, slices, rows, columns), and ``spacing_mm`` (N, 2 or 3); and by the name of
        each clinical column (N,) numbers, or texts.

    Returns
    -------
    dict of str to array
        Of classes ``probability``, ``logits`` (N, C) float64, ``decision`` (N, C) bool, ``conformal`` (N, C) bool where the
        model has sets, ``accepted`` (N,) bool and ``gate_score`` (N,) where it has a gate. Of structures ``mask``
        (N, slices, rows, columns) uint8, values in the order of the classes from 1. Of objects ``boxes`` (M, 6), lowest and
        highest corner in voxels of i, j, k, ``scores`` (M,), ``classes`` (M,), ``chosen`` (M,), ``batch`` (M,): the study
        that a box belongs to.

    Raises
    ------
    ConfigError
        If a name is not known, or shapes and types do not fit.
    ScopeError, DataError
        If what they hold is not what the model was made for.
    """
    names = model.plan.input.images
    if ARRAY in tensors and ARRAY not in names:
        return _of_arrays(model, tensors)
    columns = [column.name for column in model.plan.input.table]
    known = [*names, SPACING, *columns]
    for name in tensors:
        if name not in known:
            raise ConfigError(f"the model takes no input '{name[:64]}'. {nearest(name[:64], [*known, ARRAY])}")
    if missing := [name for name in names if name not in tensors]:
        raise ConfigError(f"the input '{missing[0]}' is missing: give it, or prepared arrays as '{ARRAY}'")
    counts = {name: len(tensors[name]) for name in tensors}
    if len(set(counts.values())) != 1:
        raise ConfigError(f"inputs hold different numbers of studies: {counts}")
    cases = [_case(model, tensors, n, columns) for n in range(next(iter(counts.values())))]
    answers = list(model.predict_many(cases, batch=max(len(cases), 1) if isinstance(model, Model) else None, workers=1))
    for answer in answers:
        if isinstance(answer, Failure):
            raise ScopeError(answer.error) if answer.kind == "ScopeError" else DataError(answer.error)
    return _out([answer for answer in answers if isinstance(answer, Prediction)], model)


def _of_arrays(model: AnyModel, tensors: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(model, Model):
        raise ConfigError(
            f"'{ARRAY}' is for models of classes; this one answers '{model.plan.task}' on the study's own voxels: give its "
            f"images ({', '.join(model.plan.input.images)})"
        )
    plan = model.plan
    arrays = np.asarray(tensors[ARRAY])
    shape = (plan.input.channels, *plan.prepare.size)
    if arrays.shape[1:] != shape or arrays.dtype != np.dtype(plan.prepare.store):
        raise ConfigError(
            f"'{ARRAY}' must be (N, {', '.join(map(str, shape))}) {plan.prepare.store}, not {arrays.shape} {arrays.dtype}"
        )
    width = sum(column.width for column in plan.input.table)
    tables = np.asarray(tensors.get("table", np.zeros((len(arrays), width), np.float32)), dtype=np.float32)
    if tables.shape != (len(arrays), width):
        raise ConfigError(f"'table' must be ({len(arrays)}, {width}): the encoded clinical columns, not {tables.shape}")
    logits = model.logits(arrays, tables)
    verdicts: list[Verdict] = []
    if model.gate is not None:
        verdicts = list(model.gate.judge([model.embed(n, arrays) for n in range(len(model.members))]))
    side = tuple(int(n) for n in reversed(plan.prepare.size))
    grid = Grid((*side, 1) if len(side) == 2 else side)  # type: ignore[arg-type]
    ids = [str(n) for n in range(len(arrays))]
    answers = model.predictor.decide(ids, logits, [grid] * len(ids), verdicts=verdicts)
    if any(isinstance(answer, Failure) for answer in answers):
        raise ScopeError("the network's answer is not finite; the values are far from those of the training cases")
    return _out([answer for answer in answers if isinstance(answer, Prediction)], model)


def _case(model: AnyModel, tensors: Mapping[str, Any], n: int, columns: Sequence[str]) -> Case:
    plan, name = model.plan, str(n)
    spacing = None if SPACING not in tensors else [float(v) for v in np.asarray(tensors[SPACING][n]).reshape(-1)]
    images = {}
    for one in plan.input.images:
        image = _image(np.asarray(tensors[one][n]), spacing, model, one)
        images[one] = ImageSource(partial(_given, image))
    table = {column: _cell(tensors[column][n]) for column in columns if column in tensors}
    return Case(name, name, images, table=table)


def _image(values: Array, spacing: Sequence[float] | None, model: AnyModel, name: str) -> Image:
    """Pixels as the readers give them: (C, I, J, K) float32."""
    given, flat = model.plan.input, model.plan.input.dimensions == 2
    if values.dtype.kind not in "uif":
        raise ConfigError(f"'{name}' must hold numbers, not {values.dtype}")
    if flat and values.ndim == 2:
        data = values.T[np.newaxis, :, :, np.newaxis]
    elif flat and values.ndim == 3 and values.shape[2] == 3:
        data = values.transpose(2, 1, 0)[..., np.newaxis]
    elif not flat and values.ndim == 3:
        data = values.transpose(2, 1, 0)[np.newaxis]
    else:
        wanted = "(N, rows, columns) or (N, rows, columns, 3)" if flat else "(N, slices, rows, columns)"
        raise ConfigError(f"'{name}' must be {wanted}, not (N, {', '.join(map(str, values.shape))})")
    shape = (int(data.shape[1]), int(data.shape[2]), int(data.shape[3]))
    edges = None
    if spacing is not None:
        if len(spacing) != (2 if flat else 3):
            raise ConfigError(f"'{SPACING}' holds {2 if flat else 3} numbers for each study, not {len(spacing)}")
        edges = (*reversed(spacing), float("nan")) if flat else tuple(reversed(spacing))
    affine = None
    if edges is not None and not flat:
        affine = np.diag([*edges, 1.0])  # a place is not known, and every direction is as good as another
    grid = Grid(shape, affine, None if affine is not None else edges)
    bits = 8 * values.dtype.itemsize if values.dtype.kind == "u" else 0
    return Image(data.astype(np.float32), grid, unit=given.unit, modality=given.modality, bits=bits)


def _given(image: Image) -> Image:
    return image


def _cell(value: Any) -> Any:
    plain = value.item() if hasattr(value, "item") else value
    return plain.decode("utf-8", "replace") if isinstance(plain, bytes) else plain


def _out(answers: Sequence[Prediction], model: AnyModel) -> dict[str, Any]:
    if not answers:
        raise ConfigError("there is no study in the request")
    found = answers[0].finding
    classes = model.plan.scheme.classes
    if isinstance(found, ClassScores):
        return _class_tensors(answers, model, classes)
    if isinstance(found, Mask):
        masks = [label_map(a.finding).transpose(2, 1, 0) for a in answers if isinstance(a.finding, Mask)]
        if len({mask.shape for mask in masks}) != 1:
            raise ConfigError("studies of one request must be of one size")
        return {"mask": np.stack(masks).astype(np.uint8), **_gate(answers, model)}
    parts = [a.finding for a in answers if isinstance(a.finding, Detections)]
    return {
        "boxes": np.concatenate([p.boxes.corners.reshape(-1, 6) for p in parts]).astype(np.float32),
        "scores": np.concatenate([p.scores for p in parts]),
        "classes": np.concatenate([p.boxes.classes for p in parts]).astype(np.int64),
        "chosen": np.concatenate([p.chosen for p in parts]),
        "batch": np.concatenate([np.full(len(p), n, np.int64) for n, p in enumerate(parts)]),
        **_gate(answers, model),
    }


def _class_tensors(answers: Sequence[Prediction], model: AnyModel, classes: Sequence[str]) -> dict[str, Any]:
    out: dict[str, Any] = {
        "probability": np.stack([answer.probability for answer in answers]),
        "logits": np.stack([answer.logits for answer in answers]),
        "decision": np.array([[name in answer.decision for name in classes] for answer in answers]),
        **_gate(answers, model),
    }
    if getattr(model, "conformal", None) is not None:
        out["conformal"] = np.array([[name in answer.conformal for name in classes] for answer in answers])
    return out


def _gate(answers: Sequence[Prediction], model: AnyModel) -> dict[str, Any]:
    if model.gate is None:
        return {}
    return {
        "accepted": np.array([answer.verdict.accepted for answer in answers]),
        "gate_score": np.array([answer.verdict.score for answer in answers]),
    }
