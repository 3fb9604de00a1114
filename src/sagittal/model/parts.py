"""Parts that every package has, whatever its question: intended use, networks, gate, versions."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sagittal import __version__
from sagittal.errors import PackageError, SagittalError, nearest
from sagittal.model import archive
from sagittal.model.gate import Gate
from sagittal.networks.heads import Head, build_network
from sagittal.networks.pretrained import TransformersEncoder
from sagittal.prepare.arrays import table_width
from sagittal.prepare.plan import NetworkPlan, Plan

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


def architecture(encoder: TransformersEncoder) -> dict[str, Any]:
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


def check_weights(weights: Sequence[float], networks: int) -> tuple[float, ...]:
    """The weights of the average over networks; equal ones where none are given.

    Raises
    ------
    PackageError
        If there are no networks, or the weights do not fit them or do not sum to 1.
    """
    if not networks:
        raise PackageError("a model needs at least one network")
    given = tuple(weights) or (1 / networks,) * networks
    if len(given) != networks or abs(sum(given) - 1) > 1e-6 or min(given) < 0:
        raise PackageError(f"{networks} networks need as many weights, not negative, with the sum 1: {given}")
    return given


def label_of(name: str, checksum: str) -> str:
    """Name, format and checksum of a model, as predictions carry them."""
    seal = f", sha256 {checksum[:16]}" if checksum else ", not saved"
    return f"{name} (format {archive.FORMAT}{seal})"


@dataclass(frozen=True)
class Index:
    """What ``model.json`` says of a model beside the list of its files.

    Parameters
    ----------
    name, task, created : str
    weights, families : one a network
    intended_use : IntendedUse
    versions : mapping of str to str
    """

    name: str
    task: str
    created: str
    weights: tuple[float, ...]
    families: tuple[int, ...]
    intended_use: IntendedUse
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "sagittal": self.versions.get("sagittal", __version__),
            "created": self.created,
            "task": self.task,
            "members": [{"family": f, "weight": w} for f, w in zip(self.families, self.weights, strict=True)],
            "versions": dict(self.versions),
            "intended_use": asdict(self.intended_use),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Index:
        """Check and read plain values.

        Raises
        ------
        PackageError
            If one is missing or of the wrong kind.
        """
        try:
            return cls(
                name=str(values["name"]),
                task=str(values.get("task", "")),
                created=str(values.get("created", "")),
                weights=tuple(float(m["weight"]) for m in values["members"]),
                families=tuple(int(m["family"]) for m in values["members"]),
                intended_use=IntendedUse.from_json(values["intended_use"]),
                versions={str(k): str(v) for k, v in values["versions"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, PackageError):
                raise
            raise PackageError(f"{archive.INDEX} misses an entry: {error}") from error


def read_entry(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """A JSON file of a package.

    Raises
    ------
    PackageError
        If it is missing or damaged.
    """
    if name not in files:
        raise PackageError(f"the file {name!r} is missing")
    return archive.parse_json(files[name], name)


@contextmanager
def building(where: str) -> Iterator[None]:
    """Name the package in whatever keeps its model from being built."""
    try:
        yield
    except PackageError as error:
        raise PackageError(f"{where}: {error}") from error
    except SagittalError as error:
        raise PackageError(f"{where}: the model cannot be built: {error}") from error


def plain_card(name: str, kind: str, use: IntendedUse, facts: Sequence[str], data: Mapping[str, Any]) -> str:
    """A model's card in Markdown: its kind (``A classifier``), intended use, a list of facts and its training data."""
    rows = [f"| {key.replace('_', ' ')} | {_shown(value)} |" for key, value in asdict(use).items()]
    lines = [
        f"# {name}",
        "",
        f"{kind} made with Sagittal. It is not a medical device.",
        "",
        "| intended use | |",
        "|---|---|",
        *rows,
        "",
        *(f"- {fact}" for fact in facts),
        "",
        "```json",
        json.dumps(dict(data), indent=1, ensure_ascii=False),
        "```",
        "",
    ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{low:g} to {high:g}" for low, high in value) or NOT_STATED
    return str(value).replace("|", "/").replace("\n", " ")


def member_files(members: Sequence[nn.Module]) -> dict[str, bytes]:
    """The weights of each network, and what an architecture from elsewhere is built from."""
    from safetensors.torch import save

    files = {}
    for n, member in enumerate(members):
        state = {k: v.detach().cpu().contiguous().clone() for k, v in member.state_dict().items()}
        files[f"weights-{n}.safetensors"] = save(state)
        if isinstance(member.encoder, TransformersEncoder):
            files[f"encoder-{n}.json"] = archive.json_bytes(architecture(member.encoder))
    return files


def read_members(plan: Plan, files: Mapping[str, bytes], families: Sequence[int], head: Head) -> list[nn.Module]:
    """The networks of a package, in eval mode, with the weights of its files.

    Raises
    ------
    PackageError
        If a file is missing or too many, or does not fit its network.
    """
    weights = {f for f in files if f.startswith("weights-")}
    if not set(families) <= set(range(len(plan.families))):
        raise PackageError(f"{archive.INDEX}: names a family of networks that plan.json does not hold")
    if not families or weights != {f"weights-{n}.safetensors" for n in range(len(families))}:
        raise PackageError(
            f"{archive.INDEX} states {len(families)} networks, there are {len(weights)} files of weights"
        )
    return [_member(plan.families[family], files, n, head) for n, family in enumerate(families)]


def gate_files(gate: Gate | None) -> dict[str, bytes]:
    """The files of a gate; none without one."""
    from safetensors.torch import save

    if gate is None:
        return {}
    values, arrays = gate.to_parts()
    tensors = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in arrays.items()}
    return {"gate.json": archive.json_bytes(values), "gate.safetensors": save(tensors)}


def read_gate(files: Mapping[str, bytes], networks: int) -> Gate | None:
    """The gate that :func:`gate_files` wrote.

    Raises
    ------
    PackageError
        If it is damaged or knows another number of networks.
    """
    if "gate.json" not in files:
        return None
    arrays = read_tensors(files.get("gate.safetensors", b""), "gate.safetensors")
    gate = Gate.from_parts(
        archive.parse_json(files["gate.json"], "gate.json"), {k: v.numpy() for k, v in arrays.items()}
    )
    if len(gate.spaces) != networks:
        raise PackageError(f"gate.json: knows {len(gate.spaces)} networks of {networks}")
    return gate


def _member(plan: Plan, files: Mapping[str, bytes], number: int, head: Head) -> nn.Module:
    name = f"weights-{number}.safetensors"
    state = read_tensors(files[name], name)
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
