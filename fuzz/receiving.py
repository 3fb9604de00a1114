"""A mutant sent to the archive: kept whole and found again, or refused without a trace."""

from __future__ import annotations

import atexit
import hashlib
import json
import random
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from sagittal.archive.archive import Archive, Limits
from sagittal.archive.query import find
from sagittal.archive.refused import Refused
from sagittal.archive.retention import delete_study
from sagittal.archive.worklist import worklist
from sagittal.database.connect import Database
from sagittal.errors import SagittalError


@lru_cache(maxsize=1)
def archive() -> Archive:
    """An archive in memory, of this process; removed when it ends, unless libFuzzer ends it."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-archive-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    db = Database.open(f"sqlite:///{folder / 'sagittal.db'}")
    return Archive(db, folder / "archive", Limits(disk_reserve=0, most_object=2**24))


def receive_mutant(path: Path) -> None:
    """Receive one file in pieces of random length, and look at what became of it.

    Raises
    ------
    SagittalError
        If it is refused, which is the right answer to damage.
    AssertionError
        If something is left of what was refused, or what was kept is not what was sent.
    """
    data = path.read_bytes()
    draw = random.Random(len(data))
    store = archive()
    try:
        with store.receive("fuzz") as incoming:
            at = 0
            while at < len(data):
                step = draw.choice((1, 100, 4096, 2**17))
                incoming.write(data[at : at + step])
                at += step
            receipt = incoming.finish()
    except SagittalError as error:
        if not isinstance(error, Refused):
            raise AssertionError(f"{type(error).__name__} for a damaged file") from error
        if any(store.incoming.iterdir()):
            raise AssertionError("something is left of what was refused") from error
        raise
    if receipt.outcome == "stored":
        kept = store.open(receipt.instance_id).read_bytes()
        if kept[128:] != data[128:] or kept[:128].strip(b"\0") not in {b"", data[:128].strip(b"\0")}:
            raise AssertionError("what is kept is not what was sent")
        if not store.open(receipt.instance_id).name.startswith(hashlib.sha256(kept).hexdigest()):
            raise AssertionError("the name is not the hash")
        for level in ("study", "series", "instance"):
            json.dumps(find(store.db, level, {}), allow_nan=False)
        worklist(store.db)
        delete_study(store, receipt.study_id, lambda *_: None)
        if any(store.shelves.path.rglob("*.dcm")):
            raise AssertionError("something is left of what was deleted")
