"""Where results go: a PACS by DICOM or DICOMweb, a folder, a web hook, a hospital information system by HL7.

Each kind is a frozen dataclass; :func:`parse_destination` makes one of a ``[[destination]]`` of the configuration.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints
from urllib.parse import urlsplit

from sagittal.errors import ConfigError, nearest
from sagittal.write.hl7_text import CHARSETS
from sagittal.write.object_file import KINDS

_AE_TITLE = re.compile(r"(?=.*[^ ])[ -\[\]-~]{1,16}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_DICOM_KINDS = tuple(kind for kind, (media_type, _) in KINDS.items() if media_type == "application/dicom")


@dataclass(frozen=True)
class Tls:
    """How a connection is secured: with whose certificates the peer is believed, and with which we show who we are.

    Parameters
    ----------
    ca : Path, optional
        Certificates in PEM that the peer's must be signed by; those of the system where left out.
    certificate, key : Path, optional
        Ours, for a peer that asks for one (mutual TLS).
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """A client's context: TLS 1.2 or newer, the peer's certificate and name are checked (PS3.15 B.12).

        Raises
        ------
        ConfigError
            If a file cannot be read or is no certificate or key.
        """
        try:
            made = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
            made.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate is not None:
                made.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"TLS: a certificate or key cannot be read ({type(error).__name__}). Give PEM files for ca, certificate, key."
            ) from error
        return made


@dataclass(frozen=True)
class DicomPeer:
    """A DICOM node that we speak to.

    Parameters
    ----------
    name : str
        What the configuration and the pages call it.
    host : str
    port : int
    ae_title : str
        Its own (called).
    calling_ae_title : str
        Ours, as it knows us.
    tls : bool
    ca, certificate, key : Path, optional
        See :class:`Tls`.
    connect_s, answer_s : float
        Seconds to wait for a connection, and for an answer.
    """

    name: str
    host: str
    port: int
    ae_title: str
    calling_ae_title: str = "SAGITTAL"
    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    connect_s: float = 10.0
    answer_s: float = 60.0

    def __post_init__(self) -> None:
        _check(self)
        for key in ("ae_title", "calling_ae_title"):
            if not _AE_TITLE.fullmatch(getattr(self, key)):
                raise ConfigError(f"{self.name}: {key} must be 1 to 16 ASCII signs without a backslash")

    @property
    def secured(self) -> Tls | None:
        """How, where it is."""
        return Tls(self.ca, self.certificate, self.key) if self.tls else None


@dataclass(frozen=True)
class DicomDestination(DicomPeer):
    """A PACS that takes results by C-STORE.

    Parameters
    ----------
    sends : tuple of str
        Kinds of objects, of those that the model makes.
    confirm : bool
        Whether it is asked to commit itself to keeping them (PS3.4 J).
    """

    sends: tuple[str, ...] = _DICOM_KINDS
    confirm: bool = False


@dataclass(frozen=True)
class StowDestination:
    """A PACS that takes results by STOW-RS.

    Parameters
    ----------
    name : str
    url : str
        Up to what stands before ``/studies``.
    username, password_file, token_file
        Basic authentication, or a bearer token; secrets are read from files.
    ca, certificate, key : Path, optional
        See :class:`Tls`.
    sends : tuple of str
    confirm : bool
        Whether each instance is looked for afterwards (QIDO-RS).
    connect_s, answer_s, total_s : float
        Seconds for a connection, for each answer, and for all of one delivery.
    """

    name: str
    url: str
    username: str = ""
    password_file: Path | None = None
    token_file: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    sends: tuple[str, ...] = _DICOM_KINDS
    confirm: bool = False
    connect_s: float = 10.0
    answer_s: float = 60.0
    total_s: float = 600.0

    def __post_init__(self) -> None:
        _check(self)
        if bool(self.username) != (self.password_file is not None):
            raise ConfigError(f"{self.name}: username and password_file belong together")
        if self.username and self.token_file is not None:
            raise ConfigError(f"{self.name}: give a username with password_file, or token_file, not both")

    @property
    def secured(self) -> Tls:
        """How, where its address begins with https."""
        return Tls(self.ca, self.certificate, self.key)


