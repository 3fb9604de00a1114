"""Looking at a configuration before it is used: what keeps the service from starting, and what is unwise."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from sagittal.errors import ConfigError, SagittalError
from sagittal.jobs.packages import read_package
from sagittal.serve.config import Config, is_loopback
from sagittal.serve.listen import tls_context
from sagittal.serve.service import make_provider

#: Seconds that another machine has to answer.
_REACH_S = 3.0


@dataclass(frozen=True)
class Finding:
    """Something to mend.

    Parameters
    ----------
    level : {"error", "warning"}
        Whether the service would not start.
    where : str
        Table and key.
    text : str
        What was found, what was expected, what to do.
    """

    level: Literal["error", "warning"]
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.text}"


def check_config(config: Config, *, reach: bool = True) -> list[Finding]:
    """Everything that is wrong or unwise, found at once; errors first.

    Parameters
    ----------
    config : Config
    reach : bool
        Whether ports are tried and other machines called.
    """
    found = [*_exposure(config), *_files(config), *_models(config)]
    if reach:
        found += [*_ports(config), *_peers(config)]
    return sorted(found, key=lambda one: one.level)


def refuse_exposure(config: Config, administrators: int) -> None:
    """Refuse to open a port to other machines before anyone can be told from anyone (CVE-2025-0896).

    Parameters
    ----------
    administrators : int
        That there are.

    Raises
    ------
    ConfigError
        If the address is not of this machine only and there is neither TLS nor a trusted proxy, or no administrator yet.
    """
    server = config.server
    if server.is_local:
        return
    if server.tls_certificate is None and not server.trusted_proxies:
        raise ConfigError(
            f"server.host = '{server.host}' opens the service to other machines, and passwords and patients' data would "
            "travel readably. Give server.tls_certificate and tls_key, or name the proxy that ends TLS in "
            "server.trusted_proxies, or listen on 127.0.0.1."
        )
    if not administrators:
        raise ConfigError(
            f"server.host = '{server.host}' opens the service to other machines, and it has no administrator yet. Make one "
            "first: sagittal users add NAME --role administrator (with the same --config or --data)"
        )


def _exposure(config: Config) -> Iterator[Finding]:
    server, dicom = config.server, config.dicom
    if not server.is_local:
        if server.tls_certificate is None and not server.trusted_proxies:
            yield Finding(
                "error", "server.host", f"'{server.host}' is reached from other machines: TLS or a proxy is needed"
            )
        if server.host in ("0.0.0.0", "::"):  # noqa: S104
            yield Finding(
                "warning", "server.host", f"'{server.host}' listens on every network of this machine; name one"
            )
        if not server.public_url:
            yield Finding("warning", "server.public_url", "is not set; links in results and OIDC need it")
    if server.public_url.startswith("http://") and not is_loopback(urlsplit(server.public_url).hostname or ""):
        yield Finding("warning", "server.public_url", "is http: browsers would send passwords readably")
    if dicom.port:
        outside = not is_loopback(config.dicom_host)
        if outside and not dicom.tls:
            yield Finding("warning", "dicom.tls", "is off: images travel readably between machines")
        if dicom.allow_unknown:
            yield Finding(
                "warning", "dicom.allow_unknown", "everyone who reaches the port may send; name the peers instead"
            )
        elif outside and not dicom.peers:
            yield Finding("warning", "dicom.peers", "is empty: no other machine may send")
    for one in config.destination:
        kind, name = str(one.get("kind", "")), str(one.get("name", ""))
        if kind == "dicom" and not one.get("tls") and not is_loopback(str(one.get("host", ""))):
            yield Finding("warning", f"destination '{name}'", "sends without TLS")
    for pacs in config.pacs:
        if not pacs.tls and not is_loopback(pacs.host):
            yield Finding("warning", f"pacs '{pacs.name}'", "is asked without TLS")
    if not config.model:
        yield Finding("warning", "model", "there is none: studies are stored and not answered")
    for entry in config.model:
        if entry.role == "answers" and not entry.to:
            yield Finding("warning", f"model '{entry.name or entry.path}'", "its results go nowhere: 'to' is empty")


def _files(config: Config) -> Iterator[Finding]:
    server = config.server
    if server.tls_certificate is not None:
        yield from _tried(
            "server.tls_certificate", lambda: tls_context(server.tls_certificate or Path(), server.tls_key)
        )
        yield from _private("server.tls_key", server.tls_key)
    for name in ("certificate", "key", "ca"):
        path = getattr(config.dicom, name)
        if path is not None and not path.is_file():
            yield Finding("error", f"dicom.{name}", f"{path} is not a file")
    yield from _private("dicom.key", config.dicom.key)
    yield from _tried("oidc", lambda: make_provider(config))
    yield from _private("oidc.client_secret_file", config.oidc.client_secret_file)
    yield from _tried("server.database_file", lambda: server.database_url)
    place = server.data
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK):
        yield Finding("error", "server.data", f"{server.data} cannot be written")
    else:
        free = shutil.disk_usage(place).free
        if free < config.limits.disk_reserve_bytes:
            yield Finding(
                "error",
                "limits.disk_reserve",
                f"{free / 2**30:.1f} GiB are free, less than the reserve: nothing would be taken",
            )
        elif free < 2 * config.limits.disk_reserve_bytes:
            yield Finding("warning", "server.data", f"only {free / 2**30:.1f} GiB are free on its disk")
    for watch in config.watch:
        if not watch.folder.is_dir():
            yield Finding("error", "watch.folder", f"{watch.folder} is not a folder")


def _models(config: Config) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for entry in config.model:
        try:
            model = read_package(entry)
        except (SagittalError, OSError) as error:
            yield Finding("error", f"model '{entry.name or entry.path}'", str(error))
            continue
        if model.label in seen:
            yield Finding("error", f"model '{model.name}'", "the same version is named twice")
        seen[model.label] = entry.path


def _ports(config: Config) -> Iterator[Finding]:
    for where, host, port in (
        ("server.port", config.server.host, config.server.port),
        ("dicom.port", config.dicom_host, config.dicom.port),
    ):
        if not port:
            continue
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            socket.create_server((host, port), family=family).close()
        except OSError as error:
            yield Finding("error", where, f"{host} port {port} cannot be had ({error.strerror})")


def _peers(config: Config) -> Iterator[Finding]:
    """Other machines that do not answer: a warning, for they may be away for a while."""
    targets: list[tuple[str, str, int]] = [(f"pacs '{one.name}'", one.host, one.port) for one in config.pacs]
    for one in config.destination:
        target = _target(one)
        if target is not None:
            targets.append((f"destination '{one.get('name', '')}'", *target))
    for where, host, port in targets:
        try:
            socket.create_connection((host, port), timeout=_REACH_S).close()
        except OSError as error:
            yield Finding("warning", where, f"{host} port {port} does not answer ({error.strerror or 'no answer'})")


def _target(destination: Mapping[str, Any]) -> tuple[str, int] | None:
    """Host and port of a destination, where it has one."""
    if isinstance(destination.get("host"), str) and isinstance(destination.get("port"), int):
        return destination["host"], destination["port"]
    parts = urlsplit(str(destination.get("url", "")))
    if not parts.hostname:
        return None
    return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _tried(where: str, attempt: Callable[[], object]) -> Iterator[Finding]:
    try:
        attempt()
    except ConfigError as error:
        yield Finding("error", where, str(error))


def _private(where: str, path: Path | None) -> Iterator[Finding]:
    """A secret that others of this machine can read."""
    if path is not None and os.name == "posix" and path.is_file() and path.stat().st_mode & 0o077:
        yield Finding("warning", where, f"{path} can be read by other users of this machine: chmod 600")
