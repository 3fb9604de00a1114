"""Counters for Prometheus: how much, how long, how full; never who.

Labels are routes as patterns, models, kinds of jobs and states. What the database knows is asked at most every ten seconds.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from sagittal.database.schema import events, jobs, results, studies
from sagittal.serve.security import allow

if TYPE_CHECKING:
    from sagittal.serve.service import Service

router = APIRouter()

_FRESH_S = 10.0
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class Metrics:
    """The counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "sagittal_http_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "sagittal_http_seconds", "Seconds of an answer.", ("route",), buckets=_SECONDS, registry=self.registry
        )
        self._logins = Counter("sagittal_logins", "Logins.", ("way", "outcome"), registry=self.registry)
        self._counts: dict[str, Counter] = {}
        self._lock = threading.Lock()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        known = method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def login(self, way: str, outcome: str) -> None:
        """Count a login: by ``password``, ``oidc`` or ``link``; ``done``, ``refused``."""
        self._logins.labels(way, outcome).inc()

    def count(self, name: str, by: float = 1.0, **labels: str) -> None:
        """Count something else, such as ``count("dicom_associations", outcome="refused")``.

        Parameters
        ----------
        name : str
            Always with the same labels.
        labels : str
            From a small set of words; nothing of a patient.
        """
        with self._lock:
            counter = self._counts.get(name)
            if counter is None:
                counter = Counter(
                    f"sagittal_{name}", name.replace("_", " ") + ".", tuple(labels), registry=self.registry
                )
                self._counts[name] = counter
        (counter.labels(**labels) if labels else counter).inc(by)

    def text(self) -> bytes:
        """All of it in the text format of Prometheus."""
        return generate_latest(self.registry)


class State(Collector):
    """What the database and the disk say when the counters are read.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._kept: list[Metric] = []
        self._at = float("-inf")

    def describe(self) -> Iterable[Metric]:
        """Nothing: the database is not asked when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The gauges, at most ten seconds old."""
        with self._lock:
            if time.monotonic() - self._at > _FRESH_S:
                self._kept, self._at = list(self._ask()), time.monotonic()
            yield from self._kept

    def _ask(self) -> Iterator[Metric]:
        service = self._service
        now = time.time()
        with service.db.read() as c:
            by_state = c.execute(
                select(jobs.c.kind, jobs.c.state, func.count()).group_by(jobs.c.kind, jobs.c.state)
            ).all()
            oldest = c.execute(
                select(func.min(jobs.c.due_at)).where(jobs.c.state == "waiting", jobs.c.due_at <= now)
            ).scalar()
            statuses = c.execute(select(studies.c.status, func.count()).group_by(studies.c.status)).all()
            troubles = c.execute(
                select(events.c.level, func.count()).where(events.c.over_at.is_(None)).group_by(events.c.level)
            ).all()
            answers = c.execute(
                select(results.c.model, results.c.state, func.count(), func.sum(results.c.seconds)).group_by(
                    results.c.model, results.c.state
                )
            ).all()
        queue = GaugeMetricFamily("sagittal_jobs", "Jobs by kind and state.", labels=("kind", "state"))
        for kind, state, count in by_state:
            queue.add_metric((kind, state), count)
        yield queue
        yield GaugeMetricFamily(
            "sagittal_oldest_waiting_seconds", "Seconds that the oldest job that is due has waited.",
            value=max(0.0, now - oldest) if oldest else 0.0,
        )  # fmt: skip
        held = GaugeMetricFamily("sagittal_studies", "Studies by status.", labels=("status",))
        for status, count in statuses:
            held.add_metric((status,), count)
        yield held
        open_events = GaugeMetricFamily("sagittal_open_events", "Troubles that are not over.", labels=("level",))
        for level, count in troubles:
            open_events.add_metric((level,), count)
        yield open_events
        made = GaugeMetricFamily("sagittal_results", "Results by model and state.", labels=("model", "state"))
        spent = GaugeMetricFamily(
            "sagittal_results_seconds", "Seconds that models took for them.", labels=("model", "state")
        )
        for model, state, count, seconds in answers:
            made.add_metric((model, state), count)
            spent.add_metric((model, state), float(seconds or 0))
        yield made
        yield spent
        disk = shutil.disk_usage(service.config.server.data)
        yield GaugeMetricFamily("sagittal_disk_free_bytes", "Free on the disk of the archive.", value=disk.free)
        yield GaugeMetricFamily("sagittal_disk_bytes", "Size of the disk of the archive.", value=disk.total)


@router.get("/metrics", dependencies=[Depends(allow("metrics"))], tags=["operation"])
def metrics(request: Request) -> Response:
    """Counters in the text format of Prometheus; takes the token of the configuration, or the permission."""
    return Response(request.app.state.service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
