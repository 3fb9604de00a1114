"""Jobs of the kind "fetch": a study by its accession number, or earlier ones of a patient, out of a configured PACS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.archive.complete import close_series
from sagittal.archive.meta import FileMeta
from sagittal.archive.refused import ArchiveFull, Refused
from sagittal.database.queue import enqueue
from sagittal.database.schema import jobs, studies
from sagittal.deliver.destinations import DicomPeer
from sagittal.deliver.dicom_fetch import FoundStudy, Retrieved, find_studies, get_study
from sagittal.deliver.outcome import DeliveryError
from sagittal.errors import SagittalError
from sagittal.jobs.queue import Queue
from sagittal.jobs.supervise import Again, Work

#: Statuses of C-STORE (PS3.4 B.2.3).
_SUCCESS, _OUT_OF_RESOURCES, _CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
MOST_PRIORS = 8


class FetchJob:
    """Fetches by C-GET, so that the PACS need not know an address of ours.

    Parameters
    ----------
    queue : Queue
    archive : Archive
    peers : mapping of name to DicomPeer
    implementation : (str, str)
        Implementation class UID and version that are written into the files.
    """

    def __init__(
        self, queue: Queue, archive: Archive, peers: Mapping[str, DicomPeer], *, implementation: tuple[str, str]
    ) -> None:
        self._queue, self._archive, self._peers = queue, archive, dict(peers)
        self._implementation = implementation

    def __call__(self, work: Work) -> None:
        """Fetch, complete the series, and forget by what identifier it was asked for."""
        job = work.job
        peer = self._peers.get(str(job.payload["pacs"]))
        if peer is None:
            raise Again("the service has no such PACS any more", again=False)
        counts = {"studies": 0, "stored": 0, "already": 0, "conflict": 0, "refused": 0}
        touched: set[int] = set()
        try:
            wanted = self._wanted(peer, job.payload, job.study_id)
            if not wanted:
                raise Again(f"{peer.name}: it knows no such study", again=False)
            for number, found in enumerate(wanted):
                self._fetch(work, peer, found, counts, touched)
                counts["studies"] += 1
                work.advance((number + 1) / len(wanted))
        except DeliveryError as error:
            raise Again(str(error), again=error.retry) from error
        for series_id in touched:
            close_series(self._queue.db, series_id, "call")
        with self._queue.db.write() as c:
            self._queue.finish_in(c, job, counts)
            c.execute(sa.update(jobs).where(jobs.c.id == job.id).values(payload={"pacs": peer.name}))
        work.finished = True

    def _wanted(self, peer: DicomPeer, payload: Mapping[str, Any], study_id: int | None) -> list[FoundStudy]:
        if payload.get("accession"):
            return find_studies(peer, accession=str(payload["accession"]))
        with self._queue.db.read() as c:
            row = c.execute(sa.select(studies).where(studies.c.id == study_id)).mappings().first()
        if row is None or not row["patient_id"]:
            return []
        found = find_studies(peer, patient_id=row["patient_id"])
        kinds = set(row["modalities"].split("\\")) - {""}
        earlier = [
            one
            for one in found
            if one.study_uid != row["study_uid"]
            and one.study_date <= (row["study_date"] or "99999999")
            and (not kinds or kinds & set(one.modalities) or not one.modalities)
        ]
        return earlier[: min(int(payload.get("priors", 1)), MOST_PRIORS)]

    def _fetch(self, work: Work, peer: DicomPeer, found: FoundStudy, counts: dict[str, int], touched: set[int]) -> None:
        def keep(one: Retrieved) -> int:
            if work.lost.is_set():
                return _OUT_OF_RESOURCES
            meta = FileMeta(
                one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid, *self._implementation, peer.ae_title
            )
            try:
                with self._archive.receive(f"dicom {peer.ae_title}", meta=meta) as incoming:
                    incoming.write(one.dataset)
                    receipt = incoming.finish()
            except ArchiveFull:
                return _OUT_OF_RESOURCES
            except Refused:
                counts["refused"] += 1
                return _CANNOT_UNDERSTAND
            except SagittalError:
                return _OUT_OF_RESOURCES
            counts[receipt.outcome] += 1
            if receipt.outcome == "stored":
                touched.add(receipt.series_id)
            return _SUCCESS

        done = get_study(peer, found.study_uid, keep)
        if work.lost.is_set():
            raise Again("interrupted", counts=False)
        if done.failed > counts["refused"]:
            raise Again(f"{peer.name}: {done.failed} images of a study could not be fetched")


def queue_fetch(
    c: sa.Connection,
    pacs: str,
    *,
    accession: str = "",
    study_id: int | None = None,
    priors: int = 1,
    urgency: int = 0,
) -> int | None:
    """Queue the fetching of a study by its accession number, or of earlier ones of a study's patient.

    Parameters
    ----------
    c : sqlalchemy.Connection
        Of ``db.write()``.
    pacs : str
        Name of a configured PACS.
    accession : str
        Kept in the job until it is done, and in no log.
    study_id : int, optional
        Whose earlier studies are wanted, where there is no accession number.
    priors : int
        How many, the newest first.
    urgency : int

    Returns
    -------
    int or None
        The job's row; ``None`` if the same is queued already.
    """
    payload: dict[str, Any] = {"pacs": pacs}
    if accession:
        payload["accession"] = accession
        same = sa.and_(jobs.c.kind == "fetch", jobs.c.state.in_(("waiting", "leased")))
        rows = c.execute(sa.select(jobs.c.id, jobs.c.payload).where(same)).all()
        if any(row.payload.get("accession") == accession and row.payload.get("pacs") == pacs for row in rows):
            return None
    else:
        payload["priors"] = priors
    number = int(c.execute(sa.select(sa.func.coalesce(sa.func.max(jobs.c.id), 0))).scalar_one()) + 1
    key = f"fetch:{pacs}:{number}" if accession else f"fetch:{pacs}:priors:{study_id}:{priors}"
    return enqueue(c, "fetch", key, payload, priority=urgency, study_id=study_id)
