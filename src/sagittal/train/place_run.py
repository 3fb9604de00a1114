"""The run of a question whose answer has a place: members are trained, validation cases answered, the model packaged."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import numpy as np
from torch import nn

from sagittal.case import Case
from sagittal.dataset import Dataset
from sagittal.errors import DataError, SagittalError
from sagittal.model.device import pick_device
from sagittal.model.gate import fit_gate
from sagittal.model.parts import IntendedUse, current_versions
from sagittal.model.place_model import PlaceModel
from sagittal.model.place_predictor import found_classes, place_uncertainty
from sagittal.model.predictor import hold
from sagittal.networks.unet import DenseNetwork
from sagittal.prediction import Prediction
from sagittal.prepare.fingerprint import Fingerprint
from sagittal.prepare.place_store import build_place_store
from sagittal.prepare.plan import Plan
from sagittal.prepare.split import Splits
from sagittal.prepare.volumes import prepare_volume
from sagittal.progress import Quiet, Reporter
from sagittal.tasks.registry import make_place_task
from sagittal.train.devices import split_devices, train_all
from sagittal.train.findings import Found, save_finding
from sagittal.train.members import Trained, Trainer
from sagittal.train.place_lesson import PlaceMaterial
from sagittal.train.run import Run, cases_of, deadline_of, splits_of, summary_of
from sagittal.types import Floats

_log = logging.getLogger(__name__)

#: Validation cases that are answered whatever the clock says.
LEAST_ANSWERED = 8
#: Part of the time kept for the end of a run that answering validation cases may take.
ANSWER_PART = 0.6
#: Folder of a run that holds what was found in validation cases, for as long as the run is kept.
VALIDATION = "validation"


@dataclass(frozen=True, eq=False)
class Answers:
    """What the networks said of cases that they did not learn from, cleaned and scored; gone through again at will."""

    model: PlaceModel
    found: Found
    seconds: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[tuple[Prediction, Case]]:
        task = self.model.task
        for seconds, (finding, case) in zip(self.seconds, self.found, strict=True):
            concluded = task.conclude(finding, self.model.settled)
            yield (
                Prediction(
                    case=case.id,
                    scheme=self.model.plan.scheme,
                    finding=concluded,
                    decision=found_classes(concluded, self.model.plan.scheme),
                    logits=np.zeros(0),
                    uncertainty=place_uncertainty(concluded),
                    model=self.model.label,
                    made_at=self.model.created,
                    seconds=seconds,
                ),
                case,
            )


def train_places(
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
    """Split, prepare, train every member, answer validation cases, settle how answers are used, and package.

    Parameters and errors as of :func:`sagittal.train.run.train_model`.
    """
    began = time.monotonic()
    reporter = reporter or Quiet()
    folder.mkdir(parents=True, exist_ok=True)
    splits = splits_of(dataset, plan, folder, resume)
    cases = cases_of(dataset, splits)
    task = make_place_task(plan)
    store = build_place_store(cases, plan, task, folder / "prepared", workers=workers or 2, reporter=reporter)
    for skip in store.skipped:
        _log.warning("left out case %s: %s", skip.case, skip.reason)
    deadline = deadline_of(plan, fingerprint, folder, began - spent_s, resume)
    trainer = Trainer(
        plan,
        splits,
        PlaceMaterial(store),
        folder=folder,
        device=pick_device(split_devices(device)[0]),
        deadline=deadline,
        reporter=reporter,
        tensorboard=tensorboard,
    )
    trained = train_all(trainer, device, store.place, resume=resume)
    final = replace(plan, train=replace(plan.train, steps=tuple(member.schedule for member in trained)))
    model = PlaceModel(
        name=fingerprint.name,
        plan=final,
        members=tuple(_for_use(member) for member in trained),
        intended_use=IntendedUse.of(
            final,
            size=tuple((axis.low, axis.high) for axis in fingerprint.size),
            spacing_mm=tuple((axis.low, axis.high) for axis in fingerprint.spacing_mm),
        ),
        data={
            **summary_of(fingerprint, splits, store.skipped),
            **({"allowed_leakage": dict(allowed)} if allowed else {}),
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=current_versions(),
        device=next(trained[0].network.parameters()).device,
        # The engine that is fastest at the moment may differ in the last digits: two runs would not be the same.
        engine="torch",
    )
    by_id = {case.id: case for case in cases}
    # Answering has its share of the finish whenever training came to its end; a late end is no reason to judge by few.
    share = ANSWER_PART * float(plan.expect.get("finish_s", 0.0)) if np.isfinite(deadline) else np.inf
    until = max(deadline, time.monotonic()) + share
    found, seconds, embeddings = _answer(model, trained, splits, by_id, folder / VALIDATION, until, reporter)
    if not len(found):
        raise DataError("no case is left to judge the model by. Give more cases, or fewer folds.")
    reporter.say(f"settling how answers are used by {len(found)} cases that the networks did not learn from")
    settled = task.settle(found)
    gate = None if plan.decide.gate == "off" else fit_gate(embeddings, abstains=plan.decide.gate == "abstain")
    model = replace(model, settled=settled, gate=gate, engine="auto").save(folder / "model", overwrite=True)
    final.save(folder / "plan.json")
    return Run(
        folder=folder,
        plan=final,
        model=model,
        splits=splits,
        validation=Answers(model, found, seconds),
        skipped=(*dataset.skipped, *store.skipped),
        train_s=time.monotonic() - began,
    )


def _for_use(member: Trained) -> DenseNetwork:
    """The network without the heads that only training sees."""
    network = cast(DenseNetwork, member.network.eval())
    network.deep = nn.ModuleList()
    return network


def _answer(
    model: PlaceModel,
    trained: Sequence[Trained],
    splits: Splits,
    by_id: Mapping[str, Case],
    folder: Path,
    until: float,
    reporter: Reporter,
) -> tuple[Found, tuple[float, ...], list[Floats]]:
    """Findings of validation cases, each by the networks that did not learn from it, as many as there is time for.

    Returns
    -------
    found : Found
    seconds : one float a case
    embeddings : one (N, F) array a network
        What each saw of the cases that it answered.
    """
    judges = {
        name: [n for n, member in enumerate(trained) if name in splits.folds[member.seat.fold].val] for name in by_id
    }
    order = [by_id[name] for fold in splits.folds for name in fold.val if name in by_id and judges[name]]
    rng = np.random.default_rng([model.plan.seed, 4])
    order = [order[n] for n in rng.permutation(len(order))]
    kept: list[Case] = []
    seconds: list[float] = []
    seen: list[list[Floats]] = [[] for _ in trained]
    with reporter.track("answer", len(order)) as advance:
        for case in order:
            start = time.monotonic()
            if start > until and len(kept) >= LEAST_ANSWERED:
                _log.warning("answered %d of %d validation cases in the time there was", len(kept), len(order))
                break
            try:
                volume = prepare_volume(hold(case, model.plan), model.plan)
                finding, embedded = model.predictor.look(volume, judges[case.id])
            except SagittalError as error:
                _log.warning("left out of the judgement: %s", error)
                continue
            save_finding(finding, folder / f"{len(kept)}.npz")
            kept.append(case)
            seconds.append(time.monotonic() - start)
            for number, features in zip(judges[case.id], embedded, strict=True):
                seen[number].append(features)
            advance(1, "")
    return Found(folder, tuple(kept)), tuple(seconds), [np.stack(each) if each else np.zeros((0, 1)) for each in seen]


__all__ = ["Answers", "train_places"]
