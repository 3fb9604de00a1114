"""Peers that break the rules, lie about lengths, are slow, or come again and again."""

from __future__ import annotations

import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sagittal.archive.archive import Archive
from sagittal.node.callers import Peer as Known
from sagittal.node.dicom_node import DicomNode
from sagittal.node.upper_layer import WireLimits

FOLDER = Path(__file__).resolve().parents[2] / "fuzz"
sys.path.insert(0, str(FOLDER))
import dicom_peer  # noqa: E402
from dicom_peer import CT, ECHO, EXPLICIT, VERIFICATION, Peer, bare_data_set, context  # noqa: E402

sys.path.remove(str(FOLDER))


def resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


@pytest.mark.parametrize("kind", [1, 4, 5, 7, 9])
def test_a_declared_length_of_4_gib_is_cut_without_memory(kind: int, start: Callable[..., DicomNode]) -> None:
    """pynetdicom #1086: the length was read from the wire and believed."""
    node = start()
    before = resident_kib()
    with Peer(node.port) as peer:
        if kind != 1:
            assert peer.associate(context(1, VERIFICATION))
        peer.send(struct.pack(">BBI", kind, 0, 2**32 - 1))
        try:
            for _ in range(50):
                peer.send(bytes(2**16))
        except ConnectionError:
            pass  # the node has closed
        try:
            answer = peer.read_unit()
        except ConnectionError:
            answer = (7, b"")  # the abort was lost in the flood, and the node has closed
    assert answer[0] == 7
    assert resident_kib() - before < 8 * 1024


def test_dripped_bytes_end_with_their_time(start: Callable[..., DicomNode]) -> None:
    node = start(WireLimits(artim_s=0.6, idle_s=5, pdu_s=0.6))
    with Peer(node.port) as silent, Peer(node.port) as dripping, Peer(node.port) as within:
        assert within.associate(context(1, VERIFICATION))
        content = dicom_peer.request(context(1, VERIFICATION))
        began = time.monotonic()
        for at in range(12):
            try:
                dripping.send(content[at : at + 1])
                within.send(dicom_peer.data(1, 3, ECHO)[at : at + 1])
            except OSError:
                break
            time.sleep(0.1)
        assert silent.read(1) == b""
        assert within.read_unit()[0] in (0, 7)
        assert time.monotonic() - began < 4


def test_an_idle_association_is_aborted(start: Callable[..., DicomNode]) -> None:
    node = start(WireLimits(idle_s=0.5))
    with Peer(node.port) as peer:
        assert peer.associate(context(1, VERIFICATION))
        assert peer.read_unit() == (7, bytes((0, 0, 2, 0)))


def test_a_slow_archive_is_no_silence_of_the_peer(
    start: Callable[..., DicomNode], archive: Archive, ct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start(WireLimits(idle_s=0.4))
    data, _, uid, _ = bare_data_set(ct)
    keep = archive.keep

    def slowly(part: Path, arrival: Any) -> Any:
        time.sleep(0.6)
        return keep(part, arrival)

    monkeypatch.setattr(archive, "keep", slowly)
    with Peer(node.port) as peer:
        assert peer.associate(context(1, CT, (EXPLICIT,)))
        for _ in range(2):
            assert peer.store(1, data, uid) == 0
            time.sleep(0.15)


def test_a_message_slower_than_allowed_is_cut(
    start: Callable[..., DicomNode], ct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start(WireLimits(slowest=10**9))
    data, _, uid, _ = bare_data_set(ct)
    with Peer(node.port) as peer:
        assert peer.associate(context(1, CT, (EXPLICIT,)))
        peer.send(dicom_peer.data(1, 3, dicom_peer.store_command(uid)) + dicom_peer.data(1, 0, data[:100]))
        time.sleep(0.4)
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + 61)
        monkeypatch.setattr("sagittal.node.upper_layer.time", later)
        peer.send(dicom_peer.data(1, 0, data[100:200]))
        assert peer.read_unit()[0] in (0, 7)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (dicom_peer.unit(4, struct.pack(">IBB", 1000, 1, 3) + b"abc"), 6),  # a value longer than its unit
        (dicom_peer.unit(4, b""), 6),
        (dicom_peer.unit(4, struct.pack(">IBB", 1, 1, 3)), 6),
        (dicom_peer.data(99, 3, ECHO), 6),  # a context that was not agreed
        (dicom_peer.data(1, 2, b"1234"), 6),  # a data set without a command
        (dicom_peer.data(1, 3, b"\x08\0\0\0\4\0\0\0abcd"), 6),  # a command of another group
        (dicom_peer.data(1, 3, b"\0\0\0\0\xff\xff\xff\xff"), 6),
        (dicom_peer.data(1, 3, dicom_peer.command(dicom_peer.short(0x100, 1))), 6),
        (dicom_peer.data(1, 1, bytes(9000)), 6),
        (dicom_peer.unit(5, bytes(5)), 6),
        (dicom_peer.request(context(1, VERIFICATION)), 2),  # an association within an association
        (dicom_peer.unit(2, bytes(70)), 2),
        (dicom_peer.unit(99, bytes(4)), 1),
        (dicom_peer.data(1, 1, b"\0") + dicom_peer.unit(5, bytes(4)), 2),  # released within a message
    ],
)
def test_broken_rules_are_answered_by_an_abort_with_the_reason(
    content: bytes, reason: int, start: Callable[..., DicomNode]
) -> None:
    node = start()
    with Peer(node.port) as peer:
        assert peer.associate(context(1, VERIFICATION))
        peer.send(content)
        assert peer.read_unit() == (7, bytes((0, 0, 2, reason)))
        assert peer.read(1) == b""
    with Peer(node.port) as peer:
        assert peer.associate(context(1, VERIFICATION))


def test_many_refused_associations_leave_memory_and_threads_flat(
    start: Callable[..., DicomNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start(peers=(Known("TEST", "10.9.8.7"),))
    monkeypatch.setattr(node._callers, "take_refusal", lambda _address: False)  # each is read and answered
    monkeypatch.setattr(node._callers, "is_tiresome", lambda _address: False)
    content = dicom_peer.request(context(1, VERIFICATION))

    def refuse(count: int) -> None:
        for _ in range(count):
            with Peer(node.port) as peer:
                peer.send(content)
                assert peer.read_unit()[0] == 3

    refuse(150)
    before = resident_kib()
    refuse(700)
    assert resident_kib() - before < 2048
    assert threading.active_count() < 12
