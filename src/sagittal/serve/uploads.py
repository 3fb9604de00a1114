"""The work on uploads: DICOM into the archive, other files to the model that was named.

Archives are unpacked here, in a private folder, with every cap counted while they unpack (CVE-2026-5438, CVE-2026-5439).
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from sagittal.archive.complete import close_series
from sagittal.archive.refused import Refused, record_refusal
from sagittal.database.schema import jobs
from sagittal.errors import ConfigError, ReadError
from sagittal.guard.archive import archive_entries, unpacked
from sagittal.jobs.supervise import Again
from sagittal.jobs.worker import AnswerError
from sagittal.serve.upload_files import SHEET

if TYPE_CHECKING:
    from sagittal.archive.archive import Archive
    from sagittal.database.connect import Database
    from sagittal.jobs.pool import Pool
    from sagittal.jobs.supervise import Work
    from sagittal.serve.config import Limits

#: Seconds after which an upload that no job names is swept away.
_LEFT_S = 86400.0
#: Rows of what was refused that a job's outcome tells one by one.
_MOST_TOLD = 50


class UploadJob:
    """Works on uploads: DICOM goes into the archive, whatever a named model is to answer goes to that model.

    Parameters
    ----------
    db : Database
    archive : Archive
    pool : Pool
    folder : Path
        Of all uploads.
    limits : Limits
    spool : Path
        Folder in which processes of models write.
    wake : callable (), optional
        Called when the archive has something new.
    """

    def __init__(
        self,
        db: Database,
        archive: Archive,
        pool: Pool,
        folder: Path,
        limits: Limits,
        spool: Path,
        *,
        wake: Callable[[], None] | None = None,
    ) -> None:
        self._db, self._archive, self._pool, self._folder = db, archive, pool, folder
        self._limits, self._spool, self._wake = limits, spool, wake

    def __call__(self, work: Work) -> Mapping[str, Any] | None:
        """Do it; the folder goes when it is done, or when no other try will come."""
        name = str(work.job.payload["folder"])
        if not re.fullmatch(r"[0-9a-f]{32}", name):
            raise Again("the upload's folder is no such name", again=False)
        place = self._folder / name
        if not place.is_dir():
            raise Again("the upload is no longer there; send it again", again=False)
        last = work.job.attempts >= work.job.most_attempts
        try:
            outcome = self._do(work, place)
        except (ReadError, Refused, ConfigError) as error:
            shutil.rmtree(place, ignore_errors=True)
            code = error.code if isinstance(error, Refused) else "zip-bomb" if "bomb" in str(error) else "unreadable"
            record_refusal(self._db, "rest", code, str(error))
            raise Again(str(error), again=False) from error
        except BaseException:
            if last:
                shutil.rmtree(place, ignore_errors=True)
            raise
        shutil.rmtree(place, ignore_errors=True)
        return outcome

    def _do(self, work: Work, place: Path) -> dict[str, Any]:
        sheet = json.loads((place / SHEET).read_text(encoding="ascii"))
        paths = [(place / name, image) for name, image in sheet]
        model = str(work.job.payload.get("model") or "")
        with _opened(paths, self._limits) as files:
            work.advance(0.1)
            if model:
                return self._answered(work, model, files)
            return self._archived(work, [path for path, _ in files])

    def _archived(self, work: Work, files: Sequence[Path]) -> dict[str, Any]:
        studies: dict[int, set[int]] = {}
        told: list[dict[str, Any]] = []
        counts = {"stored": 0, "already": 0, "conflict": 0, "refused": 0}
        for number, path in enumerate(files, start=1):
            if work.lost.is_set():
                raise Again("interrupted", counts=False)
            try:
                receipt = self._received(path)
            except Refused as error:
                counts["refused"] += 1
                if len(told) < _MOST_TOLD:
                    told.append({"file": number, "code": error.code, "reason": error.reason})
                continue
            counts[receipt.outcome] += 1
            studies.setdefault(receipt.study_id, set()).add(receipt.series_id)
            work.advance(0.1 + 0.9 * number / len(files))
        if not studies:
            raise Refused(
                told[0]["code"] if told else "unreadable",
                f"none of the {len(files)} files is a DICOM object that is kept; name a model to have other images answered",
            )
        urgency = int(work.job.payload.get("urgency") or 0)
        for study_id, own in studies.items():
            if urgency:
                self._raise(study_id, urgency)
            for series_id in own:
                close_series(self._db, series_id, "call")
        if self._wake is not None:
            self._wake()
        return {"studies": sorted(studies), "instances": counts, "refused": told}

    def _raise(self, study_id: int, urgency: int) -> None:
        from sagittal.database.schema import studies as table

        with self._db.write() as c:
            c.execute(sa.update(table).where(table.c.id == study_id, table.c.urgency < urgency).values(urgency=urgency))

    def _received(self, path: Path) -> Any:
        with self._archive.receive("rest") as incoming, path.open("rb") as file:
            while piece := file.read(2**20):
                incoming.write(piece)
            return incoming.finish()

    def _answered(self, work: Work, checksum: str, files: Sequence[tuple[Path, str]]) -> dict[str, Any]:
        model = next((one for one in self._pool.models if one.checksum == checksum), None)
        if model is None:
            raise Again("the service has no such version of the model any more", again=False)
        names = model.use.images
        inputs: dict[str, list[str]] = {name: [] for name in names}
        for path, image in files:
            name = image if image in inputs else names[0] if len(names) == 1 else _by_name(path, names)
            if not name:
                raise ConfigError(
                    f"the model takes {', '.join(names)}: name each file, or its form field, after one of them"
                )
            inputs[name].append(str(path))
        if missing := [name for name in names if not inputs[name]]:
            raise ConfigError(f"the model takes {', '.join(names)}; nothing was sent for {', '.join(missing)}")
        spool = self._spool / f"upload-{secrets.token_hex(8)}"
        spool.mkdir(parents=True, mode=0o700)
        request = {
            "study": 0,
            "inputs": inputs,
            "spool": str(spool),
            "results": [],
            "inputs_hash": work.job.key,
            "made_at": time.time(),
            "name": model.name,
            "explain_s": 0.0,
        }
        try:
            found = self._pool.answer(checksum, request, progress=lambda p: work.advance(0.1 + 0.9 * p))
            kept = []
            for one in found["objects"]:
                path = spool / Path(str(one["path"])).name
                ending = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
                file = self._archive.store_file(path.read_bytes(), ending)
                kept.append({"kind": one["kind"], "media_type": one["media_type"], "path": file.path})
        except AnswerError as error:
            raise Again(str(error), again=error.again) from error
        finally:
            shutil.rmtree(spool, ignore_errors=True)
        return {"answer": found["answer"], "files": kept, "notes": list(found.get("notes", ()))}


def _by_name(path: Path, names: Sequence[str]) -> str:
    """The image that a file of an archive is called after: ``T1.nii.gz``, ``case7-flair.nii.gz``."""
    words = re.split(r"[^a-z0-9]+", path.name.lower())
    fitting = [name for name in names if name.lower() in words]
    return fitting[0] if len(fitting) == 1 else ""


class _opened:  # noqa: N801
    """The files of an upload, archives among them unpacked into a private folder."""

    def __init__(self, files: Sequence[tuple[Path, str]], limits: Limits) -> None:
        self._files, self._limits = files, limits
        self._places: list[Any] = []

    def __enter__(self) -> list[tuple[Path, str]]:
        found: list[tuple[Path, str]] = []
        left, most = self._limits.most_unpacked_bytes, self._limits.most_files
        try:
            for path, image in self._files:
                if not _is_zip(path):
                    found.append((path, image))
                    continue
                entries = [one for one in archive_entries(path) if not _is_clutter(one.name)]
                left -= sum(one.size for one in entries)
                if left < 0 or len(found) + len(entries) > most:
                    raise Refused(
                        "zip-bomb", f"unpacks to more than {self._limits.most_unpacked_bytes:,} bytes or {most:,} files"
                    )
                place = unpacked(path, [one.name for one in entries])
                folder = place.__enter__()
                self._places.append(place)
                found += [(folder / one.name, image) for one in entries if not one.is_archive]
            if len(found) > most:
                raise Refused("too-large", f"more than {most:,} files")
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return found

    def __exit__(self, *_: object) -> None:
        while self._places:
            self._places.pop().__exit__(None, None, None)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in {b"PK\x03\x04", b"PK\x05\x06"} and path.suffix != ".npz"


def _is_clutter(name: str) -> bool:
    """What archives hold beside studies: folders of systems, and the index of a medium."""
    parts = name.split("/")
    return parts[0] == "__MACOSX" or parts[-1].startswith(".") or parts[-1].upper() in {"DICOMDIR", "THUMBS.DB"}


def sweep_uploads(db: Database, folder: Path, *, now: float | None = None) -> int:
    """Remove uploads that no open job names, such as those of a process that ended while they came in; how many."""
    if not folder.is_dir():
        return 0
    limit = (time.time() if now is None else now) - _LEFT_S
    old = []
    for path in folder.iterdir():
        with suppress(OSError):
            if path.is_dir() and path.stat().st_mtime < limit:
                old.append(path)
    if not old:
        return 0
    with db.read() as c:
        rows = c.execute(
            sa.select(jobs.c.payload).where(jobs.c.kind == "upload", jobs.c.state.in_(("waiting", "leased")))
        )
        named = {str(row.payload.get("folder")) for row in rows}
    gone = [path for path in old if path.name not in named]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return len(gone)
