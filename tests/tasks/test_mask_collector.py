"""Masks come back to the grid of their study, whatever its spacing, and without a volume a class in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from sagittal.errors import DataError
from sagittal.grid import Grid
from sagittal.labels import LabelScheme
from sagittal.prepare.lattice import Lattice
from sagittal.prepare.resample import resize
from sagittal.tasks.mask_collector import MaskCollector

TWO = LabelScheme("structures", ("liver", "spleen"))
#: Tilted, and much longer along k.
TILTED = np.array([[0.56, -0.42, 2.4, 10], [0.252, 0.336, 3.2, -20], [0.336, 0.448, -2.6, 30], [0, 0, 0, 1]])


def smooth_logits(outputs: int, size: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack(
        [8 * ndimage.gaussian_filter(rng.normal(size=size), 1.5).astype(np.float32) for _ in range(outputs)]
    )


def feed(collector: MaskCollector, logits: np.ndarray, doubt: np.ndarray | None = None, step: int = 3):
    for start in range(0, logits.shape[1], step):
        part = slice(start, start + step)
        collector.add(start, logits[:, part], None if doubt is None else doubt[part])
    return collector.finish()


def on_grid(lattice: Lattice, box: np.ndarray) -> np.ndarray:
    """A map on the box of the study, (..., network order), on its grid (..., I, J, K)."""
    study = lattice.grid.shape[::-1][3 - lattice.dimensions :]
    whole = np.zeros((*box.shape[: box.ndim - lattice.dimensions], *study), box.dtype)
    whole[(..., *(slice(s, s + e) for s, e in zip(lattice.start, lattice.extent, strict=True)))] = box
    lead = box.ndim - lattice.dimensions
    axes = (*range(lead), *reversed(range(lead, whole.ndim)))
    turned = whole.transpose(axes)
    return turned if lattice.dimensions == 3 else turned[..., None]


LATTICES = {
    "as it is": Lattice.of(Grid((9, 11, 7), TILTED), 3),
    "cropped": Lattice(Grid((19, 21, 17), TILTED), (7, 11, 9), (4, 5, 6), (7, 11, 9)),
    "enlarged": Lattice(Grid((29, 31, 17), TILTED), (7, 12, 10), (2, 3, 4), (13, 25, 24)),
    "shrunk along k": Lattice(Grid((20, 21, 5), TILTED), (23, 21, 14), (0, 0, 0), (5, 21, 20)),
    "one plane": Lattice(Grid((20, 21, 1), TILTED), (3, 9, 11), (0, 0, 0), (1, 21, 20)),
    "picture": Lattice(Grid((30, 26, 1)), (12, 16), (2, 1), (24, 29)),
    "picture as it is": Lattice.of(Grid((9, 7, 1)), 2),
}


@pytest.mark.parametrize("name", LATTICES)
@pytest.mark.parametrize("step", [1, 4, 100])
def test_exclusive_labels_are_the_largest_of_resampled_logits(name, step):
    lattice = LATTICES[name]
    logits = smooth_logits(3, lattice.size)
    mask = feed(MaskCollector(TWO, "exclusive", lattice), logits, step=step)
    expected = on_grid(lattice, resize(logits, lattice.extent).argmax(axis=0).astype(np.uint8))
    assert mask.segmentation.layers.shape == (1, *lattice.grid.shape)
    assert mask.segmentation.layers.dtype == np.uint8
    np.testing.assert_array_equal(mask.segmentation.layers[0], expected)
    assert set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_array_equal(mask.segmentation.mask("spleen"), expected == 2)


@pytest.mark.parametrize("name", LATTICES)
@pytest.mark.parametrize("structures", [2, 11])
def test_independent_structures_hold_where_their_logit_is_positive(name, structures):
    lattice = LATTICES[name]
    logits = smooth_logits(structures, lattice.size)
    scheme = LabelScheme("structures", tuple(f"s{n}" for n in range(structures)))
    mask = feed(MaskCollector(scheme, "independent", lattice), logits)
    held = on_grid(lattice, resize(logits, lattice.extent) > 0)
    for number, name_of in enumerate(scheme.classes):
        np.testing.assert_array_equal(mask.segmentation.mask(name_of), held[number])


def test_structures_that_do_not_overlap_share_a_layer():
    logits = np.full((3, 4, 5, 6), -5.0, np.float32)
    logits[0, 0], logits[1, 2:], logits[2, 1:3] = 5, 5, 5
    scheme = LabelScheme("structures", ("a", "b", "c"))
    mask = feed(MaskCollector(scheme, "independent", Lattice.of(Grid((6, 5, 4), TILTED), 3)), logits)
    assert [s.layer for s in mask.segmentation.structures] == [0, 0, 1]
    assert [mask.segmentation.mask(n).sum() for n in "abc"] == [30, 60, 60]


def test_enlarged_labels_are_those_of_scipy():
    # An independent reference: scipy's linear zoom with the same edges (grid mode) and the edge value beyond them.
    lattice = Lattice(Grid((24, 20, 18), TILTED), (6, 8, 9), (1, 2, 3), (15, 16, 18))
    logits = smooth_logits(3, lattice.size, seed=3)
    factors = np.divide(lattice.extent, lattice.size)
    zoomed = np.stack([ndimage.zoom(v, factors, order=1, grid_mode=True, mode="nearest") for v in logits])
    expected = on_grid(lattice, zoomed.argmax(axis=0).astype(np.uint8))
    mask = feed(MaskCollector(TWO, "exclusive", lattice), logits)
    found = mask.segmentation.layers[0]
    second, first = np.sort(zoomed, axis=0)[-2:]
    tied = on_grid(lattice, (first - second < 1e-5).astype(np.uint8))  # rounding alone may decide there
    np.testing.assert_array_equal(found[tied == 0], expected[tied == 0])
    assert tied.sum() < 20


def test_probability_and_doubt_come_to_the_grid():
    lattice = LATTICES["enlarged"]
    logits, doubt = smooth_logits(3, lattice.size), smooth_logits(1, lattice.size, seed=5)[0]
    doubt = (doubt - doubt.min()) / np.ptp(doubt)
    mask = feed(MaskCollector(TWO, "exclusive", lattice, probability=True), logits, doubt)
    odds = np.exp(resize(logits, lattice.extent).astype(np.float64))
    for name, p in zip(TWO.classes, (odds / odds.sum(axis=0))[1:], strict=True):
        assert mask.probability[name].dtype == np.uint8
        difference = mask.probability[name] - 255 * on_grid(lattice, p)
        assert np.abs(difference).max() < 0.51
    assert mask.doubt is not None
    assert np.abs(mask.doubt - 255 * on_grid(lattice, resize(doubt, lattice.extent))).max() < 0.51


@pytest.mark.parametrize("name", ["as it is", "enlarged", "picture"])
def test_independent_probability_is_the_sigmoid(name):
    lattice = LATTICES[name]
    logits = smooth_logits(2, lattice.size)
    mask = feed(MaskCollector(TWO, "independent", lattice, probability=True), logits)
    p = 1 / (1 + np.exp(-resize(logits, lattice.extent).astype(np.float64)))
    for number, name_of in enumerate(TWO.classes):
        assert np.abs(mask.probability[name_of] - 255 * on_grid(lattice, p[number])).max() < 0.51
    assert mask.doubt is None


def test_expected_dice_is_the_soft_dice_of_the_mask():
    lattice = Lattice.of(Grid((2, 1, 2), TILTED), 3)
    p = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.1, 0.5, 0.4]])
    mask = feed(MaskCollector(TWO, "exclusive", lattice), np.log(p).T.reshape(3, 2, 1, 2))
    assert mask.expected_dice["liver"] == pytest.approx(2 * 1.8 / (3 + 1.9), abs=1e-6)
    assert np.isnan(mask.expected_dice["spleen"])  # not found, and hardly believed: less than one voxel
    many = np.log(np.repeat([[0.6, 0.0, 0.4]], 4, axis=0) + 1e-9).T.reshape(3, 2, 1, 2)
    assert feed(MaskCollector(TWO, "exclusive", lattice), many).expected_dice["spleen"] == 0


def test_expected_dice_of_independent_structures():
    lattice = Lattice.of(Grid((2, 1, 2), TILTED), 3)
    p = np.array([[0.8, 0.6, 0.3, 0.1], [0.1, 0.1, 0.1, 0.1]])
    mask = feed(MaskCollector(TWO, "independent", lattice), np.log(p / (1 - p)).reshape(2, 2, 1, 2))
    assert mask.expected_dice["liver"] == pytest.approx(2 * 1.4 / (2 + 1.8), abs=1e-6)
    assert np.isnan(mask.expected_dice["spleen"])


def test_planes_must_come_in_order_and_all():
    lattice = LATTICES["as it is"]
    logits = smooth_logits(3, lattice.size)
    collector = MaskCollector(TWO, "exclusive", lattice)
    collector.add(0, logits[:, :3])
    with pytest.raises(DataError, match="expected planes from 3 of 7 with 3 outputs, found 3 outputs from 4 to 6"):
        collector.add(4, logits[:, 4:6])
    with pytest.raises(DataError, match="only 3 of 7 planes were added"):
        collector.finish()
    with pytest.raises(DataError, match="found 2 outputs"):
        collector.add(3, logits[:2, 3:])


def test_the_caller_may_reuse_its_array():
    lattice = LATTICES["enlarged"]
    logits, doubt = smooth_logits(3, lattice.size), np.full(lattice.size, 0.5, np.float32)
    expected = feed(MaskCollector(TWO, "exclusive", lattice), logits, doubt)
    collector = MaskCollector(TWO, "exclusive", lattice)
    for start in range(lattice.size[0]):
        part, beside = logits[:, start : start + 1].copy(), doubt[start : start + 1].copy()
        collector.add(start, part, beside)
        part[:], beside[:] = np.nan, np.nan
    found = collector.finish()
    np.testing.assert_array_equal(found.segmentation.layers, expected.segmentation.layers)
    np.testing.assert_array_equal(found.doubt, expected.doubt)


@pytest.mark.parametrize("outputs", ["exclusive", "independent"])
def test_memory_stays_far_below_classes_times_volume(outputs):
    lattice = Lattice(Grid((192, 160, 90), TILTED), (45, 80, 96), (0, 0, 0), (90, 160, 192))
    names = tuple(f"s{n}" for n in range(20))
    background = [np.zeros((1, 3, 80, 96), np.float32)] if outputs == "exclusive" else []
    slab = np.concatenate([np.full((20, 3, 80, 96), -4, np.float32), *background])
    for n in range(20):  # bars side by side
        slab[n + len(background), :, 4 * n : 4 * n + 3, 20:60] = 4
    tracemalloc.start()
    collector = MaskCollector(LabelScheme("structures", names), outputs, lattice)
    for start in range(0, 45, 3):
        collector.add(start, slab)
    mask = collector.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(mask.segmentation.layers) == 1
    assert peak < 0.2 * 20 * 192 * 160 * 90 * 4
