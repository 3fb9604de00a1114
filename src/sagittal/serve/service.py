"""The service: everything that runs, started in order and stopped in the other one.

Database, archive and trail come first, then models and workers, then the ports: nobody can knock before somebody is in.
Stopping closes the ports first, lets what is under way finish for a while, gives back what cannot, and closes the
database last.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from sagittal.database.connect import Database
from sagittal.protect.audit import Audit
from sagittal.protect.rate import Rate
from sagittal.serve.config import Access, Config, read_secret
from sagittal.serve.health import Health, add_checks
from sagittal.serve.metrics import Metrics

if TYPE_CHECKING:
    from sagittal.archive.archive import Archive
    from sagittal.jobs.pool import Pool
    from sagittal.jobs.queue import Queue
    from sagittal.protect.oidc import Provider
    from sagittal.serve.dicom_node import DicomNode

_log = logging.getLogger(__name__)


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
    node : DicomNode, optional
        ``None`` where DICOM is off.
    oidc : Provider, optional
    metrics : Metrics
    health : Health
    rates : Rates
    stopping : threading.Event
        Set when the service ends: whatever goes on by itself stops then.
    """

    config: Config
    db: Database
    archive: Archive
    audit: Audit
    queue: Queue
    pool: Pool
    node: DicomNode | None = None
    oidc: Provider | None = None
    metrics: Metrics = field(default_factory=Metrics)
    health: Health = field(default_factory=Health)
    rates: Rates = field(default_factory=lambda: Rates.of(Access()))
    stopping: threading.Event = field(default_factory=threading.Event)
    closers: list[Callable[[], Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        add_checks(self.health, self)

    def stop(self) -> None:
        """End everything in the other order in which it was started; one part that fails does not keep the others."""
        self.stopping.set()
        while self.closers:
            close = self.closers.pop()
            try:
                close()
            except Exception:
                _log.exception("a part could not be stopped")


def open_service(config: Config) -> Service:
    """A service whose parts are there and do nothing yet: database, archive, trail, models; no port, no thread.

    Parameters
    ----------
    config : Config

    Raises
    ------
    ConfigError, PackageError
        If a model, a secret's file or the identity provider's table is wrong.
    ServeError, ResourceError
        If the database or the archive cannot be opened.
    """
    import numpy as np

    from sagittal.archive.archive import Archive, Limits
    from sagittal.database.events import end_event, report_event
    from sagittal.jobs.packages import read_packages
    from sagittal.jobs.pool import Pool
    from sagittal.jobs.queue import Queue

    models = read_packages(config.model)
    provider = make_provider(config)
    with contextlib.ExitStack() as opened:
        config.server.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        db = Database.open(config.server.database_url)
        opened.callback(db.close)
        limits = Limits(config.limits.disk_reserve_bytes, config.dicom.most_object_bytes)
        archive = Archive(db, config.server.data / "archive", limits)
        opened.callback(archive.close)

        def over(code: str, about: str) -> None:
            end_event(db, code, about)

        pool = Pool(models, report=partial(report_event, db), ended=over)
        opened.callback(pool.stop)
        service = Service(
            config,
            db,
            archive,
            Audit(db),
            Queue(db, rng=np.random.default_rng()),
            pool,
            oidc=provider,
            rates=Rates.of(config.access),
        )
        opened.pop_all()
    service.closers.extend((db.close, archive.close, pool.stop))
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
