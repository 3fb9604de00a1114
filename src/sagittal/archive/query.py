"""Searching for studies, series and instances as QIDO-RS and C-FIND ask, answered by the database.

Source: PS3.4 C.2.2.2 (what matches), PS3.18 8.3.4 and 10.6 (query parameters, attributes that are returned).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import sqlalchemy as sa

from sagittal.archive.matching import Field, condition
from sagittal.database.connect import Database
from sagittal.database.schema import instances, series, studies
from sagittal.errors import ConfigError

Level = Literal["study", "series", "instance"]
LEVELS = ("study", "series", "instance")
#: Most results of one answer.
MOST = 20_000

_STUDY = {
    "StudyInstanceUID": Field("UI", studies.c.study_uid),
    "PatientID": Field("LO", studies.c.patient_id),
    "PatientName": Field("PN", studies.c.patient_search),
    "PatientBirthDate": Field("DA", studies.c.birth_date),
    "PatientSex": Field("CS", studies.c.sex),
    "AccessionNumber": Field("SH", studies.c.accession),
    "StudyDate": Field("DA", studies.c.study_date),
    "StudyTime": Field("TM", studies.c.study_time),
    "StudyDescription": Field("LO", studies.c.description),
    "NumberOfStudyRelatedSeries": Field("IS", studies.c.series_count),
    "NumberOfStudyRelatedInstances": Field("IS", studies.c.instance_count),
    "StudyID": Field("SH", studies.c.attributes, 0x00200010),
    "ReferringPhysicianName": Field("LO", studies.c.attributes, 0x00080090, "Alphabetic"),
    "InstitutionName": Field("LO", studies.c.attributes, 0x00080080),
    "IssuerOfPatientID": Field("LO", studies.c.attributes, 0x00100021),
    "PatientAge": Field("AS", studies.c.attributes, 0x00101010),
}
_SERIES = {
    "SeriesInstanceUID": Field("UI", series.c.series_uid),
    "Modality": Field("CS", series.c.modality),
    "BodyPartExamined": Field("CS", series.c.body_part),
    "SeriesDescription": Field("LO", series.c.description),
    "SeriesNumber": Field("IS", series.c.number),
    "NumberOfSeriesRelatedInstances": Field("IS", series.c.instance_count),
    "SeriesDate": Field("DA", series.c.attributes, 0x00080021),
    "SeriesTime": Field("TM", series.c.attributes, 0x00080031),
    "Manufacturer": Field("LO", series.c.attributes, 0x00080070),
    "ManufacturerModelName": Field("LO", series.c.attributes, 0x00081090),
    "ProtocolName": Field("LO", series.c.attributes, 0x00181030),
    "Laterality": Field("CS", series.c.attributes, 0x00200060),
    "PerformedProcedureStepStartDate": Field("DA", series.c.attributes, 0x00400244),
    "PerformedProcedureStepStartTime": Field("TM", series.c.attributes, 0x00400245),
}
_INSTANCE = {
    "SOPInstanceUID": Field("UI", instances.c.sop_instance_uid),
    "SOPClassUID": Field("UI", instances.c.sop_class_uid),
    "AvailableTransferSyntaxUID": Field("UI", instances.c.transfer_syntax_uid),
    "InstanceNumber": Field("IS", instances.c.number),
    "NumberOfFrames": Field("IS", instances.c.frames),
    "Rows": Field("IS", instances.c.rows),
    "Columns": Field("IS", instances.c.columns),
    "ImageType": Field("CS", instances.c.attributes, 0x00080008),
    "AcquisitionDate": Field("DA", instances.c.attributes, 0x00080022),
    "ContentDate": Field("DA", instances.c.attributes, 0x00080023),
    "AcquisitionTime": Field("TM", instances.c.attributes, 0x00080032),
    "ContentTime": Field("TM", instances.c.attributes, 0x00080033),
    "AcquisitionNumber": Field("IS", instances.c.attributes, 0x00200012),
    "FrameOfReferenceUID": Field("UI", instances.c.attributes, 0x00200052),
    "PhotometricInterpretation": Field("CS", instances.c.attributes, 0x00280004),
    "BitsAllocated": Field("IS", instances.c.attributes, 0x00280100),
}
#: Attributes that a search matches, at each level with those of the levels above.
MATCHED: dict[str, Mapping[str, Field]] = {
    "study": _STUDY,
    "series": {**_STUDY, **_SERIES},
    "instance": {**_STUDY, **_SERIES, **_INSTANCE},
}
_UTF8 = {"vr": "CS", "Value": ["ISO_IR 192"]}


def find(
    db: Database,
    level: Level | str,
    keys: Mapping[str, str],
    *,
    limit: int = MOST,
    offset: int = 0,
    fuzzy: bool = False,
    root: str = "",
) -> list[dict[str, Any]]:
    """What matches, as DICOM JSON.

    Parameters
    ----------
    level : {"study", "series", "instance"}
    keys : mapping of str to str
        Keyword of an attribute -> what it must match; an empty value matches everything, several UIDs are divided by
        backslashes or commas. ``ModalitiesInStudy`` matches any of a study's series. Attributes that the archive does
        not keep apart (:data:`MATCHED` lists those it does) do not matter.
    limit, offset : int
        At most so many results, after the first so many.
    fuzzy : bool
        Whether each word of a name may be the beginning of one, in any order.
    root : str
        Address of the DICOMweb service, for RetrieveURL; left out where empty.

    Returns
    -------
    list of dict
        Attributes by tag, in their order. Those of a level above are there unless its UID was given.

    Raises
    ------
    ConfigError
        If there is no such level, or a value is none that its attribute can have.
    """
    if level not in LEVELS:
        raise ConfigError(f"there is no level {level!r} of a search: study, series and instance are there")
    where = _conditions(db, level, keys, fuzzy)
    limit, offset = max(0, min(limit, MOST)), max(0, offset)
    with db.read() as c:
        if level == "study":
            return _studies(c, where, limit, offset, root)
        with_study = "StudyInstanceUID" not in keys
        if level == "series":
            return _series(c, where, limit, offset, root, with_study)
        return _instances(c, where, limit, offset, root, with_study, "SeriesInstanceUID" not in keys)


def find_json(
    db: Database,
    level: Level | str,
    keys: Mapping[str, str],
    *,
    limit: int = MOST,
    offset: int = 0,
    fuzzy: bool = False,
    root: str = "",
) -> list[str]:
    """As :func:`find`, each result as the text of a JSON object."""
    found = find(db, level, keys, limit=limit, offset=offset, fuzzy=fuzzy, root=root)
    return [json.dumps(result, separators=(",", ":"), ensure_ascii=False) for result in found]


def _conditions(db: Database, level: str, keys: Mapping[str, str], fuzzy: bool) -> list[sa.ColumnElement[bool]]:
    where: list[sa.ColumnElement[bool]] = [studies.c.deleted_at.is_(None)]
    for keyword, value in keys.items():
        known = MATCHED[level].get(keyword)
        if keyword == "ModalitiesInStudy" or (keyword == "Modality" and level == "study"):
            one = condition(db.dialect, _SERIES["Modality"], value, fuzzy=False)
            if one is not None:
                where.append(studies.c.id.in_(sa.select(series.c.study_id).where(one)))
        elif known is not None and known.vr == "PN":
            other = studies.alias()  # a query of its own reads the index of names and not the table
            one = condition(db.dialect, replace(known, column=other.c.patient_search), value, fuzzy=fuzzy)
            if one is not None:
                where.append(studies.c.id.in_(sa.select(other.c.id).where(one)))
        elif known is not None:
            one = condition(db.dialect, known, value, fuzzy=fuzzy)
            if one is not None:
                where.append(one)
    return where


def _studies(
    c: sa.Connection, where: Sequence[sa.ColumnElement[bool]], limit: int, offset: int, root: str
) -> list[dict[str, Any]]:
    s = studies.c
    rows = c.execute(
        sa.select(s.id, s.study_uid, s.attributes, s.series_count, s.instance_count)
        .where(s.instance_count > 0, *where)
        .order_by(s.study_date.desc(), s.id.desc())
        .limit(limit)
        .offset(offset)
    ).all()
    modalities = _modalities(c, [row.id for row in rows])
    return [_study(row, row.attributes, modalities.get(row.id, []), root) for row in rows]


def _study(row: Any, attributes: Mapping[str, Any], modalities: list[str], root: str) -> dict[str, Any]:
    found = {
        **attributes,
        "00080005": _UTF8,
        "00080056": {"vr": "CS", "Value": ["ONLINE"]},
        "00080061": {"vr": "CS", "Value": modalities} if modalities else {"vr": "CS"},
        "0020000D": _uid(row.study_uid),
        "00201206": _count(row.series_count),
        "00201208": _count(row.instance_count),
    }
    return _sorted(found, root, f"/studies/{row.study_uid}")


def _modalities(c: sa.Connection, ids: Sequence[int]) -> dict[int, list[str]]:
    """The modalities of some studies, those of results included."""
    found: dict[int, list[str]] = {}
    for first in range(0, len(ids), 500):
        rows = c.execute(
            sa.select(series.c.study_id, series.c.modality)
            .where(series.c.study_id.in_(ids[first : first + 500]), series.c.modality != "")
            .distinct()
            .order_by(series.c.modality)
        )
        for study_id, modality in rows:
            found.setdefault(study_id, []).append(modality)
    return found


def _series(
    c: sa.Connection,
    where: Sequence[sa.ColumnElement[bool]],
    limit: int,
    offset: int,
    root: str,
    with_study: bool,
) -> list[dict[str, Any]]:
    s = series.c
    rows = c.execute(
        sa.select(
            s.study_id, s.series_uid, s.attributes, s.modality, s.instance_count.label("own_count"), studies.c.study_uid,
            studies.c.series_count, studies.c.instance_count, studies.c.attributes.label("above"),
        )
        .join(studies, studies.c.id == s.study_id)
        .where(s.instance_count > 0, *where)
        .order_by(s.study_id, s.number, s.id)
        .limit(limit)
        .offset(offset)
    ).all()  # fmt: skip
    modalities = _modalities(c, sorted({row.study_id for row in rows})) if with_study else {}
    found = []
    for row in rows:
        one = _study(row, row.above, modalities.get(row.study_id, []), "") if with_study else {}
        one |= {
            **row.attributes,
            "00080005": _UTF8,
            "00080056": {"vr": "CS", "Value": ["ONLINE"]},
            "00080060": {"vr": "CS", "Value": [row.modality]} if row.modality else {"vr": "CS"},
            "0020000D": _uid(row.study_uid),
            "0020000E": _uid(row.series_uid),
            "00201209": _count(row.own_count),
        }
        found.append(_sorted(one, root, f"/studies/{row.study_uid}/series/{row.series_uid}"))
    return found


def _instances(
    c: sa.Connection,
    where: Sequence[sa.ColumnElement[bool]],
    limit: int,
    offset: int,
    root: str,
    with_study: bool,
    with_series: bool,
) -> list[dict[str, Any]]:
    i = instances.c
    rows = c.execute(
        sa.select(
            i.series_id, i.sop_instance_uid, i.transfer_syntax_uid, i.attributes, i.damage,
            series.c.series_uid, series.c.study_id, studies.c.study_uid,
        )
        .join(series, series.c.id == i.series_id)
        .join(studies, studies.c.id == series.c.study_id)
        .where(*where)
        .order_by(series.c.study_id, i.series_id, i.number, i.id)
        .limit(limit)
        .offset(offset)
    ).all()  # fmt: skip
    above = _above(c, {row.series_id for row in rows}, with_study, with_series)
    found = []
    for row in rows:
        one = {
            **above[row.series_id],
            **row.attributes,
            "00080005": _UTF8,
            "00080056": {"vr": "CS", "Value": ["UNAVAILABLE" if row.damage == "missing" else "ONLINE"]},
            "00083002": _uid(row.transfer_syntax_uid),
        }
        path = f"/studies/{row.study_uid}/series/{row.series_uid}/instances/{row.sop_instance_uid}"
        found.append(_sorted(one, root, path))
    return found


def _above(c: sa.Connection, ids: set[int], with_study: bool, with_series: bool) -> dict[int, dict[str, Any]]:
    """What the instances of some series have from their study and series."""
    found: dict[int, dict[str, Any]] = {}
    wanted = sorted(ids)
    for first in range(0, len(wanted), 500):
        rows = c.execute(
            sa.select(series, studies.c.study_uid, studies.c.attributes.label("above"))
            .join(studies, studies.c.id == series.c.study_id)
            .where(series.c.id.in_(wanted[first : first + 500]))
        )
        for row in rows:
            found[row.id] = {
                **(row.above if with_study else {}),
                **(row.attributes if with_series else {}),
                "00080060": {"vr": "CS", "Value": [row.modality]} if row.modality else {"vr": "CS"},
                "0020000D": _uid(row.study_uid),
                "0020000E": _uid(row.series_uid),
            }
    return found


def _uid(text: str) -> dict[str, Any]:
    return {"vr": "UI", "Value": [text]}


def _count(number: int) -> dict[str, Any]:
    return {"vr": "IS", "Value": [number]}


def _sorted(found: dict[str, Any], root: str, path: str) -> dict[str, Any]:
    if root:
        found["00081190"] = {"vr": "UR", "Value": [root + path]}
    return dict(sorted(found.items()))
