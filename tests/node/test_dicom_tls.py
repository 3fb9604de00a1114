"""DICOM over TLS: both profiles' versions and ciphers, certificates of both sides, and what an administrator hears."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pynetdicom import AE, evt

from sagittal.archive.archive import Archive
from sagittal.database.events import open_events
from sagittal.errors import ConfigError
from sagittal.node.callers import Peer as Known
from sagittal.node.commitment_data import Outcome
from sagittal.node.dicom_node import DicomNode
from sagittal.node.dicom_tls import client_context, server_context
from sagittal.node.report_commitment import report_anew
from sagittal.node.upper_layer import WireLimits

FOLDER = Path(__file__).resolve().parents[2] / "fuzz"
sys.path.insert(0, str(FOLDER))
from dicom_peer import COMMITMENT, CT, EXPLICIT, Peer, bare_data_set, context  # noqa: E402

sys.path.remove(str(FOLDER))


def make_pair(folder: Path, name: str, authority: Any = None, *, password: bytes | None = None) -> Any:
    """A key and a certificate in PEM files, signed by an authority or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(authority.private if authority else key, hashes.SHA256())
    )
    paths = SimpleNamespace(subject=subject, private=key, pem=folder / f"{name}.pem", key=folder / f"{name}.key")
    paths.pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    paths.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, hidden)
    )
    return paths


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An authority, a node and a sender that it knows, and a stranger."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = make_pair(folder, "authority")
    return SimpleNamespace(
        authority=authority,
        node=make_pair(folder, "node", authority),
        sender=make_pair(folder, "sender", authority),
        stranger=make_pair(folder, "stranger"),
        hidden=make_pair(folder, "hidden", authority, password=b"secret"),
    )


@pytest.fixture
def mutual(start: Callable[..., DicomNode], certificates: Any) -> DicomNode:
    """A node that lets in only peers with a certificate."""
    c = certificates
    return start(tls=True, certificate=c.node.pem, key=c.node.key, ca=c.authority.pem, mutual=True)


def secured(node: DicomNode, context: ssl.SSLContext) -> Peer:
    peer = Peer(node.port)
    peer.socket = context.wrap_socket(peer.socket, server_hostname="127.0.0.1")
    return peer


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_objects_come_byte_for_byte_over_mutual_tls(
    version: ssl.TLSVersion, mutual: DicomNode, certificates: Any, archive: Archive, make_slice: Callable[..., Path]
) -> None:
    ours = client_context(
        certificate=certificates.sender.pem, key=certificates.sender.key, ca=certificates.authority.pem
    )
    ours.minimum_version = ours.maximum_version = version
    data, _, uid, _ = bare_data_set(make_slice(size=700))
    with secured(mutual, ours) as peer:
        assert peer.socket.version() == version.name.replace("_", ".")
        assert "GCM" in peer.socket.cipher()[0]
        assert peer.associate(context(1, CT, (EXPLICIT,)))
        assert peer.store(1, data, uid) == 0
        assert peer.release()
    assert bare_data_set(archive.open(1))[0] == data


def test_pynetdicom_sends_over_mutual_tls(mutual: DicomNode, certificates: Any, ct: Path) -> None:
    import pydicom

    ours = client_context(
        certificate=certificates.sender.pem, key=certificates.sender.key, ca=certificates.authority.pem
    )
    entity = AE("PACS")
    entity.add_requested_context(CT, EXPLICIT)
    association = entity.associate("127.0.0.1", mutual.port, ae_title="SAGITTAL", tls_args=(ours, "127.0.0.1"))
    assert association.is_established
    assert association.send_c_store(pydicom.dcmread(ct)).Status == 0
    association.release()


def the_event(archive: Archive) -> Any:
    """The one event there is; it may come a moment after the peer was cut off."""
    due = time.monotonic() + 5
    while not open_events(archive.db) and time.monotonic() < due:
        time.sleep(0.02)
    (event,) = open_events(archive.db)
    return event


REASONS = {
    "nobody": "peer did not return a certificate",
    "stranger": "certificate verify failed",
    "plain": "wrong version number",
    "old": "no shared cipher",
}


