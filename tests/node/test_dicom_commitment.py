"""Storage commitment: asked by pynetdicom and by a bare socket, answered on the same association or on another."""

from __future__ import annotations

import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pynetdicom import AE, build_role, evt

from sagittal.archive.archive import Archive
from sagittal.archive.complete import close_committed
from sagittal.database.events import open_events
from sagittal.database.schema import commitments, series
from sagittal.errors import ConfigError, ServeError
from sagittal.node.callers import Peer as Known
from sagittal.node.commitment import Commitments
from sagittal.node.commitment_data import Outcome, read_action, read_report, write_report
from sagittal.node.dicom_node import DicomNode

FOLDER = Path(__file__).resolve().parents[2] / "fuzz"
sys.path.insert(0, str(FOLDER))
import dicom_peer  # noqa: E402
from dicom_peer import COMMITMENT, CT, EXPLICIT, IMPLICIT, Peer, bare_data_set, context  # noqa: E402

sys.path.remove(str(FOLDER))


def rows(archive: Archive, table: sa.Table = commitments) -> list[Any]:
    with archive.db.read() as c:
        return list(c.execute(sa.select(table)).mappings())


def wait_for(what: Callable[[], Any], seconds: float = 8.0) -> Any:
    due = time.monotonic() + seconds
    while time.monotonic() < due:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    return what()


def send(node: DicomNode, *paths: Path) -> list[tuple[str, str]]:
    """Store files; class and instance of each."""
    items = []
    with Peer(node.port) as peer:
        assert peer.associate(context(1, CT, (EXPLICIT,)))
        for path in paths:
            data, sop_class, uid, _ = bare_data_set(path)
            assert peer.store(1, data, uid) == 0
            items.append((sop_class, uid))
        assert peer.release()
    return items


def asking(transaction: str, items: list[tuple[str, str]]) -> Dataset:
    header = Dataset()
    header.TransactionUID = transaction
    header.ReferencedSOPSequence = []
    for sop_class, uid in items:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        header.ReferencedSOPSequence.append(item)
    return header


def encoded(header: Dataset, syntax: str = IMPLICIT, *, undefined: bool = False) -> bytes:
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, syntax == IMPLICIT
    header["ReferencedSOPSequence"].is_undefined_length = undefined
    for item in header.ReferencedSOPSequence:
        item.is_undefined_length_sequence_item = undefined
        nested = Dataset()
        nested.ReferencedSOPInstanceUID = "1.2.666"  # deeper than where it is looked for
        item.ReferencedInstanceSequence = [nested]
        item["ReferencedInstanceSequence"].is_undefined_length = undefined
    write_dataset(file, header)
    return file.getvalue()


