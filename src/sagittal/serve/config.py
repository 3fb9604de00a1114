"""The configuration of the service: one TOML file; the environment and flags stand above it.

Nothing has to be configured: ``sagittal serve MODEL`` listens on this machine only, keeps its files in one folder and
takes studies from programs of this machine.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from sagittal.archive.retention import Keep
from sagittal.deliver.destinations import Destination, DicomPeer, parse_destination
from sagittal.errors import ConfigError, nearest
from sagittal.jobs.rules import ModelEntry
from sagittal.node.options import Dicom
from sagittal.serve.settings import Problems, read_table
from sagittal.serve.tables import (
    Access,
    Completeness,
    Integrity,
    Limits,
    MetricsAccess,
    Oidc,
    Page,
    Server,
    Watch,
    is_loopback,
    read_secret,
)

__all__ = [
    "Access",
    "Completeness",
    "Config",
    "Dicom",
    "Integrity",
    "Limits",
    "MetricsAccess",
    "Oidc",
    "Page",
    "Server",
    "Watch",
    "is_loopback",
    "read_config",
    "read_secret",
    "to_values",
]

T = TypeVar("T")

#: What variables of the environment begin with: ``SAGITTAL_SERVE__DICOM__PORT=11112``.
PREFIX = "SAGITTAL_SERVE__"


@dataclass(frozen=True)
class Config:
    """Everything that the service was told; the tables of the file by name.

    Parameters
    ----------
    server : Server
    dicom : Dicom
    limits : Limits
    completeness : Completeness
    access : Access
    page : Page
    metrics : MetricsAccess
    oidc : Oidc
    integrity : Integrity
    model : tuple of ModelEntry
    destination : tuple of mapping
        As the file has them, each checked; `destinations` are what they mean.
    pacs : tuple of DicomPeer
        Where studies and priors can be fetched.
    watch : tuple of Watch
    retention : tuple of Keep
    """

    server: Server = field(default_factory=Server)
    dicom: Dicom = field(default_factory=Dicom)
    limits: Limits = field(default_factory=Limits)
    completeness: Completeness = field(default_factory=Completeness)
    access: Access = field(default_factory=Access)
    page: Page = field(default_factory=Page)
    metrics: MetricsAccess = field(default_factory=MetricsAccess)
    oidc: Oidc = field(default_factory=Oidc)
    integrity: Integrity = field(default_factory=Integrity)
    model: tuple[ModelEntry, ...] = ()
    destination: tuple[Mapping[str, Any], ...] = ()
    pacs: tuple[DicomPeer, ...] = ()
    watch: tuple[Watch, ...] = ()
    retention: tuple[Keep, ...] = ()

    @property
    def dicom_host(self) -> str:
        """Where the DICOM node listens."""
        return self.dicom.host or self.server.host

    @property
    def destinations(self) -> tuple[Destination, ...]:
        """Where results go.

        Raises
        ------
        ConfigError
            If one of them is wrong.
        """
        return tuple(parse_destination(one) for one in self.destination)


def read_config(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    models: Sequence[str] = (),
) -> Config:
    """The configuration from a file, with the environment and flags above it.

    Parameters
    ----------
    path : Path, optional
        TOML; defaults where not given.
    environment : mapping of str to str, optional
        ``SAGITTAL_SERVE__TABLE__KEY`` -> value; others are left alone.
    flags : mapping, optional
        ``"server.port"`` -> value; ``None`` for a flag that was not given.
    models : sequence of str
        Paths of models beside those of the file.

    Raises
    ------
    ConfigError
        With everything that is wrong, one line each.

    Examples
    --------
    >>> read_config(flags={"server.port": 9000}).server.port
    9000
    >>> read_config(environment={"SAGITTAL_SERVE__SERVER__PROT": "1"})
    Traceback (most recent call last):
    sagittal.errors.ConfigError: the configuration: server.prot: unknown key. Did you mean 'port'?
    """
    values = _read_file(path) if path is not None else {}
    problems = Problems()
    _lay_over(values, _from_environment(environment or {}, problems))
    for name, value in (flags or {}).items():
        if value is not None:
            table, _, key = name.partition(".")
            _lay_over(values, {table: {key: value}} if key else {table: value})
    _call_as(values)
    config = read_table(Config, values, "", problems)
    if config is not None:
        base = path.absolute().parent if path is not None else Path.cwd()
        config = _with_models(_below(config, base) if path is not None else config, models)
        _check_names(config, problems)
        config = replace(config, destination=_destinations(config, base, problems))
    if problems or config is None:
        where = path.name if path is not None else "the configuration"
        lines = [f"{where}: {problem}" for problem in problems]
        raise ConfigError(lines[0] if len(lines) == 1 else "\n".join([f"{len(lines)} things are wrong:", *lines]))
    return config


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    return values


def _call_as(values: dict[str, Any]) -> None:
    """Call others by the node's own title, where nothing else is said."""
    dicom = values.get("dicom")
    title = dicom.get("ae_title") if isinstance(dicom, dict) else None
    for one in (
        *_tables(values, "pacs"),
        *(one for one in _tables(values, "destination") if one.get("kind") == "dicom"),
    ):
        if isinstance(title, str):
            one.setdefault("calling_ae_title", title)


