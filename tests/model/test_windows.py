"""Windows give the answer of the whole array, compute little more than it, and hold little of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sagittal.errors import ConfigError
from sagittal.model.windows import MOST_HELD, Layout, lay_out, run_windows


def small_network(dimensions: int, outputs: int = 3, seed: int = 0) -> nn.Module:
    """Two convolutions that see two voxels far, and pad with zeros at borders."""
    kind = nn.Conv3d if dimensions == 3 else nn.Conv2d
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(kind(1, 6, 3, padding=1), nn.Tanh(), kind(6, outputs, 3, padding=1)).eval()


def answer_of(network: nn.Module, seen: list | None = None, *, doubt: bool = False):
    """The network as windows are answered; the doubt is a map that tells a voxel's value."""

    def answer(windows: np.ndarray):
        if seen is not None:
            seen.extend([windows.shape[1:]] * len(windows))
        with torch.inference_mode():
            logits = network(torch.from_numpy(np.ascontiguousarray(windows, np.float32))).numpy()
        return logits, windows[:, 0].astype(np.float32) if doubt else None

    return answer


def together(slabs, axis: int = 1) -> tuple[np.ndarray, np.ndarray | None]:
    """The slabs as a whole; they must come in order, each plane once."""
    logits, doubts, planes = [], [], 0
    for slab in slabs:
        assert slab.start == planes
        assert slab.logits.dtype == np.float32
        planes += slab.logits.shape[axis]
        logits.append(slab.logits.copy())
        doubts.append(None if slab.doubt is None else slab.doubt.copy())
    whole = None if doubts[0] is None else np.concatenate(doubts)
    return np.concatenate(logits, axis=axis), whole


@pytest.mark.parametrize(
    ("size", "patch", "align"),
    [
        ((50, 41, 37), (16, 16, 16), (4, 4, 4)),
        ((9, 61, 40), (16, 24, 24), (2, 8, 8)),
        ((70, 12, 30), (16, 16, 16), (1, 1, 1)),
        ((67, 90), (24, 20), (4, 4)),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_windows_give_the_answer_of_the_whole_array(size, patch, align, batch):
    network = small_network(len(size))
    array = np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)
    layout = lay_out(size, patch, overlap=0.5, align=align)
    assert layout.count > 1
    seen = []
    found, doubt = together(run_windows(answer_of(network, seen, doubt=True), array, layout, batch=batch))
    np.testing.assert_allclose(found, answer_of(network)(array[None])[0][0], atol=2e-6)
    np.testing.assert_allclose(doubt, array[0], atol=2e-6)
    assert set(seen) == {(1, *layout.window)}  # one shape: engines compile for each
    assert len(seen) == layout.count


def test_a_border_that_saw_padding_has_no_say():
    # A network that answers wildly within two voxels of its window's border, and right elsewhere.
    def answer(windows):
        wild = np.full((len(windows), 1, *windows.shape[2:]), 1e6, np.float32)
        wild[(..., *(slice(2, n - 2) for n in windows.shape[2:]))] = 1
        return wild, None

    layout = lay_out((60, 50), (20, 20), overlap=0.4)
    found, _ = together(run_windows(answer, np.random.default_rng(0).normal(size=(1, 60, 50)), layout))
    np.testing.assert_allclose(found[0, 2:-2, 2:-2], 1, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16, 16), (5, 16, 12), (3, 7, 2), (24, 24, 24)])
def test_what_one_window_covers_is_neither_padded_nor_cut(size):
    seen = []
    layout = lay_out(size, (16, 16, 16), overlap=0.5, align=(8, 8, 8))
    array = np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)
    slabs = list(run_windows(answer_of(small_network(3), seen), array, layout))
    assert seen == [(1, *size)]
    assert len(slabs) == 1
    assert layout.work == 1


def test_a_thin_volume_is_never_padded_to_a_window():
    layout = lay_out((7, 300, 280), (64, 128, 128), overlap=0.25, align=(8, 16, 16))
    assert layout.window[0] == 7
    assert layout.starts[0] == (0,)


def test_the_benchmark_volume_is_computed_little_more_than_once():
    # MONAI's layout at an overlap of one half: 2 x 5 x 5 windows of 96^3, 6.8 times the voxels.
    layout = lay_out((100, 256, 256), (96, 96, 96), overlap=0.25, align=(16, 16, 16))
    assert layout.work < 1.3
    assert layout.window[0] == 100


def test_memory_limits_what_windows_grow():
    free = lay_out((600, 512, 512), (128, 128, 128), overlap=0.25)
    many = lay_out((600, 512, 512), (128, 128, 128), overlap=0.25, outputs=21)
    assert free.window[0] > 128
    assert many.window[0] <= 128  # a deeper window would mean a deeper accumulator
    assert 21 * many.depth * 512 * 512 < 3 * MOST_HELD
    assert np.prod(many.window) <= 2_500_000 * 1.1
    assert np.prod(lay_out((600, 512, 512), (128, 128, 128), overlap=0.25, most=1).window) <= 128**3


