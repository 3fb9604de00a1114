"""Which stored instances a DICOMweb path names, as rows of the database."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from sagittal.database.connect import Database
from sagittal.database.schema import instances, series, studies

_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored instance.

    Attributes
    ----------
    id, series_id, study_id : int
        Rows.
    study_uid, series_uid, sop_class, uid : str
    syntax : str
        Transfer syntax UID.
    path : str
        Below the archive's folder.
    size : int
        Bytes of the file.
    sha256 : str
        Of the file.
    frames : int
    rows : int or None
        Height of its image; ``None`` where it is none.
    """

    id: int
    series_id: int
    study_id: int
    study_uid: str
    series_uid: str
    sop_class: str
    uid: str
    syntax: str
    path: str
    size: int
    sha256: str
    frames: int
    rows: int | None


def is_uid(text: str) -> bool:
    """Whether a text can be a UID at all (PS3.5 9.1); leading zeros of other systems are let through.

    >>> is_uid("1.2.840"), is_uid("../x"), is_uid("")
    (True, False, False)
    """
    return _UID.fullmatch(text) is not None


_COLUMNS = (
    instances.c.id,
    instances.c.series_id,
    series.c.study_id,
    studies.c.study_uid,
    series.c.series_uid,
    instances.c.sop_class_uid,
    instances.c.sop_instance_uid,
    instances.c.transfer_syntax_uid,
    instances.c.path,
    instances.c.size,
    instances.c.sha256,
    instances.c.frames,
    instances.c.rows,
)


def find_stored(
    db: Database,
    *,
    study_uid: str | None = None,
    series_uid: str | None = None,
    uid: str | None = None,
    series_id: int | None = None,
    ids: Sequence[int] | None = None,
) -> list[Stored]:
    """The instances of a study, a series, or one; in the order of series and instance numbers, damaged ones left out.

    Parameters
    ----------
    study_uid, series_uid, uid : str, optional
        As a path of DICOMweb names them; an instance is found only in the study and series that are named with it.
    series_id : int, optional
    ids : sequence of int, optional
        Rows of instances.
    """
    wanted = [studies.c.deleted_at.is_(None), instances.c.damage == ""]
    if study_uid is not None:
        wanted.append(studies.c.study_uid == study_uid)
    if series_uid is not None:
        wanted.append(series.c.series_uid == series_uid)
    if uid is not None:
        wanted.append(instances.c.sop_instance_uid == uid)
    if series_id is not None:
        wanted.append(series.c.id == series_id)
    if ids is not None:
        wanted.append(instances.c.id.in_(ids))
    statement = (
        sa.select(*_COLUMNS)
        .join(series, instances.c.series_id == series.c.id)
        .join(studies, series.c.study_id == studies.c.id)
        .where(*wanted)
        .order_by(series.c.number, series.c.id, instances.c.number, instances.c.id)
    )
    with db.read() as c:
        return [Stored(*tuple(row)) for row in c.execute(statement)]
