"""What is wrong with a file of the archive, and telling the administrator how many are."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from sagittal.database.connect import Database
from sagittal.database.events import end_event, report
from sagittal.database.schema import instances

Damage = Literal["", "missing", "altered"]
_BLOCK = 2**20


def damage_of(path: Path, sha256: str, size: int) -> Damage:
    """What is wrong with a file; empty if nothing is."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError:
        return "missing"
    try:
        if os.fstat(file).st_size != size:
            return "altered"
        digest = hashlib.sha256()
        while block := os.read(file, _BLOCK):
            digest.update(block)
        if hasattr(os, "posix_fadvise"):  # what is only checked needs not push out of memory what is used
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return "" if digest.hexdigest() == sha256 else "altered"
    except OSError:
        return "altered"
    finally:
        os.close(file)


def report_damage(db: Database) -> int:
    """Tell the administrator how many files are damaged, or that none is any more; the number."""
    with db.read() as c:
        count = int(
            c.execute(sa.select(sa.func.count()).select_from(instances).where(instances.c.damage != "")).scalar_one()
        )
    if not count:
        end_event(db, "damaged")
        return 0
    with db.write() as c:
        report(
            c,
            "damaged",
            "error",
            f"{count} files of the archive are missing or altered: send them again, or restore them from a backup.",
        )
    return count
