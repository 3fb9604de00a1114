"""A backup of everything while the service runs, its check, and putting it back.

    <backup>/backup.json     when, by which version, how much, the hash of the database
    <backup>/sagittal.db     the database as it was at one moment; SQLite also where the service uses PostgreSQL
    <backup>/archive/...     the files that its rows name

Files of the archive never change once they have their name, so that a snapshot of the database and the files that it
names fit together however long copying takes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from sagittal import __version__
from sagittal.archive.archive import Archive
from sagittal.archive.damage import damage_of
from sagittal.archive.disk import flush, flush_folder, path_in, told
from sagittal.archive.retention import files_in
from sagittal.database.connect import Database
from sagittal.database.migrate import VERSIONS
from sagittal.database.schema import conflicts, instances, metadata, objects, results, reviews
from sagittal.errors import ReadError, ServeError
from sagittal.guard.json_file import read_json

_DATABASE, _INDEX, _ARCHIVE = "sagittal.db", "backup.json", "archive"
_BLOCK = 2**20
#: Rows or files that are in hand at once.
_AT_ONCE = 1000
#: Files that are copied at the same time.
_THREADS = 8
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Backup:
    """What a backup holds.

    Attributes
    ----------
    made_at : float
        Seconds since 1970 in UTC; the moment of the database's snapshot.
    version : str
        Of Sagittal.
    tables : str
        Version of the tables.
    files, bytes : int
    linked : int
        Files that share their bytes with the archive or an earlier backup.
    missing : int
        Files that rows name and that were not there.
    database : str
        SHA-256 of the database's file.
    """

    made_at: float
    version: str
    tables: str
    files: int
    bytes: int
    linked: int
    missing: int
    database: str


def make_backup(archive: Archive, folder: Path, *, link: bool = False, previous: Path | None = None) -> Backup:
    """Back up database and archive into a new folder, while everything runs.

    Parameters
    ----------
    archive : Archive
    folder : Path
        Empty or not there.
    link : bool
        Whether files on the same disk are hard links: at once and without room, but what damages the disk damages both.
    previous : Path, optional
        An earlier backup on the same disk as `folder`; files that it holds are linked and not copied again.

    Raises
    ------
    ServeError
        If the folder is not empty.
    ArchiveFull
        If its disk is full; what was written stays, without ``backup.json``.
    """
    _check_empty(folder)
    with told():
        (folder / _ARCHIVE).mkdir(parents=True, exist_ok=True, mode=0o700)
    made_at = time.time()
    _snapshot(archive.db, folder / _DATABASE)
    earlier = previous / _ARCHIVE if previous is not None and (previous / _INDEX).is_file() else None
    folders: set[Path] = set()

    def take(one: tuple[str, str, int]) -> tuple[str, int]:
        place, _, length = one
        source, target = archive.path_of(place), path_in(folder / _ARCHIVE, place)
        known = [path_in(root, place) for root in (earlier, archive.folder if link else None) if root is not None]
        with told():
            if any(_link(path, target, length) for path in known):
                return "linked", length
            return ("copied", length) if _copied(source, target) else ("missing", 0)

    counts, size = {"linked": 0, "copied": 0, "missing": 0}, 0
    with closing(_opened(folder / _DATABASE)) as copy:
        for how, length in _at_once(take, _named(copy), folder / _ARCHIVE, folders):
            counts[how], size = counts[how] + 1, size + length
    _flush_folders(folders)
    linked, missing = counts["linked"], counts["missing"]
    files = linked + counts["copied"]
    told_of = Backup(made_at, __version__, VERSIONS[-1], files, size, linked, missing, _hash_of(folder / _DATABASE))
    with told():
        part = folder / f"{_INDEX}.part"
        part.write_text(json.dumps(asdict(told_of), indent=1) + "\n", encoding="utf-8")
        with part.open("rb") as file:
            flush(file.fileno())
        part.rename(folder / _INDEX)  # a backup without it is unfinished
        flush_folder(folder)
    return told_of


def read_backup(folder: Path) -> Backup:
    """What a backup says of itself.

    Raises
    ------
    ReadError
        If it is none, or unfinished.
    """
    if not (folder / _INDEX).is_file():
        raise ReadError(f"the folder holds no finished backup: {_INDEX} is missing")
    try:
        found = Backup(**read_json(folder / _INDEX, limit=2**16))
    except TypeError as error:
        raise ReadError(f"{_INDEX} is not that of a backup of this version") from error
    return found


@dataclass(frozen=True)
class BackupCheck:
    """What checking a backup found: files read, and places of those that are missing or altered."""

    files: int
    damaged: tuple[str, ...]


def check_backup(folder: Path) -> BackupCheck:
    """Compare every file of a backup with its hash.

    Raises
    ------
    ReadError
        If it is no finished backup, or its database is damaged.
    """
    index = read_backup(folder)
    if _hash_of(folder / _DATABASE) != index.database:
        raise ReadError("the database of the backup is damaged: its hash is not the one in backup.json")
    damaged = []
    count = 0
    with closing(_opened(folder / _DATABASE)) as copy:
        for place, digest, size in _named(copy):
            count += 1
            path = path_in(folder / _ARCHIVE, place)
            if not digest:  # of a reader's mask only the place is known
                if not path.is_file():
                    damaged.append(place)
            elif damage_of(path, digest, size):
                damaged.append(place)
    return BackupCheck(count, tuple(damaged))


def restore_backup(folder: Path, data: Path, url: str) -> BackupCheck:
    """Put a backup back into an empty place, every hash compared on the way.

    Parameters
    ----------
    folder : Path
        The backup.
    data : Path
        Folder of the archive to make; empty or not there.
    url : str
        Of the database to make, which must be empty; SQLite or PostgreSQL, whichever it was before.

    Returns
    -------
    BackupCheck
        Files that are damaged in the backup are restored as they are, and marked in the database.

    Raises
    ------
    ReadError
        If it is no finished backup, its database is damaged, or it is of a newer version.
    ServeError
        If the folder or the database is not empty.
    """
    index = read_backup(folder)
    if index.tables not in VERSIONS:
        raise ReadError(
            f"the backup was made by version {index.version} of Sagittal, which is newer: install that version"
        )
    if _hash_of(folder / _DATABASE) != index.database:
        raise ReadError("the database of the backup is damaged: its hash is not the one in backup.json")
    _check_empty(data)
    _restore_database(folder / _DATABASE, url)
    folders: set[Path] = set()

    def put(one: tuple[str, str, int]) -> tuple[str, bool]:
        place, digest, _ = one
        with told():
            found = _copied(path_in(folder / _ARCHIVE, place), path_in(data, place))
        return place, found is not None and (not digest or found == digest)

    damaged: list[str] = []
    count = 0
    with closing(_opened(folder / _DATABASE)) as copy:
        for place, sound in _at_once(put, _named(copy), data, folders):
            count += 1
            if not sound:
                damaged.append(place)
    _flush_folders(folders)
    db = Database.open(url)
    try:
        _mark(db, data, damaged)
    finally:
        db.close()
    return BackupCheck(count, tuple(damaged))


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ServeError("the folder is not empty: name one that is empty, or not there yet")


def _snapshot(db: Database, path: Path) -> None:
    """The database as it is at this moment, in a file; others go on reading and writing."""
    if db.dialect == "sqlite":
        source = sqlite3.connect(str(db.engine.url.database), timeout=db.wait_s)
        with closing(source), closing(sqlite3.connect(path)) as target:
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        with path.open("rb") as file, told():
            flush(file.fileno())
        return
    with closing(Database.open(f"sqlite:///{path}")) as made, db.engine.connect() as c, made.write() as to:
        _copy_rows(c.execution_options(isolation_level="REPEATABLE READ"), to)
    with closing(sqlite3.connect(path)) as target:
        target.execute("PRAGMA journal_mode=DELETE")


def _restore_database(path: Path, url: str) -> None:
    made = sa.engine.make_url(url)
    if made.get_backend_name() == "sqlite":
        target = Path(str(made.database))
        if target.exists():
            raise ServeError("the database is there already: name one that is not there yet")
        target.parent.mkdir(parents=True, exist_ok=True)
        with told():
            _copied(path, target)
            flush_folder(target.parent)
        Database.open(url).close()  # brings older tables up to date
        return
    with tempfile.TemporaryDirectory() as folder:  # opening it would change it
        copy = Path(folder) / _DATABASE
        shutil.copyfile(path, copy)
        with (
            closing(Database.open(f"sqlite:///{copy}")) as source,
            closing(Database.open(url)) as made_db,
            source.read() as c,
            made_db.write() as to,
        ):
            if to.execute(sa.select(sa.func.count()).select_from(instances)).scalar():
                raise ServeError("the database is not empty: name one that is")
            _copy_rows(c, to)
            for table in metadata.sorted_tables:
                if "id" in table.c:  # the next row's number
                    last = sa.select(sa.func.coalesce(sa.func.max(table.c.id), 0) + 1).scalar_subquery()
                    of = sa.func.pg_get_serial_sequence(table.name, "id")
                    to.execute(sa.select(sa.func.setval(of, last, False)))


def _copy_rows(c: sa.Connection, to: sa.Connection) -> None:
    """All rows of all tables, those that others name first."""
    for table in metadata.sorted_tables:
        to.execute(sa.delete(table))
        later: list[dict[str, Any]] = []
        rows = c.execution_options(yield_per=_AT_ONCE).execute(sa.select(table)).mappings()
        for part in rows.partitions(_AT_ONCE):
            made = [dict(row) for row in part]
            if table is results:  # a result names the later one that replaced it
                later += [{"of": row["id"], "by": row["replaced_by"]} for row in made if row["replaced_by"]]
                made = [{**row, "replaced_by": None} for row in made]
            to.execute(sa.insert(table), made)
        if later:
            to.execute(
                sa.update(results).where(results.c.id == sa.bindparam("of")).values(replaced_by=sa.bindparam("by")),
                later,
            )


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)


def _named(copy: sqlite3.Connection) -> Iterator[tuple[str, str, int]]:
    """Place, hash and length of each file that the rows of a backup name; the hash is empty where none is known."""
    seen: set[str] = set()  # an object of a result is an instance too
    for table in (objects, conflicts, instances):
        for place, digest, size in copy.execute(f"SELECT path, sha256, size FROM {table.name}"):  # noqa: S608
            if table is not instances:
                if place in seen:
                    continue
                seen.add(place)
            elif place in seen:
                continue
            yield place, digest, size
    for (text,) in copy.execute(f"SELECT correction FROM {reviews.name} WHERE correction IS NOT NULL"):  # noqa: S608
        for place in files_in(json.loads(text)):
            if place not in seen:
                seen.add(place)
                yield place, "", 0


def _link(source: Path, target: Path, size: int) -> bool:
    try:
        if size and source.stat().st_size != size:
            return False
        os.link(source, target)
    except OSError:
        return False
    return True


def _copied(source: Path, target: Path) -> str | None:
    """Copy a file, flushed; its hash, ``None`` if it is not there."""
    digest = hashlib.sha256()
    try:
        reading = source.open("rb")
    except FileNotFoundError:
        return None
    with reading, target.open("xb") as writing:
        while block := reading.read(_BLOCK):
            digest.update(block)
            writing.write(block)
        writing.flush()
        flush(writing.fileno())
    with suppress(OSError):
        shutil.copymode(source, target)
    return digest.hexdigest()


def _at_once(
    work: Callable[[tuple[str, str, int]], Answer],
    named: Iterator[tuple[str, str, int]],
    root: Path,
    folders: set[Path],
) -> Iterator[Answer]:
    """Do the work for every file, several at a time, so that they share the flushes of the disk; makes their folders."""
    with ThreadPoolExecutor(_THREADS) as pool:
        while part := list(islice(named, _AT_ONCE)):
            for place, _, _ in part:
                folder = path_in(root, place).parent
                if folder not in folders:
                    folders.add(folder)
                    with told():
                        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            yield from pool.map(work, part)


def _flush_folders(folders: Iterable[Path]) -> None:
    with told():
        for one in sorted(folders):
            flush_folder(one)
            flush_folder(one.parent)


def _hash_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ReadError("the database of the backup cannot be read") from error


def _mark(db: Database, data: Path, damaged: Iterable[str]) -> None:
    places = sorted(set(damaged))
    with db.write() as c:
        for place in places:
            there = path_in(data, place).is_file()
            c.execute(
                sa.update(instances).where(instances.c.path == place).values(damage="altered" if there else "missing")
            )
