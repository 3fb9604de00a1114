"""DICOMweb beside Orthanc, in one run: searching 300 instances, retrieving and storing a CT series of 300 images.

    python benchmarks/dicomweb.py                 # 300 images of 512 x 512 x 16 bits, 3 rounds each, interleaved
    python benchmarks/dicomweb.py --images 100 --rounds 5

Both are processes of their own and keep files and SQLite database below the same folder; the client is one connection. What
it retrieves is first compared with what was stored, and then, for the time, taken from the network and let go: a viewer
copies and decodes it, and that would be measured instead. Ours asks for a token, writes its audit trail, and answers a STOW when every
image and its rows are flushed to the disk. Orthanc runs as it is configured by default, without compression and log.
Afterwards each answer is looked into: as many instances, and the bytes that were stored.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import http.client
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from hospital import Service, find_orthanc, free_port, until
from machine import describe

ROOT = "1.2.826.0.1.3680043.8.498.78"
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.recv.restype = ctypes.c_ssize_t
_LIBC.recv.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@dataclass
class Server:
    """One that runs: where DICOMweb is, what it wants to be told, and how it ends."""

    name: str
    port: int
    close: Callable[[], object]
    headers: dict[str, str] = field(default_factory=dict)
    dropped: int = 0

    def ask(
        self, method: str, path: str, body: bytes = b"", *, drop: bool = False, **headers: str
    ) -> tuple[int, bytes, float]:
        """One request over a connection of its own: status, body, and seconds until its last byte came.

        Where `drop` is true the bytes are taken from the network and let go (MSG_TRUNC), so that the client is not what is
        measured; the body is then empty, and its length is told by the server's own count.
        """
        given = {
            "Host": "127.0.0.1",
            "Connection": "close",
            "Accept": "application/dicom+json",
            **self.headers,
            **headers,
        }
        if body:
            given["Content-Length"] = str(len(body))
        head = f"{method} /dicom-web{path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in given.items()) + "\r\n"
        found: list[bytes] = []
        dropped = 0
        began = time.perf_counter()
        with socket.create_connection(("127.0.0.1", self.port)) as line:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.sendall(head.encode())
            if body:
                line.sendall(body)
            if drop:
                found.append(line.recv(4096))
                room = bytearray(1)
                while count := _drop(line, room):
                    dropped += count
            else:
                while piece := line.recv(2**22):
                    found.append(piece)
        seconds = time.perf_counter() - began
        whole = b"".join(found)
        end = whole.find(b"\r\n\r\n")
        if not drop and b"transfer-encoding: chunked" in whole[:end].lower():
            answer = http.client.HTTPResponse(_Given(whole))
            answer.begin()
            return answer.status, answer.read(), seconds
        self.dropped = dropped
        return int(whole[9:12]), b"" if drop else whole[end + 4 :], seconds


def _drop(line: socket.socket, room: bytearray) -> int:
    """Take what has come, and let it go without copying it (tcp(7))."""
    return int(_LIBC.recv(line.fileno(), ctypes.byref((ctypes.c_char * 1).from_buffer(room)), 2**24, socket.MSG_TRUNC))


class _Given(io.BytesIO):
    """An answer that came already, as http.client wants it."""

    def makefile(self, *_: object) -> _Given:
        return self

    def close(self) -> None:
        return None


def make_series(images: int, side: int) -> list[bytes]:
    """Files of a CT series of noise; their UIDs are replaced in each round."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(1, images + 1):
        header = Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = f"{ROOT}.1000.{1000 + number}"
        header.StudyInstanceUID, header.SeriesInstanceUID = f"{ROOT}.1000.1", f"{ROOT}.1000.2"
        header.PatientID, header.PatientName, header.Modality = "BENCH", "Synthetic^CT", "CT"
        header.PatientBirthDate, header.PatientSex, header.AccessionNumber = "", "O", "1"
        header.StudyDate, header.StudyTime, header.StudyID = "20260101", "101500", "1"
        header.StudyDescription, header.SeriesDescription, header.ReferringPhysicianName = "Chest", "Thin", ""
        header.SeriesNumber, header.InstanceNumber = 1, number
        header.ImagePositionPatient, header.ImageOrientationPatient = [0, 0, float(number)], [1, 0, 0, 0, 1, 0]
        header.PixelSpacing, header.SliceThickness = [0.7, 0.7], 1.0
        header.RescaleSlope, header.RescaleIntercept = 1, -1024
        header.Rows = header.Columns = side
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated = header.BitsStored = 16
        header.HighBit, header.PixelRepresentation = 15, 0
        header.PixelData = rng.integers(0, 2**12, side * side, dtype=np.uint16).tobytes()
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, header, enforce_file_format=True)
        files.append(stream.getvalue())
    return files


