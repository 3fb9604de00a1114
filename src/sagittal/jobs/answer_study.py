"""A study of the archive to the answer of one model and the files of its result; in the process of the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.case import Case
from sagittal.errors import DataError, GeometryError, ReadError, ScopeError
from sagittal.jobs.make_objects import Order, make_objects
from sagittal.jobs.plain_answer import plain_answer
from sagittal.jobs.rules import SeriesFacts, Use
from sagittal.jobs.warm import model_facts
from sagittal.model.load import AnyModel
from sagittal.model.predictor import hold
from sagittal.prediction import Failure, Prediction
from sagittal.read.dicom_group import Group
from sagittal.read.files import sort_files
from sagittal.read.sources import series_source
from sagittal.read.studies import image_source
from sagittal.write.equipment import Stamp, derive_uids


def answer_study(model: AnyModel, request: Mapping[str, Any], *, advance: Callable[[float], None]) -> dict[str, Any]:
    """Read, predict, and write the files of the result.

    A study that the model was not made for is a result too: refused, with its reason. One that cannot be read is an
    error, as another try may succeed.

    Parameters
    ----------
    model : Model or PlaceModel
    request : mapping
        ``study``: number of its row; ``inputs``: by name of the model's image the paths of its files; ``spool``: an empty
        folder; ``results``: kinds of objects; ``inputs_hash``; ``made_at``: seconds since 1970; ``name``: of the model in
        this service; ``explain_s``.
    advance : callable (float) -> None
        Told how far it is, 0 to 1.

    Returns
    -------
    dict
        ``answer``: see :func:`sagittal.jobs.plain_answer.plain_answer`; ``objects``: a list of ``kind``, ``path``,
        ``media_type``; ``notes``: what could not be made, and why; ``seconds``.

    Raises
    ------
    ReadError
        If a file cannot be read.
    ResourceError
        If memory does not hold the study.
    """
    start = time.perf_counter()
    case_id = f"study-{int(request['study'])}"
    facts = model_facts(model, str(request.get("name", "")))
    made_at = datetime.fromtimestamp(float(request["made_at"]), UTC)
    stamp = Stamp(derive_uids(f"{model.checksum} {request['inputs_hash']}"), made_at.astimezone(), facts)
    answer: Prediction | Failure
    case, held = _whole(case_id, request["inputs"]), None
    try:
        case = open_case(case_id, request["inputs"])
        advance(0.02)
        # Read once: the network, the measurements, the pictures and the maps look at the same voxels.
        held = hold(case, model.plan)
        advance(0.1)
        check_use(model, held)
        answer = model.predict(held)
    except (ScopeError, GeometryError, DataError) as error:
        held, answer = None, Failure(case_id, str(error), type(error).__name__)
    predicted_s = time.perf_counter() - start
    advance(0.7)
    order = Order(
        case=case,
        held=held,
        kinds=tuple(request["results"]),
        folder=Path(request["spool"]),
        stamp=stamp,
        explain_s=float(request.get("explain_s", 0.0)),
        language=str(request.get("language", "en")),
    )
    made = make_objects(model, answer, order)
    advance(1.0)
    return {
        "answer": plain_answer(answer, made.statement, made.measured, facts),
        "objects": [{"kind": one.kind, "path": one.path.name, "media_type": one.media_type} for one in made.files],
        "notes": made.notes,
        "seconds": predicted_s,
        "objects_s": time.perf_counter() - start - predicted_s,
    }


def _whole(case_id: str, inputs: Mapping[str, Sequence[str | Path]]) -> Case:
    """All files of each series as one image: what a refusal refers to whose images could not be told apart."""
    images = {name: series_source(case_id, [Path(path) for path in paths]) for name, paths in inputs.items()}
    return Case(case_id, case_id, images)


def check_use(model: AnyModel, case: Case) -> None:
    """Refuse a study whose voxels or size lie far outside of those of the training studies.

    Rules look at headers; this looks at the images as they were read.

    Raises
    ------
    ScopeError
        With what was found and what the model was made for.
    """
    given, made_for = model.plan.input, model.intended_use
    use = Use(given.modality, "", given.dimensions, made_for.size, made_for.spacing_mm, given.images)
    for name in given.images:
        grid = case.image(name).grid
        spacing = () if grid.spacing is None else tuple(float(v) for v in reversed(np.asarray(grid.spacing)))
        flat = grid.dimensions == 2
        facts = SeriesFacts(
            id=0,
            modality=given.modality,
            images=max(grid.shape[2], 2),
            size=tuple(float(n) for n in reversed(grid.shape))[1 if flat else 0 :],
            spacing_mm=spacing[1 if flat else 0 :],
        )
        verdict = use.match(facts)
        if not verdict.fits:
            raise ScopeError(f"case {case.id}: {verdict.reason}")


def open_case(case_id: str, inputs: Mapping[str, Sequence[str | Path]]) -> Case:
    """The case of some series, each the image of one name.

    Raises
    ------
    ScopeError
        If a series holds several volumes or pictures and nothing says which is meant.
    ReadError
        If some of its files cannot be read.
    """
    images = {}
    for name, paths in inputs.items():
        groups, left = sort_files(Path(path) for path in paths)
        if not groups:
            why = left[0].reason if left else "it has no files"
            raise ScopeError(f"case {case_id}: the series holds no image: {why}")
        lost = [group for group in groups if group.dicom is None]
        if lost and len(groups) > 1:  # never a volume without the slices that cannot be read
            raise ReadError(f"case {case_id}: {len(lost)} of {len(paths)} files of the series cannot be read")
        images[name] = image_source(case_id, _only(case_id, groups))
    return Case(case_id, case_id, images)


def _only(case_id: str, groups: Sequence[Group]) -> Group:
    """The one image of a series; where scouts or single slices of another kind lie beside a volume, the volume."""
    if len(groups) == 1:
        return groups[0]
    by_size = sorted(groups, key=lambda group: len(group.files), reverse=True)
    if len(by_size[0].files) >= 4 * len(by_size[1].files):
        return by_size[0]
    labels = [group.label for group in by_size if group.label]
    told = f" ({', '.join(labels[:6])})" if labels else ""
    raise ScopeError(
        f"case {case_id}: the series holds {len(groups)} images{told}, and the model answers one. Send them as series of "
        "their own, or narrow the model's rules."
    )
