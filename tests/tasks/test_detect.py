"""Detection from stored truth to a trained network's boxes, in pictures and volumes, as training will call it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sagittal.case import Case, ImageSource
from sagittal.errors import ConfigError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.networks.heads import Head
from sagittal.prepare.lattice import Lattice
from sagittal.prepare.plan import AugmentPlan, DecidePlan, InputPlan, NetworkPlan, Plan, TrainPlan
from sagittal.prepare.warp import Warp, draw_warp, sample_images
from sagittal.tasks.detect import Detect
from sagittal.tasks.detect_settle import OperatingPoint
from sagittal.tasks.detect_target import centres_of
from sagittal.tasks.registry import make_place_task
from sagittal.truth import Boxes, Segmentation, SegmentationSource, Structure

DISCS = LabelScheme("objects", ("bright", "dark"))


def discs(rng, size):
    """An array (1, *size) of noise with bright and dark balls, and its stored truth."""
    d = len(size)
    array = rng.normal(0, 0.3, size).astype(np.float32)
    lines = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), axis=-1)
    rows = []
    for label in (0, 1, 0, 1):
        radius = rng.uniform(3, 5)
        centre = rng.uniform(radius, np.asarray(size) - 1 - radius)
        if any(np.linalg.norm(centre - (other[:d] + other[d : 2 * d]) / 2) < 11 for other in rows):
            continue
        array[((lines - centre) ** 2).sum(axis=-1) < radius**2] += 2 - 4 * label
        rows.append(np.concatenate([centre - radius, centre + radius, [label, 0]]))
    return array[None], np.array(rows, dtype=np.float32)


class Small(nn.Sequential):
    """A few convolutions down to cells of 2 voxels that each see some 30 voxels."""

    def __init__(self, d, outputs):
        conv, pool = (nn.Conv2d, nn.AvgPool2d) if d == 2 else (nn.Conv3d, nn.AvgPool3d)
        norm = nn.BatchNorm2d if d == 2 else nn.BatchNorm3d
        parts = [pool(2)]
        for n, dilation in enumerate((1, 2, 3)):
            parts += [conv(12 if n else 1, 12, 3, padding=dilation, dilation=dilation), norm(12), nn.ReLU()]
        super().__init__(*parts, conv(12, outputs, 1))


@pytest.mark.parametrize(("d", "size", "steps"), [(2, (40, 40), 100), (3, (24, 24, 24), 60)])
def test_a_small_network_learns_to_find_discs(d, size, steps):
    rng = np.random.default_rng(d)
    task = Detect(DISCS, dimensions=d, stride=2)
    train, fresh = ([discs(rng, size) for _ in range(n)] for n in (60, 20))
    torch.manual_seed(0)
    network = Small(d, task.head.outputs)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    plan = AugmentPlan(flip=tuple(range(d)), scale=0.2, translate=0.05)
    for _ in range(steps):
        chosen = [train[n] for n in rng.integers(len(train), size=8)]
        warp = draw_warp(plan, size, np.tile((np.asarray(size) - 1) / 2, (8, 1)), rng)
        target = task.draw([boxes for _, boxes in chosen], warp)
        loss = task.loss([network(sample_images([array for array, _ in chosen], warp))], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    lattice = Lattice.of(Grid((*size[::-1], 1)[:3]), d)
    straight = Warp.straight(size, np.tile((np.asarray(size) - 1) / 2, (20, 1)))
    answers, tally = [], 0
    with torch.no_grad():
        output = network(torch.from_numpy(np.stack([array for array, _ in fresh])))
    target = task.draw([boxes for _, boxes in fresh], straight)
    tally = sum(task.tally(output[part], target[part]) for part in (slice(0, 7), slice(7, 20)))
    quick = task.monitor(tally)
    for number, (answer, (_, boxes)) in enumerate(zip(output.numpy(), fresh, strict=True)):
        collector = task.collector(lattice)
        collector.add(0, answer)
        low, high = lattice.to_study(boxes[:, :d]), lattice.to_study(boxes[:, d : 2 * d])
        if d == 2:
            low[:, 2], high[:, 2] = -0.5, 0.5
        truth = Boxes(np.stack([low, high], axis=1), boxes[:, -2].astype(int))
        answers.append((collector.finish(), Case(f"c{number}", f"p{number}", {}, truth=truth)))
    settled = task.settle(answers)
    first = next(iter(quick))
    assert first == ("ap50" if d == 2 else "ap10")
    assert settled["validation"]["average_precision"] > 0.85
    # The quick score is that of the whole way, but for its steps and the cut at the window's edge.
    assert quick[first] == pytest.approx(settled["validation"]["average_precision"], abs=0.06)
    assert quick["f1"] > 0.8


@pytest.mark.parametrize("d", [2, 3])
def test_a_mirrored_view_says_the_same_after_its_outputs_change_places(d):
    task = Detect(DISCS, dimensions=d, stride=2)
    size = (20, 24, 28)[:d]
    rows = np.array([[*[4.3] * d, *np.arange(9, 9 + d), 1, 0]], dtype=np.float32)
    middle = (np.asarray(size) - 1) / 2
    plain = task.draw([rows], Warp.straight(size, middle[None]))[0]
    for axis in range(d):
        matrix = np.eye(d)
        matrix[axis, axis] = -1
        mirrored = task.draw([rows], Warp(size, middle[None], matrix[None]))[0]
        outputs = mirrored[: task.head.outputs].flip(axis + 1)[list(task.head.mirror[axis])]
        learned = plain[-2] > 0
        np.testing.assert_allclose(outputs[:, learned], plain[: task.head.outputs][:, learned], atol=1e-5)
    assert not torch.allclose(mirrored[: task.head.outputs].flip(d), plain[: task.head.outputs])


def test_a_mirrored_order_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="names each of 5 once"):
        Head("dense", 5, mirror=((0, 1, 2, 3, 3),))


def test_places_are_the_middles_of_objects_and_crowds_have_none():
    task = Detect(DISCS, stride=2)
    target = np.array([[0, 0, 10, 20, 0, 0], [4, 4, 6, 6, 1, 1], [-0.5, 30, 0.2, 39.5, 0, 0]], dtype=np.float32)
    first, second = task.places(target, (32, 40))
    assert first.tolist() == [[5, 10], [0, 35]]
    assert second.shape == (0, 2)
    assert all(places.dtype == np.int64 for places in (first, second))
    empty = task.places(np.zeros((0, 6), dtype=np.float32), (32, 40))
    assert [places.shape for places in empty] == [(0, 2), (0, 2)]


def test_truth_goes_from_the_case_to_the_map_and_back():
    grid = Grid((64, 48, 1))
    corners = np.array([[[9.5, 19.5, -0.5], [25.5, 31.5, 0.5]]])
    image = Image(np.zeros((3, 64, 48, 1), dtype=np.float32), grid)
    case = Case("c0", "p0", {"image": ImageSource(lambda: image)}, truth=Boxes(corners, [1]))
    lattice = Lattice(grid, (20, 30), (4, 2), (40, 60))
    task = Detect(DISCS, stride=1)
    stored = task.target(case, lattice)
    assert stored.shape == (1, 6)
    target = task.draw([stored], Warp.straight((20, 30), np.array([[9.5, 14.5]])))[0].numpy()
    places, labels = centres_of(target, 2)
    assert labels.tolist() == [1]
    sides = target[2:6][(slice(None), *places[0])]
    low, high = places[0] - sides[:2], places[0] + sides[2:]
    np.testing.assert_allclose(lattice.to_study(low)[:2], [9.5, 19.5], atol=1e-4)
    np.testing.assert_allclose(lattice.to_study(high)[:2], [25.5, 31.5], atol=1e-4)


def test_a_plan_makes_the_task_it_names():
    network = NetworkPlan("unet", head_stride=2)
    plan = Plan(
        DISCS,
        task="detect",
        input=InputPlan(dimensions=3),
        network=network,
        train=TrainPlan(class_weights="sqrt"),
        decide=DecidePlan(operating_point="fp=0.5"),
    )
    task = make_place_task(plan)
    assert isinstance(task, Detect)
    assert (task.dimensions, task.stride, task.balance, task.point) == (3, 2, 0.5, OperatingPoint("fp", 0.5))
    assert (task.head.outputs, task.head.stride) == (2 + 6, 2)
    plain = make_place_task(replace(plan, train=TrainPlan(), decide=DecidePlan()))
    assert isinstance(plain, Detect)
    assert (plain.balance, plain.point.kind) == (0.0, "f1")


def test_a_case_of_lesion_masks_has_the_boxes_around_its_components():
    grid = Grid((20, 20, 10))
    layers = np.zeros((1, 20, 20, 10), dtype=np.uint8)
    layers[0, 2:5, 3:7, 1:4] = 1
    layers[0, 12:18, 12:14, 6:9] = 2
    lesions = Segmentation(layers, grid, (Structure("bright", (1,)), Structure("dark", (2,))))
    truth = SegmentationSource(lambda: lesions, structures=("bright", "dark"))
    image = Image(np.zeros((1, 20, 20, 10), dtype=np.float32), grid)
    case = Case("c0", "p0", {"image": ImageSource(lambda: image)}, truth=truth)
    stored = Detect(DISCS, dimensions=3, stride=1).target(case, Lattice.of(grid, 3))
    # Network order is (slices, rows, columns), edges half a voxel beyond the outermost centres.
    np.testing.assert_allclose(stored[0], [0.5, 2.5, 1.5, 3.5, 6.5, 4.5, 0, 0])
    np.testing.assert_allclose(stored[1], [5.5, 11.5, 11.5, 8.5, 13.5, 17.5, 1, 0])
