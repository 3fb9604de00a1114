"""Which windows a step sees: repeatable, every case equally often, foreground as often as asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sagittal.grid import Grid
from sagittal.labels import LabelScheme
from sagittal.prepare.lattice import Lattice
from sagittal.prepare.place_store import PlaceStore
from sagittal.prepare.plan import AugmentPlan, InputPlan, Plan, PreparePlan, TrainPlan
from sagittal.prepare.warp import sample_labels
from sagittal.tasks.segment import Segment
from sagittal.train.windows import WindowBatches, turns

PLAN = Plan(
    LabelScheme("structures", ("common", "rare")),
    task="segment",
    input=InputPlan(dimensions=3),
    prepare=PreparePlan(size=(8, 12, 10), whole=False, offset=(100.0,), scale=(50.0,), store="uint8"),
    augment=AugmentPlan(
        flip=(2,), rotate_deg=20, scale=0.2, elastic=0.05, noise=0.1, contrast=0.2, brightness=0.1, gamma=0.2, blur=0.5
    ),
    train=TrainPlan(batch=4, foreground=0.5),
)
CPU = torch.device("cpu")


class Labels:
    """The part of a task that batches need: the labels themselves."""

    def draw(self, targets: Any, warp: Any) -> torch.Tensor:
        return sample_labels(targets, warp)


def make_store(count: int = 5, tables: int = 0) -> PlaceStore:
    """Cases whose values are 10 x their number; the last is smaller than a window, case 1 alone has the rare class."""
    sizes = [(20, 30, 24)] * (count - 1) + [(6, 9, 7)]
    targets = []
    for n, size in enumerate(sizes):
        label = np.zeros((1, *size), np.uint8)
        label[0, 1:3, 2:4, 3:5] = 1 if n else 0  # the first case has nothing
        if n == 1:
            label[0, 15, 25, 20] = 2
        targets.append(label)
    return PlaceStore(
        ids=tuple(f"c{n}" for n in range(count)),
        images=tuple(np.full((1, *size), 10 * n, np.uint8) for n, size in enumerate(sizes)),
        targets=tuple(targets),
        tables=np.tile(np.arange(count, dtype=np.float32)[:, None], (1, tables)),
        lattices=tuple(Lattice.of(Grid(size[::-1], spacing=(1.0, 1.0, 1.5)), 3) for size in sizes),
        places=tuple(Segment(PLAN.scheme).places(t, t.shape[1:]) for t in targets),
    )


def make(plan: Plan = PLAN, **options: Any) -> WindowBatches:
    return WindowBatches(make_store(), plan, Labels(), CPU, **options)  # type: ignore[arg-type]


PLAIN = replace(PLAN, augment=AugmentPlan())
ROWS = np.arange(5)


def test_a_batch_follows_from_seed_member_and_step_alone() -> None:
    batches = make()
    first = batches.training(ROWS, 0, 1, 7)
    assert first.image.shape == (4, 1, 8, 12, 10)
    assert first.image.dtype == torch.float32
    assert first.target.shape == (4, 1, 8, 12, 10)
    assert first.table is None
    batches.training(ROWS, 0, 1, 3)
    again = make().training(ROWS, 0, 1, 7)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.target, again.target)
    for other in ((1, 1, 7), (0, 2, 7), (0, 1, 8)):
        assert not torch.equal(make().training(ROWS, *other).image, first.image)


def test_made_ahead_or_not_a_batch_is_the_same() -> None:
    ahead, plain = make(ahead=True), make(ahead=False)
    for step in (0, 1, 2, 7, 8):
        one, other = (b.training(ROWS, 3, 0, step) for b in (ahead, plain))
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.target, other.target)


def test_every_case_comes_equally_often_whatever_the_batch() -> None:
    batches = make(PLAIN)
    seen: list[int] = []
    for step in range(25):
        image = batches.training(ROWS, 0, 0, step).image
        seen += (image[:, 0, 4, 6, 5] * 5 + 10).round().int().tolist()
    assert np.bincount(seen).tolist() == [20] * 5
    assert batches.samples(ROWS) == 5
    assert make(replace(PLAN, train=replace(PLAN.train, windows=250))).samples(ROWS) == 250
    assert np.bincount(turns(np.array([4, 2]), 7, 0, 0, 0)).tolist() in ([0, 0, 3, 0, 4], [0, 0, 4, 0, 3])


def test_parts_of_several_processes_make_up_the_batch() -> None:
    batches = make(PLAIN)
    whole = batches.training(ROWS, 0, 0, 2).image[:, 0, 0, 0, 0]
    parts = [batches.training(ROWS, 0, 0, 2, part=(rank, 2)).image[:, 0, 0, 0, 0] for rank in (0, 1)]
    np.testing.assert_array_equal(parts[0], whole[0::2])
    np.testing.assert_array_equal(parts[1], whole[1::2])


@pytest.mark.parametrize("share", [0.0, 0.33, 1.0])
def test_the_asked_share_of_windows_lies_around_a_place(share: float) -> None:
    plan = replace(PLAIN, train=replace(PLAN.train, foreground=share), prepare=replace(PLAN.prepare, size=(4, 4, 4)))
    batches = make(plan)
    rows = np.array([2, 3])  # 8 of 14400 voxels: hardly ever hit by chance
    hits = [bool((label == 1).any()) for s in range(60) for label in batches.training(rows, 0, 0, s).target]
    assert np.mean(hits) == pytest.approx(share, abs=0.03)


def test_rare_classes_are_met_as_often_as_their_cases_allow() -> None:
    plan = replace(PLAIN, train=replace(PLAN.train, foreground=1.0), prepare=replace(PLAN.prepare, size=(6, 6, 6)))
    batches = make(plan)
    rows = np.array([1])
    rare = [bool((label == 2).any()) for s in range(50) for label in batches.training(rows, 0, 0, s).target]
    assert 0.55 < np.mean(rare) < 0.95  # 1 case has it, 4 have the common one: 4 of 5 windows


def test_places_are_anywhere_in_the_middle_of_a_window() -> None:
    store = make_store(3)
    label = np.zeros((1, 20, 30, 24), np.uint8)
    label[0, 10, 15, 12] = 1
    spot = (np.array([[10, 15, 12]]), np.zeros((0, 3), int))
    store = replace(store, targets=(label,) * 3, places=(spot,) * 3)
    plan = replace(PLAIN, train=replace(PLAN.train, foreground=1.0))
    batches = WindowBatches(store, plan, Labels(), CPU)  # type: ignore[arg-type]
    found = np.concatenate(
        [np.argwhere(batches.training(np.array([0]), 0, 0, s).target.numpy() == 1) for s in range(60)]
    )
    assert len(found) == 240  # every window holds it
    inside = found[:, 2:]
    assert (inside.min(axis=0) >= np.array([8, 12, 10]) * 0.25 - 1).all()
    assert (inside.max(axis=0) <= np.array([8, 12, 10]) * 0.75).all()
    assert (inside.max(axis=0) - inside.min(axis=0) >= np.array([8, 12, 10]) * 0.4 - 1).all()


def test_a_case_smaller_than_the_window_lies_in_its_middle_and_the_rest_is_unknown() -> None:
    batch = make(PLAIN).training(np.array([4]), 0, 0, 0)
    known = batch.target[0, 0] != 255
    assert known.sum() == 6 * 9 * 7
    assert known[1:7, 1:10, 1:8].all() or known[1:7, 2:11, 1:8].all() or known[1:7, 2:11, 2:9].all()
    assert (batch.image[0] == -1.2).all()  # its own value, (40 - 100) / 50, beyond its edge too


def test_validation_windows_are_fixed_and_bounded() -> None:
    batches = make()
    pieces = list(batches.pieces(ROWS, 3))
    again = list(batches.pieces(ROWS, 3))
    assert [len(p.image) for p in pieces] == [3] * 5 + [2]  # 4 of each large case, 1 of the small one
    for one, other in zip(pieces, again, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.target, other.target)
    values = torch.cat([p.image for p in pieces])
    assert (values == values[:, :, :1, :1, :1]).all()  # not augmented
    assert all((piece.target[n] != 255).any() for piece in pieces for n in range(len(piece.image)))
    assert (torch.cat([p.target for p in pieces]) == 2).any() or (torch.cat([p.target for p in pieces]) == 1).any()
    many = replace(make_store(), **{k: getattr(make_store(), k) * 100 for k in ("ids", "images", "targets", "places")})
    counted = WindowBatches(many, PLAN, Labels(), CPU)._fixed(np.arange(500))  # type: ignore[arg-type]
    assert len(counted) == 200


def test_clinical_columns_travel_with_their_case() -> None:
    batches = WindowBatches(make_store(tables=2), PLAIN, Labels(), CPU)  # type: ignore[arg-type]
    batch = batches.training(ROWS, 0, 0, 1)
    assert batch.table is not None
    np.testing.assert_allclose(batch.table[:, 0] * 10, batch.image[:, 0, 4, 6, 5] * 50 + 100, atol=1e-4)
