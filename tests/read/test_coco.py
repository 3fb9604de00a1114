"""COCO: boxes and outlines on the right pixels, and nothing that is listed or lies on disk is lost."""

from __future__ import annotations

import time

import numpy as np
import pytest

from sagittal.errors import DataError, GeometryError, ReadError
from sagittal.formats.shapes import decode_runs, fill_polygon
from sagittal.read.coco import is_coco
from sagittal.read.open_dataset import open_dataset
from sagittal.truth import Boxes

CATEGORIES = [{"id": 7, "name": "platelet"}, {"id": 2, "name": "cell"}]
SIZE = {"width": 12, "height": 9}


def square(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def note(key, image, category, x, y, w, h, **more):
    box = {"id": key, "image_id": image, "category_id": category, "bbox": [x, y, w, h], "iscrowd": 0}
    return {**box, "segmentation": square(x, y, w, h), **more}


@pytest.fixture
def coco(tmp_path, write_png, write_text):
    """Three pictures of 12 x 9 in ``images/``; ``coco(annotations, **changes)`` writes their JSON."""
    for n in range(3):
        write_png(f"set/images/im{n}.png")

    def make(annotations, name="annotations/instances.json", **changes):
        images = [{"id": n, "file_name": f"im{n}.png", **SIZE} for n in range(3)]
        write_text(f"set/{name}", {"images": images, "annotations": annotations, "categories": CATEGORIES, **changes})
        return tmp_path / "set"

    return make


def reasons(dataset):
    return {one.case: one.reason for one in dataset.skipped}


def test_boxes_lie_on_their_pixels(coco):
    folder = coco([note(1, 0, 7, 2, 3, 4, 1), note(2, 0, 2, 0, 0, 12, 9, iscrowd=1), note(3, 2, 2, 1.5, 2.5, 3, 2)])
    for source, more in (
        (folder, {}),
        (folder / "annotations" / "instances.json", {}),
        (folder, {"labels": folder / "annotations" / "instances.json"}),
        (folder / "images", {"labels": folder / "annotations" / "instances.json"}),
    ):
        dataset = open_dataset(source, **more)
        assert (dataset.layout, dataset.scheme.kind, dataset.scheme.classes) == (
            "coco",
            "objects",
            ("cell", "platelet"),
        )
        assert not dataset.skipped
        first, none, last = (case.truth for case in dataset)
        assert isinstance(first, Boxes)
        # x 2, width 4: the pixels 2 to 5, whose edges lie at 1.5 and 5.5
        np.testing.assert_array_equal(first.corners[0], [[1.5, 2.5, -0.5], [5.5, 3.5, 0.5]])
        np.testing.assert_array_equal(first.corners[1], [[-0.5, -0.5, -0.5], [11.5, 8.5, 0.5]])
        assert (first.classes.tolist(), first.crowd.tolist()) == ([1, 0], [False, True])
        assert (len(none), none.known) == (0, True)
        np.testing.assert_array_equal(last.corners[0, :, 0], [1, 4])


def test_outlines_become_masks(coco):
    runs = {"size": [9, 12], "counts": [9 * 6, 9, 9 * 5]}  # the seventh column
    folder = coco(
        [
            note(1, 0, 2, 2, 3, 4, 2),
            note(2, 0, 2, 9, 0, 3, 9),
            note(3, 0, 7, 4, 3, 3, 3),
            note(4, 1, 7, 0, 0, 1, 1, segmentation=runs, iscrowd=1),
        ]
    )
    dataset = open_dataset(folder, kind="structures")
    assert (dataset.scheme.kind, dataset.scheme.classes) == ("structures", ("cell", "platelet"))
    found = dataset.cases[0].truth.load()
    expected = np.zeros((12, 9), bool)
    expected[2:6, 3:5] = expected[9:12] = True
    np.testing.assert_array_equal(found.mask("cell")[:, :, 0], expected)
    assert len(found.layers) == 2, "cell and platelet overlap"
    assert found.grid.shape == dataset.cases[0].image().grid.shape
    np.testing.assert_array_equal(np.flatnonzero(dataset.cases[1].truth.load().mask("platelet").any(axis=(1, 2))), [6])
    assert not dataset.cases[2].truth.load().layers.any()


def test_categories_may_be_chosen(coco):
    folder = coco([note(1, 0, 7, 2, 3, 4, 1), note(2, 0, 2, 0, 0, 3, 3)])
    dataset = open_dataset(folder, target="platelet")
    assert dataset.scheme.classes == ("platelet",)
    assert [len(case.truth) for case in dataset] == [1, 0, 0]
    with pytest.raises(DataError, match="no objects called 'platlet'. Did you mean 'platelet'"):
        open_dataset(folder, target="platlet")
    with pytest.raises(DataError, match="is of kind 'objects' .*, not 'binary'"):
        open_dataset(folder, kind="binary")


def test_several_files_are_splits(tmp_path, write_png, write_text):
    for split, name in (("train2017", "a"), ("val2017", "b")):
        write_png(f"{split}/{name}.png")
        content = {"images": [{"id": 1, "file_name": f"{name}.png"}], "annotations": [note(1, 1, 2, 0, 0, 2, 2)]}
        write_text(f"annotations/instances_{split}.json", {**content, "categories": CATEGORIES})
        write_text(f"annotations/person_keypoints_{split}.json", {**content, "categories": CATEGORIES})
    dataset = open_dataset(tmp_path)
    assert [(c.id, c.split) for c in dataset] == [("train2017/a", "train"), ("val2017/b", "val")]
    assert any("not used: person_keypoints_train2017.json" in told for told in dataset.notes)


def test_a_file_in_the_folder_of_each_split(tmp_path, write_png, write_text):
    for split in ("train", "valid", "test"):
        write_png(f"{split}/0.png")
        write_text(
            f"{split}/_annotations.coco.json",
            {"images": [{"id": 0, "file_name": "0.png"}], "annotations": [], "categories": CATEGORIES},
        )
    dataset = open_dataset(tmp_path)
    assert [(c.id, c.split) for c in dataset] == [("test/0", "test"), ("train/0", "train"), ("valid/0", "val")]


def test_nothing_is_lost(coco, tmp_path, write_png):
    write_png("set/images/loose.png")
    (tmp_path / "set/images/empty.png").write_bytes(b"")
    images = [{"id": n, "file_name": f"im{n}.png", **SIZE} for n in range(3)]
    images += [
        {"id": 3, "file_name": "gone.png"}, {"id": 4, "file_name": "../../secret.png"}, {"id": 5}, {"id": 0, "file_name": "im1.png"},
        {"id": 6, "file_name": "empty.png"},
    ]  # fmt: skip
    annotations = [
        note(1, 0, 2, 0, 0, 1, 1),
        note(2, 3, 2, 0, 0, 1, 1),
        note(3, 99, 2, 0, 0, 1, 1),
        note(4, 99, 2, 0, 0, 1, 1),
    ]
    annotations += [note("five", 1, 44, 0, 0, 1, 1), note(6, 2, 2, 0, 0, 1, 1, bbox=[1, 2, None, 4])]
    dataset = open_dataset(coco(annotations, images=images))
    assert [c.id for c in dataset] == ["images/im0"]
    assert reasons(dataset) == {
        "images/im1": "annotation five: names a category that instances.json does not list",
        "images/im2": "annotation 6: its box is not four numbers",
        "gone": "the image is not there, or more than one is called so; it has 1 annotations",
        "secret": "the image is not there, or more than one is called so",
        "image 6": "instances.json gives it no id or no file_name",
        "im1": "instances.json gives its id to two images",
        "images/empty": "the file is empty (0 bytes)",
        "image id 99": "2 annotations of an image that instances.json does not list",
        "images/loose.png": "an image that the annotations do not list",
    }


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        (None, "annotation 1: has no outline; expected polygons of three corners or more"),
        ([[1, 2, 3, 4]], "annotation 1: has no outline"),
        ([[1, 2, 3, 4, 5, "6"]], "annotation 1: has no outline"),
        ({"size": [12, 9], "counts": [108]}, "annotation 1: its run lengths are not those of a 12 x 9 picture"),
    ],
)
def test_outlines_that_cannot_be_used_are_told(coco, outline, message):
    folder = coco([note(1, 0, 2, 0, 0, 2, 2, segmentation=outline), note(2, 1, 2, 0, 0, 2, 2)])
    dataset = open_dataset(folder, kind="structures")
    assert reasons(dataset)["images/im0"].startswith(message)
    assert len(dataset) == 2


