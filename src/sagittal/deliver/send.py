"""Send the objects of a result to a destination, by whatever way it is reached."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from sagittal.deliver.destinations import (
    Destination,
    DicomDestination,
    FolderDestination,
    MllpDestination,
    StowDestination,
)
from sagittal.deliver.outcome import DeliveryError, Sent
from sagittal.write.object_file import ObjectFile

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def send(objects: Sequence[ObjectFile], destination: Destination, *, key: str = "", transaction_uid: str = "") -> Sent:
    """Deliver those objects of a result that a destination takes; sent twice they do no harm.

    Parameters
    ----------
    objects : sequence of ObjectFile
        Of one result. Those of a kind that the destination does not take are passed over.
    destination : Destination
    key : str
        What the result is called there, such as ``result-12``: the folder's name, the web hook's id. Letters, digits, ``-``
        and ``_``; made of the objects' checksums where left out.
    transaction_uid : str
        Of the storage commitment, where it is to be known before it is asked for; made where left out.

    Raises
    ------
    DeliveryError
        ``retry`` says whether another try may help.
    ConfigError
        If a secret or certificate cannot be read.
    ResourceError
        If an object's file is not there any more.
    """
    chosen = [one for one in objects if one.kind in destination.sends]
    if not chosen:
        return Sent(destination.name, 0, confirmed=True)
    key = key or _key_of(chosen)
    if not _KEY.fullmatch(key):
        raise DeliveryError("the key of a delivery is no plain word", retry=False, trouble="object")
    if isinstance(destination, DicomDestination):
        from sagittal.deliver.dicom_client import deliver_dicom

        return deliver_dicom(chosen, destination, transaction_uid=transaction_uid)
    if isinstance(destination, StowDestination):
        from sagittal.deliver.stow import deliver_stow

        return deliver_stow(chosen, destination)
    if isinstance(destination, FolderDestination):
        from sagittal.deliver.folder import deliver_folder

        return deliver_folder(chosen, destination, key)
    if isinstance(destination, MllpDestination):
        from sagittal.deliver.mllp import deliver_mllp

        return deliver_mllp(chosen, destination)
    from sagittal.deliver.webhook import deliver_webhook

    return deliver_webhook(chosen, destination, key)


def _key_of(objects: Sequence[ObjectFile]) -> str:
    digest = hashlib.sha256("".join(f"{one.kind}:{one.sha256};" for one in objects).encode())
    return f"result-{digest.hexdigest()[:32]}"
