"""ORU^R01 messages: valid by hl7apy, escaped, in the right character set, honest about no answer."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from sagittal.case import Case
from sagittal.errors import ConfigError
from sagittal.grid import Grid
from sagittal.prediction import Failure, Prediction, Verdict
from sagittal.write.equipment import ModelFacts, Stamp, derive_uids
from sagittal.write.hl7 import make_hl7
from sagittal.write.hl7_text import Parties, address_message, escape
from sagittal.write.measurements import measure_mask
from sagittal.write.sources import Source, SourceSlice, open_series
from sagittal.write.statement import make_statement

NOON = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def stamp(facts: ModelFacts) -> Stamp:
    return Stamp(derive_uids("seed"), NOON, facts)


def source_with(**fields: Any) -> Source:
    """A series whose header holds what is given."""
    header = Dataset()
    header.StudyInstanceUID, header.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    for key, value in {"PatientID": "7", "PatientName": "A^B", **fields}.items():
        setattr(header, key, value)
    return Source(header, (SourceSlice("1.2", "1.2.3.4.5", 0, None),), Grid((2, 2, 1)), None, None)


def segments(message: bytes, codec: str = "utf-8") -> list[list[str]]:
    text = message.decode(codec)
    assert text.endswith("\r")
    assert "\n" not in text
    return [line.split("|") for line in text[:-1].split("\r")]


def valid(message: bytes) -> Any:
    """Parsed and validated by hl7apy."""
    parser = pytest.importorskip("hl7apy.parser")
    found = parser.parse_message(message.decode(), find_groups=True, force_validation=True)
    assert found.validate()
    return found


@pytest.mark.parametrize("name", ["classes", "labels", "boxes", "mask", "abstained", "refused"])
def test_hl7apy_finds_messages_valid(
    study: Callable[..., Case], found_mask: Any, found_boxes: Any, found_classes: Any, stamp: Stamp, name: str
) -> None:
    case = study()
    grid = case.image().grid
    answer: Any = {
        "classes": lambda: found_classes(case.id),
        "labels": lambda: found_classes(case.id, "multilabel"),
        "boxes": lambda: found_boxes(case.id, grid),
        "mask": lambda: found_mask(case.id, grid),
        "abstained": lambda: found_classes(case.id, decision=(), verdict=Verdict(False, "unlike", 1.0)),
        "refused": lambda: Failure(case.id, f"case {case.id}: is MR, made for CT", "ScopeError"),
    }[name]()
    measured = measure_mask(answer, case) if name == "mask" else ()
    statement = make_statement(answer, stamp.model, measured=measured)
    message = make_hl7(answer, open_series(case, "x"), stamp=stamp, statement=statement)
    valid(message)
    rows = segments(message)
    assert [row[0] for row in rows[:3]] == ["MSH", "PID", "OBR"]
    header = rows[0]
    assert (header[8], header[11], header[17], header[6]) == (
        "ORU^R01^ORU_R01",
        "2.5.1",
        "UNICODE UTF-8",
        "20260304120000+0000",
    )
    assert len(header[9]) == 20
    observed = [row for row in rows if row[0] == "OBX"]
    assert [row[1] for row in observed] == [str(n) for n in range(1, len(observed) + 1)]
    assert "Made by an algorithm" in observed[0][5]
    numbers = [row for row in observed if row[2] == "NM"]
    decided = [row for row in observed if row[3].startswith("decision")]
    if name in {"abstained", "refused"}:
        assert numbers == []
        assert [(row[5].split("^")[1], row[11]) for row in decided] == [
            ({"abstained": "Indeterminate", "refused": "Test not done"}[name], "X")
        ]
        assert rows[2][25] == "X"
    else:
        assert {row[11] for row in observed} == {"P"}
    if name == "classes":
        assert [(row[3].split("^")[1], row[5], row[8]) for row in numbers] == [
            ("effusion", "0.05", "NEG"),
            ("nodule", "0.82", "POS"),
            ("mass", "0.13", "NEG"),
        ]
        assert [row[5].split("^")[1] for row in decided] == ["nodule"]
    if name == "boxes":
        assert [(row[3].split("^")[1], row[5]) for row in numbers] == [
            ("lung nodule", "1"),
            ("gizmo", "1"),
            ("mass", "0"),
        ]
    if name == "mask":
        assert {row[6] for row in numbers} == {"mL^mL^UCUM"}
    assert [row[5] for row in observed if row[2] == "ST"] == ["1.2.3.4", "1.2.3.4.5"]


def test_names_are_given_in_each_writing(found_classes: Any, stamp: Stamp) -> None:
    name = "Wang^XiaoDong^^Dr^=王^小东=わん^しゃおどん"
    message = make_hl7(found_classes("x"), source_with(PatientName=name), stamp=stamp)
    assert segments(message)[1][5] == "Wang^XiaoDong^^^Dr^^L^A~王^小东^^^^^L^I~わん^しゃおどん^^^^^L^P"
    valid(message)


@pytest.mark.parametrize(("charset", "codec"), [("utf-8", "utf-8"), ("gb18030", "gb18030"), ("ascii", "ascii")])
def test_character_sets(found_classes: Any, stamp: Stamp, charset: str, codec: str) -> None:
    source = source_with(PatientName="Wang=王^小东")
    message = make_hl7(found_classes("x"), source, stamp=stamp, charset=charset)
    assert ("王" in message.decode(codec)) == (charset != "ascii")
    again = address_message(make_hl7(found_classes("x"), source, stamp=stamp), Parties(), charset)
    assert again == message
    with pytest.raises(ConfigError, match="Did you mean 'utf-8'"):
        make_hl7(found_classes("x"), source, stamp=stamp, charset="utf8")


def test_nothing_in_a_header_can_start_a_field_or_segment(found_classes: Any, stamp: Stamp) -> None:
    evil = "x|y^z&a~b\\c\rOBX|9|NM|evil\n\x0b\x1c"
    source = source_with(
        PatientID=evil, IssuerOfPatientID=evil, AccessionNumber=evil[:10], PatientName=evil + "=" + evil
    )
    facts = replace(stamp.model, name=evil, question=evil, checksum=evil)
    message = make_hl7(found_classes("x"), source, stamp=replace(stamp, model=facts))
    plain = make_hl7(found_classes("x"), source_with(), stamp=stamp)
    rows = segments(message)
    assert [row[0] for row in rows] == [row[0] for row in segments(plain)]
    assert [len(row) for row in rows] == [len(row) for row in segments(plain)]
    assert b"\x0b" not in message
    assert b"\x1c" not in message
    valid(message)


def test_sent_again_it_is_the_same_message(found_classes: Any, stamp: Stamp) -> None:
    first = make_hl7(found_classes("x"), source_with(), stamp=stamp)
    assert make_hl7(found_classes("x"), source_with(), stamp=stamp) == first
    other = make_hl7(found_classes("x"), source_with(), stamp=replace(stamp, uid=derive_uids("other")))
    assert segments(other)[0][9] != segments(first)[0][9]


def test_a_patient_without_a_number_is_unknown(found_classes: Any, stamp: Stamp) -> None:
    message = make_hl7(found_classes("x"), source_with(PatientID="", PatientName=""), stamp=stamp)
    valid(message)
    assert segments(message)[1][3].split("^")[0] == "UNKNOWN"


def test_any_text_survives_the_escape() -> None:
    rng = random.Random(11)
    for _ in range(10_000):
        text = "".join(
            chr(
                rng.choice(
                    (9, 10, 13, 38, 92, 94, 124, 126, 127, 133, 228, 0x4E2D, 0x1F600, 0xD800, rng.randrange(32, 127))
                )
            )
            for _ in range(rng.randrange(12))
        )
        made = escape(text)
        assert not set(made) & set("|^&~\r\n\x0b\x1c\t\x85\x7f")
        made.encode()
        # What stands between two backslashes is an escape and nothing else.
        assert all(part in {"E", "F", "S", "T", "R", ".br"} or part.startswith("X") for part in made.split("\\")[1::2])


def test_any_header_makes_a_message(found_classes: Any, stamp: Stamp) -> None:
    answer: Prediction = Failure("x", "case x: is MR, made for CT", "ScopeError")
    statement = make_statement(answer, stamp.model)
    rng = random.Random(13)
    signs = "|^&~\\\r\n\x00\x0b\x1cAß王=\ud800 9"
    keys = ("PatientID", "PatientName", "PatientSex", "PatientBirthDate", "StudyDate", "StudyTime", "AccessionNumber")
    for number in range(3000):
        header = Dataset()
        header.StudyInstanceUID, header.SeriesInstanceUID = "1.2.3", "1.2.3.4"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for key in rng.sample(keys, 3):
                setattr(header, key, "".join(rng.choice(signs) for _ in range(rng.randrange(9))))
        source = Source(header, (SourceSlice("1.2", "1.2.3.4.5", 0, None),), Grid((2, 2, 1)), None, None)
        message = make_hl7(answer, source, stamp=stamp, statement=statement)
        assert message.count(b"\r") == 7, number
        assert not {0x0A, 0x0B, 0x1C} & set(message)


def test_stored_messages_hold_no_frame_signs(tmp_path: Path, found_classes: Any, stamp: Stamp) -> None:
    message = make_hl7(found_classes("x"), source_with(PatientName="\x1c\x0b"), stamp=stamp)
    assert not {0x0B, 0x1C} & set(message)
