"""How bad a copy is: by split, patient and label."""

from __future__ import annotations

import io
from functools import partial

import numpy as np
import pytest
from PIL import Image as Pillow

from sagittal.case import Case, ImageSource
from sagittal.check.check_dataset import check_dataset
from sagittal.dataset import Dataset
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.truth import Boxes

SCHEME = LabelScheme("binary", ("benign", "malignant"), "diagnosis")


def picture(pixels, bits=8):
    data = pixels.astype(np.float32).T[np.newaxis, :, :, np.newaxis]
    return Image(data, Grid(data.shape[1:]), bits=bits)


def case(name, pixels, label="benign", *, split=None, patient=None, truth=None):
    source = ImageSource(partial(picture, pixels), member=name)
    known = truth if truth is not None else None if label is None else SCHEME.truth(label)
    return Case(name, patient or f"patient of {name}", {"image": source}, truth=known, split=split)


def encoded(pixels):
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "JPEG", quality=70)
    return np.asarray(Pillow.open(file))


@pytest.fixture
def others(make_pixels):
    """Enough other cases, so that nothing else is found."""
    return [case(f"o{n}", make_pixels(100 + n, (64, 64)), SCHEME.classes[n % 2]) for n in range(40)]


def found(cases, scheme=SCHEME, **options):
    findings = check_dataset(Dataset("set", tuple(cases), scheme, **options), pixels="all")
    return {finding.code: finding for finding in findings}


#: split and patient of the two -> severity of the finding, end of its code
RULE = [
    (("train", "test"), ("a", "b"), "error", "in-two-splits"),
    (("train", "train"), ("a", "b"), "warning", "of-two-patients"),
    ((None, None), ("a", "b"), "warning", "of-two-patients"),
    (("train", None), ("a", "b"), "warning", "of-two-patients"),
    (("train", "train"), ("a", "a"), "note", "of-one-patient"),
]


@pytest.mark.parametrize(("splits", "patients", "severity", "code"), RULE)
@pytest.mark.parametrize("near", [False, True])
def test_the_rule(make_pixels, others, splits, patients, severity, code, near):
    pixels = make_pixels(1, (64, 64))
    pair = [
        case("x", pixels, split=splits[0], patient=patients[0]),
        case("y", encoded(pixels) if near else pixels, split=splits[1], patient=patients[1]),
    ]
    told = found([*others, *pair])
    finding = told["near-copy-" + code if near else "pixels-" + code]
    assert (finding.severity, finding.pairs, finding.cases) == (severity, (("x", "y"),), ("x", "y"))
    assert "x = y" in finding.message
    assert ("x = y" in finding.details) == near
    assert {code for code in told if code.startswith(("pixels", "near"))} == {finding.code}
    assert "patient of" not in finding.message


def test_series_of_one_patient_are_alike(make_pixels, others):
    """The same plane before and after contrast agent, which brightens some places: no copy."""
    before = make_pixels(1, (96, 96)).astype(float)
    after = np.clip(before + 0.26 * make_pixels(2, (96, 96)), 0, 255).astype(np.uint8)
    pair = [case("x", before.astype(np.uint8)), case("y", after)]
    assert 0.92 < float(found([*others, *pair])["near-copy-of-two-patients"].details["x = y"].split()[1]) < 0.99
    pair = [case("x", before.astype(np.uint8), patient="p"), case("y", after, patient="p")]
    assert "near-copy-of-one-patient" not in found([*others, *pair])


def test_a_turned_copy_is_told_as_such(make_pixels, others):
    """A turned copy holds the same values; one that was also encoded again does not."""
    pixels = make_pixels(1, (64, 64))
    told = found([*others, case("x", pixels), case("y", np.rot90(pixels))])["near-copy-of-two-patients"]
    assert told.details == {"x = y": "the same values, mirrored or turned"}
    told = found([*others, case("x", pixels), case("y", encoded(np.rot90(pixels)))])["near-copy-of-two-patients"]
    assert told.details["x = y"].startswith("similarity ")
    assert told.details["x = y"].endswith(", mirrored or turned")


def test_exact_copies_need_no_near_search_and_are_not_told_twice(make_pixels, others):
    pixels = make_pixels(1, (64, 64))
    three = [case(f"x{n}", pixels, patient="p") for n in range(3)]
    told = found([*others, *three])
    assert told["pixels-of-one-patient"].pairs == (("x0", "x1"), ("x0", "x2"))
    assert "near-copy-of-one-patient" not in told


