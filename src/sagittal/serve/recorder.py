"""Records of the audit trail for routes that many call at a time: those that come while one is written go together."""

from __future__ import annotations

import asyncio
from typing import Any

from sagittal.protect.audit import Audit, make_record
from sagittal.serve.file_streams import in_thread


class Recorder:
    """Writes records for one event loop, which alone may use it.

    Parameters
    ----------
    audit : Audit
    """

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._held: list[tuple[dict[str, Any], asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    def record(self, actor: str, action: str, **values: Any) -> asyncio.Future[None]:
        """Add one record; it is on the disk when the future is done.

        Parameters are those of :meth:`sagittal.protect.audit.Audit.record`, and so are the errors that the future raises.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held.append((make_record(actor, action, **values), done))
        if self._writing is None:
            self._writing = asyncio.ensure_future(self._write())
        return done

    async def _write(self) -> None:
        while self._held:
            held, self._held = self._held, []
            try:
                await in_thread(self._audit.record_all, [record for record, _ in held])
            except Exception as error:
                for _, done in held:
                    if not done.done():
                        done.set_exception(error)
            else:
                for _, done in held:
                    if not done.done():
                        done.set_result(None)
        self._writing = None
