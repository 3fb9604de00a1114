"""The archive: a folder of received objects, and the rows by which they are found.

<folder>/incoming/<name>.part          on their way in
<folder>/objects/000001/<hash>-<n>.dcm kept, 4,096 in a folder
<folder>/files/000001/<hash>-<n>.json  results that are no DICOM objects
<folder>/archive.lock                  held by the process that receives
"""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import os
import secrets
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from sagittal.archive.damage import report_damage
from sagittal.archive.disk import Shelves, Together, flush, hold, path_in, told, write_all
from sagittal.archive.elements import sequences
from sagittal.archive.header import image_classes, kept_syntaxes
from sagittal.archive.meta import FileMeta
from sagittal.archive.receive import Incoming, Receipt
from sagittal.archive.refused import ArchiveFull, Refused, record_refusal
from sagittal.archive.rows import Arrival, Index, Indexed, add_conflict
from sagittal.archive.same import same_data_set
from sagittal.database.connect import Database
from sagittal.database.events import end_event, report, report_event
from sagittal.database.schema import instances
from sagittal.errors import SagittalError, ServeError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_log = logging.getLogger(__name__)
#: What the disk has left is asked so often while objects come, and each time where less than so much is beyond the reserve.
_FREE_S, _AMPLE = 0.05, 2**30


@dataclass(frozen=True)
class Limits:
    """What the archive takes.

    Attributes
    ----------
    disk_reserve : int
        Bytes that stay free: below, nothing is received.
    most_object : int
        Bytes that one object may have.
    default_character_set : str
        Of objects that declare none and hold more than ASCII; UTF-8 is tried first.
    """

    disk_reserve: int = 5 * 2**30
    most_object: int = 4 * 2**30
    default_character_set: str = "ISO_IR 100"


@dataclass(frozen=True)
class Kept:
    """A file that is kept: where below the archive's folder, its hash and its bytes."""

    path: str
    sha256: str
    size: int


