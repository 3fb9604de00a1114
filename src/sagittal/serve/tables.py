"""The tables of the service's file, each a frozen dataclass that is valid from its constructor on."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from sagittal.errors import ConfigError, nearest
from sagittal.node.options import check_port
from sagittal.protect.roles import check_role

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Server:
    """``[server]``: where pages and programs find the service, and where its files are.

    Parameters
    ----------
    host : str
        Address to listen on; this machine only where not given.
    port : int
        0 takes a free one.
    data : Path
        Folder of the archive, the database and results.
    database : str
        URL of SQLAlchemy; SQLite in `data` where empty. ``database_file`` names a file that holds it.
    database_file : Path, optional
    tls_certificate, tls_key : Path, optional
        PEM files; the certificate with its chain.
    public_url : str
        As browsers see the service, ``https://ai.hospital.example``; needed for OIDC.
    trusted_proxies : tuple of str
        Addresses or networks of proxies that end TLS; only they may say where a request came from.
    language : str
        Of pages and texts: ``en``, ``zh``.
    most_connections : int
        At a time; more are answered 503.
    stop_s : float, seconds
        Time that requests and jobs have to end when the service is stopped.
    """

    host: str = "127.0.0.1"
    port: int = 8042
    data: Path = Path("sagittal-data")
    database: str = ""
    database_file: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    public_url: str = ""
    trusted_proxies: tuple[str, ...] = ()
    language: str = "en"
    most_connections: int = 512
    stop_s: float = 20.0

    def __post_init__(self) -> None:
        check_port("port", self.port)
        if self.language not in LANGUAGES:
            raise ConfigError(
                f"language: {self.language!r} is none of those known. {nearest(self.language, LANGUAGES)}"
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("tls_certificate and tls_key belong together: one of them is missing")
        if self.public_url:
            parts = urlsplit(self.public_url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
                raise ConfigError(f"public_url: expected https://NAME, found {self.public_url!r}")
        for proxy in self.trusted_proxies:
            _check_network("trusted_proxies", proxy)
        if self.most_connections < 8:
            raise ConfigError(f"most_connections: at least 8 are needed, found {self.most_connections}")

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine can connect."""
        return is_loopback(self.host)

    @property
    def database_url(self) -> str:
        """The URL of the database.

        Raises
        ------
        ConfigError
            If the file that holds it cannot be read.
        """
        if self.database_file is not None:
            return read_secret(self.database_file, "server.database_file")
        return self.database or f"sqlite:///{(self.data / 'sagittal.db').absolute()}"


@dataclass(frozen=True)
class Limits:
    """``[limits]``: what is taken at most.

    Parameters
    ----------
    disk_reserve_bytes : int
        So much stays free: below, associations and uploads are refused.
    most_upload_bytes : int
        Of one request.
    most_unpacked_bytes, most_files : int
        Of one archive, counted while it is unpacked.
    """

    disk_reserve_bytes: int = 5 * 2**30
    most_upload_bytes: int = 4 * 2**30
    most_unpacked_bytes: int = 16 * 2**30
    most_files: int = 50_000


@dataclass(frozen=True)
class Completeness:
    """``[completeness]``: when a series is whole.

    Parameters
    ----------
    silence_s : float, seconds
        After its last image.
    commitment : bool
        Whether a request for storage commitment of all its images also says so.
    """

    silence_s: float = 30.0
    commitment: bool = True


@dataclass(frozen=True)
class Watch:
    """``[[watch]]``: a folder from which files are taken.

    Parameters
    ----------
    folder : Path
    keep : bool
        Whether files stay there after they were stored.
    quiet_s : float, seconds
        A file that has not changed for so long is whole.
    """

    folder: Path
    keep: bool = True
    quiet_s: float = 5.0


@dataclass(frozen=True)
class Oidc:
    """``[oidc]``: the identity provider of the hospital; off where there is no issuer.

    Parameters
    ----------
    issuer, client_id : str
    client_secret_file : Path, optional
    role_claim : str
        Dots lead inwards.
    roles : mapping of str to str
        Value of the claim -> role.
    scopes : str
    """

    issuer: str = ""
    client_id: str = ""
    client_secret_file: Path | None = None
    role_claim: str = "groups"
    roles: Mapping[str, str] = field(default_factory=dict)
    scopes: str = "openid profile email"

    def __post_init__(self) -> None:
        if not self.issuer:
            return
        if not self.client_id:
            raise ConfigError("client_id is missing")
        if not self.roles:
            raise ConfigError('roles is missing: which groups have which role, {"radiologists" = "reader"}')
        for role in self.roles.values():
            check_role(role)


@dataclass(frozen=True)
class Access:
    """``[access]``: sessions and how often something may be tried.

    Parameters
    ----------
    session_idle_s, session_most_s : float, seconds
        A session ends after so long without a request, and after so long in any case.
    logins : int
        Wrong passwords of one name, and of one address, in ten minutes.
    token_requests : int
        Requests a minute with one token.
    """

    session_idle_s: float = 3600.0
    session_most_s: float = 12 * 3600.0
    logins: int = 10
    token_requests: int = 120_000


@dataclass(frozen=True)
class Page:
    """``[page]``: what readers see.

    Parameters
    ----------
    viewer : str
        ``ohif`` where it is installed, or empty.
    title : str
        Shown beside the name of the product, such as the ward's.
    """

    viewer: str = "ohif"
    title: str = ""


@dataclass(frozen=True)
class MetricsAccess:
    """``[metrics]``: who may read the counters beside users with the permission.

    Parameters
    ----------
    token : str
        What Prometheus sends as bearer token; at least 16 signs.
    """

    token: str = ""

    def __post_init__(self) -> None:
        if self.token and len(self.token) < 16:
            raise ConfigError("token: at least 16 signs are needed")


@dataclass(frozen=True)
class Integrity:
    """``[integrity]``: how the archive looks after itself.

    Parameters
    ----------
    check_every_s : float, seconds
        Each file's hash is compared once in this time.
    """

    check_every_s: float = 30 * 86400.0


def read_secret(path: Path, what: str) -> str:
    """The one line of a file that holds a secret.

    Raises
    ------
    ConfigError
        If it cannot be read or is empty.
    """
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what}: {path} cannot be read") from error
    if not secret:
        raise ConfigError(f"{what}: {path} is empty")
    return secret


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0"), is_loopback("ai.example")
    (True, True, False, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_network(name: str, text: str) -> None:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise ConfigError(f"{name}: {text!r} is no address or network such as 10.0.0.0/24") from error
    if network.prefixlen == 0:
        raise ConfigError(f"{name}: {text!r} trusts everyone")
