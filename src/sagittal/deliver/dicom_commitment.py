"""Storage commitment (PS3.4 J): a node says that it keeps what it was sent."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset as Header
from pydicom.uid import UID
from pynetdicom import build_context, evt

from sagittal.deliver.destinations import DicomPeer
from sagittal.deliver.dicom_association import PLAIN, associated, check_status
from sagittal.deliver.outcome import DeliveryError

_COMMITMENT, _COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"


@dataclass(frozen=True)
class CommitmentReport:
    """What a node says about instances that it was asked to keep (PS3.4 J.3.3).

    Parameters
    ----------
    transaction_uid : str
    committed, failed : tuple of str
        SOP instance UIDs.
    """

    transaction_uid: str
    committed: tuple[str, ...]
    failed: tuple[str, ...]


def read_report(information: Header) -> CommitmentReport:
    """The report in the data set of an N-EVENT-REPORT.

    Raises
    ------
    DeliveryError
        If it names no transaction.
    """
    transaction = str(information.get("TransactionUID") or "")
    if not transaction:
        raise DeliveryError("a storage commitment report names no transaction", retry=False, trouble="object")

    def uids(keyword: str) -> tuple[str, ...]:
        return tuple(str(item.get("ReferencedSOPInstanceUID") or "") for item in information.get(keyword) or ())

    return CommitmentReport(transaction, uids("ReferencedSOPSequence"), uids("FailedSOPSequence"))


@dataclass
class Commitments:
    """Reports that are waited for: our node hands them in, whoever asked for a commitment waits here.

    A report may come before the one who waits for it: it is kept until it is fetched, the last `most` of them.
    """

    most: int = 1000
    _reports: dict[str, CommitmentReport] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def report(self, report: CommitmentReport) -> None:
        """Hand in a report; called by the node for each N-EVENT-REPORT."""
        with self._changed:
            self._reports[report.transaction_uid] = report
            while len(self._reports) > self.most:
                self._reports.pop(next(iter(self._reports)))
            self._changed.notify_all()

    def wait(self, transaction_uid: str, timeout_s: float) -> CommitmentReport | None:
        """The report of a transaction, or ``None`` if it has not come in that time."""
        with self._changed:
            self._changed.wait_for(lambda: transaction_uid in self._reports, timeout_s)
            return self._reports.pop(transaction_uid, None)


def request_commitment(
    peer: DicomPeer, instances: Sequence[tuple[str, str]], transaction_uid: str, *, linger_s: float = 1.0
) -> CommitmentReport | None:
    """Ask a node to commit itself to keeping instances (N-ACTION); its report comes later, mostly to our own node.

    Parameters
    ----------
    peer : DicomPeer
    instances : sequence of (SOP class, SOP instance)
    transaction_uid : str
    linger_s : float
        How long the association stays for nodes that report over the one that asked.

    Returns
    -------
    CommitmentReport, optional
        Where it came over this association.

    Raises
    ------
    DeliveryError
        If it does not answer, or refuses.
    """
    here = Commitments()

    def handle(event: Any) -> tuple[int, None]:
        try:
            here.report(read_report(event.event_information))
        except (DeliveryError, ValueError, TypeError, AttributeError):
            return 0x0110, None  # processing failure
        return 0x0000, None

    query = Header()
    query.TransactionUID = UID(transaction_uid)
    query.ReferencedSOPSequence = []
    for sop_class, instance in instances:
        item = Header()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
        query.ReferencedSOPSequence.append(item)
    contexts = [build_context(_COMMITMENT, PLAIN)]
    with associated(peer, contexts, handlers=[(evt.EVT_N_EVENT_REPORT, handle)]) as association:
        status, _ = association.send_n_action(query, 1, _COMMITMENT, _COMMITMENT_INSTANCE)
        check_status(status, peer.name, "storage commitment")
        return here.wait(transaction_uid, linger_s)
