"""What changed, told to open pages as it happens: server-sent events (HTML, "Server-sent events").

One look at the database a second serves all pages, and only while a page is open; so changes by other processes on the
same database are told too. A page hears which study changed, never what is in it.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Depends, HTTPException, Request
from starlette.responses import StreamingResponse

from sagittal.database.schema import events, jobs, studies
from sagittal.serve.security import Caller, allow

if TYPE_CHECKING:
    from sagittal.database.connect import Database

router = APIRouter(prefix="/api", tags=["pages"])
Reader = Annotated[Caller, Depends(allow("see"))]
#: Seconds between looks at the database, between signs of life, and after which a page must show again who it is.
LOOK_S, ALIVE_S, LASTS_S = 1.0, 15.0, 600.0
#: Open pages, changes that wait for one of them, and changes of one look.
_MOST_PAGES, _MOST_WAITING, _MOST_FOUND = 500, 500, 500
#: Rows that were written a little before others may be committed after them.
_OVERLAP_S = 5.0


class Changes:
    """Looks for changes while anybody listens.

    Parameters
    ----------
    db : Database
    stopping : threading.Event
        Set when the service ends: then every page is let go, so that its connection does not hold the service up.
    """

    def __init__(self, db: Database, stopping: threading.Event) -> None:
        self._db, self._stopping = db, stopping
        self._pages: set[asyncio.Queue[dict[str, object] | None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def listen(self) -> asyncio.Queue[dict[str, object] | None]:
        """A queue of changes; ``None`` says that no more come.

        Raises
        ------
        HTTPException
            503 if too many pages are open, or the service stops.
        """
        if self._closed or len(self._pages) >= _MOST_PAGES:
            raise HTTPException(503, "too many open pages, or the service stops")
        queue: asyncio.Queue[dict[str, object] | None] = asyncio.Queue(_MOST_WAITING)
        self._pages.add(queue)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look())
        return queue

    def leave(self, queue: asyncio.Queue[dict[str, object] | None]) -> None:
        """Listen no longer."""
        self._pages.discard(queue)

    def close(self) -> None:
        """End all listening, so that the service can stop."""
        self._closed = True
        for queue in self._pages:
            self._tell(queue, None)

    @staticmethod
    def _tell(queue: asyncio.Queue[dict[str, object] | None], change: dict[str, object] | None) -> None:
        if queue.full():  # a page that does not listen: it is told once to load everything again
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait({"kind": "all"})
        queue.put_nowait(change)

    async def _look(self) -> None:
        since = time.time()
        told: OrderedDict[tuple[str, int, float], None] = OrderedDict()
        await asyncio.to_thread(self._found, since - _OVERLAP_S, told)  # what was before is known to the pages
        while self._pages and not self._closed:
            await asyncio.sleep(LOOK_S)
            if self._stopping.is_set():
                self.close()
                return
            now = time.time()
            since = min(since, now)  # somebody may have set the clock back
            try:
                found = await asyncio.to_thread(self._found, since - _OVERLAP_S, told)
            except Exception:  # noqa: S112
                continue  # the database is away; who asks it for something is told so
            since = now
            for change in found:
                for queue in list(self._pages):
                    self._tell(queue, change)

    def _found(self, since: float, told: OrderedDict[tuple[str, int, float], None]) -> list[dict[str, object]]:
        looks = (
            ("study", sa.select(studies.c.id, studies.c.changed_at), studies.c.changed_at),
            ("event", sa.select(events.c.id, events.c.last_at), events.c.last_at),
            ("job", sa.select(jobs.c.id, jobs.c.finished_at), jobs.c.finished_at),
        )
        found: list[dict[str, object]] = []
        with self._db.read() as c:
            for kind, statement, at in looks:
                rows = c.execute(statement.where(at > since).order_by(at.desc()).limit(_MOST_FOUND)).all()
                if len(rows) == _MOST_FOUND:
                    found.append({"kind": "all"})
                for id_, when in reversed(rows):
                    if (kind, id_, when) not in told:
                        told[kind, id_, when] = None
                        found.append({"kind": kind, "id": id_})
        while len(told) > 8 * _MOST_FOUND:
            told.popitem(last=False)
        return found


def changes_of(request: Request) -> Changes:
    """The one of the application."""
    state = request.app.state
    if getattr(state, "changes", None) is None:
        state.changes = Changes(state.service.db, state.service.stopping)
    found: Changes = state.changes
    return found


@router.get("/changes")
async def stream_changes(request: Request, _: Reader) -> StreamingResponse:
    """Changes as they happen: ``{"kind": "study", "id": 5}``; ``{"kind": "all"}`` where too many to name."""
    changes = changes_of(request)
    queue = changes.listen()

    async def lines() -> AsyncIterator[str]:
        end = time.monotonic() + LASTS_S
        try:
            yield "retry: 3000\n\n"
            while time.monotonic() < end:
                try:
                    change = await asyncio.wait_for(queue.get(), ALIVE_S)
                except TimeoutError:
                    yield ": alive\n\n"
                    continue
                if change is None:
                    break
                yield f"data: {json.dumps(change)}\n\n"
        finally:
            changes.leave(queue)

    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)
