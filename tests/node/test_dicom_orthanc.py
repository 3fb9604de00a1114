"""Orthanc sends to the node and asks it for storage commitment, as a PACS would."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.database.schema import instances
from sagittal.node.callers import Peer as Known
from sagittal.node.dicom_node import DicomNode


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Orthanc:
    """A running Orthanc that knows our node."""

    def __init__(self, http: int, dicom: int) -> None:
        self.http, self.dicom = http, dicom

    def call(self, path: str, body: Any = None) -> Any:
        """GET, or POST with a body of JSON or bytes."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", data, timeout=20) as answer:
            return json.load(answer)


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Callable[[int, int, int], Orthanc]]:
    """Starts an Orthanc on this machine, given the ports of our node and its own."""
    program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    if not Path(program).exists():
        if os.environ.get("CI"):
            pytest.fail("Orthanc is missing: apt-get install orthanc")
        pytest.skip("Orthanc is not installed (Debian package orthanc)")
    running: list[subprocess.Popen[bytes]] = []

    def start_orthanc(port: int, http: int, dicom: int) -> Orthanc:
        options = {
            "StorageDirectory": str(tmp_path / "storage"),
            "IndexDirectory": str(tmp_path / "index"),
            "DicomPort": dicom,
            "HttpPort": http,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAet": "ORTHANC",
            "DicomModalities": {
                "sagittal": {"AET": "SAGITTAL", "Host": "127.0.0.1", "Port": port, "AllowStorageCommitment": True}
            },
            "Plugins": [],
        }
        path = tmp_path / "orthanc.json"
        path.write_text(json.dumps(options))
        running.append(subprocess.Popen([program, str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        server = Orthanc(http, dicom)
        for _ in range(200):
            with contextlib.suppress(OSError):
                server.call("/system")
                return server
            time.sleep(0.05)
        pytest.fail("Orthanc did not start")

    yield start_orthanc
    for process in running:
        process.kill()  # its files go with it
        process.wait(20)


def test_orthanc_sends_and_has_its_storage_commitment(
    orthanc: Callable[..., Orthanc],
    start: Callable[..., DicomNode],
    archive: Archive,
    make_slice: Callable[..., Path],
) -> None:
    http, dicom = free_port(), free_port()
    node = start(peers=(Known("ORTHANC", "127.0.0.1", dicom),))
    server = orthanc(node.port, http, dicom)
    server.call("/modalities/sagittal/echo", {})
    paths = [make_slice(k) for k in range(3)]
    ids = [server.call("/instances", path.read_bytes())["ID"] for path in paths]
    done = server.call("/modalities/sagittal/store", {"Resources": ids, "StorageCommitment": True, "Synchronous": True})
    assert done["InstancesCount"] == 3
    with archive.db.read() as c:
        uids = set(c.execute(sa.select(instances.c.sop_instance_uid)).scalars())
    assert uids == {pydicom.dcmread(path).SOPInstanceUID for path in paths}
    state: dict[str, Any] = {}
    for _ in range(200):
        state = server.call(f"/storage-commitment/{done['StorageCommitmentTransactionUID']}")
        if state["Status"] != "Pending":
            break
        time.sleep(0.05)
    assert state["Status"] == "Success", state
    assert {item["SOPInstanceUID"] for item in state["Success"]} == uids
