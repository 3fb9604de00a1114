"""Troubles: one row each, counted, ended."""

from __future__ import annotations

from pathlib import Path

from sagittal.database.connect import Database
from sagittal.database.events import end_event, open_events, recent_events, report_event


def test_the_same_trouble_is_one_row_until_it_is_over(tmp_path: Path) -> None:
    db = Database.open(f"sqlite:///{tmp_path / 'sagittal.db'}")
    report_event(db, "away", "warning", "does not answer", about="pacs")
    report_event(db, "away", "error", "does still not answer", about="pacs")
    report_event(db, "away", "warning", "does not answer", about="archive 2")
    told = {event.about: event for event in open_events(db)}
    assert {about: event.count for about, event in told.items()} == {"pacs": 2, "archive 2": 1}
    assert told["pacs"].level == "error"
    assert told["pacs"].message == "does still not answer"
    assert told["pacs"].first_at <= told["pacs"].last_at
    assert end_event(db, "away", "pacs")
    assert not end_event(db, "away", "pacs")
    assert [event.about for event in open_events(db)] == ["archive 2"]
    report_event(db, "away", "warning", "does not answer", about="pacs")  # again: a row of its own
    assert len(recent_events(db)) == 3
    assert recent_events(db)[0].count == 1
    db.close()
