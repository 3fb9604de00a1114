"""Bring a data set's truths to the classes of a model, by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sagittal.case import Case
from sagittal.dataset import Dataset
from sagittal.errors import DataError, nearest
from sagittal.labels import PLACE_KINDS, ClassScores, LabelScheme
from sagittal.prediction import Detections, Mask, Prediction
from sagittal.truth import Boxes


def align(dataset: Dataset, scheme: LabelScheme) -> Dataset:
    """The data set with truths in the order of a model's classes.

    Structures and objects are matched by name. One that the data do not know stays unknown; objects may also be those of
    outlined structures of the same names.

    Raises
    ------
    DataError
        If it has no truth, answers another kind of question, or has a class that the model does not know.
    """
    mine = dataset.scheme
    if mine is None:
        wanted = {"structures": "Give masks beside the images.", "objects": "Give boxes or masks beside the images."}
        raise DataError(
            f"{dataset.name}: holds no truth to measure against. "
            + wanted.get(scheme.kind, "Name the label column with --target.")
        )
    if scheme.kind in PLACE_KINDS or mine.kind in PLACE_KINDS:
        return _align_places(dataset, mine, scheme)
    if mine.exclusive != scheme.exclusive:
        raise DataError(
            f"{dataset.name}: '{mine.target}' is {mine.kind}, the model answers a {scheme.kind} question "
            f"('{scheme.target}'). Choose another label column with --target."
        )
    if mine.classes == scheme.classes:
        return dataset
    for name in mine.classes:
        if name not in scheme.classes:
            raise DataError(
                f"{dataset.name}: class '{name}' of '{mine.target}' is not one that the model knows. "
                f"{nearest(name, scheme.classes)}"
            )
    where = [scheme.classes.index(name) for name in mine.classes]

    def moved(case: Case) -> Case:
        if case.scores is None:
            return case
        values = scheme.unknown().values.copy()
        if scheme.exclusive and case.scores.known:
            values[:] = 0  # another class holds
        values[where] = case.scores.values
        return replace(case, truth=ClassScores(values))

    return replace(dataset, cases=tuple(moved(case) for case in dataset), scheme=scheme)


def _align_places(dataset: Dataset, mine: LabelScheme, scheme: LabelScheme) -> Dataset:
    if mine.kind != scheme.kind and (mine.kind, scheme.kind) != ("structures", "objects"):
        needs = {"structures": "outlines structures: give masks", "objects": "finds objects: give boxes or masks"}
        raise DataError(
            f"{dataset.name}: its truth is {mine.kind} ({_listed(mine.classes)}), but the model "
            f"{needs.get(scheme.kind, f'answers a {scheme.kind} question: give a label column with --target')}."
        )
    strange = [name for name in mine.classes if name not in scheme.classes]
    if strange:
        raise DataError(
            f"{dataset.name}: the model does not know {_listed(strange)}. The data have {_listed(mine.classes)}; the model "
            f"has {_listed(scheme.classes)}. Rename the data's classes."
        )
    if mine.kind == "structures" or mine.classes == scheme.classes:
        return replace(dataset, scheme=scheme)
    where = np.array([scheme.classes.index(name) for name in mine.classes])

    def moved(case: Case) -> Case:
        if not isinstance(case.truth, Boxes):
            return case
        old = np.asarray(case.truth.classes)
        fits = (old >= 0) & (old < len(where))
        # A number without a name stays one, so that it is refused where it is used.
        new = np.where(fits, where[np.where(fits, old, 0)], -1)
        return replace(case, truth=replace(case.truth, classes=new))

    return replace(dataset, cases=tuple(moved(case) for case in dataset), scheme=scheme)


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:12]) + (", ..." if len(names) > 12 else "")


def known_part(prediction: Prediction, unlabelled: tuple[str, ...]) -> Prediction:
    """The prediction without boxes of classes that the data do not know: they are neither right nor wrong.

    Of masks nothing is dropped, as a truth says itself which structures were looked for.
    """
    finding = prediction.finding
    if not unlabelled or isinstance(finding, Mask) or not isinstance(finding, Detections):
        return prediction
    names = prediction.scheme.classes
    kept = np.array([names[label] not in unlabelled for label in finding.boxes.classes], dtype=bool)
    boxes = finding.boxes
    part = Boxes(boxes.corners[kept], boxes.classes[kept], np.asarray(boxes.crowd)[kept])
    return replace(
        prediction,
        finding=Detections(part, finding.scores[kept], finding.grid, finding.chosen[kept]),
        decision=tuple(name for name in prediction.decision if name not in unlabelled),
    )
