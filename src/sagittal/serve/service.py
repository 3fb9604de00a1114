"""The service: everything that runs, started in order and stopped in the other one.

Database, archive and trail come first, then models and workers, then the ports: nobody can knock before somebody is in.
Stopping closes the ports first, lets what is under way finish for a while, gives back what cannot, and closes the
database last.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sagittal import __version__
from sagittal.archive.archive import Archive, Limits
from sagittal.archive.complete import close_committed, close_quiet_series
from sagittal.archive.integrity import check_files
from sagittal.archive.recover import recover
from sagittal.archive.retention import apply_rules, finish_deletions
from sagittal.database.connect import Database
from sagittal.database.events import report_event
from sagittal.errors import ServeError
from sagittal.jobs.answer_job import AnswerJob, ChooseJob
from sagittal.jobs.deliver_job import DeliverJob, chase_confirmations, confirm_delivery
from sagittal.jobs.fetch_job import FetchJob
from sagittal.jobs.packages import read_packages
from sagittal.jobs.pool import Pool
from sagittal.jobs.predict_now import PredictNow
from sagittal.jobs.queue import Queue
from sagittal.jobs.supervise import Handler, Supervisor, Tick
from sagittal.node.dicom_node import DicomNode
from sagittal.node.pdu import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from sagittal.protect.audit import Audit
from sagittal.protect.known_tokens import KnownTokens
from sagittal.protect.links import make_link
from sagittal.protect.rate import Rate
from sagittal.protect.sessions import sweep_sessions
from sagittal.protect.users import administrators
from sagittal.serve.app import make_app
from sagittal.serve.config import Access, Config, read_secret
from sagittal.serve.health import Health, add_checks
from sagittal.serve.listen import Listener
from sagittal.serve.metrics import Metrics
from sagittal.serve.record import answered, deleted, ended, trouble_over
from sagittal.serve.series_cache import sweep_series
from sagittal.serve.uploads import UploadJob, sweep_uploads
from sagittal.serve.watch import Watching

if TYPE_CHECKING:
    from sagittal.protect.oidc import Provider

_log = logging.getLogger(__name__)

#: Seconds between looks at what is due now and then.
_QUIET_S, _WATCH_S, _SWEEP_S, _CHECK_S = 0.25, 2.0, 600.0, 300.0


@dataclass(frozen=True)
class Rates:
    """How often things may be tried.

    Parameters
    ----------
    names, addresses : Rate
        Logins with one name, and from one address.
    strangers : Rate
        Wrong tokens and links from one address.
    tokens, sessions : Rate
        Requests of one token, and of one user's sessions.
    refused : Rate
        Records of refusals in the trail of one caller.
    """

    names: Rate
    addresses: Rate
    strangers: Rate
    tokens: Rate
    sessions: Rate
    refused: Rate

    @classmethod
    def of(cls, access: Access) -> Rates:
        """Those of a configuration."""
        return cls(
            names=Rate(access.logins, 600.0),
            addresses=Rate(5 * access.logins, 600.0),
            strangers=Rate(30, 300.0),
            tokens=Rate(access.token_requests, 60.0),
            sessions=Rate(12_000, 60.0),
            refused=Rate(20, 60.0),
        )


@dataclass(frozen=True)
class Service:
    """What routes and threads share.

    Parameters
    ----------
    config : Config
    db : Database
    archive : Archive
    audit : Audit
    queue : Queue
    pool : Pool
    supervisor : Supervisor
        Whose threads do the jobs.
    predict_now : PredictNow
        For answers that a caller waits for.
    node : DicomNode, optional
        ``None`` where DICOM is off.
    oidc : Provider, optional
    metrics : Metrics
    health : Health
    rates : Rates
    stopping : threading.Event
        Set when the service ends: whatever goes on by itself stops then.
    closers : list of (name, callable)
        What ends each part, in the order in which they began.
    """

    config: Config
    db: Database
    archive: Archive
    audit: Audit
    queue: Queue
    pool: Pool
    supervisor: Supervisor
    predict_now: PredictNow
    node: DicomNode | None = None
    oidc: Provider | None = None
    metrics: Metrics = field(default_factory=Metrics)
    health: Health = field(default_factory=Health)
    rates: Rates = field(default_factory=lambda: Rates.of(Access()))
    stopping: threading.Event = field(default_factory=threading.Event)
    closers: list[tuple[str, Callable[[], Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        add_checks(self.health, self)

    @cached_property
    def known_tokens(self) -> KnownTokens:
        """Tokens that were looked up a moment ago."""
        return KnownTokens(self.db)

    def stop(self) -> None:
        """End everything in the other order in which it was started; one part that fails does not keep the others."""
        self.stopping.set()
        while self.closers:
            name, close = self.closers.pop()
            try:
                close()
            except Exception:
                _log.exception("%s could not be stopped", name)


def open_service(config: Config) -> Service:
    """A service whose parts are there and do nothing yet: no port, no thread, no process.

    Parameters
    ----------
    config : Config

    Raises
    ------
    ConfigError, PackageError
        If a model, a secret's file, a certificate or the identity provider's table is wrong.
    ServeError, ResourceError
        If the database or the archive cannot be opened.
    """
    models = read_packages(config.model)
    provider = make_provider(config)
    closers: list[tuple[str, Callable[[], Any]]] = []
    try:
        config.server.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        db = Database.open(config.server.database_url)
        closers.append(("database", db.close))
        limits = Limits(config.limits.disk_reserve_bytes, config.dicom.most_object_bytes)
        archive = Archive(db, config.server.data / "archive", limits)
        closers.append(("archive", archive.close))
        audit, queue = Audit(db), Queue(db, rng=np.random.default_rng())
        pool = Pool(models, report=partial(report_event, db), ended=partial(trouble_over, db))
        closers.append(("models", pool.stop))
        supervisor = _supervisor(config, db, archive, audit, queue, pool)
        metrics = Metrics()
        service = Service(
            config,
            db,
            archive,
            audit,
            queue,
            pool,
            supervisor,
            PredictNow(pool),
            node=_node(config, archive, audit, supervisor, metrics) if config.dicom.port else None,
            oidc=provider,
            metrics=metrics,
            rates=Rates.of(config.access),
        )
    except BaseException:
        for _, close in reversed(closers):
            close()
        raise
    service.closers.extend(closers)
    return service


def make_provider(config: Config) -> Provider | None:
    """The identity provider of a configuration, where there is one.

    Raises
    ------
    ConfigError
        If its address is not https, or the file of its secret cannot be read.
    """
    if not config.oidc.issuer:
        return None
    from sagittal.protect.oidc import Provider

    asked = config.oidc
    secret = read_secret(asked.client_secret_file, "oidc.client_secret_file") if asked.client_secret_file else ""
    return Provider(
        asked.issuer, asked.client_id, secret, role_claim=asked.role_claim, roles=asked.roles, scopes=asked.scopes
    )


def _supervisor(config: Config, db: Database, archive: Archive, audit: Audit, queue: Queue, pool: Pool) -> Supervisor:
    """Threads for each kind of job, and for what is due now and then."""
    data, destinations = config.server.data, config.destinations
    record = partial(deleted, audit)
    woken: list[Supervisor] = []

    def wake() -> None:
        for one in woken:
            one.wake()

    spool, uploads, cache = data / "spool", data / "uploads", data / "cache"
    handlers: dict[str, Handler] = {
        "choose": ChooseJob(queue, lambda: pool.models),
        "answer": AnswerJob(queue, archive, pool, spool, stored=partial(answered, audit)),
        "deliver": DeliverJob(queue, archive, {one.name: one for one in destinations}, rng=np.random.default_rng()),
        "fetch": FetchJob(
            queue,
            archive,
            {peer.name: peer for peer in config.pacs},
            implementation=(IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION),
        ),
        "upload": UploadJob(db, archive, pool, uploads, config.limits, spool, wake=wake),
    }
    watching = Watching(archive, config.watch, data / "watched", config.limits, wake=wake)
    ticks = [
        Tick("completeness", _QUIET_S, partial(_close_quiet, config, db, wake, time.monotonic())),
        Tick("sessions", _SWEEP_S, lambda: sweep_sessions(db, idle_s=config.access.session_idle_s)),
        Tick("uploads", _SWEEP_S, lambda: sweep_uploads(db, uploads)),
        Tick("cache", _SWEEP_S, lambda: sweep_series(db, cache)),
        Tick("integrity", _CHECK_S, lambda: check_files(archive, every_s=config.integrity.check_every_s)),
        Tick("confirmations", _SWEEP_S, lambda: chase_confirmations(db, destinations)),
    ]
    if config.watch:
        ticks.append(Tick("watched folders", _WATCH_S, watching.look))
    if config.retention:
        ticks.append(Tick("retention", _SWEEP_S, lambda: apply_rules(archive, config.retention, record)))
    threads = {"answer": max(1, len(pool.models)), "deliver": max(1, min(8, 2 * len(destinations))), "upload": 2}
    supervisor = Supervisor(queue, handlers, threads=threads, ticks=ticks, after=partial(ended, audit, queue))
    woken.append(supervisor)
    return supervisor


def _close_quiet(config: Config, db: Database, wake: Callable[[], None], began: float) -> None:
    # Nobody could send before the service was there: what was open when it ended is given its silence anew.
    if time.monotonic() - began < config.completeness.silence_s:
        return
    if close_quiet_series(db, config.completeness.silence_s, db.clock.now()):
        wake()


def _node(config: Config, archive: Archive, audit: Audit, supervisor: Supervisor, metrics: Metrics) -> DicomNode:
    """The DICOM node, which does not listen yet."""

    def committed(uids: Sequence[str]) -> None:
        if config.completeness.commitment:
            close_committed(archive.db, uids)
            supervisor.wake()

    def reported(_title: str, transaction: str, safe: bool) -> None:
        if confirm_delivery(archive.db, transaction, safe) and not safe:
            supervisor.wake()

    return DicomNode(
        config.dicom,
        archive,
        host=config.dicom_host,
        audit=audit,
        on_committed=committed,
        on_report=reported,
        count=metrics.count,
    )


def start_service(service: Service) -> Listener:
    """Start everything; what was started is stopped again where a part cannot.

    Returns
    -------
    Listener
        Of pages and programs, which tells its address.

    Raises
    ------
    ServeError
        If a port cannot be had, or another process works with the same folder.
    ConfigError
        If the certificate cannot be used.
    """
    try:
        return _start(service)
    except BaseException:
        service.stop()
        raise


def _start(service: Service) -> Listener:
    config = service.config
    listener = Listener(make_app(service), config.server)
    found = recover(service.archive)
    if found.parts or found.orphans:
        _log.warning("%d unfinished files were deleted, %d finished ones indexed", found.parts, found.orphans)
    service.audit.record(
        "sagittal", "start", details={"version": __version__, "models": [m.label for m in service.pool.models]}
    )
    service.closers.append(("trail", lambda: service.audit.record("sagittal", "stop")))
    finish_deletions(service.archive, partial(deleted, service.audit))
    service.supervisor.start()
    service.closers.append(("workers", lambda: service.supervisor.stop(config.server.stop_s)))
    threading.Thread(target=service.pool.warm, name="warm", daemon=True).start()
    if service.node is not None:
        service.node.start()
        service.closers.append(("DICOM node", lambda: _stop_node(service)))
        service.health.checks["dicom"] = lambda: _listens(service)
    listener.start()
    service.closers.append(("pages", listener.stop))
    return listener


def _stop_node(service: Service) -> None:
    if service.node is not None:
        service.node.stop(service.config.server.stop_s)


def _listens(service: Service) -> str:
    try:
        return "" if service.node is not None and service.node.port else "closed"
    except ServeError:
        return "closed"


def first_link(service: Service, address: str) -> str:
    """The address at which the first administrator comes in; empty where there is one already.

    Parameters
    ----------
    address : str
        Of the service, as a browser writes it.
    """
    if administrators(service.db):
        return ""
    return f"{address}/link#{make_link(service.db)}"
