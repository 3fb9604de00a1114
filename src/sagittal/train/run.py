"""Run: from a data set and its plan to a packaged model, inside the budget."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from sagittal.case import Case
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import DataError
from sagittal.grid import Grid
from sagittal.model.device import pick_device
from sagittal.model.ensemble import fit_shares, member_weights
from sagittal.model.load import AnyModel
from sagittal.model.package import Model
from sagittal.model.parts import IntendedUse
from sagittal.networks.heads import Network
from sagittal.prediction import Prediction
from sagittal.prepare.fingerprint import Fingerprint
from sagittal.prepare.plan import Plan
from sagittal.prepare.split import Splits, make_splits
from sagittal.prepare.store import Store, build_store
from sagittal.progress import Quiet, Reporter
from sagittal.tasks.registry import make_task
from sagittal.train.budget import expected_finish_s
from sagittal.train.devices import split_devices, train_all
from sagittal.train.lesson import ClassMaterial
from sagittal.train.members import Trained, Trainer, left_s, oof
from sagittal.types import Floats

_log = logging.getLogger(__name__)

#: Cases of a fold that the out-of-distribution gate learns from.
REFERENCES = 400


class Judged(Protocol):
    """Answers beside their cases, which can be gone through several times; masks are made anew each time."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Prediction, Case]]: ...


@dataclass(frozen=True, eq=False)
class Run:
    """A finished training.

    Parameters
    ----------
    folder : Path
    plan : Plan
        With the steps that were taken: trained again with it, the same weights come out.
    model : Model
        As it lies in ``folder/model``.
    splits : Splits
    validation : (Prediction, Case), many
        What the networks said of cases that they did not learn from, calibrated; the basis of the run's evidence.
    skipped : tuple of Skipped
    train_s : float
        Wall seconds from the start of preparing to the saved model.
    """

    folder: Path
    plan: Plan
    model: AnyModel
    splits: Splits
    validation: Judged
    skipped: tuple[Skipped, ...]
    train_s: float


def train_model(
    dataset: Dataset,
    plan: Plan,
    folder: Path,
    *,
    fingerprint: Fingerprint,
    spent_s: float = 0.0,
    resume: bool = False,
    device: str = "auto",
    workers: int = 0,
    tensorboard: bool = False,
    allowed: Mapping[str, int] | None = None,
    reporter: Reporter | None = None,
) -> Run:
    """Split, prepare, train every member, calibrate and package.

    Parameters
    ----------
    dataset : Dataset
    plan : Plan
        Fitted to the budget before (:func:`sagittal.train.budget.fit_to_budget`).
    folder : Path
        Of the run; its files are written or, on resuming, taken up.
    fingerprint : Fingerprint
    spent_s : float
        Seconds of the budget that are gone: reading, measuring, timing.
    resume : bool
        Go on from the last checkpoint. The budget left is that of the moment of the interruption.
    device : str
        ``auto``, ``cpu``, ``cuda:1``, or several that train together: ``0,1``.
    workers : int
        Threads that read studies; 0 for as many as there are cores.
    tensorboard : bool
    allowed : mapping of str to int, optional
        Leakage between splits that was found and allowed: code of the finding, number of cases. The model keeps it.
    reporter : Reporter, optional

    Raises
    ------
    DataError
        If too few cases can be prepared.
    ResourceError
        If the disk refuses.
    """
    began = time.monotonic()
    reporter = reporter or Quiet()
    folder.mkdir(parents=True, exist_ok=True)
    splits = splits_of(dataset, plan, folder, resume)
    cases = cases_of(dataset, splits)
    store = build_store(cases, plan, folder / "prepared", workers=workers or 2, reporter=reporter)
    for skip in store.skipped:
        _log.warning("left out case %s: %s", skip.case, skip.reason)
    task = make_task(plan)
    by_id = {case.id: case for case in cases}
    targets = np.stack([task.target(by_id[name]) for name in store.ids])
    deadline = deadline_of(plan, fingerprint, folder, began - spent_s, resume)
    trainer = Trainer(
        plan,
        splits,
        ClassMaterial(store, targets),
        folder=folder,
        device=pick_device(split_devices(device)[0]),
        deadline=deadline,
        reporter=reporter,
        tensorboard=tensorboard,
    )
    trained = train_all(trainer, device, store.place, targets=targets, resume=resume)
    model, final, logits, judged = _package(plan, fingerprint, splits, store, trained, by_id, allowed or {})
    model = model.save(folder / "model", overwrite=True)
    final.save(folder / "plan.json")
    rows = np.flatnonzero(judged)
    # A vector answer lies on no grid.
    answers = model.predictor.decide([store.ids[n] for n in rows], logits[rows], [Grid((1, 1, 1))] * len(rows))
    predictions = [answer for answer in answers if isinstance(answer, Prediction)]
    return Run(
        folder=folder,
        plan=final,
        model=model,
        splits=splits,
        validation=tuple((prediction, by_id[prediction.case]) for prediction in predictions),
        skipped=(*dataset.skipped, *store.skipped),
        train_s=time.monotonic() - began,
    )


