"""Arrays are prepared once, and again only where something changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from sagittal.case import Case, ImageSource
from sagittal.dataset import Dataset
from sagittal.errors import DataError, ReadError, ResourceError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.prepare.arrays import prepare_case
from sagittal.prepare.plan import Plan, PreparePlan
from sagittal.prepare.store import build_store

PLAN = Plan(LabelScheme("binary", ("dark", "bright")), prepare=PreparePlan(size=(8, 8)))
READ: list[str] = []


def read_counted(path: Path) -> Image:
    READ.append(path.name)
    pixels = np.asarray(Pillow.open(path), dtype=np.float32)
    return Image(pixels.T[None, :, :, None], Grid((*pixels.T.shape, 1)))


def broken() -> Image:
    raise ReadError("truncated")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Case]:
    READ.clear()
    cases = []
    for n in range(6):
        path = tmp_path / f"{n}.png"
        Pillow.fromarray(np.full((8, 8), 10 * n, np.uint8)).save(path)
        cases.append(Case(f"c{n}", f"p{n}", {"image": ImageSource(partial(read_counted, path), (path,))}))
    return cases


def test_only_changed_files_are_read_again(pictures: list[Case], tmp_path: Path) -> None:
    first = build_store(pictures, PLAN, tmp_path / "prepared")
    assert len(READ) == 6
    np.testing.assert_array_equal(first.arrays[:, 0, 0, 0], [0, 10, 20, 30, 40, 50])
    build_store(pictures, PLAN, tmp_path / "prepared")
    assert len(READ) == 6
    Pillow.fromarray(np.full((8, 8), 99, np.uint8)).save(tmp_path / "2.png")
    third = build_store(pictures, PLAN, tmp_path / "prepared")
    assert READ[6:] == ["2.png"]
    assert third.arrays[2, 0, 0, 0] == 99
    other = replace(PLAN, prepare=PreparePlan(size=(4, 4)))
    assert build_store(pictures, other, tmp_path / "prepared").arrays.shape == (6, 1, 4, 4)


def test_bad_studies_do_not_kill_good_ones(squares: Callable[..., Dataset], tmp_path: Path) -> None:
    cases = list(squares(cases=10))
    cases[4] = replace(cases[4], images={"image": ImageSource(broken)})
    store = build_store(cases, PLAN, tmp_path)
    assert store.ids == tuple(case.id for n, case in enumerate(cases) if n != 4)
    assert [(skip.case, skip.reason) for skip in store.skipped] == [("case-004", "truncated")]
    np.testing.assert_array_equal(store.rows(["case-003", "case-004", "case-005"]), [3, 4])
    np.testing.assert_array_equal(store.arrays[4], prepare_case(cases[5], PLAN).array)


def test_mostly_unreadable_data_is_an_error(squares: Callable[..., Dataset], tmp_path: Path) -> None:
    cases = [replace(case, images={"image": ImageSource(broken)}) for case in squares(cases=10)]
    with pytest.raises(DataError, match="10 of 10 cases cannot be prepared; the first because: truncated"):
        build_store(cases, PLAN, tmp_path)


def test_a_full_disk_is_named_before_it_is_full(
    squares: Callable[..., Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        f_bavail, f_frsize = 1, 512

    monkeypatch.setattr("os.statvfs", lambda place: Full)
    with pytest.raises(ResourceError, match="the prepared arrays need .* GB in .* are free"):
        build_store(list(squares(cases=10)), PLAN, tmp_path)
