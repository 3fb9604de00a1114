"""PlaceModel: a trained model whose answer has a place, with everything that its use needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from sagittal.case import Case
from sagittal.errors import PackageError
from sagittal.model import archive
from sagittal.model.device import pick_device
from sagittal.model.gate import Gate
from sagittal.model.parts import (
    Index,
    IntendedUse,
    building,
    check_weights,
    gate_files,
    label_of,
    member_files,
    plain_card,
    read_entry,
    read_gate,
    read_members,
)
from sagittal.model.place_predictor import PlacePredictor
from sagittal.networks.unet import DenseNetwork
from sagittal.prediction import Failure, Prediction
from sagittal.prepare.plan import Plan
from sagittal.progress import Reporter
from sagittal.tasks.registry import PLACE_TASKS, make_place_task
from sagittal.tasks.task import PlaceTask

SETTLED = "settled.json"


@dataclass(frozen=True, eq=False)
class PlaceModel:
    """A trained model that finds structures or objects: its networks, and how their answers are used.

    Parameters
    ----------
    name : str
    plan : Plan
    members : tuple of DenseNetwork
        In eval mode on `device`; their answers are averaged.
    settled : mapping
        What validation cases said of how findings are cleaned and scored; plain values.
    weights : tuple of float, one a member
        Of the average, sum 1; empty for equal ones.
    gate : Gate, optional
    intended_use : IntendedUse
    data : mapping
        Summary of the training data. Never a patient's id.
    card : str
        Markdown; a short one is made on saving where it is empty.
    created : str
        UTC, ISO 8601.
    versions : mapping of str to str
    checksum : str
        SHA-256 of the saved model; empty before.
    device : torch.device
    engine : str
        What runs the networks on a CPU: ``auto`` for the fastest that gives torch's answer, or one of
        ``sagittal.model.engines.ENGINES``. It is not saved.
    """

    name: str
    plan: Plan
    members: tuple[DenseNetwork, ...]
    settled: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[float, ...] = ()
    gate: Gate | None = None
    intended_use: IntendedUse = field(default_factory=IntendedUse)
    data: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""
    created: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    checksum: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    engine: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", check_weights(self.weights, len(self.members)))

    @property
    def label(self) -> str:
        """Name, format and checksum, as predictions carry them."""
        return label_of(self.name, self.checksum)

    @cached_property
    def task(self) -> PlaceTask:
        """The clinical question."""
        return make_place_task(self.plan)

    @cached_property
    def predictor(self) -> PlacePredictor:
        """What turns cases into predictions."""
        return PlacePredictor(
            plan=self.plan,
            task=self.task,
            members=self.members,
            weights=self.weights,
            settled=self.settled,
            gate=self.gate,
            label=self.label,
            device=self.device,
            engine=self.engine,
        )

    def predict(self, case: Case, *, probability: bool = False) -> Prediction:
        """The prediction of one case; see :meth:`sagittal.model.place_predictor.PlacePredictor.predict`."""
        return self.predictor.predict(case, probability=probability)

    def predict_many(
        self,
        cases: Iterable[Case],
        *,
        batch: int | None = None,
        workers: int | None = None,
        probability: bool = False,
        reporter: Reporter | None = None,
    ) -> Iterator[Prediction | Failure]:
        """Predictions in the order of the cases, in bounded memory; a bad case gives a Failure and the rest go on."""
        return self.predictor.predict_many(
            cases, batch=batch, workers=workers, probability=probability, reporter=reporter
        )

    def to(self, device: str) -> PlaceModel:
        """The model on a device: ``cpu``, ``cuda``, ``cuda:1``, or ``auto`` for the best there is."""
        place = pick_device(device)
        if place == self.device:
            return self
        return replace(self, members=tuple(m.to(place) for m in self.members), device=place)

    def save(self, path: str | Path, *, overwrite: bool = False) -> PlaceModel:
        """Write the model, whole or not at all; the result knows its checksum.

        Parameters
        ----------
        path : str or Path
            ``NAME.sagittal`` becomes a single file, any other name a folder.
        overwrite : bool
            Whether a model that stands there may be replaced.

        Raises
        ------
        PackageError
            If something stands there already.
        ResourceError
            If the disk is full or cannot be written to.
        """
        files = {
            "plan.json": archive.json_bytes(self.plan.to_json()),
            SETTLED: archive.json_bytes(dict(self.settled)),
            "data.json": archive.json_bytes(dict(self.data)),
            "README.md": (self.card or short_card(self)).encode("utf-8"),
            **member_files(self.members),
            **gate_files(self.gate),
        }
        index = Index(
            self.name,
            self.plan.task,
            self.created,
            self.weights,
            (0,) * len(self.weights),
            self.intended_use,
            self.versions,
        )
        sealed, checksum = archive.with_index(files, index.to_json())
        archive.write_files(Path(path), sealed, overwrite=overwrite)
        return replace(self, checksum=checksum)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> PlaceModel:
        """Read a model; nothing is parsed before its checksum was verified, and nothing is ever executed.

        Raises
        ------
        PackageError
            If the model is missing, damaged, unsafe or of a newer format.
        ResourceError
            If the device is missing.
        """
        files, checksum = archive.read_files(Path(path))
        return cls.from_files(files, checksum, device=device, where=Path(path).name)

    @classmethod
    def from_files(
        cls, files: Mapping[str, bytes], checksum: str, *, device: str = "cpu", where: str = "model"
    ) -> PlaceModel:
        """A model from the verified bytes of its files.

        Raises
        ------
        PackageError
            As :meth:`load` says.
        """
        place = pick_device(device)
        with building(where):
            return cls._from_files(files, checksum, place)

    @classmethod
    def _from_files(cls, files: Mapping[str, bytes], checksum: str, device: torch.device) -> PlaceModel:
        index, plan = Index.from_json(read_entry(files, archive.INDEX)), Plan.from_json(read_entry(files, "plan.json"))
        if plan.task not in PLACE_TASKS:
            raise PackageError(f"is a model of another kind: it answers '{plan.task}'. Load it by sagittal.load_model")
        networks = read_members(plan, files, index.families, make_place_task(plan).head)
        return cls(
            name=index.name,
            plan=plan,
            members=tuple(cast(DenseNetwork, network.to(device)) for network in networks),
            settled=read_entry(files, SETTLED),
            weights=index.weights,
            gate=read_gate(files, len(index.weights)),
            intended_use=index.intended_use,
            data=read_entry(files, "data.json"),
            card=files.get("README.md", b"").decode("utf-8", errors="replace"),
            created=index.created,
            versions=index.versions,
            checksum=checksum,
            device=device,
        )


def short_card(model: PlaceModel) -> str:
    """The model's card in Markdown, from what the package itself knows."""
    plan = model.plan
    kind = "A segmentation model" if plan.scheme.kind == "structures" else "A detection model"
    facts = (
        f"networks: {len(model.members)} of {plan.network.name}, windows of {' x '.join(map(str, plan.prepare.size))}",
        f"seed: {plan.seed}",
        f"made {model.created} with " + ", ".join(f"{k} {v}" for k, v in model.versions.items()),
    )
    return plain_card(model.name, kind, model.intended_use, facts, model.data)
