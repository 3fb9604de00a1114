"""Reporting a storage commitment on an association of our own, to a peer that did not wait for it. Standard: PS3.4 J.3.3.

It is rare and not in a hurry, so pynetdicom does it: we are the provider of the class and the one who opens the
association, which the selection of roles says (PS3.7 D.3.3.4).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from io import BytesIO

from sagittal.errors import ConfigError, ServeError
from sagittal.serve.callers import Peer
from sagittal.serve.commitment_data import Outcome, write_report
from sagittal.serve.negotiation import COMMITMENT

_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
#: Seconds for connecting, and for each answer.
_WAIT_S = 15.0


def report_anew(
    outcome: Outcome, peer: Peer | None, *, ae_title: str, tls: Callable[[], ssl.SSLContext] | None = None
) -> None:
    """Open an association to a peer and send it an N-EVENT-REPORT.

    Parameters
    ----------
    peer : Peer or None
        None if no entry of the list has its title.
    ae_title : str
        Our own.
    tls : callable or None
        Gives the context for peers that listen with TLS.

    Raises
    ------
    ConfigError
        If it is not known where the peer listens.
    ServeError
        If it is not there, refuses, or does not answer with success.
    """
    if peer is None or not peer.port or "/" in peer.address:
        raise ConfigError("[dicom] peers: no address and port for a peer that asked for storage commitment")
    if peer.tls and tls is None:
        raise ConfigError("[dicom] peers: a peer listens with TLS, and [dicom] has no certificate")
    from pydicom.filereader import read_dataset
    from pynetdicom import AE, build_role

    entity = AE(ae_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = _WAIT_S
    entity.add_requested_context(COMMITMENT, [_EXPLICIT, _IMPLICIT])
    association = entity.associate(
        peer.address,
        peer.port,
        ae_title=peer.ae_title,
        ext_neg=[build_role(COMMITMENT, scp_role=True)],
        tls_args=(tls(), peer.address) if peer.tls and tls is not None else None,
    )
    if not association.is_established:
        raise ServeError("the peer did not take an association for a report of storage commitment")
    try:
        data = read_dataset(BytesIO(write_report(outcome, _EXPLICIT)), False, True)
        status, _ = association.send_n_event_report(data, outcome.kind, COMMITMENT, COMMITMENT + ".1")
        if "Status" not in status or status.Status != 0:
            raise ServeError("the peer did not take a report of storage commitment")
    except ValueError as error:  # it accepted the association, but not the class or our role
        raise ServeError("the peer does not take reports of storage commitment") from error
    finally:
        association.release()
