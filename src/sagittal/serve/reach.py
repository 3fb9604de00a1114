"""Trying to reach a destination without sending it anything of a patient."""

from __future__ import annotations

import base64
import os
import secrets
import socket
from contextlib import suppress
from urllib.parse import urlsplit

from sagittal.deliver.destinations import (
    Destination,
    DicomDestination,
    FolderDestination,
    MllpDestination,
    StowDestination,
)
from sagittal.errors import ServeError


def reach(destination: Destination) -> str:
    """Reach a destination: C-ECHO, a search by QIDO-RS, an empty file in a folder, a connection.

    Returns
    -------
    str
        What was done, in words.

    Raises
    ------
    DeliveryError, ServeError, ConfigError
        If it cannot be reached; the message says why.
    """
    if isinstance(destination, DicomDestination):
        from sagittal.deliver.dicom_client import echo

        echo(destination)
        return "answered C-ECHO"
    if isinstance(destination, StowDestination):
        _search(destination)
        return "answered a search"
    if isinstance(destination, FolderDestination):
        _write(destination)
        return "the folder can be written to"
    if isinstance(destination, MllpDestination):
        _connect(destination.name, destination.host, destination.port, destination.connect_s)
        return "accepts connections"
    parts = urlsplit(destination.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    _connect(destination.name, parts.hostname or "", port, destination.connect_s)
    return "accepts connections"


def _search(destination: StowDestination) -> None:
    from sagittal.deliver.web import Line, check_status, read_secret, request

    headers = {"Accept": "application/dicom+json"}
    if destination.token_file is not None:
        headers["Authorization"] = f"Bearer {read_secret(destination.token_file, destination.name)}"
    elif destination.password_file is not None:
        password = read_secret(destination.password_file, destination.name)
        pair = base64.b64encode(f"{destination.username}:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {pair}"
    line = Line(
        destination.name, destination.secured, destination.connect_s, destination.answer_s, destination.answer_s
    )
    answer = request(line, "GET", f"{destination.url.rstrip('/')}/studies?limit=1", headers=headers)
    if answer.status != 204:
        check_status(answer, destination.name)


def _write(destination: FolderDestination) -> None:
    path = destination.path / f".sagittal-{secrets.token_hex(8)}"
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise ServeError(f"{destination.name}: the folder cannot be written to ({error.strerror})") from error
    finally:
        with suppress(OSError):
            path.unlink()


def _connect(name: str, host: str, port: int, wait_s: float) -> None:
    try:
        socket.create_connection((host, port), timeout=wait_s).close()
    except OSError as error:
        raise ServeError(f"{name}: no connection ({error.strerror or type(error).__name__})") from error
