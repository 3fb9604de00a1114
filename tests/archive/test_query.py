"""Searching as QIDO-RS and C-FIND ask (PS3.4 C.2.2.2, PS3.18 10.6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sagittal.archive.archive import Archive
from sagittal.archive.query import find, find_json
from sagittal.archive.receive import Receipt
from sagittal.database.connect import Database
from sagittal.errors import ConfigError

Put = Callable[..., Receipt]
Make = Callable[..., bytes]

STUDIES = [
    {"StudyInstanceUID": "1.1", "SeriesInstanceUID": "1.1.1", "PatientID": "A1", "PatientName": "Müller^José", "StudyDate": "20260101",
     "StudyTime": "081500", "AccessionNumber": "X[1]", "StudyDescription": "CT Thorax", "Modality": "CT", "PatientSex": "M", "StudyID": "s1"},
    {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.1", "PatientID": "A2", "PatientName": "Muller^Anna", "StudyDate": "20260215",
     "StudyTime": "1730", "AccessionNumber": "x1", "StudyDescription": "", "Modality": "MR", "PatientSex": "F", "StudyID": "s2"},
    {"StudyInstanceUID": "1.3", "SeriesInstanceUID": "1.3.1", "PatientID": "B1", "PatientName": "Wang^XiaoDong=王^小东", "StudyDate": "",
     "StudyTime": "", "AccessionNumber": "X1", "StudyDescription": "MR Head", "Modality": "MR", "PatientSex": "O", "StudyID": "s3",
     "SpecificCharacterSet": "GB18030", "ReferringPhysicianName": "House^Greg"},
]  # fmt: skip


@pytest.fixture(scope="module")
def filled(lasting: tuple[Archive, Put], make_object: Make) -> Database:
    archive, put = lasting
    for fields in STUDIES:
        given = {"SpecificCharacterSet": "ISO_IR 192", **fields}
        put(make_object(**given, InstanceNumber=1))
        put(make_object(**given, InstanceNumber=2, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"]))
    put(
        make_object(
            **{**STUDIES[0], "SpecificCharacterSet": "ISO_IR 192", "SeriesInstanceUID": "1.1.2", "Modality": "SEG"}
        )
    )
    return archive.db


def uids(found: list[dict[str, Any]]) -> set[str]:
    return {one["0020000D"]["Value"][0] for one in found}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "123"),
        ({"PatientID": ""}, "123"),
        ({"PatientID": "*"}, "123"),
        ({"PatientID": "A1"}, "1"),
        ({"PatientID": "a1"}, ""),  # as it is written
        ({"PatientID": "A*"}, "12"),
        ({"PatientID": "?1"}, "13"),
        ({"PatientID": "A%"}, ""),
        ({"PatientID": "A_"}, ""),
        ({"AccessionNumber": "X[1]"}, "1"),
        ({"AccessionNumber": "X[1*"}, "1"),
        ({"AccessionNumber": "X?1?"}, "1"),
        ({"AccessionNumber": "X1*"}, "3"),
        ({"PatientName": "müller^josé"}, "1"),
        ({"PatientName": "MULLER*"}, "12"),
        ({"PatientName": "*anna"}, "2"),
        ({"PatientName": "王*"}, "3"),
        ({"PatientName": "王^小东"}, "3"),
        ({"PatientName": "Wang^XiaoDong"}, "3"),
        ({"PatientName": "Wang^XiaoDong=王^小东="}, "3"),
        ({"PatientName": "Wang"}, ""),
        ({"PatientName": "A1"}, ""),  # an id is no name
        ({"PatientName": "%"}, ""),
        ({"StudyDate": "20260101"}, "1"),
        ({"StudyDate": "20260101-20260131"}, "1"),
        ({"StudyDate": "20260102-"}, "2"),
        ({"StudyDate": "-20260214"}, "1"),
        ({"StudyDate": "-"}, "12"),
        ({"StudyTime": "0815"}, "1"),
        ({"StudyTime": "08-17"}, "12"),
        ({"StudyTime": "0816-"}, "2"),
        ({"StudyTime": "-081500"}, "1"),
        ({"StudyInstanceUID": "1.1\\1.3"}, "13"),
        ({"StudyInstanceUID": "1.1,1.2"}, "12"),
        ({"StudyInstanceUID": "1.*"}, ""),
        ({"ModalitiesInStudy": "MR"}, "23"),
        ({"ModalitiesInStudy": "SEG"}, "1"),
        ({"ModalitiesInStudy": "CT\\MR"}, "123"),
        ({"Modality": "CT"}, "1"),
        ({"StudyDescription": '""'}, "2"),
        ({"StudyDescription": "* Head"}, "3"),
        ({"StudyID": "s2"}, "2"),
        ({"StudyID": "S2"}, ""),
        ({"StudyID": "s[12]"}, ""),
        ({"StudyID": "s*", "PatientSex": "F"}, "2"),
        ({"ReferringPhysicianName": "House*"}, "3"),
        ({"ReferringPhysicianName": '""'}, "12"),
        ({"NumberOfStudyRelatedInstances": "3"}, "1"),
        ({"PatientWeight": "70"}, "123"),  # not kept apart
        ({"PatientID": "' OR 1=1 --"}, ""),
    ],
)
def test_studies_match_as_the_standard_says(filled: Database, keys: dict[str, str], expected: str) -> None:
    assert uids(find(filled, "study", keys)) == {f"1.{n}" for n in expected}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("jos", "1"),
        ("jose mul", "1"),
        ("MÜL", "12"),
        ("小", "3"),
        ("dong", ""),
        ("wang xiao", "3"),
        ("a1", ""),
        ("*mul*", "12"),
        ("|", ""),
    ],
)
def test_fuzzy_names_match_by_the_beginnings_of_words(filled: Database, name: str, expected: str) -> None:
    assert uids(find(filled, "study", {"PatientName": name}, fuzzy=True)) == {f"1.{n}" for n in expected}


@pytest.mark.parametrize(
    "keys", [{"StudyDate": "yesterday"}, {"StudyDate": "2026-01-01-"}, {"StudyTime": "8"}, {"InstanceNumber": "x"}]
)
def test_a_key_that_its_attribute_cannot_have_is_an_error_that_does_not_repeat_it(
    filled: Database, keys: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match="a key of a search is n") as told:
        find(filled, "instance", keys)
    assert next(iter(keys.values())) not in str(told.value)


def test_a_study_has_the_attributes_of_its_level_in_their_order(filled: Database) -> None:
    (found,) = find(filled, "study", {"PatientID": "A1"}, root="http://a/dicom-web")
    assert list(found) == sorted(found)
    assert found["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Müller^José"}]}
    assert found["00080061"] == {"vr": "CS", "Value": ["CT", "SEG"]}
    assert found["00201206"] == {"vr": "IS", "Value": [2]}
    assert found["00201208"] == {"vr": "IS", "Value": [3]}
    assert found["00080005"] == {"vr": "CS", "Value": ["ISO_IR 192"]}
    assert found["00081190"] == {"vr": "UR", "Value": ["http://a/dicom-web/studies/1.1"]}
    assert {"00080020", "00080030", "00080050", "00080056", "00100020", "00100040", "0020000D", "00200010"} <= set(
        found
    )


def test_series_and_instances_have_their_parents_attributes_unless_those_are_known(filled: Database) -> None:
    loose = find(filled, "series", {"PatientID": "A1"})
    assert [one["0020000E"]["Value"][0] for one in loose] == ["1.1.1", "1.1.2"]
    assert all("00100010" in one and "00201209" in one for one in loose)
    own = find(filled, "series", {"StudyInstanceUID": "1.1"})
    assert all("00100010" not in one and one["0020000D"]["Value"] == ["1.1"] for one in own)
    free = find(filled, "instance", {"Modality": "MR"}, root="http://a")
    assert len(free) == 4
    assert all({"00100010", "00080060", "00080018", "00280010", "00083002"} <= set(one) for one in free)
    assert free[0]["00081190"]["Value"][0].startswith("http://a/studies/1.2/series/1.2.1/instances/")
    inside = find(filled, "instance", {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.1"})
    assert [one["00200013"]["Value"] for one in inside] == [[1], [2]]
    assert all("00100010" not in one and list(one) == sorted(one) for one in inside)


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({"InstanceNumber": "2"}, 3),
        ({"ImageType": "AXIAL"}, 3),
        ({"ImageType": "AX*"}, 3),
        ({"ImageType": "LOCALIZER"}, 0),
        ({"Rows": "6", "Modality": "SEG"}, 1),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, 7),
        ({"BitsAllocated": "16"}, 7),
        ({"BitsAllocated": "8"}, 0),
        ({"PatientName": "wang*", "InstanceNumber": "1\\2"}, 2),
    ],
)
def test_instances_match_by_their_own_attributes(filled: Database, keys: dict[str, str], count: int) -> None:
    assert len(find(filled, "instance", keys)) == count


def test_results_come_in_pages(filled: Database) -> None:
    whole = find(filled, "instance", {})
    parts = [find(filled, "instance", {}, limit=3, offset=offset) for offset in (0, 3, 6)]
    assert [one for part in parts for one in part] == whole
    assert find(filled, "study", {}, limit=0) == []


def test_results_as_text_are_the_same(filled: Database) -> None:
    import json

    assert [json.loads(text) for text in find_json(filled, "series", {})] == find(filled, "series", {})


def test_there_are_three_levels(filled: Database) -> None:
    with pytest.raises(ConfigError, match="no level 'patient'"):
        find(filled, "patient", {})
