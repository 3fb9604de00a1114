"""DICOM over TLS: the server's and the client's context by the profiles of the standard. Standard: PS3.15 B.12 and B.13.

TLS 1.2 and 1.3 only, with forward secrecy and authenticated encryption; TLS 1.3 is preferred where both have it. DHE is
left out because the length of its keys cannot be set here, as B.13 asks.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from sagittal.errors import ConfigError

#: Of TLS 1.2: the four that RFC 9325 4.2 recommends, the longer keys first. Those of TLS 1.3 are all good.
CIPHERS = ":".join(
    (
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
    )
)


def server_context(certificate: Path, key: Path, *, ca: Path | None = None, mutual: bool = False) -> ssl.SSLContext:
    """The context of a node that listens.

    Parameters
    ----------
    certificate, key : Path
        PEM; the certificate with those between it and its authority. The key without a password.
    ca : Path or None
        PEM: the authorities whose peers are let in.
    mutual : bool
        Whether a peer without a certificate of these authorities is refused.

    Raises
    ------
    ConfigError
        If a file is missing or does not fit, or `mutual` is asked without `ca`.

    Notes
    -----
    The files are read once: a new certificate is taken up at the next start.
    """
    if mutual and ca is None:
        raise ConfigError('[dicom] mutual = true needs the certificates of the authorities: ca = "..."')
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _strengthen(context)
    _load(context, certificate, key)
    if ca is not None:
        _trust(context, ca)
        context.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_OPTIONAL
    return context


def client_context(
    *, certificate: Path | None = None, key: Path | None = None, ca: Path | None = None
) -> ssl.SSLContext:
    """The context of a node that calls another; the other's certificate is always checked, its name too.

    Raises
    ------
    ConfigError
        If a file is missing or does not fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _strengthen(context)
    if ca is not None:
        _trust(context, ca)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if certificate is not None:
        _load(context, certificate, key or certificate)
    return context


def _strengthen(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise ConfigError(
            "[dicom] the certificate and its key cannot be used: give two PEM files that belong to each other, the key "
            f"without a password ({_why(error)})"
        ) from error


def _trust(context: ssl.SSLContext, ca: Path) -> None:
    try:
        context.load_verify_locations(ca)
    except OSError as error:
        raise ConfigError(f"[dicom] ca cannot be used: give a PEM file of authorities ({_why(error)})") from error


def _no_password() -> str:
    """Nobody is there to type one."""
    raise ValueError("the key has a password")


def _why(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
