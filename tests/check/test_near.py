"""Copies that were encoded again, resized, mirrored or turned are found, and look-alikes are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image as Pillow

from sagittal.check.descriptor import FREQUENCIES, cosines, describe, in_space, turn, turns
from sagittal.check.near import find_near, least_similarity


def described(make_image, pictures):
    found = [describe(make_image(picture)) for picture in pictures]
    assert all(one is not None for one in found)
    sides = [min(n for n in picture.shape if n != 3) for picture in pictures]
    return np.stack(found), sides


def jpeg(pixels, quality):
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Pillow.open(file))


def resize(pixels, factor, how=Pillow.Resampling.BICUBIC):
    size = round(pixels.shape[1] * factor), round(pixels.shape[0] * factor)
    return np.asarray(Pillow.fromarray(pixels).resize(size, how))


COPIES = {
    "jpeg 50": lambda p: jpeg(p, 50),
    "jpeg 95": lambda p: jpeg(p, 95),
    "half": lambda p: resize(p, 0.5),
    "double": lambda p: resize(p, 2, Pillow.Resampling.BILINEAR),
    "left-right": lambda p: p[:, ::-1],
    "upside down": lambda p: p[::-1],
    "turned": np.rot90,
    "transposed": lambda p: p.T,
    "brighter": lambda p: np.clip(p * 1.15 + 8, 0, 255).astype(np.uint8),
    "everything": lambda p: jpeg(resize(np.ascontiguousarray(p[:, ::-1]), 0.6), 60),
}


@pytest.mark.parametrize("kind", COPIES)
def test_each_kind_of_copy_is_found_and_nothing_else(make_pixels, make_image, kind):
    originals = [make_pixels(n, (96, 128)) for n in range(40)]
    copies = [COPIES[kind](picture) for picture in originals[:20]]
    found = find_near(*described(make_image, [*originals, *copies]))
    assert {(pair.first, pair.second) for pair in found} == {(n, 40 + n) for n in range(20)}
    turned = kind in {"left-right", "upside down", "turned", "transposed", "everything"}
    assert all(pair.turned == turned for pair in found)
    assert all(0.92 <= pair.similarity <= 1 for pair in found)


def test_look_alikes_are_told_apart_by_what_sets_them_apart(make_pixels, make_image):
    """Radiographs of one region share most of their structure: 85 % of the contrast here is common to all."""
    common = make_pixels(1000, (128, 128)).astype(float)
    pictures = [(0.85 * common + 0.15 * make_pixels(n, (128, 128))).astype(np.uint8) for n in range(60)]
    plain = np.corrcoef([picture.ravel() for picture in pictures])
    assert plain[np.triu_indices(60, 1)].min() > 0.9  # by plain correlation each would be a copy of each
    assert find_near(*described(make_image, pictures)) == []
    found = find_near(*described(make_image, [*pictures, jpeg(pictures[7], 60), pictures[9][:, ::-1]]))
    assert [(pair.first, pair.second) for pair in found] in ([(7, 60), (9, 61)], [(9, 61), (7, 60)])


def test_colour_counts_by_luminance(make_pixels, make_image):
    colour = np.stack([make_pixels(n, (64, 64)) for n in range(3)], axis=-1)
    grey = np.asarray(Pillow.fromarray(colour).convert("L"))
    others = [make_pixels(10 + n, (64, 64)) for n in range(5)]
    found = find_near(*described(make_image, [colour, grey, *others]))
    assert [(pair.first, pair.second) for pair in found] == [(0, 1)]


@pytest.mark.parametrize(
    "copy",
    [
        lambda v: v[:, ::-1],
        lambda v: v[::-1, :, ::-1],
        lambda v: v.transpose(2, 0, 1),
        lambda v: v.repeat(2, axis=0).repeat(2, axis=1),
        lambda v: np.stack([jpeg(plane, 70) for plane in v]),
    ],
)
def test_copies_of_volumes(make_pixels, make_image, copy):
    volumes = [make_pixels(n, (24, 36, 40)) for n in range(12)]
    found = find_near(*described(make_image, [*volumes, copy(volumes[3])]))
    assert [(pair.first, pair.second) for pair in found] == [(3, 12)]


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((64, 64), 9, np.uint8),
        np.pad(np.full((3, 3), 255, np.uint8), ((30, 31), (30, 31))),  # a mark on black
    ],
)
def test_an_image_without_content_has_no_descriptor(make_image, pixels):
    assert describe(make_image(pixels)) is None


def test_voxels_that_are_not_finite_do_not_count(make_pixels, make_image):
    pixels = make_pixels(0, (64, 64)).astype(np.float32)
    pixels[3, 4] = np.nan
    pixels[5, 6] = np.inf
    assert np.isfinite(describe(make_image(pixels))).all()
    assert describe(make_image(np.full((64, 64), np.nan, np.float32))) is None


def test_tiny_images_are_left_alone(make_pixels, make_image):
    picture = make_pixels(0, (10, 10))
    assert find_near(*described(make_image, [picture, picture[:, ::-1]])) == []
    assert find_near(np.zeros((0, 32, 32), np.float16), []) == []
    assert find_near(*described(make_image, [make_pixels(0, (64, 64))])) == []


def test_descriptors_turn_as_images_do(make_pixels, make_image):
    """Turning the frequencies is turning the picture, for all 8 turns of a picture and 48 of a volume."""
    for shape in ((48, 48), (20, 20, 20)):
        pixels = make_pixels(2, shape)
        mine = describe(make_image(pixels)).astype(np.float32)
        assert len(turns(len(shape))) == {2: 8, 3: 48}[len(shape)]
        for order, flips in turns(len(shape)):
            # The descriptor's axes are (i, j, k), the pixels' (k, j, i).
            moved = np.transpose(pixels.T, order)
            moved = moved[tuple(slice(None, None, -1 if flip else 1) for flip in flips)].T
            there = describe(make_image(np.ascontiguousarray(moved))).astype(np.float32)
            np.testing.assert_allclose(turn(mine[np.newaxis], (order, flips))[0], there, atol=2e-3)


def test_frequencies_of_a_pure_cosine():
    """Against scipy's orthonormal DCT-II, which differs by the square root of the length."""
    from scipy.fft import dct

    values = np.random.default_rng(0).normal(size=50)
    np.testing.assert_allclose(cosines(50, 32) @ values, dct(values, norm="ortho")[:32] / np.sqrt(50), atol=1e-6)
    assert not cosines(5, 32)[5:].any()


