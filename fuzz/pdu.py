"""Malformed protocol data units against the DICOM node: ``python fuzz/pdu.py --units 5000``.

Each is made by a seeded generator that knows the layout: units of every type with lengths that lie (4 GiB among them),
fields and items changed, commands and fragments out of order, whole messages cut, bytes dripped one by one. After each,
the node must have answered with a refusal, an abort or a response, or closed; every so often it must store an object and
answer an echo. The run fails if it does not, if a thread of the node raises, or if its memory grows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import dicom_peer as dp

LENGTHS = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    63,
    64,
    127,
    128,
    4096,
    65535,
    131072,
    131073,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 2,
    2**32 - 1,
)
UID = "1.2.826.0.1.77.1"
CONTEXTS = (
    dp.context(1, dp.CT, (dp.EXPLICIT, dp.IMPLICIT)),
    dp.context(3, dp.VERIFICATION),
    dp.context(5, dp.COMMITMENT),
)


def flawed_request(rng: random.Random) -> bytes:
    """An association request with something wrong in it."""
    raw = bytearray(dp.request(*CONTEXTS, user=dp.item(0x54, b"\0\x03abc\1\1") + dp.item(0x58, b"\1\0\0\1a\0\0")))
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        choice = rng.randrange(5)
        place = rng.randrange(len(raw))
        if choice == 0:
            raw[place] = rng.getrandbits(8)
        elif choice == 1:
            raw[place : place + 2] = struct.pack(">H", rng.choice(LENGTHS) % 65536)
        elif choice == 2:
            del raw[place : place + rng.randrange(1, 40)]
        elif choice == 3:
            raw[place:place] = rng.randbytes(rng.randrange(1, 40))
        else:
            raw += rng.choice(CONTEXTS) * rng.choice((1, 3, 200))
        if len(raw) < 8:
            break
    if rng.random() < 0.3:
        raw[2:6] = struct.pack(">I", rng.choice(LENGTHS))
    elif rng.random() < 0.7:
        raw[2:6] = struct.pack(">I", max(0, len(raw) - 6))
    return bytes(raw)


def flawed_data(rng: random.Random, dataset: bytes) -> bytes:
    """Units within an association with something wrong in them."""
    whole = rng.choice((message, action, lying_unit, lying_value, disorder, noise))(rng, dataset)
    if rng.random() < 0.6:
        raw = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            place = rng.randrange(min(len(raw), 400))
            if rng.random() < 0.5:
                raw[place] = rng.getrandbits(8)
            else:
                raw[place : place + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(LENGTHS))
        whole = bytes(raw)
    if rng.random() < 0.3:
        whole = whole[: rng.randrange(1, len(whole) + 1)]
    return whole


def message(rng: random.Random, dataset: bytes) -> bytes:
    """A message of a random command, with or without its data set."""
    fields = [
        dp.element(2, rng.choice((dp.CT.encode(), b"../../etc", b"", rng.randbytes(70)))),
        dp.short(0x100, rng.choice((1, 1, 0x30, 0x130, 0x100, 0x20, 0x21, 0xFFF, 0x8001, rng.getrandbits(16)))),
        dp.short(0x110, rng.getrandbits(16)),
        dp.short(0x120, rng.getrandbits(16)),
        dp.short(0x800, rng.choice((0, 1, 0x101))),
        dp.element(0x1000, rng.choice((b"1.2.3", b"..", b"1" * 65, rng.randbytes(20)))),
    ]
    asked = dp.command(*(f for f in fields if rng.random() < 0.95))
    number = rng.choice((1, 1, 3, 5, 7, 0, 255))
    return dp.data(number, rng.choice((3, 3, 3, 1, 7, 255)), asked) + dp.data_units(number, dataset[:5000], 4096)


def action(rng: random.Random, _dataset: bytes) -> bytes:
    """A request for storage commitment whose data set is damaged."""
    asked = dp.command(
        dp.element(3, dp.COMMITMENT.encode()),
        dp.short(0x100, 0x130),
        dp.short(0x110, 1),
        dp.short(0x800, 1),
        dp.element(0x1001, b"1.2.840.10008.1.20.1.1"),
        dp.short(0x1008, 1),
    )
    start = struct.pack("<HHI", 8, 0x1199, rng.choice((2**32 - 1, *LENGTHS)))
    item = struct.pack("<HHI", 0xFFFE, 0xE000, rng.choice((2**32 - 1, *LENGTHS)))
    body = struct.pack("<HHI", 8, 0x1195, 4) + b"1.2\0" + (start + item) * rng.choice((1, 5, 100, 2000))
    return dp.data(5, 3, asked) + dp.data_units(5, body, 16384)


def lying_unit(rng: random.Random, _dataset: bytes) -> bytes:
    """A unit of any type whose length is another."""
    kind = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 0, 255))
    return dp.unit(kind, rng.randbytes(rng.choice((0, 4, 100, 5000))), rng.choice(LENGTHS))


def lying_value(rng: random.Random, _dataset: bytes) -> bytes:
    """A P-DATA-TF whose values have other lengths than they say."""
    values = b"".join(
        struct.pack(">IBB", rng.choice(LENGTHS), rng.choice((1, 3, 2, 0)), rng.getrandbits(8)) + rng.randbytes(30)
        for _ in range(rng.choice((1, 2, 50)))
    )
    return dp.unit(4, values)


def disorder(rng: random.Random, dataset: bytes) -> bytes:
    """Sound units in an order that has no sense."""
    parts = [
        dp.data(1, 3, dp.store_command("1.2.3")),
        dp.data(1, 1, dp.store_command("1.2.3")[:20]),
        dp.data(1, 0, dataset[:500]),
        dp.data(1, 2, dataset[:500]),
        dp.data(3, 3, dp.ECHO),
        dp.unit(5, bytes(4)),
        dp.request(*CONTEXTS),
        dp.unit(6, bytes(4)),
    ]
    return b"".join(rng.choice(parts) for _ in range(rng.randrange(2, 8)))


def noise(rng: random.Random, _dataset: bytes) -> bytes:
    """Nothing that means anything."""
    return rng.randbytes(rng.choice((1, 6, 100, 10_000)))


def attack(port: int, rng: random.Random, dataset: bytes) -> int:
    """One connection with something wrong in it; the type of the node's last unit, 0 where it just closed."""
    with dp.Peer(port, timeout_s=10) as peer, contextlib.suppress(ConnectionError):
        if rng.random() < 0.35:
            content = flawed_request(rng)
        else:
            peer.associate(*CONTEXTS)
            content = flawed_data(rng, dataset)
        if rng.random() < 0.01:
            for at in range(min(len(content), 40)):  # dripped
                peer.send(content[at : at + 1])
                time.sleep(0.002)
            content = content[40:]
        peer.send(content)
        if rng.random() < 0.7:
            peer.socket.shutdown(1)  # nothing more comes: whoever waits for it need not
        else:
            peer.socket.settimeout(0.05)
        last = -1
        try:
            while True:
                kind, _ = peer.read_unit()
                if not kind:
                    return max(last, 0)
                last = kind
        except TimeoutError:
            return max(last, 0)  # it waits for the rest, and for its time to run out
    return 0


