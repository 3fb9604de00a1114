"""The clock that never goes back."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from sagittal.database import clock
from sagittal.database.clock import Clock
from sagittal.database.connect import Database
from sagittal.database.schema import marks


class Machine:
    """The clocks of a machine, set by a test."""

    def __init__(self) -> None:
        self.wall, self.monotonic = 1000.0, 5.0

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


def test_it_follows_the_wall() -> None:
    machine = Machine()
    told = Clock(lambda: machine.wall, lambda: machine.monotonic)
    machine.pass_(7.5)
    assert told.now() == 1007.5
    machine.wall += 3600.0  # set forward
    assert told.now() == 4607.5


def test_it_goes_on_when_the_wall_is_set_back() -> None:
    machine = Machine()
    told = Clock(lambda: machine.wall, lambda: machine.monotonic)
    machine.pass_(10.0)
    before = told.now()
    machine.wall -= 86400.0
    assert told.now() == before
    machine.pass_(2.0)
    assert told.now() == before + 2.0
    assert told.behind_s == 86400.0


def test_a_restart_with_a_wrong_clock_does_not_go_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sagittal.db'}"
    db = Database.open(url)
    with db.write():
        pass
    kept = clock.now(db)
    with db.write() as c:  # as if an earlier run had kept a time of tomorrow
        c.execute(sa.update(marks).where(marks.c.name == "clock").values(value=kept + 86400.0))
    db.close()
    db = Database.open(url)
    assert clock.now(db) >= kept + 86400.0
    db.close()


def test_it_is_kept_beside_other_changes_not_with_each(tmp_path: Path) -> None:
    db = Database.open(f"sqlite:///{tmp_path / 'sagittal.db'}")
    kept = []
    for _ in range(2):
        with db.write() as c:
            c.execute(sa.delete(marks).where(marks.c.name == "other"))
        with db.read() as c:
            kept.append(c.execute(sa.select(marks.c.value).where(marks.c.name == "clock")).scalar_one())
    assert kept[0] == kept[1]
    db.close()
