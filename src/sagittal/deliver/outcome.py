"""What became of a delivery: sent, or an error that says whether it is worth another try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sagittal.errors import ServeError

#: ``away``: nobody answered. ``refused``: it answered, and will not take this from us. ``resources``: its disk or memory is
#: full. ``object``: it took others, or would, but not this object.
Trouble = Literal["away", "refused", "resources", "object"]


@dataclass(frozen=True)
class Sent:
    """A delivery that arrived.

    Parameters
    ----------
    destination : str
        Its name.
    objects : int
        How many arrived.
    confirmed : bool
        Whether the destination has said that it keeps them: by storage commitment, a query, an acknowledgement.
    transaction_uid : str
        Of the storage commitment that was asked for; empty where none was.
    warnings : tuple of str
        What the destination changed or left out, without identifiers.
    """

    destination: str
    objects: int
    confirmed: bool = False
    transaction_uid: str = ""
    warnings: tuple[str, ...] = ()


class DeliveryError(ServeError):
    """A delivery that did not arrive, or not all of it.

    Parameters
    ----------
    message : str
        Without identifiers of the patient: it goes into logs and onto the administrator's page.
    retry : bool
        Whether the same delivery may succeed later without anyone's doing.
    trouble : {"away", "refused", "resources", "object"}
    failed : sequence of str
        Kinds of the objects that did not arrive; empty where none did.
    """

    def __init__(self, message: str, *, retry: bool, trouble: Trouble, failed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.retry = retry
        self.trouble: Trouble = trouble
        self.failed = tuple(failed)
