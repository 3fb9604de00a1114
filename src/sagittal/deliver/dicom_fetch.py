"""C-FIND, C-MOVE, C-GET: find studies on a node and fetch them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset as Header
from pynetdicom import build_context, build_role, evt
from pynetdicom.presentation import PresentationContext

from sagittal.deliver.destinations import DicomPeer
from sagittal.deliver.dicom_association import PLAIN, associated, check_status
from sagittal.deliver.dicom_offer import offer
from sagittal.deliver.outcome import DeliveryError
from sagittal.errors import ConfigError

#: Study Root.
_FIND, _MOVE, _GET = (
    "1.2.840.10008.5.1.4.1.2.2.1",
    "1.2.840.10008.5.1.4.1.2.2.2",
    "1.2.840.10008.5.1.4.1.2.2.3",
)
_MOST_STUDIES, _MOST_CLASSES = 1000, 120
_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True)
class FoundStudy:
    """A study that a node knows.

    Parameters
    ----------
    study_uid, accession, patient_id, study_date, description : str
    modalities : tuple of str
    instances : int
        0 where the node does not say.
    """

    study_uid: str
    accession: str
    patient_id: str
    study_date: str
    description: str
    modalities: tuple[str, ...]
    instances: int


def find_studies(
    peer: DicomPeer, *, accession: str = "", patient_id: str = "", study_uid: str = "", most: int = _MOST_STUDIES
) -> list[FoundStudy]:
    """Studies by accession number, patient or UID (C-FIND, Study Root), the newest first.

    What a node answers beside the question, as some do that do not know a key, is left out.

    Parameters
    ----------
    peer : DicomPeer
    accession, patient_id, study_uid : str
        One at least; taken literally, without wild cards.
    most : int

    Raises
    ------
    DeliveryError
        If it does not answer, or not with success.
    ConfigError
        If nothing was asked for, or a value holds a wild card.
    """
    asked = {"AccessionNumber": accession, "PatientID": patient_id, "StudyInstanceUID": study_uid}
    if not any(asked.values()):
        raise ConfigError("a query needs an accession number, a patient or a study")
    for value in asked.values():
        if re.search(r"[*?\\\x00-\x1f]", value) or len(value) > 64:
            raise ConfigError("a query's values have at most 64 signs and no wild card, backslash or control character")
    query = Header()
    query.QueryRetrieveLevel = "STUDY"
    if not all(value.isascii() for value in asked.values()):
        query.SpecificCharacterSet = "ISO_IR 192"
    for keyword in ("StudyDate", "StudyTime", "ModalitiesInStudy", "StudyDescription", "NumberOfStudyRelatedInstances"):
        setattr(query, keyword, None if keyword == "NumberOfStudyRelatedInstances" else "")
    for keyword, value in asked.items():
        setattr(query, keyword, value)
    found: dict[str, FoundStudy] = {}
    end = time.monotonic() + 10 * peer.answer_s
    with associated(peer, [build_context(_FIND, PLAIN)]) as association:
        for number, (status, identifier) in enumerate(association.send_c_find(query, _FIND)):
            check_status(status, peer.name, "C-FIND", also={0xFF00, 0xFF01})
            if identifier is not None:
                one = _found(identifier)
                told = {
                    "AccessionNumber": one.accession,
                    "PatientID": one.patient_id,
                    "StudyInstanceUID": one.study_uid,
                }
                if one.study_uid and all(not value or told[key] == value for key, value in asked.items()):
                    found[one.study_uid] = one
            if len(found) >= most or number >= 10 * most or time.monotonic() > end:
                association.abort()  # it has more to say than anyone asked
                break
    return sorted(found.values(), key=lambda one: one.study_date, reverse=True)


def _found(identifier: Header) -> FoundStudy:
    def text(keyword: str) -> str:
        try:
            return str(identifier.get(keyword) or "").strip()
        except (ValueError, TypeError, LookupError):
            return ""

    def count(keyword: str) -> int:
        value = text(keyword)
        return int(value) if value.isdigit() else 0

    modalities = tuple(_values(identifier, "ModalitiesInStudy"))
    return FoundStudy(
        text("StudyInstanceUID"), text("AccessionNumber"), text("PatientID"), text("StudyDate"),
        text("StudyDescription"), modalities, count("NumberOfStudyRelatedInstances"),
    )  # fmt: skip


@dataclass(frozen=True)
class Fetched:
    """What came of a retrieval, in instances."""

    completed: int
    failed: int
    warned: int


def move_study(peer: DicomPeer, study_uid: str, move_to: str, *, total_s: float = 3600.0) -> Fetched:
    """Let a node send a study to an AE title that it knows, such as our own node's (C-MOVE).

    Parameters
    ----------
    peer : DicomPeer
    study_uid : str
    move_to : str
        AE title.
    total_s : float

    Raises
    ------
    DeliveryError
        If it does not answer, does not know that AE title (0xA801), or the time is over.
    """
    with associated(peer, [build_context(_MOVE, PLAIN)]) as association:
        return _retrieved(association.send_c_move(_study(study_uid), move_to, _MOVE), peer.name, "C-MOVE", total_s)


@dataclass(frozen=True)
class Retrieved:
    """An instance that came by C-GET, as it was on the wire.

    Parameters
    ----------
    sop_class_uid, sop_instance_uid, transfer_syntax_uid : str
    dataset : bytes
        The bare data set in that syntax, without file meta information.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    dataset: bytes