def test_what_was_described_comes_back_in_space(make_pixels, make_image):
    """The low frequencies, weighting undone, are the picture again, as far as 32 cosines go."""
    from sagittal.check.descriptor import distance

    y, x = np.mgrid[:64, :64] / 64
    smooth = np.cos(2 * np.pi * x) + 0.5 * np.cos(3 * np.pi * y) * np.cos(np.pi * x)
    smooth = (100 + 60 * smooth / np.abs(smooth).max()).astype(np.float32)
    found = describe(make_image(smooth)).astype(np.float32) / np.maximum(distance(FREQUENCIES[2], 2), 1)
    back = in_space(found[np.newaxis])[0].T
    assert np.corrcoef(back.ravel(), smooth[::2, ::2].ravel())[0, 1] > 0.99


def test_equal_frames_do_not_fill_the_memory(make_pixels, make_image):
    """Of 300 frames of one loop no more pairs are kept than can be told."""
    rng = np.random.default_rng(0)
    base = make_pixels(0, (64, 64)).astype(float)
    frames = [np.clip(base + rng.normal(0, 3, base.shape), 0, 255).astype(np.uint8) for _ in range(300)]
    others = [make_pixels(1 + n, (64, 64)) for n in range(300)]
    found = find_near(*described(make_image, [*frames, *others]))
    assert 299 <= len(found) <= 300 * 40 * 8
    assert {n for pair in found for n in (pair.first, pair.second)} == set(range(300))


def test_fewer_frequencies_must_agree_more():
    limits = [least_similarity(n) for n in range(5, 20)]
    assert limits == sorted(limits, reverse=True)
    assert (limits[0], limits[-1]) == (0.975, 0.92)


def test_real_copies_in_official_splits(bench_data):
    """BreastMNIST holds scans twice: counted here by plain correlation of the pixels, which its look-alikes do not reach."""
    stored = np.load(bench_data / "medmnist" / "breastmnist.npz")["test_images"].astype(np.float32)
    from sagittal.grid import Grid
    from sagittal.image import Image

    images = [Image(p.T[np.newaxis, :, :, np.newaxis], Grid((28, 28, 1)), bits=8) for p in stored]
    found = {
        (pair.first, pair.second) for pair in find_near(np.stack([describe(i) for i in images]), [28] * len(images))
    }
    plain = np.triu(np.corrcoef(stored.reshape(len(stored), -1)), 1)
    certain = {(int(a), int(b)) for a, b in np.argwhere(plain > 0.99)}
    assert certain
    assert certain <= found
    assert min(plain[a, b] for a, b in found) > 0.95
