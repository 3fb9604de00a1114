"""Opening the database of the service, and the two ways to use it: one transaction that writes, or one that reads.

SQLite beside the files is the default and needs nothing installed: write-ahead log, every commit flushed to the disk
(``synchronous=FULL``, and ``fullfsync`` where the system has it), one writer at a time in the process, others waited
for. PostgreSQL by URL where several machines share the work.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from sagittal.database.clock import Clock
from sagittal.errors import ConfigError, ResourceError, ServeError

#: Seconds that a locked database is waited for.
WAIT_S = 60.0
#: Seconds that SQLite itself waits before it says that it is locked; then it is asked again.
_ASK_S = 0.5
#: Seconds of a lock after which an administrator is told.
TELL_S = 5.0
#: What each connection to SQLite is told. 8 MiB of pages are kept; the log is cut back to 64 MiB after a rush.
_PRAGMAS = (
    f"PRAGMA busy_timeout={int(_ASK_S * 1000)}",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA fullfsync=1",  # macOS: the drive's own cache too; others ignore it
    "PRAGMA checkpoint_fullfsync=1",
    "PRAGMA foreign_keys=ON",
    "PRAGMA cache_size=-8192",
    "PRAGMA secure_delete=ON",  # what is deleted is overwritten
    "PRAGMA temp_store=MEMORY",
    "PRAGMA journal_size_limit=67108864",
)
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


class Database:
    """An open database of the service; safe to use from many threads.

    Attributes
    ----------
    url : str
        Without password.
    dialect : str
        ``"sqlite"`` or ``"postgresql"``.
    engine : sqlalchemy.Engine
        Of those who read; with SQLite it refuses to write.
    clock : Clock
        See :func:`sagittal.database.clock.now`.
    wait_s : float
        Seconds that a locked database is waited for.
    access_changes : int
        Counts what this process changed of users and tokens, for those who remember them.
    """

    def __init__(self, engine: sa.Engine, writers: sa.Engine, *, wait_s: float = WAIT_S) -> None:
        self.engine, self._writers = engine, writers
        self.url = engine.url.render_as_string(hide_password=True)
        self.dialect = engine.dialect.name
        self.wait_s = wait_s
        self.clock = Clock()
        self.access_changes = 0
        self._lock = threading.Lock()
        self._owner = 0
        self._locked_s = 0.0
        self._writer: sa.Connection | None = None

    @classmethod
    def open(cls, url: str, *, create: bool = True, wait_s: float = WAIT_S) -> Database:
        """Open a database, and bring its tables up to date.

        Parameters
        ----------
        url : str
            ``sqlite:///path`` or ``postgresql+pg8000://user:password@host/name``.
        create : bool
            Whether an empty database gets its tables and an older one is upgraded; refused otherwise.
        wait_s : float
            Seconds that a locked database is waited for before :class:`ServeError` is raised.

        Raises
        ------
        ConfigError
            If the URL is none of these.
        ServeError
            If the database cannot be opened, was made by a newer version of Sagittal, or is empty or older and
            `create` is false.
        """
        from sagittal.database.migrate import prepare_tables

        database = cls(*_engines(url, create), wait_s=wait_s)
        try:
            prepare_tables(database, create=create)
            with database.read() as c:
                database.clock.start(c)
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Close all connections. Closing twice does no harm."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._writers.dispose()
        self.engine.dispose()

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction that writes: committed and flushed to the disk at the end, undone if anything is raised.

        Raises
        ------
        ServeError
            If the database stays locked for `wait_s`, or is used inside of another `write` of the same thread.
        ResourceError
            If the disk is full; nothing of the transaction is kept.
        """
        if self.dialect != "sqlite":
            with _told(), self._writers.begin() as c:
                yield c
                self.clock.keep(c)
            return
        if self._owner == threading.get_ident():
            raise ServeError("a transaction was begun inside of another one of the same thread")
        deadline = time.monotonic() + self.wait_s
        if not self._lock.acquire(timeout=self.wait_s):
            raise ServeError(f"the database was busy with another transaction for {self.wait_s:g} s")
        self._owner = threading.get_ident()
        try:
            with _told():
                c = self._begun(deadline)
                try:
                    self._tell_of_locks(c)
                    yield c
                    self.clock.keep(c)
                    c.commit()
                except BaseException:
                    self._undo(c)
                    raise
        finally:
            self._owner = 0
            self._lock.release()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One transaction that reads: a view of the database as it was when the first row was asked for."""
        with _told(), self.engine.connect() as c:
            yield c

    def truncate_log(self) -> bool:
        """Move SQLite's log into the database and empty it; false if somebody is reading, or it is another database."""
        if self.dialect != "sqlite":
            return False
        with self._lock:
            connection = self._writers.raw_connection()
            try:
                busy = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                return not busy[0]
            except sqlite3.OperationalError:
                return False
            finally:
                connection.close()

    def insert_new(self, table: sa.Table) -> Any:
        """An INSERT into `table` that leaves a row alone which is there already under the same unique columns.

        ``result.rowcount`` is 0 then, and ``.returning(...)`` gives no row.
        """
        if self.dialect == "sqlite":
            return sqlite.insert(table).on_conflict_do_nothing()
        return postgresql.insert(table).on_conflict_do_nothing()

    def _begun(self, deadline: float) -> sa.Connection:
        """The connection that writes, its transaction begun; another process's transaction is waited for."""
        if self._writer is None:
            self._writer = self._writers.connect()
        begun = time.monotonic()
        while True:
            try:
                self._writer.begin()
                return self._writer
            except OperationalError as error:
                if _is_busy(error):
                    self._locked_s = max(self._locked_s, time.monotonic() - begun)
                self._undo(self._writer)
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise

    def _tell_of_locks(self, c: sa.Connection) -> None:
        """Put into the administrator's list that another process kept the database locked; it may be gone by now."""
        if self._locked_s < TELL_S:
            return
        from sagittal.database.events import report

        locked_s, self._locked_s = self._locked_s, 0.0
        report(
            c,
            "database-locked",
            "warning",
            f"Another process kept the database locked for {locked_s:.0f} s. What came meanwhile had to wait or to be sent "
            "again: find out which program opens the file of the database.",
            over=True,
        )

    def _undo(self, c: sa.Connection) -> None:
        try:
            c.rollback()
        except sa.exc.SQLAlchemyError:  # the connection is of no use any more; the next transaction opens another
            c.invalidate()
            c.close()
            self._writer = None


