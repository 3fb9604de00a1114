"""Results into a folder: whole or not at all, and on the disk before anyone is told."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sagittal.deliver.destinations import FolderDestination
from sagittal.deliver.outcome import DeliveryError, Sent
from sagittal.errors import ResourceError
from sagittal.write.object_file import KINDS, ObjectFile

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


def deliver_folder(objects: Sequence[ObjectFile], destination: FolderDestination, key: str) -> Sent:
    """Copy objects to ``KEY/`` under names of our own, then write ``KEY.done``.

    The marker is JSON: for each file its kind, media type, size and SHA-256. Whoever waits for the marker sees whole files.
    Delivered again the files and the marker are the same.

    Parameters
    ----------
    objects : sequence of ObjectFile
    destination : FolderDestination
    key : str
        A plain word.

    Raises
    ------
    DeliveryError
        If the folder is away (a share that is not mounted), full, or may not be written to.
    ResourceError
        If an object's own file is not there any more.
    """
    base = destination.path
    with _disk(destination.name):
        if not base.is_dir():
            raise DeliveryError(f"{destination.name}: its folder is not there", retry=True, trouble="away")
        for left in base.glob(f".part-{key}-*"):  # of a delivery that was cut off
            shutil.rmtree(left, ignore_errors=True)
        part = base / f".part-{key}-{secrets.token_hex(4)}"
        try:
            part.mkdir()
            rows = [_copy(one, part) for one in objects]
            _sync_folder(part)
            _put(part, base / key)
            _sync_folder(base)
            _mark(base, key, rows)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return Sent(destination.name, len(objects), confirmed=True)


def _copy(one: ObjectFile, folder: Path) -> dict[str, object]:
    name = KINDS[one.kind][1]
    try:
        source = one.path.open("rb")
    except OSError as error:
        raise ResourceError(f"the file of an object of kind '{one.kind}' is not there any more") from error
    with source, (folder / name).open("xb") as target:
        shutil.copyfileobj(source, target, 2**20)
        target.flush()
        os.fsync(target.fileno())
    return {"file": name, "kind": one.kind, "media_type": one.media_type, "size": one.size, "sha256": one.sha256}


def _put(part: Path, place: Path) -> None:
    """Give the folder its name; where it is there already, replace its files one by one."""
    if not place.exists():
        try:
            part.rename(place)
            return
        except OSError as error:
            if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
    for file in sorted(part.iterdir()):
        file.replace(place / file.name)
    _sync_folder(place)


def _mark(base: Path, key: str, rows: Sequence[dict[str, object]]) -> None:
    text = json.dumps({"key": key, "files": rows}, indent=1, sort_keys=True) + "\n"
    part = base / f".part-{key}-{secrets.token_hex(4)}.done"
    try:
        with part.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(base / f"{key}.done")
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(base)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system lets a folder be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _disk(name: str) -> Iterator[None]:
    """The system's errors as what they mean for a delivery."""
    try:
        yield
    except (ResourceError, DeliveryError):
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise DeliveryError(f"{name}: its disk is full", retry=True, trouble="resources") from error
        if error.errno in _REFUSED:
            raise DeliveryError(
                f"{name}: its folder may not be written to ({os.strerror(error.errno)})", retry=False, trouble="refused"
            ) from error
        what = os.strerror(error.errno) if error.errno else type(error).__name__
        raise DeliveryError(f"{name}: its folder fails ({what})", retry=True, trouble="away") from error
