"""Cleaning of masks: what is removed and filled, and that a step is kept only where it helps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from sagittal.grid import Grid
from sagittal.tasks.clean import Pieces, choose_cleaning, clean_segmentation, regions, trace_pieces
from sagittal.tasks.outlines import find_boxes
from sagittal.truth import Segmentation, Structure
from sagittal.types import Array

# Thick slices, tilted: 0.7 x 0.7 x 5 mm, a voxel is 2.45 mm3.
TILT = np.deg2rad(20)
AFFINE = np.array(
    [
        [0.7, 0, 0, 10],
        [0, 0.7 * np.cos(TILT), -5 * np.sin(TILT), -20],
        [0, 0.7 * np.sin(TILT), 5 * np.cos(TILT), 5],
        [0, 0, 0, 1],
    ]
)
AB = (Structure("a", (1,)), Structure("b", (2,)))


def segmentation(labels: Array, structures: tuple[Structure, ...] = AB, ignore: int | None = None) -> Segmentation:
    layers = labels if labels.ndim == 4 else labels[np.newaxis]
    return Segmentation(layers.astype(np.uint8), Grid(layers.shape[1:], AFFINE), structures, ignore)


def traced(answer: Segmentation, truth: Segmentation, name: str) -> Pieces:
    return trace_pieces(answer, truth, name, (find_boxes(answer), find_boxes(truth)))


def shells() -> Array:
    """a is a hollow box with a filled island; b a block inside the hollow, which does not fill it, with two islands."""
    labels = np.zeros((30, 32, 8), dtype=np.uint8)
    labels[5:20, 5:20, 1:7] = 1
    labels[7:18, 7:18, 2:6] = 0
    labels[9:13, 9:13, 3:5] = 2
    labels[25:28, 25:28, 2:4] = 1
    labels[24:26, 3:5, 6] = 2
    labels[0, 0, 0] = 2
    return labels


def test_largest_keeps_one_component_and_leaves_the_other_structure() -> None:
    cleaned = clean_segmentation(segmentation(shells()), {"a": {"largest": True}})
    assert not cleaned.mask("a")[25:28, 25:28].any()
    assert cleaned.mask("a").sum() == (shells() == 1).sum() - 18
    assert (cleaned.mask("b") == (shells() == 2)).all()


def test_filling_takes_background_only() -> None:
    cleaned = clean_segmentation(segmentation(shells()), {"a": {"fill": True}})
    expected = ndimage.binary_fill_holes(shells() == 1) & (shells() != 2)
    assert (cleaned.mask("a") == expected).all()
    assert (cleaned.mask("b") == (shells() == 2)).all()


def test_an_island_inside_another_structure_leaves_no_hole() -> None:
    labels = shells()
    labels[labels == 2] = 0
    labels[10, 10, 1] = 2  # inside the wall of a
    labels[0:4, 0:4, 0:2] = 2
    labels[10, 10, 2:6] = 1  # walls it in
    rules = {"a": {"fill": True}, "b": {"largest": True}}
    cleaned = clean_segmentation(segmentation(labels), rules)
    assert cleaned.mask("b").sum() == 32
    assert cleaned.mask("a")[5:20, 5:20, 2:6].all()


@pytest.mark.parametrize(("least", "left"), [(0.001, 37), (0.005, 36), (0.02, 32), (0.08, 0)])
def test_least_volume_counts_in_millilitres(least: float, left: int) -> None:
    cleaned = clean_segmentation(segmentation(shells()), {"b": {"least_ml": least}})  # 32, 4 and 1 voxels of .00245 ml
    assert cleaned.mask("b").sum() == left


def test_least_volume_of_a_picture_counts_in_voxels() -> None:
    labels = shells()[:, :, 3:4]
    cleaned = clean_segmentation(segmentation(labels), {"a": {"least_voxels": 10}})
    assert not cleaned.mask("a")[25:28, 25:28].any()
    assert cleaned.mask("a").sum() == (labels == 1).sum() - 9
    filled = clean_segmentation(segmentation(labels), {"a": {"fill": True}})
    assert filled.mask("a")[5:20, 5:20][labels[5:20, 5:20] != 2].all()


def test_overlapping_structures_in_layers_are_cleaned_apart() -> None:
    labels = np.zeros((2, 12, 12, 4), dtype=np.uint8)
    labels[0, 2:8, 2:8] = 1
    labels[1, 4:10, 4:10] = 2
    labels[1, 0, 0, 0] = 2
    structures = (Structure("a", (1,), 0), Structure("b", (2,), 1))
    cleaned = clean_segmentation(segmentation(labels, structures), {"b": {"largest": True}})
    assert (cleaned.layers[0] == labels[0]).all()
    assert cleaned.mask("b").sum() == 6 * 6 * 4


def test_nothing_is_changed_without_rules_or_voxels() -> None:
    given = segmentation(shells())
    assert clean_segmentation(given, {}) is given
    assert clean_segmentation(given, {"a": {}}) is given
    empty = segmentation(np.zeros((4, 4, 4)))
    assert not clean_segmentation(empty, {"a": {"largest": True, "fill": True}}).layers.any()


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"largest": True},
        {"fill": True},
        {"least_ml": 0.02},
        {"least_ml": 0.02, "fill": True},
        {"largest": True, "fill": True},
    ],
)
@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("ignore", [None, 9])
def test_dice_of_a_rule_is_that_of_the_cleaned_mask(rule: dict[str, Any], name: str, ignore: int | None) -> None:
    rng = np.random.default_rng(5)
    smooth = ndimage.gaussian_filter(rng.normal(size=(30, 32, 8)), 1.2)
    truth = shells()
    truth[smooth > 0.25] = 1
    truth[smooth < -0.25] = 2
    if ignore is not None:
        truth[12:16] = ignore
    answer, expected = segmentation(shells()), segmentation(truth, ignore=ignore)
    found = clean_segmentation(answer, {name: rule}).mask(name) & ~expected.unknown
    true = expected.mask(name)
    dice = 2 * (found & true).sum() / (found.sum() + true.sum())
    assert traced(answer, expected, name).dice(rule) == pytest.approx(dice, abs=1e-12)


def test_dice_where_a_mask_is_empty() -> None:
    full, empty = segmentation(shells()), segmentation(np.zeros_like(shells()))
    assert traced(empty, empty, "a").dice({"largest": True}) == 1
    assert traced(empty, full, "a").dice({}) == 0
    assert traced(full, empty, "a").dice({"largest": True}) == 0
    assert traced(full, empty, "a").dice({"least_ml": 100.0}) == 1


def test_holes_at_the_edge_of_the_volume_are_open() -> None:
    labels = np.zeros((6, 6, 3), dtype=np.uint8)
    labels[:5, :5] = 1
    labels[2, 2, :] = 0  # a tunnel from face to face
    cleaned = clean_segmentation(segmentation(labels), {"a": {"fill": True}})
    assert not cleaned.mask("a")[2, 2].any()


def patients(count: int, islands: Array, sizes: Array, *, true: bool = False) -> tuple[list[Pieces], list[str]]:
    """Answers with one right component of 1000 voxels and one island, which is true or false."""
    pieces = []
    for there, size in zip(islands, sizes, strict=True):
        voxels = np.array([1000, size] if there else [1000])
        right = np.array([900, size if true else 0] if there else [900])
        none = np.zeros(len(voxels), dtype=int)
        pieces.append(Pieces(voxels, voxels, right, none, none, 1000 + (size if there and true else 0), 0.001))
    return pieces, [f"p{n}" for n in range(count)]


def test_false_islands_are_removed_where_most_patients_gain() -> None:
    rng = np.random.default_rng(0)
    pieces, names = patients(20, np.ones(20, bool), rng.integers(20, 80, 20))
    choice = choose_cleaning(pieces, names)
    assert choice.rule == {"largest": True}
    assert choice.gain["better"] == 20
    assert choice.gain["worse"] == 0
    assert choice.gain["mean"] == pytest.approx(0.9 - np.mean([1800 / (2000 + p.voxels[1]) for p in pieces]))
    np.testing.assert_allclose(choice.dice, 0.9)
    assert choose_cleaning(pieces, names, allowed=False).rule == {}


def test_true_islands_stay() -> None:
    pieces, names = patients(20, np.ones(20, bool), np.full(20, 60), true=True)
    choice = choose_cleaning(pieces, names)
    assert choice.rule == {}
    assert choice.gain == {}


def test_a_gain_of_one_patient_in_many_is_noise() -> None:
    islands = np.zeros(20, bool)
    islands[3] = True
    pieces, names = patients(20, islands, np.full(20, 900))
    assert choose_cleaning(pieces, names).rule == {}
    # The same studies as one patient's, seen twenty times over, are one voice.
    some, _ = patients(20, np.ones(20, bool), np.full(20, 60))
    assert choose_cleaning(some, ["p0"] * 20).rule == {}


def test_least_volume_is_chosen_where_large_islands_are_true() -> None:
    small, names = patients(20, np.ones(20, bool), np.random.default_rng(1).integers(10, 30, 20))
    both = [
        Pieces(
            np.r_[p.voxels[:1], 400, p.voxels[1:]],
            np.r_[p.known[:1], 400, p.known[1:]],
            np.r_[p.true[:1], 380, p.true[1:]],
            np.zeros(3, int),
            np.zeros(3, int),
            1400,
            0.001,
        )
        for p in small
    ]
    choice = choose_cleaning(both, names)
    assert list(choice.rule) == ["least_ml"]
    assert max(p.voxels[-1] for p in both) * 0.001 < choice.rule["least_ml"] < 0.4
    np.testing.assert_allclose(choice.dice, 2 * 1280 / 2800)


def test_holes_are_filled_where_the_truth_has_none() -> None:
    def hollow(true: int) -> list[Pieces]:
        one = np.array([1000])
        return [Pieces(one, one, one, np.array([50]), np.array([true]), 1000 + true, np.nan) for _ in range(12)]

    names = [f"p{n}" for n in range(12)]
    assert choose_cleaning(hollow(50), names).rule == {"fill": True}
    assert choose_cleaning(hollow(0), names).rule == {}


def test_a_structure_invented_in_healthy_cases_is_removed_by_volume() -> None:
    none = np.zeros(1, int)
    healthy = [Pieces(np.array([n]), np.array([n]), none, none, none, 0, np.nan) for n in range(5, 15)]
    ill = [Pieces(np.array([500]), np.array([500]), np.array([450]), none, none, 500, np.nan) for _ in range(10)]
    choice = choose_cleaning(healthy + ill, [f"p{n}" for n in range(20)])
    assert choice.rule == {"least_voxels": 15}
    assert np.isnan(choice.dice[:10]).all()
    np.testing.assert_allclose(choice.dice[10:], 0.9)


@pytest.mark.parametrize("seed", [0, 1])
def test_many_scattered_components_are_those_of_the_whole_volume(seed: int) -> None:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(101, 90, 81)), 4)
    mask = (smooth > np.quantile(smooth, 0.985)) & (smooth < np.quantile(smooth, 0.997))  # some are hollow
    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    parts = regions(mask)
    assert count > len(parts) > 5
    together = np.zeros_like(mask)
    for place, part in parts:
        assert not (together[place] & part).any()
        together[place] |= part
    assert (together == mask).all()
    sizes = np.bincount(labels.ravel())[1:]
    least = int(np.median(sizes))
    expected = np.append(False, sizes >= least)[labels]
    filled = ndimage.binary_fill_holes(expected)
    assert filled.sum() > expected.sum()
    one = (Structure("a", (1,)),)
    cleaned = clean_segmentation(segmentation(mask.astype(np.uint8), one), {"a": {"least_ml": least * 0.00245 * 0.999}})
    assert (cleaned.mask("a") == expected).all()
    rule = {"least_ml": least * 0.00245 * 0.999, "fill": True}
    assert (clean_segmentation(segmentation(mask.astype(np.uint8), one), {"a": rule}).mask("a") == filled).all()
    truth = segmentation(ndimage.binary_dilation(mask).astype(np.uint8), one)
    dice = 2 * (filled & truth.mask("a")).sum() / (filled.sum() + truth.mask("a").sum())
    pieces = traced(segmentation(mask.astype(np.uint8), one), truth, "a")
    assert (np.sort(pieces.voxels) == np.sort(sizes)).all()
    assert pieces.dice(rule) == pytest.approx(dice, abs=1e-12)


def test_one_slice_of_a_volume_encloses_nothing() -> None:
    labels = np.zeros((12, 12, 5), dtype=np.uint8)
    labels[2:9, 2:9, 2] = 1
    labels[5, 5, 2] = 0
    assert clean_segmentation(segmentation(labels), {"a": {"fill": True}}).mask("a").sum() == 48
