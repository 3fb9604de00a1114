"""Masks and boxes: what they outline, where, and how often."""

from __future__ import annotations

from functools import partial

import nibabel as nib
import numpy as np
import pytest

from sagittal.case import Case, ImageSource
from sagittal.check.check_dataset import check_dataset, look_through
from sagittal.check.facts import MaskFacts
from sagittal.check.objects import object_counts
from sagittal.check.structures import structure_rows, volume_ml
from sagittal.dataset import Dataset
from sagittal.errors import DataError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.read.sources import file_source, make_mask_source
from sagittal.truth import Boxes, Segmentation, SegmentationSource, Structure

ORGANS = LabelScheme("structures", ("liver", "spleen"))
CELLS = LabelScheme("objects", ("red", "white"))
GRID = Grid((16, 18, 10), np.diag([2.0, 2.0, 5.0, 1.0]))


def noise(seed, grid=GRID):
    return Image(np.random.default_rng(seed).normal(size=(1, *grid.shape)).astype(np.float32), grid)


def outline(values, grid=GRID, ignore=None):
    """A mask in which value v has ``values[v]`` voxels."""
    layer = np.zeros(grid.shape, np.uint8)
    start = 0
    for value, voxels in values.items():
        layer.flat[start : start + voxels] = value
        start += voxels
    return Segmentation(layer[np.newaxis], grid, (Structure("liver", (1,)), Structure("spleen", (2, 3))), ignore)


def refuse():
    raise DataError("case c0: label map: holds the values 7, which no structure has (liver = 1)")


def organs(*masks):
    cases = [
        Case(f"c{n}", f"p{n}", {"CT": ImageSource(partial(noise, n))}, truth=SegmentationSource(mask))
        for n, mask in enumerate(masks)
    ]
    dataset = Dataset("organs", tuple(cases), ORGANS)
    return dataset, {f.code: f for f in check_dataset(dataset, pixels="all", near=False)}


USUAL = partial(outline, {1: 500, 2: 40, 3: 10})


def test_sound_masks_are_silent():
    assert organs(*[USUAL] * 20)[1] == {}


def test_values_that_mean_nothing():
    told = organs(*[USUAL] * 8, partial(outline, {1: 400, 9: 12, 200: 1}))[1]["unknown-mask-value"]
    assert (told.severity, told.details) == ("error", {"c8": "9 (12 voxels), 200 (1 voxels)"})
    assert "Expected 0 and the values of liver, spleen" in told.message


def test_values_to_ignore_mean_something():
    assert organs(*[USUAL] * 8, partial(outline, {1: 400, 2: 9, 255: 12}, ignore=255))[1] == {}


def test_empty_masks_and_structures_that_never_occur():
    told = organs(partial(outline, {1: 5}), partial(outline, {}))[1]
    assert told["empty-mask"].cases == ("c1",)
    assert "holds 'spleen'" in told["structure-never-occurs"].message
    assert organs(partial(outline, {}))[1]["empty-mask"].severity == "error"


def test_refused_masks_are_told_by_reason():
    told = organs(refuse, *[USUAL] * 3)[1]
    assert (told["unknown-mask-value"].severity, told["unknown-mask-value"].cases) == ("warning", ("c0",))
    assert (
        "1 of 4 cases cannot be used; the first: case c0: label map: holds the values 7"
        in told["unknown-mask-value"].message
    )


