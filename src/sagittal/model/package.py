"""Package: a trained model with everything that its use needs, on disk and in memory."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sagittal import __version__
from sagittal.case import Case
from sagittal.errors import ConfigError, DataError, PackageError, SagittalError, nearest
from sagittal.model import archive
from sagittal.model.calibrate import Calibration, fit_calibration, link_of, to_probabilities
from sagittal.model.conformal import Conformal, fit_conformal
from sagittal.model.device import pick_device
from sagittal.model.gate import Gate, fit_gate
from sagittal.model.operating import OperatingPoint, all_points, default_point
from sagittal.model.predictor import Predictor
from sagittal.networks.heads import Network, build_network
from sagittal.networks.pretrained import TransformersEncoder
from sagittal.prediction import Failure, Prediction
from sagittal.prepare.arrays import table_width
from sagittal.prepare.plan import NetworkPlan, Plan
from sagittal.progress import Reporter
from sagittal.tasks.registry import make_task
from sagittal.tasks.task import Task
from sagittal.types import Array, Floats

#: Element types that weights may have, and their bytes.
DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}

NOT_STATED = "not stated"

#: Entries of a transformers configuration that name code, paths or other formats of weights.
_NOT_ARCHITECTURE = {"auto_map", "_name_or_path", "name_or_path", "quantization_config", "custom_pipelines"}


@dataclass(frozen=True)
class IntendedUse:
    """What the model was made for, in words and ranges that a person and a gate can check.

    Sizes are in voxels and spacings in mm, as (lowest, highest) for each array axis of the training studies; empty where
    not known.
    """

    question: str = NOT_STATED
    modality: str = "OT"
    body_part: str = NOT_STATED
    unit: str = "1"
    dimensions: int = 2
    channels: int = 1
    size: tuple[tuple[float, float], ...] = ()
    spacing_mm: tuple[tuple[float, float], ...] = ()
    population: str = NOT_STATED
    indication: str = NOT_STATED
    user: str = NOT_STATED
    exclusions: str = NOT_STATED

    @classmethod
    def of(cls, plan: Plan, **known: Any) -> IntendedUse:
        """What the plan says, and further fields where known."""
        classes = ", ".join(plan.scheme.classes)
        return cls(
            **{
                "question": f"{plan.scheme.target}: {classes} ({plan.scheme.kind})",
                "modality": plan.input.modality,
                "body_part": plan.input.body_part or NOT_STATED,
                "unit": plan.input.unit,
                "dimensions": plan.input.dimensions,
                "channels": plan.input.channels,
                **known,
            }
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> IntendedUse:
        """Check and read plain values."""
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                raise PackageError(f"intended use: unknown key '{key}'. {nearest(key, known)}")
        try:
            ranges = {
                key: tuple((float(low), float(high)) for low, high in values.get(key, ()))
                for key in ("size", "spacing_mm")
            }
        except (TypeError, ValueError) as error:
            raise PackageError(f"intended use: sizes and spacings are pairs of numbers: {error}") from error
        return cls(**{**values, **ranges})


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
        if not count:
            raise PackageError("a model needs at least one network")
        if not self.weights:
            object.__setattr__(self, "weights", (1 / count,) * count)
        if not self.families:
            object.__setattr__(self, "families", (0,) * count)
        if len(self.weights) != count or abs(sum(self.weights) - 1) > 1e-6 or min(self.weights) < 0:
            raise PackageError(f"{count} networks need as many weights, not negative, with the sum 1: {self.weights}")
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
        seal = f", sha256 {self.checksum[:16]}" if self.checksum else ", not saved"
        return f"{self.name} (format {archive.FORMAT}{seal})"

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
        from safetensors.torch import save

        files = {
            "plan.json": archive.json_bytes(self.plan.to_json()),
            "calibration.json": archive.json_bytes(self.calibration.to_json()),
            "operating.json": archive.json_bytes({"points": [p.to_json() for p in self.points]}),
            "data.json": archive.json_bytes(dict(self.data)),
            "README.md": (self.card or short_card(self)).encode("utf-8"),
        }
        for n, member in enumerate(self.members):
            state = {k: v.detach().cpu().contiguous().clone() for k, v in member.state_dict().items()}
            files[f"weights-{n}.safetensors"] = save(state)
            if isinstance(member.encoder, TransformersEncoder):
                files[f"encoder-{n}.json"] = archive.json_bytes(_architecture(member.encoder))
        if self.conformal is not None:
            files["conformal.json"] = archive.json_bytes(self.conformal.to_json())
        if self.gate is not None:
            values, arrays = self.gate.to_parts()
            files["gate.json"] = archive.json_bytes(values)
            files["gate.safetensors"] = save({k: torch.from_numpy(np.array(v, np.float32)) for k, v in arrays.items()})
        index = {
            "name": self.name,
            "sagittal": self.versions.get("sagittal", __version__),
            "created": self.created,
            "task": self.plan.task,
            "members": [{"family": f, "weight": w} for f, w in zip(self.families, self.weights, strict=True)],
            "versions": dict(self.versions),
            "intended_use": asdict(self.intended_use),
        }
        sealed, checksum = archive.with_index(files, index)
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
        path, place = Path(path), pick_device(device)
        files, checksum = archive.read_files(path)
        try:
            return cls._from_files(files, checksum, place)
        except PackageError as error:
            raise PackageError(f"{path.name}: {error}") from error
        except SagittalError as error:
            raise PackageError(f"{path.name}: the model cannot be built: {error}") from error

    @classmethod
    def _from_files(cls, files: Mapping[str, bytes], checksum: str, device: torch.device) -> Model:
        def read(name: str) -> dict[str, Any]:
            if name not in files:
                raise PackageError(f"the file {name!r} is missing")
            return archive.parse_json(files[name], name)

        index = archive.parse_json(files[archive.INDEX], archive.INDEX)
        plan = Plan.from_json(read("plan.json"))
        try:
            count, name = len(index["members"]), str(index["name"])
            shares = tuple(float(m["weight"]) for m in index["members"])
            families = tuple(int(m["family"]) for m in index["members"])
            use = IntendedUse.from_json(index["intended_use"])
            points = tuple(OperatingPoint.from_json(p) for p in read("operating.json")["points"])
            versions = {str(k): str(v) for k, v in index["versions"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, PackageError):
                raise
            raise PackageError(f"{archive.INDEX} or operating.json misses an entry: {error}") from error
        weights = {f for f in files if f.startswith("weights-")}
        if not set(families) <= set(range(len(plan.families))):
            raise PackageError(f"{archive.INDEX}: names a family of networks that plan.json does not hold")
        if count < 1 or weights != {f"weights-{n}.safetensors" for n in range(count)}:
            raise PackageError(f"{archive.INDEX} states {count} networks, there are {len(weights)} files of weights")
        classes = len(plan.scheme.classes)
        if any(len(p.thresholds) != classes for p in points):
            raise PackageError(f"operating.json: thresholds do not fit {classes} classes")
        conformal = Conformal.from_json(read("conformal.json")) if "conformal.json" in files else None
        if conformal is not None and len(conformal.thresholds) != classes:
            raise PackageError(f"conformal.json: thresholds do not fit {classes} classes")
        gate = None
        if "gate.json" in files:
            arrays = read_tensors(files.get("gate.safetensors", b""), "gate.safetensors")
            gate = Gate.from_parts(read("gate.json"), {k: v.numpy() for k, v in arrays.items()})
            if len(gate.spaces) != count:
                raise PackageError(f"gate.json: knows {len(gate.spaces)} networks of {count}")
        members = tuple(_member(plan.families[f], files, n).to(device) for n, f in enumerate(families))
        return cls(
            name=name,
            plan=plan,
            members=members,
            calibration=Calibration.from_json(read("calibration.json")),
            points=points,
            conformal=conformal,
            gate=gate,
            weights=shares,
            families=families,
            intended_use=use,
            data=read("data.json"),
            card=files.get("README.md", b"").decode("utf-8", errors="replace"),
            created=str(index.get("created", "")),
            versions=versions,
            checksum=checksum,
            device=device,
        )


def read_tensors(data: bytes, name: str) -> dict[str, Tensor]:
    """Tensors from verified safetensors bytes, after a check of their table of contents.

    Raises
    ------
    PackageError
        If they are anything else.
    """
    from safetensors.torch import load

    archive.check_tensors(data, name, DTYPES)
    try:
        state: dict[str, Tensor] = load(data)
    except Exception as error:  # safetensors' own error derives from Exception only
        raise PackageError(f"{name}: is not a safetensors file that can be read: {error}") from error
    return state


def _architecture(encoder: TransformersEncoder) -> dict[str, Any]:
    """The configuration that the transformers library builds an encoder from."""
    values: dict[str, Any] = json.loads(encoder.body.config.to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if key not in _NOT_ARCHITECTURE}


@contextmanager
def _self_contained(plan: NetworkPlan, files: Mapping[str, bytes], number: int) -> Iterator[NetworkPlan]:
    """The plan of a network, with the architecture from the package where it came from a folder or hub once."""
    if plan.name != "transformers":
        yield plan
        return
    name = f"encoder-{number}.json"
    if name not in files:
        raise PackageError(f"the file {name!r} is missing")
    if foreign := sorted(_NOT_ARCHITECTURE & set(archive.parse_json(files[name], name))):
        raise PackageError(f"{name}: holds '{foreign[0]}', which is no part of an architecture")
    with tempfile.TemporaryDirectory(prefix="sagittal-") as folder:
        (Path(folder) / "config.json").write_bytes(files[name])
        yield replace(plan, pretrained=f"folder:{folder}")


def _member(plan: Plan, files: Mapping[str, bytes], number: int) -> Network:
    name = f"weights-{number}.safetensors"
    state = read_tensors(files[name], name)
    head = make_task(plan).head
    # Building draws weights that are replaced at once.
    with torch.random.fork_rng(devices=[]), _self_contained(plan.network, files, number) as network_plan:
        network = build_network(
            network_plan,
            channels=plan.input.channels,
            dimensions=plan.input.dimensions,
            head=head,
            table=table_width(plan.input),
            weights=False,
        )
    expected = network.state_dict()
    if missing := sorted(set(expected) - set(state)):
        raise PackageError(f"{name}: has no tensor '{missing[0]}', which the network of plan.json needs")
    if extra := sorted(set(state) - set(expected)):
        raise PackageError(f"{name}: holds the tensor '{extra[0][:80]}', which the network of plan.json does not know")
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise PackageError(
                f"{name}: the tensor '{key}' has shape {tuple(value.shape)}, the network of plan.json needs "
                f"{tuple(expected[key].shape)}"
            )
    network.load_state_dict(state)
    if plan.input.dimensions == 2:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False)


def current_versions() -> dict[str, str]:
    """Versions of what makes and reads models on this machine."""
    import safetensors

    return {
        "sagittal": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
    }


def short_card(model: Model) -> str:
    """The model's card in Markdown, from what the package itself knows."""
    use, plan = model.intended_use, model.plan
    rows = [f"| {key.replace('_', ' ')} | {_shown(value)} |" for key, value in asdict(use).items()]
    lines = [
        f"# {model.name}",
        "",
        "A classifier made with Sagittal. It is not a medical device.",
        "",
        "| intended use | |",
        "|---|---|",
        *rows,
        "",
        f"- networks: {len(model.members)} of {plan.network.name}, input {' x '.join(map(str, plan.prepare.size))}",
        f"- calibration: {model.calibration.method} on {model.calibration.cases} validation cases",
        f"- operating point: {model.operating_point.name}",
        f"- seed: {plan.seed}",
        f"- made {model.created} with " + ", ".join(f"{k} {v}" for k, v in model.versions.items()),
        "",
        "```json",
        json.dumps(dict(model.data), indent=1, ensure_ascii=False),
        "```",
        "",
    ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{low:g} to {high:g}" for low, high in value) or NOT_STATED
    return str(value).replace("|", "/").replace("\n", " ")
