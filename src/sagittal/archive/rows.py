"""The rows of what arrived: one transaction for all objects that wait to be indexed.

The study and the series of an object are made with the first that arrives and remembered; every object adds a row, and
moves the time of its series' last change, which opens a series again that was complete.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from sagittal.archive.facts import facts_of
from sagittal.archive.header import SERIES, STUDY, Header
from sagittal.archive.text import fold
from sagittal.database.connect import Database, broke_a_rule
from sagittal.database.events import report
from sagittal.database.prepared import Prepared
from sagittal.database.schema import conflicts, instances, series, studies

#: Studies and series that are remembered.
_REMEMBERED = 4096
#: What is said of a series that holds more than one patient.
MIXED_PATIENTS = "mixed patients: its images name more than one patient; it is kept and not answered"
MIXED_STUDIES = "mixed studies: its images name more than one study; it is kept and not answered"
_URGENCY = {"STAT": 2, "HIGH": 1, "URGENT": 1, "ASAP": 1}


@dataclass(slots=True)
class Arrival:
    """An object on the disk that waits for its rows.

    Attributes
    ----------
    header : Header
    path : str
        Below the archive's folder.
    sha256 : str
    size : int
    source : str
    result : bool
        Whether Sagittal made it: it opens no series and asks for no answer.
    """

    header: Header
    path: str
    sha256: str
    size: int
    source: str
    result: bool = False


@dataclass(slots=True)
class Known:
    """A row that is there already under the same UID."""

    id: int
    series_id: int
    study_id: int
    sha256: str
    path: str
    syntax: str
    damage: str


@dataclass(slots=True)
class Indexed:
    """What became of an arrival: a new row, or the one that was there."""

    instance_id: int
    series_id: int
    study_id: int
    known: Known | None = None


@dataclass(slots=True)
class _Study:
    id: int
    patient: str


@dataclass(slots=True)
class _Series:
    id: int
    study_id: int
    patient: str
    study_uid: str
    problem: str
    result: bool


class Index:
    """Makes the rows of arrivals; used by one thread at a time."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._studies: dict[str, _Study] = {}
        self._series: dict[str, _Series] = {}
        self._stale = False
        self._insert = Prepared(db, db.insert_new(instances).returning(instances.c.id), _GIVEN)
        self._count_series, self._count_results = Prepared(db, _COUNT_SERIES), Prepared(db, _COUNT_RESULTS)
        self._count_study, self._receiving = Prepared(db, _COUNT_STUDY), Prepared(db, _RECEIVING)

    def forget(self) -> None:
        """Look everything up again, from the next transaction on; after rows were deleted."""
        self._stale = True

    def add(self, arrivals: list[Arrival]) -> list[Indexed]:
        """The rows of some arrivals, all in one transaction that is flushed to the disk."""
        try:
            return self._add(arrivals)
        except sa.exc.DBAPIError as error:
            if not broke_a_rule(error):
                raise
            self.forget()  # a study that is remembered was deleted meanwhile
            return self._add(arrivals)

    def _add(self, arrivals: list[Arrival]) -> list[Indexed]:
        if self._stale:
            self._stale = False
            self._studies.clear()
            self._series.clear()
        try:
            with self._db.write() as c:
                found = [self._one(c, arrival) for arrival in arrivals]
                self._count(c, arrivals, found)
        except BaseException:
            self.forget()
            raise
        while len(self._studies) > _REMEMBERED:
            del self._studies[next(iter(self._studies))]
        while len(self._series) > _REMEMBERED:
            del self._series[next(iter(self._series))]
        return found

    def _one(self, c: sa.Connection, arrival: Arrival) -> Indexed:
        header = arrival.header
        header.keep()
        at = time.time()
        held = self._series.get(header.series_uid) or self._find_series(c, arrival, at)
        problem = _problem(held, header)
        if problem and problem not in held.problem:
            held.problem = f"{held.problem}; {problem}".removeprefix("; ")
            c.execute(sa.update(series).where(series.c.id == held.id).values(problem=held.problem))
            report(c, "mixed-series", "warning", f"A series has {problem}.", f"series {held.id}")
        made = self._insert.run(
            c,
            {
                "sop_instance_uid": header.sop_instance_uid,
                "sop_class_uid": header.sop_class_uid,
                "series_id": held.id,
                "transfer_syntax_uid": header.syntax,
                "number": header.number,
                "frames": header.frames,
                "rows": header.rows,
                "columns": header.columns,
                "attributes": header.kept,
                "sha256": arrival.sha256,
                "size": arrival.size,
                "path": arrival.path,
                "source": arrival.source,
                "arrived_at": at,
                "damage": "",
            },
        ).all()
        if made:
            return Indexed(made[0][0], held.id, held.study_id)
        known = find_known(c, header.sop_instance_uid)
        if known is None:
            raise sa.exc.IntegrityError("a row came and went", None, RuntimeError("try again"))
        return Indexed(known.id, known.series_id, known.study_id, known)

    def _find_series(self, c: sa.Connection, arrival: Arrival, at: float) -> _Series:
        header = arrival.header
        row = c.execute(_FIND_SERIES, {"uid": header.series_uid}).first()
        if row is None:
            study = self._studies.get(header.study_uid) or self._find_study(c, arrival, at)
            facts = facts_of(header)
            modality = header.text(0x00080060).upper()[:16]
            id_ = c.execute(
                self._db.insert_new(series)
                .values(
                    series_uid=header.series_uid,
                    study_id=study.id,
                    modality=modality,
                    body_part=facts.get("body_part", "")[:64],
                    description=facts.get("description", "")[:1024],
                    number=header.whole(0x00200011),
                    attributes=header.json(SERIES),
                    facts=facts,
                    arrived_at=at,
                    changed_at=self._db.clock.now(),
                    complete_at=at if arrival.result else None,
                    completed_by="result" if arrival.result else "",
                )
                .returning(series.c.id)
            ).scalar()
            if id_ is not None:
                held = _Series(id_, study.id, study.patient, header.study_uid, "", arrival.result)
                self._series[header.series_uid] = held
                self._new_series(c, study.id, modality, arrival)
                return held
            row = c.execute(_FIND_SERIES, {"uid": header.series_uid}).one()
        held = _Series(
            row.id,
            row.study_id,
            row.patient_id or _unnamed(row),
            row.study_uid,
            row.problem,
            row.completed_by == "result",
        )
        self._series[header.series_uid] = held
        return held

    def _new_series(self, c: sa.Connection, study_id: int, modality: str, arrival: Arrival) -> None:
        told = c.execute(sa.select(studies.c.modalities).where(studies.c.id == study_id)).scalar() or ""
        modalities = {m for m in told.split("\\") if m} | ({modality} if modality and not arrival.result else set())
        c.execute(
            sa.update(studies)
            .where(studies.c.id == study_id)
            .values(series_count=studies.c.series_count + 1, modalities="\\".join(sorted(modalities))[:256])
        )

    def _find_study(self, c: sa.Connection, arrival: Arrival, at: float) -> _Study:
        header = arrival.header
        where = studies.c.study_uid == header.study_uid
        columns = (studies.c.id, studies.c.patient_id, studies.c.patient_name, studies.c.birth_date)
        row = c.execute(sa.select(*columns).where(where)).first()
        if row is None:
            name, patient_id = header.name(0x00100010), header.text(0x00100020, 256)
            accession = header.text(0x00080050, 256)
            priority = header.text(0x00401003).upper() or header.text(0x0032000C).upper()
            id_ = c.execute(
                self._db.insert_new(studies)
                .values(
                    study_uid=header.study_uid,
                    patient_id=patient_id,
                    patient_name=name,
                    patient_search=search_text(name, patient_id, accession),
                    birth_date=header.text(0x00100030)[:8],
                    sex=header.text(0x00100040)[:16],
                    accession=accession,
                    study_date=header.text(0x00080020)[:8],
                    study_time=header.text(0x00080030)[:16],
                    description=header.text(0x00081030, 1024),
                    attributes=header.json(STUDY),
                    urgency=_URGENCY.get(priority, 0),
                    arrived_at=at,
                    changed_at=at,
                )
                .returning(studies.c.id)
            ).scalar()
            if id_ is not None:
                return self._studies.setdefault(header.study_uid, _Study(id_, header.patient))
            row = c.execute(sa.select(*columns).where(where)).one()
        return self._studies.setdefault(header.study_uid, _Study(row.id, row.patient_id or _unnamed(row)))

    def _count(self, c: sa.Connection, arrivals: list[Arrival], found: list[Indexed]) -> None:
        """What the new rows change in their series and studies."""
        # The silence of a series is told by the clock that does not go back: it is not over because somebody set that of
        # the machine.
        at, quiet_since = time.time(), self._db.clock.now()
        counts: dict[tuple[int, bool], int] = {}
        totals: dict[tuple[int, bool], tuple[int, int]] = {}
        for arrival, indexed in zip(arrivals, found, strict=True):
            if indexed.known is None:
                result = arrival.result or self._series[arrival.header.series_uid].result
                key = (indexed.series_id, result)
                counts[key] = counts.get(key, 0) + 1
                key = (indexed.study_id, result)
                count, size = totals.get(key, (0, 0))
                totals[key] = (count + 1, size + arrival.size)
        # In the order of their numbers, so that two processes do not wait for each other.
        for (series_id, result), count in sorted(counts.items()):
            of_series = self._count_results if result else self._count_series
            of_series.run(c, {"of": series_id, "more": count, "at": quiet_since})
        for (study_id, result), (count, size) in sorted(totals.items()):
            self._count_study.run(c, {"of": study_id, "more": count, "size": size, "at": at})
            if not result:
                self._receiving.run(c, {"of": study_id})


