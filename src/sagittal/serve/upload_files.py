"""Files that come in by HTTP: on the disk as they arrive, under names of our own.

An upload is safe when the answer says so: its files are flushed before the job that works on them is queued
(:mod:`sagittal.serve.uploads`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from sagittal.archive.refused import ArchiveFull, Refused
from sagittal.database.queue import enqueue
from sagittal.database.schema import jobs
from sagittal.errors import ReadError

if TYPE_CHECKING:
    from sagittal.database.connect import Database

#: Endings that are kept, as readers go by them where the content does not say.
_ENDINGS = (
    ".nii.gz", ".nii", ".dcm", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".nrrd", ".nhdr", ".mha", ".mhd", ".raw",
    ".zip", ".npz",
)  # fmt: skip
#: Lists the files of an upload, and the image that each is.
SHEET = "upload.json"


@dataclass(frozen=True)
class Upload:
    """Files of one request, safe on the disk.

    Attributes
    ----------
    name : str
        Of its folder, made of chance.
    digest : str
        SHA-256 over the hashes of its files.
    files : tuple of (str, str)
        Name on the disk and the image that it is, where the request said so.
    size : int
    """

    name: str
    digest: str
    files: tuple[tuple[str, str], ...]
    size: int


class Uploading:
    """Takes the files of one request.

    Parameters
    ----------
    folder : Path
        Of all uploads.
    most_files : int
    reserve : int
        Bytes that stay free on the disk.

    Raises
    ------
    ArchiveFull
        If the disk has no room.
    """

    def __init__(self, folder: Path, *, most_files: int, reserve: int) -> None:
        self._most, self._reserve = most_files, reserve
        self.name = secrets.token_hex(16)
        self.path = folder / self.name
        self.path.mkdir(parents=True, mode=0o700)
        self._files: list[tuple[str, str, str]] = []
        self._out: Any = None
        self._sha = hashlib.sha256()
        self._size = 0
        try:
            self._check_space()
        except ArchiveFull:
            self.abandon()
            raise

    def begin(self, file_name: str, image: str = "") -> None:
        """A file begins.

        Raises
        ------
        Refused
            If there are too many.
        """
        if len(self._files) >= self._most:
            raise Refused("too-large", f"more than {self._most:,} files in one request")
        ending = next((one for one in _ENDINGS if file_name.lower().endswith(one)), "")
        name = f"{len(self._files):06d}{ending}"
        self._out = (self.path / name).open("xb")
        self._sha = hashlib.sha256()
        self._files.append((name, image if re.fullmatch(r"[\w-]{1,64}", image) else "", ""))

    def write(self, data: bytes) -> None:
        """Bytes of the present file."""
        self._sha.update(data)
        before = self._size >> 26
        self._size += len(data)
        if self._size >> 26 != before:
            self._check_space()
        try:
            self._out.write(data)
        except OSError as error:
            raise ArchiveFull("the disk is full: the upload was not kept") from error

    def end(self) -> None:
        """The present file is whole: it is flushed to the disk."""
        try:
            self._out.flush()
            os.fsync(self._out.fileno())
        except OSError as error:
            raise ArchiveFull("the disk is full: the upload was not kept") from error
        finally:
            self._out.close()
            self._out = None
        name, image, _ = self._files[-1]
        self._files[-1] = (name, image, self._sha.hexdigest())

    def finish(self) -> Upload:
        """All files are whole.

        Raises
        ------
        ReadError
            If there is none.
        """
        if not self._files or not self._size:
            raise ReadError("the request holds no file")
        sheet = self.path / SHEET
        sheet.write_text(json.dumps([[name, image] for name, image, _ in self._files]), encoding="ascii")
        for path in (sheet, self.path, self.path.parent):
            file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)
        digest = hashlib.sha256("".join(sorted(image + sha for _, image, sha in self._files)).encode()).hexdigest()
        return Upload(self.name, digest, tuple((name, image) for name, image, _ in self._files), self._size)

    def abandon(self) -> None:
        """Forget it."""
        if self._out is not None:
            self._out.close()
            self._out = None
        shutil.rmtree(self.path, ignore_errors=True)

    def _check_space(self) -> None:
        if shutil.disk_usage(self.path).free < self._reserve:
            raise ArchiveFull("the disk has no room beyond its reserve: the upload was not kept")


def queue_upload(db: Database, upload: Upload, *, model: str = "", urgency: int = 0) -> tuple[int, bool]:
    """Queue the work on an upload; the job's row, and whether it is new. The same files again are the same job.

    Parameters
    ----------
    model : str
        Checksum of the model that answers; empty where the archive's rules choose.
    """
    key = f"upload:{upload.digest}:{model[:16]}"
    payload = {"folder": upload.name, "model": model, "urgency": urgency}
    with db.write() as c:
        new = enqueue(c, "upload", key, payload, priority=urgency)
        if new is not None:
            return new, True
        there = c.execute(sa.select(jobs.c.id, jobs.c.state).where(jobs.c.key == key)).one()
        if there.state in {"dead", "cancelled"}:  # what it was about is gone; this is another try
            c.execute(sa.update(jobs).where(jobs.c.id == there.id).values(key=f"{key}:{there.id}"))
            again = enqueue(c, "upload", key, payload, priority=urgency)
            if again is not None:
                return again, True
        return int(there.id), False
