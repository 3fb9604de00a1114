"""What structures and objects are like, on shapes whose numbers are known."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from sagittal.case import Case, ImageSource, Truth
from sagittal.dataset import Dataset
from sagittal.errors import DataError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.prepare.fingerprint import Fingerprint, check_trainable, measure_dataset
from sagittal.truth import Boxes, Segmentation, SegmentationSource, Structure

SCHEME = LabelScheme("structures", ("organ", "tube", "never"))
GRID = Grid((60, 40, 20), np.diag([1.0, 1.0, 2.5, 1.0]))


def give(value: object) -> object:
    return value


def case_of(name: str, image: Image, truth: Truth, second: Image | None = None) -> Case:
    images = {"image": ImageSource(partial(give, image))}  # type: ignore[arg-type]
    if second is not None:
        images["second"] = ImageSource(partial(give, second))  # type: ignore[arg-type]
    return Case(name, name, images, truth=truth)


def shapes(tube: bool = True, named: tuple[str, ...] = SCHEME.classes, layers: bool = False) -> Segmentation:
    """A block of 20 x 20 x 8 voxels and a tube of 3 x 3 x 50."""
    organ, line = np.zeros((2, *GRID.shape), np.uint8)
    organ[5:25, 10:30, 4:12] = 1
    if tube:
        line[5:55, 32:35, 9:12] = 2
        if layers:
            line[5:9, 20:22, 9:11] = 2  # inside the organ
    data = np.stack([organ, line]) if layers else (organ + line)[None]
    layer = {"organ": 0, "tube": int(layers), "never": 0}
    structures = [Structure(n, (SCHEME.classes.index(n) + 1,), layer[n]) for n in named]
    return Segmentation(data, GRID, tuple(structures))


def picture(channels: int = 1, grid: Grid = GRID) -> Image:
    """0 in a wide border; 50 within; 100 where the organ is."""
    data = np.zeros((channels, *GRID.shape), np.float32)
    data[:, 3:57, 6:36, 2:18] = 50
    data[:, 5:25, 10:30, 4:12] = 100
    return Image(data, grid, modality="CT", unit="HU")


def measured(*truths: Segmentation, second: Image | None = None) -> Fingerprint:
    cases = [
        case_of(f"c{n}", picture(), SegmentationSource(partial(give, t)), second)  # type: ignore[arg-type]
        for n, t in enumerate(truths)
    ]
    return measure_dataset(Dataset("shapes", tuple(cases), SCHEME))


def test_structures_are_measured_as_they_were_drawn() -> None:
    found = measured(shapes(), shapes(), shapes(tube=False))
    organ, tube, never = found.structures
    assert (organ.present, organ.absent, organ.unknown) == (3, 0, 0)
    assert (tube.present, tube.absent) == (2, 1)
    assert organ.voxels is not None
    assert organ.volume_ml is not None
    assert organ.voxels.median == 3200
    assert organ.volume_ml.median == pytest.approx(8.0)
    assert organ.part == pytest.approx(3200 / 48000)
    assert organ.thickness == pytest.approx(2 * 3200 / (2 * (400 + 160 + 160)))
    assert tube.thickness == pytest.approx(2 * 450 / (2 * 9 + 4 * 150))
    assert (tube.length, tube.components) == (50, 1)
    assert (never.present, never.absent, never.voxels) == (0, 3, None)
    assert found.classes == {"organ": 3, "tube": 2, "never": 0}
    assert found.warnings == (
        "none of the 3 cases has 'never': it can be neither learned nor judged. Check its name or value, or leave it out "
        "with --target.",
    )
    assert found.exclusive
    assert not found.partly_known
    assert found.zero_part == pytest.approx(1 - 54 * 30 * 16 / 48000, abs=0.01)
    assert found.content_part == pytest.approx(54 * 30 * 16 / 48000)
    inside = found.foreground[0]
    assert inside.spread.median == 100
    assert inside.mean == pytest.approx((100 * 9600 + 50 * 600 + 0) / 10500, abs=3)  # two thirds of the tube in 50
    assert found.to_json()["structures"][0]["voxels"]["median"] == 3200


def test_overlap_and_what_was_not_looked_for_are_seen() -> None:
    assert not measured(shapes(layers=True), shapes()).exclusive
    part = measured(shapes(), shapes(tube=False, named=("organ", "never")))
    assert part.partly_known
    assert part.structures[1].unknown == 1


def test_all_images_of_a_case_are_counted_and_sampled_in_place() -> None:
    affine = np.diag([2.0, 2.0, 2.5, 1.0])
    coarse = Image(np.zeros((2, 30, 20, 20), np.float32), Grid((30, 20, 20), affine), modality="CT", unit="HU")
    coarse.data[1, 3:12, 5:15, 4:12] = 7  # inside the organ
    found = measured(shapes(tube=False), shapes(tube=False), second=coarse)
    assert found.image_channels == (1, 2)
    assert len(found.inputs) == len(found.foreground) == 3
    assert found.foreground[2].spread.median == 7
    assert found.foreground[1].mean == 0


def test_empty_masks_everywhere_are_nothing_to_learn_from() -> None:
    empty = Segmentation(np.zeros((1, *GRID.shape), np.uint8), GRID, shapes().structures)
    with pytest.raises(DataError, match="none of the 2 segmentations that were read outlines anything.*organ, tube"):
        measured(empty, empty)


def test_labels_that_do_not_fit_are_left_out_with_the_reason() -> None:
    wrong = Segmentation(np.zeros((1, 9, 9, 9), np.uint8), Grid((9, 9, 9)), shapes().structures)
    found = measured(shapes(), shapes(), wrong)
    assert found.sampled == 2
    assert "c2" in found.skipped[0].reason
    assert "different grids" in found.skipped[0].reason


def objects(*boxes: Boxes, spacing: tuple[float, float, float] | None = (0.5, 1.0, 2.0)) -> Dataset:
    image = Image(np.ones((1, 60, 40, 20), np.float32), Grid((60, 40, 20), spacing=spacing))
    cases = [case_of(f"c{n}", image, truth) for n, truth in enumerate(boxes)]
    return Dataset("objects", tuple(cases), LabelScheme("objects", ("nodule", "node")))


def test_objects_are_counted_and_measured() -> None:
    two = Boxes([[[1, 1, 1], [5, 9, 4]], [[10, 10, 5], [16, 14, 9]], [[3, 3, 3], [3, 5, 5]]], [0, 0, 0])  # one is flat
    none = Boxes(np.zeros((0, 2, 3)), [])
    found = measure_dataset(objects(two, none))
    nodule, node = found.objects
    assert (nodule.objects, nodule.images) == (2, 1)
    assert nodule.an_image is not None
    assert (nodule.an_image.median, nodule.an_image.high) == (1, 2)
    assert [edge.high for edge in nodule.edges] == [4, 8, 6]  # slices, rows, columns
    assert [edge.high for edge in nodule.edges_mm] == [8, 8, 3]
    assert node.objects == 0
    assert "'node'" in found.warnings[0]
    assert found.classes == {"nodule": 1, "node": 0}
    assert not measure_dataset(objects(two, none, spacing=None)).objects[0].edges_mm


def test_images_without_any_object_are_nothing_to_learn_from() -> None:
    none = Boxes(np.zeros((0, 2, 3)), [])
    with pytest.raises(DataError, match="none of the 2 annotated images has a box"):
        check_trainable(objects(none, none))
    kept, labelled = check_trainable(objects(none, Boxes([[[1, 1, 1], [5, 9, 4]]], [0])))
    assert (kept.kind, len(labelled)) == ("objects", 2)


def test_a_changed_outline_changes_the_content() -> None:
    first = measure_dataset(objects(Boxes([[[1, 1, 1], [5, 9, 4]]], [0]), Boxes([[[1, 1, 1], [5, 9, 4]]], [0])))
    other = measure_dataset(objects(Boxes([[[1, 1, 1], [5, 9, 4]]], [0]), Boxes([[[1, 1, 1], [5, 9, 5]]], [0])))
    assert first.content != other.content
