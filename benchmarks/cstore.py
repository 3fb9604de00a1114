"""C-STORE of CT images beside Orthanc, in one run: how many a second arrive, one association and four.

    python benchmarks/cstore.py                        # 300 images of 512 x 512 x 16 bits, 5 rounds each, interleaved
    python benchmarks/cstore.py --sender storescu      # dcmtk sends, with TCP_NODELAY
    python benchmarks/cstore.py --sender storescu --nagle   # as dcmtk sends by default

Both receive from the same sender and keep their files and SQLite database below the same folder, each in a process of its
own. Ours answers when the bytes, the name and the rows are flushed to the disk. Orthanc runs as it is configured by default
(it flushes files, and its database now and then), without compression. Every round sends new objects; afterwards it is
counted whether all of them are there. Times are the wall's, from the first image to the last release; the ratio is the median
of those of the rounds, because what else uses the disk changes from one minute to the next.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from machine import describe

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))
import dicom_peer as dp

ROOT = "1.2.826.0.1.3680043.8.498.77"


@dataclass
class Receiver:
    """One that runs: where, and how many instances it has."""

    name: str
    port: int
    count: Any
    close: Any


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def start_ours(folder: Path) -> Receiver:
    """Sagittal's node with an archive and SQLite, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    port = int(process.stdout.readline())

    def count() -> int:
        import sqlite3

        with contextlib.closing(sqlite3.connect(folder / "sagittal.db")) as database:
            return int(database.execute("select count(*) from instances").fetchone()[0])

    def close() -> None:
        process.stdin.close()
        process.wait(20)

    return Receiver("sagittal", port, count, close)


def serve(folder: Path) -> None:
    """Run our node until the input ends."""
    from sagittal.archive.archive import Archive, Limits
    from sagittal.database.connect import Database
    from sagittal.node.dicom_node import DicomNode
    from sagittal.serve.config import Dicom

    db = Database.open(f"sqlite:///{folder / 'sagittal.db'}")
    node = DicomNode(Dicom(port=0), Archive(db, folder / "archive", Limits(disk_reserve=0)))
    node.start()
    print(node.port, flush=True)
    profile = os.environ.get("SAGITTAL_PROFILE")
    if profile:  # threads, each with a profile of its own, are added up at the end
        import cProfile
        import pstats

        profiles: list[cProfile.Profile] = []
        run = threading.Thread.run

        def profiled(thread: threading.Thread) -> None:
            own = cProfile.Profile()
            profiles.append(own)
            own.runcall(run, thread)

        threading.Thread.run = profiled  # type: ignore[method-assign]
        sys.stdin.read()
        node.stop()
        stats = pstats.Stats(*profiles, stream=sys.stderr)
        stats.sort_stats("tottime").print_stats(35)
    else:
        sys.stdin.read()
        node.stop()
    db.close()


def start_orthanc(folder: Path) -> Receiver:
    """Orthanc with a configuration of its own, on this machine only."""
    program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    if not Path(program).exists():
        sys.exit("Orthanc is missing: apt-get install orthanc")
    dicom, http = free_port(), free_port()
    options = {
        "Name": "benchmark",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "StorageCompression": False,
        "DicomPort": dicom,
        "HttpPort": http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomCheckCalledAet": False,
        "Plugins": [],
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(options))
    log = (folder / "orthanc.log").open("w")
    process = subprocess.Popen([program, str(path)], stdout=log, stderr=log, env=os.environ | {"TCP_NODELAY": "1"})

    def count() -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/statistics", timeout=10) as answer:
            return int(json.load(answer)["CountInstances"])

    def close() -> None:
        process.terminate()
        process.wait(20)
        log.close()

    due = time.monotonic() + 20
    while time.monotonic() < due:
        with contextlib.suppress(OSError):
            count()
            with dp.Peer(dicom) as peer:
                if peer.associate(dp.context(1, dp.VERIFICATION), called="ORTHANC"):
                    break
        time.sleep(0.1)
    return Receiver("orthanc", dicom, count, close)


def make_images(count: int, size: int, study: int) -> list[tuple[str, bytes]]:
    """Instance UID and bare data set (explicit VR little endian) of a CT series of noise."""
    import io

    import pydicom
    from pydicom.data import get_testdata_file

    header = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    del header[0xFFFCFFFC]
    header.Rows = header.Columns = size
    header.StudyInstanceUID, header.SeriesInstanceUID = f"{ROOT}.{study}", f"{ROOT}.{study}.1"
    pool = np.random.default_rng(study).integers(0, 3000, size * size + 997, np.int16)
    images = []
    for k in range(count):
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = f"{ROOT}.{study}.1.{k + 1}"
        header.InstanceNumber, header.PatientID = k + 1, f"BENCHMARK{study}"
        header.PixelData = pool[k : k + size * size].tobytes()
        stream = io.BytesIO()
        header.save_as(stream)
        whole = stream.getvalue()
        images.append((header.SOPInstanceUID, whole[144 + int.from_bytes(whole[140:144], "little") :]))
    return images


