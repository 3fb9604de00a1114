"""What the start of the service puts right after a crash or a power loss, and says so.

Files on their way in that no process holds are deleted: nobody was told that they were safe. Files that got their name
and no rows are indexed (orphans). The newest rows are looked at for files that are missing.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.archive.disk import FOLDER_FILES, hold, told
from sagittal.archive.elements import find_elements
from sagittal.archive.header import read_header
from sagittal.archive.rows import Arrival
from sagittal.database.events import report
from sagittal.database.schema import conflicts, instances, jobs, objects, results, reviews
from sagittal.errors import ServeError

#: A file of the archive in the text of a row.
_NAMED = re.compile(r"files/[0-9]+/[0-9A-Za-z.-]+")
#: Seconds for which a file without a row is left alone where several machines share the work.
_SHARED_S = 86400.0
#: Rows that are looked at after a start; the scheduled check looks at the others.
_NEWEST = 4 * FOLDER_FILES


@dataclass(frozen=True)
class Recovered:
    """What was put right.

    Attributes
    ----------
    parts : int
        Files on their way in that were deleted.
    orphans : int
        Files without rows that were indexed.
    strays : int
        Files without rows that are not objects of the archive; left where they are.
    missing : int
        Rows whose file is not there; marked.
    unnamed : int
        Files of results that were interrupted before they had a row; deleted.
    """

    parts: int = 0
    orphans: int = 0
    strays: int = 0
    missing: int = 0
    unnamed: int = 0


def recover(archive: Archive) -> Recovered:
    """Put right what a crash left: to be called once, before anything is received, by the process that owns the archive.

    Raises
    ------
    ServeError
        If another process receives into this folder.
    """
    archive.own()
    parts = delete_parts(archive.incoming)
    orphans, strays = 0, 0
    for name in archive.shelves.names()[-2:]:
        more, others = index_orphans(archive, name)
        orphans, strays = orphans + more, strays + others
    missing = _mark_missing(archive)
    unnamed = sum(delete_unnamed(archive, name) for name in archive.files.names()[-2:])
    found = Recovered(parts, orphans, strays, missing, unnamed)
    with archive.db.write() as c:
        if parts or orphans:
            report(
                c,
                "recovered",
                "info",
                f"The service was not stopped in order. {parts} unfinished files were deleted, {orphans} finished ones indexed.",
            )
        if missing:
            report(c, "damaged", "error", f"{missing} files of the archive are missing: restore them from a backup.")
    return found


def delete_parts(folder: Path) -> int:
    """Delete the unfinished files of a folder that no process holds; how many there were."""
    count = 0
    with told():
        for entry in list(os.scandir(folder)):
            if not entry.name.endswith(".part"):
                continue
            with suppress(FileNotFoundError):
                file = os.open(entry.path, os.O_RDWR)
                try:
                    if hold(file):
                        os.unlink(entry.path)
                        count += 1
                finally:
                    os.close(file)
    return count


def index_orphans(archive: Archive, name: str) -> tuple[int, int]:
    """Index the files of one folder that have no rows.

    Parameters
    ----------
    name : str
        Of the folder, such as ``"000001"``.

    Returns
    -------
    indexed, strays : int
        Files that have rows now, and files that are no objects of the archive.
    """
    folder = archive.shelves.path / name
    with told():
        there = {f"objects/{name}/{entry.name}" for entry in os.scandir(folder)}
    indexed = strays = 0
    with archive.db.read() as c:
        known = places_in(c, f"objects/{name}")
    for place in sorted(there - known):
        if _adopt(archive, place):
            indexed += 1
        else:
            strays += 1
    return indexed, strays


def _adopt(archive: Archive, place: str) -> bool:
    """Index one file; false if it is none that was received whole."""
    try:
        path = archive.path_of(place)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            digest, size = hashlib.sha256(whole).hexdigest(), len(whole)
            if not path.name.startswith(f"{digest}-"):
                return False
            header = read_header(
                find_elements(whole, size), size, default_character_set=archive.limits.default_character_set
            )
            header.elements.detach()
    except (OSError, ValueError, ServeError):  # Refused is a ValueError, and so is an empty file to mmap
        return False
    archive.settle(Arrival(header, place, digest, size, "recovered"))
    return True


def delete_unnamed(archive: Archive, name: str) -> int:
    """Delete the files of one folder of results in other formats that nothing names: they show a patient, and no deletion
    of a study would find them. Nothing is lost: the work that kept them is done again.

    Parameters
    ----------
    name : str
        Of the folder, such as ``"000001"``.

    Returns
    -------
    int
        How many there were.
    """
    folder = archive.files.path / name
    # Where several machines share the work, another may just now keep what has no row yet.
    youngest = time.time() - (0.0 if archive.db.dialect == "sqlite" else _SHARED_S)
    with told():
        there = {f"files/{name}/{entry.name}" for entry in os.scandir(folder) if entry.stat().st_mtime <= youngest}
    with archive.db.read() as c:
        left = there - places_in(c, f"files/{name}")
        for column in (reviews.c.correction, jobs.c.outcome, jobs.c.payload, results.c.finding) if left else ():
            text = sa.cast(column, sa.Text)
            for value in c.execute(sa.select(text).where(text.contains(f"files/{name}/"))).scalars():
                left -= set(_NAMED.findall(value))
    for place in left:
        with suppress(FileNotFoundError):
            archive.path_of(place).unlink()
    return len(left)


def places_in(c: sa.Connection, folder: str) -> set[str]:
    """The files that rows name in a folder such as ``"objects/000001"``."""
    found: set[str] = set()
    for table in (instances, conflicts, objects):
        path = table.c.path
        found.update(c.execute(sa.select(path).where(path > f"{folder}/", path < f"{folder}0")).scalars())
    return found


def _mark_missing(archive: Archive) -> int:
    newest = (
        sa.select(instances.c.id, instances.c.path)
        .where(instances.c.damage == "")
        .order_by(instances.c.id.desc())
        .limit(_NEWEST)
    )
    with archive.db.read() as c:
        gone = [row.id for row in c.execute(newest) if not archive.path_of(row.path).is_file()]
    if gone:
        with archive.db.write() as c:
            c.execute(sa.update(instances).where(instances.c.id.in_(gone)).values(damage="missing"))
    return len(gone)
