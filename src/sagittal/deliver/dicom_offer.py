"""What a C-GET offers to take: an association has room for 128 presentation contexts, DICOM has more classes and syntaxes.

A study is to come as it is stored. So where its classes are known, each transfer syntax gets a context of its own, and a node
that does not decompress can send what it has.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydicom import uid as uids
from pynetdicom import build_context
from pynetdicom.presentation import PresentationContext

from sagittal.deliver.dicom_association import PLAIN

_MOST_CONTEXTS = 127  # and one for C-GET itself
_STORAGE = "1.2.840.10008.5.1.4.1.1."
#: Compressed transfer syntaxes, the more frequent ones first.
_COMPRESSED = (
    uids.JPEGLosslessSV1, uids.JPEG2000Lossless, uids.JPEGBaseline8Bit, uids.JPEGLSLossless, uids.JPEG2000,
    uids.RLELossless, uids.JPEGExtended12Bit, uids.JPEGLossless, uids.JPEGLSNearLossless, uids.HTJ2KLossless, uids.HTJ2K,
)  # fmt: skip
#: Below 1.2.840.10008.5.1.4.1.1: radiography, CT, MR, ultrasound, mammography, angiography, nuclear medicine, secondary
#: capture, photographs, ophthalmology, slides; segmentations, registrations, reports, key objects, presentation states,
#: radiotherapy, documents.
_COMMON = (
    "1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1", "2", "2.1", "2.2", "3.1", "4", "4.1", "4.2", "4.3", "4.4", "6.1",
    "6.2", "6.3", "7", "7.1", "7.2", "7.3", "7.4", "11.1", "11.2", "11.3", "11.4", "11.8", "12.1", "12.1.1", "12.2",
    "12.2.1", "13.1.1", "13.1.2", "13.1.3", "13.1.4", "13.1.5", "14.1", "14.2", "20", "30", "66", "66.1", "66.2", "66.3",
    "66.4", "66.5", "66.6", "67", "77.1.1", "77.1.1.1", "77.1.2", "77.1.2.1", "77.1.3", "77.1.4", "77.1.4.1", "77.1.5.1",
    "77.1.5.2", "77.1.5.4", "77.1.6", "88.11", "88.22", "88.33", "88.34", "88.40", "88.50", "88.59", "88.65", "88.67",
    "104.1", "104.2", "104.3", "128", "128.1", "130", "481.1", "481.2", "481.3", "481.4", "481.5", "481.6", "481.7",
    "481.8", "481.9",
)  # fmt: skip
#: Classes that series of a modality are mostly stored as, below the same root.
_OF_MODALITY = {
    "CR": ("1",), "DX": ("1.1", "1.1.1"), "MG": ("1.2", "1.2.1", "13.1.3", "13.1.4"), "CT": ("2", "2.1", "2.2"),
    "MR": ("4", "4.1", "4.3", "4.4"), "US": ("6.1", "3.1", "6.2"), "XA": ("12.1", "12.1.1", "13.1.1"),
    "RF": ("12.2", "12.2.1"), "NM": ("20",), "PT": ("128", "130", "128.1"), "OT": ("7", "7.1", "7.2", "7.3", "7.4"),
    "SC": ("7", "7.1", "7.2", "7.3", "7.4"), "XC": ("77.1.4", "77.1.4.1"), "ES": ("77.1.1", "77.1.1.1"),
    "OP": ("77.1.5.1", "77.1.5.2"), "SM": ("77.1.6",), "SR": ("88.11", "88.22", "88.33", "88.34", "88.67"),
    "KO": ("88.59",), "PR": ("11.1", "11.2", "11.3", "11.4"), "SEG": ("66.4",), "REG": ("66.1", "66.3"),
    "RTSTRUCT": ("481.3",), "RTDOSE": ("481.2",), "RTPLAN": ("481.5",), "RTIMAGE": ("481.1",), "DOC": ("104.1", "104.2"),
}  # fmt: skip


def offer(classes: Sequence[str], modalities: Sequence[str] = ()) -> list[PresentationContext]:
    """Presentation contexts for the images of a study.

    Parameters
    ----------
    classes : sequence of str
        SOP classes in the study, where the node says so.
    modalities : sequence of str
        Of its series, where it does not.

    Returns
    -------
    list of PresentationContext
        At most 127. Of each class one without compression and as many compressed ones as there is room for; where
        nothing is known one for each storage class.
    """
    wanted = list(dict.fromkeys(classes)) or _likely(modalities)
    if not wanted or len(wanted) > _MOST_CONTEXTS:
        return [build_context(one, PLAIN) for one in (wanted or _storage_classes())[:_MOST_CONTEXTS]]
    room = min(_MOST_CONTEXTS // len(wanted) - 1, len(_COMPRESSED))
    made = []
    for one in wanted:
        made.append(build_context(one, PLAIN))
        made += [build_context(one, syntax) for syntax in _COMPRESSED[:room]]
    return made


def _likely(modalities: Sequence[str]) -> list[str]:
    """Classes by modality; none where one of them is not known."""
    if not modalities or any(one not in _OF_MODALITY for one in modalities):
        return []
    return [_STORAGE + one for modality in dict.fromkeys(modalities) for one in _OF_MODALITY[modality]]


def _storage_classes() -> list[str]:
    """Storage classes of the standard, those that hospitals fetch most first: an association has room for 127."""
    from pynetdicom import AllStoragePresentationContexts

    known = [str(one.abstract_syntax) for one in AllStoragePresentationContexts if one.abstract_syntax is not None]
    images = [_STORAGE + one for one in _COMMON]
    return [*(one for one in images if one in known), *(one for one in known if one not in images)]