@pytest.mark.parametrize("who", REASONS)
def test_peers_without_the_right_certificate_are_refused_and_told_of(
    who: str, mutual: DicomNode, certificates: Any, archive: Archive
) -> None:
    c = certificates

    def associated() -> bool:
        if who == "plain":
            peer = Peer(mutual.port)
        else:
            pair = {"stranger": c.stranger, "old": c.sender}.get(who)
            ours = client_context(ca=c.authority.pem, certificate=pair and pair.pem, key=pair and pair.key)
            if who == "old":
                ours.set_ciphers("ECDHE+AES+SHA256:!AESGCM:@SECLEVEL=0")  # CBC
                ours.maximum_version = ssl.TLSVersion.TLSv1_2
            peer = secured(mutual, ours)
        with peer:
            return peer.associate(context(1, CT))

    with contextlib.suppress(OSError):  # TLS 1.3 tells a client when it first reads
        assert not associated()
    event = the_event(archive)
    assert (event.code, event.about) == ("dicom-tls", "127.0.0.1")
    assert REASONS[who] in event.message
    assert not archive.receiving


def test_tls_where_none_is_spoken_is_said(start: Callable[..., DicomNode], archive: Archive) -> None:
    node = start()
    with contextlib.suppress(OSError), secured(node, client_context()):
        pass
    assert "it speaks TLS, which is off here" in the_event(archive).message


def test_who_only_looks_is_not_reported(start: Callable[..., DicomNode], certificates: Any, archive: Archive) -> None:
    node = start(tls=True, certificate=certificates.node.pem, key=certificates.node.key)
    with Peer(node.port):
        pass
    with secured(node, client_context(ca=certificates.authority.pem)) as peer:
        assert peer.associate(context(1, CT))
    assert open_events(archive.db) == []


def test_a_handshake_that_does_not_end_is_cut(start: Callable[..., DicomNode], certificates: Any) -> None:
    node = start(WireLimits(artim_s=0.4), tls=True, certificate=certificates.node.pem, key=certificates.node.key)
    with Peer(node.port) as peer:
        peer.send(b"\x16\x03\x01")
        began = time.monotonic()
        assert peer.read(1) == b""
        assert time.monotonic() - began < 3


def test_a_commitment_is_reported_over_mutual_tls(certificates: Any) -> None:
    c = certificates
    heard: list[int] = []
    entity = AE("ASKER")
    entity.add_supported_context(COMMITMENT, scu_role=True, scp_role=True)
    theirs = server_context(c.sender.pem, c.sender.key, ca=c.authority.pem, mutual=True)

    def hear(event: Any) -> tuple[int, None]:
        heard.append(event.event_type)
        return 0, None

    server = entity.start_server(
        ("127.0.0.1", 0), block=False, ssl_context=theirs, evt_handlers=[(evt.EVT_N_EVENT_REPORT, hear)]
    )
    try:
        report_anew(
            Outcome("1.2.3", ((CT, "1.2.4"),)),
            Known("ASKER", "127.0.0.1", server.server_address[1], tls=True),
            ae_title="SAGITTAL",
            tls=lambda: client_context(certificate=c.node.pem, key=c.node.key, ca=c.authority.pem),
        )
        with pytest.raises(OSError, match="certificate verify failed"):
            report_anew(
                Outcome("1.2.3", ((CT, "1.2.4"),)),
                Known("ASKER", "127.0.0.1", server.server_address[1], tls=True),
                ae_title="SAGITTAL",
                tls=lambda: client_context(ca=c.stranger.pem),
            )
    finally:
        server.shutdown()
    assert heard == [1]


def test_files_that_do_not_fit_are_said(certificates: Any, tmp_path: Path) -> None:
    c = certificates
    with pytest.raises(ConfigError, match="two PEM files that belong to each other"):
        server_context(c.node.pem, c.sender.key)
    with pytest.raises(ConfigError, match="No such file"):
        server_context(tmp_path / "none.pem", c.node.key)
    with pytest.raises(ConfigError, match="the key has a password"):
        server_context(c.hidden.pem, c.hidden.key)
    with pytest.raises(ConfigError, match="needs the certificates of the authorities"):
        server_context(c.node.pem, c.node.key, mutual=True)
    with pytest.raises(ConfigError, match="ca cannot be used"):
        server_context(c.node.pem, c.node.key, ca=tmp_path / "none.pem")


def test_peers_that_cannot_be_reached_are_said() -> None:
    outcome = Outcome("1.2.3", ())
    for peer in (None, Known("ASKER", "127.0.0.1"), Known("ASKER", "10.0.0.0/8", 104)):
        with pytest.raises(ConfigError, match="no address and port"):
            report_anew(outcome, peer, ae_title="SAGITTAL", tls=client_context)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        report_anew(outcome, Known("ASKER", "127.0.0.1", port), ae_title="SAGITTAL", tls=client_context)
