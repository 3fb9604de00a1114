"""What the DICOM node is told: ``[dicom]`` of the service's file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sagittal.errors import ConfigError
from sagittal.node.callers import Peer


@dataclass(frozen=True)
class Dicom:
    """``[dicom]``: the DICOM node.

    Parameters
    ----------
    port : int
        0 for none.
    host : str
        Address to listen on; that of the server where empty.
    ae_title : str
        By which peers must call.
    peers : tuple of Peer
        Who may call, by title and address; nobody else. Without any, programs of this machine.
    allow_unknown : bool
        Whether everyone may call; a warning in ``--check``.
    tls, mutual : bool
        Whether associations are encrypted, and whether peers must show a certificate of `ca`.
    certificate, key, ca : Path, optional
        PEM files.
    unknown_classes : bool
        Whether objects of private classes, and of classes newer than this version, are kept too.
    most_associations : int
    most_object_bytes : int
    idle_s : float, seconds
        An association on which nothing comes for so long is ended.
    """

    port: int = 11112
    host: str = ""
    ae_title: str = "SAGITTAL"
    peers: tuple[Peer, ...] = ()
    allow_unknown: bool = False
    tls: bool = False
    mutual: bool = False
    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    unknown_classes: bool = False
    most_associations: int = 16
    most_object_bytes: int = 4 * 2**30
    idle_s: float = 60.0

    def __post_init__(self) -> None:
        check_port("port", self.port)
        for name, title in (("ae_title", self.ae_title), *(("peers", peer.ae_title) for peer in self.peers)):
            check_ae_title(name, title)
        if self.tls and (self.certificate is None or self.key is None):
            raise ConfigError("tls = true needs certificate and key")
        if self.mutual and (not self.tls or self.ca is None):
            raise ConfigError("mutual = true needs tls = true and ca, whose certificates peers must show")
        if self.most_associations < 1:
            raise ConfigError(f"most_associations: at least 1 is needed, found {self.most_associations}")


def check_ae_title(name: str, title: str) -> None:
    """Refuse what cannot be the title of an application entity (PS3.5 6.2: 16 characters, no backslash).

    Raises
    ------
    ConfigError
    """
    if not 0 < len(title.strip()) <= 16 or any(not " " <= sign <= "~" or sign == "\\" for sign in title):
        raise ConfigError(f"{name}: {title!r} is no AE title: 1 to 16 printable ASCII characters without backslash")


def check_port(name: str, port: int) -> None:
    """Refuse what is no port.

    Raises
    ------
    ConfigError
    """
    if not 0 <= port < 65536:
        raise ConfigError(f"{name}: {port} is no port: 0 to 65535")
