"""The port itself, over raw sockets: what is too large, too slow or malformed is cut off, and memory stays flat."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import ssl
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse

from sagittal.errors import ConfigError, ServeError
from sagittal.serve import app as app_module
from sagittal.serve import connections, surround
from sagittal.serve.app import make_app
from sagittal.serve.config import Server
from sagittal.serve.listen import Listener
from sagittal.serve.security import anyone
from sagittal.serve.service import Service

router = APIRouter()


@router.post("/v1/swallow", dependencies=[Depends(anyone)])
async def swallow(request: Request) -> dict[str, int]:
    """Reads a body piece by piece, as uploads do."""
    size = 0
    async for piece in request.stream():
        size += len(piece)
    return {"size": size}


@router.get("/v1/break", dependencies=[Depends(anyone)])
async def breaks() -> None:
    raise RuntimeError("SECRET-ID of DOE^JANE")


@router.get("/v1/slow", dependencies=[Depends(anyone)])
async def slow() -> dict[str, str]:
    import asyncio

    await asyncio.sleep(0.6)
    return {"status": "done"}


@router.get("/v1/large", dependencies=[Depends(anyone)])
async def large() -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(400):
            yield bytes(65536)

    return StreamingResponse(pieces())


@pytest.fixture(autouse=True)
def few_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Applications with some routes only, which are made in a tenth of the time."""
    monkeypatch.setattr(app_module, "ROUTES", ("routes_access", "health", "metrics"))
    monkeypatch.setattr(app_module, "PAGES", ())


@pytest.fixture
def listener(make_service: Callable[..., Service]) -> Iterator[Listener]:
    service = make_service({"limits.most_upload": "4 MiB", "server.stop": "2s"})
    app = make_app(service)
    app.include_router(router)
    app.user_middleware[1].kwargs["routes"].extend(router.routes)
    running = Listener(app, service.config.server)
    running.start()
    yield running
    running.stop()


