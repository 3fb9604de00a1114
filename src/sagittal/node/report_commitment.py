"""Reporting a storage commitment on an association of our own, to a peer that did not wait for it. Standard: PS3.4 J.3.3.

We are the provider of the class and the one who opens the association, which the selection of roles says (PS3.7 D.3.3.4).
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable

from sagittal.errors import ConfigError, ServeError
from sagittal.node import dimse, pdu
from sagittal.node.callers import Peer
from sagittal.node.commitment_data import Outcome, write_report
from sagittal.node.negotiation import COMMITMENT
from sagittal.node.pdu import ProposedContext
from sagittal.node.upper_layer import UpperLayer, WireLimits

_PROPOSED = ProposedContext(1, COMMITMENT, ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2"))
_MESSAGE = 1


def report_anew(
    outcome: Outcome,
    peer: Peer | None,
    *,
    ae_title: str,
    tls: Callable[[], ssl.SSLContext],
    limits: WireLimits | None = None,
) -> None:
    """Open an association to a peer and send it an N-EVENT-REPORT.

    Parameters
    ----------
    peer : Peer or None
        None if no entry of the list has its title.
    ae_title : str
        Our own.
    tls : callable
        Gives the context for peers that listen with TLS.
    limits : WireLimits or None

    Raises
    ------
    ConfigError
        If it is not known where the peer listens.
    ServeError, OSError
        If it is not there, refuses, or does not answer with success.
    """
    if peer is None or not peer.port or "/" in peer.address:
        raise ConfigError("[dicom] peers: no address and port for a peer that asked for storage commitment")
    limits = limits or WireLimits(idle_s=20.0)
    request = pdu.write_request(
        called=peer.ae_title, calling=ae_title, context=_PROPOSED, as_provider=True, most_pdu=limits.most_pdu
    )
    with socket.create_connection((peer.address, peer.port), timeout=limits.artim_s) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not peer.tls:
            _converse(UpperLayer(connection, limits), request, outcome)
            return
        with tls().wrap_socket(connection, server_hostname=peer.address) as secured:
            _converse(UpperLayer(secured, limits), request, outcome)


def _converse(layer: UpperLayer, request: bytes, outcome: Outcome) -> None:
    try:
        _report(layer, request, outcome)
    finally:
        layer.linger()


def _report(layer: UpperLayer, request: bytes, outcome: Outcome) -> None:
    agreed = layer.associate(request, _PROPOSED)
    layer.send(
        agreed.id,
        dimse.event_report(_MESSAGE, COMMITMENT, COMMITMENT + ".1", outcome.kind),
        write_report(outcome, agreed.transfer_syntax),
    )
    answer, last = b"", False
    while not last:
        for _, header, piece in layer.next_fragments():
            answer += piece
            last = bool(header & 2)
        if len(answer) > dimse.MOST_COMMAND:
            raise ServeError("the peer answered a report of storage commitment with far too many bytes")
    answered = dimse.read_command(answer)
    layer.release()
    if answered.field != dimse.N_EVENT_REPORT_RQ | dimse.RESPONSE or answered.status != dimse.SUCCESS:
        raise ServeError("the peer did not take a report of storage commitment")