def find_known(c: sa.Connection, sop_instance_uid: str) -> Known | None:
    """The row of an instance, if there is one."""
    row = c.execute(_FIND_INSTANCE, {"uid": sop_instance_uid}).first()
    return None if row is None else Known(*row)


def add_conflict(c: sa.Connection, db: Database, known: Known, arrival: Arrival) -> str:
    """Keep other bytes under a UID that is there; where those bytes lie, which is elsewhere if they came before."""
    c.execute(
        db.insert_new(conflicts).values(
            instance_id=known.id,
            sha256=arrival.sha256,
            size=arrival.size,
            path=arrival.path,
            source=arrival.source,
            arrived_at=time.time(),
        )
    )
    same = (conflicts.c.instance_id == known.id, conflicts.c.sha256 == arrival.sha256)
    return str(c.execute(sa.select(conflicts.c.path).where(*same)).scalar_one())


def search_text(name: str, patient_id: str, accession: str) -> str:
    """What a study is searched by: each form of the name between equals signs, then id and accession number.

    >>> search_text("Wang^XiaoDong=王^小东", "P-7", "A1")
    '=wang xiaodong=王 小东=|p-7|a1|'
    """
    forms = "=".join(fold(form).replace("|", " ") for form in name.split("=")) if name else ""
    # Cut so that it fits into an index of PostgreSQL, which takes 2,700 bytes.
    parts = (f"={forms[:300]}=", fold(patient_id)[:128].replace("|", " "), fold(accession)[:128].replace("|", " "))
    return "|".join((*parts, ""))


