"""Overlays: the right voxels have the right colours, whatever the shape and the spacing."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pictures

from sagittal.case import Case
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.prediction import Detections, Prediction
from sagittal.truth import Boxes
from sagittal.write.overlay import draw_boxes, draw_mask
from sagittal.write.terminology import Terminology


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Pictures.open(io.BytesIO(png)).convert("RGB"))


def share_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(pixels.astype(int) - colour) <= 2).all(axis=-1)


def test_outline_of_a_picture_lies_on_the_mask(found_mask: Callable[..., Prediction]) -> None:
    grid = Grid((60, 40, 1))
    prediction = found_mask("s", grid, ("liver", "gizmo", "cyst", "spleen"), overlapping=False)
    image = Image(np.full((1, 60, 40, 1), 100, np.float32), grid, bits=8)
    pixels = pixels_of(draw_mask(prediction, image))
    factor = 12  # 40 pixels become 480
    assert pixels.shape[1] == 60 * factor
    drawn = pixels[: 40 * factor]
    liver = Terminology().find("liver").colour
    mask = prediction.finding.segmentation.mask("liver")[..., 0].T.repeat(factor, axis=0).repeat(factor, axis=1)
    edge = share_of(drawn, liver)
    assert edge.any()
    assert not edge[~mask].any()
    # Every pixel beside the outside is outline, and the inside is only tinted.
    inner = mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
    rim = mask & ~inner
    rim[0] = rim[-1] = False
    rim[:, 0] = rim[:, -1] = False
    assert edge[rim].mean() > 0.99
    tinted = np.rint(0.7 * 100 + 0.3 * np.array(liver))
    assert (np.abs(drawn[mask & ~edge] - tinted) <= 1).all(axis=-1).mean() > 0.99
    assert (
        drawn[~mask & ~prediction.finding.segmentation.mask("gizmo")[..., 0].T.repeat(factor, 0).repeat(factor, 1)]
        == 100
    ).all()


def test_a_volume_has_the_proportions_of_the_patient(
    study: Callable[..., Case], found_mask: Callable[..., Prediction]
) -> None:
    case = study((40, 30, 6))
    image = case.image()  # 0.5 x 0.7 x 2.5 mm
    pixels = pixels_of(draw_mask(found_mask(case.id, image.grid), image))
    # Three panels of 360 pixels at the longer side: 20 x 21 mm, 20 x 15 mm, 21 x 15 mm.
    assert pixels.shape[1] == pytest.approx(343 + 360 + 360 + 12, abs=3)


def test_colours_stay(found_mask: Callable[..., Prediction]) -> None:
    grid = Grid((50, 50, 1))
    image = Image(np.random.default_rng(0).integers(0, 255, (3, 50, 50, 1)).astype(np.float32), grid, bits=8)
    empty = found_mask("s", grid, overlapping=False)
    empty = replace(
        empty,
        finding=replace(
            empty.finding, segmentation=replace(empty.finding.segmentation, layers=np.zeros((1, 50, 50, 1), np.uint8))
        ),
    )
    pixels = pixels_of(draw_mask(empty, image))[:500, :500]
    np.testing.assert_array_equal(pixels[5::10, 5::10], image.data[..., 0].transpose(2, 1, 0))


def test_boxes_stand_where_they_are(found_boxes: Callable[..., Prediction]) -> None:
    grid = Grid((60, 48, 1))
    prediction = found_boxes("s", grid)
    image = Image(np.full((1, 60, 48, 1), 30, np.float32), grid, bits=8)
    pixels = pixels_of(draw_boxes(prediction, image))[: 48 * 10]
    nodule = Terminology().find_all(prediction.scheme.classes)[0].colour
    drawn = share_of(pixels, nodule)
    # The box reaches from pixel 3 to 8 and 4 to 9: 30 to 90 and 40 to 100 in the picture.
    assert drawn[40:101, 30:32].all(axis=0).any()
    assert drawn[98:101, 30:91].all(axis=1).any()
    assert not drawn[102:, :].any()
    assert not drawn[:, 200:].any()


def test_a_volume_shows_a_slice_for_each_box(
    study: Callable[..., Case], found_boxes: Callable[..., Prediction]
) -> None:
    case = study((40, 30, 9))
    image = case.image()
    prediction = found_boxes(case.id, image.grid)
    two = pixels_of(draw_boxes(prediction, image))
    none = Detections(Boxes(np.zeros((0, 2, 3)), []), np.zeros(0), image.grid, np.zeros(0, bool))
    one = pixels_of(draw_boxes(replace(prediction, finding=none), image))
    assert two.shape[1] == pytest.approx(2 * one.shape[1] + 6, abs=1)
    assert not share_of(one[:380], Terminology().find("lung nodule").colour).any()


def test_a_large_picture_is_reduced(found_mask: Callable[..., Prediction]) -> None:
    grid = Grid((3000, 2500, 1))
    image = Image(np.zeros((1, 3000, 2500, 1), np.float32), grid, bits=8)
    assert pixels_of(draw_mask(found_mask("s", grid, overlapping=False), image)).shape[1] == 2048


def test_a_thin_line_is_seen_when_a_picture_is_reduced(found_mask: Callable[..., Prediction]) -> None:
    grid = Grid((4099, 300, 1))
    prediction = found_mask("s", grid, ("vessel", "gizmo", "cyst", "spleen"), overlapping=False)
    layers = np.zeros((1, *grid.shape), np.uint8)
    layers[0, 1001, :] = 1
    segmentation = replace(prediction.finding.segmentation, layers=layers)
    image = Image(np.zeros((1, *grid.shape), np.float32), grid, bits=8)
    drawn = draw_mask(replace(prediction, finding=replace(prediction.finding, segmentation=segmentation)), image)
    assert share_of(pixels_of(drawn)[:140], Terminology().find("vessel").colour).any(axis=1).all()