def renamed(files: list[bytes], number: int) -> list[bytes]:
    """The same images as objects of another study."""
    old, new = f"{ROOT}.1000.".encode(), f"{ROOT}.{number}.".encode()
    return [file[:4096].replace(old, new) + file[4096:] for file in files]


def message(files: list[bytes]) -> bytes:
    """A STOW of all."""
    head = b"--0f3cf5c0-70e0-41ef-baef-c6f9f65ec3e1\r\nContent-Type: application/dicom\r\n\r\n"
    return (
        b"".join(piece for file in files for piece in (head, file, b"\r\n"))
        + b"--0f3cf5c0-70e0-41ef-baef-c6f9f65ec3e1--\r\n"
    )


def start_ours(folder: Path) -> Server:
    """``sagittal serve`` with no model."""
    service = Service(folder, {"completeness": {"silence": "1h"}})
    token = service.admit()
    service.start()
    return Server("sagittal", service.port, service.stop, {"Authorization": f"Bearer {token}"})


def start_orthanc(folder: Path) -> Server:
    """Orthanc with its plugin for DICOMweb, on this machine only."""
    program, plugin = find_orthanc()
    if not program or not plugin:
        sys.exit("Orthanc is missing: apt-get install orthanc orthanc-dicomweb")
    folder.mkdir(parents=True)
    port = free_port()
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": port,
        "DicomPort": free_port(),
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [plugin],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    log = (folder / "log").open("w")
    process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    def close() -> None:
        process.terminate()
        process.wait(20)

    until(answers, 30, "Orthanc answers")
    return Server("orthanc", port, close)


def measure(server: Server, files: list[bytes], number: int, searches: int) -> dict[str, float]:
    """Rates of one round: images stored and retrieved, and searches, a second."""
    study, series = f"{ROOT}.{number}.1", f"{ROOT}.{number}.2"
    mine = renamed(files, number)
    body = message(mine)
    content_type = 'multipart/related; type="application/dicom"; boundary=0f3cf5c0-70e0-41ef-baef-c6f9f65ec3e1'
    status, answer, stow_s = server.ask("POST", "/studies", body, **{"Content-Type": content_type})
    kept = json.loads(answer)
    assert status == 200, (server.name, status, answer[:300])
    assert len(kept["00081199"]["Value"]) == len(files)
    path = f"/studies/{study}/series/{series}"
    times = []
    for _ in range(searches):
        status, answer, seconds = server.ask("GET", f"{path}/instances")
        times.append(seconds)
    assert (status, len(json.loads(answer))) == (200, len(files))
    status, answer, _ = server.ask("GET", path, Accept=STORED)
    assert status == 200, (server.name, status)
    assert all(file in answer for file in mine), server.name
    retrievals = []
    for _ in range(3):
        status, _, seconds = server.ask("GET", path, drop=True, Accept=STORED)
        assert status == 200
        assert server.dropped > sum(map(len, mine)) - 4096, (server.name, server.dropped)
        retrievals.append(seconds)
    wado_s = statistics.median(retrievals)
    return {
        "STOW, images/s": len(files) / stow_s,
        "QIDO, searches/s": 1 / statistics.median(times),
        "WADO, images/s": len(files) / wado_s,
    }


def main() -> None:
    """Measure both in turn, and print rates and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--searches", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where both keep their files; a temporary folder where left out")
    options = parser.parse_args()
    files = make_series(options.images, options.side)
    place = Path(tempfile.mkdtemp(prefix="dicomweb-", dir=options.folder))
    servers: list[Server] = []
    found: dict[str, dict[str, list[float]]] = {}
    try:
        servers = [start_orthanc(place / "orthanc"), start_ours(place / "sagittal")]
        for number in range(options.rounds + 1):  # the first warms both up and is not counted
            for server in servers if number % 2 else servers[::-1]:
                rates = measure(server, files, 1001 + number, options.searches)
                for what, rate in rates.items() if number else ():
                    found.setdefault(what, {}).setdefault(server.name, []).append(rate)
    finally:
        for server in servers:
            server.close()
        shutil.rmtree(place, ignore_errors=True)
    print(describe())
    print(
        f"{options.images} images of {options.side} x {options.side} x 16 bits, {options.rounds} rounds, median (lowest to highest)"
    )
    print(f"{'':18} {'orthanc':>24} {'sagittal':>24} {'ratio':>7}")
    for what, rates in found.items():
        cells = [
            f"{statistics.median(r):.1f} ({min(r):.1f} to {max(r):.1f})" for r in (rates["orthanc"], rates["sagittal"])
        ]
        ratio = statistics.median(rates["sagittal"]) / statistics.median(rates["orthanc"])
        print(f"{what:18} {cells[0]:>24} {cells[1]:>24} {ratio:7.2f}")
    print(f"load average {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
