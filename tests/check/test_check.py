"""What is found in a data set before anything is spent on it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from sagittal.case import Case, ImageSource
from sagittal.check.check_dataset import check_dataset
from sagittal.check.findings import Finding, Findings, some
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import ConfigError, DataError, ReadError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.progress import Quiet

SCHEME = LabelScheme("binary", ("benign", "malignant"), "diagnosis")


def read(values: np.ndarray, unit: str = "1", modality: str = "OT") -> Image:
    return Image(values, Grid(values.shape[1:]), unit=unit, modality=modality)


def fail() -> Image:
    raise ReadError("case c0: cut off")


def pixels(seed: int, channels: int = 1, depth: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(channels, 6, 5, depth)).astype(np.float32)


def case(number: int, label: str | None = "benign", *, reader=None, patient=None, split=None) -> Case:
    truth = None if label is None else SCHEME.truth(label)
    source = ImageSource(reader or partial(read, pixels(number)), member=str(number))
    return Case(f"c{number}", patient or f"p{number}", {"image": source}, truth=truth, split=split)


def balanced(n: int = 40) -> list[Case]:
    return [case(k, SCHEME.classes[k % 2]) for k in range(n)]


def check(cases, scheme=SCHEME, **options) -> Findings:
    return check_dataset(Dataset("test", tuple(cases), scheme, **options), pixels="all")


def only(findings: Findings, code: str) -> Finding:
    (found,) = [f for f in findings if f.code == code]
    return found


def test_a_sound_set_has_no_findings():
    findings = check(balanced())
    assert (len(findings), findings.may_train) == (0, True)
    findings.demand()


def test_no_labels():
    for cases, scheme in ((balanced(), None), ([case(0, None), case(1, None)], SCHEME)):
        findings = check(cases, scheme)
        assert not findings.may_train
        assert "has a label. Name the column with --target" in only(findings, "no-labels").message
        with pytest.raises(DataError, match=r"none of the \d+ cases has a label"):
            findings.demand()


def test_one_class_only():
    findings = check([case(n) for n in range(30)])
    assert "all 30 labelled cases are 'benign'; at least two classes" in only(findings, "one-class").message
    assert not findings.may_train


def test_small_and_empty_classes():
    scheme = LabelScheme("multiclass", ("a", "b", "c", "d"))
    labels = ["a"] * 60 + ["b"] * 3 + ["c"] * 12
    cases = [
        Case(
            f"c{n}", f"p{n}", {"image": ImageSource(partial(read, pixels(n)), member=str(n))}, truth=scheme.truth(name)
        )
        for n, name in enumerate(labels)
    ]
    findings = check(cases, scheme)
    assert "class 'b' has 3 cases, fewer than the 5 parts" in only(findings, "class-below-folds").message
    assert "class 'c' has only 12 cases" in only(findings, "small-class").message
    assert "class 'd' has no case" in only(findings, "empty-class").message
    assert "largest class has 60 cases, the smallest 3" in only(findings, "imbalance").message
    assert findings.may_train


def test_several_labels_of_which_one_never_changes():
    from sagittal.labels import ClassScores

    scheme = LabelScheme("multilabel", ("a", "b"))
    cases = [
        Case(
            f"c{n}",
            f"p{n}",
            {"image": ImageSource(partial(read, pixels(n)), member=str(n))},
            truth=ClassScores(np.array([n % 2, 0.0])),
        )
        for n in range(40)
    ]
    found = only(check(cases, scheme), "one-value")
    assert (found.severity, found.message.split(":")[0]) == ("warning", "b")


def test_one_patient_only():
    cases = [case(n, SCHEME.classes[n % 2], patient="same") for n in range(40)]
    findings = check(cases)
    assert "all 40 labelled cases are of one patient" in only(findings, "one-patient").message
    assert not findings.may_train


def test_few_patients_matter_only_without_given_splits():
    cases = [case(n, SCHEME.classes[n % 2], patient=f"p{n % 3}") for n in range(40)]
    assert "of 3 patients, fewer than the 5 parts" in only(check(cases), "few-patients").message
    cases = [
        case(n, SCHEME.classes[n % 2], patient=f"p{n % 3}", split=("train", "val", "test")[n % 3]) for n in range(40)
    ]
    assert not check(cases).codes()


def test_conflicting_and_doubled_rows():
    one = ImageSource(partial(read, pixels(99)), member="same")
    conflict = [
        Case("x1", "p1", {"image": one}, truth=SCHEME.truth("benign")),
        Case("x2", "p1", {"image": one}, truth=SCHEME.truth("malignant")),
    ]
    findings = check([*balanced(), *conflict])
    assert only(findings, "conflicting-labels").cases == ("x1", "x2")
    assert not findings.may_train
    doubled = [Case(f"x{n}", "p1", {"image": one}, truth=SCHEME.truth("benign")) for n in range(2)]
    findings = check([*balanced(), *doubled])
    assert only(findings, "doubled-cases").cases == ("x0", "x1")
    assert findings.may_train


def test_a_patient_in_two_splits():
    cases = [
        case(n, SCHEME.classes[n % 2], patient=f"p{n // 2}", split="train" if n % 4 < 3 else "test") for n in range(40)
    ]
    found = only(check(cases), "patient-in-two-splits")
    assert (found.severity, len(found.cases)) == ("error", 20)
    assert "10 patients have cases in more than one split" in found.message
    assert "p1" not in found.message.replace("patients", "")


def test_equal_pixels_in_two_splits_and_of_two_patients():
    cases = [case(n, SCHEME.classes[n % 2], split="train" if n < 30 else "test") for n in range(40)]
    cases[35] = case(35, "malignant", reader=partial(read, pixels(3)), split="test")
    cases[5] = case(5, "malignant", reader=partial(read, pixels(4)), split="train")
    findings = check(cases)
    assert only(findings, "pixels-in-two-splits").cases == ("c3", "c35")
    assert only(findings, "pixels-of-two-patients").cases == ("c4", "c5")


def test_equal_values_of_another_shape_are_no_copy():
    cases = balanced()
    values = pixels(0)
    cases[7] = case(7, "malignant", reader=partial(read, np.ascontiguousarray(values.T).reshape(1, 6, 5, 1).T))
    assert not check(cases).codes()


def test_unreadable_cases_are_counted_and_named():
    cases = balanced()
    cases[0] = case(0, reader=fail)
    found = only(check(cases), "unreadable")
    assert (found.severity, found.cases) == ("warning", ("c0",))
    assert "1 of 40 cases cannot be read and are left out; the first: case c0: cut off" in found.message
    findings = check([case(n, SCHEME.classes[n % 2], reader=fail) for n in range(40)])
    assert only(findings, "unreadable").severity == "error"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite(value):
    cases, values = balanced(), pixels(1)
    values[0, 2, 3, 0] = value
    cases[1] = case(1, "malignant", reader=partial(read, values))
    found = only(check(cases), "not-finite")
    assert found.cases == ("c1",)
    assert "1 case holds NaN or infinite voxels: c1" in found.message


def test_constant_images():
    cases = balanced()
    cases[1] = case(1, "malignant", reader=partial(read, np.full((1, 6, 5, 1), 7, np.float32)))
    assert only(check(cases), "constant").cases == ("c1",)


@pytest.mark.parametrize(
    ("what", "reader", "severity"),
    [
        ("channels", partial(read, pixels(1, channels=3)), "warning"),
        ("dimensions", partial(read, pixels(1, depth=4)), "error"),
        ("unit", partial(read, pixels(1), "HU"), "warning"),
        ("modality", partial(read, pixels(1), "1", "US"), "warning"),
    ],
)
def test_images_that_differ_in_kind(what, reader, severity):
    cases = balanced()
    cases[1] = case(1, "malignant", reader=reader)
    found = only(check(cases), f"mixed-{what}")
    assert (found.severity, found.cases) == (severity, ("c1",))
    assert f"image 'image' differs in {what} from case to case (39 x" in found.message


def test_a_sample_is_spread_and_none_reads_nothing():
    cases = [case(n, SCHEME.classes[n % 2], reader=fail if n == 399 else None) for n in range(400)]
    dataset = Dataset("test", tuple(cases), SCHEME)
    assert only(check_dataset(dataset, pixels="sample"), "unreadable").message.startswith("1 of 64 cases")
    assert not check_dataset(dataset, pixels="none").codes()
    with pytest.raises(ConfigError, match=r"pixels='al' is not known\. Did you mean 'all'"):
        check_dataset(dataset, pixels="al")


def test_what_was_skipped_and_guessed_is_told():
    skipped = tuple(Skipped(f"s{n}", "the file is empty (0 bytes)") for n in range(7))
    findings = check(balanced(), skipped=skipped, notes=("images by column 'image'",))
    assert (
        only(findings, "skipped").message == "7 left out: the file is empty (0 bytes) (s0, s1, s2, s3, s4 and 2 more)."
    )
    assert only(findings, "guess").severity == "note"


def test_findings_are_sorted_and_plain():
    findings = Findings([Finding("note", "n", "N"), Finding("error", "e", "E", ("a",)), Finding("warning", "w", "W")])
    assert [f.severity for f in findings] == ["error", "warning", "note"]
    assert findings.to_json()[0] == {"severity": "error", "code": "e", "message": "E", "cases": ["a"]}
    assert some(["a", "b"]) == "a, b"


def test_progress_is_reported():
    class Listener(Quiet):
        steps = 0

        def track(self, what, total=None):
            from contextlib import contextmanager

            @contextmanager
            def follow():
                def advance(steps=1.0, note=""):
                    Listener.steps += steps

                yield advance

            assert (what, total) == ("checking images", 40)
            return follow()

    check_dataset(Dataset("test", tuple(balanced()), SCHEME), pixels="all", reporter=Listener())
    assert Listener.steps == 40


def test_the_official_splits_share_pixels(bench_data):
    """Equal images in two official splits of MedMNIST, counted here with numpy alone."""
    from sagittal.read.open_dataset import open_dataset

    stored = np.load(bench_data / "medmnist" / "breastmnist.npz")
    train = {image.tobytes() for image in stored["train_images"]} | {image.tobytes() for image in stored["val_images"]}
    copies = sum(image.tobytes() in train for image in stored["test_images"])
    dataset = open_dataset(bench_data / "medmnist" / "breastmnist.npz")
    found = only(check_dataset(dataset, pixels="all"), "pixels-in-two-splits")
    assert copies == 1
    assert sum(c.startswith("test") for c in found.cases) == copies
