"""Health: whether the process lives, and whether it can do its work; the reasons are codes, for anyone may ask."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from sqlalchemy import text

from sagittal.serve.security import anyone

if TYPE_CHECKING:
    from sagittal.serve.service import Service

router = APIRouter()

_FRESH_S = 2.0


@dataclass
class Health:
    """Checks of a service by name, asked at most every two seconds.

    A check gives the reason why it fails as one word, or nothing.
    """

    checks: dict[str, Callable[[], str]] = field(default_factory=dict)
    _kept: dict[str, str] = field(default_factory=dict)
    _at: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reasons(self) -> dict[str, str]:
        """Why the service is not ready, by check; empty where it is."""
        with self._lock:
            if time.monotonic() - self._at > _FRESH_S:
                self._kept = {}
                for name, check in list(self.checks.items()):
                    try:
                        reason = check()
                    except Exception as error:  # a check that fails is a reason, not a fault of the one who asked
                        reason = type(error).__name__
                    if reason:
                        self._kept[name] = reason
                self._at = time.monotonic()
            return dict(self._kept)


def add_checks(health: Health, service: Service) -> None:
    """The checks of what every service has: its database and its disk; and that it is not being stopped."""

    def database() -> str:
        with service.db.read() as c:
            c.execute(text("SELECT 1"))
        return ""

    def disk() -> str:
        free = shutil.disk_usage(service.config.server.data).free
        return "full" if free < service.config.limits.disk_reserve_bytes else ""

    health.checks["database"] = database
    health.checks["disk"] = disk
    health.checks["service"] = lambda: "stopping" if service.stopping.is_set() else ""


@router.get("/health/live", dependencies=[Depends(anyone)], tags=["operation"])
async def live() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "live"}


@router.get("/health/ready", dependencies=[Depends(anyone)], tags=["operation"])
def ready(request: Request) -> Any:
    """Whether studies can be taken and answered; 503 with reasons where not."""
    reasons = request.app.state.service.health.reasons()
    if reasons:
        return JSONResponse({"status": "not ready", "reasons": reasons}, 503)
    return {"status": "ready"}