def _engines(url: str, create: bool) -> tuple[sa.Engine, sa.Engine]:
    """The engine of those who read, and of those who write."""
    try:
        parsed = sa.engine.make_url(url)
    except sa.exc.ArgumentError as error:
        raise ConfigError(
            "the database's URL cannot be read: write sqlite:///path or postgresql+pg8000://..."
        ) from error
    # Never a statement's parameters in an error: they hold patients' names.
    hidden: dict[str, Any] = {"hide_parameters": True, "pool_size": 8, "max_overflow": 24, "pool_timeout": WAIT_S}
    if parsed.get_backend_name() == "postgresql":
        engine = sa.create_engine(parsed.set(drivername="postgresql+pg8000"), pool_pre_ping=True, **hidden)
        return engine, engine
    if parsed.get_backend_name() != "sqlite":
        kind = parsed.get_backend_name()
        raise ConfigError(f"databases of the kind {kind!r} are not supported: SQLite and PostgreSQL are")
    if parsed.database in {None, "", ":memory:"}:
        raise ConfigError("the database must be a file: write sqlite:///path")
    path = Path(str(parsed.database))
    if not create and not path.is_file():
        raise ServeError("the database does not exist: start the service once, or restore a backup")
    path.parent.mkdir(parents=True, exist_ok=True)
    readers, writers = sa.create_engine(parsed, **hidden), sa.create_engine(parsed, hide_parameters=True)
    for engine, more, begin in ((readers, ("PRAGMA query_only=1",), "BEGIN"), (writers, (), "BEGIN IMMEDIATE")):
        sa.event.listen(engine, "connect", _configure((*_PRAGMAS, *more)))
        sa.event.listen(engine, "begin", _begin(begin))
    return readers, writers


def _configure(pragmas: tuple[str, ...]) -> Callable[[Any, Any], None]:
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves
        for pragma in pragmas:
            connection.execute(pragma)

    return configure


def _begin(statement: str) -> Callable[[sa.Connection], None]:
    def begin(c: sa.Connection) -> None:
        c.exec_driver_sql(statement)

    return begin


def _is_busy(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _BUSY


def broke_a_rule(error: DBAPIError) -> bool:
    """Whether a row named another that is not there, stood there already, or the like (class 23 of SQLSTATE)."""
    return isinstance(error, IntegrityError) or _sqlstate(error).startswith("23")


def _sqlstate(error: DBAPIError) -> str:
    """The SQLSTATE that PostgreSQL gave (appendix A of its manual); empty where there is none."""
    given = error.orig.args[0] if error.orig is not None and error.orig.args else None
    return str(given.get("C", "")) if isinstance(given, dict) else ""


@contextmanager
def _told() -> Iterator[None]:
    """What the database says of locks and full disks, as our own errors."""
    try:
        yield
    except DBAPIError as error:  # of PostgreSQL any error of its server, told apart by its SQLSTATE
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        if code in _BUSY:
            raise ServeError("the database stayed locked by another process: nothing was changed; try again") from error
        if code == sqlite3.SQLITE_FULL or _sqlstate(error) == "53100":
            raise ResourceError("the disk of the database is full: nothing was changed; free some space") from error
        if code == sqlite3.SQLITE_IOERR:
            raise ResourceError(
                "the disk of the database cannot be read or written: look at the system's log"
            ) from error
        raise
