"""One HTTP request to a destination, bounded in time and size, that goes where it was meant to go and nowhere else."""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sagittal.deliver.destinations import Tls
from sagittal.deliver.outcome import DeliveryError
from sagittal.errors import ConfigError, require

#: Longest secret, and longest answer that is read.
_MOST_SECRET, MOST_ANSWER = 8192, 4 * 2**20


@dataclass(frozen=True)
class Answer:
    """What a server answered.

    Parameters
    ----------
    status : int
    media_type : str
        Without parameters, lower case.
    body : bytes
    """

    status: int
    media_type: str
    body: bytes


@dataclass(frozen=True)
class Line:
    """How a server is spoken to.

    Parameters
    ----------
    name : str
        Of the destination, for messages.
    tls : Tls
    connect_s, answer_s, total_s : float
    most_answer : int
        Bytes.
    """

    name: str
    tls: Tls
    connect_s: float
    answer_s: float
    total_s: float
    most_answer: int = MOST_ANSWER


def request(
    line: Line,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    content: bytes | Iterable[bytes] | None = None,
) -> Answer:
    """Send a request and read the answer; redirects are not followed, proxies of the environment not used.

    Parameters
    ----------
    line : Line
    method, url : str
    headers : mapping
        With ``Content-Length`` where `content` is an iterable.
    content : bytes or iterable of bytes, optional

    Raises
    ------
    DeliveryError
        If nobody answers in time, the answer is too long, or it sends elsewhere.
    ConfigError
        If a certificate cannot be read.
    """
    httpx = require("httpx", feature="delivery over the web", extra="serve")
    for talker in ("httpx", "httpcore"):  # they log addresses, which hold UIDs
        logging.getLogger(talker).setLevel(logging.WARNING)
    watch = _Watch(line.total_s)
    timeout = httpx.Timeout(line.answer_s, connect=line.connect_s)
    secure = urlsplit(url).scheme == "https"
    try:
        with (
            watch,
            httpx.Client(
                timeout=timeout,
                verify=line.tls.context() if secure else True,
                follow_redirects=False,
                trust_env=False,
                http2=False,
            ) as client,
            client.stream(
                method,
                url,
                headers={**headers, "Accept-Encoding": "identity"},
                content=content,
                extensions={"trace": watch.see},
            ) as answer,
        ):
            if answer.is_redirect:
                raise DeliveryError(
                    f"{line.name}: sends to another address, which is not followed", retry=False, trouble="refused"
                )
            body = bytearray()
            for part in answer.iter_raw():
                body += part
                if len(body) > line.most_answer:
                    raise DeliveryError(
                        f"{line.name}: its answer is longer than any answer", retry=False, trouble="refused"
                    )
            media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            return Answer(int(answer.status_code), media_type, bytes(body))
    except _AddressError as error:
        raise DeliveryError(
            f"{line.name}: its name leads to an address that is not spoken to", retry=False, trouble="refused"
        ) from error
    except httpx.InvalidURL as error:
        raise ConfigError(f"{line.name}: the url cannot be read") from error
    except httpx.TimeoutException as error:
        raise DeliveryError(f"{line.name}: no answer in time", retry=True, trouble="away") from error
    except httpx.HTTPError as error:
        if watch.over:
            raise DeliveryError(f"{line.name}: no whole answer in time", retry=True, trouble="away") from error
        kind = "its certificate is not believed" if _of_certificate(error) else type(error).__name__
        raise DeliveryError(f"{line.name}: no connection ({kind})", retry=True, trouble="away") from error


def _of_certificate(error: BaseException | None) -> bool:
    """Whether a certificate that was not believed is behind an error."""
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def check_status(answer: Answer, name: str) -> None:
    """Nothing, for a status of success.

    Raises
    ------
    DeliveryError
        What another status means: 429, 5xx and the like may pass, 507 is a full disk, 4xx will not pass by itself.
    """
    status = answer.status
    if 200 <= status < 300:
        return
    if status == 507:
        raise DeliveryError(f"{name}: its disk is full (507)", retry=True, trouble="resources")
    if status in {408, 425, 429} or status >= 500:
        raise DeliveryError(f"{name}: cannot answer now ({status})", retry=True, trouble="away")
    if status in {400, 409, 413, 415, 422}:
        raise DeliveryError(f"{name}: does not take the object ({status})", retry=False, trouble="object")
    raise DeliveryError(f"{name}: refuses ({status})", retry=False, trouble="refused")


def read_secret(path: Path, name: str) -> str:
    """The text of a file that holds a password, token or key, without the line's end.

    Raises
    ------
    ConfigError
        If it cannot be read, is empty, or longer than any secret.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_SECRET + 1).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: a file with a secret cannot be read ({type(error).__name__})") from error
    if not text or len(text) > _MOST_SECRET or any(sign in text for sign in "\r\n\0"):
        raise ConfigError(f"{name}: a file with a secret must hold one line")
    return text


class _AddressError(Exception):
    """The connection leads where it should not."""


class _Watch:
    """Cuts the connection when the time for all of it is over, however slowly the other side drips."""

    def __init__(self, total_s: float) -> None:
        self.end = time.monotonic() + total_s
        self.over = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(total_s, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> _Watch:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._socket = None

    def see(self, event: str, info: Mapping[str, Any]) -> None:
        """Learn of the connection's socket, and look where it leads before anything is sent."""
        if event not in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            return
        made = info["return_value"].get_extra_info("socket")
        if event == "connection.connect_tcp.complete":
            address = ipaddress.ip_address(str(made.getpeername()[0]).partition("%")[0])
            # 169.254.169.254 and its like hand out credentials of clouds to whoever asks.
            if address.is_link_local or address.is_multicast or address.is_unspecified:
                made.close()
                raise _AddressError
        with self._lock:
            self._socket = made
            if self.over:
                self._shut()

    def _cut(self) -> None:
        with self._lock:
            self.over = True
            self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