@settings(max_examples=150, deadline=None)
@given(
    size=st.lists(st.integers(1, 200), min_size=2, max_size=3),
    patch=st.integers(4, 90),
    overlap=st.sampled_from([0, 0.1, 0.25, 0.5, 0.8]),
    align=st.sampled_from([1, 4, 16]),
    stride=st.sampled_from([1, 2, 4]),
)
def test_windows_reach_everywhere_and_overlap_as_asked(size, patch, overlap, align, stride):
    d = len(size)
    layout = lay_out(size, (patch,) * d, overlap=overlap, align=(align,) * d, stride=stride)
    for axis, n in enumerate(size):
        starts, window = layout.starts[axis], layout.window[axis]
        assert starts[0] == 0
        assert starts[-1] + window == n
        assert all(s % stride == 0 for s in starts)
        if n <= patch:
            assert (starts, window) == ((0,), n)
        shared = min(int(overlap * patch), window - stride)
        assert all(0 < b - a <= window - shared + stride for a, b in itertools.pairwise(starts))
        seams = layout.seams(axis)
        assert all(0 <= a <= b for a, b in seams)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(seams))


@settings(max_examples=60, deadline=None)
@given(
    size=st.lists(st.integers(1, 40), min_size=2, max_size=3),
    patch=st.integers(5, 16),
    overlap=st.sampled_from([0, 0.25, 0.5, 0.7]),
    stride=st.sampled_from([1, 2, 4]),
)
def test_every_cell_of_the_map_comes_once_and_weights_sum_to_one(size, patch, overlap, stride):
    # The answer of each cell is its own number: any gap, doubled plane or weight that is off would change it.
    layout = lay_out(size, (patch,) * len(size), overlap=overlap, stride=stride)
    array = np.arange(np.prod(size), dtype=np.float64).reshape(1, *size)
    picked = (slice(None), slice(None), *(slice(None, None, stride),) * len(size))
    found, _ = together(run_windows(lambda w: (w[picked].astype(np.float32), None), array, layout, batch=2))
    np.testing.assert_allclose(found, array[picked[1:]], rtol=1e-5)
    assert found.shape[1:] == layout.map_size


def test_air_is_skipped_and_the_answer_is_the_same():
    network, seen = small_network(3), []
    array = np.full((1, 60, 60, 60), -1000.0, np.float32)
    array[0, 20:30, 5:20, 10:22] = np.random.default_rng(0).normal(size=(10, 15, 12))
    layout = lay_out(array.shape[1:], (16, 16, 16), overlap=0.5, growth=1)
    found, _ = together(run_windows(answer_of(network, seen), array, layout))
    np.testing.assert_allclose(found, answer_of(network)(array[None])[0][0], atol=5e-4)
    assert len(seen) < 0.4 * layout.count


def test_nothing_but_the_lowest_value_of_every_channel_is_air():
    seen = []
    array = np.zeros((2, 40, 40), np.uint8)
    array[1] = 7  # the second channel's lowest value is its own
    array[1, 39, 39] = 9

    def answer(windows):
        seen.append(windows.copy())
        return windows[:, 1:].astype(np.float32), None

    layout = lay_out((40, 40), (16, 16), overlap=0.25, growth=1)
    found, _ = together(run_windows(answer, array, layout))
    np.testing.assert_allclose(found[0], array[1], rtol=1e-6)
    assert len(seen) == 2  # the corner, and one for all others
    full = np.full((1, 40, 40), 3, np.uint8)
    full[0, 0, 0] = 2  # now 3 is not the lowest: a flat part of the body is not air
    list(run_windows(answer, np.concatenate([full, full]), layout))
    assert len(seen) == 2 + layout.count


def test_only_a_window_of_planes_is_held():
    layout = lay_out((200, 40, 40), (16, 40, 40), overlap=0.5, growth=1)
    assert layout.depth <= 16
    held = []
    for slab in run_windows(lambda w: (w.astype(np.float32), None), np.ones((1, 200, 40, 40)), layout):
        base = slab.logits.base
        held.append((slab.logits if base is None else base).shape[1])
    assert max(held) <= 16


def test_slabs_are_given_as_soon_as_they_are_done():
    answered = []

    def answer(windows):
        answered.append(len(windows))
        return windows.astype(np.float32), None

    layout = lay_out((100, 20), (20, 20), overlap=0.25, growth=1)
    slabs = run_windows(answer, np.random.default_rng(0).normal(size=(1, 100, 20)), layout)
    next(slabs)
    assert len(answered) == 1 < layout.count


@pytest.mark.parametrize("overlap", [-0.1, 1.0])
def test_an_overlap_outside_its_range_is_refused(overlap):
    with pytest.raises(ConfigError, match="decide.overlap is at least 0 and below 1"):
        lay_out((10, 10), (5, 5), overlap=overlap)


def test_a_patch_of_other_dimensions_is_refused():
    with pytest.raises(ConfigError, match=r"windows of \(5, 5\) do not fit an array of \(10, 10, 10\)"):
        lay_out((10, 10, 10), (5, 5), overlap=0.5)


def test_work_and_count():
    layout = Layout((100, 60), (40, 60), ((0, 30, 60), (0,)))
    assert (layout.count, layout.work) == (3, 1.2)
