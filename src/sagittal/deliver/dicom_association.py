"""An association with a DICOM node, and what it means when there is none."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydicom.dataset import Dataset as Header
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket

from sagittal.deliver.destinations import DicomPeer
from sagittal.deliver.outcome import DeliveryError

#: What everything but images goes in.
PLAIN: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_MOST_PDU = 131072


class _Socket(AssociationSocket):
    """pynetdicom's, which leaves a socket that never got a connection to the garbage collector: a PACS that is away for a
    night, tried again and again, would cost a file handle each time."""

    def _shutdown_socket(self) -> None:
        left = self.socket
        super()._shutdown_socket()
        if left is not None:
            left.close()


class _Entity(AE):
    """pynetdicom's, with the socket above, which sends small packets at once."""

    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: tuple[ssl.SSLContext, str] | None
    ) -> AssociationSocket:
        made = _Socket(assoc, address=address)
        made.tls_args = tls_args
        if made.socket is not None:
            made.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made


def quiet() -> None:
    """Keep pynetdicom from logging what it sends and receives, and let it send files without decoding them.

    It logs identifiers of queries at INFO, and addresses and names with its errors.
    """
    _config.LOG_REQUEST_IDENTIFIERS = False
    _config.LOG_RESPONSE_IDENTIFIERS = False
    _config.LOG_HANDLER_LEVEL = "none"
    _config.STORE_SEND_CHUNKED_DATASET = True
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)


@contextmanager
def associated(
    peer: DicomPeer,
    contexts: list[PresentationContext],
    *,
    roles: Sequence[Any] = (),
    handlers: Sequence[Any] = (),
) -> Iterator[Any]:
    """An established association, released in the end.

    Parameters
    ----------
    peer : DicomPeer
    contexts : list of PresentationContext
    roles : sequence of SCP/SCU role selections
    handlers : sequence of (event, handler)

    Raises
    ------
    DeliveryError
        If there is none: away, rejected, or nothing that was offered is accepted.
    """
    quiet()
    own = _Entity(ae_title=peer.calling_ae_title)
    own.connection_timeout = peer.connect_s
    own.acse_timeout = own.dimse_timeout = peer.answer_s
    own.network_timeout = peer.answer_s
    own.maximum_pdu_size = _MOST_PDU
    secured = peer.secured
    try:
        association = own.associate(
            peer.host,
            peer.port,
            contexts=contexts,
            ae_title=peer.ae_title,
            max_pdu=_MOST_PDU,
            ext_neg=list(roles),
            tls_args=None if secured is None else (secured.context(), peer.host),
            evt_handlers=list(handlers),
        )
    except OSError as error:  # a name that leads nowhere
        raise DeliveryError(f"{peer.name}: its address is not known", retry=True, trouble="away") from error
    if not association.is_established:
        raise _notassociated(association, peer)
    try:
        yield association
    except BaseException:
        association.abort()
        raise
    if association.is_established:
        association.release()


def _notassociated(association: Any, peer: DicomPeer) -> DeliveryError:
    answer = association.acceptor.primitive
    if association.is_rejected and answer is not None:
        # PS3.8 table 9-21: result 2 is "transient".
        passing = getattr(answer, "result", 1) == 2
        reason = _REJECTIONS.get((getattr(answer, "result_source", 0), getattr(answer, "diagnostic", 0)), "")
        words = f"rejects the association{f': {reason}' if reason else ''}"
        return DeliveryError(f"{peer.name}: {words}", retry=passing, trouble="resources" if passing else "refused")
    if association.rejected_contexts and not association.accepted_contexts:
        return DeliveryError(f"{peer.name}: accepts none of what is offered to it", retry=False, trouble="refused")
    tls = ", or its certificate is not believed" if peer.tls else ""
    return DeliveryError(f"{peer.name}: cannot be reached{tls}", retry=True, trouble="away")


#: PS3.8 table 9-21: source and reason of a rejection.
_REJECTIONS = {
    (1, 2): "it does not support this application context",
    (1, 3): "it does not know our AE title (calling_ae_title)",
    (1, 7): "this is not its AE title (ae_title)",
    (2, 2): "it does not support this version of the protocol",
    (3, 1): "too many at a time",
    (3, 2): "too many associations",
}


def check_status(status: Header, name: str, what: str, *, also: set[int] | frozenset[int] = frozenset()) -> None:
    """Nothing, for a status of success.

    Raises
    ------
    DeliveryError
        What another one, or none, means.
    """
    if "Status" not in status:
        raise DeliveryError(f"{name}: no answer to {what}", retry=True, trouble="away")
    code = int(status.Status)
    if code == 0 or code in also:
        return
    if code >> 8 == 0xA7:
        raise DeliveryError(f"{name}: out of resources (0x{code:04X})", retry=True, trouble="resources")
    if code == 0xA801:
        raise DeliveryError(f"{name}: does not know where to send (0xA801)", retry=False, trouble="refused")
    raise DeliveryError(f"{name}: {what} failed (0x{code:04X})", retry=code == 0x0110, trouble="refused")
