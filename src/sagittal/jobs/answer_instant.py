"""Small pictures answered at once, as many as wait together; in the process of the model."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sagittal.case import Case
from sagittal.errors import ConfigError
from sagittal.jobs.answer_study import check_use
from sagittal.jobs.plain_answer import plain_answer
from sagittal.jobs.warm import model_facts
from sagittal.model.load import AnyModel
from sagittal.model.package import Model
from sagittal.model.predictor import hold, to_failure
from sagittal.prediction import Failure, Prediction
from sagittal.read.sources import file_source
from sagittal.write.equipment import ModelFacts
from sagittal.write.measurements import measure_mask
from sagittal.write.statement import make_statement

#: What a picture is called in messages.
NAME = "image"
#: Kept in memory where the system has such a folder: a file that lives for a millisecond need not see the disk.
_SHARED = Path("/dev/shm")  # noqa: S108
_NUMBERS = itertools.count()


def answer_pictures(model: AnyModel, files: Sequence[bytes]) -> list[dict[str, Any]]:
    """Read, predict and describe each of some files; one that cannot be read stops no other.

    Each is read by the same readers as everything else, with their limits: what they decode in a process of its own they
    do so here, too.

    Parameters
    ----------
    model : Model or PlaceModel
        Of one input.
    files : sequence of bytes
        PNG, JPEG, DICOM and every other format that is read, told by their content.

    Returns
    -------
    list of dict
        As :func:`sagittal.jobs.plain_answer.plain_answer`; or ``error`` and ``message`` for one that has no answer.

    Raises
    ------
    ConfigError
        If the model takes several images.
    """
    if len(model.plan.input.images) != 1:
        raise ConfigError(
            f"the model takes {', '.join(model.plan.input.images)}; a single file holds one of them. Send them as a study."
        )
    folder = Path(_folder())
    paths = [folder / f"{next(_NUMBERS)}" for _ in files]
    answers: list[Prediction | Failure | None] = [None] * len(files)
    read: dict[int, Case] = {}
    try:
        for n, (path, data) in enumerate(zip(paths, files, strict=True)):
            try:
                path.write_bytes(data)
                held = hold(Case(NAME, NAME, {NAME: file_source(NAME, path)}), model.plan)
                check_use(model, held)
                read[n] = held
            except Exception as error:  # one bad picture never stops the rest
                answers[n] = to_failure(NAME, error)
        # In this thread: starting others would take longer than a small network.
        together = model.predictor.predict_together if isinstance(model, Model) else model.predict_many
        found = together(list(read.values()))
        for n, answer in zip(read, found, strict=True):
            answers[n] = answer
        facts = _facts(model)
        return [_described(answer, facts) for answer in answers if answer is not None]
    finally:
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink()


def _described(answer: Prediction | Failure, facts: ModelFacts) -> dict[str, Any]:
    if isinstance(answer, Failure) and answer.kind != "ScopeError":
        return {"error": answer.kind, "message": answer.error.removeprefix(f"case {NAME}: ")}
    measured = []
    if isinstance(answer, Prediction) and hasattr(answer.finding, "segmentation"):
        measured = measure_mask(answer)
    return plain_answer(answer, make_statement(answer, facts, measured=measured), measured, facts)


@lru_cache(maxsize=4)
def _facts(model: AnyModel) -> ModelFacts:
    return model_facts(model)


@lru_cache(maxsize=1)
def _folder() -> str:
    return tempfile.mkdtemp(prefix="sagittal-", dir=_SHARED if _SHARED.is_dir() else None)


def clean_up() -> None:
    """Remove the folder of this process."""
    if _folder.cache_info().currsize:
        with contextlib.suppress(OSError):
            Path(_folder()).rmdir()
