"""What a model's package says of itself, read without torch: name, checksum, intended use, inputs, classes.

The process that serves pages must not load torch; models live in processes of their own. What it needs to know of a model
it reads here, from files whose checksums were verified.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagittal.errors import ConfigError, PackageError
from sagittal.jobs.rules import ModelEntry, Use
from sagittal.model import archive
from sagittal.model.find import find_model

_NOT_STATED = "not stated"


@dataclass(frozen=True)
class ServedModel:
    """A model that the service has: what its file says, and what its package says.

    Parameters
    ----------
    entry : ModelEntry
    name : str
    checksum : str
        SHA-256 of the package.
    path : Path
        Of the package.
    task : str
        ``classify``, ``segment``, ``detect``.
    classes : tuple of str
    use : Use
    intended_use : mapping
        As the package has it, for people.
    size : tuple of int
        Spatial size of the network's input.
    store : str
        Type of prepared arrays: ``uint8``, ``float16``, ``float32``.
    channels : int
    unit : str
    columns : tuple of str
        Clinical columns that it asks for.
    created : str
    bytes : int
        Of its files.
    """

    entry: ModelEntry
    name: str
    checksum: str
    path: Path
    task: str
    classes: tuple[str, ...]
    use: Use
    intended_use: Mapping[str, Any]
    size: tuple[int, ...]
    store: str
    channels: int
    unit: str
    columns: tuple[str, ...]
    created: str
    bytes: int

    @property
    def version(self) -> str:
        """The first sixteen digits of its checksum, as results carry them."""
        return self.checksum[:16]

    @property
    def label(self) -> str:
        """Name and version, unique among the models of a service."""
        return f"{self.name} {self.checksum[:12]}"

    @property
    def answers(self) -> bool:
        """Whether its results are shown as the answer."""
        return self.entry.role == "answers"

    @property
    def instant(self) -> bool:
        """Whether it answers single pictures with classes, which needs no job."""
        return self.task == "classify" and self.use.dimensions == 2 and len(self.use.images) == 1


def read_package(entry: ModelEntry) -> ServedModel:
    """What a package says of itself.

    Raises
    ------
    ConfigError
        If there is no model at that path.
    PackageError
        If it is damaged, unsafe or of a newer format.
    """
    path = find_model(Path(entry.path))
    files, checksum = archive.read_files(path)
    index = archive.parse_json(files[archive.INDEX], archive.INDEX)
    if "plan.json" not in files:
        raise PackageError(f"{path.name}: the file 'plan.json' is missing")
    plan = archive.parse_json(files["plan.json"], "plan.json")
    try:
        given, use = plan["input"], index["intended_use"]
        return ServedModel(
            entry=entry,
            name=entry.name or str(index["name"]),
            checksum=checksum,
            path=path.resolve(),
            task=str(plan["task"]),
            classes=tuple(str(one) for one in plan["scheme"]["classes"]),
            use=Use(
                modality=str(use.get("modality", "OT")),
                body_part="" if use.get("body_part", _NOT_STATED) == _NOT_STATED else str(use["body_part"]),
                dimensions=int(given["dimensions"]),
                size=tuple((float(low), float(high)) for low, high in use.get("size", ())),
                spacing_mm=tuple((float(low), float(high)) for low, high in use.get("spacing_mm", ())),
                images=tuple(str(one) for one in given["images"]),
            ),
            intended_use=dict(use),
            size=tuple(int(n) for n in plan["prepare"]["size"]),
            store=str(plan["prepare"]["store"]),
            channels=int(given["channels"]),
            unit=str(given["unit"]),
            columns=tuple(str(column["name"]) for column in given["table"]),
            created=str(index.get("created", "")),
            bytes=sum(map(len, files.values())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackageError(f"{path.name}: its plan or index misses an entry: {error}") from error


def read_packages(entries: list[ModelEntry] | tuple[ModelEntry, ...]) -> tuple[ServedModel, ...]:
    """The models of a service, checked against each other and against their rules.

    Raises
    ------
    ConfigError
        If one is named twice in the same version, two versions of one name answer, or a rule names an input that its model
        does not have.
    PackageError
        As :func:`read_package`.
    """
    models = tuple(read_package(entry) for entry in entries)
    seen: set[tuple[str, str]] = set()
    answering: dict[str, str] = {}
    for model in models:
        if (model.name, model.checksum) in seen:
            raise ConfigError(f"the model '{model.name}' is listed twice in the same version ({model.version})")
        seen.add((model.name, model.checksum))
        if model.answers and answering.setdefault(model.name, model.checksum) != model.checksum:
            raise ConfigError(
                f"two versions of the model '{model.name}' have role = \"answers\". Let one of them watch, or give it "
                "another name."
            )
        _check_inputs(model)
    return models


def _check_inputs(model: ServedModel) -> None:
    named = {rule.image for rule in model.entry.series if rule.image}
    if unknown := sorted(named - set(model.use.images)):
        raise ConfigError(
            f"model '{model.name}': a rule is for the image '{unknown[0]}'; the model takes {', '.join(model.use.images)}"
        )
    if len(model.use.images) > 1 and (missing := [name for name in model.use.images if name not in named]):
        raise ConfigError(
            f"model '{model.name}' takes {', '.join(model.use.images)}; a [[model.series]] with image = \"{missing[0]}\" "
            "must say which series that is"
        )
