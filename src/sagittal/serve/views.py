"""Who looked at what, in the audit trail: one record a person, study and way of looking within some minutes.

A viewer asks for a study in hundreds of requests; hundreds of records of the same second would hide the one that matters
(IHE ATNA: "DICOM Instances Accessed", one event a study).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable

from fastapi import Request

from sagittal.serve.security import Caller

#: Seconds within which looking again is not told again.
AGAIN_S = 300.0
_MOST = 20_000


class Views:
    """What was told lately."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[str, str, int | None, str], float] = OrderedDict()
        self._lock = threading.Lock()

    def is_new(self, caller: Caller, study_id: int | None, action: str) -> bool:
        """Whether a look is to be told: the first of this caller at this study for some minutes."""
        key = (f"{caller.via}:{caller.user_id}", caller.address, study_id, action)
        now = time.monotonic()
        with self._lock:
            before = self._told.get(key)
            if before is not None and now - before < AGAIN_S:
                return False
            self._told[key] = now
            self._told.move_to_end(key)
            while len(self._told) > _MOST:
                self._told.popitem(last=False)
        return True


def note_view(request: Request, caller: Caller, study_ids: Iterable[int | None], action: str = "view") -> None:
    """Record that a caller looks at some studies; the record is on the disk before the answer goes out.

    Parameters
    ----------
    request : Request
    caller : Caller
    study_ids : iterable of int or None
    action : str
        "view", or "query".
    """
    app = request.app
    views = getattr(app.state, "views", None)
    if views is None:
        views = app.state.views = Views()
    for study_id in study_ids:
        if views.is_new(caller, study_id, action):
            app.state.service.audit.record(
                caller.name, action, role=caller.role, address=caller.address, study_id=study_id
            )