def test_degenerate_boxes_are_kept_for_check(coco):
    dataset = open_dataset(coco([note(1, 0, 2, 5, 5, 0, 3), note(2, 0, 2, -4, 2, 30, 3)]))
    assert dataset.cases[0].truth.sizes[0, 0] == 0
    assert dataset.cases[0].truth.corners[1, 0, 0] == -4.5


def test_annotations_of_another_version_of_the_image_are_refused(coco):
    images = [{"id": n, "file_name": f"im{n}.png", "width": 24, "height": 18} for n in range(3)]
    case = open_dataset(coco([note(1, 0, 2, 0, 0, 2, 2)], images=images)).cases[0]
    with pytest.raises(
        GeometryError, match=r"case images/im0: the annotations are for 24 x 18 pixels, the image has 12 x 9"
    ):
        case.image()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {"a": 1}}, "'images' is no list of objects"),
        ({"annotations": [1]}, "'annotations' is no list of objects"),
        ({"categories": [{"id": 1}]}, "a category without an id of its own or without a name"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "a category without an id of its own"),
    ],
)
def test_files_that_are_not_of_coco(coco, changes, message):
    with pytest.raises(ReadError, match=f"instances.json: {message}"):
        open_dataset(coco(**{"annotations": [], **changes}))


def test_categories_of_one_name_are_told_apart(coco):
    dataset = open_dataset(coco([], categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]))
    assert dataset.scheme.classes == ("a", "a (2)")


