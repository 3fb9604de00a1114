"""What a detecting network learns and how its map is read: places, borders, crowds, losses, duplicates, exact geometry."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sagittal.errors import DataError
from sagittal.grid import Grid
from sagittal.metrics.boxes import box_iou
from sagittal.prepare.lattice import Lattice
from sagittal.tasks.detect_collector import BoxCollector
from sagittal.tasks.detect_decode import find_peaks, iou_matrix, suppress
from sagittal.tasks.detect_loss import PRIOR, UNIT, detect_loss, generalised_iou
from sagittal.tasks.detect_target import centres_of, map_size, render, to_cells, to_voxels

TILTED = np.array([[0.64, -0.42, 0.6, 10], [0.288, 0.7, 1.2, -20], [0.384, 0.56, -4.8, 30], [0, 0, 0, 1]], dtype=float)


def rows(*boxes):
    """Stored truth of boxes given as (low, high, class, crowd)."""
    return np.array([[*low, *high, label, crowd] for low, high, label, crowd in boxes], dtype=np.float32)


def perfect(target, classes):
    """The outputs of a network that says exactly what it should."""
    heat = np.clip(target[:classes], 1e-6, 1 - 1e-6)
    logits = np.log(heat / (1 - heat)) - PRIOR
    reach = np.where(target[-2] > 0, target[classes:-2], 1.0)
    return np.concatenate([logits, np.log(reach / UNIT)]).astype(np.float32)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("d", [2, 3])
def test_a_perfect_map_gives_back_its_boxes(d, stride):
    rng = np.random.default_rng(d + stride)
    size = (30, 41, 52)[:d]
    low = np.array(list(itertools.product((1.5, 18.25), (3.0, 24.0), (5.5, 28.75))))[:, :d]
    low = np.unique(low, axis=0)
    high = low + rng.uniform(6, 11, low.shape)
    labels = rng.integers(0, 2, len(low))
    boxes = np.concatenate([low, high, labels[:, None], np.zeros((len(low), 1))], axis=1)
    target = render(boxes, size, classes=2, stride=stride)
    assert target.shape == (2 + 2 * d + 2, *map_size(size, stride))
    _, found_labels, scores, corners = find_peaks(perfect(target, 2), 2)
    kept = suppress(corners, found_labels, scores, 0.5)
    sure = kept[scores[kept] > 0.99]
    found = np.concatenate([to_voxels(corners[sure], stride).reshape(len(sure), -1), found_labels[sure, None]], axis=1)
    order, other = np.lexsort(found.T), np.lexsort(boxes[:, :-1].T)
    np.testing.assert_allclose(found[order], boxes[other, :-1], atol=1e-3)


def test_cells_share_the_outer_edge_of_the_voxels():
    # The first cell of a stride of 4 reaches from -0.5 to 3.5.
    np.testing.assert_allclose(to_cells(np.array([-0.5, 3.5, 7.5]), 4), [-0.5, 0.5, 1.5])
    assert map_size((8, 9), 4) == (2, 3)


@given(st.floats(-100, 100), st.sampled_from([1, 2, 4, 8]))
def test_voxels_and_cells_are_each_others_inverse(place, stride):
    assert to_voxels(to_cells(np.array(place), stride), stride) == pytest.approx(place, abs=1e-9)


def test_a_gaussian_is_as_wide_as_its_box():
    target = render(rows(((9.5, 19.5), (29.5, 79.5), 0, 0)), (40, 100), classes=1, stride=1)
    heat = target[0]
    assert heat.max() == 1
    peak = np.unravel_index(heat.argmax(), heat.shape)
    assert peak == (20, 50)
    # exp(-x^2 / 2 sigma^2) with sigma of 0.54 / 6 of the edge: 20 rows and 60 columns.
    assert heat[22, 50] == pytest.approx(np.exp(-(2**2) / (2 * (20 * 0.09) ** 2)), rel=1e-5)
    assert heat[20, 54] == pytest.approx(np.exp(-(4**2) / (2 * (60 * 0.09) ** 2)), rel=1e-5)
    # The distances of the centre's cell reach exactly to the sides.
    np.testing.assert_allclose(target[1:5, 20, 50], [10.5, 30.5, 9.5, 29.5])


def test_the_smaller_of_two_objects_has_the_cells_that_both_want():
    large, small = ((0, 0), (40, 40), 0, 0), ((18, 18), (26, 26), 1, 0)
    target = render(rows(large, small), (48, 48), classes=2, stride=1)
    centres, labels = centres_of(target, 2)
    assert sorted(map(tuple, centres)) == [(20, 20), (22, 22)]
    distances = {int(label): target[2:-2][(slice(None), *place)] for place, label in zip(centres, labels, strict=True)}
    np.testing.assert_allclose(distances[0], [20, 20, 20, 20])
    np.testing.assert_allclose(distances[1], [4, 4, 4, 4])
    # Beside its own centre, within the reach of both, the small one decides.
    np.testing.assert_allclose(target[2:-2, 23, 22], [5, 4, 3, 4])


def test_an_object_at_the_border_is_cut_there_and_learned_where_nearly_all_of_it_is_seen():
    seen = render(rows(((-1.5, 10), (14.5, 20), 0, 0)), (32, 32), classes=1, stride=1)  # 15 of 16 rows
    centres, _ = centres_of(seen, 1)
    assert len(centres) == 1
    np.testing.assert_allclose(seen[1:5, centres[0, 0], centres[0, 1]][[0, 2]].sum(), 15)
    hidden = render(rows(((-6.5, 10), (9.5, 20), 0, 0)), (32, 32), classes=1, stride=1)  # 10 of 16
    assert len(centres_of(hidden, 1)[0]) == 0
    assert (hidden[-1, :10, 10:20] == 0).all()
    assert (hidden[-1, 11:] == 1).all()
    assert (hidden[-2] == 0).all()


def test_the_box_of_a_small_object_counts_as_much_as_that_of_a_large_one():
    target = render(rows(((2, 2), (8, 8), 0, 0), ((16, 12), (56, 60), 1, 0)), (64, 64), classes=2, stride=2)
    counts = target[-2]
    assert counts[:5, :5].sum() == pytest.approx(1, abs=1e-6)
    assert counts[8:].sum() == pytest.approx(1, abs=1e-6)


def test_crowds_do_not_teach():
    target = render(rows(((4, 4), (12, 12), 0, 1)), (16, 16), classes=1, stride=2)
    assert (target[0] == 0).all()
    assert (target[-1, 2:6, 2:6] == 0).all()
    wild = torch.zeros(1, 5, 8, 8)
    wild[0, 0, 3, 3] = 12.0
    wild.requires_grad_(True)
    detect_loss(wild, torch.from_numpy(target)[None], classes=1).backward()
    assert wild.grad[0, 0, 3, 3] == 0
    assert wild.grad[0, 0, 7, 7] != 0


def test_boxes_without_extent_and_outside_are_nothing():
    empty = render(
        rows(((5, 5), (5, 9), 0, 0), ((-20, 5), (-10, 9), 0, 0), ((9, 9), (4, 12), 0, 0)), (16, 16), classes=1, stride=1
    )
    assert (empty[:-1] == 0).all()
    assert (empty[-1] == 1).all()


def test_a_box_smaller_than_a_cell_has_a_centre():
    target = render(rows(((6.2, 6.2), (6.8, 6.9), 0, 0)), (16, 16), classes=1, stride=4)
    centres, _ = centres_of(target, 1)
    assert centres.tolist() == [[1, 1]]
    assert (target[1:5, 1, 1] >= 0.05).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3]))
def test_generalised_iou_is_that_of_the_boxes(seed, d):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.2, 9, (2, 2 * d))
    found = float(generalised_iou(torch.from_numpy(a), torch.from_numpy(b)))

    def corners(sides):
        whole = np.array([[-0.5] * 3, [0.5] * 3])
        whole[0, :d], whole[1, :d] = -sides[:d], sides[d:]
        return whole

    iou = float(box_iou(corners(a), corners(b)))
    hull = np.prod(np.maximum(a, b)[:d] + np.maximum(a, b)[d:])
    common = np.prod(np.minimum(a, b)[:d] + np.minimum(a, b)[d:])
    union = common / iou
    assert found == pytest.approx(iou - (hull - union) / hull, abs=1e-9)


def test_the_loss_falls_towards_what_is_right_and_knows_empty_windows():
    target = torch.from_numpy(render(rows(((8, 8), (20, 24), 1, 0)), (32, 32), classes=2, stride=2))[None]
    right = torch.from_numpy(perfect(target[0].numpy(), 2))[None]
    nothing = torch.zeros_like(right)
    moved = right.clone()
    moved[:, 2] += 0.5
    # A heat map equal to the target is not the minimum of a focal loss, but it is far below silence.
    values = [float(detect_loss(x, target, classes=2)) for x in (right, moved, nothing)]
    assert values[0] < values[1] < values[2]
    empty = torch.from_numpy(render(np.zeros((0, 6)), (32, 32), classes=2, stride=2))[None]
    silent = torch.full_like(nothing, -8.0, requires_grad=True)
    loss = detect_loss(silent, empty, classes=2)
    loss.backward()
    assert float(loss.detach()) < 1e-3
    assert torch.isfinite(silent.grad).all()


@pytest.mark.parametrize(("balance", "ratio"), [(0.0, 1.0), (0.5, 2.0), (1.0, 4.0)])
def test_objects_of_a_rare_class_weigh_more(balance, ratio):
    # Seven of the first class and one of the second: (8 / 2) ** balance.
    many = [((2, 2 + 9 * n), (7, 7 + 9 * n), 0, 0) for n in range(7)]
    target = torch.from_numpy(render(rows(*many, ((40, 40), (48, 48), 1, 0)), (64, 68), classes=2, stride=2))[None]
    assert (target[0, :2] == 1).sum(dim=(1, 2)).tolist() == [7, 1]
    output = torch.zeros(1, 6, 32, 34, requires_grad=True)
    detect_loss(output, target, classes=2, balance=balance).backward()
    common = output.grad[0, 0][target[0, 0] == 1].mean()
    rare = output.grad[0, 1][target[0, 1] == 1].mean()
    assert float(rare / common) == pytest.approx(ratio, rel=1e-4)


def test_a_batch_without_objects_weighs_all_classes_alike():
    target = torch.from_numpy(render(np.zeros((0, 6)), (16, 16), classes=2, stride=2))[None]
    output = torch.zeros(1, 6, 8, 8)
    plain, balanced = (float(detect_loss(output, target, classes=2, balance=b)) for b in (0.0, 0.5))
    assert plain == pytest.approx(balanced, rel=1e-6)
    assert plain > 0


def test_overlap_of_all_with_all_is_that_of_the_metrics():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 20, (2, 7, 3))
    boxes = np.stack([low, low + rng.uniform(0, 12, low.shape)], axis=2)
    boxes[0, 0, 1] = boxes[0, 0, 0]  # degenerate
    np.testing.assert_allclose(iou_matrix(boxes[0], boxes[1]), box_iou(boxes[0][:, None], boxes[1]), atol=1e-12)


def greedy(corners, labels, scores, iou):
    """Suppression by the book."""
    kept = []
    for n in np.argsort(-scores, kind="stable"):
        if all(labels[n] != labels[m] or iou_matrix(corners[[n]], corners[[m]])[0, 0] <= iou for m in kept):
            kept.append(int(n))
    return kept


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_suppression_is_greedy_within_a_class(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 15, (20, 2))
    corners = np.stack([low, low + rng.uniform(3, 9, low.shape)], axis=1)
    labels, scores = rng.integers(0, 2, 20), rng.random(20).round(1)
    assert suppress(corners, labels, scores, 0.4).tolist() == greedy(corners, labels, scores, 0.4)


def test_suppression_of_nothing_and_of_all():
    assert len(suppress(np.zeros((0, 2, 2)), np.zeros(0), np.zeros(0), 0.5)) == 0
    same = np.broadcast_to([[0.0, 0], [4, 4]], (5, 2, 2))
    assert suppress(same, np.zeros(5), np.arange(5.0), 0.5).tolist() == [4]
    assert len(suppress(same, np.zeros(5), np.arange(5.0), 1.0)) == 5


LATTICES = [
    pytest.param(Lattice(Grid((200, 160, 1)), (61, 83), (13, 9), (122, 166)), id="picture, cut and halved"),
    pytest.param(
        Lattice(Grid((90, 80, 40), TILTED), (35, 60, 45), (2, 5, 7), (35, 75, 60)), id="tilted volume, cut and zoomed"
    ),
]


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("lattice", LATTICES)
@pytest.mark.parametrize("slab", [1, 3, 1000])
def test_boxes_come_back_to_the_study_exactly(lattice, stride, slab):
    d = lattice.dimensions
    low = np.array([[10, 20, 12], [20, 40, 30], [12, 21, 33]])[:, :d] + 0.3
    high = low + np.array([[9, 10, 11], [8.5, 9, 12], [12, 9, 8]])[:, :d]
    kept = slice(None) if d == 3 else slice(0, 2)
    boxes = np.concatenate([low, high, np.array([[0], [1], [0]]), np.zeros((3, 1))], axis=1)[kept]
    output = perfect(render(boxes, lattice.size, classes=2, stride=stride), 2)
    # As padding of windows may leave it: the map reaches beyond the array.
    padded = np.pad(output, [(0, 0), *[(0, 2)] * d], constant_values=9.0)
    collector = BoxCollector(lattice, classes=2, stride=stride)
    for start in range(0, padded.shape[1], slab):
        collector.add(start, padded[:, start : start + slab])
    found = collector.finish()
    sure = found.scores > 0.99
    corners, labels = found.boxes.corners[sure], found.boxes.classes[sure]
    true = np.stack([lattice.to_study(boxes[:, :d]), lattice.to_study(boxes[:, d : 2 * d])], axis=1)
    if d == 2:
        true[:, 0, 2], true[:, 1, 2] = -0.5, 0.5
    assert len(corners) == len(true)
    for corner, label in zip(true, boxes[:, -2], strict=True):
        best = np.abs(corners - corner).max(axis=(1, 2)).argmin()
        np.testing.assert_allclose(corners[best], corner, atol=2e-3)
        assert labels[best] == label
    if lattice.grid.affine is not None:  # the middle of a box lies at the same place of the patient
        middle = np.append(corners.mean(axis=1)[0], 1)
        place = (lattice.grid.affine @ middle)[:3]
        places = [(lattice.grid.affine @ np.append(c.mean(axis=0), 1))[:3] for c in true]
        assert min(np.linalg.norm(place - p) for p in places) < 0.01


def test_slabs_of_any_thickness_give_the_same_peaks():
    rng = np.random.default_rng(5)
    lattice = Lattice.of(Grid((20, 24, 30)), 3)
    output = rng.normal(0, 2, (1 + 6, 15, 12, 10)).astype(np.float32)
    answers = []
    for slabs in ([15], [1] * 15, [2, 5, 1, 7], [14, 1]):
        collector, start = BoxCollector(lattice, classes=1, stride=2), 0
        for n in slabs:
            collector.add(start, output[:, start : start + n])
            start += n
        found = collector.finish()
        answers.append((found.scores, found.boxes.corners))
    assert len(answers[0][0]) > 20
    for scores, corners in answers[1:]:
        np.testing.assert_array_equal(scores, answers[0][0])
        np.testing.assert_allclose(corners, answers[0][1])


def test_a_collector_refuses_gaps_and_wrong_shapes():
    lattice = Lattice.of(Grid((16, 16, 16)), 3)
    collector = BoxCollector(lattice, classes=1, stride=2)
    with pytest.raises(DataError, match="next plane of the map is 0, but planes from 2 came"):
        collector.add(2, np.zeros((7, 1, 8, 8)))
    with pytest.raises(DataError, match=r"planes of 7 outputs on \(8, 8\) cells are expected"):
        collector.add(0, np.zeros((6, 1, 8, 8)))
    collector.add(0, np.zeros((7, 3, 8, 8)))
    with pytest.raises(DataError, match="the map has 8 planes, but only 3 came"):
        collector.finish()


def test_a_collector_keeps_what_it_was_given_before_the_array_changes():
    lattice = Lattice.of(Grid((16, 16, 1)), 2)
    output = perfect(render(rows(((2, 2), (9, 9), 0, 0)), (16, 16), classes=1, stride=1), 1)
    collector, slab = BoxCollector(lattice, classes=1, stride=1), np.empty((5, 4, 16), dtype=np.float32)
    for start in range(0, 16, 4):
        slab[:] = output[:, start : start + 4]
        collector.add(start, slab)
        slab[:] = -99
    found = collector.finish()
    assert found.scores[0] > 0.99
    np.testing.assert_allclose(found.boxes.corners[0, :, :2], [[2, 2], [9, 9]], atol=1e-3)