def resident_kib() -> int:
    """Memory of this process, in which the node runs."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


def is_alive(port: int, dataset: bytes) -> bool:
    """Whether the node stores an object and answers an echo."""
    with dp.Peer(port) as peer:
        if not peer.associate(*CONTEXTS):
            return False
        stored = peer.store(1, dataset, UID) == 0
        peer.send(dp.data(3, 3, dp.ECHO))
        return stored and peer.status() == 0 and peer.release()


def run(units: int, refused: int, seed: int, node: Any, dataset: bytes) -> dict[str, Any]:
    """Attack a node; what came of it.

    Raises
    ------
    AssertionError
        If the node does not answer any more, a thread raised, or memory grew.
    """
    raised: list[str] = []
    before_hook = threading.excepthook
    threading.excepthook = lambda args: raised.append(f"{args.exc_type.__name__}: {args.exc_value}")
    answers: dict[int, int] = {}
    try:
        rng = random.Random(seed)
        began, start = time.monotonic(), 0
        for number in range(units):
            kind = attack(node.port, rng, dataset)
            answers[kind] = answers.get(kind, 0) + 1
            if number == units // 4:
                start = resident_kib()
            if number % 500 == 0:
                assert is_alive(node.port, dataset), f"no answer after {number} units"
        grown = resident_kib() - start
        content = dp.request(CONTEXTS[1], called="OTHER")
        refused_from, rejections = 0, 0
        for number in range(refused):
            with dp.Peer(node.port) as peer, contextlib.suppress(ConnectionError):
                peer.send(content)
                rejections += peer.read_unit()[0] == 3
            if number == refused // 4:
                refused_from = resident_kib()
        refused_grown = resident_kib() - refused_from if refused else 0
        assert is_alive(node.port, dataset), "no answer at the end"
        assert not raised, raised[:3]
        assert grown < 16 * 1024, f"memory grew by {grown} KiB"
        assert refused_grown < 4 * 1024, f"memory grew by {refused_grown} KiB"
        assert rejections >= refused * 0.99, f"only {rejections} of {refused} refusals were answered"
    finally:
        threading.excepthook = before_hook
    return {
        "units": units,
        "last answer by type of unit": dict(sorted(answers.items())),
        "grown_kib": grown,
        "refused associations": refused,
        "refused_grown_kib": refused_grown,
        "threads": threading.active_count(),
        "seconds": round(time.monotonic() - began, 1),
    }


def make_dataset() -> bytes:
    """The bare data set of a small CT slice, explicit VR little endian."""
    import io

    import pydicom
    from pydicom.data import get_testdata_file

    header = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = UID
    stream = io.BytesIO()
    header.save_as(stream)
    whole = stream.getvalue()
    return whole[144 + struct.unpack_from("<I", whole, 140)[0] :]


def main() -> None:
    """Run from the command line."""
    from sagittal.archive.archive import Archive, Limits
    from sagittal.database.connect import Database
    from sagittal.node.dicom_node import DicomNode
    from sagittal.node.upper_layer import WireLimits
    from sagittal.serve.config import Dicom

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=5000)
    parser.add_argument("--refused", type=int, default=10_000, help="associations that are refused")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        db = Database.open(f"sqlite:///{folder}/sagittal.db")
        archive = Archive(db, Path(folder) / "archive", Limits(disk_reserve=0))
        node = DicomNode(Dicom(port=0), archive, wire=WireLimits(artim_s=0.5, pdu_s=0.5, idle_s=1.0))
        node.start()
        try:
            print(json.dumps(run(arguments.units, arguments.refused, arguments.seed, node, make_dataset()), indent=1))
        finally:
            node.stop(1.0)
            db.close()


if __name__ == "__main__":
    main()