def test_masks_of_real_files(tmp_path):
    """Sound, with fractions, of an unknown value, and cut off."""
    for n, values in enumerate(([1, 2], [1, 1.5], [1, 7], [1, 2])):
        layer = np.zeros(GRID.shape, np.float32)
        layer[2:5, 2:5, 2:5], layer[6:9, 6:9, 6:9] = values
        nib.save(nib.Nifti1Image(layer, np.diag([-2, -2, 5, 1])), tmp_path / f"mask{n}.nii.gz")
        nib.save(nib.Nifti1Image(noise(n).data[0], np.diag([-2, -2, 5, 1])), tmp_path / f"image{n}.nii.gz")
    broken = (tmp_path / "mask3.nii.gz").read_bytes()
    (tmp_path / "mask3.nii.gz").write_bytes(broken[: len(broken) // 2])
    options = {"structures": {"liver": [1], "spleen": [2]}}
    cases = tuple(
        Case(
            f"c{n}", f"p{n}",
            {"CT": file_source(f"c{n}", tmp_path / f"image{n}.nii.gz")},
            truth=make_mask_source(f"c{n}", "label_map", (tmp_path / f"mask{n}.nii.gz",), options),
        )
        for n in range(4)
    )  # fmt: skip
    checked = look_through(Dataset("organs", cases, ORGANS))
    told = {f.code: f for f in checked.findings}
    assert told["mask-not-whole"].cases == ("c1",)
    assert told["unknown-mask-value"].cases == ("c2",)
    assert told["unreadable-mask"].cases == ("c3",)
    assert checked.facts["c0"].mask.voxels == {"liver": 27, "spleen": 27}
    assert checked.facts["c0"].mask.picture is not None


def test_volumes_are_compared():
    dataset, told = organs(*[USUAL] * 20, partial(outline, {1: 3, 2: 40, 3: 10}))
    assert told["outlying-volume"].details == {"c20": "0.06 ml"}  # 3 voxels of 20 mm3
    assert "'liver' is unusually small or large in 1 mask:" in told["outlying-volume"].message
    rows = structure_rows(dataset, look_through(dataset, near=False).facts)
    assert rows[1] == ("spleen", 21, "1 ml (1 to 1)")


def test_volume_by_hand():
    assert volume_ml(MaskFacts((4, 4, 4), None, (2.0, 2.0, 5.0), {"liver": 500}, {}), "liver") == pytest.approx(10)
    assert volume_ml(MaskFacts((4, 4, 4), None, None, {"liver": 500}, {}), "liver") is None


# Boxes -----------------------------------------------------------------------------------------------------------------


def boxes(*corners, classes=None):
    """Boxes of a picture from (x0, y0, x1, y1)."""
    table = [[[x0, y0, -0.5], [x1, y1, 0.5]] for x0, y0, x1, y1 in corners]
    return Boxes(np.array(table).reshape(-1, 2, 3), np.array(classes if classes is not None else [0] * len(table), int))


def cells(*truths):
    picture = Grid((64, 48, 1))
    cases = [
        Case(f"c{n}", f"p{n}", {"image": ImageSource(partial(noise, n, picture))}, truth=truth)
        for n, truth in enumerate(truths)
    ]
    dataset = Dataset("cells", tuple(cases), CELLS)
    return dataset, {f.code: f for f in check_dataset(dataset, pixels="all", near=False)}


SOUND = boxes((-0.5, -0.5, 20.5, 10.5), (30, 20, 63.5, 47.5), (31, 21, 40, 30), classes=[0, 1, 0])


def test_sound_boxes_are_silent():
    """Boxes that end at the frame, and one inside another."""
    assert cells(*[SOUND] * 6)[1] == {}


def test_each_fault_of_a_box():
    dataset, told = cells(
        SOUND,
        boxes((5, 5, 5, 9), (8, 9, 6, 12)),
        boxes((50, 10, 64.5, 20), (1, 1, 9, 9)),
        boxes((1, 1, 11, 11), (1, 1, 11, 11.2), (1, 1, 11, 11), classes=[0, 0, 1]),
        boxes((1, 1, 9, 9), classes=[2]),
        boxes((1, 1, 2.5, 30)),
        boxes(),
    )  # seven images of seven patients
    assert told["degenerate-box"].cases == ("c1",)
    assert told["degenerate-box"].message.startswith(
        "2 boxes without size, in 1 case (c1; case c1: box 1 (red): (5, 5)"
    )
    assert told["box-out-of-frame"].details == {"c2": "box 1 (red): (50, 10) to (64.5, 20), 1 beyond the 64 x 48 image"}
    assert told["doubled-box"].details == {"c3": "box 2 is box 1 again"}
    assert (told["unknown-box-class"].severity, told["unknown-box-class"].cases) == ("error", ("c4",))
    assert told["tiny-box"].cases == ("c5",)
    assert told["no-objects"].cases == ("c6",)
    assert set(told) == {
        "degenerate-box", "box-out-of-frame", "doubled-box", "unknown-box-class", "tiny-box", "no-objects", "small-class",
    }  # fmt: skip
    assert "class 'white' stands in only 2 images, 2 boxes in all" in told["small-class"].message
    assert object_counts(dataset) == {"red": (9, 5), "white": (2, 2)}


def test_a_class_without_boxes():
    told = cells(boxes((1, 1, 9, 9)))[1]["empty-class"]
    assert told.message == "class 'white' has no box; it can be neither learned nor judged."


def test_bccd(bench_data):
    """The two boxes of one pixel, found here in the files themselves."""
    import re

    from sagittal.read.open_dataset import open_dataset

    single = set()
    for path in (bench_data / "bccd" / "Annotations").glob("*.xml"):
        for box in re.findall(r"<bndbox>(.*?)</bndbox>", path.read_text(), re.DOTALL):
            x0, y0, x1, y1 = (int(re.search(rf"<{key}>(\d+)<", box)[1]) for key in ("xmin", "ymin", "xmax", "ymax"))
            if x0 == x1 or y0 == y1:
                single.add(path.stem)
    dataset = open_dataset(bench_data / "bccd")
    told = {f.code: f for f in check_dataset(dataset, pixels="none")}
    used = {case.id.rpartition("/")[2] for case in dataset}
    assert {case.rpartition("/")[2] for case in told["tiny-box"].cases} == single & used
    assert single
