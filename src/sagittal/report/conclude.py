"""The end of a run or an evaluation: evidence, figures, cases with explanations, page and card in one folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from sagittal.case import Case
from sagittal.dataset import Dataset
from sagittal.evaluate.cases import evidence_of
from sagittal.evaluate.evidence import Evidence
from sagittal.explain.maps import explain_case
from sagittal.explain.overlay import draw_overlay
from sagittal.model.looks import Look
from sagittal.model.package import Model
from sagittal.model.predictor import hold
from sagittal.prediction import Prediction
from sagittal.progress import Reporter
from sagittal.report.batches import answered_batch, train_batch
from sagittal.report.card import model_card
from sagittal.report.page import write_report
from sagittal.report.pictures import MapPicture, draw_cases, png_bytes
from sagittal.run_folder import writable
from sagittal.train.run import Run

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
    taught = {name for fold in run.splits.folds for name in fold.train}
    with writable(folder):
        evidence.save(folder)
        for name, pixels in (
            ("train_batch.png", train_batch([case for case in dataset if case.id in taught], run.plan)),
            ("val_batch_pred.png", answered_batch(run.validation, run.model.task)),
        ):
            if pixels is not None:
                (folder / name).write_bytes(png_bytes(pixels))
        (folder / "README.md").write_text(model_card(run.model, run.plan, evidence), encoding="utf-8")
        write_page(evidence, folder, run.model, dataset, each=2, reporter=reporter, until=until)
    return evidence


def write_page(
    evidence: Evidence,
    folder: Path,
    model: Model,
    dataset: Dataset,
    *,
    each: int,
    reporter: Reporter,
    until: float = float("inf"),
    looks: Sequence[Look] = (),
) -> Path:
    """The report page with the best, typical and worst cases, `each` of a kind, and where the model looked.

    Raises
    ------
    ResourceError
        If the folder cannot be written.
    """
    with reporter.track("explain", 3.0 * each) as advance:

        def maps(case: Case, answer: Prediction) -> Sequence[MapPicture]:
            found = _maps(model, case) if time.monotonic() < until else []
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