def _problem(held: _Series, header: Header) -> str:
    if header.study_uid != held.study_uid:
        return MIXED_STUDIES
    return MIXED_PATIENTS if header.patient != held.patient else ""


def _unnamed(row: Any) -> str:
    return f"{row.patient_name}/{row.birth_date}"


_GIVEN = (
    *("sop_instance_uid", "sop_class_uid", "series_id", "transfer_syntax_uid", "number", "frames", "rows", "columns"),
    *("attributes", "sha256", "size", "path", "source", "arrived_at", "damage"),
)
_FIND_SERIES = (
    sa.select(
        series.c.id, series.c.study_id, series.c.problem, series.c.completed_by,
        studies.c.study_uid, studies.c.patient_id, studies.c.patient_name, studies.c.birth_date,
    )
    .join(studies, studies.c.id == series.c.study_id)
    .where(series.c.series_uid == sa.bindparam("uid"))
)  # fmt: skip
_FIND_INSTANCE = (
    sa.select(
        instances.c.id, instances.c.series_id, series.c.study_id, instances.c.sha256, instances.c.path,
        instances.c.transfer_syntax_uid, instances.c.damage,
    )
    .join(series, series.c.id == instances.c.series_id)
    .where(instances.c.sop_instance_uid == sa.bindparam("uid"))
)  # fmt: skip
_of: sa.BindParameter[int] = sa.bindparam("of")
_more: sa.BindParameter[int] = sa.bindparam("more")
_size: sa.BindParameter[int] = sa.bindparam("size")
_at: sa.BindParameter[float] = sa.bindparam("at")
_COUNT_RESULTS = (
    sa.update(series).where(series.c.id == _of).values(instance_count=series.c.instance_count + _more, changed_at=_at)
)
_COUNT_SERIES = _COUNT_RESULTS.values(complete_at=None, completed_by="")
_COUNT_STUDY = (
    sa.update(studies)
    .where(studies.c.id == _of)
    .values(instance_count=studies.c.instance_count + _more, bytes=studies.c.bytes + _size, changed_at=_at)
)
# Apart from the counts, so that the indexes of the status are mostly left alone:
_RECEIVING = sa.update(studies).where(studies.c.id == _of, studies.c.status != "receiving").values(status="receiving")