def get_study(
    peer: DicomPeer,
    study_uid: str,
    keep: Callable[[Retrieved], int],
    *,
    sop_classes: Sequence[str] = (),
    total_s: float = 3600.0,
) -> Fetched:
    """Fetch a study over the association that asks for it (C-GET): nothing must reach us from outside.

    Parameters
    ----------
    peer : DicomPeer
    study_uid : str
    keep : callable (Retrieved) -> int
        Keeps an instance and gives back the status of C-STORE: 0x0000 once it is safe, 0xA700 where there is no room.
    sop_classes : sequence of str
        Those that are taken; where left out, those that the node says are in the study.
    total_s : float

    Raises
    ------
    DeliveryError
        If it does not answer, or the time is over.
    """
    query = _study(study_uid)
    images = offer(sop_classes) if sop_classes else _offer_for(peer, study_uid)
    contexts = [build_context(_GET, PLAIN), *images]
    classes = dict.fromkeys(str(one.abstract_syntax) for one in images)
    roles = [build_role(one, scp_role=True) for one in classes]

    def handle(event: Any) -> int:
        request = event.request
        try:
            return keep(
                Retrieved(
                    str(request.AffectedSOPClassUID),
                    str(request.AffectedSOPInstanceUID),
                    str(event.context.transfer_syntax),
                    request.DataSet.getvalue(),
                )
            )
        except Exception:  # whatever went wrong, the instance is not safe: the node is told so
            return 0xA700

    with associated(peer, contexts, roles=roles, handlers=[(evt.EVT_C_STORE, handle)]) as association:
        return _retrieved(association.send_c_get(query, _GET), peer.name, "C-GET", total_s)


def _offer_for(peer: DicomPeer, study_uid: str) -> list[PresentationContext]:
    """What a study may come as, from what the node says of its classes or modalities."""
    query = _study(study_uid)
    query.SOPClassesInStudy, query.ModalitiesInStudy = [], []
    classes: list[str] = []
    modalities: list[str] = []
    with associated(peer, [build_context(_FIND, PLAIN)]) as association:
        for status, identifier in association.send_c_find(query, _FIND):
            if "Status" not in status or int(status.Status) not in {0xFF00, 0xFF01} or identifier is None:
                break  # it is fetched all the same, with less said beforehand
            classes += [one for one in _values(identifier, "SOPClassesInStudy") if _UID.fullmatch(one)]
            modalities += _values(identifier, "ModalitiesInStudy")
    return offer(classes[:_MOST_CLASSES], modalities)


def _values(identifier: Header, keyword: str) -> list[str]:
    try:
        given = identifier.get(keyword) or ()
    except (ValueError, TypeError, LookupError):
        return []
    return [str(given)] if isinstance(given, str) else [str(one) for one in given]


def _study(study_uid: str) -> Header:
    if not _UID.fullmatch(study_uid):
        raise ConfigError("a study is named by its UID")
    query = Header()
    query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", study_uid
    return query


def _retrieved(answers: Iterator[tuple[Header, Any]], name: str, what: str, total_s: float) -> Fetched:
    end, last = time.monotonic() + total_s, Fetched(0, 0, 0)
    for status, _ in answers:
        # 0xB000, and of some nodes a failure: some could not be sent; how many is in the counts.
        part = {int(status.get("Status", 0))} if int(status.get("NumberOfCompletedSuboperations") or 0) else set()
        check_status(status, name, what, also={0xFF00, 0xB000, *part})
        last = Fetched(
            *(int(status.get(f"NumberOf{one}Suboperations") or 0) for one in ("Completed", "Failed", "Warning"))
        )
        if time.monotonic() > end:
            raise DeliveryError(f"{name}: {what} takes longer than {total_s:.0f} s", retry=True, trouble="away")
    return last