@dataclass(frozen=True)
class FolderDestination:
    """A folder, such as a share that another system watches.

    Parameters
    ----------
    name : str
    path : Path
        It must be there: a share that is not mounted is a destination that is away.
    sends : tuple of str
    """

    name: str
    path: Path
    sends: tuple[str, ...] = tuple(KINDS)

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class WebhookDestination:
    """An address that is told of each result by an HTTP POST with a signature.

    Parameters
    ----------
    name : str
    url : str
        ``https``; plain ``http`` only to this machine, or with `allow_http`.
    secret_file : Path, optional
        Key of the signature; without one nothing is signed.
    token_file : Path, optional
        Bearer token.
    allow : tuple of str
        Hosts that it may speak to; that of the address where left out.
    allow_http : bool
    ca, certificate, key : Path, optional
    sends : tuple of str
        Each object of these kinds is a POST of its own.
    connect_s, answer_s, total_s : float
    most_bytes : int
        Larger objects are not sent.
    """

    name: str
    url: str
    secret_file: Path | None = None
    token_file: Path | None = None
    allow: tuple[str, ...] = ()
    allow_http: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    sends: tuple[str, ...] = ("json",)
    connect_s: float = 10.0
    answer_s: float = 30.0
    total_s: float = 60.0
    most_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        _check(self)
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        if parts.scheme == "http" and not (self.allow_http or host in {"localhost", "127.0.0.1", "::1"}):
            raise ConfigError(
                f"{self.name}: results hold patient data and go by https. For http within a closed network set allow_http=true."
            )
        if self.allow and host not in self.allow:
            raise ConfigError(f"{self.name}: the host of its address is not among those in 'allow'")

    @property
    def secured(self) -> Tls:
        """How, where its address begins with https."""
        return Tls(self.ca, self.certificate, self.key)


@dataclass(frozen=True)
class MllpDestination:
    """A system that takes HL7 messages over MLLP.

    Parameters
    ----------
    name : str
    host : str
    port : int
    tls : bool
    ca, certificate, key : Path, optional
    charset : {"utf-8", "gb18030", "ascii"}
        MSH-18 and the bytes of a message.
    receiving_application, receiving_facility, sending_facility : str
        MSH-5, 6 and 4.
    sends : tuple of str
    connect_s, answer_s : float
    """

    name: str
    host: str
    port: int
    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    charset: str = "utf-8"
    receiving_application: str = ""
    receiving_facility: str = ""
    sending_facility: str = ""
    sends: tuple[str, ...] = ("hl7",)
    connect_s: float = 10.0
    answer_s: float = 30.0

    def __post_init__(self) -> None:
        _check(self)
        if self.charset not in CHARSETS:
            raise ConfigError(f"{self.name}: unknown charset '{self.charset}'. {nearest(self.charset, CHARSETS)}")

    @property
    def secured(self) -> Tls | None:
        """How, where it is."""
        return Tls(self.ca, self.certificate, self.key) if self.tls else None


Destination = DicomDestination | StowDestination | FolderDestination | WebhookDestination | MllpDestination
_TYPES: dict[str, type[Any]] = {
    "dicom": DicomDestination,
    "stow": StowDestination,
    "folder": FolderDestination,
    "webhook": WebhookDestination,
    "mllp": MllpDestination,
}


def parse_destination(
    values: Mapping[str, Any], *, folder: Path | None = None, outbound: Sequence[str] | None = None
) -> Destination:
    """A destination of plain values, as a ``[[destination]]`` of the configuration has them.

    Parameters
    ----------
    values : mapping
        ``name``, ``kind`` (dicom, stow, folder, webhook, mllp) and the fields of its class.
    folder : Path, optional
        What relative paths are relative to.
    outbound : sequence of str, optional
        Hosts that the service may speak to at all.

    Raises
    ------
    ConfigError
        If a key is missing, not known or of another type, or a host may not be spoken to.

    Examples
    --------
    >>> parse_destination({"name": "pacs", "kind": "dicom", "host": "10.0.0.5", "port": 104, "ae_title": "PACS"}).port
    104
    >>> parse_destination({"name": "pacs", "kind": "dicom", "hots": "10.0.0.5", "port": 104, "ae_title": "PACS"})
    Traceback (most recent call last):
    ...
    sagittal.errors.ConfigError: destination 'pacs': unknown key 'hots'. Did you mean 'host'?
    """
    kind = values.get("kind")
    where = f"destination '{values.get('name', '')}'"
    if kind not in _TYPES:
        raise ConfigError(f"{where}: unknown kind '{kind}'. {nearest(str(kind), _TYPES)}")
    rest = {key: value for key, value in values.items() if key != "kind"}
    made: Destination = _parse(_TYPES[kind], rest, where, folder)
    host = (
        made.host
        if isinstance(made, DicomDestination | MllpDestination)
        else urlsplit(getattr(made, "url", "")).hostname
    )
    if outbound is not None and host and host not in outbound:
        raise ConfigError(f"{where}: its host is not among those that the service may speak to (outbound)")
    return made


