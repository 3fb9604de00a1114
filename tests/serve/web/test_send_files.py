"""Files that go from the disk's cache to the network: every byte, to slow readers too, and never a false end."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy import select, update

from sagittal.database.schema import instances
from sagittal.serve import send_files

ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@pytest.fixture
def series(running: Any, forge: Any) -> Any:
    """A series of 12 MB, more than the buffers between two sockets hold."""
    rng = np.random.default_rng(0)
    headers = [forge.slice(number=n, pixels=rng.integers(0, 4000, (512, 512)).astype(np.int16)) for n in range(1, 25)]
    running.add(*headers)
    return (
        running,
        [forge.file(header) for header in headers],
        f"/dicom-web/studies/{forge.uid}.1/series/{forge.uid}.1.1",
    )


def ask(running: Any, path: str, **more: str) -> socket.socket:
    """A connection on which the series was asked for."""
    line = socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])), timeout=30)
    headers = {"Host": "x", "Accept": ACCEPT, **running.headers(), **more}
    line.sendall(
        f"GET {path} HTTP/1.1\r\n".encode() + "".join(f"{k}: {v}\r\n" for k, v in headers.items()).encode() + b"\r\n"
    )
    return line


def read_all(line: socket.socket, pause_s: float = 0.0) -> bytes:
    """What comes until the peer closes."""
    found = []
    while piece := line.recv(2**20 if not pause_s else 2**16):
        found.append(piece)
        time.sleep(pause_s)
    return b"".join(found)


def test_every_byte_arrives_and_the_connection_is_kept(series: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running, files, path = series
    calls: list[int] = []
    ordinary = send_files._Sending.go_on

    def counted(self: Any) -> bool:
        calls.append(1)
        return ordinary(self)

    monkeypatch.setattr(send_files._Sending, "go_on", counted)
    with httpx.Client(headers={**running.headers(), "accept": ACCEPT}) as client:
        answers = [client.get(running.url + path) for _ in range(3)]
        after = client.get(f"{running.url}/api/me")
    assert calls  # the fast way was taken
    for answer in answers:
        assert int(answer.headers["content-length"]) == len(answer.content)
        at = [answer.content.find(file) for file in files]
        assert at == sorted(at)
        assert min(at) > 0
    assert after.status_code == 200


def test_a_slow_reader_gets_every_byte_and_holds_nobody_up(series: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running, files, path = series
    lines = [ask(running, path, Connection="close") for _ in range(40)]  # more than there are threads
    time.sleep(0.2)
    began = time.monotonic()
    assert httpx.get(running.url + path, headers={**running.headers(), "accept": ACCEPT}, timeout=30).status_code == 200
    assert time.monotonic() - began < 20
    whole = read_all(lines[0], pause_s=0.0005)
    assert all(file in whole for file in files)
    for line in lines:
        line.close()


def test_a_peer_that_leaves_ends_it(series: Any) -> None:
    running, _, path = series
    for _ in range(5):
        line = ask(running, path)
        line.recv(1000)
        line.close()
    assert httpx.get(running.url + path, headers={**running.headers(), "accept": ACCEPT}).status_code == 200
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(
        Path(f"/proc/self/fd/{n}").exists() and _is_object(n) for n in range(256)
    ):
        time.sleep(0.05)
    assert not any(_is_object(n) for n in range(256))  # no file stays open


def _is_object(number: int) -> bool:
    try:
        return Path(f"/proc/self/fd/{number}").readlink().suffix == ".dcm"
    except OSError:
        return False


def test_a_peer_that_takes_nothing_is_cut_off(series: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running, files, path = series
    monkeypatch.setattr(send_files, "STALLED_S", 0.3)
    line = ask(running, path)
    time.sleep(1.5)
    came = 0
    try:
        while piece := line.recv(2**20):
            came += len(piece)
    except ConnectionError:
        pass
    line.close()
    assert came < sum(map(len, files))


def test_a_file_that_became_shorter_is_no_false_end(series: Any) -> None:
    running, files, path = series
    with running.service.db.read() as c:
        place = c.execute(select(instances.c.path).where(instances.c.number == 20)).scalar_one()
    file = running.service.archive.folder / place
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(running.url + path, headers={**running.headers(), "accept": ACCEPT})
    with running.service.db.write() as c:  # what the scheduled check would find
        c.execute(update(instances).where(instances.c.number == 20).values(damage="altered"))
    answer = httpx.get(running.url + path, headers={**running.headers(), "accept": ACCEPT})
    assert answer.content.count(b"Content-Type: application/dicom") == len(files) - 1


def test_many_at_once(series: Any) -> None:
    running, files, path = series
    sizes: list[int] = []

    def get() -> None:
        sizes.append(
            len(httpx.get(running.url + path, headers={**running.headers(), "accept": ACCEPT}, timeout=60).content)
        )

    threads = [threading.Thread(target=get) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(sizes)) == 1
    assert sizes[0] > sum(map(len, files))