def talk(listener: Listener, *pieces: bytes, wait_s: float = 5.0, pause_s: float = 0.0) -> bytes:
    """Send bytes, and read until the other side ends or says no more."""
    with socket.create_connection(("127.0.0.1", listener.port), timeout=wait_s) as wire:
        answer = b""
        try:
            for piece in pieces:
                wire.sendall(piece)
                time.sleep(pause_s)
            while piece := wire.recv(65536):
                answer += piece
                head, blank, body = answer.partition(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")),
                    None,
                )
                if blank and length is not None and len(body) >= length:
                    break
        except (ConnectionResetError, BrokenPipeError, TimeoutError):
            pass
        return answer


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1") else 0


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_answers_with_headers_that_bind_the_browser(listener: Listener) -> None:
    answer = talk(listener, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").decode()
    assert status(answer.encode()) == 200
    head = answer.lower()
    for line in (
        "x-content-type-options: nosniff",
        "x-frame-options: deny",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
    ):
        assert line in head
    policy = next(line for line in head.splitlines() if line.startswith("content-security-policy"))
    assert "default-src 'none'" in policy
    assert "connect-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "server:" not in head


def test_declared_length_of_a_terabyte_is_refused_before_a_byte_of_it(listener: Listener) -> None:
    """CVE-2026-5440."""
    before = resident()
    for declared in (2**40, 2**64, 4 * 2**20 + 1, 10**400):
        answer = talk(listener, f"POST /v1/swallow HTTP/1.1\r\nHost: x\r\nContent-Length: {declared}\r\n\r\n".encode())
        assert status(answer) in (400, 413)
        assert b"connection: close" in answer.lower()
    assert resident() - before < 16 * 2**20


def test_bodies_up_to_the_limit_are_read(listener: Listener) -> None:
    body = bytes(4 * 2**20)
    assert json.loads(talk(listener, post("/v1/swallow", body)).partition(b"\r\n\r\n")[2]) == {"size": len(body)}


def test_chunked_body_is_counted_and_cut_off(listener: Listener) -> None:
    """CVE-2026-24207: what is not declared is counted."""
    head = b"POST /v1/swallow HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    small = talk(listener, head, chunk * 4, b"0\r\n\r\n")
    assert json.loads(small.partition(b"\r\n\r\n")[2]) == {"size": 4 * 65536}
    before = resident()
    assert status(talk(listener, head, *[chunk] * 200)) in (413, 0)  # 0: cut off while it was still sending
    assert resident() - before < 32 * 2**20


def test_gzip_bomb_is_refused_unpacked(listener: Listener) -> None:
    """CVE-2026-5438: 1 MB that unpacks to 1 GB."""
    bomb = gzip.compress(bytes(2**20)) * 1024
    before = resident()
    assert status(talk(listener, post("/v1/swallow", bomb, "Content-Encoding: gzip"))) in (413, 415)
    assert status(talk(listener, post("/api/login", bomb[:1000], "Content-Encoding: br"))) == 415
    assert resident() - before < 64 * 2**20


def test_login_takes_small_bodies_only(listener: Listener) -> None:
    assert status(talk(listener, post("/api/login", b" " * 65537, "Content-Type: application/json"))) == 413


def test_stranger_is_refused_before_the_body_is_read(listener: Listener) -> None:
    began = time.monotonic()
    answer = talk(listener, b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n")
    assert status(answer) == 401
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize(
    "lies",
    [
        b"POST /v1/swallow HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/swallow HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"POST /v1/swallow HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/swallow HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
        b"POST /v1/swallow HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
        b"\x00" * 100 + b"\r\n\r\n",
        b"GET /%zz%00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_malformed_requests_get_a_4xx_or_are_cut_off_and_the_port_lives(listener: Listener, lies: bytes) -> None:
    answer = talk(listener, lies, wait_s=1.0)
    assert answer == b"" or 400 <= status(answer) < 500
    assert status(talk(listener, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")) == 200


def test_hundreds_of_mutated_requests_leave_the_port_and_memory_as_they_were(listener: Listener) -> None:
    """Incident 21 (CVE-2025-53948): no message ends the listener. Nothing answers 5xx."""
    rng = np.random.default_rng(7)
    seeds = [
        b"GET /health/live?x=1&y=%20 HTTP/1.1\r\nHost: x\r\nCookie: sagittal=abc; a=b\r\nAuthorization: Bearer sg_x\r\n\r\n",
        post("/api/login", b'{"name": "x", "password": "y"}', "Content-Type: application/json"),
        post("/v1/swallow", b"a" * 50, "Content-Type: multipart/form-data; boundary=q", "Expect: 100-continue"),
        b"POST /v1/swallow HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
        b"GET /api/links/" + b"s" * 43 + b" HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ]
    spice = [
        b"\r\n",
        b"\0",
        b"%00",
        b"%ff%fe",
        b"\xff\xfe",
        b": ",
        b"HTTP/9.9",
        b"chunked, gzip",
        b"4294967296",
        b"-1",
        b"{" * 500,
        b"../",
        b"\xf0\x9f\x98\x80",
    ]

    def mutant() -> bytes:
        data = bytearray(seeds[rng.integers(len(seeds))])
        for _ in range(rng.integers(1, 6)):
            at = int(rng.integers(len(data)))
            kind = rng.integers(4)
            if kind == 0:
                data[at] = int(rng.integers(256))
            elif kind == 1:
                del data[at : at + int(rng.integers(1, 20))]
            elif kind == 2:
                data[at:at] = spice[rng.integers(len(spice))]
            else:
                data[at:at] = data[at : at + int(rng.integers(1, 40))]
            data = data or bytearray(b"x")
        return bytes(data)

    before, codes = 0, set()
    for number in range(700):
        with socket.create_connection(("127.0.0.1", listener.port), timeout=5) as wire:
            wire.sendall(mutant())
            wire.shutdown(socket.SHUT_WR)  # nothing more comes
            with contextlib.suppress(ConnectionResetError):
                codes.add(status(wire.recv(4096)))
        if number == 200:
            before = resident()
    assert max(codes) < 500, codes
    assert {200, 400} <= codes
    assert resident() - before < 16 * 2**20
    assert status(talk(listener, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")) == 200


def test_endless_header_is_cut_off(listener: Listener) -> None:
    before = resident()
    answer = talk(listener, b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Long: ", *[b"a" * 65536] * 64)
    assert status(answer) in (431, 400, 0)
    many = talk(listener, b"GET /health/live HTTP/1.1\r\nHost: x\r\n", *[b"X-%d: y\r\n" % n * 200 for n in range(64)])
    assert status(many) in (431, 400, 0)
    long_path = talk(listener, b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status(long_path) in (431, 414, 400, 0)
    assert resident() - before < 16 * 2**20


def test_body_of_single_bytes_in_chunks_is_cut_off(listener: Listener) -> None:
    head = b"POST /v1/swallow HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = talk(listener, head, *[b"1;" + b"x" * 1000 + b"\r\na\r\n"] * 400, b"0\r\n\r\n")
    assert status(answer) in (431, 400, 413, 0)


def test_header_that_drips_is_cut_off(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_S", 0.4)
    began = time.monotonic()
    answer = talk(listener, *[b"GET /health/live HTTP/1.1\r\n"] + [b"X: y\r\n"] * 30, pause_s=0.1)
    assert status(answer) in (408, 0)
    assert time.monotonic() - began < 5.0
    idle = time.monotonic()
    assert status(talk(listener, b"")) in (408, 0)
    assert time.monotonic() - idle < 3.0


def test_body_that_drips_is_cut_off(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surround, "_PIECE_S", 0.3)
    head = b"POST /v1/swallow HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    assert status(talk(listener, head, b"abc")) == 408
    monkeypatch.setattr(surround, "_GRACE_S", 0.2)
    began = time.monotonic()
    assert status(talk(listener, head, *[b"x"] * 50, pause_s=0.1)) in (408, 0)  # 0: cut off while it was still sending
    assert time.monotonic() - began < 4.0


def test_peer_that_does_not_read_is_cut_off(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READ_S", 0.3)
    with socket.socket() as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.settimeout(5)
        wire.connect(("127.0.0.1", listener.port))
        wire.sendall(b"GET /v1/large HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1.0)
        got = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := wire.recv(2**20):
                got += len(piece)
    assert got < 400 * 65536
    monkeypatch.setattr(connections, "READ_S", 20.0)
    patient = talk(listener, b"GET /v1/large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert len(patient) > 400 * 65536


def test_connections_of_one_address_are_limited(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "is_loopback", lambda _: False)
    monkeypatch.setattr(connections, "MOST_OF_ONE", 3)
    held = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(3)]
    time.sleep(0.2)
    assert status(talk(listener, b"")) == 503
    for one in held:
        one.close()
    time.sleep(0.2)
    assert status(talk(listener, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")) == 200
    time.sleep(0.1)
    assert not connections._counts


def test_fault_says_its_id_and_nothing_else(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    answer = talk(listener, b"GET /v1/break HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status(answer) == 500
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert body["code"] == 500
    assert "SECRET" not in answer.decode()
    told = next(record for record in caplog.records if getattr(record, "id", "") == body["id"])
    assert told.kind == "RuntimeError"  # type: ignore[attr-defined]
    assert "SECRET" not in str(told.__dict__)


def test_connections_are_limited_and_come_back(
    make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service({"server.most_connections": 8})
    running = Listener(make_app(service), service.config.server)
    running.start()
    try:
        held = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(12)]
        time.sleep(0.2)
        assert status(talk(running, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")) == 503
        for one in held:
            one.close()
        time.sleep(0.2)
        assert status(talk(running, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")) == 200
    finally:
        running.stop()


def test_stopping_lets_a_request_end_and_takes_no_new_one(listener: Listener) -> None:
    answers: list[bytes] = []
    thread = threading.Thread(
        target=lambda: answers.append(talk(listener, b"GET /v1/slow HTTP/1.1\r\nHost: x\r\n\r\n"))
    )
    thread.start()
    time.sleep(0.2)
    port = listener.port
    listener.stop()
    thread.join()
    assert status(answers[0]) == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_port_that_is_taken_is_said_so(listener: Listener, service: Service) -> None:
    other = Listener(make_app(service), Server(port=listener.port))
    with pytest.raises(ServeError, match="--port"):
        other.start()


# TLS ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost, signed by itself."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


def test_tls_serves_and_refuses_old_versions(
    make_service: Callable[..., Service], certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ASVS 12.1.1: TLS 1.2 and 1.3 only."""
    import httpx

    service = make_service({"server.tls_certificate": str(certificate[0]), "server.tls_key": str(certificate[1])})
    running = Listener(make_app(service), service.config.server)
    running.start()
    try:
        trust = ssl.create_default_context(cafile=str(certificate[0]))
        answer = httpx.get(f"https://localhost:{running.port}/health/live", verify=trust, trust_env=False)
        assert answer.status_code == 200
        assert "max-age" in answer.headers["strict-transport-security"]
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with (
            socket.create_connection(("127.0.0.1", running.port), timeout=5) as wire,
            pytest.raises(ssl.SSLError, match="EOF|ALERT"),  # what the server does, not this end
        ):
            old.wrap_socket(wire)
        old.maximum_version = ssl.TLSVersion.TLSv1_2  # the same client, but for the version
        with socket.create_connection(("127.0.0.1", running.port), timeout=5) as wire, old.wrap_socket(wire) as secured:
            assert secured.version() == "TLSv1.2"
        assert talk(running, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n", wait_s=2) == b""  # no TLS, no answer
    finally:
        running.stop()


def test_certificate_that_is_none_is_said_so(certificate: tuple[Path, Path], service: Service, tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("nonsense")
    for pair in (
        (tmp_path / "bad.pem", certificate[1]),
        (certificate[0], tmp_path / "bad.pem"),
        (tmp_path / "no", certificate[1]),
    ):
        with pytest.raises(ConfigError, match="tls_certificate"):
            Listener(make_app(service), Server(tls_certificate=pair[0], tls_key=pair[1]))


def test_only_a_trusted_proxy_says_where_a_request_came_from(
    make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sagittal.protect.audit import read_records

    request = post(
        "/api/login",
        b'{"name":"x","password":"y"}',
        "Content-Type: application/json",
        "X-Forwarded-For: 203.0.113.9",
        "X-Forwarded-Proto: https",
    )
    seen = []
    for proxies in ([], ["127.0.0.1"]):
        service = make_service({"server.trusted_proxies": proxies})
        running = Listener(make_app(service), service.config.server)
        running.start()
        assert status(talk(running, request)) == 401
        running.stop()
        seen.append(list(read_records(service.db))[-1]["address"])
    assert seen == ["127.0.0.1", "203.0.113.9"]