class Asker:
    """A pynetdicom sender that asks, and listens for the answer where it is told to."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, Dataset]] = []
        self.status = 0
        self.entity = AE("ASKER")
        self.entity.acse_timeout = self.entity.dimse_timeout = self.entity.network_timeout = 10
        self.entity.add_requested_context(COMMITMENT)
        self.entity.add_supported_context(COMMITMENT, scu_role=True, scp_role=True)

    def hear(self, event: Any) -> tuple[int, None]:
        self.reports.append((event.event_type, event.event_information))
        return self.status, None

    def ask(self, node: DicomNode, header: Dataset, *, wait: bool) -> int:
        """Ask for storage commitment; the status of the answer."""
        association = self.entity.associate(
            "127.0.0.1", node.port, ae_title="SAGITTAL", evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.hear)]
        )
        assert association.is_established
        status, _ = association.send_n_action(header, 1, COMMITMENT, COMMITMENT + ".1")
        if wait:
            wait_for(lambda: self.reports)
        association.release()
        return status.Status

    @contextmanager
    def listening(self, port: int = 0) -> Iterator[int]:
        server = self.entity.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.hear)]
        )
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_a_commitment_is_reported_on_its_association_and_completes_the_series(
    start: Callable[..., DicomNode], archive: Archive, make_slice: Callable[..., Path]
) -> None:
    node = start(on_committed=lambda uids: close_committed(archive.db, uids))
    items = send(node, *(make_slice(k) for k in range(3)))
    asker = Asker()
    assert asker.ask(node, asking("1.2.3.4.5", items), wait=True) == 0
    ((kind, report),) = asker.reports
    assert kind == 1
    assert report.TransactionUID == "1.2.3.4.5"
    assert [(i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID) for i in report.ReferencedSOPSequence] == items
    assert "FailedSOPSequence" not in report
    assert wait_for(lambda: rows(archive)[0]["answered_at"])
    assert rows(archive, series)[0]["completed_by"] == "commitment"


def test_what_is_missing_or_altered_is_reported_as_failed(
    start: Callable[..., DicomNode], archive: Archive, make_slice: Callable[..., Path]
) -> None:
    node = start()
    (good, altered, other) = send(node, *(make_slice(k) for k in range(3)))
    with archive.db.read() as c:
        place = c.execute(sa.text("select path from instances where sop_instance_uid = :u"), {"u": altered[1]}).scalar()
    path = archive.path_of(place)
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    asker = Asker()
    mr = "1.2.840.10008.5.1.4.1.1.4"
    asker.ask(node, asking("1.2.3.4.6", [good, altered, (mr, other[1]), (CT, "1.2.3.404")]), wait=True)
    ((kind, report),) = asker.reports
    assert kind == 2
    assert [i.ReferencedSOPInstanceUID for i in report.ReferencedSOPSequence] == [good[1]]
    assert {i.ReferencedSOPInstanceUID: i.FailureReason for i in report.FailedSOPSequence} == {
        altered[1]: 0x110,
        other[1]: 0x119,
        "1.2.3.404": 0x112,
    }


def test_a_peer_that_does_not_wait_is_told_on_another_association(
    start: Callable[..., DicomNode], archive: Archive, ct: Path
) -> None:
    asker = Asker()
    with asker.listening() as port:
        node = start(peers=(Known("TEST", "127.0.0.1"), Known("ASKER", "127.0.0.1", port)))
        items = send(node, ct)
        assert asker.ask(node, asking("1.2.3.4.7", items), wait=False) == 0
        assert wait_for(lambda: asker.reports)
        assert wait_for(lambda: rows(archive)[0]["answered_at"])
    assert [kind for kind, _ in asker.reports] == [1]


def test_a_request_outlives_a_restart_and_a_peer_that_is_away(
    start: Callable[..., DicomNode], archive: Archive, ct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asker, port = Asker(), free_port()
    monkeypatch.setattr(Commitments, "_look", lambda *_: time.sleep(0.2) or Outcome("1.2.3", ()))
    node = start(peers=(Known("TEST", "127.0.0.1"), Known("ASKER", "127.0.0.1", port)))
    items = send(node, ct)
    asker.ask(node, asking("1.2.3.4.8", items), wait=False)
    node.stop(0.0)
    monkeypatch.undo()
    assert [(row["answered_at"], row["peer"]) for row in rows(archive)] == [(None, "ASKER")]
    away = Commitments(archive, report=node._report, wait_s=0.3)
    away.start()
    assert wait_for(lambda: [e for e in open_events(archive.db) if e.code == "commitment"])
    with asker.listening(port):
        assert wait_for(lambda: asker.reports)
        assert wait_for(lambda: rows(archive)[0]["answered_at"])
    assert wait_for(lambda: not open_events(archive.db))
    away.stop()
    assert rows(archive)[0]["attempts"] >= 2


def test_reports_are_given_up_where_nobody_knows_the_address(archive: Archive) -> None:
    tried: list[str] = []

    def nowhere(title: str, _outcome: Outcome) -> None:
        tried.append(title)
        raise ConfigError("no address")

    waiting = Commitments(archive, report=nowhere, wait_s=0.01)
    waiting.start()
    pending = waiting.ask("ASKER", "1.2.3.4.9", [(CT, "1.2.3")])
    assert wait_for(lambda: pending.outcome is not None)
    assert not tried  # the association may still report it
    waiting.hand_back(pending)
    waiting.hand_back(pending)
    assert wait_for(lambda: [e for e in open_events(archive.db) if e.level == "error"])
    waiting.stop()
    assert tried == ["ASKER"]


def test_attempts_wait_longer_and_longer(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Commitments, "_put", lambda _self, _pending, wait_s: waits.append(wait_s))

    def away(_title: str, _outcome: Outcome) -> None:
        raise ServeError("away")

    waiting = Commitments(archive, report=away, wait_s=15.0)
    pending = waiting.ask("ASKER", "1.2.3.4.10", [(CT, "1.2.3")])
    pending.held = False
    for _ in range(12):
        waiting._advance(pending)
    assert waits[1:] == [15, 30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert rows(archive)[0]["attempts"] == 12
    again = Commitments(archive, report=away)
    waits.clear()
    again.start()
    again.stop()
    assert waits == []


def action(peer: Peer, data: bytes, *, uid: str = COMMITMENT + ".1", kind: int = 1, sop_class: str = COMMITMENT) -> int:
    """Send an N-ACTION; the status of the answer."""
    asked = dicom_peer.command(
        dicom_peer.element(3, sop_class.encode()),
        dicom_peer.short(0x100, 0x130),
        dicom_peer.short(0x110, 9),
        dicom_peer.short(0x800, 1),
        dicom_peer.element(0x1001, uid.encode()),
        dicom_peer.short(0x1008, kind),
    )
    peer.send(dicom_peer.data(1, 3, asked) + dicom_peer.data_units(1, data, 65536))
    return peer.status()


def nested(depth: int) -> bytes:
    """A sequence within a sequence within a sequence."""
    start = struct.pack("<HHI", 8, 0x1199, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return start * depth


def many(count: int) -> bytes:
    """A request for so many objects, in implicit VR."""
    item = encoded(asking("1.2.3.4.14", [(CT, "1.2.3")]))[26:]  # after the transaction and the sequence's head
    value = item * count
    return encoded(asking("1.2.3.4.14", []))[:18] + struct.pack("<HHI", 8, 0x1199, len(value)) + value


def test_requests_that_make_no_sense_are_answered_so(start: Callable[..., DicomNode], archive: Archive) -> None:
    node = start()
    good = encoded(asking("1.2.3.4.11", [(CT, "1.2.3")]))
    bad = [
        b"",
        b"\xff" * 100,
        nested(20_000),
        encoded(asking("1.2.3.4.12", [(CT, "1.2.3")])).replace(b"1.2.3.4.12", b"../../etc/"),
        encoded(asking("1.2.3.4.12", [])),
        encoded(asking("1.2.3.4.13", [(CT, "1.2.377")])).replace(b"1.2.377", b"../x/y/"),
        good[:-3],
        many(20_001),
    ]
    for data in bad:
        with Peer(node.port) as peer:
            assert peer.associate(context(1, COMMITMENT, (IMPLICIT,)))
            assert action(peer, data or b"\0\0") == 0x115
    with Peer(node.port) as peer:
        assert peer.associate(context(1, COMMITMENT, (IMPLICIT,)))
        assert action(peer, good, uid="1.2.3") == 0x112
        assert action(peer, good, kind=2) == 0x123
        assert action(peer, good, sop_class=CT) == 0x118
    assert rows(archive) == []


def test_a_transaction_stands_for_one_request(archive: Archive) -> None:
    waiting = Commitments(archive)
    first = waiting.ask("ASKER", "1.2.3.4", [(CT, "1.2.3")])
    waiting.close(first)
    assert waiting.ask("ASKER", "1.2.3.4", [(CT, "1.2.3")]).row == first.row
    assert rows(archive)[0]["answered_at"] is None
    with pytest.raises(ValueError, match="was used before"):
        waiting.ask("ASKER", "1.2.3.4", [(CT, "1.2.4")])
    with pytest.raises(ValueError, match="was used before"):
        waiting.ask("OTHER", "1.2.3.4", [(CT, "1.2.3")])


def test_what_another_archive_reports_is_passed_on(start: Callable[..., DicomNode]) -> None:
    heard: list[tuple[str, str, bool]] = []
    node = start(on_report=lambda *what: heard.append(what))
    entity = AE("PACS")
    entity.add_requested_context(COMMITMENT)
    association = entity.associate(
        "127.0.0.1", node.port, ae_title="SAGITTAL", ext_neg=[build_role(COMMITMENT, scp_role=True)]
    )
    assert association.is_established
    assert association.accepted_contexts[0].as_scp
    report = asking("1.2.3.4.15", [(CT, "1.2.3")])
    status, _ = association.send_n_event_report(report, 1, COMMITMENT, COMMITMENT + ".1")
    assert status.Status == 0
    report.FailedSOPSequence = report.ReferencedSOPSequence
    status, _ = association.send_n_event_report(report, 2, COMMITMENT, COMMITMENT + ".1")
    assert status.Status == 0
    association.release()
    assert heard == [("PACS", "1.2.3.4.15", True), ("PACS", "1.2.3.4.15", False)]


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_data_sets_are_those_of_pydicom(syntax: str) -> None:
    items = tuple((CT, f"1.2.{k}") for k in range(1, 13))
    content = write_report(Outcome("1.2.9", items[:9], tuple((*item, 0x112) for item in items[9:])), syntax)
    report = read_dataset(BytesIO(content), syntax == IMPLICIT, True)
    assert report.TransactionUID == "1.2.9"
    assert [(i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID) for i in report.ReferencedSOPSequence] == [*items[:9]]
    assert [(i.ReferencedSOPInstanceUID, i.FailureReason) for i in report.FailedSOPSequence] == [
        ("1.2.10", 0x112),
        ("1.2.11", 0x112),
        ("1.2.12", 0x112),
    ]
    assert read_report(content, syntax) == ("1.2.9", 3)
    for undefined in (False, True):
        assert read_action(encoded(asking("1.2.9", [*items]), syntax, undefined=undefined), syntax) == (
            "1.2.9",
            [*items],
        )


def test_a_long_report_is_sent_in_units_that_the_peer_takes(
    start: Callable[..., DicomNode], archive: Archive, ct: Path
) -> None:
    node = start()
    items = [(CT, f"1.2.3.{k}") for k in range(1, 400)]
    with Peer(node.port) as peer:
        assert peer.associate(context(1, COMMITMENT, (IMPLICIT,)), most_pdu=1024)
        assert action(peer, encoded(asking("1.2.3.4.16", items))) == 0
        whole = b""
        while True:
            kind, body = peer.read_unit()
            assert kind == 4
            assert len(body) <= 1024
            if not body[5] & 1:
                whole += body[6:]
                if body[5] & 2:
                    break
    assert len(whole) > 20_000
    assert threading.active_count() < 20
