"""A process that only works: it answers studies for a service that runs elsewhere on the same database and folder.

Jobs are leased in the database, so that as many such processes as there are machines share them; one that ends, however,
gives its job to the others. It opens no port and receives nothing.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from functools import partial
from pathlib import Path

import numpy as np

from sagittal.archive.archive import Archive, Limits
from sagittal.database.connect import Database
from sagittal.database.events import report_event
from sagittal.errors import ConfigError
from sagittal.jobs.answer_job import AnswerJob
from sagittal.jobs.packages import read_packages
from sagittal.jobs.pool import Pool
from sagittal.jobs.queue import Queue
from sagittal.jobs.supervise import Supervisor
from sagittal.protect.audit import Audit
from sagittal.serve.config import Config
from sagittal.serve.record import answered, ended, trouble_over

_log = logging.getLogger(__name__)


class Helper:
    """Answers studies between :meth:`start` and :meth:`stop`.

    Parameters
    ----------
    config : Config
        Of the service that it helps: the same database, folder and models.

    Raises
    ------
    ConfigError
        If there is no model.
    ServeError
        If the database does not exist yet: the service makes it.
    """

    def __init__(self, config: Config) -> None:
        models = read_packages(config.model)
        if not models:
            raise ConfigError("a worker needs the models of the service: give the same file or the same models")
        self._stop_s = config.server.stop_s
        self._db = Database.open(config.server.database_url, create=False)
        limits = Limits(config.limits.disk_reserve_bytes, config.dicom.most_object_bytes)
        archive = Archive(self._db, config.server.data / "archive", limits)
        queue, audit = Queue(self._db, rng=np.random.default_rng()), Audit(self._db)
        self._pool = Pool(models, report=partial(report_event, self._db), ended=partial(trouble_over, self._db))
        self._spool = Path(tempfile.mkdtemp(prefix="sagittal-"))  # that of the service is emptied when it starts
        handlers = {
            "answer": AnswerJob(queue, archive, self._pool, self._spool / "spool", stored=partial(answered, audit))
        }
        self._supervisor = Supervisor(
            queue, handlers, threads={"answer": len(models)}, after=partial(ended, audit, queue)
        )

    def start(self) -> None:
        """Take jobs."""
        self._supervisor.start()
        threading.Thread(target=self._pool.warm, name="warm", daemon=True).start()

    def stop(self) -> None:
        """Take no more, let what is at work finish for a while, and give back what does not."""
        try:
            self._supervisor.stop(self._stop_s)
            self._pool.stop()
        finally:
            shutil.rmtree(self._spool, ignore_errors=True)
            self._db.close()