def test_copies_with_other_labels(make_pixels, others):
    pixels = make_pixels(1, (64, 64))
    exact = found([*others, case("x", pixels, "benign"), case("y", pixels, "malignant")])
    assert exact["conflicting-labels"].severity == "error"
    assert exact["conflicting-labels"].pairs == (("x", "y"),)
    near = found([*others, case("x", pixels, "benign"), case("y", encoded(pixels), "malignant")])
    assert near["near-copy-with-other-label"].severity == "warning"
    assert "conflicting-labels" not in near
    unknown = found([*others, case("x", pixels, "benign"), case("y", pixels, None)])
    assert "conflicting-labels" not in unknown


def test_equal_pixels_are_equal_in_every_format(tmp_path, make_pixels):
    """Grey PNG, the same stored as colour, and TIFF; and 16 bits that use only 8."""
    from sagittal.read.open_dataset import open_dataset

    pixels = make_pixels(1, (40, 50))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    Pillow.fromarray(pixels).save(tmp_path / "a" / "grey.png")
    Pillow.fromarray(np.stack([pixels] * 3, axis=-1)).save(tmp_path / "a" / "colour.png")
    Pillow.fromarray(pixels).save(tmp_path / "b" / "grey.tiff")
    Pillow.fromarray(pixels.astype(np.uint16)).save(tmp_path / "b" / "deep.png")
    told = {f.code: f for f in check_dataset(open_dataset(tmp_path), pixels="all")}
    assert set(told["pixels-of-two-patients"].cases) == {"a/colour", "a/grey", "b/deep", "b/grey"}
    assert told["conflicting-labels"].severity == "error"


def test_constant_images_are_no_copies_of_each_other(others):
    black = np.zeros((64, 64), np.uint8)
    told = found([*others, case("x", black, split="train"), case("y", black, split="test")])
    assert told["constant"].cases == ("x", "y")
    assert not any(code.startswith(("pixels", "near")) for code in told)


def test_published_splits_only_warn(make_pixels, others):
    """The official splits of MedMNIST stay as they are, so that figures can be compared."""
    pixels = make_pixels(1, (64, 64))
    pair = [case("x", pixels, split="train"), case("y", pixels, split="test")]
    told = found([*others, *pair], layout="medmnist")
    assert told["pixels-in-two-splits"].severity == "warning"
    findings = check_dataset(Dataset("medmnist:x", (*others, *pair), SCHEME, layout="manifest"), pixels="all")
    assert findings.may_train
    assert not check_dataset(Dataset("x", (*others, *pair), SCHEME), pixels="all").may_train


def test_leakage_that_is_allowed_warns(make_pixels, others):
    pixels = make_pixels(1, (64, 64))
    pair = [case("x", pixels, split="train"), case("y", pixels, split="test")]
    findings = check_dataset(Dataset("set", (*others, *pair), SCHEME), pixels="all")
    assert [f.code for f in findings.leakage()] == ["pixels-in-two-splits"]
    allowed = findings.allow_leakage()
    assert allowed.may_train
    (leak,) = allowed.leakage()
    assert (leak.severity, leak.pairs) == ("warning", (("x", "y"),))
    assert leak.message.endswith("(Allowed on request.)")


def test_a_large_group_tells_a_leak_first(make_pixels, others):
    """Of a hundred copies in training and one in the test, the one is told."""
    pixels = make_pixels(1, (64, 64))
    group = [case(f"x{n:03d}", pixels, split="train") for n in range(49)]
    told = found([*others, *group, case("y", pixels, split="test")])
    leak = told["pixels-in-two-splits"]
    assert leak.pairs
    assert all("y" in pair for pair in leak.pairs)


def test_boxes_of_copies_are_compared(make_pixels):
    scheme = LabelScheme("objects", ("cell",))
    one, two = (Boxes(np.array([[[1, 1, -0.5], [9, 9, 0.5]]] * n), np.zeros(n, int)) for n in (1, 2))
    pixels = make_pixels(1, (64, 64))
    cases = [case(f"o{n}", make_pixels(50 + n, (64, 64)), truth=one) for n in range(5)]
    told = found([*cases, case("x", pixels, truth=one), case("y", pixels, truth=two)], scheme)
    assert told["conflicting-labels"].pairs == (("x", "y"),)
    moved = found([*cases, case("x", pixels, truth=one), case("y", encoded(pixels), truth=two)], scheme)
    assert "near-copy-with-other-label" not in moved


def test_one_image_under_two_names_is_no_copy_of_a_case(make_pixels, others):
    source = ImageSource(partial(picture, make_pixels(1, (64, 64))))
    twice = Case("x", "p", {"T1": source, "T2": source}, truth=SCHEME.truth("benign"))
    assert not any(code.startswith(("pixels", "near")) for code in found([*others, twice]))
