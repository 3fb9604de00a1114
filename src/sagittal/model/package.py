"""Package: a trained model with everything that its use needs, on disk and in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from sagittal.case import Case
from sagittal.errors import ConfigError, DataError, PackageError, nearest
from sagittal.model import archive
from sagittal.model.calibrate import Calibration, fit_calibration, link_of, to_probabilities
from sagittal.model.conformal import Conformal, fit_conformal
from sagittal.model.device import pick_device
from sagittal.model.gate import Gate, fit_gate
from sagittal.model.operating import OperatingPoint, all_points, default_point
from sagittal.model.parts import (
    Index,
    IntendedUse,
    building,
    check_weights,
    current_versions,
    gate_files,
    label_of,
    member_files,
    plain_card,
    read_entry,
    read_gate,
    read_members,
)
from sagittal.model.predictor import Predictor
from sagittal.networks.heads import Network
from sagittal.prediction import Failure, Prediction
from sagittal.prepare.plan import Plan
from sagittal.progress import Reporter
from sagittal.tasks.registry import PLACE_TASKS, make_task
from sagittal.tasks.task import Task
from sagittal.types import Array, Floats


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model: networks, and how to use them.

    Parameters
    ----------
    name : str
    plan : Plan
    members : tuple of Network
        In eval mode on `device`; their logits are averaged.
    weights : tuple of float, one a member
        Of that average, sum 1; empty for equal ones.
    families : tuple of int, one a member
        Which of ``plan.families`` each network is of; empty where all are of the main one.
    calibration : Calibration
    points : tuple of OperatingPoint
        Those that validation cases could choose; the plan names the one in use.
    conformal : Conformal, optional
    gate : Gate, optional
    intended_use : IntendedUse
    data : mapping
        Summary of the training data: counts, classes, patients, a fingerprint's hash. Never a patient's id.
    card : str
        Markdown; a short one is made on saving where it is empty.
    created : str
        UTC, ISO 8601.
    versions : mapping of str to str
        Of the packages that made it.
    checksum : str
        SHA-256 of the saved model; empty before.
    device : torch.device
    """

    name: str
    plan: Plan
    members: tuple[Network, ...]
    calibration: Calibration
    points: tuple[OperatingPoint, ...]
    conformal: Conformal | None = None
    gate: Gate | None = None
    weights: tuple[float, ...] = ()
    families: tuple[int, ...] = ()
    intended_use: IntendedUse = field(default_factory=IntendedUse)
    data: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""
    created: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    checksum: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        count = len(self.members)
        object.__setattr__(self, "weights", check_weights(self.weights, count))
        if not self.families:
            object.__setattr__(self, "families", (0,) * count)
        if len(self.families) != count or not set(self.families) <= set(range(len(self.plan.families))):
            raise PackageError(f"{count} networks need as many families of the plan's: {self.families}")

    @classmethod
    def assemble(
        cls,
        name: str,
        plan: Plan,
        members: Sequence[Network],
        *,
        logits: Floats,
        truth: Floats,
        weights: Sequence[float] = (),
        families: Sequence[int] = (),
        references: Sequence[Array] = (),
        intended_use: IntendedUse | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> Model:
        """A model from trained networks and what they said of validation cases.

        Parameters
        ----------
        name : str
        plan : Plan
        members : sequence of Network
        logits : (N, C) float
            Of validation cases, each from networks that did not learn from it (with folds: out-of-fold). They fit the
            calibration and choose the operating points and conformal thresholds, never test cases.
        truth : (N, C) float
            ``case.truth.values`` of the same cases.
        weights, families : sequences, one entry a member, optional
            As in the class; the logits must be blended in the same way.
        references : sequence of (N_m, C, *size) arrays, one a member, optional
            Prepared validation cases of each member, in the plan's store type; their embeddings make the gate.
        intended_use : IntendedUse, optional
        data : mapping, optional

        Raises
        ------
        ConfigError
            If the plan asks for an operating point that does not exist.
        DataError
            If shapes do not fit, or logits are not finite.

        Notes
        -----
        With folds each case is judged by the networks that did not learn from it, a new study by all of them. Their mean
        is right a little more often and less extreme than one alone, so that probabilities err towards caution.
        """
        for member in members:
            member.eval()
        scheme, decide = plan.scheme, plan.decide
        calibration = fit_calibration(logits, truth, scheme=scheme, method=decide.calibration)
        probabilities = to_probabilities(calibration.apply(logits), link_of(scheme))
        model = cls(
            name=name,
            plan=plan,
            members=tuple(members),
            calibration=calibration,
            points=all_points(probabilities, truth, scheme, decide.operating_point),
            conformal=fit_conformal(logits, truth, scheme=scheme, confidence=decide.confidence),
            weights=tuple(map(float, weights)),
            families=tuple(families),
            intended_use=intended_use or IntendedUse.of(plan),
            data=dict(data or {}),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=current_versions(),
            device=next((p.device for m in members for p in m.parameters()), torch.device("cpu")),
        )
        if not references or decide.gate == "off":
            return model
        if len(references) != len(model.members):
            raise DataError(f"{len(references)} sets of reference cases for {len(model.members)} networks")
        embeddings = [model.embed(m, arrays) for m, arrays in enumerate(references)]
        return replace(model, gate=fit_gate(embeddings, abstains=decide.gate == "abstain"))

    @property
    def label(self) -> str:
        """Name, format and checksum, as predictions carry them."""
        return label_of(self.name, self.checksum)

    @cached_property
    def task(self) -> Task:
        """The clinical question."""
        return make_task(self.plan)

    @property
    def operating_point(self) -> OperatingPoint:
        """The point that the plan names; the most probable class where validation could not choose it."""
        named = {p.name: p for p in self.points}
        return named.get(self.plan.decide.operating_point) or default_point(self.plan.scheme)

    def at(self, point: str) -> Model:
        """The same model that decides at another of its operating points.

        Raises
        ------
        ConfigError
            If the model holds no point of that name.
        """
        names = [p.name for p in self.points]
        if point not in names:
            raise ConfigError(f"the model has no operating point '{point}'. {nearest(point, names)}")
        decide = replace(self.plan.decide, operating_point=point)
        return replace(self, plan=replace(self.plan, decide=decide))

    @cached_property
    def predictor(self) -> Predictor:
        """What turns cases into predictions."""
        return Predictor(
            plan=self.plan,
            task=self.task,
            members=self.members,
            weights=self.weights,
            calibration=self.calibration,
            point=self.operating_point,
            conformal=self.conformal,
            gate=self.gate,
            label=self.label,
            device=self.device,
        )

    def predict(self, case: Case) -> Prediction:
        """The prediction of one case; see :meth:`sagittal.model.predictor.Predictor.predict`."""
        return self.predictor.predict(case)

    def predict_many(
        self,
        cases: Iterable[Case],
        *,
        batch: int | None = None,
        workers: int | None = None,
        reporter: Reporter | None = None,
    ) -> Iterator[Prediction | Failure]:
        """Predictions in the order of the cases, in bounded memory; a bad case gives a Failure and the rest go on."""
        return self.predictor.predict_many(cases, batch=batch, workers=workers, reporter=reporter)

    def logits(self, arrays: Array, tables: Array | None = None, *, batch: int | None = None) -> Floats:
        """Mean logits of the members before calibration, (N, C) float64, of prepared arrays (N, C, *size)."""
        return self.predictor.logits(arrays, tables, batch=batch)

    def embed(self, member: int, arrays: Array, *, batch: int | None = None) -> Floats:
        """Embeddings (N, F) float32 of prepared arrays by one member."""
        return self.predictor.embed(member, arrays, batch=batch)

    def to(self, device: str) -> Model:
        """The model on a device: ``cpu``, ``cuda``, ``cuda:1``, or ``auto`` for the best there is."""
        place = pick_device(device)
        if place == self.device:
            return self
        return replace(self, members=tuple(m.to(place) for m in self.members), device=place)

    # On disk

    def save(self, path: str | Path, *, overwrite: bool = False) -> Model:
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
            "calibration.json": archive.json_bytes(self.calibration.to_json()),
            "operating.json": archive.json_bytes({"points": [p.to_json() for p in self.points]}),
            "data.json": archive.json_bytes(dict(self.data)),
            "README.md": (self.card or short_card(self)).encode("utf-8"),
        }
        if self.conformal is not None:
            files["conformal.json"] = archive.json_bytes(self.conformal.to_json())
        files |= member_files(self.members) | gate_files(self.gate)
        index = Index(
            self.name, self.plan.task, self.created, self.weights, self.families, self.intended_use, self.versions
        )
        sealed, checksum = archive.with_index(files, index.to_json())
        archive.write_files(Path(path), sealed, overwrite=overwrite)
        return replace(self, checksum=checksum)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Model:
        """Read a model; nothing is parsed before its checksum was verified, and nothing is ever executed.

        Parameters
        ----------
        path : str or Path
            A folder or a ``.sagittal`` file.
        device : str
            ``cpu``, ``cuda``, ``cuda:1``, or ``auto``.

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
    ) -> Model:
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
    def _from_files(cls, files: Mapping[str, bytes], checksum: str, device: torch.device) -> Model:
        index, plan = Index.from_json(read_entry(files, archive.INDEX)), Plan.from_json(read_entry(files, "plan.json"))
        if plan.task in PLACE_TASKS:
            raise PackageError(f"is a model of another kind: it answers '{plan.task}'. Load it by sagittal.load_model")
        try:
            points = tuple(OperatingPoint.from_json(p) for p in read_entry(files, "operating.json")["points"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, PackageError):
                raise
            raise PackageError(f"operating.json misses an entry: {error}") from error
        networks = read_members(plan, files, index.families, make_task(plan).head)
        classes = len(plan.scheme.classes)
        if any(len(p.thresholds) != classes for p in points):
            raise PackageError(f"operating.json: thresholds do not fit {classes} classes")
        conformal = Conformal.from_json(read_entry(files, "conformal.json")) if "conformal.json" in files else None
        if conformal is not None and len(conformal.thresholds) != classes:
            raise PackageError(f"conformal.json: thresholds do not fit {classes} classes")
        return cls(
            name=index.name,
            plan=plan,
            members=tuple(cast(Network, network.to(device)) for network in networks),
            calibration=Calibration.from_json(read_entry(files, "calibration.json")),
            points=points,
            conformal=conformal,
            gate=read_gate(files, len(index.families)),
            weights=index.weights,
            families=index.families,
            intended_use=index.intended_use,
            data=read_entry(files, "data.json"),
            card=files.get("README.md", b"").decode("utf-8", errors="replace"),
            created=index.created,
            versions=index.versions,
            checksum=checksum,
            device=device,
        )


def short_card(model: Model) -> str:
    """The model's card in Markdown, from what the package itself knows."""
    plan = model.plan
    facts = (
        f"networks: {len(model.members)} of {plan.network.name}, input {' x '.join(map(str, plan.prepare.size))}",
        f"calibration: {model.calibration.method} on {model.calibration.cases} validation cases",
        f"operating point: {model.operating_point.name}",
        f"seed: {plan.seed}",
        f"made {model.created} with " + ", ".join(f"{k} {v}" for k, v in model.versions.items()),
    )
    return plain_card(model.name, "A classifier", model.intended_use, facts, model.data)
