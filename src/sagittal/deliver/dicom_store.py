"""C-ECHO and C-STORE: whether a node answers, and results into it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import generate_uid
from pynetdicom import build_context

from sagittal.deliver.destinations import DicomDestination, DicomPeer
from sagittal.deliver.dicom_association import PLAIN, associated, check_status
from sagittal.deliver.dicom_commitment import request_commitment
from sagittal.deliver.outcome import DeliveryError, Sent, Trouble
from sagittal.errors import ResourceError
from sagittal.write.object_file import ObjectFile

_VERIFICATION = "1.2.840.10008.1.1"
#: Presentation contexts that one association may offer (PS3.8 9.3.2.2: odd numbers up to 255).
_MOST_CONTEXTS = 128
#: 0x0111: it has this instance already, which is what was wanted.
_KNOWN = {0x0111}


def echo(peer: DicomPeer) -> float:
    """Seconds until a node answered C-ECHO, the association included.

    Raises
    ------
    DeliveryError
        If it does not answer, or not with success.
    """
    start = time.monotonic()
    with associated(peer, [build_context(_VERIFICATION, PLAIN)]) as association:
        status = association.send_c_echo()
        check_status(status, peer.name, "C-ECHO")
    return time.monotonic() - start


def deliver_dicom(objects: Sequence[ObjectFile], destination: DicomDestination, *, transaction_uid: str = "") -> Sent:
    """Store the objects of a result, and ask for storage commitment where the destination is to confirm.

    Raises
    ------
    DeliveryError
        As :func:`store`; with ``trouble`` ``object`` also if the commitment fails.
    """
    warnings = store(objects, destination)
    if not destination.confirm:
        return Sent(destination.name, len(objects), warnings=tuple(warnings))
    uid = transaction_uid or str(generate_uid())
    items = [(one.sop_class_uid, one.sop_instance_uid) for one in objects]
    report = request_commitment(destination, items, uid)
    if report is not None and report.failed:
        raise DeliveryError(
            f"{destination.name}: does not commit itself to {len(report.failed)} of {len(items)} objects",
            retry=True,
            trouble="object",
        )
    return Sent(destination.name, len(objects), report is not None, uid, tuple(warnings))


def store(objects: Sequence[ObjectFile], peer: DicomPeer) -> list[str]:
    """Send files by C-STORE in one association, each as it is stored: no transfer syntax is changed on the way.

    A presentation context is offered for each pair of class and syntax. What fails does not keep the others from being sent;
    sent again, an object that is there already does no harm.

    Parameters
    ----------
    objects : sequence of ObjectFile
    peer : DicomPeer

    Returns
    -------
    list of str
        Warnings: what the node changed or left out.

    Raises
    ------
    DeliveryError
        If there is no association, or some objects were not stored: it names their kinds.
    ResourceError
        If a file is not there any more.
    """
    described = [(one, *_syntax(one.path, one.kind)) for one in objects]
    pairs = list(dict.fromkeys((sop_class, syntax) for _, sop_class, syntax in described))
    warnings: list[str] = []
    failed: list[tuple[str, int | None]] = []
    for start in range(0, len(pairs), _MOST_CONTEXTS):
        group = pairs[start : start + _MOST_CONTEXTS]
        mine = [one for one in described if one[1:] in group]
        contexts = [build_context(sop_class, [syntax]) for sop_class, syntax in group]
        with associated(peer, contexts) as association:
            accepted = {
                (str(one.abstract_syntax), str(one.transfer_syntax[0])) for one in association.accepted_contexts
            }
            for number, (one, sop_class, syntax) in enumerate(mine, start=1):
                if (sop_class, syntax) not in accepted:
                    failed.append((one.kind, None))
                    continue
                status = _store_one(association, one, peer.name, number)
                if status in _KNOWN or status == 0:
                    continue
                if status >> 12 == 0xB or status == 0x0001:
                    warnings.append(f"{one.kind}: stored with changes (0x{status:04X})")
                else:
                    failed.append((one.kind, status))
    if failed:
        raise _not_stored(peer.name, failed)
    return warnings


def _syntax(path: Path, kind: str) -> tuple[str, str]:
    """SOP class and transfer syntax of a file."""
    try:
        meta = read_file_meta_info(path)
        return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
    except OSError as error:
        raise ResourceError(f"the file of an object of kind '{kind}' is not there any more") from error
    except (InvalidDicomError, AttributeError, ValueError, KeyError, EOFError) as error:
        raise DeliveryError(f"the file of {kind} is no DICOM", retry=False, trouble="object", failed=[kind]) from error


def _store_one(association: Any, one: ObjectFile, name: str, number: int) -> int:
    try:
        status = association.send_c_store(one.path, msg_id=number)
    except (RuntimeError, OSError) as error:
        raise DeliveryError(f"{name}: the association broke", retry=True, trouble="away", failed=[one.kind]) from error
    except (ValueError, AttributeError) as error:
        raise DeliveryError(
            f"{name}: {one.kind} cannot be sent", retry=False, trouble="object", failed=[one.kind]
        ) from error
    if "Status" not in status:
        raise DeliveryError(f"{name}: no answer to C-STORE", retry=True, trouble="away", failed=[one.kind])
    return int(status.Status)


def _not_stored(name: str, failed: Sequence[tuple[str, int | None]]) -> DeliveryError:
    kinds = [kind for kind, _ in failed]
    codes = {code for _, code in failed if code is not None}
    trouble: Trouble = "object"
    if any(code >> 8 == 0xA7 for code in codes):
        trouble = "resources"
    elif codes == {0x0124}:
        trouble = "refused"
    words = ", ".join(
        f"{kind} ({'its class or transfer syntax is not accepted' if code is None else f'0x{code:04X}'})"
        for kind, code in failed
    )
    return DeliveryError(f"{name}: did not store {words}", retry=trouble == "resources", trouble=trouble, failed=kinds)