def send_own(port: int, called: str, images: list[tuple[str, bytes]], associations: int) -> float:
    """Send by bare sockets, each image in one call; seconds."""
    parts = [images[k::associations] for k in range(associations)]
    peers = [dp.Peer(port) for _ in parts]
    failed: list[str] = []
    ready = threading.Barrier(associations + 1)

    def talk(peer: dp.Peer, part: list[tuple[str, bytes]]) -> None:
        with peer:
            if not peer.associate(dp.context(1, dp.CT, (dp.EXPLICIT,)), called=called):
                failed.append("refused")
            size = min(peer.most_pdu, 131072)
            messages = [dp.data(1, 3, dp.store_command(uid)) + dp.data_units(1, content, size) for uid, content in part]
            ready.wait()
            ready.wait()
            for message in messages:
                peer.send(message)
                if peer.status() != 0:
                    failed.append("not stored")
            peer.release()

    threads = [threading.Thread(target=talk, args=pair) for pair in zip(peers, parts, strict=True)]
    for thread in threads:
        thread.start()
    ready.wait()  # all messages are made
    began = time.perf_counter()
    ready.wait()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if failed:
        sys.exit(f"{called}: {len(failed)} of {len(images)} images were not taken: {failed[0]}")
    return seconds


def send_storescu(
    port: int, called: str, images: list[tuple[str, bytes]], associations: int, folder: Path, nagle: bool
) -> float:
    """Send by dcmtk, a process for each association; seconds with the start of the processes."""
    import pydicom

    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID, meta.ImplementationClassUID = dp.CT, dp.EXPLICIT, "1.2.3"
    parts = []
    for number in range(associations):
        part = folder / f"part{number}"
        part.mkdir()
        parts.append(part)
        for uid, content in images[number::associations]:
            meta.MediaStorageSOPInstanceUID = uid
            with (part / f"{uid}.dcm").open("wb") as file:
                file.write(bytes(128) + b"DICM")
                pydicom.filewriter.write_file_meta_info(file, meta)
                file.write(content)
    environment = os.environ | ({} if nagle else {"TCP_NODELAY": "1"})
    began = time.perf_counter()
    processes = [
        subprocess.Popen(
            ["storescu", "-aec", called, "+sd", "-pdu", "131072", "127.0.0.1", str(port), str(part)],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for part in parts
    ]
    codes = [process.wait() for process in processes]
    seconds = time.perf_counter() - began
    for part in parts:
        shutil.rmtree(part)
    if any(codes):
        sys.exit(f"{called}: storescu failed")
    return seconds


def flush_ms(folder: Path) -> float:
    """Median of the time to write and flush a new file of half a megabyte: what every answer waits for, thrice in ours."""
    took = []
    for number in range(20):
        began = time.perf_counter()
        with (folder / f"flush{number}").open("wb") as file:
            file.write(bytes(2**19))
            file.flush()
            os.fsync(file.fileno())
        took.append(time.perf_counter() - began)
        (folder / f"flush{number}").unlink()
    return 1000 * statistics.median(took)


@contextlib.contextmanager
def running(folder: Path, names: list[str]) -> Iterator[list[Receiver]]:
    """The receivers, until the end."""
    starts = {"sagittal": start_ours, "orthanc": start_orthanc}
    receivers = []
    try:
        for name in names:
            (folder / name).mkdir()
            receivers.append(starts[name](folder / name))
        yield receivers
    finally:
        for receiver in receivers:
            receiver.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--sender", choices=("own", "storescu"), default="own")
    parser.add_argument(
        "--nagle", action="store_true", help="storescu leaves Nagle's algorithm on, as it does by default"
    )
    parser.add_argument("--only", choices=("sagittal", "orthanc"), action="append", help="of the two")
    parser.add_argument(
        "--folder", type=Path, help="on the disk to measure (default: the system's for temporary files)"
    )
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    names = arguments.only or ["sagittal", "orthanc"]
    rates: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place, running(Path(place), names) as receivers:
        study, sent, flushes = 0, 0, [flush_ms(Path(place))]
        for turn in range(-1, arguments.rounds):  # the first is not counted
            for associations in arguments.associations:
                study += 1
                count = 20 if turn < 0 else arguments.images
                images = make_images(count, arguments.size, study)
                sent += count
                for receiver in receivers if turn % 2 else receivers[::-1]:
                    called = receiver.name.upper()
                    if arguments.sender == "own":
                        seconds = send_own(receiver.port, called, images, associations)
                    else:
                        seconds = send_storescu(
                            receiver.port, called, images, associations, Path(place), arguments.nagle
                        )
                    if turn >= 0:
                        rates.setdefault((receiver.name, associations), []).append(count / seconds)
                    if receiver.count() != sent:
                        sys.exit(f"{receiver.name} has {receiver.count()} of {sent} images")
            flushes.append(flush_ms(Path(place)))
    print(describe())
    print(f"a new file of 0.5 MB is flushed in {min(flushes):.1f} to {max(flushes):.1f} ms")
    print(
        f"{arguments.images} images of {arguments.size} x {arguments.size} x 16 bits, sender {arguments.sender}, images/s"
    )
    for associations in arguments.associations:
        medians = {name: statistics.median(rates[name, associations]) for name in names}
        told = ", ".join(
            f"{name} {medians[name]:.0f} ({min(rates[name, associations]):.0f}-{max(rates[name, associations]):.0f})"
            for name in names
        )
        ratio = ""
        if len(names) == 2:
            pairs = [ours / theirs for ours, theirs in zip(*(rates[name, associations] for name in names), strict=True)]
            ratio = f", ratio {statistics.median(pairs):.2f} ({min(pairs):.2f}-{max(pairs):.2f})"
        print(f"{associations} association{'s' * (associations > 1)}: {told}{ratio}")


if __name__ == "__main__":
    main()