def test_a_hundred_thousand_annotations_open_in_seconds(tmp_path, write_png, write_text):
    write_png("a/0.png")
    for n in range(1, 2000):
        (tmp_path / f"a/{n}.png").hardlink_to(tmp_path / "a/0.png")
    images = [{"id": n, "file_name": f"{n}.png", **SIZE} for n in range(2000)]
    annotations = [note(n, n % 2000, (2, 7)[n % 2], n % 5, 1, 3, 3) for n in range(100_000)]
    write_text("c.json", {"images": images, "annotations": annotations, "categories": CATEGORIES})
    began = time.perf_counter()
    dataset = open_dataset(tmp_path)
    took = time.perf_counter() - began
    assert sum(len(case.truth) for case in dataset) == 100_000
    assert took < 20, "5 s on a quiet machine"


# ---- shapes


def test_a_triangle_covers_the_pixels_whose_centres_it_holds():
    found = fill_polygon(np.array([[0, 0], [8, 0], [0, 8]]), (10, 9))
    x, y = np.mgrid[:10, :9] + 0.5
    np.testing.assert_array_equal(found, x + y < 8)


@pytest.mark.parametrize("seed", range(5))
def test_polygons_agree_with_matplotlib(seed):
    from matplotlib.path import Path as Outline

    rng = np.random.default_rng(seed)
    points = rng.uniform(-4, 24, (7, 2)) + 1e-3
    angle = np.arctan2(*(points - points.mean(axis=0)).T)
    points = points[np.argsort(angle)]  # a polygon that does not cross itself
    x, y = np.mgrid[:20, :16] + 0.5
    inside = Outline(points).contains_points(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(20, 16)
    np.testing.assert_array_equal(fill_polygon(points, (20, 16)), inside)


def test_polygons_of_nothing_and_beyond_the_picture():
    assert not fill_polygon(np.array([[1, 1], [3, 3]]), (5, 5)).any()
    assert not fill_polygon(np.array([[1, 1], [3, np.nan], [3, 3]]), (5, 5)).any()
    assert fill_polygon(np.array([[-1e9, -1e9], [1e9, -1e9], [1e9, 1e9], [-1e9, 1e9]]), (5, 5)).all()
    assert not fill_polygon(np.array([[50, 50], [60, 50], [60, 60]]), (5, 5)).any()


def pack(runs):
    """COCO's packed run lengths, as maskApi.c writes them (rleToString)."""
    text = ""
    for n, run in enumerate(runs):
        value = run - (runs[n - 2] if n > 2 else 0)
        more = True
        while more:
            code = value & 31
            value >>= 5
            more = value != -1 if code & 16 else value != 0
            text += chr((code | 32 if more else code) + 48)
    return text


def test_run_lengths_plain_and_packed():
    rng = np.random.default_rng(0)
    mask = rng.random((40, 30)) > 0.7  # (width, height)
    flat = mask.ravel()  # down the columns
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]]).astype(int)))
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    np.testing.assert_array_equal(decode_runs(runs, (40, 30)), mask)
    np.testing.assert_array_equal(decode_runs(pack(runs), (40, 30)), mask)
    large = [100_000, 250_000, 50_000]
    np.testing.assert_array_equal(decode_runs(pack(large), (800, 500)), decode_runs(large, (800, 500)))


def test_a_packed_mask_that_is_published():
    # The first crowd of the COCO API's own example of a 4 x 4 picture: 5 outside, 4 inside, 7 outside.
    assert pack([5, 4, 7]) == "547"
    np.testing.assert_array_equal(decode_runs("547", (4, 4)).ravel().nonzero()[0], [5, 6, 7, 8])


@pytest.mark.parametrize("runs", [[5], [-1, 17], [10**30], "5", "\x00", "o" * 40, "oo", [3, 10**18, 10**18]])
def test_run_lengths_that_do_not_fit(runs):
    with pytest.raises(DataError, match="run lengths"):
        decode_runs(runs, (4, 4))


def test_json_of_something_else_is_no_coco(write_text):
    assert not is_coco(write_text("a.json", {"images": [], "annotations": [1, 2, 3]}))
    assert is_coco(write_text("b.json", {"images": [], "annotations": [], "categories": []}))