class Archive:
    """Objects that were received, in a folder and in the database; safe to use from many threads.

    Parameters
    ----------
    db : Database
    folder : Path
        Made if it is not there.
    limits : Limits
    """

    def __init__(self, db: Database, folder: Path, limits: Limits | None = None) -> None:
        self.db = db
        self.folder = folder
        self.limits = limits or Limits()
        self.incoming = folder / "incoming"
        self.shelves = Shelves(folder / "objects")
        self.files = Shelves(folder / "files")
        self._index = Index(db)
        self._indexing: Together[Arrival, Indexed] = Together(self._index.add)
        self._lock = threading.Lock()
        self._holder = -1
        self._troubles: frozenset[str] = frozenset()  # events that end when something is kept again
        self._receiving = 0
        self._free = (float("-inf"), 0)  # when the disk was asked, and the bytes that it had left, less what came since
        self._names, self._numbers = secrets.token_hex(8), itertools.count()
        with told():
            for path in (folder, self.incoming, self.shelves.path, self.files.path):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def own(self) -> None:
        """Be the one process that receives into this folder, until :meth:`close`.

        Raises
        ------
        ServeError
            If another process is.
        """
        if self._holder >= 0:
            return
        with told():
            file = os.open(self.folder / "archive.lock", os.O_RDWR | os.O_CREAT, 0o600)
        if not hold(file):
            os.close(file)
            raise ServeError("another process receives into this archive: stop it first, or name another folder")
        self._holder = file
        for load in (kept_syntaxes, image_classes, sequences):  # so that the first object is received as fast as others
            load()

    def close(self) -> None:
        """Let another process receive. Closing twice does no harm."""
        self.shelves.close()
        self.files.close()
        if self._holder >= 0:
            os.close(self._holder)
            self._holder = -1

    @property
    def receiving(self) -> int:
        """How many objects are coming in at the moment."""
        return self._receiving

    def receive(self, source: str, *, meta: FileMeta | None = None) -> Incoming:
        """Begin to receive an object.

        Parameters
        ----------
        source : str
            "dicom AE", "stow", "rest", "folder".
        meta : FileMeta, optional
            For DIMSE, where the stream is the bare data set; a stream without it is a file of PS3.10.

        Raises
        ------
        Refused
            If what is announced is not kept.
        ArchiveFull
            If the disk has no room beyond the reserve.
        """
        return self._receive(source, meta, False)

    def _receive(self, source: str, meta: FileMeta | None, result: bool) -> Incoming:
        try:
            self.check_space(0)
            incoming = Incoming(self, source, meta, result=result)
        except SagittalError as error:
            self.failed(source, error)
            raise
        with self._lock:
            self._receiving += 1
        return incoming

    def store_result(self, dataset: Dataset, source: str = "result") -> Receipt:
        """Keep an object that Sagittal made, as any other; it opens no series and asks for no answer.

        Raises
        ------
        Refused, ArchiveFull, ServeError
            As :meth:`Incoming.finish`.
        """
        stream = io.BytesIO()
        dataset.save_as(stream, enforce_file_format=True)
        with self._receive(source, None, True) as incoming:
            incoming.write(stream.getvalue())
            return incoming.finish()

    def store_result_file(self, path: Path, source: str = "result") -> Receipt:
        """As :meth:`store_result`, of an object in a file, which need not fit into memory.

        Raises
        ------
        Refused, ArchiveFull, ServeError
            As :meth:`Incoming.finish`.
        """
        with self._receive(source, None, True) as incoming, path.open("rb") as file:
            while piece := file.read(2**20):
                incoming.write(piece)
            return incoming.finish()

    def store_file(self, data: bytes, suffix: str) -> Kept:
        """Keep a file that is no DICOM object, flushed to the disk before this returns.

        Parameters
        ----------
        data : bytes
        suffix : str
            Such as ``".json"``: letters and digits.

        Raises
        ------
        ArchiveFull, ServeError
        """
        if not suffix.replace(".", "").isalnum() or not suffix.startswith("."):
            raise ServeError("the suffix of a file must be a dot and letters or digits")
        try:
            return self._store_file(data, suffix)
        except ArchiveFull as error:
            self.failed("result", error)
            raise

    def _store_file(self, data: bytes, suffix: str) -> Kept:
        digest = hashlib.sha256(data).hexdigest()
        part = self.new_part()
        with told():
            self.check_space(len(data))
            file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
            try:
                hold(file)
                write_all(file, [data])
                flush(file)
                place = self.files.put(part, f"{digest}-{self.new_name()}{suffix}")
            except BaseException:
                with suppress(OSError):
                    os.unlink(part)
                raise
            finally:
                os.close(file)
        return Kept(f"files/{place}", digest, len(data))

    def open(self, instance_id: int) -> Path:
        """Where the file of an instance lies.

        Raises
        ------
        KeyError
            If there is no such instance.
        """
        with self.db.read() as c:
            place = c.execute(sa.select(instances.c.path).where(instances.c.id == instance_id)).scalar()
        if place is None:
            raise KeyError(instance_id)
        return self.path_of(place)

    def path_of(self, place: str) -> Path:
        """Where a file of a row's ``path`` lies.

        Raises
        ------
        ServeError
            If it is none that the archive made.
        """
        return path_in(self.folder, place)

    def check_space(self, more: int) -> None:
        """Refuse to take more bytes than leave the reserve free.

        Raises
        ------
        ArchiveFull
        """
        at, free = self._free
        if time.monotonic() - at > _FREE_S or free - more < self.limits.disk_reserve + _AMPLE:
            with told():
                free = shutil.disk_usage(self.folder).free
            at = time.monotonic()
        self._free = (at, free - more)
        if free - more < self.limits.disk_reserve:
            raise ArchiveFull(
                f"the disk of the archive has {free / 2**30:.1f} GiB left, and {self.limits.disk_reserve / 2**30:.1f} "
                "GiB are kept free: free some space, or give it more"
            )

    def new_name(self) -> str:
        """A name that no other file of the archive has: of this process, and a number."""
        return f"{self._names}{next(self._numbers):x}"

    def new_part(self) -> Path:
        """Where a file lies while it comes in."""
        return self.incoming / f"{self.new_name()}.part"

    def forget(self) -> None:
        """Look up studies and series again; for whoever deletes their rows."""
        self._index.forget()

    # What Incoming calls ----------------------------------------------------------------------------------------------

    def keep(self, part: Path, arrival: Arrival) -> Receipt:
        """Give a flushed file its name and its rows; for :class:`Incoming`."""
        arrival.path = "objects/" + self.shelves.put(part, f"{arrival.sha256}-{self.new_name()}.dcm")
        try:
            receipt = self.settle(arrival)
        except SagittalError:
            if self.db.dialect == "sqlite":  # elsewhere the rows may be there all the same; the next check will tell
                with suppress(OSError):
                    os.unlink(self.path_of(arrival.path))
            raise
        if self._troubles:
            troubles, self._troubles = self._troubles, frozenset()
            for code in troubles:
                end_event(self.db, code)
        return receipt

    def settle(self, arrival: Arrival) -> Receipt:
        """Make the rows of a file that has its name, or find those that are there; for :class:`Incoming` and :func:`recover`."""
        return self._settled(arrival, self._indexing.run(arrival))

    def _settled(self, arrival: Arrival, indexed: Indexed) -> Receipt:
        known = indexed.known
        if known is None:
            return Receipt("stored", indexed.instance_id, indexed.series_id, indexed.study_id)
        receipt = Receipt("already", known.id, known.series_id, known.study_id)
        if arrival.path == known.path:  # a file that has its row is looked at again: nothing is to be done to it
            return receipt
        mine, theirs = self.path_of(arrival.path), self.path_of(known.path)
        if known.damage and arrival.sha256 == known.sha256:
            with self.db.write() as c:  # what was lost comes back
                c.execute(sa.update(instances).where(instances.c.id == known.id).values(path=arrival.path, damage=""))
            with suppress(OSError):
                os.unlink(theirs)
            report_damage(self.db)
            return receipt
        same = arrival.sha256 == known.sha256 or (arrival.header.syntax == known.syntax and same_data_set(mine, theirs))
        if not same:
            with self.db.write() as c:
                place = add_conflict(c, self.db, known, arrival)
                new = place == arrival.path
                if new:
                    report(
                        c,
                        "conflict",
                        "warning",
                        "An object came again with other bytes under the same UID. Both are kept: decide in the list of conflicts.",
                    )
            receipt = Receipt("conflict", known.id, known.series_id, known.study_id)
            if new:
                return receipt
        with suppress(OSError):
            os.unlink(mine)
        return receipt

    def left(self, _incoming: Incoming) -> None:
        """An object is no longer coming in; for :class:`Incoming`."""
        with self._lock:
            self._receiving -= 1

    def cleaned(self) -> None:
        """Tell the administrator that a preamble could have been executed; for :class:`Incoming`."""
        report_event(
            self.db,
            "executable-preamble",
            "warning",
            "Objects came with a preamble that is not empty and could be executed (CVE-2019-11687). It was emptied: look at who sends them.",
        )

    def failed(self, source: str, error: BaseException) -> None:
        """Put into the lists why an object was not kept; for :class:`Incoming`."""
        try:
            if isinstance(error, Refused):
                record_refusal(self.db, source, error.code, error.reason)
            elif isinstance(error, ArchiveFull):
                self._troubles |= {"disk-full"}
                report_event(self.db, "disk-full", "error", str(error))
            elif isinstance(error, ServeError) and isinstance(error.__cause__, OSError):
                self._troubles |= {"disk-broken"}
                report_event(self.db, "disk-broken", "error", str(error))
        except SagittalError:  # the database may be on the same disk
            _log.warning("an object was not kept, and the database could not be told why")
