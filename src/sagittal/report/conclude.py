"""The end of a run or an evaluation: evidence, figures, cases with explanations, page and card in one folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from sagittal.case import Case
from sagittal.dataset import Dataset
from sagittal.errors import SagittalError
from sagittal.evaluate.cases import evidence_of
from sagittal.evaluate.evidence import Evidence
from sagittal.explain.maps import explain_case
from sagittal.explain.overlay import draw_overlay
from sagittal.labels import PLACE_KINDS
from sagittal.model.load import AnyModel
from sagittal.model.looks import Look
from sagittal.model.package import Model
from sagittal.model.predictor import hold
from sagittal.prediction import Prediction
from sagittal.prepare.place_store import build_place_store
from sagittal.progress import Reporter
from sagittal.report.batches import answered_batch, sheet, spread, train_batch, window_batch
from sagittal.report.card import model_card
from sagittal.report.page import write_report
from sagittal.report.pictures import (
    DISAGREEMENT,
    CasePicture,
    MapPicture,
    choose_cases,
    describe,
    draw_cases,
    png_bytes,
    shown_bytes,
)
from sagittal.run_folder import writable
from sagittal.tasks.registry import make_place_task
from sagittal.tasks.segment_picture import doubt_figure
from sagittal.tasks.task import Question
from sagittal.train.run import Run, cases_of
from sagittal.types import Array

#: Random maps beside each map on a page: enough for a mean, and a sixth of the time that a test needs.
RANDOMS = 3


def conclude(run: Run, dataset: Dataset, *, reporter: Reporter, until: float = float("inf")) -> Evidence:
    """Judge a finished run by its validation cases and write what a reader needs into its folder.

    Parameters
    ----------
    run : Run
    dataset : Dataset
    reporter : Reporter
    until : float
        Moment (monotonic clock) after which no further explanation is begun.

    Raises
    ------
    ResourceError
        If the folder cannot be written.
    """
    folder = run.folder
    reporter.say(f"judging the run by {len(run.validation)} cases that its networks did not learn from")
    evidence = evidence_of(run.validation, run.model, data=dataset.name, split="validation", seed=run.plan.seed)
    with writable(folder):
        evidence.save(folder)
        (folder / "README.md").write_text(model_card(run.model, run.plan, evidence), encoding="utf-8")
        if run.plan.scheme.kind in PLACE_KINDS:
            _conclude_places(run, dataset, evidence, until)
            return evidence
        taught = {name for fold in run.splits.folds for name in fold.train}
        for name, pixels in (
            ("train_batch.png", train_batch([case for case in dataset if case.id in taught], run.plan)),
            ("val_batch_pred.png", answered_batch(list(run.validation), run.model.task)),
        ):
            if pixels is not None:
                (folder / name).write_bytes(png_bytes(pixels))
        write_page(evidence, folder, run.model, dataset, each=2, reporter=reporter, until=until)
    return evidence


def _conclude_places(run: Run, dataset: Dataset, evidence: Evidence, until: float) -> None:
    """The pictures and the page of a run that says where; its cases show the answers that the evidence rests on."""
    task = run.model.task
    groups = choose_cases(evidence, each=2)
    chosen = {name: group for group, names in groups.items() for name in names}
    known = [str(name) for name in evidence.rows["case"]]
    batch = set(spread(known))
    drawn: dict[str, Array] = {}
    pictures: dict[str, CasePicture] = {}
    rows = {str(row["case"]): row for row in evidence.rows.to_dict("records")}
    # The chosen ones are drawn whatever the time; the others as long as there is some.
    for answer, case in run.validation:
        wanted = case.id in chosen or (case.id in batch and time.monotonic() < until)
        pixels = _figure(task, answer, case) if wanted else None
        if pixels is None:
            continue
        if case.id in batch:
            drawn[case.id] = pixels
        if case.id in chosen:
            maps = place_maps(task, case, answer)
            pictures[case.id] = CasePicture(
                case.id, chosen[case.id], shown_bytes(pixels), describe(rows[case.id]), tuple(maps)
            )
    if drawn:
        (run.folder / "val_batch_pred.png").write_bytes(png_bytes(sheet(list(drawn.values()))))
    seen = _training_windows(run, dataset)
    if seen is not None:
        (run.folder / "train_batch.png").write_bytes(png_bytes(seen))
    ordered = [pictures[name] for name in chosen if name in pictures]
    write_report(evidence, run.folder, model=run.model, plan=run.plan, pictures=ordered)


def _figure(task: Question, answer: Prediction, case: Case) -> Array | None:
    """The picture of a case; ``None`` where it cannot be drawn any more: a report does not fail for a picture."""
    try:
        return task.figure(answer, case)
    except SagittalError:
        return None


def _training_windows(run: Run, dataset: Dataset) -> Array | None:
    place = run.folder / "prepared"
    if not place.is_dir():
        return None
    task = make_place_task(run.plan)
    cases = cases_of(dataset, run.splits)
    store = build_place_store(cases, run.plan, task, place)
    taught = [name for fold in run.splits.folds for name in fold.train]
    return window_batch(store, store.rows(list(dict.fromkeys(taught))), run.plan, task)


def place_maps(task: Question, case: Case, answer: Prediction) -> list[MapPicture]:
    """Where networks and mirrored views disagree about a mask; nothing for boxes, whose scores say it."""
    scheme = getattr(task, "scheme", None)
    if scheme is None or scheme.kind != "structures":
        return []
    try:
        pixels = doubt_figure(task, answer, case)  # type: ignore[arg-type]
    except SagittalError:
        return []
    return [] if pixels is None else [MapPicture(DISAGREEMENT, shown_bytes(pixels))]


def write_page(
    evidence: Evidence,
    folder: Path,
    model: AnyModel,
    dataset: Dataset,
    *,
    each: int,
    reporter: Reporter,
    until: float = float("inf"),
    looks: Sequence[Look] = (),
) -> Path:
    """The report page with the best, typical and worst cases, `each` of a kind, and where the model looked or doubts.

    Raises
    ------
    ResourceError
        If the folder cannot be written.
    """
    with reporter.track("explain", 3.0 * each) as advance:

        def maps(case: Case, answer: Prediction) -> Sequence[MapPicture]:
            found: Sequence[MapPicture] = []
            if not isinstance(model, Model):
                found = place_maps(model.task, case, answer)
            elif time.monotonic() < until:
                found = _maps(model, case)
            advance(1.0, "")
            return found

        pictures = draw_cases(evidence, model, dataset, each=each, maps=maps)
    return write_report(evidence, folder, model=model, plan=model.plan, pictures=pictures, looks=looks)


def _maps(model: Model, case: Case) -> list[MapPicture]:
    """One Grad-CAM of a case, with its worth."""
    held = hold(case, model.plan)
    image = held.image(model.plan.input.images[0])
    pictures = []
    for found in explain_case(model, held, randoms=RANDOMS):
        worth = found.faithfulness
        scores = (
            (worth.deletion, worth.insertion, worth.random_deletion, worth.random_insertion)
            if worth is not None
            else ()
        )
        pictures.append(MapPicture(found.method, draw_overlay(image, found), *scores))
    return pictures
