"""Who may open an association with the DICOM node, and what is agreed in it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom.uid import generate_uid

from sagittal.archive.archive import Archive
from sagittal.database.events import open_events
from sagittal.database.schema import audit, instances
from sagittal.errors import ConfigError
from sagittal.node.callers import Peer as Known
from sagittal.node.dicom_node import DicomNode
from sagittal.protect.audit import Audit

FOLDER = Path(__file__).resolve().parents[2] / "fuzz"
sys.path.insert(0, str(FOLDER))
from dicom_peer import CT, EXPLICIT, IMPLICIT, VERIFICATION, Peer, context  # noqa: E402

sys.path.remove(str(FOLDER))


def rows(archive: Archive, table: sa.Table = instances) -> list[Any]:
    with archive.db.read() as c:
        return list(c.execute(sa.select(table)).mappings())


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"called": "OTHER"}, "00010107"),
        ({"calling": "STRANGER"}, "00010103"),
        ({"calling": "../secret"}, "00010103"),
        ({"calling": ""}, "00010103"),
        ({"application": "1.2.3"}, "00010102"),
        ({"version": 2}, "00010202"),
    ],
)
def test_strangers_are_refused_with_the_reason(
    fields: dict[str, Any], answer: str, start: Callable[..., DicomNode], archive: Archive
) -> None:
    node = start(peers=(Known("TEST", "127.0.0.0/8"), Known("STRANGER", "10.9.8.7")), audit=Audit(archive.db))
    with Peer(node.port) as peer:
        assert not peer.associate(context(1, VERIFICATION), **fields)
        assert peer.answer.hex() == answer
        assert peer.read(1) == b""
    assert [event.code for event in open_events(archive.db)] == ["dicom-refused"]
    assert [row["outcome"] for row in rows(archive, audit)] == ["refused"]
    with Peer(node.port) as peer:
        assert peer.associate(context(1, VERIFICATION))


def test_without_a_list_only_this_machine_may_call() -> None:
    from sagittal.node.callers import Callers

    nobody = Callers("SAGITTAL")
    assert nobody.knows("ANY", "127.0.0.1")
    assert nobody.knows("ANY", "::1")
    assert not nobody.knows("ANY", "192.168.1.5")
    named = Callers("SAGITTAL", [Known("CT1", "10.3.0.0/16"), Known("MR1", "::1")])
    assert named.knows("CT1", "10.3.7.1")
    assert named.knows("CT1", "::ffff:10.3.7.1")
    assert not named.knows("CT1", "10.4.7.1")
    assert not named.knows("MR1", "10.3.7.1")
    assert not named.knows("CT1", "127.0.0.1")
    assert not named.knows("CT1", "no address")
    with pytest.raises(ConfigError, match="1 to 16 printable"):
        Callers("A\\B")
    with pytest.raises(ConfigError, match="no host's name"):
        Known("CT1", "10.3.0.0/33")
    with pytest.raises(ConfigError, match="from 0 to 65535"):
        Known("CT1", "10.3.0.1", 65536)


def test_names_of_hosts_are_looked_up_again_when_nobody_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from sagittal.node import callers

    now, addresses = [1000.0], ["10.0.0.1"]
    monkeypatch.setattr(callers, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(
        callers.socket, "getaddrinfo", lambda *_args, **_keywords: [(0, 0, 0, "", (a, 0)) for a in addresses]
    )
    named = callers.Callers("SAGITTAL", [Known("CT1", "ct1.hospital.example")])
    assert named.knows("CT1", "10.0.0.1")
    addresses[:] = ["10.0.0.2"]
    assert not named.knows("CT1", "10.0.0.2")  # asked a moment ago
    now[0] += 61
    assert named.knows("CT1", "10.0.0.2")
    assert not named.knows("CT1", "10.0.0.1")


def test_more_associations_than_allowed_are_refused_until_one_ends(start: Callable[..., DicomNode]) -> None:
    node = start(most_associations=2)
    first, second, third = Peer(node.port), Peer(node.port), Peer(node.port)
    with first, second, third:
        assert first.associate(context(1, VERIFICATION))
        assert second.associate(context(1, VERIFICATION))
        assert not third.associate(context(1, VERIFICATION))
        assert third.answer.hex() == "00020302"  # transient, by the provider: local limit exceeded
        assert first.release()
    for _ in range(100):
        if node.associations < 2:
            break
        time.sleep(0.02)
    with Peer(node.port) as fourth:
        assert fourth.associate(context(1, VERIFICATION))


def test_refused_again_and_again_an_unknown_address_is_closed_unread(
    start: Callable[..., DicomNode], archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start(peers=(Known("TEST", "10.9.8.7"),))
    monkeypatch.setattr(node._callers, "knows_address", lambda _address: False)
    answers = []
    for _ in range(40):
        with Peer(node.port) as peer:
            try:
                peer.associate(context(1, VERIFICATION))
                answers.append(peer.answer)
            except ConnectionError:
                answers.append(b"")
    assert answers[0].hex() == "00010103"
    assert answers[-1] == b""
    assert [event.count for event in open_events(archive.db)] == [30]


def test_contexts_are_answered_one_by_one(start: Callable[..., DicomNode]) -> None:
    lossy, lossless, deflated = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.1.99"
    node = start()
    with Peer(node.port) as peer:
        assert peer.associate(
            context(1, VERIFICATION, (EXPLICIT, IMPLICIT)),
            context(3, CT, (deflated, lossy, lossless, EXPLICIT)),
            context(5, CT, (lossy,)),
            context(7, CT, (deflated,)),
            context(9, "1.2.840.10008.5.1.4.1.2.2.1"),
            context(11, "1.3.46.670589.5.0.1"),
            context(13, "1.2.840.10008.5.1.4.38.1"),  # hanging protocols belong to no study
        )
    assert peer.accepted[1] == (0, EXPLICIT)
    assert peer.accepted[3] == (0, lossless)
    assert peer.accepted[5] == (0, lossy)
    assert [peer.accepted[n][0] for n in (7, 9, 11, 13)] == [4, 3, 3, 3]
    node = start(unknown_classes=True)
    with Peer(node.port) as peer:
        assert peer.associate(context(11, "1.3.46.670589.5.0.1"), context(13, "1.2.840.10008.5.1.4.38.1"))
    assert [peer.accepted[n][0] for n in (11, 13)] == [0, 3]


def test_every_storage_class_of_pynetdicom_is_accepted() -> None:
    from pynetdicom.sop_class import _STORAGE_CLASSES

    from sagittal.node.negotiation import is_storage

    assert len(_STORAGE_CLASSES) > 150
    assert [name for name, uid in _STORAGE_CLASSES.items() if not is_storage(uid)] == []


def test_roles_window_and_identity_are_answered_as_the_standard_says(start: Callable[..., DicomNode]) -> None:
    from pynetdicom import AE, build_role
    from pynetdicom.pdu_primitives import AsynchronousOperationsWindowNegotiation, UserIdentityNegotiation

    node = start()
    window, identity = AsynchronousOperationsWindowNegotiation(), UserIdentityNegotiation()
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 8
    identity.user_identity_type, identity.primary_field, identity.positive_response_requested = 1, b"somebody", True
    entity = AE()
    entity.add_requested_context(CT)
    association = entity.associate(
        "127.0.0.1", node.port, ae_title="SAGITTAL", ext_neg=[build_role(CT, True, True), window, identity]
    )
    assert association.is_established
    agreed = association.accepted_contexts[0]
    assert (agreed.as_scu, agreed.as_scp) == (True, False)
    answered = association.acceptor.primitive.user_information
    assert {type(i).__name__ for i in answered} >= {"AsynchronousOperationsWindowNegotiation"}
    assert not any("UserIdentity" in type(i).__name__ for i in answered)
    assert association.acceptor.maximum_length == 131072
    association.release()


def test_generated_uids_are_uids() -> None:
    from sagittal.node.dimse import is_uid

    assert all(is_uid(generate_uid()) for _ in range(50))
    assert is_uid("1.2.840.10008.1.1")
    assert not any(is_uid(text) for text in ("", ".", "..", "1", "1.", "1..2", "3.1", "1.2/3", "1.a", "1." + "1" * 63))
