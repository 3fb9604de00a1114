"""Which presentation contexts are accepted, in which transfer syntax and role. Standard: PS3.8 7.1.1.14, PS3.4 B and J.

Every storage class that belongs to a patient's study is accepted, in every transfer syntax that keeps its bytes in the
object; nothing is compressed or unpacked on the way. Not accepted are deflated data sets (a thousandfold bomb), JPIP
(the pixels stay behind an address) and what is no network syntax at all.
"""

from __future__ import annotations

from functools import cache

from sagittal.node.pdu import AcceptedContext, AssociateRequest, ProposedContext

VERIFICATION = "1.2.840.10008.1.1"
COMMITMENT = "1.2.840.10008.1.20.1"
#: Results of a presentation context that is not accepted, PS3.8 table 9-18.
NO_ABSTRACT_SYNTAX, NO_TRANSFER_SYNTAX = 3, 4

_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_PLAIN = frozenset({_IMPLICIT, _EXPLICIT})
_JPEG = "1.2.840.10008.1.2.4."
#: What is stored as it comes and loses nothing of an image.
LOSSLESS = frozenset(
    {
        *(_IMPLICIT, _EXPLICIT, _BIG_ENDIAN),
        "1.2.840.10008.1.2.1.98",  # encapsulated uncompressed
        "1.2.840.10008.1.2.5",  # RLE
        "1.2.840.10008.1.2.8.1",  # deflated frames: one by one, the data set is not deflated
        *(_JPEG + end for end in ("57", "58", "65", "66", "70", "80", "90", "92", "110", "201", "202")),
    }
)
#: What is stored as it comes and may have lost something: JPEG, near-lossless JPEG-LS, JPEG 2000, HTJ2K, JPEG XL, video.
LOSSY = frozenset(
    _JPEG + end
    for end in (
        *("50", "51", "52", "53", "54", "55", "56", "59", "60", "61", "62", "63", "64", "81", "91", "93", "111", "112"),
        *(
            "100",
            "100.1",
            "101",
            "101.1",
            "102",
            "102.1",
            "103",
            "103.1",
            "104",
            "104.1",
            "105",
            "105.1",
            "106",
            "106.1",
        ),
        *("107", "108", "203"),
    )
)

_STORAGE_ROOT = "1.2.840.10008.5.1.4.1.1."
#: Of no patient and no study: protocols as defined, their approval, inventories of a whole archive.
_WITHOUT_STUDY = frozenset(_STORAGE_ROOT + end for end in ("200.1", "200.3", "200.7", "201.1"))
#: Of editions of the standard after pydicom's table: presentation states of waveforms, label map and height map segmentation.
_NEWER = frozenset(_STORAGE_ROOT + end for end in ("9.100.1", "9.100.2", "66.7", "66.8"))
#: Storage classes that stand elsewhere in the tree: delivery instructions of radiotherapy, hard copies (retired).
_ELSEWHERE = ("1.2.840.10008.5.1.4.34.", "1.2.840.10008.5.1.1.29", "1.2.840.10008.5.1.1.30")


@cache
def storage_classes() -> frozenset[str]:
    """The UIDs of the storage classes that are accepted: all of the standard's whose objects belong to a study.

    >>> "1.2.840.10008.5.1.4.1.1.2" in storage_classes(), VERIFICATION in storage_classes()
    (True, False)
    """
    from pydicom._uid_dict import UID_dictionary  # pydicom has no other way to list them

    return _NEWER | frozenset(
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class"
        and "Storage" in name
        and (uid.startswith(_STORAGE_ROOT) or uid.startswith(_ELSEWHERE))
        and uid not in _WITHOUT_STUDY
    )


def is_storage(uid: str, *, unknown: bool = False) -> bool:
    """Whether a class is one whose objects are stored.

    Parameters
    ----------
    unknown : bool
        Whether private classes, and those of a newer edition of the standard, are stored too.

    Examples
    --------
    >>> is_storage("1.3.46.670589.5.0.1"), is_storage("1.3.46.670589.5.0.1", unknown=True)
    (False, True)
    """
    if uid in storage_classes():
        return True
    if not unknown or not uid or uid in _WITHOUT_STUDY:
        return False
    return uid.startswith(_STORAGE_ROOT) or not uid.startswith("1.2.840.10008.")


def choose_contexts(request: AssociateRequest, *, unknown: bool = False) -> dict[int, AcceptedContext | int]:
    """The answer to each proposed presentation context, by its number.

    Of the transfer syntaxes that can be stored, the first that the peer names is taken that keeps images whole: an
    object that it has compressed without loss comes as it is, and none is compressed with loss on the way because of the
    order of a list. Where only lossy ones are offered, the object is lossy already, and the first is taken.

    Returns
    -------
    dict[int, AcceptedContext | int]
        What was accepted, or the result of a refusal (PS3.8 table 9-18).
    """
    return {context.id: _choose(context, unknown) for context in request.contexts}


def _choose(context: ProposedContext, unknown: bool) -> AcceptedContext | int:
    offered = context.transfer_syntaxes
    if context.abstract_syntax in (VERIFICATION, COMMITMENT):
        good = [s for s in offered if s in _PLAIN]
    elif is_storage(context.abstract_syntax, unknown=unknown):
        good = [s for s in offered if s in LOSSLESS] or [s for s in offered if s in LOSSY]
    else:
        return NO_ABSTRACT_SYNTAX
    if not good:
        return NO_TRANSFER_SYNTAX
    return AcceptedContext(context.id, context.abstract_syntax, good[0])


def choose_roles(request: AssociateRequest, contexts: dict[int, AcceptedContext | int]) -> dict[str, tuple[bool, bool]]:
    """The roles that a peer may have, of the classes for which it asked. Standard: PS3.7 D.3.3.4.

    It may use storage and verification, not provide them; it may be either of storage commitment: a user that asks us, or the
    provider that we asked and that now reports.
    """
    accepted = {c.abstract_syntax for c in contexts.values() if isinstance(c, AcceptedContext)}
    return {
        uid: (user, provider and uid == COMMITMENT)
        for uid, (user, provider) in request.roles.items()
        if uid in accepted
    }
