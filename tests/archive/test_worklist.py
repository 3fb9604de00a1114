"""The worklist: filters, sorts, pages by key, counts."""

from __future__ import annotations

import random

import pytest
import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.archive.rows import search_text
from sagittal.archive.worklist import SORTS, worklist
from sagittal.database.connect import Database
from sagittal.database.schema import studies
from sagittal.errors import ConfigError


def fill(db: Database, count: int = 60) -> list[dict[str, object]]:
    draw = random.Random(3)
    rows: list[dict[str, object]] = []
    for n in range(count):
        name = draw.choice(["Müller^Anna", "Wang^Wei=王^伟", "Smith^John"])
        rows.append(
            {
                "study_uid": f"1.2.{n}",
                "patient_id": f"P{n}",
                "patient_name": name,
                "patient_search": search_text(name, f"P{n}", f"A{n}"),
                "accession": f"A{n}",
                "study_date": f"202601{1 + n % 28:02d}" if n % 10 else "",
                "modalities": draw.choice(["CT", "CT\\MR", "XCT", "DX"]),
                "arrived_at": float(n // 3),  # some at the same time
                "changed_at": float(n),
                "status": draw.choice(["answered", "receiving", "failed"]),
                "urgency": draw.choice([0, 0, 1, 2]),
                "confidence": draw.choice([None, 0.5, 0.75, 0.9]),
                "verdict": draw.choice(["", "", "accept", "reject"]),
                "abstained": n % 7 == 0,
            }
        )
    with db.write() as c:
        c.execute(sa.insert(studies), rows)
    with db.read() as c:
        return [dict(row) for row in c.execute(sa.select(studies)).mappings()]


@pytest.fixture(scope="module")
def filled(lasting: tuple[Archive, object]) -> tuple[Database, list[dict[str, object]]]:
    db = lasting[0].db
    return db, fill(db)


def expected(rows: list[dict[str, object]], sort: str) -> list[object]:
    def key(row: dict[str, object]) -> tuple[object, ...]:
        arrived, id_ = row["arrived_at"], row["id"]
        match sort:
            case "urgency":
                return (bool(row["verdict"]), 0 if row["verdict"] else -row["urgency"], -arrived, -id_)  # type: ignore[operator]
            case "newest":
                return (-arrived, -id_)  # type: ignore[operator]
            case "oldest":
                return (arrived, id_)
            case "confidence":
                none = row["confidence"] is None
                return (none, -(arrived if none else row["confidence"]), -id_)  # type: ignore[operator]
            case "name":
                return (row["patient_search"], id_)
            case _:
                return (-int(str(row["study_date"] or 0)), -id_)  # type: ignore[operator]

    return [row["id"] for row in sorted(rows, key=key)]


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("limit", [1, 7, 60])
def test_pages_follow_each_other_without_gap_or_repetition(
    filled: tuple[Database, list[dict[str, object]]], sort: str, limit: int
) -> None:
    db, rows = filled
    shown: list[object] = []
    after, pages = None, 0
    while True:
        page = worklist(db, {}, sort, limit, after, counts=False)
        assert len(page.studies) <= limit
        shown += [row["id"] for row in page.studies]
        pages += 1
        after = page.next
        if after is None:
            break
    if sort == "name" and db.dialect == "postgresql":  # as its language sorts names
        assert sorted(shown) == sorted(expected(rows, sort))  # type: ignore[type-var]
    else:
        assert shown == expected(rows, sort)
    assert pages == -(-60 // limit)


def test_what_arrives_meanwhile_moves_nothing(db: Database) -> None:
    rows = fill(db)
    first = worklist(db, sort="newest", limit=20)
    with db.write() as c:
        c.execute(sa.insert(studies).values(study_uid="9", arrived_at=1e9, changed_at=1e9))
    second = worklist(db, sort="newest", limit=20, after=first.next)
    assert [row["id"] for row in first.studies + second.studies] == expected(rows, "newest")[:40]


@pytest.mark.parametrize(
    ("filters", "keep"),
    [
        ({"status": "answered"}, lambda r: r["status"] == "answered"),
        ({"status": "answered,failed"}, lambda r: r["status"] in {"answered", "failed"}),
        ({"verdict": "none"}, lambda r: r["verdict"] == ""),
        ({"verdict": "accept,none"}, lambda r: r["verdict"] in {"", "accept"}),
        ({"urgency": "1"}, lambda r: r["urgency"] >= 1),
        ({"modality": "CT"}, lambda r: "CT" in r["modalities"].split("\\")),
        ({"modality": "mr,dx"}, lambda r: {"MR", "DX"} & set(r["modalities"].split("\\"))),
        ({"from": "2026-01-10"}, lambda r: r["study_date"] >= "20260110"),
        ({"to": "20260110"}, lambda r: "" < r["study_date"] <= "20260110"),
        ({"abstained": "true"}, lambda r: r["abstained"]),
        ({"text": "muller"}, lambda r: "Müller" in r["patient_name"]),
        ({"text": "Wei wang"}, lambda r: "Wang" in r["patient_name"]),
        ({"text": "王"}, lambda r: "Wang" in r["patient_name"]),
        ({"text": "p1%"}, lambda r: False),
        ({"text": "a59"}, lambda r: r["accession"] == "A59"),
        ({"text": "", "status": ""}, lambda r: True),
        (
            {"text": "smith", "status": "failed", "modality": "CT"},
            lambda r: "Smith" in r["patient_name"] and r["status"] == "failed" and "CT" in r["modalities"].split("\\"),
        ),
    ],
)
def test_filters(filled, filters: dict[str, str], keep) -> None:  # type: ignore[no-untyped-def]
    db, rows = filled
    page = worklist(db, filters, "newest", 500)
    assert {row["id"] for row in page.studies} == {row["id"] for row in rows if keep(row)}


def test_counts_are_those_of_all_other_filters(filled) -> None:  # type: ignore[no-untyped-def]
    db, rows = filled
    page = worklist(db, {"text": "smith", "status": "failed"}, limit=1)
    smiths = [row["status"] for row in rows if "Smith" in str(row["patient_name"])]
    assert page.counts == {status: smiths.count(status) for status in set(smiths)}


@pytest.mark.parametrize(
    ("filters", "sort", "after", "message"),
    [
        ({"statis": "x"}, "newest", None, "Did you mean 'status'"),
        ({"status": "answerd"}, "newest", None, "Did you mean 'answered'"),
        ({"urgency": "5"}, "newest", None, "no urgency"),
        ({"from": "soon"}, "newest", None, "is a date"),
        ({}, "new", None, "no sort 'new'"),
        ({}, "newest", "nonsense", "not the mark of a page"),
        ({}, "newest", "W10", "not the mark of a page"),
        ({}, "newest", "WyJvbGRlc3QiLCAwLCAxLjAsIDFd", "not the mark of a page"),  # of another sort
        ({}, "newest", "WyJuZXdlc3QiLCA5LCAxLjAsIDFd", "not the mark of a page"),  # of a run that is not there
        ({}, "newest", "é", "not the mark of a page"),
    ],
)
def test_what_is_no_question_is_refused(
    filled,
    filters: dict[str, str],
    sort: str,
    after: str | None,
    message: str,  # type: ignore[no-untyped-def]
) -> None:
    db, _ = filled
    with pytest.raises(ConfigError, match=message):
        worklist(db, filters, sort, 10, after)


def test_a_study_that_is_being_deleted_is_not_shown(db: Database) -> None:
    fill(db, 3)
    with db.write() as c:
        c.execute(sa.update(studies).where(studies.c.id == 1).values(status="deleted", deleted_at=1.0))
    page = worklist(db)
    assert {row["id"] for row in page.studies} == {2, 3}
    assert sum(page.counts.values()) == 2
