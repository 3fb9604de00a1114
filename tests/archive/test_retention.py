"""Deleting: complete, told to the trail, resumed after a crash; and what the rules delete."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa

from sagittal.archive import retention
from sagittal.archive.archive import Archive
from sagittal.archive.query import find
from sagittal.archive.receive import Receipt
from sagittal.archive.retention import Keep, apply_rules, delete_results, delete_study, finish_deletions
from sagittal.database.connect import Database
from sagittal.database.queue import enqueue
from sagittal.database.schema import (
    choices,
    conflicts,
    deliveries,
    instances,
    jobs,
    objects,
    results,
    reviews,
    series,
    studies,
    users,
)

Put = Callable[..., Receipt]
Make = Callable[..., bytes]
TABLES = (studies, series, instances, conflicts, choices, jobs, results, objects, deliveries, reviews)


def counts(db: Database) -> dict[str, int]:
    with db.read() as c:
        return {t.name: c.execute(sa.select(sa.func.count()).select_from(t)).scalar_one() for t in TABLES}


def files(archive: Archive) -> set[str]:
    return {str(p.relative_to(archive.folder)) for p in archive.folder.rglob("*") if p.is_file()}


@pytest.fixture
def answered(archive: Archive, put: Put, make_object: Make) -> Receipt:
    """A study with everything that a study can have."""
    put(make_object(SOPInstanceUID="1.5.1", PatientName="GONE^FOREVER", PatientID="GONE-ID"))
    put(make_object(SOPInstanceUID="1.5.1", PatientName="GONE^FOREVER", InstanceNumber=5))
    receipt = put(make_object(SOPInstanceUID="1.5.2", PatientName="GONE^FOREVER", PatientID="GONE-ID"))
    made = archive.store_result(
        pydicom.dcmread(io.BytesIO(make_object(SeriesInstanceUID="1.9", Modality="SEG", PatientName="GONE^FOREVER")))
    )
    report = archive.store_file(b'{"patient": "GONE^FOREVER"}', ".json")
    mask = archive.store_file(b"mask", ".nii.gz")
    at = {"created_at": 1.0}
    with archive.db.write() as c:
        user = c.execute(sa.insert(users).values(name="r", role="reader", **at)).inserted_primary_key[0]
        of = {"study_id": receipt.study_id, "model": "m", "version": "1", "checksum": "c", "state": "answered", **at}
        later = c.execute(sa.insert(results).values(inputs="2", **of)).inserted_primary_key[0]
        result = c.execute(sa.insert(results).values(inputs="1", replaced_by=later, **of)).inserted_primary_key[0]
        known = c.execute(sa.select(instances).where(instances.c.id == made.instance_id)).one()
        for kind, id_, path, size in (
            ("seg", made.instance_id, known.path, known.size),
            ("fhir", None, report.path, report.size),
        ):
            c.execute(
                sa.insert(objects).values(
                    result_id=result, kind=kind, instance_id=id_, media_type="x", path=path, sha256="0", size=size
                )
            )
        c.execute(sa.insert(deliveries).values(result_id=result, destination="pacs", state="sent"))
        c.execute(
            sa.insert(reviews).values(
                result_id=result,
                study_id=receipt.study_id,
                user_id=user,
                at=1.0,
                verdict="correct",
                correction={"mask": mask.path},
            )
        )
        c.execute(
            sa.insert(choices).values(
                study_id=receipt.study_id,
                series_id=receipt.series_id,
                revision=1,
                model="m 1",
                used=True,
                reason="fits",
                at=1.0,
            )
        )
        enqueue(c, "choose", "choose:1:1", {}, study_id=receipt.study_id)
        c.execute(sa.update(studies).values(verdict="correct", finding="gone", answered_at=2.0))
    return receipt


def test_a_deleted_study_leaves_nothing(archive: Archive, put: Put, make_object: Make, answered: Receipt) -> None:
    other = put(make_object(StudyInstanceUID="1.8", SeriesInstanceUID="1.8.1", PatientName="Stays", PatientID="S"))
    told: list[tuple[int, dict[str, Any]]] = []
    deleted = delete_study(archive, answered.study_id, lambda *a: told.append(a))
    assert (deleted.whole, deleted.instances, deleted.results, deleted.files) == (True, 3, 2, 6)
    left = counts(archive.db)
    assert left == {**dict.fromkeys(left, 0), "studies": 1, "series": 1, "instances": 1}
    with archive.db.read() as c:
        (kept,) = c.execute(sa.select(instances)).all()
    assert kept.id == other.instance_id
    assert files(archive) == {kept.path}
    assert [(study_id, d["step"], d["instances"]) for study_id, d in told] == [
        (answered.study_id, "begun", 3),
        (answered.study_id, "done", 3),
    ]
    assert "GONE" not in str(told)
    on_disk = b"".join(p.read_bytes() for p in archive.folder.parent.rglob("sagittal.db*"))
    assert b"GONE^FOREVER" not in on_disk  # neither in freed pages nor in the log
    assert b"GONE-ID" not in on_disk
    assert b"Stays" in on_disk
    with pytest.raises(KeyError):
        delete_study(archive, answered.study_id, lambda *a: None)


def test_it_can_be_received_again(archive: Archive, put: Put, make_object: Make) -> None:
    data = make_object()
    first = put(data)
    delete_study(archive, first.study_id, lambda *a: None)
    assert find(archive.db, "study", {}) == []
    again = put(data)
    assert again.outcome == "stored"
    assert archive.open(again.instance_id).read_bytes() == data


def test_a_deletion_that_a_crash_interrupts_is_hidden_at_once_and_finished_at_the_next_start(
    archive: Archive, answered: Receipt, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(retention, "_delete_instances", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            delete_study(archive, answered.study_id, lambda *a: None)
    assert find(archive.db, "study", {}) == []
    assert find(archive.db, "instance", {}) == []
    told: list[str] = []
    (deleted,) = finish_deletions(archive, lambda _, d: told.append(d["step"]))
    assert deleted.whole
    assert told == ["begun", "done"]
    assert sum(counts(archive.db).values()) == 0
    assert files(archive) == set()
    assert finish_deletions(archive, lambda *a: None) == []


def test_an_object_that_arrives_while_its_study_is_deleted_stays(
    archive: Archive, put: Put, make_object: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = put(make_object()).study_id
    late = make_object()
    real = retention._unlink
    receipts: list[Receipt] = []

    def unlink(*arguments: Any) -> None:
        if not receipts:
            receipts.append(put(late))
        real(*arguments)

    monkeypatch.setattr(retention, "_unlink", unlink)
    deleted = delete_study(archive, study, lambda *a: None)
    assert not deleted.whole
    assert archive.open(receipts[0].instance_id).read_bytes() == late
    with archive.db.read() as c:
        row = c.execute(sa.select(studies)).one()
    assert (row.deleted_at, row.instance_count, row.status) == (None, 1, "receiving")
    assert len(find(archive.db, "instance", {})) == 1


def test_a_start_deletes_objects_that_no_result_names(
    archive: Archive, put: Put, make_object: Make, answered: Receipt
) -> None:
    """A kill after the object was kept and before its result was: viewers would show it, and nobody could say what it is."""
    before, there = counts(archive.db), files(archive)
    archive.store_result(pydicom.dcmread(io.BytesIO(make_object(SeriesInstanceUID="1.10", Modality="SEG"))))
    assert counts(archive.db) != before
    assert finish_deletions(archive, lambda *_: None) == []
    assert counts(archive.db) == before
    assert files(archive) == there
    put(make_object(SeriesInstanceUID="1.10", Modality="SEG"))  # and it can be made again


def test_deleted_results_leave_the_study(archive: Archive, answered: Receipt) -> None:
    before = files(archive)
    deleted = delete_results(archive, answered.study_id, lambda *a: None)
    assert (deleted.whole, deleted.instances, deleted.results, deleted.files) == (False, 1, 2, 3)
    assert len(before) - len(files(archive)) == 3
    left = counts(archive.db)
    assert (
        left["studies"],
        left["series"],
        left["instances"],
        left["conflicts"],
        left["results"],
        left["reviews"],
        left["objects"],
    ) == (1, 1, 2, 1, 0, 0, 0)
    with archive.db.read() as c:
        row = c.execute(sa.select(studies)).one()
    assert (row.verdict, row.finding, row.answered_at, row.instance_count, row.series_count, row.deleted_at) == (
        "",
        "",
        None,
        2,
        1,
        None,
    )
    with pytest.raises(KeyError):
        delete_results(archive, 99, lambda *a: None)


@pytest.mark.parametrize(
    ("rule", "changes", "gone"),
    [
        (Keep("originals", 100.0), {}, False),  # too young
        (Keep("originals", 100.0), {"changed_at": 1.0}, True),
        (Keep("originals", 100.0, "reviewed"), {"changed_at": 1.0}, True),
        (Keep("originals", 100.0, "reviewed"), {"changed_at": 1.0, "verdict": ""}, False),
        (Keep("originals", 100.0, "delivered"), {"changed_at": 1.0}, True),
        (Keep("originals", 100.0, "delivered"), {"changed_at": 1.0, "delivery": "failed"}, False),
        (Keep("originals", 100.0), {"changed_at": 1.0, "job": "leased"}, False),  # being worked on
        (Keep("results", 100.0), {"changed_at": 1.0}, True),
    ],
)
def test_rules_delete_what_they_say(
    archive: Archive, answered: Receipt, rule: Keep, changes: dict[str, Any], gone: bool
) -> None:
    with archive.db.write() as c:
        c.execute(sa.update(jobs).values(state=changes.pop("job", "done")))
        c.execute(sa.update(deliveries).values(state=changes.pop("delivery", "sent")))
        c.execute(sa.update(studies).values(changes or {"changed_at": time.time()}))
    told: list[dict[str, Any]] = []
    done = apply_rules(archive, [rule], lambda _, d: told.append(d))
    assert bool(done) == gone
    table = "studies" if rule.what == "originals" else "results"
    assert (counts(archive.db)[table] == 0) == gone
    if gone:
        assert told[-1]["why"].startswith("kept for 0.00115741 days")
        assert apply_rules(archive, [rule], lambda *a: None) == []
