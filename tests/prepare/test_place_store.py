"""Arrays of their own size and the truth on them are made once, and again only where something changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sagittal.case import Case, ImageSource
from sagittal.errors import DataError, ReadError, ResourceError
from sagittal.formats.label_map import read_label_map
from sagittal.formats.open_image import read_image
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.prepare.fingerprint import case_content
from sagittal.prepare.lattice import Lattice
from sagittal.prepare.place_store import build_place_store, open_place_store
from sagittal.prepare.plan import InputPlan, Plan, PreparePlan
from sagittal.prepare.truth_maps import box_target
from sagittal.tasks.segment import Segment
from sagittal.truth import Boxes, SegmentationSource
from sagittal.types import Array

SCHEME = LabelScheme("structures", ("organ",))
PLAN = Plan(
    SCHEME,
    task="segment",
    input=InputPlan(dimensions=3),
    prepare=PreparePlan(size=(8, 8, 8), whole=False, spacing_mm=(3.0, 1.6, 1.4), store="float16"),
)
READ: list[str] = []


def read_counted(path: Path) -> Image:
    READ.append(path.name)
    return read_image(path)


@pytest.fixture
def cases(write_nifti: Callable[..., Path]) -> list[Case]:
    READ.clear()
    made = []
    for n in range(5):
        values = np.random.default_rng(n).normal(100, 20, (20 + n, 16, 12)).astype(np.float32)
        mask = np.zeros(values.shape, np.uint8)
        mask[4:12, 4:12, 3:9] = n > 0  # the first case has none
        image, label = write_nifti(f"{n}.nii.gz", values), write_nifti(f"{n}-mask.nii.gz", mask)
        truth = SegmentationSource(partial(read_label_map, [label], structures={"organ": [1]}), (label,))
        made.append(Case(f"c{n}", f"p{n}", {"image": ImageSource(partial(read_counted, image), (image,))}, truth=truth))
    return made


def test_each_case_keeps_its_size_and_comes_back_from_disk(cases: list[Case], tmp_path: Path) -> None:
    store = build_place_store(cases, PLAN, Segment(SCHEME), tmp_path / "prepared")
    assert [image.shape for image in store.images] == [(1, 12, 8, (20 + n) // 2) for n in range(5)]
    assert all(isinstance(image, np.memmap) and image.dtype == np.float16 for image in store.images)
    assert [target.shape[1:] for target in store.targets] == [image.shape[1:] for image in store.images]
    assert [len(places[0]) for places in store.places] == [0] + [6 * 4 * 4] * 4  # 18 x 6.4 x 5.6 mm
    place = tuple(store.places[3][0][0])
    assert store.targets[3][(0, *place)] == 1
    assert store.lattices[2].size == (12, 8, 11)
    assert store.place is not None
    again = open_place_store(store.place, [1, 3], ["c1", "c3"], PLAN)
    np.testing.assert_array_equal(again.images[1], store.images[3])
    np.testing.assert_array_equal(store.rows(["c4", "gone", "c0"]), [4, 0])
    assert not any(name in str(path) for path in (tmp_path / "prepared").rglob("*") for name in ("c0", "p0"))


def test_only_what_changed_is_prepared_again(
    cases: list[Case], tmp_path: Path, write_nifti: Callable[..., Path]
) -> None:
    build_place_store(cases, PLAN, Segment(SCHEME), tmp_path / "prepared")
    assert len(READ) == 5
    again = build_place_store(cases, PLAN, Segment(SCHEME), tmp_path / "prepared")
    assert len(READ) == 5
    window = replace(PLAN, prepare=replace(PLAN.prepare, size=(4, 4, 4)))
    build_place_store(cases, window, Segment(SCHEME), tmp_path / "prepared")
    assert len(READ) == 5  # another window takes the same arrays
    write_nifti("2-mask.nii.gz", np.zeros((22, 16, 12), np.uint8))
    changed = build_place_store(cases, PLAN, Segment(SCHEME), tmp_path / "prepared")
    assert READ[5:] == ["2.nii.gz"]
    assert again.targets[3].any()
    assert not changed.targets[2].any()
    assert again.place is not None
    (again.place / "000001.json").unlink()  # killed before it was complete
    build_place_store(cases, PLAN, Segment(SCHEME), tmp_path / "prepared")
    assert READ[6:] == ["1.nii.gz"]


def test_boxes_are_part_of_what_a_case_contains(cases: list[Case], tmp_path: Path) -> None:
    class Objects:
        def target(self, case: Case, lattice: Lattice) -> Array:
            return box_target(case, LabelScheme("objects", ("node",)), lattice)

        def places(self, target: Array, size: tuple[int, ...]) -> tuple[Array, ...]:
            return (np.rint((target[:, :3] + target[:, 3:6]) / 2).astype(np.int32),)

    boxes = [Boxes([[[2, 2, 2], [8, 6, 4 + n]]] * (n > 0), [0] * (n > 0)) for n in range(5)]
    boxed = [replace(case, truth=truth) for case, truth in zip(cases, boxes, strict=True)]
    assert len({case_content(replace(cases[0], truth=truth)) for truth in boxes}) == 5
    store = build_place_store(boxed, PLAN, Objects(), tmp_path)
    assert [target.shape for target in store.targets] == [(0, 8), (1, 8), (1, 8), (1, 8), (1, 8)]
    assert store.places[0][0].shape == (0, 3)
    np.testing.assert_array_equal(store.places[4][0], [[5, 2, 2]])


def broken() -> Image:
    raise ReadError("truncated")


def too_large() -> Image:
    raise MemoryError


def test_bad_studies_do_not_kill_good_ones(cases: list[Case], tmp_path: Path) -> None:
    cases[3] = replace(cases[3], images={"image": ImageSource(broken)})
    cases[4] = replace(cases[4], images={"image": ImageSource(too_large)})
    store = build_place_store(cases, PLAN, Segment(SCHEME), tmp_path)
    assert store.ids == ("c0", "c1", "c2")
    assert [(skip.case, skip.reason.split(".")[0]) for skip in store.skipped] == [
        ("c3", "truncated"),
        ("c4", "the study does not fit in memory"),
    ]
    unread = [replace(case, images={"image": ImageSource(broken)}) for case in cases]
    with pytest.raises(DataError, match="5 of 5 cases cannot be prepared; the first because: truncated"):
        build_place_store(unread, PLAN, Segment(SCHEME), tmp_path / "other")


def test_a_full_disk_is_named(cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda place: Full)
    with pytest.raises(ResourceError, match="the prepared arrays do not fit .* are free"):
        build_place_store(cases, PLAN, Segment(SCHEME), tmp_path)