def parse_pacs(values: Mapping[str, Any], *, folder: Path | None = None) -> DicomPeer:
    """A PACS that studies are fetched from, of plain values, as a ``[[pacs]]`` of the configuration has them.

    Raises
    ------
    ConfigError
        As :func:`parse_destination`.
    """
    made: DicomPeer = _parse(DicomPeer, values, f"pacs '{values.get('name', '')}'", folder)
    return made


def _parse(kind: type[Any], values: Mapping[str, Any], where: str, folder: Path | None) -> Any:
    hints = get_type_hints(kind)
    known = {one.name: one for one in fields(kind)}
    given = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'. {nearest(key, [*known, 'kind'])}")
        given[key] = _value(value, hints[key], f"{where}: {key}", folder)
    for key, one in known.items():
        if one.default is MISSING and key not in given:
            raise ConfigError(f"{where}: '{key}' is missing")
    return kind(**given)


def _value(value: Any, hint: Any, where: str, folder: Path | None) -> Any:
    if hint in {Path, Path | None}:
        if not isinstance(value, str | Path) or not str(value):
            raise ConfigError(f"{where} must be a path, not {type(value).__name__}")
        path = Path(value).expanduser()
        return path if path.is_absolute() or folder is None else folder / path
    if get_args(hint):  # tuple[str, ...]
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise ConfigError(f"{where} must be a list of texts")
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} must be of type {hint.__name__}, not {type(value).__name__}")
    return value


def _check(made: Any) -> None:
    """What all kinds have in common."""
    if not _NAME.fullmatch(made.name):
        raise ConfigError(
            "a destination's name has 1 to 64 letters, digits, '_', '.' and '-', the first a letter or digit"
        )
    for key in getattr(made, "sends", ()):
        if key not in KINDS:
            raise ConfigError(f"{made.name}: unknown kind of result '{key}'. {nearest(key, KINDS)}")
        media_type = KINDS[key][0]
        if isinstance(made, DicomDestination | StowDestination) and media_type != "application/dicom":
            raise ConfigError(f"{made.name}: '{key}' is no DICOM object")
        if isinstance(made, MllpDestination) and key != "hl7":
            raise ConfigError(f"{made.name}: MLLP carries 'hl7' alone, not '{key}'")
    if "port" in made.__dataclass_fields__ and not 1 <= made.port <= 65535:
        raise ConfigError(f"{made.name}: port must be 1 to 65535, not {made.port}")
    for key in ("connect_s", "answer_s", "total_s"):
        if not 0 < getattr(made, key, 1.0) <= 24 * 3600:
            raise ConfigError(f"{made.name}: {key} must be more than 0 and at most a day")
    if getattr(made, "certificate", None) is None and getattr(made, "key", None) is not None:
        raise ConfigError(f"{made.name}: a key needs its certificate")
    if "url" in made.__dataclass_fields__:
        _check_url(made.name, made.url)
    if "host" in made.__dataclass_fields__ and not re.fullmatch(r"[A-Za-z0-9.:_%-]{1,253}", made.host):
        raise ConfigError(f"{made.name}: host must be a name or an address")


def _check_url(name: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        port_known = parts.port is None or 1 <= parts.port <= 65535
    except ValueError as error:
        raise ConfigError(f"{name}: the url cannot be read") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_known:
        raise ConfigError(f"{name}: the url must be like https://host/path")
    if parts.username or parts.password or parts.fragment:
        raise ConfigError(f"{name}: the url must hold no user, password or fragment; secrets stand in files")
