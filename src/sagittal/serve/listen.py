"""The port of pages and programs: HTTP/1.1 on a socket of our own, in a thread, with limits; TLS by files or by a proxy."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from sagittal.errors import ConfigError, ServeError
from sagittal.serve.config import Server
from sagittal.serve.connections import Connection

_log = logging.getLogger(__name__)
#: Seconds that starting may take.
_START_S = 30.0


class Listener:
    """Serves an application between :meth:`start` and :meth:`stop`.

    Parameters
    ----------
    app : FastAPI
    server : Server
        ``[server]`` of the configuration.

    Raises
    ------
    ConfigError
        If the certificate or its key cannot be used.
    """

    def __init__(self, app: FastAPI, server: Server) -> None:
        self._app, self._server = app, server
        self._tls = tls_context(server.tls_certificate, server.tls_key) if server.tls_certificate else None
        self._uvicorn: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: socket.socket | None = None

    @property
    def port(self) -> int:
        """Where it listens; the system's choice where 0 was asked for.

        Raises
        ------
        ServeError
            If it does not listen.
        """
        if self._socket is None:
            raise ServeError("the port has not been opened")
        return int(self._socket.getsockname()[1])

    @property
    def alive(self) -> bool:
        """Whether it still answers; false before it was started, too."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def address(self) -> str:
        """As a browser of this machine writes it."""
        host = self._server.host
        shown = "localhost" if host in ("0.0.0.0", "::", "127.0.0.1", "::1") else host  # noqa: S104
        return f"{'https' if self._tls else 'http'}://{shown}:{self.port}"

    def start(self) -> None:
        """Listen, and answer.

        Raises
        ------
        ServeError
            If the port cannot be had, or the application does not start.
        """
        host, port = self._server.host, self._server.port
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family, backlog=512)
        except OSError as error:
            raise ServeError(
                f"cannot listen at {host} port {port} ({error.strerror}): another program has it, or the address is not "
                "of this machine. Choose another one with --port and --host."
            ) from error
        self._uvicorn = uvicorn.Server(self._config())
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()
        due = time.monotonic() + _START_S
        while not self._uvicorn.started:
            if not self._thread.is_alive() or time.monotonic() > due:
                raise ServeError("the pages cannot be served; the log says why")
            time.sleep(0.01)

    def stop(self) -> None:
        """Take no new connection, let requests end for a while, then cut them off."""
        if self._uvicorn is None or self._thread is None:
            return
        changes = getattr(self._app.state, "changes", None)
        if changes is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(changes.close)  # pages that listen would hold the door
        self._uvicorn.should_exit = True
        self._thread.join(self._server.stop_s + 5.0)
        if self._thread.is_alive():
            self._uvicorn.force_exit = True
            self._thread.join(5.0)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _run(self) -> None:
        assert self._uvicorn is not None  # start() has made it
        assert self._socket is not None
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            self._loop = runner.get_loop()
            try:
                runner.run(self._uvicorn.serve(sockets=[self._socket]))
            except Exception:
                _log.exception("the pages ended")

    def _config(self) -> uvicorn.Config:
        server = self._server
        tls: dict[str, Any] = {"ssl_context_factory": lambda _config, _default: self._tls} if self._tls else {}
        return uvicorn.Config(
            self._app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            proxy_headers=bool(server.trusted_proxies),
            forwarded_allow_ips=list(server.trusted_proxies),
            limit_concurrency=server.most_connections,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=max(1, int(server.stop_s)),
            **tls,
        )


def tls_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """TLS 1.2 and 1.3 with the library's own choice of suites (ASVS 12.1.1).

    Raises
    ------
    ConfigError
        If the files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"server.tls_certificate and tls_key cannot be used ({reason}): expected two PEM files, the key without "
            "password"
        ) from error
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:  # not on this system
        return None
    return uvloop.new_event_loop
