"""The trail: chained, whole after many writers, and every tampering found where it happened."""

from __future__ import annotations

import ast
import json
import multiprocessing
import sqlite3
import threading
from hashlib import sha256
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from sagittal.database.connect import Database
from sagittal.errors import ServeError
from sagittal.protect.audit import EVENTS, START, Audit, make_record, read_records, verify

SOURCE = Path(__file__).resolve().parents[2] / "src" / "sagittal"


@pytest.fixture
def trail(db: Database) -> Audit:
    audit = Audit(db)
    for number in range(1, 8):
        audit.record(
            "ada", "view", role="reader", address="10.0.0.7", study_id=number, details={"series": [number, 2.5]}
        )
    return audit


def change(tmp_path: Path, statement: str) -> None:
    """What someone does who may write to the database's file."""
    with sqlite3.connect(tmp_path / "sagittal.db") as connection:
        connection.execute(statement)
    connection.close()


def test_chain_holds_and_hashes_are_those_of_the_records(db: Database, trail: Audit) -> None:
    verdict = verify(db)
    assert verdict.sound
    assert verdict.records == 7
    first, second, *_ = read_records(db)
    assert first["previous"] == START
    assert second["previous"] == first["hash"]
    plain = {key: value for key, value in second.items() if key != "hash"}  # by hand, not by our own function
    expected = sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    assert second["hash"] == expected
    assert verdict.head == f"7:{list(read_records(db))[-1]['hash']}"


def test_records_that_go_together_stand_one_after_the_other(db: Database, trail: Audit) -> None:
    trail.record_all([make_record("eve", "predict", study_id=n) for n in (3, 1, 2)])
    assert verify(db).records == 10
    assert [record["study_id"] for record in read_records(db, after=7)] == [3, 1, 2]
    with pytest.raises(ServeError, match="nothing was done"):
        trail.record_all([make_record("eve", "predict"), {"actor": "eve"}])
    assert verify(db).records == 10, "all or none"


@pytest.mark.parametrize(
    ("tampering", "problem"),
    [
        ("UPDATE audit SET actor = 'eve' WHERE number = 4", "record 4 was changed"),
        ("UPDATE audit SET study_id = 9 WHERE number = 7", "record 7 was changed"),
        ("UPDATE audit SET details = '{\"series\": [4, 2.25]}' WHERE number = 4", "record 4 was changed"),
        ("UPDATE audit SET at = at + 1 WHERE number = 4", "record 4 was changed"),
        ("UPDATE audit SET outcome = 'failed' WHERE number = 1", "record 1 was changed"),
        ("DELETE FROM audit WHERE number = 4", "record 4 is missing"),
        ("DELETE FROM audit WHERE number = 1", "record 1 is missing"),
        ("DELETE FROM audit WHERE number > 5", "records after 5 are missing: 7 were written"),
        ("DELETE FROM audit", "records after 0 are missing: 7 were written"),
    ],
)
def test_tampering_is_found_where_it_happened(
    tmp_path: Path, db: Database, trail: Audit, tampering: str, problem: str
) -> None:
    change(tmp_path, tampering)
    verdict = verify(db)
    assert not verdict.sound
    assert problem in verdict.problem


def test_a_trail_that_was_made_again_is_found_by_a_head_kept_elsewhere(
    tmp_path: Path, db: Database, trail: Audit
) -> None:
    kept = verify(db).head
    change(tmp_path, "DELETE FROM audit")
    change(tmp_path, "DELETE FROM marks WHERE name = 'audit.head'")
    forged = Audit(db)
    for number in range(1, 9):
        forged.record("ada", "view", study_id=number + 100)
    assert verify(db).sound  # alone it looks whole
    assert "is not the one that was kept" in verify(db, expect=kept).problem
    change(tmp_path, "DELETE FROM audit WHERE number > 2")
    change(tmp_path, "DELETE FROM marks WHERE name = 'audit.head'")
    assert "7 were kept" in verify(db, expect=kept).problem


def test_many_threads_share_transactions_and_leave_one_chain(db: Database) -> None:
    audit = Audit(db)
    written: list[int] = []
    original = db.write

    def write(*arguments: object) -> object:
        written.append(1)
        return original()

    db.write = write  # type: ignore[method-assign]

    def work(n: int) -> None:
        for number in range(25):
            audit.record(f"reader {n}", "view", study_id=number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    db.write = original  # type: ignore[method-assign]
    verdict = verify(db)
    assert verdict.sound
    assert verdict.records == 200
    assert len(written) < 200
    counts = dict.fromkeys((f"reader {n}" for n in range(8)), 0)
    for row in read_records(db):
        assert row["study_id"] == counts[row["actor"]]  # each thread's own records keep their order
        counts[row["actor"]] += 1


def _write_from_elsewhere(url: str, name: str) -> None:
    other = Database.open(url)
    audit = Audit(other)
    for number in range(20):
        audit.record(name, "view", study_id=number)
    other.close()


def test_two_processes_leave_one_chain(tmp_path: Path, db: Database) -> None:
    url = f"sqlite:///{tmp_path / 'sagittal.db'}"
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=_write_from_elsewhere, args=(url, "other"))
    other.start()
    audit = Audit(db)
    for number in range(20):
        audit.record("here", "view", study_id=number)
    other.join(60)
    assert other.exitcode == 0
    verdict = verify(db)
    assert verdict.sound
    assert verdict.records == 40


def test_what_cannot_be_recorded_is_not_done(db: Database, trail: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked() -> None:
        raise ServeError("locked")

    monkeypatch.setattr(db, "write", locked)
    with pytest.raises(ServeError, match="nothing was done"):
        trail.record("ada", "view")
    monkeypatch.undo()
    trail.record("ada", "view")
    assert verify(db).records == 8


def test_times_never_go_back(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = Audit(db)
    audit.record("ada", "view")
    monkeypatch.setattr(db.clock, "now", lambda: 5.0)
    audit.record("ada", "view")
    first, second = read_records(db)
    assert second["at"] >= first["at"]
    assert verify(db).sound


def test_records_are_read_from_a_number_on(db: Database, trail: Audit) -> None:
    assert [row["number"] for row in read_records(db, after=5)] == [6, 7]
    assert [row["number"] for row in read_records(db, after=2, most=2)] == [3, 4]


def test_every_action_that_is_recorded_is_known() -> None:
    """What the documents say of events of PS3.15 holds for every call in the source."""
    unknown = []
    for path in SOURCE.rglob("*.py"):
        text = path.read_text("utf-8")
        if ".record" not in text:
            continue
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            named = isinstance(call.func, ast.Attribute) and call.func.attr == "record"
            direct = len(call.args) > 1 and isinstance(call.args[1], ast.Constant)
            if named and direct and call.args[1].value not in EVENTS:
                unknown.append(f"{path.name}:{call.lineno}: {call.args[1].value}")
    assert unknown == []