def _tables(values: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = values.get(name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _below(value: T, base: Path) -> T:
    """A configuration whose paths are those of the file's folder, wherever the service is started."""
    if isinstance(value, Path):
        return cast("T", base / value)
    if isinstance(value, tuple):
        return cast("T", tuple(_below(one, base) for one in value))
    if isinstance(value, ModelEntry):
        return cast("T", replace(value, path=str(base / value.path)))
    if hasattr(value, "__dataclass_fields__"):
        made: Any = value
        return cast("T", replace(made, **{one.name: _below(getattr(made, one.name), base) for one in fields(made)}))
    return value


def _destinations(config: Config, base: Path, problems: Problems) -> tuple[Mapping[str, Any], ...]:
    """The destinations as they were written, with whole paths; what is wrong with them is told."""
    made = []
    for values in config.destination:
        try:
            parsed = parse_destination(values, folder=base)
        except ConfigError as error:
            problems.add("", str(error))
            continue
        paths = {key: str(getattr(parsed, key)) for key in values if isinstance(getattr(parsed, key, None), Path)}
        made.append({**values, **paths})
    return tuple(made)


def _from_environment(environment: Mapping[str, str], problems: Problems) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in sorted(environment.items()):
        if not name.startswith(PREFIX):
            continue
        parts = name.removeprefix(PREFIX).lower().split("__")
        if len(parts) != 2 or not all(parts):
            problems.add(name, f"expected {PREFIX}TABLE__KEY")
            continue
        values.setdefault(parts[0], {})[parts[1]] = _parse(text)
    return values


def _parse(text: str) -> Any:
    """A value as TOML would read it; a text where it reads as nothing else."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _lay_over(values: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _lay_over(values[key], value)
        else:
            values[key] = dict(value) if isinstance(value, Mapping) else value


def _with_models(config: Config, models: Sequence[str]) -> Config:
    """With the models of the command line; results go to every destination unless the file says otherwise."""
    known = {Path(entry.path).absolute() for entry in config.model}
    everywhere = tuple(str(one.get("name", "")) for one in config.destination)
    added = tuple(ModelEntry(path, to=everywhere) for path in models if Path(path).absolute() not in known)
    return replace(config, model=config.model + added)


def _check_names(config: Config, problems: Problems) -> None:
    """Names that are used must be those that were given, each once."""
    destinations = [str(one.get("name", "")) for one in config.destination]
    for table, names in (("destination", destinations), ("pacs", [one.name for one in config.pacs])):
        for name in sorted({name for name in names if names.count(name) > 1}):
            problems.add(table, f"two have the name '{name}'")
    for entry in config.model:
        for name in entry.to:
            if name not in destinations:
                problems.add("model.to", f"there is no destination '{name}'. {nearest(name, destinations)}")
    if config.oidc.issuer and not config.server.public_url:
        problems.add("oidc", "needs server.public_url, to which the provider sends browsers back")


def to_values(config: Any) -> Any:
    """A configuration as JSON can hold it, without its secrets."""
    if hasattr(config, "__dataclass_fields__"):
        return {
            one.name: "(set)"
            if one.name == "token" and getattr(config, one.name)
            else to_values(getattr(config, one.name))
            for one in fields(config)
        }
    if isinstance(config, Mapping):
        hidden = ("secret", "password", "token", "key")
        return {key: "(set)" if key in hidden and value else to_values(value) for key, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_values(one) for one in config]
    return str(config) if isinstance(config, os.PathLike) else config