def clear_work(folder: Path) -> None:
    """Remove what only a resumed run would need, once a run's evidence is written."""
    for name in ("checkpoint", "prepared"):
        shutil.rmtree(folder / name, ignore_errors=True)


def splits_of(dataset: Dataset, plan: Plan, folder: Path, resume: bool) -> Splits:
    """The splits of a run, made and kept in its folder; on resuming those that lie there."""
    path = folder / "splits.json"
    if resume and path.exists():
        return Splits.load(path)
    splits = make_splits(dataset, plan.split, plan.seed)
    splits.save(path)
    return splits


def cases_of(dataset: Dataset, splits: Splits) -> list[Case]:
    """The cases that any fold uses, in the order of the data set; test cases are not touched."""
    wanted = {name for fold in splits.folds for name in (*fold.train, *fold.val)}
    return [case for case in dataset if case.id in wanted]


def deadline_of(plan: Plan, fingerprint: Fingerprint, folder: Path, started: float, resume: bool) -> float:
    """The moment at which the last member must be done."""
    if plan.budget_s is None or plan.train.steps:
        return float("inf")
    left = left_s(folder) if resume else None
    if left is not None:
        return time.monotonic() + left
    return started + plan.budget_s - expected_finish_s(plan, fingerprint)


def _package(
    plan: Plan,
    fingerprint: Fingerprint,
    splits: Splits,
    store: Store,
    trained: list[Trained],
    by_id: dict[str, Case],
    allowed: Mapping[str, int],
) -> tuple[Model, Plan, Floats, Any]:
    """The model, the plan as it was carried out, and blended out-of-fold logits with the rows that have them."""
    truth = np.stack([_truth(by_id[name]) for name in store.ids])
    families = len(plan.families)
    outputs = make_task(plan).head.outputs
    logits, judged = oof(trained, len(store.ids), outputs, families)
    if not judged.any():
        raise DataError("no case is left to judge the model by. Give more cases, or fewer folds.")
    shares = plan.decide.weights or fit_shares(logits[:, judged], truth[judged], plan.scheme)
    blend = np.tensordot(np.asarray(shares), logits, axes=1)
    why = dict(plan.why)
    if families > 1:
        names = [family.network.name for family in plan.families]
        shown = ", ".join(f"{name} {share:.2f}" for name, share in zip(names, shares, strict=True))
        why["decide.weights"] = f"lowest log loss on {int(judged.sum())} cases not learnt from: {shown}"
    final = replace(
        plan,
        train=replace(plan.train, steps=tuple(member.schedule for member in trained)),
        decide=replace(plan.decide, weights=tuple(shares)),
        why=why,
    )
    kept = [member for member in trained if shares[member.seat.family] > 0.01]
    number = [member.seat.family for member in kept]
    model = Model.assemble(
        fingerprint.name,
        final,
        [cast(Network, member.network.cpu()) for member in kept],
        logits=blend[judged],
        truth=truth[judged],
        references=[np.asarray(store.arrays[member.rows[:REFERENCES]]) for member in kept],
        weights=member_weights(shares, number),
        families=number,
        intended_use=IntendedUse.of(
            final,
            size=tuple((axis.low, axis.high) for axis in fingerprint.size),
            spacing_mm=tuple((axis.low, axis.high) for axis in fingerprint.spacing_mm),
        ),
        data={
            **summary_of(fingerprint, splits, store.skipped),
            **({"allowed_leakage": dict(allowed)} if allowed else {}),
        },
    )
    return model, final, blend, judged


def _truth(case: Case) -> Floats:
    if case.scores is None:
        raise DataError(f"case {case.id}: has no truth")
    return case.scores.values


def summary_of(fingerprint: Fingerprint, splits: Splits, skipped: Sequence[Skipped]) -> dict[str, Any]:
    """What the training data were, without anything that points at a person."""
    taught = {name for fold in splits.folds for name in fold.train}
    judged = {name for fold in splits.folds for name in fold.val}
    return {
        "name": fingerprint.name,
        "cases": fingerprint.cases,
        "patients": fingerprint.patients,
        "classes": dict(fingerprint.classes),
        "unknown": fingerprint.unknown,
        "folds": len(splits.folds),
        "training_cases": len(taught),
        "validation_cases": len(judged),
        "held_out_test_cases": len(splits.test),
        "skipped": dict(Counter(skip.reason.split(":", 2)[-1].strip()[:80] for skip in skipped)),
        "modalities": dict(fingerprint.modalities),
        "size": [dataclasses.asdict(axis) for axis in fingerprint.size],
        "spacing_mm": [dataclasses.asdict(axis) for axis in fingerprint.spacing_mm],
        "fingerprint": fingerprint.content,
    }


__all__ = ["Run", "clear_work", "train_model"]
